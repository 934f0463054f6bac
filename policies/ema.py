"""An exponential moving average of the weights: what is evaluated and exported."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from policies.tensors import CheckpointError


class ExponentialMovingAverage:
    """Shadow weights, decay 1 - (1 + step)^-power: quick at first, slow later (0.9995 is reached at 25,000 steps)."""

    def __init__(self, module: nn.Module, power: float, max_decay: float) -> None:
        self.power = power
        self.max_decay = max_decay
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    def decay(self, step: int) -> float:
        """How much of the old average stays after optimiser step number `step`, from 1."""
        return min(self.max_decay, 1 - (1 + step) ** -self.power)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights of `module` after optimiser step number `step`, from 1."""
        live = [p.detach() for _, p in module.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - self.decay(step))

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give `module` the averaged weights."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.shadow[name])

    def load(self, averaged: Mapping[str, Tensor], where: str) -> None:
        """Go on from weights that come from `where`. Raises CheckpointError unless they are exactly this network's."""
        for name in averaged.keys() | self.shadow.keys():
            if name not in averaged or name not in self.shadow or averaged[name].shape != self.shadow[name].shape:
                raise CheckpointError(f"{where}: the averaged weight {name} does not belong to this network")
        for name, value in averaged.items():
            self.shadow[name].copy_(value)

    def state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """The averaged weights, with the buffers (normalisation) of `module`."""
        return {name: self.shadow.get(name, value.detach()) for name, value in module.state_dict().items()}
