"""Do a run's model files answer here as they did when they were made? Runs on the device: no torch, no onnx."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgecls.errors import EdgeclsError, OptionError, RunError
from edgecls.export.judge.float16_error import float16_tolerance
from edgecls.export.judge.parity import compared
from edgecls.golden import TOLERANCE, Golden
from edgecls.manifest import Precision
from edgecls.runs import LATEST, MODEL_FILES, Run, find_run, sha256_of
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.runtime.backends.selection import Candidate, can_run

# Shares of the largest golden logit, for a run whose export.json does not tell how far its files were off when they
# were made: float16 keeps three digits; EfficientNet-Lite0's INT8 was off by 4 %.
_ALLOWED: Final[dict[Precision, float]] = {"fp32": TOLERANCE, "fp16": 0.02, "int8": 0.25, "int8-cpu": 0.25}
_LEAST_AGREEMENT: Final = 0.5  # whatever the export found: below, it is another model
# Another engine's kernels round otherwise, and INT8 turns that into whole steps: noise of the same size, drawn anew.
# The largest of 16 draws is more than 2.5 times the largest of 16 others in 3 of 1,000 cases (1.5 times: in 110).
_MORE_THAN_AT_EXPORT: Final = 2.5
_IN_FLOAT16: Final[tuple[Precision, ...]] = ("fp16", "int8")  # between INT8's steps, TensorRT's file is float16


@dataclass(frozen=True)
class Check:
    """One model file on one backend, against the golden answers.

    Attributes:
        max_logit_difference, agreement: as in `Parity`; nan where the file did not run.
        allowed: what the difference may be.
        reason: why it failed; empty where it passed.
    """

    file: str
    backend: str
    max_logit_difference: float
    allowed: float
    agreement: float
    reason: str

    @property
    def passed(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class VerifyResult:
    """What the checks of all model files of a run found on this machine.

    Attributes:
        checks: every model file on every backend of this machine.
        not_here: what cannot be started on this machine, with the reason in a sentence. It says nothing of the files.
        changed: files of the run whose sha256 is not the one in its manifest, or that are gone.
        n_images: golden images.
    """

    run: Path
    checks: tuple[Check, ...]
    not_here: tuple[str, ...]
    changed: tuple[str, ...]
    n_images: int
    seconds: float

    @property
    def verdict(self) -> str:
        return "passed" if not self.changed and self.checks and all(check.passed for check in self.checks) else "failed"

    def to_json(self) -> dict[str, Any]:
        checks = [
            {
                **{name: None if value != value else value for name, value in asdict(check).items()},  # JSON has no nan
                "passed": check.passed,
            }
            for check in self.checks
        ]
        return {**asdict(self), "run": str(self.run), "checks": checks, "verdict": self.verdict}


def verify(name: str = LATEST) -> VerifyResult:
    """Run every model file of a run on every backend of this machine, and hash every file of it.

    Raises:
        RunError: not a run folder, no golden answers, or no model file in it.
        MissingExtra: ONNX Runtime is not installed.
    """
    started = time.perf_counter()
    run = find_run(name)
    golden = Golden.of(run)
    files: dict[Precision, Path] = {p: run.path(file) for p, file in MODEL_FILES.items() if run.path(file).exists()}
    if not files:
        raise RunError(f"{run.folder}: no model file in it; make them with: edgecls export {run.folder}")
    found = [each for precision, file in files.items() for each in _checks(run, precision, file, golden)]
    checks = tuple(each for each in found if isinstance(each, Check))
    not_here = tuple(each for each in found if isinstance(each, str))
    seconds = time.perf_counter() - started
    return VerifyResult(run.folder, checks, not_here, tuple(_changed(run)), len(golden.images), seconds)


def _checks(run: Run, precision: Precision, file: Path, golden: Golden) -> Iterator[Check | str]:
    """The check of a file on each backend, or why that backend cannot be started here."""
    allowed, agreed = _expected(run, precision, file, golden)
    for candidate in can_run(file, precision):
        try:
            yield _check(run, candidate, golden, allowed, agreed)
        except OptionError as error:  # onnxruntime-gpu names TensorRT also where its libraries are missing
            yield f"{candidate}: {error}"
        except EdgeclsError as error:
            yield Check(candidate.file.name, candidate.device, math.nan, allowed, math.nan, str(error))


def check_file(run: Run, precision: Precision, file: Path, candidate: Candidate, golden: Golden) -> Check:
    """The check of a model file, or of an engine that was built from it, on one backend.

    Raises:
        EdgeclsError: it does not open, or does not run.
    """
    allowed, agreed = _expected(run, precision, file, golden)
    return _check(run, candidate, golden, allowed, agreed)


def _check(run: Run, candidate: Candidate, golden: Golden, allowed: float, agreed: float) -> Check:
    with candidate.open(BackendOptions()) as backend:
        inside, outside = backend.manifest, run.manifest
        if (inside.labels, inside.preprocessing) != (outside.labels, outside.preprocessing):
            raise RunError("its labels or preprocessing are not those of the run; export the run again")
        parity = compared(backend, golden)
    reasons = []
    if not parity.max_logit_difference <= allowed:  # so that a nan fails
        reasons.append(f"logits are off by {parity.max_logit_difference:.2g}, {allowed:.2g} are allowed")
    if parity.agreement < agreed:
        reasons.append(f"top-1 agrees on {parity.agreement:.0%}, expected {agreed:.0%} or more")
    return Check(
        candidate.file.name, backend.name, parity.max_logit_difference, allowed, parity.agreement, "; ".join(reasons)
    )


def _expected(run: Run, precision: Precision, file: Path, golden: Golden) -> tuple[float, float]:
    """The logit difference allowed, and the top-1 agreement asked for: as at export, with room for other kernels."""
    largest = float(np.abs(golden.logits).max())
    allowed, agreed = _as_at_export(run, precision, largest)
    if precision in _IN_FLOAT16:  # an export on x86 did not see it: ONNX Runtime computes in float32 there
        allowed += largest * _float16_share(file)
    return allowed, agreed


def _as_at_export(run: Run, precision: Precision, largest: float) -> tuple[float, float]:
    try:
        record = ExportRecord.read(run.folder).files.get(precision)
    except RunError:  # it is listed among what has changed
        record = None
    then = record.golden if record else None
    if then is None:
        return _ALLOWED[precision] * largest, 1.0 if precision == "fp32" else 0.75
    if precision == "fp32":
        return TOLERANCE * largest, 1.0
    allowed = _MORE_THAN_AT_EXPORT * then.max_logit_difference + TOLERANCE * largest
    return allowed, max(then.agreement - 1 / then.n_images, _LEAST_AGREEMENT)


def _float16_share(file: Path) -> float:
    try:
        return float16_tolerance(file.read_bytes(), str(file))
    except (OSError, RunError):
        return 0.0  # opening it says what is wrong


def _changed(run: Run) -> Iterator[str]:
    for name, digest in run.manifest.files.items():
        path = run.path(name)
        if not path.is_file():
            yield f"{name} is gone"
        elif sha256_of(path) != digest:
            yield f"{name} is not the file that the manifest lists (another sha256)"
