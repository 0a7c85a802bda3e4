"""Options: one declaration for flags, files and the manifest."""

from __future__ import annotations

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edgecls import cli
from edgecls.bench.options import BenchOptions
from edgecls.device.options import BundleOptions, DoctorOptions
from edgecls.errors import OptionError
from edgecls.evaluate.look.options import InspectOptions
from edgecls.evaluate.options import CompareOptions, EvaluateOptions
from edgecls.export.options import AdoptOptions, BuildOptions, ExportOptions, ModelsOptions
from edgecls.flags import flags
from edgecls.options import flag_name, flags_of, flat, from_flat, read_flat, without_none
from edgecls.runtime.options import PredictOptions
from edgecls.scale.options import MergeOptions, PlanOptions
from edgecls.serve.options import ServeOptions
from edgecls.train.options import PretrainedOptions, TrainOptions, without_effect
from edgecls.train.recipe_options import NetworkOptions, RecipeOptions

CHANGED = TrainOptions(
    Path("photos"), NetworkOptions("cnn", width=8, hidden=(64, 32), batch_norm="none"), recipe=RecipeOptions(lr=0.5)
)


# the options of every command that has more than one, as they are without a flag
OF_COMMANDS: list[Any] = [
    TrainOptions(),
    ExportOptions(),
    BuildOptions(),
    PredictOptions(("photos",)),
    BenchOptions(),
    PretrainedOptions("efficientnet_lite0"),
    AdoptOptions(Path("model.onnx")),
    InspectOptions(),
    EvaluateOptions(),
    CompareOptions(("runs",)),
    ModelsOptions(),
    BundleOptions(),
    DoctorOptions(),
    ServeOptions(),
    PlanOptions("photos"),
    MergeOptions("plan"),
]
IDS = [type(options).__name__ for options in OF_COMMANDS]


@pytest.mark.parametrize("options", [*OF_COMMANDS, CHANGED], ids=[*IDS, "changed"])
def test_options_come_back_from_json_as_they_were(in_empty_folder: Path, options: Any) -> None:
    with_latest()
    assert from_flat(type(options), json.loads(json.dumps(flat(options))), "a test") == options


@pytest.mark.parametrize("options", OF_COMMANDS, ids=IDS)
def test_every_flag_has_a_name_of_its_own_and_a_help_line(options: Any) -> None:
    every = list(flags_of(type(options)))
    assert len({flag.name for flag in every}) == len(every)
    assert all(flag.help.endswith(".") for flag in every)
    assert all(flag.shown for flag in every if flag.default is None)


@pytest.mark.parametrize("options", OF_COMMANDS, ids=IDS)
def test_a_command_without_flags_gets_the_defaults(in_empty_folder: Path, options: Any) -> None:
    with_latest()
    seen: list[Any] = []
    app = typer.Typer()
    needed = [flag.name for flag in flags_of(type(options)) if flag.default is MISSING or flag.name == "source"]

    @app.command()
    @flags(type(options), arguments=tuple(needed))
    def command(options: Any) -> None:
        seen.append(options)

    words = [flat(options)[name] for name in needed]
    result = CliRunner().invoke(app, [word if isinstance(word, str) else word[0] for word in words])
    assert result.exit_code == 0, result.output
    assert seen == [options]


def with_latest() -> None:
    """A run that `latest` can name."""
    Path("runs/a").mkdir(parents=True)
    Path("runs/latest").symlink_to("a")


WRONG = [
    pytest.param({"epohcs": 3}, "no such option: epohcs", id="an unknown name"),
    pytest.param({"epochs": "many"}, "epochs is 'many'; expected int", id="a word for a number"),
    pytest.param({"epochs": True}, "epochs is True; expected int", id="a truth value for a number"),
    pytest.param({"schedule": "cosin"}, "expected cosine, onecycle", id="an unknown choice"),
    pytest.param({"hidden": [64, "x"]}, "expected a list of int", id="a list of mixed kinds"),
    pytest.param({"image-size": 4}, "--image-size 4: expected 8 to 1024", id="out of range, named with hyphens"),
    pytest.param({"data": None}, "data is None", id="no data"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_value_in_a_file_is_named_with_what_was_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        from_flat(TrainOptions, values, "mine.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[1]", "expected a JSON object"), (None, "No such file")],
    ids=["broken", "a list", "missing"],
)
def test_a_file_that_holds_no_options_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "o.json").write_text(text)
    with pytest.raises(OptionError, match=message):
        read_flat(tmp_path / "o.json")


def test_flags_win_over_the_file_of_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_empty_folder: Path, photos: Path
) -> None:
    photos.rename("photos")
    seen: list[TrainOptions] = []

    def record(options: TrainOptions, _listener: object, **_: object) -> None:
        seen.append(options)
        raise OptionError("seen")

    monkeypatch.setattr("edgecls.train.run.train", record)
    (tmp_path / "o.json").write_text(json.dumps({"epochs": 7, "batch-size": 4, "hidden": [5]}))
    result = CliRunner().invoke(
        cli.app, ["train", "photos", "--options", str(tmp_path / "o.json"), "--epochs", "3", "--track", "wandb, mlflow"]
    )
    assert "error: seen" in result.output
    (options,) = seen
    assert options.data == Path("photos")
    assert (options.recipe.epochs, options.recipe.batch_size, options.network.hidden) == (3, 4, (5,))
    assert options.machine.track == ("wandb", "mlflow")


TYPOS = [
    pytest.param(["--epochs", "x"], 2, "Invalid value for '--epochs'", id="a word for a number"),
    pytest.param(["--schedule", "cosin"], 2, "is not one of", id="an unknown choice"),
    pytest.param(["--hidden", "64,x"], 1, "--hidden 64,x: expected whole numbers with commas", id="a word in a list"),
    pytest.param(["--epohcs", "1"], 2, "No such option", id="an unknown flag"),
    pytest.param(["--track", "excel"], 1, "--track excel: expected mlflow or wandb", id="an unknown tracker"),
    pytest.param(["--folds", "1"], 1, "--folds 1: expected 0", id="one fold"),
    pytest.param(["--features", "runs/a"], 1, "--features and --classifier go together", id="half a pair"),
    pytest.param(["--folds", "5", "--extend", "latest"], 1, "--folds with --extend", id="folds of an extension"),
    pytest.param(["--unfreeze", "last:0"], 1, "--unfreeze last:0", id="unfreezing nothing"),
    pytest.param(["--find-lr", "--lr", "1"], 1, "--find-lr with --lr", id="looking for what is said"),
    pytest.param(["--resume", "latest", "--epochs", "3"], 1, "leave out DATA, --epochs", id="resuming otherwise"),
    pytest.param(["--device", "tpu"], 2, "is not one of", id="an unknown device"),
]


@pytest.mark.parametrize(("words", "code", "message"), TYPOS)
def test_a_typo_on_the_command_line_is_answered_with_what_was_expected(
    words: list[str], code: int, message: str
) -> None:
    result = CliRunner().invoke(cli.app, ["train", "data", *words], env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert message in " ".join(result.output.replace("│", " ").split())


# how each kind of training is asked for, and a value for every option that some kind ignores
KINDS: dict[str, dict[str, Any]] = {
    "with --classifier": {"features": "runs/a", "classifier": "svm"},
    "with as many --freeze-epochs as --epochs": {"epochs": 5, "freeze_epochs": 5},
    "from scratch": {"model": "cnn"},
    "without --teacher": {},
    "with --minutes": {"minutes": 2.0},
    "with --folds": {"folds": 5},
    "with --extend": {"extend": "runs/a"},
    "with --find-lr": {"find_lr": True},
}
OTHERS: dict[str, Any] = {
    "augment": ["flip"], "schedule": "linear", "optimizer": "sgd", "balance": "weights", "monitor": "f1",
    "norm_statistics": "learn", "precision": "fp32", "track": ["wandb"], "unfreeze": "last:2", "hidden": [8],
    "channels": [8], "schedule_at": [0.5, 1.0], "model": "resnet9", "weights": "none", "padding": "none",
    "last_pool": "max", "batch_norm": "block", "extend": "runs/b", "teacher": "runs/b", "strategy": "ddp",
    "resize": "pad", "interpolation": "area", "find_lr": True, "val_fraction": 0.3,
}  # fmt: skip
IGNORED = [(rule.kind, name) for rule in without_effect() for name in rule.names]


def another_value(name: str) -> Any:
    flag = next(flag for flag in flags_of(TrainOptions) if flag.name == name)
    if name in OTHERS:
        return OTHERS[name]
    hint = without_none(flag.type)[0]
    return 0.5 if hint is float else 3


@pytest.mark.parametrize(("kind", "name"), IGNORED, ids=[f"{name} {kind}" for kind, name in IGNORED])
def test_an_option_that_a_kind_of_training_ignores_is_refused_by_name(kind: str, name: str) -> None:
    values = KINDS[kind] | {name: another_value(name)}
    with pytest.raises(OptionError) as refused:
        from_flat(TrainOptions, values, "a test")
    assert flag_name(name) in str(refused.value)


def test_every_kind_of_training_is_allowed_without_what_it_ignores() -> None:
    assert {rule.kind for rule in without_effect()} == set(KINDS)
    for values in KINDS.values():
        from_flat(TrainOptions, values, "a test")


def test_docs_say_which_kind_ignores_what() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    for rule in without_effect():
        assert rule.kind in docs, rule.kind
