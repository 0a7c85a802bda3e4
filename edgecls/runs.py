"""The run folder: its file names, atomic writes, `runs/latest`, and finding a run by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from edgecls.errors import RunError
from edgecls.manifest import Manifest, Precision

RUNS: Final = Path("runs")
LATEST: Final = "latest"

MANIFEST: Final = "manifest.json"
CHECKPOINT: Final = "checkpoint.pt"
SPLIT: Final = "split.csv"
HISTORY: Final = "history.csv"
RECIPE: Final = "recipe.json"  # every option with the choice made, and what it ran on
RESUME: Final = "resume.ckpt"  # only while a training is not finished
METRICS: Final = "metrics.json"
FIGURES: Final = "figures"
CONTACT_SHEET: Final = "figures/batch.png"  # what training sees, and prediction
GOLDEN: Final = "golden.npz"
CALIBRATION: Final = "calibration.json"
EXPORT: Final = "export.json"
ENSEMBLE: Final = "ensemble.json"  # names the runs below a folder that vote together
ENGINES: Final = "engines"
MODEL_FILES: Final[Mapping[Precision, str]] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "int8-cpu": "model.int8-cpu.onnx",
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place only if the block ends well.

    Raises:
        RunError: the file cannot be written (no room, no permission, a device in its place).

    A killed or failed writer leaves the old file, or none, never a half-written one. (There is no fsync: it
    cost seconds an epoch on a busy disk, and what it guards against is a power cut, not a kill.)
    """
    path = path.resolve()  # a link is written through, not replaced
    if path.exists() and not path.is_file():
        raise RunError(f"cannot write {path}: it is not a regular file; name another one")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; what was there before is unchanged") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote.

    Raises:
        RunError: not there, or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); the run is incomplete or damaged") from error
    if not isinstance(values, dict):
        raise RunError(f"{path}: expected a JSON object, got {type(values).__name__}; the run is damaged")
    return values


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Run:
    """A run folder with a manifest in it."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def manifest(self) -> Manifest:
        """The manifest as it stands on disk.

        Raises:
            RunError: there is none, or it is damaged.
        """
        path = self.path(MANIFEST)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            if self.path(ENSEMBLE).is_file():
                members = members_of(self.folder)
                raise RunError(
                    f"{self.folder} is an ensemble of {len(members)} runs; name one of them, such as {members[0]}"
                ) from error
            raise RunError(
                f"{self.folder}: no readable {MANIFEST} ({error.strerror}), so this is not a run folder; "
                "make one with: edgecls train DATA"
            ) from error
        return Manifest.from_json(text, str(path))

    def record(self, manifest: Manifest | None = None) -> Manifest:
        """Write the manifest, with the sha256 of every file that the folder now holds."""
        files = {
            path.relative_to(self.folder).as_posix(): sha256_of(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST and not _is_hidden(path.relative_to(self.folder))
        }
        manifest = replace(manifest or self.manifest, files=files)
        write_text(self.path(MANIFEST), manifest.to_json())
        return manifest


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)  # what is being written, by this process or another


def create_run_folder(model: str, out: Path | None = None) -> Path:
    """Make an empty folder for a run: `out`, or `runs/<time>-<model>`.

    Raises:
        RunError: `out` exists and is not empty, or cannot be made.
    """
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{model.replace('/', '-')}"
    folder = out or RUNS / stem
    attempt = 1
    while out is None and folder.exists():  # two runs within one second
        attempt += 1
        folder = RUNS / f"{stem}-{attempt}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty; name another folder with --out, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run folder {folder}: {error.strerror}; name another with --out") from error
    return folder


def point_latest_at(folder: Path) -> None:
    """Make `runs/latest` name this run, wherever it lies."""
    RUNS.mkdir(exist_ok=True)
    link = RUNS / LATEST
    target = os.path.relpath(folder.resolve(), RUNS.resolve())
    partial = RUNS / f".{LATEST}.{os.getpid()}"
    partial.unlink(missing_ok=True)
    partial.symlink_to(target, target_is_directory=True)
    os.replace(partial, link)


def find_model(name: str | Path) -> Path:
    """The run folder or model file that the user means by `name`; `latest` is the newest run.

    Raises:
        RunError: nothing there.
    """
    path = Path(name)
    if str(name) == LATEST and not path.exists():
        path = RUNS / LATEST
        if not path.exists():
            raise RunError(
                f"there is no {path}, so no run has been made in this folder; "
                "start with: edgecls train DATA, or name a run folder or a model file"
            )
    if not path.exists():
        raise RunError(f"{name}: no such run folder or model file; `{LATEST}` names the newest run in ./{RUNS}")
    return path.resolve() if path.is_symlink() else path


def members_of(name: str | Path) -> list[str | Path]:
    """The runs that vote in an ensemble's folder, as cross-validation leaves it; any other name stands for itself.

    Raises:
        RunError: the list of the members is damaged, or a run that it names is not there.
    """
    folder = RUNS / LATEST if str(name) == LATEST and not Path(name).exists() else Path(name)
    path = folder / ENSEMBLE
    if not path.is_file():
        return [name]
    try:
        members = [folder / name for name in read_json(path)["members"]]
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: not the list of an ensemble's members ({type(error).__name__})") from error
    lost = [str(member) for member in members if not member.is_dir()]
    if lost or not members:
        raise RunError(f"{path}: no run in {', '.join(lost) or folder}; the ensemble is incomplete")
    return list(members)


def find_run(name: str | Path = LATEST) -> Run:
    """The run folder that the user means by `name`.

    Raises:
        RunError: nothing there, or not a run folder.
    """
    path = find_model(name)
    if not path.is_dir():
        raise RunError(f"{name} is a file; expected a run folder, as edgecls train makes it")
    run = Run(path)
    run.manifest  # noqa: B018  raises where the folder is not a run
    return run
