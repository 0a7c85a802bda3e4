"""The phases of a training: the head on cached features, then the weights that are unfrozen, on pixels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import torch

from edgecls.errors import Collapsed, Diverged, TrainingError
from edgecls.metrics import wilson_interval
from edgecls.runs import CHECKPOINT, RESUME
from edgecls.train.data.augment import Augmentation
from edgecls.train.data.batches import Batches, Drawing
from edgecls.train.data.pixels import Decoded
from edgecls.train.fit.loop import LoopOptions, Phase, fit
from edgecls.train.fit.losses import Loss, Teacher, class_weights, guessing_loss
from edgecls.train.fit.optimizers import OptimizerOptions
from edgecls.train.fit.pace import Pace, plan
from edgecls.train.fit.rates import find_lr
from edgecls.train.fit.recipes import Recipe
from edgecls.train.fit.recorder import Recorder, kept_progress
from edgecls.train.fit.stretch import Pictures, Stretch, stretch_of
from edgecls.train.fit.timing import Timing, time_batches
from edgecls.train.machine import is_out_of_memory, resolved_device
from edgecls.train.networks.features import Features
from edgecls.train.networks.models import PixelClassifier, read_state_dict
from edgecls.train.networks.stages import learning_rate_scales, stages, unfreeze
from edgecls.train.progress import Epoch, PhaseName, shown_score

_T = TypeVar("_T")

_FEATURE_BATCH: Final = 1024  # validating on cached features
_LOWERED: Final = 0.25  # rate of the second attempt as a share of the first's
_LOSS_MARGIN: Final = 1.25  # a validation loss that is so many times the head's has fallen behind
_FEWEST_PASSES: Final = 2.0  # over the training images, for which all weights are worth a start
_LAST_SHARE: Final = 3  # of the stages, the last third is trained where the time is too short for all
_WORTH_TIMING: Final = 30  # steps, for which it is worth saying how long they take
_FIGURES_SECONDS: Final = 4.0  # after the last epoch: figures, golden answers, tables


class Phases:
    """Everything that the phases of one training share.

    Args:
        decoded: the images, of the splits `train` and `val`, perhaps `test`.
        recipe: with every choice made.
        features: computes the features of a frozen backbone.
        teacher: whose answers are learnt beside the labels; None for none.
        say: called with lines for the user.
        record: called with the recipe whenever a plan has changed it.
        deadline: when the run should be complete, by `time.perf_counter`; None where nobody waits.

    Attributes:
        recipe: after `run` the one that repeats it.
        seconds: by phase.
    """

    def __init__(
        self, classifier: PixelClassifier, decoded: Decoded, recipe: Recipe, *,
        teacher: Teacher | None, recorder: Recorder, loop: LoopOptions, features: Features,
        say: Callable[[str], None], record: Callable[[Recipe], None], deadline: float | None = None,
    ) -> None:  # fmt: skip
        self.classifier, self.recipe, self.recorder, self.loop = classifier, recipe, recorder, loop
        self.record, self.deadline, self.say = record, deadline, say
        dataset = decoded.dataset
        self.targets = {split: torch.from_numpy(dataset.targets(split)) for split in ("train", "val")}
        self.pictures = Pictures(decoded.pixels, self.targets)
        self.n_judged = sum(len(dataset.splits[split]) for split in ("val", "test"))
        self.teacher, self.features = teacher, features
        self.n_classes = len(dataset.labels)
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Train. Where the folder holds what a killed run left, go on from there.

        Raises:
            OptionError: a stage to unfreeze that the network does not have.
            TrainingError: the loss is no longer finite, nothing is learnt, a batch of two is too much for the memory,
                or the time is too short.
            RunError: the folder cannot be written to, or what a killed run left is damaged.
        """
        self.classifier.to(memory_format=torch.channels_last)
        midway = self._restore()
        recipe = self.recipe
        if recipe.rest:
            unfreeze(self.classifier, self.recipe.unfreeze)  # a wrong name is told before the head is trained
        for name, optimizer, train in (("head", recipe.head, self._head), ("rest", recipe.rest, self._rest)):
            if optimizer and not (name == "head" and midway in ("all", "retry")):
                started = time.perf_counter()
                train(optimizer)
                self.seconds[name] = time.perf_counter() - started

    def _restore(self) -> PhaseName | None:
        """Take up the history and the weights of a killed run; returns the name of its phase."""
        path = self.loop.folder / RESUME if self.loop.folder else None
        if path is None or not path.is_file():
            return None
        name, kept, state = kept_progress(path)
        self.recorder.restore(kept["epochs"])
        self.classifier.load_state_dict(state)
        self.say(f"going on after epoch {len(self.recorder.epochs)}")
        return name

    def _head(self, optimizer: OptimizerOptions) -> None:
        # A frozen backbone gives one picture the same features in every epoch: they are computed once, after
        # which an epoch costs milliseconds. So this phase sees no augmentation.
        self.classifier.to(resolved_device(self.loop.machine))
        steps = -(-len(self.targets["train"]) // self.recipe.batch_size)
        phase = self._phase("head", "the head", Pace(self.recipe.head_epochs, steps), optimizer)
        if phase.is_over(self.recorder):
            return
        features = {split: self.features(self.classifier, self.pictures.pixels[split]) for split in ("train", "val")}
        dropout = self.classifier.head_dropout
        usual, dropout.p = dropout.p, self.recipe.head_dropout
        self._frozen_backbone(True)
        drawing = Drawing(self.recipe.seed, self.recipe.balance == "sampling")
        train = Batches(features["train"], self.targets["train"], self.recipe.batch_size, drawing)
        val = Batches(features["val"], self.targets["val"], _FEATURE_BATCH)
        phase = replace(phase, logits=lambda classifier, inputs: classifier.classify(inputs), accumulate=1, lookahead=0)
        fit(self.classifier, (train, val), self._with_rate(phase, train, val), self._loss(), self.recorder, self.loop)
        self._frozen_backbone(False)
        dropout.p = usual

    def _rest(self, optimizer: OptimizerOptions) -> None:
        recorder = self.recorder
        heads = recorder.of_phase("head")
        best_head = max(heads, key=lambda epoch: epoch.score(recorder.monitor)) if heads else None
        stretch = self._stretch(self.recipe.unfreeze)
        phase = self._phase("all", stretch.title, self._pace(self.recipe.rest_epochs), optimizer)
        scales = learning_rate_scales(self.classifier, self.recipe.layer_decay)
        phase = replace(
            phase, scales=scales, logits=stretch.logits, keeps_statistics=self.recipe.keeps_statistics,
            floor=self._floor(best_head) if best_head else None,
        )  # fmt: skip
        if not recorder.of_phase("all"):
            _, phase = self._bearing(phase, stretch, self._with_rate)
            planned = self._planned(phase, stretch, has_head=bool(heads))
            if planned is None:
                return
            phase, stretch = planned
        paces = [phase.pace]
        why = self._first_attempt(phase, stretch, best_head)
        if why:
            paces.append(self._retry(phase, stretch, why))
        if self.deadline is not None:
            ends = tuple(end for pace in paces for end in pace.ends)
            self._change(rest_epochs=len(ends), schedule_at=ends)
        if best_head and best_head is recorder.best:
            self.say(f"the head alone was best, so the weights of epoch {best_head.epoch} are kept")

    def _first_attempt(self, phase: Phase, stretch: Stretch, best_head: Epoch | None) -> str:
        """Train, unless that was done before a kill; returns why it has to be done again, or nothing."""
        recorder = self.recorder
        if recorder.of_phase("retry"):
            return "the first attempt fell behind the head"
        try:
            if not phase.is_over(recorder):
                self._fit(phase, stretch)
        except Diverged as error:
            if best_head is None:
                raise
            return str(error).partition(". ")[0]
        if best_head and phase.has_fallen_behind(recorder):
            last, monitor = recorder.of_phase("all")[-1], recorder.monitor
            scores = f"{shown_score(last, monitor)}, {shown_score(best_head, monitor)} before"
            return f"epoch {last.epoch} fell behind the head ({scores})"
        return ""

    def _retry(self, phase: Phase, stretch: Stretch, why: str) -> Pace:
        """Begin again from the best weights at a lower rate, once."""
        best = self.recorder.best
        assert best
        n_before = len(self.recorder.of_phase("all"))
        lower = replace(phase.optimizer, lr=phase.optimizer.lr * _LOWERED)
        pace = self._pace(self.recipe.rest_epochs, n_before)
        if phase.pace.deadline is not None:
            pace.deadline, pace.epochs = phase.pace.deadline, max(phase.pace.epochs - n_before, 1)
        again = replace(phase, name="retry", optimizer=lower, pace=pace, floor=None)
        if again.is_over(self.recorder):
            return pace
        if not self.recorder.of_phase("retry"):
            self.say(
                f"{why}: it begins again from epoch {best.epoch} at a rate of {lower.lr:.2g} in place of "
                f"{phase.optimizer.lr:.2g}"
            )
            if self.loop.folder:
                self.classifier.load_state_dict(read_state_dict(self.loop.folder / CHECKPOINT))
        try:
            self._fit(again, stretch)
        except (Collapsed, Diverged) as error:
            self.say(f"{error}. The weights of epoch {best.epoch} are kept")
        return pace

    def _fit(self, phase: Phase, stretch: Stretch) -> None:
        def train_on(phase: Phase, train: Batches, val: Batches) -> None:
            phase.pace.steps = -(-len(train) // phase.accumulate)
            fit(self.classifier, (train, val), phase, self._loss(self.teacher), self.recorder, self.loop)

        self._bearing(phase, stretch, train_on)

    def _bearing(
        self, phase: Phase, stretch: Stretch, work: Callable[[Phase, Batches, Batches], _T]
    ) -> tuple[Phase, _T]:
        """Do what trains in batches, in as large ones as the memory bears; returns the phase with those."""
        while True:
            train, val = self._batches(phase, stretch)
            try:
                return phase, work(phase, train, val)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if train.batch_size <= 2:
                    raise TrainingError(
                        f"out of memory at a batch of {train.batch_size}; use a smaller --image-size or --model"
                    ) from error
            phase = replace(phase, accumulate=2 * phase.accumulate)
            self.say(
                f"out of memory at {train.batch_size} images: trying {-(-train.batch_size // 2)} at a time, with steps "
                "of as many as before"
            )
            torch.cuda.empty_cache()

    def _batches(self, phase: Phase, stretch: Stretch) -> tuple[Batches, Batches]:
        size = -(-self.recipe.batch_size * self.recipe.accumulate // phase.accumulate)
        n_images = self.recipe.epoch_images
        pixels, targets = stretch.pictures.pixels, stretch.pictures.targets
        train = Batches(pixels["train"], targets["train"], size, stretch.drawing, n_images=n_images)
        return train, Batches(pixels["val"], targets["val"], size)

    def _planned(self, phase: Phase, stretch: Stretch, *, has_head: bool) -> tuple[Phase, Stretch] | None:
        """Time a few steps, say when the training will end, and fit it into the time that there is.

        Returns:
            None where the time suffices for nothing more than the head.
        """
        if self.deadline is None and phase.pace.epochs * self._steps() < _WORTH_TIMING:
            return phase, stretch
        phase, timing = self._bearing(phase, stretch, self._time)
        if self.deadline is None:
            seconds = timing.epoch(len(self._batches(phase, stretch)[0]))
            self.say(_forecast(stretch.title, phase.pace.epochs, seconds))
            return phase, stretch
        n_batches, n_images = len(self._batches(phase, stretch)[0]), len(self.targets["train"])
        judging = timing.validation * self.n_judged / max(len(self.targets["val"]), 1)
        deadline = self.deadline - judging - _FIGURES_SECONDS
        made = plan(deadline - time.perf_counter(), timing.batch, timing.validation, n_batches)
        is_short = made.epochs * made.batches < _FEWEST_PASSES * n_batches
        if is_short and has_head and stretch.which != "head":
            return self._planned_for_less(phase, stretch)
        if made.is_empty:
            raise TrainingError(
                f"--minutes: the time is over before the first step of {stretch.title}; one pass over the images takes "
                f"about {timing.epoch(n_batches) / 60:.1f} minutes. Give more, or use a smaller --image-size or --model"
            )
        whole = made.batches >= n_batches
        images = None if whole else max(2, made.batches * -(-n_images // n_batches))
        self._change(minutes=None, rest_epochs=made.epochs, epoch_images=images, patience=0, unfreeze=stretch.which)
        pace = Pace(made.epochs, self._steps(), deadline=deadline)
        seconds = made.batches * timing.batch + timing.validation
        self.say(_forecast(stretch.title, made.epochs, seconds, "" if whole else f" of {images:,} images"))
        return replace(phase, pace=pace, patience=0), stretch

    def _planned_for_less(self, phase: Phase, stretch: Stretch) -> tuple[Phase, Stretch] | None:
        """The last third of the stages in place of all, or the head as it is."""
        n_stages = len(stages(self.classifier)) - 1
        which = f"last:{max(1, n_stages // _LAST_SHARE)}"
        if stretch.which == "all" and n_stages > 1:
            self.say(f"--minutes: the time is too short for all weights; trying {which}")
            if self.recipe.are_views_open:  # so that what is in front of those stages runs once
                self.recipe = replace(self.recipe, augmentation=Augmentation())
            less = self._stretch(which)
            return self._planned(replace(phase, logits=less.logits, title=less.title), less, has_head=True)
        self.say("--minutes: the time is too short for more than the head, which is trained already")
        self._change(rest=None, rest_epochs=0, minutes=None, patience=0)  # as the head was trained
        return None

    def _time(self, phase: Phase, train: Batches, val: Batches) -> Timing:
        return time_batches(self.classifier, (train, val), phase, self._loss(self.teacher), self.loop)

    def _change(self, **fields: Any) -> None:
        self.recipe = replace(self.recipe, **fields)
        self.record(self.recipe)

    def _stretch(self, which: str) -> Stretch:
        return stretch_of(
            which, self.classifier, self.pictures, self.recipe, self.loop.machine,
            is_taught=self.teacher is not None, say=self.say,
        )  # fmt: skip

    def _steps(self) -> int:
        """Optimiser steps of an epoch."""
        n_images = min(self.recipe.epoch_images or len(self.targets["train"]), len(self.targets["train"]))
        return -(-n_images // (self.recipe.batch_size * self.recipe.accumulate))

    def _pace(self, epochs: int, n_before: int = 0) -> Pace:
        """Even steps, or those that a recipe has recorded, less what another attempt has used of them."""
        ends = list(self.recipe.schedule_at or ())[n_before:]
        return Pace(len(ends) or epochs, self._steps(), ends)

    def _phase(self, name: PhaseName, title: str, pace: Pace, optimizer: OptimizerOptions) -> Phase:
        recipe, loss = self.recipe, None
        if not self.teacher:
            loss = guessing_loss(self.targets["train"], self.n_classes, recipe.label_smoothing, recipe.balance)
        return Phase(
            name, title, pace, optimizer, self.recipe.seed, guessing_loss=loss,
            patience=recipe.patience if self.deadline is None else 0,  # all of a planned time is used
            clip=recipe.clip, accumulate=recipe.accumulate, ema=recipe.ema, lookahead=recipe.lookahead,
        )  # fmt: skip

    def _with_rate(self, phase: Phase, train: Batches, val: Batches) -> Phase:
        """The phase with the rate that a range test suggests, where the user asked for one."""
        if not self.recipe.find_lr:
            return phase
        loss = self._loss(self.teacher if phase.name == "all" else None)
        lr = find_lr(self.classifier, (train, val), phase, loss, self.loop)
        self.say(f"learning rate of the phase {phase.name}: {lr:.2g}, by a range test")
        return replace(phase, optimizer=replace(phase.optimizer, lr=lr))

    def _loss(self, teacher: Teacher | None = None) -> Loss:
        recipe = self.recipe
        weights = class_weights(self.targets["train"], self.n_classes, recipe.balance)
        return Loss(recipe.label_smoothing, weights, teacher, recipe.temperature, recipe.teacher_weight)

    def _floor(self, head: Epoch) -> float:
        """The score of the validation images that is as good as the head's, but for chance: 95 % of the time.

        A mean over classes is less sure than its number of images says: a class of three images counts as much as one
        of three hundred. So it is treated as a share of so many images as would be equally sure.
        """
        monitor, targets = self.recorder.monitor, self.targets["val"]
        score = head.score(monitor)
        if monitor == "loss":
            return score * _LOSS_MARGIN
        counts = torch.bincount(targets, minlength=self.n_classes).double()
        present = counts[counts > 0]
        n = len(targets) if monitor == "accuracy" else float(len(present) ** 2 / (1 / present).sum())
        return wilson_interval(score, max(1, round(n)))[0]

    def _frozen_backbone(self, is_frozen: bool) -> None:
        for parameter in self.classifier.backbone.parameters():
            parameter.requires_grad_(not is_frozen)


def _forecast(title: str, epochs: int, seconds: float, images: str = "") -> str:
    ends = datetime.now() + timedelta(seconds=epochs * seconds)
    each = (
        f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"
    )
    plural = "epoch" if epochs == 1 else "epochs"
    day = "" if ends.date() == datetime.now().date() else f" on {ends:%d %B}"
    return f"{title}: {epochs} {plural}{images} of about {each} each; the training ends at about {ends:%H:%M}{day}"
