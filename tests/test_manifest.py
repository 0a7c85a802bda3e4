"""The manifest refuses what it cannot vouch for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgecls.errors import RunError
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import find_run


def manifest(**changes: Any) -> Manifest:
    return Manifest(**{"labels": ("a", "b"), "preprocessing": Preprocessing(), "model": "cnn", **changes})


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    one = manifest(labels=("ä", "b,c"), training={"seed": 3}, metrics={"validation_accuracy": 0.5}, precision="int8")
    assert Manifest.from_json(one.to_json(), "here") == one


BAD = [
    pytest.param({"labels": ("a",)}, "two or more", id="one label"),
    pytest.param({"labels": ("a", "a")}, "different names", id="a label twice"),
    pytest.param({"labels": ("a", "")}, "non-empty", id="an empty label"),
    pytest.param({"precision": "int4"}, "int4", id="an unknown precision"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_wrong_manifest_cannot_exist(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        manifest(**changes)


BAD_PREPROCESSING = [
    pytest.param({"size_hw": (0, 224)}, "image size", id="no height"),
    pytest.param({"crop_fraction": 1.5}, "crop fraction", id="a crop larger than the picture"),
    pytest.param({"resize": "longest"}, "resize rule", id="an unknown rule"),
    pytest.param({"interpolation": "nearest"}, "interpolation", id="an unknown interpolation"),
    pytest.param({"std": (1, 0, 1)}, "std above 0", id="a zero std"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_PREPROCESSING)
def test_wrong_preprocessing_cannot_exist(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        Preprocessing(**changes)


def test_damaged_json_names_its_source() -> None:
    with pytest.raises(RunError, match=r"model\.onnx: the manifest is not JSON"):
        Manifest.from_json("{", "model.onnx")


def test_an_unknown_field_is_not_ignored() -> None:
    values = json.loads(manifest().to_json())
    values["preprocessing"]["letterbox"] = True
    with pytest.raises(RunError, match="unknown preprocessing fields"):
        Manifest.from_json(json.dumps(values), "here")


def test_a_newer_schema_says_upgrade() -> None:
    values = json.loads(manifest().to_json()) | {"schema": 99}
    with pytest.raises(RunError, match="upgrade edgecls"):
        Manifest.from_json(json.dumps(values), "here")


CONFUSED = [
    pytest.param({"labels": "ab"}, 'labels: expected a list of text, got "ab"', id="a text for a list"),
    pytest.param({"labels": ["a", 1]}, "labels: expected a list of text", id="a number for a label"),
    pytest.param({"labels": [["a"], ["b"]]}, "labels: expected a list of text", id="lists for labels"),
    pytest.param({"labels": None}, "labels: expected a list of text, got null", id="null for labels"),
    pytest.param({"labels": {"a": 0, "b": 1}}, "labels: expected a list of text", id="an object for labels"),
    pytest.param({"labels": ["a", "caf\udce9"]}, "is not UTF-8", id="a label that no file can hold"),
    pytest.param({"model": ["cnn"]}, "model: expected a text", id="a list for a text"),
    pytest.param({"temperature": "1"}, "temperature: expected a number", id="a text for a number"),
    pytest.param({"temperature": float("nan")}, "temperature nan", id="no number"),
    pytest.param({"temperature": True}, "temperature: expected a number, got true", id="true for a number"),
    pytest.param({"training": []}, "training: expected an object, got", id="a list for an object"),
    pytest.param({"training": None}, "training: expected an object, got null", id="null for an object"),
    pytest.param({"metrics": {"a": "b"}}, "metrics: expected an object of a number by name", id="a text for a figure"),
    pytest.param({"files": {"a": None}}, "files: expected an object of a text by name", id="null for a hash"),
    pytest.param({"schema": "1"}, "schema: expected a whole number", id="a text for the schema"),
    pytest.param({"schema": None}, "schema: expected a whole number", id="null for the schema"),
    pytest.param({"preprocessing": []}, "preprocessing: expected an object, got a list", id="a list of preprocessing"),
    pytest.param({"preprocessing": None}, "preprocessing: expected an object, got null", id="null for preprocessing"),
    pytest.param({"precision": ["int8"]}, "precision: expected one of fp32", id="a list for a word"),
]
CONFUSED_PREPROCESSING = [
    pytest.param({"size_hw": 224}, "size_hw: expected a list of 2 whole numbers, got 224", id="one side"),
    pytest.param({"size_hw": [224.5, 224]}, "size_hw: expected a list of 2 whole numbers", id="half a pixel"),
    pytest.param({"size_hw": [True, 224]}, "size_hw: expected a list of 2 whole numbers", id="true for a side"),
    pytest.param({"size_hw": [[224, 224]]}, "size_hw: expected a list of 2 whole numbers", id="nested"),
    pytest.param({"mean": [0.5, None, 0.5]}, "mean: expected a list of 3 numbers", id="null in the mean"),
    pytest.param({"mean": "0.5"}, "mean: expected a list of 3 numbers", id="a text for the mean"),
    pytest.param({"mean": [float("nan"), 0.5, 0.5]}, "expected finite numbers", id="nan in the mean"),
    pytest.param({"std": [float("inf"), 0.5, 0.5]}, "expected finite numbers", id="infinite std"),
    pytest.param({"std": [0.5, 0.5]}, "std: expected a list of 3 numbers", id="two of three"),
    pytest.param({"crop_fraction": float("nan")}, "crop fraction nan", id="nan for the crop"),
    pytest.param({"background": [255, 255, 256]}, "from 0 to 255", id="a colour out of range"),
    pytest.param({"resize": {"rule": "pad"}}, "resize: expected one of shortest", id="an object for a word"),
]


@pytest.mark.parametrize(("changes", "message"), CONFUSED)
def test_types_that_were_confused_by_hand_are_named(changes: dict[str, Any], message: str) -> None:
    text = json.dumps(json.loads(manifest().to_json()) | changes)
    with pytest.raises(RunError, match=message) as caught:
        Manifest.from_json(text, "m.json")
    assert str(caught.value).startswith("m.json: damaged manifest: ")
    assert "put back a copy of it" in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), CONFUSED_PREPROCESSING)
def test_preprocessing_that_was_confused_by_hand_is_named(changes: dict[str, Any], message: str) -> None:
    values = json.loads(manifest().to_json())
    with pytest.raises(RunError, match=message):
        Manifest.from_json(json.dumps(values | {"preprocessing": values["preprocessing"] | changes}), "m.json")


NO_MANIFEST = [
    pytest.param(b"", r"is not JSON \(the file is empty\)", id="empty"),
    pytest.param(b'{\n "labels": [}', r"is not JSON \(line 2, column 13", id="cut off"),
    pytest.param(b"[1]", "expected a JSON object, got a list", id="a list"),
    pytest.param(b"[" * 100_000, "is not JSON that can be read", id="deeply nested"),
    pytest.param(b'{"schema": ' + b"1" * 5000 + b"}", "is not JSON that can be read", id="thousands of digits"),
    pytest.param(b'{\n"model": "caf\xe9"}', "line 2: the byte 0xe9 is not UTF-8", id="Latin-1"),
    pytest.param('{"model": "cnn"}'.encode("utf-16"), "it is UTF-16, not UTF-8", id="UTF-16"),
    pytest.param(b"\xef\xbb\xbf{}", "no 'preprocessing' in it", id="a byte order mark, which does no harm"),
    pytest.param(b'{"preprocessing": {}}', "no labels, model in it", id="fields missing"),
]


@pytest.mark.parametrize(("data", "message"), NO_MANIFEST)
def test_a_file_that_holds_no_manifest_is_told_with_its_place(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(RunError, match=message) as caught:
        find_run(tmp_path)
    assert str(tmp_path / "manifest.json") in str(caught.value)


def test_paths_that_are_not_utf_8_can_be_in_a_manifest() -> None:
    one = manifest(training={"data": os.fsdecode(b"/caf\xe9")})
    assert one.to_json().encode()
    assert Manifest.from_json(one.to_json(), "here") == one


OLDER = [
    pytest.param({"epochs": 3, "classifier": None}, ("trained", "network"), id="trained"),
    pytest.param({"classifier": "svm"}, ("trained", "svm"), id="a classical head"),
    pytest.param({"pretrained": "efficientnet_lite0", "weights": "imagenet"}, ("published", "network"), id="published"),
    pytest.param({"adopted": "theirs.onnx", "sha256": "00"}, ("adopted", "network"), id="adopted"),
]


@pytest.mark.parametrize(("training", "expected"), OLDER)
def test_an_older_manifest_tells_its_origin_and_head_by_its_training(
    training: dict[str, Any], expected: tuple[str, str]
) -> None:
    values = json.loads(manifest(training=training).to_json())
    del values["origin"], values["head"]
    read = Manifest.from_json(json.dumps(values), "a test")
    assert (read.origin, read.head) == expected
    assert Manifest.from_json(read.to_json(), "a test") == read


@pytest.mark.parametrize("field", ["origin", "head"])
def test_an_origin_and_a_head_are_known_ones(field: str) -> None:
    with pytest.raises(RunError, match=f"manifest {field} 'magic': expected one of"):
        manifest(**{field: "magic"})
