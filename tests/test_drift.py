"""How far two histograms are apart, and when that is more than chance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecls.drift import Baseline, Drift, FeatureDrift, Histogram, compared
from edgecls.errors import RunError
from edgecls.runs import BASELINE, Run, write_json


def test_the_index_is_that_of_its_formula() -> None:
    expected, found = [40, 30, 20, 10, 0], [10, 20, 30, 40, 0]
    q, p = ([(each + 0.5) / (sum(counts) + 2) for each in counts[:4]] for counts in (expected, found))
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(q, p, strict=True))
    assert compared(expected, found).psi == pytest.approx(by_hand)
    assert compared(expected, expected).psi == 0


@pytest.mark.parametrize("bins", [2, 3, 10, 40])
def test_chance_is_that_of_chi_square(bins: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    drift = compared([100] * bins, [7] * bins)
    exact = (1 / (100 * bins) + 1 / (7 * bins)) * stats.chi2.ppf(0.999, bins - 1)
    assert drift.by_chance == pytest.approx(exact, rel=0.04)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (225, 20), (225, 1000), (2000, 100)])
@pytest.mark.parametrize("kind", ["spread", "few values", "one value"])
def test_pictures_of_one_kind_are_not_called_different(kind: str, n: int, m: int) -> None:
    rng = np.random.default_rng([n, m])

    def draw(count: int) -> Any:
        if kind == "spread":
            return rng.normal(120, 30, count)
        return (
            rng.choice([375.0, 500.0, 333.0], count, p=[0.6, 0.3, 0.1]) if kind == "few values" else np.full(count, 9.0)
        )

    wrong = 0
    for _ in range(200):
        expected = Histogram.of(draw(n))
        found = np.bincount(expected.bins(draw(m)), minlength=len(expected.counts))
        wrong += compared(expected.counts, found).is_different
    assert wrong <= 4


@pytest.mark.parametrize("shift", [25.0, -25.0])
def test_pictures_that_differ_are(shift: float) -> None:
    rng = np.random.default_rng(0)
    expected = Histogram.of(rng.normal(120, 30, 225))
    found = np.bincount(expected.bins(rng.normal(120 + shift, 30, 400)), minlength=len(expected.counts))
    assert compared(expected.counts, found).is_different


@pytest.mark.parametrize("other", [31.0, 33.0])
def test_a_size_that_all_had_is_missed_in_both_directions(other: float) -> None:
    expected = Histogram.of(np.full(100, 32.0))
    found = np.bincount(expected.bins(np.full(100, other)), minlength=len(expected.counts))
    assert compared(expected.counts, found).is_different
    assert sum(expected.counts) == 100


def test_labels_of_few_images_share_a_bin() -> None:
    one = Histogram((0.5,), (4, 4))
    bins, counts = Baseline(one, (10, 1, 20, 2), one, one).groups
    assert bins.tolist() == [0, 2, 1, 2]
    assert counts.tolist() == [10, 20, 3]


def test_what_differs_is_told_most_different_first() -> None:
    far, near, same = FeatureDrift(0.9, 0.1), FeatureDrift(0.3, 0.1), FeatureDrift(0.3, 0.4)
    assert Drift(9, 9, {"size": near, "answers": same}).in_words() == "size (PSI 0.30)"
    three = Drift(9, 9, {"size": near, "answers": far, "brightness": near})
    assert three.in_words() == "answers (PSI 0.90), size (PSI 0.30) and brightness (PSI 0.30)"
    assert Drift(9, 9, {"answers": same}).in_words() == ""


def test_a_baseline_is_read_as_it_was_written(exported_run: Path) -> None:
    baseline = Baseline.of(Run(exported_run))
    assert baseline is not None
    assert sum(baseline.confidence.counts) == sum(baseline.size.counts) == baseline.n > 0
    written = json.loads((exported_run / BASELINE).read_text())
    assert written == json.loads(json.dumps(baseline.to_json()))


def damaged(**changes: Any) -> dict[str, Any]:
    one = {"edges": [0.5], "counts": [1, 2]}
    return {"schema": 1, "confidence": one, "answers": [1, 1, 1], "brightness": one, "size": one, **changes}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (damaged(schema=2), "not of schema 1"),
        (damaged(answers=[1]), "of 1 labels"),
        (damaged(answers="x"), "damaged"),
        (damaged(size={"edges": [1]}), "damaged"),
        (damaged(size={"edges": [2.0, 1.0], "counts": [1, 1, 1]}), "do not ascend"),
        (damaged(size={"edges": [float("nan")], "counts": [1, 1]}), "do not ascend"),
        (damaged(size={"edges": [1.0], "counts": [1, -1]}), "0 or more"),
        (damaged(size={"edges": [1.0], "counts": [1]}), "expected 2 whole numbers"),
        (damaged(other={"edges": [1.0], "counts": [1, 1]}), "damaged"),
        ({"schema": 1}, "damaged"),
    ],
)
def test_a_damaged_baseline_is_told(exported_run: Path, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    (tmp_path / "manifest.json").write_bytes((exported_run / "manifest.json").read_bytes())
    write_json(tmp_path / BASELINE, values)
    with pytest.raises(RunError, match=words):
        Baseline.of(Run(tmp_path))


def test_a_run_without_a_baseline_has_none(tmp_path: Path) -> None:
    assert Baseline.of(Run(tmp_path)) is None
