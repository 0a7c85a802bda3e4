"""A few seconds of work: how fast a core computes, whether all together keep that up, how fast the model answers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgecls.bench import machine as machines
from edgecls.bench.machine import Machine, MachineState
from edgecls.device.arithmetic import expected_gflops, measured_gflops
from edgecls.device.system import System
from edgecls.golden import Golden
from edgecls.prefetch import n_cores
from edgecls.runs import GOLDEN, Run
from edgecls.runtime.backends.belonging import answers_as
from edgecls.runtime.backends.protocol import Backend, BackendOptions, noise
from edgecls.runtime.backends.selection import images_per_second, select
from edgecls.runtime.options import Device

_SHARES: Final = {"one core": 0.2, "all cores": 0.5, "model": 0.2}  # of the seconds
_TOGETHER: Final = 0.6  # of a core's speed that each keeps while all work: hyper-threads share what they have
_STEADY: Final = 0.85  # of the first second's speed that the last one has


@dataclass(frozen=True)
class Arithmetic:
    """Float32 products of matrices.

    Attributes:
        core_gflops: of one core that works alone.
        expected_gflops: what it does at least by its instructions and clock; None where that is not known.
        cores: that worked together.
        together: each core's speed then, as a share of `core_gflops`.
        kept: the speed of the last second as a share of the first one's.
        slowed: why the machine slowed down meanwhile, as it says itself.
    """

    core_gflops: float
    expected_gflops: float | None
    cores: int
    together: float
    kept: float
    slowed: tuple[str, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """What is not as expected, in sentences."""
        found = []
        if self.expected_gflops is not None and self.core_gflops < self.expected_gflops:
            found.append(
                f"A core does {self.core_gflops:.0f} GFLOP/s, and {self.expected_gflops:.0f} or more are expected of "
                "its kind and clock: other programs use it, or its clock is held down."
            )
        if self.together < _TOGETHER:
            found.append(
                f"All {self.cores} cores together keep {self.together:.0%} of their speed each, and {_TOGETHER:.0%} or "
                "more are expected: they are shared with others, or a container limits them."
            )
        if self.kept < _STEADY:
            found.append(
                f"Within seconds of work the speed fell to {self.kept:.0%}: the machine gets hot, or is shared."
            )
        return (*found, *(f"{each}." for each in self.slowed))


@dataclass(frozen=True)
class ModelSpeed:
    """How the model ran.

    Attributes:
        file, device: what `--device auto` takes here.
        answers_right: whether the golden images got the golden answers; None where the model has none.
        first_ms: from opening the file to the first answer.
        latency_ms: of one picture, median, without decoding.
        images_per_second: of batches on all cores or on the GPU, without decoding.
    """

    file: str
    device: str
    answers_right: bool | None
    first_ms: float
    latency_ms: float
    images_per_second: float


def measure_arithmetic(machine: Machine, system: System, seconds: float) -> Arithmetic:
    """Let one core work, then all.

    Raises:
        RunError: it could not be done.
    """
    alone = statistics.median(measured_gflops(1, seconds * _SHARES["one core"])[0])
    before = machines.state()
    windows = measured_gflops(machine.cores, seconds * _SHARES["all cores"])
    after = machines.state()
    each = [statistics.fmean(speeds) for speeds in zip(*windows, strict=False)]
    return Arithmetic(
        core_gflops=alone,
        expected_gflops=expected_gflops(machine.cpu, machine.cpu_features, _clock(before, system)),
        cores=machine.cores,
        together=statistics.median(each) / alone,
        kept=statistics.fmean(each[-2:]) / statistics.fmean(each[:2]),
        slowed=tuple(machines.throttling(before, [after])),
    )


def _clock(state: MachineState, system: System) -> float | None:
    """The highest that the fastest core may have at the moment."""
    return state.cpu_clock_limit_mhz or system.full_clock_mhz


def measure_model(path: Path, device: Device, seconds: float) -> ModelSpeed:
    """Open what `--device` takes, compare its golden answers, and time it.

    Raises:
        EdgeclsError: it does not open, or does not run.
    """
    candidate = select(path, options=BackendOptions(device))
    start = time.perf_counter()
    with candidate.open(BackendOptions(candidate.device)) as backend:
        one = noise(1, backend.manifest)
        backend.infer(one)
        first_ms = 1000 * (time.perf_counter() - start)
        right = _answers_right(path, backend)
        latencies = _times(backend, one, seconds * _SHARES["model"])
    lanes = n_cores() if candidate.device in ("cpu", "openvino") else 2  # one copies while the other is on the GPU
    with candidate.open(BackendOptions(candidate.device, n_lanes=lanes)) as backend:
        speed = images_per_second(backend)
    return ModelSpeed(
        candidate.file.name, candidate.device, right, first_ms, 1000 * statistics.median(latencies),
        speed,
    )  # fmt: skip


def _answers_right(path: Path, backend: Backend) -> bool | None:
    if not (path.is_dir() and (path / GOLDEN).is_file()):
        return None
    return answers_as(Golden.of(Run(path)), backend)


def _times(backend: Backend, images: Any, seconds: float) -> Sequence[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or not found:
        backend.infer(images)
        found.append(time.perf_counter() - start)
    return found
