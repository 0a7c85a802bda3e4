"""The shards of a plan over a Ray cluster: only their numbers travel, no pixels and no rows.

Each actor opens the model once and answers shards as `predict --plan` does on one machine, so that a node that dies
costs the shards it was at: Ray starts the actor again elsewhere and gives it the shard again. All nodes must see the
plan's folder, the model and the source under the same names, as on a shared file system. Ray's own actors are used and
not its data sets, whose reading tasks wait for ever where actors hold every core (ray-project/ray#44687).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError

from edgecls.bundles import is_bundle
from edgecls.errors import RunError, first_line
from edgecls.progress import Progress
from edgecls.runs import find_model
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import PredictOptions
from edgecls.scale.parts import Footer, in_ranges
from edgecls.scale.plan import Plan
from edgecls.scale.run import ShardsReport, ShardWorker
from edgecls.storage import has_scheme

_TRIES: Final = 3  # of a shard whose actor dies
_SECONDS: Final = 10.0  # for a cluster to take a connection
_CORES: Final = 2  # of an actor without a GPU


class _Actor:
    """One opened model.

    It is opened at the first question: an actor that cannot be made is tried again, and Ray prints each traceback.
    """

    def __init__(self, options: PredictOptions) -> None:
        self._options = options

    @cached_property
    def _worker(self) -> ShardWorker:
        options = self._options
        plan = Plan.read(options.shards.place)
        return ShardWorker(plan, Classifier.of(options.members, options.classifier, options.vote), options)

    def left_of(self, shards: Sequence[int]) -> list[int]:
        """Those that have no part yet."""
        return self._worker.left_of(shards)

    def answer(self, shard: int) -> Footer | None:
        """Answer a shard; None where it has its part."""
        return None if self._worker.is_done(shard) else self._worker.answer(shard)


def predict_on_ray(options: PredictOptions, progress: Progress = Progress()) -> ShardsReport:
    """As `predict_shards`, by the actors of a Ray cluster; without one, Ray is started on this machine and ended.

    Raises:
        RunError: no such plan or cluster, or shards that failed: the others have their parts then.
        OptionError: a shard that the plan does not have.
    """
    started = time.perf_counter()
    plan = Plan.read(options.shards.place)
    asked = options.shards.chosen(plan.n_shards)
    if not asked:  # a share of fewer shards than there are shares
        return ShardsReport.of(plan, asked, {}, time.perf_counter() - started)
    done: dict[int, Footer] = {}
    failed: dict[int, str] = {}
    _start(options.shards.address)
    try:
        actors = _actors(_everywhere(options), len(asked))
        left = _left_of(actors[0], asked)
        progress.on_pass("images", sum(plan.counts[shard] for shard in left))
        for shard, found in _answered(actors, left):
            if isinstance(found, Footer):
                done[shard] = found
            elif found is not None:
                failed[shard] = found
            progress.on_images(plan.counts[shard])
    finally:
        ray.shutdown()
    if failed:
        shard, reason = next(iter(failed.items()))
        numbers = in_ranges(failed)
        raise RunError(
            f"{len(failed)} of {len(left)} shards failed, shard {shard} by: {reason}; run them again: --shard {numbers}"
        )
    return ShardsReport.of(plan, asked, done, time.perf_counter() - started)


def _start(address: str | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default, of which it warns
    dashboard = False if address is None else None
    try:
        _expect_somebody(address)
        ray.init(address=address, log_to_driver=False, include_dashboard=dashboard, logging_level=logging.ERROR)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise RunError(f"Ray cannot be reached at {address or 'this machine'}: {first_line(error)}") from error


def _expect_somebody(address: str | None) -> None:
    """Where an address has a port, somebody must listen there: Ray itself looks for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.rpartition("//")[2].strip("[]"), int(port)), _SECONDS).close()


def _everywhere(options: PredictOptions) -> PredictOptions:
    """The same with names that hold in any working folder."""
    there = {name: str(_place_of(name).resolve()) for name in options.models}
    plan = options.shards.place
    return replace(
        options,
        models=tuple(there.values()),
        vote=replace(options.vote, tie_break=there.get(options.vote.tie_break, options.vote.tie_break)),
        shards=replace(options.shards, plan=plan if has_scheme(str(plan)) else Path(plan).resolve()),
    )


def _place_of(model: str) -> Path:
    """A bundle itself, which each machine unpacks into a cache of its own; of any other name what is meant by it."""
    found = find_model(model)
    return Path(model) if is_bundle(Path(model)) else found


def _actors(options: PredictOptions, most: int) -> list[Any]:
    """One for each GPU, or for every two cores, or as many as were asked for; `most` at most."""
    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    there = [each["Resources"] for each in nodes if each["Alive"]]
    n_actors, cores, n_gpus = placed(
        [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in there], options.shards.workers, most
    )
    threads = replace(options.classifier, n_threads=max(1, cores))
    # a little less than the cores: tasks of Ray itself find room, and nothing waits for ever on a small machine
    remote: Any = ray.remote(num_cpus=0.9 * cores, num_gpus=n_gpus, max_restarts=-1, max_task_retries=_TRIES)
    made = remote(_Actor)
    return [made.remote(replace(options, classifier=threads)) for _ in range(n_actors)]


def placed(nodes: Sequence[tuple[int, int]], workers: int | None, most: int) -> tuple[int, int, int]:
    """How many actors there are, and how many cores and GPUs of one machine each asks for: Ray waits for ever where an
    actor fits on none.

    Args:
        nodes: cores and GPUs of each machine.
        workers: that were asked for; fewer where there is no room for them.
        most: actors.
    """
    if n_gpus := sum(gpus for _, gpus in nodes):
        n = min(workers or n_gpus, n_gpus, most)
        return n, min(cores // gpus for cores, gpus in nodes if gpus), 1

    def n_that_fit(size: int) -> int:
        return sum(cores // size for cores, _ in nodes)

    n = min(workers or n_that_fit(_CORES) or 1, max(1, n_that_fit(1)), most)
    largest = max((cores for cores, _ in nodes), default=1)
    return n, max((size for size in range(1, largest + 1) if n_that_fit(size) >= n), default=1), 0


def _left_of(actor: Any, shards: Sequence[int]) -> list[int]:
    """The shards that have no part.

    Raises:
        RunError: one has a part that is damaged, or of another plan, model or options; or no model can be opened.
    """
    try:
        left: list[int] = ray.get(actor.left_of.remote(shards))
    except RayError as error:
        raise RunError(_reason(error)) from error
    return left


def _answered(actors: Sequence[Any], shards: Sequence[int]) -> Iterator[tuple[int, Footer | str | None]]:
    """Each shard with its footer, None where somebody else was first, or why it failed."""
    waiting = list(reversed(shards))
    running: dict[Any, tuple[int, Any]] = {}
    while waiting or running:
        busy = {id(actor) for _, actor in running.values()}
        for actor in actors:
            if waiting and id(actor) not in busy:
                shard = waiting.pop()
                running[actor.answer.remote(shard)] = (shard, actor)
        (finished,), _ = ray.wait(list(running), num_returns=1)
        shard, _ = running.pop(finished)
        try:
            yield shard, ray.get(finished)
        except RayActorError as error:
            yield shard, f"its process died {_TRIES + 1} times: {first_line(error)}"
        except RayError as error:
            yield shard, _reason(error)


def _reason(error: RayError) -> str:
    """What went wrong, less the traceback of the actor."""
    cause = getattr(error, "cause", None) or error
    return next(reversed(str(cause).splitlines()), "") or type(cause).__name__
