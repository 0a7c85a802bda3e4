"""The pages in a real browser: nothing is fetched, nothing is said on the console, and names are shown as they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecls.evaluate.compare import CompareResult, compare
from edgecls.evaluate.evaluate import evaluate
from edgecls.evaluate.options import CompareOptions, EvaluateOptions
from edgecls.evaluate.page.charts import Axis, Series, chart
from edgecls.evaluate.page.confusion import confusion_view
from edgecls.evaluate.page.report import write_comparison, write_evaluation
from edgecls.runtime.options import ClassifierOptions
from tests.conftest import write_image, write_linear_model

SCRIPT = "<script>alert(1)</script>"
LABELS = (SCRIPT, 'a "quoted" one', "قطة & كلب")
NAMES = ('it\'s "quoted".png', "🐈 cat.png", "a%2Fb.png", "صورة.png", "<b>bold.png", "plain.png")
CPU = ClassifierOptions("fp32", "cpu")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation and a comparison, with labels and file names that a page may stumble over."""
    root = tmp_path_factory.mktemp("pages")
    rng, rows = np.random.default_rng(0), []
    for index in range(36):
        name = f"{index}-{NAMES[index % len(NAMES)]}"
        write_image(root / "pictures" / name, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        rows.append((f"pictures/{name}", LABELS[index % 3], "<i>left</i>" if index % 2 else "right"))
    with (root / "data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "camera"), *rows])
    one, two = (
        write_linear_model(root / f"{name}.onnx", LABELS, seed=seed) for seed, name in enumerate(("one", "two"))
    )
    data, changes = root / "data.csv", {"corruptions": True, "occlusion": True}
    write_evaluation(evaluate(EvaluateOptions(str(one), data, CPU, out=root / "evaluation", **changes)))  # type: ignore[arg-type]
    result = compare(CompareOptions((str(one), str(two)), data, CPU))
    assert isinstance(result, CompareResult)
    write_comparison(result, root / "comparison")
    return root


def opened(browser: Any, page: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and what went wrong: words on its console, errors, requests, and dialogs that a script opened."""
    faults: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.on("console", lambda each: faults.append(f"console: {each.text}"))
    tab.on("pageerror", lambda each: faults.append(f"error: {each}"))
    tab.on("dialog", lambda each: (faults.append(f"dialog: {each.message}"), each.dismiss()))
    tab.on("request", lambda each: each.url.startswith(("data:", "file:")) or faults.append(f"request: {each.url}"))
    tab.goto(page.as_uri())
    return tab, faults


@pytest.mark.parametrize("name", ["evaluation", "comparison"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_page_fetches_nothing_says_nothing_and_fits(
    browser: Any, pages: Path, name: str, width: int, scheme: str
) -> None:
    tab, faults = opened(browser, pages / name / "report.html", width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    pictures = tab.evaluate("[...document.images].map(each => each.naturalWidth)")
    assert len(pictures) > 10
    assert all(pictures)
    assert faults == []
    tab.close()


def test_labels_and_file_names_are_shown_as_they_are(browser: Any, pages: Path) -> None:
    tab, faults = opened(browser, pages / "evaluation" / "report.html")
    text = tab.inner_text("body")
    assert all(label in text for label in LABELS)
    assert all(name in text for name in NAMES)
    assert "<i>left</i>" in text
    assert tab.locator("script").count() == 1  # its own
    assert faults == []
    tab.close()


def test_a_table_is_sorted_by_its_heads_and_by_the_keyboard(browser: Any, pages: Path) -> None:
    tab, _ = opened(browser, pages / "evaluation" / "report.html")
    rows = "[...document.querySelectorAll('#classes tbody tr')].map(r => parseFloat(r.cells[4].dataset.key))"
    head = tab.locator("#classes th button", has_text="recall")
    head.click()
    recalls = tab.evaluate(rows)
    assert recalls == sorted(recalls, reverse=True)
    head.focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate(rows) == sorted(recalls)
    assert tab.locator("#classes th[aria-sort=ascending]").inner_text().startswith("recall")
    tab.close()


def test_a_cell_of_the_matrix_shows_its_pictures(browser: Any, pages: Path) -> None:
    tab, _ = opened(browser, pages / "evaluation" / "report.html")
    cell = tab.locator(".matrix button").first
    assert tab.locator("#all-panel img").count() == 0
    cell.focus()  # as the keyboard reaches it
    n = tab.locator("#all-panel img").count()
    assert 1 <= n <= 4
    assert n == min(4, int(cell.inner_text()))
    tab.close()


@pytest.mark.parametrize(("name", "scheme"), [("evaluation", "light"), ("evaluation", "dark"), ("comparison", "dark")])
def test_axe_finds_no_serious_fault(browser: Any, pages: Path, name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab, _ = opened(browser, pages / name / "report.html", scheme=scheme)
    found = axe.Axe().run(tab).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]
    assert serious == []
    tab.close()


def test_the_page_of_a_run_shows_its_training_and_its_files(browser: Any, exported_run: Path) -> None:
    tab, faults = opened(browser, exported_run / "report.html")
    text = tab.inner_text("body")
    told = json.loads((exported_run / "metrics.json").read_text())
    assert f"{100 * told['validation_accuracy']:.2f}" in text
    assert all(word in text for word in ("int8-cpu", "Recipe", "INT8 by tensor"))
    assert tab.locator(".chart").count() == 2
    assert faults == []
    tab.close()


def test_a_page_of_many_classes_is_whole_and_small(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(0), [f"class {index:03}" for index in range(150)]
    for label in labels:  # one picture each, so that all mistakes are as frequent, and not all can be shown
        write_image(tmp_path / "data" / label / "0.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    model = write_linear_model(tmp_path / "model.onnx", labels)
    write_evaluation(evaluate(EvaluateOptions(str(model), tmp_path / "data", CPU, out=tmp_path / "out")))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Map of the confusion matrix" in page
    assert all(label in page for label in labels)
    assert len(page) < 500_000


# --- Without a browser -----------------------------------------------------------------------------------------


def test_of_many_classes_the_pairs_and_a_map_are_shown() -> None:
    counts = {(index, index): 9 for index in range(60)} | {(3, 4): 5, (4, 3): 7, (10, 50): 2, (8, -1): 1}
    view = confusion_view([str(index) for index in range(60)], counts)
    assert view.rows == ()
    assert view.map.startswith("data:image/webp")
    assert [(pair.truth, pair.answer, pair.n) for pair in view.pairs] == [(4, 3, 7), (3, 4, 5), (10, 50, 2)]
    assert view.pairs[0].share == 7 / 16
    small = confusion_view(["a", "b"], {(0, 1): 3, (0, 0): 1, (0, -1): 1})
    assert [[cell.n for cell in row] for row in small.rows] == [[1, 3], [0, 0]]
    assert small.rows[0][1].share == 3 / 5


def test_a_chart_keeps_names_as_text_and_numbers_inside_its_frame() -> None:
    drawn = chart(
        "<b>", Axis("x"), Axis("y", high=1.0), [Series("<i>", [0, 1], [0, 9]), Series("b", [1], [1], False, ["<u>"])]
    )
    assert all(tag not in drawn for tag in ("<b>", "<i>", "<u>"))
    assert "&lt;u&gt;" in drawn
    points = drawn.split('points="')[1].split('"')[0]
    assert all(float(each.split(",")[1]) >= 12 for each in points.split())
