"""What makes a machine slower or less steady than it could be, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from edgecls.bench.machine import Machine, MachineState
from edgecls.device.software import Software
from edgecls.device.system import System

_NEAR_TRIP: Final = 8  # degrees
_LIMITED: Final = 0.9  # of the full clock
_SMALL_MB: Final = 9_000  # of a board whose memory building an engine can fill
_BUILDING_MB: Final = 2_000  # that building an engine of a small network takes at most times; docs/jetson.md
_LEAST_MB: Final = 400  # a process that predicts with a small network, with room for its pictures
_LEAST_DISK_MB: Final = 500


@dataclass(frozen=True)
class Advice:
    """One thing that is not as good as it could be, in a sentence.

    Attributes:
        cure: a command; empty where it takes a hand.
    """

    text: str
    cure: str = ""


def advice(machine: Machine, state: MachineState, system: System, software: Software) -> tuple[Advice, ...]:
    """What to change on this machine, the most worthwhile first."""
    # a container cannot change these: swap, power mode and clocks are the board's
    own = "" if system.container is None else "on the board itself, not in this container: "
    return tuple(
        replace(each, cure=f"{own}{each.cure}") if own and each.cure.startswith(("sudo", "echo")) else each
        for found in (
            _packages(software), _memory(machine, system, software), _clocks(machine, state, system),
            _heat(state, system), _shares(machine, state), _arithmetic(machine),
        )
        for each in found
    )  # fmt: skip


def _packages(software: Software) -> Iterator[Advice]:
    if {"onnxruntime", "onnxruntime-gpu"} <= set(software.packages):
        yield Advice(
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other.",
            'pip uninstall -y onnxruntime onnxruntime-gpu; pip install "edgecls[gpu]"',
        )


def _memory(machine: Machine, system: System, software: Software) -> Iterator[Advice]:
    free, swap = system.free_memory_mb, system.swap_mb or 0
    if free is not None and free < _LEAST_MB:
        yield Advice(
            f"{free:,.0f} MB of memory are free, and predicting takes up to {_LEAST_MB} MB. Close other programs."
        )
    elif system.is_jetson and free is not None and free < _BUILDING_MB:
        yield Advice(
            f"{free / 1000:.1f} GB of memory are free, and building an engine may need more. The desktop takes some.",
            "sudo systemctl isolate multi-user.target",
        )
    if system.is_jetson and (machine.memory_mb or _SMALL_MB) < _SMALL_MB and not swap:
        yield Advice(
            "There is no swap, which building an engine needs on a small board.",
            "sudo fallocate -l 4G /swapfile; sudo chmod 600 /swapfile; sudo mkswap /swapfile; sudo swapon /swapfile",
        )
    if software.free_disk_mb is not None and software.free_disk_mb < _LEAST_DISK_MB:
        yield Advice(
            f"{software.free_disk_mb:,.0f} MB of disk are free where bundles and engines are kept. "
            "Make room, or name another place in XDG_CACHE_HOME."
        )


def _clocks(machine: Machine, state: MachineState, system: System) -> Iterator[Advice]:
    if system.is_jetson:
        yield from _power_mode(machine, system)
        if machine.governor and machine.governor != "performance":
            yield Advice(
                "Clocks rise only under load, so that single pictures take longer. For steady times hold them at the "
                "highest of the power mode, until the next restart.",
                "sudo jetson_clocks",
            )
        return
    limit, full = state.cpu_clock_limit_mhz, system.full_clock_mhz
    if limit is not None and full is not None and limit < _LIMITED * full:
        yield Advice(f"The CPU's clock is limited to {limit:,.0f} of {full:,.0f} MHz.")
    if machine.governor in ("powersave", "conservative") and machine.cpu_features[:1] in (("asimd",), ()):
        # on x86 `powersave` is the name of Intel's ordinary governor
        yield Advice(
            f"The CPU's governor is {machine.governor}, which holds the clock low.",
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )


def _power_mode(machine: Machine, system: System) -> Iterator[Advice]:
    fastest = next((number for number, name in system.power_modes.items() if name.startswith("MAXN")), None)
    present = system.power_mode
    if present is None:  # the program tells the name alone
        numbers = {name: number for number, name in system.power_modes.items()}
        present = numbers.get(machine.power_mode or "")
    if fastest is None or present is None or present == fastest:
        return
    name = system.power_modes.get(present, f"number {present}")
    yield Advice(
        f"The power mode is {name}. {system.power_modes[fastest]} is the fastest, where supply and cooling allow it.",
        f"sudo nvpmodel -m {fastest}",
    )


def _heat(state: MachineState, system: System) -> Iterator[Advice]:
    for name, trip in state.trips.items():
        celsius = state.temperatures.get(name)
        if celsius is not None and celsius > trip - _NEAR_TRIP:
            yield Advice(
                f"{name} is at {celsius:.0f} °C, and from {trip:.0f} °C on the machine slows down. Cool it better."
            )
            break  # the others stand beside it
    if system.is_jetson and (times := sum(state.throttle_counts.values())):
        often = "once" if times == 1 else f"{times:,} times"
        yield Advice(
            f"Since its start the board slowed itself down {often} because it drew too much current. "
            "Use a stronger supply, or a lower power mode."
        )
    if system.complaints:
        yield Advice(f"The board's firmware says: {'; '.join(system.complaints)}. Use the official supply, and a fan.")


def _shares(machine: Machine, state: MachineState) -> Iterator[Advice]:
    if machine.cpu_quota is not None and machine.cpu_quota < machine.cores:
        yield Advice(
            f"This process may use the time of {machine.cpu_quota:.2g} cores, and sees {machine.cores} cores. "
            "Threads that wait for their share make single answers late. Give it whole cores, such as docker run "
            "--cpuset-cpus 0."
        )
    if state.load is not None and state.load > machine.machine_cores:
        yield Advice(
            f"Other programs keep the machine busy: its load is {state.load:.1f}, more than its number of cores."
        )


def _arithmetic(machine: Machine) -> Iterator[Advice]:
    features = set(machine.cpu_features)
    if "avx2" in features and not features & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        yield Advice(
            "This CPU has no VNNI, which is what makes INT8 fast. ONNX Runtime is told to compute INT8 in a way that "
            "stays right, and OpenVINO is given FP32."
        )
    elif "asimd" in features and "asimddp" not in features:
        yield Advice(
            "This CPU has no INT8 dot product, which is what makes INT8 fast. Compare INT8 and FP32 here with: "
            "edgecls bench"
        )
