"""Sampling a diffusion policy's chunk: a loop over numbers, without torch and without a scheduler library."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from contracts import PolicyContract
from policies.runtime.graphs import Array, GraphRunner, TensorType, check_types, chunk_type, observation_types
from policies.runtime.sampler import DenoisingStep, DiffusionSampler
from policies.runtime.sessions import EpisodeStart, Session


class DiffusionSession(Session):
    """Diffusion Policy: every chunk is denoised from fresh noise, drawn as float32 from the session's generator."""

    graphs = ("encoder", "denoiser", "decoder")

    def __init__(
        self,
        contract: PolicyContract,
        sampler: DiffusionSampler,
        runners: Mapping[str, GraphRunner],
        start: EpisodeStart,
    ) -> None:
        super().__init__(contract, sampler, runners, start)
        self._shape = chunk_type(contract).shape

    @classmethod
    def check_graphs(
        cls, contract: PolicyContract, sampler: DiffusionSampler, runners: Mapping[str, GraphRunner]
    ) -> None:
        """Observations -> condition; sample, timestep, condition -> epsilon; sample -> actions. Raises ValueError."""
        chunk = chunk_type(contract)
        condition = next(iter(runners["encoder"].outputs), TensorType((1, -1)))
        check_types("encoder.onnx", runners["encoder"], observation_types(contract), (condition,))
        denoiser_inputs = {"sample": chunk, "timestep": TensorType((1,), "int64"), "condition": condition}
        check_types("denoiser.onnx", runners["denoiser"], denoiser_inputs, (chunk,))
        check_types("decoder.onnx", runners["decoder"], {"sample": chunk}, (chunk,))

    def infer(self, inputs: Mapping[str, Array], stamp_ns: int) -> NDArray[np.float32]:
        """Denoise a chunk; actions [horizon, action_dim]."""
        (condition,) = self.runners["encoder"](inputs)
        sample = self._noise()
        for step in self.sampler.steps:
            timestep = np.array([step.timestep], dtype=np.int64)
            denoiser_inputs: dict[str, Array] = {"sample": sample, "timestep": timestep, "condition": condition}
            (epsilon,) = self.runners["denoiser"](denoiser_inputs)
            sample = denoised(step, self.sampler.clip, sample, epsilon)
            if step.next_noise:
                sample += step.next_noise * self._noise()
        (actions,) = self.runners["decoder"]({"sample": sample})
        return actions[0]

    def _noise(self) -> NDArray[np.float32]:
        return self.random.standard_normal(self._shape, dtype=np.float32)


def denoised(
    step: DenoisingStep, clip: float, sample: NDArray[np.float32], epsilon: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The chunk after one step, without the fresh noise; see `DenoisingStep`."""
    x0 = np.clip(step.x0_sample * sample + step.x0_epsilon * epsilon, -clip, clip)
    return step.next_x0 * x0 + step.next_sample * sample + step.next_epsilon * epsilon
