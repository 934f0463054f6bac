"""PAD's chunks: pictures and poses are denoised together, then the poses are followed. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from contracts import PolicyContract
from policies.runtime.graphs import Array, GraphRunner, TensorType, check_types, observation_types
from policies.runtime.sampler import PadSampler, PadStep
from policies.runtime.sessions import EpisodeStart, Session

DEPTH_SUFFIX = "_depth"  # of the camera whose pictures show depth as grey
CHANGED = 50.0  # levels of 255: what changes by so much is taken wholly from what is imagined


class PadSession(Session):
    """Every chunk is denoised from fresh noise, drawn as float32 from the session's generator, one modality a time."""

    graphs = ("encoder", "denoiser", "decoder", "picture")

    def __init__(
        self, contract: PolicyContract, sampler: PadSampler, runners: Mapping[str, GraphRunner], start: EpisodeStart
    ) -> None:
        super().__init__(contract, sampler, runners, start)
        if any(sample.name == "pictures" for sample in sampler.samples):
            self.imagines = sampler.future
        self.camera = next(
            o.feature.key
            for o in contract.observations
            if o.feature.is_image and not o.feature.key.endswith(DEPTH_SUFFIX)
        )
        self._latents: tuple[Array, Array] | None = None  # of the pictures that the last chunk goes with, and of now's
        self._seen: Array | None = None
        self.poses: Array | None = None
        """What the last chunk follows: predicted poses [future, size], in the units of the observation."""

    @classmethod
    def check_graphs(cls, contract: PolicyContract, sampler: PadSampler, runners: Mapping[str, GraphRunner]) -> None:
        """What `PadSampler` says of them. Raises ValueError."""
        observed = observation_types(contract)
        if sampler.pose_key not in observed:
            raise ValueError(f"sampler.json: pose_key {sampler.pose_key!r} is not observed")
        size = observed[sampler.pose_key].shape[-1]
        noisy: dict[str, TensorType] = {sample.name: TensorType(sample.shape) for sample in sampler.samples}
        if noisy["poses"].shape != (1, len(sampler.future), size):
            raise ValueError(
                f"sampler.json: poses are {noisy['poses'].shape}, must be (1, {len(sampler.future)}, {size})"
            )
        if len(sampler.channels) != contract.action.shape[0] or any(c.element >= size for c in sampler.channels):
            raise ValueError(
                f"sampler.json: channels do not fit {contract.action.shape[0]} actions and poses of {size}"
            )
        if sampler.future[-1] != contract.horizon:
            raise ValueError(f"sampler.json: the last pose is at {sampler.future[-1]}, the horizon {contract.horizon}")
        present = runners["encoder"].outputs
        check_types("encoder.onnx", runners["encoder"], observed, present)
        if len(present) != len(sampler.conditions):
            raise ValueError(f"encoder.onnx: gives {len(present)} outputs; must give {len(sampler.conditions)}")
        known = dict(zip(sampler.conditions, present, strict=True))
        inputs = {**noisy, "timestep": TensorType((1,), "int64"), **known}
        check_types("denoiser.onnx", runners["denoiser"], inputs, tuple(noisy.values()))
        now = {"now": TensorType((1, size))}
        check_types("decoder.onnx", runners["decoder"], {"poses": noisy["poses"], **now}, (noisy["poses"],))
        if "pictures" in noisy:
            frames = runners["picture"].outputs[0] if runners["picture"].outputs else TensorType((1,))
            check_types("picture.onnx", runners["picture"], {"pictures": noisy["pictures"]}, (frames,))

    def infer(self, inputs: Mapping[str, Array], stamp_ns: int) -> NDArray[np.float32]:
        """Denoise, and follow the poses; actions [horizon, action_dim]."""
        sampler: PadSampler = self.sampler
        present = dict(zip(sampler.conditions, self.runners["encoder"](inputs), strict=True))
        noise: dict[str, Array] = {
            s.name: self.random.standard_normal(s.shape, dtype=np.float32) for s in sampler.samples
        }
        clean = denoise(sampler, self.runners["denoiser"], noise, present)
        now = inputs[sampler.pose_key][0, -1]
        (poses,) = self.runners["decoder"]({"poses": clean["poses"], "now": now[None]})
        self.poses = poses[0]
        if "pictures" in clean:
            latest = present["now_pictures"][:, -1:]
            self._latents, self._seen = (clean["pictures"], latest), inputs[self.camera][0, -1]
        return follow(sampler, now, poses[0], self.contract.action_period_s)

    @property
    def imagined(self) -> NDArray[np.uint8]:
        """What the last chunk is expected to lead to, uint8 [future, height, width, 3]; decoded when asked.

        Raises:
            ValueError: there is no chunk yet, or this policy predicts no pictures.
        """
        return self.imagination()()

    def imagination(self) -> Callable[[], NDArray[np.uint8]]:
        """What decodes `imagined`, later if need be. Raises ValueError like it."""
        if self._latents is None or self._seen is None:
            raise ValueError("nothing is imagined before the first action, nor by a policy with predict_images False")
        return partial(self._decode, *self._latents, self._seen)

    def _decode(self, latents: Array, latest: Array, seen: Array) -> NDArray[np.uint8]:
        (pictures,) = self.runners["picture"]({"pictures": latents})
        (before,) = self.runners["picture"]({"pictures": np.repeat(latest, latents.shape[1], axis=1)})
        return painted(seen, before[0, 0], pictures[0])


def painted(seen: Array, before: Array, pictures: Array) -> NDArray[np.uint8]:
    """What is imagined, painted over what is seen only where it changes: an autoencoder blurs what stands still too.

    Args:
        seen: the picture of the present [height, width, 3].
        before: what the autoencoder makes of it.
        pictures: what it makes of the latents of the future [future, height, width, 3].

    Returns:
        uint8 [future, height, width, 3].
    """
    shown = pictures.astype(np.float32)
    share = np.clip(np.abs(shown - before).max(axis=-1, keepdims=True) / np.float32(CHANGED), 0, 1)
    return np.round(seen + share * (shown - seen)).astype(np.uint8)


def denoise(
    sampler: PadSampler, denoiser: GraphRunner, noise: Mapping[str, Array], present: Mapping[str, Array]
) -> dict[str, Array]:
    """The clean samples, by name, that all steps make of noise; `present` is what the encoder says of now."""
    noisy, before = dict(noise), {name: np.zeros_like(x) for name, x in noise.items()}
    for step in sampler.steps:
        outputs = denoiser({**noisy, "timestep": np.array([step.timestep], dtype=np.int64), **present})
        for sample, output in zip(sampler.samples, outputs, strict=True):
            name = sample.name
            noisy[name], before[name] = denoised(step, sample.clip, noisy[name], output, before[name])
    return noisy


def denoised(step: PadStep, clip: float, sample: Array, output: Array, before: Array) -> tuple[Array, Array]:
    """The sample after one step, and the estimate of the clean one; see `PadStep`."""
    clean = np.clip(np.float32(step.clean_sample) * sample + np.float32(step.clean_output) * output, -clip, clip)
    moved = np.float32(step.next_sample) * sample + np.float32(step.next_clean) * clean
    if step.next_previous:
        moved += np.float32(step.next_previous) * before
    return moved, clean


def follow(sampler: PadSampler, now: Array, poses: Array, period_s: float) -> NDArray[np.float32]:
    """Commands that lead from one pose to the next in the time between them.

    A velocity is constant on the way to each pose. A gripper closes with all its force while the opening predicted at
    the end of the way is below a threshold: a gripper that holds something does not move, so neither its position nor
    the sign of its change says whether it must go on closing. In demonstrations of ten Meta-World tasks, an opening
    below 0.95 four periods later was the sign of the expert's command in 98 to 100 % of the periods; the sign of the
    change in 15 to 100 %.

    Args:
        sampler: says how each channel follows.
        now: the measured pose [size].
        poses: predicted [future, size], `sampler.future` periods later.
        period_s: of an action.

    Returns:
        [horizon, channels], within the channels' limits.
    """
    starts = np.array((0, *sampler.future[:-1]))
    periods = np.array(sampler.future) - starts
    velocity = np.diff(np.vstack((now, poses)), axis=0) / (periods[:, None] * period_s)
    commands = np.empty((len(poses), len(sampler.channels)), dtype=np.float32)
    for number, channel in enumerate(sampler.channels):
        if channel.kind == "velocity":
            commands[:, number] = np.clip(velocity[:, channel.element], channel.min, channel.max)
        else:
            closes = poses[:, channel.element] < sampler.gripper_threshold
            commands[:, number] = np.where(closes, channel.max, channel.min)
    return np.repeat(commands, periods, axis=0)
