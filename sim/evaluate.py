"""How often a policy solves a task: many episodes, many processes, the same figures every time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contracts import RobotContract, check_compatible
from episodes.data import EpisodeData
from episodes.dataset import DatasetWriter
from episodes.report import noise_carried_out, wilson_interval
from episodes.video import write_video
from execution.stitching import PREFIX_ACTIONS, split_stitching
from sim.cameras import fitting_robot
from sim.environments import MetaWorldEnv
from sim.episode_video import episode_frames
from sim.results import TaskResult
from sim.rollout import PolicyRuntime, Rollout
from sim.seeds import episode_seed
from sim.tasks import instruction
from sim.workers import Workers

VIDEO_EPISODES = 3
VIDEO_EVERY = 2  # steps a frame: 40 frames a second
MAX_LATENCY = 100


def evaluate_tasks(
    make_runtime: Callable[[], PolicyRuntime],
    tasks: Sequence[str],
    episodes: int,
    seed: int = 0,
    workers: int = 1,
    latency_steps: int = 0,
    video: Path | str | None = None,
    record: Path | str | None = None,
    robot: RobotContract | None = None,
    progress: bool = False,
    stitching: str = "latest",
    prefix: int = PREFIX_ACTIONS,
    delay_steps: int = 0,
) -> list[TaskResult]:
    """Let the policy try every task `episodes` times, on seeds that no demonstration has.

    Episode i of a task starts from `episode_seed("eval", seed, i)`, and so does the policy's own randomness; so the
    episodes are the same whatever the number of workers, if the runtime computes the same in each (one thread).

    Args:
        make_runtime: loads the policy; called once in each process, so it must be picklable if there are several.
        tasks: names without `-v3`.
        episodes: of each.
        seed: of the run.
        workers: processes.
        latency_steps: control steps from an observation until its chunk arrives; 0: at once.
        video: directory for `<task>-<seed>.mp4` of the first 3 episodes of each task; of a policy that imagines, with
            what it imagined beside what then happened.
        record: directory of a dataset that all episodes are written to, but for those that it holds already.
        robot: contract; None is the project's, with the cameras that the policy looks at.
        progress: show a progress bar.
        stitching: how overlapping chunks are joined: `latest`, `ensemble` or `prefix`.
        prefix: actions of the chunk before that a chunk repeats, with the stitching `prefix`.
        delay_steps: control steps that an observation is on its way to the policy.

    Raises:
        ValueError: no task, an unknown task or stitching, a number out of range, or a policy that cannot do one of
            them.
        ContractMismatch: the policy does not fit the robot.
        DatasetError: `record` holds something else, or other episodes of these tasks and seeds.
    """
    if not tasks:
        raise ValueError("name at least one task")
    for task in tasks:
        instruction(task)
    if episodes < 1:
        raise ValueError(f"at least 1 episode is needed, not {episodes}")
    for name, steps in (("latency_steps", latency_steps), ("delay_steps", delay_steps)):
        if not 0 <= steps <= MAX_LATENCY:
            raise ValueError(f"{name} {steps} is not within [0, {MAX_LATENCY}]")
    how = _How(tuple(tasks), latency_steps, stitching, split_stitching(stitching, prefix)[1], delay_steps)
    make_state = partial(_Evaluator, make_runtime, None if robot is None else robot.to_json(), how)
    with (
        Workers(workers, make_state) as pool,
        tqdm(total=len(tasks) * episodes, unit="episode", disable=not progress) as bar,
        _Recording(record) as recording,
    ):
        results = []
        for task in tasks:
            outcomes = []
            jobs = _jobs(task, episodes, seed, video, record is not None)
            with closing(pool.map(_Evaluator.attempt, jobs)) as done:
                for outcome in done:
                    recording.add(outcome)
                    outcomes.append(outcome)
                    bar.update()
                    solved = sum(o.success for o in outcomes)
                    bar.set_description(f"{task} {solved}/{len(outcomes)}", refresh=False)
            results.append(_summarize(task, outcomes, how))
    return results


@dataclass(frozen=True)
class _How:
    """What all episodes have in common; `prefix` is 0 unless the stitching is `prefix`."""

    tasks: tuple[str, ...]
    latency_steps: int
    stitching: str
    prefix: int
    delay_steps: int


@dataclass(frozen=True)
class _Job:
    task: str
    seed: int
    video: Path | None
    record: bool


@dataclass
class _Outcome:
    """One episode, as it comes back from a worker."""

    seed: int
    success: bool
    steps: int
    seconds: float
    execute: int
    inference_ms: list[float]
    stopped: tuple[str, ...]
    held: Counter[str]
    interventions: Counter[str]
    action_ages: Counter[int]
    residual_noise: tuple[float, ...] | None
    episode: EpisodeData | None
    robot: str
    observation_set: str


def _jobs(task: str, episodes: int, seed: int, video: Path | str | None, record: bool) -> Iterator[_Job]:
    for index in range(episodes):
        episode = episode_seed("eval", seed, index)
        path = Path(video) / f"{task}-{episode}.mp4" if video is not None and index < VIDEO_EPISODES else None
        yield _Job(task, episode, path, record)


class _Evaluator:
    """A worker's policy, and its environment of the task that it last worked on."""

    def __init__(self, make_runtime: Callable[[], PolicyRuntime], robot: str | None, how: _How) -> None:
        self._runtime = make_runtime()
        self._robot = fitting_robot(self._runtime.contract) if robot is None else RobotContract.from_json(robot)
        check_compatible(self._runtime.contract, self._robot)
        self._how = how
        for task in how.tasks:  # refused now, and not when the tasks before it are done
            self._runtime.start(0, instruction(task), how.prefix)
        self._env: MetaWorldEnv | None = None

    def attempt(self, job: _Job) -> _Outcome:
        env = self._environment(job.task)
        how = self._how
        rollout = Rollout(
            env, self._runtime, job.seed, how.latency_steps, job.record, how.stitching, how.prefix, how.delay_steps
        )
        begin = time.perf_counter()
        if job.video is None:
            for _ in rollout.run():
                pass
        else:
            job.video.parent.mkdir(parents=True, exist_ok=True)
            write_video(job.video, episode_frames(rollout, VIDEO_EVERY), env.robot.control_rate_hz / VIDEO_EVERY)
        seconds = time.perf_counter() - begin
        return _Outcome(
            seed=job.seed,
            success=rollout.success,
            steps=rollout.steps,
            seconds=seconds,
            execute=self._runtime.contract.execute,
            inference_ms=rollout.inference_ms,
            stopped=rollout.stopped,
            held=rollout.held,
            interventions=rollout.interventions,
            action_ages=rollout.action_ages,
            residual_noise=rollout.residual_noise,
            episode=rollout.episode() if job.record else None,
            robot=env.robot.to_json(),
            observation_set=env.observation_set,
        )

    def _environment(self, task: str) -> MetaWorldEnv:
        if self._env is None or self._env.task != task:
            if self._env is not None:
                self._env.close()
            self._env = MetaWorldEnv(task, self._runtime.contract.observation_set, self._robot)
        return self._env


class _Recording:
    """Writes episodes into a dataset, opened with the first; or nowhere."""

    def __init__(self, path: Path | str | None) -> None:
        self._path = path
        self._writer: DatasetWriter | None = None
        self._exit = ExitStack()

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def add(self, outcome: _Outcome) -> None:
        if self._path is None or outcome.episode is None:
            return
        if self._writer is None:
            robot = RobotContract.from_json(outcome.robot)
            self._writer = self._exit.enter_context(DatasetWriter(self._path, robot, outcome.observation_set))
        if not self._writer.holds(outcome.episode):  # as of a run that was stopped, and is made again
            self._writer.add(outcome.episode)
        outcome.episode = None  # written: no need to keep it in memory


def _summarize(task: str, outcomes: Sequence[_Outcome], how: _How) -> TaskResult:
    successes = sum(o.success for o in outcomes)
    inference_ms = [ms for o in outcomes for ms in o.inference_ms]
    held: Counter[str] = Counter()
    limited: Counter[str] = Counter()
    ages: Counter[int] = Counter()
    for outcome in outcomes:
        held.update(outcome.held)
        limited.update(outcome.interventions)
        ages.update(outcome.action_ages)
    action_age_steps = {str(age): count for age, count in sorted(ages.items())}
    return TaskResult(
        task=task,
        episodes=len(outcomes),
        successes=successes,
        success_rate=successes / len(outcomes),
        ci95=wilson_interval(successes, len(outcomes)),
        steps_mean=float(np.mean([o.steps for o in outcomes])),
        seconds_per_episode=float(np.mean([o.seconds for o in outcomes])),
        inference_ms={f"p{p}": float(np.percentile(inference_ms, p)) for p in (50, 99)},
        latency_steps=how.latency_steps,
        delay_steps=how.delay_steps,
        execute=outcomes[0].execute,
        stitching=how.stitching,
        prefix=how.prefix,
        stopped=dict(Counter(", ".join(o.stopped) for o in outcomes if o.stopped)),
        held=dict(held),
        limited=dict(limited),
        action_age_steps=action_age_steps,
        residual_noise=noise_carried_out(action_age_steps, outcomes[0].residual_noise),
        seeds=[o.seed for o in outcomes],
        failed_seeds=[o.seed for o in outcomes if not o.success],
    )
