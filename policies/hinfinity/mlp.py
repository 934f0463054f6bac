"""Perceptrons; one that is the same on both sides of a mirror needs half the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, linear

from contracts.reflection import Reflection

EVEN, ODD = PARITIES = (1.0, -1.0)
"""What a mirror leaves as it is, and what it turns round."""


class MLP(nn.Sequential):
    """Linear layers with ELU between them, in place.

    A symmetric one makes what is even in a mirror of what is even, and what is odd of what is odd; only ELU mixes them.
    That is two products of half the width either way instead of one of the whole: half the multiplications, for the
    same result. Weights stay those of plain layers.

    Args:
        sizes: numbers seen, those of every hidden layer, numbers given.
        last_gain: the last layer's weights are scaled by it.

    Attributes:
        symmetric: whether it is computed so.
    """

    def __init__(self, sizes: tuple[int, ...], last_gain: float) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ELU(inplace=True)]
        super().__init__(*layers[:-1])
        with torch.no_grad():
            self.linears[-1].weight.mul_(last_gain)
        self.symmetric = False

    @property
    def linears(self) -> list[nn.Linear]:
        """Its linear layers."""
        return [layer for layer in self if isinstance(layer, nn.Linear)]

    def rely_on_symmetry(self, seen: Reflection) -> None:
        """Of what a mirror shows as `seen`; hidden units have their partners in the other half of their layer.

        Of hidden layers that are not symmetric, the nearest that are is computed with.
        """
        order, sign = (torch.from_numpy(part).to(self.linears[0].weight.device) for part in seen)
        place = torch.arange(len(order), device=order.device)
        kept = [((place < order) | ((place == order) & (sign == parity))).nonzero().squeeze(1) for parity in PARITIES]
        place = torch.cat(kept)
        buffers = {
            "place": place,
            "partner": order[place],
            "sign": torch.cat([parity * sign[rows] for parity, rows in zip(PARITIES, kept, strict=True)]),
            # An element that is its own partner is seen twice in the sum of both.
            "share": torch.where(order[place] == place, 0.25, 0.5),
        }
        for name, value in buffers.items():
            self.register_buffer(f"_{name}", value, persistent=False)
        self._evens = len(kept[0])
        self.symmetric = True

    def forward(self, seen: Tensor) -> Tensor:
        """Of what is seen [..., inputs]: [..., outputs]."""
        return self.of_split(self.split(seen)) if self.symmetric else super().forward(seen)

    def split(self, seen: Tensor) -> Tensor:
        """What `of_split` takes, of what is seen: both are [..., inputs]. Worth keeping for several times."""
        if not self.symmetric:
            return seen
        rows = seen.reshape(-1, seen.shape[-1])
        one, other = (rows.gather(1, self.get_buffer(name).expand(len(rows), -1)) for name in ("_place", "_partner"))
        return other.mul_(self.get_buffer("_sign").to(seen.dtype)).add_(one).reshape(seen.shape)

    def acting(self) -> list[Tensor]:
        """What `of_split` multiplies by, from one layer to the next."""
        if not self.symmetric:
            return [tensor for layer in self.linears for tensor in (layer.weight, layer.bias)]
        first, *hidden, last = self.linears
        acting = []
        for layer in (first, *hidden):
            for parity in PARITIES:
                rows = _sum(layer.weight, 0, parity)
                acting.append(self._columns(rows, parity) if layer is first else _sum(rows, 1, parity))
            acting.append(_sum(layer.bias, 0, EVEN))
        return [*acting, *(_sum(last.weight, 1, parity) for parity in PARITIES), last.bias]

    def of_split(self, split: Tensor, acting: Sequence[Tensor] | None = None) -> Tensor:
        """As `forward`, of what `split` gave; `acting` is what `acting` gave, where it is at hand."""
        acting = self.acting() if acting is None else acting
        if not self.symmetric:
            weight, bias = acting[-2:]
            for number in range(0, len(acting) - 2, 2):
                split = elu(linear(split, *acting[number : number + 2]), inplace=True)
            return linear(split, weight, bias)
        even, odd = split[..., : self._evens], split[..., self._evens :]
        for number in range(0, len(acting) - 3, 3):
            of_even, of_odd, bias = acting[number : number + 3]
            even, odd = _Halves.apply(linear(even, of_even, bias), linear(odd, of_odd))
        of_even, of_odd, bias = acting[-3:]
        return linear(even, of_even, bias) + linear(odd, of_odd)

    def _columns(self, rows: Tensor, parity: float) -> Tensor:
        """Of the first layer's rows, what acts on a part of what `split` gave."""
        part = slice(self._evens) if parity == EVEN else slice(self._evens, None)
        place, partner, sign, share = (
            self.get_buffer(f"_{name}")[part] for name in ("place", "partner", "sign", "share")
        )
        return share * (rows.index_select(1, place) + sign * rows.index_select(1, partner))


def _sum(values: Tensor, dim: int, parity: float) -> Tensor:
    """The mean of both halves, or half their difference."""
    one, other = values.chunk(2, dim)
    return 0.5 * (one + other if parity == EVEN else one - other)


class _Halves(torch.autograd.Function):
    """A hidden layer's even and odd part: ELU of its halves, which are their sum and their difference, and from there
    the sum and the difference again.

    PyTorch's ELU takes half as long again, for an accuracy near 0 that is lost in the next sum.
    """

    @staticmethod
    def forward(ctx: Any, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        one, other = _elu(even + odd), _elu(even - odd)
        ctx.save_for_backward(one, other)
        return one + other, one - other

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        even, odd = gradients
        one, other = (
            torch.ops.aten.elu_backward(gradient, 1.0, 1.0, 1.0, True, half)
            for gradient, half in zip((even + odd, even - odd), ctx.saved_tensors, strict=True)
        )
        return one + other, one.sub_(other)


def _elu(values: Tensor) -> Tensor:
    below = values.clamp_max(0.0).exp_().sub_(1.0)
    return torch.maximum(values, below, out=values)
