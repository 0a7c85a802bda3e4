"""The check that an export must pass, and what is done so that INT8 passes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from edgecls.calibration.ranges import Calibration
from edgecls.export.graphs.equalise import equalised
from edgecls.export.graphs.int8 import layers, quantized
from edgecls.export.graphs.macs import macs_of
from edgecls.export.judge.float16 import FITS, Float16Fit
from edgecls.export.judge.measure import Logits
from edgecls.export.options import FLAVOURS, Flavour, GateOptions
from edgecls.images import Pixels
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions

# Equalisation is kept if it takes at least a tenth of the error: less is noise of a few dozen images.
_WORTH_IT: Final = 0.9


@dataclass(frozen=True)
class LayerError:
    """A layer, and the mean squared error of the logits with this layer alone in INT8; 0 where it was not measured."""

    layer: str
    error: float


@dataclass(frozen=True)
class Int8:
    """All that an INT8 graph is made of.

    Attributes:
        graph: the float32 network.
        calibration: of that graph.
        fit: what of that graph float16 cannot hold.
        given_back: by flavour, the layers that stay float: those asked for, then those that the gate gave back.
        is_equalised: whether `graph` is the equalised form of the exported one.
        is_trained: whether `graph` is the exported one with weights that were trained for INT8.
        notes: what was done to pass the gate, in words.
    """

    graph: onnx.ModelProto
    calibration: Calibration
    fit: Float16Fit = FITS
    given_back: Mapping[Flavour, tuple[LayerError, ...]] = field(default_factory=lambda: dict.fromkeys(FLAVOURS, ()))
    is_equalised: bool = False
    is_trained: bool = False
    notes: tuple[str, ...] = ()

    def names_given_back(self, flavour: Flavour) -> tuple[str, ...]:
        return tuple(each.layer for each in self.given_back[flavour])


@dataclass(frozen=True)
class Judged:
    """What one INT8 model answers to the validation images, (n, n_classes), and the share of top-1 that it loses."""

    logits: Logits
    drop: float


Judge = Callable[[Int8, Flavour], Judged]


def noise(graph: onnx.ModelProto, calibration: Calibration, probe: Pixels) -> float:
    """Mean squared error of the INT8 logits as a share of their variance: 0 is perfect, 1 is as good as chance."""
    expected = _logits(graph, probe)
    return _error(Int8(graph, calibration), expected, probe) / max(float(np.var(expected)), 1e-12)


def meet_gate(
    int8: Int8,
    gate: GateOptions,
    judge: Judge,
    prepared: Callable[[onnx.ModelProto], Int8],
    probe: Pixels,
    *,
    flavours: Sequence[Flavour] = FLAVOURS,
    on_step: Callable[[str], None] = lambda line: None,
) -> tuple[Int8, dict[Flavour, Judged]]:
    """Make INT8 lose no more than the gate allows: as it is, else equalised, else with layers given back to float.

    Args:
        judge: what one graph answers and loses.
        prepared: another form of the graph, calibrated on the same images.
        probe: (n, h, w, 3) uint8 calibration images by which layers are ranked. Not validation images: the
            ranking must not learn from what it is judged on.
        flavours: which graphs are asked for.
        on_step: called with a line before what takes long.

    Returns:
        The INT8 of which each flavour passes, or is the best that was found within its share of the time budget; and
        how each of its flavours was judged.
    """
    ends = time.monotonic() + gate.time_budget
    judged = {flavour: judge(int8, flavour) for flavour in flavours}
    if all(gate.allows(each.drop) for each in judged.values()):
        return int8, judged
    worst = f"{100 * _worst(judged):.2f} points of top-1, {gate.max_drop:g} are allowed"
    on_step(f"int8 loses {worst}: trying equalised channels")
    equal = _equalised(int8, prepared, probe)
    if equal is not None:
        equal_judged = {flavour: judge(equal, flavour) for flavour in flavours}
        if _worst(equal_judged) <= _worst(judged):
            on_step(equal.notes[-1])
            int8, judged = equal, equal_judged
        else:
            on_step(f"channels equalised: not kept, {100 * _worst(equal_judged):.2f} points are lost by it")
    failing = [flavour for flavour in flavours if not gate.allows(judged[flavour].drop)]
    if not failing:
        return int8, judged
    on_step(f"ranking {len(layers(int8.graph))} layers by the error that each makes alone, for the time that it saves")
    ranking = _ranked(int8.graph, _layer_errors(int8, probe, ends - gate.time_budget / 2))
    for number, flavour in enumerate(failing):
        now = time.monotonic()
        deadline = now + (ends - now) / (len(failing) - number)  # the others get as much
        int8, judged[flavour] = _with_layers_given_back(
            int8, flavour, judged[flavour], ranking, gate, judge, deadline, on_step
        )
    return int8, judged


def _worst(judged: Mapping[Flavour, Judged]) -> float:
    return max(each.drop for each in judged.values())


def _with_layers_given_back(
    int8: Int8,
    flavour: Flavour,
    judged: Judged,
    ranking: Sequence[LayerError],
    gate: GateOptions,
    judge: Judge,
    deadline: float,
    on_step: Callable[[str], None],
) -> tuple[Int8, Judged]:
    """One flavour with as many layers float as the gate asks for; the best that was tried where none passes."""

    def with_float(given: tuple[LayerError, ...]) -> Int8:
        return replace(int8, given_back={**int8.given_back, flavour: given})

    asked_for = int8.given_back[flavour]
    ranking = [each for each in ranking if each.layer not in int8.names_given_back(flavour)]
    best: tuple[LayerError, ...] = asked_for
    passing: tuple[Int8, Judged] | None = None
    too_few, enough, n = 0, 0, min(1, len(ranking))
    while too_few < n and time.monotonic() <= deadline:
        given = (*asked_for, *ranking[:n])
        found = judge(with_float(given), flavour)
        last = ranking[n - 1].layer
        given_back = last if n == 1 else f"{n} layers, the last {last},"
        on_step(f"{flavour}: {given_back} back to float, now {-100 * found.drop:+.2f} points of top-1")
        if gate.allows(found.drop):
            passing, enough = (with_float(given), found), n
            n = (too_few + enough) // 2  # fewer may do
            continue
        if found.drop < judged.drop:
            judged, best = found, given
        too_few = n
        n = (too_few + enough) // 2 if passing else min(2 * n, len(ranking))
    if passing:
        return passing
    is_late = time.monotonic() > deadline
    why = f"its share of the {gate.time_budget:g} s is over" if is_late else "every ranked layer is float"
    return replace(with_float(best), notes=(*int8.notes, f"{flavour}: gave up, {why}")), judged


def _ranked(graph: onnx.ModelProto, errors: Iterable[LayerError]) -> list[LayerError]:
    """The layers that are best given back first: much error for little time, of which multiplications are the measure.

    A layer costs a call even where it computes next to nothing: a tenth of the mean.
    """
    macs = macs_of(graph)
    call = 0.1 * sum(macs.values()) / max(1, len(macs))
    return sorted(errors, key=lambda each: -each.error / (macs.get(each.layer, 0) + call + 1))


def _equalised(int8: Int8, prepared: Callable[[onnx.ModelProto], Int8], probe: Pixels) -> Int8 | None:
    graph = equalised(int8.graph)
    if graph is None:
        return None
    expected = _logits(int8.graph, probe)
    changed = prepared(graph)
    candidate = replace(int8, graph=graph, calibration=changed.calibration, fit=changed.fit, is_equalised=True)
    before, after = (_error(each, expected, probe) for each in (int8, candidate))
    if not after < _WORTH_IT * before:
        return None
    note = f"channels equalised: mean squared error of the logits {before:.3g} to {after:.3g}"
    return replace(candidate, notes=(*int8.notes, note))


def _layer_errors(int8: Int8, probe: Pixels, deadline: float) -> Iterator[LayerError]:
    """One layer at a time in INT8, all others float. Layers that the time does not reach are not ranked."""
    expected = _logits(int8.graph, probe)
    names = layers(int8.graph)
    for name in names:
        if time.monotonic() > deadline:
            return
        yield LayerError(name, _error(int8, expected, probe, [other for other in names if other != name]))


def _error(int8: Int8, expected: NDArray[np.float32], probe: Pixels, given_back: list[str] | None = None) -> float:
    # TensorRT's form, whose activations are the coarser of the two; the rest in float32, which runs faster here
    graph = quantized(int8.graph, int8.calibration, "int8", given_back or ())
    return float(np.mean(np.square(_logits(graph, probe) - expected)))


def _logits(graph: onnx.ModelProto, probe: Pixels) -> NDArray[np.float32]:
    with OnnxRuntimeBackend(graph.SerializeToString(), BackendOptions("cpu")) as backend:
        return np.concatenate([backend.infer(probe[start : start + 8]) for start in range(0, len(probe), 8)])
