"""Who is told how far an export is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Who wants to know how far an export is; each does nothing unless given.

    Attributes:
        on_step: called with a line before each step.
        on_pass: called with a title and a number of images before they are run.
        on_images: called with how many of them are done since the last call.
    """

    on_step: Callable[[str], None] = lambda line: None
    on_pass: Callable[[str, int], None] = lambda title, n: None
    on_images: Callable[[int], None] = lambda n: None
