"""Closed streams, a width of nothing, a working folder that is gone: one line each, or nothing noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import draw, write_image, write_linear_model

EDGECLS = f"{sys.executable} -m edgecls.cli"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    write_linear_model(root / "model.onnx")
    write_image(root / "photos" / "1.png", draw("checks", 1))
    return root


PREDICT = f"{EDGECLS} predict photos --model model.onnx --device cpu"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        pytest.param(f"{PREDICT} --out rows.csv >&-", 0, "", id="a table that nobody reads"),
        pytest.param(f"{PREDICT} --out rows.csv <&- 2>&-", 0, "", id="neither input nor errors"),
        pytest.param(f"{PREDICT} --out - >&-", 1, "error: standard output is closed", id="rows that would be lost"),
        pytest.param(f"{PREDICT} --json >&-", 1, "error: standard output is closed", id="a report that would be lost"),
        pytest.param(f"{PREDICT} --out - >/dev/full", 1, "error: cannot write standard output: No space", id="full"),
        pytest.param(f"{PREDICT} --out - 1</dev/null", 1, "error: cannot write standard output: Bad", id="read-only"),
        pytest.param(PREDICT.replace("photos", "-") + " <&-", 1, "error: standard input is closed", id="no list"),
    ],
)
def test_a_closed_stream_is_nothing_or_one_line(folder: Path, command: str, code: int, message: str) -> None:
    (folder / "rows.csv").unlink(missing_ok=True)
    ended = shell(command, folder)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert ended.stderr.startswith(message)
    assert not message or len(ended.stderr.splitlines()) == 1
    assert code or (folder / "rows.csv").read_text().count("\n") == 2


@pytest.mark.parametrize("columns", ["0", "1", "-1", "many"])
def test_a_width_that_is_none_does_not_hide_the_table(folder: Path, columns: str) -> None:
    ended = shell(f"{PREDICT} --out rows.csv", folder, COLUMNS=columns)
    assert ended.returncode == 0, ended.stderr
    assert "img/s" in ended.stdout


def test_a_working_folder_that_was_deleted_is_told(folder: Path) -> None:
    ended = shell(f"mkdir gone && cd gone && rmdir ../gone && {EDGECLS} predict {folder}/photos", folder)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: the working folder is gone")
    assert len(ended.stderr.splitlines()) == 1


def test_json_stays_one_object_where_the_other_streams_are_closed(folder: Path) -> None:
    ended = shell(f"{PREDICT} --out rows.csv --json <&- 2>&-", folder)
    assert json.loads(ended.stdout)["images"] == 1
