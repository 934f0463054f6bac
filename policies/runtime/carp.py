"""CARP's chunks: one call of one graph, in which all scales are unrolled. Without torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from contracts import PolicyContract
from policies.runtime.graphs import Array, GraphRunner, TensorType, check_types, chunk_type, observation_types
from policies.runtime.sampler import CarpSampler
from policies.runtime.sessions import EpisodeStart, Session


class CarpSession(Session):
    """Every chunk from one call; with a prefix, the first actions repeat those of the chunk before for the same time.

    Where choices are random, their Gumbel noise comes from the session's generator, as float32.
    """

    graphs = ("policy", "continuation")

    def __init__(
        self, contract: PolicyContract, sampler: CarpSampler, runners: Mapping[str, GraphRunner], start: EpisodeStart
    ) -> None:
        super().__init__(contract, sampler, runners, start)
        self._prefix = start.prefix
        self._last: tuple[int, NDArray[np.float32]] | None = None  # stamp and actions of the chunk before

    @classmethod
    def check_start(cls, contract: PolicyContract, sampler: CarpSampler, start: EpisodeStart) -> None:
        """A prefix is of whole tokens and leaves something to decide. Raises ValueError."""
        if start.prefix % sampler.prefix_multiple:
            raise ValueError(
                f"a prefix of {start.prefix} actions: a token stands for {sampler.prefix_multiple}, so it must be a "
                "multiple of that"
            )
        if not 0 <= start.prefix < contract.horizon:
            raise ValueError(f"a prefix of {start.prefix} actions does not lie within [0, {contract.horizon})")

    @classmethod
    def check_graphs(cls, contract: PolicyContract, sampler: CarpSampler, runners: Mapping[str, GraphRunner]) -> None:
        """Observations (and noise) -> actions; `continuation` also takes committed actions. Raises ValueError."""
        chunk = chunk_type(contract)
        inputs = observation_types(contract)
        if sampler.random:
            inputs |= {"noise": TensorType((1, sampler.tokens, sampler.codes))}
        check_types("policy.onnx", runners["policy"], inputs, (chunk,))
        more = {"committed": chunk, "prefix": TensorType((1,), "int64")}
        check_types("continuation.onnx", runners["continuation"], inputs | more, (chunk,))

    def infer(self, inputs: Mapping[str, Array], stamp_ns: int) -> NDArray[np.float32]:
        """Actions [horizon, action_dim]."""
        name, given = "policy", dict(inputs)
        if self.sampler.random:
            given["noise"] = self.random.gumbel(size=(1, self.sampler.tokens, self.sampler.codes)).astype(np.float32)
        if self._prefix and self._last is not None:
            committed, prefix = self._committed(stamp_ns, *self._last)
            if prefix:
                name = "continuation"
                given |= {"committed": committed[None], "prefix": np.array([prefix], dtype=np.int64)}
        (actions,) = self.runners[name](given)
        self._last = (stamp_ns, actions[0])
        return actions[0]

    def _committed(
        self, stamp_ns: int, before_ns: int, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], int]:
        """What the chunk before says for the time from `stamp_ns` on [horizon, action_dim], and how much to keep of it.

        Past its end its last action stands; it is not kept.
        """
        horizon = self.contract.horizon
        done = max(0, round((stamp_ns - before_ns) / self._period_ns))
        left = max(0, horizon - done)
        keep = min(self._prefix, left)
        keep -= keep % self.sampler.prefix_multiple
        return actions[np.minimum(np.arange(horizon) + done, horizon - 1)], keep
