"""One bounded queue of pictures, and workers that take what waits as batches through the pipeline of `runtime/`.

A worker that is free takes at once whatever waits, up to a batch: under load batches fill while the others work, and a
single client never waits for company (unless `max_wait_ms` asks for it). Decoding happens in the workers too, so that
all cores are busy as in `predict`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgecls.runtime.classifier import Classifier
from edgecls.runtime.pipeline import Answered, BatchWorker, Frame, Picture, Source
from edgecls.runtime.prediction import Prediction
from edgecls.runtime.stages import STAGES, Stage, StageTimes

_SIDE: Final = (
    64  # pixels of the picture that each worker answers before the first request: that takes ten times as long
)


class QueueFull(Exception):
    """No room for a request's pictures; it may come again."""


class Expired(Exception):
    """A picture waited longer than its request allowed, and was not looked at."""


@dataclass(frozen=True)
class Answer:
    """What is said of one picture.

    Attributes:
        prediction: with its status and, for an error, the reason.
        probabilities: (n_classes,) in the order of the labels, of several members their mean; None for an error.
        waited_ms: in the queue.
        stages_ms: by stage, of its batch the mean of a picture.
    """

    prediction: Prediction
    probabilities: NDArray[np.floating[Any]] | None
    waited_ms: float
    stages_ms: Mapping[Stage, float]


class Asked:
    """The pictures of one request on their way; made and awaited in an event loop.

    Attributes:
        answers: in the order of the pictures, once all of them have theirs; whoever no longer wants them cancels it,
            and what was not begun is passed over.
    """

    def __init__(self, n_pictures: int, arrived: float, expires: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.answers: asyncio.Future[list[Answer]] = self.loop.create_future()
        self.arrived, self.expires = arrived, expires
        self.found: list[Answer | None] = [None] * n_pictures
        self.n_left = n_pictures

    def take(self) -> None:
        """Hand over the answers, or `Expired`; in the event loop."""
        if self.answers.done():
            return
        if self.n_left:
            self.answers.set_exception(Expired())
        else:
            self.answers.set_result([each for each in self.found if each is not None])

    def fail(self, error: Exception) -> None:
        """Hand over what an engine raised; in the event loop."""
        if not self.answers.done():
            self.answers.set_exception(error)


@dataclass(frozen=True)
class _Waiting:
    """One picture in the queue: picture number `index` of a request."""

    source: Source
    asked: Asked
    index: int


@dataclass(frozen=True)
class Batch:
    """What a worker has just done, for whoever counts.

    Attributes:
        answered: its pictures; waited_ms: of each, in the queue.
        stages_ms: by stage, the mean of a picture.
        predictions: one for each picture.
    """

    answered: Answered
    waited_ms: tuple[float, ...]
    stages_ms: Mapping[Stage, float]
    predictions: tuple[Prediction, ...]


class Batcher:
    """The queue and its workers, which have answered one picture each before it is made.

    Use it in a `with` block, whose end answers what was accepted and ends the workers.

    Args:
        capacity: pictures that may wait.
        max_wait_ms: how long the first of a batch waits for others.
        on_batch: called in the event loop after every batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        capacity: int,
        max_wait_ms: float = 0.0,
        top_k: int = 1,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._classifier, self._top_k, self._on_batch = classifier, top_k, on_batch
        self._capacity, self._max_wait = capacity, max_wait_ms / 1000
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._collecting = threading.Lock()  # one worker at a time gathers a batch
        self._delivering = threading.Lock()
        self._closing = False
        warm = threading.Barrier(classifier.n_workers + 1)
        self._threads = [
            threading.Thread(target=self._work, args=(warm,), name=f"batch-{number}", daemon=True)
            for number in range(classifier.n_workers)
        ]
        for thread in self._threads:
            thread.start()
        warm.wait()

    @property
    def n_waiting(self) -> int:
        return len(self._queue)

    def submit(self, pictures: Sequence[Picture], timeout: float) -> Asked:
        """Let pictures wait for their answers: all of them, or none. Called in an event loop.

        Args:
            timeout: seconds after which those that still wait are passed over.

        Raises:
            QueueFull: there is no room for them, or the end has begun.
        """
        now = time.perf_counter()
        asked = Asked(len(pictures), now, now + timeout)
        with self._changed:
            if self._closing or len(self._queue) + len(pictures) > self._capacity:
                raise QueueFull
            self._queue.extend(_Waiting(Source.of(each), asked, index) for index, each in enumerate(pictures))
            self._changed.notify()
        return asked

    def _work(self, warm: threading.Barrier) -> None:
        times = StageTimes()
        worker = self._classifier.worker(times)
        size = worker.size
        with suppress(Exception):  # whatever an engine raises, the requests will be told
            worker.answer([Source.of(Frame("", np.zeros((_SIDE, _SIDE, 3), np.uint8)))])
        times.clear()
        warm.wait()
        while True:
            with self._collecting:
                batch = self._next(size)
            if batch is None:
                return
            if batch:
                self._answer(batch, worker, times)
                times.clear()

    def _next(self, size: int) -> list[_Waiting] | None:
        """The next pictures whose answer is still wanted, perhaps none of them; None at the end."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                self._changed.wait()
            deadline = self._queue[0].asked.arrived + self._max_wait
            while len(self._queue) < size and not self._closing and (left := deadline - time.perf_counter()) > 0:
                self._changed.wait(left)
            taken = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
        now, wanted = time.perf_counter(), []
        for each in taken:
            if each.asked.answers.done():
                continue
            if each.asked.expires < now:
                _call(each.asked.loop, [each.asked.take])
            else:
                wanted.append(each)
        return wanted

    def _answer(self, batch: Sequence[_Waiting], worker: BatchWorker, times: StageTimes) -> None:
        started = time.perf_counter()
        try:
            answered = worker.answer([each.source for each in batch])
            predictions = self._classifier.predictions(answered, self._top_k)
            rows = iter(self._classifier.mean_probabilities(answered))
            stages = {stage: mean for stage in STAGES if (mean := times.mean_ms(stage))}
            waited = tuple(1000 * (started - each.asked.arrived) for each in batch)
            answers = [
                Answer(prediction, None if reason else next(rows), ms, stages)
                for prediction, reason, ms in zip(predictions, answered.reasons, waited, strict=True)
            ]
        except Exception as error:  # whatever an engine raises: every one that waits must hear of it
            for asked in {each.asked for each in batch}:
                _call(asked.loop, [partial(asked.fail, error)])
            return
        done = []
        with self._delivering:  # the pictures of one request may be in two batches
            for each, answer in zip(batch, answers, strict=True):
                each.asked.found[each.index] = answer
                each.asked.n_left -= 1
                if not each.asked.n_left:
                    done.append(each.asked)
        # all in one call, since each wakes the event loop; counting comes behind what the requests do with their
        # answers: here it would hold the interpreter while they are to be sent
        counted = partial(self._on_batch, Batch(answered, waited, stages, tuple(predictions)))
        loop = batch[0].asked.loop
        _call(loop, [*(each.take for each in done), partial(loop.call_soon, counted)])

    def close(self) -> None:
        """Accept nothing more, answer what was accepted, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _call(loop: asyncio.AbstractEventLoop, calls: Sequence[Callable[[], object]]) -> None:
    """Let an event loop make some calls, from another thread; one that has ended has nobody left who waits."""

    def call() -> None:
        for each in calls:
            each()

    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
