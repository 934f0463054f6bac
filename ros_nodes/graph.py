"""The processes of a running robot, and what each is told: one description for `visuomotor run` and for ROS's launch.

Imports no ROS, so that a command can describe, check and print the graph anywhere.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contracts import PolicyContract, RobotContract
from execution.stitching import PREFIX_ACTIONS, split_stitching

ParameterValue = bool | int | float | str | list[str]

# One thread computes and sleeps when it waits: two that spin beside a control loop cost it its periods.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "OPENBLAS_NUM_THREADS": "1"}

BODY, POLICY, CONTROLLER, RECORDER, REPLAY, SUPERVISOR = (
    "mujoco_node",
    "policy_node",
    "controller_node",
    "recorder_node",
    "replay_node",
    "supervisor",
)

NAMESPACE = re.compile("/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
LONGEST_NAMESPACE = 200  # its first slash too: with what stands after it, a name may have 247 characters in ROS


@dataclass(frozen=True)
class NodeProcess:
    """One node in a process of its own.

    Attributes:
        name: the node's name; also of its log and of its console script.
        module: `python -m <module>` starts it.
        namespace: the robot's.
        parameters: ROS parameters. One that is an empty list is left at its default: in ROS it would have no type.
        env: variables added to its environment.
        orphan_signal: what it gets when its supervisor dies. SIGTERM lets a node send its last command or close its
            file; one with nothing to finish is killed.
    """

    name: str
    module: str
    namespace: str
    parameters: Mapping[str, ParameterValue]
    env: Mapping[str, str] = field(default_factory=dict)
    orphan_signal: signal.Signals = signal.SIGKILL

    def __post_init__(self) -> None:
        given = {name: value for name, value in self.parameters.items() if value != []}
        object.__setattr__(self, "parameters", given)

    @property
    def full_name(self) -> str:
        """Name with namespace, as `ros2 node list` shows it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Topic:
    """One topic of the graph, relative to the robot's namespace unless it begins with a slash."""

    name: str
    type: str
    reliable: bool
    transient_local: bool = False


def describe_graph(
    robot: RobotContract,
    policy: PolicyContract,
    *,
    robot_source: str,
    bundle: Path,
    task: str,
    seed: int,
    bag: Path,
    cameras: tuple[str, ...] = (),
    backend: str = "openvino",
    stitching: str = "latest",
    prefix: int = PREFIX_ACTIONS,
    instruction: str = "",
    imagine_hz: float = 0.0,
    use_sim_time: bool = False,
    namespace: str | None = None,
) -> list[NodeProcess]:
    """The nodes that let `policy` drive `robot`, in the order of their start.

    Args:
        robot_source: name or path that each node loads the same robot contract from; nodes may run in another
            directory, so paths are made absolute.
        bundle: the exported policy's directory.
        task, seed: of the simulated body's first episode.
        bag: directory of the recording; must not exist.
        cameras: to be rendered besides those that the policy sees.
        backend: inference engine of the policy, `openvino` or `onnxruntime`.
        stitching: how chunks are joined, `latest`, `ensemble` or `prefix`.
        prefix: actions of the chunk before that a chunk repeats, with the stitching `prefix`.
        instruction: what the policy is asked to do; one of its contract's if it knows several.
        imagine_hz: how often it publishes the pictures that it imagines; 0: never.
        use_sim_time: ROS time is that of `/clock`, of somebody else's simulator, which must run in real time.
        namespace: in which the nodes and the contract's relative topics are; the robot's name if not given.

    Raises:
        ValueError: no such camera, no such stitching, a prefix of nothing, or no valid namespace.
    """
    joined, repeated = split_stitching(stitching, prefix)
    namespace = absolute_namespace(namespace or robot.name)
    is_path = Path(robot_source).suffix != ""
    common: dict[str, ParameterValue] = {"robot": str(Path(robot_source).resolve()) if is_path else robot_source}
    if use_sim_time:
        common["use_sim_time"] = True
    shown = list(dict.fromkeys((*cameras_of(policy), *cameras)))
    for camera in shown:
        robot.camera(camera)
    nodes = []
    if robot.body != "external":
        parameters = common | {"task": task, "seed": seed, "observation_set": policy.observation_set, "cameras": shown}
        nodes.append(NodeProcess(BODY, "ros_nodes.mujoco_node", namespace, parameters, THREADS))
    nodes += [
        NodeProcess(
            RECORDER,
            "ros_nodes.recorder_node",
            namespace,
            common | {"bag": str(bag.resolve()), "cameras": shown},
            THREADS,
            signal.SIGTERM,
        ),
        NodeProcess(
            CONTROLLER,
            "ros_nodes.controller_node",
            namespace,
            common | {"stitching": joined},
            THREADS,
            signal.SIGTERM,
        ),
        NodeProcess(
            POLICY,
            "ros_nodes.policy_node",
            namespace,
            common
            | {
                "bundle": str(bundle.resolve()),
                "backend": backend,
                "seed": seed,
                "instruction": instruction,
                "prefix": repeated,
                "imagine_hz": imagine_hz,
            },
            THREADS,
        ),
    ]
    return nodes


def absolute_namespace(namespace: str) -> str:
    """A robot's ROS namespace with the slash at its beginning, which may be given or not.

    Raises:
        ValueError: it is not valid (https://design.ros2.org/articles/topic_and_service_names.html), it is too long
            for the names in it, or it is the root, where robots would share their topics.
    """
    if not NAMESPACE.fullmatch(namespace):
        raise ValueError(
            f"{namespace!r} is no namespace of a robot: ASCII letters, digits and underscores would be right, the first"
            " no digit, such as left, or several with slashes between, such as cell_1/left"
        )
    absolute = "/" + namespace.removeprefix("/")
    if len(absolute) > LONGEST_NAMESPACE:
        raise ValueError(f"a robot's namespace may have {LONGEST_NAMESPACE} characters, not {len(absolute)}")
    return absolute


def cameras_of(policy: PolicyContract) -> tuple[str, ...]:
    """The cameras that a policy sees."""
    return tuple(o.feature.camera for o in policy.observations if o.feature.is_image)


def recorded_topics(robot: RobotContract, cameras: tuple[str, ...]) -> list[Topic]:
    """Every topic of the graph that belongs in a recording; of the pictures, those of `cameras`."""
    topics = list(dict.fromkeys(Topic(s.topic, s.type, reliable=False) for s in robot.sensors))
    topics += [Topic(robot.camera(c).topic, "sensor_msgs/msg/Image", reliable=False) for c in cameras]
    if robot.body == "quadruped":
        topics += [
            Topic("push", "geometry_msgs/msg/WrenchStamped", reliable=False),
            Topic("applied_push", "geometry_msgs/msg/WrenchStamped", reliable=True),
        ]
    return [
        *topics,
        Topic(robot.command.topic, robot.command.type, reliable=True),
        Topic("applied_command", "sensor_msgs/msg/JointState", reliable=True),
        Topic("success", "std_msgs/msg/Bool", reliable=True),
        Topic("episode", "std_msgs/msg/String", reliable=True, transient_local=True),
        Topic("controller_state", "std_msgs/msg/String", reliable=True, transient_local=True),
        Topic("action_chunk", "trajectory_msgs/msg/JointTrajectory", reliable=True),
        Topic("heartbeat", "std_msgs/msg/Header", reliable=False),
        Topic("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", reliable=True),
    ]


def parameters_file(node: NodeProcess) -> dict[str, dict[str, dict[str, ParameterValue]]]:
    """The content of the node's ROS 2 parameters YAML."""
    return {node.full_name: {"ros__parameters": dict(node.parameters)}}
