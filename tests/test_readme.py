"""What the README promises is run, not believed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from edgecls.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Every line of the README that calls edgecls, without its comment and what it is piped into."""
    lines = re.findall(r"^ {4}(edgecls .*)$", README, re.MULTILINE)
    return [shlex.split(line.split("#")[0].split("|")[0])[1:] for line in lines]


def test_the_readme_shows_the_three_commands() -> None:
    assert {arguments[0] for arguments in commands()} >= {"train", "export", "predict"}


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_in_the_readme_names_flags_that_exist(arguments: list[str]) -> None:
    command = get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in arguments[1:] if word.startswith("--")} <= known


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_relative_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_python_example_runs(
    exported_run: Path, photos: Path, in_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(exported_run)
    shutil.copy(photos / "checks" / "0.png", "a.jpg")  # told by content, not by suffix
    Path("b.jpg").write_bytes(b"")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "a.jpg checks" in printed
    assert "b.jpg could not be read: the file is empty" in printed


def test_the_predict_commands_of_the_readme_run(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    Path("runs").mkdir()
    Path("runs/latest").symlink_to(exported_run)
    for name in "abc":
        Path(f"runs/{name}").symlink_to(exported_run)
    clip = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for level in range(0, 250, 25):
        clip.write(np.full((48, 64, 3), level, np.uint8))
    clip.release()
    shutil.copytree(photos, "folder")
    shutil.copy(photos / "checks" / "0.png", "a.jpg")
    shutil.copy(photos / "checks" / "1.png", "b.png")
    shutil.copy(exported_run / "model.int8-cpu.onnx", "model.int8-cpu.onnx")
    ran = 0
    for arguments in commands():
        if arguments[0] in ("plan", "predict", "merge"):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, (arguments, result.output)
            ran += 1
    assert ran >= 10
    assert Path("predictions.parquet").exists()
    assert Path("predictions.csv").exists()
    assert len(Path("rows.jsonl").read_text().splitlines()) == 2
