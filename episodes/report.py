"""What tables of figures share: a rate's interval, the noise left in actions, the machine and what it was denied."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Z_95 = 1.959963984540054  # two-sided 95 % point of the standard normal distribution


def wilson_interval(successes: int, episodes: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success rate, (low, high) in [0, 1]; (0, 1) when there was no episode.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22(158).

    Raises:
        ValueError: not 0 <= successes <= episodes.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes")
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    middle = rate + z * z / (2 * episodes)
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def noise_carried_out(ages: Mapping[str, int], residual_noise: Sequence[float] | None) -> dict[str, float] | None:
    """How noisy the actions that were carried out still were, when a policy decides them little by little.

    Args:
        ages: commands by their age in control periods, which is the action's place in its chunk.
        residual_noise: standard deviation of the noise left at each place, 0 (decided) to 1 (nothing but noise).

    Returns:
        {"mean", "max"} over all commands; None if there was none, or if the policy decides all at once.
    """
    if residual_noise is None or not ages:
        return None
    noise = {age: residual_noise[int(age)] for age in ages}
    mean = sum(count * noise[age] for age, count in ages.items()) / sum(ages.values())
    return {"mean": round(mean, 4), "max": round(max(noise.values()), 4)}


def hardware() -> dict[str, Any]:
    """The machine, as far as it explains timing figures: {"cpu", "cores"} that this process may use."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.lower().startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    return {"cpu": model, "cores": len(os.sched_getaffinity(0))}


def stolen_seconds(stat: str | None = None) -> float:
    """Processor seconds since the start that the hypervisor gave to others while this virtual machine wanted them.

    Summed over its cores; 0 where nothing tells. A control loop that a hypervisor interrupts misses periods whatever it
    does: measured before and after, this says whose fault they are.

    Args:
        stat: what /proc/stat says (proc_stat(5): `steal` is the eighth figure of a line); None: read it.
    """
    if stat is None:
        try:
            stat = Path("/proc/stat").read_text()
        except OSError:
            return 0.0
    total = next((line.split() for line in stat.splitlines() if line.startswith("cpu ")), [])
    return int(total[8]) / os.sysconf("SC_CLK_TCK") if len(total) > 8 else 0.0
