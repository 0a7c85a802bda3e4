"""The first start on a device: engines of what passed the gate are built and judged here, and the fastest one is kept.

Whether INT8 or FP16 is faster on a GPU is known only there (a small network may gain nothing from INT8), and so is
whether an engine gives the answers of its ONNX file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from edgecls.errors import EdgeclsError, MissingExtra, RunError
from edgecls.export.engine import EngineResult, build
from edgecls.export.judge.verify import check_file
from edgecls.export.options import BuildOptions, EngineOptions
from edgecls.golden import Golden
from edgecls.manifest import Precision
from edgecls.runs import GOLDEN, MODEL_FILES, Run, find_model, members_of
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.backends.cuda import find_gpu
from edgecls.runtime.backends.engine_file import find_tensorrt, sidecar
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.runtime.backends.selection import Candidate, engine_of, images_per_second
from edgecls.runtime.options import AskedPrecision

_ForGpu = Literal["int8", "fp16"]
_FOR_GPU: Final[tuple[_ForGpu, ...]] = ("int8", "fp16")
_LANES: Final = 2  # one copies while the other's batch is on the GPU


@dataclass(frozen=True)
class JudgedEngine:
    """One engine that was built and tried on this device.

    Attributes:
        images_per_second: of inference alone; 0 where the engine failed.
        reason: why it may not be used; empty where it may.
    """

    precision: Precision
    images_per_second: float
    reason: str


@dataclass(frozen=True)
class EngineChoice:
    """The engine that is kept.

    Attributes:
        judged: all that were tried here, the kept one among them; empty where an engine was built for another GPU,
            of a lone file, or of a precision that was asked for.
    """

    kept: EngineResult
    judged: tuple[JudgedEngine, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**self.kept.to_json(), "judged": [vars(each) for each in self.judged]}


def choose_engine(options: BuildOptions, *, on_step: Callable[[str], None] = lambda line: None) -> EngineChoice:
    """Build the engine of a run.

    With the precision `auto`, on a GPU, those of INT8 and FP16 are built, and the faster that passes is kept. The other
    one is removed, so that no start takes it by mistake. An engine that is there already is not built again.

    Raises:
        RunError: none gives the golden answers; each one's reason is in the message, and none is left.
        EdgeclsError: as `engine.build_engine`, where none could be built.
    """
    path = find_model(options.model)
    precisions = _precisions(path, options)
    if not precisions:
        return EngineChoice(build(options, on_step=on_step))
    built: list[EngineResult] = []
    judged: list[JudgedEngine] = []
    for precision in precisions:
        try:
            result = build(replace(options, precision=precision), on_step=on_step)
        except EdgeclsError as error:
            if precision == precisions[-1] and not built:
                raise
            judged.append(JudgedEngine(precision, 0.0, str(error)))
            continue
        built.append(result)
        judged.append(_judge(Run(path), result))
        on_step(_told(judged[-1]))
    return EngineChoice(_keep(path, built, judged), tuple(judged))


def first_start(
    model: str, precision: AskedPrecision, batch_size: int | None, *, on_step: Callable[[str], None] = lambda line: None
) -> None:
    """Build the engines of a run, or of an ensemble, that this device has not.

    Nothing happens where there is one already, or nothing to build it with: whoever opens the model says so.

    Args:
        batch_size: that the engine must take.

    Raises:
        EdgeclsError: as `choose_engine`.
    """
    try:
        find_tensorrt()
    except MissingExtra:
        return
    if find_gpu() is None:
        return
    for member in members_of(model):
        path = find_model(member)
        if path.is_dir() and engine_of(path, precision) is None:
            on_step(f"{path.name}: no engine for this GPU yet; building it takes minutes, once")
            options = BuildOptions(str(path), precision, EngineOptions(batch=_profile(batch_size)))
            choose_engine(options, on_step=on_step)


def _profile(batch_size: int | None) -> BatchProfile:
    usual = BatchProfile()
    return usual if batch_size is None or batch_size <= usual.max else BatchProfile(1, batch_size, batch_size)


def _precisions(path: Path, options: BuildOptions) -> Sequence[_ForGpu]:
    """What is built and judged here; nothing where a single file is meant, or where there is no GPU to judge on."""
    alone = options.precision != "auto" or options.engine.compute_capability
    if alone or not path.is_dir() or not (path / GOLDEN).is_file() or find_gpu() is None:
        return ()
    passed = ExportRecord.read(path).passed
    return [each for each in _FOR_GPU if each in passed and (path / MODEL_FILES[each]).is_file()]


def _judge(run: Run, result: EngineResult) -> JudgedEngine:
    precision, candidate = result.record.precision, Candidate(result.file, "tensorrt")
    try:
        check = check_file(run, precision, run.path(MODEL_FILES[precision]), candidate, Golden.of(run))
        if not check.passed:
            return JudgedEngine(precision, 0.0, check.reason)
        with candidate.open(BackendOptions("tensorrt", n_lanes=_LANES)) as backend:
            return JudgedEngine(precision, images_per_second(backend), "")
    except EdgeclsError as error:
        return JudgedEngine(precision, 0.0, str(error))


def _told(judged: JudgedEngine) -> str:
    return f"{judged.precision}: " + (judged.reason or f"the golden answers, {judged.images_per_second:,.0f} img/s")


def _keep(path: Path, built: Sequence[EngineResult], judged: Sequence[JudgedEngine]) -> EngineResult:
    speeds = {each.precision: each.images_per_second for each in judged if not each.reason}
    best = max(speeds, key=lambda precision: speeds[precision], default=None)
    for each in built:
        if each.record.precision != best:
            sidecar(each.file).unlink(missing_ok=True)  # before the engine, which without it is never opened
            each.file.unlink(missing_ok=True)
    kept = next((each for each in built if each.record.precision == best), None)
    if kept is None:
        reasons = "".join(f"\n  {_told(each)}" for each in judged)
        raise RunError(
            f"{path}: no engine on this device gives the golden answers, so none is kept:{reasons}\n"
            "Predict with --device cpu, and compare all files with: edgecls verify"
        )
    return kept
