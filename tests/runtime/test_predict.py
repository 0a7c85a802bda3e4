"""From a model and files to rows: one for each, in order, whatever the files are."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgecls import images
from edgecls.errors import DatasetError, ImageError, OptionError, RunError
from edgecls.export.graphs.graph import embed_manifest
from edgecls.metrics import softmax
from edgecls.prefetch import prefetch
from edgecls.processor import session_settings
from edgecls.runs import Run
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import ClassifierOptions, OutputOptions, PredictOptions, RowsOptions, SourceOptions
from edgecls.runtime.predict import predict
from edgecls.runtime.prediction import Prediction
from edgecls.runtime.stages import StageTimes, peak_memory_mb
from tests.conftest import draw, rows_of, write_image
from tests.test_images import png_bomb


def options(model: Path, *sources: str | Path, **changes: Any) -> PredictOptions:
    """Options with every field of their parts by its own name; device and `out` have defaults here."""
    given: dict[str, Any] = {"device": "cpu", "out": Path("rows.csv"), **changes}
    parts = {"classifier": ClassifierOptions, "source": SourceOptions, "rows": RowsOptions, "outputs": OutputOptions}
    made = {}
    for name, kind in parts.items():
        made[name] = kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name in given})
    return PredictOptions(sources, (str(model),), **made, **given)


def test_a_folder_gives_one_row_per_image_in_natural_order(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    report = predict(options(exported_run, photos, precision="fp32"))
    rows = rows_of(Path("rows.csv"))
    assert [row["path"] for row in rows] == [f"{kind}/{i}.png" for kind in ("checks", "stripes") for i in range(12)]
    assert list(rows[0]) == ["path", "status", "label", "probability", "reason"]
    assert all(row["status"] == "ok" and 0.5 <= float(row["probability"]) <= 1 for row in rows)
    right = sum(row["label"] == row["path"].split("/")[0] for row in rows)
    assert report.accuracy == right / 24 > 0.9
    assert (report.images, report.errors, report.labelled) == (24, 0, 24)


def test_rows_are_what_a_plain_loop_over_the_session_gives(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    import onnxruntime

    predict(options(exported_run, photos, precision="int8", top_k=2, batch_size=5))
    manifest = Run(exported_run).manifest
    settings = session_settings(onnxruntime, 1)
    file = exported_run / "model.int8-cpu.onnx"
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    temperature = json.loads((exported_run / "export.json").read_text())["precisions"]["int8-cpu"]["temperature"]
    for row in rows_of(Path("rows.csv")):
        pixels = images.load(photos / row["path"], manifest.preprocessing)
        probabilities = softmax(session.run(None, {"images": pixels[None]})[0] / temperature)[0]
        best, second = np.argsort(-probabilities)
        assert (row["label"], row["label_2"]) == (manifest.labels[best], manifest.labels[second])
        assert float(row["probability"]) == pytest.approx(float(probabilities[best]), abs=1e-5)
        assert float(row["probability_2"]) == pytest.approx(float(probabilities[second]), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
def test_the_batch_size_changes_no_answer_and_loses_no_image(
    exported_run: Path, photos: Path, in_empty_folder: Path, batch_size: int
) -> None:
    predict(options(exported_run, photos, out=Path("one.csv"), batch_size=16))
    predict(options(exported_run, photos, out=Path("other.csv"), batch_size=batch_size))
    one, other = rows_of(Path("one.csv")), rows_of(Path("other.csv"))
    assert [(row["path"], row["label"]) for row in one] == [(row["path"], row["label"]) for row in other]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """20 files that are no images, among 30 that are."""
    folder = tmp_path / "mixed"
    for index in range(30):
        write_image(folder / f"good{index}.png", draw("checks", index))
    whole = write_image(tmp_path / "whole.jpg", draw("stripes", 1, size=100)).read_bytes()
    for index in range(4):
        (folder / f"empty{index}.jpg").write_bytes(b"")
        (folder / f"truncated{index}.jpg").write_bytes(whole[: len(whole) * (index + 1) // 6])
        (folder / f"text{index}.jpg").write_text("this is not a picture")
        (folder / f"folder{index}.jpg").mkdir()
    (folder / "bomb.png").write_bytes(png_bomb())
    (folder / "link to nothing.jpg").symlink_to(folder / "gone.jpg")
    (folder / "half.png").write_bytes((folder / "good0.png").read_bytes()[:-30])
    (folder / "locked.jpg").write_bytes(whole)
    (folder / "locked.jpg").chmod(0)
    if os.access(folder / "locked.jpg", os.R_OK):  # root may read it: break it in another way
        (folder / "locked.jpg").write_bytes(b"GIF89a")
    (folder / "folder0.jpg" / "inside.jpg").write_bytes(whole)
    return folder


def test_twenty_broken_files_give_twenty_error_rows(exported_run: Path, broken: Path, in_empty_folder: Path) -> None:
    report = predict(options(exported_run, broken, batch_size=8))
    rows = rows_of(Path("rows.csv"))
    assert [row["path"] for row in rows] == [path.name for path in images.find_images(broken)]
    failed = [row for row in rows if row["status"] == "error"]
    assert (len(rows), len(failed), report.errors) == (50, 20, 20)
    assert all(row["reason"] and not row["label"] and not row["probability"] for row in failed)
    reasons = {row["path"]: row["reason"] for row in failed}
    assert reasons["empty0.jpg"] == "the file is empty"
    assert reasons["truncated3.jpg"].startswith("truncated")
    assert reasons["text0.jpg"].startswith("not an image")
    assert reasons["folder0.jpg"] == "it is a folder, not a file"
    assert reasons["bomb.png"].startswith("too large")
    assert "No such file" in reasons["link to nothing.jpg"]


def test_accuracy_leaves_out_what_could_not_be_read(exported_run: Path, broken: Path, in_empty_folder: Path) -> None:
    shutil.move(broken, "checks")
    report = predict(options(exported_run, Path("checks")))
    assert (report.labelled, report.errors) == (30, 20)


def test_only_errors_still_give_their_rows(exported_run: Path, tmp_path: Path, in_empty_folder: Path) -> None:
    for index in range(100):
        (tmp_path / f"{index}.jpg").write_bytes(b"")
    report = predict(options(exported_run, tmp_path, batch_size=4))
    assert (report.images, report.errors, report.accuracy) == (100, 100, None)
    assert report.bottleneck in ("read", "decode", "preprocess")
    assert len(rows_of(Path("rows.csv"))) == 100


def test_strict_stops_at_the_first_error_and_leaves_no_half_written_file(
    exported_run: Path, broken: Path, in_empty_folder: Path
) -> None:
    Path("rows.csv").write_text("rows of an earlier run")
    with pytest.raises(ImageError, match=r"bomb\.png: too large.*--strict"):
        predict(options(exported_run, broken, strict=True))
    assert Path("rows.csv").read_text() == "rows of an earlier run"
    assert [path.name for path in Path().iterdir()] == ["rows.csv"]


def test_json_lines_have_every_column_in_every_line(exported_run: Path, broken: Path, in_empty_folder: Path) -> None:
    predict(options(exported_run, broken, out=Path("rows.jsonl"), format="jsonl", top_k=5))
    lines = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert len(lines) == 50
    expected = ["path", "status", "label", "probability", "reason", "label_2", "probability_2"]
    assert all(list(line) == expected for line in lines)
    assert {type(line["probability"]) for line in lines if line["status"] == "ok"} == {float}
    assert {line["probability"] for line in lines if line["status"] == "error"} == {None}


def test_a_lone_model_file_predicts_with_its_own_labels_and_pixels(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    shutil.copy(exported_run / "model.int8-cpu.onnx", "alone.onnx")
    predict(options(exported_run, photos, precision="int8", out=Path("run.csv")))
    report = predict(options(Path("alone.onnx"), photos, out=Path("alone.csv")))
    assert Path("alone.csv").read_text() == Path("run.csv").read_text()
    assert report.precision == "int8-cpu"


def test_auto_opens_what_the_export_measured_as_best(exported_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    report = json.loads((run / "export.json").read_text())
    for serves in ("fp32", "int8-cpu"):
        (run / "export.json").write_text(json.dumps(report | {"serves": serves}))
        with Classifier.open(run, device="cpu") as classifier:
            assert classifier.precision == serves


def test_labels_from_a_file_win_over_folders(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    Path("truth.csv").write_text("path,label\nchecks/0.png,stripes\nchecks/1.png,checks\n")
    report = predict(options(exported_run, photos, labels=Path("truth.csv")))
    assert (report.labelled, report.accuracy) == (2, 0.5)


def test_labels_that_fit_nothing_are_an_error(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    Path("truth.csv").write_text("path,label\nnowhere.png,checks\n")
    with pytest.raises(
        DatasetError, match=r"none of its paths is among the images, which are named like .*checks/0\.png"
    ):
        predict(options(exported_run, photos, labels=Path("truth.csv")))
    Path("truth.csv").write_text("path,label\nchecks/0.png,zebra\n")
    with pytest.raises(DatasetError, match="line 2: the model does not know the label 'zebra'"):
        predict(options(exported_run, photos, labels=Path("truth.csv")))


def test_images_without_a_known_label_have_no_accuracy(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    shutil.move(photos / "checks", "inbox")
    assert predict(options(exported_run, Path("inbox"))).accuracy is None


def test_files_and_folders_mix_and_files_are_named_as_given(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    one = photos / "stripes" / "3.png"
    predict(options(exported_run, one, photos / "checks", one))
    names = [row["path"] for row in rows_of(Path("rows.csv"))]
    assert names == [str(one), *[str(photos / "checks" / f"{i}.png") for i in range(12)], str(one)]


def test_a_name_that_is_not_unicode_is_written_back_as_it_was(
    exported_run: Path, tmp_path: Path, in_empty_folder: Path
) -> None:
    odd = os.fsencode(tmp_path) + b'/caf\xe9, "x".png'
    try:
        Path(os.fsdecode(odd)).write_bytes(write_image(tmp_path / "a.png", draw("checks", 1)).read_bytes())
    except OSError:
        pytest.skip("the file system takes Unicode names only")
    predict(options(exported_run, tmp_path))
    assert b'"caf\xe9, ""x"".png",ok' in Path("rows.csv").read_bytes()


def test_the_report_says_where_the_time_went(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    predict(options(exported_run, photos, report=Path("report.json")))
    report = json.loads(Path("report.json").read_text())
    assert list(report["stages"]) == ["read", "decode", "preprocess", "infer", "post"]
    for stage in report["stages"].values():
        assert 0 <= stage["p50_ms"] <= stage["p90_ms"] <= stage["p99_ms"]
    assert sum(stage["share"] for stage in report["stages"].values()) == pytest.approx(1)
    assert report["bottleneck"] in report["stages"]
    assert report["images_per_second"] == pytest.approx(24 / report["seconds"])
    assert report["peak_memory_mb"] > 10
    assert report["backend"] == "onnxruntime-cpu"


def test_the_peak_memory_is_this_processs_and_not_its_parents() -> None:
    ballast = np.ones(400_000_000, np.uint8)
    code = "from edgecls.runtime.stages import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(child.stdout) < 300
    assert peak_memory_mb() > ballast.nbytes / 1e6


@pytest.mark.parametrize(
    ("loading", "inferring", "expected"),
    [(6.0, 1.0, "decode"), (1.0, 6.0, "infer"), (4.0, 3.0, "infer")],
    ids=["decoding is slow", "inference is slow", "two workers decode faster than one lane infers"],
)
def test_the_slower_lane_holds_the_bottleneck(loading: float, inferring: float, expected: str) -> None:
    times = StageTimes()
    times.add("read", 0.1)
    times.add("decode", loading)
    times.add("infer", inferring)
    assert times.bottleneck(n_threads=2, n_lanes=1) == expected


def test_memory_is_bounded_however_many_files_there_are(
    exported_run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are decoded at most a batch and a few ahead of the answers that have been taken."""
    started = 0
    lock = threading.Lock()
    decode = images.decode_file

    def counted(*arguments: Any) -> Any:
        nonlocal started
        with lock:
            started += 1
        return decode(*arguments)

    monkeypatch.setattr(images, "decode_file", counted)
    path = photos / "checks" / "0.png"
    with Classifier.open(exported_run, device="cpu", batch_size=4, n_threads=2) as classifier:
        most_ahead = 0
        for taken, _ in enumerate(classifier.predict(path for _ in range(200)), start=1):
            most_ahead = max(most_ahead, started - taken)
    assert started == 200
    assert most_ahead <= (1 + 2 * 2) * 4  # the batch that was answered, and two for each of the two workers


def test_prefetch_keeps_order_draws_lazily_and_passes_errors_on() -> None:
    drawn = 0

    def numbers() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    results = prefetch(lambda n: n * n, numbers(), n_threads=3, ahead=5)
    assert [next(results) for _ in range(4)] == [1, 4, 9, 16]
    assert drawn <= 10
    results.close()  # type: ignore[attr-defined]
    failing = prefetch(lambda n: 1 // n, [1, 0, 1], n_threads=2, ahead=2)
    assert next(failing) == 1
    with pytest.raises(ZeroDivisionError):
        next(failing)


def test_arrays_are_answered_like_files(exported_run: Path, photos: Path) -> None:
    paths = [photos / "checks" / "1.png", photos / "stripes" / "2.png"]
    with Classifier.open(exported_run, device="cpu", precision="fp32") as classifier:
        from_files = list(classifier.predict(paths, top_k=2))
        from_arrays = classifier.predict_arrays([images.decode(path.read_bytes()) for path in paths], top_k=2)
        assert [p.label for p in from_arrays] == [p.label for p in from_files]
        for one, other in zip(from_files, from_arrays, strict=True):
            assert other.probability == pytest.approx(one.probability, abs=1e-6)
        assert classifier.predict_arrays([]) == []
        with pytest.raises(ImageError, match=r"expected a \(height, width, 3\) uint8 RGB array, got float64 \(4, 4\)"):
            classifier.predict_arrays([np.zeros((4, 4))])  # type: ignore[list-item]


def test_a_classifier_may_be_used_by_several_threads(exported_run: Path, photos: Path) -> None:
    paths = list(images.find_images(photos))
    with Classifier.open(exported_run, device="cpu") as classifier:
        expected = [p.label for p in classifier.predict(paths)]
        answers: dict[int, list[str]] = {}

        def work(number: int) -> None:
            answers[number] = [p.label for p in classifier.predict(paths)]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(answers.values()) == [expected] * 4


def test_a_prediction_without_answer_or_reason_cannot_exist() -> None:
    with pytest.raises(ValueError, match="an answer or a reason"):
        Prediction("a.jpg")
    assert math.isnan(Prediction("a.jpg", "error", reason="gone").probability)


BAD_FILES = [
    pytest.param(b"", "cannot open it", id="an empty file"),
    pytest.param(b"\x08\x08not onnx", "cannot open it", id="not ONNX"),
]


@pytest.mark.parametrize(("data", "message"), BAD_FILES)
def test_a_damaged_model_file_is_an_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(RunError, match=message):
        Classifier.open(tmp_path / "model.onnx", device="cpu")


def test_a_foreign_onnx_file_says_that_its_labels_are_unknown(exported_run: Path, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(exported_run / "model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "foreign.onnx")
    with pytest.raises(RunError, match="no edgecls manifest"):
        Classifier.open(tmp_path / "foreign.onnx", device="cpu")


def test_a_manifest_that_does_not_fit_its_graph_is_refused(exported_run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    import onnx

    from edgecls.export.graphs.graph import embed_manifest

    graph = onnx.load(exported_run / "model.onnx")
    embed_manifest(graph, replace(Run(exported_run).manifest, labels=("a", "b", "c")))
    onnx.save(graph, tmp_path / "wrong.onnx")
    with pytest.raises(RunError, match="does not fit its manifest"):
        Classifier.open(tmp_path / "wrong.onnx", device="cpu")


def test_a_run_that_was_not_exported_says_how_to(exported_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    (run / "model.int8-cpu.onnx").unlink()
    with pytest.raises(RunError, match=r"edgecls export .* --int8"):
        Classifier.open(run, precision="int8", device="cpu")


BAD_OPTIONS = [
    pytest.param({"batch_size": 0}, "--batch-size 0", id="no batch"),
    pytest.param({"top_k": 0}, "--top-k 0", id="no answers"),
    pytest.param({"out": Path()}, "--out .* is a folder", id="rows into a folder"),
    pytest.param({"report": Path()}, "--report .* is a folder", id="report into a folder"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_OPTIONS)
def test_bad_options_are_worded_with_the_flag(
    exported_run: Path, photos: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        predict(options(exported_run, photos, **changes))


def test_the_rows_never_overwrite_an_input(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    photo = photos / "checks" / "0.png"
    before = photo.read_bytes()
    with pytest.raises(OptionError, match="would overwrite one of the images"):
        predict(options(exported_run, photos, out=photo))
    assert photo.read_bytes() == before
    truth = Path("truth.csv")
    truth.write_text("path,label\nchecks/0.png,checks\n")
    with pytest.raises(OptionError, match="--out would overwrite --labels"):
        predict(options(exported_run, photos, labels=truth, out=truth))
    with pytest.raises(OptionError, match="name the same file"):
        predict(options(exported_run, photos, out=Path("a"), report=Path("a")))


def test_a_link_is_written_through_and_a_device_is_refused(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    Path("elsewhere.csv").write_text("old")
    Path("link.csv").symlink_to("elsewhere.csv")
    predict(options(exported_run, photos, out=Path("link.csv")))
    assert Path("link.csv").is_symlink()
    assert len(rows_of(Path("elsewhere.csv"))) == 24
    os.mkfifo("pipe")
    with pytest.raises(OptionError, match="a folder or a device"):
        predict(options(exported_run, photos, out=Path("pipe")))
    assert Path("pipe").is_fifo()


def test_a_folder_that_cannot_be_written_is_an_error(exported_run: Path, photos: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write /proc/rows.csv"):
        predict(options(exported_run, photos, out=Path("/proc/rows.csv")))


def test_files_that_are_not_named_like_images_are_counted(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    (photos / "checks" / "live.mov").write_bytes(b"")
    (photos / "notes.txt").write_text("")
    (photos / ".hidden").write_text("")
    report = predict(options(exported_run, photos))
    assert (report.images, report.skipped) == (24, 2)


def test_a_label_that_contradicts_itself_names_both_lines(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    Path("truth.csv").write_text("path,label\nchecks/0.png,checks\nchecks/0.png,stripes\n")
    with pytest.raises(DatasetError, match="is 'checks' in line 2 and 'stripes' in line 3"):
        predict(options(exported_run, photos, labels=Path("truth.csv")))


def test_a_file_of_another_precision_than_asked_for_is_refused(exported_run: Path) -> None:
    with pytest.raises(OptionError, match=r"--precision int8: .* is fp32"):
        Classifier.open(exported_run / "model.onnx", precision="int8", device="cpu")


def test_misuse_from_python_is_worded(exported_run: Path) -> None:
    with Classifier.open(exported_run, device="cpu") as classifier:
        with pytest.raises(OptionError, match="several paths"):
            next(classifier.predict("a.jpg"))
        with pytest.raises(OptionError, match="top_k 0"):
            next(classifier.predict(["a.jpg"], top_k=0))
        with pytest.raises(ImageError, match=r"got uint8 \(0, 5, 3\)"):
            classifier.predict_arrays([np.zeros((0, 5, 3), np.uint8)])
        assert next(classifier.predict(["a\0b.jpg"])).reason.startswith("cannot be read: ")
        classifier.close()
    with pytest.raises(RunError, match="has been closed"):
        classifier.predict_arrays([np.zeros((5, 5, 3), np.uint8)])
    for given, message in (({"device": "tpu"}, "--device tpu"), ({"precision": "int4"}, "int4"), ({"n_lanes": 0}, "0")):
        with pytest.raises(OptionError, match=message):
            Classifier.open(exported_run, **given)


def test_nothing_to_predict_is_an_error(exported_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        predict(options(exported_run, tmp_path / "fotos"))
    with pytest.raises(DatasetError, match="no images in this folder"):
        predict(options(exported_run, tmp_path))


def test_folders_may_be_named_by_id_and_a_labels_file_by_index_too(
    exported_run: Path, photos: Path, tmp_path: Path, in_empty_folder: Path
) -> None:
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    graph = onnx.load(run / "model.onnx")
    manifest = replace(Run(run).manifest, label_ids=("n01", "n02"), precision="fp32", files={})
    embed_manifest(graph, manifest)
    onnx.save(graph, run / "model.onnx")
    (photos / "checks").rename(photos / "n01")
    (photos / "stripes").rename(photos / "1")  # a folder's number may be a month: it names no class
    report = predict(options(run / "model.onnx", photos))
    assert report.labelled == 12
    rows = [
        f"{path.relative_to(photos)},{index}"
        for index, kind in enumerate(("n01", "1"))
        for path in (photos / kind).iterdir()
    ]
    Path("truth.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    report = predict(options(run / "model.onnx", photos, labels=Path("truth.csv")))
    assert report.labelled == 24
    assert report.accuracy is not None
    assert report.accuracy > 0.9


def test_each_frame_of_a_camera_gets_all_threads(
    exported_run: Path, photos: Path, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []
    opened = Classifier.of

    def noted(models: Any, how: ClassifierOptions, *rest: Any, **more: Any) -> Classifier:
        asked.append(how.n_lanes)
        return opened(models, how, *rest, **more)

    monkeypatch.setattr(Classifier, "of", noted)
    predict(options(exported_run, photos))
    with pytest.raises(DatasetError, match="97: cannot be opened"):
        predict(options(exported_run, photos, "97", out=Path("more.csv")))
    assert asked == [None, 1]
