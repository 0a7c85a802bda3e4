"""Even out the channels between two convolutions without changing what the network computes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgecls.export.graphs.graph import PIXEL_SCALE

# f(s x) = s f(x) for every s > 0, channel by channel: a factor may be moved across these
_HOMOGENEOUS: Final = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
_SWEEPS: Final = 10  # a convolution in the middle of a chain belongs to two pairs


def equalised(graph: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy in which no channel between two convolutions is much louder than the others; None if there are no pairs.

    One range serves all channels of a tensor in INT8: a channel a thousand times as loud as its neighbours silences
    them. Where a convolution's output goes only to another one, through nothing but ReLU and pooling, channel `c` is
    divided by `s[c]` on one side and multiplied on the other, `s` being sqrt(r1 / r2) of the largest weights on either
    side. Clip (ReLU6) and squeeze-excite do not allow it.

    Source: M. Nagel et al., arXiv 1906.04721, section 4.1. On ordinary networks it gained nothing (docs/int8.md); it is
    for those that INT8 breaks.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    pairs = _pairs(copy)
    if not pairs:
        return None
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    names = {name for pair in pairs for node in pair for name in node.input[1:]}
    weights = {name: numpy_helper.to_array(tensors[name]).astype(np.float64) for name in names}
    for _ in range(_SWEEPS):
        for first, second in pairs:
            _equalise(first, second, weights)
    for name, values in weights.items():
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return copy


def _equalise(first: onnx.NodeProto, second: onnx.NodeProto, weights: dict[str, NDArray[Any]]) -> None:
    depthwise = _is_depthwise(weights[second.input[1]])
    largest_out = np.abs(weights[first.input[1]]).max((1, 2, 3))
    largest_in = np.abs(weights[second.input[1]]).max((1, 2, 3) if depthwise else (0, 2, 3))
    dead = (largest_out == 0) | (largest_in == 0)
    s = np.sqrt(np.where(dead, 1, largest_out) / np.where(dead, 1, largest_in))
    s[dead] = 1
    s[~dead] /= (
        np.exp(np.log(s[~dead]).mean()) if not dead.all() else 1
    )  # the tensor as a whole stays as loud as it was
    weights[first.input[1]] /= s[:, None, None, None]
    if len(first.input) > 2:
        weights[first.input[2]] /= s
    weights[second.input[1]] *= s[:, None, None, None] if depthwise else s[None, :, None, None]


def _pairs(graph: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Convolutions of which the first's output reaches the second alone, with weights that no other node uses."""
    shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    answers = {output.name for output in graph.graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def owns_its_weights(node: onnx.NodeProto) -> bool:
        return all(name in shapes and len(readers[name]) == 1 for name in node.input[1:])

    def next_convolution(node: onnx.NodeProto) -> onnx.NodeProto | None:
        while len(readers.get(node.output[0], [])) == 1 and node.output[0] not in answers:
            node = readers[node.output[0]][0]
            if node.op_type not in _HOMOGENEOUS:
                return node if node.op_type == "Conv" else None
        return None

    pairs = []
    for first in graph.graph.node:
        if first.op_type != "Conv" or PIXEL_SCALE in first.input or not owns_its_weights(first):
            continue
        second = next_convolution(first)
        if second is None or not owns_its_weights(second) or len(shapes[second.input[1]]) != 4:
            continue
        channels, weight = shapes[first.input[1]][0], shapes[second.input[1]]
        if weight[1] == channels or (weight[1] == 1 and weight[0] == channels):  # one group, or one a channel
            pairs.append((first, second))
    return pairs


def _is_depthwise(weight: NDArray[Any]) -> bool:
    return bool(weight.shape[1] == 1 and weight.shape[0] > 1)
