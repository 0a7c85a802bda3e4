"""A data set in an object store as a folder of this machine, for what reads its pictures more than once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgecls.cache import cache_folder
from edgecls.errors import DatasetError, ImageError, RunError
from edgecls.images import MAX_FILE_BYTES, has_image_suffix, walk
from edgecls.prefetch import prefetch
from edgecls.progress import Progress
from edgecls.runs import atomic_path
from edgecls.storage import FETCHED_AHEAD, N_FETCHING, LocalStore, Silence, Store, StoredFile, has_scheme, open_store


@dataclass(frozen=True)
class LocalCopy:
    """Where the files of a data set lie on this machine.

    Attributes:
        reasons: by path of those that could not be fetched, an empty file in the place of each.
        notes: what was fetched, and where it is kept.
    """

    path: Path
    reasons: Mapping[Path, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def local_copy(source: str | Path, progress: Progress = Progress()) -> LocalCopy:
    """Where a data set lies: a path itself, and of an address a copy in the user's cache folder.

    A copy is brought up to date: what is new or changed in the store (by its size and time) is fetched, and what is
    gone there is removed here. Only pictures are fetched; an empty file stands for any other.

    Raises:
        DatasetError: the address cannot be listed, is no folder with pictures, or this machine has no room for them.
        MissingExtra: it is an address, and pyarrow is not installed.
    """
    if not has_scheme(str(source)):
        return LocalCopy(Path(source))
    store = open_store(str(source))
    if isinstance(store, LocalStore):
        return LocalCopy(Path(store.root))
    folder = cache_folder() / "copies" / hashlib.sha256(store.root.encode()).hexdigest()[:16]
    return _Copy(store, folder).update(progress)


class _Copy:
    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._reasons: dict[Path, str] = {}
        self._silence = Silence(store)

    def update(self, progress: Progress) -> LocalCopy:
        progress.on_step(f"listing {self._store.root}")
        files = list(self._store.files())
        if not any(has_image_suffix(each.name) for each in files):
            raise DatasetError(f"{self._store.root}: no images below it; expected a folder with class folders in it")
        lost = [each for each in files if not self._is_here(each)]
        self._expect_room(sum(each.size for each in lost if has_image_suffix(each.name)))
        progress.on_pass("fetching files", len(lost))
        for _ in prefetch(self._fetch, lost, n_threads=N_FETCHING, ahead=FETCHED_AHEAD):
            progress.on_images(1)
        self._remove_others({self._path(each) for each in files if _is_safe(each.name)})
        n = sum(has_image_suffix(each.name) for each in lost)
        return LocalCopy(self._folder, self._reasons, (f"{n:,} images were fetched; a copy is kept in {self._folder}",))

    def _path(self, file: StoredFile) -> Path:
        return self._folder / file.name

    def _is_here(self, file: StoredFile) -> bool:
        if not _is_safe(file.name):
            return False
        try:
            status = os.stat(self._path(file))
        except (OSError, ValueError):
            return False
        size = file.size if has_image_suffix(file.name) else 0
        return (status.st_size, status.st_mtime_ns) == (size, file.modified_ns)

    def _fetch(self, file: StoredFile) -> None:
        path = self._path(file)
        if not _is_safe(file.name):
            self._reasons[path] = (
                "its name cannot be a file's here: an empty part, .. or a folder that is named like a picture"
            )
            return
        data = b""
        if has_image_suffix(file.name):
            try:
                if file.size > MAX_FILE_BYTES:
                    raise ImageError(f"too large: {file.size >> 20:,} MB, at most {MAX_FILE_BYTES >> 20} are read")
                data = self._store.read(file.name)
                self._silence.note(None)
            except ImageError as error:
                self._silence.note(error)
                self._reasons[path] = error.reason
        try:
            with atomic_path(path) as partial:
                partial.write_bytes(data)
                if path not in self._reasons:
                    os.utime(partial, ns=(file.modified_ns, file.modified_ns))
        except (RunError, ValueError) as error:  # a name that is too long, or a folder in its place
            self._reasons[path] = str(error)
            self._expect_room(len(data))

    def _expect_room(self, n_bytes: int) -> None:
        above = self._folder
        while not above.is_dir():
            above = above.parent
        free = shutil.disk_usage(above).free
        if n_bytes >= free:
            raise DatasetError(
                f"{self._store.root}: {n_bytes >> 20:,} MB are to be copied to {self._folder}, where {free >> 20:,} MB "
                "are free; make room, or set XDG_CACHE_HOME to a folder with more"
            )

    def _remove_others(self, known: set[Path]) -> None:
        for listing in reversed(list(walk(self._folder))):  # what lies deepest first
            with suppress(OSError):
                for name in listing.names:
                    if (path := Path(listing.folder, name)) not in known:
                        path.unlink(missing_ok=True)
                if not os.listdir(listing.folder):
                    os.rmdir(listing.folder)


def _is_safe(name: str) -> bool:
    """Whether a name stays below the folder, in folders that are walked: the keys of a store may be any text."""
    *folders, _ = parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name or any(map(has_image_suffix, folders)):
        return False
    return os.sep == "/" or not any(character in name for character in (os.sep, ":"))
