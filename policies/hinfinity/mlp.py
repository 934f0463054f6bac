"""Perceptrons; one that is the same on both sides of a mirror needs half the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        inputs: numbers seen.
        symmetric: whether it is computed so.
        evens: how many of what `split` gives come first, since a mirror leaves them as they are; in the order of what
            is seen, as the odd ones after them.
    """

    def __init__(self, sizes: tuple[int, ...], last_gain: float) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ELU(inplace=True)]
        super().__init__(*layers[:-1])
        with torch.no_grad():
            self.linears[-1].weight.mul_(last_gain)
        self.inputs = sizes[0]
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
        self.evens = len(kept[0])
        self.symmetric = True

    def forward(self, seen: Tensor, acting: Sequence[Tensor] | None = None) -> Tensor:
        """Of what is seen [..., inputs]: [..., outputs]; `acting` is what `acting` gave, where it is at hand."""
        plain = acting is None and not self.symmetric
        return super().forward(seen) if plain else self.of_split(self.split(seen), acting)

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
        """As `forward`, of what `split` gave."""
        acting = self.acting() if acting is None else acting
        if self.symmetric:
            rows = _Symmetric.apply(self.evens, *_in_one_precision(split.reshape(-1, split.shape[-1]), *acting))
            return rows.reshape(*split.shape[:-1], -1)
        weight, bias = acting[-2:]
        for number in range(0, len(acting) - 2, 2):
            split = elu(linear(split, *acting[number : number + 2]), inplace=True)
        return linear(split, weight, bias)

    def _columns(self, rows: Tensor, parity: float) -> Tensor:
        """Of the first layer's rows, what acts on a part of what `split` gave."""
        part = slice(self.evens) if parity == EVEN else slice(self.evens, None)
        place, partner, sign, share = (
            self.get_buffer(f"_{name}")[part] for name in ("place", "partner", "sign", "share")
        )
        return share * (rows.index_select(1, place) + sign * rows.index_select(1, partner))


def _sum(values: Tensor, dim: int, parity: float) -> Tensor:
    """The mean of both halves, or half their difference."""
    one, other = values.chunk(2, dim)
    return 0.5 * (one + other if parity == EVEN else one - other)


class _Symmetric(torch.autograd.Function):
    """A whole symmetric perceptron, of rows of what `MLP.split` gave.

    ELU mixes the parts: its halves are their sum and their difference, and the next layer's parts are the sum and the
    difference of these again. As one function it takes far fewer operations than layer by layer, as autograd would have
    it; and PyTorch's own ELU takes half as long again, for an accuracy near 0 that is lost in the next sum.
    """

    @staticmethod
    def forward(ctx: Any, evens: int, split: Tensor, *acting: Tensor) -> Tensor:
        even, odd = split[:, :evens], split[:, evens:]
        kept = [even, odd]
        for number in range(0, len(acting) - 3, 3):
            of_even, of_odd, bias = acting[number : number + 3]
            even, odd = torch.addmm(bias, even, of_even.T), odd @ of_odd.T
            halves = even.new_empty(2, *even.shape)
            _sum_and_difference((even, odd), halves[0], halves[1])
            slopes = halves.clamp_max(0.0).exp_()
            torch.maximum(halves, slopes - 1.0, out=halves)
            kept += [slopes, *_sum_and_difference(halves, even, odd)]
        of_even, of_odd, bias = acting[-3:]
        ctx.save_for_backward(*acting, *kept)
        ctx.layers = len(acting) // 3
        return torch.addmm(bias, even, of_even.T).addmm_(odd, of_odd.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        acting, kept = ctx.saved_tensors[: 3 * ctx.layers], ctx.saved_tensors[3 * ctx.layers :]
        to_even = to_odd = gradients[0]
        found: list[Tensor | None] = []
        for layer in reversed(range(ctx.layers)):
            even, odd = kept[3 * layer : 3 * layer + 2]
            found[:0] = [to_even.T @ even, to_odd.T @ odd, to_even.sum(dim=0)]
            of_even, of_odd = acting[3 * layer : 3 * layer + 2]
            if layer == 0:
                break
            to_even, to_odd = to_even @ of_even, to_odd @ of_odd
            to_halves = to_even.new_empty(2, *to_even.shape)
            _sum_and_difference((to_even, to_odd), to_halves[0], to_halves[1])
            _sum_and_difference(to_halves.mul_(kept[3 * layer - 1]), to_even, to_odd)
        seen = torch.cat((to_even @ of_even, to_odd @ of_odd), dim=1) if ctx.needs_input_grad[1] else None
        return None, seen, *found


def _sum_and_difference(of: Tensor | tuple[Tensor, Tensor], total: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Of two, into two others."""
    one, other = of[0], of[1]
    return torch.add(one, other, out=total), torch.sub(one, other, out=rest)


def _in_one_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """That of autocast, where it is on: inside of a function of our own it would not be, on the way back."""
    kind = tensors[0].device.type
    return tuple(t.to(torch.get_autocast_dtype(kind)) for t in tensors) if torch.is_autocast_enabled(kind) else tensors
