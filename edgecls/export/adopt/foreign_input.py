"""What a foreign network takes: the order of its axes, which sizes are fixed, and whether it takes pixels or floats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgecls.errors import ExportError, OptionError
from edgecls.export.graphs.session import run_session, session_of
from edgecls.export.options import Layout

_RGB: Final = 3
_CHANNELS_AT: Final[dict[Layout, int]] = {"nchw": 1, "nhwc": 3}
_OTHER_CHANNELS: Final = (1, 4, 2)  # that a network may want instead of three: grey, RGBA, grey with alpha

# Whole numbers come out of these as they went in, so that they may be floats on their way to a Cast
_MOVING: Final = frozenset(
    ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Concat")
)

_EXPECTED: Final = "expected float32 (n, 3, h, w) or (n, h, w, 3), RGB"
_GREY: Final = (
    ". For a network of grey images export it again with a first step that makes grey of RGB: "
    "x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)"
)


@dataclass(frozen=True)
class Taken:
    """What a network takes.

    Attributes:
        batch: fixed number of images; None where it is dynamic.
        size_hw: fixed height and width in pixels; None where they are dynamic.
        is_unscaled: pixels from 0 to 255 as they are (the file says uint8).
    """

    name: str
    is_nhwc: bool
    batch: int | None
    size_hw: tuple[int | None, int | None]
    is_unscaled: bool


def read_input(model: onnx.ModelProto, file: Path, layout: Layout | None, size_hw: tuple[int, int] | None) -> Taken:
    """Find out what it takes, and declare its input so: float32, three channels, a batch of n where it is not fixed.

    Args:
        layout, size_hw: what the user says; asked for only where neither the file nor the network tells.

    Raises:
        ExportError: not one input of RGB images.
        OptionError: the layout or the size must be given, or the one given is not the network's.
    """
    given = _only_input(model, file)
    is_unscaled = given.type.tensor_type.elem_type == TensorProto.UINT8
    if not is_unscaled and given.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise _refused(given, file)
    dims = _dims(given, file)
    if is_unscaled:
        _take_floats(model, given, file)
    found = _Input(model, given, dims, file, size_hw).layout(layout)
    axis = _CHANNELS_AT[found]
    sides = [length for index, length in enumerate(dims) if index not in (0, axis)]
    batch = dims[0]
    shape: list[int | str] = [batch or "n", *(length or f"dim_{index}" for index, length in enumerate(dims) if index)]
    shape[axis] = _RGB
    given.CopyFrom(helper.make_tensor_value_info(given.name, TensorProto.FLOAT, shape))
    return Taken(given.name, found == "nhwc", batch, (sides[0], sides[1]), is_unscaled)


def any_size(file: Path) -> OptionError:
    return OptionError(f"{file}: takes images of any size; give the one it was made for with --image-size")


def described(value: onnx.ValueInfoProto) -> str:
    """Its kind and shape, as `float (n, 3, 224, 224)`."""
    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim)
    shape = f"({dims})" if tensor.HasField("shape") else "of any shape"
    return f"{TensorProto.DataType.Name(tensor.elem_type).lower()} {shape}"


def _only_input(model: onnx.ModelProto, file: Path) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}  # old exporters list weights as inputs too
    inputs = [given for given in model.graph.input if given.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(f"{given.name} {described(given)}" for given in inputs)
        raise ExportError(f"{file}: has {len(inputs)} inputs ({names}); expected one, the images")
    given = onnx.ValueInfoProto()
    given.CopyFrom(inputs[0])
    del model.graph.input[:]
    model.graph.input.append(given)
    return cast(onnx.ValueInfoProto, model.graph.input[0])


def _refused(given: onnx.ValueInfoProto, file: Path, cure: str = "") -> ExportError:
    return ExportError(f"{file}: input {given.name!r} is {described(given)}; {_EXPECTED}{cure}")


def _dims(given: onnx.ValueInfoProto, file: Path) -> tuple[int | None, ...]:
    """Lengths of its four axes, None where they are not fixed; all of them for a file that does not say its shape."""
    tensor = given.type.tensor_type
    if not tensor.HasField("shape"):
        return (None,) * 4
    dims = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    if len(dims) != len(("n", "channels", "height", "width")):
        raise _refused(given, file)
    return dims


# --- Which axis the channels are on ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Input:
    """The input as the file declares it, and what the user says of it."""

    model: onnx.ModelProto
    value: onnx.ValueInfoProto
    dims: tuple[int | None, ...]
    file: Path
    size_hw: tuple[int, int] | None

    def layout(self, asked: Layout | None) -> Layout:
        """The order of the axes: where the file says 3, or else where the network, asked for an answer, takes 3."""
        possible = [each for each, axis in _CHANNELS_AT.items() if self.dims[axis] in (None, _RGB)]
        certain = [each for each in possible if self.dims[_CHANNELS_AT[each]] == _RGB]
        if not possible:
            raise _refused(self.value, self.file, _GREY if 1 in (self.dims[1], self.dims[3]) else "")
        if asked and asked not in possible:
            raise OptionError(
                f"--layout {asked}: the input of {self.file} is {described(self.value)}, which is another one"
            )
        return asked or (certain[0] if len(certain) == 1 else self._answering(possible))

    def _answering(self, possible: Sequence[Layout]) -> Layout:
        """The one order in which the network answers three channels."""
        refusals = {layout: self._refusal(layout, _RGB) for layout in possible}
        fitting = [layout for layout, refusal in refusals.items() if refusal is None]
        if len(fitting) > 1:
            raise OptionError(
                f"{self.file}: input {self.value.name!r} is {described(self.value)}, and the network answers whether "
                "its channels are on the second axis or on the last; say which: --layout nchw or --layout nhwc"
            )
        if not fitting:
            self._refuse_other_channels(possible)
            raise ExportError(f"{refusals[possible[0]]}. If it was made for another size, give that with --image-size")
        return fitting[0]

    def _refuse_other_channels(self, possible: Sequence[Layout]) -> None:
        for n_channels in _OTHER_CHANNELS:
            if not all(self._refusal(layout, n_channels) for layout in possible):
                what = (
                    f"{self.file}: the network takes {n_channels} channel{'s' if n_channels > 1 else ''}; {_EXPECTED}"
                )
                raise ExportError(f"{what}{_GREY}" if n_channels == 1 else what)

    def _refusal(self, layout: Layout, n_channels: int) -> ExportError | None:
        """Why the network does not run on such an input: its first convolution wants other channels, say."""
        axis = _CHANNELS_AT[layout]
        known = {0: self.dims[0] or 1, axis: n_channels}
        asked = iter(self.size_hw or (0, 0))
        sizes = [next(asked) if index not in known else 0 for index in range(len(self.dims))]
        shape = [
            known.get(index, length or size) for index, (length, size) in enumerate(zip(self.dims, sizes, strict=True))
        ]
        if 0 in shape:
            raise any_size(self.file)
        try:
            run_session(session_of(self.model, self.file), np.zeros(shape, np.float32), self.file)
        except ExportError as error:
            return error
        return None


# --- Pixels ----------------------------------------------------------------------------------------------------


def _take_floats(model: onnx.ModelProto, given: onnx.ValueInfoProto, file: Path) -> None:
    """Let a network of uint8 take the same numbers as float32: its own Cast behind the input does nothing then.

    Raises:
        ExportError: something computes with the uint8 numbers before that, so floats may give another answer.
    """
    waiting, seen = [given.name], {given.name}
    while waiting:
        name = waiting.pop()
        for node in _readers(model.graph, name):
            to = next((each.i for each in node.attribute if each.name == "to"), None)
            if node.op_type == "Cast" and to == TensorProto.FLOAT:
                continue
            if node.op_type not in _MOVING:
                raise ExportError(
                    f"{file}: input {given.name!r} is {described(given)}, and a {node.op_type} works on it before a "
                    "Cast to float32; export it again with the Cast in front, or with a float32 input"
                )
            waiting += [output for output in node.output if output not in seen]
            seen |= set(node.output)
    given.type.tensor_type.elem_type = TensorProto.FLOAT


def _readers(graph: onnx.GraphProto, name: str) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.node if name in node.input)
