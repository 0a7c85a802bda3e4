"""Several files of a folder that change together: prepared beside them, and one rename is the moment of the change.

From then on the prepared folder holds what is still to be put in place, and whoever opens the run next goes on with it.
So a kill leaves the old files or the new ones, never some of each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgecls.errors import RunError

_READY: Final = ".pending"
_GONE: Final = ".gone"  # suffix of an empty file whose namesake is to be removed


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
