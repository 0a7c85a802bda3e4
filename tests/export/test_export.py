"""From a checkpoint to model files that are proved to be it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from edgecls.datasets import read_split
from edgecls.errors import ParityError, RunError
from edgecls.export.graphs.graph import PIXEL_SCALE
from edgecls.export.judge.parity import check_parity
from edgecls.export.options import ExportOptions
from edgecls.export.run import export
from edgecls.golden import Golden
from edgecls.manifest import METADATA_KEY, Manifest
from edgecls.runs import Run, sha256_of
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.runtime.classifier import Classifier
from edgecls.train.networks.checkpoint import load_checkpoint

FILES = {
    "model.onnx": "fp32",
    "model.fp16.onnx": "fp16",
    "model.int8.onnx": "int8",
    "model.int8-cpu.onnx": "int8-cpu",
}


@pytest.fixture
def run(exported_run: Path, tmp_path: Path) -> Run:
    """A copy of the exported run that a test may damage."""
    return Run(Path(shutil.copytree(exported_run, tmp_path / "run")))


def test_an_export_leaves_these_files_and_the_manifest_has_their_hashes(exported_run: Path) -> None:
    run = Run(exported_run)
    written = {*FILES, "calibration.json", "export.json"}
    assert written <= set(run.manifest.files)
    for name in written:
        assert sha256_of(run.path(name)) == run.manifest.files[name]
    assert not [path for path in exported_run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", FILES)
def test_every_file_takes_pixels_and_says_what_it_is(exported_run: Path, name: str) -> None:
    graph = onnx.load(exported_run / name)
    (given,), (answered,) = graph.graph.input, graph.graph.output
    assert (given.name, given.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert [d.dim_value or "n" for d in given.type.tensor_type.shape.dim] == ["n", 24, 24, 3]
    assert (answered.name, answered.type.tensor_type.elem_type) == ("logits", TensorProto.FLOAT)
    assert [d.dim_value or "n" for d in answered.type.tensor_type.shape.dim] == ["n", 2]
    (opset,) = [entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")]
    assert opset <= 20  # what TensorRT 10.3 reads
    inside = Manifest.from_json({entry.key: entry.value for entry in graph.metadata_props}[METADATA_KEY], name)
    outside = Run(exported_run).manifest
    assert inside.precision == FILES[name]
    assert (inside.labels, inside.preprocessing) == (outside.labels, outside.preprocessing)


@pytest.mark.parametrize("name", FILES)
def test_the_batch_is_dynamic_and_does_not_change_the_answer(exported_run: Path, name: str) -> None:
    images = Golden.of(Run(exported_run)).images
    with OnnxRuntimeBackend(exported_run / name, BackendOptions("cpu")) as backend:
        together = backend.infer(images)
        apart = np.concatenate([backend.infer(images[i : i + 1]) for i in range(len(images))])
    assert np.allclose(together, apart, atol=1e-4)


def test_no_graph_transposes_or_quantizes_uint8_where_tensorrt_must_read_it(exported_run: Path) -> None:
    for name in ("model.onnx", "model.fp16.onnx", "model.int8.onnx"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(exported_run / name)).graph
        first = next(node for node in graph.node if "images" in node.input)
        assert first.op_type == "Cast", name
        zero_points = {i.name: i.data_type for i in graph.initializer}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert zero_points[node.input[2]] == TensorProto.INT8, node.name


def activation_zero_points(file: Path) -> list[np.ndarray[Any, Any]]:
    graph = onnx.load(file).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    return [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]


def test_tensorrts_graph_is_symmetric_int8_and_the_cpus_uint8(exported_run: Path) -> None:
    for_tensorrt = activation_zero_points(exported_run / "model.int8.onnx")
    assert for_tensorrt
    assert all(point.dtype == np.int8 and not point.any() for point in for_tensorrt)
    for_cpu = activation_zero_points(exported_run / "model.int8-cpu.onnx")
    assert for_cpu
    assert all(point.dtype == np.uint8 for point in for_cpu)


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.int8-cpu.onnx"])
def test_weights_are_int8_per_output_channel(exported_run: Path, name: str) -> None:
    graph = onnx.load(exported_run / name).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and PIXEL_SCALE not in node.input]
    assert convolutions
    for node in convolutions:
        dequantize = made_by[node.input[1]]
        weights, scales = values[dequantize.input[0]], values[dequantize.input[1]]
        assert weights.dtype == np.int8
        assert scales.shape == (weights.shape[0],)


def test_exported_fp32_answers_every_validation_image_as_the_checkpoint_in_torch(exported_run: Path) -> None:
    run = Run(exported_run)
    paths = [image.path for image in read_split(run.path("split.csv"), run.manifest.labels).splits["val"]]
    from edgecls import images

    pixels = np.stack([images.load(path, run.manifest.preprocessing) for path in paths])
    with torch.inference_mode():
        expected = load_checkpoint(run)(torch.from_numpy(pixels)).argmax(1).tolist()
    with Classifier.open(run.folder, precision="fp32", device="cpu") as classifier:
        answers = [run.manifest.labels.index(prediction.label) for prediction in classifier.predict(paths)]
    assert answers == expected == Golden.of(run).validation_answers.tolist()


def test_the_export_report_has_what_was_measured(exported_run: Path) -> None:
    report = json.loads((exported_run / "export.json").read_text())
    assert report["verdict"] in ("passed", "missed")
    assert report["parity"]["max_logit_difference"] <= report["parity"]["tolerance"]
    assert set(report["precisions"]) == {"fp32", "fp16", "int8", "int8-cpu"}
    for measured in report["precisions"].values():
        assert measured["n_images"] == 16
        assert measured["accuracy"] > 0.8
        assert measured["agreement"] > 0.8
        assert measured["images_per_second"] > 0
        assert measured["bytes"] > 0
        assert measured["golden"]["max_logit_difference"] < 1
        assert 0 <= measured["ece_before"] <= 1
        assert 0.1 <= measured["temperature"] <= 10
    assert report["serves"] == ("int8-cpu" if report["verdict"] == "passed" else "fp32")
    assert report["engine_from"] == "int8"
    assert report["precisions"]["int8"]["paired"]["n"] == 16


def test_a_checkpoint_that_was_swapped_fails_parity_and_the_old_file_stays(run: Run) -> None:
    old = sha256_of(run.path("model.onnx"))
    classifier = load_checkpoint(run)
    with torch.no_grad():
        classifier.head.weight += 0.5 * torch.randn_like(classifier.head.weight)
    torch.save(classifier.state_dict(), run.path("checkpoint.pt"))
    with pytest.raises(ParityError, match="does not answer as its checkpoint"):
        export(ExportOptions(str(run.folder)))
    assert sha256_of(run.path("model.onnx")) == old
    assert not list(run.folder.glob(".export*"))


def test_a_graph_with_nan_answers_fails_parity(run: Run) -> None:
    graph = onnx.load(run.path("model.onnx"))
    bias = next(i for i in graph.graph.initializer if i.name.endswith("head.bias"))
    bias.CopyFrom(numpy_helper.from_array(np.full(2, np.nan, np.float32), bias.name))
    onnx.save(graph, run.path("model.onnx"))
    with (
        OnnxRuntimeBackend(run.path("model.onnx"), BackendOptions("cpu")) as backend,
        pytest.raises(ParityError),
    ):
        check_parity(backend, Golden.of(run), run.path("model.onnx"))


def test_an_export_without_int8_leaves_no_int8_files_of_an_earlier_one(run: Run) -> None:
    result = export(ExportOptions(str(run.folder)))
    assert (result.verdict, result.serves) == ("passed", "fp32")
    assert not run.path("model.int8.onnx").exists()
    assert not run.path("model.fp16.onnx").exists()
    assert set(result.precisions) == {"fp32"}


BROKEN_RUNS = [
    pytest.param("checkpoint.pt", "no checkpoint.pt", id="no checkpoint"),
    pytest.param("golden.npz", "no readable golden answers", id="no golden answers"),
    pytest.param("manifest.json", "not a run folder", id="no manifest"),
]


@pytest.mark.parametrize(("missing", "message"), BROKEN_RUNS)
def test_an_incomplete_run_says_what_is_missing(run: Run, missing: str, message: str) -> None:
    run.path(missing).unlink()
    with pytest.raises(RunError, match=message):
        export(ExportOptions(str(run.folder)))


def test_a_checkpoint_of_another_network_is_an_error(run: Run) -> None:
    torch.save({"head.weight": torch.zeros(1)}, run.path("checkpoint.pt"))
    with pytest.raises(RunError, match="not the weights of cnn"):
        export(ExportOptions(str(run.folder)))


def test_training_data_that_has_moved_away_is_an_error(run: Run) -> None:
    text = run.path("split.csv").read_text().replace("photos", "elsewhere")
    run.path("split.csv").write_text(text)
    with pytest.raises(RunError, match=r"no longer there.*Put the data back"):
        export(ExportOptions(str(run.folder)))


def test_a_missing_run_says_how_to_make_one(in_empty_folder: Path) -> None:
    with pytest.raises(RunError, match="no run has been made in this folder"):
        export(ExportOptions())
    with pytest.raises(RunError, match="no such run folder"):
        export(ExportOptions("runs/nothing"))
