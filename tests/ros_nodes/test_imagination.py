"""Imagined pictures are published beside the control path: late, dropped or slow, but never in its way."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from contracts.messages import image_array
from execution.chunk import ActionChunk
from execution.deadline import DeadlineLoop
from ros_nodes import qos
from ros_nodes.conversions import image_message, sensor_message, stamp_ns
from ros_nodes.graph import POLICY, THREADS, NodeProcess
from ros_nodes.graph_client import GraphError
from ros_nodes.imagination import Imagination

PERIOD_NS = 12_500_000
ZOO = Path(__file__).parents[2] / "zoo"


def chunk(number: int) -> ActionChunk:
    return ActionChunk(np.zeros((1, 1)), number, PERIOD_NS, ("x",))


def pictures(number: int) -> np.ndarray:
    return np.full((1, 2, 2, 3), number, dtype=np.uint8)


@pytest.fixture
def published():
    """Gives (imagination, published [(seconds, chunk start, grey level)]) of a rate; all are closed with the test."""
    made: list[Imagination] = []

    def make(hz: float) -> tuple[Imagination, list[tuple[float, int, int]]]:
        heard: list[tuple[float, int, int]] = []
        made.append(Imagination(hz, lambda c, p: heard.append((time.monotonic(), c.start_ns, int(p[0, 0, 0, 0])))))
        return made[-1], heard

    yield make
    for imagination in made:
        imagination.close()


def test_it_decodes_the_newest_and_no_more_often_than_asked(published) -> None:
    imagination, heard = published(5.0)
    decoded: list[int] = []

    def decode(number: int) -> np.ndarray:
        decoded.append(number)
        return pictures(number)

    began = time.monotonic()
    for number in range(100):  # 80 chunks a second
        imagination.show(chunk(number), partial(decode, number))
        time.sleep(0.0125)
    seconds = time.monotonic() - began
    assert 2 <= len(heard) <= 5 * seconds + 1
    assert len(decoded) == len(heard), "what is not published is not decoded"
    assert all(start == grey for _, start, grey in heard), "a chunk and its own pictures"
    assert np.median(np.diff([at for at, *_ in heard])) > 0.15
    assert np.median(np.diff([start for _, start, _ in heard])) > 5, "what came in between is dropped"


def test_a_slow_decoder_makes_nobody_wait(published) -> None:
    imagination, heard = published(10.0)
    gate = threading.Event()
    began = time.monotonic()
    for number in range(1, 50):
        imagination.show(chunk(number), lambda number=number: (gate.wait(10), pictures(number))[1])
    assert time.monotonic() - began < 1.0, "the decoder would have taken 10 s"
    assert not heard
    gate.set()
    assert imagination.close()


def test_once_closed_it_publishes_nothing(published, wait_for) -> None:
    imagination, heard = published(10.0)
    decoding, gate = threading.Event(), threading.Event()

    def slowly() -> np.ndarray:
        decoding.set()
        gate.wait(5)
        return pictures(1)

    imagination.show(chunk(1), slowly)
    assert decoding.wait(5)
    closing = threading.Thread(target=imagination.close)
    closing.start()
    time.sleep(0.05)
    gate.set()
    closing.join()
    imagination.show(chunk(2), lambda: pictures(2))
    time.sleep(0.1)
    assert heard == []


@pytest.mark.parametrize("hz", [0.0, -1.0, 11.0, float("nan"), float("inf")])
def test_a_rate_that_makes_no_sense_is_refused(hz) -> None:
    with pytest.raises(ValueError, match="imagine_hz"):
        Imagination(hz, lambda *_: None)


# The node -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagining_bundle(robot, tmp_path_factory):
    """A tiny PAD, never trained: its pictures show nothing, but they are pictures."""
    import torch

    from policies.base import make_contract
    from policies.export import export
    from policies.pad.config import PadConfig
    from policies.pad.policy import PadPolicy
    from tests.checkpoints import write_checkpoint

    config = PadConfig(size="1x32x2", vae_channels=(8, 8), text_dim=8, inference_steps=1)
    torch.manual_seed(0)
    policy = PadPolicy(config, make_contract("pad", config, robot, "image", "open the drawer"))
    policy.fit_robot(robot)
    ranges = {"min": np.array([-0.5, 0.4, 0, 0], np.float32), "max": np.array([0.5, 1, 0.5, 1], np.float32)}
    policy.fit_normalization({"observation.state": ranges, "action": {"min": -0.8 * np.ones(4), "max": np.ones(4)}})
    path = tmp_path_factory.mktemp("imagining")
    return export(write_checkpoint(policy, robot, path / "checkpoint"), path / "bundle")


class Body:
    """Publishes what an image policy sees, 80 times a second, until closed."""

    def __init__(self, robot, peer) -> None:
        sensors = {s.name: s for s in robot.sensors}
        camera, picture = robot.cameras[0], np.zeros((96, 96, 3), np.uint8)
        values = {"end_effector": (0.0, 0.6, 0.2), "gripper": (1.0,)}
        kinds = {"end_effector": PoseStamped, "gripper": JointState}
        publishers = {n: peer.publisher(sensors[n].topic, kinds[n], qos.SENSOR) for n in values}
        frames = peer.publisher(camera.topic, Image, qos.SENSOR)
        self.stamps: set[int] = set()
        self._running = True

        def run() -> None:
            loop = DeadlineLoop(80)
            while self._running:
                loop.wait()
                now = time.time_ns()
                self.stamps.add(now)
                for name, publisher in publishers.items():
                    publisher.publish(sensor_message(sensors[name], now, values[name]))
                frames.publish(image_message(camera, now, picture))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._running = False
        self._thread.join()


def test_the_node_publishes_what_its_policy_imagines(robot, new_graph, peer, wait_for, imagining_bundle) -> None:
    parameters = {"robot": robot.name, "bundle": str(imagining_bundle), "imagine_hz": 4.0}
    nodes = new_graph()
    client = nodes.start(NodeProcess(POLICY, "ros_nodes.policy_node", "/" + robot.name, parameters, THREADS))
    heard = {periods: peer.listen(f"imagined/t{periods}", Image, qos.SENSOR) for periods in (4, 8, 12)}
    chunks = peer.listen("action_chunk", JointTrajectory, qos.CHUNK)
    body = Body(robot, peer)
    try:
        client.transition([POLICY], "activate", 5.0)
        wait_for(lambda: all(len(messages) >= 4 for messages in heard.values()), what="imagined pictures")
        client.transition([POLICY], "deactivate", 5.0)
    finally:
        body.close()
    starts = {stamp_ns(m.header.stamp) for _, m in chunks}
    assert starts <= body.stamps
    for periods, messages in heard.items():
        for _, message in messages:
            assert image_array(message, robot.cameras[0]).shape == (96, 96, 3)
            assert stamp_ns(message.header.stamp) - periods * PERIOD_NS in body.stamps, "when it will have happened"
        stamps = [stamp_ns(message.header.stamp) for _, message in messages]
        assert np.median(np.diff(stamps)) > 150_000_000
    assert len(chunks) > 3 * len(heard[4]), "it goes on acting in between"


def test_the_node_refuses_to_show_what_its_policy_does_not_imagine(robot, new_graph) -> None:
    nodes = new_graph()
    with pytest.raises(GraphError, match="could not configure"):
        nodes.start(
            NodeProcess(
                POLICY,
                "ros_nodes.policy_node",
                "/" + robot.name,
                {"robot": robot.name, "bundle": str(ZOO / "streaming-push"), "imagine_hz": 1.0},
                THREADS,
            )
        )
    assert "imagines no pictures" in nodes.processes.log_tail(POLICY)
