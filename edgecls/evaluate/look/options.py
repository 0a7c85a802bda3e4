"""What `edgecls inspect` is asked for. `--help` needs no NumPy for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecls.errors import OptionError
from edgecls.options import Options, option


@dataclass(frozen=True)
class InspectOptions(Options):
    """All options of `edgecls inspect`."""

    data: str | Path = option(
        "data",
        "Folder with class folders, or with train, val and test folders, or its address such as s3://; or a CSV with "
        "path and label.",
    )
    model: str | None = option(
        None, "A run that was trained on this data, or an ensemble of folds: which labels it doubts.", shown="none"
    )
    out: Path = option(Path("inspection"), "Folder for report.html and report.json.")
    strict: bool = option(
        False, "Exit with 1 where a picture is in two splits or under two labels, or a file cannot be read."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.exists() and not self.out.is_dir():
            raise OptionError(f"--out {self.out} is a file; expected a folder")
