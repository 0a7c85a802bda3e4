"""Shards of a plan to parts: each is answered by the pipeline of `predict`, and those that are done are passed over."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgecls.datasets import ClassNames
from edgecls.errors import DatasetError, RunError
from edgecls.progress import Progress
from edgecls.runs import sha256_of
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.input.stored import StoredInput, sources_of
from edgecls.runtime.options import PredictOptions
from edgecls.runtime.output.row import columns, expect_distinct
from edgecls.scale.parts import INPUT, Footer, PartRows, new_part, part_of, read_footer
from edgecls.scale.plan import Plan
from edgecls.storage import Store, open_store


@dataclass(frozen=True)
class ShardsReport:
    """What was done of a plan.

    Attributes:
        done: parts that were written now; passed_over: shards that had one already.
        left: how many shards of the plan have no part now.
        images: of `done`; errors: of all of these shards, those passed over among them.
        seconds: of all, opening the model in it.
    """

    plan: str
    done: tuple[int, ...]
    passed_over: tuple[int, ...]
    left: int
    images: int
    errors: int
    seconds: float

    @classmethod
    def of(cls, plan: Plan, asked: Sequence[int], done: Mapping[int, Footer], seconds: float) -> ShardsReport:
        """A report of shards that all have their parts now; `done` has those that were written just now."""
        footers = {shard: done.get(shard) or read_footer(plan.folder, shard) for shard in asked}
        there = plan.folder.names()
        return cls(
            plan.folder.place,
            tuple(sorted(done)),
            tuple(sorted(set(asked) - set(done))),
            sum(part_of(shard) not in there for shard in range(plan.n_shards)),
            sum(each.images for each in done.values()),
            sum(each.errors for each in footers.values()),
            seconds,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict_shards(options: PredictOptions, progress: Progress = Progress()) -> ShardsReport:
    """Answer the shards that are asked for and have no part yet.

    Raises:
        OptionError: a shard that the plan does not have.
        RunError: no such plan, a part of another plan or model, or one that cannot be written.
        EdgeclsError: as `Classifier.of`.
    """
    started = time.perf_counter()
    plan = Plan.read(options.shards.place)
    asked = options.shards.chosen(plan.n_shards)
    with Classifier.of(options.members, options.classifier, options.vote, on_note=progress.on_step) as model:
        worker = ShardWorker(plan, model, options)
        left = worker.left_of(asked)
        progress.on_pass("images", sum(plan.counts[shard] for shard in left))
        # somebody else may have been at it meanwhile
        footers = {shard: worker.answer(shard, progress) for shard in left if not worker.is_done(shard)}
    return ShardsReport.of(plan, asked, footers, time.perf_counter() - started)


class ShardWorker:
    """Answers shards of one plan with one opened model."""

    def __init__(self, plan: Plan, model: Classifier, options: PredictOptions) -> None:
        """Open the source.

        Raises:
            OptionError: a model is named like a column of the rows.
            RunError: it cannot be opened.
        """
        self._plan, self._model, self._options = plan, model, options
        self._made_by = made_by(model, options)
        self._members = model.voting.names if len(model.members) > 1 else ()
        self._columns = columns(min(options.top_k, len(model.labels)), self._members)
        expect_distinct([INPUT, *self._columns], self._members)
        try:
            self._store: Store = open_store(plan.source)
        except DatasetError as error:
            raise RunError(f"{plan.folder.place}: its source cannot be opened: {error}") from error

    def left_of(self, shards: Sequence[int]) -> list[int]:
        """Those that have no part yet.

        Raises:
            RunError: one has a part that is damaged, or of another plan, model or options.
        """
        return [shard for shard in shards if not self.is_done(shard)]

    def is_done(self, shard: int) -> bool:
        """Whether a shard has its part, and one that is not to be done again.

        Raises:
            RunError: it has one of another plan, or of another model or other options.
        """
        footer = self._footer_of(shard)
        return footer is not None and not (footer.errors and self._options.shards.redo_errors)

    def _footer_of(self, shard: int) -> Footer | None:
        folder = self._plan.folder
        if not folder.has(part_of(shard)):
            return None
        footer = read_footer(folder, shard)
        expect_of(self._plan, shard, footer)
        differing = [name for name in self._made_by if footer.made_by.get(name) != self._made_by[name]]
        if differing:
            raise RunError(
                f"{folder.shown(part_of(shard))}: was made by another model or with other options: they differ in "
                f"{', '.join(differing)}; give the same ones, remove the parts, or make another plan"
            )
        return footer

    def answer(self, shard: int, progress: Progress = Progress()) -> Footer:
        """Answer a shard and write its part.

        A part that somebody else wrote meanwhile stays, and so does one of before that has no more errors.

        Raises:
            RunError: the part cannot be written, the plan's inputs are damaged, or another model's part is there now.
            DatasetError: the source is no longer there.
        """
        plan = self._plan
        inputs = plan.inputs(shard)
        try:
            with new_part(plan.folder, shard, self._columns, self._members, plan.first(shard)) as rows:
                footer = self._answered(shard, inputs, rows, progress)
                if footer.errors and not self._store.is_there():
                    raise DatasetError(f"{plan.source}: is no longer there, so shard {shard} was not answered")
                there = self._footer_of(shard)
                if there is not None and there.errors <= footer.errors:
                    raise _Superseded(there)
                rows.finish(footer)
        except _Superseded as kept:
            return kept.footer
        return footer

    def _answered(self, shard: int, inputs: Sequence[StoredInput], rows: PartRows, progress: Progress) -> Footer:
        model, options = self._model, self._options
        top_k = min(options.top_k, len(model.labels))
        counts = dict.fromkeys(("ok", "error", "abstained"), 0)
        labelled = right = 0
        started = time.perf_counter()
        sources = sources_of(
            self._store, inputs, ClassNames.of(model.manifest), is_checked=not options.shards.allow_changed
        )
        for answered in model.answers(sources, n_sources=len(inputs)):
            for source, prediction in zip(answered.sources, model.predictions(answered, top_k), strict=True):
                sure = prediction.unless_below(options.min_confidence)
                rows.write(sure)
                counts[sure.status] += 1
                if sure.status == "ok" and source.truth is not None:
                    labelled += 1
                    right += sure.label == source.truth
            progress.on_images(len(answered.sources))
        return Footer(
            plan=self._plan.sha256,
            shard=shard,
            made_by=self._made_by,
            backend=model.backend_name,
            images=len(inputs),
            errors=counts["error"],
            abstained=counts["abstained"],
            labelled=labelled,
            right=right,
            seconds=time.perf_counter() - started,
        )


class _Superseded(Exception):
    """The part that is there is as good as the new one."""

    def __init__(self, footer: Footer) -> None:
        super().__init__()
        self.footer = footer


def made_by(model: Classifier, options: PredictOptions) -> dict[str, Any]:
    """What all parts of a plan must have in common."""
    values = {
        "models": [sha256_of(each.file) if each.file else each.backend.manifest.model for each in model.members],
        "labels": list(model.labels),
        "tta": asdict(options.classifier.tta),
        "vote": {"vote": options.vote.vote, "tie_break": options.vote.tie_break},
        "min_confidence": options.min_confidence,
        "top_k": min(options.top_k, len(model.labels)),
    }
    return dict(json.loads(json.dumps(values)))  # as it will be read back


def expect_of(plan: Plan, shard: int, footer: Footer) -> None:
    """Refuse a part of another plan or shard.

    Raises:
        RunError: it is one.
    """
    path, cure = plan.folder.shown(part_of(shard)), f"remove it and run shard {shard} again"
    if footer.plan != plan.sha256:
        raise RunError(f"{path}: is of another plan (its inputs were others); {cure}")
    if footer.shard != shard or footer.images != plan.counts[shard]:
        raise RunError(f"{path}: is of shard {footer.shard} with {footer.images:,} inputs; {cure}")
