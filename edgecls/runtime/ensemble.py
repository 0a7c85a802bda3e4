"""How several models become one answer: the same labels for all, a vote, and who breaks a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import OptionError, some
from edgecls.manifest import Manifest
from edgecls.runtime.options import PROBABILITY, VoteOptions
from edgecls.runtime.votes import Floats, majority, soft

MAX_MEMBERS: Final = 10  # there are 1,023 subsets of them


@dataclass(frozen=True)
class Voting:
    """How the members of a classifier vote; of a single one, whose probabilities are the scores, too.

    Attributes:
        names: one for each member.
        orders: for each member, where the labels of the first one are among its own.
        tie_break: index of the member that decides where labels have the same votes; None is the mean probability.
        weights: of the members' votes; None where all count the same.
    """

    options: VoteOptions
    names: tuple[str, ...]
    orders: tuple[NDArray[np.int64], ...]
    tie_break: int | None = None
    weights: tuple[float, ...] | None = None

    @classmethod
    def of(cls, manifests: Sequence[Manifest], models: Sequence[str], options: VoteOptions) -> Voting:
        """Check that the members can vote together.

        Args:
            manifests: of 1 to 10 members; the first one's order of the labels is that of the answers.
            models: how they were named, which `options.tie_break` may repeat.

        Raises:
            OptionError: another number of members, labels that differ, a tie-breaker that is no member, or a member
                without the accuracy that `weighted` needs.
        """
        if not 1 <= len(manifests) <= MAX_MEMBERS:
            raise OptionError(f"an ensemble of {len(manifests)}: expected 2 to {MAX_MEMBERS} models")
        options.expect_several(len(manifests))
        names = member_names(models)
        labels = manifests[0].labels
        orders = tuple(label_order(labels, each.labels, name) for each, name in zip(manifests, names, strict=True))
        tie_break = None
        if options.tie_break != PROBABILITY:
            tie_break = _member_of(options.tie_break, models, names)
            options = VoteOptions(options.vote, names[tie_break])
        weights = _accuracies(manifests, names) if options.vote == "weighted" else None
        return cls(options, tuple(names), orders, tie_break, weights)

    def probabilities(self, members: Sequence[Floats]) -> Floats:
        """Each member's (n, n_classes) in the order of the first one's labels: (n_members, n, n_classes)."""
        if len(members) == 1:
            return members[0][np.newaxis]
        return np.stack([each[:, order] for each, order in zip(members, self.orders, strict=True)])

    def mean(self, probabilities: Floats) -> Floats:
        """The probabilities that rows tell, the mean of all members: (n_members, n, n_classes) -> (n, n_classes)."""
        mean: Floats = soft(probabilities, self.weights) if len(probabilities) > 1 else probabilities[0]
        return mean

    def scores(self, probabilities: Floats, members: Sequence[int] | None = None) -> Floats:
        """What all or some members rank the labels by: (n_members, n, n_classes) -> (n, n_classes)."""
        chosen = list(range(len(self.names))) if members is None else list(members)
        if len(chosen) == 1:  # it is its own answer, whatever the vote
            own: Floats = probabilities[chosen[0]]
            return own
        if self.options.vote == "soft":
            return soft(probabilities[chosen])
        weights = [self.weights[index] for index in chosen] if self.weights else None
        tie_break = chosen.index(self.tie_break) if self.tie_break in chosen else None
        return majority(probabilities[chosen], weights, tie_break)


def member_names(models: Sequence[str]) -> list[str]:
    """Short names for the models: the last part of each path, with as much before it as makes them differ."""
    paths = [Path(model).with_suffix("") if Path(model).suffix else Path(model) for model in models]
    resolved = [path.resolve() if path.is_symlink() else path.absolute() for path in paths]
    for n_parts in range(1, 32):
        names = ["/".join(path.parts[-n_parts:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name}-{number}" for number, path in enumerate(resolved, start=1)]  # one model named twice


def _member_of(tie_break: str, models: Sequence[str], names: Sequence[str]) -> int:
    """Index of the member that is meant, by its path or by its short name."""
    paths = [Path(model).resolve() for model in models]
    if Path(tie_break).resolve() in paths:
        return paths.index(Path(tie_break).resolve())
    if tie_break not in names:
        raise OptionError(f"--tie-break {tie_break}: expected {PROBABILITY} or one of the models: {some(names, 8)}")
    return names.index(tie_break)


def _accuracies(manifests: Sequence[Manifest], names: Sequence[str]) -> tuple[float, ...]:
    found = [manifest.metrics.get("validation_accuracy") for manifest in manifests]
    missing = [name for name, accuracy in zip(names, found, strict=True) if not accuracy]
    if missing:
        raise OptionError(
            f"--vote weighted: the weights are validation accuracies, and {some(missing)} has none; "
            "use --vote majority or soft"
        )
    return tuple(float(accuracy) for accuracy in found if accuracy)


def label_order(labels: Sequence[str], own: Sequence[str], name: str) -> NDArray[np.int64]:
    """Where the common labels are among a model's own, (n_classes,).

    Raises:
        OptionError: the model has other labels.
    """
    if set(labels) != set(own):
        missing, extra = sorted(set(labels) - set(own)), sorted(set(own) - set(labels))
        difference = [f"it lacks {some(missing)}"] if missing else []
        difference += [f"only it has {some(extra)}"] if extra else []
        raise OptionError(
            f"{name}: other labels than the first model's: {'; '.join(difference)}; models that vote, or are compared, "
            "need the same"
        )
    index = {label: number for number, label in enumerate(own)}
    return np.array([index[label] for label in labels], np.int64)
