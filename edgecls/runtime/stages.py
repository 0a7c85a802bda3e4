"""Where the time of a prediction goes: per stage, with percentiles, and which stage is the bottleneck."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

try:
    import resource
except ImportError:  # Windows has no resource module
    resource = None  # type: ignore[assignment]

Stage = Literal["read", "decode", "preprocess", "copy-in", "infer", "copy-out", "post"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
LOADING: Final[tuple[Stage, ...]] = ("read", "decode", "preprocess")


@dataclass(frozen=True)
class StageSummary:
    """Milliseconds per image; `share` is the stage's part of all stages' time, 0 to 1."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    share: float


class StageTimes:
    """Times of every image in every stage: 4 bytes each, so 100,000 images cost 2 MB. Threads may add at once."""

    def __init__(self) -> None:
        self._ms: dict[Stage, array[float]] = {stage: array("f") for stage in STAGES}

    def add(self, stage: Stage, seconds: float, n_images: int = 1) -> None:
        """Record a stage's time for a batch; each of its images counts with an equal part."""
        self._ms[stage].extend([seconds * 1000 / n_images] * n_images)

    def add_each(self, seconds: Mapping[Stage, Sequence[float]]) -> None:
        """Record the times of single images, by stage."""
        for stage, each in seconds.items():
            self._ms[stage].extend([1000 * one for one in each])

    def add_all(self, times: StageTimes, n_images: int) -> None:
        """Record all that another one holds as the time of one batch."""
        for stage, each in times._ms.items():
            if each:
                self.add(stage, sum(each) / 1000, n_images)

    def clear(self) -> None:
        """Forget all times."""
        for each in self._ms.values():
            del each[:]

    def mean_ms(self, stage: Stage) -> float:
        """Milliseconds per image; 0 for a stage that did not take place."""
        times = self._ms[stage]
        return sum(times) / len(times) if times else 0.0

    def summaries(self) -> dict[Stage, StageSummary]:
        """Per stage that took place, in the order of the data's way."""
        totals = self._totals()
        whole = sum(totals.values()) or 1.0
        return {stage: _summary(self._ms[stage], total / whole) for stage, total in totals.items()}

    def bottleneck(self, n_threads: int, n_lanes: int) -> Stage | None:
        """The stage to make faster first.

        Workers take a batch the whole way on a core, so the longest stage is the one. Where fewer inferences run at a
        time than there are threads (a GPU), loading and answering are lanes beside one another: the slower one sets the
        pace, and its longest stage counts.
        """
        totals = self._totals()
        loading = {stage: total for stage, total in totals.items() if stage in LOADING}
        answering = {stage: total for stage, total in totals.items() if stage not in LOADING}
        lane = totals
        if n_lanes < n_threads and loading and answering:
            is_loading = sum(loading.values()) / n_threads > sum(answering.values()) / n_lanes
            lane = loading if is_loading else answering
        return max(lane, key=lambda stage: lane[stage], default=None)

    def _totals(self) -> dict[Stage, float]:
        """Milliseconds of all images, of the stages that took place."""
        return {stage: sum(times) for stage, times in self._ms.items() if times}


def _summary(times_ms: array[float], share: float) -> StageSummary:
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99]).tolist()
    return StageSummary(p50, p90, p99, share)


def peak_memory_mb() -> float:
    """The most resident memory that this process has held so far, in MB (10^6 bytes); 0 where the system does not say.

    On Linux from /proc: `getrusage` there also counts what the parent held when it started this process.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="ignore") as lines:
            return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
