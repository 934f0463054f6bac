"""Training and evaluation never meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.seeds import MAX_EPISODES, MAX_SEED, episode_seed, is_evaluation_seed

EPISODES = st.tuples(st.sampled_from(["train", "eval"]), st.integers(0, MAX_SEED - 1), st.integers(0, MAX_EPISODES - 1))


@given(EPISODES, EPISODES)
def test_another_split_run_or_index_is_another_seed(one, other):
    assert (episode_seed(*one) == episode_seed(*other)) == (one == other)


@given(EPISODES)
def test_a_seed_tells_its_split_and_fits_64_bits(episode):
    seed = episode_seed(*episode)
    assert is_evaluation_seed(seed) == (episode[0] == "eval")
    assert 0 <= seed < 2**63


@pytest.mark.parametrize(
    ("split", "seed", "index"),
    [("test", 0, 0), ("train", -1, 0), ("train", MAX_SEED, 0), ("eval", 0, -1), ("eval", 0, MAX_EPISODES)],
)
def test_what_is_out_of_range_is_refused(split, seed, index):
    with pytest.raises(ValueError, match="not"):
        episode_seed(split, seed, index)
