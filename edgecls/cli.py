"""The command line: parse, one library call, print. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from edgecls import __version__
from edgecls.errors import EdgeclsError, Interrupted, MissingExtra, OptionError
from edgecls.flags import flags
from edgecls.options import flag_name
from edgecls.runtime.options import PredictOptions
from edgecls.tables.streams import expect_open, expect_working_folder, make_fit
from edgecls.train.options import TrainOptions

if TYPE_CHECKING:
    from rich.console import Console

    from edgecls.runs import Run

_STARTED = time.perf_counter()  # `--minutes` counts from here: the interpreter alone comes before it
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)
EXIT_ERROR, EXIT_ROW_ERRORS = 1, 3
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 128 + 2, 128 + 13  # as shells count a process that SIGINT and SIGPIPE end


class _Group(TyperGroup):
    """Turns the errors that are written for users into one message and an exit code; all else is a bug."""

    def main(self, *args: Any, **options: Any) -> Any:
        make_fit()
        return super().main(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            expect_working_folder()
            return super().invoke(ctx)
        except Interrupted as stop:
            typer.echo(str(stop), err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from stop
        except EdgeclsError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_ERROR) from error
        except KeyboardInterrupt as stop:
            typer.echo("stopped", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from stop
        except BrokenPipeError as error:  # whoever read our output has left, `head` for one
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from error
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            what = error.filename or "standard output"
            typer.echo(f"error: cannot write {what}: {error.strerror}; make room, or name another place", err=True)
            raise typer.Exit(EXIT_ERROR) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a folder of labelled photos to an INT8 classifier on the device: train, export, predict.",
)


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    openvino = "openvino"


class Combine(str, Enum):
    probability = "probability"
    logit = "logit"
    vote = "vote"


class Vote(str, Enum):
    majority = "majority"
    soft = "soft"
    weighted = "weighted"


class SortBy(str, Enum):
    copy = "copy"
    link = "link"


class Precision(str, Enum):
    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Method(str, Enum):
    auto = "auto"
    minmax = "minmax"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


class Layout(str, Enum):
    nchw = "nchw"
    nhwc = "nhwc"


class Resize(str, Enum):
    shortest = "shortest"
    squash = "squash"
    pad = "pad"


class Interpolation(str, Enum):
    bilinear = "bilinear"
    bicubic = "bicubic"
    area = "area"


class RowFormat(str, Enum):
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
# typer reads annotations at run time, where Python 3.10 needs Optional in them
MaybeInt = Optional[int]


def _console(*, data_on_stdout: bool) -> Console:
    from rich.console import Console

    if data_on_stdout:
        expect_open(sys.stdout, "standard output", "--json and --out - print data on it")
    return Console(stderr=data_on_stdout, highlight=False, soft_wrap=False)


def _progress_console() -> Console:
    """Standard error, whatever goes to standard output."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=False)


def _print_json(values: dict[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # another code page, or file names that are not UTF-8
        text = json.dumps(values, default=str)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _show(console: Console, as_json: bool, result: Any, lines: Callable[[], Iterable[Any]]) -> None:
    if as_json:
        _print_json(result.to_json())
    else:
        console.print(*lines(), sep="\n")


@contextmanager
def _needs_extra(command: str, extra: str) -> Iterator[None]:
    """Say which extra brings the package that an import in this block did not find."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edgecls"):
            raise
        raise MissingExtra(f"{command} ({error.name})", extra) from error


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgecls {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@flags(TrainOptions, arguments=("data",))
def train(
    options: TrainOptions,
    given: frozenset[str],
    resume: Annotated[Optional[str], typer.Option(help="Go on with a training that was killed: its run folder, or latest.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train a classifier on a folder of labelled photos."""
    console = _console(data_on_stdout=as_json)
    dataset = None
    if resume is None:
        from edgecls.train.preflight import check_network, open_for

        dataset = open_for(options)
        check_network(options.network)
    elif others := given - {"resume", "as_json"}:
        typed = ", ".join("DATA" if name == "data" else flag_name(name) for name in sorted(others))
        raise OptionError(f"--resume goes on with the options that the run has; leave out {typed}")
    else:
        from edgecls.train.preflight import options_of_run

        options_of_run(resume)
    from edgecls.tables.live import live_line

    with live_line(console) as live, _needs_extra("edgecls train", "train"):
        live.loading("loading PyTorch")
        from edgecls.evaluate.figures import draw_training
        from edgecls.tables.train import epoch_line, folds, training
        from edgecls.train.kinds.result import TrainResult
        from edgecls.train.machine import rank
        from edgecls.train.progress import Listener
        from edgecls.train.run import resume as resume_run
        from edgecls.train.run import train as train_run

        say = partial(console.print, soft_wrap=not console.is_terminal)  # a line stays one in a file

        def draw(run: Run) -> None:
            live.loading("drawing the figures")
            draw_training(run)

        listener = Listener(say, lambda epoch: say(epoch_line(epoch)), live.show, draw)
        if rank():
            listener = Listener()  # of processes that train together, one speaks
        result = (
            resume_run(resume, listener) if resume else train_run(options, listener, dataset=dataset, started=_STARTED)
        )
        if rank():
            return
    for path, reason in list(result.unreadable.items())[:5]:
        typer.echo(f"left out: {path}: {reason}", err=True)
    if as_json:
        _print_json(result.to_json())
    else:
        console.print(training(result) if isinstance(result, TrainResult) else folds(result))
    if isinstance(result, TrainResult) and result.is_interrupted:  # Ctrl-C: complete as far as it went
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run folder.")] = "latest",
    int8: Annotated[bool, typer.Option("--int8", help="Write the INT8 graphs, and the FP16 graph.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Write the FP16 graph.")] = False,
    engine: Annotated[bool, typer.Option("--engine", help="Build a TensorRT engine from the best file that passed.")] = False,
    calibration: Annotated[Optional[Path], typer.Option(help="Folder or CSV of the images that set the INT8 ranges.", show_default="the training split")] = None,
    calibration_images: Annotated[int, typer.Option(help="Largest number of calibration images.")] = 512,
    method: Annotated[Method, typer.Option(help="How the values of a tensor become its range. auto takes mse, and the best of all methods where mse leaves much noise.")] = Method.auto,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="Allow calibration images that are validation or test images too.")] = False,
    validation: Annotated[Optional[Path], typer.Option(help="Class folders or CSV of the images that the gate is measured on.", show_default="the validation split")] = None,
    max_drop: Annotated[float, typer.Option(help="Percentage points of top-1 accuracy that a file may lose against FP32.")] = 1.0,
    min_speedup: Annotated[float, typer.Option(help="Smallest speed of INT8 on this CPU, as a multiple of the speed of FP32.")] = 1.0,
    time_budget: Annotated[float, typer.Option(help="Seconds that may be spent on giving layers back to float where INT8 loses too much.")] = 600.0,
    batch: Annotated[str, typer.Option(help="Smallest, usual and largest batch of the engine, with commas.")] = "1,16,64",
    compute_capability: Annotated[Optional[str], typer.Option(help="Compute capability of the GPU that the engine is for, such as 8.6 (TensorRT for RTX only).", show_default="this GPU's")] = None,
    seed: Annotated[int, typer.Option(help="Seed that the calibration images are drawn by.")] = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write the model files of a run, and compare them with the checkpoint and with each other. The exit code is 1 where the gate is missed."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls export", "train"):
        from edgecls.calibration.sample import SampleOptions
        from edgecls.export.engine import EngineOptions
        from edgecls.export.judge.gate import GateOptions
        from edgecls.export.options import ExportOptions
        from edgecls.export.run import export_members
        from edgecls.runtime.backends.engine_file import BatchProfile
        from edgecls.tables.export import exported, exported_members
        from edgecls.tables.progress import progress_on
    sample = SampleOptions(calibration_images, seed, calibration, allow_overlap)
    gate = GateOptions(max_drop, min_speedup, time_budget)
    engine_options = EngineOptions(BatchProfile.parse(batch), compute_capability=compute_capability)
    options = ExportOptions(run, int8, fp16, sample, method.value, validation, gate, engine_options if engine else None)
    results = []
    for result in export_members(options, lambda member: progress_on(console)):
        results.append(result)
        if not as_json:
            console.print(*exported(result), sep="\n")
    if len(results) > 1 and not as_json:
        console.print(exported_members(results))
    verdict = "missed" if any(result.verdict == "missed" for result in results) else results[0].verdict
    if as_json:
        members = [result.to_json() for result in results]
        _print_json(members[0] if len(members) == 1 else {"run": run, "verdict": verdict, "members": members})
    if verdict == "missed":
        raise typer.Exit(EXIT_ERROR)


@app.command()
def engine(
    model: Annotated[str, typer.Argument(help="A run folder or an ONNX file.")] = "latest",
    precision: Annotated[Precision, typer.Option(help="Precision of the engine. auto takes the best that passed the gate of export.")] = Precision.auto,
    batch: Annotated[str, typer.Option(help="Smallest, usual and largest batch, with commas.")] = "1,16,64",
    optimization_level: Annotated[int, typer.Option(help="How long the builder searches: 0 builds fastest, 5 gives the fastest engine.")] = 3,
    dla: Annotated[MaybeInt, typer.Option(help="Number of the DLA core to run on. Layers that it cannot run go to the GPU.", show_default="none")] = None,
    hardware_compatible: Annotated[bool, typer.Option("--hardware-compatible", help="Build an engine that runs on every GPU from Ampere on. It is slower.")] = False,
    compute_capability: Annotated[Optional[str], typer.Option(help="Compute capability of another GPU to build for, such as 8.6 (TensorRT for RTX only).", show_default="this GPU's")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Build a TensorRT engine on the device that will run it."""
    console = _console(data_on_stdout=as_json)
    from edgecls.export.engine import EngineOptions, build_engine
    from edgecls.runs import ENGINES, find_model
    from edgecls.runtime.backends.engine_file import BatchProfile
    from edgecls.runtime.backends.selection import file_for_engine
    from edgecls.tables.made import built

    file = file_for_engine(find_model(model), precision.value)
    options = EngineOptions(
        BatchProfile.parse(batch), optimization_level, dla, hardware_compatible, compute_capability
    )  # fmt: skip
    result = build_engine(file, file.parent / ENGINES, options, on_step=console.print)
    if as_json:
        _print_json(result.to_json())
    else:
        console.print(built(result))


@app.command()
@flags(PredictOptions, arguments=("source",))
def predict(options: PredictOptions, given: frozenset[str], as_json: AsJson = False) -> None:
    """Label images: write one row for each input, and say where the time went. The exit code is 3 where an input could not be read."""
    to_stdout = options.rows.file is None
    if to_stdout and as_json:
        raise OptionError("--json and --out - both want standard output; write the rows to a file")
    if "-" in options.sources:
        expect_open(sys.stdin, "standard input", "- reads a list of images from it")
    console = _console(data_on_stdout=as_json or to_stdout)
    from edgecls.runtime.predict import predict as answer
    from edgecls.tables.predict import predicted
    from edgecls.tables.progress import progress_on

    try:
        with progress_on(_progress_console()) as progress:
            result = answer(options, progress)
    except KeyboardInterrupt:
        typer.echo("stopped" + ("" if to_stdout else "; the same command with --resume goes on"), err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _show(console, as_json, result, lambda: predicted(result))
    if result.errors:
        raise typer.Exit(EXIT_ROW_ERRORS)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="A run folder.")] = "latest",
    as_json: AsJson = False,
) -> None:
    """Compare every model file of a run with its golden answers, on every backend here. The exit code is 1 where one differs."""
    console = _console(data_on_stdout=as_json)
    from edgecls.export.judge.verify import verify as verify_run
    from edgecls.tables.verify import verified

    result = verify_run(run)
    if as_json:
        _print_json(result.to_json())
    else:
        console.print(verified(result))
    if result.verdict == "failed":
        raise typer.Exit(EXIT_ERROR)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="A run folder, an ONNX file or an engine.")] = "latest",
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to measure, with commas.")] = "1,4,16,64",
    precision: Annotated[list[Precision], typer.Option(help="Precision to measure. Repeat the flag for several; auto takes all that the device is meant for.")] = [Precision.auto],  # noqa: B006
    device: Annotated[list[Device], typer.Option(help="Device to measure. Repeat the flag for several; auto takes all that are here.")] = [Device.auto],  # noqa: B006
    seconds: Annotated[float, typer.Option(help="Seconds to measure each row, after the warm-up.")] = 2.0,
    lanes: Annotated[MaybeInt, typer.Option(help="Number of calls at the same time on a CPU, for images per second. Latency is always that of one call.", show_default="one for each core")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Measure the time of every layer too, at the smallest batch.")] = False,
    out: Annotated[Optional[Path], typer.Option(help="JSON file for all results.", show_default="none")] = None,
    plot: Annotated[Optional[Path], typer.Option(help="PNG file for a plot of accuracy over latency.", show_default="none")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure speed, memory and start-up of a model on this machine, for each precision, backend and batch size. The exit code is 1 where one did not run."""
    console = _console(data_on_stdout=as_json)
    from edgecls.bench import run as library
    from edgecls.tables.bench import benched

    options = library.BenchOptions(
        model, library.BenchOptions.sizes(batch_sizes), tuple(each.value for each in precision),
        tuple(each.value for each in device), seconds, lanes, layers, out, plot,
    )  # fmt: skip
    if plot:
        with _needs_extra("edgecls bench --plot", "train"):
            from edgecls.bench.plot import draw_bench
    result = library.bench(options, on_step=lambda line: console.print(line, style="dim", markup=False))
    if as_json:
        _print_json(result.to_json())
    else:
        console.print(*benched(result), sep="\n")
    if plot:
        draw_bench(result, plot)
    if result.failed:
        raise typer.Exit(EXIT_ERROR)


@app.command()
def pretrained(
    model: Annotated[str, typer.Argument(help="Name of the network: efficientnet_lite0, lite1 or lite2, a torchvision classifier, or timm/NAME.")],
    image_size: Annotated[MaybeInt, typer.Option(help="Height and width of the input in pixels.", show_default="the weights' own")] = None,
    out: Annotated[Optional[Path], typer.Option(help="The run folder to make.", show_default="runs/<time>-<model>")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a run from published ImageNet weights with their own labels. Nothing is trained."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls pretrained", "train"):
        from edgecls.tables.made import pretrained
        from edgecls.train.networks.pretrained import PretrainedOptions
        from edgecls.train.networks.pretrained import pretrained as make_run
    result = make_run(PretrainedOptions(model, image_size, out))
    if as_json:
        _print_json(result.to_json())
    else:
        console.print(pretrained(result))


@app.command()
def adopt(
    file: Annotated[Path, typer.Argument(help="An ONNX file with a float classifier.")],
    labels: Annotated[Optional[Path], typer.Option(help="Text file with one label in each line (numbered or not), or JSON.", show_default="the file's own")] = None,
    image_size: Annotated[MaybeInt, typer.Option(help="Height and width of the input in pixels.", show_default="the file's own")] = None,
    mean: Annotated[Optional[tuple[float, float, float]], typer.Option(help="Mean of each RGB channel, of pixels from 0 to 1.", show_default="the file's own")] = None,
    std: Annotated[Optional[tuple[float, float, float]], typer.Option(help="Standard deviation of each RGB channel, of pixels from 0 to 1.", show_default="the file's own")] = None,
    resize: Annotated[Optional[Resize], typer.Option(help="How the picture is resized: shortest keeps its proportions and cuts off what is too long, squash changes them, pad keeps them and adds a border.", show_default="shortest")] = None,
    crop_fraction: Annotated[Optional[float], typer.Option(help="Share of the resized picture that the centre crop keeps.", show_default="0.875")] = None,
    interpolation: Annotated[Optional[Interpolation], typer.Option(help="How the resize computes a pixel.", show_default="bilinear")] = None,
    layout: Annotated[Optional[Layout], typer.Option(help="Order of the axes of the input: nchw has the channels second, nhwc last.", show_default="as the network takes it")] = None,
    output: Annotated[Optional[str], typer.Option(help="Name of the output to use.", show_default="the one that fits the labels")] = None,
    out: Annotated[Optional[Path], typer.Option(help="The run folder to make.", show_default="runs/<time>-adopted-<file>")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a run from an ONNX classifier that edgecls did not train. Its preprocessing goes into the graph."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls adopt", "train"):
        from edgecls.export.adopt.run import AdoptOptions
        from edgecls.export.adopt.run import adopt as make_run
        from edgecls.tables.made import adopted
    options = AdoptOptions(
        file, labels, image_size, mean, std, resize.value if resize else None, crop_fraction,
        interpolation.value if interpolation else None, out, layout.value if layout else None, output,
    )  # fmt: skip
    result = make_run(options)
    if as_json:
        _print_json(result.to_json())
    else:
        console.print(adopted(result))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the images, the run and the rows.")] = Path("edgecls-demo"),
    as_json: AsJson = False,
) -> None:
    """Run the three commands on the handwritten digits of scikit-learn. This needs no data and no network."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls demo", "train"):
        from edgecls.demo import demo as run_demo
    result = run_demo(out, console)
    if as_json:
        _print_json(
            {
                "training": result.training.to_json(),
                "export": result.export.to_json(),
                "prediction": result.prediction.to_json(),
            }
        )


if __name__ == "__main__":
    app()
