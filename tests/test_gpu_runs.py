"""Whole runs of SAC and TD3: with CUDA graphs, killed and resumed, next to another on the same GPU,
and played on the CPU.

`make test-gpu` where there is a GPU (about a minute); `pytest -q tests/test_gpu_runs.py -m "not
gpu"` runs the same bodies on the CPU (about a minute), where a stand-in takes the graph's place.
The kernels of SAC add in a fixed order, so that a run repeats bit for bit, on a GPU too, as long as
it takes the same kernels.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import CPU_AND_CUDA, CUDA_MARKS, replay_without_a_gpu

import environments
import runlog
import sac_continuous
import td3_continuous
from runlog import meta

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 48
STOP = 20  # where runs are interrupted
TINY = "--env-id dm_control/cartpole-balance-v0 --no-tensorboard --threads 1 --widths 8 8"
TINY += " --batch-size 16 --utd 4 --policy-frequency 2 --learning-starts 8"
TINY += f" --total-timesteps {TOTAL} --checkpoint-frequency {STOP} --checkpoint-minutes 0"
TINY += " --eval-frequency 1000 --num-eval-episodes 1 --log-frequency 1 --metrics-frequency 48"
TINY += " --metrics-samples 32 --ntk-frequency 0 --activation crational --learning-rate 1e-3"
Rows = dict[tuple[str, int, str], float]


def command(folder: Path, flags: str) -> list[str]:
    return [*TINY.split(), "--runs-dir", str(folder), *flags.split()]


def run(folder: Path, flags: str, script=sac_continuous) -> Rows:
    """Runs the command in this process."""
    script.main(runlog.parse_args(script.Args, command(folder, flags)))
    return read_rows(folder)


def read_rows(folder: Path) -> Rows:
    """(seed, step, key) -> value of all runs in a folder."""
    rows = {}
    for file in sorted(folder.glob("*/scalars.csv")):
        seed = file.parent.name.split("__")[3]
        for line in file.read_text().splitlines()[1:]:
            step, key, value, _ = line.split(",")
            rows[seed, int(step), key] = float(value)
    return rows


def assert_same(found: Rows, expected: Rows, exact: bool = True) -> None:
    """Rows are equal, otherwise reports how far apart they are. Not exact: to within 1e-3 of the
    value."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:5]
    assert any("losses/actor_loss" in key for key in expected), "no updates"
    differences = {}
    for key, value in expected.items():
        if found[key] != value and not (math.isnan(found[key]) and math.isnan(value)):
            differences[key] = abs(found[key] - value) / max(abs(value), 1e-3)
    if not differences:
        return
    worst = max(differences, key=differences.get)
    first = min(differences, key=lambda key: key[1])
    message = f"{len(differences)} of {len(expected)} rows differ, first {first}, "
    message += f"most {worst} by {differences[worst]:.2g}"
    assert not exact and differences[worst] < 1e-3, message


@pytest.fixture(autouse=True)
def no_evaluation_and_no_plots(monkeypatch):
    """An episode has 1,000 steps, and plots take seconds."""

    def play(tasks, act, first, number):
        return [[{"eval/episodic_return": 1.0} for _ in tasks.seeds]]

    monkeypatch.setattr(environments.TaskSequence, "evaluate", play)
    monkeypatch.setattr(
        sac_continuous, "q_bias", lambda agent, envs, seeds, index: [{}] * len(seeds)
    )
    monkeypatch.setattr(td3_continuous, "q_bias", lambda agent, envs, index: [{}] * envs.num_envs)
    monkeypatch.setattr(runlog.Batch, "draw", lambda batch, step, draw_plots: None)


# ---- --cudagraphs --------------------------------------------------------------------------------


def diverge_at(step: int):
    """ReplayBuffer.add whose second seed gets an infinite reward at this step."""
    add = sac_continuous.ReplayBuffer.add

    def poisoned(buffer, obs, actions, rewards, *rest):
        rewards = np.array(rewards, dtype=float)
        if buffer.num_added + 1 == step:
            rewards[1] = np.inf
        add(buffer, obs, actions, rewards, *rest)

    return poisoned


def stop_here(batch, step, draw_plots):
    if step == STOP:
        raise KeyboardInterrupt


CASES = ["seeds", "resume", "divergence"]
DEVICES = [
    ("cpu", "--no-compile"),
    pytest.param("cuda", "--no-compile", marks=CUDA_MARKS),
    pytest.param("cuda", "--compile", marks=CUDA_MARKS),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device, compiled", DEVICES)
def test_cudagraphs_do_not_change_training(device, compiled, case, tmp_path, monkeypatch):
    if compiled == "--compile" and case != "seeds":
        pytest.skip("the compiled update is captured in one test: it takes half a minute")
    flags = f"--device {device} {compiled} --num-seeds 3"
    if case == "divergence":
        monkeypatch.setattr(sac_continuous.ReplayBuffer, "add", diverge_at(30))
    rows = run(tmp_path / "without", f"{flags} --no-cudagraphs")
    recordings = replay_without_a_gpu(monkeypatch) if device == "cpu" else []
    if case == "resume":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runlog.Batch, "draw", stop_here)
            run(tmp_path / "with", f"{flags} --cudagraphs")
    graphed_rows = run(tmp_path / "with", f"{flags} --cudagraphs")
    if device == "cpu":
        assert recordings[-1].num_warm_ups == 3
        assert recordings[-1].num_replays == TOTAL - (STOP if case == "resume" else 7) - 3
    lost = {seed for (seed, _, key), value in rows.items() if "loss" in key and math.isnan(value)}
    ends = [meta.read_meta(folder)["status"] for folder in sorted((tmp_path / "with").iterdir())]
    assert ends == ["finished", "diverged" if case == "divergence" else "finished", "finished"], (
        ends
    )
    assert not lost
    assert_same(graphed_rows, rows, exact=device == "cpu")


@pytest.mark.parametrize("case", CASES[:2])
@pytest.mark.parametrize("utd, num_graphs", [(4, 1), (1, 2)])
@pytest.mark.parametrize("device, compiled", DEVICES)
def test_cudagraphs_do_not_change_td3_training(
    device, compiled, utd, num_graphs, case, tmp_path, monkeypatch
):
    """With --utd 1 every other block has the policy's update: two graphs, in turn."""
    if compiled == "--compile" and (case != "seeds" or utd == 4):
        pytest.skip("the compiled update is captured in one test: it takes half a minute")
    flags = f"--device {device} {compiled} --num-seeds 2 --utd {utd}"
    rows = run(tmp_path / "without", f"{flags} --no-cudagraphs", td3_continuous)
    recordings = replay_without_a_gpu(monkeypatch) if device == "cpu" else []
    if case == "resume":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(runlog.Batch, "draw", stop_here)
            run(tmp_path / "with", f"{flags} --cudagraphs", td3_continuous)
        recordings.clear()
    graphed_rows = run(tmp_path / "with", f"{flags} --cudagraphs", td3_continuous)
    if device == "cpu":
        assert len(recordings) == num_graphs
        num_replays = TOTAL - (STOP if case == "resume" else 7) - 3 * num_graphs
        assert sum(recording.num_replays for recording in recordings) == num_replays
    assert_same(graphed_rows, rows, exact=device == "cpu")


# ---- resumption, two processes, evaluation -------------------------------------------------------

# A separate process, in which nothing else is patched; with STOP it sends SIGTERM to itself after
# that step
PROGRAM = """
import os, signal, sys
import environments, runlog, sac_continuous
def play(tasks, act, first, number):
    return [[{"eval/episodic_return": 1.0} for _ in tasks.seeds]]
def draw(batch, step, draw_plots):
    if step == int(os.environ.get("STOP") or 0):
        os.kill(os.getpid(), signal.SIGTERM)
environments.TaskSequence.evaluate = play
sac_continuous.q_bias = lambda agent, envs, seeds, index: [{} for _ in seeds]
runlog.Batch.draw = draw
with runlog.exit_on_user_error():
    sac_continuous.main(runlog.parse_args(sac_continuous.Args))
"""


def start(folder: Path, flags: str, stop: str = "") -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"STOP": stop, "PYTHONPATH": path}
    argv = [sys.executable, "-c", PROGRAM, *command(folder, flags)]
    return subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_a_killed_run_ends_like_one_never_killed_and_plays_on_the_cpu(
    device, tmp_path, monkeypatch, capfd
):
    flags = f"--device {device} --no-compile --no-cudagraphs --num-seeds 2"
    killed = start(tmp_path / "killed", flags, str(STOP))
    expected = run(tmp_path / "whole", flags)
    output, _ = killed.communicate(timeout=120)
    assert killed.returncode == 143, output[-500:]
    steps = {step for _, step, _ in read_rows(tmp_path / "killed")}
    assert max(steps) < TOTAL, "it ended before it was killed"
    found = run(tmp_path / "killed", flags)
    for folder in (tmp_path / "killed").iterdir():
        sessions = meta.read_meta(folder)["sessions"]
        assert len(sessions) == 2 and sessions[1]["from_step"] == STOP + 1, sessions
    # the checkpoint on the CPU
    monkeypatch.setattr(environments, "film", lambda *_: math.nan)
    monkeypatch.setattr(environments, "evaluate", lambda *_: [{"eval/episodic_return": 1.0}])
    capfd.readouterr()
    run(tmp_path / "killed", f"{flags} --evaluate --device cpu")
    output = capfd.readouterr().out
    assert output.startswith("seed 1: eval/episodic_return ") and output.count("\n") == 2, output
    assert_same(found, expected)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_two_processes_on_one_device_train_like_one_alone(device, tmp_path):
    flags = f"--device {device} --no-compile --no-cudagraphs"
    both = [start(tmp_path / name, flags) for name in ("one", "other")]
    alone = run(tmp_path / "alone", flags)
    for process in both:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output[-500:]
    for name in ("one", "other"):
        assert_same(read_rows(tmp_path / name), alone)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_networks_of_a_checkpoint_act_alike_on_both_devices(device, tmp_path):
    """The newest checkpoint in an agent on the device and in one on the CPU: equal modes and
    Q-values."""
    flags = f"--device {device} --no-compile --no-cudagraphs"
    run(tmp_path, flags)
    args = runlog.parse_args(sac_continuous.Args, command(tmp_path, flags))
    (one,) = sac_continuous.runs_of(args)
    _, state, _ = one.load_checkpoint()
    obs = np.random.default_rng(0).normal(size=(1, 5)).astype(np.float32)
    actions = []
    for name in (device, "cpu"):
        agent = sac_continuous.Agent(5, 1, args, [1], torch.device(name))
        runlog.restore_module(agent, [state["agent"]])
        actions.append(agent.act(obs))
    np.testing.assert_allclose(*actions, atol=1e-5)
    assert np.abs(actions[0]).max() > 0
