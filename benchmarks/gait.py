"""What does a walking policy's gait look like? Pictures of a stride, which foot is down when, and the velocity.

    python -m benchmarks.gait zoo/hinfinity-go2 --picture zoo/hinfinity-go2.png

The policy walks on flat ground in lock step, with the published masses and without noise or delay: first as told, then
standing (the command is 0). A checkpoint of `visuomotor train hinfinity` will do as well as a bundle.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks.robustness_walkers import Walker, load_walker
from sim.legged.episode import TaskConfig
from sim.legged.figures import LEGS, load_figures
from sim.legged.pictures import FollowingCamera
from sim.legged.randomization import NOMINAL
from sim.legged.task import make_task
from sim.world import choose_offscreen_gl

WARM_UP_S, SHOWN_S, STAND_S = 2.0, 4.0, 2.0
STRIDE_S = 0.5  # that the pictures are spread over
PICTURES, PICTURE_SIZE = 6, (240, 320)
FOOT_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
STILL = TaskConfig(noise=0.0, start_speed=0.0, start_joints=0.0, random_ages=False, command_s=1000.0)


@dataclass(frozen=True)
class Walk:
    """What was seen, a row a control period.

    Attributes:
        time_s: since the first row, [T].
        contact: which feet touch the ground, bool, [T, 4].
        velocity: forward and left, in the trunk's frame, m/s, [T, 2].
        command: the same as told, [T, 2].
        pictures: of one stride, uint8 [PICTURES, H, W, 3].
    """

    time_s: NDArray[np.floating]
    contact: NDArray[np.bool_]
    velocity: NDArray[np.float64]
    command: NDArray[np.float64]
    pictures: NDArray[np.uint8]


def walk(walker: Walker, command: tuple[float, float, float]) -> Walk:
    """Let it walk, then stand. Raises RuntimeError if it falls."""
    rows: list[tuple[NDArray, NDArray, NDArray]] = []
    pictures: list[NDArray[np.uint8]] = []
    figures = load_figures(walker.robot)
    with (
        make_task(walker.robot, "flat", 1, threads=1, randomization=NOMINAL, config=STILL) as task,
        closing(FollowingCamera(figures, task.robots.terrain, PICTURE_SIZE)) as camera,
    ):
        period_s = task.period_s
        begin, stop = round(WARM_UP_S / period_s), round((WARM_UP_S + SHOWN_S) / period_s)
        every = max(1, round(STRIDE_S / PICTURES / period_s))
        for step in range(stop + round(STAND_S / period_s)):
            task.command[:] = command if step < stop else 0.0
            if task.step(walker.act(task.observation)).fell[0]:
                raise RuntimeError(f"{walker.path} fell after {step * period_s:.1f} s")
            state = task.robots.state
            if step >= begin:
                rows.append((state.foot_contact[0], state.linear_velocity[0, :2], task.command[0, :2].copy()))
                if (step - begin) % every == 0 and len(pictures) < PICTURES:
                    pictures.append(camera.picture(state, np.zeros(3)))
    contact, velocity, told = (np.array(column) for column in zip(*rows, strict=True))
    return Walk(np.arange(len(rows)) * period_s, contact, velocity, told, np.stack(pictures))


def draw(seen: Walk, title: str, path: Path) -> None:
    """Write the picture."""
    figure = plt.figure(figsize=(12, 6.5), layout="constrained")
    top, feet, speed = figure.subfigures(3, 1, height_ratios=(1.3, 1, 1.2))  # type: ignore[misc]
    top.suptitle(title)
    for axes, picture in zip(top.subplots(1, PICTURES), seen.pictures, strict=True):
        axes.imshow(picture)
        axes.axis("off")
    axes = feet.subplots()
    for row, (leg, colour) in enumerate(zip(LEGS, FOOT_COLOURS, strict=True)):
        down = seen.contact[:, row]
        axes.fill_between(seen.time_s, row - 0.35, row + 0.35, where=down, step="post", color=colour, label=leg)
    axes.set_yticks(range(len(LEGS)), LEGS)
    axes.invert_yaxis()
    axes.set_ylabel("foot on the ground")
    axes.set_xlim(seen.time_s[0], seen.time_s[-1])
    axes = speed.subplots()
    for column, name in enumerate(("forward", "left")):
        line = axes.plot(seen.time_s, seen.velocity[:, column], label=name)[0]
        axes.plot(seen.time_s, seen.command[:, column], "--", color=line.get_color(), label=f"{name}, as told")
    axes.set_xlim(seen.time_s[0], seen.time_s[-1])
    axes.set_xlabel("s")
    axes.set_ylabel("m/s")
    axes.legend(ncols=4, loc="upper right")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Read the arguments, walk, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="a bundle or a checkpoint")
    parser.add_argument("--picture", type=Path, required=True, help="PNG to write")
    parser.add_argument(
        "--velocity", type=float, nargs=3, default=(0.6, 0.0, 0.0), metavar=("X", "Y", "YAW"),
        help="forward and left, m/s, turning left, rad/s",
    )  # fmt: skip
    arguments = parser.parse_args()
    choose_offscreen_gl()
    seen = walk(load_walker(arguments.policy), tuple(arguments.velocity))
    moving = seen.time_s < SHOWN_S
    error = np.linalg.norm(seen.velocity[moving] - seen.command[moving], axis=1).mean()
    duty = ", ".join(f"{leg} {share:.2f}" for leg, share in zip(LEGS, seen.contact[moving].mean(0), strict=True))
    told = ", ".join(f"{number:g}" for number in arguments.velocity)
    draw(seen, f"told to go with {told} (m/s, m/s, rad/s), then to stand", arguments.picture)
    print(f"velocity error {error:.3f} m/s while walking; share of the time on the ground: {duty}")
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    main()
