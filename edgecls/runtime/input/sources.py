"""What to predict: files, folders, lists, videos and cameras, and the labels that are already known for them."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from edgecls.datasets import ClassNames, read_label_rows
from edgecls.decoding.pillow import READABLE
from edgecls.errors import DatasetError, ImageError, some
from edgecls.images import Listing, has_image_suffix, natural_key, walk
from edgecls.records import TextFile
from edgecls.runtime.input import video
from edgecls.runtime.input.stored import StoredInput, inputs_of, is_tar, open_source, sources_of
from edgecls.runtime.options import SourceOptions
from edgecls.runtime.pipeline import Source, Unreadable
from edgecls.storage import LocalStore, StoredFile, has_scheme

STDIN: Final = "-"
LIST_SUFFIXES: Final = frozenset({".txt", ".csv"})


@dataclass(frozen=True)
class _Part:
    """One source as given: how to go through it, and how many there are (None: not known before the end)."""

    each: Callable[[], Iterator[Source]]
    count: int | None
    skipped: int = 0
    is_live: bool = False


@dataclass(frozen=True)
class Sources:
    """All inputs, in order. Going through them costs memory for their names only.

    Attributes:
        count: how many there are; None where a stream is among them.
        skipped: visible files of the folders that are not named like an image.
        is_live: whether a camera is among them, whose frames want their answers at once.
    """

    parts: tuple[_Part, ...]
    truths: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def count(self) -> int | None:
        counts = [part.count for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def skipped(self) -> int:
        return sum(part.skipped for part in self.parts)

    @property
    def is_live(self) -> bool:
        return any(part.is_live for part in self.parts)

    def __iter__(self) -> Iterator[Source]:
        for part in self.parts:
            for source in part.each():
                yield source if self.truths is None else self._labelled(source, self.truths)

    def _labelled(self, source: Source, truths: Mapping[str, str]) -> Source:
        truth = truths.get(os.path.normpath(source.name))
        if truth is None and isinstance(source.picture, str | Path):
            truth = truths.get(os.path.abspath(source.picture))
        return Source(source.picture, source.name, truth)


def find_sources(given: Sequence[str | Path], classes: ClassNames, options: SourceOptions | None = None) -> Sources:
    """Find the inputs; a folder's images are in natural order.

    A label is known where `options.labels`, or a CSV among the sources, says so; else where the nearest folder above
    the image that is named by a label or id of the model says so. A class index counts in files only: a folder `12` may
    as well be December.

    Args:
        given: image files, folders, patterns (`*.jpg`), lists (a text file with a path a line, a CSV with a column
            `path`; `-` is a list on standard input), videos, cameras (`0`, `/dev/video0`, a GStreamer pipeline, an
            address). Paths in a list file are relative to it, on standard input to the working folder.

    Raises:
        DatasetError: a source does not exist, a folder without images, or labels of another model.
    """
    options = options or SourceOptions()
    parts = tuple(_part(str(each), len(given) == 1, classes, options) for each in given)
    if not options.labels:
        return Sources(parts)
    sources = Sources(parts, _read_truths(options.labels, classes))
    if sources.count is not None and not any(source.truth for source in sources):
        example = next(iter(sources)).name
        raise DatasetError(
            f"{options.labels}: none of its paths is among the images, which are named like {example!r}; "
            "write the paths as the rows have them, or relative to the labels file"
        )
    return sources


def is_live(given: str) -> bool:
    """Whether a source is a camera, whose frames want their answers at once."""
    return not has_scheme(given) and video.is_live(given)


def _part(given: str, is_only: bool, classes: ClassNames, options: SourceOptions) -> _Part:
    if not given:
        raise DatasetError("an empty source: name a file or folder; . is the working folder")
    if given == STDIN:
        return _Part(lambda: _listed(_lines(sys.stdin), Path(), classes), None)
    if has_scheme(given):
        store, files = open_source(given)
        return _Part(lambda: sources_of(store, inputs_of(store, files()), classes), None)
    path = Path(given)
    # os.path's questions answer no where those of Path raise: of names that are too long, or behind a locked folder
    is_file = os.path.isfile(given)
    if video.is_live(given) or (is_file and video.is_video_file(path)):
        return _video(given, classes, options)
    if os.path.isdir(given):
        return _folder(path, is_only, classes)
    if is_file and path.suffix.lower() in LIST_SUFFIXES:
        return _list_file(path, classes)
    if is_file and is_tar(given):
        return _tar_file(given, is_only, classes)
    if os.path.lexists(given):  # a link to nothing is an input too, and its row says so
        return _Part(lambda: iter([Source(given, given, _nearest(path.absolute().parent, None, classes))]), 1)
    if glob.has_magic(given):
        found = sorted(glob.glob(given, recursive=True), key=natural_key)
        found = [name for name in found if not os.path.isdir(name)]
        if not found:
            raise DatasetError(f"{given}: no file matches this pattern")
        return _Part(lambda: (_file(name, name, classes) for name in found), len(found))
    raise DatasetError(f"{given}: no such file or folder")


def _file(path: str, name: str, classes: ClassNames) -> Source:
    return Source(path, name, _nearest(Path(path).absolute().parent, None, classes))


def _video(given: str, classes: ClassNames, options: SourceOptions) -> _Part:
    truth = _nearest(Path(given).absolute().parent, None, classes) if os.path.isfile(given) else None

    def each() -> Iterator[Source]:
        for frame in video.frames(given, step=options.frame_step, most=options.max_frames):
            yield Source(frame, frame.name, truth)

    return _Part(each, None, is_live=video.is_live(given))


def _folder(root: Path, is_only: bool, classes: ClassNames) -> _Part:
    found: list[Listing] = []
    passed_over: Counter[str] = Counter()
    of_tars: dict[str, list[StoredInput]] = {}
    for listing in walk(root):
        kept = [name for name in listing.names if has_image_suffix(name) or is_tar(name)]
        passed_over.update(os.path.splitext(name)[1] for name in set(listing.names).difference(kept))
        of_tars |= {path: _in_tar(path) for name in kept if is_tar(path := os.path.join(listing.folder, name))}
        found.append(Listing(listing.folder, kept, listing.reason))
    if found[0].reason:
        raise DatasetError(f"{root}: {found[0].reason}")
    count = sum(len(each.names) + bool(each.reason) for each in found) - len(of_tars) + sum(map(len, of_tars.values()))
    if not count:
        raise DatasetError(f"{root}: no images in this folder{_other_suffixes(passed_over)}; expected {READABLE} files")

    def each() -> Iterator[Source]:
        for listing in found:
            truth = _nearest(Path(listing.folder).absolute(), root.absolute(), classes)
            # below several folders the same name may stand twice: there, rows keep the folder
            below = os.path.relpath(listing.folder, root) if is_only else listing.folder
            if listing.reason:
                yield Source(Unreadable(below, listing.reason), below)
            folder, shown = (os.path.join(each, "") for each in (listing.folder, os.path.normpath(below)))
            shown = "" if shown == os.path.join(os.curdir, "") else shown
            for name in listing.names:  # joined once a folder: it took longer than reading a small picture
                if is_tar(name):
                    members = sources_of(LocalStore(listing.folder), of_tars[folder + name], classes)
                    yield from (replace(each, name=shown + each.name, truth=each.truth or truth) for each in members)
                else:
                    yield Source(folder + name, shown + name, truth)

    return _Part(each, count, passed_over.total())


def _other_suffixes(passed_over: Counter[str]) -> str:
    """What files that are not named like images are called, where there are any."""
    if not passed_over:
        return ""
    names = some([suffix or "(no suffix)" for suffix, _ in passed_over.most_common()], 5)
    return f", only {passed_over.total():,} files named {names}"


def _list_file(path: Path, classes: ClassNames) -> _Part:
    if path.suffix.lower() == ".csv":
        return _csv_list(path, classes)
    # only line feeds end a line here: file names may hold the other characters that str.splitlines takes for ends
    lines = TextFile(path, DatasetError, "expected the path of an image in each line").raw_text().split("\n")
    names = list(_lines(lines))
    if not names:
        raise DatasetError(f"{path}: an empty list; expected the path of an image in each line")
    return _Part(lambda: _listed(names, path.parent, classes), len(names))


def _csv_list(path: Path, classes: ClassNames) -> _Part:
    """A CSV with `path`, and where it has `label` the true labels."""
    file = TextFile(path, DatasetError, "expected a CSV in UTF-8 with a column `path`, and maybe `label`")
    if "label" in file.header():
        rows = [(row["path"], _known(path, number, row["label"], classes)) for number, row in read_label_rows(path)]
        if not rows:
            raise DatasetError(f"{path}: no rows in it; expected columns path,label with an image in each row")
        return _Part(lambda: (Source(str(path.parent / name), name, label) for name, label in rows), len(rows))
    names = [row["path"].strip() for _, row in file.rows(("path",)) if row["path"].strip()]
    if not names:
        raise DatasetError(f"{path}: no rows in it; expected the path of an image in each")
    return _Part(lambda: _listed(names, path.parent, classes), len(names))


def _tar_file(given: str, is_only: bool, classes: ClassNames) -> _Part:
    inputs, folder = _in_tar(given), os.path.dirname(given)
    if not inputs:
        raise DatasetError(f"{given}: no images in this tar file; expected {READABLE} files")
    shown = "" if is_only else os.path.join(os.path.normpath(folder), "") if folder else ""

    def each() -> Iterator[Source]:
        for source in sources_of(LocalStore(folder), inputs, classes):
            yield replace(source, name=shown + source.name)

    return _Part(each, len(inputs))


def _in_tar(path: str | Path) -> list[StoredInput]:
    """The images in a tar file; one that cannot be read is an input too, whose row says why."""
    store, name = LocalStore(os.path.dirname(path)), os.path.basename(path)
    try:
        file = store.stat(name)
    except ImageError as error:
        file = StoredFile(name, 0, 0, error.reason)
    return list(inputs_of(store, [file]))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    """Paths, each on a line of its own or, as `find -print0` writes them, each ended by a NUL."""
    names = (name.rstrip("\r\n") for line in lines for name in line.split("\0"))
    return (name for name in names if name.strip())


def _listed(names: Iterable[str], root: Path, classes: ClassNames) -> Iterator[Source]:
    return (_file(str(root / name), name, classes) for name in names)


@lru_cache(maxsize=64)
def _nearest(folder: Path, root: Path | None, classes: ClassNames) -> str | None:
    """The nearest folder name that is a label, looking up as far as the source folder, one level for a file."""
    highest = root or folder
    while True:
        label = classes.named(folder.name)
        if label is not None:
            return label
        if folder in (highest, folder.parent):
            return None
        folder = folder.parent


def _known(file: Path, number: int, name: str, classes: ClassNames) -> str:
    label = classes.label_of(name)
    if label is None:
        raise DatasetError(
            f"{file}, line {number}: the model does not know the label {name!r}; "
            f"it knows {some(sorted(classes.labels), 10)}"
        )
    return label


def _read_truths(file: Path, classes: ClassNames) -> dict[str, str]:
    truths: dict[str, str] = {}
    for number, row in read_label_rows(file):
        label = _known(file, number, row["label"], classes)
        truths[os.path.normpath(row["path"])] = label
        truths[os.path.abspath(file.parent / row["path"])] = label
    return truths
