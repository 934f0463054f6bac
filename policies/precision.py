"""In which arithmetic networks are trained: what the machine is fast at."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and Arm, as Linux names them


def settled(
    chosen: Literal["auto", "bf16", "fp32"], device: str, begun: Literal["auto", "bf16", "fp32"] | None = None
) -> Literal["bf16", "fp32"]:
    """What `auto` means.

    Args:
        chosen: by the user.
        device: `cuda`, `cpu`, ...
        begun: with what the run that is resumed was begun: it goes on with that, on whatever machine.
    """
    if chosen != "auto":
        return chosen
    if begun in ("bf16", "fp32"):
        return begun
    return "bf16" if computes_bf16(device) else "fp32"


def computes_bf16(device: str) -> bool:
    """True if the hardware multiplies in bfloat16. One that has to imitate it takes ten times as long as in fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False  # not Linux: fp32 is never wrong
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not BF16_FLAGS.isdisjoint(flags.partition(":")[2].split())
