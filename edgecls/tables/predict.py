"""What `edgecls predict` prints: the summary, the stages, the views, the members."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from edgecls.tables.common import facts_table, in_lines, percent, percent_or_none, with_errors, with_interval

if TYPE_CHECKING:
    from edgecls.runtime.predict import PredictReport
    from edgecls.runtime.tally import EnsembleReport, TtaReport


def predicted(report: PredictReport) -> list[Table | str]:
    """Facts and the time of every stage; what the views and the members did, where there are several."""
    stages = [_stages(report)] if report.stages else []
    different = report.drift.in_words() if report.drift else ""
    drift = [f"warning: these pictures differ from the validation images in {different}"] if different else []
    return [_prediction_facts(report), *stages, *_views(report.tta), *_members(report.ensemble), *drift]


def _prediction_facts(report: PredictReport) -> Table:
    facts = facts_table("Prediction")
    facts.add_row("images", with_errors(report.images, report.errors))
    if report.abstained:
        facts.add_row("abstained", f"{report.abstained:,} below --min-confidence")
    if report.resumed:
        facts.add_row("resumed", f"{report.resumed:,} rows were there already")
    if report.skipped:
        facts.add_row("skipped files", f"{report.skipped:,}, not named like an image or a tar file")
    if report.accuracy is not None:
        facts.add_row(
            "accuracy",
            f"{with_interval(report.accuracy, report.labelled)} of {report.labelled:,} answered with a known label",
        )
    facts.add_row("speed", f"{report.images_per_second:,.1f} img/s, {report.seconds:.2f} s in all")
    views = f", {report.n_views} views" if report.n_views > 1 else ""
    facts.add_row("model", f"{report.model}, {report.precision}, {report.backend}, batch {report.batch_size}{views}")
    facts.add_row("peak memory", f"{report.peak_memory_mb:,.0f} MB")
    facts.add_row("rows", "standard output" if report.out == "-" else report.out)
    return facts


def _stages(report: PredictReport) -> Table:
    stages = Table(title="Milliseconds per image", title_justify="left", caption_justify="left")
    stages.add_column("stage")
    for name in ("p50", "p90", "p99", "share"):
        stages.add_column(name, justify="right")
    for stage, summary in report.stages.items():
        stages.add_row(
            stage,
            f"{summary.p50_ms:.2f}",
            f"{summary.p90_ms:.2f}",
            f"{summary.p99_ms:.2f}",
            f"{100 * summary.share:.0f} %",
        )
    if report.bottleneck:
        stages.caption = f"bottleneck: {report.bottleneck}"
    return stages


def _views(tta: TtaReport | None) -> Iterator[Table | str]:
    if tta is None:
        return
    table = Table(title=f"Views, {tta.n:,} images with a known label", title_justify="left", box=box.SIMPLE)
    table.add_column("view")
    for name in ("top-1", "points gained", "fixed", "broken", "ms added"):
        table.add_column(name, justify="right")
    for view in (*tta.views, tta.all):
        is_plain = view is tta.views[0]
        if view is tta.all:
            table.add_section()
        compared = [f"{100 * view.gained:+.2f}", f"{view.fixed:,}", f"{view.broken:,}", f"{view.added_ms:.2f}"]
        table.add_row(view.name, percent(view.accuracy), *(["-"] * 4 if is_plain else compared))
    yield table
    yield f"test-time augmentation is {tta.verdict}"


def _members(ensemble: EnsembleReport | None) -> Iterator[Table | str]:
    if ensemble is None:
        return
    how = f"vote: {ensemble.vote}" + ("" if ensemble.vote == "soft" else f", ties to {ensemble.tie_break}")
    known = f", {ensemble.n:,} images with a known label" if ensemble.n else ""
    table = Table(title=f"Ensemble, {how}{known}", title_justify="left", box=box.SIMPLE)
    table.add_column("member", overflow="fold")
    table.add_column("precision", no_wrap=True)
    for name in ("M\nparams", "ms", "top-1", "alone\nright", "alone\nwrong"):
        table.add_column(name, justify="right", no_wrap=True)
    for member in ensemble.members:
        parameters = f"{member.parameters / 1e6:.2f}" if member.parameters else "-"
        judged = [percent_or_none(member.accuracy) or "-", f"{member.only_right:,}", f"{member.only_wrong:,}"]
        table.add_row(
            in_lines(member.name),
            member.precision,
            parameters,
            f"{member.infer_ms:.2f}",
            *(judged if ensemble.n else "---"),
        )
    table.add_section()
    n_parameters = [member.parameters for member in ensemble.members]
    whole = "-" if None in n_parameters else f"{sum(n or 0 for n in n_parameters) / 1e6:.2f}"
    table.add_row("all", "", whole, f"{ensemble.infer_ms:.2f}", percent_or_none(ensemble.accuracy) or "-", "", "")
    yield table
    if ensemble.subsets:
        yield "On the accuracy-latency front, where no other members are as good in less time:"
        yield _subsets(ensemble)


def _subsets(ensemble: EnsembleReport) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("voting", overflow="fold")
    table.add_column("ms", justify="right")
    table.add_column("top-1", justify="right")
    for subset in ensemble.subsets:
        if subset.is_on_front:
            table.add_row(" + ".join(subset.members), f"{subset.infer_ms:.2f}", percent(subset.accuracy))
    return table
