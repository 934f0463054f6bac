"""PAD (arXiv 2411.18179): learn the noise in future pictures and poses, act by following poses made of noise."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts import PolicyContract, RobotContract
from policies.base import Batch, Graph, Policy, Stage, example_observations
from policies.config import TrainingConfig
from policies.pad.acting import Denoiser, Encoder, PictureDecoder, PoseDecoder, gives, joined
from policies.pad.config import PadConfig
from policies.pad.eye import PictureEye
from policies.pad.observed import Observed
from policies.pad.poses import PoseNormalizer, command_channels, reach
from policies.pad.pretrained import load_dit, load_vae
from policies.pad.schedule import inference_scheduler, pad_steps, training_scheduler
from policies.pad.text import InstructionTable, text_encoder
from policies.pad.transformer import Modality, PadTransformer
from policies.pad.vae import ImageLatents
from policies.runtime.graphs import TASK
from policies.runtime.sampler import PadChannel, PadSample, PadSampler
from policies.video import HAS_ACTION
from policies.windows import CODE, FUTURE

VAE_BETAS = (0.9, 0.999)  # of AdamW
CLIPS = {"pictures": 5.0, "depth": 1.0, "poses": 1.0}  # latents have variance 1; the others lie within [-1, 1]
DEPTH_SIZE, DEPTH_PATCH = 32, 8  # pixels: 16 tokens, as in the paper

logger = logging.getLogger(__name__)


class PadPolicy(Policy):
    """An autoencoder of pictures, and a transformer that denoises future latents and poses together."""

    family = "pad"
    config_type = PadConfig
    sampling = ("solver", "inference_steps", "gripper_threshold")
    learns_from_video = True
    config: PadConfig
    trained_steps: Tensor

    def __init__(self, config: PadConfig, contract: PolicyContract) -> None:
        super().__init__(config, contract)
        self.observed = Observed(config, contract)
        self.vae = ImageLatents(config, self.observed.height, self.observed.width)
        self.poses = PoseNormalizer(self.observed.pose.shape[0], len(config.future))
        self.text = InstructionTable(contract.instructions, config.text_dim, learned=config.text == "learned")
        self.modalities = self._modalities()
        self.eye = PictureEye(config.eye_channels, config.keypoints, config.downsampling) if config.eye else None
        self.transformer = PadTransformer(
            *config.transformer_size,
            config.text_dim,
            self.modalities,
            config.shared_modulation,
            config.present_apart,
        )
        self.noise_schedule = training_scheduler(config)
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.int64))
        self.channels: tuple[PadChannel, ...] = ()  # until `fit_robot`

    def fit_robot(self, robot: RobotContract) -> None:
        """See how the robot's command follows a pose. Raises ValueError for a robot whose command does not."""
        self.channels = command_channels(robot, self.observed.pose)

    def fit_normalization(self, statistics: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the ranges of poses and actions: key -> {"min": [size], "max": [size]}. Raises ValueError."""
        far = None
        if self.config.poses != "absolute":
            period_s, size = self.contract.action_period_s, self.observed.pose.shape[0]
            far = reach(self.channels, statistics["action"], self.config.future, period_s, size)
        self.poses.fit(statistics[self.observed.pose.key], far)

    def stages(self, training: TrainingConfig) -> Iterator[Stage]:
        """The autoencoder first, on pictures alone, unless it is pretrained; then, with it fixed, the transformer.

        The second stage reads latents that were encoded once; with the default autoencoder a picture takes 2.3 KB.
        """
        config = self.config
        encoder = text_encoder(config)
        if encoder is not None:
            self.text.fill(encoder)
        if config.pretrained_vae:
            load_vae(self.vae, config.pretrained_vae)
        else:
            first = msgspec.structs.replace(
                training,
                steps=config.vae_steps,
                batch_size=config.vae_batch_size,
                learning_rate=config.vae_learning_rate,
                final_learning_rate=0.0,
                adam_betas=VAE_BETAS,
            )
            yield Stage("vae", _VaeStage(self.vae, self.observed.camera), first)
        self.vae.requires_grad_(False)
        if config.pretrained_dit:
            taken = load_dit(self.transformer, config.pretrained_dit)
            logger.warning("%d tensors are from %s: %s", len(taken), config.pretrained_dit, ", ".join(taken))
        yield Stage("", self, training, future=config.future, encode=self.see)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the noise in pictures, plus, weighted, that of the noise in poses and depth.

        Args:
            batch: observations [batch, history, ...], pictures as they are or as `see` gives them; the same of the
                future, `future.<key>` [batch, future, ...]; `task`; and, where some samples are video, `has_action`:
                their poses and depth are replaced by zeros and do not count.
            generator: of timesteps and noise; on the CPU, so that every device learns from the same.
        """
        known = batch.get(HAS_ACTION)
        if known is None:
            known = torch.ones_like(batch[TASK], dtype=torch.bool)
        clean, future = joined(self.present(batch)), self._future(batch)
        count, device = len(known), known.device
        timesteps = torch.randint(0, len(self.noise_schedule.betas), (count,), generator=generator).to(device)
        noise, noisy = {}, {}
        for name, value in future.items():
            noise[name] = torch.randn(value.shape, generator=generator).to(device)
            noisy[name] = self.noise_schedule.add_noise(value, noise[name], timesteps)  # type: ignore[arg-type]  # int64 works
        for values in (clean, noisy):
            for name in values.keys() - {"pictures"}:
                values[name] = torch.where(known[:, None, None, None, None], values[name], 0.0)
        outputs = self.transformer(noisy, timesteps, clean, self.text(batch[TASK]))
        figures: dict[str, Tensor] = {}
        total = torch.zeros((), device=device)
        weight = self._action_weight()
        for name, value in future.items():
            error = (outputs[name].float() - self._target(value, noise[name], timesteps)).square().flatten(1).mean(1)
            if name != "pictures":
                error = torch.where(known, error, 0.0).sum() / known.sum().clamp(min=1)
            figures[name] = error.detach().mean()
            total = total + (1.0 if name == "pictures" else weight) * error.mean()
        if self.training:
            self.trained_steps += 1
        return total, figures

    @torch.no_grad()
    def sample(self, observations: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """What will be: latents `pictures` [batch, future, C, h, w] and `poses` [batch, future, size] in their units.

        Through diffusers' own scheduler; the runtime does the same by numbers.

        Args:
            observations: key -> [batch, history, ...], and `task` [batch].
            generator: of the noise to start from, one modality after the other.
        """
        clean, text = joined(self.present(observations)), self.text(observations[TASK])
        noisy = {}
        for m in (m for m in self.modalities if m.future):
            shape = (len(text), m.future, m.channels, m.height, m.width)
            noisy[m.name] = torch.randn(shape, generator=generator).to(text.device)
        schedulers = {name: inference_scheduler(self.config) for name in noisy}  # each remembers a sample
        for step, timestep in zip(pad_steps(self.config), next(iter(schedulers.values())).timesteps, strict=True):
            told = torch.full((len(text),), step.timestep, device=text.device)
            for name, output in self.transformer(noisy, told, clean, text).items():
                estimate = step.clean_sample * noisy[name] + step.clean_output * output
                estimate = estimate.clamp(-CLIPS[name], CLIPS[name])
                moved = schedulers[name].step(estimate, timestep, noisy[name], return_dict=False)
                noisy[name] = moved[0]
        now = observations[self.observed.pose.key][:, -1]
        return noisy | {"poses": self.poses.inverse(noisy["poses"].flatten(2), now)}

    def present(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is known: modality -> clean frames [batch, history, channels, height, width]; and what the eye sees.

        That is `details`, to go with pictures, and `keypoints` of the latest picture, to go with poses (`joined`).
        """
        found = {"poses": self.poses.measured(observations[self.observed.pose.key])[..., None, None]}
        for name, key in self.observed.cameras.items():
            found[name] = self._seen(key, observations[key], observations.get(CODE + key))
        if self.eye is not None:
            pictures = observations[self.observed.camera]
            details, keypoints = self.eye(self.vae.difference(pictures.flatten(0, 1)))
            details = details.float().unflatten(0, pictures.shape[:2])
            latest = keypoints.unflatten(0, pictures.shape[:2])[:, -1:, :, None, None]
            found["details"] = details
            found["keypoints"] = latest.expand(-1, self.config.state_history, -1, -1, -1)
        return found

    def see(self, key: str, pictures: Tensor) -> Tensor:
        """What the transformer sees of pictures, uint8 [batch, H, W, 3]: their latents, or depth at low resolution."""
        if key != self.observed.camera:
            grey = pictures.float().mean(-1)[:, None] / 127.5 - 1
            return functional.interpolate(grey, (DEPTH_SIZE, DEPTH_SIZE), mode="area")
        with torch.no_grad():
            return self.vae.encode(pictures.to(self.vae.mean.device))

    def graphs(self) -> dict[str, Graph]:
        """`encoder`, `denoiser`, `decoder` and `picture`, as `PadSampler` describes them."""
        observations = example_observations(self.contract)
        encoder = Encoder(self, tuple(observations)).eval()
        with torch.no_grad():
            known: dict[str, Tensor] = dict(zip(encoder.gives, encoder(*observations.values()), strict=True))
        noisy: dict[str, Tensor] = {sample.name: torch.zeros(sample.shape) for sample in self._samples()}
        poses = {"poses": noisy["poses"], "now": torch.zeros((1, self.observed.pose.shape[0]))}
        latents = torch.zeros((1, len(self.config.future), *known["now_pictures"].shape[2:]))
        inputs = {**noisy, "timestep": torch.zeros(1, dtype=torch.int64), **known}
        return {
            "encoder": Graph(encoder, observations, encoder.gives, half_weights=True),
            "denoiser": Graph(
                Denoiser(self, tuple(inputs)), inputs, tuple(f"{name}_output" for name in noisy), half_weights=True
            ),
            "decoder": Graph(PoseDecoder(self.poses), poses, ("decoded",)),
            "picture": Graph(PictureDecoder(self.vae), {"pictures": latents}, ("decoded",), half_weights=True),
        }

    def sampler(self) -> PadSampler:
        """The solver's numbers, and how the poses are followed. Raises ValueError before `fit_robot`."""
        if not self.channels:
            raise ValueError("it is not known yet which robot is to follow the poses: call fit_robot first")
        return PadSampler(
            solver=self.config.solver,
            steps=pad_steps(self.config),
            samples=self._samples(),
            conditions=gives(self),
            future=self.config.future,
            pose_key=self.observed.pose.key,
            channels=self.channels,
            gripper_threshold=self.config.gripper_threshold,
        )

    def _modalities(self) -> tuple[Modality, ...]:
        """In the order of who sees whom: pictures, depth, poses."""
        config, seen = self.config, self.observed
        ahead = len(config.future)
        pictures = Modality(
            "pictures",
            channels=config.latent_channels,
            height=seen.height // config.downsampling,
            width=seen.width // config.downsampling,
            patch=config.patch,
            past=config.image_history,
            future=ahead if config.predict_images else 0,
            extra=config.eye_channels if config.eye else 0,
        )
        depth = Modality("depth", 1, DEPTH_SIZE, DEPTH_SIZE, DEPTH_PATCH, config.image_history, ahead)
        keypoints = 2 * config.keypoints if config.eye else 0
        poses = Modality("poses", seen.pose.shape[0], 1, 1, 1, config.state_history, ahead, keypoints)
        return (pictures, depth, poses) if config.depth else (pictures, poses)

    def _samples(self) -> tuple[PadSample, ...]:
        found = []
        for m in (m for m in self.modalities if m.future):
            size = (m.channels,) if m.name == "poses" else (m.channels, m.height, m.width)
            found.append(PadSample(name=m.name, shape=(1, m.future, *size), clip=CLIPS[m.name]))  # type: ignore[arg-type]
        return tuple(found)

    def _seen(self, key: str, pictures: Tensor, code: Tensor | None = None) -> Tensor:
        """Frames [batch, history, channels, height, width] of pictures: what `see` makes of them, or made before."""
        if code is None and pictures.dtype != torch.uint8:
            code = pictures
        if code is not None:
            return code.float()
        return self.see(key, pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])

    def _future(self, batch: Batch) -> dict[str, Tensor]:
        """Modality -> clean frames [batch, future, channels, height, width] of what is to be predicted."""
        found = {}
        for m in (m for m in self.modalities if m.future):
            if m.name == "poses":
                found[m.name] = self.poses(self.future_poses(batch), batch[self.observed.pose.key][:, -1])[
                    ..., None, None
                ]
            else:
                key = self.observed.cameras[m.name]
                found[m.name] = self._seen(key, batch[FUTURE + key])
        return found

    def future_poses(self, batch: Batch) -> Tensor:
        """What is to be predicted of the poses of `Windows.with_future`, in their units, [batch, future, size]."""
        key = self.observed.pose.key
        now, ahead = batch[key][:, -1], batch[FUTURE + key]
        return self._commanded(now, ahead, batch["action"]) if self.config.poses == "commanded" else ahead

    def _commanded(self, now: Tensor, ahead: Tensor, actions: Tensor) -> Tensor:
        """The poses `ahead`, but of what a velocity moves where the demonstrated `actions` would have moved it."""
        moved = actions.cumsum(1)[:, torch.tensor(self.config.future) - 1] * self.contract.action_period_s
        found = list(ahead.unbind(-1))
        for number, channel in enumerate(self.channels):
            if channel.kind == "velocity":
                found[channel.element] = now[:, None, channel.element] + moved[..., number]
        return torch.stack(found, dim=-1)

    def _target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to give."""
        if self.config.prediction_type == "sample":
            return clean
        if self.config.prediction_type == "v_prediction":
            return self.noise_schedule.get_velocity(clean, noise, timesteps)  # type: ignore[arg-type]  # int64 works
        return noise

    def _action_weight(self) -> Tensor:
        """Rises from 0, so that pictures are learned first; where there are none to learn, it stands at once."""
        if not self.config.predict_images or not self.config.action_ramp_steps:
            return torch.full((), self.config.action_weight, device=self.trained_steps.device)
        return self.config.action_weight * (self.trained_steps / self.config.action_ramp_steps).clamp(max=1.0)


class _VaeStage(nn.Module):
    """The autoencoder as the trainer sees it: it learns from the pictures of a batch alone."""

    def __init__(self, vae: ImageLatents, key: str) -> None:
        super().__init__()
        self.vae, self.key = vae, key

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.vae.loss(batch[self.key], generator)
