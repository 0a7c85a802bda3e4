"""TensorRT as a backend: by stand-ins that compute over real memory, and by the real ones where there is a GPU.

The stand-ins hold what is enqueued until somebody waits for the stream, as a GPU does: an answer that is read too
early, memory that is used again too early or a copy of the wrong length show as wrong numbers.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecls.errors import MissingExtra, OptionError, RunError
from edgecls.export.engine import build_engine
from edgecls.export.options import EngineOptions
from edgecls.images import Pixels
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import write_json
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.backends.cuda import Gpu, _CudaBindings, find_gpu, open_cuda
from edgecls.runtime.backends.engine_file import EngineRecord, TensorRT, find_tensorrt, sidecar
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import Backend, BackendOptions
from edgecls.runtime.backends.tensor_rt import TensorRtBackend, find_engine, fits
from edgecls.runtime.stages import StageTimes
from tests.export.test_engine import write_onnx

ORIN = Gpu("Orin", (8, 7), free_bytes=4 << 30, total_bytes=8 << 30)
HERE = f"{platform.system()}-{platform.machine()}".lower()
PLAN = b"an engine"
OPTIONS = BackendOptions("tensorrt")
RECORD = EngineRecord(
    flavour="tensorrt",
    tensorrt="10.3.0",
    platform=HERE,
    gpu="Orin",
    compute_capability=(8, 7),
    batch=BatchProfile(2, 4, 8),
    optimization_level=3,
    dla_core=None,
    hardware_compatible=False,
    onnx_sha256="0" * 64,
    engine_sha256=hashlib.sha256(PLAN).hexdigest(),
    manifest=Manifest(("a", "b", "c"), Preprocessing(size_hw=(8, 8)), model="tiny", precision="int8"),
)


def write_engine(path: Path, record: EngineRecord = RECORD, plan: bytes = PLAN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plan)
    write_json(sidecar(path), record.to_json())
    return path


def pictures(n: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def means(images: Pixels) -> np.ndarray[Any, Any]:
    """What the engine of the stand-ins answers: the mean of each channel."""
    return np.asarray(images.astype(np.float32).mean(axis=(1, 2)))


# A GPU that is a queue, seen through stand-ins for cuda-bindings and PyCUDA


class Machine:
    """A GPU with one stream, whose memory is this process's own; `log` has every call and `threads` who made them.

    Attributes:
        fails: the call that is to fail, and with what.
        in_graph: whether work may be captured.
    """

    def __init__(self, gpu: Gpu = ORIN) -> None:
        self.gpu = gpu
        self.fails: dict[str, tuple[str, str]] = {}
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

    def enqueue(self, work: Callable[[], None], ms: float = 0) -> None:
        def timed() -> None:
            work()
            self.clock_ms += ms

        (self.queue if self.captured is None else self.captured).append(timed)

    def copy(self, to: int, source: int, n_bytes: int, ms: float) -> None:
        for address in (to, source):  # inside a block that is still there
            assert any(start <= address and address + n_bytes <= start + len(b) for start, b in self.memory.items())

        def move() -> None:
            ctypes.memmove(to, source, n_bytes)

        self.enqueue(move, ms)

    def wait(self) -> None:
        assert self.captured is None, "a stream that is captured cannot be waited for"
        while self.queue:
            self.queue.pop(0)()

    def leftovers(self) -> list[Any]:
        return [*self.memory, *self.events, *self.graphs, *range(self.streams)]


class Event:
    ms = float("nan")


class Graph:
    def __init__(self, works: list[Callable[[], None]]) -> None:
        self.works = works


class Code(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


DESCRIPTIONS = {
    Code.cudaErrorMemoryAllocation: b"out of memory",
    Code.cudaErrorIllegalAddress: b"an illegal memory access was encountered",
    Code.cudaErrorStreamCaptureInvalidated: b"operation failed due to a previous error during capture",
}


class FakeRuntime:
    """Stands for the module `cuda.bindings.runtime`: every call returns (code, value...)."""

    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0
    cudaEventDefault, cudaEventBlockingSync, cudaEventDisableTiming = 0, 1, 2

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = 1, 2

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal = 0, 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found
        machine = self._machine

        def call(*arguments: Any) -> tuple[Any, ...]:
            machine.called(name)
            if name in machine.fails:
                return (Code[machine.fails[name][0]], None)
            value = found(*arguments)
            return (Code.cudaSuccess, *(value if isinstance(value, tuple) else () if value is None else (value,)))

        return call if name not in ("cudaGetErrorName", "cudaGetErrorString", "cudaStreamEndCapture") else found

    def cudaGetErrorName(self, code: Code) -> tuple[Code, bytes]:
        return Code.cudaSuccess, code.name.encode()

    def cudaGetErrorString(self, code: Code) -> tuple[Code, bytes]:
        return Code.cudaSuccess, DESCRIPTIONS[code]

    def cudaGetLastError(self) -> None:
        pass

    def cudaGetDevice(self) -> int:
        return 0

    def cudaGetDeviceProperties(self, device: int) -> Any:
        class Properties:
            name = self._machine.gpu.name.encode() + b"\0\0"
            major, minor = self._machine.gpu.compute_capability

        return Properties()

    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self._machine.gpu.free_bytes, self._machine.gpu.total_bytes

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == self.cudaStreamNonBlocking
        self._machine.streams += 1
        return 77

    def cudaStreamDestroy(self, stream: int) -> None:
        self._machine.streams -= 1

    def cudaStreamSynchronize(self, stream: int) -> None:
        self._machine.wait()

    def cudaHostAlloc(self, n_bytes: int, flags: int) -> int:
        address = self._machine.allocate(n_bytes)
        self._machine.page_locked.add(address)
        return address

    def cudaFreeHost(self, address: int) -> None:
        self._machine.page_locked.remove(address)
        del self._machine.memory[address]

    def cudaMalloc(self, n_bytes: int) -> int:
        return self._machine.allocate(n_bytes)

    def cudaFree(self, address: int) -> None:
        assert address not in self._machine.page_locked
        del self._machine.memory[address]

    def cudaMemcpyAsync(self, to: int, source: int, n_bytes: int, kind: int, stream: int) -> None:
        self._machine.copy(to, source, n_bytes, ms=float(kind))

    def cudaEventCreateWithFlags(self, flags: int) -> Event:
        self._machine.events.append(Event())
        return self._machine.events[-1]

    def cudaEventDestroy(self, event: Event) -> None:
        self._machine.events.remove(event)

    def cudaEventRecord(self, event: Event, stream: int) -> None:
        self._machine.enqueue(lambda: setattr(event, "ms", self._machine.clock_ms))

    def cudaEventSynchronize(self, event: Event) -> None:
        self._machine.wait()

    def cudaEventElapsedTime(self, first: Event, last: Event) -> float:
        return last.ms - first.ms

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._machine.captured = []

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        self._machine.called("cudaStreamEndCapture")
        works, self._machine.captured = self._machine.captured, None
        if not self._machine.in_graph or "cudaStreamEndCapture" in self._machine.fails:
            return Code.cudaErrorStreamCaptureInvalidated, None
        assert works is not None
        self._machine.graphs.append(Graph(works))
        return Code.cudaSuccess, self._machine.graphs[-1]

    def cudaGraphDestroy(self, graph: Graph) -> None:
        self._machine.graphs.remove(graph)

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> Graph:
        self._machine.graphs.append(Graph(graph.works))
        return self._machine.graphs[-1]

    def cudaGraphExecDestroy(self, graph: Graph) -> None:
        self._machine.graphs.remove(graph)

    def cudaGraphLaunch(self, graph: Graph, stream: int) -> None:
        for work in graph.works:
            self._machine.enqueue(work)


class FakePyCuda:
    """Stands for the module `pycuda.driver`: calls raise `Error`, and objects give back what they hold."""

    class Error(Exception):
        pass

    class event_flags:
        BLOCKING_SYNC, DISABLE_TIMING = 1, 2

    def __init__(self, machine: Machine) -> None:
        driver, self.contexts = self, 0

        def call(name: str) -> None:
            machine.called(name)
            if name in machine.fails:
                raise driver.Error(f"{name} failed: {machine.fails[name][1]}")

        class Stream:
            handle = 77

            def synchronize(self) -> None:
                machine.wait()

        class FakeEvent(Event):
            def __init__(self, flags: int = 0) -> None:
                call("cuEventCreate")

            def record(self, stream: Stream) -> FakeEvent:
                call("cuEventRecord")
                machine.enqueue(lambda: setattr(self, "ms", machine.clock_ms))
                return self

            def synchronize(self) -> FakeEvent:
                call("cuEventSynchronize")
                machine.wait()
                return self

            def time_till(self, event: FakeEvent) -> float:
                return event.ms - self.ms

        class Allocation:
            def __init__(self, n_bytes: int) -> None:
                self.address = machine.allocate(n_bytes)

            def __int__(self) -> int:
                return self.address

            def free(self) -> None:
                assert driver.contexts == 1, "freed outside its context"
                del machine.memory[self.address]

        class Context:
            def push(self) -> None:
                driver.contexts += 1

            def pop(self) -> None:
                driver.contexts -= 1

            def detach(self) -> None:
                machine.called("detach")

        class Device:
            def __init__(self, index: int) -> None:
                call("cuDeviceGet")

            def name(self) -> str:
                return machine.gpu.name

            def compute_capability(self) -> tuple[int, int]:
                return machine.gpu.compute_capability

            def retain_primary_context(self) -> Context:
                call("cuDevicePrimaryCtxRetain")
                return Context()

            def make_context(self) -> Context:
                context = Context()
                context.push()
                return context

        def pagelocked_empty(shape: tuple[int, ...], dtype: type) -> Any:
            call("cuMemHostAlloc")
            allocation = Allocation(int(np.prod(shape)) * np.dtype(dtype).itemsize)

            class Array(np.ndarray[Any, Any]):
                base: Any = allocation  # NumPy's own is the memory; PyCUDA's is what holds it

            return machine.array(allocation.address, shape, dtype).view(Array)

        def mem_alloc(n_bytes: int) -> Allocation:
            call("cuMemAlloc")
            return Allocation(n_bytes)

        def memcpy_htod_async(to: int, source: Any, stream: Stream) -> None:
            call("cuMemcpyHtoDAsync")
            machine.copy(int(to), source.ctypes.data, source.nbytes, ms=1)

        def memcpy_dtoh_async(to: Any, source: int, stream: Stream) -> None:
            call("cuMemcpyDtoHAsync")
            machine.copy(to.ctypes.data, int(source), to.nbytes, ms=2)

        self.Stream, self.Event, self.Device = Stream, FakeEvent, Device
        self.pagelocked_empty, self.mem_alloc = pagelocked_empty, mem_alloc
        self.memcpy_htod_async, self.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
        self.init = lambda: call("cuInit")
        self.mem_get_info = lambda: (machine.gpu.free_bytes, machine.gpu.total_bytes)


# TensorRT, which puts its work on that GPU


class DataType(enum.Enum):
    UINT8, FLOAT, HALF = "uint8", "float32", "float16"


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class Strategy(enum.Enum):
    STATIC, USER_MANAGED = 0, 2


class FakeILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class FakeTensorRT:
    """Stands for the module `tensorrt` 10.3; the engine that it loads means the pixels of each channel."""

    __version__ = "10.3.0"
    ILogger, DataType, TensorIOMode = FakeILogger, DataType, TensorIOMode
    ExecutionContextAllocationStrategy = Strategy
    Builder = object
    answers = DataType.FLOAT

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.contexts = 0
        self.runs_fail = self.loads_nothing = False
        fake = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
                machine.called("deserialize")
                if fake.loads_nothing:
                    self.logger.log(FakeILogger.ERROR, "the plan is of another serialization version")
                    return None
                return FakeEngine(fake, self.logger)

        self.Runtime = Runtime


class FakeTensorRTRTX(FakeTensorRT):
    """Adds what TensorRT for RTX has."""

    __version__ = "1.7.1"

    class CudaGraphStrategy(enum.Enum):
        DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1


class FakeConfig:
    cuda_graph_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy


class FakeEngine:
    num_io_tensors = 2
    device_memory_size_v2 = 1000

    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if name == "images" else self.trt.answers

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 8, 8, 3) if name == "images" else (-1, 3)

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()

    def create_execution_context(self, how: Strategy | FakeConfig) -> FakeContext:
        if isinstance(how, FakeConfig):
            assert how.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
            how = how.strategy
        assert how == Strategy.USER_MANAGED
        self.trt.contexts += 1
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.machine = engine, engine.trt.machine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.has_run = False

    def __del__(self) -> None:
        self.machine.log.append("context gone")

    def set_device_memory(self, memory: int, size: int) -> None:
        assert len(self.machine.memory[memory]) == size == FakeEngine.device_memory_size_v2

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.machine.called("set_input_shape")
        self.shape = shape
        return name == "images" and RECORD.batch.min <= shape[0] <= RECORD.batch.max

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        machine = self.machine
        machine.called("execute")
        assert stream == 77
        # what TensorRT does at the first run of a size cannot be captured
        capturable = machine.in_graph and self.has_run
        if self.engine.trt.runs_fail or (machine.captured is not None and not capturable):
            self.engine.logger.log(FakeILogger.ERROR, "operation not permitted when stream is capturing")
            return False
        images = machine.array(self.addresses["images"], self.shape, np.uint8)
        logits = machine.array(self.addresses["logits"], (self.shape[0], 3), np.float32)
        machine.enqueue(lambda: np.copyto(logits, means(images)), ms=5)
        self.has_run = True
        return True


Install = Callable[..., Machine]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def put(
        binding: str = "cuda-bindings",
        tensorrt: type[FakeTensorRT] = FakeTensorRT,
        gpu: Gpu = ORIN,
        change: Callable[[FakeTensorRT], None] = lambda trt: None,
    ) -> Machine:
        machine = Machine(gpu)
        runtime = FakeRuntime(machine) if binding == "cuda-bindings" else None
        pycuda = FakePyCuda(machine) if binding == "PyCUDA" else None
        trt = tensorrt(machine)
        change(trt)
        machine.trt = trt  # type: ignore[attr-defined]
        rtx = issubclass(tensorrt, FakeTensorRTRTX)
        modules: dict[str, Any] = {"cuda.bindings.runtime": runtime, "pycuda.driver": pycuda}
        modules |= {
            "tensorrt": None if rtx else trt,
            "tensorrt_rtx": trt if rtx else None,
            "tensorrt_rtx_bindings": None,
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return machine

    return put


BINDINGS = pytest.mark.parametrize("binding", ["cuda-bindings", "PyCUDA"])


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "int8.engine")


# Answers


@BINDINGS
@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 16, 17, 30])
def test_batches_of_any_size_get_the_answers_that_numpy_gives(
    install: Install, engine: Path, binding: str, n: int
) -> None:
    machine = install(binding)
    with TensorRtBackend(engine, OPTIONS) as backend:
        for seed in range(4):  # the first run, the one that is captured, and those by its graph
            images = pictures(n, seed)
            answers = backend.infer(images)
            assert answers.dtype == np.float32
            assert answers.shape == (n, 3)
            np.testing.assert_array_equal(answers, means(images))
    assert machine.leftovers() == []


def test_a_backend_is_what_the_protocol_asks(install: Install, engine: Path) -> None:
    install()
    backend: Backend = TensorRtBackend(engine, OPTIONS)
    with backend:
        assert backend.name == "tensorrt-10.3.0"
        assert backend.manifest == RECORD.manifest
        assert backend.n_lanes == 1


@BINDINGS
def test_an_answer_stays_what_it_was_when_the_next_batch_is_answered(
    install: Install, engine: Path, binding: str
) -> None:
    install(binding)
    with TensorRtBackend(engine, OPTIONS) as backend:
        first = backend.infer(pictures(4, seed=1))
        backend.infer(pictures(4, seed=2))
        backend.infer(pictures(4, seed=3))
    np.testing.assert_array_equal(first, means(pictures(4, seed=1)))


@BINDINGS
def test_several_threads_get_their_own_answers_by_calls_from_one_thread(
    install: Install, engine: Path, binding: str
) -> None:
    machine = install(binding)
    batches = [pictures(1 + seed % 11, seed) for seed in range(120)]
    with TensorRtBackend(engine, OPTIONS) as backend, ThreadPoolExecutor(6) as pool:
        for images, answers in zip(batches, pool.map(backend.infer, batches), strict=True):
            np.testing.assert_array_equal(answers, means(images))
    assert len(machine.threads) == 1
    assert threading.get_ident() not in machine.threads
    assert machine.leftovers() == []


def test_the_next_batch_is_taken_in_while_one_is_on_the_gpu(install: Install, engine: Path) -> None:
    machine = install()
    on_gpu, may_end = threading.Event(), threading.Event()

    def wait(of_machine: Callable[[], None] = machine.wait) -> None:
        on_gpu.set()
        assert may_end.wait(10)
        of_machine()

    with TensorRtBackend(engine, OPTIONS) as backend, ThreadPoolExecutor(2) as pool:
        machine.wait = wait  # type: ignore[method-assign]
        first = pool.submit(backend.infer, pictures(4, seed=1))
        assert on_gpu.wait(10)
        (free,) = backend._free
        second = pool.submit(backend.infer, pictures(4, seed=2))
        until = time.monotonic() + 10
        while not np.array_equal(free.images[:4], pictures(4, seed=2)):
            assert time.monotonic() < until
            time.sleep(0.002)
        assert not first.done()
        may_end.set()
        np.testing.assert_array_equal(first.result(), means(pictures(4, seed=1)))
        np.testing.assert_array_equal(second.result(), means(pictures(4, seed=2)))


def test_arrays_of_another_shape_or_type_are_refused(install: Install, engine: Path) -> None:
    install()
    with TensorRtBackend(engine, OPTIONS) as backend:
        for images in (pictures(2)[:, :1], pictures(2).astype(np.float32)):
            with pytest.raises(RunError, match="expected uint8"):
                backend.infer(images)  # type: ignore[arg-type]


@BINDINGS
def test_the_times_are_those_of_the_gpu_and_of_the_images_asked_for(
    install: Install, engine: Path, binding: str
) -> None:
    install(binding)
    times = StageTimes()
    with TensorRtBackend(engine, OPTIONS) as backend:
        backend.infer(pictures(1), times)  # padded to two, and still one image
        backend.infer(pictures(8), times)
        backend.infer(pictures(8))
    summaries = times.summaries()
    assert list(summaries) == ["copy-in", "infer", "copy-out"]
    assert [round(summary.share, 3) for summary in summaries.values()] == [1 / 8, 5 / 8, 2 / 8]
    assert summaries["infer"].p50_ms == pytest.approx(5 / 8)
    assert summaries["infer"].p99_ms == pytest.approx(5, rel=0.4)


# Graphs


def test_a_graph_is_captured_once_for_each_batch_size_that_comes_again(install: Install, engine: Path) -> None:
    machine = install()
    with TensorRtBackend(engine, OPTIONS) as backend:
        for n in (4, 4, 4, 8, 4, 8, 8, 3):
            np.testing.assert_array_equal(backend.infer(pictures(n, n)), means(pictures(n, n)))
        assert machine.log.count("cudaStreamBeginCapture") == 2
        assert machine.log.count("cudaGraphLaunch") == 3 + 2
        assert machine.log.count("execute") == 3 + 2  # the first of 4, 8 and 3, and what was captured
        assert machine.trt.contexts == 3  # type: ignore[attr-defined]
    assert machine.leftovers() == []


def test_a_first_run_that_fails_does_not_cost_the_graph(install: Install, engine: Path) -> None:
    machine = install()
    with TensorRtBackend(engine, OPTIONS) as backend:
        machine.fails["cudaMemcpyAsync"] = ("cudaErrorIllegalAddress", "")
        with pytest.raises(RunError, match="copying to the GPU"):
            backend.infer(pictures(4))
        machine.fails.clear()
        for seed in range(3):
            np.testing.assert_array_equal(backend.infer(pictures(4, seed)), means(pictures(4, seed)))
        assert machine.log.count("cudaGraphLaunch") == 2


def test_no_more_than_eight_batch_sizes_are_kept(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = replace(RECORD, batch=BatchProfile(1, 8, 16))
    monkeypatch.setattr(sys.modules[__name__], "RECORD", record)
    machine = install()
    with TensorRtBackend(write_engine(tmp_path / "a.engine", record), OPTIONS) as backend:
        for n in (*range(1, 11), *range(10, 0, -1)):
            for _ in range(2):
                np.testing.assert_array_equal(backend.infer(pictures(n, n)), means(pictures(n, n)))
        assert len(machine.graphs) == 8
        assert machine.trt.contexts == 12  # type: ignore[attr-defined]  # 1 and 2 had been forgotten
    assert machine.leftovers() == []


@pytest.mark.parametrize("where", ["TensorRT refuses", "the capture is spoilt", "it cannot be made launchable"])
def test_without_graphs_the_answers_are_the_same(install: Install, engine: Path, where: str) -> None:
    machine = install()
    machine.in_graph = where != "TensorRT refuses"
    if where != "TensorRT refuses":
        call = "cudaStreamEndCapture" if "spoilt" in where else "cudaGraphInstantiate"
        machine.fails[call] = ("cudaErrorStreamCaptureInvalidated", "")
    with TensorRtBackend(engine, OPTIONS) as backend:
        for seed in range(5):
            for n in (3, 8):
                np.testing.assert_array_equal(backend.infer(pictures(n, seed)), means(pictures(n, seed)))
    assert machine.log.count("cudaStreamBeginCapture") == 1
    assert "cudaGraphLaunch" not in machine.log
    assert machine.leftovers() == []


def test_tensorrt_for_rtx_captures_by_itself(install: Install, tmp_path: Path) -> None:
    machine = install(tensorrt=FakeTensorRTRTX)
    record = replace(RECORD, flavour="tensorrt-rtx", tensorrt="1.7.1", gpu=None)
    with TensorRtBackend(write_engine(tmp_path / "a.engine", record), OPTIONS) as backend:
        assert backend.name == "tensorrt-rtx-1.7.1"
        for seed in range(3):
            np.testing.assert_array_equal(backend.infer(pictures(5, seed)), means(pictures(5, seed)))
    assert "cudaStreamBeginCapture" not in machine.log
    assert machine.leftovers() == []


# Failures


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        pytest.param("cudaHostAlloc", "cudaErrorMemoryAllocation", "page-locking .*smaller batch", id="host memory"),
        pytest.param("cudaMalloc", "cudaErrorMemoryAllocation", r"GPU's memory: cudaErrorMem.*\(out of mem", id="GPU"),
    ],
)
def test_memory_that_is_not_there_is_one_error_and_leaves_nothing(
    install: Install, engine: Path, call: str, code: str, message: str
) -> None:
    machine = install()
    machine.fails[call] = (code, "")
    with pytest.raises(RunError, match=message):
        TensorRtBackend(engine, OPTIONS)
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("call", "doing"),
    [
        ("cudaMemcpyAsync", "copying to the GPU"),
        ("cudaEventRecord", "recording an event"),
        ("cudaEventSynchronize", "waiting for the GPU"),
        ("cudaEventElapsedTime", "reading the time"),
        ("cudaGraphLaunch", "launching a graph"),
    ],
)
def test_an_error_code_of_cuda_is_an_error_with_its_name_and_what_to_do(
    install: Install, engine: Path, call: str, doing: str
) -> None:
    machine = install()
    with TensorRtBackend(engine, OPTIONS) as backend:
        backend.infer(pictures(4))
        machine.fails[call] = ("cudaErrorIllegalAddress", "")
        message = rf"{doing}.*: cudaErrorIllegalAddress \(an illegal .*\); start again.*edgecls engine RUN"
        with pytest.raises(RunError, match=message):
            backend.infer(pictures(4))
        machine.fails.clear()
        np.testing.assert_array_equal(backend.infer(pictures(4)), means(pictures(4)))
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("cuMemAlloc", r"of the GPU's memory: cuMemAlloc \(out of memory\); take a smaller batch"),
        ("cuMemHostAlloc", r"page-locking .*: cuMemHostAlloc \(out of memory\)"),
    ],
)
def test_an_error_of_pycuda_is_the_same_error(install: Install, engine: Path, call: str, message: str) -> None:
    machine = install("PyCUDA")
    machine.fails[call] = ("", "out of memory")
    with pytest.raises(RunError, match=message):
        TensorRtBackend(engine, OPTIONS)
    assert machine.memory == {}
    assert "detach" in machine.log
    machine.fails.clear()
    with TensorRtBackend(engine, OPTIONS) as backend:
        machine.fails["cuMemcpyHtoDAsync"] = ("", "invalid argument")
        with pytest.raises(RunError, match=r"copying to the GPU: cuMemcpyHtoDAsync \(invalid argument\); start again"):
            backend.infer(pictures(4))
        machine.fails.clear()
        np.testing.assert_array_equal(backend.infer(pictures(4)), means(pictures(4)))


def test_what_tensorrt_said_is_in_the_error(install: Install, engine: Path) -> None:
    machine = install()
    with TensorRtBackend(engine, OPTIONS) as backend:
        machine.trt.runs_fail = True  # type: ignore[attr-defined]
        with pytest.raises(RunError, match=r"TensorRT 10\.3\.0 could not run this engine:\n  operation not") as error:
            backend.infer(pictures(4))
        assert str(error.value).count("operation not permitted") == 1
        machine.trt.runs_fail = False  # type: ignore[attr-defined]
        np.testing.assert_array_equal(backend.infer(pictures(4)), means(pictures(4)))
    assert machine.leftovers() == []


def test_an_engine_that_tensorrt_does_not_load_is_an_error_with_its_reason(install: Install, engine: Path) -> None:
    machine = install(change=lambda trt: setattr(trt, "loads_nothing", True))
    with pytest.raises(RunError, match=r"cannot load this engine:\n  the plan is of another .*\n.*edgecls engine RUN"):
        TensorRtBackend(engine, OPTIONS)
    assert machine.leftovers() == []


def test_an_engine_that_does_not_fit_its_manifest_is_refused(install: Install, tmp_path: Path) -> None:
    machine = install()
    wide = replace(RECORD, manifest=replace(RECORD.manifest, preprocessing=Preprocessing(size_hw=(8, 9))))
    with pytest.raises(RunError, match="the graph does not fit its manifest"):
        TensorRtBackend(write_engine(tmp_path / "a.engine", wide), OPTIONS)
    install(change=lambda trt: setattr(trt, "answers", DataType.HALF))
    with pytest.raises(RunError, match="expected images -> float32 logits"):
        TensorRtBackend(write_engine(tmp_path / "b.engine"), OPTIONS)
    assert machine.leftovers() == []


def test_a_closed_backend_answers_nothing_more(install: Install, engine: Path) -> None:
    machine = install()
    backend = TensorRtBackend(engine, OPTIONS)
    with backend:
        backend.infer(pictures(3))
    assert machine.log.index("context gone") < machine.log.index("cudaFree"), "TensorRT's objects go first"
    with pytest.raises(RunError, match="this model has been closed"):
        backend.infer(pictures(3))
    backend.__exit__(None, None, None)  # a second time: nothing is given back twice
    assert machine.leftovers() == []
    assert not any(thread.name.startswith("tensorrt") for thread in threading.enumerate())


def test_closing_waits_for_the_batches_on_their_way_and_turns_others_away(install: Install, engine: Path) -> None:
    machine = install()
    backend = TensorRtBackend(engine, OPTIONS)
    answered: list[str] = []

    def ask(seed: int) -> None:
        try:
            np.testing.assert_array_equal(backend.infer(pictures(20, seed)), means(pictures(20, seed)))
            answered.append("")
        except RunError as error:
            answered.append(str(error))

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(ask, seed) for seed in range(60)]
        futures[3].result()
        backend.__exit__(None, None, None)
        for future in futures:
            future.result()
    assert "" in answered
    assert all("this model has been closed" in reason for reason in answered if reason)
    assert machine.leftovers() == []


# Which engines a machine may load


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"tensorrt": "10.7.0"}, r"built by TensorRT 10\.7\.0, and here is TensorRT 10\.3\.0", id="version"
        ),
        pytest.param({"flavour": "tensorrt-rtx"}, "built by TensorRT for RTX 10", id="flavour"),
        pytest.param({"platform": "windows-amd64"}, f"built on windows-amd64, and this is {HERE}", id="platform"),
        pytest.param({"gpu": "Orin Nano"}, r"built for Orin Nano, .* here is Orin, compute capability 8\.7", id="GPU"),
        pytest.param({"compute_capability": (8, 6)}, r"built for Orin, compute capability 8\.6", id="capability"),
    ],
)
def test_an_engine_for_another_machine_is_refused_by_the_difference(
    install: Install, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    machine = install()
    engine = write_engine(tmp_path / "a.engine", replace(RECORD, **change))
    with pytest.raises(RunError, match=rf"{message}.*edgecls engine RUN"):
        TensorRtBackend(engine, OPTIONS)
    assert "deserialize" not in machine.log
    assert machine.leftovers() == []


def test_an_engine_that_was_edited_is_not_loaded(install: Install, engine: Path) -> None:
    machine = install()
    engine.write_bytes(PLAN + b"?")
    with pytest.raises(RunError, match="not the bytes that its record was written for"):
        TensorRtBackend(engine, OPTIONS)
    sidecar(engine).unlink()
    with pytest.raises(RunError, match="no record beside the engine"):
        TensorRtBackend(engine, OPTIONS)
    assert "deserialize" not in machine.log


def test_a_hardware_compatible_engine_fits_every_gpu_from_ampere_on() -> None:
    trt, record = TensorRT(None, "tensorrt", "10.3.0"), replace(RECORD, hardware_compatible=True)
    assert fits(record, trt, replace(ORIN, name="RTX 3060", compute_capability=(8, 6))) == ""
    assert "GPUs of compute capability 8.0 and above" in fits(record, trt, replace(ORIN, compute_capability=(7, 5)))


def test_an_rtx_engine_fits_every_gpu_of_its_capability() -> None:
    trt = TensorRT(None, "tensorrt-rtx", "1.7.1")
    record = replace(RECORD, flavour="tensorrt-rtx", tensorrt="1.7.1", gpu="Orin")
    assert fits(record, trt, replace(ORIN, name="another")) == ""
    assert "GPUs of compute capability 8.7" in fits(record, trt, replace(ORIN, compute_capability=(8, 9)))
    assert fits(record, trt, None) == "no CUDA GPU was found here"


def test_the_newest_engine_of_the_precision_that_fits_is_found(install: Install, tmp_path: Path) -> None:
    assert find_engine(tmp_path / "nowhere", "int8") is None
    install()
    fp16 = replace(RECORD, manifest=replace(RECORD.manifest, precision="fp16"))
    for name, record in {
        "a": replace(RECORD, created="2026-01-01T00:00:00+00:00"),
        "b": replace(RECORD, created="2026-03-01T00:00:00+00:00"),
        "c": replace(RECORD, created="2026-02-01T00:00:00+00:00"),
        "d": replace(RECORD, created="2026-04-01T00:00:00+00:00", tensorrt="10.7.0"),
        "e": replace(fp16, created="2026-05-01T00:00:00+00:00"),
    }.items():
        write_engine(tmp_path / f"{name}.engine", record)
    (tmp_path / "f.engine").write_bytes(b"no record")
    assert find_engine(tmp_path, "int8") == tmp_path / "b.engine"
    assert find_engine(tmp_path, "fp16") == tmp_path / "e.engine"
    assert find_engine(tmp_path, "fp32") is None


def test_where_there_is_no_tensorrt_no_engine_is_found(
    install: Install, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert find_engine(engine.parent, "int8") is None
    with pytest.raises(MissingExtra, match="TensorRT comes with JetPack"):
        TensorRtBackend(engine, OPTIONS)


# The seam over CUDA


def test_without_a_binding_the_error_says_which_to_install(
    install: Install, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("none")
    with pytest.raises(MissingExtra, match="neither cuda-bindings nor PyCUDA is installed: pip install cuda-bindings"):
        TensorRtBackend(engine, OPTIONS)


def test_without_a_gpu_the_error_says_what_cuda_said(install: Install, engine: Path) -> None:
    machine = install()
    machine.fails["cudaStreamCreateWithFlags"] = ("cudaErrorMemoryAllocation", "")
    with pytest.raises(OptionError, match=r"no CUDA GPU .*cuda-bindings: cudaErrorMem.*nvidia-smi.*--device cpu"):
        TensorRtBackend(engine, OPTIONS)
    machine = install("PyCUDA")
    machine.fails["cuInit"] = ("", "no CUDA-capable device is detected")
    with pytest.raises(OptionError, match=r"PyCUDA: cuInit \(no CUDA-capable device is detected\)"):
        TensorRtBackend(engine, OPTIONS)


def test_pycuda_is_taken_where_the_driver_is_too_old_for_cuda_bindings(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_new = Machine()
    too_new.fails["cudaStreamCreateWithFlags"] = ("cudaErrorMemoryAllocation", "")
    machine = install("PyCUDA")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeRuntime(too_new))
    cuda = open_cuda()
    assert cuda.capture(lambda: None) is None
    cuda.close()
    assert machine.leftovers() == []


@BINDINGS
def test_what_is_copied_in_comes_out_again_in_order(install: Install, binding: str) -> None:
    machine = install(binding)
    cuda = open_cuda()
    host, back = cuda.host_array((4, 5), np.int32), cuda.host_array((4, 5), np.int32)
    memory = cuda.device_memory(host.nbytes)
    first, last = cuda.event(), cuda.event()
    host[:] = np.arange(20).reshape(4, 5)
    back[:] = -1
    cuda.record(first)
    cuda.copy_in(memory, host)
    cuda.copy_out(back[:3], memory)
    cuda.record(last)
    assert (back == -1).all(), "nothing is done before it is waited for"
    cuda.synchronise()
    assert back[:3].tolist() == host[:3].tolist()
    assert (back[3] == -1).all()
    assert cuda.elapsed_ms(first, last) == 3
    cuda.close()
    assert machine.leftovers() == []


# The real thing


def test_the_real_cuda_bindings_take_every_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no driver they check the types of all arguments, and then refuse."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if find_gpu() is not None:
        pytest.skip("with a GPU these calls would be made on nothing; the tests below make them on memory")
    with monkeypatch.context() as patch:
        patch.setattr(_CudaBindings, "_do", lambda self, *arguments: 0)
        cuda = _CudaBindings(runtime)
    array, stream, event = np.zeros(4, np.uint8), runtime.cudaStream_t(0), runtime.cudaEvent_t(0)
    cuda._stream, cuda._done, cuda._events = stream, event, []
    launchable = runtime.cudaGraphExec_t(0)
    cuda._graphs.append(launchable)
    calls: list[Callable[[], object]] = [
        lambda: _CudaBindings(runtime),
        lambda: cuda.host_array((2, 3), np.uint8),
        lambda: cuda.device_memory(10),
        lambda: cuda.copy_in(1, array),
        lambda: cuda.copy_out(array, 1),
        cuda.event,
        lambda: cuda.record(event),
        lambda: cuda.elapsed_ms(event, event),
        cuda.synchronise,
        lambda: cuda._do("waiting", "cudaEventSynchronize", event),
        lambda: cuda.capture(lambda: None),
        lambda: cuda._do("capturing", "cudaStreamEndCapture", stream),
        lambda: cuda._do("instantiating", "cudaGraphInstantiate", runtime.cudaGraph_t(0), 0),
        lambda: cuda.launch(launchable),
        lambda: cuda.release(launchable),
    ]
    for call in calls:
        with pytest.raises(RunError, match="cudaError"):
            call()
    cuda._graphs, cuda._events, cuda._device, cuda._host = [launchable], [event], [1], [1]
    cuda.close()


def test_the_real_tensorrt_for_rtx_has_every_name_that_is_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT for RTX: edgecls[tensorrt-rtx]")
    for owner, names in {
        trt.Runtime: "deserialize_cuda_engine",
        trt.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype get_tensor_shape "
        "device_memory_size_v2 create_runtime_config create_execution_context",
        trt.IExecutionContext: "set_device_memory set_input_shape set_tensor_address execute_async_v3",
        trt.IRuntimeConfig: "set_execution_context_allocation_strategy cuda_graph_strategy",
        trt.CudaGraphStrategy: "WHOLE_GRAPH_CAPTURE",
        trt.ExecutionContextAllocationStrategy: "USER_MANAGED",
        trt.TensorIOMode: "INPUT",
    }.items():
        assert [name for name in names.split() if not hasattr(owner, name)] == []
    assert trt.DataType.UINT8.name.lower() == "uint8"
    assert trt.DataType.FLOAT != trt.DataType.HALF


@pytest.fixture
def real_engine(tmp_path: Path) -> tuple[Path, Path]:
    """The ONNX file and the engine of a tiny network."""
    if find_gpu() is None:
        pytest.skip("no CUDA GPU")
    model = write_onnx(tmp_path / "model.onnx")
    try:
        find_tensorrt()
        built = build_engine(model, tmp_path / "engines", EngineOptions(batch=BatchProfile(2, 4, 8)))
    except (MissingExtra, OptionError) as error:  # TensorRT is not here, or not for this GPU
        pytest.skip(str(error))
    return model, built.file


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 2, 5, 8, 21])
def test_the_gpu_answers_as_onnx_runtime_on_the_cpu(real_engine: tuple[Path, Path], n: int) -> None:
    model, engine = real_engine
    with TensorRtBackend(engine, OPTIONS) as gpu, OnnxRuntimeBackend(model, BackendOptions("cpu")) as cpu:
        for seed in range(4):
            images = pictures(n, seed)
            np.testing.assert_allclose(gpu.infer(images), cpu.infer(images), rtol=1e-5)


@pytest.mark.gpu
def test_the_gpu_answers_several_threads(real_engine: tuple[Path, Path]) -> None:
    model, engine = real_engine
    batches = [pictures(1 + seed % 11, seed) for seed in range(100)]
    times = StageTimes()
    with OnnxRuntimeBackend(model, BackendOptions("cpu")) as cpu:
        expected = [cpu.infer(images) for images in batches]
    with TensorRtBackend(engine, OPTIONS) as gpu, ThreadPoolExecutor(4) as pool:
        for answers, each in zip(pool.map(lambda images: gpu.infer(images, times), batches), expected, strict=True):
            np.testing.assert_allclose(answers, each, rtol=1e-5)
    assert list(times.summaries()) == ["copy-in", "infer", "copy-out"]


@pytest.mark.gpu
def test_the_seam_copies_and_times_on_a_real_gpu() -> None:
    if find_gpu() is None:
        pytest.skip("no CUDA GPU")
    cuda = open_cuda()
    host, back = cuda.host_array((1 << 20,), np.uint8), cuda.host_array((1 << 20,), np.uint8)
    host[:] = np.frombuffer(os.urandom(1 << 20), np.uint8)
    memory = cuda.device_memory(1 << 20)
    first, last = cuda.event(), cuda.event()
    cuda.record(first)
    cuda.copy_in(memory, host)
    graph = cuda.capture(lambda: cuda.copy_out(back, memory))
    assert graph is not None or type(cuda).__name__ == "_PyCuda"
    if graph is None:
        cuda.copy_out(back, memory)
    else:
        cuda.launch(graph)
    cuda.record(last)
    cuda.synchronise()
    assert np.array_equal(host, back)
    assert 0 < cuda.elapsed_ms(first, last) < 1000
    cuda.close()
