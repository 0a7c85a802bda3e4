"""Stand-ins for TensorRT: they write down what a build asks for, and run an engine on the GPU of `cuda.py`."""

from __future__ import annotations

import enum
import hashlib
import platform
import sys
from collections.abc import Callable
from functools import partial
from operator import setitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest

from edgecls.images import Pixels
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import write_json
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.backends.cuda import Gpu
from edgecls.runtime.backends.engine_file import EngineRecord, sidecar
from tests.fakes.cuda import ORIN, FakePyCuda, FakeRuntime, Machine

Install = Callable[..., Machine]

HERE: Final = f"{platform.system()}-{platform.machine()}".lower()
PLAN: Final = b"an engine"
RECORD: Final = EngineRecord(
    flavour="tensorrt", tensorrt="10.3.0", platform=HERE, gpu=ORIN.name, compute_capability=ORIN.compute_capability,
    batch=BatchProfile(2, 4, 8), optimization_level=3, dla_core=None, hardware_compatible=False, onnx_sha256="0" * 64,
    engine_sha256=hashlib.sha256(PLAN).hexdigest(),
    manifest=Manifest(("a", "b", "c"), Preprocessing(size_hw=(8, 8)), model="tiny", precision="int8"),
)  # fmt: skip


def write_engine(path: Path, record: EngineRecord = RECORD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PLAN)
    write_json(sidecar(path), record.to_json())
    return path


def means(images: Pixels) -> np.ndarray[Any, Any]:
    """What the engine answers: the mean of each channel."""
    return np.asarray(images.astype(np.float32).mean(axis=(1, 2)))


class Flag(enum.IntEnum):
    STRONGLY_TYPED = 1
    GPU_FALLBACK = 3


class FakeTensorRT:
    """Stands for the module `tensorrt` 11: what all of them have.

    Attributes:
        machine: whose GPU runs the engine.
        seen: what was asked of the builder.
        batch: of the engine that it loads.
        answers: the type of its logits.
        layers: of the engine, with the milliseconds that a profiler is told.
    """

    __version__ = "11.4.1"
    DataType = enum.Enum("DataType", {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16"})
    TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    ExecutionContextAllocationStrategy = enum.Enum("Strategy", ["STATIC", "USER_MANAGED"])
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self, *, n_dla_cores: int = 0, refuses_cache: bytes = b"", build_fails: str = "") -> None:
        self.n_dla_cores, self.refuses_cache, self.build_fails = n_dla_cores, refuses_cache, build_fails
        self.machine = Machine()
        self.seen: dict[str, Any] = {}
        self.contexts = 0
        self.runs_fail = self.loads_nothing = False
        self.batch, self.answers = RECORD.batch, self.DataType.FLOAT
        self.layers = [("conv1 + relu", 0.5), ("fc", 0.25), ("conv1 + relu", 0.5)]

    def Builder(self, logger: Any) -> Any:
        images = SimpleNamespace(name="images", dtype=self.DataType.UINT8, shape=(-1, 8, 8, 3))
        logits = SimpleNamespace(name="logits", dtype=self.DataType.FLOAT, shape=(-1, 3))
        network = SimpleNamespace(num_inputs=1, get_input=lambda index: images, get_output=lambda index: logits)

        def create_network(flags: int) -> Any:
            self.seen["network flags"] = flags
            return network

        return SimpleNamespace(
            num_DLA_cores=self.n_dla_cores,
            create_network=create_network,
            create_builder_config=partial(BuilderConfig, self),
            create_optimization_profile=Profile,
            build_serialized_network=partial(self._build, logger),
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(
            num_errors=0, set_flag=partial(setitem, self.seen, "parser flag"), parse=lambda model: True
        )

    def _build(self, logger: Any, network: Any, config: BuilderConfig) -> bytes | None:
        if not self.build_fails:
            return PLAN
        logger.log(self.ILogger.WARNING, "not worth a word")
        logger.log(self.ILogger.ERROR, self.build_fails)
        return None

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=partial(self._deserialize, logger))

    def _deserialize(self, logger: Any, plan: bytes) -> FakeEngine | None:
        self.machine.called("deserialize")
        if not self.loads_nothing:
            return FakeEngine(self, logger)
        logger.log(self.ILogger.ERROR, "the plan is of another serialization version")
        return None


class FakeTensorRT10(FakeTensorRT):
    """Adds what `tensorrt` 10.3 has on a Jetson."""

    __version__ = "10.3.0"
    NetworkDefinitionCreationFlag = BuilderFlag = Flag
    OnnxParserFlag = SimpleNamespace(ADJUST_FOR_DLA="adjust for DLA")
    DeviceType = SimpleNamespace(DLA="DLA")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="Ampere and above")


class FakeTensorRTRTX(FakeTensorRT):
    """Adds what TensorRT for RTX has where it runs engines."""

    __version__ = "1.7.1"
    CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])


class Profile:
    def set_shape(self, *shapes: Any) -> None:
        self.shapes = shapes


class BuilderConfig:
    """Its attributes, and what its methods are given, are `seen`."""

    def __init__(self, trt: FakeTensorRT) -> None:
        vars(self)["trt"] = trt

    def __setattr__(self, name: str, value: Any) -> None:
        self.trt.seen[name] = value

    set_memory_pool_limit = __setattr__

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profile = profile.shapes
        return 0

    def set_flag(self, flag: Flag) -> None:
        self.trt.seen.setdefault("flags", []).append(flag)

    def create_timing_cache(self, content: bytes) -> Any:
        self.cache = content
        return SimpleNamespace(content=content, serialize=lambda: content + b"+")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return not ignore_mismatch and (cache.content == b"" or cache.content != self.trt.refuses_cache)


class RuntimeConfig:
    cuda_graph_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class FakeEngine:
    num_io_tensors = 2
    device_memory_size_v2 = 1000
    create_runtime_config = RuntimeConfig

    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name == "images" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType.UINT8 if name == "images" else self.trt.answers

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 8, 8, 3) if name == "images" else (-1, 3)

    def create_execution_context(self, how: Any) -> FakeContext:
        if isinstance(how, RuntimeConfig):
            assert how.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
            how = how.strategy
        assert how.name == "USER_MANAGED"
        self.trt.contexts += 1
        return FakeContext(self)


class FakeContext:
    """The mean of each channel, on the GPU of the machine."""

    profiler: Any = None

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
        self.shape, batch = shape, self.engine.trt.batch
        return name == "images" and batch.min <= shape[0] <= batch.max

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        machine, trt = self.machine, self.engine.trt
        machine.called("execute")
        assert stream == 77
        # what TensorRT does at the first run of a size cannot be captured
        capturable = machine.in_graph and self.has_run
        if trt.runs_fail or (machine.captured is not None and not capturable):
            self.engine.logger.log(trt.ILogger.ERROR, "operation not permitted when stream is capturing")
            return False
        images = machine.array(self.addresses["images"], self.shape, np.uint8)
        logits = machine.array(self.addresses["logits"], (self.shape[0], 3), np.float32)
        machine.enqueue(lambda: np.copyto(logits, means(images)), ms=5)
        self.has_run = True
        for name, ms in trt.layers if self.profiler else ():
            self.profiler.report_layer_time(name, ms)
        return True


def install(
    monkeypatch: pytest.MonkeyPatch, binding: str = "cuda-bindings", trt: FakeTensorRT | None = None, gpu: Gpu = ORIN
) -> Machine:
    """A machine with this GPU, one binding to CUDA, or none, and this TensorRT, by default that of a Jetson."""
    machine, trt = Machine(gpu), trt or FakeTensorRT10()
    machine.trt, trt.machine = trt, machine
    is_rtx = isinstance(trt, FakeTensorRTRTX)
    for name, module in {
        "cuda.bindings.runtime": FakeRuntime(machine) if binding == "cuda-bindings" else None,
        "pycuda.driver": FakePyCuda(machine) if binding == "PyCUDA" else None,
        "tensorrt": None if is_rtx else trt,
        "tensorrt_rtx": trt if is_rtx else None,
        "tensorrt_rtx_bindings": None,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    return machine
