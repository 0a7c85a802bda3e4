"""Bodies of requests: read within limits of size and time, and taken apart into pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP

from starlette.requests import Request

from edgecls.runtime.pipeline import Encoded, Picture
from edgecls.serve.inference_protocol import BadRequest

_MEGABYTE = 1_000_000
_MOST_HEAD = 2_048  # bytes of the head of a part of a form, which takes Python 10 ms to read
_MOST_TEXTS = 64  # parts of a form that are no files


class TooLarge(Exception):
    """The body is larger than is allowed."""


class TooSlow(Exception):
    """The body did not arrive in time."""


class WrongEncoding(Exception):
    """The body is compressed."""


async def read_body(request: Request, max_mb: float, seconds: float) -> bytes:
    """The whole body.

    Raises:
        TooLarge, TooSlow: a limit was passed; the rest was not kept.
        WrongEncoding: it is compressed.
        ClientDisconnect: whoever sent it has left.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise WrongEncoding("the body is compressed; send it as it is, without Content-Encoding")
    most = int(max_mb * _MEGABYTE)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:18]) > most:
        raise TooLarge(f"the body is larger than {max_mb:g} MB, the most that this server takes")
    reading = asyncio.current_task()
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        if reading:
            reading.cancel()

    # asyncio.wait_for makes a task of its own for each body, and asyncio.timeout is not in Python 3.10
    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await _read(request, most, max_mb)
    except asyncio.CancelledError as error:
        if not is_late:
            raise
        raise TooSlow(f"the body did not arrive within {seconds:g} s") from error
    finally:
        timer.cancel()


async def _read(request: Request, most: int, max_mb: float) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge(f"the body is larger than {max_mb:g} MB, the most that this server takes")
        parts.append(part)
    return b"".join(parts)


def pictures_of(content_type: str, body: bytes, max_images: int) -> tuple[Picture, ...]:
    """The pictures of a request to `/predict`: one file, a form with files, or JSON `{"images": [base64, ...]}`.

    Raises:
        BadRequest: none of these, no picture, or too many.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files = _files_of_form(content_type, body, max_images)
    elif kind == "application/json":
        files = _files_of_json(body, max_images)
    else:
        files = [body] if body else []
    if not files:
        raise BadRequest('there is no picture: expected a file as the body, a form with files, or {"images": [base64]}')
    _expect_few(len(files), max_images)
    return tuple(Encoded(str(number), file) for number, file in enumerate(files))


def _expect_few(n: int, most: int) -> None:
    if n > most:
        raise BadRequest(f"there are {n} pictures: expected {most} at most")


def _files_of_json(body: bytes, max_images: int) -> list[bytes]:
    try:
        given = json.loads(body)
        _expect_few(len(given["images"]), max_images)
        return [_from_base64(each) for each in given["images"]]
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, RecursionError) as error:
        raise BadRequest('expected {"images": [...]} with the pictures in base64') from error


def _from_base64(text: str) -> bytes:
    """Base64 with or without line breaks, or a `data:` address with it, as browsers have it."""
    head, comma, data = text.partition(",")
    coded = data if comma and head.startswith("data:") and head.endswith(";base64") else text
    return base64.b64decode("".join(coded.split()), validate=True)


def _files_of_form(content_type: str, body: bytes, max_images: int) -> list[bytes]:
    """The parts of a form that are files (RFC 7578), by their boundary: a parser of mail goes through all lines, which
    takes seconds where a body is millions of them."""
    kind = Message()
    kind["Content-Type"] = content_type
    boundary = kind.get_boundary()
    if not boundary:
        raise BadRequest("the form has no boundary")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    if body.count(delimiter) > max_images + _MOST_TEXTS:
        raise BadRequest(f"the form has too many parts: expected {max_images} pictures at most")
    files: list[bytes] = []
    for part in (b"\r\n" + body).split(delimiter)[1:]:
        if part.startswith(b"--"):
            return files
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank or len(head) > _MOST_HEAD:
            raise BadRequest("the form cannot be read: a part has no head, or too large a one")
        if _is_file(head):
            files.append(content)
    raise BadRequest("the form is cut off: its last boundary is missing")


def _is_file(head: bytes) -> bool:
    """Whether the head of a part names a file."""
    try:
        said = BytesParser(policy=HTTP).parsebytes(head.lstrip(b" \t\r\n") + b"\r\n\r\n", headersonly=True)
        return said.get_filename() is not None
    except (ValueError, IndexError, RecursionError) as error:  # the parser of mail stumbles over some
        raise BadRequest("the form cannot be read: the head of a part is damaged") from error
