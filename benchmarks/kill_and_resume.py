"""`edgecls predict` killed with SIGKILL ten times and gone on with by --resume: is every row there, once, and the same?

    EDGECLS_DATA=photos python benchmarks/kill_and_resume.py [--model RUN] [--photos 3000] [--kills 10] [--seed 0]

First an uninterrupted run. Then lives of the same command with --resume: each is killed at a random moment, start-up
included, drawn so that the work lasts for all of them. The life after them finishes. The rows must be one an input,
in order, and the file equal to the uninterrupted run's byte for byte; otherwise the exit code is 1. RUN is an
exported run or an ONNX file; the default is MobileNetV2 at 224 px, INT8, random weights.
"""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from networks import CACHE, EDGECLS, arguments_of, link, mobilenet_run, photos

from edgecls.runtime.options import Device

STALLED = 600  # seconds after which a life that should have ended counts as hung


def whole_rows(file: Path) -> int:
    """Rows that end with a line break, without the header."""
    return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0


def differences(found: Path, expected: Path, names: list[str]) -> list[str]:
    with found.open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    problems = []
    if paths != names:
        problems.append(f"paths: {len(paths)} rows for {len(names)} inputs, or not in their order")
    lines, wanted = found.read_bytes().splitlines(), expected.read_bytes().splitlines()
    if found.read_bytes() != expected.read_bytes():
        pairs = [(one, other) for one, other in zip(lines, wanted, strict=False) if one != other]
        example = f", first {pairs[0][0]!r} for {pairs[0][1]!r}" if pairs else ""
        problems.append(f"bytes: {len(pairs)} of {len(wanted)} lines differ{example}")
    return problems


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--model", help="an exported run or an ONNX file")
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=get_args(Device), default="cpu")
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    model = str(Path(arguments.model or mobilenet_run(arguments.cache)).resolve())
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        names = [path.name for path in link(photos(), folder, arguments.photos)]
        once, out = Path(temporary) / "once.csv", Path(temporary) / "rows.csv"
        command = [*EDGECLS, "predict", str(folder), "--model", model, "--device", arguments.device]
        report = Path(temporary) / "report.json"
        started = time.perf_counter()
        subprocess.run(
            [*command, "--out", str(once), "--report", str(report)],
            stdout=subprocess.DEVNULL,
            cwd=temporary,
            check=True,
        )
        seconds = float(json.loads(report.read_text())["seconds"])
        start_up = time.perf_counter() - started - seconds
        print(f"uninterrupted: {whole_rows(once):,} rows, {start_up:.1f} s to start and {seconds:.1f} s of work")
        resumed = [*command, "--out", str(out), "--resume"]
        partial = out.with_name(f"{out.name}.partial")
        n_before = n_killed = 0
        for life in range(1, arguments.kills + 1):
            left = seconds * (1 - n_before / len(names))
            delay = draw.uniform(0, start_up + min(1.8 / (arguments.kills - life + 2), 0.9) * left)
            process = subprocess.Popen(resumed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=temporary)
            try:
                _, message = process.communicate(timeout=delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                _, message = process.communicate()
            if process.returncode != -signal.SIGKILL:
                print(f"life {life:2d}: ended with exit code {process.returncode} before its {delay:.1f} s were over")
                if process.returncode:
                    sys.exit(message.decode(errors="replace"))
                break
            n_killed += 1
            n = whole_rows(partial)
            print(f"life {life:2d}: killed after {delay:5.1f} s, wrote {n - n_before:,} rows: {n:,}", flush=True)
            if n < n_before:
                sys.exit(f"rows were lost: {n_before:,} before, {n:,} now")
            n_before = n
        if not out.exists():
            subprocess.run(resumed, stdout=subprocess.DEVNULL, cwd=temporary, check=True, timeout=STALLED)
            print(f"last life: finished, wrote {whole_rows(out) - n_before:,} rows: {whole_rows(out):,}")
        problems = differences(out, once, names)
        left_over = sorted(path.name for path in Path(temporary).glob("rows.csv.*"))
        if left_over:
            problems.append(f"left over: {', '.join(left_over)}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"killed {n_killed} times: one row an input, in order, equal to the uninterrupted run's byte for byte")


if __name__ == "__main__":
    main()
