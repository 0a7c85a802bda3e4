"""Is a model file the one that its run was measured with? Asked before anything opens it.

A run folder is files that were made from one another. A model.onnx of another run, or labels in another order, would
answer every picture wrongly and nothing would say so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from edgecls.errors import RunError, some
from edgecls.golden import Golden, relative_difference
from edgecls.manifest import Manifest, Precision
from edgecls.runs import EXPORT, GOLDEN, MANIFEST, MODEL_FILES, Run, folder_of_run
from edgecls.runtime.backends.engine_file import ENGINE_SUFFIX, EngineRecord
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.runtime.backends.external_data import check_external_data
from edgecls.runtime.backends.onnx_manifest import manifest_of_onnx, read_onnx
from edgecls.runtime.backends.protocol import Backend

# What vouches for a file: its hash, nothing (no hash was written down), or not even that (the hash is another).
Proof = Literal["hash", "none", "another"]

# Of the largest golden logit: INT8 of EfficientNet-Lite0 was off by 4 %; beyond this it is another model
ANOTHER_MODEL: Final = 0.5
# The same for a file that nothing else vouches for: two trainings on the same photos are off by a tenth and more.
_FARTHEST: Final[Mapping[Precision, float]] = {
    "fp32": 0.01, "fp16": 0.03, "int8": ANOTHER_MODEL, "int8-cpu": ANOTHER_MODEL
}  # fmt: skip

PRECISION_OF: Final = {name: precision for precision, name in MODEL_FILES.items()}


def check_belongs(file: Path) -> Proof:
    """Compare a model file or an engine with the run folder that it lies in, if it lies in one.

    What is inside must agree with manifest.json. Costs a hash of the file: milliseconds.

    Returns:
        what the hash that was written down when the file was made says about it.

    Raises:
        RunError: it is of another run, was changed or is damaged.
    """
    run = _run_of(file)
    if file.suffix == ENGINE_SUFFIX:
        if run:
            _check_engine(file, run)
        return "hash"
    data = read_onnx(file)
    check_external_data(data, file)
    if run is None:
        return "hash"  # a lone file speaks for itself
    inside, temperature = manifest_of_onnx(data, str(file)), run.manifest.temperature
    _check_agreement(file, inside, run)
    proof = _check_hash(file, hashlib.sha256(data).hexdigest(), run)
    if proof != "another" and inside.precision == "fp32" and inside.temperature != temperature:
        raise _foreign(file, [f"temperature {inside.temperature:g}, and the run {temperature:g}"], run)
    return proof


def another(file: Path) -> RunError:
    """The error for a file of a run whose hash is another than the run's."""
    run = Run(file.parent)
    return RunError(
        f"{file} is not the file that {run.path(MANIFEST)} lists (another sha256): it is of another run, or was "
        f"changed after it was measured. {_cure(run)}"
    )


def check_answers(file: Path, backend: Backend) -> None:
    """Let a file that no hash vouches for answer its run's golden images.

    Raises:
        RunError: it answers as another model would.
    """
    run = Run(file.parent)
    if run.path(GOLDEN).is_file() and not answers_as(Golden.of(run), backend, _FARTHEST[backend.manifest.precision]):
        raise RunError(f"{file}: answers the golden images of {run.folder} otherwise than that run does. {_cure(run)}")


def answers_as(golden: Golden, backend: Backend, farthest: float = ANOTHER_MODEL) -> bool:
    """Whether a file answers the golden images as its own model and not as another would.

    Args:
        farthest: what a logit may be off by, as a share of the largest golden logit.
    """
    if golden.logits.shape[1] != len(backend.manifest.labels):
        return False
    if golden.images.shape[1:3] != backend.manifest.preprocessing.size_hw:
        return False
    return relative_difference(backend.infer(golden.images), golden.logits) <= farthest  # not a nan either


def contradictions(inside: Manifest, run: Manifest) -> Iterator[str]:
    """What a model file says of itself otherwise than its run does, in words."""
    if inside.labels != run.labels:
        yield f"labels {some(inside.labels)}, and the run {some(run.labels)}"
    if inside.label_ids and run.label_ids and inside.label_ids != run.label_ids:
        yield f"label ids {some(inside.label_ids)}, and the run {some(run.label_ids)}"
    mine, other = vars(inside.preprocessing), vars(run.preprocessing)
    for name in mine:
        if mine[name] != other[name]:
            yield f"{name} {mine[name]}, and the run {other[name]}"


def _run_of(file: Path) -> Run | None:
    """The run that a file is part of; None for a lone one, which speaks for itself."""
    folder = folder_of_run(file) if file.suffix == ENGINE_SUFFIX else file.parent
    if file.suffix != ENGINE_SUFFIX and file.name not in PRECISION_OF:
        return None
    return Run(folder) if os.path.isfile(folder / MANIFEST) else None


def _check_agreement(file: Path, inside: Manifest, run: Run) -> None:
    beside = run.manifest
    differing = list(contradictions(inside, beside))
    if inside.precision != PRECISION_OF[file.name]:
        differing.append(f"precision {inside.precision}, and its name {PRECISION_OF[file.name]}")
    if differing:
        raise _foreign(file, differing, run)


def _check_hash(file: Path, digest: str, run: Run) -> Proof:
    listed = run.manifest.files.get(file.name)
    if listed not in (None, digest):
        return "another"
    try:
        measured = ExportRecord.read(run.folder).files.get(PRECISION_OF[file.name])
    except RunError:  # for those to tell who want what it says
        measured = None
    for name, said, value in (
        ("sha256", measured and measured.sha256, digest),
        ("bytes", measured and measured.bytes, file.stat().st_size),
    ):
        if said and said != value:
            raise RunError(
                f"{run.path(EXPORT)} is not about this {file.name} (it says {name} {said}, the file has {value}), so "
                f"nothing was measured of it. {_cure(run)}"
            )
    return "hash" if listed else "none"


def _check_engine(file: Path, run: Run) -> None:
    record, beside = EngineRecord.read(file), run.manifest
    differing = list(contradictions(record.manifest, beside))
    source = MODEL_FILES[record.precision]
    if differing:
        raise _foreign(file, differing, run)
    listed = beside.files.get(source)
    if listed is not None and listed != record.onnx_sha256:
        raise RunError(
            f"{file} was built from another {source} than the one in {run.folder}; build it again with: edgecls engine "
            f"{run.folder}"
        )


def _foreign(file: Path, differing: Sequence[str], run: Run) -> RunError:
    return RunError(f"{file} does not belong to {run.path(MANIFEST)}: it says {'; '.join(differing)}. {_cure(run)}")


def _cure(run: Run) -> str:
    return (
        "Put back what was there; or make the files of this run anew: edgecls export "
        f"{run.folder} (with --int8 if it had it); to use a file by itself, move it out of the run's folder"
    )
