"""The graph of `visuomotor run`, started by ROS 2's own launch; an operator, or other nodes, drive the episodes.

    ros2 launch visuomotor visuomotor.launch.py policy:=zoo/diffusion-drawer-open output:=runs/launched

Processes, names and parameters come from `ros_nodes.graph`, as in `visuomotor run`. The death of a node ends them all,
and so does a node that cannot be configured or activated: a robot must not go on without its recorder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from contracts import RobotContract, check_compatible, load_robot
from execution.stitching import PREFIX_ACTIONS, split_stitching
from policies.runtime.bundle import read_bundle
from ros_nodes.episode_start import check_start, choose_instruction
from ros_nodes.graph import CONTROLLER, POLICY, NodeProcess, describe_graph
from ros_nodes.graph_client import GraphClient
from ros_nodes.middleware import DEFAULT_DOMAIN_ID, transport_environment
from ros_nodes.monitor import Monitor

ARGUMENTS = {
    "robot": ("metaworld_sawyer", "name or path of the robot's contract"),
    "policy": (None, "directory of an exported bundle"),
    "task": ("drawer-open", "what the simulated body is set up for"),
    "seed": ("0", "of the simulated body and of the policy's session"),
    "output": (None, "directory of the recording: <output>/bag"),
    "cameras": ("", "recorded besides those that the policy sees: names with commas between"),
    "backend": ("openvino", "inference engine: openvino or onnxruntime"),
    "stitching": ("latest", "how chunks are joined: latest, ensemble or prefix"),
    "prefix": (str(PREFIX_ACTIONS), "actions of the chunk before that a chunk repeats, with the stitching prefix"),
    "instruction": ("", "what the policy is asked to do; if empty, what the task says"),
    "imagine_hz": ("0.0", "how often pictures that the policy imagines are published, on imagined/t4 ...; 0: never"),
    "use_sim_time": ("false", "ROS time is that of /clock, of a simulator of your own, which must run in real time"),
    "namespace": ("", "the robot's ROS namespace, of which each graph needs its own; if empty, the robot's name"),
    "activate": ("", "whether controller and policy are activated, so that it moves; if empty, only in simulation"),
}


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` calls."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_graph)])


def start_graph(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The nodes, once the arguments are known.

    Raises, before anything starts:
        ContractMismatch: the policy does not fit the robot.
        FileExistsError: the output already holds a recording.
        ValueError: another argument cannot be used, or such a graph is up in the namespace already.
    """
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    bag = Path(given["output"]) / "bag"
    if bag.exists():
        raise FileExistsError(f"{bag} already holds a recording: choose another output, or move it away")
    robot = load_robot(given["robot"])
    bundle = read_bundle(Path(given["policy"]))
    check_compatible(bundle.contract, robot)
    instruction = choose_instruction(robot, given["task"], given["instruction"])
    prefix = int(given["prefix"])
    check_start(bundle, instruction, split_stitching(given["stitching"], prefix)[1])
    nodes = describe_graph(
        robot,
        bundle.contract,
        robot_source=given["robot"],
        bundle=bundle.path,
        task=given["task"],
        seed=int(given["seed"]),
        bag=bag,
        cameras=tuple(filter(None, given["cameras"].split(","))),
        backend=given["backend"],
        stitching=given["stitching"],
        prefix=prefix,
        instruction=instruction,
        imagine_hz=float(given["imagine_hz"]),
        use_sim_time=given["use_sim_time"].lower() == "true",
        namespace=given["namespace"],
    )
    transport = transport_environment(os.environ, "SUBNET")
    check_alone(robot, nodes, transport)
    actions: list[LaunchDescriptionEntity] = [SetEnvironmentVariable(*variable) for variable in transport.items()]
    moves = given["activate"].lower() == "true" if given["activate"] else robot.body != "external"
    for node in nodes:
        actions += managed(node, activate=moves or node.name not in (CONTROLLER, POLICY))
    return actions


def check_alone(robot: RobotContract, nodes: Sequence[NodeProcess], transport: Mapping[str, str]) -> None:
    """Refuse a namespace with nodes of these names, as `visuomotor run` does. Raises ValueError."""
    domain = {"ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID") or str(DEFAULT_DOMAIN_ID)}
    client = GraphClient(robot, domain | transport, Monitor(), nodes[0].namespace)
    try:
        client.check_alone([node.name for node in nodes])
    finally:
        client.close()


def managed(node: NodeProcess, activate: bool) -> list[LaunchDescriptionEntity]:
    """One node: started, configured, and activated as soon as it is configured. If that fails, all end.

    One that an operator activates may refuse: it says why, and may be asked again.
    """
    action = LifecycleNode(
        package="visuomotor",
        executable=node.name,
        name=node.name,
        namespace=node.namespace,
        parameters=[dict(node.parameters)],
        additional_env=dict(node.env),
        output="screen",
        on_exit=[Shutdown(reason=f"{node.name} has ended")],
    )
    this = matches_action(action)
    activation = EmitEvent(event=ChangeState(lifecycle_node_matcher=this, transition_id=Transition.TRANSITION_ACTIVATE))

    def after(start_state: str | None, goal_state: str, what: LaunchDescriptionEntity) -> RegisterEventHandler:
        transition = OnStateTransition(
            target_lifecycle_node=action, start_state=start_state, goal_state=goal_state, entities=[what]
        )
        return RegisterEventHandler(transition)

    failure = Shutdown(reason=f"{node.name} could not be configured or activated, or failed")
    handlers = [after("configuring", "unconfigured", failure), after(None, "errorprocessing", failure)]
    if activate:
        handlers += [after("configuring", "inactive", activation), after("activating", "inactive", failure)]
    configuration = EmitEvent(
        event=ChangeState(lifecycle_node_matcher=this, transition_id=Transition.TRANSITION_CONFIGURE)
    )
    return [*handlers, action, configuration]
