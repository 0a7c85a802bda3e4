"""`edgecls export --int8 --qat`: what rounding takes is learnt back, and both files and the gate stay what they are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from edgecls.calibration.options import SampleOptions
from edgecls.calibration.ranges import Calibration, network_sha256
from edgecls.cli import app
from edgecls.datasets import read_split
from edgecls.errors import OptionError
from edgecls.export.graphs.int8 import quantized, rounded_in
from edgecls.export.graphs.session import run_session, session_of
from edgecls.export.judge.verify import verify
from edgecls.export.options import FLAVOURS, ExportOptions, GateOptions
from edgecls.export.run import export
from edgecls.golden import Golden
from edgecls.progress import Progress
from edgecls.runs import MODEL_FILES, Run
from edgecls.train.fit import qat
from edgecls.train.fit.qat import train_quantised
from edgecls.train.networks.quantised_network import Quantisation
from tests.conftest import write_class_folders

ANYTHING = GateOptions(max_drop=100, min_speedup=0, time_budget=0)


@pytest.fixture
def run(exported_run: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(exported_run, tmp_path / "run")))


def test_training_takes_most_of_the_noise_of_bad_ranges(exported_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "_RANGE_RATE", 0.1)  # 20 steps for hundreds
    run = Run(exported_run)
    graph, kept = onnx.load(run.path("model.onnx")), Calibration.read(run.path("calibration.json"))
    narrow = {name: (low / 4, high / 4) for name, (low, high) in kept.ranges.items()}
    calibration = replace(kept, ranges=narrow, means={})
    quantisations = []
    for flavour in FLAVOURS:
        tensors, weights = rounded_in(quantized(graph, calibration, flavour))
        quantisations.append(Quantisation(tensors, weights, is_symmetric=flavour == "int8"))
    lines: list[str] = []
    result = train_quantised(
        graph, graph, narrow, quantisations, read_split(run.path("split.csv"), run.manifest.labels).splits["train"],
        run.manifest.preprocessing, n_epochs=10, progress=Progress(lines.append),
    )  # fmt: skip
    assert result.n_images == 64
    assert lines[-1].startswith("int8: quantisation-aware training, 10 epochs of 64 images, takes about")
    trained = replace(calibration, ranges={**narrow, **result.ranges}, network_sha256=network_sha256(result.graph))
    pixels = Golden.of(run).images
    for flavour in FLAVOURS:
        before, after = (
            run_session(session_of(quantized(*each, flavour), Path("x.onnx")), pixels, Path("x.onnx"))[0]
            for each in ((graph, calibration), (result.graph, trained))
        )
        expected = Golden.of(run).logits
        assert np.square(after - expected).mean() < 0.5 * np.square(before - expected).mean()


def test_a_run_is_exported_with_trained_weights(run: Run) -> None:
    before = run.path("model.onnx").read_bytes()
    options = ExportOptions(str(run.folder), int8=True, sample=SampleOptions(32), qat=True, qat_epochs=1, gate=ANYTHING)
    result = export(options)
    assert result.verdict == "passed"
    (note,) = (note for note in result.notes if note.startswith("trained with the rounding in place"))
    assert "1 epoch of 64 images" in note
    is_trained = json.loads(run.path("export.json").read_text())["is_trained"]
    assert is_trained == result.is_trained == ("not kept" not in note)
    assert run.path("model.onnx").read_bytes() == before  # the float network is the one that was trained
    for name in MODEL_FILES.values():
        onnx.checker.check_model(onnx.load(run.path(name)), full_check=True)
    assert verify(str(run.folder)).verdict == "passed"


def test_images_without_labels_will_do(run: Run, photos: Path, tmp_path: Path) -> None:
    others = write_class_folders(tmp_path / "others", 12, first_seed=20_000)
    run.path("split.csv").unlink()
    run.record()
    told = CliRunner().invoke(
        app,
        ["export", str(run.folder), "--int8", "--qat", "--qat-epochs", "1", "--calibration", str(photos),
         "--validation", str(others), "--min-speedup", "0", "--max-drop", "100", "--json"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert any("trained with the rounding in place" in note for note in json.loads(told.stdout)["notes"])


def test_it_is_offered_where_int8_loses_too_much(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GateOptions, "allows", lambda gate, drop: False)
    result = export(
        ExportOptions(str(run.folder), int8=True, sample=SampleOptions(32), gate=GateOptions(time_budget=0))
    )
    assert result.notes[-1] == (
        "edgecls export --int8 --qat may help: it trains the network with the rounding in place, on 64 images"
    )


def test_what_is_said_of_training_needs_int8() -> None:
    with pytest.raises(OptionError, match="--qat: trains the network for INT8; add --int8"):
        ExportOptions(qat=True)
    with pytest.raises(OptionError, match="--qat-epochs 5: nothing is trained; add --qat"):
        ExportOptions(int8=True, qat_epochs=5)


def test_kinds_of_layers_are_flags_of_the_command(run: Run) -> None:
    told = CliRunner().invoke(app, ["export", str(run.folder), "--int8", "--float-layers", "depthwise,squeeze"])
    assert told.exit_code == 1
    assert "--float-layers depthwise,squeeze: expected depthwise, squeeze-excite, or both with a comma" in told.output
    told = CliRunner().invoke(app, ["export", str(run.folder), "--float-layers", "depthwise"])
    assert "they are float without INT8; add --int8" in told.output
    told = CliRunner().invoke(
        app,
        ["export", str(run.folder), "--int8", "--float-layers", "depthwise,squeeze-excite",
         "--calibration-images", "32", "--min-speedup", "0", "--max-drop", "100"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
