"""Runs a grid of plain commands, on local slots,
with Ray on several machines, or as a Slurm array (docs/sweeps.md).

    python scripts/sweep.py 'sac_continuous.py --activation {relu,crational} --seed {1..10}'
    python scripts/sweep.py 'pqn_atari.py --env-id {Breakout,Pong} --seed {1..5}' --ray
    python scripts/sweep.py 'dqn_atari.py --activation {relu,tanh} --seed {1..5}' --slurm dqn.sbatch

Braces expand as in bash. Seeds of one cell share a process if the script trains seeds together.
Finished runs are skipped, interrupted ones resume: run the same command again after a crash,
Ctrl-C, SIGTERM or a lost machine.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import sweep_task
import tyro
from sweep_plan import (
    ROOT,
    expand_all,
    labels,
    plan,
    read_grids,
    refuse_control_characters,
    runlog,
)

from runlog import disk
from runlog.progress import compact

MAX_ARRAY = 1_000  # tasks in one Slurm array: MaxArraySize is 1,001 unless a cluster sets another
LOST_NODES = 10  # how often Ray restarts a task whose machine or worker is gone
LABEL_FRACTION = 0.45  # largest part of the table's width for the labels of the processes
MAX_SLOTS = 10_000  # on one machine: more is a typing error


Grids = tyro.conf.Positional[tuple[str, ...]]


@dataclasses.dataclass
class Args:
    # grid
    grids: Grids = ()  # quoted commands with {a,b} and {1..10}; - reads stdin, one grid per line
    name: str | None = None  # name of the sweep: its logs are in RUNS_DIR/sweeps/NAME; None: a hash
    runs_dir: str | None = None  # --runs-dir of every command that does not name one; None = runs
    seeds_per_process: int = 0  # at most this many seeds of a cell share a process; 0 = all
    # what to start
    dry_run: bool = False  # print the commands that are still to run, and stop
    limit: int | None = None  # start at most this many processes; 0 = only print the state
    only_failed: bool = False  # start only what failed the last time
    retries: int = 1  # further attempts after a crash (they resume); none after a user error
    patience: float = sweep_task.PATIENCE  # seconds to save a checkpoint when the sweep is stopped
    # processes on this machine
    slots: int | None = None  # processes at once; None = one per GPU (or core, without any)
    slots_per_gpu: int | None = None  # processes that share a GPU; None = 1
    gpus: str | None = None  # such as 0,1; empty = none; None = CUDA_VISIBLE_DEVICES, or all
    threads: int = 0  # CPU threads of a process; 0 = cores / slots (Ray, Slurm: 1)
    # clusters
    ray: tuple[str, ...] | None = None  # run on Ray: the cluster at ADDRESS, or a local one
    slurm: str | None = None  # write this sbatch file, to be submitted by hand, and stop


def say(*lines: str, end: str = "\n", file=None) -> None:
    """Prints lines. If the terminal is gone, a pipe is closed or the disk behind `> FILE` is full,
    the sweep continues and prints nothing more there."""
    file = file or sys.stdout
    try:
        print(*lines, sep="\n", end=end, file=file, flush=True)
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, file.fileno())  # what is still in the buffer goes there too
        os.close(devnull)


def write_manifest(folder: Path, processes: Sequence[dict]) -> None:
    temp = folder / "manifest.jsonl.tmp"
    with disk.writing(folder / "manifest.jsonl"):
        try:
            temp.write_text("".join(json.dumps(process) + "\n" for process in processes))
            os.replace(temp, folder / "manifest.jsonl")
        except OSError:
            temp.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Allows one launcher per sweep, else UserError; the kernel frees a dead holder's lock."""
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode(errors="replace").strip()
            problem = f"{folder} is being run by process {pid}"
            raise runlog.UserError(
                f"{problem}; wait until it ends, stop it, or use another --name"
            ) from None
        except OSError as error:
            remedy = "choose a --runs-dir on a disk that has file locks"
            raise runlog.UserError(
                f"cannot lock {folder} ({error.strerror or error}); {remedy}"
            ) from None
        with contextlib.suppress(OSError):  # only for the message above
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


# ---- engines -------------------------------------------------------------------------------------
# Both have start(process); full(): no room for another; busy(): something is running;
# wait(seconds) -> [(process, exit code)] of what has ended; running() -> [(id, start time)];
# stop() -> how many processes had to be killed because they took longer than --patience, or because
# a second signal came.


def find_gpus(gpus: str | None) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: --gpus, else what that variable has,
    else what nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else gpus
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i in range(len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)))]


def find_places(args: Args) -> tuple[list[dict[str, str]], int]:
    """(for every local slot the variables that assign its GPU, threads of each process)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = find_gpus(args.gpus)
    if args.slots_per_gpu and not gpus:
        raise runlog.UserError(f"--slots-per-gpu {args.slots_per_gpu}: no GPU here; use --slots")
    number = args.slots or (
        len(gpus) * (args.slots_per_gpu or 1) if gpus else max(1, cores // (args.threads or 1))
    )
    if args.slots_per_gpu:
        number = min(number, len(gpus) * args.slots_per_gpu)
    hidden = [{"CUDA_VISIBLE_DEVICES": ""}] if args.gpus is not None else [{}]
    places = itertools.cycle([{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or hidden)
    return list(itertools.islice(places, number)), args.threads or max(1, cores // number)


class LocalSlots:
    """Child processes, one per slot; they die with this process (sweep_task.before_start)."""

    def __init__(
        self,
        sweep: Path,
        places: list[dict[str, str]],
        patience: float,
        request: sweep_task.StopRequest,
    ):
        self.sweep = sweep
        self.free = list(places)
        self.children = {}
        self.patience = patience
        self.request = request

    def full(self) -> bool:
        return not self.free

    def busy(self) -> bool:
        return bool(self.children)

    def start(self, process: dict) -> None:
        place = self.free.pop(0)
        self.children[process["id"]] = sweep_task.start(self.sweep, process, place), process, place

    def wait(self, seconds: float) -> list[tuple[dict, int]]:
        end = time.monotonic() + seconds
        ended = []
        while not ended and time.monotonic() < end and not self.request.number:
            time.sleep(0.05)
            ended = [
                name for name, (child, _, _) in self.children.items() if child.poll() is not None
            ]
        codes = []
        for name in ended:
            child, process, place = self.children.pop(name)
            self.free.append(place)
            codes.append((process, sweep_task.close(self.sweep, process, child)))
        return codes

    def running(self) -> list[tuple[str, float]]:
        return [(name, child.began) for name, (child, _, _) in self.children.items()]

    def stop(self) -> int:
        children = [child for child, _, _ in self.children.values()]
        killed = sweep_task.stop(children, self.patience, self.request)
        for child, process, _ in self.children.values():
            sweep_task.close(self.sweep, process, child, child in killed)
        self.children.clear()
        return len(killed)


class RayTasks:
    """Ray tasks, all submitted at once; each runs its process as a child.
    Ray restarts those of a lost machine."""

    def __init__(self, sweep: Path, args: Args, threads: int, request: sweep_task.StopRequest):
        address = "".join(args.ray)
        slots_per_gpu = args.slots_per_gpu
        self.patience = args.patience
        self.request = request
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        host, _, port = address.rpartition(":")
        own_machine = address == "local" or host in ("127.0.0.1", "localhost")
        # read when Ray is imported; 0 means "no cluster", so that it listens on loopback only
        if own_machine:
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no reports to its makers
        try:
            import ray
        except ImportError:
            problem = "--ray: Ray is not installed; pip install -r requirements-sweep.txt"
            raise runlog.UserError(problem) from None
        self.ray = ray
        self.sweep = sweep.resolve()
        self.tasks = {}
        self.began = time.time()
        self.looked = 0.0
        self.last_running = []
        with runlog.errors_are_user_errors(
            f"--ray {address}: Ray does not start", "check the address"
        ):
            if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            local = {"include_dashboard": False} if address == "local" else {}
            ray.init(address, logging_level="error", log_to_driver=False, **local)
        ray.cloudpickle.register_pickle_by_value(sweep_task)  # other machines need no copy of it
        resources = ray.cluster_resources()
        for flag, amount, kind in (
            ("--slots-per-gpu", slots_per_gpu, "GPU"),
            ("--threads", threads, "CPU"),
        ):
            most = max(
                (node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0
            )
            if amount and most < (1 if kind == "GPU" else amount):  # the tasks would wait forever
                ray.shutdown()
                problem = (
                    "the cluster has no GPU; leave it out"
                    if kind == "GPU"
                    else f"no machine has more than {most:g}"
                )
                raise runlog.UserError(f"{flag} {amount}: {problem}")
        per_gpu = slots_per_gpu or ("GPU" in resources and 1)
        options = {
            "num_cpus": threads,
            "num_gpus": 1 / per_gpu if per_gpu else 0,
            "max_retries": LOST_NODES,
        }
        self.task = ray.remote(**options)(sweep_task.run_on_ray)
        # workers have the environment of their node, not ours
        prefixes = ("MUJOCO_", "WANDB_", "TORCH")
        self.env = {key: value for key, value in os.environ.items() if key.startswith(prefixes)}

    def full(self) -> bool:
        return False

    def busy(self) -> bool:
        return bool(self.tasks)

    def start(self, process: dict) -> None:
        self.tasks[self.task.remote(self.sweep, process, self.env, self.patience)] = process

    def wait(self, seconds: float) -> list[tuple[dict, int]]:
        if not self.tasks:
            time.sleep(seconds)
        ended, _ = self.ray.wait(list(self.tasks), timeout=seconds) if self.tasks else ([], [])
        codes = []
        for task in ended:
            process = self.tasks.pop(task)
            try:
                codes.append((process, self.ray.get(task)))
            except (
                self.ray.exceptions.RayError
            ) as error:  # lost more than LOST_NODES times, or an error of ours
                error = getattr(error, "cause", None) or error  # what the task itself raised
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                state = {
                    "status": "failed",
                    "code": -1,
                    "seconds": 0.0,
                    "start": self.began,
                    "reason": reason,
                }
                sweep_task.write_state(self.sweep, process, **state)
                codes.append((process, -1))
        return codes

    def running(self) -> list[tuple[str, float]]:
        """The submitted tasks that are running, by their state files;
        looks at most every two seconds."""
        if time.monotonic() > self.looked + 2:
            self.looked = time.monotonic()
            states = [(p["id"], sweep_task.read_state(self.sweep, p)) for p in self.tasks.values()]
            since = self.began - 60  # clocks differ
            self.last_running = [
                (name, s["start"])
                for name, s in states
                if s.get("status") == "running" and s["start"] > since
            ]
        return self.last_running

    def stop(self) -> int:
        """The tasks stop their processes themselves (sweep_task.run_on_ray),
        on whatever machine they are."""
        pending = list(self.tasks)
        # the cluster itself may be gone
        with contextlib.suppress(self.ray.exceptions.RayError, ConnectionError):
            for task in pending:
                self.ray.cancel(task, force=False)
            end = time.monotonic() + self.patience + 5  # 5 s for messages there and back
            while pending and time.monotonic() < end and self.request.count < 2:
                _, pending = self.ray.wait(pending, num_returns=len(pending), timeout=0.5)
        running = [task for task in pending if self.is_running(self.tasks[task])]
        self.ray.shutdown()  # ends the workers of this job, and so their children
        return len(running)

    def is_running(self, process: dict) -> bool:
        return sweep_task.read_state(self.sweep, process).get("status") == "running"


def sbatch_quoted(text: str) -> str:
    """A text as one word of a #SBATCH line, with its blanks and quotes and no % replacements."""
    return '"' + text.replace("%", "%%").replace('"', '\\"') + '"'


def write_slurm(
    file: Path, sweep: Path, todo: Sequence[dict], args: Args, threads: int
) -> list[Path]:
    """Writes sbatch files of at most MAX_ARRAY tasks each: FILE, FILE-2, ...; returns them. Raises
    UserError: sbatch cannot use a folder's name, or a FILE is something else and would be
    lost."""
    folder = str(sweep.resolve())
    if "\\" in folder:  # with one anywhere in it sbatch replaces neither %A nor %a
        raise runlog.UserError(
            f"--slurm {file}: {folder} has a backslash, which sbatch cannot use; use another folder"
        )
    for text in (folder, sys.executable, str(ROOT)):
        refuse_control_characters("--slurm", text)
    cap = f"%{args.slots}" if args.slots else ""
    seconds = max(1, math.ceil(args.patience))
    task = [sys.executable, str(ROOT / "scripts" / "sweep_task.py"), folder]
    written = []
    for number in range(0, len(todo), MAX_ARRAY):
        part = todo[number : number + MAX_ARRAY]
        path = file if not number else file.with_name(f"{file.name}-{number // MAX_ARRAY + 1}")
        lines = [
            "#!/bin/bash",
            f"#SBATCH --job-name={sweep.name}",
            f"#SBATCH --array=0-{len(part) - 1}{cap}",
            f"#SBATCH --ntasks=1 --cpus-per-task={threads}",
        ]
        if args.slots_per_gpu:
            lines.append("#SBATCH --gres=gpu:1")
        output = f'"{sbatch_quoted(folder)[1:-1]}/slurm-%A_%a.log"'
        lines += [
            f"#SBATCH --output={output} --open-mode=append",
            f"#SBATCH --requeue --signal=B:TERM@{seconds}",
            "# Time, memory and partition: add lines like these, or give flags to sbatch. The same "
            "file may be",
            "# submitted again: finished runs are skipped, and interrupted ones resume.",
            "ids=(",
        ]
        lines += [f"  {shlex.quote(process['id'])}" for process in part]
        lines += [")", f'exec {shlex.join(task)} "${{ids[$SLURM_ARRAY_TASK_ID]}}" {seconds}']
        with disk.writing(path):
            if path.exists() and b"#SBATCH" not in path.read_bytes()[:1000]:
                raise runlog.UserError(
                    f"--slurm {path}: exists and is not an sbatch file; name another"
                )
            # paths byte for byte, whatever the locale
            path.write_bytes(os.fsencode("\n".join(lines) + "\n"))
        written.append(path)
    return written


# ---- running and reporting -----------------------------------------------------------------------


def span(seconds: float) -> str:
    """3 s, 12 min, 5 h 3 min"""
    minutes = int(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Board:
    """Counts, and a table of them that is redrawn in place on a terminal;
    elsewhere a line per event."""

    def __init__(self, sweep: Path, processes: Sequence[dict], engine, slots: int | None):
        self.sweep = sweep
        self.engine = engine
        self.slots = slots
        self.processes = {process["id"]: process for process in processes}
        self.labels = labels(processes)
        states = [sweep_task.read_state(sweep, process) for process in processes]
        self.seconds = [state["seconds"] for state in states if state.get("status") == "ended"]
        self.done = 0
        self.failed = 0
        self.stopped = 0
        self.waiting = 0
        self.first_seen = {}  # running process -> (step, time) when its step was first read
        self.live = sys.stdout.isatty()
        self.height = 0
        self.drawn = 0.0

    def time_to_go(self) -> str:
        """The time that remains: what the running processes still need at the pace of their steps,
        plus for each in the queue the median time of those that have ended (until one has, of those
        running), divided by the slots. Empty until one of these is known."""
        running = self.engine.running()
        elapsed = {name: time.time() - start for name, start in running}
        left = {name: self.seconds_left(name) for name, _ in running}
        known = [name for name in left if left[name] is not None]
        lasted = self.seconds or [elapsed[name] + left[name] for name in known]
        if not lasted:
            return ""
        median = statistics.median(lasted)
        total = median * self.waiting
        for name in left:
            by_median = max(0.0, median - elapsed[name])
            total += left[name] if name in known else by_median
        return span(total / (self.slots or max(1, len(running))))

    def seconds_left(self, name: str) -> float | None:
        """Seconds that a running process still needs, at its pace since its step was first seen
        (a resumed one starts in the middle); None before its step has moved."""
        progress = sweep_task.read_progress(self.sweep, self.processes[name])
        if progress is None:
            return None
        step, total = progress
        now = time.time()
        first_step, first_time = self.first_seen.setdefault(name, (step, now))
        if step <= first_step:
            return None
        return (total - step) * (now - first_time) / (step - first_step)

    def event(self, text: str) -> None:
        summary = f"{len(self.engine.running())} running, {self.done} done, "
        summary += f"{self.failed} failed, {self.waiting} waiting"
        to_go = self.time_to_go()
        if to_go:
            summary += f", {to_go} to go"
        self.clear()
        say(f"{time.strftime('%H:%M:%S')} {text} ({summary})")

    def clear(self) -> None:
        if self.height:
            say(f"\x1b[{self.height}F\x1b[J", end="")
        self.height = 0

    def draw(self) -> None:
        """Draws the table, at most once a second."""
        if not self.live or time.monotonic() < self.drawn + 1:
            return
        self.drawn = time.monotonic()
        size = shutil.get_terminal_size()
        running = self.engine.running()
        numbers = (len(running), self.done, self.failed, self.waiting)
        lines = ["  running     done   failed  waiting   time to go"]
        lines.append("".join(f"{number:>9}" for number in numbers) + f"{self.time_to_go():>13}")
        shown = running[: max(0, size.lines - 4)]
        longest = max((len(self.labels[name]) for name, _ in shown), default=0)
        room = min(longest, int(LABEL_FRACTION * size.columns))
        lines += [self.row(name, start, room, size.columns - 1) for name, start in shown]
        self.clear()
        plain = []
        for line in lines:  # logs may move the cursor
            plain.append("".join(c if c.isprintable() else " " for c in line))
        say(*(line[: size.columns - 1] for line in plain))
        self.height = len(lines)

    def row(self, name: str, start: float, room: int, columns: int) -> str:
        """A process in one line: its label in `room` characters, its step, its time, and as much
        of its last message as fits."""
        process = self.processes[name]
        label = middle_cut(self.labels[name], room)
        progress = sweep_task.read_progress(self.sweep, process)
        step = "starting"
        if progress is not None:
            done, total = progress
            step = f"{compact(done)}/{compact(total)}"
        (last,) = sweep_task.log_tail(self.sweep, process, 1) or [""]
        last = "" if last.startswith("$ ") else re.sub(r"^step \d+: ", "", last)
        row = f"  {label:<{room}}  {step:>11}  {span(time.time() - start):>8}  "
        return row + fitting(without_folders(last), columns - len(row))


def without_folders(line: str) -> str:
    """A line that a training prints, without the folder of its runs, which the label stands for.

    >>> without_folders("resuming runs/Pendulum-v1__sac_continuous__relu__s1__0a from step 200")
    'resuming from step 200'
    """
    folder = r".*__s\d+__\w+"
    line = re.sub(rf",? (such as|in) {folder}", "", line)
    line = re.sub(rf"^(resuming|finished|diverged):? {folder}", r"\1", line)
    return re.sub(rf"^{folder}: ", "", line)


def fitting(text: str, room: int) -> str:
    """As many of the values, separated by commas, as there is room for.

    >>> fitting("eval/success 0.3, overestimation/mean -12.5, steps/s 80", 45)
    'eval/success 0.3, overestimation/mean -12.5'
    """
    parts = text.split(", ")
    while len(parts) > 1 and len(", ".join(parts)) > room:
        parts.pop()
    return ", ".join(parts)


def middle_cut(text: str, room: int) -> str:
    """A label shortened in the middle, since labels differ at either end.
    >>> middle_cut("crational, walker-walk, utd 10", 20)
    'crational..k, utd 10'
    """
    if len(text) <= room:
        return text
    kept = max(room - 2, 0)
    tail = kept // 2
    return f"{text[: kept - tail]}..{text[len(text) - tail :]}"


def drive(
    todo: Sequence[dict], engine, board: Board, retries: int, request: sweep_task.StopRequest
) -> None:
    """Starts the processes as slots become free, until all have ended or failed,
    or a signal asks to stop."""
    queue = list(todo)
    attempts = Counter()
    waiting = set()
    while (queue or engine.busy()) and not request.number:
        for process in list(queue):
            if engine.full() or request.number:
                break
            # an orphan from another machine, or a run started by somebody else
            if reason := sweep_task.holder(process):
                if process["id"] not in waiting:
                    board.event(f"waiting: {reason}")
                waiting.add(process["id"])
                continue
            queue.remove(process)
            board.waiting = len(queue)
            if sweep_task.has_ended(process):  # meanwhile, in that other process
                board.done += 1
            else:
                engine.start(process)
                if isinstance(engine, LocalSlots):
                    board.event(f"started {process['id']}")
        for process, code in engine.wait(1.0):
            name = process["id"]
            seconds = sweep_task.read_state(board.sweep, process).get("seconds", 0.0)
            if code == 0:
                board.done += 1
                board.seconds.append(seconds)
                board.event(f"finished {name} in {span(seconds)}")
            elif sweep_task.holder(process):  # does not count as an attempt: another trains it
                queue.append(process)
                board.waiting = len(queue)
                board.event(f"ended with exit code {code}, will resume later: {name}")
            elif code != 2 and attempts[name] < retries:  # 2: another attempt would not help
                attempts[name] += 1
                queue.append(process)
                board.waiting = len(queue)
                board.event(f"ended with exit code {code}, will resume later: {name}")
            elif code in sweep_task.STOP_CODES:  # by a signal from outside, perhaps on purpose
                board.stopped += 1
                board.event(f"stopped with exit code {code}, left for the next time: {name}")
            else:
                board.failed += 1
                board.event(f"FAILED with exit code {code}: {name}")
        board.draw()
    board.clear()


def report(sweep: Path, processes: Sequence[dict]) -> int:
    """Prints what failed, with the ends of the logs, and the state of the sweep.
    Returns the number of failures."""
    left = [process for process in processes if not sweep_task.has_ended(process)]
    failed = {
        process["id"]: process
        for process in left
        if sweep_task.read_state(sweep, process).get("status") == "failed"
    }
    for name, process in failed.items():
        state = sweep_task.read_state(sweep, process)
        lines = [f"\nFAILED with exit code {state['code']}: {shlex.join(process['argv'])}"]
        lines.append(f"  {state.get('reason', sweep / 'logs' / f'{name}.log')}")
        lines += [f"  | {line}" for line in sweep_task.log_tail(sweep, process, 10)]
        say(*lines, file=sys.stderr)
    folders = []
    for process in processes:
        folders += [Path(process["cwd"], run) for run in process["runs"]]
    diverged = sum(
        sweep_task.read_json(folder / "meta.json").get("status") == "diverged" for folder in folders
    )
    done = len(processes) - len(left)
    counts = f"{done} of {len(processes)} processes done, {len(failed)} failed, "
    counts += f"{len(left) - len(failed)} waiting; {len(folders)} runs"
    if diverged:
        counts += f", {diverged} diverged"
    say(f"{sweep}: {counts}")
    return len(failed)


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created.
    A word after --ray may be a grid."""
    runlog.check_range(args, "[0, inf)", "retries threads seeds_per_process patience")
    given = [flag for flag in ("slots", "slots_per_gpu") if getattr(args, flag) is not None]
    runlog.check_range(args, "[1, inf)", " ".join(given))
    runlog.check_range(args, "[0, inf)", "limit" if args.limit is not None else "")
    for flag in given:
        if getattr(args, flag) > MAX_SLOTS:
            start = f"--{flag.replace('_', '-')} {getattr(args, flag)}"
            raise runlog.UserError(
                f"{start}: more than {MAX_SLOTS:,} processes at once; give fewer"
            )
    if args.ray is not None:
        grids = tuple(word for word in args.ray if word == "-" or re.search(r"\.py(\s|$)", word))
        addresses = tuple(word for word in args.ray if word not in grids)
        args = dataclasses.replace(args, ray=addresses, grids=(*args.grids, *grids))
        if len(addresses) > 1:
            raise runlog.UserError(
                f"--ray {' '.join(addresses)}: give one address, or none for a cluster of its own"
            )
        for flag in ("slurm", "slots", "gpus"):
            if getattr(args, flag) is not None:
                remedy = (
                    "Ray counts CPUs and GPUs itself" if flag != "slurm" else "use one of the two"
                )
                raise runlog.UserError(
                    f"--{flag} {getattr(args, flag)}: does not go with --ray; {remedy}"
                )
    if args.slurm is not None and (args.slots_per_gpu or 1) > 1:
        raise runlog.UserError(
            f"--slots-per-gpu {args.slots_per_gpu}: with --slurm give 1, for a whole GPU each"
        )
    if not args.grids:
        raise runlog.UserError(
            "give a grid, such as 'sac_continuous.py --activation {relu,crational} --seed {1..10}'"
        )
    for flag in ("name", "runs_dir", "slurm"):
        value = getattr(args, flag)
        if value is not None:
            refuse_control_characters(f"--{flag.replace('_', '-')}", value)
            if not value:
                raise runlog.UserError(
                    f"--{flag.replace('_', '-')} '': is empty; name one, or leave the flag out"
                )
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9=_-][A-Za-z0-9.=_-]*", args.name):
        raise runlog.UserError(
            f"--name {args.name}: is a folder's name; use letters, digits and . = _ -"
        )
    return args


def run_all(
    todo: Sequence[dict], processes: Sequence[dict], sweep: Path, places, threads: int, args: Args
) -> int:
    """Runs what is left, and returns the exit code.
    On a first SIGINT, SIGTERM or SIGHUP the processes save and end; a second one kills them."""
    request = sweep_task.StopRequest()
    if args.ray is not None:
        engine = RayTasks(sweep, args, threads, request)
    else:
        engine = LocalSlots(sweep, places, args.patience, request)
    # Not earlier: Ray has handlers of its own, and while it starts Ctrl-C may simply end us.
    request.listen()
    board = Board(sweep, processes, engine, len(places) or None)
    board.done = sum(map(sweep_task.has_ended, processes))
    board.waiting = len(todo)
    killed = 0
    try:
        say(f"{sweep}: {len(todo)} of {len(processes)} processes to run")
        drive(todo, engine, board, args.retries, request)
        if request.number:
            hurry = f"at most {span(args.patience)}; a second signal ends them at once"
            say(
                f"\nstopping: the running processes save a checkpoint first ({hurry})",
                file=sys.stderr,
            )
    finally:
        killed = engine.stop()
    if request.number:
        if killed:
            say(
                f"{killed} had to be killed, and will resume from the previous checkpoint",
                file=sys.stderr,
            )
        say("stopped; the same command resumes from here", file=sys.stderr)
        return request.exit_code()
    failed = report(sweep, processes)
    return 1 if failed or board.stopped else 0


def shown_python() -> str:
    """This interpreter, as it has to be named in a command that is pasted into a shell here."""
    if shutil.which("python") == sys.executable:
        return "python"
    if Path(sys.executable).is_relative_to(Path.cwd()):
        return str(Path(sys.executable).relative_to(Path.cwd()))
    return sys.executable


def main(args: Args) -> int:
    """Returns the exit code: 0; 1 if processes failed;
    130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP."""
    args = validate(args)
    elsewhere = args.ray is not None or args.slurm is not None
    places, threads = ([], args.threads or 1) if elsewhere else find_places(args)
    commands = expand_all(read_grids(args.grids, sys.stdin))
    processes = plan(commands, args.runs_dir, args.seeds_per_process, threads)
    runs = sorted(itertools.chain.from_iterable(process["runs"] for process in processes))
    digest = hashlib.sha256("\n".join(runs).encode(errors="surrogateescape")).hexdigest()
    sweep = Path(args.runs_dir or "runs") / "sweeps" / (args.name or f"sweep-{digest[:8]}")
    todo = [process for process in processes if not sweep_task.has_ended(process)]
    if args.only_failed:
        todo = [
            process
            for process in todo
            if sweep_task.read_state(sweep, process).get("status") == "failed"
        ]
    todo = todo[: args.limit]
    if args.dry_run:
        if todo:
            python = shown_python()
            say(*(shlex.join([python, *process["argv"]]) for process in todo))
        say(f"{len(todo)} of {len(processes)} processes are left", file=sys.stderr)
        return 0
    with locked(sweep):
        write_manifest(sweep, processes)
        if args.slurm is not None:
            files = write_slurm(Path(args.slurm), sweep, todo, args, threads)
            if files:
                say(*(f"sbatch {shlex.quote(str(file))}" for file in files))
            else:
                say(f"nothing is left to run: {args.slurm} is not written", file=sys.stderr)
            return 0
        if todo:
            try:
                return run_all(todo, processes, sweep, places, threads, args)
            except sweep_task.SweepError as error:
                raise runlog.UserError(str(error)) from error
        return 1 if report(sweep, processes) else 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        # an activation's or a folder's name may have characters that the terminal lacks
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")
    try:
        with runlog.exit_on_user_error():
            sys.exit(main(runlog.parse_args(Args)))
    except KeyboardInterrupt:
        say("\nstopped before anything was started", file=sys.stderr)
        sys.exit(130)
