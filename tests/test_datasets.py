"""Folders and CSVs to splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from edgecls.datasets import (
    LabelledImage,
    open_dataset,
    read_split,
    stratified_sample,
    stratified_split,
    write_split,
)
from edgecls.errors import DatasetError


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
    touch(tmp_path, *many("train/a", 3), *many("train/b", 3), *many("val/a", 2), "stray.jpg", "train/a/live.heic")
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
