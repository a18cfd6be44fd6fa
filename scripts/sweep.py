"""Runs a grid of plain commands, on local slots, with Ray on several machines, or as a Slurm array (docs/sweeps.md).

    python scripts/sweep.py 'sac_continuous.py --activation {relu,crational} --seed {1..10}' --slots 2
    python scripts/sweep.py 'pqn_atari.py --env-id {Breakout,Pong} --activation {relu,tanh_hr} --seed {1..5}' --ray
    python scripts/sweep.py 'dqn_atari.py --env-id Pong --activation {relu,tanh} --seed {1..5}' --slurm sweep.sbatch

Braces expand as in bash. Seeds of one cell share a process where the script trains seeds together. Finished runs are
skipped, interrupted ones resume: after a crash, Ctrl-C or a lost machine give the same command again.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
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
from sweep_plan import ROOT, expand, plan, read_grids, runlog

MAX_ARRAY = 1_000  # tasks in one Slurm array: MaxArraySize is 1,001 unless a cluster says otherwise
LOST_NODES = 10  # Ray starts a task anew so many times when its machine or worker is gone


@dataclasses.dataclass
class Args:
    grids: tyro.conf.Positional[
        tuple[str, ...]
    ] = ()  # quoted commands with {a,b} and {1..10}; - reads stdin, one a line
    name: str | None = (
        None  # of the sweep: its manifest, logs and state are in RUNS_DIR/sweeps/NAME; None = from the grid
    )
    runs_dir: str | None = None  # --runs-dir of every command that has none of its own; None = runs
    dry_run: bool = False  # print the commands that are left, and stop
    limit: int | None = None  # start at most so many processes this time; 0 = only tell how the sweep stands
    only_failed: bool = False  # start only what failed the last time
    retries: int = 1  # further attempts of a process that crashes (they resume); a user error gets none
    seeds_per_process: int = 0  # most seeds of a cell in one process, for scripts that train them together; 0 = all
    threads: int = 0  # CPU threads of a process; 0 = cores / slots (Ray, Slurm: 1)
    slots: int | None = None  # processes at a time; None = one per GPU or, without any, per core
    slots_per_gpu: int | None = None  # processes that share a GPU; None = 1
    gpus: str | None = None  # which GPUs, such as 0,1; empty = none; None = CUDA_VISIBLE_DEVICES, or all there are
    ray: tuple[str, ...] | None = None  # run on Ray: the cluster of this ADDRESS, or without one a local one
    slurm: str | None = None  # write this sbatch file, to be submitted by hand, and stop


def write_manifest(folder: Path, processes: Sequence[dict]) -> None:
    temp = folder / "manifest.jsonl.tmp"
    with runlog.writing(folder):
        temp.write_text("".join(json.dumps(process) + "\n" for process in processes))
        os.replace(temp, folder / "manifest.jsonl")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One launcher for a sweep. Raises UserError; the kernel frees the lock when its holder dies."""
    with runlog.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            told = f"{folder} is being run by process {lock.read().strip()}"
            raise runlog.UserError(f"{told}; wait until it ends, stop it, or use another --name") from None
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)
        yield


# ---- engines ---------------------------------------------------------------------------------------------------------
# Both have start(process); full(): no place for another; busy(): something is under way; wait(seconds) ->
# [(process, exit code)] of what has ended; running() -> [(id, when it began)]; stop().


def find_gpus(gpus: str | None) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: --gpus, else what that variable has, else what nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else gpus
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i in range(len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)))]


def find_places(args: Args) -> tuple[list[dict[str, str]], int]:
    """(for every local slot the variables that put a process there, threads of each)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = find_gpus(args.gpus)
    if args.slots_per_gpu and not gpus:
        raise runlog.UserError(f"--slots-per-gpu {args.slots_per_gpu}: no GPU here; use --slots")
    number = args.slots or (len(gpus) * (args.slots_per_gpu or 1) if gpus else max(1, cores // (args.threads or 1)))
    if args.slots_per_gpu:
        number = min(number, len(gpus) * args.slots_per_gpu)
    hidden = [{"CUDA_VISIBLE_DEVICES": ""}] if args.gpus is not None else [{}]
    places = itertools.cycle([{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or hidden)
    return list(itertools.islice(places, number)), args.threads or max(1, cores // number)


class LocalSlots:
    """Child processes, one for each place; they die with this process (sweep_task.die_with_parent)."""

    def __init__(self, sweep: Path, places: list[dict[str, str]]):
        self.sweep, self.free, self.children = sweep, list(places), {}

    def full(self) -> bool:
        return not self.free

    def busy(self) -> bool:
        return bool(self.children)

    def start(self, process: dict) -> None:
        place = self.free.pop(0)
        self.children[process["id"]] = sweep_task.start(self.sweep, process, place), process, place

    def wait(self, seconds: float) -> list[tuple[dict, int]]:
        end, ended = time.monotonic() + seconds, []
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
            ended = [name for name, (child, _, _) in self.children.items() if child.poll() is not None]
        codes = []
        for name in ended:
            child, process, place = self.children.pop(name)
            self.free.append(place)
            codes.append((process, sweep_task.close(self.sweep, process, child)))
        return codes

    def running(self) -> list[tuple[str, float]]:
        return [(name, child.began) for name, (child, _, _) in self.children.items()]

    def stop(self) -> None:
        sweep_task.stop([child for child, _, _ in self.children.values()])


class RayTasks:
    """Ray tasks, all submitted at once; each runs its process as a child. Ray starts those of a lost machine again."""

    def __init__(self, sweep: Path, address: str | None, threads: int, slots_per_gpu: int | None):
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        host, _, port = address.rpartition(":")
        own_machine = address == "local" or host in ("127.0.0.1", "localhost")
        if own_machine:  # read when Ray is imported; says "no cluster", upon which it listens on loopback only
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        try:
            import ray
        except ImportError:
            told = "--ray: Ray is not installed; pip install -r requirements-sweep.txt"
            raise runlog.UserError(told) from None
        self.ray, self.sweep, self.tasks = ray, sweep.resolve(), {}
        self.began, self.looked, self.under_way = time.time(), 0.0, []
        with runlog.errors_are_user_errors(f"--ray {address}: Ray does not start", "check the address"):
            if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            local = {"include_dashboard": False} if address == "local" else {}
            ray.init(address, logging_level="error", log_to_driver=False, **local)
        ray.cloudpickle.register_pickle_by_value(sweep_task)  # workers elsewhere need not find it
        resources = ray.cluster_resources()
        for flag, amount, kind in (("--slots-per-gpu", slots_per_gpu, "GPU"), ("--threads", threads, "CPU")):
            most = max((node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
            if amount and most < (1 if kind == "GPU" else amount):  # the tasks would wait for ever
                ray.shutdown()
                told = "the cluster has no GPU; leave it out" if kind == "GPU" else f"no machine has more than {most:g}"
                raise runlog.UserError(f"{flag} {amount}: {told}")
        per_gpu = slots_per_gpu or ("GPU" in resources and 1)
        options = {"num_cpus": threads, "num_gpus": 1 / per_gpu if per_gpu else 0, "max_retries": LOST_NODES}
        self.task = ray.remote(**options)(sweep_task.run)
        prefixes = ("MUJOCO_", "WANDB_", "TORCH")  # workers have the environment of their node, not ours
        self.env = {key: value for key, value in os.environ.items() if key.startswith(prefixes)}

    def full(self) -> bool:
        return False

    def busy(self) -> bool:
        return bool(self.tasks)

    def start(self, process: dict) -> None:
        self.tasks[self.task.remote(self.sweep, process, self.env)] = process

    def wait(self, seconds: float) -> list[tuple[dict, int]]:
        if not self.tasks:
            time.sleep(seconds)
        ended, _ = self.ray.wait(list(self.tasks), timeout=seconds) if self.tasks else ([], [])
        codes = []
        for task in ended:
            process = self.tasks.pop(task)
            try:
                codes.append((process, self.ray.get(task)))
            except self.ray.exceptions.RayError as error:  # lost more than LOST_NODES times, or an error of ours
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                sweep_task.write_state(self.sweep, process, status="failed", code=-1, reason=reason)
                codes.append((process, -1))
        return codes

    def running(self) -> list[tuple[str, float]]:
        """Of all tasks submitted those under way, by their state files; looks every other second."""
        if time.monotonic() > self.looked + 2:
            self.looked = time.monotonic()
            states = [(p["id"], sweep_task.read_state(self.sweep, p)) for p in self.tasks.values()]
            since = self.began - 60  # clocks differ
            here = [(name, s["start"]) for name, s in states if s.get("status") == "running" and s["start"] > since]
            self.under_way = here
        return self.under_way

    def stop(self) -> None:
        self.ray.shutdown()  # ends the workers of this job, and so their children


def write_slurm(file: Path, sweep: Path, todo: Sequence[dict], args: Args, threads: int) -> list[Path]:
    """Writes sbatch files of at most MAX_ARRAY tasks each: FILE, FILE-2, ...; returns them."""
    written, cap = [], f"%{args.slots}" if args.slots else ""
    gpu = ["#SBATCH --gres=gpu:1"] if args.slots_per_gpu else []
    for number in range(0, len(todo), MAX_ARRAY):
        part = todo[number : number + MAX_ARRAY]
        written.append(file if not number else file.with_name(f"{file.name}-{number // MAX_ARRAY + 1}"))
        lines = [
            "#!/bin/bash",
            f"#SBATCH --job-name={sweep.name}",
            f"#SBATCH --array=0-{len(part) - 1}{cap}",
            f"#SBATCH --ntasks=1 --cpus-per-task={threads}",
            *gpu,
            f"#SBATCH --output={sweep.resolve()}/slurm-%A_%a.log --open-mode=append",
            "#SBATCH --requeue --signal=B:TERM@60",
            "# Time, memory and partition: further lines like these, or flags of sbatch. The same file may be",
            "# submitted again: what is finished is skipped, and what was cut off resumes.",
            "ids=(",
            *(f"  {shlex.quote(process['id'])}" for process in part),
            ")",
            f"exec {shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'scripts' / 'sweep_task.py'))} "
            f'{shlex.quote(str(sweep.resolve()))} "${{ids[$SLURM_ARRAY_TASK_ID]}}"',
        ]
        with runlog.writing(written[-1]):
            written[-1].write_text("\n".join(lines) + "\n")
    return written


# ---- running and telling ---------------------------------------------------------------------------------------------


def span(seconds: float) -> str:
    """3 s, 12 min, 5 h 3 min"""
    minutes = int(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class Board:
    """Counts, and a table of them that is drawn over itself on a terminal; elsewhere a line per event."""

    def __init__(self, sweep: Path, processes: Sequence[dict], engine, slots: int | None):
        self.sweep, self.engine, self.slots = sweep, engine, slots
        self.processes = {process["id"]: process for process in processes}
        states = [sweep_task.read_state(sweep, process) for process in processes]
        self.seconds = [state["seconds"] for state in states if state.get("status") == "ended"]
        self.done, self.failed, self.left = 0, 0, 0
        self.live, self.height, self.drawn = sys.stdout.isatty(), 0, 0.0

    def time_to_go(self) -> str:
        """Median time of the processes of this sweep that ended, for those in the queue and for what is missing of
        those running, over the slots; nothing is said before one has ended."""
        if not self.seconds:
            return ""
        median, running = statistics.median(self.seconds), self.engine.running()
        rest = sum(max(0.0, median - (time.time() - began)) for _, began in running) + median * self.left
        return span(rest / (self.slots or max(1, len(running))))

    def event(self, text: str) -> None:
        told = f"{len(self.engine.running())} running, {self.done} done, {self.failed} failed, {self.left} left"
        to_go = self.time_to_go()
        self.clear()
        print(f"{time.strftime('%H:%M:%S')} {text} ({told}{to_go and f', {to_go} to go'})", flush=True)

    def clear(self) -> None:
        if self.height:
            print(f"\x1b[{self.height}F\x1b[J", end="", flush=True)
        self.height = 0

    def draw(self) -> None:
        """Not more often than once a second."""
        if not self.live or time.monotonic() < self.drawn + 1:
            return
        self.drawn, size, running = time.monotonic(), shutil.get_terminal_size(), self.engine.running()
        numbers = (len(running), self.done, self.failed, self.left)
        lines = ["  running     done   failed     left   time to go"]
        lines.append("".join(f"{number:>9}" for number in numbers) + f"{self.time_to_go():>13}")
        for name, began in running[: max(0, size.lines - 4)]:
            (last,) = sweep_task.log_tail(self.sweep, self.processes[name], 1) or [""]
            lines.append(f"  {name}  {span(time.time() - began)}  {last}")
        self.clear()
        print(*(line[: size.columns - 1] for line in lines), sep="\n", flush=True)
        self.height = len(lines)


def drive(todo: Sequence[dict], engine, board: Board, retries: int) -> None:
    """Starts the processes as places get free, until all have ended or failed."""
    queue, attempts, waiting = list(todo), Counter(), set()
    while queue or engine.busy():
        for process in list(queue):
            if engine.full():
                break
            if told := sweep_task.holder(process):  # an orphan of another machine, or somebody's own run
                if process["id"] not in waiting:
                    board.event(f"waiting: {told}")
                waiting.add(process["id"])
                continue
            queue.remove(process)
            board.left = len(queue)
            if sweep_task.has_ended(process):  # meanwhile, by that other process
                board.done += 1
            else:
                engine.start(process)
                if isinstance(engine, LocalSlots):
                    board.event(f"started {process['id']}")
        for process, code in engine.wait(1.0):
            name, seconds = process["id"], sweep_task.read_state(board.sweep, process).get("seconds", 0.0)
            if code == 0:
                board.done += 1
                board.seconds.append(seconds)
                board.event(f"finished {name} in {span(seconds)}")
            elif sweep_task.holder(process) or (code != 2 and attempts[name] < retries):  # 2: another try is no remedy
                attempts[name] += not sweep_task.holder(process)
                queue.append(process)
                board.left = len(queue)
                board.event(f"ended with exit code {code}, goes on later: {name}")
            else:
                board.failed += 1
                board.event(f"FAILED with exit code {code}: {name}")
        board.draw()
    board.clear()


def report(sweep: Path, processes: Sequence[dict]) -> int:
    """Prints what failed with the ends of the logs, and how the sweep stands. Returns the number of failures."""
    left = [process for process in processes if not sweep_task.has_ended(process)]
    failed = {
        process["id"]: process for process in left if sweep_task.read_state(sweep, process).get("status") == "failed"
    }
    for name, process in failed.items():
        state = sweep_task.read_state(sweep, process)
        print(f"\nFAILED with exit code {state['code']}: {shlex.join(process['argv'])}", file=sys.stderr)
        print(f"  {state.get('reason', sweep / 'logs' / f'{name}.log')}", file=sys.stderr)
        print(*(f"  | {line}" for line in sweep_task.log_tail(sweep, process, 10)), sep="\n", file=sys.stderr)
    folders = [Path(process["cwd"], run) for process in processes for run in process["runs"]]
    diverged = sum(sweep_task.read_json(folder / "meta.json").get("status") == "diverged" for folder in folders)
    told = f"{len(processes) - len(left)} of {len(processes)} processes done, {len(failed)} failed, "
    told += f"{len(left) - len(failed)} left; {len(folders)} runs{f', {diverged} diverged' if diverged else ''}"
    print(f"{sweep}: {told}", flush=True)
    return len(failed)


def validate(args: Args) -> Args:
    """Raises UserError (flag, value, remedy) before anything is created. A word behind --ray may be a grid."""
    runlog.check_range(args, "[0, inf)", "retries threads seeds_per_process")
    given = [flag for flag in ("slots", "slots_per_gpu") if getattr(args, flag) is not None]
    runlog.check_range(args, "[1, inf)", " ".join(given))
    runlog.check_range(args, "[0, inf)", "limit" if args.limit is not None else "")
    if args.ray is not None:
        grids = tuple(word for word in args.ray if word == "-" or re.search(r"\.py(\s|$)", word))
        addresses = tuple(word for word in args.ray if word not in grids)
        args = dataclasses.replace(args, ray=addresses, grids=(*args.grids, *grids))
        if len(addresses) > 1:
            raise runlog.UserError(f"--ray {' '.join(addresses)}: give one address, or none for a cluster of its own")
        for flag in ("slurm", "slots", "gpus"):
            if getattr(args, flag) is not None:
                remedy = "Ray counts CPUs and GPUs itself" if flag != "slurm" else "use one of the two"
                raise runlog.UserError(f"--{flag} {getattr(args, flag)}: does not go with --ray; {remedy}")
    if args.slurm is not None and (args.slots_per_gpu or 1) > 1:
        raise runlog.UserError(f"--slots-per-gpu {args.slots_per_gpu}: with --slurm give 1, for a whole GPU each")
    if not args.grids:
        raise runlog.UserError("give a grid, such as 'sac_continuous.py --activation {relu,crational} --seed {1..10}'")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9=_-][A-Za-z0-9.=_-]*", args.name):
        raise runlog.UserError(f"--name {args.name}: is a folder's name; use letters, digits and . = _ -")
    return args


def main(args: Args) -> int:
    """Returns the exit code: 0, 1 with failed processes, 130 after Ctrl-C."""
    args = validate(args)
    elsewhere = args.ray is not None or args.slurm is not None
    places, threads = ([], args.threads or 1) if elsewhere else find_places(args)
    commands = [command for grid in read_grids(args.grids, sys.stdin) for command in expand(grid)]
    processes = plan(commands, args.runs_dir, args.seeds_per_process, threads)
    digest = hashlib.sha256("\n".join(sorted(run for p in processes for run in p["runs"])).encode()).hexdigest()
    sweep = Path(args.runs_dir or "runs") / "sweeps" / (args.name or f"sweep-{digest[:8]}")
    todo = [process for process in processes if not sweep_task.has_ended(process)]
    if args.only_failed:
        todo = [process for process in todo if sweep_task.read_state(sweep, process).get("status") == "failed"]
    todo = todo[: args.limit]
    if args.dry_run:
        print(*(shlex.join(["python", *process["argv"]]) for process in todo), sep="\n")
        print(f"{len(todo)} of {len(processes)} processes are left", file=sys.stderr)
        return 0
    with locked(sweep):
        write_manifest(sweep, processes)
        if args.slurm is not None:
            files = write_slurm(Path(args.slurm), sweep, todo, args, threads)
            print(*(f"sbatch {shlex.quote(str(file))}" for file in files), sep="\n")
            return 0
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, sweep_task.interrupt)
        engine = None
        try:
            if todo:
                if args.ray is not None:
                    engine = RayTasks(sweep, "".join(args.ray) or None, threads, args.slots_per_gpu)
                else:
                    engine = LocalSlots(sweep, places)
                board = Board(sweep, processes, engine, len(places) or None)
                board.done, board.left = sum(map(sweep_task.has_ended, processes)), len(todo)
                print(f"{sweep}: {len(todo)} of {len(processes)} processes to run", flush=True)
                drive(todo, engine, board, args.retries)
        except KeyboardInterrupt:
            print("\nstopping; the same command goes on from here", file=sys.stderr, flush=True)
            return 130
        finally:
            if engine is not None:
                engine.stop()
        return 1 if report(sweep, processes) else 0


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        sys.exit(main(runlog.parse_args(Args)))
