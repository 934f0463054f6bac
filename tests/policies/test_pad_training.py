"""PAD's learning: what it is shown of the future, what video may teach it, its two stages, and what it has learned."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from contracts import Camera, RobotContract
from episodes.data import EpisodeData
from episodes.dataset import DatasetWriter
from policies.base import make_contract
from policies.checkpoint import load_checkpoint, load_config
from policies.config import TrainingConfig
from policies.pad.config import PadConfig
from policies.pad.policy import PadPolicy
from policies.runtime.pad import follow
from policies.tensors import CheckpointError, read_tensors
from policies.train import train_policy
from policies.trainer import Trainer
from policies.training_state import STATE_FILE
from policies.video import HAS_ACTION, VIDEO_SEED, VideoMixture, video_windows
from policies.windows import Windows

STATE, CAMERA = "observation.state", "observation.images.corner2"
TINY = PadConfig(
    size="2x32x2",
    vae_channels=(8, 8),
    vae_steps=4,
    vae_batch_size=4,
    text_dim=8,
    inference_steps=4,
    action_ramp_steps=2,
)
TRAINING = TrainingConfig(steps=4, batch_size=4, warmup_steps=1, learning_rate=1e-3, gradient_clip=0.3, threads=1)
FILES = ("model.safetensors", STATE_FILE, "vae/model.safetensors", f"vae/{STATE_FILE}")
SIZE = 32  # pixels


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads beside another busy process wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(robot: RobotContract) -> RobotContract:
    """The robot, with a camera of a few pixels."""
    camera = msgspec.structs.replace(robot.cameras[0], height=SIZE, width=SIZE)
    return msgspec.structs.replace(robot, cameras=(camera,))


def clock_episode(length: int, first: int = 0, task: str = "open the drawer", seed: int = 0) -> EpisodeData:
    """Picture and pose both tell the time: row t shows the grey level first + t everywhere."""
    time = first + np.arange(length)
    pictures = np.repeat(time.astype(np.uint8), SIZE * SIZE * 3).reshape(length, SIZE, SIZE, 3)
    poses = np.stack((0.01 * time, 0.5 + 0.001 * time, 0.1 - 0.001 * time, np.ones(length)), axis=1)
    actions = np.tile(np.array([0.8, 0.08, -0.08, -1], np.float32), (length, 1))
    return EpisodeData({STATE: poses.astype(np.float32), CAMERA: pictures}, actions, task, "t", seed, True)


@pytest.fixture(scope="module")
def clocks(small, tmp_path_factory) -> Callable[..., Path]:
    """A dataset of clock episodes of each length."""
    root = tmp_path_factory.mktemp("clocks")

    def write(name: str, *lengths: int, task: str = "open the drawer") -> Path:
        if not (root / name).exists():
            with DatasetWriter(root / name, small, "image") as writer:
                for seed, length in enumerate(lengths):
                    writer.add(clock_episode(length, first=100 * seed, task=task, seed=seed))
        return root / name

    return write


def make_policy(robot: RobotContract, task: str = "open the drawer", **changes: Any) -> PadPolicy:
    torch.manual_seed(3)
    config = msgspec.structs.replace(TINY, **changes)
    policy = PadPolicy(config, make_contract("pad", config, robot, "image", task))
    policy.fit_robot(robot)
    ranges = {"min": np.array([-0.5, 0.4, 0, 0], np.float32), "max": np.array([0.5, 1, 0.5, 1], np.float32)}
    policy.fit_normalization({STATE: ranges, "action": {"min": -np.ones(4) * 0.8, "max": np.ones(4) * 0.8}})
    with torch.no_grad():
        for weight in policy.transformer.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return policy


def random_batch(policy: PadPolicy, count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape, future = (SIZE, SIZE, 3), len(policy.config.future)

    def pictures(frames: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, frames, *shape), generator=generator, dtype=torch.uint8)

    cameras = [o.feature.key for o in policy.contract.observations if o.feature.is_image]
    batch = {STATE: 0.4 * torch.rand(count, 1, 4, generator=generator), "task": torch.zeros(count, dtype=torch.int64)}
    batch |= {f"future.{STATE}": 0.4 * torch.rand(count, future, 4, generator=generator)}
    batch["action"] = 2 * torch.rand(count, 12, 4, generator=generator) - 1
    for key in cameras:
        batch |= {key: pictures(1), f"future.{key}": pictures(future)}
    return batch


# The future ----------------------------------------------------------------------------------------------------------


def test_targets_are_4_8_and_12_periods_ahead_never_now_and_stop_at_the_end_of_the_episode(clocks, small):
    from episodes.dataset import Dataset

    arrays = Dataset(clocks("two", 20, 30)).arrays()
    windows = Windows(arrays, make_contract("pad", TINY, small, "image", "open the drawer")).with_future((4, 8, 12))
    batch = windows.batch(np.array([0, 3, 15, 19, 20, 45]))
    shown = batch[f"future.{CAMERA}"]
    assert shown.shape == (6, 3, SIZE, SIZE, 3)
    expected = [[4, 8, 12], [7, 11, 15], [19, 19, 19], [19, 19, 19], [104, 108, 112], [129, 129, 129]]
    assert shown[:, :, 0, 0, 0].tolist() == expected
    assert batch[CAMERA][:, 0, 0, 0, 0].tolist() == [0, 3, 15, 19, 100, 125]
    np.testing.assert_allclose(batch[f"future.{STATE}"][..., 0], 0.01 * np.array(expected), atol=1e-6)


def test_pictures_are_encoded_once_and_states_stay_as_they_are(clocks, small):
    from episodes.dataset import Dataset

    arrays = Dataset(clocks("two", 20, 30)).arrays()
    seen = []

    def encode(key: str, pictures: torch.Tensor) -> torch.Tensor:
        seen.append((key, len(pictures)))
        return pictures[:, :2, 0, :1].float() / 2

    plain = Windows(arrays, make_contract("pad", TINY, small, "image", "open the drawer")).with_future((4,))
    windows = plain.encoded(encode)
    batch = windows.batch(np.array([7, 21]))
    assert seen == [(CAMERA, 50)]
    assert batch[f"code.{CAMERA}"][..., 0, 0].tolist() == [[3.5], [50.5]]
    assert batch[CAMERA][:, 0, 0, 0, 0].tolist() == [7, 101]  # the picture itself is still seen
    assert batch[f"future.{CAMERA}"].shape == (2, 1, 2, 1)
    assert torch.equal(batch[STATE], plain.batch(np.array([7, 21]))[STATE])
    assert windows.arrays.actions is arrays.actions  # memory-mapped still


@pytest.mark.parametrize("relative", [False, True])
def test_poses_are_normalised_and_come_back(small, relative):
    policy = make_policy(small, poses="relative" if relative else "absolute")
    now, future = torch.tensor([[0.1, 0.6, 0.2, 1.0]]), torch.tensor([[[0.13, 0.6, 0.2, 0.5]] * 3])
    normalised = policy.poses(future, now)
    torch.testing.assert_close(policy.poses.inverse(normalised, now), future)
    if relative:  # 3 cm, of the 4 cm that 0.8 m/s lead to in 4 periods of 12.5 ms, and a margin
        assert normalised[0, 0, 0] == pytest.approx(0.03 / (1.25 * 0.04), rel=1e-4)
        assert normalised[0, :, 1].abs().max() < 1e-5
    else:
        assert normalised[0, 0, 0] == pytest.approx(0.26, rel=1e-4)
    assert normalised[0, 0, 3] == pytest.approx(0.0, abs=1e-6)  # the gripper's opening is never relative


def test_commanded_poses_are_what_the_demonstrated_commands_lead_to_whatever_the_arm_did(small):
    """And following them gives these commands back, averaged between one pose and the next."""
    policy = make_policy(small, poses="commanded").eval()
    batch = random_batch(policy)
    ahead = policy._future(batch)["poses"].flatten(2)
    poses = policy.poses.inverse(ahead, batch[STATE][:, -1])
    torch.testing.assert_close(poses[..., 3], batch[f"future.{STATE}"][..., 3])  # the opening is measured
    told = 0.4 * batch["action"][..., :3]  # m/s, within what the ranges allow
    ahead = policy._commanded(batch[STATE][:, -1], batch[f"future.{STATE}"], 0.4 * batch["action"])
    actions = follow(policy.sampler(), batch[STATE][0, -1].numpy(), ahead[0].numpy(), 1 / 80)
    np.testing.assert_allclose(actions[::4, :3], told[0].unflatten(0, (3, 4)).mean(1), atol=1e-5)


# Video ---------------------------------------------------------------------------------------------------------------


def action_path(policy: PadPolicy) -> dict[str, torch.Tensor]:
    parts = {"embed": policy.transformer.embed["poses"], "head": policy.transformer.head["poses"]}
    return {f"{name}.{kind}": value for name, part in parts.items() for kind, value in part.named_parameters()}


def test_video_gives_exactly_no_gradient_to_the_action_path(small):
    policy = make_policy(small).train()
    policy.trained_steps.fill_(1000)  # the ramp is over
    batch = random_batch(policy)
    batch[HAS_ACTION] = torch.zeros(4, dtype=torch.bool)
    policy.loss(batch, torch.Generator().manual_seed(0))[0].backward()
    for name, value in action_path(policy).items():
        assert value.grad is None or not value.grad.any(), name
    assert policy.transformer.embed["pictures"].weight.grad.abs().max() > 0
    assert policy.transformer.blocks[0].qkv.weight.grad.abs().max() > 0


def test_poses_of_video_change_nothing_and_those_of_demonstrations_do(small):
    policy = make_policy(small).eval()
    policy.trained_steps.fill_(1000)
    batch = random_batch(policy)
    batch[HAS_ACTION] = torch.tensor([True, True, False, False])

    def loss(rows: slice) -> torch.Tensor:
        changed = {key: value.clone() for key, value in batch.items()}
        for key in (STATE, f"future.{STATE}", "action"):
            changed[key][rows] += 0.2
        return policy.loss(changed, torch.Generator().manual_seed(0))[0]

    with torch.no_grad():
        assert torch.equal(loss(slice(2, 4)), loss(slice(0, 0)))
        assert not torch.equal(loss(slice(0, 2)), loss(slice(0, 0)))


def test_a_demonstration_counts_the_same_with_video_beside_it(small):
    """The action's loss is the mean over the samples that have one."""
    policy = make_policy(small).eval()
    batch = random_batch(policy)
    batch[HAS_ACTION] = torch.tensor([True, True, False, False])
    noises = torch.Generator().manual_seed(0)
    with torch.no_grad():
        _, mixed = policy.loss(batch, noises)
        policy.transformer.forward = broken(policy.transformer.forward)  # nonsense for the poses of video
        _, again = policy.loss(batch, torch.Generator().manual_seed(0))
    assert mixed["poses"] == again["poses"]
    assert mixed["poses"] > 0


def broken(forward):
    def run(*arguments):
        outputs = forward(*arguments)
        outputs["poses"] = torch.cat((outputs["poses"][:2], torch.full_like(outputs["poses"][2:], 1e6)))
        return outputs

    return run


def test_batches_mix_demonstrations_and_video_of_which_only_pictures_are_read(clocks, small):
    from episodes.dataset import Dataset

    arrays = Dataset(clocks("two", 20, 30)).arrays()
    contract = make_contract("pad", TINY, small, "image", "open the drawer\nclose the drawer")
    video = video_windows(clocks("video", 25, task="close the drawer"), contract)
    mixture = VideoMixture(Windows(arrays, contract), video, 0.3).with_future((4, 8, 12))
    batch = mixture.draw(10, seed=1, step=2, rank=0)
    assert batch[HAS_ACTION].tolist() == [True] * 7 + [False] * 3
    assert batch["task"].tolist() == [0] * 7 + [1] * 3
    assert batch["action"][:7].abs().min() > 0
    assert not any(batch[key][7:].any() for key in ("action", STATE, f"future.{STATE}"))
    shown = batch[CAMERA][7:, 0, 0, 0, 0].long()
    assert torch.equal(batch[f"future.{CAMERA}"][7:, 0, 0, 0, 0].long(), (shown + 4).clamp(max=24))
    again = mixture.draw(10, seed=1, step=2, rank=0)
    assert all(torch.equal(value, again[key]) for key, value in batch.items())
    alone = Windows(arrays, contract).draw(10, seed=1 + VIDEO_SEED, step=2, rank=0)
    assert not torch.equal(alone["action"], batch["action"])
    with pytest.raises(ValueError, match="take a larger batch"):
        mixture.draw(1, seed=1, step=2, rank=0)
    with pytest.raises(ValueError, match=r"within \(0, 1\), not 1.5"):
        VideoMixture(Windows(arrays, contract), video, 1.5)


def test_video_of_another_camera_is_refused(clocks, robot):
    with pytest.raises(ValueError, match=r"must show observation.images.corner2 of shape \(96, 96, 3\); it has"):
        video_windows(clocks("two", 20, 30), make_contract("pad", TINY, robot, "image", "open the drawer"))


def test_video_at_another_rate_is_refused(small, clocks):
    contract = make_contract("pad", TINY, small, "image", "open the drawer")
    slow = msgspec.structs.replace(contract, action_period_s=0.05)
    with pytest.raises(ValueError, match="the video is at 80 Hz, the demonstrations at 20 Hz"):
        video_windows(clocks("two", 20, 30), slow)


# Learning ------------------------------------------------------------------------------------------------------------


def test_the_weight_of_actions_rises_from_0_and_stays(small):
    policy = make_policy(small, action_ramp_steps=2, action_weight=3.0).train()
    batch = random_batch(policy)
    with torch.no_grad():
        totals = [policy.loss(batch, torch.Generator().manual_seed(0)) for _ in range(4)]
    weights = [(float(total) - float(parts["pictures"])) / float(parts["poses"]) for total, parts in totals]
    np.testing.assert_allclose(weights, [0, 1.5, 3, 3], atol=1e-4)
    assert policy.trained_steps == 4
    alone = make_policy(small, predict_images=False)
    assert alone._action_weight() == alone.config.action_weight


def test_the_autoencoder_learns_to_show_what_it_saw_and_its_latents_have_variance_1(small):
    torch.manual_seed(0)
    policy = make_policy(small, vae_channels=(8, 16))
    vae = policy.vae.train()
    generator = torch.Generator().manual_seed(1)
    corners = torch.randint(0, SIZE - 8, (64, 2), generator=generator)
    pictures = torch.full((64, SIZE, SIZE, 3), 60, dtype=torch.uint8)
    for picture, (row, column) in zip(pictures, corners.tolist(), strict=True):
        picture[row : row + 8, column : column + 8] = torch.tensor([220, 40, 120], dtype=torch.uint8)
    optimizer = torch.optim.AdamW(vae.parameters(), 4e-3)

    def error() -> float:
        return float((vae.decode(vae.encode(pictures)[:, None])[:, 0].float() - pictures.float()).square().mean())

    with torch.no_grad():
        before = error()
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 100)
        optimizer.zero_grad()
        vae.loss(pictures[torch.randperm(64, generator=generator)[:16], None], generator)[0].backward()
        optimizer.step()
    with torch.no_grad():
        assert error() < 0.1 * before
        latents = vae.encode(pictures)
    assert (vae.background == 60 / 127.5 - 1).all()  # what most pictures show in every place
    np.testing.assert_allclose(latents.mean((0, 2, 3)), 0, atol=0.15)
    np.testing.assert_allclose(latents.std((0, 2, 3)), 1, atol=0.15)


def stop_after(monkeypatch: pytest.MonkeyPatch, stage: str, steps: int) -> None:
    """Send this process SIGTERM in the middle of a step of a stage."""
    step = Trainer._step

    def interrupted(self, model, number):
        if self.name == stage and number == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, model, number)

    monkeypatch.setattr(Trainer, "_step", interrupted)


@pytest.fixture(scope="module")
def straight(clocks, tmp_path_factory) -> Path:
    """A run with video that nothing interrupted."""
    output = tmp_path_factory.mktemp("straight") / "run"
    result = train_policy(
        "pad", clocks("two", 20, 30), output, TINY, TRAINING, progress_bar=False,
        video=clocks("video", 25, task="close the drawer"), video_fraction=0.25,
    )  # fmt: skip
    assert (result.steps, result.interrupted) == (4, False)
    return output


@pytest.mark.parametrize(("stage", "steps"), [("vae", 2), ("", 3)])
def test_stopped_in_either_stage_and_resumed_it_ends_with_the_same_bits(
    stage, steps, straight, clocks, tmp_path, monkeypatch
):
    options: dict[str, Any] = {"video": clocks("video", 25, task="close the drawer"), "video_fraction": 0.25}
    stop_after(monkeypatch, stage, steps)
    first = train_policy("pad", clocks("two", 20, 30), tmp_path, TINY, TRAINING, progress_bar=False, **options)
    assert (first.steps, first.interrupted) == (steps, True)
    monkeypatch.undo()
    again = train_policy("pad", clocks("two", 20, 30), tmp_path, TINY, TRAINING, True, progress_bar=False, **options)
    assert (again.steps, again.interrupted) == (4, False)
    for name in FILES:
        a, b = (read_tensors(run / name)[0] for run in (straight, tmp_path))
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_a_run_with_other_video_is_not_continued(straight, clocks):
    with pytest.raises(CheckpointError, match=r"data.video: was .*, is now None"):
        train_policy("pad", clocks("two", 20, 30), straight, TINY, TRAINING, True, progress_bar=False)


def test_the_second_stage_leaves_the_autoencoder_alone_and_both_instructions_are_known(straight):
    before, _ = read_tensors(straight / "vae" / "model.safetensors")
    after, _ = read_tensors(straight / "model.safetensors")
    names = [name for name in before if name.startswith("vae.")]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert (after["vae.std"] != 1).all()
    config = load_config(straight)
    assert config.contract.instructions == ("open the drawer", "close the drawer")
    assert config.training["data"]["video"]["fraction"] == 0.25
    policy, _ = load_checkpoint(straight)
    assert isinstance(policy, PadPolicy)
    assert policy.trained_steps == 4


def test_video_is_refused_by_a_policy_that_learns_actions_alone(clocks, tmp_path):
    with pytest.raises(ValueError, match="a diffusion policy learns nothing from video"):
        train_policy("diffusion", clocks("two", 20, 30), tmp_path / "run", video=clocks("video", 25))


@pytest.mark.parametrize("predict_images", [True, False])
def test_learns_a_demonstration_by_heart_and_gives_its_poses_back(small, predict_images):
    """From the picture: the pose alone would not tell the two instructions apart."""
    policy = make_policy(
        small, task="there\nback", predict_images=predict_images, size="3x64x4", prediction_type="sample",
        inference_steps=6, action_ramp_steps=0, poses="absolute",
    ).train()  # fmt: skip
    there = clock_episode(25).observations[STATE]
    moments = np.arange(13)
    ahead = np.stack([there[moments + offset] for offset in (4, 8, 12)], axis=1)
    behind = np.stack([there[np.maximum(moments - offset // 4, 0)] for offset in (4, 8, 12)], axis=1)
    now = torch.from_numpy(there[moments])[:, None].repeat(2, 1, 1)
    future = torch.from_numpy(np.concatenate((ahead, behind)))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((26, 4, policy.config.latent_channels, 4, 4), generator=generator)
    pictures = torch.full((26, 1, SIZE, SIZE, 3), 90, dtype=torch.uint8)
    batch = {STATE: now, f"future.{STATE}": future, "task": torch.arange(2).repeat_interleave(13)}
    batch |= {CAMERA: pictures, f"code.{CAMERA}": latents[:, :1], f"future.{CAMERA}": latents[:, 1:]}
    policy.poses.fit({"min": there.min(0), "max": there.max(0)})
    optimizer = torch.optim.AdamW((p for p in policy.parameters() if p.requires_grad), 3e-3)
    generator = torch.Generator().manual_seed(1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 300)
        optimizer.zero_grad()
        policy.loss(batch, generator)[0].backward()
        optimizer.step()
    found = policy.eval().sample(batch, generator)["poses"]
    spread = (there.max(0) - there.min(0))[:3]
    assert ((found - future).abs()[..., :3].numpy() / spread).mean() < 0.05
    torch.testing.assert_close(found[..., 3], future[..., 3])  # never varied, so never varies
    swapped = policy.sample({**batch, "task": 1 - batch["task"]}, generator)["poses"]
    assert ((swapped - future).abs()[..., :3].numpy() / spread).mean() > 0.1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_is_learned_and_sampled(small, prediction_type):
    policy = make_policy(small, prediction_type=prediction_type)
    batch = random_batch(policy)
    loss, figures = policy.loss(batch, torch.Generator().manual_seed(0))
    assert loss.isfinite()
    assert set(figures) == {"pictures", "poses"}
    found = policy.eval().sample(batch, torch.Generator().manual_seed(0))
    assert found["pictures"].shape == (4, 3, policy.config.latent_channels, 4, 4)
    assert found["poses"].shape == (4, 3, 4)


# What it is given ----------------------------------------------------------------------------------------------------


def with_camera(robot: RobotContract, name: str) -> RobotContract:
    camera = Camera(name=name, topic=f"cameras/{name}", height=SIZE, width=SIZE, rate_hz=40, timeout_s=0.1, frame=name)
    sets = {"image": {**robot.observation_sets["image"], f"observation.images.{name}": (name,)}}
    return msgspec.structs.replace(robot, cameras=(*robot.cameras, camera), observation_sets=sets)


def test_depth_joins_as_16_tokens_that_pictures_do_not_see(small):
    policy = make_policy(with_camera(small, "corner2_depth"), depth=True)
    assert [(m.name, m.tokens) for m in policy.modalities] == [("pictures", 4), ("depth", 16), ("poses", 1)]
    batch = random_batch(policy)
    with torch.no_grad():
        _, one = policy.loss(batch, torch.Generator().manual_seed(0))
        batch["observation.images.corner2_depth"] //= 2
        _, other = policy.loss(batch, torch.Generator().manual_seed(0))
    assert one["pictures"] == other["pictures"]
    assert one["depth"] != other["depth"]
    assert one["poses"] != other["poses"]


def test_observations_that_do_not_fit_are_refused(small, robot):
    with pytest.raises(ValueError, match="sees one camera and one vector"):
        PadPolicy(TINY, make_contract("pad", TINY, robot, "state", "t"))
    with pytest.raises(ValueError, match="sees one camera and one vector"):
        make_policy(with_camera(small, "wrist"))
    with pytest.raises(ValueError, match="shows observation.images.corner2_depth: choose depth"):
        make_policy(with_camera(small, "corner2_depth"))
    with pytest.raises(ValueError, match="lacks observation.images.corner2_depth"):
        make_policy(small, depth=True)
    with pytest.raises(ValueError, match="32 x 32 pixels do not divide into tokens of 24 x 24"):
        make_policy(small, patch=3)


def test_a_robot_whose_command_follows_no_pose_is_refused_before_training(small):
    command = msgspec.structs.replace(small.command, kind="joint_position")
    with pytest.raises(ValueError, match="commanded by joint positions; a pad policy follows"):
        make_policy(msgspec.structs.replace(small, command=command))
    unmeasured = {"measured_by": None, "position_min": None, "position_max": None}
    blind = tuple(msgspec.structs.replace(channel, **unmeasured) for channel in small.command.channels)
    with pytest.raises(ValueError, match="cannot tell which of ee_x, ee_y, ee_z, gripper_opening the channel"):
        make_policy(msgspec.structs.replace(small, command=msgspec.structs.replace(small.command, channels=blind)))
