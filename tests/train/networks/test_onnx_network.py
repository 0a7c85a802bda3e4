"""ONNX graphs as PyTorch modules: each operator answers as ONNX Runtime does, and whole networks too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgecls.errors import ExportError
from edgecls.export.graphs.session import run_session, session_of
from edgecls.export.onnx import onnx_from_checkpoint
from edgecls.golden import Golden
from edgecls.manifest import Manifest
from edgecls.runs import Run
from edgecls.train.networks.models import build
from edgecls.train.networks.onnx_network import OnnxNetwork
from edgecls.train.recipe_options import NetworkOptions

RNG = np.random.default_rng(0)


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def one_node(operator: str, constants: list[NDArray[Any] | None], attributes: dict[str, Any]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    names = ["" if each is None else f"c{i}" for i, each in enumerate(constants)]
    weights = [numpy_helper.from_array(each, f"c{i}") for i, each in enumerate(constants) if each is not None]
    outputs = ["y", "z"][: attributes.get("num_outputs", 1)]
    node = helper.make_node(operator, ["x", *names], outputs, operator, **attributes)
    graph = helper.make_graph([node], operator, [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("operator", "constants", "attributes"),
    [
        ("Conv", [floats(4, 6, 3, 3), floats(4)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Conv", [floats(6, 1, 3, 3)], {"group": 6, "pads": [0, 0, 1, 1], "dilations": [2, 2]}),
        ("Conv", [floats(4, 6, 3, 3), floats(4)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Conv", [floats(4, 6, 4, 4)], {"auto_pad": "SAME_LOWER", "strides": [3, 3]}),
        ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}),
        ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
        ("GlobalAveragePool", [], {}),
        ("GlobalMaxPool", [], {}),
        ("ReduceMean", [ints(2, 3)], {"keepdims": 0}),
        ("ReduceMax", [], {}),
        ("ReduceSum", [ints(1)], {}),
        ("BatchNormalization", [floats(6), floats(6), floats(6), np.abs(floats(6))], {"epsilon": 1e-3}),
        ("LayerNormalization", [floats(8), floats(8)], {"axis": -1}),
        ("Clip", [np.float32(0), np.float32(6)], {}),
        ("Clip", [None, np.float32(0.5)], {}),
        ("HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.5}),
        ("HardSwish", [], {}),
        ("LeakyRelu", [], {"alpha": 0.1}),
        ("Elu", [], {}),
        ("Gelu", [], {}),
        ("Gelu", [], {"approximate": "tanh"}),
        ("Softmax", [], {"axis": 1}),
        ("Pad", [ints(0, 0, 1, 2, 0, 0, 0, 1), np.float32(3)], {}),
        ("Pad", [ints(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "reflect"}),
        ("Slice", [ints(1, -2), ints(9, -9223372036854775807), ints(2, 3), ints(2, -1)], {}),
        ("Split", [], {"num_outputs": 2, "axis": 1}),
        ("Gather", [ints(0, -1, 2)], {"axis": 1}),
        ("Reshape", [ints(0, -1)], {}),
        ("Flatten", [], {"axis": 2}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("Unsqueeze", [ints(0, -1)], {}),
        ("Pow", [np.float32(2)], {}),
        ("MatMul", [floats(8, 5)], {}),
    ],
)
def test_an_operator_answers_as_onnx_runtime(
    operator: str, constants: list[NDArray[Any] | None], attributes: dict[str, Any]
) -> None:
    model = one_node(operator, constants, attributes)
    x = floats(3, 6, 8, 8)
    expected = run_session(session_of(model, Path("x.onnx")), x, Path("x.onnx"))[0]
    with torch.inference_mode():
        got = OnnxNetwork(model)(torch.from_numpy(x)).numpy()
    assert got.shape == expected.shape
    assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "airbench"])
def test_a_network_answers_as_its_file(name: str, tmp_path: Path) -> None:
    classifier, preprocessing = build(NetworkOptions(name, "none"), 3, (32, 32))
    file = tmp_path / "model.onnx"
    onnx_from_checkpoint(classifier.eval(), Manifest(tuple("abc"), preprocessing, model=name, precision="fp32"), file)
    pixels = RNG.integers(0, 256, (3, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        got, expected = OnnxNetwork(onnx.load(file))(torch.from_numpy(pixels)), classifier(torch.from_numpy(pixels))
    assert got.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


def test_weights_are_written_back_by_name(exported_run: Path) -> None:
    graph, pixels = onnx.load(exported_run / "model.onnx"), Golden.of(Run(exported_run)).images[:2]
    network = OnnxNetwork(graph)
    before, after = (
        {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        for model in (graph, network.written_into(graph))
    )
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    name = next(name for name in network.weights if "layers.1" in name and name.endswith("weight"))
    with torch.no_grad():
        network.weights[name] *= 2
        expected = network(torch.from_numpy(pixels)).numpy()
    written = network.written_into(graph)
    (got,) = run_session(session_of(written, Path("x.onnx")), pixels, Path("x.onnx"))
    assert got == pytest.approx(expected, abs=1e-3)
    assert network.biases_of({name}) == {node.input[2] for node in graph.graph.node if name in node.input}


def test_an_operator_that_is_not_known_is_named() -> None:
    with pytest.raises(ExportError, match="cannot be trained here: Cosh; export it without --qat"):
        OnnxNetwork(one_node("Cosh", [], {}))
