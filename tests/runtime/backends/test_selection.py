"""Which file runs on what: asked for, or the fastest here of what passed the gate; and that all engines agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgecls import images, processor
from edgecls.errors import MissingExtra, OptionError, RunError
from edgecls.golden import Golden
from edgecls.runs import EXPORT, Run
from edgecls.runtime.backends import selection
from edgecls.runtime.backends.belonging import answers_as
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.runtime.backends.selection import Candidate, can_run, select
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import Device
from tests.conftest import draw, write_linear_model
from tests.fakes.cuda import ORIN

needs_openvino = pytest.mark.skipif(not selection.version_of("openvino"), reason="needs edgecls[openvino]")


@pytest.fixture
def run(exported_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_run, tmp_path / "run"))


def set_export(run: Path, **values: Any) -> None:
    report = json.loads((run / EXPORT).read_text())
    (run / EXPORT).write_text(json.dumps(report | values))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the candidates that were timed; each is as fast as its device's name is long. A cache of its own."""
    monkeypatch.setattr(selection, "int8_sums_overflow", lambda: False)
    names: list[str] = []

    def speed(backend: Any) -> float:
        names.append(backend.name)
        return float(len(backend.name))

    monkeypatch.setattr(selection, "images_per_second", speed)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


@needs_openvino
def test_openvino_answers_as_onnxruntime(exported_run: Path) -> None:
    pixels = np.stack([draw(kind, seed, 24) for seed, kind in enumerate(["checks", "stripes"] * 8)])
    for name, allowed in (("model.onnx", 1e-4), ("model.int8-cpu.onnx", 0.1)):
        with (
            Candidate(exported_run / name, "cpu").open(BackendOptions()) as one,
            Candidate(exported_run / name, "openvino").open(BackendOptions(n_threads=2, n_lanes=2)) as other,
        ):
            expected, answered = one.infer(pixels), other.infer(pixels)
            assert (one.name, other.name, other.n_lanes) == ("onnxruntime-cpu", "openvino-cpu", 2)
            assert np.abs(answered - expected).max() <= allowed * np.abs(expected).max()
            assert np.array_equal(answered.argmax(1), expected.argmax(1))
            first = answered.copy()
            other.infer(255 - pixels)
            assert np.array_equal(answered, first)  # the next call does not write over an earlier answer
            assert other.manifest == one.manifest
        with pytest.raises(RunError, match="has been closed"):
            other.infer(pixels)


@needs_openvino
def test_a_damaged_file_is_one_error_in_openvino_too(exported_run: Path, tmp_path: Path) -> None:
    (tmp_path / "gone.onnx").symlink_to(tmp_path / "nothing.onnx")
    with pytest.raises(RunError, match="no such run folder or model file"):
        Classifier.open(tmp_path / "gone.onnx", device="openvino")
    whole = (exported_run / "model.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"half\.onnx"):
        Classifier.open(tmp_path / "half.onnx", device="openvino")


@needs_openvino
def test_auto_takes_the_fastest_and_remembers_it(run: Path, timed: list[str]) -> None:
    set_export(run, serves="fp32")
    notes: list[str] = []
    chosen = select(run, on_note=notes.append)
    assert chosen == Candidate(run / "model.onnx", "cpu")  # onnxruntime-cpu is the longer name
    assert timed == ["onnxruntime-cpu", "openvino-cpu"]
    assert notes == ["timing model.onnx on cpu, model.onnx on openvino (once on this machine)"]
    assert select(run, on_note=notes.append) == chosen
    assert (len(timed), len(notes)) == (2, 1)
    set_export(run, serves="int8-cpu")
    assert select(run).file.name == "model.int8-cpu.onnx"  # another file is timed on its own
    assert len(timed) == 4


@needs_openvino
def test_auto_passes_over_what_answers_otherwise(run: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    infer = OnnxRuntimeBackend.infer
    monkeypatch.setattr(OnnxRuntimeBackend, "infer", lambda self, images, times=None: -infer(self, images, times))
    notes: list[str] = []
    assert select(run, on_note=notes.append).device == "openvino"
    assert timed == ["openvino-cpu"]
    assert "answers the run's golden images otherwise than its checkpoint: not used" in notes[1]


@needs_openvino
def test_an_unwritable_cache_costs_time_only(run: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    for _ in range(2):
        assert select(run).device == "cpu"
    assert len(timed) == 4


def test_a_device_that_is_named_is_not_timed(run: Path, timed: list[str]) -> None:
    assert select(run, "fp32", BackendOptions("cpu")) == Candidate(run / "model.onnx", "cpu")
    assert timed == []


def test_precisions_are_the_files_of_the_device(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file(precision: Any, device: Device) -> str:
        return selection._file_for(run, precision, device).name

    assert file("int8", "cpu") == file("int8", "openvino") == "model.int8-cpu.onnx"
    assert file("int8", "tensorrt") == "model.int8.onnx"
    report = json.loads((run / EXPORT).read_text())
    assert file("auto", "cuda") == "model.fp16.onnx"
    report["precisions"]["fp16"]["paired"]["drop"] = 0.5  # what the gate did not let through is not used by itself
    (run / EXPORT).write_text(json.dumps(report))
    assert file("auto", "cuda") == "model.onnx"
    set_export(run, engine_from="fp16")
    assert file("auto", "tensorrt") == "model.fp16.onnx"


@pytest.mark.parametrize(
    "damage",
    [{"serves": "int4"}, {"gate": None}, {"precisions": [1]}, {"precisions": {"fp32": {}}}],
    ids=["an unknown precision", "no gate", "no table", "an empty entry"],
)
def test_a_damaged_report_is_an_error_not_fp32(run: Path, damage: dict[str, Any]) -> None:
    set_export(run, **damage)
    with pytest.raises(RunError, match=r"export\.json: damaged"):
        select(run)


def test_tensorrt_without_an_engine_says_how_to_build_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="no NVIDIA GPU can be used here; why not says: edgecls doctor"):
        Classifier.open(run, device="tensorrt")
    monkeypatch.setattr(selection, "find_gpu", lambda: ORIN)
    with pytest.raises(RunError, match=r"no engine for this machine in .*; build one with: edgecls engine "):
        Classifier.open(run, device="tensorrt")
    with pytest.raises(RunError, match="--precision int8"):
        Classifier.open(run, device="tensorrt", precision="int8")


def test_an_engine_is_for_tensorrt_alone(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"engine")
    with pytest.raises(OptionError, match="is an engine, which TensorRT runs"):
        Classifier.open(tmp_path / "model.engine", device="cpu")


def test_cuda_that_is_not_there_is_an_error(run: Path) -> None:
    if "cuda" in selection.onnxruntime_devices():
        pytest.skip("ONNX Runtime has CUDA here")
    with pytest.raises(OptionError, match=r"--device cuda: this ONNX Runtime cannot .*edgecls\[gpu\]"):
        Classifier.open(run, device="cuda")


def test_with_nothing_installed_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "onnxruntime_devices", list)
    monkeypatch.setattr(selection, "version_of", lambda package: "")
    with pytest.raises(MissingExtra, match=r'pip install "edgecls\[cpu\]"'):
        select(run)
    with pytest.raises(MissingExtra, match=r'pip install "edgecls\[cpu\]"'):
        can_run(run / "model.onnx", "fp32")


@needs_openvino
def test_openvino_that_is_missing_names_its_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"--device openvino .*edgecls\[openvino\]"):
        Classifier.open(run, device="openvino")


@needs_openvino
def test_every_backend_gives_the_same_rows(tmp_path: Path, photos: Path) -> None:
    model = write_linear_model(tmp_path / "model.onnx", size=24)
    answers: dict[Device, list[str]] = {}
    devices: tuple[Device, ...] = ("cpu", "openvino")
    for device in devices:
        with Classifier.open(model, device=device, batch_size=5) as classifier:
            answers[device] = [each.label for each in classifier.predict(images.find_images(photos))]
    assert answers["cpu"] == answers["openvino"]
    assert len(set(answers["cpu"])) > 1


def test_the_golden_answers_are_those_that_a_backend_is_held_to(run: Path) -> None:
    golden = Golden.of(Run(run))
    with Candidate(run / "model.int8-cpu.onnx", "cpu").open(BackendOptions()) as backend:
        assert answers_as(golden, backend)
        broken = Golden(golden.images, np.full_like(golden.logits, np.nan), golden.validation_answers)
        assert not answers_as(broken, backend)


def test_openvino_runs_no_int8_where_its_sums_overflow(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "version_of", lambda name: "1")
    for overflows, expected in ((False, ["cpu", "openvino"]), (True, ["cpu"])):
        monkeypatch.setattr(selection, "int8_sums_overflow", lambda answer=overflows: answer)
        for precision, devices in (("fp32", ["cpu", "openvino"]), ("int8", expected)):
            assert [each.device for each in selection._candidates(run, precision)] == devices  # type: ignore[arg-type]
        found = selection.can_run(run / "model.int8-cpu.onnx", "int8-cpu")
        assert [each.device for each in found] == expected


@pytest.mark.parametrize(
    ("flags", "overflows"),
    [
        ("sse4_2 avx2", True),
        ("avx2 avx512f", True),
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx_vnni", False),
        ("", False),
    ],
)
def test_a_cpu_without_vnni_is_known_by_its_flags(tmp_path: Path, flags: str, overflows: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    assert processor.int8_sums_overflow(tmp_path) == overflows
    asked: dict[str, str] = {}
    settings = SimpleNamespace(add_session_config_entry=asked.__setitem__)
    processor.session_settings(SimpleNamespace(SessionOptions=lambda: settings), 1, tmp_path)
    # where nothing is known it is asked for: it costs speed, and the answers may hang on it
    assert ("session.x64quantprecision" in asked) == (overflows or not flags)
