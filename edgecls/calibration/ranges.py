"""The range of every tensor of a network on the calibration set: taken once, kept, used by every INT8 graph."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from edgecls import images
from edgecls.datasets import LabelledImage
from edgecls.errors import ExportError
from edgecls.manifest import Preprocessing
from edgecls.prefetch import batches, n_cores, prefetch
from edgecls.runs import sha256_of, write_json

METHOD: Final = "minmax"
_BATCH: Final = 8


@dataclass(frozen=True)
class Calibration:
    """Ranges and what they were taken from.

    Attributes:
        ranges: lowest and highest value by tensor name, float32, over all images.
        images: path and sha256 of every calibration image, in order.
        model_sha256: of the float ONNX file whose tensors these are.
    """

    ranges: Mapping[str, tuple[float, float]]
    images: Sequence[Mapping[str, str]]
    preprocessing: Preprocessing
    model_sha256: str
    method: str = METHOD

    def __post_init__(self) -> None:
        bad = [
            name for name, (low, high) in self.ranges.items() if not (np.isfinite([low, high]).all() and low <= high)
        ]
        if bad:
            raise ExportError(
                f"calibration gave no finite range for {len(bad)} tensors, first {bad[0]!r}: the network overflows on "
                "these images; check the checkpoint with edgecls predict --precision fp32"
            )

    def write(self, path: Path) -> None:
        values: dict[str, Any] = asdict(self)
        write_json(path, {"n_images": len(self.images), **values})


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """What ONNX Runtime's calibrator reads from. It raises on a bad image: a set that ends early must not pass."""

    def __init__(self, calibration_set: Sequence[LabelledImage], preprocessing: Preprocessing, input_name: str) -> None:
        self.records: list[dict[str, str]] = []
        self._input_name = input_name
        self._batches = self._read(calibration_set, preprocessing)

    def _read(self, calibration_set: Sequence[LabelledImage], preprocessing: Preprocessing) -> Iterator[images.Pixels]:
        def load(image: LabelledImage) -> tuple[images.Pixels, str]:
            return images.load(image.path, preprocessing), hashlib.sha256(images.read(image.path)).hexdigest()

        threads = n_cores()
        loaded = prefetch(load, calibration_set, n_threads=threads, ahead=4 * threads)
        for batch in batches(zip(calibration_set, loaded, strict=True), _BATCH):
            self.records += [{"path": str(image.path), "sha256": digest} for image, (_, digest) in batch]
            yield np.stack([pixels for _, (pixels, _) in batch])

    def get_next(self) -> dict[str, images.Pixels] | None:  # ONNX Runtime's name for it; None ends the set
        batch = next(self._batches, None)
        return None if batch is None else {self._input_name: batch}


def calibrate(
    model: Path, calibration_set: Sequence[LabelledImage], preprocessing: Preprocessing, op_types: Sequence[str]
) -> Calibration:
    """Run the float network on the calibration set and keep the lowest and highest value of every tensor.

    ONNX Runtime's min-max calibrator reduces each tensor inside the graph, so memory does not grow with the set.

    Args:
        model: float ONNX file that takes pixels.
        op_types: operators whose inputs and outputs will be quantised.

    Raises:
        ImageError: an image of the set cannot be read; nothing is left out quietly.
        ExportError: the set is empty, or a range is not finite.
    """
    if not calibration_set:
        raise ExportError("the calibration set is empty; INT8 ranges need real images, and no others are invented")
    with tempfile.TemporaryDirectory(prefix="edgecls-") as folder:
        calibrator = create_calibrator(
            model, list(op_types), str(Path(folder) / "augmented.onnx"), CalibrationMethod.MinMax
        )
        input_name = calibrator.infer_session.get_inputs()[0].name
        reader = _Batches(calibration_set, preprocessing, input_name)
        calibrator.collect_data(reader)
        tensors = calibrator.compute_data().data
    ranges = {
        name: (float(np.min(data.range_value[0])), float(np.max(data.range_value[1]))) for name, data in tensors.items()
    }
    return Calibration(ranges, reader.records, preprocessing, sha256_of(model))
