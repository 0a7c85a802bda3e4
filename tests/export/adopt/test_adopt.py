"""Somebody else's ONNX file: what is read from it, what it answers afterwards, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from edgecls import Classifier
from edgecls.errors import EdgeclsError, ExportError, OptionError, RunError
from edgecls.export.adopt.labels import read_labels
from edgecls.export.adopt.run import adopt
from edgecls.export.graphs.graph import PIXEL_SCALE
from edgecls.export.options import AdoptOptions
from edgecls.golden import Golden, photo_crops
from edgecls.manifest import IMAGENET_MEAN, IMAGENET_STD, Manifest, Preprocessing
from edgecls.runs import LATEST, RUNS, Run

N_CLASSES = 5
SIZE = 32
NCHW = ("n", 3, SIZE, SIZE)
NHWC = ("n", SIZE, SIZE, 3)
SCALES: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
ULTRALYTICS = {
    "author": "Ultralytics",
    "task": "classify",
    "imgsz": f"[{SIZE}, {SIZE}]",
    "names": str({index: f"kind {index}" for index in range(N_CLASSES)}),
}

RESHAPED_TO = {"one_image": [1, 8], "one_and_the_rest": [1, -1], "four_images": [4, 8], "one_map": [1, 8, 1, 1]}

Nodes = list[onnx.NodeProto]


def write_model(
    path: Path,
    shape: Sequence[str | int | None] = NCHW,
    *,
    body: Callable[[], Nodes] | None = None,
    tail: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("logits",),
    opset: int = 13,
    metadata: dict[str, str] | None = None,
    input_name: str = "images",  # as edgecls and Ultralytics call theirs
    n_classes: int = N_CLASSES,
) -> Path:
    """A convolution with weights from a Constant node, batch norm, ReLU, mean, and a linear head."""
    rng = np.random.default_rng(0)

    def constant(name: str, *dims: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(size=dims).astype(np.float32), name)

    weights = [
        *(constant(name, 8) for name in ("scale", "shift", "mean")),
        numpy_helper.from_array(np.linspace(0.5, 2, 8, dtype=np.float32), "variance"),
        constant("head", n_classes, 8),
        constant("bias", n_classes),
        constant("head_1x1", n_classes, 8, 1, 1),
        constant("token", 1, 8, 1, 1),
        *(numpy_helper.from_array(np.array(dims), name) for name, dims in RESHAPED_TO.items()),
    ]
    is_nhwc = shape[-1] == 3
    nodes = [helper.make_node("Transpose", [input_name], ["x"], perm=(0, 3, 1, 2))] if is_nhwc else []
    nodes += [
        helper.make_node("Constant", [], ["filters"], value=constant("filters", 8, 3, 3, 3)),
        helper.make_node("Conv", ["x" if is_nhwc else input_name, "filters"], ["a"], strides=(2, 2)),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"]),
        *(body or linear_head)(),
        *tail,
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def linear_head() -> Nodes:
    return [
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "head", "bias"], ["logits"], transB=1),
    ]


def head_reshaped_to(name: str, **attributes: int) -> Callable[[], Nodes]:
    reshape = helper.make_node("Reshape", ["pooled", name], ["features"], **attributes)
    return lambda: [reshape, *linear_head()[1:]]


def head_with_a_token_for_one_image() -> Nodes:
    """As transformers have one: to free the Reshape does not help."""
    return [
        helper.make_node("Reshape", ["pooled", "one_map"], ["map"]),
        helper.make_node("Concat", ["map", "token"], ["both"], axis=2),
        helper.make_node("ReduceMax", ["both"], ["features"], axes=[2, 3], keepdims=0),
        *linear_head()[1:],
    ]


def convolutional_head() -> Nodes:
    return [helper.make_node("Conv", ["pooled", "head_1x1", "bias"], ["logits"])]


def add_same_padding(file: Path) -> None:
    """Two convolutions in front, each with padding "same" that is computed from its input, as exporters write it."""
    model = onnx.load(file)
    graph = model.graph
    given, nodes = graph.input[0].name, []
    for layer in ("first", "second"):
        hw, total, low, high, pads, padded, out = (
            f"{layer}_{name}" for name in ("hw", "total", "low", "high", "pads", "padded", "out")
        )
        nodes += [
            helper.make_node("Shape", [given], [f"{layer}_shape"]),
            helper.make_node("Gather", [f"{layer}_shape", "height_and_width"], [hw]),
            # a window of 4, a stride of 2: (ceil(hw / 2) - 1) * 2 + 4 - hw
            helper.make_node("Add", [hw, "one"], [f"{layer}_more"]),
            helper.make_node("Div", [f"{layer}_more", "two"], [f"{layer}_steps"]),
            helper.make_node("Mul", [f"{layer}_steps", "two"], [f"{layer}_read"]),
            helper.make_node("Add", [f"{layer}_read", "two"], [f"{layer}_needed"]),
            helper.make_node("Sub", [f"{layer}_needed", hw], [total]),
            helper.make_node("Div", [total, "two"], [low]),
            helper.make_node("Sub", [total, low], [high]),
            helper.make_node("Concat", ["none", low, "none", high], [pads], axis=0),
            helper.make_node("Pad", [given, pads], [padded]),
            helper.make_node("Conv", [padded, "window"], [out], strides=(2, 2)),
        ]
        given = out
    next(node for node in graph.node if node.op_type == "Conv").input[0] = given
    window = np.random.default_rng(1).normal(size=(3, 3, 4, 4)).astype(np.float32)
    values = {"height_and_width": [2, 3], "one": 1, "two": 2, "none": [0, 0]}
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in values.items())
    graph.initializer.append(numpy_helper.from_array(window, "window"))
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    onnx.save(model, file)


def operators(run: Path) -> set[str]:
    return {node.op_type for node in onnx.load(run / "model.onnx").graph.node}


def write_labels(path: Path, n: int = N_CLASSES) -> Path:
    path.write_text("".join(f"kind {index}\n" for index in range(n)))
    return path


def answers(file: Path, preprocessing: Preprocessing, *, is_nhwc: bool = False, batch: int = 1) -> np.ndarray:
    """What the file itself gives for the golden photos, one by one, on pixels that NumPy normalised."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = (photo_crops(preprocessing) / 255 - preprocessing.mean) / preprocessing.std
    x = (x if is_nhwc else x.transpose(0, 3, 1, 2)).astype(np.float32)
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: np.stack([image] * batch)})[0][0].ravel() for image in x])


def merged_answers(run: Path, preprocessing: Preprocessing) -> np.ndarray:
    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": photo_crops(preprocessing)})[0])


@pytest.fixture
def folder(in_empty_folder: Path) -> Path:
    write_labels(in_empty_folder / "labels.txt")
    return in_empty_folder


def options(file: Path, **given: Any) -> AdoptOptions:
    return AdoptOptions(file, **{"labels": Path("labels.txt"), **SCALES, **given})


@pytest.mark.parametrize(
    ("shape", "opset", "head"),
    [
        pytest.param(NCHW, 13, linear_head, id="opset 13"),
        pytest.param(NCHW, 9, linear_head, id="opset 9"),
        pytest.param(NCHW, 21, linear_head, id="opset 21"),
        pytest.param((1, 3, SIZE, SIZE), 17, linear_head, id="fixed batch"),
        pytest.param((4, 3, SIZE, SIZE), 17, linear_head, id="fixed batch of four"),
        pytest.param(("n", 3, "h", "w"), 20, linear_head, id="any height and width"),
        pytest.param(NHWC, 15, linear_head, id="channels last, as Keras has them"),
        pytest.param(NCHW, 17, convolutional_head, id="logits of four dimensions"),
        pytest.param(NCHW, 17, head_reshaped_to("one_image"), id="Reshape to one image"),
        pytest.param((1, 3, SIZE, SIZE), 17, head_reshaped_to("one_image", allowzero=1), id="fixed batch in a Reshape"),
        pytest.param((1, 3, SIZE, SIZE), 17, head_reshaped_to("one_and_the_rest"), id="fixed batch and -1"),
        pytest.param((4, 3, SIZE, SIZE), 17, head_reshaped_to("four_images"), id="fixed batch of four in a Reshape"),
    ],
)
def test_an_adopted_file_answers_as_before(
    shape: tuple[str | int, ...], opset: int, head: Callable[[], Nodes], folder: Path
) -> None:
    file = write_model(folder / "theirs.onnx", shape, body=head, opset=opset)
    result = adopt(options(file, image_size=(SIZE,)))
    batch = shape[0] if isinstance(shape[0], int) else 1
    expected = answers(file, result.preprocessing, is_nhwc=shape == NHWC, batch=batch)
    got, atol = merged_answers(result.run, result.preprocessing), 1e-4 * np.abs(expected).max()
    assert got.shape == (16, N_CLASSES)
    assert np.allclose(got, expected, atol=atol)
    assert np.allclose(Golden.of(Run(result.run)).logits, expected, atol=atol)
    assert result.difference < 1e-5


def test_a_batch_that_is_freed_is_told_and_one_that_is_free_is_left(folder: Path) -> None:
    fixed, told = (1, 3, SIZE, SIZE), "1 Reshape node with a burnt-in batch of 1 now takes any"
    burnt_in = write_model(folder / "burnt_in.onnx", fixed, body=head_reshaped_to("one_and_the_rest"))
    assert adopt(options(burnt_in)).changes[:2] == ("the batch, fixed to 1, was made dynamic", told)
    assert told not in adopt(options(write_model(folder / "free.onnx", fixed))).changes


@pytest.mark.parametrize("size", [32, 33])
def test_padding_that_is_computed_from_a_fixed_size_becomes_part_of_the_convolution(size: int, folder: Path) -> None:
    file = write_model(folder / "theirs.onnx", ("n", 3, "h", "w"))
    add_same_padding(file)
    result = adopt(options(file, image_size=(size,)))
    assert "sizes that it worked out from its input, such as paddings, became constants" in result.changes
    nodes = onnx.load(result.run / "model.onnx").graph.node
    assert [node.op_type for node in nodes[:5]] == ["Cast", "Transpose", "Conv", "Conv", "Conv"]
    assert not {"Shape", "Gather", "Pad", "Concat"} & operators(result.run)
    expected = answers(file, result.preprocessing)
    got = merged_answers(result.run, result.preprocessing)
    assert np.allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_a_size_that_depends_on_the_batch_is_left_to_the_graph(folder: Path) -> None:
    def head() -> Nodes:
        return [
            helper.make_node("Shape", ["pooled"], ["shape"]),
            helper.make_node("Gather", ["shape", "rows_and_features"], ["wanted"]),
            helper.make_node("Reshape", ["pooled", "wanted"], ["features"]),
            *linear_head()[1:],
        ]

    file = write_model(folder / "theirs.onnx", body=head)
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "rows_and_features"))
    onnx.save(model, file)
    result = adopt(options(file))
    assert "Shape" in operators(result.run)
    assert not any("became constants" in change for change in result.changes)


def test_the_graph_is_one_that_tensorrt_and_the_quantiser_understand(folder: Path) -> None:
    result = adopt(options(write_model(folder / "theirs.onnx", NHWC, opset=12)))
    model = onnx.load(result.run / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    nodes = model.graph.node
    assert [node.op_type for node in nodes[:4]] == ["Cast", "Transpose", "Conv", "Conv"]
    assert [node.op_type for node in nodes].count("Transpose") == 1  # theirs and ours undo one another
    assert not {"BatchNormalization", "Constant"} & {node.op_type for node in nodes}
    constants = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in constants for node in nodes if node.op_type in ("Conv", "Gemm"))
    assert nodes[2].input[1] == PIXEL_SCALE
    assert len({node.name for node in nodes} - {""}) == len(nodes)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert model.ir_version <= 10
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info]
    assert len(shapes) == len(nodes) - 1
    assert all(shape[0] == "n" for shape in shapes)


def test_what_scales_the_pixels_keeps_its_name_where_their_graph_scales_too(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    next(node for node in model.graph.node if node.op_type == "Conv").input[0] = "doubled"
    model.graph.node.insert(0, helper.make_node("Mul", ["images", "two"], ["doubled"]))
    onnx.save(model, file)
    scaling = next(n for n in onnx.load(adopt(options(file)).run / "model.onnx").graph.node if n.op_type == "Conv")
    assert scaling.input[1] == PIXEL_SCALE


def test_the_run_is_complete_and_predicts(folder: Path, photos: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    result = adopt(options(file, resize="squash", crop_fraction=1.0, interpolation="bicubic", out=folder / "run"))
    assert {path.name for path in result.run.iterdir()} == {"manifest.json", "model.onnx", "golden.npz"}
    assert (RUNS / LATEST).resolve() == result.run.resolve()
    manifest = Run(result.run).manifest
    assert manifest.model == "adopted/theirs"
    assert manifest.labels == tuple(f"kind {index}" for index in range(N_CLASSES))
    assert manifest.preprocessing == Preprocessing((SIZE, SIZE), "squash", 1.0, "bicubic", **SCALES)
    assert manifest.training["adopted"] == "theirs.onnx"
    assert set(manifest.files) == {"model.onnx", "golden.npz"}
    inside = onnx.load(result.run / "model.onnx").metadata_props[0].value
    assert Manifest.from_json(inside, "inside") == replace(manifest, files={})
    with Classifier.open(result.run / "model.onnx") as classifier:
        rows = list(classifier.predict(sorted(photos.rglob("*.png"))))
    assert {row.label for row in rows} <= set(manifest.labels)
    assert json.loads(json.dumps(result.to_json()))["n_classes"] == N_CLASSES


def test_an_ultralytics_classifier_brings_all_that_is_needed(folder: Path) -> None:
    softmax = helper.make_node("Softmax", ["logits"], ["output0"], axis=1)
    file = write_model(folder / "best.onnx", tail=[softmax], outputs=["output0"], metadata=ULTRALYTICS)
    result = adopt(AdoptOptions(file))
    assert Run(result.run).manifest.labels[4] == "kind 4"
    assert result.preprocessing == Preprocessing((SIZE, SIZE), crop_fraction=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    assert "the Softmax at its end was taken off: the output is logits" in result.changes
    logits = merged_answers(result.run, result.preprocessing)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(exp / exp.sum(1, keepdims=True), answers(file, result.preprocessing), atol=1e-5)
    assert "Softmax" not in operators(result.run)


def test_flags_go_before_the_metadata(folder: Path) -> None:
    file = write_model(folder / "best.onnx", ("n", 3, None, None), metadata=ULTRALYTICS)
    (folder / "own.txt").write_text("a\nb\nc\nd\ne\n")
    result = adopt(AdoptOptions(file, labels=folder / "own.txt", image_size=(40,), crop_fraction=0.9, **SCALES))
    assert Run(result.run).manifest.labels == ("a", "b", "c", "d", "e")
    assert result.preprocessing == Preprocessing((40, 40), crop_fraction=0.9, **SCALES)


def export_now(network: nn.Module, file: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(network, (torch.zeros(2, 3, 64, 64),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)


def export_as_before(network: nn.Module, file: Path) -> None:
    names = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": {"input": {0: "batch"}}}
    torch.onnx.export(network, (torch.zeros(1, 3, 64, 64),), file, dynamo=False, opset_version=13, **names)


def little_cnn() -> nn.Module:
    convolution = nn.Conv2d(3, 8, 3, bias=False)
    head = nn.Linear(8, N_CLASSES)
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def padded_as_in_tensorflow() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0", num_classes=N_CLASSES)


EXPORTS = [
    pytest.param(little_cnn, export_now, id="a little CNN by torch.export"),
    pytest.param(
        lambda: torchvision.models.mobilenet_v3_small(num_classes=N_CLASSES), export_as_before, id="MobileNetV3 traced"
    ),
    pytest.param(padded_as_in_tensorflow, export_as_before, id="EfficientNet-Lite0 of TensorFlow traced"),
]


@pytest.mark.parametrize(("make", "write"), EXPORTS)
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_what_pytorch_exports_is_adopted(
    make: Callable[[], nn.Module], write: Callable[[nn.Module, Path], None], folder: Path
) -> None:
    torch.manual_seed(0)
    network = make().eval()
    write(network, folder / "theirs.onnx")
    result = adopt(options(folder / "theirs.onnx"))
    assert not {"Pad", "Shape"} & operators(result.run)
    pixels = torch.from_numpy(photo_crops(result.preprocessing)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = network((pixels - mean) / std).numpy()
    assert np.allclose(merged_answers(result.run, result.preprocessing), expected, atol=1e-4 * np.abs(expected).max())


def test_of_several_outputs_the_one_that_fits_the_labels_is_taken(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx", outputs=["features", "logits"])
    result = adopt(options(file))
    assert merged_answers(result.run, result.preprocessing).shape == (16, N_CLASSES)
    write_labels(folder / "labels.txt", 3)
    with pytest.raises(OptionError, match=r"0 of its outputs .* 3 labels.*features float32 \(1, 8\), logits"):
        adopt(options(file))
    write_model(file, outputs=["logits", "again"], tail=[helper.make_node("Relu", ["logits"], ["again"])])
    write_labels(folder / "labels.txt")
    with pytest.raises(OptionError, match=r"2 of its outputs .* expected exactly one"):
        adopt(options(file))


def declare(file: Path, dims: Sequence[str | int | None] | None, kind: int = TensorProto.FLOAT) -> None:
    """Say of the input of a file what another exporter might; None says no shape at all."""
    model = onnx.load(file)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(model.graph.input[0].name, kind, dims))
    onnx.save(model, file)


@pytest.mark.parametrize("shape", [pytest.param(NCHW, id="nchw"), pytest.param(NHWC, id="nhwc")])
@pytest.mark.parametrize(
    "dims",
    [
        pytest.param(("batch_size", "num_channels", "height", "width"), id="named"),
        pytest.param((None,) * 4, id="unnamed"),
        pytest.param(None, id="no shape"),
        pytest.param((2, None, None, None), id="fixed batch"),
    ],
)
def test_channels_that_the_file_does_not_say_are_those_of_its_first_convolution(
    dims: tuple[str | int | None, ...] | None, shape: tuple[str | int, ...], folder: Path
) -> None:
    file = write_model(folder / "theirs.onnx", shape)
    is_nhwc, batch = shape == NHWC, 2 if dims and dims[0] == 2 else 1
    preprocessing = Preprocessing((SIZE, SIZE), **SCALES)
    expected = answers(file, preprocessing, is_nhwc=is_nhwc, batch=batch)
    declare(file, dims)
    result = adopt(options(file, image_size=(SIZE,)))
    assert np.allclose(merged_answers(result.run, preprocessing), expected, atol=1e-4 * np.abs(expected).max())
    assert any("turned inside" in change for change in result.changes) == is_nhwc


def test_a_size_that_is_fixed_says_where_the_channels_are(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    declare(file, ("n", "c", SIZE, SIZE))
    assert adopt(options(file)).preprocessing.size_hw == (SIZE, SIZE)


@pytest.mark.parametrize(("n_channels", "cure"), [(1, "makes grey of RGB"), (4, "RGB$")])
def test_a_network_of_other_channels_is_told_by_its_first_convolution(n_channels: int, cure: str, folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    model = onnx.load(file)
    filters = np.ones((8, n_channels, 3, 3), np.float32)
    next(n for n in model.graph.node if n.op_type == "Constant").attribute[0].t.CopyFrom(
        numpy_helper.from_array(filters)
    )
    onnx.save(model, file)
    declare(file, (None,) * 4)
    with pytest.raises(ExportError, match=rf"takes {n_channels} channels?; expected float32.*{cure}"):
        adopt(options(file, image_size=(SIZE,)))


def write_flat_model(path: Path) -> Path:
    """A linear layer on all pixels, which answers whatever the order of the axes."""
    weights = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, N_CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "a", "b", "c"])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "flat", [given], [answer], [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_network_that_answers_in_either_order_is_asked_about(folder: Path) -> None:
    file = write_flat_model(folder / "flat.onnx")
    with pytest.raises(OptionError, match="say which: --layout nchw or --layout nhwc"):
        adopt(options(file, image_size=(SIZE,)))
    for layout in ("nchw", "nhwc"):
        result = adopt(options(file, image_size=(SIZE,), layout=layout, out=folder / layout))
        expected = answers(file, result.preprocessing, is_nhwc=layout == "nhwc")
        assert np.allclose(merged_answers(result.run, result.preprocessing), expected, atol=1e-3)
    with pytest.raises(OptionError, match=r"--layout nhwc: the input of .* is float \(n, 3, 32, 32\)"):
        adopt(options(write_model(folder / "theirs.onnx"), layout="nhwc"))


def take_uint8(file: Path, before: Nodes, shape: Sequence[str | int]) -> None:
    """Put nodes in front of a network that takes uint8; the last of them gives `floats`."""
    model = onnx.load(file)
    for node in model.graph.node:
        node.input[:] = ["floats" if name == "images" else name for name in node.input]
    for index, node in enumerate(before):
        model.graph.node.insert(index, node)
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(3), "three"))
    onnx.save(model, file)
    declare(file, shape, TensorProto.UINT8)


AS_FLOAT = {"to": TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("before", "shape"),
    [
        pytest.param([helper.make_node("Cast", ["images"], ["floats"], **AS_FLOAT)], NCHW, id="Cast"),
        pytest.param(
            [
                helper.make_node("Transpose", ["images"], ["turned"], perm=(0, 3, 1, 2)),
                helper.make_node("Cast", ["turned"], ["floats"], **AS_FLOAT),
            ],
            ("n", None, None, None),
            id="Transpose and Cast, channels last, unsaid",
        ),
    ],
)
def test_a_network_of_uint8_scales_its_pixels_itself(before: Nodes, shape: tuple[str | int, ...], folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    take_uint8(file, before, shape)
    result = adopt(AdoptOptions(file, Path("labels.txt"), image_size=(SIZE,)))
    pixels = photo_crops(result.preprocessing)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given = pixels.transpose(0, 3, 1, 2) if shape == NCHW else pixels
    expected = session.run(None, {"images": np.ascontiguousarray(given)})[0]
    got = merged_answers(result.run, result.preprocessing)
    assert np.allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    assert any("takes uint8 pixels and scales them itself" in change for change in result.changes)
    with pytest.raises(OptionError, match="scales them itself; leave both out"):
        adopt(options(file, image_size=(SIZE,)))


def test_a_network_that_computes_in_uint8_is_refused(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    before = [
        helper.make_node("Div", ["images", "three"], ["third"]),
        helper.make_node("Cast", ["third"], ["floats"], **AS_FLOAT),
    ]
    take_uint8(file, before, NCHW)
    with pytest.raises(ExportError, match="a Div works on it before a Cast to float32"):
        adopt(options(file))


def binary_head(*, is_squeezed: bool) -> Nodes:
    """One value for an image: the difference of two columns of the usual head."""
    columns = [helper.make_node("Gather", ["five", name], [f"of_{name}"], axis=1) for name in ("first", "second")]
    shape = ["minus_one"] if is_squeezed else []
    axis = [helper.make_node("Reshape" if is_squeezed else "Flatten", ["difference", *shape], ["logits"])]
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array([index]), name))
        for name, index in (("first", 0), ("second", 1), ("minus_one", -1))
    ]
    head = linear_head()
    head[-1].output[0] = "five"
    return [*constants, *head, *columns, helper.make_node("Sub", ["of_first", "of_second"], ["difference"]), *axis]


@pytest.mark.parametrize(
    ("ending", "opset", "body"),
    [
        pytest.param("Sigmoid", 17, lambda: binary_head(is_squeezed=False), id="as Keras has it"),
        pytest.param("Sigmoid", 9, lambda: binary_head(is_squeezed=False), id="opset 9"),
        pytest.param("Sigmoid", 13, lambda: binary_head(is_squeezed=True), id="one dimension"),
        pytest.param(None, 17, lambda: binary_head(is_squeezed=False), id="without its Sigmoid"),
    ],
)
def test_one_value_for_two_classes_becomes_two_logits(
    ending: str | None, opset: int, body: Callable[[], Nodes], folder: Path
) -> None:
    (folder / "two.txt").write_text("no\nyes\n")
    file = write_model(folder / "theirs.onnx", body=body, opset=opset, **(of(ending) if ending else {}))
    result = adopt(options(file, labels=folder / "two.txt"))
    logits = merged_answers(result.run, result.preprocessing)
    one = answers(file, result.preprocessing)[:, 0]
    got = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])) if ending else logits[:, 1]
    assert np.allclose(got, one, atol=1e-4)
    assert not logits[:, 0].any()
    assert "its one value x for two classes became two logits, 0 for 'no' and x for 'yes'" in result.changes


def test_one_value_that_is_no_logit_is_refused(folder: Path) -> None:
    (folder / "two.txt").write_text("no\nyes\n")
    for tail, message in (("HardSigmoid", "ends in a HardSigmoid"), ("Cos", "no Sigmoid at its end")):
        file = write_model(folder / "theirs.onnx", body=lambda: binary_head(is_squeezed=False), **of(tail))
        model = onnx.load(file)
        if tail == "Cos":  # squared: from 0 to 1
            model.graph.node[-1].output[0] = "cos"
            model.graph.node.append(helper.make_node("Mul", ["cos", "cos"], ["out"]))
            onnx.save(model, file)
        with pytest.raises(ExportError, match=message):
            adopt(options(file, labels=folder / "two.txt"))


SOFTMAX_IN_PIECES = [
    helper.make_node("Exp", ["logits"], ["e"]),
    helper.make_node("ReduceSum", ["e", "last"], ["sum"]),
    helper.make_node("Div", ["e", "sum"], ["probs"]),
]


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param([helper.make_node("Softmax", ["logits"], ["probs"], axis=1)], id="Softmax"),
        pytest.param([helper.make_node("LogSoftmax", ["logits"], ["probs"], axis=1)], id="LogSoftmax"),
        pytest.param([helper.make_node("Identity", ["logits"], ["probs"])], id="the same"),
        pytest.param(
            [
                helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([1]))),
                *SOFTMAX_IN_PIECES,
            ],
            id="a softmax in pieces",
        ),
    ],
)
@pytest.mark.parametrize("outputs", [["logits", "probs"], ["probs", "logits"]])
def test_of_logits_and_their_probabilities_the_logits_are_taken(tail: Nodes, outputs: list[str], folder: Path) -> None:
    file = write_model(folder / "theirs.onnx", tail=tail, outputs=outputs)
    expected = answers(write_model(folder / "alone.onnx"), Preprocessing((SIZE, SIZE), **SCALES))
    result = adopt(options(file))
    got = merged_answers(result.run, result.preprocessing)
    assert np.allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    assert any(change.startswith("of its 2 outputs") for change in result.changes)


def test_the_output_to_take_can_be_named(folder: Path) -> None:
    file = write_model(
        folder / "theirs.onnx", outputs=["logits", "again"], tail=[helper.make_node("Relu", ["logits"], ["again"])]
    )
    with pytest.raises(OptionError, match=r"2 of its outputs .* name the one to take with --output NAME"):
        adopt(options(file))
    result = adopt(options(file, output="again"))
    assert "of its 2 outputs, again was taken" in result.changes
    assert merged_answers(result.run, result.preprocessing).min() == 0
    with pytest.raises(OptionError, match=r"--output nothing: .* has no such output; it has logits, again"):
        adopt(options(file, output="nothing"))
    write_model(file, outputs=["features", "logits"])
    with pytest.raises(OptionError, match="its output features does not have one float32 value for each of 5 labels"):
        adopt(options(file, output="features"))


def test_logits_that_are_asked_one_by_one_are_refused_unless_they_are_named(folder: Path) -> None:
    tail = [helper.make_node("Sigmoid", ["logits"], ["each"])]
    file = write_model(folder / "theirs.onnx", tail=tail, outputs=["logits", "each"])
    with pytest.raises(ExportError, match=r"ends in a Sigmoid.*multi-label"):
        adopt(options(file))
    assert adopt(options(file, output="logits")).difference < 1e-5


def test_one_output_more_than_labels_may_be_the_background(folder: Path) -> None:
    write_labels(folder / "labels.txt", N_CLASSES - 1)
    with pytest.raises(OptionError, match=r"0 of its outputs .* 4 labels.* often the background"):
        adopt(options(write_model(folder / "theirs.onnx")))


@pytest.mark.parametrize("opset", [13, 17])
def test_a_network_in_training_mode_is_told_what_it_is(opset: int, folder: Path) -> None:
    file = write_model(folder / "theirs.onnx", opset=opset)
    model = onnx.load(file)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    if opset >= 14:
        norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["running_mean", "running_variance"] + (["m", "v"] if opset < 14 else []))
    onnx.save(model, file)
    with pytest.raises(
        ExportError, match=r"exported in training mode: 1 of its batch norms.*call model\.eval\(\) first"
    ):
        adopt(options(file))
    assert not RUNS.exists()


def test_a_network_that_draws_random_numbers_is_in_training_mode(folder: Path) -> None:
    tail = [
        helper.make_node("RandomUniformLike", ["logits"], ["noise"]),
        helper.make_node("Mul", ["logits", "noise"], ["out"]),
    ]
    with pytest.raises(ExportError, match=r"training mode.*RandomUniformLike draws? a new number each time"):
        adopt(options(write_model(folder / "theirs.onnx", tail=tail, outputs=["out"])))


def test_a_dropout_in_training_mode_is_taken_off(folder: Path) -> None:
    expected = answers(write_model(folder / "alone.onnx"), Preprocessing((SIZE, SIZE), **SCALES))
    tail = [
        helper.make_node("Constant", [], ["ratio"], value=numpy_helper.from_array(np.float32(0.5))),
        helper.make_node("Constant", [], ["training"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Dropout", ["logits", "ratio", "training"], ["out"]),
    ]
    result = adopt(options(write_model(folder / "theirs.onnx", tail=tail, outputs=["out"], opset=17)))
    assert "Dropout" not in operators(result.run)
    assert "its Dropout, which is for training alone, was taken off" in result.changes
    got = merged_answers(result.run, result.preprocessing)
    assert np.allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def of(op: str, **attributes: Any) -> dict[str, Any]:
    return {"tail": [helper.make_node(op, ["logits"], ["out"], **attributes)], "outputs": ["out"]}


BAD_MODELS = [
    pytest.param(
        {"body": head_with_a_token_for_one_image}, "batch size is burnt into the graph.*dynamic batch", id="burnt in"
    ),
    pytest.param(
        {"body": head_with_a_token_for_one_image, "shape": (1, 3, SIZE, SIZE)},
        "answers 3 images together otherwise than its own batch of 1",
        id="fixed and burnt in",
    ),
    pytest.param({"body": head_reshaped_to("four_images"), "shape": (1, 3, SIZE, SIZE)}, "does not run on", id="wrong"),
    pytest.param(of("Sigmoid"), "ends in a Sigmoid.*multi-label", id="sigmoid"),
    pytest.param(of("Softmax", axis=0), "ends in a Softmax that is not over the classes", id="softmax over images"),
    pytest.param(
        {
            "tail": [
                helper.make_node("Exp", ["logits"], ["e"]),
                helper.make_node("ReduceSum", ["e"], ["sum"]),
                helper.make_node("Div", ["e", "sum"], ["out"]),
            ],
            "outputs": ["out"],
        },
        "answers with probabilities, and no Softmax",
        id="softmax in pieces",
    ),
    pytest.param(of("Log"), "not finite numbers", id="nan"),
    pytest.param(of("Cast", to=TensorProto.FLOAT16), "half-precision", id="half"),
    pytest.param(of("Cast", to=TensorProto.INT64), "ONNX Runtime cannot open it: .*Type Error", id="types disagree"),
    pytest.param(of("Gelu", domain="com.microsoft"), "outside the ONNX standard.*Gelu of com.microsoft", id="foreign"),
    pytest.param({"shape": ("n", "c", "h", "w")}, "any size; give .* --image-size", id="no channels and no size"),
    pytest.param({"shape": ("n", 1, SIZE, SIZE)}, r"expected float32 \(n, 3, h, w\).*makes grey of RGB", id="grey"),
    pytest.param({"shape": ("n", 4, SIZE, SIZE)}, r"float \(n, 4, 32, 32\); expected float32 [^.]*$", id="four"),
    pytest.param({"shape": ("n", 3 * SIZE * SIZE)}, r"float \(n, 3072\); expected float32", id="flat"),
    pytest.param({"shape": ("n", 3, "h", "w")}, "any size; give .* --image-size", id="no size"),
]


@pytest.mark.parametrize(("model", "message"), BAD_MODELS)
def test_a_network_that_cannot_be_adopted_is_refused_and_leaves_nothing(
    model: dict[str, Any], message: str, folder: Path
) -> None:
    file = write_model(folder / "theirs.onnx", **model)
    with pytest.raises(EdgeclsError, match=message):
        adopt(options(file))
    assert not RUNS.exists()


def test_a_fixed_size_must_agree_with_the_flag(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    with pytest.raises(OptionError, match=r"--image-size 64: .* fixed to 32 x 32 pixels"):
        adopt(options(file, image_size=(64,)))


def test_a_quantised_file_is_refused(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    quantize_dynamic(file, folder / "int8.onnx", weight_type=QuantType.QUInt8)
    with pytest.raises(ExportError, match=r"quantised already .*; adopt the float model"):
        adopt(options(folder / "int8.onnx"))


def test_two_inputs_are_named(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    model = onnx.load(file)
    model.graph.input.append(helper.make_tensor_value_info("prompt", TensorProto.FLOAT, [1, 4]))
    onnx.save(model, file)
    with pytest.raises(ExportError, match=r"2 inputs \(images .*, prompt float \(1, 4\)\)"):
        adopt(options(file))


def test_half_precision_input_is_refused(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, file)
    with pytest.raises(ExportError, match="export it again in float32"):
        adopt(options(file))


def test_an_edgecls_file_is_one_already(folder: Path) -> None:
    adopted = adopt(options(write_model(folder / "theirs.onnx")))
    with pytest.raises(RunError, match="an edgecls model already: edgecls predict"):
        adopt(options(adopted.run / "model.onnx"))


def test_a_file_that_is_no_onnx_says_so(folder: Path) -> None:
    with pytest.raises(RunError, match="no such file"):
        adopt(options(folder / "missing.onnx"))
    for name, data in (("zip.onnx", b"PK\x03\x04 weights" * 20), ("empty.onnx", b""), ("a.json", b"{}")):
        (folder / name).write_bytes(data)
        with pytest.raises(RunError, match="not an ONNX file"):
            adopt(options(folder / name))


def test_missing_external_weights_are_named(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="theirs.data", size_threshold=0)
    assert adopt(options(file)).difference < 1e-5
    (folder / "theirs.data").unlink()
    with pytest.raises(RunError, match=r"second file that is missing or damaged .*theirs\.data"):
        adopt(options(file))


def test_what_the_file_does_not_say_is_asked_for_and_never_guessed(folder: Path) -> None:
    file = write_model(folder / "theirs.onnx")
    with pytest.raises(OptionError, match="give --labels FILE"):
        adopt(AdoptOptions(file, **SCALES))
    with pytest.raises(OptionError, match=r"does not say how it scales pixels(.|\n)*torchvision"):
        adopt(AdoptOptions(file, labels=folder / "labels.txt"))


def test_a_detector_is_told_from_a_classifier_by_its_metadata(folder: Path) -> None:
    file = write_model(folder / "yolo.onnx", metadata={**ULTRALYTICS, "task": "detect"})
    with pytest.raises(OptionError, match="task 'detect'; expected a classifier"):
        adopt(AdoptOptions(file))


def test_damaged_metadata_is_an_error(folder: Path) -> None:
    file = write_model(folder / "best.onnx", metadata={**ULTRALYTICS, "names": "__import__('os')"})
    with pytest.raises(RunError, match=r"Ultralytics metadata .* cannot be read"):
        adopt(AdoptOptions(file))


BAD_FLAGS = [
    pytest.param({"mean": (123.675, 116.28, 103.53)}, "0..255, which would be --mean 0.485 0.456 0.406", id="255"),
    pytest.param({"std": (0.2, 0, 0.2)}, "--std 0.2 0 0.2: expected numbers above 0", id="zero"),
    pytest.param({"std": None}, "belong together", id="one of two"),
    pytest.param({"image_size": (4,)}, "expected 8 to 1024", id="size"),
    pytest.param({"crop_fraction": 1.5}, "--crop-fraction 1.5", id="crop"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
def test_a_flag_out_of_range_is_an_error(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        AdoptOptions(Path("x.onnx"), **{**SCALES, **flags})


LABEL_FILES = [
    pytest.param("labels.txt", "cat\n dog \n", id="lines"),
    pytest.param("labels.txt", "\ufeffcat\r\ndog\r\n\n\n", id="lines of Windows"),
    pytest.param("labels.json", '["cat", "dog"]', id="list"),
    pytest.param("labels.json", '{"1": "dog", "0": "cat"}', id="names by index"),
    pytest.param("labels.txt", '{"dog": 1, "cat": 0}', id="indices by name"),
]


@pytest.mark.parametrize(("name", "text"), LABEL_FILES)
def test_labels_are_read_in_index_order(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name).names == ("cat", "dog")


BAD_LABELS = [
    pytest.param("a\nb\na\n", "'a' for the indices 0, 2; make them differ", id="twice"),
    pytest.param("a\n\nb\n", "the label of index 1 is empty", id="gap"),
    pytest.param("", "no labels in it", id="empty"),
    pytest.param('{"0": "a", "2": "b"}', "their indices are not 0 to 1: 1 is missing", id="index missing"),
    pytest.param('{"a": 0, "b": 0}', "1 is missing, or two labels share one", id="index twice"),
    pytest.param('{"0": ["cat", "tabby"], "1": ["dog", "husky"]}', "expected a list of names", id="lists"),
    pytest.param("[1, 2]", "expected a list of names", id="numbers"),
    pytest.param('["a", ', "not JSON", id="damaged"),
]


@pytest.mark.parametrize(("text", "message"), BAD_LABELS)
def test_a_label_file_that_is_unclear_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(OptionError, match=message):
        read_labels(tmp_path / "labels")


def test_a_label_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        read_labels(tmp_path / "none.txt")


def test_an_occupied_run_folder_is_left_as_it_is(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and is not empty"):
        adopt(options(write_model(folder / "theirs.onnx"), out=folder / "run"))
    assert [path.name for path in (folder / "run").iterdir()] == ["mine.txt"]


def test_a_run_that_cannot_be_finished_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RunError("cannot write: no space left")

    monkeypatch.setattr(Golden, "write", full)
    with pytest.raises(RunError, match="no space left"):
        adopt(options(write_model(folder / "theirs.onnx"), out=folder / "run"))
    assert not (folder / "run").exists()
    assert not (RUNS / LATEST).exists()
