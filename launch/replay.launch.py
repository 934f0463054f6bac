"""A recorded episode on its topics again, started by ROS 2's own launch.

ros2 launch visuomotor replay.launch.py bag:=runs/demo/bag episode:=0 speed:=1.0
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from ros_nodes.graph import REPLAY, absolute_namespace

ARGUMENTS = {
    "bag": (None, "a rosbag2 directory or an .mcap file"),
    "episode": ("0", "its index in the recording"),
    "speed": ("1.0", "2.0 plays twice as fast"),
    "namespace": ("", "of the robot on whose topics it is published; if empty, that of the recording"),
}


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` calls."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_replay)])


def start_replay(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node, once the arguments are known."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    parameters = {"bag": given["bag"], "episode": int(given["episode"]), "speed": float(given["speed"])}
    node = Node(
        package="visuomotor",
        executable=REPLAY,
        name=REPLAY,
        namespace=absolute_namespace(given["namespace"]) if given["namespace"] else None,
        parameters=[parameters],
        output="screen",
    )
    return [node]
