"""The machine that figures were measured on: what it is, how hot and how fast it runs, and who else works on it.

Everything is read from files below a root folder, so a tree of files can stand for a board that is not here.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecls import __version__
from edgecls.prefetch import n_cores
from edgecls.processor import ROOT, cpu_features, cpu_name, n_processors, number_of, text_of
from edgecls.runtime.backends.cuda import Gpu, find_gpu
from edgecls.runtime.backends.selection import version_of

_PACKAGES: Final = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings", "numpy",
)  # fmt: skip
_SLOWS_DOWN: Final = ("passive", "hot", "critical")  # trip points; an `active` one starts a fan

_FELL: Final = 0.9  # of the highest clock seen under load: a governor's own steps are smaller
_BUSY_BEFORE: Final = 0.25  # of the machine's CPU time
_BUSY_DURING: Final = 0.1
_STOLEN: Final = 0.02
_LOOK_SECONDS: Final = 0.3


@dataclass(frozen=True)
class Machine:
    """What does not change while something is measured.

    Attributes:
        cores: those that this process may use.
        machine_cores: all of them.
        cpu_quota: cores' worth of time that a container's limit allows; None without a limit.
        governor: who sets the clocks of the CPU.
        board: as the device tree names it, e.g. `NVIDIA Jetson Orin Nano Developer Kit`.
        l4t: release of a Jetson's system, e.g. `36.4.3`; power_mode: as nvpmodel names it.
        versions: of Python, edgecls and what runs models, by name.
    """

    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    machine_cores: int
    cpu_quota: float | None
    memory_mb: float | None
    governor: str | None
    gpu: Gpu | None
    board: str | None
    l4t: str | None
    power_mode: str | None
    system: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of all cores since the start of the machine; `stolen` is what a hypervisor gave to others."""

    busy: float
    stolen: float
    total: float


@dataclass(frozen=True)
class MachineState:
    """What changes from moment to moment; None where the machine does not say.

    Attributes:
        load: processes that ran or wanted to, mean of the last minute.
        cpu_clock_mhz: of the fastest core; cpu_clock_limit_mhz: what the kernel allows it at the moment.
        gpu_clock_mhz: of a Jetson's GPU, likewise.
        temperatures: Celsius by sensor; trips: where that sensor makes the machine slow down.
        throttle_counts: times that the hardware has slowed itself down, by counter.
    """

    load: float | None
    cpu_times: CpuTimes | None
    cpu_clock_mhz: float | None
    cpu_clock_limit_mhz: float | None
    gpu_clock_mhz: float | None
    gpu_clock_limit_mhz: float | None
    temperatures: Mapping[str, float]
    trips: Mapping[str, float]
    throttle_counts: Mapping[str, int]


def describe(root: Path = ROOT, *, path: str | None = None) -> Machine:
    """What this machine is. Never raises.

    Args:
        root: in place of `/`; the GPU is asked for only where it is that.
        path: in place of $PATH, for nvpmodel.
    """
    packages = {package: version for package in _PACKAGES if (version := version_of(package))}
    return Machine(
        cpu=cpu_name(root),
        cpu_features=cpu_features(root),
        cores=n_cores(),
        machine_cores=n_processors(root) or n_cores(),
        cpu_quota=_cpu_quota(root),
        memory_mb=_memory_mb(root),
        governor=text_of(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        gpu=find_gpu() if root == ROOT else None,
        board=text_of(root / "proc/device-tree/model"),
        l4t=_l4t(root),
        power_mode=_power_mode(root, path),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={"edgecls": __version__, "python": platform.python_version(), **packages},
    )


def state(root: Path = ROOT) -> MachineState:
    """How the machine is at this moment; a matter of milliseconds. Never raises."""
    zones = list(_zones(root))
    devices = sorted((root / "sys/class/devfreq").glob("*"))
    gpu = next((each for each in devices if re.search(r"gpu|gv11b|gp10b|ga10b", each.name)), None)
    cpus = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    load = text_of(root / "proc/loadavg")
    return MachineState(
        load=number_of(load.split()[0]) if load else None,
        cpu_times=_cpu_times(root),
        cpu_clock_mhz=_highest(_number(cpu / "scaling_cur_freq", 1e-3) for cpu in cpus),  # the files have kHz
        cpu_clock_limit_mhz=_highest(_number(cpu / "scaling_max_freq", 1e-3) for cpu in cpus),
        gpu_clock_mhz=_number(gpu / "cur_freq", 1e-6) if gpu else None,
        gpu_clock_limit_mhz=_number(gpu / "max_freq", 1e-6) if gpu else None,
        temperatures={name: celsius for name, celsius, _ in zones},
        trips={name: trip for name, _, trip in zones if trip is not None},
        throttle_counts=_throttle_counts(root),
    )


def busy_share(first: MachineState, last: MachineState, own_seconds: float = 0.0) -> float | None:
    """Share of all cores' time between two states in which others worked, 0 to 1; None where it is not known.

    Args:
        own_seconds: CPU time of this process and its children meanwhile.
    """
    if first.cpu_times is None or last.cpu_times is None or last.cpu_times.total <= first.cpu_times.total:
        return None
    others = last.cpu_times.busy - first.cpu_times.busy - own_seconds
    return max(0.0, others) / (last.cpu_times.total - first.cpu_times.total)


def busy_now(root: Path = ROOT) -> float | None:
    """Share of all cores' time in which anybody works, looked at for a moment."""
    first = state(root)
    time.sleep(_LOOK_SECONDS)
    return busy_share(first, state(root))


def throttling(before: MachineState, during: Sequence[MachineState]) -> list[str]:
    """Why the figures are those of a machine that slowed down: clocks, temperatures, the hardware's own counters.

    Args:
        before: the idle machine.
        during: right after pieces of work, in their order; clocks that say nothing there are None.
    """
    reasons = []
    for name, clock, limit in (
        ("CPU", "cpu_clock_mhz", "cpu_clock_limit_mhz"),
        ("GPU", "gpu_clock_mhz", "gpu_clock_limit_mhz"),
    ):
        limits = [value for each in (before, *during) if (value := getattr(each, limit)) is not None]
        if limits and min(limits) < limits[0]:
            reasons.append(f"the {name}'s clock was limited to {min(limits):,.0f} MHz, from {limits[0]:,.0f}")
        seen = [value for each in during if (value := getattr(each, clock)) is not None]
        if seen and min(seen) < _FELL * max(seen):
            reasons.append(f"the {name}'s clock fell to {min(seen):,.0f} MHz under load, from {max(seen):,.0f}")
    for name, trip in before.trips.items():
        hottest = _highest(each.temperatures.get(name) for each in (before, *during))
        if hottest is not None and hottest >= trip:
            reasons.append(f"{name} reached {hottest:.0f} °C; from {trip:.0f} °C on it makes the machine slower")
    if during:
        for name, count in before.throttle_counts.items():
            more = during[-1].throttle_counts.get(name, count) - count
            if more > 0:
                reasons.append(f"the hardware slowed itself down: {name} rose by {more}")
    return reasons


def other_work(
    machine: Machine, before: MachineState, after: MachineState, busy_before: float | None, own_seconds: float
) -> list[str]:
    """Who else worked on the machine, in words; nothing where it was ours.

    Args:
        busy_before: as `busy_now` found it before the first measurement.
        own_seconds: CPU time between the two states of this process and its children, which have ended.
    """
    reasons = []
    if before.load is not None and before.load > machine.machine_cores:
        reasons.append(f"load average {before.load:.1f} on {machine.machine_cores} cores before the start")
    if busy_before is not None and busy_before > _BUSY_BEFORE:
        reasons.append(f"{busy_before:.0%} of the CPU was in use before the start")
    others = busy_share(before, after, own_seconds)
    if others is not None and others > _BUSY_DURING:
        reasons.append(f"other programs used {others:.0%} of the CPU meanwhile")
    if before.cpu_times and after.cpu_times and after.cpu_times.total > before.cpu_times.total:
        stolen = (after.cpu_times.stolen - before.cpu_times.stolen) / (after.cpu_times.total - before.cpu_times.total)
        if stolen > _STOLEN:
            reasons.append(f"the hypervisor gave {stolen:.0%} of the CPU to other machines meanwhile")
    return reasons


def _number(path: Path, unit: float) -> float | None:
    return number_of(text_of(path), unit)


def _highest(values: Iterator[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _cpu_quota(root: Path) -> float | None:
    quota, _, period = (text_of(root / "sys/fs/cgroup/cpu.max") or "").partition(" ")
    used, of = number_of(quota), number_of(period)
    return used / of if used and of else None


def _memory_mb(root: Path) -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", text_of(root / "proc/meminfo") or "", re.MULTILINE)
    return number_of(found[1], 1024 / 1e6) if found else None


def _l4t(root: Path) -> str | None:
    """`36.4.3` of `# R36 (release), REVISION: 4.3, GCID: ...`."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text_of(root / "etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else None


def _power_mode(root: Path, path: str | None) -> str | None:
    program = shutil.which("nvpmodel", path=path)
    if program:
        try:
            said = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.SubprocessError):
            said = ""
        found = re.search(r"NV Power Mode:\s*(\S+)", said)
        if found:
            return found[1]
    kept = re.search(r"pmode:0*(\d+)", text_of(root / "var/lib/nvpmodel/status") or "")  # in a container: no program
    return f"mode {kept[1]}" if kept else None


def _cpu_times(root: Path) -> CpuTimes | None:
    line = re.match(r"cpu +([\d ]+)", text_of(root / "proc/stat") or "")
    # USER_HZ: 100 on Linux everywhere
    values = [number_of(value, 0.01) or 0.0 for value in line[1].split()] if line else []
    if len(values) < 8:
        return None
    user, nice, system, idle, waiting, irq, soft_irq, stolen = values[:8]
    busy = user + nice + system + irq + soft_irq
    return CpuTimes(busy, stolen, busy + stolen + idle + waiting)


def _zones(root: Path) -> Iterator[tuple[str, float, float | None]]:
    """Name, Celsius and lowest trip point of every sensor that answers."""
    names: set[str] = set()
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        celsius = _number(zone / "temp", 1e-3)
        if celsius is None:  # that of a part without power refuses
            continue
        name = text_of(zone / "type") or zone.name
        name = f"{name} ({zone.name})" if name in names else name
        names.add(name)
        trips = [
            value
            for file in zone.glob("trip_point_*_type")
            if text_of(file) in _SLOWS_DOWN
            and (value := _number(file.with_name(file.name.replace("_type", "_temp")), 1e-3)) is not None
            and value > 0  # one that is not set
        ]
        yield name, celsius, min(trips, default=None)


def _throttle_counts(root: Path) -> dict[str, int]:
    files = [  # Intel's, and a Jetson's for too much current
        *(root / "sys/devices/system/cpu/cpu0/thermal_throttle").glob("*_throttle_count"),
        *(root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"),
    ]
    return {file.name: int(count) for file in sorted(files) if (count := _number(file, 1)) is not None}
