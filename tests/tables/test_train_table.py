"""What a training prints of its epochs."""

from __future__ import annotations

import pytest

from edgecls.tables.train import epoch_line
from edgecls.train.progress import Epoch


@pytest.mark.parametrize(
    ("share", "loss", "seconds"), [(1.0, 0.1, 100.0), (0.97619, 0.4494, 15.04), (0.05, 4.2, 0.04), (0.999, 1.0, 3599.6)]
)
@pytest.mark.parametrize("phase", ["head", "all", "retry"])
def test_the_line_of_an_epoch_fits_into_eighty_columns(phase: str, share: float, loss: float, seconds: float) -> None:
    epoch = Epoch(36, phase, 1e-3, loss, share, loss, share, share, share, seconds)  # type: ignore[arg-type]
    assert len(epoch_line(epoch)) <= 80


def test_the_line_of_an_epoch_says_what_it_gave() -> None:
    line = epoch_line(Epoch(21, "all", 5e-4, 0.449, 0.973, 0.5, 0.958, 0.957, 0.95, 15.04))
    assert line == "epoch 21 all   loss 0.449, training 97.3, validation 95.8, recall 95.7 %, 15 s"
