"""The run folder: its file names, atomic writes, `runs/latest`, and finding a run by name."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import IO, Any, Final

from edgecls.bundles import is_bundle, unpacked
from edgecls.errors import RunError
from edgecls.manifest import CURE as MANIFEST_CURE
from edgecls.manifest import Manifest, Precision
from edgecls.records import TextFile, json_text

try:
    import fcntl
except ImportError:  # Windows locks files in another way
    fcntl = None  # type: ignore[assignment]

# Several files of a folder that change together are prepared beside them, and one rename is the moment of the change.
# From then on the prepared folder holds what is still to be put in place, and whoever opens the run next goes on with
# it: a kill leaves the old files or the new ones, never some of each.
_READY: Final = ".pending"
_GONE: Final = ".gone"  # suffix of an empty file whose namesake is to be removed

RUNS: Final = Path("runs")
LATEST: Final = "latest"

MANIFEST: Final = "manifest.json"
CHECKPOINT: Final = "checkpoint.pt"
SPLIT: Final = "split.csv"
HISTORY: Final = "history.csv"
RECIPE: Final = "recipe.json"  # every option with the choice made, and what it ran on
RESUME: Final = "resume.ckpt"  # only while a training is not finished
UNFINISHED: Final = ".unfinished"  # likewise, from its first moment on: also where there is nothing to go on from
METRICS: Final = "metrics.json"
FIGURES: Final = "figures"
CONTACT_SHEET: Final = "figures/batch.png"  # what training sees, and prediction
GOLDEN: Final = "golden.npz"
CALIBRATION: Final = "calibration.json"
BASELINE: Final = "baseline.json"  # what the validation images are like, to tell when others differ
EXPORT: Final = "export.json"
ENSEMBLE: Final = "ensemble.json"  # names the runs below a folder that vote together
ENGINES: Final = "engines"
MODEL_FILES: Final[Mapping[Precision, str]] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "int8-cpu": "model.int8-cpu.onnx",
}


def lock(file: IO[Any], busy: str) -> None:
    """Keep other processes that ask likewise from an open file, until it is closed or this process ends.

    Raises:
        RunError: another one has it; `busy` says so. The file is closed then.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise RunError(busy) from error
    except OSError:  # some network file systems have no locks; this is a second line of defence
        return


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place only if the block ends well.

    Raises:
        RunError: the file cannot be written (no room, no permission, a device in its place).

    A killed or failed writer leaves the old file, or none, never a half-written one. (There is no fsync: it
    cost seconds an epoch on a busy disk, and what it guards against is a power cut, not a kill.)
    """
    path = path.resolve()  # a link is written through, not replaced
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"cannot write {path}: it is not a regular file; name another one")
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_behind in filter(is_leftover, list(path.parent.glob(f".{glob.escape(path.name)}.*.partial"))):
            left_behind.unlink(missing_ok=True)
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
    write_text(path, json_text(values))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote.

    Raises:
        RunError: not there, or damaged.
    """
    return TextFile(path, RunError, "the run is incomplete or damaged: make it again").json_object()


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
        is_there = os.path.isfile(path)  # not Path.is_file, which raises where the folder may not be entered
        if not is_there and os.path.isfile(self.path(ENSEMBLE)):
            members = members_of(self.folder)
            raise RunError(
                f"{self.folder} is an ensemble of {len(members)} runs; name one of them, such as {members[0]}"
            )
        if not is_there:
            raise RunError(
                f"{self.folder}: no readable {MANIFEST} in it, so this is not a run folder; "
                "make one with: edgecls train DATA"
            )
        return Manifest.from_json(TextFile(path, RunError, MANIFEST_CURE).text(), str(path))

    def record(self, manifest: Manifest | None = None) -> Manifest:
        """Write the manifest, with the sha256 of every file that the folder now holds."""
        manifest = replace(manifest or self.manifest, files=hashes_of(self.folder))
        write_text(self.path(MANIFEST), manifest.to_json())
        return manifest


def hashes_of(folder: Path) -> dict[str, str]:
    """sha256 by relative name of every file in a run folder that its manifest lists."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, RESUME) and not _is_hidden(path.relative_to(folder))
    }


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed were writing in a run folder; what others are writing now stays."""
    for path in filter(is_leftover, list(folder.rglob(".*.partial"))):
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_leftover(path: Path) -> bool:
    """Whether this is a file of `atomic_path` that nobody writes any more."""
    *_, pid, end = ("", "", *path.name.split("."))
    return path.name.startswith(".") and end == "partial" and pid.isdecimal() and not _is_alive(int(pid))


def _is_alive(pid: int) -> bool:
    """Whether another process has this number; in a container each run may have the same, one after the other."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)  # what is being written, by this process or another


def create_run_folder(model: str, out: Path | None = None) -> Path:
    """Make an empty folder for a run: `out`, or `runs/<time>-<model>`.

    Raises:
        RunError: `out` exists and is not empty, or cannot be made.
    """
    folder = _free_folder(model, out)
    _make(folder, folder)
    return folder


@contextmanager
def whole_run(model: str, out: Path | None = None) -> Iterator[tuple[Run, Path]]:
    """A run to write in a hidden folder, and the folder of `create_run_folder` that it becomes if the block ends well.

    For runs that are made in one go: one that was killed is not in the way of the same command.

    Raises:
        RunError: as `create_run_folder`.
    """
    folder = _free_folder(model, out)
    if folder.exists() and folder.samefile("."):
        raise RunError(f"{folder} is the working folder, which a whole run cannot replace; name another with --out")
    place = folder.absolute().parent
    partial = place / f".{folder.absolute().name}.{os.getpid()}.partial"
    pattern = ".*.partial" if out is None else f".{escape(folder.absolute().name)}.*.partial"
    for left_behind in filter(is_leftover, list(place.glob(pattern))):
        shutil.rmtree(left_behind, ignore_errors=True)
    _make(partial, folder)
    try:
        yield Run(partial), folder
        os.replace(partial, folder)  # an empty one may be there
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}; name another folder with --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _free_folder(model: str, out: Path | None) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{model.replace('/', '-')}"
    folder = out or RUNS / stem
    attempt = 1
    while out is None and folder.exists():  # two runs within one second
        attempt += 1
        folder = RUNS / f"{stem}-{attempt}"
    if folder.is_dir() and all(map(is_leftover, folder.iterdir())):
        remove_leftovers(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty; name another folder with --out, or remove it")
    return folder


def _make(folder: Path, named: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run folder {named}: {error.strerror}; name another with --out") from error


def point_latest_at(folder: Path) -> None:
    """Make `runs/latest` name this run, wherever it lies.

    Raises:
        RunError: the working folder cannot be written; the run itself is complete.
    """
    link = RUNS / LATEST
    partial = RUNS / f".{LATEST}.{os.getpid()}.partial"
    try:
        RUNS.mkdir(exist_ok=True)
        for left_behind in filter(is_leftover, list(RUNS.glob(f".{LATEST}.*.partial"))):
            left_behind.unlink(missing_ok=True)
        partial.symlink_to(os.path.relpath(folder.resolve(), RUNS.resolve()), target_is_directory=True)
        os.replace(partial, link)
    except OSError as error:
        raise RunError(
            f"the run {folder} is complete, but {link} cannot name it ({error.strerror or error}); give its path in "
            "place of `latest`"
        ) from error


@contextmanager
def latest_kept() -> Iterator[None]:
    """Leave `runs/latest` as it was before the block, whatever run is made in it."""
    link = RUNS / LATEST
    was_there, before = RUNS.is_dir(), os.readlink(link) if link.is_symlink() else None
    try:
        yield
    finally:
        with suppress(OSError):
            if before is not None:
                point_latest_at(RUNS / before)
            elif link.is_symlink():
                link.unlink()
                if not was_there:
                    RUNS.rmdir()


def folder_of_run(file: Path) -> Path:
    """Where the run of a model file or an engine is, if it is part of one: engines have a folder of their own in it."""
    return file.parent.parent if file.parent.name == ENGINES else file.parent


def find_model(name: str | Path) -> Path:
    """The run folder or model file that the user means by `name`; `latest` is the newest run.

    A bundle is its run folder in the user's cache.

    Raises:
        RunError: nothing there, or a bundle that was changed.
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
    path = path.resolve() if path.is_symlink() else path
    if is_bundle(path):
        return unpacked(path)
    finish(path if path.is_dir() else path.parent)
    return path


def members_of(name: str | Path) -> list[str | Path]:
    """The runs that vote in an ensemble's folder, as cross-validation leaves it; any other name stands for itself.

    Raises:
        RunError: the list of the members is damaged, or a run that it names is not there.
    """
    folder = RUNS / LATEST if str(name) == LATEST and not Path(name).exists() else Path(name)
    folder = unpacked(folder) if is_bundle(folder) else folder
    path = folder / ENSEMBLE
    if not path.is_file():
        return [name]
    names = read_json(path).get("members")
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise RunError(f"{path}: not the list of an ensemble's members; expected an object with the key `members`")
    members = [folder / each for each in names]
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


def publish(prepared: Path, folder: Path, gone: Sequence[str] = ()) -> None:
    """Let the files of `prepared`, a folder inside `folder`, take the place of those in `folder`.

    Args:
        gone: names in `folder` that are to be removed.
    """
    for name in gone:
        (prepared / f"{name}{_GONE}").touch()
    while True:
        finish(folder)
        try:
            os.rename(prepared, folder / _READY)
        except OSError:
            if not (folder / _READY).exists():  # else somebody else's came between
                raise
        else:
            break
    finish(folder)


def finish(folder: Path) -> None:
    """Put in place what is ready in a folder. Nothing to do is the rule, and costs one look.

    Raises:
        RunError: the folder cannot be written.
    """
    ready = folder / _READY
    if not os.path.isdir(ready):
        return
    try:
        for path in sorted(ready.iterdir()):
            with suppress(FileNotFoundError):  # another process does the same
                _put(path, folder)
        with suppress(FileNotFoundError):
            ready.rmdir()
    except OSError as error:
        raise RunError(
            f"{folder}: the last export was stopped while its files took their place, and the rest cannot be put there "
            f"now ({error.strerror or error}); make the folder writable, and repeat this command"
        ) from error


def _put(path: Path, folder: Path) -> None:
    if path.suffix == _GONE:
        (folder / path.stem).unlink(missing_ok=True)
        path.unlink()
    else:
        os.replace(path, folder / path.name)
