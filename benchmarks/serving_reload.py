"""Models that are changed under load: how many requests fail, and what it does to their waiting times.

    python benchmarks/serving_reload.py ONE.edgecls OTHER.edgecls PHOTOS [--reloads 50] [--clients 16]

Two bundles with the same labels take turns in the place that is served, and between them a file that is cut off, which
must change nothing. All requests must be answered 200, and each answer must be that of one of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
from serving import _HEAD, Load, client, memory_mb

COMMAND = [sys.executable, "-m", "edgecls.cli"]


def answers(model: Path, files: list[Path], folder: Path) -> list[tuple[str, float]]:
    rows = folder / "rows.csv"
    subprocess.run(
        [*COMMAND, "predict", *map(str, files), "--model", str(model), "--out", str(rows)],
        check=True, capture_output=True,
    )  # fmt: skip
    return [(row["label"], float(row["probability"])) for row in csv.DictReader(rows.open())]


def reload(port: int) -> tuple[int, float]:
    started = time.perf_counter()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/repository/models/model/load", method="POST")
    try:
        status = urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        status = error.code
    return status, time.perf_counter() - started


async def measure(port: int, place: Path, models: list[Path], requests: list[bytes], right: list, asked) -> None:
    load = Load()
    statuses: Counter[int] = Counter()
    seconds = []
    until = time.perf_counter() + 3600
    tasks = [
        asyncio.create_task(client(("127.0.0.1", port), requests, right, load, until, 0)) for _ in range(asked.clients)
    ]
    cut = models[0].read_bytes()[: models[0].stat().st_size // 2]
    fresh = place.with_suffix(".fresh")
    for number in range(asked.reloads):
        if number % 2:
            fresh.write_bytes(cut)
        else:
            shutil.copy(models[(number // 2 + 1) % 2], fresh)
        os.replace(fresh, place)
        status, took = await asyncio.to_thread(reload, port)
        statuses[status] += 1
        seconds.append(took)
        await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    p50, p95, p99 = np.percentile(load.ms, [50, 95, 99])
    print(
        f"{asked.reloads} reloads: statuses {dict(statuses)}, {np.median(seconds):.2f} s each (median); requests: "
        f"statuses {dict(load.statuses)}, {load.wrong} wrong, {load.lost} lost; {p50:.1f} / {p95:.1f} / {p99:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--clients", type=int, default=16)
    asked = parser.parse_args()
    files = sorted(asked.photos.rglob("*.jpg"))[:200]
    with tempfile.TemporaryDirectory() as folder:
        models = [asked.one, asked.other]
        both = [answers(model, files, Path(folder)) for model in models]
        place = Path(folder, "served.edgecls")
        shutil.copy(models[0], place)
        server = subprocess.Popen([*COMMAND, "serve", str(place), "--port", "0"], stderr=subprocess.PIPE, text=True)
        line = next(line for line in server.stderr if line.startswith("ready"))
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        bodies = [file.read_bytes() for file in files]
        requests = [
            _HEAD.format(path="predict", kind="image/jpeg", length=len(body)).encode() + body for body in bodies
        ]
        port = int(line.split(":")[3].split(",")[0])
        before = memory_mb(server.pid)
        right = [list(each) for each in zip(*both, strict=True)]
        asyncio.run(measure(port, place, models, requests, right, asked))
        print(f"{before:.0f} MB before, {memory_mb(server.pid):.0f} MB after")
        server.terminate()
        print(f"exit code {server.wait(30)}")
        drain.wait(10)


if __name__ == "__main__":
    main()
