"""Which seed an episode gets. Training and evaluation never share one."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "eval"]

MAX_EPISODES = 2**20
MAX_SEED = 2**40  # so that every episode seed fits a signed 64-bit column


def episode_seed(split: Split, seed: int, index: int) -> int:
    """Seed of episode `index` of the run `seed`.

    One-to-one: another split, run or index always gives another seed (training even, evaluation odd), so
    no two episodes of a task are the same by accident, and no demonstration is of a scene of an evaluation. A recording
    of `run` or `eval --record` is of such scenes: `visuomotor train` says so when it learns from one.

    Args:
        split: "train" for demonstrations, "eval" for evaluation.
        seed: the number a person gives to `--seed`, in [0, 2**40).
        index: the episode's place within the run, in [0, 2**20).

    Raises:
        ValueError: a number out of its range.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split is 'train' or 'eval', not {split!r}")
    if not 0 <= seed < MAX_SEED:
        raise ValueError(f"seed {seed} is not within [0, {MAX_SEED})")
    if not 0 <= index < MAX_EPISODES:
        raise ValueError(f"episode {index} is not within [0, {MAX_EPISODES})")
    return 2 * (seed * MAX_EPISODES + index) + (split == "eval")


def is_evaluation_seed(seed: int) -> bool:
    """True for a seed that `episode_seed("eval", ...)` gives."""
    return seed % 2 == 1
