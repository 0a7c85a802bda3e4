"""Rows on the disk: whole whatever happens, and gone on with where a kill cut them off."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgecls.errors import DatasetError, OptionError, RunError
from edgecls.progress import Progress
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import (
    STDOUT,
    ClassifierOptions,
    Format,
    OutputOptions,
    PredictOptions,
    RowsOptions,
    TtaOptions,
)
from edgecls.runtime.output.rows import open_rows
from edgecls.runtime.predict import PredictReport, predict
from edgecls.runtime.prediction import Prediction
from tests.conftest import draw, rows_of, write_image, write_linear_model

AWKWARD = [
    "plain.jpg",
    'with "quotes", commas.jpg',
    "two\nlines.jpg",
    "naïve 写真.jpg",
    "not utf-8 \udcff.jpg",
    "cr\rlf.jpg",
]


def prediction(path: str, number: int, members: int = 0) -> Prediction:
    if number % 4 == 3:
        return Prediction(path, "error", reason=f"damaged, at byte {number}")
    if number % 4 == 2:
        return Prediction(path, "ok", "b", 0.75, "", (("b", 0.75), ("a", 0.25))).unless_below(0.9)
    top = (("a", 0.5 + number / 100), ("b", 0.5 - number / 100))
    votes: dict[str, Any] = {"agreement": 0.5, "entropy": 0.125, "members": ("a", "b")} if members else {}
    return Prediction(path, "ok", *top[0], "", top, **votes)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_a_file_cut_off_at_any_byte_is_gone_on_with(tmp_path: Path, format: Format) -> None:
    """Whatever a kill left: whole rows are kept, half ones are written again, none is there twice."""
    out, partial = tmp_path / "rows", tmp_path / "rows.partial"
    predictions = [prediction(path, number) for number, path in enumerate(AWKWARD * 2)]
    with open_rows(RowsOptions(out, format), 2, made_by={"models": ["x"]}) as rows:
        for each in predictions:
            rows.write(each)
        rows.flush()
        record = (tmp_path / "rows.partial.json").read_text()
    whole = out.read_bytes()
    assert not partial.exists()
    for end in range(0, len(whole) + 1, 3):
        out.unlink()
        partial.write_bytes(whole[:end])
        (tmp_path / "rows.partial.json").write_text(record)
        with open_rows(RowsOptions(out, format, resume=True), 2, made_by={"models": ["x"]}) as rows:
            kept = list(rows.kept())
            for old, new in zip(kept, predictions, strict=False):
                assert (old.path, old.status, old.label, old.reason) == (new.path, new.status, new.label, new.reason)
                assert [label for label, _ in old.top] == [label for label, _ in new.top]
            for each in predictions[len(kept) :]:
                rows.write(each)
        assert out.read_bytes() == whole, end
        assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]


def write_and_fail(options: RowsOptions, error: BaseException, members: Sequence[str] = ()) -> list[Prediction]:
    """Write two rows after those that are kept, then fail; gives those that were kept."""
    kept: list[Prediction] = []

    def write() -> None:
        with open_rows(options, 2, members) as rows:
            kept.extend(rows.kept())
            for number in range(len(kept), len(kept) + 2):
                rows.write(prediction(f"{number}.jpg", number, members=len(members)))
            raise error

    with pytest.raises(type(error)):
        write()
    return kept


def test_an_ensembles_rows_are_read_back(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    for resume in (False, True):
        kept = write_and_fail(RowsOptions(out, resume=resume), KeyboardInterrupt(), ("x", "y"))
    assert kept == [prediction(f"{number}.jpg", number, members=2) for number in range(2)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), RunError("a full disk"), MemoryError()])
def test_whatever_happens_the_rows_so_far_are_kept(tmp_path: Path, error: BaseException) -> None:
    out, partial = tmp_path / "rows.csv", tmp_path / "rows.csv.partial"
    write_and_fail(RowsOptions(out), error)
    assert partial.read_text().count("\n") == 3
    before = partial.read_bytes()
    with pytest.raises(DatasetError), open_rows(RowsOptions(out), 2):
        raise DatasetError("an error before the first row of another try")
    assert partial.read_bytes() == before
    assert len(write_and_fail(RowsOptions(out, resume=True), error)) == 2


def test_a_run_that_fails_before_its_first_row_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), open_rows(RowsOptions(tmp_path / "rows.csv"), 2):
        raise ValueError("early")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["csv", "jsonl"])
@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_damaged_rows_are_made_anew_and_those_before_them_kept(tmp_path: Path, format: Format, at: float) -> None:
    out, partial = tmp_path / "rows", tmp_path / "rows.partial"
    predictions = [prediction(f"{number}.jpg", number) for number in range(40)]
    with suppress(KeyboardInterrupt), open_rows(RowsOptions(out, format), 2) as rows:
        for each in predictions:
            rows.write(each)
        raise KeyboardInterrupt
    whole = partial.read_bytes()
    middle = whole.index(b"ok", int(len(whole) * at))
    partial.write_bytes(whole[:middle] + b"\xff\n" + whole[middle + 2 :])
    with open_rows(RowsOptions(out, format, resume=True), 2) as rows:
        n_kept = sum(1 for _ in rows.kept())
        assert 0 < n_kept < len(predictions)
        for each in predictions[n_kept:]:
            rows.write(each)
    assert out.read_bytes() == whole


def test_a_finished_file_is_not_emptied_by_one_who_opened_it_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs race for one name: the second opens the partial file, the first renames it, the second locks it."""
    out, partial = tmp_path / "rows.csv", tmp_path / "rows.csv.partial"
    partial.write_text("the rows of the first\n")
    lock, renamed = fcntl.flock, []

    def late(file: Any, how: int) -> None:
        if not renamed:
            renamed.append(os.replace(partial, out))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with suppress(KeyboardInterrupt), open_rows(RowsOptions(out), 2) as rows:
        rows.write(prediction("a.jpg", 0))
        raise KeyboardInterrupt
    assert out.read_text() == "the rows of the first\n"
    assert "a.jpg" in partial.read_text()


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_rows_on_standard_output_are_utf8_whatever_the_code_page(
    format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    with open_rows(RowsOptions(STDOUT, format), 2) as rows:
        for path in AWKWARD:
            rows.write(prediction(path, 0))
    assert "写真".encode() in raw.getvalue()
    assert raw.getvalue().count(b"0.5") == len(AWKWARD) * 2


def test_two_processes_cannot_write_the_same_rows(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    with open_rows(RowsOptions(out), 2) as rows:
        rows.write(prediction("a.jpg", 0))
        with pytest.raises(RunError, match="another process is writing"), open_rows(RowsOptions(out), 1):
            pass
    assert len(rows_of(out)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"out": Path("-"), "resume": True},
        {"out": Path("-"), "format": "parquet"},
        {"format": "parquet", "resume": True},
    ],
)
def test_what_cannot_be_gone_on_with_is_said_at_once(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"standard output|--format parquet"):
        RowsOptions(**{"out": tmp_path / "rows", **options})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_linear_model(tmp_path / "model.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(40):
        write_image(tmp_path / "photos" / "abc"[index % 3] / f"{index}.png", draw("checks", index))
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"")
    return tmp_path / "photos"


def run(model: Path, folder: Path, **changes: Any) -> PredictReport:
    rows = RowsOptions(Path("rows.csv"), changes.pop("format", "csv"), changes.pop("resume", False))
    given = {"classifier": ClassifierOptions(device="cpu", batch_size=4, n_threads=2), "rows": rows, **changes}
    return predict(PredictOptions((folder,), (str(model),), **given))


def interrupted(model: Path, folder: Path, after: int, **changes: Any) -> None:
    done = 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        if done >= after:
            raise KeyboardInterrupt

    rows = RowsOptions(Path("rows.csv"), resume=changes.pop("resume", False))
    classifier = ClassifierOptions(device="cpu", batch_size=4, n_threads=2)
    with pytest.raises(KeyboardInterrupt):
        predict(PredictOptions((folder,), (str(model),), classifier, rows=rows, **changes), Progress(on_images=count))


def test_a_resumed_run_ends_like_one_that_was_never_stopped(model: Path, folder: Path, in_empty_folder: Path) -> None:
    whole = run(model, folder)
    expected = Path("rows.csv").read_bytes()
    Path("rows.csv").unlink()
    interrupted(model, folder, 10)
    interrupted(model, folder, 25, resume=True)
    assert not Path("rows.csv").exists()
    resumed = run(model, folder, resume=True)
    assert Path("rows.csv").read_bytes() == expected
    assert (resumed.images, resumed.errors, resumed.labelled, resumed.accuracy) == (
        (whole.images, whole.errors, whole.labelled, whole.accuracy)
    )
    assert 0 < resumed.resumed < 41
    assert os.listdir() == ["rows.csv"]


def test_rows_of_other_models_options_or_inputs_are_not_mixed(
    model: Path, folder: Path, tmp_path: Path, in_empty_folder: Path
) -> None:
    interrupted(model, folder, 10)
    other = write_linear_model(tmp_path / "other.onnx", seed=5)
    with pytest.raises(OptionError, match="differ in models"):
        run(other, folder, resume=True)
    with pytest.raises(OptionError, match="differ in min_confidence"):
        run(model, folder, resume=True, min_confidence=0.4)
    with pytest.raises(OptionError, match="differ in tta"):
        run(model, folder, resume=True, classifier=ClassifierOptions(device="cpu", tta=TtaOptions(("flip",))))
    with pytest.raises(OptionError, match="differ in columns"):
        run(model, folder, resume=True, top_k=2)
    write_image(folder / "a" / "00.png", draw("checks", 1))
    with pytest.raises(OptionError, match=r"row 2 was for 'a/3\.png', and that input is 'a/00\.png' now"):
        run(model, folder, resume=True)


KILLED = """
import sys
from pathlib import Path
from edgecls.progress import Progress
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions
from edgecls.runtime.predict import predict
import time
options = PredictOptions((sys.argv[1],), (sys.argv[2],), ClassifierOptions(device="cpu", batch_size=4, n_threads=2),
                         rows=RowsOptions(Path("rows.csv"), resume=True))
predict(options, Progress(on_images=lambda n: time.sleep(0.03 * n)))  # small files come in larger batches
"""


def test_a_killed_process_loses_and_repeats_no_row(model: Path, folder: Path, in_empty_folder: Path) -> None:
    run(model, folder)
    expected = Path("rows.csv").read_bytes()
    Path("rows.csv").unlink()
    for wait in (0.0, 0.1, 0.2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(model)])
        deadline = time.monotonic() + 30
        begun = len(Path("rows.csv.partial").read_bytes()) if wait else 0
        while not Path("rows.csv.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        while wait and len(Path("rows.csv.partial").read_bytes()) <= begun and time.monotonic() < deadline:
            time.sleep(0.005)  # it has rows of its own
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # in the middle of its work
    assert not Path("rows.csv").exists()
    report = run(model, folder, resume=True)
    assert Path("rows.csv").read_bytes() == expected
    assert report.images == 41


def test_parquet_has_the_rows_of_the_csv(model: Path, folder: Path, in_empty_folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    predict(PredictOptions((folder,), (str(model),), rows=RowsOptions(Path("rows.parquet")), top_k=2))
    table = parquet.read_table("rows.parquet").to_pylist()
    run(model, folder, top_k=2)
    for one, other in zip(table, rows_of(Path("rows.csv")), strict=True):
        assert {name: "" if value is None else str(value) for name, value in one.items()} == {
            name: str(float(value)) if name.startswith("probability") and value else value
            for name, value in other.items()
        }


def test_below_the_least_confidence_there_is_no_label(model: Path, folder: Path, in_empty_folder: Path) -> None:
    every = run(model, folder)
    before = {row["path"]: row for row in rows_of(Path("rows.csv"))}
    report = run(model, folder, min_confidence=0.6)
    after = rows_of(Path("rows.csv"))
    abstained = [row for row in after if row["status"] == "abstained"]
    assert 0 < len(abstained) == report.abstained < 40
    for row in after:
        answered = before[row["path"]]
        if row["status"] == "abstained":
            assert float(row["probability"]) == float(answered["probability"]) < 0.6
            assert row["label"] == ""
            assert row["reason"].startswith(f"abstained: {answered['label']} at ")
        else:
            assert row == answered
    assert report.labelled == every.labelled - report.abstained
    with pytest.raises(OptionError, match="--min-confidence 60"):
        run(model, folder, min_confidence=60)


def test_a_submission_has_file_names_and_labels(model: Path, folder: Path, in_empty_folder: Path) -> None:
    run(model, folder, outputs=OutputOptions(submission=Path("sub.csv")))
    with Path("sub.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["filename", "label"]
    assert rows == [[Path(row["path"]).name, row["label"]] for row in rows_of(Path("rows.csv"))]


@pytest.mark.parametrize("sort_by", ["copy", "link"])
def test_images_are_sorted_into_a_folder_a_label(
    model: Path, folder: Path, in_empty_folder: Path, sort_by: Any
) -> None:
    write_image(folder / "b" / "0.png", draw("stripes", 77))  # a/0.png may get the same label
    sort = OutputOptions(sort_into=Path("sorted"), sort_by=sort_by)
    write_image(folder / "c" / f"{'x' * 251}.png"[:255], draw("stripes", 78))  # as long as a name may be
    interrupted(model, folder, 25, outputs=sort, min_confidence=0.5)
    with pytest.raises(OptionError, match="--sort-into sorted is not empty"):
        run(model, folder, outputs=sort, min_confidence=0.5)
    for _ in range(2):  # the second time everything is there
        run(model, folder, outputs=sort, min_confidence=0.5, resume=True)
        rows = [row for row in rows_of(Path("rows.csv")) if row["status"] != "error"]
        found = sorted(path for path in Path("sorted").rglob("*") if path.is_file())
        assert len(found) == len(rows) == 42
        assert all(path.is_symlink() == (sort_by == "link") for path in found)
        sorted_bytes = sorted((path.parent.name, path.read_bytes()) for path in found)
        assert sorted_bytes == sorted(
            (row["label"] or "_abstained", (folder / row["path"]).read_bytes()) for row in rows
        )


def test_images_are_not_sorted_into_their_own_source(model: Path, folder: Path, in_empty_folder: Path) -> None:
    for into in (folder, folder / "new"):
        with pytest.raises(OptionError, match="lies in the source"):
            run(model, folder, outputs=OutputOptions(sort_into=into))


def test_every_file_name_is_one_row_of_the_csv(model: Path, tmp_path: Path, in_empty_folder: Path) -> None:
    for index, name in enumerate(AWKWARD):
        write_image(tmp_path / "awkward" / "x.png", draw("checks", index)).rename(tmp_path / "awkward" / name)
    run(model, tmp_path / "awkward")
    with Path("rows.csv").open(newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(AWKWARD)
    assert {row["status"] for row in rows} == {"ok"}
    interrupted(model, tmp_path / "awkward", len(AWKWARD))
    kept = run(model, tmp_path / "awkward", resume=True)
    assert kept.resumed == kept.images == len(AWKWARD)


def test_the_name_of_the_file_tells_the_format() -> None:
    assert RowsOptions(Path("a.jsonl")).kind == "jsonl"
    assert RowsOptions(Path("a.parquet")).kind == "parquet"
    assert RowsOptions(Path("a.txt")).kind == RowsOptions().kind == "csv"
    with pytest.raises(OptionError, match=r"--format parquet with --out a\.csv"):
        RowsOptions(Path("a.csv"), "parquet")


def test_python_reads_the_same_answers_as_the_file(model: Path, folder: Path, in_empty_folder: Path) -> None:
    predict(PredictOptions((folder,), (str(model),), rows=RowsOptions(Path("rows.jsonl")), top_k=3))
    lines = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    with Classifier.open(model, device="cpu") as classifier:
        predictions = list(classifier.predict([folder / line["path"] for line in lines], top_k=3))
    for line, each in zip(lines, predictions, strict=True):
        assert (line["status"], line["label"] or "") == (each.status, each.label)
        assert line.get("label_3") == (each.top[2][0] if each.top else None)


def test_ctrl_c_ends_the_command_and_says_how_to_go_on(model: Path, folder: Path, in_empty_folder: Path) -> None:
    code = f"""
import edgecls.runtime.output.rows as rows, os, signal
from edgecls.cli import app
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
write = rows._RowFile.write
def interrupted(self, prediction):
    write(self, prediction)
    if prediction.path == "b/4.png":
        os.kill(os.getpid(), signal.SIGINT)
rows._RowFile.write = interrupted
app(["predict", {str(folder)!r}, "--model", {str(model)!r}, "--device", "cpu"])
"""
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.strip().endswith("stopped; the same command with --resume goes on")
    assert Path("predictions.csv.partial").exists()
    arguments = ["predict", folder, "--model", model, "--device", "cpu", "--resume"]
    resumed = subprocess.run(
        [sys.executable, "-m", "edgecls.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 3, resumed.stderr
    assert "rows were there already" in resumed.stdout
    assert len(rows_of(Path("predictions.csv"))) == 41
