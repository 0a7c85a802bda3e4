"""An export that is killed anywhere leaves the run as it was, or whole after the next command."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecls import runs as pending
from edgecls.errors import RunError
from edgecls.export.staging import commit, commit_report, staging
from edgecls.runs import EXPORT, MANIFEST, MODEL_FILES, Run, find_run, hashes_of, sha256_of, write_json
from edgecls.runtime.classifier import Classifier

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

_KILLED = 77
_CALLS = [(os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (os, "remove")]


@pytest.fixture
def run(exported_run: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(exported_run, tmp_path / "run")))


def export_again(run: Run) -> None:
    """The end of an export whose files differ from the old ones, but for one that it does not make."""
    with staging(run) as staged:
        for name in MODEL_FILES.values():
            if name != "model.fp16.onnx":
                (staged / name).write_bytes(run.path(name).read_bytes())
        report = json.loads(run.path(EXPORT).read_text())
        write_json(staged / EXPORT, {**report, "reason": "new"})
        commit(staged, run, run.manifest.temperature)


def report_again(run: Run) -> None:
    """What follows once an engine was built."""
    commit_report({**json.loads(run.path(EXPORT).read_text()), "reason": "new"}, run)


def killed_at(call: int, work: Callable[[Run], None], run: Run) -> bool:
    """Do the work in a child that dies at the n-th call that changes a name; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = [call]
        for module, name in _CALLS:
            setattr(module, name, _dying(getattr(module, name), left))
        work(run)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, _KILLED)
    return status == _KILLED


def _dying(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os._exit(_KILLED)
        return real(*arguments, **options)

    return call


def is_consistent(run: Run) -> bool:
    return dict(run.manifest.files) == hashes_of(run.folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("work", [export_again, report_again])
def test_a_kill_at_any_call_leaves_the_old_run_or_the_new_one(
    run: Run, tmp_path: Path, work: Callable[[Run], None]
) -> None:
    was, seen = hashes_of(run.folder), set()
    for call in range(1, 100):
        copy = Run(Path(shutil.copytree(run.folder, tmp_path / f"killed-{call}")))
        if not killed_at(call, work, copy):
            break
        found = find_run(copy.folder)  # what every command begins with
        assert is_consistent(found)
        now = hashes_of(found.folder)
        is_new = json.loads(found.path(EXPORT).read_text())["reason"] == "new"
        assert is_new or now == was
        if work is export_again:
            assert found.path("model.fp16.onnx").exists() != is_new
        seen.add(is_new)
        with staging(found):  # and what the next export does
            pass
        assert not [path for path in found.folder.iterdir() if path.name.startswith(".")]
    assert call > 5
    assert seen == {False, True}


def test_predict_goes_on_where_an_export_was_killed(run: Run) -> None:
    ready = run.path(".pending")
    ready.mkdir()
    (ready / "model.fp16.onnx.gone").touch()
    report = json.loads(run.path(EXPORT).read_text())
    write_json(ready / EXPORT, {**report, "reason": "new"})
    run.path(EXPORT).write_text("what the kill found")
    with Classifier.open(run.folder, precision="fp32", device="cpu") as classifier:
        assert classifier.precision == "fp32"
    assert json.loads(run.path(EXPORT).read_text())["reason"] == "new"
    assert not run.path("model.fp16.onnx").exists()
    assert not ready.exists()


def test_an_export_takes_its_turn_behind_one_that_was_killed(run: Run) -> None:
    ready = run.path(".pending")
    ready.mkdir()
    (ready / "model.int8.onnx.gone").touch()
    digest = sha256_of(run.path("model.int8.onnx"))
    with staging(run) as staged:
        (staged / "model.int8.onnx").write_bytes(run.path("model.int8.onnx").read_bytes())
        pending.publish(staged, run.folder)
    assert sha256_of(run.path("model.int8.onnx")) == digest
    assert not ready.exists()


def test_a_folder_that_cannot_be_written_is_called_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.path(".pending").mkdir()
    (run.path(".pending") / EXPORT).write_text("{}")

    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match=r"the last export was stopped .* make the folder writable"):
        find_run(run.folder)
    assert run.path(MANIFEST).exists()
