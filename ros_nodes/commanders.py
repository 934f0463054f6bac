"""Who else could command a robot: the nodes that publish its command topic beside the one that is to."""

from __future__ import annotations

import time
from collections import Counter

from rclpy.node import Node

from ros_nodes.graph import SUPERVISOR

NAMELESS = "_NODE_NAMESPACE_UNKNOWN_/_NODE_NAME_UNKNOWN_"  # as rclpy calls who has not said yet which node it is
LOOK_AGAIN = -1  # no number of publishers
INTRODUCTION_S = 3.0  # who has not said so by then never will: it is no node of ROS


class OtherCommanders:
    """Looks for others on a node's command topic, whether or not they have said anything there yet.

    The supervisor of the node's namespace is none: it sends a last command in the node's place.
    """

    def __init__(self, node: Node, topic: str) -> None:
        """
        Args:
            node: publishes the topic itself.
            topic: its full name.
        """
        self._node = node
        self._topic = topic
        self._count = 0  # of publishers, the node's and its supervisor's too, when it was last looked who they are
        self._names: list[str] = []
        self._nameless_since: float | None = None

    def names(self) -> list[str]:
        """Full names of their nodes; a name that two have stands there once for each.

        Asks only what this process knows already, and takes 10 us unless somebody came or went.
        """
        if self._node.count_publishers(self._topic) != self._count:
            endpoints = self._node.get_publishers_info_by_topic(self._topic)
            found = Counter(f"{e.node_namespace.rstrip('/')}/{e.node_name}" for e in endpoints)
            found -= Counter([self._node.get_fully_qualified_name()])  # another one of its name stays
            found.pop(f"{self._node.get_namespace().rstrip('/')}/{SUPERVISOR}", None)
            nameless = found.pop(NAMELESS, 0)
            self._names = sorted(found.elements())
            self._count = LOOK_AGAIN if nameless else len(endpoints)
            if not nameless:
                self._nameless_since = None
            elif self._nameless_since is None:
                self._nameless_since = time.monotonic()
            elif time.monotonic() - self._nameless_since > INTRODUCTION_S:
                self._names += ["a participant that is no node of ROS"] * nameless
        return self._names
