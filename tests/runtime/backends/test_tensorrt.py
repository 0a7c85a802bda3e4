"""Every model family that the trainer offers parses and builds in a real TensorRT.

TensorRT for RTX builds for a GPU that is not there. Its wheels are the extra `tensorrt-rtx`; without them this skips.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgecls.calibration.ranges import calibrate
from edgecls.calibration.sample import CalibrationImage, CalibrationSet
from edgecls.export.engine import build_engine
from edgecls.export.graphs.fp16 import fp16_from_onnx
from edgecls.export.graphs.int8 import QUANTIZED_OPS, int8_of
from edgecls.export.onnx import onnx_from_checkpoint
from edgecls.export.options import EngineOptions
from edgecls.manifest import Manifest
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.train.networks.models import build
from edgecls.train.recipe_options import NetworkOptions
from tests.conftest import draw, write_image

pytest.importorskip("tensorrt_rtx_bindings", reason='needs real TensorRT: pip install "edgecls[tensorrt-rtx]"')

SIZE = 64
FAMILIES = [
    "linear",
    "mlp",
    "cnn",
    "resnet9",
    "airbench",
    "efficientnet_lite0",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "timm/mobilenetv4_conv_small",
]


# The INT8 file is float16 between its steps, so it has the operators of the other two. Those are built too where it is
# quick and where operators are many; for every family they took half of the test's time and found nothing.
IN_EVERY_PRECISION = ("cnn", "mobilenet_v3_large")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds_and_answers_in_int8_and_some_in_every_precision(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier, preprocessing = build(NetworkOptions(family, "none"), 3, (SIZE, SIZE))
    settle(classifier)
    manifest = Manifest(("a", "b", "c"), replace(preprocessing, crop_fraction=1.0), family)
    fp32, fp16, int8, int8_cpu = (tmp_path / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "int8-cpu"))
    onnx_from_checkpoint(classifier, manifest, fp32)
    fp16_from_onnx(fp32, replace(manifest, precision="fp16"), fp16)
    paths = [write_image(tmp_path / f"{seed}.png", draw("checks", seed, SIZE)) for seed in range(8)]
    chosen = CalibrationSet(tuple(CalibrationImage(str(path), "") for path in paths), "drawn", 8)
    graph = onnx.load(fp32)
    calibration = calibrate(graph, chosen, manifest.preprocessing, QUANTIZED_OPS)
    onnx.save(int8_of(graph, calibration, "int8", replace(manifest, precision="int8")), int8)
    onnx.save(int8_of(graph, calibration, "int8-cpu", replace(manifest, precision="int8-cpu")), int8_cpu)
    pixels = np.stack([draw("stripes", seed, SIZE) for seed in range(4)])
    expected = answers(fp32, pixels)
    for file, allowed in ((fp16, 0.02), (int8, 0.3), (int8_cpu, 0.3)):
        # of the spread of the answers: random weights answer all images nearly alike
        assert np.abs(answers(file, pixels) - expected).max() < allowed * np.abs(expected).max(), file.name
    options = EngineOptions(BatchProfile(1, 2, 4), optimization_level=0, compute_capability="8.6")
    for file in (fp32, fp16, int8) if family in IN_EVERY_PRECISION else (int8,):
        engine = build_engine(file, tmp_path / "engines", options)
        assert engine.bytes > 10_000
        assert engine.record.manifest.precision == file.stem


def settle(classifier: torch.nn.Module) -> None:
    """Let batch norm see data: with its initial statistics the values of deep networks vanish or explode."""
    pixels = torch.from_numpy(np.stack([draw(kind, seed, SIZE) for seed in range(8) for kind in ("checks", "stripes")]))
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    classifier.train()
    with torch.no_grad():
        for _ in range(4):
            classifier(pixels)


def answers(file: Path, pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    with OnnxRuntimeBackend(file, BackendOptions("cpu")) as backend:
        return backend.infer(pixels)
