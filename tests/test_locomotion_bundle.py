"""A walking policy on its way to a robot: exported, it sees what it saw in training, and joints are found by name."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

import visuomotor
from contracts import ContractError, RobotContract, check_compatible, differences, load_robot
from execution.observation import ObservationAssembler
from policies.export import export
from policies.hinfinity.checkpoint import load_config, load_networks
from policies.hinfinity.config import HInfinityConfig
from policies.hinfinity.export import training_command
from policies.loading import load_runtime
from policies.runtime import BundleError, PolicyOutputError, Runtime
from policies.runtime.bundle import write_manifest
from policies.runtime.graphs import GraphRunner
from policies.runtime.sampler import LocomotionSampler
from policies.tensors import CheckpointError, write_tensors
from policies.training_state import STATE_FILE
from sim.legged.batch import BatchedQuadruped
from sim.legged.commands import CommandRanges
from sim.legged.episode import TaskConfig
from sim.legged.figures import GO2, JOINTS
from sim.legged.randomization import NOMINAL
from sim.legged.task import LocomotionTask
from sim.legged.terrain import flat

TICK = 20_000_000
START = 1_000_000_000_000
GO2_ROBOT = load_robot("go2")
COMMAND = ("command_x", "command_y", "command_yaw")
IMU = next(s.fields for s in GO2_ROBOT.sensors if s.name == "imu")
STANDING = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.81)


class Feed:
    """A robot's measurements and requests, on their way to a session."""

    def __init__(self, runtime: Runtime, robot: RobotContract = GO2_ROBOT) -> None:
        self.assembler = ObservationAssembler(robot, runtime.contract)
        self.session = runtime.start(seed=0)

    def measure(self, stamp: int, joints: dict[str, float], imu=STANDING) -> None:
        self.assembler.push_fields("joint_states", stamp, tuple(joints), tuple(joints.values()))
        self.assembler.push_fields("imu", stamp, IMU, imu)

    def ask(self, stamp: int, *velocity: float) -> None:
        self.assembler.push_fields("velocity_command", stamp, COMMAND, velocity)

    def seen(self, stamp: int) -> np.ndarray:
        """What the actor would see, latest first, [6, 45]."""
        state = self.assembler.window(stamp).values["observation.state"][None]
        return self.session.observation({"observation.state": state}, stamp).reshape(6, 45)  # type: ignore[attr-defined]

    def act(self, stamp: int) -> dict[str, float]:
        """The joints' targets, by name; all commands of a chunk are alike."""
        chunk = self.session.act(self.assembler.window(stamp))
        assert chunk.start_ns == stamp
        assert (chunk.actions == chunk.actions[0]).all()
        return dict(zip(chunk.names, chunk.actions[0], strict=True))


def joints(position=GO2.default_pose, velocity=(0.0,) * 12) -> dict[str, float]:
    speeds = {f"{joint}.velocity": float(v) for joint, v in zip(JOINTS, velocity, strict=True)}
    return {joint: float(p) for joint, p in zip(JOINTS, position, strict=True)} | speeds


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_it_sees_on_the_robot_what_it_sees_in_training(walking_bundle, backend) -> None:
    """Step by step the same numbers as the task's own, history, last action and changing commands included."""
    robots = BatchedQuadruped(GO2, flat(), 1, randomization=NOMINAL, pool=1, threads=1)
    feed = Feed(Runtime.load(walking_bundle, backend))
    actor = feed.session.runners["actor"]
    config = TaskConfig(noise=0.0, random_ages=False, commands=CommandRanges(start=0.4, standing=0.0))
    with LocomotionTask(robots, 3, config) as task:
        assert task.command.all()
        for step in range(15):
            now, state = START + step * TICK, robots.state
            w, *xyz = state.orientation[0]
            feed.ask(now, *task.command[0])
            feed.measure(
                now,
                joints(state.joint_position[0], state.joint_velocity[0]),
                (*xyz, w, *state.angular_velocity[0], 0, 0, 0),
            )
            np.testing.assert_allclose(feed.seen(now).reshape(-1), task.observation[0], atol=2e-5)
            action = actor({"observation": task.observation})[0]
            targets = feed.act(now)
            np.testing.assert_allclose(list(targets.values()), task.contract.targets(action)[0], atol=1e-5)
            if step == 7:
                task.command[:] = (-0.5, 0.1, 0.0)
            task.step(action)
        assert np.ptp(task.observation.reshape(6, 45)[:, 33:], axis=0).max() > 0.01, "its actions change"


def test_many_robots_are_answered_at_once_as_the_network_answers(walking_bundle, walking_checkpoint) -> None:
    networks, _ = load_networks(walking_checkpoint)
    seen = np.random.default_rng(0).normal(size=(1000, 270)).astype(np.float32)
    with torch.no_grad():
        expected = networks.actor(torch.from_numpy(seen)).numpy()
    for source in (walking_bundle, walking_checkpoint):
        for backend in ("openvino", "onnxruntime"):
            actions = load_runtime(source, backend).graphs["actor"]({"observation": seen})[0]
            np.testing.assert_allclose(actions, expected, atol=1e-5)


def shuffled(robot: RobotContract, seed: int = 0) -> RobotContract:
    """The same robot whose drivers, and whoever wrote its contract, have other orders."""
    data, mixed = robot.to_dict(), random.Random(seed)
    order = mixed.sample(range(12), 12)
    data["joint_names"], data["home"] = ([data[key][i] for i in order] for key in ("joint_names", "home"))
    for sensor in data["sensors"]:
        if sensor["type"] == "sensor_msgs/msg/JointState":
            fields = list(zip(sensor["fields"], sensor["units"], strict=True))
            mixed.shuffle(fields)
            sensor["fields"], sensor["units"] = zip(*fields, strict=True)
    data["command"]["channels"] = mixed.sample(data["command"]["channels"], 12)
    names = data["observation_sets"]["proprioception"]["observation.state"]
    data["observation_sets"]["proprioception"]["observation.state"] = mixed.sample(names, len(names))
    return RobotContract.from_dict(data)


def test_joints_and_fields_are_found_by_name(walking_bundle, walking_checkpoint, tmp_path) -> None:
    other = shuffled(GO2_ROBOT)
    (tmp_path / "other.json").write_text(other.to_json())
    mixed = Runtime.load(export(walking_checkpoint, tmp_path / "mixed", robot=tmp_path / "other.json"), "onnxruntime")
    check_compatible(mixed.contract, other)
    assert mixed.contract.action.names != JOINTS
    feeds = [Feed(Runtime.load(walking_bundle, "onnxruntime")), Feed(mixed, other)]
    rng = np.random.default_rng(1)
    for step in range(4):
        now = START + step * TICK
        position, velocity = np.array(GO2.default_pose) + rng.normal(0, 0.3, 12), rng.normal(0, 2, 12)
        for feed in feeds:
            feed.ask(now, 0.5, 0.0, -0.2)
            feed.measure(now, joints(position, velocity), (0.1, 0.2, 0.3, 0.927, 1, 2, 3, 0, 0, 9.81))
        straight, by_name = (feed.act(now) for feed in feeds)
        assert by_name == pytest.approx(straight)
    assert len({round(target, 4) for target in straight.values()}) > 6, "a mix-up would show"


def test_a_command_is_cut_to_what_it_was_trained_for_and_silence_is_to_stand(walking_bundle) -> None:
    """The checkpoint has no training state: it is trusted with the commands that training begins with."""
    runtime = Runtime.load(walking_bundle, "onnxruntime")
    feed = Feed(runtime)
    feed.measure(START, joints())
    assert feed.seen(START)[0, :3].tolist() == [0, 0, 0], "nobody has asked for anything: not waited for"
    now = START
    for tick in range(40):
        now = START + tick * TICK
        if tick == 5:
            feed.ask(now - 1, 9.0, -9.0, 0.1)
        feed.measure(now, joints())
        seen = feed.seen(now)[0, :3]
        asked = (2 * 0.5, -2 * 0.4, 0.25 * 0.1) if 5 <= tick < 30 else (0, 0, 0)  # silent for 0.5 s, its time-out
        np.testing.assert_allclose(seen, asked, rtol=1e-6, err_msg=f"tick {tick}")
    assert isinstance(runtime.sampler, LocomotionSampler)
    assert runtime.sampler.command_limits == (0.5, 0.4, 0.5)


def test_a_missed_inference_leaves_measurements_whole_and_the_action_before_counts_twice(walking_bundle) -> None:
    missed = (3, 4)
    feed = Feed(Runtime.load(walking_bundle, "onnxruntime"))
    given: list[np.ndarray] = []
    for tick in range(7):
        now = START + tick * TICK + (2_000_000 if tick % 2 else 0)  # the robot's ticks are not exact
        feed.measure(now, joints(velocity=(float(tick),) * 12))
        if tick not in missed:
            feed.act(now)
            given.append(np.array(feed.session._given[-1][1]))  # type: ignore[attr-defined]
        else:
            given.append(given[-1])
    now = START + 7 * TICK + 2_000_000
    feed.measure(now, joints(velocity=(7.0,) * 12))
    seen = feed.seen(now)
    np.testing.assert_allclose(seen[:, 21] / 0.05, [7, 6, 5, 4, 3, 2], rtol=1e-5)
    np.testing.assert_array_equal(seen[:, 33:], given[6:0:-1])


def test_a_new_walk_remembers_nothing(walking_bundle) -> None:
    runtime = Runtime.load(walking_bundle, "onnxruntime")
    walks = []
    for seed in (0, 1):
        feed = Feed(runtime)
        for tick in range(-3, 3):  # what was measured before the walk began is no part of it
            feed.measure(START + tick * TICK, joints(velocity=(float(tick) * (1 + seed if tick < 0 else 1),) * 12))
            if tick >= 0:
                targets = feed.act(START + tick * TICK)
        walks.append(targets)
    assert walks[0] == walks[1]


def test_what_is_not_finite_is_refused_and_forgotten(walking_bundle) -> None:
    class Broken(GraphRunner):
        def __call__(self, inputs):
            return [np.full((1, 12), np.nan, dtype=np.float32)]

    feed = Feed(Runtime.load(walking_bundle, "onnxruntime"))
    sound, feed.session.runners = feed.session.runners, {"actor": Broken()}
    feed.measure(START, joints())
    with pytest.raises(PolicyOutputError):
        feed.act(START)
    feed.session.runners = sound
    feed.measure(START + TICK, joints())
    assert np.isfinite(list(feed.act(START + TICK).values())).all()
    assert (feed.seen(START + TICK)[:, 33:] == 0).all()


def test_the_command_on_a_card_trains_the_same_again(walking_checkpoint, monkeypatch, tmp_path) -> None:
    given = load_config(walking_checkpoint)
    options = HInfinityConfig(mirror=False, disturber="random", hold=(5, 9), actor_widths=(8, 4), fall=-0.25, threads=1)
    again = []

    class Recorded:
        def __init__(self, groups, robot, *rest) -> None:
            again.append((groups, robot, *rest))

        def run(self) -> SimpleNamespace:
            return SimpleNamespace(
                steps=0, elapsed_s=0, velocity_error=0, falls_per_minute=0, checkpoint="", interrupted=False
            )

    monkeypatch.setattr("policies.hinfinity.train.Trainer", Recorded)
    monkeypatch.setattr("sim.legged.task.training_groups", lambda *asked: nullcontext(asked))
    for start in (None, "runs/before", str(tmp_path / "before")):
        written = msgspec.structs.replace(given, config=options, start_from=start)
        visuomotor.app.cli(args=[*training_command(written).split()[1:], "--output", str(tmp_path / "out")])
        (robot, terrain, environments, *_), _, trained, _, _, began = again[-1]
        assert (robot, terrain, environments) == ("go2", "flat", 12)
        assert trained == options
        assert began == (None if start is None else Path("before") if Path(start).is_absolute() else Path(start))


def test_the_bundle_says_what_it_is_and_nothing_of_where_it_was_made(walking_bundle, walking_checkpoint) -> None:
    card = (walking_bundle / "README.md").read_text()
    for text in (
        "up to 0.5 m/s forward and back, 0.4 m/s sideways, 0.5 rad/s turning",
        "kp 40 N m/rad, kd 1 N m s/rad",
        "visuomotor train hinfinity --robot go2 --terrain flat --envs 12 --disturber none --actor-widths 16 16",
        "Not functional safety",
    ):
        assert text in card
    for file in walking_bundle.iterdir():
        for word in (str(walking_checkpoint), str(Path.cwd()), "networks.py", "torch/nn"):
            assert word.encode() not in file.read_bytes(), f"{file.name}: {word}"
    runtime = Runtime.load(walking_bundle, "onnxruntime")
    assert runtime.contract.execute == 1
    assert runtime.contract.horizon > 2, "the robot obeys the second; one more for an inference that is late"


def test_the_commands_that_training_has_come_to(walking_checkpoint, tmp_path) -> None:
    path = tmp_path / "checkpoint"
    path.mkdir()
    for file in walking_checkpoint.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    shares = {"group.0": 0.8, "group.1": 0.75}  # all robots have been told so much
    reached = {
        f"{group}.environment.commands.curriculum": torch.tensor([share, 0.1]) for group, share in shares.items()
    }
    write_tensors(path / STATE_FILE, reached, {})
    sampler = load_runtime(path).sampler
    assert isinstance(sampler, LocomotionSampler)
    assert sampler.command_limits == pytest.approx((0.75, 0.6, 0.75))
    (path / STATE_FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="training_state"):
        export(path, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"control_rate_hz": 100}, "every 20.000 ms, the robot every 10.000 ms"),
        ({"command": {"position_control": {"kp": 60, "kd": 1}}}, "trained with kp 40 and kd 1, the robot has kp 60"),
    ],
)
def test_a_robot_that_it_was_not_trained_for_is_refused(walking_bundle, walking_checkpoint, tmp_path, change, expected):
    data = GO2_ROBOT.to_dict()
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    other = RobotContract.from_dict(data)
    assert expected in "".join(differences(Runtime.load(walking_bundle, "onnxruntime").contract, other))
    (tmp_path / "other.json").write_text(other.to_json())
    with pytest.raises(ContractError, match=expected.split(",")[0]):
        export(walking_checkpoint, tmp_path / "bundle", robot=tmp_path / "other.json")
    assert not (tmp_path / "bundle").exists()


def test_a_robot_that_lacks_something_hears_all_of_it(walking_checkpoint, tmp_path) -> None:
    data = GO2_ROBOT.to_dict()
    names = data["observation_sets"]["proprioception"]["observation.state"]
    left_out = {*COMMAND, "FL_calf_joint", "RR_hip_joint.velocity", "imu_orientation_w"}
    data["observation_sets"]["proprioception"]["observation.state"] = [n for n in names if n not in left_out]
    (tmp_path / "other.json").write_text(RobotContract.from_dict(data).to_json())
    with pytest.raises(ContractError) as refused:
        export(walking_checkpoint, tmp_path / "bundle", robot=tmp_path / "other.json")
    for text in ("one geometry_msgs/msg/Twist, not 0", *(left_out - {*COMMAND})):
        assert text in str(refused.value)
    with pytest.raises(ContractError, match="its commands must be joint_position, not end_effector_twist"):
        export(walking_checkpoint, tmp_path / "bundle", robot="metaworld_sawyer")


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("sampler.json", {"orientation": ["a", "b", "c", "d"]}, "lacks a, b, c, d"),
        ("sampler.json", {"command_limits": [1, -1, 1]}, "negative"),
        ("contract.json", {"action_period_s": 0.01}, "trained to every 0.02"),
        ("contract.json", {"position_control": {"kp": 50, "kd": 1}}, "position_control must be"),
        ("contract.json", {"position_control": None}, "position_control must be"),
    ],
)
def test_a_bundle_whose_parts_disagree_is_refused(walking_bundle, tmp_path, file, change, expected) -> None:
    for original in walking_bundle.iterdir():
        (tmp_path / original.name).write_bytes(original.read_bytes())
    (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | change))
    write_manifest(tmp_path)
    with pytest.raises(BundleError, match=expected):
        Runtime.load(tmp_path, "onnxruntime")


def test_from_the_command_line(walking_checkpoint, tmp_path) -> None:
    words = [sys.executable, "-m", "visuomotor", "export", str(walking_checkpoint), "--output", str(tmp_path / "out")]
    refused = subprocess.run([*words, "--robot", "aliengo"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "trained with kp 40 and kd 1, the robot has kp 40 and kd 2" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="scheduler cannot be chosen after training"):
        export(walking_checkpoint, tmp_path / "out", {"scheduler": "ddim"})


def test_the_runtime_needs_no_torch(walking_bundle) -> None:
    code = f"""
import sys
from policies.runtime import Runtime
Runtime.load({str(walking_bundle)!r}, "onnxruntime")
print([name for name in ("torch", "mujoco", "sim") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_contracts_without_the_new_entries_are_as_before() -> None:
    sawyer = load_robot("metaworld_sawyer").to_dict()
    for entry, name in ((sawyer["task"], "stand_up_s"), (sawyer["command"], "position_control")):
        del entry[name]
    old = RobotContract.from_dict(sawyer)
    assert old == load_robot("metaworld_sawyer")
    assert msgspec.structs.asdict(old.task)["stand_up_s"] == 0


def test_an_action_that_has_gone_wrong_is_clipped_as_in_training(walking_bundle) -> None:
    class Wild(GraphRunner):
        def __call__(self, inputs):
            return [np.full((1, 12), 1e6, dtype=np.float32)]

    feed = Feed(Runtime.load(walking_bundle, "onnxruntime"))
    feed.session.runners = {"actor": Wild()}
    feed.measure(START, joints())
    walk = feed.session.sampler.locomotion
    assert feed.act(START) == pytest.approx(dict(zip(JOINTS, walk.targets(np.full(12, 100.0)), strict=True)))
    feed.measure(START + TICK, joints())
    assert (feed.seen(START + TICK)[0, 33:] == 100).all()
