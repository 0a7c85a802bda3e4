"""Servers for the tests, in this process and as processes of their own, and a client."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import edgecls
from edgecls.serve import run as running
from edgecls.serve.figures import Figures
from edgecls.serve.models import LoadedModel, ServedModel
from edgecls.serve.options import ServeOptions


class Client:
    """Requests to one server.

    Attributes:
        logged: the lines of its log, of one in this process.
        n_workers: of all models of one in this process; how many they are depends on the engine that is fastest here.
    """

    def __init__(self, port: int, logged: list[str], n_workers: int = 0) -> None:
        self.port, self.logged, self.n_workers = port, logged, n_workers

    def __call__(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(content) if is_json else content, answer.headers
        finally:
            connection.close()


@contextmanager
def served(model: Path, **options: Any) -> Iterator[Client]:
    """A server of this process on a free port, until the end of the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    asked = ServeOptions(str(model), **options)
    figures, logged = Figures(), list[str]()
    with ExitStack() as stack:
        models = {}
        for name, place in asked.named.items():
            load = partial(LoadedModel.load, name, place, asked, figures, logged.append)
            models[name] = stack.enter_context(closing(ServedModel(name, load)))
        server = running._Server(models, asked, figures, running._key(asked.api_key_file), logged.append)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            n_workers = sum(each.loaded.classifier.n_workers for each in models.values())
            yield Client(listening.getsockname()[1], logged, n_workers)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def process(folder: Path, *asked: str | Path) -> tuple[Client, subprocess.Popen[str]]:
    """A server of its own, ready, that works in `folder`; whoever asks for it ends it and closes its `stderr`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(edgecls.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgecls.cli", "serve", *map(str, asked), "--port", "0"]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert server.stderr
    line = next(line for line in server.stderr if line.startswith("ready: "))
    return Client(int(line.split(":")[3].split(",")[0]), []), server


def answers(said: Any) -> list[tuple[str, float]]:
    return [(each["label"], each["probability"]) for each in said["predictions"]]


def near(got: list[tuple[str, float]], expected: list[tuple[str, float]]) -> bool:
    """The same labels; a batch of another size may round otherwise."""
    return [label for label, _ in got] == [label for label, _ in expected] and np.allclose(
        [value for _, value in got], [value for _, value in expected], atol=1e-4
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
