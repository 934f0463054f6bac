"""CARP's transformer: what it may see, and that generation with a cache is generation without one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

from contracts import ContractError
from policies.carp.config import CarpConfig
from policies.carp.policy import CarpPolicy
from policies.carp.transformer import NextScaleTransformer

DIMS = 4


@pytest.fixture(params=["shared", "block"])
def policy(request, make_carp) -> CarpPolicy:
    return make_carp(modulation=request.param)


def random_given(policy: CarpPolicy, batch: int = 2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A condition, and for every scale but the first the latent of the coarser ones."""
    generator = torch.Generator().manual_seed(5)
    condition = torch.randn(batch, policy.encoder.output_dim, generator=generator)
    shapes = [(batch, DIMS, scale, policy.config.code_dim) for scale in policy.config.scales[1:]]
    return condition, [torch.randn(shape, generator=generator) for shape in shapes]


def by_scale(policy: CarpPolicy, sequence: torch.Tensor) -> list[torch.Tensor]:
    """[B, L, ...] to [B, D, k, ...] of each scale: within a scale, dimension after dimension."""
    parts = sequence.split([scale * DIMS for scale in policy.config.scales], dim=1)
    return [part.unflatten(1, (DIMS, -1)) for part in parts]


@torch.no_grad()
def test_a_scale_is_predicted_from_itself_and_the_coarser_alone(policy):
    scales = policy.config.scales
    condition, given = random_given(policy)
    before = by_scale(policy, policy.transformer(condition, given))
    for index in range(1, len(scales)):
        changed = list(given)
        changed[index - 1] = torch.randn(changed[index - 1].shape)
        after = by_scale(policy, policy.transformer(condition, changed))
        assert [torch.equal(a, b) for a, b in zip(after[:index], before, strict=False)] == index * [True]
        for a, b in zip(after[index:], before[index:], strict=True):  # itself and the finer ones
            assert (a - b).abs().amax(dim=-1).min() > 1e-3
    for a, b in zip(by_scale(policy, policy.transformer(condition + 1, given)), before, strict=True):
        assert (a - b).abs().amax(dim=-1).min() > 1e-3


@torch.no_grad()
def test_tokens_of_a_scale_see_each_other_and_batch_elements_do_not(policy):
    condition, given = random_given(policy)
    before = by_scale(policy, policy.transformer(condition, given))[-1]
    given[-1][0, 2, 1] += 1  # dimension 2 at position 1 of the first element
    after = by_scale(policy, policy.transformer(condition, given))[-1]
    assert (after[0] - before[0]).abs().amax(dim=-1).min() > 1e-4
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-6)


@torch.no_grad()
def test_fewer_scales_may_be_given(policy):
    condition, given = random_given(policy)
    whole = policy.transformer(condition, given)
    part = policy.transformer(condition, given[:2])
    torch.testing.assert_close(part, whole[:, : part.shape[1]], rtol=0, atol=1e-5)


@torch.no_grad()
def uncached(
    policy: CarpPolicy, slow, condition: torch.Tensor, committed: np.ndarray | None = None, prefix: int = 0
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """One chunk as slowly as can be: each scale from a whole forward pass, sums and forced tokens in numpy.

    Returns actions [horizon, D], the tokens [D, k] of each scale, and which of them [k] were forced.
    """
    scales, horizon = policy.config.scales, policy.config.horizon
    known = None
    if committed is not None:
        half, center = policy.actions.half_range.numpy(), policy.actions.center.numpy()
        normalised = np.where(half > 5e-5, (committed - center) / np.maximum(half, 5e-5), 0).astype(np.float32)
        known = policy.tokenizer.latent(torch.from_numpy(normalised)[None])[0].double().numpy()
    f_hat = np.zeros((DIMS, scales[-1], policy.config.code_dim))
    given: list[torch.Tensor] = []
    tokens, forced = [], []
    for index, scale in enumerate(scales):
        if index:
            shrunk = np.stack([slow.area(f_hat[dim], scale) for dim in range(DIMS)])
            given.append(torch.from_numpy(shrunk[None].astype(np.float32)))
        logits = policy.transformer(condition[None], given)[:, -scale * DIMS :]  # of this scale, see by_scale
        chosen = logits.unflatten(1, (DIMS, scale))[0].argmax(dim=-1).numpy()
        inside = np.array([Fraction((i + 1) * horizon, scale) <= prefix for i in range(scale)])
        for dim, position in np.argwhere(np.repeat(inside[None], DIMS, axis=0)):
            assert known is not None
            left = slow.area(known[dim] - f_hat[dim], scale)
            chosen[dim, position] = slow.nearest(dim, left[position])
        f_hat = slow.add(f_hat, index, chosen)
        tokens.append(chosen)
        forced.append(inside)
    decoded = policy.tokenizer.decode(torch.from_numpy(f_hat[None].astype(np.float32)))
    return policy.actions.inverse(decoded)[0].numpy(), tokens, forced


@torch.no_grad()
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "change",
    [{}, {"modulation": "block", "lookup": "euclidean"}, {"scales": (1, 4)}, {"horizon": 20, "scales": (2, 5)}],
)
def test_generation_with_a_cache_is_generation_without(change, seed, make_carp, slow_quantizer):
    policy = make_carp(seed=seed, **change)
    slow = slow_quantizer(policy.tokenizer.quantizer, policy.config.lookup)
    conditions = torch.randn(3, policy.encoder.output_dim, generator=torch.Generator().manual_seed(seed))
    actions, tokens = policy.generate(conditions)
    for element, condition in enumerate(conditions):
        expected_actions, expected_tokens, _ = uncached(policy, slow, condition)
        for found, expected in zip(tokens, expected_tokens, strict=True):
            assert found[element].tolist() == expected.tolist()
        np.testing.assert_allclose(actions[element], expected_actions, atol=1e-5)
    flat = torch.cat(tokens, dim=-1).flatten(1)
    assert len(flat.unique()) > 6  # the choice is no foregone one ...
    assert (flat[0] != flat[1]).any()  # ... and depends on what is seen


FORCED = {  # prefix -> how many tokens of each of the scales 1, 2, 3, 4 lie wholly within it, of a horizon of 16
    0: [0, 0, 0, 0],
    4: [0, 0, 0, 1],
    8: [0, 1, 1, 2],
    12: [0, 1, 2, 3],
}


@torch.no_grad()
@pytest.mark.parametrize("prefix", FORCED)
@pytest.mark.parametrize("lookup", ["cosine", "euclidean"])
def test_tokens_within_the_prefix_are_those_of_the_committed_chunk(prefix, lookup, make_carp, slow_quantizer):
    policy = make_carp(lookup=lookup)
    slow = slow_quantizer(policy.tokenizer.quantizer, lookup)
    generator = torch.Generator().manual_seed(6)
    conditions = torch.randn(4, policy.encoder.output_dim, generator=generator)
    committed = 0.4 * torch.randn(4, 16, DIMS, generator=generator)
    plain_actions, plain = policy.generate(conditions)
    actions, tokens = policy.generate(conditions, committed=committed, prefix=torch.tensor([prefix]))
    differ = 0
    for element, condition in enumerate(conditions):
        expected_actions, expected, forced = uncached(policy, slow, condition, committed[element].numpy(), prefix)
        assert [int(inside.sum()) for inside in forced] == FORCED[prefix]
        for index in range(len(slow.scales)):
            assert tokens[index][element].tolist() == expected[index].tolist()
            inside = torch.from_numpy(forced[index])
            differ += int((tokens[index][element][:, inside] != plain[index][element][:, inside]).sum())
        np.testing.assert_allclose(actions[element], expected_actions, atol=1e-5)
    assert torch.equal(tokens[0], plain[0])  # nothing of the coarsest is forced: the model's choice
    if prefix == 0:
        assert torch.equal(actions, plain_actions)
    else:
        assert differ > 4  # the model alone would have chosen others


@torch.no_grad()
def test_what_is_committed_makes_no_difference_where_nothing_is_kept(make_carp):
    policy = make_carp()
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(2, policy.encoder.output_dim, generator=generator)
    chunks = 0.4 * torch.randn(2, 2, 16, DIMS, generator=generator)
    for prefix, same in ((0, True), (3, True), (8, False)):  # 3 actions are no whole token
        found = [policy.generate(condition, committed=c, prefix=torch.tensor([prefix]))[0] for c in chunks]
        assert torch.equal(*found) == same


@torch.no_grad()
def test_targets_are_what_generation_would_have_seen(make_carp, slow_quantizer):
    policy = make_carp()
    slow = slow_quantizer(policy.tokenizer.quantizer, policy.config.lookup)
    chunks = 0.4 * torch.randn(3, 16, DIMS, generator=torch.Generator().manual_seed(0))
    tokens, coarser = policy.targets(chunks)
    latent = policy.tokenizer.latent(policy.actions(chunks)).double().numpy()
    for element in range(3):
        expected_tokens, sums = slow.encode(latent[element])
        assert [t[element].tolist() for t in tokens] == [t.tolist() for t in expected_tokens]
        assert len(coarser) == len(slow.scales) - 1
        for found, f_hat, scale in zip(coarser, sums, slow.scales[1:], strict=False):
            expected = np.stack([slow.area(f_hat[dim], scale) for dim in range(DIMS)])
            np.testing.assert_allclose(found[element], expected, atol=1e-5)


@torch.no_grad()
def test_targets_are_exact_under_half_precision(make_carp):
    policy = make_carp()
    chunks = 0.4 * torch.randn(64, 16, DIMS, generator=torch.Generator().manual_seed(0))
    exact, _ = policy.targets(chunks)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = policy.targets(chunks)
    assert all(torch.equal(f, e) for f, e in zip(found, exact, strict=True))


@pytest.mark.parametrize("modulation", ["shared", "block"])
@pytest.mark.parametrize("observation_set", ["state", "image"])
def test_loss_is_the_cross_entropy_of_the_true_tokens(observation_set, modulation, make_carp, make_observation):
    """And every weight learns from it but the tokeniser's, which are fixed by then."""
    policy = make_carp(observation_set, modulation=modulation, dropout=0.0).train()
    policy.tokenizer.requires_grad_(False)
    seen = [make_observation(policy.contract, seed).values for seed in range(3)]
    batch = {key: torch.stack([torch.from_numpy(values[key]) for values in seen]) for key in seen[0]}
    chunks = 0.4 * torch.randn(3, 16, DIMS, generator=torch.Generator().manual_seed(0))
    loss, figures = policy.loss(batch | {"action": chunks}, torch.Generator().manual_seed(0))
    tokens, coarser = policy.targets(chunks)
    logits = by_scale(policy, policy.transformer(policy.encoder(*batch.values()), coarser))
    terms = []
    for scale, found, wanted in zip(policy.config.scales, logits, tokens, strict=True):
        terms.append(functional.cross_entropy(found.flatten(0, 2), wanted.flatten(), reduction="none"))
        torch.testing.assert_close(figures[f"scale_{scale}"], terms[-1].mean())
    torch.testing.assert_close(loss, torch.cat(terms).mean())
    loss.backward()
    learning = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning == {n for n, _ in policy.named_parameters() if not n.startswith("tokenizer.")}
    for table in (policy.transformer.level, policy.transformer.position):  # a row a scale, a row a token
        assert table.grad is not None
        assert (table.grad.abs().sum(dim=-1) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize(("pixels", "same"), [(0, True), (3, False)])
def test_pictures_are_shifted_in_training_as_the_generator_says(pixels, same, make_carp, make_observation):
    policy = make_carp("image", shift_pixels=pixels)
    seen = make_observation(policy.contract).values
    batch = {key: torch.from_numpy(value)[None] for key, value in seen.items()} | {"action": torch.zeros(1, 16, DIMS)}
    losses = [policy.loss(batch, torch.Generator().manual_seed(seed))[0].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == same


def test_the_first_weights_see_the_observation_and_know_nothing(make_carp):
    """Close to even odds, so that the first loss is that of a guess."""
    torch.manual_seed(0)
    config = CarpConfig()
    transformer = NextScaleTransformer(10, DIMS, config).eval()
    given = [torch.randn(4, DIMS, scale, config.code_dim) for scale in config.scales[1:]]
    with torch.no_grad():
        logits = transformer(torch.randn(4, 10), given)
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    assert entropy.min() > 0.9 * np.log(config.codes)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


# What is random ------------------------------------------------------------------------------------------------------


def gumbel(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gumbel(size=shape).astype(np.float32))


def gumbel_for(policy: CarpPolicy, batch: int, seed: int) -> torch.Tensor:
    return gumbel((batch, policy.config.positions * DIMS, policy.config.codes), seed)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [2, 5])
def test_only_the_most_likely_codes_are_drawn_and_all_of_them(top_k, make_carp):
    policy = make_carp(top_k=top_k)
    condition = torch.randn(1, policy.encoder.output_dim).expand(300, -1)
    _, tokens = policy.generate(condition, gumbel_for(policy, 300, seed=0))
    sums = policy.tokenizer.quantizer.accumulate(tokens)
    given = [policy.tokenizer.quantizer.shrink(f, index + 1) for index, f in enumerate(sums[:-1])]
    logits = by_scale(policy, policy.transformer(condition, given))  # of what each draw had before it
    for found, drawn in zip(logits, tokens, strict=True):
        better = (found > found.gather(-1, drawn[..., None]) + 1e-4).sum(dim=-1)
        assert better.unique().tolist() == list(range(top_k))


@torch.no_grad()
def test_low_temperature_takes_the_most_likely(make_carp):
    likely, drawn, cold = make_carp(), make_carp(top_k=8), make_carp(top_k=8, temperature=1e-4)
    condition = torch.randn(4, likely.encoder.output_dim, generator=torch.Generator().manual_seed(0))
    noise = gumbel_for(drawn, 4, seed=0)
    _, expected = likely.generate(condition)
    _, found = cold.generate(condition, noise)
    _, warm = drawn.generate(condition, noise)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert not all(torch.equal(w, e) for w, e in zip(warm, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("top_k", "temperature"), [(8, 1.0), (3, 1.0), (8, 2.0)])
def test_codes_are_drawn_as_often_as_the_softmax_says(top_k, temperature, make_carp):
    policy = make_carp(codes=8, top_k=top_k, temperature=temperature)
    logits = torch.tensor([1.5, -1.0, 0.0, 2.0, 0.5, -2.0, 1.0, -0.5])
    policy.transformer.head.weight.zero_()
    policy.transformer.head.bias.copy_(logits)  # whatever is seen
    draws = 200
    _, tokens = policy.generate(torch.zeros(draws, policy.encoder.output_dim), gumbel_for(policy, draws, seed=1))
    found = torch.cat(tokens, dim=-1).flatten().bincount(minlength=8) / (draws * policy.config.positions * DIMS)
    allowed = logits >= logits.sort(descending=True).values[top_k - 1]
    expected = (logits / temperature).masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    np.testing.assert_allclose(found, expected, atol=0.02)  # 8000 draws: a deviation of 0.0056 at most
    assert (found[~allowed] == 0).all()


def test_top_k_beyond_the_codes_is_refused(make_carp):
    with pytest.raises(ContractError, match=r"top_k must be within \[1, codes \(32\)\], not 33"):
        CarpConfig.from_dict({"codes": 32, "top_k": 33})
