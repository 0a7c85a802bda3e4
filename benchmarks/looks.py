"""What a look costs: `evaluate` beside `predict` on the same images, and `inspect` of a whole data set.

    python benchmarks/looks.py --model RUN --photos FOLDER [--rounds 5] [--inspect DATA]

FOLDER has class folders that the model knows. The two commands take turns as whole processes; prints a table of
medians. With --inspect, time and peak memory of `edgecls inspect DATA`.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inspect", dest="data", help="a data set to inspect, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        fixed = ("--device", "cpu", "--precision", "fp32", "--out")
        commands = {
            "predict": ("predict", given.photos, "--model", given.model, *fixed, str(Path(out, "rows.csv"))),
            "evaluate": ("evaluate", given.model, given.photos, *fixed, str(Path(out, "page"))),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(given.rounds):
            for name, command in commands.items():
                seconds[name].append(run(command))
        print("| command | median seconds | over predict |")
        print("| --- | --- | --- |")
        for name, each in seconds.items():
            print(f"| {name} | {median(each):.2f} | {median(each) / median(seconds['predict']):.2f} |")
        if given.data:
            taken = run(("inspect", given.data, "--out", str(Path(out, "look"))))
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest child so far
            print(f"\ninspect {given.data}: {taken:.1f} s; the largest process had {peak:.0f} MB")


def run(command: tuple[str, ...]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "edgecls.cli", *command], env=os.environ, capture_output=True, text=True
    )
    if done.returncode not in (0, 3):
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
