"""How fast a model is here: every file of a run on every device that runs it, over the batch sizes.

Each (file, device) has processes of its own (`worker.py`), which take turns in rounds: a machine that is slow for
a minute is slow for all of them, and the comparison holds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from edgecls.bench import machine as machines
from edgecls.bench.contender import ON_CPU, Contender, Entrant, Worker, WorkerFailed
from edgecls.bench.files import accuracies_of, find_candidates
from edgecls.bench.layer_times import LayerTime
from edgecls.bench.machine import Machine, MachineState
from edgecls.bench.options import BenchOptions
from edgecls.bench.worker import Job
from edgecls.errors import RunError, some
from edgecls.manifest import Precision
from edgecls.prefetch import n_cores
from edgecls.runs import find_model, write_json
from edgecls.runtime.options import Device

_N_ROUNDS: Final = 3
_GPU_CALLERS: Final = 2  # one copies while the other's batch is on the GPU
_FEW_CALLS: Final = 100  # below, the 99th percentile is the slowest call or nearly
_STEADY: Final = 1.2  # slowest round over fastest, median of the cells

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class LayerProfile:
    """The time of the layers of one contender.

    Attributes:
        call_ms: mean of a call while the layers were timed.
        layers: the longest first.
        note: what is to be known about these times; where there are no layers, why.
    """

    file: str
    precision: Precision
    backend: str
    batch_size: int
    call_ms: float
    layers: tuple[LayerTime, ...]
    note: str

    @property
    def layers_ms(self) -> float:
        return math.fsum(layer.ms for layer in self.layers)


@dataclass(frozen=True)
class BenchResult:
    """What `edgecls bench` measured, and what a reader of it must know of the machine.

    Attributes:
        before, after: the machine's state; what it was in between is judged in `throttled` and `other_work`.
        throttled: why the figures are those of a machine that slowed down; empty where nothing says so.
        other_work: who else worked on it meanwhile; likewise.
        warnings: all that a reader of the figures must know, these two included.
    """

    model: str
    machine: Machine
    before: MachineState
    after: MachineState
    contenders: tuple[Contender, ...]
    layers: tuple[LayerProfile, ...]
    throttled: tuple[str, ...]
    other_work: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    n_rounds: int = _N_ROUNDS

    @property
    def failed(self) -> bool:
        """Whether something that was to run did not."""
        return any(contender.errors for contender in self.contenders)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _callers(options: BenchOptions, device: Device) -> int:
    """Threads that infer at the same time where img/s are measured."""
    return (options.lanes or n_cores()) if device in ON_CPU else _GPU_CALLERS


def bench(options: BenchOptions, *, on_step: OnStep = lambda line: None) -> BenchResult:
    """Measure a model on this machine.

    Args:
        on_step: called with a line as each round begins.

    Raises:
        RunError: nothing there, not exported yet, none of it runs; or a plot is wanted and no accuracy is known.
        OptionError: a device that is not there, or a precision that the file does not have.
        MissingExtra: nothing that could run it is installed.
    """
    started = time.perf_counter()
    path = find_model(options.model)
    accuracies = accuracies_of(path)
    candidates = find_candidates(path, options.precisions, options.devices)
    if options.plot and not any(precision in accuracies for _, precision in candidates):
        raise RunError(
            f"--plot: no accuracy is known of {path}; it is measured by: edgecls export RUN --validation DIR "
            "(class folders or a CSV), or leave --plot out"
        )
    about, before, busy_before = machines.describe(), machines.state(), machines.busy_now()
    own_before = _cpu_seconds()
    with ExitStack() as stack:
        entrants = []
        for candidate, precision in candidates:
            on_step(f"opening {candidate}")
            entrants.append(Entrant(stack, candidate, precision, _callers(options, candidate.device)))
        during = _measure(entrants, options, on_step)
    layers = [_layers(entrant, options, on_step) for entrant in entrants] if options.layers else []
    after = machines.state()
    contenders = tuple(entrant.contender(accuracies) for entrant in entrants)
    if not any(contender.cells for contender in contenders):
        raise RunError(f"nothing ran: {contenders[0].errors[0]}")
    throttled = machines.throttling(before, during)
    other_work = machines.other_work(about, before, after, busy_before, _cpu_seconds() - own_before)
    result = BenchResult(
        str(path), about, before, after, contenders, tuple(layers), tuple(throttled), tuple(other_work),
        tuple(_warnings(about, contenders, throttled, other_work)), time.perf_counter() - started,
    )  # fmt: skip
    if options.out:
        write_json(options.out, result.to_json())
    return result


def _measure(entrants: Sequence[Entrant], options: BenchOptions, on_step: OnStep) -> list[MachineState]:
    """All cells in rounds; the machine's state after each of them."""
    states: list[MachineState] = []
    for number in range(1, _N_ROUNDS + 1):
        for size in options.batch_sizes:
            on_step(f"round {number} of {_N_ROUNDS}, batch {size}")
            for entrant in entrants:
                entrant.measure(size, options.seconds / _N_ROUNDS)
                states.append(_under_load(machines.state(), entrant.candidate.device))
    return states


def _under_load(state: MachineState, device: Device) -> MachineState:
    """Without the clocks of what had nothing to do, and so ran slowly."""
    if device in ON_CPU:
        return replace(state, gpu_clock_mhz=None)
    return replace(state, cpu_clock_mhz=None)


def _layers(entrant: Entrant, options: BenchOptions, on_step: OnStep) -> LayerProfile:
    on_step(f"timing the layers of {entrant.candidate}")
    size, candidate = options.batch_sizes[0], entrant.candidate
    job = Job(str(candidate.file), candidate.device, layers=size, seconds=options.seconds)
    with closing(Worker(job)) as worker:
        try:
            found = worker.answer()
        except WorkerFailed as error:
            found = {"call_ms": 0.0, "note": f"no layers: {error}", "layers": []}
    layers = tuple(LayerTime(**each) for each in found["layers"])
    file = candidate.file.name
    return LayerProfile(file, entrant.precision, entrant.backend, size, found["call_ms"], layers, found["note"])


def _cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _warnings(
    about: Machine, contenders: Sequence[Contender], throttled: Sequence[str], other_work: Sequence[str]
) -> Iterator[str]:
    for contender in contenders:
        for error in contender.errors:
            yield f"{contender.file} on {contender.device}: {error}"
    for reason in throttled:
        yield f"throttled: {reason}"
    for reason in other_work:
        yield f"not alone: {reason}"
    if about.cpu_quota is not None and about.cpu_quota < about.cores:
        yield f"a limit of {about.cpu_quota:g} cores' time is set, and {about.cores} cores are used: expect pauses"
    cells = [(contender, cell) for contender in contenders for cell in contender.cells]
    spread = float(np.median([max(cell.p50_ms_by_round) / min(cell.p50_ms_by_round) for _, cell in cells] or [1.0]))
    if spread > _STEADY:
        yield f"the slowest round took {spread:.2f} times the fastest (median of the rows): the machine was not steady"
    unsettled = [f"{each.file} on {each.device} at {cell.batch_size}" for each, cell in cells if not cell.settled]
    if unsettled:
        yield (
            f"{len(unsettled)} of {len(cells)} rows were still changing when their warm-up ended "
            f"({some(unsettled, 2)}); raise --seconds"
        )
    fewest = min((cell.n_calls for _, cell in cells), default=_FEW_CALLS)
    if fewest < _FEW_CALLS:
        yield f"p99 rests on {fewest} calls in one row; below {_FEW_CALLS} it is nearly the slowest: raise --seconds"
