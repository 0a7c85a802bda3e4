"""Parquet files with checksums, and what is wrong with one in a sentence."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from edgecls.errors import MissingExtra, RunError, first_line
from edgecls.scale.folder import PlanFolder
from edgecls.storage import StoreReadError


@cache
def arrow() -> Any:
    """pyarrow.

    Raises:
        MissingExtra: it is not installed.
    """
    # It looks for pandas itself, at the first list, in code that swallows a Ctrl-C
    with suppress(ImportError):
        importlib.import_module("pandas")
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingExtra("a plan", "cloud") from error


def parquet() -> Any:
    """pyarrow.parquet.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    arrow()
    return importlib.import_module("pyarrow.parquet")


def writer(path: Path, schema: Any) -> Any:
    """A writer whose pages have checksums: a bit that turns over on a disk is found by whoever reads them."""
    # Arrow takes a relative path with a colon for an address
    return parquet().ParquetWriter(path.absolute(), schema, write_page_checksum=True)


@contextmanager
def reader(folder: PlanFolder, name: str, cure: str, metadata: Any = None) -> Iterator[Any]:
    """A file that is read in the block, its checksums verified.

    Args:
        cure: what to do where it is damaged.
        metadata: of the file, where it was read before.

    Raises:
        RunError: it cannot be opened, or is damaged: Arrow raises whatever its reader stumbles over.
        MissingExtra: pyarrow is not installed.

    Read it with `use_threads=False`: Arrow's threads ask Python for the bytes, and a process that ends meanwhile
    is aborted.
    """
    opened, shown = parquet().ParquetFile, folder.shown(name)
    try:
        with folder.open(name) as source, opened(source, metadata=metadata, page_checksum_verification=True) as file:
            yield file
    except (PermissionError, StoreReadError) as error:
        raise RunError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{shown}: damaged ({first_line(error)}); {cure}") from error
