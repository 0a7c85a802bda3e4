"""ONNX Runtime as a backend: on the CPU, on a CUDA GPU, or through its TensorRT."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import MissingExtra, OptionError, RunError
from edgecls.images import Pixels
from edgecls.manifest import METADATA_KEY, Manifest, Precision
from edgecls.processor import session_settings
from edgecls.runs import ENGINES
from edgecls.runtime.backends.onnx_manifest import manifest_of_onnx
from edgecls.runtime.backends.protocol import Backend, BackendOptions, check_signature, closed
from edgecls.runtime.options import Device
from edgecls.runtime.stages import StageTimes

Provided = Literal["cpu", "cuda", "tensorrt"]  # devices that ONNX Runtime can have a provider for

_PROVIDERS: Final[Mapping[Provided, str]] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}

# It makes the float16 biases of TensorRT's INT8 graph int32, by scales that it multiplies in float16: where the product
# is below 6e-8 the bias is lost, and half of the answers with it (seen with 1.31). The CPU's graph has int32 biases.
_WRONG_PASSES: Final = ("WeightBiasQuantization",)
# Where ONNX Runtime has float16 kernels, which is on 64-bit Arm, it joins DequantizeLinear, Add and QuantizeLinear of
# float16 into a QLinearAdd, whose scales must be float32, and refuses the graph that it made (seen with 1.32). On x86
# the answers are the same bits without. The CPU's graph has float32 scales, and owes its speed to this pass.
_WRONG_PASSES_FOR_FLOAT16_SCALES: Final = ("QDQSelectorActionTransformer",)


class OnnxRuntimeBackend(Backend):
    """A session; on a CPU each calling thread is a lane of its own, on a GPU one thread of ours makes all calls.

    The CUDA provider keeps handles for each calling thread, and plans its convolutions anew in the first call and after
    every change of the batch's size: 0.4 to 1.1 s for EfficientNet-Lite0 on an H100, where a call takes 1.4 to 7.5 ms
    (ONNX Runtime 1.31). Called from 17 threads, 837 photos took 3.3 s there, and 0.9 s on the 16 cores beside it.
    """

    def __init__(self, model: Path | bytes, options: BackendOptions) -> None:
        """Open a model that edgecls wrote: its file, or the bytes of one.

        Raises:
            MissingExtra, OptionError: as `open_session` does.
            RunError: not an ONNX file, damaged, or without an edgecls manifest.
        """
        source = _source(model)
        session, device = open_session(model, options)
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise RunError(
                f"{source}: no edgecls manifest in this ONNX file, so its labels and preprocessing are unknown; "
                "expected a file that edgecls export wrote"
            )
        self.manifest = Manifest.from_json(text, source)
        self.name = f"onnxruntime-{device}"
        self.n_lanes = options.n_lanes if device == "cpu" else 1
        self.runs_in_caller = device == "cpu"
        self.wants_whole_batches = device != "cpu"
        self._caller = None if device == "cpu" else ThreadPoolExecutor(1, "onnxruntime-gpu")
        (given,), (answered,) = session.get_inputs(), session.get_outputs()
        dtype = given.type.removeprefix("tensor(").removesuffix(")")
        check_signature(source, self.manifest, dtype, given.shape[1:], *answered.shape[1:])
        self._input, self._output = given.name, answered.name
        self._session: Any = session

    def infer(self, images: Pixels, times: StageTimes | None = None) -> NDArray[np.float32]:
        session = self._session
        if session is None:
            raise closed()
        started = time.perf_counter()
        call = partial(session.run, [self._output], {self._input: images})
        (logits,) = call() if self._caller is None else self._caller.submit(call).result()
        if times is not None:
            times.add("infer", time.perf_counter() - started, len(images))
        return cast(NDArray[np.float32], logits)

    def close(self) -> None:
        self._session = None  # frees the session's memory, on the GPU too
        if self._caller:
            self._caller.shutdown()


def open_session(model: Path | bytes, options: BackendOptions, profile: Path | None = None) -> tuple[Any, Provided]:
    """A session, and what it runs on: `auto` is a CUDA GPU where there is one.

    Args:
        profile: where given, the session times its operators and writes that into a file whose path begins so.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
        OptionError: the device is asked for and not there.
        RunError: not an ONNX file, or damaged.
    """
    source = _source(model)
    onnxruntime = _onnxruntime(f"opening {source}", options.device)
    device = _device(onnxruntime.get_available_providers(), options.device)
    settings = session_settings(onnxruntime, options.threads_per_lane, may_spin=options.n_lanes == 1)
    if profile:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    if device != "cpu":
        _find_cuda(onnxruntime)
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            settings,
            providers=_providers(device, model),
            disabled_optimizers=wrong_passes(_precision(model, source)),
        )
    except Exception as error:  # the binding raises a class of its own for each kind of damage
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{source}: ONNX Runtime cannot open it: {reason}; expected an ONNX file of edgecls export, or a run"
        ) from error
    if session.get_providers()[0] != _PROVIDERS[device]:  # it falls back to the CPU and goes on
        raise OptionError(
            f"--device {device}: ONNX Runtime has {_PROVIDERS[device]} but could not start it, its libraries or "
            "the driver are missing; see what it prints with ORT_LOG_LEVEL=1, or use --device cpu"
        )
    return session, device


def _source(model: Path | bytes) -> str:
    return "the graph" if isinstance(model, bytes) else str(model)


def wrong_passes(precision: Precision | None) -> list[str]:
    """The optimiser passes of ONNX Runtime that break a file of this precision; None is one that nobody could read."""
    return [*_WRONG_PASSES, *(_WRONG_PASSES_FOR_FLOAT16_SCALES if precision == "int8" else ())]


def _precision(model: Path | bytes, source: str) -> Precision | None:
    try:
        return manifest_of_onnx(model if isinstance(model, bytes) else model.read_bytes(), source).precision
    except (OSError, RunError):
        return None  # opening it says what is wrong


def onnxruntime_devices() -> list[Provided]:
    """What the ONNX Runtime of this machine can run on, the CPU first; none where it is not installed."""
    try:
        available = _onnxruntime("finding what can run a model", "auto").get_available_providers()
    except MissingExtra:
        return []
    return [device for device in ("cpu", "cuda", "tensorrt") if _PROVIDERS[device] in available]


def _onnxruntime(needed_for: str, device: Device) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  an extra, and not needed to describe a model
    except ImportError as error:
        raise MissingExtra(needed_for, "gpu" if device in ("cuda", "tensorrt") else "cpu") from error
    return onnxruntime


def _find_cuda(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from pip's packages, where they are from there (ONNX Runtime 1.21 and newer)."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with suppress(Exception), redirect_stdout(StringIO()):  # it prints what is not there; opening the session tells
            preload()


def _device(available: list[str], device: Device) -> Provided:
    if device == "auto":
        return "cuda" if _PROVIDERS["cuda"] in available else "cpu"
    if _PROVIDERS.get(cast(Provided, device)) in available:
        return cast(Provided, device)
    raise OptionError(
        f"--device {device}: this ONNX Runtime cannot ({', '.join(available)}); "
        'pip uninstall onnxruntime, then pip install "edgecls[gpu]", or use --device cpu'
    )


def _providers(device: Provided, model: Path | bytes) -> list[Any]:
    """The provider of the device first, then those that take over the operators which it does not know."""
    below = [_PROVIDERS["cuda"], _PROVIDERS["cpu"]] if device != "cpu" else []
    if device != "tensorrt":
        return [_PROVIDERS[device], *below[1:]]
    # without a cache it builds an engine for minutes at every start
    cache: dict[str, Any] = {}
    if isinstance(model, Path):
        cache = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(model.parent / ENGINES)}
    return [(_PROVIDERS[device], cache), *below]
