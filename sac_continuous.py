"""Soft Actor-Critic on DeepMind Control, Meta-World and Gymnasium, for studying activation
functions (CR, 2507.14736).

All seeds of a configuration train in one process: parameters, optimisers, replay buffer and noise
have a leading seed axis, and the losses below read as for one seed. Each seed has its own run
folder; the same command again resumes the runs, or reports that they are finished. With several
--env-id the same networks learn these tasks one after the other.

    python sac_continuous.py --activation crational --utd 2 --num-seeds 3

Results, implementation details and every difference from CleanRL's SAC: docs/sac_continuous.md.
"""

import interrupts  # noqa: F401

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import activations
import environments
import metrics
import optimizers
import plots.dashboards
import reports
import runlog
from environments import ReplayBuffer
from runlog import cudagraphs, evaluation, loading, memory, seed_by_seed, seeding

EnvIds = tuple[str, ...]


@dataclasses.dataclass
class Args:
    # the flags that matter most
    env_id: EnvIds = ("dm_control/cheetah-run-v0",)  # dm_control/DOMAIN-TASK-v0, metaworld/TASK-v3
    activation: str = "relu"  # name or expression: relu, crational, tanh_hr, identity*silu, ...
    seed: int = 1  # first seed
    num_seeds: int = runlog.option(1)  # seeds trained together in this process: seed, seed + 1, ...
    total_timesteps: int = 1_000_000  # environment steps per seed, all its tasks together
    utd: int = 1  # gradient updates per environment step (update-to-data ratio)
    layer_norm: bool = False  # layer normalisation before each activation
    learning_rate: float = 3e-4  # Adam's learning rate for actor, critics and temperature
    device: str = runlog.option("auto")  # auto (cuda if available), cpu, cuda, cuda:1, ...
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    # experiment
    threads: int = runlog.option(0)  # CPU threads; 0 = torch's default
    compile: bool = runlog.option(True)  # torch.compile the update; --no-compile runs it eagerly
    cudagraphs: bool = runlog.option(True)  # on a GPU, replay each UTD block as one CUDA graph
    runs_dir: str = runlog.option("runs")  # folder that contains the run folders
    fresh: bool = runlog.option(False)  # delete an existing run with these flags and start over
    checkpoint_frequency: int = runlog.option(25_000)  # environment steps between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # also save after this many minutes; 0 = never
    keep_replay: bool = runlog.option(False)  # keep the replay buffer on disk when the run ends
    evaluate: bool = runlog.option(False)  # play with the finished agent and save a video
    # logging
    capture_video: bool = runlog.option(False)  # save a video of one episode with every checkpoint
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    # environment
    steps_per_task: int | None = None  # environment steps of each task, if --env-id names several
    reset_replay: bool = True  # start each further task with an empty replay and random steps
    reset_optimizer: bool = True  # start each further task with Adam's moments and step counts at 0
    async_envs: bool = runlog.option(False)  # step in worker processes (faster for Meta-World)
    # algorithm; the defaults are those of CR's group
    batch_size: int = 256  # transitions per update
    buffer_size: int = 1_000_000  # replay capacity of each seed, in transitions
    learning_starts: int = 5_000  # environment steps with random actions before the first update
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # Polyak coefficient of the target networks, applied at every update
    policy_frequency: int = 1  # critic updates per actor update; must divide --utd or be a multiple
    target_entropy_scale: float = 0.5  # target entropy = -scale * action dimensions
    init_temperature: float = 1.0  # initial alpha
    autotune: bool = runlog.added(True)  # learn alpha; --no-autotune keeps --init-temperature
    # network
    widths: tuple[int, ...] = (256, 256)  # units of the hidden layers of actor and critics
    rational: activations.RationalConfig = dataclasses.field(default=activations.RationalConfig())
    # evaluation and metrics
    eval_frequency: int = 10_000  # environment steps between evaluations
    num_eval_episodes: int = 5  # deterministic episodes per evaluation, and as many stochastic ones
    log_frequency: int = 1_000  # environment steps between logged losses
    metrics_frequency: int = 10_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # replay transitions for the network metrics
    ntk_frequency: int = 50_000  # environment steps between NTK ranks; 0 = off
    ntk_samples: int = 64  # replay transitions for the NTK


# ---- networks: tensors are (seeds, batch, ...), those of the twin critics (seeds, 2, batch, ...) -


class Actor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds):
        super().__init__()
        seeds = seeding.derive_seeds(seeds, "actor")
        self.hidden = activations.mlp(
            obs_dim, args.widths, args.activation, seeds, args.layer_norm, args.rational
        )
        width = self.hidden[-1].width
        of_mean = seeding.derive_seeds(seeds, "mean")
        of_log_std = seeding.derive_seeds(seeds, "log_std")
        small = activations.orthogonal(1.0)
        self.mean = activations.Linear(width, action_dim, seeds=of_mean)
        self.log_std = activations.Linear(width, action_dim, seeds=of_log_std, init=small)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, log-std) before the tanh; the log-std is squashed to [-10, 2]."""
        x = self.hidden(obs)
        return self.mean(x), 6.0 * torch.tanh(self.log_std(x)) - 4.0

    def sample(self, obs: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squashed Gaussian: actions (seeds, batch, action_dim), log-probs (seeds, batch). Zero
        noise gives the mode."""
        mean, log_std = self(obs)
        x = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(x)^2), accurate for large |x| too
        log_prob = log_prob - 2 * (math.log(2) - x - F.softplus(-2 * x))
        return torch.tanh(x), log_prob.sum(-1)


class SoftQNetworks(nn.Module):
    """The twin critics, stacked: (seeds, batch, ...) -> Q-values (seeds, 2, batch)."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds):
        super().__init__()
        of_qf1 = seeding.derive_seeds(seeds, "qf1")
        of_qf2 = seeding.derive_seeds(seeds, "qf2")
        seeds = np.stack([of_qf1, of_qf2], -1)
        inputs = obs_dim + action_dim
        self.hidden = activations.mlp(
            inputs, args.widths, args.activation, seeds, args.layer_norm, args.rational
        )
        of_head = seeding.derive_seeds(seeds, "head")
        self.q = activations.Linear(self.hidden[-1].width, 1, seeds=of_head)

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([obs, actions], -1).unsqueeze(-3)  # (seeds, 1, batch, ...) for both
        return self.q(self.hidden(inputs)).squeeze(-1)


def total_updates(args: Args) -> int:
    """Critic updates in the whole training."""
    num_phases = len(args.env_id) if args.reset_replay else 1  # each starts with random steps
    num_steps = args.total_timesteps // num_phases
    learning_steps = num_steps - max(args.learning_starts, 1) + 1
    return args.utd * num_phases * max(learning_steps, 1)


class Agent(nn.Module):
    """Everything that an update changes: networks, targets, temperature, optimisers. Losses are
    (seeds,) tensors. Batches: obs, actions, rewards, terminations, next_obs -> (seeds, batch, ...).
    If seeds is a number instead of a list, there is no seed axis."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds, device: torch.device):
        super().__init__()
        self.args = args
        self.action_dim = action_dim
        self.num_updates = total_updates(args)
        self.target_entropy = -args.target_entropy_scale * action_dim
        self.actor = Actor(obs_dim, action_dim, args, seeds)
        self.qf = SoftQNetworks(obs_dim, action_dim, args, seeds)
        self.qf_target = SoftQNetworks(obs_dim, action_dim, args, seeds)  # equal seeds: a copy
        log_alpha = math.log(args.init_temperature)
        self.log_alpha = nn.Parameter(torch.full((*np.shape(seeds), 1), log_alpha))

        alpha = nn.ParameterList([self.log_alpha])
        self.actor_optimizer = optimizers.Adam(self.actor, args.learning_rate, args.rational)
        self.qf_optimizer = optimizers.Adam(self.qf, args.learning_rate, args.rational)
        self.alpha_optimizer = optimizers.Adam(alpha, args.learning_rate, args.rational)
        self.to(device)

        # torch.autograd.grad inside a compiled function
        torch._dynamo.config.trace_autograd_ops = True
        self.sample = self.actor.sample
        self.update = self.one_update
        has_seeds = np.ndim(seeds) == 1
        if args.compile and has_seeds and seed_by_seed.can_run_on(device):
            # An agent without a seed axis, whose functions are compiled. For each seed they are
            # called with slices of this agent's tensors in place of its own, so its seed is
            # arbitrary.
            eager = dataclasses.replace(args, compile=False)
            single = Agent(obs_dim, action_dim, eager, seeds=0, device=device)
            by_seed = seed_by_seed.SeedBySeed(self, single)
            self.sample = by_seed.compiled(single.actor.sample, seed_axes=(0, 0))
            # the seed axes of one_update's batch, noise and update_policy
            self.update = by_seed.compiled(single.one_update, seed_axes=(0, 1, None))
        elif args.compile:
            compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False)
            self.sample = compiled(self.actor.sample)
            self.update = compiled(self.one_update)

    @torch.no_grad()
    def act_with_log_probs(
        self, obs: np.ndarray, generators: list | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions (seeds, action_dim), log-probs (seeds,) for one observation per seed; without
        generators, the mode of the policy."""
        device = self.log_alpha.device
        obs = torch.as_tensor(obs, dtype=torch.float32, device=device).unsqueeze(-2)
        shape = (*obs.shape[:-1], self.action_dim)
        if generators is None:
            noise = obs.new_zeros(shape)
        else:
            noise = seeding.normals(generators, 1, self.action_dim).view(shape)
        actions, log_probs = self.sample(obs, noise)
        actions = np.nan_to_num(actions.squeeze(-2).cpu().numpy())  # a diverged seed takes action 0
        return actions, log_probs.squeeze(-1).cpu().numpy()

    def act(self, obs: np.ndarray, generators: list | None = None) -> np.ndarray:
        actions, _ = self.act_with_log_probs(obs, generators)
        return actions

    def qf_loss(self, batch: dict, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, Q-values): squared error of both critics against the soft target, which uses the
        smaller next value."""
        with torch.no_grad():
            next_actions, next_log_probs = self.actor.sample(batch["next_obs"], noise)
            # (seeds, 2, batch) -> (seeds, batch): minimum over the twin critics
            next_q = self.qf_target(batch["next_obs"], next_actions).amin(-2)
            next_q = next_q - self.log_alpha.exp() * next_log_probs
            td_target = batch["rewards"] + self.args.gamma * (1 - batch["terminations"]) * next_q
        q_values = self.qf(batch["obs"], batch["actions"])
        return (q_values - td_target.unsqueeze(-2)).square().mean(-1).sum(-1), q_values

    def actor_loss(self, batch: dict, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, log-probs): alpha log pi - min Q, with reparameterised actions."""
        actions, log_probs = self.actor.sample(batch["obs"], noise)
        min_q = self.qf(batch["obs"], actions).amin(-2)  # over the twin critics: (seeds, batch)
        return (self.log_alpha.exp().detach() * log_probs - min_q).mean(-1), log_probs

    def one_update(
        self, batch: dict, noise: torch.Tensor, update_policy: bool = True
    ) -> dict[str, torch.Tensor]:
        """One step of the critics and targets and, if update_policy, of actor and temperature.
        noise: (2, seeds, batch, action_dim). The seeds are independent, so the sum of their losses
        has the gradients of each."""
        with activations.observing(self.qf):
            loss, q_values = self.qf_loss(batch, noise[0])
        grads = torch.autograd.grad(loss.sum(), self.qf_optimizer.parameters_)
        with torch.no_grad():
            self.qf_optimizer.step(grads)
            activations.step_constraints(self.qf, self.num_updates)
            for target, parameter in zip(self.qf_target.parameters(), self.qf.parameters()):
                target.lerp_(parameter, self.args.tau)
        info = {"qf_loss": loss.detach(), "q_mean": q_values.detach().mean((-2, -1))}

        if update_policy:
            with activations.observing(self.actor):
                loss, log_probs = self.actor_loss(batch, noise[1])
            grads = torch.autograd.grad(loss.sum(), self.actor_optimizer.parameters_)
            with torch.no_grad():
                self.actor_optimizer.step(grads)
                policy_updates = self.num_updates // self.args.policy_frequency
                activations.step_constraints(self.actor, policy_updates)
                entropy = -log_probs.mean(-1, keepdim=True)
                if self.args.autotune:
                    grad = self.log_alpha.exp() * (entropy - self.target_entropy)
                    self.alpha_optimizer.step([grad])
            info |= {"actor_loss": loss.detach(), "entropy": entropy.detach().squeeze(-1)}
        return info | {"alpha": self.log_alpha.detach().exp().squeeze(-1)}

    def update_block(
        self, batches: dict, noise: torch.Tensor, updates_before: int = 0
    ) -> dict[str, torch.Tensor]:
        """The --utd updates of an environment step. batches: name -> (utd, seeds, batch, ...);
        noise: (utd, 2, seeds, batch, action_dim); updates_before: the number of earlier updates,
        which with --policy-frequency determines the updates that include the policy. Returns the
        newest value of each loss."""
        calls = []
        for u in range(self.args.utd):
            batch = {name: columns[u] for name, columns in batches.items()}
            update_policy = (updates_before + u + 1) % self.args.policy_frequency == 0
            calls.append((batch, noise[u], update_policy))
        info = {}
        for newer in seed_by_seed.in_order(self.update, calls):
            info |= newer
        return info

    def reset_optimizers(self) -> None:
        self.actor_optimizer.reset()
        self.qf_optimizer.reset()
        self.alpha_optimizer.reset()


# ---- evaluation and metrics: own generators and environments, so no effect on the training -------


@torch.no_grad()
def q_bias(agent: Agent, envs, seeds: list[int], index: int) -> list[dict[str, float]]:
    """Q - G on the index-th num_eval_episodes stochastic episodes of each seed: the mean of the
    critics minus the soft Monte-Carlo return (metrics.q_overestimation). One dict per seed."""
    number = agent.args.num_eval_episodes
    device = agent.log_alpha.device
    generators = seeding.make_generators(seeds, "eval", index, device=device)
    policy = functools.partial(agent.act_with_log_probs, generators=generators)
    _, first = environments.evaluation_episodes(index, number)
    episodes = environments.play_episodes(envs, policy, first, number)

    q_values = []
    next_values = []
    for start in range(0, episodes.obs.shape[1], 1_000):  # in pieces, to bound the memory
        piece = slice(start, start + 1_000)
        obs = episodes.obs[:, piece].to(device)
        actions = episodes.actions[:, piece].to(device)
        next_obs = episodes.real_next_obs[:, piece].to(device)
        q_values.append(agent.qf(obs, actions).mean(-2))
        noise = seeding.normals(generators, *actions.shape[1:])
        next_actions, next_log_probs = agent.actor.sample(next_obs, noise)
        next_q = agent.qf(next_obs, next_actions).mean(-2)
        next_values.append(next_q - agent.log_alpha.exp() * next_log_probs)

    returns, lengths = metrics.first_episodes(episodes.rewards, episodes.dones, number)
    biases = metrics.overestimation_of_first(
        lengths,
        q=torch.cat(q_values, 1).cpu(),
        rewards=episodes.rewards,
        terminations=episodes.terminations,
        truncations=episodes.truncations,
        gamma=agent.args.gamma,
        log_probs=episodes.log_probs,
        alpha=agent.log_alpha.exp().cpu(),
        fallback_values=torch.cat(next_values, 1).cpu(),  # where time limits leave no state
    )
    for row, mean_return in zip(biases, returns.mean(-1).tolist()):
        row["eval/stochastic_return"] = mean_return
    return biases


def log_network_metrics(agent: Agent, buffer: ReplayBuffer, batch: runlog.Batch, step: int) -> None:
    """Metrics of every layer on replay transitions, with the gradients of the losses there."""
    num_samples = agent.args.metrics_samples
    generators = seeding.make_generators(batch.seeds, "metrics", step, device=buffer.rows.device)
    samples = buffer.sample(num_samples, generators=generators)
    samples["noise"] = seeding.normals(generators, num_samples, agent.action_dim)

    def actor_loss(part: dict) -> torch.Tensor:
        loss, _ = agent.actor_loss(part, part["noise"])
        return loss.sum()

    def qf_loss(part: dict) -> torch.Tensor:
        loss, _ = agent.qf_loss(part, part["noise"])
        return loss.sum()

    trained = agent.actor_optimizer
    grads = metrics.mean_gradients(actor_loss, samples, trained.parameters_, size=256, dim=1)
    grads = dict(zip(trained.names, grads))
    inputs = (samples["obs"],)
    report = reports.network_report(agent.actor, inputs, grads, 1, max_samples=num_samples)
    batch.log_report(step, "network/actor", report, skip_diverged=True)

    trained = agent.qf_optimizer
    grads = metrics.mean_gradients(qf_loss, samples, trained.parameters_, size=256, dim=1)
    grads = dict(zip(trained.names, grads))
    inputs = (samples["obs"], samples["actions"])
    report = reports.network_report(agent.qf, inputs, grads, 2, max_samples=num_samples)
    batch.log_report(step, "network/qf", report, skip_diverged=True)


def log_ntk_ranks(agent: Agent, buffer: ReplayBuffer, batch: runlog.Batch, step: int) -> None:
    """Ranks of the neural tangent kernels of each critic and of the sum of mean actions, on replay
    transitions."""
    generators = seeding.make_generators(batch.seeds, "ntk", step, device=buffer.rows.device)
    samples = buffer.sample(agent.args.ntk_samples, generators=generators)

    def mean_actions(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        mean, _ = outputs
        return mean

    def log(network: str, ranks: dict[str, torch.Tensor]) -> None:
        report = {f"ntk_{name}": rank for name, rank in ranks.items()}
        batch.log_report(step, f"network/{network}", report, skip_diverged=True)

    inputs = (samples["obs"], samples["actions"])
    log("actor", metrics.ntk_rank(agent.actor, inputs[:1], batch_dims=1, output=mean_actions))
    log("qf", metrics.ntk_rank(agent.qf, inputs, batch_dims=2, sample_dim=1))


# ---- checks, before anything is created ----------------------------------------------------------


def replay_capacity(args: Args) -> int:
    """Transitions that the replay buffer of each seed holds: no more than are added before it is
    cleared."""
    longest = args.total_timesteps
    if args.reset_replay:
        longest = args.total_timesteps // len(args.env_id)
    return min(args.buffer_size, longest)


def big_tensors(args: Args, obs_dim: int, action_dim: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the largest memory users, all seeds together, by the flags that set them: (on the
    device, on the host)."""
    actor = memory.mlp_size(obs_dim, args.widths, args.activation, 2 * action_dim, args.layer_norm)
    critic = memory.mlp_size(obs_dim + action_dim, args.widths, args.activation, 1, args.layer_norm)
    trained = actor.parameters + 2 * critic.parameters
    learner = 4 * trained + 2 * critic.parameters  # gradients, Adam's two moments; the targets
    transition = 2 * obs_dim + action_dim + 2
    noise = 2 * action_dim
    bytes_of_seeds = 4 * args.num_seeds  # of one float32 number per seed

    # of temporary tensors only the largest counts
    block = args.utd * args.batch_size * (transition + noise + 2)  # 2: the rows' int64 numbers
    backward = args.batch_size * (actor.activations + 2 * critic.activations)
    moments = {"batch_size utd widths num_seeds": block + backward}
    if args.metrics_frequency:
        of_sample = transition + max(actor.activations, 2 * critic.activations)
        moments["metrics_samples widths num_seeds"] = args.metrics_samples * of_sample
    if args.ntk_frequency:
        gradients = args.ntk_samples * max(actor.parameters, 2 * critic.parameters)
        moments["ntk_samples widths num_seeds"] = 2 * gradients  # two copies during the product
    largest = max(moments, key=moments.get)

    on_device = {
        "widths num_seeds": bytes_of_seeds * learner,
        "buffer_size num_seeds": bytes_of_seeds * replay_capacity(args) * transition,
        largest: bytes_of_seeds * moments[largest],
    }
    # at least one step of each episode
    on_host = {"num_eval_episodes num_seeds": bytes_of_seeds * args.num_eval_episodes * transition}
    return on_device, on_host


def check_actor_updates(args: Args) -> None:
    """Raises UserError if --policy-frequency is so large that a task ends without an actor update,
    or if it neither divides --utd nor is a multiple of it.

    With --utd 2, step s performs the critic updates 2 s + 1 and 2 s + 2. A task of 60 steps with
    --learning-starts 20 learns in steps 20 to 60, which are the updates 41 to 122. The actor is
    updated at each multiple of --policy-frequency: 100 gives one actor update, 124 none.
    """
    if args.utd % args.policy_frequency and args.policy_frequency % args.utd:
        problem = f"must divide --utd {args.utd} or be a multiple of it"
        raise runlog.UserError(f"--policy-frequency {args.policy_frequency}: {problem}")
    task_steps = args.total_timesteps // len(args.env_id)
    for start in range(0, args.total_timesteps, task_steps):
        first_step = start + args.learning_starts
        last_step = start + task_steps
        # critic updates, counted as if every step had some
        before = first_step * args.utd
        last = (last_step + 1) * args.utd
        if last // args.policy_frequency == before // args.policy_frequency:
            problem = f"no actor update in steps {first_step} to {last_step}; lower it"
            raise runlog.UserError(f"--policy-frequency {args.policy_frequency}: {problem}")


def check_settings(args: Args) -> None:
    """Raises UserError (flag, value, remedy) for values that cannot work on any machine. A sweep
    calls this before it starts anything."""
    runlog.check_range(args, "[0, inf)", "seed threads learning_starts checkpoint_minutes")
    runlog.check_range(args, "[0, inf)", "metrics_frequency ntk_frequency")
    runlog.check_range(args, "[1, inf)", "num_seeds checkpoint_frequency utd batch_size")
    runlog.check_range(args, "[1, inf)", "policy_frequency widths")
    runlog.check_range(args, "[1, inf)", "eval_frequency num_eval_episodes log_frequency")
    runlog.check_range(args, "[2, inf)", "metrics_samples ntk_samples")
    runlog.check_range(args, f"[{args.batch_size}, inf)", "buffer_size")
    runlog.check_range(args, "(0, inf)", "learning_rate init_temperature")
    runlog.check_range(args, "(-inf, inf)", "target_entropy_scale")
    runlog.check_range(args, "[0, 1)", "gamma")
    runlog.check_range(args, "(0, 1]", "tau")
    check_actor_updates(environments.sequence_length(args))
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        activations.check_schedule([args.activation], args.rational)
    environments.check_ids(args.env_id)


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created; returns args with the
    total length of a task sequence."""
    check_settings(args)
    args = environments.sequence_length(args)
    pipes_of_a_worker = 4
    files_per_run = pipes_of_a_worker if args.async_envs else 0
    runlog.check_flags(args, args.num_seeds, files_per_run)
    device = runlog.find_device(args.device)
    if args.cudagraphs and cudagraphs.can_run_on(device) and not uses_graph(args, device):
        problem = f"--policy-frequency {args.policy_frequency} does not divide --utd {args.utd}"
        runlog.warn(f"{problem}: no CUDA graph, so updates are slower")
    obs_dim, action_dim = environments.check_environments(args.env_id, args.seed)
    if not args.evaluate:
        on_device, on_host = big_tensors(args, obs_dim, action_dim)
        runlog.check_memory(args, device, on_device, on_host)
    return args


# ---- training ------------------------------------------------------------------------------------


def uses_graph(args: Args, device: torch.device) -> bool:
    """Whether a CUDA graph replays the block of updates. The block must be the same at every step,
    so the period of actor updates has to fit into it."""
    fits = args.utd % args.policy_frequency == 0
    return args.cudagraphs and cudagraphs.can_run_on(device) and fits


def train(args: Args, batch: runlog.Batch) -> None:
    """Trains the seeds of the batch together, from the step of their checkpoint."""
    device = runlog.find_device(args.device)
    start = batch.start
    tasks = environments.TaskSequence(
        args.env_id, batch.seeds, args.total_timesteps, start, args.async_envs
    )
    obs_dim, action_dim = environments.sizes(tasks.envs)
    agent = Agent(obs_dim, action_dim, args, batch.seeds, device)
    num_seeds = len(batch.seeds)
    buffer = ReplayBuffer(num_seeds, replay_capacity(args), obs_dim, action_dim, device)
    generators = {
        "act": seeding.make_generators(batch.seeds, "act", device=device),
        "update": seeding.make_generators(batch.seeds, "update", device=device),
    }
    episodes = [environments.Episode() for _ in batch.seeds]
    info = {}  # newest losses; with --policy-frequency not every update has those of the actor

    state = batch.load()
    if state:
        runlog.restore_module(agent, state["agent"])
        seeding.set_states(generators, state["generators"])
        for i, transitions in enumerate(batch.load_transitions()):
            buffer.restore(i, transitions["rows"], start)
        episodes = [environments.Episode.from_state(saved) for saved in state["episode"]]
        tasks.restore(state["last_eval"])
        infos = state.get("info", [{}])  # older checkpoints have none
        for key in infos[0]:
            info[key] = torch.stack([values[key] for values in infos]).to(device)
    if args.reset_replay:
        buffer.first = tasks.current * tasks.task_steps
    obs = environments.begin_episodes(tasks.envs, batch, start, episodes)

    is_graphed = uses_graph(args, device)
    if is_graphed:
        update_block = cudagraphs.graphed(agent.update_block)
    label = f"{tasks.name} {args.activation}"
    progress = runlog.Progress(start, args.total_timesteps, label, args.learning_starts)
    saved_step = start
    for step in range(start + 1, args.total_timesteps + 1):
        # checked first, so that a resumed run ends at once as well
        if (step - 1) % args.log_frequency == 0 and all(batch.diverged()):
            tasks.carry_forward(batch, step - 1, args.total_timesteps, args.eval_frequency)
            break
        at_end = step == args.total_timesteps
        num_stored = step - buffer.first  # transitions in each replay buffer, including this step

        # act
        if num_stored <= args.learning_starts:
            actions = environments.random_actions(generators["act"], action_dim)
        else:
            actions = agent.act(obs, generators["act"])
        transition = environments.take_step(tasks.envs, obs, actions)
        environments.log_episodes(batch, step, episodes, transition)
        obs = transition.next_obs

        # store
        buffer.add(
            transition.obs,
            transition.actions,
            transition.rewards,
            transition.terminations,
            transition.real_next_obs,
            transition.failed,
        )

        # measure the networks before the updates: at learning_starts they are untrained
        always = num_stored == args.learning_starts or at_end
        if args.metrics_frequency and (always or step % args.metrics_frequency == 0):
            log_network_metrics(agent, buffer, batch, step)
        if args.ntk_frequency and (always or step % args.ntk_frequency == 0):
            log_ntk_ranks(agent, buffer, batch, step)

        # learn
        if num_stored >= args.learning_starts:  # from the last random step on, which is stored
            samples = buffer.sample(args.utd, args.batch_size, generators=generators["update"])
            shape = (args.utd, 2, args.batch_size, action_dim)
            noise = seeding.normals(generators["update"], *shape, axis=2)
            if is_graphed:  # the same block at every step: see uses_graph
                info |= update_block(samples, noise)
            else:
                info |= agent.update_block(samples, noise, step * args.utd)
            batch.note_losses(step, {"qf_loss": info["qf_loss"]})
            if "actor_loss" in info:
                batch.note_losses(step, {"actor_loss": info["actor_loss"]})
        if info and (step % args.log_frequency == 0 or at_end):
            speed = progress.speed(step)
            updates_per_second = speed * args.utd * num_seeds
            rows = {f"losses/{key}": value for key, value in info.items()}
            batch.log(step, rows, skip_diverged=True)
            batch.log(step, {"perf/sps": speed, "perf/updates_per_second": updates_per_second})

        # evaluate
        if step % args.eval_frequency == 0 or tasks.ends_at(step):
            index = math.ceil(step / args.eval_frequency)
            number = args.num_eval_episodes
            first, _ = environments.evaluation_episodes(index, number)
            returns = tasks.evaluate(agent.act, first, number)
            biases = q_bias(agent, tasks.current_eval_envs(), batch.seeds, index)
            rows = tasks.log(batch, step, returns, biases)
            shown = ("eval/success", "eval/episodic_return", "overestimation/mean")
            progress.note_means(step, rows, shown, tasks.label)

        # start the next task
        if tasks.ends_at(step) and not at_end:
            tasks.begin_next()
            episodes = [environments.Episode(errors=episode.errors) for episode in episodes]
            obs = environments.begin_episodes(tasks.envs, batch, step, episodes)
            if args.reset_replay:
                buffer.clear()
                info = {}
            if args.reset_optimizer:
                agent.reset_optimizers()

        # save
        if batch.save_is_due(step, at_end):
            state = {
                "agent": agent.state_dict(),
                "generators": seeding.get_states(generators),
                "episode": [episode.state() for episode in episodes],
                "last_eval": tasks.state(),
                "info": info,
            }
            rows = {"rows": buffer.newest(step - saved_step)}
            batch.save(step, state, rows, keep_transitions=buffer.capacity)
            saved_step = step
            if batch.save_is_regular:
                batch.draw(step, plots.draw_run)
            if batch.save_is_regular and args.capture_video:
                for i, folder in enumerate(batch.folders):
                    path = folder / "videos" / f"step-{step}.mp4"
                    environments.film(path, tasks.env_id, batch.seeds, i, agent.act)
                    batch.runs[i].log_video(step, "videos/episode", path)
        progress.update(step)
    batch.finish(keep_replay=args.keep_replay)
    tasks.close()
    progress.close()


# ---- after the training --------------------------------------------------------------------------


def load_agent(folder: str | Path, device: str = "cpu") -> Agent:
    """The agent of a run's newest checkpoint, finished or not, as `--evaluate` plays it.

    It has no seed axis: `agent.act` takes an observation (obs_dim,) to an action (action_dim,) in
    [-1, 1], the mode of the policy; `agent.actor` takes (batch, obs_dim) to mean and log-std,
    (batch, action_dim) each, before the tanh; `agent.qf` and `agent.qf_target` take (batch,
    obs_dim) and (batch, action_dim) to (2, batch), the values of the twin critics. Raises UserError
    like `runlog.load`, and if there is no checkpoint yet.
    """
    run = runlog.load(folder, Args)
    weights = loading.weights_of(run, "agent")
    obs_dim = len(weights["actor.hidden.0.branches.0.linear.weight"])
    action_dim = len(weights["actor.mean.bias"])
    args = dataclasses.replace(run.config, compile=False)
    with runlog.value_errors_are_user_errors():
        agent = Agent(obs_dim, action_dim, args, args.seed, runlog.find_device(device))
    loading.restore(agent, run, "agent")
    return agent


def evaluate_finished(args: Args, run) -> None:
    """--evaluate: plays num_eval_episodes of each task with the last checkpoint, prints the
    returns, and films one more episode."""
    step = evaluation.finished_step(run)
    agent = load_agent(run.folder)
    seed = run.config["seed"]
    for task, env_id in enumerate(args.env_id, 1):
        envs = environments.make_envs(env_id, [seed], "play", args.async_envs)
        played = f"seed {seed}"
        path = run.folder / "videos" / f"evaluation-{step}.mp4"
        if len(args.env_id) > 1:
            played = f"seed {seed}, task {task}"
            path = path.with_stem(f"evaluation-{step}-task{task}")
        (values,) = environments.evaluate(envs, agent.act, 0, args.num_eval_episodes)
        values["return of the video"] = environments.film(path, env_id, [seed], 0, agent.act)
        evaluation.mirror_video(run, step, path)
        summary = ", ".join(f"{key} {value:.1f}" for key, value in values.items())
        print(f"{played}: {summary}; {path}", flush=True)
        envs.close()


def runs_of(args: Args) -> list:
    """The runs of these flags, one per seed. Creates nothing."""
    return runlog.seed_runs(environments.sequence_length(args), "sac_continuous")


def dashboard(args: Args) -> dict:
    """The TensorBoard and W&B panels for these runs (docs/dashboards.md)."""
    panels = [
        "evaluation return",
        "evaluation success rate",
        "training return",
        "evaluation return of each task",
        "evaluation success rate of each task",
        "sequential tasks",
        "overestimation: Q minus return",
        "overestimation over max(|return|, 10)",
        "overestimation: standard deviation over states",
        "mean value on the batch",
        "loss of the values",
        "weight norm of each network",
        "gradient norm of each network",
        "rank of the tangent kernel",
        "gradient norm of the coefficients",
        "environment steps per second",
        "updates per second",
    ]
    return plots.dashboards.sections(panels, ("actor", "qf1", "qf2"), f"fc{len(args.widths)}")


def main(args: Args) -> None:
    args = validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    runs = runs_of(args)
    if args.evaluate:
        for run in runs:
            evaluate_finished(args, run)
        return
    with runlog.open_batches(runs, args, sections=dashboard(args)) as batches:
        for batch in batches:
            train(args, batch)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
