"""The recipe of fine-tuning, by measurement: what each choice gives on several kinds of pictures.

    EDGECLS_DATA=photos python benchmarks/fine_tuning.py [--only WORD] [--recipes WORD] [--seeds 0 1 2] [--size 128]

EDGECLS_DATA is a folder with `cifar10/{train,test}/<class>/`, `catsdogs/<class>/` and `weather/<class>/`; the photos of
`inspection` are made here. Of each set a quarter is held back as test images (of CIFAR-10 200 a class), which choose
nothing: epochs are chosen on a fifth of the rest. Prints a Markdown table; runs that are complete are read.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgecls.options import from_flat
from edgecls.train.options import TrainOptions
from edgecls.train.run import train

Grey = NDArray[np.float32]
Rows = list[tuple[Path, str, str]]  # path, label, split

# what each recipe changes of the default
RECIPES: Mapping[str, dict[str, Any]] = {
    "the head alone": {"epochs": 20, "freeze_epochs": 20},
    "default": {},
    "rate 0.0003, decay 0.9": {"fine_tune_lr": 3e-4, "layer_decay": 0.9},
    "rate 0.0003, no decay": {"fine_tune_lr": 3e-4, "layer_decay": 1.0},
    "rate 0.001": {"fine_tune_lr": 1e-3},
    "batch norms learn": {"norm_statistics": "learn"},
    "moving average 0.9": {"ema": 0.9},
    "classes not weighed": {"balance": "none"},
    "all classes weigh the same": {"balance": "weights"},
    "classes drawn equally often": {"balance": "sampling"},
    "crop of 0.35": {"augment": ["crop", "flip"]},
    "crop of 0.7": {"augment": ["crop", "flip"], "crop_area": 0.7},
    "shortest, centre crop": {"resize": "shortest"},
    "padded": {"resize": "pad"},
}
SETS: Mapping[str, Callable[[Path, Path], Rows]]


def photos(name: str) -> Callable[[Path, Path], Rows]:
    return lambda root, _: held_back(sorted((p, p.parent.name) for p in (root / name).rglob("*.*") if p.is_file()))


def grey_weather(root: Path, made: Path) -> Rows:
    """The same photos without their colours."""
    items = []
    for path, label, _ in photos("weather")(root, made):
        target = made / "grey-weather" / label / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            cv2.imwrite(str(target), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        items.append((target, label))
    return held_back(items)


def cifar(counts: Callable[[str], int]) -> Callable[[Path, Path], Rows]:
    """So many training images of each class of CIFAR-10, a fifth of them to validate, and 200 test images a class."""

    def rows(root: Path, _made: Path) -> Rows:
        rng, found = np.random.default_rng(0), []
        for folder in sorted((root / "cifar10" / "train").iterdir()):
            files = sorted(folder.iterdir())
            drawn = [files[i] for i in rng.permutation(len(files))[: counts(folder.name)]]
            n_val = max(1, round(0.2 * len(drawn)))
            found += [(path, folder.name, "val" if i < n_val else "train") for i, path in enumerate(drawn)]
            tests = sorted((root / "cifar10" / "test" / folder.name).iterdir())
            found += [(tests[i], folder.name, "test") for i in rng.permutation(len(tests))[:200]]
        return found

    return rows


def held_back(items: list[tuple[Path, str]]) -> Rows:
    """A quarter of each class tests, a fifth of the rest validates."""
    rng, rows = np.random.default_rng(0), []
    for label in sorted({label for _, label in items}):
        files = [path for path, each in items if each == label]
        files = [files[i] for i in rng.permutation(len(files))]
        n_test = round(0.25 * len(files))
        n_val = max(1, round(0.2 * (len(files) - n_test)))
        for i, path in enumerate(files):
            rows.append((path, label, "test" if i < n_test else "val" if i < n_test + n_val else "train"))
    return rows


INSPECTED = {"free": 900, "blowhole": 110, "break": 80, "crack": 60, "fray": 32, "uneven": 100}


def inspection(_root: Path, made: Path) -> Rows:
    """Made photos of surfaces, most of them without a defect, the others with a small one anywhere."""
    rng, items = np.random.default_rng(7), []
    for kind, n in INSPECTED.items():
        for number in range(n):
            target = made / "inspection" / kind / f"{number:04d}.jpg"
            height, width = int(rng.integers(220, 400)), int(rng.integers(180, 320))
            surface = with_defect(kind, brushed(rng, height, width), rng) + rng.normal(0, 3, (height, width))
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                picture = np.clip(surface, 0, 255).astype(np.uint8)
                cv2.imwrite(str(target), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
            items.append((target, kind))
    return held_back(items)


def noise(rng: np.random.Generator, height: int, width: int, sigma_x: float, sigma_y: float) -> Grey:
    blurred = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), sigma_x, sigmaY=sigma_y)
    return np.asarray(blurred / blurred.std(), np.float32)


def brushed(rng: np.random.Generator, height: int, width: int) -> Grey:
    """(h, w) float32, 0 to 255: grain, streaks and uneven light."""
    grain = rng.uniform(0.6, 1.2)
    light = cv2.resize(rng.normal(0, 1, (3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    surface = rng.uniform(80, 170) + noise(rng, height, width, grain, grain) * rng.uniform(4, 9)
    streaks = noise(rng, height, width, 0.8, rng.uniform(8, 25)) * rng.uniform(3, 8)
    return np.asarray(surface + streaks + light * rng.uniform(4, 12), np.float32)


def with_defect(kind: str, surface: Grey, rng: np.random.Generator) -> Grey:
    height, width = surface.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cy, cx = rng.uniform(0.06, 0.94) * height, rng.uniform(0.06, 0.94) * width
    mask = np.zeros((height, width), np.uint8)
    if kind == "blowhole":
        a, b, turn = rng.uniform(3, 9), rng.uniform(3, 9), rng.uniform(0, np.pi)
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        return surface - rng.uniform(35, 70) * np.exp(-(((u / a) ** 2 + (v / b) ** 2) ** 2))
    if kind == "crack":
        angle, points = rng.uniform(0, 2 * np.pi), [(cx, cy)]
        for _ in range(int(rng.integers(25, 80))):
            angle += rng.normal(0, 0.25)
            points.append((points[-1][0] + 2 * np.cos(angle), points[-1][1] + 2 * np.sin(angle)))
        cv2.polylines(mask, [np.array(points, np.int32)], False, 255, int(rng.integers(1, 3)), cv2.LINE_AA)
        return surface - rng.uniform(30, 60) * cv2.GaussianBlur(mask, (0, 0), 0.7).astype(np.float32) / 255
    if kind == "break":
        corners, radius = int(rng.integers(6, 11)), rng.uniform(12, 30)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = radius * rng.uniform(0.5, 1.2, corners)
        outline = np.stack([cx + radii * np.cos(angles), cy + radii * np.sin(angles)], 1).astype(np.int32)
        cv2.fillPoly(mask, [outline], 255, cv2.LINE_AA)
        share = cv2.GaussianBlur(mask, (0, 0), 1).astype(np.float32) / 255
        inside = surface.mean() - rng.uniform(25, 60) + 12 * noise(rng, height, width, 2, 2)
        return np.asarray(surface * (1 - share) + share * inside, np.float32)
    if kind == "fray":
        radius = rng.uniform(20, 40)
        flat = radius * rng.uniform(0.5, 1)
        where = np.exp(-((((x - cx) / radius) ** 2 + ((y - cy) / flat) ** 2) ** 2))
        return surface + where * (noise(rng, height, width, 2.5, 2.5) * rng.uniform(18, 30) + rng.uniform(5, 20))
    if kind == "uneven":
        turn, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        across = (x / width - 0.5) * np.cos(turn) + (y / height - 0.5) * np.sin(turn)
        return surface - rng.uniform(30, 55) / (1 + np.exp(-(across - shift) * rng.uniform(12, 40)))
    return surface


SETS = {
    "cats and dogs": photos("catsdogs"),
    "weather": photos("weather"),
    "grey weather": grey_weather,
    "CIFAR-10, 5,000": cifar(lambda label: 500),
    "CIFAR-10, 10:1": cifar(lambda label: 1000 if label == "airplane" else 100),
    "CIFAR-10, 30:1": cifar(lambda label: {"airplane": 900, "frog": 500, "ship": 250, "cat": 30}.get(label, 90)),
    "inspection": inspection,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sets whose name has this in it")
    parser.add_argument("--recipes", default="", help="recipes whose name has this in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, help="side of the input in pixels; the default's where it is left out")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=Path("runs/fine-tuning"))
    given = parser.parse_args()
    root = Path(os.environ["EDGECLS_DATA"])
    print("| data | recipe | test accuracy | macro recall | seconds | seeds |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for data in [given.only] if given.only in SETS else [name for name in SETS if given.only in name]:
        table = given.out / f"{data.replace(' ', '-')}.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split"])
            writer.writerows((path.absolute(), *rest) for path, *rest in SETS[data](root, given.out))
        for name in (name for name in RECIPES if given.recipes in name):
            told = [measured(table, name, seed, given) for seed in given.seeds]
            cells = [f"{100 * np.mean([each[k] for each in told]):.2f} %" for k in ("test_accuracy", "test_recall")]
            seconds = np.mean([each["seconds"] for each in told])
            print(f"| {data} | {name} | {' | '.join(cells)} | {seconds:.0f} | {len(told)} |", flush=True)


def measured(table: Path, name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run, which is trained where it is not there."""
    folder = given.out / f"{table.stem}-{name.replace(' ', '-')}-{given.size or 'own'}-{given.model}-{seed}"
    if not (folder / "metrics.json").is_file():
        values = {"data": str(table), "model": given.model, "seed": seed, "out": str(folder), **RECIPES[name]}
        if given.size:
            values["image_size"] = given.size
        train(from_flat(TrainOptions, values, "benchmarks/fine_tuning.py"))
    told: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return told


if __name__ == "__main__":
    main()
