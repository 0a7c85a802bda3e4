"""What to predict: files and folders, and the labels that are already known for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from edgecls.datasets import ClassNames, read_label_rows
from edgecls.errors import DatasetError, some
from edgecls.image_header import READABLE
from edgecls.images import find_images, find_others


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        path: the file.
        name: how rows call it: as given; for a folder that is the only source, the path below it.
        truth: its label where known, else None.
    """

    path: Path
    name: str
    truth: str | None = None


def find_sources(given: Sequence[Path], classes: ClassNames, labels_file: Path | None = None) -> list[Source]:
    """List the inputs in order; a folder's images are in natural order.

    A label is known where `labels_file` (CSV with path and label) says so or, without such a file, where
    the nearest folder above the image that is named by a label or id of the model says so. A class index counts in
    the file only: a folder `12` may as well be December.

    Raises:
        DatasetError: a source does not exist, a folder without images, or labels of another model.
    """
    sources: list[Source] = []
    for source in given:
        if not source.exists():
            raise DatasetError(f"{source}: no such file or folder")
        if not source.is_dir():
            sources.append(Source(source, str(source), _truth(source, classes)))
            continue
        found = [
            # below several folders the same name may stand twice: there, rows keep the folder
            Source(path, str(path.relative_to(source) if len(given) == 1 else path), _truth(path, classes, source))
            for path in find_images(source)
        ]
        if not found:
            raise DatasetError(f"{source}: no images in this folder; expected {READABLE} files, by suffix")
        sources += found
    return _labelled(sources, labels_file, classes) if labels_file else sources


def count_skipped(given: Sequence[Path]) -> int:
    """How many visible files of the source folders are not named like an image."""
    return sum(len(list(find_others(source))) for source in given if source.is_dir())


def _truth(path: Path, classes: ClassNames, root: Path | None = None) -> str | None:
    """The nearest folder name that is a label, looking up as far as the source folder itself."""
    folder = path.absolute().parent
    highest = (root or path.parent).absolute()
    while True:
        label = classes.named(folder.name)
        if label is not None:
            return label
        if folder in (highest, folder.parent):
            return None
        folder = folder.parent


def _labelled(sources: Sequence[Source], file: Path, classes: ClassNames) -> list[Source]:
    truths: dict[PurePath, str] = {}
    for number, row in read_label_rows(file):
        label = classes.label_of(row["label"])
        if label is None:
            raise DatasetError(
                f"{file}, line {number}: the model does not know the label {row['label']!r}; "
                f"it knows {some(sorted(classes.labels), 10)}"
            )
        truths[PurePath(row["path"])] = label
        truths[(file.parent / row["path"]).absolute()] = label
    matched = [
        Source(each.path, each.name, truths.get(PurePath(each.name), truths.get(each.path.absolute())))
        for each in sources
    ]
    if not any(each.truth for each in matched):
        raise DatasetError(
            f"{file}: none of its {len(truths) // 2} paths is among the images, which are named like "
            f"{sources[0].name!r}; write the paths as the rows have them, or relative to the labels file"
        )
    return matched
