"""Ends of episodes: what is stored, logged and evaluated is what happened.

`pytest -q tests/test_autoreset.py` (15 s).
"""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

import environments
import runlog
import sac_continuous
from environments import make_env
from sac_continuous import Agent, Args, q_bias, runs_of, train

ENV_ID = "RaggedEpisodes-v0"
ARGS = Args(
    env_id=(ENV_ID,),
    compile=False,
    tensorboard=False,
    device="cpu",
    num_seeds=2,
    widths=(4,),
    total_timesteps=30,
    learning_starts=20,
    batch_size=4,
    eval_frequency=30,
    num_eval_episodes=4,
    metrics_frequency=0,
    log_frequency=10,
)


class RaggedEpisodes(gym.Env):
    """Even episodes terminate at step 3, odd ones are truncated at step 4;
    the observation is (episode, step)."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.episode = -1
        self.step_number = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.step_number = 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.episode, self.step_number], dtype=np.float32)

    def step(self, action):
        self.step_number += 1
        terminated = self.episode % 2 == 0 and self.step_number == 3
        truncated = self.episode % 2 == 1 and self.step_number == 4
        return self.observe(), 10.0 * self.episode + self.step_number, terminated, truncated, {}


gym.register(ENV_ID, RaggedEpisodes)


def truth(num_steps: int) -> tuple[list, list]:
    """Transitions (obs, reward, termination, next obs),
    and (step of its end, return, length) of each episode."""
    transitions = []
    ends = []
    episode = 0
    at = 0
    for step in range(1, num_steps + 1):
        at += 1
        total = 3 if episode % 2 == 0 else 4
        transitions.append(
            ([episode, at - 1], 10.0 * episode + at, float(at == total == 3), [episode, at])
        )
        if at == total:
            ends.append((step, 10.0 * episode * total + total * (total + 1) / 2, total))
            episode += 1
            at = 0
    return transitions, ends


def rows_of(run: runlog.Run, key: str) -> list[tuple[int, float]]:
    rows = [line.split(",") for line in (run.folder / "scalars.csv").read_text().splitlines()]
    return [(int(step), float(value)) for step, name, value, _ in rows if name == key]


@pytest.mark.parametrize("async_envs", [False, True])
def test_stored_transitions_and_logged_returns_are_true(async_envs, tmp_path, monkeypatch):
    buffers = []

    class Spied(sac_continuous.ReplayBuffer):
        def __init__(self, *args):
            super().__init__(*args)
            buffers.append(self)

    monkeypatch.setattr(sac_continuous, "ReplayBuffer", Spied)
    args = dataclasses.replace(ARGS, runs_dir=str(tmp_path), async_envs=async_envs)
    runs = runs_of(args)
    with runlog.open_batches(runs, args) as batches:
        for batch in batches:
            train(args, batch)
    transitions, ends = truth(30)
    assert len(buffers) == 1 and buffers[0].num_added == 30
    for i, run in enumerate(runs):
        obs, actions, rewards, terminations, next_obs = (
            buffers[0].rows[i].split(buffers[0].columns, -1)
        )
        stored = zip(
            obs.tolist(),
            rewards.flatten().tolist(),
            terminations.flatten().tolist(),
            next_obs.tolist(),
        )
        assert list(stored) == transitions
        assert (actions.abs() <= 1).all() and len(actions[:20].unique()) == 20
        assert rows_of(run, "charts/episodic_return") == [(step, total) for step, total, _ in ends]
        assert rows_of(run, "charts/episodic_length") == [
            (step, length) for step, _, length in ends
        ]
    assert sum(row[2] for row in transitions) == 4 and len(ends) == 8  # of both kinds


def test_terminations_do_not_bootstrap_and_time_limits_do():
    agent = Agent(2, 1, ARGS, [1], torch.device("cpu"))
    batch = {
        "obs": torch.zeros(1, 2, 2),
        "actions": torch.zeros(1, 2, 1),
        "rewards": torch.tensor([[3.0, 3.0]]),
    }
    # row 1: the real successor of a truncated episode
    batch |= {"terminations": torch.tensor([[1.0, 0.0]])}
    far = [
        agent.qf_loss(batch | {"next_obs": torch.full((1, 2, 2), x)}, torch.zeros(1, 2, 1))
        for x in (0.0, 9.0)
    ]
    q = far[0][1].detach()[0]
    for (loss, _), x in zip(far, (0.0, 9.0)):
        next_obs = torch.full((1, 2, 2), x)
        with torch.no_grad():
            next_actions, log_probs = agent.actor.sample(next_obs, torch.zeros(1, 2, 1))
            next_q = (
                agent.qf_target(next_obs, next_actions).min(-2).values
                - agent.log_alpha.exp() * log_probs
            )
        # of the termination, of the time limit
        targets = torch.tensor([3.0, 3.0 + ARGS.gamma * next_q[0, 1].item()])
        assert loss.item() == pytest.approx((q - targets).square().mean(-1).sum().item(), rel=1e-5)
    only = {key: value[:, :1] for key, value in batch.items()}
    losses = [
        agent.qf_loss(only | {"next_obs": torch.full((1, 1, 2), x)}, torch.zeros(1, 1, 1))[0]
        for x in (0.0, 9.0)
    ]
    assert torch.equal(*losses)
    assert losses[0].item() == pytest.approx((q[:, 0] - 3).square().sum().item())
    assert not torch.equal(far[0][0], far[1][0])


def test_evaluation_plays_whole_episodes_and_returns_their_means():
    agent = Agent(2, 1, ARGS, [1, 2], torch.device("cpu"))
    envs = environments.make_envs(ENV_ID, [1, 2], "eval")
    _, ends = truth(30)
    mean_return = np.mean([total for _, total, _ in ends[:4]])

    for env in envs.envs:
        env.unwrapped.episode = -1
    rows = environments.evaluate(envs, agent.act, first=8, number=4)
    assert rows == [{"eval/episodic_return": mean_return}] * 2  # and no success

    for env in envs.envs:
        env.unwrapped.episode = -1
    for row in q_bias(agent, envs, [1, 2], 1):
        assert row["eval/stochastic_return"] == mean_return
        errors = {f"overestimation/{key}" for key in ("mean", "std", "normalised")}
        assert set(row) == {"eval/stochastic_return"} | errors


def test_true_successors_belong_to_the_episode_that_ended():
    next_obs = np.array([[0.0, 0.0], [5.0, 5.0], [0.5, 0.0]])
    final = np.array([np.array([9.0, 9.0]), None, np.array([8.0, 8.0])], dtype=object)
    infos = {
        "final_obs": final,
        "final_info": {"success": np.array([1.0, 0.0, 0.0])},
        "success": np.array([0, 1, 0]),
    }
    real, success = environments.true_successors(next_obs, infos, np.array([True, False, True]))
    assert real.tolist() == [[9, 9], [5, 5], [8, 8]] and success.tolist() == [1, 1, 0]
    assert next_obs[0].tolist() == [0, 0]
    real, success = environments.true_successors(next_obs, {}, np.zeros(3, dtype=bool))
    assert np.array_equal(real, next_obs) and np.isnan(success).all()


def play(env, moves, **options):
    obs, _ = env.reset(options=options or None)
    steps = [env.step(move)[:2] for move in moves]
    return [obs.tolist(), *[(obs.tolist(), float(reward)) for obs, reward in steps]]


@pytest.mark.parametrize(
    "env_id", ["dm_control/cartpole-swingup-v0", "metaworld/reach-v3", "Hopper-v5"]
)
def test_an_episode_depends_only_on_its_number_and_can_be_resumed_midway(env_id):
    env = make_env(env_id, 1, 7, "train")
    fresh = make_env(env_id, 1, 7, "train")
    actions = (
        np.random.default_rng(0).uniform(-1, 1, (8, *env.action_space.shape)).astype(np.float32)
    )
    first, second, third = (play(env, actions) for _ in range(3))
    assert first != second != third and first[0] != second[0]
    number = {"number": [0, 2]}  # index 1 of the batch
    # a fresh environment, a used one, and back again
    assert play(fresh, actions, **number) == third
    assert play(env, actions, **number) == third
    assert play(env, actions, number=[0, 0]) == first
    env.reset()
    entered = play(fresh, actions[5:], number=[9, 1], actions=[[], actions[:5].tolist()])
    assert entered[0] == second[5][0] and entered[1:] == second[6:]
    assert play(fresh, actions) == third  # the next one follows
    for other in (make_env(env_id, 1, 8, "train"), make_env(env_id, 1, 7, "eval")):
        assert play(other, actions)[0] != first[0]
