"""What a look at a data set finds: planted copies, double labels, broken and odd files; and what it must not find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edgecls.cli import app
from edgecls.datasets import read_split
from edgecls.errors import DatasetError
from edgecls.evaluate.look.duplicates import bit_counts, close_pairs
from edgecls.evaluate.look.inspect import InspectResult, inspect
from edgecls.evaluate.look.options import InspectOptions
from edgecls.images import Pixels
from tests.conftest import write_class_folders, write_image


def scene(seed: int, height: int = 90, width: int = 120) -> Pixels:
    """A picture with shapes and light as a photo has them: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 220, (4, 5, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(8):
        centre = int(rng.integers(0, width)), int(rng.integers(0, height))
        colour = tuple(map(float, rng.uniform(0, 255, 3)))
        cv2.circle(picture, centre, int(rng.integers(4, 25)), colour, -1, cv2.LINE_AA)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def jpeg(path: Path, picture: Pixels, quality: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Train and test folders of two classes, 30 different scenes in each class of train and 10 in each of test."""
    for split, n, first in (("train", 30, 0), ("test", 10, 1_000)):
        for kind, offset in (("one", 0), ("two", 500)):
            for index in range(n):
                jpeg(tmp_path / "data" / split / kind / f"{index}.jpg", scene(first + offset + index), 92)
    return tmp_path / "data"


def look(data: Path) -> InspectResult:
    return inspect(InspectOptions(data))


def test_different_pictures_are_no_copies(data: Path) -> None:
    result = look(data)
    assert result.n == 80
    assert result.pairs == ()
    assert result.odd == ()
    assert result.is_sound
    assert [(each.label, each.train, each.val, each.test) for each in result.classes] == [
        ("one", 30, 0, 10),
        ("two", 30, 0, 10),
    ]


def test_a_copy_in_another_split_is_a_leak_however_it_was_made(data: Path) -> None:
    train, test = data / "train" / "one", data / "test" / "one"
    shutil.copyfile(train / "0.jpg", test / "same bytes 'quoted' 🐈.jpg")
    write_image(test / "same pixels.png", cv2.imread(str(train / "1.jpg"))[..., ::-1])
    jpeg(test / "encoded anew.jpg", scene(2), 35)
    jpeg(test / "mirrored.jpg", scene(3)[:, ::-1], 50)
    jpeg(test / "smaller.jpg", cv2.resize(scene(4), (80, 60), interpolation=cv2.INTER_AREA), 80)
    jpeg(test / "darker.jpg", np.clip(scene(5) * 0.9, 0, 255).astype(np.uint8), 80)
    result = look(data)
    found = {pair.other.name: (pair.kind, pair.path.name) for pair in result.leaks}
    assert found == {
        "same bytes 'quoted' 🐈.jpg": ("same bytes", "0.jpg"),
        "same pixels.png": ("same pixels", "1.jpg"),
        "encoded anew.jpg": ("looks the same", "2.jpg"),
        "mirrored.jpg": ("mirrored", "3.jpg"),
        "smaller.jpg": ("looks the same", "4.jpg"),
        "darker.jpg": ("looks the same", "5.jpg"),
    }
    assert result.n_leaked == 6
    assert not result.conflicts
    assert not result.is_sound


def test_two_copies_of_one_picture_are_two_that_leaked(data: Path) -> None:
    for name in ("a", "b"):
        shutil.copyfile(data / "train" / "one" / "0.jpg", data / "test" / "one" / f"{name}.jpg")
    result = look(data)
    assert len(result.pairs) == 2  # which connect three files
    assert result.n_leaked == 2


def test_one_picture_under_two_labels_is_a_conflict(data: Path) -> None:
    jpeg(data / "train" / "two" / "copy.jpg", scene(7), 60)
    result = look(data)
    (pair,) = result.conflicts
    assert {pair.label, pair.other_label} == {"one", "two"}
    assert not pair.is_leak
    assert "1 copies lie in train" in result.notes[0]


def test_broken_files_and_empty_classes_are_found_where_training_stops(data: Path) -> None:
    (data / "train" / "one" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (data / "train" / "three").mkdir()
    (data / "train" / "one" / "notes.txt").write_text("x")
    result = look(data)
    (broken,) = result.unreadable
    assert broken.path.name == "broken.jpg"
    assert broken.reason
    assert [Path(folder).name for folder in result.empty] == ["three"]
    assert result.unused == 1
    assert result.n == 80


def test_pictures_unlike_their_class_are_told_with_the_reason(data: Path) -> None:
    folder = data / "train" / "one"
    write_image(folder / "black.png", np.full((90, 120, 3), 3, np.uint8))
    write_image(folder / "blurred.png", cv2.GaussianBlur(scene(8_000), (0, 0), 9))
    write_image(folder / "strip.png", scene(8_001, 40, 400))
    found = {each.path.name: each.reason for each in look(data).odd}
    assert set(found) == {"black.png", "blurred.png", "strip.png"}
    assert "dark" in found["black.png"]
    assert "blurred" in found["blurred.png"]
    assert "extreme shape: 10.0 times" in found["strip.png"]


def test_what_preprocessing_does_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    alpha = np.dstack([scene(1), np.full((90, 120), 128, np.uint8)])
    for index in range(6):
        write_image(root / "a" / f"{index}.png", scene(index))
    cv2.imwrite(str(root / "a" / "alpha.png"), alpha)
    cv2.imwrite(str(root / "a" / "deep.png"), scene(9)[..., 0].astype(np.uint16) * 257)
    write_image(root / "a" / "colour.png", scene(10))
    deep = scene(11).astype(np.uint16) * 257
    cv2.imwrite(str(root / "a" / "deep-colour.png"), deep)  # Pillow calls it RGB
    Image.fromarray(scene(12)).quantize(16).save(root / "a" / "palette.png", transparency=3)
    result = look(root)
    words = {effect.words: effect.n for effect in result.effects}
    assert words["put on a white background, since parts are transparent"] == 2
    assert words["rounded from 16 bits to 8"] == 2
    assert words["enlarged for an input of 96 px"] == 11
    assert result.grey == 1
    (alpha_effect,) = (each for each in result.effects if "transparent" in each.words)
    assert {path.name for path in alpha_effect.examples} == {"alpha.png", "palette.png"}
    assert any("one class only" in note for note in result.notes)
    assert any("are few to calibrate INT8" in note for note in result.notes)


def test_a_film_of_pictures_that_are_all_alike_ends(tmp_path: Path) -> None:
    for index in range(150):
        jpeg(
            tmp_path / "data" / "a" / f"{index}.jpg",
            np.clip(scene(0) + np.int16(index % 5), 0, 255).astype(np.uint8),
            90,
        )
    result = look(tmp_path / "data")
    assert len(result.pairs) == 149


def test_the_search_finds_every_pair_within_the_radius() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 300, dtype=np.uint64)
    others = hashes.copy()
    for row in range(0, 300, 7):  # some that differ in a few bits from another
        others[row] = hashes[(row * 13) % 300] ^ np.uint64(
            sum(1 << int(bit) for bit in rng.choice(63, row % 20, False))
        )
    found = {(int(i), int(j)) for pairs in close_pairs(hashes, others, 10) for i, j in pairs}
    slow = {
        (i, j) for i in range(300) for j in range(i + 1, 300) if (int(hashes[i]) ^ int(others[j])).bit_count() <= 10
    }
    assert found == slow
    assert len(slow) > 5


def test_bits_are_counted_alike_with_and_without_numpys_function(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 63, (7, 9), dtype=np.uint64)
    expected = [[int(value).bit_count() for value in row] for row in values]
    assert bit_counts(values).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert bit_counts(values).tolist() == expected


def test_a_csv_may_name_files_that_are_gone(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", scene(0))
    (tmp_path / "data.csv").write_text("path,label,split\n0.png,a,train\ngone.png,b,val\n")
    result = look(tmp_path / "data.csv")
    assert [each.path.name for each in result.unreadable] == ["gone.png"]
    assert "1 classes of val or test have no training image, first b" in result.notes


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder or CSV file"):
        look(tmp_path / "nowhere")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match="no images found"):
        look(tmp_path / "empty")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_says_the_leak_first_and_strict_fails(data: Path, in_empty_folder: Path) -> None:
    assert run("inspect", data, "--strict").exit_code == 0
    shutil.copyfile(data / "train" / "one" / "0.jpg", data / "test" / "one" / "leak.jpg")
    told = run("inspect", data)
    assert told.exit_code == 0
    first = next(line for line in told.output.splitlines() if "comparing" not in line)
    assert first.startswith("1 picture of val and test with a copy among the training images.")
    strict = run("inspect", data, "--strict", "--json")
    assert strict.exit_code == 1
    printed = json.loads(strict.stdout)
    assert (printed["n_leaked"], printed["leaks"], printed["is_sound"]) == (1, 1, False)
    assert json.loads(Path("inspection/report.json").read_text())["n_leaked"] == 1
    assert "leak.jpg" in Path("inspection/report.html").read_text()


def test_a_leak_between_val_and_test_is_said_as_what_it_is(data: Path, in_empty_folder: Path) -> None:
    jpeg(data / "val" / "one" / "[bold]a[/].jpg", scene(1_000), 40)  # the first of test
    result = look(data)
    assert (len(result.leaks), result.n_leaked) == (1, 0)
    told = run("inspect", data, "--out", "[x]").output
    assert "1 picture in val and in test." in told
    assert "[bold]a[/].jpg" in told
    assert "page: [x]/report.html" in told


def test_labels_that_a_model_doubts_are_the_swapped_ones(
    exported_run: Path, tmp_path: Path, in_empty_folder: Path
) -> None:
    pytest.importorskip("cleanlab")
    # the run's own validation images, two of them under the wrong label
    images = read_split(exported_run / "split.csv", ["checks", "stripes"]).splits
    swapped = {images["val"][0].path, images["val"][-1].path}
    run_copy = tmp_path / "run"
    shutil.copytree(exported_run, run_copy)
    wrong = {"checks": "stripes", "stripes": "checks"}
    rows = (run_copy / "split.csv").read_text().splitlines()
    for number, row in enumerate(rows):
        path, label, *rest = row.split(",")
        if Path(path) in swapped:
            rows[number] = ",".join([path, wrong[label], *rest])
    (run_copy / "split.csv").write_text("\n".join(rows) + "\n")
    told = run("inspect", exported_run.parent / "photos", "--model", run_copy, "--json")
    assert told.exit_code == 0, told.output
    assert {Path(each["path"]) for each in json.loads(told.stdout)["doubts"]} == swapped
    typo = run("inspect", tmp_path / "nowhere", "--model", "rnu")
    assert "rnu: no such run folder" in typo.output  # before any picture is looked for
    other = write_class_folders(tmp_path / "other", 3)
    assert "none of its validation images lies in this data" in run("inspect", other, "--model", run_copy).output
