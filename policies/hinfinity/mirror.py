"""Networks that are the same on both sides: in a mirror, left and right exchanged, they do the mirror image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from contracts.reflection import VECTOR, Reflection, joined, unchanged
from policies.hinfinity.forces import SEEN
from policies.hinfinity.mlp import MLP
from policies.hinfinity.networks import Networks
from policies.tensors import CheckpointError

ROUNDING = 1e-5  # between the two of a pair: after 600 iterations there was 2e-7 of it


class Mirror:
    """Keeps networks symmetric: what is learned on one side is learned on the other.

    Every hidden unit has a partner, which sees the mirror image of what it sees itself, so weights come in pairs of
    equal size. Where both of a pair have the mean of their gradients, they stay a pair. Other ways to the same end are
    to learn from mirrored samples too, or to pay for what is not symmetric (arXiv 2403.04359); this one halves the
    arithmetic, and every sample stays one that the policy itself has drawn.

    Args:
        environment: which element takes each place in a mirror, and its sign (`Environment.mirror`).
        networks: to be kept so; `begin` makes them so.
    """

    def __init__(self, environment: Mapping[str, Reflection], networks: Networks) -> None:
        observation, action = environment["observation"], environment["action"]
        privileged = joined(environment["privileged"], unchanged(SEEN))  # pushed as hard and long, on either side
        actor, critic, disturber = networks.actor, networks.critic, networks.disturber
        self._seen: dict[MLP, Reflection] = {}
        self._sides: dict[Tensor, list[tuple[Tensor, Tensor]]] = {}
        self._apart: set[Tensor] = set()
        self._add_mlp(actor.estimator, observation, VECTOR)
        self._add_mlp(actor.body, joined(observation, VECTOR), action)
        self._add(actor.log_std, (action[0], np.ones_like(action[1])))
        self._add_mlp(critic.body, privileged, unchanged(2))
        if disturber is not None:
            self._add_mlp(disturber.policy.body, privileged, VECTOR)
            self._add(disturber.policy.log_std, unchanged(3))
            self._add_mlp(disturber.value, privileged, unchanged(1))

    @torch.no_grad()
    def begin(self) -> None:
        """Make weights symmetric that were drawn without regard to it: their sizes stay what they were."""
        for parameter, sides in self._sides.items():
            grown = 2**0.5 if parameter.dim() == 2 else 1.0  # the mean of two independent draws is smaller than one
            parameter.copy_(grown * _mean(parameter, sides))
        for network, seen in self._seen.items():
            network.rely_on_symmetry(seen)

    @torch.no_grad()
    def go_on_from(self, where: str) -> None:
        """With weights that come from `where`. Raises CheckpointError if they are not symmetric.

        But for rounding: of a vector, the processor computes its end otherwise than the rest. That is made good.
        """
        pairs = [(parameter, _mean(parameter, sides)) for parameter, sides in self._sides.items()]
        if not all(torch.allclose(parameter, mean, rtol=ROUNDING, atol=ROUNDING) for parameter, mean in pairs):
            raise CheckpointError(f"{where}: not the same networks on both sides; with mirror off, training takes them")
        for parameter, mean in pairs:
            parameter.copy_(mean)

    @torch.no_grad()
    def gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give both of each pair in `parameters` the mean of their gradients, where they have not the same.

        Those of all layers but the last have, as networks use their sums and differences (`MLP.acting`).
        """
        for parameter in parameters:
            if parameter in self._apart and parameter.grad is not None:
                parameter.grad = _mean(parameter.grad, self._sides[parameter])

    def _add_mlp(self, network: MLP, seen: Reflection, given: Reflection) -> None:
        """Linear layers from what a mirror shows as `seen` to what it shows as `given`."""
        self._seen[network] = seen
        for layer in network.linears:
            after = given if layer is network.linears[-1] else _halves(layer.out_features)
            self._add(layer.weight, after, seen)
            self._add(layer.bias, after)
            seen = after
        self._apart -= {parameter for layer in network.linears[:-1] for parameter in (layer.weight, layer.bias)}

    def _add(self, parameter: Tensor, *sides: Reflection) -> None:
        device = parameter.device
        there = [(torch.from_numpy(order).to(device), torch.from_numpy(sign).to(device)) for order, sign in sides]
        self._sides[parameter] = there
        self._apart.add(parameter)


def _mean(values: Tensor, sides: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Of values and of what a mirror shows of them, its rows and columns by `sides`."""
    shown = values
    for dimension, (order, sign) in enumerate(sides):
        shape = [-1 if i == dimension else 1 for i in range(values.dim())]
        shown = shown.index_select(dimension, order) * sign.reshape(shape)
    return 0.5 * (values + shown)


def _halves(count: int) -> Reflection:
    """Of hidden units: those of one half are the partners of the other's."""
    return np.roll(np.arange(count), count // 2), np.ones(count, dtype=np.float32)
