"""This machine, what can run on it, what it lacks for a model, and whether it is as fast as its kind should be."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgecls.bench.machine import Machine, MachineState, describe, state
from edgecls.device.advice import Advice, advice
from edgecls.device.measurement import Arithmetic, ModelSpeed, measure_arithmetic, measure_model
from edgecls.device.options import DoctorOptions
from edgecls.device.readiness import BackendName, ModelReadiness, Readiness, model_readiness, readiness
from edgecls.device.software import Software, find_software
from edgecls.device.system import System, read_system
from edgecls.errors import EdgeclsError
from edgecls.processor import ROOT, int8_sums_overflow
from edgecls.runs import find_model, members_of

Verdict = Literal["ready", "not ready"]


@dataclass(frozen=True)
class DoctorResult:
    """What was found.

    Attributes:
        model: as it was named; None where the machine alone was looked at.
        backends: all of them, in the order in which a device prefers them.
        model_files: for every member of the model, what each backend that can run here would open.
        arithmetic, speed: None where nothing was measured; speed also without a model that can run.
        problems: why the model does not answer here as it should, in sentences.
        advice: what makes the machine slower or less steady than it could be.
    """

    model: str | None
    machine: Machine
    state: MachineState
    system: System
    software: Software
    backends: tuple[Readiness, ...]
    model_files: tuple[tuple[ModelReadiness, ...], ...]
    arithmetic: Arithmetic | None
    speed: ModelSpeed | None
    problems: tuple[str, ...]
    advice: tuple[Advice, ...]
    seconds: float

    @property
    def runs_on(self) -> tuple[BackendName, ...]:
        """The backends on which the model can run, or any model where none was named; the preferred one first."""
        able = [each.name for each in self.backends if each.can_run]
        return tuple(name for name in able if all(_can_run(name, member) for member in self.model_files))

    @property
    def verdict(self) -> Verdict:
        return "ready" if self.runs_on and not self.problems else "not ready"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "runs_on": self.runs_on, "verdict": self.verdict}


def _can_run(name: BackendName, member: Sequence[ModelReadiness]) -> bool:
    return any(each.name == name and each.can_run for each in member)


def doctor(
    options: DoctorOptions,
    *,
    root: Path = ROOT,
    software: Software | None = None,
    on_step: Callable[[str], None] = lambda line: None,
) -> DoctorResult:
    """Look at this machine.

    Args:
        root: in place of `/`, so that a tree of files can stand for a machine that is not here.
        software: what Python finds there; None is what it finds here.
        on_step: called with a line before the part that takes seconds.

    Raises:
        RunError: no such model, or a damaged one.
    """
    started = time.perf_counter()
    members = [find_model(each) for each in members_of(options.model)] if options.model else []
    machine, now = describe(root), state(root)
    system, software = read_system(machine.l4t, root), software or find_software()
    ready = readiness(system, software)
    overflows = int8_sums_overflow(root)
    files = tuple(
        model_readiness(
            each, str(options.model if len(members) == 1 else each), ready, software, int8_overflows=overflows
        )
        for each in members
    )
    arithmetic, speed, problems = None, None, []
    if options.seconds:
        on_step(f"measuring for {options.seconds:g} s")
        arithmetic = measure_arithmetic(machine, system, options.seconds)
        able = [each.name for each in ready if each.can_run and all(_can_run(each.name, of) for of in files)]
        for member in members if able else ():
            try:
                tried = measure_model(member, "auto" if "cpu" in able else able[0], options.seconds / len(members))
            except EdgeclsError as error:
                problems.append(f"{error}.")
                continue
            speed = speed or tried
            if tried.answers_right is False:
                problems.append(
                    f"{tried.file} on {tried.device} does not give the golden answers. See: edgecls verify {member}"
                )
    return DoctorResult(
        options.model, machine, now, system, software, ready, files, arithmetic, speed, tuple(problems),
        advice(machine, now, system, software), time.perf_counter() - started,
    )  # fmt: skip
