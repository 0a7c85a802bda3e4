"""The server over real connections: the answers of `predict`, the protocol, its limits, an end that loses nothing."""

from __future__ import annotations

import base64
import http.client
import json
import random
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecls.errors import OptionError, RunError
from edgecls.golden import Golden
from edgecls.images import decode
from edgecls.runs import Run
from edgecls.runtime.backends.own_process import OwnInEachProcess
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.pipeline import BatchWorker
from edgecls.serve import bodies
from edgecls.serve import run as running
from edgecls.serve.inference_protocol import BadRequest
from edgecls.serve.options import LimitOptions, ServeOptions
from edgecls.serve.run import serve
from tests.serve.server import Client, answers, near, process, served, until

HEADER_LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def client(exported_run: Path) -> Iterator[Client]:
    with served(exported_run, top_k=2, limits=LimitOptions(max_body_mb=1, max_images=8, body_timeout=1.0)) as client:
        yield client


@pytest.fixture(scope="module")
def files(exported_run: Path) -> list[Path]:
    return sorted((exported_run.parent / "photos").rglob("*.png"))


@pytest.fixture(scope="module")
def expected(exported_run: Path, files: list[Path]) -> list[tuple[str, float]]:
    with Classifier.open(exported_run) as classifier:
        return [(each.label, round(each.probability, 6)) for each in classifier.predict(files)]


def test_a_picture_is_answered_as_predict_answers_it(
    client: Client, files: list[Path], expected: list[tuple[str, float]]
) -> None:
    for file, right in zip(files, expected, strict=True):
        status, said, _ = client("POST", "/predict", file.read_bytes(), Content_Type="image/png")
        assert status == 200
        assert near(answers(said), [right])
        assert set(said["predictions"][0]) == {
            "path", "status", "label", "probability", "reason", "label_2", "probability_2",
        }  # fmt: skip


def test_forms_and_json_bring_several(client: Client, files: list[Path], expected: list[tuple[str, float]]) -> None:
    some = files[:3]
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="%d.png"\r\nContent-Type: image/png\r\n\r\n'
        % number
        + file.read_bytes()
        for number, file in enumerate(some)
    ]
    note = b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\nno file'
    form = b"\r\n".join([*parts, note, b"--x--\r\n"])
    status, said, _ = client("POST", "/predict", form, Content_Type="multipart/form-data; boundary=x")
    assert (status, near(answers(said), expected[:3])) == (200, True)
    data = json.dumps({"images": [base64.b64encode(file.read_bytes()).decode() for file in some]})
    status, said, _ = client("POST", "/predict", data.encode(), Content_Type="application/json")
    assert (status, near(answers(said), expected[:3])) == (200, True)


def test_base64_may_be_what_browsers_make_of_it(
    client: Client, files: list[Path], expected: list[tuple[str, float]]
) -> None:
    coded = base64.encodebytes(files[0].read_bytes()).decode()  # with line breaks
    data = json.dumps({"images": [coded, f"data:image/png;base64,{coded}"]}).encode()
    status, said, _ = client("POST", "/predict", data, Content_Type="application/json")
    assert (status, near(answers(said), [expected[0]] * 2)) == (200, True)


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"--x--\r\n",
        b"--x\r\nno blank line",
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nnever ends',
        b"--x\r\n" + b"a" * 20_000 + b"\r\n\r\nbody\r\n--x--",
        b'--y\r\nContent-Disposition: form-data; filename="f"\r\n\r\nother boundary\r\n--y--',
        b"--x\r\nContent-Disposition: form-data; filename*\r\n\r\nbody\r\n--x--",
        b"--x\r\nContent-Disposition: form-data; " + b"(" * 1500 + b"\r\n\r\nbody\r\n--x--",
        b"--x\r\n\r\n" * 100 + b"--x--",
    ],
)
def test_forms_without_a_whole_file_are_refused(client: Client, form: bytes) -> None:
    assert client("POST", "/predict", form, Content_Type="multipart/form-data; boundary=x")[0] == 400
    assert client("POST", "/predict", form, Content_Type="multipart/form-data")[0] == 400


def test_an_answer_that_is_no_number_is_the_servers_fault(
    client: Client, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = files[0].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(OwnInEachProcess, "infer", lambda self, images, times=None: np.full((len(images), 2), np.nan))
        assert client("POST", "/predict", data)[0] == 500
        asked = json.dumps(given("BYTES", [1], [base64.b64encode(data).decode()])).encode()
        assert client("POST", "/v2/models/model/infer", asked)[0] == 500
    assert client("POST", "/predict", data)[0] == 200


def test_many_parts_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a tenth of a millisecond, and more where its head is long."""
    monkeypatch.setattr(bodies, "_is_file", lambda head: pytest.fail("a head was read"))
    monkeypatch.setattr(bodies, "_from_base64", lambda text: pytest.fail("a text was read"))
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
    with pytest.raises(BadRequest, match="too many parts"):
        bodies.pictures_of("multipart/form-data; boundary=x", part * 5000 + b"--x--", 8)
    with pytest.raises(BadRequest, match="there are 5000 pictures: expected 8 at most"):
        bodies.pictures_of("application/json", json.dumps({"images": [""] * 5000}).encode(), 8)


def test_whatever_a_proxy_says_of_a_client_the_log_is_json(client: Client, files: list[Path]) -> None:
    client.logged.clear()
    client("POST", "/predict", files[0].read_bytes(), X_Forwarded_For='\\", "status": 0')
    until(lambda: bool(client.logged))
    assert json.loads(client.logged[-1])["status"] == 200


def test_the_bytes_of_a_form_arrive_as_they_were(client: Client) -> None:
    """Line ends inside a file, which a parser of mail might change."""
    from edgecls.serve.bodies import pictures_of

    random.seed(0)
    for _ in range(50):
        data = bytes(random.choice(b"\r\n\x00-ab\xff") for _ in range(random.randrange(1, 400)))
        body = b'--bnd\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' + data + b"\r\n--bnd--\r\n"
        (picture,) = pictures_of("multipart/form-data; boundary=bnd", body, 1)
        assert picture.data == data  # type: ignore[union-attr]


def infer(client: Client, asked: dict[str, Any], behind: bytes = b"") -> tuple[int, Any, http.client.HTTPMessage]:
    header = json.dumps(asked).encode()
    more = {HEADER_LENGTH: str(len(header))} if behind else {}
    return client("POST", "/v2/models/model/infer", header + behind, **more)


def of_name(said: Any, name: str) -> Any:
    return next(each for each in said["outputs"] if each["name"] == name)


def test_the_open_inference_protocol_in_json(
    client: Client, files: list[Path], expected: list[tuple[str, float]]
) -> None:
    assert client("GET", "/v2")[1]["extensions"] == ["binary_tensor_data", "classification", "model_repository"]
    assert client("GET", "/v2/models/model")[1]["outputs"][0]["shape"] == [-1, 2]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/model/ready"):
        assert client("GET", path)[0] == 200
    data = [base64.b64encode(file.read_bytes()).decode() for file in files[:2]]
    asked = {"id": "7", "inputs": [{"name": "images", "datatype": "BYTES", "shape": [2], "data": data}]}
    status, said, _ = infer(client, asked)
    assert (status, said["id"], said["model_name"]) == (200, "7", "model")
    assert of_name(said, "labels")["data"] == [label for label, _ in expected[:2]]
    probabilities = np.reshape(of_name(said, "probabilities")["data"], of_name(said, "probabilities")["shape"])
    assert np.allclose(probabilities.max(1), [value for _, value in expected[:2]], atol=1e-4)
    pixels = decode(files[0].read_bytes())
    asked = {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, *pixels.shape], "data": pixels.tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}],
    }
    status, said, _ = infer(client, asked)
    value, index, label = of_name(said, "probabilities")["data"][0].split(":")
    assert (status, label) == (200, expected[0][0])
    assert (said["outputs"][0]["shape"], float(value)) == ([1, 1], pytest.approx(expected[0][1], abs=1e-4))
    assert index == "01"[["checks", "stripes"].index(label)]


def test_the_binary_extension(client: Client, files: list[Path], expected: list[tuple[str, float]]) -> None:
    content = [file.read_bytes() for file in files[:2]]
    behind = b"".join(struct.pack("<I", len(each)) + each for each in content)
    some = {"name": "images", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(behind)}}
    status, said, headers = infer(client, {"inputs": [some], "parameters": {"binary_data_output": True}}, behind)
    assert status == 200
    length = int(headers[HEADER_LENGTH])
    outputs = json.loads(said[:length])["outputs"]
    sizes = [each["parameters"]["binary_data_size"] for each in outputs]
    assert length + sum(sizes) == len(said)
    probabilities = np.frombuffer(said[length : length + sizes[0]], "<f4").reshape(outputs[0]["shape"])
    assert np.allclose(probabilities.max(1), [value for _, value in expected[:2]], atol=1e-4)
    texts = said[length + sizes[0] :]
    (first,) = struct.unpack_from("<I", texts)
    assert texts[4 : 4 + first].decode() == expected[0][0]
    pixels = np.stack([decode(file) for file in content])
    some = {
        "name": "images", "datatype": "UINT8", "shape": list(pixels.shape),
        "parameters": {"binary_data_size": pixels.nbytes},
    }  # fmt: skip
    status, said, _ = infer(client, {"inputs": [some]}, pixels.tobytes())
    assert of_name(said, "labels")["data"] == [label for label, _ in expected[:2]]


def test_tritons_own_client(client: Client, files: list[Path], expected: list[tuple[str, float]]) -> None:
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as other:
        assert other.is_server_live()
        assert other.is_model_ready("model")
        assert other.get_model_metadata("model")["inputs"][0]["name"] == "images"
        encoded = np.array([file.read_bytes() for file in files[:3]], np.object_)
        some = triton.InferInput("images", [3], "BYTES")
        some.set_data_from_numpy(encoded)
        result = other.infer("model", [some])
        assert [each.decode() for each in result.as_numpy("labels")] == [label for label, _ in expected[:3]]
        assert np.allclose(result.as_numpy("probabilities").max(1), [value for _, value in expected[:3]], atol=1e-4)
        wanted = triton.InferRequestedOutput("probabilities", class_count=2)
        best = other.infer("model", [some], outputs=[wanted]).as_numpy("probabilities")
        assert best.shape == (3, 2)
        assert best[0][0].decode().split(":")[2] == expected[0][0]


def given(datatype: str, shape: list[Any], data: Any = None, **more: Any) -> dict[str, Any]:
    """A request for one input."""
    return {"inputs": [{"name": "images", "datatype": datatype, "shape": shape, "data": data}], **more}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (b"[]", "JSON object"),
        (b"{", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b"{}", "inputs: expected"),
        ({"inputs": [{"name": "x"}]}, "expected `images`"),
        (given("FP32", [1]), "expected BYTES"),
        (given("BYTES", [-1]), "above 0"),
        (given("BYTES", [True]), "above 0"),
        (given("BYTES", [99], []), "8 pictures at most"),
        (given("BYTES", [2], ["AA=="]), "1 elements"),
        (given("BYTES", [1], ["?"]), "not base64"),
        (given("BYTES", [1], ["AAAA"]), "picture 0: not an image"),
        (given("UINT8", [1, 9, 9, 4]), "[n, height, width, 3]"),
        (given("UINT8", [1, 1, 1, 3], [1, 2, 300]), "0 to 255"),
        (given("UINT8", [1, 1 << 30, 1 << 30, 3], [1]), "0 to 255"),
        (given("BYTES", [1], ["AAAA"], id=3), "id: expected"),
        (given("BYTES", [1], ["AAAA"], outputs=[{"name": "y"}]), "output 'y'"),
        (given("BYTES", [1], ["AAAA"], outputs=[{"name": "labels"}] * 2), "one is named twice"),
        (
            {"inputs": [{**given("BYTES", [1])["inputs"][0], "parameters": {"binary_data_size": 5}}]},
            "there are 0",
        ),
    ],
)
def test_what_the_protocol_does_not_allow_is_told(client: Client, asked: Any, words: str) -> None:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    status, said, _ = client("POST", "/v2/models/model/infer", body)
    assert status == 400
    assert words in said["error"]


def test_limits_are_kept_before_anything_is_decoded(client: Client, files: list[Path]) -> None:
    assert client("POST", "/predict", b"x" * 1_000_001)[0] == 413
    chunks = socket.create_connection(("127.0.0.1", client.port))
    chunks.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(12):
        chunks.sendall(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
    assert b" 413 " in chunks.recv(1000)
    chunks.close()
    images = [base64.b64encode(files[0].read_bytes()).decode()] * 9
    status, said, _ = client(
        "POST", "/predict", json.dumps({"images": images}).encode(), Content_Type="application/json"
    )
    assert (status, said["error"]) == (400, "there are 9 pictures: expected 8 at most")
    assert client("POST", "/predict", b"")[0] == 400
    status, said, headers = client("GET", "/predict")
    assert (status, headers["Allow"], said["error"]) == (405, "POST", "this address takes POST")
    status, said, _ = client("POST", "/predict", files[0].read_bytes(), Content_Encoding="gzip")
    assert (status, said["error"]) == (415, "the body is compressed; send it as it is, without Content-Encoding")
    assert client("POST", "/v2/models/model/infer", b"{}", **{HEADER_LENGTH: "0" * 5000})[0] == 400
    assert client("GET", "/v2/models/other")[0] == 404
    assert client("POST", "/predict", b"not a picture")[0] == 422


def test_whoever_sends_slowly_is_cut(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_HEADER_SECONDS", 0.3)
    head = socket.create_connection(("127.0.0.1", client.port), timeout=5)
    head.sendall(b"POST /predict HTTP/1.1\r\nHost:")
    assert head.recv(1000) == b""
    body = socket.create_connection(("127.0.0.1", client.port), timeout=5)
    body.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    assert b" 408 " in body.recv(1000)
    for each in (head, body):
        each.close()


def test_nothing_malformed_is_answered_500(
    client: Client, files: list[Path], expected: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_HEADER_SECONDS", 0.3)
    random.seed(0)
    good = files[0].read_bytes()
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(good) + good
    seen = set()
    for number in range(200):
        kind = number % 5
        if kind == 0:
            data = random.randbytes(random.randrange(1, 2000))
        elif kind == 1:
            body = good[: random.randrange(1, len(good))]
            data = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        elif kind == 2:
            data = bytearray(request)
            for _ in range(8):
                data[random.randrange(len(data))] = random.randrange(256)
        elif kind == 3:
            data = request[: random.randrange(1, len(request))]  # and then it leaves
        else:
            data = b"GET /predict HTTP/1.1\r\nHost: " + b"h" * random.choice([10, 100_000]) + b"\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
            try:
                connection.sendall(bytes(data))
                if kind in (0, 3):  # what is not whole is not waited for
                    connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(1000)
            except OSError:  # cut
                continue
        if answer:
            status = answer.split(b" ")[1]
            seen.add(status)
            assert status != b"500", data[:200]
    assert {b"400", b"422"} <= seen
    status, said, _ = client("POST", "/predict", good)
    assert (status, near(answers(said), expected[:1])) == (200, True)


def test_many_at_once_get_the_right_answers(
    client: Client, files: list[Path], expected: list[tuple[str, float]]
) -> None:
    wrong: list[Any] = []

    def ask(first: int) -> None:
        for step in range(20):
            which = (first + step) % len(files)
            status, said, _ = client("POST", "/predict", files[which].read_bytes())
            if status != 200 or not near(answers(said), [expected[which]]):
                wrong.append((which, status, said))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    text = client("GET", "/metrics")[1].decode()
    assert 'edgecls_requests_total{path="/predict",status="200"}' in text
    for name in (
        "edgecls_batch_images_count",
        "edgecls_stage_ms_bucket",
        'edgecls_queue_images{model="model"} 0.0',
        "edgecls_confidence_sum",
    ):
        assert name in text


class Gate:
    """Lets the workers answer only once it is open, and counts what they answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.n_begun, self.n_pictures = threading.Event(), 0, 0
        real = BatchWorker.answer

        def answer(worker: BatchWorker, sources: Any) -> Any:
            self.n_begun += 1
            self.n_pictures += len(sources)
            self.opened.wait(20)
            return real(worker, sources)

        monkeypatch.setattr(BatchWorker, "answer", answer)


def in_background(ask: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(ask()))
    thread.start()
    return thread, got


def test_a_full_queue_says_so_at_once(exported_run: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = files[0].read_bytes()
    with served(exported_run, limits=LimitOptions(queue=2)) as client:
        gate = Gate(monkeypatch)
        n_workers = client.n_workers
        busy = []
        for number in range(n_workers):
            busy.append(in_background(lambda: client("POST", "/predict", data)))
            until(lambda: gate.n_begun == number + 1)  # noqa: B023  it is waited for here
        waiting = [in_background(lambda: client("POST", "/predict", data)) for _ in range(2)]
        until(lambda: b'edgecls_queue_images{model="model"} 2.0' in client("GET", "/metrics")[1])
        status, _, headers = client("POST", "/predict", data)
        assert (status, headers["Retry-After"]) == (503, "1")
        gate.opened.set()
        for thread, got in [*busy, *waiting]:
            thread.join(20)
            assert got[0][0] == 200


def test_what_waits_too_long_is_answered_504_and_not_worked_for(
    exported_run: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = files[0].read_bytes()
    with served(exported_run, limits=LimitOptions(timeout=0.5)) as client:
        gate = Gate(monkeypatch)
        n_workers = client.n_workers
        for number in range(n_workers):
            in_background(lambda: client("POST", "/predict", data))
            until(lambda: gate.n_begun == number + 1)  # noqa: B023
        assert client("POST", "/predict", data)[0] == 504
        left = socket.create_connection(("127.0.0.1", client.port))
        left.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        until(lambda: b'edgecls_queue_images{model="model"} 2.0' in client("GET", "/metrics")[1])
        left.close()  # before it was looked at
        time.sleep(0.2)
        gate.opened.set()
        assert client("POST", "/predict", data)[0] == 200
        assert gate.n_pictures == n_workers + 1


def test_more_pictures_than_the_queue_holds_are_never_asked_again(exported_run: Path, files: list[Path]) -> None:
    data = json.dumps({"images": [base64.b64encode(files[0].read_bytes()).decode()] * 5}).encode()
    with served(exported_run, limits=LimitOptions(queue=4)) as client:
        status, said, _ = client("POST", "/predict", data, Content_Type="application/json")
        assert (status, said["error"]) == (400, "there are 5 pictures: expected 4 at most")


def test_a_body_that_never_arrives_is_answered_at_the_end(exported_run: Path, tmp_path: Path) -> None:
    client, server = process(tmp_path, exported_run, "--timeout", "1")
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as half:
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        until(lambda: client("GET", "/v2/health/live")[0] == 200)
        server.send_signal(signal.SIGTERM)
        answer = half.makefile("rb").read()
    assert server.wait(20) == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the server ends; ask again" in answer
    assert server.stderr
    lines = server.stderr.read().splitlines()
    assert [json.loads(line)["status"] for line in lines if line.startswith("{")] == [503]
    assert not [line for line in lines if "Traceback" in line or "Cancel" in line]
    server.stderr.close()


def test_a_key_is_asked_for(
    exported_run: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    data = files[0].read_bytes()
    with served(exported_run, api_key_file=file) as client:
        assert client("POST", "/predict", data)[0] == 401
        assert client("POST", "/predict", data, Authorization="Bearer wrong")[0] == 401
        assert client("POST", "/predict", data, X_API_Key="secrét".encode().decode("latin-1"))[0] == 401
        assert client("POST", "/predict", data, Authorization="secret")[0] == 401
        assert client("POST", "/predict", data)[2]["WWW-Authenticate"] == "Bearer"
        assert client("POST", "/predict", data, Authorization="Bearer secret")[0] == 200
        assert client("POST", "/predict", data, Authorization="bearer secret")[0] == 200
        assert client("POST", "/predict", data, X_API_Key="secret")[0] == 200
        assert client("GET", "/v2/health/ready")[0] == 200
        assert client("GET", "/metrics")[0] == 401
    file.write_text("secret\n", encoding="utf-8-sig")  # as an editor of Windows writes it
    with served(exported_run, api_key_file=file) as client:
        assert client("POST", "/predict", data, X_API_Key="secret")[0] == 200
    for unsendable in ("schlüssel", "two\nlines"):
        file.write_text(unsendable, encoding="utf-8")
        with pytest.raises(OptionError, match="expected a key of ASCII letters, digits and signs in one line"):
            serve(ServeOptions(str(exported_run), api_key_file=file))
    file.write_text(" ")
    with pytest.raises(OptionError, match="is empty; expected the key"):
        serve(ServeOptions(str(exported_run), api_key_file=file))
    monkeypatch.setenv("EDGECLS_API_KEY", "  ")
    with pytest.raises(OptionError, match="EDGECLS_API_KEY is blank"):
        serve(ServeOptions(str(exported_run)))


def test_a_model_that_answers_otherwise_is_not_served(exported_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    golden = Golden.of(Run(run))
    replace(golden, logits=-golden.logits).write(Run(run))
    with pytest.raises(RunError, match="golden"):
        serve(ServeOptions(str(run), port=0))


def test_a_server_that_is_killed_leaves_nothing_behind(exported_run: Path, files: list[Path], tmp_path: Path) -> None:
    client, server = process(tmp_path, exported_run)
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as waiting:
        waiting.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert client("GET", "/v2/health/live")[0] == 200
        server.kill()
        server.wait(10)
        with suppress(ConnectionResetError):
            assert waiting.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        client("POST", "/predict", files[0].read_bytes())
    assert server.stderr
    server.stderr.close()
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_taken_is_told(exported_run: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RunError, match="name another one with --port"),
    ):
        serve(ServeOptions(str(exported_run), port=taken.getsockname()[1]))


def test_sigterm_in_the_middle_of_load_loses_nothing(
    exported_run: Path, files: list[Path], expected: list[tuple[str, float]], tmp_path: Path
) -> None:
    client, server = process(tmp_path, exported_run)
    assert server.stderr
    drained = threading.Thread(target=server.stderr.read)
    drained.start()
    cut: list[Any] = []
    right = 0
    stopping = threading.Event()

    def ask(which: int) -> None:
        nonlocal right
        while not stopping.is_set():
            try:
                status, said, _ = client("POST", "/predict", files[which].read_bytes())
            except ConnectionRefusedError:  # it listens no longer: nothing was accepted
                return
            except (OSError, http.client.HTTPException) as error:
                cut.append(error)
                return
            assert status in (200, 503), (status, said)
            if status == 200:
                assert near(answers(said), [expected[which]])
                right += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: right > 30)
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    stopping.set()
    assert server.wait(30) == 0
    drained.join(10)
    server.stderr.close()
    # a connection that the kernel took and the server never saw is reset; no request of which it read a byte is lost
    assert all(isinstance(each, ConnectionResetError | http.client.RemoteDisconnected) for each in cut), cut
    assert len(cut) <= 6


def test_a_log_that_nobody_reads_holds_nothing_up(exported_run: Path, files: list[Path], tmp_path: Path) -> None:
    client, server = process(tmp_path, exported_run)
    assert server.stderr
    for _ in range(800):  # more lines than a pipe holds
        assert client("GET", "/v2")[0] == 200
    assert client("POST", "/predict", files[0].read_bytes())[0] == 200
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    server.stderr.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a/b"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"name": ".."}, "letters, digits"),
        ({"max_wait_ms": 10_000.0}, "less than --timeout, which is 10 s"),
        ({"port": 70_000}, "0 to 65535"),
        ({"max_wait_ms": float("inf")}, "0 to 60000"),
        ({"limits": {"timeout": float("inf")}}, "at most 86,400"),
        ({"limits": {"timeout": float("nan")}}, "a number above 0"),
        ({"limits": {"queue": 0}}, "1 or more"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    limits, others = options.get("limits", {}), {name: each for name, each in options.items() if name != "limits"}
    with pytest.raises(OptionError, match=words):
        ServeOptions("run", limits=LimitOptions(**limits), **others)
