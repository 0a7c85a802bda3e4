"""What `edgecls plan`, `edgecls predict --plan` and `edgecls merge` print."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.table import Table

from edgecls.errors import some
from edgecls.scale.parts import in_ranges
from edgecls.tables.common import facts_table, with_errors, with_interval

if TYPE_CHECKING:
    from edgecls.scale.merge import MergeResult
    from edgecls.scale.plan import PlanResult
    from edgecls.scale.run import ShardsReport

_SHOWN = 20  # numbers of shards, or ranges of them, in a line
_MOST_REASONS = 5


def planned(result: PlanResult) -> Table:
    plan = result.plan
    facts = facts_table("Plan")
    facts.add_row("source", plan.source)
    facts.add_row("inputs", f"{plan.n_inputs:,}, {result.bytes / 1e6:,.0f} MB")
    if result.skipped:
        facts.add_row("skipped files", f"{result.skipped:,}, not named like an image or a tar file")
    facts.add_row("shards", f"{plan.n_shards:,} of up to {max(plan.counts):,} inputs")
    if result.unreadable:
        facts.add_row("unreadable", f"{result.unreadable:,} inputs, whose rows will say why")
    facts.add_row("time", f"{result.seconds:.1f} s")
    facts.add_row("plan", plan.folder.place)
    facts.add_row("next", f"{_worker(plan.folder.place)} --shard 0, and the others, here or elsewhere")
    return facts


def shards_done(report: ShardsReport) -> Table:
    facts = facts_table("Shards")
    facts.add_row("done", f"{len(report.done):,}: {_shown(report.done)}" if report.done else "0")
    if report.passed_over:
        facts.add_row("passed over", f"{len(report.passed_over):,} that were done: {_shown(report.passed_over)}")
    facts.add_row("images", f"{report.images:,}")
    if report.errors:
        facts.add_row("unreadable", f"{report.errors:,} of all of these shards; their rows say why")
    if report.images:
        facts.add_row("speed", f"{report.images / report.seconds:,.1f} img/s, {report.seconds:.1f} s with the start")
    left = (
        f"{report.left:,} of the plan's shards without a part"
        if report.left
        else f"edgecls merge {shlex.quote(report.plan)}"
    )
    facts.add_row("left" if report.left else "next", left)
    return facts


def merged(result: MergeResult) -> list[Table | str]:
    facts = facts_table("Merge")
    facts.add_row("inputs", f"{result.inputs:,}")
    facts.add_row("rows", with_errors(result.images, result.errors))
    if result.abstained:
        facts.add_row("abstained", f"{result.abstained:,} below --min-confidence")
    if result.accuracy is not None:
        facts.add_row(
            "accuracy",
            f"{with_interval(result.accuracy, result.labelled)} of {result.labelled:,} answered with a known label",
        )
    facts.add_row("time", f"{result.worker_seconds:,.1f} s of all workers together")
    if result.backends:
        differ = "; a picture between two labels may depend on which" if len(result.backends) > 1 else ""
        facts.add_row("answered by", f"{' and '.join(result.backends)}{differ}")
    if result.out:
        facts.add_row("file", result.out)
    if result.with_errors:
        facts.add_row("unreadable in", f"shards {_shown(result.with_errors)}; to try them again add --redo-errors")
    lines: list[Table | str] = [facts]
    if result.others:
        named = some(result.others, 5)
        lines.append(
            f"warning: {named}: called like parts and none of this plan's; whoever reads all parts reads them too"
        )
    if result.note:
        lines.append(f"warning: {result.note}")
    if not result.again:
        return [*lines, "complete: every input has exactly one row, of one model and one plan"]
    lines += [f"shard {shard}: {reason}" for shard, reason in list(result.wrong.items())[:_MOST_REASONS]]
    if len(result.wrong) > _MOST_REASONS:
        lines.append(f"and {len(result.wrong) - _MOST_REASONS:,} more shards with such parts; summary.json names them")
    if result.missing:
        lines.append(f"shards without a part: {len(result.missing):,}: {_shown(result.missing)}")
    first = "remove the parts named above, then run" if result.wrong else "run"
    again = f"{_worker(result.plan)} --model MODEL --shard {in_ranges(result.again)}"
    return [*lines, f"not complete: {first} again with: {again}"]


def _worker(plan: str) -> str:
    return f"edgecls predict --plan {shlex.quote(plan)}"


def _shown(shards: tuple[int, ...]) -> str:
    """Numbers with ranges, of many the first ones."""
    numbers = in_ranges(shards).split(",")
    more = ", ..." if len(numbers) > _SHOWN else ""
    return ", ".join(numbers[:_SHOWN]) + more
