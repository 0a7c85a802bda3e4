"""What the other benchmarks share: networks with random weights, folders of photos, taking turns, and worker processes.

    EDGECLS_DATA=photos python benchmarks/networks.py [--cache FOLDER] [--size 224] [--ultralytics-python PYTHON]

Makes the networks ahead of the benchmarks that need them, which otherwise do so themselves: torchvision's MobileNetV2
at 224 or other pixels, adopted and exported to INT8; with the Python of an environment that has Ultralytics,
yolo11n-cls at 224 and 64 pixels too, adopted. Weights are random: speed does not depend on what a network has learnt.
Batch-norm statistics are those of noise for MobileNetV2, so that values keep their scale; those of photos for
yolo11n-cls, whose logits are centred and scaled too, so that photos get different labels. What is in FOLDER already is
kept.

EDGECLS_DATA is a folder with `imagenet-photos/<class index>/*.JPEG`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from edgecls.images import find_images

CACHE = Path(tempfile.gettempdir()) / ".bench"
EDGECLS = [sys.executable, "-m", "edgecls.cli"]
IMAGENET = ("0.485", "0.456", "0.406"), ("0.229", "0.224", "0.225")
N_CALIBRATION = 64

# Runs in Ultralytics' own environment: nothing of edgecls can be imported there
_YOLO = """
import sys, cv2, numpy as np, torch
from ultralytics import YOLO
size, files = int(sys.argv[1]), sys.argv[2:]
torch.manual_seed(0)
yolo = YOLO("yolo11n-cls.yaml")
head = yolo.model.model[-1].linear
seen = [cv2.cvtColor(cv2.resize(cv2.imread(file), (size, size)), cv2.COLOR_BGR2RGB) for file in files]
photos = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float() / 255
for module in yolo.model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = None  # the mean over all batches
logits = []
with torch.no_grad():
    yolo.model.train()
    yolo.model(photos)
    yolo.model.eval()
    handle = head.register_forward_hook(lambda module, given, answer: logits.append(answer))
    yolo.model(photos)
    handle.remove()
    scale = 2 / logits[0].std(0).mean()
    head.bias.sub_(logits[0].mean(0)).mul_(scale)
    head.weight.mul_(scale)
print(yolo.export(format="onnx", dynamic=True, imgsz=size, simplify=False))
"""


# Photos


def data_folder() -> Path:
    if "EDGECLS_DATA" not in os.environ:
        raise SystemExit("set EDGECLS_DATA to a folder with imagenet-photos/<class index>/*.JPEG")
    return Path(os.environ["EDGECLS_DATA"]).resolve()


def photos() -> list[Path]:
    return list(find_images(data_folder() / "imagenet-photos"))


def small_pictures() -> list[Path]:
    return list(find_images(data_folder() / "cifar10" / "test"))


def link(files: Iterable[Path], folder: Path, n: int) -> list[Path]:
    """Fill a new flat folder with `n` links to the files, over and over; returns them, in the order of `predict`."""
    folder.mkdir(parents=True)
    links = []
    for index, file in enumerate(islice(cycle(files), n)):
        links.append(folder / f"{index:06d}{file.suffix.lower()}")
        links[-1].symlink_to(file)
    return links


# Networks


def mobilenet_run(cache: Path = CACHE, size: int = 224) -> Path:
    """The run of MobileNetV2 with its INT8 files; made in a process of its own, since that one imports PyTorch."""
    run = cache / mobilenet_name(size)
    if not (run / "model.int8-cpu.onnx").exists():
        command = [sys.executable, __file__, "--cache", str(cache), "--size", str(size)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return run


def mobilenet_name(size: int) -> str:
    return "mobilenet_v2" if size == 224 else f"mobilenet_v2-{size}"


def make_mobilenet(cache: Path, size: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        write_mobilenet(folder / "mobilenet_v2.onnx", size)
        labels = folder / "labels.txt"
        labels.write_text("\n".join(f"{index:03d}" for index in range(1000)))  # as the class folders of the photos
        mean, std = IMAGENET
        adopt(folder / "mobilenet_v2.onnx", folder / "run", "--labels", labels, "--mean", *mean, "--std", *std)
        quantise(folder / "run")
        shutil.move(folder / "run", cache / mobilenet_name(size))


def quantise(run: Path) -> None:
    """Add the INT8 files to a run of 1,000 classes with random weights, which have no accuracy to lose."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, chosen in (("calibration", photos()[::2]), ("validation", photos()[1::2])):
            for photo in chosen[:N_CALIBRATION]:
                (folder / name / photo.parent.name).mkdir(parents=True, exist_ok=True)
                (folder / name / photo.parent.name / photo.name).symlink_to(photo)
        images = ("--calibration", folder / "calibration", "--validation", folder / "validation")
        edgecls("export", run, "--int8", *images, "--max-drop", 100, "--min-speedup", 0, "--method", "minmax")


def write_mobilenet(file: Path, size: int) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 3, size, size))
    given = torch.zeros(2, 3, size, size)
    free = {"x": {0: "n"}, "y": {0: "n"}}
    torch.onnx.export(
        network.eval(), (given,), str(file), dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=free
    )


def yolo_run(cache: Path, ultralytics_python: Path, size: int = 224) -> tuple[Path, Path]:
    """The ONNX file of yolo11n-cls as Ultralytics exports it, and the run adopted from it with its INT8 files."""
    cache.mkdir(parents=True, exist_ok=True)
    file, run = cache / f"yolo11n-cls-{size}.onnx", cache / f"yolo11n-cls-{size}"
    if not file.exists():
        with tempfile.TemporaryDirectory() as temporary:
            command = [str(ultralytics_python), "-c", _YOLO, str(size), *map(str, photos()[:N_CALIBRATION])]
            subprocess.run(command, cwd=temporary, env=ultralytics_environment(), check=True, stdout=sys.stderr)
            shutil.move(Path(temporary) / "yolo11n-cls.onnx", file)
    if not run.exists():
        adopt(file, run)
    if not (run / "model.int8-cpu.onnx").exists():
        quantise(run)
    return file, run


def ultralytics_environment() -> Mapping[str, str]:
    """Settings in a temporary folder, and no packages installed behind our back."""
    settings = Path(tempfile.gettempdir()) / ".bench-ultralytics"
    settings.mkdir(exist_ok=True)
    return {**os.environ, "YOLO_CONFIG_DIR": str(settings), "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}


def adopt(file: Path, run: Path, *flags: object) -> None:
    edgecls("adopt", file, *flags, "--out", run)


def edgecls(*arguments: object) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # it leaves runs/latest where it works
        command = [*EDGECLS, *map(str, arguments)]
        process = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{process.stdout}{process.stderr}")


# Measuring


def in_rounds(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Images a second by contender, a figure a round: they take turns, so that a busy machine hurts all alike.

    A round before them is not counted: it allocates and fills the page cache.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, run in contenders.items():
            speed = run()
            if index:
                speeds[name].append(speed)
        print(f"round {index} of {rounds}", file=sys.stderr, flush=True)
    return speeds


def medians(speeds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(found) for name, found in speeds.items()}


def speed_line(name: str, found: Sequence[float], note: str = "") -> str:
    return f"{name:44s}{statistics.median(found):8,.0f} img/s  ({min(found):,.0f} to {max(found):,.0f}) {note}".rstrip()


class Worker:
    """A process that answers JSON lines with JSON lines, and is stopped (SIGSTOP) while it has nothing to do.

    Its first line says that it is ready. What it prints on standard error is shown.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):  # other tools greet and warn
                self._process.send_signal(signal.SIGSTOP)
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{' '.join(self._process.args)[:200]}: ended with exit code {self._process.wait()}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait()


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--size", type=int, default=224, help="of the input of MobileNetV2, in pixels")
    parser.add_argument("--ultralytics-python", type=Path)
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    run = cache / mobilenet_name(arguments.size)
    if not run.exists():
        make_mobilenet(cache, arguments.size)
    print(run)
    if arguments.ultralytics_python:
        for size in (224, 64):
            print(*yolo_run(cache, arguments.ultralytics_python, size))


if __name__ == "__main__":
    main()
