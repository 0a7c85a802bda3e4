"""Killed at any moment, an adopted run is whole after the same command, or as it was before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgecls.errors import RunError
from edgecls.export.adopt.run import adopt
from edgecls.export.options import AdoptOptions
from edgecls.runs import Run
from tests.export.adopt.test_adopt import write_labels, write_model

# A process that has loaded and computed everything forks a child for each moment: a file that takes its place, goes, or
# is flushed. Another child does the same command again, and a third looks.
KILLS = """
import json, os, sys, traceback
from pathlib import Path
from edgecls.export.adopt import run as module
from edgecls.export.adopt.run import adopt
from edgecls.export.options import AdoptOptions
from edgecls.runs import LATEST, RUNS, Run, hashes_of


def once(work):
    found = []

    def remembered(*arguments):
        if not found:
            found.append(work(*arguments))
        return found[0]
    return remembered


for name in ("photo_crops", "answer_of", "merge", "_prove"):  # all but the writing is done once
    setattr(module, name, once(getattr(module, name)))
out = Path("run") if sys.argv[1] == "named" else None


def first():
    adopt(AdoptOptions(Path("theirs.onnx"), Path("labels.txt"), mean=(0, 0, 0), std=(1, 1, 1), out=out))


def forked(work, fatal=0):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        seen = 0

        def patched(real):
            def call(*arguments, **options):
                nonlocal seen
                seen += 1
                if seen == fatal:
                    os._exit(99)
                return real(*arguments, **options)
            return call

        for name in ("replace", "rename", "fsync", "unlink", "remove", "symlink", "mkdir", "rmdir"):
            setattr(os, name, patched(getattr(os, name)))
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def runs():
    return [path.parent for path in Path.cwd().rglob("manifest.json") if not path.parent.name.startswith(".")]


def is_whole():
    assert all(Run(run).manifest.files == hashes_of(run) for run in runs())


def look():
    is_whole()
    latest = (RUNS / LATEST).resolve()
    assert latest in [run.resolve() for run in runs()], latest
    assert not list(Path.cwd().rglob(".*.partial")), list(Path.cwd().rglob(".*.partial"))


first()
fatal = 0
while True:
    fatal += 1
    os.system("rm -rf run runs")
    code = forked(first, fatal)
    assert code in (0, 99), code
    assert forked(is_whole) == 0, fatal
    assert forked(first) == 0, fatal
    assert forked(look) == 0, fatal
    if code == 0:
        break
print(json.dumps(fatal - 1))
"""


def test_adopt_killed_anywhere_is_whole_after_the_same_command(in_empty_folder: Path) -> None:
    write_model(in_empty_folder / "theirs.onnx")
    write_labels(in_empty_folder / "labels.txt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for out in ("named", "by time"):
        command = [sys.executable, "-c", KILLS, out]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert json.loads(ended.stdout) >= 5  # golden answers, manifest, the run, `latest`, temporary files


def test_the_same_command_again_finds_its_run_and_another_does_not(in_empty_folder: Path) -> None:
    write_model(in_empty_folder / "theirs.onnx")
    labels = write_labels(in_empty_folder / "labels.txt")
    options = AdoptOptions(Path("theirs.onnx"), labels, mean=(0, 0, 0), std=(1, 1, 1), out=Path("run"))
    adopt(options)
    before = Run(Path("run")).manifest
    assert adopt(options).run == Path("run")
    assert Run(Path("run")).manifest == before
    with pytest.raises(RunError, match="exists and is not empty"):
        adopt(replace(options, mean=(0.5, 0.5, 0.5)))
