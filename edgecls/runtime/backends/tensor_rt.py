"""TensorRT as a backend: an engine that `edgecls engine` built on this machine, by TensorRT 10.3 and above or RTX."""

from __future__ import annotations

import hashlib
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import MissingExtra, RunError
from edgecls.images import Pixels
from edgecls.manifest import Precision
from edgecls.runtime.backends.cuda import Cuda, Gpu, find_gpu, open_cuda
from edgecls.runtime.backends.engine_file import EngineRecord, TensorRT, find_tensorrt, logger_of
from edgecls.runtime.backends.protocol import Backend, BackendOptions, check_signature, closed
from edgecls.runtime.stages import Stage, StageTimes

_AMPERE: Final = (8, 0)
_N_SLOTS: Final = 2  # one is on the GPU while the next batch is copied into the other
_MAX_SIZES: Final = 8  # batch sizes with an execution context and a graph of their own; a folder needs two
_TIMED: Final[tuple[Stage, ...]] = ("copy-in", "infer", "copy-out")
_REBUILD: Final = "build it again on this machine with: edgecls engine RUN"


def fits(record: EngineRecord, tensorrt: TensorRT, gpu: Gpu | None) -> str:
    """Why this machine cannot load an engine; empty where it can."""
    here = f"{platform.system()}-{platform.machine()}".lower()
    if (record.flavour, record.tensorrt) != (tensorrt.flavour, tensorrt.version):
        return f"built by {TensorRT(None, record.flavour, record.tensorrt)}, and here is {tensorrt}"
    if record.platform != here:
        return f"built on {record.platform}, and this is {here}"
    if gpu is None:
        return "no CUDA GPU was found here"
    if record.hardware_compatible:
        able = gpu.compute_capability >= _AMPERE
    else:
        # TensorRT for RTX compiles for the very GPU when it loads; the other one has chosen its kernels for one model
        same_model = tensorrt.is_rtx or record.gpu == gpu.name
        able = record.compute_capability == gpu.compute_capability and same_model
    major, minor = gpu.compute_capability
    return "" if able else f"built for {record.runs_on}, and here is {gpu.name}, compute capability {major}.{minor}"


def find_engine(folder: Path, precision: Precision) -> Path | None:
    """The newest engine in `folder` of this precision that this machine can load, if there is one."""
    records: dict[Path, EngineRecord] = {}
    for file in sorted(folder.glob("*.engine")):
        with suppress(RunError):  # one that has no record is of no use, and no reason to miss the others
            records[file] = EngineRecord.read(file)
    records = {file: record for file, record in records.items() if record.precision == precision}
    if not records:
        return None
    try:
        tensorrt, gpu = find_tensorrt(), find_gpu()
    except MissingExtra:
        return None
    fitting = [file for file, record in records.items() if not fits(record, tensorrt, gpu)]
    return max(fitting, key=lambda file: (records[file].created, file.stat().st_mtime_ns), default=None)


class TensorRtBackend(Backend):
    """An engine on a GPU, whose memory and every call belong to one thread; any thread may call `infer`."""

    n_lanes = 1

    def __init__(self, engine: Path, options: BackendOptions) -> None:
        """Open an engine, or raise what `open_engine` does. (The options are for CPUs and change nothing here.)"""
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="tensorrt")
        try:
            self._engine = self._owner.submit(open_engine, engine).result()
        except BaseException:
            self._owner.shutdown()
            raise
        self.manifest = self._engine.record.manifest
        self.name = f"{self._engine.record.flavour}-{self._engine.record.tensorrt}"
        self._batch = self._engine.record.batch
        self._free = list(self._engine.slots)
        self._changed = threading.Condition()
        self._closed = False

    def infer(self, images: Pixels, times: StageTimes | None = None) -> NDArray[np.float32]:
        expected = (*self.manifest.preprocessing.size_hw, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected:  # NumPy would fit it in silently
            raise RunError(f"{self.name}: images are {images.dtype} {images.shape}, expected uint8 (n, *{expected})")
        answers = np.empty((len(images), len(self.manifest.labels)), np.float32)
        for start in range(0, len(images), self._batch.max):
            part = slice(start, start + self._batch.max)
            self._infer(images[part], answers[part], times)
        return answers

    def _infer(self, images: Pixels, answers: NDArray[np.float32], times: StageTimes | None) -> None:
        n = len(images)
        with self._slot() as slot:
            slot.images[:n] = images
            # the engine takes no batch below its smallest: what it answers for whatever fills it up is left behind
            seconds = self._owner.submit(self._engine.run, slot, max(n, self._batch.min)).result()
            answers[:] = slot.logits[:n]
        if times is not None:
            for stage, each in zip(_TIMED, seconds, strict=True):
                times.add(stage, each, n)

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise closed()
            slot = self._free.pop()
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            # whoever is copying to or from page-locked memory would otherwise lose it under his hands
            self._changed.wait_for(lambda: len(self._free) == _N_SLOTS)
        self._owner.submit(self._engine.close).result()
        self._owner.shutdown()


@dataclass
class _Slot:
    """Page-locked memory for one batch: images (max, h, w, 3) uint8, logits (max, n_classes) float32."""

    images: Pixels
    logits: NDArray[np.float32]


@dataclass
class _Size:
    """What is kept for a batch size: an execution context, and a graph of its work from the second run on."""

    context: Any
    has_run: bool = False
    graph: Any = None


def open_engine(file: Path) -> Engine:
    """An engine with its record beside it, which belongs to this thread.

    Raises:
        MissingExtra: TensorRT or a binding to CUDA is not installed.
        OptionError: there is no GPU that can be used.
        RunError: the engine has no record, is not what the record says, or is not one for this machine.
    """
    record = EngineRecord.read(file)
    tensorrt = find_tensorrt()
    try:
        plan = file.read_bytes()
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror}); {_REBUILD}") from error
    if hashlib.sha256(plan).hexdigest() != record.engine_sha256:
        raise RunError(f"{file}: not the bytes that its record was written for (sha256 differs); {_REBUILD}")
    # before anything else is asked of the GPU: where there is none, this says why
    engine = Engine(file, record, tensorrt, open_cuda())
    try:
        reason = fits(record, tensorrt, find_gpu())
        if reason:
            raise RunError(f"{file}: {reason}; an engine runs only on what it was built for: {_REBUILD}")
        engine.load(plan)
    except BaseException:
        engine.close()
        raise
    return engine


class Engine:
    """A loaded engine with its memory; every method is called in the owner's thread."""

    def __init__(self, file: Path, record: EngineRecord, tensorrt: TensorRT, cuda: Cuda) -> None:
        self._file, self.record, self._tensorrt, self._cuda = file, record, tensorrt, cuda
        self._trt = tensorrt.module
        self._runtime: Any = None
        self._engine: Any = None
        self.slots: tuple[_Slot, ...] = ()
        self._sizes: OrderedDict[int, _Size] = OrderedDict()
        # TensorRT for RTX captures by itself, when it has compiled kernels for the size: ours would keep the first ones
        self._captures = not tensorrt.is_rtx
        self._profiler: Any = None

    def load(self, plan: bytes) -> None:
        """Make the engine ready and take all memory that it will need."""
        self._said: list[str] = logger_of(self._trt).said
        self._said.clear()
        try:
            self._runtime = self._trt.Runtime(logger_of(self._trt))
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        except Exception as error:  # the binding's word for "it returned nothing"
            raise self._failed("cannot load this engine", str(error)) from error
        if self._engine is None:
            raise self._failed("cannot load this engine")
        self._check_signature()
        cuda, batch = self._cuda, self.record.batch
        image, answer = (*self.record.manifest.preprocessing.size_hw, 3), (len(self.record.manifest.labels),)
        self.slots = tuple(
            _Slot(cuda.host_array((batch.max, *image), np.uint8), cuda.host_array((batch.max, *answer), np.float32))
            for _ in range(_N_SLOTS)
        )
        self._images = cuda.device_memory(self.slots[0].images.nbytes)
        self._logits = cuda.device_memory(self.slots[0].logits.nbytes)
        # activations: one block for the contexts of all sizes, which never run at the same time
        self._scratch_bytes = max(int(self._engine.device_memory_size_v2), 1)
        self._scratch = cuda.device_memory(self._scratch_bytes)
        self._events = [cuda.event() for _ in range(len(_TIMED) + 1)]

    def run(self, slot: _Slot, n: int) -> list[float]:
        """The first `n` images of a slot to its first `n` logits; seconds that each of `_TIMED` took.

        Raises:
            RunError: TensorRT or CUDA failed.
        """
        cuda, events = self._cuda, self._events
        self._said.clear()
        try:
            size = self._ready(n)
            cuda.record(events[0])
            cuda.copy_in(self._images, slot.images[:n])
            cuda.record(events[1])
            if size.graph is None:
                self._enqueue(size.context)
            else:
                cuda.launch(size.graph)
            cuda.record(events[2])
            cuda.copy_out(slot.logits[:n], self._logits)
            cuda.record(events[3])
            cuda.synchronise()
            size.has_run = True
            return [cuda.elapsed_ms(*pair) / 1000 for pair in pairwise(events)]
        except RunError as error:
            if not self._said or self._said[0] in str(error):
                raise
            raise self._failed(f"failed: {error}") from error  # CUDA's error, and what TensorRT said before it

    def profiled(self, images: Pixels, profiler: Any) -> Callable[[], None]:
        """A call that infers these images, in no graph, and tells TensorRT's profiler how long each layer took."""
        self._profiler, n = profiler, len(images)  # kept here: a context does not
        self.slots[0].images[:n] = images
        self._cuda.copy_in(self._images, self.slots[0].images[:n])

        def call() -> None:
            self._enqueue(self._ready(n).context)
            self._cuda.synchronise()

        return call

    def _ready(self, n: int) -> _Size:
        """The context of a batch size, and from its second run on its graph, before the clock starts.

        Each size has a context of its own, since a graph keeps addresses in its context, which another size changes.
        """
        size = self._sizes.get(n)
        if size is None:
            if len(self._sizes) >= _MAX_SIZES:
                self._forget_oldest()
            size = self._sizes[n] = _Size(self._context(n))
        elif size.has_run and size.graph is None and self._captures:
            size.graph = self._capture(size.context)
        self._sizes.move_to_end(n)
        return size

    def _forget_oldest(self) -> None:
        _, size = self._sizes.popitem(last=False)
        if size.graph is not None:
            with suppress(RunError):
                self._cuda.release(size.graph)

    def _context(self, n: int) -> Any:
        trt, engine = self._trt, self._engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._tensorrt.is_rtx:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            if self._profiler is None:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise self._failed(f"cannot make an execution context for {n} images")
        if self._profiler is not None:
            context.profiler = self._profiler
        context.set_device_memory(self._scratch, self._scratch_bytes)
        shape = (n, *self.record.manifest.preprocessing.size_hw, 3)
        if not (
            context.set_input_shape(self._input, shape)
            and context.set_tensor_address(self._input, self._images)
            and context.set_tensor_address(self._output, self._logits)
        ):
            raise self._failed(f"does not take {n} images (batch {self.record.batch})")
        return context

    def _capture(self, context: Any) -> Any | None:
        try:
            graph = self._cuda.capture(lambda: self._enqueue(context))
        except RunError:  # some layers cannot be captured: the answers are the same without, a little later
            graph = None
            self._said.clear()
        self._captures = graph is not None
        return graph

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise self._failed("could not run this engine")

    def _check_signature(self) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if (len(inputs), len(outputs)) != (1, 1) or engine.get_tensor_dtype(*outputs) != self._trt.DataType.FLOAT:
            raise RunError(f"{self._file}: {inputs} -> {outputs}, expected images -> float32 logits; {_REBUILD}")
        (self._input,), (self._output,) = inputs, outputs
        dtype = engine.get_tensor_dtype(self._input).name.lower()
        shape, answers = (tuple(engine.get_tensor_shape(name)) for name in (self._input, self._output))
        check_signature(str(self._file), self.record.manifest, dtype, list(shape[1:]), answers[-1])

    def _failed(self, what: str, *reasons: str) -> RunError:
        said = "".join(f"\n  {reason}" for reason in (*self._said, *reasons)) or " TensorRT gave no reason."
        return RunError(
            f"{self._file}: {self._tensorrt} {what}:{said}\n"
            "Where it ran out of memory: take a smaller --batch, or close other programs that use the GPU; "
            f"otherwise {_REBUILD}"
        )

    def close(self) -> None:
        """Give everything back: TensorRT's objects before the memory and the context that they live in."""
        while self._sizes:
            self._forget_oldest()
        self._engine = self._runtime = None
        self._events = []
        self._cuda.close()
