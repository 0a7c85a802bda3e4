"""Inputs in a store: images, and the images in tar files, as WebDataset has them."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import BinaryIO

from edgecls.datasets import ClassNames
from edgecls.errors import DatasetError, ImageError, first_line
from edgecls.images import MAX_FILE_BYTES, has_image_suffix
from edgecls.prefetch import prefetch
from edgecls.runtime.pipeline import Encoded, Picture, Source, Unreadable
from edgecls.storage import (
    FETCHED_AHEAD,
    N_FETCHING,
    LocalStore,
    Silence,
    Store,
    StoredFile,
    has_scheme,
    open_store,
)


@dataclass(frozen=True)
class StoredInput:
    """One input, as it was when it was listed.

    Attributes:
        name: what its row calls it: relative to the store's root; of a member of a tar file that file's name with the
            member's behind.
        file: the file that it lies in: itself, or a tar file.
        offset: of its first byte in the file.
        size: in bytes.
        modified_ns: of the file, in nanoseconds since 1970.
        reason: why it is known already that it cannot be read; empty where it may be.
    """

    name: str
    file: str
    offset: int
    size: int
    modified_ns: int
    reason: str = ""

    @property
    def is_member(self) -> bool:
        """Whether it is part of a tar file."""
        return self.name != self.file


def is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def inputs_of(store: Store, files: Iterable[StoredFile]) -> Iterator[StoredInput]:
    """The images among files, those in tar files among them; other files are passed over."""
    for file in files:
        if is_tar(file.name) and not file.reason:
            yield from _members(store, file)
        elif file.reason or has_image_suffix(file.name):
            yield StoredInput(file.name, file.name, 0, file.size, file.modified_ns, file.reason)


def _members(store: Store, file: StoredFile) -> Iterator[StoredInput]:
    """The images in a tar file: files first, then those that are links to other members."""
    made = partial(StoredInput, file=file.name, modified_ns=file.modified_ns)
    links: list[_Link] = []
    try:
        with store.open(file.name) as opened:
            for member in _members_of(opened):
                if not has_image_suffix(member.name):
                    continue
                if member.islnk() or member.issym():
                    links.append(_Link.of(member))
                elif member.isfile():
                    reason = "a sparse file in a tar file, which is not read" if member.issparse() else ""
                    if member.offset_data + member.size > file.size:
                        reason = "the tar file ends inside it"
                    yield made(_named(file, member.name), offset=member.offset_data, size=member.size, reason=reason)
            if links:
                for link, found in _followed(opened, links):
                    offset, size = (found.offset_data, found.size) if found else (0, 0)
                    reason = "" if found else f"a link to {_printable(link.target)}, which is no file in the tar file"
                    yield made(_named(file, link.name), offset=offset, size=size, reason=reason)
    except (OSError, tarfile.TarError) as error:
        reason = f"the tar file cannot be read on: {first_line(error)}"
        for name in (file.name, *(_named(file, link.name) for link in links)):
            yield made(name, offset=0, size=file.size, reason=reason)


def _printable(name: str) -> str:
    """A name whose bytes that are no UTF-8 are spelt out."""
    return name.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class _Link:
    """A member that is another name of a member: `name` as it is written, `target` from the archive's root on."""

    name: str
    target: str

    @classmethod
    def of(cls, member: tarfile.TarInfo) -> _Link:
        """A hard link says the whole name, a symbolic one says it from its own folder on."""
        above = "" if member.islnk() else posixpath.dirname(member.name)
        return cls(member.name, posixpath.normpath(posixpath.join(above, member.linkname)))


def _named(file: StoredFile, member: str) -> str:
    return f"{file.name}/{member.removeprefix('./')}"


def _members_of(opened: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """All members, of archives too that were put one behind the other.

    Raises:
        OSError, tarfile.TarError: it cannot be read, or what lies between two members is no header: `tarfile` takes
            that for the end, and the rest would be lost without a word.
    """
    start: int | None = 0
    while start is not None:
        opened.seek(start)
        with tarfile.open(fileobj=opened, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                yield member
            end: int = archive.offset
        start = _behind_zeros(opened, end)
        if start == end:
            raise tarfile.ReadError(f"there is no header at byte {end:,}, where the next member should begin")


def _behind_zeros(opened: BinaryIO, start: int) -> int | None:
    """Where the first block from `start` on begins that is not of zeros, which fill up an archive; None for nowhere."""
    opened.seek(start)
    while block := opened.read(tarfile.BLOCKSIZE):
        if any(block):
            return start
        start += len(block)
    return None


def _followed(opened: BinaryIO, links: Sequence[_Link]) -> Iterator[tuple[_Link, tarfile.TarInfo | None]]:
    """Each link with the file that it leads to, over other links too; None where it leads to none."""
    targets = {posixpath.normpath(link.name): link.target for link in links}
    wanted = set(targets.values())
    found = {  # an archive may hold a name twice, as a file and as a link to that
        name: each for each in _members_of(opened)
        if (name := posixpath.normpath(each.name)) in wanted and each.isfile() and not each.issparse()
    }  # fmt: skip
    for link in links:
        target, passed = link.target, {link.target}
        while target in targets and targets[target] not in passed:
            target = targets[target]
            passed.add(target)
        yield link, found.get(target)


def open_source(address: str) -> tuple[Store, Callable[[], Iterable[StoredFile]]]:
    """A folder with all of its files, or a tar file as the only one of its folder.

    Raises:
        DatasetError: as `open_store`, or no such file.
        MissingExtra: as `open_store`.
    """
    place, mark, query = address.partition("?") if has_scheme(address) else (address, "", "")
    is_bucket = has_scheme(address) and "/" not in place.partition("://")[2].rstrip("/")
    if not is_tar(place) or is_bucket or os.path.isdir(place):
        store = open_store(address)
        return store, store.files
    above, slash, name = place.rpartition("/")
    store = open_store((above or slash or os.curdir) + mark + query)
    try:
        file = store.stat(name)
    except ImageError as error:
        raise DatasetError(
            f"{address}: no such tar file ({error.reason}); expected a folder, or a tar file with images"
        ) from error
    return store, lambda: [file]


def sources_of(
    store: Store, inputs: Iterable[StoredInput], classes: ClassNames, *, is_checked: bool = False
) -> Iterator[Source]:
    """Sources for the pipeline, in order; files that are not plain ones of this machine are fetched ahead, in threads.

    Args:
        is_checked: whether one that has changed since it was listed is an error.
    """
    place = store.root.partition("?")[0] if has_scheme(store.root) else store.root
    above = os.path.basename(place.rstrip("/"))

    silence = Silence(store)

    def source(each: StoredInput) -> Source:
        return Source(_picture(store, each, is_checked, silence), each.name, _truth(each.name, above, classes))

    is_local = isinstance(store, LocalStore)
    for is_plain, some in groupby(inputs, lambda each: is_local and not each.is_member):
        if is_plain:  # the pipeline's workers read plain files of this machine themselves
            yield from map(source, some)
        else:
            yield from prefetch(source, some, n_threads=N_FETCHING, ahead=FETCHED_AHEAD)


def _truth(name: str, above: str, classes: ClassNames) -> str | None:
    """The nearest folder that is named as a label, the store's own root the last."""
    for folder in (*reversed(name.split("/")[:-1]), above):
        if label := classes.named(folder):
            return label
    return None


def _picture(store: Store, each: StoredInput, is_checked: bool, silence: Silence) -> Picture:
    if each.reason:
        return Unreadable(each.name, each.reason)
    try:
        if is_checked:
            _expect_unchanged(store, each)
        if isinstance(store, LocalStore) and not each.is_member:
            return store.path(each.name)
        if each.size > MAX_FILE_BYTES:
            raise ImageError(f"too large: {each.size >> 20:,} MB, at most {MAX_FILE_BYTES >> 20} are read")
        data = store.read(each.file, each.offset, each.size if each.is_member else None)
    except ImageError as error:
        silence.note(error)
        return Unreadable(each.name, error.reason)
    silence.note(None)
    return Encoded(each.name, data)


def _expect_unchanged(store: Store, each: StoredInput) -> None:
    now = store.stat(each.file)
    if not each.is_member and now.size != each.size:
        raise ImageError(f"it has changed since the plan was made: {each.size:,} bytes then, {now.size:,} now")
    if now.modified_ns != each.modified_ns:
        raise ImageError("it has changed since the plan was made: it was written anew")
