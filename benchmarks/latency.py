"""How long a policy takes from an observation to an action chunk, on one core, and how far that is from the floor.

    visuomotor bench latency --json latency.json
    visuomotor bench latency zoo/diffusion-drawer-open

Networks of known sizes are made with random weights (which make no difference to the time), written as checkpoints and
exported as a trained policy would be. Measured is `Session.act`, the call that the policy node makes: checking the
observation, every run of the network, everything between them. Each call gets another observation. A shared machine
has quiet and loud minutes: so the policies take turns, a block of consecutive calls each, in many rounds, and the
percentiles are over the calls of all rounds. The first calls of a block do not count: a policy that acts again and
again finds its own weights in the cache. One that shares its core with others between two chunks will not, and takes
somewhat longer.

The references are Diffusion Policy with 16 DDIM steps and 4-dim actions, with our default network and with the paper's,
which is 25 times as large. Like compares with like: CARP's default with the former, CARP at its paper's size (8x64)
with the latter. "Runs per action" are runs of the network over executed actions; CARP's one run holds a pass of its
transformer for each of four scales, which MFLOP counts; Streaming Diffusion Policy keeps its buffer from one call to
the next, so that a call is one or two runs and is made for every action. "MFLOP per action" compares them all.

## The floor

No chunk can come sooner than its arithmetic: the operations of its matrix products and convolutions, over the rate at
which one core multiplies large fp32 matrices. Both are measured here. On one core of an AMD EPYC (AVX-512, 1 MB of L2,
OpenVINO 2026.4, nothing else running) that is 37.1 MFLOP / 228 GFLOP/s = 0.16 ms for CARP at the paper's size. A chunk
took 0.74 ms, between four and five times as long. That time, piece by piece:

- 0.48 ms: operators, whatever their size, and a little Python around them. The row CARP 8x8 is the same graph with
  width 8: all 464 operators but 4 % of the arithmetic, 1 us each.
- 0.26 ms: the other 96 % of the arithmetic, so at 136 GFLOP/s or three fifths of the rate. That fits its shape:
  products have as many rows as a scale has tokens, 4 to 16, too few to keep the vector units busy; and 1.6 MB of
  weights of the blocks, read once a scale, cannot stay in L2.

So two thirds are the price of many small operators, which is why the exported graph is written as it is
(`policies/carp/unrolled.py`), and why our default has half as many blocks: 278 operators, 13.0 MFLOP, a floor of
0.06 ms and 0.32 ms measured. With 10-dim actions the operators of 8x64 carry 100 MFLOP, and the distance shrinks to 3.6
times the floor: that of Diffusion Policy, whose denoising step has 165 operators for 21 MFLOP.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.runs import parameters
from benchmarks.work import Work, evaluations, graph_calls, work_of
from contracts import PolicyContract, load_robot
from contracts.feature import vector
from episodes.report import hardware
from execution.observation import Observation
from policies.base import Graph, make_contract
from policies.checkpoint import WEIGHTS_FILE, CheckpointConfig, is_checkpoint, write_config, write_tensors
from policies.export import export, write_graph
from policies.registry import policy_type
from policies.runtime import Runtime, Session
from policies.runtime.backends import OpenVinoGraph, compile_graph
from policies.torch_runtime import torch_runtime

Engine = Literal["openvino", "onnxruntime", "torch"]

ROBOT = "metaworld_sawyer"  # whose contract the networks are made for: a state of 39 numbers, 4 actions
SEED = 0  # of weights, observations and noise
LIMIT = 0.5  # of every number seen and given; with 1 the normalisation would be nothing, and be optimised away
ROUNDS = 20
WARM_UP = 3  # calls at the beginning of a block that do not count
COMPARED = 5  # chunks that an engine and PyTorch both make
MATRIX = 1024  # rows and columns of the matrices whose product gives the core's rate


@dataclass(frozen=True)
class Network:
    """A network to be made.

    Attributes:
        name: of its rows.
        family: of the policy.
        choices: what differs from the family's default configuration.
        engines: that run it, a row each.
        action_dim: numbers in an action; the robot's own has 4.
        every: it is measured only in every so many rounds: a slow one need not hold up the others.
    """

    name: str
    family: str
    choices: dict[str, Any]
    engines: tuple[Engine, ...]
    action_dim: int = 4
    every: int = 1


REFERENCE = Network("diffusion DDIM-16", "diffusion", {"inference_steps": 16}, ("openvino", "onnxruntime", "torch"))
PAPER_REFERENCE = Network(
    "diffusion paper DDIM-16",
    "diffusion",
    {"inference_steps": 16, "widths": (256, 512, 1024), "timestep_dim": 256},
    ("openvino",),
    every=10,
)
CARP_PAPER = {  # the paper's state-based policy
    "depth": 8, "width": 64, "heads": 8, "mlp_ratio": 4, "modulation": "block", "codes": 512, "lookup": "cosine",
    "tokenizer_channels": (4, 8),
}  # fmt: skip
STREAMING_PAPER = {  # 50 evaluations an observation, and the network of REFERENCE
    "execute": 8, "evaluations": 50, "scheduler": "ddpm", "prediction": "epsilon", "widths": (48, 96, 192),
    "kernel_size": 5, "level_dim": 64,
}  # fmt: skip
NETWORKS = (
    REFERENCE,
    PAPER_REFERENCE,
    Network("diffusion DDIM-10", "diffusion", {"inference_steps": 10}, ("openvino",)),
    Network("CARP 8x64", "carp", CARP_PAPER, ("openvino", "onnxruntime", "torch")),
    Network("CARP 8x64 10-dim", "carp", CARP_PAPER, ("openvino", "torch"), action_dim=10),
    # the operators of 8x64, hardly an operation
    Network("CARP 8x8", "carp", {**CARP_PAPER, "width": 8}, ("openvino",)),
    Network("CARP default", "carp", {}, ("openvino",)),
    Network("streaming default", "streaming", {}, ("openvino", "onnxruntime", "torch")),
    Network("streaming, 2 evaluations", "streaming", {"evaluations": 2}, ("openvino",)),
    Network("streaming paper's setting", "streaming", STREAMING_PAPER, ("openvino",), every=10),
)


@dataclass
class Candidate:
    """One policy in one engine.

    Attributes:
        name: of the policy.
        engine: that runs it.
        session: that is measured.
        work: of one chunk.
        difference: largest absolute difference of its actions to PyTorch's, in the contract's units; None if there is
            nothing to compare with.
        every: measured in every so many rounds.
        seconds: of every call that counts.
        stamp_ns: of the next observation: one comes when it is due.
    """

    name: str
    engine: Engine
    session: Session
    work: Work
    difference: float | None
    every: int = 1
    seconds: list[float] = field(default_factory=list)
    stamp_ns: int = 0

    def measure(self, observations: list[Observation]) -> None:
        """Act on one observation after the other; the first `WARM_UP` do not count."""
        for index, observation in enumerate(observations):
            observation = dataclasses.replace(observation, stamp_ns=self.stamp_ns)
            self.stamp_ns += round(self.session.contract.execute * self.session.contract.action_period_s * 1e9)
            began = time.perf_counter()
            self.session.act(observation)
            elapsed = time.perf_counter() - began
            if index >= WARM_UP:
                self.seconds.append(elapsed)

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds that so many per cent of the calls stay within."""
        return float(np.percentile(self.seconds, percent)) * 1e3


def bench_latency(
    policies: Sequence[Path] = (), calls: int = 500, threads: int = 1, networks: Sequence[Network] = NETWORKS
) -> dict[str, Any]:
    """Measure networks and policies against each other.

    Args:
        policies: bundles; or checkpoints, which are exported first.
        calls: that count, of each row.
        threads: CPU threads of each engine.
        networks: made on the fly.

    Returns:
        {"rows": [one a policy and engine], "matrix_gflops": the measured rate, ...}: plain data, ready for JSON.

    Raises:
        ValueError: no calls, no threads, or a policy that cannot be used; says which and why.
    """
    if calls < 1 or threads < 1:
        raise ValueError(f"{calls} calls on {threads} threads: each must be at least 1")
    candidates: list[Candidate] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        progress = stack.enter_context(tqdm(total=len(policies) + len(networks), desc="prepare", unit="policy"))
        for index, path in enumerate(policies):
            candidates += _given(path, folder / f"given{index}", threads)
            progress.update()
        for index, network in enumerate(networks):
            checkpoint = folder / f"network{index}"
            write_untrained(network, checkpoint)
            made = _engines(network.name, checkpoint, checkpoint / "bundle", network.engines, threads)
            candidates += [dataclasses.replace(candidate, every=network.every) for candidate in made]
            progress.update()
        multiply = _matrix_product(folder, threads)
    random = np.random.default_rng(SEED)
    product_seconds: list[float] = []
    blocks = [len(block) for block in np.array_split(np.arange(calls), min(ROUNDS, calls))]
    with tqdm(total=calls * len(candidates), desc="measure", unit="call") as progress:
        for number, block in enumerate(blocks):
            product_seconds.append(multiply())
            for candidate in candidates:
                progress.update(block)
                if number % candidate.every:
                    continue
                contract = candidate.session.contract
                candidate.measure([random_observation(contract, random) for _ in range(WARM_UP + block)])
    matrix_gflops = 2 * MATRIX**3 / float(np.median(product_seconds)) / 1e9
    return {
        "rows": _rows(candidates, threads, matrix_gflops),
        "matrix_gflops": matrix_gflops,
        "calls": calls,
        "hardware": hardware(),
        "versions": {engine: version(engine) for engine in ("openvino", "onnxruntime", "torch")},
    }


def write_untrained(network: Network, path: Path) -> None:
    """A checkpoint of random weights, normalised as if every number of the data lay within [-LIMIT, LIMIT].

    No weight is left at the 0 or 1 that it begins with: an engine could optimise that away.
    """
    robot = load_robot(ROBOT)
    kind = policy_type(network.family)
    config = kind.config_type.from_dict(network.choices)
    contract = make_contract(network.family, config, robot, "state", "drawer-open")
    if network.action_dim != contract.action.shape[0]:
        names = tuple(f"channel_{index}" for index in range(network.action_dim))
        contract = msgspec.structs.replace(contract, action=vector("action", names, ("1",) * network.action_dim))
    torch.manual_seed(SEED)
    policy = kind(config, contract)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    features = [contract.action, *(o.feature for o in contract.observations)]
    policy.fit_normalization({f.key: {"min": [-LIMIT] * f.shape[0], "max": [LIMIT] * f.shape[0]} for f in features})
    path.mkdir()
    write_config(path, CheckpointConfig(policy=config.to_dict(), contract=contract, robot=robot, training={}))
    write_tensors(path / WEIGHTS_FILE, policy.state_dict(), {})


def random_observation(contract: PolicyContract, random: np.random.Generator) -> Observation:
    """Every number of a state within [-LIMIT, LIMIT], every picture noise; made at time 0."""
    values: dict[str, NDArray[Any]] = {}
    for wanted in contract.observations:
        shape = (wanted.history, *wanted.feature.shape)
        if wanted.feature.is_image:
            values[wanted.feature.key] = random.integers(0, 256, shape, dtype=np.uint8)
        else:
            values[wanted.feature.key] = random.uniform(-LIMIT, LIMIT, shape).astype(np.float32)
    return Observation(stamp_ns=0, values=values)


def _given(path: Path, folder: Path, threads: int) -> list[Candidate]:
    """The rows of a policy of the user's."""
    if is_checkpoint(path):
        return _engines(str(path), path, folder, ("openvino", "torch"), threads)
    runtime = Runtime.load(path, threads=threads)
    return [Candidate(str(path), "openvino", _start(runtime), work_of(path), None)]


def _engines(name: str, checkpoint: Path, bundle: Path, engines: tuple[Engine, ...], threads: int) -> list[Candidate]:
    """A checkpoint in each of the engines."""
    export(checkpoint, bundle)
    work = dataclasses.replace(work_of(bundle), params=parameters(checkpoint))
    reference = torch_runtime(checkpoint, threads)
    candidates = []
    for engine in engines:
        if engine == "torch":
            candidates.append(Candidate(name, engine, _start(reference), work, None))
            continue
        runtime = Runtime.load(bundle, engine, threads)
        candidates.append(Candidate(name, engine, _start(runtime), work, _difference(runtime, reference)))
    return candidates


def _start(runtime: Runtime) -> Session:
    return runtime.start(SEED, runtime.contract.instructions[0])


def _difference(runtime: Runtime, reference: Runtime) -> float:
    """Largest absolute difference of their actions, for the same seed and observations."""
    random = np.random.default_rng(SEED)
    one, other = _start(runtime), _start(reference)
    observations = [random_observation(runtime.contract, random) for _ in range(COMPARED)]
    return max(float(np.abs(one.act(o).actions - other.act(o).actions).max()) for o in observations)


def _matrix_product(folder: Path, threads: int) -> Callable[[], float]:
    """A function that multiplies two large matrices in OpenVINO and returns the seconds that it took."""
    path = folder / "product.onnx"
    left = torch.rand(MATRIX, MATRIX)
    write_graph(Graph(torch.nn.Linear(MATRIX, MATRIX, bias=False), {"left": left}, ("product",)), path)
    product = compile_graph("openvino", path.read_bytes(), threads, "product")
    inputs = {"left": left.numpy()}
    product(inputs)

    def seconds() -> float:
        began = time.perf_counter()
        product(inputs)
        return time.perf_counter() - began

    return seconds


def _operators(candidate: Candidate) -> int | None:
    """Operators that OpenVINO runs for one chunk, after it has joined what it can; None of another engine."""
    if candidate.engine != "openvino":
        return None
    total = 0
    for name, times in graph_calls(candidate.session.sampler).items():
        runner = candidate.session.runners[name]
        assert isinstance(runner, OpenVinoGraph)
        total += times * runner.operators()
    return total


def _rows(candidates: Sequence[Candidate], threads: int, matrix_gflops: float) -> list[dict[str, Any]]:
    """One a candidate, as the JSON has it."""
    ours, papers = (
        {c.engine: c.percentile_ms(50) for c in candidates if c.name == network.name}
        for network in (REFERENCE, PAPER_REFERENCE)
    )
    rows = []
    for c in candidates:
        contract, runs = c.session.contract, evaluations(c.session.sampler)
        reference, paper = ours.get(c.engine), papers.get(c.engine)
        rows.append(
            {
                "policy": c.name,
                "observations": ", ".join(
                    f"{o.feature.key.removeprefix('observation.')} {'x'.join(map(str, o.feature.shape))}x{o.history}"
                    for o in contract.observations
                ),
                "params": c.work.params,
                "backend": c.engine,
                "threads": threads,
                "evaluations": runs,
                "actions_per_call": contract.horizon,
                "action_dim": contract.action.shape[0],
                "executed_per_call": contract.execute,
                "evaluations_per_executed_action": runs / contract.execute,
                "p50_ms": c.percentile_ms(50),
                "p99_ms": c.percentile_ms(99),
                "max_abs_difference": c.difference,
                "times_faster_than_ddim16": reference / c.percentile_ms(50) if reference else None,
                "times_faster_than_paper_ddim16": paper / c.percentile_ms(50) if paper else None,
                "mflop": c.work.flop / 1e6,
                "mflop_per_executed_action": c.work.flop / contract.execute / 1e6,
                "floor_ms": c.work.flop / matrix_gflops / 1e6,
                "operators": _operators(c),
            }
        )
    return rows


def show(result: dict[str, Any]) -> None:
    """Print what `bench_latency` gave: the times, then what OpenVINO's are made of."""
    rows = result["rows"]
    times = Table(
        title=f"from an observation to an action chunk, {rows[0]['threads']} thread(s)",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    times.add_column("policy", overflow="fold")
    times.add_column("engine", no_wrap=True)
    for column in ("p50 ms", "p99 ms", "differs from\nPyTorch", "faster than\nDDIM-16", "than the\npaper's"):
        times.add_column(column, justify="right")
    for row in rows:
        difference = row["max_abs_difference"]
        faster = (row["times_faster_than_ddim16"], row["times_faster_than_paper_ddim16"])
        times.add_row(
            row["policy"],
            row["backend"],
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            "" if difference is None else f"{difference:.0e}",
            *(f"{times:.2f} x" if times else "" for times in faster),
        )
    rate = result["matrix_gflops"]
    work = Table(
        title=f"one chunk in OpenVINO; a large matrix product runs at {rate:.0f} GFLOP/s",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    work.add_column("policy", overflow="fold")
    headers = (
        "params", "runs per\naction", "MFLOP per\naction", "MFLOP", "floor\nms", "p50\nms", "p50 /\nfloor", "ops",
        "us per\nop",
    )  # fmt: skip
    for column in headers:
        work.add_column(column, justify="right")
    for row in rows:
        if row["operators"]:
            work.add_row(
                row["policy"],
                f"{row['params'] / 1e6:.2f} M",
                f"{row['evaluations_per_executed_action']:.3g}",
                f"{row['mflop_per_executed_action']:.2f}",
                f"{row['mflop']:.1f}",
                f"{row['floor_ms']:.3f}",
                f"{row['p50_ms']:.2f}",
                f"{row['p50_ms'] / row['floor_ms']:.1f}",
                str(row["operators"]),
                f"{row['p50_ms'] * 1e3 / row['operators']:.1f}",
            )
    console = Console()
    console.print(times)
    console.print(work)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write the result, making the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import sys

    from visuomotor import main

    sys.argv[1:1] = ["bench", "latency"]
    main()
