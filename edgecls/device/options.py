"""The options of the device's commands: `--help` needs no NumPy for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecls.bundles import SUFFIX
from edgecls.errors import OptionError
from edgecls.options import Options, between, option
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


@dataclass(frozen=True)
class DoctorOptions(Options):
    """All options of `edgecls doctor`."""

    model: str | None = option(
        None,
        "A run folder, a bundle or a model file that this machine is to run.",
        shown="the machine alone is looked at",
    )
    seconds: float = option(10.0, "How long to measure for; 0 measures nothing.", rule=between(0, 600))
