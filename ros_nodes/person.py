"""Whoever stands beside a real robot and says when it may move."""

from __future__ import annotations

import sys
import threading
from typing import TextIO

from rich.console import Console

from ros_nodes.monitor import Monitor, RunInterrupted


class Person:
    """Asked on the terminal; answers with Enter. What was typed before the question is no answer."""

    def __init__(self, monitor: Monitor, console: Console, terminal: TextIO | None = None) -> None:
        self._monitor, self._console = monitor, console
        self._terminal = sys.stdin if terminal is None else terminal
        self._answered = False
        self._listener = threading.Thread(target=self._listen, name="person", daemon=True)  # a read cannot be ended

    def agrees(self, question: str) -> None:
        """Wait for Enter.

        Raises:
            RunInterrupted: the run ends instead, or nobody can answer any more.
        """
        self._answered = False
        self._console.print(question, style="bold", soft_wrap=True, markup=False, highlight=False)
        if self._listener.ident is None:
            self._listener.start()
        self._monitor.wait(lambda: self._answered, threading.TIMEOUT_MAX)

    def _listen(self) -> None:
        while self._terminal.readline():
            self._answered = True
            self._monitor.wake()
        self._monitor.interrupt(RunInterrupted("nobody can say when the robot may move: standard input has ended"))
