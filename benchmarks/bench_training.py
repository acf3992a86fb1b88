#!/usr/bin/env python3
"""How fast is a training step? Images/s of our `fit` and of PyTorch with the same network, batch and threads.

    pip install torch==2.13.0
    python benchmarks/bench_training.py

Each contender runs in its own process on one constant batch, and they take turns. PyTorch uses channels_last, the fused
AdamW, and the better of two ways to pass the three branches through the network: one call each (like ours) or one call
for all. Both print their number of trainable weights, which must agree.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine, record, spread

SIZE, BATCH, DIM = 64, 64, 256
CONTENDERS = ("keras", "torch", "torch, one call")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="length of each contender's turn")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)  # in the child process
    options = parser.parse_args()
    if options.contender:
        width, one_call = options.widths[0], options.contender.endswith("one call")
        step, weights = keras_step(width) if options.contender == "keras" else torch_step(width, one_call=one_call)
        print(json.dumps({"rate": rate(step, options.seconds), "weights": weights}))
        return
    print(machine())
    for width in options.widths:
        compare(width, options.rounds, options.seconds)


def compare(width: int, rounds: int, seconds: float) -> None:
    """Prints the rates of all contenders and each round's ratio to the better of PyTorch's two ways."""
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    weights = set()
    for number in range(rounds):
        for name in CONTENDERS if number % 2 else reversed(CONTENDERS):
            command = [sys.executable, __file__, "--widths", str(width), "--seconds", str(seconds), "--contender", name]
            environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            result = json.loads(child.stdout.splitlines()[-1])
            rates[name].append(result["rate"])
            weights.add(result["weights"])
    print(f"resnet18 --width {width}, {SIZE} px, batches of {BATCH} triplets, {sorted(weights)} trainable weights")
    for name, values in rates.items():
        print(f"  {name}: {spread(values, 'images/s', 0)}")
    best = max(CONTENDERS[1:], key=lambda name: float(np.median(rates[name])))
    ratios = [one / other for one, other in zip(rates["keras"], rates[best], strict=True)]
    print(f"  keras / {best}: {spread(ratios, '')}")
    title = f"resnet18 --width {width}"
    record(title, rates["keras"], "images/s", ratio=float(np.median(ratios)), to=best.partition(",")[0])


def rate(step: Callable[[], object], seconds: float) -> float:
    """Images/s at the median step."""
    for _ in range(4):
        step()
    took = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
    return 3 * BATCH / float(np.median(took))


def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8) for _ in range(3)]


def keras_step(width: int) -> tuple[Callable[[], object], int]:
    """A step of `fit`: the compiled model of a training run with default settings."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import tensorflow as tf

    from dr_keras.config import Config
    from dr_keras.data.batches import BRANCHES
    from dr_keras.model.network import initial_network
    from dr_keras.training.compile import compiled_model

    config = Config(
        width=width,
        image_size=SIZE,
        batch_size=BATCH,
        embedding_dim=DIM,
        mining="none",
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-4,
    )
    network = initial_network(config)
    model = compiled_model(network, ranking=config, optimizer=config, steps=1000)
    batch = {name: tf.constant(pixels) for name, pixels in zip(BRANCHES, images(), strict=True)}
    batch["classes"] = tf.zeros((BATCH, 2), tf.int32)
    weights = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    return lambda: model.train_on_batch(batch), weights


def torch_step(width: int, *, one_call: bool) -> tuple[Callable[[], object], int]:
    """The same network, loss and optimizer in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(os.cpu_count() or 1)

    def conv_norm(inside: int, outside: int, kernel: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outside, eps=1e-3, momentum=0.01))

    class Block(nn.Module):
        def __init__(self, inside: int, outside: int, stride: int) -> None:
            super().__init__()
            self.a, self.b = conv_norm(inside, outside, 3, stride), conv_norm(outside, outside, 3, 1)
            changes = stride > 1 or inside != outside
            self.shortcut = conv_norm(inside, outside, 1, stride) if changes else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.b(F.relu(self.a(x))) + self.shortcut(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = [conv_norm(3, width, 3, 2), nn.ReLU()]
            inside = width
            for stage in range(4):
                for block in range(2):
                    outside = width * 2**stage
                    layers.append(Block(inside, outside, 2 if stage and not block else 1))
                    inside = outside
            self.body = nn.Sequential(*layers)
            self.low_a, self.low_b = (nn.Conv2d(3, 96, 3, 1, 1) for _ in range(2))
            self.head = nn.Linear(8 * width + 96 * 16 * 2, DIM)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.float() / 127.5 - 1
            features = F.normalize(self.body(x).mean((2, 3)))
            a = F.max_pool2d(F.relu(self.low_a(F.avg_pool2d(x, 4))), 7, 4, 3).flatten(1)
            b = F.max_pool2d(F.relu(self.low_b(F.avg_pool2d(x, 8))), 3, 2, 1).flatten(1)
            low = F.normalize(torch.cat([a, b], 1))
            return F.normalize(self.head(torch.cat([features, low], 1)))

    network = Network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4, fused=True)
    branches = [
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        for pixels in images()
    ]

    def step() -> float:
        query, positive, negative = network(torch.cat(branches)).chunk(3) if one_call else map(network, branches)
        near, far = ((query - other).square().sum(1) for other in (positive, negative))
        loss = F.relu(1.0 + near - far).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
