"""Checkpoint to ONNX: uint8 NHWC pixels in, float32 logits out, the manifest inside. One file, dynamic batch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Final

import onnx
import torch

from edgecls.errors import ExportError
from edgecls.manifest import METADATA_KEY, Manifest
from edgecls.runs import atomic_path
from edgecls.train.models import PixelClassifier

OPSET: Final = 20  # the highest that TensorRT 10.3 (JetPack 6) reads; FP16 scales in Q/DQ need 19
INPUT: Final = "images"
OUTPUT: Final = "logits"


def onnx_from_checkpoint(classifier: PixelClassifier, manifest: Manifest, out: Path) -> None:
    """Write the FP32 graph, atomically.

    The exporter folds batch norm and padding into the convolutions. Input `images`: uint8 (n, h, w, 3) RGB with
    dynamic n; output `logits`: float32 (n, n_classes).

    Raises:
        ExportError: PyTorch cannot export this network.
    """
    example = torch.zeros(2, *manifest.preprocessing.size_hw, 3, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                classifier.cpu().eval().to(memory_format=torch.contiguous_format),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("n")},),
            )
    except Exception as error:  # the exporter raises many kinds, all meaning the same to the user
        raise ExportError(f"{manifest.model}: PyTorch could not export this network to ONNX: {error}") from error
    assert program is not None
    graph = program.model_proto
    _strip(graph)
    embed_manifest(graph, manifest)
    onnx.checker.check_model(graph, full_check=True)
    with atomic_path(out) as partial:
        onnx.save(graph, partial)


def embed_manifest(graph: onnx.ModelProto, manifest: Manifest) -> None:
    """Put the manifest into the file's metadata, in place of the one that may be there."""
    kept = [entry for entry in graph.metadata_props if entry.key != METADATA_KEY]
    del graph.metadata_props[:]
    graph.metadata_props.extend([*kept, onnx.StringStringEntryProto(key=METADATA_KEY, value=manifest.to_json())])


def _strip(graph: onnx.ModelProto) -> None:
    """Drop the exporter's notes (source lines of the machine that exported, 100s of KiB)."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    del graph.functions[:]
    body = graph.graph
    for item in [body, *body.node, *body.input, *body.output, *body.value_info, *body.initializer]:
        del item.metadata_props[:]
        item.doc_string = ""


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Keep the exporter's progress prints and torch-internal warnings off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
