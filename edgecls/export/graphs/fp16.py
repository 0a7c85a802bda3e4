"""Float32 ONNX to float16 ONNX: half the weights' bytes, and on GPUs about twice the speed. Pixels in, float32 out."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import onnx
from onnx import TensorProto, helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgecls.export.graphs.graph import HEAD_PREFIX, embed_manifest
from edgecls.manifest import Manifest
from edgecls.runs import atomic_path


def fp16_from_onnx(model: Path, manifest: Manifest, out: Path) -> None:
    """Write the float16 graph of a float32 graph, atomically.

    Args:
        model: FP32 ONNX file.
        manifest: goes into the file.
    """
    graph = half(onnx.load(model))
    embed_manifest(graph, manifest)
    onnx.checker.check_model(graph, full_check=True)
    with atomic_path(out) as partial:
        onnx.save(graph, partial)


def half(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with weights and maths in float16; tensors keep their names, the logits are cast back to float32.

    A fitted classifier behind the network stays in float32: it is a thousandth of the work, and kernels and logarithms
    lose much in float16.

    The types are in the graph, as strongly typed TensorRT networks want them (the only kind from TensorRT 11 on).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    head = _taken_off(copy.graph)
    halved = cast(onnx.ModelProto, convert_float_to_float16(copy, keep_io_types=True))
    if head:
        halved.graph.node.extend(head.node)
        halved.graph.initializer.extend(head.initializer)
        del halved.graph.output[:]
        halved.graph.output.extend(head.output)
    return halved


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
