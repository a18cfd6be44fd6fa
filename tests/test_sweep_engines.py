"""Sweeps on local slots, with drills: every run ends once.

`pytest -q tests/test_sweep_engines.py`.
"""

import csv
import json
import os
import signal
import sys
import time

import pytest
from sweep_drill import (
    TOY,
    alive,
    check_exactly_once,
    end,
    environment,
    fork,
    grid,
    kill,
    launch,
    steps,
    sweep,
    sweep_task,
    wait_for,
    wait_until_all_run,
)


def log_lines(folder) -> list[str]:
    log = folder / "launcher.log"
    return log.read_text().splitlines() if log.exists() else []


def test_all_runs_end_and_then_are_skipped(tmp_path):
    code, output = sweep(tmp_path, grid(3, 2, 0.3), "--slots", "2")
    assert code == 0 and "3 of 3 processes done, 0 failed, 0 waiting; 3 runs" in output
    assert set(check_exactly_once(tmp_path, 3, 2).values()) == {1}
    assert output.count("started toy__toy_training__relu__s") == 3 and " to go" in output
    states = [
        json.loads(file.read_text()) for file in tmp_path.glob("runs/sweeps/drill/state/*.json")
    ]
    assert [state["status"] for state in states] == ["ended"] * 3
    spans = sorted((state["start"], state["start"] + state["seconds"]) for state in states)
    assert spans[2][0] >= min(spans[0][1], spans[1][1]) - 0.2, "a third process ran on two slots"
    code, output = sweep(tmp_path, grid(3, 2, 0.3), "--slots", "2")
    assert code == 0
    assert output.count("started toy") == 3
    assert set(check_exactly_once(tmp_path, 3, 2).values()) == {1}


def test_gpus_are_shared_out(tmp_path):
    flags = f"--gpu-file {tmp_path}/seen"
    command = grid(8, 1, 0.5, flags)
    assert (
        sweep(
            tmp_path, command, "--slots-per-gpu", "2", "--threads", "3", CUDA_VISIBLE_DEVICES="4,7"
        )[0]
        == 0
    )
    seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert sorted(gpu for gpu, _ in seen[:4]) == ["4", "4", "7", "7"]
    assert {gpu for gpu, _ in seen} == {"4", "7"}
    assert {threads for _, threads in seen} == {"3"}


def test_failures_are_reported_and_crashes_resume(tmp_path):
    grids = [
        grid(1, 5, 0, "--env-id", env, *flags)
        for env, *flags in (("bad", "--fail 2"), ("broken", "--fail 3"))
    ]
    grids += [grid(1, 5, 0, "--env-id crashes --crash-at 3"), grid(1, 5, 0, "--env-id good")]
    code, output = sweep(tmp_path, *grids, "--slots", "1")
    assert code == 1 and "2 of 4 processes done, 2 failed, 0 waiting" in output
    assert output.count("started bad__") == 1, "a user error is tried once"
    assert output.count("started broken__") == output.count("started crashes__") == 2
    assert "FAILED with exit code 2: " in output
    assert "FAILED with exit code 3: " in output
    assert "| this is the end" in output
    rows = {name.split("__")[0]: rows for name, rows in steps(tmp_path).items()}
    assert [step for step, _ in rows["crashes"]] == [1, 2, 3, 4, 5]
    assert len({pid for _, pid in rows["crashes"]}) == 2
    code, output = sweep(tmp_path, *grids, "--limit", "0")
    assert code == 1
    assert output.count("started bad__") == 1
    assert output.count("FAILED with exit code 3: ") == 3
    grids.append(grid(1, 5, 0, "--env-id new"))
    code, output = sweep(tmp_path, *grids, "--only-failed", "--limit", "1", "--retries", "0")
    assert code == 1
    assert output.count("started bad__") == 2
    assert output.count("started broken__") == 2
    assert "started new" not in output and "2 of 5 processes done, 2 failed, 1 waiting" in output


def test_kill_the_launcher_and_start_it_again(tmp_path):
    first = launch(tmp_path, command := grid(3, 40, 0.05), "--slots", "2")
    running = wait_until_all_run(tmp_path, 2, 5)
    kill(first.pid)
    first.wait()
    again = launch(tmp_path, command, "--slots", "2")
    pids = {rows[-1][1] for rows in running.values()}
    wait_for(lambda: not any(map(alive, pids)), 5)  # long before the second launcher has come up
    assert again.wait(240) == 0
    sessions = check_exactly_once(tmp_path, 3, 40)
    assert [sessions[name] for name in running] == [2, 2] and sum(sessions.values()) == 5


def test_kill_a_worker(tmp_path):
    launcher = fork(tmp_path, grid(2, 40, 0.05), "--slots", "2")
    running = wait_until_all_run(tmp_path, 2, 5)
    kill(victim := running[min(running)][-1][1])
    assert end(launcher) == 0
    sessions = check_exactly_once(tmp_path, 2, 40)
    assert sessions == {min(running): 2, max(running): 1} and not alive(victim)
    assert "ended with exit code -9, will resume later" in (tmp_path / "launcher.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_children(tmp_path, number):
    launcher = fork(tmp_path, command := grid(2, 60, 0.05), "--slots", "2")
    running = wait_until_all_run(tmp_path, 2, 5)
    second = fork(tmp_path, command)
    assert end(second) == 2
    assert f"is being run by process {launcher.pid}" in (tmp_path / "launcher.log").read_text()
    os.kill(launcher.pid, number)
    assert end(launcher, 30) == 128 + number
    assert not any(alive(rows[-1][1]) for rows in running.values())
    log = (tmp_path / "launcher.log").read_text()
    assert "the same command resumes from here" in log and "Traceback" not in log
    if number == signal.SIGINT:
        assert sweep(tmp_path, command, "--slots", "2")[0] == 0
        assert set(check_exactly_once(tmp_path, 2, 60).values()) == {2}


def test_waits_for_a_run_that_another_process_holds(tmp_path):
    """Such as an orphan that the launcher could not end."""
    flags = ["--seed", "1", "--total", "60", "--pause", "0.1"]
    orphan = os.spawnve(
        os.P_NOWAIT,
        sys.executable,
        [sys.executable, str(TOY), *flags, "--runs-dir", f"{tmp_path}/runs"],
        environment(),
    )
    wait_until_all_run(tmp_path, 1, 1)
    launcher = fork(tmp_path, grid(2, 60, 0.1), "--slots", "2")
    lines = wait_for(lambda: [x for x in log_lines(tmp_path) if "waiting:" in x])
    assert f"is in use by process {orphan}" in lines[0] and "__s1__" in lines[0]
    assert launcher.is_alive()
    kill(orphan)
    os.waitpid(orphan, 0)
    assert end(launcher) == 0
    assert sorted(check_exactly_once(tmp_path, 2, 60).values()) == [1, 2]


def test_an_array_task_returns_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # normally it is a separate process
    command = grid(2, 3, 0, "--fail 3")
    assert sweep(tmp_path, command, "--limit", "0")[0] == 0
    folder = tmp_path / "runs" / "sweeps" / "drill"
    name = next(iter(sweep_task.read_manifest(folder)))
    assert sweep_task.main([str(folder), name]) == 3
    state = sweep_task.read_state(folder, {"id": name})
    assert (state["status"], state["code"]) == ("failed", 3) and state["start"] <= time.time()
    assert sweep_task.main([str(folder), "other"]) == 2


def test_a_script_of_the_project(tmp_path):
    """Killed after its first checkpoint, the cell resumes from there;
    both seeds are folders of their own."""
    flags = (
        "--num-tasks 2 --epochs 4 --num-train 64 --widths 8 --metrics-samples 0 --ntk-samples 0 "
        "--no-compile"
    )
    flags += " --checkpoint-frequency 4 --log-frequency 4 --no-tensorboard --device cpu"
    command = f"continual_supervised.py --activation crational --seed {{4,5}} {flags}"
    launcher = fork(tmp_path, command, "--slots", "1")
    checkpoint = "runs/digits-random_labels__continual_supervised__crational__s5__*/checkpoint.pt"
    wait_for(lambda: list(tmp_path.glob(checkpoint)))
    pid = json.loads((tmp_path / "runs/sweeps/drill/manifest.jsonl").read_text())
    assert len(pid["runs"]) == 2 and pid["argv"][-4:] == ["--seed", "4", "--num-seeds", "2"]
    kill(int(next(tmp_path.glob("runs/digits*__s5__*/.lock")).read_text()))
    assert end(launcher) == 0
    folders = sorted(tmp_path.glob("runs/digits*"))
    assert [str(folder.relative_to(tmp_path)) for folder in folders] == sorted(pid["runs"])
    for folder in folders:
        meta = json.loads((folder / "meta.json").read_text())
        assert meta["status"] == "finished"
        assert len(meta["sessions"]) == 2
        assert meta["sessions"][1]["from_step"] > 0
        with open(folder / "scalars.csv") as file:
            tasks = [
                row["step"] for row in csv.DictReader(file) if row["key"] == "charts/end_accuracy"
            ]
        assert tasks == ["16", "32"]
