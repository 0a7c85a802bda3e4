"""A bundle, `NAME.edgecls`: what a device needs of a run, in one file that is refused if anything in it has changed.

It is a zip file whose entries are stored as they are. The first one, `bundle.json`, lists the others with their size
and their sha256:

    {"format": 1, "edgecls": "0.1.0", "files": {"manifest.json": {"bytes": 36172, "sha256": "..."}, ...}}

The same files give the same bytes, whenever and wherever they are put into one. A hash protects against damage and
against files of two runs that were mixed, not against somebody who writes a new list too: that takes a signature.

To be used it is unpacked once into the user's cache, in a folder named by the hash of the whole file, which is then a
run folder like any other; engines that are built from it stay there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from edgecls import __version__
from edgecls.cache import cache_folder
from edgecls.errors import RunError
from edgecls.records import json_object, json_text

SUFFIX: Final = ".edgecls"
FORMAT: Final = 1

_INDEX: Final = "bundle.json"
_MOST_INDEX_BYTES: Final = 16 << 20
_NAME: Final = re.compile(r"(?:[\w-][\w. -]*/)*[\w-][\w. -]*")  # relative, no hidden files, no way up
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
_PIECE: Final = 1 << 20
_CURE: Final = "copy it again, or make it again with: edgecls bundle RUN"


def write_bundle(stream: BinaryIO, files: Mapping[str, Path | bytes]) -> None:
    """Write a bundle.

    Args:
        stream: a new binary file.
        files: by name in the bundle, such as `manifest.json` or `fold-0/manifest.json`: the file, or its bytes.

    Raises:
        RunError: a name that could not be read back.
    """
    unusable = [name for name in files if not _NAME.fullmatch(name) or name == _INDEX]
    if unusable:
        raise RunError(f"{unusable[0]!r} cannot be the name of a file in a bundle; rename it")
    names = sorted(files)
    measured = {name: _measured(files[name]) for name in names}
    listed = {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in measured.items()}
    index = json_text({"format": FORMAT, "edgecls": __version__, "files": listed})
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(_INDEX), index)
        for name in names:
            content = files[name]
            if isinstance(content, bytes):
                archive.writestr(_entry(name), content)
                continue
            entry = _entry(name)
            entry.file_size = measured[name][0]
            with content.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _PIECE)


def is_bundle(path: Path) -> bool:
    return path.suffix == SUFFIX and path.is_file()


def unpacked(path: Path) -> Path:
    """The folder in the user's cache that holds a bundle's files; unpacked now if it is not there.

    Raises:
        RunError: it is no bundle, was changed, is cut off, was made by a newer edgecls, or cannot be unpacked.
    """
    try:
        with path.open("rb") as stream:
            key: str = _digest(stream).hexdigest()[:32]
        folder = cache_folder() / "bundles" / key
        if folder.is_dir():
            if _is_whole(path, folder):
                return folder
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
            _unpack(path, Path(temporary) / "run")
            try:
                os.rename(Path(temporary) / "run", folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    except OSError as error:
        raise RunError(f"{path}: cannot be unpacked into {cache_folder()}: {error.strerror or error}") from error
    return folder


def _is_whole(path: Path, folder: Path) -> bool:
    """Whether nobody has taken files out of the cache, or cut them; what is in them is for `verify` to tell."""
    with zipfile.ZipFile(path) as archive:
        files = [(folder / info.filename, info.file_size) for info in archive.infolist() if info.filename != _INDEX]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            if len(entries) != len(archive.infolist()):
                raise _changed(path, "two of its entries have one name")
            listed = _listed(path, archive, entries)
            for name, (size, sha256) in listed.items():
                _check_entry(path, entries[name], size)
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with archive.open(entries[name]) as source, target.open("wb") as written:
                    while piece := source.read(_PIECE):
                        digest.update(piece)
                        written.write(piece)
                if digest.hexdigest() != sha256:
                    raise _changed(path, f"{name} is not the file that it lists (another sha256)")
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError) as error:
        raise RunError(f"{path}: not a bundle, or damaged or cut off ({error}); {_CURE}") from error
    except OSError as error:
        if (
            error.errno != errno.EINVAL
        ):  # zipfile seeks to where a damaged archive points, which may be before its start
            raise
        raise RunError(f"{path}: not a bundle, or damaged or cut off; {_CURE}") from error


def _listed(path: Path, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> dict[str, tuple[int, str]]:
    """Size and sha256 by name, as the index says, and that there is nothing else."""
    if _INDEX not in entries or not 0 < entries[_INDEX].file_size <= _MOST_INDEX_BYTES:
        raise RunError(f"{path}: not a bundle: no {_INDEX} in it; make one with: edgecls bundle RUN")
    _check_entry(path, entries[_INDEX], entries[_INDEX].file_size)
    text = archive.read(_INDEX).decode("utf-8")
    index = json_object(text, f"{path}: {_INDEX}", RunError, _CURE)
    made_by = index.get("format")
    if isinstance(made_by, int) and made_by > FORMAT:
        raise RunError(f"{path}: a bundle of format {made_by}, this edgecls reads {FORMAT}: upgrade edgecls")
    files: Any = index.get("files")
    try:
        listed = {str(name): (int(each["bytes"]), str(each["sha256"])) for name, each in files.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _changed(path, f"{_INDEX} is not the list of its files") from error
    wrong = sorted(name for name in {*listed, *entries} if not _NAME.fullmatch(name))
    if wrong:
        raise _changed(path, f"{wrong[0]!a} is no name for a file in it: expected a relative path inside the bundle")
    differing = sorted({*listed, _INDEX} ^ set(entries))
    if differing:
        raise _changed(path, f"{differing[0]} is in it and not in its list, or the other way round")
    return listed


def _check_entry(path: Path, entry: zipfile.ZipInfo, size: int) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or entry.is_dir():
        raise _changed(path, f"{entry.filename} is a link, a folder or a device, not a file")
    if entry.compress_type != zipfile.ZIP_STORED or not entry.file_size == entry.compress_size == size:
        raise _changed(path, f"the size of {entry.filename} is another than its list says")


def _changed(path: Path, why: str) -> RunError:
    return RunError(f"{path}: this bundle was changed: {why}; {_CURE}")


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # Unix, wherever it is written
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


def _measured(content: Path | bytes) -> tuple[int, str]:
    if isinstance(content, bytes):
        return len(content), hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:
        return content.stat().st_size, _digest(stream).hexdigest()


def _digest(stream: BinaryIO) -> hashlib._Hash:
    digest = hashlib.sha256()
    while piece := stream.read(_PIECE):
        digest.update(piece)
    return digest
