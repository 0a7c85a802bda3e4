"""The machine that trains: its device, the precision that is fastest on it, its memory, and its rank among others."""

from __future__ import annotations

import ctypes
import os
from typing import Final, Literal

import torch
from torch import nn

from edgecls.errors import OptionError
from edgecls.processor import cpu_features
from edgecls.train.options import MachineOptions, Precision

_RANKS: Final = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # set by torchrun, by SLURM, and by Lightning for its children
_LIGHTNING_NAMES: Final = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def rank() -> int:
    """Which of the processes that train together this is; 0 leads and writes, and a single one is 0 too."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdecimal()), 0)


def leave_the_others() -> None:
    """End what connects this process with those that it trained with; nothing where it trained alone.

    Lightning does so for NCCL alone. Left to the interpreter's end, the threads of gloo may still run when they are
    destroyed, which aborts the process ("terminate called without an active exception", seen once in some hundred
    runs), and torchrun then kills the others, of which one is still writing.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def resolved_device(options: MachineOptions) -> Literal["cpu", "cuda"]:
    """Where to train.

    Raises:
        OptionError: CUDA is asked for and there is no such GPU, or fewer than asked for.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device == "cuda" and not n_gpus:
        raise OptionError("--device cuda: PyTorch sees no CUDA GPU here; use --device auto or cpu")
    device: Literal["cpu", "cuda"] = "cuda" if options.device != "cpu" and n_gpus else "cpu"
    if device == "cuda" and options.devices > n_gpus:
        raise OptionError(f"--devices {options.devices}: PyTorch sees {n_gpus} GPUs here")
    if options.precision == "fp16" and device == "cpu":
        raise OptionError("--precision fp16 is for GPUs; on a CPU use auto, bf16 or fp32")
    return device


def lightning_precision(network: nn.Module, device: Literal["cpu", "cuda"], wanted: Precision) -> str:
    """Lightning's name of the precision; `auto` is the one that trains fastest here.

    bf16 on a GPU, and on CPUs whose matrix units (AMX) compute it: 1.9 times as fast there as fp32 for ResNet-9
    (1,100 against 590 img/s on two cores). Depthwise networks lose by it even
    there (EfficientNet-Lite0 at 224 px: 7.0 and 8.3 against 9.3 and 10.0), and without AMX so did most others.
    """
    if wanted != "auto":
        return _LIGHTNING_NAMES[wanted]
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    is_grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    is_convolutional = any(isinstance(module, nn.Conv2d) for module in network.modules())
    return "bf16-mixed" if "amx_bf16" in cpu_features() and is_convolutional and not is_grouped else "32-true"


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next step, where it would give it back to the system.

    Every step allocates the same large tensors; handing their pages back and faulting them in anew cost a quarter
    of the time of ResNet-9 on two cores (1,010 against 1,320 img/s at width 16, nothing at width 32). Does nothing
    where the C library is another one. Source: mallopt(3).
    """
    m_trim_threshold, m_mmap_threshold, as_large_as_int = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, as_large_as_int)


def free_memory() -> int:
    """Bytes that can be allocated without swapping; assumes 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 << 30
    return int(kib) << 10


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the system, had no memory left for a tensor."""
    text = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )
