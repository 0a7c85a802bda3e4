"""`edgecls bench`: its arithmetic, what it says of the machine, and the way from a run to tables, JSON and a picture.

No test here says how fast anything is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgecls import cli
from edgecls.bench import files as bench_files
from edgecls.bench import machine
from edgecls.bench.contender import Cell, Contender, WorkerFailed, images_per_second, percentiles
from edgecls.bench.contender import Worker as BenchWorker
from edgecls.bench.files import Accuracy, accuracies_of, find_candidates
from edgecls.bench.layer_times import LayerTime, layer_times
from edgecls.bench.machine import CpuTimes, MachineState
from edgecls.bench.options import BenchOptions
from edgecls.bench.plot import SpeedPoint, accuracy_over_latency, on_front
from edgecls.bench.run import BenchResult, bench
from edgecls.bench.worker import Job, Request, Timer, timed, warm_up
from edgecls.errors import MissingExtra, OptionError, RunError
from edgecls.manifest import Manifest, Precision, Preprocessing
from edgecls.metrics import wilson_interval
from edgecls.runs import MODEL_FILES
from edgecls.runtime.backends.cuda import Gpu
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.runtime.backends.selection import Candidate
from edgecls.tables.bench import benched
from tests.fakes.tensorrt import Install, write_engine

runner = CliRunner()
TINY = BenchOptions(batch_sizes=(1, 3), devices=("cpu",), seconds=0.01)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# The arithmetic, on times that are given


class FakeTime:
    """A clock that only calls move on."""

    def __init__(self, calls_ms: Iterator[float]) -> None:
        self.now, self.n_calls, self._calls_ms = 100.0, 0, calls_ms

    def call(self) -> None:
        self.n_calls += 1
        self.now += next(self._calls_ms) / 1000

    def clock(self) -> float:
        return self.now


def test_every_call_is_timed_until_the_seconds_are_over() -> None:
    fake = FakeTime(iter([4.0, 1.0, 2.0, 3.0, 5.0]))
    np.testing.assert_allclose(timed(fake.call, 0.0095, fake.clock), [4.0, 1.0, 2.0, 3.0])
    assert len(timed(fake.call, 0, fake.clock)) == 1


def test_percentiles_are_those_of_numpy() -> None:
    ms = np.random.default_rng(0).gamma(2.0, 3.0, 1000).tolist()
    fake = FakeTime(iter(ms))
    measured = timed(fake.call, sum(ms) / 1000 - 1e-6, fake.clock)
    assert len(measured) == 1000
    np.testing.assert_allclose(percentiles(measured), np.percentile(ms, [50, 90, 99]))
    assert percentiles([7.0]) == (7.0, 7.0, 7.0)


def test_callers_that_infer_at_the_same_time_add_up() -> None:
    assert images_per_second([[10.0, 10.0]], 4) == pytest.approx(400)
    assert images_per_second([[10.0, 10.0], [20.0]], 4) == pytest.approx(600)


def test_the_warm_up_ends_when_two_windows_agree() -> None:
    slow_at_first = (max(1.0, 40.0 - n) for n in range(10_000))
    fake = FakeTime(slow_at_first)
    assert warm_up(fake.call, 100, fake.clock)
    assert fake.n_calls > 40
    steady = FakeTime(iter([10.0] * 1000))
    assert warm_up(steady.call, 100, steady.clock)
    assert steady.n_calls == 11  # the first, and two windows of five


def test_a_warm_up_that_never_settles_says_so_and_ends() -> None:
    fake = FakeTime(1.1**n for n in range(10_000))
    assert not warm_up(fake.call, 0.5, fake.clock)
    assert fake.now < 102


class FakeBackend:
    """Stands for a backend that is asked by several threads."""

    name, n_lanes = "fake", 2
    manifest = Manifest(("a", "b"), Preprocessing(size_hw=(4, 4)), "tiny")

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.sizes = error, set[int]()

    def infer(self, images: Any, times: Any = None) -> Any:
        self.sizes.add(len(images))
        if self.error:
            raise self.error


def test_each_caller_has_its_own_times() -> None:
    backend = FakeBackend()
    times, _ = Timer(backend).time(Request(3, 0.01, 2, warm_up=True))  # type: ignore[arg-type]
    assert len(times) == 2
    assert all(len(each) >= 1 for each in times)
    assert backend.sizes == {3}


def test_a_failing_engine_fails_all_callers_with_its_own_words() -> None:
    timer = Timer(FakeBackend(RunError("out of memory")))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="out of memory"):
        timer.time(Request(1, 0.01, 4, warm_up=True))


# The machine

ORIN_TREE = {
    "proc/cpuinfo": "".join(
        f"processor\t: {n}\nFeatures\t: fp asimd evtstrm aes asimdhp asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd42\n\n"
        for n in range(6)
    ),
    "proc/meminfo": "MemTotal:        7802092 kB\nMemFree: 1 kB\n",
    "proc/loadavg": "0.42 0.30 0.20 1/300 1234\n",
    "proc/stat": "cpu  1000 0 500 8000 100 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400\n",
    "sys/devices/system/cpu/cpu5/cpufreq/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpu5/cpufreq/scaling_max_freq": "1510400\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48343\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "104500\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "99000\n",
    "sys/class/thermal/thermal_zone0/trip_point_2_type": "active\n",
    "sys/class/thermal/thermal_zone0/trip_point_2_temp": "51000\n",
    "sys/class/thermal/thermal_zone2/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "49000\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "2\n",
}


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    root = tree(tmp_path / "orin", ORIN_TREE)
    (root / "sys/class/thermal/thermal_zone1/temp").mkdir(parents=True)  # the sensor of a part without power: refuses
    return root


def test_a_jetson_is_described(orin: Path, tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "nvpmodel"
    program.write_text("#!/bin/sh\n[ \"$1\" = -q ] && printf 'NV Power Mode: MAXN_SUPER\\n2\\n'\n")
    program.chmod(0o755)
    about = machine.describe(orin, path=str(bin_folder))
    assert about.cpu == "Cortex-A78AE"
    assert about.cpu_features == ("asimd", "asimdhp", "asimddp")
    assert about.machine_cores == 6
    assert about.memory_mb == pytest.approx(7989, abs=1)
    assert (about.board, about.l4t) == ("NVIDIA Jetson Orin Nano Developer Kit", "36.4.3")
    assert (about.power_mode, about.governor) == ("MAXN_SUPER", "schedutil")
    assert {"edgecls", "python", "numpy"} <= set(about.versions)
    in_container = machine.describe(orin, path=str(tmp_path))
    assert in_container.power_mode == "mode 2"


def test_the_state_of_a_jetson_is_read(orin: Path) -> None:
    now = machine.state(orin)
    assert now.load == 0.42
    assert now.cpu_times == CpuTimes(busy=15.0, stolen=0.0, total=96.0)
    assert (now.cpu_clock_mhz, now.cpu_clock_limit_mhz) == pytest.approx((1510.4, 1510.4))
    assert (now.gpu_clock_mhz, now.gpu_clock_limit_mhz) == pytest.approx((306.0, 624.75))
    assert now.temperatures == pytest.approx({"cpu-thermal": 48.343, "tj-thermal": 49.0})
    assert now.trips == pytest.approx({"cpu-thermal": 99.0})  # not the fan's, and not the last one
    assert now.throttle_counts == {"oc1_event_cnt": 2}


def test_an_arm_board_and_a_server_are_described(tmp_path: Path) -> None:
    pi = tree(
        tmp_path / "pi",
        {
            "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
            "processor\t: 1\nCPU implementer\t: 0x41\nCPU part\t: 0xd99\n",
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        },
    )
    about = machine.describe(pi, path="")
    assert about.cpu == "Cortex-A76 + ARM part 0x41:0xd99"
    assert (about.board, about.l4t, about.power_mode) == ("Raspberry Pi 5 Model B Rev 1.0", None, None)
    flags = "fpu avx2 avx512f avx512_vnni amx_int8"
    xeon = {
        "proc/cpuinfo": f"processor : 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: {flags}\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n",
    }
    about = machine.describe(tree(tmp_path / "xeon", xeon), path="")
    assert (about.cpu, about.cpu_features) == ("Intel(R) Xeon(R)", ("avx2", "avx512f", "avx512_vnni", "amx_int8"))
    assert about.cpu_quota == 1.5
    assert machine.state(tmp_path / "xeon").throttle_counts == {"core_throttle_count": 7}


def test_a_machine_that_says_nothing_is_described_all_the_same(tmp_path: Path) -> None:
    about, now = machine.describe(tmp_path, path=""), machine.state(tmp_path)
    assert about.cpu
    assert about.machine_cores == about.cores >= 1
    assert (about.board, about.memory_mb, about.governor, about.cpu_quota) == (None, None, None, None)
    assert now == MachineState(None, None, None, None, None, None, {}, {}, {})
    assert machine.busy_now(tmp_path) is None
    assert machine.throttling(now, [now]) == []
    assert machine.other_work(about, now, now, None, 0.0) == []


def test_a_machine_that_slows_down_is_found_out(orin: Path) -> None:
    cool = machine.state(orin)
    assert machine.throttling(cool, [cool, cool]) == []
    slower = replace(cool, cpu_clock_mhz=1200.0)
    assert machine.throttling(cool, [cool, slower]) == ["the CPU's clock fell to 1,200 MHz under load, from 1,510"]
    assert machine.throttling(slower, [cool, cool]) == []  # an idle CPU is allowed to be slow
    limited = replace(cool, gpu_clock_limit_mhz=306.0)
    assert machine.throttling(cool, [cool, limited]) == ["the GPU's clock was limited to 306 MHz, from 625"]
    hot = replace(cool, temperatures={"cpu-thermal": 99.5})
    assert machine.throttling(cool, [hot, cool]) == [
        "cpu-thermal reached 100 °C; from 99 °C on it makes the machine slower"
    ]
    counted = replace(cool, throttle_counts={"oc1_event_cnt": 5})
    assert machine.throttling(cool, [counted]) == ["the hardware slowed itself down: oc1_event_cnt rose by 3"]
    nothing = replace(cool, cpu_clock_mhz=None, gpu_clock_mhz=None)  # of what had nothing to do
    assert machine.throttling(cool, [nothing, cool]) == []


def test_other_work_on_the_machine_is_found_out(orin: Path) -> None:
    about = machine.describe(orin, path="")
    before = machine.state(orin)
    after = replace(before, cpu_times=CpuTimes(busy=15.0 + 40, stolen=0.0, total=96.0 + 100))
    assert machine.other_work(about, before, after, 0.02, own_seconds=40) == []
    assert machine.other_work(about, before, after, 0.02, own_seconds=10) == [
        "other programs used 30% of the CPU meanwhile"
    ]
    stolen = replace(before, cpu_times=CpuTimes(busy=15.0, stolen=10.0, total=96.0 + 100))
    busy = replace(before, load=8.0)
    assert machine.other_work(about, busy, stolen, 0.9, 0.0) == [
        "load average 8.0 on 6 cores before the start",
        "90% of the CPU was in use before the start",
        "the hypervisor gave 10% of the CPU to other machines meanwhile",
    ]


# What is measured


def here(monkeypatch: pytest.MonkeyPatch, *devices: str, engines: tuple[Precision, ...] = ()) -> None:
    """A machine that has these devices."""

    def can_run(file: Path, precision: Precision) -> list[Candidate]:
        found = [Candidate(file, device) for device in devices if device != "openvino"]  # type: ignore[arg-type]
        if "openvino" in devices and precision in ("fp32", "int8-cpu"):
            found.append(Candidate(file, "openvino"))
        if precision in engines:
            found.append(Candidate(file.parent / "engines" / f"{precision}.engine", "tensorrt"))
        if not found:
            raise MissingExtra(f"running {file.name}", "cpu")
        return found

    monkeypatch.setattr(bench_files, "can_run", can_run)


@pytest.fixture
def full_run(tmp_path: Path) -> Path:
    """A run folder with every model file, and three engines; none of them is one."""
    names = [*MODEL_FILES.values(), *(f"engines/{name}.engine" for name in ("fp32", "fp16", "int8")), "manifest.json"]
    return tree(tmp_path / "run", dict.fromkeys(names, "x"))


def chosen(run: Path, precisions: Any = ("auto",), devices: Any = ("auto",)) -> list[str]:
    return [f"{candidate} ({precision})" for candidate, precision in find_candidates(run, precisions, devices)]


def test_each_device_gets_the_files_that_are_meant_for_it(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "cpu", "cuda", "tensorrt", "openvino", engines=("fp32", "int8"))
    assert chosen(full_run) == [
        "model.onnx on cpu (fp32)",
        "model.onnx on cuda (fp32)",
        "model.onnx on openvino (fp32)",
        "fp32.engine on tensorrt (fp32)",
        "model.fp16.onnx on cuda (fp16)",
        "int8.engine on tensorrt (int8)",
        "model.int8-cpu.onnx on cpu (int8-cpu)",
        "model.int8-cpu.onnx on openvino (int8-cpu)",
    ]


def test_what_is_named_is_measured_even_where_it_is_slow(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, "cpu", "openvino", engines=("int8",))
    assert chosen(full_run, ["fp16"]) == ["model.fp16.onnx on cpu (fp16)"]
    assert chosen(full_run, ["int8"], ["cpu", "tensorrt"]) == [
        "int8.engine on tensorrt (int8)",
        "model.int8-cpu.onnx on cpu (int8-cpu)",
    ]


def test_a_machine_with_an_engine_alone_measures_that(full_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, engines=("int8",))
    assert chosen(full_run) == ["int8.engine on tensorrt (int8)"]


def test_a_precision_that_the_run_has_not_says_how_to_make_it(exported_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    (run / "model.int8-cpu.onnx").unlink()
    for devices in (("auto",), ("cpu",)):
        with pytest.raises(RunError, match=r"edgecls export .* --int8"):
            find_candidates(run, ("int8",), devices)  # type: ignore[arg-type]
    for file in run.glob("*.onnx"):
        file.unlink()
    with pytest.raises(RunError, match="no model file in it; make them with: edgecls export"):
        find_candidates(run, ("auto",), ("auto",))


def test_a_device_without_a_gpu_says_so(exported_run: Path) -> None:
    with pytest.raises(RunError, match="no NVIDIA GPU can be used here"):
        find_candidates(exported_run, ("auto",), ("tensorrt",))


def test_a_lone_file_knows_its_precision_and_its_runs_accuracy(exported_run: Path, tmp_path: Path) -> None:
    file = exported_run / "model.int8-cpu.onnx"
    assert chosen(file, devices=["cpu"]) == ["model.int8-cpu.onnx on cpu (int8-cpu)"]
    assert accuracies_of(file) == accuracies_of(exported_run) != {}
    with pytest.raises(OptionError, match=r"--precision fp16: .* is int8-cpu; leave the flag out"):
        chosen(file, ["fp16"])
    alone = tmp_path / "a" / "b" / "alone.onnx"
    alone.parent.mkdir(parents=True)
    shutil.copy(file, alone)
    assert accuracies_of(alone) == {}
    with pytest.raises(RunError, match="not an ONNX file"):
        chosen(tree(tmp_path, {"text.onnx": "text"}) / "text.onnx")


def test_accuracies_are_read_strictly(exported_run: Path, tmp_path: Path) -> None:
    known = accuracies_of(exported_run)
    assert set(known) == set(MODEL_FILES)
    assert known["fp32"].n_images > 0
    with pytest.raises(RunError, match="damaged"):
        accuracies_of(tree(tmp_path, {"export.json": "{"}))


# The whole way


@pytest.fixture(scope="module")
def result(exported_run: Path) -> BenchResult:
    steps: list[str] = []
    found = bench(
        replace(TINY, model=str(exported_run), devices=("auto",), layers=True, out=exported_run.parent / "bench.json"),
        on_step=steps.append,
    )
    assert "round 1 of 3, batch 1" in steps
    return found


def test_every_file_is_measured_at_every_batch_size(result: BenchResult) -> None:
    names = [(each.file, each.backend) for each in result.contenders]
    assert ("model.onnx", "onnxruntime-cpu") in names
    assert ("model.int8-cpu.onnx", "onnxruntime-cpu") in names
    assert not result.failed
    for contender in result.contenders:
        assert contender.start_ms is not None
        assert contender.start_ms > 0
        assert contender.accuracy is not None
        assert [cell.batch_size for cell in contender.cells] == [1, 3]
        for cell in contender.cells:
            assert 0 < cell.p50_ms <= cell.p90_ms <= cell.p99_ms
            assert cell.n_calls >= len(cell.p50_ms_by_round) == len(cell.images_per_second_by_round) == result.n_rounds
            assert min(cell.images_per_second_by_round) <= cell.images_per_second
            assert 10 < cell.peak_memory_mb < 2000
            assert cell.gpu_memory_mb is None
        assert contender.best in contender.cells


def test_all_of_it_is_in_the_json_file(result: BenchResult, exported_run: Path) -> None:
    values = json.loads((exported_run.parent / "bench.json").read_text())
    assert values == json.loads(json.dumps(result.to_json()))
    assert {"model", "machine", "before", "after", "contenders", "layers", "throttled", "warnings"} <= set(values)
    assert {"p50_ms", "p90_ms", "p99_ms", "images_per_second", "peak_memory_mb"} <= set(
        values["contenders"][0]["cells"][0]
    )


def test_the_layers_of_every_file_add_up_to_most_of_a_call(result: BenchResult) -> None:
    assert len(result.layers) == len(result.contenders)
    for profile in result.layers:
        assert len(profile.layers) > 3
        assert [layer.ms for layer in profile.layers] == sorted((layer.ms for layer in profile.layers), reverse=True)
        assert all(layer.name and layer.kind for layer in profile.layers)
        # engines count whole microseconds, of which this network's layers take a few
        assert 0.02 < profile.layers_ms / profile.call_ms < 1.5
        assert profile.note == ""


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_a_terminal_without_losing_a_figure(result: BenchResult, width: int) -> None:
    console = Console(width=width, record=True, highlight=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(*benched(result)[:3], sep="\n")
        text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for words in ("CPU", "p50 ms", "p99", "img/s", "INT8 CPU", "onnxruntime-cpu", "start", "top-1", "fastest"):
        assert words in text
    for cell in (cell for each in result.contenders for cell in each.cells):
        assert f"{cell.images_per_second:,.0f}" in text


def contender(precision: Precision, device: Any, backend: str, *cells: Cell, errors: tuple[str, ...] = ()) -> Contender:
    known = Accuracy(0.99, 1.0, 225)
    return Contender("x.onnx", precision, device, backend, 4_000_000, 80.0, known, cells, errors)


def cell(batch_size: int, ms: float, speed: float, gpu: float | None = None) -> Cell:
    return Cell(batch_size, ms, ms, ms, 99, (ms,), speed, (speed,), 2, True, 100.0, 120.0, gpu)


def test_a_wide_result_fits_too_and_the_fastest_is_marked(result: BenchResult) -> None:
    wide = replace(
        result,
        machine=replace(result.machine, gpu=Gpu("Orin", (8, 7), 4 << 30, 8 << 30), board="a board", l4t="36.4.3"),
        contenders=(
            contender("int8", "tensorrt", "tensorrt-10.3.0", cell(64, 1234.5, 52_345, 1024.0)),
            contender("fp32", "cpu", "onnxruntime-cpu", cell(64, 12_345.6, 5.0)),
            contender("int8-cpu", "openvino", "openvino-cpu", errors=('pip install "edgecls[openvino]"',)),
        ),
        warnings=('needs "edgecls[openvino]"',),
    )
    console = Console(width=84, record=True, highlight=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(*benched(wide), sep="\n")
        text = console.export_text()
    assert "…" not in text.partition("Layers")[0]
    assert "*1,23" in text
    assert "*52,345" in text
    assert "edgecls[openvino]" in text  # not taken for markup
    assert "2 on the CPU, 2 on the GPU" in text


def test_best_is_the_batch_with_the_least_time_an_image() -> None:
    measured = contender("fp32", "cpu", "onnxruntime-cpu", cell(1, 3.0, 1), cell(4, 8.0, 1), cell(16, 48.0, 1))
    assert measured.best is not None
    assert measured.best.batch_size == 4
    assert contender("fp32", "cpu", "onnxruntime-cpu").best is None


def test_a_file_that_cannot_run_is_named_and_the_others_go_on(exported_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    file = run / "model.int8-cpu.onnx"
    data = file.read_bytes()
    # the manifest stays readable, and the first operator is none
    file.write_bytes(data.replace(b"Cast", b"Cost").replace(b"QuantizeLinear", b"QuentizeLinear"))
    found = bench(replace(TINY, model=str(run), batch_sizes=(1,), lanes=1, layers=True))
    assert found.failed
    whole, broken = found.contenders
    assert len(whole.cells) == 1
    assert (broken.cells, broken.start_ms) == ((), None)
    assert "ONNX Runtime cannot open it" in broken.errors[0]
    assert any("model.int8-cpu.onnx on cpu" in warning for warning in found.warnings)
    assert found.layers[1].note.startswith("no layers: ")
    (run / "model.onnx").write_bytes(file.read_bytes())
    with pytest.raises(RunError, match=r"nothing ran: .*cannot open it"):
        bench(replace(TINY, model=str(run), batch_sizes=(1,), lanes=1))


def test_a_worker_that_dies_says_how(exported_run: Path) -> None:
    worker = BenchWorker(Job(str(exported_run / "model.onnx"), "cpu"))
    try:
        assert worker.answer()["backend"] == "onnxruntime-cpu"
        worker._process.kill()
        with pytest.raises(WorkerFailed, match=r"killed.*memory runs out"):
            worker.ask(Request(1, 0.01, 1, warm_up=False))
        assert worker.has_ended
    finally:
        worker.close()
    crashed = BenchWorker(Job(str(exported_run / "model.onnx"), "cpu", n_lanes=0))
    try:
        with pytest.raises(WorkerFailed, match="expected 1 or more"):
            crashed.answer()
    finally:
        crashed.close()


def test_the_worker_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys; import edgecls.bench.run, edgecls.bench.worker; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("torch", "matplotlib", "onnxruntime", "openvino") if f"'{name}'" in loaded]


# TensorRT's layers, by the stand-ins


def test_tensorrt_times_its_layers(install: Install, tmp_path: Path) -> None:
    fake = install()
    fake.trt.IProfiler = object
    engine = write_engine(tmp_path / "int8.engine")
    call_ms, note, layers = layer_times(engine, BackendOptions("tensorrt"), 1, 0.0)
    assert layers == [LayerTime("conv1 + relu", "", 1.0), LayerTime("fc", "", 0.25)]
    assert note == "a batch of 2: the engine takes 2 to 8"
    assert call_ms > 0
    assert fake.leftovers() == []


def test_a_tensorrt_without_a_profiler_says_so(install: Install, tmp_path: Path) -> None:
    install()
    with pytest.raises(RunError, match=r"TensorRT 10\.3\.0 has no profiler"):
        layer_times(write_engine(tmp_path / "int8.engine"), BackendOptions("tensorrt"), 1, 0.0)


# The picture


def point(precision: str, ms: float, accuracy: float) -> SpeedPoint:
    return SpeedPoint(
        f"{precision}, backend\nbatch 1: {ms} ms", precision, ms, accuracy, wilson_interval(accuracy, 225)
    )


POINTS = [
    point("int8-cpu", 7.3, 0.9911), point("int8-cpu", 7.5, 0.9911), point("fp32", 15.8, 0.9911),
    point("fp32", 26.7, 0.9955), point("fp16", 27.0, 0.98),
]  # fmt: skip


def test_the_front_holds_what_nothing_beats() -> None:
    assert [on_front(each, POINTS) for each in POINTS] == [True, False, False, True, False]
    assert on_front(POINTS[0], [POINTS[0], POINTS[0]])  # equals do not beat one another


@pytest.mark.parametrize("points", [POINTS, POINTS[:1], [point("fp32", ms, 1.0) for ms in (1.0, 1.01, 1.02, 1.03)]])
def test_names_in_the_plot_cover_neither_points_nor_one_another(points: list[SpeedPoint]) -> None:
    figure = accuracy_over_latency(points, "title")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_bbox_patch().get_window_extent() for text in axes.texts]
    assert len(boxes) == len(points)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])
        assert not any(
            box.x0 < x < box.x1 and box.y0 < y < box.y1
            for x, y in axes.transData.transform([(each.ms, each.accuracy) for each in points])
        )
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


# The command line


def invoke(*arguments: object) -> Any:
    return runner.invoke(cli.app, ["bench", *(str(argument) for argument in arguments)])


def test_json_is_one_object_on_standard_output(exported_run: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    answered = invoke(
        exported_run, "--batch-sizes", 1, "--device", "cpu", "--precision", "int8", "--seconds", 0.01, "--lanes", 1,
        "--plot", plot, "--json",
    )  # fmt: skip
    assert answered.exit_code == 0, answered.output
    values = json.loads(answered.stdout)
    assert [each["precision"] for each in values["contenders"]] == ["int8-cpu"]
    assert "round 3 of 3" in answered.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_accuracy_says_what_to_do_before_anything_is_measured(
    exported_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    (run / "export.json").unlink()
    answered = invoke(run, "--plot", tmp_path / "plot.png")
    assert answered.exit_code == 1
    assert "no accuracy is known" in answered.stderr
    assert "edgecls export RUN --validation DIR" in answered.stderr
    assert "opening" not in answered.output


def test_a_plot_without_matplotlib_names_the_extra(exported_run: Path, tmp_path: Path) -> None:
    arguments = ["bench", str(exported_run), "--plot", str(tmp_path / "plot.png")]
    code = f"import sys; sys.modules['matplotlib'] = None\nfrom edgecls.cli import app; app({arguments!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert 'pip install "edgecls[train]"' in ended.stderr
    assert "Traceback" not in ended.stderr


WRONG: list[Any] = [
    pytest.param(["--batch-sizes", "1,x"], "--batch-sizes 1,x: expected whole numbers with commas", id="a word"),
    pytest.param(["--batch-sizes", "0,4"], "--batch-sizes 0,4: expected numbers from 1", id="an empty batch"),
    pytest.param(["--seconds", "0"], "--seconds 0.0: expected a number above 0", id="no time"),
    pytest.param(["--seconds", "nan"], "--seconds nan: expected a number above 0", id="no number"),
    pytest.param(["--lanes", "0"], "--lanes 0: expected 1 or more", id="no lanes"),
    pytest.param(["--device", "auto", "--device", "cpu"], "--device auto stands for all", id="all and one"),
    pytest.param(["--precision", "auto", "--precision", "fp16"], "--precision auto stands for all", id="likewise"),
    pytest.param(["--plot", "plot.jpg"], "--plot plot.jpg: expected a name that ends in .png", id="not a PNG"),
    pytest.param(["--out", "."], "--out .: this is a folder", id="a folder"),
    pytest.param([], "edgecls train DATA", id="nothing there"),
    pytest.param(["nothing"], "nothing: no such run folder or model file", id="a mistyped run"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_mistake_gets_a_message_with_the_flag(in_empty_folder: Path, arguments: list[str], message: str) -> None:
    answered = invoke(*arguments)
    assert answered.exit_code == 1, answered.output
    assert message in " ".join(answered.stderr.split())
    assert "Traceback" not in answered.output
