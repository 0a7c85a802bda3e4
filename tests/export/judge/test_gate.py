"""An export is judged: what passes, what is missed, and what stands on the disk afterwards."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from edgecls.calibration.options import SampleOptions
from edgecls.cli import app
from edgecls.errors import DatasetError, OptionError, RunError
from edgecls.export import calibrate as export_calibrate
from edgecls.export import report as export_report
from edgecls.export.judge.temperature import fit_temperature
from edgecls.export.judge.verify import verify
from edgecls.export.options import ExportOptions, GateOptions
from edgecls.export.result import ExportResult
from edgecls.export.run import export
from edgecls.manifest import Manifest
from edgecls.metrics import softmax
from edgecls.processor import int8_sums_overflow
from edgecls.progress import Progress
from edgecls.runs import MODEL_FILES, Run, sha256_of
from edgecls.runtime.classifier import Classifier
from tests.conftest import draw, write_class_folders, write_image

SAMPLE = SampleOptions(32)
ANYTHING = GateOptions(max_drop=100, min_speedup=0)


@pytest.fixture
def run(exported_run: Path, tmp_path: Path) -> Run:
    """A copy of the exported run that a test may damage."""
    return Run(Path(shutil.copytree(exported_run, tmp_path / "run")))


def contents(run: Run) -> dict[str, str]:
    return {str(p.relative_to(run.folder)): sha256_of(p) for p in run.folder.rglob("*") if p.is_file()}


def loud(run: Run) -> None:
    """Make a channel a thousand times as loud and undo it in the next layer: the same answers, and INT8 breaks."""
    path = run.path("checkpoint.pt")
    state = torch.load(path, weights_only=True)
    state["backbone.layers.0.1.weight"][0] *= 1000
    state["backbone.layers.0.1.bias"][0] *= 1000
    state["backbone.layers.1.0.weight"][:, 0] /= 1000
    torch.save(state, path)


def test_a_hostile_network_is_caught_and_repaired(run: Run) -> None:
    loud(run)
    lines: list[str] = []
    result = export(
        ExportOptions(str(run.folder), int8=True, sample=SAMPLE, method="mse", gate=GateOptions(0, 0)),
        Progress(lines.append),
    )
    assert result.is_equalised
    assert any("trying equalised channels" in line for line in lines)
    for precision in ("int8", "int8-cpu"):
        paired = result.precisions[precision].paired  # type: ignore[index]
        assert paired is not None
        assert paired.drop <= 0
    assert result.verdict == "passed"
    assert result.engine_from == "int8"


def test_where_a_network_is_noisy_by_the_default_method_the_best_of_all_is_taken(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises = {"mse": 0.5, "minmax": 0.3, "percentile": 0.01, "entropy": 0.4}
    monkeypatch.setattr(export_calibrate, "noise", lambda graph, calibration, probe: noises[calibration.method])
    lines: list[str] = []
    options = ExportOptions(str(run.folder), int8=True, sample=SAMPLE, gate=ANYTHING)
    assert export(options, Progress(lines.append)).method == "percentile"
    assert "int8: 50% of the logits' variance is noise by mse: trying others" in lines
    assert json.loads(run.path("calibration.json").read_text())["method"] == "percentile"
    noises["mse"] = 0.01
    assert export(options).method == "mse"
    assert export(replace(options, method="minmax")).method == "minmax"


def test_a_missed_gate_exits_1_says_why_and_serves_fp32(run: Run) -> None:
    arguments = ["export", str(run.folder), "--int8", "--calibration-images", "32", "--min-speedup", "900"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    words = " ".join(result.output.split())
    assert "missed: int8:" in words
    assert "900 are asked for" in words
    assert "predict uses fp32 on CPUs, TensorRT engines are built from int8" in words
    assert {"model.onnx", "model.fp16.onnx"} <= set(run.manifest.files)
    with Classifier.open(run.folder, device="cpu") as classifier:
        assert classifier.precision == "fp32"


def test_validation_images_of_ones_own_are_judged_on(run: Run, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "own", 6, first_seed=7000)
    (folder / "checks").rename(folder / "0")  # by class index
    result = export(ExportOptions(str(run.folder), int8=True, sample=SAMPLE, validation=folder, gate=ANYTHING))
    assert {each.n_images for each in result.precisions.values()} == {12}
    assert result.precisions["fp32"].agreement is None  # the checkpoint was not asked about these
    fp32 = result.precisions["fp32"].accuracy
    assert fp32 is not None
    assert fp32 > 0.8


NOTHING_TO_JUDGE_ON: list[Any] = [
    pytest.param(lambda folder: None, "no such folder or CSV", id="nothing there"),
    pytest.param(lambda folder: folder.mkdir(), "no class folders in it", id="an empty folder"),
    pytest.param(lambda folder: (folder / "checks").mkdir(parents=True), "no images in it", id="an empty class"),
    pytest.param(
        lambda folder: write_image(folder / "birds" / "1.png", draw("checks", 1)),
        r"1 of 1 class names are not the model's: birds; expected labels \(checks, stripes\)",
        id="a foreign class",
    ),
]


@pytest.mark.parametrize(("make", "message"), NOTHING_TO_JUDGE_ON)
def test_a_validation_set_without_a_usable_image_is_an_error_and_loses_nothing(
    run: Run, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    before = contents(run)
    make(tmp_path / "own")
    with pytest.raises(DatasetError, match=message):
        export(ExportOptions(str(run.folder), int8=True, sample=SAMPLE, validation=tmp_path / "own"))
    assert contents(run) == before


def test_a_run_without_validation_images_asks_for_some(run: Run) -> None:
    rows = run.path("split.csv").read_text().splitlines()
    run.path("split.csv").write_text("\n".join(row for row in rows if ",val," not in row) + "\n")
    with pytest.raises(DatasetError, match=r"no validation images.*--validation DIR\|CSV"):
        export(ExportOptions(str(run.folder), fp16=True))


def test_a_broken_validation_image_stops_the_export_and_loses_nothing(run: Run, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "own", 2, first_seed=7000)
    (folder / "checks" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = contents(run)
    result = CliRunner().invoke(app, ["export", str(run.folder), "--int8", "--validation", str(folder)])
    assert result.exit_code == 1
    assert "broken.png" in result.output
    assert contents(run) == before


@pytest.mark.parametrize("failing", ["model.onnx", "model.int8.onnx", "calibration.json", "export.json"])
def test_a_full_disk_leaves_the_run_as_it_was(run: Run, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)
    save, write_text = onnx.save, Path.write_text

    def no_space(path: Path) -> None:
        if failing in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    def saving(model: onnx.ModelProto, path: Path) -> None:
        no_space(Path(path))
        save(model, path)

    def writing(path: Path, *arguments: Any, **options: Any) -> int:
        no_space(path)
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(onnx, "save", saving)
    monkeypatch.setattr(Path, "write_text", writing)
    with pytest.raises(RunError, match="No space left on device"):
        export(ExportOptions(str(run.folder), int8=True, sample=SAMPLE, gate=ANYTHING))
    assert contents(run) == before


def test_what_is_no_longer_measured_goes_and_that_is_said(run: Run) -> None:
    lines: list[str] = []
    export(ExportOptions(str(run.folder)), Progress(lines.append))
    assert lines[-1].startswith("removed model.fp16.onnx, model.int8.onnx, model.int8-cpu.onnx")
    assert run.path("calibration.json").exists()  # keyed: used again where it fits


def test_a_damaged_export_report_is_an_error_not_fp32(run: Run) -> None:
    for text in ("", "{", "[]", '{"serves": "bogus"}', '{"serves": 7}'):
        run.path("export.json").write_text(text)
        with pytest.raises(RunError, match=r"export\.json.*damaged.*--precision fp32"):
            Classifier.open(run.folder)
    with Classifier.open(run.folder, precision="int8", device="cpu") as classifier:
        assert classifier.precision == "int8-cpu"


def test_few_images_and_many_changed_answers_are_called_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_report, "_MANY_CHANGED", -1.0)  # FP16 changes none: now none is many
    folder = tmp_path / "one"
    write_image(folder / "checks" / "1.png", draw("checks", 1))
    result = export(ExportOptions(str(run.folder), fp16=True, validation=folder, gate=ANYTHING))
    assert "1 validation images are few: one of them is 100.0 points" in result.notes
    assert any("model.fp16.onnx changes 0% of the answers" in note for note in result.notes)
    assert result.precisions["fp32"].temperature == 1
    assert result.precisions["fp32"].ece_after is None


def test_a_calibration_set_without_int8_is_a_contradiction(run: Run, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="add --int8"):
        ExportOptions(str(run.folder), sample=SampleOptions(source=tmp_path))


def test_the_sizes_reported_are_those_on_the_disk(run: Run) -> None:
    for precision, measured in json.loads(run.path("export.json").read_text())["precisions"].items():
        assert measured["bytes"] == run.path(MODEL_FILES[precision]).stat().st_size


def test_what_a_killed_export_left_is_cleared_away(run: Run) -> None:
    (run.folder / ".export-123").mkdir()
    (run.folder / ".export-123" / "model.onnx").write_text("half")
    export(ExportOptions(str(run.folder)))
    assert not (run.folder / ".export-123").exists()
    assert not [name for name in run.manifest.files if name.startswith(".")]


def test_the_same_calibration_is_reused_and_that_of_another_model_is_not(run: Run) -> None:
    def lines_of(options: ExportOptions) -> list[str]:
        lines: list[str] = []
        export(options, Progress(lines.append))
        return lines

    options = ExportOptions(str(run.folder), int8=True, sample=SAMPLE, gate=ANYTHING)
    before = run.path("calibration.json").read_bytes()
    assert any("as kept in calibration.json" in line for line in lines_of(options))
    assert run.path("calibration.json").read_bytes() == before
    loud(run)  # another model now
    assert not any("as kept" in line for line in lines_of(options))
    run.path("calibration.json").write_text("{}")
    assert any("ranges are taken anew" in line for line in lines_of(options))


def test_temperatures_are_in_the_files_and_applied(run: Run) -> None:
    report = json.loads(run.path("export.json").read_text())
    with Classifier.open(run.folder, precision="fp32", device="cpu") as classifier:
        temperature = classifier.manifest.temperature
        assert temperature == pytest.approx(report["precisions"]["fp32"]["temperature"])
        assert temperature != 1
        array = draw("checks", 4)
        (prediction,) = classifier.predict_arrays([array])
        logits = classifier.logits(array[None])
    assert prediction.probability == pytest.approx(softmax(logits / temperature).max(), rel=1e-5)
    assert run.manifest.temperature == temperature


def test_a_temperature_makes_confidence_honest() -> None:
    """Logits whose probabilities are right, times three: three is what to divide by."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 5)).astype(np.float32)
    truth = np.array([rng.choice(5, p=row / row.sum()) for row in softmax(logits).astype(np.float64)])
    fitted = fit_temperature(3 * logits, truth)
    assert fitted.temperature == pytest.approx(3, rel=0.05)
    assert fitted.ece_before > 0.15
    assert fitted.ece_after < 0.03


def test_a_temperature_without_a_single_mistake_stays_moderate() -> None:
    logits = np.tile(np.array([[4, 0], [0, 4]], np.float32), (8, 1))
    truth = np.tile([0, 1], 8)
    assert 0.3 < fit_temperature(logits, truth).temperature < 1


# verify


def test_verify_passes_what_was_exported(run: Run) -> None:
    result = verify(str(run.folder))
    assert result.verdict == "passed"
    by_backend: dict[str, list[str]] = {}
    for check in result.checks:
        by_backend.setdefault(check.backend, []).append(check.file)
    assert by_backend["onnxruntime-cpu"] == [
        "model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx",
    ]  # fmt: skip
    # the other two are for GPUs
    right = ["model.onnx"] if int8_sums_overflow() else ["model.onnx", "model.int8-cpu.onnx"]
    assert by_backend.get("openvino-cpu") in (None, right)
    assert result.seconds < 60


def test_verify_finds_a_file_with_other_weights(run: Run) -> None:
    path = run.path("model.int8-cpu.onnx")
    graph = onnx.load(path)
    weight = next(w for w in graph.graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, path)
    result = verify(str(run.folder))
    assert result.verdict == "failed"
    failed = [check for check in result.checks if not check.passed]
    assert {check.file for check in failed} == {"model.int8-cpu.onnx"}
    runs_it = {check.backend for check in result.checks if check.file == "model.int8-cpu.onnx"}
    assert {check.backend for check in failed} == runs_it  # on whatever runs it
    assert result.changed == ("model.int8-cpu.onnx is not the file that the manifest lists (another sha256)",)
    shown = CliRunner().invoke(app, ["verify", str(run.folder)])
    assert shown.exit_code == 1
    assert "another sha256" in shown.output


def test_verify_finds_swapped_labels_damage_and_what_is_gone(run: Run) -> None:
    manifest = run.manifest
    graph = onnx.load(run.path("model.onnx"))
    from edgecls.export.graphs.graph import embed_manifest

    embed_manifest(graph, Manifest(manifest.labels[::-1], manifest.preprocessing, manifest.model))
    onnx.save(graph, run.path("model.onnx"))
    run.path("model.fp16.onnx").write_bytes(b"not onnx")
    run.path("model.int8.onnx").unlink()
    result = verify(str(run.folder))
    reasons = {check.file: check.reason for check in result.checks}
    assert "labels or preprocessing are not those of the run" in reasons["model.onnx"]
    assert "cannot open it" in reasons["model.fp16.onnx"]
    assert "model.int8.onnx is gone" in result.changed
    values = result.to_json()
    json.dumps(values, allow_nan=False)
    assert values["verdict"] == "failed"


def test_a_run_that_was_not_exported_has_nothing_to_verify(run: Run) -> None:
    for path in run.folder.glob("*.onnx"):
        path.unlink()
    with pytest.raises(RunError, match="edgecls export"):
        verify(str(run.folder))


# runs that were not trained here


def test_published_weights_are_exported_gated_and_predicted(
    tmp_path: Path, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real ImageNet weights, at a small size so that it is quick; the labels are ImageNet's."""
    made = CliRunner().invoke(app, ["pretrained", "efficientnet_lite0", "--image-size", "64", "--out", "run"])
    assert made.exit_code == 0, made.output
    run = Run(Path("run"))
    labels = run.manifest.labels
    photos, calibration = tmp_path / "photos", tmp_path / "calibration"
    for seed in range(3):
        write_image(photos / "3" / f"{seed}.png", draw("checks", seed, 64))
        write_image(photos / run.manifest.label_ids[7] / f"{seed}.png", draw("stripes", seed, 64))
        write_image(calibration / f"{seed}.png", draw("stripes", 50 + seed, 64))
    refused = CliRunner().invoke(app, ["export", "run", "--int8"])
    assert refused.exit_code == 1
    assert "--validation DIR|CSV" in refused.output
    monkeypatch.setattr(export_calibrate, "N_PROBE", 2)
    result: ExportResult = export(
        ExportOptions("run", int8=True, sample=SampleOptions(source=calibration), validation=photos, gate=ANYTHING)
    )
    assert result.parity.agreement == 1
    assert result.n_calibration == 3
    assert any("3 calibration images are few" in note for note in result.notes)
    with Classifier.open("run", precision="int8", device="cpu") as classifier:
        (prediction,) = classifier.predict([photos / "3" / "0.png"])
    assert prediction.label in labels


def test_an_engine_of_a_file_is_not_of_another_precision(run: Run) -> None:
    arguments = ["engine", str(run.path("model.int8.onnx")), "--precision", "fp16", "--compute-capability", "8.6"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "model.int8.onnx is int8; leave the flag out" in result.output
