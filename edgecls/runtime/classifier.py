"""The Python door: open a run or a model file, get typed predictions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgecls import images, metrics
from edgecls.errors import ImageError, OptionError, RunError
from edgecls.manifest import Manifest, Precision
from edgecls.prefetch import n_cores, prefetch
from edgecls.runs import EXPORT, LATEST, MANIFEST, MODEL_FILES, find_model
from edgecls.runtime.backend import Backend, BackendOptions, Device, OnnxRuntimeBackend
from edgecls.runtime.onnx_manifest import manifest_of_onnx
from edgecls.runtime.stages import LOADING, StageTimes

AskedPrecision = Literal["auto", "fp32", "fp16", "int8"]

BATCH_SIZE: Final = 16


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: as it was given; empty for an array.
        status: `ok`, or `error` with a `reason` and no answer.
        label, probability: the best answer; empty and nan for an error.
        top: the best `top_k` (label, probability), best first.
    """

    path: str
    status: Literal["ok", "error"] = "ok"
    label: str = ""
    probability: float = float("nan")
    reason: str = ""
    top: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if (self.status == "ok") != bool(self.top) or (self.status == "error") != bool(self.reason):
            raise ValueError(f"a prediction has an answer or a reason, got {self.top} and {self.reason!r}")


@dataclass(frozen=True)
class ClassifierOptions:
    """Attributes:
    precision: `auto` is what the run's export measured as best, else fp32; `int8` picks the graph for this device.
    device: `auto`, `cpu` or `cuda`.
    batch_size: images an inference.
    n_threads: that read and decode; None is every core this process may use.
    """

    precision: AskedPrecision = "auto"
    device: Device = "auto"
    batch_size: int = BATCH_SIZE
    n_threads: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionError(f"--batch-size {self.batch_size}: expected 1 or more")


@dataclass(frozen=True)
class _Loaded:
    path: str
    pixels: images.Pixels | None
    reason: str
    seconds: tuple[float, float, float]  # read, decode, preprocess


class Classifier:
    """A trained model with its labels and preprocessing; use it in a `with` block.

    with Classifier.open("runs/latest") as classifier:
        for prediction in classifier.predict(["cat.jpg", "dog.jpg"]):
            print(prediction.path, prediction.label, prediction.probability)
    """

    def __init__(self, backend: Backend, options: ClassifierOptions) -> None:
        self.manifest: Manifest = backend.manifest
        self.options = options
        self.n_threads = options.n_threads or n_cores()
        self._backend = backend
        self._labels = self.manifest.labels

    @classmethod
    def open(
        cls,
        model: str | Path = LATEST,
        *,
        precision: AskedPrecision = "auto",
        device: Device = "auto",
        batch_size: int = BATCH_SIZE,
        n_threads: int | None = None,
    ) -> Classifier:
        """Open a run folder (`latest`: the newest) or a lone ONNX file.

        Raises:
            RunError: nothing there, not exported yet, or damaged.
            MissingExtra: ONNX Runtime is not installed.
            OptionError: the device is not there.
        """
        options = ClassifierOptions(precision, device, batch_size, n_threads)
        file = model_file(find_model(model), precision)
        backend = OnnxRuntimeBackend(file, BackendOptions(device))
        if precision != "auto" and not backend.manifest.precision.startswith(precision):
            raise OptionError(f"--precision {precision}: {file} is {backend.manifest.precision}; leave the flag out")
        return cls(backend, options)

    @property
    def backend_name(self) -> str:
        return self._backend.name

    @property
    def precision(self) -> Precision:
        """Of the file that is open."""
        return self.manifest.precision

    def predict(
        self, paths: Iterable[str | Path], *, top_k: int = 1, times: StageTimes | None = None
    ) -> Iterator[Prediction]:
        """Yield exactly one prediction per path, in order; a file that cannot be read yields its reason.

        Files are read and decoded in threads ahead of inference; about three batches are in memory.

        Args:
            paths: image files; drawn lazily, so they may be a stream.
            top_k: how many (label, probability) in `Prediction.top`.
            times: where given, filled with the time of every stage.
        """
        if isinstance(paths, (str, Path)):
            raise OptionError(f"predict takes several paths, got one: predict([{str(paths)!r}])")
        _check_top_k(top_k)
        times = times or StageTimes()
        batch_size = self.options.batch_size
        buffer = np.empty((batch_size, *self.manifest.preprocessing.size_hw, 3), np.uint8)
        waiting: list[_Loaded] = []
        filled = 0
        ahead = batch_size + 2 * self.n_threads
        for loaded in prefetch(self._load, paths, n_threads=self.n_threads, ahead=ahead):
            for stage, seconds in zip(LOADING, loaded.seconds, strict=True):
                times.add(stage, seconds)
            waiting.append(loaded)
            if loaded.pixels is not None:
                buffer[filled] = loaded.pixels
                filled += 1
            # errors alone must not pile up behind a batch that never fills
            if filled == batch_size or len(waiting) >= 2 * batch_size:
                yield from self._answers(waiting, buffer[:filled], top_k, times)
                waiting, filled = [], 0
        yield from self._answers(waiting, buffer[:filled], top_k, times)

    def predict_arrays(self, arrays: Sequence[images.Pixels], *, top_k: int = 1) -> list[Prediction]:
        """Predict decoded pictures of any size.

        Args:
            arrays: each (h, w, 3) uint8, RGB (OpenCV reads BGR: convert first).

        Raises:
            ImageError: an array of another shape or dtype.
        """
        _check_top_k(top_k)
        size = self.options.batch_size
        predictions: list[Prediction] = []
        for start in range(0, len(arrays), size):
            batch = np.stack([self._resized(array) for array in arrays[start : start + size]])
            predictions += self._predictions([""] * len(batch), self.logits(batch), top_k)
        return predictions

    def logits(self, batch: images.Pixels) -> NDArray[np.float32]:
        """(n, *size_hw, 3) uint8, preprocessed as `images.resize_and_crop` does -> (n, n_classes) float32."""
        return self._backend.infer(batch)

    def _resized(self, array: images.Pixels) -> images.Pixels:
        if not (
            isinstance(array, np.ndarray)
            and array.dtype == np.uint8
            and array.ndim == 3
            and array.shape[2] == 3
            and array.size
        ):
            got = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
            raise ImageError(f"expected a (height, width, 3) uint8 RGB array, got {got}")
        return images.resize_and_crop(array, self.manifest.preprocessing)

    def _load(self, path: str | Path) -> _Loaded:
        started = time.perf_counter()
        read = decoded = started
        pixels, reason = None, ""
        try:
            data = images.read(Path(path))
            read = decoded = time.perf_counter()
            image = images.decode(data, self.manifest.preprocessing)
            decoded = time.perf_counter()
            pixels = images.resize_and_crop(image, self.manifest.preprocessing)
        except ImageError as error:
            reason = error.reason
        done = time.perf_counter()
        seconds = (max(read - started, 0.0), decoded - read, done - decoded)
        return _Loaded(str(path), pixels, reason, seconds)

    def _answers(
        self, loaded: Sequence[_Loaded], batch: images.Pixels, top_k: int, times: StageTimes
    ) -> Iterator[Prediction]:
        started = time.perf_counter()
        logits = self.logits(batch) if len(batch) else np.empty((0, len(self._labels)), np.float32)
        inferred = time.perf_counter()
        good = iter(self._predictions([each.path for each in loaded if each.pixels is not None], logits, top_k))
        if len(batch):
            times.add("infer", inferred - started, len(batch))
            times.add("post", time.perf_counter() - inferred, len(batch))
        for each in loaded:
            yield next(good) if each.pixels is not None else Prediction(each.path, "error", reason=each.reason)

    def _predictions(self, paths: Sequence[str], logits: NDArray[np.float32], top_k: int) -> list[Prediction]:
        probabilities = metrics.softmax(logits / np.float32(self.manifest.temperature))
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(top_k, len(self._labels))]
        predictions = []
        for path, order, row in zip(paths, best, probabilities, strict=True):
            top = tuple((self._labels[index], float(row[index])) for index in order)
            predictions.append(Prediction(path, "ok", *top[0], top=top))
        return predictions

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.__exit__(kind, error, trace)


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise OptionError(f"top_k {top_k}: expected 1 or more")


def model_file(path: Path, precision: AskedPrecision) -> Path:
    """The ONNX file to open: `path` itself, or the one of this precision in the run folder `path`.

    Raises:
        RunError: a run without that file.
    """
    if not path.is_dir():
        return path
    if precision == "auto":
        return _file_of(path, _measured_best(path, "serves"))
    return _file_of(path, "int8-cpu" if precision == "int8" else precision)


def _file_of(path: Path, chosen: Precision) -> Path:
    file = path / MODEL_FILES[chosen]
    if not file.is_file():
        if not (path / MANIFEST).is_file():
            raise RunError(f"{path}: no {MANIFEST} in it, so this is not a run folder, or its training did not end")
        flag = {"int8": " --int8", "int8-cpu": " --int8", "fp16": " --fp16"}.get(chosen, "")
        other = ", or use --precision fp32" if flag and (path / MODEL_FILES["fp32"]).is_file() else ""
        raise RunError(f"{path}: no {file.name} in this run folder; make it with: edgecls export {path}{flag}{other}")
    return file


def file_for_engine(path: Path, precision: AskedPrecision) -> Path:
    """The ONNX file that a TensorRT engine is built from: `path` itself, or one of the run folder `path`.

    Raises:
        RunError: a run without that file.
        OptionError: a file of another precision than the one asked for.
    """
    if not path.is_dir():
        if precision != "auto" and path.is_file():
            inside = manifest_of_onnx(path.read_bytes(), str(path)).precision
            if inside != precision:
                raise OptionError(f"--precision {precision}: {path} is {inside}; leave the flag out")
        return path
    chosen = _measured_best(path, "engine_from") if precision == "auto" else precision
    return _file_of(path, chosen)


def _measured_best(run: Path, field: str) -> Precision:
    """The precision that the run's export found best, or fp32 where nothing was measured.

    Raises:
        RunError: what was measured cannot be read; to take fp32 for it would hide that INT8 is lost.
    """
    path = run / EXPORT
    if not path.exists():
        return "fp32"
    try:
        best = json.loads(path.read_text(encoding="utf-8"))[field]
        MODEL_FILES[best]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: damaged, so which precision is best is unknown; run edgecls export again, or name one: "
            "--precision fp32"
        ) from error
    return cast(Precision, best)
