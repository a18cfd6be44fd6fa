"""Proximal Policy Optimisation on Atari (PPO, 1707.06347), for the Hadamard representations of HR (2406.09079).

8 games play 128 steps; actor and critic share the Nature CNN and learn from them. The last hidden layer carries
--activation, the convolutions --encoder-activation. The same command again resumes or says "finished".

    python ppo_atari.py --env-id Breakout --activation tanh_hr

Results, implementation details, differences from CleanRL: docs/ppo_atari.md.
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
import torch.nn.functional as F

import activations
import metrics
import optimizers
import runlog


@dataclasses.dataclass
class Args:
    seed: int = 1  # of weights, actions and games
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
    # algorithm; the defaults are HR's Table 5
    num_envs: int = 8  # training games (CleanRL's value)
    num_steps: int = 128  # steps of each training game between updates
    update_epochs: int = 4  # passes over these steps
    num_minibatches: int = 4  # parts of a pass, one gradient step each
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation
    learning_rate: float = 2.5e-4  # Adam's learning rate at the start
    anneal_lr: bool = True  # let the learning rate fall linearly to 0
    adam_eps: float = 1e-5  # epsilon of Adam
    normalize_advantages: bool = True  # to mean 0 and standard deviation 1 in each minibatch
    clip_coefficient: float = 0.1  # bound on how far the probability ratio may move from 1
    clip_value_loss: bool = True  # bound the critic's move in the same way
    entropy_coefficient: float = 0.01  # weight of the entropy bonus
    value_coefficient: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # longer gradients are scaled down to this L2 norm
    target_kl: float | None = None  # end an update early beyond this approximate KL divergence; None = never
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
    num_eval_episodes: int = 8  # games that --evaluate plays
    log_frequency: int = 10_000  # environment steps between rows of losses
    metrics_frequency: int = 100_000  # environment steps between network metrics; 0 = off
    metrics_samples: int = 2_048  # observations that the network metrics look at
    ntk_frequency: int = 250_000  # environment steps between ranks of the neural tangent kernel; 0 = off
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


class Agent(nn.Module):
    """Nature CNN (Mnih et al. 2015): observations (n, 4, 84, 84) uint8 -> logits (n, num_actions), values (n,)."""

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        first, second, third = args.encoder_activation * (3 // len(args.encoder_activation))
        seed = functools.partial(runlog.derive_seed, args.seed)
        shared = {} if args.rational.share_across_layers else None
        options = {"rational": args.rational, "shared": shared}  # orthogonal initialisation with gain sqrt(2)
        conv = functools.partial(activations.conv, layer_norm=args.layer_norm, **options)
        self.conv1 = conv(4, 32, 8, first, stride=4, out_size=(20, 20), seeds=seed("conv1"))
        self.conv2 = conv(self.conv1.width, 64, 4, second, stride=2, out_size=(9, 9), seeds=seed("conv2"))
        self.conv3 = conv(self.conv2.width, 64, 3, third, stride=1, out_size=(7, 7), seeds=seed("conv3"))
        norm = args.layer_norm != "none"
        inputs = self.conv3.width * 7 * 7
        self.fc = activations.dense(inputs, args.width, args.activation, layer_norm=norm, seeds=seed("fc"), **options)
        head = functools.partial(activations.Linear, self.fc.width)
        gain = activations.orthogonal
        self.actor = head(num_actions, seeds=seed("actor"), init=gain(0.01))
        self.critic = head(1, seeds=seed("critic"), init=gain(1.0))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv3(self.conv2(self.conv1(obs / 255.0)))
        hidden = self.fc(x.flatten(1))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


@torch.no_grad()
def recycle_dormant(network: Agent, optimizer, obs: torch.Tensor, args: Args, generator: torch.Generator) -> float:
    """ReDo (Sokar et al. 2023): recycles the dormant neurons of every hidden layer; returns their share."""
    layers = [network.conv1, network.conv2, network.conv3, network.fc]
    with metrics.record_layers(network) as records:
        network(obs)
    outputs = [metrics.channel_samples(records[name].output) for name in ("conv1", "conv2", "conv3", "fc")]
    dormant = [metrics.dormant_neurons(x, args.redo_tau)[0] for x in outputs]
    return optimizers.recycle_layers(
        layers, [network.actor, network.critic], dormant, optimizer, activations.orthogonal(), generator
    )


def compute_gae(rewards, terminations, truncations, values, next_values, gamma: float, gae_lambda: float):
    """(advantages, returns) by generalised advantage estimation (Schulman et al. 2016, eq. 16), (num_steps, num_envs):

    delta_t = r_t + gamma (1 - termination_t) V(s') - V(s_t); A_t = delta_t + gamma lambda (1 - done_t) A_{t+1}, with
    next_values[t] = V(s') of the true successor s', so that time limits bootstrap; returns = advantages + values.
    """
    advantages = torch.empty_like(rewards)
    advantage = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * (1 - terminations[t]) * next_values[t] - values[t]
        running = 1 - torch.maximum(terminations[t], truncations[t])
        advantages[t] = advantage = delta + gamma * gae_lambda * running * advantage
    return advantages, advantages + values


def linear_schedule(start: float, end: float, fraction: float) -> float:
    """From start to end as fraction goes from 0 to 1, and end from then on."""
    return start + (end - start) * min(fraction, 1.0)


def has_crossed(before: int, step: int, period: int) -> bool:
    """Whether a multiple of period lies in (before, step]; never for period 0."""
    return period > 0 and step // period > before // period


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of what takes the memory, by the flags that set it: (on the device, on the host)."""
    network = runlog.nature_cnn_size(args, runlog.MOST_ACTIONS + 1)
    batch_size = args.num_envs * args.num_steps
    of_observation = runlog.OBSERVATION_BYTES + runlog.FLOAT_BYTES * (runlog.OBSERVATION_BYTES + network.activations)
    transient = {"num_envs num_steps": batch_size // args.num_minibatches * of_observation}
    if args.metrics_frequency or args.redo:
        transient["metrics_samples"] = args.metrics_samples * of_observation
    if args.ntk_frequency:
        samples = min(args.ntk_samples, batch_size)
        gradients = runlog.NTK_COPIES * samples * network.parameters
        transient["ntk_samples width"] = runlog.FLOAT_BYTES * gradients
    on_device = {"width": runlog.ADAM_COPIES * runlog.FLOAT_BYTES * network.parameters}
    on_device["num_steps num_envs"] = batch_size * runlog.OBSERVATION_BYTES
    if args.metrics_samples > batch_size:
        on_device["metrics_samples"] = args.metrics_samples * runlog.OBSERVATION_BYTES  # of earlier iterations
    largest = max(transient, key=transient.get)  # one after the other
    on_device[largest] = on_device.get(largest, 0) + transient[largest]
    return on_device, {"num_envs": args.num_envs * runlog.GAME_BYTES}


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created; returns args with the game's plain name."""
    runlog.check_range(args, "[0, inf)", "seed threads env_threads metrics_frequency ntk_frequency")
    runlog.check_range(args, "[0, inf)", "checkpoint_minutes redo_tau")
    runlog.check_range(args, "[0, inf)", "entropy_coefficient value_coefficient")
    runlog.check_range(args, "[1, inf)", "num_envs num_steps update_epochs num_minibatches width redo_period")
    runlog.check_range(args, "[1, inf)", "checkpoint_frequency num_eval_episodes log_frequency")
    runlog.check_range(args, "[2, inf)", "metrics_samples ntk_samples")
    runlog.check_range(args, "(0, inf)", "learning_rate adam_eps clip_coefficient max_grad_norm")
    runlog.check_range(args, "[0, 1]", "repeat_action_probability gamma gae_lambda")
    batch_size = args.num_envs * args.num_steps
    runlog.check_range(args, f"[{batch_size}, inf)", "total_timesteps")
    if batch_size % args.num_minibatches:
        text = f"must divide --num-envs {args.num_envs} times --num-steps {args.num_steps} = {batch_size}"
        raise runlog.UserError(f"--num-minibatches {args.num_minibatches}: {text}")
    if batch_size == args.num_minibatches and args.normalize_advantages:
        raise runlog.UserError(
            f"--num-minibatches {args.num_minibatches}: one step each; use --no-normalize-advantages"
        )
    if args.target_kl is not None:
        runlog.check_range(args, "(0, inf)", "target_kl")
    runlog.check_flags(args)
    device = runlog.find_device(args.device)
    with runlog.value_errors_are_user_errors():
        activations.check(args.activation, args.rational)
        activations.check_encoder(args.encoder_activation, args.rational)
    if not args.evaluate:
        runlog.check_memory(args, device, *big_tensors(args))
    return dataclasses.replace(args, env_id=atari_game(args.env_id)[0])


def train(args: Args, run: runlog.Run) -> None:
    """Trains one seed from its newest checkpoint, or from the beginning. Games that were under way start anew."""
    device = runlog.find_device(args.device)
    batch_size = args.num_envs * args.num_steps
    games = AtariGames(args, args.num_envs)
    agent = Agent(games.num_actions, args).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        optimizers.parameter_groups(agent, args.learning_rate, args.rational), eps=args.adam_eps, fused=True
    )
    generators = {use: runlog.make_generator(args.seed, use, device=device) for use in ("act", "update", "metrics")}
    generators["redo"] = runlog.make_generator(args.seed, "redo")
    num_updates = 0
    last_return = {}
    earlier_obs = torch.empty(0, 4, 84, 84, dtype=torch.uint8, device=device)  # an iteration is too few for the metrics
    start, state, _ = run.load_checkpoint()
    if state:
        agent.load_state_dict(state["agent"])
        optimizer.load_state_dict(state["optimizer"])
        num_updates = state["num_updates"]
        last_return = state["last_return"]
        earlier_obs = state["earlier_obs"].to(device)
        runlog.set_states(generators, state["generators"])

    @torch.no_grad()
    def act(obs: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions, their log-probabilities and values; Gumbel noise makes the argmax a sample of the softmax."""
        logits, values = agent(obs)
        actions = (logits - (-uniform.log()).log()).argmax(-1)
        return actions, logits.log_softmax(-1).gather(1, actions.unsqueeze(1)).squeeze(1), values

    def ppo_loss(obs, actions, old_log_probs, advantages, returns, old_values) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, [policy loss, value loss, entropy, approximate KL, share of clipped ratios, mean value])."""
        logits, values = agent(obs)
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        log_ratio = log_probs.gather(1, actions.unsqueeze(1)).squeeze(1) - old_log_probs
        ratio = log_ratio.exp()
        bound = args.clip_coefficient
        if args.normalize_advantages:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - bound, 1 + bound)
        policy_loss = -torch.minimum(advantages * ratio, advantages * clipped).mean()
        value_loss = 0.5 * (values - returns).square()
        if args.clip_value_loss:
            near = old_values + (values - old_values).clamp(-bound, bound)
            value_loss = torch.maximum(value_loss, 0.5 * (near - returns).square())
        value_loss = value_loss.mean()
        loss = policy_loss - args.entropy_coefficient * entropy + args.value_coefficient * value_loss
        kl = (ratio - 1 - log_ratio).mean()
        clip_share = ((ratio - 1).abs() > bound).float().mean()
        told = torch.stack([policy_loss, value_loss, entropy, kl, clip_share, values.mean()])
        return loss, told.detach()

    compiled = functools.partial(torch.compile, dynamic=False, disable=not args.compile)
    compiled_act = compiled(act)
    compiled_loss = compiled(ppo_loss)
    shape = (args.num_steps, args.num_envs)
    b_obs = torch.empty(*shape, 4, 84, 84, dtype=torch.uint8, device=device)
    b_actions = torch.empty(shape, dtype=torch.int64, device=device)
    b_log_probs, b_values = (torch.empty(shape, device=device) for _ in range(2))
    progress = runlog.Progress(start, args.total_timesteps, f"{args.env_id} {args.activation}")
    save_times = runlog.SaveTimes(start, args.checkpoint_frequency, args.checkpoint_minutes)
    obs = games.reset(args.seed, "games", start)
    clock = time.monotonic()
    clock_step = start
    postfix = {}
    recent = []  # returns since the last note
    for step in range(start + batch_size, args.total_timesteps + 1, batch_size):  # at the end of each iteration
        fraction = (step - batch_size) / args.total_timesteps
        at_end = step + batch_size > args.total_timesteps
        crossed = functools.partial(has_crossed, step - batch_size, args.total_timesteps if at_end else step)
        # act
        ends = []
        cut_values = []
        for t in range(args.num_steps):
            b_obs[t] = torch.from_numpy(obs)
            uniform = torch.rand(args.num_envs, games.num_actions, generator=generators["act"], device=device)
            b_actions[t], b_log_probs[t], b_values[t] = compiled_act(b_obs[t], uniform)
            obs, *ends_of_step, real_next_obs, ended = games.step(b_actions[t].cpu().numpy())
            ends.append(ends_of_step)
            if (cut := ends[-1][2]).any():  # a time limit: its successor is not in b_obs
                with torch.no_grad():
                    cut_obs = torch.from_numpy(real_next_obs[cut]).to(device)
                    cut_values.append((t, torch.from_numpy(cut).to(device), agent(cut_obs)[1]))
            for _, total, length in ended:
                last_return = {"charts/episodic_return": total, "charts/episodic_length": length}
                run.log(step - batch_size + (t + 1) * args.num_envs, last_return)
                recent.append(total)
        uniform = torch.full((args.num_envs, games.num_actions), 0.5, device=device)
        next_values = torch.cat([b_values[1:], compiled_act(torch.from_numpy(obs).to(device), uniform)[2].unsqueeze(0)])
        for t, cut, value in cut_values:
            next_values[t, cut] = value
        # learn
        rewards, terminations, truncations = (
            torch.as_tensor(np.stack(x), dtype=torch.float32, device=device) for x in zip(*ends)
        )
        rewards = rewards.sign() if args.clip_rewards else rewards
        gae = compute_gae(rewards, terminations, truncations, b_values, next_values, args.gamma, args.gae_lambda)
        advantages, returns = gae
        columns = (b_obs, b_actions, b_log_probs, advantages, returns, b_values)
        batch = tuple(x.flatten(0, 1) for x in columns)
        for group in optimizer.param_groups:
            group["lr"] = linear_schedule(group["initial_lr"], 0.0, fraction if args.anneal_lr else 0.0)
        totals = torch.zeros(7, device=device)
        count = 0
        for _ in range(args.update_epochs):
            order = torch.randperm(batch_size, generator=generators["update"], device=device)
            for index in order.chunk(args.num_minibatches):
                optimizer.zero_grad()
                loss, told = compiled_loss(*(x.index_select(0, index) for x in batch))
                loss.backward()
                norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
                num_updates += 1
                count += 1
                totals += torch.cat([told, norm.reshape(1)])
                if args.redo and num_updates % args.redo_period == 0:
                    obs_sample = batch[0][order[: args.metrics_samples]]
                    share = recycle_dormant(agent, optimizer, obs_sample, args, generators["redo"])
                    run.log(step, {"redo/recycled_share": share})
            if args.target_kl is not None and told[3] > args.target_kl:
                break
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_share", "value_mean", "gradient_norm")
        losses = dict(zip((f"losses/{name}" for name in names), (totals / count).tolist()))
        # measure
        bad_losses = [key for key, value in losses.items() if not math.isfinite(value)]
        if bad_losses:
            run.log(args.total_timesteps, last_return)  # carried forward
            runlog.finish_diverged(run, step, bad_losses[0])
            break
        if crossed(args.log_frequency):
            speed = (step - clock_step) / (time.monotonic() - clock)
            residual = (returns - b_values).var() / returns.var()
            row = {"losses/explained_variance": 1 - residual.item()}
            row |= {"charts/learning_rate": optimizer.param_groups[0]["lr"]}
            run.log(step, losses | row | {"perf/sps": speed})
            clock = time.monotonic()
            clock_step = step
            postfix["sps"] = f"{speed:.0f}"
            if recent:
                postfix["return"] = f"{np.mean(recent):.4g}"
                recent = []
            progress.note(f"step {step}: " + ", ".join(f"{key} {value}" for key, value in postfix.items()))
        if crossed(args.metrics_frequency):
            paused = time.monotonic()
            seen = torch.cat([earlier_obs, batch[0]])
            chosen = torch.randperm(len(seen), generator=generators["metrics"], device=device)[: args.metrics_samples]
            names, trained = zip(*((n, p) for n, p in agent.named_parameters() if p.requires_grad))
            columns = dict(enumerate(batch))
            limit = args.metrics_samples
            grads = metrics.mean_gradients(lambda x: ppo_loss(*x.values())[0], columns, trained, batch_size)
            report = metrics.network_report(agent, (seen[chosen],), dict(zip(names, grads)), 0, max_samples=limit)
            runlog.log_report(run, step, "network/agent", report)
            clock += time.monotonic() - paused
        if crossed(args.ntk_frequency):
            paused = time.monotonic()
            generator = runlog.make_generator(args.seed, "ntk", step, device=device)
            chosen = torch.randperm(batch_size, generator=generator, device=device)[: args.ntk_samples]
            ranks = metrics.ntk_rank(agent, (batch[0][chosen],), output=lambda logits_and_values: logits_and_values[1])
            runlog.log_ntk(run, step, "network/agent", ranks)
            clock += time.monotonic() - paused
        if args.metrics_samples > batch_size:
            earlier_obs = torch.cat([earlier_obs, batch[0]])[batch_size - args.metrics_samples :]
        # save
        if save_times.is_due(step, at_end):
            state = {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"generators": {use: generator.get_state() for use, generator in generators.items()}}
            state |= {"num_updates": num_updates, "last_return": last_return, "earlier_obs": earlier_obs}
            run.save_checkpoint(step, state)
            save_times.done([run], at_end)
            if save_times.regular:
                run.draw(step)
        progress.update(step, **postfix)
    else:
        run.finish()
    progress.close()


def evaluate_finished(args: Args, run: runlog.Run) -> None:
    """--evaluate: plays num_eval_episodes whole games with the last policy, sampled, films the first, and measures the
    network on what it saw."""
    step, state = runlog.load_finished(run)
    agent = Agent(AtariGames(args, 1).num_actions, args)
    generator = runlog.make_generator(args.seed, "play")
    agent.load_state_dict(state["agent"])
    seen = metrics.Reservoir(args.metrics_samples, args.seed)

    @torch.no_grad()
    def policy(obs: np.ndarray) -> np.ndarray:
        seen.add(obs := torch.from_numpy(obs))
        return torch.multinomial(F.softmax(agent(obs)[0], -1), 1, generator=generator).squeeze(1).numpy()

    returns = play_games(args, policy, args.num_eval_episodes, args.seed, screens := [])
    report = metrics.network_report(agent, (seen.sample(),), {}, 0, max_samples=args.metrics_samples)
    runlog.record_evaluation(run, step, returns, screens, "network/agent", report)


def runs_of(args: Args) -> list[runlog.Run]:
    """The run of these flags. Creates nothing."""
    name, _ = atari_game(args.env_id)
    return runlog.seed_runs(dataclasses.replace(args, env_id=name), "ppo_atari")


def main(args: Args) -> None:
    args = validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.print_network:
        return runlog.print_network(Agent(AtariGames(args, 1).num_actions, args))
    runs = {run.config["seed"]: run for run in runs_of(args)}
    if args.evaluate:
        return evaluate_finished(args, runs[args.seed])
    with runlog.opened(runs, args, "ppo_atari") as groups:
        for _, _, (run,) in groups:
            train(args, run)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
