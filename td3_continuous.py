"""Twin Delayed DDPG (TD3; Fujimoto, van Hoof & Meger 2018, 1802.09477) on DeepMind Control,
Meta-World and Gymnasium, for studying activation functions.

All seeds of a configuration train in one process: parameters, optimisers, replay buffer and noise
have a leading seed axis, and the losses below read as for one seed. Each seed has its own run
folder; the same command again resumes the runs, or reports that they are finished.

    python td3_continuous.py --activation crational --num-seeds 3

Implementation details and every difference from CleanRL's TD3: docs/td3_continuous.md.
"""

import interrupts  # noqa: F401

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

import activations
import environments
import metrics
import optimizers
import plots.dashboards
import reports
import runlog
from runlog import batch as batches_of_runs
from runlog import cudagraphs, evaluation, loading, memory, seed_by_seed, seeding


@dataclasses.dataclass
class Args:
    # the flags that matter most
    env_id: str = "dm_control/cheetah-run-v0"  # dm_control/DOMAIN-TASK-v0, metaworld/TASK-v3, ...
    activation: str = "relu"  # name or expression: relu, crational, tanh_hr, identity*silu, ...
    seed: int = 1  # first seed
    num_seeds: int = runlog.option(1)  # seeds trained together in this process: seed, seed + 1, ...
    total_timesteps: int = 1_000_000  # environment steps per seed
    utd: int = 1  # gradient updates per environment step (update-to-data ratio)
    layer_norm: bool = False  # layer normalisation before each activation
    learning_rate: float = 3e-4  # Adam's learning rate for actor and critics
    device: str = runlog.option("auto")  # auto (cuda if available), cpu, cuda, cuda:1, ...
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    # experiment
    threads: int = runlog.option(0)  # CPU threads; 0 = torch's default
    compile: bool = runlog.option(True)  # torch.compile the update; --no-compile runs it eagerly
    cudagraphs: bool = runlog.option(False)  # on a GPU, UTD blocks as CUDA graphs (not timed)
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
    async_envs: bool = runlog.option(False)  # step in worker processes (faster for Meta-World)
    # algorithm; the defaults are the paper's, the protocol is that of sac_continuous.py
    batch_size: int = 256  # transitions per update
    buffer_size: int = 1_000_000  # replay capacity of each seed, in transitions
    learning_starts: int = 5_000  # environment steps with random actions before the first update
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # Polyak coefficient of the targets, applied with every policy update
    policy_frequency: int = 2  # critic updates per update of actor and targets
    exploration_noise: float = 0.1  # std of the Gaussian noise on actions, which lie in [-1, 1]
    policy_noise: float = 0.2  # std of the noise on the target actor's actions
    noise_clip: float = 0.5  # bound on the absolute value of this noise
    # network
    widths: tuple[int, ...] = (256, 256)  # units of the hidden layers of actor and critics
    rational: activations.RationalConfig = dataclasses.field(default=activations.RationalConfig())
    # evaluation and metrics
    eval_frequency: int = 10_000  # environment steps between evaluations
    num_eval_episodes: int = 5  # episodes without noise per evaluation, and as many for Q - G
    log_frequency: int = 1_000  # environment steps between logged losses
    metrics_frequency: int = 10_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # replay transitions for the network metrics
    ntk_frequency: int = 50_000  # environment steps between NTK ranks; 0 = off
    ntk_samples: int = 64  # replay transitions for the NTK


# ---- networks: tensors are (seeds, batch, ...), those of the twin critics (seeds, 2, batch, ...) -


class Actor(nn.Module):
    """Deterministic policy: observations -> actions in [-1, 1]."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds):
        super().__init__()
        seeds = seeding.derive_seeds(seeds, "actor")
        self.hidden = activations.mlp(
            obs_dim, args.widths, args.activation, seeds, args.layer_norm, args.rational
        )
        of_mean = seeding.derive_seeds(seeds, "mean")
        self.mean = activations.Linear(self.hidden[-1].width, action_dim, seeds=of_mean)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mean(self.hidden(obs)))


class QNetworks(nn.Module):
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
    return args.utd * (args.total_timesteps - max(args.learning_starts, 1) + 1)


class Agent(nn.Module):
    """Everything that an update changes: networks, targets, optimisers. Losses are (seeds,)
    tensors. Batches: obs, actions, rewards, terminations, next_obs -> (seeds, batch, ...). If seeds
    is a number instead of a list, there is no seed axis."""

    def __init__(self, obs_dim: int, action_dim: int, args: Args, seeds, device: torch.device):
        super().__init__()
        self.args = args
        self.action_dim = action_dim
        self.num_updates = total_updates(args)
        self.device = device
        self.actor = Actor(obs_dim, action_dim, args, seeds)
        self.qf = QNetworks(obs_dim, action_dim, args, seeds)
        self.actor_target = Actor(obs_dim, action_dim, args, seeds)  # equal seeds: a copy
        self.qf_target = QNetworks(obs_dim, action_dim, args, seeds)
        self.actor_optimizer = optimizers.Adam(self.actor, args.learning_rate, args.rational)
        self.qf_optimizer = optimizers.Adam(self.qf, args.learning_rate, args.rational)
        self.to(device)

        # torch.autograd.grad inside a compiled function
        torch._dynamo.config.trace_autograd_ops = True
        self.policy = self.actor.forward
        self.update = self.one_update
        has_seeds = np.ndim(seeds) == 1
        if args.compile and has_seeds and seed_by_seed.can_run_on(device):
            # An agent without a seed axis, whose functions are compiled. For each seed they are
            # called with slices of this agent's tensors in place of its own, so its seed is
            # arbitrary.
            eager = dataclasses.replace(args, compile=False)
            single = Agent(obs_dim, action_dim, eager, seeds=0, device=device)
            by_seed = seed_by_seed.SeedBySeed(self, single)
            self.policy = by_seed.compiled(single.actor.forward, seed_axes=(0,))
            # the seed axes of one_update's batch, noise and update_policy
            self.update = by_seed.compiled(single.one_update, seed_axes=(0, 0, None))
        elif args.compile:
            compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False)
            self.policy = compiled(self.actor.forward)
            self.update = compiled(self.one_update)

    @torch.no_grad()
    def act(self, obs: np.ndarray, generators: list | None = None) -> np.ndarray:
        """Actions (seeds, action_dim) for one observation per seed; with generators, exploration
        noise is added."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.device).unsqueeze(-2)
        actions = self.policy(obs)
        if generators is not None:
            noise = seeding.normals(generators, 1, self.action_dim).view_as(actions)
            actions = (actions + self.args.exploration_noise * noise).clamp(-1, 1)
        return np.nan_to_num(actions.squeeze(-2).cpu().numpy())  # a diverged seed takes action 0

    def target_actions(self, next_obs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Target policy smoothing. noise: standard normal, (seeds, batch, action_dim)."""
        clip = self.args.noise_clip
        smoothing = (self.args.policy_noise * noise).clamp(-clip, clip)
        return (self.actor_target(next_obs) + smoothing).clamp(-1, 1)

    def qf_loss(self, batch: dict, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, Q-values): squared error of both critics against the target, which uses the
        smaller next value."""
        with torch.no_grad():
            next_actions = self.target_actions(batch["next_obs"], noise)
            # (seeds, 2, batch) -> (seeds, batch): minimum over the twin critics
            next_q = self.qf_target(batch["next_obs"], next_actions).amin(-2)
            td_target = batch["rewards"] + self.args.gamma * (1 - batch["terminations"]) * next_q
        q_values = self.qf(batch["obs"], batch["actions"])
        return (q_values - td_target.unsqueeze(-2)).square().mean(-1).sum(-1), q_values

    def actor_loss(self, batch: dict) -> torch.Tensor:
        """Minus the first critic's value of the actor's actions."""
        actions = self.actor(batch["obs"])
        return -self.qf(batch["obs"], actions)[..., 0, :].mean(-1)

    def one_update(
        self, batch: dict, noise: torch.Tensor, update_policy: bool = True
    ) -> dict[str, torch.Tensor]:
        """One step of the critics and, if update_policy, of the actor and then of all targets.
        noise: (seeds, batch, action_dim). The seeds are independent, so the sum of their losses has
        the gradients of each."""
        with activations.observing(self.qf):
            loss, q_values = self.qf_loss(batch, noise)
        grads = torch.autograd.grad(loss.sum(), self.qf_optimizer.parameters_)
        with torch.no_grad():
            self.qf_optimizer.step(grads)
            activations.step_constraints(self.qf, self.num_updates)
        info = {"qf_loss": loss.detach(), "q_mean": q_values.detach().mean((-2, -1))}
        if not update_policy:
            return info

        with activations.observing(self.actor):
            loss = self.actor_loss(batch)
        grads = torch.autograd.grad(loss.sum(), self.actor_optimizer.parameters_)
        with torch.no_grad():
            self.actor_optimizer.step(grads)
            policy_updates = self.num_updates // self.args.policy_frequency
            activations.step_constraints(self.actor, policy_updates)
            self.move_targets()
        return info | {"actor_loss": loss.detach()}

    def move_targets(self) -> None:
        for target, parameter in zip(self.actor_target.parameters(), self.actor.parameters()):
            target.lerp_(parameter, self.args.tau)
        for target, parameter in zip(self.qf_target.parameters(), self.qf.parameters()):
            target.lerp_(parameter, self.args.tau)

    def update_block(
        self, batches: dict, noise: torch.Tensor, updates_before: int = 0
    ) -> dict[str, torch.Tensor]:
        """The --utd updates of an environment step. batches: name -> (utd, seeds, batch, ...);
        noise: (utd, seeds, batch, action_dim); updates_before: the number of earlier updates, which
        with --policy-frequency determines the updates that include the policy. Returns the newest
        value of each loss."""
        calls = []
        for u in range(self.args.utd):
            batch = {name: columns[u] for name, columns in batches.items()}
            update_policy = (updates_before + u + 1) % self.args.policy_frequency == 0
            calls.append((batch, noise[u], update_policy))
        info = {}
        for newer in seed_by_seed.in_order(self.update, calls):
            info |= newer
        return info

    def update_block_after(self, updates_before: int) -> Callable:
        """update_block after this many updates, as a function of batches and noise."""
        return functools.partial(self.update_block, updates_before=updates_before)


# ---- evaluation and metrics: own generators and environments, so no effect on the training -------


@torch.no_grad()
def q_bias(agent: Agent, envs, index: int) -> list[dict[str, float]]:
    """Q - G on num_eval_episodes of the deterministic policy, whose value the critics estimate: the
    mean of the critics minus the Monte-Carlo return (metrics.q_overestimation). One dict per
    seed."""

    def policy(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return agent.act(obs), np.full(len(obs), np.nan)

    number = agent.args.num_eval_episodes
    _, first = environments.evaluation_episodes(index, number)
    episodes = environments.play_episodes(envs, policy, first, number)

    q_values = []
    next_values = []
    for start in range(0, episodes.obs.shape[1], 1_000):  # in pieces, to bound the memory
        piece = slice(start, start + 1_000)
        obs = episodes.obs[:, piece].to(agent.device)
        actions = episodes.actions[:, piece].to(agent.device)
        next_obs = episodes.real_next_obs[:, piece].to(agent.device)
        q_values.append(agent.qf(obs, actions).mean(-2))
        next_values.append(agent.qf(next_obs, agent.actor(next_obs)).mean(-2))

    _, lengths = metrics.first_episodes(episodes.rewards, episodes.dones, number)
    return metrics.overestimation_of_first(
        lengths,
        q=torch.cat(q_values, 1).cpu(),
        rewards=episodes.rewards,
        terminations=episodes.terminations,
        truncations=episodes.truncations,
        gamma=agent.args.gamma,
        fallback_values=torch.cat(next_values, 1).cpu(),  # where time limits leave no state
    )


def log_network_metrics(
    agent: Agent, buffer: environments.ReplayBuffer, batch: runlog.Batch, step: int
) -> None:
    """Metrics of every layer on replay transitions, with the gradients of the losses there."""
    num_samples = agent.args.metrics_samples
    generators = seeding.make_generators(batch.seeds, "metrics", step, device=agent.device)
    samples = buffer.sample(num_samples, generators=generators)
    samples["noise"] = seeding.normals(generators, num_samples, agent.action_dim)

    def actor_loss(part: dict) -> torch.Tensor:
        return agent.actor_loss(part).sum()

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


def log_ntk_ranks(
    agent: Agent, buffer: environments.ReplayBuffer, batch: runlog.Batch, step: int
) -> None:
    """Ranks of the neural tangent kernels of each critic and of the sum of actions, on replay
    transitions."""
    generators = seeding.make_generators(batch.seeds, "ntk", step, device=agent.device)
    samples = buffer.sample(agent.args.ntk_samples, generators=generators)
    inputs = (samples["obs"], samples["actions"])
    ranks = metrics.ntk_rank(agent.actor, inputs[:1], batch_dims=1)
    report = {f"ntk_{key}": rank for key, rank in ranks.items()}
    batch.log_report(step, "network/actor", report, skip_diverged=True)
    ranks = metrics.ntk_rank(agent.qf, inputs, batch_dims=2, sample_dim=1)
    report = {f"ntk_{key}": rank for key, rank in ranks.items()}
    batch.log_report(step, "network/qf", report, skip_diverged=True)


# ---- checks, before anything is created ----------------------------------------------------------


def big_tensors(args: Args, obs_dim: int, action_dim: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the largest memory users, all seeds together, by the flags that set them: (on the
    device, on the host)."""
    actor = memory.mlp_size(obs_dim, args.widths, args.activation, action_dim, args.layer_norm)
    critic = memory.mlp_size(obs_dim + action_dim, args.widths, args.activation, 1, args.layer_norm)
    learner = 5 * (actor.parameters + 2 * critic.parameters)  # gradients, two moments, targets
    transition = 2 * obs_dim + action_dim + 2
    bytes_of_seeds = 4 * args.num_seeds  # of one float32 number per seed

    # of temporary tensors only the largest counts
    block = args.utd * args.batch_size * (transition + action_dim + 2)  # 2: the rows' numbers
    backward = args.batch_size * (actor.activations + 2 * critic.activations)
    moments = {"batch_size utd widths num_seeds": block + backward}
    if args.metrics_frequency:
        of_sample = transition + max(actor.activations, 2 * critic.activations)
        moments["metrics_samples widths num_seeds"] = args.metrics_samples * of_sample
    if args.ntk_frequency:
        gradients = args.ntk_samples * max(actor.parameters, 2 * critic.parameters)
        moments["ntk_samples widths num_seeds"] = 2 * gradients  # two copies during the product
    largest = max(moments, key=moments.get)

    capacity = min(args.buffer_size, args.total_timesteps)
    on_device = {
        "widths num_seeds": bytes_of_seeds * learner,
        "buffer_size num_seeds": bytes_of_seeds * capacity * transition,
        largest: bytes_of_seeds * moments[largest],
    }
    # at least one step of each episode
    on_host = {"num_eval_episodes num_seeds": bytes_of_seeds * args.num_eval_episodes * transition}
    return on_device, on_host


def check_settings(args: Args) -> None:
    """Raises UserError (flag, value, remedy) for values that cannot work on any machine. A sweep
    calls this before it starts anything."""
    runlog.check_range(args, "[0, inf)", "seed threads learning_starts checkpoint_minutes")
    runlog.check_range(args, "[0, inf)", "metrics_frequency ntk_frequency")
    runlog.check_range(args, "[0, inf)", "exploration_noise policy_noise noise_clip")
    runlog.check_range(args, "[1, inf)", "num_seeds checkpoint_frequency utd batch_size widths")
    runlog.check_range(args, "[1, inf)", "eval_frequency num_eval_episodes log_frequency")
    runlog.check_range(args, "[2, inf)", "metrics_samples ntk_samples")
    runlog.check_range(args, f"[{args.batch_size}, inf)", "buffer_size")
    runlog.check_range(args, f"({args.learning_starts}, inf)", "total_timesteps")
    runlog.check_range(args, "(0, inf)", "learning_rate")
    runlog.check_range(args, "[0, 1)", "gamma")
    runlog.check_range(args, "(0, 1]", "tau")
    num_updates = total_updates(args)
    runlog.check_range(args, f"[1, {num_updates}]", "policy_frequency")  # or no policy update
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        activations.check_schedule([args.activation], args.rational)
    environments.check_ids([args.env_id])


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created; returns args."""
    check_settings(args)
    pipes_of_a_worker = 4
    files_per_run = pipes_of_a_worker if args.async_envs else 0
    runlog.check_flags(args, args.num_seeds, files_per_run)
    device = runlog.find_device(args.device)
    if args.cudagraphs and cudagraphs.can_run_on(device) and not uses_graph(args, device):
        problem = f"--policy-frequency {args.policy_frequency} with --utd {args.utd}"
        runlog.warn(
            f"{problem}: {num_blocks(args)} different blocks of updates, more than {MAX_GRAPHS}: "
            "no CUDA graphs, so updates are slower"
        )
    obs_dim, action_dim = environments.check_environments([args.env_id], args.seed)
    if not args.evaluate:
        on_device, on_host = big_tensors(args, obs_dim, action_dim)
        runlog.check_memory(args, device, on_device, on_host)
    return args


# ---- training ------------------------------------------------------------------------------------


MAX_GRAPHS = 4  # each reserves memory for a block of updates


def num_blocks(args: Args) -> int:
    """Number of ways in which policy updates can lie in the block of updates of an environment
    step."""
    return args.policy_frequency // math.gcd(args.policy_frequency, args.utd)


def uses_graph(args: Args, device: torch.device) -> bool:
    """Whether CUDA graphs replay the blocks of updates, one for each of num_blocks."""
    return args.cudagraphs and cudagraphs.can_run_on(device) and num_blocks(args) <= MAX_GRAPHS


def train(args: Args, batch: runlog.Batch) -> None:
    """Trains the seeds of the batch together, from the step of their checkpoint."""
    device = runlog.find_device(args.device)
    start = batch.start
    tasks = environments.TaskSequence(
        [args.env_id], batch.seeds, args.total_timesteps, start, args.async_envs
    )
    obs_dim, action_dim = environments.sizes(tasks.envs)
    agent = Agent(obs_dim, action_dim, args, batch.seeds, device)
    capacity = min(args.buffer_size, args.total_timesteps)
    buffer = environments.ReplayBuffer(len(batch.seeds), capacity, obs_dim, action_dim, device)
    generators = {
        "act": seeding.make_generators(batch.seeds, "act", device=device),
        "update": seeding.make_generators(batch.seeds, "update", device=device),
    }
    episodes = [environments.Episode() for _ in batch.seeds]
    info = {}  # newest losses; not every update has one of the actor

    state = batch.load()
    if state:
        runlog.restore_module(agent, state["agent"])
        seeding.set_states(generators, state["generators"])
        for i, transitions in enumerate(batch.load_transitions()):
            buffer.restore(i, transitions["rows"], start)
        episodes = [environments.Episode.from_state(saved) for saved in state["episode"]]
        tasks.restore(state["last_eval"])
        info = batches_of_runs.stack(state["info"])
        info = {key: value.to(device) for key, value in info.items()}
    obs = environments.begin_episodes(tasks.envs, batch, start, episodes)

    is_graphed = uses_graph(args, device)
    if is_graphed:
        update_block = cudagraphs.graphed_in_turn(agent.update_block_after)
    label = f"{tasks.name} {args.activation}"
    progress = runlog.Progress(start, args.total_timesteps, label, args.learning_starts)
    saved_step = start
    for step in range(start + 1, args.total_timesteps + 1):
        # checked first, so that a resumed run ends at once as well
        if (step - 1) % args.log_frequency == 0 and all(batch.diverged()):
            tasks.carry_forward(batch, step - 1, args.total_timesteps, args.eval_frequency)
            break
        at_end = step == args.total_timesteps

        # act
        if step <= args.learning_starts:
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
        always = step == args.learning_starts or at_end
        if args.metrics_frequency and (always or step % args.metrics_frequency == 0):
            log_network_metrics(agent, buffer, batch, step)
        if args.ntk_frequency and (always or step % args.ntk_frequency == 0):
            log_ntk_ranks(agent, buffer, batch, step)

        # learn
        if step >= args.learning_starts:  # starting with the last random step, which is stored
            samples = buffer.sample(args.utd, args.batch_size, generators=generators["update"])
            shape = (args.utd, args.batch_size, action_dim)
            noise = seeding.normals(generators["update"], *shape, axis=1)
            if is_graphed:  # one graph per position of policy updates in a block: num_blocks
                info |= update_block(step * args.utd % args.policy_frequency, samples, noise)
            else:
                info |= agent.update_block(samples, noise, step * args.utd)
            batch.note_losses(step, {"qf_loss": info["qf_loss"]})
            if "actor_loss" in info:
                batch.note_losses(step, {"actor_loss": info["actor_loss"]})
        if info and (step % args.log_frequency == 0 or at_end):
            speed = progress.speed(step)
            updates_per_second = speed * args.utd * len(batch.seeds)
            rows = {f"losses/{key}": value for key, value in info.items()}
            batch.log(step, rows, skip_diverged=True)
            batch.log(step, {"perf/sps": speed, "perf/updates_per_second": updates_per_second})

        # evaluate
        if step % args.eval_frequency == 0 or at_end:
            index = math.ceil(step / args.eval_frequency)
            number = args.num_eval_episodes
            first, _ = environments.evaluation_episodes(index, number)
            returns = tasks.evaluate(agent.act, first, number)
            biases = q_bias(agent, tasks.current_eval_envs(), index)
            rows = tasks.log(batch, step, returns, biases)
            shown = ("eval/success", "eval/episodic_return", "overestimation/mean")
            progress.note_means(step, rows, shown)

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
                    environments.film(path, args.env_id, batch.seeds, i, agent.act)
                    batch.runs[i].log_video(step, "videos/episode", path)
        progress.update(step)
    batch.finish(keep_replay=args.keep_replay)
    tasks.close()
    progress.close()


# ---- after the training --------------------------------------------------------------------------


def load_agent(folder: str | Path, device: str = "cpu") -> Agent:
    """The agent of a run's newest checkpoint, finished or not, as `--evaluate` plays it.

    It has no seed axis: `agent.act` takes an observation (obs_dim,) to an action (action_dim,) in
    [-1, 1]; `agent.actor` takes (batch, obs_dim) to actions (batch, action_dim); `agent.qf` takes
    (batch, obs_dim) and (batch, action_dim) to (2, batch), the values of the twin critics;
    `agent.actor_target` and `agent.qf_target` likewise. Raises UserError like `runlog.load`, and if
    there is no checkpoint yet.
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


def evaluate_finished(args: Args, run: runlog.Run) -> None:
    """--evaluate: plays num_eval_episodes with the last checkpoint, prints the return, and films
    one more episode."""
    step = evaluation.finished_step(run)
    agent = load_agent(run.folder)
    seed = run.config["seed"]
    envs = environments.make_envs(args.env_id, [seed], "play", args.async_envs)
    path = run.folder / "videos" / f"evaluation-{step}.mp4"
    (values,) = environments.evaluate(envs, agent.act, 0, args.num_eval_episodes)
    values["return of the video"] = environments.film(path, args.env_id, [seed], 0, agent.act)
    evaluation.mirror_video(run, step, path)
    summary = ", ".join(f"{key} {value:.1f}" for key, value in values.items())
    print(f"seed {seed}: {summary}; {path}", flush=True)
    envs.close()


def runs_of(args: Args) -> list[runlog.Run]:
    """The runs of these flags, one per seed. Creates nothing."""
    return runlog.seed_runs(args, "td3_continuous")


def dashboard(args: Args) -> dict:
    """The TensorBoard and W&B panels for these runs (docs/dashboards.md)."""
    panels = [
        "evaluation return",
        "evaluation success rate",
        "training return",
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
