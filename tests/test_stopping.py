"""Signals, saves by the clock, kills at every file operation.

`pytest -q tests/test_stopping.py` (about a minute).
"""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import own_scripts
import pytest
import torch

import continual_supervised
import dqn_atari
import function_approximation
import ppo_atari
import pqn_atari
import runlog
import sac_continuous
from runlog import stopping
from runlog.divergence import Divergence

ROOT = Path(__file__).parent.parent
ATARI = (
    "--no-compile --no-tensorboard --threads 1 --env-threads 1 --metrics-frequency 0 "
    "--ntk-frequency 0"
)
SCRIPTS = {  # flags of a training of some seconds, and the step at which the signal comes
    sac_continuous: (
        "--env-id Pendulum-v1 --num-seeds 2 --total-timesteps 200 --learning-starts 50 "
        "--widths 8 8 --batch-size 8 --eval-frequency 100 --num-eval-episodes 1 "
        "--log-frequency 10 --metrics-frequency 0 --ntk-frequency 0 --no-compile --no-tensorboard "
        "--threads 1",
        100,
    ),
    dqn_atari: (
        f"{ATARI} --total-timesteps 120 --learning-starts 20 --buffer-size 100 --log-frequency 10 "
        "--eval-frequency 1000",
        60,
    ),
    ppo_atari: (
        f"{ATARI} --num-envs 2 --num-steps 16 --total-timesteps 128 --log-frequency 32",
        64,
    ),
    pqn_atari: (
        f"{ATARI} --num-envs 4 --num-test-envs 1 --num-steps 8 --num-minibatches 4 "
        "--total-timesteps 128 --log-frequency 32",
        64,
    ),
    continual_supervised: (
        "--num-seeds 2 --num-tasks 2 --epochs 2 --num-train 64 --log-frequency 4 --no-compile "
        "--no-tensorboard --threads 1 --metrics-samples 0 --ntk-samples 0",
        8,
    ),
    function_approximation: (
        "--activations relu tanh --deep-activations --shallow-units 8 --learning-rates 1e-2 "
        "--total-steps 60 "
        "--num-seeds 2 --table1-neurons 0 --no-compile --no-tensorboard --threads 1",
        40,
    ),
}


def train(script, flags: str, folder: Path) -> None:
    script.main(runlog.parse_args(script.Args, [*flags.split(), "--runs-dir", str(folder)]))


def rows(folder: Path) -> dict[str, list[str]]:
    """run -> its rows without their time"""
    found = {}
    for path in sorted(folder.glob("*/scalars.csv")):
        found[path.parent.name] = [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]
    return found


def status(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["status"] for path in sorted(folder.glob("*/meta.json"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_signal_saves_and_stops_and_the_same_command_resumes(
    script, tmp_path, monkeypatch, capsys
):
    flags, step = SCRIPTS[script]
    number = {sac_continuous: signal.SIGINT, continual_supervised: signal.SIGHUP}.get(
        script, signal.SIGTERM
    )
    log = runlog.Run.log
    sent = []

    def log_and_signal(run, at, scalars):
        log(run, at, scalars)
        if at == step and not sent:
            sent.append(at)
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(number) for number in stopping.SIGNALS]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(runlog.Run, "log", log_and_signal)
        train(script, flags, tmp_path / "a")
    assert stop.value.code == 128 + number
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == handlers
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"stopped by {signal.Signals(number).name} at step {step}, saved: " in lines[0]
    assert "interrupted" in status(tmp_path / "a")
    stopped = rows(tmp_path / "a")
    train(script, flags, tmp_path / "a")
    train(script, flags, tmp_path / "b")
    assert set(status(tmp_path / "a")) == {"finished"}
    resumed = rows(tmp_path / "a")
    whole = rows(tmp_path / "b")
    assert stopped.keys() <= resumed.keys() == whole.keys()
    for run, kept in stopped.items():
        assert resumed[run][: len(kept)] == kept, "what was saved is not done again"
    # games in progress start over, so values differ and steps do not
    if "atari" in script.__name__:
        last_steps = [
            {name: values[-1].split(",")[0] for name, values in found.items()}
            for found in (resumed, whole)
        ]
        assert last_steps[0] == last_steps[1]
    else:
        assert resumed == whole


LOOP = """
import sys, time
import runlog
from runlog import stopping
print("ready", flush=True)
with runlog.exit_on_user_error(), stopping.stop_on_signals():
    times = stopping.SaveTimes(0, 0, 0)
    for step in range(1, 101):
        time.sleep(float(sys.argv[1]))
        if times.is_due(step, step == 100):
            print("saved", step, flush=True)
            times.done([type("Run", (), {"folder": "here"})], step == 100)
print("end", flush=True)
"""


def loop(seconds: float, *ignored: signal.Signals) -> subprocess.Popen:
    """A training whose steps take so long, each of 100; it ignores these signals when it starts."""

    def ignore() -> None:
        for number in stopping.SIGNALS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    command = [sys.executable, "-c", LOOP, str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, cwd=ROOT, preexec_fn=ignore, **pipes)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)
    return child


def test_a_second_signal_ends_at_once():
    child = loop(60.0)
    child.send_signal(signal.SIGTERM)
    time.sleep(1.5 * stopping.ONE_STOP)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=30)  # the step would have taken 60 s
    assert child.returncode == -signal.SIGTERM
    assert out == "" and err == ""


def test_a_stop_that_arrives_twice_counts_once():
    """scancel signals every process of a job, and the launcher passes its own signal on."""
    child = loop(0.5)
    # Of two that are pending together Python handles the lower number first, which is SIGHUP's.
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGHUP
    assert "stopped by SIGHUP at step" in err and out.startswith("saved")


def test_signals_that_are_ignored_at_the_start_stay_ignored():
    """nohup ignores SIGHUP, a shell ignores SIGINT for a command in the background."""
    child = loop(0.02, signal.SIGHUP, signal.SIGINT)
    child.send_signal(signal.SIGHUP)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (0, "saved 100\nend\n", "")


def test_ctrl_c_stops_in_one_line_and_exits_with_130():
    child = loop(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    saved = int(out.split()[1])
    assert err == f"stopped by SIGINT at step {saved}, saved: here; the same command resumes\n"


def test_a_child_killed_by_the_same_ctrl_c_is_no_failure(tmp_path):
    """A terminal signals the whole group: the compiler dies,
    torch.compile fails, and the run is interrupted."""
    run = runlog.Run(tmp_path, "run", {"env_id": "toy", "activation": "relu", "seed": 1})
    args = sac_continuous.Args(compile=False, tensorboard=False)
    with pytest.raises(SystemExit) as stop, runlog.open_batches([run], args):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("C++ compile error\nof many lines")
    assert stop.value.code == 130
    assert status(tmp_path) == ["interrupted"]
    with pytest.raises(RuntimeError), runlog.open_batches([run], args):
        raise RuntimeError("not by a signal")
    assert status(tmp_path) == ["failed"]


def test_a_signal_at_the_very_end_is_reported(tmp_path, capsys):
    run = runlog.Run(tmp_path, "run", {"env_id": "toy", "activation": "relu", "seed": 1})
    args = sac_continuous.Args(compile=False, tensorboard=False)
    with pytest.raises(SystemExit) as stop, runlog.open_batches([run], args) as batches:
        os.kill(os.getpid(), signal.SIGTERM)
        next(batches).finish()
    assert stop.value.code == 143 and status(tmp_path) == ["finished"]
    assert (
        capsys.readouterr().err
        == "stopped by SIGTERM: current work is complete, nothing more is started\n"
    )


def test_ctrl_c_before_the_training_leaves_no_traceback():
    code = (
        "import os, runlog, signal\nwith runlog.exit_on_user_error():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_when_to_save(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    times = stopping.SaveTimes(7, 10, minutes=2)
    due = [step for step in (9, 12, 15, 33, 34) if times.is_due(step, at_end=False)]
    assert due == [12, 33]  # at the first step after a multiple
    assert not times.regular
    clock[0] += 119.0
    assert not times.is_due(35, at_end=False)
    clock[0] += 1.0
    assert times.is_due(36, at_end=False) and not times.regular
    times.done([], at_end=False)
    assert not times.is_due(37, at_end=False)
    assert times.is_due(38, at_end=True) and times.regular
    never = stopping.SaveTimes(0, 0, minutes=0)
    clock[0] += 1e6
    assert not never.is_due(10**6, at_end=False)


def test_resuming_from_an_older_checkpoint_misses_no_regular_save():
    """DQN goes back to the checkpoint before when its replay is damaged, after 20 to 10."""
    times = stopping.SaveTimes(20, 10, minutes=0)
    times.start_from(10)
    assert [step for step in (14, 18, 22, 26, 30) if times.is_due(step, at_end=False)] == [22, 30]


def test_a_save_by_the_clock_changes_no_row(tmp_path):
    flags, _ = SCRIPTS[sac_continuous]
    train(sac_continuous, flags, tmp_path / "a")
    train(sac_continuous, f"{flags} --checkpoint-minutes 1e-9", tmp_path / "b")  # after every step
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_stop_between_two_updates_of_the_actor_changes_no_row(tmp_path, monkeypatch):
    """With --policy-frequency the row of losses holds the actor's newest update,
    which may come before the save."""
    flags = f"{SCRIPTS[sac_continuous][0]} --policy-frequency 7"
    asked = []
    is_due = stopping.SaveTimes.is_due

    def is_due_and_signalled(times, step, at_end):
        # the first update, before a row, after one
        if step in (50, 99, 103) and step not in asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return is_due(times, step, at_end)

    with monkeypatch.context() as patch:
        patch.setattr(stopping.SaveTimes, "is_due", is_due_and_signalled)
        for _ in range(3):
            with pytest.raises(SystemExit):
                train(sac_continuous, flags, tmp_path / "a")
        train(sac_continuous, flags, tmp_path / "a")
    train(sac_continuous, flags, tmp_path / "b")
    assert asked == [50, 99, 103]
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_a_training_killed_at_any_file_operation_ends_with_the_same_rows():
    # all of them: by hand
    command = [sys.executable, "scripts/drill_files.py", "--every", "5", "--twice", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the same rows each time" in done.stdout


def test_the_replay_of_a_finished_run_is_deleted_even_after_a_kill(tmp_path, monkeypatch):
    flags, _ = SCRIPTS[sac_continuous]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.Run, "drop_transitions", interrupt)
        train(sac_continuous, flags, tmp_path / "a")
    assert len(list(tmp_path.glob("a/*/replay"))) == 2
    train(sac_continuous, flags, tmp_path / "a")  # the first is finished, the second not yet
    train(sac_continuous, flags, tmp_path / "a")
    assert status(tmp_path / "a") == ["finished", "finished"]
    assert not list(tmp_path.glob("a/*/replay"))
    train(sac_continuous, f"{flags} --keep-replay", tmp_path / "b")
    train(sac_continuous, flags, tmp_path / "b")
    assert len(list(tmp_path.glob("b/*/replay"))) == 2  # it was kept on purpose


def interrupt(*_):
    raise KeyboardInterrupt


def test_divergence_names_the_first_value_that_was_not_finite(capsys):
    divergence = Divergence([3, 4, 5], torch.device("cpu"))
    good = torch.ones(3)
    divergence.update(10, {"qf_loss": good, "actor_loss": torch.tensor([1.0, torch.inf, 1.0])})
    divergence.update(
        11, {"qf_loss": torch.tensor([torch.nan, torch.nan, 1.0]), "actor_loss": good * torch.nan}
    )
    assert divergence.report() == [11, 10, 11]
    assert divergence.report() == [11, 10, 11]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    for line, message in zip(
        warnings,
        ("3 has diverged at step 11: qf_loss", "4 has diverged at step 10: actor_loss", "5 has"),
    ):
        assert f"seed {message}" in line
    assert "seed 5 has diverged at step 11: actor_loss is not finite" in warnings[2]


# ---- before the training -------------------------------------------------------------------------


def test_ctrl_c_during_the_imports_ends_in_one_line():
    code = "import interrupts\nraise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "stopped before anything was started\n"
    assert done.returncode == -signal.SIGINT  # 130 in a shell
    code = "import interrupts\nraise ValueError('x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.endswith("ValueError: x\n") and "Traceback" in done.stderr


@pytest.mark.parametrize("program", own_scripts.SCRIPTS)
def test_every_script_handles_ctrl_c_before_its_imports(program):
    tree = ast.parse((ROOT / f"{program}.py").read_text())
    first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
    assert ast.unparse(first) == "import interrupts"
