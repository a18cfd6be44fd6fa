"""Tiny runs of the Atari scripts: what they write,
that they repeat, resume after a kill, and refuse wrong commands.

`pytest -q tests/test_atari_runs.py` (about 60 s).
"""

import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
import torch._dynamo  # torch.compile imports it: here once for all processes
from ale_py import vector_env

import dqn_atari
import figures
import ppo_atari
import pqn_atari
import runlog
from environments import atari
from environments.atari import FinishedGame, GameStep

MODULES = {"dqn_atari": dqn_atari, "ppo_atari": ppo_atari, "pqn_atari": pqn_atari}
ALL = (
    "--no-compile --no-tensorboard --device cpu --threads 1 --env-threads 1 --width 8 "
    "--metrics-samples 16 --seed 3"
)
ROLLOUTS = (
    "--num-envs 2 --num-steps 8 --num-minibatches 2 --update-epochs 2 --total-timesteps 320 "
    "--log-frequency 32"
)
ROLLOUTS += (
    " --metrics-frequency 200 --checkpoint-frequency 32 --redo --redo-period 30 "
    "--num-eval-episodes 1"
)
DQN = (
    "--num-envs 2 --total-timesteps 320 --learning-starts 40 --batch-size 4 --target-frequency 20 "
    "--log-frequency 40"
)
DQN += (
    " --metrics-frequency 200 --checkpoint-frequency 20 --redo --redo-period 20 "
    "--num-eval-episodes 1 --analyse"
)
DQN += " --eval-frequency 160 --buffer-size 100 --exploration-steps 200"
TINY = {
    "dqn_atari": DQN,
    "ppo_atari": ROLLOUTS,
    "pqn_atari": f"{ROLLOUTS} --num-test-envs 1 --eval-frequency 160",
}


def command(script, folder, flags: str = "") -> list[str]:
    return [*ALL.split(), *TINY[script].split(), "--runs-dir", str(folder), *flags.split()]


def run(script, folder, flags: str = "") -> list[str]:
    """Runs the command in this process; rows of scalars.csv without the time column."""
    MODULES[script].main(runlog.parse_args(MODULES[script].Args, command(script, folder, flags)))
    return scalars(folder)


def scalars(folder) -> list[str]:
    (file,) = folder.glob("*/scalars.csv")
    return [line.rsplit(",", 1)[0] for line in file.read_text().splitlines()[1:]]


def steps_of(rows: list[str]) -> dict[str, list[int]]:
    found = {}
    for step, key, value in (row.split(",") for row in rows):
        assert math.isfinite(float(value)) or key.startswith("network/"), (key, value)
        found.setdefault(key, []).append(int(step))
    return found


@pytest.fixture
def short_games(monkeypatch):
    short = functools.partial(vector_env.AtariVectorEnv, max_num_frames_per_episode=120)
    monkeypatch.setattr(vector_env, "AtariVectorEnv", short)


LOSSES = {
    "dqn_atari": ["td_loss", "q_mean"],
    "pqn_atari": ["td_loss", "q_mean", "gradient_norm"],
    "ppo_atari": [
        "policy_loss",
        "value_loss",
        "entropy",
        "approx_kl",
        "clip_share",
        "value_mean",
        "gradient_norm",
    ],
}
LOSSES["ppo_atari"] += ["explained_variance"]


@pytest.mark.parametrize("script", TINY)
def test_a_run_from_the_first_step_to_the_video(script, short_games, tmp_path, capfd):
    flags = "--activation tanh_hr --env-id ALE/SpaceInvaders-v5"
    rows = run(script, tmp_path / "a", flags)
    (folder,) = (tmp_path / "a").iterdir()
    found = steps_of(rows)
    assert folder.name.startswith(f"SpaceInvaders__{script}__tanh_hr__s3__")
    period, network = (
        (40, "q") if script == "dqn_atari" else (32, "agent" if script == "ppo_atari" else "q")
    )
    measured = 200 if script == "dqn_atari" else 208  # the first end of an iteration from 200 on
    for name in LOSSES[script]:
        first = 80 if script == "dqn_atari" else 32
        assert found[f"losses/{name}"] == list(range(first, 321, period))
    if script != "ppo_atari":
        assert len(found["charts/epsilon"]) == 320 // period
        assert found["eval/episodic_return"][-1] == 320
    ends = [30 * 2, 60 * 2, 90 * 2, 120 * 2, 150 * 2]  # games of 30 steps, in two environments
    assert sorted({*found["charts/episodic_length"]}) == ends
    assert len(found["charts/episodic_return"]) == 10
    for layer in ("conv1", "conv2", "conv3", "fc1"):
        for name in (
            "dead_share",
            "dead_share_std",
            "dormant_share",
            "srank",
            "weight_norm",
            "gradient_norm",
        ):
            assert found[f"network/{network}/{layer}/{name}"] == [measured]
    assert found[f"network/{network}/fc1/branch1_dead_share"] == [measured]
    assert ("q_split/dead" in found) == (script == "dqn_atari") and found["redo/recycled_share"]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["status"] == "finished" and not (folder / "replay.dat").exists()
    plots = {path.name for path in (folder / "plots").iterdir()}
    # tanh_hr and relu learn no shape of their own: no picture of activation functions
    expected = {"kde.png", "preactivations.png"}
    assert plots == (expected | {"q_split.png"} if script == "dqn_atari" else expected)
    # without metrics: bit for bit the same
    others = run(script, tmp_path / "b", f"{flags} --metrics-frequency 0")
    assert others == [row for row in rows if ",network/" not in row and ",q_split/" not in row]
    # again, and played
    capfd.readouterr()
    run(script, tmp_path / "a", flags)
    assert "finished already (--fresh starts it over)" in capfd.readouterr().out
    run(script, tmp_path / "a", f"{flags} --evaluate")
    printed = capfd.readouterr().out
    (video,) = (folder / "videos").glob("*.mp4")
    assert printed.count("\n") == 1
    assert "seed 3: return" in printed
    assert str(video) in printed
    assert video.stat().st_size > 500
    run(script, tmp_path / "a", f"{flags} --print-network")
    assert "total" in capfd.readouterr().out and scalars(tmp_path / "a") == rows


OPTIONS = {
    "dqn_atari": [
        "--no-double-q --no-clip-rewards --num-envs 4 --train-frequency 2 --layer-norm chw "
        "--keep-replay"
    ],
    "ppo_atari": [
        "--no-clip-value-loss --target-kl 1e-9 --no-normalize-advantages --activation rational+tanh"
    ],
    "pqn_atari": [
        "--activation crational --rational.share-across-layers --encoder-activation relu relu crelu"
    ],
}


class FakeGames:
    """Observations depend on nothing but the time,
    so that a resumed run sees what an undisturbed one sees."""

    def __init__(self, args, num_envs, **kwargs):
        self.args = args
        self.num_envs = num_envs
        self.num_actions = 4

    def frame(self, t: int) -> np.ndarray:
        return np.random.default_rng(t).integers(
            0, 256, (self.num_envs, 84, 84), dtype=np.uint8
        ) * np.uint8(t > 0)

    def observe(self) -> np.ndarray:
        return np.stack([self.frame(max(t, 0)) for t in range(self.t - 3, self.t + 1)], 1)

    def reset(self, seed, *keys):
        self.t = keys[1] // self.args.num_envs if keys[0] == "games" else 0
        return self.observe()

    def step(self, actions):
        self.t += 1
        which = np.arange(self.num_envs)
        terminations = (self.t + which) % 7 == 0
        truncations = (self.t + which) % 9 == 0
        games = []
        if self.t % 20 == 0:
            games = [FinishedGame(int(i), float(self.t + i), self.t + int(i)) for i in which]
        obs = self.observe()
        rewards = np.where(actions == self.t % 4, 1.0, 0.0)
        return GameStep(obs, rewards, terminations, truncations & ~terminations, obs // 2, games)


def play_once(games, policy, obs, num_training: int) -> np.ndarray:
    """In place of `atari.desynchronise`: asks for actions, and does not take them. The policy
    must leave no trace in the training, which must go on from the observations returned."""
    assert policy(obs).shape == (games.num_envs,) and num_training == games.args.num_envs
    returned = obs.copy()
    obs[:] = 0
    return returned


class UnmarkedReplay(dqn_atari.ReplayBuffer):
    """Resumes as if no game had been interrupted, which is true for the fake ones."""

    def lose_running_games(self):
        pass


def fake(monkeypatch):
    for module in MODULES.values():
        monkeypatch.setattr(module, "make_games", FakeGames)
    monkeypatch.setattr(dqn_atari, "ReplayBuffer", UnmarkedReplay)
    monkeypatch.setattr(atari, "desynchronise", play_once)
    monkeypatch.setattr(figures, "draw_run", lambda folder: [])  # other tests draw


def child(script, argv, log):
    """Runs the script's main on fake games, in a separate process."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    fake(pytest.MonkeyPatch())
    with runlog.exit_on_user_error():
        MODULES[script].main(runlog.parse_args(MODULES[script].Args, argv))


@pytest.mark.parametrize("script", TINY)
def test_a_killed_run_ends_with_the_same_scalars_and_networks(script, tmp_path, monkeypatch):
    fake(monkeypatch)
    undisturbed = run(script, tmp_path / "a")
    assert len({*undisturbed}) == len(undisturbed)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.path.dirname(__file__)]))
    context = multiprocessing.get_context("forkserver")
    rng = random.Random(0)
    context.set_forkserver_preload(["test_atari_runs"])
    for kill in range(4):
        process = context.Process(
            target=child, args=(script, command(script, tmp_path / "b"), str(tmp_path / "log"))
        )
        files = functools.partial(
            lambda: [p.stat().st_mtime_ns for p in (tmp_path / "b").glob("*/checkpoint.pt")]
        )
        before = files()
        process.start()
        while kill < 3 and files() == before and process.is_alive():
            time.sleep(0.002)
        if kill < 3:
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if kill < 3 else 0), (
            tmp_path / "log"
        ).read_text()
    assert scalars(tmp_path / "b") == undisturbed
    (meta,) = (tmp_path / "b").glob("*/meta.json")
    sessions = json.loads(meta.read_text())["sessions"]
    assert len(sessions) == 4 and all(session["from_step"] > 0 for session in sessions[1:])
    first, last = (
        runlog.storage.load_pt(next(tmp_path.glob(f"{x}/*/checkpoint.pt")))["state"] for x in "ab"
    )
    assert first.keys() == last.keys() and first["num_updates"] == last["num_updates"] > 20
    torch.testing.assert_close(first, last, rtol=0, atol=0)


@pytest.mark.parametrize("script", ["ppo_atari", "pqn_atari"])
def test_a_resumed_run_learns_from_desynchronised_games(script, tmp_path, monkeypatch):
    """The games themselves, Breakout: their lengths so far, before the first step of the session
    that counts."""
    lengths = []
    desynchronise = atari.desynchronise

    def note_lengths(games, policy, obs, num_training):
        assert not games.lengths.any()
        obs = desynchronise(games, policy, obs, num_training)
        lengths.append(games.lengths[:num_training].tolist())
        return obs

    def stop(run, step, draw_plots):
        raise KeyboardInterrupt

    monkeypatch.setattr(atari, "desynchronise", note_lengths)
    with monkeypatch.context() as patch:
        patch.setattr(runlog.Run, "draw", stop)
        with pytest.raises(KeyboardInterrupt):
            run(script, tmp_path, "--num-envs 8 --num-steps 2")
    assert lengths == []
    monkeypatch.setattr(runlog.Run, "draw", lambda run, step, draw_plots: None)
    run(script, tmp_path, "--num-envs 8 --num-steps 2")
    (of_training,) = lengths
    assert min(of_training) == 0  # a game that has ended last
    assert len(set(of_training)) >= 6


@pytest.mark.parametrize("script", ["ppo_atari", "pqn_atari"])
def test_a_run_killed_after_its_last_save_plays_no_more_games(script, tmp_path, monkeypatch):
    def stop_at_the_end(run, step, draw_plots):
        if step == 320:
            raise KeyboardInterrupt

    def desynchronise(*args):
        raise AssertionError("there is nothing left to learn")

    fake(monkeypatch)
    monkeypatch.setattr(atari, "desynchronise", desynchronise)
    with monkeypatch.context() as patch:
        patch.setattr(runlog.Run, "draw", stop_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            run(script, tmp_path)
    (meta,) = tmp_path.glob("*/meta.json")
    assert json.loads(meta.read_text())["status"] != "finished"
    run(script, tmp_path)
    assert json.loads(meta.read_text())["status"] == "finished"


CASES = []
for name, options in OPTIONS.items():
    CASES += [(name, flags) for flags in options]


@pytest.mark.parametrize(("script", "flags"), CASES)
def test_options_run_and_a_diverged_run_is_reported(script, flags, tmp_path, monkeypatch):
    fake(monkeypatch)
    found = steps_of(run(script, tmp_path / "a", flags))
    assert found[f"losses/{LOSSES[script][0]}"][-1] == 320
    assert bool([*(tmp_path / "a").glob("*/replay.dat")]) == ("--keep-replay" in flags)
    run(script, tmp_path / "b", "--learning-rate 1e30 --metrics-frequency 0 --no-redo")
    (meta,) = (tmp_path / "b").glob("*/meta.json")
    meta = json.loads(meta.read_text())
    assert meta["status"] == "diverged" and 0 < meta["step"] <= 320
    assert not [*(tmp_path / "b").glob("*/replay.dat")]


@pytest.mark.parametrize(
    ("flags", "diverged_at", "evaluated"),
    [
        # found at the end, at the evaluation at 60, at 90 after the checkpoint at 80
        ("--log-frequency 90 --eval-frequency 1000 --learning-starts 90", 96, "step 80, which is"),
        ("--log-frequency 1000 --eval-frequency 60", 48, "step 40, which is evaluated"),
        ("--log-frequency 90 --eval-frequency 1000", 48, "networks are no longer finite"),
    ],
)
def test_dqn_diverges_at_the_step_of_its_loss(flags, diverged_at, evaluated, tmp_path, capsys):
    """The first update makes the weights 1e30, so the loss of the second one, four steps later,
    overflows."""
    flags += " --learning-rate 1e30 --total-timesteps 100 --metrics-frequency 0 --no-redo"
    found = steps_of(run("dqn_atari", tmp_path, flags))
    (folder,) = tmp_path.iterdir()
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["status"], meta["step"]) == ("diverged", diverged_at)
    assert "eval/episodic_return" not in found
    capsys.readouterr()
    with contextlib.suppress(SystemExit), runlog.exit_on_user_error():
        run("dqn_atari", tmp_path, f"{flags} --evaluate")
    err = capsys.readouterr().err
    assert "has diverged" in err and evaluated in err


@pytest.mark.parametrize(("num_envs", "crossed"), [(1, 60), (2, 60), (16, 64), (32, 64)])
def test_dqn_numbers_its_evaluations(num_envs, crossed, tmp_path, monkeypatch):
    """Also where several parallel games step over the multiples of 60."""
    indices = {}

    def evaluate(args, network, index):
        indices[index] = indices.get(index, 0) + 1
        return {"eval/episodic_return": 0.0}

    monkeypatch.setattr(dqn_atari, "evaluate", evaluate)
    flags = f"--num-envs {num_envs} --eval-frequency 60 --learning-starts 300 --train-frequency 32"
    found = steps_of(run("dqn_atari", tmp_path, f"{flags} --metrics-frequency 0"))
    assert indices == dict.fromkeys(range(1, 6), 1)
    assert found["eval/episodic_return"][0] == crossed


BAD = {
    "--env-id Brekout": ["--env-id Brekout", "Breakout"],
    "--env-id ALE/Pongg-v5": ["Pongg", "Pong"],
    "--activation tahn_hr": ["--activation 'tahn_hr'", "tanh_hr"],
    "--encoder-activation relu relu": ["--encoder-activation relu relu", "give one name, or three"],
    "--encoder-activation rellu": ["--encoder-activation 'rellu'", "relu"],
    "--width 0": ["--width 0", "[1, inf)"],
    "--gamma 1.1": ["--gamma 1.1", "[0, 1]"],
    "--repeat-action-probability 2": ["--repeat-action-probability 2", "[0, 1]"],
    "--layer-norm yes": ["--layer-norm", "yes"],
    "--learning-rate 0": ["--learning-rate 0", "(0, inf)"],
    "--metrics-samples 1": ["--metrics-samples 1", "[2, inf)"],
    "--device cuda:99": ["--device cuda:99", "use cpu or auto"],
    "--evaluate": ["--evaluate", "does not exist", "give the flags of a finished training"],
    "--redo-period 0": ["--redo-period 0", "[1, inf)"],
}
OWN_BAD = {
    "dqn_atari --num-envs 3": ["--num-envs 3", "must divide --train-frequency 4"],
    "dqn_atari --learning-starts 5": ["--learning-starts 5", "[6, inf)"],
    "dqn_atari --buffer-size 5": ["--buffer-size 5", "[6, inf)"],
    "dqn_atari --checkpoint-frequency 1000000000": [
        "--checkpoint-frequency 1000000000: ",
        "of disk",
        "a smaller --buffer-size or --checkpoint-frequency",
    ],
    "dqn_atari --final-epsilon 2": ["--final-epsilon 2", "[0, 1]"],
    "ppo_atari --num-minibatches 5": ["--num-minibatches 5", "must divide", "= 16"],
    "ppo_atari --num-minibatches 16": ["--num-minibatches 16", "--no-normalize-advantages"],
    "ppo_atari --clip-coefficient 1e300": ["--clip-coefficient 1e+300", "(0, 1e6]"],
    "ppo_atari --target-kl 0": ["--target-kl 0", "(0, inf)"],
    "ppo_atari --total-timesteps 8": ["--total-timesteps 8", "[16, inf)"],
    "pqn_atari --num-minibatches 3": ["--num-minibatches 3", "must divide", "= 16"],
    "pqn_atari --q-lambda -1": ["--q-lambda -1", "[0, 1]"],
    "pqn_atari --exploration-fraction 0": ["--exploration-fraction 0", "(0, inf)"],
}
WRONG = {
    f"{script} {flags}": words for script, (flags, words) in itertools.product(TINY, BAD.items())
} | OWN_BAD


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_ends_in_one_line_and_creates_nothing(line, tmp_path, capfd):
    script, _, flags = line.partition(" ")
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        run(script, tmp_path / "runs", flags)
    out, err = capfd.readouterr()
    assert (
        stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    ), err
    assert all(word in err for word in WRONG[line]), err
    assert os.listdir(tmp_path) == []
