"""Deep Q-Network on Atari (DQN, Mnih et al. 2015), for the Hadamard representations of HR (2406.09079, Table 4).

One game, a replay of single frames, a Double-DQN target (HR, eq. 5). The last hidden layer carries --activation, the
convolutions --encoder-activation. The same command again resumes or says "finished".

    python dqn_atari.py --env-id Breakout --activation tanh_hr --analyse

Results, implementation details, differences from CleanRL: docs/dqn_atari.md.
"""

import dataclasses
import functools
import math
import time
import zlib
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn

import activations
import metrics
import optimizers
import runlog


@dataclasses.dataclass
class Args:
    seed: int = 1  # of weights, exploration, replay and games
    total_timesteps: int = 10_000_000  # environment steps of all training games together; frames are 4 times as many
    device: str = runlog.option("auto")  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int = runlog.option(0)  # CPU threads of torch; 0 = torch's choice
    env_threads: int = runlog.option(0)  # threads that step the games; 0 = as many as cores
    compile: bool = runlog.option(True)  # torch.compile the network; --no-compile runs it eagerly
    runs_dir: str = runlog.option("runs")  # where the run folders are
    fresh: bool = runlog.option(False)  # delete an existing run of these flags and start anew
    checkpoint_frequency: int = runlog.option(25_000)  # environment steps between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # most minutes between checkpoints; 0 = any
    keep_replay: bool = runlog.option(False)  # keep the replay on disk once the run has finished
    evaluate: bool = runlog.option(False)  # play with the finished run, film and measure it
    print_network: bool = runlog.option(False)  # print the layers and their parameters, and stop
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    env_id: str = "Breakout"  # a game of ale_py: Breakout or ALE/Breakout-v5
    repeat_action_probability: float = 0.0  # sticky actions; 0 as in HR, 0.25 as in Machado et al. 2018
    fire_on_life_loss: bool = True  # the step after a lost life presses fire, whatever was chosen
    # algorithm; the defaults are HR's Table 4 but for Adam's epsilon and the biases (docs/dqn_atari.md)
    num_envs: int = 1  # training games side by side; must divide --train-frequency or be a multiple of it
    buffer_size: int = 1_000_000  # replay capacity in transitions, of all games together; 7.4 GB of disk
    learning_starts: int = 80_000  # environment steps before the first update
    train_frequency: int = 4  # environment steps between gradient steps
    batch_size: int = 32  # transitions per gradient step
    target_frequency: int = 1_000  # environment steps between copies to the target network
    double_q: bool = True  # Double-DQN target (HR, eq. 5); --no-double-q: the greatest target value (CleanRL)
    gamma: float = 0.99  # discount factor
    learning_rate: float = 1e-4  # Adam's learning rate
    adam_eps: float = 1e-8  # epsilon of Adam, as CleanRL's; with HR's printed 1e-5 the rank of tanh_hr collapses
    start_epsilon: float = 1.0  # fraction of random actions at the start
    final_epsilon: float = 0.1  # fraction of random actions at the end (CleanRL: 0.01)
    exploration_steps: int = 1_000_000  # environment steps in which epsilon falls linearly
    clip_rewards: bool = True  # learn from the sign of the rewards; returns are logged raw
    # network
    bias_init: Literal["uniform", "zero"] = "uniform"  # initial biases: uniform in +-1/sqrt(fan_in) as torch's, or 0
    activation: str = "relu"  # name or expression of the last hidden layer: relu, crational, tanh_hr, identity*silu
    encoder_activation: tuple[str, ...] = ("relu",)  # of the convolutions: one for all, or three
    width: int = 512  # units of the last hidden layer
    layer_norm: Literal["channel", "chw", "none"] = "none"  # before each activation; over channels or C, H, W
    redo: bool = False  # recycle dormant neurons (ReDo)
    redo_tau: float = 0.025  # score up to which a neuron is dormant
    redo_period: int = 1_000  # gradient steps between recyclings
    rational: activations.RationalConfig = dataclasses.field(default_factory=activations.RationalConfig)
    # evaluation and metrics
    eval_frequency: int = 250_000  # environment steps between evaluations
    num_eval_episodes: int = 8  # whole games of an evaluation, side by side
    eval_epsilon: float = 0.01  # fraction of random actions in evaluations
    log_frequency: int = 10_000  # environment steps between rows of losses
    metrics_frequency: int = 100_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # observations that the network metrics look at
    ntk_frequency: int = 250_000  # environment steps between ranks of the neural tangent kernel; 0 = off
    ntk_samples: int = 64  # observations that the kernel is taken on; each needs the memory of the network
    analyse: bool = runlog.option(False)  # log what live and dead neurons add to Q (HR, Fig. 4)


# ---- games: this part is the same in dqn_atari.py, ppo_atari.py and pqn_atari.py -------------------------------------


def atari_game(env_id: str) -> tuple[str, str]:
    """(name, rom) of a game: ("Breakout", "breakout") for Breakout and ALE/Breakout-v5. Raises UserError: unknown."""
    import ale_py  # noqa: F401  (registers the ids)

    specs = {name: spec for name, spec in gym.registry.items() if name.startswith("ALE/") and name.endswith("-v5")}
    roms = {name[4:-3]: spec.kwargs["game"] for name, spec in specs.items()}
    name = env_id.removeprefix("ALE/").removesuffix("-v5")
    runlog.check_choice("--env-id", name, roms)
    return name, roms[name]


class AtariGames:
    """Games in ale_py's vector environment: 4 frames per step, the greatest of the last two, grey, 84x84, 4 stacked.

    A lost life is a termination for the learner, and the game goes on: with --fire-on-life-loss its next step presses
    fire, whatever was chosen, in games that have that button. Rewards are raw; `step` tells each whole game.
    """

    def __init__(self, args: Args, num_envs: int, **kwargs):
        from ale_py.vector_env import AtariVectorEnv

        kwargs = {"repeat_action_probability": args.repeat_action_probability, "num_threads": args.env_threads} | kwargs
        kwargs |= {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP, "reward_clipping": False}
        self.envs = AtariVectorEnv(atari_game(args.env_id)[1], num_envs, life_loss_info=True, **kwargs)
        buttons = [action.name for action in self.envs.ale.get_action_set()]
        self.fire = buttons.index("FIRE") if args.fire_on_life_loss and "FIRE" in buttons else None
        self.num_envs = num_envs
        self.num_actions = len(buttons)

    def reset(self, seed: int, *keys: str | int) -> np.ndarray:
        """New games, seeded by (seed, keys); observations (num_envs, 4, 84, 84) uint8."""
        seeds = np.array([runlog.derive_seed(seed, *keys, i) % 2**31 for i in range(self.num_envs)])
        obs, info = self.envs.reset(seed=seeds)
        self.frames = info["episode_frame_number"]
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs)
        self.lost_life = np.zeros(self.num_envs, bool)
        return obs

    def step(self, actions: np.ndarray) -> tuple:
        """(obs, rewards, terminations, truncations, real_next_obs, games); games: (env, return, length) of each one
        that ended. Where one did, obs is the first of the next, and real_next_obs the last of the one that ended."""
        actions = actions if self.fire is None else np.where(self.lost_life, self.fire, actions)
        obs, rewards, terminations, truncations, info = self.envs.step(actions)
        over = info["episode_frame_number"] < self.frames  # ale_py's final_obs is right only where a game ended
        self.frames = info["episode_frame_number"]
        self.returns = self.returns + rewards
        self.lengths = self.lengths + 1
        real_next_obs = np.where(over[:, None, None, None], info["final_obs"], obs) if over.any() else obs
        games = [(int(i), float(self.returns[i]), int(self.lengths[i])) for i in np.flatnonzero(over)]
        self.returns[over] = 0
        self.lengths[over] = 0
        self.lost_life = terminations & ~over
        return obs, rewards, terminations, truncations, real_next_obs, games


def play_games(args: Args, policy, number: int, seed: int, screens: list | None = None) -> list[float]:
    """The raw returns of `number` whole games side by side, the first of each environment, so that short ones count
    no more than long ones. policy: observations -> actions, both numpy. screens: gets every fourth screen of game 0
    (RGB, the first 2,000)."""
    games = AtariGames(args, number)
    colour = None
    obs = games.reset(seed, "play")
    returns = {}
    step = 0
    if screens is not None:  # one more environment plays game 0 again, in colour
        colour = AtariGames(args, 1, img_height=210, img_width=160, stack_num=1, grayscale=False)
        screens.append(colour.reset(seed, "play")[0, -1])
    while len(returns) < number:
        actions = policy(obs)
        obs, *_, ended = games.step(actions)
        if colour is not None and 0 not in returns and len(screens) < 2_000:
            screen = colour.step(actions[:1])[0][0, -1]
            step += 1
            screens += [screen] if step % 4 == 0 else []
        returns = {i: total for i, total, _ in ended} | returns
    return [returns[i] for i in range(number)]


# ---- network ---------------------------------------------------------------------------------------------------------


class QNetwork(nn.Module):
    """Nature CNN (Mnih et al. 2015): observations (n, 4, 84, 84) uint8 -> Q-values (n, num_actions)."""

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        first, second, third = args.encoder_activation * (3 // len(args.encoder_activation))
        seed = functools.partial(runlog.derive_seed, args.seed)
        shared = {} if args.rational.share_across_layers else None
        start = {"init": activations.fan_in_uniform, "bias_init": args.bias_init}
        options = {"rational": args.rational, "shared": shared, **start}
        conv = functools.partial(activations.conv, layer_norm=args.layer_norm, **options)
        self.conv1 = conv(4, 32, 8, first, stride=4, out_size=(20, 20), seeds=seed("conv1"))
        self.conv2 = conv(self.conv1.width, 64, 4, second, stride=2, out_size=(9, 9), seeds=seed("conv2"))
        self.conv3 = conv(self.conv2.width, 64, 3, third, stride=1, out_size=(7, 7), seeds=seed("conv3"))
        norm = args.layer_norm != "none"
        inputs = self.conv3.width * 7 * 7
        self.fc = activations.dense(inputs, args.width, args.activation, layer_norm=norm, seeds=seed("fc"), **options)
        self.q = activations.Linear(self.fc.width, num_actions, seeds=seed("q"), **start)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(obs / 255.0)))
        return self.q(self.fc(x.flatten(1)))


@torch.no_grad()
def recycle_dormant(network: QNetwork, optimizer, obs: torch.Tensor, args: Args, generator: torch.Generator) -> float:
    """ReDo (Sokar et al. 2023): recycles the dormant neurons of every hidden layer; returns their share."""
    layers = [network.conv1, network.conv2, network.conv3, network.fc]
    with metrics.record_layers(network) as records:
        network(obs)
    outputs = [metrics.channel_samples(records[name].output) for name in ("conv1", "conv2", "conv3", "fc")]
    dormant = [metrics.dormant_neurons(x, args.redo_tau)[0] for x in outputs]
    return optimizers.recycle_layers(layers, [network.q], dormant, optimizer, activations.fan_in_uniform, generator)


def dqn_target(rewards, terminations, next_q_online, next_q_target, gamma: float, double_q: bool) -> torch.Tensor:
    """r + gamma (1 - termination) Q'(s', a*), all (batch,) but the Q-values (batch, num_actions).

    a* is the greedy action of the online network (Double DQN, van Hasselt et al. 2016; HR eq. 5) or, without double_q,
    of the target network Q' itself (Mnih et al. 2015).
    """
    best = (next_q_online if double_q else next_q_target).argmax(-1, keepdim=True)
    return rewards + gamma * (1 - terminations) * next_q_target.gather(-1, best).squeeze(-1)


ROW = np.dtype(  # of one game at one time
    [
        ("frame", np.uint8, (84, 84)),
        ("action", np.uint8),
        ("reward", np.float32),
        ("termination", np.bool_),
        ("over", np.bool_),
        ("cut", np.bool_),
    ]
)
DISK = "free some space, or give a --runs-dir on a larger disk or a smaller --buffer-size"
MOVE = (
    "put the right one back, or move the folder away, which keeps its rows and networks (--fresh would delete them), "
    "then start the same command again"
)


class DamagedReplay(runlog.UserError):
    """replay.dat is not what a checkpoint counted; `reason` says why, without what would do."""

    def __init__(self, reason: str):
        super().__init__(f"{reason}; {MOVE}")
        self.reason = reason


class ReplayBuffer:
    """Single frames on disk, (rows, num_envs, 84, 84) uint8, mapped into memory; stacks of 4 are made when sampled.

    Row t of a game: the newest frame of the observation at t, the action taken there, its reward (sign or raw), whether
    it terminated for the learner, and whether the game ended with it. A stack has zeros before a game's first frame, as
    ale_py's has. A transition cut off by a time limit or by a resumption is never sampled: its successor is not stored.

    The newest checkpoint and the one before must find the rows that they counted, whenever the process dies: `spare`
    transitions stay beyond the capacity, so at most that many may be added from one checkpoint to the next but one.
    Of each row a CRC-32 is kept in memory, and `checksum` makes them one number, which a checkpoint keeps.

    num_added, checksum: of a checkpoint to go on from; 0 begins the file anew. Without a checksum (None) the rows are
    not verified. Raises UserError: the disk is too small; DamagedReplay: these are not the rows of the checkpoint.
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
        self.num_added = num_added
        self.capacity = -(-capacity // num_envs)
        self.num_rows = self.count_rows(capacity, spare, num_envs)
        self.checksums = np.zeros(self.num_rows, np.uint32)
        size = self.num_rows * num_envs * ROW.itemsize
        if not num_added:
            path.unlink(missing_ok=True)  # of a run that died before its first checkpoint
        elif not path.exists() or path.stat().st_size < size:
            raise DamagedReplay(f"{path} is missing or too short for the checkpoint")
        runlog.reserve(path, size, DISK)
        self.rows = np.memmap(path, ROW, "r+", shape=(self.num_rows, num_envs))
        if num_added:
            self.verify(checksum)
            self.lose_games_under_way()

    @staticmethod
    def count_rows(capacity: int, spare: int, num_envs: int) -> int:
        """Rows of the file; a stack reaches back by 3 rows, and 5 are for rounding."""
        return -(-capacity // num_envs) + -(-spare // num_envs) + 8

    def counted(self) -> np.ndarray:
        """Where the rows are that may still be sampled, and the 3 before them, oldest first."""
        oldest = max(self.num_added - self.capacity - 3, 0)
        return np.arange(oldest, self.num_added) % self.num_rows

    def checksum(self) -> int:
        """CRC-32 of the rows that a checkpoint counts now. The newest is taken as a resumption marks it: it may or may
        not have been marked by the time this is compared."""
        counted = self.counted()
        newest = self.rows[counted[-1]].copy()
        newest["over"] = True
        newest["cut"] = True
        checksums = self.checksums[counted]
        checksums[-1] = zlib.crc32(newest)
        return zlib.crc32(checksums)

    def verify(self, expected: int | None) -> None:
        """Reads the rows that the checkpoint counted and compares. Raises DamagedReplay."""
        counted = self.counted()
        wrap = int(np.argmin(counted))  # the rows from here on lie at the beginning of the file
        row_size = self.rows[0].nbytes
        megabytes = len(counted) * row_size / 1e6
        if megabytes > 1_000:  # seconds, on a slow disk a minute
            print(f"verifying {megabytes:,.0f} MB of {self.path}", flush=True)
        try:
            for part in (counted[:wrap], counted[wrap:]):
                if len(part):
                    self.checksums[part] = runlog.row_checksums(self.path, row_size, part[0], part[-1] + 1)
        except OSError as error:
            raise DamagedReplay(f"{self.path} cannot be read ({error.strerror})") from error
        if expected is None:
            told = "was saved by an older version, without a checksum, and is not verified"
            runlog.warn(f"{self.path} {told}")
        elif self.checksum() != expected:
            told = "does not hold what the checkpoint counted: it is damaged, or of another run"
            raise DamagedReplay(f"{self.path} {told}")

    def lose_games_under_way(self) -> None:
        """Marks the newest row: its successor will be of a new game."""
        newest = (self.num_added - 1) % self.num_rows
        self.rows[["over", "cut"]][newest] = True
        self.checksums[newest] = zlib.crc32(self.rows[newest])

    def flush(self) -> None:
        """Waits until the rows are on the disk: a checkpoint may count them then. Raises UserError: it cannot write."""
        with runlog.writing(self.path):
            self.rows.flush()

    def add(self, obs, actions, rewards, terminations, truncations, overs) -> None:
        columns = (obs[:, -1], actions, rewards, terminations, overs, truncations & ~terminations)
        row = self.num_added % self.num_rows
        for name, values in zip(self.rows.dtype.names, columns):
            self.rows[row][name] = values
        self.checksums[row] = zlib.crc32(self.rows[row])
        self.num_added += 1

    def stacks(self, times: np.ndarray, envs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The observations at these times and one later, (n, 4, 84, 84) uint8 each."""
        times = times[:, None] + np.arange(-3, 2)
        envs = envs[:, None]
        frames = self.rows["frame"][times % self.num_rows, envs]
        ends = self.rows["over"][times[:, :-1] % self.num_rows, envs] | (times[:, :-1] < 0)
        stacks = frames[:, :4].copy(), frames[:, 1:].copy()
        for first, stack in enumerate(stacks):  # a frame counts if no game ended between it and the newest one
            lost = np.logical_or.accumulate(ends[:, first : first + 3][:, ::-1], axis=1)[:, ::-1]
            stack[:, :3][lost] = 0
        return stacks

    def sample(self, size: int, generator: torch.Generator, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Uniform transitions: obs, next_obs (size, 4, 84, 84) uint8, actions, rewards, terminations (size,)."""
        oldest = max(self.num_added - self.capacity, 0)
        num_envs = self.rows.shape[1]
        chosen = np.empty(0, np.int64)
        while len(chosen) < size:  # the newest row has no successor yet
            low, high = oldest * num_envs, (self.num_added - 1) * num_envs
            drawn = torch.randint(low, high, (size - len(chosen),), generator=generator).numpy()
            cut = self.rows["cut"][drawn // num_envs % self.num_rows, drawn % num_envs]
            chosen = np.append(chosen, drawn[~cut])
        times = chosen // num_envs
        envs = chosen % num_envs
        row = times % self.num_rows, envs
        kinds = {"action": np.int64, "reward": np.float32, "termination": np.float32}
        columns = [self.rows[name][row].astype(kind) for name, kind in kinds.items()]
        return tuple(torch.from_numpy(x).to(device) for x in (*self.stacks(times, envs), *columns))


@torch.no_grad()
def q_split(network: QNetwork, obs: torch.Tensor) -> dict[str, float]:
    """What dead neurons, live neurons and the bias of the last layer give to Q (HR, Theorem 4.1 and Fig. 4), as means
    over observations and actions. Dead neurons are constant, so their part is a hidden bias."""
    with metrics.record_layers(network) as records:
        network(obs)
    hidden = records["fc"].output
    parts = metrics.hidden_bias(hidden, metrics.dead_neurons_kde(hidden)[0], network.q.weight.mT)
    return {f"q_split/{key}": x.mean().item() for key, x in zip(("dead", "live", "bias"), (*parts, network.q.bias))}


def linear_schedule(start: float, end: float, fraction: float) -> float:
    """From start to end as fraction goes from 0 to 1, and end from then on."""
    return start + (end - start) * min(fraction, 1.0)


def has_crossed(before: int, step: int, period: int) -> bool:
    """Whether a multiple of period lies in (before, step]; never for period 0."""
    return period > 0 and step // period > before // period


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of what takes the memory, by the flags that set it: (on the device, on the host). The replay is on disk."""
    network = runlog.nature_cnn_size(args, runlog.MOST_ACTIONS)
    kept = (runlog.ADAM_COPIES + 1) * network.parameters  # and the target network
    of_observation = runlog.OBSERVATION_BYTES + runlog.FLOAT_BYTES * (runlog.OBSERVATION_BYTES + network.activations)
    of_transition = runlog.OBSERVATION_BYTES + of_observation
    transient = {"batch_size": args.batch_size * of_transition}
    if args.metrics_frequency or args.redo:
        transient["metrics_samples"] = args.metrics_samples * of_transition
    if args.ntk_frequency:
        transient["ntk_samples width"] = runlog.NTK_COPIES * runlog.FLOAT_BYTES * args.ntk_samples * network.parameters
    largest = max(transient, key=transient.get)  # one after the other
    on_device = {"width": runlog.FLOAT_BYTES * kept, largest: transient[largest]}
    games = {"num_envs": args.num_envs, "num_eval_episodes": args.num_eval_episodes}
    return on_device, {field: number * runlog.GAME_BYTES for field, number in games.items()}


def check_updates(args: Args) -> None:
    """Raises UserError if the run would end before its first update."""
    last_step = args.total_timesteps // args.num_envs * args.num_envs
    if last_step // args.train_frequency > args.learning_starts // args.train_frequency:
        return
    period = max(args.train_frequency, args.num_envs)  # one is a multiple of the other
    first = (args.learning_starts // args.train_frequency + 1) * args.train_frequency
    first = -(-first // args.num_envs) * args.num_envs
    told = f"the first update is at step {first} (--learning-starts {args.learning_starts}, one each {period} steps)"
    raise runlog.UserError(f"--total-timesteps {args.total_timesteps}: {told}; give more, or lower --learning-starts")


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created; returns args with the game's plain name."""
    runlog.check_range(args, "[0, inf)", "seed threads env_threads metrics_frequency ntk_frequency")
    runlog.check_range(args, "[0, inf)", "checkpoint_minutes redo_tau")
    runlog.check_range(args, "[1, inf)", "num_envs train_frequency batch_size target_frequency width redo_period")
    runlog.check_range(args, "[1, inf)", "checkpoint_frequency eval_frequency num_eval_episodes log_frequency")
    runlog.check_range(args, f"[{args.num_envs}, inf)", "total_timesteps")
    runlog.check_range(args, f"[{2 * args.num_envs}, inf)", "buffer_size learning_starts")
    runlog.check_range(args, "[2, inf)", "metrics_samples ntk_samples")
    runlog.check_range(args, "(0, inf)", "learning_rate adam_eps exploration_steps")
    runlog.check_range(args, "[0, 1]", "repeat_action_probability gamma start_epsilon final_epsilon eval_epsilon")
    if (period := args.train_frequency) % args.num_envs and args.num_envs % period:
        raise runlog.UserError(f"--num-envs {args.num_envs}: must divide --train-frequency {period} or be its multiple")
    runlog.check_flags(args)
    check_updates(args)
    device = runlog.find_device(args.device)
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        activations.check_encoder(args.encoder_activation, args.rational)
    if not args.evaluate:
        runlog.check_memory(args, device, *big_tensors(args))
    return dataclasses.replace(args, env_id=atari_game(args.env_id)[0])


@torch.no_grad()
def act(q_network: QNetwork, epsilon: float, generator: torch.Generator, obs: np.ndarray) -> np.ndarray:
    """Epsilon-greedy actions (n,) for observations (n, 4, 84, 84)."""
    head = q_network.q.bias
    draws = torch.rand(2, len(obs), generator=generator)
    explores = draws[0] < epsilon
    actions = (draws[1] * len(head)).long()
    if not explores.all():
        actions = torch.where(explores, actions, q_network(torch.from_numpy(obs).to(head.device)).argmax(-1).cpu())
    return actions.numpy()


def replay_capacity(args: Args) -> int:
    return min(args.buffer_size, args.total_timesteps)


def check_disk(args: Args, run: runlog.Run) -> None:
    """Raises UserError if the replay of a new run does not fit on the disk. Creates nothing."""
    if run.status() == "new":
        num_rows = ReplayBuffer.count_rows(replay_capacity(args), 2 * args.checkpoint_frequency, args.num_envs)
        size = num_rows * args.num_envs * ROW.itemsize
        runlog.check_space(run.folder / "replay.dat", size, DISK, flag=f"--buffer-size {args.buffer_size}")


def restore(args: Args, run: runlog.Run) -> tuple[int, dict | None, ReplayBuffer]:
    """(step, state, replay) of the newest checkpoint whose replay is whole; (0, None, an empty one) before the first.

    Raises UserError: neither the newest checkpoint nor the one before finds its replay. Both are still there then.
    """
    path = run.folder / "replay.dat"
    capacity = replay_capacity(args)
    problems = []
    for step in run.checkpoint_steps():
        if step == 0:  # killed in its first save, which a damaged replay makes useless
            break
        state = run.read_state(step)
        counted = state["num_added"], state.get("replay_checksum")
        try:
            buffer = ReplayBuffer(path, capacity, 2 * state["ring"], args.num_envs, *counted)
        except DamagedReplay as problem:
            problems.append(problem)
            continue
        for problem in problems:
            runlog.warn(f"{problem.reason}; using the checkpoint before, step {step}")
        run.load_checkpoint(step)
        return step, state, buffer
    if problems and 0 not in run.checkpoint_steps():
        raise problems[0]
    run.load_checkpoint(0)
    return 0, None, ReplayBuffer(path, capacity, 2 * args.checkpoint_frequency, args.num_envs)


def train(args: Args, run: runlog.Run) -> None:
    """Trains one seed from its newest checkpoint, or from the beginning. Games that were under way start anew."""
    device = runlog.find_device(args.device)
    games = AtariGames(args, args.num_envs)
    networks = (QNetwork(games.num_actions, args).to(device, memory_format=torch.channels_last) for _ in range(2))
    q_network, target_network = networks  # equal at first
    groups = optimizers.parameter_groups(q_network, args.learning_rate, args.rational)
    optimizer = torch.optim.AdamW(groups, eps=args.adam_eps, fused=True)
    generators = {use: runlog.make_generator(args.seed, use) for use in ("act", "update", "metrics", "redo")}
    num_updates = 0
    logged_updates = 0
    totals = torch.zeros(2, device=device)
    last_eval = {}
    start, state, buffer = restore(args, run)
    ring = state["ring"] if state else args.checkpoint_frequency  # the replay is made for checkpoints this often
    saved_step = start
    if state:
        q_network.load_state_dict(state["q_network"])
        target_network.load_state_dict(state["target_network"])
        optimizer.load_state_dict(state["optimizer"])
        num_updates = state["num_updates"]
        logged_updates = state["logged_updates"]
        last_eval = state["last_eval"]
        totals = state["totals"].to(device)
        runlog.set_states(generators, state["generators"])

    def td_loss(obs, next_obs, actions, rewards, terminations) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            next_q = target_network(next_obs)
            next_q_online = q_network(next_obs) if args.double_q else next_q
            td_target = dqn_target(rewards, terminations, next_q_online, next_q, args.gamma, args.double_q)
        q_values = q_network(obs).gather(1, actions.unsqueeze(1)).squeeze(1)
        return (q_values - td_target).square().mean(), q_values.detach().mean()

    compiled_td_loss = torch.compile(td_loss, dynamic=False, disable=not args.compile)
    acting_network = torch.compile(q_network, dynamic=False, disable=not args.compile)
    progress = runlog.Progress(start, args.total_timesteps, f"{args.env_id} {args.activation}")
    save_times = runlog.SaveTimes(start, min(ring, args.checkpoint_frequency), args.checkpoint_minutes)
    obs = games.reset(args.seed, "games", start)
    for step in range(start + args.num_envs, args.total_timesteps + 1, args.num_envs):
        before = step - args.num_envs
        at_end = step + args.num_envs > args.total_timesteps
        crossed = functools.partial(has_crossed, before, args.total_timesteps if at_end else step)
        # act and store
        epsilon = linear_schedule(args.start_epsilon, args.final_epsilon, before / args.exploration_steps)
        actions = act(acting_network, epsilon, generators["act"], obs)
        next_obs, rewards, terminations, truncations, _, ended = games.step(actions)
        overs = np.isin(np.arange(args.num_envs), [i for i, *_ in ended])
        for _, total, length in ended:
            run.log(step, {"charts/episodic_return": total, "charts/episodic_length": length})
        rewards = np.sign(rewards) if args.clip_rewards else rewards
        buffer.add(obs, actions, rewards, terminations, truncations, overs)
        obs = next_obs
        paused = time.monotonic()
        if crossed(args.metrics_frequency) and step >= args.learning_starts:  # before the updates
            batch = buffer.sample(args.metrics_samples, generators["metrics"], device)
            grads = metrics.named_gradients(q_network, lambda *x: td_loss(*x)[0], batch, 256)
            report = metrics.network_report(q_network, batch[:1], grads, 0, max_samples=args.metrics_samples)
            runlog.log_report(run, step, "network/q", report)
            run.log(step, q_split(q_network, batch[0]) if args.analyse else {})
        if crossed(args.ntk_frequency) and step >= args.learning_starts:
            batch = buffer.sample(args.ntk_samples, runlog.make_generator(args.seed, "ntk", step), device)
            runlog.log_ntk(run, step, "network/q", metrics.ntk_rank(q_network, batch[:1]))
        progress.skip(time.monotonic() - paused)
        # learn
        for _ in range(step // args.train_frequency - max(before, args.learning_starts) // args.train_frequency):
            optimizer.zero_grad()
            loss, q_mean = compiled_td_loss(*buffer.sample(args.batch_size, generators["update"], device))
            loss.backward()
            optimizer.step()
            num_updates += 1
            totals += torch.stack([loss.detach(), q_mean])
            if args.redo and num_updates % args.redo_period == 0:
                obs_sample = buffer.sample(args.metrics_samples, generators["redo"], device)[0]
                share = recycle_dormant(q_network, optimizer, obs_sample, args, generators["redo"])
                run.log(step, {"redo/recycled_share": share})
        if has_crossed(before, step, args.target_frequency) and step > args.learning_starts:
            target_network.load_state_dict(q_network.state_dict())
        # measure
        if crossed(args.log_frequency):
            row = {"charts/epsilon": epsilon, "perf/sps": progress.speed(step)}
            if num_updates > logged_updates:
                loss, q_mean = (totals / (num_updates - logged_updates)).tolist()
                if not math.isfinite(loss):
                    run.log(args.total_timesteps, last_eval)  # carried forward
                    runlog.finish_diverged(run, step, "td_loss", args.keep_replay)
                    break
                row |= {"losses/td_loss": loss, "losses/q_mean": q_mean}
                logged_updates = num_updates
                totals = torch.zeros_like(totals)
            run.log(step, row)
        if crossed(args.eval_frequency):
            paused = time.monotonic()
            index = math.ceil(step / args.eval_frequency)
            seed = runlog.derive_seed(args.seed, "eval", index)
            policy = functools.partial(act, q_network, args.eval_epsilon, runlog.make_generator(seed, "act"))
            last_eval = {"eval/episodic_return": float(np.mean(play_games(args, policy, args.num_eval_episodes, seed)))}
            run.log(step, last_eval)
            progress.note_means(step, [last_eval], list(last_eval))
            progress.skip(time.monotonic() - paused)
        # save
        is_due = save_times.is_due(step, at_end)
        if is_due or step - saved_step >= ring:
            buffer.flush()
            state = {"q_network": q_network.state_dict(), "target_network": target_network.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "totals": totals, "num_updates": num_updates}
            state |= {"generators": {use: generator.get_state() for use, generator in generators.items()}}
            state |= {"num_added": buffer.num_added, "ring": ring, "replay_checksum": buffer.checksum()}
            run.save_checkpoint(step, state | {"logged_updates": logged_updates, "last_eval": last_eval})
            saved_step = step
            save_times.done([run], at_end)
            if save_times.regular:
                run.draw(step)
        progress.update(step)
    else:
        runlog.finish([run], [0], args.keep_replay)
    progress.close()


def evaluate_finished(args: Args, run: runlog.Run) -> None:
    """--evaluate: plays whole games with the last checkpoint, films the first, measures the network on what it saw."""
    step, state = runlog.load_finished(run)
    q_network = QNetwork(AtariGames(args, 1).num_actions, args)
    q_network.load_state_dict(state["q_network"])
    seen = metrics.Reservoir(args.metrics_samples, args.seed)
    generator = runlog.make_generator(args.seed, "play")

    def policy(obs: np.ndarray) -> np.ndarray:
        seen.add(torch.from_numpy(obs))
        return act(q_network, args.eval_epsilon, generator, obs)

    returns = play_games(args, policy, args.num_eval_episodes, args.seed, screens := [])
    report = metrics.network_report(q_network, (seen.sample(),), {}, 0, max_samples=args.metrics_samples)
    runlog.record_evaluation(run, step, returns, screens, "network/q", report, **q_split(q_network, seen.sample()))


def runs_of(args: Args) -> list[runlog.Run]:
    """The run of these flags. Creates nothing."""
    name, _ = atari_game(args.env_id)
    return runlog.seed_runs(dataclasses.replace(args, env_id=name), "dqn_atari")


def main(args: Args) -> None:
    args = validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.print_network:
        return runlog.print_network(QNetwork(AtariGames(args, 1).num_actions, args))
    runs = {run.config["seed"]: run for run in runs_of(args)}
    if args.evaluate:
        return evaluate_finished(args, runs[args.seed])
    check_disk(args, runs[args.seed])
    with runlog.opened(runs, args, "dqn_atari") as groups:
        for _, _, (run,) in groups:
            train(args, run)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
