"""Speed on a GPU: one command, under five minutes, one JSON file and a table in Markdown.

    python benchmarks/gpu.py --out results/gpu.json
    # to try the code; the numbers mean nothing:
    python benchmarks/gpu.py --device cpu --quick --no-compile --out /tmp/gpu.json

Every job is a process of its own (benchmarks/gpu_parts.py). All start at once, so that they compile
at the same time, and wait once they have warmed up. They are then measured one after the other
while the others are idle. Jobs that have not warmed up after --ready-seconds are paused meanwhile
and continue afterwards. A job that fails or exceeds its limit affects only itself: its error is
recorded, and the file is rewritten after each job.

  updates   SAC seed-updates/s: activations x seeds x (eager, compiled, CUDA graph of a UTD block of
            10), with their peak memory and the kernels of one update
  loop      sac_continuous.py on cheetah-run, 10 seeds, UTD 10, with and without --async-envs and
            --cudagraphs
  atari     PQN, PPO and DQN on Breakout: the whole script and the learner alone, with and without
            --cudagraphs, and the games alone; environment steps/s
  floor     the matrix products of one update alone; also with TF32
  rational  memory bandwidth of the rationals alone, against a copy on the device
  peers     an eager SAC update of one seed in plain torch; SBX's SAC where it is installed
  random    random numbers of a UTD block by a generator per seed against one call; the latency of
            acting
  contention  the updates of one process alone, and of each of two on the same card
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
READY = "benchmark: ready"  # gpu_parts.READY; not imported from there, since that imports torch
PARTS = ("updates", "loop", "atari", "floor", "rational", "peers", "random", "contention")


@dataclasses.dataclass
class Args:
    out: Path = Path("results/gpu.json")  # the JSON file; the table goes beside it, as .md
    parts: tuple[str, ...] = PARTS
    only: str = ""  # of these, only jobs whose name matches this regular expression
    device: str = "cuda"
    quick: bool = False  # tiny sizes, to try the code
    compile: bool = True  # --no-compile: everything eagerly, to try the code
    budget_seconds: float = 280.0  # no turn begins after this time
    ready_seconds: float = 130.0  # for imports, compilation and warm-up of all jobs together
    hold: Path | None = None  # measure nothing while this file exists, because other work runs
    commit: str = ""  # of the code, recorded if the folder has no .git


@dataclasses.dataclass
class Job:
    name: str
    command: list[str]
    limit: float = 30.0  # seconds of its turn
    threads: int = 1  # OMP_NUM_THREADS
    spec: dict = dataclasses.field(default_factory=dict)
    status: str = "not started"
    error: str = ""
    seconds_to_ready: float | None = None
    seconds: float | None = None  # of its turn
    folder: Path | None = None
    process: subprocess.Popen | None = None

    def times_ready(self) -> int:
        """How often it has reported that it is ready."""
        text = (self.folder / "stdout.txt").read_text(errors="replace")
        return text.splitlines().count(READY)

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def is_waiting(self) -> bool:
        return self.status == "ready" and not self.has_ended()

    def result(self) -> dict:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / "result.json").read_text())
        return {}

    def last_words(self) -> str:
        """The last lines of its stderr."""
        text = (self.folder / "stderr.txt").read_text(errors="replace").replace("\r", "\n")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-12:])[-2_000:]

    def report(self) -> dict:
        return {
            "name": self.name,
            "options": self.spec.get("options", {}),
            "status": self.status,
            "error": self.error,
            "seconds_to_ready": self.seconds_to_ready,
            "seconds": self.seconds,
            "result": self.result() if self.folder else {},
        }


# ---- which jobs ----------------------------------------------------------------------------------


def count_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def make_jobs(args: Args) -> list[Job]:
    """All jobs in the order in which they are measured: what matters most comes first."""
    cores = count_cores()
    jobs = []

    def add(group: str, part: str, limit: float, threads: int = 1, **options) -> None:
        if group not in args.parts:
            return
        words = [
            f"{key} {value}" if value is True else str(value)
            for key, value in options.items()
            if value
        ]
        spec = {
            "part": part,
            "options": options,
            "device": args.device,
            "quick": args.quick,
            "compile": args.compile,
            "cores": cores,
            "threads": threads,
        }
        name = " ".join([part, *words])
        jobs.append(Job(name, [], limit, threads, spec))

    seeds = [1, 2] if args.quick else [1, 10, 32]
    many = seeds[1]
    activations = ["crational"] if args.quick else ["crational", "relu", "tanh_hr"]

    for activation in activations[:2]:
        add("updates", "updates", 25, activation=activation, num_seeds=many)
    for cudagraphs in (True, False):
        for async_envs in (False, True):
            if args.device != "cuda" and cudagraphs:
                continue
            flags = {"async_envs": async_envs, "cudagraphs": cudagraphs}
            add("loop", "loop", 20, activation="crational", num_seeds=many, **flags)
    for algorithm in ("pqn", "ppo", "dqn"):
        threads = 1 if args.quick else max(1, min(4, cores))
        for what in ("script", "learner"):
            for cudagraphs in (True, False):
                if args.device != "cuda" and cudagraphs:
                    continue
                flags = {"what": what, "cudagraphs": cudagraphs}
                add("atari", "atari", 20, threads, algorithm=algorithm, **flags)
        add("atari", "atari", 20, threads, algorithm=algorithm, what="games")
    for num_seeds in [many, *seeds[:1], *seeds[2:]]:
        for activation in activations:
            if num_seeds != many or activation not in activations[:2]:
                add("updates", "updates", 25, activation=activation, num_seeds=num_seeds)
    add("floor", "floor", 30, seeds=seeds)
    add("rational", "rational", 20, num_seeds=many)
    add("peers", "plain", 15)
    add("random", "random", 30, seeds=seeds)
    add("peers", "sbx", 15)
    add("contention", "contention", 20, activation="crational", num_seeds=many)
    return jobs


# ---- running them --------------------------------------------------------------------------------


def start(job: Job, number: int, root: Path, cores: int) -> None:
    """Starts the process of the number-th job, in a process group of its own."""
    # a short name: sockets in temporary folders have paths of 107 bytes at most
    job.folder = root / f"{number:02d}"
    job.folder.mkdir()
    if not job.command:
        spec = job.spec | {"folder": str(job.folder)}
        path = job.folder / "spec.json"
        path.write_text(json.dumps(spec))
        job.command = [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), str(path)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job.threads),
        "TMPDIR": str(job.folder),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get(
            "TORCHINDUCTOR_CACHE_DIR", str(root / "inductor")
        ),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(root / "triton")),
        "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, min(4, cores // 4))),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # jax would take most of the GPU's memory
        "WANDB_MODE": "disabled",
        "PYTHONUNBUFFERED": "1",
    }
    with open(job.folder / "stdout.txt", "w") as out, open(job.folder / "stderr.txt", "w") as err:
        job.process = subprocess.Popen(
            job.command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
    with contextlib.suppress(OSError):  # what is measured first also compiles first
        os.setpriority(os.PRIO_PROCESS, job.process.pid, min(number // 2, 15))
    job.status = "preparing"


def send_signal(job: Job, number: int) -> None:
    """To the job and the processes that it has started."""
    with contextlib.suppress(OSError):
        os.killpg(job.process.pid, number)


def wait_until(condition: Callable[[], bool], deadline: float) -> bool:
    """Whether the condition came true before the deadline (of time.monotonic)."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def fail(job: Job, status: str, reason: str) -> None:
    job.status = status
    job.error = f"{reason}\n{job.last_words()}".strip()
    send_signal(job, signal.SIGKILL)
    print(f"{job.name}: {status}; {reason}", file=sys.stderr, flush=True)


def check_ready(job: Job, start_time: float) -> None:
    """From "preparing" to "ready", "failed" or, if the job has nothing to measure, "done"."""
    if job.status != "preparing":
        return
    if job.times_ready():
        job.status = "ready"
        job.seconds_to_ready = round(time.monotonic() - start_time, 1)
    elif job.has_ended():
        code = job.process.returncode
        if code:
            fail(job, "failed", f"it ended with code {code} before its turn")
        else:
            job.status = "done"


def give_turn(job: Job) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended
        job.process.stdin.write(b"go\n")
        job.process.stdin.flush()


def measure(job: Job) -> None:
    """One turn: until the job waits at its next gate, ends, or has had its time."""
    times = job.times_ready()
    start_time = time.monotonic()
    give_turn(job)
    is_over = wait_until(
        lambda: job.times_ready() > times or job.has_ended(), start_time + job.limit
    )
    job.seconds = round(time.monotonic() - start_time, 1)
    if not is_over:
        fail(job, "timed out", f"its turn took longer than {job.limit:g} s")
    elif job.times_ready() > times:
        job.status = "measured"  # it waits for its turn to report details
    elif job.process.returncode:
        fail(job, "failed", f"it ended with code {job.process.returncode} in its turn")
    else:
        job.status = "done"
        send_signal(job, signal.SIGKILL)  # processes that it may have left
    print(f"{job.name}: {job.status} after {job.seconds} s", file=sys.stderr, flush=True)


def take_details(jobs: list[Job], deadline: float) -> None:
    """The kernels of one update, of all jobs at once:
    counts do not depend on other load."""
    waiting = [job for job in jobs if job.status == "measured"]
    for job in waiting:
        give_turn(job)
    wait_until(lambda: all(job.has_ended() for job in waiting), deadline)
    for job in waiting:
        job.status = "done"
        if not job.has_ended():
            job.error = "its details took too long"
        elif job.process.returncode:
            job.error = f"details: {job.last_words()}"
        send_signal(job, signal.SIGKILL)


def run_jobs(jobs: list[Job], args: Args, root: Path, write: Callable[[], None]) -> None:
    """Starts all jobs and measures them in turn; `write` is called after each."""
    start_time = time.monotonic()
    end = start_time + args.budget_seconds
    cores = count_cores()
    try:
        for number, job in enumerate(jobs):
            start(job, number, root, cores)

        write()  # finds out about the machine while they prepare

        def nobody_prepares() -> bool:
            for job in jobs:
                check_ready(job, start_time)
            return all(job.status != "preparing" for job in jobs)

        def is_quiet() -> bool:
            return args.hold is None or not args.hold.exists()

        deadline = min(end, start_time + args.ready_seconds)
        wait_until(lambda: nobody_prepares() and is_quiet(), deadline)
        late = [job for job in jobs if job.status == "preparing"]
        for job in late:
            send_signal(job, signal.SIGSTOP)
        write()
        for job in jobs:
            if job.status == "ready" and time.monotonic() < end:
                measure(job)
                write()
        for job in late:
            send_signal(job, signal.SIGCONT)
        while late and time.monotonic() < end:
            nobody_prepares()
            for job in [job for job in late if job.status != "preparing"]:
                late.remove(job)
                if job.status == "ready" and time.monotonic() < end:
                    measure(job)
                write()
            time.sleep(0.02)
        for job in late:
            fail(job, "timed out", "it did not warm up in time")
        take_details(jobs, max(end, time.monotonic() + 1) + 10)
        for job in jobs:
            if job.status == "ready":
                fail(job, "skipped", "--budget-seconds had passed before its turn")
        write()
    finally:
        for job in jobs:
            if job.process is not None:
                send_signal(job, signal.SIGKILL)
                job.process.wait()


# ---- what is written -----------------------------------------------------------------------------


def machine(args: Args) -> dict:
    """Where and with what this was measured."""
    sys.path.insert(0, str(ROOT))

    os.environ |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    from runlog import hardware

    found = hardware.machine()
    found |= {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "usable_cores": count_cores(),
        "commit": args.commit,
    }
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit",
        "--format=csv",
    ]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10)
        found["nvidia_smi"] = answer.stdout.strip().splitlines()
    for package in ("triton", "jax", "sbx-rl"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["versions"][package] = importlib.metadata.version(package)
    return found


def shown(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")


def markdown(rows: list[dict]) -> list[str]:
    columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(shown(row.get(column)) for column in columns) + " |")
    return lines


def first_value(rows: list[dict], key: str, **wanted) -> float | None:
    """`key` of the first row that has the wanted values."""
    for row in rows:
        if key in row and all(row.get(name) == value for name, value in wanted.items()):
            return row[key]
    return None


def with_ratios(rows: list[dict], jobs: list[dict]) -> list[dict]:
    """Rows of updates with their speed over an eager update of one seed (ours; plain torch)
    and their fraction of the floor, the bare matrix products in a graph."""
    others = []
    for job in jobs:
        others += job["result"].get("rows", [])
    plain = first_value(others, "seed_updates_per_s", peer="plain eager SAC, replay on the host")
    extended = []
    for row in rows:
        seeds = row.get("seeds")
        activation = row.get("activation", "")
        branches = 2 if "hr" in activation else 1
        below = {
            "over_eager_1_seed": first_value(
                rows, "seed_updates_per_s", activation=activation, seeds=1, mode="eager"
            ),
            "over_plain": plain,
            "share_of_floor": first_value(
                others, "in_graph_per_s", seeds=seeds, branches=branches, precision="float32"
            ),
        }
        speed = row.get("seed_updates_per_s")
        ratios = {name: speed / value for name, value in below.items() if speed and value}
        extended.append(row | ratios)
    return extended


def kernel_rows(job: dict) -> list[dict]:
    rows = []
    for mode in ("compiled", "eager"):
        counted = job["result"].get(f"kernels_{mode}")
        if counted:
            rows.append(
                {"job": job["name"], "mode": mode}
                | {key: counted[key] for key in ("count", "microseconds")}
            )
    return rows


def table(report: dict) -> str:
    """Everything measured, in Markdown."""
    jobs = report["jobs"]
    hardware = report.get("machine", {})
    lines = [
        "# Speed on a GPU",
        "",
        f"{hardware.get('hardware', {}).get('gpu')}, {hardware.get('usable_cores')} cores, "
        f"torch {hardware.get('versions', {}).get('torch')}, commit "
        f"{hardware.get('git', {}).get('commit') or hardware.get('commit')}, "
        f"{report['seconds']:.0f} s",
    ]
    parts = list(dict.fromkeys(job["name"].split()[0] for job in jobs))
    for part in parts:
        rows = []
        for job in jobs:
            if job["name"].split()[0] == part:
                rows += job["result"].get("rows", [])
        if part == "updates":
            rows = with_ratios(rows, jobs)
        if rows:
            lines += ["", f"## {part}", "", *markdown(rows)]
    kernels = []
    for job in jobs:
        kernels += kernel_rows(job)
    if kernels:
        lines += ["", "## kernels of one update", "", *markdown(kernels)]
    lines += ["", "## jobs", ""]
    columns = ("name", "status", "seconds_to_ready", "seconds")
    of_jobs = []
    for job in jobs:
        words = job["error"].splitlines() or [job["result"].get("note", "")]
        of_jobs.append(
            {column: job[column] for column in columns} | {"first and last words": words[0]}
        )
        if len(words) > 1:
            of_jobs[-1]["first and last words"] += f"; {words[-1]}"
    lines += markdown(of_jobs)
    return "\n".join(lines) + "\n"


def main(args: Args) -> int:
    """Runs everything; returns how many jobs have failed."""
    for part in args.parts:
        if part not in PARTS:
            print(f"error: --parts {part}: must be some of {' '.join(PARTS)}", file=sys.stderr)
            return 2
    # a signal ends it like Ctrl-C: what was measured is written, and every job ends
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start_time = time.monotonic()
    jobs = [job for job in make_jobs(args) if re.search(args.only, job.name)]
    report = {"command": [sys.executable, *sys.argv], "machine": {}, "seconds": 0.0, "jobs": []}
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        report["seconds"] = round(time.monotonic() - start_time, 1)
        report["jobs"] = [job.report() for job in jobs]
        if not report["machine"]:
            try:
                report["machine"] = machine(args)
            except Exception as error:
                report["machine"] = {"error": str(error)}
        temporary = args.out.with_name(args.out.name + ".tmp")
        temporary.write_text(json.dumps(report, indent=1, default=str) + "\n")
        os.replace(temporary, args.out)
        args.out.with_suffix(".md").write_text(table(report))

    root = Path(tempfile.mkdtemp(prefix="gpu_benchmark_"))
    try:
        run_jobs(jobs, args, root, write)
    finally:
        write()
        print(table(report), flush=True)
        shutil.rmtree(root, ignore_errors=True)
    return sum(job.status != "done" for job in jobs)


if __name__ == "__main__":
    sys.exit(min(main(tyro.cli(Args, description=__doc__)), 1))
