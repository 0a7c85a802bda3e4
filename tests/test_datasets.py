"""Folders and CSVs to splits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from edgecls.datasets import ClassNames, open_dataset, read_labelled, read_split, write_split
from edgecls.errors import DatasetError
from edgecls.labelled import LabelledImage, stratified_sample, stratified_split


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def many(label: str, n: int) -> list[str]:
    return [f"{label}/{index}.jpg" for index in range(n)]


def test_class_folders_get_a_stratified_split_that_the_seed_repeats(tmp_path: Path) -> None:
    touch(tmp_path, *many("cat", 50), *many("dog", 10))
    one, again, other = (open_dataset(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert one.labels == ("cat", "dog")
    assert Counter(image.label for image in one.splits["val"]) == {"cat": 10, "dog": 2}
    assert not set(one.splits["train"]) & set(one.splits["val"])


def test_labels_are_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, *many("10", 2), *many("9", 2), *many("1", 2))
    assert open_dataset(tmp_path).labels == ("1", "9", "10")


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, *many("train/a", 3), *many("train/b", 3), *many("valid/a", 2), *many("test/b", 1))
    dataset = open_dataset(tmp_path)
    assert {split: len(found) for split, found in dataset.splits.items()} == {"train": 6, "val": 2, "test": 1}
    assert dataset.targets("test").tolist() == [1]


def test_without_a_val_folder_validation_is_drawn_from_train_and_never_from_test(tmp_path: Path) -> None:
    touch(tmp_path, *many("train/a", 10), *many("train/b", 10), *many("test/a", 5), *many("test/b", 5))
    dataset = open_dataset(tmp_path)
    assert all("train" in image.path.parts for image in dataset.splits["val"])
    assert {split: len(found) for split, found in dataset.splits.items()} == {"train": 16, "val": 4, "test": 10}


def test_a_csv_names_images_relative_to_itself(tmp_path: Path) -> None:
    touch(tmp_path, "p/1.jpg", "p/2.jpg", "p/3.jpg", "p/4.jpg")
    rows = ["path,label,split", "p/1.jpg,a,train", "p/2.jpg,b,train", 'p/3.jpg,"a",val', "p/4.jpg,b,test"]
    (tmp_path / "data.csv").write_text("\n".join(rows))
    dataset = open_dataset(tmp_path / "data.csv")
    assert dataset.splits["val"] == (LabelledImage((tmp_path / "p/3.jpg").absolute(), "a"),)
    assert len(dataset.splits["test"]) == 1


BAD = [
    pytest.param([], "neither class folders nor images", id="an empty folder"),
    pytest.param(["1.jpg", "2.jpg"], "2 images but no class folders", id="no class folders"),
    pytest.param(many("a", 3), "one class only", id="one class"),
    pytest.param([*many("a", 3), "b/readme.txt"], "no images for the class 'b'", id="an empty class"),
    pytest.param([*many("a", 3), *many("b", 1)], "one image only in b", id="a class with one image"),
    pytest.param([*many("val/a", 3), *many("test/a", 3)], "no train folder", id="no train folder"),
    pytest.param(
        [*many("train/a", 3), *many("train/b", 3), *many("test/c", 1)],
        "test split has classes that train does not know: c",
        id="a test class that train does not know",
    ),
    pytest.param(
        [*many("train/a", 3), *many("train/b", 3), *many("extra/a", 3)],
        "extra beside the train folder",
        id="a stray folder",
    ),
    pytest.param(
        [*many("train/a", 3), *many("train/b", 3), "val/a/x.txt"], "val split has no images", id="an empty val"
    ),
]


@pytest.mark.parametrize(("names", "message"), BAD)
def test_a_layout_that_is_not_understood_names_the_folder(tmp_path: Path, names: list[str], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(tmp_path)
    assert tmp_path.name in str(caught.value) or "test split" in message


def test_a_missing_folder_shows_the_layouts_that_are_understood(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"DATA/\{train,val,test\}/<class>"):
        open_dataset(tmp_path / "dta")


BAD_CSV = [
    pytest.param("file,class\na.jpg,b\n", "the first line is 'file,class'", id="other columns"),
    pytest.param("path,label\na.jpg,\n", "line 2: a row needs a path and a label", id="a row without a label"),
    pytest.param("path,label\nmissing.jpg,a\n", "1 images do not exist", id="missing images"),
    pytest.param("path,label,split\na.jpg,a,tarin\n", "line 2: split 'tarin'", id="an unknown split"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CSV)
def test_a_bad_csv_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / "data.csv")


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    touch(tmp_path, *many("train/a", 3), *many("train/b", 3), *many("val/a", 2), "stray.jpg", "train/a/notes.txt")
    unused, missing = open_dataset(tmp_path).warnings()
    assert "2 files are not used" in unused
    assert missing == "the val split has no image of b"


def labelled(**counts: int) -> list[LabelledImage]:
    return [LabelledImage(Path(f"{label}{index}"), label) for label, n in counts.items() for index in range(n)]


@pytest.mark.parametrize("n", [1, 7, 20, 33, 60, 100])
def test_a_stratified_sample_has_the_size_that_was_asked_for_and_the_proportions(n: int) -> None:
    images = labelled(a=40, b=15, c=5)
    sample = stratified_sample(images, n, seed=3)
    assert len(sample) == min(n, 60) == len(set(sample))
    counts = Counter(image.label for image in sample)
    for label, size in (("a", 40), ("b", 15), ("c", 5)):
        assert abs(counts[label] - min(n, 60) * size / 60) < 1, label


def test_a_split_never_takes_all_images_of_a_class() -> None:
    drawn, rest = stratified_split(labelled(a=2, b=3), 0.9, seed=0)
    assert Counter(image.label for image in rest) == {"a": 1, "b": 1}
    assert len(drawn) == 3


def test_a_split_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    touch(tmp_path, *many("train/a", 3), *many("train/ä,b", 3), *many("test/a", 1))
    dataset = open_dataset(tmp_path)
    broken = dataset.splits["train"][0]
    dataset = dataset.without({broken: "truncated: 5 bytes"})
    write_split(dataset, tmp_path / "split.csv")
    assert read_split(tmp_path / "split.csv", dataset.labels) == dataset


def test_losing_every_image_of_a_class_to_damage_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, *many("train/a", 1), *many("train/b", 3), *many("val/a", 1))
    dataset = open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="no readable training image of a"):
        dataset.without({dataset.splits["train"][0]: "the file is empty"})


@pytest.mark.parametrize("name", ["cat ", " cat", "cat\xa0", "\u3000cat", "cat\u200b", "\ufeffcat"])
def test_what_is_invisible_at_the_ends_of_a_class_is_no_part_of_its_label(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "data", *many(name, 3), *many("dog", 3))
    dataset = open_dataset(tmp_path / "data")
    assert dataset.labels == ("cat", "dog")
    write_split(dataset, tmp_path / "split.csv")
    assert read_split(tmp_path / "split.csv", dataset.labels).splits == dataset.splits


NFC, NFD = "K\xe4se", "Ka\u0308se"


def test_one_class_in_two_unicode_forms_is_one_class_and_said(tmp_path: Path) -> None:
    touch(tmp_path, *many(f"train/{NFC}", 3), *many(f"train/{NFD}", 3), *many("train/Brot", 3))
    touch(tmp_path, *many(f"val/{NFD}", 2), *many("val/Brot", 2))
    dataset = open_dataset(tmp_path)
    assert dataset.labels == ("Brot", NFC)
    assert Counter(image.label for image in dataset.splits["train"]) == {NFC: 6, "Brot": 3}
    assert dataset.targets("val").tolist() == [0, 0, 1, 1]
    (line,) = dataset.warnings()
    assert r"'Ka\u0308se', 'K\xe4se'" in line
    assert line.endswith("they are one class")


def test_a_csv_may_mix_the_forms_of_a_label(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(4)))
    rows = ["path,label", f"0.jpg,{NFC}", f"1.jpg,{NFD}", "2.jpg,Brot", "3.jpg,Brot"]
    (tmp_path / "data.csv").write_text("\n".join(rows), encoding="utf-8")
    assert open_dataset(tmp_path / "data.csv").labels == ("Brot", NFC)


@pytest.mark.parametrize("label", [NFC, NFD])
@pytest.mark.parametrize("name", [NFC, NFD, f" {NFD}"])
def test_a_label_is_known_in_each_of_its_forms(label: str, name: str) -> None:
    classes = ClassNames((label, "Brot"), ("n01", "n02"))
    assert classes.named(name) == label
    assert classes.label_of("n02 ") == "Brot"
    assert classes.label_of("1") == "Brot"
    assert classes.label_of("1" * 5000) is None


def test_classes_that_an_older_run_told_apart_by_their_form_stay_apart(tmp_path: Path) -> None:
    classes = ClassNames((NFC, NFD))
    assert [classes.named(name) for name in (NFC, NFD, f"{NFC} ")] == [NFC, NFD, NFC]
    header = "path,label,split,status,reason"
    rows = [header, f"/1.jpg,{NFC},train,ok,", f"/2.jpg,{NFD},train,ok,", f"/3.jpg,{NFD},val,ok,"]
    (tmp_path / "split.csv").write_text("\n".join(rows), encoding="utf-8")
    assert read_split(tmp_path / "split.csv", (NFC, NFD)).targets("train").tolist() == [0, 1]


NO_NAMES = [
    pytest.param(os.fsdecode(b"caf\xe9"), r"not UTF-8 \(its bytes are 'caf\\xe9'\)", id="Latin-1"),
    pytest.param("\r", "no visible character", id="a carriage return"),
    pytest.param("\u3000", "no visible character", id="a space"),
    pytest.param("a\nb", r"control characters \('\\n'\)", id="a line feed"),
    pytest.param("a\x1b[31mb", r"control characters \('\\x1b'\)", id="an escape sequence"),
]


@pytest.mark.parametrize(("name", "message"), NO_NAMES)
def test_a_folder_that_can_be_no_label_is_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    touch(tmp_path, *many(name, 3), *many("dog", 3))
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(tmp_path)
    assert ascii(name)[1:-1] in str(caught.value)
    assert "rename the folder" in str(caught.value)


def test_a_label_of_a_csv_that_could_not_be_read_back_is_refused_with_its_line(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    (tmp_path / "data.csv").write_text('path,label\n1.jpg,"a\x07b"\n')
    with pytest.raises(DatasetError, match="line 2: the name has control characters"):
        open_dataset(tmp_path / "data.csv")


def test_file_names_that_are_not_utf_8_come_back_from_the_split(tmp_path: Path) -> None:
    touch(tmp_path / "data", *many("a", 3), *many("b", 3), os.fsdecode(b"a/caf\xe9.jpg"))
    dataset = open_dataset(tmp_path / "data")
    write_split(dataset, tmp_path / "split.csv")
    assert read_split(tmp_path / "split.csv", dataset.labels).splits == dataset.splits


def test_a_folder_that_cannot_be_walked_is_a_line_and_the_rest_is_used(tmp_path: Path) -> None:
    touch(tmp_path, *many("a", 3), *many("b", 3))
    (tmp_path / "a" / "current").symlink_to("current")
    dataset = open_dataset(tmp_path)
    assert len(dataset.splits["train"]) + len(dataset.splits["val"]) == 6
    (line,) = dataset.warnings()
    assert "a/current is left out: this folder cannot be walked" in line


def test_a_pipe_is_no_data_set(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.csv")
    for read in (lambda path: open_dataset(path), lambda path: read_labelled(path, ClassNames(("a", "b")))):
        with pytest.raises(DatasetError, match="it is a pipe or a device"):
            read(tmp_path / "data.csv")


WRONG_CSV = [
    pytest.param(b"path;label\n1.jpg;a\n", "separated by semicolons, not by commas", id="semicolons"),
    pytest.param(b"path\tlabel\n1.jpg\ta\n", "separated by tabs", id="tabs"),
    pytest.param(b"file,label\n1.jpg,a\n", "no column path: the first line is 'file,label'", id="no path"),
    pytest.param(b"path,kind\n1.jpg,a\n", "no column label: the first line is 'path,kind'", id="no label"),
    pytest.param(b"path,label,label\n1.jpg,a,b\n", "two columns named label", id="a column twice"),
    pytest.param(b"", "no column path and no column label", id="an empty file"),
    pytest.param(b"path,label\n" + 200 * b"1.jpg,a\n" + b"1.jpg,caf\xe9\n", "line 202: the byte 0xe9", id="Latin-1"),
    pytest.param("path,label\n1.jpg,a\n".encode("utf-16"), "line 1: it is UTF-16, not UTF-8", id="UTF-16"),
    pytest.param(b"path,label\n1,5.jpg,a\n", "line 2: 3 values where the first line names 2", id="a comma"),
    pytest.param(b'path,label\n"1.jpg,a\n', "line 2: not a row of a CSV", id="a quote that is not closed"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_CSV)
def test_what_is_no_csv_is_told_with_the_line_and_what_was_expected(tmp_path: Path, data: bytes, message: str) -> None:
    touch(tmp_path, "1.jpg")
    (tmp_path / "data.csv").write_bytes(data)
    for read in (lambda path: open_dataset(path), lambda path: read_labelled(path, ClassNames(("a", "b")))):
        with pytest.raises(DatasetError, match=message) as caught:
            read(tmp_path / "data.csv")
        assert "data.csv, line" in str(caught.value)


def test_empty_rows_and_empty_cells_at_the_end_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(4)))
    rows = ["\ufeffpath, label ,", "0.jpg,a,", ",,", "1.jpg, a", "", "2.jpg,b", "3.jpg,b,", ""]
    (tmp_path / "data.csv").write_text("\r\n".join(rows), encoding="utf-8")
    assert open_dataset(tmp_path / "data.csv").labels == ("a", "b")
