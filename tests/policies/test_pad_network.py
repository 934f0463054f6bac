"""PAD's transformer: its sizes, who sees whom, and what it takes from others' weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock

from policies.pad.config import SIZES, PadConfig
from policies.pad.eye import PictureEye
from policies.pad.pretrained import load_dit, load_vae
from policies.pad.transformer import Modality, PadTransformer, _frames, _patches
from policies.pad.vae import ImageLatents
from policies.tensors import CheckpointError

PICTURES = Modality("pictures", 4, 8, 12, 2, 1, 3)
DEPTH = Modality("depth", 1, 8, 8, 4, 1, 3)
POSES = Modality("poses", 4, 1, 1, 1, 2, 3)
PAPER = {"S": 33, "B": 131, "L": 460, "XL": 677}  # million parameters


def make(
    *modalities: Modality, layers: int = 2, width: int = 32, shared: bool = False, apart: bool = False
) -> PadTransformer:
    """Every weight is drawn, or adaLN-Zero would hide what depends on what."""
    torch.manual_seed(0)
    network = PadTransformer(layers, width, 2, 8, modalities, shared, apart).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn_like(weight))
    return network


def inputs(*modalities: Modality, count: int = 2):
    """Noisy, timestep, clean, text."""
    generator = torch.Generator().manual_seed(1)

    def frames(m: Modality, number: int) -> torch.Tensor:
        return torch.randn((count, number, m.channels, m.height, m.width), generator=generator)

    noisy = {m.name: frames(m, m.future) for m in modalities if m.future}
    clean = {m.name: frames(m, m.past) for m in modalities}
    return noisy, torch.arange(count) * 100, clean, torch.randn((count, 8), generator=generator)


@pytest.mark.parametrize(("size", "millions"), PAPER.items())
def test_sizes_have_as_many_parameters_as_the_paper_says(size, millions):
    with torch.device("meta"):
        modalities = (Modality("pictures", 4, 32, 32, 2, 1, 3), Modality("poses", 4, 1, 1, 1, 1, 3))
        network = PadTransformer(*SIZES[size], 512, modalities)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


def test_nano_has_at_most_64_tokens():
    config = PadConfig()
    cells = 96 // (config.downsampling * config.patch)
    assert cells**2 + 1 == 37


def test_nano_shares_its_modulation_which_saves_a_third():
    alone, shared = (
        sum(p.numel() for p in PadTransformer(*SIZES["nano"], 8, (PICTURES, POSES), share).blocks.parameters())
        for share in (False, True)
    )
    assert shared == pytest.approx(alone * 2 / 3, rel=0.01)
    assert PadConfig().shared_modulation


def test_the_eye_learns_where_a_thing_of_two_pixels_is():
    """In places where it never was in training."""
    torch.manual_seed(0)
    eye, head = PictureEye(8, 4, 8), torch.nn.Linear(8, 2)
    places = torch.tensor([(row, column) for row in range(2, 30) for column in range(2, 29)])
    places = places[torch.randperm(len(places))]
    pictures = torch.zeros(len(places), 3, 32, 32)
    which = torch.arange(len(places))
    for column in (0, 1):
        pictures[which, 1, places[:, 0], places[:, 1] + column] = 1.0
    wanted = places / 16 - 1
    optimizer = torch.optim.Adam([*eye.parameters(), *head.parameters()], 3e-3)
    for step in range(150):
        batch = torch.arange(32) + 32 * (step % 12)
        details, keypoints = eye(pictures[batch])
        assert details.shape == (32, 8, 4, 4)
        optimizer.zero_grad()
        (head(keypoints) - wanted[batch]).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = (head(eye(pictures[400:])[1]) - wanted[400:]).abs().mean() * 16
    assert error < 3.5  # pixels; by chance 7


def test_patches_hold_a_square_of_every_frame_and_go_back():
    frames = torch.arange(2 * 3 * 4 * 8 * 12.0).reshape(2, 3, 4, 8, 12)
    tokens = _patches(frames, 2)
    assert tokens.shape == (2, 24, 48)
    assert torch.equal(tokens[1, 7].reshape(3, 4, 2, 2), frames[1, :, :, 2:4, 2:4])  # row 1, column 1 of 6
    assert torch.equal(_frames(tokens, PICTURES), frames)


def test_a_new_network_predicts_nothing_and_its_blocks_are_the_identity():
    network = PadTransformer(2, 32, 2, 8, (PICTURES, POSES))
    outputs = network(*inputs(PICTURES, POSES))
    assert all((value == 0).all() for value in outputs.values())
    x = torch.randn(2, 25, 32)
    assert torch.equal(network.blocks[0](x, torch.randn(2, 32), network.mask), x)


def test_who_sees_whom():
    """The Jacobian is exactly 0 where a token must not look, and nowhere else."""
    network = make(PICTURES, DEPTH, POSES)
    sees = {"pictures": {"pictures"}, "depth": {"pictures", "depth"}, "poses": {"pictures", "depth", "poses"}}
    for name, seen in sees.items():
        noisy, timestep, clean, text = inputs(PICTURES, DEPTH, POSES)
        leaves = [(key, value.requires_grad_()) for part in (noisy, clean) for key, value in part.items()]
        network(noisy, timestep, clean, text)[name].square().sum().backward()
        for key, leaf in leaves:
            gradient = torch.zeros(()) if leaf.grad is None else leaf.grad
            assert bool((gradient != 0).all()) == (key in seen)
            assert bool((gradient == 0).all()) == (key not in seen)


def test_with_the_present_apart_poses_see_it_but_nothing_imagined():
    """And pictures see as much as before."""
    network = make(PICTURES, DEPTH, POSES, apart=True)
    sees_future = {"pictures": {"pictures"}, "depth": {"depth"}, "poses": {"depth", "poses"}}
    sees_now = {"pictures": {"pictures"}, "depth": {"pictures", "depth"}, "poses": {"pictures", "depth", "poses"}}
    for name in sees_now:
        noisy, timestep, clean, text = inputs(PICTURES, DEPTH, POSES)
        for value in (*noisy.values(), *clean.values()):
            value.requires_grad_()
        output = network(noisy, timestep, clean, text)[name]
        assert output.shape == noisy[name].shape
        output.square().sum().backward()
        for leaves, seen in ((noisy, sees_future[name]), (clean, sees_now[name])):
            found = {key: leaf.grad is not None and bool((leaf.grad != 0).all()) for key, leaf in leaves.items()}
            assert found == {key: key in seen for key in leaves}


def test_pictures_are_the_same_to_the_bit_whatever_the_poses():
    network = make(PICTURES, POSES)
    noisy, timestep, clean, text = inputs(PICTURES, POSES)
    one = network(noisy, timestep, clean, text)
    other = network(noisy | {"poses": 100 * noisy["poses"]}, timestep, clean | {"poses": clean["poses"] - 7}, text)
    assert torch.equal(one["pictures"], other["pictures"])
    assert not torch.equal(one["poses"], other["poses"])


@pytest.mark.parametrize("shared", [False, True])
def test_timestep_and_instruction_matter_to_everything(shared):
    network = make(PICTURES, POSES, shared=shared)
    noisy, timestep, clean, text = inputs(PICTURES, POSES)
    one = network(noisy, timestep, clean, text)
    for other in (network(noisy, timestep + 1, clean, text), network(noisy, timestep, clean, text + 1)):
        assert all(not torch.equal(one[name], other[name]) for name in one)


def test_half_precision_stays_close():
    network = make(PICTURES, POSES)
    given = inputs(PICTURES, POSES)
    exact = network(*given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(*given)
    for name, value in exact.items():
        assert (rough[name].float() - value).abs().max() < 0.1 * value.abs().max()


def test_it_saves_and_loads_as_diffusers_models_do(tmp_path):
    network = make(PICTURES, POSES)
    network.save_pretrained(tmp_path)
    again = PadTransformer.from_pretrained(tmp_path)
    given = inputs(PICTURES, POSES)
    assert torch.equal(again(*given)["poses"], network(*given)["poses"])


# Pretrained weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dit(tmp_path_factory) -> Path:
    torch.manual_seed(5)
    model: Any = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=3, sample_size=8, num_embeds_ada_norm=10
    )
    path = tmp_path_factory.mktemp("dit")
    model.save_pretrained(path)
    return path


def test_blocks_of_a_dit_are_taken_and_do_what_they_did(dit):
    network = make(PICTURES, POSES)
    taken = load_dit(network, dit)
    assert len(taken) == 2 * 10 + 4  # two blocks of five layers, and the timestep's embedding
    theirs: Any = DiTTransformer2DModel.from_pretrained(dit).eval().transformer_blocks[1]
    assert isinstance(theirs, BasicTransformerBlock)
    x, condition = torch.randn(2, 25, 32), torch.randn(2, 32)
    block: Any = theirs
    block.norm1.emb.forward = lambda *_, **__: condition  # what the timestep and the class come to
    expected = theirs(x, timestep=torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.int64))
    found = network.blocks[1](x, condition, torch.ones_like(network.mask))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(dit, tmp_path):
    with pytest.raises(CheckpointError, match="is its width another"):
        load_dit(make(PICTURES, POSES, width=16), dit)
    with pytest.raises(CheckpointError, match="DiTTransformer2DModel.save_pretrained writes it"):
        load_dit(make(PICTURES, POSES), tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match="only safetensors are read, never pickle"):
        load_dit(make(PICTURES, POSES), tmp_path)


def test_a_pretrained_autoencoder_is_taken_with_its_scale(tmp_path):
    config = PadConfig(vae_patch=1, vae_channels=(8, 16), latent_channels=4, pretrained_vae=str(tmp_path))
    torch.manual_seed(2)
    theirs: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=8, scaling_factor=0.25,
    )  # fmt: skip
    theirs.eval().save_pretrained(tmp_path)
    ours = ImageLatents(config, 16, 16).eval()
    load_vae(ours, tmp_path)
    pictures = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs.encode(pictures.movedim(-1, 1) / 127.5 - 1).latent_dist.mode() * 0.25
        torch.testing.assert_close(ours.encode(pictures), expected, atol=1e-5, rtol=1e-5)
        decoded = ((theirs.decode(expected / 0.25).sample + 1) * 127.5).round().clamp(0, 255)
        found = ours.decode(expected[:, None])[:, 0].movedim(-1, 1)
        assert (found.float() - decoded).abs().max() <= 1  # a rounding
    with pytest.raises(CheckpointError, match=r"another autoencoder.*block_out_channels \[8, 16\], here \[16, 16\]"):
        load_vae(ImageLatents(msgspec.structs.replace(config, vae_channels=(16, 16)), 16, 16), tmp_path)


# Choices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, "size must be nano, S, B, L, XL or LAYERSxWIDTHxHEADS, not 'huge'"),
        ({"size": "2x30x2"}, "multiple of 8"),
        ({"size": "2x32x5"}, "multiple of heads 5"),
        ({"future": (0, 4, 12)}, "begin after 0, the present"),
        ({"future": (8, 4, 12)}, "future must rise"),
        ({"horizon": 16}, "horizon 16 must be the last of future"),
        ({"execute": 13}, "execute must be within"),
        ({"vae_channels": (12,)}, "multiples of vae_groups"),
        ({"text": "clip"}, "needs text_directory"),
        ({"vae_channels": ()}, "vae_channels must not be empty"),
        ({"vae_groups": 0}, "vae_groups positive"),
        ({"vae_channels": (8, -8)}, r"positive multiples of vae_groups \(8\), not -8"),
        ({"size": "0x32x2"}, "all three must be positive"),
        ({"size": "2x32x0"}, "all three must be positive"),
        ({"size": "2x32x2 "}, "LAYERSxWIDTHxHEADS"),
        ({"future": ()}, "future must rise"),
        ({"future": (4, 4, 12)}, "future must rise"),
        ({"future": (-4, 12)}, "begin after 0"),
        ({"execute": 0}, r"execute must be within \[1, 12\], not 0"),
        ({"state_history": 0}, "state_history and image_history must be positive"),
        ({"image_history": 0}, "state_history and image_history must be positive"),
        ({"eye_channels": 0}, "eye_channels and keypoints must be positive"),
        ({"keypoints": 0}, "eye_channels and keypoints must be positive"),
        ({"vae_patch": 1, "vae_channels": (8,)}, "even number of pixels wide, not 1: a larger vae_patch"),
        ({"vae_patch": 3, "vae_channels": (8,)}, "even number of pixels wide, not 3"),
        *(
            ({name: 0, "eye": False}, "patch, vae_patch and latent_channels must be positive")
            for name in ("patch", "vae_patch", "latent_channels")
        ),
        *(
            ({name: 0}, "vae_layers, vae_steps and vae_batch_size must be positive")
            for name in ("vae_layers", "vae_steps", "vae_batch_size")
        ),
        ({"vae_learning_rate": 0.0}, "vae_learning_rate must be positive"),
        ({"vae_learning_rate": math.inf}, "vae_learning_rate must be a finite number"),
        ({"gripper_threshold": math.nan}, "gripper_threshold must be a finite number"),
        ({"action_weight": math.nan}, "action_weight must be a finite number"),
        ({"action_weight": 0.0}, "action_weight must be positive"),
        ({"action_ramp_steps": -1}, "action_ramp_steps cannot be negative"),
        ({"text_dim": 0}, "text_dim must be positive"),
        ({"present_apart": True, "predict_images": False}, "present_apart needs predict_images"),
        ({"inference_steps": 0}, r"inference_steps must be within \[1, 1000\], not 0"),
        ({"inference_steps": 1001}, r"inference_steps must be within \[1, 1000\], not 1001"),
        ({"solver": "ddim", "inference_steps": 501}, "at timestep 500 of 1000"),
    ],
)
def test_wrong_choices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PadConfig(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"execute": 1},
        {"execute": 12},
        {"future": (1,), "horizon": 1, "execute": 1},
        {"action_ramp_steps": 0},
        {"inference_steps": 1},
        {"inference_steps": 1000},
        {"eye": False, "vae_patch": 1, "vae_channels": (8,)},
        {"vae_patch": 1, "vae_channels": (8, 8)},
        {"predict_images": False},
        {"present_apart": True},
        {"text": "clip", "text_directory": "clip"},
        {"vae_channels": (4,), "vae_groups": 4, "size": "1x8x1"},
    ],
)
def test_choices_that_are_just_right_are_taken(changes):
    config = PadConfig(**changes)
    assert {name: getattr(config, name) for name in changes} == changes
