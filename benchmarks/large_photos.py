"""12-megapixel photos: `predict` with JPEGs decoded at reduced scale against full decoding, speed and answers.

    EDGECLS_DATA=photos python benchmarks/large_photos.py RUN [--photos 50] [--rounds 5]

RUN is an exported run with published weights, such as `edgecls pretrained efficientnet_lite0` makes; answers of
random weights would say nothing. Photos of EDGECLS_DATA (`imagenet-photos/<class index>/*.JPEG`) are enlarged with
sensor-like noise as benchmarks/reduced_decoding.py does, which compares the two ways of decoding alone, in one
thread. Here the whole of `predict` runs on all cores, in turns; full decoding is had by switching `images._reduced`
off.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
from networks import CACHE, arguments_of, in_rounds, medians, photos, speed_line

from edgecls import images
from edgecls.metrics import wilson_interval
from edgecls.prefetch import n_cores
from edgecls.runs import find_run
from edgecls.runtime.options import ClassifierOptions, Device, PredictOptions, RowsOptions
from edgecls.runtime.predict import predict

MEGAPIXELS = 12


def large_photos(cache: Path, n: int) -> list[Path]:
    """The first `n` enlarged photos; those that are not in the cache are made."""
    chosen = photos()[:: max(1, len(photos()) // n)][:n]
    folder = cache / f"photos-{MEGAPIXELS}-megapixels"
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{photo.parent.name} {photo.stem}.jpg" for photo in chosen]
    for index, (photo, large) in enumerate(zip(chosen, made, strict=True)):
        if not large.exists():
            from reduced_decoding import enlarged  # imports PyTorch

            data = enlarged(photo.read_bytes(), MEGAPIXELS, np.random.default_rng(index))
            partial_file = large.with_suffix(".partial")
            partial_file.write_bytes(data)
            partial_file.rename(large)
    return made


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("run", help="an exported run with published weights")
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=get_args(Device), default="cpu")
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    files = large_photos(arguments.cache.resolve(), arguments.photos)
    labels = find_run(arguments.run).manifest.labels
    truth = [labels[int(file.name.split()[0])] if len(labels) == 1000 else None for file in files]
    answers: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "rows.csv"
        options = PredictOptions(
            tuple(files), (arguments.run,), ClassifierOptions(device=arguments.device), rows=RowsOptions(out=out)
        )

        def predicted(name: str) -> float:
            speed = predict(options).images_per_second
            with out.open(newline="") as rows:
                answers[name] = [row["label"] for row in csv.DictReader(rows)]
            return speed

        def fully_decoded(name: str) -> float:
            with mock.patch.object(images, "_reduced", return_value=images._JPEG_FLAGS):
                return predicted(name)

        contenders: dict[str, Callable[[], float]] = {
            "full decoding": partial(fully_decoded, "full decoding"),
            "reduced decoding": partial(predicted, "reduced decoding"),
        }
        speeds = in_rounds(contenders, arguments.rounds)
    n, mean_mb = len(files), sum(file.stat().st_size for file in files) / len(files) / 1e6
    print(f"{n} photos of {MEGAPIXELS} megapixels, {mean_mb:.1f} MB each, {n_cores()} cores, {arguments.device}")
    for name, found in speeds.items():
        right = sum(label == true for label, true in zip(answers[name], truth, strict=True))
        print(speed_line(name, found, f"top-1 {right / n:.1%}" if None not in truth else ""))
    full, reduced = medians(speeds).values()
    agreement = sum(map(str.__eq__, *answers.values())) / n
    low, high = wilson_interval(agreement, n)
    print(f"{reduced / full:.2f} times as fast; same top-1 {agreement:.1%} (95 %: {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
