"""The convolution on small maps gives torch's own outputs and gradients, up to bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgecls.train.networks import small_maps
from edgecls.train.networks.small_maps import SmallMapConv


def trained(conv: nn.Module, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, gradient of the input, and those of the parameters, under bf16 autocast."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    conv.zero_grad()
    (y.float() * weights).sum().backward()
    assert x.grad is not None
    return y, x.grad, [parameter.grad for parameter in conv.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (7, 5), (2, 7), (8, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_torchs_own(height: int, width: int, bias: bool) -> None:
    torch.manual_seed(0)
    ours, own = SmallMapConv(5, 6, bias=bias), nn.Conv2d(5, 6, 3, padding=1, bias=bias)
    own.load_state_dict(ours.state_dict())
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(4, 5, height, width).to(memory_format=memory_format)
        weights = torch.randn(4, 6, height, width)
        ours.to(memory_format=memory_format), own.to(memory_format=memory_format)
        our_y, our_x, our_parameters = trained(ours, x, weights)
        own_y, own_x, own_parameters = trained(own, x, weights)
        assert our_y.dtype == torch.bfloat16
        assert len(our_parameters) == len(own_parameters) == 1 + bias
        for got, expected in [(our_y, own_y), (our_x, own_x), *zip(our_parameters, own_parameters, strict=True)]:
            assert got.shape == expected.shape
            torch.testing.assert_close(got.float(), expected.float(), rtol=0.03, atol=0.03)


@pytest.mark.parametrize(("side", "dtype", "n_calls"), [(7, torch.bfloat16, 1), (8, torch.bfloat16, 0), (7, None, 0)])
def test_is_used_for_small_maps_in_bf16_only(
    side: int, dtype: torch.dtype | None, n_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    usual = small_maps._weight_gradient
    monkeypatch.setattr(small_maps, "_weight_gradient", lambda x, g: (calls.append(1), usual(x, g))[1])
    conv = SmallMapConv(2, 3, bias=True)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = conv(torch.randn(2, 2, side, side))
    y.float().sum().backward()
    assert len(calls) == n_calls
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


def test_no_gradient_for_what_is_frozen() -> None:
    conv = SmallMapConv(2, 3, bias=False).requires_grad_(False)
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        conv(x).float().sum().backward()
    assert conv.weight.grad is None
    assert x.grad is not None
