"""The page of a look at a data set. It loads nothing that only figures of a model need: 150 MB and a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgecls.evaluate.look.inspect import InspectResult
from edgecls.evaluate.page.render import render, write_page

_MOST_SHOWN: Final = 60  # pictures of each kind of finding


def write_inspection(result: InspectResult) -> None:
    """Write the page and its figures as JSON.

    Raises:
        RunError: they cannot be written; what was there before is unchanged.
    """
    pairs = {
        "In two splits": result.leaks,
        "Under two labels": [pair for pair in result.conflicts if not pair.is_leak],
        "Twice in one split": [pair for pair in result.pairs if not (pair.is_leak or pair.is_conflict)],
    }
    page = render("inspection.html.j2", result=result, pairs=pairs, most=_MOST_SHOWN)
    write_page(result.out, page, _json_values(result.to_json()))


def _json_values(value: Any) -> Any:
    """The same with paths as text."""
    if isinstance(value, dict):
        return {key: _json_values(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(each) for each in value]
    return str(value) if isinstance(value, Path) else value
