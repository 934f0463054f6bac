"""The supervisor's parts one by one, then a whole run of a real policy on the simulated robot."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from rclpy.exceptions import InvalidNamespaceException
from rclpy.validate_namespace import validate_namespace
from rich.console import Console
from rosbags.highlevel import AnyReader

from contracts import ContractMismatch, PolicyContract
from episodes.bag import BagReader
from episodes.convert import bag_to_dataset
from episodes.opening import open_episode
from episodes.report import stolen_seconds
from policies.runtime.bundle import CONTRACT_FILE, read_bundle, write_manifest
from policies.runtime.sampler import CarpSampler
from ros_nodes.episode_start import check_start, choose_instruction
from ros_nodes.graph import (
    BODY,
    CONTROLLER,
    POLICY,
    RECORDER,
    NodeProcess,
    describe_graph,
    parameters_file,
    recorded_topics,
)
from ros_nodes.monitor import Monitor, NodeDied, StoppedByUser
from ros_nodes.processes import NodeProcesses, describe_exit
from ros_nodes.run_report import EpisodeRow, RunReport
from ros_nodes.supervisor import RunOptions, run_robot, stop_signals
from sim.replay import replay_recorded
from sim.seeds import episode_seed
from tests.ros_nodes.peers import Peer

# -- the monitor -------------------------------------------------------------------------------------------------------


def test_a_wait_ends_as_soon_as_something_is_ready():
    monitor, ready = Monitor(), threading.Event()

    def later() -> None:
        time.sleep(0.05)
        ready.set()
        monitor.wake()

    threading.Thread(target=later).start()
    start = time.monotonic()
    assert monitor.wait(ready.is_set, 5.0)
    assert time.monotonic() - start < 1.0
    assert not monitor.wait(lambda: False, 0.05)


def test_the_first_reason_ends_every_wait_until_the_end_has_begun():
    monitor = Monitor()
    monitor.interrupt(NodeDied("policy_node", "signal 9 (SIGKILL)"))
    monitor.interrupt(StoppedByUser("stopped by SIGINT"))
    for _ in range(2):
        with pytest.raises(NodeDied, match=r"policy_node died: signal 9 \(SIGKILL\)"):
            monitor.wait(lambda: True, 5.0)
    monitor.finish()
    assert monitor.wait(lambda: True, 5.0)
    assert isinstance(monitor.reason, NodeDied)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_reason_to_end_and_not_a_crash(number):
    monitor = Monitor()
    before = signal.getsignal(number)
    with stop_signals(monitor):
        for _ in range(3):  # an impatient user
            os.kill(os.getpid(), number)
        with pytest.raises(StoppedByUser, match=f"stopped by {number.name}"):
            monitor.wait(lambda: False, 5.0)
    assert signal.getsignal(number) is before


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_death_is_noticed_within_20_ms(tmp_path):
    deaths: dict[str, tuple[str, float]] = {}
    processes = NodeProcesses(tmp_path, os.environ, lambda name, how: deaths.update({name: (how, time.monotonic())}))
    delays = []
    for name in ("a", "b", "c"):
        processes.start(NodeProcess(name, "ros_nodes.recorder_node", "/r", {"robot": "metaworld_sawyer"}))
        killed = time.monotonic()
        os.kill(processes.pids[name], signal.SIGKILL)
        while name not in deaths and time.monotonic() < killed + 5:
            time.sleep(0.001)
        how, noticed = deaths[name]
        assert how == "signal 9 (SIGKILL)"
        assert not processes.alive(name)
        delays.append(noticed - killed)
    assert statistics.median(delays) < 0.02


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_node_whose_supervisor_died_before_it_was_tethered_ends_too(tmp_path, number):
    """Regression: it took whoever inherited it for its supervisor, and stayed."""
    (tmp_path / "node.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)")
    started = f"{sys.executable} -m ros_nodes.tether {number.name} $$ node & kill -KILL $$"
    env = dict(os.environ) | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    ended = subprocess.run(["sh", "-c", started], env=env, stdout=subprocess.PIPE, start_new_session=True, timeout=20)
    assert ended.stdout == b"", "its end is the pipe's"


def test_an_end_that_was_asked_for_is_no_death_and_the_log_is_kept(tmp_path):
    deaths: list[str] = []
    processes = NodeProcesses(tmp_path, os.environ, lambda name, how: deaths.append(name))
    processes.start(NodeProcess("recorder_node", "ros_nodes.recorder_node", "/r", {"robot": "metaworld_sawyer"}))
    assert processes.alive("recorder_node")
    processes.stop(["recorder_node"], 5.0)
    assert not processes.alive("recorder_node")
    assert not deaths


def test_a_node_that_ends_by_itself_is_told_with_its_last_words(tmp_path):
    deaths: list[tuple[str, str]] = []
    processes = NodeProcesses(tmp_path, os.environ, lambda name, how: deaths.append((name, how)))
    processes.start(NodeProcess("lost", "ros_nodes.no_such_module", "/", {}))
    while not deaths:
        time.sleep(0.01)
    assert deaths == [("lost", "exit code 1")]
    assert "no_such_module" in processes.log_tail("lost")


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (1, "exit code 1"), (-11, "signal 11 (SIGSEGV)")])
def test_an_exit_in_words(code, words):
    assert describe_exit(code) == words


# -- the description of the graph --------------------------------------------------------------------------------------


def described(robot, bundle, **changes):
    policy = read_bundle(bundle).contract
    arguments = {"robot_source": robot.name, "bundle": bundle, "task": "push", "seed": 7, "bag": Path("/b"), **changes}
    return {node.name: node for node in describe_graph(robot, policy, **arguments)}


def test_a_simulated_robot_has_a_body_and_a_real_one_does_not(robot, bundle):
    assert list(described(robot, bundle)) == [BODY, RECORDER, CONTROLLER, POLICY]
    real = msgspec.structs.replace(robot, body="external")
    assert list(described(real, bundle)) == [RECORDER, CONTROLLER, POLICY]


def test_the_nodes_are_told_what_the_run_was_told(robot, bundle):
    nodes = described(robot, bundle, cameras=("corner2",))
    assert nodes[BODY].parameters["task"] == "push"
    assert nodes[BODY].parameters["seed"] == nodes[POLICY].parameters["seed"] == 7
    assert nodes[BODY].parameters["cameras"] == nodes[RECORDER].parameters["cameras"] == ["corner2"]
    assert parameters_file(nodes[RECORDER])["/metaworld_sawyer/recorder_node"]["ros__parameters"]["bag"] == "/b"
    assert nodes[CONTROLLER].orphan_signal == signal.SIGTERM  # it must still send its hold
    with pytest.raises(ValueError, match="no camera 'corner9'"):
        described(robot, bundle, cameras=("corner9",))


@pytest.mark.parametrize("name", ["left", "cell_1/left", "_l", "a__b", "L2"])
def test_the_nodes_are_in_the_robots_namespace_or_in_another(robot, bundle, name):
    validate_namespace("/" + name)
    assert {node.namespace for node in described(robot, bundle).values()} == {"/metaworld_sawyer"}
    for given in (name, "/" + name):
        nodes = described(robot, bundle, namespace=given)
        assert {node.namespace for node in nodes.values()} == {"/" + name}
        assert list(parameters_file(nodes[RECORDER])) == [f"/{name}/recorder_node"]


@pytest.mark.parametrize(
    "name", ["2nd", "cell/2nd", "left/", "//left", "a//b", "le ft", "le-ft", "l\u00e4ft", "left\n"]
)
def test_what_is_no_namespace_in_ros_is_refused(robot, bundle, name):
    with pytest.raises(InvalidNamespaceException):
        validate_namespace("/" + name.removeprefix("/"))
    with pytest.raises(ValueError, match="is no namespace of a robot"):
        described(robot, bundle, namespace=name)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_namespace_that_leaves_no_room_for_names_is_refused(robot, bundle, slash):
    described(robot, bundle, namespace=slash + "l" * 199)
    with pytest.raises(ValueError, match="may have 200 characters, not 201"):
        described(robot, bundle, namespace=slash + "l" * 200)


@pytest.mark.parametrize(
    ("how", "controller", "policy"),
    [
        ({}, "latest", 0),
        ({"stitching": "ensemble", "prefix": 6}, "ensemble", 0),
        ({"stitching": "prefix"}, "latest", 4),
        ({"stitching": "prefix", "prefix": 6}, "latest", 6),
    ],
)
def test_controller_and_policy_share_the_stitching(robot, bundle, how, controller, policy):
    nodes = described(robot, bundle, instruction="push it", **how)
    assert nodes[CONTROLLER].parameters["stitching"] == controller
    assert nodes[POLICY].parameters["prefix"] == policy
    assert nodes[POLICY].parameters["instruction"] == "push it"


def test_the_instruction_is_what_is_given_or_what_the_task_says(robot):
    real = msgspec.structs.replace(robot, body="external")
    assert choose_instruction(robot, "push", "shove it") == choose_instruction(real, "push", "shove it") == "shove it"
    assert choose_instruction(robot, "push") == "push the puck to the goal"
    assert choose_instruction(real, "wave") == "wave"
    with pytest.raises(ValueError, match="no task 'wave'"):
        choose_instruction(robot, "wave")


def test_a_prefix_must_fit_the_policys_tokens_and_its_chunk(bundle):
    files = read_bundle(bundle)
    carp = dataclasses.replace(files, sampler=CarpSampler(tokens=7, codes=8, random=False, prefix_multiple=4))
    check_start(carp, "anything", 4)
    for prefix, message in ((6, "multiple"), (files.contract.horizon, "does not lie within")):
        with pytest.raises(ValueError, match=message):
            check_start(carp, "anything", prefix)


def test_every_topic_of_the_contract_is_recorded(robot):
    names = {topic.name for topic in recorded_topics(robot, ("corner2",))}
    assert {s.topic for s in robot.sensors} | {robot.camera("corner2").topic, robot.command.topic} <= names
    assert {"action_chunk", "applied_command", "episode", "success", "controller_state", "/diagnostics"} <= names


# -- the report --------------------------------------------------------------------------------------------------------


def row(episode: int, success: bool, missed: int, p50: float, worst: float) -> EpisodeRow:
    errors = {"p50": p50, "p99": 2 * p50, "max": worst}
    control = {"rate_hz": 80.0, "period_error_us": errors, "missed": missed, "periods": 100}
    ages = {"2": 90, "10": episode}
    return EpisodeRow(
        episode, 1 + 2 * episode, success, 100, 1.25, control, {"p50": p50 / 10, "p99": p50}, {"x": 2}, ages
    )


def test_the_report_is_that_of_the_median_episode(tmp_path):
    rows = [row(0, True, 0, 10.0, 50.0), row(1, True, 7, 30.0, 900.0), row(2, False, 1, 20.0, 60.0)]
    report = RunReport("r", "p", "push", 0, 80.0, rows, "bag")
    report.write(tmp_path / "deep" / "run.json")
    found = json.loads((tmp_path / "deep" / "run.json").read_text())
    assert (found["episodes"], found["successes"], found["success_rate"]) == (3, 2, pytest.approx(2 / 3))
    assert found["ci95"] == pytest.approx([0.2077, 0.9385], abs=1e-4)  # Wilson's interval of 2 in 3, by hand
    assert found["control"]["period_error_us"] == {"p50": 20.0, "p99": 40.0, "max": 900.0}
    assert (found["control"]["missed"], found["control"]["missed_in_all"]) == (1, 8)
    assert found["inference_ms"] == {"p50": 2.0, "p99": 20.0}
    assert found["counters"] == {"x": 6}
    assert list(found["action_age_steps"].items()) == [("2", 270), ("10", 3)]
    assert found["rows"][1]["action_age_steps"] == {"2": 90, "10": 1}
    assert found["hardware"]["cores"] >= 1
    said = io.StringIO()
    console = Console(file=said, width=120)
    report.show(console)
    assert "2 of 3 succeeded" in said.getvalue()
    assert "commands followed observations 2 control periods old, at most 10" in said.getvalue()


def test_a_run_says_what_a_hypervisor_took_from_it():
    """So that a missed period is not looked for in the wrong place."""
    stat = "cpu  10 20 30 40 50 60 70 800 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n"
    assert stolen_seconds(stat) == 800 / os.sysconf("SC_CLK_TCK")
    assert stolen_seconds("intr 1\n") == stolen_seconds("cpu  1 2 3\n") == 0
    assert stolen_seconds() >= 0
    cores = len(os.sched_getaffinity(0))
    for stolen_s, share, told in ((0.0, 0.0, False), (0.25 * cores, 0.1, True)):
        rows = [dataclasses.replace(row(0, True, 0, 1.0, 1.0), stolen_s=stolen_s), row(1, True, 0, 1.0, 1.0)]
        report, said = RunReport("r", "p", "push", 0, 80.0, rows, "bag"), io.StringIO()
        assert report.to_dict()["stolen"] == pytest.approx(share)
        report.show(Console(file=said, width=200))
        assert ("gave 10.0 % of this virtual machine's processor time to others" in said.getvalue()) == told


def test_a_run_without_an_episode_can_be_reported():
    found = RunReport("r", "p", "push", 0, 80.0, [], "bag", "mujoco_node died: exit code 1").to_dict()
    assert (found["episodes"], found["success_rate"], found["control"]["missed"]) == (0, None, None)
    assert found["ended_by"] == "mujoco_node died: exit code 1"


# -- whole runs --------------------------------------------------------------------------------------------------------


def options(bundle: Path, output: Path, **changes) -> RunOptions:
    wanted: dict[str, Any] = {
        "robot": "metaworld_sawyer",
        "policy": bundle,
        "task": "drawer-open",
        "episodes": 2,
        "seed": 4,
    }
    return RunOptions(**(wanted | {"output": output, "json": output / "run.json", "steps": 60} | changes))


def test_a_run_from_beginning_to_end(bundle, tmp_path, middleware):
    said = io.StringIO()
    console = Console(file=said, width=200)
    assert run_robot(options(bundle, tmp_path), console) == 0
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["ended_by"] is None
    assert (found["episodes"], found["successes"]) == (2, 0)  # the policy was never trained
    assert (found["stitching"], found["prefix"]) == ("latest", 0)
    assert found["instruction"] == "open the drawer"
    assert [r["seed"] for r in found["rows"]] == [episode_seed("eval", 4, i) for i in range(2)]
    assert [r["steps"] for r in found["rows"]] == [60, 60]
    assert found["control"]["rate_hz"] == 80.0
    for figures in (found["control"]["period_error_us"], found["inference_ms"]):
        assert 0 <= figures["p50"] <= figures["p99"]
    assert all(r["counters"]["controller.chunks"] >= 60 / 8 - 2 for r in found["rows"])
    assert all(50 <= sum(r["action_age_steps"].values()) <= 75 for r in found["rows"])
    assert sum(found["action_age_steps"].values()) == sum(sum(r["action_age_steps"].values()) for r in found["rows"])
    episodes = BagReader(tmp_path / "bag").episodes()
    assert [e.description["seed"] for e in episodes] == [r["seed"] for r in found["rows"]]
    assert [len(e.files) for e in episodes] == [1, 1]
    with AnyReader([tmp_path / "bag"]) as reader:
        counts = {c.topic.removeprefix("/metaworld_sawyer/"): c.msgcount for c in reader.connections}
    assert counts["commands"] >= 110
    assert counts["applied_command"] == pytest.approx(counts["environment_state"], abs=2)
    assert counts["action_chunk"] >= 10
    assert "0 of 2 succeeded" in said.getvalue()
    for index in range(2):  # the recording is complete: the same thing happens again, from its seed and commands alone
        verdict = replay_recorded(open_episode(tmp_path / "bag", index))
        assert not verdict.diverged
        assert verdict.steps >= 55


def test_a_run_in_another_namespace_is_recorded_there_and_its_recording_can_be_used(bundle, tmp_path, middleware):
    asked = options(bundle, tmp_path, episodes=1, steps=40, namespace="cell/left")
    assert run_robot(asked, Console(file=io.StringIO())) == 0
    topics = {message.topic for message in BagReader(tmp_path / "bag").raw()}
    assert {topic for topic in topics if not topic.startswith("/cell/left/")} <= {"/diagnostics"}
    assert "/cell/left/action_chunk" in topics
    assert not replay_recorded(open_episode(tmp_path / "bag", 0)).diverged
    report = bag_to_dataset(tmp_path / "bag", tmp_path / "dataset")
    assert (report.added, report.skipped, report.problems) == (1, [], [])


def test_a_namespace_in_which_a_graph_is_up_already_is_refused_before_anything_starts(
    robot, bundle, tmp_path, middleware
):
    other = Peer(robot, middleware, "controller_node")
    try:
        with pytest.raises(
            ValueError, match=r"another graph is up(?s:.*)/metaworld_sawyer/controller_node(?s:.*)--namespace"
        ):
            run_robot(options(bundle, tmp_path), Console(file=io.StringIO()))
    finally:
        other.close()
    assert list(tmp_path.iterdir()) == []


def test_a_policy_of_several_tasks_is_told_the_instruction_of_the_task(two_task_bundle, tmp_path, middleware):
    asked = options(two_task_bundle, tmp_path, task="push", episodes=1, steps=40)
    assert run_robot(asked, Console(file=io.StringIO())) == 0
    (found,) = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert found["counters"]["controller.chunks"] >= 3


def test_a_real_robot_is_driven_through_the_same_topics(robot, bundle, tmp_path, middleware, new_graph):
    """The simulated body stands in for a robot that is there already and that the run does not start."""
    graph = new_graph()
    parameters = {"robot": robot.name, "task": "reach", "seed": 1}
    client = graph.start(NodeProcess(BODY, "ros_nodes.mujoco_node", "/" + robot.name, parameters))
    client.transition([BODY], "activate", 10.0)
    contract = tmp_path / "real.yaml"
    contract.write_text(yaml.safe_dump(msgspec.structs.replace(robot, body="external").to_dict()))
    asked = options(bundle, tmp_path / "run", robot=str(contract), task="wave", episodes=1, steps=40)
    with pytest.raises(ValueError, match=r"standard input is no terminal(?s:.*)--unattended"):
        run_robot(asked)
    assert not (tmp_path / "run").exists()
    unattended = dataclasses.replace(asked, unattended=True)
    assert run_robot(unattended, Console(file=io.StringIO())) == 0
    assert graph.processes.alive(BODY)
    (episode,) = BagReader(tmp_path / "run" / "bag").episodes()
    assert (episode.description["task"], episode.description["seed"]) == ("wave", 4)
    with AnyReader([tmp_path / "run" / "bag"]) as reader:
        counts = {c.topic.rsplit("/", 1)[-1]: c.msgcount for c in reader.connections}
    assert min(counts["commands"], counts["applied_command"], counts["joint_states"]) >= 35
    assert json.loads(client.trigger(BODY, "statistics", 5.0))["held_periods"] > 0  # before and after the run


def test_whether_a_policy_fits_can_be_asked_without_starting_anything(bundle, tmp_path):
    said = io.StringIO()
    assert run_robot(options(bundle, tmp_path / "run", check=True), Console(file=said, width=500)) == 0
    assert f"{bundle} fits metaworld_sawyer; a run would start mujoco_node, recorder_node" in said.getvalue()
    assert not (tmp_path / "run").exists()
    for namespace, where in ((None, "/metaworld_sawyer"), ("left", "/left")):
        run_robot(options(bundle, tmp_path / "run", check=True, namespace=namespace), Console(file=said, width=500))
        assert said.getvalue().endswith(f" policy_node in {where}\n")
    with pytest.raises(ValueError, match="draw-open"):
        run_robot(options(bundle, tmp_path / "run", check=True, task="draw-open"))
    with pytest.raises(ValueError, match="'2nd' is no namespace"):
        run_robot(options(bundle, tmp_path / "run", check=True, namespace="2nd"))


def test_a_policy_that_does_not_fit_is_refused_before_anything_starts(bundle, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    contract = PolicyContract.load(other / CONTRACT_FILE)
    slower = msgspec.structs.replace(contract, robot="go2", action_period_s=0.05)
    (other / CONTRACT_FILE).write_text(slower.to_json())
    write_manifest(other)
    with pytest.raises(ContractMismatch) as caught:
        run_robot(options(other, tmp_path / "run"))
    assert "'go2'" in str(caught.value)
    assert "every 50.000 ms" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robot": "metaworld_swayer"}, "no robot 'metaworld_swayer'"),
        ({"task": "draw-open"}, "draw-open"),
        ({"policy": Path("/nowhere")}, "/nowhere"),
        ({"episodes": 0}, "at least 1"),
        ({"cameras": ("corner9",)}, "no camera 'corner9'"),
        ({"namespace": "le-ft"}, "'le-ft' is no namespace of a robot: .* such as left"),
        ({"stitching": "glue"}, "latest, ensemble and prefix, not 'glue'"),
        ({"stitching": "prefix"}, "cannot continue the chunk before"),
        ({"stitching": "prefix", "prefix": 0}, "at least 1 action"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(bundle, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_robot(options(bundle, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"task": "drawer-open"}, {"task": "push", "instruction": "open the drawer"}])
def test_an_instruction_that_the_policy_does_not_know_is_refused_with_those_it_knows(
    two_task_bundle, tmp_path, changes
):
    with pytest.raises(ValueError, match=r"'open the drawer'(?s:.*)- push the puck to the goal\n  - move the gripper"):
        run_robot(options(two_task_bundle, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_recording_is_never_written_over(bundle, tmp_path):
    (tmp_path / "bag").mkdir()
    with pytest.raises(FileExistsError, match="already holds a recording"):
        options(bundle, tmp_path)


def test_a_node_that_cannot_begin_is_named_with_its_own_words(bundle, tmp_path, middleware):
    said = io.StringIO()
    console = Console(file=said, width=200)
    assert run_robot(options(bundle, tmp_path, backend="abacus"), console) == 1
    assert "policy_node could not configure" in said.getvalue()
    assert "abacus" in said.getvalue()
    assert json.loads((tmp_path / "run.json").read_text())["ended_by"].startswith("policy_node could not configure")
