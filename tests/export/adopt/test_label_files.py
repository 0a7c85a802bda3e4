"""Label files as other tools and people write them: the same labels, the same ids, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgecls.cli import app
from edgecls.errors import OptionError
from edgecls.export.adopt.labels import read_labels
from tests.conftest import rows_of, write_class_folders
from tests.export.adopt.test_adopt import write_model

CAT_AND_DOG = ("cat", "dog")
IDS = ("n02123045", "n02110185")

NUMBERED = [
    pytest.param("0 cat\n1 dog\n", id="Teachable Machine"),
    pytest.param("0:cat\n1:dog\n", id="colon"),
    pytest.param("0: cat\n1: dog", id="colon and space"),
    pytest.param("0,cat\n1,dog\n", id="comma"),
    pytest.param("0,cat,\n1,dog,\n", id="commas"),
    pytest.param("0\tcat\n1\tdog\n", id="tab"),
    pytest.param("0;cat\r\n1;dog\r\n", id="semicolon"),
    pytest.param("0 - cat\n1 - dog\n", id="dash"),
    pytest.param("0=cat\n1=dog\n", id="equals"),
    pytest.param("0 -> cat\n1 -> dog\n", id="arrow"),
    pytest.param("(0) cat\n(1) dog\n", id="brackets"),
    pytest.param("000 cat\n001 dog\n", id="zeros in front"),
    pytest.param("1 dog\n0 cat\n", id="in another order"),
    pytest.param("1. cat\n2. dog\n", id="from one"),
    pytest.param("0 cat\n\n1 dog\n\n\n", id="blank lines"),
    pytest.param("cat,0\ndog,1\n", id="behind"),
    pytest.param('0,"cat"\n1,"dog"\n', id="in quotes"),
]

PLAIN = [
    pytest.param("cat,\ndog,\n", id="commas"),
    pytest.param("cat,\ndog\n", id="commas but the last"),
    pytest.param("cat;\ndog;\n", id="semicolons"),
    pytest.param("'cat',\n'dog'\n", id="quotes"),
    pytest.param("- cat\n- dog\n", id="dashes"),
    pytest.param("cat, dog", id="one line"),
    pytest.param("\ufeff\tcat \r\n dog\u200b\r\n\r\n", id="what is invisible"),
]

OBJECTS = [
    pytest.param("{0: 'cat', 1: 'dog'}", id="Python"),
    pytest.param("{0: 'cat',\n 1: 'dog'}\n", id="Python in lines"),
    pytest.param("['cat', 'dog']", id="Python list"),
    pytest.param("('cat', 'dog')", id="Python tuple"),
    pytest.param('class_names = ["cat", "dog"]', id="out of a program"),
    pytest.param("{'cat': 0, 'dog': 1}", id="class_to_idx"),
    pytest.param('{"1": "cat", "2": "dog"}', id="from one"),
    pytest.param('{"id2label": {"1": "dog", "0": "cat"}, "label2id": {"cat": 0, "dog": 1}}', id="Hugging Face"),
    pytest.param('{"architectures": ["ViT"], "label2id": {"dog": 1, "cat": 0}}', id="Hugging Face, one direction"),
    pytest.param('{"architecture": "resnet18", "label_names": ["cat", "dog"]}', id="timm"),
    pytest.param('{"tfjsVersion": "1.3.1", "labels": ["cat", "dog"]}', id="Teachable Machine"),
    pytest.param('[{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}]', id="COCO"),
    pytest.param('[[0, "cat"], [1, "dog"]]', id="pairs"),
]


@pytest.mark.parametrize("text", [*NUMBERED, *PLAIN, *OBJECTS])
def test_only_the_names_are_taken(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(text.encode())
    listed = read_labels(tmp_path / "labels.txt")
    assert (listed.names, listed.ids) == (CAT_AND_DOG, ())


@pytest.mark.parametrize("text", NUMBERED)
def test_what_was_left_out_of_lines_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(text)
    note = read_labels(tmp_path / "labels.txt").note
    assert note is not None
    assert note.endswith("is 'cat'")


TABLES = [
    pytest.param("index,label\n1,dog\n0,cat\n", id="index and label"),
    pytest.param("label,index\ndog,1\ncat,0\n", id="label and index"),
    pytest.param("Class ID;Class Name\n0;cat\n1;dog\n", id="semicolons"),
    pytest.param("id\tname\n0\tcat\n1\tdog\n", id="tabs"),
    pytest.param(",label\n0,cat\n1,dog\n", id="pandas"),
    pytest.param(",0\n0,cat\n1,dog\n", id="pandas series"),
    pytest.param("label\ncat\ndog\n", id="one column"),
    pytest.param("0,cat\n1,dog\n", id="no header"),
    pytest.param("cat\ndog\n", id="no header, one column"),
]


@pytest.mark.parametrize("text", TABLES)
def test_tables_are_read_by_their_header(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    assert read_labels(tmp_path / "labels.csv").names == CAT_AND_DOG


WITH_IDS = [
    pytest.param("n02123045 cat\nn02110185 dog\n", id="synset.txt"),
    pytest.param("n02123045\tcat\nn02110185\tdog\n", id="tabs"),
    pytest.param("0 n02123045 cat\n1 n02110185 dog\n", id="numbers before"),
    pytest.param("n02110185 2 dog\nn02123045 1 cat\n", id="numbers between, in another order"),
    pytest.param("cat n02123045\ndog n02110185\n", id="ids behind"),
    pytest.param('{"0": ["n02123045", "cat"], "1": ["n02110185", "dog"]}', id="Keras"),
    pytest.param('[["n02123045", "cat"], ["n02110185", "dog"]]', id="pairs"),
    pytest.param("index,wnid,name\n1,n02110185,dog\n0,n02123045,cat\n", id="table"),
    pytest.param('{"labels": ["cat", "dog"], "label_ids": ["n02123045", "n02110185"]}', id="a manifest of ours"),
]


@pytest.mark.parametrize("text", WITH_IDS)
def test_wordnet_ids_are_kept_beside_the_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(text)
    listed = read_labels(tmp_path / "labels")
    assert (listed.names, listed.ids) == (CAT_AND_DOG, IDS)


def test_synonyms_stay_and_names_of_two_classes_get_their_id_behind(tmp_path: Path) -> None:
    (tmp_path / "synset.txt").write_text("n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n")
    listed = read_labels(tmp_path / "synset.txt")
    assert listed.names == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")


NAMES = [
    pytest.param(("7 up", "3 musketeers", "50 cent"), id="other numbers"),
    pytest.param(("1 euro", "2 euro"), id="nothing else tells them apart"),
    pytest.param(("0 stars", "1 star", "2 stars"), id="few differ without"),
    pytest.param(("0", "1", "2"), id="digits"),
    pytest.param(("kind 0", "kind 1"), id="numbers behind"),
    pytest.param(("0-1 years", "1-2 years", "2-4 years"), id="ranges"),
    pytest.param(("0.5 mm", "1.5 mm", "2.0 mm"), id="decimals"),
    pytest.param(("001.Albatross", "002.Laysan"), id="numbers in folders' names"),
    pytest.param(("0_cat", "1_dog"), id="underscores"),
    pytest.param(("1 cat", "dog"), id="not all"),
    pytest.param(("n02123045", "n02110185"), id="ids alone"),
    pytest.param(("tabby, tabby cat", "husky"), id="commas inside"),
    pytest.param(('the "big" one', "it's"), id="quotes inside"),
]


@pytest.mark.parametrize("names", NAMES)
def test_numbers_and_marks_that_are_of_the_names_stay(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    listed = read_labels(tmp_path / "labels.txt")
    assert (listed.names, listed.ids, listed.note) == (names, (), None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_what_powershell_and_excel_write_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("0 Bär\r\n1 Kro\u0308te\r\n".encode(encoding))
    assert read_labels(tmp_path / "labels.txt").names == ("Bär", "Kröte")


REFUSED = [
    pytest.param("labels.txt", "0 cat\n1 dog\n3 bird\n", "numbered from 0 to 3, but 2 is missing", id="gap"),
    pytest.param("labels.csv", "index,label\n0,cat\n2,dog\n", "indices are not 0 to 1: 1 is missing", id="table"),
    pytest.param("labels.csv", "index,label\n0,cat\nx,dog\n", "'x' in the column of the indices", id="no number"),
    pytest.param("labels.csv", "index,label\n0,cat, tabby\n1,dog\n", "row 1 below it has 3.*quotes", id="columns"),
    pytest.param("labels.csv", "cat,felis\ndog,canis\n", "make its first row index,label", id="no header"),
    pytest.param("labels.json", '{"0": "a", "1": "b", "1": "c"}', "'1' stands there twice", id="key twice"),
    pytest.param("labels.txt", "{0: 'a', 0: 'b'}", "0 stands there twice", id="key twice in Python"),
    pytest.param(
        "labels.json",
        '{"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}',
        "its label2id says 1 for 'a', and its id2label does not",
        id="directions disagree",
    ),
    pytest.param("labels.json", '{"0": null, "1": "b"}', "expected a list of names", id="null"),
    pytest.param("labels.json", "[" * 100_000, "not JSON", id="nested without end"),
    pytest.param("data.yaml", "names: [a, b]", "a .yaml file, which is not read", id="YAML"),
    pytest.param("labels.txt", "cat", "only one label, 'cat'", id="one"),
    pytest.param("labels.txt", "c\x07at\ndog\n", "index 0 cannot be used: .*control characters", id="bell"),
    pytest.param("labels.txt", "Kröte\nKro\u0308te\n", "'Kröte' for the indices 0, 1", id="one name in two forms"),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED)
def test_what_is_unclear_is_said(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        read_labels(tmp_path / name)


def test_only_a_file_of_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Bär\nKröte\n".encode("latin-1"))
    with pytest.raises(OptionError, match=r"cannot be read as UTF-8 text \(byte 1: .*save it as UTF-8"):
        read_labels(tmp_path / "latin.txt")
    with pytest.raises(OptionError, match="a folder or a device"):
        read_labels(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tm.txt", "0 checks\n1 stripes\n"),
        ("synset.txt", "n00000001 checks\nn00000002 stripes\n"),
        ("keras.json", json.dumps({"0": ["n00000001", "checks"], "1": ["n00000002", "stripes"]})),
    ],
)
def test_class_folders_are_known_by_the_adopted_labels(name: str, text: str, in_empty_folder: Path) -> None:
    (in_empty_folder / name).write_text(text)
    write_model(in_empty_folder / "theirs.onnx", n_classes=2)
    photos = write_class_folders(in_empty_folder / "photos", 1)
    if "n00000001" in text:
        (photos / "checks").rename(photos / "n00000001")
    flags = ["--labels", name, "--mean", "0", "0", "0", "--std", "1", "1", "1", "--out", "run", "--json"]
    adopted = CliRunner().invoke(app, ["adopt", "theirs.onnx", *flags])
    assert adopted.exit_code == 0, adopted.output
    predict = ["predict", str(photos), "--model", "run", "--device", "cpu", "--out", "rows.csv", "--json"]
    report = json.loads(CliRunner().invoke(app, predict).stdout)
    assert report["labelled"] == 2
    assert {row["label"] for row in rows_of(in_empty_folder / "rows.csv")} <= {"checks", "stripes"}
