"""ONNX Runtime's CUDA provider, by a stand-in that computes on the CPU and counts who calls it with what."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgecls.errors import OptionError
from edgecls.export.judge.verify import verify
from edgecls.runtime.backends import onnx_runtime
from edgecls.runtime.backends.selection import Candidate
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.pipeline import Frame, Source
from edgecls.tables.verify import verified
from tests.conftest import draw, write_linear_model

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


class Calls:
    """What was asked of the stand-in."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: list[set[int]] = []  # of each session: the number of a thread that has ended is given again
        self.n_preloaded = 0

    def preload(self) -> None:
        self.n_preloaded += 1
        print("Failed to load libcudnn.so.9")  # as it does where a library is missing

    def session(self, model: Any, settings: Any, **options: Any) -> Any:
        on_cpu, threads = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"]), set[int]()
        self.threads.append(threads)

        def run(names: Any, given: dict[str, Any]) -> Any:
            threads.add(threading.get_ident())
            self.sizes.append(len(given["images"]))
            return on_cpu.run(names, given)

        of_model = {name: getattr(on_cpu, name) for name in ("get_inputs", "get_outputs", "get_modelmeta")}
        return SimpleNamespace(run=run, get_providers=lambda: PROVIDERS, **of_model)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    stand_in = SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=calls.session,
        get_available_providers=lambda: PROVIDERS,
        preload_dlls=calls.preload,
    )
    monkeypatch.setattr(onnx_runtime, "_onnxruntime", lambda needed_for, device: stand_in)
    return calls


@pytest.mark.parametrize("tta", [None, "flip"])
def test_one_thread_calls_the_gpu_with_batches_of_one_size(
    calls: Calls, tmp_path: Path, tta: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_linear_model(tmp_path / "model.onnx")
    frames = [Source.of(Frame(str(seed), draw("checks", seed, 8))) for seed in range(21)]
    batch_size = 8 if tta else 4
    with Classifier.open(model, device="cuda", batch_size=batch_size, n_threads=4, tta=tta) as classifier:
        assert classifier.backend_name == "onnxruntime-cuda"
        found = [each for batch in classifier.answers(frames) for each in batch.members[0].probabilities]
    with Classifier.open(model, device="cuda", n_threads=1, tta=tta) as classifier:
        expected = [next(classifier.answers([frame])).members[0].probabilities[0] for frame in frames]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert calls.sizes[:6] == [batch_size] * 6  # 21 pictures in batches of four: the last is filled up
    assert [len(threads) for threads in calls.threads] == [1, 1]  # one for each classifier
    assert all(threading.get_ident() not in threads for threads in calls.threads)
    assert calls.n_preloaded == 2
    assert capsys.readouterr().out == ""


def test_a_cpu_is_not_asked_for_whole_batches(tmp_path: Path) -> None:
    model = write_linear_model(tmp_path / "model.onnx")
    with Classifier.open(model, device="cpu", batch_size=4, n_threads=1) as classifier:
        assert not classifier.members[0].backend.wants_whole_batches
        assert classifier.members[0].backend.runs_in_caller


def test_what_cannot_be_started_here_is_no_failure(exported_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "--device tensorrt: ONNX Runtime has TensorrtExecutionProvider but could not start it"

    class NotHere(Candidate):
        def open(self, options: Any) -> Any:
            raise OptionError(reason)

    def both(file: Path, precision: Any) -> list[Candidate]:
        return [Candidate(file, "cpu"), NotHere(file, "tensorrt")]

    monkeypatch.setattr("edgecls.export.judge.verify.can_run", both)
    result = verify(str(exported_run))
    assert result.verdict == "passed"
    assert len(result.not_here) == len(result.checks) == 4
    assert result.not_here[0] == f"model.onnx on tensorrt: {reason}"
    assert reason in str(verified(result).caption)
    monkeypatch.setattr("edgecls.export.judge.verify.can_run", lambda file, precision: [NotHere(file, "tensorrt")])
    assert verify(str(exported_run)).verdict == "failed"  # nothing was checked
