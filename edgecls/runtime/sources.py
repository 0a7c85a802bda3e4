"""What to predict: files and folders, and the labels that are already known for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from edgecls.datasets import read_label_rows
from edgecls.errors import DatasetError
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


def find_sources(given: Sequence[Path], labels: Sequence[str], labels_file: Path | None = None) -> list[Source]:
    """List the inputs in order; a folder's images are in natural order.

    A label is known where `labels_file` (CSV with path and label) says so or, without such a file, where
    the nearest folder above the image that is named like one of the model's labels says so.

    Raises:
        DatasetError: a source does not exist, a folder without images, or labels of another model.
    """
    known = set(labels)
    sources: list[Source] = []
    for source in given:
        if not source.exists():
            raise DatasetError(f"{source}: no such file or folder")
        if not source.is_dir():
            sources.append(Source(source, str(source), _truth(source, known)))
            continue
        found = [
            # below several folders the same name may stand twice: there, rows keep the folder
            Source(path, str(path.relative_to(source) if len(given) == 1 else path), _truth(path, known, source))
            for path in find_images(source)
        ]
        if not found:
            raise DatasetError(f"{source}: no images in this folder; expected {READABLE} files, by suffix")
        sources += found
    return _labelled(sources, labels_file, known) if labels_file else sources


def count_skipped(given: Sequence[Path]) -> int:
    """How many visible files of the source folders are not named like an image."""
    return sum(len(list(find_others(source))) for source in given if source.is_dir())


def _truth(path: Path, known: set[str], root: Path | None = None) -> str | None:
    """The nearest folder name that is a label, looking up as far as the source folder itself."""
    folder = path.absolute().parent
    highest = (root or path.parent).absolute()
    while True:
        if folder.name in known:
            return folder.name
        if folder in (highest, folder.parent):
            return None
        folder = folder.parent


def _labelled(sources: Sequence[Source], file: Path, known: set[str]) -> list[Source]:
    truths: dict[PurePath, str] = {}
    for number, row in read_label_rows(file):
        if row["label"] not in known:
            raise DatasetError(
                f"{file}, line {number}: the model does not know the label {row['label']!r}; "
                f"it knows {', '.join(sorted(known)[:10])}{', ...' if len(known) > 10 else ''}"
            )
        truths[PurePath(row["path"])] = row["label"]
        truths[(file.parent / row["path"]).absolute()] = row["label"]
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
