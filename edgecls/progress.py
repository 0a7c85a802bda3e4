"""Who is told how far a command is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Who wants to know how far a command is; each does nothing unless given.

    Attributes:
        on_step: called with a line before a step that takes time.
        on_pass: called with a title and a number of images before they are run; None where their number is not known,
            as of a stream.
        on_images: called with how many of them are done since the last call.
    """

    on_step: Callable[[str], None] = lambda line: None
    on_pass: Callable[[str, int | None], None] = lambda title, n: None
    on_images: Callable[[int], None] = lambda n: None
