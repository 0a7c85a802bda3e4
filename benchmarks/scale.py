"""What plan, shards and merge cost beside one plain `edgecls predict`, and how they grow.

    python benchmarks/scale.py MODEL PHOTOS [--files 20000] [--shards 16] [--ray] [--inputs 1000000]

First, the files of PHOTOS (repeated by links up to `--files`) by one plain predict, by one worker after another's
shards, by two workers at a time, and with --ray by two actors: seconds, and whether all rows are the same. Then, with
--inputs, so many links: seconds and peak memory of plan, of predict on it with a tiny model, and of merge.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "edgecls.cli"]
_LINKS = 20_000  # of one file: file systems allow some tens of thousands


def started_as(words: tuple[object, ...] | list[object], errors: int) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *map(str, words)], stdout=subprocess.DEVNULL, stderr=errors, text=True)


def run(*words: object, expected: tuple[int, ...] = (0, 3)) -> tuple[float, float]:
    """Seconds and peak memory in MB of one command."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = 0.0
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status", encoding="ascii") as lines:
                peak = max(peak, *(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), 0.0)
        except OSError:
            break  # it has just ended
        time.sleep(0.02)
    assert process.stderr
    said = process.stderr.read()
    process.wait()
    if process.returncode not in expected:
        raise SystemExit(f"{words}: {said}")
    return time.perf_counter() - started, peak


def together(*commands: list[object]) -> float:
    started = time.perf_counter()
    running = [started_as(each, subprocess.DEVNULL) for each in commands]
    for each in running:
        if each.wait() not in (0, 3):
            raise SystemExit(f"a worker ended with {each.returncode}")
    return time.perf_counter() - started


def link(photos: Path, folder: Path, n: int) -> None:
    """n links to the pictures of a folder, 1,000 in each folder below."""
    files = sorted(each for each in photos.rglob("*") if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if n > len(files) * _LINKS:
        raise SystemExit(f"{len(files)} files are too few for {n:,} links")
    for number in range(n):
        below = folder / f"{number // 1000:05d}"
        if number % 1000 == 0:
            below.mkdir(parents=True)
        os.link(files[number % len(files)], below / f"{number:08d}.jpg")


def compare(asked: argparse.Namespace, folder: Path) -> None:
    link(asked.photos, folder / "files", asked.files)
    plain, _ = run("predict", folder / "files", "--model", asked.model, "--out", folder / "plain.csv")
    print(f"plain predict of {asked.files:,} files: {plain:.1f} s", flush=True)
    ways = {
        "one worker": lambda plan: together(["predict", "--plan", plan, "--model", asked.model]),
        "two workers": lambda plan: together(
            *(["predict", "--plan", plan, "--model", asked.model, "--shard", f"{i}/2"] for i in range(2))
        ),
    }
    if asked.ray:
        ways["Ray, two actors"] = lambda plan: together(
            ["predict", "--plan", plan, "--model", asked.model, "--on", "ray", "--workers", 2]
        )
    for name, way in ways.items():
        plan, merged = folder / name.replace(" ", "-"), folder / "merged.csv"
        planned, _ = run("plan", folder / "files", "--out", plan, "--shards", asked.shards)
        answered = way(plan)
        proved, _ = run("merge", plan, "--out", merged)
        whole = planned + answered + proved
        same = merged.read_bytes() == (folder / "plain.csv").read_bytes()
        print(
            f"{name}: {whole:.1f} s ({whole / plain - 1:+.0%}): plan {planned:.1f}, {asked.shards} shards "
            f"{answered:.1f}, merge {proved:.1f}; the rows are {'the same' if same else 'NOT the same'}",
            flush=True,
        )


def grow(asked: argparse.Namespace, folder: Path) -> None:
    started = time.perf_counter()
    link(asked.photos, folder / "many", asked.inputs)
    print(f"{asked.inputs:,} links made in {time.perf_counter() - started:.0f} s", flush=True)
    plan = folder / "many-plan"
    steps = {
        "plan": ("plan", folder / "many", "--out", plan, "--shard-size", 50_000),
        "predict": ("predict", "--plan", plan, "--model", asked.tiny or asked.model),
        "merge": ("merge", plan, "--out", folder / "many.parquet"),
    }
    for name, words in steps.items():
        seconds, peak = run(*words)
        print(f"{name} of {asked.inputs:,}: {seconds:.1f} s, {peak:.0f} MB", flush=True)
    size = sum(each.stat().st_size for each in plan.iterdir())
    summary = json.loads((plan / "summary.json").read_text())
    print(f"{size / asked.inputs:.0f} bytes an input in the plan's folder; {summary['images']:,} rows", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--tiny", type=Path, help="the model for --inputs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.photos.resolve().parent) as folder:  # links cannot leave a file system
        if asked.inputs:
            grow(asked, Path(folder))
        else:
            compare(asked, Path(folder))


if __name__ == "__main__":
    main()
