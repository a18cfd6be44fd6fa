"""Continuous control: dm_control, Meta-World, Gymnasium and environments of one's own, made ready for SAC."""

import functools
import math
from collections.abc import Callable, Sequence

import gymnasium
import numpy as np

import runlog
from environments import suites
from environments.graphics import enable_graphics
from environments.workers import WorkerEnvs

TIME_LIMIT = 1_000  # steps of an episode where an environment has no limit of its own
LARGEST_BOUND = 1e6  # an action that may be larger has no bounds
LARGEST = float(np.finfo(np.float32).max)  # networks and replay are float32
FAILURES_IN_A_ROW = 10  # episodes that fail before they have made a step, after which the run ends


def _has_time_limit(env: gymnasium.Env) -> bool:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return True
        env = env.env
    of_dm_control = getattr(env, "_env", None)
    steps = getattr(of_dm_control, "_step_limit", getattr(of_dm_control, "_time_limit", math.inf))
    return getattr(env, "max_path_length", math.inf) < math.inf or steps < math.inf  # Meta-World's; dm_control's


def _flat_observations(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Observations as one vector. Raises UserError where there is none."""
    space = env.observation_space
    if not isinstance(space, gymnasium.Space) or not space.is_np_flattenable:
        told = "use Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of these"
        raise runlog.UserError(f"--env-id {env_id}: observations {space} have no fixed length; {told}")
    env = gymnasium.wrappers.FlattenObservation(env)
    if not env.observation_space.shape[0]:
        raise runlog.UserError(f"--env-id {env_id}: observations {space} are empty; give them at least one number")
    return env


def _flat_actions(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Actions as one vector in [-1, 1]. Raises UserError where they are not bounded and continuous."""
    box = env.action_space
    refused = f"--env-id {env_id}: SAC needs bounded, continuous actions, not {box}"
    if not isinstance(box, gymnasium.spaces.Box) or not np.issubdtype(box.dtype, np.floating):
        raise runlog.UserError(f"{refused}; try Pendulum-v1")
    if not (np.isfinite(box.low).all() and np.isfinite(box.high).all()):
        raise runlog.UserError(f"{refused}; try Pendulum-v1")
    if not box.low.size:
        raise runlog.UserError(f"{refused}: they are empty; try Pendulum-v1")
    if (box.low >= box.high).any():
        first = int(np.argmax((box.low >= box.high).ravel()))
        bounds = f"action {first} lies between {box.low.ravel()[first]} and {box.high.ravel()[first]}"
        raise runlog.UserError(f"{refused}: {bounds}; leave out what cannot vary")
    if len(box.shape) != 1:
        flat = gymnasium.spaces.Box(box.low.ravel(), box.high.ravel(), dtype=box.dtype)
        shape = box.shape
        env = gymnasium.wrappers.TransformAction(env, lambda action: np.reshape(action, shape), flat)
        box = flat
    largest = np.abs([box.low, box.high]).max()
    if largest > LARGEST_BOUND:
        remedy = f"bounds above {LARGEST_BOUND:g} are none; give the actions' true ones"
        raise runlog.UserError(f"{refused}; {remedy}")
    return gymnasium.wrappers.RescaleAction(env, *box.dtype.type([-1, 1]))


def make_env(env_id: str, index: int, seed: int, stream: str, render_mode: str | None = None) -> gymnasium.Env:
    """One environment with observations (obs_dim,) and actions (action_dim,) in [-1, 1], wrapped in EpisodeSeeds.

    env_id: of a suite (suites.py), a Gymnasium id, or module:Id. index: its place in the batch.
    Episodes follow from seed and stream. render_mode "rgb_array": MuJoCo's graphics are looked for.
    Raises UserError: unknown id, cannot be made, spaces that cannot be used; NoGraphics: it cannot be drawn.
    """
    suites.check_id(env_id)
    with runlog.errors_are_user_errors(f"--env-id {env_id}: cannot be made here", "choose another, or install it"):
        env = suites.make_raw(env_id, seed, render_mode)
        draws_with_mujoco = hasattr(env.unwrapped, "mujoco_renderer") or hasattr(env.unwrapped, "physics")
    if render_mode is not None and draws_with_mujoco:
        enable_graphics()
    env = _flat_actions(env, env_id)
    limited = _has_time_limit(env)
    if not limited:
        env = gymnasium.wrappers.TimeLimit(env, TIME_LIMIT)
    env = EpisodeSeeds(_flat_observations(env, env_id), index, seed, stream, env_id)
    env.has_own_limit = limited or suites.suite_of(env_id) is not None  # lqr: documented
    return env


def make_envs(env_id: str, seeds: Sequence[int], stream: str, workers: bool = False) -> gymnasium.vector.VectorEnv:
    """One environment per seed, in this process or in one worker process each. SAME_STEP: the observation after an end
    is the first of the next episode."""
    thunks = [functools.partial(make_env, env_id, i, seed, stream) for i, seed in enumerate(seeds)]
    if workers:
        return WorkerEnvs(thunks, [f"--env-id {env_id}, seed {seed}" for seed in seeds])
    return gymnasium.vector.SyncVectorEnv(thunks, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)


def check_environments(env_ids: Sequence[str], seed: int) -> tuple[int, int]:
    """Makes each environment and plays a step; returns the sizes of their observations and actions, which they share.

    Raises UserError as make_env does, if none of the first episodes can be played, or if the spaces differ. Says in one
    line which gets a time limit.
    """
    envs = {}
    for env_id in env_ids:
        if env_id not in envs:
            env = make_env(env_id, 0, seed, "check")
            if isinstance(env, EpisodeSeeds):
                _check_plays(env)
            envs[env_id] = env
    check_equal_spaces(envs)
    first = envs[env_ids[0]]
    (obs_dim,) = first.observation_space.shape
    (action_dim,) = first.action_space.shape
    return obs_dim, action_dim


def _check_plays(env: "EpisodeSeeds") -> None:
    env.told = True  # what fails here now and then is told when it fails in the run
    action = np.zeros(env.action_space.shape, env.action_space.dtype)
    with suites.seeded_globals(0):
        for _ in range(FAILURES_IN_A_ROW):
            env.reset()
            *_, info = env.step(action)
            if "environment_error" not in info:
                break
    if not env.has_own_limit:
        remedy = "gymnasium.register(..., max_episode_steps=...) sets another"
        print(f"{env.env_id}: has no time limit; its episodes end after {TIME_LIMIT:,} steps ({remedy})", flush=True)


def check_equal_spaces(envs: dict[str, gymnasium.Env]) -> None:
    """Closes the environments. Raises UserError, naming the first that differs, unless all have spaces of one shape."""
    first = next(iter(envs))
    shapes = {}
    for env_id, env in envs.items():
        env.close()
        shapes[env_id] = {"observations": env.observation_space.shape, "actions": env.action_space.shape}
        for what, shape in shapes[env_id].items():
            there = shapes[first][what]
            if shape != there:
                told = f"--env-id {first} and {env_id} have {what} of shape {there} and {shape}"
                raise runlog.UserError(
                    f"{told}; sequential tasks need equal ones, as those of one dm_control domain have"
                )


class EpisodeSeeds(gymnasium.Wrapper):
    """Resets episode n with a seed derived from (seed, stream, n): every episode can be played again, bit for bit.

    index: place of the environment in its batch. reset(options={"number": [n, ...], "actions": [[...], ...]}), both
    indexed by it, goes to episode n and replays its first actions: so a resumed run is back in mid-episode.

    An environment that fails (any exception; an observation that is not finite in float32 or has another shape than
    promised; a reward that is None or not finite) does not end the run. In `step`: the episode ends as truncated, with
    the last good observation, reward 0 and info["environment_error"] = 1. In `reset`: the next episode takes its place.
    The info of `reset` has the "episode_number" that has begun and "reset_errors", how many failed before it. The first
    failure is one line on stderr. Raises UserError after FAILURES_IN_A_ROW episodes that failed without a good step.

    Of the infos only "success" is kept, as a float.
    """

    def __init__(self, env: gymnasium.Env, index: int, seed: int, stream: str, env_id: str | None = None):
        super().__init__(env)
        self.index = index
        self.seed = seed
        self.stream = stream
        self.episode = -1
        self.env_id = env_id or str(env.spec and env.spec.id)
        self.steps = 0  # good ones of this episode
        self.last_obs = None
        self.failures_in_a_row = 0
        self.told = False  # of a failure
        self.tells_success = False

    def reset(self, *, seed=None, options=None):
        number = self.episode + 1 if options is None else options["number"][self.index]
        actions = (options or {}).get("actions", {self.index: ()})[self.index]
        errors = 0
        while True:
            self.episode = number
            self.steps = 0
            try:
                self.last_obs = self._begin(actions)
            except Exception as error:
                self._failed(error)
                errors += 1
                number += 1
                actions = ()
            else:
                return self.last_obs, {"episode_number": number, "reset_errors": errors}

    def _begin(self, actions: Sequence) -> np.ndarray:
        episode_seed = runlog.derive_seed(self.seed, self.stream, self.episode) % 2**32
        self.unwrapped.np_random = np.random.default_rng(episode_seed)  # Meta-World ignores `seed` and draws goals here
        obs, _ = self.env.reset(seed=episode_seed)
        obs = self._checked(obs)
        for action in actions:
            obs, _, terminated, truncated, _ = self.env.step(np.asarray(action, dtype=np.float32))
            obs = self._checked(obs)
            self.steps += 1
            if terminated or truncated:
                raise RuntimeError("the same actions give another episode than before: it cannot be resumed")
        return obs

    def step(self, action):
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
            obs = self._checked(obs)
            reward = _checked_reward(reward)
            success = {} if info.get("success") is None else {"success": float(info["success"])}
        except Exception as error:
            self._failed(error)
            success = {"success": 0.0} if self.tells_success else {}
            return self.last_obs, 0.0, False, True, {"environment_error": 1, **success}
        self.last_obs = obs
        self.steps += 1
        self.failures_in_a_row = 0
        self.tells_success = bool(success)
        return obs, reward, terminated, truncated, success

    def _checked(self, obs: np.ndarray) -> np.ndarray:
        if obs.shape != self.observation_space.shape:
            raise ValueError(f"{obs.size} numbers in an observation instead of {self.observation_space.shape[0]}")
        good = np.abs(obs) <= LARGEST
        if not good.all():
            where = int(np.argmin(good))
            raise ValueError(f"observation {where} is {obs[where]}")
        return obs

    def _failed(self, error: Exception) -> None:
        """Tells the first failure. Raises UserError if there were too many at once."""
        reason = runlog.reason(error)
        place = f"seed {self.seed}, episode {self.episode}"
        if self.steps == 0:
            self.failures_in_a_row += 1
        if self.failures_in_a_row >= FAILURES_IN_A_ROW:
            told = f"--env-id {self.env_id}: {FAILURES_IN_A_ROW} episodes in a row failed at once"
            raise runlog.UserError(f"{told}, the last ({self.stream}, {place}) by {reason}; mend the environment")
        if not self.told:
            self.told = True
            told = f"{self.env_id}, {place} ({self.stream}): the environment failed at step {self.steps + 1}"
            told = f"{told} ({reason}), not the agent; the episode ends there, as by a time limit"
            runlog.warn(f"{told}; later failures of this seed are only counted")


def _checked_reward(reward) -> float:
    value = np.asarray(reward, dtype=np.float64)
    if value.size != 1 or not abs(value.item()) <= LARGEST:
        raise ValueError(f"the reward is {reward}")
    return value.item()


def true_successors(next_obs: np.ndarray, infos: dict, dones: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(real_next_obs, success of this step; nan without such a signal): where dones, of the episode that ended."""
    nothing = np.full(len(dones), np.nan)
    real_next_obs = next_obs.copy()
    success = np.array(infos.get("success", nothing), dtype=np.float64)
    if dones.any():
        real_next_obs[dones] = np.stack(infos["final_obs"][dones])
        success[dones] = infos["final_info"].get("success", nothing)[dones]
    return real_next_obs, success


def count_errors(infos: dict, num_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """What `step` or `reset` of a vector of EpisodeSeeds says of failures, each (num_envs,) int: 1 where this step
    failed; and how many episodes could not begin after it."""
    none = np.zeros(num_envs, dtype=np.int64)
    in_step = infos.get("final_info", {}).get("environment_error", none)
    in_reset = infos.get("reset_errors", none)
    return in_step, in_reset


def log_errors(runs: Sequence, step: int, episodes: list[dict], infos: dict) -> None:
    """After `reset`, or after `step` and runlog.log_episodes: logs how often each run's environment has failed so far
    as `charts/environment_errors`, when it does; an episode that could not begin gives way to the one that has."""
    in_step, in_reset = count_errors(infos, len(runs))
    for i in np.flatnonzero(in_step + in_reset):
        errors = episodes[i].get("errors", 0) + int(in_step[i] + in_reset[i])
        episodes[i]["errors"] = errors
        runs[i].log(step, {"charts/environment_errors": errors})
        if in_reset[i]:
            episodes[i] = runlog.new_episode(int(infos["episode_number"][i]), errors)


def play_episodes(envs, policy: Callable, first: int, number: int) -> list[np.ndarray]:
    """Plays the episodes first, first + 1, ... of each environment (EpisodeSeeds) until each has ended `number`.

    policy: observations (envs, obs_dim) -> actions (envs, action_dim), log-probs (envs,). Returns, as float32 arrays
    (envs, time, ...): obs, actions, real_next_obs, rewards, terminations, truncations, log_probs, success, dones.
    """
    obs, _ = envs.reset(options={"number": [first] * envs.num_envs})
    history = []
    ended = np.zeros(envs.num_envs, dtype=int)
    while (ended < number).any():
        actions, log_probs = policy(obs)
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        dones = terminations | truncations
        real_next_obs, success = true_successors(next_obs, infos, dones)
        history.append((obs, actions, real_next_obs, rewards, terminations, truncations, log_probs, success, dones))
        obs = next_obs
        ended += dones
    return [np.stack(x, 1).astype(np.float32) for x in zip(*history)]
