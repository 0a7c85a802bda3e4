"""A model and a folder to rows and a report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgecls.datasets import ClassNames
from edgecls.errors import ImageError, OptionError
from edgecls.manifest import Precision
from edgecls.runs import LATEST, write_json
from edgecls.runtime.backend import Device
from edgecls.runtime.classifier import BATCH_SIZE, AskedPrecision, Classifier
from edgecls.runtime.rows import Format, open_rows
from edgecls.runtime.sources import Source, count_skipped, find_sources
from edgecls.runtime.stages import Stage, StageSummary, StageTimes, peak_memory_mb


@dataclass(frozen=True)
class PredictOptions:
    """Attributes:
    sources: image files and folders.
    model: a run folder, `latest`, or an ONNX file.
    precision, device, batch_size: as `Classifier.open` takes them.
    top_k: answers a row.
    labels: CSV with path and label; without it class folders tell.
    out: file for the rows; None is standard output.
    format: of the rows.
    report: JSON file for the report.
    strict: stop at the first image that cannot be read.
    """

    sources: tuple[Path, ...]
    model: str = LATEST
    precision: AskedPrecision = "auto"
    device: Device = "auto"
    batch_size: int = BATCH_SIZE
    top_k: int = 1
    labels: Path | None = None
    out: Path | None = None
    format: Format = "csv"
    report: Path | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise OptionError("nothing to predict: name image files or folders")
        if self.top_k < 1:
            raise OptionError(f"--top-k {self.top_k}: expected 1 or more")
        written = [(file.resolve(), flag) for file, flag in ((self.out, "--out"), (self.report, "--report")) if file]
        for file, flag in written:
            if file.exists() and not file.is_file():
                raise OptionError(f"{flag} {file} is a folder or a device; expected a file name")
            if self.labels and file == self.labels.resolve():
                raise OptionError(f"{flag} would overwrite --labels {self.labels}; name another file")
        if len({file for file, _ in written}) < len(written):
            raise OptionError("--out and --report name the same file; name two")


@dataclass(frozen=True)
class PredictReport:
    """What was answered and how fast.

    Attributes:
        images: inputs, which is the number of rows.
        errors: inputs that could not be read.
        skipped: files in the folders that are not named like an image; they are no inputs.
        labelled: answered inputs whose label is known; `accuracy` is over these, None without any.
        seconds: from the first read to the last row; opening the model is not in it.
        stages: milliseconds an image by stage.
        peak_memory_mb: of the whole process.
    """

    images: int
    errors: int
    skipped: int
    labelled: int
    accuracy: float | None
    seconds: float
    images_per_second: float
    stages: dict[Stage, StageSummary]
    bottleneck: Stage | None
    peak_memory_mb: float
    backend: str
    precision: Precision
    batch_size: int
    model: str
    out: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict(
    options: PredictOptions,
    *,
    on_start: Callable[[int], None] = lambda n: None,
    on_image: Callable[[], None] = lambda: None,
) -> PredictReport:
    """Answer every source with one row and measure it.

    Args:
        on_start: called with the number of inputs.
        on_image: called after each row, for a progress bar.

    Raises:
        ImageError: with `strict`, at the first image that cannot be read; no rows are left then.
        RunError, DatasetError, OptionError, MissingExtra: before anything is written.
    """
    times = StageTimes()
    errors = labelled = right = 0
    with Classifier.open(
        options.model, precision=options.precision, device=options.device, batch_size=options.batch_size
    ) as classifier:
        sources = find_sources(options.sources, ClassNames.of(classifier.manifest), options.labels)
        _keep_inputs(options, sources)
        on_start(len(sources))
        top_k = min(options.top_k, len(classifier.manifest.labels))
        started = time.perf_counter()
        with open_rows(options.out, options.format, top_k) as write:
            predictions = classifier.predict((source.path for source in sources), top_k=top_k, times=times)
            for source, prediction in zip(sources, predictions, strict=True):
                if prediction.status == "error":
                    if options.strict:
                        raise ImageError(f"{prediction.reason} (stopped by --strict)", source.name)
                    errors += 1
                elif source.truth is not None:
                    labelled += 1
                    right += prediction.label == source.truth
                write(replace(prediction, path=source.name))
                on_image()
        seconds = time.perf_counter() - started
        report = PredictReport(
            images=len(sources),
            errors=errors,
            skipped=count_skipped(options.sources),
            labelled=labelled,
            accuracy=right / labelled if labelled else None,
            seconds=seconds,
            images_per_second=len(sources) / max(seconds, math.ulp(1.0)),
            stages=times.summaries(),
            bottleneck=times.bottleneck(classifier.n_threads),
            peak_memory_mb=peak_memory_mb(),
            backend=classifier.backend_name,
            precision=classifier.precision,
            batch_size=options.batch_size,
            model=classifier.manifest.model,
            out=str(options.out) if options.out else "-",
        )
    if options.report:
        write_json(options.report, report.to_json())
    return report


def _keep_inputs(options: PredictOptions, sources: Sequence[Source]) -> None:
    for written, flag in ((options.out, "--out"), (options.report, "--report")):
        if written and written.exists() and any(written.samefile(s.path) for s in sources if s.path.exists()):
            raise OptionError(f"{flag} {written} would overwrite one of the images; name another file")
