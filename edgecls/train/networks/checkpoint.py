"""The checkpoint of a run: weights as tensors only, the network rebuilt from the manifest, and its answers."""

from __future__ import annotations

import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgecls.errors import OptionError, RunError
from edgecls.golden import Golden, is_near
from edgecls.manifest import Manifest
from edgecls.options import from_flat
from edgecls.runs import CHECKPOINT, GOLDEN, MANIFEST, Run, atomic_path
from edgecls.train.data.batches import Inputs, in_order
from edgecls.train.networks.models import PixelClassifier, build, read_state_dict
from edgecls.train.networks.onnx_head import attach_classical_head
from edgecls.train.recipe_options import NONE, NetworkOptions


def write_tensors(values: Any, path: Path) -> None:
    """Write what `torch.load` reads, atomically.

    Raises:
        RunError: it cannot be written.
    """
    buffer = io.BytesIO()  # torch's own writer of files raises RuntimeError for a full disk, without saying so
    torch.save(values, buffer)
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def save_checkpoint(classifier: PixelClassifier, path: Path) -> None:
    """Write the weights atomically, as a state dict that loads with `weights_only=True`."""
    write_tensors(classifier.state_dict(), path)


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
    _check_scale(classifier, manifest, path)
    attach_classical_head(classifier, run)
    return classifier.eval().to(memory_format=torch.channels_last)


def load_proved_checkpoint(run: Run) -> PixelClassifier:
    """The same, once it has answered the run's golden images as it did when the run was made.

    Raises:
        RunError: as `load_checkpoint`, or it is the checkpoint of another run.
    """
    classifier = load_checkpoint(run)
    if run.path(GOLDEN).is_file():
        golden = Golden.of(run)
        answers = logits_of(classifier, torch.from_numpy(golden.images)).numpy()
        if not is_near(answers, golden.logits):
            raise RunError(
                f"{run.path(CHECKPOINT)}: answers the run's golden images otherwise than when the run was made: it is "
                "the checkpoint of another run, or was changed; put back what was there, or train again"
            )
    return classifier


def _check_scale(classifier: PixelClassifier, manifest: Manifest, path: Path) -> None:
    """Mean and std are in the weights too; a manifest that says others would put a wrong word into every file."""
    told = [torch.tensor(each) * 255 for each in (manifest.preprocessing.mean, manifest.preprocessing.std)]
    if not all(
        torch.allclose(a.flatten(), b, atol=1e-2) for a, b in zip((classifier.mean, classifier.std), told, strict=True)
    ):
        raise RunError(
            f"{path}: was trained with another mean or std than {MANIFEST} says ({manifest.preprocessing.mean}, "
            f"{manifest.preprocessing.std}); one of the two was changed: put back what was there, or train again"
        )


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
