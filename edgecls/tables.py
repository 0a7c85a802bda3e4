"""What people see in the terminal: results as rich tables, one function a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from edgecls.manifest import Preprocessing
from edgecls.metrics import wilson_interval

if TYPE_CHECKING:  # the results' modules load torch or ONNX Runtime
    from edgecls.export.adopt import AdoptResult
    from edgecls.export.engine import EngineResult
    from edgecls.export.measure import Measurement
    from edgecls.export.run import ExportResult
    from edgecls.export.verify import VerifyResult
    from edgecls.metrics import PairedDifference
    from edgecls.runtime.bench import BenchResult, LayerProfile
    from edgecls.runtime.bench_contender import Cell, Contender
    from edgecls.runtime.machine import Machine, MachineState
    from edgecls.runtime.predict import PredictReport
    from edgecls.runtime.tally import EnsembleReport, TtaReport
    from edgecls.train.folds import FoldsResult
    from edgecls.train.pretrained import PretrainedResult
    from edgecls.train.progress import Epoch
    from edgecls.train.result import TrainResult

_PRECISION_NAMES: Final = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8 TensorRT",
    "int8-cpu": "INT8 CPU",
}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def with_interval(share: float, n: int) -> str:
    """A share with its 95 % interval, in per cent."""
    low, high = wilson_interval(share, n)
    return f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})"


def epoch_line(epoch: Epoch) -> str:
    """What an epoch gave, in a line of 80 characters at most; recall is the mean over the classes."""
    train, validation, recall = (
        f"{100 * share:.1f} %" for share in (epoch.train_accuracy, epoch.val_accuracy, epoch.val_recall)
    )
    return (
        f"epoch {epoch.epoch:2d} {epoch.phase:5s} loss {epoch.train_loss:.3f}, training {train}, "
        f"validation {validation}, recall {recall}, {epoch.seconds:.1f} s"
    )


def folds(result: FoldsResult) -> Table:
    """One line a fold; the mean and its standard deviation over the folds below them."""
    title = f"Cross-validation: {len(result.folds)} folds, stratified"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_footer=True)
    has_test = result.test_accuracy is not None
    table.add_column("fold", "mean ± sd", no_wrap=True, style="dim")
    for name, values in _fold_columns(result):
        spread = f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
        table.add_column(f"{name} %", spread, justify="right", no_wrap=True)
    if has_test:
        table.add_column("test", f"ensemble {percent(result.test_accuracy or 0)}", justify="right")
    has_epochs = any(fold.n_epochs for fold in result.folds)
    if has_epochs:
        table.add_column("best epoch", justify="right")
    table.add_column("time", f"{result.seconds:.1f} s", justify="right")
    for number, fold in enumerate(result.folds):
        figures = [f"{100 * values[number]:.2f}" for _, values in _fold_columns(result)]
        tested = [percent(fold.test_accuracy or 0)] if has_test else []
        epochs = [f"{fold.best_epoch} of {fold.n_epochs}"] if has_epochs else []
        table.add_row(str(number + 1), *figures, *tested, *epochs, f"{fold.seconds:.1f} s")
    return table


def _fold_columns(result: FoldsResult) -> list[tuple[str, list[float]]]:
    names = ("accuracy", "precision", "recall")
    return [(name, [fold.figures[f"validation_{name}"] for fold in result.folds]) for name in names]


def training(result: TrainResult) -> Table:
    table = _facts("Training")
    table.add_row("validation accuracy", f"{with_interval(result.validation_accuracy, result.n_validation)}")
    if result.test_accuracy is not None:
        table.add_row("test accuracy", f"{with_interval(result.test_accuracy, result.n_test)}")
    precision, recall, f1 = (result.figures[f"validation_{name}"] for name in ("precision", "recall", "f1"))
    table.add_row(
        "precision, recall, F1", f"{percent(precision)}, {percent(recall)}, {percent(f1)} (means over classes)"
    )
    if "extended" in result.figures:
        told = result.figures["extended"]
        table.add_row("new classes", f"{percent(told['new_after'])} of {told['n_new']:,}")
        before, after = percent(told["old_before"]), percent(told["old_after"])
        table.add_row("old classes", f"{after} of {told['n_old']:,}, {before} before; {told['forgotten']:,} forgotten")
    table.add_row("images", f"{result.n_train:,} train, {result.n_validation:,} validation, {result.n_test:,} test")
    if result.unreadable:
        table.add_row("left out", f"{len(result.unreadable):,} unreadable images, listed in split.csv")
    table.add_row("parameters", f"{result.n_parameters / 1e6:.2f} M")
    if result.n_epochs:
        table.add_row("best epoch", f"{result.best_epoch} of {result.n_epochs}")
    table.add_row("time", f"{result.seconds:.1f} s")
    table.add_row("run", str(result.run))
    return table


def exported(result: ExportResult) -> tuple[Table, str, Table]:
    """The files side by side, the verdict, and what else it rests on."""
    return _files(result), f"{result.verdict}: {result.reason}", _export_details(result)


def exported_members(results: Sequence[ExportResult]) -> Table:
    """A line a member of an ensemble, for those who do not want to compare its tables."""
    table = Table(title=f"Export of {len(results)} members", title_justify="left", box=box.SIMPLE)
    for name in ("member", "FP32 top-1", "points lost by INT8", "INT8 img/s over FP32's", "predict opens", "verdict"):
        table.add_column(name, justify="left" if name in ("member", "verdict") else "right")
    for result in results:
        lost = "-" if result.int8_drop is None else f"{100 * result.int8_drop:.2f}"
        speedup = "-" if result.int8_speedup is None else f"{result.int8_speedup:.2f}"
        top1 = _percent(result.precisions["fp32"].accuracy) or "-"
        table.add_row(result.run.name, top1, lost, speedup, _PRECISION_NAMES[result.serves], result.verdict)
    return table


def _files(result: ExportResult) -> Table:
    """One column a file: what it answers, what it lost, how sure it is, how fast it is."""
    files = result.precisions
    n_images = files["fp32"].n_images
    title = f"Export: {n_images:,} validation images" if n_images else "Export"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True, style="dim")
    for precision in files:
        table.add_column(_PRECISION_NAMES[precision], justify="right")

    def row(name: str, cell: Callable[[Measurement], str | None]) -> None:
        cells = [cell(each) for each in files.values()]
        if any(cells):
            table.add_row(name, *(text or "-" for text in cells))

    row("top-1", lambda each: _percent(each.accuracy))
    row("answers as FP32", lambda each: _percent(each.agreement) if each.paired else None)
    row("broken, fixed", lambda each: f"{each.paired.broken}, {each.paired.fixed}" if each.paired else None)
    row("points lost", lambda each: f"{100 * each.paired.drop:.2f}" if each.paired else None)
    row("  95 % interval", lambda each: _interval(each.paired) if each.paired else None)
    row("  p (McNemar)", lambda each: f"{each.paired.p_value:.2g}" if each.paired else None)
    row("  most in class", lambda each: _worst_class(each))
    row("confidence off by", lambda each: _percent(each.ece_before))
    row("  with temperature", lambda each: _percent(each.ece_after))
    for size in files["fp32"].speeds:
        row(f"img/s, batch of {size}", partial(_speed, result=result, size=size))
    row("MB", lambda each: f"{each.bytes / 1e6:.2f}")
    return table


def _percent(share: float | None) -> str | None:
    return None if share is None else percent(share)


def _interval(paired: PairedDifference) -> str:
    low, high = paired.drop_interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _worst_class(measured: Measurement) -> str | None:
    if not measured.classes:
        return None
    worst = measured.classes[0]
    return f"{worst.label} {100 * (worst.fp32 - worst.accuracy):.1f}"


def _speed(measured: Measurement, result: ExportResult, size: int) -> str | None:
    # what the graphs for GPUs do on this CPU says nothing about the device
    for_cpu = measured in (result.precisions["fp32"], result.precisions.get("int8-cpu"))
    return f"{measured.speeds[size]:,.0f}" if for_cpu else None


def _export_details(result: ExportResult) -> Table:
    """What the verdict rests on besides the figures."""
    facts = _facts("")
    fp32 = result.precisions["fp32"]
    facts.add_row(
        "FP32",
        f"logits within {result.parity.max_logit_difference:.1g} on {result.parity.n_images} golden images"
        + (
            "" if fp32.agreement is None else f", the same answer on {percent(fp32.agreement)} of the validation images"
        ),
    )
    for precision, each in result.precisions.items():
        if each.given_back:
            facts.add_row(f"float in {_PRECISION_NAMES[precision]}", ", ".join(each.given_back))
    for note in result.notes:
        facts.add_row("note", note)
    if result.n_calibration:
        facts.add_row("ranges", f"{result.method}, {result.n_calibration:,} calibration images")
    facts.add_row("speed", f"inference alone, {fp32.backend}, on this machine")
    if result.engine:
        state = "as built before" if result.engine.reused else f"built in {result.engine.seconds:.1f} s"
        facts.add_row("engine", f"{result.engine.file}, {state}")
    facts.add_row("time", f"{result.seconds:.1f} s")
    facts.add_row("run", str(result.run))
    return facts


def verified(result: VerifyResult) -> Table:
    title = f"Verify: {result.n_images} golden images, ONNX Runtime"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("file", no_wrap=True)
    table.add_column("backend", no_wrap=True)
    for name in ("logits off", "allowed", "same"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for check in result.checks:
        ran = check.agreement == check.agreement  # nan where it did not
        table.add_row(
            check.file,
            check.backend.removeprefix("onnxruntime-"),
            f"{check.max_logit_difference:.2g}" if ran else "-",
            f"{check.allowed:.2g}",
            f"{check.agreement:.0%}" if ran else "-",
            check.reason or "passed",
        )
    table.caption = "\n".join([f"{result.verdict}, {result.seconds:.1f} s", *result.changed])
    return table


def pretrained(result: PretrainedResult) -> Table:
    facts = _facts("Published weights")
    facts.add_row("weights", result.weights)
    facts.add_row("classes", f"{result.n_classes:,}")
    facts.add_row("parameters", f"{result.n_parameters / 1e6:.2f} M")
    facts.add_row("input", _described(result.preprocessing))
    facts.add_row(
        "proof", f"logits within {result.difference:.1g} of the published network's, relative, on real photos"
    )
    facts.add_row("run", str(result.run))
    facts.add_row("next", "edgecls export --int8 --calibration DIR --validation DIR")
    return facts


def adopted(result: AdoptResult) -> Table:
    facts = _facts("Adopted")
    facts.add_row("file", str(result.file))
    facts.add_row("classes", f"{result.n_classes:,}")
    facts.add_row("input", _described(result.preprocessing))
    for change in result.changes:
        facts.add_row("change", change)
    facts.add_row("proof", f"logits within {result.difference:.1g} of the original file's, relative, on real photos")
    facts.add_row("run", str(result.run))
    facts.add_row("next", "edgecls export --int8 --calibration DIR --validation DIR")
    return facts


def _described(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size_hw
    return (
        f"{height} x {width} px, {preprocessing.resize}, {preprocessing.interpolation}, "
        f"crop {preprocessing.crop_fraction:g}, mean {_rgb(preprocessing.mean)}, std {_rgb(preprocessing.std)}"
    )


def _rgb(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def built(result: EngineResult) -> Table:
    facts, record = _facts("Engine"), result.record
    facts.add_row("file", str(result.file))
    facts.add_row("state", "as built before: nothing changed" if result.reused else f"built in {result.seconds:.1f} s")
    facts.add_row("size", f"{result.bytes / 1e6:.2f} MB")
    facts.add_row("precision", _PRECISION_NAMES[record.precision])
    facts.add_row("batches", f"{record.batch.min} to {record.batch.max}, fastest at {record.batch.opt}")
    facts.add_row("runs on", record.runs_on)
    facts.add_row("built by", f"{record.flavour} {record.tensorrt}")
    return facts


def predicted(report: PredictReport) -> list[Table | str]:
    """Facts and the time of every stage; what the views and the members did, where there are several."""
    stages = [_stages(report)] if report.stages else []
    return [_prediction_facts(report), *stages, *_views(report.tta), *_members(report.ensemble)]


def _prediction_facts(report: PredictReport) -> Table:
    facts = _facts("Prediction")
    errors = f", {report.errors:,} could not be read (status = error)" if report.errors else ""
    facts.add_row("images", f"{report.images:,}{errors}")
    if report.abstained:
        facts.add_row("abstained", f"{report.abstained:,} below --min-confidence")
    if report.resumed:
        facts.add_row("resumed", f"{report.resumed:,} rows were there already")
    if report.skipped:
        facts.add_row("skipped", f"{report.skipped:,} files that are not named like an image")
    if report.accuracy is not None:
        facts.add_row(
            "accuracy",
            f"{with_interval(report.accuracy, report.labelled)} of {report.labelled:,} answered with a known label",
        )
    facts.add_row("speed", f"{report.images_per_second:,.1f} img/s, {report.seconds:.2f} s in all")
    views = f", {report.n_views} views" if report.n_views > 1 else ""
    facts.add_row("model", f"{report.model}, {report.precision}, {report.backend}, batch {report.batch_size}{views}")
    facts.add_row("peak memory", f"{report.peak_memory_mb:,.0f} MB")
    facts.add_row("rows", "standard output" if report.out == "-" else report.out)
    return facts


def _stages(report: PredictReport) -> Table:
    stages = Table(title="Milliseconds an image", title_justify="left", caption_justify="left")
    stages.add_column("stage")
    for name in ("p50", "p90", "p99", "share"):
        stages.add_column(name, justify="right")
    for stage, summary in report.stages.items():
        stages.add_row(
            stage,
            f"{summary.p50_ms:.2f}",
            f"{summary.p90_ms:.2f}",
            f"{summary.p99_ms:.2f}",
            f"{100 * summary.share:.0f} %",
        )
    if report.bottleneck:
        stages.caption = f"bottleneck: {report.bottleneck}"
    return stages


def _views(tta: TtaReport | None) -> Iterator[Table | str]:
    if tta is None:
        return
    table = Table(title=f"Views, {tta.n:,} images with a known label", title_justify="left", box=box.SIMPLE)
    table.add_column("view")
    for name in ("top-1", "points gained", "fixed", "broken", "ms more"):
        table.add_column(name, justify="right")
    for view in (*tta.views, tta.all):
        is_plain = view is tta.views[0]
        if view is tta.all:
            table.add_section()
        compared = [f"{100 * view.gained:+.2f}", f"{view.fixed:,}", f"{view.broken:,}", f"{view.added_ms:.2f}"]
        table.add_row(view.name, percent(view.accuracy), *(["-"] * 4 if is_plain else compared))
    yield table
    yield f"test-time augmentation is {tta.verdict}"


def _members(ensemble: EnsembleReport | None) -> Iterator[Table | str]:
    if ensemble is None:
        return
    how = f"vote: {ensemble.vote}" + ("" if ensemble.vote == "soft" else f", ties to {ensemble.tie_break}")
    known = f", {ensemble.n:,} images with a known label" if ensemble.n else ""
    table = Table(title=f"Ensemble, {how}{known}", title_justify="left", box=box.SIMPLE)
    table.add_column("member", overflow="fold")
    table.add_column("precision", no_wrap=True)
    for name in ("M params", "ms", "top-1", "alone right", "alone wrong"):
        table.add_column(name, justify="right", no_wrap=True)
    for member in ensemble.members:
        parameters = f"{member.parameters / 1e6:.2f}" if member.parameters else "-"
        judged = [_percent(member.accuracy) or "-", f"{member.only_right:,}", f"{member.only_wrong:,}"]
        table.add_row(
            member.name, member.precision, parameters, f"{member.infer_ms:.2f}", *(judged if ensemble.n else "---")
        )
    table.add_section()
    n_parameters = [member.parameters for member in ensemble.members]
    whole = "-" if None in n_parameters else f"{sum(n or 0 for n in n_parameters) / 1e6:.2f}"
    table.add_row("all", "", whole, f"{ensemble.infer_ms:.2f}", _percent(ensemble.accuracy) or "-", "", "")
    yield table
    if ensemble.subsets:
        yield "On the accuracy-latency front, where no other members are as good in less time:"
        yield _subsets(ensemble)


def _subsets(ensemble: EnsembleReport) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("voting", overflow="fold")
    table.add_column("ms", justify="right")
    table.add_column("top-1", justify="right")
    for subset in ensemble.subsets:
        if subset.is_on_front:
            table.add_row(" + ".join(subset.members), f"{subset.infer_ms:.2f}", percent(subset.accuracy))
    return table


def _facts(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Progress]:
    """A bar with one task, on a terminal; nothing elsewhere."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        bar.add_task(title, total=None)
        yield bar


_N_LAYERS: Final = 15
_NAME_WIDTH: Final = 28  # of a layer; names begin alike and end apart


def benched(result: BenchResult) -> list[Table | Text]:
    """The machine, the speeds, the files; the layers where they were timed; and what to be careful about."""
    return [
        _machine(result.machine, result.before, result.after),
        _sweep(result),
        _start_and_memory(result.contenders),
        *(_layers(profile) for profile in result.layers),
        *(Text(f"warning: {warning}", style="yellow") for warning in result.warnings),
    ]


def _machine(about: Machine, before: MachineState, after: MachineState) -> Table:
    facts = _facts("Machine")
    of = f" of {about.machine_cores}" if about.machine_cores != about.cores else ""
    facts.add_row("CPU", f"{about.cpu}, {about.cores}{of} cores")
    facts.add_row("  has", ", ".join(about.cpu_features) or "-")
    if before.cpu_clock_limit_mhz is not None:
        governor = f", governor {about.governor}" if about.governor else ""
        facts.add_row("  clock", f"up to {before.cpu_clock_limit_mhz:,.0f} MHz{governor}")
    if about.memory_mb is not None:
        facts.add_row("memory", f"{about.memory_mb / 1000:.1f} GB")
    if about.gpu:
        major, minor = about.gpu.compute_capability
        clock = "" if before.gpu_clock_limit_mhz is None else f", up to {before.gpu_clock_limit_mhz:,.0f} MHz"
        facts.add_row("GPU", f"{about.gpu.name}, {major}.{minor}, {about.gpu.total_bytes / 1e9:.1f} GB{clock}")
    for name, value in (("board", about.board), ("L4T", about.l4t), ("power mode", about.power_mode)):
        if value:
            facts.add_row(name, value)
    hot = [f"{name} {before.temperatures.get(name, celsius):.0f} to {celsius:.0f}" for name, celsius in
           sorted(after.temperatures.items(), key=lambda each: -each[1])[:3]]  # fmt: skip
    if hot:
        facts.add_row("°C", ", ".join(hot))
    facts.add_row("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items()))
    return facts


def _sweep(result: BenchResult) -> Table:
    """By batch size a row for each file and backend: times of a call, and images a second."""
    title = f"Inference, {result.n_rounds} rounds, {result.seconds:.0f} s in all"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("batch", justify="right")
    for name in ("precision", "backend"):
        table.add_column(name, no_wrap=True)
    for name in ("p50 ms", "p90", "p99", "img/s"):
        table.add_column(name, justify="right", no_wrap=True)
    cells = [(each, cell) for each in result.contenders for cell in each.cells]
    for size in sorted({cell.batch_size for _, cell in cells}):
        rows = [(each, cell) for each, cell in cells if cell.batch_size == size]
        soonest = min(cell.p50_ms for _, cell in rows)
        most = max(cell.images_per_second for _, cell in rows)
        for index, (each, cell) in enumerate(rows):
            table.add_row(
                "" if index else str(size),
                _PRECISION_NAMES[each.precision],
                each.backend,
                _marked(_ms(cell.p50_ms), len(rows) > 1 and cell.p50_ms == soonest),
                _ms(cell.p90_ms),
                _ms(cell.p99_ms),
                _marked(f"{cell.images_per_second:,.0f}", len(rows) > 1 and cell.images_per_second == most),
            )
        table.add_section()
    table.caption = f"{_how(result)}\n* fastest at that batch"
    return table


def _how(result: BenchResult) -> str:
    lanes = {each.device in ("cpu", "openvino"): cell.n_lanes for each in result.contenders for cell in each.cells}
    places = [f"{n} on the {'CPU' if on_cpu else 'GPU'}" for on_cpu, n in sorted(lanes.items(), reverse=True)]
    return f"ms: one call at a time; img/s: calls at a time, {', '.join(places)}"


def _marked(text: str, is_best: bool) -> Text:
    return Text(f"*{text}", style="bold green") if is_best else Text(text)


def _ms(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _start_and_memory(contenders: Sequence[Contender]) -> Table:
    table = Table(title="Files, start and memory", title_justify="left", caption_justify="left", box=box.SIMPLE)
    on_gpu = any(cell.gpu_memory_mb is not None for each in contenders for cell in each.cells)
    for name in ("precision", "backend"):
        table.add_column(name, no_wrap=True)
    for name in ("file\nMB", "start\nms", "MB", "MB, all\nlanes", *(["GPU\nMB"] if on_gpu else []), "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in contenders:
        gpu = [_span(each.cells, lambda cell: cell.gpu_memory_mb)] if on_gpu else []
        table.add_row(
            _PRECISION_NAMES[each.precision],
            each.backend,
            f"{each.bytes / 1e6:.2f}",
            "failed" if each.start_ms is None else f"{each.start_ms:,.0f}",
            _span(each.cells, lambda cell: cell.peak_memory_mb),
            _span(each.cells, lambda cell: cell.lanes_peak_memory_mb),
            *gpu,
            percent(each.accuracy.top1) if each.accuracy else "-",
        )
    table.caption = "start: opening to first answer; MB: peak, smallest to largest batch"
    return table


def _span(cells: Sequence[Cell], of: Callable[[Cell], float | None]) -> str:
    values = [value for cell in cells if (value := of(cell)) is not None]
    if not values:
        return "-"
    low, high = f"{values[0]:,.0f}", f"{values[-1]:,.0f}"
    return low if low == high else f"{low}-{high}"


def _layers(profile: LayerProfile) -> Table | Text:
    of = f"{_PRECISION_NAMES[profile.precision]}, {profile.backend}"
    if not profile.layers:
        return Text(f"Layers of {of}: {profile.note}")
    shown = profile.layers[:_N_LAYERS]
    title = f"Layers of {of}, batch {profile.batch_size}"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    table.add_column("kind", overflow="fold")
    for layer in shown:
        name = layer.name.removesuffix("/WithoutBiases")  # OpenVINO says so of every one
        short = name if len(name) <= _NAME_WIDTH else "…" + name[1 - _NAME_WIDTH :]
        table.add_row(f"{layer.ms:.3f}", f"{layer.ms / profile.layers_ms:.1%}", Text(short), Text(layer.kind))
    part = math.fsum(layer.ms for layer in shown) / profile.layers_ms
    table.caption = (
        f"{len(shown)} of {len(profile.layers)} layers, {part:.0%} of the layers' {_ms(profile.layers_ms)} ms; "
        f"a call took {_ms(profile.call_ms)} ms while they were timed" + (f"\n{profile.note}" if profile.note else "")
    )
    return table
