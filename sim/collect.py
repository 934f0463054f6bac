"""Demonstrations of scripted experts, many at once, into a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from contracts import RobotContract, load_robot
from episodes.data import EpisodeData
from episodes.dataset import Dataset, DatasetWriter
from sim.cameras import ROBOT, with_cameras
from sim.demonstration import demonstrate
from sim.environments import MetaWorldEnv
from sim.experts import Expert
from sim.seeds import episode_seed
from sim.tasks import instruction
from sim.workers import Workers

MAX_NOISE = 1.0
ATTEMPTS_PER_EPISODE = 4
MIN_ATTEMPTS = 20


class ExpertFailed(ValueError):
    """The scripted expert fails too often to make the demonstrations that were asked for."""


@dataclass(frozen=True)
class TaskCollection:
    """What there is of one task after collecting.

    Attributes:
        task: name.
        episodes: successful demonstrations in the dataset.
        attempts: episodes the expert tried in this run; those already present were not tried again.
        failures: of these attempts, how many failed.
    """

    task: str
    episodes: int
    attempts: int
    failures: int


def collect(
    tasks: Sequence[str],
    episodes_per_task: int,
    path: Path | str,
    observation_set: str = "state",
    seed: int = 0,
    workers: int = 1,
    keep_failures: bool = False,
    noise: float = 0.0,
    progress: bool = True,
    robot: RobotContract | None = None,
    cameras: tuple[str, ...] | None = None,
    image_size: tuple[int, int] | None = None,
) -> list[TaskCollection]:
    """Collect `episodes_per_task` successful demonstrations of every task into the dataset at `path`.

    Episodes are tried in the order of their seeds and written in that order, task after task: the dataset is the same
    whatever the number of workers. Collecting into a dataset that has some of these episodes adds the missing ones: a
    killed run continues where it was.

    Args:
        tasks: names without `-v3`.
        episodes_per_task: successes wanted of each.
        path: directory of the dataset; made if it is not there.
        observation_set: what is recorded, one of the robot's sets.
        seed: of the run; gives the training seeds `episode_seed("train", seed, 0, 1, ...)`.
        workers: processes.
        keep_failures: also keep the failed attempts made on the way.
        noise: see `demonstrate`; standard deviation as a fraction of the full command.
        progress: show a progress bar.
        robot, cameras, image_size: see `MetaWorldEnv`.

    Returns:
        One entry a task, in the order of `tasks`.

    Raises:
        ValueError: an unknown task, a task named twice, or a number out of range.
        ExpertFailed: an expert failed so often that the attempts ran out; what it solved is kept.
    """
    _check(tasks, episodes_per_task, noise)
    contract = with_cameras(robot or load_robot(ROBOT), cameras, image_size)
    results = []
    with (
        DatasetWriter(path, contract, observation_set) as writer,
        Workers(workers, _Demonstrator) as pool,
        tqdm(total=len(tasks) * episodes_per_task, unit="episode", disable=not progress) as bar,
    ):
        solved = {(e.task_name, e.seed): e.success for e in Dataset(path).episodes}
        for task in tasks:
            bar.set_description(f"collect {task}")
            jobs = _Jobs(task, seed, observation_set, contract.to_json(), noise, solved)
            results.append(_collect_task(jobs, episodes_per_task, writer, pool, keep_failures, bar))
    return results


@dataclass(frozen=True)
class _Job:
    """One attempt, as a worker process receives it; the robot's contract as JSON."""

    task: str
    seed: int
    observation_set: str
    robot: str
    noise: float


@dataclass(frozen=True)
class _Jobs:
    """The attempts at one task, in the order of their seeds; `solved` is what the dataset holds already."""

    task: str
    run_seed: int
    observation_set: str
    robot: str
    noise: float
    solved: dict[tuple[str, int], bool]

    def known(self, index: int) -> bool | None:
        """Whether attempt `index` succeeded, if the dataset holds it."""
        return self.solved.get((self.task, episode_seed("train", self.run_seed, index)))

    def missing(self, attempts: int) -> Iterator[_Job]:
        """The attempts that the dataset does not hold."""
        for index in range(attempts):
            if self.known(index) is None:
                episode = episode_seed("train", self.run_seed, index)
                yield _Job(self.task, episode, self.observation_set, self.robot, self.noise)


def _collect_task(
    jobs: _Jobs, wanted: int, writer: DatasetWriter, pool: Workers[_Demonstrator], keep_failures: bool, bar: tqdm
) -> TaskCollection:
    """Go through the attempts in order until `wanted` have succeeded, counting those that are there already."""
    attempts = max(MIN_ATTEMPTS, ATTEMPTS_PER_EPISODE * wanted)
    tried = failures = successes = 0
    with closing(pool.map(_Demonstrator.attempt, jobs.missing(attempts))) as results:
        for index in range(attempts):
            if successes == wanted:
                break
            success = jobs.known(index)
            if success is None:
                episode = next(results)
                success = episode.success
                tried += 1
                failures += not success
                if success or keep_failures:
                    writer.add(episode)
            successes += success
            bar.update(int(success))
    if successes < wanted:
        raise ExpertFailed(
            f"{jobs.task}: the expert solved {successes} of {attempts} episodes, {wanted} were asked for; "
            "ask for fewer, or for less noise"
        )
    return TaskCollection(jobs.task, successes, tried, failures)


class _Demonstrator:
    """A worker's environment and expert for the task it last worked on: building them costs more than an episode."""

    def __init__(self) -> None:
        self._world: tuple[str, MetaWorldEnv, Expert] | None = None

    def attempt(self, job: _Job) -> EpisodeData:
        if self._world is None or self._world[0] != job.task:
            if self._world is not None:
                self._world[1].close()
            env = MetaWorldEnv(job.task, job.observation_set, RobotContract.from_json(job.robot))
            self._world = (job.task, env, Expert(job.task, env.robot))
        _, env, expert = self._world
        return demonstrate(env, expert, job.seed, job.noise)


def _check(tasks: Sequence[str], episodes_per_task: int, noise: float) -> None:
    for task in tasks:
        instruction(task)
    if not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"name at least one task, and none twice: {list(tasks)}")
    if episodes_per_task < 1:
        raise ValueError(f"episodes_per_task is at least 1, not {episodes_per_task}")
    if not 0.0 <= noise <= MAX_NOISE:
        raise ValueError(f"noise {noise} is not within [0, {MAX_NOISE}] of the full command")
