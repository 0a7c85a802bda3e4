"""Inputs in a store: images, and the images in tar files, as WebDataset has them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from edgecls.datasets import ClassNames
from edgecls.errors import ImageError
from edgecls.images import MAX_FILE_BYTES, has_image_suffix
from edgecls.prefetch import prefetch
from edgecls.runtime.pipeline import Encoded, Picture, Source, Unreadable
from edgecls.storage import FETCHED_AHEAD, N_FETCHING, LocalStore, Store, StoredFile


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
    made = partial(StoredInput, file=file.name, modified_ns=file.modified_ns)
    try:
        with store.open(file.name) as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if not member.isfile() or not has_image_suffix(member.name):
                    continue
                name = f"{file.name}/{member.name.removeprefix('./')}"
                reason = "a sparse file in a tar file, which is not read" if member.issparse() else ""
                if member.offset_data + member.size > file.size:
                    reason = "the tar file ends inside it"
                yield made(name, offset=member.offset_data, size=member.size, reason=reason)
    except (OSError, tarfile.TarError) as error:
        said = (str(error).splitlines() or [""])[0]
        yield made(file.name, offset=0, size=file.size, reason=f"the tar file cannot be read on: {said}")


def sources_of(
    store: Store, inputs: Iterable[StoredInput], classes: ClassNames, *, is_checked: bool = False
) -> Iterator[Source]:
    """Sources for the pipeline, in order; files that are not plain ones of this machine are fetched ahead, in threads.

    Args:
        is_checked: whether one that has changed since it was listed is an error.
    """
    above = os.path.basename(store.root.partition("?")[0].rstrip("/"))

    def source(each: StoredInput) -> Source:
        return Source(_picture(store, each, is_checked), each.name, _truth(each.name, above, classes))

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


def _picture(store: Store, each: StoredInput, is_checked: bool) -> Picture:
    if each.reason:
        return Unreadable(each.name, each.reason)
    try:
        if is_checked:
            _expect_unchanged(store, each)
        if isinstance(store, LocalStore) and not each.is_member:
            return store.path(each.name)
        if each.size > MAX_FILE_BYTES:
            raise ImageError(f"too large: {each.size >> 20:,} MB, at most {MAX_FILE_BYTES >> 20} are read")
        return Encoded(each.name, store.read(each.file, each.offset, each.size if each.is_member else None))
    except ImageError as error:
        return Unreadable(each.name, error.reason)


def _expect_unchanged(store: Store, each: StoredInput) -> None:
    now = store.stat(each.file)
    if not each.is_member and now.size != each.size:
        raise ImageError(f"it has changed since the plan was made: {each.size:,} bytes then, {now.size:,} now")
    if now.modified_ns != each.modified_ns:
        raise ImageError("it has changed since the plan was made: it was written anew")
