"""How long each layer of a model file takes, as the engines themselves measure it.

Measuring costs time and forbids some of what makes an engine fast (CUDA graphs, for one), so these sessions are beside
those that are benchmarked, and the layers' sum may be more than a call's time.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgecls.errors import RunError
from edgecls.runtime.backends.engine_file import find_tensorrt
from edgecls.runtime.backends.onnx_manifest import manifest_of_file
from edgecls.runtime.backends.onnx_runtime import open_session
from edgecls.runtime.backends.open_vino import compile_model
from edgecls.runtime.backends.protocol import BackendOptions, noise
from edgecls.runtime.backends.tensor_rt import open_engine

_N_WARM: Final = 3  # calls that are left out: they allocate
_N_CALLS: Final = (5, 100)  # least and most that are measured
_LAUNCHED: Final = "ONNX Runtime's times on a GPU are those of handing the work to it, not of the work"

Measured = tuple[float, str, list["LayerTime"]]


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer of a network.

    Attributes:
        name: as the engine calls it; a fused layer has the name of one of its parts.
        kind: operator, and the kernel where the engine tells.
        ms: mean over the calls: what all layers took then adds up to what the calls took.
    """

    name: str
    kind: str
    ms: float


def layer_times(file: Path, options: BackendOptions, batch_size: int, seconds: float) -> Measured:
    """Mean milliseconds of a call, what is to be known about the layers' times, and these, longest first.

    Args:
        file: an ONNX file, or an engine.
        seconds: to measure for, within 5 to 100 calls.

    Raises:
        RunError: the engine cannot measure its layers; says why.
        MissingExtra: the engine is not installed.
    """
    if file.suffix == ".engine":
        measured = _tensorrt(file, batch_size, seconds)
    elif options.device == "openvino":
        measured = _openvino(file, options, batch_size, seconds)
    else:
        measured = _onnxruntime(file, options, batch_size, seconds)
    call_ms, note, layers = measured
    if not layers:
        raise RunError(f"{file.name} on {options.device}: the engine reported no layers")
    return call_ms, note, sorted(layers, key=lambda layer: -layer.ms)


def _measure(call: Callable[[], object], seconds: float, after_each: Callable[[], None] = lambda: None) -> list[float]:
    """Milliseconds of each call, those of the warm-up included."""
    least, most = _N_CALLS
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _N_WARM + least or (len(times) < _N_WARM + most and time.perf_counter() - started < seconds):
        at = time.perf_counter()
        call()
        times.append((time.perf_counter() - at) * 1000)
        after_each()
    return times


def _layers(times: Iterable[tuple[str, str, float]], n_calls: int) -> list[LayerTime]:
    """From (name, kind, ms) of every layer in every call, in order; the first calls are left out."""
    by_layer: dict[tuple[str, str], list[float]] = {}
    for name, kind, ms in times:
        by_layer.setdefault((name, kind), []).append(ms)
    layers = []
    for (name, kind), each in by_layer.items():
        n = max(1, round(len(each) / n_calls))  # layers of one name
        layers.append(LayerTime(name, kind, n * float(np.mean(each[_N_WARM * n :] or each))))
    return layers


def _mean(times: list[float]) -> float:
    return float(np.mean(times[_N_WARM:]))


def _onnxruntime(file: Path, options: BackendOptions, batch_size: int, seconds: float) -> Measured:
    pixels = noise(batch_size, manifest_of_file(file))
    with tempfile.TemporaryDirectory() as folder:
        session, device = open_session(file, options, profile=Path(folder, "profile"))
        times = _measure(lambda: session.run(None, {session.get_inputs()[0].name: pixels}), seconds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ending = "_kernel_time"
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(ending)]
    found = ((each["name"].removesuffix(ending), each["args"]["op_name"], each["dur"] / 1e3) for each in kernels)
    return _mean(times), "" if device == "cpu" else _LAUNCHED, _layers(found, len(times))


def _openvino(file: Path, options: BackendOptions, batch_size: int, seconds: float) -> Measured:
    compiled, manifest = compile_model(file, options, PERF_COUNT=True)
    pixels, request = noise(batch_size, manifest), compiled.create_infer_request()
    total_ms: list[dict[tuple[str, str], float]] = []  # of all calls so far: OpenVINO tells their mean

    def keep() -> None:
        n = len(total_ms) + 1
        ran = (p for p in request.profiling_info if p.status.name == "EXECUTED")
        total_ms.append({
            (p.node_name, f"{p.node_type}, {p.exec_type}"): n * p.real_time.total_seconds() * 1000 for p in ran
        })  # fmt: skip

    times = _measure(lambda: request.infer({0: pixels}, share_inputs=True), seconds, keep)
    warm, whole, n = total_ms[_N_WARM - 1], total_ms[-1], len(times) - _N_WARM
    return _mean(times), "", [LayerTime(*layer, max(0.0, ms - warm.get(layer, 0.0)) / n) for layer, ms in whole.items()]


def _tensorrt(file: Path, batch_size: int, seconds: float) -> Measured:
    tensorrt = find_tensorrt()
    base: Any = getattr(tensorrt.module, "IProfiler", None)
    if base is None:
        raise RunError(f"{tensorrt} has no profiler, so the layers of {file.name} cannot be timed")
    found: list[tuple[str, str, float]] = []

    class Profiler(base):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            base.__init__(self)  # by its name, as in engine_file.logger_of

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            found.append((layer_name, "", ms))

    engine = open_engine(file)
    try:
        batch = engine.record.batch
        n = min(max(batch_size, batch.min), batch.max)
        note = "" if n == batch_size else f"a batch of {n}: the engine takes {batch.min} to {batch.max}"
        times = _measure(engine.profiled(noise(n, engine.record.manifest), Profiler()), seconds)
        return _mean(times), note, _layers(found, len(times))
    finally:
        engine.close()
