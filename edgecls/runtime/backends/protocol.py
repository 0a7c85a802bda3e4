"""What runs a model file, seen from above: images in, logits out. Nothing above knows which engine answers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import OptionError, RunError
from edgecls.images import Pixels
from edgecls.manifest import Manifest
from edgecls.prefetch import n_cores
from edgecls.runtime.options import Device
from edgecls.runtime.stages import StageTimes

_Self = TypeVar("_Self", bound="Backend")


class Backend(Protocol):
    """An opened model, which owns its memory until it is closed, or a `with` block ends; any thread may call `infer`.

    Attributes:
        manifest: what the file says about itself.
        name: engine and device, for reports, e.g. `onnxruntime-cpu`.
        n_lanes: inferences that really run at the same time; calls beyond wait.
        wants_whole_batches: whether a batch of another size than the last one costs much more than filling it up.
        runs_in_caller: whether it computes in the calling thread. Else the caller only waits, and its core wants
            somebody else to work on it.
    """

    manifest: Manifest
    name: str
    n_lanes: int
    runs_in_caller: bool = False
    wants_whole_batches: bool = False

    @abstractmethod
    def infer(self, images: Pixels, times: StageTimes | None = None) -> NDArray[np.float32]:
        """(n, h, w, 3) uint8 RGB, n >= 1 -> logits (n, n_classes) float32.

        Args:
            times: where given, filled with `infer`, and where they are steps of their own `copy-in` and `copy-out`.

        Raises:
            RunError: the model has been closed, or the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Give its memory back."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class BackendOptions:
    """Where a model is to run, and on how many threads.

    Attributes:
        device: what runs it.
        n_threads: CPU threads of all inferences together; None is every core this process may use.
        n_lanes: inferences at the same time on a CPU, which share the threads. One answers a single batch soonest;
            one a core answers many batches soonest (benchmarks/pipeline_layouts.py).
    """

    device: Device = "auto"
    n_threads: int | None = None
    n_lanes: int = 1

    def __post_init__(self) -> None:
        if self.n_lanes < 1 or (self.n_threads is not None and self.n_threads < 1):
            raise OptionError(f"n_threads {self.n_threads}, n_lanes {self.n_lanes}: expected 1 or more")

    @property
    def threads(self) -> int:
        return self.n_threads or n_cores()

    @property
    def threads_per_lane(self) -> int:
        return max(1, self.threads // self.n_lanes)


def check_signature(source: str, manifest: Manifest, dtype: str, input_shape: list[object], n_answers: object) -> None:
    """A graph that does not fit its manifest would be fed the wrong pixels, or give the wrong labels.

    Args:
        source: the file, for messages.
        dtype: of the input.
        input_shape: without the batch.
        n_answers: logits an image.

    Raises:
        RunError: it does not fit.
    """
    expected = ["uint8", *manifest.preprocessing.size_hw, 3]
    if [dtype, *input_shape] != expected or n_answers != len(manifest.labels):
        raise RunError(
            f"{source}: the graph does not fit its manifest: takes {[dtype, *input_shape]}, expected {expected}; "
            f"answers {n_answers} classes, expected {len(manifest.labels)}"
        )


def noise(n: int, manifest: Manifest) -> Pixels:
    """(n, h, w, 3) uint8 for a model that is only timed; the same every time."""
    return np.random.default_rng(0).integers(0, 256, (n, *manifest.preprocessing.size_hw, 3), np.uint8)


def closed() -> RunError:
    return RunError("this model has been closed: predict inside its `with` block, or open it again")
