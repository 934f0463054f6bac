"""The loop: it learns a toy task under every disturber, resumes bit for bit, and skips what is not finite."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.locomotion import LocomotionContract, roll_history
from policies.hinfinity import guarded, train
from policies.hinfinity.checkpoint import load_networks
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.forces import CHANCE, DISTURBER
from policies.hinfinity.train import Trainer
from policies.stopping import TrainingDiverged
from policies.tensors import CheckpointError

PERIOD_S = 0.1
TINY = {
    "actor_widths": (32, 32), "critic_widths": (32, 32), "disturber_widths": (16,), "precision": "fp32", "warmup": 2,
    "chance_first": 0, "force_ramp": 5, "force_start_n": 0.2, "force_max_n": 0.5, "hold": (2, 4), "initial_std": 0.7,
    "eta": 2.0, "settle": (0, 0), "device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Two would wait for each other longer than they work, on so small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Step:
    reward: np.ndarray
    cost: np.ndarray
    fell: np.ndarray
    timed_out: np.ndarray
    final_privileged: np.ndarray
    velocity_error: np.ndarray
    figures: dict[str, float]


class PointMass:
    """A mass of 1 kg in a plane: it is asked for a velocity, actions are accelerations. It falls when too fast."""

    def __init__(self, count: int = 64, seed: int = 0) -> None:
        self.count, self.period_s, self.cost_bound, self.velocity = count, PERIOD_S, PERIOD_S, slice(0, 3)
        self.contract = LocomotionContract(
            joint_names=("x", "y"), default_pose=(0, 0), action_scale=1, kp=1, kd=1, history=2
        )
        self.description = {"count": count}
        sign = np.array([1, -1, 1, -1] + [1] * 11, dtype=np.float32)
        self.mirror = {  # y to the other side
            "observation": (np.arange(30), np.concatenate((sign, sign))),
            "privileged": (np.arange(5), sign[:5]),
            "action": (np.arange(2), sign[:2]),
        }
        self.broken = False
        self._rng = np.random.default_rng(seed)
        self.state = np.zeros((count, 6))  # velocity, command, age, action's norm
        self._history = np.zeros((count, 2, 15), dtype=np.float32)
        self._begin(np.ones(count, dtype=bool))
        self.state[:, 4] = self._rng.integers(20, size=count)
        self._look()

    @property
    def observation(self):
        return self._history.reshape(self.count, -1)

    def step(self, action, force=None):
        force = np.zeros((self.count, 3)) if force is None else force
        self.state[:, :2] += PERIOD_S * (5.0 * np.tanh(action) + force[:, :2] - 0.5 * self.state[:, :2])
        self.state[:, 4] += 1
        error = np.linalg.norm(self.state[:, :2] - self.state[:, 2:4], axis=1)
        task = np.exp(-(error**2) / 0.25)
        self._look()
        fell = np.linalg.norm(self.state[:, :2], axis=1) > 3
        timed_out = ~fell & (self.state[:, 4] >= 20)
        final = self.privileged.copy()
        self._begin(fell | timed_out)
        self._look()
        reward = task * PERIOD_S * (np.nan if self.broken else 1)
        cost = (1 - task) * PERIOD_S
        reward, cost, error = (x.astype(np.float32) for x in (reward, cost, error))
        return Step(reward, cost, fell, timed_out, final, error, {"reward/task": float(task.mean())})

    def snapshot(self):
        state = self._rng.bit_generator.state
        words = [int(state["state"][k]) >> s & 0xFFFFFFFF for k in ("state", "inc") for s in (0, 32, 64, 96)]
        return {"state": self.state.copy(), "history": self._history.copy(), "rng": np.array(words, dtype=np.int64)}

    def restore(self, snapshot):
        self.state[:], self._history[:] = snapshot["state"], snapshot["history"]
        words = [int(word) for word in snapshot["rng"]]
        numbers = [sum(word << 32 * i for i, word in enumerate(words[k : k + 4])) for k in (0, 4)]
        state = self._rng.bit_generator.state
        self._rng.bit_generator.state = dict(state) | {"state": {"state": numbers[0], "inc": numbers[1]}}
        self.privileged = np.concatenate((self.state[:, :4], self._history[:, 0, :1]), axis=1, dtype=np.float32)

    def _begin(self, rows):
        drawn = self._rng.uniform(-1, 1, (self.count, 4))
        self.state[rows, :4] = drawn[rows]
        self.state[rows, 4] = 0

    def _look(self):
        seen = np.zeros((self.count, 15), dtype=np.float32)
        seen[:, :4] = self.state[:, :4]
        roll_history(self._history, seen)
        self.privileged = np.concatenate((self.state[:, :4], seen[:, :1]), axis=1, dtype=np.float32)


def make(output: Path, resume: bool = False, start_from: Path | None = None, **choices) -> Trainer:
    torch.manual_seed(99)  # nothing may depend on it
    return Trainer(
        [PointMass(40), PointMass(24, seed=1)],
        "mass",
        HInfinityConfig.from_dict(TINY | choices),
        output,
        resume,
        start_from,
    )


@pytest.mark.parametrize("disturber", ["none", "random", "hinfinity"])
def test_it_learns(disturber, tmp_path):
    trainer = make(tmp_path / "run", disturber=disturber, iterations=24, desired_kl=0.02)
    figures = [trainer.iterate(iteration) for iteration in range(24)]
    first, last = figures[0], figures[-1]
    assert first["task/velocity_error"] > 0.6
    assert last["task/velocity_error"] < 0.35
    assert last["learning/skipped"] == 0
    assert last["learning/estimator_loss"] < 0.2 * first["learning/estimator_loss"]
    assert ("constraint/lambda" in last) == (disturber == "hinfinity")
    if disturber == "hinfinity":
        assert 0 < last["direction_entropy/disturber"] <= 1
        assert last["force/disturber"] <= 0.5
        assert np.isfinite(last["cost_per_newton/disturber"])


@pytest.mark.parametrize(
    ("disturber", "chance_first", "renewal"), [("none", 0, 0), ("hinfinity", 0, 2), ("hinfinity", 3, 0)]
)
def test_resuming_changes_no_bit(disturber, chance_first, renewal, tmp_path):
    choices = {"disturber": disturber, "chance_first": chance_first, "disturber_renewal": renewal}
    straight = make(tmp_path / "straight", iterations=7, **choices)
    straight.run(progress_bar=False)
    make(tmp_path / "parts", iterations=4, **choices).run(progress_bar=False)
    parts = make(tmp_path / "parts", resume=True, iterations=7, **choices)
    result = parts.run(progress_bar=False)
    assert result.iterations == 7
    assert not result.interrupted
    assert result.steps == 7 * 24 * 64
    for (name, a), b in zip(straight.networks.state_dict().items(), parts.networks.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for group, other in zip(straight.collectors, parts.collectors, strict=True):
        np.testing.assert_array_equal(group.environment.observation, other.environment.observation)
    assert straight.learner.dual == parts.learner.dual
    networks, config = load_networks(tmp_path / "parts")
    assert config.robot == "mass"
    assert all(map(torch.equal, networks.actor.parameters(), parts.average.shadow.values()))
    assert all(map(torch.equal, networks.critic.parameters(), parts.networks.critic.parameters()))
    assert list((tmp_path / "parts" / "tensorboard").iterdir())


def test_until_the_disturber_sets_in_training_is_that_of_ppo_pushed_by_chance(tmp_path):
    """To the last bit, so that what comes of the disturber is what it adds."""
    by_chance = make(tmp_path / "random", disturber="random", force_ramp=0)
    aimed = make(tmp_path / "hinfinity", chance_first=4, force_ramp=0)
    actors = by_chance.networks.actor, aimed.networks.actor
    for iteration in range(8):
        one, other = by_chance.iterate(iteration), aimed.iterate(iteration)
        assert ("force/chance" in one) == ("force/chance" in other) == (iteration >= 2)
        assert ("force/disturber" in other) == ("constraint/slack" in other) == (iteration >= 6)
        assert all(map(torch.equal, *(actor.parameters() for actor in actors))) == (iteration < 6)


def test_a_new_disturber_takes_over_from_time_to_time(tmp_path, monkeypatch):
    trainer = make(tmp_path, disturber_renewal=3, chance_first=1)
    disturber, adversary, learn = trainer.networks.disturber, trainer.learner.adversary, trainer.learner.learn
    assert disturber is not None
    assert adversary is not None
    weights, begun, steps = disturber.policy.body.linears[0].weight, [], []
    first = weights.clone()

    def watched(*arguments):
        begun.append(weights.clone())
        return learn(*arguments)

    monkeypatch.setattr(trainer.learner, "learn", watched)
    for iteration in range(10):
        trainer.iterate(iteration)
        steps.append(int(max((state["step"] for state in adversary.choosing.adam.state.values()), default=0)))
    same = [torch.equal(now, first) for now in begun]
    assert same == [True] * 4 + [False] * 6, "the first one learns from iteration 3 on"
    assert not torch.equal(begun[6], begun[9]), "each is another one"
    each = steps[3]
    assert steps == [0, 0, 0, each, 2 * each, 3 * each, each, 2 * each, 3 * each, each]


@pytest.mark.parametrize(("disturber", "done", "eta"), [("hinfinity", 6, 0.7), ("none", 2, 2.0)])
def test_a_copy_of_a_run_goes_on_with_another_disturber(disturber, done, eta, tmp_path):
    """As if it had been there from the start, as long as it would have changed nothing; then it is too late."""
    straight = make(tmp_path / "straight", disturber=disturber, chance_first=4, eta=eta, iterations=8)
    straight.run(progress_bar=False)
    for iterations in (done, done + 1):
        make(tmp_path / "random", resume=True, disturber="random", iterations=iterations).run(progress_bar=False)
        shutil.copytree(tmp_path / "random", tmp_path / f"copy-{iterations}")
    changed = {"disturber": disturber, "chance_first": 4, "eta": eta, "iterations": 8}
    copied = make(tmp_path / f"copy-{done}", resume=True, **changed)
    copied.run(progress_bar=False)
    for (name, a), b in zip(straight.networks.state_dict().items(), copied.networks.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert straight.learner.dual == copied.learner.dual
    with pytest.raises(CheckpointError, match="other disturber"):
        make(tmp_path / f"copy-{done + 1}", resume=True, **changed)


def test_threads_change_nothing(tmp_path):
    """Whoever has more cores gets the same policy sooner."""
    found = []
    for threads in (1, 3):
        choices = TINY | {"rollout_steps": 3, "minibatches": 1, "threads": threads}
        trainer = Trainer(
            [PointMass(700), PointMass(600, seed=1)],
            "mass",
            HInfinityConfig.from_dict(choices),
            tmp_path / str(threads),
        )
        for iteration in range(3):
            trainer.iterate(iteration)
        found.append(weights(trainer))
    assert torch.equal(*found)


def test_the_mean_of_the_last_actors_is_what_walks(tmp_path):
    """Averaged, the actor is in the checkpoint; what goes on learning is not."""
    trainer = make(tmp_path, ema_decay=0.5)
    actors = [copy.deepcopy(trainer.networks.actor.state_dict())]
    for iteration in range(3):
        trainer.iterate(iteration)
        actors.append(copy.deepcopy(trainer.networks.actor.state_dict()))
    trainer.save()
    kept = load_networks(tmp_path)[0].actor.state_dict()
    first = 1 - 2**-0.75  # of the first weights, which are forgotten sooner
    for name, value in kept.items():
        w0, w1, w2, w3 = (actor[name] for actor in actors)
        expected = 0.25 * (first * w0 + (1 - first) * w1) + 0.25 * w2 + 0.5 * w3
        torch.testing.assert_close(value, expected)
        assert not torch.equal(value, w3)


def test_what_learns_elsewhere_is_what_collects(tmp_path, monkeypatch):
    """Two copies of the networks, as with a GPU, do what one does, bit for bit; a resumed run too."""
    one = make(tmp_path / "one", iterations=5)
    one.run(progress_bar=False)
    monkeypatch.setattr(train, "twin", lambda networks, device: copy.deepcopy(networks))
    make(tmp_path / "two", iterations=3).run(progress_bar=False)
    two = make(tmp_path / "two", resume=True, iterations=5)
    assert two.learner.networks is not two.networks
    two.run(progress_bar=False)
    for name, value in one.networks.state_dict().items():
        assert torch.equal(value, two.networks.state_dict()[name]), name
        assert torch.equal(value, two.learner.networks.state_dict()[name]), name
    for group, other in zip(one.collectors, two.collectors, strict=True):
        np.testing.assert_array_equal(group.environment.observation, other.environment.observation)


def weights(trainer: Trainer) -> torch.Tensor:
    """Of all networks that collect, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.networks.parameters()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_learns_what_the_cpu_learns(precision, tmp_path):
    cpu, gpu = (make(tmp_path / device, device=device, precision=precision, warmup=0) for device in ("cpu", "cuda"))
    first = weights(cpu)
    figures = [trainer.iterate(3) for trainer in (cpu, gpu)]
    assert next(gpu.learner.networks.parameters()).is_cuda
    assert not next(gpu.networks.parameters()).is_cuda
    moved = weights(cpu) - first
    assert (weights(gpu) - first - moved).norm() < 0.1 * moved.norm()
    for name in ("learning/kl", "constraint/slack", "force/disturber", "disturber/std"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=0.2), name
    make(tmp_path / "run", device="cuda", precision=precision, iterations=2).run(progress_bar=False)
    resumed = make(tmp_path / "run", resume=True, device="cpu", precision=precision, iterations=4)
    assert resumed.run(progress_bar=False).iterations == 4
    again = make(tmp_path / "run", resume=True, device="auto", precision=precision, iterations=6)
    assert again.run(progress_bar=False).iterations == 6
    assert next(again.learner.networks.parameters()).is_cuda


def test_a_gpu_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here; cpu or auto"):
        make(tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()
    assert make(tmp_path / "run", device="auto").learner.device.type == "cpu"


def test_a_fall_costs_more_once_robots_are_pushed(tmp_path):
    trainer = make(tmp_path, fall=-0.5, fall_pushed=-1.5, bearable_falls=1000, turns=10_000)
    figures = [trainer.iterate(iteration) for iteration in range(8)]
    aimed = trainer.who == DISTURBER  # for good, so that chance never pushed these any harder
    worth = trainer.limits.fall_worth(7)
    assert worth[aimed].tolist() == [-0.5] * int(aimed.sum())
    assert worth[trainer.who == CHANCE].tolist() == pytest.approx([-1.5] * int((trainer.who == CHANCE).sum()), abs=0.01)
    assert figures[2]["learning/fall"] == pytest.approx(-0.5, abs=0.01)
    assert [figures[i]["force/limit_chance"] for i in (2, 7)] == pytest.approx([0.2, 0.5], abs=0.01)
    assert "force/limit_chance" not in figures[1]
    assert figures[7]["force/limit_disturber"] > 0.2
    assert figures[7]["force/share_disturber"] == pytest.approx(0.2, abs=0.05)


def test_forces_that_nobody_bears_do_not_grow(tmp_path):
    trainer = make(tmp_path, warmup=0, force_start_n=30, force_max_n=60)
    figures = [trainer.iterate(iteration) for iteration in range(3)]
    assert figures[0]["falls_per_minute/chance"] > 3  # half a g on a kilogram
    assert max(each["force/limit_chance"] for each in figures) < 33  # 42 if nobody had fallen


def test_half_precision_learns_too(tmp_path):
    trainer = make(tmp_path, disturber="none", precision="bf16")
    before = trainer.iterate(0)["task/velocity_error"]
    for iteration in range(1, 12):
        after = trainer.iterate(iteration)["task/velocity_error"]
    assert after < 0.8 * before


def test_a_run_is_not_overwritten_nor_resumed_as_another(tmp_path):
    make(tmp_path, iterations=1).run(progress_bar=False)
    with pytest.raises(CheckpointError, match="resume it"):
        make(tmp_path)
    with pytest.raises(CheckpointError, match="other gamma"):
        make(tmp_path, resume=True, gamma=0.9)
    make(tmp_path, resume=True, iterations=2)
    (tmp_path / "training_state.safetensors").unlink()
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="without its training_state"):
            make(tmp_path, resume=resume)


def test_training_goes_on_from_the_weights_of_another_run(tmp_path):
    walker = make(tmp_path / "first", iterations=30, disturber="none")
    walker.run(progress_bar=False)
    learned = walker.iterate(30)["task/velocity_error"]
    fresh = make(tmp_path / "fresh", seed=1).iterate(0)["task/velocity_error"]
    further = make(tmp_path / "further", start_from=tmp_path / "first", seed=1)
    assert further.iterate(0)["task/velocity_error"] < (learned + fresh) / 2  # pushed by a disturber of its own
    further.save()
    assert further.progress.iteration == 0
    make(tmp_path / "further", resume=True, start_from=tmp_path / "first", seed=1)
    with pytest.raises(CheckpointError, match="other start_from"):
        make(tmp_path / "further", resume=True, seed=1)
    with pytest.raises(CheckpointError, match="first: critic"):
        make(tmp_path / "larger", start_from=tmp_path / "first", critic_widths=(64,))
    assert not (tmp_path / "larger").exists()


def test_symmetric_networks_do_not_begin_with_others(tmp_path):
    make(tmp_path / "first", iterations=1, mirror=False).run(progress_bar=False)
    with pytest.raises(CheckpointError, match="first: not the same networks on both sides; with mirror off"):
        make(tmp_path / "second", start_from=tmp_path / "first")
    assert not (tmp_path / "second").exists()
    make(tmp_path / "second", start_from=tmp_path / "first", mirror=False)


def test_a_damaged_state_is_refused(tmp_path):
    make(tmp_path, iterations=1).run(progress_bar=False)
    state = tmp_path / "training_state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="training_state"):
        make(tmp_path, resume=True)


def test_what_is_not_finite_is_skipped_and_then_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded, "MOST_BAD", 3)
    trainer = make(tmp_path, disturber="none")
    trainer.iterate(0)
    before = {name: value.clone() for name, value in trainer.networks.state_dict().items()}
    trainer.collectors[0].environment.broken = True  # type: ignore[attr-defined]
    assert trainer.iterate(1)["learning/skipped"] == 1
    assert all(torch.equal(value, before[name]) for name, value in trainer.networks.state_dict().items())
    trainer.iterate(2)
    with pytest.raises(TrainingDiverged, match="3 updates in a row"):
        trainer.iterate(3)


def test_a_gradient_that_is_not_finite_is_skipped():
    weight = torch.nn.Parameter(torch.ones(1))
    guard = guarded.Guard()
    optimizer = guarded.GuardedAdam([weight], 1.0, guard)
    assert not optimizer.step((weight - 1).sqrt().sum(), 0.1, "it")  # loss 0, infinite gradient
    assert not optimizer.step(weight.sum() * torch.inf, 0.1, "it")
    assert guard.skipped == 2
    assert weight.item() == 1.0
    assert optimizer.step(weight.sum(), 0.1, "it")
    assert weight.item() < 1.0
