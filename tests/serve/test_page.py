"""The page of the server in a real browser, and the description of its addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import draw, write_image, write_linear_model
from tests.serve.server import Client, served

SCRIPT = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("served")
    one = write_linear_model(folder / "one.onnx", (SCRIPT, "a:b", "c"))
    two = write_linear_model(folder / "two.onnx", ("cat", "dog"))
    with served(one, models=(f"pets={two}",)) as client:
        yield client


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_image(tmp_path / "photo.png", draw("checks", 1))


def opened(browser: Any, client: Client, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and what went wrong: words on its console, errors, dialogs, and requests to anywhere else."""
    faults: list[str] = []
    here = f"http://127.0.0.1:{client.port}/"
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda each: faults.append(f"console: {each.text}"))
    tab.on("pageerror", lambda each: faults.append(f"error: {each}"))
    tab.on("dialog", lambda each: (faults.append(f"dialog: {each.message}"), each.dismiss()))
    tab.on(
        "request", lambda each: each.url.startswith((here, "blob:", "data:")) or faults.append(f"request: {each.url}")
    )
    tab.goto(here)
    return tab, faults


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_photo_in_a_label_out(browser: Any, client: Client, photo: Path, width: int, scheme: str) -> None:
    tab, faults = opened(browser, client, width, scheme)
    right = client("POST", "/predict", photo.read_bytes())[1]["predictions"][0]
    tab.set_input_files("#file", photo)
    tab.wait_for_selector("#answer:not([hidden])")
    assert tab.inner_text("#best") == f"{right['label']}, {100 * right['probability']:.1f} %"
    rows = tab.locator("#classes tr").all_inner_texts()
    assert sorted(row.split("\t")[0].strip() for row in rows) == sorted([SCRIPT, "a:b", "c"])
    assert tab.inner_text("#status") == f"Answered: {right['label']}."
    assert "infer" in tab.inner_text("#times")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.select_option("#model", "pets")
    tab.wait_for_selector("#classes td >> text=/^(cat|dog)$/")
    assert faults == []
    tab.close()


def test_the_keyboard_reaches_everything_in_order(browser: Any, client: Client) -> None:
    tab, faults = opened(browser, client)
    tab.wait_for_selector("#choice:not([hidden])")
    reached = []
    for _ in range(3):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id"))
    assert reached == ["model", "choose", "camera"]
    assert faults == []
    tab.close()


def test_axe_finds_nothing(browser: Any, client: Client, photo: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        tab, _ = opened(browser, client, scheme=scheme)
        tab.set_input_files("#file", photo)
        tab.wait_for_selector("#answer:not([hidden])")
        found = axe.run(tab).response["violations"]
        assert [(each["id"], each["help"]) for each in found] == []
        tab.close()


def test_what_is_no_picture_is_told(browser: Any, client: Client, tmp_path: Path) -> None:
    tab, _ = opened(browser, client)  # the browser itself writes of the status 400 on its console
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    tab.set_input_files("#file", broken)
    tab.wait_for_selector("#status.bad")
    assert tab.inner_text("#status").startswith("No answer: ")
    assert tab.is_hidden("#answer")
    tab.close()


def test_a_key_is_asked_for_on_the_page(browser: Any, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    with served(write_linear_model(tmp_path / "one.onnx"), api_key_file=tmp_path / "key") as client:
        tab, _ = opened(browser, client)
        tab.wait_for_selector("#keyed:not([hidden])")
        tab.fill("#key", "secret")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#keyed", state="hidden")
        tab.set_input_files("#file", photo)
        tab.wait_for_selector("#answer:not([hidden])")
        assert tab.inner_text("#status").startswith("Answered: ")
        tab.close()


def test_the_description_is_openapi_and_complete(client: Client) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    status, described, _ = client("GET", "/openapi.json")
    assert status == 200
    validator.validate(described)
    assert described["components"]["parameters"]["model"]["schema"]["enum"] == ["model", "pets"]
    for path, methods in described["paths"].items():
        for method in set(methods) - {"parameters"}:
            status, _, _ = client(method.upper(), path.replace("{model}", "pets"), b"" if method == "post" else None)
            assert status not in (404, 405, 500), (path, status)
