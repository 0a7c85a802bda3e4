"""`edgecls models`: which network, by what is published and what it costs on this machine."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgecls.errors import EdgeclsError, OptionError
from edgecls.export.options import ModelsOptions
from edgecls.processor import cpu_name
from edgecls.progress import Progress
from edgecls.train.catalogue import ALIASES, CATALOGUE, CataloguedNetwork


@dataclass(frozen=True)
class Costs:
    """What a network costs on this machine; INT8 is the graph for CPUs. Speed does not depend on the weights.

    Attributes:
        fp32, int8: images a second, batches of 16, median of rounds that take turns.
        start_ms: from the INT8 file to its first answer, without loading ONNX Runtime.
        megabytes: of the INT8 file.
    """

    fp32: float
    int8: float
    start_ms: float
    megabytes: float


CostsOf = Callable[[CataloguedNetwork], Costs]


@dataclass(frozen=True)
class ModelsRow:
    """One network; `costs` is None where nothing was measured, and `error` says why where it should have been."""

    network: CataloguedNetwork
    alias: str | None
    costs: Costs | None = None
    error: str = ""


@dataclass(frozen=True)
class ModelsResult:
    """The table.

    Attributes:
        machine: the processor that `costs` are of; empty where nothing was measured.
    """

    rows: tuple[ModelsRow, ...]
    machine: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def models(options: ModelsOptions, costs_of: CostsOf | None = None, progress: Progress = Progress()) -> ModelsResult:
    """List networks, and measure them where it is said how.

    Raises:
        OptionError: a name that is not in the table.
    """
    started = time.perf_counter()
    networks = [_named(name) for name in options.models] or list(CATALOGUE)
    aliases = {model: alias for alias, model in ALIASES.items()}
    rows = []
    if costs_of:
        progress.on_pass("networks measured", len(networks))
    for network in networks:
        row = ModelsRow(network, aliases.get(network.model))
        if costs_of:
            row = _measured(row, costs_of)
            progress.on_images(1)
        rows.append(row)
    return ModelsResult(tuple(rows), cpu_name() if costs_of else "", time.perf_counter() - started)


def _named(name: str) -> CataloguedNetwork:
    known = {network.model: network for network in CATALOGUE}
    model = ALIASES.get(name, name)
    if model not in known:
        close = difflib.get_close_matches(name, [*known, *ALIASES], 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; expected one of {', '.join(known)}"
        raise OptionError(f"{name}: not in the table of edgecls models{hint}")
    return known[model]


def _measured(row: ModelsRow, costs_of: CostsOf) -> ModelsRow:
    try:
        return replace(row, costs=costs_of(row.network))
    except EdgeclsError as error:  # one network that is not installed leaves the others
        return replace(row, error=str(error))
