"""Plans, shards, parts and the proof: every input has exactly one row, whatever was killed, raced or changed."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgecls
from edgecls.errors import DatasetError, EdgeclsError, MissingExtra, OptionError, RunError
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions, ShardOptions
from edgecls.runtime.predict import predict
from edgecls.scale import merge as merge_module
from edgecls.scale import parquet_files
from edgecls.scale import plan as plan_module
from edgecls.scale.merge import MergeResult, merge
from edgecls.scale.options import MergeOptions, PlanOptions
from edgecls.scale.parts import in_ranges
from edgecls.scale.parts import part_of as name_of
from edgecls.scale.plan import INPUTS, PLAN, Plan, make_plan
from edgecls.scale.run import ShardWorker, predict_shards
from tests.conftest import draw, write_image, write_linear_model

pytest.importorskip("pyarrow")
CPU = ClassifierOptions(device="cpu")
LABELS = ("stripes", "checks", "spots")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_model(tmp_path_factory.mktemp("model") / "model.onnx", LABELS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures in folders named as labels, one that is broken, and a file that is no picture."""
    root = tmp_path / "source"
    for number in range(24):
        write_image(root / LABELS[number % 2] / f"{number}.png", draw(LABELS[number % 2], number))
    (root / "stripes" / "broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("no input")
    return root


def part_of(plan: Path, shard: int) -> Path:
    return plan / name_of(shard)


def write_over(part: Path, table: Any) -> None:
    """Other rows in a part that says of itself what it said before."""
    footer = parquet_files.parquet().read_metadata(part).metadata[b"edgecls.part"]
    with parquet_files.parquet().ParquetWriter(part, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"edgecls.part": footer})


def planned(source: Path | str, folder: Path, shards: int = 5) -> Plan:
    return make_plan(PlanOptions(str(source), folder, shards)).plan


def options(plan: Path, model: Path, shard: str | None = None, **shards: Any) -> PredictOptions:
    return PredictOptions(models=(str(model),), classifier=CPU, shards=ShardOptions(plan, shard, **shards))


def merged(plan: Path, out: Path | None = None) -> MergeResult:
    return merge(MergeOptions(plan, out))


def plain(source: Path, model: Path, out: Path) -> str:
    predict(PredictOptions((source,), (str(model),), CPU, rows=RowsOptions(out)))
    return out.read_text()


def test_shards_together_are_what_one_predict_gives(source: Path, model: Path, tmp_path: Path) -> None:
    result = make_plan(PlanOptions(str(source), tmp_path / "plan", 5))
    assert (result.plan.n_inputs, result.plan.n_shards, result.skipped) == (25, 5, 1)
    assert predict_shards(options(tmp_path / "plan", model, "1,3")).done == (1, 3)
    halfway = merged(tmp_path / "plan")
    assert (halfway.missing, halfway.again, halfway.images) == ((0, 2, 4), (0, 2, 4), 10)
    rest = predict_shards(options(tmp_path / "plan", model))
    assert (rest.done, rest.passed_over, rest.images) == ((0, 2, 4), (1, 3), 15)
    whole = merged(tmp_path / "plan", tmp_path / "merged.csv")
    assert (whole.again, whole.images, whole.errors, whole.labelled) == ((), 25, 1, 24)
    assert (tmp_path / "merged.csv").read_text() == plain(source, model, tmp_path / "plain.csv")
    merged(tmp_path / "plan", tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_text() == plain(source, model, tmp_path / "plain.jsonl")
    parquet = pytest.importorskip("pyarrow.parquet")
    merged(tmp_path / "plan", tmp_path / "merged.parquet")
    predict(PredictOptions((source,), (str(model),), CPU, rows=RowsOptions(tmp_path / "plain.parquet")))
    one, other = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("merged", "plain"))
    assert one.column_names == other.column_names
    assert one.column("path").equals(other.column("path"))
    assert one.column("probability").equals(other.column("probability"))
    told = json.loads((tmp_path / "plan" / "summary.json").read_text())
    assert (told["images"], told["again"]) == (25, [])


def test_every_nth_shard(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 7)
    for number in range(3):
        predict_shards(options(tmp_path / "plan", model, f"{number}/3"))
    assert merged(tmp_path / "plan").again == ()


def test_views_and_members_are_columns(source: Path, tmp_path: Path) -> None:
    two = [write_linear_model(tmp_path / f"{seed}.onnx", LABELS, seed=seed) for seed in (1, 2)]
    planned(source, tmp_path / "plan", 2)
    asked = replace(options(tmp_path / "plan", two[0]), models=tuple(map(str, two)), top_k=2)
    predict_shards(asked)
    merged(tmp_path / "plan", tmp_path / "merged.csv")
    predict(PredictOptions((source,), tuple(map(str, two)), CPU, rows=RowsOptions(tmp_path / "plain.csv"), top_k=2))
    assert (tmp_path / "merged.csv").read_text() == (tmp_path / "plain.csv").read_text()


def test_members_of_tar_files_are_inputs(source: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(source / "stripes", "stripes")
    with tarfile.open(folder / "b.tar", "w") as archive:
        archive.add(source / "checks", "./checks")
        note = tarfile.TarInfo("checks/note.json")
        archive.addfile(note, io.BytesIO())
    whole = (folder / "b.tar").read_bytes()
    (folder / "cut.tar").write_bytes(whole[: whole.index(b"\x89PNG") + 50])
    (folder / "wrong.tar").write_bytes(b"no tar file" * 99)
    plan = planned(folder, tmp_path / "plan", 3)
    assert plan.n_inputs == 25 + 3
    predict_shards(options(tmp_path / "plan", model))
    result = merged(tmp_path / "plan", tmp_path / "merged.csv")
    assert (result.again, result.errors, result.labelled) == ((), 4, 24)
    rows = {line.split(",")[0]: line for line in (tmp_path / "merged.csv").read_text().splitlines()[1:]}
    of_files = {line.split(",")[0]: line for line in plain(source, model, tmp_path / "plain.csv").splitlines()[1:]}
    for name, line in of_files.items():
        tar = "a.tar" if name.startswith("stripes") else "b.tar"
        assert rows[f"{tar}/{name}"] == f"{tar}/{line}"
    assert "the tar file ends inside it" in rows["cut.tar/checks/1.png"]
    assert "the tar file cannot be read on" in rows["wrong.tar"]
    assert plain(folder / "a.tar", model, tmp_path / "tar.csv").count(",ok,") == 12


def test_inputs_that_have_changed_are_errors(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 2)
    write_image(source / "stripes" / "0.png", draw("stripes", 99, size=40))
    (source / "stripes" / "2.png").unlink()
    same = source / "stripes" / "4.png"
    os.utime(same, ns=(1, 1))
    predict_shards(options(tmp_path / "plan", model))
    assert merged(tmp_path / "plan", tmp_path / "merged.csv").errors == 4
    text = (tmp_path / "merged.csv").read_text()
    assert "stripes/0.png,error,,,it has changed since the plan was made:" in text.replace('"', "")
    assert "stripes/2.png,error,,,it is no longer there" in text
    assert "it was written anew" in text
    for shard in range(2):
        part_of(tmp_path / "plan", shard).unlink()
    predict_shards(options(tmp_path / "plan", model, allow_changed=True))
    assert merged(tmp_path / "plan").errors == 2


def test_parts_of_other_plans_models_and_shards_are_found(source: Path, model: Path, tmp_path: Path) -> None:
    plan, other = tmp_path / "plan", tmp_path / "other"
    planned(source, plan, 4)
    predict_shards(options(plan, model))
    write_image(source / "stripes" / "more.png", draw("stripes", 7))
    planned(source, other, 4)
    predict_shards(options(other, model))
    another = write_linear_model(tmp_path / "another.onnx", LABELS, seed=5)
    with pytest.raises(RunError, match="another model or with other options: they differ in models"):
        predict_shards(options(plan, another))
    kept = part_of(plan, 1).read_bytes()
    shutil.copy(part_of(other, 1), part_of(plan, 1))
    assert "is of another plan" in merged(plan).wrong[1]
    with pytest.raises(RunError, match="is of another plan"):
        predict_shards(options(plan, model))
    shutil.copy(part_of(plan, 2), part_of(plan, 1))
    assert "is of shard 2" in merged(plan).wrong[1]
    part_of(plan, 1).write_bytes(kept[:-20])
    assert "damaged" in merged(plan).wrong[1]
    part_of(plan, 1).unlink()
    predict_shards(replace(options(plan, model, "0"), min_confidence=0.0))
    (tmp_path / "elsewhere").mkdir()
    for shard in (0, 2, 3):
        shutil.move(part_of(plan, shard), tmp_path / "elsewhere")
    predict_shards(options(plan, another, "1"))
    for shard in (0, 2, 3):
        shutil.move(tmp_path / "elsewhere" / part_of(plan, shard).name, part_of(plan, shard))
    assert "they differ in models" in " ".join(merged(plan).wrong[1].split())
    assert merged(plan).again == (1,)


def test_rows_that_are_not_the_shard_s_are_found(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model))
    part = part_of(tmp_path / "plan", 0)
    table = parquet_files.parquet().read_table(part)
    for name, changed in (
        ("twice", table.take([0, 0, *range(2, table.num_rows)])),
        ("turned", table.take([1, 0, *range(2, table.num_rows)])),
        ("short", table.slice(1)),
    ):
        write_over(part, changed)
        assert "its rows are not the inputs of shard 0" in merged(tmp_path / "plan").wrong[0], name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: (plan / PLAN).unlink(), "no plan in it"),
        (lambda plan: (plan / PLAN).write_text("{}"), "damaged"),
        (lambda plan: (plan / PLAN).write_text('{"schema": 9}'), "schema 9"),
        (lambda plan: (plan / INPUTS).unlink(), "inputs.parquet: damaged"),
        (lambda plan: (plan / INPUTS).write_bytes(b"PAR1"), "damaged"),
    ],
)
def test_damaged_plans_are_told(source: Path, model: Path, tmp_path: Path, change: Any, words: str) -> None:
    planned(source, tmp_path / "plan")
    change(tmp_path / "plan")
    with pytest.raises(RunError, match=words):
        predict_shards(options(tmp_path / "plan", model))


def test_inputs_of_another_plan_are_told(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan")
    write_image(source / "stripes" / "more.png", draw("stripes", 7))
    planned(source, tmp_path / "other")
    shutil.copy(tmp_path / "other" / INPUTS, tmp_path / "plan" / INPUTS)
    with pytest.raises(RunError, match="is not the one that"):
        predict_shards(options(tmp_path / "plan", model))


def test_what_cannot_be_planned_is_told(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        planned(tmp_path / "nothing", tmp_path / "plan")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images below it"):
        planned(tmp_path / "empty", tmp_path / "plan")
    with pytest.raises(OptionError, match="--shards 99: there are 25 inputs"):
        planned(source, tmp_path / "plan", 99)
    with pytest.raises(DatasetError, match="unknown scheme s33; expected one of s3, gs, hdfs, file"):
        planned("s33://bucket/photos", tmp_path / "plan")
    assert not (tmp_path / "plan" / PLAN).exists()
    planned(source, tmp_path / "plan")
    with pytest.raises(RunError, match="there is something in it already"):
        planned(source, tmp_path / "plan")


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("5", "numbers below 5"),
        ("0,9", "0 to 4"),
        ("2-7", "numbers below 5"),
        ("3-1", "the lower number"),
        ("3/3", "a number below 3"),
        ("4/4", "0/4 to 3/4"),
    ],
)
def test_shards_that_there_are_not(source: Path, model: Path, tmp_path: Path, shard: str, words: str) -> None:
    planned(source, tmp_path / "plan")
    with pytest.raises(OptionError, match=words):
        predict_shards(options(tmp_path / "plan", model, shard))


@pytest.mark.parametrize("shard", ["x", "-1", "1,", "1/0", "", "1 2", "1/2/3", "1-", "1-2-3", "1-2/3"])
def test_shards_that_are_no_numbers(shard: str) -> None:
    with pytest.raises(OptionError, match="3, or 3,7-9, or 3/64"):
        ShardOptions(Path("plan"), shard)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sources": ("a.jpg",)}, "has its own inputs"),
        ({"rows": RowsOptions(Path("x.csv"))}, "--out"),
        ({"strict": True}, "--strict"),
        ({"report": Path("r.json")}, "--report"),
    ],
)
def test_a_plan_says_what_is_read_and_written(given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        PredictOptions(models=("m",), shards=ShardOptions(Path("plan")), **given)
    with pytest.raises(OptionError, match="--plan"):
        ShardOptions(None, "3")


def test_two_that_race_leave_one_whole_part(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 3)
    failed: list[EdgeclsError] = []

    def run() -> None:
        try:
            predict_shards(options(tmp_path / "plan", model))
        except EdgeclsError as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert merged(tmp_path / "plan").again == ()
    assert sorted(each.name for each in (tmp_path / "plan").iterdir()) == sorted(
        [PLAN, INPUTS, "summary.json", *(part_of(tmp_path, shard).name for shard in range(3))]
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_kills_lose_and_double_nothing(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 5)
    environment = {**os.environ, "PYTHONPATH": str(Path(edgecls.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgecls.cli", "predict", "--plan", str(tmp_path / "plan"), "--model", str(model)]
    for wait in (0.45, 0.6, 0.75):
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        worker.kill()
        worker.wait(10)
    again = merged(tmp_path / "plan").again
    if again:
        predict_shards(options(tmp_path / "plan", model, ",".join(map(str, again))))
    assert merged(tmp_path / "plan", tmp_path / "merged.csv").again == ()
    assert (tmp_path / "merged.csv").read_text() == plain(source, model, tmp_path / "plain.csv")


def test_names_that_are_not_text_get_their_row(source: Path, model: Path, tmp_path: Path) -> None:
    try:
        shutil.copy(source / "stripes" / "0.png", os.fsencode(str(source / "stripes")) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system has only names that are UTF-8")
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model))
    assert merged(tmp_path / "plan", tmp_path / "merged.csv").errors == 2
    assert "its name is not UTF-8" in (tmp_path / "merged.csv").read_text()


def test_shards_are_named_by_ranges() -> None:
    assert ShardOptions(Path("plan"), "7,0-2,4,2-3").chosen(9) == [0, 1, 2, 3, 4, 7]
    assert in_ranges([4, 0, 7, 1, 2]) == "0-2,4,7"
    assert in_ranges([]) == ""


def test_bits_that_turn_over_in_a_part_are_found(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model))
    merged(tmp_path / "plan", tmp_path / "right.csv")
    right = (tmp_path / "right.csv").read_text()
    part = part_of(tmp_path / "plan", 1)
    whole, seed = part.read_bytes(), random.Random(0)
    n_found = 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[seed.randrange(len(whole))] ^= 1 << seed.randrange(8)
        part.write_bytes(changed)
        result = merged(tmp_path / "plan", tmp_path / "merged.csv")
        n_found += result.again == (1,)
        if not result.again:  # bits that say nothing, such as who wrote the file
            assert (tmp_path / "merged.csv").read_text() == right
    assert n_found > 100


def test_the_file_of_all_rows_may_not_lie_in_the_plan(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model))
    for name in (INPUTS, "part-00000.parquet", "rows/all.parquet"):
        with pytest.raises(OptionError, match="lies in the plan's folder"):
            merged(tmp_path / "plan", tmp_path / "plan" / name)
    assert merged(tmp_path / "plan").again == ()


def test_shards_with_errors_are_named_and_done_again(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 5)
    first = predict_shards(options(tmp_path / "plan", model))
    (shard,) = merged(tmp_path / "plan").with_errors
    again = predict_shards(options(tmp_path / "plan", model))
    assert (again.done, again.errors, first.errors) == ((), 1, 1)  # the exit code stays what it was
    broken = source / "stripes" / "broken.jpg"
    shutil.copy(source / "stripes" / "0.png", broken)
    report = predict_shards(options(tmp_path / "plan", model, redo_errors=True, allow_changed=True))
    assert (report.done, report.errors, report.left) == ((shard,), 0, 0)
    result = merged(tmp_path / "plan")
    assert (result.with_errors, result.again, result.images) == ((), (), 25)
    assert predict_shards(options(tmp_path / "plan", model, redo_errors=True)).done == ()


def test_what_else_lies_among_the_parts_is_told_or_removed(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model, "0"))
    killed = tmp_path / "plan" / ".part-00001.parquet.abc.partial"
    killed.write_bytes(b"half")
    (tmp_path / "plan" / "part-00000 (copy).parquet").write_bytes(b"x")
    assert merged(tmp_path / "plan").others == ("part-00000 (copy).parquet",)
    assert killed.exists()  # somebody may be at it
    predict_shards(options(tmp_path / "plan", model))
    assert merged(tmp_path / "plan").again == ()
    assert killed.exists()
    os.utime(killed, (1, 1))
    merged(tmp_path / "plan")
    assert not killed.exists()


def test_a_model_that_is_named_like_a_column_is_refused(source: Path, tmp_path: Path) -> None:
    for name in ("label", "input"):
        two = [write_linear_model(tmp_path / name / f"{each}.onnx", LABELS) for each in (name, "other")]
        folder = tmp_path / f"plan-{name}"
        planned(source, folder, 2)
        with pytest.raises(OptionError, match="named like a column of the rows"):
            predict_shards(replace(options(folder, two[0]), models=tuple(map(str, two))))


def test_shards_that_somebody_else_did_meanwhile_are_passed_over(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(source, tmp_path / "plan", 3)
    answer = ShardWorker.answer
    answered: list[int] = []

    def with_another(self: ShardWorker, shard: int, *rest: Any) -> Any:
        if not answered:
            answered.append(shard)
            predict_shards(options(tmp_path / "plan", model, "1,2"))
        answered.append(shard)
        return answer(self, shard, *rest)

    monkeypatch.setattr(ShardWorker, "answer", with_another)
    report = predict_shards(options(tmp_path / "plan", model))
    assert (report.done, report.passed_over) == ((0,), (1, 2))


def test_a_plan_that_was_killed_is_made_again(source: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan")
    (tmp_path / "plan" / PLAN).unlink()
    (tmp_path / "plan" / f".{INPUTS}.999999999.partial").touch()
    assert planned(source, tmp_path / "plan").n_inputs == 25


def test_a_plan_of_one_tar_file(source: Path, model: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(source, "")
    for number, address in enumerate((tmp_path / "photos.tar", f"file://{tmp_path}/photos.tar")):
        folder = tmp_path / f"plan{number}"
        assert planned(address, folder, 3).n_inputs == 25
        predict_shards(options(folder, model))
        merged(folder, tmp_path / "merged.csv")
        expected = plain(tmp_path / "photos.tar", model, tmp_path / "plain.csv")
        assert (tmp_path / "merged.csv").read_text() == expected
    with pytest.raises(DatasetError, match="no such tar file"):
        planned(tmp_path / "none.tar", tmp_path / "plan")


def test_a_summary_that_cannot_be_written_holds_nothing_up(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model))

    def refused(folder: Any, name: str, values: Any) -> None:
        raise RunError(f"cannot write {name}: Read-only file system")

    monkeypatch.setattr("edgecls.scale.merge.write_json", refused)
    result = merged(tmp_path / "plan", tmp_path / "merged.csv")
    assert (result.again, result.images) == ((), 25)
    assert "Read-only file system" in result.note


def test_without_pyarrow_a_plan_is_not_called_damaged(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(source, tmp_path / "plan", 2)
    parquet_files.arrow.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"edgecls\[cloud\]"):
        predict_shards(options(tmp_path / "plan", model))
    parquet_files.arrow.cache_clear()


def test_two_plans_into_one_folder_lose_nothing_without_a_word(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fewer = tmp_path / "plan", source / "checks"
    write = plan_module.write_json
    called = []

    def with_another(*given: Any) -> None:
        if not called:
            called.append(1)
            planned(fewer, folder, 3)
        write(*given)

    monkeypatch.setattr(plan_module, "write_json", with_another)
    with pytest.raises(RunError, match="somebody else has planned into it meanwhile"):
        planned(source, folder, 5)
    with pytest.raises(RunError, match="shard 0 is not the one that"):
        predict_shards(options(folder, model))


def test_merge_writes_the_rows_that_it_has_proved(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, other = tmp_path / "plan", tmp_path / "other"
    planned(source, plan, 3)
    planned(source, other, 3)
    predict_shards(options(plan, model))
    predict_shards(replace(options(other, model), min_confidence=0.9))
    write = merge_module._write

    def replaced(*given: Any) -> None:
        shutil.copy(part_of(other, 1), part_of(plan, 1))
        write(*given)

    monkeypatch.setattr(merge_module, "_write", replaced)
    with pytest.raises(RunError, match="a worker has replaced it meanwhile; merge again when no worker is running"):
        merged(plan, tmp_path / "rows.csv")
    assert not (tmp_path / "rows.csv").exists()


def test_a_worker_with_other_options_does_not_replace_a_part(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(source, tmp_path / "plan", 1)
    answered = ShardWorker._answered
    others = [replace(options(tmp_path / "plan", model), min_confidence=0.9)]

    def with_another(self: ShardWorker, *given: Any) -> Any:
        if others:
            predict_shards(others.pop())
        return answered(self, *given)

    monkeypatch.setattr(ShardWorker, "_answered", with_another)
    with pytest.raises(RunError, match="with other options: they differ in min_confidence"):
        predict_shards(options(tmp_path / "plan", model))
    assert merged(tmp_path / "plan").made_by["min_confidence"] == 0.9


def test_a_part_stays_where_doing_it_again_brings_more_errors(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 1)
    predict_shards(options(tmp_path / "plan", model))
    before = part_of(tmp_path / "plan", 0).read_bytes()
    for number in range(0, 10, 2):
        (source / "stripes" / f"{number}.png").unlink()
    assert predict_shards(options(tmp_path / "plan", model, redo_errors=True)).errors == 1
    assert part_of(tmp_path / "plan", 0).read_bytes() == before


def test_a_source_that_vanishes_during_work_leaves_no_part(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(source, tmp_path / "plan", 2)
    answered = ShardWorker._answered

    def unplugged(self: ShardWorker, *given: Any) -> Any:
        shutil.rmtree(source, ignore_errors=True)
        return answered(self, *given)

    monkeypatch.setattr(ShardWorker, "_answered", unplugged)
    with pytest.raises(DatasetError, match="is no longer there, so shard 0 was not answered"):
        predict_shards(options(tmp_path / "plan", model))
    assert merged(tmp_path / "plan").missing == (0, 1)


def test_a_part_with_other_columns_is_found(source: Path, model: Path, tmp_path: Path) -> None:
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model))
    part = part_of(tmp_path / "plan", 0)
    table = parquet_files.parquet().read_table(part)
    renamed = [{"label": "mabel"}.get(name, name) for name in table.column_names]
    for changed in (
        table.rename_columns(renamed),
        table.cast(table.schema.set(2, table.schema.field(2).with_type(parquet_files.arrow().binary()))),
    ):
        write_over(part, changed)
        assert "its columns are not those of its model and options" in merged(tmp_path / "plan").wrong[0]


def test_folders_with_odd_names_hold_plans(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:b", "a b#c?d", "-plan"):
        make_plan(PlanOptions(str(source), name, 2))
        predict_shards(PredictOptions(models=(str(model),), classifier=CPU, shards=ShardOptions(name)))
        assert merge(MergeOptions(name)).again == ()


@pytest.mark.parametrize("name", ["s3:/bucket/plan", "file:/plan", "http:/x"])
def test_addresses_with_one_slash_are_no_folders(source: Path, name: str) -> None:
    with pytest.raises(OptionError, match="expected two slashes in an address"):
        make_plan(PlanOptions(str(source), name))


def test_names_that_no_file_can_have_are_told(source: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="File name too long"):
        merge(MergeOptions("x" * 300))
    planned(source, tmp_path / "plan", 2)
    predict_shards(options(tmp_path / "plan", model))
    with pytest.raises(RunError, match="File name too long"):
        merged(tmp_path / "plan", tmp_path / f"{'x' * 300}.csv")
    for out in ("", "-"):
        with pytest.raises(OptionError, match="expected a folder: a plan is several files"):
            PlanOptions("photos", out)
    with pytest.raises(OptionError, match='--plan "": expected the folder of a plan'):
        ShardOptions("")
