"""What can be known before torch is loaded, which takes seconds: the data, the runs, and the name of the network."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from edgecls.datasets import Dataset, open_dataset
from edgecls.errors import OptionError, RunError
from edgecls.options import from_flat, read_flat
from edgecls.runs import METRICS, RECIPE, RESUME, UNFINISHED, find_model, find_run
from edgecls.train.options import TrainOptions
from edgecls.train.recipe_options import IMAGENET, LITE_NAMES, NONE, SCRATCH, TIMM_PREFIX, NetworkOptions

# how both packages list what they have: a decorator on the function that builds it
_REGISTERED: Final = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)


def open_for(options: TrainOptions) -> Dataset:
    """The labelled images of a training.

    Raises:
        DatasetError: as `open_dataset`.
        OptionError: an option about the split that the data's own split leaves without effect.
        RunError: a run to start or learn from that is not there.
    """
    for name in (options.source.extend, options.source.teacher):
        if name:
            find_run(name)  # before the images, which take a while
    _check_features(options.source.features)
    use = options.data_use
    fewest = 1 if options.source.extend else 2
    dataset = open_dataset(options.data, val_fraction=use.val_fraction, seed=use.seed, fewest_classes=fewest)
    if dataset.has_own_validation and use.val_fraction != type(use)().val_fraction:
        raise OptionError(
            f"--val-fraction {use.val_fraction}: {options.data} has a val split of its own; leave the flag out"
        )
    return dataset


def _check_features(name: str | None) -> None:
    if name is None or is_model(name):
        return
    try:
        find_model(name)
    except RunError as error:
        unknown = unknown_model(name, registered(_package(name)))
        raise OptionError(f"--features {name}: neither a run ({error}) nor a model ({unknown})") from error


def options_of_run(name: str | Path) -> tuple[Path, TrainOptions]:
    """The folder and the options of a training that was killed.

    Raises:
        RunError: no such run, one without a recipe, or one that has ended.
        OptionError: a recipe that this version does not understand.
    """
    folder = find_model(name)
    recipe = folder / RECIPE
    if not recipe.is_file():
        raise RunError(f"{name}: no {RECIPE} in it, so there is nothing to resume; start anew with: edgecls train DATA")
    if (folder / METRICS).is_file() and not any((folder / name).exists() for name in (RESUME, UNFINISHED)):
        raise RunError(f"{name}: its training has ended; to train on, use --weights {folder}/checkpoint.pt")
    return folder, from_flat(TrainOptions, read_flat(recipe), str(recipe))


def check_network(options: NetworkOptions) -> None:
    """Refuse a name that no package knows, and a file of weights that is not there.

    Raises:
        OptionError: with the names that are close.
    """
    weights = options.resolved_weights
    if weights not in (IMAGENET, NONE) and not Path(weights).is_file():
        raise OptionError(f"--weights {weights}: no such file; expected imagenet, none, or a file with a state dict")
    if not is_model(options.model):
        raise unknown_model(options.model, registered(_package(options.model)))


def is_model(name: str) -> bool:
    """Whether a network has this name, as far as can be known without loading the package that would have it."""
    known = registered(_package(name))
    is_listed = name.removeprefix(TIMM_PREFIX).partition(".")[0] in known
    return name in (*SCRATCH, *LITE_NAMES) or is_listed or not known


def _package(name: str) -> str:
    return "timm" if name.startswith(TIMM_PREFIX) else "torchvision"


def unknown_model(name: str, known: frozenset[str]) -> OptionError:
    """The error for a name that is none of `known`, with those that are close."""
    if name.startswith(TIMM_PREFIX):
        close = _close(name.removeprefix(TIMM_PREFIX), sorted(known))
        hint = f"; close: {', '.join(close)}" if close else "; a name is timm/NAME, such as timm/mobilenetv4_conv_small"
        return OptionError(f"--model {name}: timm has no {name.removeprefix(TIMM_PREFIX)!r}{hint}")
    close = _close(name, [*SCRATCH, *LITE_NAMES, *sorted(known)])
    hint = f" (close: {', '.join(close)})" if close else ""
    return OptionError(
        f"--model {name}: no such model{hint}; known are {', '.join((*SCRATCH, *LITE_NAMES))}, torchvision's "
        f"classifiers such as mobilenet_v2 or efficientnet_b0, and timm's as {TIMM_PREFIX}NAME"
    )


def _close(name: str, known: list[str]) -> list[str]:
    """Names that begin, end or are spelt like this one."""
    within = [each for each in known if len(name) > 2 and name.lower() in each]
    return within[:3] or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)


@cache
def registered(package: str) -> frozenset[str]:
    """Names of the models that a package registers, read from its source: importing it takes seconds.

    Returns:
        None at all where the package is not installed, or lists its models in another way.
    """
    spec = find_spec(package)  # does not load it
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(spec.submodule_search_locations[0]) / "models"
    sources = (file.read_text(encoding="utf-8", errors="ignore") for file in sorted(folder.glob("*.py")))
    return frozenset(name for source in sources for name in _REGISTERED.findall(source))
