"""The policy's own thread: asks for a chunk when one is due, and says whether it is still well. No ROS in it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from contracts import PolicyContract
from execution.chunk import ActionChunk
from execution.observation import NotReady, Observation, ObservationAssembler
from policies.runtime import PolicyOutputError

NANOSECONDS = 1_000_000_000
DUE_TOLERANCE = 0.5  # of a period: stamps carry the jitter of the robot's own loop
KEPT = 1 << 16  # the percentiles are of the latest so many inferences


class Acting(Protocol):
    """A policy's session: one episode."""

    @property
    def residual_noise(self) -> tuple[float, ...] | None:
        """Standard deviation of the noise left in each action of a chunk; None: all are decided."""
        ...

    def act(self, observation: Observation) -> ActionChunk:
        """A chunk for one observation."""
        ...


class InferenceThread:
    """One episode by receding horizon: infers when an observation is `execute` periods newer than the one answered.

    Whoever receives observations pushes them, `with inference.collecting() as assembler`; the thread looks after each.
    Inference itself runs without any lock, so that a slow one stops nothing else.
    """

    def __init__(
        self,
        assembler: ObservationAssembler,
        contract: PolicyContract,
        session: Acting,
        now_ns: Callable[[], int],
        publish: Callable[[ActionChunk], None],
    ) -> None:
        """
        Args:
            assembler: collects observations; emptied here. Stamps are on the clock of `now_ns`.
            contract: when a chunk is due.
            session: the policy.
            now_ns: a clock that never stops.
            publish: called in the thread with each chunk.
        """
        assembler.reset()
        self._assembler = assembler
        self._session = session
        self._now_ns = now_ns
        self._publish = publish
        self._every_ns = round((contract.execute - DUE_TOLERANCE) * contract.action_period_s * NANOSECONDS)
        self._condition = threading.Condition()
        self._running = True
        self._busy_since: float | None = None
        self._counters: Counter[str] = Counter()
        self._inference_ms: deque[float] = deque(maxlen=KEPT)
        self._age_ms: deque[float] = deque(maxlen=KEPT)
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @contextmanager
    def collecting(self) -> Iterator[ObservationAssembler]:
        """Push what was received; the thread looks at it afterwards."""
        with self._condition:
            yield self._assembler
            self._condition.notify()

    def refuse(self, reason: str) -> None:
        """Count something that was dropped."""
        with self._condition:
            self._counters[f"refused.{reason}"] += 1

    def stop(self, timeout_s: float) -> bool:
        """End the episode: from now on nothing is published. False if an inference still runs after `timeout_s`."""
        with self._condition:
            self._running = False
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def died(self) -> bool:
        """True when an error ended the thread (its traceback is on stderr)."""
        return self._running and not self._thread.is_alive()

    def healthy(self, limit_s: float) -> bool:
        """True while the thread lives and has not been in one inference for longer than `limit_s`."""
        busy_since = self._busy_since
        stuck = busy_since is not None and time.monotonic() - busy_since > limit_s
        return self._running and self._thread.is_alive() and not stuck

    @property
    def waiting_for(self) -> str | None:
        """What is missing or stale now, so that there is no observation; None if nothing, and after the end."""
        with self._condition:
            try:
                if self._running:
                    self._assembler.stamp_ns(self._now_ns())
            except NotReady as missing:
                return missing.reason
            return None

    def statistics(self) -> dict[str, Any]:
        """`inference_ms` and `observation_age_ms` (at the chunk's publication) {p50, p99}, `chunks`, `counters`,
        `residual_noise`, the session's, and `waiting_for`.
        """
        with self._condition:
            inference, age, counters = list(self._inference_ms), list(self._age_ms), dict(self._counters)
        return {
            "inference_ms": _percentiles(inference),
            "residual_noise": self._session.residual_noise,
            "observation_age_ms": _percentiles(age),
            "chunks": len(inference),
            "counters": counters,
            "waiting_for": self.waiting_for,
        }

    def _run(self) -> None:
        answered_ns: int | None = None
        while (observation := self._next(answered_ns)) is not None:
            answered_ns = observation.stamp_ns
            self._busy_since = start = time.monotonic()
            try:
                chunk = self._session.act(observation)
            except PolicyOutputError:
                self.refuse("output.non_finite")
                continue
            finally:
                self._busy_since = None
            inference_s = time.monotonic() - start
            with self._condition:
                if not self._running:
                    return
                self._publish(chunk)
                self._inference_ms.append(1e3 * inference_s)
                self._age_ms.append((self._now_ns() - observation.stamp_ns) / 1e6)

    def _next(self, answered_ns: int | None) -> Observation | None:
        """Wait for an observation that is due; None when the episode ends."""
        with self._condition:
            while self._running:
                try:
                    now_ns = self._now_ns()
                    if answered_ns is None or self._assembler.stamp_ns(now_ns) - answered_ns >= self._every_ns:
                        return self._assembler.window(now_ns)
                except NotReady:
                    pass  # the next message may complete it; until then no chunk is the right answer
                self._condition.wait()
            return None


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
