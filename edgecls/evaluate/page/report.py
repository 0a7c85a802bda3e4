"""Results to one HTML file that holds everything: no server, no network, no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgecls.evaluate.compare import CompareResult
from edgecls.evaluate.evaluate import Evaluated
from edgecls.evaluate.gallery import cells_of
from edgecls.evaluate.page.charts import Axis, Series, chart
from edgecls.evaluate.page.confusion import confusion_view
from edgecls.evaluate.page.render import render, write_page
from edgecls.evaluate.runs_table import RunsResult
from edgecls.runs import write_text

CARD: Final = "card.md"

_MOST_CELL_PICTURES: Final = 240
_MOST_LABELS: Final = 40  # that a card lists
_SHARE: Final = Axis("accuracy", is_share=True)
# of a training, what a reader of a card wants to know
_OF_TRAINING: Final = (
    "model", "weights", "n_images", "image_size", "epochs", "optimizer", "lr", "fine_tune_lr", "augment", "seed",
    "torch",
)  # fmt: skip


def write_evaluation(evaluated: Evaluated) -> None:
    """Write the page, its figures as JSON, and the model card into the folder of a result.

    Raises:
        RunError: they cannot be written; what was there before is unchanged.
    """
    result, scores = evaluated.result, evaluated.result.scores
    counts = {(truth, answer): n for truth, answer, n in scores.confusion}
    page = render(
        "evaluation.html.j2",
        result=result,
        scores=scores,
        view=confusion_view(evaluated.answers.labels, counts),
        cells=cells_of(evaluated.answers, _MOST_CELL_PICTURES),
        reliability=_reliability(evaluated),
        coverage=_coverage(evaluated),
    )
    labels = evaluated.answers.labels
    more = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
    training = evaluated.manifest["training"]
    card = render(
        "card.md.j2",
        result=result,
        scores=scores,
        labels=", ".join(f"`{label}`" for label in labels[:_MOST_LABELS]) + more,
        training={name: training[name] for name in _OF_TRAINING if training.get(name) not in (None, [], "")},
        worse="; ".join(f"{each.by} {each.value}" for each in result.slices if each.is_worse),
    )
    write_page(result.out, page, result.to_json())
    write_text(result.out / CARD, card)


def write_comparison(result: CompareResult | RunsResult, out: Path) -> None:
    """Write the page and its figures as JSON.

    Raises:
        RunError: they cannot be written; what was there before is unchanged.
    """
    if isinstance(result, RunsResult):
        write_page(out, render("runs.html.j2", result=result), result.to_json())
    else:
        write_page(out, render("comparison.html.j2", result=result, front=_front(result)), result.to_json())


def _reliability(evaluated: Evaluated) -> Any:
    bins = evaluated.result.scores.reliability
    kept = Series("as measured", [each.confidence for each in bins], [each.accuracy for each in bins], is_line=False)
    claimed = Series("what is claimed", [0, 1], [0, 1])
    axis = Axis("probability of the answer", 0, 1, is_share=True)
    return chart("Reliability", axis, Axis("share that is right", 0, 1, is_share=True), [kept, claimed])


def _coverage(evaluated: Evaluated) -> Any:
    points = evaluated.result.scores.coverage
    line = Series("accuracy", [each.coverage for each in points], [each.accuracy for each in points])
    axis = Axis("share of the images that is answered", 0, 1, is_share=True)
    return chart("Accuracy over coverage", axis, Axis("accuracy", None, 1, is_share=True), [line])


def _front(result: CompareResult) -> Any:
    points = [(each.ms, each.accuracy.value, each.name) for each in result.models]
    front = sorted((each.ms, each.accuracy.value) for each in result.models if each.is_on_front)
    models = Series(
        "models", [ms for ms, _, _ in points], [share for _, share, _ in points], False, [name for *_, name in points]
    )
    line = Series("none is as accurate in less time", [ms for ms, _ in front], [share for _, share in front])
    return chart("Accuracy over time", Axis("milliseconds for an image"), _SHARE, [models, line])
