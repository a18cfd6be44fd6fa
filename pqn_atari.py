"""Parallelised Q-Network on Atari (PQN, 2407.04811), for the Hadamard representations of HR.

HR = arXiv 2406.09079, Table 6. One Q-network, no target network and no replay buffer: 128 games
play 32 steps, and the network learns their Q(lambda) returns. Every hidden layer is
layer-normalised and uses --activation. The same command again resumes the run, or reports that it
is finished.

    python pqn_atari.py --env-id Breakout --activation tanh_hr

Results, implementation details, differences from purejaxql and CleanRL: docs/pqn_atari.md.
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
    encoder_activation: tuple[str, ...] = ()  # convolutions: one or three; empty: --activation
    seed: int = 1  # seed of weights, exploration and games
    total_timesteps: int = 10_000_000  # environment steps of all games (4 frames each)
    layer_norm: Literal["channel", "chw", "none"] = "channel"  # before activations, over C or CHW
    width: int = 512  # units of the last hidden layer
    learning_rate: float = 2.5e-4  # RAdam's initial learning rate
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
    # algorithm; the defaults are HR's Table 6
    num_envs: int = 128  # parallel training games
    num_steps: int = 32  # steps per training game between updates
    update_epochs: int = 2  # passes over these steps
    num_minibatches: int = 32  # minibatches per pass, one gradient step each
    gamma: float = 0.99  # discount factor
    q_lambda: float = 0.65  # lambda of the Q(lambda) returns
    anneal_lr: bool = True  # decay the learning rate linearly to 0
    start_epsilon: float = 1.0  # fraction of random actions at the start
    final_epsilon: float = 0.001  # fraction of random actions at the end
    exploration_fraction: float = 0.1  # fraction of the run over which epsilon falls linearly
    max_grad_norm: float = 10.0  # clip the gradient to this L2 norm
    loss_coefficient: float = 0.5  # factor of the squared error (purejaxql: 0.5, CleanRL: 1)
    clip_rewards: bool = True  # learn from the sign of the rewards; logged returns are raw
    # network
    redo: bool = False  # recycle dormant neurons (ReDo)
    redo_tau: float = 0.025  # a neuron with at most this score is dormant
    redo_period: int = 1_000  # gradient steps between recyclings
    rational: activations.RationalConfig = dataclasses.field(
        default_factory=activations.RationalConfig
    )
    # evaluation and metrics
    num_test_envs: int = 8  # greedy games alongside the training games, not learned from
    eval_frequency: int = 50_000  # environment steps between mean returns of the test games
    num_eval_episodes: int = 8  # games played by --evaluate
    log_frequency: int = 10_000  # environment steps between logged losses
    metrics_frequency: int = 100_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # observations for the network metrics
    ntk_frequency: int = 500_000  # environment steps between NTK ranks; 0 = off
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


class QNetwork(nn.Module):
    """Nature CNN (Mnih et al. 2015): observations (n, 4, 84, 84) uint8 -> Q (n, num_actions)."""

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        encoder = encoder_activations(args)
        seed = functools.partial(seeding.derive_seed, args.seed)
        shared = {} if args.rational.share_across_layers else None
        options = {"rational": args.rational, "shared": shared, "init": activations.he_normal}

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
        self.q = activations.Linear(
            self.fc.width, num_actions, seeds=seed("q"), init=activations.lecun_normal
        )

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(obs / 255.0)))
        return self.q(self.fc(x.flatten(1)))


def encoder_activations(args: Args) -> tuple[str, ...]:
    """The activations of the three convolutions."""
    names = args.encoder_activation or (args.activation,)
    return names * 3 if len(names) == 1 else names


class Batch(NamedTuple):
    """Transitions of an iteration, and the returns that the network learns."""

    obs: torch.Tensor  # (n, 4, 84, 84) uint8
    actions: torch.Tensor  # (n,) int64
    returns: torch.Tensor  # (n,) Q(lambda)


@torch.no_grad()
def greedy(q_network: QNetwork, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(max_a Q(s, a), the maximising action), (n,) each."""
    return q_network(obs).max(-1)


def explore(
    actions: torch.Tensor, epsilon: float, num_actions: int, generator: torch.Generator
) -> torch.Tensor:
    """The actions (n,), each replaced with probability epsilon by a uniformly random one."""
    draws = torch.rand(2, len(actions), generator=generator, device=actions.device)
    random_actions = (draws[1] * num_actions).long()
    return torch.where(draws[0] < epsilon, random_actions, actions)


def q_lambda_returns(
    rewards: torch.Tensor,
    terminations: torch.Tensor,
    truncations: torch.Tensor,
    next_values: torch.Tensor,
    gamma: float,
    q_lambda: float,
) -> torch.Tensor:
    """Q(lambda) returns (Gallici et al. 2024, eq. 5), all (num_steps, num_envs) float:

    G_t = r_t + gamma (1 - termination_t) ((1 - lambda) v_t + lambda G_{t+1})

    with v_t = next_values[t] = max_a Q(s', a) of the true successor s'. At a truncation and at the
    last step G_{t+1} belongs to another episode or is not known, and v_t is used alone.
    """
    returns = torch.empty_like(rewards)
    next_return = next_values[-1]
    for t in reversed(range(len(rewards))):
        mixed = torch.lerp(next_values[t], next_return, q_lambda)
        tail = torch.where(truncations[t].bool(), next_values[t], mixed)
        next_return = rewards[t] + gamma * (1 - terminations[t]) * tail
        returns[t] = next_return
    return returns


def td_loss(q_network: QNetwork, batch: Batch, args: Args) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss_coefficient times the mean squared error of Q(s, a) against returns, mean Q(s, a))."""
    q_values = q_network(batch.obs).gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    loss = args.loss_coefficient * (q_values - batch.returns).square().mean()
    return loss, q_values.detach().mean()


@dataclasses.dataclass
class Learner:
    """What a gradient step uses: the network, its optimiser, and the (compiled) functions."""

    q_network: QNetwork
    optimizer: torch.optim.Optimizer
    td_loss: Callable
    clip_and_step: Callable


def clip_and_step(
    q_network: QNetwork, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> torch.Tensor:
    """One gradient step; returns the norm of the gradients before clipping."""
    norm = nn.utils.clip_grad_norm_(q_network.parameters(), max_grad_norm)
    optimizer.step()
    return norm


def gradient_step(
    learner: Learner, batch: Batch, totals: torch.Tensor, args: Args, index: torch.Tensor
) -> None:
    """One gradient step on the transitions `index` (n,) of an iteration, in place; adds the loss,
    the mean Q(s, a) and the norm of the gradients to totals (3,). Does not wait for the GPU."""
    minibatch = Batch(*(column.index_select(0, index) for column in batch))
    learner.optimizer.zero_grad()
    with activations.observing(learner.q_network):
        loss, q_mean = learner.td_loss(learner.q_network, minibatch, args)
    loss.backward()
    norm = learner.clip_and_step(learner.q_network, learner.optimizer, args.max_grad_norm)
    activations.step_constraints(learner.q_network, total_updates(args))
    totals += torch.stack([loss.detach(), q_mean, norm])


def total_updates(args: Args) -> int:
    """Gradient steps of the whole training."""
    iterations = args.total_timesteps // (args.num_envs * args.num_steps)
    return iterations * args.update_epochs * args.num_minibatches


def linear_schedule(start: float, end: float, fraction: float) -> float:
    """From start to end as fraction goes from 0 to 1, then constant."""
    return start + (end - start) * min(fraction, 1.0)


def has_crossed(before: int, step: int, period: int) -> bool:
    """Whether a multiple of period lies in (before, step]; never for period 0."""
    return period > 0 and step // period > before // period


def epsilon_at(args: Args, step: int) -> float:
    """The fraction of random actions in the iteration that starts at this step."""
    fraction = step / args.total_timesteps / args.exploration_fraction
    return linear_schedule(args.start_epsilon, args.final_epsilon, fraction)


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
        init=activations.he_normal,
        generators=generator,
    )


def measure_network(
    args: Args, run: runlog.Batch, step: int, q_network: QNetwork, batch: Batch
) -> None:
    """Logs the network's metrics, and gradients of the loss, on a batch."""

    def loss_of(*columns: torch.Tensor) -> torch.Tensor:
        loss, _ = td_loss(q_network, Batch(*columns), args)
        return loss

    gradients = metrics.named_gradients(q_network, loss_of, batch, 256)  # bounded memory
    report = reports.network_report(
        q_network, (batch.obs,), gradients, 0, max_samples=args.metrics_samples
    )
    run.log_report(step, "network/q", report)


def measure_ntk(run: runlog.Batch, step: int, q_network: QNetwork, obs: torch.Tensor) -> None:
    """Logs the ranks of the neural tangent kernel of the summed Q-values."""
    ranks = metrics.ntk_rank(q_network, (obs,))
    run.log_report(step, "network/q", {f"ntk_{name}": rank for name, rank in ranks.items()})


# ---- flags -------------------------------------------------------------------------------------


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the largest memory users, by the flags that set them: (on the device, on the
    host)."""
    network = atari.learner_bytes(
        encoder_activations(args), args.activation, args.width, args.layer_norm, atari.MAX_ACTIONS
    )
    batch_size = args.num_envs * args.num_steps
    minibatch_size = batch_size // args.num_minibatches
    transient = {"num_envs num_steps": minibatch_size * network.observation}
    if args.metrics_frequency or args.redo:
        samples = min(args.metrics_samples, batch_size)
        transient["metrics_samples"] = samples * network.observation
    if args.ntk_frequency:
        samples = min(args.ntk_samples, batch_size)
        transient["ntk_samples width"] = samples * network.ntk_sample
    on_device = {
        "width": network.training,
        "num_steps num_envs": batch_size * atari.OBSERVATION_BYTES,
    }
    largest = max(transient, key=transient.get)  # allocated one at a time
    on_device[largest] = on_device.get(largest, 0) + transient[largest]
    on_host = {
        "num_envs": args.num_envs * atari.GAME_BYTES,
        "num_test_envs": args.num_test_envs * atari.GAME_BYTES,
    }
    return on_device, on_host


def check_minibatches(args: Args) -> None:
    """Raises UserError unless the steps of an iteration can be split into the minibatches."""
    batch_size = args.num_envs * args.num_steps
    if batch_size % args.num_minibatches:
        flag = f"--num-minibatches {args.num_minibatches}"
        steps = f"--num-envs {args.num_envs} times --num-steps {args.num_steps} = {batch_size}"
        raise runlog.UserError(f"{flag}: must divide {steps}")


def check_settings(args: Args) -> None:
    """Raises UserError (flag, value, remedy) for values that cannot work on any machine. A sweep
    calls this before it starts anything."""
    check = functools.partial(runlog.check_range, args)
    check("[0, inf)", "seed threads env_threads metrics_frequency ntk_frequency")
    check("[0, inf)", "checkpoint_minutes num_test_envs redo_tau")
    check("[1, inf)", "num_envs num_steps update_epochs num_minibatches width redo_period")
    check("[1, inf)", "checkpoint_frequency eval_frequency num_eval_episodes log_frequency")
    check("[2, inf)", "metrics_samples ntk_samples")
    check("(0, inf)", "learning_rate max_grad_norm loss_coefficient exploration_fraction")
    check("[0, 1]", "repeat_action_probability gamma q_lambda start_epsilon final_epsilon")
    check(f"[{args.num_envs * args.num_steps}, inf)", "total_timesteps")
    check_minibatches(args)
    if len(args.encoder_activation) not in (0, 1, 3):
        flag = f"--encoder-activation {' '.join(args.encoder_activation)}"
        raise runlog.UserError(f"{flag}: give one name, or three")
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        for name in args.encoder_activation:
            activations.check(name, args.rational, "--encoder-activation")
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
    num_envs = args.num_envs
    batch_size = num_envs * args.num_steps
    games = make_games(args, num_envs + args.num_test_envs)  # the training games come first
    q_network = QNetwork(games.num_actions, args).to(device, memory_format=torch.channels_last)
    torch.optim.RAdam.step.hooked = True  # skips a profiler wrapper that the compiler warns about
    optimizer = torch.optim.RAdam(
        optimizers.parameter_groups(q_network, args.learning_rate, args.rational),
        decoupled_weight_decay=True,
    )
    generators = {
        "act": seeding.make_generator(args.seed, "act", device=device),
        "update": seeding.make_generator(args.seed, "update", device=device),
        "metrics": seeding.make_generator(args.seed, "metrics", device=device),
        "redo": seeding.make_generator(args.seed, "redo"),
    }
    num_updates = 0
    test_returns = []  # since the last evaluation
    recent_returns = []  # of training, since the last line on the terminal
    last_eval = {}

    # resume
    start = run.start
    state = run.load()
    if state is not None:
        q_network.load_state_dict(state["q_network"])
        optimizer.load_state_dict(state["optimizer"])
        seeding.set_states(generators, state["generators"])
        num_updates = state["num_updates"]
        test_returns = state["test_returns"]
        last_eval = state["last_eval"]

    is_graphed = args.cudagraphs and cudagraphs.can_run_on(device)
    rate_device = device if args.compile or is_graphed else None
    # capturable: the same update rule on a GPU, whether compiled, captured or neither
    optimizers.set_capturable(optimizer, device.type == "cuda", device)

    compiled = functools.partial(torch.compile, dynamic=False, disable=not args.compile)
    learner = Learner(q_network, optimizer, compiled(td_loss), compiled(clip_and_step))
    shape = (args.num_steps, num_envs)
    obs = torch.empty(*shape, 4, 84, 84, dtype=torch.uint8, device=device)
    actions = torch.empty(shape, dtype=torch.int64, device=device)
    values = torch.empty(args.num_steps + 1, num_envs, device=device)  # max_a Q(s_t, a)
    rewards = np.empty(shape, np.float32)
    terminations = np.empty(shape, np.float32)
    truncations = np.empty(shape, np.float32)
    returns = torch.empty(shape, device=device)
    batch = Batch(obs.flatten(0, 1), actions.flatten(), returns.flatten())  # the same memory
    totals = torch.empty(3, device=device)  # sums that an iteration logs
    greedy_of_network = functools.partial(compiled(greedy), q_network)
    update = functools.partial(gradient_step, learner, batch, totals, args)
    if is_graphed:
        greedy_of_network = cudagraphs.graphed(greedy_of_network)
        update = cudagraphs.graphed(update)
    upload = Uploader(device)
    label = f"{args.env_id} {args.activation}"
    progress = runlog.Progress(start, args.total_timesteps, label, start + batch_size)
    next_obs = games.reset(args.seed, "games", start)
    if state is not None and start + batch_size <= args.total_timesteps:
        paused = time.monotonic()
        progress.note("playing the new games until they are desynchronised")
        epsilon = epsilon_at(args, start)
        generator = seeding.make_generator(args.seed, "desynchronise", start, device=device)

        def behaviour_policy(obs_of_all: np.ndarray) -> np.ndarray:
            _, actions_of_all = greedy_of_network(upload(obs_of_all))
            actions_of_all[:num_envs] = explore(
                actions_of_all[:num_envs], epsilon, games.num_actions, generator
            )
            return actions_of_all.cpu().numpy()

        next_obs = atari.desynchronise(games, behaviour_policy, next_obs, num_envs)
        progress.skip(time.monotonic() - paused)
    for step in range(start + batch_size, args.total_timesteps + 1, batch_size):
        before = step - batch_size  # an iteration goes from here to step
        at_end = step + batch_size > args.total_timesteps
        reached = args.total_timesteps if at_end else step
        is_due = functools.partial(has_crossed, before, reached)

        # act and store
        epsilon = epsilon_at(args, before)
        cut_values = {}  # t -> (games cut off by a time limit, values of their successors)
        for t in range(args.num_steps):
            obs_of_all = upload(next_obs)
            values_of_all, actions_of_all = greedy_of_network(obs_of_all)
            actions[t] = explore(
                actions_of_all[:num_envs], epsilon, games.num_actions, generators["act"]
            )
            actions_of_all[:num_envs] = actions[t]
            obs[t] = obs_of_all[:num_envs]
            values[t] = values_of_all[:num_envs]
            played = games.step(actions_of_all.cpu().numpy())
            next_obs = played.obs
            rewards[t] = played.rewards[:num_envs]
            terminations[t] = played.terminations[:num_envs]
            truncations[t] = played.truncations[:num_envs]
            cut = played.truncations[:num_envs]
            if cut.any():  # the true successor is not the next observation
                successors = torch.from_numpy(played.real_next_obs[:num_envs][cut]).to(device)
                value, _ = greedy(q_network, successors)
                cut_values[t] = (torch.from_numpy(cut).to(device), value)
            for game in played.games:
                if game.env >= num_envs:
                    test_returns.append(game.total)
                    continue
                row = {
                    "charts/episodic_return": game.total,
                    "charts/episodic_length": game.length,
                }
                run.log(before + (t + 1) * num_envs, row)
                recent_returns.append(game.total)
            progress.update(before + (t + 1) * num_envs)

        # targets
        last_values, _ = greedy_of_network(upload(next_obs))
        values[-1] = last_values[:num_envs]
        next_values = values[1:].clone()
        for t, (cut, value) in cut_values.items():
            next_values[t, cut] = value
        returns[:] = q_lambda_returns(
            torch.from_numpy(np.sign(rewards) if args.clip_rewards else rewards).to(device),
            torch.from_numpy(terminations).to(device),
            torch.from_numpy(truncations).to(device),
            next_values,
            args.gamma,
            args.q_lambda,
        )

        # learn
        elapsed = before / args.total_timesteps if args.anneal_lr else 0.0
        for group in optimizer.param_groups:
            rate = linear_schedule(group["initial_lr"], 0.0, elapsed)
            optimizers.set_learning_rate(group, rate, rate_device)
        totals.zero_()
        for _ in range(args.update_epochs):
            order = torch.randperm(batch_size, generator=generators["update"], device=device)
            for index in order.chunk(args.num_minibatches):
                update(index)
                num_updates += 1
                if args.redo and num_updates % args.redo_period == 0:
                    sample = batch.obs[order[: args.metrics_samples]]
                    recycled = recycle_dormant(
                        q_network, optimizer, sample, args.redo_tau, generators["redo"]
                    )
                    run.log(step, {"redo/recycled_share": recycled})
        means = totals / (args.update_epochs * args.num_minibatches)
        loss_mean, q_mean, norm_mean = means.tolist()

        # log
        run.note_losses(step, {"td_loss": loss_mean})
        if any(run.diverged()):
            run.log(args.total_timesteps, last_eval)  # carried forward
            break
        if is_due(args.log_frequency):
            row = {
                "losses/td_loss": loss_mean,
                "losses/q_mean": q_mean,
                "losses/gradient_norm": norm_mean,
                "charts/epsilon": epsilon,
                "charts/learning_rate": linear_schedule(args.learning_rate, 0.0, elapsed),
                "perf/sps": progress.speed(step),
            }
            run.log(step, row)
        if is_due(args.eval_frequency) and test_returns:
            last_eval = {
                "eval/episodic_return": float(np.mean(test_returns)),
                "eval/num_games": len(test_returns),
            }
            run.log(step, last_eval)
            test_returns = []
            recent_returns = []
            progress.note_means(step, [last_eval], ["eval/episodic_return"])
        if at_end:
            progress.note_end(step, recent_returns)

        # measure the network
        paused = time.monotonic()
        if is_due(args.metrics_frequency):
            order = torch.randperm(batch_size, generator=generators["metrics"], device=device)
            chosen = order[: args.metrics_samples]
            sample = Batch(*(column[chosen] for column in batch))
            measure_network(args, run, step, q_network, sample)
        if is_due(args.ntk_frequency):
            generator = seeding.make_generator(args.seed, "ntk", step, device=device)
            order = torch.randperm(batch_size, generator=generator, device=device)
            sample = batch.obs[order[: args.ntk_samples]]
            measure_ntk(run, step, q_network, sample)
        progress.skip(time.monotonic() - paused)

        # save
        if run.save_is_due(step, at_end):
            state = {
                "q_network": q_network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generators": seeding.get_states(generators),
                "num_updates": num_updates,
                "test_returns": test_returns,
                "last_eval": last_eval,
            }
            run.save(step, state)
            if run.save_is_regular:
                run.draw(step, plots.draw_run)
        progress.update(step)

    run.finish()
    progress.close()


# ---- after the training --------------------------------------------------------------------------


def load_agent(folder: str | Path, device: str = "cpu") -> QNetwork:
    """The Q-network of a run's newest checkpoint, finished or not, as `--evaluate` plays it.

    It takes observations (n, 4, 84, 84) uint8 to Q-values (n, num_actions). Raises UserError like
    `runlog.load`, and if there is no checkpoint yet.
    """
    run = runlog.load(folder, Args)
    num_actions = len(loading.weights_of(run, "q_network")["q.bias"])
    with runlog.value_errors_are_user_errors():
        q_network = QNetwork(num_actions, run.config)
    loading.restore(q_network, run, "q_network")
    return q_network.to(runlog.find_device(device))


def evaluate_finished(args: Args, run: runlog.Run) -> None:
    """--evaluate: plays num_eval_episodes whole games greedily with the last checkpoint, films the
    first one, and measures the network on the observations."""
    step = evaluation.finished_step(run)
    make = functools.partial(make_games, args)
    q_network = load_agent(run.folder)
    seen = metrics.Reservoir(args.metrics_samples, args.seed)
    screens = []

    def policy(obs: np.ndarray) -> np.ndarray:
        obs = torch.from_numpy(obs)
        seen.add(obs)
        _, actions = greedy(q_network, obs)
        return actions.numpy()

    returns = atari.play_games(make, policy, args.num_eval_episodes, args.seed, screens)
    obs = seen.sample()
    report = reports.network_report(q_network, (obs,), {}, 0, max_samples=args.metrics_samples)
    evaluation.record_evaluation(run, step, returns, screens, "network/q", report, plots.draw_run)


def runs_of(args: Args) -> list[runlog.Run]:
    """The run of these flags. Raises UserError for an unknown game."""
    name, _ = atari.atari_game(args.env_id)
    # the games of --evaluate are no part of the training: a run has one name, whatever their number
    num_eval_episodes = Args.num_eval_episodes
    return runlog.seed_runs(args, "pqn_atari", env_id=name, num_eval_episodes=num_eval_episodes)


def dashboard(args: Args) -> dict:
    """The TensorBoard and W&B panels for these runs (docs/dashboards.md)."""
    panels = [
        "evaluation return",
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
    with runlog.open_batches(
        runs, args, sections=dashboard(args), seed_axis=False, keep_freed_memory=True
    ) as batches:
        for batch in batches:
            train(args, batch)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
