"""Deep Q-Network on Atari (DQN, Mnih et al. 2015), for the Hadamard representations of HR (2406.09079, Table 4).

One game, a replay of single frames, a Double-DQN target (HR, eq. 5). The last hidden layer carries --activation, the
convolutions --encoder-activation. The same command again resumes or says "finished".

    python dqn_atari.py --env-id Breakout --activation tanh_hr --analyse

Results, implementation details, differences from CleanRL: docs/dqn_atari.md.
"""

import dataclasses
import functools
import math
import os
import time
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn

import activations
import metrics
import runlog


@dataclasses.dataclass
class Args:
    seed: int = 1  # of weights, exploration, replay and games
    total_timesteps: int = 10_000_000  # environment steps of all training games together; frames are 4 times as many
    device: str = "auto"  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int = 0  # CPU threads of torch; 0 = torch's choice
    env_threads: int = 0  # threads that step the games; 0 = as many as cores
    compile: bool = True  # torch.compile the network; --no-compile runs it eagerly
    runs_dir: str = "runs"  # where the run folders are
    fresh: bool = False  # delete an existing run of this configuration and start anew
    checkpoint_frequency: int = 25_000  # environment steps between checkpoints
    keep_replay: bool = False  # keep the replay on disk once the run has finished
    evaluate: bool = False  # load the finished run of these flags, play whole games, print returns, save a video
    print_network: bool = False  # print the layers and their parameter counts, and stop
    tensorboard: bool = True  # mirror the scalars to TensorBoard event files in the run folder
    track: bool = False  # mirror the run to Weights & Biases (WANDB_MODE=offline: without a network)
    wandb_project: str = "activations-rl"  # W&B project
    wandb_entity: str | None = None  # W&B team; None = the account's default
    env_id: str = "Breakout"  # a game of ale_py: Breakout or ALE/Breakout-v5
    repeat_action_probability: float = 0.0  # sticky actions; 0 as in HR, 0.25 as in Machado et al. 2018
    # algorithm; the defaults are HR's Table 4
    num_envs: int = 1  # training games side by side; must divide --train-frequency or be a multiple of it
    buffer_size: int = 1_000_000  # replay capacity in transitions, of all games together; 7.4 GB of disk
    learning_starts: int = 80_000  # environment steps with random actions before the first update
    train_frequency: int = 4  # environment steps between gradient steps
    batch_size: int = 32  # transitions per gradient step
    target_frequency: int = 1_000  # environment steps between copies to the target network
    double_q: bool = True  # Double-DQN target (HR, eq. 5); --no-double-q: the greatest target value (CleanRL)
    gamma: float = 0.99  # discount factor
    learning_rate: float = 1e-4  # Adam step size
    adam_eps: float = 1e-5  # epsilon of Adam (CleanRL: 1e-8)
    start_epsilon: float = 1.0  # share of random actions at the start
    final_epsilon: float = 0.1  # share of random actions in the end (CleanRL: 0.01)
    exploration_steps: int = 1_000_000  # environment steps in which epsilon falls linearly
    clip_rewards: bool = True  # learn from the sign of the rewards; returns are logged raw
    # network
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
    eval_epsilon: float = 0.01  # share of random actions in evaluations
    log_frequency: int = 10_000  # environment steps between rows of losses
    metrics_frequency: int = 100_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # observations that the network metrics look at
    analyse: bool = False  # also densities of each branch, and the parts of Q that live and dead neurons give (HR 4)


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

    A lost life is a termination for the learner, and the game goes on. Rewards are raw; `step` tells each whole game.
    """

    def __init__(self, args: Args, num_envs: int, **kwargs):
        from ale_py.vector_env import AtariVectorEnv

        kwargs = {"repeat_action_probability": args.repeat_action_probability, "num_threads": args.env_threads} | kwargs
        kwargs |= {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP, "reward_clipping": False}
        self.envs = AtariVectorEnv(atari_game(args.env_id)[1], num_envs, life_loss_info=True, **kwargs)
        self.num_envs, self.num_actions = num_envs, int(self.envs.single_action_space.n)

    def reset(self, seed: int, *keys: str | int) -> np.ndarray:
        """New games, seeded by (seed, keys); observations (num_envs, 4, 84, 84) uint8."""
        seeds = np.array([runlog.derive_seed(seed, *keys, i) % 2**31 for i in range(self.num_envs)])
        obs, info = self.envs.reset(seed=seeds)
        self.frames, self.returns, self.lengths = info["episode_frame_number"], *np.zeros((2, self.num_envs))
        return obs

    def step(self, actions: np.ndarray) -> tuple:
        """(obs, rewards, terminations, truncations, real_next_obs, games); games: (env, return, length) of each one
        that ended. Where one did, obs is the first of the next, and real_next_obs the last of the one that ended."""
        obs, rewards, terminations, truncations, info = self.envs.step(actions)
        over = info["episode_frame_number"] < self.frames  # ale_py's final_obs is right only where a game ended
        self.frames, self.returns, self.lengths = info["episode_frame_number"], self.returns + rewards, self.lengths + 1
        real_next_obs = np.where(over[:, None, None, None], info["final_obs"], obs) if over.any() else obs
        games = [(int(i), float(self.returns[i]), int(self.lengths[i])) for i in np.flatnonzero(over)]
        self.returns[over], self.lengths[over] = 0, 0
        return obs, rewards, terminations, truncations, real_next_obs, games


def play_games(args: Args, policy, number: int, seed: int) -> tuple[list[float], list[np.ndarray]]:
    """The raw returns of `number` whole games side by side, the first of each environment, so that short ones count
    no more than long ones; and every fourth screen of game 0, RGB. policy: observations -> actions, both numpy."""
    games = AtariGames(args, number)
    colour = AtariGames(
        args, 1, img_height=210, img_width=160, stack_num=1, grayscale=False
    )  # the same game as games 0
    obs, screens = games.reset(seed, "play"), [colour.reset(seed, "play")[0, -1]]
    returns, step = {}, 0
    while len(returns) < number:
        actions = policy(obs)
        obs, *_, ended = games.step(actions)
        screen = colour.step(actions[:1])[0]
        if 0 not in returns and step % 4 == 0:
            screens.append(screen[0, -1])
        returns = {i: total for i, total, _ in ended} | returns
        step += 1
    return [returns[i] for i in range(number)], screens


# ---- network ---------------------------------------------------------------------------------------------------------


def fan_in_uniform(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Uniform in +-1 / sqrt(fan_in), torch's default for weights."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound, generator=generator)


class QNetwork(nn.Module):
    """Nature CNN (Mnih et al. 2015): observations (n, 4, 84, 84) uint8 -> Q-values (n, num_actions)."""

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        encoder = args.encoder_activation
        first, second, third = encoder * 3 if len(encoder) == 1 else encoder
        seed = functools.partial(runlog.derive_seed, args.seed)
        shared = {} if args.rational.share_across_layers else None
        options = {"rational": args.rational, "shared": shared, "init": fan_in_uniform}
        conv = functools.partial(activations.conv, layer_norm=args.layer_norm, **options)
        self.conv1 = conv(4, 32, 8, first, stride=4, out_size=(20, 20), seeds=seed("conv1"))
        self.conv2 = conv(self.conv1.width, 64, 4, second, stride=2, out_size=(9, 9), seeds=seed("conv2"))
        self.conv3 = conv(self.conv2.width, 64, 3, third, stride=1, out_size=(7, 7), seeds=seed("conv3"))
        norm = args.layer_norm != "none"
        inputs = self.conv3.width * 7 * 7
        self.fc = activations.dense(inputs, args.width, args.activation, layer_norm=norm, seeds=seed("fc"), **options)
        self.q = activations.Linear(self.fc.width, num_actions, seeds=seed("q"), init=fan_in_uniform)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(obs / 255.0)))
        return self.q(self.fc(x.flatten(1)))


@torch.no_grad()
def recycle_dormant(network: QNetwork, optimizer, obs: torch.Tensor, args: Args, generator: torch.Generator) -> float:
    """ReDo (Sokar et al. 2023): recycles the dormant neurons of every hidden layer; returns their share."""
    layers = [network.conv1, network.conv2, network.conv3, network.fc]
    with metrics.record_layers(network) as records:
        network(obs)
    outputs = {id(network.get_submodule(name)): record.output for name, record in records.items()}
    recycled = 0
    for layer, reader in zip(layers, [*layers[1:], network.q]):
        dormant, _ = metrics.dormant_neurons(metrics.channel_samples(outputs[id(layer)]), args.redo_tau)
        readers = [branch.linear for branch in reader.branches] if reader is not network.q else [reader]
        recycled += activations.recycle_neurons(layer, readers, dormant, optimizer, fan_in_uniform, generator)
    return recycled / sum(len(layer.branches[0].linear.bias) for layer in layers)


def dqn_target(rewards, terminations, next_q_online, next_q_target, gamma: float, double_q: bool) -> torch.Tensor:
    """r + gamma (1 - termination) Q'(s', a*), all (batch,) but the Q-values (batch, num_actions).

    a* is the greedy action of the online network (Double DQN, van Hasselt et al. 2016; HR eq. 5) or, without double_q,
    of the target network Q' itself (Mnih et al. 2015).
    """
    best = (next_q_online if double_q else next_q_target).argmax(-1, keepdim=True)
    return rewards + gamma * (1 - terminations) * next_q_target.gather(-1, best).squeeze(-1)


class ReplayBuffer:
    """Single frames on disk, (rows, num_envs, 84, 84) uint8, mapped into memory; stacks of 4 are made when sampled.

    Row t of a game: the newest frame of the observation at t, the action taken there, its reward (sign or raw), whether
    it terminated for the learner, and whether the game ended with it. A stack has zeros before a game's first frame, as
    ale_py's has. A transition cut off by a time limit or by a resumption is never sampled: its successor is not stored.
    `spare` further rows keep what a checkpoint needs from being overwritten before the next checkpoints exist.
    Raises UserError if the disk is too small.
    """

    def __init__(self, path, capacity: int, spare: int, num_envs: int):
        self.capacity, self.num_rows = -(-capacity // num_envs), -(-(capacity + spare) // num_envs)
        row = [("frame", np.uint8, (84, 84)), ("action", np.uint8), ("reward", np.float32)]
        row = np.dtype([*row, ("termination", np.bool_), ("over", np.bool_), ("cut", np.bool_)])
        with runlog.writing(path), open(path, "a+b") as file:
            os.posix_fallocate(file.fileno(), 0, self.num_rows * num_envs * row.itemsize)
        self.rows = np.memmap(path, row, "r+", shape=(self.num_rows, num_envs))
        self.num_added = 0

    def add(self, obs, actions, rewards, terminations, overs, cuts) -> None:
        row = self.rows[self.num_added % self.num_rows]
        columns = (obs[:, -1], actions, rewards, terminations, overs, cuts)
        for name, values in zip(self.rows.dtype.names, columns):
            row[name] = values
        self.num_added += 1

    def resume(self, num_added: int) -> None:
        """Goes back to the first num_added rows. The games under way then are lost, and new ones begin."""
        self.num_added = num_added
        self.rows["cut"][(num_added - 1) % self.num_rows] = True
        self.rows["over"][(num_added - 1) % self.num_rows] = True

    def sample(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Uniform transitions: obs and next_obs (size, 4, 84, 84) uint8, actions, rewards, terminations (size,)."""
        oldest = max(self.num_added - self.capacity, 0)
        times, envs = np.empty(0, np.int64), np.empty(0, np.int64)
        while len(times) < size:  # the newest row has no successor yet
            t = rng.integers(oldest, self.num_added - 1, size - len(times))
            env = rng.integers(self.rows.shape[1], size=len(t))
            kept = ~self.rows["cut"][t % self.num_rows, env]
            times, envs = np.append(times, t[kept]), np.append(envs, env[kept])
        window = self.stack(times, envs, 5), self.stack(times + 1, envs, 4)
        row = self.rows[times % self.num_rows, envs]
        return window[0][:, 1:], window[1], row["action"].astype(np.int64), row["reward"], row["termination"]

