"""What a network costs on this machine: exported with random weights, which are as fast as trained ones."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import onnx

from edgecls.calibration.ranges import Calibration, network_sha256
from edgecls.export.graphs.int8 import QUANTIZED_OPS, int8_of
from edgecls.export.judge.float16 import ranges_of
from edgecls.export.judge.measure import BATCH_SIZE, speeds
from edgecls.export.models import Costs
from edgecls.export.onnx import onnx_from_untrained
from edgecls.golden import photo_crops
from edgecls.manifest import Manifest, Precision
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.train.catalogue import CataloguedNetwork

_ROUNDS: Final = 3


def costs_of(network: CataloguedNetwork) -> Costs:
    """Export it to FP32 and INT8, and let the two files take turns.

    Raises:
        MissingExtra: its package is not installed.
        ExportError: PyTorch cannot export it in any way.
    """
    with tempfile.TemporaryDirectory(prefix="edgecls-") as folder, ExitStack() as stack:
        file = Path(folder) / "model.onnx"
        n_classes = 1000 if network.top1 else 10
        manifest = onnx_from_untrained(network.model, network.size, n_classes, file)
        int8 = Path(folder) / "int8.onnx"
        onnx.save(_int8(onnx.load(file), manifest), int8)
        files: dict[Precision, Path] = {"fp32": file, "int8-cpu": int8}
        pixels = photo_crops(manifest.preprocessing)
        started = time.perf_counter()
        with OnnxRuntimeBackend(int8, BackendOptions("cpu")) as backend:
            backend.infer(pixels[:1])
            start_ms = 1000 * (time.perf_counter() - started)
        backends = {
            precision: stack.enter_context(OnnxRuntimeBackend(each, BackendOptions("cpu")))
            for precision, each in files.items()
        }
        found = speeds(backends, pixels, [BATCH_SIZE], _ROUNDS)
        return Costs(found["fp32"][BATCH_SIZE], found["int8-cpu"][BATCH_SIZE], start_ms, int8.stat().st_size / 1e6)


def _int8(graph: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    """By the ranges of a few photos, which is enough for speed."""
    names = {name for node in graph.graph.node if node.op_type in QUANTIZED_OPS for name in (*node.input, *node.output)}
    ranges = ranges_of(graph, names, [photo_crops(manifest.preprocessing)[:8]])
    calibration = Calibration(ranges, {}, (), manifest.preprocessing, network_sha256(graph), "minmax")
    return int8_of(graph, calibration, "int8-cpu", manifest)
