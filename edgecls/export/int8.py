"""Float ONNX and ranges to INT8 ONNX with Q/DQ nodes, once for TensorRT and once for CPUs.

TensorRT wants symmetric int8 activations and refuses uint8 ones; the integer units of CPUs want uint8
activations (ONNX Runtime ran symmetric int8 slower than float). Both graphs come from the same ranges.
Weights are int8 per output channel in both; per-tensor weights cost 7 points of ImageNet top-1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgecls.calibration.ranges import Calibration
from edgecls.errors import ExportError
from edgecls.runs import atomic_path, sha256_of

Flavour = Literal["int8", "int8-cpu"]

# Where the time goes, and what must stay in integers between two of those. What is not here (scaling of the
# pixels, Sigmoid and Mul of squeeze-excite, the mean before the head) stays float.
QUANTIZED_OPS: Final = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
)  # fmt: skip

_ACTIVATIONS: Final = {"int8": QuantType.QInt8, "int8-cpu": QuantType.QUInt8}


def int8_from_onnx(model: Path, calibration: Calibration, flavour: Flavour, out: Path) -> None:
    """Write the INT8 graph of a float graph, atomically; metadata is carried over.

    Args:
        model: the float ONNX file that was calibrated.
        flavour: `int8` for TensorRT (symmetric int8 activations), `int8-cpu` for CPUs (uint8 activations).

    Raises:
        ExportError: the ranges are those of another file.
    """
    if sha256_of(model) != calibration.model_sha256:
        raise ExportError(
            f"{model}: the calibration was taken from another model file; run edgecls export --int8 again"
        )
    ranges = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in calibration.ranges.items()
    }
    symmetric = flavour == "int8"
    graph = onnx.load(model)
    quantizer = QDQQuantizer(
        graph,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=_ACTIVATIONS[flavour],
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTIZED_OPS),
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            # the logits leave the last Gemm in float: 256 steps over their whole range would blur probabilities
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        },
    )
    quantizer.quantize_model()
    quantized = quantizer.model.model
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(graph.metadata_props)
    with atomic_path(out) as partial:
        onnx.save(quantized, partial)
