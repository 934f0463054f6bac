"""The processes of a graph: each in a session of its own, deaths are noticed at once, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from ros_nodes.graph import NodeProcess, parameters_file

LOG_TAIL_LINES = 8
KILLED_WITHIN_S = 5.0  # only a process that hangs in the kernel takes longer


class NodeProcesses:
    """The running processes of one graph.

    Start them from the main thread: the kernel ties a child's life to the *thread* that started it.

    Args:
        directory: where each node's parameters (`<name>.yaml`) and output (`<name>.log`) go.
        environment: the full environment that every node's own variables are added to.
        on_death: called with (node name, how it ended) from another thread, within a millisecond or so of a death that
            `stop` did not ask for.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str], on_death: Callable[[str, str], None]) -> None:
        self._directory = directory
        self._environment = dict(environment)
        self._on_death = on_death
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchers: dict[str, threading.Thread] = {}
        self._asked_to_end: set[str] = set()

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each node that was started."""
        return {name: process.pid for name, process in self._processes.items()}

    def start(self, node: NodeProcess) -> None:
        """Start one node; its output goes to its log file."""
        self._directory.mkdir(parents=True, exist_ok=True)
        parameters = self._directory / f"{node.name}.yaml"
        parameters.write_text(yaml.safe_dump(parameters_file(node), sort_keys=False))
        command = [sys.executable, "-m", "ros_nodes.tether", node.orphan_signal.name, str(os.getpid()), node.module]
        command += ["--ros-args", "-r", f"__ns:={node.namespace}", "--params-file", str(parameters)]
        with self.log(node.name).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment | dict(node.env),
                start_new_session=True,
            )
        self._processes[node.name] = process
        self._asked_to_end.discard(node.name)  # another of its name may have been
        watcher = threading.Thread(
            target=self._watch, args=(node.name, process), name=f"watch {node.name}", daemon=True
        )
        self._watchers[node.name] = watcher
        watcher.start()

    def alive(self, name: str) -> bool:
        """True while the node's process runs."""
        return name in self._processes and self._processes[name].returncode is None

    def log(self, name: str) -> Path:
        """The file that a node's output goes to."""
        return self._directory / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """The last lines that a node printed, indented."""
        try:
            lines = self.log(name).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        except OSError:
            return ""
        return "\n".join("    " + line for line in lines)

    def stop(self, names: list[str], grace_s: float) -> None:
        """SIGTERM to each, SIGKILL to what is still there after `grace_s`; then to whatever its session holds still."""
        self._asked_to_end.update(names)
        for name in names:
            self._signal_group(name, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for name in names:
            if name in self._watchers:
                self._watchers[name].join(max(0.0, deadline - time.monotonic()))
        for name in names:
            self._signal_group(name, signal.SIGKILL)
        for name in names:
            if name in self._watchers:
                self._watchers[name].join(KILLED_WITHIN_S)

    def _signal_group(self, name: str, number: signal.Signals) -> None:
        if name not in self._processes:
            return
        try:
            os.killpg(self._processes[name].pid, number)
        except (ProcessLookupError, PermissionError):  # nobody of that session is left
            return

    def _watch(self, name: str, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if name not in self._asked_to_end:
            self._on_death(name, describe_exit(code))


def describe_exit(code: int) -> str:
    """A return code in words: `signal 9 (SIGKILL)`, `exit code 1`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
