"""Which file of a run, on which engine: what was asked for, or what is fastest here among what passed the gate."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from edgecls.cache import cache_folder
from edgecls.errors import EdgeclsError, MissingExtra, OptionError, RunError
from edgecls.golden import Golden
from edgecls.manifest import Precision
from edgecls.processor import cpu_name, int8_sums_overflow
from edgecls.runs import ENGINES, GOLDEN, MANIFEST, MODEL_FILES, Run, sha256_of, write_json
from edgecls.runtime.backends.belonging import PRECISION_OF, another, answers_as, check_belongs
from edgecls.runtime.backends.cuda import find_gpu
from edgecls.runtime.backends.engine_file import ENGINE_SUFFIX
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.runtime.backends.onnx_manifest import manifest_of_file
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend, onnxruntime_devices
from edgecls.runtime.backends.open_vino import OpenVinoBackend
from edgecls.runtime.backends.own_process import OwnInEachProcess
from edgecls.runtime.backends.protocol import Backend, BackendOptions, noise
from edgecls.runtime.backends.tensor_rt import TensorRtBackend, find_engine
from edgecls.runtime.options import AskedPrecision, Device

_N_TIMED: Final = 16  # images an inference while candidates are timed
_TIMED_SECONDS: Final = 0.3
_RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings")


@dataclass(frozen=True)
class Candidate:
    """A file, and what would run it.

    Attributes:
        is_unproved: no hash vouches for the file; `belonging.check_answers` does.
    """

    file: Path
    device: Device
    is_unproved: bool = field(default=False, compare=False)

    def open(self, options: BackendOptions) -> Backend:
        """Open it.

        Raises:
            RunError, OptionError, MissingExtra: as the backends do.
        """
        return OwnInEachProcess(partial(self._opened, BackendOptions(self.device, options.n_threads, options.n_lanes)))

    def _opened(self, on_device: BackendOptions) -> Backend:
        if self.file.suffix == ENGINE_SUFFIX:
            return TensorRtBackend(self.file, on_device)
        if self.device == "openvino":
            return OpenVinoBackend(self.file, on_device)
        return OnnxRuntimeBackend(self.file, on_device)

    def __str__(self) -> str:
        return f"{self.file.name} on {self.device}"


def select(
    path: Path,
    precision: AskedPrecision = "auto",
    options: BackendOptions | None = None,
    *,
    on_note: Callable[[str], None] = lambda line: None,
) -> Candidate:
    """The file to open, and what is to run it.

    With `auto`, all that this machine has and the run's gate let through is timed for a moment; the result is kept for
    this machine, these packages and this file in the user's cache folder.

    Args:
        path: a run folder, an ONNX file or an engine.
        on_note: called with a line where something takes time or is passed over.

    Raises:
        RunError: a run without that file.
        OptionError: the device is not there.
        MissingExtra: nothing that could run it is installed.
    """
    options = options or BackendOptions()
    if options.device != "auto":
        return _belonging(path, _on_device(path, precision, options.device, on_note))
    candidates = list(_belonging_ones(path, _candidates(path, precision), on_note))
    if not candidates:
        raise MissingExtra(f"opening {path}", "cpu")
    if len(candidates) == 1:
        return candidates[0]
    return _fastest(path, candidates, options, on_note)


def _belonging(path: Path, candidate: Candidate) -> Candidate:
    """The same, told whether its file is still to be proved. One that is named itself may be: it is what is meant.

    Raises:
        RunError: the file does not belong to the run.
    """
    proof = check_belongs(candidate.file)
    if proof == "another" and path.is_dir():
        raise another(candidate.file)
    return replace(candidate, is_unproved=proof != "hash")


def _belonging_ones(path: Path, candidates: Iterable[Candidate], on_note: Callable[[str], None]) -> Iterator[Candidate]:
    """Those whose file belongs to its run. An engine that does not is passed over: any device has an ONNX file too."""
    for candidate in candidates:
        try:
            yield _belonging(path, candidate)
        except RunError as error:
            if candidate.file.suffix != ENGINE_SUFFIX or not path.is_dir():
                raise
            on_note(f"{error}: not used")


def can_run(file: Path, precision: Precision) -> list[Candidate]:
    """Everything on this machine that runs this ONNX file of a run, and the engine built from it if it fits.

    Raises:
        MissingExtra: nothing does.
    """
    found = [Candidate(file, device) for device in onnxruntime_devices()]
    if precision in ("fp32", "int8-cpu") and _openvino_is_right(precision):  # the other files are for GPUs
        found.append(Candidate(file, "openvino"))
    engine = find_engine(file.parent / ENGINES, precision)
    if engine:
        found.append(Candidate(engine, "tensorrt"))
    if not found:
        raise MissingExtra(f"running {file.name}", "cpu")
    return found


def _on_device(path: Path, precision: AskedPrecision, device: Device, on_note: Callable[[str], None]) -> Candidate:
    is_engine = path.suffix == ENGINE_SUFFIX
    if is_engine and device != "tensorrt":
        raise OptionError(f"--device {device}: {path} is an engine, which TensorRT runs; leave the flag out")
    if device == "openvino" and int8_sums_overflow():
        return Candidate(_file_without_overflow(path, precision, on_note), device)
    if is_engine or device != "tensorrt":
        return Candidate(_file_for(path, precision, device), device)
    engine = engine_of(path, precision) if path.is_dir() else None
    if engine:
        return Candidate(engine, device)
    if "tensorrt" in onnxruntime_devices():
        return Candidate(_file_for(path, precision, device), device)
    if find_gpu() is None:
        raise RunError(f"--device tensorrt: no NVIDIA GPU can be used here; why not says: edgecls doctor {path}")
    raise RunError(
        f"{path}: no engine for this machine"
        + (f" in {path / ENGINES}" if path.is_dir() else "")
        + "; build one with: "
        f"edgecls engine {path}" + ("" if precision == "auto" else f" --precision {precision}")
    )


def _file_without_overflow(path: Path, precision: AskedPrecision, on_note: Callable[[str], None]) -> Path:
    """What OpenVINO is given on a CPU without VNNI, where its sums of INT8 products overflow.

    Raises:
        OptionError: an INT8 file is asked for.
    """
    file = _file_for(path, precision, "openvino")
    if not file.is_file() or _precision_of(file) != "int8-cpu":
        return file
    why = "this CPU has no VNNI, where OpenVINO's sums of INT8 products overflow and answers are wrong"
    if precision == "auto" and path.is_dir():
        on_note(f"{why}: FP32 is used")
        return _file_of(path, "fp32")
    raise OptionError(f"--device openvino: {file.name} is INT8, and {why}; use --device cpu, or --precision fp32")


def _candidates(path: Path, precision: AskedPrecision) -> Iterator[Candidate]:
    """What there is to choose from here, the CPU's ONNX Runtime first: it is what the gate was measured on."""
    if path.suffix == ENGINE_SUFFIX:
        yield Candidate(path, "tensorrt")
        return
    in_onnxruntime = onnxruntime_devices()
    if "cpu" in in_onnxruntime:
        yield Candidate(_file_for(path, precision, "cpu"), "cpu")
    for_openvino = _file_for(path, precision, "openvino") if version_of("openvino") else None
    if for_openvino and _openvino_is_right(_precision_of(for_openvino)):
        yield Candidate(for_openvino, "openvino")
    if "cuda" in in_onnxruntime:
        yield Candidate(_file_for(path, precision, "cuda"), "cuda")
    engine = engine_of(path, precision) if path.is_dir() else None
    if engine:
        yield Candidate(engine, "tensorrt")


def _openvino_is_right(precision: Precision) -> bool:
    """Whether OpenVINO is here and computes such a file as it was measured.

    Without VNNI its sums of INT8 products overflow, and it has no switch against that as ONNX Runtime has: a tiny
    network's logits were off by ten times as much.
    """
    return bool(version_of("openvino")) and not (precision == "int8-cpu" and int8_sums_overflow())


def _precision_of(file: Path) -> Precision:
    return PRECISION_OF.get(file.name) or manifest_of_file(file).precision


def engine_of(run: Path, precision: AskedPrecision) -> Path | None:
    """The engine of a run folder that this machine can load, if there is one; with `auto` of the best precision.

    Raises:
        RunError: the run's export.json is damaged.
    """
    if not (run / ENGINES).is_dir():
        return None
    measured = ExportRecord.read(run)
    wanted: Sequence[Precision] = [measured.engine_from, *measured.passed] if precision == "auto" else [precision]
    return next((file for each in wanted if (file := find_engine(run / ENGINES, each))), None)


def _file_for(path: Path, precision: AskedPrecision, device: Device) -> Path:
    """The ONNX file: `path` itself, or the one of this precision for this device in the run folder `path`."""
    if not path.is_dir():
        return path
    if precision == "int8":
        return _file_of(path, "int8" if device == "tensorrt" else "int8-cpu")
    if precision != "auto":
        return _file_of(path, precision)
    measured = ExportRecord.read(path)
    if device == "tensorrt":
        return _file_of(path, measured.engine_from)
    if device == "cuda":  # it runs INT8 as float between Quantize and Dequantize: slower than float alone
        return _file_of(path, "fp16" if "fp16" in measured.passed else "fp32")
    return _file_of(path, measured.serves)


def _file_of(path: Path, chosen: Precision) -> Path:
    file = path / MODEL_FILES[chosen]
    if not file.is_file():
        if not (path / MANIFEST).is_file():
            raise RunError(f"{path}: no {MANIFEST} in it, so this is not a run folder, or its training did not end")
        flag = {"int8": " --int8", "int8-cpu": " --int8", "fp16": " --fp16"}.get(chosen, "")
        other = ", or use --precision fp32" if flag and (path / MODEL_FILES["fp32"]).is_file() else ""
        raise RunError(f"{path}: no {file.name} in this run folder; make it with: edgecls export {path}{flag}{other}")
    return file


def file_for_engine(path: Path, precision: AskedPrecision) -> Path:
    """The ONNX file that a TensorRT engine is built from: `path` itself, or one of the run folder `path`.

    Raises:
        RunError: a run without that file.
        OptionError: a file of another precision than the one asked for.
    """
    if not path.is_dir():
        if precision != "auto" and path.is_file():
            inside = manifest_of_file(path).precision
            if inside != precision:
                raise OptionError(f"--precision {precision}: {path} is {inside}; leave the flag out")
        return path
    chosen = ExportRecord.read(path).engine_from if precision == "auto" else precision
    return _belonging(path, Candidate(_file_of(path, chosen), "tensorrt")).file


def _fastest(
    path: Path, candidates: Sequence[Candidate], options: BackendOptions, on_note: Callable[[str], None]
) -> Candidate:
    if path.is_file():  # before every engine says in its own way that it is none of ours
        manifest_of_file(path)
    key = _key(candidates, options)
    known = _read_cache()
    speeds = known.get(key)
    if not (isinstance(speeds, dict) and set(speeds) <= {str(each) for each in candidates} and speeds):
        on_note(f"timing {', '.join(map(str, candidates))} (once on this machine)")
        speeds = _timed(candidates, options, _golden_of(path), on_note)
        with suppress(EdgeclsError):  # a home that cannot be written costs the next start a second, nothing else
            write_json(_cache_file(), {**known, key: speeds})
    best = max(speeds, key=lambda name: speeds[name])
    return next(each for each in candidates if str(each) == best)


def _timed(
    candidates: Sequence[Candidate], options: BackendOptions, golden: Golden | None, on_note: Callable[[str], None]
) -> dict[str, float]:
    """Images a second of inference by candidate; those that cannot run or answer otherwise are left out.

    Raises:
        EdgeclsError: none can run; what the first one said.
    """
    speeds: dict[str, float] = {}
    first: EdgeclsError | None = None
    for candidate in candidates:
        try:
            with candidate.open(options) as backend:
                if golden and not answers_as(golden, backend):
                    on_note(f"{candidate}: answers the run's golden images otherwise than its checkpoint: not used")
                    continue
                speeds[str(candidate)] = round(images_per_second(backend), 1)
        except EdgeclsError as error:
            first = first or error
            on_note(f"{candidate}: {error}: not used")
    if not speeds:
        raise first or RunError(
            "nothing on this machine answers the golden images as the checkpoint does: edgecls verify"
        )
    return speeds


def _golden_of(path: Path) -> Golden | None:
    return Golden.of(Run(path)) if path.is_dir() and (path / GOLDEN).is_file() else None


def images_per_second(backend: Backend) -> float:
    """Of inference alone, with every lane busy."""
    batch = noise(_N_TIMED, backend.manifest)

    def infer_until(deadline: float) -> int:
        done = 0
        while time.perf_counter() < deadline or not done:
            backend.infer(batch)
            done += _N_TIMED
        return done

    with ThreadPoolExecutor(backend.n_lanes) as pool:
        for seconds in (0.0, _TIMED_SECONDS):  # the first round allocates
            started = time.perf_counter()
            n = sum(pool.map(infer_until, [started + seconds] * backend.n_lanes))
            elapsed = time.perf_counter() - started
    return n / elapsed


def _key(candidates: Sequence[Candidate], options: BackendOptions) -> str:
    decides = [
        platform.node(), cpu_name(), options.threads, options.n_lanes, [version_of(name) for name in _RUNTIMES],
        [(str(each), sha256_of(each.file) if each.file.is_file() else "") for each in candidates],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:24]


def version_of(package: str) -> str:
    """Of an installed package, without importing it; empty where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cache_file() -> Path:
    return cache_folder() / "speeds.json"


def _read_cache() -> dict[str, Any]:
    try:
        values = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
