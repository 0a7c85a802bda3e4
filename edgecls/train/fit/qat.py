"""Quantisation-aware training: a network learns to answer as before while it computes in 8 bits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
import torch
from torch import Tensor

from edgecls.errors import DatasetError
from edgecls.labelled import LabelledImage, stratified_sample
from edgecls.manifest import Preprocessing
from edgecls.progress import Progress
from edgecls.train.data.pixels import decode_images
from edgecls.train.networks.onnx_network import OnnxNetwork
from edgecls.train.networks.quantised_network import Quantisation, QuantisedNetwork, Range

MOST_IMAGES: Final = 5000  # of an epoch; what rounding takes is learnt from few
_SHOWN: Final = 10_000  # images in all, unless epochs are asked for
_BATCH: Final = 32
_WEIGHT_RATE: Final = 3e-4  # of a step, as a share of a tensor's own size: folded weights differ by thousands
_RANGE_RATE: Final = 1e-3
_WARM_UP: Final = 0.05
_TIMED: Final = 3  # steps by which the others are forecast; the first is slower


@dataclass(frozen=True)
class QatResult:
    """What quantisation-aware training made.

    Attributes:
        graph: the float32 network with its new weights.
        ranges: lowest and highest value by tensor name, as learnt.
        n_images: that it learnt from, in each of `n_epochs`.
        seconds: without decoding.
    """

    graph: onnx.ModelProto
    ranges: dict[str, Range]
    n_images: int
    n_epochs: int
    seconds: float


def train_quantised(
    teacher: onnx.ModelProto,
    graph: onnx.ModelProto,
    ranges: Mapping[str, Range],
    quantisations: Sequence[Quantisation],
    training: Sequence[LabelledImage],
    preprocessing: Preprocessing,
    *,
    n_epochs: int | None = None,
    seed: int = 0,
    progress: Progress = Progress(),
) -> QatResult:
    """Train the weights that are rounded, their biases, and the ranges.

    The float32 network is the teacher, so labels play no part. Batch norms are folded into the graph: their statistics
    stay. Pictures are not varied: a mirrored letter is none that the teacher knows. Each step computes as one of the
    INT8 graphs, in turn, since all share weights and ranges. Of each tensor the rate is a share of its own size.
    Source: A. Mishra and D. Marr, "Apprentice", arXiv 1711.05852.

    Args:
        teacher: the float32 network; takes pixels.
        graph: the same with the weights to begin with.
        ranges: of its tensors, to begin with.
        quantisations: what its INT8 graphs round.
        training: labels are not looked at; at most `MOST_IMAGES` of them are drawn, stratified.
        n_epochs: passes over them; None for as many as show 10,000 images, and two at least.

    Raises:
        ExportError: the network has an operator that cannot be trained.
        DatasetError: none of the images can be read.
    """
    drawn = stratified_sample(training, MOST_IMAGES, seed)
    progress.on_pass("reading images to train on", len(drawn))
    pixels = decode_images(drawn, preprocessing, on_image=lambda done: progress.on_images(1)).pixels
    if not len(pixels):
        raise DatasetError("--qat: none of the images can be read; export without --qat")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = QuantisedNetwork(OnnxNetwork(graph), ranges, quantisations).to(device)
    expected = _answers(OnnxNetwork(teacher).to(device), pixels, progress)
    optimizer = _optimizer(student)
    n_epochs = n_epochs or max(2, round(_SHOWN / len(pixels)))
    n_steps = n_epochs * math.ceil(len(pixels) / _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, n_steps))
    generator = torch.Generator().manual_seed(seed)
    progress.on_pass(f"quantisation-aware, {_epochs(n_epochs)}", n_epochs * len(pixels))
    started, step = time.perf_counter(), 0
    for _ in range(n_epochs):
        for rows in torch.split(torch.randperm(len(pixels), generator=generator), _BATCH):
            logits = student(pixels[rows].to(device), student.quantisations[step % len(student.quantisations)])
            loss = _loss(logits, expected[rows.to(device)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            student.keep_ranges_sound()
            schedule.step()
            step += 1
            progress.on_images(len(rows))
            if step == 1:
                first = time.perf_counter()
            elif step == _TIMED and n_steps > _TIMED:
                now = time.perf_counter()
                left = (now - first) / (_TIMED - 1) * (n_steps - step)
                progress.on_step(_forecast(n_epochs, len(pixels), now - started + left))
    seconds = time.perf_counter() - started
    return QatResult(student.network.written_into(graph), student.ranges, len(pixels), n_epochs, seconds)


def _forecast(n_epochs: int, n_images: int, seconds: float) -> str:
    how_long = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return f"int8: quantisation-aware training, {_epochs(n_epochs)} of {n_images:,} images, takes about {how_long}"


def _epochs(n: int) -> str:
    return "1 epoch" if n == 1 else f"{n} epochs"


def _optimizer(student: QuantisedNetwork) -> torch.optim.Optimizer:
    rounded = {name for each in student.quantisations for name in each.weights}
    weights = student.network.weights
    trained: list[tuple[Tensor, float]] = []
    for name in sorted(rounded | student.network.biases_of(rounded)):
        size = float(weights[name].square().mean().sqrt())
        if size:
            trained.append((weights[name].requires_grad_(True), _WEIGHT_RATE * size))
    for low, high in zip(student.lows, student.highs, strict=True):
        trained += [(end, _RANGE_RATE * (high - low).item()) for end in (low, high)]
    return torch.optim.Adam([{"params": [each], "lr": rate} for each, rate in trained])


def _share_of_rate(step: int, n_steps: int) -> float:
    warm_up = max(1, round(_WARM_UP * n_steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, n_steps - warm_up))


@torch.no_grad()
def _answers(teacher: OnnxNetwork, pixels: Tensor, progress: Progress) -> Tensor:
    """(n, n_classes) float32 logits."""
    progress.on_pass("answers of the float network", len(pixels))
    device = next(teacher.parameters()).device
    answers = []
    for batch in torch.split(pixels, _BATCH):
        answers.append(teacher(batch.to(device)))
        progress.on_images(len(batch))
    return torch.cat(answers)


def _loss(logits: Tensor, expected: Tensor) -> Tensor:
    """Mean squared difference of the logits, less what all classes share, which changes no answer.

    Nearly every image is answered with certainty, where the divergence of the probabilities has no gradient left.
    """
    difference = logits - expected
    return (difference - difference.mean(1, keepdim=True)).square().mean()
