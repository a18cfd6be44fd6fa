"""Sweeps on Ray: failures, and two drills. On loopback, without a dashboard.

`pytest -q tests/test_sweep_ray.py`.
"""

import json
import os
import signal
import subprocess

import pytest
from sweep_drill import (
    alive,
    check_exactly_once,
    grid,
    kill,
    launch,
    steps,
    wait_for,
    wait_until_all_run,
)

# Read when ray is imported: loopback only;
# no token (it would be written into the home folder); no reports.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")  # on a busy machine
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

NODE = {"num_cpus": 2, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two CPUs each; the first is the head."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.second = cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


def workers_of(node) -> set[int]:
    """Processes whose ancestor is the node's raylet."""
    raylet = node.all_processes["raylet"][0].process.pid
    listed = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    found = {raylet}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_launcher_worker_and_process_are_killed(cluster, tmp_path):
    """One after the other; also a run that fails, whose code and log the launcher prints."""
    words = [grid(2, 80, 0.1), grid(1, 2, 0, "--env-id bad --fail 3"), "--ray", cluster.address]
    first = launch(tmp_path, *words)
    running = wait_until_all_run(tmp_path, 2, 3)
    kill(first.pid)
    first.wait()
    wait_for(lambda: not any(alive(rows[-1][1]) for rows in running.values()), 60)
    again = launch(tmp_path, *words)
    before = {name: len(rows) for name, rows in steps(tmp_path).items()}
    wait_for(
        lambda: all(
            len(rows) > before[name] + 3
            for name, rows in steps(tmp_path).items()
            if name in running
        )
    )
    one, other = sorted(running)
    kill(pid := steps(tmp_path)[one][-1][1])  # the training process
    kill(worker := int(os.popen(f"ps -o ppid= -p {steps(tmp_path)[other][-1][1]}").read()))  # Ray's
    assert again.wait(240) == 1
    assert not alive(pid)
    assert not alive(worker)
    log = (tmp_path / "launcher.log").read_text()
    assert "ended with exit code -9, will resume later: toy__" in log
    assert "| this is the end" in log
    assert "2 of 3 processes done, 1 failed, 0 waiting" in log
    for file in tmp_path.glob("runs/bad__*/steps.txt"):
        file.unlink()
    assert check_exactly_once(tmp_path, 2, 80) == {one: 3, other: 3}


def test_half_a_gpu_is_refused_where_there_is_none(cluster, tmp_path):
    launcher = launch(tmp_path, grid(2, 2, 0.1), "--ray", cluster.address, "--slots-per-gpu", "2")
    assert launcher.wait(240) == 2
    assert (
        "error: --slots-per-gpu 2: the cluster has no GPU"
        in (tmp_path / "launcher.log").read_text()
    )


def test_a_node_is_lost(cluster, tmp_path):
    launcher = launch(tmp_path, grid(6, 60, 0.1), "--ray", cluster.address)
    running = wait_until_all_run(tmp_path, 4, 3)
    there = workers_of(cluster.second)
    lost = {name for name, rows in running.items() if rows[-1][1] in there}
    assert len(lost) == 2 and len(running) == 4  # as many as CPUs
    cluster.remove_node(cluster.second, allow_graceful=False)
    wait_for(lambda: not any(alive(running[name][-1][1]) for name in lost), 20)
    assert launcher.wait(240) == 0, (tmp_path / "launcher.log").read_text()
    sessions = check_exactly_once(tmp_path, 6, 60)
    assert {name for name, number in sessions.items() if number == 2} == lost
    assert sum(sessions.values()) == 8


def test_starts_its_own_cluster(tmp_path):
    launcher = launch(tmp_path, grid(2, 2, 0.1), "--ray")
    assert launcher.wait(240) == 0, (tmp_path / "launcher.log").read_text()
    assert set(check_exactly_once(tmp_path, 2, 2).values()) == {1}


def test_nobody_at_the_address(tmp_path):
    assert launch(tmp_path, grid(1, 1, 0), "--ray", "127.0.0.1:9").wait(240) == 2
    log = (tmp_path / "launcher.log").read_text()
    assert log.startswith("error: --ray 127.0.0.1:9: Ray does not start (ConnectionRefusedError")
    assert log.count("\n") == 1


def check_it_saves(tmp_path, launcher, number, words) -> None:
    running = wait_until_all_run(tmp_path, 2, 5)
    os.kill(launcher.pid, number)
    assert launcher.wait(40) == 128 + number
    log = (tmp_path / "launcher.log").read_text()
    assert "stopped; the same command resumes from here" in log and "had to be killed" not in log
    assert "Traceback" not in log and "FAILED" not in log
    assert not any(alive(rows[-1][1]) for rows in running.values())
    codes = [
        json.loads(file.read_text()) for file in tmp_path.glob("runs/sweeps/drill/state/*.json")
    ]
    assert [(state["status"], state["code"]) for state in codes] == [("stopped", 143)] * 2
    assert launch(tmp_path, *words).wait(240) == 0
    for name, rows in steps(tmp_path).items():  # but for the stop nothing has saved
        assert [step for step, _ in rows] == [*range(1, 81)], name


def test_a_signal_lets_the_processes_save(cluster, tmp_path):
    words = [grid(2, 80, 0.1, "--save-every 1000"), "--ray", cluster.address]
    check_it_saves(tmp_path, launch(tmp_path, *words), signal.SIGINT, words)


def test_a_launcher_in_the_background_of_a_script(tmp_path):
    """SIGINT is ignored by it, by its own cluster's workers and by what they start."""
    words = [grid(2, 80, 0.1, "--save-every 1000"), "--ray"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launcher = launch(tmp_path, *words)
    finally:
        signal.signal(signal.SIGINT, before)
    check_it_saves(tmp_path, launcher, signal.SIGTERM, words)
