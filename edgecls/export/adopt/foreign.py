"""Somebody else's float ONNX classifier: whether it is one, and its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto, helper, inliner

from edgecls.errors import ExportError, RunError, first_line
from edgecls.export.adopt.foreign_input import read_input
from edgecls.export.graphs.graph import all_nodes, drop_unused_domains, plain_domain
from edgecls.export.options import Layout
from edgecls.manifest import METADATA_KEY

_QUANTIZED: Final = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger")
)  # fmt: skip
_RANDOM: Final = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
_RATIO_AND_INPUT: Final = 2  # inputs of a Dropout; a third says whether it is in training mode
_HALF: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Network:
    """A file's graph and what it takes.

    Attributes:
        model: functions inlined, its input declared as it is; otherwise as in the file.
        batch: fixed number of images; None where it is dynamic.
        size_hw: fixed height and width in pixels; None where they are dynamic.
        is_unscaled: it takes pixels from 0 to 255 as they are, and scales them itself.
        n_dropouts: nodes that may have been in training mode, and are turned off in `model`.
    """

    file: Path
    model: onnx.ModelProto
    input: str
    is_nhwc: bool
    batch: int | None
    size_hw: tuple[int | None, int | None]
    is_unscaled: bool
    n_dropouts: int
    metadata: Mapping[str, str]


def read_network(file: Path, layout: Layout | None = None, size_hw: tuple[int, int] | None = None) -> Network:
    """Read a file, and refuse what is no float network from RGB images.

    Args:
        layout, size_hw: what the user says; see `read_input`.

    Raises:
        RunError: missing, damaged, or an edgecls model already.
        ExportError: quantised, in half precision or in training mode, with operators of others, or with another input.
        OptionError: the layout or the size must be given.
    """
    model = _load(file)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY in metadata:
        raise RunError(f"{file} is an edgecls model already: edgecls predict IMAGES --model {file}")
    if model.functions:
        model = inliner.inline_local_functions(model)
    _refuse_other_precisions(model, file)
    drop_unused_domains(model)
    foreign = sorted({f"{node.op_type} of {node.domain}" for node in model.graph.node if plain_domain(node.domain)})
    if foreign:
        raise ExportError(
            f"{file}: has operators outside the ONNX standard ({', '.join(foreign)}); export without them"
        )
    _refuse_training_mode(model, file)
    n_dropouts = _turn_off_dropout(model.graph)
    taken = read_input(model, file, layout, size_hw)
    return Network(
        file, model, taken.name, taken.is_nhwc, taken.batch, taken.size_hw, taken.is_unscaled, n_dropouts, metadata
    )


def _load(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        raise RunError(f"{file}: no such file; expected an ONNX classifier")
    try:
        model = onnx.load(file, format="protobuf", load_external_data=False)  # whatever the name ends in
    except Exception as error:  # protobuf's DecodeError; protobuf has no types
        raise RunError(
            f"{file}: not an ONNX file ({first_line(error)}); expected a float classifier exported to ONNX"
        ) from error
    if not (model.graph.node and model.opset_import):
        raise RunError(f"{file}: not an ONNX file, or one without a graph; expected a float classifier in ONNX")
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
    except (OSError, onnx.checker.ValidationError) as error:
        raise RunError(
            f"{file}: its weights are in a second file that is missing or damaged ({error}); put that file beside it"
        ) from error
    return model


def _refuse_other_precisions(model: onnx.ModelProto, file: Path) -> None:
    quantized = sorted(_QUANTIZED & {node.op_type for node in model.graph.node})
    if quantized:
        raise ExportError(
            f"{file}: is quantised already ({', '.join(quantized)}); adopt the float model, edgecls export --int8 "
            "quantises it"
        )
    kinds = {given.type.tensor_type.elem_type for given in model.graph.input}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    kinds |= {
        value
        for node in model.graph.node
        for attribute in node.attribute
        for value in (attribute.t.data_type, attribute.i if (node.op_type, attribute.name) == ("Cast", "to") else 0)
    }
    if kinds & set(_HALF):
        raise ExportError(f"{file}: has half-precision weights or maths; export it again in float32 and adopt that")


def _refuse_training_mode(model: onnx.ModelProto, file: Path) -> None:
    """In training mode a batch norm takes its statistics from the batch, and what drops branches draws numbers."""
    opset = model.opset_import[0].version
    nodes = list(all_nodes(model.graph))
    n_norms = sum(_is_training(node, opset) for node in nodes)
    random = sorted(_RANDOM & {node.op_type for node in nodes})
    if not (n_norms or random):
        return
    why = (
        f"{n_norms} of its batch norms take their statistics from the batch, so an answer depends on what is beside it"
    )
    if not n_norms:
        why = f"its {' and '.join(random)} draws a new number each time"
    raise ExportError(f"{file}: was exported in training mode: {why}; call model.eval() first, and export it again")


def _is_training(node: onnx.NodeProto, opset: int) -> bool:
    """Since opset 14 an attribute says it; before, that it answers with statistics too."""
    if node.op_type != "BatchNormalization":
        return False
    if opset >= 14:
        return any(each.name == "training_mode" and each.i for each in node.attribute)
    return len([name for name in node.output if name]) > 1


def _turn_off_dropout(graph: onnx.GraphProto) -> int:
    """Without its two last inputs a Dropout hands on what it is given; returns how many were told to drop."""
    trained = [node for node in all_nodes(graph) if node.op_type == "Dropout" and len(node.input) > _RATIO_AND_INPUT]
    for node in trained:
        del node.input[1:]
    return len(trained)


# --- Its graph -------------------------------------------------------------------------------------------------


def with_output(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """A copy that answers with this tensor alone, without the nodes that it does not need."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output}
    needed: set[int] = set()
    waiting = [tensor]
    while waiting:
        index = made_by.get(waiting.pop())
        if index is not None and index not in needed:
            needed.add(index)
            waiting += _read_by(graph.node[index])
    nodes = [node for index, node in enumerate(model.graph.node) if index in needed]
    read = {name for node in nodes for name in _read_by(node)}
    weights = [weight for weight in model.graph.initializer if weight.name in read]
    for field, kept in ((graph.node, nodes), (graph.initializer, weights)):
        del field[:]
        field.extend(kept)
    del graph.value_info[:], graph.output[:]
    graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    return copy


def _read_by(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those that its branches and loops capture included."""
    bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for body in bodies for inner in body.node for name in _read_by(inner))]
