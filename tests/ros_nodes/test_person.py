"""Who says that a real robot may move."""

from __future__ import annotations

import io
import os
import threading
import time

import pytest
from rich.console import Console

from ros_nodes.monitor import Monitor, RunInterrupted, StoppedByUser
from ros_nodes.person import Person


@pytest.fixture
def beside():
    """A person with a keyboard in the test's hand, the monitor, and what the terminal shows."""
    read, write = os.pipe()
    shown, monitor = io.StringIO(), Monitor()
    with os.fdopen(read) as terminal, os.fdopen(write, "w") as keyboard:
        yield Person(monitor, Console(file=shown), terminal), keyboard, monitor, shown
        keyboard.close()  # lets the reader end
        time.sleep(0.05)


def press_enter(keyboard) -> None:
    keyboard.write("\n")
    keyboard.flush()


def test_nothing_goes_on_before_enter_and_what_was_typed_before_the_question_is_no_answer(beside):
    person, keyboard, _, shown = beside
    threading.Timer(0.2, press_enter, [keyboard]).start()
    asked = time.monotonic()
    person.agrees("Will move. Enter?")
    assert time.monotonic() - asked > 0.15
    assert "Will move. Enter?" in shown.getvalue()
    press_enter(keyboard)
    time.sleep(0.2)
    threading.Timer(0.2, press_enter, [keyboard]).start()
    asked = time.monotonic()
    person.agrees("Again?")
    assert time.monotonic() - asked > 0.15


def test_ctrl_c_ends_the_wait(beside):
    person, _, monitor, _ = beside
    threading.Timer(0.1, lambda: monitor.interrupt(StoppedByUser("stopped by SIGINT"))).start()
    with pytest.raises(StoppedByUser):
        person.agrees("Enter?")


def test_where_nobody_can_answer_any_more_the_run_ends(beside):
    person, keyboard, _, _ = beside
    threading.Timer(0.1, keyboard.close).start()
    with pytest.raises(RunInterrupted, match="standard input has ended"):
        person.agrees("Enter?")
