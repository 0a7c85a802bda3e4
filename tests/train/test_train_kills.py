"""Killed at any moment, a training or a published run is whole after the next command, or as it was before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import draw, write_class_folders, write_image

# A process that has loaded everything forks a child for each moment: a file that takes its place, goes, or is flushed.
# What a child does ends there, as by kill -9; a second child does what the documents say next, and a third looks.
KILLS = """
import json, os, sys, traceback
from pathlib import Path
import torch
from edgecls.errors import RunError
from edgecls.options import from_flat
from edgecls.runs import LATEST, RESUME, RUNS, UNFINISHED, Run, find_run, write_text
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener
from edgecls.train.networks.pretrained import pretrained
from edgecls.train.options import PretrainedOptions
from edgecls.train.kinds.result import is_complete
from edgecls.train.kinds import single
from edgecls.train.run import resume, train

single.write_contact_sheet = lambda path, *_: write_text(path, "a sheet")  # drawing it takes most of the time
torch.set_num_threads(1)
values, step, base = json.loads(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
out, is_published = Path(values["out"]), "pretrained" in values
listener = Listener(on_measured=lambda run: write_text(run.path("figures/drawn.png"), "drawn"))


def first():
    if is_published:
        pretrained(PretrainedOptions(values["pretrained"], 32, out))
    else:
        train(from_flat(TrainOptions, values, "a test"), listener)


def then():
    if is_published:
        return out.exists() or first()
    try:
        resume(str(out), listener)
    except RunError as error:
        if "start anew" in str(error) or "no such run" in str(error):
            first()
        elif "its training has ended" not in str(error):
            raise


def forked(work, fatal=0):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        seen = 0

        def patched(real, does_nothing):
            def call(*arguments, **options):
                nonlocal seen
                seen += not does_nothing(*arguments)
                if fatal and seen == fatal:
                    os._exit(99)
                return real(*arguments, **options)
            return call

        for name in ("replace", "rename", "fsync", "unlink", "remove"):
            is_there = name in ("unlink", "remove")
            nothing = (lambda path, *_: not os.path.lexists(path)) if is_there else (lambda *_: False)
            setattr(os, name, patched(getattr(os, name), nothing))
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def look():
    runs = sorted(path.parent for path in out.rglob("manifest.json"))
    assert runs and all(is_published or is_complete(Run(run)) for run in runs), runs
    assert not list(out.rglob(".*.partial")) and not list(out.parent.glob(f".{out.name}.*"))
    assert not (out / RESUME).exists() and not (out / UNFINISHED).exists()
    # killed between its last two steps, a published run is whole, and has still to be called by its own name
    assert is_published or (RUNS / LATEST).resolve() == out.resolve(), "latest"
    for run in runs:
        files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        assert files - {"manifest.json"} == set(Run(run).manifest.files), files
    weights = [torch.load(run / "checkpoint.pt", weights_only=True) for run in runs]
    sums = [sum(float(each.double().abs().sum()) for each in state.values()) for state in weights]
    figures = [Run(run).manifest.metrics for run in runs]
    print(json.dumps([[run.relative_to(out).as_posix() for run in runs], sums, figures]), flush=True)


if base:
    assert forked(lambda: train(from_flat(TrainOptions, base, "a test"))) == 0
assert forked(first) == 0 and forked(look) == 0
fatal = step
while True:
    for path in (out, RUNS):
        os.system(f"rm -rf '{path}'")
    code = forked(first, fatal)
    if code == 0:
        break
    assert code == 99, code
    assert forked(then) == 0, fatal
    assert forked(look) == 0, fatal
    fatal += step
print(json.dumps(fatal // step - 1))
"""


def killed_everywhere(values: dict[str, Any], step: int = 1, base: dict[str, Any] | None = None) -> int:
    """Kill at every `step`-th moment; returns how many that were. All ends are compared with that of a whole run.

    Args:
        base: options of a training that comes before.
    """
    command = [sys.executable, "-c", KILLS, json.dumps(values), str(step), json.dumps(base)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    whole, *others, n_kills = map(json.loads, ended.stdout.splitlines())
    assert len(others) == n_kills
    assert all(other == whole for other in others)
    return int(n_kills)


QUICK = {"model": "linear", "image_size": 8, "epochs": 2, "batch_size": 8, "augment": ["none"], "device": "cpu"}


KINDS = [
    pytest.param({}, 1, 15, id="one model"),
    pytest.param({"folds": 2}, 12, 3, id="folds"),
    pytest.param({"extend": "base", "model": None, "image_size": None}, 9, 2, id="more classes"),
    pytest.param({"features": "base", "classifier": "logistic"}, 5, 2, id="scikit-learn"),
]


@pytest.mark.parametrize(("changes", "step", "fewest"), KINDS)
def test_a_training_killed_at_any_moment_is_whole_after_resume(
    tmp_path: Path, in_empty_folder: Path, changes: dict[str, Any], step: int, fewest: int
) -> None:
    data = write_class_folders(tmp_path / "photos", 4, size=8)
    values = {"data": str(data), "out": "run", **QUICK, **changes}
    base = None
    if changes.keys() & {"extend", "features"}:
        base = {"data": str(data), "out": "base", **QUICK}
    if "extend" in changes:
        values["data"] = str(tmp_path / "new")
        for index in range(4):
            write_image(tmp_path / "new" / "noise" / f"{index}.png", draw("stripes", 100 + index, 8))
    if "features" in changes:
        values = {name: values[name] for name in ("data", "out", "features", "classifier", "device")}
    values = {name: value for name, value in values.items() if value is not None}
    assert killed_everywhere(values, step, base) >= fewest


@pytest.mark.parametrize("out", ["published"])
def test_published_weights_killed_at_any_moment_are_a_run_after_the_same_command(
    in_empty_folder: Path, out: str
) -> None:
    assert killed_everywhere({"pretrained": "efficientnet_lite0", "out": out}, 3) >= 2
