"""Chunks and how overlapping ones become one action."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.chunk import MAX_HORIZON, ActionChunk
from execution.stitching import LatestChunk, TemporalEnsemble, make_stitching, split_stitching

PERIOD = 12_500_000
NAMES = ("x", "y")


def chunk(start: int, *values: float, period: int = PERIOD) -> ActionChunk:
    """Both channels of action k have values[k]."""
    return ActionChunk(np.array(values)[:, None].repeat(2, axis=1), start, period, NAMES)


def first(action: np.ndarray | None) -> float:
    """The action's number; there must be an action."""
    assert action is not None
    return float(action[0])


@pytest.mark.parametrize(
    ("actions", "names", "period", "says"),
    [
        (np.zeros((0, 2)), NAMES, PERIOD, "horizon"),
        (np.zeros(2), NAMES, PERIOD, "horizon"),
        (np.zeros((3, 2)), ("x",), PERIOD, "names"),
        (np.zeros((3, 2)), ("x", "x"), PERIOD, "twice"),
        (np.array([[0.0, 1.0], [0.0, np.nan]]), NAMES, PERIOD, "action 1 has nan in y"),
        (np.array([[np.inf, 1.0]]), NAMES, PERIOD, "action 0 has inf in x"),
        (np.zeros((3, 2)), NAMES, 0, "period_ns"),
    ],
)
def test_a_chunk_that_cannot_be_executed_is_an_error(actions, names, period, says) -> None:
    with pytest.raises(ValueError, match=says):
        ActionChunk(actions, 0, period, names)


def test_a_chunk_cannot_be_changed_after_it_was_checked() -> None:
    actions = np.zeros((3, 2))
    made = ActionChunk(actions, 0, PERIOD, NAMES)
    actions[:] = np.nan
    assert np.isfinite(made.actions).all()
    with pytest.raises(ValueError, match="read-only"):
        made.actions[0, 0] = np.nan


@given(start=st.integers(0, 2**62), k=st.integers(0, 500), rate=st.integers(1, 2000), jitter=st.floats(-0.009, 0.98))
def test_action_k_is_for_tick_k_whatever_the_rate_and_the_rounding(start, k, rate, jitter) -> None:
    """Ticks of a 1/rate loop are rounded to ns, and the stamp passes through two clocks: neither shifts an action."""
    period = round(1e9 / rate)
    tick = start + round(k * 1e9 / rate) + int(jitter * period)
    assert ActionChunk(np.zeros((1, 1)), start, period, ("x",)).index(tick) == k


def test_latest_executes_each_action_for_a_period_and_then_nothing() -> None:
    stitching = LatestChunk()
    stitching.add(chunk(1000, 0.0, 1.0, 2.0))
    assert first(stitching.sample(1000)) == 0.0
    assert first(stitching.sample(1000 + PERIOD - PERIOD // 50)) == 0.0
    assert first(stitching.sample(1000 + PERIOD)) == 1.0
    assert first(stitching.sample(1000 + 3 * PERIOD - PERIOD // 50)) == 2.0
    assert stitching.sample(1000 + 3 * PERIOD) is None
    assert stitching.sample(1000 - PERIOD) is None


def test_latest_drops_the_actions_that_a_late_chunk_meant_for_the_past() -> None:
    stitching = LatestChunk()
    stitching.add(chunk(0, *range(16)))
    stitching.add(chunk(8 * PERIOD, *range(100, 116)))  # arrives 2 periods late
    assert first(stitching.sample(10 * PERIOD)) == 102


def test_latest_keeps_the_old_chunk_until_the_new_one_begins() -> None:
    stitching = LatestChunk()
    stitching.add(chunk(0, *range(16)))
    stitching.add(chunk(4 * PERIOD, 104.0))
    assert [first(stitching.sample(k * PERIOD)) for k in (2, 3, 4)] == [2, 3, 104]
    assert stitching.sample(5 * PERIOD) is None, "the old chunk must not come back"


@pytest.mark.parametrize("kind", [LatestChunk, TemporalEnsemble])
def test_a_chunk_older_than_the_newest_is_refused_and_one_of_the_same_time_replaces_it(kind) -> None:
    stitching = kind()
    assert stitching.add(chunk(PERIOD, 1.0))
    assert not stitching.add(chunk(0, 5.0, 5.0))
    assert stitching.add(chunk(PERIOD, 2.0))
    assert first(stitching.sample(PERIOD)) == 2.0
    stitching.clear()
    assert stitching.sample(PERIOD) is None


@pytest.mark.parametrize("kind", [LatestChunk, TemporalEnsemble])
def test_chunks_of_too_old_observations_do_not_count(kind) -> None:
    stitching = kind()
    stitching.add(chunk(0, *range(40)))
    assert first(stitching.sample(20 * PERIOD, oldest_ns=0)) == 20
    assert stitching.sample(20 * PERIOD, oldest_ns=1) is None


def test_temporal_ensemble_weighs_the_oldest_most_and_counts_zeros() -> None:
    """Worked out by hand, ACT's weights exp(-0.01 i), i = 0 for the oldest; 0.0 is a prediction like any other."""
    stitching = TemporalEnsemble()
    stitching.add(chunk(0, 9.0, 9.0, 3.0))
    stitching.add(chunk(PERIOD, 9.0, 0.0))
    stitching.add(chunk(2 * PERIOD, 1.0, 9.0))
    w1, w2 = math.exp(-0.01), math.exp(-0.02)
    expected = (3.0 + 0.0 * w1 + 1.0 * w2) / (1 + w1 + w2)
    assert first(stitching.sample(2 * PERIOD)) == pytest.approx(expected, rel=1e-12)
    assert first(stitching.sample(3 * PERIOD)) == pytest.approx(9.0)
    assert stitching.sample(4 * PERIOD) is None


@pytest.mark.parametrize(
    ("choice", "prefix", "controller", "policy"),
    [("latest", 4, LatestChunk, 0), ("ensemble", 4, TemporalEnsemble, 0), ("prefix", 6, LatestChunk, 6)],
)
def test_a_users_choice_is_told_to_controller_and_policy(choice, prefix, controller, policy) -> None:
    name, repeated = split_stitching(choice, prefix)
    assert type(make_stitching(name)) is controller
    assert repeated == policy


def test_a_stitching_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="latest, ensemble and prefix, not 'glue'"):
        split_stitching("glue")
    with pytest.raises(ValueError, match="latest and ensemble, not 'prefix'"):
        make_stitching("prefix")
    with pytest.raises(ValueError, match="at least 1 action, not 0"):
        split_stitching("prefix", 0)


@pytest.mark.parametrize("kind", [LatestChunk, TemporalEnsemble])
def test_a_chunk_says_nothing_of_the_time_before_it(kind) -> None:
    stitching = kind()
    stitching.add(chunk(PERIOD, 1.0, 9.0))
    assert stitching.sample(0) is None
    assert first(stitching.sample(PERIOD)) == 1.0


def test_an_ensembles_age_is_that_of_the_newest_chunk_in_it() -> None:
    """However old the others are: it is what the robot saw last that an action answers."""
    ensemble = TemporalEnsemble()
    ensemble.add(chunk(0, *range(8)))
    ensemble.add(chunk(4 * PERIOD, *range(8)))
    for tick, age in ((3, 3), (4, 0), (6, 2)):
        assert ensemble.sample(tick * PERIOD) is not None
        assert ensemble.age == age


def test_the_longest_chunk_is_taken_and_a_longer_one_is_not() -> None:
    assert chunk(0, *[0.0] * MAX_HORIZON).horizon == MAX_HORIZON
    with pytest.raises(ValueError, match=f"1 to {MAX_HORIZON} actions"):
        chunk(0, *[0.0] * (MAX_HORIZON + 1))
