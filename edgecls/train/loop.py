"""The training loop: Lightning's, with our losses, rates, records and best checkpoint."""

from __future__ import annotations

import csv
import ctypes
import logging
import math
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from torch import Tensor, nn

from edgecls.errors import TrainingError
from edgecls.runs import CHECKPOINT, HISTORY, atomic_path
from edgecls.train.checkpoint import save_checkpoint
from edgecls.train.models import PixelClassifier
from edgecls.train.pixels import Batches

Device = Literal["auto", "cpu", "cuda"]

_SGD_MOMENTUM: Final = 0.9


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one set of trainable weights.

    Attributes:
        name: `head` on cached features, or `all` weights on pixels.
        epochs: at most.
        lr: the peak learning rate; it rises to it over `warmup` of the steps and falls along a cosine.
        optimizer: `sgd` (Nesterov) from scratch, `adamw` from trained weights.
        weight_decay: of matrices and kernels; norms and biases have none.
        patience: epochs without a better validation accuracy before stopping; 0 never stops.
    """

    name: Literal["head", "all"]
    epochs: int
    lr: float
    optimizer: Literal["sgd", "adamw"]
    weight_decay: float
    label_smoothing: float = 0.1
    warmup: float = 0.2
    patience: int = 10


@dataclass(frozen=True)
class Epoch:
    """One row of `history.csv`. Accuracies are fractions; the losses are mean cross-entropies."""

    epoch: int
    phase: str
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


class Recorder:
    """What a run leaves behind while it trains: `history.csv` after every epoch, the best checkpoint so far."""

    def __init__(self, folder: Path, classifier: PixelClassifier, on_epoch: Callable[[Epoch], None]) -> None:
        self.epochs: list[Epoch] = []
        self.best: Epoch | None = None
        self._folder, self._classifier, self._on_epoch = folder, classifier, on_epoch

    def add(self, epoch: Epoch) -> None:
        if not math.isfinite(epoch.train_loss):
            raise TrainingError(
                f"training diverged: the loss is {epoch.train_loss} after epoch {epoch.epoch}. Use a lower --lr than "
                f"{epoch.lr:g}" + (f"; the best checkpoint so far is kept in {self._folder}" if self.best else "")
            )
        self.epochs.append(epoch)
        with atomic_path(self._folder / HISTORY) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
            writer.writeheader()
            writer.writerows(asdict(each) for each in self.epochs)
        # of two equal accuracies the lower loss is the better model
        if self.best is None or (epoch.val_accuracy, -epoch.val_loss) > (self.best.val_accuracy, -self.best.val_loss):
            self.best = epoch
            save_checkpoint(self._classifier, self._folder / CHECKPOINT)
        self._on_epoch(epoch)


class _Sums:
    """Loss and hits of an epoch, summed on the device: asking for a number at every step would stall a GPU."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0
        self.hits: Tensor | float = 0.0
        self.n = 0

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        self.loss = self.loss + loss.detach() * len(targets)
        self.hits = self.hits + (logits.detach().argmax(1) == targets).sum()
        self.n += len(targets)

    def means(self) -> tuple[float, float]:
        return float(self.loss) / max(self.n, 1), float(self.hits) / max(self.n, 1)


class _Training(L.LightningModule):
    def __init__(self, network: nn.Module, phase: Phase, n_steps: int, recorder: Recorder) -> None:
        super().__init__()
        self.network, self.phase, self.n_steps, self.recorder = network, phase, n_steps, recorder
        self.train_sums, self.val_sums, self.started = _Sums(), _Sums(), time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self.train_sums, self.started = _Sums(), time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        inputs, targets = batch
        logits = self.network(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.phase.label_smoothing)
        self.train_sums.add(loss, logits, targets)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.val_sums = _Sums()

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        inputs, targets = batch
        logits = self.network(inputs)
        self.val_sums.add(F.cross_entropy(logits, targets), logits, targets)

    def on_validation_epoch_end(self) -> None:
        self.log("val_accuracy", self.val_sums.means()[1], prog_bar=True)

    def on_train_epoch_end(self) -> None:
        (train_loss, train_accuracy), (val_loss, val_accuracy) = self.train_sums.means(), self.val_sums.means()
        self.recorder.add(
            Epoch(
                epoch=len(self.recorder.epochs) + 1,
                phase=self.phase.name,
                lr=self.trainer.optimizers[0].param_groups[0]["lr"],
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                seconds=time.perf_counter() - self.started,
            )
        )

    def configure_optimizers(self) -> Any:
        weights = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": self.phase.weight_decay},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if self.phase.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, self.phase.lr, momentum=_SGD_MOMENTUM, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, self.phase.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.phase.lr, total_steps=self.n_steps, pct_start=self.phase.warmup, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class LoopOptions:
    """Where and how the loop runs, apart from what it learns.

    Attributes:
        device: `auto` is a CUDA GPU where there is one.
        progress: show a progress bar on standard error.
    """

    device: Device = "auto"
    progress: bool = False

    @property
    def resolved_device(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


def fit(
    network: nn.Module, train: Batches, val: Batches, phase: Phase, recorder: Recorder, options: LoopOptions
) -> None:
    """Train `network` in place for one phase; the recorder keeps the history and the best checkpoint.

    Raises:
        TrainingError: the loss is no longer finite.
        KeyboardInterrupt: the user stopped it; the best checkpoint is on disk.
    """
    callbacks: list[L.Callback] = []
    if phase.patience:
        callbacks.append(EarlyStopping("val_accuracy", mode="max", patience=phase.patience, check_finite=False))
    if options.progress:
        callbacks.append(RichProgressBar(leave=False, console_kwargs={"stderr": True}))
    with tempfile.TemporaryDirectory(prefix="edgecls-") as scratch, _quiet():
        trainer = L.Trainer(
            accelerator=options.resolved_device,
            devices=1,
            precision=autocast_precision(network, options.resolved_device),  # type: ignore[arg-type]
            max_epochs=phase.epochs,
            callbacks=callbacks,
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            num_sanity_val_steps=0,
            default_root_dir=scratch,
        )
        try:
            trainer.fit(_Training(network, phase, phase.epochs * len(train), recorder), train, val)
        except SystemExit as end:  # what Lightning makes of Ctrl-C, after it has set the signal to be ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from end


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next step, where it would give it back to the system.

    Every step allocates the same large tensors; handing their pages back and faulting them in anew cost a quarter
    of the time of ResNet-9 on two cores (1,010 against 1,320 img/s at width 16, nothing at width 32). Does nothing
    where the C library is another one. Source: mallopt(3).
    """
    m_trim_threshold, m_mmap_threshold, as_large_as_int = -1, -3, 2**31 - 1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, as_large_as_int)


def autocast_precision(network: nn.Module, device: Literal["cpu", "cuda"]) -> str:
    """Lightning's name of the precision that trains fastest here.

    bf16 on a GPU, and on CPUs whose matrix units (AMX) compute it: 1.9 times as fast there as fp32 for ResNet-9
    (1,100 against 590 img/s on two cores). Depthwise networks lose by it even
    there (EfficientNet-Lite0 at 224 px: 7.0 and 8.3 against 9.3 and 10.0), and without AMX so did most others.
    """
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    is_grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    return "bf16-mixed" if _has_amx() and not is_grouped else "32-true"


def _has_amx() -> bool:
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's start-up messages and its advice about DataLoaders (we pass none) off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
