"""The server: opens the model, lets it prove itself, and answers until it is told to end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgecls.errors import OptionError, RunError
from edgecls.serve.app import Service
from edgecls.serve.figures import Figures
from edgecls.serve.log import Log
from edgecls.serve.models import LoadedModel, ServedModel
from edgecls.serve.options import API_KEY, ServeOptions

_HANGUP: Final = getattr(signal, "SIGHUP", None)  # Windows has none
_HEADER_SECONDS: Final = 10.0  # in which the head of a request must have arrived
_KEEP_ALIVE_SECONDS: Final = 30
_BACKLOG: Final = 2048


def serve(options: ServeOptions) -> None:
    """Serve models until SIGTERM or Ctrl-C; then what was accepted is answered first. SIGHUP loads all models anew.

    Raises:
        RunError: no such model, it does not give its golden answers here, or the address is taken.
        OptionError: a file of the key that cannot be read or is empty.
    """
    key = _key(options.api_key_file)
    figures = Figures()
    with ExitStack() as opened:
        if _HANGUP is not None and threading.current_thread() is threading.main_thread():
            # until there is something to load anew, it would end the process
            opened.callback(signal.signal, _HANGUP, signal.signal(_HANGUP, signal.SIG_IGN))
        log = opened.enter_context(closing(Log()))
        models = {}
        for name, place in options.named.items():
            load = partial(LoadedModel.load, name, place, options, figures, log)
            models[name] = opened.enter_context(closing(ServedModel(name, load)))
        listening = _listen(options.host, options.port)
        # one that is served without a key to others than this machine
        if not key and not _is_loopback(options.host):
            log(f"warning: anybody who reaches this machine may ask; set {API_KEY} or --api-key-file to ask for a key")
        _Server(models, options, figures, key, log).run([listening])


def _key(file: Path | None) -> str:
    if file is None:
        given = os.environ.get(API_KEY, "")
        if given and not given.strip():
            raise OptionError(f"the variable {API_KEY} is blank; set it to the key, or unset it")
        return _sendable(given.strip(), f"the variable {API_KEY}")
    try:
        key = file.read_text(encoding="utf-8-sig").strip()  # Windows' editors write a mark before the text
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OptionError(f"--api-key-file {file}: cannot be read: {reason}") from error
    if not key:
        raise OptionError(f"--api-key-file {file}: is empty; expected the key")
    return _sendable(key, f"--api-key-file {file}")


def _sendable(key: str, source: str) -> str:
    """The same key, which a client can put into a header.

    Raises:
        OptionError: it cannot.
    """
    if not (key.isascii() and (key.isprintable() or not key)):
        raise OptionError(f"{source}: expected a key of ASCII letters, digits and signs in one line")
    return key


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        said = host or '""'
        expected = "127.0.0.1, 0.0.0.0, or an address of this machine"
        raise RunError(f"--host {said}: no such address; expected {expected}") from error
    try:
        listening = socket.create_server(address, family=family, backlog=_BACKLOG)
        # asyncio does so only for sockets that name TCP, which this one does not. Without it, the second half of each
        # answer waits 40 ms for the client to confirm the first; connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or error
        raise RunError(f"cannot listen on {host} port {port}: {reason}; name another one with --port") from error
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    """A server that ends with 0 when it is told to end, and answers first what it has accepted."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        options: ServeOptions,
        figures: Figures,
        key: str,
        log: Callable[[str], None],
    ) -> None:
        self._log = log
        self._service = Service(
            models, options, figures, key=key, is_ending=lambda: self.should_exit, log=log
        )  # fmt: skip
        self._on = ", ".join(dict.fromkeys(each.loaded.classifier.backend_name for each in models.values()))
        self._reloading: set[asyncio.Task[None]] = set()
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # what it says of bad requests is no line of JSON
        super().__init__(
            uvicorn.Config(
                self._service.app(),
                http=_Impatient,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(options.limits.timeout) + 1,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2] if sockets else ("", 0)
        if _HANGUP is not None and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(_HANGUP, self._reload)
        self._log(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}, on {self._on}")

    def _reload(self) -> None:
        task = asyncio.ensure_future(self._service.reload_all())
        self._reloading.add(task)  # asyncio itself keeps no task alive
        task.add_done_callback(self._reloading.discard)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal once more at the end: the exit code would be that of a kill."""
        if threading.current_thread() is not threading.main_thread():  # only there signals can be listened to
            yield
            return
        before = {sign: signal.signal(sign, self.handle_exit) for sign in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)


class _Impatient(H11Protocol):
    """Cuts a connection on which the head of a request has not arrived in time, which uvicorn itself waits for."""

    _cut: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._cut is None:
            self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(error)

    def _wait(self) -> None:
        self._cut = self.loop.call_later(_HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
