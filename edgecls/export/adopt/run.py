"""Somebody else's float ONNX classifier to a run folder: pixels in, logits out, labels and preprocessing inside.

The preprocessing is merged into the graph, so that INT8, the gate, engines and predict treat the file as one that
edgecls exported. What the merged graph must answer comes from the original file, on pixels normalised by NumPy.
"""

from __future__ import annotations

import ast
import math
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from edgecls.errors import OptionError, ParityError, RunError
from edgecls.export.adopt.answer import Answer, answer_of
from edgecls.export.adopt.foreign import Network, read_network
from edgecls.export.adopt.foreign_input import any_size
from edgecls.export.adopt.label_lines import Listed
from edgecls.export.adopt.labels import by_index, read_labels
from edgecls.export.adopt.merge import Merged, merge
from edgecls.export.graphs.graph import embed_manifest
from edgecls.export.graphs.session import Floats
from edgecls.export.options import AdoptOptions, Rgb
from edgecls.golden import TOLERANCE, Golden, photo_crops, relative_difference
from edgecls.images import Pixels
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import MANIFEST, MODEL_FILES, Run, hashes_of, point_latest_at, sha256_of, whole_run
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions

_KNOWN_SCALES: Final = """Ask the model's documentation; usual are:
  torchvision, most of timm     --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
  Keras, input from -1 to 1     --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5
  Keras, input from 0 to 255    --mean 0 0 0 --std 0.00392157 0.00392157 0.00392157
  input from 0 to 1             --mean 0 0 0 --std 1 1 1"""


@dataclass(frozen=True)
class AdoptResult:
    """What was made.

    Attributes:
        run: the run folder.
        changes: what was done to the graph and where its particulars come from, a line each.
        difference: largest |difference| of any logit from the original file's on real photos, as a share of the
            largest logit.
    """

    run: Path
    file: Path
    n_classes: int
    preprocessing: Preprocessing
    changes: tuple[str, ...]
    difference: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": str(self.run), "file": str(self.file)}


def adopt(options: AdoptOptions) -> AdoptResult:
    """Leave a run folder with the network of an ONNX file; nothing of it where the file cannot be adopted.

    Raises:
        RunError: the file is missing, damaged, or an edgecls model already.
        OptionError: labels, size, mean or std are missing or do not fit the file.
        ExportError: not a float classifier of RGB images, or its batch is burnt in.
        ParityError: the merged graph does not answer as the original; report this.
    """
    started = time.perf_counter()
    network = read_network(options.file, options.layout, options.size_hw)
    told = _told_by_ultralytics(network)
    labels = read_labels(options.labels) if options.labels else _labels_of(told, network)
    preprocessing = _preprocessing(options, network, told)
    photos = photo_crops(preprocessing)
    answer = answer_of(network, preprocessing, photos, len(labels.names), options.output)
    merged = merge(network, answer, preprocessing, photos)
    digest = sha256_of(options.file)
    manifest = Manifest(
        labels.names,
        preprocessing,
        f"adopted/{options.file.stem}",
        label_ids=labels.ids,
        origin="adopted",
        training={"adopted": options.file.name, "sha256": digest},
        metrics={"parameters": _n_parameters(merged.model)},
    )
    embed_manifest(merged.model, manifest)
    with tempfile.TemporaryDirectory(prefix="edgecls-") as folder:
        candidate = Path(folder) / MODEL_FILES["fp32"]
        onnx.save(merged.model, candidate)
        difference = _prove(candidate, photos, answer.logits, options.file)
        run = _write_run(candidate, manifest, Golden(photos, answer.logits, np.empty(0, np.int64)), options.out)
    changes = _changes(network, answer, merged, labels, bool(told))
    seconds = time.perf_counter() - started
    return AdoptResult(run, options.file, len(labels.names), preprocessing, changes, difference, seconds)


def _n_parameters(model: onnx.ModelProto) -> int:
    """Float weights; constants of the graph, such as a mean, are counted with them."""
    return sum(math.prod(each.dims) for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT)


def _write_run(candidate: Path, manifest: Manifest, golden: Golden, out: Path | None) -> Path:
    if out and _is_made(out, manifest):
        folder = out
    else:
        with whole_run(manifest.model, out) as (run, folder):
            shutil.copyfile(candidate, run.path(candidate.name))
            golden.write(run, manifest)
            run.record(manifest)
    point_latest_at(folder)
    return folder


def _is_made(out: Path, manifest: Manifest) -> bool:
    """Whether this very run is there, of a process that was killed before `runs/latest` named it."""
    if not (out / MANIFEST).is_file():
        return False
    there = Run(out).manifest
    same = replace(there, files=manifest.files, created=manifest.created) == manifest
    return same and there.files == hashes_of(out)


# --- What the user and the metadata say ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Told:
    """What Ultralytics writes into its classifiers. Their transform: shortest side, centre crop, pixels / 255."""

    labels: tuple[str, ...]
    size_hw: tuple[int, int]


_PADDLE_LABELS: Final = "character"
_UNSCALED: Final = Preprocessing(mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
_ULTRALYTICS: Final = Preprocessing(crop_fraction=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def _told_by_ultralytics(network: Network) -> _Told | None:
    metadata = network.metadata
    if not {"names", "task", "imgsz"} <= set(metadata):
        return None
    if metadata["task"] != "classify":
        raise OptionError(
            f"{network.file}: its metadata says task {metadata['task']!r}; expected a classifier (classify)"
        )
    try:
        names, size = ast.literal_eval(metadata["names"]), ast.literal_eval(metadata["imgsz"])
        height, width = (size, size) if isinstance(size, int) else size
        labels = by_index({str(name): index for index, name in names.items()}, str(network.file))
    except (ValueError, SyntaxError, TypeError, AttributeError) as error:
        raise RunError(f"{network.file}: its Ultralytics metadata (names, imgsz) cannot be read: {error}") from error
    return _Told(labels, (height, width))


def _labels_of(told: _Told | None, network: Network) -> Listed:
    if told:
        return Listed(told.labels)
    # RapidAI's files, made from PaddlePaddle's, have a label a line
    lines = tuple(line.strip() for line in network.metadata.get(_PADDLE_LABELS, "").splitlines())
    if len(lines) < 2 or not all(lines) or len(set(lines)) < len(lines):
        raise OptionError(f"{network.file}: does not say what its classes are; give --labels FILE with a label a line")
    return Listed(lines)


def _preprocessing(options: AdoptOptions, network: Network, told: _Told | None) -> Preprocessing:
    usual = _ULTRALYTICS if told else _UNSCALED if network.is_unscaled else Preprocessing()
    if network.is_unscaled and options.mean and options.std and _shifts(options.mean, options.std):
        raise OptionError(
            f"--mean and --std: {network.file} takes uint8 pixels from 0 to 255 and scales them itself; leave both out"
        )
    if not (told or network.is_unscaled or (options.mean and options.std)):
        raise OptionError(f"--mean and --std: {network.file.name} does not say how it scales pixels. {_KNOWN_SCALES}")
    return Preprocessing(
        _size_hw(options, network, told),
        options.resize or usual.resize,
        options.crop_fraction or usual.crop_fraction,
        options.interpolation or usual.interpolation,
        options.mean or usual.mean,
        options.std or usual.std,
    )


def _shifts(mean: Rgb, std: Rgb) -> bool:
    """Whether pixels from 0 to 255 would come out changed."""
    return not (np.allclose(mean, _UNSCALED.mean) and np.allclose(std, _UNSCALED.std, rtol=1e-4))


def _size_hw(options: AdoptOptions, network: Network, told: _Told | None) -> tuple[int, int]:
    asked = options.size_hw
    told_hw = told.size_hw if told else (None, None)
    height, width = asked or (network.size_hw[0] or told_hw[0], network.size_hw[1] or told_hw[1])
    if height is None or width is None:
        raise any_size(network.file)
    for got, fixed in zip((height, width), network.size_hw, strict=True):
        if fixed not in (None, got):
            fixed_h, fixed_w = network.size_hw
            said = ",".join(map(str, options.image_size or ()))
            raise OptionError(
                f"--image-size {said}: the input of {network.file} is fixed to {fixed_h} x {fixed_w} pixels; leave the "
                "flag out, or export the file again with that size"
            )
    return height, width


# --- What came of it -------------------------------------------------------------------------------------------


def _prove(candidate: Path, photos: Pixels, logits: Floats, file: Path) -> float:
    """Let the merged file answer the golden photos; returns the relative difference from the original.

    Raises:
        ParityError: it answers otherwise.
    """
    with OnnxRuntimeBackend(candidate, BackendOptions("cpu")) as backend:
        difference = relative_difference(backend.infer(photos), logits)
    if not difference <= TOLERANCE:  # written so that nan fails
        raise ParityError(
            f"{file}: with the preprocessing merged into it, it answers otherwise than before: logits are off by "
            f"{difference:.1%} of the largest (allowed {TOLERANCE:.1%}). Nothing was written; report this"
        )
    return difference


def _changes(network: Network, answer: Answer, merged: Merged, labels: Listed, by_metadata: bool) -> tuple[str, ...]:
    opset, ours = network.model.opset_import[0].version, merged.model.opset_import[0].version
    n = merged.n_freed
    lines = {
        "what the flags leave open comes from its Ultralytics metadata": by_metadata,
        str(labels.note): labels.note is not None,
        f"of its {answer.n_outputs} outputs, {answer.output} was taken": answer.n_outputs > 1,
        f"the {answer.ending} at its end was taken off: the output is logits": answer.ending is not None,
        f"its one value x for two classes became two logits, 0 for {labels.names[0]!r} and x for {labels.names[1]!r}": (
            answer.is_binary
        ),
        "its Dropout, which is for training alone, was taken off": network.n_dropouts > 0,
        "it takes uint8 pixels and scales them itself, so no mean or std is applied": network.is_unscaled,
        f"the batch, fixed to {network.batch}, was made dynamic": network.batch is not None,
        f"{n} Reshape node{'s' if n > 1 else ''} with a burnt-in batch of {network.batch or 1} now "
        f"take{'' if n > 1 else 's'} any": n > 0,
        "sizes that it worked out from its input, such as paddings, became constants": merged.has_fixed_sizes,
        "the input order (n, h, w, 3) was turned inside": network.is_nhwc,
        f"opset {opset} became {ours}": opset != ours,
    }
    return tuple(line for line, holds in lines.items() if holds)
