"""The whole way on a machine with no data and no network: scikit-learn's handwritten digits to INT8 answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from edgecls.errors import RunError, some
from edgecls.evaluate.training_plots import draw_training
from edgecls.export.options import ExportOptions
from edgecls.export.result import ExportResult
from edgecls.export.run import export
from edgecls.progress import Progress
from edgecls.runs import latest_kept
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions
from edgecls.runtime.predict import PredictReport, predict
from edgecls.tables.export import exported as exported_table
from edgecls.tables.predict import predicted as predicted_table
from edgecls.tables.train import epoch_line, trained
from edgecls.train.kinds.result import TrainResult
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener
from edgecls.train.recipe_options import AugmentOptions, NetworkOptions, RecipeOptions
from edgecls.train.run import train

_SIDE: Final = 32  # the 8 x 8 digits are enlarged to look like something
_TEST_SHARE: Final = 0.25
_DIGITS: Final = "digits"
_ROWS: Final = "predictions.csv"


@dataclass(frozen=True)
class DemoResult:
    """What the three commands gave."""

    training: TrainResult
    export: ExportResult
    prediction: PredictReport

    def to_json(self) -> dict[str, Any]:
        return {name: result.to_json() for name, result in vars(self).items()}


def demo(folder: Path, console: Console) -> DemoResult:
    """Write the digits as class folders, train a small CNN, export INT8, predict the held-out folder.

    `runs/latest` stays what it was: the user's next command is about the user's run.

    Args:
        folder: for the images, the run and the rows.
        console: for the tables that the three commands print.

    Raises:
        RunError: the folder cannot be written, or has something in it that is no demo's.
    """
    _expect_free(folder)
    try:
        digits = write_digits(folder / _DIGITS)
    except OSError as error:
        raise RunError(
            f"cannot write the demo into {folder}: {error.strerror}; name another folder with --out"
        ) from error
    run = _new_run(folder)
    rows = folder / _ROWS
    console.print(f"\n$ edgecls train {digits} --model cnn --augment shift --epochs 8 --out {run}")
    options = TrainOptions(
        digits,
        NetworkOptions(model="cnn"),
        recipe=RecipeOptions(epochs=8),
        augmentation=AugmentOptions(augment=("shift",)),
        out=run,
    )
    with latest_kept():
        result = train(
            options, Listener(console.print, lambda epoch: console.print(epoch_line(epoch)), on_measured=draw_training)
        )
    assert isinstance(result, TrainResult)  # no folds were asked for
    console.print(trained(result))
    console.print(f"\n$ edgecls export {run} --int8")
    exported = export(ExportOptions(str(run), int8=True), Progress(on_step=console.print))
    console.print(*exported_table(exported), sep="\n")
    console.print(f"\n$ edgecls predict {digits / 'test'} --model {run} --precision int8 --out {rows}")
    predicted = predict(
        PredictOptions(
            (digits / "test",),
            (str(run),),
            ClassifierOptions(precision="int8"),
            rows=RowsOptions(rows),
        )
    )
    console.print(*predicted_table(predicted), sep="\n")
    return DemoResult(result, exported, predicted)


def _expect_free(folder: Path) -> None:
    """Refuse a folder that is not an earlier demo's: its files would be written over."""
    try:
        names = {each.name for each in folder.iterdir() if not each.name.startswith(".")} if folder.exists() else set()
    except OSError as error:
        raise RunError(f"--out {folder}: {error.strerror}; name another folder") from error
    others = sorted(name for name in names if name != _DIGITS and not name.startswith((_ROWS, "run-")))
    if others or (names and _DIGITS not in names):
        found = some(others or sorted(names))
        raise RunError(f"--out {folder}: has other files in it ({found}); name a folder for the demo alone")


def _new_run(folder: Path) -> Path:
    """The first `run-N` that is not there yet: a second demo does not overwrite the first."""
    number = 1
    while (folder / f"run-{number}").exists():
        number += 1
    return folder / f"run-{number}"


def write_digits(root: Path) -> Path:
    """Write the 1,797 digits as `train/<digit>/*.png` and `test/<digit>/*.png`; returns `root`.

    Source: UCI "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998.
    """
    digits = load_digits()
    everything = np.arange(len(digits.target))
    train_rows, test_rows = train_test_split(everything, test_size=_TEST_SHARE, random_state=0, stratify=digits.target)
    for split, rows in (("train", train_rows), ("test", test_rows)):
        for row in sorted(rows.tolist()):
            folder = root / split / str(digits.target[row])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.rint(digits.images[row] * (255 / 16)).astype(np.uint8)  # stored as 0..16
            large = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
            (folder / f"{row:04d}.png").write_bytes(cv2.imencode(".png", large)[1].tobytes())
    return root
