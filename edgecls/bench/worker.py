"""A process that opens one model file and times it as its parent asks: a JSON object a line, in and out.

A process of its own, so that memory and start-up are those of this file on this device, and of nothing else.
`python -m edgecls.bench.worker JOB` is started by `contender.py`; it is not for people.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from edgecls.bench.layer_times import layer_times
from edgecls.errors import EdgeclsError
from edgecls.runtime.backends.cuda import find_gpu
from edgecls.runtime.backends.protocol import Backend, BackendOptions, noise
from edgecls.runtime.backends.selection import Candidate
from edgecls.runtime.options import Device
from edgecls.runtime.stages import peak_memory_mb

Clock = Callable[[], float]

_WINDOW_CALLS: Final = 5
_WINDOW_SECONDS: Final = (0.05, 0.25)  # a window's shortest and longest, calls permitting
_SETTLED: Final = 0.05  # medians of two windows in a row differ by no more
_ON_GPU: Final = ("cuda", "tensorrt")


@dataclass(frozen=True)
class Job:
    """What a worker opens.

    Attributes:
        n_lanes: as in `BackendOptions`.
        layers: batch size for the time of every layer, in place of opening a backend; 0 opens one.
    """

    file: str
    device: Device
    n_lanes: int = 1
    layers: int = 0
    seconds: float = 0.0

    @property
    def options(self) -> BackendOptions:
        return BackendOptions(self.device, n_lanes=self.n_lanes)


@dataclass(frozen=True)
class Request:
    """What a worker is to time.

    Attributes:
        n_callers: threads that infer at the same time.
        warm_up: call until the times have settled; otherwise for a moment, as caches and clocks want it after a pause.
    """

    batch_size: int
    seconds: float
    n_callers: int
    warm_up: bool


def warm_up(call: Callable[[], object], seconds: float, clock: Clock = time.perf_counter) -> bool:
    """Call until the medians of two windows in a row are within 5 %; whether it came to that.

    Args:
        seconds: after which to give up, two windows at the least.
    """
    started = clock()
    call()  # allocates, picks kernels
    last, n_windows = 0.0, 0
    while True:
        middle = float(np.median(_window(call, clock)))
        if n_windows and abs(middle - last) <= _SETTLED * last:
            return True
        last, n_windows = middle, n_windows + 1
        if n_windows >= 2 and clock() - started >= seconds:
            return False


def _window(call: Callable[[], object], clock: Clock = time.perf_counter) -> list[float]:
    shortest, longest = _WINDOW_SECONDS
    started, times = clock(), list[float]()
    while (elapsed := clock() - started) < longest and (len(times) < _WINDOW_CALLS or elapsed < shortest):
        times += timed(call, 0, clock)
    return times


def timed(call: Callable[[], object], seconds: float, clock: Clock = time.perf_counter) -> list[float]:
    """Call for `seconds`, once at the least; milliseconds of each call."""
    times: list[float] = []
    started = now = clock()
    while not times or now - started < seconds:
        call()
        was, now = now, clock()
        times.append((now - was) * 1000)
    return times


class Timer:
    """An open backend, whose calls are timed in threads that stay: some engines keep memory by thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def time(self, request: Request) -> tuple[list[list[float]], bool]:
        """Milliseconds of each call, by caller; whether the warm-up settled.

        Raises:
            EdgeclsError: the engine failed.
        """
        pixels = noise(request.batch_size, self._backend.manifest)
        n = request.n_callers
        pool = self._pools.setdefault(n, ThreadPoolExecutor(n))
        barrier = threading.Barrier(n)

        def call() -> None:
            self._backend.infer(pixels)

        def lane() -> tuple[list[float], bool]:
            try:
                barrier.wait()  # so that every thread of the pool takes one
                settled = warm_up(call, request.seconds) if request.warm_up else bool(_window(call))
                barrier.wait()
                return timed(call, request.seconds), settled
            except BaseException:
                barrier.abort()
                raise

        futures = [pool.submit(lane) for _ in range(n)]
        errors = [error for future in futures if (error := future.exception())]
        if errors:  # the others only say that they waited in vain
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        lanes = [future.result() for future in futures]
        return [times for times, _ in lanes], all(settled for _, settled in lanes)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    answers = _own_stdout()

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        if job.layers:
            call_ms, note, layers = layer_times(Path(job.file), job.options, job.layers, job.seconds)
            answer({"call_ms": call_ms, "note": note, "layers": [asdict(layer) for layer in layers]})
        else:
            _serve(job, answer)
    except EdgeclsError as error:
        answer({"error": str(error)})


def _own_stdout() -> TextIO:
    """Standard output for answers alone: what engines print there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _serve(job: Job, answer: Callable[[dict[str, Any]], None]) -> None:
    gpu = find_gpu() if job.device in _ON_GPU else None
    started = time.perf_counter()
    with Candidate(Path(job.file), job.device).open(job.options) as backend:
        backend.infer(noise(1, backend.manifest))
        start_ms = (time.perf_counter() - started) * 1000
        answer({"backend": backend.name, "start_ms": start_ms})
        timer = Timer(backend)
        for line in sys.stdin:
            try:
                times, settled = timer.time(Request(**json.loads(line)))
            except EdgeclsError as error:  # of this batch size, such as no memory: others may do
                answer({"error": str(error)})
                continue
            now = find_gpu() if gpu else None
            answer(
                {
                    "ms": times,
                    "settled": settled,
                    "memory_mb": peak_memory_mb(),
                    "gpu_memory_mb": (gpu.free_bytes - now.free_bytes) / 1e6 if gpu and now else None,
                }
            )


if __name__ == "__main__":
    main()
