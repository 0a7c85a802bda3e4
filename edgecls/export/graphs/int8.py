"""Float ONNX and ranges to INT8 ONNX with Q/DQ nodes, once for TensorRT and once for CPUs.

TensorRT wants symmetric int8 activations and refuses uint8 ones; the integer units of CPUs want uint8
activations (ONNX Runtime ran symmetric int8 slower than float). Both graphs come from the same ranges.
Weights are int8 per output channel in both; per-tensor weights cost 7 points of ImageNet top-1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgecls.calibration.ranges import Calibration, network_sha256
from edgecls.errors import ExportError
from edgecls.export.graphs.fp16 import half
from edgecls.export.graphs.graph import HEAD_PREFIX, PIXEL_SCALE, embed_manifest
from edgecls.export.options import DEPTHWISE, Flavour
from edgecls.manifest import Manifest

# Where the time goes. TensorRT fuses a convolution with the activation behind it if nothing stands between them, so
# for it only the inputs of these are quantised. (With Q/DQ between the two, symmetric int8 lost 1.3 points on cats and
# dogs.) Both inputs of an Add are: a residual sum that reads one of them in float would be computed in float.
LAYERS: Final = ("Conv", "Gemm", "MatMul", "Add")

# On CPUs what stands between two layers must be in integers too, and a uint8 range that starts at zero takes the place
# of the activation. What is in neither list (Sigmoid and Mul of squeeze-excite, the mean before the head) stays float.
_BETWEEN_LAYERS: Final = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")

QUANTIZED_OPS: Final = (*LAYERS, *_BETWEEN_LAYERS)


class _Quantizer(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's quantiser, less the tensors that only given-back layers read.

    Its own `nodes_to_exclude` leaves the output of the layer before in INT8, and an excluded layer then reads
    the very values that it was given back for.
    """

    kept_tensors: Collection[str] = ()

    def quantize_activation_tensor(self, tensor_name: str) -> None:
        if tensor_name not in self.kept_tensors:
            super().quantize_activation_tensor(tensor_name)

    def quantize_output_same_as_input(self, output_name: str, input_name: str, node_name: str) -> None:
        if output_name not in self.kept_tensors:
            super().quantize_output_same_as_input(output_name, input_name, node_name)


def int8_of(
    graph: onnx.ModelProto,
    calibration: Calibration,
    flavour: Flavour,
    manifest: Manifest,
    given_back: Collection[str] = (),
    in_float32: Collection[str] = (),
) -> onnx.ModelProto:
    """The INT8 model of a float32 graph.

    Args:
        graph: the float32 graph that was calibrated.
        flavour: `int8` for TensorRT (symmetric int8 activations, the rest in float16), `int8-cpu` for CPUs (uint8
            activations, the rest in float32).
        manifest: goes into the metadata.
        given_back: names of layers that stay float, of those that `layers` lists.
        in_float32: names of nodes that float16 would break.

    Raises:
        ExportError: the ranges are those of another network.
    """
    if network_sha256(graph) != calibration.network_sha256:
        raise ExportError("the calibration was taken from another network; run edgecls export --int8 again")
    quantised = quantized(half(graph, in_float32) if flavour == "int8" else graph, calibration, flavour, given_back)
    embed_manifest(quantised, manifest)
    return quantised


@np.errstate(over="ignore", invalid="ignore")  # what is beyond float16 becomes infinite, and the gate says so
def quantized(
    graph: onnx.ModelProto, calibration: Calibration, flavour: Flavour, given_back: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy with Q/DQ nodes; what is not quantised keeps the type, float32 or float16, that it has in `graph`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    _correct_biases(copy, calibration, set(layers(copy)) - set(given_back))
    for_tensorrt = flavour == "int8"
    kept_nodes, kept_tensors = _kept(copy, {*_always_float(copy), *given_back})
    quantizer = _Quantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, _ranges(copy, calibration)),
        nodes_to_quantize=[],
        nodes_to_exclude=kept_nodes,
        op_types_to_quantize=list(LAYERS if for_tensorrt else QUANTIZED_OPS),
        extra_options={
            "ActivationSymmetric": for_tensorrt,
            "WeightSymmetric": True,
            # TensorRT adds biases in float and refuses to dequantise int32; CPUs add them in int32
            "QuantizeBias": not for_tensorrt,
            # the logits leave the last Gemm in float: 256 steps over their whole range would blur probabilities
            "OpTypesToExcludeOutputQuantization": list(LAYERS if for_tensorrt else ("Gemm", "MatMul")),
        },
    )
    quantizer.kept_tensors = kept_tensors
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # ONNX asks for it; the quantiser puts Q/DQ at the end
    return quantizer.model.model  # type: ignore[no-any-return]


def with_corrected_biases(graph: onnx.ModelProto, calibration: Calibration) -> onnx.ModelProto:
    """A float copy whose biases have taken what rounding all weights shifts on average, as INT8 graphs have them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    _correct_biases(copy, calibration, layers(copy))
    return copy


def rounded_in(quantised: onnx.ModelProto) -> tuple[frozenset[str], dict[str, int]]:
    """Names of the tensors that an INT8 graph rounds, and of its weights with the axis of their output channels."""
    tensors = frozenset(node.input[0] for node in quantised.graph.node if node.op_type == "QuantizeLinear")
    weights = {tensor.name for tensor in quantised.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    of_weights = [
        node for node in quantised.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in weights
    ]
    return tensors, {node.input[0].removesuffix("_quantized"): _attribute(node, "axis") for node in of_weights}


def _correct_biases(graph: onnx.ModelProto, calibration: Calibration, names: Collection[str]) -> None:
    """Add to each layer's bias what rounding its weights takes from its mean output.

    The mean of (weights - rounded weights) * input needs only the mean input of each channel. It left a third of the
    squared error of EfficientNet-Lite0's logits on ImageNet photos, 0.0107 to 0.0038 in the CPU's graph; docs/int8.md.
    Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721.
    """
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    users = Counter(name for node in graph.graph.node for name in node.input)
    cast_from = _cast_from(graph)
    for node in graph.graph.node:
        read = cast_from.get(node.input[0], node.input[0]) if node.input else ""
        means = calibration.means.get(read) if node.name in names else None
        if means is None or node.op_type not in ("Conv", "Gemm") or node.input[1] not in weights:
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])
        by_output = weight if node.op_type == "Conv" or _attribute(node, "transB") else weight.T
        lost = (by_output - _rounded(by_output)).astype(np.float64)
        lost = lost.reshape(*lost.shape[:2], -1).sum(2)  # (outputs, inputs of a group)
        groups = _attribute(node, "group") or 1 if node.op_type == "Conv" else 1
        inputs = np.repeat(np.reshape(means, (groups, -1)), len(lost) // groups, axis=0)  # (outputs, inputs of a group)
        shift = (lost * inputs).sum(1)
        if len(node.input) < 3 or not node.input[2]:
            bias, before = f"{node.name}.bias", np.zeros(len(shift), weight.dtype)
            del node.input[2:]
            node.input.append(bias)
        elif node.input[2] in weights and users[node.input[2]] == 1:
            bias, before = node.input[2], numpy_helper.to_array(weights[node.input[2]])
            graph.graph.initializer.remove(weights[bias])
        else:
            continue
        corrected = (before.astype(np.float64) + shift.reshape(before.shape)).astype(before.dtype)
        graph.graph.initializer.append(numpy_helper.from_array(corrected, bias))


def _rounded(by_output: NDArray[Any]) -> NDArray[Any]:
    """Weights as int8 per output channel will hold them, as onnxruntime.quantization rounds."""
    largest = np.abs(by_output).reshape(len(by_output), -1).max(1).reshape(-1, *[1] * (by_output.ndim - 1))
    scale = largest / by_output.dtype.type(127)
    scale[scale < np.finfo(by_output.dtype).tiny] = 1  # a channel that is all but zero becomes zero
    exact = by_output.astype(np.float32) / scale  # in float16 some land on the other side of a half
    return (np.rint(exact).clip(-127, 127) * scale).astype(by_output.dtype)  # type: ignore[no-any-return]


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def layers(graph: onnx.ModelProto) -> list[str]:
    """Names of the layers that are quantised unless given back, in the order of the graph."""
    always_float = _always_float(graph)
    return [node.name for node in graph.graph.node if node.op_type in LAYERS and node.name not in always_float]


def layers_of_kind(graph: onnx.ModelProto, kind: str) -> list[str]:
    """Names of the quantised layers of a kind.

    Args:
        kind: `depthwise`, which have a filter a channel, or `squeeze-excite`, which work on maps of one pixel.
    """
    weights = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    sizes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim[2:]] for each in inferred.value_info}
    quantised, found = set(layers(graph)), []
    for node in graph.graph.node:
        if node.op_type == "Conv" and node.name in quantised and node.input[1] in weights:
            shape = weights[node.input[1]]
            is_depthwise = shape[1] == 1 and shape[0] > 1
            if is_depthwise if kind == DEPTHWISE else sizes.get(node.input[0]) == [1, 1]:
                found.append(node.name)
    return found


def _ranges(graph: onnx.ModelProto, calibration: Calibration) -> dict[str, Any]:
    # scales are written in the type of the ranges, and Q/DQ wants the type of the values
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    types = {each.name: each.type.tensor_type.elem_type for each in [*inferred.value_info, *inferred.output]}
    ranges = dict(calibration.ranges)
    for name, source in _cast_from(graph).items():
        if source in ranges:
            ranges.setdefault(name, ranges[source])
    found = {}
    for name, (low, high) in ranges.items():
        to_type = np.float16 if types.get(name) == onnx.TensorProto.FLOAT16 else np.float32
        found[name] = TensorData(lowest=to_type(low), highest=to_type(high))
    return found


def _cast_from(graph: onnx.ModelProto) -> dict[str, str]:
    """What a cast hands on, by the name of its output: the same values in another type."""
    return {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "Cast"}


def _kept(graph: onnx.ModelProto, given_back: set[str]) -> tuple[list[str], frozenset[str]]:
    """What stays float: the layers given back, what only hands values to them, and the tensors that only those read."""
    readers: dict[str, set[str]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    kept = set(given_back)

    def only_kept_read(tensor: str) -> bool:
        return bool(readers.get(tensor)) and readers[tensor] <= kept

    for node in reversed(graph.graph.node):
        if node.op_type in _BETWEEN_LAYERS and all(map(only_kept_read, node.output)):
            kept.add(node.name)
    return sorted(kept), frozenset(filter(only_kept_read, readers))


def _always_float(graph: onnx.ModelProto) -> list[str]:
    """The convolution that scales the pixels, sums with a constant, and in depthwise networks the two at the start.

    And all of a fitted classifier behind the network.

    Where a depthwise convolution follows the first one, the two see few channels of very different ranges: left in
    float they halve the error of EfficientNet-Lite0's logits (mean square 0.0179 to 0.0103 for TensorRT's graph, 0.0122
    to 0.0081 for CPUs) for 4 % of the multiplications; 512 calibration and 675 other photos of cats and dogs.
    """
    shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    scaling, *convolutions = [node for node in graph.graph.node if node.op_type == "Conv"] or [None]
    if scaling is None or PIXEL_SCALE not in scaling.input:
        raise ExportError("the first convolution of this graph does not scale pixels; was it exported by edgecls?")
    stem = convolutions[:2]
    is_depthwise = len(stem) == 2 and shapes[stem[1].input[1]][1] == 1  # one input channel a filter
    # a sum with a constant is no residual: nothing is gained, and TensorRT refuses the int8 constant
    shifts = [node for node in graph.graph.node if node.op_type == "Add" and any(name in shapes for name in node.input)]
    head = [node for node in graph.graph.node if node.name.startswith(HEAD_PREFIX)]
    return [node.name for node in (scaling, *(stem if is_depthwise else ()), *shifts, *head)]
