"""What `edgecls inspect` prints: what is wrong first, then what the data are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from edgecls.tables.common import facts_table

if TYPE_CHECKING:
    from edgecls.evaluate.look.duplicates import Pair
    from edgecls.evaluate.look.inspect import InspectResult, Spread

_MOST: Final = 10  # of a kind of finding; the page and report.json have all
_MOST_CLASSES: Final = 20


def inspected(result: InspectResult) -> Iterator[Table | Text | str]:
    """Findings in whole sentences, the gravest first; a table of facts; where the page is."""
    if result.leaks:
        if result.n_leaked:
            told = f"{_count(result.n_leaked, 'picture')} of val and test with a copy among the training images."
            yield Text.assemble((told, "bold"), " Figures that are measured on them flatter.")
        else:
            yield Text(f"{_count(len(result.leaks), 'picture')} in val and in test.", style="bold")
        yield from _pairs(result.leaks, result)
    if result.conflicts:
        yield Text(f"{_count(len(result.conflicts), 'pair')} of copies with two labels.", style="bold")
        yield from _pairs(result.conflicts, result)
    if result.unreadable:
        yield Text(f"{_count(len(result.unreadable), 'file')} that cannot be read.", style="bold")
        yield from _some([f"{_below(each.path, result)}: {each.reason}" for each in result.unreadable])
    if result.is_sound:
        yield "No picture is in two splits or under two labels, and every file can be read."
    if result.empty:
        yield f"{_count(len(result.empty), 'class folder')} without a picture: {', '.join(result.empty[:5])}"
    yield from (f"{folder}: {reason}" for folder, reason in result.closed.items())
    others = len(result.pairs) - len({*result.leaks, *result.conflicts})
    if others:
        yield f"{_count(others, 'picture')} more than once in the same split."
    if result.odd:
        yield f"{_count(len(result.odd), 'picture')} unlike the others of the class:"
        yield from _some([f"{_below(each.path, result)}: {each.reason}" for each in result.odd])
    if result.doubts is not None:
        yield f"{_count(len(result.doubts), 'label')} that the model doubts:"
        yield from _some([
            f"{_below(each.path, result)}: {each.label}, or rather {each.answer}? ({100 * each.probability:.1f} %)"
            for each in result.doubts
        ])  # fmt: skip
    yield _facts(result)
    yield from (f"note: {note}" for note in result.notes)
    yield f"page: {result.out / 'report.html'}"


def _pairs(pairs: Sequence[Pair], result: InspectResult) -> Iterator[str]:
    yield from _some([
        f"{_below(each.path, result)} and {_below(each.other, result)}: {each.kind}"
        + (f", {each.label} and {each.other_label}" if each.is_conflict else "")
        for each in pairs
    ])  # fmt: skip


def _some(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:_MOST])
    if len(lines) > _MOST:
        yield f"  and {len(lines) - _MOST:,} more; the page shows them"


def _below(path: Path, result: InspectResult) -> str:
    root = Path(result.data).absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _facts(result: InspectResult) -> Table:
    facts = facts_table("Data")
    facts.add_row("pictures", f"{result.n:,}, {result.n_bytes / 1e6:,.1f} MB")
    splits = {name: sum(getattr(each, name) for each in result.classes) for name in ("train", "val", "test")}
    facts.add_row("splits", ", ".join(f"{n:,} {name}" for name, n in splits.items() if n))
    shown = result.classes[:_MOST_CLASSES]
    more = f" and {len(result.classes) - len(shown):,} more" if len(result.classes) > len(shown) else ""
    counts = ", ".join(f"{each.label} {each.train + each.val + each.test:,}" for each in shown)
    facts.add_row("classes", f"{len(result.classes):,}: {counts}{more}")
    for name, spread, unit in (("height", result.height, " px"), ("width", result.width, " px")):
        if spread:
            facts.add_row(name, _spread(spread, unit))
    if result.aspect:
        facts.add_row("longer side / shorter", f"{result.aspect.low:.2f} to {result.aspect.high:.2f}")
    facts.add_row("formats", ", ".join(f"{n:,} {name}" for name, n in result.formats.items()))
    if result.grey:
        facts.add_row("without colours", f"{result.grey:,}")
    for effect in result.effects:
        facts.add_row(_count(effect.n, "picture"), f"{'is' if effect.n == 1 else 'are'} {effect.words}")
    if result.unused:
        facts.add_row("not used", f"{result.unused:,} files of no class, or not named like a picture")
    facts.add_row("time", f"{result.seconds:.1f} s")
    return facts


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _spread(spread: Spread, unit: str) -> str:
    return f"{spread.low:,.0f} to {spread.high:,.0f}{unit}, median {spread.median:,.0f}"
