"""What `edgecls plan`, `edgecls predict --plan` and `edgecls merge` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from edgecls.tables.common import facts_table, with_errors, with_interval

if TYPE_CHECKING:
    from edgecls.scale.merge import MergeResult
    from edgecls.scale.plan import PlanResult
    from edgecls.scale.run import ShardsReport

_SHOWN = 20  # numbers of shards in a line


def planned(result: PlanResult) -> Table:
    plan = result.plan
    facts = facts_table("Plan")
    facts.add_row("source", plan.source)
    facts.add_row("inputs", f"{plan.n_inputs:,}, {result.bytes / 1e6:,.0f} MB")
    if result.skipped:
        facts.add_row("skipped", f"{result.skipped:,} files that are not named like an image")
    facts.add_row("shards", f"{plan.n_shards:,} of up to {max(plan.counts):,} inputs")
    facts.add_row("time", f"{result.seconds:.1f} s")
    facts.add_row("plan", str(plan.folder))
    facts.add_row("next", f"edgecls predict --plan {plan.folder} --shard 0, and the others, here or elsewhere")
    return facts


def shards_done(report: ShardsReport) -> Table:
    facts = facts_table("Shards")
    facts.add_row("done", f"{len(report.done):,}: {_numbers(report.done)}" if report.done else "0")
    if report.passed_over:
        facts.add_row("passed over", f"{len(report.passed_over):,} that were done: {_numbers(report.passed_over)}")
    facts.add_row("images", with_errors(report.images, report.errors))
    if report.images:
        facts.add_row("speed", f"{report.images / report.seconds:,.1f} img/s, {report.seconds:.1f} s with the start")
    facts.add_row("next", f"edgecls merge {report.plan}")
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
    lines: list[Table | str] = [facts]
    if not result.again:
        return [*lines, "complete: every input has exactly one row, of one model and one plan"]
    lines += [f"shard {shard}: {reason}" for shard, reason in list(result.wrong.items())[:_SHOWN]]
    if result.missing:
        lines.append(f"shards without a part: {_numbers(result.missing)}")
    again = ",".join(map(str, result.again))
    return [*lines, f"not complete: run again with: edgecls predict --plan {result.plan} --shard {again}"]


def _numbers(shards: tuple[int, ...]) -> str:
    more = f" and {len(shards) - _SHOWN:,} more" if len(shards) > _SHOWN else ""
    return ", ".join(map(str, shards[:_SHOWN])) + more
