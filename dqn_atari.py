"""Deep Q-Network on Atari (DQN, Mnih et al. 2015), for the Hadamard representations of HR.

HR = arXiv 2406.09079, Table 4. One game, a replay buffer of single frames, a Double-DQN target (HR,
eq. 5). The last hidden layer uses --activation, the convolutions --encoder-activation. The same
command again resumes the run, or reports that it is finished.

    python dqn_atari.py --env-id Breakout --activation tanh_hr --analyse

Results, implementation details, differences from CleanRL: docs/dqn_atari.md.
"""

import interrupts  # noqa: F401

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn

import activations
import metrics
import optimizers
import plots.dashboards
import reports
import runlog
from environments import atari
from runlog import cudagraphs, evaluation, loading, seeding
from runlog.disk import check_space
from runlog.rows import DamagedRows, MappedRows


@dataclasses.dataclass
class Args:
    # the flags that matter most
    env_id: str = "Breakout"  # a game of ale_py: Breakout or ALE/Breakout-v5
    activation: str = "relu"  # last hidden layer: relu, crational, tanh_hr, identity*silu
    encoder_activation: tuple[str, ...] = ("relu",)  # convolutions: one name for all, or three
    seed: int = 1  # seed of weights, exploration, replay and games
    total_timesteps: int = 10_000_000  # environment steps of all games (4 frames each)
    layer_norm: Literal["channel", "chw", "none"] = "none"  # before activations, over C or CHW
    width: int = 512  # units of the last hidden layer
    learning_rate: float = 1e-4  # Adam's learning rate
    device: str = runlog.option("auto")  # auto (cuda if available), cpu, cuda, cuda:1, ...
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    # experiment
    threads: int = runlog.option(0)  # CPU threads for torch; 0 = torch's default
    env_threads: int = runlog.option(0)  # threads that step the games; 0 = one per core
    compile: bool = runlog.option(True)  # torch.compile the network; --no-compile runs it eagerly
    cudagraphs: bool = runlog.option(True)  # on a GPU, run acting and updates as CUDA graphs
    runs_dir: str = runlog.option("runs")  # folder that contains the run folders
    fresh: bool = runlog.option(False)  # delete an existing run with these flags and start over
    checkpoint_frequency: int = runlog.option(25_000)  # environment steps between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # also save after this many minutes; 0 = never
    keep_replay: bool = runlog.option(False)  # keep the replay buffer on disk when the run ends
    evaluate: bool = runlog.option(False)  # play with the finished agent: video, returns, metrics
    print_network: bool = runlog.option(False)  # print layers and parameter counts, then exit
    # logging
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    # environment
    repeat_action_probability: float = 0.0  # sticky actions; HR: 0, Machado et al.: 0.25
    fire_on_life_loss: bool = True  # press fire after a lost life, overriding the action
    # algorithm; HR's Table 4 except for Adam's epsilon and the biases (docs/dqn_atari.md)
    num_envs: int = 1  # parallel games; must divide or be a multiple of --train-frequency
    buffer_size: int = 1_000_000  # replay capacity in transitions, all games; 7.4 GB of disk
    learning_starts: int = 80_000  # environment steps before the first update
    train_frequency: int = 4  # environment steps between gradient steps
    batch_size: int = 32  # transitions per gradient step
    target_frequency: int = 1_000  # environment steps between target-network updates
    double_q: bool = True  # Double-DQN target (HR, eq. 5); --no-double-q: as in CleanRL
    gamma: float = 0.99  # discount factor
    adam_eps: float = 1e-8  # epsilon of Adam (CleanRL); HR's 1e-5 makes tanh_hr's rank collapse
    start_epsilon: float = 1.0  # fraction of random actions at the start
    final_epsilon: float = 0.1  # fraction of random actions at the end (CleanRL: 0.01)
    exploration_steps: int = 1_000_000  # environment steps over which epsilon falls linearly
    clip_rewards: bool = True  # learn from the sign of the rewards; logged returns are raw
    # network
    bias_init: Literal["uniform", "zero"] = "uniform"  # within +-1/sqrt(fan_in) as in torch, or 0
    redo: bool = False  # recycle dormant neurons (ReDo)
    redo_tau: float = 0.025  # a neuron with at most this score is dormant
    redo_period: int = 1_000  # gradient steps between recyclings
    rational: activations.RationalConfig = dataclasses.field(
        default_factory=activations.RationalConfig
    )
    # evaluation and metrics
    eval_frequency: int = 250_000  # environment steps between evaluations
    num_eval_episodes: int = 8  # whole games per evaluation, in parallel
    eval_epsilon: float = 0.01  # fraction of random actions in evaluations
    log_frequency: int = 10_000  # environment steps between logged losses
    metrics_frequency: int = 100_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # observations for the network metrics
    ntk_frequency: int = 250_000  # environment steps between NTK ranks; 0 = off
    ntk_samples: int = 64  # observations for the NTK; each needs as much memory as the network
    analyse: bool = runlog.option(False)  # contributions of live and dead neurons to Q (HR, Fig. 4)


def make_games(args: Args, num_envs: int, **options) -> atari.AtariGames:
    """Parallel games; options: further options of AtariGames."""
    return atari.AtariGames(
        args.env_id,
        num_envs,
        repeat_action_probability=args.repeat_action_probability,
        fire_on_life_loss=args.fire_on_life_loss,
        num_threads=args.env_threads,
        **options,
    )


# ---- network and loss --------------------------------------------------------------------------


class QNetwork(nn.Module):
    """Nature CNN (Mnih et al. 2015): observations (n, 4, 84, 84) uint8 -> Q (n, num_actions)."""

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        encoder = args.encoder_activation
        if len(encoder) == 1:
            encoder = encoder * 3
        seed = functools.partial(seeding.derive_seed, args.seed)
        start = {"init": activations.fan_in_uniform, "bias_init": args.bias_init}
        shared = {} if args.rational.share_across_layers else None
        options = {"rational": args.rational, "shared": shared, **start}

        conv = functools.partial(activations.conv, layer_norm=args.layer_norm, **options)
        self.conv1 = conv(4, 32, 8, encoder[0], stride=4, out_size=(20, 20), seeds=seed("conv1"))
        width = self.conv1.width
        self.conv2 = conv(width, 64, 4, encoder[1], stride=2, out_size=(9, 9), seeds=seed("conv2"))
        width = self.conv2.width
        self.conv3 = conv(width, 64, 3, encoder[2], stride=1, out_size=(7, 7), seeds=seed("conv3"))
        self.fc = activations.dense(
            self.conv3.width * 7 * 7,
            args.width,
            args.activation,
            layer_norm=args.layer_norm != "none",
            seeds=seed("fc"),
            **options,
        )
        self.q = activations.Linear(self.fc.width, num_actions, seeds=seed("q"), **start)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(obs / 255.0)))
        return self.q(self.fc(x.flatten(1)))


class Batch(NamedTuple):
    """Transitions from the replay buffer."""

    obs: torch.Tensor  # (n, 4, 84, 84) uint8
    next_obs: torch.Tensor  # (n, 4, 84, 84) uint8
    actions: torch.Tensor  # (n,) int64
    rewards: torch.Tensor  # (n,)
    terminations: torch.Tensor  # (n,) 0 or 1


def dqn_target(
    rewards: torch.Tensor,
    terminations: torch.Tensor,
    next_q_online: torch.Tensor,
    next_q_target: torch.Tensor,
    gamma: float,
    double_q: bool,
) -> torch.Tensor:
    """r + gamma (1 - termination) Q'(s', a*), all (n,) except the Q-values (n, num_actions).

    a* is the greedy action of the online network (Double DQN, van Hasselt et al. 2016; HR eq. 5)
    or, without double_q, of the target network Q' itself (Mnih et al. 2015).
    """
    chooses = next_q_online if double_q else next_q_target
    best = chooses.argmax(-1, keepdim=True)
    return rewards + gamma * (1 - terminations) * next_q_target.gather(-1, best).squeeze(-1)


def td_loss(
    q_network: QNetwork, target_network: QNetwork, batch: Batch, args: Args
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean squared error between Q(s, a) and the target, without gradient; mean of Q(s, a))."""
    with torch.no_grad():
        next_q_target = target_network(batch.next_obs)
        next_q_online = q_network(batch.next_obs) if args.double_q else next_q_target
        target = dqn_target(
            batch.rewards,
            batch.terminations,
            next_q_online,
            next_q_target,
            args.gamma,
            args.double_q,
        )
    q_values = q_network(batch.obs).gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    return (q_values - target).square().mean(), q_values.detach().mean()


@dataclasses.dataclass
class Learner:
    """What a gradient step uses: the networks, the optimiser, and the (compiled) loss."""

    q_network: QNetwork
    target_network: QNetwork
    optimizer: torch.optim.Optimizer
    td_loss: Callable


def gradient_step(
    learner: Learner, totals: torch.Tensor, args: Args, *columns: torch.Tensor
) -> None:
    """One gradient step on the columns of a Batch, in place; adds the loss and the mean Q(s, a) to
    totals (2,). Does not wait for the GPU."""
    learner.optimizer.zero_grad()
    networks = (learner.q_network, learner.target_network)
    with activations.observing(learner.q_network):
        loss, q_mean = learner.td_loss(*networks, Batch(*columns), args)
    loss.backward()
    learner.optimizer.step()
    activations.step_constraints(learner.q_network, updates_due(args, 0, args.total_timesteps))
    totals += torch.stack([loss.detach(), q_mean])


@torch.no_grad()
def act(
    q_network: QNetwork,
    epsilon: float,
    generator: torch.Generator,
    obs: np.ndarray,
    q_values: Callable | None = None,
) -> np.ndarray:
    """Epsilon-greedy actions (n,) for observations (n, 4, 84, 84). q_values: the callable to use in
    place of q_network (compiled, or a CUDA graph)."""
    num_actions = len(q_network.q.bias)
    device = q_network.q.bias.device
    draws = torch.rand(2, len(obs), generator=generator)
    explores = draws[0] < epsilon
    actions = (draws[1] * num_actions).long()
    if not explores.all():
        obs_on_device = torch.from_numpy(obs).to(device)
        # a compiled module has no truth value: `q_values or q_network` fails
        call = q_network if q_values is None else q_values
        greedy = call(obs_on_device).argmax(-1).cpu()
        actions = torch.where(explores, actions, greedy)
    return actions.numpy()


# ---- schedules ---------------------------------------------------------------------------------


def linear_schedule(start: float, end: float, fraction: float) -> float:
    """From start to end as fraction goes from 0 to 1, then constant."""
    return start + (end - start) * min(fraction, 1.0)


def has_crossed(before: int, step: int, period: int) -> bool:
    """Whether a multiple of period lies in (before, step]; never for period 0."""
    return period > 0 and step // period > before // period


def epsilon_at(args: Args, step: int) -> float:
    """The fraction of random actions after `step` environment steps."""
    fraction = step / args.exploration_steps
    return linear_schedule(args.start_epsilon, args.final_epsilon, fraction)


def updates_due(args: Args, before: int, step: int) -> int:
    """Number of gradient steps after the environment steps before + 1 ... step: one for each
    multiple of --train-frequency among them, beyond --learning-starts."""
    first = max(before, args.learning_starts)
    return max(step // args.train_frequency - first // args.train_frequency, 0)


def target_is_due(args: Args, before: int, step: int) -> bool:
    """Whether the target network is copied after the environment steps before + 1 ... step."""
    return has_crossed(before, step, args.target_frequency) and step > args.learning_starts


# ---- replay ------------------------------------------------------------------------------------

ROW = np.dtype(  # one game at one time step
    [
        ("frame", np.uint8, (84, 84)),
        ("action", np.uint8),
        ("reward", np.float32),
        ("termination", np.bool_),
        ("over", np.bool_),
        ("cut", np.bool_),
    ]
)
NO_SPACE = (
    "free some space, or give a --runs-dir on a larger disk or a smaller --buffer-size or "
    "--checkpoint-frequency"
)
DAMAGED = (
    "restore the right file, or move the folder away, which keeps its rows and networks "
    "(--fresh would delete them), then start the same command again"
)


class ReplayBuffer:
    """Single frames on disk, mapped into memory; stacks of 4 are assembled when sampled.

    Row t of a game: the newest frame of the observation at t, the action taken there, its reward
    (sign or raw), whether it terminated the learner's episode, whether the game ended with it
    ("over"), and whether its successor is not stored ("cut"), which happens at a time limit or when
    a run resumes. Cut transitions are never sampled. A stack has zeros before a game's first frame,
    as in ale_py.

    The two newest checkpoints must find their rows whenever the process dies: `spare` transitions
    are kept beyond the capacity, so at most that many may be added between one checkpoint and the
    next but one. `checksum` combines the checksums of all rows that may be sampled into one number,
    which a checkpoint stores.

    num_added, checksum: of the checkpoint to resume from; num_added 0 starts a new file. Without a
    checksum (None) the rows are not verified. Raises UserError if the disk is too small,
    DamagedRows if these are not the rows of the checkpoint.
    """

    def __init__(
        self,
        path: Path,
        capacity: int,
        spare: int,
        num_envs: int,
        num_added: int = 0,
        checksum: int | None = None,
    ):
        self.path = path
        self.num_envs = num_envs
        self.num_added = num_added
        self.capacity = divide_up(capacity, num_envs)
        self.num_rows = self.count_rows(capacity, spare, num_envs)
        shape = (self.num_rows, num_envs)
        keep = num_added > 0  # otherwise from a run that died before its first checkpoint
        self.file = MappedRows(path, ROW, shape, keep=keep, no_space=NO_SPACE, damaged=DAMAGED)
        self.rows = self.file.array
        if keep:
            self.verify(checksum)
            self.lose_running_games()

    @staticmethod
    def count_rows(capacity: int, spare: int, num_envs: int) -> int:
        """Number of rows in the file; a stack reaches back 3 rows, and 5 are for rounding."""
        return divide_up(capacity, num_envs) + divide_up(spare, num_envs) + 8

    # -- adding and sampling --

    def add(
        self,
        obs: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        game_overs: np.ndarray,
    ) -> None:
        """One step of every game; obs: the observations in which the actions were taken."""
        number = self.num_added % self.num_rows
        row = self.rows[number]
        row["frame"] = obs[:, -1]
        row["action"] = actions
        row["reward"] = rewards
        row["termination"] = terminations
        row["over"] = game_overs
        row["cut"] = truncations & ~terminations
        self.file.update_checksum(number)
        self.num_added += 1

    def sample(self, size: int, generator: torch.Generator, device: torch.device) -> Batch:
        """Uniformly sampled transitions, except those whose successor is not stored."""
        oldest = max(self.num_added - self.capacity, 0)
        low = oldest * self.num_envs
        high = (self.num_added - 1) * self.num_envs  # the newest row has no successor yet
        chosen = np.empty(0, np.int64)
        while len(chosen) < size:
            drawn = torch.randint(low, high, (size - len(chosen),), generator=generator).numpy()
            is_cut = self.rows["cut"][drawn // self.num_envs % self.num_rows, drawn % self.num_envs]
            chosen = np.append(chosen, drawn[~is_cut])

        times = chosen // self.num_envs
        envs = chosen % self.num_envs
        index = (times % self.num_rows, envs)
        obs, next_obs = self.stacks(times, envs)
        actions = self.rows["action"][index].astype(np.int64)
        rewards = self.rows["reward"][index]
        terminations = self.rows["termination"][index].astype(np.float32)
        columns = (obs, next_obs, actions, rewards, terminations)
        return Batch(*(torch.from_numpy(column).to(device) for column in columns))

    def stacks(self, times: np.ndarray, envs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The observations at these times and one step later, (n, 4, 84, 84) uint8 each."""
        times = times[:, None] + np.arange(-3, 2)  # three frames back to one ahead
        envs = envs[:, None]
        rows = times % self.num_rows
        frames = self.rows["frame"][rows, envs]
        ends = self.rows["over"][rows[:, :-1], envs] | (times[:, :-1] < 0)
        obs = stack_of_one_game(frames[:, :4], ends[:, :3])
        next_obs = stack_of_one_game(frames[:, 1:], ends[:, 1:])
        return obs, next_obs

    # -- what a checkpoint relies on --

    def counted(self) -> np.ndarray:
        """Indices of the rows that may still be sampled and of the 3 before them, oldest first."""
        oldest = max(self.num_added - self.capacity - 3, 0)
        return np.arange(oldest, self.num_added) % self.num_rows

    def checksum(self) -> int:
        """CRC-32 of the rows of a checkpoint saved now. The newest row is counted as marked by
        `lose_running_games`, whether or not it has been marked by the time of a comparison."""
        counted = self.counted()
        newest = self.rows[counted[-1]].copy()
        newest["over"] = True
        newest["cut"] = True
        checksums = self.file.checksums[counted]
        checksums[-1] = zlib.crc32(newest)
        return zlib.crc32(checksums)

    def verify(self, expected: int | None) -> None:
        """Reads the checkpoint's rows and compares their checksum. Raises DamagedRows."""
        counted = self.counted()
        first = counted[0]
        end = counted[-1] + 1
        megabytes = len(counted) * self.file.row_size / 1e6
        if megabytes > 1_000:  # takes seconds, or a minute on a slow disk
            print(f"verifying {megabytes:,.0f} MB of {self.path}", flush=True)
        if first < end:
            self.file.read_checksums(first, end)
        else:  # they wrap around the end of the file
            self.file.read_checksums(first, self.num_rows)
            self.file.read_checksums(0, end)

        if expected is None:
            problem = "was saved by an older version, without a checksum, and is not verified"
            runlog.warn(f"{self.path} {problem}")
        elif self.checksum() != expected:
            problem = "does not hold the rows of the checkpoint: it is damaged, or of another run"
            raise DamagedRows(f"{self.path} {problem}", DAMAGED)

    def lose_running_games(self) -> None:
        """Marks the newest row, since its successor will belong to a new game."""
        newest = (self.num_added - 1) % self.num_rows
        self.rows["over"][newest] = True
        self.rows["cut"][newest] = True
        self.file.update_checksum(newest)

    def flush(self) -> None:
        """Waits until the rows are on disk; after that a checkpoint may refer to them."""
        self.file.flush()


def divide_up(number: int, by: int) -> int:
    return -(-number // by)


def stack_of_one_game(frames: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A copy of stacks (n, 4, 84, 84) with zeros in place of the frames of earlier games.

    ends: (n, 3) bool, whether a game ended between each frame and the next one.
    """
    stacks = frames.copy()
    is_earlier = np.logical_or.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    stacks[:, :3][is_earlier] = 0
    return stacks


def replay_sizes(args: Args, checkpoint_frequency: int) -> tuple[int, int, int]:
    """(capacity, spare, num_envs) of the ReplayBuffer for this checkpoint frequency."""
    capacity = min(args.buffer_size, args.total_timesteps)
    return capacity, 2 * checkpoint_frequency, args.num_envs


def check_disk(args: Args, run: runlog.Run) -> None:
    """Raises UserError if the replay of a new run does not fit on the disk. Creates nothing."""
    if run.status() != "new":
        return
    capacity, spare, num_envs = replay_sizes(args, args.checkpoint_frequency)
    num_rows = ReplayBuffer.count_rows(capacity, spare, num_envs)
    size = num_rows * num_envs * ROW.itemsize
    flag = f"--buffer-size {args.buffer_size}"
    if spare > capacity:  # the rows between checkpoints need more space than the replay itself
        flag = f"--checkpoint-frequency {args.checkpoint_frequency}"
    check_space(run.folder / "replay.dat", size, NO_SPACE, flag=flag)


def open_replay(args: Args, run: runlog.Batch) -> ReplayBuffer:
    """The replay buffer of the newest checkpoint whose rows are intact, from which the run then
    starts; an empty one before the first checkpoint.

    Raises UserError if neither the newest checkpoint nor the one before has an intact replay. Both
    checkpoints are kept in that case.
    """
    (only,) = run.runs
    path = only.folder / "replay.dat"
    problems = []
    for step in only.checkpoint_steps():
        if step == 0:  # killed during its first save, which a damaged replay makes useless
            break
        state = only.read_state(step)
        sizes = replay_sizes(args, state["ring"])
        checksum = state.get("replay_checksum")
        try:
            buffer = ReplayBuffer(path, *sizes, state["num_added"], checksum)
        except DamagedRows as problem:
            problems.append(problem)
            continue
        for problem in problems:
            runlog.warn(f"{problem.reason}; using the checkpoint before, step {step}")
        run.start_from(step)
        return buffer

    if problems and 0 not in only.checkpoint_steps():
        raise problems[0]
    run.start_from(0)
    return ReplayBuffer(path, *replay_sizes(args, args.checkpoint_frequency))


# ---- measures ----------------------------------------------------------------------------------


@torch.no_grad()
def recycle_dormant(
    network: QNetwork,
    optimizer: torch.optim.Optimizer,
    obs: torch.Tensor,
    tau: float,
    generator: torch.Generator,
) -> float:
    """ReDo (Sokar et al. 2023): recycles the dormant neurons of every hidden layer; returns their
    fraction of all neurons."""
    names = ("conv1", "conv2", "conv3", "fc")
    with reports.record_layers(network) as records:
        network(obs)
    dormant = []
    for name in names:
        outputs = metrics.channel_samples(records[name].output)
        is_dormant, _ = metrics.dormant_neurons(outputs, tau)
        dormant.append(is_dormant)
    return optimizers.recycle_layers(
        layers=[network.get_submodule(name) for name in names],
        heads=[network.q],
        dormant=dormant,
        optimizer=optimizer,
        init=activations.fan_in_uniform,
        generators=generator,
    )


@torch.no_grad()
def q_split(network: QNetwork, obs: torch.Tensor) -> dict[str, float]:
    """Contributions of dead neurons, live neurons and the bias of the last layer to Q (HR, Theorem
    4.1 and Fig. 4), averaged over observations and actions. Dead neurons are constant, so they act
    as a hidden bias."""
    with reports.record_layers(network) as records:
        network(obs)
    hidden = records["fc"].output
    is_dead, _ = metrics.dead_neurons_kde(hidden)
    of_dead, of_live = metrics.hidden_bias(hidden, is_dead, network.q.weight.mT)
    return {
        "q_split/dead": of_dead.mean().item(),
        "q_split/live": of_live.mean().item(),
        "q_split/bias": network.q.bias.mean().item(),
    }


def measure_network(
    args: Args,
    run: runlog.Batch,
    step: int,
    q_network: QNetwork,
    target_network: QNetwork,
    batch: Batch,
) -> None:
    """Logs the network's metrics on a batch and, with --analyse, the contributions to Q."""

    def loss_of(*columns: torch.Tensor) -> torch.Tensor:
        loss, _ = td_loss(q_network, target_network, Batch(*columns), args)
        return loss

    gradients = metrics.named_gradients(q_network, loss_of, batch, 256)
    report = reports.network_report(
        q_network, (batch.obs,), gradients, 0, max_samples=args.metrics_samples
    )
    run.log_report(step, "network/q", report)
    if args.analyse:
        run.log(step, q_split(q_network, batch.obs))


def measure_ntk(run: runlog.Batch, step: int, q_network: QNetwork, obs: torch.Tensor) -> None:
    """Logs the ranks of the neural tangent kernel of the summed Q-values."""
    ranks = metrics.ntk_rank(q_network, (obs,))
    run.log_report(step, "network/q", {f"ntk_{name}": rank for name, rank in ranks.items()})


def evaluate(args: Args, q_network: QNetwork, index: int) -> dict[str, float]:
    """Mean return of whole games of the evaluation policy; the same index plays the same games."""
    seed = seeding.derive_seed(args.seed, "eval", index)
    generator = seeding.make_generator(seed, "act")
    policy = functools.partial(act, q_network, args.eval_epsilon, generator)
    make = functools.partial(make_games, args)
    returns = atari.play_games(make, policy, args.num_eval_episodes, seed)
    return {"eval/episodic_return": float(np.mean(returns))}


# ---- flags -------------------------------------------------------------------------------------


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the largest memory users, by the flags that set them: (on the device, on the host).
    The replay buffer is on disk."""
    network = atari.learner_bytes(
        args.encoder_activation, args.activation, args.width, args.layer_norm, atari.MAX_ACTIONS
    )
    of_transition = atari.OBSERVATION_BYTES + network.observation
    transient = {"batch_size": args.batch_size * of_transition}
    if args.metrics_frequency or args.redo:
        transient["metrics_samples"] = args.metrics_samples * of_transition
    if args.ntk_frequency:
        transient["ntk_samples width"] = args.ntk_samples * network.ntk_sample
    largest = max(transient, key=transient.get)  # allocated one at a time
    of_networks = network.training + network.parameters  # the target network is not trained
    on_device = {"width": of_networks, largest: transient[largest]}
    on_host = {
        "num_envs": args.num_envs * atari.GAME_BYTES,
        "num_eval_episodes": args.num_eval_episodes * atari.GAME_BYTES,
    }
    return on_device, on_host


def check_updates(args: Args) -> None:
    """Raises UserError if the run would end before its first update."""
    last_step = args.total_timesteps // args.num_envs * args.num_envs
    if updates_due(args, 0, last_step) > 0:
        return
    period = max(args.train_frequency, args.num_envs)  # one is a multiple of the other
    first = (args.learning_starts // args.train_frequency + 1) * args.train_frequency
    first = divide_up(first, args.num_envs) * args.num_envs
    raise runlog.UserError(
        f"--total-timesteps {args.total_timesteps}: the first update is at step {first} "
        f"(--learning-starts {args.learning_starts}, one every {period} steps); "
        "raise it, or lower --learning-starts"
    )


def check_settings(args: Args) -> None:
    """Raises UserError (flag, value, remedy) for values that cannot work on any machine. A sweep
    calls this before it starts anything."""
    check = functools.partial(runlog.check_range, args)
    check("[0, inf)", "seed threads env_threads metrics_frequency ntk_frequency")
    check("[0, inf)", "checkpoint_minutes redo_tau")
    check("[1, inf)", "num_envs train_frequency batch_size target_frequency width redo_period")
    check("[1, inf)", "checkpoint_frequency eval_frequency num_eval_episodes log_frequency")
    check(f"[{args.num_envs}, inf)", "total_timesteps")
    # the newest row is not sampled, and neither is the one before a resume
    check(f"[{3 * args.num_envs}, inf)", "buffer_size learning_starts")
    check("[2, inf)", "metrics_samples ntk_samples")
    check("(0, inf)", "learning_rate adam_eps exploration_steps")
    check("[0, 1]", "repeat_action_probability gamma start_epsilon final_epsilon eval_epsilon")
    period = args.train_frequency
    if period % args.num_envs and args.num_envs % period:
        problem = f"must divide --train-frequency {period} or be a multiple of it"
        raise runlog.UserError(f"--num-envs {args.num_envs}: {problem}")
    check_updates(args)
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        activations.check_encoder(args.encoder_activation, args.rational)
        activations.check_schedule([args.activation, *args.encoder_activation], args.rational)


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created; returns args with the
    plain name of the game."""
    check_settings(args)
    runlog.check_flags(args)
    device = runlog.find_device(args.device)
    if not args.evaluate:
        runlog.check_memory(args, device, *big_tensors(args))
    name, _ = atari.atari_game(args.env_id)
    return dataclasses.replace(args, env_id=name)


# ---- training ----------------------------------------------------------------------------------


def train(args: Args, run: runlog.Batch) -> None:
    """Trains one seed from its newest checkpoint, or from the beginning. A resumed run starts new
    games in place of those under way."""
    device = runlog.find_device(args.device)
    games = make_games(args, args.num_envs)
    q_network = QNetwork(games.num_actions, args)
    target_network = QNetwork(games.num_actions, args)  # equal at first
    for network in (q_network, target_network):
        network.to(device, memory_format=torch.channels_last)
    groups = optimizers.parameter_groups(q_network, args.learning_rate, args.rational)
    optimizer = torch.optim.AdamW(groups, eps=args.adam_eps, fused=True)
    generators = {
        "act": seeding.make_generator(args.seed, "act"),
        "update": seeding.make_generator(args.seed, "update"),
        "metrics": seeding.make_generator(args.seed, "metrics"),
        "redo": seeding.make_generator(args.seed, "redo"),
    }
    num_updates = 0
    logged_updates = 0  # num_updates when losses were last logged
    totals = torch.zeros(2, device=device)  # sums of the loss and of Q since then
    last_eval = {}
    recent_returns = []  # of training, since the last line on the terminal

    # resume
    buffer = open_replay(args, run)
    state = run.load()
    start = run.start
    ring = args.checkpoint_frequency  # checkpoint frequency that the replay file is sized for
    if state is not None:
        q_network.load_state_dict(state["q_network"])
        target_network.load_state_dict(state["target_network"])
        optimizer.load_state_dict(state["optimizer"])
        seeding.set_states(generators, state["generators"])
        num_updates = state["num_updates"]
        logged_updates = state["logged_updates"]
        totals = state["totals"].to(device)
        last_eval = state["last_eval"]
        ring = state["ring"]
    saved_step = start

    is_graphed = args.cudagraphs and cudagraphs.can_run_on(device)
    optimizers.set_capturable(optimizer, is_graphed, device)
    compiled = functools.partial(torch.compile, dynamic=False, disable=not args.compile)
    learner = Learner(q_network, target_network, optimizer, compiled(td_loss))
    q_values = compiled(q_network)
    update = functools.partial(gradient_step, learner, totals, args)
    if is_graphed:
        q_values = cudagraphs.graphed(q_values)
        update = cudagraphs.graphed(update)
    label = f"{args.env_id} {args.activation}"
    first_update = max(start, args.learning_starts) + args.train_frequency
    progress = runlog.Progress(start, args.total_timesteps, label, first_update)
    run.save_times.frequency = min(ring, args.checkpoint_frequency)
    obs = games.reset(args.seed, "games", start)
    for step in range(start + args.num_envs, args.total_timesteps + 1, args.num_envs):
        before = step - args.num_envs
        at_end = step + args.num_envs > args.total_timesteps
        reached = args.total_timesteps if at_end else step
        is_due = functools.partial(has_crossed, before, reached)

        # act
        epsilon = epsilon_at(args, before)
        actions = act(q_network, epsilon, generators["act"], obs, q_values)
        played = games.step(actions)
        for game in played.games:
            row = {"charts/episodic_return": game.total, "charts/episodic_length": game.length}
            run.log(step, row)
            recent_returns.append(game.total)

        # store
        buffer.add(
            obs=obs,
            actions=actions,
            rewards=np.sign(played.rewards) if args.clip_rewards else played.rewards,
            terminations=played.terminations,
            truncations=played.truncations,
            game_overs=played.game_overs,
        )
        obs = played.obs

        # measure the network, before the updates
        if step >= args.learning_starts:
            paused = time.monotonic()
            if is_due(args.metrics_frequency):
                batch = buffer.sample(args.metrics_samples, generators["metrics"], device)
                measure_network(args, run, step, q_network, target_network, batch)
            if is_due(args.ntk_frequency):
                generator = seeding.make_generator(args.seed, "ntk", step)
                batch = buffer.sample(args.ntk_samples, generator, device)
                measure_ntk(run, step, q_network, batch.obs)
            progress.skip(time.monotonic() - paused)

        # learn
        num_due = updates_due(args, before, step)
        for _ in range(num_due):
            batch = buffer.sample(args.batch_size, generators["update"], device)
            update(*batch)
            num_updates += 1
            if args.redo and num_updates % args.redo_period == 0:
                batch = buffer.sample(args.metrics_samples, generators["redo"], device)
                recycled = recycle_dormant(
                    q_network, optimizer, batch.obs, args.redo_tau, generators["redo"]
                )
                run.log(step, {"redo/recycled_share": recycled})
        if target_is_due(args, before, step):
            target_network.load_state_dict(q_network.state_dict())
        if num_due:
            run.note_losses(step, {"td_loss": totals[0]})  # once not finite, the sum stays so

        # stop if diverged
        is_checked = is_due(args.log_frequency) or is_due(args.eval_frequency) or at_end
        if is_checked and any(run.diverged()):
            run.log(args.total_timesteps, last_eval)  # carried forward
            break

        # log
        if is_due(args.log_frequency):
            row = {"charts/epsilon": epsilon, "perf/sps": progress.speed(step)}
            if num_updates > logged_updates:
                loss_mean, q_mean = (totals / (num_updates - logged_updates)).tolist()
                row["losses/td_loss"] = loss_mean
                row["losses/q_mean"] = q_mean
                logged_updates = num_updates
                totals.zero_()
            run.log(step, row)

        # evaluate
        if is_due(args.eval_frequency):
            paused = time.monotonic()
            index = reached // args.eval_frequency
            last_eval = evaluate(args, q_network, index)
            run.log(step, last_eval)
            recent_returns = []
            progress.note_means(step, [last_eval], list(last_eval))
            progress.skip(time.monotonic() - paused)
        if at_end:
            progress.note_end(step, recent_returns)

        # save
        if run.save_is_due(step, at_end) or step - saved_step >= ring:
            buffer.flush()
            state = {
                "q_network": q_network.state_dict(),
                "target_network": target_network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generators": seeding.get_states(generators),
                "num_updates": num_updates,
                "logged_updates": logged_updates,
                "totals": totals,
                "last_eval": last_eval,
                "num_added": buffer.num_added,
                "ring": ring,
                "replay_checksum": buffer.checksum(),
            }
            run.save(step, state)
            saved_step = step
            if run.save_is_regular:
                run.draw(step, plots.draw_run)
        progress.update(step)

    run.finish(keep_replay=args.keep_replay)
    progress.close()


# ---- after the training --------------------------------------------------------------------------


def load_agent(folder: str | Path, device: str = "cpu") -> QNetwork:
    """The Q-network of a run's newest checkpoint, finished or not, as `--evaluate` plays it.

    It takes observations (n, 4, 84, 84) uint8 to Q-values (n, num_actions). The target network is
    in `runlog.load(folder).state["target_network"]`. Raises UserError like `runlog.load`, and if
    there is no checkpoint yet.
    """
    run = runlog.load(folder, Args)
    num_actions = len(loading.weights_of(run, "q_network")["q.bias"])
    with runlog.value_errors_are_user_errors():
        q_network = QNetwork(num_actions, run.config)
    loading.restore(q_network, run, "q_network")
    return q_network.to(runlog.find_device(device))


def evaluate_finished(args: Args, run: runlog.Run) -> None:
    """--evaluate: plays whole games with the last checkpoint, films the first one, and measures the
    network on the observations."""
    step = evaluation.finished_step(run)
    make = functools.partial(make_games, args)
    q_network = load_agent(run.folder)
    generator = seeding.make_generator(args.seed, "play")
    seen = metrics.Reservoir(args.metrics_samples, args.seed)
    screens = []

    def policy(obs: np.ndarray) -> np.ndarray:
        seen.add(torch.from_numpy(obs))
        return act(q_network, args.eval_epsilon, generator, obs)

    returns = atari.play_games(make, policy, args.num_eval_episodes, args.seed, screens)
    obs = seen.sample()
    report = reports.network_report(q_network, (obs,), {}, 0, max_samples=args.metrics_samples)
    split = q_split(q_network, obs)
    evaluation.record_evaluation(
        run, step, returns, screens, "network/q", report, plots.draw_run, **split
    )


def runs_of(args: Args) -> list[runlog.Run]:
    """The run of these flags. Raises UserError for an unknown game."""
    name, _ = atari.atari_game(args.env_id)
    return runlog.seed_runs(args, "dqn_atari", env_id=name)


def dashboard(args: Args) -> dict:
    """The TensorBoard and W&B panels for these runs (docs/dashboards.md)."""
    panels = [
        "evaluation return",
        "training return",
        "mean value on the batch",
        "loss of the values",
        "Q from dead neurons, live neurons, bias",
        "weight norm of each network",
        "gradient norm of each network",
        "rank of the tangent kernel",
        "neurons recycled by ReDo",
        "gradient norm of the coefficients",
        "environment steps per second",
    ]
    return plots.dashboards.sections(panels, ("q",), "fc1")


def main(args: Args) -> None:
    args = validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.print_network:
        reports.print_network(QNetwork(make_games(args, 1).num_actions, args))
        return
    runs = runs_of(args)
    if args.evaluate:
        evaluate_finished(args, runs[0])
        return
    check_disk(args, runs[0])
    with runlog.open_batches(
        runs, args, sections=dashboard(args), seed_axis=False, keep_freed_memory=True
    ) as batches:
        for batch in batches:
            train(args, batch)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
