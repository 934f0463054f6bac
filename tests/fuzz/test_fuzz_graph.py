"""A live robot hears nonsense on every topic and service that it obeys: it does not move, none dies, all is counted."""

from __future__ import annotations

import array
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory

from contracts import RobotContract
from episodes.bag import BagReader
from execution.chunk import ActionChunk
from execution.deadline import DeadlineLoop
from ros_nodes import qos
from ros_nodes.conversions import chunk_message, sensor_message, to_stamp
from ros_nodes.graph import BODY, CONTROLLER, RECORDER
from ros_nodes.graph_client import GraphError
from sim.tasks import TASKS

SECOND_NS = 1_000_000_000
PERIOD_NS = 12_500_000
STILL_M = 1e-4
WOULD_MOVE = [0.3, -0.3, 0.3, 0.5]
"""What the nonsense is made of: obeyed, it would move the robot at 0.5 m/s."""
live = settings(settings.get_profile("fuzz"), phases=(Phase.generate,))
"""What happened to a live robot cannot be played again, and made smaller."""

far = st.sampled_from([-(10**9), -1000, -2, 2, 1000, 10**8]).map(lambda seconds: seconds * SECOND_NS)
texts = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=12)
no_number = st.sampled_from([math.nan, math.inf, -math.inf])


class Robot:
    """A simulated robot that holds, with a policy's sign of life beside it: any chunk that it took would move it."""

    def __init__(self, nodes: Any) -> None:
        self.nodes = nodes
        self.contract: RobotContract = nodes.robot
        self.names = tuple(c.name for c in self.contract.command.channels)
        self.end_effector = next(s for s in self.contract.sensors if s.name == "end_effector")
        self.applied = nodes.listen("applied_command", JointState, qos.STATUS)
        self.states = nodes.listen("environment_state", JointState, qos.SENSOR)  # where the hand is, too
        self.publishers = {
            "commands": nodes.publisher("commands", Float64MultiArray, qos.COMMAND, 3),
            "action_chunk": nodes.publisher("action_chunk", JointTrajectory, qos.CHUNK, 2),
            "heartbeat": nodes.publisher("heartbeat", Header, qos.HEARTBEAT, 2),
            "end_effector_pose": nodes.publisher("end_effector_pose", PoseStamped, qos.SENSOR, 2),
        }
        self.sent: Counter[tuple[str, bytes]] = Counter()
        self._running = True
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        self.settle()

    def _beat(self) -> None:
        loop = DeadlineLoop(80.0)
        while self._running:
            loop.wait()
            self.publishers["heartbeat"].publish(Header(stamp=to_stamp(time.time_ns())))

    def position(self) -> np.ndarray:
        return np.array(self.states[-1].position[:3])

    def settle(self) -> None:
        """Wait until the arm hangs still, as it does a moment after a reset."""
        self.applied.clear()
        self.nodes.wait(lambda: len(self.applied) > 10, "measurements")

        def still() -> bool:
            before = self.position()
            time.sleep(0.2)
            return bool(np.abs(self.position() - before).max() < STILL_M / 100)

        self.nodes.wait(still, "rest")
        self.home = self.position()
        self.applied.clear()

    def says(self, topic: str, message: Any) -> None:
        data = message if isinstance(message, bytes) else bytes(serialize_message(message))
        self.sent[f"/{self.contract.name}/{topic}", data] += 1
        self.publishers[topic].publish(data)

    def counts(self, name: str, kind: str, say: Callable[[], None]) -> None:
        """One message is refused, exactly once."""
        before = self.nodes.refused(name, kind)
        say()
        self.nodes.wait(lambda: self.nodes.refused(name, kind) > before, "a count")
        assert self.nodes.refused(name, kind) == before + 1

    def has_not_moved(self) -> None:
        """Not since it settled; asked of what was really applied and of where it is."""
        assert not self.nodes.deaths, self.nodes.deaths
        while self.applied:
            assert not np.any(self.applied.popleft().position[:3])
        assert self.states[-1].header.stamp.sec > time.time() - 5, "it does not measure any more"
        assert np.abs(self.position() - self.home).max() < STILL_M

    def obey_controller(self) -> None:
        """The fuzzer commands no more, and the controller takes charge: not before it knows that the other has left."""
        self.nodes.node.destroy_publisher(self.publishers.pop("commands"))

        def in_charge() -> bool:
            try:
                self.nodes.transition([CONTROLLER], "activate")
            except GraphError:
                return False
            return True

        self.nodes.wait(in_charge, "the controller's activation")

    def close(self) -> None:
        self._running = False
        self._thread.join()


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Any:
    return tmp_path_factory.mktemp("recording") / "bag"


@pytest.fixture(scope="module")
def still(live_nodes, robot, bag) -> Iterator[Robot]:
    """A Robot whose controller is not in charge yet, so that the fuzzer may command it, and that is recorded."""
    nodes = live_nodes(robot)
    nodes.start(BODY, {"robot": robot.name, "task": "drawer-open", "seed": 1})
    nodes.start(CONTROLLER, {"robot": robot.name})
    nodes.start(RECORDER, {"robot": robot.name, "bag": str(bag)})
    nodes.transition([BODY, CONTROLLER, RECORDER], "configure")
    nodes.transition([BODY, RECORDER], "activate")
    made = Robot(nodes)
    yield made
    made.close()


@pytest.fixture(scope="module")
def held(still) -> Robot:
    """The Robot with its controller in charge: it holds, for no chunk has come."""
    still.obey_controller()
    return still


# --- nonsense: each is right, and would move the robot, but for one thing


@st.composite
def bad_commands(draw: st.DrawFn, robot: Robot) -> Float64MultiArray:
    values, size = list(WOULD_MOVE), len(WOULD_MOVE)
    kind = draw(st.sampled_from(["number", "range", "size", "offset", "layout"]))
    at = draw(st.integers(0, size - 1))
    if kind == "number":
        values[at] = draw(no_number)
    elif kind == "range":
        limit = robot.contract.command.channels[at].max
        values[at] = draw(st.sampled_from([-1, 1])) * draw(st.floats(limit * 1.001, 1.7e308))
    elif kind == "size":
        values = draw(st.lists(st.floats(-0.5, 0.5), max_size=40).filter(lambda v: len(v) != size))
    message = Float64MultiArray(data=values)
    if kind == "offset":
        message.layout.data_offset = draw(st.integers(1, 2**32 - 1))
    elif kind == "layout":
        sizes = draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3).filter(lambda s: math.prod(s) != size))
        message.layout.dim = [MultiArrayDimension(label="channels", size=n, stride=n) for n in sizes]
    return message


def chunk_for_now(robot: Robot, ahead_ns: int = 0) -> JointTrajectory:
    """A chunk that moves the robot, for now or for another time."""
    stamp = min(time.time_ns() + ahead_ns, (2**31 - 1) * SECOND_NS)
    return chunk_message(ActionChunk(np.tile(WOULD_MOVE, (16, 1)), stamp, PERIOD_NS, robot.names), stamp)


def bad_chunk(draw: st.DrawFn, robot: Robot) -> JointTrajectory:
    kind = draw(st.sampled_from(["stamp", "number", "names", "twice", "missing", "positions", "period", "empty"]))
    chunk = chunk_for_now(robot, draw(far) if kind == "stamp" else 0)
    point = chunk.points[draw(st.integers(0, 15))]
    at = draw(st.integers(0, 3))
    if kind == "number":
        point.positions[at] = draw(no_number)
    elif kind == "names":
        chunk.joint_names[at] = draw(
            st.sampled_from(["", "elbow", "ee_velocity", "ee_velocity_x ", "\N{GREEK SMALL LETTER ALPHA}"])
        )
    elif kind == "twice":
        chunk.joint_names[at] = chunk.joint_names[(at + 1) % 4]
    elif kind == "missing":
        chunk.joint_names = chunk.joint_names[:at]
    elif kind == "positions":
        point.positions = array.array("d", [0.3] * draw(st.sampled_from([0, 1, 3, 5, 100])))
    elif kind == "period":
        off_ns = draw(st.sampled_from([-1, 1])) * draw(st.integers(2_000, PERIOD_NS - 1))
        due_ns = max(0, point.time_from_start.sec * SECOND_NS + point.time_from_start.nanosec + off_ns)
        if point is chunk.points[0]:
            due_ns = PERIOD_NS
        point.time_from_start.sec, point.time_from_start.nanosec = divmod(due_ns, SECOND_NS)
    elif kind == "empty":
        chunk.points = chunk.points[:0]
    return chunk


def bad_pose(draw: st.DrawFn, robot: Robot) -> Any:
    kind = draw(st.sampled_from(["stamp", "number", "frame"]))
    values = [0.0, 0.6, 0.2]
    if kind == "number":
        values[draw(st.integers(0, 2))] = draw(no_number)
    pose: Any = sensor_message(robot.end_effector, time.time_ns() + (draw(far) if kind == "stamp" else 0), values)
    if kind == "frame":
        pose.header.frame_id = draw(st.sampled_from(["", "world", "base "]))
    return pose


def bad_heartbeat(draw: st.DrawFn) -> Header:
    return Header(stamp=to_stamp(time.time_ns() + draw(far)))


def damaged(draw: st.DrawFn, message: Any) -> bytes:
    """A bad message's bytes, cut, replaced or with bits flipped."""
    whole = bytearray(serialize_message(message))
    kind = draw(st.sampled_from(["cut", "bytes", "flips"]))
    if kind == "cut":
        return bytes(whole[: draw(st.integers(0, len(whole) - 1))])
    if kind == "bytes":
        return bytes(whole[:4]) + draw(st.binary(max_size=60))
    for at in draw(st.lists(st.integers(12, len(whole) - 1), min_size=1, max_size=3)):
        whole[at] ^= 1 << draw(st.integers(0, 7))  # beyond the stamp
    return bytes(whole)


# --- what it does with them


@live
@given(data=st.data())
def test_a_bad_command_is_counted_and_moves_nothing(data, still) -> None:
    bad = data.draw(bad_commands(still))
    still.counts(BODY, "", lambda: still.says("commands", bad))
    still.has_not_moved()


@live
@given(data=st.data())
def test_damaged_commands_on_the_wire_move_nothing(data, still) -> None:
    """The middleware drops most of them; what it lets through is refused like any other nonsense."""
    still.says("commands", damaged(data.draw, Float64MultiArray(data=[math.nan] * 4)))
    assert still.nodes.refused(BODY) >= 0, "it answers"
    still.has_not_moved()


@live
@given(data=st.data())
def test_a_bad_chunk_is_counted_and_moves_nothing(data, held) -> None:
    held.counts(CONTROLLER, "chunk", lambda: held.says("action_chunk", bad_chunk(data.draw, held)))
    held.has_not_moved()


@live
@given(data=st.data())
def test_bad_measurements_and_signs_of_life_move_nothing(data, held) -> None:
    for _ in range(4):
        if data.draw(st.booleans()):
            held.says("heartbeat", bad_heartbeat(data.draw))
        else:
            held.says("end_effector_pose", bad_pose(data.draw, held))
    assert held.nodes.refused(CONTROLLER) >= 0, "it answers"
    held.has_not_moved()


@live
@given(data=st.data(), topic=st.sampled_from(["action_chunk", "heartbeat", "end_effector_pose"]))
def test_damaged_bytes_on_the_wire_move_nothing(data, topic, held) -> None:
    draw = data.draw
    bad = {
        "action_chunk": lambda: chunk_for_now(held, draw(far)),
        "heartbeat": lambda: bad_heartbeat(draw),
        "end_effector_pose": lambda: bad_pose(draw, held),
    }
    held.says(topic, damaged(draw, bad[topic]()))
    assert held.nodes.refused(BODY) >= 0, "it answers"
    assert held.nodes.refused(CONTROLLER) >= 0, "it answers"
    held.has_not_moved()


@live
@given(
    parameters=st.fixed_dictionaries({"seed": st.integers(-(2**63), -1)})
    | st.fixed_dictionaries({"seed": st.floats() | st.booleans() | st.just("1")})
    | st.fixed_dictionaries({"task": texts.filter(lambda text: text not in TASKS)})
)
def test_an_episode_that_cannot_be_is_refused_and_the_old_one_stays(parameters, held) -> None:
    try:
        held.nodes.client.set_parameters(BODY, parameters, 20.0)
        with pytest.raises(GraphError):
            held.nodes.client.trigger(BODY, "reset", 20.0)
    except GraphError as error:
        assert "refused" in str(error)
    finally:
        held.nodes.client.set_parameters(BODY, {"task": "drawer-open", "seed": 1}, 20.0)
    held.has_not_moved()


@pytest.mark.parametrize("topic", ["end_effector_pose", "heartbeat"])
def test_what_is_best_effort_is_counted_too(topic, held) -> None:
    """Some of it may be lost on the way: most is not."""
    kind = "heartbeat" if topic == "heartbeat" else "sensor"
    before = held.nodes.refused(CONTROLLER, kind)
    for _ in range(20):
        pose = sensor_message(held.end_effector, time.time_ns(), [math.nan] * 3)
        held.says(topic, Header() if topic == "heartbeat" else pose)
        time.sleep(0.02)
    held.nodes.wait(lambda: held.nodes.refused(CONTROLLER, kind) > before + 10, "counts")
    held.has_not_moved()


def test_a_right_chunk_still_moves_it(held) -> None:
    """Otherwise all of the above would prove nothing."""
    held.says("action_chunk", chunk_for_now(held))
    held.nodes.wait(lambda: any(np.any(m.position[:3]) for m in list(held.applied)), "motion")
    held.nodes.wait(lambda: np.abs(held.position() - held.home).max() > 100 * STILL_M, "motion")


def test_the_recording_has_all_of_it(held, bag) -> None:
    """Nothing is lost: what was refused can be looked at afterwards."""
    held.nodes.processes.stop([RECORDER], 10.0)
    sent: Counter[tuple[str, bytes]] = Counter()
    for (topic, data), times in held.sent.items():
        if topic.endswith(("/commands", "/action_chunk")) and len(data) >= 4:  # less is no message
            sent[topic, data + bytes(-len(data) % 4)] += times  # on the wire a message is padded
    recorded = Counter((m.topic, m.data) for m in BagReader(bag).raw())
    missing = sent - recorded
    assert sent
    assert not missing, f"{missing.total()} of {sent.total()}"
