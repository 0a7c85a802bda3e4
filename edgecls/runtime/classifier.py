"""The Python door: open a run, a model file or several that vote, and get typed predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import ImageError, OptionError
from edgecls.images import Pixels
from edgecls.manifest import Manifest
from edgecls.prefetch import n_cores
from edgecls.runs import LATEST, find_model
from edgecls.runtime.backends.belonging import check_answers
from edgecls.runtime.backends.lone import LoneOrMany
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.runtime.backends.selection import select
from edgecls.runtime.ensemble import Voting
from edgecls.runtime.options import (
    PROBABILITY,
    AskedPrecision,
    ClassifierOptions,
    Combine,
    Device,
    TtaOptions,
    Vote,
    VoteOptions,
)
from edgecls.runtime.pipeline import Answered, BatchWorker, Frame, Member, Picture, Source, answers
from edgecls.runtime.prediction import Prediction, no_number, ranked, top_of
from edgecls.runtime.stages import StageTimes
from edgecls.runtime.votes import Floats, agreement, entropy

# On two cores 4 to 16 are equally fast at 224 px, and memory goes with it. Small inputs take as many as make 200,000
# pixels: MobileNetV2 in INT8 answers 8,900 a second in twos at 32 px and 14,300 in 32s or 64s; at 64 px more than that
# leaves the cache (5,400 in 16s, 4,300 in 128s).
CPU_BATCH_SIZE: Final = 8
_MOST_ON_A_CPU: Final = 64
_CPU_BATCH_PIXELS: Final = 200_000
GPU_BATCH_SIZE: Final = 32


class Classifier:
    """One trained model, or up to ten that vote; any number of threads may use it. Use it in a `with` block.

    with Classifier.open("runs/latest") as classifier:
        for prediction in classifier.predict(["cat.jpg", "dog.jpg"]):
            print(prediction.path, prediction.label, prediction.probability)

    Models that vote have the same labels; they may differ in size, preprocessing and backend. The order of the labels
    is the first one's.
    """

    def __init__(self, members: Sequence[Member], voting: Voting, options: ClassifierOptions) -> None:
        self.members, self.voting = tuple(members), voting
        self.manifest: Manifest = members[0].backend.manifest
        self.labels = self.manifest.labels
        on_cpu = all(member.backend.name.endswith("-cpu") for member in members)
        sizes = [member.backend.manifest.preprocessing.size_hw for member in members]
        self.batch_size = options.batch_size or (min(map(cpu_batch_size, sizes)) if on_cpu else GPU_BATCH_SIZE)
        self.n_threads = _backend_options(options).threads
        # a worker that waits for an inference elsewhere leaves its core to one more worker
        waiting = [0 if each.backend.runs_in_caller else each.backend.n_lanes for each in members]
        self.n_workers = self.n_threads + max(waiting)
        self.n_lanes = min(member.backend.n_lanes for member in members)

    @classmethod
    def open(
        cls,
        model: str | Path | Sequence[str | Path] = LATEST,
        *,
        precision: AskedPrecision = "auto",
        device: Device = "auto",
        batch_size: int | None = None,
        n_threads: int | None = None,
        n_lanes: int | None = None,
        tta: str | None = None,
        tta_combine: Combine = "probability",
        vote: Vote = "majority",
        tie_break: str = PROBABILITY,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> Classifier:
        """Open a run folder (`latest`: the newest), a bundle, a lone ONNX file or an engine; or several, which vote.

        Args:
            precision, device, batch_size, n_threads, n_lanes: as in `ClassifierOptions`, for every model.
            tta: names of views, such as `flip,shifts`; tta_combine: as in `TtaOptions`.
            vote, tie_break: as in `VoteOptions`; `tie_break` may name one of the models.
            on_note: called with a line where choosing a device takes time.

        Raises:
            RunError: nothing there, not exported yet, or damaged.
            MissingExtra: what is to run it is not installed.
            OptionError: the device is not there, an option out of range, or models that cannot vote together.
        """
        views = TtaOptions.parse(tta, tta_combine)
        options = ClassifierOptions(precision, device, batch_size, n_threads, n_lanes, tta=views)
        models = [model] if isinstance(model, (str, Path)) else list(model)
        return cls.of(models, options, VoteOptions(vote, tie_break), on_note=on_note)

    @classmethod
    def of(
        cls,
        models: Sequence[str | Path],
        options: ClassifierOptions,
        vote: VoteOptions = VoteOptions(),
        *,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> Classifier:
        """As `open`, with the options in two."""
        with ExitStack() as opened:
            members: list[Member] = []
            for model in models:
                members.append(_open(model, options, on_note))
                opened.enter_context(members[-1].backend)
            voting = Voting.of([each.backend.manifest for each in members], [str(model) for model in models], vote)
            opened.pop_all()  # nothing failed: they stay open
        return cls(members, voting, options)

    @property
    def backend_name(self) -> str:
        """Engine and device, for reports; of several members those that differ, with commas."""
        return ", ".join(dict.fromkeys(member.backend.name for member in self.members))

    @property
    def precision(self) -> str:
        """Of the file that is open; of several members those that differ, with commas."""
        return ", ".join(dict.fromkeys(member.backend.manifest.precision for member in self.members))

    def logits(self, batch: Pixels) -> NDArray[np.float32]:
        """The (first) model's: (n, *size_hw, 3) uint8, as `images.resize_and_crop` gives -> (n, n_classes) float32."""
        return self.members[0].backend.infer(batch)

    def answers(
        self,
        sources: Iterable[Source],
        *,
        times: StageTimes | None = None,
        n_sources: int | None = None,
        is_live: bool = False,
    ) -> Iterator[Answered]:
        """As `predict`, a batch at a time and with what every member and view said.

        Args:
            n_sources: how many there are, where that is known: a few are dealt out to all cores, and many small ones in
                larger batches.
        """
        return answers(
            self.members,
            sources,
            batch_size=self.batch_size,
            n_workers=self.n_workers,
            times=times or StageTimes(),
            n_sources=n_sources,
            is_live=is_live,
        )

    def worker(self, times: StageTimes) -> BatchWorker:
        """What takes batches of up to `batch_size` pictures the whole way, from any thread, for a caller with a queue
        of its own."""
        n_views = max(len(member.views) for member in self.members)
        return BatchWorker(self.members, max(1, self.batch_size // n_views), times)

    def probabilities(self, answered: Answered) -> Floats:
        """Of every member, in the order of the labels: (n_members, n, n_classes)."""
        return self.voting.probabilities([member.probabilities for member in answered.members])

    def mean_probabilities(self, answered: Answered) -> Floats:
        """Of all members together: (n, n_classes)."""
        return self.voting.mean(self.probabilities(answered))

    def predictions(self, answered: Answered, top_k: int) -> list[Prediction]:
        """One for each source of a batch, in order."""
        each = self.probabilities(answered)
        order = ranked(self.voting.scores(each), top_k)
        mean = self.voting.mean(each)
        votes = self._votes(each, order, mean) if len(each) > 1 else None
        is_finite: list[bool] = np.all(np.isfinite(mean), axis=1).tolist()

        def answer(row: int, name: str) -> Prediction:
            if not is_finite[row]:
                return no_number(name)
            top = top_of(self.labels, order[row], mean[row])
            return Prediction(name, "ok", *top[0], "", top, *(votes[row] if votes else ()))

        predictions, row = [], 0
        for source, reason in zip(answered.sources, answered.reasons, strict=True):
            predictions.append(Prediction(source.name, "error", reason=reason) if reason else answer(row, source.name))
            row += not reason
        return predictions

    def _votes(
        self, each: Floats, order: NDArray[np.int64], mean: Floats
    ) -> list[tuple[float, float, tuple[str, ...]]]:
        """Of each image: the agreement of the members, the entropy of their mean, and the answer of each."""
        own = each.argmax(axis=2)
        labels = [tuple(self.labels[index] for index in answers) for answers in own.T]
        return list(zip(agreement(each, order[:, 0]).tolist(), entropy(mean).tolist(), labels, strict=True))

    def predict(
        self, pictures: Iterable[Picture], *, top_k: int = 1, times: StageTimes | None = None, is_live: bool = False
    ) -> Iterator[Prediction]:
        """Yield exactly one prediction per picture, in order; a file that cannot be read yields its reason.

        Files are read, decoded and answered in threads ahead of the caller, two batches a worker at most.

        Args:
            pictures: image files, or frames; drawn lazily, so they may be a stream.
            top_k: how many (label, probability) in `Prediction.top`.
            times: where given, filled with the time of every stage.
            is_live: answer each picture before the next one is waited for, as a camera wants it.
        """
        if isinstance(pictures, (str, Path)):
            raise OptionError(f"predict takes several paths, got one: predict([{str(pictures)!r}])")
        if top_k < 1:
            raise OptionError(f"top_k {top_k}: expected 1 or more")
        n_sources = len(pictures) if isinstance(pictures, Sized) else None
        for answered in self.answers(map(Source.of, pictures), times=times, n_sources=n_sources, is_live=is_live):
            yield from self.predictions(answered, top_k)

    def predict_arrays(self, arrays: Sequence[Pixels], *, top_k: int = 1) -> list[Prediction]:
        """Predict decoded pictures of any size.

        Args:
            arrays: each (h, w, 3) uint8, RGB (OpenCV reads BGR: convert first).

        Raises:
            ImageError: an array of another shape or dtype, or a strip too thin to resize.
        """
        frames = [Frame("", checked(array)) for array in arrays]
        predictions = list(self.predict(frames, top_k=top_k))
        for prediction in predictions:
            if prediction.status == "error":
                raise ImageError(prediction.reason)
        return predictions

    def close(self) -> None:
        """Give the models' memory back, as the end of a `with` block does."""
        for member in self.members:
            member.backend.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def cpu_batch_size(size_hw: tuple[int, int]) -> int:
    """Images an inference on a CPU, for an input of this height and width in pixels."""
    height, width = size_hw
    return min(max(CPU_BATCH_SIZE, _CPU_BATCH_PIXELS // (height * width)), _MOST_ON_A_CPU)


def _backend_options(options: ClassifierOptions) -> BackendOptions:
    return BackendOptions(options.device, options.n_threads, options.n_lanes or options.n_threads or n_cores())


def _open(model: str | Path, options: ClassifierOptions, on_note: Callable[[str], None]) -> Member:
    chosen = select(find_model(model), options.precision, _backend_options(options), on_note=on_note)
    backend = chosen.open(_backend_options(options))
    inside = backend.manifest.precision
    if options.precision != "auto" and not inside.startswith(options.precision):
        backend.close()
        raise OptionError(f"--precision {options.precision}: {chosen.file} is {inside}; leave the flag out")
    if chosen.is_unproved:
        check_answers(chosen.file, backend)
    member = Member.of(backend, options.tta, chosen.file)
    if not (options.has_lone_lane and backend.n_lanes > 1):
        return member
    try:
        lone = chosen.open(replace(_backend_options(options), n_lanes=1))
    except BaseException:
        backend.close()
        raise
    return replace(member, backend=LoneOrMany(backend, lone, len(member.views)))


def checked(array: Pixels) -> Pixels:
    """The same array.

    Raises:
        ImageError: it is no (height, width, 3) uint8 picture.
    """
    if not (
        isinstance(array, np.ndarray)
        and array.dtype == np.uint8
        and array.ndim == 3
        and array.shape[2] == 3
        and array.size
    ):
        got = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
        raise ImageError(f"expected a (height, width, 3) uint8 RGB array, got {got}")
    return array
