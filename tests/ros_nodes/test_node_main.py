"""How a node's process starts and ends: it always ends, and its exit status is the truth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ros_nodes.graph import BODY, THREADS, NodeProcess
from ros_nodes.monitor import NodeDied

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys, time
from rclpy.node import Node
from ros_nodes import node_main

class Busy(Node):
    def __init__(self):
        super().__init__("busy")
        self.create_timer(0.001, self.work)
        self.left = {ticks}
    def work(self):
        self.left -= 1
        if self.left == 0:
            raise ValueError("the node's own error")
        if self.left == -100:
            print("up", flush=True)
    def close(self):
        {close}

node_main.EXIT_WITHIN_S = 1.0
sys.exit(node_main.run_node(Busy))
"""


def start(middleware: dict[str, str], ticks: int = 0, close: str = "print('closed', flush=True)"):
    env = {**os.environ, **middleware}
    code = CODE.format(ticks=ticks, close=close)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_a_busy_moment_is_a_normal_end(middleware, number) -> None:
    for _ in range(3):
        process = start(middleware)
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "closed\n", "")


def test_a_signal_within_the_handler_of_another_does_not_hang_the_process() -> None:
    """Regression: at every line of what the handler calls, the next signal comes."""
    code = """
import signal, sys
from ros_nodes.node_main import Stop

def interrupt(frame, event, argument):
    signal.raise_signal(signal.SIGTERM)
    return interrupt

stop = Stop()
signal.signal(signal.SIGTERM, lambda *_: stop())
sys.settrace(interrupt)
stop()
sys.settrace(None)
print(bool(stop))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_it_starts_without_a_home_directory(middleware) -> None:
    """Regression: rclpy.init fails when neither HOME nor ROS_LOG_DIR says where logs go, as under systemd."""
    quiet = {k: v for k, v in middleware.items() if k != "ROS_LOG_DIR"}
    code = CODE.format(ticks=0, close="pass")
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "ROS_HOME", "ROS_LOG_DIR")} | quiet
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_an_error_of_its_own_is_told_after_everything_was_let_go(middleware) -> None:
    process = start(middleware, ticks=50)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the node's own error" in err
    assert out == "closed\n"


def test_a_node_that_hangs_at_its_end_is_ended(middleware) -> None:
    process = start(middleware, close="time.sleep(60)")
    assert process.stdout.readline() == "up\n"
    process.terminate()
    began = time.monotonic()
    process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert process.returncode == -signal.SIGALRM


@pytest.mark.parametrize("error", ["the solver diverged", "the model does not compile"])
def test_a_body_whose_physics_break_ends_its_process_with_the_traceback(robot, new_graph, wait_for, error):
    """Pinned: the thread ended alone; the process lived on without a measurement, and nobody was told."""
    graph = new_graph()
    parameters = {"robot": robot.name}
    client = graph.start(NodeProcess(BODY, "tests.ros_nodes.breaking_body", "/" + robot.name, parameters, THREADS))
    if error == "the solver diverged":
        client.begin_transition(BODY, "activate")
    else:
        client.set_parameters(BODY, {"seed": 13}, 5.0)
        with pytest.raises(NodeDied):
            client.trigger(BODY, "reset", 10.0)
    wait_for(lambda: graph.monitor.reason, what="the end of the process")
    assert "mujoco_node died: exit code 1" in str(graph.monitor.reason)
    log = graph.processes.log(BODY).read_text()
    assert f"RuntimeError: {error}" in log
    assert "breaking_body.py" in log, "where it happened"
