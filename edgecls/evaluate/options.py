"""What `edgecls evaluate` and `compare` are asked for. `--help` needs no NumPy for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgecls.errors import OptionError
from edgecls.options import Options, Rule, option, required
from edgecls.runs import LATEST
from edgecls.runtime.options import ClassifierOptions, VoteOptions

JUDGED: Final = (
    "accuracy", "top5", "balanced-accuracy", "precision", "recall", "f1", "log-loss", "calibration-error",
)  # fmt: skip
_DATA_HELP: Final = "Class folders (a folder or an address such as s3://), or a CSV with the columns path and label."
_CONDITION: Final = re.compile(r"\s*([a-z0-9-]+)\s*(<=|>=|<|>)\s*([0-9.]+)\s*")
_SHARES: Final = Rule(lambda value: 0 < value <= 1, "a share above 0 and at most 1")


@dataclass(frozen=True)
class Condition:
    """A figure and its limit, such as `accuracy<0.95`: where it holds, the command fails."""

    figure: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `accuracy<0.95`.

        Raises:
            OptionError: it is no condition on a figure that is measured.
        """
        found = _CONDITION.fullmatch(text.replace("_", "-"))
        if not found or found[1] not in JUDGED or found[3].count(".") > 1 or found[3] == ".":
            raise OptionError(
                f"--fail-if {text}: expected a figure, a sign and a number, such as accuracy<0.95; the figures are "
                f"{', '.join(JUDGED)}"
            )
        limit = float(found[3])
        if found[1] != "log-loss" and limit > 1:
            raise OptionError(f"--fail-if {text}: {found[1]} is a share; expected a number from 0 to 1, such as 0.95")
        return cls(found[1], found[2], limit)

    def holds(self, value: float) -> bool:
        """Whether a figure is beyond the limit."""
        return {
            "<": value < self.limit, "<=": value <= self.limit, ">": value > self.limit, ">=": value >= self.limit,
        }[self.sign]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.figure}{self.sign}{self.limit:g}"


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """All options of `edgecls evaluate`.

    Attributes:
        target: share of the answers that is to be right, for the threshold of the probability that gives it.
    """

    model: str = option(
        LATEST,
        "A run folder, an ensemble of folds, a bundle, an ONNX file or an engine. Several with + between them vote.",
    )
    data: str | Path | None = option(
        None, _DATA_HELP, shown="the run's own test images, or its validation images where it has none"
    )
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    vote: VoteOptions = field(default_factory=VoteOptions)
    out: Path = option(Path("evaluation"), "Folder for report.html, report.json and card.md.")
    target: float = option(
        0.99, "Share of the answers that is to be right. The report says above which probability that holds.",
        rule=_SHARES,
    )  # fmt: skip
    corruptions: bool = option(
        False, "Measure also with pictures that are compressed, blurred, noisy, turned, darker and brighter."
    )
    occlusion: bool = option(
        False, "Show where the network looks: which parts of the shown pictures the answer depends on."
    )
    fail_if: tuple[str, ...] = option(
        (), "Condition for an exit code of 1, such as accuracy<0.95. Repeat the flag for several.", shown="none",
        repeat=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for condition in self.conditions:
            if condition.figure == "top5" and condition.limit > 1:
                raise OptionError(f"--fail-if {condition}: top5 is a share from 0 to 1")
        _expect(self.out, self.vote)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(map(Condition.parse, self.fail_if))


@dataclass(frozen=True)
class CompareOptions(Options):
    """All options of `edgecls compare`.

    Attributes:
        models: as `Contestant.parse` reads them.
    """

    models: tuple[str, ...] = required(
        "Two models or more, or a folder of runs. A model is a run folder, an ONNX file or an engine; several with + "
        "between them vote; @ begins settings, such as runs/a@precision=int8,tta=flip.",
        flag="model", repeat=True,
    )  # fmt: skip
    data: str | Path | None = option(None, _DATA_HELP, shown="the test or validation images of the first run")
    classifier: ClassifierOptions = field(default_factory=ClassifierOptions)
    vote: VoteOptions = field(default_factory=VoteOptions)
    out: Path = option(Path("comparison"), "Folder for report.html and report.json.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            raise OptionError("nothing to compare: name two models, or a folder of runs")
        _expect(self.out, self.vote)


def _expect(out: Path, vote: VoteOptions) -> None:
    if vote.subsets:
        raise OptionError("--subsets is for predict; edgecls compare takes the votes by name: compare A+B A+C A+B+C")
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; expected a folder")
