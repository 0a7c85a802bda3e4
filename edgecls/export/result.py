"""What an export found: the content of `export.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgecls.calibration.options import Method
from edgecls.export.engine import EngineResult
from edgecls.export.judge.measure import Measurement
from edgecls.export.judge.parity import Parity
from edgecls.export.options import GateOptions
from edgecls.manifest import Precision


@dataclass(frozen=True)
class ExportResult:
    """What was written and measured; `export.json` holds the same.

    Attributes:
        verdict: `passed`, or `missed` where a file that was asked for loses too much or is too slow.
        reason: the verdict in words.
        serves: the precision that `predict` opens by itself on this kind of machine.
        engine_from: the precision that a TensorRT engine is built from: int8 or fp16 where they passed, else fp32.
        parity: of FP32 and the checkpoint, on the golden images.
        int8_drop: top-1 that the CPU's INT8 graph loses to FP32, as a fraction; None without INT8.
        int8_speedup: its img/s over FP32's; None without INT8.
        gate: the limits that were asked for.
        is_equalised: whether INT8 was made of the equalised form of the network.
        is_trained: whether it was made of weights that were trained for it.
        notes: what the user should know of calibration and gate.
    """

    run: Path
    verdict: str
    reason: str
    serves: Precision
    engine_from: Precision
    parity: Parity
    precisions: dict[Precision, Measurement]
    int8_drop: float | None
    int8_speedup: float | None
    gate: GateOptions
    method: Method | None
    n_calibration: int
    is_equalised: bool
    is_trained: bool
    notes: tuple[str, ...]
    seconds: float
    engine: EngineResult | None = None

    def to_json(self) -> dict[str, Any]:
        engine = self.engine.to_json() if self.engine else None
        values = {**asdict(replace(self, engine=None)), "run": str(self.run), "engine": engine}
        return {name: _without_nan(value) for name, value in values.items()}


@dataclass(frozen=True)
class MembersResult:
    """The results of a run, or of each member of an ensemble."""

    run: str
    members: tuple[ExportResult, ...]

    @property
    def verdict(self) -> str:
        missed = any(member.verdict == "missed" for member in self.members)
        return "missed" if missed else self.members[0].verdict

    def to_json(self) -> dict[str, Any]:
        members = [member.to_json() for member in self.members]
        return members[0] if len(members) == 1 else {"run": self.run, "verdict": self.verdict, "members": members}


def _without_nan(value: Any) -> Any:
    """The same with None for every number that is not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
