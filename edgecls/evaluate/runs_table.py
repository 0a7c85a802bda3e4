"""All runs of a folder side by side, by what they say of themselves: nothing is answered anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecls.errors import RunError
from edgecls.images import natural_key
from edgecls.runs import ENSEMBLE, LATEST, MANIFEST, METRICS, MODEL_FILES, Run, read_json


@dataclass(frozen=True)
class RunRow:
    """One run, or one fold of a cross-validation; None is what it does not say.

    Attributes:
        name: below the folder.
        bytes: of the FP32 file, where the run was exported.
        reason: why it cannot be read; empty where it can.
    """

    name: str
    model: str = ""
    parameters: int | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    bytes: int | None = None
    train_seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RunsResult:
    """The runs of a folder, the most accurate on validation images first."""

    folder: str
    runs: tuple[RunRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_folder_of_runs(folder: Path) -> bool:
    """Whether runs lie in a folder that is none itself."""
    if not folder.is_dir() or (folder / MANIFEST).exists() or (folder / ENSEMBLE).exists():
        return False
    return any(True for _ in _runs(folder))


def runs_of(folder: Path) -> RunsResult:
    """Read what every run below a folder says of itself, one level deep, and the folds of ensembles."""
    rows = [_row(path, path.relative_to(folder).as_posix()) for path in _runs(folder)]
    return RunsResult(str(folder), tuple(sorted(rows, key=lambda row: -(row.validation_accuracy or 0))))


def _runs(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda each: natural_key(each.name)):
        if path.name == LATEST or path.name.startswith(".") or not path.is_dir():
            continue
        if (path / MANIFEST).is_file():
            yield path
        elif (path / ENSEMBLE).is_file():
            yield from (each for each in sorted(path.iterdir()) if (each / MANIFEST).is_file())


def _row(folder: Path, name: str) -> RunRow:
    run = Run(folder)
    try:
        manifest = run.manifest
        told = read_json(run.path(METRICS)) if run.path(METRICS).is_file() else {}
    except RunError as error:
        return RunRow(name, reason=str(error))
    figures = {**manifest.metrics, **told}
    file = run.path(MODEL_FILES["fp32"])
    parameters = figures.get("parameters") or figures.get("n_parameters")
    return RunRow(
        name,
        manifest.model,
        int(parameters) if parameters else None,
        figures.get("validation_loss"),
        figures.get("validation_accuracy"),
        figures.get("test_accuracy"),
        file.stat().st_size if file.is_file() else None,
        figures.get("seconds"),
    )
