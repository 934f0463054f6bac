"""Messages and arrays: there and back unchanged, and what is not what the contract says is refused with a reason."""

from __future__ import annotations

import array
import time
from typing import Any

import msgspec
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, Twist
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Imu, JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory

from contracts import available_robots, load_robot
from contracts.messages import RefusedMessage, image_array, sensor_fields
from episodes import messages, samples
from execution.chunk import MAX_HORIZON, ActionChunk
from ros_nodes import conversions

ROBOT = load_robot("metaworld_sawyer")
POSE = next(s for s in ROBOT.sensors if s.name == "end_effector")
JOINTS = next(s for s in ROBOT.sensors if s.name == "joint_states")
CAMERA = ROBOT.camera("corner2")
LEGS, IMU, ASKED = load_robot("go2").sensors
AT_REST = (0.0, 0.6, 0.0, 0.8, 0.1, 0.2, 0.3, 1.0, 2.0, 9.81)
STAMP = 1_700_000_000_123_456_789
PERIOD = 12_500_000
NAMES = ROBOT.action_feature.names
numbers = st.floats(allow_nan=False, allow_infinity=False)


def sent(message):
    """The message as it arrives: through the wire format."""
    return deserialize_message(serialize_message(message), type(message))


def reason(call) -> str:
    with pytest.raises(RefusedMessage) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize("sensor", ROBOT.sensors, ids=lambda s: s.name)
def test_a_measurement_arrives_as_it_was_sent(sensor) -> None:
    values = np.linspace(-1, 1, len(sensor.fields))
    message = sent(conversions.sensor_message(sensor, STAMP, values))
    assert type(message) is conversions.sensor_message_type(sensor)
    assert conversions.stamp_ns(message.header.stamp) == STAMP
    assert message.header.frame_id == sensor.frame
    assert sensor_fields(message, sensor) == (sensor.fields, tuple(values))


def test_joints_are_found_by_name_among_others() -> None:
    order = [4, 2, 0, 8, 6, 7, 5, 3, 1]
    names = [JOINTS.fields[i] for i in order]
    message = JointState(name=["head", *names], position=[float("nan"), *map(float, order)])
    assert sensor_fields(message, JOINTS) == (JOINTS.fields, tuple(map(float, range(9))))


def test_positions_and_velocities_go_with_their_joint_in_any_order() -> None:
    values = dict(zip(LEGS.fields, map(float, range(24)), strict=True))
    message = sent(conversions.sensor_message(LEGS, STAMP, tuple(values.values())))
    assert message.velocity[message.name.index("FR_calf_joint")] == values["FR_calf_joint.velocity"]
    names = [*reversed(message.name), "tail"]
    position = [values.get(name, float("nan")) for name in names]
    velocity = [values.get(f"{name}.velocity", float("nan")) for name in names]
    mixed = sent(JointState(name=names, position=position, velocity=velocity))
    assert sensor_fields(mixed, LEGS) == (LEGS.fields, tuple(values.values()))
    for short in ([], velocity[:-1]):
        assert (
            reason(lambda v=short: sensor_fields(JointState(name=names, position=position, velocity=v), LEGS)) == "size"
        )
    velocity[3] = float("inf")
    mixed = JointState(name=names, position=position, velocity=velocity)
    assert reason(lambda: sensor_fields(mixed, LEGS)) == "non_finite"


def test_a_request_is_forward_left_and_turning() -> None:
    message = sent(conversions.sensor_message(ASKED, STAMP, (0.5, -0.25, 1.5)))
    assert type(message) is conversions.sensor_message_type(ASKED) is Twist
    assert (message.linear.x, message.linear.y, message.angular.z) == (0.5, -0.25, 1.5)
    message.linear.z = message.angular.x = 7.0  # a quadruped is not asked to fly
    assert sensor_fields(message, ASKED) == (ASKED.fields, (0.5, -0.25, 1.5))


@pytest.mark.parametrize("part", ["linear", "angular"])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_request_that_is_not_finite_is_refused(part, axis) -> None:
    message = Twist()
    setattr(getattr(message, part), axis, float("nan"))
    assert reason(lambda: sensor_fields(message, ASKED)) == "non_finite"


@pytest.mark.parametrize(
    ("expected", "names", "positions"),
    [
        ("size", list(JOINTS.fields), [0.0] * 8),
        ("size", list(JOINTS.fields), []),
        ("names", list(JOINTS.fields[:8]), [0.0] * 8),
        ("names", [*JOINTS.fields, JOINTS.fields[0]], [0.0] * 10),
        ("names", ["a"] * 9, [0.0] * 9),
        ("non_finite", list(JOINTS.fields), [0.0] * 8 + [float("nan")]),
        ("non_finite", list(JOINTS.fields), [float("-inf")] + [0.0] * 8),
    ],
)
def test_joints_that_are_not_what_they_should_be_are_refused(expected, names, positions) -> None:
    message = JointState(name=names, position=positions)
    assert reason(lambda: sensor_fields(message, JOINTS)) == expected


@pytest.mark.parametrize(
    ("expected", "frame", "x"), [("frame", "map", 0.0), ("frame", "", 0.0), ("non_finite", "base", float("nan"))]
)
def test_a_pose_in_another_frame_or_nowhere_is_refused(expected, frame, x) -> None:
    message = PoseStamped()
    message.header.frame_id = frame
    message.pose.position.x = x
    assert reason(lambda: sensor_fields(message, POSE)) == expected


def test_an_imu_arrives_as_it_was_sent_in_the_documented_order() -> None:
    message = sent(conversions.sensor_message(IMU, STAMP, AT_REST))
    assert type(message) is conversions.sensor_message_type(IMU) is Imu
    assert (conversions.stamp_ns(message.header.stamp), message.header.frame_id) == (STAMP, IMU.frame)
    assert (message.orientation.y, message.orientation.w) == (0.6, 0.8)
    assert (message.angular_velocity.x, message.linear_acceleration.z) == (0.1, 9.81)
    assert sensor_fields(message, IMU) == (IMU.fields, AT_REST)


@pytest.mark.parametrize(
    ("expected", "spoil"),
    [
        ("frame", lambda m: setattr(m.header, "frame_id", "base")),
        ("orientation", lambda m: setattr(m.orientation, "w", 0.0)),
        ("orientation", lambda m: setattr(m.orientation, "w", 1.0)),
        ("orientation", lambda m: m.orientation_covariance.__setitem__(0, -1.0)),  # REP-145: not estimated
        ("non_finite", lambda m: setattr(m.orientation, "x", float("nan"))),
        ("non_finite", lambda m: setattr(m.linear_acceleration, "z", float("inf"))),
    ],
)
def test_an_imu_that_is_not_what_it_should_be_is_refused(expected, spoil) -> None:
    message = conversions.sensor_message(IMU, STAMP, AT_REST)
    spoil(message)
    assert reason(lambda: sensor_fields(message, IMU)) == expected


@pytest.mark.parametrize(("length", "taken"), [(0.989, False), (0.991, True), (1.009, True), (1.011, False)])
def test_an_orientation_may_be_a_hundredth_too_long_or_too_short(length, taken) -> None:
    """Drivers round; what is further from a rotation tells nothing about which way is down."""
    values = (*(length * part for part in AT_REST[:4]), *AT_REST[4:])
    message = conversions.sensor_message(IMU, STAMP, values)
    if taken:
        assert sensor_fields(message, IMU) == (IMU.fields, values)
    else:
        assert reason(lambda: sensor_fields(message, IMU)) == "orientation"


@pytest.mark.parametrize("sensor", [POSE, JOINTS, IMU, ASKED], ids=lambda sensor: sensor.name)
def test_as_many_numbers_as_fields_are_sent_or_none(sensor) -> None:
    for count in (len(sensor.fields) - 1, len(sensor.fields) + 1):
        with pytest.raises(ValueError, match=f"has {len(sensor.fields)} fields, not {count}"):
            conversions.sensor_message(sensor, STAMP, [0.0] * count)


def test_a_picture_is_as_high_and_as_wide_as_its_camera_says() -> None:
    """Not the other way round, which of a square one nobody would notice."""
    camera = msgspec.structs.replace(CAMERA, height=48, width=64)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    message = sent(conversions.image_message(camera, STAMP, picture))
    assert (message.height, message.width, message.step) == (48, 64, 192)
    np.testing.assert_array_equal(image_array(message, camera), picture)
    spoiled: list[Any] = [picture.transpose(1, 0, 2), picture[:, :, :2], picture[:-1], picture.astype(np.int8)]
    for wrong in spoiled:
        with pytest.raises(ValueError, match=r"not uint8 \(48, 64, 3\)"):
            conversions.image_message(camera, STAMP, wrong)


def test_a_picture_arrives_as_it_was_taken() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    message = sent(conversions.image_message(CAMERA, STAMP, picture))
    np.testing.assert_array_equal(image_array(message, CAMERA), picture)
    with pytest.raises(ValueError, match="corner2"):
        conversions.image_message(CAMERA, STAMP, picture[:95])


def test_a_picture_whose_rows_are_padded_is_read() -> None:
    """A camera driver may end each row with bytes that are no picture."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    message = conversions.image_message(CAMERA, STAMP, picture)
    padded = np.pad(picture.reshape(96, -1), ((0, 0), (0, 5)), constant_values=99)
    message.step, message.data = padded.shape[1], array.array("B", padded.tobytes())
    np.testing.assert_array_equal(image_array(sent(message), CAMERA), picture)


@pytest.mark.parametrize("robot", map(load_robot, available_robots()), ids=lambda robot: robot.name)
def test_a_recording_made_without_ros_holds_the_same_messages(robot) -> None:
    for sensor in robot.sensors:
        values = dict(zip(sensor.fields, np.linspace(-1, 1, len(sensor.fields)).tolist(), strict=True))
        written = samples.sensor_message(robot, sensor, values, STAMP)
        live = sent(conversions.sensor_message(sensor, STAMP, list(values.values())))
        assert deserialize_message(messages.serialize(written, sensor.type), type(live)) == live
    for camera in robot.cameras:
        picture = np.random.default_rng(0).integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
        written = samples.image_message(camera, picture, STAMP)
        live = sent(conversions.image_message(camera, STAMP, picture))
        assert deserialize_message(messages.serialize(written, samples.IMAGE), type(live)) == live


def test_a_big_picture_costs_little_to_send() -> None:
    """Regression: a NumPy array as Image.data is checked element by element, 44 ms a picture of 640 x 480."""
    camera = CAMERA.from_dict(CAMERA.to_dict() | {"height": 480, "width": 640})
    picture = np.zeros((480, 640, 3), dtype=np.uint8)
    conversions.image_message(camera, STAMP, picture)
    start = time.perf_counter()
    for _ in range(5):
        conversions.image_message(camera, STAMP, picture)
    assert (time.perf_counter() - start) / 5 < 0.015


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("size", {"height": 95}),
        ("size", {"width": 640, "height": 480}),
        ("encoding", {"encoding": "bgr8"}),
        ("encoding", {"encoding": "rgb16"}),
        ("frame", {}),
        ("step", {"step": 96}),
        ("step", {"step": 96 * 3 - 1}),
        ("data", {"step": 96 * 3 + 1}),
        ("data", {"data": array.array("B", bytes(96 * 96 * 3 + 1))}),
        ("data", {"data": array.array("B", bytes(96 * 96 * 3 - 1))}),
        ("data", {"data": array.array("B")}),
    ],
)
def test_a_picture_that_is_not_what_it_should_be_is_refused(expected, change) -> None:
    message = conversions.image_message(CAMERA, STAMP, np.zeros((96, 96, 3), dtype=np.uint8))
    if expected == "frame":
        message.header.frame_id = "corner3"
    for name, value in change.items():
        setattr(message, name, value)
    assert reason(lambda: image_array(message, CAMERA)) == expected


def test_a_chunk_arrives_as_it_was_sent() -> None:
    actions = np.random.default_rng(0).normal(size=(16, 4))
    message = sent(conversions.chunk_message(ActionChunk(actions, 5, PERIOD, NAMES), STAMP))
    chunk = conversions.chunk_from_message(message, PERIOD)
    assert chunk.actions.tobytes() == actions.tobytes()
    assert (chunk.start_ns, chunk.period_ns, chunk.names) == (STAMP, PERIOD, NAMES)
    for start in (7, 0):  # on a clock that begins now
        assert conversions.chunk_from_message(message, PERIOD, start_ns=start).start_ns == start


@pytest.mark.parametrize(("off_ns", "taken"), [(-1001, False), (-1000, True), (1000, True), (1001, False)])
def test_an_action_may_be_due_a_microsecond_off_either_way(off_ns, taken) -> None:
    message = conversions.chunk_message(ActionChunk(np.zeros((3, 4)), 5, PERIOD, NAMES), STAMP)
    message.points[2].time_from_start.nanosec += off_ns
    if taken:
        assert conversions.chunk_from_message(message, PERIOD).horizon == 3
    else:
        assert reason(lambda: conversions.chunk_from_message(message, PERIOD)) == "period"


@pytest.mark.parametrize(
    ("expected", "names", "points"),
    [
        ("size", ["x"], 0),
        ("size", ["x"], MAX_HORIZON + 1),
        ("names", [], 1),
        ("names", ["x", "x"], 1),
    ],
)
def test_a_chunk_of_no_channels_or_too_many_actions_is_refused(expected, names, points) -> None:
    point = conversions.JointTrajectoryPoint(positions=[0.0] * len(names))
    message = JointTrajectory(joint_names=names, points=[point] * points)
    assert reason(lambda: conversions.chunk_from_message(message, 10**9)) == expected


@given(
    points=st.lists(st.lists(st.floats(), max_size=5), max_size=5),
    names=st.lists(st.sampled_from(["a", "b", "c"]), max_size=5),
    due=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=5, max_size=5),
)
def test_any_chunk_is_whole_or_refused(points, names, due) -> None:
    message = JointTrajectory(joint_names=names)
    for positions, sec in zip(points, due, strict=False):
        point = conversions.JointTrajectoryPoint(positions=positions)
        point.time_from_start.sec = sec
        message.points.append(point)
    try:
        chunk = conversions.chunk_from_message(sent(message), PERIOD)
    except RefusedMessage as error:
        assert error.reason in {"size", "names", "period", "non_finite"}
        return
    assert chunk.actions.shape == (len(points), len(names))
    assert np.isfinite(chunk.actions).all()


def test_a_command_arrives_as_it_was_sent() -> None:
    command = np.array([0.1, -0.8, 0.8, 1.0])
    message = sent(conversions.command_message(command, ROBOT))
    assert conversions.command_from_message(message, ROBOT).tobytes() == command.tobytes()
    plain = Float64MultiArray(data=command.tolist())  # what other commanders send: no layout
    assert conversions.command_from_message(plain, ROBOT).tolist() == command.tolist()


@given(data=st.lists(st.floats() | st.floats(-1, 1), max_size=6), size=st.none() | st.integers(0, 2**32 - 1))
def test_any_command_is_within_every_range_or_refused(data, size) -> None:
    message = Float64MultiArray(data=data)
    if size is not None:
        message.layout.dim = [MultiArrayDimension(size=size)]
    try:
        command = conversions.command_from_message(sent(message), ROBOT)
    except RefusedMessage as error:
        assert error.reason in {"size", "layout", "non_finite", "range"}
        return
    assert len(command) == 4
    assert size in (None, 4)
    assert all(c.min <= v <= c.max for v, c in zip(command, ROBOT.command.channels, strict=True))


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_a_stamp_is_kept_to_the_nanosecond(nanoseconds) -> None:
    assert conversions.stamp_ns(conversions.to_stamp(nanoseconds)) == nanoseconds


def test_a_command_may_be_at_either_end_of_its_range_and_not_beyond() -> None:
    channels = ROBOT.command.channels
    for end, beyond in ((-1, -np.inf), (1, np.inf)):
        values = [channel.min if end < 0 else channel.max for channel in channels]
        assert conversions.command_from_message(Float64MultiArray(data=values), ROBOT).tolist() == values
        for place in range(len(channels)):
            spoiled = list(values)
            spoiled[place] = float(np.nextafter(values[place], beyond))
            message = Float64MultiArray(data=spoiled)
            assert reason(lambda message=message: conversions.command_from_message(message, ROBOT)) == "range"


@pytest.mark.parametrize(("sizes", "offset", "taken"), [([2, 2], 0, True), ([4], 1, False), ([2, 3], 0, False)])
def test_a_command_whose_layout_describes_other_numbers_is_refused(sizes, offset, taken) -> None:
    message = Float64MultiArray(data=[0.0] * 4)
    message.layout.dim = [MultiArrayDimension(size=size) for size in sizes]
    message.layout.data_offset = offset
    if taken:
        assert conversions.command_from_message(message, ROBOT).tolist() == [0.0] * 4
    else:
        assert reason(lambda: conversions.command_from_message(message, ROBOT)) == "layout"
