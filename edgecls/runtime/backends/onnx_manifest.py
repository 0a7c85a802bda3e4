"""What a model file of edgecls says about itself, for a device: it has neither the onnx package nor need of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgecls.errors import RunError
from edgecls.manifest import METADATA_KEY, Manifest


def manifest_of_onnx(model: bytes, source: str) -> Manifest:
    """The manifest inside an ONNX file, read without the onnx package, which a device does not have.

    Of the file's protobuf only the outermost level is looked at, where the metadata is; that takes no time.

    Args:
        model: the file's bytes.
        source: where they came from, for messages.

    Raises:
        RunError: not ONNX, no manifest in it, or a damaged one.
    """
    metadata_props, key, value = 14, 1, 2  # field numbers in onnx.proto
    try:
        entries = [dict(fields_of(entry)) for number, entry in fields_of(memoryview(model)) if number == metadata_props]
    except (ValueError, IndexError) as error:
        raise RunError(f"{source}: not an ONNX file, or a damaged one; expected one of edgecls export") from error
    for entry in entries:
        if bytes(entry.get(key, b"")) == METADATA_KEY.encode():
            return Manifest.from_json(bytes(entry.get(value, b"")).decode(errors="replace"), source)
    raise RunError(
        f"{source}: no edgecls manifest in this file, so its labels and preprocessing are unknown; "
        "expected an ONNX file that edgecls export wrote"
    )


def manifest_of_file(file: Path) -> Manifest:
    """The same of a file."""
    return manifest_of_onnx(read_onnx(file), str(file))


def read_onnx(file: Path) -> bytes:
    """The bytes of a model file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror}); expected an ONNX file of edgecls export") from error


def fields_of(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The texts, bytes and messages in a protobuf message by field number; numbers in it are passed over."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = varint(message, at)
        elif kind == 2:
            size, at = varint(message, at)
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"protobuf has no wire type {kind}")
    if at > len(message):
        raise ValueError("the message ends early")


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, 7 bits a byte with the lowest first, and where the next thing starts."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
