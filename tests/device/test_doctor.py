"""Six machines that are not here get the verdict that helps whoever has one; this one is measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import edgecls
from edgecls.cli import app
from edgecls.device.arithmetic import expected_gflops, measured_gflops
from edgecls.device.bundle import bundle
from edgecls.device.doctor import DoctorResult, doctor
from edgecls.device.measurement import Arithmetic
from edgecls.device.options import BundleOptions, DoctorOptions
from edgecls.device.software import find_software
from edgecls.device.system import read_system
from edgecls.errors import OptionError, RunError
from edgecls.runs import ENGINES, MODEL_FILES
from edgecls.runtime.backends.cuda import Gpu
from edgecls.runtime.backends.engine_file import TensorRT
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.tables.doctor import examined
from tests.device.boards import (
    AGX_ORIN,
    CLOUD,
    NOTHING,
    ON_CPU,
    ORIN_NANO,
    ORIN_NANO_READY,
    RASPBERRY_PI,
    THOR,
    WORKSTATION,
    Board,
)
from tests.fakes.tensorrt import RECORD, write_engine


def look_at(board: Board, root: Path, model: Path | None = None) -> DoctorResult:
    options = DoctorOptions(str(model) if model else None, seconds=0)
    return doctor(options, root=board.at(root), software=board.software)


def printed(result: DoctorResult, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, markup=False)
    console.print(*examined(result), sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined]


def cures(result: DoctorResult) -> dict[str, str]:
    return {each.name: each.cure for each in result.backends if not each.can_run}


def test_an_orin_nano_whose_environment_does_not_see_tensorrt(tmp_path: Path) -> None:
    result = look_at(ORIN_NANO, tmp_path)
    assert (result.system.jetpack, result.system.cuda, result.system.cudnn) == ("6.2", "12.6.68", "9.3.0.75")
    assert result.runs_on == ("cpu",)
    tensorrt = result.backends[0]
    assert tensorrt.detail == "This environment does not see the system's TensorRT 10.3.0.30."
    assert tensorrt.cure.startswith("python3 -m venv --system-site-packages ")
    assert [each.cure for each in result.advice] == [
        "sudo fallocate -l 4G /swapfile; sudo chmod 600 /swapfile; sudo mkswap /swapfile; sudo swapon /swapfile",
        "sudo nvpmodel -m 2",
        "sudo jetson_clocks",
    ]
    assert "The power mode is 15W. MAXN_SUPER is the fastest" in result.advice[1].text
    text = printed(result)
    for words in (
        "NVIDIA Jetson Orin Nano Developer Kit",
        "JetPack 6.2, L4T 36.4.3",
        "6 cores",
        "15W",
        "Ready on the CPU alone, although there is a GPU.",
    ):
        assert words in text


def test_an_orin_nano_that_is_set_up_lacks_the_engine(tmp_path: Path, exported_run: Path) -> None:
    result = look_at(ORIN_NANO_READY, tmp_path, exported_run)
    assert result.backends[0].detail == "TensorRT 10.3.0 on Orin (compute capability 8.7)"
    needs = {each.name: each for each in result.model_files[0]}
    assert needs["tensorrt"].detail == "No engine was built yet of model.int8.onnx."
    assert needs["tensorrt"].cure == f"edgecls engine {exported_run}"
    assert needs["cpu"].file in ("model.int8-cpu.onnx", "model.onnx")
    assert (result.verdict, result.runs_on) == ("ready", ("cpu",))
    assert f"   edgecls engine {exported_run}\n" in printed(result, 400)


def test_an_engine_of_this_board_is_found_and_one_of_another_is_not(tmp_path: Path, exported_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    (run / ENGINES).mkdir()
    write_engine(run / ENGINES / "other.engine", replace(RECORD, tensorrt="10.7.0"))
    other = look_at(ORIN_NANO_READY, tmp_path / "board", run)
    needs = other.model_files[0][0]
    assert "other.engine cannot be used here: built by TensorRT 10.7.0" in needs.detail
    assert needs.cure == f"edgecls engine {run}"
    write_engine(run / ENGINES / "own.engine")
    own = look_at(ORIN_NANO_READY, tmp_path / "board", run)
    assert own.model_files[0][0].file == "engines/own.engine"
    assert own.runs_on == ("tensorrt", "cpu")
    assert "Ready, on the GPU." in printed(own)
    lone = look_at(ORIN_NANO_READY, tmp_path / "board", run / ENGINES / "other.engine")
    assert (lone.verdict, lone.runs_on) == ("not ready", ())
    assert "is an engine, which TensorRT runs" in lone.model_files[0][1].detail


def test_a_tensorrt_that_is_too_old_is_said_to_be(tmp_path: Path) -> None:
    old = replace(ORIN_NANO_READY.software, tensorrt=TensorRT(None, "tensorrt", "8.6.2"))
    result = look_at(replace(ORIN_NANO_READY, software=old), tmp_path)
    assert result.backends[0].detail.startswith("TensorRT 8.6.2 is too old.")


def test_an_agx_orin_in_a_container_without_the_gpu(tmp_path: Path) -> None:
    result = look_at(AGX_ORIN, tmp_path)
    assert (result.system.jetpack, result.system.n_dla, result.system.container) == ("7.2", 2, "Docker")
    assert result.backends[0].detail == "This container was not given the GPU."
    assert result.backends[0].cure == "docker run --runtime nvidia ..."
    assert result.backends[1].cure == ""  # nothing from PyPI mends it
    heat, current = (each.text for each in result.advice)
    assert heat.startswith("tj-thermal is at 94 °C, and from 99 °C on")
    assert "slowed itself down 14 times" in current


def test_a_thor_that_is_ready(tmp_path: Path) -> None:
    result = look_at(THOR, tmp_path)
    assert (result.system.jetpack, result.system.driver) == ("7.1", "580.00")
    assert result.runs_on == ("tensorrt", "cpu")
    assert result.advice == ()
    assert "TensorRT 10.13.3 on NVIDIA Thor (compute capability 11.0)" in printed(result, 120)
    commands = ("edgecls engine MODEL", "edgecls predict PHOTOS --model MODEL --device tensorrt")
    assert printed(result).endswith("Ready. Build the engine first:\n" + "".join(f"   {each}\n" for each in commands))


def test_a_workstation_whose_onnxruntime_has_no_cuda(tmp_path: Path) -> None:
    result = look_at(WORKSTATION, tmp_path)
    assert result.system.driver == "580.65.06"
    assert cures(result) == {
        "tensorrt": 'pip install "edgecls[tensorrt-rtx]"',
        "cuda": 'pip uninstall -y onnxruntime; pip install "edgecls[gpu]"',
        "openvino": 'pip install "edgecls[openvino]"',
    }
    assert result.advice == ()  # `powersave` is what Intel's and AMD's drivers call their ordinary governor


def test_openvino_is_given_fp32_where_its_int8_would_be_wrong(tmp_path: Path, exported_run: Path) -> None:
    software = replace(NOTHING, packages={"openvino": "2026.4"})
    with_vnni = look_at(replace(WORKSTATION, software=software), tmp_path / "a", exported_run)
    without = look_at(replace(CLOUD, software=software), tmp_path / "b", exported_run)
    assert [each.file for each in without.model_files[0]] == ["model.onnx"]
    assert [each.file for each in with_vnni.model_files[0]] == [MODEL_FILES[ExportRecord.read(exported_run).serves]]


def test_a_raspberry_pi_on_a_weak_supply(tmp_path: Path) -> None:
    result = look_at(RASPBERRY_PI, tmp_path)
    assert result.runs_on == ("cpu",)
    assert cures(result)["tensorrt"] == ""  # there is nothing to install
    assert [each.text for each in result.advice] == [
        "The board's firmware says: the supply's voltage is too low now; it is throttled now; the supply's voltage was "
        "too low; it was throttled. Use the official supply, and a fan."
    ]


def test_a_small_cloud_machine_with_nothing(tmp_path: Path) -> None:
    result = look_at(CLOUD, tmp_path)
    assert (result.verdict, result.runs_on) == ("not ready", ())
    assert printed(result).endswith(
        'Not ready: nothing here can run a model.\nDo this first:\n   pip install "edgecls[cpu]"\n'
    )
    told = " ".join(each.text for each in result.advice)
    for words in ("317 MB of memory are free", "220 MB of disk are free", "may use the time of 0.5 cores", "no VNNI"):
        assert words in told


@pytest.mark.parametrize(
    ("change", "reason", "cure"),
    [
        ({"gpu_problem": NOTHING.gpu_problem}, "No Python binding of CUDA", 'pip install "cuda-python==12.6.2.post1"'),
        ({"gpu_problem": "CUDA answers with error 801"}, "has no right to open the GPU's", "sudo usermod -aG video"),
        ({"tensorrt": None, "python": "3.12.4"}, "JetPack 6.2 belongs to Python 3.10", "python3.10 -m venv"),
    ],
)  # fmt: skip
def test_what_else_keeps_a_jetson_from_its_gpu(
    tmp_path: Path, change: dict[str, object], reason: str, cure: str
) -> None:
    software = replace(ORIN_NANO_READY.software, gpu=None, **change)  # type: ignore[arg-type]
    tensorrt = look_at(replace(ORIN_NANO_READY, software=software), tmp_path).backends[0]
    assert reason in tensorrt.detail
    assert tensorrt.cure.startswith(cure)


@pytest.mark.parametrize(
    ("release", "jetpack"), [("R35 (release), REVISION: 4.1", "5"), ("R36 (release), REVISION: 3.0", "6.0")]
)
def test_a_jetpack_that_is_too_old_is_said_to_be(tmp_path: Path, release: str, jetpack: str) -> None:
    board = replace(ORIN_NANO_READY, files={**ORIN_NANO_READY.files, "etc/nv_tegra_release": f"# {release}, GCID: 1\n"})
    result = look_at(board, tmp_path)
    assert result.backends[0].detail.startswith(f"JetPack {jetpack} has TensorRT 8.")


def test_packages_that_overwrite_one_another_and_broken_ones_are_named(tmp_path: Path) -> None:
    both = replace(NOTHING, packages={"onnxruntime": "1", "onnxruntime-gpu": "1"}, providers=ON_CPU)
    result = look_at(replace(CLOUD, software=both), tmp_path)
    assert result.advice[0].cure.startswith("pip uninstall -y onnxruntime onnxruntime-gpu;")
    broken = replace(NOTHING, packages={"onnxruntime": "1"}, onnxruntime_problem="libstdc++.so.6: version not found")
    result = look_at(replace(CLOUD, software=broken), tmp_path)
    assert "cannot be loaded: libstdc++.so.6" in result.backends[3].detail
    assert result.verdict == "not ready"


def test_a_core_is_expected_to_do_what_its_units_and_clock_allow() -> None:
    assert expected_gflops("Cortex-A78AE", ("asimd",), 1510.4) == pytest.approx(0.5 * 16 * 1.5104)
    assert expected_gflops("AMD EPYC", ("avx2",), 2445.0) == pytest.approx(39.12)
    assert expected_gflops("ARM part 0x41:0xd99", ("asimd",), 2000.0) is None
    assert expected_gflops("AMD EPYC", ("avx2",), None) is None


def test_a_core_that_is_slow_and_cores_that_share_are_found() -> None:
    fine = Arithmetic(70.0, 39.0, 2, 0.9, 1.0, ())
    assert fine.findings == ()
    assert "A core does 20 GFLOP/s, and 39 or more" in replace(fine, core_gflops=20.0).findings[0]
    assert "All 2 cores together keep 50%" in replace(fine, together=0.5).findings[0]
    assert "the speed fell to 70%" in replace(fine, kept=0.7).findings[0]
    assert replace(fine, slowed=("the CPU's clock fell",)).findings == ("the CPU's clock fell.",)


def test_arithmetic_is_measured_in_processes_of_one_thread() -> None:
    both = measured_gflops(2, 0.6)
    assert len(both) == 2
    assert all(0.1 < speed < 2000 for speeds in both for speed in speeds)


def test_this_machine_runs_a_bundle_and_says_how_fast(
    exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = bundle(BundleOptions(str(exported_run), tmp_path / "tiny.edgecls")).file
    answer = CliRunner().invoke(app, ["doctor", str(file), "--seconds", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["verdict"] == "ready"
    assert said["speed"]["answers_right"] is True
    assert said["speed"]["images_per_second"] > 0
    assert said["arithmetic"]["core_gflops"] > 0
    assert said["software"]["packages"]["onnxruntime"] == find_software().packages["onnxruntime"]
    assert said["model_files"][0][-1]["file"] in ("model.int8-cpu.onnx", "model.onnx")


def test_a_model_that_answers_otherwise_is_not_ready(exported_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    with np.load(run / "golden.npz") as golden:
        kept = dict(golden)
    kept["logits"] = -kept["logits"]
    np.savez(run / "golden.npz", **kept)
    answer = CliRunner().invoke(app, ["doctor", str(run), "--seconds", "0.5"])
    assert answer.exit_code == 1
    assert "Not ready." in answer.output


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        doctor(DoctorOptions(str(tmp_path / "absent"), seconds=0))
    with pytest.raises(OptionError, match="--seconds -1"):
        DoctorOptions(seconds=-1)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tables_lose_no_command_in_a_terminal(tmp_path: Path, width: int) -> None:
    for number, board in enumerate((ORIN_NANO, AGX_ORIN, WORKSTATION, CLOUD)):
        result = look_at(board, tmp_path / str(number))
        text = "".join(printed(result, width).replace(";", "").split())
        for cure in [*cures(result).values(), *(each.cure for each in result.advice)]:
            assert "".join(cure.replace(";", "").split()) in text


def with_files(board: Board, **change: object) -> Board:
    files = {**board.files, **change.pop("files", {})}  # type: ignore[dict-item]
    return replace(board, files=files, software=replace(board.software, **change))  # type: ignore[arg-type]


def test_onnxruntime_finds_the_gpu_without_a_python_binding(tmp_path: Path) -> None:
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    board = with_files(WORKSTATION, packages={"onnxruntime-gpu": "1.27.0"}, providers=providers)
    result = look_at(board, tmp_path)
    assert result.backends[1].can_run
    assert result.backends[1].detail == "ONNX Runtime 1.27.0 with CUDA"
    broken = with_files(board, gpu_problem="CUDA answers with error 35 (cudaErrorInsufficientDriver)")
    assert "CUDA finds no GPU: CUDA answers with error 35" in look_at(broken, tmp_path).backends[1].detail


def test_a_gpu_that_only_cuda_sees_counts(tmp_path: Path) -> None:
    under_windows = with_files(CLOUD, gpu=Gpu("NVIDIA RTX 4070", (8, 9), 1, 2), gpu_problem="")
    assert look_at(under_windows, tmp_path).backends[0].detail == "TensorRT is not installed."


def test_a_container_without_the_gpu_is_not_told_to_install_tensorrt(tmp_path: Path) -> None:
    board = with_files(ORIN_NANO, files={".dockerenv": "", "dev/nvmap": ""})
    del board.files["dev/nvmap"]
    result = look_at(board, tmp_path)
    assert result.backends[0].cure == "docker run --runtime nvidia ..."
    assert result.advice[0].cure.startswith("on the board itself, not in this container: sudo fallocate")
    given = with_files(ORIN_NANO, files={".dockerenv": ""}, tensorrt_problem="libnvdla_compiler.so: cannot open")
    assert "cannot be loaded: libnvdla_compiler.so" in look_at(given, tmp_path / "given").backends[0].detail


def test_the_limits_of_a_pod_count(tmp_path: Path) -> None:
    group = {"memory.max": "300000000", "memory.current": "50000000"}
    files = {
        "var/run/secrets/kubernetes.io/token": "",
        **{f"sys/fs/cgroup/{name}": text for name, text in group.items()},
    }
    result = look_at(with_files(WORKSTATION, files=files), tmp_path)
    assert result.system.container == "Kubernetes"
    assert result.system.free_memory_mb == pytest.approx(250)
    assert "250 MB of memory are free" in result.advice[0].text


@pytest.mark.parametrize(
    ("l4t", "jetpack"), [("36.4.7", "6.2.1"), ("39.3.0", "7.2.1"), ("34.1.1", "5"), ("28.1", None)]
)
def test_a_release_that_is_not_listed_is_taken_for_the_one_before_it(
    tmp_path: Path, l4t: str, jetpack: str | None
) -> None:
    assert read_system(l4t, tmp_path).jetpack == jetpack


HOSTILE = {
    "proc/loadavg": ["max", "", "nan 1 2", "\0"],
    "sys/fs/cgroup/cpu.max": ["100 0", "max 100000", "-1 -1", "9" * 400],
    "proc/cpuinfo": ["CPU implementer\t: zz\nCPU part\t: 0xd0b\n", "cpu MHz\t: 1.2.3\n", "flags\t:\n"],
    "proc/meminfo": ["MemTotal: " + "9" * 400 + " kB\nMemAvailable: x kB\n", "MemTotal: -5 kB"],
    "proc/stat": ["cpu " + "9" * 5000, "cpu 1 2"],
    "var/lib/nvpmodel/status": ["pmode:" + "1" * 5000],
    "etc/nvpmodel.conf": ["< POWER_MODEL ID=" + "1" * 5000 + " NAME=X >"],
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": ["9" * 5000, "fast"],
    "usr/local/cuda/version.json": ["[" * 100_000, '{"cuda": 1}', "\0"],
    "etc/nv_tegra_release": ["\0\1\2", "# R99999999 (release), REVISION: 1.2"],
    "proc/driver/nvidia/version": ["NVRM version:"],
    "sys/devices/platform/soc/soc:firmware/get_throttled": ["f" * 5000, "-1"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in HOSTILE.items() for text in texts])
def test_no_file_stops_the_doctor(tmp_path: Path, name: str, text: str) -> None:
    result = look_at(with_files(ORIN_NANO_READY, files={name: text}), tmp_path)
    assert printed(result)
    json.dumps(result.to_json(), default=str)


@pytest.mark.parametrize("version", ["dev", "", "10", "10.0.1"])
def test_a_tensorrt_that_does_not_tell_its_version_well_is_not_taken(tmp_path: Path, version: str) -> None:
    board = with_files(ORIN_NANO_READY, tensorrt=TensorRT(None, "tensorrt", version))
    assert not look_at(board, tmp_path).backends[0].can_run


def test_damaged_files_are_found_without_a_measurement(exported_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run [v2]"
    shutil.copytree(exported_run, run)
    good = look_at(RASPBERRY_PI, tmp_path / "pi", run)
    assert good.verdict == "ready"
    assert f"edgecls predict PHOTOS --model '{run}'" in printed(good, 300)
    for file in ("model.int8-cpu.onnx", "model.onnx"):
        (run / file).write_bytes((run / file).read_bytes()[:-200])
    bad = look_at(RASPBERRY_PI, tmp_path / "pi", run)
    assert bad.verdict == "not ready"
    lone = tmp_path / "empty.onnx"
    lone.write_bytes(b"")
    assert look_at(RASPBERRY_PI, tmp_path / "pi", lone).verdict == "not ready"
    with pytest.raises(RunError, match=r"manifest\.json"):
        look_at(RASPBERRY_PI, tmp_path / "pi", tmp_path / "pi")


def test_every_member_of_an_ensemble_is_looked_at(exported_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    for name in ("a", "b"):
        shutil.copytree(exported_run, folder / name)
    (folder / "ensemble.json").write_text('{"members": ["a", "b"]}')
    assert look_at(RASPBERRY_PI, tmp_path / "pi", folder).verdict == "ready"
    for file in ("model.int8-cpu.onnx", "model.onnx"):
        (folder / "b" / file).write_bytes(b"garbage")
    result = look_at(RASPBERRY_PI, tmp_path / "pi", folder)
    assert (result.verdict, len(result.model_files)) == ("not ready", 2)
    assert "member 2 of 2" in printed(result)


def test_where_only_openvino_runs_the_command_says_so(exported_run: Path, tmp_path: Path) -> None:
    software = {"packages": {"onnxruntime": "1", "openvino": "2026.4"}, "onnxruntime_problem": "no library"}
    result = look_at(with_files(CLOUD, **software), tmp_path, exported_run)
    assert result.verdict == "ready"
    assert f"--model {exported_run} --device openvino\n" in printed(result, 300)


def test_a_package_that_cannot_be_loaded_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2" / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open', name='cv2')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(edgecls.__file__).parent.parent}"}
    command = [sys.executable, "-m", "edgecls.cli", "doctor", "--seconds", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: opencv-python-headless cannot be loaded: libGL.so.1")
    assert "Traceback" not in done.stderr
