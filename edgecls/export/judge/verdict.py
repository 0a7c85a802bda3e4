"""What the measurements of all files together mean: which pass, which serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgecls.export.judge.measure import Measurement
from edgecls.export.judge.parity import Parity
from edgecls.export.options import GateOptions
from edgecls.manifest import Precision
from edgecls.runs import (
    MODEL_FILES,
)


@dataclass(frozen=True)
class Verdict:
    """What the gate decides of all files together.

    Attributes:
        passed: whether every file that was asked for loses little enough, and INT8 is fast enough.
        reason: in words.
        serves: the precision that `predict` opens by itself on this kind of machine.
        engine_from: the precision that a TensorRT engine is built from.
        int8_drop: top-1 that the CPU's INT8 graph loses to FP32, as a fraction; None without INT8.
        int8_speedup: its img/s over FP32's; None without INT8.
    """

    passed: bool
    reason: str
    serves: Precision
    engine_from: Precision
    int8_drop: float | None
    int8_speedup: float | None


def decide(measured: Mapping[Precision, Measurement], gate: GateOptions, parity: Parity) -> Verdict:
    """Which files the gate lets through, and which of them are used.

    Args:
        measured: FP32 and the files that were asked for.
        parity: of FP32 and the checkpoint.
    """
    passed = {p for p, m in measured.items() if not m.doubts and (m.paired is None or gate.allows(m.paired.drop))}
    drop, speedup, fast = None, None, True
    words = [f"fp32 answers as the checkpoint does (logits within {parity.max_logit_difference:.1g})"]
    if "int8-cpu" in measured:
        int8 = measured["int8-cpu"]
        assert int8.paired is not None
        drop, speedup = int8.paired.drop, int8.images_per_second / measured["fp32"].images_per_second
        fast = speedup >= gate.min_speedup
        on_cpu = f"{speedup:.2f} times the speed of fp32 on this CPU"
        words = [f"int8: {_lost(drop)}, {on_cpu}" + ("" if fast else f", {gate.min_speedup:g} are asked for")]
    failed = [precision for precision in measured if precision not in passed]
    words += [f"{MODEL_FILES[precision]}: {', '.join(_why(measured[precision], gate))}" for precision in failed]
    serves: Precision = "int8-cpu" if drop is not None and "int8-cpu" in passed and fast else "fp32"
    candidates: tuple[Precision, ...] = ("int8", "fp16", "fp32")
    engine_from: Precision = next((each for each in candidates if each in passed), "fp32")
    missed = bool(failed) or not fast
    if missed:
        words.append(f"predict uses {serves} on CPUs, TensorRT engines are built from {engine_from}")
    return Verdict(not missed, "; ".join(words), serves, engine_from, drop, speedup)


def _why(measured: Measurement, gate: GateOptions) -> Iterator[str]:
    """Why a file is not let through."""
    yield from measured.doubts
    if measured.paired and not gate.allows(measured.paired.drop):
        yield f"{_lost(measured.paired.drop)}, {gate.max_drop:g} are allowed"


def _lost(drop: float) -> str:
    return f"{-100 * drop:+.2f} points of top-1" if round(100 * drop, 2) else "top-1 unchanged"
