"""What every imitation policy gives to the trainer, to the export and to the runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from contracts import PolicyContract, PolicyObservation, RobotContract
from policies.config import ChunkConfig, TrainingConfig
from policies.encoders import ObservationEncoder
from policies.normalization import MinMaxNormalizer
from policies.runtime.graphs import observation_types
from policies.runtime.sampler import Sampler

# observation key -> [batch, history, ...]; "action" -> [batch, horizon, action_dim]; "task" -> int64 [batch]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Graph:
    """One stateless function of a policy, to be exported: `module(*inputs) -> outputs`.

    Attributes:
        module: the function; nothing random in it.
        inputs: name -> an example of the right shape and dtype, in order.
        outputs: their names, in order.
        batched: it takes any number of rows of all inputs at once; the examples have two. Otherwise the batch is 1.
        half_weights: store large weights as fp16, half the file; what is worked out with them stays fp32.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    batched: bool = False
    half_weights: bool = False


@dataclass(frozen=True)
class Stage:
    """A part of the training of a policy, with an optimiser of its own.

    Attributes:
        name: the folder of its state within the checkpoint; empty for the last stage, which makes the checkpoint.
        module: what is trained: `module(batch, generator)` gives what `Policy.loss` does.
        training: how.
        observes: False if it learns from actions alone, so that no observation need be read.
        future: how many periods ahead observations are read too, as `future.<key>` (`Windows.with_future`).
        encode: gives the code of every picture, worked out once, when the stage begins (`Windows.encoded`).
    """

    name: str
    module: nn.Module
    training: TrainingConfig
    observes: bool = True
    future: tuple[int, ...] = ()
    encode: Callable[[str, Tensor], Tensor] | None = None


class Policy(nn.Module, ABC):
    """A network that learns from demonstrations and gives action chunks.

    Normalisation is part of the network: it takes and gives the units of the contract.

    Attributes:
        family: its name.
        config_type: its choices;
        sampling: those of them that training does not depend on, so that they can be made anew at export;
        learns_from_video: whether episodes without actions are of use to it.
        encoder, actions: what sees, and the actions' normaliser; a family without them has its own `fit_normalization`.
    """

    family: ClassVar[str]
    config_type: ClassVar[type[ChunkConfig]]
    sampling: ClassVar[tuple[str, ...]]
    learns_from_video: ClassVar[bool] = False
    encoder: ObservationEncoder
    actions: MinMaxNormalizer

    def __init__(self, config: ChunkConfig, contract: PolicyContract) -> None:
        super().__init__()
        self.config = config
        self.contract = contract

    def fit_normalization(self, statistics: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the ranges of states and actions: key -> {"min": [size], "max": [size]}. Raises ValueError."""
        self.encoder.fit(statistics)
        self.actions.fit(statistics["action"])

    def fit_robot(self, robot: RobotContract) -> None:  # noqa: B027  # most need nothing of it
        """Take what acting needs of the robot. Raises ValueError for one that such a policy cannot drive."""

    def stages(self, training: TrainingConfig) -> Iterator[Stage]:
        """How it is trained: stage after stage, each with the averaged weights of those before."""
        yield Stage("", self, training)

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss (a scalar) of a batch and figures to log; all randomness comes from `generator` (CPU)."""

    @abstractmethod
    def graphs(self) -> dict[str, Graph]:
        """The functions that the runtime calls, by name."""

    @abstractmethod
    def sampler(self) -> Sampler:
        """How the runtime makes actions of the graphs."""

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, under the name that distributed wrappers call."""
        return self.loss(batch, generator)


def make_contract(
    family: str, config: ChunkConfig, robot: RobotContract, observation_set: str, task: str
) -> PolicyContract:
    """The promise of a policy trained with `config` on data of `robot`, its observations those of `observation_set`."""
    observations = tuple(
        PolicyObservation(feature=feature, history=config.image_history if feature.is_image else config.state_history)
        for feature in robot.observation_features(observation_set)
    )
    return PolicyContract(
        policy=family,
        robot=robot.name,
        observation_set=observation_set,
        task=task,
        observations=observations,
        action=robot.action_feature,
        action_period_s=robot.control_period_s,
        horizon=config.horizon,
        execute=config.execute,
    )


def example_observations(contract: PolicyContract) -> dict[str, Tensor]:
    """Zeros of the right shape and dtype for every observation, batch 1; of several tasks also for `task`."""
    types = observation_types(contract)
    return {key: torch.zeros(kind.shape, dtype=getattr(torch, kind.dtype)) for key, kind in types.items()}
