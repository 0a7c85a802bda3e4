"""HTTP in front of the models: `/predict`, the Open Inference Protocol, health, metrics, the page."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from edgecls import __version__
from edgecls.drift import Drift
from edgecls.errors import RunError
from edgecls.runtime.output.row import row
from edgecls.runtime.pipeline import Picture
from edgecls.serve import inference_protocol as protocol
from edgecls.serve.batcher import Answer, Asked, Expired, QueueFull
from edgecls.serve.bodies import TooLarge, TooSlow, WrongEncoding, pictures_of, read_body
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

    def app(self) -> Router:
        """The addresses, those that are asked most first. Health, the page and its description ask for no key.

        A Starlette application would put four layers around each handler, which took as long as all of ours.
        """
        routes = [self._route("/predict", self._predict, method="POST")]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/1"):
            routes += [
                self._route(f"{model}/infer", self._infer, method="POST"),
                self._route(model, self._model),
                self._route(f"{model}/ready", self._model_ready, is_open=True),
            ]
        routes += [
            self._route("/predict/{name}", self._predict, method="POST"),
            self._route("/", self._page, is_open=True),
            self._route("/openapi.json", self._openapi, is_open=True),
            self._route("/v2/health/live", self._live, is_open=True),
            self._route("/v2/health/ready", self._ready, is_open=True),
            self._route("/v2", self._server),
            self._route("/v2/repository/index", self._index, method="POST"),
            self._route("/v2/repository/models/{name}/load", self._load, method="POST"),
            self._route("/metrics", self._metrics),
        ]
        other = _Endpoint(self, "other", _no_such_address, method=None, is_open=True)
        return Router(routes, redirect_slashes=False, default=other)

    def _route(self, path: str, handler: _Handler, *, method: str = "GET", is_open: bool = False) -> Route:
        return Route(path, _Endpoint(self, path, handler, method=method, is_open=is_open))

    async def reload(self, name: str) -> bool:
        """Load one model anew, beside the one that serves and then in its place.

        Returns:
            whether the new one serves now; else the old one goes on, and the log says why.
        """
        try:
            await self._models[name].reload()
        except Exception as error:  # whatever an engine makes of a damaged file
            self._figures.count_load(name, "failed")
            self._log(f"warning: {name}: not loaded anew, so the one before goes on: {error}")
            return False
        self._figures.count_load(name, "loaded")
        self._log(f"loaded anew: {name}")
        return True

    async def reload_all(self) -> None:
        """Every model, one after the other."""
        for name in self._models:
            await self.reload(name)

    def count(self, request: Request, path: str, status: int, seconds: float, *, is_logged: bool) -> None:
        """Count a request that was answered, and let the log have its line."""
        self._figures.count_request(path, status, seconds)
        if is_logged:
            client = json.dumps(
                request.client.host[:_MOST_LOGGED] if request.client else ""
            )  # a proxy may say anything
            asked = json.dumps(request.scope["path"][:_MOST_LOGGED])
            self._log(
                f'{{"time": {time.time():.3f}, "method": "{request.method}", "path": {asked}, "status": {status}, '
                f'"ms": {1000 * seconds:.2f}, "client": {client}}}'
            )

    async def answered(self, request: Request, handler: _Handler, *, is_open: bool) -> Response:
        """What the handler says, or the status for what went wrong; no path and no traceback leave the server."""
        if not is_open and not self._is_allowed(request):
            words = "this server asks for a key: Authorization: Bearer KEY"
            return _error(401, words, {"WWW-Authenticate": "Bearer"})
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
            return _error(503, "the queue is full; ask again", {"Retry-After": _RETRY_SECONDS})
        except Expired:
            return _error(504, f"no answer within {self._options.limits.timeout:g} s: it is busy; ask again later")
        except WrongEncoding as error:
            return _error(415, str(error))
        except ClientDisconnect:
            return Response(status_code=_LEFT)
        except asyncio.CancelledError:
            if not self._is_ending():
                raise
            return _error(503, "the server ends; ask again", {"Retry-After": _RETRY_SECONDS})
        except Exception as error:
            self._log(f"error: {type(error).__name__}: {error}")
            return _error(500, "the model did not answer")

    def _is_allowed(self, request: Request) -> bool:
        if not self._key:
            return True
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = request.headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        # headers are bytes, which Starlette reads as Latin-1
        return hmac.compare_digest(given.encode("latin-1", "replace"), self._key.encode())

    async def _body(self, request: Request) -> bytes:
        limits = self._options.limits
        return await read_body(request, limits.max_body_mb, limits.body_timeout)

    @property
    def _max_images(self) -> int:
        """Of a request: more than the queue holds could never be answered."""
        return min(self._options.limits.max_images, self._options.limits.queue)

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
            RunError: the model's answer to a picture is no number, which is no fault of the request.
        """
        timeout = self._options.limits.timeout
        asked = model.batcher.submit(pictures, timeout)
        left = asked.loop.create_task(_cancel_when_left(request, asked))
        timer = asked.loop.call_later(timeout, asked.take)
        try:
            answers = await asked.answers
        except asyncio.CancelledError:
            if left.done():
                raise ClientDisconnect from None
            raise
        finally:
            left.cancel()
            timer.cancel()
        for each in answers:
            if each.prediction.status == "error" and each.probabilities is not None:
                raise RunError(each.prediction.reason)
        return answers

    async def _predict(self, request: Request) -> Response:
        asked = self._asked(request)
        kind, body = request.headers.get("content-type", ""), await self._body(request)
        pictures = await _aside(len(body), partial(pictures_of, kind, body, self._max_images))
        model = asked.loaded  # after the last wait: from here on it is one and the same
        answers = await self._answers(request, model, pictures)
        rows = [row(each.prediction, model.members) for each in answers]
        # rows of some pictures that cannot be read are an answer; where none can, the request is at fault
        unreadable = all(each.prediction.status == "error" for each in answers)
        return JSONResponse({"predictions": rows}, 422 if unreadable else 200, headers=_timing(answers))

    async def _infer(self, request: Request) -> Response:
        asked = self._asked(request)
        body, header_length = await self._body(request), request.headers.get(protocol.HEADER_LENGTH)
        wanted = await _aside(len(body), partial(protocol.parse, body, header_length, self._max_images))
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


class _Endpoint:
    """An address in ASGI's terms: asks the handler, counts, and sends what it says.

    Args:
        path: what it is counted as.
        method: the only one that is allowed; None allows all.
    """

    def __init__(self, service: Service, path: str, handler: _Handler, *, method: str | None, is_open: bool) -> None:
        self._service, self._path, self._handler = service, path, handler
        self._method, self._is_open = method, is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request = Request(scope, receive)
        is_allowed = self._method in (None, request.method) or (self._method, request.method) == ("GET", "HEAD")
        handler = self._handler if is_allowed else partial(_no_such_method, self._method or "")
        response = await self._service.answered(request, handler, is_open=self._is_open)
        seconds = time.perf_counter() - started
        is_logged = not self._is_open or response.status_code != 200
        try:
            await response(scope, receive, send)
        finally:  # the client need not wait for it
            self._service.count(request, self._path, response.status_code, seconds, is_logged=is_logged)


async def _no_such_address(request: Request) -> Response:
    return _error(404, "there is nothing at this address; /openapi.json lists those that there are")


async def _no_such_method(expected: str, request: Request) -> Response:
    return _error(405, f"this address takes {expected}", {"Allow": "GET, HEAD" if expected == "GET" else expected})


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


async def _cancel_when_left(request: Request, asked: Asked) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    asked.answers.cancel()
