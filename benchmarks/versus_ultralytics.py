"""The same network in Ultralytics' own classify predictor and in `predict`: images a second, and do they agree?

    python -m venv ul && ul/bin/pip install ultralytics onnx onnxruntime onnxslim
    EDGECLS_DATA=photos python benchmarks/versus_ultralytics.py --ultralytics-python ul/bin/python

yolo11n-cls with random weights, exported by Ultralytics to ONNX (FP32, dynamic batch). They run that very file
through ONNX Runtime; edgecls runs what `edgecls adopt` makes of it, through ONNX Runtime too, and through OpenVINO
where it is installed; and the INT8 file that `edgecls export --int8` makes of that, which is what `predict` would take
where it passes the gate. EDGECLS_DATA has `imagenet-photos/<class index>/*.JPEG` and `cifar10/test`; the cases are the
photos at 224 px, CIFAR-10's 32-pixel JPEGs through the same network, and CIFAR-10 through one of 64 px.

Theirs is `predict(source=list.txt, batch=32, stream=True, verbose=False, save=False)` in a process of their
environment, model loaded and warm, timed inside from the call to the last answer, and stopped (SIGSTOP) while it is
not its turn. Ours is the library call, timed from the first read to the last row of a CSV, which theirs does not
write; listing the inputs, milliseconds, is in theirs only. A first round is not counted.

Agreement is the share of the same top-1. Their resize is Pillow's antialiased bilinear and ours OpenCV's, which
differ where photos shrink; and the logits of random weights are close together, where a trained network has a clear
winner (docs/preprocessing.md has the agreement of one). So the share is also given with Pillow's resize before our
graph, which leaves the networks alone to compare: it must be near 100 %.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from networks import (
    CACHE,
    Worker,
    arguments_of,
    data_folder,
    in_rounds,
    link,
    photos,
    small_pictures,
    speed_line,
    ultralytics_environment,
    yolo_run,
)
from PIL import Image

from edgecls import images
from edgecls.prefetch import batches, n_cores
from edgecls.runtime.backends.selection import version_of
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import AskedPrecision, ClassifierOptions, Device, PredictOptions, RowsOptions
from edgecls.runtime.predict import predict

OURS: dict[str, tuple[Device, AskedPrecision]] = {
    "edgecls, ONNX Runtime": ("cpu", "fp32"),
    "edgecls, OpenVINO": ("openvino", "fp32"),
    "edgecls, ONNX Runtime, INT8": ("cpu", "int8"),
    "edgecls, OpenVINO, INT8": ("openvino", "int8"),
}
THEIRS = "Ultralytics, ONNX Runtime"

_ULTRALYTICS = """
import json, sys, time
from pathlib import Path
from ultralytics import YOLO
file, listed, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
yolo = YOLO(file, task="classify")
how = dict(imgsz=size, batch=32, stream=True, verbose=False, save=False)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    labels = {}
    started = time.perf_counter()
    for result in yolo.predict(source=listed, **how):
        labels[Path(result.path).name] = result.names[result.probs.top1]
    print(json.dumps({"seconds": time.perf_counter() - started, "labels": labels}), flush=True)
"""


def with_their_pixels(run: Path, files: list[Path]) -> dict[str, str]:
    """What our graph answers to Pillow's antialiased resize."""
    labels = {}
    with Classifier.open(run, device="cpu", precision="fp32") as classifier:
        preprocessing = classifier.manifest.preprocessing
        for batch in batches(files, 32):
            pixels = []
            for file in batch:
                picture = Image.fromarray(images.decode(file.read_bytes()))
                height, width = images.resized_hw(picture.height, picture.width, preprocessing)
                resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
                pixels.append(images.resize_and_crop(resized, preprocessing))  # only crops
            for file, index in zip(batch, classifier.logits(np.stack(pixels)).argmax(1), strict=True):
                labels[file.name] = classifier.manifest.labels[index]
    return labels


def compare(
    title: str, files: list[Path], n: int, size: int, rounds: int, cache: Path, ultralytics_python: Path
) -> None:
    file, run = yolo_run(cache, ultralytics_python, size)
    with tempfile.TemporaryDirectory() as temporary:
        links = link(files, Path(temporary) / "images", n)
        listed, out = Path(temporary) / "images.txt", Path(temporary) / "rows.csv"
        listed.write_text("\n".join(map(str, links)) + "\n")
        answers: dict[str, dict[str, str]] = {}
        command = [str(ultralytics_python), "-c", _ULTRALYTICS, str(file), str(listed), str(size)]
        with Worker(command, ultralytics_environment()) as worker:

            def theirs() -> float:
                answer = worker.ask(go=True)
                answers[THEIRS] = answer["labels"]
                assert len(answers[THEIRS]) == n, f"Ultralytics answered {len(answers[THEIRS])} of {n}"
                return n / answer["seconds"]

            def ours(name: str, device: Device, precision: AskedPrecision) -> float:
                how = ClassifierOptions(precision, device)
                report = predict(
                    PredictOptions((links[0].parent,), (str(run),), classifier=how, rows=RowsOptions(out=out))
                )
                with out.open(newline="") as rows:
                    answers[name] = {row["path"]: row["label"] for row in csv.DictReader(rows)}
                assert (report.images, report.errors) == (n, 0)
                return report.images_per_second

            contenders: dict[str, Callable[[], float]] = {THEIRS: theirs}
            contenders |= {
                name: partial(ours, name, device, precision)
                for name, (device, precision) in OURS.items()
                if device != "openvino" or version_of("openvino")
            }
            speeds = in_rounds(contenders, rounds)
        answers["our graph"] = with_their_pixels(run, links)

    def same_top1(name: str) -> float:
        return sum(answers[name][path] == label for path, label in answers[THEIRS].items()) / n

    print(f"\n{title}, {n:,} images, yolo11n-cls at {size} px, {n_cores()} cores")
    for name, found in speeds.items():
        print(speed_line(name, found))
    for name, found in speeds.items():
        if name != THEIRS:
            ratios = [one / other for one, other in zip(found, speeds[THEIRS], strict=True)]
            print(
                f"{name}: {statistics.median(ratios):.2f} times theirs (rounds: "
                f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}); same top-1 {same_top1(name):.1%}"
            )
    print(f"same top-1 with Pillow's resize before our graph {same_top1('our graph'):.1%}; ", end="")
    print(f"{len(set(answers[THEIRS].values()))} different labels", flush=True)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--ultralytics-python", type=Path, required=True, help="of an environment with Ultralytics")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--cifar", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    python = arguments.ultralytics_python.absolute()  # not resolved: the link is what makes it an environment
    how = (arguments.rounds, arguments.cache.resolve(), python)
    compare("photos", photos(), arguments.photos, 224, *how)
    cifar = small_pictures()
    if not cifar:
        print(f"no images in {data_folder() / 'cifar10' / 'test'}: CIFAR-10 left out")
        return
    for size in (224, 64):
        compare("CIFAR-10", cifar, arguments.cifar, size, *how)


if __name__ == "__main__":
    main()
