"""A training is never worse than its head, and one that learns nothing says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecls.errors import Collapsed
from edgecls.options import from_flat
from edgecls.runs import Run, read_json
from edgecls.train.kinds.result import TrainResult
from edgecls.train.networks.checkpoint import load_checkpoint
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener
from edgecls.train.run import train
from tests.conftest import rows_of

FINE = {"model": "efficientnet_lite0", "image_size": 32, "epochs": 6, "freeze_epochs": 4, "val_fraction": 0.5}


def trained(data: Path, lines: list[str], **changes: Any) -> TrainResult:
    values = {"data": str(data), "device": "cpu", "batch_size": 4, "out": "run", **changes}
    result = train(from_flat(TrainOptions, values, "a test"), Listener(lines.append))
    assert isinstance(result, TrainResult)
    return result


@pytest.mark.parametrize("rate", [5.0, 90.0], ids=["falls behind", "diverges, perhaps"])
def test_fine_tuning_that_falls_behind_the_head_begins_again_at_a_lower_rate_and_is_never_worse(
    in_empty_folder: Path, photos: Path, rate: float
) -> None:
    lines: list[str] = []
    result = trained(photos, lines, **FINE, fine_tune_lr=rate)
    (told,) = [line for line in lines if "begins again from epoch" in line]
    assert "fell behind the head" in told or "diverged" in told
    assert f"at a rate of {rate / 4:.2g} in place of {rate:.2g}" in told
    history = rows_of(Path("run/history.csv"))
    head = max(float(row["val_accuracy"]) for row in history if row["phase"] == "head")
    assert sum(row["phase"] == "all" for row in history) <= 1  # noticed within an epoch
    assert result.validation_accuracy >= head
    assert load_checkpoint(Run(Path("run"))).n_classes == 2
    assert read_json(Path("run/recipe.json"))["options"]["fine_tune_lr"] == rate


def test_fine_tuning_that_keeps_up_does_not_begin_again(in_empty_folder: Path, photos: Path) -> None:
    lines: list[str] = []
    trained(photos, lines, **FINE, fine_tune_lr=1e-6)
    assert not [line for line in lines if "begins again" in line]
    assert [row["phase"] for row in rows_of(Path("run/history.csv"))] == ["head"] * 4 + ["all"] * 2


# decay takes all weights to zero within a few steps: what is left answers by its biases alone
DECAYED = {"model": "cnn", "width": 4, "image_size": 16, "optimizer": "sgd", "lr": 0.5, "weight_decay": 0.99}


def test_a_training_that_collapses_ends_with_advice(in_empty_folder: Path, photos: Path) -> None:
    with pytest.raises(Collapsed, match=r"all validation images have been given one class.*lower rate than 0.5 \(--lr"):
        trained(photos, [], **DECAYED, epochs=40, batch_size=2, patience=0, warmup=0.1)
    assert len(rows_of(Path("run/history.csv"))) < 40
    assert Path("run/checkpoint.pt").is_file()
