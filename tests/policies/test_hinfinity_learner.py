"""What an update of walker, critic, disturber and lambda does, on rollouts whose outcome can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from policies.hinfinity.adversary import Adversary
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.forces import CHANCE, DISTURBER, NOBODY
from policies.hinfinity.guarded import Guard
from policies.hinfinity.learner import Learner
from policies.hinfinity.networks import Disturber, Networks
from policies.hinfinity.rollout import Rollout
from policies.hinfinity.workers import Workers

SMALL = HInfinityConfig(
    actor_widths=(8,), critic_widths=(8,), disturber_widths=(8,), estimator_widths=(8,), precision="fp32", warmup=0
)
PERIOD_S, COST_BOUND = 0.02, 0.03
FULL = torch.autocast("cpu", torch.bfloat16, enabled=False)


def make_learner(**choices: Any) -> Learner:
    torch.manual_seed(0)
    config = msgspec.structs.replace(SMALL, **choices)
    generator, workers = torch.Generator().manual_seed(0), Workers(1, torch.device("cpu"))
    return Learner(config, Networks(config, 5, 5, 2), COST_BOUND, PERIOD_S, generator, slice(0, 3), workers)


def make_rollout(steps: int, count: int) -> Rollout:
    """Of robots that see nothing, do nothing and pay nothing."""
    return Rollout(steps, count, (5, 5, 2), torch.float32)


def test_a_value_that_has_gone_as_far_as_it_may_is_drawn_no_further_only_back() -> None:
    """In an update values move by the clip at most: one wrong target would otherwise turn the whole critic."""

    def moved(since: float, wanted: float) -> float:
        """How far an update moves values that moved `since` the rollout and are to go further by `wanted`."""
        learner = make_learner(mirror=False)
        samples, _ = learner._samples(make_rollout(2, 8), torch.full((8,), NOBODY), torch.full((8,), -1.0))
        now = samples.value
        samples = replace(samples, value=now - since, target=now + wanted)
        learner._walk(samples, [torch.arange(len(samples))], 0.0)
        with torch.no_grad():
            return float((learner.networks.critic.body.of_split(samples.privileged) - now).mean())

    clip = SMALL.clip_ratio
    assert moved(since=0.5 * clip, wanted=5.0) > 0
    assert moved(since=2 * clip, wanted=5.0) == 0
    assert moved(since=-2 * clip, wanted=-5.0) == 0
    assert moved(since=2 * clip, wanted=-5.0) < 0


def test_lambda_changes_by_its_rate_a_unit_of_slack_and_stays_within_its_bounds() -> None:
    """The slack is in lost task reward a second."""
    who, fall = torch.full((4,), DISTURBER), torch.full((4,), -1.0)
    violated, kept = make_rollout(3, 4), make_rollout(3, 4)
    violated.fell[2] = True
    kept.force[..., 0] = 100.0
    for rollout, bound in ((violated, 0.7), (kept, 0.0)):
        learner = make_learner(lambda_start=0.5, lambda_rate=0.001)
        figures = learner.learn(rollout, who, fall, 0.0)
        assert figures["constraint/lambda"] == learner.dual.value
        assert learner.dual.value == pytest.approx(0.5 - 0.001 * figures["constraint/slack"])
        assert learner.dual.value != 0.5
        learner = make_learner(lambda_start=0.5, lambda_rate=100.0, lambda_max=0.7)
        assert learner.learn(rollout, who, fall, 0.0)["constraint/lambda"] == bound


def test_a_fall_takes_from_the_slack_what_it_costs_the_task_and_what_the_reward_minds_it() -> None:
    """A second, spread over all steps of all who are pushed; what the others' falls cost is added back."""
    learner = make_learner()
    with torch.no_grad():
        for parameter in learner.networks.critic.parameters():
            parameter.zero_()  # nothing is expected
    steps, fall = 5, torch.tensor([-1.0, -3.0, -2.0])
    who = torch.tensor([DISTURBER, CHANCE, NOBODY])
    lost = COST_BOUND / (1 - SMALL.gamma)
    for robot, expected in ((0, -(lost + 1) / 2), (1, -(lost + 3) / 2), (2, lost + 2)):
        rollout = make_rollout(steps, 3)
        rollout.fell[1, robot] = True
        slack = learner._samples(rollout, who, fall)[1]["constraint/slack"]
        assert slack == pytest.approx(expected / steps / PERIOD_S, rel=1e-5)


def make_adversary(lost: float, **choices: Any) -> Adversary:
    torch.manual_seed(0)
    config = msgspec.structs.replace(SMALL, disturber_entropy=0.0, disturber_balance=0.0, **choices)
    return Adversary(config, Disturber(5, config), lost, torch.Generator().manual_seed(0), Guard())


@pytest.mark.parametrize(("patience", "side"), [(0.5, -1.0), (1.0, 1.0)])
def test_a_disturber_is_as_patient_as_it_is_told_to_be(patience: float, side: float) -> None:
    """A push to the left costs a little at once, one to the right far more 30 steps later; the walker's lam is no
    matter."""
    adversary = make_adversary(0.0, lam=1.5 - patience, disturber_lam=patience, disturber_price=0.0)
    rollout, count = make_rollout(32, 40), 40
    rollout.privileged[:] = 1.0
    rollout.timed_out[-1] = True
    rollout.decided[0] = True
    right = torch.arange(count) < count // 2
    rollout.raw_force[0, :, 1] = torch.where(right, 1.0, -1.0)
    rollout.cost[0, ~right], rollout.cost[30, right] = 10.0, 30.0
    seen = torch.ones(1, 5)
    before = adversary.disturber.policy(seen)[0, 1].item()
    adversary.learn(rollout, torch.full((count,), DISTURBER), PERIOD_S, FULL)
    assert (adversary.disturber.policy(seen)[0, 1].item() - before) * side > 0.001


def test_a_disturber_values_what_comes_of_its_own_pushes_to_the_end() -> None:
    """Each costs 0.1 and 50 N at its price, and a fall follows in the next step; chance's cost is none of its own."""
    lost, gamma, worth_of_fall, price = 0.5, 0.9, 2.0, 0.04
    adversary = make_adversary(
        lost, gamma=gamma, disturber_fall=worth_of_fall, disturber_price=price, disturber_learning_rate=0.03,
        minibatches=1,
    )  # fmt: skip
    rollout, who = make_rollout(2, 20), torch.tensor([DISTURBER] * 10 + [CHANCE] * 10)
    rollout.privileged[:] = 1.0
    rollout.privileged[1] = -1.0
    rollout.fell[1, :10] = rollout.timed_out[1, 10:] = True
    rollout.cost[:, :10], rollout.cost[:, 10:] = 0.1, 30.0
    rollout.decided[:, :10] = True
    rollout.force[:, :10, 0] = 50.0
    for _ in range(30):
        adversary.learn(rollout, who, PERIOD_S, FULL)
    gain = 0.1 - price * 50 * PERIOD_S
    last = gain + gamma * worth_of_fall * lost
    with torch.no_grad():
        worth = adversary.disturber.worth(torch.tensor([[1.0], [-1.0]]).expand(2, 5))[:, 0] * worth_of_fall * lost
    assert worth.tolist() == pytest.approx([gain + gamma * last, last], abs=0.02)
