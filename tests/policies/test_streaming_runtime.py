"""The buffer of Streaming Diffusion Policy rolls as the method says, and an episode knows nothing of the one before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from episodes.data import EpisodeData
from episodes.dataset import Dataset, DatasetWriter
from execution.observation import Observation
from policies.base import make_contract
from policies.checkpoint import load_checkpoint
from policies.config import TrainingConfig
from policies.export import export
from policies.runtime import BundleError, PolicyOutputError, Runtime
from policies.runtime.graphs import Array
from policies.runtime.sampler import StreamingSampler, sampler_from_json
from policies.streaming.config import StreamingConfig
from policies.streaming.policy import StreamingPolicy
from policies.tensors import CheckpointError
from policies.torch_runtime import TorchGraph
from policies.train import train_policy
from policies.unet import ConditionalUNet1d
from tests.checkpoints import write_checkpoint

PERIOD_NS = 12_500_000
TINY = StreamingConfig(horizon=8, widths=(8, 16), level_dim=8, noise_levels=40, image_width=8, keypoints=8)
VARIANTS: dict[str, dict[str, Any]] = {
    "one action": {"evaluations": 1},
    "two evaluations": {"evaluations": 2, "prediction": "sample"},
    "noise of its own": {"evaluations": 5, "scheduler": "ddpm", "prediction": "epsilon"},
    "several actions": {"execute": 3, "evaluations": 4, "reset": "zero"},
    "from a given action": {"reset": "constant", "reset_action": (0.1, -0.2, 0.3, -1.0), "execute": 2},
}


def make_policy(datasets: dict[str, Path], robot, observation_set: str = "state", **changes: Any) -> StreamingPolicy:
    """Untrained, but with every weight drawn, so that all it is told matters."""
    torch.manual_seed(3)
    config = msgspec.structs.replace(TINY, **changes)
    contract = make_contract("streaming", config, robot, observation_set, "open the drawer")
    policy = StreamingPolicy(config, contract).eval()
    policy.fit_normalization(Dataset(datasets[observation_set]).statistics())
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    return policy


def in_torch(policy: StreamingPolicy) -> Runtime:
    runners = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    return Runtime(policy.contract, policy.sampler(), runners)


class SlowStream:
    """The method again, an action at a time in float64, of the definitions alone; the network is the policy's own."""

    def __init__(self, policy: StreamingPolicy, seed: int) -> None:
        self.policy, self.config = policy, policy.config
        self.random = np.random.default_rng(seed)
        config = self.config
        self.alphas = [1.0]
        for step in range(config.noise_levels):  # squared cosine (arXiv 2102.09672, equation 17), betas at most 0.999
            bars = [
                math.cos((part / config.noise_levels + 0.008) / 1.008 * math.pi / 2) ** 2 for part in (step, step + 1)
            ]
            self.alphas.append(self.alphas[-1] * (1 - min(1 - bars[1] / bars[0], 0.999)))
        self.buffer: list[tuple[np.ndarray, int]] = []  # (noisy action, its level)

    def act(self, observation: Observation, elapsed: int) -> np.ndarray:
        config = self.config
        values = [torch.from_numpy(observation.values[key])[None] for key in self.policy.encoder.keys]
        self.condition = self.policy.encoder(*values)
        if not self.buffer or elapsed >= config.horizon:
            self.buffer = self.fresh()
        else:
            self.buffer = self.buffer[elapsed:] + [(action, config.noise_levels) for action in self.noise(elapsed)]
        for number in range(1, config.evaluations + 1):
            progress = number / config.evaluations
            estimates = self.evaluate([self.level(slot, progress) for slot in range(config.horizon)])
        low = self.policy.actions.center.double().numpy()
        return np.stack(estimates) * self.policy.actions.half_range.double().numpy() + low

    def level(self, slot: int, progress: float) -> int:
        steps = self.config.horizon // self.config.execute
        part = min((slot // self.config.execute + 1 - progress) / steps, 1)
        return math.floor(self.config.noise_levels * part + 1e-9)

    def noise(self, count: int) -> np.ndarray:
        return self.random.standard_normal((count, 4), dtype=np.float32).astype(np.float64)

    def fresh(self) -> list[tuple[np.ndarray, int]]:
        config = self.config
        begin = np.zeros((config.horizon, 4))
        if config.reset == "constant":
            center, half = (v.double().numpy() for v in (self.policy.actions.center, self.policy.actions.half_range))
            varies = half > 5e-5
            one = np.where(varies, (np.array(config.reset_action) - center) / np.where(varies, half, 1), 0)
            begin[:] = np.clip(one, -1, 1)
        if config.reset == "denoised":
            self.buffer = [(action, config.noise_levels) for action in self.noise(config.horizon)]
            for left in range(config.reset_evaluations - 1, -1, -1):
                self.evaluate([round(config.noise_levels * left / config.reset_evaluations)] * config.horizon)
            begin = np.stack([action for action, _ in self.buffer])
        noise = self.noise(config.horizon)
        levels = [self.level(slot, 0) for slot in range(config.horizon)]
        return [
            (math.sqrt(self.alphas[level]) * begin[slot] + math.sqrt(1 - self.alphas[level]) * noise[slot], level)
            for slot, level in enumerate(levels)
        ]

    def evaluate(self, below: list[int]) -> list[np.ndarray]:
        """One run of the network: the buffer goes to the levels `below`; the estimates of the clean actions."""
        sample = torch.tensor(np.stack([action for action, _ in self.buffer]), dtype=torch.float32)[None]
        told = torch.tensor([[max(level, 1) for _, level in self.buffer]])
        with torch.no_grad():
            output = self.policy.unet(sample, told, self.condition)[0].double().numpy()
        noise = self.noise(self.config.horizon) if self.config.scheduler == "ddpm" else None
        estimates = []
        for slot, (action, level) in enumerate(self.buffer):
            if level == 0:
                estimates.append(action)
                continue
            a, b = self.alphas[level], self.alphas[min(level, below[slot])]
            if self.config.prediction == "epsilon":
                x0 = (action - math.sqrt(1 - a) * output[slot]) / math.sqrt(a)
            elif self.config.prediction == "sample":
                x0 = output[slot]
            else:
                x0 = math.sqrt(a) * action - math.sqrt(1 - a) * output[slot]
            epsilon = (action - math.sqrt(a) * x0) / math.sqrt(1 - a)
            x0 = np.clip(x0, -1, 1)
            estimates.append(x0)
            if below[slot] >= level:
                continue
            moved = math.sqrt(b) * x0 + math.sqrt(1 - b) * epsilon
            if (
                noise is not None
            ):  # the posterior of two Gaussians: what x0 says of b, and what the action at a says of it
                likelihood = (a / b) / (1 - a / b)
                prior = 1 / (1 - b) if b < 1 else math.inf
                moved = x0
                if b < 1:
                    mean = prior * math.sqrt(b) * x0 + likelihood * action / math.sqrt(a / b)
                    moved = mean / (prior + likelihood) + noise[slot] / math.sqrt(prior + likelihood)
            self.buffer[slot] = (moved, below[slot])
        return estimates


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_roll_of_the_whole_buffer_equals_a_slow_one(variant, datasets, robot, make_observation):
    policy = make_policy(datasets, robot, **VARIANTS[variant])
    session, slow = in_torch(policy).start(5), SlowStream(policy, 5)
    stamp, elapsed = 0, 0
    horizon, execute = policy.config.horizon, policy.config.execute
    late = [0, 0, 1, 0, 3, horizon, 0, -execute, 0, horizon - execute, 0]  # periods beyond what was expected
    for number, more in enumerate([0] * policy.config.horizon + late):
        elapsed = (policy.config.execute + more) if number else 0
        stamp += elapsed * PERIOD_NS
        observation = make_observation(policy.contract, number, stamp)
        found = session.act(observation)
        assert found.start_ns == stamp
        near = (
            5e-3 if policy.config.prediction == "epsilon" else 5e-5
        )  # it divides by the little signal there is at first
        np.testing.assert_allclose(found.actions, slow.act(observation, elapsed), atol=near)


def test_episodes_one_after_the_other_equal_fresh_ones_bit_for_bit(datasets, robot, make_observation):
    policy = make_policy(datasets, robot, evaluations=2, scheduler="ddpm")

    def episode(runtime: Runtime, seed: int) -> np.ndarray:
        session = runtime.start(seed)
        chunks = [session.act(make_observation(policy.contract, seed + i, i * PERIOD_NS)).actions for i in range(12)]
        return np.stack(chunks)

    one_runtime = in_torch(policy)
    together = [episode(one_runtime, seed) for seed in (1, 2)]
    apart = [episode(in_torch(policy), seed) for seed in (1, 2)]
    for found, fresh in zip(together, apart, strict=True):
        assert np.array_equal(found, fresh)
    assert not np.array_equal(together[0], together[1])


def test_two_sessions_at_once_do_not_share_a_buffer(datasets, robot, make_observation):
    policy = make_policy(datasets, robot)
    runtime = in_torch(policy)
    one, other, alone = runtime.start(1), runtime.start(2), runtime.start(1)
    for i in range(10):
        seen = make_observation(policy.contract, i, i * PERIOD_NS)
        chunk = one.act(seen).actions
        other.act(make_observation(policy.contract, 100 + i, i * PERIOD_NS))
        assert np.array_equal(chunk, alone.act(seen).actions)


@pytest.mark.parametrize("observation_set", ["state", "image"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_bundle_acts_as_its_network_does_for_a_whole_episode(
    backend, observation_set, datasets, robot, make_observation, tmp_path
):
    policy = make_policy(datasets, robot, observation_set, evaluations=2)
    bundle = export(write_checkpoint(policy, robot, tmp_path / "checkpoint"), tmp_path / "bundle")
    ours, theirs = Runtime.load(bundle, backend).start(0), in_torch(policy).start(0)
    for i in range(20):
        seen = make_observation(policy.contract, i, i * PERIOD_NS)
        np.testing.assert_allclose(ours.act(seen).actions, theirs.act(seen).actions, atol=2e-4)


def test_a_late_observation_is_answered_with_as_many_evaluations_as_ever(datasets, robot, make_observation):
    policy = make_policy(datasets, robot, evaluations=2)
    session = in_torch(policy).start(0)
    told: list[list[int]] = []

    class Counted(TorchGraph):
        def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
            told.append(inputs["levels"][0].tolist())
            return super().__call__(inputs)

    session.runners = {**session.runners, "denoiser": Counted(policy.graphs()["denoiser"])}
    session.act(make_observation(policy.contract, 0, 0))
    told.clear()
    session.act(make_observation(policy.contract, 1, 3 * PERIOD_NS))
    assert told[0] == [15, 20, 25, 30, 35, 40, 40, 40]  # two steps above the staircase
    assert told[1] == [2, 7, 12, 17, 22, 27, 32, 37]  # half a step below it
    told.clear()
    session.act(make_observation(policy.contract, 2, 4 * PERIOD_NS))
    assert told[0] == [5, 10, 15, 20, 25, 30, 35, 40]  # as if nothing had happened


@pytest.mark.parametrize("periods", [0.5, 0.64, 1.0, 1.5, 8 / 3])
def test_the_buffer_keeps_time_at_whatever_rate_and_jitter_observations_come(
    periods, datasets, robot, make_observation
):
    """Rolled by as many actions as periods have passed: pure noise is appended for each of them."""
    policy = make_policy(datasets, robot)
    session = in_torch(policy).start(0)
    session.act(make_observation(policy.contract, 0, 0))
    drawn: list[int] = []

    class Counted:
        def standard_normal(self, size, dtype):
            drawn.append(size[0])
            return np.zeros(size, dtype)

    session.random = Counted()  # type: ignore[assignment]
    jitter = np.random.default_rng(0).uniform(-0.1, 0.1, 100)
    for number in range(1, 100):
        stamp = round((number * periods + jitter[number]) * PERIOD_NS)
        session.act(make_observation(policy.contract, number, stamp))
    assert sum(drawn) == pytest.approx(99 * periods, abs=1)
    assert max(drawn) <= math.ceil(periods) + 1


def test_an_answer_that_is_not_finite_spoils_no_later_one(datasets, robot, make_observation):
    policy = make_policy(datasets, robot)
    session = in_torch(policy).start(0)
    session.act(make_observation(policy.contract, 0, 0))
    sound = session.runners
    broken = TorchGraph(policy.graphs()["denoiser"])

    def nan(inputs: Mapping[str, Array]) -> list[Array]:
        return [np.full_like(value, np.nan) for value in broken(inputs)]

    session.runners = {**sound, "denoiser": nan}  # type: ignore[dict-item]
    with pytest.raises(PolicyOutputError):
        session.act(make_observation(policy.contract, 1, PERIOD_NS))
    session.runners = sound
    assert np.isfinite(session.act(make_observation(policy.contract, 2, 2 * PERIOD_NS)).actions).all()


def test_what_is_done_goes_on_from_one_chunk_to_the_next(datasets, robot, make_observation):
    """A slot is at most as free to change as it is noisy: with the head nearly clean, chunks hardly differ there."""
    policy = make_policy(datasets, robot, scheduler="ddim")
    session = in_torch(policy).start(0)
    chunks = [session.act(make_observation(policy.contract, i, i * PERIOD_NS)).actions for i in range(40)]
    changes = np.abs(np.stack([after[:-1] - before[1:] for before, after in zip(chunks[8:], chunks[9:], strict=False)]))
    near, far = changes[:, 0].mean(), changes[:, 4:].mean()
    assert near < 0.5 * far


def test_it_says_how_much_noise_is_left_in_each_action(datasets, robot):
    left = in_torch(make_policy(datasets, robot, execute=2)).start(0).residual_noise
    assert left is not None
    assert left[:2] == (0, 0)
    assert list(left) == sorted(left)
    assert left[2] == pytest.approx(math.sin(math.pi / 2 * (10 / 40 + 0.008) / 1.008), abs=0.01)
    assert 0.9 < left[-1] < 1


def test_actions_never_leave_the_range_of_the_data(datasets, robot, make_observation):
    policy = make_policy(datasets, robot, evaluations=2, scheduler="ddpm")
    statistics = Dataset(datasets["state"]).statistics()["action"]
    session = in_torch(policy).start(0)
    for i in range(30):
        actions = session.act(make_observation(policy.contract, i, i * PERIOD_NS)).actions
        assert (actions >= np.asarray(statistics["min"]) - 1e-6).all()
        assert (actions <= np.asarray(statistics["max"]) + 1e-6).all()


def test_a_level_for_each_action_that_is_the_same_for_all_is_a_level_for_the_chunk():
    torch.manual_seed(0)
    unet = ConditionalUNet1d(action_dim=3, condition_dim=5, widths=(16, 24, 32), kernel_size=5, timestep_dim=16)
    sample, condition = torch.randn(2, 8, 3), torch.randn(2, 5)
    steps = torch.tensor([3, 50])
    expected = unet(sample, steps, condition)
    each = steps[:, None].expand(2, 8).clone()
    torch.testing.assert_close(unet(sample, each, condition), expected)
    each[:, 6] += 9
    assert not torch.allclose(unet(sample, each, condition), expected)


def test_the_weights_know_nothing_of_the_horizon():
    torch.manual_seed(0)
    unet = ConditionalUNet1d(action_dim=3, condition_dim=5, widths=(16, 24), kernel_size=3, timestep_dim=16)
    for horizon in (8, 20):
        levels = torch.arange(horizon).expand(2, horizon)
        assert unet(torch.randn(2, horizon, 3), levels, torch.randn(2, 5)).shape == (2, horizon, 3)


def test_sampling_can_be_chosen_at_export_and_training_cannot(datasets, robot, tmp_path):
    checkpoint = write_checkpoint(make_policy(datasets, robot), robot, tmp_path / "checkpoint")
    bundle = export(checkpoint, tmp_path / "bundle", {"evaluations": "5", "scheduler": "ddpm", "reset": "zero"})
    sampler = Runtime.load(bundle).start(0).sampler
    assert (sampler.evaluations, sampler.scheduler, sampler.reset_levels) == (5, "ddpm", ())
    with pytest.raises(CheckpointError, match="widths cannot be chosen after training; of a streaming policy can: sch"):
        export(checkpoint, tmp_path / "other", {"widths": "[8]"})
    with pytest.raises(CheckpointError, match=r"evaluations must be within \[1, 5\]"):
        export(checkpoint, tmp_path / "other", {"evaluations": "6"})
    assert not (tmp_path / "other").exists()


def test_a_reset_action_of_another_size_is_refused(datasets, robot):
    with pytest.raises(ValueError, match="reset_action has 3 numbers; an action has 4"):
        make_policy(datasets, robot, reset="constant", reset_action=(0.0, 0.0, 0.0))


def damaged(sampler: StreamingSampler, change: Callable[[dict], None]) -> bytes:
    plain = msgspec.json.decode(sampler.to_json())
    change(plain)
    return msgspec.json.encode(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["alphas"].__setitem__(0, 0.9), "alphas must begin with 1"),
        (lambda s: s["alphas"].__setitem__(3, 0.9999), "alphas must fall"),
        (lambda s: s["alphas"].__setitem__(-1, 0.0), "alphas must fall and stay positive"),
        (lambda s: s.update(execute=0), r"execute must be within \[1, 40\]"),
        (lambda s: s.update(evaluations=41), r"evaluations must be within \[1, 40\]"),
        (lambda s: s["reset_levels"].pop(), "reset_levels must begin with 40 and end with 0"),
        (lambda s: s["reset_levels"].insert(1, 40), "reset_levels must fall"),
        (lambda s: s.update(clip=0), "clip must be positive"),
        (lambda s: s.update(scheduler="euler"), "euler"),
    ],
)
def test_a_damaged_sampler_is_refused(change, message, datasets, robot):
    sampler = make_policy(datasets, robot).sampler()
    assert sampler_from_json(damaged(sampler, lambda _: None)) == sampler
    with pytest.raises(ValueError, match=message):
        sampler_from_json(damaged(sampler, change))


def test_a_sampler_of_another_horizon_or_robot_is_refused(datasets, robot, tmp_path):
    policy = make_policy(datasets, robot)
    runners = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    sampler = policy.sampler()
    long = msgspec.structs.replace(sampler, execute=9)
    with pytest.raises(ValueError, match=r"execute \(9\) exceeds the horizon \(8\)"):
        Runtime(policy.contract, long, runners)
    narrow = msgspec.structs.replace(sampler, reset_sample=(0.0,))
    with pytest.raises(ValueError, match="reset_sample has 1 numbers, an action has 4"):
        Runtime(policy.contract, narrow, runners)
    bundle = export(write_checkpoint(policy, robot, tmp_path / "checkpoint"), tmp_path / "bundle")
    (bundle / "denoiser.onnx").unlink()
    with pytest.raises(BundleError, match="denoiser"):
        Runtime.load(bundle)


def test_no_chunk_before_is_continued_by_prefix(datasets, robot):
    with pytest.raises(ValueError, match="cannot continue the chunk before"):
        in_torch(make_policy(datasets, robot)).start(0, prefix=4)


def test_overfits_two_tasks_and_streams_the_actions_of_the_one_it_is_told(robot, tmp_path):
    moment = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    states = np.repeat(moment, 39, axis=1)
    still = np.ones_like(moment)
    demonstrations = {
        "open the drawer": np.hstack((0.4 * np.sin(6 * moment), 0.2 * moment, -moment, still)),
        "close the drawer": np.hstack((0.4 * np.cos(6 * moment), -0.2 * moment, -(moment**2), still)),
    }
    with DatasetWriter(tmp_path / "data", robot, "state") as writer:
        for name, actions in demonstrations.items():
            writer.add(EpisodeData({"observation.state": states}, actions, name, name, 0, True))
    config = msgspec.structs.replace(TINY, widths=(16, 32), state_history=1)
    training = TrainingConfig(steps=1000, batch_size=32, learning_rate=3e-3, precision="fp32", threads=1)
    train_policy("streaming", tmp_path / "data", tmp_path / "run", config, training, progress_bar=False)
    policy, _ = load_checkpoint(tmp_path / "run")
    assert isinstance(policy, StreamingPolicy)
    runtime = in_torch(policy)
    for name, actions in demonstrations.items():
        session = runtime.start(0, name)
        seen = [Observation(row * PERIOD_NS, {"observation.state": states[row : row + 1]}) for row in range(40)]
        executed = np.stack([session.act(observation).actions[0] for observation in seen])
        error = np.abs(executed - actions)[4:36]  # after the start, and before what is past the end weighs in
        assert error.mean() < 0.03
        assert error.max() < 0.2
