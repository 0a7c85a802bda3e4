"""What the system of a board or a server brings: JetPack, drivers, CUDA, TensorRT, DLA, memory, power, a container.

All of it is read from files below a root folder, so a tree of files can stand for a board that is not here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecls.processor import ROOT, number_of, text_of

# The L4T release from which on a JetPack counts: https://developer.nvidia.com/embedded/jetpack-archive
_JETPACKS: Final = {
    (32,): "4", (34,): "5", (36,): "6.0", (36, 4): "6.1", (36, 4, 3): "6.2", (36, 4, 4): "6.2.1", (36, 5): "6.2.2",
    (38,): "7.0", (38, 4): "7.1", (39,): "7.2", (39, 2, 1): "7.2.1",
}  # fmt: skip
_GPU_NODES: Final = ("dev/nvmap", "dev/nvhost-gpu", "dev/nvidiactl", "dev/nvidia0")
_NVIDIA: Final = "0x10de"  # on the PCI bus
_DISPLAY: Final = ("0x0300", "0x0302")  # PCI classes of a VGA and of a 3D controller
# Of what `vcgencmd get_throttled` says: https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_PI_BITS: Final = {
    0: "the supply's voltage is too low now", 1: "the clock is capped now", 2: "it is throttled now",
    3: "it is near its limit of temperature now", 16: "the supply's voltage was too low", 18: "it was throttled",
}  # fmt: skip


@dataclass(frozen=True)
class System:
    """The system below what Python brings; None where it is not there or does not say.

    Attributes:
        is_jetson: by the device tree, which a container sees too.
        jetpack: its version by the L4T release, e.g. `6.2`.
        has_nvidia_gpu: whether the board or the PCI bus has one, whether it may be used or not.
        gpu_nodes: the devices through which programs reach it, such as `/dev/nvmap`; empty where a container has none.
        driver: NVIDIA's kernel module, e.g. `580.65.06`.
        cuda, cudnn, tensorrt, tensorrt_python: versions of what the system installed, not pip.
        n_dla: deep learning accelerators.
        container: `Docker`, `Podman`, `Kubernetes`, or another one's name.
        free_memory_mb: what this process can still get, also within its container; swap_mb: all of the swap.
        power_modes: of nvpmodel, name by number.
        power_mode: the number of the present one.
        full_clock_mhz: of the fastest core, whatever the present limit is.
        complaints: what a Raspberry Pi's firmware says of its supply and its clocks.
    """

    is_jetson: bool
    jetpack: str | None
    has_nvidia_gpu: bool
    gpu_nodes: tuple[str, ...]
    driver: str | None
    cuda: str | None
    cudnn: str | None
    tensorrt: str | None
    tensorrt_python: str | None
    n_dla: int
    container: str | None
    free_memory_mb: float | None
    swap_mb: float | None
    power_modes: Mapping[int, str]
    power_mode: int | None
    full_clock_mhz: float | None
    complaints: tuple[str, ...]


def read_system(l4t: str | None, root: Path = ROOT) -> System:
    """What this machine's system has. Never raises.

    Args:
        l4t: release of a Jetson's system, as `bench.machine.describe` finds it.
        root: in place of `/`.
    """
    is_jetson = l4t is not None or "Jetson" in (text_of(root / "proc/device-tree/model") or "")
    driver = _found(r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)", text_of(root / "proc/driver/nvidia/version"))
    packages = _packages(root)
    memory = text_of(root / "proc/meminfo")
    status = _found(r"pmode:(\d{1,8})\b", text_of(root / "var/lib/nvpmodel/status"))
    return System(
        is_jetson=is_jetson,
        jetpack=_jetpack(l4t),
        has_nvidia_gpu=is_jetson or driver is not None or _on_pci(root),
        gpu_nodes=tuple(f"/{node}" for node in _GPU_NODES if os.path.exists(root / node)),
        driver=driver or text_of(root / "sys/module/nvidia/version"),
        cuda=_cuda(root),
        cudnn=_first(packages, r"libcudnn\d+(?:-cuda-\d+)?"),
        tensorrt=_first(packages, r"libnvinfer\d+"),
        tensorrt_python=_first(packages, "python3-libnvinfer"),
        n_dla=sum(1 for _ in root.glob("sys/devices/platform/bus@0/*host1x/*nvdla[0-9]")),
        container=_container(root),
        free_memory_mb=_free_memory(memory, root),
        swap_mb=_kilobytes("SwapTotal", memory),
        power_modes=_power_modes(root),
        power_mode=int(status) if status else None,
        full_clock_mhz=_full_clock(root),
        complaints=tuple(_complaints(root)),
    )


def _found(pattern: str, text: str | None) -> str | None:
    found = re.search(pattern, text or "", re.MULTILINE)
    return found[1] if found else None


def _jetpack(l4t: str | None) -> str | None:
    if not l4t:
        return None
    release = tuple(int(part) for part in l4t.split(".") if part.isdigit() and len(part) < 5)
    return next((name for first, name in reversed(_JETPACKS.items()) if release >= first), None)


def _on_pci(root: Path) -> bool:
    devices = root.glob("sys/bus/pci/devices/*")
    return any(
        text_of(each / "vendor") == _NVIDIA and (text_of(each / "class") or "").startswith(_DISPLAY) for each in devices
    )


def _packages(root: Path) -> dict[str, str]:
    """Versions of what Debian's package manager installed, of NVIDIA's libraries alone."""
    found = {}
    for entry in (text_of(root / "var/lib/dpkg/status") or "").split("\n\n"):
        name, version = _found(r"^Package: (.+)$", entry), _found(r"^Version: ([\d.]+)", entry)
        if name and version and re.search(r"^Status: \S+ \S+ installed$", entry, re.MULTILINE):
            found[name] = version
    return found


def _first(packages: Mapping[str, str], name: str) -> str | None:
    return next((version for package, version in packages.items() if re.fullmatch(name, package)), None)


def _cuda(root: Path) -> str | None:
    try:
        return str(json.loads(text_of(root / "usr/local/cuda/version.json") or "")["cuda"]["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _container(root: Path) -> str | None:
    if os.path.exists(root / "var/run/secrets/kubernetes.io"):
        return "Kubernetes"
    for file, name in ((".dockerenv", "Docker"), ("run/.containerenv", "Podman")):
        if os.path.exists(root / file):
            return name
    return _found(r"^(?:0|\d+):\S*:/(docker|lxc|kubepods|libpod)\b", text_of(root / "proc/1/cgroup"))


def _kilobytes(name: str, memory: str | None) -> float | None:
    return number_of(_found(rf"^{name}:\s*(\d+) kB", memory), 1024 / 1e6)


def _free_memory(memory: str | None, root: Path) -> float | None:
    """What this process can still get: of the machine, or of its container where that is less."""
    free = _kilobytes("MemAvailable", memory)
    group = root / "sys/fs/cgroup"
    limit, used = (number_of(text_of(group / name), 1e-6) for name in ("memory.max", "memory.current"))
    if limit is None:
        return free
    of_container = max(0.0, limit - (used or 0.0))
    return of_container if free is None else min(free, of_container)


def _power_modes(root: Path) -> dict[int, str]:
    found = re.findall(r"<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=(\S+)\s*>", text_of(root / "etc/nvpmodel.conf") or "")
    return {int(number): name for number, name in found}


def _full_clock(root: Path) -> float | None:
    files = root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    clocks = [clock for file in files if (clock := number_of(text_of(file), 1e-3)) is not None]  # the files have kHz
    return max(clocks) if clocks else number_of(_found(r"^cpu MHz\s*:\s*(\S+)$", text_of(root / "proc/cpuinfo")))


def _complaints(root: Path) -> list[str]:
    files = [*root.glob("sys/devices/platform/soc*/*firmware/get_throttled"), *root.glob("sys/firmware/get_throttled")]
    found = []
    for file in files:
        digits = _found(r"^(?:0x)?([0-9a-fA-F]{1,8})$", text_of(file))
        bits = int(digits, 16) if digits else 0
        found += [words for bit, words in _PI_BITS.items() if bits >> bit & 1]
    alarms = root.glob("sys/class/hwmon/hwmon*/in0_lcrit_alarm")  # the kernel's raspberrypi-hwmon
    if not found and any(text_of(alarm) == "1" for alarm in alarms):
        found = [_PI_BITS[0]]
    return found
