"""What somebody else's network answers: which of its outputs are logits, or what must be taken off to get at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgecls import metrics
from edgecls.errors import ExportError, OptionError
from edgecls.export.adopt.foreign import Network, with_output
from edgecls.export.graphs.session import Floats, run_session, session_of
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing

_RESHAPING: Final = frozenset(("Identity", "Flatten", "Reshape", "Squeeze", "Dropout"))  # the same numbers behind them
_SOFTMAX: Final = ("Softmax", "LogSoftmax")
_SIGMOIDS: Final = ("Sigmoid", "HardSigmoid")
_TWO: Final = 2  # classes that a network may tell apart by one value
_TWO_LOGITS: Final = "edgecls/two_logits"


@dataclass(frozen=True)
class Answer:
    """Which output of a network answers, where its logits are, and what they are.

    Attributes:
        output: name of the output that answers; one of several in `n_outputs`.
        tensor: name of the logits in the graph of the network.
        ending: operator behind them that is left out (Softmax, LogSoftmax, Sigmoid); None where there is none.
        is_binary: the network has one value for two classes; the logits are 0 and that value, before its Sigmoid.
        is_flat: the tensor is (n, n_classes), rather than (n, n_classes, 1, 1) or (n, 1, 1, n_classes).
        logits: (k, n_classes), of the original file for the golden photos.
    """

    output: str
    n_outputs: int
    tensor: str
    ending: str | None
    is_binary: bool
    is_flat: bool
    logits: Floats


def answer_of(
    network: Network, preprocessing: Preprocessing, photos: Pixels, n_labels: int, output: str | None = None
) -> Answer:
    """Find the logits, before a Softmax or Sigmoid at the end, and let the file answer the photos.

    Args:
        output: name of the output to take; None takes the one that has a value for each label, or for two labels one.

    Raises:
        OptionError: no such output; none of them, or several that disagree, have a value for each label.
        ExportError: it does not run on such images, or answers otherwise than with finite logits.
    """
    inputs = normalised(photos, preprocessing, network.is_nhwc)
    outputs = _outputs(network, inputs)
    end = _end_of(network, inputs, outputs, n_labels, output)
    is_binary = n_labels == _TWO and outputs[end.output].size == (network.batch or 1)
    tensor = _two_logits(network.model.graph, end.tensor) if is_binary else end.tensor
    found = _in_batches(with_output(network.model, tensor), inputs, network)
    logits = found.reshape(len(inputs), -1)
    answers = _in_batches(with_output(network.model, end.output), inputs, network).reshape(len(inputs), -1)
    _prove(network, end, logits, answers, is_binary)
    return Answer(end.output, len(outputs), tensor, end.ending, is_binary, found.ndim == 2, logits)


def normalised(photos: Pixels, preprocessing: Preprocessing, is_nhwc: bool) -> Floats:
    """(k, h, w, 3) uint8 -> what the original takes, in NumPy: this is what the merged graph is held to."""
    x = (photos.astype(np.float32) / 255 - preprocessing.mean) / preprocessing.std
    return np.ascontiguousarray(x if is_nhwc else x.transpose(0, 3, 1, 2), np.float32)


def _in_batches(model: onnx.ModelProto, inputs: Floats, network: Network) -> Floats:
    """Answers (k, ...), one image after another or in the batches that the file is fixed to."""
    session, size = session_of(model, network.file), network.batch or 1
    answers = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        (answer,) = run_session(session, np.resize(batch, (size, *batch.shape[1:])), network.file)
        answers.append(answer[: len(batch)])
    return np.concatenate(answers)


# --- Which output ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _End:
    """An output, the tensor of its logits, and what stands between.

    `source` is the tensor less what only reshapes it, so that two ends of one source have the same logits.
    """

    output: str
    tensor: str
    ending: str | None
    source: str


def _outputs(network: Network, inputs: Floats) -> Mapping[str, NDArray[Any]]:
    """What each output answers to one batch, by name; shapes are taken from it, as files often leave them out."""
    session, size = session_of(network.model, network.file), network.batch or 1
    answers = run_session(session, np.resize(inputs[:size], (size, *inputs.shape[1:])), network.file)
    return {output.name: np.asarray(answer) for output, answer in zip(session.get_outputs(), answers, strict=True)}


def _end_of(
    network: Network, inputs: Floats, outputs: Mapping[str, NDArray[Any]], n_labels: int, asked: str | None
) -> _End:
    if asked is not None and asked not in outputs:
        raise OptionError(f"--output {asked}: {network.file} has no such output; it has {', '.join(outputs)}")
    size = network.batch or 1
    fitting = [
        name
        for name, answer in outputs.items()
        if asked in (None, name) and answer.dtype == np.float32 and answer.shape[:1] == (size,)
    ]
    wide = [name for name in fitting if outputs[name].size == size * n_labels]
    single = [name for name in fitting if outputs[name].size == size and n_labels == _TWO]
    producers = {name: node for node in network.model.graph.node for name in node.output}
    ends = _one_for_each_source([_before_its_end(producers, name) for name in wide or single], is_binary=not wide)
    if len(ends) > 1:
        ends = _one_for_each_answer(network, inputs, ends)
    if len(ends) != 1:
        raise _not_one(network, outputs, len(wide or single), n_labels, asked)
    return ends[0]


def _before_its_end(producers: Mapping[str, onnx.NodeProto], output: str) -> _End:
    """The tensor of the logits, and the Softmax or Sigmoid behind it, if there is one."""
    last = _source(producers, output)
    node = producers.get(last)
    if node is not None and node.op_type in (*_SOFTMAX, *_SIGMOIDS):
        return _End(output, node.input[0], node.op_type, _source(producers, node.input[0]))
    return _End(output, output, None, last)


def _source(producers: Mapping[str, onnx.NodeProto], tensor: str) -> str:
    while (node := producers.get(tensor)) is not None and node.op_type in _RESHAPING:
        tensor = node.input[0]
    return tensor


def _one_for_each_source(ends: Sequence[_End], *, is_binary: bool) -> list[_End]:
    """Of the outputs with the same logits one: the first that ends in nothing, or else the first.

    Where one of them is the Sigmoid of several classes it is that one, which is refused: it says what the logits mean.
    """
    first = _SIGMOIDS if not is_binary else (None,)
    ordered = sorted(ends, key=lambda end: (end.ending not in first, end.ending is not None))
    return list({end.source: end for end in reversed(ordered)}.values())


def _one_for_each_answer(network: Network, inputs: Floats, ends: list[_End]) -> list[_End]:
    """One end, where the others are only its probabilities or their logarithms, computed in pieces."""
    models = [with_output(network.model, end.output) for end in ends]
    answers = [_in_batches(model, inputs, network).reshape(len(inputs), -1) for model in models]
    probabilities = [_probabilities(each) for each in answers]
    if not all(np.allclose(each, probabilities[0], atol=1e-4) for each in probabilities):
        return ends
    return [next((end for end, each in zip(ends, answers, strict=True) if not _are_probabilities(each)), ends[0])]


def _are_probabilities(values: Floats) -> bool:
    if values.shape[1] == 1:
        return bool(((values >= 0) & (values <= 1)).all())
    return bool(values.min() >= 0 and np.allclose(values.sum(1), 1, atol=1e-3))


def _probabilities(values: Floats) -> Floats:
    if _are_probabilities(values):
        return values
    if values.shape[1] == 1:
        return np.asarray(metrics.softmax(np.hstack([np.zeros_like(values), values]))[:, 1:])
    return metrics.softmax(values)


def _not_one(
    network: Network, outputs: Mapping[str, NDArray[Any]], n_fitting: int, n_labels: int, asked: str | None
) -> OptionError:
    size = network.batch or 1
    listed = ", ".join(f"{name} {answer.dtype} {answer.shape}" for name, answer in outputs.items())
    cure = "give --labels with as many labels as one of them has values"
    if any(answer.size == size * (n_labels + 1) for answer in outputs.values()):
        cure += "; one more than there are classes is often the background, which then needs a label too"
    if n_fitting:
        cure = "name the one to take with --output NAME"
    which = f"its output {asked}" if asked else f"{n_fitting} of its outputs"
    return OptionError(
        f"{network.file}: {which} {'does not have' if asked else 'have'} one float32 value for each of {n_labels} "
        f"labels; expected exactly one. For a batch of {size} it answers {listed}; {cure}"
    )


# --- Its logits ------------------------------------------------------------------------------------------------


def _two_logits(graph: onnx.GraphProto, tensor: str) -> str:
    """Add 0 and the one logit of a binary network side by side, whose softmax is (1 - its sigmoid, its sigmoid).

    The zero is its difference to itself: these operators are the same in every opset, and no engine quantises them.
    """
    flat, zero = f"{_TWO_LOGITS}/flat", f"{_TWO_LOGITS}/zero"
    graph.node.extend(
        [
            helper.make_node("Flatten", [tensor], [flat], axis=1),
            helper.make_node("Sub", [flat, flat], [zero]),
            helper.make_node("Concat", [zero, flat], [_TWO_LOGITS], axis=1),
        ]
    )
    return _TWO_LOGITS


def _prove(network: Network, end: _End, logits: Floats, answers: Floats, is_binary: bool) -> None:
    """Refuse what are no logits, one for each class.

    Raises:
        ExportError: they are not logits of the classes that the file answers with.
    """
    file = network.file
    n_values = 2 * answers.size if is_binary else answers.size
    if not (np.isfinite(logits).all() and logits.size == n_values):
        raise ExportError(f"{file}: its answers on real photos are not finite numbers, one for each class")
    if end.ending == "HardSigmoid" or (end.ending == "Sigmoid" and not is_binary):
        raise ExportError(
            f"{file}: ends in a {end.ending}, so each class is asked for itself (multi-label); edgecls gives an image "
            "one class. Export it without, if its classes exclude one another"
        )
    if end.ending:
        expected = metrics.softmax(logits)[:, 1:] if is_binary else metrics.softmax(logits)
        if not np.allclose(expected, np.exp(answers) if end.ending == "LogSoftmax" else answers, atol=1e-4):
            raise ExportError(f"{file}: ends in a {end.ending} that is not over the classes; export it without")
    elif _are_probabilities(answers):
        operator = "Sigmoid" if is_binary else "Softmax"
        raise ExportError(
            f"{file}: answers with probabilities, and no {operator} at its end that could be taken off; export it so "
            "that it answers with logits"
        )
