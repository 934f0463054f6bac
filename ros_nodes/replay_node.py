"""Publishes a recorded episode again, on its topics, in real time or at a speed factor.

Stamps are moved to now, so that whoever listens finds the messages fresh. It never gets in the way of a live graph: a
topic that somebody else publishes is left to them. The command topic, and those on which a live policy is asked where
to go, are never published, because only the controller's safety filter may drive a robot. So beside a live body and
controller, only the policy's chunks remain: the replay stands in for the policy.

Who else publishes is looked at before every message, so it holds for what comes up later too. A message that leaves in
the moment in which the two sides find each other can still arrive, and who listens through a bridge is not seen.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile

from episodes.bag import BagError, BagReader, RecordedMessage
from episodes.samples import topic_name
from execution.deadline import sleep_until
from ros_nodes import qos
from ros_nodes.graph import Topic, absolute_namespace, recorded_topics
from ros_nodes.message_types import message_class
from ros_nodes.middleware import discovery_s, transport_environment
from ros_nodes.node_main import Executor, Stop, run_node

LOOK_UP_S = 0.1  # a request to stop is noticed within this
DRAIN_S = 0.2  # for the last messages to leave
STAMPED = {  # types that begin with a std_msgs/Header, so that the stamp lies at a fixed place
    "sensor_msgs/msg/JointState",
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/Imu",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/WrenchStamped",
    "trajectory_msgs/msg/JointTrajectory",
    "std_msgs/msg/Header",
    "diagnostic_msgs/msg/DiagnosticArray",
}
CHUNK_TOPIC = "action_chunk"
DRIVING = "a robot is driven through its controller only"


class ReplayNode(Node):
    """Plays one episode of a recording.

    Parameters:
        bag: a rosbag2 directory or an .mcap file.
        episode: its index in the recording.
        speed: 2.0 plays twice as fast.

    It publishes in its own namespace; in the root (`/`), in that of the recording. Absolute topics stay as they are.

    Raises:
        BagError: there is no such recording or episode, or it does not say which robot it is of.
        ValueError: the speed is not positive.
    """

    def __init__(self) -> None:
        super().__init__("replay_node")
        self.declare_parameter("bag", "")
        self.declare_parameter("episode", 0)
        self.declare_parameter("speed", 1.0)
        self.speed = float(self.get_parameter("speed").value)
        if not 0 < self.speed < float("inf"):
            raise ValueError(f"speed must be a positive number, not {self.speed}")
        self._reader = BagReader(Path(str(self.get_parameter("bag").value)))
        robot = self._reader.robot()
        if robot is None:
            raise BagError(f"{self._reader.path}: does not hold the robot's contract, so its topics are not known")
        self._episode = self._reader.episode(int(self.get_parameter("episode").value))
        namespace = self._episode.namespace if self.get_namespace() == "/" else self.get_namespace()
        topics = recorded_topics(robot, tuple(c.name for c in robot.cameras))
        self._here = {topic_name(self._episode.namespace, t.name): topic_name(namespace, t.name) for t in topics}
        self._profiles = {topic_name(namespace, topic.name): _profile(topic) for topic in topics}
        asked = [sensor.topic for sensor in robot.sensors if sensor.is_request]  # a live policy would follow them
        self._driving = {topic_name(namespace, topic) for topic in (robot.command.topic, *asked)}
        self._chunks = topic_name(namespace, CHUNK_TOPIC)
        self._topics: dict[str, Publisher] = {}  # by their names in the recording
        self.published = 0

    def close(self) -> None:
        """Nothing is held that must be let go."""

    def play(self, executor: Executor, stop: Stop) -> None:
        """Publish the episode, each message at its time; returns at the end or when `stop` is true."""
        self._advertise()
        until = time.monotonic() + discovery_s(os.environ)
        while not stop and (left := until - time.monotonic()) > 0:
            executor.spin_once(min(left, LOOK_UP_S))
        origin_ns, began_ns, began_wall_ns = self._episode.start_ns, time.monotonic_ns(), time.time_ns()
        for message in self._messages():
            publisher = self._topics.get(message.topic)
            if publisher is None:
                continue
            due_ns = began_ns + int((message.log_time_ns - origin_ns) / self.speed)
            while not stop and due_ns - time.monotonic_ns() > LOOK_UP_S * 1e9:
                executor.spin_once(LOOK_UP_S / 2)
            if stop:
                return
            sleep_until(due_ns)
            if why_not := self._why_not(publisher.topic_name):
                self._leave_out(message.topic, why_not)
                continue
            data = restamped(message, lambda ns: began_wall_ns + int((ns - origin_ns) / self.speed))
            publisher.publish(data)
            self.published += 1
        self.get_logger().info(f"published {self.published} messages of episode {self._episode.index}")
        executor.spin_once(DRAIN_S)
        stop()

    def _advertise(self) -> None:
        for topic, type_name in sorted({m.topic: m.type for m in self._messages()}.items()):
            here = self._here.get(topic, topic)
            if here in self._driving:  # not even announced: a live controller would take it for another commander
                self.get_logger().warning(f"{here} is left out: {DRIVING}")
                continue
            profile = self._profiles.get(here, qos.STATUS)
            self._topics[topic] = self.create_publisher(message_class(type_name), here, profile)

    def _leave_out(self, topic: str, why: str) -> None:
        """A topic that is not ours to publish, from now on."""
        publisher = self._topics.pop(topic)
        self.get_logger().warning(f"{publisher.topic_name} is left out: {why}")
        self.destroy_publisher(publisher)

    def _why_not(self, topic: str) -> str | None:
        """The reason to leave a topic alone; asks only what this process knows already (10 us)."""
        if self.count_publishers(topic) > 1:  # one is this node's
            return "somebody else publishes it"
        if topic == self._chunks and self.speed != 1.0 and self.count_subscribers(topic):
            return "a controller listens, and actions hold for their own speed only"
        return None

    def _messages(self) -> Iterator[RecordedMessage]:
        begin, end = self._episode.start_ns, self._episode.end_ns
        for message in self._reader.raw(files=self._episode.files):
            if begin <= message.log_time_ns <= end:
                yield message


def restamped(message: RecordedMessage, now_of: Callable[[int], int]) -> bytes:
    """The message's CDR bytes with its header stamp moved: `now_of(stamp ns) -> stamp ns`. Others stay as they are.

    Source of the layout: 4 bytes of encapsulation (OMG DDSI-RTPS 10.2; byte 1 odd is little endian), then
    builtin_interfaces/Time: int32 sec, uint32 nanosec.
    """
    if message.type not in STAMPED or len(message.data) < 12:
        return message.data
    layout = "<iI" if message.data[1] & 1 else ">iI"
    seconds, nanoseconds = struct.unpack_from(layout, message.data, 4)
    moved = struct.pack(layout, *divmod(now_of(seconds * 1_000_000_000 + nanoseconds), 1_000_000_000))
    return message.data[:4] + moved + message.data[12:]


def _profile(topic: Topic) -> QoSProfile:
    """A topic's quality of service, as the live graph has it."""
    return qos.LATCHED if topic.transient_local else qos.STATUS if topic.reliable else qos.SENSOR


def replay_topics(path: Path | str, episode: int = 0, speed: float = 1.0, namespace: str | None = None) -> int:
    """Publish an episode of a recording on its topics, in this process, until its end or Ctrl-C; returns 0.

    The ROS domain and transports are those of the environment, with the transports of `visuomotor run` by default. The
    namespace is the recording's if not given.

    Raises:
        BagError: there is no such recording or episode.
        ValueError: the speed is not positive, or the namespace is not valid.
    """
    if not 0 < speed < float("inf"):
        raise ValueError(f"speed must be a positive number, not {speed}")
    recorded = BagReader(Path(path)).episode(episode).namespace
    here = absolute_namespace(namespace) if namespace else recorded or "/"
    os.environ.update(transport_environment(os.environ, "SUBNET"))
    arguments = ["-p", f"bag:='{Path(path).resolve()}'", "-p", f"episode:={episode}", "-p", f"speed:={float(speed)}"]
    arguments += ["-r", f"__ns:={here}"]
    return run_node(ReplayNode, ["replay", "--ros-args", *arguments], spin=ReplayNode.play)


def main() -> int:
    """Play the episode that the parameters name."""
    return run_node(ReplayNode, spin=ReplayNode.play)


if __name__ == "__main__":
    sys.exit(main())
