"""Kills a training at every file operation, before and after it, and starts it again: the rows must
be the same.

    python scripts/drill_files.py                 # every operation once
    python scripts/drill_files.py --twice 200     # and 200 random pairs of kills
    python scripts/drill_files.py --disk          # and on full disks (root, Linux: mounts a tmpfs)

The training is a stand-in that takes no time but exercises everything in `runlog` that writes to
disk: two seeds in one batch, rows, curves, checkpoints with a replay, the deletion of the replay at
the end. A process kills itself with SIGKILL at its k-th call of os.replace, fsync, unlink, rmdir,
truncate, mkdir or open. For every k the same command must then end both seeds, together, with the
rows of an undisturbed training, and nothing may be left over. It works in memory (/dev/shm) where
there is such a folder: the order of the operations matters, not the disk. Exits with 1 on any
difference.
"""

import dataclasses
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import runlog
from runlog import hardware, meta, seeding

OPERATIONS = ("replace", "fsync", "unlink", "rmdir", "truncate", "mkdir", "open")
STEPS = 12
SAVE_EVERY = 4


@dataclasses.dataclass
class Args:
    every: int = 1  # kill at every operation, at every second, ...
    twice: int = 0  # also so many random pairs of kills
    disk: bool = False  # also start on disks of 4, 8, 12, ... kB, and resume when there is space
    seed: int = 1  # of the random pairs


@dataclasses.dataclass
class TrainingArgs:
    """The flags of a script that `runlog.seed_runs` and `runlog.open_batches` need."""

    runs_dir: str = runlog.option("runs")
    seed: int = 1
    num_seeds: int = runlog.option(2)
    env_id: str = "toy"
    activation: str = "relu"
    device: str = runlog.option("cpu")
    fresh: bool = runlog.option(False)
    checkpoint_frequency: int = runlog.option(SAVE_EVERY)
    checkpoint_minutes: float = runlog.option(0.0)
    tensorboard: bool = runlog.option(False)
    track: bool = runlog.option(False)
    wandb_project: str = runlog.option("")
    wandb_entity: str | None = runlog.option(None)


def train(args: TrainingArgs) -> None:
    """A random walk for each seed; a row depends on the seed's past and on how many seeds are
    trained together."""
    with runlog.open_batches(runlog.seed_runs(args, "drill"), args) as batches:
        for batch in batches:
            train_batch(batch)


def train_batch(batch: runlog.Batch) -> None:
    generators = {"walk": seeding.make_generators(batch.seeds, "walk")}
    places = torch.zeros(len(batch.seeds), dtype=torch.float64)
    state = batch.load()
    if state:
        places = torch.stack(state["place"])
        seeding.set_states(generators, state["generators"])
        for i, transitions in enumerate(batch.load_transitions()):
            assert len(transitions["rows"]) == min(batch.start, 2 * SAVE_EVERY)
            assert transitions["rows"][-1] == places[i]
    new_rows = []
    for step in range(batch.start + 1, STEPS + 1):
        places = places + seeding.normals(generators["walk"])
        new_rows.append(places)
        batch.log(step, {"place": places, "together": len(batch.seeds)})
        curves = torch.stack([torch.zeros_like(places), places], 1)
        batch.log_curve(step, "network/q/fc1/kde", [0.0, 1.0], curves)
        if batch.save_is_due(step, step == STEPS):
            state = {"place": places, "generators": seeding.get_states(generators)}
            rows = torch.stack(new_rows, 1)
            batch.save(step, state, {"rows": rows}, keep_transitions=2 * SAVE_EVERY)
            new_rows = []
    batch.finish()


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process and discards its output; returns its exit code, -9 if it was
    killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.dup2(devnull, 2)
            with runlog.exit_on_user_error():
                work()
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_operations(before_each: Callable[[], None], after_each: Callable[[], None]) -> None:
    """Wraps the operations of `os`, in this process."""

    def wrap(operation):
        def wrapped(*args, **kwargs):
            before_each()
            result = operation(*args, **kwargs)
            after_each()
            return result

        return wrapped

    for name in OPERATIONS:
        setattr(os, name, wrap(getattr(os, name)))


def killed_at(number: int, before: bool, folder: Path) -> int:
    """The exit code of a training that kills itself at the operation of this number, counted from
    1."""

    def work() -> None:
        calls = {"before": 0, "after": 0}

        def note(when: str) -> None:
            calls[when] += 1
            if calls[when] == number and (when == "before") == before:
                os.kill(os.getpid(), signal.SIGKILL)

        count_operations(lambda: note("before"), lambda: note("after"))
        train(TrainingArgs(str(folder)))

    return in_child(work)


def number_of_operations(folder: Path) -> int:
    """How many operations a whole training has."""
    reader, writer = os.pipe()

    def work() -> None:
        calls = []
        count_operations(lambda: calls.append(None), lambda: None)
        train(TrainingArgs(str(folder)))
        os.write(writer, str(len(calls)).encode())

    code = in_child(work)
    if code:
        raise SystemExit(f"FAILED: an undisturbed training ends with exit code {code}")
    number = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    return number


def outcome(folder: Path) -> dict[str, dict]:
    """What a user would compare, for each run: status, rows without their time, files that are
    left."""
    found = {}
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        rows = [line.rsplit(",", 1)[0] for line in (run / "scalars.csv").read_text().splitlines()]
        status = meta.read_meta(run)["status"]
        curves = (run / "curves.jsonl").read_text()
        files = sorted(path.name for path in run.rglob("*") if path.name != ".lock")
        found[run.name] = {"status": status, "rows": rows, "curves": curves, "files": files}
    return found


def scratch_folder() -> Path:
    """A new empty folder, in memory where possible."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))


def check(kills: list[tuple[int, bool]], expected: dict) -> str | None:
    """Trains with these kills, one after the other, then to the end; what differs from `expected`,
    or None."""
    folder = scratch_folder()
    try:
        for number, before in kills:
            code = killed_at(number, before, folder)
            if code not in (0, -signal.SIGKILL):  # 0: the session had fewer operations than that
                return f"exit code {code} instead of being killed"
        return check_the_same_command(folder, expected)
    finally:
        shutil.rmtree(folder)


def check_the_same_command(folder: Path, expected: dict) -> str | None:
    """Trains to the end in this folder; what then differs from `expected`, or None."""
    code = in_child(lambda: train(TrainingArgs(str(folder))))
    if code:
        return f"the same command then ends with exit code {code}"
    found = outcome(folder)
    if found == expected:
        return None
    for name, run in expected.items():
        for key, value in run.items():
            if found.get(name, {}).get(key) != value:
                return f"{name}: {key}: {found.get(name, {}).get(key)} instead of {value}"
    return f"runs {sorted(found)} instead of {sorted(expected)}"


def check_full_disk(kilobytes: int, expected: dict) -> tuple[str | None, bool]:
    """Trains on a disk of this size, then to the end on a large one: (what differs or None, whether
    it was full)."""
    folder = scratch_folder()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        code = in_child(lambda: train(TrainingArgs(str(folder))))
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        if code not in (0, 2):  # 2: a one-line error with a remedy
            return f"exit code {code} on the full disk", True
        problem = check_the_same_command(folder, expected)
        return problem, code == 2
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def main(args: Args) -> None:
    torch.set_num_threads(1)
    hardware.machine()  # asks git, once for all children
    folder = scratch_folder()
    number = number_of_operations(folder)
    expected = outcome(folder)
    shutil.rmtree(folder)
    drills = [[kill] for kill in itertools.product(range(1, number + 1, args.every), (True, False))]
    rng = random.Random(args.seed)
    for _ in range(args.twice):
        drills.append(
            [
                (rng.randint(1, number), rng.random() < 0.5),
                (rng.randint(1, number), rng.random() < 0.5),
            ]
        )
    failures = 0
    for kills in drills:
        if problem := check(kills, expected):
            failures += 1
            moments = ", then ".join(
                f"{'before' if before else 'after'} operation {k}" for k, before in kills
            )
            print(f"killed {moments}: {problem}", file=sys.stderr)
    num_full = 0
    full = True
    while args.disk and full:  # until the disk is large enough
        num_full += 1
        problem, full = check_full_disk(4 * num_full, expected)
        drills.append([])
        if problem:
            failures += 1
            print(f"on a disk of {4 * num_full} kB: {problem}", file=sys.stderr)
    if args.disk:
        print(f"{num_full - 1} full disks, of 4 to {4 * num_full - 4} kB")
    if failures:
        raise SystemExit(f"FAILED: {failures} of {len(drills)} drills")
    print(f"passed: {len(drills)} drills over {number} file operations, the same rows each time")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
