"""Pictures to answers at the speed of the machine: read, decode, resize and infer, with all cores on it.

A few workers each take a batch the whole way, from the files to the probabilities, in a buffer of their own. On a CPU
a worker infers with one thread, so that no core waits for another: faster than decoding threads in front of an
inference with all cores (benchmarks/pipeline_layouts.py compares them). On a GPU, whose inferences take turns, the
other workers load meanwhile, which is the classic pipeline. OpenCV and the engines release the interpreter lock.

Small pictures are loaded by one worker at a time, while the others infer: see `_LoadingTurns`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls import images
from edgecls.errors import ImageError
from edgecls.images import Decoded, Pixels
from edgecls.manifest import Preprocessing
from edgecls.prefetch import batches, prefetch
from edgecls.runtime.backends.protocol import Backend
from edgecls.runtime.options import TtaOptions
from edgecls.runtime.stages import LOADING, Stage, StageTimes
from edgecls.runtime.views import View, combined, views_of
from edgecls.runtime.votes import Floats

_GRID: Final = 16
_INFERENCES_A_BATCH: Final = 8  # of small pictures, where they have no more than
_BATCH_PIXELS: Final = 3_300_000  # (10 MB for each worker), and take no longer than
_BATCH_SECONDS: Final = 0.2  # since Ctrl-C waits for it, and a kill loses it
_BATCH_BYTES: Final = 4_000_000  # of files that are in memory already
_SHARES: Final = 2  # batches that each worker still gets, at the least, before they become smaller
_SMALL_CPU_SECONDS: Final = 150e-6  # to load a picture; from there on two threads at once are no slower than one
_SMALL_SECONDS: Final = 400e-6  # by the clock, where a convoy takes 350; beyond it the disk is waited for


@dataclass(frozen=True)
class Frame:
    """A picture that is decoded already, of a video or of the caller.

    Attributes:
        name: what its row calls it.
        pixels: (h, w, 3) uint8, RGB.
    """

    name: str
    pixels: Pixels


@dataclass(frozen=True)
class Encoded:
    """A picture's file that is in memory already, as a request brings it.

    Attributes:
        name: what its row calls it.
        data: the whole file, JPEG or whatever else is read.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Unreadable:
    """An input of which it is known already that it cannot be read: it still gets its row.

    Attributes:
        name: what its row calls it.
        reason: why.
    """

    name: str
    reason: str


Seconds = dict[Stage, list[float]]  # of single pictures, by stage
Picture = str | Path | Frame | Encoded | Unreadable


@dataclass(frozen=True)
class Source:
    """One input, from where it was found to its row.

    Attributes:
        picture: the file, the frame of a video, a file in memory, or why there is nothing to read.
        name: what its row calls it: as given; for a folder that is the only source, the path below it.
        truth: its label where known, else None.
    """

    picture: Picture
    name: str
    truth: str | None = None

    @classmethod
    def of(cls, picture: Picture) -> Source:
        """A picture that is called as it calls itself."""
        return cls(picture, str(picture) if isinstance(picture, str | Path) else picture.name)


@dataclass(frozen=True)
class Member:
    """One opened model, with the views that it looks at; `file` is where it came from."""

    backend: Backend
    tta: TtaOptions
    views: tuple[View, ...]
    file: Path | None = None

    @classmethod
    def of(cls, backend: Backend, tta: TtaOptions, file: Path | None = None) -> Member:
        return cls(backend, tta, views_of(tta, backend.manifest.preprocessing), file)

    @property
    def kind(self) -> tuple[Preprocessing, tuple[View, ...]]:
        """What decides about its pixels."""
        return self.backend.manifest.preprocessing, self.views


@dataclass(frozen=True)
class MemberAnswers:
    """What one member says of a batch.

    Attributes:
        probabilities: (n, n_classes), the views combined.
        view_answers: (n, n_views) label index by view; the first is the plain view.
        seconds: of inference.
    """

    probabilities: Floats
    view_answers: NDArray[np.int64]
    seconds: float


@dataclass(frozen=True)
class Answered:
    """A batch on its way out.

    Attributes:
        sources: as they came, in their order.
        reasons: one for each source; empty where it was answered.
        members: of each member the answers to the n sources without a reason, in their order.
        brightness: (n,) mean of each of these pictures as the first member sees it, 0 to 255, taken from a grid.
        sides: (n,) geometric mean of the sides of each as its file has them, in pixels.
    """

    sources: Sequence[Source]
    reasons: tuple[str, ...]
    members: tuple[MemberAnswers, ...]
    brightness: NDArray[np.float64]
    sides: NDArray[np.float64]


def answers(
    members: Sequence[Member],
    sources: Iterable[Source],
    *,
    batch_size: int,
    n_workers: int,
    times: StageTimes,
    n_sources: int | None = None,
    is_live: bool = False,
) -> Iterator[Answered]:
    """Answer every source, in order, `n_workers` batches at a time.

    Each file is read once for all members and views, and decoded once for those that take it at one scale. Results wait
    for their turn, two batches a worker at most, so memory does not grow with the number of sources.

    Args:
        sources: drawn lazily, so they may be a stream.
        batch_size: images an inference, views counted; one picture with all its views at the least.
        n_sources: how many there are, where that is known: a few are dealt out to all workers, and many small ones in
            larger batches.
        is_live: answer each picture before the next one is waited for, as a camera wants it.
    """
    n_views = max(len(member.views) for member in members)
    size = 1 if is_live else max(1, batch_size // n_views)
    if n_sources is not None:
        size = max(1, min(size, -(-n_sources // n_workers)))
    if is_live or n_sources is None or any(member.backend.wants_whole_batches for member in members):
        worker = BatchWorker(members, size, times)
        dealt = batches(sources, size)
    else:
        kinds = {member.kind for member in members}
        pixels = size * sum(len(views) * math.prod(own.size_hw) for own, views in kinds)
        worker = BatchWorker(members, size, times, max(1, min(_INFERENCES_A_BATCH, _BATCH_PIXELS // pixels)))
        dealt = worker.deal(sources, n_sources, n_workers)
    ahead = 1 if is_live else 2 * n_workers
    return prefetch(worker.answer, dealt, n_threads=n_workers, ahead=ahead)


class BatchWorker:
    """Takes batches the whole way; called from several threads, each with buffers of its own."""

    def __init__(self, members: Sequence[Member], size: int, times: StageTimes, most_inferences: int = 1) -> None:
        """Make the plan; buffers come with the first batch of a thread.

        Args:
            size: most pictures of an inference.
            most_inferences: that a batch is answered by.
        """
        self._members, self.size, self._times = members, size, times
        self._most_inferences = most_inferences
        # members with the same pixels share them
        self._kinds = list(dict.fromkeys(member.kind for member in members))
        self._kind_of = [self._kinds.index(member.kind) for member in members]
        self._targets = [_closest(own, views) for own, views in self._kinds]
        self._of_thread = threading.local()
        self._turns = _LoadingTurns()
        self._seconds = math.inf  # that a picture of the last batch took

    def _buffers(self) -> list[Pixels]:
        """For each kind (n, n_views, h, w, 3) uint8, made once a thread: fresh memory is dear, page by page."""
        found: list[Pixels] | None = getattr(self._of_thread, "buffers", None)
        if found is None:
            n = self.size * self._most_inferences
            found = [np.empty((n, len(v), *own.size_hw, 3), np.uint8) for own, v in self._kinds]
            self._of_thread.buffers = found
        return found

    def deal(self, sources: Iterable[Source], n_sources: int, n_workers: int) -> Iterator[list[Source]]:
        """Batches for some workers: of one inference each while pictures are large, so that they are soon answered.

        Small files come in larger batches. A worker that turns from inference to loading finds its core's caches full
        of the network: 48 pictures of 32 pixels take 74 microseconds each behind an inference, 384 take 64. Frames do
        not, nor what comes slowly. Towards the end batches become smaller again, so that no worker waits long for the
        last one, but not smaller than one inference: OpenVINO plans anew for every size.
        """
        remaining, n_left = iter(sources), n_sources
        while batch := list(islice(remaining, self.size)):
            n_more = self.size * (self._n_inferences(n_left, n_workers) - 1)
            ends, n_bytes = time.perf_counter() + _BATCH_SECONDS, sum(map(_bytes_held, batch))
            while n_more and n_bytes < _BATCH_BYTES and time.perf_counter() < ends:
                if (more := next(remaining, None)) is None:
                    break
                batch.append(more)
                n_more, n_bytes = n_more - 1, n_bytes + _bytes_held(more)
            n_left -= len(batch)
            yield batch

    def _n_inferences(self, n_left: int, n_workers: int) -> int:
        if not self._turns.are_known_small:
            return 1
        fair = n_left // (_SHARES * n_workers * self.size)
        soon = int(_BATCH_SECONDS / (self.size * self._seconds))
        return max(1, min(self._most_inferences, fair, soon))

    def answer(self, sources: Sequence[Source]) -> Answered:
        """Every source read, decoded and answered: as many as one batch may have, at most."""
        buffers = self._buffers()
        with self._turns.for_pictures(len(sources)):
            started = time.perf_counter()
            reasons, sides = self._load_all(sources, buffers)
        n = len(sides)
        times = StageTimes()  # of all members, and of all views: an image is one image, however often it is looked at
        members = [
            self._infer(member, buffers[kind], n, times)
            for member, kind in zip(self._members, self._kind_of, strict=True)
        ]
        if n:
            self._times.add_all(times, n)
        self._seconds = (time.perf_counter() - started) / max(len(sources), 1)
        return Answered(sources, tuple(reasons), tuple(members), _brightness(buffers[0][:n, 0]), np.array(sides, float))

    def _load_all(self, sources: Sequence[Source], buffers: Sequence[Pixels]) -> tuple[list[str], list[float]]:
        """Those that can be loaded, one behind the other from the first row on.

        Returns:
            why not, or nothing, of each source; the mean side of each that was loaded.
        """
        reasons: list[str] = []
        sides: list[float] = []
        seconds: Seconds = {stage: [] for stage in LOADING}
        for source in sources:
            try:
                height, width = self._load(source.picture, [buffer[len(sides)] for buffer in buffers], seconds)
                reasons.append("")
                sides.append(math.sqrt(height * width))
            except ImageError as error:
                reasons.append(error.reason)
            except MemoryError:
                reasons.append("answering it needs more memory than this process can get")
        self._times.add_each(seconds)
        return reasons, sides

    def _load(self, picture: Picture, into: Sequence[Pixels], seconds: Seconds) -> tuple[int, int]:
        """One picture as every kind of member sees it, into (n_views, h, w, 3) each; height and width of its file."""
        if isinstance(picture, Unreadable):
            raise ImageError(picture.reason)
        decoded = self._framed(picture) if isinstance(picture, Frame) else self._decoded(picture, seconds)
        started = time.perf_counter()
        for (own, views), seen, rows in zip(self._kinds, decoded, into, strict=True):
            for view, row in zip(views, rows, strict=True):
                row[:] = view.pixels(seen.pixels, own)
        seconds["preprocess"].append(time.perf_counter() - started)
        return decoded[0].stored_hw

    def _framed(self, frame: Frame) -> list[Decoded]:
        height, width = frame.pixels.shape[:2]
        return [Decoded(frame.pixels, (height, width))] * len(self._targets)

    def _decoded(self, picture: str | Path | Encoded, seconds: Seconds) -> list[Decoded]:
        """A file's picture for each kind of member."""
        started = time.perf_counter()
        data = picture.data if isinstance(picture, Encoded) else images.read(picture)
        read = time.perf_counter()
        seconds["read"].append(read - started)
        decoded = images.decode_each(data, self._targets)
        seconds["decode"].append(time.perf_counter() - read)
        return decoded

    def _infer(self, member: Member, buffer: Pixels, n: int, times: StageTimes) -> MemberAnswers:
        """The answers to the first n pictures of a buffer; the others are whatever was there before."""
        n_views = buffer.shape[1]
        manifest = member.backend.manifest
        if not n:
            nothing = np.empty((0, len(manifest.labels)), np.float32)
            return MemberAnswers(nothing, np.empty((0, n_views), np.int64), 0.0)
        pixels = buffer if member.backend.wants_whole_batches else buffer[:n]
        started = time.perf_counter()
        parts = [
            member.backend.infer(pixels[first : first + self.size].reshape(-1, *pixels.shape[2:]), times)
            for first in range(0, len(pixels), self.size)
        ]
        inferred = time.perf_counter()
        logits = np.concatenate(parts).reshape(len(pixels), n_views, -1)[:n]
        answered = MemberAnswers(
            combined(logits, manifest.temperature, member.tta.combine), logits.argmax(axis=2), inferred - started
        )
        times.add("post", time.perf_counter() - inferred)
        return answered


class _LoadingTurns:
    """Whether workers load pictures at once, or one after another while the others infer.

    Loading a picture is ten short calls that each give up the interpreter lock and take it again. For a photo of 5 ms
    that is nothing. A small picture takes 50 microseconds alone and 250 to 350 where a second thread does the same,
    since each waits for the other at every call. Turns are taken until pictures prove to be large, by their time on the
    CPU, which waiting does not change; or to come from a slow disk, which several workers had better wait for at once.

    Attributes:
        are_known_small: whether the last pictures were; false before the first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._are_small = True
        self.are_known_small = False

    @contextmanager
    def for_pictures(self, n: int) -> Iterator[None]:
        """Load `n` pictures inside."""
        with self._lock if self._are_small else nullcontext():
            started, cpu = time.perf_counter(), time.thread_time()
            yield
            cpu, seconds = time.thread_time() - cpu, time.perf_counter() - started
            self._are_small = cpu < n * _SMALL_CPU_SECONDS and seconds < n * _SMALL_SECONDS
            self.are_known_small = self._are_small


def _bytes_held(source: Source) -> float:
    """Of a file that is in memory already; a frame holds more than any batch may."""
    if isinstance(source.picture, Frame):
        return math.inf
    return len(source.picture.data) if isinstance(source.picture, Encoded) else 0


def _brightness(pixels: Pixels) -> NDArray[np.float64]:
    """Mean of each picture of (n, h, w, 3), from a grid of at most `_GRID` pixels a side: one call for all of them."""
    step = -(-max(pixels.shape[1:3]) // _GRID)
    mean: NDArray[np.float64] = pixels[:, ::step, ::step].mean(axis=(1, 2, 3))
    return mean


def _closest(own: Preprocessing, views: Sequence[View]) -> Preprocessing:
    """The preprocessing of the view that needs the most pixels of the file."""
    return min((view.preprocessing(own) for view in views), key=lambda each: each.crop_fraction)
