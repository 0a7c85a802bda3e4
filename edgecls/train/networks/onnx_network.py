"""An ONNX graph as a PyTorch module: what was exported is what is trained, name by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgecls.errors import ExportError

Attributes = Mapping[str, Any]
Inputs = Sequence[Any]  # Tensor, or None for an input that is left out
Observer = Callable[[str, Tensor], Tensor]

_TYPES: Final = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


class OnnxNetwork(nn.Module):
    """A float32 graph with one input and one output.

    Attributes:
        weights: every float32 constant by its name in the graph, (the graph's own shape) float32.

    Raises:
        ExportError: it has an operator that is not known here.
    """

    def __init__(self, graph: onnx.ModelProto) -> None:
        super().__init__()
        unknown = sorted({node.op_type for node in graph.graph.node} - set(_OPERATORS))
        if unknown:
            raise ExportError(
                f"the network has operators that cannot be trained here: {', '.join(unknown)}; export it without --qat"
            )
        self._nodes = [
            (node.op_type, tuple(node.input), tuple(node.output), _attributes_of(node)) for node in graph.graph.node
        ]
        self._input, self._output = graph.graph.input[0].name, graph.graph.output[0].name
        self.weights: dict[str, nn.Parameter] = {}
        self._constants: dict[str, Tensor] = {}
        for tensor in graph.graph.initializer:
            values = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            if values.dtype == torch.float32 and values.ndim:
                weight = nn.Parameter(values, requires_grad=False)
                self.weights[tensor.name] = weight
                self.register_parameter(f"weight_{len(self.weights)}", weight)  # names of the graph have dots in them
            else:
                self._constants[tensor.name] = values

    def forward(self, images: Tensor, observed: Observer = lambda name, values: values) -> Tensor:
        """(n, h, w, 3) uint8 -> logits (n, n_classes) float32.

        Args:
            observed: given the name and the values of each weight and of each computed tensor; what it returns takes
                their place.
        """
        known: dict[str, Any] = {"": None, self._input: images, **self._constants}
        known |= {name: observed(name, weight) for name, weight in self.weights.items()}
        for operator, inputs, outputs, attributes in self._nodes:
            found = _OPERATORS[operator]([known[name] for name in inputs], attributes)
            results = found if isinstance(found, (tuple, list)) else (found,)
            for name, values in zip(outputs, results, strict=False):
                known[name] = observed(name, values)
        return cast(Tensor, known[self._output])

    def biases_of(self, weights: Collection[str]) -> set[str]:
        """Names of what is added to the products with these weights."""
        with_bias = (inputs for _, inputs, _, _ in self._nodes if len(inputs) > 2 and inputs[1] in weights)
        return {inputs[2] for inputs in with_bias if inputs[2] in self.weights}

    def written_into(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the graph with the weights as they are now."""
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        for tensor in copy.graph.initializer:
            if tensor.name in self.weights:
                values = self.weights[tensor.name].detach().cpu().numpy()
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
        return copy


def _attributes_of(node: onnx.NodeProto) -> Attributes:
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


# Operators: the ONNX specification, opset 20, of which each takes what networks for images use


def _padded(x: Tensor, attributes: Attributes, kernel: Sequence[int], value: float = 0.0) -> Tensor:
    n = len(kernel)
    pads = attributes.get("pads", [0] * 2 * n)
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        strides, dilations = attributes.get("strides", [1] * n), attributes.get("dilations", [1] * n)
        before, after = [], []
        for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            whole = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            small, large = whole // 2, whole - whole // 2
            before.append(small if attributes["auto_pad"] == "SAME_UPPER" else large)
            after.append(whole - before[-1])
        pads = [*before, *after]
    if not any(pads):
        return x
    return F.pad(x, [each for axis in reversed(range(n)) for each in (pads[axis], pads[axis + n])], value=value)


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    n = weight.ndim - 2
    pads = attributes.get("pads", [0] * 2 * n)
    settings: dict[str, Any] = {
        "stride": attributes.get("strides", 1), "dilation": attributes.get("dilations", 1),
        "groups": attributes.get("group", 1),
    }  # fmt: skip
    convolution = F.conv2d if n == 2 else F.conv1d
    if pads[:n] == pads[n:] and attributes.get("auto_pad", "NOTSET") == "NOTSET":
        return convolution(x, weight, bias, padding=pads[:n], **settings)
    return convolution(_padded(x, attributes, weight.shape[2:]), weight, bias, **settings)


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a = inputs[0].T if attributes.get("transA") else inputs[0]
    b = inputs[1].T if attributes.get("transB") else inputs[1]
    product = attributes.get("alpha", 1.0) * (a @ b)
    bias = inputs[2] if len(inputs) > 2 else None
    return cast(Tensor, product if bias is None else product + attributes.get("beta", 1.0) * bias)


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    kernel = attributes["kernel_shape"]
    x = _padded(inputs[0], attributes, kernel, -torch.inf)
    return F.max_pool2d(
        x, kernel, attributes.get("strides", 1), dilation=attributes.get("dilations", 1),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    kernel, strides = attributes["kernel_shape"], attributes.get("strides", 1)
    pads = attributes.get("pads", [0] * 4)
    counts = bool(attributes.get("count_include_pad", 0))
    ceil = bool(attributes.get("ceil_mode", 0))
    if pads[:2] == pads[2:] and attributes.get("auto_pad", "NOTSET") == "NOTSET":
        return F.avg_pool2d(inputs[0], kernel, strides, pads[:2], ceil, counts)
    sums = F.avg_pool2d(_padded(inputs[0], attributes, kernel), kernel, strides)
    ones = torch.ones_like(inputs[0][:1, :1])
    return sums if counts else sums / F.avg_pool2d(_padded(ones, attributes, kernel), kernel, strides)


def _axes(inputs: Inputs, attributes: Attributes, default: Sequence[int]) -> list[int]:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1]]
    return list(attributes.get("axes", default))


def _reduce(reduction: Callable[..., Tensor]) -> Callable[[Inputs, Attributes], Tensor]:
    def reduced(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = _axes(inputs, attributes, range(inputs[0].ndim))
        return reduction(inputs[0], dim=axes, keepdim=bool(attributes.get("keepdims", 1)))

    return reduced


def _global(reduction: Callable[..., Tensor]) -> Callable[[Inputs, Attributes], Tensor]:
    return lambda inputs, attributes: reduction(inputs[0], dim=list(range(2, inputs[0].ndim)), keepdim=True)


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    return cast(Tensor, inputs[0].to(_TYPES[attributes["to"]]))


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sizes = [int(size) for size in inputs[1]]
    if not attributes.get("allowzero", 0):
        sizes = [inputs[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return cast(Tensor, inputs[0].reshape(sizes))


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    return cast(Tensor, inputs[0].reshape(math.prod(inputs[0].shape[: attributes.get("axis", 1)]), -1))


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = _axes(inputs, attributes, [i for i, size in enumerate(inputs[0].shape) if size == 1])
    return cast(Tensor, inputs[0].squeeze(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    for axis in sorted(_axes(inputs, attributes, ())):
        x = x.unsqueeze(axis)
    return cast(Tensor, x)


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, where, axis = inputs[0], inputs[1], attributes.get("axis", 0) % inputs[0].ndim
    taken = x.index_select(axis, where.flatten().to(x.device) % x.shape[axis])
    return cast(Tensor, taken.reshape(*x.shape[:axis], *where.shape, *x.shape[axis + 1 :]))


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.tensor(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")])


def _split(inputs: Inputs, attributes: Attributes) -> Sequence[Tensor]:
    axis = attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return cast("Sequence[Tensor]", inputs[0].split([int(size) for size in inputs[1]], axis))
    parts = attributes["num_outputs"]
    return cast("Sequence[Tensor]", inputs[0].split(-(-inputs[0].shape[axis] // parts), axis))


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, starts, ends = inputs[:3]
    axes = inputs[3] if len(inputs) > 3 and inputs[3] is not None else torch.arange(len(starts))
    steps = inputs[4] if len(inputs) > 4 and inputs[4] is not None else torch.ones(len(starts), dtype=torch.int64)
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        places = range(x.shape[axis])[slice(start, end, step)]
        x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return cast(Tensor, x)


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    n = inputs[0].ndim
    pads = [int(each) for each in inputs[1]]
    value = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    first = next((axis for axis in range(n) if pads[axis] or pads[axis + n]), n)  # torch reflects the last axes only
    order = [each for axis in reversed(range(first, n)) for each in (pads[axis], pads[axis + n])]
    return F.pad(inputs[0], order, attributes.get("mode", "constant"), value)


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    low, high = (inputs[i] if len(inputs) > i else None for i in (1, 2))
    return torch.clamp(inputs[0], None if low is None else float(low), None if high is None else float(high))


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, shift, mean, variance = inputs
    return F.batch_norm(x, mean, variance, scale, shift, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    shape = inputs[0].shape[attributes.get("axis", -1) % inputs[0].ndim :]
    shift = inputs[2] if len(inputs) > 2 else None
    return F.layer_norm(inputs[0], shape, inputs[1].expand(shape), shift, attributes.get("epsilon", 1e-5))


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.clamp(inputs[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1)


_OPERATORS: Final[Mapping[str, Callable[[Inputs, Attributes], Any]]] = {
    "Add": lambda inputs, attributes: inputs[0] + inputs[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]),
    "Conv": _conv,
    "Div": lambda inputs, attributes: inputs[0] / inputs[1],
    "Elu": lambda inputs, attributes: F.elu(inputs[0], attributes.get("alpha", 1.0)),
    "Erf": lambda inputs, attributes: torch.erf(inputs[0]),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda inputs, attributes: F.gelu(inputs[0], approximate=attributes.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda inputs, attributes: F.hardswish(inputs[0]),
    "Identity": lambda inputs, attributes: inputs[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda inputs, attributes: F.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "MatMul": lambda inputs, attributes: inputs[0] @ inputs[1],
    "MaxPool": _max_pool,
    "Mul": lambda inputs, attributes: inputs[0] * inputs[1],
    "Pad": _pad,
    "Pow": lambda inputs, attributes: inputs[0] ** inputs[1],
    "Range": lambda inputs, attributes: torch.arange(int(inputs[0]), int(inputs[1]), int(inputs[2])),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": lambda inputs, attributes: F.relu(inputs[0]),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda inputs, attributes: torch.sigmoid(inputs[0]),
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: torch.softmax(inputs[0], attributes.get("axis", -1)),
    "Split": _split,
    "Sqrt": lambda inputs, attributes: torch.sqrt(inputs[0]),
    "Squeeze": _squeeze,
    "Sub": lambda inputs, attributes: inputs[0] - inputs[1],
    "Tanh": lambda inputs, attributes: torch.tanh(inputs[0]),
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
