"""Who else could command a robot, while some have no name yet: no real node can be held in that moment."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ros_nodes import commanders
from ros_nodes.commanders import OtherCommanders

NAMELESS = ("_NODE_NAMESPACE_UNKNOWN_", "_NODE_NAME_UNKNOWN_")
OURS = [("/arm", "controller_node"), ("/arm", "supervisor")]


class Graph:
    """Stands for a node, and what it knows of the publishers of a topic."""

    def __init__(self) -> None:
        self.publishers: list[tuple[str, str]] = list(OURS)

    def count_publishers(self, topic: str) -> int:
        return len(self.publishers)

    def get_publishers_info_by_topic(self, topic: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(node_namespace=space, node_name=name) for space, name in self.publishers]

    def get_fully_qualified_name(self) -> str:
        return "/arm/controller_node"

    def get_namespace(self) -> str:
        return "/arm"


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(commanders.time, "monotonic", lambda: now.s)
    return now


def test_who_has_no_name_yet_is_waited_for(clock):
    graph = Graph()
    others = OtherCommanders(graph, "/arm/commands")  # type: ignore[arg-type]
    graph.publishers = [OURS[0], NAMELESS]  # the supervisor, which has not said so yet
    assert others.names() == []
    graph.publishers = list(OURS)
    assert others.names() == []
    clock.s = 100.0
    graph.publishers = [*OURS, NAMELESS]
    assert others.names() == []
    clock.s += 3.1
    assert others.names() == ["a participant that is no node of ROS"]
    graph.publishers = list(OURS)
    assert others.names() == [], "it left"


def test_one_that_left_while_another_had_no_name_yet_is_gone(clock):
    graph = Graph()
    others = OtherCommanders(graph, "/arm/commands")  # type: ignore[arg-type]
    assert others.names() == []
    graph.publishers = [*OURS, ("/", "teleoperation"), NAMELESS]
    assert others.names() == ["/teleoperation"]
    graph.publishers = list(OURS)
    assert others.names() == []
