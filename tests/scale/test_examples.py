"""The examples of docs/scale.md: the one for GNU parallel is run, the others are read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml
from typer.main import get_command

import edgecls
from edgecls.cli import app
from edgecls.scale.merge import merge
from edgecls.scale.options import MergeOptions, PlanOptions
from edgecls.scale.plan import make_plan
from tests.conftest import draw, write_image, write_linear_model

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
BASH: Final = shutil.which("bash")


def known(command: str) -> set[str]:
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {name for parameter in parameters for name in parameter.opts}


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize("name", ["slurm.sh", "parallel.sh"])
def test_scripts_are_bash_and_their_flags_exist(name: str) -> None:
    assert BASH
    assert subprocess.run([BASH, "-n", EXAMPLES / name], capture_output=True, text=True).stderr == ""
    line = next(line for line in (EXAMPLES / name).read_text().splitlines() if "edgecls predict" in line)
    assert {word for word in line.split() if word.startswith("--")} <= known("predict")


def test_the_job_of_kubernetes_is_indexed_and_its_flags_exist() -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["sh", "-c"]
    program, command, *words = container["args"][0].split()
    assert (program, command) == ("edgecls", "predict")
    assert {word for word in words if word.startswith("--")} <= known("predict")
    assert f'"$JOB_COMPLETION_INDEX/{job["spec"]["completions"]}"' in words


@pytest.mark.skipif(shutil.which("parallel") is None, reason="no GNU parallel: install Debian's package parallel")
def test_parallel_does_all_shards(tmp_path: Path) -> None:
    assert BASH
    pytest.importorskip("pyarrow")
    for number in range(20):
        write_image(tmp_path / "photos" / f"{number}.png", draw("stripes", number))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    model = write_linear_model(tmp_path / "model.onnx")
    make_plan(PlanOptions(str(tmp_path / "photos"), tmp_path / "the plan", 6))
    program = tmp_path / "bin" / "edgecls"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgecls.cli "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(edgecls.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [BASH, EXAMPLES / "parallel.sh", "the plan", str(model)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr  # one picture cannot be read
    assert "complete: every input has exactly one row" in " ".join(done.stdout.split())
    assert merge(MergeOptions(tmp_path / "the plan")).again == ()
