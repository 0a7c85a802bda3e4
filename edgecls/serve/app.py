"""HTTP in front of a batcher: `/predict`, the Open Inference Protocol, health, metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgecls import __version__
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.ensemble import member_names
from edgecls.runtime.output.row import row
from edgecls.runtime.pipeline import Picture
from edgecls.serve import inference_protocol as protocol
from edgecls.serve.batcher import Answer, Batcher, Expired, QueueFull
from edgecls.serve.bodies import TooLarge, TooSlow, pictures_of, read_body
from edgecls.serve.figures import Figures
from edgecls.serve.inference_protocol import BadRequest
from edgecls.serve.options import ServeOptions

_RETRY_SECONDS: Final = "1"
_LARGE: Final = 200_000  # bytes, which take about a millisecond to take apart
_LEFT: Final = 499  # nginx's number for a client that did not wait; it goes to the log alone

_T = TypeVar("_T")
_Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """One opened model behind HTTP.

    Args:
        key: that requests must bring, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; empty asks for none.
        is_ending: whether the server no longer wants new work.
    """

    def __init__(
        self,
        classifier: Classifier,
        options: ServeOptions,
        *,
        key: str = "",
        is_ending: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._classifier, self._options, self._key = classifier, options, key
        self._is_ending, self._log = is_ending, log
        self._members = member_names([str(each.file) for each in classifier.members])
        self.figures = Figures(lambda: self.batcher.n_waiting)
        self.batcher = Batcher(
            classifier,
            capacity=options.limits.queue,
            max_wait_ms=options.max_wait_ms,
            top_k=options.top_k,
            on_batch=self.figures.count_batch,
        )

    def app(self) -> Starlette:
        """The routes. Health asks for no key."""
        model = f"/v2/models/{self._options.name}"
        return Starlette(
            routes=[
                self._route("/v2/health/live", self._live, is_open=True),
                self._route("/v2/health/ready", self._ready, is_open=True),
                self._route(f"{model}/ready", self._ready, is_open=True),
                self._route("/v2", self._server),
                self._route(model, self._model),
                self._route(f"{model}/infer", self._infer, methods=["POST"]),
                self._route("/predict", self._predict, methods=["POST"]),
                self._route("/metrics", self._metrics),
            ],
            exception_handlers={404: _no_such_address, 405: _no_such_address},
        )

    def _route(
        self, path: str, handler: _Handler, *, methods: Sequence[str] = ("GET",), is_open: bool = False
    ) -> Route:
        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            response = await self._answered(request, handler, is_open)
            seconds = time.perf_counter() - started
            self.figures.requests.labels(path, str(response.status_code)).inc()
            if response.status_code == 200:
                self.figures.seconds.labels(path).observe(seconds)
            if not is_open:
                self._log(json.dumps({
                    "time": round(time.time(), 3), "method": request.method, "path": path,
                    "status": response.status_code, "ms": round(1000 * seconds, 2),
                    "client": request.client.host if request.client else None,
                }))  # fmt: skip
            return response

        return Route(path, answer, methods=list(methods))

    async def _answered(self, request: Request, handler: _Handler, is_open: bool) -> Response:
        """What the handler says, or the status for what went wrong; no path and no traceback leave the server."""
        if not is_open and not self._is_allowed(request):
            return _error(401, "this server asks for a key: Authorization: Bearer KEY")
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(400, str(error))
        except TooLarge as error:
            return _error(413, str(error))
        except TooSlow as error:
            return _error(408, str(error))
        except QueueFull:
            return _error(503, "the queue is full; come again", {"Retry-After": _RETRY_SECONDS})
        except Expired:
            return _error(504, f"no answer within {self._options.limits.timeout:g} s")
        except ClientDisconnect:
            return Response(status_code=_LEFT)
        except Exception as error:
            self._log(f"error: {type(error).__name__}: {error}")
            return _error(500, "the model did not answer")

    def _is_allowed(self, request: Request) -> bool:
        if not self._key:
            return True
        given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._key.encode())

    async def _body(self, request: Request) -> bytes:
        limits = self._options.limits
        return await read_body(request, limits.max_body_mb, limits.body_timeout)

    async def _answers(self, request: Request, pictures: Sequence[Picture]) -> list[Answer]:
        """The answers in the order of the pictures; those of a client that leaves are no longer worked for.

        Raises:
            QueueFull, Expired, ClientDisconnect.
        """
        limits = self._options.limits
        waiting = [asyncio.wrap_future(each) for each in self.batcher.submit(pictures, limits.timeout)]
        for each in waiting:
            each.add_done_callback(_heard)
        together = asyncio.ensure_future(_all(waiting))
        left = asyncio.ensure_future(_until_left(request))
        either: set[asyncio.Future[Any]] = {together, left}
        try:
            await asyncio.wait(either, timeout=limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if together.done():
                return list(together.result())
            raise ClientDisconnect if left.done() else Expired
        finally:
            left.cancel()
            together.cancel()
            for each in waiting:
                each.cancel()

    async def _predict(self, request: Request) -> Response:
        kind, body = request.headers.get("content-type", ""), await self._body(request)
        pictures = await _aside(len(body), partial(pictures_of, kind, body, self._options.limits.max_images))
        answers = await self._answers(request, pictures)
        rows = [row(each.prediction, self._members) for each in answers]
        # rows of some pictures that cannot be read are an answer; where none can, the request is at fault
        unreadable = all(each.prediction.status == "error" for each in answers)
        return JSONResponse({"predictions": rows}, 422 if unreadable else 200)

    async def _infer(self, request: Request) -> Response:
        body, header_length = await self._body(request), request.headers.get(protocol.HEADER_LENGTH)
        asked = await _aside(len(body), partial(protocol.parse, body, header_length, self._options.limits.max_images))
        answers = await self._answers(request, asked.pictures)
        for number, each in enumerate(answers):
            if each.prediction.status == "error":
                raise BadRequest(f"picture {number}: {each.prediction.reason}")
        content, json_bytes = protocol.response(self._options.name, asked, answers, self._classifier.labels)
        if json_bytes is None:
            return Response(content, media_type="application/json")
        headers = {protocol.HEADER_LENGTH: str(json_bytes)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        is_ready = not self._is_ending()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def _server(self, request: Request) -> Response:
        extensions = ["binary_tensor_data", "classification"]
        return JSONResponse({"name": "edgecls", "version": __version__, "extensions": extensions})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(protocol.metadata(self._options.name, self._classifier.manifest))

    async def _metrics(self, request: Request) -> Response:
        return Response(self.figures.text(), media_type="text/plain; version=0.0.4")


def _error(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": words}, status, headers=headers)


async def _no_such_address(request: Request, error: Any) -> Response:
    return _error(error.status_code, "there is nothing at this address, or not by this method")


async def _aside(n_bytes: int, parse: Callable[[], _T]) -> _T:
    """What `parse` returns; a large body is taken apart in a thread, so that no other request waits for it."""
    return parse() if n_bytes < _LARGE else await asyncio.to_thread(parse)


async def _all(waiting: Sequence[asyncio.Future[Answer]]) -> list[Answer]:
    return [await each for each in waiting]


def _heard(answer: asyncio.Future[Answer]) -> None:
    """Look at an answer that nobody waits for any more: asyncio would complain of an error that nobody saw."""
    if not answer.cancelled():
        answer.exception()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
