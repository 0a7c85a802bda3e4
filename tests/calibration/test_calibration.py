"""Which images set the ranges, and what the ranges are."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from edgecls import images
from edgecls.calibration.collectors import COLLECTORS, RANGE_OF, Extremes, Histogram
from edgecls.calibration.options import METHODS, Method, SampleOptions
from edgecls.calibration.ranges import Calibration, calibrate, network_sha256
from edgecls.calibration.sample import CalibrationSet, choose_calibration_set
from edgecls.datasets import ClassNames, Dataset, read_split
from edgecls.errors import DatasetError, ExportError, OptionError
from edgecls.export.graphs.int8 import QUANTIZED_OPS, int8_of
from edgecls.runs import Run, sha256_of
from tests.conftest import draw, write_class_folders, write_image

CLASSES = ClassNames(("checks", "stripes"))


@pytest.fixture(scope="module")
def run(exported_run: Path) -> Run:
    return Run(exported_run)


@pytest.fixture(scope="module")
def dataset(run: Run) -> Dataset:
    return read_split(run.path("split.csv"), run.manifest.labels)


@pytest.fixture(scope="module")
def graph(run: Run) -> onnx.ModelProto:
    return onnx.load(run.path("model.onnx"))


def choose(run: Run, dataset: Dataset, options: SampleOptions) -> CalibrationSet:
    held_out = [image.path for image in dataset.splits["val"]]
    return choose_calibration_set(options, CLASSES, run.manifest.preprocessing, dataset.splits["train"], held_out)


def calibrated(run: Run, graph: onnx.ModelProto, chosen: CalibrationSet, method: Method = "minmax") -> Calibration:
    return calibrate(graph, chosen, run.manifest.preprocessing, QUANTIZED_OPS, method)


# which images


def test_the_calibration_file_lists_training_images_only(run: Run, dataset: Dataset) -> None:
    calibration = json.loads(run.path("calibration.json").read_text())
    training = {str(image.path) for image in dataset.splits["train"]}
    used = {image["path"]: image["sha256"] for image in calibration["images"]}
    assert len(used) == calibration["n_images"] == 32
    assert set(used) <= training
    path, digest = next(iter(used.items()))
    assert sha256_of(Path(path)) == digest


def test_the_same_seed_draws_the_same_calibration_set(run: Run, dataset: Dataset) -> None:
    one, again, other = (choose(run, dataset, SampleOptions(20, seed)) for seed in (0, 0, 1))
    assert one == again
    assert one.images != other.images
    with pytest.raises(OptionError, match="--calibration-images 0"):
        SampleOptions(0)


def test_a_folder_of_ones_own_is_used_and_its_missing_classes_are_named(
    run: Run, dataset: Dataset, tmp_path: Path
) -> None:
    write_class_folders(tmp_path, 20, first_seed=500)
    shutil.rmtree(tmp_path / "stripes")
    chosen = choose(run, dataset, SampleOptions(40, source=tmp_path))
    assert len(chosen.images) == 20
    notes = " | ".join(chosen.notes())
    assert "20 calibration images rather than 40" in notes
    assert "no calibration image of 1 classes: stripes" in notes
    assert "20 calibration images are few" in notes


def test_a_flat_folder_needs_no_labels(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    for index in range(40):
        write_image(tmp_path / f"{index}.png", draw("checks", 900 + index))
    chosen = choose(run, dataset, SampleOptions(40, source=tmp_path))
    assert len(chosen.images) == 40
    assert chosen.notes() == []


def test_a_csv_may_name_the_images(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    write_class_folders(tmp_path, 1, first_seed=500)
    (tmp_path / "set.csv").write_text("path,label\nchecks/0.png,checks\nstripes/0.png,1\ngone.png,checks\n")
    chosen = choose(run, dataset, SampleOptions(40, source=tmp_path / "set.csv"))
    assert [Path(image.path).name for image in chosen.images] == ["0.png", "0.png"]
    assert chosen.missing_labels == ()
    (reason,) = chosen.left_out.values()
    assert "No such file" in reason


def test_corrupt_images_are_left_out_by_name_and_one_image_is_called_few(
    run: Run, dataset: Dataset, tmp_path: Path
) -> None:
    write_image(tmp_path / "good.png", draw("checks", 900))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    chosen = choose(run, dataset, SampleOptions(40, source=tmp_path))
    assert [Path(image.path).name for image in chosen.images] == ["good.png"]
    assert [Path(path).name for path in chosen.left_out] == ["broken.jpg"]
    assert any("1 calibration image left out, first" in note for note in chosen.notes())
    assert any("1 calibration images are few" in note for note in chosen.notes())


def test_no_usable_image_is_an_error_and_none_are_invented(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no images.*none are invented"):
        choose(run, dataset, SampleOptions(source=tmp_path))
    with pytest.raises(DatasetError, match="no such folder or CSV"):
        choose(run, dataset, SampleOptions(source=tmp_path / "nowhere"))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DatasetError, match=r"none of 1 calibration images can be used.*broken\.jpg"):
        choose(run, dataset, SampleOptions(source=tmp_path))
    with pytest.raises(DatasetError, match=r"this run has no training images.*--calibration DIR"):
        choose_calibration_set(SampleOptions(), CLASSES, run.manifest.preprocessing, [], [])
    with pytest.raises(DatasetError, match="expected a folder of images, or a CSV"):
        choose(run, dataset, SampleOptions(source=run.path("calibration.json")))


def test_a_copy_of_a_validation_image_is_refused_whatever_its_name(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    write_class_folders(tmp_path, 3, first_seed=500)
    shutil.copy(dataset.splits["val"][0].path, tmp_path / "checks" / "innocent.png")
    with pytest.raises(DatasetError, match=r"1 calibration images are validation.*innocent\.png.*--allow-overlap"):
        choose(run, dataset, SampleOptions(source=tmp_path))
    allowed = choose(run, dataset, SampleOptions(source=tmp_path, allow_overlap=True))
    assert [Path(path).name for path in allowed.overlapping] == ["innocent.png"]
    assert any("--allow-overlap" in note for note in allowed.notes())


def test_a_training_image_that_is_in_validation_too_is_not_drawn(run: Run, dataset: Dataset) -> None:
    training = dataset.splits["train"]
    chosen = choose_calibration_set(
        SampleOptions(40), CLASSES, run.manifest.preprocessing, training[:10], [training[3].path]
    )
    assert len(chosen.images) == 9
    assert chosen.left_out == {str(training[3].path): "a validation or test image has the same content"}


@pytest.mark.parametrize(("name", "label"), [("checks", "checks"), ("n02", "1"), ("1", "1"), ("2", "2"), ("3", None)])
def test_a_class_is_told_by_label_then_id_then_index(name: str, label: str | None) -> None:
    assert ClassNames(("checks", "1", "2"), ("n01", "n02", "n03")).label_of(name) == label


# collectors


@pytest.mark.parametrize("method", METHODS)
def test_a_range_does_not_depend_on_order_or_batching(method: Method) -> None:
    values = np.random.default_rng(0).laplace(0, 2, 30_000).astype(np.float32)
    one, other = Histogram(), Histogram()
    one.add(values.reshape(10, 3000))
    for part in np.split(values[::-1], 30):
        other.add(part)
    assert (one.limit, one.counts.sum()) == (other.limit, len(values))
    assert np.abs(one.counts - other.counts).sum() <= 30  # values on the edge of a bin
    assert RANGE_OF[method](one) == pytest.approx(RANGE_OF[method](other), rel=0.02)


def test_a_histogram_widens_without_losing_a_count() -> None:
    histogram = Histogram()
    for scale in (0.001, 0, 7, 1000):
        histogram.add(np.full(100, scale, np.float32))
        histogram.add(np.full(50, -scale, np.float32))
    assert histogram.counts.sum() == 600
    assert histogram.limit == 1024
    assert (histogram.lowest, histogram.highest) == (-1000, 1000)
    near = np.abs(histogram.centres - 1000) < 0.2
    assert histogram.counts[near].sum() == 100


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_tensor_far_from_zero_has_a_range(method: Method, sign: int) -> None:
    for spread in (1e-6, 0.01, 0.7):
        collector = COLLECTORS[method]()
        values = (sign * (2 + spread * np.random.default_rng(0).random(4000))).astype(np.float32)
        values[0] = sign * 2.9  # a lonely one, which some methods cut off
        collector.add(values)
        low, high = RANGE_OF[method](collector)
        assert low <= high
        assert max(abs(low), abs(high)) <= 2.9 + 1e-3  # float32 of it


def test_percentile_and_mse_cut_off_a_lonely_outlier_and_minmax_does_not() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    values[0] = 100
    histogram = Histogram()
    histogram.add(values)
    assert RANGE_OF["minmax"](histogram)[1] == 100
    low, high = RANGE_OF["percentile"](histogram)
    assert (low, high) == pytest.approx(np.percentile(values, [0.005, 99.995]), abs=0.05)
    assert 2 < RANGE_OF["entropy"](histogram)[1] < 60
    assert 2 < RANGE_OF["mse"](histogram)[1] < 90


def test_mse_finds_the_range_with_the_least_error() -> None:
    values = np.random.default_rng(0).standard_t(3, 100_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        return float(
            np.mean((values - np.clip(np.rint(values / step), np.rint(low / step), np.rint(high / step)) * step) ** 2)
        )

    best = error(*RANGE_OF["mse"](histogram))
    for share in (0.1, 0.25, 0.75, 1):
        assert best <= 1.001 * error(share * histogram.lowest, share * histogram.highest)


# ranges


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_the_tensors(run: Run, dataset: Dataset, graph: onnx.ModelProto, method: Method) -> None:
    """What a plain run over the same images sees lies within, and the extremes are exact."""
    chosen = choose(run, dataset, SampleOptions(11))
    calibration = calibrated(run, graph, chosen, method)
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    names = [node.output[0] for node in graph.graph.node if node.op_type in ("Conv", "Relu")]
    observed.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    pixels = np.stack([images.load(Path(image.path), run.manifest.preprocessing) for image in chosen.images])
    session = onnxruntime.InferenceSession(observed.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, values in zip(names, session.run(names, {"images": pixels}), strict=True):
        low, high = calibration.ranges[name]
        if method == "minmax":
            assert (low, high) == pytest.approx((values.min(), values.max()), rel=1e-4)
        assert values.min() * 1.001 - 1e-6 <= low <= high <= values.max() * 1.001 + 1e-6
        if name in calibration.means:
            assert calibration.means[name] == pytest.approx(values.mean((0, 2, 3)), rel=1e-3, abs=1e-5)
    assert len(set(names) & set(calibration.means)) > 2


def test_memory_does_not_grow_with_the_number_of_images(run: Run, dataset: Dataset, graph: onnx.ModelProto) -> None:
    few = choose(run, dataset, SampleOptions(16))
    many = CalibrationSet(few.images * 12, few.source, 192)
    peaks = []
    for chosen in (few, few, many):  # the first also pays for what is allocated once
        tracemalloc.start()
        calibrated(run, graph, chosen, "entropy")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1]


def test_a_calibration_is_read_back_as_it_was_and_kept_while_its_key_fits(
    run: Run, dataset: Dataset, graph: onnx.ModelProto, tmp_path: Path
) -> None:
    chosen = choose(run, dataset, SampleOptions(11))
    calibration = calibrated(run, graph, chosen)
    calibration.write(tmp_path / "calibration.json")
    kept = Calibration.read(tmp_path / "calibration.json")
    assert kept == calibration
    preprocessing = run.manifest.preprocessing
    assert calibrate(graph, chosen, preprocessing, QUANTIZED_OPS, "minmax", kept=kept) is kept
    fewer = choose(run, dataset, SampleOptions(10))
    assert calibrate(graph, fewer, preprocessing, QUANTIZED_OPS, "minmax", kept=kept) is not kept
    assert calibrate(graph, chosen, preprocessing, QUANTIZED_OPS, "entropy", kept=kept) is not kept
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    other.graph.node[0].name = "renamed"
    assert calibrate(other, chosen, preprocessing, QUANTIZED_OPS, "minmax", kept=kept) is not kept


def test_the_manifest_inside_a_graph_is_not_part_of_the_network(graph: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    del other.metadata_props[:]
    assert network_sha256(other) == network_sha256(graph)
    other.graph.node.pop()
    assert network_sha256(other) != network_sha256(graph)


def test_a_damaged_or_edited_calibration_is_not_read(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    for text in ("", "[]", "{}", '{"key": 1}', run.path("calibration.json").read_text().replace('"mse"', '"magic"')):
        path.write_text(text)
        with pytest.raises(ExportError, match="calibration"):
            Calibration.read(path)
    values = json.loads(run.path("calibration.json").read_text())
    name = next(iter(values["ranges"]))
    for changed in ({"images": values["images"][1:]}, {"means": {}}, {"ranges": {**values["ranges"], name: [0, 1e-6]}}):
        path.write_text(json.dumps({**values, **changed}))
        with pytest.raises(ExportError, match="do not fit its key"):
            Calibration.read(path)


def test_a_calibration_of_another_network_is_refused(run: Run, graph: onnx.ModelProto, tmp_path: Path) -> None:
    calibration = Calibration.read(run.path("calibration.json"))
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    other.graph.node[0].name = "renamed"
    with pytest.raises(ExportError, match="taken from another network"):
        onnx.save(int8_of(other, calibration, "int8", run.manifest), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_network_that_overflows_has_no_ranges(run: Run, dataset: Dataset, graph: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    weight = next(w for w in broken.graph.initializer if len(w.dims) == 4 and w.dims[1] > 1)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(weight.dims), np.inf, np.float32), weight.name))
    for method in ("minmax", "mse"):
        with pytest.raises(ExportError, match="no finite range"):
            calibrated(run, broken, choose(run, dataset, SampleOptions(4)), method)  # type: ignore[arg-type]


def test_constant_and_zero_tensors_keep_their_value() -> None:
    for collector in (Extremes(), Histogram()):
        collector.add(np.zeros((2, 3), np.float32))
        assert (collector.lowest, collector.highest) == (0, 0)
