"""TensorRT as a backend: by stand-ins that compute over real memory, and by the real ones where there is a GPU."""

from __future__ import annotations

import os
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
from edgecls.manifest import Preprocessing
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.backends.cuda import _CudaBindings, find_gpu, open_cuda
from edgecls.runtime.backends.engine_file import TensorRT, find_tensorrt, sidecar
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import Backend, BackendOptions
from edgecls.runtime.backends.tensor_rt import TensorRtBackend, find_engine, fits
from edgecls.runtime.stages import StageTimes
from tests.export.test_engine import write_onnx
from tests.fakes.cuda import ORIN, FakeRuntime, Machine
from tests.fakes.tensorrt import HERE, PLAN, RECORD, FakeTensorRTRTX, Install, means, write_engine

OPTIONS = BackendOptions("tensorrt")


def pictures(n: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


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
        assert machine.trt.contexts == 3
    assert machine.leftovers() == []


def test_a_first_run_that_fails_does_not_cost_the_graph(install: Install, engine: Path) -> None:
    machine = install()
    with TensorRtBackend(engine, OPTIONS) as backend:
        machine.fails["cudaMemcpyAsync"] = "cudaErrorIllegalAddress"
        with pytest.raises(RunError, match="copying to the GPU"):
            backend.infer(pictures(4))
        machine.fails.clear()
        for seed in range(3):
            np.testing.assert_array_equal(backend.infer(pictures(4, seed)), means(pictures(4, seed)))
        assert machine.log.count("cudaGraphLaunch") == 2


def test_no_more_than_eight_batch_sizes_are_kept(install: Install, tmp_path: Path) -> None:
    record = replace(RECORD, batch=BatchProfile(1, 8, 16))
    machine = install()
    machine.trt.batch = record.batch
    with TensorRtBackend(write_engine(tmp_path / "a.engine", record), OPTIONS) as backend:
        for n in (*range(1, 11), *range(10, 0, -1)):
            for _ in range(2):
                np.testing.assert_array_equal(backend.infer(pictures(n, n)), means(pictures(n, n)))
        assert len(machine.graphs) == 8
        assert machine.trt.contexts == 12  # 1 and 2 had been forgotten
    assert machine.leftovers() == []


@pytest.mark.parametrize("where", ["TensorRT refuses", "the capture is spoilt", "it cannot be made launchable"])
def test_without_graphs_the_answers_are_the_same(install: Install, engine: Path, where: str) -> None:
    machine = install()
    machine.in_graph = where != "TensorRT refuses"
    if where != "TensorRT refuses":
        call = "cudaStreamEndCapture" if "spoilt" in where else "cudaGraphInstantiate"
        machine.fails[call] = "cudaErrorStreamCaptureInvalidated"
    with TensorRtBackend(engine, OPTIONS) as backend:
        for seed in range(5):
            for n in (3, 8):
                np.testing.assert_array_equal(backend.infer(pictures(n, seed)), means(pictures(n, seed)))
    assert machine.log.count("cudaStreamBeginCapture") == 1
    assert "cudaGraphLaunch" not in machine.log
    assert machine.leftovers() == []


def test_tensorrt_for_rtx_captures_by_itself(install: Install, tmp_path: Path) -> None:
    machine = install(trt=FakeTensorRTRTX())
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
    machine.fails[call] = code
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
        machine.fails[call] = "cudaErrorIllegalAddress"
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
    machine.fails[call] = "out of memory"
    with pytest.raises(RunError, match=message):
        TensorRtBackend(engine, OPTIONS)
    assert machine.memory == {}
    assert "detach" in machine.log
    machine.fails.clear()
    with TensorRtBackend(engine, OPTIONS) as backend:
        machine.fails["cuMemcpyHtoDAsync"] = "invalid argument"
        with pytest.raises(RunError, match=r"copying to the GPU: cuMemcpyHtoDAsync \(invalid argument\); start again"):
            backend.infer(pictures(4))
        machine.fails.clear()
        np.testing.assert_array_equal(backend.infer(pictures(4)), means(pictures(4)))


def test_what_tensorrt_said_is_in_the_error(install: Install, engine: Path) -> None:
    machine = install()
    with TensorRtBackend(engine, OPTIONS) as backend:
        machine.trt.runs_fail = True
        with pytest.raises(RunError, match=r"TensorRT 10\.3\.0 could not run this engine:\n  operation not") as error:
            backend.infer(pictures(4))
        assert str(error.value).count("operation not permitted") == 1
        machine.trt.runs_fail = False
        np.testing.assert_array_equal(backend.infer(pictures(4)), means(pictures(4)))
    assert machine.leftovers() == []


def test_an_engine_that_tensorrt_does_not_load_is_an_error_with_its_reason(install: Install, engine: Path) -> None:
    machine = install()
    machine.trt.loads_nothing = True
    with pytest.raises(RunError, match=r"cannot load this engine:\n  the plan is of another .*\n.*edgecls engine RUN"):
        TensorRtBackend(engine, OPTIONS)
    assert machine.leftovers() == []


def test_an_engine_that_does_not_fit_its_manifest_is_refused(install: Install, tmp_path: Path) -> None:
    machine = install()
    wide = replace(RECORD, manifest=replace(RECORD.manifest, preprocessing=Preprocessing(size_hw=(8, 9))))
    with pytest.raises(RunError, match="the graph does not fit its manifest"):
        TensorRtBackend(write_engine(tmp_path / "a.engine", wide), OPTIONS)
    trt = install().trt
    trt.answers = trt.DataType.HALF
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
    machine.fails["cudaStreamCreateWithFlags"] = "cudaErrorMemoryAllocation"
    with pytest.raises(OptionError, match=r"no CUDA GPU .*cuda-bindings: cudaErrorMem.*nvidia-smi.*--device cpu"):
        TensorRtBackend(engine, OPTIONS)
    machine = install("PyCUDA")
    machine.fails["cuInit"] = "no CUDA-capable device is detected"
    with pytest.raises(OptionError, match=r"PyCUDA: cuInit \(no CUDA-capable device is detected\)"):
        TensorRtBackend(engine, OPTIONS)


def test_pycuda_is_taken_where_the_driver_is_too_old_for_cuda_bindings(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_new = Machine()
    too_new.fails["cudaStreamCreateWithFlags"] = "cudaErrorMemoryAllocation"
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
        trt.IExecutionContext: "set_device_memory set_input_shape set_tensor_address execute_async_v3 profiler",
        trt.IProfiler: "report_layer_time",
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
