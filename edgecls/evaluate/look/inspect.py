"""A data set to everything that is better known before a training than after it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgecls.datasets import as_it_lies
from edgecls.evaluate.look.duplicates import Pair, n_leaked, pairs_of
from edgecls.evaluate.look.facts import Examined, Facts, Listed, examine
from edgecls.evaluate.look.fit import Effect, calibration_notes, effects_of
from edgecls.evaluate.look.odd import Odd, odd_ones
from edgecls.evaluate.look.options import InspectOptions
from edgecls.images import natural_key
from edgecls.labelled import SPLITS
from edgecls.local_copy import local_copy
from edgecls.progress import Progress

_UNEVEN: Final = 5.0  # as training has it: from here on rare classes weigh more


@dataclass(frozen=True)
class ClassCount:
    """Images of one class by split."""

    label: str
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of a number over the files."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(min(values)), float(np.median(values)), float(max(values)))


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read."""

    path: Path
    label: str
    split: str
    reason: str


@dataclass(frozen=True)
class Doubt:
    """A label, and what a model that has not learnt from it says in its place.

    Attributes:
        probability, of_label: of the answer, and of the label.
    """

    path: Path
    label: str
    answer: str
    probability: float
    of_label: float


@dataclass(frozen=True)
class InspectResult:
    """What a data set is, and what is wrong with it.

    Attributes:
        n: files that can be read.
        height, width, aspect: in pixels; aspect is the longer side as a multiple of the shorter one.
        formats: files by format.
        grey: files without colours.
        pairs: files that show the same picture; n_leaked: pictures of val and test that have a copy in train.
        empty: class folders without images.
        unused: how many files belong to no class.
        doubts: labels that a model doubts, the most doubtful first; None where none was asked.
    """

    data: str
    n: int
    n_bytes: int
    classes: tuple[ClassCount, ...]
    height: Spread | None
    width: Spread | None
    aspect: Spread | None
    formats: dict[str, int]
    grey: int
    pairs: tuple[Pair, ...]
    n_leaked: int
    odd: tuple[Odd, ...]
    unreadable: tuple[Unreadable, ...]
    empty: tuple[str, ...]
    unused: int
    closed: dict[str, str]
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]
    doubts: tuple[Doubt, ...] | None
    seconds: float
    out: Path

    @property
    def leaks(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.is_leak)

    @property
    def conflicts(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.is_conflict)

    @property
    def is_sound(self) -> bool:
        """Whether `--strict` lets it pass."""
        return not (self.leaks or self.conflicts or self.unreadable)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_sound": self.is_sound, "leaks": len(self.leaks), "conflicts": len(self.conflicts)}


def inspect(
    options: InspectOptions,
    progress: Progress = Progress(),
    doubts: Callable[[Sequence[Facts]], tuple[Doubt, ...]] | None = None,
) -> InspectResult:
    """Read every file once and compare them all. Nothing is written.

    Args:
        doubts: which labels a model doubts; None where none was asked.

    Raises:
        DatasetError: nothing there, or no labelled images.
        MissingExtra: an address, and pyarrow is not installed.
    """
    started = time.perf_counter()
    copy = local_copy(options.data, progress)
    found = as_it_lies(copy.path)
    listed = [Listed(image, split) for split in SPLITS for image in found.splits.get(split, ())]
    progress.on_pass("looking at files", len(listed))
    examined = examine(listed, progress.on_images)
    progress.on_step(f"comparing {len(examined.facts):,} pictures with one another")
    pairs = pairs_of(examined)
    facts = examined.facts
    sizes = [Spread.of([getattr(each, side) for each in facts]) if facts else None for side in ("height", "width")]
    aspects = [max(each.height, each.width) / min(each.height, each.width) for each in facts]
    return InspectResult(
        data=str(options.data),
        n=len(facts),
        n_bytes=sum(each.n_bytes for each in facts),
        classes=_classes(listed),
        height=sizes[0],
        width=sizes[1],
        aspect=Spread.of(aspects) if aspects else None,
        formats=dict(Counter(each.format for each in facts).most_common()),
        grey=sum(each.is_grey for each in facts),
        pairs=pairs,
        n_leaked=n_leaked(pairs),
        odd=odd_ones(facts),
        unreadable=_unreadable(examined, copy.reasons),
        empty=tuple(str(folder) for folder in found.empty),
        unused=len(found.unused),
        closed={str(folder): reason for folder, reason in found.closed.items()},
        effects=effects_of(facts),
        notes=(*copy.notes, *_evenness(listed), *_copies(listed, pairs), *calibration_notes(facts)),
        doubts=doubts(facts) if doubts else None,
        seconds=time.perf_counter() - started,
        out=options.out,
    )


def _classes(listed: Sequence[Listed]) -> tuple[ClassCount, ...]:
    counts = Counter((each.image.label, each.split) for each in listed)
    labels = sorted({label for label, _ in counts}, key=natural_key)
    return tuple(ClassCount(label, *(counts[label, split] for split in SPLITS)) for label in labels)


def _unreadable(examined: Examined, known: Mapping[Path, str]) -> tuple[Unreadable, ...]:
    return tuple(
        Unreadable(each.image.path, each.image.label, each.split, known.get(each.image.path, reason))
        for each, reason in examined.unreadable
    )


def _evenness(listed: Sequence[Listed]) -> list[str]:
    """What a reader should know of the classes."""
    counts = Counter(each.image.label for each in listed if each.split == "train")
    others = {each.image.label for each in listed if each.split != "train"} - set(counts)
    notes = []
    if len(counts) == 1:
        notes.append("one class only; a classifier needs two")
    if counts and max(counts.values()) >= _UNEVEN * min(counts.values()):
        (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
        notes.append(
            f"uneven classes: {most:,} training images of {largest}, {least:,} of {smallest}; training lets rare "
            "classes weigh more"
        )
    if others:
        notes.append(f"{len(others):,} classes of val or test have no training image, first {min(others)}")
    return notes


def _copies(listed: Sequence[Listed], pairs: Sequence[Pair]) -> list[str]:
    """Copies within train leak, too, where training draws the validation images from it."""
    n = sum(pair.split == pair.other_split == "train" for pair in pairs)
    if not n or any(each.split == "val" for each in listed):
        return []
    return [
        f"{n:,} copies lie in train, and training draws the validation images from it: a picture and its copy may land "
        "on either side, which flatters; remove one of each"
    ]
