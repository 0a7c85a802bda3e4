"""Pictures to what the head sees: the one pass through a frozen backbone that everything behind it waits for."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, cast

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecls.golden import TOLERANCE, relative_difference
from edgecls.train.data.batches import Inputs, in_order
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.progress import Progress

Features = Callable[[PixelClassifier, Inputs], Tensor]

# One thread of a Xeon, EfficientNet-Lite0 at 224 px: 60 ms an image in PyTorch and 23 in ONNX Runtime, which fuses
# batch norm and activation into the convolutions; writing the graph takes 1.6 s, which 43 images win back.
_WORTH_A_GRAPH: Final = 64
_N_PROVED: Final = 3  # images on which both must answer alike; the graph is traced with another number


class Featured(Protocol):
    """What gives features: a classifier, or the front of one."""

    training: bool

    def features(self, images: Tensor) -> Tensor: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def train(self, mode: bool = True) -> Any: ...


def features_of(
    classifier: Featured, pixels: Inputs, batch_size: int = 16, *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Tensor:  # fmt: skip
    """What the head sees of every picture, in evaluation mode; the classifier's own mode is restored.

    On a CPU, many pictures go through ONNX Runtime, where its first features are those of PyTorch.

    Args:
        pixels: (n, h, w, 3) uint8, in memory or decoded when asked for; one at least.
        on_progress: called after every batch.

    Returns:
        (n, n_features) float32 on the CPU.
    """
    was_training = classifier.training
    device = next((each.device for each in classifier.parameters()), torch.device("cpu"))
    classifier.train(False)
    began = time.perf_counter()
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            session = None
            if device.type == "cpu" and len(pixels) >= _WORTH_A_GRAPH:
                session = _session(classifier, pixels[torch.arange(_N_PROVED)])
            features = []
            for batch in in_order(pixels, batch_size):
                if session is None:
                    features.append(classifier.features(batch.to(device)).float().cpu())
                else:
                    features.append(torch.from_numpy(_run(session, batch)))
                done, seconds = min(len(features) * batch_size, len(pixels)), time.perf_counter() - began
                left = (len(pixels) - done) * seconds / max(done, 1)
                on_progress(Progress("features of the frozen weights", done, len(pixels), done / seconds, left))
    finally:
        classifier.train(was_training)
    return torch.cat(features)


class _Features(nn.Module):
    def __init__(self, classifier: Featured) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


def _session(classifier: Featured, pixels: Tensor) -> Any | None:
    """An ONNX Runtime session that gives the classifier's features; None where it cannot be had, or gives others.

    By PyTorch's older exporter: the newer one took 18 s for EfficientNet-Lite0, which 500 images win back. What it
    cannot trace runs in PyTorch, as everything would once it is gone.
    """
    graph = io.BytesIO()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        with quiet_exporter():
            torch.onnx.export(
                _Features(classifier).eval(),
                (pixels[: _N_PROVED - 1],),
                cast(Any, graph),  # declared for the newer exporter only, which takes no stream
                dynamo=False,
                opset_version=17,
                input_names=["images"],
                output_names=["features"],
                dynamic_axes={"images": {0: "n"}, "features": {0: "n"}},
            )
        session = onnxruntime.InferenceSession(graph.getvalue(), options, providers=["CPUExecutionProvider"])
        given = _run(session, pixels)
    except Exception:  # of many kinds, in the exporter and in the binding, and all mean: do it in PyTorch
        return None
    expected = classifier.features(pixels).numpy()
    is_same = given.shape == expected.shape and relative_difference(given, expected) <= TOLERANCE
    return session if is_same else None


def _run(session: Any, batch: Tensor) -> NDArray[np.float32]:
    (features,) = session.run(None, {"images": batch.contiguous().numpy()})
    return np.asarray(features, np.float32)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's prints and its advice to use the newer one off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
