"""An ONNX graph in the run folder as the head of a network: what a fitted classifier is kept as. No pickle anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecls.errors import RunError
from edgecls.runs import Run, atomic_path
from edgecls.train.networks.models import PixelClassifier

HEAD: Final = "head.onnx"  # in the run folder: features in, logits out
FEATURES: Final = "features"  # float32 (n, n_features)
LOGITS: Final = "logits"  # float32 (n, n_classes)


class OnnxHead(nn.Module):
    """A head that ONNX Runtime runs: (n, n_features) float -> logits (n, n_classes) float32. It cannot be trained.

    Raises:
        RunError: not an ONNX file, or not one from that many features to that many classes.
    """

    def __init__(self, model: onnx.ModelProto, n_features: int, n_classes: int, source: str = HEAD) -> None:
        super().__init__()
        self.model, self.in_features, self.out_features = model, n_features, n_classes
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the binding raises a class of its own for each kind of damage
            raise RunError(f"{source}: ONNX Runtime cannot open it: {str(error).splitlines()[0]}") from error
        ends = [[(each.name, each.shape[1:]) for each in end] for end in (session.get_inputs(), session.get_outputs())]
        if ends != [[(FEATURES, [n_features])], [(LOGITS, [n_classes])]]:
            raise RunError(
                f"{source}: goes from {ends[0]} to {ends[1]}, expected {FEATURES} of {n_features} to {LOGITS} of "
                f"{n_classes}: it is the head of another run; train the run again"
            )
        self._session: Any = session

    @classmethod
    def read(cls, path: Path, n_features: int, n_classes: int) -> OnnxHead:
        """Read the fitted head of a run.

        Raises:
            RunError: no such file, a damaged one, or the head of another network.
        """
        try:
            model = onnx.load_model_from_string(path.read_bytes())
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}; the head of this run is gone: train the run again") from error
        except Exception as error:  # protobuf's own, whose module depends on how it was built
            raise RunError(f"{path}: damaged, no ONNX file ({type(error).__name__}); train the run again") from error
        return cls(model, n_features, n_classes, str(path))

    def write(self, path: Path) -> None:
        """Write the graph atomically."""
        with atomic_path(path) as partial:
            onnx.save(self.model, partial)

    def forward(self, features: Tensor) -> Tensor:
        (logits,) = self._session.run([LOGITS], {FEATURES: features.detach().float().cpu().contiguous().numpy()})
        return torch.from_numpy(cast(NDArray[np.float32], logits)).to(features.device)


def attach_classical_head(classifier: PixelClassifier, run: Run) -> None:
    """Give the network of a run the head that lies in its folder, where it has one.

    Raises:
        RunError: the run should have one and has not, or it is damaged.
    """
    if run.path(HEAD).exists() or run.manifest.head not in ("network", "logistic"):
        width = classifier.last_linear.in_features
        set_last_layer(classifier, OnnxHead.read(run.path(HEAD), width, classifier.n_classes))


def set_last_layer(classifier: PixelClassifier, layer: nn.Linear | OnnxHead) -> None:
    """Let the logits come from this layer; fully connected layers before it stay, they make the features."""
    if isinstance(classifier.head, nn.Sequential):
        classifier.head[-1] = layer
    else:
        classifier.head = layer  # type: ignore[assignment]
    classifier.n_classes = layer.out_features
