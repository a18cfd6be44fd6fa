"""Helpers for the tests of sweeps: starting a launcher on tests/toy_training.py,
and reading what the runs did."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import runlog

ROOT = Path(__file__).resolve().parent.parent
TOY = Path(__file__).resolve().parent / "toy_training.py"
sys.path.insert(0, str(ROOT / "scripts"))

import sweep as launcher  # noqa: E402
import sweep_plan  # noqa: E402, F401
import sweep_task  # noqa: E402, F401


def environment(**variables) -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS")
    }
    return kept | {"OMP_NUM_THREADS": "1"} | variables


def launch(folder: Path, *words: str, **variables) -> subprocess.Popen:
    """`sweep.py words` in the folder; output in launcher.log, which all launches share."""
    with open(folder / "launcher.log", "a") as log:
        command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *words, "--name", "drill"]
        return subprocess.Popen(
            command, cwd=folder, env=environment(**variables), stdout=log, stderr=log
        )


def forked(folder: Path, words: tuple[str, ...], variables: dict[str, str]) -> None:
    log = os.open(folder / "launcher.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    own = environment(**variables)
    os.environ.clear()
    os.environ.update(own)
    sys.stdout = open(1, "w", buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    with runlog.exit_on_user_error():
        sys.exit(launcher.main(runlog.parse_args(launcher.Args, [*words, "--name", "drill"])))


def fork(folder: Path, *words: str, **variables) -> multiprocessing.Process:
    """The same in a fork of the test process, which has imported torch already."""
    child = multiprocessing.get_context("fork").Process(
        target=forked, args=(folder, words, variables)
    )
    child.start()
    return child


def end(child: multiprocessing.Process, seconds: float = 240.0) -> int:
    """Waits for the process to end; returns its exit code."""
    child.join(seconds)
    assert child.exitcode is not None, "the process did not end"
    return child.exitcode


def sweep(folder: Path, *words: str, **variables) -> tuple[int, str]:
    """(exit code, output of all launches so far)"""
    code = end(fork(folder, *words, **variables))
    return code, (folder / "launcher.log").read_text()


def grid(seeds: int, total: int, pause: float, *flags: str) -> str:
    return f"{TOY} --seed {{1..{seeds}}} --total {total} --pause {pause} {' '.join(flags)}"


def steps(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """run -> (step, pid) of every step, in the order in which they were done."""
    files = sorted(folder.glob("runs/*/steps.txt"))
    return {
        f.parent.name: [tuple(map(int, line.split())) for line in f.read_text().splitlines()]
        for f in files
    }


def pids(folder: Path) -> set[int]:
    """The processes that have done a step."""
    found = set()
    for rows in steps(folder).values():
        found |= {pid for _, pid in rows}
    return found


def wait_for(condition, seconds: float = 120.0):
    last = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < last, "timed out"
        time.sleep(0.02)
    return value


def wait_until_all_run(folder: Path, number: int, step: int) -> dict[str, list[tuple[int, int]]]:
    """Waits until `number` runs are past `step`; returns the steps."""

    def past():
        running = {
            name: rows for name, rows in steps(folder).items() if rows and rows[-1][0] > step
        }
        return running if len(running) >= number else None

    return wait_for(past)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_exactly_once(folder: Path, runs: int, total: int) -> dict[str, int]:
    """Every run finished once, did all its steps, none twice but for the one in which it was killed
    (its checkpoint comes after it), and no two processes at a time. Returns run -> number of its
    processes."""
    done = steps(folder)
    sessions = {}
    assert len(done) == runs
    for name, rows in done.items():
        parts = [list(part) for _, part in itertools.groupby(rows, key=lambda row: row[1])]
        assert len(parts) == len({pid for _, pid in rows}), f"{name}: two processes at once"
        at = 0
        for part in parts:
            numbers = [step for step, _ in part]
            assert numbers[0] in (at, at + 1) and (numbers[0] > 1 or len(parts) == 1 or at <= 1), (
                f"{name}: from zero"
            )
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), name
            at = numbers[-1]
        assert (
            at == total
            and len((folder / "runs" / name / "finished.txt").read_text().splitlines()) == 1
        ), name
        sessions[name] = len(parts)
    return sessions
