"""What 64-bit Arm does otherwise than x86: it has kernels of float16, which sum in float16 and meet other passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from edgecls.manifest import Precision
from edgecls.runs import MODEL_FILES
from edgecls.runtime.backend import BackendOptions
from edgecls.runtime.onnx_runtime import OnnxRuntimeBackend, session_settings, wrong_passes


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
