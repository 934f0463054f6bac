"""The policy's thread, without ROS: when it asks, what it drops, and what it says of itself."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from contracts import PolicyContract, PolicyObservation, load_robot
from execution.chunk import ActionChunk
from execution.observation import Observation, ObservationAssembler
from policies.runtime import PolicyOutputError
from ros_nodes.inference import InferenceThread

ROBOT = load_robot("metaworld_sawyer")
TICK = 12_500_000
CONTRACT = PolicyContract(
    policy="test",
    robot=ROBOT.name,
    observation_set="state",
    task="",
    observations=tuple(PolicyObservation(feature=f) for f in ROBOT.observation_features("state")),
    action=ROBOT.action_feature,
    action_period_s=ROBOT.control_period_s,
    horizon=16,
    execute=8,
)


class Policy:
    """A session that answers zeros; `gate` is open unless a test closes it."""

    residual_noise = None

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[int] = []
        self.error: Exception | None = None

    def act(self, observation: Observation) -> ActionChunk:
        self.asked.append(observation.stamp_ns)
        self.gate.wait(5)
        if self.error is not None:
            raise self.error
        return ActionChunk(np.zeros((16, 4)), observation.stamp_ns, TICK, CONTRACT.action.names)


class Bench:
    def __init__(self) -> None:
        self.policy, self.now = Policy(), 0
        self.chunks: list[ActionChunk] = []
        assembler = ObservationAssembler(ROBOT, CONTRACT)
        self.thread = InferenceThread(assembler, CONTRACT, self.policy, lambda: self.now, self.chunks.append)

    def observe(self, stamp: int) -> None:
        self.now = max(self.now, stamp)
        with self.thread.collecting() as assembler:
            assembler.push_feature("observation.state", stamp, np.zeros(39))
        time.sleep(0.005)


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.policy.gate.set()
    bench.thread.stop(5.0)


def test_it_asks_at_once_and_then_every_execute_periods_whatever_the_jitter(bench) -> None:
    jitter = np.random.default_rng(0).integers(-TICK // 5, TICK // 5, 40)
    for tick in range(40):
        bench.observe(10**9 + tick * TICK + int(jitter[tick]))
    ticks = [round((stamp - 10**9) / TICK) for stamp in bench.policy.asked]
    assert ticks == [0, 8, 16, 24, 32]
    assert [chunk.start_ns for chunk in bench.chunks] == bench.policy.asked


def test_a_slow_inference_answers_the_newest_observation_next_not_all_that_came_meanwhile(bench) -> None:
    bench.policy.gate.clear()
    for tick in range(20):
        bench.observe(tick * TICK)
    bench.policy.gate.set()
    bench.observe(20 * TICK)
    assert bench.policy.asked[0] == 0
    assert bench.policy.asked[1] in (19 * TICK, 20 * TICK)


def test_it_says_that_it_is_not_well_while_an_inference_does_not_end(bench) -> None:
    assert bench.thread.healthy(0.05)
    bench.policy.gate.clear()
    bench.observe(0)
    assert bench.thread.healthy(1.0)
    time.sleep(0.08)
    assert not bench.thread.healthy(0.05)
    bench.policy.gate.set()
    time.sleep(0.02)
    assert bench.thread.healthy(0.05)


def test_after_its_end_nothing_is_published_not_even_what_was_begun(bench) -> None:
    bench.policy.gate.clear()
    bench.observe(0)
    assert not bench.thread.stop(0.01), "an inference still runs"
    bench.policy.gate.set()
    assert bench.thread.stop(5.0)
    assert bench.chunks == []
    assert not bench.thread.healthy(1.0)
    assert not bench.thread.died


def test_an_answer_that_no_robot_may_be_sent_is_dropped_and_counted(bench) -> None:
    bench.policy.error = PolicyOutputError("nan")
    bench.observe(0)
    bench.policy.error = None
    bench.observe(8 * TICK)
    assert [chunk.start_ns for chunk in bench.chunks] == [8 * TICK]
    assert bench.thread.statistics()["counters"] == {"refused.output.non_finite": 1}


def test_it_says_what_it_waits_for(bench) -> None:
    assert "has not come yet" in bench.thread.waiting_for
    bench.observe(0)
    assert bench.thread.waiting_for is None
    bench.now += 10**9  # no message wakes the thread any more
    assert "is stale: 1000.0 ms old" in bench.thread.statistics()["waiting_for"]
    bench.thread.stop(5.0)
    assert bench.thread.waiting_for is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_policy_ends_it_and_shows(bench) -> None:
    bench.policy.error = RuntimeError("the inference engine is gone")
    bench.observe(0)
    time.sleep(0.05)
    assert bench.thread.died
    assert not bench.thread.healthy(1.0)
