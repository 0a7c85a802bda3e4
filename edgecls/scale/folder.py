"""The folder of a plan, on this machine or in an object store: a file of it appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from edgecls.errors import ImageError, OptionError, RunError
from edgecls.records import json_object, json_text
from edgecls.storage import ArrowStore, has_scheme, open_store

_SCHEMES: Final = ("s3", "gs")  # whoever looks into HDFS sees files that are still being written
_CURE: Final = "check the address and the credentials"
_OLD_SECONDS: Final = 86_400
_BLOCK: Final = 1 << 22  # bytes that are fetched at once: a part or the inputs of a shard, with few requests


class PlanFolder(Protocol):
    """Where a plan, its parts and its summary lie; there are no folders in it.

    Attributes:
        place: its path or address, as it was named.
    """

    place: str

    def shown(self, name: str) -> str:
        """The path or address of a file in it."""
        ...

    def names(self) -> set[str]:
        """The visible files; none where the folder is not there yet.

        Raises:
            RunError: it cannot be listed.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Raises:
            RunError: the store does not answer.
        """
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to read here and there.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine that takes its place in the folder when the block ends well.

        Where two write one file, one whole file is left.

        Raises:
            RunError: it cannot be written.
        """
        ...

    def holds(self, path: Path) -> bool:
        """Whether a file of this machine is, or would be, in this folder."""
        ...

    def tidy(self) -> None:
        """Remove what writers left behind that were killed more than a day ago."""
        ...


def open_folder(place: str | Path) -> PlanFolder:
    """The folder at a path or an address.

    Raises:
        OptionError: an address of something else than an object store.
        DatasetError: as `open_store`.
        MissingExtra: pyarrow is not installed.
    """
    if isinstance(place, Path) or not has_scheme(place):
        scheme, colon, _ = str(place).partition(":/")
        if colon and len(scheme) > 1 and scheme.isalnum():  # it would be a folder of this name here
            raise OptionError(f"{place}: expected two slashes in an address, as in s3://bucket/plan")
        return LocalFolder(Path(place))
    if place.partition("://")[0].lower() not in _SCHEMES:
        raise OptionError(f"{place}: expected a folder for the plan, or an address that begins with s3:// or gs://")
    store = open_store(place)
    assert isinstance(store, ArrowStore)
    return StoredFolder(store)


def read_json(folder: PlanFolder, name: str, cure: str) -> dict[str, Any]:
    """A JSON object of the folder.

    Raises:
        RunError: not there, or damaged; `cure` says what to do.
    """
    shown = folder.shown(name)
    try:
        with folder.open(name) as file:
            text = file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RunError(f"{shown}: cannot be read: {reason or error}; {cure}") from error
    return json_object(text, shown, RunError, cure)


def write_json(folder: PlanFolder, name: str, values: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    with folder.writing(name) as partial:
        partial.write_text(json_text(values), encoding="utf-8")


class LocalFolder:
    """A folder of this machine, or one that it mounts and shares with others."""

    def __init__(self, path: Path) -> None:
        self.place, self._path = str(path), path

    def shown(self, name: str) -> str:
        return str(self._path / name)

    def names(self) -> set[str]:
        try:
            return {each.name for each in self._path.iterdir() if not each.name.startswith(".")}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise RunError(f"{self.place}: cannot be listed: {error.strerror or error}") from error

    def has(self, name: str) -> bool:
        try:
            return (self._path / name).exists()
        except OSError as error:
            raise RunError(f"{self.shown(name)}: cannot be looked at: {error.strerror or error}") from error

    def open(self, name: str) -> BinaryIO:
        return (self._path / name).open("rb")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        path = self._path / name
        # of no other process on any other machine: they may share the folder, and not the numbers of processes
        partial = path.with_name(f".{name}.{uuid.uuid4().hex}.partial")
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
        except OSError as error:
            raise RunError(
                f"cannot write {path}: {error.strerror or error}; see that there is room and that it may be written, "
                "and run it again"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def holds(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._path.resolve())

    def tidy(self) -> None:
        for each in self._path.glob(".*.partial"):
            with suppress(OSError):
                if time.time() - each.stat().st_mtime > _OLD_SECONDS:
                    each.unlink()


class StoredFolder:
    """A prefix of an object store."""

    def __init__(self, store: ArrowStore) -> None:
        self.place, self._store = store.root, store

    def shown(self, name: str) -> str:
        return f"{self.place.partition('?')[0].rstrip('/')}/{name}"

    def names(self) -> set[str]:
        try:
            return set(self._store.names())
        except OSError as error:
            raise RunError(f"{self.place}: cannot be listed, {error}; {_CURE}") from error

    def has(self, name: str) -> bool:
        try:
            return self._store.has(name)
        except ImageError as error:
            raise RunError(f"{self.shown(name)}: {error.reason}; {_CURE}") from error

    def open(self, name: str) -> BinaryIO:
        return self._store.open(name, block=_BLOCK)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        try:
            with tempfile.TemporaryDirectory(prefix="edgecls-") as folder:
                partial = Path(folder, name)
                yield partial
                try:
                    self._store.write(name, partial)
                except OSError as error:
                    raise RunError(
                        f"cannot write {self.shown(name)}: {error}; check the bucket, the room in it and the "
                        "credentials, and run it again"
                    ) from error
        except OSError as error:
            raise RunError(
                f"cannot write {name} into {tempfile.gettempdir()} on its way to {self.place}: "
                f"{error.strerror or error}; make room there, or name another folder in TMPDIR"
            ) from error

    def holds(self, path: Path) -> bool:
        return False

    def tidy(self) -> None:
        """Nothing: an upload that was not finished is no file, and the store's own rules remove it."""
