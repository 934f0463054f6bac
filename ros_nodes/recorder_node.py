"""Records a robot's whole graph: raw messages as they come, one MCAP file an episode, in a rosbag2 directory.

A disk that is full or fails ends the recording, never the robot: it is said in /diagnostics and by `~/statistics`.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_srvs.srv import Trigger

from contracts import load_robot
from episodes.bag import EPISODE_TOPIC, BagError, BagWriter
from episodes.bag import Topic as BagTopic
from episodes.messages import message_definition, qos_yaml
from ros_nodes import qos
from ros_nodes.graph import Topic, recorded_topics
from ros_nodes.managed_node import ManagedNode, RefusedTransition
from ros_nodes.message_types import message_class
from ros_nodes.node_main import WAIT_S, Executor, Stop, run_node

DIAGNOSTICS_PERIOD_S = 1.0
GATHER_S = 0.003


class RecorderNode(ManagedNode):
    """Writes every topic of the graph from activation on; deactivated, it pauses.

    Parameters:
        robot: name or path of the robot's contract.
        bag: directory of the recording; must not exist, or be empty. Read at the activation that begins it.
        cameras: the cameras to be recorded.

    A new file begins with each `episode` message. The service `~/statistics` gives, as JSON, messages by topic, bytes
    and the error that ended the recording, if one did.
    """

    def __init__(self) -> None:
        super().__init__("recorder_node")
        self.declare_parameter("robot", "metaworld_sawyer")
        self.declare_parameter("bag", "")
        self.declare_parameter("cameras", [""])
        self._writer: BagWriter | None = None
        self._error: str | None = None
        self._running = False
        self._episode_in_file = False
        self._latched: dict[str, tuple[bytes, int, bool]] = {}
        self._counts: Counter[str] = Counter()
        self._bytes = 0

    # -- lifecycle ---------------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Subscribe to everything; nothing is written yet."""
        self._robot = load_robot(str(self.get_parameter("robot").value))
        cameras = tuple(name for name in self.get_parameter("cameras").value if name)
        topics = recorded_topics(self._robot, cameras)
        # Of what arrived together, callbacks run in this order: an episode's announcement before its measurements.
        self._topics = sorted(topics, key=lambda topic: not topic.transient_local)
        self._names = {topic: self.resolve_topic_name(topic.name) for topic in self._topics}
        for topic in self._topics:
            kind, callback = message_class(topic.type), self._callback(topic)
            if topic.transient_local:
                self._listen(kind, topic.name, callback, qos.LATCHED, raw=True)
            # Whoever keeps nothing for those who come later (an ordinary publisher of `episode`) is not heard by that.
            self._listen(kind, topic.name, callback, qos.RECORDER, raw=True)
        self._diagnostics = self._advertise(DiagnosticArray, "/diagnostics", qos.STATUS)
        self._every(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)
        self._offer("~/statistics", self._on_statistics)

    def activate(self) -> None:
        """Begin the recording, or go on with it; one that an error has ended is begun anew, in another `bag`."""
        if self._writer is None or self._error is not None:
            self._open()
        self._running = True
        for name, (data, sent_ns, begins_episode) in self._latched.items():
            self._write(name, data, sent_ns, begins_episode)
        if self._error is not None:
            raise RefusedTransition(self._error)

    def deactivate(self) -> None:
        """Pause; what was recorded is safe on the disk."""
        self._running = False
        self.flush()

    def close(self) -> None:
        """Complete the recording and listen no more."""
        self._running = False
        self._guarded(lambda writer: writer.close())
        self._writer = None
        self._disconnect()

    def flush(self) -> None:
        """Bring what was taken so far onto the disk; the writer does so by itself only while messages come."""
        self._guarded(lambda writer: writer.flush())

    # -- recording ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Begin a recording. Raises BagError or OSError, which the diagnostics tell too."""
        bag = str(self.get_parameter("bag").value)
        try:
            if not bag:
                raise BagError("the parameter bag must name the directory of the recording")
            topics = [BagTopic(self._names[t], t.type, message_definition(t.type), _qos_text(t)) for t in self._topics]
            self._writer = BagWriter(Path(bag), topics, self._robot)
        except (BagError, OSError) as error:
            self._error = str(error)
            raise
        self._error, self._episode_in_file = None, False

    def _callback(self, topic: Topic) -> Callable[[bytes, Any], None]:
        """What is done with each raw message of a topic."""
        name = self._names[topic]
        if topic.transient_local:
            return functools.partial(self._on_latched, name, topic.name == EPISODE_TOPIC)
        return functools.partial(self._on_message, name)

    def _on_message(self, name: str, data: bytes, info: Any) -> None:
        if self._running:
            self._write(name, data, info["source_timestamp"])

    def _on_latched(self, name: str, begins_episode: bool, data: bytes, info: Any) -> None:
        latest = data, info["source_timestamp"], begins_episode
        if self._latched.get(name) == latest:
            return  # both subscriptions have heard it
        self._latched[name] = latest
        if self._running:
            self._write(name, data, info["source_timestamp"], begins_episode)

    def _write(self, name: str, data: bytes, sent_ns: int, begins_episode: bool = False) -> None:
        if begins_episode:
            if self._episode_in_file:
                self._guarded(lambda writer: writer.split())
            self._episode_in_file = True
        now_ns = time.time_ns()
        if self._guarded(lambda writer: writer.write(name, data, now_ns, sent_ns or now_ns)):
            self._counts[name] += 1
            self._bytes += len(data)

    def _guarded(self, work: Callable[[BagWriter], None]) -> bool:
        """Do something with the writer; the first error ends the recording and nothing else."""
        if self._writer is None or self._error is not None:
            return False
        try:
            work(self._writer)
        except (BagError, OSError) as error:
            self._fail(str(error))
            return False
        return True

    def _fail(self, error: str) -> None:
        self._error = error
        self.get_logger().error(f"the recording has ended: {error}")

    # -- statistics and diagnostics ----------------------------------------------------------------------------------

    def _on_statistics(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        figures = {"messages": dict(self._counts), "bytes": self._bytes, "error": self._error}
        response.success, response.message = True, json.dumps(figures)
        return response

    def _publish_diagnostics(self) -> None:
        status = DiagnosticStatus(name=self.get_fully_qualified_name(), hardware_id=self.get_namespace())
        status.level = DiagnosticStatus.OK if self._error is None else DiagnosticStatus.ERROR
        status.message = self._error or ("recording" if self._running else "paused")
        status.values = [
            KeyValue(key="messages", value=str(self._counts.total())),
            KeyValue(key="bytes", value=str(self._bytes)),
        ]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def _qos_text(topic: Topic) -> str:
    """The topic's quality of service as the recording keeps it."""
    return qos_yaml(
        "reliable" if topic.reliable else "best_effort", "transient_local" if topic.transient_local else "volatile", 10
    )


def spin_in_batches(node: RecorderNode, executor: Executor, stop: Stop) -> None:
    """Let the messages of one control period gather, and take them together: a wait costs more than a message."""
    while not stop:
        began = time.monotonic()
        executor.spin_once(WAIT_S)
        waited = time.monotonic() - began
        if waited >= WAIT_S:
            node.flush()
        elif waited > GATHER_S / 2:
            time.sleep(GATHER_S)


def main() -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(RecorderNode, spin=spin_in_batches)


if __name__ == "__main__":
    sys.exit(main())
