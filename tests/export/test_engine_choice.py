"""The first start on a device, with stand-ins for its TensorRT and its GPU: what is kept, what is removed, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgecls.cli import app
from edgecls.errors import ExportError, RunError
from edgecls.export import engine_choice
from edgecls.export.engine_choice import choose_engine
from edgecls.export.options import BuildOptions
from edgecls.golden import Golden
from edgecls.manifest import Manifest, Precision, Preprocessing
from edgecls.runs import ENGINES, MODEL_FILES, Run, write_json
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.classifier import Classifier
from tests.export.test_engine import write_onnx
from tests.fakes.tensorrt import FakeTensorRT10, Install, means

BATCH = BatchProfile(2, 4, 8)  # that of the stand-in's engine


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose network is what the stand-in's engine answers, with INT8 and FP16 that passed."""
    folder = tmp_path / "run"
    folder.mkdir()
    manifest = Manifest(("a", "b", "c"), Preprocessing(size_hw=(8, 8)), model="tiny")
    (folder / "manifest.json").write_text(manifest.to_json())
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    Golden(images, means(images), np.empty(0, np.int64)).write(Run(folder))
    for precision in ("fp32", "fp16", "int8"):
        write_onnx(folder / MODEL_FILES[precision], precision=precision)  # type: ignore[index]
    write_export(folder, "fp32", "fp16", "int8")
    return folder


def write_export(folder: Path, *passed: Precision) -> None:
    of_file = {
        "accuracy": 0.9, "agreement": 1.0, "n_images": 4, "sha256": "", "bytes": 0,
        "golden": {"max_logit_difference": 0.1, "agreement": 1.0, "n_images": 4}, "paired": {"drop": 0.0, "n": 4},
    }  # fmt: skip
    write_json(
        folder / "export.json",
        {
            "serves": "fp32",
            "engine_from": "int8",
            "gate": {"max_drop": 1.0},
            "precisions": dict.fromkeys(passed, of_file),
        },
    )


def speeds(monkeypatch: pytest.MonkeyPatch, **by_precision: float) -> None:
    monkeypatch.setattr(engine_choice, "images_per_second", lambda backend: by_precision[backend.manifest.precision])


def options(run: Path, precision: Any = "auto") -> BuildOptions:
    return BuildOptions(str(run), precision, replace(BuildOptions().engine, batch=BATCH))


def engines(run: Path) -> list[str]:
    return sorted(each.name.partition("-")[0] for each in (run / ENGINES).glob("*.engine"))


@pytest.mark.parametrize(("int8", "fp16", "kept"), [(900.0, 500.0, "int8"), (400.0, 500.0, "fp16")])
def test_the_faster_one_is_kept_and_the_other_removed(
    install: Install, monkeypatch: pytest.MonkeyPatch, run: Path, photos: Path, int8: float, fp16: float, kept: str
) -> None:
    install()
    speeds(monkeypatch, int8=int8, fp16=fp16)
    steps: list[str] = []
    choice = choose_engine(options(run), on_step=steps.append)
    assert choice.kept.record.precision == kept
    assert engines(run) == [kept]
    assert len(list((run / ENGINES).glob("*.json"))) == 1
    assert [each.precision for each in choice.judged] == ["int8", "fp16"]
    assert f"fp16: the golden answers, {fp16:,.0f} img/s" in steps
    with Classifier.open(run, device="tensorrt") as classifier:
        assert len(list(classifier.predict(sorted(photos.rglob("*.png"))[:3]))) == 3
    again = choose_engine(options(run))
    assert again.kept.record.precision == kept


def test_an_engine_that_answers_otherwise_is_not_kept_however_fast(
    install: Install, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    install()
    speeds(monkeypatch, int8=900.0, fp16=500.0)
    real = engine_choice.check_file

    def wrong_int8(*arguments: Any) -> Any:
        check = real(*arguments)
        return replace(check, reason="logits are off by 9") if arguments[1] == "int8" else check

    monkeypatch.setattr(engine_choice, "check_file", wrong_int8)
    choice = choose_engine(options(run))
    assert choice.kept.record.precision == "fp16"
    assert engines(run) == ["fp16"]
    assert choice.judged[0].reason == "logits are off by 9"


def test_where_none_answers_right_none_is_left(install: Install, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    install()
    speeds(monkeypatch, int8=900.0, fp16=500.0)
    golden = Golden.of(Run(run))
    replace(golden, logits=np.ascontiguousarray(golden.logits[:, ::-1]) + 100).write(Run(run))
    with pytest.raises(RunError, match=r"no engine on this device gives the golden answers(?s:.*)int8: logits are off"):
        choose_engine(options(run))
    assert engines(run) == []
    answer = CliRunner().invoke(app, ["engine", str(run), "--batch", "2,4,8"])
    assert answer.exit_code == 1
    assert "--device cpu" in answer.output


def test_a_build_that_fails_leaves_the_other_one(install: Install, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    install()
    speeds(monkeypatch, int8=900.0, fp16=500.0)
    real = engine_choice.build

    def failing(asked: BuildOptions, **named: Any) -> Any:
        if asked.precision == "int8":
            raise ExportError("out of memory")
        return real(asked, **named)

    monkeypatch.setattr(engine_choice, "build", failing)
    choice = choose_engine(options(run))
    assert choice.kept.record.precision == "fp16"
    assert choice.judged[0].reason == "out of memory"


def test_where_nothing_can_be_built_the_reason_is_told(install: Install, run: Path) -> None:
    install(trt=FakeTensorRT10(build_fails="no implementation"))
    with pytest.raises(ExportError, match="no implementation"):
        choose_engine(options(run))
    assert engines(run) == []


def test_a_precision_that_is_named_is_built_alone_and_removes_none(
    install: Install, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    install()
    speeds(monkeypatch, int8=900.0, fp16=500.0)
    choose_engine(options(run))
    choice = choose_engine(options(run, "fp16"))
    assert choice.judged == ()
    assert engines(run) == ["fp16", "int8"]


def test_only_what_passed_the_gate_is_built(install: Install, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    install()
    speeds(monkeypatch, int8=900.0, fp16=500.0)
    write_export(run, "fp32", "fp16")
    choice = choose_engine(options(run))
    assert [each.precision for each in choice.judged] == ["fp16"]


def test_the_choice_is_in_the_json(install: Install, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    install()
    speeds(monkeypatch, int8=400.0, fp16=500.0)
    answer = CliRunner().invoke(app, ["engine", str(run), "--batch", "2,4,8", "--json"])
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["record"]["manifest"]["precision"] == "fp16"
    assert [(each["precision"], each["images_per_second"]) for each in said["judged"]] == [
        ("int8", 400.0),
        ("fp16", 500.0),
    ]


def test_predict_builds_the_engine_at_its_first_start_and_not_at_the_second(
    install: Install, monkeypatch: pytest.MonkeyPatch, run: Path, photos: Path, tmp_path: Path
) -> None:
    trt = FakeTensorRT10()
    machine = install(trt=trt)
    speeds(monkeypatch, int8=900.0, fp16=500.0)
    arguments = [
        "predict",
        str(photos),
        "--model",
        str(run),
        "--device",
        "tensorrt",
        "--out",
        str(tmp_path / "rows.csv"),
    ]
    trt.batch = BatchProfile()
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "no engine for this GPU yet" in first.output
    assert engines(run) == ["int8"]
    before = machine.log.count("deserialize")
    second = CliRunner().invoke(app, arguments)
    assert second.exit_code == 0, second.output
    assert "no engine" not in second.output
    assert machine.log.count("deserialize") == before + 1  # nothing is built or judged again
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 24


def test_predict_refuses_to_answer_where_no_engine_is_right(
    install: Install, monkeypatch: pytest.MonkeyPatch, run: Path, photos: Path, tmp_path: Path
) -> None:
    install()
    golden = Golden.of(Run(run))
    replace(golden, logits=np.ascontiguousarray(golden.logits[:, ::-1]) + 100).write(Run(run))
    rows = tmp_path / "rows.csv"
    answer = CliRunner().invoke(
        app, ["predict", str(photos), "--model", str(run), "--device", "tensorrt", "--out", str(rows)]
    )
    assert answer.exit_code == 1
    assert "no engine on this device gives the golden answers" in answer.output
    assert not rows.exists()


def test_a_batch_that_is_asked_for_is_one_that_the_engine_takes() -> None:
    assert engine_choice._profile(None) == engine_choice._profile(8) == BatchProfile()
    assert engine_choice._profile(500).max == 500
