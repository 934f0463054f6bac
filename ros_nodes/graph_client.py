"""The supervisor's ROS side: drives the nodes' lifecycle and services, and hears of success. Every wait has an end."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import Trigger

from contracts import RobotContract
from execution.controller import Mode
from ros_nodes import qos
from ros_nodes.conversions import command_from_message, command_message
from ros_nodes.graph import SUPERVISOR, absolute_namespace
from ros_nodes.middleware import discovery_s
from ros_nodes.monitor import Monitor

DISCOVERY_LOOK_S = 0.02  # a service's appearance gives no event in rclpy
ASK_AGAIN_S = 1.0  # when an answer to a question that may be asked twice does not come


class GraphError(RuntimeError):
    """A node did not answer in time or refused; says which, what it was asked and what it said."""

    def __init__(self, node: str, message: str) -> None:
        super().__init__(f"{node} {message}")
        self.node = node


class GraphClient:
    """Calls the nodes of one robot's graph. Calls are made from one thread; answers come in another.

    Args:
        robot: whose graph it is.
        environment: variables of the middleware, as the nodes have them.
        monitor: every wait sleeps there, so that a death or a signal ends it at once.
        namespace: the graph's; the robot's name if not given.

    Raises:
        ValueError: the namespace is not valid.
    """

    def __init__(
        self, robot: RobotContract, environment: Mapping[str, str], monitor: Monitor, namespace: str | None = None
    ) -> None:
        self._monitor = monitor
        self._robot = robot
        self._namespace = absolute_namespace(namespace or robot.name)
        self._context = Context()
        self.succeeded = False  # the body said so since this was last made False
        self.failed = False  # likewise: it said that the robot has not (or no longer) succeeded
        self.running = False  # the controller follows the policy
        self.stopped = False  # the controller has fallen back for good
        self.discovery_s = discovery_s(environment)  # after which nodes that are up have found each other
        with _environment(environment):  # read when the participant is made
            rclpy.init(
                context=self._context,
                domain_id=int(environment["ROS_DOMAIN_ID"]),
                signal_handler_options=SignalHandlerOptions.NO,
            )
            self._node = rclpy.create_node(SUPERVISOR, namespace=self._namespace, context=self._context)
        self._named: dict[str, Client] = {}
        self._connected: set[str] = set()  # paths of those whose answers are known to come back
        self._node.create_subscription(Bool, "success", self._on_success, qos.STATUS)
        self._node.create_subscription(String, "controller_state", self._on_controller_state, qos.LATCHED)
        self._episode_publisher = self._node.create_publisher(String, "episode", qos.LATCHED)
        self._last_command: bytes | None = None
        self._commands = self._node.create_publisher(Float64MultiArray, robot.command.topic, qos.COMMAND)
        self._node.create_subscription(Float64MultiArray, robot.command.topic, self._on_command, qos.COMMAND, raw=True)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._spinner = threading.Thread(target=self._executor.spin, name="supervisor spin", daemon=True)
        self._spinner.start()

    @property
    def node(self) -> Node:
        """The supervisor's own node, for those who publish something more."""
        return self._node

    def check_alone(self, names: Sequence[str]) -> None:
        """Refuse a namespace with nodes of these names, before any of ours is started.

        Each would be told what the other is told, and two controllers would command one robot.

        Raises:
            ValueError: naming them, and what helps.
        """
        self.wait_until(lambda: False, self.discovery_s)
        up = {name for name, namespace in self._node.get_node_names_and_namespaces() if namespace == self._namespace}
        if met := [f"{self._namespace}/{name}" for name in names if name in up]:
            raise ValueError(
                f"another graph is up in ROS domain {self._context.get_domain_id()}: {', '.join(met)}. End it first; of"
                " two robots, give one a namespace of its own (--namespace left; with ros2 launch, namespace:=left) or"
                " another ROS_DOMAIN_ID"
            )

    def wait_for_nodes(self, names: Sequence[str], timeout_s: float) -> None:
        """Wait until every node is up. Raises GraphError naming the first that is not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        for name in names:
            self._connect(self._client(name, "change_state", ChangeState), name, deadline - time.monotonic())

    def transition(self, names: Sequence[str], change: str, timeout_s: float) -> None:
        """Let several nodes make the same lifecycle transition (`configure`, `activate`, ...) at the same time.

        Raises:
            GraphError: the first that did not within `timeout_s`, or that refused.
        """
        request = ChangeState.Request(transition=Transition(label=change))
        calls = [(name, self._call(name, "change_state", ChangeState, request, timeout_s)) for name in names]
        for name, future in calls:
            if not self._result(name, change, future, timeout_s).success:
                raise GraphError(name, f"could not {change}")

    def begin_transition(self, name: str, change: str) -> Future | None:
        """Ask without waiting; None when the node is not there. For stopping a robot, when milliseconds count."""
        client = self._client(name, "change_state", ChangeState)
        if not client.service_is_ready():
            return None
        return self._send(client, ChangeState.Request(transition=Transition(label=change)))

    def wait_for(self, futures: Sequence[Future | None], timeout_s: float) -> bool:
        """Wait until all are answered; False when `timeout_s` passes first."""
        return self._monitor.wait(lambda: all(f is None or f.done() for f in futures), timeout_s)

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for something that an answer or a message brings about; False when `timeout_s` passes first."""
        return self._monitor.wait(ready, timeout_s)

    def trigger(self, name: str, service: str, timeout_s: float) -> str:
        """Call `<node>/<service>` (std_srvs/Trigger) and return its message.

        Raises:
            GraphError: no answer in time, or success was false.
        """
        future = self._call(name, service, Trigger, Trigger.Request(), timeout_s)
        answer = self._result(name, service, future, timeout_s)
        if not answer.success:
            raise GraphError(name, f"could not {service.replace('_', ' ')}: {answer.message}")
        return str(answer.message)

    def set_parameters(self, name: str, values: Mapping[str, Any], timeout_s: float) -> None:
        """Set parameters of a node.

        Raises:
            GraphError: no answer in time, or one was refused.
        """
        parameters = [Parameter(key, value=value).to_parameter_msg() for key, value in values.items()]
        request = SetParameters.Request(parameters=parameters)
        future = self._call(name, "set_parameters", SetParameters, request, timeout_s)
        for key, result in zip(values, self._result(name, "set_parameters", future, timeout_s).results, strict=True):
            if not result.successful:
                raise GraphError(name, f"refused {key} = {values[key]!r}: {result.reason}")

    def send_hold(self) -> None:
        """Send the robot its hold, once, in place of a controller that died: many robots obey the last command forever.

        A velocity becomes zero; what is held at its last or measured value stays as it was commanded last.
        """
        zero = [channel.hold == "zero" for channel in self._robot.command.channels]
        if self._last_command is None or not any(zero):  # said again, it would only be obeyed for longer
            return
        command = command_from_message(deserialize_message(self._last_command, Float64MultiArray), self._robot)
        self._commands.publish(command_message(np.where(zero, 0.0, command), self._robot))

    def announce_episode(self, name: str, instruction: str, seed: int, episode: int, observation_set: str) -> None:
        """Publish what the recording must know of an episode, where no simulated body does.

        Args:
            name: of the task.
            instruction: that in words.
            seed, episode: numbers of the episode, in its task and in the recording.
            observation_set: what the policy sees.
        """
        said = {"robot": self._robot.name, "task": instruction, "task_name": name, "seed": seed, "episode": episode}
        self._episode_publisher.publish(String(data=json.dumps(said | {"observation_set": observation_set})))

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._spinner.join(timeout=5.0)  # before the context ends: while a thread still waits in it, that can hang
        self._node.destroy_node()
        self._context.try_shutdown()

    def _client(self, name: str, service: str, kind: Any) -> Client:
        path = f"{self._namespace}/{name}/{service}"
        if path not in self._named:
            self._named[path] = self._node.create_client(kind, path)
        return self._named[path]

    def _call(self, name: str, service: str, kind: Any, request: Any, timeout_s: float) -> Future:
        client = self._client(name, service, kind)
        self._connect(client, name, timeout_s)
        return self._send(client, request)

    def _connect(self, client: Client, name: str, timeout_s: float) -> None:
        """Wait until a node hears this client, and its answers come back."""
        deadline = time.monotonic() + timeout_s
        while not client.service_is_ready():
            self._connected.discard(client.srv_name)
            if time.monotonic() > deadline:
                raise GraphError(name, f"does not offer {client.srv_name} within {timeout_s:.1f} s")
            self._monitor.wait(client.service_is_ready, DISCOVERY_LOOK_S)
        if client.srv_name not in self._connected:
            self._wait_for_answers(name, timeout_s, deadline)
            self._connected.add(client.srv_name)

    def _wait_for_answers(self, name: str, timeout_s: float, deadline: float) -> None:
        """Ask a node for its state, again and again, until it answers.

        A service is "ready" once this side has found the other. The other may have found us for questions and not yet
        for answers, and then Fast DDS drops the answer after 100 ms (rmw_fastrtps #842), with which a `configure` that
        was made would seem to hang. A node finds a client's parts in the order in which they were made: if it can
        answer one made now, then all that were made before.
        """
        client: Client = self._node.create_client(GetState, f"{self._namespace}/{name}/get_state")
        try:
            answers: list[Future] = []
            while not any(answer.done() for answer in answers):
                if time.monotonic() > deadline:
                    raise GraphError(name, f"did not say its state within {timeout_s:.1f} s")
                answers.append(self._send(client, GetState.Request()))
                within = min(ASK_AGAIN_S, max(0.0, deadline - time.monotonic()))
                self._monitor.wait(lambda: any(answer.done() for answer in answers), within)
        finally:
            self._node.destroy_client(client)

    def _send(self, client: Client, request: Any) -> Future:
        future = client.call_async(request)
        future.add_done_callback(lambda _: self._monitor.wake())
        return future

    def _result(self, name: str, what: str, future: Future, timeout_s: float) -> Any:
        if not self._monitor.wait(future.done, timeout_s):
            raise GraphError(name, f"did not answer {what} within {timeout_s:g} s")
        return future.result()

    def _on_success(self, message: Bool) -> None:
        if message.data:
            self.succeeded = True
        else:
            self.failed = True
        self._monitor.wake()

    def _on_controller_state(self, message: String) -> None:
        self.running = message.data == Mode.RUN
        self.stopped = message.data == Mode.STOPPED
        self._monitor.wake()

    def _on_command(self, message: bytes) -> None:
        self._last_command = message  # decoded only when it is needed


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables set for a moment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
