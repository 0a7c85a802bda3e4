"""Bodies of requests: read within limits of size and time, and taken apart into pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from email.parser import BytesParser
from email.policy import HTTP

from starlette.requests import Request

from edgecls.runtime.pipeline import Encoded, Picture
from edgecls.serve.inference_protocol import BadRequest

_MEGABYTE = 1_000_000


class TooLarge(Exception):
    """The body is larger than is allowed."""


class TooSlow(Exception):
    """The body did not arrive in time."""


async def read_body(request: Request, max_mb: float, seconds: float) -> bytes:
    """The whole body.

    Raises:
        TooLarge, TooSlow: a limit was passed; the rest was not read.
        ClientDisconnect: whoever sent it has left.
    """
    most = int(max_mb * _MEGABYTE)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:18]) > most:
        raise TooLarge(f"a body may have {max_mb:g} MB")
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
            raise TooLarge(f"a body may have {max_mb:g} MB")
        parts.append(part)
    return b"".join(parts)


def pictures_of(content_type: str, body: bytes, max_images: int) -> tuple[Picture, ...]:
    """The pictures of a request to `/predict`: one file, a form with files, or JSON `{"images": [base64, ...]}`.

    Raises:
        BadRequest: none of these, no picture, or too many.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        files = _files_of_form(content_type, body)
    elif kind == "application/json":
        files = _files_of_json(body)
    else:
        files = [body] if body else []
    if not files:
        raise BadRequest('there is no picture: expected a file as the body, a form with files, or {"images": [base64]}')
    if len(files) > max_images:
        raise BadRequest(f"there are {len(files)} pictures: expected {max_images} at most")
    return tuple(Encoded(str(number), file) for number, file in enumerate(files))


def _files_of_json(body: bytes) -> list[bytes]:
    try:
        given = json.loads(body)
        return [base64.b64decode(each, validate=True) for each in given["images"]]
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise BadRequest('expected {"images": [...]} with the pictures in base64') from error


def _files_of_form(content_type: str, body: bytes) -> list[bytes]:
    head = b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n"
    try:
        form = BytesParser(policy=HTTP).parsebytes(head + body)
        parts = list(form.iter_parts()) if form.is_multipart() else []
        files = [part.get_payload(decode=True) for part in parts if part.get_filename() is not None]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise BadRequest("the form cannot be read") from error
    return [file for file in files if isinstance(file, bytes)]
