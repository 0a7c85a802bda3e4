"""What can be known before torch is loaded, which takes seconds: the data, the runs, and the name of the network."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from edgecls.datasets import Dataset, open_dataset
from edgecls.errors import OptionError
from edgecls.runs import find_run
from edgecls.train.options import LITE_NAMES, SCRATCH, TIMM_PREFIX, NetworkOptions, TrainOptions

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
    use = options.data_use
    fewest = 1 if options.source.extend else 2
    dataset = open_dataset(options.data, val_fraction=use.val_fraction, seed=use.seed, fewest_classes=fewest)
    if dataset.has_own_validation and use.val_fraction != type(use)().val_fraction:
        raise OptionError(
            f"--val-fraction {use.val_fraction}: {options.data} has a val split of its own; leave the flag out"
        )
    return dataset


def check_network(options: NetworkOptions) -> None:
    """Refuse a name that no package knows, and a file of weights that is not there.

    Raises:
        OptionError: with the names that are close.
    """
    name, weights = options.model, options.resolved_weights
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise OptionError(f"--weights {weights}: no such file; expected imagenet, none, or a file with a state dict")
    if name in SCRATCH or name in LITE_NAMES:
        return
    package = "timm" if name.startswith(TIMM_PREFIX) else "torchvision"
    known, short = registered(package), name.removeprefix(TIMM_PREFIX).partition(".")[0]
    if not known or short in known:  # nothing is known of a package that lists its models otherwise
        return
    raise unknown_model(name, known)


def unknown_model(name: str, known: frozenset[str]) -> OptionError:
    """The error for a name that is none of `known`, with those that are close."""
    if name.startswith(TIMM_PREFIX):
        close = difflib.get_close_matches(name.removeprefix(TIMM_PREFIX), sorted(known), n=3, cutoff=0.5)
        hint = f"; close: {', '.join(close)}" if close else ""
        return OptionError(f"--model {name}: timm has no {name.removeprefix(TIMM_PREFIX)!r}{hint}")
    close = difflib.get_close_matches(name, [*SCRATCH, *LITE_NAMES, *sorted(known)], n=3, cutoff=0.5)
    hint = f" (close: {', '.join(close)})" if close else ""
    return OptionError(
        f"--model {name}: no such model{hint}; known are {', '.join((*SCRATCH, *LITE_NAMES))}, torchvision's "
        f"classifiers such as mobilenet_v2 or efficientnet_b0, and timm's as {TIMM_PREFIX}NAME"
    )


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
