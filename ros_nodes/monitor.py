"""What the supervisor's main thread waits on: any thread or signal handler may wake it, or end the run."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable


class RunInterrupted(Exception):
    """The run must end in an orderly way; the message is for the user."""

    exit_code = 1


class NodeDied(RunInterrupted):
    """A node's process ended by itself."""

    exit_code = 3

    def __init__(self, name: str, how: str) -> None:
        super().__init__(f"{name} died: {how}")
        self.name = name


class StoppedByUser(RunInterrupted):
    """Ctrl-C or SIGTERM."""

    exit_code = 130  # the shell's convention for an interrupted command


class Monitor:
    """A waiting place. Nothing is polled: `wait` sleeps until somebody calls `wake` or `interrupt`.

    SimpleQueue.put is reentrant, so both are safe in a signal handler (Python docs, queue).
    """

    def __init__(self) -> None:
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._reasons: list[RunInterrupted] = []
        self._heeded = True

    @property
    def reason(self) -> RunInterrupted | None:
        """Why the run must end: the first reason that was given."""
        return self._reasons[0] if self._reasons else None

    def wake(self) -> None:
        """Something changed: let a waiter look."""
        self._wakes.put(None)

    def interrupt(self, reason: RunInterrupted) -> None:
        """End the run: the present or next `wait` raises `reason`. Later reasons do not replace the first."""
        self._reasons.append(reason)
        self.wake()

    def finish(self) -> None:
        """From here on the run is being ended: `wait` no longer raises."""
        self._heeded = False

    def wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Sleep until `ready()`; False when `timeout_s` passes first.

        Raises:
            RunInterrupted: the reason given to `interrupt`, unless `finish` was called.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._heeded and self._reasons:
                raise self._reasons[0]
            if ready():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            try:
                self._wakes.get(timeout=remaining)
            except queue.Empty:
                continue
