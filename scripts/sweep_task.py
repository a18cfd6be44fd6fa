"""Runs one process of a sweep: what a local slot,
a Ray task and a task of a Slurm array do (docs/sweeps.md).

    # as the file that `sweep.py --slurm` writes:
    python scripts/sweep_task.py runs/sweeps/NAME ID [PATIENCE]

Imports the standard library only: an array task waits beside its training process, and torch would
cost it 300 MB. A process is a line of manifest.jsonl: {"id", "argv", "runs": its run folders,
"cwd", "python", "env": the caps on threads}.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ENDED = ("finished", "diverged")  # as in runlog
PROGRESS_FILE = "RUNLOG_PROGRESS_FILE"  # as in runlog.progress: where a training reports its step
PATIENCE = 60.0  # seconds for a training to finish its step or evaluation and to save a checkpoint
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Exit codes of a training that was asked to stop:
# 128 + signal after a checkpoint, -signal before it handled signals.
STOP_CODES = (*(128 + number for number in STOP_SIGNALS), *(-number for number in STOP_SIGNALS))


class SweepError(Exception):
    """A state of the machine that only the user can change;
    the text is one line with a remedy."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, a quota or a missing permission becomes a SweepError."""
    try:
        yield
    except OSError as error:
        remedy = "free some space or choose a writable folder, then start the same command again"
        raise SweepError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


class StopRequest:
    """What this process was asked: `number`, the first stop signal (0: none came),
    and `count`, how many came."""

    def __init__(self):
        self.number = 0
        self.count = 0
        self._last = 0.0

    def note(self, number: int, frame) -> None:
        """A signal handler: the loops check `number` themselves,
        so that a signal interrupts nothing halfway."""
        now = time.monotonic()
        # Slurm, `timeout` and a closed terminal signal us and our parent,
        # which passes it on: together that is one request.
        if self.count and now < self._last + 1:
            return
        self._last = now
        self.number = self.number or number
        self.count += 1

    def listen(self) -> None:
        """Handles the stop signals from now on. SIGINT and SIGHUP stay ignored
        if they are (by `&` or `nohup`)."""
        for number in STOP_SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if number == signal.SIGTERM or not ignored:
                signal.signal(number, self.note)

    def exit_code(self) -> int:
        return 128 + self.number


def read_json(path: Path) -> dict:
    """The object in a JSON file; {} if there is none, half of one, or JSON of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_process(line) -> bool:
    """Whether a line of the manifest is a process as `sweep_plan.plan` makes it."""
    if not isinstance(line, dict):
        return False
    for key in ("id", "cwd", "python"):
        if not isinstance(line.get(key), str):
            return False
    for key in ("argv", "runs"):
        words = line.get(key)
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(word, str) for word in words)
        ):
            return False
    env = line.get("env")
    return isinstance(env, dict) and all(isinstance(value, str) for value in env.values())


def read_manifest(sweep: Path) -> dict[str, dict]:
    """id -> process, in the order of the grid; lines that are not a process are left out.
    Raises SweepError: no file."""
    path = sweep / "manifest.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise SweepError(
            f"cannot read {path}: {error.strerror}; write the Slurm file again"
        ) from None
    processes = {}
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if is_process(line):
            processes[line["id"]] = line
    return processes


def has_ended(process: dict) -> bool:
    """Whether every run of the process is finished or diverged,
    which only its run folders record."""
    folders = (Path(process["cwd"], run) for run in process["runs"])
    return all(read_json(folder / "meta.json").get("status") in ENDED for folder in folders)


def holder(process: dict) -> str | None:
    """The process that trains one of its runs now, as "FOLDER is in use by process 123";
    None if there is none."""
    for run in process["runs"]:
        try:
            with open(Path(process["cwd"], run, ".lock"), errors="replace") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # runlog's is exclusive
                except BlockingIOError:
                    return f"{run} is in use by process {lock.read().strip()}"
        except OSError:  # no such run yet
            continue
    return None


def read_state(sweep: Path, process: dict) -> dict:
    """The outcome of the last attempt: {"status": running | ended | stopped | failed, "code",
    "seconds", "host", "start"}; {} if there is none, or none that `write_state` wrote."""
    state = read_json(sweep / "state" / f"{process['id']}.json")
    needed = ["start"] if state.get("status") == "running" else ["code", "seconds", "start"]
    for key in needed:
        value = state.get(key)
        # not finite, or not a possible time
        if not isinstance(value, int | float) or not abs(value) < 1e12:
            return {}
    return state if state.get("status") in ("running", "ended", "stopped", "failed") else {}


def write_state(sweep: Path, process: dict, **state) -> None:
    """Raises SweepError: it cannot be written."""
    path = sweep / "state" / f"{process['id']}.json"
    temp = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temp.write_text(json.dumps(state) + "\n")
            os.replace(temp, path)
        except OSError:
            temp.unlink(missing_ok=True)
            raise


def progress_path(sweep: Path, process: dict) -> Path:
    return sweep / "progress" / process["id"]


def read_progress(sweep: Path, process: dict) -> tuple[int, int] | None:
    """(step, total) of the running training, as it last reported; None if it has not yet, or does
    not."""
    try:
        step, total = progress_path(sweep, process).read_text().split()
        return int(step), int(total)
    except (OSError, ValueError):
        return None


def log_tail(sweep: Path, process: dict, lines: int) -> list[str]:
    """The last lines of the process's log that are not empty."""
    path = sweep / "logs" / f"{process['id']}.log"
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode(errors="replace")
    except OSError:  # not there yet
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]


def before_start():
    """A function for the child to call before it becomes the training. The kernel then kills the
    child when we die, however we die, so that a restarted sweep meets no orphans (on systems other
    than Linux only the runs' locks keep the two apart). The child also receives the signals that
    stop it where we do not: `&` in a script ignores SIGINT, Ray blocks it.
    """
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None)
    parent = os.getpid()
    set_death_signal = 1

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if linux:
            libc.prctl(set_death_signal, signal.SIGKILL)
            if os.getppid() != parent:  # we died before prctl
                os._exit(1)

    return prepare


def start(sweep: Path, process: dict, env: dict[str, str]) -> subprocess.Popen:
    """Starts the training process and appends its output to that of earlier attempts in
    logs/ID.log. env: more variables. Raises SweepError: the sweep's folder cannot be written, or
    the process does not start."""
    path = sweep / "logs" / f"{process['id']}.log"
    write_state(sweep, process, status="running", start=time.time(), host=socket.gethostname())
    head = f"$ {shlex.join(process['argv'])}  # {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    progress = progress_path(sweep, process).absolute()
    with writing(progress):
        progress.parent.mkdir(parents=True, exist_ok=True)
        progress.unlink(missing_ok=True)  # of an earlier attempt
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = open(path, "ab", buffering=0)  # noqa: SIM115
    with log:
        with writing(path):
            log.write(head.encode(errors="backslashreplace"))
        try:
            child = subprocess.Popen(
                [process["python"], *process["argv"]],
                cwd=process["cwd"],
                env=os.environ | process["env"] | env | {PROGRESS_FILE: str(progress)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on
                preexec_fn=before_start(),
            )
        except OSError as error:
            problem = (
                f"cannot start {process['python']} in {process['cwd']}: {error.strerror or error}"
            )
            raise SweepError(f"{problem}; start the same command again where both are") from error
    child.began = time.time()
    return child


def close(sweep: Path, process: dict, child: subprocess.Popen, killed: bool = False) -> int:
    """Records how a process that has exited ended. Returns 0 if all its runs have ended, else its
    exit code, or 1 if that is 0 although a run is left over. killed: by `stop`. Raises SweepError
    as `write_state` does."""
    code = 0 if has_ended(process) else child.returncode or 1
    status = "failed"
    if code == 0:
        status = "ended"
    elif code in STOP_CODES or killed:
        status = "stopped"
    seconds = time.time() - child.began
    write_state(
        sweep,
        process,
        status=status,
        code=code,
        seconds=seconds,
        start=child.began,
        host=socket.gethostname(),
    )
    return code


def stop(
    children: Sequence[subprocess.Popen], patience: float, request: StopRequest
) -> list[subprocess.Popen]:
    """Ends children: on SIGTERM a training saves a checkpoint and exits. Those that are still
    running after `patience` seconds, or when a second signal asks us to hurry, are killed and
    returned."""
    running = [child for child in children if child.poll() is None]
    for child in running:
        child.send_signal(signal.SIGTERM)
    end = time.monotonic() + patience
    while running and time.monotonic() < end and request.count < 2:
        time.sleep(0.05)
        running = [child for child in running if child.poll() is None]
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return running


def run(
    sweep: Path, process: dict, env: dict[str, str], patience: float, request: StopRequest
) -> int:
    """Runs the process to its end, unless its runs have ended, and returns `close`'s code. Waits
    while another process has one of its runs (one that was cut off with its machine, say). When
    asked to stop, gives the training `patience` seconds to save."""
    while True:
        while holder(process) and not has_ended(process):
            if request.number:
                return request.exit_code()
            time.sleep(0.5)
        if has_ended(process):
            return 0
        if request.number:
            return request.exit_code()
        child = start(sweep, process, env)
        killed = []
        try:
            while child.poll() is None and not request.number:
                time.sleep(0.05)
        finally:
            killed = stop([child], patience, request)
        code = close(sweep, process, child, bool(killed))
        if request.number or not code or not holder(process):
            return code


def run_on_ray(sweep: Path, process: dict, env: dict[str, str], patience: float) -> int:
    """`run` as a Ray task. ray.cancel acts like a SIGINT to the worker, if Python handles that:
    it does not in a worker of a launcher that was started by `&`."""
    request = StopRequest()
    handles_signals = threading.current_thread() is threading.main_thread()
    if handles_signals:
        before = signal.signal(signal.SIGINT, request.note)
    try:
        return run(sweep, process, env, patience, request)
    finally:
        if handles_signals:
            signal.signal(signal.SIGINT, before)


def main(argv: list[str]) -> int:
    if len(argv) not in (2, 3) or argv[0].startswith("-"):
        print("usage: sweep_task.py SWEEP_FOLDER ID [PATIENCE]", file=sys.stderr)
        return 0 if argv in (["-h"], ["--help"]) else 2
    sweep = Path(argv[0])
    name = argv[1]
    try:
        patience = float(argv[2]) if len(argv) == 3 else PATIENCE
    except ValueError:
        print(f"error: PATIENCE {argv[2]}: must be a number of seconds", file=sys.stderr)
        return 2
    request = StopRequest()
    request.listen()
    try:
        manifest = read_manifest(sweep)
        if name not in manifest:
            raise SweepError(f"{sweep}/manifest.jsonl has no {name}; write the Slurm file again")
        code = run(sweep, manifest[name], {}, patience, request)
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if request.number and code:
        print(
            f"stopped: {name}; it resumes when it is requeued or submitted again", file=sys.stderr
        )
        return request.exit_code()
    if code:
        print(
            f"failed with exit code {code}: {name}",
            *log_tail(sweep, manifest[name], 10),
            sep="\n",
            file=sys.stderr,
        )
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # a log's end on a terminal that lacks its characters
    sys.stderr.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))
