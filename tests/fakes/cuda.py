"""A CUDA GPU that is a queue, seen through stand-ins for cuda-bindings and PyCUDA.

It holds what is enqueued until somebody waits for the stream, as a GPU does: an answer that is read too early, memory
that is used again too early or a copy of the wrong length show as wrong numbers.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from edgecls.runtime.backends.cuda import Gpu

ORIN: Final = Gpu("Orin", (8, 7), free_bytes=4 << 30, total_bytes=8 << 30)


class Event:
    ms = float("nan")


@dataclass(eq=False)
class Graph:
    works: list[Callable[[], None]]


class Machine:
    """A GPU with one stream, whose memory is this process's own; `log` has every call and `threads` who made them.

    Attributes:
        fails: by the call that is to fail: the name of cuda-bindings' code, or PyCUDA's description.
        in_graph: whether work may be captured.
        trt: the TensorRT of this machine.
    """

    def __init__(self, gpu: Gpu = ORIN) -> None:
        self.gpu = gpu
        self.fails: dict[str, str] = {}
        self.in_graph = True
        self.log: list[str] = []
        self.threads: set[int] = set()
        self.memory: dict[int, Any] = {}
        self.page_locked: set[int] = set()
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.events: list[Event] = []
        self.graphs: list[Graph] = []
        self.streams = 0
        self.clock_ms = 0.0
        self.trt: Any = None

    def called(self, name: str) -> None:
        self.log.append(name)
        self.threads.add(threading.get_ident())

    def allocate(self, n_bytes: int) -> int:
        assert n_bytes > 0
        block = (ctypes.c_uint8 * n_bytes)(*(b"\xa5" * min(n_bytes, 64)))
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def array(self, address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray[Any, Any]:
        """Memory that was allocated, and no more of it than was."""
        block = self.memory[address]
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert n_bytes <= len(block)
        return np.frombuffer(block, dtype, n_bytes // np.dtype(dtype).itemsize).reshape(shape)

    def enqueue(self, work: Callable[[], object], ms: float = 0) -> None:
        def timed() -> None:
            work()
            self.clock_ms += ms

        (self.queue if self.captured is None else self.captured).append(timed)

    def copy(self, to: int, source: int, n_bytes: int, ms: float) -> None:
        for address in (to, source):  # inside a block that is still there
            assert any(start <= address and address + n_bytes <= start + len(b) for start, b in self.memory.items())
        self.enqueue(lambda: ctypes.memmove(to, source, n_bytes), ms)

    def record(self, event: Event) -> None:
        self.enqueue(lambda: setattr(event, "ms", self.clock_ms))

    def wait(self) -> None:
        assert self.captured is None, "a stream that is captured cannot be waited for"
        while self.queue:
            self.queue.pop(0)()

    def leftovers(self) -> list[Any]:
        return [*self.memory, *self.events, *self.graphs, *range(self.streams)]


ERRORS = {
    "cudaErrorMemoryAllocation": b"out of memory",
    "cudaErrorIllegalAddress": b"an illegal memory access was encountered",
    "cudaErrorStreamCaptureInvalidated": b"operation failed due to a previous error during capture",
}
Code = enum.IntEnum("Code", list(ERRORS))  # from 1: success is 0


def _kept(those: list[Any], one: Any) -> Any:
    those.append(one)
    return one


class FakeRuntime:
    """Stands for the module `cuda.bindings.runtime`: every call returns (code, value...)."""

    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0
    cudaEventDefault, cudaEventBlockingSync, cudaEventDisableTiming = 0, 1, 2
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeGlobal=0, cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, machine: Machine) -> None:
        self._machine, gpu = machine, machine.gpu
        major, minor = gpu.compute_capability
        properties = SimpleNamespace(name=gpu.name.encode() + b"\0\0", major=major, minor=minor)
        calls: dict[str, Callable[..., Any]] = {
            "cudaGetDevice": lambda: 0,
            "cudaGetDeviceProperties": lambda device: properties,
            "cudaMemGetInfo": lambda: (gpu.free_bytes, gpu.total_bytes),
            "cudaGetErrorName": lambda code: code.name.encode(),
            "cudaGetErrorString": lambda code: ERRORS[code.name],
            "cudaGetLastError": lambda: None,
            "cudaStreamDestroy": lambda stream: setattr(machine, "streams", machine.streams - 1),
            "cudaStreamSynchronize": lambda stream: machine.wait(),
            "cudaFreeHost": lambda address: (machine.page_locked.remove(address), machine.memory.pop(address)),
            "cudaMalloc": machine.allocate,
            "cudaMemcpyAsync": lambda to, source, n_bytes, kind, stream: machine.copy(to, source, n_bytes, float(kind)),
            "cudaEventDestroy": machine.events.remove,
            "cudaEventRecord": lambda event, stream: machine.record(event),
            "cudaEventSynchronize": lambda event: machine.wait(),
            "cudaEventElapsedTime": lambda first, last: last.ms - first.ms,
            "cudaGraphDestroy": machine.graphs.remove,
            "cudaGraphInstantiate": lambda graph, flags: _kept(machine.graphs, Graph(graph.works)),
            "cudaGraphExecDestroy": machine.graphs.remove,
            "cudaGraphLaunch": lambda graph, stream: [machine.enqueue(work) for work in graph.works],
            "cudaStreamCreateWithFlags": self._create_stream,
            "cudaHostAlloc": self._allocate_host,
            "cudaFree": self._free,
            "cudaEventCreateWithFlags": lambda flags: _kept(machine.events, Event()),
            "cudaStreamBeginCapture": self._begin_capture,
        }
        for name, call in calls.items():
            setattr(self, name, partial(self._answer, name, call))

    def _answer(self, name: str, call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        self._machine.called(name)
        if name in self._machine.fails:
            return Code[self._machine.fails[name]], None
        value = call(*arguments)
        return (0, *(value if isinstance(value, tuple) else () if value is None else (value,)))

    def _create_stream(self, flags: int) -> int:
        assert flags == self.cudaStreamNonBlocking
        self._machine.streams += 1
        return 77

    def _allocate_host(self, n_bytes: int, flags: int) -> int:
        address = self._machine.allocate(n_bytes)
        self._machine.page_locked.add(address)
        return address

    def _free(self, address: int) -> None:
        assert address not in self._machine.page_locked
        del self._machine.memory[address]

    def _begin_capture(self, stream: int, mode: int) -> None:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._machine.captured = []

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        self._machine.called("cudaStreamEndCapture")
        works, self._machine.captured = self._machine.captured, None
        if not self._machine.in_graph or "cudaStreamEndCapture" in self._machine.fails:
            return Code["cudaErrorStreamCaptureInvalidated"], None
        assert works is not None
        return 0, _kept(self._machine.graphs, Graph(works))


class FakePyCuda:
    """Stands for the module `pycuda.driver`, its one device and its one context: calls raise `Error`."""

    class Error(Exception):
        pass

    event_flags = SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2)

    def __init__(self, machine: Machine) -> None:
        self.machine, self.contexts = machine, 0

    def _call(self, name: str) -> None:
        self.machine.called(name)
        if name in self.machine.fails:
            raise self.Error(f"{name} failed: {self.machine.fails[name]}")

    def init(self) -> None:
        self._call("cuInit")

    def Device(self, index: int) -> FakePyCuda:
        return self

    def name(self) -> str:
        return self.machine.gpu.name

    def compute_capability(self) -> tuple[int, int]:
        return self.machine.gpu.compute_capability

    def mem_get_info(self) -> tuple[int, int]:
        return self.machine.gpu.free_bytes, self.machine.gpu.total_bytes

    def retain_primary_context(self) -> FakePyCuda:
        return self

    def make_context(self) -> FakePyCuda:
        self.push()
        return self

    def push(self) -> None:
        self.contexts += 1

    def pop(self) -> None:
        self.machine.called("pop")
        self.contexts -= 1

    def detach(self) -> None:
        self.machine.called("detach")

    def Stream(self) -> Any:
        return SimpleNamespace(handle=77, synchronize=self.machine.wait)

    def Event(self, flags: int = 0) -> PyCudaEvent:
        self._call("cuEventCreate")
        return PyCudaEvent(self)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: type) -> Any:
        self._call("cuMemHostAlloc")
        allocation = Allocation(self, int(np.prod(shape)) * np.dtype(dtype).itemsize)

        class Array(np.ndarray[Any, Any]):
            base: Any = allocation  # NumPy's own is the memory; PyCUDA's is what holds it

        return self.machine.array(int(allocation), shape, dtype).view(Array)

    def mem_alloc(self, n_bytes: int) -> Allocation:
        self._call("cuMemAlloc")
        return Allocation(self, n_bytes)

    def memcpy_htod_async(self, to: int, source: Any, stream: Any) -> None:
        self._call("cuMemcpyHtoDAsync")
        self.machine.copy(int(to), source.ctypes.data, source.nbytes, ms=1)

    def memcpy_dtoh_async(self, to: Any, source: int, stream: Any) -> None:
        self._call("cuMemcpyDtoHAsync")
        self.machine.copy(to.ctypes.data, int(source), to.nbytes, ms=2)


class PyCudaEvent(Event):
    def __init__(self, driver: FakePyCuda) -> None:
        self._driver = driver

    def record(self, stream: Any) -> None:
        self._driver._call("cuEventRecord")
        self._driver.machine.record(self)

    def synchronize(self) -> None:
        self._driver._call("cuEventSynchronize")
        self._driver.machine.wait()

    def time_till(self, event: PyCudaEvent) -> float:
        return event.ms - self.ms


class Allocation:
    """PyCUDA's memory, by its address."""

    def __init__(self, driver: FakePyCuda, n_bytes: int) -> None:
        self._driver, self._address = driver, driver.machine.allocate(n_bytes)

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        assert self._driver.contexts == 1, "freed outside its context"
        del self._driver.machine.memory[self._address]
