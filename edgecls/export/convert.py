"""A run's checkpoint, or the graph that was adopted, to the float files: FP32, proved, and FP16."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx

from edgecls.errors import ExportError, OptionError, RunError
from edgecls.export.graphs.fp16 import fp16_from_onnx
from edgecls.export.graphs.graph import needs_onnx_runtime
from edgecls.export.job import Job
from edgecls.export.judge.float16 import Float16Fit
from edgecls.export.judge.parity import Parity, check_parity
from edgecls.export.onnx import onnx_from_run
from edgecls.manifest import Precision
from edgecls.runs import CHECKPOINT, MODEL_FILES, sha256_of


def write_fp32(job: Job) -> Parity:
    """Write the FP32 file, and prove that it answers as the checkpoint does.

    Raises:
        RunError: the adopted file is another one by now.
        ExportError: the network itself answers with numbers that are not finite.
        ParityError: the file answers otherwise.
    """
    file = job.file("fp32")
    if job.manifest.origin == "adopted":
        job.progress.on_step(f"fp32: {file.name}, as it was adopted")
        if sha256_of(job.run.path(file.name)) != job.run.manifest.files.get(file.name):
            raise RunError(
                f"{job.run.path(file.name)} is not the file that was adopted (another sha256); adopt it again"
            )
        shutil.copyfile(job.run.path(file.name), file)
    else:
        job.progress.on_step(f"fp32: {CHECKPOINT} -> {file.name}")
        onnx_from_run(job.run, job.manifest, file)
    if not np.isfinite(job.golden.logits).all():
        raise ExportError(
            f"{job.run.folder}: the network itself answers its golden images with numbers that are not finite, so "
            "no file of it can be right; nothing was written. Train again, with a lower --lr"
        )
    with job.open("fp32") as backend:
        return check_parity(backend, job.golden, job.run.path(file.name))


def write_fp16(job: Job, fit: Float16Fit) -> None:
    """Write the FP16 file of the FP32 file, with what float16 cannot hold in float32."""
    job.progress.on_step("fp16: weights and maths in float16")
    if fit.misfits:
        job.progress.on_step(f"fp16: {len(fit.in_float32)} nodes stay float32, as {fit.misfits[0]}")
    manifest = dataclasses.replace(job.manifest, precision="fp16")
    fp16_from_onnx(job.file("fp32"), manifest, job.file("fp16"), fit.in_float32)


def precisions_of(job: Job) -> tuple[Precision, ...]:
    """Those asked for, less what only TensorRT reads where it cannot run the graph."""
    if not needs_onnx_runtime(onnx.load(job.file("fp32"))):
        return job.options.precisions
    trees = MODEL_FILES["fp32"] if job.manifest.head == "network" else job.manifest.head
    if job.options.engine:
        raise OptionError(
            f"--engine: TensorRT cannot run the trees of {trees}; ONNX Runtime can. For an engine train "
            "with --classifier svm or logistic"
        )
    if "int8" in job.options.precisions:
        job.progress.on_step(f"no {MODEL_FILES['int8']}: it is for TensorRT, which cannot run {trees}")
    return tuple(precision for precision in job.options.precisions if precision != "int8")
