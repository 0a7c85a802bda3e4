"""Templates to text: every page is made by `render`, which leaves no name of a file or class to be taken for HTML."""

from __future__ import annotations

from datetime import date
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from edgecls import __version__
from edgecls.evaluate.page.pictures import heated, thumbnail

PAGE: Final = "report.html"

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
