"""This machine's CPU: its name, the instructions that decide its speed, and how ONNX Runtime is to use it."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path("/")

# What decides how fast INT8 and FP16 are on a CPU, in the kernel's words; asimddp is ARM's int8 dot product
_FEATURES: Final = (
    "avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
# /proc/cpuinfo of an ARM core has numbers in place of a name (util-linux, sys-utils/lscpu-arm.c)
_ARM_CORES: Final = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD05): "Cortex-A55", (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse-N1", (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD42): "Cortex-A78AE", (0x41, 0xD49): "Neoverse-N2", (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x003): "NVIDIA Denver 2", (0x4E, 0x004): "NVIDIA Carmel",
}  # fmt: skip
# Units of 128 bits that multiply and add: one in the first four, two in the others, four in the V cores (Arm's
# Software Optimization Guides)
_ARM_FLOPS: Final = {
    "Cortex-A53": 8, "Cortex-A55": 8, "Cortex-A57": 8, "Cortex-A72": 8, "Cortex-A76": 16, "Cortex-A78AE": 16,
    "Neoverse-N1": 16, "Neoverse-N2": 16, "Neoverse-V1": 32, "Neoverse-V2": 32, "Neoverse-V3AE": 32,
}  # fmt: skip


def cpu_name(root: Path = ROOT) -> str:
    """The CPU's name, such as `Cortex-A78AE`; of cores of several kinds all names, joined by ` + `.

    Args:
        root: in place of `/`, so that a tree of files can stand for a machine that is not here.
    """
    cpuinfo = _cpuinfo(root)
    numbers = zip(
        re.findall(r"^CPU implementer\s*:\s*(0x[0-9a-f]{1,8})$", cpuinfo, re.MULTILINE),
        re.findall(r"^CPU part\s*:\s*(0x[0-9a-f]{1,8})$", cpuinfo, re.MULTILINE),
        strict=False,
    )
    kinds = dict.fromkeys(
        _ARM_CORES.get((int(maker, 16), int(part, 16)), f"ARM part {maker}:{part}") for maker, part in numbers
    )
    # the numbers first: a Jetson's kernel writes a name too, which is that of none: ARMv8 Processor rev 1 (v8l)
    named = re.search(r"^(?:model name|Model Name)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return " + ".join(kinds) or (named[1].strip() if named else platform.processor() or platform.machine())


def cpu_features(root: Path = ROOT) -> tuple[str, ...]:
    """The instruction sets that matter here and that this CPU has, in the kernel's words."""
    line = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(root), re.MULTILINE)
    has = set(line[1].split()) if line else set()
    return tuple(feature for feature in _FEATURES if feature in has)


def core_flops(name: str, features: tuple[str, ...]) -> int | None:
    """Float32 operations in a cycle of one core, a product and its sum being two; None where it is not known.

    Two vector units are what x86 with AVX2 has since Haswell and Zen 2. Some with AVX-512 have twice as much.

    Args:
        name, features: as `cpu_name` and `cpu_features` give them; of cores of several kinds the fastest counts.
    """
    if "avx2" in features:
        return 32
    return max((_ARM_FLOPS.get(core, 0) for core in name.split(" + ")), default=0) or None


def n_processors(root: Path = ROOT) -> int:
    """All cores of the machine, also those that this process may not use; 0 where the kernel does not say."""
    return len(re.findall(r"^processor\s*:", _cpuinfo(root), re.MULTILINE))


def int8_sums_overflow(root: Path = ROOT) -> bool:
    """Whether this CPU adds products of uint8 and int8 in 16 bits, which overflows: x86 with AVX2 but without VNNI."""
    return "avx2" in cpu_features(root) and not has_vnni(root)


def has_vnni(root: Path = ROOT) -> bool:
    """Whether this x86 CPU is known to add products of uint8 and int8 in 32 bits."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpu_features(root)))


def session_settings(onnxruntime: Any, n_threads: int, root: Path = ROOT, *, may_spin: bool = False) -> Any:
    """How every session of ours is opened.

    Args:
        onnxruntime: the module, which an installation may lack.
        n_threads: of one call; 0 leaves the number to ONNX Runtime.
        root: as of `cpu_name`.
        may_spin: whether its threads may wait for work by spinning, which takes the cores from all other threads. One
            inference at a time needs it: without, two threads are slower than one (4.8, 4.5 and with it 2.9 ms for
            EfficientNet-Lite0 in INT8 on two cores; ONNX Runtime 1.32).
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors only
    settings.intra_op_num_threads = n_threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if may_spin else "0")
    # Where `int8_sums_overflow`, loud channels are cut off without a word; with this, ONNX Runtime takes uint8 weights.
    # On CPUs with VNNI but without AMX it does so too, for the same answers at 0.6 times the speed (1.32, AMD Zen 4)
    if not has_vnni(root):
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return settings


def _cpuinfo(root: Path) -> str:
    return text_of(root / "proc/cpuinfo") or ""


def number_of(text: str | None, unit: float = 1.0) -> float | None:
    """A number of 0 or more that a file holds, times `unit`; None where it is none, whatever else stands there."""
    return float(text) * unit if text and re.fullmatch(r"\d{1,18}(\.\d{1,18})?", text) else None


def text_of(path: Path) -> str | None:
    """A small file's text without its end; None where it is not there. (A sensor may be there and refuse.)"""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\0\n ") or None
    except OSError:
        return None
