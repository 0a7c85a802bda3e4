"""Where the files of an export are made, and the moment when they take the old ones' place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edgecls.errors import RunError
from edgecls.runs import (
    BASELINE,
    EXPORT,
    MANIFEST,
    MODEL_FILES,
    Run,
    hashes_of,
    publish,
    remove_leftovers,
    write_json,
    write_text,
)

_OF_OLDER_VERSIONS: Final = ".export-*"


@contextmanager
def staging(run: Run) -> Iterator[Path]:
    """A folder inside the run, gone at the end; what killed exports have left goes first.

    Raises:
        RunError: the run cannot be written, or there is no room.
    """
    remove_leftovers(run.folder)
    for left_behind in run.folder.glob(_OF_OLDER_VERSIONS):
        shutil.rmtree(left_behind, ignore_errors=True)
    staged = run.path(f".export.{os.getpid()}.partial")
    try:
        staged.mkdir()
    except OSError as error:
        raise RunError(f"cannot write into {run.folder}: {error.strerror}; nothing was changed") from error
    try:
        yield staged
    except OSError as error:
        raise RunError(f"cannot write {staged}: {error.strerror or error}; the run is as it was before") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def commit(staged: Path, run: Run, temperature: float) -> list[str]:
    """Let the new files take the old ones' place, the manifest that lists them too, all at once.

    Model files that this export did not make go; returns their names. They may come from another model.onnx, and
    nothing was measured of them.
    """
    made = (*MODEL_FILES.values(), BASELINE)
    gone = [name for name in made if run.path(name).exists() and not (staged / name).exists()]
    _replace_together(staged, run, temperature, gone)
    return gone


def commit_report(values: Mapping[str, Any], run: Run) -> None:
    """Let a new report take the old one's place, and the manifest list what the run holds by now."""
    with staging(run) as staged:
        write_json(staged / EXPORT, values)
        _replace_together(staged, run, run.manifest.temperature)


def _replace_together(staged: Path, run: Run, temperature: float, gone: list[str] | None = None) -> None:
    kept = {name: digest for name, digest in hashes_of(run.folder).items() if name not in (gone or ())}
    files = dict(sorted({**kept, **hashes_of(staged)}.items()))
    write_text(staged / MANIFEST, replace(run.manifest, temperature=temperature, files=files).to_json())
    publish(staged, run.folder, gone or ())
