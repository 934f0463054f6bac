"""Advantages, losses, the constraint and the forces, against slow formulas, finite differences and known sets."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from policies.hinfinity.adversary import Adversary
from policies.hinfinity.attack import attack_config
from policies.hinfinity.config import STD, HInfinityConfig
from policies.hinfinity.figures import falls_that_pay, force_figures
from policies.hinfinity.forces import (
    CHANCE,
    DISTURBER,
    NOBODY,
    ForceLimits,
    Forces,
    direction_entropy,
    directions,
)
from policies.hinfinity.guarded import Guard
from policies.hinfinity.learner import Learner
from policies.hinfinity.networks import Disturber, Networks, entropy, kl_divergence, log_probability, squash
from policies.hinfinity.objectives import (
    DualVariable,
    adapt_learning_rate,
    clipped_surrogate,
    clipped_value_loss,
    dissipation,
    generalized_advantage,
    normalized,
)
from policies.hinfinity.rollout import Rollout, Samples
from policies.hinfinity.workers import Workers

SMALL = HInfinityConfig(
    actor_widths=(8,), critic_widths=(8,), disturber_widths=(8,), estimator_widths=(8,), precision="fp32", warmup=0
)


def test_advantages_are_what_the_definition_gives():
    """The discounted sum of later errors, up to the end of the episode; a time-out's last state keeps its value."""
    generator = torch.Generator().manual_seed(0)
    steps, count, gamma, lam = 12, 5, 0.9, 0.8
    reward, value, next_value = (torch.randn(steps, count, generator=generator) for _ in range(3))
    done = torch.rand(steps, count, generator=generator) < 0.2
    found = generalized_advantage(reward, value, next_value, done, gamma, lam)
    for i in range(count):
        for t in range(steps):
            expected, weight = 0.0, 1.0
            for k in range(t, steps):
                expected += weight * float(reward[k, i] + gamma * next_value[k, i] - value[k, i])
                weight *= gamma * lam
                if done[k, i]:
                    break
            assert float(found[t, i]) == pytest.approx(expected, abs=1e-5)


def test_both_heads_share_one_call():
    reward, value, next_value = (torch.randn(6, 4, 2) for _ in range(3))
    done = torch.rand(6, 4) < 0.3
    both = generalized_advantage(reward, value, next_value, done[..., None], 0.9, 0.8)
    for head in range(2):
        alone = generalized_advantage(reward[..., head], value[..., head], next_value[..., head], done, 0.9, 0.8)
        torch.testing.assert_close(both[..., head], alone)


def test_values_after_an_episode():
    """After a fall the given value; after a time-out that of its last state, not that of the next episode's first."""
    rollout = Rollout(2, 3, (1, 1, 1), torch.float32)
    rollout.privileged[:] = torch.arange(9.0).reshape(3, 3, 1)
    rollout.fell[0, 0] = rollout.timed_out[0, 1] = True
    rollout._final = [(0, torch.tensor([1]), torch.tensor([[50.0]]))]
    value, after = rollout.values(rollout.privileged, lambda seen: seen, torch.tensor([-7.0]))
    assert value.squeeze(-1).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert after.squeeze(-1).tolist() == [[-7, 50, 5], [6, 7, 8]]


def test_falls_of_the_pushed_do_not_drown_what_the_others_gain():
    """Advantages are compared among robots alike in who pushes them, and each kind has the same weight a robot."""
    pusher = torch.tensor([NOBODY, CHANCE, NOBODY, CHANCE])
    quiet, rough = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[-900.0, 100.0], [-400.0, -400.0]])
    advantage = torch.stack((quiet[:, 0], rough[:, 0], quiet[:, 1], rough[:, 1]), dim=1)
    found, deviation = normalized(advantage, pusher)
    torch.testing.assert_close(found[:, ::2], found[:, 1::2])
    assert found[0, 2] == pytest.approx(1 / (2 / 3) ** 0.5)
    torch.testing.assert_close(deviation, torch.tensor([1.0, 500.0, 1.0, 500.0]) * (2 / 3) ** 0.5)


def test_ppo_losses():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    expected = [min(r * a, min(max(r, 0.8), 1.2) * a) for r, a in zip(ratio.tolist(), advantage.tolist(), strict=True)]
    np.testing.assert_allclose(clipped_surrogate(ratio, advantage, 0.2), expected, rtol=1e-6)
    loss = clipped_value_loss(torch.tensor([1.0, 0.1]), torch.zeros(2), torch.tensor([1.0, 1.0]), 0.2)
    np.testing.assert_allclose(loss, [0.64, 0.81], rtol=1e-6)


def test_a_rollout_moves_to_a_device_as_a_whole():
    """To where no numbers are: what is forgotten would stay behind, and what is moved cannot be what it was."""
    rollout = Rollout(2, 3, (1, 1, 1), torch.bfloat16)
    rollout._final = [(0, torch.tensor([1]), torch.tensor([[50.0]]))]
    there = rollout.to(torch.device("meta"))
    tensors = {name: value for name, value in vars(there).items() if isinstance(value, torch.Tensor)}
    assert set(tensors) == {name for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        before = getattr(rollout, name)
        assert (value.device.type, before.device.type) == ("meta", "cpu"), name
        assert (value.shape, value.dtype) == (before.shape, before.dtype), name
    ((step, rows, seen),) = there._final
    assert (step, rows.device.type, seen.device.type) == (0, "meta", "meta")
    assert there.done.device.type == "meta"
    assert rollout.to(torch.device("cpu")) is rollout


def test_normal_distributions_agree_with_torch():
    mean, old_mean, value = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    log_std, old_log_std = torch.randn(4) * 0.3, torch.randn(4) * 0.3
    new, old = (torch.distributions.Normal(m, s.exp()) for m, s in ((mean, log_std), (old_mean, old_log_std)))
    torch.testing.assert_close(log_probability(value, mean, log_std), new.log_prob(value).sum(-1))
    torch.testing.assert_close(entropy(log_std), new.entropy()[0].sum())
    expected = torch.distributions.kl_divergence(old, new).sum(-1)
    torch.testing.assert_close(kl_divergence(old_mean, old_log_std, mean, log_std), expected)


def test_the_constraint_is_its_formula():
    """Of two steps of four robots: pushed by the disturber, by it, by chance, by nobody."""
    force = torch.tensor([[2.0, 0.0, 9.0, 0.0], [1.0, 3.0, 9.0, 0.0]])
    cost = torch.tensor([[0.3, 0.4, 9.0, 0.1], [0.5, 0.2, 9.0, 0.3]])
    value, after = torch.ones(2, 4), torch.tensor([[1.5, 0.9, 9.0, 1.0], [1.0, 1.0, 9.0, 1.2]])
    who = torch.tensor([DISTURBER, DISTURBER, CHANCE, NOBODY])
    pushed, spared = who == DISTURBER, who == NOBODY
    supplied = (0.8 + 0.3 + 0.5 + 0.2) / 4
    found = dissipation(force, cost, value, after, pushed, spared, eta=0.2)
    assert found == pytest.approx(0.2 * 6 / 4 - supplied + (0.1 + 0.5) / 2)
    alone = dissipation(force, cost, value, after, pushed, torch.zeros(4, dtype=torch.bool), eta=0.2)
    assert alone == pytest.approx(0.2 * 6 / 4 - supplied)


def make_samples(networks: Networks, count: int = 64) -> Samples:
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(count, 5, generator=generator)
    with torch.no_grad():
        acted_on = networks.actor.split(seen, networks.actor.velocity(seen))
        mean = networks.actor.body.of_split(acted_on)
    action = mean + torch.randn(count, 2, generator=generator)
    log_std = networks.actor.log_std.detach().clone()
    numbers = torch.rand(count, generator=generator)
    return Samples(
        acted_on=acted_on, privileged=seen, action=action, mean=mean, log_std=log_std,
        log_probability=log_probability(action, mean, log_std), value=torch.zeros(count, 2),
        target=torch.zeros(count, 2), advantage=torch.zeros(count),
        cost_advantage=numbers - 0.5, velocity=seen[:, :3], disturbed=numbers > 0.3,
    )  # fmt: skip


def make_learner() -> Learner:
    torch.manual_seed(0)
    generator, workers = torch.Generator().manual_seed(0), Workers(1, torch.device("cpu"))
    return Learner(SMALL, Networks(SMALL, 5, 5, 2), 0.03, 0.02, generator, slice(0, 3), workers)


def objective(learner: Learner, samples: Samples) -> torch.Tensor:
    actor = learner.networks.actor
    mean = actor.body.of_split(samples.acted_on)
    ratio = torch.exp(log_probability(samples.action, mean, actor.log_std) - samples.log_probability)
    return learner.objective(samples, ratio)[0]


def test_the_constraint_reaches_the_actor():
    """With no reward, the gradient is the constraint's: it agrees with finite differences, and is 0 where lambda is."""
    learner = make_learner()
    samples = make_samples(learner.networks)
    weights = next(learner.networks.actor.body.parameters())
    learner.dual.value = 2.0
    (gradient,) = torch.autograd.grad(objective(learner, samples), weights)
    assert gradient.norm() > 1e-3
    with torch.no_grad():
        for index in ((0, 0), (3, 2), (7, 4)):
            ends = []
            for shift in (1e-3, -2e-3):
                weights[index] += shift
                ends.append(float(objective(learner, samples)))
            weights[index] += 1e-3
            assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float(gradient[index]), rel=0.05, abs=2e-4)
    learner.dual.value = 0.0
    (gone,) = torch.autograd.grad(objective(learner, samples), weights)
    assert not gone.any()


def test_the_constraint_makes_costly_actions_rarer():
    """Actions to the right cost, actions to the left save: the mean moves to the left, and the objective rises."""
    learner = make_learner()
    samples = make_samples(learner.networks, 512)
    costly = samples.action[:, 0] > samples.mean[:, 0]
    samples = replace(samples, cost_advantage=torch.where(costly, 0.5, -0.5))
    optimizer = torch.optim.Adam(learner.networks.actor.parameters(), 1e-3)
    before = objective(learner, samples).item()
    for _ in range(20):
        optimizer.zero_grad()
        (-objective(learner, samples)).backward()
        optimizer.step()
    with torch.no_grad():
        moved = (learner.networks.actor.body.of_split(samples.acted_on) - samples.mean).mean(dim=0)
    assert moved[0] < -0.02
    assert objective(learner, samples).item() > before


def test_the_dual_variable_falls_by_the_slack():
    dual = DualVariable(0.5, rate=0.1, largest=1.0)
    dual.update(2.0)
    assert dual.value == pytest.approx(0.3)
    dual.update(-4.0)
    assert dual.value == pytest.approx(0.7)
    dual.update(100.0)
    assert dual.value == 0.0
    dual.update(-100.0)
    assert dual.value == 1.0


def test_the_learning_rate_follows_the_divergence():
    bounds = (1e-5, 1e-2)
    rates = [adapt_learning_rate(1e-3, kl, 0.01, bounds) for kl in (0.03, 0.01, 0.001)]
    assert rates == pytest.approx([1e-3 / 1.5, 1e-3, 1.5e-3])
    assert adapt_learning_rate(1e-2, 0.0, 0.01, bounds) == 1e-2
    assert adapt_learning_rate(1e-5, 1.0, 0.01, bounds) == 1e-5


def test_forces_are_bounded_and_keep_their_direction():
    raw = torch.randn(500, 3) * 4
    force = squash(raw, 60.0)
    assert (force.norm(dim=1) <= 60.0 + 1e-4).all()
    torch.testing.assert_close(torch.nn.functional.normalize(force), torch.nn.functional.normalize(raw))
    assert torch.isfinite(squash(torch.zeros(1, 3), 60.0)).all()


def at_work(config: HInfinityConfig, count: int) -> Forces:
    """As when the disturber sets in."""
    forces = Forces(config, count)
    forces.assign(10_000)
    return forces


def draw(forces: Forces, network: Disturber, count: int, limit: float) -> torch.Tensor:
    """Forces of a first step."""
    forces.choose(torch.zeros(count, 4), torch.full((count,), limit), network, torch.Generator().manual_seed(0))
    return forces.force


def test_chance_pushes_as_hard_as_a_disturber_that_has_not_learned():
    torch.manual_seed(0)
    count = 40_000
    whole = HInfinityConfig(
        disturber_widths=(8,), share_random=0.4, share_none=0.2, vertical=1.0, disturber_vertical=1.0
    )
    forces = at_work(whole, count)
    drawn = draw(forces, Disturber(4, HInfinityConfig(disturber_widths=(8,))), count, 50.0)
    chance, disturber = (drawn[forces.who == number].norm(dim=1) for number in (CHANCE, DISTURBER))
    assert float(chance.max()) <= 50.0 + 1e-4
    quantiles = torch.linspace(0.05, 0.95, 10)
    torch.testing.assert_close(chance.quantile(quantiles), disturber.quantile(quantiles), rtol=0.03, atol=0.5)
    assert float(chance.median()) > 40  # and not half the limit
    assert drawn[forces.who == CHANCE].mean(dim=0).norm() < 1.0


def test_chance_and_the_disturber_each_act_with_a_part_of_what_is_vertical():
    """Of the same draws: only what acts vertically is less; the raw forces are what they were."""
    torch.manual_seed(0)
    network = Disturber(4, HInfinityConfig(disturber_widths=(8,)))
    full = None
    for chance, disturber in ((1.0, 1.0), (0.3, 0.3), (0.0, 1.0), (1.0, 0.0)):
        config = HInfinityConfig(disturber_widths=(8,), vertical=chance, disturber_vertical=disturber)
        forces = at_work(config, 500)
        force, raw = draw(forces, network, 500, 50.0), forces.raw.clone()
        full = full or (force, raw)
        assert torch.equal(raw, full[1])
        for number, vertical in ((CHANCE, chance), (DISTURBER, disturber)):
            its = forces.who == number
            torch.testing.assert_close(force[its], full[0][its] * torch.tensor([1.0, 1.0, vertical]))
            assert full[0][its, 2].abs().mean() > 10


def test_the_constraint_counts_the_force_that_acted():
    learner = make_learner()
    rollout = Rollout(2, 3, (5, 5, 2), torch.float32)
    who, fall = torch.full((3,), DISTURBER), torch.full((3,), -1.0)
    rollout.raw_force[0, 1] = 100.0
    without = learner._samples(rollout, who, fall)[1]["constraint/slack"]
    rollout.force[0, 1] = torch.tensor([3.0, 0.0, 4.0])
    pushed = learner._samples(rollout, who, fall)[1]["constraint/slack"]
    assert pushed - without == pytest.approx(SMALL.eta * 5 / 6)
    assert "constraint/slack" not in learner._samples(rollout, torch.full((3,), NOBODY), fall)[1]  # not in the warm-up


def test_the_constraint_is_about_what_forces_cause():
    """What all robots pay that are pushed, and what others pay, says nothing of how to act under forces."""
    learner = make_learner()
    rollout = Rollout(4, 3, (5, 5, 2), torch.float32)
    rollout.cost[:] = torch.tensor([0.1, 0.3, 5.0])
    who = torch.tensor([DISTURBER, CHANCE, NOBODY])
    samples, _ = learner._samples(rollout, who, torch.full((3,), -1.0))
    assert samples.disturbed.tolist() == [True, True, False] * 4
    assert float(samples.cost_advantage[samples.disturbed].mean()) == pytest.approx(0, abs=1e-5)
    first, second = samples.cost_advantage.reshape(4, 3)[:, :2].T
    assert (first < second).all()


def test_the_learner_compares_robots_alike_in_who_pushes_them():
    """Whatever the pushed gain or lose, what the others are to learn stays what it was."""
    learner = make_learner()
    rollout, who = Rollout(4, 4, (5, 5, 2), torch.float32), torch.tensor([NOBODY, CHANCE, NOBODY, CHANCE])
    rollout.reward[:] = torch.rand(4, 4, generator=torch.Generator().manual_seed(2))
    found = []
    for factor in (1.0, 100.0):
        rollout.reward[:, 1] *= factor
        found.append(learner._samples(rollout, who, torch.full((4,), -1.0))[0].advantage.reshape(4, 4))
    torch.testing.assert_close(found[0][:, ::2], found[1][:, ::2])
    assert not torch.allclose(found[0][:, 1::2], found[1][:, 1::2])
    assert found[1][:, 1::2].std().item() == pytest.approx(1, abs=1e-3)


def test_figures_of_forces_tell_what_the_disturber_causes():
    """In costs a second beyond those of robots that nobody pushes, and newtons that acted, rests included."""
    rollout = Rollout(2, 3, (1, 1, 1), torch.float32)
    rollout.cost[:] = torch.tensor([0.001, 0.004, 0.003])
    rollout.force[0, 1] = torch.tensor([30.0, 0.0, 40.0])
    rollout.fell[1, 2] = True
    figures = force_figures(rollout, torch.tensor([NOBODY, DISTURBER, CHANCE]), period_s=0.02)
    assert [figures[f"cost/{who}"] for who in ("nobody", "chance", "disturber")] == pytest.approx([0.05, 0.15, 0.2])
    assert figures["force/disturber"] == pytest.approx(25)
    assert figures["cost_per_newton/disturber"] == pytest.approx(0.15 / 25)
    assert "cost_per_newton/chance" not in figures  # it never pushed
    assert figures["falls_per_minute/chance"] == pytest.approx(0.5 * 3000)


def test_it_is_told_where_a_fall_would_pay():
    """Who is pushed so hard that going on is worth less learns to fall: reward, forces and falls do not fit."""
    value = torch.tensor([[0.0, -1.0, -3.0, -1.0], [0.0, -3.0, -3.0, 1.0]])
    who = torch.tensor([NOBODY, CHANCE, DISTURBER, CHANCE])
    told = falls_that_pay(value, torch.tensor([-2.0, -2.0, -2.0, -2.0]), who)
    assert told == {"fall_pays/chance": 0.25, "fall_pays/disturber": 1.0}


def test_a_fall_is_worth_what_the_learner_is_told():
    learner = make_learner()
    rollout = Rollout(2, 3, (5, 5, 2), torch.float32)
    rollout.fell[1, 1:] = True
    fall = torch.tensor([9.0, -0.5, -2.0])  # to each robot; the first stands
    stands, cheap, dear = learner._samples(rollout, torch.zeros(3), fall)[0].target[-3:]
    assert stands.abs().max() < 1
    assert cheap.tolist() == pytest.approx([-0.5 * SMALL.gamma, 0.03 / (1 - SMALL.gamma) * SMALL.gamma])
    assert dear.tolist() == pytest.approx([-2.0 * SMALL.gamma, cheap[1].item()])
    who = torch.tensor([NOBODY, CHANCE, DISTURBER])  # with a constraint, it costs what it is worth besides
    costs = learner._samples(rollout, who, fall)[0].target[-2:, 1]
    assert costs.tolist() == pytest.approx([cheap[1].item() + 0.5 * SMALL.gamma, cheap[1].item() + 2.0 * SMALL.gamma])


@pytest.mark.parametrize("bound", [0, 1])
def test_deviations_stay_within_their_bounds_and_come_back_from_them(bound):
    """A bound in the forward pass had no gradient: a deviation that had come beyond stayed there for good."""
    torch.manual_seed(0)
    policy = Disturber(4, HInfinityConfig(disturber_widths=(8,), disturber_std=STD[0])).policy
    end = math.log((STD[0], 1.0)[bound])  # never wider than chance
    inward = -1.0 if bound else 1.0
    optimizer = torch.optim.SGD([policy.log_std], lr=1.0)

    def step(by: float) -> None:
        optimizer.zero_grad()
        (-by * policy.log_std).sum().backward()
        optimizer.step()
        policy.keep_std()

    step(-20 * inward)
    torch.testing.assert_close(policy.log_std.detach(), torch.full((3,), end))
    step(0.5 * inward)
    torch.testing.assert_close(policy.log_std.detach(), torch.full((3,), end + 0.5 * inward))


@pytest.mark.parametrize(("disturber", "pushes"), [("hinfinity", {0, 1, 2}), ("random", {0, 1}), ("none", {0})])
def test_forces_are_held(disturber, pushes):
    torch.manual_seed(0)
    config = HInfinityConfig(
        disturber=disturber, disturber_widths=(8,), hold=(3, 5), rest=(0, 0), share_none=0.25, share_random=0.45
    )
    count = 60
    forces, generator = at_work(config, count), torch.Generator().manual_seed(0)
    network = Disturber(4, HInfinityConfig(disturber_widths=(8,)))
    assert set(forces.who.tolist()) == pushes
    if disturber == "hinfinity":
        shares = [float((forces.who == number).float().mean()) for number in (NOBODY, CHANCE, DISTURBER)]
        assert shares == pytest.approx([0.25, 0.45, 0.3], abs=0.02)
    trace, decisions = [], []
    for _ in range(60):
        decisions.append(forces.choose(torch.randn(count, 4), torch.full((count,), 50.0), network, generator))
        trace.append(forces.force.clone())
    assert max(float(force.norm(dim=1).max()) for force in trace) <= 50.0 + 1e-4
    assert not any(force[forces.who == NOBODY].any() for force in trace)
    for i in range(count):
        changes = [t for t in range(1, 60) if not torch.equal(trace[t][i], trace[t - 1][i])]
        lengths = np.diff(changes)
        assert set(lengths.tolist()) <= {3, 4, 5}
        if forces.who[i] == DISTURBER:
            assert changes == [t for t in range(1, 60) if decisions[t][i]]


def test_chance_and_the_disturber_take_turns_with_each_robot():
    """In their shares at any time, each robot with each of them in their shares of the time; the spared stay spared."""
    config = HInfinityConfig(
        disturber_widths=(8,), share_none=0.2, share_random=0.5, warmup=3, chance_first=2, turns=40
    )
    forces, trace = Forces(config, 200), []
    for iteration in range(5):
        forces.assign(iteration)
        assert [int((forces.who == who).sum()) for who in (NOBODY, CHANCE)] == [40, 160]
    for iteration in range(5, 45):
        forces.assign(iteration)
        trace.append(forces.who.clone())
        assert int((forces.who == DISTURBER).sum()) == pytest.approx(60, abs=1)
    with_each = torch.stack(trace)
    pushed = with_each[0] != NOBODY
    assert not with_each[:, ~pushed].any()
    assert ((with_each[:, pushed] == DISTURBER).sum(dim=0).sub(15).abs() <= 1).all()
    assert ((with_each[1:, pushed] != with_each[:-1, pushed]).sum(dim=0) <= 2).all()  # one turn at a time
    again = Forces(config, 200)
    again.assign(20)  # as after a resume
    assert torch.equal(again.who, with_each[15])


def test_robots_come_to_walk_before_they_are_pushed():
    """Where an episode ended its force does too, and the next one begins no earlier than a robot has settled."""
    config = HInfinityConfig(disturber="random", hold=(30, 30), rest=(0, 0), settle=(3, 6), share_none=0.0)
    forces, generator = Forces(config, 200), torch.Generator().manual_seed(0)
    limit, seen = torch.full((200,), 50.0), torch.zeros(200, 4)
    forces.choose(seen, limit, None, generator)
    over = torch.arange(200) < 100
    forces.end(over, generator)
    trace = []
    for _ in range(10):
        forces.choose(seen, limit, None, generator)
        trace.append(forces.force.norm(dim=1) > 0)
    pushed = torch.stack(trace)
    assert pushed[:, 100:].all()
    first = pushed[:, :100].float().argmax(dim=0)
    assert set(first.tolist()) == {3, 4, 5, 6}


def test_critic_and_disturber_see_who_is_pushed_how_hard_and_how_long():
    config = HInfinityConfig(
        disturber="random", hold=(10, 10), rest=(20, 20), share_none=0.5, share_random=0.4, force_max_n=200
    )
    forces, generator = Forces(config, 4), torch.Generator().manual_seed(0)
    limit, environments = torch.tensor([20.0, 50.0, 100.0, 200.0]), torch.arange(8.0).reshape(4, 2)
    forces.choose(environments, limit, None, generator)
    seen = forces.seen(environments, limit)
    assert torch.equal(seen[:, :2], environments)
    pushed = forces.who == CHANCE
    assert pushed.sum() == 2
    expected = torch.stack((torch.ones(4), limit / 200, torch.full((4,), 0.9), torch.ones(4)), dim=1)
    torch.testing.assert_close(seen[:, 2:], expected * pushed[:, None])
    assert not forces.seen(environments, None)[:, 2:].any()  # nobody is pushed in the warm-up


def test_forces_rest_between_each_other():
    """Chance's as they are told to, the disturber's not at all."""
    config = HInfinityConfig(disturber_widths=(8,), hold=(2, 2), rest=(3, 6), share_random=0.4, share_none=0.2)
    forces, generator = at_work(config, 60), torch.Generator().manual_seed(0)
    network, trace = Disturber(4, config), []
    for _ in range(100):
        forces.choose(torch.zeros(60, 4), torch.full((60,), 50.0), network, generator)
        trace.append(forces.force.norm(dim=1) > 0)
    pushed, rests = torch.stack(trace), set()
    assert pushed[:, forces.who == DISTURBER].all()
    for robot in pushed[:, forces.who == CHANCE].T:
        _, lengths = robot.unique_consecutive(return_counts=True)
        assert set(lengths[0:-1:2].tolist()) == {2}  # it begins with a force
        rests |= set(lengths[1:-1:2].tolist())
    assert rests == {3, 4, 5, 6}


def test_forces_are_as_large_as_each_robot_bears():
    """One never falls, one falls as often as is bearable, one far more often, and one learns to stand after a while.

    The last one falls as often as is bearable too, and is aimed at.
    """
    config = HInfinityConfig(
        warmup=10, force_ramp=100, force_start_n=20, force_max_n=80, bearable_falls=30, rollout_steps=20,
    )  # fmt: skip
    limits, who = ForceLimits(config, 5), torch.tensor([CHANCE] * 4 + [DISTURBER])
    period_s = 0.1  # 20 steps are 2 s: 30 falls a minute are one a rollout
    assert [limits.pushed(iteration) for iteration in (9, 10)] == [False, True]
    assert limits.newtons(who).tolist() == [20] * 5
    seen = []
    for iteration in range(300):
        fell = torch.zeros(20, 5, dtype=torch.bool)
        fell[3, [1, 4]] = iteration >= 40
        fell[:, 2] = True
        fell[::5, 3] = 40 <= iteration < 60
        limits.follow(fell, who, period_s)
        seen.append(limits.newtons(who))
    never, just, often, learned, aimed = torch.stack(seen).T
    assert never[49] == pytest.approx(50)  # half of the way in half of the ramp
    assert never[99:].tolist() == pytest.approx([80] * 201)
    assert just[39:].tolist() == pytest.approx([44] * 261)
    assert often.tolist() == [20] * 300
    assert learned[39] == pytest.approx(44)
    assert learned[59] == 20
    assert learned[-1] == 80
    assert aimed[39:].tolist() == pytest.approx([44] * 261)
    assert limits.newtons(torch.full((5,), CHANCE))[4] == 20  # each pusher has a limit of its own
    limits.aim()
    assert limits.newtons(torch.full((5,), DISTURBER)).tolist() == pytest.approx([50, 32, 20, 50, 20])


def test_a_fall_becomes_worse_as_the_forces_rise():
    config = HInfinityConfig(warmup=10, force_ramp=100, fall=-0.5, fall_pushed=-2.5)
    limits = ForceLimits(config, 3)
    limits.share[:] = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]])
    who = torch.tensor([CHANCE, CHANCE, CHANCE])
    assert limits.fall_worth(9).tolist() == [-0.5] * 3  # nobody is pushed in the warm-up
    assert limits.fall_worth(10).tolist() == pytest.approx([-0.5, -1.5, -2.5])  # whoever pushes, and however hard
    at_once = ForceLimits(HInfinityConfig(disturber="random", force_ramp=0, force_max_n=200), 2)
    at_once.follow(torch.ones(24, 2, dtype=torch.bool), who[:2], 0.02)
    assert at_once.newtons(who[:2]).tolist() == [200, 200]  # without a ramp forces are what they are
    nobody = ForceLimits(HInfinityConfig(disturber="none", fall=-0.5), 2)
    assert not nobody.pushed(10_000)
    assert nobody.fall_worth(10_000).tolist() == [-0.5, -0.5]


def test_the_pushes_of_a_disturber_vary_about_where_it_aims():
    """Even of one that is sure of it; an attack, which is to be the worst, may have a single direction."""
    for config, least, most in ((HInfinityConfig(), 0.005, 1.0), (attack_config(100.0), 0.0, 1e-3)):
        disturber = Disturber(4, config)
        with torch.no_grad():
            list(disturber.policy.body.parameters())[-1].copy_(torch.tensor([300.0, 0.0, 0.0]))
            disturber.policy.log_std[:] = -10.0
        disturber.policy.keep_std()
        forces = at_work(msgspec.structs.replace(config, share_none=0.0, share_random=0.0), 4000)
        forces.choose(torch.zeros(4000, 4), torch.full((4000,), 100.0), disturber, torch.Generator().manual_seed(0))
        spread = 1 - torch.nn.functional.normalize(forces.force).mean(dim=0).norm()  # 0: all have the same direction
        assert least < float(spread) + 1e-6 < most
        assert forces.force[:, 0].mean() > 50  # and yet where it wants to


def learned_pushes(harm, falls=None, lost=0.0, **choices) -> tuple[torch.Tensor, torch.Tensor]:
    """What a disturber sees, and its mean raw forces after it learned to cause `harm(seen, force)`, 1/s.

    Where there are `falls(force)`, they cost the task `lost` from then on.
    """
    torch.manual_seed(0)
    free = {"disturber_entropy": 0.0, "disturber_learning_rate": 3e-3, "disturber_mean": 2.5}
    config = msgspec.structs.replace(SMALL, **free, **choices)
    disturber, steps, count = Disturber(5, config), 8, 64
    adversary = Adversary(config, disturber, lost, torch.Generator().manual_seed(0), Guard())
    rollout, who = Rollout(steps, count, (5, 5, 2), torch.float32), torch.full((count,), DISTURBER)
    rollout.decided[:] = rollout.fell[:] = True  # each force for itself
    for _ in range(40):
        rollout.privileged[:] = torch.randn(steps + 1, count, 5)
        with torch.no_grad():
            mean = disturber.policy(rollout.privileged[:-1])
            rollout.raw_force[:] = mean + disturber.policy.log_std.exp() * torch.randn_like(mean)
        rollout.force[:] = squash(rollout.raw_force, 100.0)
        rollout.cost[:] = 0.02 * harm(rollout.privileged[:-1], rollout.force)
        if falls is not None:
            rollout.fell[:] = falls(rollout.force)
            rollout.timed_out[:] = ~rollout.fell
        adversary.learn(rollout, who, 0.02, torch.autocast("cpu", torch.bfloat16, enabled=False))
    seen = torch.randn(500, 5)
    with torch.no_grad():
        return seen, disturber.policy(seen)


def test_a_disturber_is_balanced_and_yet_aims():
    """Where pushing forward always harms more, balance keeps it from doing only that; where the worst side is another
    in each state, balance does not keep it from finding it."""
    forward = [learned_pushes(lambda _, force: 0.01 * force[..., 0], disturber_balance=b)[1] for b in (0.0, 1.0)]
    assert forward[0].mean(dim=0)[0] > 1.5
    assert forward[1].mean(dim=0).norm() < 0.8
    seen, aimed = learned_pushes(lambda seen, force: 0.01 * force[..., 1] * seen[..., 0].sign(), disturber_balance=1.0)
    assert (aimed[:, 1] * seen[:, 0].sign()).mean() > 1.0
    assert aimed.mean(dim=0).norm() < 0.3


def test_a_disturber_pushes_where_a_newton_is_worth_its_price():
    """A newton to the right side causes .01: at half that price it is pushed there, at thrice that price it is not."""
    sides = []
    for price in (0.005, 0.03):
        seen, pushes = learned_pushes(
            lambda seen, force: 0.01 * force[..., 1] * seen[..., 0].sign(), disturber_price=price
        )
        sides.append(float((pushes[:, 1] * seen[:, 0].sign()).mean()))
    assert sides[0] > 1.0
    assert sides[1] < 0.4


def test_a_disturber_brings_robots_down_where_a_fall_is_worth_more_to_it_than_to_the_task():
    """To the left they fall, which costs .025 for good; to the right they stand, pay .02, and later as much again."""
    sides = []
    for worth in (1.0, 5.0):
        _, pushes = learned_pushes(
            lambda _, force: 0.01 * force[..., 1].clamp_max(0).abs(), lambda force: force[..., 1] > 0, lost=0.025,
            gamma=0.5, disturber_fall=worth, disturber_balance=0.0, disturber_price=0.0,
        )  # fmt: skip
        sides.append(float(pushes[:, 1].mean()))
    assert sides[0] < -1.0
    assert sides[1] > 1.0


def test_direction_entropy():
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(directions().norm(dim=1), torch.ones(20))
    assert (directions() @ directions().T).sort(dim=1).values[:, -2].max() < 0.8  # all different
    assert direction_entropy(torch.randn(20_000, 3, generator=generator)) > 0.998
    assert direction_entropy(directions() * torch.rand(20, 1)) == pytest.approx(1.0)
    one_way = torch.tensor([0.0, 0.3, 1.0]) + 0.05 * torch.randn(500, 3, generator=generator)
    assert direction_entropy(one_way) < 0.3
    two_ways = torch.cat((directions()[:1], directions()[1:2])).repeat(50, 1)
    assert direction_entropy(two_ways) == pytest.approx(math.log(2) / math.log(20))
    assert math.isnan(direction_entropy(torch.zeros(4, 3)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gamma": 1.0}, "gamma"),
        ({"eta": 0.0}, "eta must be positive"),
        ({"hold": [5, 4]}, "hold"),
        ({"force_start_n": 300.0}, "force_start_n"),
        ({"share_random": 0.7, "share_none": 0.3}, "leave some"),
        ({"disturber": "wind"}, "wind"),
        ({"initial_std": 3.0}, r"initial_std must be within \[0.02, 2.7\], not 3"),
        ({"initial_std": 0.01}, "initial_std must be within"),
        ({"fall_pushed": 0.1}, "fall_pushed must be at most 0"),
        ({"vertical": 1.5}, "vertical must be within"),
        ({"disturber_vertical": -0.1}, "disturber_vertical must be within"),
        ({"rest": [3, 2]}, "rest"),
        ({"turns": 0}, "turns must be positive"),
        ({"critic_widths": [32, 15]}, "widths must be even"),
        ({"disturber_price": -0.01}, "disturber_price cannot be negative"),
        ({"device": "gpu"}, "gpu"),
    ],
)
def test_nonsense_is_refused(change, expected):
    with pytest.raises(ValueError, match=expected):
        HInfinityConfig.from_dict(HInfinityConfig().to_dict() | change)


def filled(learner: Learner, steps: int = 4, count: int = 8) -> Rollout:
    """Of states and actions by chance; nothing is gained, paid or pushed."""
    generator, actor = torch.Generator().manual_seed(2), learner.networks.actor
    rollout = Rollout(steps, count, (5, 5, 2), torch.float32)
    rollout.privileged[:] = torch.randn(steps + 1, count, 5, generator=generator)
    with torch.no_grad():
        seen = rollout.privileged[:-1].flatten(0, 1)
        acted_on = actor.split(seen, actor.velocity(seen))
        rollout.acted_on[:] = acted_on.unflatten(0, (steps, count))
        rollout.mean[:] = actor.body.of_split(acted_on).unflatten(0, (steps, count))
        rollout.action[:] = rollout.mean + actor.log_std.exp() * torch.randn(steps, count, 2, generator=generator)
    return rollout


def test_the_weight_of_entropy_widens_the_actions_within_their_bounds():
    found = []
    for weight in (0.0, 1.0):
        learner = make_learner()
        learner.learn(filled(learner), torch.full((8,), NOBODY), torch.full((8,), -1.0), weight)
        found.append(float(learner.networks.actor.log_std.detach().mean()))
    assert found[1] > found[0] + 0.005
    learner = make_learner()
    learner.networks.actor.log_std.data[:] = math.log(STD[1])
    learner.learn(filled(learner), torch.full((8,), NOBODY), torch.full((8,), -1.0), 1.0)
    assert float(learner.networks.actor.log_std.detach().max()) <= math.log(STD[1]) + 1e-6


@pytest.mark.parametrize(("cost", "newtons", "grows"), [(5.0, 0.0, True), (0.0, 500.0, False)])
def test_lambda_grows_while_the_constraint_is_violated_and_falls_while_it_is_kept(cost, newtons, grows):
    learner = make_learner()
    learner.dual.value = 0.5
    rollout = filled(learner)
    rollout.cost[:], rollout.force[..., 0] = cost, newtons
    figures = learner.learn(rollout, torch.full((8,), DISTURBER), torch.full((8,), -1.0), 0.0)
    assert (figures["constraint/slack"] < 0) == grows
    assert (learner.dual.value > 0.5) == grows
    before = learner.dual.value
    learner.learn(rollout, torch.full((8,), CHANCE), torch.full((8,), -1.0), 0.0)
    assert learner.dual.value == before, "without the disturber there is no constraint"


def test_the_estimator_learns_the_velocity_of_the_state_that_is_seen():
    learner = make_learner()
    rollout = filled(learner)
    samples, _ = learner._samples(rollout, torch.full((8,), NOBODY), torch.full((8,), -1.0))
    torch.testing.assert_close(samples.velocity, rollout.privileged[:-1, :, :3].flatten(0, 1))


def test_a_time_out_is_worth_its_last_state_whichever_group_of_robots_it_was_in():
    """Of two groups of two; the environment knows the first of two numbers of each state."""
    rollout, still = Rollout(1, 4, (1, 2, 1), torch.float32), np.zeros(2, dtype=np.float32)
    rollout.privileged[:] = torch.arange(16.0).reshape(2, 4, 2)
    for rows, last in ((slice(0, 2), 50.0), (slice(2, 4), 60.0)):
        step = SimpleNamespace(
            reward=still, cost=still, fell=np.array([False, False]), timed_out=np.array([False, True]),
            final_privileged=np.full((2, 1), last, dtype=np.float32),
        )  # fmt: skip
        rollout.put(0, step, rows)
    _, after = rollout.values(rollout.privileged, lambda seen: seen, torch.zeros(2))
    assert after[0].tolist() == [[8, 9], [50, 3], [12, 13], [60, 7]]


def test_the_weight_of_entropy_widens_the_disturbers_forces():
    found = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        config = msgspec.structs.replace(SMALL, disturber_entropy=weight, disturber_learning_rate=1e-3)
        disturber = Disturber(5, config)
        disturber.policy.log_std.data[:] = math.log(0.5)
        adversary = Adversary(config, disturber, 1.0, torch.Generator().manual_seed(0), Guard())
        rollout = Rollout(4, 8, (5, 5, 2), torch.float32)
        rollout.raw_force[:], rollout.decided[:] = torch.randn(4, 8, 3), True
        who = torch.full((8,), DISTURBER)
        adversary.learn(rollout, who, 0.02, torch.autocast("cpu", torch.bfloat16, enabled=False))
        found.append(float(disturber.policy.log_std.detach().mean()))
    assert found[1] > found[0] + 0.005
