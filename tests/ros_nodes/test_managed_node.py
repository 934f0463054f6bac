"""A lifecycle transition that fails: the log says why, and nothing that was begun goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn

from policies.runtime import PolicyOutputError
from ros_nodes import policy_node
from ros_nodes.controller_node import ControllerNode
from ros_nodes.managed_node import ManagedNode
from ros_nodes.policy_node import PolicyNode

SUCCESS, FAILURE, ERROR = (getattr(TransitionCallbackReturn, name) for name in ("SUCCESS", "FAILURE", "ERROR"))


@pytest.fixture
def node(middleware) -> Iterator:
    """node(class, **parameters) makes one in this process; it is destroyed with the test."""
    made: list[ManagedNode] = []
    rclpy.init()

    def make(kind: Callable[[], ManagedNode], **parameters: object) -> ManagedNode:
        made.append(kind())
        made[-1].set_parameters([rclpy.Parameter(name, value=value) for name, value in parameters.items()])
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.destroy_node()
    rclpy.shutdown()


def state_of(node: ManagedNode) -> str:
    return node._state_machine.current_state[1]


class Clumsy(ManagedNode):
    """Fails at what `fails_at` says."""

    fails_at = ""

    def __init__(self) -> None:
        super().__init__("clumsy")
        self.did: list[str] = []

    def _do(self, what: str) -> None:
        self.did.append(what)
        if what == self.fails_at:
            raise ZeroDivisionError(f"a slip in {what}")

    def configure(self) -> None:
        self._do("configure")

    def activate(self) -> None:
        self._do("activate")

    def deactivate(self) -> None:
        self._do("deactivate")

    def close(self) -> None:
        self.did.append("close")
        super().close()


@pytest.mark.parametrize("fails_at", ["configure", "activate", "deactivate"])
def test_an_error_that_nobody_foresaw_is_told_with_its_place_and_closes_the_node(node, capfd, fails_at) -> None:
    clumsy = node(Clumsy)
    clumsy.fails_at = fails_at
    for change in (clumsy.trigger_configure, clumsy.trigger_activate, clumsy.trigger_deactivate):
        if change() is ERROR:
            break
    assert clumsy.did[-2:] == [fails_at, "close"]
    assert state_of(clumsy) == "unconfigured"
    said = capfd.readouterr().err
    assert f"cannot {fails_at}: Traceback" in said
    assert f"ZeroDivisionError: a slip in {fails_at}" in said


def test_a_topic_that_ros_does_not_allow_is_named_and_nothing_half_made_stays(node, robot, tmp_path, capfd) -> None:
    data = robot.to_dict()
    next(s for s in data["sensors"] if s["name"] == "end_effector")["topic"] = "end effector"
    contract = tmp_path / "spaced.json"
    contract.write_text(json.dumps(data))
    controller = node(ControllerNode, robot=str(contract))
    before = {name for name, _ in controller.get_topic_names_and_types()}
    assert controller.trigger_configure() is FAILURE
    assert "end effector" in capfd.readouterr().err
    assert {name for name, _ in controller.get_topic_names_and_types()} == before
    controller.set_parameters([rclpy.Parameter("robot", value=robot.name)])
    assert controller.trigger_configure() is SUCCESS


def test_an_engine_that_is_not_installed_is_named(node, bundle, capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    policy = node(PolicyNode, bundle=str(bundle), backend="onnxruntime")
    assert policy.trigger_configure() is FAILURE
    assert "onnxruntime" in capfd.readouterr().err
    policy.set_parameters([rclpy.Parameter("backend", value="openvino")])
    assert policy.trigger_configure() is SUCCESS


def test_a_policy_that_fails_in_its_first_inference_imagines_nothing_any_more(node, bundle, capfd, monkeypatch) -> None:
    closed: list[bool] = []

    class Imagining:
        def __init__(self, *_: object) -> None:
            closed.append(False)

        def close(self) -> None:
            closed[-1] = True

    def overflow(*_: object) -> None:
        raise PolicyOutputError("actions are not finite")

    monkeypatch.setattr(policy_node, "ImaginationTopics", Imagining)
    policy = node(PolicyNode, bundle=str(bundle), imagine_hz=1.0)
    monkeypatch.setattr(policy, "_warm_up", overflow)
    assert policy.trigger_configure() is FAILURE
    assert closed == [True]
    assert "actions are not finite" in capfd.readouterr().err
