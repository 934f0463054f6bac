"""How like what then happened are the pictures that a PAD policy imagines? PSNR, SSIM, and a grid to look at."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from contracts import PolicyContract
from episodes.dataset import Dataset, EpisodeData
from episodes.tiles import tile, tiled
from execution.observation import Observation
from policies.runtime import Runtime, Session
from policies.runtime.pad import painted
from policies.runtime.sessions import checked_inputs

EVERY = 8  # control periods between two moments of an episode
GRID_TILE = 192  # pixels high
PEAK = 255.0
BEST_PSNR = 100.0  # dB; of pictures that are the same it would be infinite
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, section III.B
SSIM_C1, SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B: ITU-R BT.601

Pictures = NDArray[np.uint8]  # [..., height, width, 3]


@dataclass(frozen=True)
class Moment:
    """What was imagined at one moment of an episode; each [future, height, width, 3] but `now`, [height, width, 3].

    Attributes:
        now: what the camera saw.
        imagined: by the policy.
        happened: what the camera then saw.
        encoded: that, through the policy's autoencoder and back.
        best: what the policy would have shown, had it foreseen the latents of what happened exactly.
    """

    now: Pictures
    imagined: Pictures
    happened: Pictures
    encoded: Pictures
    best: Pictures


SHOWN = ("imagined", "present", "encoded", "best")  # each is compared with what happened


def imagine(session: Session, episode: EpisodeData, row: int) -> Moment:
    """Ask the policy at one row, after which its whole future was recorded."""
    key = session.camera
    session.act(observed(session.contract, episode, row))
    ahead = [row + periods for periods in session.imagines]
    now, imagined = episode.observations[key][row], session.imagination()()
    encoded = _through_autoencoder(session, [observed(session.contract, episode, later) for later in ahead])
    before = _through_autoencoder(session, [observed(session.contract, episode, row)] * len(ahead))[0]
    return Moment(now, imagined, episode.observations[key][ahead], encoded, best=painted(now, before, encoded))


def picture_table(runtime: Runtime, dataset: Path, every: int = EVERY) -> list[dict[str, Any]]:
    """How good the pictures are on every `every`-th row of every episode that has the whole future.

    PSNR is that of the mean squared error over all moments of a task, since a moment in which nothing moves would have
    an infinite one of its own. SSIM is the mean over the moments.

    Returns:
        Rows {task, periods, moments, imagined, present, encoded, best}, the last four {psnr, ssim}; then, for each of
        `periods`, the mean of all tasks. `present`: it is taken for the future. The others: see `Moment`.

    Raises:
        ValueError: the policy imagines no pictures, or does not see what the dataset holds.
        DatasetError: the dataset cannot be used.
    """
    errors: dict[tuple[str, int], list[list[tuple[float, float]]]] = defaultdict(list)
    for session, episode in _sessions(runtime, Dataset(dataset)):
        for row in range(0, len(episode) - session.imagines[-1], every):
            moment = imagine(session, episode, row)
            for number, periods in enumerate(session.imagines):
                shown = (moment.imagined[number], moment.now, moment.encoded[number], moment.best[number])
                happened = moment.happened[number]
                how = [(squared_error(picture, happened), ssim(picture, happened)) for picture in shown]
                errors[episode.task_name, periods].append(how)
    rows: list[dict[str, Any]] = []
    for (task, periods), found in errors.items():
        squared, alike = np.mean(found, axis=0).T
        figures = [{"psnr": psnr(float(e)), "ssim": float(s)} for e, s in zip(squared, alike, strict=True)]
        rows.append({"task": task, "periods": periods, "moments": len(found), **dict(zip(SHOWN, figures, strict=True))})
    return rows + [_mean(rows, periods) for periods in dict.fromkeys(row["periods"] for row in rows)]


def write_grid(runtime: Runtime, dataset: Path, path: Path) -> None:
    """A PNG, a row a task: now, imagined, happened, in the middle of the task's first episode. Raises ValueError."""
    rows, seen = [], set()
    for session, episode in _sessions(runtime, Dataset(dataset)):
        if episode.task_name in seen or len(episode) <= session.imagines[-1]:
            continue
        seen.add(episode.task_name)
        moment = imagine(session, episode, (len(episode) - session.imagines[-1]) // 2)
        height, width, _ = moment.now.shape
        size = (GRID_TILE, round(GRID_TILE * width / height))
        row = [tile(moment.now, f"{episode.task_name}: now", *size)]
        for what, pictures in (("imagined", moment.imagined), ("happened", moment.happened)):
            row += [tile(p, f"{what} t+{t}", *size) for p, t in zip(pictures, session.imagines, strict=True)]
        rows.append(row)
    if not rows:
        raise ValueError(f"{dataset}: no episode is long enough")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiled(rows)).save(path, optimize=True)


def squared_error(picture: Pictures, other: Pictures) -> float:
    """Mean over pixels and colours."""
    return float(np.square(picture.astype(np.float64) - other).mean())


def psnr(squared: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error, dB, at most `BEST_PSNR`."""
    return min(BEST_PSNR, 10 * math.log10(PEAK**2 / squared)) if squared else BEST_PSNR


def ssim(picture: Pictures, other: Pictures) -> float:
    """Mean structural similarity of the luma of two pictures [height, width, 3], 1 if they are the same.

    Source: Wang, Bovik, Sheikh and Simoncelli (2004), "Image quality assessment: from error visibility to structural
    similarity", equation 13 with a Gaussian window; only whole windows count.
    """
    x, y = picture @ LUMA, other @ LUMA
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    return float((likeness / ((mean_x**2 + mean_y**2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2))).mean())


def _blurred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted by a Gaussian window around each place, [height, width] to [height - 10, width - 10]."""
    weights = np.exp(-0.5 * (np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) ** 2 / SSIM_SIGMA**2)
    weights /= weights.sum()
    for axis in (0, 1):
        values = sliding_window_view(values, SSIM_WINDOW, axis=axis) @ weights
    return values


def _sessions(runtime: Runtime, source: Dataset) -> Iterator[tuple[Session, EpisodeData]]:
    """Each episode, and the policy told its instruction, with noise of the episode's seed."""
    for number in range(len(source)):
        episode = source.episode(number)
        session = runtime.start(episode.seed, episode.task)
        if not session.imagines:
            raise ValueError(f"this {runtime.contract.policy} policy imagines no pictures")
        yield session, episode


def observed(contract: PolicyContract, episode: EpisodeData, row: int) -> Observation:
    """What a policy sees at a row; before the first it sees the first."""
    values = {}
    for wanted in contract.observations:
        rows = np.maximum(row + np.arange(1 - wanted.history, 1), 0)
        values[wanted.feature.key] = episode.observations[wanted.feature.key][rows]
    return Observation(stamp_ns=0, values=values)


def _through_autoencoder(session: Session, observations: list[Observation]) -> Pictures:
    """The newest picture of each observation, encoded and decoded by the bundle's own graphs."""
    place = session.sampler.conditions.index("now_pictures")
    latents = []
    for observation in observations:
        inputs = {name: np.zeros(t.shape, t.dtype) for name, t in session.runners["encoder"].inputs.items()}
        inputs.update(checked_inputs(session.contract, observation))
        latents.append(session.runners["encoder"](inputs)[place][:, -1])
    (pictures,) = session.runners["picture"]({"pictures": np.stack(latents, axis=1)})
    return pictures[0]


def _mean(rows: list[dict[str, Any]], periods: int) -> dict[str, Any]:
    """Over the tasks, at one distance."""
    found = [row for row in rows if row["periods"] == periods]
    mean: dict[str, Any] = {"task": "mean", "periods": periods, "moments": sum(row["moments"] for row in found)}
    for name in SHOWN:
        mean[name] = {k: float(np.mean([row[name][k] for row in found])) for k in ("psnr", "ssim")}
    return mean
