"""A run folder's checkpoint to its model files: written, checked against the checkpoint, measured, gated.

All files are made beside the old ones and take their place together at the end: an export that fails leaves the
run as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import onnx

from edgecls.bundles import is_bundle
from edgecls.errors import RunError
from edgecls.evaluate.page.run_page import write_run_page
from edgecls.export.baseline import baseline_of
from edgecls.export.calibrate import Calibrator
from edgecls.export.convert import precisions_of, write_fp16, write_fp32
from edgecls.export.data import ExportData
from edgecls.export.engine import build_engine, check_target
from edgecls.export.job import Job
from edgecls.export.judge.float16 import FITS
from edgecls.export.judge.measure import Logits
from edgecls.export.options import FLAVOURS, ExportOptions
from edgecls.export.quantise import float16_fit, quantise
from edgecls.export.report import Written, report
from edgecls.export.result import ExportResult, MembersResult
from edgecls.export.staging import commit, commit_report, staging
from edgecls.manifest import Precision
from edgecls.progress import Progress
from edgecls.runs import (
    BASELINE,
    ENGINES,
    EXPORT,
    MODEL_FILES,
    find_run,
    members_of,
    write_json,
)


def export(options: ExportOptions, progress: Progress | None = None) -> ExportResult:
    """Write a run's model files, measure them on the validation images and judge them.

    Raises:
        RunError: not a run folder, or one that cannot be exported.
        ParityError: the FP32 file does not answer as the checkpoint does.
        ExportError, ImageError, DatasetError: with what to do next.

    Whatever is raised, the files of earlier exports stay as they were.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    if is_bundle(Path(options.run)):
        raise RunError(f"{options.run}: a bundle has no weights to export; export its run folder, and bundle that")
    run = find_run(options.run)
    if options.engine:
        check_target(options.builder)
    data = ExportData.of(run, options)
    with staging(run) as staged:
        job = Job.of(run, options, data, staged, progress)
        result = report(job, _write(job), started)
        write_json(staged / EXPORT, result.to_json())
        write_run_page(run, staged, result.to_json())
        file = job.file(result.serves)
        if baseline := baseline_of(file, data.validation, progress):
            write_json(staged / BASELINE, baseline.to_json())
        gone = commit(staged, run, result.precisions["fp32"].temperature)
    if gone:
        progress.on_step(f"removed {', '.join(gone)}: of an earlier export, and not measured beside the new files")
    if options.engine:
        file = run.path(MODEL_FILES[result.engine_from])
        engine = build_engine(file, run.path(ENGINES), options.builder, on_step=progress.on_step)
        result = replace(result, engine=engine, seconds=time.perf_counter() - started)
        commit_report(result.to_json(), run)
    return result


def _write(job: Job) -> Written:
    """The files, each from the one before: FP32, FP16, INT8."""
    # first: what is wrong with the calibration images is known in a second
    calibrator = Calibrator.of(job) if job.options.int8 else None
    chosen = calibrator.chosen if calibrator else None
    parity, precisions = write_fp32(job), precisions_of(job)
    logits: dict[Precision, Logits] = {"fp32": job.answers("fp32", job.file("fp32"))}
    fit = FITS
    if "fp16" in precisions:
        fit = float16_fit(job, onnx.load(job.file("fp32")), chosen)
        write_fp16(job, fit)
        logits["fp16"] = job.answers("fp16", job.file("fp16"))
    if calibrator is None:
        return Written(parity, logits, fit)
    flavours = [flavour for flavour in FLAVOURS if flavour in precisions]
    int8, answered = quantise(job, calibrator, flavours, logits["fp32"], fit)
    return Written(parity, {**logits, **answered}, fit, chosen, int8)


def export_members(
    options: ExportOptions,
    shown: Callable[[], AbstractContextManager[Progress]],
    on_result: Callable[[ExportResult], None] = lambda result: None,
) -> MembersResult:
    """Export a run, or each member of an ensemble of folds, one after the other.

    Args:
        shown: gives, for each of them, who is told how far its export is.
        on_result: called with each result as it is ready.

    Raises:
        As `export`; the members before are exported then.
    """
    results = []
    for member in members_of(options.run):
        with shown() as progress:
            results.append(export(replace(options, run=str(member)), progress))
        on_result(results[-1])
    return MembersResult(options.run, tuple(results))
