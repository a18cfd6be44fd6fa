"""benchmarks/atari_peers.py: other libraries play our games, in turns."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pqn_atari
import runlog
from benchmarks import atari_peers
from benchmarks.peers import sb3
from benchmarks.peers.for_cleanrl import envpool
from environments.atari import AtariGames

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "atari_peers.py")]

# As CleanRL's pqn_atari_envpool.py uses its games; writes down its flags and how far it is.
CLEANRL = """
import sys
from pathlib import Path
import envpool, gym, numpy as np, torch

NUM_ENVS = int(sys.argv[sys.argv.index("--num-envs") + 1])
folder = Path(__file__).parent
envs = envpool.make("Breakout-v5", env_type="gym", num_envs=NUM_ENVS, episodic_life=True,
                    reward_clip=True, seed=1)
envs.num_envs = NUM_ENVS
envs.single_action_space = envs.action_space
envs = gym.Wrapper(envs)
assert isinstance(envs.action_space, gym.spaces.Discrete)
print("not an answer")
(folder / "flags").write_text(" ".join(sys.argv[1:]))
torch.Tensor(envs.reset())
number = 0
while True:
    actions = torch.randint(0, envs.single_action_space.n, (NUM_ENVS,))
    next_obs, reward, next_done, info = envs.step(actions.cpu().numpy())
    torch.tensor(reward).view(-1), torch.Tensor(next_obs), torch.Tensor(next_done)
    number += 1
    (folder / "steps").write_text(str(number))
"""


def make_space_invaders(num_envs: int, **options) -> AtariGames:
    return AtariGames("SpaceInvaders", num_envs, num_threads=1, **options)


def test_the_envpool_stand_in_plays_our_games():
    envs = envpool.make(
        "SpaceInvaders-v5",
        env_type="gym",
        num_envs=3,
        episodic_life=True,
        reward_clip=True,
        seed=5,
    )
    games = make_space_invaders(3)
    assert envs.action_space.n == games.num_actions
    assert envs.action_space.shape == ()
    obs = envs.reset()
    assert np.array_equal(obs, games.reset(5, "games", 0))
    assert envs.observation_space.shape == obs.shape[1:]

    rng = np.random.default_rng(0)
    returns = np.zeros(3, np.float32)  # as CleanRL sums them
    lives_before = np.full(3, 3)
    num_games = 0
    num_lost_lives = 0
    while num_games < 2:
        actions = rng.integers(games.num_actions, size=3)
        obs, rewards, dones, info = envs.step(actions)
        step = games.step(actions)
        assert np.array_equal(obs, step.obs)
        assert np.array_equal(info["reward"], step.rewards)
        assert np.array_equal(rewards, np.sign(step.rewards))
        assert np.array_equal(dones, step.terminations | step.truncations)
        assert np.array_equal(dones, info["lives"] < lives_before)

        returns += info["reward"]
        ended = np.flatnonzero(dones & (info["lives"] == 0))
        assert {int(i): returns[i] for i in ended} == {g.env: g.total for g in step.games}
        returns *= 1 - info["terminated"]
        num_games += len(ended)
        num_lost_lives += dones.sum()
        lives_before = np.where(info["lives"] == 0, 3, info["lives"])
    assert num_lost_lives >= 3 * 2
    assert info["reward"].dtype == rewards.dtype == np.float32


def test_the_time_limit_ends_a_game_for_cleanrl():
    games = make_space_invaders(2, max_num_frames_per_episode=100)
    envs = envpool.Games(games, seed=1, reward_clip=True)
    envs.reset()
    num_cut = 0
    for _ in range(60):
        _, _, dones, info = envs.step(np.zeros(2, int))
        is_over = info["terminated"].astype(bool)
        assert dones[is_over].all()
        assert not info["lives"][is_over].any()
        num_cut += is_over.sum()
    assert num_cut >= 4


def test_the_envpool_stand_in_refuses_unsupported_options():
    flags = {"num_envs": 1, "reward_clip": True, "seed": 1}
    with pytest.raises(ValueError, match="episodic_life"):
        envpool.make("Breakout-v5", env_type="gym", episodic_life=False, **flags)
    with pytest.raises(ValueError, match="env_type"):
        envpool.make("Breakout-v5", env_type="dm", episodic_life=True, **flags)


def test_stable_baselines_plays_our_games():
    envs = sb3.Adapter(make_space_invaders(2, max_num_frames_per_episode=100))
    games = make_space_invaders(2, max_num_frames_per_episode=100)
    assert np.array_equal(envs.reset(), games.reset(1, "games", 0))
    rng = np.random.default_rng(0)
    num_cut = 0
    for _ in range(60):
        actions = rng.integers(games.num_actions, size=2)
        obs, rewards, dones, infos = envs.step(actions)
        step = games.step(actions)
        assert np.array_equal(obs, step.obs)
        assert np.array_equal(rewards, np.sign(step.rewards))
        assert np.array_equal(dones, step.terminations | step.truncations)
        for i in np.flatnonzero(dones):
            assert np.array_equal(infos[i]["terminal_observation"], step.real_next_obs[i])
            is_cut = step.truncations[i] and not step.terminations[i]
            assert infos[i]["TimeLimit.truncated"] == is_cut
            num_cut += is_cut
    assert num_cut >= 4


def test_medians_are_taken_over_rounds():
    def turn(seconds: float) -> dict:
        played = {"steps": 100, "seconds": seconds, "cpu_seconds": 2 * seconds}
        return played | {"idle_seconds": 10.0, "idle_cpu_seconds": 0.5}

    turns = {
        "ours": [turn(1.0), turn(2.0), turn(4.0)],
        "sb3": [turn(2.0), turn(3.0), turn(16.0)],
    }
    about = {"ours": {"versions": {"torch": "2"}}, "sb3": {"versions": {}}}
    found = atari_peers.summarise(turns, about)
    assert found["ours"]["steps_per_second"] == 50
    assert found["sb3"]["steps_per_second"] == pytest.approx(100 / 3)
    assert found["ours"]["ours_over_it"] == 1
    assert found["sb3"]["ratios"] == pytest.approx([2, 1.5, 4])
    assert found["sb3"]["ours_over_it"] == pytest.approx(2)
    assert found["ours"]["cpu_ms_per_step"] == pytest.approx(40)
    assert found["sb3"]["idle_cpu"] == pytest.approx(0.05)
    assert found["ours"]["versions"] == {"torch": "2"}


def test_cleanrl_gets_our_hyperparameters():
    words = atari_peers.cleanrl_flags(atari_peers.Args(), pqn_atari.Args())
    command = " ".join(words)
    for flag in ("--num-envs 128", "--num-steps 32", "--num-minibatches 32", "--update-epochs 2"):
        assert flag in command
    assert words[-1] == "--no-cuda"


def test_a_variant_that_exits_is_reported_in_one_line(tmp_path, capfd):
    command = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    variant = atari_peers.Variant("jax", command, {}, tmp_path)
    with pytest.raises(runlog.UserError, match="jax has ended with exit code 1: no such thing"):
        variant.play(4)
    variant.end()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cleanrl", "nowhere.py"], "--cleanrl nowhere.py: no such file; download https://"),
        (["--jax", "no-python"], "--jax no-python: no such program"),
        (["--rounds", "0"], "--rounds 0: must lie in [1, inf)"),
    ],
)
def test_mistakes_are_reported_in_one_line(flags, message):
    with pytest.raises(runlog.UserError) as error:
        atari_peers.validate(runlog.parse_args(atari_peers.Args, flags))
    assert str(error.value).startswith(message)


def test_a_turn_has_whole_iterations(tmp_path):
    args = atari_peers.Args(turn_steps=100)
    with pytest.raises(runlog.UserError, match="--turn-steps 100: must be a multiple of 1024, "):
        atari_peers.measure(args, "ppo", tmp_path)
    assert not list(tmp_path.iterdir())


def test_end_to_end(tmp_path):
    """Ours beside a stand-in for CleanRL's script: 4 games, 4 steps, one turn of an iteration."""
    script = tmp_path / "pqn_atari_envpool.py"
    script.write_text(CLEANRL)
    out = tmp_path / "peers.json"
    flags = ["--algorithms", "pqn", "--quick", "--no-compile", "--rounds", "1", "--threads", "1"]
    done = subprocess.run(
        [*COMMAND, *flags, "--env-threads", "1", "--cleanrl", script, "--out", out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    result = report["results"]["pqn"]
    assert result["turn_steps"] == 16
    assert [*result["variants"]] == ["ours", "cleanrl"]
    for numbers in result["variants"].values():
        (turn,) = numbers["turns"]
        assert turn["steps"] == 16
        assert numbers["steps_per_second"] == pytest.approx(16 / turn["seconds"])
        assert numbers["threads"] == 1
        assert 0 < turn["cpu_seconds"] < 4 * turn["seconds"] + 0.1
    assert "| pqn | cleanrl | " in done.stdout
    assert "not an answer" not in done.stdout
    assert "--num-envs 4 --num-steps 4" in (tmp_path / "flags").read_text()
    assert (tmp_path / "steps").read_text() == "12"  # two iterations to warm up, and the turn
    assert report["versions"]["torch"]
