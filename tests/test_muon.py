"""The optimizer against a plain loop, and against Keras's AdamW where both do the same."""

import keras
import numpy as np
import pytest

from dr_keras.training.muon import Muon

RATE, DECAY, MOMENTUM = 0.01, 0.05, 0.9
A, B, C = 3.4445, -4.7750, 2.0315  # Newton-Schulz coefficients


def plain(value, gradients):
    """Muon on a kernel, step by step: momentum, Newton-Schulz on the matrix (hwC, D), decoupled decay."""
    momentum = np.zeros_like(value)
    for gradient in gradients:
        momentum = MOMENTUM * momentum + gradient
        x = (gradient + MOMENTUM * momentum).reshape(-1, value.shape[-1])
        wide = x.shape[0] <= x.shape[1]
        x = x if wide else x.T
        x = x / np.linalg.norm(x)
        for _ in range(3):
            square = x @ x.T
            x = A * x + (B * square + C * square @ square) @ x
        x = (x if wide else x.T) * np.sqrt(max(x.shape)) * 0.2
        value = value - RATE * DECAY * value - RATE * x.reshape(value.shape)
    return value


def stepped(optimizer, value, gradients):
    variable = keras.Variable(value)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return keras.ops.convert_to_numpy(variable)


def numbers(*shape):
    random = np.random.default_rng(0)
    return random.normal(size=shape).astype(np.float32), random.normal(size=(3, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 1, 4, 8), (12, 5), (5, 12)])
def test_kernels_and_matrices_equal_the_plain_loop(shape):
    value, gradients = numbers(*shape)
    made = stepped(Muon(RATE, DECAY), value, gradients)
    np.testing.assert_allclose(made, plain(value, gradients), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (5, 2, 6), (3, 3, 8, 1)])
def test_all_else_is_adamw(shape):
    value, gradients = numbers(*shape)
    adamw = stepped(keras.optimizers.AdamW(RATE, weight_decay=DECAY), value, gradients)
    np.testing.assert_allclose(stepped(Muon(RATE, DECAY), value, gradients), adamw, rtol=1e-5, atol=1e-6)


def test_large_matrices_use_adamw(monkeypatch):
    """Orthogonal updates of the 4,096 x 4,096 matrices in AlexNet and VGG take 20 times as long as the step itself."""
    monkeypatch.setattr("dr_keras.training.muon.MAX_SIDE", 6)
    for shape, orthogonal in (((2, 2, 4, 7), False), ((7, 7), False), ((2, 2, 4, 6), True), ((6, 20), True)):
        value, gradients = numbers(*shape)
        adamw = stepped(keras.optimizers.AdamW(RATE, weight_decay=DECAY), value, gradients)
        expected = plain(value, gradients) if orthogonal else adamw
        np.testing.assert_allclose(stepped(Muon(RATE, DECAY), value, gradients), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_iterates_close_to_the_exact_ones():
    value, gradients = numbers(3, 3, 16, 32)
    exact = stepped(Muon(RATE, 0.0), value, gradients) - value
    rough = stepped(Muon(RATE, 0.0, iterate_dtype="bfloat16"), value, gradients) - value
    assert np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 0.05


def test_an_update_has_the_same_size_whatever_the_gradient():
    value, gradients = numbers(3, 3, 16, 32)
    sizes = [
        np.sqrt(np.mean((stepped(Muon(RATE, 0.0), value, scale * gradients[:1]) - value) ** 2)) / RATE
        for scale in (1e-3, 1e3)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-2)
    assert 0.1 < sizes[0] < 0.3


def test_round_trip():
    optimizer = Muon(RATE, DECAY, iterate_dtype="bfloat16")
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, Muon)
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.03)])
@pytest.mark.parametrize("powers", [0, 3, 6])
def test_singular_values_of_any_size_are_raised_as_by_the_exact_iteration(dtype, most, powers):
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(side, 64)))[0] for side in (576, 64))
    x = (left * 10.0 ** -np.linspace(0, powers, 64)) @ right.T
    exact = x / np.linalg.norm(x)
    for _ in range(3):
        square = exact.T @ exact
        exact = A * exact + exact @ (B * square + C * square @ square)
    found = Muon(iterate_dtype=dtype).zeropower_via_newtonschulz5(keras.ops.convert_to_tensor(x.astype(np.float32)), 3)
    assert np.linalg.norm(keras.ops.convert_to_numpy(found) - exact) < most * np.linalg.norm(exact)
