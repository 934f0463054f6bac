"""What the tests of ROS nodes share: a domain of their own, real processes, a listener, and a small real policy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts import RobotContract, load_robot
from ros_nodes.graph import NodeProcess
from ros_nodes.graph_client import GraphClient
from ros_nodes.middleware import free_domain_id, middleware_environment
from ros_nodes.monitor import Monitor, NodeDied
from ros_nodes.processes import NodeProcesses
from tests.ros_nodes.peers import Peer

START_S = 60.0
ANSWER_S = 10.0


@pytest.fixture(scope="session")
def robot() -> RobotContract:
    return load_robot("metaworld_sawyer")


@pytest.fixture(scope="module")
def middleware(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Variables of a domain that nobody else is in; set for this process too while the module's tests run."""
    variables = middleware_environment(free_domain_id(), {}) | {"ROS_LOG_DIR": str(tmp_path_factory.mktemp("log"))}
    before = dict(os.environ)
    os.environ.update(variables)
    yield variables
    os.environ.clear()
    os.environ.update(before)


class Graph:
    """Some real nodes, each in its process, and a client that drives them."""

    def __init__(
        self, robot: RobotContract, directory: Path, middleware: dict[str, str], namespace: str | None = None
    ) -> None:
        self.monitor = Monitor()
        self.processes = NodeProcesses(directory, dict(os.environ) | middleware, self._on_death)
        self._robot, self._middleware, self._namespace = robot, middleware, namespace
        self.client: GraphClient = None  # type: ignore[assignment] # until start
        self.names: list[str] = []

    def _on_death(self, name: str, how: str) -> None:
        self.monitor.interrupt(NodeDied(name, f"{how}\n{self.processes.log_tail(name)}"))

    def start(self, *nodes: NodeProcess) -> GraphClient:
        self._stop()  # what a setup left that failed and is tried again
        for node in nodes:
            self.processes.start(node)
        self.names = [node.name for node in nodes]
        self.client = GraphClient(self._robot, self._middleware, self.monitor, self._namespace)
        self.client.transition(self.names, "configure", START_S)
        return self.client

    def close(self) -> None:
        self.monitor.finish()
        self._stop()

    def _stop(self) -> None:
        self.processes.stop(self.names, 5.0)
        if self.client is not None:
            self.client.close()
            self.client = None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def graph(robot, middleware, tmp_path_factory):
    """A Graph of this module, ended with it."""
    graph = Graph(robot, tmp_path_factory.mktemp("nodes"), middleware)
    yield graph
    graph.close()


@pytest.fixture
def new_graph(robot, middleware, tmp_path):
    """new_graph(namespace) gives a Graph; all are ended with the test."""
    made: list[Graph] = []

    def make(namespace: str | None = None) -> Graph:
        made.append(Graph(robot, tmp_path / f"nodes{len(made)}", middleware, namespace))
        return made[-1]

    yield make
    for graph in made:
        graph.close()


@pytest.fixture
def peer(robot, middleware):
    """A Peer of this test."""
    peer = Peer(robot, middleware)
    yield peer
    peer.close()


def _wait_for(ready, timeout_s: float = 10.0, what: str = "it") -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def wait_for():
    """wait_for(ready, timeout_s, what): sleep until `ready()`, or fail."""
    return _wait_for


@pytest.fixture(scope="session")
def bundle(robot, tmp_path_factory) -> Path:
    """A real bundle whose small network was never trained: it moves the arm about, within 0.3 m/s."""
    return _export_untrained(robot, "open the drawer", tmp_path_factory)


@pytest.fixture(scope="session")
def two_task_bundle(robot, tmp_path_factory) -> Path:
    """The same for `push` and `reach`, which it must be told apart."""
    return _export_untrained(robot, "push the puck to the goal\nmove the gripper to the goal", tmp_path_factory)


def _export_untrained(robot: RobotContract, task: str, tmp_path_factory) -> Path:
    import torch

    from policies.base import make_contract
    from policies.diffusion.config import DiffusionConfig
    from policies.diffusion.policy import DiffusionPolicy
    from policies.export import export
    from tests.checkpoints import write_checkpoint

    config = DiffusionConfig(widths=(16, 32), timestep_dim=16, inference_steps=5)
    contract = make_contract("diffusion", config, robot, "state", task)
    torch.manual_seed(0)
    policy = DiffusionPolicy(config, contract)
    size = contract.observations[0].feature.shape[0]
    reach = {"min": [-0.3] * 4, "max": [0.3] * 4}
    policy.fit_normalization({"observation.state": {"min": [-1.0] * size, "max": [1.0] * size}, "action": reach})
    checkpoint = write_checkpoint(policy, robot, tmp_path_factory.mktemp("checkpoint"))
    return export(checkpoint, tmp_path_factory.mktemp("bundles") / "untrained")
