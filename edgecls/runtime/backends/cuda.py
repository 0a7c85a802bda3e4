"""CUDA without torch: which GPU is here, and the few calls that a TensorRT engine needs around it.

Through cuda-bindings, or PyCUDA where only that is installed: NVIDIA's images for a Jetson have the one or the other.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgecls.errors import MissingExtra, OptionError, RunError

NO_CUDA_BINDING: Final = "neither cuda-bindings nor PyCUDA is installed"


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


def why_no_gpu() -> str:
    """Why `find_gpu` finds none, in words that follow "because". Never raises."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return _why_pycuda_finds_none()
    except (OSError, RuntimeError) as error:
        return " ".join(str(error).split())
    try:
        code, _ = runtime.cudaGetDeviceCount()
        name = runtime.cudaGetErrorName(code)[1].decode(errors="replace") if int(code) else ""
    except RuntimeError as error:  # the binding found no driver library
        return " ".join(str(error).split())
    return f"CUDA answers with error {int(code)} ({name})" if name else "CUDA knows of no GPU"


def _why_pycuda_finds_none() -> str:
    try:
        driver = importlib.import_module("pycuda.driver")
        driver.init()
    except ImportError:
        return NO_CUDA_BINDING
    except Exception as error:  # its own classes
        return f"PyCUDA says: {error}"
    return "CUDA knows of no GPU"


def _by_cuda_bindings() -> Gpu | None:
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
        device = _value(runtime.cudaGetDevice())
        properties = _value(runtime.cudaGetDeviceProperties(device))
        free, total = _value(runtime.cudaMemGetInfo())
    except (ImportError, OSError, RuntimeError):  # the last too where the binding found no driver library
        return None
    name = properties.name.partition(b"\0")[0].decode(errors="replace")
    return Gpu(name, (int(properties.major), int(properties.minor)), int(free), int(total))


def _value(answer: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings gave: it returns (error code, value...) and raises nothing.

    Raises:
        RuntimeError: the error code is not success.
    """
    code, *values = answer
    if int(code) != 0:
        raise RuntimeError(f"error code {int(code)} of CUDA")
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


class Cuda(Protocol):
    """One GPU with one stream, on which work is done in the order in which it was enqueued.

    Belongs to the thread that opened it, which makes every call, `close` included. Each call raises RunError if CUDA
    answers with an error, which may be that of work enqueued before.

    Attributes:
        stream: its handle, for TensorRT.
    """

    stream: int

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A page-locked array, which the GPU copies from and to by itself; not to be touched after `close`."""

    def device_memory(self, n_bytes: int) -> int:
        """The address of memory on the GPU."""

    def copy_in(self, memory: int, array: NDArray[Any]) -> None:
        """Enqueue a copy from a contiguous part of a `host_array` to the GPU."""

    def copy_out(self, array: NDArray[Any], memory: int) -> None:
        """Enqueue a copy from the GPU to a contiguous part of a `host_array`."""

    def event(self) -> Any:
        """A mark to be put between pieces of work, for timing them."""

    def record(self, event: Any) -> None:
        """Enqueue an event."""

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Milliseconds between two events that were recorded, and reached: call `synchronise` before."""

    def synchronise(self) -> None:
        """Wait until all that was enqueued is done."""

    def capture(self, enqueue: Callable[[], None]) -> Any | None:
        """What `enqueue` enqueues, as a graph that costs one call to launch; None where the binding has no graphs."""

    def launch(self, graph: Any) -> None:
        """Enqueue a graph."""

    def release(self, graph: Any) -> None:
        """Give a graph back before `close`."""

    def close(self) -> None:
        """Give all memory, events and graphs back. Raises nothing: after an error CUDA refuses this too."""


def open_cuda() -> Cuda:
    """The GPU that CUDA takes by itself, in its primary context, which torch and ONNX Runtime use as well.

    Raises:
        MissingExtra: there is no binding to CUDA.
        OptionError: there is no GPU, or no driver that the binding can use.
    """
    reasons = []
    for name, module, binding in (
        ("cuda-bindings", "cuda.bindings.runtime", _CudaBindings),
        ("PyCUDA", "pycuda.driver", _PyCuda),
    ):
        try:
            return binding(importlib.import_module(module))
        except ImportError:
            continue
        except _Refused as error:
            reasons.append(f"{name}: {error.what}")
        except RuntimeError as error:  # the binding found no driver library
            reasons.append(f"{name}: {error}")
    if reasons:
        raise OptionError(
            f"--device tensorrt: no CUDA GPU can be used here ({'; '.join(reasons)}). Check that nvidia-smi sees one; "
            'where the driver is one of CUDA 12: pip install "cuda-bindings<13"; or use --device cpu'
        )
    missing = MissingExtra("--device tensorrt", "tensorrt-rtx")
    missing.args = (
        "--device tensorrt needs a Python binding to CUDA, and neither cuda-bindings nor PyCUDA is installed: "
        "pip install cuda-bindings",
    )
    raise missing


class _Refused(RunError):
    """CUDA answered with an error. `what` is its name and description alone."""

    def __init__(self, doing: str, name: str, description: str) -> None:
        self.what = f"{name} ({description})"
        todo = (
            "take a smaller batch, or close other programs that use the GPU"
            if "out of memory" in description
            else "start again; if it comes back, build the engine again with: edgecls engine RUN, and look with dmesg "
            "for what the driver says"
        )
        super().__init__(f"{doing}: {self.what}; {todo}")


class _CudaBindings:
    """`Cuda` by cuda-bindings 12 and above: the runtime API, which makes the primary context by itself."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._host: list[int] = []
        self._device: list[int] = []
        self._events: list[Any] = []
        self._graphs: list[Any] = []
        self._stream: Any = None
        try:
            # not the default one: TensorRT synchronises the whole GPU on that, and nothing can be captured from it
            self._stream = self._do("opening the GPU", "cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
            self.stream = int(self._stream)
            # a thread that waits for such an event sleeps; other waiting spins, which would take a core from decoding
            self._done = self._event(runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming)
        except RunError:
            self.close()
            raise

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        doing = f"page-locking {n_bytes:,} bytes of memory"
        address = int(self._do(doing, "cudaHostAlloc", n_bytes, self._runtime.cudaHostAllocDefault))
        self._host.append(address)
        return np.asarray((ctypes.c_uint8 * n_bytes).from_address(address)).view(dtype).reshape(shape)

    def device_memory(self, n_bytes: int) -> int:
        address = int(self._do(f"taking {n_bytes:,} bytes of the GPU's memory", "cudaMalloc", n_bytes))
        self._device.append(address)
        return address

    def copy_in(self, memory: int, array: NDArray[Any]) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("copying to the GPU", "cudaMemcpyAsync", memory, array.ctypes.data, array.nbytes, kind, self._stream)

    def copy_out(self, array: NDArray[Any], memory: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("copying from the GPU", "cudaMemcpyAsync", array.ctypes.data, memory, array.nbytes, kind, self._stream)

    def event(self) -> Any:
        return self._event(self._runtime.cudaEventDefault)

    def _event(self, flags: int) -> Any:
        event = self._do("making an event", "cudaEventCreateWithFlags", flags)
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        self._do("recording an event", "cudaEventRecord", event, self._stream)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        return float(self._do("reading the time between two events", "cudaEventElapsedTime", first, last))

    def synchronise(self) -> None:
        self.record(self._done)
        self._do("waiting for the GPU", "cudaEventSynchronize", self._done)

    def capture(self, enqueue: Callable[[], None]) -> Any | None:
        # of this thread alone: others may take memory meanwhile, which would spoil a capture of the whole process
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("starting to capture a graph", "cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            self._end_failed_capture()
            raise
        try:
            graph = self._do("capturing a graph", "cudaStreamEndCapture", self._stream)
        except RunError:
            self._runtime.cudaGetLastError()  # or the next call would report it again
            raise
        try:
            launchable = self._do("making a graph launchable", "cudaGraphInstantiate", graph, 0)
        finally:
            self._runtime.cudaGraphDestroy(graph)
        self._graphs.append(launchable)
        return launchable

    def _end_failed_capture(self) -> None:
        """The stream must leave capture mode; what comes of it is an error, or a graph of half the work."""
        code, graph = self._runtime.cudaStreamEndCapture(self._stream)
        if int(code) == 0:
            self._runtime.cudaGraphDestroy(graph)
        self._runtime.cudaGetLastError()

    def launch(self, graph: Any) -> None:
        self._do("launching a graph", "cudaGraphLaunch", graph, self._stream)

    def release(self, graph: Any) -> None:
        self._graphs.remove(graph)
        self._do("giving a graph back", "cudaGraphExecDestroy", graph)

    def close(self) -> None:
        runtime = self._runtime
        if self._stream is not None:
            runtime.cudaStreamSynchronize(self._stream)  # what still runs must not lose its memory
        for handles, give_back in (
            (self._graphs, runtime.cudaGraphExecDestroy),
            (self._events, runtime.cudaEventDestroy),
            (self._device, runtime.cudaFree),
            (self._host, runtime.cudaFreeHost),
        ):
            while handles:
                give_back(handles.pop())
        if self._stream is not None:
            runtime.cudaStreamDestroy(self._stream)
            self._stream = None

    def _do(self, doing: str, call: str, *arguments: Any) -> Any:
        answer = getattr(self._runtime, call)(*arguments)
        code = answer[0]
        if int(code) != 0:
            name, description = self._runtime.cudaGetErrorName(code)[1], self._runtime.cudaGetErrorString(code)[1]
            raise _Refused(doing, name.decode(), description.decode())
        return _value(answer)


class _PyCuda:
    """`Cuda` by PyCUDA, the driver API; in no release can it capture graphs."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._host: list[NDArray[Any]] = []
        self._device: list[Any] = []
        self._stream: Any = None
        self._done: Any = None
        self._context: Any = None
        try:
            self._do("opening the GPU", driver.init)
            device = self._do("opening the GPU", driver.Device, 0)
            self._context = self._do("opening the GPU", device.retain_primary_context)
            self._context.push()
            self._stream = self._do("opening the GPU", driver.Stream)
            self.stream = int(self._stream.handle)
            flags = driver.event_flags.BLOCKING_SYNC | driver.event_flags.DISABLE_TIMING  # as in _CudaBindings
            self._done = self._do("making an event", driver.Event, flags)
        except RunError:
            self.close()
            raise

    def host_array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        doing = f"page-locking {math.prod(shape) * np.dtype(dtype).itemsize:,} bytes of memory"
        array: NDArray[Any] = self._do(doing, self._driver.pagelocked_empty, shape, dtype)
        self._host.append(array)
        return array

    def device_memory(self, n_bytes: int) -> int:
        self._device.append(self._do(f"taking {n_bytes:,} bytes of the GPU's memory", self._driver.mem_alloc, n_bytes))
        return int(self._device[-1])

    def copy_in(self, memory: int, array: NDArray[Any]) -> None:
        self._do("copying to the GPU", self._driver.memcpy_htod_async, memory, array, self._stream)

    def copy_out(self, array: NDArray[Any], memory: int) -> None:
        self._do("copying from the GPU", self._driver.memcpy_dtoh_async, array, memory, self._stream)

    def event(self) -> Any:
        return self._do("making an event", self._driver.Event)

    def record(self, event: Any) -> None:
        self._do("recording an event", event.record, self._stream)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        return float(self._do("reading the time between two events", first.time_till, last))

    def synchronise(self) -> None:
        self.record(self._done)
        self._do("waiting for the GPU", self._done.synchronize)

    def capture(self, enqueue: Callable[[], None]) -> None:
        return None

    def launch(self, graph: Any) -> None:
        raise NotImplementedError("capture gives no graph")

    release = launch

    def close(self) -> None:
        refused = self._driver.Error
        if self._stream is not None:
            with suppress(refused):
                self._stream.synchronize()
        for allocation in (*self._device, *(array.base for array in self._host)):
            with suppress(refused):
                allocation.free()
        self._device, self._host = [], []
        self._stream = self._done = None  # destroyed here, while their context is the current one
        if self._context is not None:
            with suppress(refused):
                self._context.pop()
            with suppress(refused):
                self._context.detach()
            self._context = None

    def _do(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._driver.Error as error:
            name, _, description = str(error).partition(" failed: ")  # "cuMemAlloc failed: out of memory"
            raise _Refused(doing, name, description or "no reason given") from error
