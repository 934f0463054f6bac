"""How every node of this project starts and ends."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import rclpy
from rclpy._rclpy_pybind11 import RCLError  # of Jazzy and Kilted; there is no public name for it
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

WAIT_S = 0.05  # a signal is noticed within this, while nothing else happens
EXIT_WITHIN_S = 5.0  # a process that takes longer to end is ended by the kernel


class Stop:
    """Set by SIGINT and SIGTERM, or by the node itself: `stop()` ends the process cleanly.

    No threading.Event: that has a lock, on which a second signal within the handler of the first would wait forever.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> None:
        """Ask the process to end."""
        self._asked = True

    def __bool__(self) -> bool:
        """True when the process was asked to end."""
        return self._asked


class Executor:
    """A single-threaded executor that survives what rclpy raises in ordinary life, and nothing else."""

    def __init__(self, node: Any) -> None:
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._node = node

    def spin_once(self, timeout_s: float) -> None:
        """Wait for at most `timeout_s` seconds and run at most one callback."""
        try:
            self._executor.spin_once(timeout_sec=timeout_s)
        except RCLError as error:
            # Jazzy raises an invalid lifecycle request out of spin (rclpy #1209): it is refused, the node lives on.
            if not rclpy.ok() or "transition" not in str(error).lower():
                raise
            self._node.get_logger().warning(f"refused: {error}")

    def close(self) -> None:
        """Let go of the node."""
        self._executor.shutdown(timeout_sec=1.0)


def run_node(
    factory: Callable[[], Any],
    argv: Sequence[str] | None = None,
    spin: Callable[[Any, Executor, Stop], None] | None = None,
) -> int:
    """Run one node until SIGINT, SIGTERM or its own end. For a process's `main`, in the main thread.

    Args:
        factory: makes the node, after rclpy is up. Before the node is destroyed, its `close()` is called, once: stop
            acting, last commands out, threads joined, files closed.
        argv: command line (`--ros-args --params-file F -r __ns:=/robot`); the process's own if None.
        spin: the node's own loop `spin(node, executor, stop)`, for one that keeps a rate; it must return when `stop` is
            true. None: callbacks only.

    Returns:
        The exit status: 0 after a signal. An exception of the node's own is raised after everything was let go.
    """
    if "HOME" not in os.environ and "ROS_LOG_DIR" not in os.environ and "ROS_HOME" not in os.environ:
        os.environ["ROS_LOG_DIR"] = str(Path(tempfile.gettempdir()) / "ros_log")  # rclpy.init fails without any of them
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    # rclpy's own handlers would take the context down before the node could send its last command.
    rclpy.init(args=list(sys.argv if argv is None else argv), signal_handler_options=SignalHandlerOptions.NO)
    try:
        _run(factory, spin or _spin, stop)
    except ExternalShutdownException:
        pass
    except RCLError:
        if rclpy.ok():  # otherwise it is what a shutdown at a busy moment looks like
            raise
    finally:
        rclpy.try_shutdown()
    return 0


def spin_with_thread(node: Any, executor: Executor, stop: Stop) -> None:
    """The loop of a node whose work is in a thread of its own.

    Raises:
        RuntimeError: an error ended that thread (`node.died`): the process ends too, so that everyone sees it.
    """
    while not stop and rclpy.ok():
        executor.spin_once(WAIT_S)
        if node.died:
            raise RuntimeError(f"a thread of {node.get_name()} ended with the error above")


def _run(factory: Callable[[], Any], spin: Callable[[Any, Executor, Stop], None], stop: Stop) -> None:
    node = factory()
    executor = Executor(node)
    try:
        spin(node, executor, stop)
    finally:
        # From here on nothing may hang, not even the middleware's own exit: SIGALRM ends the process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, EXIT_WITHIN_S)
        node.close()
        executor.close()
        node.destroy_node()


def _spin(node: Any, executor: Executor, stop: Stop) -> None:
    while not stop and rclpy.ok():
        executor.spin_once(WAIT_S)
