"""The newest of what comes, for as long as it is fresh."""

from __future__ import annotations

from typing import Generic, TypeVar

NANOSECONDS = 1_000_000_000

Value = TypeVar("Value")


class Newest(Generic[Value]):
    """Holds one value. Values come in one thread and are taken in another.

    Args:
        timeout_s: the value ages; after this it is given no more.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_ns = round(timeout_s * NANOSECONDS)
        self._held: tuple[Value, int] | None = None  # replaced as a whole: no lock is needed

    def put(self, value: Value, now_ns: int) -> None:
        """Take a value received at `now_ns` of the steady clock."""
        self._held = value, now_ns

    def get(self, now_ns: int) -> Value | None:
        """The value; None when none came within the time-out."""
        held = self._held
        if held is None or now_ns - held[1] > self._timeout_ns:
            return None
        return held[0]

    def clear(self) -> None:
        """Forget it."""
        self._held = None
