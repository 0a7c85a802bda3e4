"""A model file and what runs it. Nothing above knows which engine answers; here it is ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import MissingExtra, OptionError, RunError
from edgecls.images import Pixels
from edgecls.manifest import METADATA_KEY, Manifest
from edgecls.prefetch import n_cores

Device = Literal["auto", "cpu", "cuda"]

_ERRORS_ONLY: Final = 3  # ONNX Runtime's log severity

# It makes the float16 biases of TensorRT's INT8 graph int32, by scales that it multiplies in float16: where the product
# is below 6e-8 the bias is lost, and half of the answers with it (seen with 1.31). The CPU's graph has int32 biases.
_WRONG_PASSES: Final = ("WeightBiasQuantization",)


class Backend(Protocol):
    """An opened model: owns its memory between `with` and the end of the block.

    Attributes:
        manifest: what the file says about itself.
        name: engine and device, for reports, e.g. `onnxruntime-cpu`.
    """

    manifest: Manifest
    name: str

    def infer(self, images: Pixels) -> NDArray[np.float32]:
        """(n, h, w, 3) uint8 RGB, n >= 1 -> logits (n, n_classes) float32."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class BackendOptions:
    """Attributes:
    device: `auto` is a CUDA GPU where ONNX Runtime has one, else the CPU.
    n_threads: of one inference; None is every core this process may use.
    """

    device: Device = "auto"
    n_threads: int | None = None


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU or a CUDA GPU; safe to call from several threads."""

    def __init__(self, model: Path | bytes, options: BackendOptions) -> None:
        """Open a model that edgecls wrote: its file, or the bytes of one.

        Raises:
            MissingExtra: ONNX Runtime is not installed.
            OptionError: CUDA is asked for and not there.
            RunError: not an ONNX file, damaged, or without an edgecls manifest.
        """
        source = "the graph" if isinstance(model, bytes) else str(model)
        onnxruntime = _onnxruntime(f"opening {source}", options.device)
        provider = _provider(onnxruntime.get_available_providers(), options.device)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _ERRORS_ONLY
        settings.intra_op_num_threads = options.n_threads or n_cores()
        # threads that wait for work by spinning would take the cores from the decoding threads
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                settings,
                providers=[provider],
                disabled_optimizers=list(_WRONG_PASSES),
            )
        except Exception as error:  # the binding raises a class of its own for each kind of damage
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{source}: ONNX Runtime cannot open it: {reason}; expected an ONNX file of edgecls export, or a run"
            ) from error
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise RunError(
                f"{source}: no edgecls manifest in this ONNX file, so its labels and preprocessing are unknown; "
                "expected a file that edgecls export wrote"
            )
        self.manifest = Manifest.from_json(text, source)
        self.name = "onnxruntime-cuda" if provider.startswith("CUDA") else "onnxruntime-cpu"
        self._check_signature(session, source)
        self._session: Any = session

    def _check_signature(self, session: Any, source: str) -> None:
        (given,), (answered,) = session.get_inputs(), session.get_outputs()
        expected_in = ["uint8", *self.manifest.preprocessing.size_hw, 3]
        got_in = [given.type.removeprefix("tensor(").removesuffix(")"), *given.shape[1:]]
        if got_in != expected_in or answered.shape[1:] != [len(self.manifest.labels)]:
            raise RunError(
                f"{source}: the graph does not fit its manifest: takes {got_in}, expected {expected_in}; "
                f"answers {answered.shape[1:]}, expected [{len(self.manifest.labels)}]"
            )
        self._input, self._output = given.name, answered.name

    def infer(self, images: Pixels) -> NDArray[np.float32]:
        if self._session is None:
            raise RunError("this model has been closed: predict inside its `with` block, or open it again")
        return cast(NDArray[np.float32], self._session.run([self._output], {self._input: images})[0])

    def __enter__(self) -> OnnxRuntimeBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None  # frees the session's memory, on the GPU too


def devices() -> list[Device]:
    """What the ONNX Runtime of this machine can run on.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
    """
    available = _onnxruntime("finding what can run a model", "auto").get_available_providers()
    return ["cpu", "cuda"] if "CUDAExecutionProvider" in available else ["cpu"]


def _onnxruntime(needed_for: str, device: Device) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  an extra, and not needed to describe a model
    except ImportError as error:
        raise MissingExtra(needed_for, "gpu" if device == "cuda" else "cpu") from error
    return onnxruntime


def _provider(available: list[str], device: Device) -> str:
    if device != "cpu" and "CUDAExecutionProvider" in available:
        return "CUDAExecutionProvider"
    if device == "cuda":
        raise OptionError(
            f"--device cuda: this ONNX Runtime has no CUDA ({', '.join(available)}); "
            'pip uninstall onnxruntime, then pip install "edgecls[gpu]", or use --device cpu'
        )
    return "CPUExecutionProvider"
