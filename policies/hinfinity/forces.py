"""Who is pushed, by whom, how hard and for how long."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.networks import Disturber, squash

NOBODY, CHANCE, DISTURBER = 0, 1, 2
"""Who pushes an environment's robot."""

PUSHERS = {"chance": CHANCE, "disturber": DISTURBER}

SEEN = 4
"""Numbers that `Forces.seen` adds."""


class ForceLimits:
    """How large the force on each robot may be. It is as they bear it: see `HInfinityConfig.force_max_n`.

    Args:
        config: how.
        count: robots.

    Attributes:
        share: of the way from the smallest limit to the largest one, within [0, 1]: of each robot by chance, and, since
            aimed forces fell more than others of their size, by the disturber, [2, N].
    """

    def __init__(self, config: HInfinityConfig, count: int) -> None:
        self.config = config
        self.share = torch.full((2, count), 0.0 if config.force_ramp else 1.0)

    def pushed(self, iteration: int) -> bool:
        """Whether there are forces in an iteration."""
        return self.config.disturber != "none" and iteration >= self.config.warmup

    def aim(self) -> None:
        """A disturber sets in, and begins with half of what robots bear by chance."""
        if self.config.force_ramp:
            self.share[1] = self.share[0] / 2

    def newtons(self, who: Tensor) -> Tensor:
        """The limits now of robots that are pushed by `who` [N], [N]."""
        return self.config.force_start_n + self._of(who) * (self.config.force_max_n - self.config.force_start_n)

    def fall_worth(self, iteration: int) -> Tensor:
        """What a fall is worth to each robot in an iteration, in reward, [N]: it is worse under larger forces.

        Whoever pushes, those by chance count. Aimed ones are smaller and hurt more, so that a fall at their rate would
        be a way out of them.
        """
        share = self.share[0] if self.pushed(iteration) else torch.zeros_like(self.share[0])
        return self.config.fall + share * (self.config.fall_pushed - self.config.fall)

    def follow(self, fell: Tensor, who: Tensor, period_s: float) -> None:
        """Robots were pushed by `who` [N] for a rollout of steps of `period_s`, and `fell` [T, N] or did not."""
        if self.config.force_ramp:
            rise = 1 / (self.config.force_ramp * self.config.rollout_steps)
            drop = rise * 60 / period_s / self.config.bearable_falls
            share = (self._of(who) + rise * len(fell) - drop * fell.sum(dim=0)).clamp(0.0, 1.0)
            aimed = who == DISTURBER
            self.share = torch.where(torch.stack((~aimed, aimed)), share, self.share)

    def _of(self, who: Tensor) -> Tensor:
        """The shares that count where `who` [N] pushes, [N]."""
        return torch.where(who == DISTURBER, self.share[1], self.share[0])


class Forces:
    """A force on each of `count` robots, held for a while, then chosen anew.

    Forces are in the robots' heading frames, so that a direction means the same to all of them.

    Attributes:
        who: NOBODY, CHANCE or DISTURBER, [N].
        force: that acts, N, [N, 3].
        raw: what the disturber drew, before it was squashed; 0 where it did not, [N, 3].
        remaining: steps until it ends, [N].
        pause: steps from then until the next one begins, [N].
    """

    def __init__(self, config: HInfinityConfig, count: int) -> None:
        self.config, self.count = config, count
        place = (torch.arange(count) + 0.5) / count
        # Drawn, since the kind of ground goes by the environment's number.
        place = place[torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))]
        self._spared = (place < config.share_none) | (config.disturber == "none")
        self._turn = (place - config.share_none) / (1 - config.share_none)  # of those who are not, within (0, 1)
        self.who = torch.where(self._spared, NOBODY, CHANCE)
        self.force = torch.zeros(count, 3)
        self.raw = torch.zeros(count, 3)
        self.remaining = torch.zeros(count, dtype=torch.int64)
        self.pause = torch.zeros(count, dtype=torch.int64)

    def assign(self, iteration: int) -> None:
        """Who pushes whom in an iteration: chance and, once it is at work, the disturber, by turns."""
        config, since = self.config, iteration - self.config.aimed_from
        if since >= 0:
            aimed = 1 - config.share_random / (1 - config.share_none)
            turn = (self._turn + since / config.turns) % 1
            self.who = torch.where(self._spared, NOBODY, torch.where(turn < aimed, DISTURBER, CHANCE))

    @torch.no_grad()
    def choose(
        self, privileged: Tensor, limit: Tensor, disturber: Disturber | None, generator: torch.Generator
    ) -> Tensor:
        """Forces for the step that begins now.

        Args:
            privileged: what the disturber sees, [N, P].
            limit: no force is larger, N, [N].
            disturber: who chooses those of DISTURBER; None: nobody has one.
            generator: of all that is random.

        Returns:
            Where the disturber chose a new force, bool, [N].
        """
        over = (self.remaining <= 0) & (self.who != NOBODY)
        due = over & (self.pause <= 0)
        resting = over & ~due
        self.force[resting] = 0.0
        rest = torch.where(self.who == DISTURBER, 0, self._draw(self.config.rest, generator))
        self.pause = torch.where(due, rest, self.pause - resting.long())
        self.remaining = torch.where(due, self._draw(self.config.hold, generator), self.remaining) - 1
        by_chance = due & (self.who == CHANCE)
        # As a disturber that has not learned yet pushes: chance is to be as strong as who is compared with it.
        drawn = torch.randn(self.count, 3, generator=generator)
        self.force = torch.where(by_chance[:, None], acting(drawn, limit, self.config.vertical), self.force)
        decided = due & (self.who == DISTURBER)
        rows = decided.nonzero().squeeze(1)
        if disturber is not None and len(rows):
            policy = disturber.policy
            noise = torch.randn(len(rows), 3, generator=generator)
            self.raw[rows] = policy(privileged[rows]) + policy.log_std.exp() * noise
            self.force[rows] = acting(self.raw[rows], limit[rows], self.config.disturber_vertical)
        return decided

    def end(self, done: Tensor, generator: torch.Generator) -> None:
        """Episodes ended where `done` [N]: in their next ones robots first come to walk."""
        self.remaining[done] = 0
        self.pause = torch.where(done, self._draw(self.config.settle, generator), self.pause)
        self.force[done] = 0.0

    def seen(self, privileged: Tensor, limit: Tensor | None) -> Tensor:
        """What critic and disturber see, [N, P + SEEN]: what comes depends on who is pushed, how hard and how long.

        Args:
            privileged: of the environment, [N, P].
            limit: no force is larger, N, [N]; None: nobody is pushed now.
        """
        pushed = (self.who != NOBODY) & (limit is not None)
        most = torch.zeros(self.count) if limit is None else limit / self.config.force_max_n
        held = self.remaining / self.config.hold[1]
        rests = self.pause / max(1, self.config.rest[1])
        mine = torch.stack((torch.ones(self.count), most, held, rests), dim=1) * pushed[:, None]
        return torch.cat((privileged, mine), dim=1)

    def _draw(self, bounds: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Numbers of steps within `bounds`, both included, [N]."""
        shortest, longest = bounds
        return torch.randint(shortest, longest + 1, (self.count,), generator=generator)


def acting(raw: Tensor, limit: Tensor, vertical: float) -> Tensor:
    """The forces that act, N, [K, 3], of what was drawn, `raw` [K, 3]: none is larger than its `limit` [K], N.

    `vertical`: share of their vertical parts that acts.
    """
    return squash(raw, limit[:, None]) * torch.tensor((1.0, 1.0, vertical))


def directions() -> Tensor:
    """Middles of an icosahedron's 20 faces (the corners of a dodecahedron): equal parts of all directions, [20, 3]."""
    golden = (1 + math.sqrt(5)) / 2
    signs = (-1.0, 1.0)
    corners = [(x, y, z) for x in signs for y in signs for z in signs]
    for a in signs:
        for b in signs:
            u, v = a / golden, b * golden
            corners += [(0.0, u, v), (u, v, 0.0), (v, 0.0, u)]
    return torch.tensor(corners) / math.sqrt(3)


def direction_entropy(forces: Tensor) -> float:
    """Of the directions of forces [K, 3] over 20 equal parts of the sphere: 1 of even ones, 0 of a single one.

    NaN without any force.
    """
    forces = forces[forces.norm(dim=1) > 0]
    if not len(forces):
        return math.nan
    part = (forces @ directions().to(forces.device).T).argmax(dim=1)
    share = torch.bincount(part, minlength=20) / len(forces)
    return float(-torch.special.xlogy(share, share).sum() / math.log(20))
