"""Environments: how they are created, seeded and refused, and what happens when one fails.

`pytest -q tests/test_environments.py` (about 90 s).
"""

import os
import random
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

import environments
import runlog
import sac_continuous
from environments import graphics, make_env, workers
from runlog import seeding

FAST_TASKS = [
    "acrobot-swingup",
    "cheetah-run",
    "humanoid_CMU-run",
    "quadruped-escape",
    "reacher-easy",
]
TINY = (
    "--no-compile --no-tensorboard --device cpu --threads 1 --widths 8 --batch-size 8 "
    "--learning-starts 20"
)
TINY += (
    " --total-timesteps 60 --checkpoint-frequency 20 --eval-frequency 60 --num-eval-episodes 2 "
    "--log-frequency 20"
)
TINY += " --metrics-frequency 0 --ntk-frequency 0"


class Toy(gym.Env):
    """Episodes of 10 steps; what `faults` does is up to the episode, hence to its seed."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, faults=None):  # no render_mode
        self.faults = faults
        self.kind = 0.0
        self.steps = 0

    def observe(self):
        return np.array([self.np_random.normal(), self.steps], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.kind = self.np_random.random()
        self.steps = 0
        if self.faults == "reset" or (self.faults == "some" and self.kind < 0.2):
            raise OSError("no such world")
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        obs = self.observe()
        reward = 1.0
        late = self.steps == 4
        if self.faults == "step" or (self.faults == "some" and late and 0.2 < self.kind < 0.5):
            raise ArithmeticError("bad qacc")
        if self.faults == "nan" or (self.faults == "some" and late and 0.5 < self.kind < 0.7):
            obs[1] = np.nan
        if self.faults == "none":
            reward = None
        if self.faults == "inf":
            reward = -np.inf
        if self.faults == "shape":
            obs = np.zeros(3, np.float32)
        if self.faults == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return obs, reward, False, self.steps == 10, {}


for fault in ("some", "reset", "step", "nan", "none", "inf", "shape", "killed"):
    gym.register(f"Toy-{fault}-v0", Toy, kwargs={"faults": fault}, max_episode_steps=10)
gym.register("Toy-endless-v0", Toy, kwargs={"faults": None})


def run(folder, flags: str) -> dict[str, list[str]]:
    """Runs the command in this process; run folder name
    -> rows of scalars.csv without the time column."""
    argv = [*TINY.split(), "--runs-dir", str(folder), *flags.split()]
    sac_continuous.main(runlog.parse_args(sac_continuous.Args, argv))
    files = sorted(folder.glob("*/scalars.csv"))
    return {
        file.parent.name: [line.rsplit(",", 1)[0] for line in file.read_text().splitlines()[1:]]
        for file in files
    }


# ---- an environment that fails -------------------------------------------------------------------


def true_episodes(seed: int, steps: int) -> list[tuple[int, int, int, bool]]:
    """(number, length, failed resets before it, whether a step failed)
    of training with Toy-some, by its rules."""
    found = []
    number = -1
    total = 0
    while total < steps:
        number += 1
        resets = 0
        kind = kind_of(seed, number)
        while kind < 0.2:
            number += 1
            resets += 1
            kind = kind_of(seed, number)
        fails = 0.2 < kind < 0.7
        found.append((number, 4 if fails else 10, resets, fails))
        total += found[-1][1]
    return found


def kind_of(seed: int, number: int) -> float:
    episode_seed = seeding.derive_seed(seed, "train", number) % 2**32
    return gym.utils.seeding.np_random(episode_seed)[0].random()


@pytest.mark.parametrize("async_envs", ["", "--async-envs"])
def test_failures_end_episodes_but_not_the_run_and_a_resumed_run_is_the_same(
    async_envs, tmp_path, monkeypatch, capfd
):
    buffers = []
    add = sac_continuous.ReplayBuffer.add

    def recorded(buffer, *args):
        add(buffer, *args)
        buffers.append(buffer)

    monkeypatch.setattr(sac_continuous.ReplayBuffer, "add", recorded)
    flags = f"--env-id Toy-some-v0 --num-seeds 2 {async_envs}"
    whole = run(tmp_path / "a", flags)
    warnings = capfd.readouterr().err.splitlines()
    assert all(line.startswith("warning: Toy-some-v0, seed ") for line in warnings), warnings
    assert all("not the agent" in line for line in warnings), warnings
    for i, seed in enumerate((1, 2)):
        (rows,) = (rows for name, rows in whole.items() if f"__s{seed}__" in name)
        expected_errors = []
        expected_ends = []
        end = 0
        errors = 0
        for _, length, resets, fails in true_episodes(seed, 60):
            if resets:  # of the reset at the end of the episode before
                errors += resets
                expected_errors.append((end, errors))
            end += length
            if fails and end <= 60:
                errors += 1
                expected_errors.append((end, errors))
            if end <= 60:
                expected_ends.append((end, length))
        # failed in a step and in the reset after it: one row each, the later is last
        by_step = dict(expected_errors)
        rows = [row.split(",") for row in rows]
        got = [
            (int(step), float(value))
            for step, key, value in rows
            if key == "charts/environment_errors"
        ]
        assert dict(got) == by_step and errors >= 2
        lengths = [
            (int(step), float(value))
            for step, key, value in rows
            if key == "charts/episodic_length"
        ]
        assert lengths == expected_ends
        returns = [float(value) for _, key, value in rows if key == "charts/episodic_return"]
        assert returns == [length - (length == 4) for _, length in expected_ends]
        # the replay has true transitions only: one step on in the same episode;
        # where one failed, the last one again
        obs, _, rewards, terminations, next_obs = buffers[0].rows[i].split(buffers[0].columns, -1)
        assert torch.equal(next_obs[:, 1], obs[:, 1] + 1)
        assert (rewards == 1).all()
        assert not terminations.any()
        for step, length in expected_ends:
            if length == 4:
                assert torch.equal(buffers[0].rows[i, step - 1], buffers[0].rows[i, step - 2])
        # one line for training, perhaps one for evaluation
        of_seed = [line for line in warnings if f"seed {seed}, " in line]
        assert len([line for line in of_seed if "(train)" in line]) == 1

    log_episodes = environments.log_episodes
    for stop in (31, 47):  # killed in the middle of an episode after the checkpoints at 20 and 40

        def interrupted(runs, step, *args, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return log_episodes(runs, step, *args)

        monkeypatch.setattr(environments, "log_episodes", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(tmp_path / "b", flags)
    monkeypatch.setattr(environments, "log_episodes", log_episodes)
    assert run(tmp_path / "b", flags) == whole


def test_what_a_failed_step_and_reset_return(capfd):
    for fault, reason in {
        "step": "ArithmeticError: bad qacc",
        "nan": "ValueError: observation 1 is nan",
        "none": "ValueError: the reward is None",
        "inf": "ValueError: the reward is -inf",
        "shape": "ValueError: 3 numbers in an observation instead of 2",
    }.items():
        env = make_env(f"Toy-{fault}-v0", 0, 7, "train")
        first, info = env.reset()
        assert info == {"episode_number": 0, "reset_errors": 0}
        obs, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        assert np.array_equal(obs, first) and (reward, terminated, truncated) == (0.0, False, True)
        assert info == {"environment_error": 1}
        (line,) = capfd.readouterr().err.splitlines()
        place = (
            f"Toy-{fault}-v0, seed 7, episode 0 (train): the environment failed at step 1 "
            f"({reason})"
        )
        assert line.startswith(f"warning: {place}, not the agent")
        with pytest.raises(runlog.UserError, match="10 episodes in a row failed before"):
            for _ in range(10):
                env.reset()
                env.step(np.zeros(1, np.float32))
    with pytest.raises(
        runlog.UserError, match=r"Toy-reset-v0: 10 .*episode 9\) with OSError: no such world"
    ):
        make_env("Toy-reset-v0", 0, 7, "train").reset()


def test_a_physics_error_of_dm_control_ends_the_episode(monkeypatch, capfd):
    from dm_control.rl.control import PhysicsError

    env = make_env("dm_control/cartpole-swingup-v0", 0, 1, "train")
    env.reset()
    good, *_ = env.step(np.zeros(1))
    env.unwrapped.physics.data.qpos[:] = np.nan  # MuJoCo: bad position
    obs, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert np.array_equal(obs, good) and (reward, terminated, truncated) == (0.0, False, True)
    assert info == {"environment_error": 1}
    assert PhysicsError.__name__ in capfd.readouterr().err
    other = make_env("dm_control/cartpole-swingup-v0", 0, 1, "train")
    # and the next one is complete
    assert np.array_equal(env.reset()[0], other.reset(options={"number": [1]})[0])
    assert np.array_equal(env.step(np.ones(1))[0], other.step(np.ones(1))[0])


def stand_still(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((2, 1), np.float32), np.zeros(2)


@pytest.mark.parametrize("in_workers", [False, True])
def test_evaluation_continues_after_failures_and_gives_up_in_one_line(in_workers, capfd):
    envs = environments.make_envs("Toy-some-v0", [1, 2], "train", in_workers)
    episodes = environments.play_episodes(envs, stand_still, 0, 3)
    dones = episodes.dones
    for i, seed in enumerate((1, 2)):
        ends = np.cumsum([length for _, length, _, _ in true_episodes(seed, dones.shape[1])])
        assert np.array_equal(np.flatnonzero(dones[i]) + 1, ends[ends <= dones.shape[1]])
    assert torch.isnan(episodes.success).all()
    episodes.success = torch.zeros_like(episodes.rewards)
    assert all(torch.isfinite(column).all() for column in vars(episodes).values())
    envs.close()
    for fault in ("reset", "step"):
        envs = environments.make_envs(f"Toy-{fault}-v0", [1, 2], "train", in_workers)
        with pytest.raises(
            runlog.UserError, match=f"--env-id Toy-{fault}-v0: 10 episodes in a row failed before"
        ):
            environments.play_episodes(envs, stand_still, 0, 30)
        envs.close()
    assert "Traceback" not in capfd.readouterr().err


# ---- worker processes ----------------------------------------------------------------------------


def test_a_worker_that_dies_is_reported_in_one_line(capfd):
    envs = environments.make_envs("Toy-killed-v0", [1, 2], "train", True)
    envs.reset()
    with pytest.raises(
        runlog.UserError, match=r"--env-id Toy-killed-v0, seed [12]: .*killed by signal 9"
    ):
        envs.step(np.zeros((2, 1), np.float32))
    envs.close()
    assert capfd.readouterr().err == ""


def test_workers_ignore_signals_and_closing_never_hangs(capfd):
    envs = environments.make_envs("Pendulum-v1", [1, 2, 3], "train", True)
    envs.reset()
    for process in envs.processes:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
    obs, *_ = envs.step(np.zeros((3, 1), np.float32))
    assert obs.shape == (3, 3) and all(process.is_alive() for process in envs.processes)
    envs.step_async(np.zeros((3, 1), np.float32))  # interrupted in the middle
    start = time.monotonic()
    envs.close(terminate=True)
    assert time.monotonic() - start < workers.END_SECONDS + 5
    assert [process.exitcode for process in envs.processes] == [0, 0, 0]  # none had to be killed
    assert capfd.readouterr().err == ""


PARENT = """
import os, signal, sys, time
import numpy as np
import environments
envs = environments.make_envs("Pendulum-v1", [1, 2], "train", True)
later = environments.make_envs("Pendulum-v1", [1, 2], "eval", True)
print(*[process.pid for each in (envs, later) for process in each.processes], flush=True)
envs.reset()
if sys.argv[1] == "leave":
    sys.exit()
while True:
    envs.step(np.zeros((2, 1), np.float32))
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("end", ["leave", "SIGINT", "SIGKILL"])
def test_no_worker_outlives_its_parent(end):
    argv = [sys.executable, "-c", PARENT, end]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parent = subprocess.Popen(
        argv, start_new_session=True, env={**os.environ, "PYTHONPATH": os.getcwd()}, **pipes
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 4
    try:
        if end == "SIGINT":
            time.sleep(0.5)
            os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        if end == "SIGKILL":
            parent.kill()
        _, err = parent.communicate(timeout=60)
    finally:
        parent.kill()  # would step its environments forever
    # the parent's own: no script around it here
    assert err.count("Traceback") == (end == "SIGINT"), err
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


# ---- ids, spaces, time limits --------------------------------------------------------------------


class Spaces(Toy):
    """Toy with these spaces; observations are random samples."""

    def __init__(self, obs=None, act=None):
        super().__init__()
        self.observation_space = obs or Toy.observation_space
        self.action_space = act or Toy.action_space
        self.received = None

    def observe(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def step(self, action):
        self.received = action
        return super().step(action)


def register(obs=None, act=None) -> str:
    gym.registry.pop("Spaces-v0", None)
    gym.register("Spaces-v0", Spaces, kwargs={"obs": obs, "act": act}, max_episode_steps=10)
    return "Spaces-v0"


box = gym.spaces.Box
sp = gym.spaces
FLAT = {
    6: box(-1, 1, (2, 3), np.float64),
    1: box(-1, 1, (), np.float32),
    5: sp.Discrete(5),
    4: sp.MultiBinary(4),
    7: sp.MultiDiscrete([3, 4]),
    8: sp.Dict(
        {"a": box(-1, 1, (2, 2)), "b": sp.Tuple([sp.Discrete(3), box(0, 9, (1,), np.int64)])}
    ),
}


@pytest.mark.parametrize("size", FLAT)
def test_observations_are_flattened(size):
    env = make_env(register(FLAT[size]), 0, 1, "train")
    obs, _ = env.reset()
    truth = sp.flatten(FLAT[size], env.unwrapped.observation_space.sample())
    assert obs.shape == env.observation_space.shape == truth.shape == (size,)
    obs, *_, info = env.step(np.zeros(1, np.float32))
    assert obs.shape == (size,) and not info


def test_actions_of_any_shape_reach_the_environment_within_their_bounds():
    low = np.array([[-2.0, 0.0, 1.0]])
    env = make_env(register(act=box(low, low + 2, dtype=np.float64)), 0, 1, "train")
    env.reset()
    for action, truth in {-1: low, 0: low + 1, 1: low + 2}.items():
        env.step(np.full(3, action, np.float32))
        assert np.allclose(env.unwrapped.received, truth) and env.unwrapped.received.shape == (1, 3)
    scalar = make_env(register(act=box(-3, 3, (), np.float32)), 0, 1, "train")
    scalar.reset()
    scalar.step(np.ones(1, np.float32))
    assert scalar.unwrapped.received.shape == () and scalar.unwrapped.received == 3


REFUSED = {
    "integers": (
        {"act": box(-3, 3, (2,), np.int64)},
        "continuous actions, not Box.*int64.*try Pendulum-v1",
    ),
    "equal bounds": (
        {"act": box(np.array([-1.0, 2.0]), np.array([1.0, 2.0]))},
        "action 1 lies between 2.0 and 2.0",
    ),
    "no bounds": ({"act": box(-np.inf, np.inf, (1,))}, "bounded, continuous actions"),
    "huge bounds": ({"act": box(-1e8, 1e8, (1,))}, "bounds above 1e[+]06 do not count"),
    "no action": ({"act": box(-1, 1, (0,))}, "they are empty"),
    "discrete": ({"act": sp.Discrete(2)}, "not Discrete"),
    "sequence": (
        {"obs": sp.Sequence(box(-1, 1, (2,)))},
        "observations Sequence.*no fixed length.*use Box, Discrete",
    ),
    "graph": ({"obs": sp.Graph(box(-1, 1), None)}, "observations Graph.*no fixed length"),
    "inner": (
        {"obs": sp.Dict({"a": sp.Sequence(sp.Discrete(2))})},
        "observations Dict.*no fixed length",
    ),
    "nothing": ({"obs": box(-1, 1, (0,))}, "observations Box.*are empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_spaces_are_refused_in_one_line(case):
    spaces, message = REFUSED[case]
    with pytest.raises(runlog.UserError, match=f"--env-id Spaces-v0: .*{message}") as error:
        make_env(register(**spaces), 0, 1, "train")
    assert "\n" not in str(error.value)


def test_an_endless_environment_gets_a_time_limit_and_a_warning(capfd):
    environments.check_environments(["Toy-endless-v0"], 1)
    line = "Toy-endless-v0: has no time limit; its episodes end after 1,000 steps"
    assert capfd.readouterr().out.startswith(line)
    for env_id in (
        "Toy-some-v0",
        "dm_control/cartpole-swingup-v0",
        "metaworld/reach-v3",
        "Hopper-v5",
    ):
        environments.check_environments([env_id], 1)
    assert capfd.readouterr().out == ""
    env = make_env("Toy-endless-v0", 0, 1, "train")
    env.unwrapped.step = lambda action: (np.zeros(2, np.float32), 1.0, False, False, {})
    env.reset()
    ends = [env.step(np.zeros(1, np.float32))[3] for _ in range(1000)]
    assert ends == [False] * 999 + [True]


def test_a_module_may_build_on_the_suites(tmp_path):
    """In a separate process, since the suites are already registered in this one."""
    (tmp_path / "wrapped_tasks.py").write_text(
        "import gymnasium\n"
        "def make(**settings):\n"
        "    return gymnasium.make('dm_control/cartpole-swingup-v0', **settings)\n"
        "gymnasium.register('Wrapped-v0', entry_point=make)\n"
    )
    code = "import environments; env = environments.make_env('wrapped_tasks:Wrapped-v0', 0, 1, 'x')"
    code += "; print(env.reset()[0].shape)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(5,)\n", done.stderr[-500:]


def test_a_module_of_the_current_folder(tmp_path, monkeypatch, capfd):
    source = "import gymnasium\nfrom test_environments import Toy\n"
    (tmp_path / "my_worlds.py").write_text(
        source + "gymnasium.register('Mine-v0', Toy, max_episode_steps=10)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, os.path.dirname(__file__)])
    env = make_env("my_worlds:Mine-v0", 0, 1, "train")
    assert env.reset()[0].shape == (2,)
    for env_id, message in {
        "my_worlds:Mime-v0": "unknown; did you mean my_worlds:Mine-v0",
        "my_words:Mine-v0": (
            "cannot import my_words .ModuleNotFoundError.*start where Python finds the module"
        ),
    }.items():
        with pytest.raises(runlog.UserError, match=f"--env-id {env_id}: {message}"):
            make_env(env_id, 0, 1, "train")
    rows = run(tmp_path / "runs", "--env-id my_worlds:Mine-v0")
    assert next(iter(rows)).startswith("my_worlds-Mine-v0__")


# ---- what is drawn when an environment is built --------------------------------------------------


def trajectory(env, steps: int = 5) -> list:
    rng = np.random.default_rng(0)
    rows = [env.reset()[0].tolist()]
    for _ in range(steps):
        obs, reward, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        rows.append((obs.tolist(), reward))
    env.close()
    return rows


def check_two_constructions(env_id: str) -> None:
    first = trajectory(make_env(env_id, 0, 1, "train"))
    np.random.random()  # noqa: NPY002
    random.random()
    assert trajectory(make_env(env_id, 0, 1, "train")) == first, env_id


@pytest.mark.parametrize("task", ["lqr-lqr_2_1", "lqr-lqr_6_2", "fish-swim", "reacher-easy"])
def test_two_constructions_are_the_same_system(task):
    check_two_constructions(f"dm_control/{task}-v0")


def test_two_constructions_of_a_meta_world_task():
    check_two_constructions("metaworld/reach-v3")


def test_lqr_is_the_same_in_training_and_evaluation_and_differs_between_seeds():
    def stiffness(seed, stream):
        return make_env(
            "dm_control/lqr-lqr_2_1-v0", 0, seed, stream
        ).unwrapped.physics.model.jnt_stiffness.tolist()

    first = stiffness(1, "train")
    assert stiffness(1, "eval") == stiffness(1, "play") == first != stiffness(2, "train")


def test_global_generators_are_seeded_during_construction_only():
    class Drawing(Toy):
        def __init__(self):
            super().__init__()
            self.drawn = np.random.random(), random.random()  # noqa: NPY002

    gym.registry.pop("Drawing-v0", None)
    gym.register("Drawing-v0", Drawing, max_episode_steps=10)
    make_env("Drawing-v0", 0, 1, "train")  # imports may draw
    states = repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    first, again, other = (
        make_env("Drawing-v0", 0, seed, "train").unwrapped.drawn for seed in (1, 1, 2)
    )
    assert first == again != other
    assert (repr(np.random.get_state()), random.getstate()) == states  # noqa: NPY002


WITHOUT_IN1D = """
import numpy as np
if hasattr(np, "in1d"):
    del np.in1d
    np.__all__.remove("in1d")
import environments
for env_id in ("metaworld/reach-v3", "dm_control/quadruped-walk-v0"):
    env = environments.make_env(env_id, 0, 1, "train")
    first, _ = env.reset()
    second, reward, *_ = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
    print(env_id, first.sum().item(), second.sum().item(), reward)
"""


def test_environments_without_in1d():
    """numpy 2.4 has no in1d: Meta-World and dm_control's quadruped are made
    and step as they do before it."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_IN1D], capture_output=True, text=True, env=environment
    )
    truth = []
    for env_id in ("metaworld/reach-v3", "dm_control/quadruped-walk-v0"):
        env = make_env(env_id, 0, 1, "train")
        first, _ = env.reset()
        second, reward, *_ = env.step(np.zeros(env.action_space.shape, env.action_space.dtype))
        truth.append(f"{env_id} {first.sum().item()} {second.sum().item()} {reward}")
    assert done.stdout.splitlines() == truth, done.stderr


# ---- graphics ------------------------------------------------------------------------------------


def test_a_run_needs_no_graphics_and_a_video_without_them_is_one_warning(tmp_path):
    """What broken drivers and a wrong MUJOCO_GL do;
    Hopper draws through gymnasium, and its episodes are short."""
    argv = [sys.executable, sac_continuous.__file__, *TINY.split(), "--runs-dir", str(tmp_path)]
    argv += ["--env-id", "Hopper-v5", "--num-seeds", "2", "--capture-video"]
    broken = {
        "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent",
        "MUJOCO_GL": "banana",
        "PYOPENGL_PLATFORM": "apple",
    }
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")
    }
    done = subprocess.run(argv, capture_output=True, text=True, env=environment | broken)
    assert done.returncode == 0 and "step 60: eval/episodic_return" in done.stdout, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: no video ")
    assert "no graphics here: banana: " in line
    assert "osmesa: " in line


def test_dm_control_steps_without_a_graphics_library(monkeypatch):
    code = (
        "import sys, environments\nenv = environments.make_env('dm_control/quadruped-escape-v0', "
        "0, 1, 'train')\n"
    )
    code += "env.reset(); env.step(env.action_space.sample())\n"
    code += "import os; print('OpenGL.EGL' in sys.modules, 'MUJOCO_GL' in os.environ)"
    environment = {key: value for key, value in os.environ.items() if key not in graphics.VARIABLES}
    environment |= {"PYTHONPATH": os.getcwd(), "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.fixture
def probes(monkeypatch):
    """Which back ends work, instead of trying them; and what was tried."""
    works = {"egl"}
    tried = []
    graphics._choose.cache_clear()
    for variable in (*graphics.VARIABLES, "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(variable, "")  # so that it is put back at the end
        monkeypatch.delenv(variable)
    monkeypatch.setattr(graphics.sys, "platform", "linux")
    monkeypatch.setattr(graphics.importlib, "reload", lambda module: module)
    monkeypatch.setattr(
        graphics,
        "reason_against",
        lambda name: tried.append(name) or (None if name in works else "no"),
    )
    yield works, tried
    graphics._choose.cache_clear()


def test_the_first_back_end_that_works_is_chosen(probes, monkeypatch, capfd):
    works, tried = probes
    assert graphics.enable_graphics() == "egl" and tried == ["egl"]
    assert (os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"]) == ("egl", "egl")
    works.clear()
    works.add("osmesa")
    tried.clear()
    graphics._choose.cache_clear()
    assert graphics.enable_graphics() == "osmesa"
    assert tried == ["egl", "osmesa"]  # egl is now the user's choice
    assert capfd.readouterr().err.startswith(
        "warning: MUJOCO_GL=egl does not work here, so videos are drawn with osmesa"
    )
    assert graphics.enable_graphics() == "osmesa" and capfd.readouterr().err == ""
    monkeypatch.setenv("MUJOCO_GL", "banana")
    monkeypatch.setenv("DISPLAY", ":0")
    tried.clear()
    assert graphics.enable_graphics() == "osmesa" and tried == ["banana", "glfw", "egl", "osmesa"]
    assert "MUJOCO_GL=banana" in capfd.readouterr().err
    monkeypatch.setenv("MUJOCO_GL", "glx")
    works.add("glfw")
    assert graphics.enable_graphics() == "glfw" and "PYOPENGL_PLATFORM" not in os.environ
    monkeypatch.setenv("MUJOCO_GL", "off")
    with pytest.raises(graphics.NoGraphics, match="MUJOCO_GL=off turns graphics off"):
        graphics.enable_graphics()
    monkeypatch.setattr(graphics.sys, "platform", "darwin")
    assert graphics.candidates() == ["glfw"]
    monkeypatch.setenv("MUJOCO_GL", "")
    works.clear()
    graphics._choose.cache_clear()
    with pytest.raises(graphics.NoGraphics, match="no graphics here: glfw: no"):
        graphics.enable_graphics()


def test_a_driver_that_crashes_or_hangs_is_reported_as_a_reason(monkeypatch):
    monkeypatch.setattr(graphics, "PROBE", "import os; os.kill(os.getpid(), 11)")
    assert graphics.reason_against("egl") == "killed by signal 11"
    monkeypatch.setattr(graphics, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(graphics, "PROBE_SECONDS", 0.5)
    assert graphics.reason_against("egl") == "no answer in 0.5 s"
    monkeypatch.setattr(graphics, "PROBE_SECONDS", 60)
    monkeypatch.setattr(graphics, "PROBE", "raise RuntimeError('no device')")
    assert graphics.reason_against("egl") == "RuntimeError: no device"
    monkeypatch.setattr(
        graphics,
        "PROBE",
        "import os; print(os.environ['MUJOCO_GL'], os.environ['PYOPENGL_PLATFORM'])",
    )
    assert graphics.reason_against("egl") is None


# ---- dm_control's tasks --------------------------------------------------------------------------


def dm_control_tasks() -> list[str]:
    environments.import_suites()
    from dm_control import suite

    tasks = [f"{domain}-{task}" for domain, task in suite.ALL_TASKS]
    assert {f"dm_control/{task}-v0" for task in tasks} <= {*gym.registry}
    return tasks


def check_task(task: str) -> None:
    env = make_env(f"dm_control/{task}-v0", 0, 1, "train")
    obs, _ = env.reset()
    action = env.action_space.sample()
    assert obs.ndim == 1
    assert obs.shape == env.observation_space.shape
    assert np.isfinite(obs).all()
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    next_obs, reward, terminated, truncated, _ = env.step(action)
    assert next_obs.shape == obs.shape
    assert np.isfinite(next_obs).all()
    assert np.isfinite(reward)
    assert (-1 if task.startswith("lqr-") else 0) <= reward <= 1  # lqr's is 1 minus a cost
    assert not terminated and not truncated
    env.close()


@pytest.mark.parametrize("task", FAST_TASKS)
def test_dm_control_tasks(task):
    check_task(task)


def test_lqr_has_a_time_limit_and_moderate_rewards():
    env = make_env("dm_control/lqr-lqr_2_1-v0", 0, 1, "train")
    truncated = False
    env.reset()
    for step in range(1, 1001):
        assert not truncated
        _, reward, terminated, truncated, _ = env.step(np.full(1, (-1) ** step))
        assert -10 < reward <= 1 and not terminated
    assert truncated


@pytest.mark.slow
def test_all_dm_control_tasks():
    tasks = dm_control_tasks()
    assert len(tasks) == 51 and {*FAST_TASKS} <= {*tasks}
    for task in tasks:
        check_task(task)
        check_two_constructions(f"dm_control/{task}-v0")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["push-v3", "sweep-v3", "door-open-v3", "peg-insert-side-v3"])
def test_two_constructions_of_every_meta_world_task(task):
    check_two_constructions(f"metaworld/{task}")
