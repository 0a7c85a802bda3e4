"""What `edgecls export`, `engine` and `adopt` are asked for. `--help` needs neither torch, onnx nor NumPy for it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args

from edgecls.calibration.options import Method, SampleOptions
from edgecls.errors import OptionError
from edgecls.manifest import Interpolation, Precision, Resize
from edgecls.options import Options, Rule, above, at_least, between, flag_name, flat, option, required
from edgecls.runs import LATEST
from edgecls.runtime.backends.batch_profile import BatchProfile
from edgecls.runtime.backends.export_record import within_gate
from edgecls.runtime.options import AskedPrecision
from edgecls.train.recipe_options import SIZES

AUTO: Final = "auto"
_SPEEDUPS: Final = Rule(lambda value: 0 <= value < 1000, "0 (any speed) or more, such as 1.2")
DEPTHWISE: Final = "depthwise"
SQUEEZE_EXCITE: Final = "squeeze-excite"
_KINDS: Final = Rule(
    lambda kinds: set(kinds) <= {DEPTHWISE, SQUEEZE_EXCITE}, f"{DEPTHWISE}, {SQUEEZE_EXCITE}, or both with a comma"
)
_LEVELS: Final = Rule(lambda value: value in range(6), "a whole number from 0 to 5")
_CORES: Final = Rule(lambda value: value >= 0, "the number of a DLA core, from 0")
_CAPABILITIES: Final = Rule(lambda text: bool(re.fullmatch(r"\d{1,2}\.\d", text)), "a number such as 8.6")

AskedMethod = Literal["auto", Method]
Flavour = Literal["int8", "int8-cpu"]
Layout = Literal["nchw", "nhwc"]
Rgb = tuple[float, float, float]
FLAVOURS: Final[tuple[Flavour, ...]] = get_args(Flavour)


@dataclass(frozen=True)
class GateOptions(Options):
    """Gate.

    Attributes:
        max_drop: top-1, on the validation images.
        min_speedup: img/s of the CPU's INT8 graph over FP32's, both on this machine.
        time_budget: spent where INT8 loses more than `max_drop`.
    """

    max_drop: float = option(
        1.0,
        "Percentage points of top-1 accuracy that a file may lose against FP32.",
        rule=between(0, 100, " percentage points"),
    )
    min_speedup: float = option(
        1.0, "Smallest speed of INT8 on this CPU, as a multiple of the speed of FP32.", rule=_SPEEDUPS
    )
    time_budget: float = option(
        600.0,
        "Seconds that may be spent on giving layers back to float where INT8 loses too much.",
        rule=at_least(0, " seconds"),
    )

    def allows(self, drop: float) -> bool:
        """Whether a drop (a fraction) is within the gate."""
        return within_gate(drop, self.max_drop)


@dataclass(frozen=True)
class EngineOptions(Options):
    """TensorRT engine.

    Attributes:
        optimization_level: 0 to 5; 3 is TensorRT's own default.
        compute_capability: for TensorRT for RTX alone; None is the GPU here.
    """

    batch: BatchProfile = option(BatchProfile(), "Smallest, usual and largest batch of the engine, with commas.")
    optimization_level: int = option(
        3, "How long the builder searches: 0 builds fastest, 5 gives the fastest engine.", rule=_LEVELS
    )  # fmt: skip
    dla_core: int | None = option(
        None,
        "Number of the DLA core to run on. Layers that it cannot run go to the GPU.",
        shown="none",
        flag="dla",
        rule=_CORES,
    )
    hardware_compatible: bool = option(
        False, "Build an engine that runs on every GPU from Ampere on. It is slower."
    )  # fmt: skip
    compute_capability: str | None = option(
        None,
        "Compute capability of another GPU to build for, such as 8.6 (TensorRT for RTX only).",
        shown="this GPU's",
        rule=_CAPABILITIES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hardware_compatible and self.compute_capability:
            raise OptionError("--hardware-compatible and --compute-capability exclude one another: leave one out")
        if self.dla_core is not None:
            self._check_dla(self.dla_core)

    def _check_dla(self, core: int) -> None:
        if self.hardware_compatible or self.compute_capability:
            raise OptionError("--dla is for the accelerator of this Jetson: leave out the flags for other GPUs")
        if not self.batch.min == self.batch.opt == self.batch.max:
            raise OptionError(
                f"--dla {core} with --batch {self.batch}: a DLA runs one size of batch only; "
                f"give it three times, such as --batch {self.batch.opt},{self.batch.opt},{self.batch.opt}"
            )


@dataclass(frozen=True)
class BuildOptions(Options):
    """All options of `edgecls engine`."""

    model: str = option(LATEST, "A run folder, a bundle or an ONNX file.")
    precision: AskedPrecision = option(
        "auto",
        "Precision of the engine. auto builds INT8 and FP16 where they passed the gate of export, and keeps the "
        "faster that gives the golden answers here.",
    )
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class ExportOptions(Options):
    """All options of `edgecls export`.

    Attributes:
        int8: the FP16 graph comes with it, as it takes the place of INT8 where that misses the gate.
        method: `auto` is `mse`, and where that leaves much noise the best of all.
    """

    run: str = option(LATEST, "A run folder.")
    int8: bool = option(False, "Write the INT8 graphs, and the FP16 graph.")
    fp16: bool = option(False, "Write the FP16 graph.")
    engine: bool = option(False, "Build a TensorRT engine from the best file that passed.")
    sample: SampleOptions = field(default_factory=SampleOptions)
    method: AskedMethod = option(
        AUTO, "How the values of a tensor become its range. auto takes mse, and the best of all methods where mse "
        "leaves much noise."
    )  # fmt: skip
    validation: Path | None = option(
        None, "Class folders or CSV of the images that the gate is measured on.", shown="the validation split"
    )
    float_layers: tuple[str, ...] = option(
        (), "Kinds of layers that stay float16 in the INT8 graph for TensorRT: depthwise, squeeze-excite. They make "
        "most of the error of some networks, and are little of the work.", shown="none", rule=_KINDS,
    )  # fmt: skip
    qat: bool = option(
        False, "Train the network for INT8 with the rounding in place, on the training images. It takes minutes, and "
        "helps where INT8 loses much."
    )  # fmt: skip
    qat_epochs: int | None = option(
        None, "Passes of --qat over the training images, of which it takes 5,000 at most.",
        shown="as many as show it 10,000 images, and two at least", rule=between(1, 1000),
    )  # fmt: skip
    gate: GateOptions = field(default_factory=GateOptions)
    builder: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample.source and not self.int8:
            raise OptionError(f"--calibration {self.sample.source}: sets the ranges of INT8; add --int8")
        if self.float_layers and not self.int8:
            raise OptionError(f"--float-layers {','.join(self.float_layers)}: they are float without INT8; add --int8")
        if self.qat and not self.int8:
            raise OptionError("--qat: trains the network for INT8; add --int8")
        if self.qat_epochs and not self.qat:
            raise OptionError(f"--qat-epochs {self.qat_epochs}: nothing is trained; add --qat, or leave it out")
        usual = flat(EngineOptions())
        said = [flag_name(name) for name, value in flat(self.builder).items() if value != usual[name]]
        if said and not self.engine:
            raise OptionError(f"{', '.join(said)}: no engine is asked for; add --engine, or leave them out")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        asked: list[Precision] = ["fp32"]
        if self.fp16 or self.int8:
            asked.append("fp16")
        return (*asked, *FLAVOURS) if self.int8 else tuple(asked)


@dataclass(frozen=True)
class ModelsOptions(Options):
    """All options of `edgecls models`."""

    models: tuple[str, ...] = option(
        (), "Networks to list, by their names for --model.", shown="all of the table", flag="model", repeat=True
    )
    measure: bool = option(
        False, "Measure the speed of each on this machine, in FP32 and INT8, which takes a few minutes. It needs no "
        "trained weights."
    )  # fmt: skip


@dataclass(frozen=True)
class AdoptOptions(Options):
    """All options of `edgecls adopt`; what is None is taken from the file where it says it.

    Attributes:
        file: float ONNX classifier, input (n, 3, h, w) or (n, h, w, 3).
        labels: see `read_labels`.
        resize, crop_fraction, interpolation: as in `Preprocessing`.
    """

    file: Path = required("An ONNX file with a float classifier.")
    labels: Path | None = option(
        None, "Text file with one label in each line (numbered or not), or JSON.", shown="the file's own"
    )
    image_size: tuple[int, ...] | None = option(
        None, "Height and width of the input in pixels; one number for a square.", shown="the file's own", rule=SIZES
    )
    mean: Rgb | None = option(
        None, "Mean of each RGB channel, of pixels from 0 to 1.", shown="the file's own"
    )  # fmt: skip
    std: Rgb | None = option(
        None, "Standard deviation of each RGB channel, of pixels from 0 to 1.", shown="the file's own"
    )
    resize: Resize | None = option(
        None, "How the picture is resized: shortest keeps its proportions and cuts off what is too long, squash "
        "changes them, pad keeps them and adds a border.", shown="shortest"
    )  # fmt: skip
    crop_fraction: float | None = option(
        None, "Share of the resized picture that the centre crop keeps.", shown="0.875", rule=above(0, most=1)
    )
    interpolation: Interpolation | None = option(None, "How the resize computes a pixel.", shown="bilinear")
    layout: Layout | None = option(
        None, "Order of the axes of the input: nchw has the channels second, nhwc last.",
        shown="as the network takes it",
    )  # fmt: skip
    output: str | None = option(None, "Name of the output to use.", shown="the one that fits the labels")
    out: Path | None = option(None, "The run folder to make.", shown="runs/<time>-adopted-<file>")

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width that were asked for."""
        return (self.image_size[0], self.image_size[-1]) if self.image_size else None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mean is None) != (self.std is None):
            raise OptionError("--mean and --std belong together; give both or neither")
        for flag, values in (("--mean", self.mean), ("--std", self.std)):
            if values and not all(map(math.isfinite, values)):
                raise OptionError(f"{flag} {' '.join(map(str, values))}: expected three numbers")
            if values and max(values) > 1:
                scaled = " ".join(f"{value / 255:.4g}" for value in values)
                raise OptionError(
                    f"{flag} {' '.join(map(str, values))}: expected values for pixels scaled to 0..1; "
                    f"these look like 0..255, which would be {flag} {scaled}"
                )
        if self.std and min(self.std) <= 0:
            raise OptionError(f"--std {' '.join(map(str, self.std))}: expected numbers above 0")
