"""The networks, piece by piece."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contracts import ContractError
from policies.base import make_contract
from policies.diffusion.config import DiffusionConfig
from policies.diffusion.policy import DiffusionPolicy
from policies.ema import ExponentialMovingAverage
from policies.encoders import ImageEncoder, SpatialSoftmax, random_shift
from policies.tensors import CheckpointError
from policies.unet import ConditionalUNet1d


def test_unet_keeps_the_chunks_shape_and_sees_step_and_condition():
    torch.manual_seed(0)
    unet = ConditionalUNet1d(action_dim=3, condition_dim=5, widths=(16, 24, 32), kernel_size=5, timestep_dim=16)
    sample, step, condition = torch.randn(2, 8, 3), torch.tensor([3, 50]), torch.randn(2, 5)
    out = unet(sample, step, condition)
    assert out.shape == (2, 8, 3)
    assert not torch.allclose(out, unet(sample, step + 1, condition))
    assert not torch.allclose(out, unet(sample, step, condition + 1))
    torch.testing.assert_close(out[:1], unet(sample[:1], step[:1], condition[:1]))  # samples do not mix


def test_every_weight_gets_a_gradient(robot, tiny):
    for observation_set in ("state", "image"):
        policy = DiffusionPolicy(tiny, make_contract("diffusion", tiny, robot, observation_set, "t"))
        batch = {
            o.feature.key: torch.randint(0, 255, (4, o.history, *o.feature.shape)).to(getattr(torch, o.feature.dtype))
            for o in policy.contract.observations
        }
        loss, _ = policy.loss(batch | {"action": torch.randn(4, 16, 4)}, torch.Generator().manual_seed(0))
        loss.backward()
        assert [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_spatial_softmax_points_at_the_hot_pixel():
    pool = SpatialSoftmax(1, 1)
    nn.init.ones_(pool.maps.weight)
    picture = torch.zeros(1, 1, 5, 9)
    picture[0, 0, 1, 6] = 100.0
    torch.testing.assert_close(pool(picture), torch.tensor([[0.5, -0.5]]))  # x of column 6 of 9, y of row 1 of 5


def test_image_encoder_takes_other_sizes_and_has_no_batch_statistics():
    torch.manual_seed(0)
    encoder = ImageEncoder(width=8, keypoints=4).train()
    pictures = torch.randint(0, 256, (3, 64, 80, 3), dtype=torch.uint8)
    encoded = encoder(pictures)
    assert encoded.shape == (3, 8)
    assert encoded.abs().max() <= 1
    torch.testing.assert_close(encoded[1:2], encoder(pictures[1:2]), rtol=1e-4, atol=1e-5)


def test_random_shift_moves_a_samples_pictures_together_and_repeats_the_edge():
    row, column = torch.meshgrid(torch.arange(12), torch.arange(10), indexing="ij")
    picture = torch.stack((row, column, row * 0), dim=-1).to(torch.uint8)
    images = picture.expand(200, 2, 12, 10, 3)
    shifted = random_shift(images, 3, torch.Generator().manual_seed(0))
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    moves = shifted[:, 0, 5, 5, :2].int() - 5  # what the middle pixel shows now tells how far the picture moved
    assert {tuple(m) for m in moves.tolist()} == {(r, c) for r in range(-3, 4) for c in range(-3, 4)}
    r, c = moves[0].tolist()
    expected = picture[(torch.arange(12) + r).clamp(0, 11)][:, (torch.arange(10) + c).clamp(0, 9)]
    assert torch.equal(shifted[0, 0], expected)


def test_average_follows_the_weights_by_hand():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = ExponentialMovingAverage(module, power=0.75, max_decay=0.5)
    nn.init.ones_(module.weight)
    average.update(module, step=1)  # decay 1 - 2^-0.75 = 0.40540
    assert average.shadow["weight"].item() == pytest.approx(0.594604, abs=1e-5)
    average.update(module, step=1000)  # decay 0.99 is above the highest, 0.5
    assert average.shadow["weight"].item() == pytest.approx(0.797302, abs=1e-5)


@pytest.mark.parametrize("change", ["missing", "unknown", "other shape"])
def test_averages_of_another_network_are_refused(change):
    average = ExponentialMovingAverage(torch.nn.Linear(2, 1), power=0.75, max_decay=0.5)
    before = {name: value.clone() for name, value in average.shadow.items()}
    found = {name: value + 1 for name, value in before.items()}
    if change == "missing":
        del found["bias"]
    else:
        found["bias" if change == "other shape" else "gain"] = torch.zeros(())
    with pytest.raises(CheckpointError, match=r"here: the averaged weight (bias|gain) does not belong"):
        average.load(found, "here")
    assert all(torch.equal(average.shadow[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (12, 24)}, "multiple of 8"),
        ({"horizon": 6, "execute": 4}, "multiple of 4"),
        ({"inference_steps": 101}, "inference_steps"),
        (
            {"inference_steps": 1},
            "at timestep 0 of 100, where signal is left; 5, 8, 10, 16, 25, 50, 100 would be right",
        ),
        ({"inference_steps": 60}, "at timestep 59 of 100"),
        ({"inference_steps": 34}, "at timestep 66 of 100"),
        ({"kernel_size": 4}, "odd"),
        ({"depth": 3}, "unknown field"),
        ({"horizon": "16"}, "horizon"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ContractError, match=message):
        DiffusionConfig.from_dict(change)
