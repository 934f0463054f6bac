"""Messages of every kind become the right arrays or a RefusedMessage; whatever passes, no command is ever unsafe."""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from contracts import PolicyContract, PolicyObservation, RobotContract, Sensor
from contracts.messages import RefusedMessage, image_array, sensor_fields
from execution.chunk import ActionChunk
from execution.controller import ControllerCore, Mode
from execution.observation import NotReady, ObservationAssembler
from execution.stitching import LatestChunk, TemporalEnsemble
from ros_nodes.conversions import (
    chunk_from_message,
    chunk_message,
    command_from_message,
    sensor_message,
    sensor_message_type,
    stamp_ns,
)

SECOND_NS = 1_000_000_000
PERIOD_NS = 12_500_000
START_NS = 1_000 * SECOND_NS

small = st.floats(-2, 2)
numbers = st.one_of(small, small, small, st.floats())
texts = st.sampled_from(["", "base", "corner2", "rgb8", "bgr8", "mono16", "elbow", "\0", "ß∞"]) | st.text(
    st.characters(codec="utf-8"), max_size=8
)
counts = st.sampled_from([0, 1, 2, 3, 5, 8, 9, 2**32 - 1])
stamps = st.one_of(
    st.integers(0, 40).map(lambda periods: -periods * PERIOD_NS),
    st.integers(-2 * SECOND_NS, 2 * SECOND_NS),
    st.integers(-(2**31) * SECOND_NS, (2**31 - 1) * SECOND_NS - START_NS - 100 * SECOND_NS),
)
"""Distance of a stamp from now, ns; negative in the past."""
right = st.integers(0, 3).map(bool)
"""True in three of four."""


def time_of(nanoseconds: int) -> Time:
    sec, nanosec = divmod(max(nanoseconds, -(2**31) * SECOND_NS), SECOND_NS)
    return Time(sec=sec, nanosec=nanosec)


@st.composite
def name_lists(draw: st.DrawFn, names: Sequence[str]) -> list[str]:
    """The right names in any order, or with some missing, twice or unknown."""
    if draw(right):
        return list(draw(st.permutations(names)) if draw(st.booleans()) else names)
    return draw(st.lists(st.sampled_from(list(names)) | texts, max_size=len(names) + 2))


@st.composite
def sensor_messages(draw: st.DrawFn, sensor: Sensor, now_ns: int) -> JointState | PoseStamped:
    message = sensor_message_type(sensor)()
    message.header.stamp = time_of(now_ns + draw(stamps))
    message.header.frame_id = sensor.frame if draw(right) else draw(texts)
    if isinstance(message, PoseStamped):
        for axis in "xyz":
            setattr(message.pose.position, axis, draw(numbers))
        return message
    message.name = draw(name_lists(sensor.fields))
    size = len(message.name) if draw(right) else draw(st.integers(0, 12))
    message.position = array.array("d", draw(st.lists(numbers, min_size=size, max_size=size)))
    return message


@st.composite
def chunk_messages(draw: st.DrawFn, robot: RobotContract, now_ns: int) -> JointTrajectory:
    message = JointTrajectory(joint_names=draw(name_lists([c.name for c in robot.command.channels])))
    message.header.stamp = time_of(now_ns + draw(stamps))
    values = draw(st.sampled_from([small, numbers]))
    due = [k * PERIOD_NS for k in range(draw(st.integers(0, 6)))]
    if due and not draw(right):
        due[draw(st.integers(0, len(due) - 1))] += draw(st.integers(-SECOND_NS, SECOND_NS))
    for nanoseconds in due:
        size = len(message.joint_names) if draw(st.integers(0, 15)) else draw(st.integers(0, 6))
        sec, nanosec = divmod(nanoseconds, SECOND_NS)
        point = JointTrajectoryPoint(time_from_start=Duration(sec=sec, nanosec=nanosec))
        point.positions = array.array("d", draw(st.lists(values, min_size=size, max_size=size)))
        message.points.append(point)
    return message


@st.composite
def command_messages(draw: st.DrawFn, robot: RobotContract) -> Float64MultiArray:
    size = len(robot.command.channels) if draw(right) else draw(st.integers(0, 8))
    message = Float64MultiArray()
    message.data = array.array("d", draw(st.lists(numbers, min_size=size, max_size=size)))
    if not draw(right):
        sizes = draw(st.lists(counts, max_size=3))
        message.layout.dim = [MultiArrayDimension(label=draw(texts), size=n, stride=draw(counts)) for n in sizes]
        message.layout.data_offset = draw(counts)
    return message


@st.composite
def image_messages(draw: st.DrawFn, camera: Any, now_ns: int) -> Image:
    message = Image(height=camera.height, width=camera.width, step=camera.width * 3, encoding=camera.encoding)
    message.header.frame_id = camera.frame
    message.header.stamp = time_of(now_ns + draw(stamps))
    size = camera.height * camera.width * 3
    places = ["nothing", "height", "width", "step", "encoding", "frame", "data", "bigendian", "padding"]
    wrong = draw(st.sampled_from(places))
    if wrong == "padding":
        message.step += draw(st.integers(1, 9))
        size = camera.height * message.step
    elif wrong in ("height", "width", "step"):
        setattr(message, wrong, draw(counts | st.integers(0, 300)))
    elif wrong == "encoding":
        message.encoding = draw(texts)
    elif wrong == "frame":
        message.header.frame_id = draw(texts)
    elif wrong == "data":
        size = draw(st.integers(0, 2 * size))
    message.data = array.array("B", draw(st.integers(0, 255)).to_bytes() * size)
    return message


# --- conversions


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_a_sensor_message_is_refused_or_read_by_name(data, small_robot) -> None:
    sensor = data.draw(st.sampled_from([s for s in small_robot.sensors if s.name != "environment"]))
    message = data.draw(sensor_messages(sensor, START_NS))
    if isinstance(message, PoseStamped):
        position = message.pose.position
        wanted = dict(zip(sensor.fields, (position.x, position.y, position.z), strict=True))
        fits = message.header.frame_id == sensor.frame
    else:
        names = list(message.name)
        fits = len(names) == len(set(names)) == len(message.position) and set(sensor.fields) <= set(names)
        wanted = {f: message.position[names.index(f)] for f in sensor.fields} if fits else {}
    fits = fits and all(map(math.isfinite, wanted.values()))
    try:
        fields, values = sensor_fields(message, sensor)
    except RefusedMessage as error:
        assert error.reason
        assert str(error)
        assert not fits
        return
    assert fits
    assert dict(zip(fields, values, strict=True)) == wanted


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_a_picture_is_refused_or_exactly_what_the_contract_says(data, small_robot) -> None:
    camera = small_robot.cameras[0]
    message = data.draw(image_messages(camera, START_NS))
    given = (message.height, message.width, message.encoding, message.header.frame_id)
    fits = given == (camera.height, camera.width, "rgb8", camera.frame)
    fits = fits and message.step >= camera.width * 3 and len(message.data) == camera.height * message.step
    try:
        picture = image_array(message, camera)
    except RefusedMessage as error:
        assert error.reason
        assert not fits
        return
    assert fits
    assert picture.shape == (camera.height, camera.width, 3)
    assert picture.tobytes() == bytes(message.data)[: picture.size]  # all of its bytes are the same


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_a_command_is_refused_or_within_every_limit(data, robot) -> None:
    message = data.draw(command_messages(robot))
    channels = robot.command.channels
    sizes = [dim.size for dim in message.layout.dim]
    fits = (
        len(message.data) == len(channels)
        and message.layout.data_offset == 0
        and (not sizes or math.prod(sizes) == len(channels))
        and all(c.min <= value <= c.max for c, value in zip(channels, message.data, strict=False))
    )
    try:
        command = command_from_message(message, robot)
    except RefusedMessage as error:
        assert error.reason
        assert not fits
        return
    assert fits
    assert command.tolist() == list(message.data)


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_a_chunk_is_refused_or_what_was_sent(data, robot) -> None:
    message = data.draw(chunk_messages(robot, START_NS))
    names, points = list(message.joint_names), message.points
    fits = bool(names) and len(set(names)) == len(names) and bool(points)
    for k, point in enumerate(points):
        due_ns = point.time_from_start.sec * SECOND_NS + point.time_from_start.nanosec
        fits = fits and len(point.positions) == len(names) and all(map(math.isfinite, point.positions))
        fits = fits and abs(due_ns - k * PERIOD_NS) <= 1_000
    try:
        chunk = chunk_from_message(message, PERIOD_NS)
    except RefusedMessage as error:
        assert error.reason
        assert not fits
        return
    assert fits
    assert chunk.start_ns == stamp_ns(message.header.stamp)
    assert chunk.names == tuple(names)
    assert chunk.actions.tolist() == [list(point.positions) for point in points]


# --- what passes goes on


@pytest.fixture(scope="module")
def arm(robot: RobotContract) -> RobotContract:
    """A robot whose commands are positions, with a largest rate and a ramp."""
    data = robot.to_dict()
    limits = {"position_min": -0.5, "position_max": 1.0, "max_rate": 2.0, "min": -1.0, "max": 1.5, "hold": "measured"}
    for channel in data["command"]["channels"][:3]:
        channel.update(limits, unit="m")
    data["command"]["channels"] = data["command"]["channels"][:3]
    data["command"]["kind"] = "joint_position"
    data["task"]["ramp_s"] = 0.1
    return RobotContract.from_dict(data)


class Controlled:
    """A ControllerCore that gets messages as its node gives them, on a clock in the test's hand."""

    def __init__(self, robot: RobotContract, stitching: LatestChunk | TemporalEnsemble) -> None:
        self.robot = robot
        self.core = ControllerCore(robot, stitching)
        self.now_ns = START_NS
        self.measured: dict[str, float] = {}

    @property
    def refused(self) -> int:
        return sum(n for reason, n in self.core.counters.items() if reason.startswith("refused."))

    def hears_chunk(self, message: JointTrajectory) -> bool:
        try:
            chunk = chunk_from_message(message, PERIOD_NS, stamp_ns(message.header.stamp))
        except RefusedMessage as error:
            self.core.refuse(error.reason)
            return False
        return self.core.on_chunk(chunk, self.now_ns)

    def hears_sensor(self, message: Any, sensor: Sensor) -> bool:
        try:
            names, values = sensor_fields(message, sensor)
        except RefusedMessage as error:
            self.core.refuse(error.reason)
            return False
        taken = self.core.on_fields(sensor.name, stamp_ns(message.header.stamp), names, values, self.now_ns)
        if taken:
            self.measured = dict(zip(names, values, strict=True))
        return taken

    def hears_what_is_right(self, horizon: int = 8) -> None:
        """A measurement, a sign of life and a chunk, all of them good: now it runs."""
        sensor = self.core.needed_sensors[0]
        fields = tuple(0.6 for _ in sensor.fields)
        self.hears_sensor(sensor_message(sensor, self.now_ns, fields), sensor)
        self.core.on_heartbeat(self.now_ns)
        names = tuple(c.name for c in self.robot.command.channels)
        actions = np.full((horizon, len(names)), 0.7)
        self.hears_chunk(chunk_message(ActionChunk(actions, self.now_ns, PERIOD_NS, names), self.now_ns))

    def step(self) -> None:
        """One period; what is sent keeps every limit."""
        command = self.core.step(self.now_ns)
        if command.values is None:
            assert command.mode is not Mode.RUN
            return
        for channel, value in zip(self.robot.command.channels, command.values, strict=True):
            assert math.isfinite(value)
            assert channel.min <= value <= channel.max
            if command.mode is not Mode.RUN and channel.hold == "zero":
                assert value == 0
            if command.mode is Mode.RUN and channel.position_min is not None and channel.hold == "zero":
                position = self.measured[channel.measured_by or ""]
                assert position < channel.position_max or value <= 0  # type: ignore[operator]
                assert position > channel.position_min or value >= 0


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), kind=st.sampled_from(["robot", "arm"]), ensemble=st.booleans())
def test_whatever_it_hears_the_controller_sends_nothing_unsafe_and_counts(data, kind, ensemble, robot, arm) -> None:
    chosen = robot if kind == "robot" else arm
    hand = Controlled(chosen, TemporalEnsemble() if ensemble else LatestChunk())
    sensor = hand.core.needed_sensors[0]
    hand.core.activate(hand.now_ns)
    events = ["right", "right", "chunk", "chunk", "sensor", "sensor", "heartbeat", "wait", "reset", "off and on"]
    for what in data.draw(st.lists(st.sampled_from(events), max_size=12)):
        before, taken = hand.refused, True
        if what == "chunk":
            taken = hand.hears_chunk(data.draw(chunk_messages(chosen, hand.now_ns)))
        elif what == "sensor":
            taken = hand.hears_sensor(data.draw(sensor_messages(sensor, hand.now_ns)), sensor)
        elif what == "right":
            hand.hears_what_is_right()
            before = hand.refused
        elif what == "heartbeat":
            hand.core.on_heartbeat(hand.now_ns)
        elif what == "wait":
            hand.now_ns += data.draw(st.integers(0, SECOND_NS))
        elif what == "reset":
            hand.core.reset(hand.now_ns)
        elif what == "off and on":
            hand.core.deactivate(hand.now_ns)
            hand.step()
            hand.core.activate(hand.now_ns)
        hand.step()
        hand.now_ns += PERIOD_NS
        assert hand.refused == before + (not taken), "what is refused is counted, once"


def test_a_short_chunk_between_long_ones_may_end_first(robot) -> None:
    """Found by the test above: it ended the controller's process."""
    hand = Controlled(robot, TemporalEnsemble())
    hand.core.activate(hand.now_ns)
    for horizon in (8, 2, 8):
        hand.now_ns += PERIOD_NS
        hand.hears_what_is_right(horizon)
    hand.now_ns += 3 * PERIOD_NS
    hand.step()
    assert hand.core.mode is Mode.RUN


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_whatever_it_hears_an_observation_is_whole_and_finite(data, small_robot) -> None:
    features = small_robot.observation_features("image")
    policy = PolicyContract(
        policy="diffusion",
        robot=small_robot.name,
        observation_set="image",
        task="open the drawer",
        observations=tuple(PolicyObservation(feature=f, history=2) for f in features),
        action=small_robot.action_feature,
        action_period_s=small_robot.control_period_s,
        horizon=8,
        execute=4,
    )
    assembler = ObservationAssembler(small_robot, policy)
    now_ns, camera = START_NS, small_robot.cameras[0]
    for source in data.draw(st.lists(st.sampled_from([None, None, *assembler.sensors, camera]), max_size=12)):
        now_ns += data.draw(st.sampled_from([0, PERIOD_NS, PERIOD_NS, SECOND_NS]))
        try:
            if source is None:
                assembler.push_image(camera.name, now_ns, np.full((8, 8, 3), 7, dtype=np.uint8))
                for sensor in assembler.sensors:
                    assembler.push_fields(sensor.name, now_ns, sensor.fields, [0.5] * len(sensor.fields))
            elif source is camera:
                picture = data.draw(image_messages(camera, now_ns))
                assembler.push_image(camera.name, stamp_ns(picture.header.stamp), image_array(picture, camera))
            else:
                message = data.draw(sensor_messages(source, now_ns))
                names, values = sensor_fields(message, source)
                assembler.push_fields(source.name, stamp_ns(message.header.stamp), names, values)
        except ValueError as error:  # RefusedMessage, and what does not fit 32 bits
            assert str(error)
        try:
            observation = assembler.window(now_ns)
        except NotReady as error:
            assert error.reason
            continue
        assert now_ns - observation.stamp_ns <= 0.15 * SECOND_NS
        for wanted in policy.observations:
            value = observation.values[wanted.feature.key]
            assert value.shape == (2, *wanted.feature.shape)
            assert value.dtype == wanted.feature.dtype
            assert np.isfinite(value).all()
