"""Training episodes and played episodes of environments/episodes.py, on artificial steps.

`pytest -q tests/test_episodes.py` (a second).
"""

import dataclasses
import doctest

import numpy as np
import pytest
import torch

import environments
from environments import Episode, Episodes, Transition

NAN = float("nan")


class Rows:
    """What log_episodes sees of a batch: keeps the rows of every seed."""

    def __init__(self, diverged: list[int]):
        self._diverged = diverged
        self.rows = [[] for _ in diverged]

    def diverged(self) -> list[int]:
        return self._diverged

    def log_rows(self, step: int, rows: list[dict]) -> None:
        for kept, row in zip(self.rows, rows, strict=True):
            if row:
                kept.append((step, row))


def transition(rewards, dones, success, infos=None) -> Transition:
    obs = np.zeros((3, 2))
    none = np.zeros(3, bool)
    return Transition(
        obs=obs,
        actions=np.array([[1.0], [2.0], [3.0]]),
        rewards=np.array(rewards),
        terminations=none,
        truncations=np.array(dones),
        real_next_obs=obs,
        next_obs=obs,
        success=np.array(success),
        failed=none,
        infos=infos or {},
    )


def test_episodes_are_summed_logged_and_followed_by_the_next():
    batch = Rows(diverged=[0, 0, 7])
    episodes = [Episode(), Episode(number=4, errors=2), Episode()]
    steps = [
        transition([1.0, 2.0, 3.0], [False] * 3, [NAN, 1.0, 0.0]),
        transition([10.0, 20.0, 30.0], [True] * 3, [NAN, 0.0, 0.0]),
        transition([5.0, 5.0, 5.0], [False] * 3, [NAN, 0.0, 0.0]),
    ]
    for number, step in enumerate(steps, 1):
        environments.log_episodes(batch, number, episodes, step)
    ends = {"charts/episodic_return": 11.0, "charts/episodic_length": 2}
    assert batch.rows[0] == [(2, ends)]  # no success where the environment reports none
    ends = {"charts/success": 1.0, "charts/episodic_return": 22.0, "charts/episodic_length": 2}
    assert batch.rows[1] == [(2, ends)]  # success at any step
    assert batch.rows[2] == []  # diverged
    assert episodes[1] == Episode(number=5, total_reward=5.0, actions=[[2.0]], errors=2)


def test_failures_are_counted_and_episodes_that_cannot_begin_are_skipped():
    batch = Rows(diverged=[0, 0, 0])
    episodes = [Episode(), Episode(number=4, errors=2), Episode()]
    infos = {
        "final_info": {"environment_error": np.array([0, 1, 0])},
        "reset_errors": np.array([0, 3, 0]),
        "episode_number": np.array([0, 8, 0]),
    }
    failed = transition([0.0, 0.0, 0.0], [False, True, False], [NAN] * 3, infos)
    environments.log_episodes(batch, 6, episodes, failed)
    ends = {"charts/episodic_return": 0.0, "charts/episodic_length": 1}
    assert batch.rows[1] == [(6, ends), (6, {"charts/environment_errors": 6})]
    assert episodes[1] == Episode(number=8, errors=6)
    assert batch.rows[0] == batch.rows[2] == []


def test_a_checkpoint_holds_an_episode_and_older_ones_have_no_errors():
    episode = Episode(number=3, total_reward=1.5, success=1.0, actions=[[0.5], [0.25]], errors=2)
    state = episode.state()
    assert Episode.from_state(state) == episode
    assert set(state) == {"number", "return", "success", "actions", "errors"}  # of every version
    del state["errors"]
    assert Episode.from_state(state) == dataclasses.replace(episode, errors=0)


class Counting:
    """A vector of two environments whose episodes have 2 and 3 steps."""

    num_envs = 2
    lengths = np.array([2, 3])

    def reset(self, options=None):
        assert options == {"number": [6, 6]}
        self.steps = np.zeros(2, int)
        self.total = 0
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return self.steps[:, None].astype(float)

    def step(self, actions):
        self.steps = self.steps + 1
        self.total += 1
        last = self.observe()
        dones = self.steps == self.lengths
        self.steps = np.where(dones, 0, self.steps)
        infos = {"success": (last[:, 0] == 2).astype(float)}
        if dones.any():
            final_obs = np.array([row if done else None for row, done in zip(last, dones)], object)
            success = infos["success"]
            infos = {"final_obs": final_obs, "final_info": {"success": success}, "success": success}
        rewards = self.total * np.array([1.0, 10.0])
        return self.observe(), rewards, dones, np.zeros(2, bool), infos


def test_played_episodes_have_named_columns_and_true_successors():
    def policy(obs):
        return obs + 0.5, np.array([-1.0, -2.0])

    episodes = environments.play_episodes(Counting(), policy, first=6, number=2)
    assert isinstance(episodes, Episodes)
    assert episodes.obs[:, :, 0].tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert episodes.real_next_obs[:, :, 0].tolist() == [[1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3]]
    assert torch.equal(episodes.actions, episodes.obs + 0.5)
    assert episodes.rewards[1].tolist() == [10, 20, 30, 40, 50, 60]
    assert episodes.dones.tolist() == [[False, True] * 3, [False, False, True] * 2]
    assert episodes.log_probs[:, 0].tolist() == [-1, -2]
    assert all(column.dtype == torch.float32 for column in vars(episodes).values())

    rows = environments.evaluate(Counting(), lambda obs: obs, first=6, number=2)
    assert rows[0] == pytest.approx({"eval/episodic_return": (3 + 7) / 2, "eval/success": 1.0})
    assert rows[1] == pytest.approx({"eval/episodic_return": (60 + 150) / 2, "eval/success": 1.0})


def test_evaluations_never_share_an_episode():
    played = []
    for index in range(1, 30):
        for first in environments.evaluation_episodes(index, 5):
            played += range(first, first + 5)
    assert sorted(played) == list(range(10, 300))
    assert doctest.testmod(environments.episodes) == (0, 1)
