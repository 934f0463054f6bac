"""What was seen and done, as a mirror would show it: left and right exchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from policies.hinfinity.environment import Reflection
from policies.hinfinity.forces import SEEN
from policies.hinfinity.rollout import Samples

ACROSS = np.arange(3), np.array((1, -1, 1), dtype=np.float32)  # of x forward, y left, z up


class Mirror:
    """Shows the first rows of a minibatch in a mirror.

    What they are worth stays what it was, and so does the probability that they were drawn with: to a policy that is
    not symmetric, a mirrored sample looks less likely than it was, which makes it more symmetric where the sample was
    good (arXiv 2403.04359).

    Args:
        environment: which element takes each place, and its sign (`Environment.mirror`).
        device: of the samples.
    """

    def __init__(self, environment: Mapping[str, Reflection], device: torch.device) -> None:
        self._observation = _on(device, environment["observation"])
        order, sign = environment["privileged"]
        own = np.arange(len(order), len(order) + SEEN), np.ones(SEEN, dtype=np.float32)  # the same on either side
        self._privileged = _on(device, (np.concatenate((order, own[0])), np.concatenate((sign, own[1]))))
        self._action = _on(device, environment["action"])
        self._across = _on(device, ACROSS)

    def samples(self, samples: Samples, count: int) -> Samples:
        """The first `count` of them mirrored."""
        return dataclasses.replace(
            samples,
            observation=_shown(samples.observation, self._observation, count),
            privileged=_shown(samples.privileged, self._privileged, count),
            estimate=_shown(samples.estimate, self._across, count),
            velocity=_shown(samples.velocity, self._across, count),
            action=_shown(samples.action, self._action, count),
            mean=_shown(samples.mean, self._action, count),
        )

    def seen(self, privileged: Tensor, count: int) -> Tensor:
        """The first `count` of what critic and disturber see [K, P]."""
        return _shown(privileged, self._privileged, count)

    def decisions(self, privileged: Tensor, raw_force: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` of a disturber's decisions: what it saw [K, P], what it drew [K, 3]."""
        return self.seen(privileged, count), _shown(raw_force, self._across, count)


def _on(device: torch.device, reflection: Reflection) -> tuple[Tensor, Tensor]:
    order, sign = reflection
    return torch.from_numpy(order).to(device), torch.from_numpy(sign).to(device)


def _shown(rows: Tensor, reflection: tuple[Tensor, Tensor], count: int) -> Tensor:
    order, sign = reflection
    return torch.cat((rows[:count, order] * sign.to(rows.dtype), rows[count:]))
