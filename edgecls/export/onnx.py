"""Checkpoint to ONNX: uint8 NHWC pixels in, float32 logits out, the manifest inside. One file, dynamic batch."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Final, cast

import onnx
import onnx.shape_inference
import torch
import torch.nn.functional as F
from onnx import compose
from torch import Tensor, nn

from edgecls.errors import ExportError, ParityError
from edgecls.export.graphs.graph import (
    HEAD_PREFIX,
    INPUT,
    OPSET,
    OUTPUT,
    PIXEL_SCALE,
    drop_unused_domains,
    embed_manifest,
)
from edgecls.export.graphs.session import folded, session_of
from edgecls.golden import TOLERANCE, relative_difference
from edgecls.manifest import Manifest
from edgecls.runs import Run, atomic_path
from edgecls.train.networks.checkpoint import load_checkpoint
from edgecls.train.networks.features import quiet_exporter
from edgecls.train.networks.models import PixelClassifier, build
from edgecls.train.networks.onnx_head import FEATURES, OnnxHead
from edgecls.train.recipe_options import NONE, NetworkOptions


class _Deployed(nn.Module):
    """The classifier with its (x - mean) / std written as a 1x1 depthwise convolution.

    The same numbers, but ONNX Runtime keeps an INT8 graph in NHWC order, where a Sub and a Div with three values
    along the last axis ran element by element: 1.7 of 5.6 ms an image of EfficientNet-Lite0, now 0.2.
    """

    def __init__(self, classifier: PixelClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer(PIXEL_SCALE, (1 / classifier.std).view(3, 1, 1, 1))
        self.register_buffer("pixel_shift", -(classifier.mean / classifier.std).flatten())

    def forward(self, images: Tensor) -> Tensor:
        # Cast before Transpose: TensorRT refuses to transpose uint8
        x = images.to(torch.float32).permute(0, 3, 1, 2)
        x = F.conv2d(x, self.get_buffer(PIXEL_SCALE), self.get_buffer("pixel_shift"), groups=3)
        x = self.classifier.backbone(x)
        layers = list(head) if isinstance(head := self.classifier.head, nn.Sequential) else [head]
        for layer in layers:
            x = x if isinstance(layer, OnnxHead) else layer(x)
        return cast(Tensor, x)


def onnx_from_run(run: Run, manifest: Manifest, out: Path) -> None:
    """Write the FP32 graph of a run's checkpoint, as `onnx_from_checkpoint` does.

    Raises:
        RunError: the checkpoint is missing, damaged, or of another run.
        ExportError: PyTorch cannot export this network in any way.
    """
    onnx_from_checkpoint(load_checkpoint(run), manifest, out)


def onnx_from_untrained(model: str, size: int, n_classes: int, out: Path) -> Manifest:
    """Write the FP32 graph of a network with random weights, which is as fast as with trained ones.

    Args:
        size: height and width of the input in pixels.

    Raises:
        OptionError: no such network, or one that does not take this size.
        MissingExtra: its package is not installed.
        ExportError: PyTorch cannot export it in any way.
    """
    torch.manual_seed(0)
    classifier, preprocessing = build(NetworkOptions(model, NONE), n_classes, (size, size))
    manifest = Manifest(tuple(f"class {i}" for i in range(n_classes)), preprocessing, model)
    onnx_from_checkpoint(classifier, manifest, out)
    return manifest


def onnx_from_checkpoint(classifier: PixelClassifier, manifest: Manifest, out: Path) -> None:
    """Write the FP32 graph, atomically.

    The exporter folds batch norm and padding into the convolutions. Input `images`: uint8 (n, h, w, 3) RGB with
    dynamic n; output `logits`: float32 (n, n_classes). A head that is ONNX already is joined to it.

    Raises:
        ExportError: PyTorch cannot export this network in any way.
    """
    head = classifier.head[-1] if isinstance(classifier.head, nn.Sequential) else classifier.head
    example = torch.zeros(2, *manifest.preprocessing.size_hw, 3, dtype=torch.uint8)
    network = _Deployed(classifier.cpu().eval().to(memory_format=torch.contiguous_format)).eval()
    graph = _exported(network, example, FEATURES if isinstance(head, OnnxHead) else OUTPUT, manifest.model)
    _strip(graph)
    if isinstance(head, OnnxHead):
        graph = _with_head(graph, head.model)
    embed_manifest(graph, manifest)
    onnx.checker.check_model(graph, full_check=True)
    with atomic_path(out) as partial:
        onnx.save(graph, partial)


# --- Ways out of PyTorch ---------------------------------------------------------------------------------------


def _exported(network: _Deployed, example: Tensor, output: str, model: str) -> onnx.ModelProto:
    """The graph by the first way that works; one that was not the first has to answer as the network does.

    Raises:
        ExportError: none works.
    """
    failures: list[Exception] = []
    for way in (_by_export, _by_export_with_plain_attention, _by_tracing):
        try:
            with quiet_exporter():
                graph = way(network, example, output)
            if failures:
                _prove(graph, network, example)
            return graph
        except Exception as error:  # the exporters raise many kinds, all meaning the same to the user
            failures.append(error)
    reason = _ANSI.sub("", str(failures[0])).strip().partition("\n")[0][:_LONGEST_REASON]
    raise ExportError(
        f"{model}: PyTorch cannot export this network to ONNX in any of {len(failures)} ways ({reason}); train another "
        "one with --model, and report this"
    ) from failures[0]


_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_REASON: Final = 200  # characters; the exporters go on for 40 lines


_FUSED: Final = "fused_attn"  # as timm's modules call it


def _by_export(network: _Deployed, example: Tensor, output: str) -> onnx.ModelProto:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )
    assert program is not None
    return program.model_proto


def _by_export_with_plain_attention(network: _Deployed, example: Tensor, output: str) -> onnx.ModelProto:
    """timm's fused attention with a learnt bias (relative positions) cannot be taken apart; its plain one needs not."""
    fused = [module for module in network.modules() if getattr(module, _FUSED, False)]
    if not fused:
        raise ExportError("it has no fused attention")
    try:
        for module in fused:
            setattr(module, _FUSED, False)
        return _by_export(network, example, output)
    finally:
        for module in fused:
            setattr(module, _FUSED, True)


def _by_tracing(network: _Deployed, example: Tensor, output: str) -> onnx.ModelProto:
    """By the older exporter, which writes down what happens; ONNX Runtime folds the constants that it leaves."""
    traced = io.BytesIO()
    torch.onnx.export(
        network,
        (example,),
        cast(Any, traced),  # declared for the newer exporter only, which takes no stream
        dynamo=False,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[output],
        dynamic_axes={INPUT: {0: "n"}, output: {0: "n"}},
    )
    graph = folded(onnx.load_from_string(traced.getvalue()), Path(output))
    return onnx.shape_inference.infer_shapes(graph)


def _prove(graph: onnx.ModelProto, network: _Deployed, example: Tensor) -> None:
    """Hold the graph to the network's own answers, for one image and for one more than it was exported with.

    Raises:
        ParityError: it answers otherwise than the network: the trace holds for the example alone, or for its batch.
    """
    session = session_of(graph, Path(INPUT))
    generator = torch.Generator().manual_seed(0)
    for n in (1, len(example) + 1):
        pixels = torch.randint(0, 256, (n, *example.shape[1:]), dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            expected = network(pixels).numpy()
        (got,) = session.run(None, {INPUT: pixels.numpy()})
        if got.shape != expected.shape or not relative_difference(got, expected) <= TOLERANCE:
            raise ParityError(f"for {n} images it answers otherwise than the network")


# --- The file --------------------------------------------------------------------------------------------------


def _with_head(features: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """Pixels to features, and features to logits, as one graph."""
    try:
        head = compose.add_prefix(head, HEAD_PREFIX, rename_inputs=False, rename_outputs=False)
        head.ir_version = features.ir_version
        joined = compose.merge_models(features, head, [(FEATURES, FEATURES)])
    except ValueError as error:
        raise ExportError(f"the head of this run does not fit its network: {error}; train the run again") from error
    drop_unused_domains(joined)  # either part has brought its own
    del joined.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(joined)


def _strip(graph: onnx.ModelProto) -> None:
    """Drop the exporter's notes (source lines of the machine that exported, 100s of KiB)."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    del graph.functions[:]
    body = graph.graph
    for item in [body, *body.node, *body.input, *body.output, *body.value_info, *body.initializer]:
        del item.metadata_props[:]
        item.doc_string = ""
