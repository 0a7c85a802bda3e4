"""Labels as folders: inside the folder that was named, one each, on every system."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgecls.runtime.options import OutputOptions
from edgecls.runtime.output.label_folders import folder_names
from edgecls.runtime.output.outputs import ABSTAINED, open_outputs
from edgecls.runtime.prediction import Prediction
from tests.conftest import draw, write_image

NASTY = (
    "..", ".", "", "/", "a/b", "a_b", "a\\b", "../up", "/etc", "C:\\x", "cat", "Cat", "CAT", "cat ", "cat.", " cat",
    "NUL", "nul.txt", "com1", "LPT¹", "CON", "a\0b", "a\nb", "\udcff", ".git", "~", "-rf", "*", "é", "e\u0301",
    "x" * 300, "x" * 300 + "y", "ß", "ss", ABSTAINED, "_Abstained", "a_b-2",
)  # fmt: skip


def test_a_label_that_is_a_name_everywhere_stays_as_it_is() -> None:
    labels = ("cat", "golden retriever", "n01440764", "tench, Tinca tinca", "Bär", "狗", "7 up", "a_b", "c++")
    assert folder_names(labels) == {label: label for label in labels}


def test_labels_that_are_one_folder_somewhere_get_a_number() -> None:
    names = folder_names(("a/b", "a_b", "cat", "Cat", "..", "."))
    assert names == {"a/b": "a_b-2", "a_b": "a_b", "cat": "cat", "Cat": "Cat-2", "..": "_", ".": "_-2"}


def check(labels: Sequence[str]) -> None:
    names = folder_names(labels, reserved=[ABSTAINED])
    assert set(names) == set(labels)
    assert len({name.casefold() for name in [*names.values(), ABSTAINED]}) == len(set(labels)) + 1
    for name in names.values():
        assert name == os.path.basename(name)
        assert name.strip(" .") not in ("", "..")
        assert not set(name) & set('<>:"/\\|?*\0\n')
        assert name[-1] not in " ."
        assert name[0] not in " ."
        assert len(name.encode("utf-8")) <= 255
        assert name.partition(".")[0].upper() not in ("NUL", "CON", "COM1", "LPT¹")


@given(st.lists(st.text(max_size=8) | st.sampled_from(NASTY), unique=True, max_size=6))
@example(list(NASTY))
def test_any_labels_become_folders_that_differ(labels: list[str]) -> None:
    check(labels)


@pytest.mark.parametrize("sort_by", ["copy", "link"])
def test_pictures_are_sorted_into_the_folder_that_was_named_and_nowhere_else(
    sort_by: str, in_empty_folder: Path
) -> None:
    picture = write_image(in_empty_folder / "photos" / "a.png", draw("checks", 0))
    labels = [label for label in NASTY if label]
    options = OutputOptions(sort_into=in_empty_folder / "deep" / "sorted", sort_by=sort_by)  # type: ignore[arg-type]
    with open_outputs(options, labels) as outputs:
        for label in labels:
            outputs.add(picture, Prediction(str(picture), "ok", label, 1.0, top=((label, 1.0),)))
        outputs.add(picture, Prediction(str(picture), "abstained", reason="unsure"))
    found = {path for path in in_empty_folder.rglob("*.png") if path != picture}
    assert len(found) == len(labels) + 1
    assert {path.parent.parent for path in found} == {in_empty_folder / "deep" / "sorted"}
    assert all(path.read_bytes() == picture.read_bytes() for path in found)
