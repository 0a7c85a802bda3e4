"""A model that is opened twice on a CPU: for a picture that comes alone, and for many at a time."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from edgecls.images import Pixels
from edgecls.runtime.backends.protocol import Backend
from edgecls.runtime.stages import StageTimes


class LoneOrMany(Backend):
    """Takes the backend whose one lane has all threads for a picture that comes while no other inference runs.

    Lanes of one thread answer many pictures soonest, but one that comes alone would be answered by one core while the
    others idle. Both give the same answers; the second one costs its memory and the time to open it.
    """

    def __init__(self, many: Backend, lone: Backend, n_views: int) -> None:
        """Both are closed with this one.

        Args:
            many: with a lane for each thread; lone: the same file on the same engine, with one lane for all threads.
            n_views: images that one picture is at the most.
        """
        self.many, self.lone, self._n_views = many, lone, n_views
        self.manifest, self.name = many.manifest, many.name
        self.n_lanes, self.runs_in_caller = many.n_lanes, many.runs_in_caller
        self.wants_whole_batches = many.wants_whole_batches
        self._lock = threading.Lock()
        self._n_running = 0

    def infer(self, images: Pixels, times: StageTimes | None = None) -> NDArray[np.float32]:
        with self._lock:
            backend = self.lone if len(images) <= self._n_views and not self._n_running else self.many
            self._n_running += 1
        try:
            return backend.infer(images, times)
        finally:
            with self._lock:
                self._n_running -= 1

    def close(self) -> None:
        self.many.close()
        self.lone.close()


class _OneByOne(Backend):
    """Gives a backend one image at a time: its memory grows with the largest batch that it has seen."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.manifest, self.name, self.n_lanes = backend.manifest, backend.name, backend.n_lanes

    def infer(self, images: Pixels, times: StageTimes | None = None) -> NDArray[np.float32]:
        return np.concatenate([self._backend.infer(images[n : n + 1], times) for n in range(len(images))])

    def close(self) -> None:
        self._backend.close()


def lanes_of(backend: Backend) -> tuple[Backend, ...]:
    """The backends that answer in the place of one, as they are asked: all of them are to be proved."""
    return (backend.many, _OneByOne(backend.lone)) if isinstance(backend, LoneOrMany) else (backend,)
