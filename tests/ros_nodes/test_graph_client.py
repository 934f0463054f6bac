"""The supervisor's calls, against nodes in the test's own hand."""

from __future__ import annotations

import pytest
from lifecycle_msgs.srv import ChangeState, GetState

from ros_nodes.graph_client import GraphClient, GraphError
from ros_nodes.monitor import Monitor
from tests.ros_nodes.peers import Peer

NODE = "forgetful"


class Forgetful(Peer):
    """A node of a lifecycle whose first answers never reach the client, as when the middleware drops them.

    Attributes:
        asked: for transitions so far, by their labels.
    """

    def __init__(self, robot, middleware, lost: int) -> None:
        super().__init__(robot, middleware, NODE)
        self.asked: list[str] = []
        self._lost = lost
        for kind, name, answer in (
            (GetState, "get_state", lambda request, response: response),
            (ChangeState, "change_state", self._change),
        ):
            service = self.node.create_service(kind, f"{NODE}/{name}", answer)
            service.send_response = self._forget(service.send_response)  # type: ignore[method-assign]

    def _change(self, request, response):
        self.asked.append(request.transition.label)
        response.success = True
        return response

    def _forget(self, send):
        def send_later(*answer):
            self._lost -= 1
            if self._lost < 0:
                send(*answer)

        return send_later


@pytest.fixture
def client(robot, middleware):
    client = GraphClient(robot, middleware, Monitor())
    yield client
    client.close()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_transition_is_made_once_though_the_first_answers_get_lost(robot, middleware, client, lost):
    node = Forgetful(robot, middleware, lost)
    try:
        client.transition([NODE], "configure", 20.0)
        client.transition([NODE], "activate", 20.0)
        assert node.asked == ["configure", "activate"]
    finally:
        node.close()


def test_a_node_that_never_answers_is_named_and_not_told_to_move(robot, middleware, client):
    node = Forgetful(robot, middleware, lost=1000)
    try:
        with pytest.raises(GraphError, match=f"{NODE} did not say its state within 3.0 s"):
            client.transition([NODE], "configure", 3.0)
        assert not node.asked
    finally:
        node.close()


def test_a_node_that_is_not_there_is_named(client):
    with pytest.raises(GraphError, match="nobody does not offer /.*/nobody/change_state within 1.0 s"):
        client.wait_for_nodes(["nobody"], 1.0)
