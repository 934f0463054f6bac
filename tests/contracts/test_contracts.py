"""A contract is read strictly, refuses nonsense with the place named, and survives every trip through text."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import msgspec
import pytest
import yaml

from contracts import (
    ContractError,
    ContractMismatch,
    PolicyContract,
    PolicyObservation,
    RobotContract,
    available_robots,
    check_compatible,
    differences,
    load_robot,
)
from contracts.feature import Feature, image, vector
from contracts.serialization import MAX_CONTRACT_BYTES


@pytest.fixture
def robot() -> RobotContract:
    return load_robot("metaworld_sawyer")


@pytest.fixture
def policy(robot: RobotContract) -> PolicyContract:
    return PolicyContract(
        policy="diffusion",
        robot=robot.name,
        observation_set="image",
        task="open the drawer",
        observations=tuple(PolicyObservation(feature=f, history=2) for f in robot.observation_features("image")),
        action=robot.action_feature,
        action_period_s=robot.control_period_s,
        horizon=16,
        execute=8,
    )


@pytest.mark.parametrize("name", available_robots())
def test_every_robot_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    robot = load_robot(name)
    assert robot.name == name
    assert RobotContract.from_json(robot.to_json()) == robot
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(robot.to_dict()))
    assert load_robot(file) == robot


def test_an_imu_has_ten_fields() -> None:
    data = load_robot("go2").to_dict()
    imu = next(s for s in data["sensors"] if s["type"] == "sensor_msgs/msg/Imu")
    imu["fields"], imu["units"] = imu["fields"][4:7], imu["units"][4:7]
    with pytest.raises(ContractError, match="'imu': of Imu come 10 fields: orientation x, orientation y"):
        RobotContract.from_dict(data)


def test_of_some_joints_only_a_velocity_cannot_be_measured() -> None:
    data = load_robot("go2").to_dict()
    del data["observation_sets"]
    joints = data["sensors"][0]
    joints["fields"], joints["units"] = joints["fields"][:-1], joints["units"][:-1]
    with pytest.raises(ContractError, match="the velocity of each joint or of none"):
        RobotContract.from_dict(data | {"observation_sets": {}})


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("command", "channels", 3, "hold"), "last", "'FR_hip_joint'.* must have hold: measured"),
        (("command", "kind"), "joint_velocity", "for joint_position, not for joint_velocity"),
        (("command", "position_control", "kp"), 0.0, "kp must be positive"),
        (("home",), [2.0] + [0.0] * 11, "'FL_hip_joint': home 2.0 is not within"),
        (("task", "stand_up_s"), -1.0, "time-outs must be positive"),
        (("task", "ramp_s"), -0.1, "time-outs must be positive"),
        (("task", "recover_s"), -0.1, "time-outs must be positive"),
        (("task", "heartbeat_timeout_s"), 0.0, "time-outs must be positive"),
        (("task", "ramp_s"), float("inf"), "a time-out must be a finite number"),
        (("task", "max_tilt_rad"), 0.0, r"max_tilt_rad 0.0 is not within \(0, pi\)"),
        (("task", "max_tilt_rad"), math.pi, r"is not within \(0, pi\)"),
        (("home",), [-2.0] + [0.0] * 11, "'FL_hip_joint': home -2.0 is not within"),
        (("sensors", 0, "timeout_s"), 0.0, "timeout_s 0.0 is not within"),
        (("sensors", 0, "rate_hz"), 0.0, "rate_hz 0.0 is not within"),
        (("sensors", 1, "type"), "sensor_msgs/msg/JointState", "max_tilt_rad needs one Imu; robot 'go2' has 0"),
        (("name",), "go 2", "'go 2' is not a valid ROS name"),
        (("sensors", 2, "fields"), ["command_x", "command_y"], "unit"),
        (("task", "max_tilt_rad"), 60.0, r"max_tilt_rad 60.0 is not within \(0, pi\)"),  # degrees
        (("task", "chunk_timeout_s"), 0.0, "time-outs must be positive"),
        (("task", "recover_s"), float("nan"), "time-out must be a finite number"),
        (("command", "channels", 0, "max_rate"), float("inf"), "max_rate must be a finite number"),
        (("home", 0), float("nan"), "home position must be a finite number"),
    ],
)
def test_a_walking_robots_nonsense_is_refused_by_name(path: tuple, value: object, expected: str) -> None:
    entry = data = load_robot("go2").to_dict()
    for key in path[:-1]:
        entry[key] = list(entry[key]) if isinstance(entry[key], tuple) else entry[key]
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(ContractError, match=expected):
        RobotContract.from_dict(data)


def test_policy_contract_round_trips(policy: PolicyContract) -> None:
    assert PolicyContract.from_json(policy.to_json()) == policy


def test_sawyer_promises_metaworlds_own_figures(robot: RobotContract) -> None:
    assert robot.control_rate_hz == 80
    assert robot.observation_features("state")[0].shape == (39,)
    assert robot.action_feature.units == ("m/s", "m/s", "m/s", "1")


def test_image_set_shows_no_object_and_no_goal(robot: RobotContract) -> None:
    privileged = {f for s in robot.sensors if s.privileged for f in s.fields}
    for feature in robot.observation_features("image"):
        assert not privileged & set(feature.names)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("control_rate_hz",), float("nan"), "finite"),
        (("control_rate_hz",), -80, "control_rate_hz"),
        (("home",), [0.0], "home needs one position a joint"),
        (("joint_names",), ["a"] * 9, "'a' stands twice"),
        (("colour",), "red", "colour"),
        (("sensors", 1, "fields"), ["ee_x", "ee_y"], "unit"),
        (("sensors", 1, "topic"), "commands", "'commands' stands twice"),
        (("cameras", 0, "height"), 0, "impossible size"),
        (("command", "channels", 0, "min"), 3.0, "not below max"),
        (("command", "channels", 0, "max"), float("inf"), "finite"),
        (("command", "channels", 0, "max"), -0.1, "holds at zero, which is out of its limits"),
        (("command", "channels", 0, "max_rate"), 0.0, "max_rate must be positive"),
        (("command", "channels", 0, "position_min"), None, "give both position_min and position_max"),
        (("control_rate_hz",), 2001, "control_rate_hz 2001.0 is not within"),
        (("cameras", 0, "width"), 4097, "impossible size"),
        (("command", "channels", 1, "measured_by"), "elbow", "no sensor has the field 'elbow'"),
        (("command", "channels", 0, "hold"), "measured", "would send a position as a velocity"),
        (("command", "timeout_s"), 0.0, "timeout_s"),
        (("observation_sets", "state", "observation.state"), ["unknown"], "no sensor has the field 'unknown'"),
        (("observation_sets", "image", "observation.images.corner2"), ["left"], "left"),
        (("task", "chunk_timeout_s"), "soon", "Expected `float`"),
        (("task", "max_tilt_rad"), 1.0, "max_tilt_rad needs one Imu"),
        (("command", "channels", 0, "position_max"), None, "give both position_min and position_max"),
        (("command", "channels", 0, "position_max"), -9.0, "position_min is not below position_max"),
        (("command", "channels", 0, "position_max"), float("inf"), "position limit must be a finite number"),
        (("command", "channels", 0, "measured_by"), None, "position limits need measured_by"),
        (("command", "channels", 3, "hold"), "measured", "hold: measured needs measured_by"),
        (("command", "channels", 0, "min"), 0.1, "holds at zero, which is out of its limits"),
        (("command", "channels", 1, "name"), "ee_velocity_x", "command channel 'ee_velocity_x' stands twice"),
        (("sensors", 2, "fields"), ["ee_x"], "sensor field 'ee_x' stands twice"),
        (("sensors", 1, "timeout_s"), 61.0, r"timeout_s 61.0 is not within \(0, 60\]"),
    ],
)
def test_nonsense_is_refused_by_name(robot: RobotContract, path: tuple, value: object, expected: str) -> None:
    data = copy.deepcopy(robot.to_dict())
    entry = data
    for key in path[:-1]:
        entry = list(entry) if isinstance(entry, tuple) else entry
        entry = entry[key]
    if isinstance(entry, dict):
        entry[path[-1]] = value
    with pytest.raises(ContractError, match=expected):
        RobotContract.from_dict(data)


def test_unknown_robot_names_those_there_are() -> None:
    with pytest.raises(ContractError, match="metaworld_sawyer"):
        load_robot("hal9000")


@pytest.mark.parametrize("text", ["", "[1, 2", "- a\n- b", "!!python/object/apply:os.system ['true']", "\x00\xff"])
def test_a_file_that_is_no_contract_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ContractError, match=r"robot\.yaml"):
        load_robot(file)


def test_a_policy_that_fits_is_accepted(policy: PolicyContract, robot: RobotContract) -> None:
    assert differences(policy, robot) == []
    check_compatible(policy, robot)


def test_every_difference_is_listed_by_name(policy: PolicyContract, robot: RobotContract) -> None:
    channels = robot.action_feature
    wrong = PolicyContract.from_dict(
        {
            **policy.to_dict(),
            "robot": "franka",
            "action_period_s": 0.05,
            "action": vector("action", channels.names[::-1], ("cm/s", *channels.units[2::-1])).to_dict(),
            "observations": [
                {"feature": image("corner2", 64, 64).to_dict()},
                {"feature": image("wrist", 96, 96).to_dict()},
                {"feature": vector("observation.state", ("ee_x", "elbow"), ("m", "rad")).to_dict()},
            ],
        }
    )
    with pytest.raises(ContractMismatch) as refused:
        check_compatible(wrong, robot)
    message = str(refused.value)
    for expected in (
        "franka",
        "50.000 ms",
        "looks again after 8 actions, the last of them 0.35 s after",
        "other order",
        "cm/s",
        "(64, 64, 3)",
        "observation.images.wrist",
        "elbow",
        "ee_y",
    ):
        assert expected in message, expected


def test_a_position_control_that_a_robot_does_not_state_is_no_difference(policy: PolicyContract) -> None:
    """A real robot's gains are its own; two that are both stated must agree."""
    sawyer = load_robot("metaworld_sawyer").to_dict()
    soft, stiff = {"kp": 20.0, "kd": 0.5}, {"kp": 40.0, "kd": 0.5}
    other = "position control: the policy was trained with kp 20 and kd 0.5, the robot has kp 40 and kd 0.5"
    for wanted, stated, fits in ((soft, None, True), (None, soft, True), (soft, soft, True), (soft, stiff, False)):
        sawyer["command"] = sawyer["command"] | {"position_control": stated}
        trained = PolicyContract.from_dict(policy.to_dict() | {"position_control": wanted})
        found = differences(trained, RobotContract.from_dict(sawyer))
        assert found == ([] if fits else [other]), (wanted, stated)


def test_a_policy_may_act_until_its_chunk_is_too_old_and_no_longer(
    policy: PolicyContract, robot: RobotContract
) -> None:
    """250 ms are 20 periods: the 21st action is carried out just then."""
    for execute, fits in ((21, True), (22, False)):
        long = PolicyContract.from_dict(policy.to_dict() | {"horizon": 32, "execute": execute})
        assert (differences(long, robot) == []) == fits


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shape": (4, 4, 4)}, r"an image is \(height, width, 3\), not \(4, 4, 4\)"),
        ({"shape": (3,)}, r"an image is \(height, width, 3\), not \(3,\)"),
        ({"shape": (0, 4, 3)}, "impossible shape"),
        ({"dtype": "float32"}, "an image is uint8, not float32"),
        ({"key": "observation.state"}, "a vector has one axis"),
        ({"key": "observation.state", "shape": (3,)}, "a vector is float32, not uint8"),
        ({"key": "observation.state", "shape": (2,), "dtype": "float32"}, "2 elements but 3 names"),
        ({"key": "observation.state", "shape": (3,), "dtype": "float32"}, "3 elements but 0 units"),
        ({"key": ""}, "a feature needs a key"),
    ],
)
def test_a_feature_that_is_neither_a_vector_nor_a_picture_is_refused(change: dict, expected: str) -> None:
    with pytest.raises(ContractError, match=expected):
        Feature.from_dict(image("left", 4, 4).to_dict() | change)


def test_more_text_than_a_contract_has_is_not_even_parsed(policy: PolicyContract, tmp_path: Path) -> None:
    text = policy.to_json()
    padded = text + " " * (MAX_CONTRACT_BYTES - len(text))
    assert PolicyContract.from_json(padded) == policy
    with pytest.raises(ContractError, match=f"{MAX_CONTRACT_BYTES + 1} bytes is more than a contract's"):
        PolicyContract.from_json(padded + " ")
    for name in ("policy.json", "policy.yaml"):
        file = tmp_path / name
        file.write_text(padded)
        assert PolicyContract.load(file) == policy
        file.write_text(padded + " ")
        with pytest.raises(ContractError, match=rf"{name}: larger than a contract's {MAX_CONTRACT_BYTES} bytes"):
            PolicyContract.load(file)


def test_a_missing_observation_set_is_a_difference(policy: PolicyContract, robot: RobotContract) -> None:
    blind = RobotContract.from_dict({**robot.to_dict(), "observation_sets": {"state": robot.observation_sets["state"]}})
    assert any("'image'" in difference for difference in differences(policy, blind))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"execute": 17}, "1 <= execute <= horizon"),
        ({"execute": 0}, "1 <= execute <= horizon"),
        ({"action_period_s": 0.0}, "action_period_s 0.0 is not within"),
        ({"action_period_s": 10.1}, "action_period_s 10.1 is not within"),
        ({"horizon": 10_001}, "1 <= execute <= horizon <= 10000"),
        ({"observations": []}, "must observe something"),
        ({"observations": [{"feature": image("left", 4, 4).to_dict()}] * 2}, "'observation.images.left' stands twice"),
        ({"observations": [{"feature": image("left", 4, 4).to_dict(), "history": 0}]}, "history 0 is not within"),
        ({"observations": [{"feature": image("left", 4, 4).to_dict(), "history": 1001}]}, "history 1001 is not within"),
        ({"action": vector("motion", ("a",), ("m",)).to_dict()}, "the action's key is 'action'"),
        ({"action": {**vector("action", ("a", "b"), ("m", "m")).to_dict(), "names": ["a"]}}, "2 elements but 1 names"),
        ({"action": {**vector("action", ("a", "b"), ("m", "m")).to_dict(), "units": ["m"]}}, "2 elements but 1 units"),
        ({"action": {**vector("action", ("a", "b"), ("m", "m")).to_dict(), "names": ["a", "a"]}}, "'a' stands twice"),
    ],
)
def test_a_policys_nonsense_is_refused_by_name(policy: PolicyContract, change: dict, expected: str) -> None:
    with pytest.raises(ContractError, match=expected):
        PolicyContract.from_dict(policy.to_dict() | change)


def test_a_rate_that_is_nearly_right_is_not_right(policy: PolicyContract, robot: RobotContract) -> None:
    (difference,) = differences(msgspec.structs.replace(policy, action_period_s=0.0126), robot)
    assert "12.600 ms, the robot every 12.500 ms" in difference
