"""Export runs with --int8 and put what became of each into one Markdown table: docs/int8.md has it.

    python benchmarks/int8_networks.py RUN... [--run RUN CALIBRATION VALIDATION]...

Each RUN is a trained run with its own splits; with --run, folders of its calibration and validation images are named,
as a pretrained run needs them. Nothing is tuned by run: the options of export are its defaults. Speeds are those of the
same process and minute, batches of 16; what the GPU graphs do on a CPU is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecls.calibration.options import SampleOptions
from edgecls.export.judge.measure import Measurement
from edgecls.export.options import ExportOptions
from edgecls.export.result import ExportResult
from edgecls.export.run import export
from edgecls.progress import Progress
from edgecls.runs import find_run

COLUMNS = ["network", "images", "file", "top-1", "as FP32", "broken, fixed", "points lost (95 %)", "img/s", "MB"]
HEADER = f"| {' | '.join(COLUMNS)} | layers given back |"
RULE = "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
NAMES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8 TensorRT", "int8-cpu": "INT8 CPU"}


def cells(name: str, measured: Measurement) -> list[str]:
    paired = measured.paired
    for_cpu = name in ("fp32", "int8-cpu")
    assert measured.accuracy is not None
    return [
        NAMES[name],
        f"{measured.accuracy:.2%}",
        f"{measured.agreement:.2%}" if paired else "",
        f"{paired.broken}, {paired.fixed}" if paired else "",
        "{:.2f} ({:.1f} to {:.1f})".format(100 * paired.drop, *(100 * end for end in paired.drop_interval))
        if paired
        else "",
        f"{measured.images_per_second:,.0f}" if for_cpu else "",
        f"{measured.bytes / 1e6:.2f}",
        ", ".join(measured.given_back) or ("" if name in ("fp32", "fp16") else "none"),
    ]


def rows(result: ExportResult) -> list[str]:
    model = find_run(result.run).manifest.model
    n_images = result.precisions["fp32"].n_images
    lines = []
    for name, measured in result.precisions.items():
        first = [model, f"{n_images:,}"] if name == "fp32" else ["", ""]
        lines.append("| " + " | ".join([*first, *cells(name, measured)]) + " |")
    state = f"**{result.verdict}**, {result.seconds:.0f} s: {result.reason}"
    notes = "; ".join(note for note in result.notes if "equalised" in note or "gave up" in note)
    lines.append(f"| | | {state}{'; ' + notes if notes else ''} |" + " |" * 7)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--run", nargs=3, action="append", default=[], metavar=("RUN", "CALIBRATION", "VALIDATION"))
    arguments = parser.parse_args()
    jobs = [ExportOptions(run, int8=True) for run in arguments.runs]
    jobs += [
        ExportOptions(run, int8=True, sample=SampleOptions(source=Path(calibration)), validation=Path(validation))
        for run, calibration, validation in arguments.run
    ]
    table = [HEADER, RULE]
    for job in jobs:
        table += rows(export(job, Progress(lambda line: print(f"  {line}", flush=True))))
    print("\n".join(table))


if __name__ == "__main__":
    main()
