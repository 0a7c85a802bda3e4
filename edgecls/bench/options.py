"""What `edgecls bench` is asked for. `--help` needs no NumPy for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecls.errors import OptionError
from edgecls.options import Options, Rule, above, at_least, option
from edgecls.runs import LATEST
from edgecls.runtime.options import AskedPrecision, Device

_SIZES: Final = Rule(lambda sizes: min(sizes, default=0) >= 1, "numbers from 1")


@dataclass(frozen=True)
class BenchOptions(Options):
    """All options of `edgecls bench`.

    Attributes:
        batch_sizes: are kept rising, each once.
        precisions: `int8` picks the graph for the device.
        seconds: of each cell, latency and throughput alike; the warm-up comes on top.
        lanes: inferences at a time where img/s are measured.
        plot: will be drawn by the caller; here it is only made sure that it can be.
    """

    model: str = option(LATEST, "A run folder, a bundle, an ONNX file or an engine.")
    batch_sizes: tuple[int, ...] = option((1, 4, 16, 64), "Batch sizes to measure, with commas.", rule=_SIZES)
    precisions: tuple[AskedPrecision, ...] = option(
        ("auto",), "Precision to measure. Repeat the flag for several; auto takes all that the device is meant for.",
        flag="precision", repeat=True,
    )  # fmt: skip
    devices: tuple[Device, ...] = option(
        ("auto",), "Device to measure. Repeat the flag for several; auto takes all that are here.",
        flag="device", repeat=True,
    )  # fmt: skip
    seconds: float = option(2.0, "Seconds to measure each row, after the warm-up.", rule=above(0, most=3600))
    lanes: int | None = option(
        None, "Number of calls at the same time on a CPU, for images per second. Latency is always that of one call.",
        shown="one for each core", rule=at_least(1),
    )  # fmt: skip
    layers: bool = option(False, "Measure the time of every layer too, at the smallest batch.")
    out: Path | None = option(None, "JSON file for all results.", shown="none")
    plot: Path | None = option(None, "PNG file for a plot of accuracy over latency.", shown="none")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "batch_sizes", tuple(sorted(set(self.batch_sizes))))
        for flag, asked in (("--precision", self.precisions), ("--device", self.devices)):
            if not asked or ("auto" in asked and len(asked) > 1):
                raise OptionError(f"{flag} auto stands for all of them; leave it out, or the others")
        for flag, path in (("--out", self.out), ("--plot", self.plot)):
            if path is not None and path.is_dir():
                raise OptionError(f"{flag} {path}: this is a folder; name a file in it")
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise OptionError(f"--plot {self.plot}: expected a name that ends in .png")
