"""Whether a re-simulated episode is the recorded one, and where it ceases to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from episodes.files import write_json

TOLERANCE = 1e-6
"""Largest difference of a recorded float32 number, in its own unit, that counts as the same."""


@dataclass(frozen=True)
class Divergence:
    """How a re-simulation compares with the recording.

    Attributes:
        steps: control steps compared.
        first_step: the first one whose observation differs by more than the tolerance; None: none does.
        feature: the feature that differs there.
        max_abs_difference: largest difference of any number in the whole episode, in its own unit.
        success: whether the re-simulated episode solved the task.
    """

    steps: int
    first_step: int | None
    feature: str | None
    max_abs_difference: float
    success: bool

    @property
    def diverged(self) -> bool:
        """True if the episode did not happen again."""
        return self.first_step is not None

    def write(self, path: Path | str) -> None:
        """Write the comparison as JSON, with `verdict`: the sentence that `str` gives; makes the folder."""
        write_json(path, {**asdict(self), "diverged": self.diverged, "verdict": str(self)})

    def __str__(self) -> str:
        if self.first_step is None:
            return f"all {self.steps} steps are the same (largest difference {self.max_abs_difference:.1e})"
        return (
            f"diverges at step {self.first_step} of {self.steps} in {self.feature} "
            f"(largest difference {self.max_abs_difference:.1e})"
        )


class Comparison:
    """Compares step by step."""

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self._tolerance = tolerance
        self._first_step: int | None = None
        self._feature: str | None = None
        self._largest = 0.0

    def add(
        self, step: int, feature: str, simulated: npt.NDArray[np.floating], recorded: npt.NDArray[np.generic]
    ) -> None:
        """One feature in one step: two arrays of one shape."""
        difference = float(np.max(np.abs(simulated.astype(np.float64) - recorded.astype(np.float64)), initial=0.0))
        self._largest = max(self._largest, difference)
        if self._first_step is None and not difference <= self._tolerance:  # a NaN differs
            self._first_step, self._feature = step, feature

    def result(self, steps: int, success: bool) -> Divergence:
        """What was found in an episode of so many steps."""
        return Divergence(steps, self._first_step, self._feature, self._largest, success)
