"""Does decoding large JPEGs at reduced scale change answers? And what does it save?

    EDGECLS_DATA=photos python benchmarks/reduced_decoding.py

EDGECLS_DATA is a folder with `imagenet-photos/<class index>/*.JPEG`. EfficientNet-Lite0 answers every photo twice:
after full decoding, and after decoding at the scale that `images.decode` chooses. The cases: the photos as they are,
with a small network input, so that reduction applies to real files; the same at 224 px, where few are large enough;
and photos enlarged to 2 and 12 megapixels, with sensor-like noise, at 224 px.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edgecls import images
from edgecls.manifest import Preprocessing
from edgecls.metrics import wilson_interval
from edgecls.train.networks.efficientnet_lite import LITE, EfficientNetLite, load_imagenet_weights

LITE0 = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
N_LARGE = 100  # enlarged photos: 12 megapixels each take a while


def enlarged(data: bytes, megapixels: float, rng: np.random.Generator) -> bytes:
    picture = images.decode(data)
    height, width = picture.shape[:2]
    factor = (megapixels * 1e6 / (height * width)) ** 0.5
    large = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(large + rng.normal(0, 4, (*large.shape[:2], 1)), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", cv2.cvtColor(noisy, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def answers(network: EfficientNetLite, pixels: list[images.Pixels]) -> np.ndarray:
    batches = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().sub(127).div(128).split(25)
    with torch.inference_mode():
        return torch.cat([network(batch).argmax(1) for batch in batches]).numpy()


def compare(
    network: EfficientNetLite, files: list[bytes], truth: np.ndarray, preprocessing: Preprocessing
) -> list[str]:
    full: list[images.Pixels] = []
    reduced: list[images.Pixels] = []
    seconds = {"full": 0.0, "reduced": 0.0}
    n_reduced = 0
    for data in files:
        for name, target, pixels in (("full", None, full), ("reduced", preprocessing, reduced)):
            started = time.perf_counter()
            picture = images.decode(data, target)
            pixels.append(images.resize_and_crop(picture, preprocessing))
            seconds[name] += time.perf_counter() - started
            if target:
                n_reduced += picture.shape != images.decode(data).shape
    one, other = answers(network, full), answers(network, reduced)
    agreement = float(np.mean(one == other))
    low, high = wilson_interval(agreement, len(files))
    return [
        f"{n_reduced} of {len(files)}",
        f"{100 * agreement:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        f"{100 * np.mean(one == truth):.1f} %",
        f"{100 * np.mean(other == truth):.1f} %",
        f"{len(files) / seconds['full']:.0f}",
        f"{len(files) / seconds['reduced']:.0f}",
        f"{seconds['full'] / seconds['reduced']:.2f}",
    ]


def main() -> None:
    paths = list(images.find_images(Path(os.environ["EDGECLS_DATA"]) / "imagenet-photos"))
    files = [path.read_bytes() for path in paths]
    truth = np.array([int(path.parent.name) for path in paths])
    network = EfficientNetLite(LITE["efficientnet_lite0"]).eval()
    load_imagenet_weights(network, "efficientnet_lite0")
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    chosen = np.arange(len(files))[:: max(1, len(files) // N_LARGE)]
    table = Table(title="Full against reduced decoding, one thread")
    for name in ("photos", "reduced", "top-1 agreement", "top-1 full", "reduced", "img/s full", "reduced", "times"):
        table.add_column(name, justify="left" if name == "photos" else "right")
    small = replace(LITE0, size_hw=(128, 128))
    table.add_row("as they are, 128 px input", *compare(network, files, truth, small))
    table.add_row("as they are, 224 px input", *compare(network, files, truth, LITE0))
    for megapixels in (2, 12):
        large = [enlarged(files[index], megapixels, rng) for index in chosen]
        table.add_row(f"{megapixels} megapixels, 224 px input", *compare(network, large, truth[chosen], LITE0))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
