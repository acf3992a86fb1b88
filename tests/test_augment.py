"""Augmentation beyond moving pixels: seeds, stores, geometry, colors, mixing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_keras.data.augment_pillow import augmented, mixed
from dr_keras.data.augmentation_draws import FILL_COLOR, LUMA, Augmentation, enhance, table, warp

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
STRONG = Augmentation(flip=True, crop=0.4, color=0.4, operations=2, erase=0.5)
ROWS = np.array([3, 3, 3, 0, 19, 7, 7, 11, 2, 5, 5, 5])


@settings(max_examples=40, deadline=None)
@given(
    flip=st.booleans(),
    shift=st.integers(0, 5),
    crop=st.sampled_from([0.2, 0.7, 1.0]),
    color=st.sampled_from([0.0, 0.5, 1.0]),
    operations=st.integers(0, 3),
    erase=st.sampled_from([0.0, 1.0]),
    size=st.sampled_from([None, 16, 24, 32]),
    step=st.integers(0, 10**9),
)
def test_any_augmentation_is_a_function_of_its_seed(flip, shift, crop, color, operations, erase, size, step):
    how = Augmentation(flip, shift, crop, color, operations, erase)
    before = PIXELS.copy()
    whole = augmented(PIXELS, ROWS, how, size=size, seed=(1, step))
    assert whole.dtype == np.uint8
    assert whole.shape == (len(ROWS), size or 32, size or 32, 3)
    assert np.array_equal(whole, augmented(PIXELS, ROWS, how, size=size, seed=(1, step)))
    parts = [augmented(PIXELS, ROWS, how, size=size, seed=(1, step), part=slice(a, a + 6)) for a in (0, 6)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(PIXELS, before)


def test_each_image_is_changed_on_its_own_and_each_step_anew():
    rows = np.zeros(12, int)
    one = augmented(PIXELS, rows, STRONG, seed=(0, 1))
    assert len({image.tobytes() for image in one}) == 12
    assert not np.array_equal(one, augmented(PIXELS, rows, STRONG, seed=(0, 2)))


def test_without_augmentation_smaller_images_are_the_means_of_their_pixels():
    # Pillow's triangle filter for halving reaches one pixel further on each side, so compare smooth images.
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (1, 32, 32, 3)).copy()
    smooth = augmented(ramp, np.array([0]), Augmentation(), size=16)
    expected = ramp.reshape(1, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert np.abs(smooth[:, 1:-1].astype(float) - expected[:, 1:-1]).max() <= 1
    flat = np.broadcast_to(np.arange(0, 250, 25, dtype=np.uint8)[:, None, None, None], (10, 32, 32, 3)).copy()
    rows = np.array([3, 0, 9, 3])
    assert (augmented(flat, rows, Augmentation(), size=16) == flat[rows, :16, :16]).all()  # the requested rows


def test_a_crop_shows_a_part_of_at_least_its_share():
    """In a picture whose colors encode coordinates, the corners of the result reveal the crop."""
    y, x = np.mgrid[0:64, 0:64].astype(np.uint8)
    coordinates = np.stack([4 * y, 4 * x, np.zeros_like(x)], axis=-1)[None]
    made = augmented(coordinates, np.zeros(200, int), Augmentation(flip=True, crop=0.3), seed=(0,)).astype(float) / 4
    down = made[:, -1, :, 0].mean(axis=1) - made[:, 0, :, 0].mean(axis=1)
    across = made[:, :, -1, 1].mean(axis=1) - made[:, :, 0, 1].mean(axis=1)
    area = (down / 63) * (np.abs(across) / 63)
    assert area.min() > 0.3 - 0.04
    assert area.max() > 0.9
    assert area.min() < 0.45
    assert 60 < (across < 0).sum() < 140  # flipped half of the time
    assert (down / np.abs(across)).max() < 4 / 3 + 0.1


def test_erasing_puts_one_color_into_a_rectangle():
    blank = np.full((1, 32, 32, 3), 77, np.uint8)
    made = augmented(blank, np.zeros(100, int), Augmentation(erase=1.0), seed=(4,))
    share = (made != 77).any(axis=-1).mean(axis=(1, 2))
    assert share.max() < 0.3
    assert (share > 0).mean() > 0.9
    for image in made[share > 0]:
        inside = image[(image != 77).any(axis=-1)]
        assert len(np.unique(inside, axis=0)) == 1
    never = augmented(blank, np.zeros(100, int), Augmentation(erase=0.0, color=0.001), seed=(4,))
    assert np.abs(never.astype(int) - 77).max() <= 1


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_maps_leave_what_they_should(name):
    color = np.array([200.0, 30, 90, 1])
    unchanged, off = enhance(name, np.array([1.0, 0.0]))
    assert np.allclose(unchanged, np.eye(4))
    expected = {"brightness": 0, "contrast": LUMA @ FILL_COLOR, "saturation": LUMA @ color[:3]}[name]
    np.testing.assert_allclose((off @ color)[:3], expected)


def test_tables_and_warps():
    weak, strong = table("posterize", np.array([0.0, 1.0])).tolist()
    assert weak == list(range(256))
    assert set(strong) == set(range(0, 256, 32))
    weak, strong = table("solarize", np.array([0.0, 1.0])).tolist()
    assert weak == list(range(256))
    assert strong[:64] == list(range(64))
    assert strong[255] == 0
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        still, moved = warp(name, np.array([0.0, 0.7]), 32)
        assert np.allclose(still, np.eye(3))
        assert not np.allclose(moved, np.eye(3))
        assert np.isclose(np.linalg.det(moved), 1)  # areas are preserved


def test_mixing_equals_its_shares():
    images = np.zeros((400, 8, 8, 3), np.uint8)
    images[:] = (np.arange(400) % 251)[:, None, None, None]
    out, partner, share = mixed(images, mixup=0.3, cutmix=0.3, seed=(1,))
    assert np.array_equal(images[:, 0, 0, 0], np.arange(400) % 251)  # unchanged
    assert sorted(partner) == list(range(400))
    kinds = {"whole": 0, "blend": 0, "paste": 0}
    for number in range(400):
        own, other = float(images[number, 0, 0, 0]), float(images[partner[number], 0, 0, 0])
        values = np.unique(out[number])
        if abs(own - other) < 60 or 0.95 < share[number] < 1 or share[number] < 0.05:
            continue  # rounding could hide the change
        if share[number] == 1 and np.array_equal(values, [own]):
            kinds["whole"] += 1
        elif len(values) == 1 and values[0] not in (own, other):
            kinds["blend"] += 1
            assert abs(values[0] - (share[number] * own + (1 - share[number]) * other)) <= 0.51
        else:
            assert set(values.tolist()) <= {own, other}
            kinds["paste"] += 1
            assert (out[number, ..., 0] == own).mean() == pytest.approx(share[number], abs=1e-6)
    assert all(count > 50 for count in kinds.values()), kinds
    again = mixed(images, mixup=0.3, cutmix=0.3, seed=(1,))
    assert all(np.array_equal(one, two) for one, two in zip((out, partner, share), again, strict=True))


def test_no_mixing_changes_nothing():
    out, _, share = mixed(PIXELS, mixup=0.0, cutmix=0.0, seed=(0,))
    assert np.array_equal(out, PIXELS)
    assert (share == 1).all()
