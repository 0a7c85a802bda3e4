"""The phases of a training: the head on cached features, then the weights that are unfrozen, on pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from edgecls.datasets import Dataset, Split
from edgecls.errors import TrainingError
from edgecls.runs import RESUME
from edgecls.train.batches import Batches, Drawing, Inputs
from edgecls.train.features import Features
from edgecls.train.loop import LoopOptions, Phase, fit, kept_progress
from edgecls.train.losses import Loss, Teacher, class_weights
from edgecls.train.machine import is_out_of_memory, resolved_device
from edgecls.train.mixing import Mixing
from edgecls.train.models import PixelClassifier
from edgecls.train.optimizers import OptimizerOptions
from edgecls.train.options import TrainOptions
from edgecls.train.rates import find_lr
from edgecls.train.recipes import Recipe
from edgecls.train.recorder import Recorder
from edgecls.train.stages import learning_rate_scales, unfreeze

_FEATURE_BATCH: Final = 1024  # validating on cached features
_GPU_SHARE: Final = 0.25  # of the free memory of a GPU may hold the pixels of the training


class Phases:
    """Everything that the phases of one training share.

    Args:
        pixels: of the splits `train` and `val`.
        recipe: of the options, with every choice made.
        features: computes the features of a frozen backbone.
        teacher: whose answers are learnt beside the labels; None for none.
        say: called with lines for the user.
    """

    def __init__(
        self, classifier: PixelClassifier, dataset: Dataset, pixels: Mapping[Split, Inputs], options: TrainOptions,
        *, recipe: Recipe, teacher: Teacher | None, recorder: Recorder, loop: LoopOptions, features: Features,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.classifier, self.options, self.recorder, self.loop, self.say = classifier, options, recorder, loop, say
        self.targets = {split: torch.from_numpy(dataset.targets(split)) for split in ("train", "val")}
        self.pixels, self.teacher, self.recipe, self.features = pixels, teacher, recipe, features
        self.n_classes = len(dataset.labels)

    def run(self) -> None:
        """Train. Where the folder holds what a killed run left, go on from there.

        Raises:
            OptionError: a stage to unfreeze that the network does not have.
            TrainingError: the loss is no longer finite, or a batch of two is too much for the memory.
            RunError: the folder cannot be written to, or what a killed run left is damaged.
        """
        self.classifier.to(memory_format=torch.channels_last)
        midway = self._restore()
        recipe = self.recipe
        if recipe.rest:
            unfreeze(self.classifier, self.options.transfer.unfreeze)  # a wrong name is told before the head is trained
        if recipe.head and midway != "all":
            self._head(recipe.head)
        if recipe.rest:
            self._rest(recipe.rest)

    def _restore(self) -> str | None:
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
        phase = self._phase("head", self.recipe.head_epochs, optimizer)
        if phase.is_over(self.recorder):
            return
        device = resolved_device(self.loop.machine)
        self.classifier.to(device)
        features = {split: self.features(self.classifier, self.pixels[split]) for split in ("train", "val")}
        dropout = self.classifier.head_dropout
        usual, dropout.p = dropout.p, self.recipe.head_dropout
        self._frozen_backbone(True)
        recipe = self.options.recipe
        drawing = Drawing(self.options.data_use.seed, recipe.balance == "sampling")
        train = Batches(features["train"], self.targets["train"], self.recipe.batch_size, drawing)
        val = Batches(features["val"], self.targets["val"], _FEATURE_BATCH)
        fit(self.classifier, (train, val), self._with_rate(phase, train, val), self._loss(), self.recorder, self.loop)
        self._frozen_backbone(False)
        dropout.p = usual

    def _rest(self, optimizer: OptimizerOptions) -> None:
        options, seed = self.options, self.options.data_use.seed
        unfreeze(self.classifier, options.transfer.unfreeze)
        phase = self._phase("all", self.recipe.rest_epochs, optimizer)
        if phase.is_over(self.recorder):
            return
        phase = replace(phase, scales=learning_rate_scales(self.classifier, options.transfer.layer_decay))
        mix = options.augmentation
        mixing = Mixing(self.n_classes, mix.mixup, mix.cutmix) if mix.mixup or mix.cutmix else None
        drawing = Drawing(seed, options.recipe.balance == "sampling", self.recipe.augmentation, mixing)
        pixels, targets = self._on_device()
        batch_size, searched = self.recipe.batch_size, False
        while True:
            micro = -(-batch_size * options.recipe.accumulate // phase.accumulate)
            train = Batches(pixels["train"], targets["train"], micro, drawing)
            val = Batches(pixels["val"], targets["val"], micro)
            try:
                if not searched:
                    phase, searched = self._with_rate(phase, train, val), True
                return fit(self.classifier, (train, val), phase, self._loss(self.teacher), self.recorder, self.loop)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if micro <= 2:
                    raise TrainingError(
                        f"out of memory at a batch of {micro}; use a smaller --image-size or --model"
                    ) from error
            phase = replace(phase, accumulate=2 * phase.accumulate)
            self.say(
                f"out of memory at {micro} images: trying {-(-micro // 2)} at a time, with steps of as many as before"
            )
            torch.cuda.empty_cache()

    def _on_device(self) -> tuple[Mapping[Split, Inputs], Mapping[str, Tensor]]:
        """Pixels and targets, on the GPU where they fit: gathering and augmenting there costs next to nothing."""
        if resolved_device(self.loop.machine) == "cpu" or self.loop.machine.devices > 1:
            return self.pixels, self.targets
        tensors = {split: each for split, each in self.pixels.items() if isinstance(each, Tensor)}
        free, _ = torch.cuda.mem_get_info()
        if len(tensors) < len(self.pixels) or sum(each.nbytes for each in tensors.values()) > free * _GPU_SHARE:
            return self.pixels, self.targets
        return {s: t.cuda() for s, t in tensors.items()}, {s: t.cuda() for s, t in self.targets.items()}

    def _phase(self, name: Any, epochs: int, optimizer: OptimizerOptions) -> Phase:
        recipe = self.options.recipe
        return Phase(
            name, epochs, optimizer, self.options.data_use.seed, patience=recipe.patience, clip=recipe.clip,
            accumulate=recipe.accumulate if name == "all" else 1, ema=recipe.ema,
            lookahead=self.recipe.lookahead if name == "all" else 0,
        )  # fmt: skip

    def _with_rate(self, phase: Phase, train: Batches, val: Batches) -> Phase:
        """The phase with the rate that a range test suggests, where the user asked for one."""
        if not self.options.recipe.find_lr:
            return phase
        loss = self._loss(self.teacher if phase.name == "all" else None)
        lr = find_lr(self.classifier, (train, val), phase, loss, self.loop)
        self.say(f"learning rate of the phase {phase.name}: {lr:.2g}, by a range test")
        return replace(phase, optimizer=replace(phase.optimizer, lr=lr))

    def _loss(self, teacher: Teacher | None = None) -> Loss:
        recipe, source = self.options.recipe, self.options.source
        weights = class_weights(self.targets["train"], self.n_classes) if recipe.balance == "weights" else None
        return Loss(self.recipe.label_smoothing, weights, teacher, source.temperature, source.teacher_weight)

    def _frozen_backbone(self, is_frozen: bool) -> None:
        for parameter in self.classifier.backbone.parameters():
            parameter.requires_grad_(not is_frozen)
