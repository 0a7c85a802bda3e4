"""Somebody else's float ONNX classifier: what it is, what it takes, and what it answers to real photos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner

from edgecls.errors import ExportError, OptionError, RunError
from edgecls.images import Pixels
from edgecls.manifest import METADATA_KEY, Preprocessing

_QUANTIZED: Final = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
     "MatMulInteger")
)  # fmt: skip
_RESHAPING: Final = frozenset(("Identity", "Flatten", "Reshape", "Squeeze", "Dropout"))  # the same numbers behind them
_HALF: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Network:
    """A file's graph and what it takes.

    Attributes:
        model: functions inlined, otherwise as in the file.
        batch: fixed number of images; None where it is dynamic.
        size_hw: fixed height and width in pixels; None where they are dynamic.
    """

    file: Path
    model: onnx.ModelProto
    input: str
    is_nhwc: bool
    batch: int | None
    size_hw: tuple[int | None, int | None]
    metadata: Mapping[str, str]


def read_network(file: Path) -> Network:
    """Read a file, and refuse what is no float network from RGB images.

    Raises:
        RunError: missing, damaged, or an edgecls model already.
        ExportError: quantised, in half precision, with operators of others, or with another input.
    """
    model = _load(file)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY in metadata:
        raise RunError(f"{file} is an edgecls model already: edgecls predict IMAGES --model {file}")
    if model.functions:
        model = inliner.inline_local_functions(model)
    _refuse_other_precisions(model, file)
    drop_unused_domains(model)
    foreign = sorted({f"{node.op_type} of {node.domain}" for node in model.graph.node if _plain(node.domain)})
    if foreign:
        raise ExportError(
            f"{file}: has operators outside the ONNX standard ({', '.join(foreign)}); export without them"
        )
    given = _only_input(model, file)
    dims = [dim.dim_value or None for dim in given.type.tensor_type.shape.dim]
    if given.type.tensor_type.elem_type != TensorProto.FLOAT or len(dims) != 4 or 3 not in (dims[1], dims[3]):
        raise ExportError(
            f"{file}: input {given.name!r} is {_described(given)}; expected float32 (n, 3, h, w) or (n, h, w, 3), RGB"
        )
    is_nhwc = dims[1] != 3
    size_hw = (dims[1], dims[2]) if is_nhwc else (dims[2], dims[3])
    return Network(file, model, given.name, is_nhwc, dims[0], size_hw, metadata)


def _load(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        raise RunError(f"{file}: no such file; expected an ONNX classifier")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError; protobuf has no types
        raise RunError(f"{file}: not an ONNX file ({error}); expected a float classifier exported to ONNX") from error
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


def _only_input(model: onnx.ModelProto, file: Path) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}  # old exporters list weights as inputs too
    inputs = [given for given in model.graph.input if given.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(f"{given.name} {_described(given)}" for given in inputs)
        raise ExportError(f"{file}: has {len(inputs)} inputs ({names}); expected one, the images")
    given = onnx.ValueInfoProto()
    given.CopyFrom(inputs[0])
    del model.graph.input[:]
    model.graph.input.append(given)
    return given


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim)
    return f"{TensorProto.DataType.Name(tensor.elem_type).lower()} ({dims})"


# --- What it answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Attributes:
    tensor: name of the logits in the original graph.
    softmax: operator behind them that is left out; None where there is none.
    is_flat: it is (n, n_classes), rather than (n, n_classes, 1, 1) or (n, 1, 1, n_classes).
    logits: (k, n_classes), of the original file for the golden photos.
    """

    tensor: str
    softmax: str | None
    is_flat: bool
    logits: Floats


def answer_of(network: Network, preprocessing: Preprocessing, photos: Pixels, n_labels: int) -> Answer:
    """Find the logits, before a Softmax at the end, and let the file answer the photos.

    Raises:
        OptionError: none of its outputs, or several, have a value for each label.
        ExportError: it does not run on such images, or answers otherwise than with finite logits.
    """
    inputs = normalised(photos, preprocessing, network.is_nhwc)
    output = _output_of(network, inputs, n_labels)
    tensor, softmax = _before_softmax(network, output)
    model = with_output(network.model, tensor)
    found = _in_batches(session_of(model, network.file), inputs, network)
    logits = found.reshape(len(inputs), -1)
    answers = _in_batches(session_of(with_output(network.model, output), network.file), inputs, network)
    answers = answers.reshape(len(inputs), -1)
    if not (np.isfinite(logits).all() and logits.shape == answers.shape):
        raise ExportError(f"{network.file}: its answers on real photos are not finite numbers, one for each class")
    exp = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exp / exp.sum(1, keepdims=True)
    if softmax:
        if not np.allclose(probabilities, np.exp(answers) if softmax == "LogSoftmax" else answers, atol=1e-4):
            raise ExportError(f"{network.file}: ends in a {softmax} that is not over the classes; export it without")
    elif logits.min() >= 0 and np.allclose(logits.sum(1), 1, atol=1e-3):
        raise ExportError(
            f"{network.file}: answers with probabilities, and no Softmax at its end that could be taken off; "
            "export it so that it answers with logits"
        )
    return Answer(tensor, softmax, found.ndim == 2, logits)


def normalised(photos: Pixels, preprocessing: Preprocessing, is_nhwc: bool) -> Floats:
    """(k, h, w, 3) uint8 -> what the original takes, in NumPy: this is what the merged graph is held to."""
    x = (photos.astype(np.float32) / 255 - preprocessing.mean) / preprocessing.std
    return np.ascontiguousarray(x if is_nhwc else x.transpose(0, 3, 1, 2), np.float32)


def session_of(model: onnx.ModelProto, file: Path, optimized: Path | None = None) -> Any:
    """ONNX Runtime on the CPU; `optimized` gets the graph with its constants folded. `file` is for messages."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # its errors are raised here, in our words
    if optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises a class of its own for each kind of damage
        raise RunError(f"{file}: ONNX Runtime cannot open it: {' '.join(str(error).split())[:300]}") from error


def _in_batches(session: Any, inputs: Floats, network: Network) -> Floats:
    """Answers (k, ...), one image after another or in the batches that the file is fixed to."""
    size = network.batch or 1
    answers = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        (answer,) = run_session(session, np.resize(batch, (size, *batch.shape[1:])), network)
        answers.append(answer[: len(batch)])
    return np.concatenate(answers)


def run_session(session: Any, batch: Floats, network: Network) -> list[NDArray[Any]]:
    """What each output of a session answers to a batch that `normalised` made."""
    try:
        return cast("list[NDArray[Any]]", session.run(None, {network.input: batch}))
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{network.file}: does not run on an input of shape {batch.shape}: {reason}") from error


def _output_of(network: Network, inputs: Floats, n_labels: int) -> str:
    """Name of the output with one value for each label; shapes are taken from a run, as files often leave them out."""
    session, size = session_of(network.model, network.file), network.batch or 1
    answers = run_session(session, np.resize(inputs[:1], (size, *inputs.shape[1:])), network)
    named = {output.name: np.asarray(answer) for output, answer in zip(session.get_outputs(), answers, strict=True)}
    fitting = [
        name
        for name, answer in named.items()
        if answer.dtype == np.float32 and answer.shape[:1] == (size,) and answer.size == size * n_labels
    ]
    if len(fitting) != 1:
        listed = ", ".join(f"{name} {answer.dtype} {answer.shape}" for name, answer in named.items())
        raise OptionError(
            f"{network.file}: {len(fitting)} of its outputs have one float32 value for each of {n_labels} labels; "
            f"expected exactly one. For a batch of {size} it answers {listed}"
        )
    return str(fitting[0])


def _before_softmax(network: Network, output: str) -> tuple[str, str | None]:
    """The tensor of the logits, and the Softmax or LogSoftmax behind it, if there is one."""
    producers = {name: node for node in network.model.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in _RESHAPING:
        node = producers.get(node.input[0])
    if node is not None and node.op_type in ("Sigmoid", "HardSigmoid"):
        raise ExportError(
            f"{network.file}: ends in a {node.op_type}, so each class is asked for itself (multi-label); edgecls "
            "gives an image one class. Export it without, if its classes exclude one another"
        )
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        return node.input[0], node.op_type
    return output, None


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


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Leave one entry for each domain that a node uses, the standard's first; ONNX Runtime lists all it knows."""
    used = set(_domains(model.graph))
    versions = {_plain(opset.domain): opset.version for opset in model.opset_import}
    kept = [helper.make_opsetid(domain, versions[domain]) for domain in sorted(used & set(versions))]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _domains(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield _plain(node.domain)
        for attribute in node.attribute:
            yield from _domains(attribute.g)
