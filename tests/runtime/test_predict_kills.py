"""Killed at any moment, a prediction is whole after the same command with --resume: no row is lost or there twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import draw, write_image, write_linear_model

# A child for each moment at which a file takes its place, goes or is cut short; what it does ends there, as by kill -9.
# After it, the same command with --resume in another child, and a look at what is there.
KILLS = """
import hashlib, json, os, shutil, sys, traceback
from pathlib import Path
from edgecls.runtime.options import ClassifierOptions, OutputOptions, PredictOptions, RowsOptions
from edgecls.runtime.predict import predict

folder, model, out = map(Path, sys.argv[1:])
given = dict(classifier=ClassifierOptions(device="cpu", batch_size=2, n_threads=1), report=out / "report.json",
             outputs=OutputOptions(submission=out / "submission.csv", sort_into=out / "sorted"))


def work(resume):
    rows = RowsOptions(out / "rows.csv", resume=resume)
    predict(PredictOptions((folder,), (str(model),), rows=rows, **given))


def forked(resume, fatal=0):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def patched(real):
        def call(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen == fatal:
                os._exit(99)
            return real(*arguments, **options)
        return call

    for name in ("replace", "rename", "fsync", "unlink", "remove", "truncate", "ftruncate", "link", "symlink", "mkdir"):
        setattr(os, name, patched(getattr(os, name)))
    try:
        work(resume)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def look():
    files = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file()}
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items() if name != "report.json"}


assert forked(False) == 0
print(json.dumps(look()))
fatal = 1
while True:
    shutil.rmtree(out)
    out.mkdir()
    code = forked(False, fatal)
    if code == 0:
        break
    assert code == 99, code
    assert forked(True) == 0, fatal
    assert (out / "report.json").is_file()
    print(json.dumps(look()))
    fatal += 1
"""


def test_a_prediction_killed_at_any_moment_is_whole_after_resume(tmp_path: Path) -> None:
    for index in range(6):
        write_image(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", draw("checks", index))
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"")
    (tmp_path / "out").mkdir()
    model = write_linear_model(tmp_path / "model.onnx")
    command = [sys.executable, "-c", KILLS, str(tmp_path / "photos"), str(model), str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    whole, *others = map(json.loads, ended.stdout.splitlines())
    assert {"rows.csv", "submission.csv"} < set(whole)
    assert len(others) >= 10
    assert all(other == whole for other in others)
