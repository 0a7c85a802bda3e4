"""Does the memory of `predict` grow with the number of images?

    EDGECLS_DATA=photos python benchmarks/memory.py [--model RUN] [--few 5000] [--many 100000]

Small JPEGs (`cifar10/test` of EDGECLS_DATA; without it the photos, shrunk) are linked in one flat folder until there
are enough. Resident memory of a fresh process that calls `predict` once on the many, after the few rows and after the
last one; then the peak of `edgecls predict` on a folder of the few and on one of the many, in processes of their own.
RUN is an exported run or an ONNX file; the default is MobileNetV2 at 224 px, INT8, random weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import cv2
from networks import CACHE, EDGECLS, arguments_of, data_folder, link, mobilenet_run, photos

from edgecls import images
from edgecls.images import find_images
from edgecls.progress import Progress
from edgecls.runtime.options import ClassifierOptions, Device, PredictOptions, RowsOptions
from edgecls.runtime.predict import predict


def small_jpegs(temporary: Path) -> list[Path]:
    if found := list(find_images(data_folder() / "cifar10" / "test")):
        return found
    folder = temporary / "small"
    folder.mkdir()
    for index, photo in enumerate(photos()):
        small = cv2.resize(images.decode(photo.read_bytes()), (64, 48), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{index}.jpg"), cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    return list(find_images(folder))


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def sample(folder: Path, model: str, device: str, few: int) -> None:
    """In the fresh process: print the resident memory at three moments, as JSON."""
    found = {}
    n = 0

    def on_pass(title: str, count: int | None) -> None:
        found["start"] = resident_mb()
        found["inputs"] = count or 0

    def on_images(count: int) -> None:
        nonlocal n
        n += count  # a batch at a time
        if n >= few and "few" not in found:
            found["few"] = resident_mb()
        if n == found["inputs"]:
            found["many"] = resident_mb()

    options = PredictOptions(
        (folder,),
        (model,),
        ClassifierOptions(device=device),  # type: ignore[arg-type]
        rows=RowsOptions(out=folder.parent / "sampled.csv"),
    )
    predict(options, Progress(on_pass=on_pass, on_images=on_images))
    print(json.dumps(found))


def peak_mb(folder: Path, model: str, device: str) -> float:
    report = folder.parent / "report.json"
    command = [*EDGECLS, "predict", str(folder), "--model", model, "--device", device, "--report", str(report)]
    subprocess.run([*command, "--out", "rows.csv"], cwd=folder.parent, stdout=subprocess.DEVNULL, check=True)
    values = json.loads(report.read_text())
    return float(values["peak_memory_mb"])


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model", help="an exported run or an ONNX file")
    parser.add_argument("--few", type=int, default=5_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--device", choices=get_args(Device), default="cpu")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--sample", type=Path, help="internal: be the fresh process")
    arguments = parser.parse_args()
    few, many, device = arguments.few, arguments.many, arguments.device
    if not 0 < few < many:
        parser.error(f"--few {few} --many {many}: expected few below many")
    if arguments.sample:
        sample(arguments.sample, arguments.model, device, few)
        return
    model = str(Path(arguments.model or mobilenet_run(arguments.cache)).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        files = small_jpegs(Path(temporary))
        folders = {n: Path(temporary) / str(n) / "images" for n in (few, many)}
        for n, folder in folders.items():
            link(files, folder, n)
        command = [sys.executable, __file__, "--sample", str(folders[many]), "--model", model, "--device", device]
        counts = ["--few", str(few), "--many", str(many)]
        answer = subprocess.run([*command, *counts], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(answer.stdout.splitlines()[-1])
        grown = 1e6 * (found["many"] - found["few"]) / (many - few)
        print(f"one call of predict on {many:,} images, {device}, resident memory:")
        print(f"  {found['start']:.1f} MB before the first, model open and names read")
        print(
            f"  {found['few']:.1f} MB after {few:,}, {found['many']:.1f} MB after {many:,}: {grown:.0f} bytes an image"
        )
        peaks = {n: peak_mb(folder, model, device) for n, folder in folders.items()}
    grown = 1e6 * (peaks[many] - peaks[few]) / (many - few)
    print(f"edgecls predict, peak: {peaks[few]:.1f} MB for {few:,}, {peaks[many]:.1f} MB for {many:,}: ", end="")
    print(f"{grown:.0f} bytes an image")


if __name__ == "__main__":
    main()
