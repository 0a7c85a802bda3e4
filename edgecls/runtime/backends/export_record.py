"""What `export.json` says: which precision serves, what each file measured, and by which gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from edgecls.errors import RunError
from edgecls.manifest import Precision
from edgecls.records import TextFile
from edgecls.runs import EXPORT

_CURE = "run edgecls export again, or name a precision: --precision fp32"


def within_gate(drop: float, max_drop: float) -> bool:
    """Whether the gate lets a drop pass; a hair above is rounding, not accuracy.

    Args:
        drop: share of top-1 that is lost to FP32, 0 to 1.
        max_drop: percentage points that may be lost.
    """
    return 100 * drop <= max_drop + 1e-9


@dataclass(frozen=True)
class GoldenMatch:
    """How a file answered the golden images when it was made: the largest difference of a logit, the share of equal
    top-1 answers, and the number of images."""

    max_logit_difference: float
    agreement: float
    n_images: int


@dataclass(frozen=True)
class FileRecord:
    """What an export measured of one file.

    Attributes:
        accuracy, agreement: top-1, and the share of FP32's answers, 0 to 1; None where there were no images.
        drop: share of top-1 lost to FP32; None for FP32 itself and without images.
        is_sound: no answer was a number that is not finite, and nothing in it exceeds float16.
        golden: None where its answers were not finite.
        sha256, bytes: of the file; empty and 0 in what older versions wrote.
    """

    accuracy: float | None
    agreement: float | None
    n_images: int
    drop: float | None
    is_sound: bool
    golden: GoldenMatch | None
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ExportRecord:
    """What a run's export found; without an export FP32 alone serves.

    Attributes:
        serves: the precision for CPUs.
        engine_from: the precision that engines are built from.
        max_drop: percentage points of top-1 that a file was allowed to lose.
    """

    serves: Precision = "fp32"
    engine_from: Precision = "fp32"
    max_drop: float = 0.0
    files: Mapping[Precision, FileRecord] = field(default_factory=dict)

    @property
    def passed(self) -> tuple[Precision, ...]:
        """The precisions whose file the gate let through."""
        if not self.files:
            return ("fp32",)
        return tuple(
            precision
            for precision, each in self.files.items()
            if each.is_sound and (each.drop is None or within_gate(each.drop, self.max_drop))
        )

    @classmethod
    def read(cls, run: Path) -> ExportRecord:
        """Read that of a run folder; one that was never exported has the defaults.

        Raises:
            RunError: it is damaged. To take FP32 for it would hide that INT8 is lost.
        """
        path = run / EXPORT
        if not path.exists():
            return cls()
        try:
            values = TextFile(path, RunError, f"it is damaged: {_CURE}").json_object()
            files = {precision: _file_record(each) for precision, each in values["precisions"].items()}
            named = {values["serves"], values["engine_from"], *files}
            if not named <= set(get_args(Precision)):
                raise ValueError(f"unknown precisions {named}")
            return cls(values["serves"], values["engine_from"], float(values["gate"]["max_drop"]), files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: damaged, so what was measured of its files is unknown; {_CURE}") from error


def _file_record(values: Mapping[str, Any]) -> FileRecord:
    golden, paired = values["golden"], values["paired"]
    is_finite = golden["max_logit_difference"] is not None
    return FileRecord(
        accuracy=values["accuracy"],
        agreement=values["agreement"],
        n_images=values["n_images"],
        drop=None if paired is None else float(paired["drop"]),
        is_sound=not (values.get("not_finite") or values.get("overflows")),
        golden=GoldenMatch(float(golden["max_logit_difference"]), float(golden["agreement"]), int(golden["n_images"]))
        if is_finite
        else None,
        sha256=values.get("sha256", ""),
        bytes=values.get("bytes", 0),
    )
