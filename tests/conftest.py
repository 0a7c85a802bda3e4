"""Pictures and runs that several tests need; all of it is made here, nothing is downloaded."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgecls.images import Pixels
from tests.fakes import tensorrt

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def draw(kind: str, seed: int, size: int = 24) -> Pixels:
    """A `stripes` or `checks` picture in random colours, (size, size, 3) uint8, that a tiny network can learn."""
    rng = np.random.default_rng(seed)
    low, high = rng.integers(0, 90, 3), rng.integers(160, 256, 3)
    y, x = np.mgrid[:size, :size]
    period = int(rng.integers(4, 7))
    on = (y // period) % 2 == 0 if kind == "stripes" else ((y // period) + (x // period)) % 2 == 0
    noise = rng.normal(0, 8, (size, size, 3))
    return np.clip(np.where(on[..., None], high, low) + noise, 0, 255).astype(np.uint8)


def write_image(path: Path, rgb: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert ok
    path.write_bytes(data.tobytes())
    return path


def write_class_folders(root: Path, n: int, first_seed: int = 0, size: int = 24) -> Path:
    for offset, kind in enumerate(("checks", "stripes")):
        for index in range(n):
            write_image(root / kind / f"{index}.png", draw(kind, first_seed + 2 * index + offset, size))
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CNN that was trained and exported with INT8: the run folder, the photos beside it in `photos`."""
    from edgecls.calibration.options import SampleOptions
    from edgecls.export.options import ExportOptions
    from edgecls.export.run import export
    from edgecls.options import from_flat
    from edgecls.train.options import TrainOptions
    from edgecls.train.run import train

    root = tmp_path_factory.mktemp("trained")
    photos = write_class_folders(root / "photos", 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        options = {"data": str(photos), "model": "cnn", "width": 8, "image_size": 24, "epochs": 12, "batch_size": 16}
        options |= {"lr": 0.05, "out": str(root / "run"), "device": "cpu"}
        result = train(from_flat(TrainOptions, options, "a test"))
        export(ExportOptions(str(result.run), int8=True, sample=SampleOptions(32)))
    return result.run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders with a dozen pictures each, that the exported run has not seen."""
    return write_class_folders(tmp_path / "photos", 12, first_seed=10_000)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> tensorrt.Install:
    """`tests.fakes.tensorrt.install` for the length of a test."""
    return partial(tensorrt.install, monkeypatch)


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_linear_model(
    path: Path, labels: Sequence[str] = "abc", size: int = 8, seed: int = 0, scale: float = 4.0, **manifest: Any
) -> Path:
    """A model of random weights on every pixel, so that each view of a picture has logits of its own.

    `manifest`: fields of `Manifest` besides labels, preprocessing (of `size`) and model.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from edgecls.export.graphs.graph import embed_manifest
    from edgecls.manifest import Manifest, Preprocessing

    # seeded by label, so that two models with their labels in another order have the same weights for each
    columns = [
        np.random.default_rng([seed, *label.encode()]).normal(0, scale / size, size * size * 3) for label in labels
    ]
    weights = numpy_helper.from_array((np.stack(columns, axis=1) / 128).astype(np.float32), "weights")
    middle = numpy_helper.from_array(np.float32(128), "middle")
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "middle"], ["centred"]),
        helper.make_node("Flatten", ["centred"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", size, size, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(labels)])
    graph = helper.make_graph(nodes, "linear", [images], [logits], [weights, middle])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    known = {"preprocessing": Preprocessing(size_hw=(size, size)), "model": "linear", **manifest}
    embed_manifest(model, Manifest(tuple(labels), **known))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured once a machine is measured for these tests, and forgotten with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    playwright = pytest.importorskip("playwright.sync_api")
    if program is None:
        pytest.skip("no Chromium: install Debian's package chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()
