"""The loop that keeps a rate, and the clock that never jumps."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

from execution.clock import SteadyClock
from execution.deadline import DeadlineLoop, sleep_until, try_realtime


def test_ticks_lie_on_a_grid_that_late_ones_do_not_move() -> None:
    loop = DeadlineLoop(200)
    loop.restart()
    due = []
    for tick in range(40):
        due.append(loop.next_deadline_ns)
        now = loop.wait()
        assert now >= due[-1]
        if tick % 10 == 0:
            time.sleep(0.004)  # most of a period
    steps = np.diff(due) / loop.period_ns
    assert np.abs(steps - np.round(steps)).max() < 1e-3, "off the grid"


def test_it_can_be_aligned_to_a_time_long_past_or_to_come() -> None:
    loop = DeadlineLoop(100)
    loop.restart()
    for offset in (-5_004_500_000, 25_500_000):  # about 4.5 ms before a tick
        loop.wait()
        before, phase = loop.next_deadline_ns, time.monotonic_ns() + offset
        loop.align(phase)
        due = loop.next_deadline_ns
        assert abs(due - before) <= loop.period_ns // 2, "neither a burst nor a gap"
        assert (due - phase) % loop.period_ns == 0
        assert due <= loop.wait() < due + loop.period_ns
    figures = loop.statistics()
    assert figures["periods"] == 3
    assert figures["missed"] == 0, "an interval that was made longer or shorter is no error"
    assert figures["rate_hz"] == pytest.approx(100, rel=0.2)  # 140 of the intervals as they were


def test_it_can_be_aligned_bit_by_bit() -> None:
    loop = DeadlineLoop(100)
    before = loop.next_deadline_ns
    for offset, moved in ((-4_000_000, -1000), (4_000_000, 1000), (300, 300), (-300, -300)):
        loop.align(before + offset, at_most_ns=1000)
        assert loop.next_deadline_ns - before == moved
        loop.align(before)


def test_a_tick_that_comes_too_late_is_left_out_and_counted_instead_of_made_up_for() -> None:
    loop = DeadlineLoop(100)
    loop.restart()
    loop.wait()
    loop.wait()
    before = loop.next_deadline_ns
    time.sleep(0.055)
    loop.wait()
    assert loop.next_deadline_ns - before >= 5 * loop.period_ns
    start = time.monotonic_ns()
    loop.wait()
    loop.wait()
    assert time.monotonic_ns() - start > loop.period_ns, "a burst"
    statistics = loop.statistics()
    assert statistics["periods"] == 4
    assert statistics["missed"] >= 1
    assert statistics["period_error_us"]["max"] > 40_000


def test_the_account_of_a_loop_says_what_it_should() -> None:
    loop = DeadlineLoop(100)
    assert loop.statistics()["periods"] == 0
    for _ in range(30):
        loop.wait()
    statistics = loop.statistics()
    assert statistics["rate_hz"] == pytest.approx(100, rel=0.05)
    error = statistics["period_error_us"]
    assert 0 <= error["p50"] <= error["p99"] <= error["max"]
    loop.reset_statistics()
    assert loop.statistics() == {
        "rate_hz": 0.0,
        "period_error_us": {"p50": 0.0, "p99": 0.0, "max": 0.0},
        "missed": 0,
        "periods": 0,
    }


def test_a_signal_does_not_cut_a_wait_short() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        deadline = time.monotonic_ns() + 80_000_000
        sleep_until(deadline)
        assert time.monotonic_ns() >= deadline
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_other_threads_run_while_it_sleeps() -> None:
    """The interpreter lock is given up."""
    ran = threading.Event()
    threading.Timer(0.01, ran.set).start()
    sleep_until(time.monotonic_ns() + 200_000_000)
    assert ran.is_set()


def test_garbage_is_collected_in_the_slack_only() -> None:
    loop = DeadlineLoop(20)
    try:
        loop.pause_garbage_collection()
        assert not gc.isenabled()
        loop.restart()
        collected = gc.get_stats()[2]["collections"]
        for _ in range(25):  # more than a second
            loop.wait()
            loop.collect_in_slack()
        assert gc.get_stats()[2]["collections"] > collected
    finally:
        loop.resume_garbage_collection()
        gc.unfreeze()
    assert gc.isenabled()


def test_realtime_is_asked_for_and_what_came_of_it_is_told() -> None:
    told: list[tuple[str, int]] = []
    thread = threading.Thread(target=lambda: told.append((try_realtime(10), os.sched_getscheduler(0))))
    thread.start()
    thread.join()
    ((said, policy),) = told
    if policy == os.SCHED_FIFO:
        assert said == "SCHED_FIFO 10"
    else:
        assert said.startswith("SCHED_OTHER")
        assert "rtprio limit of at least 10" in said


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e9])
def test_a_rate_that_no_loop_can_keep_is_an_error(rate) -> None:
    with pytest.raises(ValueError, match="rate_hz"):
        DeadlineLoop(rate)


class Clocks:
    """A steady clock and another one, both in the test's hand."""

    def __init__(self) -> None:
        self.steady, self.other, self.read_ns = 1_000_000_000, 5_000_000_000, 1000

    def read_steady(self) -> int:
        self.steady += self.read_ns // 2
        self.other += self.read_ns // 2
        return self.steady

    def pass_ns(self, ns: int, other: int | None = None) -> None:
        self.steady += ns
        self.other += ns if other is None else other


def test_stamps_of_one_instant_stay_equal_and_differences_exact() -> None:
    clocks = Clocks()
    clock = SteadyClock(lambda: clocks.other, clocks.read_steady)
    first = clock.to_steady(4_900_000_000)
    for jitter in (1000, 7000, 100, 30_000):
        clocks.read_ns = jitter
        clocks.pass_ns(3_000_000)
        assert clock.to_steady(4_900_000_000) == first
        assert clock.to_steady(4_912_500_000) - first == 12_500_000
    assert abs(first - 900_000_000) < 10_000


def test_after_a_jump_of_the_other_clock_new_stamps_are_understood() -> None:
    clocks = Clocks()
    clock = SteadyClock(lambda: clocks.other, clocks.read_steady)
    clocks.other -= 3_600_000_000_000
    assert abs(clock.to_steady(clocks.other) - clocks.steady) < 100_000


def test_across_a_step_back_of_the_other_clock_stamps_keep_their_order_and_are_told_by_the_clock_as_it_is() -> None:
    clocks = Clocks()
    clock = SteadyClock(lambda: clocks.other, clocks.read_steady)
    before = clock.to_steady(4_900_000_000)
    assert clock.to_other(before) == 4_900_000_000, "to the nanosecond"
    clocks.pass_ns(12_500_000, other=12_500_000 - 2_000_000_000)
    after = clock.to_steady(2_912_500_000)
    assert after - before == pytest.approx(12_500_000, abs=100_000)
    assert clock.to_other(before) == pytest.approx(2_900_000_000, abs=100_000)


def test_it_goes_on_when_the_other_clock_stops() -> None:
    """A simulator's time stands still when the simulator does; what it sent must grow old all the same."""
    clocks = Clocks()
    clock = SteadyClock(lambda: clocks.other, clocks.read_steady)
    stamp = clock.to_steady(clocks.other)
    clocks.pass_ns(500_000_000, other=0)
    assert clock.now_ns() - stamp >= 500_000_000


def test_a_reading_that_was_interrupted_does_not_move_the_offset() -> None:
    clocks = Clocks()
    clock = SteadyClock(lambda: clocks.other, clocks.read_steady)
    stamp = clocks.other
    before = clock.to_steady(stamp)
    slow = {"ns": 8_000_000}

    def preempted() -> int:
        clocks.pass_ns(slow["ns"])
        return clocks.read_steady()

    clock._steady_ns = preempted
    assert clock.to_steady(stamp) == before


def test_a_reading_that_was_interrupted_once_is_read_again() -> None:
    """Or a jump of the other clock would be followed by half the interruption too much."""
    clocks = Clocks()
    clock = SteadyClock(lambda: clocks.other, clocks.read_steady)
    clocks.other -= 3_600_000_000_000
    stamp, then, stalls = clocks.other, clocks.steady, iter((0, 8_000_000))

    def preempted() -> int:
        clocks.pass_ns(next(stalls, 0))
        return clocks.read_steady()

    clock._steady_ns = preempted
    assert clock.to_steady(stamp) == pytest.approx(then, abs=100_000)
