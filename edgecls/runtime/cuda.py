"""Which CUDA GPU is here, asked without torch: through cuda-bindings, or PyCUDA where only that is installed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """The GPU that CUDA takes by itself on this machine.

    Attributes:
        name: as the driver gives it, e.g. `Orin`.
        compute_capability: major and minor, e.g. (8, 7).
        free_bytes: of its memory, now; on a Jetson that is the memory which CPU and GPU share.
    """

    name: str
    compute_capability: tuple[int, int]
    free_bytes: int
    total_bytes: int


def find_gpu() -> Gpu | None:
    """The GPU of this machine, or None where there is no GPU, no driver or no binding. Never raises."""
    return _by_cuda_bindings() or _by_pycuda()


class _CudaError(Exception):
    """CUDA answered with an error code."""


def _by_cuda_bindings() -> Gpu | None:
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
        device = _value(runtime.cudaGetDevice())
        properties = _value(runtime.cudaGetDeviceProperties(device))
        free, total = _value(runtime.cudaMemGetInfo())
    except (ImportError, RuntimeError, _CudaError):  # RuntimeError: the binding found no driver library
        return None
    name = properties.name.partition(b"\0")[0].decode(errors="replace")
    return Gpu(name, (int(properties.major), int(properties.minor)), int(free), int(total))


def _value(answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings gave: it returns (error code, value...) and raises nothing.

    Raises:
        _CudaError: the error code is not success.
    """
    code, *values = answer
    if int(code) != 0:
        raise _CudaError(code)
    return values[0] if len(values) == 1 else values


def _by_pycuda() -> Gpu | None:
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError:
        return None
    try:
        driver.init()
        device = driver.Device(0)
        context = device.make_context()  # memory is asked of a context
        try:
            free, total = driver.mem_get_info()
        finally:
            context.pop()
            context.detach()
    except driver.Error:
        return None
    major, minor = device.compute_capability()
    return Gpu(device.name(), (int(major), int(minor)), int(free), int(total))
