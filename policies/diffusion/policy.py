"""Diffusion Policy (arXiv 2303.04137): learn the noise in demonstrated chunks, act by removing it from pure noise."""

from __future__ import annotations

import torch
from torch import Tensor

from contracts import PolicyContract
from policies.base import Batch, Graph, Policy, example_observations
from policies.diffusion.config import DiffusionConfig
from policies.diffusion.schedule import diffusion_sampler, training_scheduler
from policies.encoders import ObservationEncoder
from policies.normalization import Decoder, MinMaxNormalizer
from policies.runtime.sampler import DiffusionSampler
from policies.unet import ConditionalUNet1d


class DiffusionPolicy(Policy):
    """A 1-D UNet that removes noise from an action chunk, conditioned on the observation by FiLM."""

    family = "diffusion"
    config_type = DiffusionConfig
    sampling = ("scheduler", "inference_steps")
    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig, contract: PolicyContract) -> None:
        super().__init__(config, contract)
        action_dim = contract.action.shape[0]
        self.encoder = ObservationEncoder(contract, config.image_width, config.keypoints)
        self.actions = MinMaxNormalizer(action_dim)
        self.unet = ConditionalUNet1d(
            action_dim, self.encoder.output_dim, config.widths, config.kernel_size, config.timestep_dim
        )
        self.noise_schedule = training_scheduler(config)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the predicted noise (equation 5).

        Args:
            batch: observations [batch, history, ...] and `action` [batch, horizon, action_dim].
            generator: of timesteps, noise and image shifts; on the CPU, so that every device learns from the same.
        """
        clean = self.actions(batch["action"])
        count, device = clean.shape[0], clean.device
        timesteps = torch.randint(0, self.config.train_timesteps, (count,), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        condition = self.encoder.encode(batch, self.config.shift_pixels, generator)
        noisy = self.noise_schedule.add_noise(clean, noise, timesteps)  # type: ignore[arg-type]  # int64 works
        error = (self.unet(noisy, timesteps, condition).float() - noise).square().mean()
        return error, {}

    def graphs(self) -> dict[str, Graph]:
        """`encoder`, `denoiser` and `decoder`, as `DiffusionSampler` describes them."""
        observations = example_observations(self.contract)
        sample = torch.zeros((1, self.contract.horizon, self.contract.action.shape[0]))
        return {
            "encoder": Graph(self.encoder, observations, ("condition",)),
            "denoiser": Graph(
                self.unet,
                {
                    "sample": sample,
                    "timestep": torch.zeros(1, dtype=torch.int64),
                    "condition": torch.zeros((1, self.encoder.output_dim)),
                },
                ("epsilon",),
            ),
            "decoder": Graph(Decoder(self.actions), {"sample": sample}, ("actions",)),
        }

    def sampler(self) -> DiffusionSampler:
        """The schedule's numbers."""
        return diffusion_sampler(self.config)
