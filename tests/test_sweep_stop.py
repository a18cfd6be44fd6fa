"""How a sweep stops and resumes, and how it deals with folders that are full,
locked or not its own.

`pytest -q tests/test_sweep_stop.py` (about 1 min).
"""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_drill import (
    ROOT,
    alive,
    check_exactly_once,
    end,
    environment,
    fork,
    grid,
    launcher,
    pids,
    steps,
    sweep,
    sweep_task,
    wait_for,
    wait_until_all_run,
)

import runlog

RARELY = (
    "--save-every 1000"  # so that a stopped run is where it was only if the stop itself has saved
)


def check_no_step_was_lost(folder, runs: int, total: int) -> None:
    done = steps(folder)
    assert len(done) == runs
    for name, rows in done.items():
        assert [step for step, _ in rows] == [*range(1, total + 1)], name


def states(folder) -> list[dict]:
    return [
        json.loads(file.read_text())
        for file in sorted(folder.glob("runs/sweeps/drill/state/*.json"))
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_every_process_save(tmp_path, number):
    command = grid(3, 30, 0.05, RARELY)
    first = fork(tmp_path, command, "--slots", "2")
    running = wait_until_all_run(tmp_path, 2, 5)
    os.kill(first.pid, number)
    assert end(first, 30) == 128 + number
    assert not any(alive(rows[-1][1]) for rows in running.values())
    log = (tmp_path / "launcher.log").read_text()
    assert (
        "stopping: the running processes save a checkpoint first (at most 60 s; a second signal"
        in log
    )
    assert "stopped; the same command resumes from here" in log
    assert "FAILED" not in log
    assert "will resume later" not in log
    assert "killed" not in log
    assert "Traceback" not in log
    assert [(state["status"], state["code"]) for state in states(tmp_path)] == [
        ("stopped", 143)
    ] * 2
    assert sweep(tmp_path, command, "--limit", "0")[0] == 0
    assert "0 of 3 processes done, 0 failed, 3 waiting" in (tmp_path / "launcher.log").read_text()
    assert sweep(tmp_path, command, "--slots", "2")[0] == 0
    assert sorted(check_exactly_once(tmp_path, 3, 30).values()) == [1, 2, 2]
    check_no_step_was_lost(tmp_path, 3, 30)


def test_a_second_signal_ends_at_once_and_so_does_the_end_of_patience(tmp_path):
    command = grid(1, 30, 0.05, "--stop-pause 300")
    first = fork(tmp_path, command)
    wait_until_all_run(tmp_path, 1, 3)
    # A closed terminal and a batch system at once: one request, by two ways. Of signals that are
    # pending together Python handles the lower number first, which is SIGHUP's.
    os.kill(first.pid, signal.SIGHUP)
    os.kill(first.pid, signal.SIGTERM)
    wait_for(lambda: "stopping: " in (tmp_path / "launcher.log").read_text())
    time.sleep(1.5)
    assert first.is_alive()
    os.kill(first.pid, signal.SIGTERM)
    assert end(first, 30) == 129  # the training would have taken 300 s, the patience is 60 s
    assert (
        "1 had to be killed, and will resume from the previous checkpoint"
        in (tmp_path / "launcher.log").read_text()
    )
    assert [(state["status"], state["code"]) for state in states(tmp_path)] == [("stopped", -9)]
    done = len(next(iter(steps(tmp_path).values())))
    second = fork(tmp_path, command, "--patience", "1")
    wait_for(lambda: len(next(iter(steps(tmp_path).values()))) > done + 3)
    os.kill(second.pid, signal.SIGINT)
    began = time.monotonic()
    assert end(second, 30) == 130 and time.monotonic() - began >= 1
    assert not any(map(alive, pids(tmp_path)))


def test_signals_within_a_second_are_one_request(monkeypatch):
    """With an artificial clock: on a busy machine a second may pass between any two lines."""
    now = 100.0
    monkeypatch.setattr(sweep_task.time, "monotonic", lambda: now)
    request = sweep_task.StopRequest()
    counts = []
    for pause in (0.0, 0.0, 0.5, 0.4, 0.2, 0.9, 60.0):
        now += pause
        request.note(signal.SIGHUP if not counts else signal.SIGTERM, None)
        counts.append(request.count)
    # counted from the last one received: 100, then 101.1, then 162
    assert counts == [1, 1, 1, 1, 2, 2, 3]
    assert request.number == signal.SIGHUP and request.exit_code() == 129


def test_started_in_the_background_of_a_script(tmp_path):
    """There a shell ignores SIGINT, which children inherit:
    SIGTERM must do, and they must hear Ctrl-C of their own."""
    words = [
        sys.executable,
        str(ROOT / "scripts" / "sweep.py"),
        grid(2, 400, 0.05, RARELY),
        "--name",
        "drill",
    ]
    script = tmp_path / "night.sh"
    script.write_text(
        '"$@" --slots 2 > launcher.log 2>&1 &\necho $! > pid\nwait $!\necho $? > code\n'
    )
    shell = subprocess.Popen(["bash", str(script), *words], cwd=tmp_path, env=environment())
    running = wait_until_all_run(tmp_path, 2, 3)
    pid = int((tmp_path / "pid").read_text())

    def ignored(process: int) -> int:
        text = Path(f"/proc/{process}/status").read_text()
        return int(text.split("SigIgn:")[1].split()[0], 16)

    bit = 1 << (signal.SIGINT - 1)
    assert ignored(pid) & bit, "the test itself is wrong"
    assert not any(ignored(rows[-1][1]) & bit for rows in running.values())
    os.kill(pid, signal.SIGINT)
    time.sleep(1.5)
    assert alive(pid), "an ignored signal is to stay ignored"
    os.kill(pid, signal.SIGTERM)
    shell.wait(30)
    assert (tmp_path / "code").read_text() == "143\n"
    assert [(state["status"], state["code"]) for state in states(tmp_path)] == [
        ("stopped", 143)
    ] * 2


def test_a_training_that_its_user_stops(tmp_path):
    """Resumes once in the same sweep; if stopped again it is left alone and not a failure;
    the same command then ends it."""
    command = grid(1, 40, 0.05, RARELY)
    first = fork(tmp_path, command)
    for part in (1, 2):
        wait_for(lambda part=part: len(pids(tmp_path)) == part)
        rows = next(iter(steps(tmp_path).values()))
        os.kill(rows[-1][1], signal.SIGTERM)
    assert end(first, 60) == 1
    log = (tmp_path / "launcher.log").read_text()
    assert "ended with exit code 143, will resume later: toy__" in log
    assert "stopped with exit code 143, left for the next time: toy__" in log
    assert "0 of 1 processes done, 0 failed, 1 waiting" in log and "FAILED" not in log
    (meta,) = tmp_path.glob("runs/toy__*/meta.json")
    assert json.loads(meta.read_text())["status"] == "interrupted"
    assert sweep(tmp_path, command)[0] == 0
    check_no_step_was_lost(tmp_path, 1, 40)


def test_an_array_task_saves_and_resumes(tmp_path):
    """As under Slurm, whose warning before the time limit reaches sweep_task.py alone."""
    assert sweep(tmp_path, grid(1, 40, 0.05, RARELY), "--limit", "0")[0] == 0
    folder = tmp_path / "runs" / "sweeps" / "drill"
    (name,) = sweep_task.read_manifest(folder)
    words = [sys.executable, str(ROOT / "scripts" / "sweep_task.py"), str(folder), name, "30"]
    task = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment())
    wait_until_all_run(tmp_path, 1, 5)
    task.send_signal(signal.SIGTERM)
    error = task.communicate(timeout=20)[1]
    assert task.returncode == 143
    assert error == f"stopped: {name}; it resumes when it is requeued or submitted again\n"
    assert [(state["status"], state["code"]) for state in states(tmp_path)] == [("stopped", 143)]
    assert subprocess.run(words, env=environment()).returncode == 0
    check_no_step_was_lost(tmp_path, 1, 40)


# ---- states of the machine -----------------------------------------------------------------------


FOREIGN = [
    "[]",
    "null",
    "3",
    '"x"',
    "{",
    '{"seconds": "x"}',
    '{"status": "ended", "seconds": NaN, "code": 0, "start": 1}',
]
FOREIGN += [
    '{"status": "failed"}',
    '{"status": []}',
    "[" * 100_000,
    '{"status": "running", "start": 1e999}',
]


@pytest.mark.parametrize("content", FOREIGN)
def test_foreign_files_are_not_taken_for_state(content, tmp_path, monkeypatch, capsys):
    """Of a state, a run's meta.json and a manifest, with the same names as ours."""
    monkeypatch.chdir(tmp_path)
    words = [grid(1, 1, 0.0), "--name", "drill", "--limit", "0"]
    assert launcher.main(runlog.parse_args(launcher.Args, words)) == 0
    folder = tmp_path / "runs" / "sweeps" / "drill"
    (process,) = sweep_task.read_manifest(folder).values()
    for path in (
        folder / "state" / f"{process['id']}.json",
        tmp_path / process["runs"][0] / "meta.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert sweep_task.read_state(folder, process) == {} and not sweep_task.has_ended(process)
    assert launcher.main(runlog.parse_args(launcher.Args, words)) == 0
    assert "0 of 1 processes done, 0 failed, 1 waiting" in capsys.readouterr().out
    assert (
        launcher.main(runlog.parse_args(launcher.Args, [*words, "--only-failed", "--dry-run"])) == 0
    )
    board = launcher.Board(
        folder, [process], launcher.LocalSlots(folder, [{}], 1.0, sweep_task.StopRequest()), 1
    )
    assert board.seconds == []
    manifest = folder / "manifest.jsonl"
    manifest.write_text(f"{content}\n{manifest.read_text()}")
    assert list(sweep_task.read_manifest(folder)) == [process["id"]]


@pytest.mark.parametrize("blocked", ["manifest.jsonl/x", "state", "logs", ".lock/x"])
def test_write_failures_are_reported_in_one_line(blocked, tmp_path):
    """A file where a folder should be, or a folder where a file should be, stands for a full disk:
    an OSError."""
    path = tmp_path / "runs" / "sweeps" / "drill" / blocked
    path.parent.mkdir(parents=True)
    path.touch()
    code, output = sweep(tmp_path, grid(2, 3, 0.0), "--slots", "2")
    assert code == 2 and "Traceback" not in output
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "cannot write runs/sweeps/drill" in error
    assert "free some space or choose a writable folder" in error


def test_an_array_task_reports_problems_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # normally it is a separate process
    assert sweep_task.main([str(tmp_path / "none"), "x"]) == 2
    assert sweep(tmp_path, grid(1, 1, 0.0), "--limit", "0")[0] == 0
    folder = tmp_path / "runs" / "sweeps" / "drill"
    (name,) = sweep_task.read_manifest(folder)
    (folder / "state").touch()
    assert sweep_task.main([str(folder), name]) == 2
    (folder / "state").unlink()
    text = (folder / "manifest.jsonl").read_text()
    (folder / "manifest.jsonl").write_text(
        text.replace(json.dumps(sys.executable), '"/no/such/python"')
    )
    assert sweep_task.main([str(folder), name]) == 2
    assert sweep_task.main([str(folder), name, "soon"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    assert "cannot read" in lines[0]
    assert "cannot write" in lines[1]
    assert "cannot start /no/such/python" in lines[2]
    assert lines[3] == "error: PATIENCE soon: must be a number of seconds"


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        launcher.main(runlog.parse_args(launcher.Args, [grid(1, 1, 0.0), "--name", "drill"]))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    remedy = "choose a --runs-dir on a disk that has file locks"
    assert error == f"error: cannot lock runs/sweeps/drill (No locks available); {remedy}\n"


def test_a_terminal_that_is_gone_does_not_end_a_sweep(tmp_path):
    words = [sys.executable, str(ROOT / "scripts" / "sweep.py"), grid(2, 2, 0.1), "--name", "drill"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    warning = "warning: cannot write to stdout (No space left on device); continuing without it\n"
    assert (done.returncode, done.stderr) == (0, warning)
    assert set(check_exactly_once(tmp_path, 2, 2).values()) == {1}


def test_a_terminal_without_the_characters_of_a_path(tmp_path):
    words = [
        sys.executable,
        str(ROOT / "scripts" / "sweep.py"),
        grid(1, 1, 0.0),
        "--runs-dir",
        "läufe",
        "--dry-run",
    ]
    env = environment(PYTHONIOENCODING="ascii")
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert r"--runs-dir 'l\xe4ufe'" in done.stdout
    assert "Error" not in done.stderr
