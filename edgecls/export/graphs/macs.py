"""How much a network computes: multiplications of each layer for one image."""

from __future__ import annotations

import math

import onnx


def macs_of(graph: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of one image, by node name, of every convolution and matrix product with weights.

    A layer whose output has a size that the file does not say counts one place.
    """
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    places = {
        value.name: math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim[2:])
        for value in [*inferred.value_info, *inferred.output]
    }
    found = {}
    for node in graph.graph.node:
        shape = weights.get(node.input[1]) if len(node.input) > 1 else None
        if shape and node.op_type == "Conv":
            found[node.name] = math.prod(shape) * places.get(node.output[0], 1)
        elif shape and node.op_type in ("Gemm", "MatMul"):
            found[node.name] = math.prod(shape)
    return found
