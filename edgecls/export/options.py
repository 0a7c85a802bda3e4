"""What `edgecls export` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from edgecls.calibration.collectors import METHODS, Method
from edgecls.calibration.sample import SampleOptions
from edgecls.errors import OptionError
from edgecls.export.engine import EngineOptions
from edgecls.export.graphs.int8 import FLAVOURS
from edgecls.export.judge.gate import GateOptions
from edgecls.manifest import Precision
from edgecls.runs import (
    LATEST,
)

AUTO: Final = "auto"


@dataclass(frozen=True)
class ExportOptions:
    """Attributes:
    run: a run folder, or `latest`.
    int8: write the INT8 graphs, and the FP16 graph that takes their place where they miss the gate.
    fp16: write the FP16 graph.
    sample: which images calibrate.
    method: how a tensor's values become its range; `auto` is `mse`, and where that leaves much noise the best of all.
    validation: class folders or CSV that the gate is measured on; None is the run's validation split.
    gate: what a file must keep to.
    engine: build a TensorRT engine from the best file that passed; None builds none.
    """

    run: str = LATEST
    int8: bool = False
    fp16: bool = False
    sample: SampleOptions = field(default_factory=SampleOptions)
    method: Method | Literal["auto"] = AUTO
    validation: Path | None = None
    gate: GateOptions = field(default_factory=GateOptions)
    engine: EngineOptions | None = None

    def __post_init__(self) -> None:
        if self.method not in (AUTO, *METHODS):
            raise OptionError(f"--method {self.method}: expected {AUTO} or one of {', '.join(METHODS)}")
        if self.sample.source and not self.int8:
            raise OptionError(f"--calibration {self.sample.source}: sets the ranges of INT8; add --int8")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        asked: list[Precision] = ["fp32"]
        if self.fp16 or self.int8:
            asked.append("fp16")
        return (*asked, *FLAVOURS) if self.int8 else tuple(asked)
