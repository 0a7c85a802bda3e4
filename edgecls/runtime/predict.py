"""Models and sources to rows and a report."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgecls.datasets import ClassNames
from edgecls.drift import Drift
from edgecls.errors import DatasetError, ImageError, OptionError
from edgecls.manifest import Precision
from edgecls.progress import Progress
from edgecls.runs import remove_leftovers, sha256_of, write_json
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.drift_watch import DriftWatch
from edgecls.runtime.input.sources import Sources, find_sources, is_live
from edgecls.runtime.options import PredictOptions
from edgecls.runtime.output.outputs import Outputs, open_outputs
from edgecls.runtime.output.rows import open_rows, partial_of
from edgecls.runtime.pipeline import Answered, Source
from edgecls.runtime.prediction import Prediction
from edgecls.runtime.stages import Stage, StageSummary, StageTimes, peak_memory_mb
from edgecls.runtime.tally import EnsembleReport, EnsembleTally, TtaReport, ViewTally

_FLUSHED: Final = 16  # rows after which what was written is safe from a kill


@dataclass(frozen=True)
class PredictReport:
    """What was answered and how fast.

    Attributes:
        images: inputs, which is the number of rows.
        errors: inputs that could not be read.
        abstained: inputs whose probability is below `min_confidence`.
        skipped: files in the folders that are not named like an image; they are no inputs.
        resumed: of the rows, those of the run that was gone on with; what follows but `accuracy` is without them.
        labelled: answered inputs whose label is known; `accuracy` is over these, None without any.
        seconds: from the first read to the last row; opening the model is not in it.
        stages: milliseconds an image by stage.
        peak_memory_mb: of the whole process.
        backend, precision, model: of an ensemble those of its members, with a comma between.
        tta: views against the plain one; None without them or without known labels.
        ensemble: None for one model.
        drift: how the pictures differ from the validation images; None for few pictures, or where the run does not
            say what those were like. Images that were `resumed` are not in it.
    """

    images: int
    errors: int
    abstained: int
    skipped: int
    resumed: int
    labelled: int
    accuracy: float | None
    seconds: float
    images_per_second: float
    stages: dict[Stage, StageSummary]
    bottleneck: Stage | None
    peak_memory_mb: float
    backend: str
    precision: Precision | str
    batch_size: int
    n_views: int
    model: str
    out: str
    tta: TtaReport | None = None
    ensemble: EnsembleReport | None = None
    drift: Drift | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict(options: PredictOptions, progress: Progress = Progress()) -> PredictReport:
    """Answer every source with one row and measure it.

    Raises:
        ImageError: with `strict`, at the first image that cannot be read; the rows so far are left in `<out>.partial`.
        RunError: a file cannot be written; the rows so far are left in `<out>.partial`.
        DatasetError, OptionError, MissingExtra: before anything is written.
    """
    how = options.classifier
    if any(is_live(str(source)) for source in options.sources):
        how = replace(how, n_lanes=1)  # frames come one at a time: all threads on each of them
    with Classifier.of(options.members, how, options.vote, on_note=progress.on_step) as model:
        sources = find_sources(options.sources, ClassNames.of(model.manifest), options.source)
        if options.rows.resume and sources.is_live:
            raise OptionError("--resume: a camera cannot be gone on with; leave it out")
        _keep_inputs(options, sources)
        if options.outputs.sort_into:
            remove_leftovers(options.outputs.sort_into)
        if options.rows.resume and options.rows.file and not partial_of(options.rows.file).exists():
            progress.on_step(
                f"--resume: no rows of a stopped run beside {options.rows.file}, so this starts with the first input"
            )
        progress.on_pass("images", sources.count)
        return _Prediction(options, model, sources, progress).run()


class _Prediction:
    """One call of `predict`: the counts that become its report."""

    def __init__(self, options: PredictOptions, model: Classifier, sources: Sources, progress: Progress) -> None:
        self.options, self.model, self.sources, self.progress = options, model, sources, progress
        self.top_k = min(options.top_k, len(model.manifest.labels))
        self.index = {label: index for index, label in enumerate(model.manifest.labels)}
        self.times = StageTimes()
        self.images = self.errors = self.abstained = self.resumed = self.labelled = self.right = 0
        self.names = model.voting.names if len(model.members) > 1 else ()
        n_views = len(model.members[0].views)
        self.views = ViewTally(n_views) if n_views > 1 and not self.names else None
        self.watch = DriftWatch.of(model, on_note=progress.on_step)
        self.votes = EnsembleTally(model.voting, options.vote.subsets) if self.names else None

    def run(self) -> PredictReport:
        started = time.perf_counter()
        with (
            open_rows(self.options.rows, self.top_k, self.names, self._made_by()) as rows,
            open_outputs(self.options.outputs, self.model.manifest.labels) as outputs,
        ):
            remaining = iter(self.sources)
            for prediction in rows.kept():
                self._keep(next(remaining, None), prediction, outputs)
                self.progress.on_images(1)
            started = time.perf_counter()
            try:
                for batch in self._answered(remaining):
                    for source, prediction in batch:
                        if prediction.status == "error" and self.options.strict:
                            reason = f"{prediction.reason} (stopped by --strict{self._kept_rows()})"
                            raise ImageError(reason, source.name)
                        rows.write(prediction)
                        self._count(source, prediction, outputs)
                        if self.images % _FLUSHED == 0:
                            rows.flush()
                    self.progress.on_images(len(batch))
            except KeyboardInterrupt:
                if not self.sources.is_live:  # a camera has no other end
                    raise
            if not self.images:
                raise DatasetError("nothing to predict: standard input or the video ended before its first picture")
        return self._report(time.perf_counter() - started)

    def _kept_rows(self) -> str:
        out = self.options.rows.file
        has_partial = out is not None and self.options.rows.kind != "parquet" and self.images
        return f"; --resume goes on with the {self.images:,} rows so far" if has_partial else ""

    def _made_by(self) -> dict[str, Any]:
        """What two runs must have in common so that their rows may stand in one file."""
        options = self.options
        if not options.rows.resume and options.rows.file is None:
            return {}
        return {
            "models": [
                sha256_of(each.file) if each.file else each.backend.manifest.model for each in self.model.members
            ],
            "tta": asdict(options.classifier.tta),
            "vote": {"vote": options.vote.vote, "tie_break": options.vote.tie_break},
            "min_confidence": options.min_confidence,
            "frames": [options.source.frame_step, options.source.max_frames],
        }

    def _keep(self, source: Source | None, prediction: Prediction, outputs: Outputs) -> None:
        damage = "start again without --resume (until then the rows so far are kept)"
        if source is None or source.name != prediction.path:
            now = f"that input is {source.name!r} now" if source else f"there are only {self.images} inputs now"
            raise OptionError(
                f"--resume: row {self.images + 1} was for {prediction.path!r}, and {now}; the inputs have changed, or "
                f"the row is damaged: {damage}"
            )
        if prediction.label and prediction.label not in self.index:
            raise OptionError(
                f"--resume: row {self.images + 1} has the label {prediction.label!r}, which is not the model's: the "
                f"row is damaged; {damage}"
            )
        self.resumed += 1
        self._count(source, prediction, outputs)

    def _answered(self, sources: Iterator[Source]) -> Iterator[list[tuple[Source, Prediction]]]:
        count = self.sources.count
        n_left = None if count is None else count - self.resumed
        for answered in self.model.answers(sources, times=self.times, n_sources=n_left, is_live=self.sources.is_live):
            self._tally(answered)
            predictions = self.model.predictions(answered, self.top_k)
            if self.watch:
                self.watch.add(answered, predictions)
            sure = [prediction.unless_below(self.options.min_confidence) for prediction in predictions]
            yield list(zip(answered.sources, sure, strict=True))

    def _tally(self, answered: Answered) -> None:
        truths = [each.truth for each, reason in zip(answered.sources, answered.reasons, strict=True) if not reason]
        known = np.array([truth is not None for truth in truths], bool)
        truth = np.array([self.index[truth] for truth in truths if truth is not None], np.int64)
        if self.views:
            (member,) = answered.members
            self.views.add(member.view_answers[known], member.probabilities.argmax(axis=1)[known], truth)
        if self.votes:
            self.votes.add_time([member.seconds for member in answered.members], len(truths))
            self.votes.add(self.model.probabilities(answered)[:, known], truth)

    def _count(self, source: Source, prediction: Prediction, outputs: Outputs) -> None:
        self.images += 1
        self.errors += prediction.status == "error"
        self.abstained += prediction.status == "abstained"
        if prediction.status == "ok" and source.truth is not None:
            self.labelled += 1
            self.right += prediction.label == source.truth
        outputs.add(source.picture, prediction)

    def _report(self, seconds: float) -> PredictReport:
        options, model = self.options, self.model
        backends = [member.backend for member in model.members]
        report = PredictReport(
            images=self.images,
            errors=self.errors,
            abstained=self.abstained,
            skipped=self.sources.skipped,
            resumed=self.resumed,
            labelled=self.labelled,
            accuracy=self.right / self.labelled if self.labelled else None,
            seconds=seconds,
            images_per_second=(self.images - self.resumed) / max(seconds, math.ulp(1.0)),
            stages=self.times.summaries(),
            bottleneck=self.times.bottleneck(model.n_threads, model.n_lanes),
            peak_memory_mb=peak_memory_mb(),
            backend=model.backend_name,
            precision=model.precision,
            batch_size=model.batch_size,
            n_views=len(model.members[0].views),
            model=", ".join(dict.fromkeys(each.manifest.model for each in backends)),
            out=str(options.rows.file) if options.rows.file else "-",
            tta=self._tta(),
            ensemble=self.votes.report(backends) if self.votes else None,
            drift=self.watch.drift() if self.watch else None,
        )
        if options.report:
            write_json(options.report, report.to_json())
        return report

    def _tta(self) -> TtaReport | None:
        if not self.views:
            return None
        (member,) = self.model.members
        ms = self.times.mean_ms("preprocess") + self.times.mean_ms("infer")
        return self.views.report([view.name for view in member.views], member.tta.combine, ms / len(member.views))


def _keep_inputs(options: PredictOptions, sources: Sources) -> None:
    """Nothing that is read may be written over, nor sorted into: the copies would be inputs of the next run."""
    into = options.outputs.sort_into
    for given in map(Path, options.sources):
        if into and os.path.isdir(given) and into.resolve().is_relative_to(given.resolve()):
            raise OptionError(f"--sort-into {into} lies in the source {given}; name a folder elsewhere")
    if into and into.is_dir() and any(into.iterdir()) and not options.rows.resume:
        raise OptionError(f"--sort-into {into} is not empty: old answers would stay among the new; name another folder")
    if sources.count is None:
        return
    for written, flag in options.written:
        if written.exists():
            same = written.stat()
            for source in sources:
                if isinstance(source.picture, str | Path) and _is_same(source.picture, same.st_dev, same.st_ino):
                    raise OptionError(f"{flag} {written} would overwrite one of the images; name another file")


def _is_same(path: str | Path, device: int, inode: int) -> bool:
    try:
        status = os.stat(path)  # Path.stat costs four times as much, for each of a million inputs
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (device, inode)
