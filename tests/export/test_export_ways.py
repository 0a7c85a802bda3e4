"""Networks that PyTorch's exporter does not take: another way to the same answers, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecls.errors import ExportError
from edgecls.export import onnx as ways
from edgecls.export.onnx import onnx_from_checkpoint
from edgecls.manifest import Manifest, Preprocessing
from edgecls.train.networks.models import PixelClassifier

PREPROCESSING = Preprocessing(size_hw=(16, 16))


class RelativeAttention(nn.Module):
    """Attention over 4 x 4 patches, with a bias that is computed from places, as timm's relative positions have it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.mix = nn.Linear(24, 72)
        self.places = nn.Parameter(torch.randn(16, 16, 2))
        self.of_places = nn.Linear(2, 2)
        self.fused_attn = True

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        n = tokens.shape[0]
        q, k, v = self.mix(tokens).reshape(n, 16, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.of_places(self.places).permute(2, 0, 1).unsqueeze(0).contiguous()
        if self.fused_attn:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            mixed = (q @ k.transpose(-2, -1) / 12**0.5 + bias).softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(n, 16, 24).mean(1)


def classifier_of(backbone: nn.Module, n_features: int) -> PixelClassifier:
    torch.manual_seed(0)
    return PixelClassifier(backbone, n_features, 3, PREPROCESSING).eval()


def export(classifier: PixelClassifier, out: Path) -> None:
    onnx_from_checkpoint(classifier, Manifest(("a", "b", "c"), PREPROCESSING, "a test"), out)


def answers_differ_by(classifier: PixelClassifier, file: Path, n: int) -> float:
    pixels = np.random.default_rng(n).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    (got,) = onnxruntime.InferenceSession(file).run(["logits"], {"images": pixels})
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(pixels)).numpy()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def not_today(*_: Any) -> Any:
    raise RuntimeError("\x1b[96mFailed to decompose\x1b[0m\n" + "Create an issue\n" * 40)


def test_relative_positions_in_fused_attention_are_exported(tmp_path: Path) -> None:
    classifier = classifier_of(RelativeAttention(), 24)
    export(classifier, tmp_path / "model.onnx")
    assert max(answers_differ_by(classifier, tmp_path / "model.onnx", n) for n in (1, 2, 5)) < 1e-5
    assert classifier.backbone.fused_attn is True


def test_what_the_exporter_does_not_take_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "_by_export", not_today)
    for name, backbone, n_features in (
        ("attention", RelativeAttention(), 24),
        ("cnn", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8),
    ):
        classifier, file = classifier_of(backbone, n_features), tmp_path / f"{name}.onnx"
        export(classifier, file)
        assert max(answers_differ_by(classifier, file, n) for n in (1, 2, 5)) < 1e-5
        graph = onnx.load(file).graph
        assert "Constant" not in {node.op_type for node in graph.node}
        assert len({node.name for node in graph.node}) == len(graph.node)
        assert "pixel_scale" in {tensor.name for tensor in graph.initializer}


class OfTheBatch(nn.Module):
    """What it answers depends on the number of images, which a trace takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * float(len(x))


def test_a_trace_that_holds_for_its_example_alone_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "_by_export", not_today)
    with pytest.raises(ExportError, match=r"cannot export .* in any of 3 ways \(Failed to decompose\); train another"):
        export(classifier_of(OfTheBatch(), 3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
