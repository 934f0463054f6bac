"""Random generators as arrays, so that all that a simulation is at one moment is a flat dict of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Snapshot = dict[str, NDArray]

WORD = 2**64


def generator_to_array(rng: np.random.Generator) -> NDArray[np.int64]:
    """The state of a `np.random.default_rng` generator (PCG64), [6]."""
    state = rng.bit_generator.state
    value, increment = state["state"]["state"], state["state"]["inc"]  # of 128 bits each
    numbers = [*divmod(value, WORD), *divmod(increment, WORD), state["has_uint32"], state["uinteger"]]
    return np.array(numbers, dtype=np.uint64).view(np.int64)  # which every file format has


def generator_from_array(rng: np.random.Generator, array: NDArray[np.int64]) -> None:
    """Put a generator back into the state that `generator_to_array` gave."""
    high, low, increment_high, increment_low, has_uint32, uinteger = (int(n) for n in array.view(np.uint64))
    words = {"state": high * WORD + low, "inc": increment_high * WORD + increment_low}
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": words,
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }


def restore(target: NDArray, source: NDArray, name: str) -> None:
    """Copy `source` into `target`. Raises ValueError if they do not have the same shape and dtype."""
    if source.shape != target.shape or source.dtype != target.dtype:
        right = f"{target.dtype} {target.shape}"
        raise ValueError(f"the saved {name} is {source.dtype} {source.shape}, {right} would be right")
    target[...] = source


def part(snapshot: Snapshot, prefix: str) -> Snapshot:
    """The entries below `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in snapshot.items() if name.startswith(f"{prefix}.")}


def prefixed(snapshot: Snapshot, prefix: str) -> Snapshot:
    """The same entries below `prefix.`."""
    return {f"{prefix}.{name}": value for name, value in snapshot.items()}
