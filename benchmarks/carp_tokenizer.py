"""A CARP policy's tokeniser on its own: what it loses at each scale, and how much of its codebooks it uses.

    python -m benchmarks.carp_tokenizer runs/carp/state/drawer-open-0/checkpoint --dataset heldout \
        --plot zoo/carp-drawer-open-tokenizer.png --json tokenizer.json

Every window of the dataset is tokenised and decoded again from its coarsest scale alone, from the two coarsest, and so
on. Prints the root mean square error and the largest error in the units of the actions, and writes a plot of the chunk
that varies most. Give it demonstrations that the policy was not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from episodes.dataset import Dataset
from episodes.files import write_json
from policies.carp.policy import CarpPolicy
from policies.checkpoint import load_checkpoint
from policies.windows import Windows


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="write a picture of one chunk at every scale here")
    options = parser.parse_args()
    policy, _ = load_checkpoint(options.checkpoint)
    if not isinstance(policy, CarpPolicy):
        parser.error(f"{options.checkpoint} is a {policy.family} policy: it has no tokeniser")
    windows = Windows(Dataset(options.dataset).arrays(), policy.contract).without_observations()
    actions = windows.batch(np.arange(len(windows)))["action"]
    scales, used = _reconstruct(policy, actions)
    result = _figures(policy, actions.numpy(), scales, used)
    _show(result)
    if options.json is not None:
        write_json(options.json, result)
    if options.plot is not None:
        _plot(options.plot, policy, actions.numpy(), scales)


@torch.no_grad()
def _reconstruct(policy: CarpPolicy, actions: torch.Tensor) -> tuple[list[NDArray[np.float32]], list[int]]:
    """Actions [windows, horizon, D] as decoded from the scales up to each, and how many codes each dimension uses."""
    normalized = policy.actions(actions)
    scales = [policy.actions.inverse(found).numpy() for found in policy.tokenizer.reconstructions(normalized)]
    tokens = torch.cat(policy.tokenizer.encode(normalized), dim=-1)
    return scales, [len(dimension.unique()) for dimension in tokens.unbind(1)]


def _figures(
    policy: CarpPolicy, actions: NDArray[np.float32], scales: list[NDArray[np.float32]], used: list[int]
) -> dict:
    """One row a dimension of the action."""
    feature = policy.contract.action
    rows = []
    for index, (name, unit) in enumerate(zip(feature.names, feature.units, strict=True)):
        errors = [scale[..., index] - actions[..., index] for scale in scales]
        rows.append(
            {
                "action": name,
                "unit": unit,
                "range": [float(actions[..., index].min()), float(actions[..., index].max())],
                "rms_error_by_scale": [float(np.sqrt(np.mean(error**2))) for error in errors],
                "largest_error": float(np.abs(errors[-1]).max()),
                "codes_used": used[index],
            }
        )
    return {
        "scales": policy.config.scales,
        "codes": policy.config.codes,
        "windows": len(actions),
        "rows": rows,
    }


def _show(result: dict) -> None:
    table = Table(title=f"{result['windows']} chunks; root mean square error with the scales up to each")
    for column in ("action", "unit", "range", *(f"scale {k}" for k in result["scales"]), "largest error", "codes used"):
        table.add_column(column)
    for row in result["rows"]:
        low, high = row["range"]
        errors = (f"{error:.4f}" for error in row["rms_error_by_scale"])
        codes = f"{row['codes_used']} of {result['codes']}"
        table.add_row(
            row["action"], row["unit"], f"{low:.2f} to {high:.2f}", *errors, f"{row['largest_error']:.3f}", codes
        )
    Console().print(table)


def _plot(path: Path, policy: CarpPolicy, actions: NDArray[np.float32], scales: list[NDArray[np.float32]]) -> None:
    """The chunk whose actions vary most, a panel a dimension, a line a scale."""
    import matplotlib.pyplot as plt

    chunk = int(actions.std(axis=1).sum(axis=-1).argmax())
    feature = policy.contract.action
    figure, panels = plt.subplots(1, len(feature.names), figsize=(3.2 * len(feature.names), 3), layout="constrained")
    for index, panel in enumerate(np.atleast_1d(panels)):
        for number, (k, scale) in enumerate(zip(policy.config.scales, scales, strict=True)):
            color = plt.get_cmap("viridis")(1 - (number + 1) / len(scales))
            panel.plot(scale[chunk, :, index], color=color, label=f"up to scale {k}")
        panel.plot(actions[chunk, :, index], "k--", linewidth=1, label="demonstrated")
        panel.set_title(f"{feature.names[index]} [{feature.units[index]}]", fontsize=9)
        panel.set_xlabel("action of the chunk", fontsize=8)
    np.atleast_1d(panels)[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
