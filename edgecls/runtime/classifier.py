"""The Python door: open a run or a model file, get typed predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import OptionError
from edgecls.images import Pixels
from edgecls.manifest import Manifest, Precision
from edgecls.prefetch import n_cores
from edgecls.runs import LATEST, find_model
from edgecls.runtime.backends.belonging import check_answers
from edgecls.runtime.backends.protocol import Backend, BackendOptions
from edgecls.runtime.backends.selection import select
from edgecls.runtime.options import AskedPrecision, ClassifierOptions, Combine, Device, TtaOptions
from edgecls.runtime.pipeline import Answered, Member, Picture, answers
from edgecls.runtime.prediction import Prediction, Predictor, no_number, one_a_picture, ranked, top_of
from edgecls.runtime.stages import StageTimes

CPU_BATCH_SIZE: Final = 8  # 4 to 16 are equally fast on two cores, and memory goes with it
GPU_BATCH_SIZE: Final = 32


def _backend_options(options: ClassifierOptions) -> BackendOptions:
    return BackendOptions(options.device, options.n_threads, options.n_lanes or options.n_threads or n_cores())


class Classifier(Predictor):
    """A trained model with its labels and preprocessing; any number of threads may use it. Use it in a `with` block.

    with Classifier.open("runs/latest") as classifier:
        for prediction in classifier.predict(["cat.jpg", "dog.jpg"]):
            print(prediction.path, prediction.label, prediction.probability)
    """

    def __init__(self, backend: Backend, options: ClassifierOptions, file: Path | None = None) -> None:
        self.manifest: Manifest = backend.manifest
        self.options, self.file = options, file
        self.member = Member.of(backend, options.tta)
        self.batch_size = options.batch_size or (CPU_BATCH_SIZE if backend.name.endswith("-cpu") else GPU_BATCH_SIZE)
        self.n_threads = _backend_options(options).threads
        # a worker that waits for an inference elsewhere leaves its core to one more worker
        self.n_workers = self.n_threads + (0 if backend.runs_in_caller else backend.n_lanes)
        self._labels = self.manifest.labels

    @classmethod
    def open(
        cls,
        model: str | Path = LATEST,
        *,
        precision: AskedPrecision = "auto",
        device: Device = "auto",
        batch_size: int | None = None,
        n_threads: int | None = None,
        n_lanes: int | None = None,
        tta: str | None = None,
        tta_combine: Combine = "probability",
        on_note: Callable[[str], None] = lambda line: None,
    ) -> Classifier:
        """Open a run folder (`latest`: the newest), a lone ONNX file or an engine.

        Args:
            precision, device, batch_size, n_threads, n_lanes: as in `ClassifierOptions`.
            tta: names of views, such as `flip,shifts`; tta_combine: as in `TtaOptions`.
            on_note: called with a line where choosing a device takes time.

        Raises:
            RunError: nothing there, not exported yet, or damaged.
            MissingExtra: what is to run it is not installed.
            OptionError: the device is not there, or an option out of range.
        """
        views = TtaOptions.parse(tta, tta_combine)
        return cls.of(
            model, ClassifierOptions(precision, device, batch_size, n_threads, n_lanes, views), on_note=on_note
        )

    @classmethod
    def of(
        cls,
        model: str | Path,
        options: ClassifierOptions,
        *,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> Classifier:
        """As `open`, with the options in one."""
        chosen = select(find_model(model), options.precision, _backend_options(options), on_note=on_note)
        backend = chosen.open(_backend_options(options))
        inside = backend.manifest.precision
        if options.precision != "auto" and not inside.startswith(options.precision):
            backend.__exit__(None, None, None)
            raise OptionError(f"--precision {options.precision}: {chosen.file} is {inside}; leave the flag out")
        if chosen.is_unproved:
            check_answers(chosen.file, backend)
        return cls(backend, options, chosen.file)

    @property
    def backend_name(self) -> str:
        return self.member.backend.name

    @property
    def precision(self) -> Precision:
        """Of the file that is open."""
        return self.manifest.precision

    @property
    def n_lanes(self) -> int:
        return self.member.backend.n_lanes

    def logits(self, batch: Pixels) -> NDArray[np.float32]:
        """(n, *size_hw, 3) uint8, preprocessed as `images.resize_and_crop` does -> (n, n_classes) float32."""
        return self.member.backend.infer(batch)

    def answers(
        self,
        pictures: Iterable[Picture],
        *,
        times: StageTimes | None = None,
        n_pictures: int | None = None,
        is_live: bool = False,
    ) -> Iterator[Answered]:
        return answers(
            [self.member],
            pictures,
            batch_size=self.batch_size,
            n_workers=self.n_workers,
            times=times or StageTimes(),
            n_pictures=n_pictures,
            is_live=is_live,
        )

    def predictions(self, answered: Answered, top_k: int) -> list[Prediction]:
        (member,) = answered.members
        order = ranked(member.probabilities, top_k)

        def answer(row: int, name: str) -> Prediction:
            if not np.isfinite(member.probabilities[row]).all():
                return no_number(name)
            top = top_of(self._labels, order[row], member.probabilities[row])
            return Prediction(name, "ok", *top[0], top=top)

        return one_a_picture(answered, answer)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.member.backend.__exit__(kind, error, trace)
