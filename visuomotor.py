"""visuomotor: take a robot policy from MuJoCo to a robot.

Collect demonstrations, train a policy, evaluate it, export it, run it on a robot (simulated or real) as ROS 2 nodes at
control rate, and replay what happened. `visuomotor COMMAND --help` explains a command.
"""

from __future__ import annotations

import os
import select
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from episodes.files import write_json
from policies.carp.config import CarpConfig
from policies.config import ChunkConfig, TrainingConfig
from policies.diffusion.config import DiffusionConfig
from policies.hinfinity.config import HInfinityConfig
from policies.pad.config import PadConfig
from policies.streaming.config import StreamingConfig

app = tyro.extras.SubcommandApp()
train_app = tyro.extras.SubcommandApp()
app.command(
    train_app,
    name="train",
    help="Train a policy: on a dataset, or (hinfinity) in simulation. Ctrl-C saves; `--resume` continues.",
)

HINTS = {
    "torch": "; training, checkpoints and export need it: pip install 'visuomotor[train]'",
    "gymnasium": "; simulation needs it: pip install 'visuomotor[metaworld]'",
    "mujoco": "; simulation needs it: pip install 'visuomotor[metaworld]'",
    "rclpy": "; this needs ROS 2: source its setup.bash, or pip install 'visuomotor[ros]'",
}
"""What helps where a package is missing that not every installation has."""

DIFFUSION = DiffusionConfig()
TRAINING = TrainingConfig()
CARP = CarpConfig()
STREAMING = StreamingConfig()
HINFINITY = HInfinityConfig()
CARP_TRAINING = TrainingConfig(steps=4000, batch_size=64, adam_betas=(0.9, 0.95), weight_decay=0.05, precision="fp32")
PAD = PadConfig()
PAD_TRAINING = TrainingConfig(
    steps=12000, batch_size=32, learning_rate=8e-4, adam_betas=(0.9, 0.999), weight_decay=0.01
)


@app.command
def collect(
    tasks: tyro.conf.Positional[tuple[str, ...]],
    /,
    output: Path,
    episodes: int = 50,
    observations: Literal["state", "image"] = "state",
    cameras: tuple[str, ...] = (),
    image_size: int | None = None,
    seed: int = 0,
    workers: int = 1,
    noise: float = 0.0,
    keep_failures: bool = False,
) -> int:
    """Let Meta-World's scripted experts demonstrate tasks. Stopped half-way, the same command continues.

    Args:
        tasks: Meta-World tasks, such as `drawer-open push`.
        output: the dataset (LeRobotDataset v3); made, or added to.
        episodes: successful demonstrations of each task.
        observations: what is recorded: `state` shows objects and the goal, `image` pictures and the end effector only.
        cameras: Meta-World's cameras for `image`; those of the robot's contract if none is named.
        image_size: height and width of the pictures, in pixels; as in the robot's contract if not given.
        seed: other seeds give other episodes; the same seed gives the same ones.
        workers: processes.
        noise: added to what is executed, not to what is learned (DART), as a fraction of the full command.
        keep_failures: keep failed attempts too.
    """
    from sim.collect import collect as collect_demonstrations

    size = None if image_size is None else (image_size, image_size)
    results = collect_demonstrations(
        tasks,
        episodes,
        output,
        observations,
        seed,
        workers,
        keep_failures,
        noise,
        cameras=cameras or None,
        image_size=size,
    )
    for result in results:
        print(
            f"{result.task}: {result.episodes} demonstrations ({result.attempts} tried now, {result.failures} failed)"
        )
    return 0


@train_app.command(name="diffusion")
def train_diffusion(
    dataset: Path,
    output: Path,
    policy: tyro.conf.OmitArgPrefixes[DiffusionConfig] = DIFFUSION,
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = TRAINING,
    resume: bool = False,
) -> int:
    """Diffusion Policy: a conditional 1-D UNet that denoises action chunks (arXiv 2303.04137).

    On several devices or machines: `accelerate launch -m visuomotor train diffusion ...`.

    Args:
        dataset: a dataset of `visuomotor collect` or `visuomotor convert`; of one task or of several.
        output: folder of the checkpoint, the training's state and TensorBoard's log.
        policy: the network and how actions are sampled.
        training: the optimiser.
        resume: continue what is in `output`, bit for bit; from the beginning if there is nothing yet.
    """
    return _train("diffusion", dataset, output, policy, training, resume)


@train_app.command(name="carp")
def train_carp(
    dataset: Path,
    output: Path,
    policy: tyro.conf.OmitArgPrefixes[CarpConfig] = CARP,
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = CARP_TRAINING,
    resume: bool = False,
) -> int:
    """CARP: tokenise action chunks at several time scales, predict the tokens coarse to fine (arXiv 2412.06782).

    Two stages: the tokeniser (its state is in the folder `tokenizer` of the checkpoint), then the transformer.

    Args:
        dataset: a dataset of `visuomotor collect` or `visuomotor convert`; of one task or of several.
        output: folder of the checkpoint, the training's state and TensorBoard's log.
        policy: the network and the choice of tokens.
        training: the optimiser, of the second stage.
        resume: continue what is in `output`, bit for bit; from the beginning if there is nothing yet.
    """
    return _train("carp", dataset, output, policy, training, resume)


@train_app.command(name="streaming")
def train_streaming(
    dataset: Path,
    output: Path,
    policy: tyro.conf.OmitArgPrefixes[StreamingConfig] = STREAMING,
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = TRAINING,
    resume: bool = False,
) -> int:
    """Streaming Diffusion Policy: a buffer of actions that is denoised a little at every tick (arXiv 2406.04806).

    Args:
        dataset: a dataset of `visuomotor collect` or `visuomotor convert`; of one task or of several.
        output: folder of the checkpoint, the training's state and TensorBoard's log.
        policy: the network, its noise levels, and how the buffer is rolled.
        training: the optimiser.
        resume: continue what is in `output`, bit for bit; from the beginning if there is nothing yet.
    """
    return _train("streaming", dataset, output, policy, training, resume)


@train_app.command(name="pad")
def train_pad(
    dataset: Path,
    output: Path,
    policy: tyro.conf.OmitArgPrefixes[PadConfig] = PAD,
    training: tyro.conf.OmitArgPrefixes[TrainingConfig] = PAD_TRAINING,
    resume: bool = False,
    video_dataset: Path | None = None,
    video_fraction: float = 0.3,
) -> int:
    """PAD: denoise future pictures and future poses together, then follow the poses (arXiv 2411.18179).

    Two stages: an autoencoder of the pictures (its state is in the folder `vae` of the checkpoint), then the
    transformer.

    Args:
        dataset: a dataset with pictures (`visuomotor collect --observations image`); of one task or of several.
        output: folder of the checkpoint, the training's state and TensorBoard's log.
        policy: the autoencoder, the transformer and its sampling.
        training: the optimiser, of the second stage.
        resume: continue what is in `output`, bit for bit; from the beginning if there is nothing yet.
        video_dataset: another such dataset; only its pictures and instructions are learned from, not its actions.
        video_fraction: share of a batch that comes from `video_dataset`; 0.3 in the paper.
    """
    return _train("pad", dataset, output, policy, training, resume, video_dataset, video_fraction)


@train_app.command(name="hinfinity")
def train_hinfinity(
    output: Path,
    robot: str = "go2",
    terrain: Literal["flat", "rough", "all"] = "flat",
    envs: int = 1024,
    training: tyro.conf.OmitArgPrefixes[HInfinityConfig] = HINFINITY,
    resume: bool = False,
    start_from: Path | None = None,
) -> int:
    """Walking as told while being pushed: PPO under an H-infinity constraint, in simulation (arXiv 2404.14405).

    `--disturber none` is plain PPO, `--disturber random` is PPO with random forces; all else is the same.

    Args:
        output: folder of the checkpoint, the training's state and TensorBoard's log.
        robot: go2, aliengo or a1.
        terrain: `flat`: a plane; `rough`: rough ground too; `all`: slopes, stairs and obstacles too.
        envs: robots that are simulated at the same time.
        training: PPO, the disturber and the constraint.
        resume: continue what is in `output`, bit for bit; from the beginning if there is nothing yet.
        start_from: begin with the weights of this checkpoint, of any robot: one that walks teaches the next.
    """
    import os

    # Collection and learning take turns on the same cores: whose turn it is not must not spin. Before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from policies.hinfinity.train import Trainer
    from policies.run_folder import alone_in
    from sim.legged.task import training_groups

    with training_groups(robot, terrain, envs, training.seed, training.cores) as tasks, alone_in(output):
        result = Trainer(tasks, robot, training, output, resume, start_from).run()
    print(
        f"{result.steps} steps in {result.elapsed_s:.0f} s, velocity error {result.velocity_error:.2f} m/s, "
        f"{result.falls_per_minute:.2f} falls a minute; checkpoint: {result.checkpoint}"
    )
    return 130 if result.interrupted else 0


@app.command(name="eval")
def evaluate(
    policy: tyro.conf.Positional[Path],
    /,
    task: tuple[str, ...],
    episodes: int = 50,
    seed: int = 0,
    json: Path | None = None,
    video: Path | None = None,
    record: Path | None = None,
    workers: int = 1,
    latency_steps: int = 0,
    delay_steps: int = 0,
    backend: Literal["openvino", "onnxruntime"] = "openvino",
    stitching: Literal["latest", "ensemble", "prefix"] = "latest",
    prefix: int = 4,
    execute: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    sampling: dict[str, str] = {},  # noqa: B006  # tyro shows it, nobody changes it
) -> int:
    """Measure how often a policy solves tasks: in lock step with the simulator, through the robot's own controller.

    For Meta-World's tasks. For walking policies there is `python -m benchmarks.robustness`.

    Args:
        policy: an exported bundle, or a checkpoint (which PyTorch runs).
        task: Meta-World tasks, one or several.
        episodes: of each task, on seeds that no demonstration has.
        seed: the same seed gives the same episodes, whatever the number of workers.
        json: write the result here.
        video: write the first 3 episodes of each task into this folder as MP4.
            For a policy that imagines pictures (PAD), they show these beside what then happened.
        record: add every episode to this dataset.
        workers: processes.
        latency_steps: pretend that an inference takes this many control periods.
        delay_steps: pretend that observations reach the policy this many control periods late.
        backend: inference engine for a bundle.
        stitching: how overlapping chunks are joined: the latest counts (`latest`), a weighted mean (`ensemble`),
            or each chunk begins with the next actions of the one before (`prefix`; CARP only).
        prefix: how many actions a chunk repeats of the one before, with `--stitching prefix`.
        execute: actions carried out before the policy looks again; as in training if not given.
        device: where a checkpoint runs; every worker has a copy there.
        sampling: for a checkpoint: choices that training does not depend on, as in `visuomotor export`.
    """
    from policies.loading import load_runtime
    from sim.evaluate import evaluate_tasks
    from sim.results import as_json, show

    make_runtime = partial(load_runtime, policy, backend, execute=execute, device=device, sampling=sampling)
    results = evaluate_tasks(
        make_runtime, task, episodes, seed, workers, latency_steps, video, record, progress=True, stitching=stitching,
        prefix=prefix, delay_steps=delay_steps,
    )  # fmt: skip
    show(results)
    if json is not None:
        write_json(json, as_json(results))
    return 0


@app.command
def export(
    checkpoint: tyro.conf.Positional[Path],
    /,
    output: Path,
    sampling: dict[str, str] = {},  # noqa: B006  # tyro shows it, nobody changes it
    robot: str | None = None,
) -> int:
    """Make a bundle from a checkpoint: graphs, contracts and sampler, which run without torch.

    Args:
        checkpoint: folder of a trained policy.
        output: the bundle's folder.
        sampling: choose anew what training does not depend on: names and values.
            Example: `--sampling scheduler ddim inference_steps 16`. An unknown name is answered with the known ones.
        robot: for a walking policy: name or path of another robot contract than the one that it was trained with.
            Joints are found by name.
    """
    from policies.export import export as export_checkpoint

    print(f"bundle: {export_checkpoint(checkpoint, output, sampling, robot)}")
    return 0


@app.command
def run(
    robot: str,
    policy: Path,
    task: str,
    output: Path,
    episodes: int = 1,
    seed: int = 0,
    steps: int = 500,
    json: Path | None = None,
    cameras: tuple[str, ...] = (),
    backend: Literal["openvino", "onnxruntime"] = "openvino",
    stitching: Literal["latest", "ensemble", "prefix"] = "latest",
    prefix: int = 4,
    instruction: str | None = None,
    velocity: tuple[float, float, float] | None = None,
    push: float = 0.0,
    push_every: float = 10.0,
    imagine_hz: float = 0.0,
    check: bool = False,
    unattended: bool = False,
    namespace: str | None = None,
) -> int:
    """Run a policy on a robot, simulated or real, as ROS 2 nodes in real time, and record everything.

    This is not functional safety: a real robot needs a hardware emergency stop within reach. On a real robot, each
    episode begins when you press Enter and ends when the topic `success` says true or false, or after --steps. Ctrl-C
    stops the robot first, then the nodes. Exit code 0: all episodes ran, solved or not; 1: something was refused or did
    not answer; 3: a node died; 130: stopped by you.

    Args:
        robot: name of a contract that comes with the project (`metaworld_sawyer`, `go2` ...), or the path of your own.
        policy: an exported bundle.
        task: Meta-World's task; for a quadruped the terrain: `flat`, `rough` or `all`; for a real robot any name.
        output: the recording (`bag/`) and the nodes' logs (`nodes/`) go here.
        episodes: how many.
        seed: the same episodes as with this seed in `visuomotor eval`.
        steps: an episode ends after this many control periods (Meta-World's own limit is 500).
            That counts as a failure, except where the task is to keep walking without a fall.
        json: write the run's figures here.
        cameras: recorded besides those that the policy sees.
        backend: inference engine.
        stitching: how overlapping chunks are joined: the latest counts (`latest`), a weighted mean (`ensemble`),
            or each chunk begins with the next actions of the one before (`prefix`; CARP only).
        prefix: how many actions a chunk repeats of the one before, with `--stitching prefix`.
        instruction: what a policy of several tasks is asked to do, in words; by default what the task says.
        velocity: how a simulated quadruped is told to walk: forward and left, m/s, turning left, rad/s.
            Without it, the run sends no velocity, and others may publish on the robot's topic for it.
        push: push a simulated quadruped with this force (at most 400 N) for half a second, in random directions.
        push_every: seconds from one push to the next.
        imagine_hz: how often the pictures that the policy imagines (PAD) are published, at most 10; 0: never.
            They are on the topics `imagined/t4` and so on, and never delay control.
        check: only check that the policy fits the robot and that everything else can be used; start nothing.
        unattended: a real robot begins each episode without waiting for Enter.
        namespace: ROS namespace of the robot's nodes and topics; by default the robot's name.
            Two robots of one model need one each.
    """
    from ros_nodes.supervisor import RunOptions, run_robot
    from ros_nodes.walk import WalkPlan

    return run_robot(
        RunOptions(
            robot=robot, policy=policy, task=task, episodes=episodes, seed=seed, steps=steps, output=output, json=json,
            cameras=cameras, backend=backend, stitching=stitching, prefix=prefix, instruction=instruction,
            walk=WalkPlan(velocity, push, push_every), imagine_hz=imagine_hz, check=check, unattended=unattended,
            namespace=namespace,
        )
    )  # fmt: skip


@app.command
def replay(
    recording: tyro.conf.Positional[Path],
    /,
    episode: int = 0,
    video: Path | None = None,
    camera: str | None = None,
    topics: bool = False,
    speed: float = 1.0,
    namespace: str | None = None,
    json: Path | None = None,
) -> int:
    """Simulate a recorded episode again from its initial state and actions, and say whether the same happens.

    Exit code 1: it diverged from the recording.

    Args:
        recording: a bag or a dataset.
        episode: its number, from 0.
        video: also render it to this MP4.
        camera: view of the video; the first camera of the robot's contract if not given.
        topics: instead, publish a bag's messages on their topics in real time; nothing is simulated.
        speed: with `--topics`: 2 is twice as fast.
        namespace: with `--topics`: publish them in this ROS namespace; in the recording's if not given.
        json: write the verdict here.
    """
    if topics:
        from ros_nodes.replay_node import replay_topics

        return replay_topics(recording, episode, speed, namespace)
    from episodes.opening import open_episode
    from sim.replay import replay_recorded

    verdict = replay_recorded(open_episode(recording, episode), video, camera)
    print(verdict)
    if json is not None:
        verdict.write(json)
    return 1 if verdict.diverged else 0


@app.command
def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    /,
    observations: str | None = None,
    robot: str | None = None,
    assume_success: bool = False,
) -> int:
    """Make training data from a recording (bag to dataset), or a recording from a dataset (dataset to bag).

    A LeRobotDataset v3.0 that you recorded with LeRobot becomes a dataset that can be learned from, by your robot's
    contract (`--robot`): joints and cameras are found by name, and every difference is listed before anything is
    written. Stopped half-way, the same command continues.

    Args:
        source: a bag or a dataset.
        target: what is made; a dataset may exist already, and is added to.
        observations: the observation set of the dataset; by default what the recorded policy saw.
            For a LeRobotDataset of others: by default the only set of the robot's contract.
        robot: name or path of the robot's contract; by default the one inside the recording.
        assume_success: count an episode as a success if nobody said on the topic `success` how it ended.
            Not if the controller stopped in it. For a person's demonstrations on a real robot, and for
            LeRobotDatasets of others, which do not say it.
    """
    from contracts import load_robot
    from episodes.opening import convert as convert_recording

    contract = None if robot is None else load_robot(robot)
    print(convert_recording(source, target, observations, contract, assume_success, progress=True))
    return 0


@app.command
def repair(bag: tyro.conf.Positional[Path], /) -> int:
    """Mend a recording whose recorder was killed. The damaged file is kept beside the mended one.

    Args:
        bag: the recording's folder.
    """
    from episodes.repair import repair as repair_bag

    print(repair_bag(bag))
    return 0


bench_app = tyro.extras.SubcommandApp()
app.command(bench_app, name="bench", help="Measure on this machine.")


@bench_app.command(name="latency")
def bench_latency(
    policies: tyro.conf.Positional[tuple[Path, ...]] = (),
    /,
    json: Path | None = None,
    calls: int = 500,
    threads: int = 1,
    references: bool = False,
) -> int:
    """Measure how long policies take from an observation to an action chunk, and how far that is from the floor.

    The floor is the time that the policy's multiplications alone would take. Without a policy, this measures Diffusion
    Policy, CARP and Streaming Diffusion Policy of known sizes, with random weights, in OpenVINO, ONNX Runtime and
    PyTorch by turns; nothing need be trained. That takes about three minutes.

    Args:
        policies: bundles, or checkpoints, which are exported first.
        json: write the rows here.
        calls: of each policy and engine; the 99th percentile needs a few hundred.
        threads: CPU threads of each engine; 1 leaves the robot's other cores to the rest.
        references: also measure the policies of known sizes, to compare.
    """
    from benchmarks.latency import bench_latency as measure
    from benchmarks.latency_networks import NETWORKS
    from benchmarks.latency_tables import show

    result = measure(policies, calls, threads, () if policies and not references else NETWORKS)
    show(result)
    if json is not None:
        write_json(json, result)
    return 0


def _train(
    family: str,
    dataset: Path,
    output: Path,
    policy: ChunkConfig,
    training: TrainingConfig,
    resume: bool,
    video: Path | None = None,
    video_fraction: float = 0.3,
) -> int:
    from policies.train import train_policy

    _tell_of_evaluation_episodes(dataset)
    result = train_policy(family, dataset, output, policy, training, resume, video=video, video_fraction=video_fraction)
    print(f"{result.steps} steps in {result.elapsed_s:.0f} s, loss {result.loss:.4f}; checkpoint: {result.checkpoint}")
    return 130 if result.interrupted else 0


def _tell_of_evaluation_episodes(dataset: Path) -> None:
    """A simulated robot's recording is of scenes that `eval` tests on: whoever learns them needs others for a test."""
    from episodes.dataset import Dataset

    source = Dataset(dataset)
    if source.robot.body == "external":
        return
    from sim.seeds import is_evaluation_seed

    known = sum(episode.success and is_evaluation_seed(episode.seed) for episode in source.episodes)
    if known:
        print(
            f"visuomotor: {known} of the {len(source)} episodes of {dataset} are of scenes that `visuomotor eval` tests"
            " on, recorded by `run` or `eval --record`: evaluate this policy with another --seed than theirs",
            file=sys.stderr,
        )


def main() -> None:
    """Run the command line; errors that a user can mend are one message, not a stack trace."""
    try:
        sys.exit(app.cli(prog="visuomotor", description=__doc__))
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell says of a command that SIGINT ended
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(141)  # as a shell says of a command that SIGPIPE ended
        hint = HINTS.get(error.name or "", "") if isinstance(error, ImportError) else ""
        sys.exit(f"visuomotor: {error}{hint}")


def _nobody_reads() -> bool:
    """True when who read the output, such as `head`, has seen enough and gone; what is left is let go."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


if __name__ == "__main__":
    main()
