"""ONNX Runtime on graphs in memory: what another's network answers while it is read, proved and changed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgecls.errors import ExportError, RunError
from edgecls.export.graphs.graph import drop_unused_domains
from edgecls.processor import session_settings

Floats = NDArray[np.float32]


def session_of(model: onnx.ModelProto, file: Path, optimized: Path | None = None) -> Any:
    """ONNX Runtime on the CPU.

    Args:
        file: for messages.
        optimized: gets the graph with its constants folded.

    Raises:
        RunError: ONNX Runtime cannot open it.
    """
    settings = session_settings(onnxruntime, 0)
    settings.log_severity_level = 4  # its errors are raised here, in our words
    if optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        settings.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises a class of its own for each kind of damage
        raise RunError(f"{file}: ONNX Runtime cannot open it: {' '.join(str(error).split())[:300]}") from error


def run_session(session: Any, batch: Floats, file: Path) -> list[NDArray[Any]]:
    """What each output of a session with one input answers to a batch.

    Raises:
        ExportError: the network does not run on a batch of this shape.
    """
    try:
        return cast("list[NDArray[Any]]", session.run(None, {session.get_inputs()[0].name: batch}))
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{file}: does not run on an input of shape {batch.shape}: {reason}") from error


def folded(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """A copy with its constants folded, by ONNX Runtime, and a name of its own for every node.

    Raises:
        RunError: ONNX Runtime cannot open it.
    """
    with tempfile.TemporaryDirectory(prefix="edgecls-") as folder:
        written = Path(folder) / "folded.onnx"
        session_of(model, file, optimized=written)
        copy = onnx.load(written)
    drop_unused_domains(copy)  # it lists all that it knows
    taken: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"  # the quantiser tells nodes by name
        taken.add(node.name)
    return copy
