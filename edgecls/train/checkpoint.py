"""The checkpoint of a run: weights as tensors only, the network rebuilt from the manifest, and its answers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from edgecls.errors import OptionError, RunError
from edgecls.manifest import Manifest
from edgecls.options import from_flat
from edgecls.runs import CHECKPOINT, Run, atomic_path
from edgecls.train.batches import Inputs, in_order
from edgecls.train.models import PixelClassifier, build, read_state_dict
from edgecls.train.onnx_head import attach_classical_head
from edgecls.train.options import NONE, NetworkOptions


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
    try:
        options = network_options(manifest, str(run.folder))
        classifier, _ = build(options, len(manifest.labels), manifest.preprocessing.size_hw)
        classifier.load_state_dict(read_state_dict(path))
    except (RuntimeError, OptionError) as error:
        raise RunError(f"{path}: not the weights of {manifest.model}: {' '.join(str(error).split())[:300]}") from error
    attach_classical_head(classifier, run)
    return classifier.eval().to(memory_format=torch.channels_last)


def network_options(manifest: Manifest, source: str) -> NetworkOptions:
    """What the network of a run is rebuilt from; what an older manifest does not say has its default.

    Args:
        source: where the manifest comes from, for messages.

    Raises:
        OptionError: the manifest says what no network can be made of.
    """
    shape = {each.name for each in fields(NetworkOptions)} - {"model", "weights", "image_size"}
    told = {name: value for name, value in manifest.training.items() if name in shape}
    return from_flat(NetworkOptions, {**told, "model": manifest.model, "weights": NONE}, source)


def logits_of(classifier: PixelClassifier, pixels: Inputs, *, batch_size: int = 16) -> Tensor:
    """The checkpoint's answers, in float32 and evaluation mode; its mode is restored.

    Args:
        pixels: (n, h, w, 3) uint8, in memory or decoded when asked for.

    Returns:
        (n, n_classes) float32 on the CPU.
    """
    was_training, device = classifier.training, next(classifier.parameters()).device
    classifier.eval()
    # no TF32 on a GPU: these are the answers that every export is held to
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        answers = [classifier(batch.to(device)).cpu() for batch in in_order(pixels, batch_size)]
    classifier.train(was_training)
    return torch.cat(answers) if answers else torch.empty(0, classifier.n_classes)
