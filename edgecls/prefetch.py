"""Work done in threads ahead of whoever consumes it: in order, with a bound on how far ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def n_cores() -> int:
    """Cores that this process may use (a container's or taskset's share, not the whole machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield the items in lists of `size`; the last one may be shorter, none is dropped."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def prefetch(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, n_threads: int, ahead: int
) -> Iterator[_Result]:
    """Yield `function(item)` for every item, in the order of the items.

    At most `ahead` results exist that have not been consumed, so memory is bounded however slow the
    consumer is; items are drawn lazily, so `items` may be endless. Reading files and decoding images
    release the interpreter lock, which is why threads are enough.

    An exception in `function` is raised where its result is due.
    """
    queue: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="prefetch") as pool:
        try:
            for item in items:
                if len(queue) >= max(ahead, 1):
                    yield queue.popleft().result()
                queue.append(pool.submit(function, item))
            while queue:
                yield queue.popleft().result()
        finally:  # the consumer stopped early: drop what has not started
            for future in queue:
                future.cancel()
