"""Streaming Diffusion Policy (arXiv 2406.04806): learn to denoise a chunk of ever noisier actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracts import PolicyContract
from contracts.serialization import require
from policies.base import Batch, Graph, Policy, example_observations
from policies.encoders import ObservationEncoder
from policies.normalization import Decoder, MinMaxNormalizer
from policies.runtime.sampler import StreamingSampler
from policies.streaming.config import StreamingConfig
from policies.streaming.scheduler import CLIP, StreamingScheduler
from policies.unet import ConditionalUNet1d


class StreamingPolicy(Policy):
    """Diffusion Policy's UNet with a noise level for each action, where Diffusion Policy has one for the chunk."""

    family = "streaming"
    config_type = StreamingConfig
    sampling = ("scheduler", "evaluations", "reset", "reset_action", "reset_evaluations")
    config: StreamingConfig

    def __init__(self, config: StreamingConfig, contract: PolicyContract) -> None:
        super().__init__(config, contract)
        action_dim = contract.action.shape[0]
        require(
            len(config.reset_action) in (0, action_dim),
            f"reset_action has {len(config.reset_action)} numbers; an action has {action_dim}",
        )
        self.encoder = ObservationEncoder(contract, config.image_width, config.keypoints)
        self.actions = MinMaxNormalizer(action_dim)
        self.unet = ConditionalUNet1d(
            action_dim, self.encoder.output_dim, config.widths, config.kernel_size, config.level_dim
        )
        self.scheduler = StreamingScheduler(
            config.noise_levels, config.horizon, config.execute, config.prediction, clip_sample_range=CLIP
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of what the network predicts.

        Args:
            batch: observations [batch, history, ...] and `action` [batch, horizon, action_dim].
            generator: of levels, noise and image shifts; on the CPU, so that every device learns from the same.
        """
        clean = self.actions(batch["action"])
        config, device = self.config, clean.device
        levels = self.scheduler.training_levels(len(clean), config.level_weights, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        condition = self.encoder.encode(batch, config.shift_pixels, generator)
        output = self.unet(self.scheduler.add_noise(clean, noise, levels), levels, condition).float()
        return (output - self.scheduler.target(clean, noise, levels)).square().mean(), {}

    def graphs(self) -> dict[str, Graph]:
        """`encoder`, `denoiser` and `decoder`, as `StreamingSampler` describes them."""
        sample = torch.zeros((1, self.contract.horizon, self.contract.action.shape[0]))
        denoiser_inputs = {
            "sample": sample,
            "levels": torch.ones((1, self.contract.horizon), dtype=torch.int64),
            "condition": torch.zeros((1, self.encoder.output_dim)),
        }
        return {
            "encoder": Graph(self.encoder, example_observations(self.contract), ("condition",)),
            "denoiser": Graph(_Denoiser(self.unet, self.config.noise_levels), denoiser_inputs, ("prediction",)),
            "decoder": Graph(Decoder(self.actions), {"sample": sample}, ("actions",)),
        }

    def sampler(self) -> StreamingSampler:
        """The staircase, and how an episode begins."""
        config = self.config
        reset_levels: list[int] = []
        if config.reset == "denoised":
            reset_levels = torch.linspace(config.noise_levels, 0, config.reset_evaluations + 1).round().int().tolist()
        reset_sample = torch.zeros(self.contract.action.shape[0])
        if config.reset == "constant":
            wanted = torch.tensor(config.reset_action or [0.0] * len(reset_sample))
            reset_sample = self.actions(wanted).clamp(-CLIP, CLIP)
        return StreamingSampler(
            scheduler=config.scheduler,
            prediction=config.prediction,
            clip=CLIP,
            alphas=tuple(self.scheduler.alphas_cumprod.tolist()),
            execute=config.execute,
            evaluations=config.evaluations,
            reset_sample=tuple(reset_sample.tolist()),
            reset_levels=tuple(reset_levels),
        )


class _Denoiser(nn.Module):
    """The UNet for acting: there are only so many levels, so what each does to FiLM is looked up, not computed."""

    film: Tensor

    def __init__(self, unet: ConditionalUNet1d, noise_levels: int) -> None:
        super().__init__()
        self.unet = unet
        with torch.no_grad():
            film = unet.timestep_film(torch.arange(noise_levels + 1))
        self.register_buffer("film", film)

    def forward(self, sample: Tensor, levels: Tensor, condition: Tensor) -> Tensor:
        return self.unet.denoise(sample, self.film[levels], condition)
