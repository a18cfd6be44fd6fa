"""Proximal Policy Optimisation on Atari (PPO, 1707.06347), for the Hadamard representations of HR.

HR = arXiv 2406.09079, Table 5. 8 games play 128 steps, from which actor and critic learn; both
share the Nature CNN. The last hidden layer uses --activation, the convolutions
--encoder-activation. The same command again resumes the run, or reports that it is finished.

    python ppo_atari.py --env-id Breakout --activation tanh_hr

Implementation details, differences from CleanRL: docs/ppo_atari.md.
"""

import interrupts  # noqa: F401

import dataclasses
import functools
import time
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
from runlog.transfer import Uploader


@dataclasses.dataclass
class Args:
    # the flags that matter most
    env_id: str = "Breakout"  # a game of ale_py: Breakout or ALE/Breakout-v5
    activation: str = "relu"  # last hidden layer: relu, crational, tanh_hr, identity*silu
    encoder_activation: tuple[str, ...] = ("relu",)  # convolutions: one name for all, or three
    seed: int = 1  # seed of weights, actions and games
    total_timesteps: int = 10_000_000  # environment steps of all games (4 frames each)
    layer_norm: Literal["channel", "chw", "none"] = "none"  # before activations, over C or CHW
    width: int = 512  # units of the last hidden layer
    learning_rate: float = 2.5e-4  # Adam's initial learning rate
    device: str = runlog.option("auto")  # auto (cuda if available), cpu, cuda, cuda:1, ...
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    # experiment
    threads: int = runlog.option(0)  # CPU threads for torch; 0 = torch's default
    env_threads: int = runlog.option(0)  # threads that step the games; 0 = one per core
    compile: bool = runlog.option(True)  # torch.compile the network; --no-compile runs it eagerly
    cudagraphs: bool = runlog.option(True)  # on a GPU, run acting and updates as CUDA graphs
    runs_dir: str = runlog.option("runs")  # folder that contains the run folders
    fresh: bool = runlog.option(False)  # delete an existing run with these flags and start over
    checkpoint_frequency: int = runlog.option(250_000)  # environment steps between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # also save after this many minutes; 0 = never
    evaluate: bool = runlog.option(False)  # play with the finished agent: video, returns, metrics
    print_network: bool = runlog.option(False)  # print layers and parameter counts, then exit
    # logging
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    # environment
    repeat_action_probability: float = 0.0  # sticky actions; HR: 0, Machado et al.: 0.25
    fire_on_life_loss: bool = True  # press fire after a lost life, overriding the action
    # algorithm; the defaults are HR's Table 5
    num_envs: int = 8  # parallel training games (CleanRL's value)
    num_steps: int = 128  # steps per training game between updates
    update_epochs: int = 4  # passes over these steps
    num_minibatches: int = 4  # minibatches per pass, one gradient step each
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation
    anneal_lr: bool = True  # decay the learning rate linearly to 0
    adam_eps: float = 1e-5  # epsilon of Adam
    normalize_advantages: bool = True  # per minibatch, to mean 0 and standard deviation 1
    clip_coefficient: float = 0.1  # clip the probability ratio to 1 +- this value
    clip_value_loss: bool = True  # clip the change of the value in the same way
    entropy_coefficient: float = 0.01  # weight of the entropy bonus
    value_coefficient: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # clip the gradient to this L2 norm
    target_kl: float | None = None  # stop an update beyond this approximate KL; None = never
    clip_rewards: bool = True  # learn from the sign of the rewards; logged returns are raw
    # network
    redo: bool = False  # recycle dormant neurons (ReDo)
    redo_tau: float = 0.025  # a neuron with at most this score is dormant
    redo_period: int = 1_000  # gradient steps between recyclings
    rational: activations.RationalConfig = dataclasses.field(
        default_factory=activations.RationalConfig
    )
    # evaluation and metrics
    num_eval_episodes: int = 8  # games played by --evaluate
    log_frequency: int = 10_000  # environment steps between logged losses
    metrics_frequency: int = 100_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # observations for the network metrics
    ntk_frequency: int = 250_000  # environment steps between NTK ranks; 0 = off
    ntk_samples: int = 64  # observations for the NTK; each needs as much memory as the network


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


class Agent(nn.Module):
    """Nature CNN (Mnih et al. 2015) with two heads.

    Observations (n, 4, 84, 84) uint8 -> logits (n, num_actions), values (n,).
    """

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        encoder = args.encoder_activation
        if len(encoder) == 1:
            encoder = encoder * 3
        seed = functools.partial(seeding.derive_seed, args.seed)
        shared = {} if args.rational.share_across_layers else None
        options = {"rational": args.rational, "shared": shared}  # orthogonal with gain sqrt(2)

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
        head = functools.partial(activations.Linear, self.fc.width)
        self.actor = head(num_actions, seeds=seed("actor"), init=activations.orthogonal(0.01))
        self.critic = head(1, seeds=seed("critic"), init=activations.orthogonal(1.0))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv3(self.conv2(self.conv1(obs / 255.0)))
        hidden = self.fc(x.flatten(1))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


class Batch(NamedTuple):
    """Transitions of an iteration, and the values of the agent that played them."""

    obs: torch.Tensor  # (n, 4, 84, 84) uint8
    actions: torch.Tensor  # (n,) int64
    log_probs: torch.Tensor  # (n,) of the actions
    advantages: torch.Tensor  # (n,)
    returns: torch.Tensor  # (n,)
    values: torch.Tensor  # (n,)


@torch.no_grad()
def act(
    agent: Agent, obs: torch.Tensor, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Actions, their log-probabilities and values, (n,) each.

    uniform: (n, num_actions) in (0, 1). Gumbel noise makes the argmax a sample of the softmax.
    """
    logits, values = agent(obs)
    gumbel = -(-uniform.log()).log()
    actions = (logits + gumbel).argmax(-1)
    log_probs = logits.log_softmax(-1).gather(1, actions.unsqueeze(1)).squeeze(1)
    return actions, log_probs, values


def compute_gae(
    rewards: torch.Tensor,
    terminations: torch.Tensor,
    truncations: torch.Tensor,
    values: torch.Tensor,
    next_values: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns) by generalised advantage estimation (Schulman et al. 2016, eq. 16):

    delta_t = r_t + gamma (1 - termination_t) V(s') - V(s_t)
    A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}

    with next_values[t] = V(s') of the true successor s', so that time limits bootstrap;
    returns = advantages + values. All (num_steps, num_envs) float.
    """
    advantages = torch.empty_like(rewards)
    advantage = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * (1 - terminations[t]) * next_values[t] - values[t]
        running = 1 - torch.maximum(terminations[t], truncations[t])
        advantage = delta + gamma * gae_lambda * running * advantage
        advantages[t] = advantage
    return advantages, advantages + values


LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_share", "value_mean")
APPROX_KL = LOSSES.index("approx_kl")


def ppo_loss(agent: Agent, batch: Batch, args: Args) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, LOSSES): Schulman et al. 2017, eq. 7 and 9, with a clipped value loss.

    LOSSES (6,), without a gradient: policy loss, value loss, entropy, approximate KL divergence,
    fraction of clipped ratios, mean value.
    """
    logits, values = agent(batch.obs)
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    new_log_probs = log_probs.gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    log_ratio = new_log_probs - batch.log_probs
    ratio = log_ratio.exp()
    bound = args.clip_coefficient

    advantages = batch.advantages
    if args.normalize_advantages:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped_ratio = ratio.clamp(1 - bound, 1 + bound)
    policy_loss = -torch.minimum(advantages * ratio, advantages * clipped_ratio).mean()

    value_losses = 0.5 * (values - batch.returns).square()
    if args.clip_value_loss:
        clipped_values = batch.values + (values - batch.values).clamp(-bound, bound)
        clipped_losses = 0.5 * (clipped_values - batch.returns).square()
        value_losses = torch.maximum(value_losses, clipped_losses)
    value_loss = value_losses.mean()

    loss = policy_loss - args.entropy_coefficient * entropy + args.value_coefficient * value_loss
    approx_kl = (ratio - 1 - log_ratio).mean()
    clip_fraction = ((ratio - 1).abs() > bound).float().mean()
    losses = [policy_loss, value_loss, entropy, approx_kl, clip_fraction, values.mean()]
    return loss, torch.stack(losses).detach()


@dataclasses.dataclass
class Learner:
    """What a gradient step uses: the agent, its optimiser, and the (compiled) loss."""

    agent: Agent
    optimizer: torch.optim.Optimizer
    loss: Callable


def gradient_step(
    learner: Learner, batch: Batch, totals: torch.Tensor, args: Args, index: torch.Tensor
) -> torch.Tensor:
    """One gradient step on the transitions `index` (n,) of an iteration, in place; adds LOSSES and
    the norm of the gradients to totals (7,). Returns LOSSES. Does not wait for the GPU."""
    minibatch = Batch(*(column.index_select(0, index) for column in batch))
    learner.optimizer.zero_grad()
    with activations.observing(learner.agent):
        loss, losses = learner.loss(learner.agent, minibatch, args)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(learner.agent.parameters(), args.max_grad_norm)
    learner.optimizer.step()
    activations.step_constraints(learner.agent, total_updates(args))
    totals += torch.cat([losses, norm.reshape(1)])
    return losses


def total_updates(args: Args) -> int:
    """Gradient steps of the whole training, if --target-kl stops none of them early."""
    iterations = args.total_timesteps // (args.num_envs * args.num_steps)
    return iterations * args.update_epochs * args.num_minibatches


def linear_schedule(start: float, end: float, fraction: float) -> float:
    """From start to end as fraction goes from 0 to 1, then constant."""
    return start + (end - start) * min(fraction, 1.0)


def has_crossed(before: int, step: int, period: int) -> bool:
    """Whether a multiple of period lies in (before, step]; never for period 0."""
    return period > 0 and step // period > before // period


# ---- measures ----------------------------------------------------------------------------------


@torch.no_grad()
def recycle_dormant(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    obs: torch.Tensor,
    tau: float,
    generator: torch.Generator,
) -> float:
    """ReDo (Sokar et al. 2023): recycles the dormant neurons of every hidden layer; returns their
    fraction of all neurons."""
    names = ("conv1", "conv2", "conv3", "fc")
    with reports.record_layers(agent) as records:
        agent(obs)
    dormant = []
    for name in names:
        outputs = metrics.channel_samples(records[name].output)
        is_dormant, _ = metrics.dormant_neurons(outputs, tau)
        dormant.append(is_dormant)
    return optimizers.recycle_layers(
        layers=[agent.get_submodule(name) for name in names],
        heads=[agent.actor, agent.critic],
        dormant=dormant,
        optimizer=optimizer,
        init=activations.orthogonal(),
        generators=generator,
    )


def measure_network(
    args: Args, run: runlog.Batch, step: int, agent: Agent, batch: Batch, obs: torch.Tensor
) -> None:
    """Logs the network's metrics on these observations, and gradients of the loss on a batch."""

    def loss_of(*columns: torch.Tensor) -> torch.Tensor:
        loss, _ = ppo_loss(agent, Batch(*columns), args)
        return loss

    gradients = metrics.named_gradients(agent, loss_of, batch, len(batch.obs))
    report = reports.network_report(agent, (obs,), gradients, 0, max_samples=args.metrics_samples)
    run.log_report(step, "network/agent", report)


def value_of(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The values among the outputs of the agent; the neural tangent kernel is taken of these."""
    _, values = outputs
    return values


def measure_ntk(run: runlog.Batch, step: int, agent: Agent, obs: torch.Tensor) -> None:
    """Logs the ranks of the neural tangent kernel of the values."""
    ranks = metrics.ntk_rank(agent, (obs,), output=value_of)
    run.log_report(step, "network/agent", {f"ntk_{name}": rank for name, rank in ranks.items()})


# ---- flags -------------------------------------------------------------------------------------


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the largest memory users, by the flags that set them: (on the device, on the
    host)."""
    outputs = atari.MAX_ACTIONS + 1
    network = atari.learner_bytes(
        args.encoder_activation, args.activation, args.width, args.layer_norm, outputs
    )
    batch_size = args.num_envs * args.num_steps
    minibatch_size = batch_size // args.num_minibatches
    transient = {"num_envs num_steps": minibatch_size * network.observation}
    if args.metrics_frequency or args.redo:
        transient["metrics_samples"] = args.metrics_samples * network.observation
    if args.ntk_frequency:
        samples = min(args.ntk_samples, batch_size)
        transient["ntk_samples width"] = samples * network.ntk_sample
    on_device = {
        "width": network.training,
        "num_steps num_envs": batch_size * atari.OBSERVATION_BYTES,
    }
    if args.metrics_samples > batch_size:  # observations of earlier iterations
        on_device["metrics_samples"] = args.metrics_samples * atari.OBSERVATION_BYTES
    largest = max(transient, key=transient.get)  # allocated one at a time
    on_device[largest] = on_device.get(largest, 0) + transient[largest]
    return on_device, {"num_envs": args.num_envs * atari.GAME_BYTES}


def check_minibatches(args: Args) -> None:
    """Raises UserError unless the steps of an iteration can be split into the minibatches."""
    batch_size = args.num_envs * args.num_steps
    flag = f"--num-minibatches {args.num_minibatches}"
    if batch_size % args.num_minibatches:
        steps = f"--num-envs {args.num_envs} times --num-steps {args.num_steps} = {batch_size}"
        raise runlog.UserError(f"{flag}: must divide {steps}")
    if batch_size == args.num_minibatches and args.normalize_advantages:
        raise runlog.UserError(f"{flag}: minibatches of one step; use --no-normalize-advantages")


def check_settings(args: Args) -> None:
    """Raises UserError (flag, value, remedy) for values that cannot work on any machine. A sweep
    calls this before it starts anything."""
    check = functools.partial(runlog.check_range, args)
    check("[0, inf)", "seed threads env_threads metrics_frequency ntk_frequency")
    check("[0, inf)", "checkpoint_minutes redo_tau")
    check("[0, inf)", "entropy_coefficient value_coefficient")
    check("[1, inf)", "num_envs num_steps update_epochs num_minibatches width redo_period")
    check("[1, inf)", "checkpoint_frequency num_eval_episodes log_frequency")
    check("[2, inf)", "metrics_samples ntk_samples")
    check("(0, inf)", "learning_rate adam_eps max_grad_norm")
    check("(0, 1e6]", "clip_coefficient")
    check("[0, 1]", "repeat_action_probability gamma gae_lambda")
    check(f"[{args.num_envs * args.num_steps}, inf)", "total_timesteps")
    check_minibatches(args)
    if args.target_kl is not None:
        check("(0, inf)", "target_kl")
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
    games in place of those under way, and learns from them once they are desynchronised."""
    device = runlog.find_device(args.device)
    batch_size = args.num_envs * args.num_steps
    games = make_games(args, args.num_envs)
    agent = Agent(games.num_actions, args).to(device, memory_format=torch.channels_last)
    groups = optimizers.parameter_groups(agent, args.learning_rate, args.rational)
    optimizer = torch.optim.AdamW(groups, eps=args.adam_eps, fused=True)
    generators = {
        "act": seeding.make_generator(args.seed, "act", device=device),
        "update": seeding.make_generator(args.seed, "update", device=device),
        "metrics": seeding.make_generator(args.seed, "metrics", device=device),
        "redo": seeding.make_generator(args.seed, "redo"),
    }
    num_updates = 0
    last_return = {}
    recent_returns = []  # since the last line on the terminal
    # recent earlier observations, for metrics that need more than an iteration has
    earlier_obs = torch.empty(0, 4, 84, 84, dtype=torch.uint8, device=device)

    # resume
    start = run.start
    state = run.load()
    if state is not None:
        agent.load_state_dict(state["agent"])
        optimizer.load_state_dict(state["optimizer"])
        seeding.set_states(generators, state["generators"])
        num_updates = state["num_updates"]
        last_return = state["last_return"]
        earlier_obs = state["earlier_obs"].to(device)

    is_graphed = args.cudagraphs and cudagraphs.can_run_on(device)
    rate_device = device if is_graphed else None
    optimizers.set_capturable(optimizer, is_graphed, device)

    compiled = functools.partial(torch.compile, dynamic=False, disable=not args.compile)
    learner = Learner(agent, optimizer, compiled(ppo_loss))
    shape = (args.num_steps, args.num_envs)
    obs = torch.empty(*shape, 4, 84, 84, dtype=torch.uint8, device=device)
    actions = torch.empty(shape, dtype=torch.int64, device=device)
    log_probs = torch.empty(shape, device=device)
    values = torch.empty(shape, device=device)
    rewards = np.empty(shape, np.float32)
    terminations = np.empty(shape, np.float32)
    truncations = np.empty(shape, np.float32)
    advantages = torch.empty(shape, device=device)
    returns = torch.empty(shape, device=device)
    columns = (obs, actions, log_probs, advantages, returns, values)
    batch = Batch(*(column.flatten(0, 1) for column in columns))  # the same memory
    totals = torch.empty(len(LOSSES) + 1, device=device)  # sums that an iteration logs
    act_of_agent = functools.partial(compiled(act), agent)
    update = functools.partial(gradient_step, learner, batch, totals, args)
    if is_graphed:
        act_of_agent = cudagraphs.graphed(act_of_agent)
        update = cudagraphs.graphed(update)
    upload = Uploader(device)
    label = f"{args.env_id} {args.activation}"
    progress = runlog.Progress(start, args.total_timesteps, label, start + batch_size)
    next_obs = games.reset(args.seed, "games", start)
    if state is not None and start + batch_size <= args.total_timesteps:
        paused = time.monotonic()
        progress.note("playing the new games until they are desynchronised")
        generator = seeding.make_generator(args.seed, "desynchronise", start, device=device)

        def behaviour_policy(obs_of_all: np.ndarray) -> np.ndarray:
            noise_shape = (args.num_envs, games.num_actions)
            uniform = torch.rand(noise_shape, generator=generator, device=device)
            chosen, _, _ = act_of_agent(upload(obs_of_all), uniform)
            return chosen.cpu().numpy()

        next_obs = atari.desynchronise(games, behaviour_policy, next_obs, args.num_envs)
        progress.skip(time.monotonic() - paused)
    for step in range(start + batch_size, args.total_timesteps + 1, batch_size):
        before = step - batch_size  # an iteration goes from here to step
        fraction = before / args.total_timesteps
        at_end = step + batch_size > args.total_timesteps
        reached = args.total_timesteps if at_end else step
        is_due = functools.partial(has_crossed, before, reached)

        # act and store
        cut_values = {}  # t -> (games cut off by a time limit, values of their successors)
        for t in range(args.num_steps):
            obs[t] = upload(next_obs)
            noise_shape = (args.num_envs, games.num_actions)
            uniform = torch.rand(noise_shape, generator=generators["act"], device=device)
            actions[t], log_probs[t], values[t] = act_of_agent(obs[t], uniform)
            played = games.step(actions[t].cpu().numpy())
            rewards[t] = np.sign(played.rewards) if args.clip_rewards else played.rewards
            terminations[t] = played.terminations
            truncations[t] = played.truncations
            next_obs = played.obs
            if played.truncations.any():  # the true successor is not the next observation
                cut = played.truncations
                successors = torch.from_numpy(played.real_next_obs[cut]).to(device)
                with torch.no_grad():
                    cut_values[t] = (torch.from_numpy(cut).to(device), value_of(agent(successors)))
            for game in played.games:
                last_return = {
                    "charts/episodic_return": game.total,
                    "charts/episodic_length": game.length,
                }
                run.log(before + (t + 1) * args.num_envs, last_return)
                recent_returns.append(game.total)
            progress.update(before + (t + 1) * args.num_envs)

        # targets
        no_noise = torch.full((args.num_envs, games.num_actions), 0.5, device=device)
        _, _, last_values = act_of_agent(upload(next_obs), no_noise)
        next_values = torch.cat([values[1:], last_values.unsqueeze(0)])
        for t, (cut, value) in cut_values.items():
            next_values[t, cut] = value
        advantages[:], returns[:] = compute_gae(
            torch.from_numpy(rewards).to(device),
            torch.from_numpy(terminations).to(device),
            torch.from_numpy(truncations).to(device),
            values,
            next_values,
            args.gamma,
            args.gae_lambda,
        )

        # learn
        elapsed = fraction if args.anneal_lr else 0.0
        for group in optimizer.param_groups:
            rate = linear_schedule(group["initial_lr"], 0.0, elapsed)
            optimizers.set_learning_rate(group, rate, rate_device)
        totals.zero_()
        num_minibatches = 0
        for _ in range(args.update_epochs):
            order = torch.randperm(batch_size, generator=generators["update"], device=device)
            for index in order.chunk(args.num_minibatches):
                mb_losses = update(index)
                num_updates += 1
                num_minibatches += 1
                if args.redo and num_updates % args.redo_period == 0:
                    sample = batch.obs[order[: args.metrics_samples]]
                    recycled = recycle_dormant(
                        agent, optimizer, sample, args.redo_tau, generators["redo"]
                    )
                    run.log(step, {"redo/recycled_share": recycled})
            if args.target_kl is not None and mb_losses[APPROX_KL] > args.target_kl:
                break
        means = (totals / num_minibatches).tolist()
        names = [f"losses/{name}" for name in (*LOSSES, "gradient_norm")]
        losses = dict(zip(names, means))

        # log
        run.note_losses(step, losses)
        if any(run.diverged()):
            run.log(args.total_timesteps, last_return)  # carried forward
            break
        if is_due(args.log_frequency):
            residual = (returns - values).var() / returns.var()
            row = {
                "losses/explained_variance": 1 - residual.item(),
                "charts/learning_rate": linear_schedule(args.learning_rate, 0.0, elapsed),
                "perf/sps": progress.speed(step),
            }
            run.log(step, losses | row)
            if recent_returns:
                progress.postfix["return"] = f"{np.mean(recent_returns):.4g}"
                progress.value = f"return {progress.postfix['return']}"
                recent_returns = []
            progress.note_postfix(step)
        if at_end:
            progress.note_end(step, recent_returns)

        # measure the network
        paused = time.monotonic()
        if is_due(args.metrics_frequency):
            seen = torch.cat([earlier_obs, batch.obs])
            order = torch.randperm(len(seen), generator=generators["metrics"], device=device)
            sample = seen[order[: args.metrics_samples]]
            measure_network(args, run, step, agent, batch, sample)
        if is_due(args.ntk_frequency):
            generator = seeding.make_generator(args.seed, "ntk", step, device=device)
            order = torch.randperm(batch_size, generator=generator, device=device)
            sample = batch.obs[order[: args.ntk_samples]]
            measure_ntk(run, step, agent, sample)
        progress.skip(time.monotonic() - paused)
        if args.metrics_samples > batch_size:
            earlier_obs = torch.cat([earlier_obs, batch.obs])[batch_size - args.metrics_samples :]

        # save
        if run.save_is_due(step, at_end):
            state = {
                "agent": agent.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generators": seeding.get_states(generators),
                "num_updates": num_updates,
                "last_return": last_return,
                "earlier_obs": earlier_obs,
            }
            run.save(step, state)
            if run.save_is_regular:
                run.draw(step, plots.draw_run)
        progress.update(step)

    run.finish()
    progress.close()


# ---- after the training --------------------------------------------------------------------------


def load_agent(folder: str | Path, device: str = "cpu") -> Agent:
    """The agent of a run's newest checkpoint, finished or not, as `--evaluate` plays it.

    It takes observations (n, 4, 84, 84) uint8 to logits (n, num_actions) and values (n,). Raises
    UserError like `runlog.load`, and if there is no checkpoint yet.
    """
    run = runlog.load(folder, Args)
    num_actions = len(loading.weights_of(run, "agent")["actor.bias"])
    with runlog.value_errors_are_user_errors():
        agent = Agent(num_actions, run.config)
    loading.restore(agent, run, "agent")
    return agent.to(runlog.find_device(device))


def evaluate_finished(args: Args, run: runlog.Run) -> None:
    """--evaluate: plays num_eval_episodes whole games with the last policy (sampled actions), films
    the first one, and measures the network on the observations."""
    step = evaluation.finished_step(run)
    make = functools.partial(make_games, args)
    agent = load_agent(run.folder)
    generator = seeding.make_generator(args.seed, "play")
    seen = metrics.Reservoir(args.metrics_samples, args.seed)
    screens = []

    @torch.no_grad()
    def policy(obs: np.ndarray) -> np.ndarray:
        obs = torch.from_numpy(obs)
        seen.add(obs)
        logits, _ = agent(obs)
        actions = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        return actions.squeeze(1).numpy()

    returns = atari.play_games(make, policy, args.num_eval_episodes, args.seed, screens)
    obs = seen.sample()
    report = reports.network_report(agent, (obs,), {}, 0, max_samples=args.metrics_samples)
    evaluation.record_evaluation(
        run, step, returns, screens, "network/agent", report, plots.draw_run
    )


def runs_of(args: Args) -> list[runlog.Run]:
    """The run of these flags. Raises UserError for an unknown game."""
    name, _ = atari.atari_game(args.env_id)
    # the games of --evaluate are no part of the training: a run has one name, whatever their number
    num_eval_episodes = Args.num_eval_episodes
    return runlog.seed_runs(args, "ppo_atari", env_id=name, num_eval_episodes=num_eval_episodes)


def dashboard(args: Args) -> dict:
    """The TensorBoard and W&B panels for these runs (docs/dashboards.md)."""
    panels = [
        "training return",
        "mean value on the batch",
        "loss of the values",
        "weight norm of each network",
        "gradient norm of each network",
        "rank of the tangent kernel",
        "neurons recycled by ReDo",
        "gradient norm of the coefficients",
        "environment steps per second",
    ]
    return plots.dashboards.sections(panels, ("agent",), "fc1")


def main(args: Args) -> None:
    args = validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.print_network:
        reports.print_network(Agent(make_games(args, 1).num_actions, args))
        return
    runs = runs_of(args)
    if args.evaluate:
        evaluate_finished(args, runs[0])
        return
    with runlog.open_batches(
        runs, args, sections=dashboard(args), seed_axis=False, keep_freed_memory=True
    ) as batches:
        for batch in batches:
            train(args, batch)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
