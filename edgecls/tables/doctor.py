"""What `edgecls doctor` prints: the machine, what can run on it, how fast it is, what to do next."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from edgecls.tables.common import facts_table

if TYPE_CHECKING:
    from edgecls.device.doctor import DoctorResult
    from edgecls.device.readiness import ModelReadiness, Readiness

_NAMES = {"tensorrt": "TensorRT", "cuda": "CUDA", "openvino": "OpenVINO", "cpu": "CPU"}


def examined(result: DoctorResult) -> list[Table | Text]:
    """The machine, its backends, the model, the measurement, the advice, and the verdict last."""
    return [
        _machine(result),
        _backends(result),
        *_model(result),
        *_measured(result),
        *_advice(result),
        *_verdict(result),
    ]


def _machine(result: DoctorResult) -> Table:
    facts, about, system, software = facts_table("Machine"), result.machine, result.system, result.software
    if about.board:
        facts.add_row("board", about.board)
    if about.l4t:
        jetpack = f"JetPack {system.jetpack}, " if system.jetpack else ""
        facts.add_row("system", f"{jetpack}L4T {about.l4t}")
    kernel = about.system + (f", in a container ({system.container})" if system.container else "")
    facts.add_row("kernel", kernel)
    of = f" of {about.machine_cores}" if about.machine_cores != about.cores else ""
    facts.add_row("CPU", f"{about.cpu}, {about.cores}{of} cores")
    facts.add_row("  has", ", ".join(about.cpu_features) or "-")
    clock = result.state.cpu_clock_limit_mhz or system.full_clock_mhz
    if clock is not None:
        governor = f", governor {about.governor}" if about.governor else ""
        facts.add_row("  clock", f"up to {clock:,.0f} MHz{governor}")
    facts.add_row("memory", _memory(result))
    if software.free_disk_mb is not None:
        facts.add_row("disk", f"{software.free_disk_mb / 1000:,.1f} GB free where engines and bundles are kept")
    facts.add_row("GPU", _gpu(result))
    if system.n_dla:
        facts.add_row("DLA", f"{system.n_dla} cores")
    libraries = [
        ("driver", system.driver),
        ("CUDA", system.cuda),
        ("cuDNN", system.cudnn),
        ("TensorRT", system.tensorrt),
    ]
    if any(version for _, version in libraries):
        facts.add_row("  system", ", ".join(f"{name} {version}" for name, version in libraries if version))
    mode = system.power_modes.get(-1 if system.power_mode is None else system.power_mode, about.power_mode)
    if mode:
        facts.add_row("power mode", mode)
    hottest = sorted(result.state.temperatures.items(), key=lambda each: -each[1])[:3]
    if hottest:
        facts.add_row("°C", ", ".join(f"{name} {celsius:.0f}" for name, celsius in hottest))
    packages = {"Python": software.python, **software.packages}
    facts.add_row("packages", ", ".join(f"{name} {version}" for name, version in packages.items()))
    return facts


def _memory(result: DoctorResult) -> str:
    total, free, swap = result.machine.memory_mb, result.system.free_memory_mb, result.system.swap_mb
    if total is None:
        return "-"
    parts = [f"{total / 1000:.1f} GB"]
    if free is not None:
        parts.append(f"{free / 1000:.1f} GB free")
    parts.append(f"swap {swap / 1000:.1f} GB" if swap else "no swap")
    return ", ".join(parts)


def _gpu(result: DoctorResult) -> str:
    gpu = result.software.gpu
    if gpu:
        major, minor = gpu.compute_capability
        return f"{gpu.name}, compute capability {major}.{minor}, {gpu.total_bytes / 1e9:.1f} GB"
    return "there, and not usable: see TensorRT below" if result.system.has_nvidia_gpu else "none of NVIDIA"


def _backends(result: DoctorResult) -> Table:
    table = _table("What can run a model here")
    for each in result.backends:
        table.add_row(*_row(each))
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("--device", no_wrap=True)
    table.add_column("runs", no_wrap=True)
    table.add_column("with, or why not", overflow="fold")
    return table


def _row(each: Readiness | ModelReadiness) -> tuple[str, Text, Text]:
    runs = Text("yes", style="green") if each.can_run else Text("no", style="red" if each.cure else "dim")
    shown = each.detail if not each.can_run else getattr(each, "file", "") or each.detail
    text = Text(shown)
    if each.cure:
        text.append("\n").append(_command(each.cure, indent=""))
    return each.name, runs, text


def _model(result: DoctorResult) -> list[Table]:
    tables = []
    for number, member in enumerate(result.model_files, 1):
        of = f", member {number} of {len(result.model_files)}" if len(result.model_files) > 1 else ""
        table = _table(f"What {result.model} needs{of}")
        for each in member:
            table.add_row(*_row(each))
        if member:
            tables.append(table)
    return tables


def _measured(result: DoctorResult) -> list[Table | Text]:
    arithmetic, speed = result.arithmetic, result.speed
    if arithmetic is None:
        return []
    facts = facts_table(f"Measured in {result.seconds:.0f} s")
    expected = arithmetic.expected_gflops
    kind = (
        f"; {expected:.0f} or more are expected"
        if expected is not None
        else "; what to expect of its kind is not known"
    )
    facts.add_row("one core", f"{arithmetic.core_gflops:.0f} GFLOP/s in float32{kind}")
    facts.add_row("all cores", f"{arithmetic.cores} together keep {arithmetic.together:.0%} of that each")
    facts.add_row("", f"{min(arithmetic.kept, 1):.0%} of the first second's speed was kept to the end")
    if speed:
        facts.add_row("model", f"{speed.file} on {_NAMES.get(speed.device, speed.device)}, without decoding")
        facts.add_row("", f"{speed.first_ms:.0f} ms from the file to the first answer")
        facts.add_row("", f"{speed.latency_ms:.1f} ms a picture, {speed.images_per_second:,.0f} img/s in batches")
        if speed.answers_right is not None:
            facts.add_row(
                "", f"golden answers: {'as they were made' if speed.answers_right else 'NOT as they were made'}"
            )
    return [facts, *(Text(each, style="yellow") for each in arithmetic.findings)]


def _advice(result: DoctorResult) -> list[Text]:
    if not result.advice:
        return []
    lines = [Text("\nWhat could be better", style="italic")]
    for number, each in enumerate(result.advice, 1):
        lines.append(Text(f"{number}. {each.text}"))
        if each.cure:
            lines.append(_command(each.cure))
    return lines


def _command(command: str, indent: str = "   ") -> Text:
    """A chain of commands on lines of their own, so that a terminal that is narrow breaks none in two."""
    lines = re.split(r"(?<=&&) |; ", command)
    return Text("\n".join(f"{indent}{line}" for line in lines), style="bold")


def _verdict(result: DoctorResult) -> list[Text]:
    model = shlex.quote(result.model) if result.model else "MODEL"
    if result.problems:
        return [Text("\nNot ready. " + " ".join(result.problems), style="bold red")]
    if result.verdict == "not ready":
        cures = [each.cure for member in result.model_files for each in member if each.cure]
        cures += [each.cure for each in result.backends if each.name == "cpu" and each.cure]
        told = [Text(f"\nNot ready: nothing here can run {result.model or 'a model'}.", style="bold red")]
        return [*told, Text("Do this first:"), _command(cures[0])] if cures else told
    predict = f"edgecls predict PHOTOS --model {model}"
    tensorrt = next(each for each in result.backends if each.name == "tensorrt")
    if result.runs_on[0] == "tensorrt" and result.model:
        return [Text("\nReady, on the GPU.", style="bold green"), _command(f"{predict} --device tensorrt")]
    if tensorrt.can_run:
        return [
            Text("\nReady. Build the engine first:", style="bold green"),
            _command(f"edgecls engine {model}"),
            _command(f"{predict} --device tensorrt"),
        ]
    if result.system.has_nvidia_gpu and tensorrt.cure and "cuda" not in result.runs_on:
        return [
            Text("\nReady on the CPU alone, although there is a GPU. To use it:", style="bold yellow"),
            _command(tensorrt.cure),
        ]
    device = "" if "cpu" in result.runs_on else f" --device {result.runs_on[0]}"  # auto begins with ONNX Runtime
    return [Text("\nReady.", style="bold green"), _command(predict + device)]
