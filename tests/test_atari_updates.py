"""Losses against slow references in float64, which network DQN's loss uses for what, exploration,
and when DQN updates.

`pytest -q tests/test_atari_updates.py` (about 10 s).
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from test_atari_runs import FakeGames, fake, run
from torch import nn

import dqn_atari
import ppo_atari
import pqn_atari

# ---- PPO's loss --------------------------------------------------------------------------------


class LinearAgent(nn.Module):
    """Logits and values linear in the observation, in float64."""

    def __init__(self, weights: np.ndarray):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = obs @ self.weights
        return outputs[:, :-1], outputs[:, -1]


def slow_ppo_loss(weights: np.ndarray, batch: ppo_atari.Batch, args: ppo_atari.Args) -> dict:
    """Sample by sample; Schulman et al. 2017, eq. 7 and 9, and CleanRL's clipped value loss."""
    obs, actions, old_log_probs, advantages, returns, old_values = (x.numpy() for x in batch)
    n = len(obs)
    if args.normalize_advantages:
        mean = sum(advantages) / n
        variance = sum((x - mean) ** 2 for x in advantages) / (n - 1)
        advantages = (advantages - mean) / (math.sqrt(variance) + 1e-8)
    low = 1 - args.clip_coefficient
    high = 1 + args.clip_coefficient
    sums = {
        "objective": 0.0,
        "entropy": 0.0,
        "value_loss": 0.0,
        "kl": 0.0,
        "clipped": 0,
        "value": 0.0,
    }
    for i in range(n):
        *logits, value = obs[i] @ weights
        exponentials = np.exp(logits)
        probabilities = exponentials / sum(exponentials)
        ratio = probabilities[actions[i]] / math.exp(old_log_probs[i])
        surrogate = ratio * advantages[i]
        if ratio > high:
            surrogate = min(surrogate, high * advantages[i])
        if ratio < low:
            surrogate = min(surrogate, low * advantages[i])
        error = 0.5 * (value - returns[i]) ** 2
        if args.clip_value_loss:
            move = value - old_values[i]
            move = max(min(move, args.clip_coefficient), -args.clip_coefficient)
            error = max(error, 0.5 * (old_values[i] + move - returns[i]) ** 2)
        sums["objective"] += surrogate
        sums["entropy"] -= sum(p * math.log(p) for p in probabilities)
        sums["value_loss"] += error
        sums["kl"] += ratio - 1 - math.log(ratio)
        sums["clipped"] += ratio < low or ratio > high
        sums["value"] += value
    means = {key: total / n for key, total in sums.items()}
    means["loss"] = -means["objective"] + args.value_coefficient * means["value_loss"]
    means["loss"] -= args.entropy_coefficient * means["entropy"]
    return means


def ppo_batch(rng: np.random.Generator, weights: np.ndarray, n: int = 24) -> ppo_atari.Batch:
    """Ratios on both sides of the bounds, advantages of both signs, values that have moved."""
    obs = rng.normal(size=(n, len(weights)))
    actions = rng.integers(weights.shape[1] - 1, size=n)
    logits = torch.tensor(obs @ weights[:, :-1])
    log_probs = logits.log_softmax(-1).gather(1, torch.tensor(actions)[:, None]).squeeze(1)
    return ppo_atari.Batch(
        obs=torch.tensor(obs),
        actions=torch.tensor(actions),
        log_probs=log_probs + torch.tensor(rng.normal(scale=0.2, size=n)),
        advantages=torch.tensor(rng.normal(loc=0.5, size=n)),
        returns=torch.tensor(rng.normal(size=n)),
        values=torch.tensor(obs @ weights[:, -1] + rng.normal(scale=0.2, size=n)),
    )


PPO_FLAGS = [
    {},
    {"normalize_advantages": False},
    {"clip_value_loss": False},
    {"clip_coefficient": 0.3, "entropy_coefficient": 0.7, "value_coefficient": 2.0},
]


@pytest.mark.parametrize("flags", PPO_FLAGS, ids=str)
def test_ppo_loss_and_its_gradient_match_a_slow_reference(flags):
    args = ppo_atari.Args(**flags)
    rng = np.random.default_rng(0)
    clipped = 0
    for _ in range(5):
        weights = rng.normal(size=(3, 5))
        batch = ppo_batch(rng, weights)
        agent = LinearAgent(weights)
        loss, parts = ppo_atari.ppo_loss(agent, batch, args)
        (gradient,) = torch.autograd.grad(loss, agent.weights)

        expected = slow_ppo_loss(weights, batch, args)
        clipped += expected["clipped"]
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-10)
        order = ("objective", "value_loss", "entropy", "kl", "clipped", "value")
        expected["objective"] *= -1  # the policy loss is what is minimised
        found = dict(zip(ppo_atari.LOSSES, parts.tolist()))
        named = dict(zip(ppo_atari.LOSSES, [expected[name] for name in order]))
        assert found == pytest.approx(named, rel=1e-5, abs=1e-7)  # clip_share is in float32
        assert not parts.requires_grad

        for place in np.ndindex(weights.shape):
            step = np.zeros_like(weights)
            step[place] = 1e-6
            up = slow_ppo_loss(weights + step, batch, args)["loss"]
            down = slow_ppo_loss(weights - step, batch, args)["loss"]
            assert gradient[place].item() == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-7)
    assert 0.2 < clipped < 4.5, "some ratios are clipped, some are not"


def test_the_entropy_bonus_makes_a_policy_more_random():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(3, 5))
    batch = ppo_batch(rng, weights)._replace(advantages=torch.zeros(24, dtype=torch.float64))
    args = ppo_atari.Args(entropy_coefficient=1.0, value_coefficient=0.0)
    agent = LinearAgent(weights)
    entropies = []
    for _ in range(2):
        loss, _ = ppo_atari.ppo_loss(agent, batch, args)
        (gradient,) = torch.autograd.grad(loss, agent.weights)
        policy = torch.distributions.Categorical(logits=agent(batch.obs)[0])
        entropies.append(policy.entropy().mean().item())
        agent.weights.data -= 0.01 * gradient
    assert entropies[1] > entropies[0]


# ---- the losses of DQN and PQN -----------------------------------------------------------------


class Table(nn.Module):
    """Q-values of five states; observations are one-hot."""

    def __init__(self, values: list[list[float]]):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs @ self.values


def states(*numbers: int) -> torch.Tensor:
    return torch.eye(5, dtype=torch.float64)[list(numbers)]


ONLINE = [[1.0, 2.0], [3.0, 4.0], [0.0, 0.5], [7.0, 6.0], [1.0, 1.5]]
TARGET = [[9.0, 9.0], [9.0, 9.0], [20.0, 10.0], [30.0, 40.0], [50.0, 60.0]]


@pytest.mark.parametrize("double_q", [True, False])
def test_the_online_network_chooses_the_target_network_evaluates_and_only_q_learns(double_q):
    online = Table(ONLINE)
    target = Table(TARGET)
    batch = dqn_atari.Batch(
        obs=states(0, 1, 1),
        next_obs=states(2, 3, 4),
        actions=torch.tensor([1, 0, 1]),
        rewards=torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64),
        terminations=torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
    )
    args = dqn_atari.Args(gamma=0.9, double_q=double_q)
    loss, q_mean = dqn_atari.td_loss(online, target, batch, args)
    loss.backward()

    # the online network prefers action 1 in state 2 and action 0 in state 3; the target the others
    next_values = (10.0, 30.0) if double_q else (20.0, 40.0)
    targets = (1.0 + 0.9 * next_values[0], -1.0 + 0.9 * next_values[1], 0.5)
    errors = [q - y for q, y in zip((2.0, 3.0, 4.0), targets)]
    assert loss.item() == pytest.approx(sum(x**2 for x in errors) / 3)
    assert q_mean.item() == pytest.approx(3.0)
    gradient = torch.zeros(5, 2, dtype=torch.float64)
    gradient[0, 1] = 2 * errors[0] / 3
    gradient[1, 0] = 2 * errors[1] / 3
    gradient[1, 1] = 2 * errors[2] / 3
    torch.testing.assert_close(online.values.grad, gradient)  # nothing through the next states
    assert target.values.grad is None and not q_mean.requires_grad


def test_pqn_regresses_the_chosen_q_values_on_the_returns():
    network = Table(ONLINE)
    returns = torch.tensor([5.0, -1.0], dtype=torch.float64)
    batch = pqn_atari.Batch(states(0, 3), torch.tensor([1, 0]), returns)
    loss, q_mean = pqn_atari.td_loss(network, batch, pqn_atari.Args(loss_coefficient=0.25))
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * ((2 - 5) ** 2 + (7 + 1) ** 2) / 2)
    assert q_mean.item() == pytest.approx(4.5)
    gradient = torch.zeros(5, 2, dtype=torch.float64)
    gradient[0, 1] = 0.25 * (2 - 5)
    gradient[3, 0] = 0.25 * (7 + 1)
    torch.testing.assert_close(network.values.grad, gradient)


# ---- exploration -------------------------------------------------------------------------------

MANY = 40_000
BEST = 2  # of 4 actions


class AlwaysBest(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(1, 4)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(torch.full((len(obs),), BEST), 4).float()


def dqn_actions(epsilon: float) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    obs = np.zeros((MANY, 1), np.uint8)
    return dqn_atari.act(AlwaysBest(), epsilon, generator, obs)


def pqn_actions(epsilon: float) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pqn_atari.explore(torch.full((MANY,), BEST), epsilon, 4, generator).numpy()


@pytest.mark.parametrize("actions_of", [dqn_actions, pqn_actions])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_epsilon_is_the_fraction_of_uniform_actions(actions_of, epsilon):
    counts = np.bincount(actions_of(epsilon), minlength=4)
    if epsilon == 0.0:
        assert counts[BEST] == MANY
        return
    expected = np.full(4, epsilon / 4)
    expected[BEST] += 1 - epsilon
    assert chisquare(counts, MANY * expected).pvalue > 1e-3


def test_ppo_samples_the_softmax_and_returns_the_log_probability_of_its_action():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    uniform = torch.rand(MANY, 4, generator=torch.Generator().manual_seed(0))

    def agent(obs):
        return logits.expand(MANY, 4), torch.arange(MANY)

    actions, log_probs, values = ppo_atari.act(agent, None, uniform)
    probabilities = torch.softmax(logits.double(), 0)
    expected = MANY * probabilities / probabilities.sum()
    assert chisquare(np.bincount(actions, minlength=4), expected.numpy()).pvalue > 1e-3
    torch.testing.assert_close(log_probs, logits.log_softmax(0)[actions])
    assert torch.equal(values, torch.arange(MANY))


def test_values_of_the_schedules():
    for script in (dqn_atari, ppo_atari, pqn_atari):
        values = [script.linear_schedule(2.0, 1.0, fraction) for fraction in (0, 0.25, 1, 1.5)]
        assert values == [2.0, 1.75, 1.0, 1.0]
        crossed = [script.has_crossed(before, before + 3, 6) for before in (0, 3, 4, 6, 9)]
        assert crossed == [False, True, True, False, True]
        assert script.has_crossed(0, 100, 0) is False

    args = dqn_atari.Args(start_epsilon=1.0, final_epsilon=0.1, exploration_steps=1_000)
    epsilons = [dqn_atari.epsilon_at(args, step) for step in (0, 500, 1_000, 5_000)]
    assert epsilons == pytest.approx([1.0, 0.55, 0.1, 0.1])

    args = pqn_atari.Args(
        start_epsilon=1.0, final_epsilon=0.2, total_timesteps=2_000, exploration_fraction=0.25
    )
    epsilons = [pqn_atari.epsilon_at(args, step) for step in (0, 250, 500, 1_999)]
    assert epsilons == pytest.approx([1.0, 0.6, 0.2, 0.2])


# ---- when DQN updates --------------------------------------------------------------------------

TIMES = [  # num_envs, train_frequency, learning_starts, target_frequency
    (1, 4, 40, 10),
    (2, 4, 41, 20),
    (4, 2, 40, 24),
    (3, 3, 50, 7),
]


@pytest.mark.parametrize(("num_envs", "period", "starts", "target_period"), TIMES)
def test_dqn_updates_and_target_copies_are_on_schedule(
    num_envs, period, starts, target_period, tmp_path, monkeypatch
):
    fake(monkeypatch)
    games = []

    def make_games(args, number, **options):
        games.append(FakeGames(args, number, **options))
        return games[-1]

    updates = []
    copies = []
    step = torch.optim.AdamW.step
    load = dqn_atari.QNetwork.load_state_dict

    def noted_step(optimizer, *rest):
        updates.append(games[0].t * num_envs)
        return step(optimizer, *rest)

    def noted_load(network, *rest):
        copies.append(games[0].t * num_envs)
        return load(network, *rest)

    monkeypatch.setattr(dqn_atari, "make_games", make_games)
    monkeypatch.setattr(torch.optim.AdamW, "step", noted_step)
    monkeypatch.setattr(dqn_atari.QNetwork, "load_state_dict", noted_load)
    total = 120
    flags = (
        f"--num-envs {num_envs} --train-frequency {period} --learning-starts {starts} "
        f"--target-frequency {target_period} --total-timesteps {total} --no-redo "
        "--metrics-frequency 0 --ntk-frequency 0 --eval-frequency 1000"
    )
    run("dqn_atari", tmp_path, flags)

    due = []  # an update for each environment step of the right number, once all games made theirs
    for number in range(1, total + 1):
        if number > starts and number % period == 0:
            due.append(math.ceil(number / num_envs) * num_envs)
    assert updates == due
    due = set()
    for number in range(target_period, total + 1, target_period):
        at = math.ceil(number / num_envs) * num_envs
        if at > starts:
            due.add(at)
    assert copies == sorted(due)


def test_updates_and_target_copies_that_are_due():
    args = dqn_atari.Args(train_frequency=4, learning_starts=80)
    args = dataclasses.replace(args, num_envs=8)
    counts = [dqn_atari.updates_due(args, before, before + 8) for before in range(0, 120, 8)]
    assert counts == 10 * [0] + 5 * [2]
    due = functools.partial(dqn_atari.target_is_due, dataclasses.replace(args, target_frequency=40))
    assert [due(before, before + 8) for before in (72, 80, 112, 152)] == [False, False, True, True]
