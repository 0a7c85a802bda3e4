"""What to bundle: `--help` needs no NumPy for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecls.bundles import SUFFIX
from edgecls.errors import OptionError
from edgecls.options import Options, option
from edgecls.runs import LATEST


@dataclass(frozen=True)
class BundleOptions(Options):
    """All options of `edgecls bundle`."""

    run: str = option(LATEST, "A run folder that was exported, or the folder of an ensemble.")
    out: Path | None = option(None, "The file to write.", shown="<run>.edgecls in the working folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and self.out.suffix != SUFFIX:
            raise OptionError(f"--out {self.out}: expected a file name that ends in {SUFFIX}")
