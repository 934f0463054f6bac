"""A loop that keeps its rate: absolute deadlines on the steady clock, and an honest account of how they were kept."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from typing import Any

import numpy as np

NANOSECONDS = 1_000_000_000
MISSED = 1.5  # periods: an interval between two ticks longer than this is a missed period
KEPT_INTERVALS = 1 << 14  # the percentiles are of the latest so many: 3 minutes at 80 Hz, 1 ms to work out
COLLECT_EVERY_NS = NANOSECONDS  # how often garbage is collected, in a period's slack
COLLECT_SLACK = 0.5  # of a period, that must be left for it

_TIMER_ABSTIME = 1  # <time.h>
_EINTR = 4
_SLICE_NS = 100_000  # the shortest that the kernel allows
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # system call numbers; the C library has no function for it


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _SchedAttr(ctypes.Structure):
    """struct sched_attr, version 0 (sched_setattr(2)); all but the slice keep their zeros: SCHED_OTHER, nice 0."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


_clock_nanosleep = ctypes.CDLL(None, use_errno=False).clock_nanosleep  # a CDLL call releases the GIL
_clock_nanosleep.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Timespec), ctypes.POINTER(_Timespec))
_clock_nanosleep.restype = ctypes.c_int


def sleep_until(deadline_ns: int) -> None:
    """Sleep until CLOCK_MONOTONIC (`time.monotonic_ns`) shows `deadline_ns`; at once if it is past."""
    spec = _Timespec(*divmod(deadline_ns, NANOSECONDS))
    while _clock_nanosleep(time.CLOCK_MONOTONIC, _TIMER_ABSTIME, ctypes.byref(spec), None) == _EINTR:
        pass  # a signal: an absolute deadline is simply waited for again


def try_realtime(priority: int = 50) -> str:
    """Ask for SCHED_FIFO for the calling thread and those that it starts, and say what came of it.

    A real-time class needs a permission. Without it, a short time slice makes the scheduler wake the thread sooner.

    Args:
        priority: 1 to 99; 50 is that of the kernel's own interrupt threads.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        slice_ = f", slice {_SLICE_NS / 1e6} ms" if _try_short_slice() else ""
        needed = f"an rtprio limit of at least {priority} (/etc/security/limits.conf)"
        return f"SCHED_OTHER{slice_}: {error.strerror}; SCHED_FIFO needs {needed}"
    return f"SCHED_FIFO {priority}"


def _try_short_slice() -> bool:
    """Ask the fair scheduler for a short slice; needs no permission (sched_setattr(2), Linux 6.12)."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    attributes = _SchedAttr(size=ctypes.sizeof(_SchedAttr), runtime=_SLICE_NS)
    return bool(ctypes.CDLL(None).syscall(number, 0, ctypes.byref(attributes), 0) == 0)


class DeadlineLoop:
    """Ticks of a fixed rate.

    A late tick does not move the next ones, and a tick more than a period late is left out instead of caught up with:
    a burst of commands would be worse than a gap.
    """

    def __init__(self, rate_hz: float) -> None:
        if not 0 < rate_hz <= 10_000:
            raise ValueError(f"rate_hz {rate_hz} is not within (0, 10000]")
        self.rate_hz = rate_hz
        self.period_ns = round(NANOSECONDS / rate_hz)
        self._origin_ns = time.monotonic_ns()
        self._tick = 0
        self._collected_ns = self._origin_ns
        self._last_ns = 0
        self._periods = 0
        self._missed = 0
        self._max_error_ns = 0
        np.percentile(np.zeros(2), (50, 99))  # its first call takes milliseconds: not in the middle of a tick
        self._intervals = np.zeros(KEPT_INTERVALS, dtype=np.int64)  # allocated and touched before the first tick

    @property
    def next_deadline_ns(self) -> int:
        """When the next tick is due, on the steady clock."""
        return self._origin_ns + round((self._tick + 1) * NANOSECONDS / self.rate_hz)

    def wait(self) -> int:
        """Sleep until the next tick. Returns the steady time at which it really began, in ns."""
        self._tick += 1
        sleep_until(self._origin_ns + round(self._tick * NANOSECONDS / self.rate_hz))
        now_ns = time.monotonic_ns()
        due = int((now_ns - self._origin_ns) * self.rate_hz / NANOSECONDS)
        self._tick = max(self._tick, due)
        if self._last_ns:
            interval = now_ns - self._last_ns
            self._intervals[self._periods % KEPT_INTERVALS] = interval
            self._periods += 1
            self._missed += interval > MISSED * self.period_ns
            self._max_error_ns = max(self._max_error_ns, abs(interval - self.period_ns))
        self._last_ns = now_ns
        return now_ns

    def restart(self) -> None:
        """Begin again with an empty account; the next tick is in a period."""
        self._origin_ns = time.monotonic_ns()
        self._tick = 0
        self.reset_statistics()

    def align(self, to_ns: int, at_most_ns: int | None = None) -> None:
        """Move the ticks to come, by at most half a period, to whole periods from the steady time `to_ns`.

        The account takes the tick before for one that moved too: the interval that this changes is no error.

        Args:
            to_ns: of one of the ticks that are wanted, past or to come.
            at_most_ns: go only so far.
        """
        half_ns = self.period_ns // 2
        moved_ns = (to_ns - self.next_deadline_ns + half_ns) % self.period_ns - half_ns
        if at_most_ns is not None:
            moved_ns = max(-at_most_ns, min(moved_ns, at_most_ns))
        self._origin_ns += moved_ns
        if self._last_ns:
            self._last_ns += moved_ns

    def pause_garbage_collection(self) -> None:
        """Keep Python's collector from running in the middle of a tick; call `collect_in_slack` every tick instead."""
        gc.collect()
        gc.freeze()  # what lives now (modules, the node) is never looked at again, which makes a full collection short
        gc.disable()

    def resume_garbage_collection(self) -> None:
        """Let Python's collector run by itself again."""
        gc.enable()

    def collect_in_slack(self) -> None:
        """Collect garbage now and then, when enough of the period is left."""
        now_ns = time.monotonic_ns()
        if now_ns - self._collected_ns < COLLECT_EVERY_NS:
            return
        if self.next_deadline_ns - now_ns > COLLECT_SLACK * self.period_ns:
            gc.collect()
            self._collected_ns = now_ns

    def reset_statistics(self) -> None:
        """Begin a new account; the loop itself goes on."""
        self._last_ns = 0
        self._periods = 0
        self._missed = 0
        self._max_error_ns = 0

    def statistics(self) -> dict[str, Any]:
        """How the rate was kept since the account began.

        Returns:
            `rate_hz` (really reached; 0 before two ticks), `period_error_us` {p50, p99, max} of |interval - period|,
            `missed` (intervals over 1.5 periods), `periods` (intervals counted).
        """
        kept = self._intervals[: min(self._periods, KEPT_INTERVALS)]
        if len(kept) == 0:
            return {"rate_hz": 0.0, "period_error_us": {"p50": 0.0, "p99": 0.0, "max": 0.0}, "missed": 0, "periods": 0}
        p50, p99 = np.percentile(np.abs(kept - self.period_ns), (50, 99)) / 1e3
        return {
            "rate_hz": round(float(NANOSECONDS / kept.mean()), 4),
            "period_error_us": {
                "p50": round(float(p50), 1),
                "p99": round(float(p99), 1),
                "max": round(self._max_error_ns / 1e3, 1),
            },
            "missed": self._missed,
            "periods": self._periods,
        }
