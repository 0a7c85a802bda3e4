"""The command line: parse, one library call, print. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from edgecls import __version__
from edgecls.bench.options import BenchOptions
from edgecls.device.options import BundleOptions, DoctorOptions
from edgecls.errors import EdgeclsError, Interrupted, MissingExtra, OptionError
from edgecls.evaluate.look.options import InspectOptions
from edgecls.evaluate.options import CompareOptions, EvaluateOptions
from edgecls.export.options import AdoptOptions, BuildOptions, ExportOptions, ModelsOptions
from edgecls.flags import flags
from edgecls.options import flag_name
from edgecls.runtime.options import PredictOptions
from edgecls.scale.options import MergeOptions, PlanOptions
from edgecls.serve.options import ServeOptions
from edgecls.tables.streams import expect_open, expect_working_folder, make_fit
from edgecls.train.options import PretrainedOptions, TrainOptions

if TYPE_CHECKING:
    from rich.console import Console

    from edgecls.datasets import Dataset
    from edgecls.progress import Progress

_STARTED = time.perf_counter()  # `--minutes` counts from here: the interpreter alone comes before it
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)
_PACKAGES = {"cv2": "opencv-python-headless", "numpy": "numpy", "PIL": "pillow"}  # that every command needs
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
        except ImportError as error:
            package = _PACKAGES.get((error.name or "").partition(".")[0])
            if package is None:
                raise
            typer.echo(
                f"error: {package} cannot be loaded: {error}; install it again with: "
                f"pip install --force-reinstall {package}",
                err=True,
            )
            raise typer.Exit(EXIT_ERROR) from error
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


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def _console(*, data_on_stdout: bool) -> Console:
    from rich.console import Console

    if data_on_stdout:
        expect_open(sys.stdout, "standard output", "--json and --out - print data on it")
    return Console(stderr=data_on_stdout, highlight=False, markup=False)


def _progress_console() -> Console:
    """Standard error, whatever goes to standard output."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


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
    elif shown := list(lines()):
        console.print(*shown, sep="\n")


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
    # typer reads annotations at run time, where Python 3.10 needs Optional in them
    resume: Annotated[Optional[str], typer.Option(help="Go on with a training that was killed: its run folder, or latest.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train a classifier on a folder of labelled photos."""
    console = _console(data_on_stdout=as_json)
    dataset = None
    if resume is None:
        dataset = _images_of(options)
    else:
        _expect_resumable(resume, given)
    from edgecls.tables.live import live_line

    with live_line(console) as live, _needs_extra("edgecls train", "train"):
        live.loading("loading PyTorch")
        from edgecls.tables.train import listener_on, trained
        from edgecls.train.machine import rank
        from edgecls.train.run import resume as go_on
        from edgecls.train.run import train as begin

        told = listener_on(console, live)
        result = go_on(resume, told) if resume else begin(options, told, dataset=dataset, started=_STARTED)
    if rank():  # of processes that train together, one speaks
        return
    for path, reason in list(result.unreadable.items())[:5]:
        typer.echo(f"left out: {path}: {reason}", err=True)
    _show(console, as_json, result, lambda: [trained(result)])
    if result.is_interrupted:  # Ctrl-C: complete as far as it went
        raise typer.Exit(EXIT_INTERRUPTED)


def _images_of(options: TrainOptions) -> Dataset:
    """All that can be refused before torch is loaded, is."""
    from edgecls.train.preflight import check_network, open_for

    dataset = open_for(options)
    check_network(options.network)
    return dataset


def _expect_resumable(run: str, given: frozenset[str]) -> None:
    if others := sorted(given - {"resume", "as_json"}):
        typed = ", ".join("DATA" if name == "data" else flag_name(name) for name in others)
        raise OptionError(f"--resume goes on with the options that the run has; leave out {typed}")
    from edgecls.train.preflight import options_of_run

    options_of_run(run)


@app.command()
@flags(ExportOptions, arguments=("run",))
def export(options: ExportOptions, as_json: AsJson = False) -> None:
    """Write the model files of a run, and compare them with the checkpoint and with each other. The exit code is 1 where the gate is missed."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls export", "train"):
        from edgecls.export.run import export_members
        from edgecls.tables.export import exported, exported_members
        from edgecls.tables.progress import progress_on
    result = export_members(
        options,
        lambda: progress_on(console),
        lambda each: None if as_json else console.print(*exported(each), sep="\n"),
    )
    _show(console, as_json, result, lambda: exported_members(result))
    if result.verdict == "missed":
        raise typer.Exit(EXIT_ERROR)


@app.command()
@flags(BuildOptions, arguments=("model",))
def engine(options: BuildOptions, as_json: AsJson = False) -> None:
    """Build a TensorRT engine on the device that will run it. Where no precision is named, INT8 and FP16 are tried, and the faster one is kept."""
    console = _console(data_on_stdout=as_json)
    from edgecls.export.engine_choice import choose_engine
    from edgecls.tables.made import built

    result = choose_engine(options, on_step=lambda line: console.print(line))
    _show(console, as_json, result, lambda: [built(result)])


@app.command()
@flags(PredictOptions, arguments=("source",))
def predict(options: PredictOptions, as_json: AsJson = False) -> None:
    """Label images: write one row for each input, and say where the time went. The exit code is 3 where an input could not be read."""
    if options.shards.plan:
        _predict_shards(options, as_json)
        return
    to_stdout = options.rows.file is None
    if to_stdout and as_json:
        raise OptionError("--json and --out - both want standard output; write the rows to a file")
    if "-" in options.sources:
        expect_open(sys.stdin, "standard input", "- reads a list of images from it")
    console = _console(data_on_stdout=as_json or to_stdout)
    how = options.classifier
    if how.device == "tensorrt":
        from edgecls.export.engine_choice import first_start

        told = _progress_console()
        for model in options.models:
            first_start(model, how.precision, how.batch_size, on_step=lambda line: told.print(line))
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


def _predict_shards(options: PredictOptions, as_json: bool) -> None:
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls predict --plan", "cloud"):
        from edgecls.scale.run import predict_shards
    from edgecls.tables.progress import progress_on
    from edgecls.tables.scale import shards_done

    if options.shards.on == "ray":
        with _needs_extra("edgecls predict --on ray", "ray"):
            from edgecls.scale.on_ray import predict_on_ray as predict_shards
    with progress_on(_progress_console()) as progress:
        result = predict_shards(options, progress)
    _show(console, as_json, result, lambda: [shards_done(result)])
    if result.errors:
        raise typer.Exit(EXIT_ROW_ERRORS)


@app.command()
@flags(PlanOptions, arguments=("source",))
def plan(options: PlanOptions, as_json: AsJson = False) -> None:
    """List the inputs of a large prediction and write them down in shards, for many processes or machines."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls plan", "cloud"):
        from edgecls.scale.plan import make_plan
    from edgecls.tables.progress import progress_on
    from edgecls.tables.scale import planned

    with progress_on(_progress_console()) as progress:
        result = make_plan(options, progress)
    _show(console, as_json, result, lambda: [planned(result)])


@app.command()
@flags(MergeOptions, arguments=("plan",))
def merge(options: MergeOptions, as_json: AsJson = False) -> None:
    """Prove that every input of a plan has one row, of one model, and write the rows as one file. The exit code is 1 where rows are missing, and 3 where an input could not be read."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls merge", "cloud"):
        from edgecls.scale.merge import merge as merge_parts
    from edgecls.tables.progress import progress_on
    from edgecls.tables.scale import merged

    with progress_on(_progress_console()) as progress:
        result = merge_parts(options, progress)
    _show(console, as_json, result, lambda: merged(result))
    if result.again:
        raise typer.Exit(EXIT_ERROR)
    if result.errors:
        raise typer.Exit(EXIT_ROW_ERRORS)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="A run folder or a bundle.")] = "latest", as_json: AsJson = False
) -> None:
    """Compare every model file of a run with its golden answers, on every backend here. The exit code is 1 where one differs."""
    console = _console(data_on_stdout=as_json)
    from edgecls.export.judge.verify import verify as verify_run
    from edgecls.tables.verify import verified

    result = verify_run(run)
    _show(console, as_json, result, lambda: [verified(result)])
    if result.verdict == "failed":
        raise typer.Exit(EXIT_ERROR)


@app.command()
@flags(InspectOptions, arguments=("data",))
def inspect(options: InspectOptions, as_json: AsJson = False) -> None:
    """Look at a data set before it is trained on: copies across splits, double labels, broken and odd files. With --strict the exit code is 1 where one is found."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls inspect", "evaluate"):
        from edgecls.evaluate.look.inspect import inspect as look
        from edgecls.evaluate.page.inspection import write_inspection
    from edgecls.tables.inspect import inspected
    from edgecls.tables.progress import progress_on

    with progress_on(_progress_console()) as progress:
        result = look(options, progress, _doubting(options.model, progress))
        write_inspection(result)
    _show(console, as_json, result, lambda: inspected(result))
    if options.strict and not result.is_sound:
        raise typer.Exit(EXIT_ERROR)


def _doubting(model: str | None, progress: Progress) -> Any:
    """How labels are doubted; None where no model was named."""
    if model is None:
        return None
    with _needs_extra("edgecls inspect --model", "inspect"):
        from edgecls.evaluate.look.doubts import doubting
    return doubting(model, progress)


@app.command()
@flags(EvaluateOptions, arguments=("model", "data"))
def evaluate(options: EvaluateOptions, as_json: AsJson = False) -> None:
    """Measure a model on labelled images, every figure with its interval, and write a page to look at. The exit code is 1 where a condition of --fail-if holds."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls evaluate", "evaluate"):
        from edgecls.evaluate.evaluate import evaluate as measure
        from edgecls.evaluate.page.report import write_evaluation
    from edgecls.tables.evaluate import evaluated
    from edgecls.tables.progress import progress_on

    with progress_on(_progress_console()) as progress:
        measured = measure(options, progress)
        write_evaluation(measured)
    _show(console, as_json, measured.result, lambda: evaluated(measured.result))
    if measured.result.failed:
        raise typer.Exit(EXIT_ERROR)


@app.command()
@flags(CompareOptions, arguments=("model",))
def compare(options: CompareOptions, as_json: AsJson = False) -> None:
    """Compare models on the same images, or table all runs of a folder, and write a page to look at."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls compare", "evaluate"):
        from edgecls.evaluate.compare import compare as measure
        from edgecls.evaluate.page.report import write_comparison
    from edgecls.tables.evaluate import compared
    from edgecls.tables.progress import progress_on

    with progress_on(_progress_console()) as progress:
        result = measure(options, progress)
        write_comparison(result, options.out)
    _show(console, as_json, result, lambda: compared(result, options.out))


@app.command()
@flags(BenchOptions, arguments=("model",))
def bench(options: BenchOptions, as_json: AsJson = False) -> None:
    """Measure speed, memory and start-up of a model on this machine, for each precision, backend and batch size. The exit code is 1 where one did not run."""
    console = _console(data_on_stdout=as_json)
    from edgecls.bench.run import bench as measure
    from edgecls.tables.bench import benched

    if options.plot:
        with _needs_extra("edgecls bench --plot", "train"):
            from edgecls.bench.plot import draw_bench
    result = measure(options, on_step=lambda line: console.print(line, style="dim"))
    _show(console, as_json, result, lambda: benched(result))
    if options.plot:
        draw_bench(result, options.plot)
    if result.failed:
        raise typer.Exit(EXIT_ERROR)


@app.command()
@flags(BundleOptions, arguments=("run",))
def bundle(options: BundleOptions, as_json: AsJson = False) -> None:
    """Put what a device needs of a run into one file, which every command takes in place of the run."""
    console = _console(data_on_stdout=as_json)
    from edgecls.device.bundle import bundle as write
    from edgecls.tables.made import bundled

    result = write(options)
    _show(console, as_json, result, lambda: [bundled(result)])


@app.command()
@flags(DoctorOptions, arguments=("model",))
def doctor(options: DoctorOptions, as_json: AsJson = False) -> None:
    """Look at this machine: what can run a model, what is missing and how to mend it, and whether it is as fast as it should be. The exit code is 1 where nothing can run."""
    console = _console(data_on_stdout=as_json)
    from edgecls.device.doctor import doctor as examine
    from edgecls.tables.doctor import examined

    result = examine(options, on_step=lambda line: console.print(line, style="dim"))
    _show(console, as_json, result, lambda: examined(result))
    if result.verdict == "not ready":
        raise typer.Exit(EXIT_ERROR)


@app.command()
@flags(ServeOptions, arguments=("default_model",))
def serve(options: ServeOptions) -> None:
    """Answer over HTTP: POST /predict with a picture, or the Open Inference Protocol. SIGTERM ends it after what was accepted."""
    with _needs_extra("edgecls serve", "serve"):
        from edgecls.serve.run import serve as answer

    answer(options)


@app.command()
@flags(ModelsOptions, arguments=("model",))
def models(options: ModelsOptions, as_json: AsJson = False) -> None:
    """List networks to choose from: size, published accuracy, what INT8 loses, and their speed on this machine."""
    console = _console(data_on_stdout=as_json)
    from edgecls.export.models import models as list_models
    from edgecls.tables.models import listed
    from edgecls.tables.progress import progress_on

    with progress_on(_progress_console()) as progress:
        result = list_models(options, _measuring() if options.measure else None, progress)
    _show(console, as_json, result, lambda: [listed(result)])


def _measuring() -> Any:
    """How a network is measured, which loads torch."""
    with _needs_extra("edgecls models --measure", "train"):
        from edgecls.export.model_costs import costs_of
    return costs_of


@app.command()
@flags(PretrainedOptions, arguments=("model",))
def pretrained(options: PretrainedOptions, as_json: AsJson = False) -> None:
    """Make a run from published ImageNet weights with their own labels. Nothing is trained."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls pretrained", "train"):
        from edgecls.tables.made import pretrained
        from edgecls.train.networks.pretrained import pretrained as make_run
    result = make_run(options)
    _show(console, as_json, result, lambda: [pretrained(result)])


@app.command()
@flags(AdoptOptions, arguments=("file",))
def adopt(options: AdoptOptions, as_json: AsJson = False) -> None:
    """Make a run from an ONNX classifier that edgecls did not train. Its preprocessing goes into the graph."""
    console = _console(data_on_stdout=as_json)
    with _needs_extra("edgecls adopt", "train"):
        from edgecls.export.adopt.run import adopt as make_run
        from edgecls.tables.made import adopted
    result = make_run(options)
    _show(console, as_json, result, lambda: [adopted(result)])


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
    _show(console, as_json, result, lambda: [])


if __name__ == "__main__":
    app()
