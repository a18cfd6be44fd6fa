"""A run: one seed's folder, with its lock, its rows, its checkpoints, its status and its
mirrors."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from runlog import mirrors, storage
from runlog.append_only import Rows
from runlog.checkpoints import Checkpoints
from runlog.disk import writing
from runlog.functions import check_functions
from runlog.identity import canonical, config_hash, identity
from runlog.lock import LOCK, FolderLock
from runlog.meta import ENDED, Meta, read_meta
from runlog.storage import Damaged, keep_or_fresh, plain, read_json, write_atomic
from runlog.terminal import UserError, WarnOnce, reason, warn_once

REPLAY_FILE = "replay.dat"  # kept in the run's folder by a script itself


class Run:
    """One seed's folder, `root/name`. Nothing is created before `open`. A process may have several
    runs open.

    config: every setting, JSON-like, nested dicts allowed. exclude: its keys that do not belong to
    the run's identity, as for `config_hash`; these may change when a run resumes. fresh: `open`
    deletes the run's old content. script: the training script, for W&B. title: its name in the
    dashboards, by default that of the folder. functions: those of its activations (functions.py).
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        config: dict,
        *,
        exclude: Collection[str] = (),
        fresh: bool = False,
        script: str = "",
        title: str = "",
        functions: Mapping | None = None,
    ):
        self.folder = Path(root) / name
        self.name = name
        self.script = script
        self.title = title or name
        self._functions = dict(functions or {})
        self.config = config
        self.exclude = tuple(exclude)
        self.digest = config_hash(config, exclude)
        self._fresh = fresh
        self._ready = False  # for rows: open and, if there are checkpoints, back at one of them
        self._lock = FolderLock(self.folder)
        self._meta = Meta(self.folder)
        self._rows = Rows(self.folder)
        self._checkpoints = Checkpoints(self.folder, self.digest)
        self._mirrors = []  # TensorBoard, W&B
        self._purge_step = 0  # from here on the mirrors' rows of earlier sessions are invalid
        self._drawn_size = 0  # size of curves.jsonl when last drawn
        self._files_before_open = {}  # config.json and meta.json: file -> bytes, or None
        self.status_before = "new"  # its status when it was opened
        self.had_rows = False  # whether it had rows when it was opened
        self._seconds_before = 0.0  # of training, in earlier sessions
        self._opened_at = time.monotonic()
        self._warn_once = WarnOnce()

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def status(self) -> str:
        """new, finished, diverged or interrupted (also for a run that failed or is in progress in
        another process)."""
        return "new" if self._fresh else self._meta.status()

    def check_functions(self) -> None:
        """Raises UserError if an activation is a different function from the one that the run was
        trained with, finished or not."""
        if not self._fresh:
            remedy = f"give the new one a different name, or {keep_or_fresh(self.folder)}"
            check_functions(self.folder, self._meta.read(), self._functions, remedy)

    # ---- beginning

    def lock(self) -> None:
        """Creates the folder and locks it; `open` does this if necessary. Raises UserError if the
        folder is in use by another process, or not writable."""
        self._files_before_open = {}
        self._lock.acquire()

    def open(
        self,
        *,
        tensorboard: bool = True,
        wandb_kwargs: dict | None = None,
        sections: dict | None = None,
    ) -> "Run":
        """Creates or reopens the folder, locks it, writes config.json and meta.json, and starts the
        mirrors. Returns self.

        A run that has checkpoints then needs `load_checkpoint` before `log`; one without starts at
        step 0 and drops the old rows. tensorboard: write event files. wandb_kwargs: project,
        entity, group, tags, mode, ... of `wandb.init`; None does not import wandb. sections: of the
        dashboards (mirrors.TensorBoard). Raises UserError if the folder is not writable, in use by
        another process, of another configuration, or finished (unless `fresh`), or if W&B does not
        start; a folder that it has created is then removed.
        """
        if not self._lock.is_held:
            self.lock()
        try:
            fresh = self._fresh
            if fresh:
                self._delete_content()
                self._lock.is_new = True
            self._fresh = False
            self._check_identity()
            self.status_before = self.status()
            self.had_rows = self._rows.are_on_disk()
            for name in ("config.json", "meta.json"):
                self._files_before_open[name] = storage.bytes_or_none(self.folder / name)
            self._start_mirrors(tensorboard, wandb_kwargs, sections, fresh)
            storage.write_json(self.folder / "config.json", self.config)
            self._meta.begin(self.name, self.digest, self.exclude, self._functions)
            self._seconds_before = 0.0
            self._opened_at = time.monotonic()
            self._ready = not self._checkpoints.any_exist()
            if self._ready:
                self._rows.begin()
        except BaseException:
            self.abandon()
            raise
        return self

    def _start_mirrors(
        self, tensorboard: bool, wandb_kwargs: dict | None, sections: dict | None, fresh: bool
    ) -> None:
        self._purge_step = 0  # TensorBoard's slow loader does not treat a first purge as a restart
        self._mirrors = []
        if tensorboard:
            board = mirrors.TensorBoard(
                self.folder,
                sections,
                title=self.title,
                settings=identity(self.config, self.exclude),
                config=self.config,
            )
            self._mirrors.append(board)
        if wandb_kwargs is not None:
            tracked = mirrors.start_wandb(
                wandb_kwargs, self.digest, self.title, self.folder, self.config, fresh
            )
            self._mirrors += [tracked] if tracked else []

    def _check_identity(self) -> None:
        """Raises UserError unless the folder is new or belongs to an unfinished run of this
        configuration. Without a good meta.json and config.json this is decided by the checkpoints,
        which contain the hash."""
        remedy = keep_or_fresh(self.folder)
        if self.status() in ENDED:
            raise UserError(f"{self.folder} is {self.status()} already; {remedy}")
        meta = self._meta.read()
        if not meta.get("name") and self._rows.are_on_disk() and not self._usable():
            problem = f"{self.folder} has rows, but neither a good meta.json with its status"
            raise UserError(f"{problem} nor a checkpoint; {remedy}")
        if meta.get("hash") == self.digest:  # even if an older version has written further flags
            return
        difference = self._difference()
        if difference and not self._has_usable():
            raise UserError(f"{self.folder} holds another configuration ({difference}); {remedy}")

    def _difference(self) -> str:
        """Settings of this run that differ from those in config.json; "" if there are none, or no
        good file."""
        try:
            stored = read_json(self.folder / "config.json")
        except Damaged as damage:
            self._warn_once(f"{damage}; it is written again")
            return ""
        if not stored:
            return ""
        current = json.loads(canonical(self.config, self.exclude))
        stored = json.loads(canonical(stored, self.exclude))
        differing = []
        for key in sorted({*stored, *current}):
            if (key in stored, stored.get(key)) != (key in current, current.get(key)):
                differing.append(f"{key}: {stored.get(key)!r} there, {current.get(key)!r} here")
        return ", ".join(differing)

    def abandon(self) -> None:
        """Restores an open run to its state before `open`, for example because another run of its
        batch cannot be opened: a folder that `open` has created, or emptied for `fresh`, is
        removed, any other keeps its status. To be called before anything is trained; a run that has
        rows or a checkpoint by now is closed. Does nothing if the run is not open."""
        if not self._lock.is_held:
            return
        is_new = self._lock.is_new
        if is_new and (self._rows.has_rows() or self._checkpoints.any_exist()):
            self.close()
            return
        for mirror in self._mirrors:
            mirror.close("new")
        # the original cause may make this fail as well
        with contextlib.suppress(UserError, OSError):
            if is_new:
                self._delete_content()
                self._lock.remove_folder()
            for name, content in self._files_before_open.items():
                if not is_new and content is not None:
                    write_atomic(self.folder / name, content)
        self._mirrors = []
        self._lock.is_new = False
        self._release()

    def _delete_content(self) -> None:
        """Deletes everything in the folder but the lock, checkpoints first."""
        with writing(self.folder):
            for path in sorted(self.folder.iterdir()):
                if path.name == LOCK:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _release(self) -> None:
        self._lock.release()
        self._ready = False

    # ---- rows, curves, pictures

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one row per scalar to scalars.csv, or to perf.csv (keys `perf/...`, which depend
        on the machine).

        step: environment steps. scalars: key -> number or 0-d tensor; NaN and infinities are
        allowed. Buffered.
        """
        self._require_ready()
        step = int(step)
        values = {key: float(value) for key, value in scalars.items()}
        self._rows.add_scalars(step, values, self._elapsed())
        for mirror in self._mirrors:
            mirror.scalars(step, values)
        if self._rows.flush_is_due():
            self.flush()

    def log_image(self, step: int, key: str, path: str | Path) -> None:
        """Mirrors the PNG or JPEG at `path` to TensorBoard and W&B; the file itself is the
        record."""
        self._require_ready()
        for mirror in self._mirrors:
            mirror.image(int(step), key, path)

    def log_video(self, step: int, key: str, path: str | Path) -> None:
        """Mirrors the mp4 at `path` to TensorBoard (as a GIF) and W&B; the file itself is the
        record. Does nothing if there is no file: a video is optional."""
        self._require_ready()
        if not Path(path).exists():
            return
        for mirror in self._mirrors:
            mirror.video(int(step), key, Path(path))

    def log_histogram(self, step: int, key: str, counts, edges) -> None:
        """Appends a histogram to histograms.jsonl and mirrors it. counts: n numbers. edges: n + 1,
        otherwise ValueError."""
        self._require_ready()
        counts = np.asarray(counts, dtype=np.float64)
        edges = np.asarray(edges, dtype=np.float64)
        if len(edges) != len(counts) + 1:
            problem = f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}"
            raise ValueError(f"{key}: {problem}")
        row = {"step": int(step), "key": key, "counts": counts.tolist(), "edges": edges.tolist()}
        self._rows.add_json("histograms.jsonl", row)
        for mirror in self._mirrors:
            mirror.histogram(int(step), key, counts, edges)

    def log_curve(self, step: int, key: str, x, y, **extra) -> None:
        """Appends a curve to curves.jsonl, with six significant digits. x, y: n numbers each,
        otherwise ValueError.

        An evenly spaced x is stored as its two ends, [first, last]. extra: JSON-like values that
        belong to the curve.
        """
        self._require_ready()
        x = np.asarray(x, dtype=np.float64)
        y = np.asarray(y, dtype=np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            problem = f"x and y must be two lists of equal length, not {x.shape} and {y.shape}"
            raise ValueError(f"{key}: {problem}")
        if _is_even(x):
            x = x[[0, -1]]
        row = {"step": int(step), "key": key, "x": _rounded(x), "y": _rounded(y), **extra}
        self._rows.add_json("curves.jsonl", row)

    def draw(self, step: int, draw_plots: Callable) -> None:
        """Draws the run's plots and mirrors them, if there are new curves since they were last
        drawn.

        draw_plots: folder -> paths of the pictures that it has drawn there. A failure prints one
        line on stderr, and the run continues.
        """
        self.flush()
        size = self._rows.sizes()["curves.jsonl"]
        if size == self._drawn_size:
            return
        self._drawn_size = size
        try:
            for path in draw_plots(self.folder) or ():
                self.log_image(step, f"plots/{path.stem}", path)
        except Exception as error:
            warn_once("plots", f"no plots of {self.folder} at step {step} ({reason(error)})")

    def flush(self) -> None:
        """Writes all buffered rows to disk. Raises UserError if they cannot be written (no partial
        rows are left)."""
        self._rows.flush()
        for mirror in self._mirrors:
            mirror.flush(self._purge_step)

    def _elapsed(self) -> float:
        """Seconds of training, over all sessions."""
        return self._seconds_before + time.monotonic() - self._opened_at

    def _require_ready(self) -> None:
        if self._ready:
            return
        if not self._lock.is_held:
            raise RuntimeError(f"{self} is not open")
        raise RuntimeError(f"{self}: call load_checkpoint() first")

    # ---- checkpoints

    def save_checkpoint(
        self,
        step: int,
        state: dict,
        transitions: dict | None = None,
        keep_transitions: int | None = None,
    ) -> None:
        """Writes checkpoint.pt in one step; the previous one becomes checkpoint.prev.pt.

        step: environment steps done. state: nested dicts and lists of tensors, numbers, strings,
        None; otherwise TypeError. transitions: tensors, first axis time, of the replay rows added
        since the previous checkpoint; they are stored in a separate file, so that the cost of a
        checkpoint depends only on what is new. keep_transitions: rows that a resumed run needs;
        None keeps all. Raises UserError if the disk is full; the previous checkpoint and all rows
        are then still good. Runs that train together save together: `stage_checkpoint` of every
        run, then `commit_checkpoint` of every run.
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
        """The first phase of a save: writes the rows, the new transitions and a complete
        checkpoint.next.pt to disk.

        A run that is killed now can resume from there or from checkpoint.pt. A batch that is killed
        anywhere in a save therefore has a step from which all its runs can resume. Arguments and
        errors as for `save_checkpoint`.
        """
        self._require_ready()
        state = plain(state, "state")
        self.flush()
        elapsed = self._elapsed()
        sizes = self._rows.sizes()
        self._checkpoints.stage(step, state, transitions, keep_transitions, elapsed, sizes)

    def commit_checkpoint(self) -> None:
        """The second phase of a save: checkpoint.next.pt becomes checkpoint.pt, which becomes
        checkpoint.prev.pt."""
        self._require_ready()
        self._checkpoints.commit()

    def checkpoint_steps(self) -> list[int]:
        """Steps from which the run can resume, newest first; [] before the first checkpoint.
        Verifies all their files.

        With only a staged checkpoint, 0 is one of them: other runs of its batch may have none
        (`group_by_step`). Raises UserError if there are checkpoints but none is good, or if one
        belongs to another configuration or a later version of the code.
        """
        return self._steps(self._usable())

    def read_state(self, step: int) -> dict:
        """The state of the checkpoint at `step`, one of `checkpoint_steps`. Deletes nothing."""
        return self._at(step, self._usable())[1]["state"]

    def read_transitions(self, step: int) -> dict | None:
        """The transitions of the checkpoint at `step`, as `load_checkpoint` returns them. Deletes
        nothing."""
        content = self._at(step, self._usable())[1]
        return self._checkpoints.read_transitions(content, self.status() in ENDED)

    def load_checkpoint(
        self, step: int | None = None, with_transitions: bool = True
    ) -> tuple[int, dict | None, dict | None]:
        """(step, state, transitions) of the newest good checkpoint or of the one at `step`; (0,
        None, None) without any.

        All tensors are on the CPU; transitions are the last `keep_transitions` rows, or None (also
        unless `with_transitions`: `read_transitions` reads them later). If the run is open, rows
        and checkpoints of later steps are deleted. If a checkpoint is damaged it warns and uses the
        one before. Raises UserError like `checkpoint_steps`, and if there is no good checkpoint at
        `step`.
        """
        found = self._usable()
        if not found and not step:
            return 0, None, None
        if step == 0 and 0 in self._steps(found):
            self._restart()
            return 0, None, None
        path, content = self._at(step, found)
        transitions = None
        if with_transitions:
            transitions = self._checkpoints.read_transitions(content, self.status() in ENDED)
        if self._lock.is_held:
            self._go_back_to(path, content)
        return content["step"], content["state"], transitions

    def _usable(self) -> list[tuple[Path, dict]]:
        """(path, content) of the good checkpoints, newest first."""
        return [] if self._fresh else self._checkpoints.usable(self.status() in ENDED)

    def _has_usable(self) -> bool:
        try:
            return bool(self._usable())
        except UserError:
            return False

    def _steps(self, found: list[tuple[Path, dict]]) -> list[int]:
        steps = list(dict.fromkeys(content["step"] for _, content in found))
        if steps and not self._checkpoints.is_any_committed():
            steps.append(0)
        return steps

    def _at(self, step: int | None, found: list[tuple[Path, dict]]) -> tuple[Path, dict]:
        """The checkpoint at `step`; None: the newest. Raises UserError if there is none."""
        for path, content in found:
            if step in (None, content["step"]):
                return path, content
        remedy = keep_or_fresh(self.folder)
        raise UserError(f"{self.folder} has no good checkpoint at step {step}; {remedy}")

    def _go_back_to(self, path: Path, content: dict) -> None:
        """Continues from this checkpoint, and deletes what came after it."""
        step = content["step"]
        self._checkpoints.go_back_to(path, content)
        self._rows.cut(content["offsets"], step)
        self._seconds_before = content["elapsed"]
        self._opened_at = time.monotonic()
        self._purge_step = step + 1
        self._ready = True
        self._meta.note_start(step)

    def _restart(self) -> None:
        """Returns to step 0, discarding a staged checkpoint that the other runs of the batch
        lack."""
        if not self._lock.is_held:
            return
        self._checkpoints.restart()
        self._rows.begin()
        self._ready = True

    def drop_transitions(self) -> None:
        """Deletes the replay of a finished or diverged run; its checkpoint then loads with
        transitions None."""
        if self.status() not in ENDED:
            raise RuntimeError(f"{self} is not finished: its checkpoint needs the replay")
        self._checkpoints.drop_replay()
        (self.folder / REPLAY_FILE).unlink(missing_ok=True)

    def drop_leftovers(self) -> None:
        """Deletes the replay of an ended run that should have been deleted at its end, but remains
        after a kill."""
        if read_meta(self.folder).get("replay") == "deleted":
            with contextlib.suppress(OSError):
                self.drop_transitions()

    # ---- the end

    def finish(self, status: str = "finished", **extra) -> None:
        """Ends the run for good: writes the rows, status, end time and peak memory; closes mirrors;
        releases the lock.

        status: "finished", or "diverged" with `step=...`. extra: further keys of meta.json.
        """
        self._require_ready()
        if status not in ENDED:
            raise ValueError(f"a run ends finished or diverged, not {status!r}")
        self.flush()
        self._end(status, last_step=self._rows.last_step(), **extra)

    def fail(self, message: str) -> None:
        """Marks an open run as failed (an unexpected exception); it may resume."""
        self._end("failed", error=message)

    def close(self) -> None:
        """Closes an open run, to be resumed later."""
        self._end("interrupted")

    def _end(self, status: str, **extra) -> None:
        if not self._lock.is_held:
            return
        with contextlib.suppress(UserError):
            self.flush()
        with contextlib.ExitStack() as stack:  # each of these is done even if an earlier one fails
            stack.callback(self._release)
            for mirror in self._mirrors:
                stack.callback(mirror.close, status)
            self._meta.end(status, self._elapsed(), extra)


def _is_even(x: np.ndarray) -> bool:
    """Whether the numbers are evenly spaced, up to rounding."""
    if len(x) <= 2 or not np.isfinite(x).all():
        return False
    steps = np.diff(x)
    return bool(np.ptp(steps) <= 1e-3 * np.abs(steps).max())


def _rounded(x: np.ndarray) -> list[float]:
    """Six significant digits."""
    return [float(f"{value:.6g}") for value in x.tolist()]
