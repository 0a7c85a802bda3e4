"""Lines of the log, written by a thread of their own: a pipe that nobody reads must not hold up the answers."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from typing import Final

_STDERR: Final = 2
_MOST_WAITING: Final = 10_000  # lines; beyond them the oldest are dropped
_SECONDS: Final = 0.05  # between two writes: waking a thread for each line costs the answers a twentieth


class Log:
    """Standard error, one line after another."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_MOST_WAITING)
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Let a line be written; never waits and never fails."""
        self._lines.append(line)

    def _write(self) -> None:
        is_ending = False
        while not is_ending:
            is_ending = self._is_ending.wait(_SECONDS)
            n = len(self._lines)
            text = "".join(f"{self._lines.popleft()}\n" for _ in range(n))
            data = memoryview(text.encode(errors="replace"))
            # not through sys.stderr, whose lock a write that waits for ever would hold when the process ends
            with suppress(OSError):  # it was closed
                while data:
                    data = data[os.write(_STDERR, data) :]

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits, for as long as this at most."""
        self._is_ending.set()
        self._thread.join(seconds)
