"""How long a policy takes from an observation to an action chunk, on one core, and how far that is from the floor.

    visuomotor bench latency --json latency.json
    visuomotor bench latency zoo/diffusion-drawer-open                # this policy alone
    visuomotor bench latency zoo/diffusion-drawer-open --references   # beside the networks of known sizes

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
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.latency_candidates import WARM_UP, Candidate, engines_of, given
from benchmarks.latency_networks import NETWORKS, SEED, Engine, Network, random_observation, write_untrained
from benchmarks.latency_tables import rows_of
from episodes.report import hardware
from policies.base import Graph
from policies.export import write_graph
from policies.runtime.backends import compile_graph

ROUNDS = 20
MATRIX = 1024  # rows and columns of the matrices whose product gives the core's rate


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
        An engine that is not installed has no rows; it is said so.

    Raises:
        ValueError: no calls, no threads, or a policy that cannot be used; says which and why.
    """
    if calls < 1 or threads < 1:
        raise ValueError(f"{calls} calls on {threads} threads: each must be at least 1")
    engines = _installed_engines()
    candidates: list[Candidate] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        progress = stack.enter_context(tqdm(total=len(policies) + len(networks), desc="prepare", unit="policy"))
        for index, path in enumerate(policies):
            candidates += given(path, folder / f"given{index}", threads)
            progress.update()
        for index, network in enumerate(networks):
            checkpoint = folder / f"network{index}"
            write_untrained(network, checkpoint)
            its = tuple(engine for engine in network.engines if engine in engines)
            made = engines_of(network.name, checkpoint, checkpoint / "bundle", its, threads)
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
        "rows": rows_of(candidates, threads, matrix_gflops),
        "matrix_gflops": matrix_gflops,
        "calls": calls,
        "hardware": hardware(),
        "versions": {engine: version(engine) for engine in engines},
    }


def _installed_engines() -> tuple[Engine, ...]:
    """All but ONNX Runtime are, wherever policies are trained; who lacks that one is told."""
    if find_spec("onnxruntime") is not None:
        return get_args(Engine)
    print("onnxruntime is not installed and is left out: pip install 'visuomotor[onnxruntime]'", file=sys.stderr)
    return tuple(engine for engine in get_args(Engine) if engine != "onnxruntime")


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


if __name__ == "__main__":
    from visuomotor import main

    sys.argv[1:1] = ["bench", "latency"]
    main()
