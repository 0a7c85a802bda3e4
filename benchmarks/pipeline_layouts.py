"""How should cores be shared between decoding and inference on a CPU? Layouts side by side.

    EDGECLS_DATA=photos python benchmarks/pipeline_layouts.py [--model RUN] [--photos 600] [--rounds 5]

MobileNetV2 at 224 px, INT8 (or the INT8 file of RUN), photos of EDGECLS_DATA warm in the page cache, with ONNX
Runtime and, where it is installed, OpenVINO, in batches of 4, 8 and 16:

* workers: as many as cores, each takes a batch from the files to the answers and infers with one thread;
* images ahead: decoding threads, as many as cores, fill a queue of images; one inference at a time with all threads;
* batches ahead: the same, but a decoding thread makes a whole batch;
* pipeline: `edgecls.runtime.pipeline`, which is the workers with buffers of their own and everything else it does.

In turns, medians of the rounds, and the share of the bound 1 / (1 / decoding + 1 / inference) that each reaches; the
inference in it is the fastest one of that engine at any batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from networks import CACHE, arguments_of, in_rounds, medians, mobilenet_run, photos, speed_line
from photos_to_labels import NAMES, decode_only, infer_only

from edgecls import images
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing
from edgecls.prefetch import batches, n_cores, prefetch
from edgecls.runs import MODEL_FILES
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.open_vino import OpenVinoBackend
from edgecls.runtime.backends.protocol import Backend, BackendOptions
from edgecls.runtime.backends.selection import version_of
from edgecls.runtime.options import TtaOptions
from edgecls.runtime.pipeline import Member, Source, answers
from edgecls.runtime.stages import StageTimes

BATCHES = (4, 8, 16)


def stacked(files: list[Path], preprocessing: Preprocessing) -> Pixels:
    return np.stack([images.load(file, preprocessing) for file in files])


def workers(backend: Backend, files: list[Path], size: int) -> Iterable[object]:
    def whole_way(batch: list[Path]) -> object:
        return backend.infer(stacked(batch, backend.manifest.preprocessing))

    return prefetch(whole_way, batches(files, size), n_threads=n_cores(), ahead=2 * n_cores())


def images_ahead(backend: Backend, files: list[Path], size: int) -> Iterable[object]:
    load = partial(images.load, preprocessing=backend.manifest.preprocessing)
    loaded = prefetch(load, files, n_threads=n_cores(), ahead=size + 2 * n_cores())
    return (backend.infer(np.stack(batch)) for batch in batches(loaded, size))


def batches_ahead(backend: Backend, files: list[Path], size: int) -> Iterable[object]:
    load = partial(stacked, preprocessing=backend.manifest.preprocessing)
    loaded = prefetch(load, batches(files, size), n_threads=n_cores(), ahead=2 * n_cores())
    return (backend.infer(batch) for batch in loaded)


def pipeline(backend: Backend, files: list[Path], size: int) -> Iterable[object]:
    member = Member.of(backend, TtaOptions())
    sources = map(Source.of, files)
    return answers([member], sources, batch_size=size, n_workers=n_cores(), times=StageTimes(), n_sources=len(files))


Layout = Callable[[Backend, list[Path], int], Iterable[object]]
WITH_A_LANE_A_CORE: dict[str, Layout] = {"pipeline": pipeline, "workers": workers}
WITH_ONE_LANE: dict[str, Layout] = {"images ahead": images_ahead, "batches ahead": batches_ahead}


def timed(layout: Layout, backend: Backend, files: list[Path], size: int) -> float:
    started = time.perf_counter()
    n_batches = sum(1 for _ in layout(backend, files, size))
    assert n_batches == -(-len(files) // size)
    return len(files) / (time.perf_counter() - started)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model", type=Path, help="a run with INT8 files, instead of random weights")
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    file = (arguments.model or mobilenet_run(arguments.cache)).resolve() / MODEL_FILES["int8-cpu"]
    found = photos()
    files = [found[index % len(found)] for index in range(arguments.photos)]
    contenders: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        for device, engine in NAMES.items():
            if device == "openvino" and not version_of("openvino"):
                continue
            open_backend = OpenVinoBackend if device == "openvino" else OnnxRuntimeBackend
            many = stack.enter_context(open_backend(file, BackendOptions(device, None, n_cores())))
            one = stack.enter_context(open_backend(file, BackendOptions(device, None, 1)))
            preprocessing = one.manifest.preprocessing
            contenders["decode"] = partial(decode_only, files, preprocessing, n_cores())
            pixels = stacked(files[: 4 * max(BATCHES)], preprocessing)
            for size in BATCHES:
                for name, backend in (("a lane a core", many), ("one lane", one)):
                    key = f"{engine}, batch {size:2d}, infer, {name}"
                    contenders[key] = partial(infer_only, backend, pixels, len(files), size)
                for layouts, backend in ((WITH_A_LANE_A_CORE, many), (WITH_ONE_LANE, one)):
                    for name, layout in layouts.items():
                        key = f"{engine}, batch {size:2d}, {name}"
                        contenders[key] = partial(timed, layout, backend, files, size)
        speeds = in_rounds(contenders, arguments.rounds)
    median = medians(speeds)
    print(f"{file}: {len(files)} photos, {n_cores()} cores")
    print(speed_line("decode", speeds["decode"]))
    for engine in NAMES.values():
        of_engine = {name: speed for name, speed in median.items() if name.startswith(engine)}
        if not of_engine:
            continue
        infer = max(speed for name, speed in of_engine.items() if "infer" in name)
        bound = 1 / (1 / median["decode"] + 1 / infer)
        print(f"\n{engine}: bound {bound:,.0f} img/s")
        for name in of_engine:
            share = "" if "infer" in name else f"{median[name] / bound:6.1%} of the bound"
            print(speed_line(name, speeds[name], share))
        for size in BATCHES:
            of_size = {
                name: median[f"{engine}, batch {size:2d}, {name}"] for name in (*WITH_A_LANE_A_CORE, *WITH_ONE_LANE)
            }
            ahead = max(of_size[name] for name in WITH_ONE_LANE)
            print(f"batch {size}: workers {of_size['workers'] / ahead:.2f} times the better of the two ahead")


if __name__ == "__main__":
    main()
