"""Files with the same bytes under another name: a picture that was trained on proves nothing, whatever it is called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from edgecls import images
from edgecls.errors import ImageError
from edgecls.prefetch import n_cores, prefetch


def n_with_content_of(known: Collection[Path], files: Collection[Path]) -> int:
    """How many files have the bytes of a known one. Only those are read whose size a file of the other side has."""
    sizes, known_sizes = _sizes(files), _sizes(known)
    common = set(sizes.values()) & set(known_sizes.values())
    digests = set(_digests(path for path, size in known_sizes.items() if size in common))
    return sum(digest in digests for digest in _digests(path for path, size in sizes.items() if size in common))


def _sizes(files: Iterable[Path]) -> dict[Path, int]:
    """In bytes; without those that are gone."""
    found = {}
    for file in files:
        try:
            found[file] = os.stat(file).st_size
        except OSError:
            continue
    return found


def _digests(files: Iterable[Path]) -> Iterable[bytes]:
    def digest(file: Path) -> bytes:
        try:
            return hashlib.sha256(images.read(file)).digest()
        except ImageError:
            return os.fsencode(file)  # the content of no other

    return prefetch(digest, files, n_threads=n_cores(), ahead=64)
