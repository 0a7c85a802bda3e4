"""What else becomes of the answers: a submission file, and the images sorted into folders by their label."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import cv2

from edgecls.errors import RunError
from edgecls.runs import atomic_path
from edgecls.runtime.options import OutputOptions, SortBy
from edgecls.runtime.output.label_folders import folder_names
from edgecls.runtime.output.row import CsvTable
from edgecls.runtime.pipeline import Encoded, Frame, Picture, Unreadable
from edgecls.runtime.prediction import Prediction

ABSTAINED: Final = "_abstained"  # folder for images without an answer


class Outputs:
    """Takes every prediction with its picture."""

    def __init__(self, options: OutputOptions, labels: Sequence[str], table: CsvTable | None) -> None:
        self._options, self._table = options, table
        self._folders = folder_names(labels, reserved=[ABSTAINED])

    def add(self, picture: Picture, prediction: Prediction) -> None:
        """Write the row of a picture, and put the picture into its folder.

        Raises:
            RunError: a file cannot be copied or linked.
        """
        if self._table:
            self._table.write([os.path.basename(prediction.path), prediction.label])
        if self._options.sort_into and not isinstance(picture, Unreadable | Encoded) and prediction.status != "error":
            try:
                self._sort(self._options.sort_into, picture, prediction)
            except OSError as error:
                raise RunError(f"--sort-into {self._options.sort_into}: {error.strerror or error}") from error

    def _sort(self, root: Path, picture: str | Path | Frame, prediction: Prediction) -> None:
        folder = root / (ABSTAINED if prediction.status == "abstained" else self._folders[prediction.label])
        folder.mkdir(parents=True, exist_ok=True)
        name = os.path.basename(prediction.path)
        if isinstance(picture, Frame):
            ok, data = cv2.imencode(".jpg", cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2BGR))
            if ok:
                with atomic_path(folder / f"{name}.jpg") as partial:
                    partial.write_bytes(data.tobytes())
            return
        target = _free(folder, name, Path(picture), self._options.sort_by)
        if target is None:
            return
        if self._options.sort_by == "link":
            target.symlink_to(os.path.abspath(picture))
        else:
            partial = folder / f".{os.getpid()}.partial"  # a kill leaves no half a picture under the picture's name
            shutil.copy2(picture, partial)
            os.replace(partial, target)


def _free(folder: Path, name: str, picture: Path, sort_by: SortBy) -> Path | None:
    """A name that no other image has there: `a.jpg`, `a-2.jpg`, ...; None where this very image is there already."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while True:
        target = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        if not os.path.lexists(target):
            return target
        if _is_there(target, picture, sort_by):
            return None
        number += 1


def _is_there(target: Path, picture: Path, sort_by: SortBy) -> bool:
    if sort_by == "link":
        return target.is_symlink() and os.readlink(target) == os.path.abspath(picture)
    there, here = target.stat(), picture.stat()  # copy2 keeps the time of the last change
    return (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns)


@contextmanager
def open_outputs(options: OutputOptions, labels: Sequence[str]) -> Iterator[Outputs]:
    """Open them for a model of these labels; the submission file appears when the block ends well.

    Raises:
        RunError: it cannot be written.
    """
    if not options.submission:
        yield Outputs(options, labels, None)
        return
    with (
        atomic_path(options.submission) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = CsvTable(file)
        table.write(["filename", "label"])
        yield Outputs(options, labels, table)
