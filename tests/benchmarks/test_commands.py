"""What benchmarks run side by side: as much at once as asked for, and nothing more after something failed."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from benchmarks.commands import CommandFailed, side_by_side, visuomotor


def test_so_many_at_once():
    lock, running, most, done = threading.Lock(), 0, 0, []

    def work(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
            done.append(number)

    side_by_side([partial(work, number) for number in range(6)], jobs=2)
    assert most == 2
    assert sorted(done) == list(range(6))


def test_nothing_begins_after_a_failure(tmp_path):
    begun = []

    def fails() -> None:
        begun.append("fails")
        visuomotor("replay", tmp_path / "nothing", log=tmp_path / "log")

    def takes_long() -> None:
        begun.append("long")
        time.sleep(0.2)

    with pytest.raises(CommandFailed, match="see .*log"):
        side_by_side([fails, *[takes_long] * 4], jobs=1)
    assert len(begun) <= 2  # the next one may have begun before the failure was seen
    assert "nothing" in (tmp_path / "log").read_text()
