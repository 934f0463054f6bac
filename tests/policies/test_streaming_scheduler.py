"""The staircase of noise levels against its definition, and its steps against diffusers' own schedulers."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from contracts import ContractError
from policies.streaming.config import StreamingConfig
from policies.streaming.scheduler import StreamingScheduler

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SHAPES = ((20, 8, 100), (20, 1, 100), (16, 5, 100), (16, 1, 100), (12, 12, 50))  # horizon, execute, noise levels


def paper_timesteps(horizon: int, execute: int, levels: int) -> list[int]:
    """Section IV of the paper: chunk i waits at timestep floor(N (i + 1) / h) - 1; what is left over, at the last."""
    h = horizon // execute
    return [min(floor(Fraction(levels * (slot // execute + 1), h)), levels) - 1 for slot in range(horizon)]


@pytest.mark.parametrize(("horizon", "execute", "levels"), SHAPES)
def test_the_buffer_waits_on_the_papers_staircase(horizon, execute, levels):
    scheduler = StreamingScheduler(levels, horizon, execute)
    assert (scheduler.staircase() - 1).tolist() == paper_timesteps(horizon, execute, levels)


def test_the_papers_own_setting_by_hand():
    scheduler = StreamingScheduler(100, 20, 8)
    assert scheduler.staircase().tolist() == [50] * 8 + [100] * 12
    assert scheduler.staircase(1.0).tolist() == [0] * 8 + [50] * 8 + [100] * 4


def test_an_observation_leads_one_step_down():
    progress = torch.linspace(0, 1, 6)
    levels = StreamingScheduler(100, 20, 1).staircase(progress)
    assert levels[0].tolist() == list(range(5, 101, 5))
    assert levels[-1].tolist() == list(range(0, 96, 5))
    assert (levels.diff(dim=0) == -1).all()


def test_after_dropping_the_clean_head_the_rest_stands_where_the_next_observation_expects_it():
    for horizon, execute, levels in SHAPES:
        scheduler = StreamingScheduler(levels, horizon, execute)
        rolled = torch.cat((scheduler.staircase(1.0)[execute:], torch.full((execute,), levels)))
        assert torch.equal(rolled, scheduler.staircase()), (horizon, execute)


def drawn(shape: tuple[int, int, int], weights: tuple[float, float, float], count: int = 4000) -> Tensor:
    horizon, execute, levels = shape
    generator = torch.Generator().manual_seed(0)
    return StreamingScheduler(levels, horizon, execute).training_levels(count, weights, generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_chunkwise_training_sees_every_staircase_of_a_roll_and_no_other(shape):
    horizon, execute, levels = shape
    h = horizon // execute
    count = ceil(Fraction(levels, h))
    wanted = set()
    for spent in range(count):  # the staircase minus `spent`; what is left over of the horizon waits at the last level
        chunks = [floor(Fraction(levels * (slot // execute + 1), h)) - spent for slot in range(horizon)]
        waiting = [levels if slot // execute >= h else level for slot, level in enumerate(chunks)]
        wanted.add(tuple(max(1, level) for level in waiting))
    found = Counter(map(tuple, drawn(shape, (1, 0, 0)).tolist()))
    assert set(found) == wanted
    assert min(found.values()) > 0.5 * max(found.values())  # uniform


def test_constant_training_has_one_level_for_the_chunk_and_independent_training_one_for_each_action():
    constant = drawn((20, 1, 100), (0, 1, 0))
    assert (constant == constant[:, :1]).all()
    assert set(constant[:, 0].tolist()) == set(range(1, 101))
    independent = drawn((20, 1, 100), (0, 0, 1))
    assert abs(np.corrcoef(independent[:, 0], independent[:, 1])[0, 1]) < 0.1
    assert set(independent.flatten().tolist()) == set(range(1, 101))


def test_kinds_of_levels_come_as_often_as_asked_for():
    levels = drawn((20, 1, 100), (0.8, 0.2, 0))
    constant = (levels == levels[:, :1]).all(dim=1).float().mean()
    assert constant == pytest.approx(0.2, abs=0.02)
    assert levels.min() >= 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_the_true_answer_a_deterministic_step_leads_to_any_lower_levels(prediction):
    scheduler = StreamingScheduler(100, 20, 1, prediction)
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 20, 4, generator=generator) * 2 - 1
    noise = torch.randn(3, 20, 4, generator=generator)
    above = torch.randint(1, 90, (3, 20), generator=generator)
    below = (above - torch.randint(0, 40, (3, 20), generator=generator)).clamp(min=0)
    sample = scheduler.add_noise(clean, noise, above)
    output = scheduler.target(clean, noise, above)
    step = scheduler.step(output, above, below, sample)
    torch.testing.assert_close(step.prev_sample, scheduler.add_noise(clean, noise, below), atol=2e-4, rtol=0)
    torch.testing.assert_close(step.pred_original_sample, clean, atol=2e-4, rtol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_one_level_for_all_it_is_diffusers_ddim_with_fewer_steps(prediction):
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction, "clip_sample": True}
    theirs = DDIMScheduler(num_train_timesteps=100, set_alpha_to_one=True, timestep_spacing="leading", **options)
    theirs.set_timesteps(10)
    ours = StreamingScheduler(100, 20, 1, prediction)
    generator = torch.Generator().manual_seed(0)
    for timestep in theirs.timesteps:
        sample, output = torch.randn(2, 1, 20, 4, generator=generator).unbind()
        expected = theirs.step(output, timestep, sample)
        levels = torch.full((20,), int(timestep) + 1)
        found = ours.step(output, levels, (levels - 10).clamp(min=0), sample)
        torch.testing.assert_close(found.prev_sample, expected.prev_sample, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.pred_original_sample, expected.pred_original_sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_one_level_for_all_it_is_diffusers_ddpm(prediction):
    theirs = DDPMScheduler(
        100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=True,
        variance_type="fixed_small",
    )
    ours = StreamingScheduler(100, 20, 1, prediction)
    generator = torch.Generator().manual_seed(0)
    for timestep in (99, 70, 31, 5, 1, 0):
        sample, output = torch.randn(2, 1, 20, 4, generator=generator).unbind()
        state = generator.get_state()
        expected = theirs.step(output, timestep, sample, generator=generator).prev_sample
        generator.set_state(state)
        noise = torch.randn(1, 20, 4, generator=generator)
        levels = torch.full((20,), timestep + 1)
        found = ours.step(output, levels, levels - 1, sample, noise).prev_sample
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_action_whose_level_would_not_fall_stays_as_it_is():
    scheduler = StreamingScheduler(100, 20, 1)
    sample = torch.randn(1, 20, 4)
    levels = torch.arange(20)
    for noise in (None, torch.randn(1, 20, 4)):
        step = scheduler.step(torch.randn(1, 20, 4), levels, levels + 3, sample, noise)
        assert torch.equal(step.prev_sample, sample)
        assert torch.equal(step.pred_original_sample[:, 0], sample[:, 0])  # clean already


def test_it_is_saved_and_loaded_as_every_scheduler_of_diffusers(tmp_path):
    StreamingScheduler(50, 12, 3, "v_prediction").save_pretrained(tmp_path)
    loaded = StreamingScheduler.from_pretrained(tmp_path)
    assert loaded.staircase().tolist() == StreamingScheduler(50, 12, 3).staircase().tolist()
    assert loaded.config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"execute": 0}, r"execute must be within \[1, horizon \(20\)\], not 0"),
        ({"execute": 21}, "execute must be within"),
        ({"horizon": 18}, "horizon 18 must be a multiple of 4: 3 levels"),
        ({"evaluations": 6}, r"evaluations must be within \[1, 5\]"),
        ({"noise_levels": 19}, r"noise_levels 19 must be within \[20, 10000\]"),
        ({"chunkwise": 0.5}, "sum to 1, not 0.7"),
        ({"chunkwise": 1.2, "constant": -0.2}, "must be positive and sum to 1"),
        ({"reset_evaluations": 0}, "reset_evaluations must be within"),
        ({"reset": "noise"}, "Invalid enum value 'noise'"),
        ({"widths": (16, 20)}, "a width must be a positive multiple of 8, not 20"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(choices, message):
    with pytest.raises(ContractError, match=message):
        StreamingConfig.from_dict(choices)
