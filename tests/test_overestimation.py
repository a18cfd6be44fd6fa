"""Q - G of sac_continuous.py and td3_continuous.py against a slow loop in float64, over the
episodes that they have played.

`pytest -q tests/test_overestimation.py` (about 4 s).
"""

import dataclasses

import gymnasium
import numpy as np
import pytest
import test_sac
import test_td3
import torch

import environments
import sac_continuous
import td3_continuous

SEEDS = [1, 2]
STEPS = 20  # of an episode; 0.9^20 = 0.12: the value of the last state is added everywhere
NUMBER = 3  # episodes of a seed
GAMMA = 0.9


class Drift(gymnasium.Env):
    """The state moves with the action and noise; reward 1 - s^2; only the time limit ends it."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action):
        noise = self.np_random.normal(size=1)
        self.state = (0.9 * self.state + action + 0.3 * noise).clip(-9, 9).astype(np.float32)
        return self.state.copy(), 1.0 - float(self.state[0] ** 2), False, False, {}


gymnasium.register("Drift-v0", Drift, max_episode_steps=STEPS)


@pytest.fixture
def played(monkeypatch) -> list:
    """The Episodes of each call of play_episodes."""
    found = []
    play = environments.play_episodes

    def record(*args):
        found.append(play(*args))
        return found[-1]

    monkeypatch.setattr(environments, "play_episodes", record)
    return found


def spread_out(agent, *untrained) -> None:
    """Larger weights, so that states, actions and networks differ; the targets differ from all."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*agent.actor.parameters(), *agent.qf.parameters()):
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
        for target in untrained:
            for parameter in target.parameters():
                parameter.add_(1.0)


def slow_bias(q: torch.Tensor, rewards: torch.Tensor, entropy, last_values: torch.Tensor) -> float:
    """Mean over all states of Q - G. q, rewards and entropy, alpha times minus the log-probability
    of each action: (NUMBER * STEPS,); last_values: the soft values of the NUMBER last states."""
    errors = []
    for episode in range(NUMBER):
        first = episode * STEPS
        end = first + STEPS
        for t in range(first, end):
            total = 0.0
            for k in range(t, end):
                total += GAMMA ** (k - t) * rewards[k].item()
                if k > t:
                    total += GAMMA ** (k - t) * entropy[k].item()
            total += GAMMA ** (end - t) * last_values[episode].item()
            errors.append(q[t].item() - total)
    return float(np.mean(errors))


def test_td3_adds_the_value_of_its_own_actor_at_the_true_last_state(played):
    args = dataclasses.replace(test_td3.ARGS, num_eval_episodes=NUMBER, gamma=GAMMA)
    agent = td3_continuous.Agent(1, 1, args, SEEDS, test_td3.CPU)
    spread_out(agent, agent.actor_target, agent.qf_target)
    envs = environments.make_envs("Drift-v0", SEEDS, "eval")
    rows = td3_continuous.q_bias(agent, envs, 0)
    envs.close()
    (episodes,) = played
    for i, row in enumerate(rows):
        reference = test_td3.Reference(agent, i)

        def q_of(obs, actions, reference=reference):
            first = reference.q(reference.qf1, obs, actions)
            return (first + reference.q(reference.qf2, obs, actions)) / 2

        obs, actions, successors, rewards = own_steps(episodes, i)
        last = successors[STEPS - 1 :: STEPS]
        assert not torch.equal(last[:-1], obs[STEPS::STEPS])  # the next episode begins elsewhere
        last_values = q_of(last, reference.policy(reference.actor, last))
        expected = slow_bias(q_of(obs, actions), rewards, torch.zeros(len(rewards)), last_values)
        assert row["overestimation/mean"] == pytest.approx(expected, rel=1e-4)


def test_sac_adds_the_soft_value_at_the_true_last_state(played, monkeypatch):
    args = dataclasses.replace(test_sac.ARGS, num_eval_episodes=NUMBER, gamma=GAMMA)
    agent = sac_continuous.Agent(1, 1, args, SEEDS, test_sac.CPU)
    spread_out(agent, agent.qf_target)
    noises = []
    sample = agent.actor.sample

    def record(obs, noise):
        noises.append(noise)
        return sample(obs, noise)

    envs = environments.make_envs("Drift-v0", SEEDS, "eval")
    monkeypatch.setattr(agent.actor, "sample", record)
    rows = sac_continuous.q_bias(agent, envs, SEEDS, 0)
    envs.close()
    (episodes,) = played
    alpha = args.init_temperature
    for i, row in enumerate(rows):
        reference = test_sac.Reference(agent, i)

        def q_of(obs, actions, reference=reference):
            values = [reference.q(weights, obs, actions) for weights in reference.qf]
            return (values[0] + values[1]) / 2

        obs, actions, successors, rewards = own_steps(episodes, i)
        last = successors[STEPS - 1 :: STEPS]
        noise = noises[-1][i, : len(obs)].double()[STEPS - 1 :: STEPS]
        last_actions, log_probs = reference.policy(last, noise)
        last_values = q_of(last, last_actions) - alpha * log_probs
        entropy = -alpha * episodes.log_probs[i, : len(obs)].double()
        expected = slow_bias(q_of(obs, actions), rewards, entropy, last_values)
        assert row["overestimation/mean"] == pytest.approx(expected, rel=1e-4)
        returns = rewards.view(NUMBER, STEPS).sum(1).mean().item()
        assert row["eval/stochastic_return"] == pytest.approx(returns, rel=1e-5)


def own_steps(episodes, i: int) -> tuple[torch.Tensor, ...]:
    """obs, actions, true successors and rewards of the NUMBER first episodes of seed i, float64."""
    columns = (episodes.obs, episodes.actions, episodes.real_next_obs, episodes.rewards)
    return tuple(column[i, : NUMBER * STEPS].double() for column in columns)
