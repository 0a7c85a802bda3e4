"""What `edgecls bench` is asked for. `--help` needs no NumPy for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecls.errors import OptionError
from edgecls.options import option
from edgecls.runs import LATEST
from edgecls.runtime.options import AskedPrecision, Device

_MOST_SECONDS: Final = 3600.0


@dataclass(frozen=True)
class BenchOptions:
    """All options of `edgecls bench`.

    Attributes:
        batch_sizes: are kept rising, each once.
        precisions: `int8` picks the graph for the device.
        seconds: of each cell, latency and throughput alike; the warm-up comes on top.
        lanes: inferences at a time where img/s are measured.
        plot: will be drawn by the caller; here it is only made sure that it can be.
    """

    model: str = option(LATEST, "A run folder, an ONNX file or an engine.")
    batch_sizes: tuple[int, ...] = option((1, 4, 16, 64), "Batch sizes to measure, with commas.")
    precisions: tuple[AskedPrecision, ...] = option(
        ("auto",), "Precision to measure. Repeat the flag for several; auto takes all that the device is meant for.",
        flag="precision", repeat=True,
    )  # fmt: skip
    devices: tuple[Device, ...] = option(
        ("auto",), "Device to measure. Repeat the flag for several; auto takes all that are here.",
        flag="device", repeat=True,
    )  # fmt: skip
    seconds: float = option(2.0, "Seconds to measure each row, after the warm-up.")
    lanes: int | None = option(
        None, "Number of calls at the same time on a CPU, for images per second. Latency is always that of one call.",
        shown="one for each core",
    )  # fmt: skip
    layers: bool = option(False, "Measure the time of every layer too, at the smallest batch.")
    out: Path | None = option(None, "JSON file for all results.", shown="none")
    plot: Path | None = option(None, "PNG file for a plot of accuracy over latency.", shown="none")

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_sizes", tuple(sorted(set(self.batch_sizes))))
        if not self.batch_sizes or self.batch_sizes[0] < 1:
            raise OptionError(f"--batch-sizes {','.join(map(str, self.batch_sizes))}: expected numbers from 1")
        if not 0 < self.seconds <= _MOST_SECONDS:
            raise OptionError(f"--seconds {self.seconds}: expected more than 0, and at most {_MOST_SECONDS:.0f}")
        if self.lanes is not None and self.lanes < 1:
            raise OptionError(f"--lanes {self.lanes}: expected 1 or more")
        for flag, asked in (("--precision", self.precisions), ("--device", self.devices)):
            if not asked or ("auto" in asked and len(asked) > 1):
                raise OptionError(f"{flag} auto stands for all of them; leave it out, or the others")
        for flag, path in (("--out", self.out), ("--plot", self.plot)):
            if path is not None and path.is_dir():
                raise OptionError(f"{flag} {path}: this is a folder; name a file in it")
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise OptionError(f"--plot {self.plot}: expected a name that ends in .png")
