"""Templates to text: every page is made by `render`, which leaves no name of a file or class to be taken for HTML."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from edgecls import __version__
from edgecls.evaluate.page.pictures import heated, thumbnail
from edgecls.runs import write_json, write_text

PAGE: Final = "report.html"
FIGURES: Final = "report.json"

_ENVIRONMENT: Final = Environment(
    loader=PackageLoader("edgecls.evaluate.page"),
    autoescape=select_autoescape(["html.j2", "html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals.update(version=__version__, thumbnail=thumbnail, heated=heated)


def render(template: str, **context: Any) -> str:
    """A page or card as text that can be written as UTF-8, whatever bytes are in the names of files."""
    text = _ENVIRONMENT.get_template(template).render(today=date.today().isoformat(), **context)
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def write_page(out: Path, page: str, figures: dict[str, Any]) -> None:
    """Write a page, and its figures beside it.

    Raises:
        RunError: they cannot be written; what was there before is unchanged.
    """
    write_json(out / FIGURES, figures)
    write_text(out / PAGE, page)
