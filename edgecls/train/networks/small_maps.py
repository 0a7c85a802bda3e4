"""3x3 convolutions on small maps, whose gradient oneDNN is slow at in bf16."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

_SMALL: Final = 7  # pixels a side; from 8 on oneDNN is as fast


class SmallMapConv(nn.Conv2d):
    """A 3x3 convolution with padding 1 that trains faster on maps of up to 7 px, under bf16 autocast on a CPU.

    oneDNN 3.13 computes its weight's gradient at a third of the speed of a matrix product of the same size with 256
    channels and 7 px, and at a tenth with 3 px. Here it is one such product, patches copied for it (of 256 images with
    256 channels and 7 px: 58 MB). Elsewhere, and where nothing is trained, this is torch's own convolution. Measured by
    benchmarks/small_maps.py.
    """

    def __init__(self, c_in: int, c_out: int, *, bias: bool) -> None:
        super().__init__(c_in, c_out, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        is_faster = (
            torch.is_grad_enabled()
            and x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and max(x.shape[2:]) <= _SMALL
        )
        if not is_faster:
            return super().forward(x)
        y: Tensor = _Convolution.apply(x.bfloat16(), self.weight.bfloat16())  # these casts have gradients of their own
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class _Convolution(torch.autograd.Function):
    """images (n, c_in, h, w), weight (c_out, c_in, 3, 3), both bf16 -> (n, c_out, h, w) bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        of_x = conv2d_input(x.shape, weight, gradient, padding=1) if wants_x else None  # type: ignore[no-untyped-call]
        return of_x, _weight_gradient(x, gradient) if wants_weight else None


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """(n, c_in, h, w) and (n, c_out, h, w) -> (c_out, c_in, 3, 3): every patch of 3x3 is a row of one matrix."""
    n, c_in, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, pixel, _ = padded.stride()
    # three neighbours of one row lie together in memory, so patches are copied in runs of 3 * c_in
    patches = padded.as_strided((n, height, width, 3, 3 * c_in), (image, row, pixel, row, 1)).reshape(-1, 9 * c_in)
    by_channel = gradient.permute(1, 0, 2, 3).reshape(len(gradient[0]), -1)
    return (by_channel @ patches).view(-1, 3, 3, c_in).permute(0, 3, 1, 2)
