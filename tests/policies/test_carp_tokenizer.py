"""CARP's tokeniser: against a slow computation by hand, and that it learns."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from contracts import ContractError
from policies.carp.config import CarpConfig
from policies.carp.tokenizer import Quantizer, Tokenizer

DIMS = 3


def smooth_chunks(count: int, generator: torch.Generator) -> torch.Tensor:
    """Normalised chunks [count, 16, 4]: three dimensions are waves, the last never varies."""
    size, phase = torch.rand(2, count, 1, 4, generator=generator)
    time = torch.linspace(0, 1, 16)[:, None]
    chunks = (0.3 + 0.7 * size) * torch.sin(2 * torch.pi * (phase + time * (0.5 + size)))
    chunks[..., 3] = 0
    return chunks


@pytest.mark.parametrize("lookup", ["cosine", "euclidean"])
@pytest.mark.parametrize("scales", [(1, 2, 3, 4), (1, 3, 5), (2, 4, 8)])
def test_tokens_and_sums_are_those_computed_by_hand(scales, lookup, slow_quantizer):
    torch.manual_seed(0)
    quantizer = Quantizer(DIMS, scales, codes=16, code_dim=5, lookup=lookup).eval()
    with torch.no_grad():  # codes of many lengths: only so do angle and distance disagree
        quantizer.codebook.mul_(torch.rand(DIMS, 16, 1) * 2)
    slow = slow_quantizer(quantizer, lookup)
    latent = torch.randn(4, DIMS, scales[-1], 5)
    with torch.no_grad():
        tokens = quantizer.encode(latent)
        sums = quantizer.accumulate(tokens)
        f_hat, loss, same = quantizer(latent)
    errors = []
    for element in range(len(latent)):
        by_hand = latent[element].double().numpy()
        expected_tokens, expected_sums = slow.encode(by_hand)
        for index in range(len(scales)):
            assert tokens[index][element].tolist() == expected_tokens[index].tolist()
            assert same[index][element].tolist() == expected_tokens[index].tolist()
            np.testing.assert_allclose(sums[index][element], expected_sums[index], atol=1e-5)
            errors.append(np.square(by_hand - expected_sums[index]).mean())
        np.testing.assert_allclose(f_hat[element], expected_sums[-1], atol=1e-5)
    assert loss.item() == pytest.approx(1.25 * np.mean(errors), rel=1e-4)  # both terms: codes to latent, 0.25 the other


def test_the_nearest_code_by_angle_is_another_than_by_distance():
    codes = torch.tensor([[[10.0, 0.0], [0.6, 0.8]]])
    found = []
    for lookup in ("cosine", "euclidean"):
        quantizer = Quantizer(1, (1,), codes=2, code_dim=2, lookup=lookup)
        quantizer.codebook.data.copy_(codes)
        found.append(quantizer.nearest(torch.tensor([[[[1.0, 0.1]]]])).item())
    assert found == [0, 1]


def test_dimensions_do_not_see_each_other(tiny_carp):
    torch.manual_seed(1)
    tokenizer = Tokenizer(4, tiny_carp).eval()
    chunks = smooth_chunks(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, told = torch.cat(tokenizer.encode(chunks), dim=-1), tokenizer.reconstructions(chunks)[-1]
        for dim in range(4):
            changed = chunks.clone()
            changed[..., dim] = torch.randn(8, 16)
            others = [d for d in range(4) if d != dim]
            after, found = torch.cat(tokenizer.encode(changed), dim=-1), tokenizer.reconstructions(changed)[-1]
            assert torch.equal(after[:, others], before[:, others])
            torch.testing.assert_close(found[..., others], told[..., others], rtol=0, atol=1e-6)
            assert (after[:, dim] != before[:, dim]).any(dim=-1).all()  # and its own do change


def test_the_decoder_is_given_the_sum_of_all_scales(tiny_carp):
    torch.manual_seed(1)
    tokenizer = Tokenizer(4, tiny_carp).eval()
    chunks = smooth_chunks(8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = tokenizer.reconstructions(chunks)
        expected = [tokenizer.decode(f_hat) for f_hat in tokenizer.quantizer.accumulate(tokenizer.encode(chunks))]
        loss, figures = tokenizer.loss(chunks, torch.Generator())
        _, quantization, _ = tokenizer.quantizer(tokenizer.latent(chunks))
    assert [f.shape for f in found] == 4 * [chunks.shape]
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)
    error = functional.mse_loss(found[-1], chunks)
    torch.testing.assert_close(figures["reconstruction"], error)
    torch.testing.assert_close(loss, error + quantization)


def test_the_gradient_passes_the_choice_of_codes_unchanged():
    torch.manual_seed(0)
    quantizer = Quantizer(DIMS, (1, 2, 4), codes=16, code_dim=5, lookup="cosine")
    latent = torch.randn(2, DIMS, 4, 5, requires_grad=True)
    f_hat, loss, tokens = quantizer(latent)
    slope = torch.randn(f_hat.shape)
    f_hat.backward(slope, retain_graph=True)
    assert latent.grad is not None
    assert torch.equal(latent.grad, slope)
    assert quantizer.codebook.grad is None
    loss.backward()
    assert quantizer.codebook.grad is not None
    learned = quantizer.codebook.grad.abs().sum(-1) > 0
    chosen = torch.zeros(DIMS, 16, dtype=torch.bool)
    for dim in range(DIMS):
        chosen[dim, torch.cat([t[:, dim].flatten() for t in tokens])] = True
    assert torch.equal(learned, chosen)
    assert 0 < chosen.sum() < chosen.numel()


def test_every_weight_of_the_tokeniser_learns(tiny_carp):
    torch.manual_seed(0)
    tokenizer = Tokenizer(4, tiny_carp).train()
    loss, _ = tokenizer.loss(torch.randn(64, 16, 4), torch.Generator())
    loss.backward()
    assert [n for n, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_encoder_learns_from_the_reconstruction_alone(tiny_carp):
    torch.manual_seed(0)
    tokenizer = Tokenizer(4, tiny_carp).train()
    chunks = smooth_chunks(8, torch.Generator().manual_seed(0))
    f_hat, _, _ = tokenizer.quantizer(tokenizer.latent(chunks))
    functional.mse_loss(tokenizer.decode(f_hat), chunks).backward()
    named = tokenizer.encoder.named_parameters()
    assert [n for n, p in named if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_only_codes_that_are_hardly_ever_chosen_move_and_each_to_a_residual_of_its_dimension(slow_quantizer):
    torch.manual_seed(0)
    quantizer = Quantizer(DIMS, (1, 2, 4), codes=16, code_dim=5, lookup="cosine")
    slow = slow_quantizer(quantizer, "cosine")
    rare = torch.zeros(DIMS, 16, dtype=torch.bool)
    rare[0, 3] = rare[1, 5] = rare[1, 15] = True
    quantizer.uses.copy_(torch.where(rare, 0.01, 10.0))
    latent = torch.randn(2, DIMS, 4, 5)
    before = quantizer.codebook.detach().clone()
    quantizer.revive(latent, torch.Generator().manual_seed(0))
    assert torch.equal((quantizer.codebook != before).any(dim=-1), rare)
    residuals: list[list[np.ndarray]] = [[] for _ in range(DIMS)]
    for element in latent.double().numpy():
        _, sums = slow.encode(element)
        for scale, f_hat in zip(slow.scales, [np.zeros_like(element), *sums], strict=False):
            for dim in range(DIMS):
                residuals[dim] += list(slow.area(element[dim] - f_hat[dim], scale))
    for dim, code in rare.nonzero().tolist():
        moved = quantizer.codebook[dim, code].detach().double().numpy()
        assert min(np.abs(moved - r).max() for r in residuals[dim]) < 1e-5
    moved_once = quantizer.codebook.detach().clone()
    quantizer.revive(latent, torch.Generator().manual_seed(1))  # at once again: they have time to prove themselves
    assert torch.equal(quantizer.codebook.detach(), moved_once)


@pytest.mark.parametrize(("steps", "revived"), [(120, True), (52, False)])
def test_codes_far_from_all_data_are_put_to_use_until_shortly_before_the_end(steps, revived, tiny_carp):
    """They are rare after 50 steps, which is too late in a training of 52."""
    torch.manual_seed(0)
    config = msgspec.structs.replace(tiny_carp, codes=8, lookup="euclidean", tokenizer_steps=steps)
    tokenizer = Tokenizer(4, config).train()
    with torch.no_grad():
        tokenizer.quantizer.codebook[:, 1:] += 100
    generator = torch.Generator().manual_seed(0)
    for _ in range(52):
        tokenizer.loss(smooth_chunks(64, generator), generator)
    tokens = torch.cat(tokenizer.eval().encode(smooth_chunks(64, generator)), dim=-1)
    used = [len(tokens[:, dim].unique()) for dim in range(4)]
    assert (min(used) > 2) if revived else (used == [1, 1, 1, 1])


@pytest.fixture(scope="module")
def trained(tiny_carp) -> Tokenizer:
    torch.manual_seed(0)
    tokenizer = Tokenizer(4, tiny_carp).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(0)
    for _ in range(tiny_carp.tokenizer_steps):
        loss, _ = tokenizer.loss(smooth_chunks(64, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokenizer.eval()


def test_every_scale_makes_the_reconstruction_better(trained):
    chunks = smooth_chunks(512, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = trained.reconstructions(chunks)
    errors = [(f - chunks)[..., :3].square().mean(dim=(0, 1)).sqrt() for f in found]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert (fine < 0.9 * coarse).all(), errors
    assert errors[-1].max() < 0.15  # of waves of size 0.3 to 1
    assert (found[-1][..., 3]).abs().max() < 0.1  # never varied, so hardly varies


def test_most_codes_of_a_varying_dimension_are_in_use(trained):
    chunks = smooth_chunks(512, torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = torch.cat(trained.encode(chunks), dim=-1)
    assert min(len(tokens[:, dim].unique()) for dim in range(3)) > 16  # of 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 18}, "horizon 18 must be a multiple of 4"),
        ({"horizon": 20}, r"the last of scales \(1, 2, 3, 4\) must be horizon / 4, which is 5"),
        ({"scales": [1, 2, 3]}, r"the last of scales \(1, 2, 3\) must be horizon / 4"),
        ({"scales": []}, "must be horizon / 4"),
        ({"scales": [2, 1, 4]}, r"must be positive and rise, not \(2, 1, 4\)"),
        ({"scales": [1, 1, 4]}, "must be positive and rise"),
        ({"scales": [0, 4]}, "must be positive and rise"),
        ({"width": 30}, "width 30 must be a multiple of heads 4"),
        ({"heads": 0}, "must be a multiple of heads 0"),
        ({"top_k": 513}, r"top_k must be within \[1, codes \(64\)\], not 513"),
        ({"top_k": 0}, r"top_k must be within \[1, codes \(64\)\], not 0"),
        ({"codes": 1}, r"codes must be within \[2, 100000\], not 1"),
        ({"temperature": 0.0}, "temperature must be positive; for no randomness choose top_k 1"),
        ({"image_width": 12}, "multiple of 8, not 12"),
        ({"lookup": "manhattan"}, "lookup"),
        ({"unet": True}, "unknown field"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ContractError, match=message):
        CarpConfig.from_dict(change)


def test_another_horizon_works_with_scales_that_end_at_a_quarter_of_it():
    config = CarpConfig(horizon=20, scales=(1, 5))
    chunks = torch.rand(2, 20, 3)
    tokens = Tokenizer(3, config).eval().encode(chunks)
    assert [t.shape for t in tokens] == [(2, 3, 1), (2, 3, 5)]
