"""AtariGames under envpool's name, as far as CleanRL's pqn_atari_envpool.py asks: that script,
unmodified, plays our games with this folder on PYTHONPATH; benchmarks/atari_peers.py starts it so.

What the script has no flags for is JSON in the environment variable ATARI_PEERS: `script`, flags of
pqn_atari.py, and `warm_up`, the steps after which the games wait for their turns. Without the
variable they have their defaults and never wait.
"""

import json
import os
import sys
import types
from pathlib import Path

import numpy as np
from gymnasium import spaces

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from benchmarks.peers.turns import Turns, hold
from environments.atari import AtariGames


class Games:
    """AtariGames with gym 0.23's signatures, and envpool's dictionary of what happened."""

    def __init__(self, games: AtariGames, seed: int, reward_clip: bool):
        self.games = games
        self.seed = seed
        self.reward_clip = reward_clip
        self.observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.action_space = spaces.Discrete(games.num_actions)

    def reset(self) -> np.ndarray:
        """Observations (num_envs, 4, 84, 84) uint8."""
        return self.games.reset(self.seed, "games", 0)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """(observations, rewards, dones, info), each of all games. A done is a lost life, the end
        of a game or the time limit. info: `reward` as the game gave it, `terminated` 1 where a game
        is over, by its rules or by the time limit, and `lives` that are left, 0 where it is."""
        step = self.games.step(actions)
        raw = step.rewards.astype(np.float32)
        rewards = np.sign(raw) if self.reward_clip else raw
        lives = np.where(step.game_overs, 0, self.games.lives)
        info = {"reward": raw, "terminated": step.game_overs.astype(np.int32), "lives": lives}
        return step.obs, rewards, step.terminations | step.truncations, info

    def close(self) -> None:
        pass


def make(
    env_id: str, env_type: str, num_envs: int, episodic_life: bool, reward_clip: bool, seed: int
) -> Games:
    """env_id: as envpool writes it, Breakout-v5. Raises ValueError: what these games do not do."""
    if env_type != "gym":
        raise ValueError(f"env_type {env_type}: must be gym")
    if not episodic_life:
        raise ValueError("episodic_life False: a lost life ends an episode in these games")
    settings = json.loads(os.environ.get("ATARI_PEERS", "null"))
    name = env_id.removesuffix("-v5")
    if settings is None:
        return Games(AtariGames(name, num_envs), seed, reward_clip)

    import torch

    script = types.SimpleNamespace(**settings["script"])
    if script.threads:
        torch.set_num_threads(script.threads)
    games = AtariGames(
        name,
        num_envs,
        repeat_action_probability=script.repeat_action_probability,
        fire_on_life_loss=script.fire_on_life_loss,
        num_threads=script.env_threads,
    )
    turns = Turns(num_envs, settings["warm_up"], ("torch",), threads=torch.get_num_threads())
    return Games(hold(games, turns), seed, reward_clip)
