"""What Lightning and our records cost: the training loop of edgecls against a bare one, taking turns.

    python benchmarks/training_loop.py [--model airbench] [--batch-size 128] [--rounds 9] [--device cpu]

Both train the same network on the same batches with the same optimiser and precision; the pictures are noise, which
changes no speed. A round is one epoch of each; the ratio of a round is ours / bare in seconds. Files are written as in
a run: history and best checkpoint after every epoch, and what a killed run resumes from.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from edgecls.train.data.augment import augmentation
from edgecls.train.data.batches import Batches, Drawing
from edgecls.train.fit.loop import LoopOptions, Phase, fit
from edgecls.train.fit.losses import Loss
from edgecls.train.fit.optimizers import OptimizerOptions, make_optimizer, make_schedulers
from edgecls.train.fit.pace import Pace
from edgecls.train.fit.recorder import Recorder
from edgecls.train.machine import keep_freed_memory, lightning_precision, resolved_device
from edgecls.train.networks.models import PixelClassifier, build
from edgecls.train.options import MachineOptions
from edgecls.train.recipe_options import NetworkOptions

N_CLASSES = 10
OPTIMIZER = OptimizerOptions("sgd", 0.05, 5e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="airbench")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    given = parser.parse_args()
    keep_freed_memory()
    machine = MachineOptions(device=given.device)
    device = resolved_device(machine)
    n, side = given.batch_size * given.steps, given.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=generator).to(device)
    targets = torch.randint(0, N_CLASSES, (n,), generator=generator).to(device)
    batches = Batches(pixels, targets, given.batch_size, Drawing(0, augmentation=augmentation(["light"])))
    classifiers = []
    for _ in range(2):
        classifier, _ = build(NetworkOptions(given.model, "none", image_size=(side,)), N_CLASSES)
        classifiers.append(classifier.to(device, memory_format=torch.channels_last))
    precision = lightning_precision(classifiers[0], device, "auto")
    ratios, speeds = [], []
    for number in range(given.rounds + 1):
        bare = bare_epoch(classifiers[0], batches, precision)
        ours = our_epoch(classifiers[1], batches, machine)
        if number:  # the first round warms up
            ratios.append(ours / bare)
            speeds.append((n / ours, n / bare))
            print(f"round {number}: ours {n / ours:,.0f} img/s, bare {n / bare:,.0f}, ratio {ours / bare:.3f}")
    ours_speed, bare_speed = (statistics.median(each) for each in zip(*speeds, strict=True))
    print(
        f"{given.model} at {side} px, batch {given.batch_size}, {precision}, {device}: ours {ours_speed:,.0f}, bare "
        f"{bare_speed:,.0f} img/s; seconds ours / bare: median {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


def bare_epoch(classifier: PixelClassifier, batches: Batches, precision: str) -> float:
    """Seconds of an epoch without anything around it."""
    optimizer = make_optimizer(classifier, OPTIMIZER, {})
    (scheduler,) = (
        each["scheduler"] for each in make_schedulers(optimizer, OPTIMIZER, len(batches), Pace(1, len(batches)).at)
    )
    device = next(classifier.parameters()).device.type
    classifier.train()
    started = time.perf_counter()
    for inputs, labels, _ in batches:
        with torch.autocast(device, torch.bfloat16, enabled=precision != "32-true"):
            loss = F.cross_entropy(classifier(inputs), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
    loss.item()  # wait for a GPU
    return time.perf_counter() - started


def our_epoch(classifier: PixelClassifier, batches: Batches, machine: MachineOptions) -> float:
    """The same through `fit`, with its files; validation is two pictures."""
    few = Batches(batches.inputs[torch.arange(2)], batches.targets[:2], 2)
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder))
        phase = Phase("all", "all weights", Pace(1, len(batches)), OPTIMIZER, seed=0, patience=0)
        fit(classifier, (batches, few), phase, Loss(0.1), recorder, LoopOptions(machine, Path(folder)))
    return recorder.epochs[-1].seconds


if __name__ == "__main__":
    main()
