"""A policy that is ready to act."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contracts import PolicyContract, RobotContract
from execution.observation import Observation
from policies.runtime.backends import Backend, compile_graph
from policies.runtime.bundle import read_bundle
from policies.runtime.diffusion import DiffusionSession
from policies.runtime.errors import BundleError, PolicyOutputError
from policies.runtime.graphs import GraphRunner
from policies.runtime.sampler import Sampler
from policies.runtime.sessions import Session


class Runtime:
    """A loaded policy, without state; `start` gives the state of one episode. Not for several threads at once.

    Attributes:
        contract: what the policy sees and gives.
        robot: contract of the robot whose data it learned from.
    """

    def __init__(
        self, contract: PolicyContract, robot: RobotContract, sampler: Sampler, runners: Mapping[str, GraphRunner]
    ) -> None:
        """Take graphs that are ready to run, and check them with one inference (which also warms them up).

        Raises:
            ValueError: they do not fit the contract.
            PolicyOutputError: the actions for an observation of zeros are not finite.
        """
        self.contract = contract
        self.robot = robot
        self._sampler = sampler
        self._runners = runners
        DiffusionSession.check_graphs(contract, runners)
        zeros = {o.feature.key: np.zeros((o.history, *o.feature.shape), o.feature.dtype) for o in contract.observations}
        self.start(0).act(Observation(stamp_ns=0, values=zeros))

    @classmethod
    def load(cls, bundle: Path | str, backend: Backend = "openvino", threads: int = 1) -> Runtime:
        """Read a bundle and make its graphs ready.

        Raises:
            BundleError: something of it is missing, damaged, or does not fit.
            ValueError: no such backend.
            ModuleNotFoundError: the backend is not installed.
        """
        files = read_bundle(bundle)
        missing = [f"{name}.onnx" for name in DiffusionSession.graphs if name not in files.graphs]
        if missing:
            raise BundleError(f"{files.path}: lacks {', '.join(missing)}")
        runners = {name: compile_graph(backend, files.graphs[name], threads, name) for name in DiffusionSession.graphs}
        try:
            return cls(files.contract, files.robot, files.sampler, runners)
        except (ValueError, PolicyOutputError) as error:
            raise BundleError(f"{files.path}: {error}") from None

    def start(self, seed: int) -> Session:
        """A new episode; the same seed and observations give the same actions."""
        return DiffusionSession(self.contract, self._sampler, self._runners, seed)
