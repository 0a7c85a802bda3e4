"""How far float16 arithmetic may take a network's answers: from the file alone, since a device has no float32 copy.

The arithmetic, with u = 2^-11, the unit roundoff of float16. Rounding a number changes it by up to u of itself, evenly
distributed: by u / sqrt(3) in the root mean square. A layer sums k products of an input and a weight. Where the
products are alike and of random signs:

* weights that are rounded, once, change the sum by u / sqrt(3) of its own size; inputs that are rounded, which is what
  storing the layer before it does, by as much again;
* a sum that is kept in float16 is rounded k times while it grows, by u / sqrt(3) of the square root of j / k of its
  size at the j-th: together by u / sqrt(3) * sqrt(k / 2).

The errors are independent and so are those of the layers, and a layer hands on the relative error of what it is given:

    error of the logits, as a share of the largest  ~  u / sqrt(3) * sqrt(sum over the layers of (2 + k / 2))

x86 has no float16 kernels: ONNX Runtime casts the weights up and computes in float32, which leaves of each layer's
2 + k / 2 only the 1 of its weights, and says nothing of what a device does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from edgecls.errors import RunError
from edgecls.runtime.backends.onnx_manifest import fields_of, varint

_UNIT_ROUNDOFF: Final = 2.0**-11
_DEVIATIONS: Final = 3.0  # of a normal distribution, 99.7 % are within; the golden answers are tens to thousands

_SUMMING: Final = (b"Conv", b"Gemm", b"MatMul")
_HANDING_ON: Final = (b"DequantizeLinear", b"Cast", b"Transpose", b"Identity")  # between a weight and its layer


@dataclass(frozen=True)
class _Node:
    operator: bytes
    inputs: tuple[bytes, ...]
    output: bytes
    attributes: tuple[memoryview, ...]


def float16_tolerance(model: bytes, source: str) -> float:
    """What a logit may be off by where this network is computed in float16, as a share of the largest logit.

    Costs a walk over the nodes; the weights are not looked at.

    Args:
        model: an ONNX file's bytes.
        source: where they came from, for messages.

    Raises:
        RunError: not an ONNX file, or a damaged one.
    """
    try:
        lengths = list(_lengths_of_sums(memoryview(model)))
    except (ValueError, IndexError) as error:
        raise RunError(f"{source}: not an ONNX file, or a damaged one; expected one of edgecls export") from error
    return _DEVIATIONS * _UNIT_ROUNDOFF / math.sqrt(3) * math.sqrt(sum(2 + k / 2 for k in lengths))


def _lengths_of_sums(model: memoryview) -> Iterator[int]:
    """How many products each layer with weights sums for one of its outputs."""
    graphs = _contents(model, 7)  # field numbers of onnx.proto, here and below
    nodes = [_node(content) for graph in graphs for content in _contents(graph, 1)]
    shapes = {_text(tensor, 8): _shape(tensor) for graph in graphs for tensor in _contents(graph, 5)}
    shapes |= {node.output: shape for node in nodes if node.operator == b"Constant" for shape in _shapes_in(node)}
    comes_from = {node.output: node.inputs[0] for node in nodes if node.operator in _HANDING_ON and node.inputs}
    for node in nodes:
        if node.operator in _SUMMING and len(node.inputs) > 1:
            shape = shapes.get(_origin(node.inputs[1], comes_from), ())
            if len(shape) > 2:  # (outputs, inputs of its group, height, width)
                yield math.prod(shape[1:])
            elif len(shape) == 2:  # which side is summed is an attribute; the longer one errs to the safe side
                yield max(shape)


def _origin(name: bytes, comes_from: Mapping[bytes, bytes]) -> bytes:
    for _ in comes_from:  # no more steps than that, or a damaged file could lead in a circle
        name = comes_from.get(name, name)
    return name


def _node(message: memoryview) -> _Node:
    inputs = tuple(bytes(each) for each in _contents(message, 1))
    return _Node(_text(message, 4), inputs, _text(message, 2), tuple(_contents(message, 5)))


def _shapes_in(constant: _Node) -> Iterator[tuple[int, ...]]:
    for attribute in constant.attributes:
        for tensor in _contents(attribute, 5):
            yield _shape(tensor)


def _shape(tensor: memoryview) -> tuple[int, ...]:
    """Its sizes, field 1: numbers that lead the message one by one, or packed into one field."""
    sizes, at = [], 0
    while at < len(tensor) and tensor[at] == 0x08:  # field 1, a number
        size, at = varint(tensor, at + 1)
        sizes.append(size)
    return tuple(sizes) or tuple(size for packed in _contents(tensor, 1) for size in _numbers(packed))


def _numbers(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        number, at = varint(packed, at)
        yield number


def _contents(message: memoryview, wanted: int) -> list[memoryview]:
    return [content for number, content in fields_of(message) if number == wanted]


def _text(message: memoryview, wanted: int) -> bytes:
    return b"".join(bytes(content) for content in _contents(message, wanted)[:1])
