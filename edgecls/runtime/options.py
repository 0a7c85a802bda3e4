"""What to predict, with what and how: every option of `edgecls predict`, in parts. `--help` needs no NumPy for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, cast, get_args

from edgecls.errors import OptionError, counted
from edgecls.options import Options, Rule, at_least, expect, flag_name, option
from edgecls.runs import LATEST, members_of

AskedPrecision = Literal["auto", "fp32", "fp16", "int8"]
Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
Combine = Literal["probability", "logit", "vote"]
Vote = Literal["majority", "soft", "weighted"]
Format = Literal["csv", "jsonl", "parquet"]
SortBy = Literal["copy", "link"]

FAMILIES: Final = ("flip", "flips", "five-crop", "ten-crop", "shifts", "scales", "rotate", "blur")
PROBABILITY: Final = "probability"
STDOUT: Final = Path("-")
_SHARDS: Final = re.compile(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*|\d{1,9}/[1-9]\d{0,8}")
_PROBABILITIES: Final = Rule(lambda value: 0 <= value <= 1, "a probability from 0 to 1")


@dataclass(frozen=True)
class TtaOptions(Options):
    """Test-time augmentation.

    Attributes:
        families: of views; several are combined each with each (`flip` and `shifts` give 10 views).
        combine: `probability` and `logit` are means over the views; `vote` counts their answers, and on a tie the
            mean probability decides.
    """

    families: tuple[str, ...] = option(
        (), f"Views of each image, with commas: {', '.join(FAMILIES)}.", shown="none", flag="tta"
    )
    combine: Combine = option(
        "probability", "How the views become one answer: mean probability, mean logit, or a vote.", flag="tta_combine"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown:
            raise OptionError(f"--tta {','.join(unknown)}: expected views out of {', '.join(FAMILIES)}")
        if self.combine != "probability" and not self.families:
            raise OptionError(f"--tta-combine {self.combine}: there are no views to combine; name some with --tta")

    @classmethod
    def parse(cls, text: str | None, combine: Combine = "probability") -> TtaOptions:
        """Read `flip,shifts`; nothing is the plain view alone."""
        return cls(tuple(part.strip() for part in text.split(",")) if text else (), combine)


@dataclass(frozen=True)
class ClassifierOptions(Options):
    """Model.

    Attributes:
        precision: `auto` is what the run's export measured as best for the device; `int8` picks the graph for it.
        device: `auto` is the fastest here of what passed the gate (`selection.select`); `cpu` and `cuda` are ONNX
            Runtime.
        n_threads: CPU threads that read, decode and infer; None is every core this process may use.
        n_lanes: inferences at a time on a CPU, which share the threads; None is one a thread, which answers many
            images soonest. 1 answers a single frame soonest.
        has_lone_lane: open each model of a CPU once more, with one lane of all threads, for pictures that come alone as
            those of a server do.
    """

    precision: AskedPrecision = option(
        "auto", "Precision of the model file. auto takes what export measured as best."
    )  # fmt: skip
    device: Device = option(
        "auto", "What runs the model. auto takes the fastest here; cpu and cuda are ONNX Runtime."
    )  # fmt: skip
    batch_size: int | None = option(
        None, "Batch size, counting each view as an image.",
        shown="32 on a GPU, 8 on a CPU; up to 64 there for small inputs", rule=at_least(1)
    )  # fmt: skip
    n_threads: int | None = None
    n_lanes: int | None = None
    has_lone_lane: bool = False
    tta: TtaOptions = field(default_factory=TtaOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_threads", "n_lanes"):  # these are no flags
            value = getattr(self, name)
            expect(value is None or value >= 1, name, value, "1 or more")


@dataclass(frozen=True)
class VoteOptions(Options):
    """Several models.

    Attributes:
        vote: `majority`: every member's answer is a vote; `weighted`: a vote counts as much as its member's validation
            accuracy; `soft`: the mean of the probabilities.
        tie_break: the member (as it was named) that decides where labels have the same votes: of these the one that it
            holds most probable; `probability`: the one of the highest mean probability.
    """

    vote: Vote = option(
        "majority", "How several models become one answer: majority; soft is the mean probability; weighted counts "
        "each vote by validation accuracy."
    )  # fmt: skip
    tie_break: str = option(PROBABILITY, "Who decides a tie: probability, or the name of one of the models.")
    subsets: bool = option(
        False, "Measure every subset of the models too, on images with a known label, to find the fewest that suffice."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vote == "soft" and self.tie_break != PROBABILITY:
            raise OptionError(f"--tie-break {self.tie_break}: with --vote soft there are no ties; leave it out")

    def expect_several(self, n_models: int) -> None:
        """Refuse what is said of a vote where there is nothing to vote on.

        Raises:
            OptionError: something is said of a vote, and there is one model.
        """
        if n_models == 1 and self != VoteOptions():
            raise OptionError(
                "--vote, --tie-break and --subsets are for several models: name more of them, or leave these flags out"
            )


@dataclass(frozen=True)
class SourceOptions(Options):
    """Sources."""

    labels: Path | None = option(
        None, "CSV with the true labels, in the columns path and label.", shown="told by class folders"
    )
    frame_step: int = option(1, "Read every N-th frame of a video.", rule=at_least(1))
    max_frames: int | None = option(
        None, "Largest number of frames of a video or camera.", shown="all", rule=at_least(1)
    )


@dataclass(frozen=True)
class RowsOptions(Options):
    """Rows.

    Attributes:
        out: the file, which appears when the last row is written; `-` is standard output, None `predictions.csv` or
            what else `format` says.
        resume: go on with the rows that a killed run left.
    """

    out: Path | None = option(
        None, "File for the rows. - is standard output.", shown="predictions.csv, .jsonl or .parquet"
    )
    format: Format | None = option(None, "Format of the rows.", shown="told by the name of --out, else csv")
    resume: bool = option(False, "Continue with the rows that a stopped run left.")

    @property
    def file(self) -> Path | None:
        """Where the rows go; None is standard output."""
        return None if self.out == STDOUT else self.out or Path(f"predictions.{self.kind}")

    @property
    def kind(self) -> Format:
        """The format, told by the name of the file where it was not given."""
        return self.format or (cast(Format, self._suffix) if self._suffix in get_args(Format) else "csv")

    @property
    def _suffix(self) -> str:
        return self.out.suffix.lower().lstrip(".") if self.out else ""

    def __post_init__(self) -> None:
        super().__post_init__()
        suffix = self._suffix
        if self.format and suffix in get_args(Format) and suffix != self.format:
            raise OptionError(
                f"--format {self.format} with --out {self.out}: leave one out, or name the file .{self.format}"
            )
        if self.resume and self.file is None:
            raise OptionError("--resume: rows on standard output cannot be gone on with; give --out a file name")
        if self.kind == "parquet" and (self.resume or self.file is None):
            raise OptionError("--format parquet: has no rows before its end; give --out a file name, and no --resume")


@dataclass(frozen=True)
class OutputOptions(Options):
    """Other outputs.

    Attributes:
        submission: as competitions ask for; an image without an answer has no label.
        sort_into: the folders are named as `folder_names` says; abstained images go to `_abstained`.
    """

    submission: Path | None = option(None, "CSV file for file name and label alone.", shown="none")
    sort_into: Path | None = option(
        None, "Empty folder to sort the images into, with one folder for each label.", shown="none"
    )
    sort_by: SortBy = option("copy", "Sort by copies or by symbolic links.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.submission and self.submission.exists() and not self.submission.is_file():
            raise OptionError(f"--submission {self.submission} is a folder or a device; expected a file name")
        if self.sort_into and self.sort_into.exists() and not self.sort_into.is_dir():
            raise OptionError(f"--sort-into {self.sort_into} is a file; expected a folder")


@dataclass(frozen=True)
class ShardOptions(Options):
    """Shards of a plan.

    Attributes:
        plan: the folder that `edgecls plan` made; its shards take the place of sources, its parts that of rows.
        shard: `3`, `3,7-9`, or `3/64`: every 64th from number 3 on. None is all that are not done.
        on: `ray` spreads the shards over a Ray cluster; None is this process.
        address: of the cluster.
    """

    plan: str | Path | None = option(
        None,
        "The folder that edgecls plan made, or its address, in place of a source. Each shard becomes a part in it.",
        shown="none",
    )
    shard: str | None = option(
        None, "Which shards: 3, or 3,7-9, or 3/64 for every 64th from number 3 on. The first is 0.",
        shown="all that are not done"
    )  # fmt: skip
    allow_changed: bool = option(False, "Answer inputs too that have changed since the plan was made.")
    redo_errors: bool = option(False, "Answer shards again that have rows of inputs that could not be read.")
    on: Literal["ray"] | None = option(None, "What the shards are spread over: ray.", shown="this process")
    address: str | None = option(None, "Address of the Ray cluster.", shown="the one that is found, else this machine")
    workers: int | None = option(
        None, "Number of Ray actors.", shown="one for each GPU, else for every two cores", rule=at_least(1)
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plan is None:
            for name in ("shard", "on", "address", "workers"):
                expect(getattr(self, name) is None, name, getattr(self, name), "--plan, whose shards it is about")
            for name in ("allow_changed", "redo_errors"):
                if getattr(self, name):
                    raise OptionError(f"{flag_name(name)}: expected --plan, whose inputs it is about")
        elif self.on is None:
            for name in ("address", "workers"):
                expect(getattr(self, name) is None, name, getattr(self, name), "--on ray")
        if self.plan is not None:
            expect(str(self.plan) != "", "plan", "", "the folder of a plan")
        if self.shard is not None:
            expect(_SHARDS.fullmatch(self.shard) is not None, "shard", self.shard, "3, or 3,7-9, or 3/64")

    @property
    def place(self) -> str | Path:
        """The plan's folder, which must be there."""
        if self.plan is None:
            raise OptionError("no plan: name its folder with --plan")
        return self.plan

    def chosen(self, n_shards: int) -> list[int]:
        """The shards that are asked for, of so many.

        Raises:
            OptionError: one that there is not.
        """
        last = f"the plan has {counted(n_shards, 'shard')}, 0 to {n_shards - 1:,}"
        if self.shard is None:
            return list(range(n_shards))
        if "/" in self.shard:
            number, step = map(int, self.shard.split("/"))
            expect(number < step, "shard", self.shard, f"a number below {step}, as 0/{step} to {step - 1}/{step}")
            return list(range(number, n_shards, step))
        asked: set[int] = set()
        for each in self.shard.split(","):
            first, _, end = each.partition("-")
            low, high = int(first), int(end or first)
            expect(low <= high, "shard", self.shard, "the lower number of a range first, as in 7-9")
            expect(high < n_shards, "shard", self.shard, f"numbers below {n_shards:,}: {last}")
            asked |= set(range(low, high + 1))
        return sorted(asked)


@dataclass(frozen=True)
class PredictOptions(Options):
    """All options of `edgecls predict`."""

    sources: tuple[str | Path, ...] = option(
        (), "Images, folders, patterns, lists (.txt, .csv, or - for standard input), tar files, videos, cameras (0, "
        "/dev/video0, or a GStreamer pipeline), and addresses (s3://, gs://, hdfs://).", flag="source", repeat=True,
        shown="the shards of --plan",
    )  # fmt: skip
    models: tuple[str, ...] = option(
        (LATEST,), "A run folder, a bundle, an ONNX file or an engine. Repeat the flag to let several models vote.",
        flag="model", repeat=True,
    )  # fmt: skip
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    vote: VoteOptions = field(default_factory=VoteOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    rows: RowsOptions = field(default_factory=RowsOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)
    top_k: int = option(1, "Number of answers in each row.", rule=at_least(1))
    min_confidence: float = option(
        0.0, "Smallest probability of an answer. Images below it get no label.", rule=_PROBABILITIES
    )
    report: Path | None = option(None, "JSON file for accuracy and latency.", shown="none")
    strict: bool = option(False, "Stop at the first image that cannot be read.")
    shards: ShardOptions = field(default_factory=ShardOptions)

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The models, and in place of a folder with an ensemble those that vote in it."""
        return tuple(str(member) for name in self.models for member in members_of(name))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources and self.shards.plan is None:
            raise OptionError("nothing to predict: name image files or folders")
        if self.shards.plan:
            self._expect_no_rows()
        if not self.models:
            raise OptionError("no model: name a run folder or a model file")
        if self.report == STDOUT:
            raise OptionError("--report - : the report goes to a file; --json prints it")
        self.vote.expect_several(len(self.members))
        written = [(file.resolve(), flag) for file, flag in self.written]
        labels = self.source.labels
        for file, flag in written:
            if file.exists() and not file.is_file():
                raise OptionError(f"{flag} {file} is a folder or a device; expected a file name")
            if labels and file == labels.resolve():
                raise OptionError(f"{flag} would overwrite --labels {labels}; name another file")
        if len({file for file, _ in written}) < len(written):
            raise OptionError(f"{' and '.join(flag for _, flag in written)} name the same file; name different ones")

    def _expect_no_rows(self) -> None:
        """With a plan, what is read and what is written is said by it."""
        if self.sources:
            raise OptionError(f"--plan {self.shards.plan}: has its own inputs; leave out {self.sources[0]}")
        for given, flags in (
            (self.rows != RowsOptions(), "--out, --format and --resume"),
            (self.outputs != OutputOptions(), "--submission, --sort-into and --sort-by"),
            (self.source != SourceOptions(), "--labels, --frame-step and --max-frames"),
            (bool(self.report), "--report"),
            (self.strict, "--strict"),
            (self.vote.subsets, "--subsets"),
        ):
            if given:
                raise OptionError(f"--plan {self.shards.plan}: its parts are the answer; leave out {flags}")

    @property
    def written(self) -> list[tuple[Path, str]]:
        """The files that are written, with their flags."""
        named = ((self.rows.file, "--out"), (self.report, "--report"), (self.outputs.submission, "--submission"))
        return [(file, flag) for file, flag in named if file]
