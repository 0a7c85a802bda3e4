"""The INT8 and FP16 graphs: what is in integers, what is not, and what is done so that little is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgecls.calibration.ranges import Calibration, network_sha256
from edgecls.export.graphs.equalise import equalised
from edgecls.export.graphs.fp16 import half
from edgecls.export.graphs.graph import PIXEL_SCALE, embed_manifest
from edgecls.export.graphs.int8 import layers, layers_of_kind, quantized
from edgecls.export.graphs.macs import macs_of
from edgecls.export.judge.gate import Int8, Judged, LayerError, _ranked, meet_gate
from edgecls.export.onnx import onnx_from_checkpoint
from edgecls.export.options import FLAVOURS, Flavour, GateOptions
from edgecls.images import Pixels
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import Run
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.train.networks.models import build
from edgecls.train.recipe_options import NetworkOptions
from tests.conftest import draw

SIZE = 16
PREPROCESSING = Preprocessing(size_hw=(SIZE, SIZE), crop_fraction=1.0)


@pytest.fixture(scope="module")
def run(exported_run: Path) -> Run:
    return Run(exported_run)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.stack([draw(kind, seed, SIZE) for seed in range(24) for kind in ("checks", "stripes")])


def network(rng: np.random.Generator, activation: str = "Relu", channels: int = 8) -> onnx.ModelProto:
    """Scale, conv, conv, conv with a residual Add around the last, pool, Gemm; two classes."""
    weights: dict[str, NDArray[np.float32]] = {
        PIXEL_SCALE: np.full((3, 1, 1, 1), 1 / 64, np.float32),
        "pixel_shift": np.full(3, -2, np.float32),
        "w1": rng.normal(0, 0.3, (channels, 3, 3, 3)).astype(np.float32),
        "b1": rng.normal(0, 0.1, channels).astype(np.float32),
        "w2": rng.normal(0, 0.15, (channels, channels, 3, 3)).astype(np.float32),
        "b2": rng.normal(0, 0.1, channels).astype(np.float32),
        "w3": rng.normal(0, 0.15, (channels, channels, 3, 3)).astype(np.float32),
        "head.weight": rng.normal(0, 1, (2, channels)).astype(np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
    if activation == "Clip":
        weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}

    def conv(name: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        return helper.make_node("Conv", inputs, [output], name, **{"pads": [1, 1, 1, 1], **attributes})

    def activate(name: str, tensor: str, output: str) -> onnx.NodeProto:
        extra = ["zero", "six"] if activation == "Clip" else []
        return helper.make_node(activation, [tensor, *extra], [output], name)

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", PIXEL_SCALE, "pixel_shift"], ["scaled"], "scale", group=3),
        conv("conv1", ["scaled", "w1", "b1"], "c1"),
        activate("act1", "c1", "a1"),
        conv("conv2", ["a1", "w2", "b2"], "c2"),
        activate("act2", "c2", "a2"),
        conv("conv3", ["a2", "w3"], "c3"),
        helper.make_node("Add", ["c3", "a2"], ["sum"], "add"),
        helper.make_node("ReduceMean", ["sum", "axes"], ["mean"], "mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "head.weight", "head.bias"], ["logits"], "head", transB=1),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    embed_manifest(model, Manifest(("checks", "stripes"), PREPROCESSING, "cnn"))
    onnx.checker.check_model(model, full_check=True)
    return model


def scale_channel(graph: onnx.ModelProto, outputs: tuple[str, ...], inputs: tuple[str, ...], factor: float) -> None:
    """Make channel 0 of one convolution louder and undo it in whatever reads it."""
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight).copy()
        if weight.name in outputs:
            values[0] *= factor
        elif weight.name in inputs:
            values[:, 0] /= factor
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def logits_of(graph: onnx.ModelProto, pixels: Pixels) -> NDArray[np.float32]:
    with OnnxRuntimeBackend(graph.SerializeToString(), BackendOptions("cpu")) as backend:
        return backend.infer(pixels)


def calibrated(graph: onnx.ModelProto, pixels: Pixels) -> Calibration:
    """Ranges and means by a plain run over all pixels at once."""
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    del observed.graph.output[:]
    names = [node.output[0] for node in graph.graph.node if node.op_type != "Cast"]
    observed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    import onnxruntime

    session = onnxruntime.InferenceSession(observed.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(names, {"images": pixels}), strict=True))
    ranges = {name: (float(each.min()), float(each.max())) for name, each in values.items()}
    means = {
        node.input[0]: tuple(values[node.input[0]].mean((0, *range(2, values[node.input[0]].ndim))).tolist())
        for node in graph.graph.node
        if node.op_type in ("Conv", "Gemm")
    }
    return Calibration(ranges, means, (), PREPROCESSING, network_sha256(graph))


def error(graph: onnx.ModelProto, reference: onnx.ModelProto, pixels: Pixels) -> float:
    expected = logits_of(reference, pixels)
    return float(np.mean((logits_of(graph, pixels) - expected) ** 2) / np.mean(expected**2))


def in_integers(graph: onnx.ModelProto) -> set[str]:
    """Names of convolutions and fully connected layers whose weights are int8."""
    made_by = {output: node for node in graph.graph.node for output in node.output}
    return {node.name for node in graph.graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in made_by}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_int8_answers_nearly_as_float(pixels: Pixels, flavour: Flavour, activation: str) -> None:
    graph = network(np.random.default_rng(0), activation)
    int8 = quantized(graph, calibrated(graph, pixels), flavour)
    assert in_integers(int8) == {"conv1", "conv2", "conv3", "head"}
    assert error(int8, graph, pixels) < 1e-3


def test_both_inputs_of_a_residual_add_are_quantised(pixels: Pixels) -> None:
    graph = network(np.random.default_rng(0))
    for flavour in FLAVOURS:
        int8 = quantized(graph, calibrated(graph, pixels), flavour)
        made_by = {output: node.op_type for node in int8.graph.node for output in node.output}
        (add,) = [node for node in int8.graph.node if node.op_type == "Add"]
        assert [made_by[name] for name in add.input] == ["DequantizeLinear"] * 2


def test_nothing_stands_between_a_convolution_and_its_activation_for_tensorrt(pixels: Pixels) -> None:
    graph = network(np.random.default_rng(0))
    int8 = quantized(graph, calibrated(graph, pixels), "int8")
    made_by = {output: node.op_type for node in int8.graph.node for output in node.output}
    activations = [node for node in int8.graph.node if node.op_type == "Relu"]
    assert [made_by[node.input[0]] for node in activations] == ["Conv", "Conv"]


@pytest.mark.parametrize("to_half", [False, True])
def test_the_biases_take_what_rounding_shifts(pixels: Pixels, to_half: bool) -> None:
    """A layer's mean output is that of the float layer, although its weights were rounded."""
    rng = np.random.default_rng(3)
    graph = network(rng)
    typed = half(graph) if to_half else graph
    measured = calibrated(graph, pixels)
    with_means, plain = (
        quantized(typed, calibration, "int8")
        for calibration in (
            measured,
            Calibration(measured.ranges, {}, (), PREPROCESSING, measured.network_sha256),
        )
    )
    values = {w.name: numpy_helper.to_array(w).astype(np.float64) for w in typed.graph.initializer}
    corrected = {w.name: numpy_helper.to_array(w).astype(np.float64) for w in with_means.graph.initializer}
    made_by = {output: node for node in with_means.graph.node for output in node.output}
    for node in with_means.graph.node:
        if node.name not in ("conv2", "conv3", "head"):
            continue
        dequantize = made_by[node.input[1]]
        weight_name = {"conv2": "w2", "conv3": "w3", "head": "head.weight"}[node.name]
        scale = corrected[dequantize.input[1]].reshape(-1, *[1] * (values[weight_name].ndim - 1))
        rounded = corrected[dequantize.input[0]] * scale
        source = next(n for n in graph.graph.node if n.name == node.name)
        means = np.array(measured.means[source.input[0]])
        lost = (values[weight_name] - rounded).reshape(len(rounded), len(means), -1).sum(2) @ means
        before = values[source.input[2]] if len(source.input) > 2 else 0.0
        assert corrected[node.input[2]] - before == pytest.approx(lost, abs=2e-3 if to_half else 1e-5)
        assert np.abs(lost).max() > 1e-3
    assert error(with_means, graph, pixels) < error(plain, graph, pixels)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_layer_given_back_reads_float_and_so_does_what_only_leads_to_it(pixels: Pixels, flavour: Flavour) -> None:
    graph = network(np.random.default_rng(0), "Clip")
    int8 = quantized(graph, calibrated(graph, pixels), flavour, ["conv2"])
    assert in_integers(int8) == {"conv1", "conv3", "head"}
    nodes = {node.name: node for node in int8.graph.node}
    made_by = {output: node.op_type for node in int8.graph.node for output in node.output}
    assert made_by[nodes["conv2"].input[0]] == "Clip"
    assert made_by[nodes["act1"].input[0]] == "Conv"
    everything = quantized(graph, calibrated(graph, pixels), flavour, layers(graph))
    assert not in_integers(everything)
    assert not [node for node in everything.graph.node if node.op_type == "QuantizeLinear"]
    assert np.allclose(logits_of(everything, pixels), logits_of(graph, pixels), atol=1e-5)


def test_the_float16_graph_holds_float16_weights_and_answers_in_float32(pixels: Pixels) -> None:
    graph = network(np.random.default_rng(0))
    halved = half(graph)
    types = {w.data_type for w in halved.graph.initializer}
    assert TensorProto.FLOAT not in types
    assert halved.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert error(halved, graph, pixels) < 1e-5
    both = quantized(halved, calibrated(graph, pixels), "int8")
    scales = {w.name: w.data_type for w in both.graph.initializer}
    quantizers = [node for node in both.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    assert {scales[node.input[1]] for node in quantizers} == {TensorProto.FLOAT16}
    assert error(both, graph, pixels) < 1e-3


def test_tensorrts_int8_graph_is_float16_elsewhere(run: Run) -> None:
    types = {w.data_type for w in onnx.load(run.path("model.int8.onnx")).graph.initializer}
    assert TensorProto.FLOAT16 in types
    assert TensorProto.FLOAT not in types


# equalisation


def test_equalisation_changes_no_answer_and_evens_out_a_loud_channel(pixels: Pixels) -> None:
    graph = network(np.random.default_rng(0))
    scale_channel(graph, ("w1", "b1"), ("w2",), 1000)
    even = equalised(graph)
    assert even is not None
    assert np.allclose(logits_of(even, pixels), logits_of(graph, pixels), rtol=1e-4, atol=1e-4)
    weights = {w.name: numpy_helper.to_array(w) for w in even.graph.initializer}
    loudness = np.abs(weights["w1"]).max((1, 2, 3))
    assert loudness.max() < 10 * loudness.min()
    for flavour in FLAVOURS:
        broken = error(quantized(graph, calibrated(graph, pixels), flavour), graph, pixels)
        mended = error(quantized(even, calibrated(even, pixels), flavour), graph, pixels)
        assert mended < 1e-3
        assert mended < broken / 10


def test_equalisation_does_not_cross_a_clip_or_a_branch() -> None:
    assert equalised(network(np.random.default_rng(0), "Clip")) is None
    graph = network(np.random.default_rng(0))
    even = equalised(graph)
    assert even is not None
    before, after = ({w.name: numpy_helper.to_array(w) for w in g.graph.initializer} for g in (graph, even))
    # conv2's output goes to conv3 and to the sum: its weights may change as a reader only, by the column
    assert np.array_equal(before["w3"], after["w3"])
    assert np.array_equal(before["b2"], after["b2"])
    assert not np.array_equal(before["w1"], after["w1"])


# the gate


NO_LOGITS = np.empty((0, 2), np.float32)


def gate_of(
    graph: onnx.ModelProto, pixels: Pixels, options: GateOptions
) -> tuple[Int8, dict[Flavour, float], list[str], Callable[[Int8, Flavour], float]]:
    lines: list[str] = []
    expected = logits_of(graph, pixels).argmax(1)

    def drop_of(int8: Int8, flavour: Flavour) -> float:
        given = int8.names_given_back(flavour)
        answered = logits_of(quantized(int8.graph, int8.calibration, flavour, given), pixels).argmax(1)
        return float(np.mean(answered != expected))

    int8, _ = meet_gate(
        Int8(graph, calibrated(graph, pixels)),
        options,
        lambda int8, flavour: Judged(NO_LOGITS, drop_of(int8, flavour)),
        lambda changed: Int8(changed, calibrated(changed, pixels)),
        pixels[:16],
        on_step=lines.append,
    )
    return int8, {flavour: drop_of(int8, flavour) for flavour in FLAVOURS}, lines, drop_of


def balanced(graph: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """Shift the head so that both classes are answered: a drop can then be seen."""
    logits = logits_of(graph, pixels)
    for weight in graph.graph.initializer:
        if weight.name == "head.bias":
            weight.CopyFrom(numpy_helper.from_array(-np.median(logits, 0).astype(np.float32), weight.name))
    answered = logits_of(graph, pixels).argmax(1)
    assert 8 < answered.sum() < len(pixels) - 8
    return graph


def test_a_good_network_passes_as_it_is(pixels: Pixels) -> None:
    int8, drops, lines, _ = gate_of(network(np.random.default_rng(0)), pixels, GateOptions(max_drop=5))
    assert not int8.is_equalised
    assert lines == []
    assert max(drops.values()) <= 0.05


def test_a_channel_a_thousand_times_as_loud_is_caught_and_equalised(pixels: Pixels) -> None:
    graph = balanced(network(np.random.default_rng(0)), pixels)
    scale_channel(graph, ("w1", "b1"), ("w2",), 1000)
    plain = quantized(graph, calibrated(graph, pixels), "int8")
    assert np.mean(logits_of(plain, pixels).argmax(1) != logits_of(graph, pixels).argmax(1)) > 0.05
    int8, drops, lines, _ = gate_of(graph, pixels, GateOptions(max_drop=5))
    assert int8.is_equalised
    assert max(drops.values()) <= 0.05
    assert "5 are allowed: trying equalised channels" in lines[0]
    assert not any(int8.given_back.values())


def test_where_equalisation_cannot_help_the_worst_layers_are_given_back(pixels: Pixels) -> None:
    """The loud channel feeds a convolution and a sum: no factor can be moved, so what reads it goes back to float."""
    graph = balanced(network(np.random.default_rng(0)), pixels)
    scale_channel(graph, ("w2", "b2"), ("w3", "head.weight"), 1000)
    scale_channel(graph, ("w3",), (), 1000)  # the other side of the sum, so that the head sees one scale
    int8, drops, lines, _ = gate_of(graph, pixels, GateOptions(max_drop=5))
    assert max(drops.values()) <= 0.05
    assert any(int8.given_back.values())
    for flavour, given in int8.given_back.items():
        assert list(given) == _ranked(graph, given)
        assert set(int8.names_given_back(flavour)) < set(layers(graph))
    assert any("back to float, now" in line for line in lines)


def test_a_layer_that_saves_little_time_is_given_back_first() -> None:
    graph = network(np.random.default_rng(0))
    macs = macs_of(graph)
    assert macs["head"] == 2 * 8  # (outputs, inputs)
    large, small = "conv2", "conv1"  # 8 channels in, and 3
    assert macs[large] == 8 * 8 * 9 * SIZE**2
    ranked = _ranked(graph, [LayerError(large, 1.0), LayerError(small, 0.9)])
    assert [each.layer for each in ranked] == [small, large]
    assert _ranked(graph, [LayerError(large, 100.0), LayerError(small, 0.1)])[0].layer == large


def test_no_more_layers_are_given_back_than_the_gate_asks_for(pixels: Pixels) -> None:
    for needed in (1, 2, 3, 4):
        found, asked = gate_with(
            network(np.random.default_rng(0)), pixels, GateOptions(max_drop=1),
            lambda int8, flavour, needed=needed: 0.0 if len(int8.given_back[flavour]) >= needed else 0.5,
        )  # fmt: skip
        assert {len(given) for given in found.given_back.values()} == {needed}
        assert len(asked) <= 4 + 2 * 5


def test_kinds_of_layers_are_known(tmp_path: Path) -> None:
    classifier, preprocessing = build(NetworkOptions("mobilenet_v3_small", "none"), 2, (64, 64))
    file = tmp_path / "model.onnx"
    onnx_from_checkpoint(classifier, Manifest(("a", "b"), preprocessing, "mobilenet_v3_small"), file)
    graph = onnx.load(file)
    names = {node.name: node for node in graph.graph.node}
    depthwise = layers_of_kind(graph, "depthwise")
    assert len(depthwise) == 11 - 1  # the one behind the first convolution is float in any case
    assert all(helper.get_node_attr_value(names[name], "group") > 1 for name in depthwise)
    assert len(layers_of_kind(graph, "squeeze-excite")) == 2 * 9


def test_without_time_the_gate_says_that_it_gave_up(pixels: Pixels) -> None:
    graph = balanced(network(np.random.default_rng(0), "Clip"), pixels)
    scale_channel(graph, ("w2", "b2"), ("w3", "head.weight"), 1000)
    int8, drops, _, _ = gate_of(graph, pixels, GateOptions(max_drop=0, time_budget=0))
    if max(drops.values()) > 0:
        assert "gave up" in int8.notes[-1]
    assert not any(int8.given_back.values())


def gate_with(
    graph: onnx.ModelProto, pixels: Pixels, options: GateOptions, drop_of: Callable[[Int8, Flavour], float]
) -> tuple[Int8, list[tuple[Flavour, int, bool]]]:
    """The gate where drops are made up; what it asked for: the flavour, layers given back, whether equalised."""
    asked: list[tuple[Flavour, int, bool]] = []

    def judge(int8: Int8, flavour: Flavour) -> Judged:
        asked.append((flavour, len(int8.given_back[flavour]), int8.is_equalised))
        return Judged(np.full((1, 1), len(asked), np.float32), drop_of(int8, flavour))

    calibration = calibrated(graph, pixels)
    found, judged = meet_gate(
        Int8(graph, calibration),
        options,
        judge,
        lambda changed: Int8(changed, calibrated(changed, pixels)),
        pixels[:16],
    )
    for flavour, each in judged.items():  # the answers are those of the model that is returned
        number = int(each.logits[0, 0])
        assert asked[number - 1] == (flavour, len(found.given_back[flavour]), found.is_equalised)
        assert each.drop == drop_of(found, flavour)
    return found, asked


def test_a_flavour_that_cannot_be_saved_does_not_give_up_the_other(pixels: Pixels) -> None:
    drops = {"int8": [0.5, 0.3, 0.4, 0.45], "int8-cpu": [0.5, 0.2, 0.0, 0.0]}  # by the number of layers that are float
    found, _ = gate_with(
        network(np.random.default_rng(0)), pixels, GateOptions(max_drop=1),
        lambda int8, flavour: drops[flavour][min(len(int8.given_back[flavour]), 3)],
    )  # fmt: skip
    assert len(found.given_back["int8-cpu"]) == 2
    assert len(found.given_back["int8"]) == 1  # the best that was tried, not the last
    assert found.notes == ("int8: gave up, every ranked layer is float",)


def test_a_flavour_leaves_the_other_its_share_of_the_time(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("edgecls.export.judge.gate.time.monotonic", lambda: clock[0])

    def slow(int8: Int8, flavour: Flavour) -> float:
        clock[0] += 20
        return 0.5

    found, asked = gate_with(network(np.random.default_rng(0)), pixels, GateOptions(time_budget=120), slow)
    tried = {flavour: max(n for each, n, _ in asked if each == flavour) for flavour in FLAVOURS}
    assert min(tried.values()) >= 1
    assert found.notes == tuple(f"{flavour}: gave up, its share of the 120 s is over" for flavour in FLAVOURS)
    assert not any(found.given_back.values())  # none was better than all in INT8


def test_equalisation_that_costs_answers_is_not_kept(pixels: Pixels) -> None:
    graph = network(np.random.default_rng(0))
    scale_channel(graph, ("w1", "b1"), ("w2",), 1000)
    found, asked = gate_with(
        graph, pixels, GateOptions(time_budget=0), lambda int8, flavour: 0.4 if int8.is_equalised else 0.2
    )
    assert ("int8", 0, True) in asked
    assert not found.is_equalised
