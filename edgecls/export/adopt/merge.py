"""A foreign network and its preprocessing as one graph: pixels in, logits out, dynamic batch, constants folded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper, shape_inference, version_converter

from edgecls.errors import ExportError, RunError
from edgecls.export.adopt.answer import Answer, normalised
from edgecls.export.adopt.foreign import Network, with_output
from edgecls.export.graphs.graph import INPUT, OPSET, OUTPUT, PIXEL_SCALE
from edgecls.export.graphs.session import Floats, folded, run_session, session_of
from edgecls.golden import TOLERANCE, relative_difference
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing

_N_TOGETHER: Final = 3  # images in a batch, to tell what depends on it

_LOWEST_OPSET: Final = 13  # per-channel Q/DQ, and Softmax over one axis

_EXPORT_AGAIN: Final = (
    "Export it again with a dynamic batch: torch.onnx.export(..., dynamo=True, dynamic_shapes=({0: 'n'},)), "
    "Ultralytics export(format='onnx', dynamic=True), or tf2onnx with an input signature of [None, h, w, 3]"
)

# Each number that such a node answers with is one that it was given.
_HANDING_ON: Final = frozenset(("Gather", "Slice", "Split", "Cast", "Identity", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True)
class Merged:
    """What became of a foreign network.

    Attributes:
        model: uint8 pixels in, logits out, as `export/graphs/graph.py` names them; no manifest yet.
        n_freed: Reshape nodes that had the batch burnt in and take any now.
        has_fixed_sizes: sizes that the graph worked out from its input, such as paddings, became constants.
    """

    model: onnx.ModelProto
    n_freed: int
    has_fixed_sizes: bool


def merge(network: Network, answer: Answer, preprocessing: Preprocessing, photos: Pixels) -> Merged:
    """Free the batch, fix height and width, and put the preprocessing in front.

    Raises:
        ExportError: three images together are answered otherwise than one by one: something inside assumes a batch.
            Or ONNX cannot convert or merge the graph.
    """
    inputs = normalised(photos[:_N_TOGETHER], preprocessing, network.is_nhwc)
    model, n_freed = _free_batch(network, answer, inputs)
    model, has_fixed_sizes = _fix_sizes(network, model, inputs)
    return Merged(_with_preprocessing(network, model, answer, preprocessing), n_freed, has_fixed_sizes)


# --- The batch -------------------------------------------------------------------------------------------------


def _free_batch(network: Network, answer: Answer, inputs: Floats) -> tuple[onnx.ModelProto, int]:
    """The graph from the original's input to its logits with dynamic n and fixed height and width.

    Returns:
        the graph, and how many of its Reshape nodes had to be freed of a batch.
    """
    model = with_output(network.model, answer.tensor)
    free = helper.make_tensor_value_info(network.input, TensorProto.FLOAT, ["n", *inputs.shape[1:]])
    del model.graph.input[:]
    model.graph.input.append(free)
    try:
        _check_batches(network, model, answer, inputs)
        return model, 0
    except ExportError:
        n_freed = _free_reshapes(model.graph, network.batch or 1)
        if not n_freed:
            raise
    _check_batches(network, model, answer, inputs)
    return model, n_freed


def _check_batches(network: Network, model: onnx.ModelProto, answer: Answer, inputs: Floats) -> None:
    """Let it answer one image, and three, and compare with what the original file answers."""
    for n in (1, _N_TOGETHER):
        try:
            (got,) = run_session(session_of(model, network.file), inputs[:n], network.file)
        except (ExportError, RunError) as error:
            raise _burnt_in(network, n) from error
        expected = answer.logits[:n]
        if got.size != expected.size or not relative_difference(got.reshape(n, -1), expected) <= TOLERANCE:
            raise _burnt_in(network, n)


def _burnt_in(network: Network, n: int) -> ExportError:
    return ExportError(
        f"{network.file}: answers {n} image{'s' if n > 1 else ''} together otherwise than its own batch of "
        f"{network.batch or 1}: a batch size is burnt into the graph, for example by a Reshape. {_EXPORT_AGAIN}"
    )


def _free_reshapes(graph: onnx.GraphProto, batch: int) -> int:
    """Let each Reshape to (batch, ...) take its first dimension from what it is given; returns how many did.

    -1 is what the others leave; where one of them is -1 already, 0 copies the first dimension of the input.
    """
    constants = _constants(graph)
    n_freed = 0
    for node in graph.node:
        given, *shape = node.input if node.op_type == "Reshape" else [""]
        if given in constants or not shape or shape[0] not in constants:
            continue
        target = constants[shape[0]].copy()
        zero_is_zero = any(each.name == "allowzero" and each.i for each in node.attribute)
        if list(target.flat)[:1] != [batch] or (zero_is_zero and 0 in target):
            continue
        target[0] = 0 if -1 in target else -1
        node.input[1] = f"{node.output[0]}/free_shape"  # the old one may be that of other nodes too
        del node.attribute[:]
        graph.initializer.append(numpy_helper.from_array(target, node.input[1]))
        n_freed += 1
    return n_freed


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """What is given in the graph by name: weights, and the values of Constant nodes."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            is_tensor = isinstance(value, TensorProto)
            constants[node.output[0]] = numpy_helper.to_array(value) if is_tensor else np.asarray(value)
    return constants


# --- Height and width ------------------------------------------------------------------------------------------


def _fix_sizes(network: Network, model: onnx.ModelProto, inputs: Floats) -> tuple[onnx.ModelProto, bool]:
    """Put constants where the graph asks for a height, a width or a number of channels, which are fixed by now.

    Networks from TensorFlow pad "same", by an amount that exporters compute inside the graph. Constant
    paddings are folded into the convolutions behind them; computed ones stay, and INT8 ends in front of them.
    ONNX Runtime folds a Shape only where n is fixed too, and ONNX infers no shape behind the first such padding:
    so the graph is asked, for one image and for three. A dimension that is the same for both does not depend on n.

    Returns:
        the graph, and whether there were any.
    """
    sizes: list[str] = []
    for node in model.graph.node:  # each stands behind what it reads
        if node.op_type == "Shape" or (node.op_type in _HANDING_ON and node.input[0] in sizes):
            sizes += node.output
    if not sizes:
        return model, False
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sizes)  # types are inferred
    session = session_of(probe, network.file)
    of_one, of_three = (run_session(session, inputs[:n], network.file)[1:] for n in (1, _N_TOGETHER))
    same = {name: one for name, one, three in zip(sizes, of_one, of_three, strict=True) if np.array_equal(one, three)}
    fixed = [node for node in model.graph.node if node.output and set(node.output) <= set(same)]
    for node in fixed:
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(same[name]), name) for name in node.output)
        model.graph.node.remove(node)
    return with_output(model, model.graph.output[0].name), bool(fixed)


# --- The preprocessing -----------------------------------------------------------------------------------------


def _with_preprocessing(
    network: Network, model: onnx.ModelProto, answer: Answer, preprocessing: Preprocessing
) -> onnx.ModelProto:
    """Pixels in, logits out: the whole graph, with constants folded and batch norm in the convolutions."""
    try:
        model = compose.add_prefix(_at_our_opset(model, network.file), "network/")  # its input may be called as ours
        pixels = _pixel_graph(preprocessing, model.opset_import[0].version, is_nhwc=network.is_nhwc)
        model.ir_version = pixels.ir_version
        del model.metadata_props[:]
        found, n_classes = model.graph.output[0], answer.logits.shape[1]
        rename = helper.make_node("Identity", [found.name], [OUTPUT])
        flatten = helper.make_node("Flatten", [found.name], [OUTPUT], axis=1)
        model.graph.node.append(rename if answer.is_flat else flatten)
        found.CopyFrom(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", n_classes]))
        merged = compose.merge_models(pixels, model, [(_NORMALISED, f"network/{network.input}")])
        merged = folded(merged, network.file)
        _tidy(merged)
        merged = shape_inference.infer_shapes(merged, data_prop=True)
        onnx.checker.check_model(merged, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{network.file}: ONNX cannot merge the preprocessing into this graph: {reason}") from error
    return merged


_NORMALISED: Final = "normalised"


def _pixel_graph(preprocessing: Preprocessing, opset: int, *, is_nhwc: bool) -> onnx.ModelProto:
    """uint8 (n, h, w, 3) -> what the network takes: (pixels / 255 - mean) / std as a 1x1 depthwise convolution."""
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    scale = (1 / (255 * std)).astype(np.float32).reshape(3, 1, 1, 1)
    shift = (-mean / std).astype(np.float32)
    height, width = preprocessing.size_hw
    nodes = [
        # Cast before Transpose: TensorRT refuses to transpose uint8
        helper.make_node("Cast", [INPUT], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["channels_first"], perm=(0, 3, 1, 2)),
        helper.make_node(
            "Conv", ["channels_first", PIXEL_SCALE, "pixel_shift"], [_NORMALISED], group=3, kernel_shape=(1, 1)
        ),
    ]
    if is_nhwc:
        nodes[-1].output[0] = "scaled"
        nodes.append(helper.make_node("Transpose", ["scaled"], [_NORMALISED], perm=(0, 2, 3, 1)))
    shape = (height, width, 3) if is_nhwc else (3, height, width)
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", height, width, 3])],
        [helper.make_tensor_value_info(_NORMALISED, TensorProto.FLOAT, ["n", *shape])],
        [numpy_helper.from_array(scale, PIXEL_SCALE), numpy_helper.from_array(shift, "pixel_shift")],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def _at_our_opset(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """At opset `OPSET`; where ONNX cannot convert it, as it is if that will do.

    Raises:
        ExportError: it cannot be converted, and TensorRT or Q/DQ nodes could not use it as it is.
    """
    opset = model.opset_import[0].version
    if opset == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError, ValueError and its own
        if _LOWEST_OPSET <= opset < OPSET:
            return model
        raise ExportError(
            f"{file}: has opset {opset}, and ONNX cannot convert it to {OPSET} ({error}); export it again with "
            f"opset {_LOWEST_OPSET} to {OPSET}"
        ) from error


def _tidy(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes, and give the mean and standard deviation their name again."""
    del model.metadata_props[:], model.graph.value_info[:]
    model.producer_name, model.doc_string, model.graph.doc_string = "edgecls", "", ""
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    _rename_constant(model.graph, next(n for n in model.graph.node if n.op_type == "Conv").input[1], PIXEL_SCALE)


def _rename_constant(graph: onnx.GraphProto, old: str, new: str) -> None:
    for tensor in graph.initializer:
        if tensor.name == old:
            tensor.name = new
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
