"""ONNX to TensorRT engine: by the real TensorRT for RTX, which builds without a GPU, and by stand-ins for others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
from onnx import TensorProto, helper

from edgecls.calibration.ranges import Calibration
from edgecls.errors import ExportError, MissingExtra, OptionError, RunError
from edgecls.export import engine
from edgecls.export.engine import build_engine
from edgecls.export.graphs.fp16 import fp16_from_onnx
from edgecls.export.graphs.graph import embed_manifest
from edgecls.export.graphs.int8 import int8_of
from edgecls.export.options import EngineOptions, ExportOptions
from edgecls.manifest import Manifest, Precision, Preprocessing
from edgecls.runs import Run
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.backends.cuda import Gpu, find_gpu
from edgecls.runtime.backends.engine_file import EngineRecord, find_tensorrt, sidecar
from edgecls.runtime.backends.onnx_manifest import manifest_of_onnx
from tests.fakes.cuda import ORIN
from tests.fakes.tensorrt import FakeTensorRT, FakeTensorRT10, Flag, Install

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
FOR_86 = EngineOptions(compute_capability="8.6")
ONE_SIZE = BatchProfile(8, 8, 8)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real TensorRT for RTX, on a machine without a GPU."""
    module = pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT for RTX: edgecls[tensorrt-rtx]")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(engine, "find_gpu", lambda: None)
    return module


def node(operator: str, given: str, out: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, [given], [out], name=f"the_{operator}", **attributes)


CAST = node("Cast", "images", "x", to=TensorProto.FLOAT)
MEAN = node("ReduceMean", "x", "logits", axes=[1, 2], keepdims=0)


def write_onnx(
    path: Path, *nodes: onnx.NodeProto, precision: Precision = "fp32", labels: str = "abc", embed: bool = True
) -> Path:
    """uint8 (n, 8, 8, 3) -> float32 (n, 3): the mean of each channel, unless other nodes are given."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([*(nodes or (CAST, MEAN))], "tiny", [images], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    if embed:
        preprocessing = Preprocessing(size_hw=(8, 8))
        embed_manifest(model, Manifest(tuple(labels), preprocessing, model="tiny", precision=precision))
    onnx.save(model, path)
    return path


# The real TensorRT for RTX


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_a_run_builds_for_another_gpu_without_a_gpu(rtx: Any, exported_run: Path, tmp_path: Path, name: str) -> None:
    steps: list[str] = []
    result = build_engine(exported_run / name, tmp_path / "engines", FOR_86, on_step=steps.append)
    precision = "int8" if "int8" in name else "fp32"
    assert not result.reused
    assert result.bytes == result.file.stat().st_size > 1000
    assert result.file.name == f"{precision}-{result.record.key}.engine"
    assert steps == [f"{precision}: {name} -> {result.file.name}, by TensorRT for RTX {rtx.__version__} "
                     "for GPUs of compute capability 8.6"]  # fmt: skip
    assert sorted(path.suffix for path in result.file.parent.iterdir()) == [".engine", ".json"]
    record = EngineRecord.read(result.file)
    assert record == result.record
    assert (record.flavour, record.tensorrt, record.gpu) == ("tensorrt-rtx", rtx.__version__, None)
    assert (record.compute_capability, record.precision) == ((8, 6), precision)
    assert record.manifest.labels == ("checks", "stripes")
    assert json.loads(json.dumps(result.to_json()))["record"]["batch"] == {"min": 1, "opt": 16, "max": 64}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_nodes_that_stay_float32_build_too(
    rtx: Any, exported_run: Path, tmp_path: Path, precision: Literal["fp16", "int8"]
) -> None:
    graph = onnx.load(exported_run / "model.onnx")
    in_float32 = [node.name for node in graph.graph.node if node.op_type in ("Conv", "Relu")][1:5]
    manifest = replace(Run(exported_run).manifest, precision=precision)
    file = tmp_path / f"{precision}.onnx"
    if precision == "fp16":
        fp16_from_onnx(exported_run / "model.onnx", manifest, file, in_float32)
    else:
        calibration = Calibration.read(exported_run / "calibration.json")
        onnx.save(int8_of(graph, calibration, "int8", manifest, (), in_float32), file)
    assert build_engine(file, tmp_path / "engines", FOR_86).bytes > 1000


def test_the_second_build_reuses_the_engine(rtx: Any, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    first = build_engine(model, tmp_path / "engines", FOR_86)
    modified = first.file.stat().st_mtime_ns
    second = build_engine(model, tmp_path / "engines", FOR_86)
    assert (first.reused, second.reused) == (False, True)
    assert second.record == first.record
    assert first.file.stat().st_mtime_ns == modified


def test_every_option_that_shapes_an_engine_gives_it_a_name_of_its_own(rtx: Any, tmp_path: Path) -> None:
    model, other = write_onnx(tmp_path / "a.onnx"), write_onnx(tmp_path / "b.onnx", labels="abd")
    results = [
        build_engine(file, tmp_path / "engines", options)
        for file, options in (
            (model, FOR_86),
            (other, FOR_86),
            (model, replace(FOR_86, batch=BatchProfile(1, 8, 8))),
            (model, replace(FOR_86, optimization_level=2)),
            (model, replace(FOR_86, compute_capability="8.9")),
        )
    ]
    assert not any(result.reused for result in results)
    assert len({result.file for result in results}) == 5


def test_the_batch_profile_reaches_the_engine(rtx: Any, tmp_path: Path) -> None:
    """Without a GPU no engine can be opened; but the same one is built byte for byte, unless its batch is another."""
    model = write_onnx(tmp_path / "model.onnx")
    small, again, large = (
        build_engine(model, tmp_path / folder, replace(FOR_86, batch=batch)).file.read_bytes()
        for folder, batch in (("a", ONE_SIZE), ("b", ONE_SIZE), ("c", BatchProfile(8, 8, 64)))
    )
    assert small == again
    assert small != large


def damage_engine(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def damage_sidecar(file: Path) -> None:
    sidecar(file).write_text(sidecar(file).read_text(encoding="utf-8")[:-20], encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage_engine, id="engine changed"),
        pytest.param(Path.unlink, id="engine gone"),
        pytest.param(damage_sidecar, id="sidecar cut short"),
        pytest.param(lambda file: sidecar(file).unlink(), id="sidecar gone"),
    ],
)
def test_what_is_damaged_is_built_again(rtx: Any, tmp_path: Path, damage: Any) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    first = build_engine(model, tmp_path, FOR_86)
    damage(first.file)
    second = build_engine(model, tmp_path, FOR_86)
    assert (second.file, second.reused) == (first.file, False)
    assert build_engine(model, tmp_path, FOR_86).reused


def test_a_graph_that_tensorrt_cannot_read_is_one_error_with_the_node(rtx: Any, tmp_path: Path) -> None:
    transpose = node("Transpose", "images", "turned", perm=[0, 3, 1, 2])
    model = write_onnx(tmp_path / "model.onnx", transpose, CAST, MEAN)
    with pytest.raises(
        ExportError, match=r"cannot read this graph:\n  node 'the_Transpose' \(Transpose\): .*UInt8"
    ) as e:
        build_engine(model, tmp_path / "engines", FOR_86)
    assert "cudaError" not in str(e.value)
    assert not (tmp_path / "engines").exists()


def test_all_nodes_that_tensorrt_does_not_know_are_named_at_once(rtx: Any, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx", CAST, node("Unheard", "x", "y"), node("Unseen", "y", "logits"))
    with pytest.raises(ExportError) as error:
        build_engine(model, tmp_path / "engines", FOR_86)
    assert "node 'the_Unheard' (Unheard): " in str(error.value)
    assert "node 'the_Unseen' (Unseen): " in str(error.value)


def test_a_graph_cut_short_behind_its_manifest_is_an_error_too(rtx: Any, tmp_path: Path) -> None:
    model = onnx.load(write_onnx(tmp_path / "model.onnx"))
    entry = onnx.ModelProto(metadata_props=model.metadata_props).SerializeToString()
    file = tmp_path / "damaged.onnx"
    file.write_bytes(entry + b"\x3a\x05nope!")  # a graph (field 7) of five bytes that are none
    with pytest.raises(ExportError, match=r"damaged\.onnx: .* cannot read this graph:\n  .*parse the ONNX model"):
        build_engine(file, tmp_path / "engines", FOR_86)


def test_a_graph_that_does_not_fit_its_manifest_is_refused(rtx: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the graph does not fit its manifest"):
        build_engine(write_onnx(tmp_path / "model.onnx", labels="abcd"), tmp_path / "engines", FOR_86)


def test_without_a_gpu_the_error_says_what_to_do(rtx: Any, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"no CUDA GPU was found .* --compute-capability 8\.6.* edgecls doctor says why"
    ):
        build_engine(write_onnx(tmp_path / "model.onnx"), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(EngineOptions(compute_capability="9.0"), r"9\.0: .* builds for 7\.5, .*8\.6", id="unknown GPU"),
        pytest.param(EngineOptions(hardware_compatible=True), "--hardware-compatible: .* has no such", id="hardware"),
        pytest.param(EngineOptions(dla_core=0, batch=ONE_SIZE), "--dla 0: this machine has no DLA", id="DLA"),
    ],
)
def test_what_tensorrt_for_rtx_cannot_do_is_refused(
    rtx: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: EngineOptions, message: str
) -> None:
    monkeypatch.setattr(engine, "find_gpu", lambda: replace(ORIN, name="RTX 3060", compute_capability=(8, 6)))
    with pytest.raises(OptionError, match=message):
        build_engine(write_onnx(tmp_path / "model.onnx", precision="int8"), tmp_path, options)


def test_an_rtx_engine_for_a_gpu_elsewhere_is_the_one_for_the_same_gpu_here(
    rtx: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    build_engine(model, tmp_path, FOR_86)
    monkeypatch.setattr(engine, "find_gpu", lambda: replace(ORIN, name="RTX 3060", compute_capability=(8, 6)))
    assert build_engine(model, tmp_path).reused


@pytest.mark.gpu
def test_the_gpu_reads_the_batch_profile_that_was_asked_for(tmp_path: Path) -> None:
    if find_gpu() is None:
        pytest.skip("no CUDA GPU")
    try:
        trt = find_tensorrt().module
    except MissingExtra as error:
        pytest.skip(str(error))
    result = build_engine(write_onnx(tmp_path / "model.onnx"), tmp_path, EngineOptions(batch=BatchProfile(2, 4, 8)))
    built = trt.Runtime(trt.Logger()).deserialize_cuda_engine(result.file.read_bytes())
    assert [tuple(shape) for shape in built.get_tensor_profile_shape("images", 0)] == [
        (size, 8, 8, 3) for size in (2, 4, 8)
    ]


@pytest.mark.gpu
def test_the_gpu_that_is_found_is_the_one_that_torch_finds() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    gpu = find_gpu()
    assert gpu is not None
    assert gpu.name == torch.cuda.get_device_name()
    assert gpu.compute_capability == torch.cuda.get_device_capability()
    assert gpu.total_bytes == torch.cuda.mem_get_info()[1]


# The manifest, without the onnx package


def test_a_device_needs_neither_onnx_nor_onnxruntime_nor_torch() -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in ("onnx", "onnxruntime", "torch"))
    subprocess.run([sys.executable, "-c", f"import sys; {blocked}import edgecls.export.engine"], check=True)


def test_the_manifest_is_read_as_the_onnx_package_reads_it(exported_run: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx", "model.int8-cpu.onnx"):
        entries = {entry.key: entry.value for entry in onnx.load(exported_run / name).metadata_props}
        expected = Manifest.from_json(entries["edgecls.manifest"], name)
        assert manifest_of_onnx((exported_run / name).read_bytes(), name) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"not an ONNX file", "not an ONNX file", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not an ONNX file", id="picture"),
        pytest.param(b"\x3a\xff\x01abc", "not an ONNX file", id="cut short"),
        pytest.param(b"", "no edgecls manifest", id="empty"),
    ],
)
def test_a_file_that_is_no_onnx_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(RunError, match=message):
        manifest_of_onnx(content, "a.onnx")


def test_an_onnx_file_of_others_is_refused(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "model.onnx", embed=False)
    with pytest.raises(RunError, match="no edgecls manifest"):
        manifest_of_onnx(model.read_bytes(), "model.onnx")


# Options


@pytest.mark.parametrize(
    "text", ["", "1", "1,2", "1,2,3,4", "0,1,2", "8,4,16", "1,32,16", "a,b,c", "1.5,2,3", "-1,1,1"]
)
def test_a_batch_that_is_not_three_rising_numbers_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=f"--batch {text}: expected"):
        BatchProfile.parse(text)


def test_a_batch_is_read_as_it_is_written() -> None:
    assert BatchProfile.parse("1, 16,64") == BatchProfile(1, 16, 64)
    assert str(BatchProfile(2, 4, 8)) == "2,4,8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"optimization_level": 6}, "--optimization-level 6", id="level too high"),
        pytest.param({"optimization_level": -1}, "--optimization-level -1", id="level too low"),
        pytest.param({"dla_core": -1, "batch": ONE_SIZE}, "--dla -1", id="no such core"),
        pytest.param({"dla_core": 0}, "--dla 0 with --batch 1,16,64.*--batch 16,16,16", id="DLA with many sizes"),
        pytest.param({"dla_core": 0, "batch": ONE_SIZE, "hardware_compatible": True}, "--dla", id="DLA elsewhere"),
        pytest.param({"compute_capability": "86"}, "--compute-capability 86: expected .* 8.6", id="no point"),
        pytest.param(
            {"compute_capability": "8.6", "hardware_compatible": True}, "exclude one another", id="one GPU and all"
        ),
    ],
)
def test_options_that_cannot_be_are_refused_by_their_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EngineOptions(**options)


def test_without_tensorrt_the_error_names_the_extra_and_jetpack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r'pip install "edgecls\[tensorrt-rtx\]".*on a Jetson .* JetPack'):
        build_engine(tmp_path / "model.onnx", tmp_path)


# Other TensorRTs, by stand-ins that write down what is asked of them


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model.int8.onnx", precision="int8")


def test_tensorrt_10_is_asked_for_a_strongly_typed_engine(install: Install, tiny: Path, tmp_path: Path) -> None:
    fake = install().trt
    result = build_engine(tiny, tmp_path / "engines", EngineOptions(optimization_level=4))
    images = [(size, 8, 8, 3) for size in (1, 16, 64)]
    assert fake.seen == {
        "network flags": 1 << Flag.STRONGLY_TYPED,
        "builder_optimization_level": 4,
        "profile": ("images", *images),
        "workspace": 2 << 30,  # half of what is free
        "cache": b"",
    }
    assert result.record.runs_on == "Orin, compute capability 8.7"
    assert (result.record.gpu, result.record.tensorrt, result.record.flavour) == ("Orin", "10.3.0", "tensorrt")
    (cache,) = (tmp_path / "engines").glob("timing-*.cache")
    assert cache.read_bytes() == b"+"


def test_tensorrt_11_has_no_flags_and_gets_none(install: Install, tiny: Path, tmp_path: Path) -> None:
    fake = install(trt=FakeTensorRT()).trt
    assert build_engine(tiny, tmp_path / "engines").record.tensorrt == "11.4.1"
    assert fake.seen["network flags"] == 0
    assert not {"flags", "parser flag", "default_device_type", "num_compute_capabilities"} & set(fake.seen)


def test_a_dla_is_asked_for_with_the_gpu_behind_it(install: Install, tiny: Path, tmp_path: Path) -> None:
    fake = install(trt=FakeTensorRT10(n_dla_cores=2)).trt
    result = build_engine(tiny, tmp_path, EngineOptions(batch=ONE_SIZE, dla_core=1))
    asked = {name: fake.seen[name] for name in ("default_device_type", "DLA_core", "flags", "parser flag")}
    assert asked == {
        "default_device_type": "DLA",
        "DLA_core": 1,
        "flags": [Flag.GPU_FALLBACK],
        "parser flag": "adjust for DLA",
    }
    assert result.record.dla_core == 1


@pytest.mark.parametrize(
    ("fake", "core", "message"),
    [
        pytest.param(FakeTensorRT10(n_dla_cores=2), 2, "--dla 2: this machine has 2 DLA cores", id="too high"),
        pytest.param(FakeTensorRT(), 0, "--dla 0: this machine has no DLA core .*10.7 was the last", id="TensorRT 11"),
    ],
)
def test_a_dla_that_is_not_there_is_refused(
    install: Install, tiny: Path, tmp_path: Path, fake: FakeTensorRT, core: int, message: str
) -> None:
    install(trt=fake)
    with pytest.raises(OptionError, match=message):
        build_engine(tiny, tmp_path, EngineOptions(batch=ONE_SIZE, dla_core=core))


def test_fp32_on_a_dla_and_int8_for_cpus_are_refused(install: Install, tmp_path: Path) -> None:
    install(trt=FakeTensorRT10(n_dla_cores=2))
    with pytest.raises(OptionError, match=r"FP16 and INT8 only, and model\.onnx is FP32"):
        build_engine(write_onnx(tmp_path / "model.onnx"), tmp_path, EngineOptions(batch=ONE_SIZE, dla_core=0))
    with pytest.raises(OptionError, match=r"build from model\.int8\.onnx"):
        build_engine(write_onnx(tmp_path / "model.int8-cpu.onnx", precision="int8-cpu"), tmp_path)


def test_the_timing_cache_is_used_again_and_dropped_where_it_does_not_fit(
    install: Install, tiny: Path, tmp_path: Path
) -> None:
    fake = install().trt
    build_engine(tiny, tmp_path)
    build_engine(tiny, tmp_path, EngineOptions(optimization_level=1))
    assert fake.seen["cache"] == b"+"
    refusing = install(trt=FakeTensorRT10(refuses_cache=b"++")).trt
    build_engine(tiny, tmp_path, EngineOptions(optimization_level=2))
    assert refusing.seen["cache"] == b""
    (cache,) = tmp_path.glob("timing-*.cache")
    assert cache.read_bytes() == b"+"


def test_a_hardware_compatible_engine_is_good_for_other_gpus(install: Install, tiny: Path, tmp_path: Path) -> None:
    fake = install().trt
    options = EngineOptions(hardware_compatible=True)
    build_engine(tiny, tmp_path, options)
    assert fake.seen["hardware_compatibility_level"] == "Ampere and above"
    install(gpu=replace(ORIN, name="RTX 3060", compute_capability=(8, 6)))
    assert build_engine(tiny, tmp_path, options).reused
    assert not build_engine(tiny, tmp_path).reused
    install(gpu=replace(ORIN, name="T4", compute_capability=(7, 5)))
    with pytest.raises(OptionError, match=r"--hardware-compatible: .* 8\.0 and above, this one has 7\.5"):
        build_engine(tiny, tmp_path, options)


@pytest.mark.parametrize(
    ("fake", "gpu"),
    [
        pytest.param(FakeTensorRT10(), replace(ORIN, name="Orin Nano"), id="another GPU of the same capability"),
        pytest.param(FakeTensorRT(), ORIN, id="another TensorRT"),
    ],
)
def test_an_engine_from_elsewhere_is_never_reused(
    install: Install, tiny: Path, tmp_path: Path, fake: FakeTensorRT, gpu: Gpu
) -> None:
    install()
    build_engine(tiny, tmp_path)
    install(trt=fake, gpu=gpu)
    assert not build_engine(tiny, tmp_path).reused


def test_tensorrt_proper_builds_on_the_device_only(install: Install, tiny: Path, tmp_path: Path) -> None:
    install()
    with pytest.raises(OptionError, match=r"--compute-capability 8\.6: TensorRT 10\.3\.0 builds only for the GPU that"):
        build_engine(tiny, tmp_path, FOR_86)
    install("none")
    with pytest.raises(OptionError, match=r"no CUDA GPU was found on this machine; .*run edgecls engine there"):
        build_engine(tiny, tmp_path)


def test_a_failed_build_gives_tensorrts_reasons_and_leaves_nothing(
    install: Install, tiny: Path, tmp_path: Path
) -> None:
    install(trt=FakeTensorRT10(build_fails="Requested amount of GPU memory\ncould not be allocated"))
    with pytest.raises(ExportError, match=r"memory could not be allocated\n.*smaller --batch, or close other") as error:
        build_engine(tiny, tmp_path / "engines")
    assert "not worth a word" not in str(error.value)
    assert not (tmp_path / "engines").exists()


def test_a_module_without_a_builder_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", object())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRT())  # type: ignore[arg-type]
    assert str(find_tensorrt()) == "TensorRT for RTX 11.4.1"


# The record


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"schema": 2}, id="newer schema"),
        pytest.param({"flavour": "tensorflow"}, id="unknown flavour"),
        pytest.param({"compute_capability": "8.6"}, id="capability as text"),
        pytest.param({"batch": {"min": 4, "opt": 2, "max": 1}}, id="falling batch"),
        pytest.param({"batch": None}, id="no batch"),
        pytest.param({"engine_sha256": None}, id="no hash"),
        pytest.param({"manifest": {}}, id="no manifest"),
        pytest.param({"mood": "good"}, id="unknown field"),
        pytest.param({"dla_core": "0"}, id="core as text"),
    ],
)
def test_a_record_that_is_not_as_written_is_refused(
    install: Install, tiny: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    install()
    result = build_engine(tiny, tmp_path)
    path = sidecar(result.file)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(RunError, match="damaged record of an engine"):
        EngineRecord.read(result.file)
    assert not build_engine(tiny, tmp_path).reused


# Which GPU is here, by stand-ins for the bindings


def test_the_gpu_is_found_by_cuda_bindings(install: Install) -> None:
    install()
    assert find_gpu() == ORIN


@pytest.mark.parametrize("call", ["cudaGetDevice", "cudaGetDeviceProperties", "cudaMemGetInfo"])
def test_an_error_code_of_cuda_means_no_gpu(install: Install, call: str) -> None:
    install().fails[call] = "cudaErrorMemoryAllocation"
    assert find_gpu() is None


def test_no_driver_and_no_binding_mean_no_gpu(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise RuntimeError("libcuda.so.1 was not found")

    install()
    monkeypatch.setattr(sys.modules["cuda.bindings.runtime"], "cudaGetDevice", no_driver)
    assert find_gpu() is None
    install("none")
    assert find_gpu() is None


def test_pycuda_is_asked_where_only_that_is_installed(install: Install) -> None:
    machine = install("PyCUDA")
    assert find_gpu() == ORIN
    assert machine.log == ["cuInit", "pop", "detach"]
    install("PyCUDA").fails["cuInit"] = "no CUDA-capable device is detected"
    assert find_gpu() is None


def test_flags_of_an_engine_that_is_not_asked_for_are_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"--batch, --dla: no engine is asked for; add --engine"):
        ExportOptions(builder=EngineOptions(BatchProfile(8, 8, 8), dla_core=0))
    assert ExportOptions(engine=True, builder=EngineOptions(BatchProfile(8, 8, 8), dla_core=0)).engine
