"""What the weight gradient of `SmallMapConv` gains: training steps with and without it, taking turns, on a CPU.

    python benchmarks/small_maps.py [--model airbench] [--width 64] [--batch-size 256] [--rounds 7]

The pictures are noise of 32 px, which changes no speed. A round is some steps of each under bf16 autocast; its ratio is
without / with in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecls.train.fit.optimizers import OptimizerOptions, make_optimizer
from edgecls.train.machine import keep_freed_memory
from edgecls.train.networks import small_maps
from edgecls.train.networks.models import PixelClassifier, build
from edgecls.train.recipe_options import NetworkOptions

N_CLASSES, SIDE, STEPS = 10, 32, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="airbench")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    n = given.batch_size
    pixels = torch.randint(0, 256, (n, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, N_CLASSES, (n,), generator=generator)
    ours, plain = (_classifier(given.model, given.width) for _ in range(2))
    for module in plain.modules():
        if isinstance(module, small_maps.SmallMapConv):
            module.__class__ = nn.Conv2d  # the same weights, torch's own forward
    ratios, speeds = [], []
    for number in range(given.rounds + 1):
        without, with_it = seconds(plain, pixels, targets), seconds(ours, pixels, targets)
        if number:  # the first warms up
            ratios.append(without / with_it)
            speeds.append((n * STEPS / without, n * STEPS / with_it))
            print(f"round {number}: {speeds[-1][0]:,.0f} and {speeds[-1][1]:,.0f} img/s, ratio {ratios[-1]:.2f}")
    plain_speed, our_speed = (statistics.median(each) for each in zip(*speeds, strict=True))
    print(f"median: {plain_speed:,.0f} and {our_speed:,.0f} img/s, ratio {statistics.median(ratios):.2f}")


def _classifier(model: str, width: int) -> PixelClassifier:
    classifier, _ = build(NetworkOptions(model, "none", image_size=(SIDE,), width=width), N_CLASSES)
    return classifier.to(memory_format=torch.channels_last).train()


def seconds(classifier: PixelClassifier, pixels: Tensor, targets: Tensor) -> float:
    """Of some training steps."""
    optimizer = make_optimizer(classifier, OptimizerOptions("sgd", 0.01, 5e-4), {})
    started = time.perf_counter()
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(classifier(pixels), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
