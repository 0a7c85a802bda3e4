"""Several models in one server, and models that are changed while it serves."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from edgecls.errors import OptionError
from edgecls.golden import Golden
from edgecls.runs import Run
from edgecls.serve.options import ServeOptions
from tests.conftest import draw, write_image, write_linear_model
from tests.serve.server import answers, near, process, served, until


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    return write_image(tmp_path / "picture.png", draw("stripes", 0)).read_bytes()


def label(said: Any) -> str:
    return str(said["predictions"][0]["label"])


def test_each_name_has_its_model(tmp_path: Path, picture: bytes) -> None:
    one = write_linear_model(tmp_path / "one.onnx", ("red", "green"))
    two = write_linear_model(tmp_path / "two.onnx", ("cat", "dog", "cow"), size=6)
    with served(one, models=(f"pets={two}",)) as client:
        assert label(client("POST", "/predict", picture)[1]) in ("red", "green")
        assert label(client("POST", "/predict/model", picture)[1]) in ("red", "green")
        assert label(client("POST", "/predict/pets", picture)[1]) in ("cat", "dog", "cow")
        assert client("GET", "/v2/models/pets")[1]["outputs"][0]["shape"] == [-1, 3]
        assert client("GET", "/v2/models/pets/versions/1")[1]["name"] == "pets"
        assert client("GET", "/v2/models/pets/ready")[0] == 200
        status, said, _ = client("POST", "/predict/cars", picture)
        assert (status, said["error"]) == (404, "there is no model of this name; expected one of: model, pets")
        assert client("GET", "/v2/models/cars/ready")[0] == 404
        assert [each["name"] for each in client("POST", "/v2/repository/index")[1]] == ["model", "pets"]
        text = client("GET", "/metrics")[1].decode()
        assert 'edgecls_images_total{model="pets",status="ok"} 1.0' in text
        assert 'edgecls_images_total{model="model",status="ok"} 2.0' in text


def test_tritons_client_lists_and_loads(tmp_path: Path) -> None:
    triton = pytest.importorskip("tritonclient.http")
    one = write_linear_model(tmp_path / "one.onnx")
    with served(one) as client:
        asking = triton.InferenceServerClient(f"127.0.0.1:{client.port}")
        assert [each["name"] for each in asking.get_model_repository_index()] == ["model"]
        asking.load_model("model")
        assert asking.is_model_ready("model", "1")
        one.write_bytes(b"no model")
        with pytest.raises(triton.InferenceServerException, match="the one before goes on"):
            asking.load_model("model")
        asking.close()


def test_a_model_is_changed_under_load(tmp_path: Path, picture: bytes) -> None:
    """Good and bad files in turn: every request is answered, wholly by one model or the other."""
    files = {
        "colours": write_linear_model(tmp_path / "colours.onnx", ("red", "green"), seed=1),
        "pets": write_linear_model(tmp_path / "pets.onnx", ("cat", "dog"), size=6, seed=2),
    }
    place = tmp_path / "model.onnx"
    shutil.copy(files["colours"], place)
    expected = {}
    for name, file in files.items():
        with served(file) as client:
            expected[name] = answers(client("POST", "/predict", picture)[1])
    wrong: list[Any] = []
    seen = set()
    stopping = threading.Event()
    with served(place) as client:

        def ask() -> None:
            while not stopping.is_set():
                status, said, _ = client("POST", "/predict", picture)
                who = "pets" if status == 200 and label(said) in ("cat", "dog") else "colours"
                seen.add(who)
                if status != 200 or not near(answers(said), expected[who]):
                    wrong.append((status, said))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for name in ("pets", "bad", "colours", "cut", "pets", "gone"):
            fresh = tmp_path / "fresh"
            if name in files:
                shutil.copy(files[name], fresh)
            else:
                fresh.write_bytes(b"bad" if name == "bad" else files["pets"].read_bytes()[:300])
            os.replace(fresh, place)
            if name == "gone":
                place.unlink()
            status, said, _ = client("POST", "/v2/repository/models/model/load")
            if name in files:
                assert (status, said) == (200, {})
                assert near(answers(client("POST", "/predict", picture)[1]), expected[name])
            else:
                assert status == 400
                assert str(tmp_path) not in said["error"]
        stopping.set()
        for thread in threads:
            thread.join(20)
        text = client("GET", "/metrics")[1].decode()
        assert 'edgecls_loads_total{model="model",result="loaded"} 3.0' in text
        assert 'edgecls_loads_total{model="model",result="failed"} 3.0' in text
        assert sum(line.startswith("warning: model: not loaded anew") for line in client.logged) == 3
    assert wrong == []
    assert seen == {"pets", "colours"}
    named = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("batch-") for name in named), named


def test_a_model_that_answers_otherwise_is_not_loaded(exported_run: Path, tmp_path: Path, picture: bytes) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    with served(run) as client:
        before = client("POST", "/predict", picture)[1]
        golden = Golden.of(Run(run))
        Golden(golden.images, -golden.logits, golden.validation_answers).write(Run(run))
        assert client("POST", "/v2/repository/models/model/load")[0] == 400
        assert client("POST", "/predict", picture)[1] == before
        assert any("golden answers" in line for line in client.logged)


def test_a_model_that_nothing_vouches_for_is_served_with_a_word(exported_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    (run / "golden.npz").unlink()
    (run / "baseline.json").write_text("{")
    with served(run) as client:
        assert any("has no golden answers beside it" in line for line in client.logged)
        assert any("differ from the validation images is not told" in line for line in client.logged)


def test_pictures_that_drift_are_told(exported_run: Path, tmp_path: Path) -> None:
    large = [write_image(tmp_path / f"{seed}.png", draw("stripes", seed, size=90)).read_bytes() for seed in range(8)]
    with served(exported_run) as client:
        assert 'edgecls_drift_psi{feature="size",model="model"} NaN' in client("GET", "/metrics")[1].decode()
        for number in range(120):
            assert client("POST", "/predict", large[number % 8])[0] == 200
        warnings = [line for line in client.logged if "differ from the validation images" in line]
        assert len(warnings) == 1
        assert "warning: model: the last 1" in warnings[0]
        assert "size (PSI" in warnings[0]
        line = next(
            line
            for line in client("GET", "/metrics")[1].decode().splitlines()
            if line.startswith('edgecls_drift_psi{feature="size",model="model"}')
        )
        assert float(line.split()[1]) > 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_sighup_loads_all_anew(tmp_path: Path, picture: bytes) -> None:
    place = write_linear_model(tmp_path / "one.onnx", ("red", "green"))
    client, server = process(tmp_path, place)
    try:
        assert label(client("POST", "/predict", picture)[1]) in ("red", "green")
        write_linear_model(place, ("cat", "dog"))
        assert label(client("POST", "/predict", picture)[1]) in ("red", "green")
        server.send_signal(signal.SIGHUP)
        until(lambda: label(client("POST", "/predict", picture)[1]) in ("cat", "dog"))
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    finally:
        server.kill()
        assert server.stderr
        server.stderr.close()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("model=b",), "is given twice"),
        (("pets=b", "pets=c"), "is given twice"),
        (("b.onnx",), "NAME=MODEL"),
        (("pets=",), "NAME=MODEL"),
        (("=b",), "NAME=MODEL"),
        (("a/b=c",), "NAME=MODEL"),
    ],
)
def test_names_that_make_no_sense_are_refused(models: tuple[str, ...], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ServeOptions("run", models=models)


def test_the_first_model_answers_where_none_is_named() -> None:
    assert ServeOptions().named == {"model": "latest"}
    assert ServeOptions(models=("a=x", "b=y=z")).named == {"a": "x", "b": "y=z"}
    assert list(ServeOptions("w", name="first", models=("a=x",)).named) == ["first", "a"]
