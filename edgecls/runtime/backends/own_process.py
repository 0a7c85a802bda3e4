"""A model that survives a fork: threads do not, and an engine that waits for its own waits for ever.

gunicorn --preload, multiprocessing on Linux and data loaders open a model once and fork. The child then opens its own
with the first picture.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import RunError
from edgecls.images import Pixels
from edgecls.runtime.backends.protocol import Backend, closed
from edgecls.runtime.stages import StageTimes


class OwnInEachProcess(Backend):
    """A backend that is opened again in a child process, by the same call."""

    def __init__(self, opened: Callable[[], Backend]) -> None:
        """Open the model here.

        Args:
            opened: opens the model; what it raises is raised here, and in a child by `infer`.
        """
        self._open_again = opened
        self._backend: Backend | None = opened()
        self.manifest, self.name = self._backend.manifest, self._backend.name
        self.n_lanes, self.runs_in_caller = self._backend.n_lanes, self._backend.runs_in_caller
        self.wants_whole_batches = self._backend.wants_whole_batches
        self._lock = threading.Lock()
        self._is_closed = False
        _OPEN.add(self)

    def infer(self, images: Pixels, times: StageTimes | None = None) -> NDArray[np.float32]:
        return (self._backend or self._of_this_process()).infer(images, times)

    def _of_this_process(self) -> Backend:
        with self._lock:
            if self._is_closed:
                raise closed()
            if self._backend is None:
                if not self.name.endswith("-cpu"):  # CUDA itself does not survive a fork
                    raise RunError(
                        f"this model was opened on {self.name} before the process forked, and a GPU cannot be used in "
                        "the child: open it in each process, or start them with multiprocessing's `spawn`"
                    )
                self._backend = self._open_again()
            return self._backend

    def leave_to_parent(self) -> None:
        """Called in a child: forget the model without closing it, which would wait for threads of the parent."""
        if self._backend is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._backend))  # nor at the end of the child
        self._backend, self._lock = None, threading.Lock()  # whoever held the old lock is not here

    def close(self) -> None:
        self._is_closed = True
        if self._backend is not None:
            self._backend.close()


_OPEN: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for backend in list(_OPEN):
        backend.leave_to_parent()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_leave_all_to_parent)
