"""Steps and episodes of a batch of environments: training and logging, playing and evaluation."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import metrics
import runlog
from environments.control import make_env
from runlog import video

# ---- a step --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Transition:
    """One step of a batch of environments. The first axis of every array is the environments."""

    obs: np.ndarray  # (envs, obs_dim)
    actions: np.ndarray  # (envs, action_dim)
    rewards: np.ndarray
    terminations: np.ndarray  # bool: the task has ended
    truncations: np.ndarray  # bool: a time limit, or a failure, has cut the episode off
    # the true successor: where an episode has ended, its last observation
    real_next_obs: np.ndarray
    next_obs: np.ndarray  # of the next step: after an end, the first of the next episode
    success: np.ndarray  # 0 or 1 at this step; nan if the environment does not report it
    failed: np.ndarray  # bool: the environment has failed, and the values are not real
    infos: dict

    @property
    def dones(self) -> np.ndarray:
        return self.terminations | self.truncations


def random_actions(generators: Sequence[torch.Generator], action_dim: int) -> np.ndarray:
    """Uniform actions (envs, action_dim) in [-1, 1], one generator per environment."""
    numbers = []
    for generator in generators:
        numbers.append(torch.rand(action_dim, generator=generator, device=generator.device))
    return (2 * torch.stack(numbers) - 1).cpu().numpy()


def take_step(envs, obs: np.ndarray, actions: np.ndarray) -> Transition:
    """One step of every environment (a vector of EpisodeSeeds) from its observation `obs`."""
    next_obs, rewards, terminations, truncations, infos = envs.step(actions)
    real_next_obs, success = true_successors(next_obs, infos, terminations | truncations)
    errors_in_step, _ = count_errors(infos, envs.num_envs)
    return Transition(
        obs=obs,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        real_next_obs=real_next_obs,
        next_obs=next_obs,
        success=success,
        failed=errors_in_step > 0,
        infos=infos,
    )


def true_successors(
    next_obs: np.ndarray, infos: dict, dones: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(real_next_obs, success of this step; nan without such a signal); where dones, they belong to
    the episode that has ended."""
    nothing = np.full(len(dones), np.nan)
    real_next_obs = next_obs.copy()
    success = np.array(infos.get("success", nothing), dtype=np.float64)
    if dones.any():
        real_next_obs[dones] = np.stack(infos["final_obs"][dones])
        success[dones] = infos["final_info"].get("success", nothing)[dones]
    return real_next_obs, success


def count_errors(infos: dict, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """The failures reported by `step` or `reset` of a vector of EpisodeSeeds, each (num_envs,) int:
    1 where this step failed; and the number of episodes that could not start after it."""
    none = np.zeros(num_envs, dtype=np.int64)
    in_step = infos.get("final_info", {}).get("environment_error", none)
    in_reset = infos.get("reset_errors", none)
    return in_step, in_reset


# ---- training episodes ---------------------------------------------------------------------------


@dataclasses.dataclass
class Episode:
    """The current training episode of one seed. It is stored in checkpoints, from which
    EpisodeSeeds restores the episode by number and actions."""

    number: int = 0
    total_reward: float = 0.0
    success: float = 0.0  # 1 if at any step so far
    actions: list[list[float]] = dataclasses.field(default_factory=list)
    errors: int = 0  # failures of the environment so far, in this and all earlier episodes

    def add(self, actions: np.ndarray, reward: float, success: float) -> None:
        """Adds one step; success: nan without such a signal."""
        self.actions.append(actions.tolist())
        self.total_reward += float(reward)
        if success > self.success:
            self.success = float(success)

    def state(self) -> dict:
        """The content for a checkpoint."""
        return {
            "number": self.number,
            "return": self.total_reward,
            "success": self.success,
            "actions": self.actions,
            "errors": self.errors,
        }

    @classmethod
    def from_state(cls, state: dict) -> "Episode":
        return cls(
            number=state["number"],
            total_reward=state["return"],
            success=state["success"],
            actions=state["actions"],
            errors=state.get("errors", 0),  # older checkpoints have none
        )


def begin_episodes(envs, batch: runlog.Batch, step: int, episodes: list[Episode]) -> np.ndarray:
    """Resets every environment to its episode, new or in progress; returns the observations."""
    numbers = [episode.number for episode in episodes]
    actions = [episode.actions for episode in episodes]
    obs, infos = envs.reset(options={"number": numbers, "actions": actions})
    log_errors(batch, step, episodes, infos)
    return obs


def log_episodes(
    batch: runlog.Batch, step: int, episodes: list[Episode], transition: Transition
) -> None:
    """Adds a step to the episodes, in place. An episode that ends is logged to its seed's run,
    unless the seed has diverged, and replaced by the next. Also logs failures."""
    for i, episode in enumerate(episodes):
        episode.add(transition.actions[i], transition.rewards[i], transition.success[i])
    if transition.dones.any():
        _log_ends(batch, step, episodes, transition)
    log_errors(batch, step, episodes, transition.infos)


def _log_ends(
    batch: runlog.Batch, step: int, episodes: list[Episode], transition: Transition
) -> None:
    diverged = batch.diverged()
    rows = [{} for _ in episodes]
    for i in np.flatnonzero(transition.dones):
        episode = episodes[i]
        episodes[i] = Episode(episode.number + 1, errors=episode.errors)
        if diverged[i]:
            continue
        if not math.isnan(transition.success[i]):
            rows[i]["charts/success"] = episode.success
        rows[i]["charts/episodic_return"] = episode.total_reward
        rows[i]["charts/episodic_length"] = len(episode.actions)
    batch.log_rows(step, rows)


def log_errors(batch: runlog.Batch, step: int, episodes: list[Episode], infos: dict) -> None:
    """After a step or a reset: logs the number of failures of each seed's environment so far as
    `charts/environment_errors`, whenever it increases; an episode that could not start is replaced
    by the one that did."""
    in_step, in_reset = count_errors(infos, len(episodes))
    if not (in_step + in_reset).any():
        return
    rows = [{} for _ in episodes]
    for i in np.flatnonzero(in_step + in_reset):
        errors = episodes[i].errors + int(in_step[i] + in_reset[i])
        rows[i]["charts/environment_errors"] = errors
        episodes[i].errors = errors
        if in_reset[i]:
            episodes[i] = Episode(int(infos["episode_number"][i]), errors=errors)
    batch.log_rows(step, rows)


# ---- played episodes -----------------------------------------------------------------------------


@dataclasses.dataclass
class Episodes:
    """Episodes that a policy has played in each environment, concatenated: float32 tensors (envs,
    time, ...) on the CPU."""

    obs: torch.Tensor  # (envs, time, obs_dim)
    actions: torch.Tensor  # (envs, time, action_dim)
    rewards: torch.Tensor  # (envs, time), like all below except real_next_obs
    terminations: torch.Tensor
    truncations: torch.Tensor
    real_next_obs: torch.Tensor  # (envs, time, obs_dim), the true successors
    success: torch.Tensor  # per step, nan without such a signal
    log_probs: torch.Tensor  # of the actions; nan if the policy has none

    @property
    def dones(self) -> torch.Tensor:
        return (self.terminations + self.truncations) > 0


def play_episodes(envs, policy: Callable, first: int, number: int) -> Episodes:
    """Plays the episodes first, first + 1, ... of each environment (a vector of EpisodeSeeds) until
    each has finished `number`; faster ones continue playing meanwhile.

    policy: observations (envs, obs_dim) -> (actions (envs, action_dim), log-probs (envs,)).
    """
    obs, _ = envs.reset(options={"number": [first] * envs.num_envs})
    transitions = []
    log_probs = []
    num_ended = np.zeros(envs.num_envs, dtype=int)
    while (num_ended < number).any():
        actions, log_probs_of_step = policy(obs)
        transition = take_step(envs, obs, actions)
        transitions.append(transition)
        log_probs.append(log_probs_of_step)
        num_ended += transition.dones
        obs = transition.next_obs

    columns = {"log_probs": _stack(log_probs)}
    for field in dataclasses.fields(Episodes):
        if field.name not in columns:
            columns[field.name] = _stack([getattr(step, field.name) for step in transitions])
    return Episodes(**columns)


def _stack(steps: Sequence[np.ndarray]) -> torch.Tensor:
    """(envs, ...) of every step -> (envs, time, ...)."""
    return torch.from_numpy(np.stack(steps, 1).astype(np.float32))


def evaluation_episodes(index: int, number: int) -> tuple[int, int]:
    """The numbers of the first episodes of the index-th evaluation, which plays `number` episodes
    for the returns and then `number` for Q - G. No two evaluations share an episode:

    >>> [evaluation_episodes(index, 5) for index in (1, 2, 3)]
    [(10, 15), (20, 25), (30, 35)]
    """
    first = 2 * index * number
    return first, first + number


def evaluate(envs, act: Callable, first: int, number: int) -> list[dict[str, float]]:
    """Plays `number` episodes of each environment, starting with episode `first`. Returns for each
    eval/episodic_return and, if available, eval/success: means over the episodes.

    act: observations (envs, obs_dim) -> actions (envs, action_dim).
    """

    def policy(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return act(obs), np.full(len(obs), np.nan)

    episodes = play_episodes(envs, policy, first, number)
    returns, _ = metrics.first_episodes(episodes.rewards, episodes.dones, number)
    success, _ = metrics.first_episodes(episodes.success, episodes.dones, number, torch.amax)
    results = []
    for mean_return, success_rate in zip(returns.mean(-1).tolist(), success.mean(-1).tolist()):
        row = {"eval/episodic_return": mean_return, "eval/success": success_rate}
        results.append({key: value for key, value in row.items() if not math.isnan(value)})
    return results


def film(path: Path, env_id: str, seeds: Sequence[int], i: int, act: Callable) -> float:
    """Saves a video of one episode of seeds[i]; returns its return, nan if it could not be filmed.

    act: observations (seeds, obs_dim) -> actions (seeds, action_dim).
    """

    def policy(obs: np.ndarray) -> np.ndarray:
        return act(np.stack([obs] * len(seeds)))[i]

    make = functools.partial(make_env, env_id, 0, seeds[i], "film", "rgb_array")
    return video.save_video(path, make, policy)
