"""Every range method on the same run and images: how long it takes and what INT8 then answers.

    python benchmarks/calibration_methods.py RUN [--calibration DIR --validation DIR] [--images N] [--limit N]

RUN is an exported run. Without the two folders its own splits are used. For each method: seconds, and for either graph
the share of validation images answered as FP32 answers them, top-1, and the mean squared error of the logits; then
min-max once more without the correction of the biases.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgecls import images
from edgecls.calibration.options import METHODS, SampleOptions
from edgecls.calibration.ranges import Calibration, calibrate
from edgecls.calibration.sample import choose_calibration_set
from edgecls.datasets import ClassNames, read_labelled, read_split, targets_of
from edgecls.export.graphs.fp16 import half
from edgecls.export.graphs.int8 import QUANTIZED_OPS, quantized
from edgecls.export.options import FLAVOURS
from edgecls.images import Pixels
from edgecls.runs import SPLIT, find_run
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions


def logits_of(graph: onnx.ModelProto, pixels: Pixels) -> NDArray[np.float32]:
    with OnnxRuntimeBackend(graph.SerializeToString(), BackendOptions("cpu")) as backend:
        return np.concatenate([backend.infer(pixels[start : start + 16]) for start in range(0, len(pixels), 16)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--limit", type=int, default=1000)
    arguments = parser.parse_args()
    run = find_run(arguments.run)
    manifest = run.manifest
    classes = ClassNames.of(manifest)
    splits = (
        read_split(run.path(SPLIT), manifest.labels).splits if run.path(SPLIT).exists() else {"train": (), "val": ()}
    )
    validation = (read_labelled(arguments.validation, classes) if arguments.validation else splits["val"])[
        : arguments.limit
    ]
    truth = targets_of(validation, manifest.labels)
    pixels = np.stack([images.load(image.path, manifest.preprocessing) for image in validation])
    chosen = choose_calibration_set(
        SampleOptions(arguments.images, source=arguments.calibration),
        classes,
        manifest.preprocessing,
        splits["train"],
        [image.path for image in validation],
    )
    graph = onnx.load(run.path("model.onnx"))
    reference = logits_of(graph, pixels)
    print(f"{manifest.model}: {len(chosen.images)} calibration images, {len(pixels)} validation images")
    print(f"FP32 top-1 {np.mean(reference.argmax(1) == truth):.2%}\n")
    print(
        "| method | seconds | graph | agreement | top-1 | logits' squared error |\n"
        "| --- | ---: | --- | ---: | ---: | ---: |"
    )

    def report(name: str, seconds: float, calibration: Calibration) -> None:
        for flavour in FLAVOURS:
            source = half(graph) if flavour == "int8" else graph
            answered = logits_of(quantized(source, calibration, flavour), pixels)
            agreement = np.mean(answered.argmax(1) == reference.argmax(1))
            top1, error = np.mean(answered.argmax(1) == truth), np.mean((answered - reference) ** 2)
            print(f"| {name} | {seconds:.0f} | {flavour} | {agreement:.2%} | {top1:.2%} | {error:.2g} |", flush=True)

    for method in METHODS:
        started = time.perf_counter()
        calibration = calibrate(graph, chosen, manifest.preprocessing, QUANTIZED_OPS, method)
        report(method, time.perf_counter() - started, calibration)
        if method == "minmax":
            report("minmax, biases uncorrected", 0, replace(calibration, means={}))


if __name__ == "__main__":
    main()
