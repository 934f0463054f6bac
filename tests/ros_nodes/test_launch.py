"""The launch files start what `ros_nodes.graph` describes.

ROS 2's `launch` is not on PyPI, so the few classes of it that the files use stand in here; everything behind them is
the project's own.
"""

from __future__ import annotations

import runpy
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from contracts import ContractMismatch
from policies.runtime.bundle import read_bundle
from ros_nodes import graph_client
from ros_nodes.graph import CONTROLLER, POLICY, RECORDER, describe_graph
from tests.ros_nodes.peers import Peer

LAUNCH = Path(__file__).parents[2] / "launch"


class Recorded:
    """A launch class: keeps what it was made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def stand_in(name: str) -> type[Recorded]:
    return type(name, (Recorded,), {})


@dataclass
class Context:
    """launch.LaunchContext, as far as arguments go."""

    launch_configurations: dict[str, str] = field(default_factory=dict)


class LaunchConfiguration(Recorded):
    def perform(self, context: Context) -> str:
        return context.launch_configurations[self.args[0]]


@pytest.fixture
def launch_that_looks(monkeypatch):
    """load(file name) -> the launch file's functions."""
    modules = {
        "launch": ("LaunchDescription", "LaunchDescriptionEntity"),
        "launch.actions": (
            "DeclareLaunchArgument", "EmitEvent", "OpaqueFunction", "RegisterEventHandler", "SetEnvironmentVariable",
            "Shutdown",
        ),
        "launch.events": (),
        "launch.substitutions": (),
        "launch_ros": (),
        "launch_ros.actions": ("LifecycleNode", "Node"),
        "launch_ros.event_handlers": ("OnStateTransition",),
        "launch_ros.events": (),
        "launch_ros.events.lifecycle": ("ChangeState",),
    }  # fmt: skip
    for name, classes in modules.items():
        module = types.ModuleType(name)
        for class_name in classes:
            setattr(module, class_name, stand_in(class_name))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["launch"], "LaunchContext", Context, raising=False)
    monkeypatch.setattr(sys.modules["launch.events"], "matches_action", lambda a: ("matches", a), raising=False)
    monkeypatch.setattr(sys.modules["launch.substitutions"], "LaunchConfiguration", LaunchConfiguration, raising=False)
    return lambda name: runpy.run_path(str(LAUNCH / name))


@pytest.fixture
def launch(launch_that_looks, monkeypatch):
    """The same, without the look for others, which takes a moment and would be in the user's own ROS domain."""
    for name in ("__init__", "check_alone", "close"):
        monkeypatch.setattr(graph_client.GraphClient, name, lambda *_: None)
    return launch_that_looks


def started(functions: dict[str, Any], given: dict[str, str]) -> list[Recorded]:
    """What `ros2 launch` would do, with the file's defaults and `given`."""
    (entities,) = functions["generate_launch_description"]().args
    defaults = {e.args[0]: e.kwargs["default_value"] for e in entities if type(e).__name__ == "DeclareLaunchArgument"}
    assert set(given) <= set(defaults)
    assert all(value is not None for name, value in (defaults | given).items()), "an argument without a value"
    context = Context({name: str(value) for name, value in (defaults | given).items()})
    (function,) = (e.kwargs["function"] for e in entities if type(e).__name__ == "OpaqueFunction")
    return function(context)


def of_type(entities: list[Recorded], name: str) -> list[Recorded]:
    return [e for e in entities if type(e).__name__ == name]


def test_it_is_the_graph_of_visuomotor_run(launch, robot, bundle, tmp_path):
    given = {"policy": str(bundle), "output": str(tmp_path), "task": "push", "seed": "7", "cameras": "corner2"}
    nodes = of_type(started(launch("visuomotor.launch.py"), given), "LifecycleNode")
    policy = read_bundle(bundle).contract
    wanted = describe_graph(
        robot,
        policy,
        robot_source=robot.name,
        bundle=bundle,
        task="push",
        seed=7,
        bag=tmp_path / "bag",
        cameras=("corner2",),
        instruction="push the puck to the goal",
    )
    assert [n.kwargs["executable"] for n in nodes] == [w.name for w in wanted]
    for node, description in zip(nodes, wanted, strict=True):
        assert (node.kwargs["package"], node.kwargs["namespace"]) == ("visuomotor", "/metaworld_sawyer")
        assert node.kwargs["parameters"] == [{k: v for k, v in description.parameters.items() if v != []}]
        assert node.kwargs["additional_env"] == description.env
        assert type(node.kwargs["on_exit"][0]).__name__ == "Shutdown"


@pytest.mark.parametrize("namespace", ["left", "/left"])
def test_the_namespace_of_the_nodes_can_be_chosen(launch, bundle, tmp_path, namespace):
    given = {"policy": str(bundle), "output": str(tmp_path), "namespace": namespace}
    nodes = of_type(started(launch("visuomotor.launch.py"), given), "LifecycleNode")
    assert nodes
    assert {node.kwargs["namespace"] for node in nodes} == {"/left"}
    (node,) = started(launch("replay.launch.py"), {"bag": "/recorded/bag", "namespace": namespace})
    assert node.kwargs["namespace"] == "/left"


def test_a_name_that_is_none_is_refused(launch, bundle, tmp_path):
    for file, given in (
        ("visuomotor.launch.py", {"policy": str(bundle), "output": str(tmp_path)}),
        ("replay.launch.py", {"bag": "b"}),
    ):
        with pytest.raises(ValueError, match=r"'2nd' is no namespace of a robot.* such as left"):
            started(launch(file), given | {"namespace": "2nd"})


def test_with_the_time_of_a_simulator_every_node_is_told_of_it(launch, bundle, tmp_path):
    given = {"policy": str(bundle), "output": str(tmp_path), "use_sim_time": "true"}
    nodes = of_type(started(launch("visuomotor.launch.py"), given), "LifecycleNode")
    assert nodes
    assert all(node.kwargs["parameters"][0]["use_sim_time"] is True for node in nodes)


@pytest.mark.parametrize(
    ("body", "activate", "waiting"),
    [
        ("metaworld", "", set()),
        ("metaworld", "false", {CONTROLLER, POLICY}),
        ("external", "", {CONTROLLER, POLICY}),  # a real robot does not move because its nodes were started
        ("external", "true", set()),
    ],
)
def test_all_are_configured_and_those_wanted_activated(launch, robot, bundle, tmp_path, body, activate, waiting):
    contract = tmp_path / "robot.yaml"
    contract.write_text(yaml.safe_dump(msgspec.structs.replace(robot, body=body).to_dict()))
    given = {"robot": str(contract), "policy": str(bundle), "output": str(tmp_path), "activate": activate}
    entities = started(launch("visuomotor.launch.py"), given)
    names = {n.kwargs["name"] for n in of_type(entities, "LifecycleNode")}
    events = [e.kwargs["event"].kwargs for e in of_type(entities, "EmitEvent")]
    configured = {event["lifecycle_node_matcher"][1].kwargs["name"] for event in events}
    activated = {name for name, happens in reactions(entities).items() if ("configuring", "inactive") in happens}
    assert configured == names
    assert activated == names - waiting


def reactions(entities: list[Recorded]) -> dict[str, dict[tuple[str | None, str], str]]:
    """node -> (start state, goal state) -> type of what then happens."""
    found: dict[str, dict[tuple[str | None, str], str]] = {}
    for entity in of_type(entities, "RegisterEventHandler"):
        on = entity.args[0].kwargs
        (what,) = on["entities"]
        reaction = {(on["start_state"], on["goal_state"]): type(what).__name__}
        found.setdefault(on["target_lifecycle_node"].kwargs["name"], {}).update(reaction)
    return found


def test_a_node_that_cannot_begin_ends_them_all(launch, bundle, tmp_path):
    """Regression: without its recorder the robot was driven all the same."""
    given = {"policy": str(bundle), "output": str(tmp_path)}
    functions = launch("visuomotor.launch.py")
    for node, happens in reactions(started(functions, given)).items():
        for failed in (("configuring", "unconfigured"), ("activating", "inactive"), (None, "errorprocessing")):
            assert happens[failed] == "Shutdown", (node, failed)
    by_hand = reactions(started(functions, given | {"activate": "false"}))
    assert by_hand[RECORDER]["activating", "inactive"] == "Shutdown"
    assert ("activating", "inactive") not in by_hand[CONTROLLER], "who activates it may try again"


def test_a_recording_is_never_written_over(launch, bundle, tmp_path):
    (tmp_path / "bag").mkdir()
    with pytest.raises(FileExistsError, match="already holds a recording"):
        started(launch("visuomotor.launch.py"), {"policy": str(bundle), "output": str(tmp_path)})


def test_a_namespace_with_such_a_graph_in_it_is_refused(launch_that_looks, robot, middleware, bundle, tmp_path):
    """Regression: both graphs were told what one was told."""
    functions, given = launch_that_looks("visuomotor.launch.py"), {"policy": str(bundle), "output": str(tmp_path)}
    peer = Peer(robot, middleware, RECORDER)
    try:
        with pytest.raises(ValueError, match="another graph is up.*/metaworld_sawyer/recorder.*namespace:=left"):
            started(functions, given)
        assert started(functions, given | {"namespace": "left"})
    finally:
        peer.close()


def test_a_policy_of_another_robot_is_refused(launch, bundle, tmp_path):
    robot = (Path(__file__).parents[2] / "robots" / "metaworld_sawyer.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(robot.replace("name: metaworld_sawyer", "name: another"))
    with pytest.raises(ContractMismatch, match="'metaworld_sawyer'"):
        started(launch("visuomotor.launch.py"), {"policy": str(bundle), "output": str(tmp_path), "robot": str(other)})


def test_what_the_policy_cannot_do_is_refused(launch, bundle, two_task_bundle, tmp_path):
    functions = launch("visuomotor.launch.py")
    with pytest.raises(ValueError, match="(?s)'dance'.*- move the gripper to the goal"):
        started(functions, {"policy": str(two_task_bundle), "output": str(tmp_path), "instruction": "dance"})
    with pytest.raises(ValueError, match="cannot continue the chunk before"):
        started(functions, {"policy": str(bundle), "output": str(tmp_path), "stitching": "prefix", "prefix": "4"})


def test_replay_gets_its_parameters_with_their_types(launch):
    (node,) = started(launch("replay.launch.py"), {"bag": "/recorded/bag", "speed": "2"})
    assert node.kwargs["executable"] == "replay_node"
    assert node.kwargs["parameters"] == [{"bag": "/recorded/bag", "episode": 0, "speed": 2.0}]
    assert node.kwargs["namespace"] is None, "the recording's"


def test_launch_is_no_package():
    assert not (LAUNCH / "__init__.py").exists()  # it would hide ROS's own `launch`
