"""The table of numbers is diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.diffusion.config import DiffusionConfig
from policies.diffusion.schedule import diffusion_sampler, inference_scheduler
from policies.runtime.diffusion import denoised
from policies.runtime.sampler import sampler_from_json

CONFIGS = [DiffusionConfig(inference_steps=k) for k in (5, 8, 10, 16, 50, 100)] + [DiffusionConfig(scheduler="ddpm")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.scheduler}-{c.inference_steps}")
def test_every_step_agrees_with_diffusers(config):
    scheduler, sampler = inference_scheduler(config), diffusion_sampler(config)
    assert [s.timestep for s in sampler.steps] == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    for step in sampler.steps:
        sample, epsilon = torch.randn(2, 1, 16, 4, generator=generator).unbind()
        state = generator.get_state()
        expected = scheduler.step(epsilon, step.timestep, sample, generator=generator, return_dict=False)[0]
        found = denoised(step, sampler.clip, sample.numpy(), epsilon.numpy())
        if step.next_noise:
            generator.set_state(state)
            found += np.float32(step.next_noise) * torch.randn(1, 16, 4, generator=generator).numpy()
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.scheduler}-{c.inference_steps}")
def test_last_step_gives_the_clipped_estimate_so_actions_stay_in_their_range(config):
    sampler = diffusion_sampler(config)
    wild = np.full((1, 2, 1), 50, np.float32)
    assert np.abs(denoised(sampler.steps[-1], sampler.clip, wild, -wild)).max() <= 1 + 1e-6
    assert sampler.steps[-1].next_noise == 0


def test_sampler_survives_json():
    sampler = diffusion_sampler(DiffusionConfig())
    assert sampler_from_json(sampler.to_json().encode()) == sampler


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b'{"kind": "magic"}', b'{"kind": "diffusion", "scheduler": "x", "clip": 1, "steps": []}'],
)
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"\S"):
        sampler_from_json(text)
