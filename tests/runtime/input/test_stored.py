"""The images in tar files: each has its row, whatever the archive is like."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from edgecls.datasets import ClassNames
from edgecls.runtime.input.sources import find_sources
from edgecls.runtime.input.stored import StoredInput, inputs_of
from edgecls.runtime.pipeline import Encoded, Unreadable
from edgecls.storage import LocalStore

CLASSES = ClassNames(("stripes", "checks"))


def write(path: Path, *names: str, links: dict[str, str] | None = None, hard: dict[str, str] | None = None) -> bytes:
    """A tar file with a member for each name, whose content is its name; then links to other names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name.encode())
            archive.addfile(member, io.BytesIO(name.encode()))
        for kind, given in ((tarfile.SYMTYPE, links), (tarfile.LNKTYPE, hard)):
            for name, target in (given or {}).items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                archive.addfile(member)
    return path.read_bytes()


def inputs(path: Path) -> list[StoredInput]:
    store = LocalStore(str(path.parent))
    return list(inputs_of(store, [store.stat(path.name)]))


def content(path: Path, each: StoredInput) -> str:
    return path.read_bytes()[each.offset : each.offset + each.size].decode()


def test_links_are_the_files_they_lead_to(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(
        path, "./x/1.jpg", "x/2.jpg", "y/3.jpg", "data",
        links={"x/near.jpg": "2.jpg", "y/up.jpg": "../x/1.jpg", "y/again.jpg": "up.jpg", "z.jpg": "./data"},
        hard={"hard.jpg": "x/2.jpg"},
    )  # fmt: skip
    found = {each.name.removeprefix("a.tar/"): content(path, each) for each in inputs(path)}
    assert found == {
        "x/1.jpg": "./x/1.jpg", "x/2.jpg": "x/2.jpg", "y/3.jpg": "y/3.jpg", "x/near.jpg": "x/2.jpg",
        "y/up.jpg": "./x/1.jpg", "y/again.jpg": "./x/1.jpg", "z.jpg": "data", "hard.jpg": "x/2.jpg",
    }  # fmt: skip


def test_links_that_lead_nowhere_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path, "1.jpg", links={"gone.jpg": "no.jpg", "loop.jpg": "loop.jpg", "out.jpg": "../../etc/passwd"})
    reasons = {each.name: each.reason for each in inputs(path)}
    assert [name for name, reason in reasons.items() if not reason] == ["a.tar/1.jpg"]
    assert reasons["a.tar/gone.jpg"] == "a link to no.jpg, which is no file in the tar file"
    assert len(reasons) == 4


@pytest.mark.parametrize("place", [3, 149, 156, 260])
def test_a_header_that_is_damaged_is_told(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.tar"
    whole = bytearray(write(path, "1.jpg", "2.jpg", "3.jpg", hard={"4.jpg": "1.jpg"}))
    whole[2 * 512 + place] ^= 1
    path.write_bytes(whole)
    first, error = inputs(path)
    assert (first.name, first.reason) == ("a.tar/1.jpg", "")
    assert (error.name, error.is_member) == ("a.tar", False)
    assert error.reason == "the tar file cannot be read on: there is no header at byte 1,024, where the next member should begin"  # noqa: E501  # fmt: skip


def test_links_before_the_damage_have_their_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    whole = write(path, "1.jpg", hard={"2.jpg": "1.jpg", "3.jpg": "1.jpg"})
    path.write_bytes(whole[: 3 * 512] + b"x" * 512 + whole[4 * 512 :])
    names = {each.name: bool(each.reason) for each in inputs(path)}
    assert names == {"a.tar/1.jpg": False, "a.tar": True, "a.tar/2.jpg": True}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_that_is_named_like_a_tar_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    (each,) = inputs(tmp_path / "a.tar")
    assert each.reason == "the tar file cannot be read on: it is no regular file"


def test_a_link_whose_target_is_no_text_is_spelt_out(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", links={"1.jpg": "\udcff.jpg"})
    (each,) = inputs(tmp_path / "a.tar")
    assert each.reason == "a link to \\udcff.jpg, which is no file in the tar file"


def test_archives_one_behind_the_other_are_read_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(write(tmp_path / "b.tar", "1.jpg") + write(tmp_path / "c.tar", "2.jpg", "3.jpg") + b"\0" * 700)
    assert [content(path, each) for each in inputs(path)] == ["1.jpg", "2.jpg", "3.jpg"]


def test_what_lies_behind_the_end_and_is_no_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(write(path, "1.jpg") + b"more")
    assert [bool(each.reason) for each in inputs(path)] == [False, True]


def test_an_archive_may_end_without_its_zeros_and_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(write(path, "1.jpg")[: 2 * 512])
    assert [each.reason for each in inputs(path)] == [""]
    write(path)
    assert inputs(path) == []


def test_a_folder_s_tar_files_are_folders_of_it(tmp_path: Path) -> None:
    write(tmp_path / "in" / "b.tar", "stripes/1.jpg", "2.jpg")
    write(tmp_path / "in" / "checks" / "c.tar", "3.jpg")
    (tmp_path / "in" / "a.jpg").write_bytes(b"file")
    (tmp_path / "in" / "c.png").write_bytes(b"file")
    (tmp_path / "in" / "d.tar").write_bytes(b"no tar file")
    found = find_sources([tmp_path / "in"], CLASSES)
    assert (found.count, found.skipped) == (6, 0)
    for _ in range(2):  # it may be gone through again
        names = [(each.name, each.truth, type(each.picture)) for each in found]
        assert names == [
            ("a.jpg", None, str), ("b.tar/stripes/1.jpg", "stripes", Encoded), ("b.tar/2.jpg", None, Encoded),
            ("c.png", None, str), ("d.tar", None, Unreadable), ("checks/c.tar/3.jpg", "checks", Encoded),
        ]  # fmt: skip
    several = find_sources([tmp_path / "in" / "checks", tmp_path / "in" / "b.tar"], CLASSES)
    assert [each.name for each in several] == [
        f"{tmp_path}/in/checks/c.tar/3.jpg", f"{tmp_path}/in/b.tar/stripes/1.jpg", f"{tmp_path}/in/b.tar/2.jpg",
    ]  # fmt: skip
