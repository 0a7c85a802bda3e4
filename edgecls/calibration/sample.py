"""Which images set the INT8 ranges: real ones, listed with their hashes, and none that the result is judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgecls import images
from edgecls.calibration.options import SampleOptions
from edgecls.datasets import ClassNames, read_label_rows
from edgecls.errors import DatasetError, ImageError, counted, some
from edgecls.images import find_images, natural_key
from edgecls.labelled import LabelledImage, stratified_sample
from edgecls.manifest import Preprocessing
from edgecls.prefetch import n_cores, prefetch

FEW: Final = 32  # images below which a range is a guess: the user is told


@dataclass(frozen=True)
class CalibrationImage:
    """One image, and the sha256 of its file."""

    path: str
    sha256: str


@dataclass(frozen=True)
class CalibrationSet:
    """Readable images in a fixed order, and what is to be known about them.

    Attributes:
        source: where they come from, in words.
        n_asked: how many were asked for.
        left_out: reason by path, of images that were drawn and are not used.
        overlapping: paths that are held-out images too, used because the user allowed it.
        missing_labels: classes without an image; empty where the images have no known class.
    """

    images: tuple[CalibrationImage, ...]
    source: str
    n_asked: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    overlapping: tuple[str, ...] = ()
    missing_labels: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What the user should know before trusting ranges from this set."""
        lines = []
        n = len(self.images)
        if n + len(self.left_out) < self.n_asked:
            lines.append(f"{n} calibration images rather than {self.n_asked}: {self.source} has no more")
        if self.left_out:
            path, reason = next(iter(self.left_out.items()))
            lines.append(f"{counted(len(self.left_out), 'calibration image')} left out, first {path}: {reason}")
        if self.overlapping:
            lines.append(
                f"{len(self.overlapping)} calibration images are also validation or test images (--allow-overlap): "
                "the accuracy measured on those is that of ranges that have seen them"
            )
        if self.missing_labels:
            lines.append(f"no calibration image of {len(self.missing_labels)} classes: {some(self.missing_labels)}")
        if n < FEW:
            lines.append(f"{n} calibration images are few: values that they lack are cut off; 100 to 512 are usual")
        return lines


def choose_calibration_set(
    options: SampleOptions,
    classes: ClassNames,
    preprocessing: Preprocessing,
    training: Sequence[LabelledImage],
    held_out: Iterable[Path],
) -> CalibrationSet:
    """Draw the images, each class in proportion, check that they can be decoded, and hash them.

    Args:
        training: the run's training split; drawn from unless the options name a source.
        held_out: the validation and test images, whose contents must not calibrate: the accuracy measured on them
            would be that of a model that has seen them.

    Raises:
        DatasetError: no images, none readable, or (unless allowed) images of the source that are held out.
    """
    candidates = _labelled(options.source, classes) if options.source else list(training)
    source = str(options.source or "the training split")
    if not candidates:
        where = f"{source} has no images" if options.source else "this run has no training images"
        raise DatasetError(
            f"{where}, and INT8 ranges need real ones; none are invented. "
            "Give some that look like the device's: --calibration DIR|CSV"
        )
    drawn = stratified_sample(candidates, options.n_images, options.seed)
    hashed = dict(zip(drawn, _hashed([image.path for image in drawn], preprocessing), strict=True))
    left_out = {str(image.path): reason for image, (_, reason) in hashed.items() if reason}
    digests = {image: digest for image, (digest, reason) in hashed.items() if not reason}
    overlapping = _overlapping(digests, held_out)
    if overlapping and not options.allow_overlap:
        if options.source:
            raise DatasetError(
                f"{source}: {len(overlapping)} calibration images are validation or test images too (same content), "
                f"first {overlapping[0].path}; accuracy measured on those would flatter. Remove them, or use "
                "--allow-overlap"
            )
        left_out |= {str(image.path): "a validation or test image has the same content" for image in overlapping}
        digests = {image: digest for image, digest in digests.items() if image not in set(overlapping)}
        overlapping = []
    if not digests:
        path, reason = next(iter(left_out.items()))
        raise DatasetError(f"{source}: none of {len(drawn)} calibration images can be used, first {path}: {reason}")
    known = {image.label for image in digests} - {""}
    missing = sorted(set(classes.labels) - known, key=natural_key) if known else []
    return CalibrationSet(
        tuple(CalibrationImage(str(image.path), digest) for image, digest in digests.items()),
        source,
        options.n_images,
        left_out,
        tuple(str(image.path) for image in overlapping),
        tuple(missing) if options.n_images >= len(classes.labels) else (),
    )


def _labelled(source: Path, classes: ClassNames) -> list[LabelledImage]:
    """Images of the user's folder or CSV; the label is empty where the folder or row names no class of the model."""
    if source.is_dir():
        found = ((path.absolute(), path.parent.name) for path in find_images(source))
    elif source.is_file():
        rows = read_label_rows(source, "expected a folder of images, or a CSV with columns path,label")
        found = (((source.parent / row["path"]).absolute(), row["label"]) for _, row in rows)
    else:
        raise DatasetError(f"--calibration {source}: no such folder or CSV file")
    return [LabelledImage(path, classes.label_of(name) or "") for path, name in found]


def _overlapping(digests: Mapping[LabelledImage, str], held_out: Iterable[Path]) -> list[LabelledImage]:
    forbidden = {digest for digest, reason in _hashed(held_out) if not reason}
    return [image for image, digest in digests.items() if digest in forbidden]


def _hashed(paths: Iterable[Path], preprocessing: Preprocessing | None = None) -> Iterable[tuple[str, str]]:
    """(sha256, "") or ("", why not) for every path, in order; decoded as well where the preprocessing is given."""

    def digest(path: Path) -> tuple[str, str]:
        try:
            data = images.read(path)
            if preprocessing:
                images.resize_and_crop(images.decode(data, preprocessing), preprocessing)
        except ImageError as error:
            return "", error.reason
        return hashlib.sha256(data).hexdigest(), ""

    threads = n_cores()
    return prefetch(digest, paths, n_threads=threads, ahead=4 * threads)
