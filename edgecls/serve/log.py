"""Lines of the log, written by a thread of their own: a pipe that nobody reads must not hold up the answers."""

from __future__ import annotations

import os
import queue
import threading
from contextlib import suppress
from typing import Final

_STDERR: Final = 2
_MOST_WAITING: Final = 10_000  # lines; what comes beyond them is dropped


class Log:
    """Standard error, one line after another."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Let a line be written; never waits and never fails."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            # not through sys.stderr, whose lock a write that waits for ever would hold when the process ends
            with suppress(OSError):  # it was closed
                os.write(_STDERR, f"{line}\n".encode(errors="replace"))

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits, for as long as this at most."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(seconds)
