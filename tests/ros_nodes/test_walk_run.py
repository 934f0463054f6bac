"""A walking policy on the simulated quadruped, through `visuomotor run`: told where to go, pushed, killed, replayed."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import JointState

from contracts import RobotContract, load_robot
from episodes.bag import BagReader
from episodes.messages import stamp_ns
from episodes.opening import open_episode
from ros_nodes import qos
from ros_nodes.graph import CONTROLLER
from ros_nodes.run_report import EpisodeRow, RunReport
from ros_nodes.supervisor import RunOptions, run_robot
from ros_nodes.walk import PUSH_S, WalkPlan, walk_figures
from sim.replay import replay_recorded

DAMPED_WITHIN_S = 0.1


@pytest.fixture(scope="module")
def robot() -> RobotContract:
    return load_robot("go2")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"velocity": (math.nan, 0.0, 0.0)}, "finite"),
        ({"push_n": -1.0}, r"within \[0, 400\]"),
        ({"push_n": 401.0}, r"within \[0, 400\]"),
        ({"push_n": math.nan}, r"within \[0, 400\]"),
        ({"push_every_s": 0.5}, "more than the 0.5 s"),
        ({"push_every_s": math.inf}, "more than the 0.5 s"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        WalkPlan(**plan)


@pytest.mark.parametrize("plan", [WalkPlan(velocity=(0.0, 0.0, 0.0)), WalkPlan(push_n=10.0)])
def test_an_arm_is_not_told_to_walk(tmp_path, plan):
    asked = RunOptions("metaworld_sawyer", tmp_path, "push", 1, 0, tmp_path / "run", walk=plan)
    with pytest.raises(ValueError, match="'metaworld_sawyer' is no simulated quadruped"):
        run_robot(asked)
    assert not (tmp_path / "run").exists()


def test_a_walk_is_summed_up_from_its_beginning_to_its_end():
    before = {"seconds": 3.0, "distance_m": 0.1, "velocity_error_m": 1.5, "falls": 0.0, "pushes": 1.0, "stood": 1.0}
    after = {"seconds": 13.0, "distance_m": 5.1, "velocity_error_m": 3.5, "falls": 1.0, "pushes": 4.0, "stood": 1.0}
    figures = walk_figures(before, after)
    assert figures == {"distance_m": 5.0, "velocity_error_mps": 0.2, "falls": 1.0, "pushes": 3.0}
    control = {"rate_hz": 50.0, "period_error_us": {}, "missed": 0, "periods": 1}
    rows = [EpisodeRow(i, i, True, 1, 1.0, control, {}, figures=figures | {"falls": i}) for i in range(2)]
    report, said = RunReport("go2", "p", "flat", 0, 50.0, rows, "bag"), io.StringIO()
    assert report.to_dict()["figures"] == figures | {"falls": 0.5}
    report.show(Console(file=said, width=100))
    assert "distance_m 5, velocity_error_mps 0.2, falls 0.5" in said.getvalue()


def quick(robot: RobotContract, path: Path) -> str:
    """The same robot, quicker on its feet and more patient: this machine may be busy."""
    data = robot.to_dict()
    data["task"] |= {"stand_up_s": 0.5, "ramp_s": 0.2, "chunk_timeout_s": 0.5, "recover_s": 5.0}
    RobotContract.from_dict(data)
    path.write_text(json.dumps(data))
    return str(path)


def test_a_run_is_told_where_to_go_is_pushed_and_happens_again(robot, walking_bundle, tmp_path, middleware):
    plan = WalkPlan(velocity=(0.4, 0.0, -0.2), push_n=30.0, push_every_s=0.6)
    asked = RunOptions(
        quick(robot, tmp_path / "go2.json"), walking_bundle, "flat", 1, 4, tmp_path, tmp_path / "run.json",
        backend="onnxruntime", steps=100, walk=plan,
    )  # fmt: skip
    said = io.StringIO()
    assert run_robot(asked, Console(file=said, width=200)) == 0, said.getvalue()
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["walk"] == {"velocity": [0.4, 0.0, -0.2], "push_n": 30.0, "push_every_s": 0.6}
    (row,) = found["rows"]
    assert set(row["figures"]) == {"distance_m", "velocity_error_mps", "falls", "pushes"}
    assert row["success"] == (row["figures"]["falls"] == 0 and "controller.mode.run" in row["counters"])
    assert "velocity_error_mps" in said.getvalue()
    with AnyReader([tmp_path / "bag"]) as reader:
        told = {c.topic: c.msgcount for c in reader.connections}
        asked_for: list[Any] = [
            reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages() if c.topic == "/go2/cmd_vel"
        ]
    assert (asked_for[-1].linear.x, asked_for[-1].angular.z) == (0.4, -0.2)
    assert told["/go2/applied_push"] == pytest.approx(told["/go2/applied_command"], abs=2)
    assert told["/go2/push"] >= 4 * row["figures"]["pushes"]
    recorded = open_episode(tmp_path / "bag", 0)
    names = robot.observation_features("proprioception")[0].names
    requests = recorded.data.observations["observation.state"][
        :, [names.index("command_x"), names.index("command_yaw")]
    ]
    assert (requests[0] == 0).all()  # nobody had asked for anything yet
    np.testing.assert_allclose(np.abs(requests).max(axis=0), [0.4, 0.2], rtol=1e-6)
    assert recorded.data.pushes is not None
    pushed = recorded.data.pushes.any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], pushed, [0])).astype(int)))
    assert max(np.diff(edges)[::2]) == pytest.approx(PUSH_S * robot.control_rate_hz, abs=2)
    again = replay_recorded(recorded)
    assert (again.diverged, again.max_abs_difference) == (False, 0.0)
    assert again.success == recorded.data.success


def test_it_is_damped_when_its_controller_is_killed(robot, walking_bundle, tmp_path, middleware, peer, wait_for):
    joints = peer.listen("joint_states", JointState)
    applied = peer.listen("applied_command", JointState, qos.STATUS)

    def driven() -> list[int]:
        """Stamps of the periods in which springs pulled, ns."""
        measured = {stamp_ns(m): m for _, m in list(joints)}
        pairs = [(m, measured[stamp_ns(m)]) for _, m in list(applied) if stamp_ns(m) in measured]
        return [stamp_ns(sent) for sent, seen in pairs if sent.position != seen.position]

    command = [sys.executable, "-m", "visuomotor", "run", "--robot", quick(robot, tmp_path / "go2.json"), "--policy"]
    command += [str(walking_bundle), "--task", "flat", "--steps", "100000", "--output", str(tmp_path)]
    command += ["--backend", "onnxruntime", "--json", str(tmp_path / "run.json")]
    process = subprocess.Popen(command, env=dict(os.environ) | middleware, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(driven()) > 20 or process.poll() is not None, 60.0, "a robot that is driven")
        pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _runs(p, CONTROLLER, tmp_path)]
        killed_ns = time.time_ns()
        os.kill(pids[0], signal.SIGKILL)
        assert process.wait(30.0) == 3
    finally:
        process.kill()
        process.communicate()
    assert max(driven()) - killed_ns < DAMPED_WITHIN_S * 1e9
    assert any(stamp_ns(m) > killed_ns for _, m in applied)  # it was still there to be seen
    assert len(BagReader(tmp_path / "bag").episodes()) == 1
    assert not replay_recorded(open_episode(tmp_path / "bag", 0)).diverged


def _runs(process: Path, node: str, output: Path) -> bool:
    """Whether a process of this machine is a node of the run whose output this is."""
    try:
        return (
            f"ros_nodes.{node}" in (process / "cmdline").read_text()
            and str(output) in (process / "environ").read_text()
        )
    except OSError:
        return False
