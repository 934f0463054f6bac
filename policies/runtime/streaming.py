"""Streaming Diffusion Policy's buffer: rolled, and denoised a little, for every observation. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts import PolicyContract
from policies.runtime.graphs import Array, GraphRunner, TensorType, check_types, chunk_type, observation_types
from policies.runtime.sampler import StreamingSampler
from policies.runtime.sessions import EpisodeStart, Session

Levels = NDArray[np.int64]
Sample = NDArray[Any]  # float32


class StreamingSession(Session):
    """Holds the buffer of one episode: action k of it is meant for k periods after the latest observation.

    The buffer has a grid of its own, whole periods from the episode's first observation on, and rolls by as many as
    have passed: observations may come at any rate and with any jitter, and none of it adds up. For each observation,
    what lies in the past is dropped, pure noise is appended, and the network leads the buffer one step down its
    staircase of noise levels (`staircase`). If observations failed to come, more is dropped, and what is left stands
    too high on the staircase: the same evaluations then take longer steps, so that the answer is as prompt as ever. The
    chunk holds the estimate of every clean action; `residual_noise` says how far each of them still is from being
    decided. All noise is drawn as float32 from the session's generator.
    """

    graphs = ("encoder", "denoiser", "decoder")

    def __init__(
        self,
        contract: PolicyContract,
        sampler: StreamingSampler,
        runners: Mapping[str, GraphRunner],
        start: EpisodeStart,
    ) -> None:
        super().__init__(contract, sampler, runners, start)
        self._alphas = np.array(sampler.alphas)
        self._descent = [
            staircase(sampler, contract.horizon, number / sampler.evaluations)
            for number in range(sampler.evaluations + 1)
        ]
        self.residual_noise = tuple(np.sqrt(1 - self._alphas[self._descent[-1]]).tolist())
        self._sample: Sample | None = None  # the buffer [horizon, action_dim], at ...
        self._levels: Levels = self._descent[0]  # ... [horizon]
        self._begins_ns = 0  # what its first action is meant for

    @classmethod
    def check_graphs(
        cls, contract: PolicyContract, sampler: StreamingSampler, runners: Mapping[str, GraphRunner]
    ) -> None:
        """Observations -> condition; sample, levels, condition -> prediction; sample -> actions. Raises ValueError."""
        chunk = chunk_type(contract)
        condition = next(iter(runners["encoder"].outputs), TensorType((1, -1)))
        check_types("encoder.onnx", runners["encoder"], observation_types(contract), (condition,))
        levels = TensorType((1, contract.horizon), "int64")
        inputs = {"sample": chunk, "levels": levels, "condition": condition}
        check_types("denoiser.onnx", runners["denoiser"], inputs, (chunk,))
        check_types("decoder.onnx", runners["decoder"], {"sample": chunk}, (chunk,))
        if sampler.execute > contract.horizon:
            raise ValueError(f"sampler.json: execute ({sampler.execute}) exceeds the horizon ({contract.horizon})")
        if len(sampler.reset_sample) != contract.action.shape[0]:
            raise ValueError(
                f"sampler.json: reset_sample has {len(sampler.reset_sample)} numbers, an action has "
                f"{contract.action.shape[0]}"
            )

    def infer(self, inputs: Mapping[str, Array], stamp_ns: int) -> NDArray[np.float32]:
        """Roll the buffer to `stamp_ns`, denoise it, and estimate the actions [horizon, action_dim]."""
        (condition,) = self.runners["encoder"](inputs)
        elapsed = max(0, round((stamp_ns - self._begins_ns) / self._period_ns))
        if self._sample is None or elapsed >= self.contract.horizon:
            sample, levels = self._fresh(condition)
            self._begins_ns = stamp_ns
        else:
            self._begins_ns += elapsed * self._period_ns
            sample = np.concatenate((self._sample[elapsed:], self._noise(elapsed)))
            levels = np.concatenate((self._levels[elapsed:], np.full(elapsed, len(self._alphas) - 1)))
        clean = sample
        for below in self._descent[1:]:
            sample, clean = self._step(sample, levels, below, condition)
            levels = np.minimum(levels, below)
        # An answer that is not finite is refused by whoever called; it must not stay in the buffer.
        self._sample, self._levels = sample if np.isfinite(sample).all() else None, levels
        (actions,) = self.runners["decoder"]({"sample": clean[None]})
        return actions[0]

    def _fresh(self, condition: Array) -> tuple[Sample, Levels]:
        """The buffer at the start of an episode, at the top of the staircase."""
        horizon = self.contract.horizon
        clean = np.tile(np.array(self.sampler.reset_sample, dtype=np.float32), (horizon, 1))
        if self.sampler.reset_levels:
            clean = self._noise(horizon)
            rows = np.repeat(np.array(self.sampler.reset_levels, dtype=np.int64)[:, None], horizon, axis=1)
            for levels, below in zip(rows, rows[1:], strict=False):
                clean, _ = self._step(clean, levels, below, condition)
        top = self._descent[0]
        alpha = self._alpha(top)
        noisy: Sample = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * self._noise(horizon)
        return noisy, top

    def _step(self, sample: Sample, levels: Levels, below: Levels, condition: Array) -> tuple[Sample, Sample]:
        """One evaluation: the buffer at the levels `below`, where they are lower, and the estimate of the clean one."""
        told = np.maximum(levels, 1)[None]  # the network never saw a clean action
        (output,) = self.runners["denoiser"]({"sample": sample[None], "levels": told, "condition": condition})
        noise = self._noise(len(sample)) if self.sampler.scheduler == "ddpm" else None
        alpha, next_alpha = self._alpha(levels), self._alpha(below)
        return denoised(self.sampler, sample, output[0], alpha, next_alpha, noise)

    def _alpha(self, levels: Levels) -> Sample:
        return self._alphas[levels, None].astype(np.float32)

    def _noise(self, length: int) -> Sample:
        return self.random.standard_normal((length, self.contract.action.shape[0]), dtype=np.float32)


def staircase(sampler: StreamingSampler, horizon: int, progress: float) -> Levels:
    """Noise levels of the buffer [horizon]; see `StreamingScheduler.staircase`, which this repeats without torch."""
    above = np.arange(horizon) // sampler.execute + 1 - progress
    part = np.minimum(above / (horizon // sampler.execute), 1)
    return np.floor((len(sampler.alphas) - 1) * part + 1e-4).astype(np.int64)


def denoised(
    sampler: StreamingSampler, sample: Sample, output: Sample, alpha: Sample, next_alpha: Sample, noise: Sample | None
) -> tuple[Sample, Sample]:
    """What one evaluation makes of a buffer; see `StreamingScheduler.step`, which it repeats without torch.

    Args:
        sampler: how.
        sample: at `alpha`, the signal's share of the variance of each action [horizon, 1].
        output: of the network.
        alpha, next_alpha: before and after; where the signal would not grow, an action stays as it is.
        noise: for a random step (DDPM); None for a deterministic one (DDIM).

    Returns:
        The buffer at `next_alpha`, and the estimate of the clean actions [horizon, action_dim].
    """
    signal, spread = np.sqrt(alpha), np.sqrt(1 - alpha)
    if sampler.prediction == "epsilon":
        clean, epsilon = (sample - spread * output) / signal, output
    elif sampler.prediction == "sample":
        clean, epsilon = output, (sample - signal * output) / np.maximum(spread, 1e-6)
    else:
        clean, epsilon = signal * sample - spread * output, signal * output + spread * sample
    clean = np.clip(clean, -sampler.clip, sampler.clip)
    if noise is None:
        moved = np.sqrt(next_alpha) * clean + np.sqrt(1 - next_alpha) * epsilon
    else:
        ratio, rest = alpha / next_alpha, np.maximum(1 - alpha, 1e-12)
        left = (1 - next_alpha) / rest
        moved = np.sqrt(next_alpha) * (1 - ratio) / rest * clean + np.sqrt(ratio) * left * sample
        moved += np.sqrt(np.maximum(left * (1 - ratio), 0)) * noise
    return np.where(next_alpha > alpha, moved, sample), np.where(alpha == 1, sample, clean)
