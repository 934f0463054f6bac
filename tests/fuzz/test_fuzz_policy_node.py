"""A live policy node hears nonsense on every topic that it listens to: it lives, counts, and goes on inferring."""

from __future__ import annotations

import array
import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from contracts import RobotContract
from execution.deadline import DeadlineLoop
from ros_nodes import qos
from ros_nodes.conversions import chunk_from_message, image_message, sensor_message
from ros_nodes.graph import POLICY

SECOND_NS = 1_000_000_000
far = st.sampled_from([-(10**9), -1000, -2, 2, 1000, 10**9]).map(lambda seconds: seconds * SECOND_NS)
"""Distance of a stamp from now that no clock excuses, ns."""
no_number = st.sampled_from([math.nan, math.inf, -math.inf, 1e39, -1e300])
"""Nothing that a policy could be given, in 32 bits."""


class Robot:
    """What a robot says, 40 times a second, and what is said in between."""

    def __init__(self, nodes: Any) -> None:
        self.nodes = nodes
        self.contract: RobotContract = nodes.robot
        self.camera = self.contract.cameras[0]
        self.sensors = {s.name: s for s in self.contract.sensors if s.name in ("end_effector", "gripper")}
        self.chunks = nodes.listen("action_chunk", JointTrajectory, qos.CHUNK)
        self._publishers = {
            "end_effector": nodes.publisher("end_effector_pose", PoseStamped, qos.SENSOR, 1),
            "gripper": nodes.publisher("gripper_state", JointState, qos.SENSOR, 1),
            "camera": nodes.publisher(self.camera.topic, Image, qos.SENSOR, 1),
        }
        self.said = 0
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        loop, picture = DeadlineLoop(self.camera.rate_hz), np.zeros((96, 96, 3), dtype=np.uint8)
        while self._running:
            loop.wait()
            for sensor in self.sensors.values():
                values = (0.0, 0.6, 0.2)[: len(sensor.fields)]
                self._publishers[sensor.name].publish(sensor_message(sensor, time.time_ns(), values))
            self._publishers["camera"].publish(image_message(self.camera, time.time_ns(), picture))

    def says(self, source: str, message: Any) -> None:
        self.said += 1
        self._publishers[source].publish(message)

    def infers(self) -> None:
        """The policy goes on giving chunks, and all are whole."""
        before = self.chunks[-1] if self.chunks else None
        self.nodes.wait(lambda: bool(self.chunks) and self.chunks[-1] is not before, "a chunk")
        chunk = chunk_from_message(self.chunks[-1], 12_500_000)
        assert chunk.names == self.contract.action_feature.names

    def close(self) -> None:
        self._running = False
        self._thread.join()


@pytest.fixture(scope="module")
def heard(live_nodes, robot, bundle) -> Iterator[Robot]:
    """A Robot whose policy infers."""
    nodes = live_nodes(robot)
    nodes.start(POLICY, {"robot": robot.name, "bundle": str(bundle)})
    nodes.transition([POLICY], "configure")
    made = Robot(nodes)
    nodes.transition([POLICY], "activate")
    made.infers()
    yield made
    made.close()


def bad_sensor_message(draw: st.DrawFn, heard: Robot, name: str) -> Any:
    """Like a right one, but for one thing."""
    sensor = heard.sensors[name]
    values = [0.5] * len(sensor.fields)
    kinds = ["stamp", "number", "names", "size"] if name == "gripper" else ["stamp", "number", "frame"]
    kind = draw(st.sampled_from(kinds))
    if kind == "number":
        values[draw(st.integers(0, len(values) - 1))] = draw(no_number)
    stamp = max(-(2**31) * SECOND_NS, time.time_ns() + (draw(far) if kind == "stamp" else 0))
    message: Any = sensor_message(sensor, min(stamp, (2**31 - 1) * SECOND_NS), values)
    if kind == "frame":
        message.header.frame_id = draw(st.sampled_from(["", "world", "corner2", "base\n"]))
    elif kind == "names":
        message.name = draw(st.sampled_from([["elbow"], [""], ["gripper_opening "]]))
    elif kind == "size":
        message.position = array.array("d", [0.5] * draw(st.sampled_from([0, 2, 40])))
    return message


def bad_picture(draw: st.DrawFn, heard: Robot) -> Any:
    """Like a right one, but for one thing."""
    kind = draw(st.sampled_from(["stamp", "encoding", "frame", "height", "width", "step", "data"]))
    stamp = time.time_ns() + (draw(far) if kind == "stamp" else 0)
    message = image_message(heard.camera, min(stamp, (2**31 - 1) * SECOND_NS), np.full((96, 96, 3), 9, dtype=np.uint8))
    if kind == "encoding":
        message.encoding = draw(st.sampled_from(["", "bgr8", "mono8", "rgb8 ", "16UC1"]))
    elif kind == "frame":
        message.header.frame_id = draw(st.sampled_from(["", "base", "corner"]))
    elif kind in ("height", "width", "step"):
        setattr(message, kind, draw(st.sampled_from([0, 1, 95, 97, 287, 289, 2**32 - 1])))
    elif kind == "data":
        message.data = array.array("B", bytes(draw(st.sampled_from([0, 1, 27647, 27649, 100_000]))))
    return message


@settings(settings.get_profile("fuzz"))
@given(data=st.data())
def test_nonsense_is_counted_and_the_policy_goes_on(data, heard) -> None:
    """Pictures and measurements are best effort: some may be lost, most are not, none is counted twice."""
    before = heard.nodes.refused(POLICY)
    for _ in range(3):
        source = data.draw(st.sampled_from(["end_effector", "gripper", "camera"]))
        bad = bad_picture(data.draw, heard) if source == "camera" else bad_sensor_message(data.draw, heard, source)
        heard.says(source, bad)
    heard.nodes.wait(lambda: heard.nodes.refused(POLICY) > before, "a count")
    heard.infers()
    assert heard.nodes.refused(POLICY) <= heard.said


@settings(settings.get_profile("fuzz"))
@given(data=st.data(), source=st.sampled_from(["end_effector", "gripper", "camera"]))
def test_damaged_bytes_on_the_wire_change_nothing(data, source, heard) -> None:
    draw = data.draw
    bad = bad_picture(draw, heard) if source == "camera" else bad_sensor_message(draw, heard, source)
    whole = serialize_message(bad)
    cut = whole[: draw(st.integers(0, len(whole) - 1))]
    heard.says(source, draw(st.sampled_from([cut, whole[:4] + draw(st.binary(max_size=60))])))
    assert heard.nodes.refused(POLICY) >= 0
    heard.infers()


def test_it_has_refused_nothing_that_was_right(heard) -> None:
    before = heard.nodes.refused(POLICY)
    for _ in range(5):
        heard.infers()
    assert heard.nodes.refused(POLICY) == before
    assert json.loads(heard.nodes.client.trigger(POLICY, "statistics", 20.0))["chunks"] > 5
