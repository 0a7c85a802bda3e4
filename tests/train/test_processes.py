"""Two processes that train together over gloo get the figures of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import rows_of, write_image

# no batch norm, whose statistics are those of a process's own part of the batch, and no augmentation, whose draws are
COMMON = [
    "--model", "cnn", "--width", "4", "--image-size", "16", "--batch-norm", "none", "--augment", "none",
    "--epochs", "3", "--batch-size", "8", "--device", "cpu", "--precision", "fp32", "--dropout", "0",
    "--lr", "0.05", "--json",
]  # fmt: skip


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended


@pytest.fixture
def data(photos: Path) -> Path:
    write_image(photos / "checks" / "odd.png", np.zeros((20, 20, 3), np.uint8))  # parts of two lengths
    return photos


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_get_the_figures_of_one(in_empty_folder: Path, data: Path, launcher: str) -> None:
    train = [sys.executable, "-m", "edgecls.cli", "train", str(data), *COMMON]
    alone = json.loads(run([*train, "--out", "alone"], in_empty_folder).stdout)
    together = [*train, "--devices", "2", "--strategy", "ddp", "--out", "together"]
    if launcher == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]
        together = [*start, *together[1:]]
    printed = run(together, in_empty_folder).stdout.strip().splitlines()
    assert len(printed) == 1  # one of them speaks
    both = json.loads(printed[0])
    assert both["validation_accuracy"] == alone["validation_accuracy"]
    one, two = (rows_of(in_empty_folder / name / "history.csv") for name in ("alone", "together"))
    assert len(one) == len(two) == 3
    for row, other in zip(one, two, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=1e-5), (row["epoch"], name)
