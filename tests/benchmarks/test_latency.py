"""The latency benchmark: its rows say what was measured, and it counts work as PyTorch does."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.latency import bench_latency
from benchmarks.latency_networks import Network, write_untrained
from benchmarks.latency_tables import show
from benchmarks.work import graph_calls
from episodes.files import write_json
from policies.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SMALL = Network(
    "diffusion DDIM-16",
    "diffusion",
    {"inference_steps": 16, "widths": (16, 32), "kernel_size": 3},
    ("openvino", "onnxruntime", "torch"),
    action_dim=10,
)
FIELDS = {
    "policy", "observations", "params", "backend", "threads", "evaluations", "actions_per_call", "action_dim",
    "executed_per_call", "p50_ms", "p99_ms", "max_abs_difference", "mflop", "mflop_per_executed_action", "floor_ms",
    "operators", "times_faster_than_ddim16", "times_faster_than_paper_ddim16", "evaluations_per_executed_action",
}  # fmt: skip


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return bench_latency(calls=3, networks=(SMALL,))


def test_a_row_an_engine_with_every_field(result: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "latency.json", result)
    written = json.loads((tmp_path / "new" / "latency.json").read_text())
    assert [row["backend"] for row in written["rows"]] == ["openvino", "onnxruntime", "torch"]
    for row in written["rows"]:
        assert set(row) == FIELDS
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["evaluations"] == 16
        assert (row["actions_per_call"], row["executed_per_call"], row["action_dim"]) == (16, 8, 10)
        assert row["observations"] == "state 39x2"
        assert row["times_faster_than_ddim16"] == 1
    assert written["matrix_gflops"] > 0
    assert written["calls"] == 3
    assert written["hardware"]["cores"] >= 1


def test_engines_agree_with_pytorch(result: dict[str, Any]) -> None:
    openvino, onnxruntime, torch = result["rows"]
    assert torch["max_abs_difference"] is None
    for row in (openvino, onnxruntime):
        assert row["max_abs_difference"] < 1e-4


def test_work_is_counted_as_pytorch_counts_it(result: dict[str, Any], tmp_path: Path) -> None:
    write_untrained(SMALL, tmp_path / "checkpoint")
    policy, _ = load_checkpoint(tmp_path / "checkpoint")
    flop = 0
    for name, times in graph_calls(policy.sampler()).items():
        graph = policy.graphs()[name]
        with FlopCounterMode(display=False) as counter:
            graph.module(*graph.inputs.values())
        flop += times * counter.get_total_flops()
    row = result["rows"][0]
    assert row["mflop"] == pytest.approx(flop / 1e6)
    assert row["floor_ms"] == pytest.approx(row["mflop"] / result["matrix_gflops"])
    assert row["params"] == sum(parameter.numel() for parameter in policy.parameters())


@pytest.mark.parametrize(("bundle", "least"), [("hinfinity-go2", 100_000), ("pad-nano", 4_000_000)])
def test_every_bundle_of_the_zoo_is_measured_with_all_its_numbers(bundle: str, least: int) -> None:
    """A walking policy's graph has a batch of any size, and PAD's weights are stored as fp16."""
    (row,) = bench_latency((ROOT / "zoo" / bundle,), calls=2, networks=())["rows"]
    assert row["params"] > least
    assert row["mflop"] * 1e6 > row["params"]


def test_an_engine_that_is_not_installed_is_left_out_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    measured = bench_latency(calls=1, networks=(SMALL,))
    assert [row["backend"] for row in measured["rows"]] == ["openvino", "torch"]
    assert set(measured["versions"]) == {"openvino", "torch"}
    told = [line for line in capsys.readouterr().err.splitlines() if "onnxruntime" in line]
    assert told == ["onnxruntime is not installed and is left out: pip install 'visuomotor[onnxruntime]'"]


def test_only_openvino_tells_its_operators(result: dict[str, Any]) -> None:
    openvino, onnxruntime, torch = result["rows"]
    assert openvino["operators"] > 16 * 10  # a denoising step has dozens
    assert onnxruntime["operators"] is torch["operators"] is None


def test_the_table_names_every_policy_and_engine(result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show(result)
    shown = capsys.readouterr().out
    for word in ("DDIM-16", "openvino", "onnxruntime", "torch", "GFLOP/s"):
        assert word in shown


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="0 calls"):
        bench_latency(networks=(SMALL,), calls=0)
    with pytest.raises(ValueError, match="0 threads"):
        bench_latency(networks=(SMALL,), threads=0)


@pytest.mark.parametrize("script", ["visuomotor.py", "benchmarks/latency.py"])
def test_a_wrong_path_is_one_message(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["bench", "latency"] if script == "visuomotor.py" else []
    monkeypatch.setattr(sys, "argv", [script, *command, "nowhere"])
    with pytest.raises(SystemExit, match="visuomotor: nowhere is not a bundle"):
        runpy.run_path(str(ROOT / script), run_name="__main__")
