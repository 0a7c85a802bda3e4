"""Several models that vote on every image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import OptionError, some
from edgecls.manifest import Manifest
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import (
    PROBABILITY,
    AskedPrecision,
    ClassifierOptions,
    Combine,
    Device,
    TtaOptions,
    Vote,
    VoteOptions,
)
from edgecls.runtime.pipeline import Answered, Picture, answers
from edgecls.runtime.prediction import Prediction, Predictor, no_number, one_a_picture, ranked, top_of
from edgecls.runtime.stages import StageTimes
from edgecls.runtime.votes import Floats, agreement, entropy, majority, soft

MAX_MEMBERS: Final = 10  # the report looks at every subset of the members: 1,023 of them


class Ensemble(Predictor):
    """Several classifiers over the same labels; they may differ in size, preprocessing and backend.

    with Ensemble.open(["runs/a", "runs/b", "runs/c"]) as ensemble:
        for prediction in ensemble.predict(["cat.jpg"]):
            print(prediction.label, prediction.agreement, prediction.members)
    """

    def __init__(self, members: Sequence[Classifier], names: Sequence[str], options: VoteOptions) -> None:
        """Args:
            members: 2 to 10 of them; the first one's order of the labels is the ensemble's.
            names: one each, for `tie_break` and the rows' columns.

        Raises:
            OptionError: labels that differ, a tie-breaker that is no member, or a member without the accuracy that
                `weighted` needs.
        """
        if not 2 <= len(members) <= MAX_MEMBERS:
            raise OptionError(f"an ensemble of {len(members)}: expected 2 to {MAX_MEMBERS} models")
        self.members, self.names = tuple(members), tuple(names)
        self.options = options
        self.manifest: Manifest = members[0].manifest
        self.labels = self.manifest.labels
        self._orders = [
            _order(self.labels, each.manifest.labels, name) for each, name in zip(members, names, strict=True)
        ]
        self._tie_break = self._index_of(options.tie_break)
        self.weights = self._accuracies() if options.vote == "weighted" else None
        self.n_threads = max(member.n_threads for member in members)
        self.n_workers = max(member.n_workers for member in members)
        self.n_lanes = min(member.n_lanes for member in members)

    @classmethod
    def open(
        cls,
        models: Sequence[str | Path],
        *,
        vote: Vote = "majority",
        tie_break: str = PROBABILITY,
        precision: AskedPrecision = "auto",
        device: Device = "auto",
        batch_size: int | None = None,
        n_threads: int | None = None,
        n_lanes: int | None = None,
        tta: str | None = None,
        tta_combine: Combine = "probability",
        on_note: Callable[[str], None] = lambda line: None,
    ) -> Ensemble:
        """Open two or more models, each as `Classifier.open` does.

        Args:
            models: run folders, ONNX files or engines; `tie_break` may name one of them.
            vote, tie_break: as in `VoteOptions`; the others as in `Classifier.open`, for every member.

        Raises:
            RunError, MissingExtra: as `Classifier.open`.
            OptionError: likewise, or as `Ensemble`.
        """
        views = TtaOptions.parse(tta, tta_combine)
        options = ClassifierOptions(precision, device, batch_size, n_threads, n_lanes, views)
        return cls.of(models, VoteOptions(vote, tie_break), options, on_note=on_note)

    @classmethod
    def of(
        cls,
        models: Sequence[str | Path],
        how: VoteOptions,
        options: ClassifierOptions,
        *,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> Ensemble:
        """As `open`, with the options in two."""
        if isinstance(models, (str, Path)):
            raise OptionError(f"an ensemble takes several models, got one: {str(models)!r}")
        names = member_names([str(model) for model in models])
        at = [Path(model).resolve() for model in models]
        if Path(how.tie_break).resolve() in at:
            how = replace(how, tie_break=names[at.index(Path(how.tie_break).resolve())])
        with ExitStack() as opened:
            members = [opened.enter_context(Classifier.of(model, options, on_note=on_note)) for model in models]
            ensemble = cls(members, names, how)
            opened.pop_all()  # nothing failed: they stay open
        return ensemble

    def _index_of(self, tie_break: str) -> int | None:
        if tie_break == PROBABILITY:
            return None
        if tie_break not in self.names:
            raise OptionError(
                f"--tie-break {tie_break}: expected {PROBABILITY} or one of the models: {some(self.names, 8)}"
            )
        return self.names.index(tie_break)

    def _accuracies(self) -> list[float]:
        found = [member.manifest.metrics.get("validation_accuracy") for member in self.members]
        missing = [name for name, accuracy in zip(self.names, found, strict=True) if not accuracy]
        if missing:
            raise OptionError(
                f"--vote weighted: the weights are validation accuracies, and {some(missing)} has none; "
                "use --vote majority or soft"
            )
        return [float(accuracy) for accuracy in found if accuracy]

    def answers(
        self,
        pictures: Iterable[Picture],
        *,
        times: StageTimes | None = None,
        n_pictures: int | None = None,
        is_live: bool = False,
    ) -> Iterator[Answered]:
        return answers(
            [member.member for member in self.members],
            pictures,
            batch_size=max(member.batch_size for member in self.members),
            n_workers=self.n_workers,
            times=times or StageTimes(),
            n_pictures=n_pictures,
            is_live=is_live,
        )

    def probabilities(self, answered: Answered) -> Floats:
        """Of every member, in the order of the ensemble's labels: (n_members, n, n_classes)."""
        each = zip(answered.members, self._orders, strict=True)
        return np.stack([member.probabilities[:, order] for member, order in each])

    def scores(self, probabilities: Floats, members: Sequence[int] | None = None) -> Floats:
        """What all or some members rank the labels by: (n_members, n, n_classes) -> (n, n_classes)."""
        chosen = list(range(len(self.members))) if members is None else list(members)
        weights = [self.weights[index] for index in chosen] if self.weights else None
        if self.options.vote == "soft":
            return soft(probabilities[chosen])
        tie_break = chosen.index(self._tie_break) if self._tie_break in chosen else None
        return majority(probabilities[chosen], weights, tie_break)

    def predictions(self, answered: Answered, top_k: int) -> list[Prediction]:
        each = self.probabilities(answered)
        order = ranked(self.scores(each), top_k)
        mean = soft(each, self.weights)
        agreed, undecided = agreement(each, order[:, 0]), entropy(mean)
        own = each.argmax(axis=2)

        def answer(row: int, name: str) -> Prediction:
            if not np.isfinite(mean[row]).all():
                return no_number(name)
            top = top_of(self.labels, order[row], mean[row])
            return Prediction(
                name,
                "ok",
                *top[0],
                top=top,
                agreement=float(agreed[row]),
                entropy=float(undecided[row]),
                members=tuple(self.labels[index] for index in own[:, row]),
            )

        return one_a_picture(answered, answer)

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            member.__exit__(kind, error, trace)


def member_names(models: Sequence[str]) -> list[str]:
    """Short names for the models: the last part of each path, with as much before it as makes them differ."""
    paths = [Path(model).with_suffix("") if Path(model).suffix else Path(model) for model in models]
    resolved = [path.resolve() if path.is_symlink() else path.absolute() for path in paths]
    for n_parts in range(1, 32):
        names = ["/".join(path.parts[-n_parts:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name}-{number}" for number, path in enumerate(resolved, start=1)]  # one model named twice


def _order(labels: Sequence[str], own: Sequence[str], name: str) -> NDArray[np.int64]:
    """Where the ensemble's labels are among a member's own."""
    if set(labels) != set(own):
        missing, extra = sorted(set(labels) - set(own)), sorted(set(own) - set(labels))
        difference = [f"it lacks {some(missing)}"] if missing else []
        difference += [f"only it has {some(extra)}"] if extra else []
        raise OptionError(
            f"{name}: other labels than the first model's: {'; '.join(difference)}; models that vote need the same"
        )
    return np.array([own.index(label) for label in labels], np.int64)
