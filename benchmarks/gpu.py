"""What a GPU makes of edgecls: a training step, inference by every engine that is here, and the copies to and from it.

    python benchmarks/gpu.py

One table; what this machine lacks is a row that says so. Networks have random weights and are made here: speed does
not depend on what they have learnt. Inference goes from images in memory to logits in memory, copies included, through
the backends that `edgecls predict` uses. Contenders of a group take turns in rounds, so that a GPU which grows warm or
a busy machine hurts all alike; a figure is the median of the rounds, the range beside it their lowest and highest.
Needs no network and no TensorRT; runs without a GPU too, and then has only the rows of the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare GPU machine has a checkout, not the package

from edgecls.errors import EdgeclsError
from edgecls.images import Pixels
from edgecls.manifest import Manifest
from edgecls.runtime.backends.cuda import Cuda, find_gpu, open_cuda
from edgecls.runtime.backends.protocol import Backend, BackendOptions

COLUMNS = ("group", "what", "median", "range", "note")
COPY_BYTES = 64 << 20
N_CLASSES = 1000
INFERRED = ("mobilenet_v2", 224)
TRAINED = (("mobilenet_v2", 224, 128), ("resnet9", 32, 512))


@dataclass(frozen=True)
class Settings:
    seconds: float
    rounds: int
    batches: tuple[int, ...]
    optimization_level: int


@dataclass
class Contender:
    """Attributes:
    run: does it once, and has finished when it returns.
    amount: of what the unit counts, in one run.
    """

    group: str
    what: str
    run: Callable[[], object]
    amount: float
    unit: str = "img/s"
    note: str = ""


class Table:
    def __init__(self, settings: Settings) -> None:
        self.rows: list[tuple[str, str, str, str, str]] = []
        self._settings = settings

    def missing(self, group: str, what: str, why: object) -> None:
        lines = [line for line in str(why).splitlines() if line.strip()] or [type(why).__name__]
        self.rows.append((group, what, "-", "", lines[0].strip()[:200]))

    @contextmanager
    def attempt(self, group: str, what: str) -> Iterator[None]:
        """Whatever goes wrong in here is a row: a benchmark of five engines must not end with the first one's."""
        try:
            yield
        except Exception as error:
            self.missing(group, what, error)

    def measure(self, contenders: list[Contender]) -> None:
        """Let them take turns, and add their rows."""
        ready = []
        for each in contenders:
            with self.attempt(each.group, each.what):
                for _ in range(3):  # compiles, captures, allocates
                    each.run()
                ready.append(each)
        speeds: dict[int, list[float]] = {index: [] for index in range(len(ready))}
        for _ in range(self._settings.rounds):
            for index, each in enumerate(ready):
                n, started = 0, time.perf_counter()
                while time.perf_counter() - started < self._settings.seconds:
                    each.run()
                    n += 1
                speeds[index].append(n * each.amount / (time.perf_counter() - started))
        for each, found in zip(ready, speeds.values(), strict=True):
            median = f"{_short(statistics.median(found))} {each.unit}"
            self.rows.append((each.group, each.what, median, f"{_short(min(found))}-{_short(max(found))}", each.note))

    def show(self) -> None:
        try:
            from rich.console import Console
            from rich.markup import escape
            from rich.table import Table as RichTable
        except ImportError:
            for row in (COLUMNS, *self.rows):
                print(" | ".join(row))
            return
        table = RichTable(*COLUMNS, title="edgecls on this GPU")
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row))
        Console(width=None if sys.stdout.isatty() else 170).print(table)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


# Training


def training_steps(table: Table) -> None:
    import torch

    from edgecls.train.networks.models import build
    from edgecls.train.recipe_options import NetworkOptions

    for model, size, batch in TRAINED:
        group = f"train {model} {size} px"
        if not torch.cuda.is_available():
            table.missing(group, "fp32, bf16", "torch sees no CUDA GPU")
            continue
        contenders = []
        for precision in ("fp32", "bf16 autocast"):
            with table.attempt(group, precision):
                torch.manual_seed(0)
                classifier, _ = build(NetworkOptions(model, "none", width=64), N_CLASSES, (size, size))
                network = classifier.cuda().to(memory_format=torch.channels_last).train()
                optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
                images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device="cuda")
                labels = torch.randint(0, N_CLASSES, (batch,), device="cuda")
                step = partial(training_step, torch, network, optimizer, images, labels, precision != "fp32")
                tf32 = precision == "fp32" and torch.backends.cudnn.allow_tf32
                note = f"channels-last, batch {batch}{', convolutions in TF32' if tf32 else ''}"
                contenders.append(Contender(group, precision, step, batch, note=note))
        table.measure(contenders)
        torch.cuda.empty_cache()


def training_step(torch: Any, network: Any, optimizer: Any, images: Any, labels: Any, bf16: bool) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    torch.cuda.synchronize()


# Inference


def write_models(folder: Path, table: Table) -> tuple[Any, dict[str, Path]]:
    """The network, and its files by precision, as `edgecls export --fp16 --int8` writes them."""
    import torch

    from edgecls.export.onnx import onnx_from_checkpoint
    from edgecls.train.networks.models import build
    from edgecls.train.recipe_options import NetworkOptions

    model, size = INFERRED
    torch.manual_seed(0)
    classifier, preprocessing = build(NetworkOptions(model, "none"), N_CLASSES, (size, size))
    settle(torch, classifier, size)
    labels = tuple(f"class {index}" for index in range(N_CLASSES))
    manifest = Manifest(labels, replace(preprocessing, crop_fraction=1.0), model)
    files = {"fp32": folder / "model.onnx"}
    onnx_from_checkpoint(classifier, manifest, files["fp32"])
    with table.attempt("write model", "fp16"):
        from edgecls.export.graphs.fp16 import fp16_from_onnx

        fp16_from_onnx(files["fp32"], replace(manifest, precision="fp16"), folder / "model.fp16.onnx")
        files["fp16"] = folder / "model.fp16.onnx"
    with table.attempt("write model", "int8"):
        files |= write_int8_models(files["fp32"], manifest, folder)
    return classifier, files


def settle(torch: Any, classifier: Any, size: int) -> None:
    """Let batch norm see data: with its initial statistics values vanish, and numbers near zero are slow on a CPU."""
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    classifier.train()
    with torch.no_grad():
        for seed in range(3):
            classifier(torch.from_numpy(pictures(8, size, seed)))
    classifier.eval()


def write_int8_models(fp32: Path, manifest: Manifest, folder: Path) -> dict[str, Path]:
    import cv2
    import onnx

    from edgecls.calibration.ranges import calibrate
    from edgecls.calibration.sample import CalibrationImage, CalibrationSet
    from edgecls.export.graphs.int8 import QUANTIZED_OPS, int8_of

    images = []
    for index, picture in enumerate(pictures(8, manifest.preprocessing.size_hw[0])):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), picture)
        images.append(CalibrationImage(str(path), ""))
    graph = onnx.load(fp32)
    chosen = CalibrationSet(tuple(images), "drawn", len(images))
    calibration = calibrate(graph, chosen, manifest.preprocessing, QUANTIZED_OPS)
    files = {"int8": folder / "model.int8.onnx", "int8-cpu": folder / "model.int8-cpu.onnx"}
    onnx.save(int8_of(graph, calibration, "int8", replace(manifest, precision="int8")), files["int8"])
    onnx.save(int8_of(graph, calibration, "int8-cpu", replace(manifest, precision="int8-cpu")), files["int8-cpu"])
    return files


def pictures(n: int, size: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def open_backends(files: dict[str, Path], table: Table, settings: Settings, stack: ExitStack) -> list[tuple[str, Any]]:
    """What can run the files here: (name, backend); what cannot becomes rows."""
    from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend

    wanted = [("cpu", "fp32"), ("cpu", "int8-cpu"), ("cuda", "fp32"), ("cuda", "fp16")]
    opened: list[tuple[str, Any]] = []
    for device, precision in wanted:
        name = f"ONNX Runtime {device} {precision}"
        if precision in files:
            with table.attempt("infer", name):
                backend = OnnxRuntimeBackend(files[precision], BackendOptions(device))  # type: ignore[arg-type]
                opened.append((name, stack.enter_context(backend)))
    for precision in ("fp32", "fp16", "int8"):
        if precision in files:
            with table.attempt("infer", f"TensorRT {precision}"):
                opened.append(build_and_open(files[precision], precision, table, settings, stack))
    return opened


def build_and_open(
    file: Path, precision: str, table: Table, settings: Settings, stack: ExitStack
) -> tuple[str, Backend]:
    from edgecls.errors import MissingExtra
    from edgecls.export.engine import build_engine
    from edgecls.export.options import EngineOptions
    from edgecls.runtime.backends.batch_profile import BatchProfile
    from edgecls.runtime.backends.engine_file import find_tensorrt
    from edgecls.runtime.backends.tensor_rt import TensorRtBackend

    try:
        tensorrt = find_tensorrt()
    except MissingExtra:
        raise RuntimeError("no TensorRT here") from None
    if find_gpu() is None:
        raise RuntimeError(f"{tensorrt} is here, but no CUDA GPU")
    largest = max(settings.batches)
    options = EngineOptions(BatchProfile(1, min(16, largest), largest), optimization_level=settings.optimization_level)
    built = build_engine(file, file.parent / "engines", options)
    table.rows.append(
        (f"build {precision} engine", str(tensorrt), f"{built.seconds:.1f} s", "", f"{built.bytes / 1e6:.1f} MB")
    )
    started = time.perf_counter()
    backend = stack.enter_context(TensorRtBackend(built.file, BackendOptions("tensorrt")))
    opened = f"{time.perf_counter() - started:.1f} s"
    table.rows.append((f"open {precision} engine", str(tensorrt), opened, "", ""))
    return f"{tensorrt} {precision}", backend


def inference(table: Table, settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        classifier, files = write_models(Path(folder), table)
        backends = open_backends(files, table, settings, stack)
        model, size = INFERRED
        reference = next((backend for name, backend in backends if name.endswith("cpu fp32")), None)
        for batch in settings.batches:
            group = f"infer {model} {size} px, batch {batch}"
            images = pictures(batch, size)
            contenders = []
            with table.attempt(group, "torch cuda fp16"):
                contenders.append(torch_contender(group, classifier, images))
            for name, backend in backends:
                with table.attempt(group, name):
                    note = "" if backend is reference else difference(backend, reference, images)
                    contenders.append(Contender(group, name, partial(backend.infer, images), batch, note=note))
                    if name.startswith("TensorRT"):
                        pool = stack.enter_context(ThreadPoolExecutor(2))
                        both = partial(infer_twice, pool, backend, images)
                        contenders.append(Contender(group, f"{name}, two callers", both, 2 * batch))
            table.measure(contenders)


def infer_twice(pool: ThreadPoolExecutor, backend: Backend, images: Pixels) -> None:
    """What `predict` does: one batch is copied in while another is on the GPU."""
    for future in [pool.submit(backend.infer, images) for _ in range(2)]:
        future.result()


def difference(backend: Backend, reference: Backend | None, images: Pixels) -> str:
    if reference is None:
        return ""
    expected = reference.infer(images)
    off = float(np.abs(backend.infer(images) - expected).max() / np.abs(expected).max())
    return f"logits off by {off:.1e} of the largest"


def torch_contender(group: str, classifier: Any, images: Pixels) -> Contender:
    import copy

    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA GPU")
    network = copy.deepcopy(classifier).cuda().half().eval().to(memory_format=torch.channels_last)
    pinned = torch.from_numpy(images).pin_memory()

    def run() -> None:
        with torch.inference_mode():
            network(pinned.cuda(non_blocking=True)).cpu()

    return Contender(group, "torch cuda fp16", run, len(images), note="channels-last, page-locked; for reference")


# Copies


def copies(table: Table) -> None:
    group = f"copy {COPY_BYTES >> 20} MiB"
    try:
        cuda = open_cuda()
    except EdgeclsError as error:
        table.missing(group, "page-locked to the GPU and back", error)
        return
    try:
        host = cuda.host_array((COPY_BYTES,), np.uint8)
        memory = cuda.device_memory(COPY_BYTES)
        source = np.ones(COPY_BYTES, np.uint8)
        host[:] = source
        gigabytes = COPY_BYTES / 1e9
        note = type(cuda).__name__.strip("_")
        table.measure(
            [
                Contender(group, "page-locked to GPU", partial(copy_in, cuda, memory, host), gigabytes, "GB/s", note),
                Contender(group, "GPU to page-locked", partial(copy_out, cuda, memory, host), gigabytes, "GB/s", note),
                Contender(group, "memory to page-locked", partial(np.copyto, host, source), gigabytes, "GB/s", "NumPy"),
            ]
        )
    finally:
        cuda.close()


def copy_in(cuda: Cuda, memory: int, host: Any) -> None:
    cuda.copy_in(memory, host)
    cuda.synchronise()


def copy_out(cuda: Cuda, memory: int, host: Any) -> None:
    cuda.copy_out(host, memory)
    cuda.synchronise()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,16,64", help="sizes for inference")
    parser.add_argument("--optimization-level", type=int, default=3, help="of TensorRT, 0 to 5")
    arguments = parser.parse_args()
    batches = tuple(int(size) for size in arguments.batches.split(","))
    settings = Settings(arguments.seconds, arguments.rounds, batches, arguments.optimization_level)
    table = Table(settings)
    gpu = find_gpu()
    table.rows.append(("GPU", gpu.name if gpu else "none found", "", "", _versions()))
    with table.attempt("copy", "page-locked"):
        copies(table)
    with table.attempt("train", "all"):
        training_steps(table)
    with table.attempt("infer", "all"):
        inference(table, settings)
    table.show()


def _versions() -> str:
    from importlib import metadata

    found = []
    for name in ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    main()
