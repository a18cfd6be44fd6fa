"""meta.json of a run: its status and, for each session, the command, the code and the machine."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from runlog import hardware, storage
from runlog.storage import Damaged, read_json
from runlog.terminal import WarnOnce, warn

ENDED = ("finished", "diverged")
# What determines the rounding: section and key of hardware.machine, and what its name begins with.
MACHINE = (("hardware", "cpu", ""), ("hardware", "gpu", ""), ("versions", "torch", "torch "))
# What Meta.read relies on; another kind of value is a damaged file.
KINDS = {
    "status": str,
    "start": str,
    "git": dict,
    "untracked_code": dict,
    "versions": dict,
    "hardware": dict,
}


def read_meta(folder: Path) -> dict:
    """meta.json of a run's folder; {} without one. Raises UserError if it cannot be read."""
    return read_json(folder / "meta.json")


class Meta:
    def __init__(self, folder: Path):
        self._path = folder / "meta.json"
        self._content = {}  # of this session
        self._machine_change = ""  # since the last session, in words
        self._warn_once = WarnOnce()

    def read(self) -> dict:
        """The content on disk; if the file is damaged, only that the run is interrupted: `begin`
        rewrites it."""
        consequence = "the run counts as interrupted"
        try:
            found = read_json(self._path)
        except Damaged as damage:
            self._warn_once(f"{damage}; {consequence}")
            return {"status": "interrupted"}
        for key, kind in KINDS.items():
            if not isinstance(found.get(key), kind | None):
                self._warn_once(f"{self._path} has the {key} {found[key]!r}; {consequence}")
                return {"status": "interrupted"}
        return found

    def status(self) -> str:
        """new, finished, diverged or interrupted (also for a run that failed or is in progress in
        another process)."""
        status = self.read().get("status")
        if status in ENDED:
            return status
        return "interrupted" if status else "new"

    def begin(
        self, name: str, digest: str, not_identity: Sequence[str], functions: Mapping
    ) -> None:
        """Records that a session has started. not_identity: settings outside the identity, for
        readers such as figures. functions: those of its activations (functions.py)."""
        old = self.read()
        sessions = old.get("sessions")
        if not isinstance(sessions, list):
            sessions = []
        sessions = [session for session in sessions if isinstance(session, dict)]
        if sessions and "hardware" in old:  # older versions did not record it by session
            sessions[-1] = {"hardware": old["hardware"], **sessions[-1]}
        machine = hardware.machine()  # an older session may have run other code
        session = {"start": _now(), "argv": machine["argv"], "git": machine["git"]}
        session["untracked_code"] = machine["untracked_code"]
        session["versions"] = machine["versions"]
        session["hardware"] = machine["hardware"]
        self._content = {"name": name, "hash": digest, **machine, "start": old.get("start", _now())}
        self._content |= {"status": "running", "sessions": [*sessions, session]}
        self._content["not_identity"] = list(not_identity)
        self._content["functions"] = dict(functions)
        if old.get("git", machine["git"]) != machine["git"]:
            change = f"{self._path.parent} was started with the code of {_named_commit(old['git'])}"
            warn(f"{change}, and continues with {_named_commit(machine['git'])}")
        changed = _changed_files(old.get("untracked_code", {}), machine["untracked_code"])
        if changed:
            files = " and ".join(changed)
            change = f"{self._path.parent} was started with another version of {files}"
            warn(f"{change}, which git does not track, and continues with the current one")
        self._machine_change = _changed_machine(old, machine)
        self._write()

    def note_start(self, step: int) -> None:
        """Records the step from which the session continues; says if it does so on another machine
        than the last session."""
        if step > 0 and self._machine_change:
            change = f"{self._path.parent} {self._machine_change}"
            warn(f"{change}; its results may differ in the last digits")
        self._content["sessions"][-1]["from_step"] = step
        self._write()

    def end(self, status: str, elapsed: float, extra: dict) -> None:
        """Records how the session has ended, and its peak memory."""
        unit = 1024 if sys.platform == "linux" else 1024**2  # ru_maxrss is in kB, on macOS in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._content["peak_memory_mb"] = round(peak / unit, 1)
        if torch.cuda.is_initialized():
            peak = torch.cuda.max_memory_allocated()
            self._content["peak_gpu_memory_mb"] = round(peak / 1024**2, 1)
        self._content["sessions"][-1]["end"] = _now()
        self._content |= {"status": status, "end": _now(), "elapsed_s": round(elapsed, 3), **extra}
        self._write()

    def _write(self) -> None:
        storage.write_json(self._path, self._content)


def _named_commit(git: dict) -> str:
    """The commit reported by hardware.machine, in words."""
    if not git.get("commit"):
        return "no known commit"
    changed = " with changes" if git.get("dirty") else ""
    return f"commit {git['commit'][:10]}{changed}"


def _changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The files of `untracked_code` that both sessions have, with different content."""
    if not isinstance(before, dict):  # a damaged file
        return []
    return [file for file in sorted(before) if now.get(file, before[file]) != before[file]]


def _changed_machine(before: dict, now: dict) -> str:
    """What determines the rounding, as far as both sessions recorded it and it differs: processor,
    GPU and torch of each, in words; "" without a difference."""
    names_before = []
    names_now = []
    for section, key, prefix in MACHINE:
        found = before.get(section)
        if not isinstance(found, dict) or key not in found:  # of an older version, or damaged
            continue
        if found[key] != now[section].get(key):
            names_before.append(f"{prefix}{found[key] or 'no GPU'}")
            names_now.append(f"{prefix}{now[section].get(key) or 'no GPU'}")
    if not names_before:
        return ""
    return (
        f"last ran with {' and '.join(names_before)}, and continues with {' and '.join(names_now)}"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
