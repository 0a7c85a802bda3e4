"""What of a network does not fit float16: asked of the float32 graph, since ONNX Runtime on a CPU hides it.

A CPU has no kernels of float16 for most operators, so ONNX Runtime casts to float32 between them and drops the casts
that seem to do nothing: a value of 240,000 passes there and is infinite on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgecls.calibration.collectors import Range
from edgecls.export.graphs.fp16 import half
from edgecls.images import Pixels
from edgecls.prefetch import n_cores
from edgecls.processor import session_settings

LARGEST: Final = float(np.finfo(np.float16).max)  # 65,504

SMALLEST: Final = float(np.finfo(np.float16).smallest_normal)  # 6.1e-5; below it digits are lost, below 6e-8 all

# A bound beyond float16 bounds nothing there either: that of Clip is FLT_MAX wherever an exporter had none to write.
_BOUNDING: Final = frozenset(("Clip", "Min", "Max"))
_SUMMING: Final = frozenset(("Add", "Sub"))
_WITH_BIAS: Final = frozenset(("Conv", "ConvTranspose", "Gemm"))  # their third input is added


@dataclass(frozen=True)
class Misfit:
    """A tensor that float16 cannot hold: its lowest and highest value in float32.

    Attributes:
        is_constant: a weight or a bias, which is the same for every image.
    """

    tensor: str
    lowest: float
    highest: float
    is_constant: bool = False

    def __str__(self) -> str:
        what = "constant" if self.is_constant else "tensor"
        limit = f"beyond float16's {LARGEST:,.0f}" if self.is_beyond else f"all of it below float16's {SMALLEST:.2g}"
        return f"{what} {self.tensor} reaches {self.lowest:,.6g} to {self.highest:,.6g}, {limit}"

    @property
    def magnitude(self) -> float:
        return max(-self.lowest, self.highest)

    @property
    def is_beyond(self) -> bool:
        """Too large, which becomes infinite, where the others are too small and lose their digits."""
        return self.magnitude > LARGEST


@dataclass(frozen=True)
class Float16Fit:
    """What of a float32 network float16 cannot hold, and what is done about it.

    Attributes:
        misfits: the largest first.
        in_float32: names of the nodes that read or write one of them, in the order of the graph: they stay float32.
        left: misfits that are in float16 all the same.
    """

    misfits: tuple[Misfit, ...] = ()
    in_float32: tuple[str, ...] = ()
    left: tuple[Misfit, ...] = ()

    @classmethod
    def of(cls, graph: onnx.ModelProto, batches: Iterable[Pixels]) -> Float16Fit:
        """Ask the float32 network itself.

        Args:
            batches: each (n, h, w, 3) uint8.
        """
        halved = half(graph)
        ranges = ranges_of(graph, halves(halved), batches)
        found = misfits(graph, halved, ranges)
        if not found:
            return FITS
        names = {each.tensor for each in found}
        in_float32 = tuple(node.name for node in graph.graph.node if names & {*node.input, *node.output})
        return cls(found, in_float32, misfits(graph, half(graph, in_float32), ranges))


FITS: Final = Float16Fit()  # float16 holds all of it, or none of it is float16


def misfits(graph: onnx.ModelProto, halved: onnx.ModelProto, ranges: Mapping[str, Range]) -> tuple[Misfit, ...]:
    """What `halved` holds in float16 and float16 cannot hold, the largest first.

    Args:
        graph: the float32 network.
        halved: the same with maths in float16; its tensors have the names that they have in `graph`.
        ranges: lowest and highest value by tensor name, in float32.
    """
    of_half = halves(halved)
    computed = (Misfit(name, *ends) for name, ends in ranges.items() if name in of_half)  # in the order of the graph
    constants, multiplied = _constants(graph), _multiplied(graph)
    found = [each for each in computed if each.is_beyond or 0 < each.magnitude < SMALLEST]
    found += [
        each
        for each in constants
        if each.tensor in of_half and (each.is_beyond or (0 < each.magnitude < SMALLEST and each.tensor in multiplied))
    ]
    return tuple(sorted(found, key=lambda each: -each.magnitude))


def halves(halved: onnx.ModelProto) -> frozenset[str]:
    """Names of the tensors that are in float16, or were on the way: a cast behind does not bring back what was lost."""
    graph = onnx.shape_inference.infer_shapes(halved).graph
    known = [*graph.value_info, *graph.output]
    of_half = {value.name for value in known if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    of_half |= {weight.name for weight in graph.initializer if weight.data_type == TensorProto.FLOAT16}
    casts = (node for node in graph.node if node.op_type == "Cast")
    return frozenset(of_half | {node.output[0] for node in casts if node.input[0] in of_half})


def ranges_of(graph: onnx.ModelProto, names: Iterable[str], batches: Iterable[Pixels]) -> dict[str, Range]:
    """The lowest and highest value of float32 tensors over some images; infinities, such as masks, are left out.

    The graph itself reduces each tensor to two numbers, so no activation is copied out of it.

    Args:
        graph: float32 network that takes pixels.
        batches: each (n, h, w, 3) uint8.
    """
    observing, observed = _reducing(graph, frozenset(names))
    session = onnxruntime.InferenceSession(
        observing.SerializeToString(), session_settings(onnxruntime, n_cores()), providers=["CPUExecutionProvider"]
    )
    outputs = [f"{name}/{end}" for name in observed for end in ("lowest", "highest")]
    found = np.zeros((2, len(observed)))
    for batch in batches:
        ends = np.array(session.run(outputs, {session.get_inputs()[0].name: batch}), np.float64).reshape(-1, 2).T
        ends[~np.isfinite(ends)] = 0
        found = np.stack([np.minimum(found[0], ends[0]), np.maximum(found[1], ends[1])])
    return {name: (float(low), float(high)) for name, low, high in zip(observed, *found, strict=True)}


def _reducing(graph: onnx.ModelProto, names: frozenset[str]) -> tuple[onnx.ModelProto, list[str]]:
    """The graph with the lowest and highest value of every tensor of `names` that it computes as further outputs."""
    reducing = onnx.ModelProto()
    reducing.CopyFrom(graph)
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    is_float = {
        value.name
        for value in [*inferred.value_info, *inferred.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    computed = [name for node in graph.graph.node for name in node.output if name in names & is_float]
    for name in computed:
        for end, operator in (("lowest", "ReduceMin"), ("highest", "ReduceMax")):
            output = f"{name}/{end}"
            reducing.graph.node.append(helper.make_node(operator, [name], [output], name=output, keepdims=0))
            reducing.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return reducing, computed


def _constants(graph: onnx.ModelProto) -> Iterable[Misfit]:
    used = {name for node in graph.graph.node if node.op_type not in _BOUNDING for name in node.input}
    for weight in graph.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and weight.name in used:
            values = numpy_helper.to_array(weight)
            values = values[np.isfinite(values)]
            if values.size:
                yield Misfit(weight.name, float(values.min()), float(values.max()), is_constant=True)


def _multiplied(graph: onnx.ModelProto) -> set[str]:
    """Names of what is more than added: a summand that is too small for float16 is too small to matter."""
    return {
        name
        for node in graph.graph.node
        if node.op_type not in _SUMMING | _BOUNDING
        for name in (node.input[:2] if node.op_type in _WITH_BIAS else node.input)
    }
