"""A float16 graph as a GPU computes it, for a CPU: every value that is float16 there is rounded to float16 here.

ONNX Runtime on a CPU has no float16 kernels for most operators: it casts to float32 between them and drops the casts
that seem to do nothing, so a file that is asked there answers by float32 arithmetic, and a value of 240,000 passes.
Casts of a float32 graph it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx
from onnx import TensorProto, helper, numpy_helper

# What they hand on is float16 already where what they are given is
_EXACT: Final = frozenset(
    ("Clip", "Concat", "Flatten", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze")
)  # fmt: skip
_INTO_INTEGERS: Final = "DequantizeLinear"  # belongs to the integer layer behind it, which a GPU computes in integers


def computed_in_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 copy that rounds each float16 value to float16: 11 bits, infinite beyond 65,504.

    Sums are float32 inside a layer, as tensor cores have them, and rounded once. It is about two to three times as slow
    as the graph itself on a CPU.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    halves = _halves(graph)
    if not halves:
        return copy
    nodes = [each for node in copy.graph.node for each in _rounded(node, halves)]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    for tensor in copy.graph.initializer:
        _widen(tensor)
    for value in [*copy.graph.value_info, *copy.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def _halves(graph: onnx.ModelProto) -> frozenset[str]:
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    values = [*inferred.value_info, *inferred.output]
    weights = (tensor.name for tensor in graph.graph.initializer if tensor.data_type == TensorProto.FLOAT16)
    return frozenset(
        (*weights, *(each.name for each in values if each.type.tensor_type.elem_type == TensorProto.FLOAT16))
    )


def _rounded(node: onnx.NodeProto, halves: frozenset[str]) -> Iterator[onnx.NodeProto]:
    """The node in float32, and casts to float16 and back behind what it computes."""
    for attribute in node.attribute:
        _widen(attribute.t)
    if node.op_type == "Cast" and node.input[0] in halves and node.output[0] not in halves:
        yield node  # from float16: the value is there already
        return
    computed = [name for name in node.output if name in halves]
    if node.op_type == "Cast" and computed:
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    if node.op_type in _EXACT or node.op_type == _INTO_INTEGERS:
        computed = []
    node.output[:] = [f"{name}/exact" if name in computed else name for name in node.output]
    yield node
    for name in computed:
        yield helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], f"{name}/half", to=TensorProto.FLOAT16)
        yield helper.make_node("Cast", [f"{name}/half"], [name], f"{name}/back", to=TensorProto.FLOAT)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
