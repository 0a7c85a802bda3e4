"""Files where they lie: on this machine, or in an object store by its address (`s3://`, `gs://`, `hdfs://`, `file://`).

Object stores are pyarrow's (extra `cloud`), which brings credentials, regions and proxies: they are said in its ways,
for S3 in the variables of AWS or behind the address, as in `s3://bucket/photos?endpoint_override=localhost:9000&scheme=http`.
"""

from __future__ import annotations

import importlib
import io
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeVar, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

from edgecls.errors import DatasetError, ImageError, MissingExtra, first_line, some
from edgecls.images import natural_key, walk

_T = TypeVar("_T")

SCHEMES: Final = ("s3", "gs", "hdfs", "file")
N_FETCHING: Final = 16  # threads: an object store takes 20 to 100 ms for each file, whatever its size
_MOST_SILENT: Final = 2 * N_FETCHING  # files in a row that nobody answers for
_ROWS: Final = 65_536  # of a listing that are Python objects at a time
_BUFFER: Final = 1 << 16  # bytes of a tar file that are read at once, for many small members in one request
FETCHED_AHEAD: Final = 64  # files in memory before somebody takes them
_OF_CAMERAS: Final = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp")
_TRIES: Final = 5
_CONNECT_SECONDS: Final = 5
_SILENT_SECONDS: Final = 10  # without a byte
_OF_S3: Final = frozenset({"region", "scheme", "endpoint_override"})  # said behind an address
_OF_REGIONS: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
_OF_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_FIRST_WAIT: Final = 0.1  # seconds before the second try; twice as long before each further one, give or take a half
_GOOGLES_SECONDS: Final = 1  # in which its client tries again by itself, in each of our tries
_CURE: Final = "check the address, and the credentials and region, which are taken from the environment"
_CURE_HDFS: Final = "HDFS needs Java and Hadoop: set JAVA_HOME, HADOOP_HOME and CLASSPATH, and check the address"
_OF_NOBODY: Final = ("NETWORK_CONNECTION", "curlCode")  # in what the client of S3 says where no answer came
_OF_REQUESTS: Final = re.compile(r" ?\(Request ID: [^)]*\)")
_GONE: Final = "it is no longer there"


@dataclass(frozen=True)
class StoredFile:
    """One file of a store.

    Attributes:
        name: relative to the store's root, with `/` between its parts.
        size: in bytes.
        modified_ns: when it was written, in nanoseconds since 1970.
        reason: why it cannot be read; empty where it can, as far as is known.
    """

    name: str
    size: int
    modified_ns: int
    reason: str = ""


class Store(Protocol):
    """A folder and all below it.

    Attributes:
        root: its address or path.
    """

    root: str

    def files(self) -> Iterator[StoredFile]:
        """All visible files, in an order that is the same every time.

        Raises:
            DatasetError: it cannot be listed.
        """
        ...

    def stat(self, name: str) -> StoredFile:
        """Size and time of one file as it is now.

        Raises:
            ImageError: it is gone, or cannot be looked at.
        """
        ...

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """The bytes of one file, or some of them.

        Raises:
            ImageError: it is gone, or cannot be read.
        """
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to read here and there.

        Raises:
            OSError: it is gone, or cannot be read.
        """
        ...

    def is_there(self) -> bool:
        """Whether the root itself is there; also where nobody can say."""
        ...


def has_scheme(address: str) -> bool:
    """Whether a name is the address of a store and not a path: Windows' drives have one letter, cameras others."""
    scheme, slashes, _ = address.partition("://")
    return bool(slashes) and len(scheme) > 1 and scheme.lower() not in _OF_CAMERAS


def open_store(address: str) -> Store:
    """The store at a folder or an address.

    Raises:
        DatasetError: no such folder, an unknown scheme, or an address that is wrong.
        MissingExtra: pyarrow is not installed, and this is no folder.
    """
    if not has_scheme(address):
        if not os.path.isdir(address):
            raise DatasetError(f"{address}: no such folder")
        return LocalStore(address)
    scheme = address.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise DatasetError(f"{address}: unknown scheme {scheme}; expected one of {', '.join(SCHEMES)}, or a folder")
    try:
        parts = urlsplit(address, allow_fragments=False)  # a # is part of a name
        if scheme == "file":
            return open_store(url2pathname(parts.path))
        _expect_no_secret(parts)
        fs: Any = importlib.import_module("pyarrow.fs")
        filesystem, root = _s3(fs, parts) if scheme == "s3" else fs.FileSystem.from_uri(_patient(parts))
    except ImportError as error:
        raise MissingExtra(address, "cloud") from error
    except (OSError, ValueError, TypeError) as error:
        cure = _CURE_HDFS if scheme == "hdfs" else _CURE
        place = address.partition("?")[0]  # what is behind it may be a secret
        raise DatasetError(f"{place}: cannot be opened: {_reason(error)}; {cure}") from error
    return ArrowStore(address, filesystem, root)


def _s3(fs: Any, parts: SplitResult) -> tuple[Any, str]:
    """The file system and path of an address in S3. (`from_uri` has no limits of time, and waits for minutes.)

    Raises:
        OSError, ValueError: the address is wrong, or nobody says the bucket's region.
    """
    given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    if unknown := sorted(set(given) - _OF_S3):
        raise ValueError(f"unknown in the address: {some(unknown)}; expected {some(sorted(_OF_S3))}")
    if not parts.netloc or ":" in parts.netloc:
        raise ValueError("no bucket in the address; expected s3://BUCKET/FOLDER")
    if "//" in parts.path.strip("/"):
        raise ValueError("the address has an empty part")
    endpoint = next(filter(None, map(os.environ.get, _OF_ENDPOINTS)), "")
    if endpoint and "endpoint_override" not in given:  # Arrow reads the variable in `from_uri` alone
        scheme, slashes, host = endpoint.rpartition("://")
        given["endpoint_override"] = host.rstrip("/")
        given.setdefault("scheme", scheme if slashes else "https")
    if not given.keys() & {"region", "endpoint_override"}:
        given["region"] = next(filter(None, map(os.environ.get, _OF_REGIONS)), "") or fs.resolve_s3_region(parts.netloc)
    filesystem = fs.S3FileSystem(
        **given, connect_timeout=_CONNECT_SECONDS, request_timeout=_SILENT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),  # `_again` tries again
    )  # fmt: skip
    return filesystem, f"{parts.netloc}/{unquote(parts.path).strip('/')}"


def _expect_no_secret(parts: SplitResult) -> None:
    """Refuse an address with a key in it, which would be in every plan, table and log.

    Amazon's secrets may have a `/` in them, where the address is then cut in two.

    Raises:
        DatasetError: it has one; it is not shown.
    """
    given = parse_qsl(parts.query, keep_blank_values=True)
    is_named = any(word in name.lower() for name, _ in given for word in ("key", "secret", "token", "password"))
    _, colon, behind = parts.netloc.partition(":")
    is_cut = bool(colon) and not behind.isdigit() and "@" in parts.path
    if is_named or is_cut or parts.password is not None or "@" in dict(given).get("endpoint_override", ""):
        raise DatasetError(f"{parts.scheme}://: has a secret in its address; give it in the environment")


def _patient(parts: SplitResult) -> str:
    """An address with a limit to the seconds in which Google's client tries again, which is a quarter of an hour."""
    query = parts.query
    if parts.scheme == "gs" and "retry_limit_seconds" not in query:
        query = "&".join(filter(None, (query, f"retry_limit_seconds={_GOOGLES_SECONDS}")))
    return urlunsplit(parts._replace(query=query)).replace("#", "%23")


class LocalStore:
    """A folder of this machine, or one that it mounts."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def files(self) -> Iterator[StoredFile]:
        for listing in walk(Path(self.root)):
            below = os.path.relpath(listing.folder, self.root)
            prefix = "" if below == os.curdir else f"{below.replace(os.sep, '/')}/"
            if listing.reason:
                if not prefix:
                    raise DatasetError(f"{self.root}: {listing.reason}")
                yield StoredFile(prefix.rstrip("/"), 0, 0, listing.reason)
            for name in listing.names:
                try:
                    status = os.stat(os.path.join(listing.folder, name))
                    yield StoredFile(prefix + name, status.st_size, status.st_mtime_ns)
                except OSError as error:  # a link to nothing is an input too, and its row says so
                    yield StoredFile(prefix + name, 0, 0, f"cannot be read: {error.strerror or error}")

    def is_there(self) -> bool:
        return os.path.isdir(self.root)

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def stat(self, name: str) -> StoredFile:
        try:
            status = os.stat(self.path(name))
        except FileNotFoundError as error:
            raise ImageError(_GONE) from error
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from error
        return StoredFile(name, status.st_size, status.st_mtime_ns)

    def open(self, name: str) -> BinaryIO:
        path = self.path(name)
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise OSError("it is no regular file")
        return open(path, "rb")

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        try:
            with self.open(name) as file:
                file.seek(offset)
                return file.read(-1 if size is None else size)
        except FileNotFoundError as error:
            raise ImageError(_GONE) from error
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror or error}") from error


class ArrowStore:
    """A prefix of an object store; what fails is tried again for a few seconds, since stores are busy now and then."""

    def __init__(self, address: str, filesystem: Any, root: str) -> None:
        self.root = address
        self._filesystem, self._below = filesystem, root.rstrip("/")

    def files(self) -> Iterator[StoredFile]:
        fs: Any = importlib.import_module("pyarrow.fs")
        waiting = [self._below]
        while waiting:  # a folder at a time: the whole of a bucket may be more than memory holds
            folder = waiting.pop()
            try:
                found = _again(lambda: self._filesystem.get_file_info(fs.FileSelector(folder)))  # noqa: B023
            except (OSError, ValueError) as error:
                raise DatasetError(f"{self.root}: cannot be listed: {_reason(error)}; {_CURE}") from error
            folders = []
            for path, is_folder, size, modified_ns in _rows(_in_order(found)):
                if is_folder:
                    folders.append(path)
                else:
                    yield StoredFile(path[len(self._below) + 1 :], size, modified_ns)
            # keys with an empty part, of which Arrow says that they are this folder once more, or `bucket/` in `bucket`
            if itself := next((each for each in folders if each.rstrip("/") == folder), ""):
                folders.remove(itself)
                yield StoredFile(f"{folder[len(self._below) + 1 :]}//", 0, 0, "keys with an empty part cannot be read")
            waiting += reversed(folders)

    def stat(self, name: str) -> StoredFile:
        fs: Any = importlib.import_module("pyarrow.fs")
        (found,) = _readable(lambda: self._filesystem.get_file_info([f"{self._below}/{name}"]))
        if found.type != fs.FileType.File:
            raise ImageError(_GONE)
        return self._stored(found)

    def open(self, name: str, block: int = _BUFFER) -> BinaryIO:
        """As of every store; `block` bytes are fetched at once.

        Raises:
            StoreReadError: it cannot be read, also of every read of the file.
            FileNotFoundError: it is not there.
        """
        file = _asked(lambda: self._filesystem.open_input_file(f"{self._below}/{name}"))
        return cast(BinaryIO, io.BufferedReader(_Patient(file), block))

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        def read() -> bytes:
            with self._filesystem.open_input_file(f"{self._below}/{name}") as file:
                expected = file.size() - offset if size is None else size
                data = bytes(file.read_at(expected, offset))
            if len(data) < expected:
                raise OSError(f"{len(data):,} of {expected:,} bytes arrived")
            return data

        return _readable(read)

    def names(self) -> list[str]:
        """What lies directly below the root; nothing where that is not there yet.

        Raises:
            StoreReadError: it cannot be listed.
        """
        fs: Any = importlib.import_module("pyarrow.fs")
        bucket = self._below.partition("/")[0]
        if not self._may_be(bucket):
            raise StoreReadError(f"there is no bucket called {bucket}")
        selector = fs.FileSelector(self._below, allow_not_found=True)
        return [each.base_name for each in _asked(lambda: self._filesystem.get_file_info(selector))]

    def is_there(self) -> bool:
        return self._may_be(self._below)

    def _may_be(self, place: str) -> bool:
        """Whether something is there; also where that must not be asked: keys may be for a folder alone."""
        fs: Any = importlib.import_module("pyarrow.fs")
        try:
            (found,) = _again(lambda: self._filesystem.get_file_info([place]))
        except (OSError, ValueError):
            return True
        return bool(found.type != fs.FileType.NotFound)

    def has(self, name: str) -> bool:
        """Whether a file is there.

        Raises:
            ImageError: it cannot be looked at.
        """
        try:
            return bool(self.stat(name))
        except ImageError as error:
            if error.reason == _GONE:
                return False
            raise

    def write(self, name: str, file: Path) -> None:
        """Put a file of this machine there: it appears whole, and what was there before stays until then.

        Raises:
            OSError: it cannot be written.
        """
        fs: Any = importlib.import_module("pyarrow.fs")
        place, size = f"{self._below}/{name}", file.stat().st_size

        def put() -> None:
            fs.copy_files(str(file), place, fs.LocalFileSystem(), self._filesystem)
            (found,) = self._filesystem.get_file_info([place])
            if found.size != size:
                raise OSError(f"{found.size} of {size:,} bytes arrived")

        try:
            _again(put)
        except (OSError, ValueError) as error:
            raise OSError(f"in {_TRIES} tries: {_reason(error)}") from error

    def _stored(self, found: Any) -> StoredFile:
        return StoredFile(found.path[len(self._below) + 1 :], found.size, found.mtime_ns or 0)


def _in_order(found: list[Any]) -> Any:
    """What is visible of a listing, by name, as an Arrow table with the columns path, is_folder, size and modified_ns.

    Python's objects for a million of files are 250 MB, and keys to sort them by as much again; columns are 100. So
    `found` is empty afterwards.
    """
    pyarrow: Any = importlib.import_module("pyarrow")
    tables = [_columns(())]
    while found:
        tables.append(_columns(found[-_ROWS:]))
        del found[-_ROWS:]
    whole = pyarrow.concat_tables(tables)
    return whole.sort_by([("key", "ascending"), ("path", "ascending")]).drop_columns("key")


def _columns(found: Sequence[Any]) -> Any:
    pyarrow: Any = importlib.import_module("pyarrow")
    fs: Any = importlib.import_module("pyarrow.fs")
    kinds = (fs.FileType.File, fs.FileType.Directory)
    seen = [each for each in found if not each.base_name.startswith(".") and each.type in kinds]
    text, integer = pyarrow.large_string(), pyarrow.int64()
    return pyarrow.table({
        "key": pyarrow.array([natural_key(each.base_name)[0] for each in seen], text),
        "path": pyarrow.array([each.path for each in seen], text),
        "is_folder": pyarrow.array([each.type == fs.FileType.Directory for each in seen], pyarrow.bool_()),
        "size": pyarrow.array([each.size for each in seen], integer),
        "modified_ns": pyarrow.array([each.mtime_ns or 0 for each in seen], integer),
    })  # fmt: skip


def _rows(table: Any) -> Iterator[tuple[Any, ...]]:
    for batch in table.to_batches(max_chunksize=_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class StoreReadError(OSError):
    """A store did not give what was asked of it, which says nothing of the file's bytes."""


class StoreSilentError(ImageError):
    """A file that could not be asked for: nobody answers, which says nothing of the file."""


class _Patient(io.RawIOBase):
    """A file of a store whose every read is tried again where it fails."""

    def __init__(self, file: Any) -> None:
        self._file, self._at, self._size = file, 0, int(file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        data = bytes(_asked(lambda: self._file.read_at(wanted, self._at))) if wanted else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Silence:
    """How many files in a row could not be asked for: a store that is gone is no property of its files."""

    def __init__(self, store: Store) -> None:
        self._store, self._n, self._lock = store, 0, threading.Lock()

    def note(self, error: ImageError | None) -> None:
        """Count a file.

        Raises:
            DatasetError: so many in a row that nobody is there.
        """
        with self._lock:
            self._n = self._n + 1 if isinstance(error, StoreSilentError) else 0
            if error is not None and self._n >= _MOST_SILENT:
                raise DatasetError(
                    f"{self._store.root}: nobody answers, the last {self._n} files {error.reason}; run the same again "
                    "when somebody does"
                )


def _readable(call: Callable[[], _T]) -> _T:
    try:
        return _again(call)
    except FileNotFoundError as error:
        raise ImageError(_GONE) from error
    except (OSError, ValueError) as error:
        is_silent = any(word in str(error) for word in _OF_NOBODY)
        kind = StoreSilentError if is_silent else ImageError
        raise kind(f"cannot be read, in {_TRIES} tries: {_reason(error)}") from error


def _asked(call: Callable[[], _T]) -> _T:
    try:
        return _again(call)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise StoreReadError(f"in {_TRIES} tries: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong, in one line: Google's client says all of it twice, and Amazon's adds a number."""
    return _OF_REQUESTS.sub("", first_line(error).partition(" error_info=")[0])


def _again(call: Callable[[], _T]) -> _T:
    """What a call returns, which may fail a few times."""
    for attempt in range(_TRIES):
        try:
            return _interruptible(call)
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("it has returned or raised")


def _interruptible(call: Callable[[], _T]) -> _T:
    """What a call returns. The main thread waits in Python, where Ctrl-C ends it; in Arrow's code it would not."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()
