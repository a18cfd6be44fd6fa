"""A run's folder: lock, rows, checkpoints, status, mirrors."""

import contextlib
import fcntl
import itertools
import json
import os
import re
import resource
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch

from runlog import hardware, mirrors, storage
from runlog.disk import append, writing
from runlog.identity import canonical, config_hash
from runlog.storage import (
    CHECKPOINT,
    PREVIOUS,
    STAGED,
    Damaged,
    bytes_or_none,
    is_file,
    keep_or_fresh,
    load_pt,
    plain,
    read_json,
    shift_checkpoints,
    write_atomic,
    write_pt,
)
from runlog.terminal import UserError, reason, warn, warn_once

APPEND_ONLY = {
    "scalars.csv": "step,key,value,wall_time\n",
    "perf.csv": "step,key,value,wall_time\n",
}  # file: header
APPEND_ONLY |= {"histograms.jsonl": "", "curves.jsonl": ""}
REPLAY_FILE = "replay.dat"  # one that an algorithm keeps in the run's folder by itself (DQN)
FLUSH_SECONDS = 10.0
FLUSH_ROWS = 5_000
ENDED = ("finished", "diverged")


def read_meta(folder: Path) -> dict:
    """meta.json of a run's folder; {} without one. Raises UserError if it cannot be read."""
    return read_json(folder / "meta.json")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class Run:
    """One seed's folder, `root/name`. Nothing is created before `open`. A process may have several open.

    config: every setting, JSON-like, nested dicts allowed. exclude: its keys that do not belong to the run's
    identity, as for `config_hash`; these may change when a run resumes. fresh: `open` deletes the run's old content.
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        config: dict,
        *,
        exclude: Collection[str] = (),
        fresh=False,
        script="",
    ):
        self.folder = Path(root) / name
        self.name = name
        self.script = script
        self.config = config
        self.exclude = tuple(exclude)
        self.digest = config_hash(config, exclude)
        self._fresh = fresh
        self._lock = None
        self._ready = False
        self._told = set()  # warnings
        self._verified = set()  # replay files whose checksums are right
        self._rows = {file: [] for file in APPEND_ONLY}
        self._mirrors = []  # TensorBoard, W&B
        self._purge_step = 0
        self._chunks = []  # replay files of the newest checkpoint: [name, first row, last row + 1]
        self._num_rows = 0
        self._staged = None  # (chunks, num_rows) of a checkpoint that is staged and not committed
        self._drawn_size = 0  # of curves.jsonl
        self._is_new = False  # whether the folder held nothing at `open`, or was emptied by it
        self._made_parents = []  # folders around it that `open` has made, the innermost first
        self._before_open = {}  # config.json and meta.json as they were: file -> bytes, or None
        self._before = 0.0
        self._clock = time.monotonic()
        self._flushed = time.monotonic()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def status(self) -> str:
        """new, finished, diverged or interrupted (the latter also: failed, or under way in another process)."""
        if self._fresh:
            return "new"
        status = self._read_meta().get("status")
        if status in ENDED:
            return status
        return "interrupted" if status else "new"

    def _read_meta(self) -> dict:
        """meta.json; of a damaged one no more than that the run is interrupted: `open` then writes it anew."""
        meta, is_damaged = self._read_or_warn("meta.json", "the run counts as interrupted")
        status = meta.get("status")
        if not is_damaged and not isinstance(status, str | None):
            self._warn_once(
                f"{self.folder / 'meta.json'} has the status {status!r}; the run counts as interrupted"
            )
            is_damaged = True
        if is_damaged:
            return {"status": "interrupted"}
        return meta

    def _read_or_warn(self, name: str, consequence: str) -> tuple[dict, bool]:
        """(content of a JSON file, whether it is damaged); {} if it is missing or damaged. Warns once of damage."""
        try:
            return read_json(self.folder / name), False
        except Damaged as damage:
            self._warn_once(f"{damage}; {consequence}")
            return {}, True

    def _warn_once(self, text: str) -> None:
        if text not in self._told:
            warn(text)
            self._told.add(text)

    def open(self, *, tensorboard: bool = True, wandb_kwargs: dict | None = None) -> "Run":
        """Create or reopen the folder, lock it, write config.json and meta.json, start the mirrors. Returns self.

        A run that has checkpoints then needs `load_checkpoint` before `log`; one without begins at step 0 without the
        old rows. tensorboard: write event files. wandb_kwargs: project, entity, group, tags, mode, ... of `wandb.init`;
        None does not import wandb. Raises UserError: folder not writable, in use by another process, of another
        configuration, or finished (unless `fresh`); W&B does not start. A folder that it made is removed then.
        """
        if self._lock is None:
            self.lock()
        try:
            if self._fresh:
                self._delete_content()
                self._is_new = True
            fresh = self._fresh
            self._fresh = False
            self._check_identity()
            self._before_open = {
                name: bytes_or_none(self.folder / name) for name in ("config.json", "meta.json")
            }
            self._mirrors = [mirrors.TensorBoard(self.folder)] if tensorboard else []
            if wandb_kwargs is not None:
                tracked = mirrors.start_wandb(
                    wandb_kwargs, self.digest, self.name, self.folder, self.config, fresh
                )
                self._mirrors += [tracked] if tracked else []
            storage.write_json(self.folder / "config.json", self.config)
            old = self._read_meta()
            sessions = old.get("sessions")
            if not isinstance(sessions, list):
                sessions = []
            here = hardware.machine()  # of this session; an older one may have run other code
            self._meta = {
                "name": self.name,
                "hash": self.digest,
                **here,
                "start": old.get("start", _now()),
            }
            session = {
                "start": _now(),
                "argv": here["argv"],
                "git": here["git"],
                "versions": here["versions"],
            }
            self._meta |= {"status": "running", "sessions": [*sessions, session]}
            self._meta["not_identity"] = list(self.exclude)
            if old.get("git", here["git"]) != here["git"]:
                warn(
                    f"{self.folder} was begun with the code of {old['git']}, and goes on with {here['git']}"
                )
            storage.write_json(self.folder / "meta.json", self._meta)
            self._before = 0.0
            self._clock = time.monotonic()
            self._purge_step = 0  # in the first session too: to TensorBoard's slow loader a first purge is no restart
            self._ready = not any(
                (self.folder / name).exists() for name in (STAGED, CHECKPOINT, PREVIOUS)
            )
            if self._ready:
                self._cut(dict.fromkeys(APPEND_ONLY, 0))
                self._rows = {name: [header] for name, header in APPEND_ONLY.items()}
        except BaseException:
            self.abandon()
            raise
        return self

    def abandon(self) -> None:
        """Leave an open run as it was before `open`, e.g. because another one of its batch cannot be opened: a folder
        that `open` made, or emptied for `fresh`, is removed, another keeps its status. To be called before anything is
        trained; a run that has rows or a checkpoint by now is closed. Does nothing if the run is not open."""
        if self._lock is None:
            return
        is_logged = any(len(rows) > 1 for rows in self._rows.values())
        is_saved = any((self.folder / name).exists() for name in (STAGED, CHECKPOINT))
        if self._is_new and (is_logged or self._has_rows() or is_saved):
            self.close()
            return
        for mirror in self._mirrors:
            mirror.close(False)
        with contextlib.suppress(
            UserError, OSError
        ):  # what made it fail may make this fail as well
            if self._is_new:
                self._delete_content()
                self._remove_folder()
            for name, content in self._before_open.items():
                if not self._is_new and content is not None:
                    write_atomic(self.folder / name, content)
        self._mirrors = []
        self._is_new = False
        self._release_lock()

    def _delete_content(self) -> None:
        """Everything in the folder but the lock, checkpoints first."""
        with writing(self.folder):
            for path in sorted(self.folder.iterdir()):
                if path.name == ".lock":
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _remove_folder(self) -> None:
        """Removes the folder if it holds nothing but the lock, which this process has, and those that `open` has made
        around it."""
        if os.listdir(self.folder) != [".lock"]:
            return
        (self.folder / ".lock").unlink()
        for folder in (self.folder, *self._made_parents):
            folder.rmdir()  # fails if another process has put something into it meanwhile: that stays

    def lock(self) -> None:
        """Creates the folder and locks it; `open` does so unless it is done.

        Raises UserError: in use by another process, or not writable.
        """
        self._before_open = {}
        self._made_parents = []
        for attempt in itertools.count():
            with writing(self.folder):
                try:
                    self._make_folder()
                    lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT)
                except (
                    FileExistsError,
                    FileNotFoundError,
                ):  # removed meanwhile by a process that could not start
                    if attempt < 100:
                        continue
                    raise
            try:
                fcntl.flock(
                    lock, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # the kernel frees it however the process dies
            except OSError as error:
                pid = os.read(lock, 32).decode(errors="replace").strip()
                os.close(lock)
                if isinstance(error, BlockingIOError):
                    raise UserError(
                        f"{self.folder} is in use by process {pid}; wait until it ends or stop it"
                    ) from None
                with contextlib.suppress(OSError):  # nobody can hold a lock here
                    self._remove_folder()
                raise UserError(
                    f"cannot lock {self.folder} ({error}); choose a folder on another disk"
                ) from None
            if is_file(lock, self.folder / ".lock"):
                break
            os.close(lock)  # of a folder that another process has removed meanwhile
        self._lock = lock
        _OPEN_RUNS.add(self)
        self._is_new = os.listdir(self.folder) == [".lock"]
        with contextlib.suppress(OSError):  # only for the message above
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}".encode(), 0)

    def _make_folder(self) -> None:
        """Creates the folder, and notes what of its path is new."""
        missing = []
        parent = self.folder.parent
        while not parent.exists() and parent != parent.parent:
            missing.append(parent)
            parent = parent.parent
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._made_parents += missing

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None
        self._ready = False
        _OPEN_RUNS.discard(self)

    def _check_identity(self) -> None:
        """Raises UserError unless the folder is new, or of an unfinished run of this configuration. Without a good
        meta.json and config.json the checkpoints tell that, which carry the hash."""
        if self.status() in ENDED:
            raise UserError(
                f"{self.folder} is {self.status()} already; {keep_or_fresh(self.folder)}"
            )
        meta = self._read_meta()
        if not meta.get("name") and self._has_rows() and not self._checkpoints():
            told = f"{self.folder} has rows, but neither a good meta.json, which tells its status, nor a checkpoint"
            raise UserError(f"{told}; {keep_or_fresh(self.folder)}")
        if (
            meta.get("hash") == self.digest
        ):  # whatever further flags config.json has, of an older version perhaps
            return
        there, _ = self._read_or_warn("config.json", "it is written anew")
        here = json.loads(canonical(self.config))
        keys = sorted({*there, *here} - {*self.exclude})
        differ = [k for k in keys if (k in there, there.get(k)) != (k in here, here.get(k))]
        if there and differ:
            told = ", ".join(
                f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in differ
            )
            try:
                is_same = bool(self._checkpoints())
            except UserError:
                is_same = False
            if not is_same:
                remedy = keep_or_fresh(self.folder)
                raise UserError(f"{self.folder} holds another configuration ({told}); {remedy}")

    def _has_rows(self) -> bool:
        path = self.folder / "scalars.csv"
        return path.exists() and path.stat().st_size > len(APPEND_ONLY["scalars.csv"])

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._clock

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Append a row per scalar to scalars.csv, or to perf.csv (keys `perf/...`, which depend on the machine).

        step: environment steps. scalars: key -> number or 0-d tensor; NaN and infinities are allowed. Buffered.
        """
        self._require_ready()
        step = int(step)
        values = {key: float(value) for key, value in scalars.items()}
        for key, value in values.items():
            if re.search(r'[,"\s]', key):
                raise ValueError(f"the key {key!r} holds a comma, a quote or white space")
            rows = self._rows["perf.csv" if key.startswith("perf/") else "scalars.csv"]
            rows.append(
                f"{step},{key},{value!r},{self._elapsed():.3f}\n"
            )  # repr: equal bits, equal bytes
        for mirror in self._mirrors:
            mirror.scalars(step, values)
        if (
            sum(map(len, self._rows.values())) > FLUSH_ROWS
            or time.monotonic() - self._flushed > FLUSH_SECONDS
        ):
            self.flush()

    def log_image(self, step: int, key: str, path: str | Path) -> None:
        """Mirror the PNG or JPEG at `path` to TensorBoard and W&B; the file itself is the record."""
        self._require_ready()
        for mirror in self._mirrors:
            mirror.image(int(step), key, path)

    def log_histogram(self, step: int, key: str, counts, edges) -> None:
        """Append a histogram to histograms.jsonl and mirror it. counts: n numbers. edges: n + 1, else ValueError."""
        self._require_ready()
        counts = np.asarray(counts, dtype=np.float64)
        edges = np.asarray(edges, dtype=np.float64)
        if len(edges) != len(counts) + 1:
            raise ValueError(
                f"{key}: {len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}"
            )
        row = {"step": int(step), "key": key, "counts": counts.tolist(), "edges": edges.tolist()}
        self._rows["histograms.jsonl"].append(json.dumps(row) + "\n")
        for mirror in self._mirrors:
            mirror.histogram(int(step), key, counts, edges)

    def log_curve(self, step: int, key: str, x, y, **extra) -> None:
        """Append a curve to curves.jsonl, six significant digits. x, y: n numbers each, else ValueError.

        An even x is stored as its two ends, [first, last]. extra: JSON-like values that belong to the curve.
        """
        self._require_ready()
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(
                f"{key}: x and y must be two lists of one length, not {x.shape} and {y.shape}"
            )
        steps = np.diff(x) if len(x) > 2 and np.isfinite(x).all() else [0, 1]
        if np.ptp(steps) <= 1e-3 * np.abs(steps).max():
            x = x[[0, -1]]
        x, y = ([float(f"{value:.6g}") for value in values.tolist()] for values in (x, y))
        self._rows["curves.jsonl"].append(
            json.dumps({"step": int(step), "key": key, "x": x, "y": y, **extra}) + "\n"
        )

    def draw(self, step: int, draw_plots: Callable | None = None) -> None:
        """Draw the run's plots and mirror them, if there are new curves since the last drawing.

        draw_plots: folder -> paths of the pictures that it has drawn there. A failure is one line
        on stderr: the run goes on.
        """
        self.flush()
        size = (self.folder / "curves.jsonl").stat().st_size
        if size == self._drawn_size:
            return
        self._drawn_size = size
        try:
            if draw_plots is None:
                from runlog.leaving import draw_run as draw_plots
            for path in draw_plots(self.folder) or ():
                self.log_image(step, f"plots/{path.stem}", path)
        except Exception as error:
            warn_once("plots", f"no plots of {self.folder} at step {step} ({reason(error)})")

    def flush(self) -> None:
        """Write all buffered rows to the disk. Raises UserError if they cannot be written (no half rows are left)."""
        for name, rows in self._rows.items():
            with writing(self.folder / name):
                append(self.folder / name, "".join(rows).encode(), sync=True)
            rows.clear()
        self._flushed = time.monotonic()
        for mirror in self._mirrors:
            mirror.flush(self._purge_step)

    def save_checkpoint(
        self,
        step: int,
        state: dict,
        transitions: dict | None = None,
        keep_transitions: int | None = None,
    ) -> None:
        """Write checkpoint.pt in one step; the one before becomes checkpoint.prev.pt.

        step: environment steps done. state: nested dicts and lists of tensors, numbers, strings, None; else TypeError.
        transitions: tensors, first axis time, of the replay rows added since the previous checkpoint; they get a file
        of their own, so that a checkpoint costs what is new. keep_transitions: rows that a resumed run needs; None
        keeps all. Raises UserError if the disk is full; the previous checkpoint and all rows are still good then.
        Runs that train together save together: `stage_checkpoint` of every one, then `commit_checkpoint` of every one.
        """
        self.stage_checkpoint(step, state, transitions, keep_transitions)
        self.commit_checkpoint()

    def stage_checkpoint(
        self,
        step: int,
        state: dict,
        transitions: dict | None = None,
        keep_transitions: int | None = None,
    ) -> None:
        """The first phase of a save: the rows, the new transitions and a complete checkpoint.next.pt are on the disk.

        A run that is killed now can go on from there or from checkpoint.pt: so a batch that is killed anywhere in a
        save has a step that all its runs can go on from. Arguments and errors as of `save_checkpoint`.
        """
        self._require_ready()
        state = plain(state, "state")
        self.flush()
        chunks = list(self._chunks)
        start = self._num_rows
        stop = self._num_rows
        if transitions:
            new = {key: plain(torch.as_tensor(value), key) for key, value in transitions.items()}
            if len({len(rows) for rows in new.values()}) != 1:
                raise ValueError(
                    f"transitions of different lengths: { {key: len(rows) for key, rows in new.items()} }"
                )
            stop += len(next(iter(new.values())))
        if stop > start:
            chunks.append([f"{start:010d}-{stop:010d}.pt", start, stop])
            content = {"digest": self.digest, "rows": [start, stop], "transitions": new}
            write_pt(self.folder / "replay" / chunks[-1][0], content)
        chunks = [
            chunk
            for chunk in chunks
            if keep_transitions is None or chunk[2] > stop - keep_transitions
        ]
        content = {
            "digest": self.digest,
            "step": int(step),
            "elapsed": self._elapsed(),
            "state": state,
        }
        content["offsets"] = {name: (self.folder / name).stat().st_size for name in APPEND_ONLY}
        content |= {"chunks": chunks, "num_rows": stop, "keep": keep_transitions}
        write_pt(self.folder / STAGED, content)
        self._staged = chunks, stop

    def commit_checkpoint(self) -> None:
        """The second phase of a save: checkpoint.next.pt becomes checkpoint.pt, and that checkpoint.prev.pt."""
        self._require_ready()
        if self._staged is None:
            raise RuntimeError(f"{self}: there is no staged checkpoint")
        shift_checkpoints(self.folder)
        chunks, num_rows = self._staged
        needed = {
            chunk[0] for chunk in [*chunks, *self._chunks]
        }  # by this checkpoint and the one before
        for path in (self.folder / "replay").glob("*"):
            if path.name not in needed:
                path.unlink(missing_ok=True)
        self._chunks = chunks
        self._num_rows = num_rows
        self._staged = None

    def checkpoint_steps(self) -> list[int]:
        """Steps that the run can go on from, newest first; [] before the first checkpoint. Verifies all their files.

        With nothing but a staged checkpoint 0 is one of them: others of its batch may have none (`group_by_step`).
        Raises UserError if there are checkpoints but none is good, or if one is of another configuration.
        """
        steps = list(dict.fromkeys(content["step"] for _, content in self._checkpoints()))
        committed = any((self.folder / name).exists() for name in (CHECKPOINT, PREVIOUS))
        return steps if committed or not steps else [*steps, 0]

    def read_state(self, step: int) -> dict:
        """The state of the checkpoint at `step`, one of `checkpoint_steps`. Deletes nothing."""
        return next(
            content["state"] for _, content in self._checkpoints() if content["step"] == step
        )

    def read_transitions(self, step: int) -> dict | None:
        """The transitions of the checkpoint at `step`, as `load_checkpoint` returns them. Deletes nothing."""
        return self._read_transitions(
            next(content for _, content in self._checkpoints() if content["step"] == step)
        )

    def load_checkpoint(
        self, step: int | None = None, with_transitions: bool = True
    ) -> tuple[int, dict | None, dict | None]:
        """(step, state, transitions) of the newest good checkpoint or the one at `step`; (0, None, None) without any.

        All tensors are on the CPU; transitions are the last `keep_transitions` rows, or None (also unless
        `with_transitions`: `read_transitions` reads them later). If the run is open, rows
        and checkpoints of later steps are deleted. With a damaged checkpoint it warns and takes the one before.
        Raises UserError like `checkpoint_steps`, and if there is no good checkpoint at `step`.
        """
        found = self._checkpoints()
        if not found and not step:
            return 0, None, None
        if step == 0 and 0 in self.checkpoint_steps():
            self._begin_anew()
            return 0, None, None
        path, content = next(
            (pair for pair in found if step in (None, pair[1]["step"])), (None, None)
        )
        if path is None:
            raise UserError(
                f"{self.folder} has no good checkpoint at step {step}; {keep_or_fresh(self.folder)}"
            )
        transitions = self._read_transitions(content) if with_transitions else None
        if self._lock is not None:
            with writing(path):  # a newer checkpoint describes a future that will be run again
                if path.name == STAGED:
                    shift_checkpoints(self.folder)
                else:
                    (self.folder / STAGED).unlink(missing_ok=True)
                    os.replace(path, self.folder / CHECKPOINT)
            self._cut(content["offsets"], content["step"])
            self._chunks = content["chunks"]
            self._num_rows = content["num_rows"]
            self._before = content["elapsed"]
            self._clock = time.monotonic()
            self._purge_step = content["step"] + 1
            self._ready = True
            self._meta["sessions"][-1]["from_step"] = content["step"]
            storage.write_json(self.folder / "meta.json", self._meta)
        return content["step"], content["state"], transitions

    def _begin_anew(self) -> None:
        """Back to step 0, past a checkpoint that was staged and that the others of the batch do not have."""
        if self._lock is None:
            return
        with writing(self.folder):
            (self.folder / STAGED).unlink(missing_ok=True)
            shutil.rmtree(self.folder / "replay", ignore_errors=True)
        self._cut(dict.fromkeys(APPEND_ONLY, 0))
        self._rows = {name: [header] for name, header in APPEND_ONLY.items()}
        self._ready = True

    def drop_transitions(self) -> None:
        """Delete the replay of a finished or diverged run; its checkpoint then loads with transitions None."""
        if self.status() not in ENDED:
            raise RuntimeError(f"{self} is not finished: its checkpoint needs the replay")
        shutil.rmtree(self.folder / "replay", ignore_errors=True)
        (self.folder / REPLAY_FILE).unlink(missing_ok=True)

    def drop_leftovers(self) -> None:
        """Delete the replay of an ended run that was to be deleted at its end, and still is there after a kill."""
        if read_json(self.folder / "meta.json").get("replay") == "deleted":
            with contextlib.suppress(OSError):
                self.drop_transitions()

    def _chunk_files(self, content: dict) -> list[tuple[Path, int, int]]:
        replay = self.folder / "replay"
        dropped = self.status() in ENDED and not replay.exists()
        return (
            []
            if dropped
            else [(replay / name, start, stop) for name, start, stop in content["chunks"]]
        )

    def _checkpoints(self) -> list[tuple[Path, dict]]:
        """The usable checkpoints, newest first."""
        good = []
        problems = []
        paths = (
            [] if self._fresh else [self.folder / name for name in (STAGED, CHECKPOINT, PREVIOUS)]
        )
        for path in filter(Path.exists, paths):
            try:
                content = load_pt(path)
                if not isinstance(content, dict) or content.get("digest") != self.digest:
                    raise UserError(
                        f"{path} is of another configuration; {keep_or_fresh(self.folder)}"
                    )
                file = (
                    self.folder / "scalars.csv"
                )  # the others go on without their earlier rows (_cut)
                if not file.exists() or file.stat().st_size < content["offsets"][file.name]:
                    raise Damaged(f"{path} does not fit: {file} is shorter than it was then")
                for file, start, stop in self._chunk_files(content):
                    chunk = {} if file in self._verified else load_pt(file)
                    if chunk and (chunk.get("digest"), chunk.get("rows")) != (
                        self.digest,
                        [start, stop],
                    ):
                        raise Damaged(f"{path} does not fit: {file} is of another run")
                    self._verified.add(file)
                good.append((path, content))
            except Damaged as problem:
                problems.append(str(problem))
        if problems and not good:
            raise UserError(
                f"no usable checkpoint: {'; '.join(problems)}; {keep_or_fresh(self.folder)}"
            )
        for problem in (p for p in problems if p not in self._told):
            warn(f"{problem}; using {good[0][0].name}, step {good[0][1]['step']}")
            self._told.add(problem)
        return good

    def _read_transitions(self, content: dict) -> dict | None:
        out = {}
        stop = content["num_rows"]
        files = self._chunk_files(content)
        first = (
            max(files[0][1], 0 if content["keep"] is None else stop - content["keep"])
            if files
            else 0
        )
        for (
            file,
            start,
            end,
        ) in files:  # one after the other: a replay of many GB must not be held twice
            chunk = torch.load(file, map_location="cpu", weights_only=True)["transitions"]
            for key, rows in chunk.items():
                if key not in out:
                    out[key] = torch.empty((stop - first, *rows.shape[1:]), dtype=rows.dtype)
                out[key][max(start, first) - first : end - first] = rows[
                    max(start, first) - start :
                ]
        return out or None

    def _cut(self, sizes: dict[str, int], step: int = 0) -> None:
        """Cuts off the rows after `step`. Of a file that has lost earlier ones it keeps the whole lines, and warns."""
        for name, size in sizes.items():
            with writing(self.folder / name), open(self.folder / name, "a+b") as file:
                there = file.seek(0, os.SEEK_END)
                if there >= size:
                    os.truncate(file.fileno(), size)
                    continue
                file.seek(0)
                end_of_lines = file.read().rfind(b"\n") + 1
                os.truncate(file.fileno(), end_of_lines)
                if end_of_lines == 0:
                    file.write(APPEND_ONLY[name].encode())
            lost = "some" if end_of_lines > len(APPEND_ONLY[name]) else "all"
            self._warn_once(
                f"{self.folder / name} has lost {lost} of its rows up to step {step}; it goes on without them"
            )

    def _require_ready(self) -> None:
        if not self._ready:
            raise RuntimeError(
                f"{self} is not open"
                if self._lock is None
                else f"{self}: call load_checkpoint() first"
            )

    def finish(self, status: str = "finished", **extra) -> None:
        """End the run for good: write the rows, the status, the end and the peak memory; close mirrors; free the lock.

        status: "finished", or "diverged" with `step=...`. extra: further keys of meta.json.
        """
        self._require_ready()
        if status not in ENDED:
            raise ValueError(f"a run ends finished or diverged, not {status!r}")
        self.flush()
        self._end(status, last_step=self._last_step(), **extra)

    def _last_step(self) -> int | None:
        """The step of the last row of scalars.csv, so that a reader can tell whether rows are missing; None without."""
        with open(self.folder / "scalars.csv", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 1_000))  # a row is shorter
            last_line = file.read().splitlines()[-1]
        step = last_line.split(b",")[0].decode()
        return int(step) if step.isdigit() else None

    def fail(self, message: str) -> None:
        """Mark an open run failed (an unexpected exception); it may resume."""
        self._end("failed", error=message)

    def close(self) -> None:
        """Leave an open run, to be resumed later."""
        self._end("interrupted")

    def _end(self, status: str, **extra) -> None:
        if self._lock is None:
            return
        with contextlib.suppress(UserError):
            self.flush()
        unit = 1024 if sys.platform == "linux" else 1024**2  # ru_maxrss is in kB, on macOS in bytes
        self._meta["peak_memory_mb"] = round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1
        )
        if torch.cuda.is_initialized():
            self._meta["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1024**2, 1)
        self._meta["sessions"][-1]["end"] = _now()
        self._meta |= {
            "status": status,
            "end": _now(),
            "elapsed_s": round(self._elapsed(), 3),
            **extra,
        }
        with contextlib.ExitStack() as stack:  # each of these happens even if one before it fails
            stack.callback(self._release_lock)
            for mirror in self._mirrors:
                stack.callback(mirror.close, status in ENDED)
            storage.write_json(self.folder / "meta.json", self._meta)


# A forked child (a worker of AsyncVectorEnv, say) shares the locks of its parent, and would keep them after its death.
_OPEN_RUNS: "weakref.WeakSet[Run]" = weakref.WeakSet()


def _release_locks_in_child() -> None:
    for run in list(_OPEN_RUNS):
        with contextlib.suppress(OSError):
            run._release_lock()


os.register_at_fork(after_in_child=_release_locks_in_child)
