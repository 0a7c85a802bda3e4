"""Six machines as trees of files, and what Python finds on each. Nobody had these boards: the files are put together
from what owners of such boards published (reports to jetson-stats, forum threads, kernel and vendor documents)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edgecls.device.software import Software
from edgecls.runtime.backends.cuda import NO_CUDA_BINDING, Gpu
from edgecls.runtime.backends.engine_file import TensorRT

ON_CPU: Final = ("AzureExecutionProvider", "CPUExecutionProvider")


@dataclass(frozen=True)
class Board:
    """A machine: its files, and its software."""

    files: dict[str, str]
    software: Software = field(repr=False)

    def at(self, root: Path) -> Path:
        for name, text in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        return root


def arm_cores(n: int, part: str, features: str = "fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp") -> str:
    core = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n\n"
    return "".join(f"processor\t: {number}\n{core}" for number in range(n))


def memory(total_mb: int, free_mb: int, swap_mb: int = 0) -> str:
    kilobytes = (("MemTotal", total_mb), ("MemAvailable", free_mb), ("SwapTotal", swap_mb))
    return "".join(f"{name}:  {1000 * value} kB\n" for name, value in kilobytes)


def installed(**packages: str) -> str:
    return "\n".join(
        f"Package: {name.replace('_', '-')}\nStatus: install ok installed\nVersion: {version}\n"
        for name, version in packages.items()
    )


NOTHING: Final = Software(
    python="3.11.9", machine="x86_64", packages={"numpy": "2.4.6"}, providers=(), onnxruntime_problem="",
    openvino_problem="", tensorrt=None, tensorrt_problem="", gpu=None, gpu_problem=NO_CUDA_BINDING,
    free_disk_mb=20_000.0,
)  # fmt: skip

_JETPACK_6 = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
    "var/lib/dpkg/status": installed(
        libnvinfer10="10.3.0.30-1+cuda12.5", python3_libnvinfer="10.3.0.30-1+cuda12.5", libcudnn9_cuda_12="9.3.0.75-1",
        bash="5.1",
    ),
}  # fmt: skip

# A clean environment was made without --system-site-packages; the board is in the mode that it came with.
ORIN_NANO: Final = Board(
    {
        **_JETPACK_6,
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": arm_cores(6, "0xd42"),
        "proc/meminfo": memory(7_802, 5_100),
        "dev/nvmap": "",
        "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=0 >\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400\n",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48343\n",
    },
    replace(
        NOTHING,
        python="3.10.12",
        machine="aarch64",
        packages={"onnxruntime": "1.23.2", "numpy": "1.26.4"},
        providers=ON_CPU,
    ),
)
# The same, set up as docs/jetson.md says.
ORIN_NANO_READY: Final = replace(
    ORIN_NANO,
    software=replace(
        ORIN_NANO.software,
        packages={**ORIN_NANO.software.packages, "cuda-python": "12.6.2.post1"},
        tensorrt=TensorRT(None, "tensorrt", "10.3.0"),
        gpu=Gpu("Orin", (8, 7), 4_000_000_000, 7_990_000_000),
        gpu_problem="",
    ),
)
# In a container that was started without --runtime nvidia; hot, on a weak supply.
AGX_ORIN: Final = Board(
    {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 45000000, BOARD: generic, EABI: aarch64\n",
        ".dockerenv": "",
        "proc/cpuinfo": arm_cores(12, "0xd42"),
        "proc/meminfo": memory(62_000, 50_000),
        "sys/devices/platform/bus@0/13e00000.host1x/15880000.nvdla0/uevent": "",
        "sys/devices/platform/bus@0/13e00000.host1x/158c0000.nvdla1/uevent": "",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
        "sys/class/hwmon/hwmon3/oc3_event_cnt": "14\n",
        "sys/class/thermal/thermal_zone0/type": "tj-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "94500\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000\n",
    },
    replace(
        NOTHING,
        python="3.12.3", machine="aarch64", providers=ON_CPU, tensorrt=TensorRT(None, "tensorrt", "10.16.1"),
        packages={"onnxruntime": "1.27.0", "cuda-bindings": "13.2.0", "numpy": "2.4.0"},
        gpu_problem="CUDA answers with error 35 (cudaErrorInsufficientDriver)",
    ),
)  # fmt: skip
THOR: Final = Board(
    {
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 43000000, BOARD: generic, EABI: aarch64\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release\n",
        "proc/cpuinfo": arm_cores(14, "0xd83", "fp asimd asimdhp asimddp i8mm bf16 sve sve2"),
        "proc/meminfo": memory(125_000, 110_000),
        "dev/nvidiactl": "",
        "usr/local/cuda/version.json": '{"cuda": {"version": "13.0.2"}}',
        "var/lib/dpkg/status": installed(libnvinfer10="10.13.3.9-1", python3_libnvinfer="10.13.3.9-1"),
        "var/lib/nvpmodel/status": "pmode:0000\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    },
    replace(
        NOTHING,
        python="3.12.3", machine="aarch64", providers=ON_CPU, tensorrt=TensorRT(None, "tensorrt", "10.13.3"),
        packages={"onnxruntime": "1.27.0", "cuda-bindings": "13.0.3", "numpy": "2.4.0"},
        gpu=Gpu("NVIDIA Thor", (11, 0), 110_000_000_000, 131_000_000_000), gpu_problem="",
    ),
)  # fmt: skip
# onnxruntime for CPUs was installed on a machine with a GPU and its driver.
WORKSTATION: Final = Board(
    {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\nflags\t: avx2 f16c avx512f avx512_vnni\n",
        "proc/meminfo": memory(64_000, 50_000, 8_000),
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n",
        "dev/nvidiactl": "",
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    },
    replace(NOTHING, python="3.12.3", packages={"onnxruntime": "1.27.0", "numpy": "2.4.0"}, providers=ON_CPU),
)
RASPBERRY_PI: Final = Board(
    {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/cpuinfo": arm_cores(4, "0xd0b"),
        "proc/meminfo": memory(8_000, 6_500, 200),
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2400000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    },
    replace(NOTHING, machine="aarch64", packages={"onnxruntime": "1.27.0", "numpy": "2.4.0"}, providers=ON_CPU),
)
# Half a core of a small machine, with NumPy alone.
CLOUD: Final = Board(
    {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) CPU\nflags\t\t: avx2 f16c\ncpu MHz\t\t: 2200\n",
        "proc/meminfo": memory(980, 310),
        "sys/fs/cgroup/cpu.max": "50000 100000\n",
        "proc/loadavg": "0.10 0.10 0.10 1/99 123\n",
    },
    replace(NOTHING, free_disk_mb=220.0),
)
