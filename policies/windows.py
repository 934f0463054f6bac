"""Training samples: what was seen up to a moment, and the actions from that moment on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from contracts import PolicyContract
from episodes.data import TrainingArrays
from policies.base import Batch
from policies.runtime.graphs import TASK

FUTURE = "future."  # before the key of what will be observed
CODE = "code."  # before the key of pictures: what they were encoded to
ENCODED_AT_ONCE = 64  # pictures


class Windows:
    """Cuts samples out of memory-mapped episodes; every row of every episode used is the moment of one sample.

    At the start of an episode its first observation is repeated, as the runtime does; past its end the last action is,
    and where the future is asked for, the last observation.
    """

    def __init__(self, arrays: TrainingArrays, contract: PolicyContract, use: Sequence[bool] | None = None) -> None:
        """`use`: which episodes to learn from, one flag each; None: all.

        Raises:
            ValueError: none of them.
        """
        self.arrays = arrays
        self.contract = contract
        self.observations = contract.observations
        self.future: tuple[int, ...] = ()
        self.codes: dict[str, np.ndarray] = {}
        used = np.ones(len(arrays.starts), bool) if use is None else np.asarray(use, bool)
        if not used.any():
            raise ValueError(f"none of the {len(used)} episodes can be learned from: all of them failed")
        self.starts, self.ends = arrays.starts[used], arrays.ends[used]
        lengths = self.ends - self.starts
        self.rows = np.concatenate([np.arange(s, e) for s, e in zip(self.starts, self.ends, strict=True)])
        self.first = np.repeat(self.starts, lengths)
        self.last = np.repeat(self.ends - 1, lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def without_observations(self) -> Windows:
        """The same samples, of which only `action` and `task` are read."""
        bare = copy.copy(self)
        bare.observations = ()
        return bare

    def with_future(self, periods: tuple[int, ...]) -> Windows:
        """The same samples with `future.<key>` [batch, len(periods), *shape]: observations so many periods ahead."""
        seeing = copy.copy(self)
        seeing.future = periods
        return seeing

    def encoded(self, encode: Callable[[str, Tensor], Tensor]) -> Windows:
        """The same samples with codes of all pictures, worked out now, once, and kept in memory as float16.

        They come as `code.<key>` beside the pictures of the present, and as `future.<key>` in place of those of the
        future, which are never read.

        `encode`: key and uint8 [pictures, height, width, 3] to [pictures, *code shape].
        """
        coded = copy.copy(self)
        coded.codes = {}
        for key in (o.feature.key for o in self.observations if o.feature.is_image):
            pictures = self.arrays.observations[key]
            parts = [
                encode(key, torch.from_numpy(np.array(pictures[row : row + ENCODED_AT_ONCE]))).cpu().numpy()
                for row in range(0, len(pictures), ENCODED_AT_ONCE)
            ]
            coded.codes[key] = np.concatenate([part.astype(np.float16) for part in parts])
        return coded

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """Key -> {"min", "max"} [size] of every vector, `action` included, over the episodes used."""
        arrays = {o.feature.key: self.arrays.observations[o.feature.key] for o in self.contract.observations}
        vectors = {key: array for key, array in arrays.items() if array.ndim == 2} | {"action": self.arrays.actions}
        return {
            key: {"min": self._over_rows(np.min, a), "max": self._over_rows(np.max, a)} for key, a in vectors.items()
        }

    def _over_rows(self, reduce: Callable[..., np.ndarray], array: np.ndarray) -> np.ndarray:
        """Reduced episode by episode, so that a large dataset never has to fit into memory."""
        parts = [reduce(array[s:e], axis=0) for s, e in zip(self.starts, self.ends, strict=True)]
        return reduce(np.stack(parts), axis=0)

    def batch(self, indices: np.ndarray) -> Batch:
        """Samples number `indices` [batch]: key -> [batch, history, *shape], `action` -> [batch, horizon, dim].

        `task` -> int64 [batch]: index of the instruction in the contract.
        """
        found = {}
        moments, first, last = (values[indices][:, None] for values in (self.rows, self.first, self.last))
        for wanted in self.observations:
            offsets = np.arange(1 - wanted.history, 1)
            rows = np.maximum(moments + offsets, first)
            key = wanted.feature.key
            found[key] = torch.from_numpy(self.arrays.observations[key][rows])
            if key in self.codes:
                found[CODE + key] = torch.from_numpy(self.codes[key][rows])
        rows = np.minimum(moments + np.arange(self.contract.horizon), last)
        found["action"] = torch.from_numpy(self.arrays.actions[rows])
        found[TASK] = torch.from_numpy(self.arrays.task_index[moments[:, 0]])
        if self.future:
            rows = np.minimum(moments + np.array(self.future), last)
            for wanted in self.observations:
                key = wanted.feature.key
                ahead = self.codes.get(key, self.arrays.observations[key])[rows]
                found[FUTURE + key] = torch.from_numpy(ahead)
        return found

    def draw(self, batch_size: int, seed: int, step: int, rank: int) -> Batch:
        """The batch of a step: `batch` of `sample_indices`."""
        return self.batch(sample_indices(len(self), batch_size, seed, step, rank))


def sample_indices(count: int, batch_size: int, seed: int, step: int, rank: int) -> np.ndarray:
    """Which samples of `count` make up the batch of a step: a pure function, so that training resumes exactly.

    Drawn with replacement; every process (`rank`) of a distributed run draws its own.
    """
    return np.random.default_rng((seed, step, rank)).integers(count, size=batch_size)


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """The source of a step's noise, timesteps and image shifts: a pure function of its arguments."""
    state = np.random.SeedSequence((seed, step, rank, 1)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
