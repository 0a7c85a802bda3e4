"""HTTP in front of the models: `/predict`, the Open Inference Protocol, health, metrics, the page."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgecls import __version__
from edgecls.drift import Drift
from edgecls.runtime.output.row import row
from edgecls.runtime.pipeline import Picture
from edgecls.serve import inference_protocol as protocol
from edgecls.serve.batcher import Answer, Expired, QueueFull
from edgecls.serve.bodies import TooLarge, TooSlow, pictures_of, read_body
from edgecls.serve.figures import Figures
from edgecls.serve.inference_protocol import BadRequest
from edgecls.serve.models import LoadedModel, ServedModel
from edgecls.serve.openapi import described
from edgecls.serve.options import ServeOptions

_RETRY_SECONDS: Final = "1"
_LARGE: Final = 200_000  # bytes, which take about a millisecond to take apart
_LEFT: Final = 499  # nginx's number for a client that did not wait; it goes to the log alone
_MOST_LOGGED: Final = 200  # characters of an address
_PAGE: Final = Path(__file__).with_name("page.html")
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; media-src blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

_T = TypeVar("_T")
_Handler = Callable[[Request], Awaitable[Response]]


class NoSuchModel(Exception):
    """A request names a model that is not served."""


class Service:
    """The models of one server behind HTTP; those that ask without a name ask the first one.

    Args:
        key: that requests must bring, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; empty asks for none.
        is_ending: whether the server no longer wants new work.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        options: ServeOptions,
        figures: Figures,
        *,
        key: str = "",
        is_ending: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._models, self._options, self._figures, self._key = models, options, figures, key
        self._is_ending, self._log = is_ending, log
        for name, model in models.items():
            figures.watch(name, partial(_n_waiting, model), partial(_drift, model))

    def app(self) -> Starlette:
        """The routes. Health, the page and the description of all this ask for no key."""
        version = [
            each
            for model in ("/v2/models/{name}", "/v2/models/{name}/versions/1")
            for each in (
                self._route(f"{model}/ready", self._model_ready, is_open=True),
                self._route(model, self._model),
                self._route(f"{model}/infer", self._infer, methods=["POST"]),
            )
        ]
        return Starlette(
            routes=[
                self._route("/", self._page, is_open=True),
                self._route("/openapi.json", self._openapi, is_open=True),
                self._route("/v2/health/live", self._live, is_open=True),
                self._route("/v2/health/ready", self._ready, is_open=True),
                self._route("/v2", self._server),
                *version,
                self._route("/v2/repository/index", self._index, methods=["POST"]),
                self._route("/v2/repository/models/{name}/load", self._load, methods=["POST"]),
                self._route("/predict", self._predict, methods=["POST"]),
                self._route("/predict/{name}", self._predict, methods=["POST"]),
                self._route("/metrics", self._metrics),
            ],
            exception_handlers={404: self._no_such_address, 405: self._no_such_address},
        )

    async def reload(self, name: str) -> bool:
        """Load one model anew, beside the one that serves and then in its place.

        Returns:
            whether the new one serves now; else the old one goes on, and the log says why.
        """
        try:
            await self._models[name].reload()
        except Exception as error:  # whatever an engine makes of a damaged file
            self._figures.loads.labels(name, "failed").inc()
            self._log(f"warning: {name}: not loaded anew, so the one before goes on: {error}")
            return False
        self._figures.loads.labels(name, "loaded").inc()
        self._log(f"loaded anew: {name}")
        return True

    async def reload_all(self) -> None:
        """Every model, one after the other."""
        for name in self._models:
            await self.reload(name)

    def _route(
        self, path: str, handler: _Handler, *, methods: Sequence[str] = ("GET",), is_open: bool = False
    ) -> Route:
        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            response = await self._answered(request, handler, is_open)
            self._count(request, path, response.status_code, time.perf_counter() - started, is_logged=not is_open)
            return response

        return Route(path, answer, methods=list(methods))

    def _count(self, request: Request, path: str, status: int, seconds: float, *, is_logged: bool = True) -> None:
        self._figures.requests.labels(path, str(status)).inc()
        if status == 200:
            self._figures.seconds.labels(path).observe(seconds)
        if is_logged:
            self._log(json.dumps({
                "time": round(time.time(), 3), "method": request.method, "path": request.url.path[:_MOST_LOGGED],
                "status": status, "ms": round(1000 * seconds, 2),
                "client": request.client.host if request.client else None,
            }))  # fmt: skip

    async def _answered(self, request: Request, handler: _Handler, is_open: bool) -> Response:
        """What the handler says, or the status for what went wrong; no path and no traceback leave the server."""
        if not is_open and not self._is_allowed(request):
            return _error(401, "this server asks for a key: Authorization: Bearer KEY")
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(400, str(error))
        except NoSuchModel as error:
            return _error(404, str(error))
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

    def _asked(self, request: Request) -> ServedModel:
        """The model that a request names, else the first one."""
        name = request.path_params.get("name", next(iter(self._models)))
        if name not in self._models:
            raise NoSuchModel(f"there is no model of this name; expected one of: {', '.join(self._models)}")
        return self._models[name]

    async def _answers(self, request: Request, model: LoadedModel, pictures: Sequence[Picture]) -> list[Answer]:
        """The answers in the order of the pictures; those of a client that leaves are no longer worked for.

        Raises:
            QueueFull, Expired, ClientDisconnect.
        """
        limits = self._options.limits
        waiting = [asyncio.wrap_future(each) for each in model.batcher.submit(pictures, limits.timeout)]
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
        asked = self._asked(request)
        kind, body = request.headers.get("content-type", ""), await self._body(request)
        pictures = await _aside(len(body), partial(pictures_of, kind, body, self._options.limits.max_images))
        model = asked.loaded  # after the last wait: from here on it is one and the same
        answers = await self._answers(request, model, pictures)
        rows = [row(each.prediction, model.members) for each in answers]
        # rows of some pictures that cannot be read are an answer; where none can, the request is at fault
        unreadable = all(each.prediction.status == "error" for each in answers)
        return JSONResponse({"predictions": rows}, 422 if unreadable else 200, headers=_timing(answers))

    async def _infer(self, request: Request) -> Response:
        asked = self._asked(request)
        body, header_length = await self._body(request), request.headers.get(protocol.HEADER_LENGTH)
        wanted = await _aside(len(body), partial(protocol.parse, body, header_length, self._options.limits.max_images))
        model = asked.loaded
        answers = await self._answers(request, model, wanted.pictures)
        for number, each in enumerate(answers):
            if each.prediction.status == "error":
                raise BadRequest(f"picture {number}: {each.prediction.reason}")
        content, json_bytes = protocol.response(asked.name, wanted, answers, model.classifier.labels)
        headers = _timing(answers)
        if json_bytes is None:
            return Response(content, media_type="application/json", headers=headers)
        headers[protocol.HEADER_LENGTH] = str(json_bytes)
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def _page(self, request: Request) -> Response:
        return Response(_PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(described(list(self._models), has_key=bool(self._key)))

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        is_ready = not self._is_ending()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        self._asked(request)
        return await self._ready(request)

    async def _server(self, request: Request) -> Response:
        extensions = ["binary_tensor_data", "classification", "model_repository"]
        return JSONResponse({"name": "edgecls", "version": __version__, "extensions": extensions})

    async def _model(self, request: Request) -> Response:
        asked = self._asked(request)
        return JSONResponse(protocol.metadata(asked.name, asked.loaded.classifier.manifest))

    async def _index(self, request: Request) -> Response:
        states = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in self._models]
        return JSONResponse(states)

    async def _load(self, request: Request) -> Response:
        if await self.reload(self._asked(request).name):
            return JSONResponse({})
        return _error(400, "the model was not loaded anew, and the one before goes on; the server's log says why")

    async def _metrics(self, request: Request) -> Response:
        return Response(self._figures.text(), media_type="text/plain; version=0.0.4")

    async def _no_such_address(self, request: Request, error: Any) -> Response:
        self._count(request, "other", error.status_code, 0.0)
        return _error(error.status_code, "there is nothing at this address, or not by this method")


def _error(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": words}, status, headers=headers)


def _timing(answers: Sequence[Answer]) -> dict[str, str]:
    """Where the time of the first picture went, in milliseconds (https://www.w3.org/TR/server-timing)."""
    first = answers[0]
    stages = (("queue", first.waited_ms), *(each for each in first.stages_ms.items() if each[0] != "read"))
    return {"Server-Timing": ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in stages)}


def _n_waiting(model: ServedModel) -> int:
    return model.loaded.batcher.n_waiting


def _drift(model: ServedModel) -> Drift | None:
    return model.loaded.drift()


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
