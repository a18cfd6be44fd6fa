"""Soft Actor-Critic on DeepMind Control, Meta-World and Gymnasium, for studying activation functions (CR, 2507.14736).

All seeds of a cell train in one process: parameters, optimisers, replay and noise carry a leading seed axis, and the
losses below read as for one seed. One seed is one run folder; the same command again resumes it or says "finished".
Several --env-id are tasks that the same networks learn one after the other.

    python sac_continuous.py --env-id dm_control/cartpole-swingup-v0 --activation crational --utd 2 --num-seeds 3

Results, implementation details and every difference from CleanRL's SAC: docs/sac_continuous.md.
"""

import dataclasses
import functools
import math

import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import activations
import environments
import metrics
import runlog


@dataclasses.dataclass
class Args:
    seed: int = 1  # first seed
    num_seeds: int = runlog.option(1)  # seeds trained together in this process: seed, seed + 1, ...
    total_timesteps: int = 1_000_000  # environment steps of each seed; several tasks: tasks x --steps-per-task
    device: str = runlog.option("auto")  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int = runlog.option(0)  # CPU threads; 0 = torch's choice
    compile: bool = runlog.option(True)  # torch.compile the update; --no-compile runs it eagerly
    cudagraphs: bool = runlog.option(False)  # replay the UTD block as one CUDA graph (untried)
    runs_dir: str = runlog.option("runs")  # where the run folders are
    fresh: bool = runlog.option(False)  # delete an existing run of these flags and start anew
    checkpoint_frequency: int = runlog.option(25_000)  # environment steps between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # most minutes between checkpoints; 0 = any
    keep_replay: bool = runlog.option(False)  # keep the replay on disk once the run has finished
    evaluate: bool = runlog.option(False)  # play with the finished run of these flags, save a video
    capture_video: bool = runlog.option(False)  # save a video of one episode with every checkpoint
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    env_id: tuple[str, ...] = ("dm_control/cheetah-run-v0",)  # dm_control/DOMAIN-TASK-v0, metaworld/TASK-v3, or others
    steps_per_task: int | None = None  # environment steps of each task, if --env-id names several
    reset_replay: bool = True  # begin each further task with an empty replay and --learning-starts random steps
    reset_optimizer: bool = True  # begin each further task with Adam's moments and step counts at 0
    async_envs: bool = runlog.option(False)  # workers step the environments (pays for Meta-World)
    # algorithm; the defaults are those of CR's group
    utd: int = 1  # gradient updates per environment step (update-to-data ratio)
    batch_size: int = 256  # transitions per update
    buffer_size: int = 1_000_000  # replay capacity of each seed, in transitions
    learning_starts: int = 5_000  # environment steps with uniformly random actions before the first update
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # Polyak coefficient of the target networks, applied at every update
    learning_rate: float = 3e-4  # Adam's learning rate for actor, critics and temperature
    policy_frequency: int = 1  # critic updates per actor and temperature update; must divide --utd or be a multiple
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
    ntk_frequency: int = 50_000  # environment steps between ranks of the neural tangent kernel; 0 = off
    ntk_samples: int = 64  # replay transitions that the kernel is taken on


def make_envs(args: Args, seeds: list[int], stream: str, task: int = 0) -> gym.vector.VectorEnv:
    """The environments of one task, one per seed (environments.make_envs)."""
    if task and stream == "train":
        stream += str(task + 1)  # training episodes differ from task to task
    return environments.make_envs(args.env_id[task], seeds, stream, args.async_envs)


# ---- networks: tensors are (seeds, batch, ...), those of the twin critics (seeds, 2, batch, ...) ---------------------


class Actor(nn.Module):
    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds):
        super().__init__()
        seeds = runlog.derive_seeds(seeds, "actor")
        self.hidden = activations.mlp(obs_dim, args.widths, args.activation, seeds, args.layer_norm, args.rational)
        head = functools.partial(activations.Linear, self.hidden[-1].width, action_dim)
        self.mean = head(seeds=runlog.derive_seeds(seeds, "mean"))
        self.log_std = head(seeds=runlog.derive_seeds(seeds, "log_std"), init=activations.orthogonal(1.0))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.hidden(obs)
        return self.mean(x), 6.0 * torch.tanh(self.log_std(x)) - 4.0  # log-std squashed to [-10, 2]

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
        inputs = obs_dim + action_dim
        self.hidden = activations.mlp(inputs, args.widths, args.activation, seeds, args.layer_norm, args.rational)
        self.q = activations.Linear(self.hidden[-1].width, 1, seeds=runlog.derive_seeds(seeds, "head"))

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.q(self.hidden(torch.cat([obs, actions], -1).unsqueeze(-3))).squeeze(-1)


class Agent(nn.Module):
    """All that an update changes: networks, targets, temperature, optimisers. Losses are (seeds,) tensors."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds, device: torch.device):
        super().__init__()
        self.args = args
        self.target_entropy = -args.target_entropy_scale * action_dim
        self.actor = Actor(obs_dim, action_dim, args, seeds)
        self.qf, self.qf_target = (SoftQNetworks(obs_dim, action_dim, args, seeds) for _ in range(2))
        self.log_alpha = nn.Parameter(torch.full((len(seeds), 1), math.log(args.init_temperature)))
        adam = functools.partial(activations.Adam, learning_rate=args.learning_rate, rational=args.rational)
        self.actor_optimizer = adam(self.actor)
        self.qf_optimizer = adam(self.qf)
        self.alpha_optimizer = adam(nn.ParameterList([self.log_alpha]))
        self.to(device)
        torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad inside a compiled function
        compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False, disable=not args.compile)
        self.sample = compiled(self.actor.sample)
        self.update = compiled(self.one_update)

    @torch.no_grad()
    def act(self, obs: np.ndarray, generators: list | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Actions (seeds, action_dim), log-probs (seeds,) for one observation per seed; without generators the mode."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.log_alpha.device).unsqueeze(1)
        shape = 1, self.actor.mean.bias.shape[-1]
        noise = obs.new_zeros(len(obs), *shape) if generators is None else runlog.normals(generators, *shape)
        actions, log_probs = (x.squeeze(1).cpu().numpy() for x in self.sample(obs, noise))
        return np.nan_to_num(actions), log_probs  # a diverged seed stands still

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

    def one_update(self, batch: dict, noise: torch.Tensor, update_policy: bool = True) -> dict[str, torch.Tensor]:
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

    def restore(self, i: int, state: dict[str, torch.Tensor]) -> None:
        """Seed i of every tensor, and the step counts that the seeds share, from a checkpoint."""
        for name, tensor in self.state_dict().items():
            (tensor[i] if tensor.dim() else tensor).copy_(state[name])


class ReplayBuffer:
    """A ring of transitions for each seed; a row is obs, actions, rewards, terminations, next_obs. What was added
    before number `first` counts as cleared."""

    def __init__(self, num_seeds: int, capacity: int, obs_dim: int, action_dim: int, device: torch.device):
        self.columns = [obs_dim, action_dim, 1, 1, obs_dim]
        self.rows = torch.empty(num_seeds, capacity, sum(self.columns), device=device)
        self.seed_index = torch.arange(num_seeds, device=device)[:, None]
        self.num_added = 0
        self.first = 0

    def add(self, obs, actions, rewards, terminations, next_obs, failed) -> None:
        """One transition of each seed. Where `failed`, the environment gave none: the one before it is stored again."""
        row = np.concatenate([obs, actions, rewards[:, None], terminations[:, None], next_obs], -1, dtype=np.float32)
        row = torch.from_numpy(row).to(self.rows.device)
        if failed.any() and self.num_added > self.first:
            before = self.rows[:, (self.num_added - 1) % self.rows.shape[1]]
            row = torch.where(torch.from_numpy(failed).to(row.device)[:, None], before, row)
        self.rows[:, self.num_added % self.rows.shape[1]] = row
        self.num_added += 1

    def sample(self, *shape: int, generators: list[torch.Generator]) -> dict[str, torch.Tensor]:
        """Uniform transitions, name -> (*shape[:-1], seeds, shape[-1][, columns]); each seed's by its own generator."""
        capacity = self.rows.shape[1]
        size = min(self.num_added - self.first, capacity)
        index = torch.stack([torch.randint(size, shape, generator=g, device=g.device) for g in generators], -2)
        parts = self.rows[self.seed_index, (self.first + index) % capacity].split(self.columns, -1)
        named = zip(("obs", "actions", "rewards", "terminations", "next_obs"), parts)
        return {name: x.squeeze(-1) if name in ("rewards", "terminations") else x for name, x in named}

    def newest(self, count: int) -> torch.Tensor:
        """The newest rows of each seed in order, (seeds, count, row), as many as the ring still has."""
        index = torch.arange(self.num_added - min(count, self.rows.shape[1]), self.num_added) % self.rows.shape[1]
        return self.rows[:, index].cpu()

    def restore(self, i: int, rows: torch.Tensor, num_added: int) -> None:
        """Puts the newest rows of seed i back where they were."""
        index = torch.arange(num_added - len(rows), num_added) % self.rows.shape[1]
        self.rows[i, index] = rows.to(self.rows.device)
        self.num_added = num_added


# ---- evaluation and metrics have their own generators and environments: they do not change the training --------------


@torch.no_grad()
def evaluate(agent: Agent, envs, seeds: list[int], index: int, stochastic: bool) -> list[dict[str, float]]:
    """Plays num_eval_episodes of each seed for the index-th time; means over episodes, one dict per seed.
    Stochastic: also Q - G, the mean of the critics minus the soft Monte-Carlo return (metrics.q_overestimation)."""
    number = agent.args.num_eval_episodes
    device = agent.log_alpha.device
    generators = [runlog.make_generator(seed, "eval", index, device=device) for seed in seeds]
    act = functools.partial(agent.act, generators=generators if stochastic else None)
    columns = environments.play_episodes(envs, act, (2 * index + stochastic) * number, number)  # (seeds, time, ...)
    *spaces, rewards, terminations, truncations, log_probs, success, dones = map(torch.from_numpy, columns)
    returns, lengths = metrics.first_episodes(rewards, dones, number)
    if not stochastic:
        successes = metrics.first_episodes(success, dones, number, torch.amax)[0].mean(-1).tolist()
        results = [{"eval/episodic_return": r, "eval/success": s} for r, s in zip(returns.mean(-1).tolist(), successes)]
        return [{key: value for key, value in row.items() if not math.isnan(value)} for row in results]
    q = []
    next_values = []
    for part in zip(*(x.to(device).split(1_000, 1) for x in spaces)):
        q.append(agent.qf(*part[:2]).mean(-2))
        next_actions, next_log_probs = agent.actor.sample(part[2], runlog.normals(generators, *part[1].shape[1:]))
        next_values.append(agent.qf(part[2], next_actions).mean(-2) - agent.log_alpha.exp() * next_log_probs)
    columns = [torch.cat(q, 1).cpu(), rewards, terminations, truncations, log_probs, torch.cat(next_values, 1).cpu()]
    bias = metrics.overestimation_of_first(lengths, agent.args.gamma, agent.log_alpha.exp().cpu(), *columns)
    return [row | {"eval/stochastic_return": r} for row, r in zip(bias, returns.mean(-1).tolist())]


def log_network_metrics(agent: Agent, buffer: ReplayBuffer, runs: list[runlog.Run], seeds: list[int], step: int):
    """Health of every layer on replay transitions, with the gradients of the losses there, into each seed's run."""
    generators = [runlog.make_generator(seed, "metrics", step, device=buffer.rows.device) for seed in seeds]
    batch = buffer.sample(agent.args.metrics_samples, generators=generators)
    batch["noise"] = runlog.normals(generators, *batch["actions"].shape[1:])
    limit = batch["noise"].shape[1]

    def gradients(loss, optimizer) -> dict[str, torch.Tensor]:
        grads = metrics.mean_gradients(lambda x: loss(x, x["noise"])[0].sum(), batch, optimizer.parameters_, 256, 1)
        return dict(zip(optimizer.names, grads))

    grads = gradients(agent.actor_loss, agent.actor_optimizer)
    report = metrics.network_report(agent.actor, (batch["obs"],), grads, 1, max_samples=limit)
    runlog.log_report(runs, step, "network/actor", report)
    grads = gradients(agent.qf_loss, agent.qf_optimizer)
    inputs = (batch["obs"], batch["actions"])
    report = metrics.network_report(agent.qf, inputs, grads, 2, max_samples=limit)
    runlog.log_report(runs, step, "network/qf", report)


def log_ntk_ranks(agent: Agent, buffer: ReplayBuffer, runs: list[runlog.Run], seeds: list[int], step: int):
    """Ranks of the neural tangent kernel, of either critic and of the sum of mean actions, on replay transitions."""
    generators = [runlog.make_generator(seed, "ntk", step, device=buffer.rows.device) for seed in seeds]
    batch = buffer.sample(agent.args.ntk_samples, generators=generators)
    of_actor = metrics.ntk_rank(agent.actor, (batch["obs"],), 1, output=lambda mean_and_log_std: mean_and_log_std[0])
    runlog.log_ntk(runs, step, "network/actor", of_actor)
    runlog.log_ntk(runs, step, "network/qf", metrics.ntk_rank(agent.qf, (batch["obs"], batch["actions"]), 2, 1))


def big_tensors(args: Args, obs_dim: int, action_dim: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of what takes the memory, of all seeds, by the flags that set it: (on the device, on the host)."""
    actor = runlog.mlp_size(obs_dim, args.widths, args.activation, 2 * action_dim, args.layer_norm)
    critic = runlog.mlp_size(obs_dim + action_dim, args.widths, args.activation, 1, args.layer_norm)
    numbers = runlog.ADAM_COPIES * (actor.parameters + 2 * critic.parameters) + 2 * critic.parameters  # and the targets
    row = 2 * obs_dim + action_dim + 2
    capacity = min(args.buffer_size, args.steps_per_task or args.total_timesteps)
    if not args.reset_replay:
        capacity = min(args.buffer_size, args.total_timesteps)
    batches = args.utd * args.batch_size * (row + 2 * action_dim + 2)  # with the noise and the rows' int64 numbers
    activations_of_update = args.batch_size * (actor.activations + 2 * critic.activations)
    transient = {"batch_size utd widths num_seeds": batches + activations_of_update}
    if args.metrics_frequency:
        of_sample = row + max(actor.activations, 2 * critic.activations)
        transient["metrics_samples widths num_seeds"] = args.metrics_samples * of_sample
    if args.ntk_frequency:
        gradients = args.ntk_samples * max(actor.parameters, 2 * critic.parameters)
        transient["ntk_samples widths num_seeds"] = runlog.NTK_COPIES * gradients
    largest = max(transient, key=transient.get)  # one after the other
    numbers_on_device = {"widths num_seeds": numbers, "buffer_size num_seeds": capacity * row}
    numbers_on_device[largest] = transient[largest]
    bytes_of_seed = runlog.FLOAT_BYTES * args.num_seeds
    on_device = {fields: bytes_of_seed * count for fields, count in numbers_on_device.items()}
    evaluation = args.num_eval_episodes * row  # at least one step of each episode
    on_host = {"num_eval_episodes num_seeds": bytes_of_seed * evaluation}
    return on_device, on_host


def check_actor_updates(args: Args) -> None:
    """Raises UserError if --policy-frequency is so large that a task ends without an update of its actor."""
    task_steps = args.steps_per_task or args.total_timesteps
    for start in range(0, args.total_timesteps, task_steps):
        first_step = start + args.learning_starts
        last_step = start + task_steps
        # critic updates, counted as if there were some at every step
        before = first_step * args.utd
        last = (last_step + 1) * args.utd
        if last // args.policy_frequency == before // args.policy_frequency:
            told = f"the actor would not be updated in the steps {first_step} to {last_step}"
            raise runlog.UserError(f"--policy-frequency {args.policy_frequency}: {told}; lower it")


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created; returns args with a sequence's length."""
    runlog.check_range(
        args, "[0, inf)", "seed threads learning_starts metrics_frequency ntk_frequency checkpoint_minutes"
    )
    runlog.check_range(args, "[1, inf)", "num_seeds checkpoint_frequency utd batch_size policy_frequency")
    runlog.check_range(args, "[1, inf)", "widths eval_frequency num_eval_episodes log_frequency")
    runlog.check_range(args, "[2, inf)", "metrics_samples ntk_samples")
    runlog.check_range(args, f"[{args.batch_size}, inf)", "buffer_size")
    runlog.check_range(args, "(0, inf)", "learning_rate init_temperature")
    runlog.check_range(args, "(-inf, inf)", "target_entropy_scale")
    runlog.check_range(args, "[0, 1)", "gamma")
    runlog.check_range(args, "(0, 1]", "tau")
    pipes_of_a_worker = 4
    files_per_run = pipes_of_a_worker if args.async_envs else 0
    runlog.check_flags(args, args.num_seeds, files_per_run)
    args = runlog.sequence_length(args)
    if args.utd % args.policy_frequency and (args.cudagraphs or args.policy_frequency % args.utd):
        remedy = "divide --utd" if args.cudagraphs else "divide --utd or be a multiple of it"
        raise runlog.UserError(f"--policy-frequency {args.policy_frequency}: must {remedy}")
    check_actor_updates(args)
    device = runlog.find_device(args.device)
    if device.type != "cuda" and args.cudagraphs:
        raise runlog.UserError(f"--cudagraphs with --device {args.device}: needs a CUDA device; use --no-cudagraphs")
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
    obs_dim, action_dim = environments.check_environments(args.env_id, args.seed)
    if not args.evaluate:
        on_device, on_host = big_tensors(args, obs_dim, action_dim)
        runlog.check_memory(args, device, on_device, on_host)
    return args


def train(args: Args, seeds: list[int], runs: list[runlog.Run], start: int) -> None:
    """Trains these seeds together from step `start`, at which each has a checkpoint (0: from the beginning)."""
    device = runlog.find_device(args.device)
    num_seeds = len(seeds)
    task_steps = args.total_timesteps // len(args.env_id)
    task = min(start, args.total_timesteps - 1) // task_steps
    envs = make_envs(args, seeds, "train", task)
    eval_envs = {name: make_envs(args, seeds, "eval", args.env_id.index(name)) for name in dict.fromkeys(args.env_id)}
    (obs_dim,) = envs.single_observation_space.shape
    (action_dim,) = envs.single_action_space.shape
    agent = Agent(obs_dim, action_dim, args, seeds, device)
    capacity = min(args.buffer_size, task_steps if args.reset_replay else args.total_timesteps)
    buffer = ReplayBuffer(num_seeds, capacity, obs_dim, action_dim, device)
    buffer.first = task * task_steps if args.reset_replay else 0
    generators = {use: [runlog.make_generator(s, use, device=device) for s in seeds] for use in ("act", "update")}
    episodes = [runlog.new_episode() for _ in seeds]
    last_eval = [{"tasks": [], "bias": {}, "history": []} for _ in seeds]
    last_info = [{} for _ in seeds]
    divergence = runlog.Divergence(seeds, device)
    for i, run in enumerate(runs):
        _, state, transitions = run.load_checkpoint(start)
        if state:
            agent.restore(i, state["agent"])
            buffer.restore(i, transitions["rows"], start)
            episodes[i] = state["episode"]
            last_eval[i] = state["last_eval"]
            last_info[i] = state.get("info", {})  # older checkpoints have none
            divergence.step[i] = state["diverged"]
            runlog.set_states({use: each[i] for use, each in generators.items()}, state["generators"])
    obs, infos = envs.reset(options={key: [episode[key] for episode in episodes] for key in ("number", "actions")})
    environments.log_errors(runs, start, episodes, infos)

    def update_block(batches: dict[str, torch.Tensor], noise: torch.Tensor) -> dict[str, torch.Tensor]:
        info = {}
        for u in range(args.utd):
            end_of_period = (step * args.utd + u + 1) % args.policy_frequency == 0
            info |= agent.update({name: part[u] for name, part in batches.items()}, noise[u], end_of_period)
        return info

    update_block = runlog.graphed(update_block) if args.cudagraphs else update_block
    progress = runlog.Progress(start, args.total_timesteps, f"{runlog.env_name(args.env_id)} {args.activation}")
    save_times = runlog.SaveTimes(start, args.checkpoint_frequency, args.checkpoint_minutes)
    saved_step = start
    info = {}  # of the newest updates; with --policy-frequency not each of them is the actor's
    for key in last_info[0]:
        info[key] = torch.stack([each[key] for each in last_info]).to(device)
    for step in range(start + 1, args.total_timesteps + 1):
        done = step - 1
        if done % args.log_frequency == 0 and all(divergence.step):  # here, so that a resumed run ends at once as well
            for later in runlog.multiples(done, args.total_timesteps, args.eval_frequency, task_steps):
                runlog.log_evaluations(runs, later, last_eval, task_steps)
            break
        at_end = step == args.total_timesteps
        filled = step - buffer.first
        # act and store
        if filled <= args.learning_starts:
            uniform = torch.stack([torch.rand(action_dim, generator=g, device=device) for g in generators["act"]])
            actions = (2 * uniform - 1).cpu().numpy()
        else:
            actions, _ = agent.act(obs, generators["act"])
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        dones = terminations | truncations
        real_next_obs, success = environments.true_successors(next_obs, infos, dones)
        failed = environments.count_errors(infos, num_seeds)[0] > 0
        buffer.add(obs, actions, rewards, terminations, real_next_obs, failed)
        obs = next_obs
        runlog.log_episodes(runs, step, episodes, actions, rewards, success, dones, divergence.step)
        environments.log_errors(runs, step, episodes, infos)
        for frequency, measure in ((args.metrics_frequency, log_network_metrics), (args.ntk_frequency, log_ntk_ranks)):
            if frequency and (step % frequency == 0 or filled == args.learning_starts or at_end):
                measure(agent, buffer, runs, seeds, step)  # before the updates: the first are of new networks
        # learn
        if filled >= args.learning_starts:
            batches = buffer.sample(args.utd, args.batch_size, generators=generators["update"])
            noise = runlog.normals(generators["update"], args.utd, 2, args.batch_size, action_dim, axis=2)
            info = info | update_block(batches, noise)
            divergence.update(step, {key: info[key] for key in ("qf_loss", "actor_loss") if key in info})
        # measure
        if info and (step % args.log_frequency == 0 or at_end):
            diverged = divergence.report()
            runlog.log_losses(runs, step, info, diverged, progress.speed(step), args.utd * num_seeds)
        if step % args.eval_frequency == 0 or step % task_steps == 0:
            index = math.ceil(step / args.eval_frequency)
            results = {name: evaluate(agent, each, seeds, index, False) for name, each in eval_envs.items()}
            biases = evaluate(agent, eval_envs[args.env_id[task]], seeds, index, True)
            for i, last in enumerate(last_eval):
                if not divergence.step[i]:  # a diverged seed carries its last evaluation forward
                    last |= {"tasks": [results[name][i] for name in args.env_id], "bias": biases[i]}
            rows = runlog.log_evaluations(runs, step, last_eval, task_steps)
            progress.note_means(step, rows, ("eval/episodic_return", "eval/success", "overestimation/mean"))
        # begin the next task
        if step % task_steps == 0 and not at_end:
            task += 1
            episodes = [runlog.new_episode(errors=episode.get("errors", 0)) for episode in episodes]
            if args.reset_replay:
                buffer.first = buffer.num_added
                info = {}
            if args.reset_optimizer:
                agent.actor_optimizer.reset()
                agent.qf_optimizer.reset()
                agent.alpha_optimizer.reset()
            envs.close()
            envs = make_envs(args, seeds, "train", task)
            obs, infos = envs.reset()
            environments.log_errors(runs, step, episodes, infos)
        # save
        if save_times.is_due(step, at_end):
            tensors = agent.state_dict()
            rows = buffer.newest(step - saved_step)
            for i, run in enumerate(runs):
                state = {
                    "agent": {name: tensor[i] if tensor.dim() else tensor for name, tensor in tensors.items()},
                    "generators": {use: each[i].get_state() for use, each in generators.items()},
                    "episode": episodes[i],
                    "last_eval": last_eval[i],
                    "info": {key: value[i] for key, value in info.items()},
                    "diverged": int(divergence.step[i]),
                }
                run.stage_checkpoint(step, state, {"rows": rows[i]}, keep_transitions=buffer.rows.shape[1])
            for run in runs:
                run.commit_checkpoint()
            saved_step = step
            save_times.done(runs, at_end)
            if save_times.regular:
                runlog.draw(runs, step)
                if args.capture_video:
                    for i, run in enumerate(runs):
                        film(agent, i, seeds[i], args.env_id[task], run.folder / "videos" / f"step-{step}.mp4")
        progress.update(step)
    runlog.finish(runs, divergence.report(), args.keep_replay)
    envs.close()
    for each in eval_envs.values():
        each.close()
    progress.close()


def film(agent: Agent, i: int, seed: int, env_id: str, path) -> float:
    """Saves a video of one deterministic episode of the i-th seed; returns the episode's return (nan: could not)."""
    make = functools.partial(environments.make_env, env_id, 0, seed, "film", "rgb_array")
    num_seeds = len(agent.log_alpha)
    return runlog.save_video(path, make, lambda obs: agent.act(np.stack([obs] * num_seeds))[0][i])


def evaluate_finished(args: Args, run: runlog.Run, seed: int) -> None:
    """--evaluate: plays num_eval_episodes of each task with the last checkpoint, prints the returns, films one more."""
    step, state = runlog.load_finished(run)
    for task, env_id in enumerate(args.env_id):
        envs = make_envs(args, [seed], "play", task)
        several = len(args.env_id) > 1
        sizes = *envs.single_observation_space.shape, *envs.single_action_space.shape
        agent = Agent(*sizes, dataclasses.replace(args, compile=False), [seed], torch.device("cpu"))
        agent.restore(0, state["agent"])
        path = run.folder / "videos" / f"evaluation-{step}{f'-task{task + 1}' * several}.mp4"
        values = evaluate(agent, envs, [seed], 0, False)[0]
        values["return of the video"] = film(agent, 0, seed, env_id, path)
        told = ", ".join(f"{key} {value:.1f}" for key, value in values.items())
        print(f"seed {seed}{f', task {task + 1}' * several}: {told}; {path}", flush=True)


def runs_of(args: Args) -> list[runlog.Run]:
    """The runs of these flags, one for each seed. Creates nothing."""
    return runlog.seed_runs(runlog.sequence_length(args), "sac_continuous")


def main(args: Args) -> None:
    args = validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    runs = {run.config["seed"]: run for run in runs_of(args)}
    if args.evaluate:
        for seed, run in runs.items():
            evaluate_finished(args, run, seed)
        return
    with runlog.opened(runs, args, "sac_continuous") as groups:
        for step, seeds, together in groups:
            train(args, seeds, together, step)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
