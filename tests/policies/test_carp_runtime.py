"""CARP behind the runtime: bundles act as networks do, a chunk goes on where the one before was, and what was learned.

All that needs a trained one is here, so that it is trained once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from execution.observation import Observation
from policies.carp.policy import CarpPolicy
from policies.checkpoint import load_checkpoint
from policies.export import export
from policies.loading import load_runtime
from policies.runtime import BundleError, PolicyOutputError, Runtime
from policies.runtime.graphs import Array, GraphRunner
from policies.runtime.sampler import CarpSampler
from policies.runtime.sessions import Session
from policies.torch_runtime import TorchGraph
from tests.checkpoints import write_checkpoint

BACKENDS = ("openvino", "onnxruntime")
PERIOD_NS = 12_500_000
OPEN, CLOSE = "open the drawer", "close the drawer"


@pytest.fixture(scope="session")
def bundle(carp_trained, tmp_path_factory) -> Path:
    """Of the policy that knows two tasks by heart."""
    return export(carp_trained, tmp_path_factory.mktemp("carp-state") / "bundle")


@pytest.fixture(scope="session")
def drawing(make_carp, robot, tmp_path_factory) -> tuple[CarpPolicy, Path]:
    """A policy that sees pictures and draws its tokens, and its bundle."""
    root = tmp_path_factory.mktemp("carp-image")
    policy = make_carp("image", top_k=4, scales=(1, 4), depth=1, image_history=2, modulation="block")
    return policy, export(write_checkpoint(policy, robot, root), root / "bundle")


def torch_runtime_of(policy: CarpPolicy) -> Runtime:
    runners = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    return Runtime(policy.contract, policy.sampler(), runners)


def state_at(moment: float, stamp_ns: int = 0) -> Observation:
    """What the demonstrations show at a moment within [0, 1]."""
    return Observation(stamp_ns, {"observation.state": np.full((1, 39), moment, np.float32)})


class Recorded(GraphRunner):
    """Remembers what a graph is given."""

    def __init__(self, runner: GraphRunner) -> None:
        self.runner = runner
        self.inputs, self.outputs = runner.inputs, runner.outputs
        self.calls: list[Mapping[str, Array]] = []

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        self.calls.append({key: value.copy() for key, value in inputs.items()})
        return self.runner(inputs)


def recorded(session: Session) -> dict[str, Recorded]:
    """Have a session's graphs remember what they are given."""
    runners = {name: Recorded(runner) for name, runner in session.runners.items()}
    session.runners = runners
    return runners


@torch.no_grad()
def torch_actions(policy: CarpPolicy, observation: Observation, task: int, **options: Any) -> np.ndarray:
    values = [torch.from_numpy(observation.values[key])[None] for key in policy.encoder.observed]
    told = [torch.tensor([task])] if policy.encoder.tasks else []
    return policy.generate(policy.encoder(*values, *told), **options)[0][0].numpy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bundle_gives_torchs_actions(backend, bundle, carp_trained):
    policy, _ = load_checkpoint(carp_trained)
    assert isinstance(policy, CarpPolicy)
    runtime = load_runtime(bundle, backend)
    for task, instruction in enumerate((OPEN, CLOSE)):
        for moment in (0.0, 0.3, 0.55):
            chunk = runtime.start(0, instruction).act(state_at(moment, stamp_ns=123))
            expected = torch_actions(policy, state_at(moment), task)
            np.testing.assert_allclose(chunk.actions, expected, atol=1e-4)
            assert (chunk.start_ns, chunk.period_ns, chunk.horizon) == (123, PERIOD_NS, 16)
            assert chunk.names == policy.contract.action.names


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefix", [4, 8, 12])
def test_bundle_continues_as_torch_does(prefix, backend, bundle, carp_trained):
    """The second chunk is of another task, so that what is kept is not what would have come anyway."""
    policy, _ = load_checkpoint(carp_trained)
    assert isinstance(policy, CarpPolicy)
    session = load_runtime(bundle, backend).start(0, OPEN, prefix=prefix)
    first = session.act(state_at(0.1)).actions
    session._task = 1
    second = session.act(state_at(0.15, stamp_ns=2 * PERIOD_NS)).actions
    committed = np.vstack((first[2:], first[-1:], first[-1:])).astype(np.float32)
    options = {"committed": torch.from_numpy(committed)[None], "prefix": torch.tensor([prefix])}
    np.testing.assert_allclose(second, torch_actions(policy, state_at(0.15), 1, **options), atol=1e-4)
    assert np.abs(second - torch_actions(policy, state_at(0.15), 1)).max() > 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_bundle_draws_as_torch_does_from_pictures(backend, drawing, make_observation):
    policy, path = drawing
    runtimes = (load_runtime(path, backend), torch_runtime_of(policy))
    sessions = [runtime.start(seed=7, prefix=4) for runtime in runtimes]
    noise = np.random.default_rng(7)
    before = np.zeros((16, 4))
    for number in range(3):
        observation = make_observation(policy.contract, seed=number, stamp_ns=number * 3 * PERIOD_NS)
        found, expected = (session.act(observation).actions for session in sessions)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        drawn = torch.from_numpy(noise.gumbel(size=(1, 20, 32)).astype(np.float32))
        options: dict[str, torch.Tensor] = {}
        if number:
            committed = np.vstack((before[3:], *3 * [before[-1:]])).astype(np.float32)
            options = {"committed": torch.from_numpy(committed)[None], "prefix": torch.tensor([4])}
        np.testing.assert_allclose(found, torch_actions(policy, observation, 0, noise=drawn, **options), atol=1e-4)
        before = found
    assert np.abs(found).max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"modulation": "block", "lookup": "cosine", "heads": 4},
        {"scales": (1, 4), "depth": 1, "mlp_ratio": 3, "tokenizer_channels": (4, 4)},
        {"scales": (2, 5), "horizon": 20, "code_dim": 3, "codes": 7},
    ],
)
def test_the_graph_that_is_exported_computes_what_generation_does(change, seed, make_carp, make_observation):
    """Whatever the sizes: it is written out by hand, for speed."""
    policy = make_carp(seed=seed, **change)
    graph = policy.graphs()["policy"]
    for number in range(4):
        observation = make_observation(policy.contract, seed=number)
        values = [torch.from_numpy(observation.values[key])[None] for key in graph.inputs]
        np.testing.assert_allclose(graph.module(*values)[0], torch_actions(policy, observation, 0), atol=2e-5)


@torch.no_grad()
def test_of_two_codes_that_are_equally_likely_one_is_taken(make_carp, make_observation):
    policy = make_carp(codes=8)
    policy.transformer.head.weight.zero_()
    observation = make_observation(policy.contract)
    either = []
    for likeliest in ((3,), (5,), (3, 5)):
        policy.transformer.head.bias.zero_()
        policy.transformer.head.bias[list(likeliest)] = 1
        graph = policy.graphs()["policy"]
        values = [torch.from_numpy(observation.values[key])[None] for key in graph.inputs]
        either.append(graph.module(*values)[0].numpy())
    assert min(np.abs(either[2] - e).max() for e in either[:2]) < 1e-4
    assert np.abs(either[0] - either[1]).max() > 1e-2


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("prefix", [0, 4])
def test_a_nan_within_does_not_come_out_as_an_action(top_k, prefix, make_carp, make_observation):
    """Codes are finite, whatever they were chosen by."""
    policy = make_carp(top_k=top_k)
    runtime = torch_runtime_of(policy)
    session = runtime.start(0, prefix=prefix)
    session.act(make_observation(policy.contract))
    with torch.no_grad():
        policy.transformer.head.bias[0] = math.nan
    broken = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    with pytest.raises(ValueError, match="not finite"):
        Runtime(policy.contract, policy.sampler(), broken)  # looks at what comes of zeros
    session.runners = broken
    with pytest.raises(PolicyOutputError, match="not finite"):
        session.act(make_observation(policy.contract))


def test_one_call_of_one_graph_a_chunk(bundle):
    session = load_runtime(bundle).start(0, OPEN, prefix=4)
    runners = recorded(session)
    counts = []
    for number in range(3):
        session.act(state_at(0.1 * number, stamp_ns=number * 8 * PERIOD_NS))
        counts.append((len(runners["policy"].calls), len(runners["continuation"].calls)))
    assert counts == [(1, 0), (1, 1), (1, 2)]


def test_bundle_says_how_it_is_run(bundle, carp_trained):
    assert Runtime.load(bundle).sampler == CarpSampler(tokens=40, codes=32, random=False, prefix_multiple=4)
    assert sorted(path.name for path in bundle.glob("*.onnx")) == ["continuation.onnx", "policy.onnx"]
    card = (bundle / "README.md").read_text()
    assert "| policy | carp |" in card
    assert f"| task | {OPEN}, {CLOSE} |" in card


def test_graphs_that_do_not_fit_the_sampler_are_refused(make_carp):
    """Noise in the sampler's description, but none in the graph."""
    policy = make_carp()
    runners = {name: TorchGraph(graph) for name, graph in policy.graphs().items()}
    random = msgspec.structs.replace(policy.sampler(), random=True)
    with pytest.raises(ValueError, match=r"policy.onnx: takes .*; must take noise float32\[1, 40, 32\]"):
        Runtime(policy.contract, random, runners)
    swapped = {"policy": runners["policy"], "continuation": runners["policy"]}
    with pytest.raises(ValueError, match="continuation.onnx: takes .*; must take committed"):
        Runtime(policy.contract, policy.sampler(), swapped)


def test_a_bundle_without_its_continuation_is_refused(bundle, tmp_path):
    from policies.runtime.bundle import write_manifest

    for file in bundle.iterdir():
        if file.name not in ("continuation.onnx", "manifest.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    write_manifest(tmp_path)
    with pytest.raises(BundleError, match=r"lacks continuation.onnx"):
        load_runtime(tmp_path)


# Prefix --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "fraction"), [(4, 0.9), (8, 0.5), (12, 0.5)])  # 4: the finest scale alone is kept
def test_a_chunk_begins_where_the_one_before_goes_on(prefix, fraction, carp_trained):
    """The policy is told something else in between: without a prefix it changes at once, with one it first keeps on."""
    runtime = load_runtime(carp_trained)
    jumps = {}
    for kept in (0, prefix):
        session = runtime.start(0, OPEN, prefix=kept)
        before = session.act(state_at(0.1)).actions
        session._task = 1
        after = session.act(state_at(0.2, stamp_ns=4 * PERIOD_NS)).actions
        jumps[kept] = np.abs(after[:prefix] - before[4 : 4 + prefix])[:, :2].mean()
    assert jumps[prefix] < fraction * jumps[0]


@pytest.mark.parametrize(
    ("prefix", "periods", "kept"),
    [
        (4, 0.0, 4),
        (4, 8.0, 4),
        (4, 12.0, 4),  # exactly 4 are left
        (4, 13.0, 0),  # 3 are: less than a token
        (8, 8.4, 8),  # nearer to 8 periods than to 9
        (8, 8.6, 4),
        (8, 10.0, 4),
        (12, 4.0, 12),
        (12, 6.0, 8),
        (12, 15.0, 0),
        (12, 16.0, 0),  # nothing is left
        (12, 400.0, 0),
        (4, -3.0, 4),  # a clock that was set back
    ],
)
def test_no_more_is_kept_than_the_chunk_before_has_left(prefix, periods, kept, carp_trained):
    session = load_runtime(carp_trained).start(0, OPEN, prefix=prefix)
    runners = recorded(session)
    before = session.act(state_at(0.1, stamp_ns=10**9)).actions
    after = session.act(state_at(0.2, stamp_ns=10**9 + round(periods * PERIOD_NS))).actions
    if not kept:
        assert len(runners["policy"].calls) == 2
        fresh = load_runtime(carp_trained).start(0, OPEN).act(state_at(0.2)).actions
        assert np.array_equal(after, fresh)
        return
    (call,) = runners["continuation"].calls
    assert call["prefix"].tolist() == [kept]
    done = max(0, round(periods))
    np.testing.assert_array_equal(call["committed"][0, : 16 - done], before[done:].astype(np.float32))
    assert (call["committed"][0, 16 - done :] == before[-1].astype(np.float32)).all()  # past its end its last stands


def test_every_chunk_goes_on_from_the_latest(carp_trained):
    session = load_runtime(carp_trained).start(0, OPEN, prefix=4)
    runners = recorded(session)
    chunks = [session.act(state_at(0.1 * n, stamp_ns=n * 6 * PERIOD_NS)).actions for n in range(4)]
    for before, call in zip(chunks, runners["continuation"].calls, strict=False):
        np.testing.assert_array_equal(call["committed"][0, :10], before[6:].astype(np.float32))


def test_without_a_prefix_every_chunk_stands_alone(carp_trained):
    runtime = load_runtime(carp_trained)
    session = runtime.start(0, OPEN)
    session.act(state_at(0.0))
    again = session.act(state_at(0.5, stamp_ns=PERIOD_NS)).actions
    assert np.array_equal(again, runtime.start(0, OPEN).act(state_at(0.5)).actions)


def test_a_new_session_knows_nothing_of_the_one_before(carp_trained):
    runtime = load_runtime(carp_trained)
    runtime.start(0, OPEN, prefix=4).act(state_at(0.0))
    found = runtime.start(0, OPEN, prefix=4).act(state_at(0.5)).actions
    assert np.array_equal(found, runtime.start(0, OPEN).act(state_at(0.5)).actions)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (3, "a prefix of 3 actions: a token stands for 4, so it must be a multiple"),
        (16, r"a prefix of 16 actions does not lie within \[0, 16\)"),
        (20, r"a prefix of 20 actions does not lie within \[0, 16\)"),
        (-4, r"a prefix of -4 actions does not lie within \[0, 16\)"),
    ],
)
def test_a_prefix_that_cannot_be_kept_is_refused(prefix, message, carp_trained):
    runtime = load_runtime(carp_trained)
    with pytest.raises(ValueError, match=message):
        runtime.start(0, OPEN, prefix=prefix)


# Randomness ----------------------------------------------------------------------------------------------------------


def chunks_of(session: Session, policy: CarpPolicy, make_observation) -> np.ndarray:
    """Three chunks for the same observation."""
    return np.stack([session.act(make_observation(policy.contract)).actions for _ in range(3)])


def test_the_most_likely_tokens_need_no_seed(make_carp, make_observation):
    policy = make_carp(top_k=1)
    runtime = torch_runtime_of(policy)
    one, other = (chunks_of(runtime.start(seed), policy, make_observation) for seed in (0, 1))
    assert np.array_equal(one, other)
    assert np.array_equal(one[0], one[2])


def test_drawn_tokens_follow_the_seed(make_carp, make_observation):
    policy = make_carp(top_k=4)
    runtime = torch_runtime_of(policy)
    one, same, other = (chunks_of(runtime.start(seed), policy, make_observation) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[0], one[1])  # fresh noise for each chunk


def test_sessions_do_not_share_their_randomness(make_carp, make_observation):
    policy = make_carp(top_k=4)
    runtime = torch_runtime_of(policy)
    observation = make_observation(policy.contract)
    first, second = runtime.start(1), runtime.start(1)
    turns = [(first.act(observation).actions, second.act(observation).actions) for _ in range(2)]
    assert all(np.array_equal(one, other) for one, other in turns)


# What it has learned -------------------------------------------------------------------------------------------------


def expected_chunks(actions: np.ndarray) -> np.ndarray:
    """Every chunk of a demonstration that does not reach past its end [25, 16, 4]."""
    return actions[np.arange(25)[:, None] + np.arange(16)]


@torch.no_grad()
def test_overfits_two_tasks_and_gives_the_actions_of_the_one_it_is_told(carp_trained, carp_demonstrations):
    """Both tasks show the same states: only `task` can tell them apart."""
    policy, config = load_checkpoint(carp_trained)
    assert isinstance(policy, CarpPolicy)
    assert config.contract.instructions == tuple(carp_demonstrations)
    chunks = {name: expected_chunks(actions) for name, (_, actions) in carp_demonstrations.items()}
    ranges = np.ptp(np.concatenate(list(chunks.values())), axis=(0, 1))[:3]
    for task, (name, (states, _)) in enumerate(carp_demonstrations.items()):
        condition = policy.encoder(torch.from_numpy(states[:25, None]), torch.full((25,), task))
        found = policy.generate(condition)[0].numpy()
        errors = {other: (np.abs(found - chunk)[..., :3] / ranges).mean() for other, chunk in chunks.items()}
        assert errors.pop(name) < 0.05
        assert min(errors.values()) > 0.2
        reversed_in_time = np.abs(found - chunks[name][:, ::-1])[..., :3] / ranges
        assert reversed_in_time.mean() > 0.1
        np.testing.assert_allclose(found[..., 3], 1, atol=1e-6)  # never varied, so never varies


@torch.no_grad()
def test_most_tokens_are_known_after_training(carp_trained, carp_demonstrations):
    policy, _ = load_checkpoint(carp_trained)
    assert isinstance(policy, CarpPolicy)
    batch = {
        "observation.state": torch.from_numpy(np.concatenate([s[:25, None] for s, _ in carp_demonstrations.values()])),
        "task": torch.arange(2).repeat_interleave(25),
        "action": torch.from_numpy(np.concatenate([expected_chunks(a) for _, a in carp_demonstrations.values()])),
    }
    _, figures = policy.loss(batch, torch.Generator())
    assert figures["scale_1"] < 0.5
    assert max(figures.values()) < 0.5 * np.log(policy.config.codes)  # half of what a guess would cost
    _, confused = policy.loss({**batch, "task": 1 - batch["task"]}, torch.Generator())
    assert all(confused[name] > 1.5 * figure for name, figure in figures.items())


def test_an_instruction_that_was_not_learned_is_refused_with_those_that_were(carp_trained, carp_demonstrations):
    runtime = load_runtime(carp_trained)
    listed = "\n  - open the drawer\n  - close the drawer"
    for instruction, reason in (("fly", "does not know the instruction 'fly'"), (None, "must be told")):
        with pytest.raises(ValueError, match=reason) as refusal:
            runtime.start(0, instruction)
        assert str(refusal.value).endswith(listed)
    states, _ = carp_demonstrations["open the drawer"]
    observation = Observation(0, {"observation.state": states[10:11]})
    opened, closed = (runtime.start(0, name).act(observation).actions for name in carp_demonstrations)
    for name, found in (("open the drawer", opened), ("close the drawer", closed)):
        assert np.abs(found - carp_demonstrations[name][1][10:26]).mean() < 0.07
    assert np.abs(opened - closed).max() > 0.3
