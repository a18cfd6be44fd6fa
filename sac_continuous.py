"""Soft Actor-Critic on DeepMind Control, Meta-World and Gymnasium, for studying activation functions (CR, 2507.14736).

All seeds of a cell train in one process: parameters, optimisers, replay and noise carry a leading seed axis, and the
losses below read as for one seed. One seed is one run folder; the same command again resumes it or says "finished".

    python sac_continuous.py --env-id dm_control/cartpole-swingup-v0 --activation crational --utd 2 --num-seeds 3

Results, implementation details and every difference from CleanRL's SAC: docs/sac_continuous.md.
"""

import dataclasses
import difflib
import functools
import math
import os
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import activations
import metrics
import runlog

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0


@dataclasses.dataclass
class Args:
    # experiment
    seed: int = 1  # first seed
    num_seeds: int = 1  # seeds trained together in this process: seed, seed + 1, ...
    total_timesteps: int = 1_000_000  # environment steps of each seed
    device: str = "auto"  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int = 0  # CPU threads; 0 = torch's choice
    compile: bool = True  # torch.compile the update; --no-compile runs it eagerly
    cudagraphs: bool = False  # replay the UTD block as one CUDA graph (has never run on a GPU, hence off)
    runs_dir: str = "runs"  # where the run folders are
    fresh: bool = False  # delete an existing run of this configuration and start anew
    checkpoint_frequency: int = 25_000  # environment steps between checkpoints
    keep_replay: bool = False  # keep the replay on disk once the run has finished
    evaluate: bool = False  # load the finished run of these flags, play episodes, print returns, save a video
    capture_video: bool = False  # save a video of one deterministic episode with every checkpoint
    tensorboard: bool = True  # mirror the scalars to TensorBoard event files in the run folder
    track: bool = False  # mirror the run to Weights & Biases (WANDB_MODE=offline: without a network)
    wandb_project: str = "activations-rl"  # W&B project
    wandb_entity: str | None = None  # W&B team; None = the account's default
    # environment
    env_id: str = "dm_control/cheetah-run-v0"  # dm_control/DOMAIN-TASK-v0, metaworld/TASK-v3, or a Gymnasium id
    async_envs: bool = False  # step the seeds' environments in worker processes (pays for slow ones: Meta-World)
    # algorithm; the defaults are those of CR's group
    utd: int = 1  # gradient updates per environment step (update-to-data ratio)
    batch_size: int = 256  # transitions per update
    buffer_size: int = 1_000_000  # replay capacity of each seed, in transitions
    learning_starts: int = 5_000  # environment steps with uniformly random actions before the first update
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # share by which the target networks move at every update
    learning_rate: float = 3e-4  # Adam step size of actor, critics and temperature
    policy_frequency: int = 1  # critic updates per actor and temperature update; must divide --utd, or be 1
    target_entropy_scale: float = 0.5  # target entropy = -scale * action dimensions
    init_temperature: float = 1.0  # alpha at the start
    # networks
    activation: str = "relu"  # name or expression: relu, crational, tanh_hr, identity*silu (docs/activations.md)
    widths: tuple[int, ...] = (256, 256)  # units of the hidden layers, of the actor and of each critic
    layer_norm: bool = False  # layer normalisation before each activation
    rational: activations.RationalConfig = dataclasses.field(default_factory=activations.RationalConfig)
    # evaluation and metrics
    eval_frequency: int = 10_000  # environment steps between evaluations
    num_eval_episodes: int = 5  # deterministic episodes per evaluation, and as many stochastic ones for the value bias
    log_frequency: int = 1_000  # environment steps between rows of losses
    metrics_frequency: int = 10_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # replay transitions that the network metrics look at


# These do not change what a run computes, so they are no part of its identity.
NOT_IDENTITY = (
    "num_seeds device threads compile cudagraphs runs_dir fresh checkpoint_frequency keep_replay evaluate capture_video "
    "tensorboard track wandb_project wandb_entity async_envs"
).split()


def make_env(env_id: str, index: int, seed: int, stream: str, render_mode: str | None = None) -> gym.Env:
    """One environment with flat observations and actions in [-1, 1]. Raises UserError: unknown id, no Box actions."""
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    suite, _, task = env_id.partition("/")
    if suite == "dm_control":
        import shimmy  # noqa: F401  (registers the dm_control ids)
    known = [name for name in gym.registry if name.startswith("dm_control/") or suite != "dm_control"]
    if suite == "metaworld":
        import metaworld

        known = [f"metaworld/{name}" for name in metaworld.ALL_V3_ENVIRONMENTS]
    if env_id not in known:
        near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.3) or ["dm_control/cheetah-run-v0"]
        raise runlog.UserError(f"--env-id {env_id}: unknown environment; did you mean {' or '.join(near)}?")
    kwargs = {"disable_env_checker": True, "render_mode": render_mode}  # Meta-World's goals leave its declared space
    if suite == "metaworld":
        env = gym.make("Meta-World/MT1", env_name=task, seed=seed % 2**31, max_episode_steps=200, **kwargs)
    else:
        env = gym.make(env_id, **kwargs)
    box = env.action_space
    if not (isinstance(box, gym.spaces.Box) and len(box.shape) == 1 and np.isfinite([box.low, box.high]).all()):
        raise runlog.UserError(f"--env-id {env_id}: SAC needs bounded, continuous actions, not {box}; try Pendulum-v1")
    env = gym.wrappers.FlattenObservation(gym.wrappers.RescaleAction(env, -1.0, 1.0))
    return runlog.EpisodeSeeds(env, index, seed, stream)


def make_envs(args: Args, seeds: list[int], stream: str) -> gym.vector.VectorEnv:
    """One environment per seed. SAME_STEP: the observation after an end is the first of the next episode."""
    thunks = [functools.partial(make_env, args.env_id, i, seed, stream) for i, seed in enumerate(seeds)]
    vector = gym.vector.AsyncVectorEnv if args.async_envs else gym.vector.SyncVectorEnv
    return vector(thunks, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def true_successors(next_obs: np.ndarray, infos: dict, dones: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(real_next_obs, success of this step; nan without such a signal): where dones, of the episode that ended."""
    nothing = np.full(len(dones), np.nan)
    real_next_obs, success = next_obs.copy(), np.array(infos.get("success", nothing), dtype=np.float64)
    if dones.any():
        real_next_obs[dones] = np.stack(infos["final_obs"][dones])
        success[dones] = infos["final_info"].get("success", nothing)[dones]
    return real_next_obs, success


# ---- networks: tensors are (seeds, batch, ...), those of the twin critics (seeds, 2, batch, ...) ---------------------


def hidden_layers(in_features: int, args: Args, seeds) -> nn.Sequential:
    """The hidden layers of one network for each entry of the array `seeds`, which gives the parameters' leading axes."""
    layers, shared = [], {} if args.rational.share_across_layers else None
    for i, width in enumerate(args.widths):
        options = {"layer_norm": args.layer_norm, "rational": args.rational, "shared": shared}
        layer_seeds = runlog.derive_seeds(seeds, "hidden", i)
        layers.append(activations.dense(in_features, width, args.activation, seeds=layer_seeds, **options))
        in_features = layers[-1].width
    return nn.Sequential(*layers)


class Actor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds):
        super().__init__()
        self.hidden = hidden_layers(obs_dim, args, runlog.derive_seeds(seeds, "actor"))
        head = functools.partial(activations.Linear, self.hidden[-1].width, action_dim)
        self.mean = head(seeds=runlog.derive_seeds(seeds, "mean"))
        self.log_std = head(seeds=runlog.derive_seeds(seeds, "log_std"), init=activations.orthogonal(1.0))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.hidden(obs)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(self.log_std(x)) + 1)
        return self.mean(x), log_std

    def sample(self, obs: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squashed Gaussian: actions (seeds, batch, action_dim), log-probs (seeds, batch). Zero noise: the mode."""
        mean, log_std = self(obs)
        x = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2 * (math.log(2) - x - F.softplus(-2 * x))  # log(1 - tanh(x)^2), right for large |x| too
        return torch.tanh(x), log_prob.sum(-1)


class SoftQNetworks(nn.Module):
    """The twin critics, stacked: (seeds, batch, ...) -> Q-values (seeds, 2, batch)."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds):
        super().__init__()
        seeds = np.stack([runlog.derive_seeds(seeds, "qf1"), runlog.derive_seeds(seeds, "qf2")], -1)
        self.hidden = hidden_layers(obs_dim + action_dim, args, seeds)
        self.q = activations.Linear(self.hidden[-1].width, 1, seeds=runlog.derive_seeds(seeds, "head"))

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.q(self.hidden(torch.cat([obs, actions], -1).unsqueeze(-3))).squeeze(-1)


class Agent(nn.Module):
    """All that an update changes: networks, targets, temperature, optimisers. Losses are (seeds,) tensors."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds, device: torch.device):
        super().__init__()
        self.args, self.target_entropy = args, -args.target_entropy_scale * action_dim
        self.actor = Actor(obs_dim, action_dim, args, seeds)
        self.qf, self.qf_target = (SoftQNetworks(obs_dim, action_dim, args, seeds) for _ in range(2))
        self.log_alpha = nn.Parameter(torch.full((len(seeds), 1), math.log(args.init_temperature)))
        adam = functools.partial(activations.Adam, learning_rate=args.learning_rate, rational=args.rational)
        self.actor_optimizer, self.qf_optimizer = adam(self.actor), adam(self.qf)
        self.alpha_optimizer = adam(nn.ParameterList([self.log_alpha]))
        self.to(device)

    def qf_loss(self, batch: dict[str, torch.Tensor], noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, Q-values): squared error of both critics to the soft target with the smaller next value."""
        with torch.no_grad():
            next_actions, next_log_probs = self.actor.sample(batch["next_obs"], noise)
            next_q = self.qf_target(batch["next_obs"], next_actions).amin(-2) - self.log_alpha.exp() * next_log_probs
            td_target = batch["rewards"] + self.args.gamma * (1 - batch["terminations"]) * next_q
        q_values = self.qf(batch["obs"], batch["actions"])
        return (q_values - td_target.unsqueeze(-2)).square().mean(-1).sum(-1), q_values

    def actor_loss(self, batch: dict[str, torch.Tensor], noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, log-probs): alpha log pi - min Q, with reparameterised actions."""
        actions, log_probs = self.actor.sample(batch["obs"], noise)
        return (self.log_alpha.exp().detach() * log_probs - self.qf(batch["obs"], actions).amin(-2)).mean(-1), log_probs

    def update(self, batch: dict, noise: torch.Tensor, update_policy: bool = True) -> dict[str, torch.Tensor]:
        """One step of the critics and targets and, if asked for, of actor and temperature. noise: (2, seeds, batch, A).
        The seeds are independent, so the gradient of the sum of their losses is each one's own."""
        loss, q_values = self.qf_loss(batch, noise[0])
        grads = torch.autograd.grad(loss.sum(), self.qf_optimizer.parameters_)
        with torch.no_grad():
            self.qf_optimizer.step(grads)
            for target, parameter in zip(self.qf_target.parameters(), self.qf.parameters()):
                target.lerp_(parameter, self.args.tau)
        info = {"qf_loss": loss.detach(), "q_mean": q_values.detach().mean((-2, -1))}
        if update_policy:
            loss, log_probs = self.actor_loss(batch, noise[1])
            grads = torch.autograd.grad(loss.sum(), self.actor_optimizer.parameters_)
            with torch.no_grad():
                self.actor_optimizer.step(grads)
                entropy = -log_probs.mean(-1, keepdim=True)
                self.alpha_optimizer.step([self.log_alpha.exp() * (entropy - self.target_entropy)])
            info |= {"actor_loss": loss.detach(), "entropy": entropy.detach().squeeze(-1)}
        return info | {"alpha": self.log_alpha.detach().exp().squeeze(-1)}


class ReplayBuffer:
    """A ring of transitions for each seed; a row is obs, actions, rewards, terminations, next_obs."""

    def __init__(self, num_seeds: int, capacity: int, obs_dim: int, action_dim: int, device: torch.device):
        self.columns = {"obs": obs_dim, "actions": action_dim, "rewards": 1, "terminations": 1, "next_obs": obs_dim}
        self.rows = torch.empty(num_seeds, capacity, sum(self.columns.values()), device=device)
        self.seed_index, self.num_added = torch.arange(num_seeds, device=device)[:, None], 0

    def add(self, obs, actions, rewards, terminations, next_obs) -> None:
        row = np.concatenate([obs, actions, rewards[:, None], terminations[:, None], next_obs], -1, dtype=np.float32)
        self.rows[:, self.num_added % self.rows.shape[1]] = torch.from_numpy(row).to(self.rows.device)
        self.num_added += 1

    def sample(self, *shape: int, generators: list[torch.Generator]) -> dict[str, torch.Tensor]:
        """Uniform transitions, name -> (*shape[:-1], seeds, shape[-1][, columns]); each seed's by its own generator."""
        size = min(self.num_added, self.rows.shape[1])
        index = torch.stack([torch.randint(size, shape, generator=g, device=g.device) for g in generators], -2)
        parts = self.rows[self.seed_index, index].split(list(self.columns.values()), -1)
        return {n: p.squeeze(-1) if self.columns[n] == 1 and "a" in n else p for n, p in zip(self.columns, parts)}

    def newest(self, count: int) -> torch.Tensor:
        """The newest rows of each seed in order, (seeds, count, row), as many as the ring still has."""
        first = max(self.num_added - count, self.num_added - self.rows.shape[1])
        return self.rows[:, torch.arange(first, self.num_added) % self.rows.shape[1]].cpu()

    def restore(self, i: int, rows: torch.Tensor, num_added: int) -> None:
        """Put the newest rows of seed i back where they were."""
        index = torch.arange(num_added - len(rows), num_added) % self.rows.shape[1]
        self.rows[i, index], self.num_added = rows.to(self.rows.device), num_added
