"""Stable-Baselines3's DQN and PPO on our games, in turns; benchmarks/atari_peers.py starts this."""

import importlib
import json
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecEnv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from benchmarks.peers.turns import Turns, hold

UNENDING = 10**9  # environment steps; the process is ended from outside


class Adapter(VecEnv):
    """AtariGames as Stable-Baselines3 wants them. One object plays all games, so that an attribute
    or a method of theirs is one for all."""

    def __init__(self, games):
        self.games = games
        space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        super().__init__(games.num_envs, space, gym.spaces.Discrete(games.num_actions))

    def get_attr(self, attr_name, indices=None):
        return [getattr(self.games, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        setattr(self.games, attr_name, value)

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        return [getattr(self.games, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs

    def close(self):
        pass

    def reset(self):
        return self.games.reset(1, "games", 0)

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        step = self.games.step(self.actions)
        infos = []
        for i, last_obs in enumerate(step.real_next_obs):
            is_cut = bool(step.truncations[i] and not step.terminations[i])
            infos.append({"terminal_observation": last_obs, "TimeLimit.truncated": is_cut})
        rewards = np.sign(step.rewards).astype(np.float32)
        return step.obs, rewards, step.terminations | step.truncations, infos


def make_dqn(script, common: dict, buffer_size: int) -> DQN:
    return DQN(
        **common,
        learning_rate=script.learning_rate,
        buffer_size=buffer_size,
        learning_starts=script.learning_starts,
        batch_size=script.batch_size,
        train_freq=max(script.train_frequency // script.num_envs, 1),
        target_update_interval=script.target_frequency,
        exploration_initial_eps=script.start_epsilon,
        exploration_final_eps=script.final_epsilon,
        policy_kwargs={"optimizer_kwargs": {"eps": script.adam_eps}},
    )


def make_ppo(script, common: dict) -> PPO:
    return PPO(
        **common,
        learning_rate=script.learning_rate,
        n_steps=script.num_steps,
        batch_size=script.num_envs * script.num_steps // script.num_minibatches,
        n_epochs=script.update_epochs,
        gae_lambda=script.gae_lambda,
        clip_range=script.clip_coefficient,
        clip_range_vf=script.clip_coefficient,
        ent_coef=script.entropy_coefficient,
        vf_coef=script.value_coefficient,
        max_grad_norm=script.max_grad_norm,
    )


def main(settings: dict) -> None:
    module = importlib.import_module(f"{settings['algorithm']}_atari")
    script = types.SimpleNamespace(**settings["script"])
    if script.threads:
        torch.set_num_threads(script.threads)
    num_threads = torch.get_num_threads()
    packages = ("stable_baselines3", "torch")
    turns = Turns(script.num_envs, settings["warm_up"], packages, threads=num_threads)
    common = {
        "policy": "CnnPolicy",
        "env": Adapter(hold(module.make_games(script, script.num_envs), turns)),
        "gamma": script.gamma,
        "device": script.device,
        "seed": 1,
    }
    if settings["algorithm"] == "dqn":
        model = make_dqn(script, common, settings["sb3_buffer_size"])
    else:
        model = make_ppo(script, common)
    model.learn(UNENDING)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
