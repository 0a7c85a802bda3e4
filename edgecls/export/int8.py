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
from edgecls.export.graph import PIXEL_SCALE, embed_manifest
from edgecls.manifest import Manifest
from edgecls.runs import atomic_path, sha256_of

Flavour = Literal["int8", "int8-cpu"]

# Where the time goes, and what must stay in integers between two of those. What is not here (Sigmoid and Mul of
# squeeze-excite, the mean before the head) stays float.
QUANTIZED_OPS: Final = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
)  # fmt: skip

# TensorRT fuses a convolution with the activation behind it if nothing stands between them: there, only the inputs of
# these are quantised. (With Q/DQ between the two, symmetric int8 lost 1.3 points on cats and dogs.) On CPUs a uint8
# range that starts at zero takes the activation's place, so there it must be among the quantised.
_WITH_QUANTIZED_INPUTS: Final = ("Conv", "Gemm", "MatMul", "Add")

_ACTIVATIONS: Final = {"int8": QuantType.QInt8, "int8-cpu": QuantType.QUInt8}


def int8_from_onnx(model: Path, calibration: Calibration, flavour: Flavour, manifest: Manifest, out: Path) -> None:
    """Write the INT8 graph of a float graph, atomically.

    Args:
        model: the float ONNX file that was calibrated.
        manifest: goes into the file.
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
    for_tensorrt = flavour == "int8"
    graph = onnx.load(model)
    quantizer = QDQQuantizer(
        graph,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=_ACTIVATIONS[flavour],
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[],
        nodes_to_exclude=_kept_in_float(graph),
        op_types_to_quantize=list(_WITH_QUANTIZED_INPUTS if for_tensorrt else QUANTIZED_OPS),
        extra_options={
            "ActivationSymmetric": for_tensorrt,
            "WeightSymmetric": True,
            # the logits leave the last Gemm in float: 256 steps over their whole range would blur probabilities
            "OpTypesToExcludeOutputQuantization": list(_WITH_QUANTIZED_INPUTS if for_tensorrt else ("Gemm", "MatMul")),
        },
    )
    quantizer.quantize_model()
    quantized = quantizer.model.model
    embed_manifest(quantized, manifest)
    with atomic_path(out) as partial:
        onnx.save(quantized, partial)


def _kept_in_float(graph: onnx.ModelProto) -> list[str]:
    """The convolution that scales the pixels, and in depthwise networks the two at the head of the way.

    Where a depthwise convolution follows the first one, the two see few channels of very different ranges: left in
    float they halve the error of EfficientNet-Lite0's logits (mean square 0.0179 to 0.0103 for TensorRT's graph, 0.0122
    to 0.0081 for CPUs) for 4 % of the multiplications; 512 calibration and 675 other photos of cats and dogs.
    """
    shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    scaling, *convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    if PIXEL_SCALE not in scaling.input:
        raise ExportError("the first convolution of this graph does not scale pixels; was it exported by edgecls?")
    stem = convolutions[:2]
    is_depthwise = len(stem) == 2 and shapes[stem[1].input[1]][1] == 1  # one input channel a filter
    return [node.name for node in (scaling, *(stem if is_depthwise else ()))]
