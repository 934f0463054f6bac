"""What the latency benchmark found, as rows of plain data and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.latency_candidates import Candidate
from benchmarks.latency_networks import PAPER_REFERENCE, REFERENCE
from benchmarks.work import evaluations


def rows_of(candidates: Sequence[Candidate], threads: int, matrix_gflops: float) -> list[dict[str, Any]]:
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
                "operators": c.operators(),
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
