"""What the latency benchmark measures: one policy in one engine, each call with another observation."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.latency_networks import SEED, Engine, random_observation
from benchmarks.runs import parameters
from benchmarks.work import Work, graph_calls, work_of
from execution.observation import Observation
from policies.checkpoint import is_checkpoint
from policies.export import export
from policies.hinfinity.checkpoint import is_walking
from policies.runtime import Runtime, Session
from policies.runtime.backends import OpenVinoGraph
from policies.torch_runtime import torch_runtime

WARM_UP = 3  # calls at the beginning of a block that do not count
COMPARED = 5  # chunks that an engine and PyTorch both make


@dataclass
class Candidate:
    """One policy in one engine.

    Attributes:
        name: of the policy.
        engine: that runs it.
        session: that is measured.
        work: of one chunk.
        difference: largest absolute difference of its actions to PyTorch's, in the contract's units; None if there is
            nothing to compare with.
        every: measured in every so many rounds.
        seconds: of every call that counts.
        stamp_ns: of the next observation: one comes when it is due.
    """

    name: str
    engine: Engine
    session: Session
    work: Work
    difference: float | None
    every: int = 1
    seconds: list[float] = field(default_factory=list)
    stamp_ns: int = 0

    def measure(self, observations: list[Observation]) -> None:
        """Act on one observation after the other; the first `WARM_UP` do not count."""
        for index, observation in enumerate(observations):
            observation = dataclasses.replace(observation, stamp_ns=self.stamp_ns)
            self.stamp_ns += round(self.session.contract.execute * self.session.contract.action_period_s * 1e9)
            began = time.perf_counter()
            self.session.act(observation)
            elapsed = time.perf_counter() - began
            if index >= WARM_UP:
                self.seconds.append(elapsed)

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds that so many per cent of the calls stay within."""
        return float(np.percentile(self.seconds, percent)) * 1e3

    def operators(self) -> int | None:
        """Operators that OpenVINO runs for one chunk, after it has joined what it can; None of another engine."""
        if self.engine != "openvino":
            return None
        total = 0
        for name, times in graph_calls(self.session.sampler).items():
            runner = self.session.runners[name]
            assert isinstance(runner, OpenVinoGraph)
            total += times * runner.operators()
        return total


def given(path: Path, folder: Path, threads: int) -> list[Candidate]:
    """The rows of a policy of the user's."""
    if is_checkpoint(path):
        return engines_of(str(path), path, folder, ("openvino", "torch"), threads)
    runtime = Runtime.load(path, threads=threads)
    return [Candidate(str(path), "openvino", _start(runtime), work_of(path), None)]


def engines_of(name: str, checkpoint: Path, bundle: Path, engines: tuple[Engine, ...], threads: int) -> list[Candidate]:
    """A checkpoint in each of the engines."""
    export(checkpoint, bundle)
    work = work_of(bundle)
    if not is_walking(checkpoint):  # whose bundle holds the actor alone, and all of it was trained
        work = dataclasses.replace(work, params=parameters(checkpoint))
    reference = torch_runtime(checkpoint, threads)
    candidates = []
    for engine in engines:
        if engine == "torch":
            candidates.append(Candidate(name, engine, _start(reference), work, None))
            continue
        runtime = Runtime.load(bundle, engine, threads)
        candidates.append(Candidate(name, engine, _start(runtime), work, _difference(runtime, reference)))
    return candidates


def _start(runtime: Runtime) -> Session:
    return runtime.start(SEED, runtime.contract.instructions[0])


def _difference(runtime: Runtime, reference: Runtime) -> float:
    """Largest absolute difference of their actions, for the same seed and observations."""
    random = np.random.default_rng(SEED)
    one, other = _start(runtime), _start(reference)
    observations = [random_observation(runtime.contract, random) for _ in range(COMPARED)]
    return max(float(np.abs(one.act(o).actions - other.act(o).actions).max()) for o in observations)
