"""A float network that computes as its INT8 graph will, with gradients: rounding is passed over, clipping is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from edgecls.train.networks.onnx_network import OnnxNetwork

Range = tuple[float, float]

_INT8: Final = 127  # on either side of zero; -128 is not used, so that the levels are symmetric
_UINT8: Final = 255
_NARROWEST: Final = 1e-8  # of a range: a step of zero would divide by zero


@dataclass(frozen=True)
class Quantisation:
    """What one INT8 graph of a network rounds.

    Attributes:
        activations: names of the tensors that are rounded, each with one range.
        weights: names of the weights that are rounded, and the axis of their output channels.
        is_symmetric: activations are int8 around zero, as TensorRT wants them; else uint8 over the range, as CPUs do.
    """

    activations: frozenset[str]
    weights: Mapping[str, int]
    is_symmetric: bool


class QuantisedNetwork(nn.Module):
    """A network and the ranges of its tensors, both to be trained.

    Args:
        network: float32.
        ranges: lowest and highest value by tensor name, to begin with.
        quantisations: of its INT8 graphs.
    """

    def __init__(
        self, network: OnnxNetwork, ranges: Mapping[str, Range], quantisations: Sequence[Quantisation]
    ) -> None:
        super().__init__()
        self.network = network
        self.quantisations = tuple(quantisations)
        self._names = sorted(frozenset().union(*(each.activations for each in quantisations)))
        wide = [(min(ranges[name][0], 0.0), max(ranges[name][1], 0.0, _NARROWEST)) for name in self._names]
        self.lows = nn.ParameterList([torch.tensor(low) for low, _ in wide])
        self.highs = nn.ParameterList([torch.tensor(high) for _, high in wide])
        self._index = {name: i for i, name in enumerate(self._names)}
        self._first = wide

    def forward(self, images: Tensor, quantisation: Quantisation | None = None) -> Tensor:
        """(n, h, w, 3) uint8 -> logits (n, n_classes), as one of the INT8 graphs; None computes in float32."""
        if quantisation is None:
            return self.network(images)  # type: ignore[no-any-return]

        def observed(name: str, values: Tensor) -> Tensor:
            if name in quantisation.weights:
                return _rounded_by_channel(values, quantisation.weights[name])
            if name not in quantisation.activations:
                return values
            i = self._index[name]
            rounded: Tensor = _RoundedToRange.apply(values, self.lows[i], self.highs[i], quantisation.is_symmetric)
            return rounded

        return self.network(images, observed)  # type: ignore[no-any-return]

    @torch.no_grad()
    def keep_ranges_sound(self) -> None:
        """Undo what a step may have done: zero stays inside, and a range that began at zero begins there."""
        for (low, _), now_low, now_high in zip(self._first, self.lows, self.highs, strict=True):
            now_low.clamp_(max=0.0, min=0.0 if low == 0 else None)
            now_high.clamp_(min=_NARROWEST)

    @property
    def ranges(self) -> dict[str, Range]:
        """Lowest and highest value by tensor name, as learnt."""
        return {
            name: (low.item(), high.item()) for name, low, high in zip(self._names, self.lows, self.highs, strict=True)
        }


def _rounded_by_channel(weight: Tensor, axis: int) -> Tensor:
    """Weights as int8 per output channel holds them; the gradient passes over the rounding."""
    largest = weight.detach().abs().amax([i for i in range(weight.ndim) if i != axis % weight.ndim])
    scale = (largest / _INT8).clamp_min(torch.finfo(torch.float32).tiny)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis % weight.ndim, -_INT8, _INT8)


class _RoundedToRange(torch.autograd.Function):
    """Values as 8 bits hold them, with a gradient for both ends of the range.

    Source: S. Esser et al., "Learned Step Size Quantization", arXiv 1902.08153, equation 3; for a range that is not
    symmetric, both ends as Y. Bhalgat et al., "LSQ+", arXiv 2004.09576, have the step and the offset.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, is_symmetric: bool) -> Tensor:
        if is_symmetric:
            step, zero = torch.maximum(-low, high) / _INT8, torch.zeros((), dtype=torch.int32, device=x.device)
            ends = -_INT8, _INT8
        else:
            step = (high - low) / _UINT8
            zero = torch.round(-low / step).clamp(0, _UINT8).to(torch.int32)
            ends = 0, _UINT8
        step = step.clamp_min(_NARROWEST)
        rounded = torch.fake_quantize_per_tensor_affine(x, step, zero, *ends)
        ctx.save_for_backward(x, rounded, low, high, step, zero)
        ctx.ends, ctx.is_symmetric = ends, is_symmetric
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, rounded, low, high, step, zero = ctx.saved_tensors
        is_below, is_above = x < (ctx.ends[0] - zero) * step, x > (ctx.ends[1] - zero) * step
        inside = gradient.masked_fill(is_below | is_above, 0)
        of_step = torch.sum(inside * (rounded - x)) / step
        below, above = torch.sum(gradient * is_below), torch.sum(gradient * is_above)
        if not ctx.is_symmetric:
            return inside, below - of_step / _UINT8, above + of_step / _UINT8, None
        of_end = of_step / _INT8 + above - below
        is_high = high >= -low
        return inside, torch.where(is_high, 0, -of_end), torch.where(is_high, of_end, 0), None
