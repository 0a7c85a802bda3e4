"""What 64-bit Arm does otherwise than x86: it has kernels of float16, which sum in float16 and meet other passes."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgecls.bench import machine
from edgecls.errors import RunError
from edgecls.export.judge import float16_error
from edgecls.export.judge.float16_error import float16_tolerance
from edgecls.export.judge.verify import verify
from edgecls.golden import TOLERANCE, Golden
from edgecls.manifest import Precision
from edgecls.processor import int8_sums_overflow, session_settings
from edgecls.runs import EXPORT, MODEL_FILES, Run
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend, wrong_passes
from edgecls.runtime.backends.protocol import BackendOptions


def optimised(file: Path, out: Path, passes_off: list[str]) -> list[str]:
    """The operators that ONNX Runtime makes of a file."""
    settings = session_settings(onnxruntime, 1)
    settings.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"], disabled_optimizers=passes_off)
    return [node.op_type for node in onnx.load(out).graph.node]


def test_the_pass_that_joins_float16_scales_is_off_for_the_int8_of_gpus_alone(
    exported_run: Path, tmp_path: Path
) -> None:
    """Shown on the CPU's graph, since the pass leaves float16 alone where there are no kernels for it."""
    file = exported_run / MODEL_FILES["int8-cpu"]
    joined = optimised(file, tmp_path / "a.onnx", wrong_passes("int8-cpu"))
    apart = optimised(file, tmp_path / "b.onnx", wrong_passes("int8"))
    assert any(name.startswith("QLinear") for name in joined)
    assert not any(name.startswith("QLinear") for name in apart)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-cpu"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_file_is_opened_without_the_passes_that_break_its_precision(
    exported_run: Path, precision: Precision, as_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    session = onnxruntime.InferenceSession

    def recording(*arguments: Any, **named: Any) -> Any:
        asked.append(named["disabled_optimizers"])
        return session(*arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    file = exported_run / MODEL_FILES[precision]
    with OnnxRuntimeBackend(file.read_bytes() if as_bytes else file, BackendOptions("cpu")) as backend:
        assert backend.manifest.precision == precision
    assert asked == [wrong_passes(precision)]
    assert ("QDQSelectorActionTransformer" in asked[0]) == (precision == "int8")


# the tolerance of float16


def sums_of(file: Path) -> list[int]:
    """How many products the layers of a file sum, by the onnx package."""
    graph = onnx.load(file).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    before = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("DequantizeLinear", "Cast")}
    weights = [node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    found = [shapes[before.get(name, name)] for name in weights]
    return [math.prod(shape[1:]) if len(shape) > 2 else max(shape) for shape in found]


def expected_tolerance(sums: list[int]) -> float:
    return 3 * 2**-11 / math.sqrt(3) * math.sqrt(sum(2 + k / 2 for k in sums))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_tolerance_is_read_from_the_file_without_the_onnx_package(exported_run: Path, precision: Precision) -> None:
    file = exported_run / MODEL_FILES[precision]
    assert len(sums_of(file)) > 2
    assert float16_tolerance(file.read_bytes(), "it") == pytest.approx(expected_tolerance(sums_of(file)))


def test_weights_in_constant_nodes_and_packed_shapes_count(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((7, 3, 5, 5), np.float16), "w")
    node = helper.make_node("Constant", [], ["w"], value=weight)
    graph = helper.make_graph([node, helper.make_node("Conv", ["x", "w"], ["y"])], "g", [], [])
    assert float16_tolerance(helper.make_model(graph).SerializeToString(), "it") == expected_tolerance([75])

    unpacked = b"".join(bytes([0x08, size]) for size in (7, 3, 5, 5))
    packed = bytes([0x0A, 4, 7, 3, 5, 5])
    tensor = weight.SerializeToString()
    assert tensor.startswith(unpacked)
    shorter = packed + tensor[len(unpacked) :]
    lead = bytes([2 << 3 | 0])  # the data type follows the shape
    assert shorter[len(packed) : len(packed) + 1] == lead
    assert float16_error._shape(memoryview(shorter)) == float16_error._shape(memoryview(tensor)) == (7, 3, 5, 5)


@pytest.mark.parametrize("damage", [b"not onnx", b"\x3a\xff\xff\xff\xff\x0f"])
def test_a_tolerance_of_what_is_not_onnx_is_an_error(damage: bytes) -> None:
    with pytest.raises(RunError, match="not an ONNX file"):
        float16_tolerance(damage, "it")


def test_a_graph_that_leads_in_a_circle_ends() -> None:
    casts = [helper.make_node("Cast", [a], [b], to=1) for a, b in (("a", "b"), ("b", "a"))]
    graph = helper.make_graph([*casts, helper.make_node("MatMul", ["x", "a"], ["y"])], "g", [], [])
    assert float16_tolerance(helper.make_model(graph).SerializeToString(), "it") == 0


def summed_in_float16(inputs: NDArray[np.float32], weights: list[NDArray[np.float32]]) -> NDArray[np.float16]:
    """A network of matrices and ReLU as Arm computes it: weights, inputs and every partial sum are float16."""
    values = inputs.astype(np.float16)
    for weight in weights:
        sums = np.zeros((len(values), weight.shape[1]), np.float16)
        for value, row in zip(values.T, weight.astype(np.float16), strict=True):
            # the product is exact before it is added: a fused multiply-add rounds once
            sums = (sums + np.outer(value, row).astype(np.float32)).astype(np.float16)
        values = np.maximum(sums, 0) if weight is not weights[-1] else sums
    return values


@pytest.mark.parametrize("widths", [(64, 10), (512, 10), (64, 64, 64, 64, 10), (256, 1024, 256, 10)])
def test_float16_arithmetic_stays_within_the_tolerance_and_comes_near_it(widths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 1, (16, widths[0])).astype(np.float32)
    weights = [rng.normal(0, math.sqrt(2 / a), (a, b)).astype(np.float32) for a, b in itertools.pairwise(widths)]
    exact = inputs.astype(np.float64)
    for weight in weights:
        exact = np.maximum(exact @ weight, 0) if weight is not weights[-1] else exact @ weight
    off = np.abs(summed_in_float16(inputs, weights) - exact).max() / np.abs(exact).max()
    tolerance = expected_tolerance([max(weight.shape) for weight in weights])
    assert tolerance / 12 < off < tolerance


@pytest.mark.parametrize(("share", "passes"), [(0.8, True), (1.3, False)])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_verify_allows_what_float16_arithmetic_may_do_and_no_more(
    exported_run: Path, tmp_path: Path, precision: Precision, share: float, passes: bool
) -> None:
    run = Run(Path(shutil.copytree(exported_run, tmp_path / "run")))
    export = json.loads(run.path(EXPORT).read_text())
    export["precisions"][precision]["golden"]["max_logit_difference"] = 0.0  # x86 saw nothing of it
    run.path(EXPORT).write_text(json.dumps(export))
    with OnnxRuntimeBackend(run.path(MODEL_FILES[precision]), BackendOptions("cpu")) as backend:
        answers = backend.infer(Golden.of(run).images)
    largest = float(np.abs(answers).max())
    tolerance = float16_tolerance(run.path(MODEL_FILES[precision]).read_bytes(), "it")
    moved = replace(
        Golden.of(run), logits=answers + np.float32(share * (tolerance + TOLERANCE) * largest / (1 + tolerance))
    )
    moved.write(run)
    (check,) = [each for each in verify(str(run.folder)).checks if each.file == MODEL_FILES[precision]]
    assert check.passed == passes, check


# what a processor says of itself

_JETSON = """processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
Features\t: fp asimd aes fphp asimdhp cpuid asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd42

"""


def test_an_arm_core_is_named_by_its_numbers_and_its_sums_do_not_overflow(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(_JETSON)
    about = machine.describe(tmp_path, path="")
    assert about.cpu == "Cortex-A78AE"
    assert about.cpu_features == ("asimd", "asimdhp", "asimddp")
    assert not int8_sums_overflow(tmp_path)
