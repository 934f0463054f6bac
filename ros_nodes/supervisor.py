"""`visuomotor run`: start a robot's graph, run episodes on it, watch over it, end it, and say what happened."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from tqdm import tqdm

from contracts import PolicyContract, RobotContract, check_compatible, load_robot
from episodes.bag import BagError
from episodes.repair import repair
from execution.stitching import PREFIX_ACTIONS, split_stitching
from policies.runtime.bundle import read_bundle
from ros_nodes.episode_runner import EpisodeRunner
from ros_nodes.episode_start import check_start, choose_instruction
from ros_nodes.graph import RECORDER, cameras_of, describe_graph
from ros_nodes.graph_client import GraphClient, GraphError
from ros_nodes.middleware import buffer_warning, domain_id, middleware_environment
from ros_nodes.monitor import Monitor, NodeDied, RunInterrupted, StoppedByUser
from ros_nodes.person import Person
from ros_nodes.processes import NodeProcesses
from ros_nodes.run_report import EpisodeRow, RunReport
from ros_nodes.walk import WalkPlan

RUN_MARKER = "VISUOMOTOR_RUN"  # in the environment of every process of one run: finds strays
FAILED = 1
GRACE_S = 3.0  # for a node to end by itself


@dataclass(frozen=True)
class RunOptions:
    """What to run.

    Attributes:
        robot: name or path of the robot's contract.
        policy: directory of an exported bundle.
        task: what the simulated body is set up for, such as "drawer-open"; a real robot's recording carries it.
        episodes: how many.
        steps: control periods that an episode may take; Meta-World's limit, and that of `visuomotor eval`, is 500.
        seed: episode i has the seed that `visuomotor eval` gives it.
        output: the recording (`bag/`) and the nodes' logs (`nodes/`) go here.
        json: the run's figures; None writes none.
        cameras: recorded besides those that the policy sees.
        backend: inference engine, `openvino` or `onnxruntime`.
        stitching: how chunks are joined, `latest`, `ensemble` or `prefix`.
        prefix: actions of the chunk before that a chunk repeats, with the stitching `prefix`.
        instruction: what the policy is asked to do, in words; None: what Meta-World says of the simulated body's task,
            or `task` itself on a real robot or for a quadruped.
        imagine_hz: how often a policy that imagines pictures publishes them; 0: never.
        walk: where a simulated quadruped is told to go, and how it is pushed.
        check: compare policy, robot and everything else that is asked for, and start nothing.
        unattended: a real robot begins each episode without a person's word.
        namespace: the robot's in ROS, of which each graph in a domain needs its own; None: the robot's name.
    """

    robot: str
    policy: Path
    task: str
    episodes: int
    seed: int
    output: Path
    json: Path | None = None
    cameras: tuple[str, ...] = ()
    backend: str = "openvino"
    stitching: str = "latest"
    prefix: int = PREFIX_ACTIONS
    instruction: str | None = None
    steps: int = 500
    imagine_hz: float = 0.0
    walk: WalkPlan = WalkPlan()
    check: bool = False
    unattended: bool = False
    namespace: str | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, not {self.episodes}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if self.bag.exists():
            raise FileExistsError(f"{self.bag} already holds a recording: choose another --output, or move it away")

    @property
    def bag(self) -> Path:
        """Directory of the recording."""
        return self.output / "bag"


def run_robot(options: RunOptions, console: Console | None = None) -> int:
    """Run the episodes; returns the exit code of the command.

    0: all ran (whether or not they succeeded). 1: a node refused or did not answer. 3: a node died. 130: Ctrl-C or
    SIGTERM. However it ends, the robot is stopped first, no process stays, and the recording can be read.

    Raises:
        ContractMismatch: the policy does not fit the robot; nothing was started.
        ValueError, OSError: the bundle, the robot, the task, the instruction, the stitching, the namespace or the
            output cannot be used, another graph has the namespace, or a real robot has nobody beside it; nothing was
            started.
    """
    console = console or Console()
    robot = load_robot(options.robot)
    options.walk.check(robot)
    bundle = read_bundle(options.policy)
    check_compatible(bundle.contract, robot)
    instruction = choose_instruction(robot, options.task, options.instruction)
    check_start(bundle, instruction, split_stitching(options.stitching, options.prefix)[1])
    if warning := buffer_warning(robot, (*cameras_of(bundle.contract), *options.cameras)):
        console.print(warning, style="yellow", soft_wrap=True, highlight=False)
    run = _Run(options, robot, bundle.contract, instruction, console)
    if options.check:
        what = f"{', '.join(node.name for node in run.nodes)} in {run.namespace}"
        console.print(f"{options.policy} fits {robot.name}; a run would start {what}", soft_wrap=True, highlight=False)
        return 0
    if run.person is not None and not sys.stdin.isatty():
        raise ValueError(
            f"before every episode of a real robot ({robot.name}) a person says that it may move, and standard input is"
            " no terminal: run this in one, or with --unattended"
        )
    code, ended_by = 0, None
    with stop_signals(run.monitor):
        try:
            run.everything()
        except RunInterrupted as reason:
            code, ended_by = reason.exit_code, str(reason)
        except GraphError as error:
            code, ended_by = FAILED, f"{error}\n{run.processes.log_tail(error.node)}".rstrip()
    report = run.report(ended_by)
    if report.rows:
        report.show(console)
    if ended_by is not None:
        console.print(ended_by, style="bold red", soft_wrap=True, markup=False, highlight=False)
        console.print(f"{len(report.rows)} of {options.episodes} episodes were completed", highlight=False)
        if options.bag.exists():
            console.print(f"recording up to then: {options.bag}", soft_wrap=True, highlight=False)
    if options.json is not None:
        report.write(options.json)
    return code


class _Run:
    """One run's processes, from the first to the last."""

    def __init__(
        self, options: RunOptions, robot: RobotContract, policy: PolicyContract, instruction: str, console: Console
    ) -> None:
        self.monitor = Monitor()
        attended = robot.body == "external" and not options.unattended
        self.person = Person(self.monitor, console) if attended else None
        self._options = options
        self._robot = robot
        self._console = console
        self._rows: list[EpisodeRow] = []
        self._observation_set = policy.observation_set
        self._instruction = instruction
        self._seeds = _episode_seeds(robot, options)
        _, repeated = split_stitching(options.stitching, options.prefix)
        self._how = {"instruction": instruction, "stitching": options.stitching, "prefix": repeated}
        self._plan = options.walk if robot.body == "quadruped" else None
        if self._plan is not None:
            self._how["walk"] = asdict(self._plan)
        self.nodes = describe_graph(
            robot,
            policy,
            robot_source=options.robot,
            bundle=options.policy,
            task=options.task,
            seed=self._seeds[0],
            bag=options.bag,
            cameras=options.cameras,
            backend=options.backend,
            stitching=options.stitching,
            prefix=options.prefix,
            instruction=instruction,
            imagine_hz=options.imagine_hz,
            namespace=options.namespace,
        )
        self.namespace = self.nodes[0].namespace
        directory = options.output.resolve() / "nodes"
        self._shared_domain = robot.body == "external" or "ROS_DOMAIN_ID" in os.environ
        self._middleware = middleware_environment(domain_id(robot), os.environ) | {"ROS_LOG_DIR": str(directory)}
        marker = {RUN_MARKER: os.environ.get(RUN_MARKER, uuid.uuid4().hex)}
        self.processes = NodeProcesses(directory, dict(os.environ) | self._middleware | marker, self._on_death)

    def everything(self) -> None:
        """Start, run the episodes, and however that ends stop the robot first and then all processes."""
        o = self._options
        client = runner = None
        try:
            client = GraphClient(self._robot, self._middleware, self.monitor, self.namespace)
            names = [node.name for node in self.nodes]
            if self._shared_domain:
                with self._console.status("looking for others in its namespace"):
                    client.check_alone(names)
            for node in self.nodes:
                self.processes.start(node)
            runner = EpisodeRunner(
                client, names, self._robot, o.task, self._instruction, self._observation_set, o.steps,
                self.processes.alive, self._plan,
            )  # fmt: skip
            with self._console.status("starting the nodes"):
                runner.bring_up()
            for index in tqdm(range(o.episodes), desc=o.task, unit="episode", disable=None):
                if self.person is not None:
                    self.person.agrees(
                        f"{self.namespace.removeprefix('/')} will move: episode {index + 1} of {o.episodes},"
                        f" {o.task!r}. Enter begins it, Ctrl-C ends the run."
                    )
                self._rows.append(runner.run(index, self._seeds[index]))
        finally:
            self.monitor.finish()
            self._end(runner)
            if client is not None:
                client.close()

    def report(self, ended_by: str | None) -> RunReport:
        """The run so far."""
        o = self._options
        rate = self._robot.control_rate_hz
        return RunReport(
            self._robot.name, str(o.policy), o.task, o.seed, rate, self._rows, str(o.bag), ended_by, self._how
        )

    def _end(self, runner: EpisodeRunner | None) -> None:
        """Hold, end the nodes, the recorder last so that it sees the rest, and make the recording whole."""
        if runner is not None:
            runner.hold()
        self.processes.stop([node.name for node in self.nodes if node.name != RECORDER], GRACE_S)
        self.processes.stop([RECORDER], GRACE_S)
        if self.monitor.reason is not None and self._options.bag.exists():
            try:
                repair(self._options.bag)
            except (BagError, OSError) as error:
                self._console.print(f"the recording could not be made whole: {error}", soft_wrap=True, markup=False)

    def _on_death(self, name: str, how: str) -> None:
        said = "" if "SIGKILL" in how else self.processes.log_tail(name)  # the killed have no last words
        self.monitor.interrupt(NodeDied(name, f"{how}\n{said}".rstrip()))


def _episode_seeds(robot: RobotContract, options: RunOptions) -> list[int]:
    """One seed an episode: for a simulated body those of `visuomotor eval`."""
    if robot.body == "external":
        return [options.seed + index for index in range(options.episodes)]
    from sim.seeds import episode_seed  # a real robot's computer has no simulator

    return [episode_seed("eval", options.seed, index) for index in range(options.episodes)]


@contextmanager
def stop_signals(monitor: Monitor) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the run in an orderly way, as often as they come."""

    def stop(number: int, _: FrameType | None) -> None:
        monitor.interrupt(StoppedByUser(f"stopped by {signal.Signals(number).name}"))

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
