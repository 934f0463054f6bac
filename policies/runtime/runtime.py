"""A policy that is ready to act."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contracts import PolicyContract
from execution.observation import Observation
from policies.runtime.backends import Backend, compile_graph
from policies.runtime.bundle import read_bundle
from policies.runtime.carp import CarpSession
from policies.runtime.diffusion import DiffusionSession
from policies.runtime.errors import BundleError
from policies.runtime.graphs import GraphRunner
from policies.runtime.locomotion import LocomotionSession
from policies.runtime.pad import PadSession
from policies.runtime.sampler import (
    CarpSampler,
    DiffusionSampler,
    LocomotionSampler,
    PadSampler,
    Sampler,
    StreamingSampler,
)
from policies.runtime.sessions import EpisodeStart, Session
from policies.runtime.streaming import StreamingSession

SESSIONS: dict[type[Sampler], type[Session]] = {
    CarpSampler: CarpSession,
    DiffusionSampler: DiffusionSession,
    LocomotionSampler: LocomotionSession,
    PadSampler: PadSession,
    StreamingSampler: StreamingSession,
}


class Runtime:
    """A loaded policy, without state; `start` gives the state of one episode. Not for several threads at once.

    Attributes:
        contract: what the policy sees and gives.
        sampler: how the graphs become actions.
        graphs: the functions themselves, by name, for those who want no session. A walking policy's takes many robots
            at once: `runtime.graphs["actor"]({"observation": seen})[0]` are actions [N, J] for `seen`, float32 [N, O].
    """

    def __init__(self, contract: PolicyContract, sampler: Sampler, runners: Mapping[str, GraphRunner]) -> None:
        """Take graphs that are ready to run, and check them with one inference (which also warms them up).

        Raises:
            ValueError: they do not fit the contract.
            PolicyOutputError: the actions for an observation of zeros are not finite.
        """
        self.contract = contract
        self.sampler = sampler
        self.graphs = runners
        SESSIONS[type(sampler)].check_graphs(contract, sampler, runners)
        zeros = {o.feature.key: np.zeros((o.history, *o.feature.shape), o.feature.dtype) for o in contract.observations}
        self.start(0, contract.instructions[0]).act(Observation(stamp_ns=0, values=zeros))

    @classmethod
    def load(cls, bundle: Path | str, backend: Backend = "openvino", threads: int = 1) -> Runtime:
        """Read a bundle and make its graphs ready.

        Raises:
            BundleError: something of it is missing, damaged, or does not fit.
            ValueError: no such backend.
            ModuleNotFoundError: the backend is not installed.
        """
        files = read_bundle(bundle)
        graphs = SESSIONS[type(files.sampler)].graphs
        missing = [f"{name}.onnx" for name in graphs if name not in files.graphs]
        if missing:
            raise BundleError(f"{files.path}: lacks {', '.join(missing)}")
        runners = {name: compile_graph(backend, files.graphs[name], threads, name) for name in graphs}
        try:
            return cls(files.contract, files.sampler, runners)
        except ValueError as error:
            raise BundleError(f"{files.path}: {error}") from None

    def start(self, seed: int, instruction: str | None = None, prefix: int = 0) -> Session:
        """A new episode; the same seed and observations give the same actions.

        Args:
            seed: of all randomness in it.
            instruction: what to do, in the words of the contract. A policy that knows only one task needs none.
            prefix: so many first actions of a chunk repeat what the chunk before it says for the same time, if it can.

        Raises:
            ValueError: it does not know this instruction, or cannot begin so.
        """
        start = episode_start(self.contract, self.sampler, seed, instruction, prefix)
        return SESSIONS[type(self.sampler)](self.contract, self.sampler, self.graphs, start)


def episode_start(
    contract: PolicyContract, sampler: Sampler, seed: int, instruction: str | None, prefix: int
) -> EpisodeStart:
    """How an episode of a policy is to begin; see `Runtime.start`. Needs no graph, so it can be asked beforehand.

    Raises:
        ValueError: the policy does not know this instruction, or cannot begin so.
    """
    start = EpisodeStart(seed, _task(contract, instruction), prefix)
    SESSIONS[type(sampler)].check_start(contract, sampler, start)
    return start


def _task(contract: PolicyContract, instruction: str | None) -> int:
    """Index of an instruction. What a policy of one task is asked to do makes no difference to it."""
    known = contract.instructions
    if len(known) == 1:
        return 0
    if instruction not in known:
        listed = "".join(f"\n  - {text}" for text in known)
        asked = f"does not know the instruction {instruction!r}" if instruction else "must be told which instruction"
        raise ValueError(f"this policy {asked}; it was trained for:{listed}")
    return known.index(instruction)
