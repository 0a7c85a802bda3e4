"""The range of every tensor of a network on the calibration set: taken once, kept, used by every INT8 graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from edgecls import images
from edgecls.calibration.collectors import COLLECTORS, DEFAULT_METHOD, RANGE_OF, Extremes, Range
from edgecls.calibration.options import METHODS, Method
from edgecls.calibration.sample import CalibrationImage, CalibrationSet
from edgecls.errors import ExportError
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing
from edgecls.prefetch import batches, n_cores, prefetch
from edgecls.processor import session_settings
from edgecls.records import TextFile
from edgecls.runs import write_json

_BATCH: Final = 4  # images whose every tensor is in memory at once: about 27 MB each for EfficientNet-Lite0 at 224 px


@dataclass(frozen=True)
class Calibration:
    """Ranges, and all that they depend on.

    Attributes:
        ranges: lowest and highest value by tensor name, float32, over all images.
        means: mean of each channel of what a convolution or fully connected layer reads, by tensor name: what
            rounding its weights shifts on average is corrected with it.
        images: path and sha256 of every calibration image, in order.
        network_sha256: of the float graph whose tensors these are; see `network_sha256`.
        left_out, overlapping: as in `CalibrationSet`.
    """

    ranges: Mapping[str, Range]
    means: Mapping[str, tuple[float, ...]]
    images: tuple[CalibrationImage, ...]
    preprocessing: Preprocessing
    network_sha256: str
    method: Method = DEFAULT_METHOD
    left_out: Mapping[str, str] = field(default_factory=dict)
    overlapping: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ExportError(f"calibration method {self.method!r}: expected one of {', '.join(METHODS)}")
        bad = [
            name for name, (low, high) in self.ranges.items() if not (np.isfinite([low, high]).all() and low <= high)
        ]
        if bad:
            raise ExportError(
                f"calibration gave no finite range for {len(bad)} tensors, first {bad[0]!r}: the network overflows on "
                "these images; check the checkpoint with edgecls predict --precision fp32"
            )

    @property
    def key(self) -> str:
        """Equal for equal network, images, preprocessing, method and tensors; then the ranges are equal too."""
        return _key(self.network_sha256, self.images, self.preprocessing, self.method, list(self.ranges))

    def write(self, path: Path) -> None:
        values: dict[str, Any] = asdict(self)
        write_json(path, {"key": self.key, "sha256": self._sha256, "n_images": len(self.images), **values})

    @property
    def _sha256(self) -> str:
        """Of what was measured, where the key is of what it was measured on: a range changed by hand must not pass."""
        measured = [sorted(self.ranges.items()), sorted(self.means.items())]
        return hashlib.sha256(json.dumps(measured).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read what `write` wrote.

        Raises:
            ExportError: missing, damaged, or changed by hand.
        """
        try:
            values = TextFile(path, ExportError, "expected a calibration of edgecls export").json_object()
            written = values.pop("key"), values.pop("sha256")
            del values["n_images"]
            values["ranges"] = {name: (float(low), float(high)) for name, (low, high) in values["ranges"].items()}
            values["means"] = {name: tuple(map(float, means)) for name, means in values["means"].items()}
            values["images"] = tuple(CalibrationImage(**image) for image in values["images"])
            values["preprocessing"] = Preprocessing(**values["preprocessing"])
            values["overlapping"] = tuple(values["overlapping"])
            calibration = cls(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(
                f"{path}: not a calibration of edgecls export ({type(error).__name__}: {error})"
            ) from error
        if (calibration.key, calibration._sha256) != written:
            raise ExportError(f"{path}: its contents do not fit its key; it was changed by hand")
        return calibration


def calibrate(
    graph: onnx.ModelProto,
    calibration_set: CalibrationSet,
    preprocessing: Preprocessing,
    op_types: Sequence[str],
    method: Method = DEFAULT_METHOD,
    *,
    kept: Calibration | None = None,
    on_images: Callable[[int], None] = lambda n: None,
) -> Calibration:
    """Run the float network on the calibration set and make a range of what every tensor was.

    A few images' tensors are in memory at a time, whatever the size of the set. (ONNX Runtime's own calibrators keep
    those of all images, or for percentile and entropy all their histograms of growing length.)

    Args:
        graph: float network that takes pixels.
        op_types: operators whose inputs and outputs will be quantised.
        kept: an earlier calibration; returned as it is if its key is the one of this.
        on_images: called with the number of images done, for a progress bar.

    Raises:
        ImageError: an image has become unreadable since it was chosen; nothing is left out quietly.
        ExportError: a range is not finite.
    """
    tensors = _float_tensors(graph, op_types)
    network = network_sha256(graph)
    if kept and kept.key == _key(network, calibration_set.images, preprocessing, method, tensors):
        return kept
    collectors: dict[str, Extremes] = {name: COLLECTORS[method]() for name in tensors}
    sums: dict[str, Any] = dict.fromkeys(_layer_inputs(graph, tensors), 0.0)
    session, input_name = _observing(graph, tensors)
    for batch in _batches(calibration_set.images, preprocessing):
        for name, values in zip(tensors, session.run(tensors, {input_name: batch}), strict=True):
            collectors[name].add(values)
            if name in sums:
                places = tuple(range(2, values.ndim))
                sums[name] += values.mean(places, dtype=np.float64).sum(0)
        on_images(len(batch))
    n = len(calibration_set.images)
    return Calibration(
        {name: _range(collector, method) for name, collector in collectors.items()},
        {name: tuple(float(f"{mean:.6g}") for mean in total / n) for name, total in sums.items()},
        calibration_set.images,
        preprocessing,
        network,
        method,
        calibration_set.left_out,
        calibration_set.overlapping,
    )


def _range(collector: Extremes, method: Method) -> Range:
    extremes = collector.lowest, collector.highest
    # no method has anything to choose for a constant, nor can it for an overflow, which the caller must see
    return RANGE_OF[method](collector) if np.isfinite(extremes).all() and any(extremes) else extremes


def network_sha256(graph: onnx.ModelProto) -> str:
    """Hash of the network alone: the metadata, in which the manifest is, may change without the answers changing."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _key(
    network: str,
    calibration_images: Sequence[CalibrationImage],
    preprocessing: Preprocessing,
    method: Method,
    tensors: Sequence[str],
) -> str:
    parts = [network, [image.sha256 for image in calibration_images], asdict(preprocessing), method, list(tensors)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _float_tensors(graph: onnx.ModelProto, op_types: Sequence[str]) -> list[str]:
    """Inputs and outputs of these operators, less weights, in the order of the graph."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    of_float = {
        value.name
        for value in [*inferred.value_info, *inferred.output]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    } - {weight.name for weight in inferred.initializer}
    names = (name for node in graph.graph.node if node.op_type in op_types for name in [*node.input, *node.output])
    return [name for name in dict.fromkeys(names) if name in of_float]


def _layer_inputs(graph: onnx.ModelProto, tensors: Sequence[str]) -> list[str]:
    """What convolutions and fully connected layers read, of `tensors`: axis 1 of it is channels."""
    read = (node.input[0] for node in graph.graph.node if node.op_type in ("Conv", "Gemm"))
    return [name for name in dict.fromkeys(read) if name in tensors]


def _observing(graph: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnxruntime.InferenceSession, str]:
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    answered = {output.name for output in graph.graph.output}
    observed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in tensors
        if name not in answered
    )
    settings = session_settings(onnxruntime, n_cores())
    session = onnxruntime.InferenceSession(observed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session, session.get_inputs()[0].name


def _batches(calibration_images: Sequence[CalibrationImage], preprocessing: Preprocessing) -> Iterator[Pixels]:
    threads = n_cores()
    loaded = prefetch(
        lambda image: images.load(Path(image.path), preprocessing),
        calibration_images,
        n_threads=threads,
        ahead=4 * threads,
    )
    return (np.stack(batch) for batch in batches(loaded, _BATCH))
