"""The images of an export: where ranges come from, what it is judged on, and what must not calibrate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecls import metrics
from edgecls.datasets import ClassNames, read_labelled, read_split
from edgecls.errors import DatasetError, EdgeclsError, RunError
from edgecls.export.options import ExportOptions
from edgecls.golden import Golden
from edgecls.labelled import LabelledImage
from edgecls.manifest import Manifest
from edgecls.runs import (
    MODEL_FILES,
    SPLIT,
    Run,
    sha256_of,
)
from edgecls.runtime.backends.belonging import contradictions
from edgecls.runtime.backends.onnx_manifest import manifest_of_onnx
from edgecls.train.evidence import check_evidence


@dataclass(frozen=True)
class ExportData:
    """The images of an export: where ranges may come from, what the gate is measured on, what must not calibrate."""

    training: tuple[LabelledImage, ...]
    validation: tuple[LabelledImage, ...]
    held_out: tuple[Path, ...]
    checkpoint_answers: metrics.Indices | None  # to the validation images, where they are the run's own

    @classmethod
    def of(cls, run: Run, options: ExportOptions) -> ExportData:
        manifest = run.manifest
        classes = ClassNames.of(manifest)
        splits: Mapping[Any, tuple[LabelledImage, ...]] = {"train": (), "val": (), "test": ()}
        if run.path(SPLIT).exists():
            splits = read_split(run.path(SPLIT), manifest.labels).splits
        held_out = [image.path for image in (*splits["val"], *splits["test"])]
        own = options.validation is None
        validation = splits["val"] if own else read_labelled(options.validation, classes)  # type: ignore[arg-type]
        if not validation and len(options.precisions) > 1:
            raise DatasetError(
                f"{run.folder}: this run has no validation images, so nothing can tell what FP16 or INT8 loses; "
                "give some: --validation DIR|CSV (class folders, or path,label)"
            )
        calibrates = options.int8 and options.sample.source is None
        _check_there(run, [*(validation if own else ()), *(splits["train"] if calibrates else ())])
        check_evidence(run, splits["val"], _of_earlier_files(run, manifest))
        golden_answers = Golden.of(run).validation_answers
        if own and len(golden_answers) != len(validation):
            raise RunError(f"{run.folder}: {SPLIT} and the golden answers are of two trainings; train the run again")
        given = () if own else (image.path for image in validation)
        return cls(splits["train"], validation, (*held_out, *given), golden_answers if own and validation else None)


def _of_earlier_files(run: Run, manifest: Manifest) -> Iterator[str]:
    """Of an earlier export: where a file is the one that the manifest lists, it is the manifest that has changed."""
    for name in MODEL_FILES.values():
        path = run.path(name)
        if not path.is_file() or manifest.files.get(name) != sha256_of(path):
            continue
        try:
            inside = manifest_of_onnx(path.read_bytes(), str(path))
        except EdgeclsError:
            continue  # it is about to be made anew
        for difference in contradictions(inside, manifest):
            yield f"{name} says {difference}"


def _check_there(run: Run, used: Sequence[LabelledImage]) -> None:
    gone = [image.path for image in used if not image.path.exists()]
    if gone:
        raise RunError(
            f"{run.folder}: {len(gone)} images of the training data are no longer there, first {gone[0]}; export "
            "measures on them. Put the data back where it was, give others with --validation and --calibration, or "
            "train again"
        )
