"""From a folder of photos to labels: how close does `predict` come to what decoding and inference alone allow?

    EDGECLS_DATA=photos python benchmarks/photos_to_labels.py [--model RUN] [--photos 1000] [--rounds 5] [--small]

MobileNetV2 at 224 px, INT8, random weights (or the INT8 file of RUN), on the photos of EDGECLS_DATA, linked until
there are enough, files warm in the page cache; with --small at 64 px, on the 32-pixel JPEGs of CIFAR-10. In turns,
medians of the rounds:

* decoding alone: read, decode, resize and crop, on all cores; and on one, times the cores, since threads that decode
  small pictures wait for one another: the better counts;
* inference alone with each CPU backend: all cores on one batch, or a batch a core; the better counts;
* `predict` from the folder to a CSV;
* the usual script, PIL + torchvision's transforms + ONNX Runtime with its default options on the same INT8 file,
  batch 32: a plain loop, and a DataLoader with a worker a core that stays alive between rounds. Its own process,
  stopped while the others run. The file normalises inside, which the script need not do.

The bound is 1 / (1 / decoding + 1 / inference): decoding and inference want the same cores. Then `edgecls predict` in
a process of its own: CPU seconds and peak memory with all that start-up costs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from networks import (
    CACHE,
    EDGECLS,
    Worker,
    arguments_of,
    in_rounds,
    link,
    medians,
    mobilenet_run,
    photos,
    small_pictures,
    speed_line,
)

from edgecls import images
from edgecls.manifest import Preprocessing
from edgecls.prefetch import batches, n_cores, prefetch
from edgecls.runs import MODEL_FILES
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.open_vino import OpenVinoBackend
from edgecls.runtime.backends.protocol import Backend, BackendOptions
from edgecls.runtime.backends.selection import version_of
from edgecls.runtime.classifier import cpu_batch_size
from edgecls.runtime.options import ClassifierOptions, Device, PredictOptions, RowsOptions
from edgecls.runtime.predict import predict
from edgecls.runtime.stages import peak_memory_mb

NAMES: dict[Device, str] = {"cpu": "ONNX Runtime", "openvino": "OpenVINO"}
RIVAL_BATCH = 32


def decode_only(files: list[Path], preprocessing: Preprocessing, n_threads: int) -> float:
    """Files a second of all cores, from that of `n_threads`."""

    def load(batch: list[Path]) -> None:
        for file in batch:
            images.load(file, preprocessing)

    started = time.perf_counter()
    for _ in prefetch(
        load, batches(files, cpu_batch_size(preprocessing.size_hw)), n_threads=n_threads, ahead=2 * n_cores()
    ):
        pass
    return len(files) / (time.perf_counter() - started) * n_cores() / n_threads


def infer_only(backend: Backend, pixels: images.Pixels, n: int, size: int) -> float:
    """With every lane busy, batches of `size` of real photos, over and over until `n` are answered."""
    ready = list(np.split(pixels, range(size, len(pixels), size)))
    todo = list(islice(cycle(ready), -(-n // size)))
    with ThreadPoolExecutor(backend.n_lanes) as pool:
        started = time.perf_counter()
        for _ in pool.map(backend.infer, todo):
            pass
        return sum(map(len, todo)) / (time.perf_counter() - started)


def predict_folder(folder: Path, file: Path, device: Device, out: Path) -> float:
    options = PredictOptions(
        (folder,), (str(file),), classifier=ClassifierOptions(device=device), rows=RowsOptions(out=out)
    )
    return predict(options).images_per_second


def subprocess_cost(folder: Path, file: Path, device: Device, temporary: Path) -> tuple[float, float]:
    """CPU seconds per 1,000 photos and peak memory in MB of `edgecls predict`, start-up included."""
    report = temporary / "report.json"
    command = [*EDGECLS, "predict", folder, "--model", file, "--device", device, "--out", "rows.csv"]
    command += ["--report", report]
    process = subprocess.Popen(list(map(str, command)), cwd=temporary, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"edgecls predict: exit code {process.returncode}")
    values = json.loads(report.read_text())
    return (usage.ru_utime + usage.ru_stime) * 1000 / values["images"], values["peak_memory_mb"]


# The rival: what one writes without edgecls


class _Photos:
    """A torch data set, without importing PyTorch for it."""

    def __init__(self, files: list[str]) -> None:
        from torchvision import transforms

        self.files = files
        self._transform = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.files[index]) as picture:
            return self._transform(picture.convert("RGB"))


def rival(file: str, folder: str) -> None:
    import onnxruntime
    import torch
    from torch.utils.data import DataLoader

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    data: Any = _Photos(sorted(str(path) for path in Path(folder).iterdir()))

    def plain() -> Iterator[Any]:
        for indices in batches(range(len(data)), RIVAL_BATCH):
            yield torch.stack([data[index] for index in indices])

    loader = DataLoader(data, RIVAL_BATCH, num_workers=n_cores(), persistent_workers=True)
    ways: dict[str, Callable[[], Iterator[Any]]] = {"plain loop": plain, "DataLoader": lambda: iter(loader)}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        way = json.loads(line)["way"]
        answered: list[np.ndarray] = []
        started, cpu = time.perf_counter(), _cpu_seconds()
        for batch in ways[way]():
            pixels = np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())
            answered.append(session.run(None, {given.name: pixels})[0].argmax(1))
        seconds = time.perf_counter() - started
        assert len(np.concatenate(answered)) == len(data)
        speed, spent = len(data) / seconds, (_cpu_seconds() - cpu) * 1000 / len(data)
        values = {"speed": speed, "cpu_seconds": spent, "peak_memory_mb": peak_memory_mb()}
        print(json.dumps(values), flush=True)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model", type=Path, help="a run with INT8 files, instead of random weights")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--small", action="store_true", help="CIFAR-10 at 64 px")
    parser.add_argument("--no-rival", action="store_true")
    parser.add_argument("--rival", nargs=2, metavar=("FILE", "FOLDER"), help="internal: be the other process")
    arguments = parser.parse_args()
    if arguments.rival:
        rival(*arguments.rival)
        return
    run = arguments.model or mobilenet_run(arguments.cache.resolve(), 64 if arguments.small else 224)
    file, pictures = run.resolve() / MODEL_FILES["int8-cpu"], small_pictures() if arguments.small else photos()
    devices = [device for device in NAMES if device != "openvino" or version_of("openvino")]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder, out = Path(temporary) / "photos", Path(temporary) / "rows.csv"
        links = link(pictures, folder, arguments.photos)
        contenders: dict[str, Callable[[], float]] = {}
        preprocessing = None
        for device in devices:
            open_backend = OpenVinoBackend if device == "openvino" else OnnxRuntimeBackend
            for n_lanes in sorted({1, n_cores()}):
                backend = stack.enter_context(open_backend(file, BackendOptions(device, None, n_lanes)))
                if preprocessing is None:
                    preprocessing = backend.manifest.preprocessing
                    size = cpu_batch_size(preprocessing.size_hw)
                    pixels = np.stack([images.load(path, preprocessing) for path in links[: 8 * size]])
                    for n_threads in sorted({1, n_cores()}):
                        name = f"decode, {n_threads} threads"
                        contenders[name] = partial(decode_only, links, preprocessing, n_threads)
                name = f"infer, {NAMES[device]}, {n_lanes} x {n_cores() // n_lanes} threads"
                contenders[name] = partial(infer_only, backend, pixels, arguments.photos, size)
            contenders[f"predict, {NAMES[device]}"] = partial(predict_folder, folder, file, device, out)
        rival_costs: dict[str, list[dict[str, float]]] = {"plain loop": [], "DataLoader": []}
        if not arguments.no_rival:
            other = Worker([sys.executable, __file__, "--rival", str(file), str(folder)])
            stack.enter_context(other)

            def ask(way: str) -> float:
                rival_costs[way].append(other.ask(way=way))
                return rival_costs[way][-1]["speed"]

            contenders |= {f"PIL + torchvision + ORT, {way}": partial(ask, way) for way in rival_costs}
        speeds = in_rounds(contenders, arguments.rounds)
        print(f"{file}: {arguments.photos} photos, {n_cores()} cores, batch {size}")
        for name, found in speeds.items():
            print(speed_line(name, found), flush=True)
        median = medians(speeds)
        rivals = {name: speed for name, speed in median.items() if name.startswith("PIL")}
        for device in devices:
            infer = max(speed for name, speed in median.items() if name.startswith(f"infer, {NAMES[device]}"))
            decode = max(speed for name, speed in median.items() if name.startswith("decode"))
            bound, reached = 1 / (1 / decode + 1 / infer), median[f"predict, {NAMES[device]}"]
            print(f"\n{NAMES[device]}: bound {bound:,.0f} img/s, predict {reached:,.0f}: {reached / bound:.1%} of it")
            if rivals:
                print(f"  {reached / max(rivals.values()):.2f} times {max(rivals, key=lambda name: rivals[name])}")
            cpu, memory = subprocess_cost(folder, file, device, Path(temporary))
            print(f"  edgecls predict: {cpu:.2f} CPU-s per 1,000 photos with start-up, peak memory {memory:.0f} MB")
        if rivals:
            spent = medians({"plain": [each["cpu_seconds"] for each in rival_costs["plain loop"]]})["plain"]
            memory = max(each["peak_memory_mb"] for each in rival_costs["plain loop"])
            print(f"\nplain loop: {spent:.2f} CPU-s per 1,000 photos without start-up, peak memory {memory:.0f} MB")


if __name__ == "__main__":
    main()
