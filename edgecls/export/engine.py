"""ONNX to TensorRT engine, on the machine that will run it: TensorRT 10.3 and later, 11, and TensorRT for RTX.

There is one way for all of them: the network is strongly typed, so the precision is what the ONNX file says. An
engine runs where it was built and nowhere else, so its key says what it was built by, for and from; one with
another key is never loaded, it is built again. Nothing here needs torch or the onnx package.
"""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgecls.errors import ExportError, OptionError, RunError
from edgecls.export.options import BuildOptions, EngineOptions
from edgecls.manifest import Manifest, Precision
from edgecls.runs import ENGINES, atomic_path, find_model, sha256_of, write_json
from edgecls.runtime.backends.cuda import Gpu, find_gpu
from edgecls.runtime.backends.engine_file import EngineRecord, TensorRT, find_tensorrt, is_noise, logger_of, sidecar
from edgecls.runtime.backends.external_data import check_external_data
from edgecls.runtime.backends.onnx_manifest import manifest_of_onnx, read_onnx
from edgecls.runtime.backends.selection import file_for_engine

_AMPERE: Final = (8, 0)


@dataclass(frozen=True)
class EngineResult:
    """An engine that was built, or was there already.

    Attributes:
        file: the engine; its record is beside it, with the suffix `.json`.
        reused: it was there already and nothing was built.
        bytes: of the engine.
    """

    file: Path
    record: EngineRecord
    reused: bool
    seconds: float
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "file": str(self.file), "record": self.record.to_json()}


def build(options: BuildOptions, *, on_step: Callable[[str], None] = lambda line: None) -> EngineResult:
    """Build the engine of a run, or of a lone ONNX file, into the folder `engines` beside it.

    Raises:
        RunError, OptionError: no such file; or as `build_engine`.
    """
    file = file_for_engine(find_model(options.model), options.precision)
    return build_engine(file, file.parent / ENGINES, options.engine, on_step=on_step)


def build_engine(
    onnx_file: Path,
    folder: Path,
    options: EngineOptions | None = None,
    *,
    on_step: Callable[[str], None] = lambda line: None,
) -> EngineResult:
    """Build the engine of an ONNX file into `folder`, unless the very same one is there.

    Args:
        onnx_file: as `edgecls export` wrote it: `images` uint8 (n, h, w, 3) to `logits` float32 (n, n_classes).
        folder: is made if need be; gets the engine, its record and TensorRT's timing cache.
        on_step: called with a line before each step.

    Raises:
        MissingExtra: there is no TensorRT.
        OptionError: this machine, its TensorRT or the file cannot do what the options ask.
        RunError: not an ONNX file of edgecls, or the engine cannot be written.
        ExportError: TensorRT cannot read the graph or cannot build; the message has its reasons.
    """
    started = time.perf_counter()
    options = options or EngineOptions()
    tensorrt, gpu = find_tensorrt(), find_gpu()
    model = read_onnx(onnx_file)
    if check_external_data(model, onnx_file):
        raise ExportError(f"{onnx_file}: has weights in other files, and an engine needs them inside; export it again")
    manifest = manifest_of_onnx(model, str(onnx_file))
    _check_precision(manifest.precision, options, onnx_file)
    record = _wanted(tensorrt, gpu, options, manifest, hashlib.sha256(model).hexdigest())
    file = folder / record.file_name
    known = _reusable(file, record)
    if known:
        on_step(f"{file.name}: built before from this {onnx_file.name} by this {tensorrt}")
        return EngineResult(file, known, True, time.perf_counter() - started, file.stat().st_size)
    on_step(f"{record.precision}: {onnx_file.name} -> {file.name}, by {tensorrt} for {record.runs_on}")
    plan = _Build(tensorrt, gpu, record, onnx_file, folder).run(model)
    with atomic_path(file) as partial:
        partial.write_bytes(plan)
    record = replace(record, engine_sha256=hashlib.sha256(plan).hexdigest())
    write_json(sidecar(file), record.to_json())  # after the engine: killed in between, the two do not fit
    return EngineResult(file, record, False, time.perf_counter() - started, len(plan))


def check_target(options: EngineOptions) -> None:
    """Whether an engine can be built here at all: to be asked before minutes of other work.

    Raises:
        MissingExtra, OptionError: as `build_engine`.
    """
    _target(find_tensorrt(), find_gpu(), options)


def _check_precision(precision: Precision, options: EngineOptions, file: Path) -> None:
    if precision == "int8-cpu":
        raise OptionError(f"{file.name} is INT8 for CPUs, which TensorRT rejects; build from model.int8.onnx")
    if precision == "fp32" and options.dla_core is not None:
        raise OptionError(f"--dla {options.dla_core}: a DLA computes in FP16 and INT8 only, and {file.name} is FP32")


def _wanted(
    tensorrt: TensorRT, gpu: Gpu | None, options: EngineOptions, manifest: Manifest, onnx_sha256: str
) -> EngineRecord:
    """The record of the engine that is asked for, still without the engine's sha256."""
    capability = _target(tensorrt, gpu, options)
    if options.hardware_compatible:
        _check_hardware_compatible(tensorrt, capability)
    return EngineRecord(
        flavour=tensorrt.flavour,
        tensorrt=tensorrt.version,
        platform=f"{platform.system()}-{platform.machine()}".lower(),
        gpu=gpu.name if gpu and gpu.compute_capability == capability else None,
        compute_capability=capability,
        batch=options.batch,
        optimization_level=options.optimization_level,
        dla_core=options.dla_core,
        hardware_compatible=options.hardware_compatible,
        onnx_sha256=onnx_sha256,
        engine_sha256="",
        manifest=manifest,
    )


def _target(tensorrt: TensorRT, gpu: Gpu | None, options: EngineOptions) -> tuple[int, int]:
    """The compute capability to build for."""
    asked = options.compute_capability
    if asked and not tensorrt.is_rtx:
        raise OptionError(
            f"--compute-capability {asked}: {tensorrt} builds only for the GPU that it runs on; build on the device "
            'itself, or with TensorRT for RTX: pip install "edgecls[tensorrt-rtx]"'
        )
    if asked:
        major, _, minor = asked.partition(".")
        capability = int(major), int(minor)
    elif gpu:
        capability = gpu.compute_capability
    else:
        raise _no_gpu(tensorrt)
    built_for = _capabilities(tensorrt) if tensorrt.is_rtx else {capability: ""}
    if capability not in built_for:
        raise OptionError(
            f"compute capability {capability[0]}.{capability[1]}: {tensorrt} builds for "
            f"{', '.join(f'{major}.{minor}' for major, minor in built_for)}"
        )
    return capability


def _no_gpu(tensorrt: TensorRT) -> OptionError:
    elsewhere = f"{tensorrt} builds only where the engine will run: run edgecls engine there"
    if tensorrt.is_rtx:
        elsewhere = "name the GPU to build for, such as --compute-capability 8.6"
    return OptionError(
        f"no CUDA GPU was found on this machine; {elsewhere}. If there is one, edgecls doctor says why it was not found"
    )


def _capabilities(tensorrt: TensorRT) -> dict[tuple[int, int], str]:
    """What TensorRT for RTX builds for: (major, minor) to the name of its constant, such as SM86."""
    names = (name for name in dir(tensorrt.module.ComputeCapability) if re.fullmatch(r"SM\d+", name))
    return {(int(name[2:-1]), int(name[-1])): name for name in sorted(names, key=lambda name: int(name[2:]))}


def _check_hardware_compatible(tensorrt: TensorRT, capability: tuple[int, int]) -> None:
    if tensorrt.is_rtx or not hasattr(tensorrt.module, "HardwareCompatibilityLevel"):
        raise OptionError(
            f"--hardware-compatible: {tensorrt} has no such engines; "
            "leave it out, or name the GPU to build for with --compute-capability"
        )
    if capability < _AMPERE:
        raise OptionError(
            f"--hardware-compatible: is built on a GPU of compute capability 8.0 and above, this one has "
            f"{capability[0]}.{capability[1]}; leave it out"
        )


def _reusable(file: Path, wanted: EngineRecord) -> EngineRecord | None:
    """The record of the engine there, if it is the one wanted, and whole."""
    with suppress(RunError, OSError):
        record = EngineRecord.read(file)
        if record.key == wanted.key and sha256_of(file) == record.engine_sha256:
            return record
    return None


class _Build:
    """One build: what TensorRT says meanwhile is kept, and becomes the error message if it fails."""

    def __init__(
        self, tensorrt: TensorRT, gpu: Gpu | None, record: EngineRecord, onnx_file: Path, folder: Path
    ) -> None:
        self._tensorrt, self._trt = tensorrt, tensorrt.module
        self._gpu = gpu if record.gpu else None  # its memory says nothing about a GPU elsewhere
        self._record, self._file = record, onnx_file
        version = f"{tensorrt.flavour}-{tensorrt.version}-{record.runs_on}"
        self._cache_file = folder / f"timing-{hashlib.sha256(version.encode()).hexdigest()[:12]}.cache"
        self._logger = logger_of(self._trt)
        self._said: list[str] = self._logger.said
        self._said.clear()

    def run(self, model: bytes) -> memoryview:
        """The engine's bytes.

        Raises:
            ExportError, OptionError: as `build_engine`.
        """
        try:
            builder = self._trt.Builder(self._logger)
        except Exception as error:  # the binding's word for "it returned nothing"
            raise self._failed("cannot start", self._said or [str(error)]) from error
        self._check_dla(builder)
        network = self._parse(builder, model)
        config = self._configure(builder, network)
        cache = self._attach_timing_cache(config)
        try:
            plan = builder.build_serialized_network(network, config)
        except Exception as error:
            raise self._failed("could not build", [*self._said, str(error)]) from error
        if plan is None:
            raise self._failed("could not build", self._said)
        if cache is not None:
            with atomic_path(self._cache_file) as partial:
                partial.write_bytes(memoryview(cache.serialize()))
        return memoryview(plan).cast("B")

    def _failed(self, what: str, reasons: list[str]) -> ExportError:
        said = "".join(f"\n  {reason}" for reason in reasons) or " TensorRT gave no reason."
        return ExportError(
            f"{self._tensorrt} {what} an engine of {self._file} (batch {self._record.batch}):{said}\n"
            "Where it ran out of memory: take a smaller --batch, or close other programs that use the GPU"
        )

    def _check_dla(self, builder: Any) -> None:
        cores = getattr(builder, "num_DLA_cores", 0)
        core = self._record.dla_core
        if core is not None and core >= cores:
            there = f"has {cores} DLA cores, numbered from 0" if cores else "has no DLA core that this TensorRT can use"
            raise OptionError(
                f"--dla {core}: this machine {there}; leave it out to build for the GPU. "
                f"(This is {self._tensorrt}; 10.7 was the last with DLA before 11.4.1)"
            )

    def _parse(self, builder: Any, model: bytes) -> Any:
        # strong typing is a flag in TensorRT 10, and all that there is in 11
        flags: Any = getattr(self._trt, "NetworkDefinitionCreationFlag", None)
        strongly_typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
        network = builder.create_network(strongly_typed)
        parser = self._trt.OnnxParser(network, self._logger)
        adjust = getattr(getattr(self._trt, "OnnxParserFlag", None), "ADJUST_FOR_DLA", None)
        if self._record.dla_core is not None and adjust is not None:
            parser.set_flag(adjust)
        if not parser.parse(model):
            errors = [_described(parser.get_error(index)) for index in range(parser.num_errors)]
            said = "".join(f"\n  {line}" for line in errors or self._said) or " it gives no reason"
            raise ExportError(
                f"{self._file}: {self._tensorrt} cannot read this graph:{said}\n"
                "Export it again with this edgecls; if that does not help, predict with the ONNX file itself"
            )
        self._check_signature(network)
        return network

    def _check_signature(self, network: Any) -> None:
        """A graph that does not fit its manifest would be fed the wrong pixels, or give the wrong labels."""
        given, answered = network.get_input(0), network.get_output(0)
        got = (given.dtype, tuple(given.shape), tuple(answered.shape)[1:])
        manifest = self._record.manifest
        expected = (self._trt.DataType.UINT8, (-1, *manifest.preprocessing.size_hw, 3), (len(manifest.labels),))
        if network.num_inputs != 1 or got != expected:
            raise ExportError(
                f"{self._file}: the graph does not fit its manifest: (input type, input shape, answers) is "
                f"{got}, expected {expected}; export it again"
            )

    def _configure(self, builder: Any, network: Any) -> Any:
        config = builder.create_builder_config()
        config.builder_optimization_level = self._record.optimization_level
        self._add_profile(builder, config, network.get_input(0))
        if self._gpu:
            # what is left is for the weights, for activations and, on a Jetson, for every other program
            config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, self._gpu.free_bytes // 2)
        if self._tensorrt.is_rtx:
            name = _capabilities(self._tensorrt)[self._record.compute_capability]
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(getattr(self._trt.ComputeCapability, name), 0):
                raise self._failed("does not take the compute capability of", self._said)
        if self._record.hardware_compatible:
            config.hardware_compatibility_level = self._trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if self._record.dla_core is not None:
            config.default_device_type = self._trt.DeviceType.DLA
            config.DLA_core = self._record.dla_core
            config.set_flag(self._trt.BuilderFlag.GPU_FALLBACK)
        return config

    def _add_profile(self, builder: Any, config: Any, images: Any) -> None:
        profile, batch = builder.create_optimization_profile(), self._record.batch
        pixels = tuple(images.shape)[1:]
        profile.set_shape(images.name, (batch.min, *pixels), (batch.opt, *pixels), (batch.max, *pixels))
        if config.add_optimization_profile(profile) < 0:
            raise self._failed("rejects the batch profile of", self._said)

    def _attach_timing_cache(self, config: Any) -> Any:
        """What earlier builds here learnt about kernels; a cache of another device or a damaged one is dropped.

        TensorRT for RTX times nothing, and would need a GPU as soon as a cache is attached.
        """
        if self._tensorrt.is_rtx or not hasattr(config, "create_timing_cache"):
            return None
        known = self._cache_file.read_bytes() if self._cache_file.is_file() else b""
        said_before = len(self._said)
        for content in (known, b""):
            with suppress(TypeError, RuntimeError):  # what the binding makes of a cache that cannot be read
                cache = config.create_timing_cache(content)
                if cache is not None and config.set_timing_cache(cache, False):
                    del self._said[said_before:]  # that an old cache is no good is no reason for a failure
                    return cache
        return None


def _described(error: Any) -> str:
    """One parser error in one line: which node, which operator, why."""
    lines = [line for line in error.desc().splitlines() if line.strip() and not is_noise(line)]
    name, operator = error.node_name(), error.node_operator()
    node = f"node {name!r} ({operator}): " if name or operator else ""
    return node + " ".join(lines)
