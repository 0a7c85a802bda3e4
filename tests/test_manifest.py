"""The manifest refuses what it cannot vouch for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgecls.errors import RunError
from edgecls.manifest import Manifest, Preprocessing


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
