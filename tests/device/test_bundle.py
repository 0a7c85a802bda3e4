"""One file for a device: the answers of the run, none of its training, and refused where anything in it has changed."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgecls.bundles import unpacked, write_bundle
from edgecls.cache import cache_folder
from edgecls.cli import app
from edgecls.device.bundle import bundle
from edgecls.device.options import BundleOptions
from edgecls.errors import OptionError, RunError
from edgecls.export.judge.verify import verify
from edgecls.export.options import ExportOptions
from edgecls.export.run import export
from edgecls.manifest import without_places
from edgecls.runs import Run, find_model, write_json
from edgecls.runtime.classifier import Classifier


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgecls" / "bundles"


@pytest.fixture
def bundled(exported_run: Path, tmp_path: Path, empty_cache: Path) -> Path:
    return bundle(BundleOptions(str(exported_run), tmp_path / "tiny.edgecls")).file


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_answers_as_its_run_and_holds_nothing_of_the_training(
    bundled: Path, exported_run: Path, photos: Path
) -> None:
    files = sorted(photos.rglob("*.png"))
    for precision in ("fp32", "int8"):
        answers = []
        for model in (exported_run, bundled):
            with Classifier.open(model, device="cpu", precision=precision) as classifier:  # type: ignore[arg-type]
                answers.append([(each.label, each.probability) for each in classifier.predict(files)])
        assert answers[0] == answers[1]
    inside = contents(find_model(bundled))
    assert set(inside) == {
        "manifest.json", "golden.npz", "export.json", "calibration.json", "baseline.json", "report.html", "NOTICE.txt",
        "model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx",
    }  # fmt: skip
    home = str(exported_run.parent).encode()
    assert not [name for name, data in inside.items() if home in data]
    models = sum(len(data) for name, data in inside.items() if name.endswith(".onnx"))
    assert bundled.stat().st_size < models + sum(len(inside[name]) for name in inside if ".onnx" not in name) + 4096


def test_a_bundle_is_not_exported(bundled: Path) -> None:
    with pytest.raises(RunError, match="a bundle has no weights to export; export its run folder"):
        export(ExportOptions(str(bundled)))


def test_verify_hashes_every_file_of_a_bundle(bundled: Path) -> None:
    result = verify(str(bundled))
    assert (result.verdict, result.changed) == ("passed", ())
    assert {check.file for check in result.checks} >= {"model.onnx", "model.int8-cpu.onnx"}
    model = find_model(bundled) / "model.int8-cpu.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert verify(str(bundled)).verdict == "failed"


def test_files_that_were_taken_out_of_the_cache_are_put_back(bundled: Path) -> None:
    before = contents(find_model(bundled))
    (find_model(bundled) / "model.onnx").unlink()
    (find_model(bundled) / "golden.npz").write_bytes(b"cut")
    assert contents(find_model(bundled)) == before


def test_a_bundle_of_a_bundle_is_refused(bundled: Path) -> None:
    with pytest.raises(RunError, match="is a bundle already"):
        bundle(BundleOptions(str(bundled)))


def test_the_same_run_gives_the_same_bytes(exported_run: Path, tmp_path: Path, bundled: Path) -> None:
    copy = Path(shutil.copytree(exported_run, tmp_path / "elsewhere"))
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))
    again = bundle(BundleOptions(str(copy), tmp_path / "again.edgecls")).file
    assert again.read_bytes() == bundled.read_bytes()


def test_a_file_that_missed_the_gate_stays_at_home(exported_run: Path, tmp_path: Path, empty_cache: Path) -> None:
    run = Run(Path(shutil.copytree(exported_run, tmp_path / "run")))
    record = json.loads(run.path("export.json").read_text())
    record["precisions"]["int8"]["paired"]["drop"] = 0.5
    write_json(run.path("export.json"), record)
    result = bundle(BundleOptions(str(run.folder), tmp_path / "b.edgecls"))
    assert result.left_out == ("model.int8.onnx",)
    assert "model.int8.onnx" not in contents(find_model(result.file))
    assert verify(str(result.file)).verdict == "passed"


def test_an_ensemble_votes_from_one_file(
    exported_run: Path, photos: Path, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fold-0", "fold-1"):
        shutil.copytree(exported_run, tmp_path / "folds" / name)
    write_json(tmp_path / "folds" / "ensemble.json", {"members": ["fold-0", "fold-1"]})
    assert CliRunner().invoke(app, ["bundle", "folds"]).exit_code == 0
    arguments = ["predict", str(photos), "--model", "folds.edgecls", "--precision", "fp32", "--out", "rows.csv"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    header, *rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert header.endswith("agreement,entropy,fold-0,fold-1")
    assert len(rows) == 24


def test_what_cannot_be_bundled(exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    (run / "model.int8.onnx").write_bytes((run / "model.onnx").read_bytes())
    with pytest.raises(RunError, match=r"model.int8.onnx does not belong to"):
        bundle(BundleOptions(str(run)))
    (run / "model.int8.onnx").unlink()
    with pytest.raises(RunError, match=r"no model.int8.onnx in it; make it with: edgecls export"):
        bundle(BundleOptions(str(run)))
    with pytest.raises(RunError, match="expected a run folder"):
        bundle(BundleOptions(str(run / "model.onnx")))
    (tmp_path / "b.edgecls").write_bytes(b"")
    with pytest.raises(RunError, match="not a bundle, or damaged"):
        bundle(BundleOptions("b.edgecls"))
    (tmp_path / "b.edgecls").unlink()
    with pytest.raises(OptionError, match=r"expected a file name that ends in .edgecls"):
        BundleOptions(str(run), Path("b.zip"))
    assert not list(tmp_path.glob("*.edgecls"))


def flipped(data: bytes, other: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flipped_at_the_ends(data: bytes, other: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    changed[chance.choice([chance.randrange(2000), -1 - chance.randrange(1500)])] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, other: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def without_a_piece(data: bytes, other: bytes, chance: random.Random) -> bytes:
    at, n = chance.randrange(len(data)), chance.randint(1, 5000)
    return data[:at] + data[at + n :]


def rezipped(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """The archive with other entries, and every checksum of the zip right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def added(data: bytes, other: bytes, chance: random.Random) -> bytes:
    name = chance.choice(["more.bin", "../up.bin", "/etc/up.bin", "engines/one.engine", "a/../../up.bin", "C:\\up"])
    return rezipped(data, lambda entries: entries.update({name: b"x"}))


def renamed(data: bytes, other: bytes, chance: random.Random) -> bytes:
    def change(entries: dict[str, bytes]) -> None:
        one, two = chance.sample(sorted(set(entries) - {"bundle.json"}), 2)
        entries[one], entries[two] = entries[two], entries[one]

    return rezipped(data, change)


def swapped(data: bytes, other: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(other)) as archive:
        name = chance.choice(["model.onnx", "model.int8-cpu.onnx", "golden.npz", "manifest.json", "bundle.json"])
        content = archive.read(name)
    return rezipped(data, lambda entries: entries.update({name: content}))


@pytest.mark.parametrize(
    ("tamper", "n", "may_be_harmless"),
    [
        (flipped, 40, False), (flipped_at_the_ends, 40, True), (cut, 40, False), (without_a_piece, 20, False),
        (added, 20, False), (renamed, 20, False), (swapped, 20, False),
    ],
)  # fmt: skip
def test_200_tampered_bundles_are_refused_or_hold_the_same_files(
    exported_run: Path, bundled: Path, tmp_path: Path, empty_cache: Path,
    tamper: Callable[[bytes, bytes, random.Random], bytes], n: int, may_be_harmless: bool,
) -> None:  # fmt: skip
    files: Mapping[str, Path | bytes] = contents(find_model(bundled))
    other = io.BytesIO()
    write_bundle(other, {**files, **{name: bytes(data)[::-1] for name, data in files.items()}})  # type: ignore[arg-type]
    whole, chance = bundled.read_bytes(), random.Random(tamper.__name__)
    refused: dict[str, str] = {}
    for number in range(n):
        path = tmp_path / f"{number}.edgecls"
        path.write_bytes(tamper(whole, other.getvalue(), chance))
        try:
            folder = find_model(path)
        except RunError as error:
            refused[str(path)] = str(error)
        else:
            assert contents(folder) == files
    assert len(refused) > (0 if may_be_harmless else 0.9 * n)
    for name, reason in refused.items():
        assert reason.startswith(f"{name}: ")
        assert "edgecls bundle RUN" in reason or "upgrade" in reason
    assert not [path for path in empty_cache.iterdir() if path.name.startswith(".")]  # nothing half-open is left
    assert not list(tmp_path.parent.rglob("up.bin"))


def index_of(files: dict[str, bytes]) -> dict[str, Any]:
    stream = io.BytesIO()
    write_bundle(stream, files)
    with zipfile.ZipFile(stream) as archive:
        return json.loads(archive.read("bundle.json"))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index.update(format=2), "format 2, this edgecls reads 1: upgrade"),
        (lambda index: index["files"].update({"../up": index["files"].pop("a")}), "no name for a file"),
        (lambda index: index["files"]["a"].update(bytes=1), "the size of a is another"),
        (lambda index: index["files"]["a"].update(bytes=1 << 40), "the size of a is another"),
        (lambda index: index["files"].pop("a"), "a is in it and not in its list"),
        (lambda index: index["files"].update(b=index["files"]["a"]), "b is in it and not in its list"),
        (lambda index: index.update(files=["a"]), "not the list of its files"),
        (lambda index: index["files"].update(a=None), "not the list of its files"),
    ],
)
def test_a_list_that_lies(
    tmp_path: Path, empty_cache: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    files = {"a": b"content"}
    index = index_of(files)
    change(index)
    path = tmp_path / "b.edgecls"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", json.dumps(index))
        for name in {"a", *index["files"]} - {"b"} if "../up" in index["files"] else {"a"}:
            archive.writestr(name, files["a"])
    with pytest.raises(RunError, match=reason):
        unpacked(path)


def test_links_and_double_names_and_compression_are_refused(tmp_path: Path, empty_cache: Path) -> None:
    index, path = json.dumps(index_of({"a": b"target"})), tmp_path / "b.edgecls"
    link = zipfile.ZipInfo("a")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for entries, compression, reason in (
        ([link], zipfile.ZIP_STORED, "a is a link"),
        (["a", "a"], zipfile.ZIP_STORED, "two of its entries have one name"),
        (["a"], zipfile.ZIP_DEFLATED, "the size of a is another"),
    ):
        expected = pytest.warns(UserWarning, match="Duplicate") if len(entries) > 1 else nullcontext()
        with expected, zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("bundle.json", index, zipfile.ZIP_STORED)
            for entry in entries:
                archive.writestr(entry, b"target")
        with pytest.raises(RunError, match=reason):
            unpacked(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"target")
    with pytest.raises(RunError, match=r"no bundle.json in it"):
        unpacked(path)
    with pytest.raises(RunError, match="cannot be the name of a file in a bundle"):
        write_bundle(io.BytesIO(), {".hidden": b""})


def test_a_cache_that_cannot_be_written_is_said(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    with pytest.raises(RunError, match=f"cannot be unpacked into {cache_folder()}"):
        find_model(bundled)


def test_without_places() -> None:
    values = {"data": "/home/me/photos", "n": 3, "also": ["C:\\me\\photos", "cnn", "a/b"], "none": None}
    assert without_places(values) == {"data": "photos", "n": 3, "also": ["photos", "cnn", "a/b"], "none": None}
