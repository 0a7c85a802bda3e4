"""What was used, written down: `recipe.json`, which repeats a training also after a default has changed."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from edgecls import __version__
from edgecls.errors import RunError
from edgecls.options import OPTIONS_KEY, flat
from edgecls.runs import RECIPE, find_model, write_json
from edgecls.train.data.pixels import Decoded
from edgecls.train.machine import resolved_device
from edgecls.train.options import SourceOptions, TrainOptions
from edgecls.train.recipe_options import IMAGENET, NONE

_PACKAGES: Final = ("torch", "torchvision", "lightning", "timm", "numpy", "opencv-python-headless", "scikit-learn")


class Stopwatch:
    """Seconds of a run by what it did, in order.

    Args:
        decoded: what the run begins with; decoding it is the first lap.
    """

    def __init__(self, decoded: Decoded) -> None:
        self._last = time.perf_counter()
        self.started = self._last - decoded.seconds
        self.laps = {"decode": decoded.seconds}

    def lap(self, name: str) -> None:
        """What has passed since the last lap was spent on this."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def repeatable(options: TrainOptions) -> TrainOptions:
    """The options with whole paths in place of relative ones and of `latest`, and without the folder of this run."""
    weights, source = options.network.weights, options.source
    if weights not in (None, IMAGENET, NONE):
        weights = str(Path(str(weights)).absolute())
    sources = {name: _whole_name(getattr(source, name)) for name in ("extend", "teacher", "features")}
    return replace(
        options,
        data=options.data.absolute(),
        network=replace(options.network, weights=weights),
        source=SourceOptions(**{**vars(source), **sources}),
        out=None,
    )


def _whole_name(name: str | None) -> str | None:
    """A run's folder; the name of a published model stays."""
    if name is None:
        return None
    try:
        return str(find_model(name).absolute())
    except RunError:
        return name


def write_recipe(folder: Path, options: TrainOptions, seconds: Mapping[str, float] | None = None) -> Mapping[str, Any]:
    """Write `recipe.json`; returns what is in it.

    Args:
        options: with the choices made so far.
        seconds: by phase, once they are known.
    """
    values = {
        OPTIONS_KEY: flat(repeatable(options)),
        "versions": {"edgecls": __version__, "python": platform.python_version(), **_versions()},
        "device": _device(options),
        "threads": torch.get_num_threads(),
        "seconds": {name: round(value, 1) for name, value in (seconds or {}).items()},
    }
    write_json(folder / RECIPE, values)
    return values


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # timm is needed for its own networks only
            continue
    return found


def _device(options: TrainOptions) -> str:
    if resolved_device(options.machine) == "cuda":
        return str(torch.cuda.get_device_name())
    return platform.processor() or platform.machine()
