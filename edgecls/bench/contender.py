"""One model file on one device while it is measured, in processes of its own, and what came of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from edgecls.bench.files import Accuracy
from edgecls.bench.worker import Job, Request
from edgecls.manifest import Precision
from edgecls.runtime.backends.selection import Candidate
from edgecls.runtime.options import Device

ON_CPU: Final = ("cpu", "openvino")


@dataclass(frozen=True)
class Cell:
    """One batch size of one contender.

    Attributes:
        p50_ms, p90_ms, p99_ms: of an inference call, pixels in, logits out; one at a time, with all cores.
        n_calls: that these rest on.
        p50_ms_by_round: their medians by round.
        images_per_second: with `n_lanes` inferences at a time, median of the rounds; by_round: each of them.
        settled: whether the times had become stable within the time for warming up.
        peak_memory_mb: of a process that had inferred batches up to this size, one at a time; lanes_peak_memory_mb:
            of one with all lanes. The processor's memory, Python and the engine's libraries included.
        gpu_memory_mb: that the GPU had less than before the file was opened; None where no GPU runs it.
    """

    batch_size: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    n_calls: int
    p50_ms_by_round: tuple[float, ...]
    images_per_second: float
    images_per_second_by_round: tuple[float, ...]
    n_lanes: int
    settled: bool
    peak_memory_mb: float
    lanes_peak_memory_mb: float
    gpu_memory_mb: float | None

    @property
    def ms_an_image(self) -> float:
        return self.p50_ms / self.batch_size


@dataclass(frozen=True)
class Contender:
    """One model file on one device.

    Attributes:
        backend: what ran it, e.g. `onnxruntime-cpu`; the device where it did not run.
        start_ms: from opening the file to its first answer, the engine's import included, Python's start not.
        cells: by batch size; one that failed is left out.
        errors: why it did not run, or a batch size of it.
    """

    file: str
    precision: Precision
    device: Device
    backend: str
    bytes: int
    start_ms: float | None
    accuracy: Accuracy | None
    cells: tuple[Cell, ...]
    errors: tuple[str, ...]

    @property
    def best(self) -> Cell | None:
        """The cell with the least time an image."""
        return min(self.cells, key=lambda cell: cell.ms_an_image, default=None)


class WorkerFailed(Exception):
    """A worker could not do what it was asked; the message says why."""


class Worker:
    """A process of `worker.py`, from the outside."""

    def __init__(self, job: Job) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgecls.bench.worker", json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        self.has_ended = False

    def ask(self, request: Request) -> dict[str, Any]:
        stdin = self._process.stdin
        if stdin is not None:
            with suppress(OSError):  # it has ended: the answer says so
                stdin.write(json.dumps(asdict(request)).encode() + b"\n")
                stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line.

        Raises:
            WorkerFailed: it says that it could not, or it ended.
        """
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            self.has_ended = True
            raise WorkerFailed(self._last_words())
        values: dict[str, Any] = json.loads(line)
        if "error" in values:
            raise WorkerFailed(values["error"])
        return values

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "the process was killed (signal 9), as the system does when memory runs out; take smaller batches"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f"the process ended ({'signal' if code < 0 else 'code'} {abs(code)}): {lines[-1] if lines else '-'}"

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(timeout=10)  # it ends when nothing more is asked
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        self._said.close()


class Entrant:
    """One contender while it is measured: a worker for latency, and one with all lanes where that is another."""

    def __init__(self, stack: ExitStack, candidate: Candidate, precision: Precision, n_callers: int) -> None:
        """Start its workers, one after the other; each is closed with the stack."""
        self.candidate, self.precision, self.n_callers = candidate, precision, n_callers
        self._bytes = candidate.file.stat().st_size
        self.backend: str = candidate.device
        self._start_ms: float | None = None
        self._workers: list[Worker] = []
        # by batch size, in rounds: what the workers answered, asked for one call at a time and for all callers at once
        self._rounds: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        self._errors: list[str] = []
        self._failed: set[int] = set()
        try:
            for n_lanes in (1, n_callers) if candidate.device in ON_CPU and n_callers > 1 else (1,):
                worker = Worker(Job(str(candidate.file), candidate.device, n_lanes))
                stack.callback(worker.close)
                opened = worker.answer()
                self._workers.append(worker)
                if n_lanes == 1:
                    self.backend, self._start_ms = opened["backend"], opened["start_ms"]
        except WorkerFailed as error:
            self._errors.append(str(error))
            self._workers = []

    def measure(self, batch_size: int, seconds: float) -> None:
        """One round of a cell."""
        if not self._workers or batch_size in self._failed:
            return
        is_first = batch_size not in self._rounds
        try:
            one = self._workers[0].ask(Request(batch_size, seconds, 1, is_first))
            many = one
            if self.n_callers > 1:
                many = self._workers[-1].ask(Request(batch_size, seconds, self.n_callers, is_first))
        except WorkerFailed as error:
            self._errors.append(f"batch {batch_size}: {error}")
            self._failed.add(batch_size)
            if any(worker.has_ended for worker in self._workers):
                self._workers = []
            return
        self._rounds.setdefault(batch_size, []).append((one, many))

    def contender(self, accuracies: Mapping[Precision, Accuracy]) -> Contender:
        return Contender(
            file=self.candidate.file.name,
            precision=self.precision,
            device=self.candidate.device,
            backend=self.backend,
            bytes=self._bytes,
            start_ms=self._start_ms,
            accuracy=accuracies.get(self.precision),
            cells=tuple(self._cell(size) for size in self._rounds),
            errors=tuple(self._errors),
        )

    def _cell(self, batch_size: int) -> Cell:
        rounds = self._rounds[batch_size]
        ms = [one["ms"][0] for one, _ in rounds]
        speeds = tuple(images_per_second(many["ms"], batch_size) for _, many in rounds)
        one, many = rounds[0]  # in the first round the sizes rise: of memory, no larger one has been there yet
        return Cell(
            batch_size,
            *percentiles([each for calls in ms for each in calls]),
            n_calls=sum(map(len, ms)),
            p50_ms_by_round=tuple(float(np.median(calls)) for calls in ms),
            images_per_second=float(np.median(speeds)),
            images_per_second_by_round=speeds,
            n_lanes=self.n_callers,
            settled=all(each["settled"] for answers in rounds for each in answers),
            peak_memory_mb=one["memory_mb"],
            lanes_peak_memory_mb=many["memory_mb"],
            gpu_memory_mb=many["gpu_memory_mb"],
        )


def images_per_second(ms_by_caller: Sequence[Sequence[float]], batch_size: int) -> float:
    """Of callers that inferred at the same time: the sum of their speeds."""
    return math.fsum(batch_size * len(ms) / (math.fsum(ms) / 1000) for ms in ms_by_caller)


def percentiles(ms: Sequence[float]) -> tuple[float, float, float]:
    """The 50th, 90th and 99th, between two calls where it falls between them."""
    p50, p90, p99 = np.percentile(ms, [50, 90, 99]).tolist()
    return p50, p90, p99
