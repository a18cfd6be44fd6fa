"""Parallelised Q-Network on Atari (PQN, 2407.04811), for the Hadamard representations of HR (2406.09079, Table 6).

One Q-network, no target network and no replay: 128 games play 32 steps, the network learns Q(lambda) returns of them.
Every hidden layer is layer-normalised and carries --activation. The same command again resumes or says "finished".

    python pqn_atari.py --env-id Breakout --activation tanh_hr

Results, implementation details, differences from purejaxql and CleanRL: docs/pqn_atari.md.
"""

import dataclasses
import functools
import math
import time
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
    seed: int = 1  # of weights, exploration and games
    total_timesteps: int = 10_000_000  # environment steps of all training games together; frames are 4 times as many
    device: str = runlog.option("auto")  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int = runlog.option(0)  # CPU threads of torch; 0 = torch's choice
    env_threads: int = runlog.option(0)  # threads that step the games; 0 = as many as cores
    compile: bool = runlog.option(True)  # torch.compile the network; --no-compile runs it eagerly
    runs_dir: str = runlog.option("runs")  # where the run folders are
    fresh: bool = runlog.option(False)  # delete an existing run of these flags and start anew
    checkpoint_frequency: int = runlog.option(250_000)  # environment steps between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # most minutes between checkpoints; 0 = any
    evaluate: bool = runlog.option(False)  # play with the finished run, film and measure it
    print_network: bool = runlog.option(False)  # print the layers and their parameters, and stop
    tensorboard: bool = runlog.option(True)  # mirror the scalars to TensorBoard event files
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    env_id: str = "Breakout"  # a game of ale_py: Breakout or ALE/Breakout-v5
    repeat_action_probability: float = 0.0  # sticky actions; 0 as in HR, 0.25 as in Machado et al. 2018
    fire_on_life_loss: bool = True  # the step after a lost life presses fire, whatever was chosen
    # algorithm; the defaults are HR's Table 6
    num_envs: int = 128  # training games
    num_steps: int = 32  # steps of each training game between updates
    update_epochs: int = 2  # passes over these steps
    num_minibatches: int = 32  # parts of a pass, one gradient step each
    gamma: float = 0.99  # discount factor
    q_lambda: float = 0.65  # lambda of the returns Q(lambda)
    learning_rate: float = 2.5e-4  # RAdam's learning rate at the start
    anneal_lr: bool = True  # let the learning rate fall linearly to 0
    start_epsilon: float = 1.0  # fraction of random actions at the start
    final_epsilon: float = 0.001  # fraction of random actions at the end
    exploration_fraction: float = 0.1  # fraction of the run over which epsilon falls linearly
    max_grad_norm: float = 10.0  # longer gradients are scaled down to this L2 norm
    loss_coefficient: float = 0.5  # factor of the squared error (purejaxql: 0.5, CleanRL: 1)
    clip_rewards: bool = True  # learn from the sign of the rewards; returns are logged raw
    # network
    activation: str = "relu"  # name or expression of the last hidden layer: relu, crational, tanh_hr, identity*silu
    encoder_activation: tuple[str, ...] = ()  # of the convolutions: one for all, or three; none = as --activation
    width: int = 512  # units of the last hidden layer
    layer_norm: Literal["channel", "chw", "none"] = "channel"  # before each activation; over channels or C, H, W
    redo: bool = False  # recycle dormant neurons (ReDo)
    redo_tau: float = 0.025  # score up to which a neuron is dormant
    redo_period: int = 1_000  # gradient steps between recyclings
    rational: activations.RationalConfig = dataclasses.field(default_factory=activations.RationalConfig)
    # evaluation and metrics
    num_test_envs: int = 8  # greedy games beside the training games, not learned from
    eval_frequency: int = 50_000  # environment steps between rows of eval/: test games that ended since
    num_eval_episodes: int = 8  # games that --evaluate plays
    log_frequency: int = 10_000  # environment steps between rows of losses
    metrics_frequency: int = 100_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # observations that the network metrics look at
    ntk_frequency: int = 500_000  # environment steps between ranks of the neural tangent kernel; 0 = off
    ntk_samples: int = 64  # observations that the kernel is taken on; each needs the memory of the network


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
        encoder = args.encoder_activation or (args.activation,)
        first, second, third = encoder * 3 if len(encoder) == 1 else encoder
        seed = functools.partial(runlog.derive_seed, args.seed)
        shared = {} if args.rational.share_across_layers else None
        options = {"rational": args.rational, "shared": shared, "init": activations.he_normal}
        conv = functools.partial(activations.conv, layer_norm=args.layer_norm, **options)
        self.conv1 = conv(4, 32, 8, first, stride=4, out_size=(20, 20), seeds=seed("conv1"))
        self.conv2 = conv(self.conv1.width, 64, 4, second, stride=2, out_size=(9, 9), seeds=seed("conv2"))
        self.conv3 = conv(self.conv2.width, 64, 3, third, stride=1, out_size=(7, 7), seeds=seed("conv3"))
        norm = args.layer_norm != "none"
        inputs = self.conv3.width * 7 * 7
        self.fc = activations.dense(inputs, args.width, args.activation, layer_norm=norm, seeds=seed("fc"), **options)
        self.q = activations.Linear(self.fc.width, num_actions, seeds=seed("q"), init=activations.lecun_normal)

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
    return optimizers.recycle_layers(layers, [network.q], dormant, optimizer, activations.he_normal, generator)


def q_lambda_returns(rewards, terminations, truncations, next_values, gamma: float, q_lambda: float) -> torch.Tensor:
    """Q(lambda) returns (Gallici et al. 2024, eq. 5), all (num_steps, num_envs) float:

    G_t = r_t + gamma (1 - termination_t) ((1 - lambda) v_t + lambda G_{t+1}), v_t = next_values[t] = max_a Q(s', a) of
    the true successor s'. At a truncation and at the last step G_{t+1} is not of this episode or not known: v_t alone.
    """
    returns = torch.empty_like(rewards)
    next_return = next_values[-1]
    for t in reversed(range(len(rewards))):
        mixed = torch.lerp(next_values[t], next_return, q_lambda)
        tail = torch.where(truncations[t].bool(), next_values[t], mixed)
        returns[t] = next_return = rewards[t] + gamma * (1 - terminations[t]) * tail
    return returns


def linear_schedule(start: float, end: float, fraction: float) -> float:
    """From start to end as fraction goes from 0 to 1, and end from then on."""
    return start + (end - start) * min(fraction, 1.0)


def has_crossed(before: int, step: int, period: int) -> bool:
    """Whether a multiple of period lies in (before, step]; never for period 0."""
    return period > 0 and step // period > before // period


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of what takes the memory, by the flags that set it: (on the device, on the host)."""
    network = runlog.nature_cnn_size(args, runlog.MOST_ACTIONS)
    batch_size = args.num_envs * args.num_steps
    of_observation = runlog.OBSERVATION_BYTES + runlog.FLOAT_BYTES * (runlog.OBSERVATION_BYTES + network.activations)
    transient = {"num_envs num_steps": batch_size // args.num_minibatches * of_observation}
    if args.metrics_frequency or args.redo:
        transient["metrics_samples"] = min(args.metrics_samples, batch_size) * of_observation
    if args.ntk_frequency:
        samples = min(args.ntk_samples, batch_size)
        gradients = runlog.NTK_COPIES * samples * network.parameters
        transient["ntk_samples width"] = runlog.FLOAT_BYTES * gradients
    on_device = {"width": runlog.ADAM_COPIES * runlog.FLOAT_BYTES * network.parameters}
    on_device["num_steps num_envs"] = batch_size * runlog.OBSERVATION_BYTES
    largest = max(transient, key=transient.get)  # one after the other
    on_device[largest] = on_device.get(largest, 0) + transient[largest]
    games = {"num_envs": args.num_envs, "num_test_envs": args.num_test_envs}
    return on_device, {field: number * runlog.GAME_BYTES for field, number in games.items()}


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created; returns args with the game's plain name."""
    runlog.check_range(args, "[0, inf)", "seed threads env_threads metrics_frequency ntk_frequency")
    runlog.check_range(args, "[0, inf)", "checkpoint_minutes num_test_envs redo_tau")
    runlog.check_range(args, "[1, inf)", "num_envs num_steps update_epochs num_minibatches width redo_period")
    runlog.check_range(args, "[1, inf)", "checkpoint_frequency eval_frequency num_eval_episodes log_frequency")
    runlog.check_range(args, "[2, inf)", "metrics_samples ntk_samples")
    runlog.check_range(args, "(0, inf)", "learning_rate max_grad_norm loss_coefficient exploration_fraction")
    runlog.check_range(args, "[0, 1]", "repeat_action_probability gamma q_lambda start_epsilon final_epsilon")
    batch_size = args.num_envs * args.num_steps
    runlog.check_range(args, f"[{batch_size}, inf)", "total_timesteps")
    if batch_size % args.num_minibatches:
        text = f"must divide --num-envs {args.num_envs} times --num-steps {args.num_steps} = {batch_size}"
        raise runlog.UserError(f"--num-minibatches {args.num_minibatches}: {text}")
    if len(args.encoder_activation) not in (0, 1, 3):
        raise runlog.UserError(f"--encoder-activation {' '.join(args.encoder_activation)}: give one name, or three")
    runlog.check_flags(args)
    device = runlog.find_device(args.device)
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        for name in args.encoder_activation:
            activations.check(name, args.rational, "--encoder-activation")
    if not args.evaluate:
        runlog.check_memory(args, device, *big_tensors(args))
    return dataclasses.replace(args, env_id=atari_game(args.env_id)[0])


def train(args: Args, run: runlog.Run) -> None:
    """Trains one seed from its newest checkpoint, or from the beginning. Games that were under way start anew."""
    device = runlog.find_device(args.device)
    batch_size = args.num_envs * args.num_steps
    games = AtariGames(args, args.num_envs + args.num_test_envs)
    q_network = QNetwork(games.num_actions, args).to(device, memory_format=torch.channels_last)
    torch.optim.RAdam.step.hooked = True  # not wrapped for the profiler: the compiler would warn of that
    optimizer = torch.optim.RAdam(
        optimizers.parameter_groups(q_network, args.learning_rate, args.rational),
        decoupled_weight_decay=True,
        capturable=args.compile and device.type == "cuda",
    )
    generators = {use: runlog.make_generator(args.seed, use, device=device) for use in ("act", "update", "metrics")}
    generators["redo"] = runlog.make_generator(args.seed, "redo")
    num_updates = 0
    test_returns = []
    last_eval = {}
    start, state, _ = run.load_checkpoint()
    if state:
        q_network.load_state_dict(state["q_network"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["capturable"] = args.compile and device.type == "cuda"
        num_updates = state["num_updates"]
        test_returns = state["test_returns"]
        last_eval = state["last_eval"]
        runlog.set_states(generators, state["generators"])

    def td_loss(obs: torch.Tensor, actions: torch.Tensor, returns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q_values = q_network(obs).gather(1, actions.unsqueeze(1)).squeeze(1)
        return args.loss_coefficient * (q_values - returns).square().mean(), q_values.detach().mean()

    def update() -> torch.Tensor:
        norm = nn.utils.clip_grad_norm_(q_network.parameters(), args.max_grad_norm)
        optimizer.step()
        return norm

    @torch.no_grad()
    def greedy(obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return q_network(obs).max(-1)

    compiled = functools.partial(torch.compile, dynamic=False, disable=not args.compile)
    compiled_td_loss = compiled(td_loss)
    compiled_update = compiled(update)
    compiled_greedy = compiled(greedy)
    shape = (args.num_steps, args.num_envs)
    train_games = slice(0, args.num_envs)
    b_obs = torch.empty(*shape, 4, 84, 84, dtype=torch.uint8, device=device)
    b_actions = torch.empty(shape, dtype=torch.int64, device=device)
    b_values = torch.empty(
        args.num_steps + 1, args.num_envs, device=device
    )  # max_a Q(s_t, a), as they were when acting
    progress = runlog.Progress(start, args.total_timesteps, f"{args.env_id} {args.activation}")
    save_times = runlog.SaveTimes(start, args.checkpoint_frequency, args.checkpoint_minutes)
    obs = games.reset(args.seed, "games", start)
    clock = time.monotonic()
    clock_step = start
    postfix = {}
    for step in range(start + batch_size, args.total_timesteps + 1, batch_size):  # at the end of each iteration
        fraction = (step - batch_size) / args.total_timesteps
        at_end = step + batch_size > args.total_timesteps
        crossed = functools.partial(has_crossed, step - batch_size, args.total_timesteps if at_end else step)
        # act
        epsilon = linear_schedule(args.start_epsilon, args.final_epsilon, fraction / args.exploration_fraction)
        ends = []
        cut_values = []
        for t in range(args.num_steps):
            values, actions = compiled_greedy(torch.from_numpy(obs).to(device))
            draws = torch.rand(2, args.num_envs, generator=generators["act"], device=device)
            randoms = (draws[1] * games.num_actions).long()
            actions[train_games] = torch.where(draws[0] < epsilon, randoms, actions[train_games])
            b_obs[t] = torch.from_numpy(obs[train_games])
            b_actions[t] = actions[train_games]
            b_values[t] = values[train_games]
            obs, *ends_of_step, real_next_obs, ended = games.step(actions.cpu().numpy())
            ends.append([x[train_games] for x in ends_of_step])
            if (cut := ends[-1][2]).any():  # a time limit: its successor is not in b_obs
                with torch.no_grad():
                    cut_obs = torch.from_numpy(real_next_obs[train_games][cut]).to(device)
                    cut_values.append((t, torch.from_numpy(cut).to(device), q_network(cut_obs).amax(-1)))
            for i, total, length in ended:
                if i < args.num_envs:
                    row = {"charts/episodic_return": total, "charts/episodic_length": length}
                    run.log(step - batch_size + (t + 1) * args.num_envs, row)
                else:
                    test_returns.append(total)
        b_values[-1] = compiled_greedy(torch.from_numpy(obs).to(device))[0][train_games]
        # learn
        rewards, terminations, truncations = (
            torch.as_tensor(np.stack(x), dtype=torch.float32, device=device) for x in zip(*ends)
        )
        next_values = b_values[1:].clone()
        for t, cut, value in cut_values:
            next_values[t, cut] = value
        rewards = rewards.sign() if args.clip_rewards else rewards
        returns = q_lambda_returns(rewards, terminations, truncations, next_values, args.gamma, args.q_lambda)
        batch = b_obs.flatten(0, 1), b_actions.flatten(), returns.flatten()
        groups = optimizer.param_groups
        elapsed = fraction if args.anneal_lr else 0.0
        rates = [linear_schedule(group["initial_lr"], 0.0, elapsed) for group in groups]
        for group, rate in zip(groups, rates):
            group["lr"] = torch.tensor(rate, device=device) if args.compile else rate  # a number would be compiled in
        totals = torch.zeros(3, device=device)
        for _ in range(args.update_epochs):
            order = torch.randperm(batch_size, generator=generators["update"], device=device)
            for index in order.chunk(args.num_minibatches):
                optimizer.zero_grad()
                loss, q_mean = compiled_td_loss(*(x.index_select(0, index) for x in batch))
                loss.backward()
                norm = compiled_update()
                num_updates += 1
                totals += torch.stack([loss.detach(), q_mean, norm])
                if args.redo and num_updates % args.redo_period == 0:
                    obs_sample = batch[0][order[: args.metrics_samples]]
                    share = recycle_dormant(q_network, optimizer, obs_sample, args, generators["redo"])
                    run.log(step, {"redo/recycled_share": share})
        loss, q_mean, norm = (totals / (args.update_epochs * args.num_minibatches)).tolist()
        # measure
        if not math.isfinite(loss):
            run.log(args.total_timesteps, last_eval)  # carried forward
            runlog.finish_diverged(run, step, "td_loss")
            break
        if crossed(args.log_frequency):
            speed = (step - clock_step) / (time.monotonic() - clock)
            row = {"losses/td_loss": loss, "losses/q_mean": q_mean, "losses/gradient_norm": norm}
            row |= {"charts/epsilon": epsilon, "charts/learning_rate": rates[0]}
            run.log(step, row | {"perf/sps": speed})
            clock = time.monotonic()
            clock_step = step
            postfix["sps"] = f"{speed:.0f}"
        if crossed(args.eval_frequency) and test_returns:
            last_eval = {"eval/episodic_return": float(np.mean(test_returns)), "eval/num_games": len(test_returns)}
            run.log(step, last_eval)
            postfix["eval"] = f"{last_eval['eval/episodic_return']:.4g}"
            test_returns = []
            progress.note(f"step {step}: " + ", ".join(f"{key} {value}" for key, value in postfix.items()))
        if crossed(args.metrics_frequency):
            chosen = torch.randperm(batch_size, generator=generators["metrics"], device=device)[: args.metrics_samples]
            sample = tuple(x[chosen] for x in batch)
            paused = time.monotonic()
            names, trained = zip(*((n, p) for n, p in q_network.named_parameters() if p.requires_grad))
            pieces = dict(enumerate(sample))  # bounded memory
            limit = args.metrics_samples
            grads = metrics.mean_gradients(lambda x: td_loss(*x.values())[0], pieces, trained, 256)
            report = metrics.network_report(q_network, sample[:1], dict(zip(names, grads)), 0, max_samples=limit)
            runlog.log_report(run, step, "network/q", report)
            clock += time.monotonic() - paused
        if crossed(args.ntk_frequency):
            paused = time.monotonic()
            generator = runlog.make_generator(args.seed, "ntk", step, device=device)
            chosen = torch.randperm(batch_size, generator=generator, device=device)[: args.ntk_samples]
            ranks = metrics.ntk_rank(q_network, (batch[0][chosen],))
            runlog.log_ntk(run, step, "network/q", ranks)
            clock += time.monotonic() - paused
        # save
        if save_times.is_due(step, at_end):
            state = {"q_network": q_network.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"generators": {use: generator.get_state() for use, generator in generators.items()}}
            state |= {"num_updates": num_updates, "test_returns": test_returns, "last_eval": last_eval}
            run.save_checkpoint(step, state)
            save_times.done([run], at_end)
            if save_times.regular:
                run.draw(step)
        progress.update(step, **postfix)
    else:
        run.finish()
    progress.close()


def evaluate_finished(args: Args, run: runlog.Run) -> None:
    """--evaluate: plays num_eval_episodes whole games greedily with the last checkpoint, films the first, and measures
    the network on what it saw."""
    step, state = runlog.load_finished(run)
    q_network = QNetwork(AtariGames(args, 1).num_actions, args)
    q_network.load_state_dict(state["q_network"])
    seen = metrics.Reservoir(args.metrics_samples, args.seed)

    @torch.no_grad()
    def policy(obs: np.ndarray) -> np.ndarray:
        seen.add(obs := torch.from_numpy(obs))
        return q_network(obs).argmax(-1).numpy()

    returns = play_games(args, policy, args.num_eval_episodes, args.seed, screens := [])
    report = metrics.network_report(q_network, (seen.sample(),), {}, 0, max_samples=args.metrics_samples)
    runlog.record_evaluation(run, step, returns, screens, "network/q", report)


def runs_of(args: Args) -> list[runlog.Run]:
    """The run of these flags. Creates nothing."""
    name, _ = atari_game(args.env_id)
    return runlog.seed_runs(dataclasses.replace(args, env_id=name), "pqn_atari")


def main(args: Args) -> None:
    args = validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.print_network:
        return runlog.print_network(QNetwork(AtariGames(args, 1).num_actions, args))
    runs = {run.config["seed"]: run for run in runs_of(args)}
    if args.evaluate:
        return evaluate_finished(args, runs[args.seed])
    with runlog.opened(runs, args, "pqn_atari") as groups:
        for _, _, (run,) in groups:
            train(args, run)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
