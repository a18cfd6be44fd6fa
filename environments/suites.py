"""Suites of environments: prefixes of their ids, how environments are created, and which score
figures show.

To add a suite, add one entry to SUITES. Ids outside the suites are Gymnasium's, or `module:Id`. A
suite's package is imported when one of its environments is created, or when its ids are listed for
a message, so importing this file is cheap. See docs/environments.md.
"""

import contextlib
import importlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import gymnasium
import numpy as np

import runlog
from environments import atari
from environments.graphics import enable_graphics, no_graphics
from runlog import cli, seeding

METAWORLD_STEPS = 200  # per episode (CR's protocol)
# in Gymnasium: discrete actions, unless registered with continuous=True
DISCRETE = (
    "gymnasium.envs.box2d.lunar_lander",
    "gymnasium.envs.classic_control.acrobot",
    "gymnasium.envs.classic_control.cartpole",
    "gymnasium.envs.classic_control.mountain_car",
    "gymnasium.envs.phys2d.cartpole",
    "gymnasium.envs.tabular",
    "gymnasium.envs.toy_text",
)


@dataclass(frozen=True)
class Suite:
    """Environments from one provider, with one kind of score."""

    prefix: str  # of its ids
    title: str  # in figures
    package: str  # its import registers the environments
    list_ids: Callable[[ModuleType], list[str]]  # all of them, given the package
    make: Callable[[str, int, dict], gymnasium.Env]  # (id, seed, settings of gymnasium.make)
    score_key: str  # key of the score that an evaluation logs
    score_scale: float  # score / score_scale lies in [0, 1]


# ---- how one environment is made -----------------------------------------------------------------


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seeds Python's and numpy's global generators with `seed`, and restores them afterwards."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _construction_seed(seed: int) -> int:
    return seeding.derive_seed(seed, "construction") % 2**32


def _construct(env_id: str, seed: int, settings: dict) -> gymnasium.Env:
    """Random draws during construction depend on `seed` alone, so that training, evaluation and a
    resumed run have the same environment: the stiffness of lqr's joints, for example."""
    with seeded_globals(_construction_seed(seed)):
        return gymnasium.make(env_id, disable_env_checker=True, **settings)


def _make_metaworld(env_id: str, seed: int, settings: dict) -> gymnasium.Env:
    """Only the seed given to the constructor matters."""
    task = env_id.removeprefix("metaworld/")
    own = {"env_name": task, "seed": seed % 2**31, "max_episode_steps": METAWORLD_STEPS}
    return _construct("Meta-World/MT1", seed, settings | own)


def _make_dm_control(env_id: str, seed: int, settings: dict) -> gymnasium.Env:
    how_made = getattr(gymnasium.spec(env_id).entry_point, "keywords", {})
    if "domain_name" in how_made:
        own = {"task_kwargs": {"random": _construction_seed(seed)}}
        env = _construct(env_id, seed, settings | own)
        if "render_mode" not in settings:
            # quadruped-escape would create a rendering context to upload its terrain.
            env.unwrapped.physics._make_rendering_contexts = lambda: None
    else:  # locomotion and manipulation; some have image observations
        own = {}
        if "env_fn" in how_made:
            own["random_state"] = np.random.RandomState(_construction_seed(seed))
        with contextlib.suppress(RuntimeError):
            enable_graphics()
        env = _construct(env_id, seed, settings | own)
    if env_id.startswith("dm_control/lqr"):  # it declares action bounds of 1e10
        space = env.action_space
        unit = gymnasium.spaces.Box(-1, 1, space.shape, space.dtype)
        env = gymnasium.wrappers.TransformAction(env, np.asarray, unit)
    return env


def _list_metaworld(metaworld: ModuleType) -> list[str]:
    return [f"metaworld/{name}" for name in metaworld.ALL_V3_ENVIRONMENTS]


def _list_dm_control(shimmy: ModuleType) -> list[str]:
    return [name for name in gymnasium.registry if name.startswith("dm_control/")]


METAWORLD = Suite(
    prefix="metaworld/",
    title="Meta-World",
    package="metaworld",
    list_ids=_list_metaworld,
    make=_make_metaworld,
    score_key="eval/success",
    score_scale=1.0,
)
DM_CONTROL = Suite(
    prefix="dm_control/",
    title="DMC",
    package="shimmy",
    list_ids=_list_dm_control,
    make=_make_dm_control,
    score_key="eval/episodic_return",
    score_scale=1_000.0,
)
SUITES = (METAWORLD, DM_CONTROL)


# ---- lookups -------------------------------------------------------------------------------------


def suite_of(env_id: str) -> Suite | None:
    """The suite of an environment; None for others.

    >>> suite_of("metaworld/reach-v3").score_key
    'eval/success'
    """
    for suite in SUITES:
        if f"{env_id}/".startswith(suite.prefix):  # also a bare suite name, to list its ids
            return suite
    return None


def score_keys() -> str:
    """A pattern that matches the score of every suite, for `re.fullmatch`."""
    return "|".join(dict.fromkeys(suite.score_key for suite in SUITES))


def _in1d(values, among, **options) -> np.ndarray:
    return np.isin(np.ravel(values), among, **options)


def import_suite(suite: Suite) -> ModuleType:
    """Imports a suite's package, which registers its environments. Loads no graphics library."""
    if not hasattr(np, "in1d"):  # numpy 2.4 removed it; dm_control's quadruped calls it when made
        np.in1d = _in1d  # noqa: NPY201
    warnings.filterwarnings("ignore", ".*DISPLAY.*", module="glfw")
    with no_graphics(), warnings.catch_warnings():  # shimmy would enable all DeprecationWarnings
        return importlib.import_module(suite.package)


def import_suites() -> None:
    """Imports every suite's package."""
    for suite in SUITES:
        import_suite(suite)


def check_id(env_id: str) -> None:
    """Raises UserError, with the nearest ids, unless the environment exists. `module:Id` imports
    the module, also from the current folder."""
    module, colon, _ = env_id.rpartition(":")
    suite = suite_of(env_id)
    suggested = []
    if colon:
        import_suites()  # it may use their environments, which import MuJoCo
        _import_own(env_id, module)
        choices = [f"{module}:{name}" for name in gymnasium.registry]
    elif suite is not None:
        choices = suite.list_ids(import_suite(suite))
    else:
        _refuse_atari(env_id)
        import_suites()
        choices = [name for name in gymnasium.registry if not name.startswith("Meta-World/")]
        suggested = [name for name in choices if _may_be_continuous(name)]
        suggested += METAWORLD.list_ids(import_suite(METAWORLD))
    cli.check_choice("--env-id", env_id, choices, suggested)


def check_ids(env_ids: Sequence[str]) -> None:
    """`check_id` for each, except `module:Id`, whose module is the user's: only the process that
    trains imports it. Raises UserError."""
    for env_id in env_ids:
        cli.check_text("--env-id", env_id, env_id)
        if ":" not in env_id:
            check_id(env_id)


def _refuse_atari(env_id: str) -> None:
    """Raises UserError if the id denotes an Atari game and no other environment."""
    spec = gymnasium.registry.get(env_id)
    if spec is not None and not str(spec.entry_point).startswith("ale_py"):
        return
    game = atari.game_of(env_id)
    if game is not None:
        remedy = "use dqn_atari.py, ppo_atari.py or pqn_atari.py"
        problem = "is an Atari game, with discrete actions"
        raise runlog.UserError(f"--env-id {env_id}: {problem}; {remedy}, with --env-id {game}")


def _may_be_continuous(env_id: str) -> bool:
    """Whether training on it may work, as far as that is known without creating it."""
    spec = gymnasium.registry[env_id]
    entry_point = spec.entry_point
    if not isinstance(entry_point, str):  # from a suite, or a function that only raises an error
        return not getattr(entry_point, "__name__", "").startswith("_raise_")
    is_discrete = entry_point.startswith((*DISCRETE, "ale_py"))
    return spec.kwargs.get("continuous", not is_discrete)


def _import_own(env_id: str, module: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    remedy = "start where Python finds the module, for example in its folder"
    with runlog.errors_are_user_errors(f"--env-id {env_id}: cannot import {module}", remedy):
        importlib.import_module(module)


def make_raw(env_id: str, seed: int, render_mode: str | None = None) -> gymnasium.Env:
    """The original environment; its id must be known (`check_id`)."""
    settings = {}
    if render_mode is not None:  # a class may not have this argument
        settings["render_mode"] = render_mode
    suite = suite_of(env_id)
    make = _construct if suite is None else suite.make
    return make(env_id, seed, settings)
