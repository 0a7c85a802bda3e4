"""`edgecls predict` on 1,000 photos with 20 broken files among them: rows, exit code, peak memory; and start-up times.

    EDGECLS_DATA=photos python benchmarks/predict_folder.py RUN

EDGECLS_DATA is a folder with `imagenet-photos/*/*.JPEG`; its photos are linked until there are 980. RUN is an exported
run folder or an ONNX file; any labels will do, since accuracy is not asked for.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from edgecls.images import find_images

N_PHOTOS, N_BROKEN = 980, 20
EDGECLS = [sys.executable, "-m", "edgecls.cli"]


def fill(folder: Path, photos: list[Path]) -> None:
    for index, photo in enumerate(islice(cycle(photos), N_PHOTOS)):
        (folder / f"photo{index:04d}{photo.suffix}").symlink_to(photo)
    whole = photos[0].read_bytes()
    for index in range(5):
        (folder / f"photo{index * 150:04d} empty.jpg").write_bytes(b"")
        (folder / f"photo{index * 150:04d} truncated.jpg").write_bytes(whole[: len(whole) * (index + 1) // 7])
        (folder / f"photo{index * 150:04d} text.jpg").write_text("a letter, renamed")
    for index in range(3):
        (folder / f"photo{index * 250:04d} folder.jpg").mkdir()
    Image.new("1", (30_000, 30_000)).save(folder / "photo0500 bomb.png")
    (folder / "photo0501 link to nothing.jpg").symlink_to(folder / "gone")


def main() -> None:
    run = str(Path(sys.argv[1]).resolve())
    photos = [path.resolve() for path in find_images(Path(os.environ["EDGECLS_DATA"]) / "imagenet-photos")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        folder.mkdir()
        fill(folder, photos)
        arguments = ["predict", str(folder), "--model", run, "--out", "rows.csv", "--report", "report.json"]
        process = subprocess.run([*EDGECLS, *arguments], cwd=temporary, capture_output=True, text=True, check=False)
        report = json.loads((Path(temporary) / "report.json").read_text())
        with (Path(temporary) / "rows.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        status = [row["status"] for row in rows]
        print(
            f"rows {len(rows)}: {status.count('ok')} ok, {status.count('error')} errors; exit code {process.returncode}"
        )
        speed = f"{report['images_per_second']:.0f} img/s, {report['backend']}, {report['precision']}"
        print(f"peak memory {report['peak_memory_mb']:.0f} MB, {speed}")
        for row in rows:
            if row["status"] == "error" and row["path"].split(" ")[0] in ("photo0000", "photo0500", "photo0501"):
                print(f"  {row['path']}: {row['reason']}")
        assert (len(rows), status.count("error"), process.returncode) == (N_PHOTOS + N_BROKEN, N_BROKEN, 3)
        one = ["predict", str(photos[0]), "--model", run, "--out", "one.csv"]
        for name, command in (("edgecls --help", ["--help"]), ("edgecls predict ONE.jpg", one)):
            seconds = []
            for _ in range(9):
                started = time.perf_counter()
                subprocess.run([*EDGECLS, *command], cwd=temporary, capture_output=True, check=True)
                seconds.append(time.perf_counter() - started)
            print(f"{name}: {statistics.median(seconds):.2f} s (median of 9, {min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
