"""Two ends of a graph in processes of their own, so that each has settings of the middleware of its own.

    python -m tests.ros_nodes.far_process driver DOMAIN_ID     # sends pictures, 10 a second, and says what it is told
    python -m tests.ros_nodes.far_process listener DOMAIN_ID   # says when a picture comes, and tells the driver "go"

What comes is printed, a line each: `go`, or the seconds of the steady clock.
"""

from __future__ import annotations

import array
import sys
import time

import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String

from ros_nodes import qos

HEIGHT, WIDTH, RATE_HZ = 480, 640, 10


def drive(node: Node) -> None:
    """A robot's camera, and what moves it."""
    pictures = node.create_publisher(Image, "picture", qos.SENSOR)
    picture = Image(height=HEIGHT, width=WIDTH, step=3 * WIDTH, encoding="rgb8")
    picture.data = array.array("B", bytes(3 * HEIGHT * WIDTH))
    node.create_timer(1 / RATE_HZ, lambda: pictures.publish(picture))
    node.create_subscription(String, "told", lambda message: print(message.data, flush=True), qos.LATCHED)


def listen(node: Node) -> None:
    """A policy."""
    node.create_subscription(Image, "picture", lambda _: print(time.monotonic(), flush=True), qos.SENSOR)
    node.create_publisher(String, "told", qos.LATCHED).publish(String(data="go"))


if __name__ == "__main__":
    rclpy.init(domain_id=int(sys.argv[2]))
    far = rclpy.create_node(sys.argv[1])
    {"driver": drive, "listener": listen}[sys.argv[1]](far)
    rclpy.spin(far)
