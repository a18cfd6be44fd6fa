"""The games against a plain ALE interface, the replay against what happened.

`pytest -q tests/test_atari.py` (about 20 s).
"""

import dataclasses
import functools
import itertools
import resource
import signal

import ale_py
import numpy as np
import pytest
import torch
from ale_py import vector_env

import dqn_atari
import ppo_atari
import pqn_atari
import runlog
from dqn_atari import ReplayBuffer
from environments.atari import (
    MAX_DESYNC_STEPS,
    AtariGames,
    FinishedGame,
    GameStep,
    atari_game,
    desynchronise,
    play_games,
)
from runlog import seeding, stopping

CPU = torch.device("cpu")
make_games = functools.partial(AtariGames, num_threads=1)
make_breakout = functools.partial(make_games, "Breakout")
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def area_weights(size: int) -> np.ndarray:
    """(84, size): the fraction of each of `size` pixels that lies in each of 84."""
    starts = np.arange(84)[:, None] * size / 84
    pixels = np.arange(size)
    overlap = np.minimum(starts + size / 84, pixels + 1) - np.maximum(starts, pixels)
    return np.clip(overlap, 0, None) * 84 / size


class ScalarGame:
    """One game on ale_py's plain interface: 4 frames per action,
    the maximum of the last two, resized in numpy."""

    rows = area_weights(210)
    columns = area_weights(160)

    def __init__(self, rom: str, seed: int):
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(rom))
        self.actions = self.ale.getMinimalActionSet()

    def small(self, screen: np.ndarray) -> np.ndarray:
        return self.rows @ screen.astype(float) @ self.columns.T

    def reset(self, first_frame: int) -> np.ndarray:
        """A new game at this frame: the fire button once (where there is one), then no-ops."""
        self.ale.reset_game()
        for frame in range(first_frame):
            fires = frame == 0 and ale_py.Action.FIRE in self.actions
            self.ale.act(ale_py.Action.FIRE if fires else ale_py.Action.NOOP)
        self.lives = self.ale.lives()
        self.total = 0.0
        self.length = 0
        self.stack = [np.zeros((84, 84))] * 3 + [self.small(self.ale.getScreenGrayscale())]
        return np.stack(self.stack)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        """(observation, raw reward, life lost, game over)"""
        reward = 0.0
        screens = []
        for _ in range(4):
            if not self.ale.game_over():
                reward += self.ale.act(self.actions[action])
                screens.append(self.ale.getScreenGrayscale())
        self.stack = [
            *self.stack[1:],
            self.small(np.maximum(*screens[-2:]) if len(screens) > 1 else screens[0]),
        ]
        lost = self.ale.lives() < self.lives
        self.lives = self.ale.lives()
        self.total += reward
        self.length += 1
        return np.stack(self.stack), reward, lost, self.ale.game_over()


@pytest.mark.parametrize(
    ("env_id", "limit"), [("Breakout", 108_000), ("Breakout", 240), ("SpaceInvaders", 1_200)]
)
def test_games_match_a_plain_interface(env_id, limit):
    rng = np.random.default_rng(0)
    seen = {"life": 0, "over": 0, "cut": 0}
    fires = [False, False]
    games = make_games(env_id, 2, max_num_frames_per_episode=limit)
    obs = games.reset(5, "games", 0)
    rom = atari_game(env_id)[1]
    plain = [ScalarGame(rom, seeding.derive_seed(5, "games", 0, i) % 2**31) for i in range(2)]
    assert len(plain[0].actions) == games.num_actions
    started = [int(frame) for frame in games.frames]
    for game, frame, first_obs in zip(plain, started, obs):
        assert np.abs(game.reset(frame) - first_obs).max() <= 0.51  # rounded to whole grey values
    for _ in range(400):
        actions = rng.integers(games.num_actions, size=2)
        step = games.step(actions)
        finished = {ended.env: (ended.total, ended.length) for ended in step.games}
        assert step.game_overs.tolist() == [0 in finished, 1 in finished]
        for i, game in enumerate(plain):
            # 1 is fire in both games
            truth, reward, lost, over = game.step(1 if fires[i] else actions[i])
            fires[i] = lost and not over
            cut = not over and game.length * 4 >= limit
            # ale_py mixes older frames into the last one of a game
            compared = slice(0, 3 if over or cut else 4)
            assert np.abs(truth - step.real_next_obs[i])[compared].max() <= 0.51
            assert (step.rewards[i], step.terminations[i]) == (reward, lost or over)
            assert step.truncations[i] == cut
            assert finished.get(i) == ((game.total, game.length) if over or cut else None)
            if over or cut:
                truth = game.reset(int(games.frames[i]))
            assert np.abs(truth - step.obs[i]).max() <= 0.51
            seen = {
                "life": seen["life"] + lost,
                "over": seen["over"] + over,
                "cut": seen["cut"] + cut,
            }
    assert seen["life"] >= 2 and (seen["cut"] >= 2 if limit < 108_000 else seen["over"] >= 2), seen


def test_breakout_continues_after_a_lost_life_only_if_fire_is_pressed():
    lost = {}
    for fires in (True, False):
        games = make_breakout(1, fire_on_life_loss=fires)
        games.reset(1, "games", 0)
        lost[fires] = sum(games.step(np.zeros(1, int)).terminations[0] for _ in range(300))
    assert lost[True] > 5 and lost[False] == 1
    assert make_games("Freeway", 1).fire is None  # no such button


def test_sticky_actions_and_seeds():
    def play(seed, **flags):
        games = make_breakout(2, **flags)
        first = games.reset(seed, "games", 0)
        return [first, *(games.step(np.full(2, 2 + t % 2)).obs for t in range(20))]

    plain = play(1)
    same = play(1)
    sticky, again, other = (play(s, repeat_action_probability=0.25) for s in (1, 1, 2))
    assert all(map(np.array_equal, plain, same)) and all(map(np.array_equal, sticky, again))
    assert not all(map(np.array_equal, plain, sticky))
    assert not all(map(np.array_equal, other, sticky))


@pytest.fixture
def short_games(monkeypatch):
    short = functools.partial(vector_env.AtariVectorEnv, max_num_frames_per_episode=600)
    monkeypatch.setattr(vector_env, "AtariVectorEnv", short)


def test_play_games_returns_the_first_game_of_each_environment_and_films_one(short_games):
    times = iter(range(10_000))
    screens = []

    def policy(obs):
        assert obs.shape == (3, 4, 84, 84) and obs.dtype == np.uint8
        return np.full(3, [1, 2, 2, 3, 0][next(times) % 5])

    returns = play_games(make_breakout, policy, 3, 11, screens)
    games = make_breakout(3)
    games.reset(11, "play")
    for i, frame in enumerate(games.frames):
        game = ScalarGame("breakout", seeding.derive_seed(11, "play", i) % 2**31)
        lost = False
        over = False
        t = 0
        game.reset(int(frame))
        start = game.ale.getScreenRGB()
        while not over and game.length < 150:
            _, _, lost, over = game.step(1 if lost else [1, 2, 2, 3, 0][t % 5])
            t += 1
        assert returns[i] == game.total
        if i == 0:
            assert np.array_equal(screens[0], start) and len(screens) == 1 + game.length // 4
            assert all(screen.shape == (210, 160, 3) for screen in screens)
    times = iter(range(10_000))
    assert play_games(make_breakout, policy, 3, 11) == returns and max(returns) > 0


class CountingGames:
    """Games of these lengths, over and over; an observation is the number of steps so far."""

    def __init__(self, lengths: list[int]):
        self.lengths = lengths
        self.num_envs = len(lengths)
        self.t = 0

    def step(self, actions: np.ndarray) -> GameStep:
        assert actions.tolist() == [self.t + i for i in range(self.num_envs)]
        self.t += 1
        games = [
            FinishedGame(i, 0.0, length)
            for i, length in enumerate(self.lengths)
            if self.t % length == 0
        ]
        never = np.zeros(self.num_envs, bool)
        obs = np.full(self.num_envs, self.t)
        return GameStep(obs, never, never, never, obs, games)


@pytest.mark.parametrize(
    ("lengths", "num_training", "steps"),
    [
        ([3, 11, 7, 50], 3, 11),  # a test game may be longer
        ([3, 11, 7, 50], 4, 50),
        ([5, 5], 2, 5),
        ([4, 10**9], 2, MAX_DESYNC_STEPS),
    ],
)
def test_games_are_played_until_each_training_game_has_ended(lengths, num_training, steps):
    games = CountingGames(lengths)
    first_obs = np.zeros(len(lengths), int)
    obs = desynchronise(games, lambda obs: obs + np.arange(len(obs)), first_obs, num_training)
    assert games.t == steps
    assert obs.tolist() == [steps] * len(lengths)


def test_desynchronising_stops_at_a_signal(capsys):
    games = CountingGames([100, 100])

    def policy(obs):
        if games.t == 20:
            signal.raise_signal(signal.SIGTERM)
        return obs + np.arange(2)

    with pytest.raises(stopping.Stopped) as stop, stopping.stop_on_signals():
        desynchronise(games, policy, np.zeros(2, int), 2)
    assert stop.value.code == 128 + signal.SIGTERM
    assert games.t == 21
    assert "nothing is lost since the last checkpoint" in capsys.readouterr().err


def collect(buffer, games, obs, steps, rng, truth):
    """Adds random steps to the buffer and the list; the stored reward is the row's number,
    which identifies it."""
    for _ in range(steps):
        actions = rng.integers(games.num_actions, size=games.num_envs)
        number = len(truth)
        step = games.step(actions)
        ends = (step.terminations, step.truncations, step.game_overs)
        ids = (number * games.num_envs + np.arange(games.num_envs)).astype(np.float32)
        buffer.add(obs, actions, ids, *ends)
        cut = step.truncations & ~step.terminations
        truth.append((obs, actions, step.terminations, cut, step.game_overs, step.real_next_obs))
        obs = step.obs


def check_samples(buffer, truth, oldest: int, lost=()):
    """Exactly the transitions that may be sampled are, and each of them is what happened."""
    batches = [buffer.sample(400, torch.Generator().manual_seed(k), CPU) for k in range(12)]
    obs, next_obs, actions, rewards, terminations = (torch.cat(x).numpy() for x in zip(*batches))
    seen = {}
    for k, number in enumerate(rewards.astype(int)):
        seen[int(number)] = k
    num_envs = len(truth[0][1])
    rows = {
        n: (*(column[n % num_envs] for column in truth[n // num_envs]),)
        for n in range(num_envs * len(truth))
    }
    may = {n for n, row in rows.items() if oldest <= n // num_envs < len(truth) - 1 and not row[3]}
    assert {*seen} == may - {t * num_envs + i for t, i in itertools.product(lost, range(num_envs))}
    counts = {"over": 0, "life": 0}
    for number, k in seen.items():
        true_obs, action, termination, _, over, real_next_obs = rows[number]
        assert np.array_equal(obs[k], true_obs)
        assert actions[k] == action
        assert terminations[k] == termination
        if not over:  # else it terminated, and its successor does not count
            assert np.array_equal(next_obs[k], real_next_obs)
        else:
            assert terminations[k] == 1
        counts["over"] += over
        counts["life"] += termination and not over
    return counts


@pytest.mark.parametrize("num_envs", [1, 3])
def test_stored_transitions_match_what_happened(num_envs, tmp_path):
    rng = np.random.default_rng(1)
    truth = []
    path = tmp_path / "replay.dat"
    games = make_breakout(num_envs, max_num_frames_per_episode=500)
    buffer = ReplayBuffer(path, 200 * num_envs, 20 * num_envs, num_envs)
    collect(buffer, games, games.reset(1, "games", 0), 190, rng, truth)
    counts = check_samples(buffer, truth, 0)
    assert counts["life"] > 0 and any(row[3].any() for row in truth)
    collect(buffer, games, games.reset(1, "games", 1), 0, rng, truth)
    size = path.stat().st_size
    assert size == buffer.rows.nbytes and buffer.num_rows == 200 + 20 + 8
    # a run that goes back to 180 rows: the last of them has lost its successor;
    # new games begin; the ring wraps
    buffer.rows.flush()
    buffer = ReplayBuffer(path, 200 * num_envs, 20 * num_envs, num_envs, num_added=180)
    del truth[180:]
    collect(buffer, games, games.reset(1, "games", 180), 150, rng, truth)
    counts = check_samples(buffer, truth, 130, lost=[179])
    assert counts["life"] + counts["over"] > 0
    assert path.stat().st_size == size


def test_the_replay_of_a_checkpoint_survives_until_there_are_two_newer_ones(tmp_path):
    rng = np.random.default_rng(2)
    truth = []
    path = tmp_path / "replay.dat"
    games = make_breakout(2, max_num_frames_per_episode=300)
    buffer = ReplayBuffer(path, 100, 2 * 30, 2)  # a checkpoint every 30 transitions, 15 rows
    collect(buffer, games, games.reset(3, "games", 0), 90, rng, truth)
    kept = truth[:90]
    # two checkpoints on: the previous one
    collect(buffer, games, games.reset(3, "games", 0), 2 * 15 + 1, rng, truth)
    buffer.rows.flush()
    again = ReplayBuffer(path, 100, 2 * 30, 2, num_added=90)
    check_samples(again, kept, 40)


def test_a_mismatched_or_missing_replay_is_refused(tmp_path):
    path = tmp_path / "replay.dat"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(runlog.UserError, match=r"cannot write .*replay.dat.*free some space"):
            ReplayBuffer(path, 1_000, 20, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for content in (None, b"short"):
        path.unlink(missing_ok=True)
        if content:
            path.write_bytes(content)
        with pytest.raises(runlog.UserError, match=r"missing or too short.*--fresh"):
            ReplayBuffer(path, 100, 20, 1, num_added=50)


def test_a_million_transitions_take_less_than_seven_and_a_half_gigabytes():
    args = dqn_atari.Args()
    assert args.buffer_size == 1_000_000  # a row: frame, action, reward, 3 flags
    assert (args.buffer_size + 2 * args.checkpoint_frequency + 8) * (84 * 84 + 1 + 4 + 3) < 7.5e9


@pytest.mark.parametrize("script", [ppo_atari, pqn_atari])
def test_the_number_of_games_to_evaluate_is_no_part_of_a_run(script, tmp_path):
    """PPO and PQN play that many games in --evaluate only; DQN evaluates while it trains."""
    names = set()
    for number in (8, 2):
        (run,) = script.runs_of(script.Args(runs_dir=str(tmp_path), num_eval_episodes=number))
        names.add(run.folder.name)
    assert len(names) == 1
    runs = [dqn_atari.runs_of(dqn_atari.Args(num_eval_episodes=number))[0] for number in (8, 2)]
    assert runs[0].folder != runs[1].folder


@pytest.mark.parametrize("script", [dqn_atari, ppo_atari, pqn_atari])
def test_a_run_that_diverged_before_its_first_checkpoint_is_not_evaluated(script, tmp_path):
    args = script.Args(runs_dir=str(tmp_path), device="cpu")
    run = script.runs_of(script.validate(args))[0].open(tensorboard=False)
    run.finish("diverged", step=5)
    with pytest.raises(runlog.UserError, match="is diverged; train it to the end first"):
        script.main(dataclasses.replace(args, evaluate=True))


@pytest.mark.parametrize("script", [dqn_atari, ppo_atari, pqn_atari])
def test_networks_that_are_not_finite_are_not_evaluated(script, tmp_path):
    args = script.Args(runs_dir=str(tmp_path), device="cpu")
    run = script.runs_of(script.validate(args))[0].open(tensorboard=False)
    run.save_checkpoint(5, {"network": {"weight": [torch.tensor([1.0, float("nan")])]}})
    run.finish("diverged", step=5)
    with pytest.raises(runlog.UserError, match="has diverged; its networks are no longer finite"):
        script.main(dataclasses.replace(args, evaluate=True))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("BreakoutNoFrameskip-v4", "is called Breakout here, .*; use --env-id Breakout$"),
        ("ALE/Breakout-ram-v5", "is called Breakout here"),
        ("ms_pacman", "unknown; did you mean MsPacman"),
        ("mspacman", "is called MsPacman here"),
        ("Pendulum-v1", "is not an Atari game; .* sac_continuous.py"),
        ("dm_control/cheetah-run-v0", "is not an Atari game; .* sac_continuous.py"),
    ],
)
def test_ids_that_name_no_game_are_refused_with_the_reason(env_id, message):
    with pytest.raises(runlog.UserError, match=f"^--env-id {env_id}: {message}"):
        atari_game(env_id)
