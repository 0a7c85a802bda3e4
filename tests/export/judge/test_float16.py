"""What float16 cannot hold, and answers that are no numbers: such a file misses the gate by name, others are kept."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

from edgecls import metrics
from edgecls.calibration.options import SampleOptions
from edgecls.cli import app
from edgecls.errors import ExportError
from edgecls.export.graphs.float16_arithmetic import computed_in_float16
from edgecls.export.graphs.fp16 import half
from edgecls.export.job import Job
from edgecls.export.judge.float16 import halves, misfits, ranges_of
from edgecls.export.judge.measure import Logits
from edgecls.export.judge.temperature import fit_temperature
from edgecls.export.options import ExportOptions, GateOptions
from edgecls.export.result import ExportResult
from edgecls.export.run import export
from edgecls.golden import Golden
from edgecls.images import Pixels
from edgecls.manifest import Precision
from edgecls.runs import MODEL_FILES, Run
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions

SAMPLE = SampleOptions(32)
ANYTHING = GateOptions(max_drop=100, min_speedup=0, time_budget=0)


@pytest.fixture
def run(exported_run: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(exported_run, tmp_path / "run")))


def louder(run: Run, factor: float) -> None:
    """Multiply what the first layer hands on, and divide it in the second: the same answers, by way of large values."""
    path = run.path("checkpoint.pt")
    state = torch.load(path, weights_only=True)
    for name in ("backbone.layers.0.1.weight", "backbone.layers.0.1.bias"):
        state[name] *= factor
    state["backbone.layers.1.0.weight"] /= factor
    torch.save(state, path)


def large_bias(run: Run, size: float) -> None:
    """A logit that is shifted, in the checkpoint and in what is expected of it."""
    path = run.path("checkpoint.pt")
    state = torch.load(path, weights_only=True)
    state["head.1.bias" if "head.1.bias" in state else "head.bias"] += size
    torch.save(state, path)
    golden = Golden.of(run)
    Golden(golden.images, golden.logits + np.float32(size), golden.validation_answers).write(run)
    run.record()


def exported(run: Run) -> ExportResult:
    return export(ExportOptions(str(run.folder), int8=True, sample=SAMPLE, gate=ANYTHING))


def in_float16(model: onnx.ModelProto, pixels: Pixels) -> Logits:
    with OnnxRuntimeBackend(computed_in_float16(model).SerializeToString(), BackendOptions("cpu")) as backend:
        return backend.infer(pixels)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(lambda run: louder(run, 1e6), "tensor ", id="a tensor that is too large"),
        pytest.param(lambda run: louder(run, 1e-7), "constant classifier.backbone", id="one that is too small"),
        pytest.param(lambda run: large_bias(run, 1e5), "tensor logits", id="a bias"),
    ],
)
def test_what_float16_cannot_hold_stays_float32_and_is_said(run: Run, damage: Callable[[Run], None], why: str) -> None:
    damage(run)
    golden = Golden.of(run)
    result = exported(run)
    assert result.verdict == "passed", result.reason
    for precision in ("fp16", "int8"):
        (note,) = (note for note in result.notes if note.startswith(MODEL_FILES[precision]))  # type: ignore[index]
        assert f"float32, because {why}" in note
        assert "beyond float16's 65,504" in note
        measured = result.precisions[precision]  # type: ignore[index]
        assert measured.in_float32
        assert measured.overflows == ()
        file = onnx.load(run.path(MODEL_FILES[precision]))  # type: ignore[index]
        onnx.checker.check_model(file, full_check=True)
        shifted = golden.logits - golden.logits.mean()  # of the large bias nothing but its size would be compared
        answered = in_float16(file, golden.images)
        assert np.abs(answered - answered.mean() - shifted).max() < 0.1 * np.abs(shifted).max()
    float32 = onnx.load(run.path("model.onnx"))
    without = in_float16(half(float32), golden.images)
    assert not np.abs(without - golden.logits).max() < 0.1 * np.abs(golden.logits).max()  # nan is not less either
    for precision in ("fp32", "int8-cpu"):  # they have no float16
        assert not result.precisions[precision].in_float32  # type: ignore[index]
    assert result.engine_from == "int8"


def test_float16_arithmetic_is_that_of_the_reference(exported_run: Path) -> None:
    pixels = Golden.of(Run(exported_run)).images[:4]
    for name, tolerance in (("model.fp16.onnx", 0.005), ("model.int8.onnx", 0.1)):  # a step of INT8 may flip
        file = onnx.load(exported_run / name)
        (expected,) = ReferenceEvaluator(file).run(None, {"images": pixels})
        assert np.abs(in_float16(file, pixels) - expected).max() < tolerance * np.abs(expected).max()
    float32 = onnx.load(exported_run / "model.onnx")
    assert computed_in_float16(float32).SerializeToString() == float32.SerializeToString()


def test_no_casts_are_left_between_float32_nodes(exported_run: Path) -> None:
    graph = onnx.load(exported_run / "model.onnx")
    names = [node.name for node in graph.graph.node]
    first = next(i for i, node in enumerate(graph.graph.node) if node.op_type == "Relu")
    for kept in (names[first - 1 : first + 2], names[:2], names[-1:], names):
        halved = half(graph, kept)
        onnx.checker.check_model(halved, full_check=True)
        casts = {node.output[0]: node for node in halved.graph.node if node.op_type == "Cast"}
        assert not [name for name, node in casts.items() if node.input[0] in casts and name != "logits"]
        computed = {name for node in graph.graph.node for name in node.output}
        assert computed <= {name for node in halved.graph.node for name in node.output} | {"logits"}


def test_a_network_that_fits_float16_is_not_suspected(exported_run: Path) -> None:
    report = json.loads((exported_run / "export.json").read_text())
    assert all(each["overflows"] == [] and each["not_finite"] == 0 for each in report["precisions"].values())


def test_a_file_whose_answers_are_not_finite_misses_the_gate_and_the_others_are_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Job, precision: Precision, model: Path | bytes) -> Logits:
        logits = answers(self, precision, model)
        if precision == "int8":
            logits[::2, 1] = np.nan
            logits[1::2] = np.inf
        return logits

    answers = Job.answers
    monkeypatch.setattr(Job, "answers", broken)
    result = export(
        ExportOptions(str(run.folder), int8=True, sample=SAMPLE, gate=GateOptions(1, min_speedup=0, time_budget=0))
    )
    measured = result.precisions["int8"]
    assert (measured.not_finite, measured.accuracy, measured.ece_before, measured.temperature) == (16, 0.0, None, 1.0)
    assert f"model.int8.onnx: 16 of {measured.n_answers} answers are not finite numbers" in result.reason
    assert result.engine_from == "fp16"
    assert set(MODEL_FILES.values()) <= set(run.manifest.files)
    text = run.path("export.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_network_that_is_broken_itself_is_called_so(run: Run) -> None:
    golden = Golden.of(run)
    Golden(golden.images, np.full_like(golden.logits, np.nan), golden.validation_answers).write(run)
    before = run.path("model.onnx").read_bytes()
    with pytest.raises(ExportError, match="the network itself answers its golden images with numbers that are not"):
        export(ExportOptions(str(run.folder)))
    assert run.path("model.onnx").read_bytes() == before
    shown = CliRunner().invoke(app, ["export", str(run.folder)])
    assert shown.exit_code == 1


def test_figures_stand_answers_that_are_not_numbers() -> None:
    truth = np.array([0, 1, 1])
    logits = np.array([[1, 0], [np.nan, 2], [np.inf, 0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answered = metrics.answered(logits)
        assert answered.tolist() == [0, metrics.NO_ANSWER, metrics.NO_ANSWER]
        assert metrics.accuracy(answered, truth) == pytest.approx(1 / 3)
        assert metrics.confusion_matrix(answered, truth, 2).tolist() == [[1, 0], [0, 0]]
        assert metrics.class_accuracies(answered, truth, 2).tolist() == [1, 0]
        probabilities = metrics.softmax(logits)
        assert np.isfinite(probabilities[0]).all()
        assert np.isnan(probabilities[1:]).any(axis=1).all()
        assert math.isnan(metrics.expected_calibration_error(probabilities, truth))
        assert metrics.paired_difference(answered, answered, truth).drop == 0
        assert fit_temperature(logits, truth).ece_before is None


def with_values(*values: float) -> onnx.ModelProto:
    """Pixels times a constant, clipped, to one number an image and class."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 2, 2, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 12])
    scale, lowest, highest = (numpy_helper.from_array(np.float32(v), n) for v, n in zip(values, "slh", strict=True))
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "s"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "l", "h"], ["clipped"]),
        helper.make_node("Flatten", ["clipped"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "scaled", [images], [logits], [scale, lowest, highest])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param((1.0, 0.0, 3.4e38), [], id="a bound that bounds nothing"),
        pytest.param((256.0, 0.0, 6.0), [], id="255 times 256 is within"),
        pytest.param((258.0, 0.0, 6.0), ["scaled"], id="255 times 258 is not"),
        pytest.param((-258.0, -6.0, 0.0), ["scaled"], id="nor below zero"),
        pytest.param((1e6, 0.0, 6.0), ["scaled", "s"], id="a weight"),
        pytest.param((300.0, 0.0, 3.4e38), ["clipped", "logits", "scaled"], id="the logits, cast back to float32"),
        pytest.param((1e-7, -1.0, 6.0), ["clipped", "logits", "s", "scaled"], id="a weight that is too small"),
        pytest.param((1e-4, -1e-6, 6.0), [], id="a small bound, and a small value beside larger ones"),
    ],
)
def test_misfits_are_found_in_the_float32_graph(values: tuple[float, ...], expected: list[str]) -> None:
    graph = with_values(*values)
    halved = half(graph)
    pixels = np.full((2, 2, 2, 3), 255, np.uint8)
    found = misfits(graph, halved, ranges_of(graph, halves(halved), [pixels[:1], pixels]))
    assert sorted(each.tensor for each in found) == sorted(expected)
