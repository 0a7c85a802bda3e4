"""How far pictures have drifted from those that a model was validated on: histograms, and what lies between two.

The population stability index of two histograms is the sum over the bins of (p - q) ln(p / q), p and q the shares of
each. Above 0.2 the two are usually called different. Of few pictures it is above that by chance alone: for n and m of
one kind it is distributed like (1/n + 1/m) times a chi-square variable with one degree of freedom less than there are
bins (Yurdakul and Naranjo, "Statistical properties of the population stability index", Journal of Risk Model
Validation 14, 2020). So a difference counts where it is above 0.2 and above what chance gives once in a thousand times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import RunError
from edgecls.runs import BASELINE, Run, read_json

Feature = Literal["confidence", "answers", "brightness", "size"]
FEATURES: Final[tuple[Feature, ...]] = get_args(Feature)

DIFFERENT: Final = 0.2
_SCHEMA: Final = 1
_BINS: Final = 10
_FEWEST: Final = 5  # images of a label below which it shares a bin with others
_RARE: Final = 3.09  # standard deviations of what happens once in a thousand times
_CURE: Final = "export the run again"

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """Values by bin.

    Attributes:
        edges: ascending and finite; the bins are below the first, between two, and from the last on.
        counts: one for each bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or any(type(each) is not int or each < 0 for each in self.counts):
            raise RunError(f"expected {len(self.edges) + 1} whole numbers of 0 or more, got {list(self.counts)}")
        if not all(low < high for low, high in zip((-math.inf, *self.edges), (*self.edges, math.inf), strict=True)):
            raise RunError(f"the edges {list(self.edges)} of the bins do not ascend")

    @classmethod
    def of(cls, values: Floats) -> Histogram:
        """About ten bins with as many values in each; a value that many share has a bin of its own."""
        deciles = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1], method="inverted_cdf")
        edges = set(deciles.tolist())
        common = [each for each in edges if np.mean(values == each) > 0.5 / _BINS]
        edges.update(float(np.nextafter(each, math.inf)) for each in common)
        ascending = sorted(edges)
        found = cls(tuple(ascending), (0,) * (len(ascending) + 1))
        return cls(found.edges, tuple(np.bincount(found.bins(values), minlength=len(found.counts)).tolist()))

    def bins(self, values: Floats) -> Counts:
        """The bin of each value."""
        return np.searchsorted(np.array(self.edges), values, side="right")


@dataclass(frozen=True)
class Baseline:
    """What a model's validation images are like, and what it answers to them.

    Attributes:
        confidence: of the probabilities of the answers.
        answers: number of images by label index.
        brightness: of the mean of a picture as the network sees it, 0 to 255.
        size: of the geometric mean of a picture's sides, in pixels.
    """

    confidence: Histogram
    answers: tuple[int, ...]
    brightness: Histogram
    size: Histogram

    @property
    def n(self) -> int:
        """Number of images."""
        return sum(self.answers)

    @classmethod
    def of(cls, run: Run) -> Baseline | None:
        """A run's; None where it has none, as one that was exported without validation images.

        Raises:
            RunError: damaged, or of a run with another number of labels.
        """
        path = run.path(BASELINE)
        if not path.is_file():
            return None
        values = read_json(path)
        if values.pop("schema", None) != _SCHEMA:
            raise RunError(f"{path}: not of schema {_SCHEMA}, which this edgecls reads; {_CURE}")
        try:
            found = cls(
                answers=tuple(map(int, values["answers"])),
                **{
                    name: Histogram(tuple(each["edges"]), tuple(each["counts"]))
                    for name, each in values.items()
                    if name != "answers"
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError, RunError) as error:
            raise RunError(f"{path}: damaged ({error}); {_CURE}") from error
        if len(found.answers) != len(run.manifest.labels):
            raise RunError(
                f"{path}: is of {len(found.answers)} labels, the run has {len(run.manifest.labels)}; {_CURE}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        return {"schema": _SCHEMA, **asdict(self)}

    @property
    def groups(self) -> tuple[Counts, Counts]:
        """The bin of each label index, and the counts of these bins: labels of few images share the last one."""
        counts = np.array(self.answers, np.int64)
        often = counts >= _FEWEST
        bins = np.where(often, np.cumsum(often) - 1, often.sum())
        return bins, np.bincount(bins, weights=counts, minlength=int(often.sum()) + 1).astype(np.int64)


@dataclass(frozen=True)
class FeatureDrift:
    """How far one histogram is from another.

    Attributes:
        psi: the population stability index.
        by_chance: what it exceeds once in a thousand times between pictures of one kind.
    """

    psi: float
    by_chance: float

    @property
    def is_different(self) -> bool:
        return self.psi > max(DIFFERENT, self.by_chance)


@dataclass(frozen=True)
class Drift:
    """What pictures are like against those of the validation.

    Attributes:
        n: number of pictures; n_baseline: of validation images.
    """

    n: int
    n_baseline: int
    features: Mapping[Feature, FeatureDrift]

    @property
    def different(self) -> tuple[Feature, ...]:
        """The features that differ, the most different one first."""
        found = [name for name, each in self.features.items() if each.is_different]
        return tuple(sorted(found, key=lambda name: -self.features[name].psi))

    def in_words(self) -> str:
        """What differs, as the end of a sentence: "size (PSI 0.45) and brightness (PSI 0.31)". Empty where nothing
        does."""
        words = [f"{name} (PSI {self.features[name].psi:.2f})" for name in self.different]
        return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def compared(expected: Sequence[int] | Counts, found: Sequence[int] | Counts) -> FeatureDrift:
    """The drift between two histograms with the same bins, which are not empty.

    A bin that one of the two has nothing in would make the index infinite: half a picture is added to each. One that
    both have nothing in is left out.
    """
    both = np.array([expected, found], np.float64)
    both = both[:, both.sum(axis=0) > 0]
    n, m = both.sum(axis=1)
    q, p = (both + 0.5) / (both + 0.5).sum(axis=1, keepdims=True)
    return FeatureDrift(float(np.sum((p - q) * np.log(p / q))), float(1 / n + 1 / m) * _chi_square(both.shape[1] - 1))


def _chi_square(degrees: int) -> float:
    """What a chi-square variable exceeds once in a thousand times (Wilson and Hilferty, PNAS 17, 1931)."""
    if degrees < 1:
        return 0.0
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + _RARE * math.sqrt(spread)) ** 3)
