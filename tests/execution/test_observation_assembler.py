"""What a policy sees, out of sensors that come apart, late, at different rates, or not at all."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import PolicyContract, PolicyObservation, RobotContract, load_robot
from execution.chunk import ActionChunk
from execution.controller import ControllerCore, Mode
from execution.observation import NotReady, ObservationAssembler

TICK = 12_500_000
ROBOT = load_robot("metaworld_sawyer")
CAMERA = ROBOT.camera("corner2")


def policy(observation_set: str = "image", history: int = 1, **histories: int) -> PolicyContract:
    features = ROBOT.observation_features(observation_set)
    return PolicyContract(
        policy="test",
        robot=ROBOT.name,
        observation_set=observation_set,
        task="",
        observations=tuple(
            PolicyObservation(feature=f, history=histories.get("image" if f.is_image else "state", history))
            for f in features
        ),
        action=ROBOT.action_feature,
        action_period_s=ROBOT.control_period_s,
        horizon=16,
        execute=8,
    )


def picture(value: int) -> np.ndarray:
    return np.full((CAMERA.height, CAMERA.width, 3), value, dtype=np.uint8)


def push(assembler: ObservationAssembler, stamp: int, value: float, *sources: str) -> None:
    if "pose" in sources:
        assembler.push_fields("end_effector", stamp, ("ee_z", "ee_x", "ee_y"), (value + 0.3, value + 0.1, value + 0.2))
    if "gripper" in sources:
        assembler.push_fields("gripper", stamp, ("gripper_opening",), (value,))
    if "camera" in sources:
        assembler.push_image("corner2", stamp, picture(int(value)))


ALL = ("pose", "gripper", "camera")


def test_fields_are_found_by_name_and_a_feature_may_come_from_several_sensors() -> None:
    assembler = ObservationAssembler(ROBOT, policy())
    push(assembler, 1000, 5.0, *ALL)
    observation = assembler.window(1000)
    assert observation.stamp_ns == 1000
    np.testing.assert_allclose(observation.values["observation.state"], [[5.1, 5.2, 5.3, 5.0]], rtol=1e-6)
    assert observation.values["observation.state"].dtype == np.float32
    assert observation.values["observation.images.corner2"].shape == (1, 96, 96, 3)


def test_only_what_the_policy_looks_at_is_wanted() -> None:
    image = ObservationAssembler(ROBOT, policy("image"))
    assert [s.name for s in image.sensors] == ["end_effector", "gripper"]
    assert [c.name for c in image.cameras] == ["corner2"]
    state = ObservationAssembler(ROBOT, policy("state"))
    assert [s.name for s in state.sensors] == ["environment"]
    assert state.cameras == ()


@pytest.mark.parametrize("missing", ALL)
def test_nothing_is_decided_while_a_source_is_missing(missing) -> None:
    assembler = ObservationAssembler(ROBOT, policy())
    push(assembler, 1000, 5.0, *(set(ALL) - {missing}))
    with pytest.raises(NotReady) as caught:
        assembler.window(1000)
    assert {"pose": "end_effector", "gripper": "gripper", "camera": "corner2"}[missing] in caught.value.reason


@pytest.mark.parametrize("late", ALL)
def test_nothing_is_decided_from_a_stale_source(late) -> None:
    """The contract's time-outs: 100 ms for the sensors, 150 ms for the camera; to the nanosecond."""
    assembler = ObservationAssembler(ROBOT, policy())
    push(assembler, 0, 1.0, *ALL)
    push(assembler, 100_000_000, 2.0, *(set(ALL) - {late}))
    timeout = 150_000_000 if late == "camera" else 100_000_000
    assert assembler.window(timeout).stamp_ns == 0
    with pytest.raises(NotReady, match="stale"):
        assembler.window(timeout + 1)


def test_the_observation_is_of_the_newest_instant_that_all_sources_know() -> None:
    """A camera at half the rate: the state of the picture's instant goes with the picture."""
    assembler = ObservationAssembler(ROBOT, policy())
    for tick in range(8):
        sources = ALL if tick % 2 == 0 else ("pose", "gripper")
        push(assembler, tick * TICK, float(tick), *sources)
    observation = assembler.window(7 * TICK)
    assert observation.stamp_ns == 6 * TICK
    assert observation.values["observation.state"][0, 3] == 6.0
    assert observation.values["observation.images.corner2"][0, 0, 0, 0] == 6


def test_a_history_is_an_action_period_apart_whatever_the_sensors_rate() -> None:
    assembler = ObservationAssembler(ROBOT, policy(history=3))
    for tick in range(0, 40):  # four samples an action period
        push(assembler, tick * TICK // 4, float(tick), *ALL)
    observation = assembler.window(39 * TICK // 4)
    assert observation.values["observation.state"][:, 3].tolist() == [31.0, 35.0, 39.0]


def test_at_the_start_of_an_episode_the_first_sample_is_repeated() -> None:
    assembler = ObservationAssembler(ROBOT, policy(history=3))
    push(assembler, 0, 7.0, *ALL)
    assert assembler.window(0).values["observation.state"][:, 3].tolist() == [7.0, 7.0, 7.0]
    push(assembler, TICK, 8.0, *ALL)
    assert assembler.window(TICK).values["observation.state"][:, 3].tolist() == [7.0, 7.0, 8.0]
    assembler.reset()
    with pytest.raises(NotReady):
        assembler.window(TICK)
    push(assembler, 2 * TICK, 9.0, *ALL)
    after = assembler.window(2 * TICK).values
    assert after["observation.state"][:, 3].tolist() == [9.0, 9.0, 9.0]
    assert after["observation.images.corner2"][:, 0, 0, 0].tolist() == [9, 9, 9], "no picture of the episode before"


def test_a_simulator_gives_whole_features() -> None:
    assembler = ObservationAssembler(ROBOT, policy("state", history=2))
    for tick in range(3):
        assembler.push_feature("observation.state", tick * TICK, np.full(39, tick, dtype=np.float64))
        assembler.push_feature("observation.images.corner2", tick * TICK, picture(0))  # not looked at: ignored
    observation = assembler.window(2 * TICK)
    assert list(observation.values) == ["observation.state"]
    assert observation.values["observation.state"][:, 0].tolist() == [1.0, 2.0]


def test_a_feature_given_whole_is_stale_as_soon_as_the_first_of_its_sensors_would_be() -> None:
    plain = ROBOT.to_dict()
    gripper = next(sensor for sensor in plain["sensors"] if sensor["name"] == "gripper")
    gripper["timeout_s"] = 0.03
    assembler = ObservationAssembler(RobotContract.from_dict(plain), policy())
    assembler.push_feature("observation.state", 0, np.zeros(4))
    push(assembler, 0, 1.0, "camera")
    assert assembler.window(30_000_000).stamp_ns == 0
    with pytest.raises(NotReady, match=r"observation\.state is stale: 30\.0 ms old, at most 30\.0 ms"):
        assembler.window(30_000_001)


def test_a_sample_that_is_not_newer_is_dropped() -> None:
    assembler = ObservationAssembler(ROBOT, policy("state"))
    assert assembler.push_feature("observation.state", TICK, np.ones(39))
    assert not assembler.push_feature("observation.state", TICK, np.zeros(39))
    assert not assembler.push_feature("observation.state", 0, np.zeros(39))
    assert assembler.window(TICK).values["observation.state"][0, 0] == 1.0


@pytest.mark.parametrize(
    ("names", "values", "says"),
    [
        (("ee_x", "ee_y"), (0.0, 0.0), "ee_z"),
        (("ee_x", "ee_y", "ee_z"), (0.0, float("nan"), 0.0), "not finite"),
        (("ee_x", "ee_y", "ee_z"), (0.0, 1e300, 0.0), "not finite"),  # infinite as float32
    ],
)
def test_a_bad_measurement_is_an_error_and_changes_nothing(names, values, says) -> None:
    assembler = ObservationAssembler(ROBOT, policy())
    push(assembler, 0, 1.0, *ALL)
    with pytest.raises(ValueError, match=says):
        assembler.push_fields("end_effector", TICK, names, values)
    assert assembler.window(TICK).stamp_ns == 0


@pytest.mark.parametrize(
    "image", [np.zeros((96, 95, 3), np.uint8), np.zeros((96, 96), np.uint8), np.zeros((96, 96, 3), np.float32)]
)
def test_a_picture_of_another_size_or_type_is_an_error(image) -> None:
    assembler = ObservationAssembler(ROBOT, policy())
    with pytest.raises(ValueError, match="observation.images.corner2"):
        assembler.push_image("corner2", 0, image)


def test_an_observation_keeps_what_it_saw() -> None:
    """Pictures come in memory that the sender uses again."""
    assembler = ObservationAssembler(ROBOT, policy())
    image = picture(3)
    push(assembler, 0, 1.0, "pose", "gripper")
    assembler.push_image("corner2", 0, image)
    image[:] = 9
    assert assembler.window(0).values["observation.images.corner2"].max() == 3


@pytest.mark.parametrize(("horizon", "ticks"), [(100, 21), (16, 16)])
def test_when_only_its_camera_stops_the_robot_holds_when_the_latest_chunk_is_too_old_or_over(horizon, ticks) -> None:
    """The bound of docs/architecture.md: chunk_timeout_s (250 ms, 20 ticks) from the last picture, or the horizon.

    The camera's own time-out (150 ms, 12 ticks) bounds what the policy looks at, not what the robot still does.
    """
    assembler, core, last, answered = ObservationAssembler(ROBOT, policy()), ControllerCore(ROBOT), 40 * TICK, -1
    core.activate(0)
    for now in range(0, 100 * TICK, TICK):
        push(assembler, now, 0.4, "pose", "gripper", *(("camera",) if now <= last else ()))
        core.on_fields("end_effector", now, ("ee_x", "ee_y", "ee_z"), (0.0, 0.6, 0.2), now)
        core.on_heartbeat(now)
        with suppress(NotReady):
            if assembler.stamp_ns(now) > answered:
                answered = assembler.window(now).stamp_ns
                core.on_chunk(ActionChunk(np.full((horizon, 4), 0.1), answered, TICK, ROBOT.action_feature.names), now)
        if core.step(now).mode is not Mode.RUN:
            break
    assert (now - last) // TICK == ticks


@given(
    gaps=st.lists(st.integers(1, 4 * TICK), min_size=1, max_size=60),
    history=st.integers(1, 4),
)
def test_every_history_value_is_the_sample_nearest_in_time(gaps, history) -> None:
    """Against a search through everything that ever came, with samples as far apart as dropped messages make them."""
    assembler = ObservationAssembler(ROBOT, policy("state", history=history))
    stamps = np.cumsum(gaps)
    for index, stamp in enumerate(stamps):
        assembler.push_feature("observation.state", int(stamp), np.full(39, index))
    observation = assembler.window(int(stamps[-1]))
    for i, value in enumerate(observation.values["observation.state"][:, 0]):
        target = stamps[-1] - (history - 1 - i) * TICK
        distance = abs(stamps - target)
        assert distance[int(value)] == distance.min()


GO2 = load_robot("go2")


def walking(history: int) -> ObservationAssembler:
    """Of a policy that sees legs, IMU and what a person asks for."""
    features = GO2.observation_features("proprioception")
    seen = PolicyContract(
        policy="test",
        robot="go2",
        observation_set="proprioception",
        task="",
        observations=tuple(PolicyObservation(feature=f, history=history) for f in features),
        action=GO2.action_feature,
        action_period_s=GO2.control_period_s,
        horizon=3,
        execute=1,
    )
    return ObservationAssembler(GO2, seen)


def test_a_robot_stops_when_nobody_asks_it_to_walk_any_more() -> None:
    """A joystick that was unplugged says nothing: the last it said counts for its time-out, to the nanosecond."""
    legs, imu, asked = GO2.sensors
    timeout = round(asked.timeout_s * 1e9)
    for late, command in ((0, [0.5, 0.25, 1.0]), (1, [0.0, 0.0, 0.0])):
        assembler = walking(history=1)
        assembler.push_fields("velocity_command", 1000, asked.fields, (0.5, 0.25, 1.0))
        now = 1000 + timeout + late
        assembler.push_fields("joint_states", now, legs.fields, [0.0] * 24)
        assembler.push_fields("imu", now, imu.fields, [0.0] * 10)
        assert assembler.window(now).values["observation.state"][0, :3].tolist() == command


def test_what_is_asked_for_is_never_waited_for_nor_mistaken_for_a_measurement() -> None:
    """Asked at once, as often as you like: the observation is of when the legs and the IMU were measured."""
    assembler = walking(history=2)
    legs, imu, asked = GO2.sensors
    tick = 20_000_000
    assembler.push_fields("velocity_command", tick + 1, asked.fields, (0.5, 0.25, 1.0))
    with pytest.raises(NotReady, match="imu"):
        assembler.window(tick + 1)
    for now in (tick, 2 * tick):
        assembler.push_fields("joint_states", now, legs.fields, [float(now)] * 24)
        assembler.push_fields("imu", now, imu.fields, [0.0] * 10)
    window = assembler.window(3 * tick)
    assert window.stamp_ns == 2 * tick
    assert window.values["observation.state"][:, :3].tolist() == [[0, 0, 0], [0.5, 0.25, 1.0]]
    with pytest.raises(ValueError, match="not finite"):
        assembler.push_fields("velocity_command", 3 * tick, asked.fields, (1e39, 0.0, 0.0))


def test_a_picture_that_is_long_on_its_way_goes_with_the_states_of_its_instant() -> None:
    """137.5 ms: within the camera's time-out, beyond those of the sensors, whose samples are kept for it."""
    assembler = ObservationAssembler(ROBOT, policy(history=2))
    for tick in range(13):
        push(assembler, tick * TICK, float(tick), *(ALL if tick < 2 else ("pose", "gripper")))
    observation = assembler.window(12 * TICK)
    assert observation.stamp_ns == TICK
    assert observation.values["observation.state"][:, 3].tolist() == [0.0, 1.0]
