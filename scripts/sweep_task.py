"""Runs one process of a sweep: what a local slot, a Ray task and a task of a Slurm array do (docs/sweeps.md).

    python scripts/sweep_task.py runs/sweeps/NAME ID    # as the file that `sweep.py --slurm` writes

The standard library only: an array task waits beside its training process, and torch would cost it 300 MB. A process
is a line of manifest.jsonl: {"id", "argv", "runs": its run folders, "cwd", "python", "env": the caps on threads}.
"""

import ctypes
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ENDED = ("finished", "diverged")  # as runlog has it


def read_json(path: Path) -> dict:
    """A JSON file's content; {} if there is none, or half of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def read_manifest(sweep: Path) -> dict[str, dict]:
    """id -> process, in the order of the grid."""
    return {line["id"]: line for line in map(json.loads, (sweep / "manifest.jsonl").read_text().splitlines())}


def has_ended(process: dict) -> bool:
    """Whether every run of the process is finished or diverged; its run folders know, nobody else."""
    folders = (Path(process["cwd"], run) for run in process["runs"])
    return all(read_json(folder / "meta.json").get("status") in ENDED for folder in folders)


def holder(process: dict) -> str | None:
    """Who else trains one of its runs now, as "FOLDER is in use by process 123"; None if nobody does."""
    for run in process["runs"]:
        try:
            with open(Path(process["cwd"], run, ".lock")) as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # runlog's is exclusive
                except BlockingIOError:
                    return f"{run} is in use by process {lock.read().strip()}"
        except OSError:  # no such run yet
            continue
    return None


def read_state(sweep: Path, process: dict) -> dict:
    """What became of the last attempt: {"status": running | ended | failed, "code", "seconds", "host", "start"}."""
    return read_json(sweep / "state" / f"{process['id']}.json")


def write_state(sweep: Path, process: dict, **state) -> None:
    path = sweep / "state" / f"{process['id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    temp.write_text(json.dumps(state) + "\n")
    os.replace(temp, path)


def log_tail(sweep: Path, process: dict, lines: int) -> list[str]:
    """The last lines of the process's log that are not empty."""
    path = sweep / "logs" / f"{process['id']}.log"
    if not path.exists():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]


def die_with_parent():
    """A function for the child to call before it starts: the kernel kills it when we die, however we die, so that a
    restarted sweep meets no orphans. Elsewhere than on Linux only the runs' locks keep the two apart."""
    if sys.platform != "linux":
        return None
    libc, us, set_death_signal = ctypes.CDLL(None), os.getpid(), 1

    def tie() -> None:
        libc.prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != us:  # we died before the child could say so
            os._exit(1)

    return tie


def start(sweep: Path, process: dict, env: dict[str, str]) -> subprocess.Popen:
    """Starts the training process, its output behind that of earlier attempts in logs/ID.log. env: more variables."""
    (sweep / "logs").mkdir(parents=True, exist_ok=True)
    write_state(sweep, process, status="running", start=time.time(), host=socket.gethostname())
    with open(sweep / "logs" / f"{process['id']}.log", "a") as log:
        print(f"$ {shlex.join(process['argv'])}  # {time.strftime('%Y-%m-%d %H:%M:%S')}", file=log, flush=True)
        child = subprocess.Popen(
            [process["python"], *process["argv"]],
            cwd=process["cwd"],
            env=os.environ | process["env"] | env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to pass on
            preexec_fn=die_with_parent(),
        )
    child.began = time.time()
    return child


def close(sweep: Path, process: dict, child: subprocess.Popen) -> int:
    """Notes how a process ended that has exited. Returns 0 if all its runs have ended, else its exit code; that of a
    process which says 0 with a run left over is 1."""
    code = 0 if has_ended(process) else child.returncode or 1
    state = {"status": "failed" if code else "ended", "code": code, "seconds": time.time() - child.began}
    write_state(sweep, process, **state, start=child.began, host=socket.gethostname())
    return code


def stop(children: list[subprocess.Popen], patience: float = 15.0) -> None:
    """Ends children: by Ctrl-C, upon which a run closes its files and says "interrupted", then by force."""
    for child in children:
        child.send_signal(signal.SIGINT)
    try:
        end = time.monotonic() + patience
        for child in children:
            child.wait(max(0.0, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def run(sweep: Path, process: dict, env: dict[str, str]) -> int:
    """Runs the process to its end, unless its runs have ended, and returns `close`'s code. While another process has
    one of its runs (one that was cut off with its machine, say), waits."""
    while True:
        while (told := holder(process)) and not has_ended(process):
            time.sleep(1.0)
        if has_ended(process):
            return 0
        child = start(sweep, process, env)
        try:
            child.wait()
        except BaseException:
            stop([child])
            raise
        code = close(sweep, process, child)
        told = holder(process) if code else None
        if not told:
            return code


def interrupt(*_) -> None:
    """As a handler of SIGTERM and SIGHUP: ends like Ctrl-C."""
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    if len(argv) != 2 or argv[0].startswith("-"):
        print("usage: sweep_task.py SWEEP_FOLDER ID", file=sys.stderr)
        return 0 if argv in (["-h"], ["--help"]) else 2
    sweep, name = Path(argv[0]), argv[1]
    manifest = read_manifest(sweep) if (sweep / "manifest.jsonl").exists() else {}
    if name not in manifest:
        print(f"error: {sweep}/manifest.jsonl has no {name}; write the Slurm file again", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        code = run(sweep, manifest[name], {})
    except KeyboardInterrupt:
        return 130
    if code:
        print(f"failed with exit code {code}: {name}", *log_tail(sweep, manifest[name], 10), sep="\n", file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
