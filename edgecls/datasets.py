"""Labelled images: class folders, split folders or a CSV in; train, validation and test out.

Three layouts are understood (`LAYOUTS`). Where the data has no validation split, a seeded and stratified
one is drawn from the training images; what was drawn is written to the run folder (`write_split`), so that
export and every later measurement use the same images.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final, cast

import numpy as np

from edgecls.errors import DatasetError, some
from edgecls.images import find_closed, find_images, has_image_suffix, natural_key, walk
from edgecls.labelled import SPLITS, LabelledImage, Split, stratified_split
from edgecls.manifest import Manifest
from edgecls.names import fault_of, one_form
from edgecls.records import TextFile
from edgecls.runs import atomic_path

LAYOUTS: Final = """understood layouts:
  DATA/<class>/*.jpg                     a validation split is drawn, seeded and stratified
  DATA/{train,val,test}/<class>/*.jpg    your own split; val and test may be left out
  DATA.csv with columns path,label       and optionally split (train, val, test); paths relative to the CSV"""

_PATH_LABEL: Final = "expected a CSV in UTF-8, with commas and the columns path,label"
_SPLIT_COLUMNS: Final = ("path", "label", "split", "status", "reason")
_MOST_CLOSED: Final = 3  # folders that a line is spent on
_MOST_DIGITS: Final = 9  # of a class index; Python refuses to read numbers of thousands of digits

_SPLIT_NAMES: Final[Mapping[str, Split]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class ClassNames:
    """What folders and rows may call the classes of a model: by label, by published id, or by index.

    Attributes:
        labels: in the order of the logits.
        ids: one for each label (ImageNet's WordNet ids), or none.
    """

    labels: tuple[str, ...]
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> ClassNames:
        return cls(manifest.labels, manifest.label_ids)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Label by what it may be called, the stronger claim last."""
        ids = dict(zip(self.ids, self.labels, strict=False))
        return {**_by_form(ids), **_by_form(dict(zip(self.labels, self.labels, strict=True))), **ids} | {
            label: label for label in self.labels
        }

    def named(self, name: str) -> str | None:
        """The label that `name` is, or is the id of, or None; in another Unicode form it is the same name."""
        label = self._by_name.get(name)
        return self._by_name.get(one_form(name)) if label is None else label

    def label_of(self, name: str) -> str | None:
        """The same, and by index. A label comes first: of digits, `7` is the class 7 at any index."""
        label = self.named(name)
        if label is not None:
            return label
        index = one_form(name)
        if index.isascii() and index.isdecimal() and len(index) <= _MOST_DIGITS and int(index) < len(self.labels):
            return self.labels[int(index)]
        return None


def _by_form(label_by_name: Mapping[str, str]) -> dict[str, str]:
    """Label by the one form of its name, but for forms that two names share: older runs may have such classes."""
    forms = Counter(map(one_form, label_by_name))
    return {one_form(name): label for name, label in label_by_name.items() if forms[one_form(name)] == 1}


@dataclass(frozen=True)
class Dataset:
    """Labelled images by split.

    Attributes:
        labels: class names in natural order; every image's label is one of them.
        splits: images by split; `train` and `val` are never empty, `test` may be.
        unreadable: reason by path, for images that were left out because they cannot be decoded.
        unused: files of the data folder that belong to no class or are not named like an image.
        closed: reason by folder of those that could not be walked.
        has_own_validation: whether the val split came with the data, and was not drawn.
    """

    labels: tuple[str, ...]
    splits: Mapping[Split, tuple[LabelledImage, ...]]
    unreadable: Mapping[LabelledImage, str] = field(default_factory=dict)
    unused: tuple[Path, ...] = ()
    closed: Mapping[Path, str] = field(default_factory=dict)
    has_own_validation: bool = False

    def __post_init__(self) -> None:
        known = set(self.labels)
        for split in SPLITS:
            foreign = sorted({image.label for image in self.splits[split]} - known, key=natural_key)
            if foreign:
                raise DatasetError(f"the {split} split has classes that train does not know: {some(foreign)}")

    def targets(self, split: Split) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Label index of every image of a split, (n,) int64."""
        return targets_of(self.splits[split], self.labels)

    def without(self, unreadable: Mapping[LabelledImage, str]) -> Dataset:
        """The data set less images that turned out to be unreadable.

        Raises:
            DatasetError: a class has no readable training image, or the validation split no image, left.
        """
        if not unreadable:
            return self
        splits = {s: tuple(i for i in self.splits[s] if i not in unreadable) for s in SPLITS}
        lost = set(self.labels) - {image.label for image in splits["train"]}
        if lost or not splits["val"]:
            example, reason = next(iter(unreadable.items()))
            raise DatasetError(
                f"no readable {'training image of ' + some(sorted(lost)) if lost else 'validation image'} is left; "
                f"{len(unreadable)} images cannot be decoded, for example {example.path}: {reason}"
            )
        return replace(self, splits=cast(Mapping[Split, tuple[LabelledImage, ...]], splits), unreadable=unreadable)

    def warnings(self) -> list[str]:
        """What the user should know before trusting a figure measured on this data."""
        lines = []
        if self.unused:
            example = f"first {self.unused[0]}"
            lines.append(f"{len(self.unused):,} files are not used (outside class folders, or no image): {example}")
        lines += [f"{folder} is left out: {reason}" for folder, reason in list(self.closed.items())[:_MOST_CLOSED]]
        if len(self.closed) > _MOST_CLOSED:
            lines.append(f"{len(self.closed) - _MOST_CLOSED:,} more folders are left out, since they cannot be walked")
        for label, spellings in self._spellings().items():
            if len(spellings) > 1:
                shown = ", ".join(map(ascii, sorted(spellings)))
                lines.append(
                    f"{label} has folders of {len(spellings)} spellings ({shown}) that differ in Unicode form or in "
                    "spaces around the name only: they are one class"
                )
        for split in ("val", "test"):
            present = {image.label for image in self.splits[split]}
            if present and present != set(self.labels):
                missing = sorted(set(self.labels) - present, key=natural_key)
                lines.append(f"the {split} split has no image of {some(missing)}")
        return lines

    def _spellings(self) -> dict[str, set[str]]:
        """How the folders that images lie in write the label."""
        found: dict[str, set[str]] = {}
        for folder, label in {(image.path.parent, image.label) for split in SPLITS for image in self.splits[split]}:
            if one_form(folder.name) == label:
                found.setdefault(label, set()).add(folder.name)
        return found


def targets_of(images: Sequence[LabelledImage], labels: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Label index of every image, (n,) int64."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[image.label] for image in images], np.int64)


def open_dataset(source: Path, *, val_fraction: float = 0.2, seed: int = 0, fewest_classes: int = 2) -> Dataset:
    """Find the labelled images of a folder or CSV (see `LAYOUTS`) and complete the split.

    Args:
        source: class folders, split folders, or a CSV file.
        val_fraction: share of each class's training images that validates, where there is no `val`.
        seed: of the draw; the same images, fraction and seed give the same split.
        fewest_classes: 1 for images that join those of other classes.

    Raises:
        DatasetError: nothing there, no classes, one class, an empty class, a class that train does not know.
    """
    _expect_source(source, LAYOUTS)
    found = _from_csv(source) if source.is_file() else _from_folders(source)
    train = found.get("train", [])
    counts = Counter(image.label for image in train)
    labels = tuple(sorted(counts, key=natural_key))
    if not labels:
        raise DatasetError(f"{source}: no training images found.\n{LAYOUTS}")
    if len(labels) < fewest_classes:
        raise DatasetError(f"{source}: one class only ({labels[0]}); a classifier needs at least two.\n{LAYOUTS}")
    val = found.get("val")
    if val is None:
        lonely = [label for label in labels if counts[label] < 2]
        if lonely:
            raise DatasetError(
                f"{source}: one image only in {some(lonely)}; a class needs at least two, one to train and one "
                "to validate. Add images, remove the class, or give a val split of your own"
            )
        val, train = stratified_split(train, val_fraction, seed)
    elif not val:
        raise DatasetError(f"{source}: the val split has no images.\n{LAYOUTS}")
    splits: dict[Split, tuple[LabelledImage, ...]]
    splits = {"train": tuple(train), "val": tuple(val), "test": tuple(found.get("test", ()))}
    unused, closed = _passed_over(source, found) if source.is_dir() else ((), {})
    return Dataset(labels, splits, unused=unused, closed=closed, has_own_validation="val" in found)


@dataclass(frozen=True)
class AsItLies:
    """The labelled images of a folder or CSV as they lie, with what a training would refuse.

    Attributes:
        splits: by the name of their split; `train` where the data has none.
        empty: class folders without images.
        unused: files that belong to no class, or are not named like an image.
        closed: reason by folder of those that could not be walked.
    """

    splits: Mapping[Split, list[LabelledImage]]
    empty: tuple[Path, ...]
    unused: tuple[Path, ...]
    closed: Mapping[Path, str]


def as_it_lies(source: Path) -> AsItLies:
    """Find the labelled images of a folder or CSV (see `LAYOUTS`), and refuse only what has none.

    Raises:
        DatasetError: nothing there, no labelled images, or not such a CSV.
    """
    _expect_source(source, LAYOUTS)
    if source.is_file():
        return AsItLies(_from_csv(source, may_be_missing=True), (), (), {})
    found = _from_folders(source, may_be_empty=True)
    if not any(found.values()):
        raise DatasetError(f"{source}: no images found.\n{LAYOUTS}")
    unused, closed = _passed_over(source, found)
    used = {parent for images in found.values() for image in images for parent in image.path.parents}
    classes = [folder for split in _subfolders(source) for folder in (split, *_subfolders(split))]
    empty = tuple(folder for folder in classes if folder.absolute() not in used and not any(find_images(folder)))
    return AsItLies(found, empty, unused, closed)


def read_labelled(source: Path, classes: ClassNames) -> tuple[LabelledImage, ...]:
    """Images with known labels: class folders (named by label, id or index), or a CSV with path,label.

    Raises:
        DatasetError: nothing there, or folders and rows that name no class of the model.
    """
    _expect_source(source, "expected class folders or a CSV (path,label)")
    folders = [] if source.is_file() else _subfolders(source)
    if source.is_dir() and not folders:
        raise DatasetError(f"{source}: no class folders in it; expected DIR/<class>/*.jpg, or a CSV (path,label)")
    found = _from_csv(source) if source.is_file() else {"train": _class_folders(source, folders, True)}
    images = [image for split in SPLITS for image in found.get(split, ())]
    if not images:
        raise DatasetError(f"{source}: no images in it; expected class folders with images, or a CSV (path,label)")
    meant = {name: classes.label_of(name) for name in {image.label for image in images}}
    strange = sorted((name for name, label in meant.items() if label is None), key=natural_key)
    if strange:
        raise DatasetError(
            f"{source}: {len(strange)} of {len(meant)} class names are not the model's: {some(strange)}; expected "
            f"labels ({some(classes.labels, 3)}){', their ids' if classes.ids else ''} or class indices"
        )
    return tuple(LabelledImage(image.path, cast(str, meant[image.label])) for image in images)


def _expect_source(source: Path, expected: str) -> None:
    """Refuse what is neither a file nor a folder: a pipe would be waited for, and a device read for ever."""
    if not os.path.exists(source):
        raise DatasetError(f"{source}: no such folder or CSV file; {expected}")
    if not (os.path.isfile(source) or os.path.isdir(source)):
        raise DatasetError(f"{source}: it is a pipe or a device; {expected}")


def _passed_over(root: Path, found: Mapping[Split, list[LabelledImage]]) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """The files below a folder that are no images of a class, and why some folders could not be walked."""
    used = {image.path for images in found.values() for image in images}
    others: list[Path] = []
    images: list[Path] = []
    closed: dict[Path, str] = {}
    for each in walk(root):
        for name in each.names:
            (images if has_image_suffix(name) else others).append(Path(each.folder, name))
        if each.reason:
            closed[Path(each.folder)] = each.reason
    return (*others, *(path for path in images if path.absolute() not in used)), closed


def _from_folders(root: Path, may_be_empty: bool = False) -> dict[Split, list[LabelledImage]]:
    folders = _subfolders(root)
    named = {folder: _SPLIT_NAMES.get(one_form(folder.name).casefold()) for folder in folders}
    if not any(split == "train" for split in named.values()):
        if any(named.values()) and all(named.values()):
            raise DatasetError(f"{root}: has {some([f.name for f in folders])} but no train folder.\n{LAYOUTS}")
        return {"train": _class_folders(root, folders, may_be_empty)}
    strange = [folder.name for folder, split in named.items() if split is None]
    if strange:
        raise DatasetError(
            f"{root}: {some(strange)} beside the train folder is neither val nor test; "
            f"move it away, or into train if it is a class.\n{LAYOUTS}"
        )
    found: dict[Split, list[LabelledImage]] = {}
    for folder, split in named.items():
        assert split is not None
        if split in found:
            raise DatasetError(f"{root}: two folders for the {split} split; keep one of them")
        found[split] = _class_folders(folder, _subfolders(folder), may_be_empty or split != "train")
    return found


def _subfolders(folder: Path) -> list[Path]:
    try:
        # os.path.isdir, since Path.is_dir raises for a link into a place that may not be looked at
        visible = [p for p in folder.iterdir() if os.path.isdir(p) and not p.name.startswith((".", "__"))]
    except OSError as error:
        raise DatasetError(f"{folder}: this folder cannot be walked: {error.strerror or error}") from error
    return sorted(visible, key=lambda path: natural_key(path.name))


def _class_folders(root: Path, folders: Sequence[Path], may_be_empty: bool) -> list[LabelledImage]:
    if not folders:
        loose = sum(1 for _ in find_images(root))
        what = f"{loose} images but no class folders" if loose else "neither class folders nor images"
        raise DatasetError(f"{root}: {what}.\n{LAYOUTS}")
    images: list[LabelledImage] = []
    for folder in folders:
        label = _label(folder.name, f"{str(folder)!a}", "rename the folder")
        of_class = [LabelledImage(path.absolute(), label) for path in find_images(folder)]
        if not of_class and not may_be_empty:
            why = "".join(f" ({path}: {reason})" for path, reason in islice(find_closed(folder), 1))
            raise DatasetError(f"{folder}: no images for the class {label!r}{why}; add some or remove the folder")
        images += of_class
    return images


def _from_csv(path: Path, may_be_missing: bool = False) -> dict[Split, list[LabelledImage]]:
    found: dict[Split, list[LabelledImage]] = {}
    missing: list[str] = []
    for number, row in read_label_rows(path, f"expected a CSV in UTF-8, with commas;\n{LAYOUTS}"):
        split = _SPLIT_NAMES.get((row.get("split") or "train").strip().casefold())
        if split is None:
            raise DatasetError(f"{path}, line {number}: split {row['split']!r}; expected train, val or test")
        image = path.parent / row["path"]
        if not may_be_missing and not os.path.exists(image):
            missing.append(f"line {number}: {row['path']}")
        found.setdefault(split, []).append(LabelledImage(image.absolute(), row["label"]))
    if missing:
        raise DatasetError(f"{path}: {len(missing)} images do not exist (relative to the CSV): {some(missing)}")
    return found


def read_label_rows(path: Path, expected: str = _PATH_LABEL) -> Iterable[tuple[int, dict[str, str]]]:
    """Rows of a CSV with `path` and `label`, with their line numbers; labels are in the form in which they are kept.

    Raises:
        DatasetError: not such a CSV, or a row without a path or label.
    """
    rows = []
    seen: dict[str, tuple[int, str]] = {}
    for number, row in TextFile(path, DatasetError, expected).rows(("path", "label")):
        row = {name: value.strip() for name, value in row.items()}
        image = row["path"]
        if not image or not row["label"]:
            raise DatasetError(f"{path}, line {number}: a row needs a path and a label")
        label = row["label"] = _label(row["label"], f"{path}, line {number}", "write another label")
        first_line, first_label = seen.setdefault(image, (number, label))
        if label != first_label:
            raise DatasetError(
                f"{path}: {image} is {first_label!r} in line {first_line} and {label!r} in line {number}"
            )
        rows.append((number, row))
    return rows


def _label(name: str, where: str, cure: str) -> str:
    """The label that a folder or row names, in the form in which labels are kept.

    Raises:
        DatasetError: none that can be written and read back.
    """
    fault = fault_of(name)
    if fault:
        raise DatasetError(f"{where}: {fault}, so it cannot be the name of a class; {cure}")
    return one_form(name)


def write_split(dataset: Dataset, path: Path) -> None:
    """Write which image is in which split, atomically: `path,label,split,status,reason`."""
    with (
        atomic_path(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_SPLIT_COLUMNS)
        for split in SPLITS:
            writer.writerows([image.path, image.label, split, "ok", ""] for image in dataset.splits[split])
        writer.writerows([image.path, image.label, "", "error", why] for image, why in dataset.unreadable.items())


def split_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows that `write_split` wrote, in which file names may hold any bytes.

    Raises:
        DatasetError: not such a file.
    """
    file = TextFile(path, DatasetError, "it was changed since edgecls train wrote it: train again")
    for number, row in file.rows(_SPLIT_COLUMNS, file.raw_text()):
        if row["status"] != "error" and row["split"] not in SPLITS:
            raise DatasetError(f"{path}, line {number}: split {row['split']!r} is none of {some(SPLITS)}; {file.cure}")
        yield row


def read_split(path: Path, labels: Sequence[str]) -> Dataset:
    """Read what `write_split` wrote.

    Args:
        path: the run folder's split file.
        labels: the run's labels, in the order of its logits.

    Raises:
        DatasetError: not such a file, or an image of a class that is not among the labels.
    """
    splits: dict[Split, list[LabelledImage]] = {split: [] for split in SPLITS}
    unreadable, classes = {}, ClassNames(tuple(labels))
    for row in split_rows(path):
        image = LabelledImage(Path(row["path"]), classes.named(row["label"]) or row["label"])
        if row["status"] == "error":
            unreadable[image] = row["reason"]
        else:
            splits[cast(Split, row["split"])].append(image)
    return Dataset(tuple(labels), {split: tuple(images) for split, images in splits.items()}, unreadable)
