"""What `edgecls serve` keeps of `predict`: the same photos through HTTP by many clients, every answer compared.

    python benchmarks/serving.py RUN PHOTOS [--clients 64] [--seconds 60] [--rates 0.1,0.5,0.9] [--also PORT/PATH ...]

In one run, in turn: `edgecls predict` of the folder; the server with one client; with as many as are asked for, each
with one request at a time; then clients that ask at a share of that rate, whose waiting times are told. The clients run
in one process of their own, beside the server on the same cores, and their share of the time is told: on two cores it
is part of what the server loses to `predict`. Servers that are started already are asked likewise: `--also
8001/predict`, or `8001/predict#form` for those that take pictures as a form (`benchmarks/serving_rivals.py` has two).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_HEAD = "POST /{path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
_FORM = b'--bench\r\nContent-Disposition: form-data; name="content"; filename="photo.jpg"\r\n\r\n%b\r\n--bench--\r\n'


_SEEDS = itertools.count()


@dataclass
class Load:
    """What clients saw."""

    ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head[9:12]), await reader.readexactly(length)


async def client(
    address: tuple[str, int],
    requests: list[bytes],
    right: list[list[tuple[str, float]]] | None,
    load: Load,
    until: float,
    gap: float,
) -> None:
    """One client with one request at a time.

    Args:
        right: for each request the label and probability that it may be answered with.
        gap: mean of the seconds between two requests; 0 for none.
    """
    rng = random.Random(next(_SEEDS))  # of its own, or all would ask at the same moments
    reader, writer = await asyncio.open_connection(*address)
    while (start := time.perf_counter()) < until:
        which = rng.randrange(len(requests))
        try:
            status, body = await exchange(reader, writer, requests[which])
        except (OSError, asyncio.IncompleteReadError):
            load.lost += 1
            reader, writer = await asyncio.open_connection(*address)
            continue
        load.ms.append(1000 * (time.perf_counter() - start))
        load.statuses[status] += 1
        if status == 200 and right is not None:
            said = json.loads(body)["predictions"][0]
            load.wrong += not any(
                said["label"] == label and abs(said["probability"] - probability) < 1e-3
                for label, probability in right[which]
            )
        if gap:
            await asyncio.sleep(rng.expovariate(1 / gap))
    writer.close()


async def many(
    address: tuple[str, int],
    requests: list[bytes],
    right: list[list[tuple[str, float]]] | None,
    n: int,
    seconds: float,
    gap: float,
) -> Load:
    load = Load()
    until = time.perf_counter() + seconds
    await asyncio.gather(*(client(address, requests, right, load, until, gap) for _ in range(n)))
    return load


def tell(name: str, load: Load, seconds: float, cpu: float) -> float:
    rate = load.statuses[200] / seconds
    p50, p95, p99 = np.percentile(load.ms, [50, 95, 99])
    print(
        f"{name}: {rate:.1f} img/s, {p50:.1f} / {p95:.1f} / {p99:.1f} ms (p50 / p95 / p99), "
        f"statuses {dict(load.statuses)}, {load.wrong} wrong, {load.lost} lost; "
        f"the clients took {cpu / seconds:.2f} cores",
        flush=True,
    )
    return rate


def memory_mb(pid: int) -> float:
    return next(int(line.split()[1]) / 1000 for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rates", default="0.1,0.5,0.9")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--also", nargs="*", default=[])
    asked = parser.parse_args()
    files = sorted(each for each in asked.photos.rglob("*") if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
    command = [sys.executable, "-m", "edgecls.cli"]
    with tempfile.TemporaryDirectory() as folder:
        rows, report = Path(folder, "rows.csv"), Path(folder, "report.json")
        told = ["--out", str(rows), "--report", str(report), "--device", asked.device]
        subprocess.run(
            [*command, "predict", *map(str, files), "--model", str(asked.run), *told], check=True, capture_output=True
        )
        right = [[(row["label"], float(row["probability"]))] for row in csv.DictReader(rows.open())]
        plain = json.loads(report.read_text())["images_per_second"]
    print(f"predict: {plain:.1f} img/s of {len(files)} photos")
    started = time.perf_counter()
    serve = ["serve", str(asked.run), "--port", "0", "--device", asked.device]
    server = subprocess.Popen([*command, *serve], stderr=subprocess.PIPE, text=True)
    line = next(line for line in server.stderr if line.startswith("ready"))
    print(f"{line.strip()} after {time.perf_counter() - started:.2f} s, {memory_mb(server.pid):.0f} MB")
    port = int(line.split(":")[3].split(",")[0])
    os.set_blocking(server.stderr.fileno(), True)
    drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)

    def bench(name: str, address: tuple[str, int], path: str, right, n: int, gap: float) -> float:
        path, _, form = path.partition("#")
        bodies = [_FORM % file.read_bytes() if form else file.read_bytes() for file in files]
        kind = "multipart/form-data; boundary=bench" if form else "image/jpeg"
        requests = [_HEAD.format(path=path, kind=kind, length=len(body)).encode() + body for body in bodies]
        cpu = time.process_time()
        load = asyncio.run(many(address, requests, right, n, asked.seconds, gap))
        return tell(name, load, asked.seconds, time.process_time() - cpu)

    here = ("127.0.0.1", port)
    bench("one client", here, "predict", right, 1, 0)
    most = bench(f"{asked.clients} clients", here, "predict", right, asked.clients, 0)
    print(f"of predict: {most / plain:.0%}; {memory_mb(server.pid):.0f} MB")
    for share in map(float, asked.rates.split(",")):
        bench(f"at {share:.0%} of that", here, "predict", right, asked.clients, asked.clients / (share * most))
    print(f"{memory_mb(server.pid):.0f} MB")
    for other in asked.also:
        port, _, path = other.partition("/")
        bench(f"{other}, one client", ("127.0.0.1", int(port)), path, None, 1, 0)
        bench(f"{other}, {asked.clients} clients", ("127.0.0.1", int(port)), path, None, asked.clients, 0)
    server.terminate()
    print(f"exit code {server.wait(30)}")
    drain.wait(10)


if __name__ == "__main__":
    main()
