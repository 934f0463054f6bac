"""Gradients of a mean over samples, from those of their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.hinfinity.mlp import MLP


@dataclass(frozen=True)
class Slope:
    """Of a mean over samples.

    Attributes:
        gradients: of the loss, one for each tensor that it depends on.
        loss: what is to become smaller.
        count: of the samples.
        figures: other means over them.
    """

    gradients: Sequence[Tensor]
    loss: float
    count: int
    figures: Mapping[str, float]


def slope(loss: Tensor, of: Sequence[Tensor], count: int = 1, figures: Mapping[str, float] | None = None) -> Slope:
    """Of a loss with respect to some tensors; it and the figures are means of so many samples."""
    return Slope(torch.autograd.grad(loss, of), float(loss.detach()), count, figures or {})


class Shared:
    """What all parts of a minibatch multiply by. It is made of the parameters once, and its gradients go there once.

    Args:
        networks: that are used.
        others: parameters that are used as they are.

    Attributes:
        acting: of each network, for `MLP.of_split`.
        leaves: all of that, and the others: what each part's slope is to be of.
    """

    def __init__(self, networks: Sequence[MLP], others: Sequence[Tensor] = ()) -> None:
        made = [network.acting() for network in networks]
        self.acting = [[tensor.detach().requires_grad_() for tensor in tensors] for tensors in made]
        self.leaves = [*(tensor for tensors in self.acting for tensor in tensors), *others]
        self._made = [*(tensor for tensors in made for tensor in tensors), *others]

    def of(self, parameters: Sequence[Tensor], parts: Sequence[Slope]) -> Slope:
        """The slope of the whole, of `parameters`, from the parts' of `leaves`."""
        whole = _mean(parts)
        gradients = torch.autograd.grad(self._made, parameters, whole.gradients)
        return Slope(gradients, whole.loss, whole.count, whole.figures)


def _mean(parts: Sequence[Slope]) -> Slope:
    """Of all samples together."""
    count = sum(part.count for part in parts)
    shares = [part.count / count for part in parts]
    alike = zip(*(part.gradients for part in parts), strict=True)
    gradients = [sum((share * g for share, g in zip(shares, of_one, strict=True)), torch.zeros(())) for of_one in alike]

    def whole(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    figures = {name: whole([part.figures[name] for part in parts]) for name in parts[0].figures}
    return Slope(gradients, whole([part.loss for part in parts]), count, figures)
