"""DQN, PPO and PQN learn a toy game in which a reward comes one step after what earned it.

The loops are those of the scripts; a small network on a few pixels takes the place of the CNN.
`pytest -q tests/test_atari_learning.py` (about 20 s).
"""

import csv

import numpy as np
import pytest
import torch
from torch import nn

import dqn_atari
import ppo_atari
import pqn_atari
import runlog
from environments.atari import FinishedGame, GameStep

GAME_LENGTH = 10  # steps, so at most 9 rewards
NUM_ACTIONS = 4


class DelayedBandit:
    """A bright quarter of the newest frame shows which action is right. If it was taken, there is a
    bright bar in the next frame, and a reward with the step after: only the value of that
    frame shows that the action was right."""

    def __init__(self, args, num_envs: int, **options):
        self.num_envs = num_envs
        self.num_actions = NUM_ACTIONS

    def reset(self, seed: int, *keys) -> np.ndarray:
        self.rng = np.random.default_rng(seed)
        self.t = 0
        self.total = np.zeros(self.num_envs)
        self.stack = np.zeros((self.num_envs, 4, 84, 84), np.uint8)
        self.is_owed = np.zeros(self.num_envs, bool)
        self.show()
        return self.stack.copy()

    def show(self) -> None:
        self.right = self.rng.integers(NUM_ACTIONS, size=self.num_envs)
        frame = np.zeros((self.num_envs, 84, 84), np.uint8)
        for i in range(self.num_envs):
            row, column = divmod(int(self.right[i]), 2)
            frame[i, 30 + 27 * row :, 42 * column :][:27, :42] = 255
            frame[i, :30] = 255 if self.is_owed[i] else 0
        self.stack = np.concatenate([self.stack[:, 1:], frame[:, None]], axis=1)

    def step(self, actions: np.ndarray) -> GameStep:
        rewards = np.where(self.is_owed, 1.0, 0.0)
        self.total += rewards
        self.is_owed = actions == self.right
        self.t += 1
        is_over = self.t % GAME_LENGTH == 0
        games = []
        if is_over:
            self.is_owed[:] = False
            games = [FinishedGame(i, float(x), GAME_LENGTH) for i, x in enumerate(self.total)]
            self.total[:] = 0
            self.stack[:] = 0
        self.show()
        obs = self.stack.copy()
        ends = np.full(self.num_envs, is_over)
        return GameStep(obs, rewards, ends, np.zeros_like(ends), obs, games)


class FewPixels(nn.Module):
    """49 pixels of the newest frame -> a hidden layer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(49, 32)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        pixels = obs[:, -1, 6::12, 6::12].flatten(1) / 255.0
        return self.fc(pixels).relu()


class SmallQNetwork(nn.Module):
    def __init__(self, num_actions: int, args):
        super().__init__()
        self.encoder = FewPixels()
        self.q = nn.Linear(32, num_actions)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.q(self.encoder(obs))


class SmallAgent(nn.Module):
    def __init__(self, num_actions: int, args):
        super().__init__()
        self.encoder = FewPixels()
        self.actor = nn.Linear(32, num_actions)
        self.critic = nn.Linear(32, 1)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.encoder(obs)
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


COMMON = (
    "--device cpu --no-compile --no-tensorboard --threads 1 --learning-rate 3e-3 "
    "--metrics-frequency 0 --ntk-frequency 0 --gamma 0.8 --checkpoint-frequency 1000000"
)
FLAGS = {
    dqn_atari: "--num-envs 4 --total-timesteps 4800 --learning-starts 400 --exploration-steps 2000 "
    "--final-epsilon 0.02 --target-frequency 100 --eval-frequency 1000000 --num-eval-episodes 1 "
    "--buffer-size 4800",
    ppo_atari: "--num-envs 8 --num-steps 20 --total-timesteps 8000 --num-minibatches 4",
    pqn_atari: "--num-envs 8 --num-steps 20 --total-timesteps 8000 --num-minibatches 4 "
    "--num-test-envs 1 --exploration-fraction 0.3 --update-epochs 4",
}


@pytest.mark.parametrize("script", FLAGS, ids=lambda script: script.__name__)
def test_each_algorithm_learns(script, tmp_path, monkeypatch):
    torch.manual_seed(0)  # the small networks draw their weights from it
    monkeypatch.setattr(script, "make_games", DelayedBandit)
    if script is ppo_atari:
        monkeypatch.setattr(script, "Agent", SmallAgent)
    else:
        monkeypatch.setattr(script, "QNetwork", SmallQNetwork)
    flags = f"{COMMON} {FLAGS[script]} --runs-dir {tmp_path}"
    script.main(runlog.parse_args(script.Args, flags.split()))
    (file,) = tmp_path.glob("*/scalars.csv")
    with open(file) as lines:
        rows = [row for row in csv.DictReader(lines) if row["key"] == "charts/episodic_return"]
    returns = [float(row["value"]) for row in rows]
    first = np.mean(returns[:20])
    last = np.mean(returns[-20:])
    assert first < 4, "a policy that chooses at random earns 2.25"
    assert last > 7, f"the best one earns 9, this one {last}"
