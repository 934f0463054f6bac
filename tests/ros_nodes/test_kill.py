"""`visuomotor run` in real processes, with one of them killed: the robot holds, the run says so, nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import JointState

from ros_nodes import qos
from ros_nodes.conversions import stamp_ns
from ros_nodes.graph import BODY, CONTROLLER, POLICY, RECORDER
from ros_nodes.supervisor import RUN_MARKER

HOLD_WITHIN_S = 0.1
STILL = 1e-9
GONE_WITHIN_S = 10.0


def marked(marker: str) -> dict[int, str]:
    """pid -> command line of every process whose environment carries the marker."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
        if f"{RUN_MARKER}={marker}".encode() in environment and command:
            found[int(entry.name)] = command
    return found


class Run:
    """A `visuomotor run` in a process of its own, and what it makes the robot do."""

    def __init__(self, bundle: Path, output: Path, middleware: dict[str, str], peer) -> None:
        self.marker = uuid.uuid4().hex
        self.output = output
        self.applied = peer.listen("applied_command", JointState, qos.STATUS)
        command = [sys.executable, "-m", "visuomotor", "run", "--robot", "metaworld_sawyer", "--policy", str(bundle)]
        command += ["--task", "drawer-open", "--episodes", "3", "--output", str(output)]
        command += ["--json", str(output / "run.json")]
        self.process = subprocess.Popen(
            command,
            env=dict(os.environ) | middleware | {RUN_MARKER: self.marker},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def moving(self) -> bool:
        """True once the robot has moved in 40 periods running."""
        last = [np.abs(m.position[:3]).max() for _, m in self.applied[-40:]]
        return len(last) == 40 and min(last) > STILL

    def pid_of(self, node: str) -> int:
        module = f"ros_nodes.{node}"
        return next(pid for pid, command in marked(self.marker).items() if module in command)

    def last_motion_after(self, moment: float) -> float:
        """Seconds after `moment`, of the steady clock, until the last period in which the robot was moved.

        By the robot's own stamps: when a message arrives here is another matter, seconds later where the middleware
        had to deliver it twice.
        """
        to_steady = time.monotonic() - time.time()
        obeyed = [stamp_ns(m.header.stamp) / 1e9 for _, m in self.applied if np.abs(m.position[:3]).max() > STILL]
        return max(obeyed) + to_steady - moment

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=30.0)
        return self.process.returncode, output


@pytest.fixture
def run(bundle, tmp_path, middleware, peer, wait_for):
    """A run whose robot is moving."""
    run = Run(bundle, tmp_path / "run", middleware, peer)
    try:
        wait_for(lambda: run.moving() or run.process.poll() is not None, 90.0, "motion")
        assert run.process.poll() is None, run.end()[1]
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
        for pid in marked(run.marker):
            os.kill(pid, signal.SIGKILL)
        assert run.process.stdout is not None
        run.process.stdout.close()


def messages_in(bag: Path) -> int:
    with AnyReader([bag]) as reader:
        return sum(1 for connection, _, raw in reader.messages() if reader.deserialize(raw, connection.msgtype))


@pytest.mark.parametrize("node", [BODY, POLICY, CONTROLLER, RECORDER])
def test_any_node_may_be_killed(run, node):
    pid = run.pid_of(node)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    code, output = run.end()
    assert code == 3
    assert f"{node} died: signal 9 (SIGKILL)" in output
    assert run.last_motion_after(killed) < HOLD_WITHIN_S
    assert messages_in(run.output / "bag") > 100
    assert str(run.output / "bag") in output
    assert json.loads((run.output / "run.json").read_text())["ended_by"].startswith(f"{node} died")
    assert not marked(run.marker)


def test_ctrl_c_is_an_orderly_stop(run):
    stopped = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    code, output = run.end()
    assert code == 130
    assert "stopped by SIGINT" in output
    assert run.last_motion_after(stopped) < HOLD_WITHIN_S
    assert messages_in(run.output / "bag") > 100
    assert not marked(run.marker)


def test_nothing_outlives_a_killed_supervisor(run, wait_for):
    killed = time.monotonic()
    run.process.kill()
    run.process.wait()
    wait_for(lambda: not marked(run.marker), GONE_WITHIN_S, "the end of all processes")
    assert run.last_motion_after(killed) < HOLD_WITHIN_S
    assert messages_in(run.output / "bag") > 100
