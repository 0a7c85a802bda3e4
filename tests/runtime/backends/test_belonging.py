"""A run's files are of that run, and say the same: what does not belong is refused before it answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import set_external_data
from typer.testing import CliRunner

from edgecls.cli import app
from edgecls.errors import EdgeclsError, OptionError, RunError
from edgecls.export.graphs.graph import embed_manifest
from edgecls.export.options import ExportOptions
from edgecls.export.run import export
from edgecls.golden import Golden
from edgecls.manifest import Manifest
from edgecls.runs import CHECKPOINT, GOLDEN, MANIFEST, METRICS, MODEL_FILES, Run, write_text
from edgecls.runtime.backends import selection
from edgecls.runtime.backends.belonging import check_belongs
from edgecls.runtime.backends.open_vino import OpenVinoBackend
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import Device
from edgecls.train.networks.checkpoint import load_proved_checkpoint
from tests.conftest import draw, write_image, write_linear_model

DEVICES = ["cpu", "auto", *(["openvino"] if find_spec("openvino") else [])]


@pytest.fixture
def run(exported_run: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(exported_run, tmp_path / "run")))


def of_another_run(path: Path, **changes: Any) -> None:
    """Put a network with other weights in a file's place, with the manifest that the file had, changed or not."""
    graph = onnx.load(path)
    manifest = Manifest.from_json({e.key: e.value for e in graph.metadata_props}["edgecls.manifest"], "a test")
    weight = next(w for w in graph.graph.initializer if len(w.dims) == 4 and w.dims[0] > 3)
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    embed_manifest(graph, replace(manifest, **changes))
    onnx.save(graph, path)


def unlisted(run: Run) -> None:
    """As a version without hashes left it."""
    write_text(run.path(MANIFEST), replace(run.manifest, files={}).to_json())
    report = json.loads(run.path("export.json").read_text())
    for each in report["precisions"].values():
        del each["sha256"], each["bytes"]
    run.path("export.json").write_text(json.dumps(report))


def edit(run: Run, **changes: Any) -> None:
    values = json.loads(run.path(MANIFEST).read_text())
    run.path(MANIFEST).write_text(json.dumps(values | changes))


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_file_of_another_run_is_refused(run: Run, device: Device) -> None:
    of_another_run(run.path("model.onnx"))
    with pytest.raises(RunError, match=r"model\.onnx is not the file that .*manifest\.json lists"):
        Classifier.open(run.folder, precision="fp32", device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_labels_in_another_order_inside_than_beside_are_refused(run: Run, device: Device) -> None:
    of_another_run(run.path("model.onnx"), labels=run.manifest.labels[::-1])
    run.record()  # whatever the hashes say
    with pytest.raises(RunError, match=r"it says labels stripes, checks, and the run checks, stripes\. Put back"):
        Classifier.open(run.folder, precision="fp32", device=device)
    with pytest.raises(RunError, match="does not belong"):
        Classifier.open(run.path("model.onnx"), device=device)  # named itself, it is still beside that manifest


EDITS: list[Any] = [
    pytest.param(lambda m: {"labels": list(m.labels[::-1])}, "labels", id="labels"),
    pytest.param(lambda m: {"temperature": 2.5}, "temperature", id="temperature"),
    pytest.param(lambda m: {"preprocessing": vars(m.preprocessing) | {"mean": [0, 0, 0]}}, "mean", id="mean"),
    pytest.param(lambda m: {"preprocessing": vars(m.preprocessing) | {"size_hw": [32, 24]}}, "size_hw", id="size"),
    pytest.param(lambda m: {"preprocessing": vars(m.preprocessing) | {"resize": "pad"}}, "resize", id="resize"),
]


@pytest.mark.parametrize(("changes", "named"), EDITS)
def test_a_manifest_changed_by_hand_contradicts_the_file(
    run: Run, changes: Callable[[Manifest], dict[str, Any]], named: str
) -> None:
    edit(run, **changes(run.manifest))
    with pytest.raises(RunError, match=f"does not belong to .*it says .*{named}"):
        Classifier.open(run.folder, precision="fp32", device="cpu")


def test_a_file_under_the_name_of_another_precision_is_refused(run: Run) -> None:
    shutil.copyfile(run.path("model.onnx"), run.path("model.int8-cpu.onnx"))
    with pytest.raises(RunError, match="it says precision fp32, and its name int8-cpu"):
        Classifier.open(run.folder, precision="int8", device="cpu")


def test_a_report_of_another_run_is_refused(run: Run) -> None:
    report = json.loads(run.path("export.json").read_text())
    report["precisions"]["fp32"]["sha256"] = "0" * 64
    run.path("export.json").write_text(json.dumps(report))
    with pytest.raises(RunError, match=r"export\.json is not about this model\.onnx"):
        Classifier.open(run.folder, precision="fp32", device="cpu")


def test_a_run_without_hashes_is_judged_by_its_golden_answers(run: Run) -> None:
    unlisted(run)
    with Classifier.open(run.folder, precision="fp32", device="cpu") as classifier:
        assert classifier.precision == "fp32"
    of_another_run(run.path("model.onnx"))
    with pytest.raises(RunError, match=r"answers the golden images of .* otherwise than that run does"):
        Classifier.open(run.folder, precision="fp32", device="cpu")


def test_a_copied_run_and_a_lone_file_stay_usable(run: Run, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run.folder, tmp_path / "elsewhere" / "renamed"))
    lone = tmp_path / "device" / "model.onnx"
    lone.parent.mkdir()
    of_another_run(run.path("model.onnx"))
    shutil.copyfile(run.path("model.onnx"), lone)
    for model in (moved, lone):
        with Classifier.open(model, device="cpu") as classifier:
            assert classifier.predict_arrays([draw("checks", 3)])[0].status == "ok"
    with pytest.raises(RunError, match="is not the file"):
        Classifier.open([moved, run.folder], precision="fp32", device="cpu")


def test_a_repeated_export_stays_usable_and_mends_what_did_not_belong(run: Run) -> None:
    of_another_run(run.path("model.onnx"))
    export(ExportOptions(str(run.folder)))
    with Classifier.open(run.folder, device="cpu") as classifier:
        assert check_belongs(run.path("model.onnx")) == "hash"
        assert classifier.predict_arrays([draw("checks", 3)])[0].label == "checks"


def strip_about(run: Run) -> None:
    """Golden answers as older versions wrote them."""
    with np.load(run.path(GOLDEN)) as arrays:
        old = {name: arrays[name] for name in ("images", "logits", "validation_answers")}
    np.savez_compressed(run.path(GOLDEN), **old)


@pytest.mark.parametrize("missing", [[], [METRICS], [METRICS, *MODEL_FILES.values()]], ids=len)
def test_export_refuses_labels_that_were_reversed_by_hand(run: Run, missing: list[str]) -> None:
    for name in missing:
        run.path(name).unlink()
    strip_about(run)
    edit(run, labels=list(run.manifest.labels[::-1]))
    before = run.path(MANIFEST).read_bytes()
    result = CliRunner().invoke(app, ["export", str(run.folder)])
    assert result.exit_code == 1
    words = " ".join(result.output.split())
    assert "its files contradict one another" in words
    assert "give a validation accuracy of" in words
    assert run.path(MANIFEST).read_bytes() == before


def test_a_checkpoint_with_golden_answers_of_its_own_is_refused(run: Run) -> None:
    state = torch.load(run.path("checkpoint.pt"), weights_only=True)
    torch.save(
        {**state, "head.weight": 2 * state["head.weight"], "head.bias": 2 * state["head.bias"]}, run.path(CHECKPOINT)
    )
    golden = Golden.of(run)
    Golden(golden.images, 2 * golden.logits, golden.validation_answers).write(run)
    with pytest.raises(RunError, match=r"checkpoint\.pt and golden\.npz are both not the ones that the manifest lists"):
        export(ExportOptions(str(run.folder)))


def test_golden_answers_know_their_run(run: Run) -> None:
    edit(run, labels=list(run.manifest.labels[::-1]))
    with pytest.raises(RunError, match="is of a run with other labels or another preprocessing"):
        Golden.of(run)


def test_a_checkpoint_of_another_run_is_neither_extended_nor_taught_by(run: Run) -> None:
    assert load_proved_checkpoint(run).n_classes == 2
    state = torch.load(run.path("checkpoint.pt"), weights_only=True)
    torch.save({**state, "head.weight": -state["head.weight"]}, run.path("checkpoint.pt"))
    with pytest.raises(RunError, match=r"checkpoint\.pt: answers the run's golden images otherwise"):
        load_proved_checkpoint(run)


def test_a_mean_that_is_not_the_checkpoints_is_refused(run: Run) -> None:
    strip_about(run)
    edit(run, preprocessing=vars(run.manifest.preprocessing) | {"mean": [0.1, 0.2, 0.3]})
    with pytest.raises(RunError, match="was trained with another mean or std"):
        load_proved_checkpoint(run)


# golden answers that are damaged

DAMAGED: list[Any] = [
    pytest.param({"images": np.empty((0, 24, 24, 3), np.uint8), "logits": np.empty((0, 2), np.float32)}, id="empty"),
    pytest.param({"images": np.zeros((16, 24, 24), np.uint8)}, id="grey"),
    pytest.param({"images": np.zeros((16, 24, 24, 3), np.float32)}, id="floats"),
    pytest.param({"logits": np.zeros((3, 2), np.float32)}, id="fewer logits"),
    pytest.param({"validation_answers": np.array(["a"])}, id="texts"),
    pytest.param({"about": np.frombuffer(b"{", np.uint8)}, id="half a text"),
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_golden_answers_of_another_kind_are_one_error(run: Run, damage: dict[str, Any]) -> None:
    with np.load(run.path(GOLDEN)) as arrays:
        values = dict(arrays)
    np.savez_compressed(run.path(GOLDEN), **{**values, **damage})
    with pytest.raises(EdgeclsError, match=GOLDEN):
        Golden.of(run)


@pytest.mark.parametrize("cut", [0, 10, 400, -100])
def test_golden_answers_that_end_early_are_one_error(run: Run, cut: int) -> None:
    run.path(GOLDEN).write_bytes(run.path(GOLDEN).read_bytes()[:cut])
    for command in ("verify", "export"):
        result = CliRunner().invoke(app, [command, str(run.folder)])
        assert result.exit_code == 1
        assert "no readable golden answers" in " ".join(result.output.split())


# weights in other files


@pytest.mark.parametrize("location", ["{outside}", "../outside.bin", "link.bin", ".", "sub/inside.bin"])
def test_weights_from_outside_the_folder_are_refused_by_every_engine(tmp_path: Path, location: str) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside.bin"
    model = with_external_weights(folder, location.format(outside=outside))
    data = (folder / "weights.bin").read_bytes()
    for path in (outside, folder / "sub" / "inside.bin"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (folder / "link.bin").symlink_to(outside)
    for device in DEVICES:
        with pytest.raises(RunError, match=r"its weights are in"):
            Classifier.open(model, device=device)  # type: ignore[arg-type]
    result = CliRunner().invoke(app, ["engine", str(model)])
    assert result.exit_code == 1


def test_weights_beside_the_file_are_read_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_external_weights(tmp_path / "model", "weights.bin")
    monkeypatch.chdir(tmp_path)
    Path("weights.bin").write_bytes(bytes(8 * 8 * 3 * 3 * 4))  # of the working folder: nobody's
    answers = []
    for device in DEVICES:
        with Classifier.open(model, device=device) as classifier:  # type: ignore[arg-type]
            answers.append(classifier.logits(np.full((1, 8, 8, 3), 200, np.uint8)))
    assert np.abs(answers[0]).max() > 0
    assert all(np.allclose(answers[0], each, rtol=1e-3) for each in answers)


def with_external_weights(folder: Path, location: str) -> Path:
    model = write_linear_model(folder / "model.onnx")
    graph = onnx.load(model)
    weights = next(w for w in graph.graph.initializer if w.name == "weights")
    (folder / "weights.bin").write_bytes(weights.raw_data)
    set_external_data(weights, location)
    weights.ClearField("raw_data")
    model.write_bytes(graph.SerializeToString())
    return model


# other ways to be wrong without a word


def test_int8_on_openvino_is_refused_where_its_sums_overflow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "int8_sums_overflow", lambda: True)
    for model in (run.folder, run.path("model.int8-cpu.onnx")):
        with pytest.raises(OptionError, match=r"this CPU has no VNNI, .* use --device cpu, or --precision fp32"):
            Classifier.open(model, precision="int8", device="openvino")
    report = json.loads(run.path("export.json").read_text())
    run.path("export.json").write_text(json.dumps(report | {"serves": "int8-cpu"}))
    notes: list[str] = []
    chosen = selection.select(run.folder, "auto", selection.BackendOptions("openvino"), on_note=notes.append)
    assert chosen.file.name == "model.onnx"
    assert "FP32 is used" in notes[0]


AFTER_A_FORK = """
import os, signal, sys
import numpy as np
from edgecls.runtime.classifier import Classifier
frames = [np.full((8, 8, 3), value, np.uint8) for value in range(0, 256, 8)]
with Classifier.open(sys.argv[1], device=sys.argv[2], n_threads=2, n_lanes=int(sys.argv[3])) as classifier:
    before = [each.label for each in classifier.predict_arrays(frames)]
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a hang ends as a failure
        answered = [each.label for each in classifier.predict_arrays(frames)]
        classifier.close()
        os._exit(0 if answered == before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [each.label for each in classifier.predict_arrays(frames)] == before
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
@pytest.mark.parametrize("device", [device for device in DEVICES if device != "auto"])
@pytest.mark.parametrize("n_lanes", [1, 2])
def test_a_model_that_was_opened_before_a_fork_answers_in_the_child(tmp_path: Path, device: str, n_lanes: int) -> None:
    model = write_linear_model(tmp_path / "model.onnx")
    command = [sys.executable, "-c", AFTER_A_FORK, str(model), device, str(n_lanes)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not find_spec("openvino"), reason="needs edgecls[openvino]")
def test_openvino_itself_refuses_weights_from_elsewhere(tmp_path: Path) -> None:
    model = with_external_weights(tmp_path / "model", str(tmp_path / "model" / "weights.bin"))
    with pytest.raises(RunError, match="expected the plain name of a file beside it"):
        OpenVinoBackend(model, selection.BackendOptions("openvino"))


def test_an_answer_that_is_no_number_is_a_row_with_a_reason(tmp_path: Path) -> None:
    model = write_linear_model(tmp_path / "model.onnx", scale=3e40)
    photo = write_image(tmp_path / "a.png", np.full((8, 8, 3), 255, np.uint8))
    with Classifier.open(model, device="cpu") as classifier:
        (prediction,) = classifier.predict([photo])
    with Classifier.open([model, model], device="cpu") as ensemble:
        (voted,) = ensemble.predict([photo])
    for each in (prediction, voted):
        assert (each.status, each.label) == ("error", "")
        assert "not a finite number" in each.reason
