"""OpenVINO as a backend: Intel and ARM CPUs, the same ONNX files."""

from __future__ import annotations

import importlib
import os
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import MissingExtra, RunError
from edgecls.images import Pixels
from edgecls.manifest import Manifest
from edgecls.runtime.backends.external_data import check_external_data
from edgecls.runtime.backends.onnx_manifest import manifest_of_onnx, read_onnx
from edgecls.runtime.backends.protocol import Backend, BackendOptions, check_signature, closed
from edgecls.runtime.stages import StageTimes


class OpenVinoBackend(Backend):
    """A compiled model; each calling thread has an inference request of its own."""

    name = "openvino-cpu"

    def __init__(self, model: Path, options: BackendOptions) -> None:
        """Open an ONNX file that edgecls wrote.

        Raises:
            MissingExtra, RunError: as `compile_model` does, or the graph does not fit its manifest.
        """
        compiled, self.manifest = compile_model(model, options)
        given, answered = compiled.input(0), compiled.output(0)
        shape = [size.get_length() for size in list(given.partial_shape)[1:]]
        n_answers = list(answered.partial_shape)[1].get_length()
        check_signature(str(model), self.manifest, given.element_type.to_dtype().name, shape, n_answers)
        self.n_lanes = options.n_lanes
        self._compiled: Any = compiled
        self._of_thread = threading.local()

    def infer(self, images: Pixels, times: StageTimes | None = None) -> NDArray[np.float32]:
        if self._compiled is None:
            raise closed()
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._compiled.create_infer_request()
        started = time.perf_counter()
        # shared: the request reads our array where it lies; the answer is copied, or the next call would overwrite it
        answered = request.infer({0: np.ascontiguousarray(images)}, share_inputs=True, share_outputs=False)
        if times is not None:
            times.add("infer", time.perf_counter() - started, len(images))
        return cast(NDArray[np.float32], answered[0])

    def close(self) -> None:
        self._compiled = None
        self._of_thread = threading.local()


def compile_model(model: Path, options: BackendOptions, **more: bool) -> tuple[Any, Manifest]:
    """A network as OpenVINO's `CompiledModel`, and what its file says about itself.

    Args:
        more: settings of OpenVINO besides ours, such as PERF_COUNT.

    Raises:
        MissingExtra: OpenVINO is not installed.
        RunError: not an ONNX file, damaged, without an edgecls manifest, or with weights from elsewhere.
    """
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError as error:
        raise MissingExtra("--device openvino", "openvino") from error
    data = read_onnx(model)
    manifest = manifest_of_onnx(data, str(model))
    # with the file's path it would look for the weights beside it; with bytes, in the working folder
    source = str(model) if check_external_data(data, model) else data
    settings = {
        # where a CPU has bfloat16, OpenVINO computes float32 layers in it: slower on some, and other answers
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": options.n_lanes,
        "INFERENCE_NUM_THREADS": options.threads,
        # bound to a core each, its threads meet our decoding there while another core idles
        "ENABLE_CPU_PINNING": False,
        **more,
    }
    try:
        core = _core(openvino, os.getpid())
        return core.compile_model(core.read_model(source), "CPU", settings), manifest
    except Exception as error:  # the binding raises RuntimeError with a trace of its source in it
        reason = str(error).strip().splitlines()[-1]
        raise RunError(f"{model}: OpenVINO cannot open it: {reason}; use --device cpu (ONNX Runtime)") from error


@cache
def _core(openvino: Any, process: int) -> Any:
    """The one that all networks of a process are compiled by; a forked one has its own.

    With one for each, a process that had opened and closed several networks ended with a fault in its memory (OpenVINO
    2026): a core that goes takes its plugin along, whose threads may still be there.
    """
    return openvino.Core()
