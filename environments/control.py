"""Continuous control: wraps dm_control, Meta-World, Gymnasium and custom environments for training:
flat observations, actions in [-1, 1], episodes that can be replayed."""

import functools
import math
from collections.abc import Sequence

import gymnasium
import numpy as np

import runlog
from environments import suites
from environments.graphics import enable_graphics
from environments.workers import WorkerEnvs
from runlog import seeding, terminal

TIME_LIMIT = 1_000  # steps per episode for environments without a limit
LARGEST_BOUND = 1e6  # actions that may be larger count as unbounded
LARGEST = float(np.finfo(np.float32).max)  # networks and replay are float32
FAILURES_IN_A_ROW = 10  # consecutive episodes without a good step that end the run


def _has_time_limit(env: gymnasium.Env) -> bool:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return True
        env = env.env
    of_dm_control = getattr(env, "_env", None)
    steps = getattr(of_dm_control, "_step_limit", getattr(of_dm_control, "_time_limit", math.inf))
    steps_of_meta_world = getattr(env, "max_path_length", math.inf)
    return min(steps, steps_of_meta_world) < math.inf


def _flat_observations(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Flattens observations to one vector. Raises UserError if that is not possible."""
    space = env.observation_space
    refused = f"--env-id {env_id}: observations {space}"
    if not isinstance(space, gymnasium.Space) or not space.is_np_flattenable:
        remedy = "use Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of these"
        raise runlog.UserError(f"{refused} have no fixed length; {remedy}")
    env = gymnasium.wrappers.FlattenObservation(env)
    if not env.observation_space.shape[0]:
        raise runlog.UserError(f"{refused} are empty; give them at least one number")
    return env


def _flat_actions(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Flattens actions to one vector in [-1, 1]. Raises UserError if they are not bounded and
    continuous."""
    box = env.action_space
    _check_action_space(box, env_id)
    if len(box.shape) != 1:
        shape = box.shape
        box = gymnasium.spaces.Box(box.low.ravel(), box.high.ravel(), dtype=box.dtype)

        def reshaped(action: np.ndarray) -> np.ndarray:
            return np.reshape(action, shape)

        env = gymnasium.wrappers.TransformAction(env, reshaped, box)
    low, high = box.dtype.type([-1, 1])
    return gymnasium.wrappers.RescaleAction(env, low, high)


def _check_action_space(box: gymnasium.Space, env_id: str) -> None:
    refused = f"--env-id {env_id}: training needs bounded, continuous actions, not {box}"
    if not isinstance(box, gymnasium.spaces.Box) or not np.issubdtype(box.dtype, np.floating):
        raise runlog.UserError(f"{refused}; try Pendulum-v1")
    low = box.low.ravel()
    high = box.high.ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise runlog.UserError(f"{refused}; try Pendulum-v1")
    if not low.size:
        raise runlog.UserError(f"{refused}: they are empty; try Pendulum-v1")
    if (low >= high).any():
        first = int(np.argmax(low >= high))
        bounds = f"action {first} lies between {low[first]} and {high[first]}"
        raise runlog.UserError(f"{refused}: {bounds}; remove what cannot vary")
    if np.abs([low, high]).max() > LARGEST_BOUND:
        remedy = f"bounds above {LARGEST_BOUND:g} do not count; give the true ones"
        raise runlog.UserError(f"{refused}; {remedy}")


def make_env(
    env_id: str, index: int, seed: int, stream: str, render_mode: str | None = None
) -> gymnasium.Env:
    """One environment with observations (obs_dim,) and actions (action_dim,) in [-1, 1], wrapped in
    EpisodeSeeds.

    env_id: of a suite (suites.py), a Gymnasium id, or module:Id. index: its place in the batch.
    Episodes are determined by seed and stream. render_mode "rgb_array": looks for a graphics
    backend for MuJoCo. Raises UserError for an unknown id, an environment that cannot be created,
    or unusable spaces; NoGraphics if it cannot be drawn.
    """
    suites.check_id(env_id)
    failed = f"--env-id {env_id}: cannot be made here"
    with runlog.errors_are_user_errors(failed, "choose another, or install it"):
        env = suites.make_raw(env_id, seed, render_mode)
    if render_mode is not None:
        inner = env.unwrapped
        if hasattr(inner, "mujoco_renderer") or hasattr(inner, "physics"):  # rendered by MuJoCo
            enable_graphics()
    env = _flat_actions(env, env_id)
    limited = _has_time_limit(env)
    if not limited:
        env = gymnasium.wrappers.TimeLimit(env, TIME_LIMIT)
    env = EpisodeSeeds(_flat_observations(env, env_id), index, seed, stream, env_id)
    # in the suites only lqr has no limit, which is documented
    env.has_own_limit = limited or suites.suite_of(env_id) is not None
    return env


def make_envs(
    env_id: str, seeds: Sequence[int], stream: str, workers: bool = False
) -> gymnasium.vector.VectorEnv:
    """One environment per seed, in this process or in one worker process each. Autoreset is
    SAME_STEP: the observation after the end of an episode is the first of the next episode."""
    thunks = [functools.partial(make_env, env_id, i, seed, stream) for i, seed in enumerate(seeds)]
    if workers:
        return WorkerEnvs(thunks, [f"--env-id {env_id}, seed {seed}" for seed in seeds])
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    return gymnasium.vector.SyncVectorEnv(thunks, autoreset_mode=mode)


def check_environments(env_ids: Sequence[str], seed: int) -> tuple[int, int]:
    """Creates each environment and plays a step; returns the sizes of their observations and
    actions, which must be the same for all.

    Raises UserError like make_env, if none of the first episodes can be played, or if the spaces
    differ. Prints one line for each environment that is given a time limit.
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


def sizes(envs: gymnasium.vector.VectorEnv) -> tuple[int, int]:
    """(obs_dim, action_dim) of environments created by make_envs."""
    (obs_dim,) = envs.single_observation_space.shape
    (action_dim,) = envs.single_action_space.shape
    return obs_dim, action_dim


def _check_plays(env: "EpisodeSeeds") -> None:
    env.failure_is_reported = True  # failures are reported by the run, not by this check
    action = np.zeros(env.action_space.shape, env.action_space.dtype)
    with suites.seeded_globals(0):
        for _ in range(FAILURES_IN_A_ROW):
            env.reset()
            *_, info = env.step(action)
            if "environment_error" not in info:
                break
    if not env.has_own_limit:
        note = f"has no time limit; its episodes end after {TIME_LIMIT:,} steps"
        remedy = "gymnasium.register(..., max_episode_steps=...) sets another"
        print(f"{env.env_id}: {note} ({remedy})", flush=True)


def check_equal_spaces(envs: dict[str, gymnasium.Env]) -> None:
    """Closes the environments. Raises UserError, naming the first that differs, unless their spaces
    have equal shapes."""
    for env in envs.values():
        env.close()
    first_id, first = next(iter(envs.items()))
    for env_id, env in envs.items():
        first_shapes = first.observation_space.shape, first.action_space.shape
        shapes = env.observation_space.shape, env.action_space.shape
        for kind, first_shape, shape in zip(("observations", "actions"), first_shapes, shapes):
            if shape != first_shape:
                problem = f"have {kind} of shape {first_shape} and {shape}"
                remedy = "sequential tasks need equal ones, as within one dm_control domain"
                raise runlog.UserError(f"--env-id {first_id} and {env_id} {problem}; {remedy}")


class EpisodeSeeds(gymnasium.Wrapper):
    """Resets episode n with a seed derived from (seed, stream, n), so that every episode can be
    replayed bit for bit.

    index: place of the environment in its batch. reset(options={"number": [n, ...], "actions":
    [[...], ...]}), both indexed by it, goes to episode n and replays its first actions: a resumed
    run thus continues mid-episode.

    An environment that fails (any exception; an observation that is not finite in float32 or does
    not have the declared shape; a reward that is None or not finite) does not end the run. In
    `step`: the episode ends as truncated, with the last good observation, reward 0 and
    info["environment_error"] = 1. In `reset`: the next episode takes its place. The info of `reset`
    has "episode_number", the episode that has started, and "reset_errors", the number of failures
    before it. The first failure prints one line on stderr. Raises UserError after FAILURES_IN_A_ROW
    episodes that failed without a good step.

    Of the infos only "success" is kept, as a float.
    """

    def __init__(
        self, env: gymnasium.Env, index: int, seed: int, stream: str, env_id: str | None = None
    ):
        super().__init__(env)
        self.index = index
        self.seed = seed
        self.stream = stream
        self.episode = -1
        self.env_id = env_id or str(env.spec and env.spec.id)
        self.steps = 0  # successful steps of this episode
        self.last_obs = None
        self.failures_in_a_row = 0
        self.failure_is_reported = False
        self.reports_success = False

    def reset(self, *, seed=None, options=None):
        number = self.episode + 1
        actions = ()
        if options is not None:
            number = options["number"][self.index]
        if options is not None and "actions" in options:
            actions = options["actions"][self.index]
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
        episode_seed = seeding.derive_seed(self.seed, self.stream, self.episode) % 2**32
        # Meta-World ignores `seed` and draws goals from np_random
        self.unwrapped.np_random = np.random.default_rng(episode_seed)
        obs, _ = self.env.reset(seed=episode_seed)
        obs = self._checked(obs)
        for action in actions:
            obs, _, terminated, truncated, _ = self.env.step(np.asarray(action, dtype=np.float32))
            obs = self._checked(obs)
            self.steps += 1
            if terminated or truncated:
                problem = "the same actions give a different episode now, so it cannot be resumed"
                raise RuntimeError(problem)
        return obs

    def step(self, action):
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
            obs = self._checked(obs)
            reward = _checked_reward(reward)
            kept = {}
            if info.get("success") is not None:
                kept["success"] = float(info["success"])
        except Exception as error:
            self._failed(error)
            info = {"environment_error": 1}
            if self.reports_success:
                info["success"] = 0.0
            return self.last_obs, 0.0, False, True, info
        self.last_obs = obs
        self.steps += 1
        self.failures_in_a_row = 0
        self.reports_success = "success" in kept
        return obs, reward, terminated, truncated, kept

    def _checked(self, obs: np.ndarray) -> np.ndarray:
        if obs.shape != self.observation_space.shape:
            (size,) = self.observation_space.shape
            raise ValueError(f"{obs.size} numbers in an observation instead of {size}")
        good = np.abs(obs) <= LARGEST
        if not good.all():
            where = int(np.argmin(good))
            raise ValueError(f"observation {where} is {obs[where]}")
        return obs

    def _failed(self, error: Exception) -> None:
        """Reports the first failure. Raises UserError if too many episodes in a row failed."""
        reason = terminal.reason(error)
        place = f"seed {self.seed}, episode {self.episode}"
        if self.steps == 0:
            self.failures_in_a_row += 1
        if self.failures_in_a_row >= FAILURES_IN_A_ROW:
            problem = f"{FAILURES_IN_A_ROW} episodes in a row failed before completing a step"
            last = f"the last ({self.stream}, {place}) with {reason}"
            raise runlog.UserError(
                f"--env-id {self.env_id}: {problem}, {last}; fix the environment"
            )
        if not self.failure_is_reported:
            self.failure_is_reported = True
            problem = f"{self.env_id}, {place} ({self.stream}): the environment failed"
            problem = f"{problem} at step {self.steps + 1} ({reason}), not the agent"
            end = "the episode is truncated there"
            runlog.warn(f"{problem}; {end}; later failures of this seed are only counted")


def _checked_reward(reward) -> float:
    value = np.asarray(reward, dtype=np.float64)
    if value.size != 1 or not abs(value.item()) <= LARGEST:
        raise ValueError(f"the reward is {reward}")
    return value.item()
