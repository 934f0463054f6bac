"""How many bad inputs there are, and what the fuzz tests share: a robot, damage to files, a real bundle.

`make test` runs a few hundred of them, the same ones each time; `make fuzz` 10,000, new ones each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from contracts import RobotContract, load_robot

HERE = Path(__file__).parent
SHARES = sum(file.read_text().count("\n@given(") for file in HERE.glob("test_*.py"))  # tests that divide the examples
FEW = 400

total = int(os.environ.get("VISUOMOTOR_FUZZ_EXAMPLES", FEW))
settings.register_profile(
    "fuzz",
    max_examples=-(-total // SHARES),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=total <= FEW,
    print_blob=True,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is a fuzz test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.fuzz)


# --- damage

Apply = Callable[[bytes, list[bytes]], bytes | None]  # a file's content, those of all files -> its new content, or None


@st.composite
def _at(draw: st.DrawFn, length: int) -> int:
    """A place in a file; headers at the front and indices at the end matter most."""
    low, high = 0, max(0, length - 1)
    near = st.one_of(st.integers(low, min(high, 64)), st.integers(max(low, high - 200), high))
    return draw(st.one_of(st.integers(low, high), near))


def _spoiled(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes | None:
    """One kind of damage to one file; None: the file is gone."""
    kinds = ["cut", "flip", "overwrite", "zeros", "insert", "drop", "append", "garbage", "empty", "delete", "swap"]
    kind = draw(st.sampled_from(kinds))
    at, span = draw(_at(len(content))), draw(st.integers(1, 64))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        spoiled = bytearray(content)
        if spoiled:
            spoiled[at] ^= 1 << draw(st.integers(0, 7))
        return bytes(spoiled)
    if kind == "overwrite":
        return content[:at] + draw(st.binary(min_size=1, max_size=16)) + content[at + 16 :]
    if kind == "zeros":
        return content[:at] + bytes(span) + content[at + span :]
    if kind == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=16)) + content[at:]
    if kind == "drop":
        return content[:at] + content[at + span :]
    if kind == "append":
        return content + draw(st.binary(min_size=1, max_size=16))
    if kind == "garbage":
        return draw(st.binary(max_size=300))
    if kind == "empty":
        return b""
    return None if kind == "delete" else draw(st.sampled_from(others))


def _damage_files(draw: st.DrawFn, directory: Path, files: list[Path] | None = None) -> set[Path]:
    """Damage one file of a directory, seldom two; returns those whose content is not what it was."""
    files = sorted(p for p in directory.rglob("*") if p.is_file()) if files is None else files
    touched = set()
    before = {file: file.read_bytes() for file in files}
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        file = draw(st.sampled_from([file for file in files if file.exists()] or files))
        content = _spoiled(draw, before[file], list(before.values()))
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(content)
        touched.add(file)
    return {file for file in touched if not file.exists() or file.read_bytes() != before[file]}


@pytest.fixture(scope="session")
def damage_files() -> Callable[..., set[Path]]:
    """damage_files(draw, directory, files=None) damages one or two files and returns which."""
    return _damage_files


@contextmanager
def _copied(template: Path, work: Path) -> Iterator[Path]:
    """A copy to be damaged, gone afterwards; times of change are kept."""
    target = work / "copy" / template.name
    shutil.rmtree(target.parent, ignore_errors=True)
    try:
        yield Path(shutil.copytree(template, target))
    finally:
        shutil.rmtree(target.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def copied() -> Callable[..., Any]:
    """`with copied(template, work) as copy`: a directory of one's own."""
    return _copied


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """digests(directory) -> what every file in it holds, to see whether any was changed."""

    def of(directory: Path) -> dict[str, str]:
        files = [path for path in directory.rglob("*") if path.is_file()]
        return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return of


# --- what is damaged


@pytest.fixture(scope="session")
def robot() -> RobotContract:
    return load_robot("metaworld_sawyer")


@pytest.fixture(scope="session")
def small_robot(robot: RobotContract) -> RobotContract:
    """The same robot with a camera of 8 x 8 pixels, and one number as its state."""
    data = robot.to_dict()
    data["cameras"][0].update(height=8, width=8)
    data["observation_sets"]["state"]["observation.state"] = ["gripper_opening"]
    return RobotContract.from_dict(data)


SMALL: dict[str, dict[str, Any]] = {
    "diffusion": {"timestep_dim": 4, "inference_steps": 5},
    "streaming": {"horizon": 4, "level_dim": 4, "noise_levels": 8, "reset_evaluations": 2},
}


@pytest.fixture(scope="session", params=SMALL)
def bundle(request: pytest.FixtureRequest, robot: RobotContract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle of a small image policy that was never trained."""
    import torch

    from policies.base import make_contract
    from policies.export import export
    from policies.registry import policy_type
    from tests.checkpoints import write_checkpoint

    kind = policy_type(request.param)
    config = kind.config_type.from_dict(
        {"widths": [8], "kernel_size": 3, "image_width": 8, "keypoints": 2, "state_history": 1} | SMALL[request.param]
    )
    contract = make_contract(kind.family, config, robot, "image", "open the drawer")
    torch.manual_seed(0)
    policy = kind(config, contract)
    reach = {"min": [-0.3] * 4, "max": [0.3] * 4}
    policy.fit_normalization({"observation.state": {"min": [-1.0] * 4, "max": [1.0] * 4}, "action": reach})
    checkpoint = write_checkpoint(policy, robot, tmp_path_factory.mktemp("checkpoint"))
    return export(checkpoint, tmp_path_factory.mktemp("bundles") / "untrained")


# --- live nodes


@pytest.fixture(scope="module")
def middleware(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables of a ROS domain that nobody else is in; set for this process too while the module's tests run."""
    from ros_nodes.middleware import free_domain_id, middleware_environment

    logs = str(tmp_path_factory.mktemp("log"))
    variables = middleware_environment(free_domain_id(), {}) | {"ROS_LOG_DIR": logs}
    before = dict(os.environ)
    os.environ.update(variables)
    yield variables
    os.environ.clear()
    os.environ.update(before)


class LiveNodes:
    """Real nodes, each in its process, a client that drives them, and a ROS node of the test's own."""

    def __init__(self, robot: RobotContract, directory: Path, middleware: dict[str, str]) -> None:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from ros_nodes.graph_client import GraphClient
        from ros_nodes.monitor import Monitor
        from ros_nodes.processes import NodeProcesses

        self.robot = robot
        self.deaths: list[str] = []
        self.names: list[str] = []
        self.processes = NodeProcesses(directory, dict(os.environ), self._on_death)
        self.client = GraphClient(robot, middleware, Monitor())
        self._context = Context()
        domain = int(middleware["ROS_DOMAIN_ID"])
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("fuzzer", namespace="/" + robot.name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def _on_death(self, name: str, how: str) -> None:
        self.deaths.append(f"{name}: {how}\n{self.processes.log_tail(name)}")

    def start(self, name: str, parameters: dict[str, Any]) -> None:
        """Start the node of that name; `transition` configures it."""
        from ros_nodes.graph import THREADS, NodeProcess

        self.processes.start(NodeProcess(name, f"ros_nodes.{name}", "/" + self.robot.name, parameters, THREADS))
        self.names.append(name)

    def transition(self, names: list[str], change: str) -> None:
        self.client.transition(names, change, 60.0)

    def listen(self, topic: str, kind: type, profile: Any) -> deque[Any]:
        """The latest messages of a topic, newest last."""
        heard: deque[Any] = deque(maxlen=1000)
        self.node.create_subscription(kind, topic, lambda message: heard.append(message), profile)
        return heard

    def publisher(self, topic: str, kind: type, profile: Any, listeners: int) -> Any:
        """A publisher that `listeners` subscriptions are connected to."""
        publisher: Any = self.node.create_publisher(kind, topic, profile)
        self.wait(lambda: publisher.get_subscription_count() >= listeners, f"{listeners} listeners on {topic}")
        return publisher

    def wait(self, ready: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            assert not self.deaths, self.deaths
            assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
            time.sleep(0.001)

    def refused(self, name: str, kind: str = "") -> int:
        """How many messages a node has refused so far; of the controller and the policy: only those of a kind."""
        assert not self.deaths, self.deaths
        figures = json.loads(self.client.trigger(name, "statistics", 20.0))
        counters = {f"refused.{k}": n for k, n in figures.get("refused", {}).items()} | figures.get("counters", {})
        return sum(n for reason, n in counters.items() if reason.startswith(f"refused.{kind}"))

    def close(self) -> None:
        self.processes.stop(self.names, 5.0)
        self.client.close()
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(timeout=5.0)  # before the context ends: while a thread still waits in it, that can hang
        self.node.destroy_node()
        self._context.try_shutdown()


@pytest.fixture(scope="module")
def live_nodes(middleware: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """live_nodes(robot) -> LiveNodes in the robot's namespace, ended with the module or when the next ones are made.

    Two nodes of one name would both answer, now this one and now that.
    """
    made: list[LiveNodes] = []

    def make(robot: RobotContract) -> LiveNodes:
        while made:
            made.pop().close()
        made.append(LiveNodes(robot, tmp_path_factory.mktemp("nodes"), middleware))
        return made[-1]

    yield make
    for nodes in made:
        nodes.close()
