"""What `edgecls evaluate` and `compare` print: the figures that matter, and where the page is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from edgecls.evaluate.runs_table import RunsResult
from edgecls.tables.common import facts_table, in_lines, percent, percent_or_none

if TYPE_CHECKING:
    from edgecls.evaluate.compare import Compared, CompareResult
    from edgecls.evaluate.evaluate import EvaluateResult
    from edgecls.metrics import Figure

_MOST_CLASSES = 10  # the worst of them
_SIGNIFICANT = 0.05


def evaluated(result: EvaluateResult) -> Iterator[Table | str]:
    """Figures with intervals, the classes of the lowest recall, slices that are worse, robustness."""
    yield _figures(result)
    yield _classes(result)
    worse = [each for each in result.slices if each.is_worse]
    if worse:
        yield "Less accurate than on average, by more than chance:"
        for each in worse:
            yield f"  {each.by} {each.value}: {_with_interval(each.accuracy)} of {each.n:,}"
    if result.robustness:
        yield _robustness(result)
    yield from (f"note: {note}" for note in result.notes)
    yield from (f"failed: {each.condition}, it is {each.value:.4g}" for each in result.failed)
    yield f"page: {result.out / 'report.html'}"


def _figures(result: EvaluateResult) -> Table:
    scores = result.scores
    facts = facts_table("Evaluation")
    facts.add_row("images", f"{scores.n:,} ({result.data})")
    if result.unreadable:
        facts.add_row("left out", f"{len(result.unreadable):,} that cannot be read")
    names = {
        "accuracy": "accuracy", "top5": "among the first five", "balanced-accuracy": "balanced accuracy",
        "precision": "precision", "f1": "F1", "calibration-error": "calibration error",
    }  # fmt: skip
    for name, title in names.items():
        if figure := scores.figures()[name]:
            facts.add_row(title, _with_interval(figure))
    loss = scores.log_loss
    facts.add_row("log loss", f"{loss.value:.4f} ({loss.low:.3f} to {loss.high:.3f})")
    if point := scores.threshold:
        facts.add_row(
            f"{percent(scores.target)} right",
            f"of the answers with a probability of {point.threshold:.3f} or more: {percent(point.coverage)} of all",
        )
    facts.add_row("model", f"{result.network}, {result.precision}, {result.backend}, {result.ms:.2f} ms an image")
    return facts


def _classes(result: EvaluateResult) -> Table:
    present = [each for each in result.scores.classes if each.recall]
    worst = sorted(present, key=lambda each: each.recall.value if each.recall else 0)[:_MOST_CLASSES]
    title = "Classes" if len(present) <= _MOST_CLASSES else f"The {len(worst)} classes of the lowest recall"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("class", overflow="fold")
    for name in ("images", "precision", "recall", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in worst:
        precision = percent(each.precision.value) if each.precision else "-"
        recall = percent(each.recall.value) if each.recall else "-"
        table.add_row(each.label, f"{each.support:,}", precision, recall, percent(each.f1))
    return table


def _robustness(result: EvaluateResult) -> Table:
    table = Table(title="Robustness", title_justify="left", box=box.SIMPLE)
    for name in ("damage", "strength"):
        table.add_column(name)
    for name in ("accuracy", "same answer"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in result.robustness:
        table.add_row(each.kind, each.strength, percent(each.accuracy.value), percent(each.kept))
    return table


def compared(result: CompareResult | RunsResult, out: Path) -> Iterator[Table | str]:
    """One line for each model; who is better by more than chance."""
    if isinstance(result, RunsResult):
        yield _runs(result)
    else:
        yield _models(result)
        yield from (_in_words(each, result.best) for each in result.models if each.difference)
        yield from (f"note: {note}" for note in result.notes)
        if result.unreadable:
            yield f"{len(result.unreadable):,} images cannot be read, and are in no figure"
    yield f"page: {out / 'report.html'}"


def _models(result: CompareResult) -> Table:
    table = Table(title=f"{result.n:,} images ({result.data})", title_justify="left", box=box.SIMPLE)
    table.add_column("model", overflow="fold")
    for name in ("M\nparams", "loss", "accuracy", "alone\nright", "alone\nwrong", "ms"):
        table.add_column(name, justify="right")
    for each in result.models:
        parameters = f"{each.cost.parameters / 1e6:.2f}" if each.cost.parameters else "?"
        best = " (best)" if each.name == result.best else ""
        table.add_row(
            in_lines(f"{each.name}{best}"), parameters, f"{each.loss.value:.3f}", percent(each.accuracy.value),
            f"{each.unique_correct:,}", f"{each.unique_errors:,}", f"{each.ms:.2f}",
        )  # fmt: skip
    return table


def _in_words(model: Compared, best: str) -> str:
    assert model.difference is not None
    assert model.p_value is not None
    low, high = (100 * each for each in model.difference.drop_interval)
    verdict = "is less accurate than" if model.p_value < _SIGNIFICANT else "may be as accurate as"
    return (
        f"{model.name} {verdict} {best}: {100 * model.difference.drop:.2f} points below it ({low:.2f} to {high:.2f}), "
        f"p = {model.p_value:.2g}"
    )


def _runs(result: RunsResult) -> Table:
    table = Table(title=f"Runs in {result.folder}", title_justify="left", box=box.SIMPLE)
    for name in ("run", "network"):
        table.add_column(name, overflow="fold")
    for name in ("M\nparams", "val.\nloss", "validation", "test", "s"):
        table.add_column(name, justify="right")
    for each in result.runs:
        if each.reason:
            table.add_row(in_lines(each.name), each.reason)
            continue
        table.add_row(
            in_lines(each.name), in_lines(each.model), f"{each.parameters / 1e6:.2f}" if each.parameters else "?",
            "?" if each.validation_loss is None else f"{each.validation_loss:.3f}",
            percent_or_none(each.validation_accuracy) or "?", percent_or_none(each.test_accuracy) or "-",
            f"{each.train_seconds:.0f}" if each.train_seconds else "?",
        )  # fmt: skip
    return table


def _with_interval(figure: Figure) -> str:
    return f"{percent(figure.value)} ({100 * figure.low:.1f} to {100 * figure.high:.1f})"
