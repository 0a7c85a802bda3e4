"""A network that computes as its INT8 files: the same answers, and gradients for both ends of a range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgecls.calibration.ranges import Calibration
from edgecls.export.graphs.int8 import quantized, rounded_in
from edgecls.export.graphs.session import run_session, session_of
from edgecls.export.options import FLAVOURS, Flavour
from edgecls.golden import Golden
from edgecls.runs import Run
from edgecls.train.networks.onnx_network import OnnxNetwork
from edgecls.train.networks.quantised_network import Quantisation, QuantisedNetwork, _RoundedToRange


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_it_answers_as_the_int8_file(exported_run: Path, flavour: Flavour) -> None:
    graph, calibration = onnx.load(exported_run / "model.onnx"), Calibration.read(exported_run / "calibration.json")
    pixels = Golden.of(Run(exported_run)).images
    int8 = quantized(graph, Calibration(**{**vars(calibration), "means": {}}), flavour)
    tensors, weights = rounded_in(int8)
    assert tensors <= set(calibration.ranges)
    assert weights
    quantisation = Quantisation(tensors, weights, is_symmetric=flavour == "int8")
    student = QuantisedNetwork(OnnxNetwork(graph), calibration.ranges, [quantisation])
    with torch.inference_mode():
        float32, got = (student(torch.from_numpy(pixels), each).numpy() for each in (None, quantisation))
    (expected,) = run_session(session_of(int8, Path("x.onnx")), pixels, Path("x.onnx"))
    noise = np.square(expected - float32).mean()
    assert noise > 0
    # a value on the edge of a step may fall to the other side in other arithmetic
    assert np.square(got - expected).mean() < 0.3 * noise


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_both_ends_of_a_range_have_the_gradient_of_what_they_clip(is_symmetric: bool) -> None:
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    x = torch.tensor([-3.0, -2.0, 0.4, 7.0], requires_grad=True)
    rounded = _RoundedToRange.apply(x, low, high, is_symmetric)
    step = 1.5 / 127 if is_symmetric else 2.5 / 255
    assert torch.allclose(rounded, torch.tensor([-1.5 if is_symmetric else -1.0] * 2 + [0.4, 1.5]), atol=step)
    rounded.sum().backward()
    assert x.grad is not None
    assert low.grad is not None
    assert high.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 0]
    inside = (rounded[2] - x[2]).item() / step
    if is_symmetric:  # one end moves both: one value is clipped above, two below
        assert (low.grad.item(), high.grad.item()) == (0, pytest.approx(1 - 2 + inside / 127, abs=1e-4))
    else:
        assert low.grad.item() == pytest.approx(2 - inside / 255, abs=1e-4)
        assert high.grad.item() == pytest.approx(1 + inside / 255, abs=1e-4)


def test_a_range_that_begins_at_zero_does_so_after_a_step(exported_run: Path) -> None:
    graph = onnx.load(exported_run / "model.onnx")
    name = graph.graph.node[-1].input[0]
    for first, moved, expected in (
        ((0.0, 2.0), (-0.5, -1.0), (0.0, 1e-8)),
        ((-1.0, 2.0), (0.5, 3.0), (0.0, 3.0)),
        ((-1.0, 2.0), (-0.5, 1.0), (-0.5, 1.0)),
    ):
        student = QuantisedNetwork(
            OnnxNetwork(graph), {name: first}, [Quantisation(frozenset({name}), {}, is_symmetric=False)]
        )
        with torch.no_grad():
            student.lows[0].fill_(moved[0])
            student.highs[0].fill_(moved[1])
        student.keep_ranges_sound()
        assert student.ranges[name] == pytest.approx(expected)
