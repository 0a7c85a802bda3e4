"""The experiments that course reports describe, one command each, on CIFAR-10 and on cats and dogs.

    EDGECLS_DATA=photos python benchmarks/experiments.py [--only WORD] [--out runs/experiments]

EDGECLS_DATA is a folder with `cifar10/{train,test}/<class>/` and `catsdogs/<class>/`. Every row is one `edgecls train`;
accuracy is that of CIFAR-10's test images, or of the validation images of cats and dogs (a fifth, or all of them by
folds), in the order of the table, one run each. Prints a Markdown table; rows whose run folder is complete are read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CIFAR = "cifar10"
PETS = "catsdogs"
LITE0 = "--model efficientnet_lite0"
ON_FEATURES = "--features efficientnet_lite0 --classifier"
HEAD = "--epochs 20 --freeze-epochs 20"


@dataclass(frozen=True)
class Experiment:
    """One row.

    Attributes:
        reported: the report's own figure on the same data, where there is one.
    """

    name: str
    data: str
    options: str
    reported: str = ""


EXPERIMENTS = (
    Experiment("logistic regression", CIFAR, "--model linear --epochs 5 --val-fraction 0.04"),
    Experiment("perceptron, three hidden layers", CIFAR, "--model mlp --epochs 5 --val-fraction 0.04"),
    Experiment(
        "small CNN", CIFAR,
        "--model cnn --channels 32,32 --convs 1 --padding none --last-pool none --batch-norm none --hidden 128 "
        "--epochs 5 --val-fraction 0.04",
    ),
    Experiment(
        "the same with batch norm", CIFAR,
        "--model cnn --channels 32,32 --convs 1 --padding none --last-pool none --batch-norm block --hidden 128 "
        "--epochs 5 --val-fraction 0.04",
    ),
    Experiment(
        "the same with dropout", CIFAR,
        "--model cnn --channels 32,32 --convs 1 --padding none --last-pool none --batch-norm block --hidden 128 "
        "--dropout 0.5 --epochs 5 --val-fraction 0.04",
    ),
    Experiment(
        "the same without augmentation", CIFAR,
        "--model cnn --channels 32,32 --convs 1 --padding none --last-pool none --batch-norm block --hidden 128 "
        "--augment none --epochs 5 --val-fraction 0.04",
    ),
    Experiment(
        "five narrow blocks", CIFAR,
        "--model cnn --channels 16,32,64,128,256 --convs 1 --last-pool none --batch-norm block --epochs 5 "
        "--val-fraction 0.04",
    ),
    Experiment("two convolutions a block", CIFAR, "--model cnn --epochs 3 --val-fraction 0.04"),
    Experiment("ResNet-9", CIFAR, "--model resnet9 --epochs 3 --val-fraction 0.04"),
    Experiment("airbench, ten minutes", CIFAR, "--model airbench --width 48 --epochs 7 --val-fraction 0.04"),
    Experiment(
        "airbench, full width, half an hour", CIFAR, "--model airbench --width 64 --epochs 14 --val-fraction 0.04"
    ),
    Experiment("logistic regression", PETS, "--model linear --image-size 64 --epochs 20 --lr 0.001"),
    Experiment("perceptron", PETS, "--model mlp --image-size 64 --hidden 200,100,50 --epochs 20"),
    Experiment(
        "LeNet's shape", PETS,
        "--model cnn --image-size 64 --channels 20,64 --convs 1 --padding none --batch-norm block --hidden 100,50 "
        "--epochs 20",
    ),
    Experiment(
        "four blocks, one wide layer", PETS,
        "--model cnn --image-size 224 --width 32 --blocks 4 --convs 1 --batch-norm none --hidden 1024 --epochs 3",
    ),
    Experiment(
        "three blocks of two, one wide layer", PETS,
        "--model cnn --image-size 224 --width 32 --blocks 3 --batch-norm block --hidden 1024 --epochs 3",
    ),
    Experiment("transfer, frozen backbone", PETS, f"{LITE0} {HEAD}"),
    Experiment("the same, a head of two layers", PETS, f"{LITE0} {HEAD} --hidden 256"),
    Experiment("logistic regression on features", PETS, f"{ON_FEATURES} logistic"),
    Experiment("SVM on features", PETS, f"{ON_FEATURES} svm"),
    Experiment("random forest on features", PETS, f"{ON_FEATURES} random-forest"),
    Experiment("boosting on features", PETS, f"{ON_FEATURES} boosting"),
    Experiment("five folds, frozen backbone", PETS, f"{LITE0} {HEAD} --folds 5"),
    Experiment("five folds, logistic regression on features", PETS, f"{ON_FEATURES} logistic --folds 5"),
    Experiment("five folds, SVM on features", PETS, f"{ON_FEATURES} svm --folds 5"),
    Experiment("five folds, random forest on features", PETS, f"{ON_FEATURES} random-forest --folds 5"),
    Experiment("five folds, boosting on features", PETS, f"{ON_FEATURES} boosting --folds 5"),
    Experiment("last stages fine-tuned at 96 px", PETS, f"{LITE0} --image-size 96 --epochs 12 --unfreeze last:4"),
    Experiment(
        "transfer, fine-tuned at 64 px, 30 minutes", CIFAR,
        f"{LITE0} --image-size 64 --epochs 7 --freeze-epochs 2 --val-fraction 0.04", "82.9 % (VGG16)",
    ),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name or command has this in it")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    given = parser.parse_args()
    root = Path(os.environ["EDGECLS_DATA"])
    print("| data | experiment | command | accuracy | seconds | parameters | reported |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for number, each in enumerate(EXPERIMENTS, 1):
        if given.only in f"{each.name} {each.data} {each.options}":
            print(row(each, root, given.out / f"{number:02d}"), flush=True)


def row(experiment: Experiment, root: Path, folder: Path) -> str:
    """Train, or read what was trained; returns the row of the table."""
    if not (folder / "metrics.json").is_file():
        command = [sys.executable, "-m", "edgecls.cli", "train", str(root / experiment.data), "--out", str(folder)]
        ended = subprocess.run(
            [*command, *experiment.options.split(), "--json"], capture_output=True, text=True, check=False
        )
        if ended.returncode:
            return f"| {experiment.data} | {experiment.name} | failed: {ended.stderr.strip()[-200:]} |"
    told: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    accuracy = f"{100 * told['validation_accuracy']:.2f} %"
    if told.get("test_accuracy") is not None:
        accuracy = f"{100 * told['test_accuracy']:.2f} %"
    if "validation_sd" in told:
        accuracy += f" ± {100 * told['validation_sd']:.2f}"
    n_parameters = told["n_parameters"] if "n_parameters" in told else told["folds"][0]["n_parameters"]
    cells = (
        experiment.data, experiment.name, f"`edgecls train {experiment.data} {experiment.options}`", accuracy,
        f"{told['seconds']:.0f}", f"{n_parameters:,}", experiment.reported,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
