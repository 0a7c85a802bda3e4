"""The training loop: Lightning's, with our losses, rates, records and best checkpoint."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgecls.errors import Collapsed, OptionError, RunError
from edgecls.runs import RESUME
from edgecls.train.data.batches import Batch, Batches, generator_of
from edgecls.train.fit.lookahead import Lookahead
from edgecls.train.fit.losses import Loss
from edgecls.train.fit.optimizers import OptimizerOptions, make_optimizer, make_plateau, make_schedulers
from edgecls.train.fit.pace import Pace
from edgecls.train.fit.recorder import KEPT, Recorder, kept_progress, without_improvement
from edgecls.train.fit.scores import Counts, Sums, Validated
from edgecls.train.machine import lightning_precision, resolved_device
from edgecls.train.networks.checkpoint import write_tensors
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.networks.stages import set_training_mode
from edgecls.train.options import MachineOptions
from edgecls.train.progress import Epoch, PhaseName, Progress

_SAVING_SHARE: Final = 0.05  # of the time may go into checkpoints to resume from

Logits = Callable[[PixelClassifier, Tensor], Tensor]  # a batch of inputs -> (n, n_classes)


@dataclass(frozen=True)
class Phase:
    """One stretch of training with one set of trainable weights.

    Attributes:
        name: `head` on cached features; `all` weights (or those unfrozen) on pixels; or `retry`, the same from the best
            weights at a lower rate.
        title: what is trained, for progress bars.
        pace: how many epochs, at most, and how far the schedule is after each.
        scales: rate of a weight as a share of the peak; 1 for those not in it.
        logits: how a batch becomes logits.
        keeps_statistics: whether the batch norms of the backbone stay in evaluation mode.
        floor: score of the validation images below which the phase has fallen behind and stops; None for none.
        guessing_loss: what a network that knows nothing but the classes' shares loses; None where it is not known.
        patience: epochs without a better score before stopping; 0 never stops.
        clip: largest norm of the gradient; 0 for no limit.
        accumulate: batches whose gradients make one step.
        ema: decay of the moving average of the weights that validates and is kept; 0 for none.
        lookahead: steps between returns to the slow weights; 0 never returns.
    """

    name: PhaseName
    title: str
    pace: Pace
    optimizer: OptimizerOptions
    seed: int
    scales: Mapping[nn.Parameter, float] = field(default_factory=dict)
    logits: Logits = lambda classifier, inputs: classifier(inputs)
    keeps_statistics: bool = False
    floor: float | None = None
    guessing_loss: float | None = None
    patience: int = 10
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    lookahead: int = 0

    def is_over(self, recorder: Recorder) -> bool:
        """Whether the history has all epochs of this phase, or the one at which it stopped early."""
        done = recorder.of_phase(self.name)
        return (
            self.pace.is_over(len(done))
            or 0 < self.patience <= without_improvement(done, recorder.monitor)
            or self.has_fallen_behind(recorder)
        )

    def has_fallen_behind(self, recorder: Recorder) -> bool:
        """Whether the last epoch of this phase is worse than the head was, by more than chance explains."""
        done = recorder.of_phase(self.name)
        return bool(done) and self.floor is not None and done[-1].score(recorder.monitor) < self.floor


@dataclass(frozen=True)
class LoopOptions:
    """Where and how the loop runs, apart from what it learns.

    Attributes:
        folder: of the run, for what a killed run resumes from; None for none.
        loggers: Lightning's; they get the figures of every epoch.
        on_progress: called after every batch.
    """

    machine: MachineOptions = MachineOptions()
    folder: Path | None = None
    loggers: tuple[Logger, ...] = ()
    on_progress: Callable[[Progress], None] = lambda progress: None


_NEARLY: Final = 0.97  # of the loss of guessing: what a network that has learnt nothing stays at
_COLLAPSED_EPOCHS: Final = 3  # and as many steps, or slow beginners of a few pictures would be taken for collapsed
_COLLAPSED_STEPS: Final = 100


class Training(L.LightningModule):
    """One phase as Lightning runs it."""

    def __init__(
        self, classifier: PixelClassifier, phase: Phase, batches: tuple[Batches, Batches], loss: Loss,
        recorder: Recorder, on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classifier, self.phase, self.recorder, self.on_progress = classifier, phase, recorder, on_progress
        self.train_batches, self.val_batches = batches
        self._loss = (loss,)  # in a tuple, so that a teacher's weights are not part of the checkpoint
        self.train_sums, self.val_counts = Sums(), Counts(classifier.n_classes)
        self.started = self.began = time.perf_counter()
        self.n_before = 0  # epochs of this phase that another process has trained
        self.validated: Validated | None = None
        self.n_guessing = 0  # epochs in a row that learnt nothing
        self.plateau: ReduceLROnPlateau | None = None
        self.kept_plateau: dict[str, Any] = {}
        self.lookahead = Lookahead(phase.lookahead, phase.pace.at) if phase.lookahead else None
        self.average: AveragedModel | None = None
        if phase.ema:
            averaging = get_ema_multi_avg_fn(phase.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(classifier, multi_avg_fn=averaging, use_buffers=True).requires_grad_(False)

    @property
    def n_steps(self) -> int:
        return self.phase.pace.epochs * self.phase.pace.steps

    @property
    def n_done(self) -> int:
        """Epochs of this phase that are recorded."""
        return len(self.recorder.of_phase(self.phase.name))

    @property
    def judged(self) -> PixelClassifier:
        """The weights that validate and are kept."""
        return self.classifier if self.average is None else cast(PixelClassifier, self.average.module)

    def setup(self, stage: str) -> None:
        part = (self.trainer.global_rank, self.trainer.world_size)
        self.train_batches.part = self.val_batches.part = part

    def on_fit_start(self) -> None:
        self._loss[0].to(self.device)
        self.began, self.n_before = time.perf_counter(), self.n_done

    def on_train_epoch_start(self) -> None:
        # dropout draws from the global generator: seeded anew in every epoch, a resumed run draws the same
        epoch = self.train_batches.epoch = len(self.recorder.epochs)
        torch.manual_seed(generator_of(self.phase.seed, epoch, self.global_rank).initial_seed())
        set_training_mode(self.classifier, keeps_statistics=self.phase.keeps_statistics)
        self.phase.pace.begin(self.n_done)
        self.train_sums, self.started = Sums(), time.perf_counter()

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        logits = self.phase.logits(self.classifier, batch.inputs)
        loss = self._loss[0](logits, batch.targets, batch.inputs)
        self.train_sums.add(loss, logits, batch.targets)
        weighed: Tensor = loss * batch.weight
        return weighed

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        if self.lookahead:
            self.lookahead.step(self.classifier, self.trainer.global_step + 1)
        if self.average is not None:
            self.average.update_parameters(self.classifier)

    def on_train_batch_end(self, _outputs: object, _batch: object, index: int) -> None:
        now, pace = time.perf_counter(), self.phase.pace
        share = self.n_done + (index + 1) / len(self.train_batches)
        left = (now - self.began) * (pace.epochs - share) / (share - self.n_before)
        if pace.deadline is not None:
            left = max(pace.deadline - now, 0.0)
        n_images = len(self.train_batches) * self.train_batches.batch_size
        self.on_progress(
            Progress(
                f"epoch {len(self.recorder.epochs) + 1} of {len(self.recorder.epochs) - self.n_done + pace.epochs}, "
                f"{self.phase.title}",
                round(share * n_images), pace.epochs * n_images,
                self.train_sums.n * self.trainer.world_size / (now - self.started), left,
            )
        )  # fmt: skip

    def on_validation_epoch_start(self) -> None:
        self.val_counts = Counts(self.classifier.n_classes)

    def validation_step(self, batch: Batch, _index: int) -> None:
        if len(batch.targets):  # the last batch may have none for this process
            self.val_counts.add(self.phase.logits(self.judged, batch.inputs).float(), batch.targets)

    def on_validation_epoch_end(self) -> None:
        self.validated = self.val_counts.figures(self.trainer)
        self.log("val_loss", self.validated.loss)
        self.log("val_accuracy", self.validated.accuracy)
        self.log("val_recall", self.validated.recall)
        self.log("val_f1", self.validated.f1)

    def on_train_epoch_end(self) -> None:
        train_loss, train_accuracy = self.train_sums.means(self.trainer)
        self.log_dict({"train_loss": train_loss, "train_accuracy": train_accuracy})
        validated = self.validated
        assert validated  # Lightning validates before this
        epoch = Epoch(
            epoch=len(self.recorder.epochs) + 1,
            phase=self.phase.name,
            lr=self.trainer.optimizers[0].param_groups[0]["lr"],
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=validated.loss,
            val_accuracy=validated.accuracy,
            val_recall=validated.recall,
            val_f1=validated.f1,
            seconds=time.perf_counter() - self.started,
        )
        self.recorder.add(epoch, self.judged)
        if self.plateau:
            self.plateau.step(validated.loss)
        self.phase.pace.adapt(self.n_done, epoch.seconds)
        self._watch(epoch, validated)
        if self.phase.is_over(self.recorder):
            self.trainer.should_stop = True

    def _watch(self, epoch: Epoch, validated: Validated) -> None:
        """Count the epochs in a row that learnt nothing once the rate has risen.

        Raises:
            Collapsed: several in a row: one class is answered for all images, and the loss is that of guessing.
        """
        guessing, pace = self.phase.guessing_loss, self.phase.pace
        has_learnt = guessing is None or validated.n_answered > 1 or epoch.train_loss < _NEARLY * guessing
        is_rising = pace.ends[self.n_done - 1] <= self.phase.optimizer.warmup
        self.n_guessing = 0 if has_learnt or is_rising else self.n_guessing + 1
        if self.n_guessing >= max(_COLLAPSED_EPOCHS, _COLLAPSED_STEPS / pace.steps):
            raise Collapsed(
                f"training collapsed: for {self.n_guessing} epochs all validation images have been given one class, "
                f"and the loss stays at {epoch.train_loss:.3f}, which guessing by the classes' shares has too. Use a "
                f"lower rate than {self.phase.optimizer.lr:g} (--lr, --fine-tune-lr), or --clip 1"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        plateau = self.plateau.state_dict() if self.plateau else {}
        slow = self.lookahead.slow if self.lookahead else ()
        checkpoint[KEPT] = {
            "phase": self.phase.name, "epochs": self.recorder.rows(), "plateau": plateau, "slow": slow,
            "pace": [self.phase.pace.epochs, *self.phase.pace.ends],
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.recorder.restore(checkpoint[KEPT]["epochs"])
        self.kept_plateau = checkpoint[KEPT]["plateau"]
        self.phase.pace.epochs, *self.phase.pace.ends = checkpoint[KEPT]["pace"]
        if self.lookahead:
            self.lookahead.slow = checkpoint[KEPT]["slow"]

    def configure_optimizers(self) -> Any:  # Lightning loads what was kept before this, and the optimiser's part after
        optimizer = make_optimizer(self.classifier, self.phase.optimizer, self.phase.scales)
        if self.phase.optimizer.schedule == "plateau":
            self.plateau = make_plateau(optimizer)
            self.plateau.load_state_dict(self.kept_plateau)
        return [optimizer], make_schedulers(optimizer, self.phase.optimizer, self.n_steps, self.phase.pace.at)


class _AtomicFiles(TorchCheckpointIO):
    """Writes beside the old file, on the same disk; Lightning writes in the temporary folder and copies."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_tensors(checkpoint, Path(path))


class _Resumable(Checkpoint):
    """Keeps what a killed run goes on from: as often as it costs little, and when a phase is over."""

    def __init__(self, path: Path) -> None:
        self.path, self.saved_at, self.cost = path, 0.0, 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = time.perf_counter()
        is_due = not self.cost or now - self.saved_at >= self.cost / _SAVING_SHARE or trainer.should_stop
        if not trainer.strategy.broadcast(is_due):  # processes that train together save together, or wait for ever
            return
        try:
            trainer.save_checkpoint(self.path)
        except OSError as error:  # of sharded strategies, which write by themselves
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error
        self.saved_at = time.perf_counter()
        self.cost = self.saved_at - now


def fit(
    classifier: PixelClassifier, batches: tuple[Batches, Batches], phase: Phase, loss: Loss, recorder: Recorder,
    options: LoopOptions,
) -> None:  # fmt: skip
    """Train `classifier` in place for one phase; the recorder keeps the history and the best checkpoint.

    Where the folder holds what a killed run left in this phase, training goes on from there.

    Args:
        batches: of training and of validation; features in the phase `head`, else pixels.

    Raises:
        TrainingError: the loss is no longer finite.
        Collapsed: nothing is learnt.
        RunError: the folder cannot be written to.
        KeyboardInterrupt: the user stopped it; the best checkpoint is on disk.
    """
    training = Training(classifier, phase, batches, loss, recorder, options.on_progress)
    callbacks: list[L.Callback] = []
    path = options.folder / RESUME if options.folder else None
    if path:
        callbacks.append(_Resumable(path))
    with quiet():
        trainer = make_trainer(training, callbacks, options)
        is_midway = path is not None and path.is_file() and kept_progress(path)[0] == phase.name
        try:
            trainer.fit(training, *batches, ckpt_path=path if is_midway else None)
        except SystemExit as end:  # what Lightning makes of Ctrl-C, after it has set the signal to be ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from end


def check_strategy(machine: MachineOptions) -> None:
    """Refuse, before anything is read, a strategy that Lightning does not know or cannot use here.

    Raises:
        OptionError: with its reason.
    """
    if machine.strategy == "auto":
        return
    try:
        with quiet():
            L.Trainer(
                accelerator=resolved_device(machine), devices=machine.devices, num_nodes=machine.nodes,
                strategy=machine.strategy, logger=False, enable_progress_bar=False, enable_checkpointing=False,
            )  # fmt: skip
    except OptionError:
        raise
    except Exception as error:  # Lightning raises what its packages do: of values, types, imports and its own
        reason = " ".join(str(error).split())[:200]
        raise OptionError(
            f"--strategy {machine.strategy}: Lightning refuses it ({reason}); leave it out for one device, or use ddp "
            "for several"
        ) from error


def make_trainer(
    training: Training, callbacks: list[L.Callback], options: LoopOptions, scratch: str | None = None
) -> L.Trainer:
    """Lightning's trainer for one phase; `scratch` is where Lightning itself may write."""
    machine, phase = options.machine, training.phase
    device = resolved_device(machine)
    return L.Trainer(
        accelerator=device,
        devices=machine.devices,
        num_nodes=machine.nodes,
        strategy=machine.strategy,
        precision=lightning_precision(training.classifier, device, machine.precision),  # type: ignore[arg-type]
        max_epochs=-1,  # the phase says when it is over
        gradient_clip_val=phase.clip or None,
        accumulate_grad_batches=phase.accumulate,
        callbacks=callbacks,
        logger=list(options.loggers) or False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=options.folder is not None,
        num_sanity_val_steps=0,
        default_root_dir=scratch,
        plugins=[_AtomicFiles()],
    )


@contextmanager
def quiet() -> Iterator[None]:
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
