"""Who else gets the figures of every epoch: TensorBoard always, MLflow and Weights & Biases where asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from edgecls.errors import MissingExtra
from edgecls.options import flat
from edgecls.train.options import TrainOptions

TENSORBOARD: Final = "tensorboard"
_PROJECT: Final = "edgecls"


def make_loggers(options: TrainOptions, folder: Path) -> tuple[Logger, ...]:
    """Lightning's loggers for a run; `history.csv` is written besides.

    Addresses and keys are those of the trackers' own environment variables (MLFLOW_TRACKING_URI, WANDB_API_KEY,
    WANDB_MODE).

    Raises:
        MissingExtra: a tracker is not installed.
    """
    loggers: list[Logger] = [TensorBoardLogger(folder, name="", version=TENSORBOARD, default_hp_metric=False)]
    for name in options.machine.track:
        try:
            if name == "mlflow":
                loggers.append(MLFlowLogger(_PROJECT, run_name=folder.name))
            else:
                loggers.append(WandbLogger(name=folder.name, project=_PROJECT, save_dir=folder))
        except ModuleNotFoundError as error:
            raise MissingExtra(f"--track {name}", name) from error
    for logger in loggers:
        logger.log_hyperparams(flat(options))
    return tuple(loggers)
