"""The checkpoint of a run: weights as tensors only, the network rebuilt from the manifest, and its answers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgecls.errors import OptionError, RunError
from edgecls.runs import CHECKPOINT, Run, atomic_path
from edgecls.train.models import NONE, BuildOptions, PixelClassifier, build, read_state_dict


def save_checkpoint(classifier: PixelClassifier, path: Path) -> None:
    """Write the weights atomically, as a state dict that loads with `weights_only=True`."""
    with atomic_path(path) as partial:
        torch.save(classifier.state_dict(), partial)


def load_checkpoint(run: Run) -> PixelClassifier:
    """The trained network of a run, in evaluation mode on the CPU.

    Raises:
        RunError: no checkpoint, a damaged one, or one of another network than the manifest says.
    """
    manifest, path = run.manifest, run.path(CHECKPOINT)
    if not path.is_file():
        raise RunError(f"{run.folder}: no {CHECKPOINT} in it; only a run of edgecls train or pretrained has one")
    width = manifest.training.get("width", BuildOptions.width)
    options = BuildOptions(manifest.model, NONE, manifest.preprocessing.size_hw, width)
    classifier, _ = build(options, len(manifest.labels))
    try:
        classifier.load_state_dict(read_state_dict(path))
    except (RuntimeError, OptionError) as error:
        raise RunError(f"{path}: not the weights of {manifest.model}: {' '.join(str(error).split())[:300]}") from error
    return classifier.eval().to(memory_format=torch.channels_last)


def logits_of(classifier: PixelClassifier, pixels: Tensor, *, batch_size: int = 16) -> Tensor:
    """The checkpoint's answers, in float32 and evaluation mode; its mode is restored.

    Args:
        pixels: (n, h, w, 3) uint8.

    Returns:
        (n, n_classes) float32 on the CPU.
    """
    was_training, device = classifier.training, next(classifier.parameters()).device
    classifier.eval()
    # no TF32 on a GPU: these are the answers that every export is held to
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        answers = [classifier(batch.to(device)).cpu() for batch in torch.split(pixels, batch_size)]
    classifier.train(was_training)
    return torch.cat(answers) if answers else torch.empty(0, classifier.head.out_features)
