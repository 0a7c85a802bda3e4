"""What a model file costs: bytes, parameters, and multiply-accumulate operations for one image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import shape_inference

from edgecls.runtime.pipeline import Member

_MATRIX_OPS: Final = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Cost:
    """Of one contestant; of several members the sums. None is what the files do not tell.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products, for one image in one view.
    """

    parameters: int | None
    bytes: int | None
    macs: int | None


def cost_of(members: tuple[Member, ...]) -> Cost:
    """The sums over the members."""
    parameters = [each.backend.manifest.metrics.get("parameters") for each in members]
    sizes = [each.file.stat().st_size if each.file else None for each in members]
    macs = [_macs(each.file) if each.file else None for each in members]
    return Cost(_sum(parameters), _sum(sizes), _sum(macs))


def _sum(values: list[int | float | None] | list[int | None]) -> int | None:
    known = [int(value) for value in values if value]
    return sum(known) if known and len(known) == len(values) else None


def _macs(file: Path) -> int | None:
    """None for an engine, and where the shapes cannot be inferred."""
    if file.suffix != ".onnx":
        return None
    try:
        graph = shape_inference.infer_shapes(onnx.load(file)).graph
    except (onnx.onnx_cpp2py_export.shape_inference.InferenceError, ValueError, OSError):
        return None
    shapes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in graph.value_info}
    shapes |= {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in graph.output}
    shapes |= {each.name: list(each.dims) for each in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type != "Conv" and node.op_type not in _MATRIX_OPS:
            continue
        weight, answer = shapes.get(node.input[1]), shapes.get(node.output[0])
        if not weight or not answer:
            return None
        if node.op_type == "Conv":  # weight (out, in / groups, kh, kw); answer (n, out, h, w)
            total += math.prod(answer[1:]) * math.prod(weight[1:])
        else:  # each answer is a product along the inner axis, as long as the weight has numbers for each column
            total += math.prod(answer[1:]) * math.prod(weight) // max(answer[-1], 1)
    return total or None
