"""Float32 ONNX to float16 ONNX: half the weights' bytes, and on GPUs about twice the speed. Pixels in, float32 out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final, cast

import onnx
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from edgecls.export.graphs.graph import HEAD_PREFIX, embed_manifest
from edgecls.manifest import Manifest
from edgecls.runs import atomic_path

_COPY: Final = "_cast_to_fp16"  # what the converter puts behind the name of what it casts


def fp16_from_onnx(model: Path, manifest: Manifest, out: Path, in_float32: Collection[str] = ()) -> None:
    """Write the float16 graph of a float32 graph, atomically.

    Args:
        model: FP32 ONNX file.
        manifest: goes into the file.
        in_float32: names of the nodes that stay float32.
    """
    graph = half(onnx.load(model), in_float32)
    embed_manifest(graph, manifest)
    onnx.checker.check_model(graph, full_check=True)
    with atomic_path(out) as partial:
        onnx.save(graph, partial)


def half(graph: onnx.ModelProto, in_float32: Collection[str] = ()) -> onnx.ModelProto:
    """A copy with weights and maths in float16; tensors keep their names, the logits are cast back to float32.

    A fitted classifier behind the network stays in float32: it is a thousandth of the work, and kernels and logarithms
    lose much in float16.

    The types are in the graph, as strongly typed TensorRT networks want them (the only kind from TensorRT 11 on).

    Args:
        in_float32: names of the nodes that stay float32, with casts around them and none between two of them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    head = _taken_off(copy.graph)
    weights = {tensor.name for tensor in copy.graph.initializer}
    computed = [value for value in copy.graph.value_info if value.name not in weights]
    del copy.graph.value_info[:]  # the converter would cast a weight that is listed there, to float16 and back
    copy.graph.value_info.extend(computed)
    halved = cast(onnx.ModelProto, convert_float_to_float16(copy, keep_io_types=True, node_block_list=list(in_float32)))
    if in_float32:
        _join_casts(halved.graph, frozenset(in_float32))
        OnnxModel(halved).topological_sort()  # the converter puts its casts at the end
        del halved.graph.value_info[:]
        halved = onnx.shape_inference.infer_shapes(halved)
    if head:
        halved.graph.node.extend(head.node)
        halved.graph.initializer.extend(head.initializer)
        del halved.graph.output[:]
        halved.graph.output.extend(head.output)
    return halved


def _join_casts(graph: onnx.GraphProto, in_float32: Collection[str]) -> None:
    """Give what a float32 node computes its own name again, and hand it to other float32 nodes as it is.

    The converter names the float16 copy of a tensor after it, and casts it there and back between two float32 nodes,
    where what float16 cannot hold would be lost.
    """
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] == node.output[0] + _COPY:
            names |= {node.input[0]: node.output[0], node.output[0]: node.input[0]}
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]
    float32 = {name for node in graph.node if node.name in in_float32 for name in node.output}
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    answers = {output.name for output in graph.output}
    for node in list(graph.node):
        whole = source.get(node.input[0], "") if node.op_type == "Cast" else ""
        if whole not in float32:
            continue
        if node.output[0] in answers:
            node.CopyFrom(helper.make_node("Identity", [whole], list(node.output), node.name))
        else:
            names = {node.output[0]: whole}
            graph.node.remove(node)
            for other in graph.node:
                other.input[:] = [names.get(name, name) for name in other.input]
    read = answers.union(*(node.input for node in graph.node))
    for node in [node for node in graph.node if node.output[0] in source and node.output[0] not in read]:
        graph.node.remove(node)


def _taken_off(graph: onnx.GraphProto) -> onnx.GraphProto | None:
    """Cut the fitted classifier off, so that the graph answers with its features; None where there is none."""
    nodes = [node for node in graph.node if node.name.startswith(HEAD_PREFIX)]
    if not nodes:
        return None
    constants = [each for each in graph.initializer if each.name.startswith(HEAD_PREFIX)]
    inside = {name for node in nodes for name in node.output} | {each.name for each in constants}
    (features,) = {name for node in nodes for name in node.input if name and name not in inside}
    head = helper.make_graph(nodes, "head", [], list(graph.output), constants)
    for node in nodes:
        graph.node.remove(node)
    for each in constants:
        graph.initializer.remove(each)
    kept = [each for each in graph.value_info if not each.name.startswith(HEAD_PREFIX) and each.name != features]
    del graph.value_info[:], graph.output[:]
    graph.value_info.extend(kept)
    graph.output.append(helper.make_tensor_value_info(features, TensorProto.FLOAT, None))
    return head
