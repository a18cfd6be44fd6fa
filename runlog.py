"""A run's folder: identity, command line, scalars, checkpoints, and the TensorBoard and W&B mirrors.

One run = one seed = one folder `<root>/<env>__<script>__<activation>__s<seed>__<hash>`. `scalars.csv` in it is the
source of every figure; TensorBoard and W&B only mirror it. A run killed at any moment resumes from its newest good
checkpoint and ends with the rows it would have written undisturbed. See docs/runs.md.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"
HEADER = b"step,key,value,wall_time\n"
APPEND_ONLY = {"scalars.csv": HEADER, "perf.csv": HEADER, "histograms.jsonl": b""}  # file -> how it begins
FLUSH_SECONDS, FLUSH_ROWS = 10.0, 5_000
PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco", "dm_control", "metaworld", "shimmy", "ale-py", "wandb")


class UserError(ValueError):
    """A user's mistake, or a state of the machine that only the user can change. One line that says what would do."""


class _Damaged(Exception):
    """A checkpoint that cannot be used; the text says why."""


# ---- command line ----


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into one line `error: ...` on stderr and exit code 2. Context manager or decorator."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse_args(cls, argv: Sequence[str] | None = None):
    """Parse the command line into the dataclass `cls`: `tyro.cli`, with every mistake told in one line.

    cls: dataclass, a string below each field is its help; nested dataclasses give flags such as `--rational.degree`.
    argv: arguments without the program's name; None takes `sys.argv[1:]`.
    `--help` prints tyro's help on stdout and exits 0. A mistake prints `error: ...` on stderr and raises SystemExit(2).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(cls, args=argv)
    except SystemExit as stop:
        if not stop.code:
            raise
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxes.getvalue())
    sections, lines = [], []
    for line in [*text.splitlines(), "╰"]:  # a box: a title, then sections parted by rules
        line = line.strip().removeprefix("│").removesuffix("│").strip()
        if line and not line.startswith(("╭", "╰")) and set(line) != {"─"}:
            lines.append(line)
        elif lines:
            sections.append(" ".join(lines))
            lines = []
    sections = [s.replace("Argument helptext:", "expected") for s in sections if not s.startswith("For full helptext")]
    for flag, value in itertools.pairwise(argv):  # tyro only says "Unrecognized options: False"
        if flag.startswith("--") and value in ("True", "False", "true", "false") and value in sections[0]:
            name = flag.removeprefix("--").removeprefix("no-")
            sections.append(f"{flag} is a switch and takes no value: write --{name} or --no-{name}")
    print(f"error: {'; '.join(s.rstrip('.') for s in sections)} (--help lists every flag)", file=sys.stderr)
    raise SystemExit(2)


# ---- identity and seeds ----


def _canonical(config: dict, exclude: Collection[str]) -> str:
    kept = {key: value for key, value in config.items() if key not in exclude}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str)


def config_hash(config: dict, exclude: Collection[str]) -> str:
    """Ten hex digits over every key of `config` (nested dicts included) except the top-level keys in `exclude`.

    The order of keys does not matter; tuples equal lists; 1 and 1.0 differ.
    """
    return hashlib.sha256(_canonical(config, exclude).encode()).hexdigest()[:10]


def run_name(env_id: str, script: str, activation: str, seed: int, digest: str) -> str:
    """Folder name `<env>__<script>__<activation>__s<seed>__<digest>`, safe on every file system.

    `*` becomes `x`, `+` becomes `p`, any other character outside `A-Z a-z 0-9 . = _ -` becomes `-`, runs of `_`
    become one, parts are cut at 60 characters. The digest keeps names distinct; config.json keeps the truth.
    Example: `run_name("dm_control/cheetah-run-v0", "sac_continuous", "tanh*tanh", 3, "0123456789")` is
    `dm_control-cheetah-run-v0__sac_continuous__tanhxtanh__s3__0123456789`.
    """

    def safe(part: str) -> str:
        part = part.replace("*", "x").replace("+", "p")
        return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9._=-]", "-", part)).strip("_")[:60]

    return "__".join([safe(env_id), safe(script), safe(activation), f"s{int(seed)}", digest])


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for the purpose named by `keys`, e.g. `derive_seed(args.seed, "episode", 12)`.

    Stable over processes, machines and versions; different keys (also "1" and 1) give unrelated seeds.
    seed: non-negative int, else ValueError.
    """
    words = [int(seed)]
    for key in keys:
        text = f"str:{key}" if isinstance(key, str) else f"int:{int(key)}"
        words.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_generator(seed: int, *keys: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A `torch.Generator` on `device`, seeded with `derive_seed(seed, *keys)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *keys))


# ---- files ----


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Any failure to write (full disk, quota, file-size limit, permissions) is told in one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        remedy = "free some space or choose a writable folder, then start the same command again"
        raise UserError(f"cannot write {path}: {reason}; {remedy}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_atomic(path: Path, data: bytes | memoryview, previous: Path | None = None) -> None:
    """Write `path` in one step: whoever looks sees the old or the new content. `previous` receives the old file."""
    temp = path.with_name(path.name + ".tmp")
    with _writing(path):
        try:
            with open(temp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temp, path)
            _sync_folder(path.parent)
        except OSError:
            temp.unlink(missing_ok=True)
            raise


def _write_json(path: Path, content: dict) -> None:
    _write_atomic(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); use --fresh to start the run anew") from None


def _plain(value, where: str):
    """`value` as `torch.load(weights_only=True)` can read it: tensors on the CPU without the rest of their storage."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # A slice (one seed of a batch, the new rows of a replay) would otherwise be saved with its whole storage.
        return value.clone() if value.untyped_storage().nbytes() != value.nbytes else value
    if isinstance(value, dict):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers, strings, None, "
                    "lists and dicts")  # fmt: skip


def _serialise(content: dict) -> memoryview:
    # In memory first: torch's own file writer aborts the process where a full disk should raise.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _check_zip(path: Path) -> None:
    """torch.save writes a zip with a CRC-32 per record; raises _Damaged unless every record matches its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except MemoryError:
        raise
    except Exception as error:
        raise _Damaged(f"{path} is damaged ({error})") from None
    if bad is not None:
        raise _Damaged(f"{path} is damaged (wrong checksum of {bad})")


def _load_pt(path: Path) -> dict:
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise _Damaged(f"{path} is damaged ({str(error).splitlines()[0]})") from None


# ---- the machine ----


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git() -> dict:
    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(Path(__file__).parent), *command], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit or None, "dirty": bool(git("status", "--porcelain", "-uno")) if commit else None}
    except OSError:
        return {"commit": None, "dirty": None}


def _machine() -> dict:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = models.group(1) if models else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()}
    return {"argv": sys.argv, "git": _git(), "versions": versions, "hardware": hardware}


def _peak_memory() -> dict:
    unit = 1024 if sys.platform == "linux" else 1024**2  # ru_maxrss: kB on Linux, bytes on macOS
    peak = {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if torch.cuda.is_initialized():
        peak["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1024**2, 1)
    return peak


def _close_in_child(reference: weakref.ref) -> None:
    run = reference()
    if run is not None and run._lock is not None:
        os.close(run._lock)
        run._lock = None


# ---- the run ----


class Run:
    """One seed's folder. Nothing is created before `open`; several may be open in one process.

    root, name: the folder is `root/name`; `run_name` makes names.
    config: every setting of the run, JSON-like, nested dicts allowed.
    exclude: top-level keys of `config` that are no part of the run's identity (paths, tracking, device, ...), the same
        as given to `config_hash`; they may differ when a run resumes.
    fresh: `open` deletes what an earlier run left in the folder.
    """

    def __init__(
        self, root: str | Path, name: str, config: dict, *, exclude: Collection[str] = (), fresh: bool = False
    ):
        self.folder = Path(root) / name
        self.name, self.config, self.exclude = name, config, tuple(exclude)
        self.digest = config_hash(config, exclude)
        self._fresh = fresh  # until `open` has deleted the old content
        self._lock: int | None = None
        self._warned: set[str] = set()
        self._checked: set[tuple] = set()  # replay chunks whose checksums were right: name, size, time

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def status(self) -> str:
        """ "new", "interrupted" (also: failed, or under way in another process), "finished" or "diverged"."""
        status = None if self._fresh else _read_json(self.folder / "meta.json").get("status")
        if status is None:
            return "new"
        return status if status in ("finished", "diverged") else "interrupted"

    def open(self, *, tensorboard: bool = True, wandb_kwargs: dict | None = None) -> "Run":
        """Create or reopen the folder, lock it, write config.json and meta.json, start the mirrors. Returns self.

        After reopening a run that has checkpoints, call `load_checkpoint` before `log`; without any checkpoint the
        run begins at step 0 and the old rows are deleted.
        tensorboard: mirror into TensorBoard event files in the folder.
        wandb_kwargs: arguments of `wandb.init` (project, entity, group, tags, mode); None does not import wandb.
        Raises UserError: folder not writable, in use by another process, of another configuration, or finished
        (unless `fresh`); W&B does not start.
        """
        self._acquire_lock()
        try:
            if self._fresh:
                self._delete_content()
            self._check_identity()
            resumed = (self.folder / CHECKPOINT).exists() or (self.folder / PREVIOUS).exists()
            self._wandb = None if wandb_kwargs is None else self._start_wandb(wandb_kwargs)
            _write_json(self.folder / "config.json", self.config)
            old = _read_json(self.folder / "meta.json")
            self._meta = {"name": self.name, "hash": self.digest, **_machine(), "start": old.get("start", _now())}
            self._meta |= {"status": "running", "sessions": [*old.get("sessions", []), {"start": _now()}]}
            _write_json(self.folder / "meta.json", self._meta)
            self._tensorboard, self._tensorboard_on, self._mirror_rows = None, tensorboard, []
            self._purge_step = 0 if any(self.folder.glob("events.out.tfevents.*")) else None
            self._rows: dict[str, list[str]] = {name: [] for name in APPEND_ONLY}
            self._chunks: list[list] = []  # [file name, first row, last row + 1] of the newest checkpoint's replay
            self._num_rows = 0
            self._elapsed_before, self._clock, self._last_flush = 0.0, time.monotonic(), time.monotonic()
            self._ready = not resumed
            if not resumed:
                self._cut({name: len(head) for name, head in APPEND_ONLY.items()})
        except BaseException:
            self._release_lock()
            raise
        return self

    def _acquire_lock(self) -> None:
        if self._lock is not None:
            raise RuntimeError(f"{self} is open already")
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # flock, not a file that says "locked": the kernel frees it when the process dies, however it dies.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(lock, 32).decode().strip() or "?"
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise UserError(
                    f"cannot lock {self.folder}: {error.strerror}; choose a folder on another disk"
                ) from None
            raise UserError(f"{self.folder} is in use by process {pid}; wait until it ends or stop it") from None
        self._lock = lock
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_in_child(reference))
        with contextlib.suppress(OSError):  # the number is for messages only
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _delete_content(self) -> None:
        with _writing(self.folder):
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
        self._fresh = False

    def _check_identity(self) -> None:
        if self.status() in ("finished", "diverged"):
            raise UserError(f"{self.folder} is {self.status()} already; use --fresh to run it again")
        there = _read_json(self.folder / "config.json")
        if there and _canonical(there, self.exclude) != _canonical(self.config, self.exclude):
            here = json.loads(json.dumps(self.config, default=str))
            keys = sorted(k for k in {*there, *here} - {*self.exclude} if there.get(k) != here.get(k))
            told = ", ".join(f"{k}: {there.get(k)!r} there, {here.get(k)!r} here" for k in keys)
            raise UserError(f"{self.folder} holds another configuration ({told}); use --fresh to replace it")

    def _require_open(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self} is not open")

    # -- scalars and mirrors --

    def elapsed(self) -> float:
        """Seconds since the run's start, summed over its sessions (a resumed run counts on from its checkpoint)."""
        return self._elapsed_before + time.monotonic() - self._clock

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Append one row per scalar to scalars.csv (`perf/...`, which depends on the machine: to perf.csv).

        step: environment steps. scalars: key -> number or 0-d tensor; NaN and infinities are allowed. Buffered.
        """
        self._require_ready()
        step, wall_time = int(step), f"{self.elapsed():.3f}"
        values = {key: float(value) for key, value in scalars.items()}
        for key, value in values.items():
            if re.search(r'[,"\s]', key):
                raise ValueError(f"the scalar's key {key!r} holds a comma, a quote or white space")
            # repr of a float is the shortest text that reads back to the same bits: equal bits, equal bytes
            name = "perf.csv" if key.startswith("perf/") else "scalars.csv"
            self._rows[name].append(f"{step},{key},{value!r},{wall_time}\n")
        if self._tensorboard_on:
            self._mirror_rows.append((step, values))
        if self._wandb is not None:
            self._wandb.log({**values, "global_step": step}, step=step)
        rows = len(self._rows["scalars.csv"]) + len(self._rows["perf.csv"])
        if rows >= FLUSH_ROWS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def log_image(self, step: int, key: str, path: str | Path) -> None:
        """Show the PNG or JPEG at `path` in TensorBoard and W&B. The file itself is the record."""
        self._require_ready()
        if self._tensorboard_on:
            from matplotlib.image import imread

            with self._tensorboard_writer() as writer:
                writer.add_image(key, imread(path), int(step), dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({key: wandb.Image(str(path)), "global_step": int(step)}, step=int(step))

    def log_histogram(self, step: int, key: str, counts, edges) -> None:
        """Append a histogram to histograms.jsonl and mirror it.

        counts: n numbers, one per bin. edges: n + 1 increasing numbers. Raises ValueError if the lengths do not fit.
        """
        self._require_ready()
        counts, edges = np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
        if len(edges) != len(counts) + 1:
            raise ValueError(f"{key}: {len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}")
        row = {"step": int(step), "key": key, "counts": counts.tolist(), "edges": edges.tolist()}
        self._rows["histograms.jsonl"].append(json.dumps(row) + "\n")
        if self._tensorboard_on:
            middles = (edges[1:] + edges[:-1]) / 2
            moments = {"sum": float(counts @ middles), "sum_squares": float(counts @ middles**2)}
            bounds = {"min": float(edges[0]), "max": float(edges[-1]), "num": float(counts.sum())}
            with self._tensorboard_writer() as writer:
                writer.add_histogram_raw(
                    key, **bounds, **moments, bucket_limits=edges[1:], bucket_counts=counts, global_step=int(step)
                )
        if self._wandb is not None:
            import wandb

            histogram = wandb.Histogram(np_histogram=(counts, edges))
            self._wandb.log({key: histogram, "global_step": int(step)}, step=int(step))

    def flush(self, sync: bool = False) -> None:
        """Write buffered rows; with `sync` wait until the disk has them. Raises UserError if they cannot be written."""
        self._require_open()
        for name, rows in self._rows.items():
            path, data = self.folder / name, memoryview("".join(rows).encode())
            with _writing(path), open(path, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    while data:
                        data = data[file.write(data) :]
                except OSError:
                    file.truncate(size)  # no half rows
                    raise
                if sync:
                    os.fsync(file.fileno())
            rows.clear()
        self._last_flush = time.monotonic()
        if self._mirror_rows:
            with self._tensorboard_writer() as writer:
                for step, values in self._mirror_rows:
                    for key, value in values.items():
                        writer.add_scalar(key, value, step)
                self._mirror_rows.clear()
                writer.flush()

    @contextlib.contextmanager
    def _tensorboard_writer(self) -> Iterator:
        with _writing(self.folder / "events.out.tfevents"):
            if self._tensorboard is None:
                from torch.utils.tensorboard import SummaryWriter

                _silence_tensorboard_thread()
                self._tensorboard = SummaryWriter(str(self.folder), purge_step=self._purge_step)
            yield self._tensorboard

    def _start_wandb(self, kwargs: dict):
        import wandb

        mode = kwargs.get("mode") or os.environ.get("WANDB_MODE") or "online"
        remedy = "log in with `wandb login`, or set WANDB_MODE=offline and `wandb sync` later"
        if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            raise UserError(f"W&B is not logged in; {remedy}")  # wandb itself would ask on the terminal
        fixed = {"id": self.digest, "name": self.name, "dir": str(self.folder), "config": self.config}
        settings = wandb.Settings(console="off", init_timeout=60)
        try:
            # create_new: the seeds of a batch are runs of one process
            run = wandb.init(**{**kwargs, **fixed}, resume="allow", reinit="create_new", settings=settings)
        except (wandb.Error, OSError, TypeError) as error:
            raise UserError(f"W&B does not start ({str(error).splitlines()[0]}); {remedy}") from error
        run.define_metric("*", step_metric="global_step")
        return run

    # -- checkpoints --

    def save_checkpoint(
        self, step: int, state: dict, transitions: dict | None = None, keep_transitions: int | None = None
    ) -> None:
        """Write checkpoint.pt in one step; the one before becomes checkpoint.prev.pt.

        step: environment steps done. state: nested dicts and lists of tensors, numbers, strings and None.
        transitions: tensors whose first axis is time, the replay rows added since the previous checkpoint. They go
            to a file of their own, so that a checkpoint costs what is new and not the whole replay.
        keep_transitions: rows that a resumed run needs (the capacity of its replay); None keeps all.
        Raises UserError if it cannot be written (full disk): the previous checkpoint and all rows are still good.
        TypeError for a leaf of `state` that could not be loaded again.
        """
        self._require_ready()
        state = _plain(state, "state")
        self.flush(sync=True)
        chunks, num_rows = list(self._chunks), self._num_rows
        if transitions:
            new = {key: _plain(torch.as_tensor(value), key) for key, value in transitions.items()}
            lengths = {key: len(value) for key, value in new.items()}
            if len(set(lengths.values())) != 1:
                raise ValueError(f"transitions of different lengths: {lengths}")
            start, num_rows = num_rows, num_rows + next(iter(lengths.values()))
            if num_rows > start:
                with _writing(self.folder / "replay"):
                    (self.folder / "replay").mkdir(exist_ok=True)
                chunks.append([f"{start:010d}-{num_rows:010d}.pt", start, num_rows])
                content = {"digest": self.digest, "start": start, "stop": num_rows, "transitions": new}
                _write_atomic(self.folder / "replay" / chunks[-1][0], _serialise(content))
        if keep_transitions is not None:
            chunks = [chunk for chunk in chunks if chunk[2] > num_rows - keep_transitions]
        offsets = {name: (self.folder / name).stat().st_size for name in APPEND_ONLY}
        content = {"digest": self.digest, "step": int(step), "elapsed": self.elapsed(), "offsets": offsets}
        content |= {"chunks": chunks, "num_rows": num_rows, "keep": keep_transitions, "state": state}
        _write_atomic(self.folder / CHECKPOINT, _serialise(content), previous=self.folder / PREVIOUS)
        needed = {chunk[0] for chunk in [*chunks, *self._chunks]}  # of this checkpoint and of the one before
        for path in (self.folder / "replay").glob("*"):
            if path.name not in needed:
                path.unlink(missing_ok=True)
        self._chunks, self._num_rows = chunks, num_rows

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints that can be loaded, newest first; [] if none was written yet.

        Reads and verifies both checkpoints and their replay files. Raises UserError like `load_checkpoint`.
        """
        return [content["step"] for _, content in self._checkpoints()]

    def load_checkpoint(self, step: int | None = None) -> tuple[int, dict | None, dict | None]:
        """Return (step, state, transitions) of the newest good checkpoint, or of the one at `step`.

        transitions: tensors of the last `keep_transitions` rows, or None. All tensors on the CPU. A run without any
        checkpoint gives (0, None, None). On an open run, the rows logged after that checkpoint and a newer checkpoint
        are deleted; otherwise nothing is changed.
        A damaged checkpoint is told on stderr and the one before is taken. Raises UserError if none is good, if
        there is none at `step`, or if it is of another configuration.
        """
        found = self._checkpoints()
        if not found and not step:
            return 0, None, None
        for path, content in found:
            if step is not None and content["step"] != step:
                continue
            try:
                transitions = self._read_transitions(content)
            except _Damaged as problem:
                self._warn(f"{problem}; trying the checkpoint before")
                continue
            if self._lock is not None:
                self._resume_from(path, content)
            return content["step"], content["state"], transitions
        wanted = "" if step is None else f" at step {step}"
        raise UserError(f"{self.folder} has no usable checkpoint{wanted}; use --fresh to start the run anew")

    def drop_transitions(self) -> None:
        """Delete the replay of a finished or diverged run; its checkpoint still loads, with transitions None."""
        if self.status() not in ("finished", "diverged"):
            raise RuntimeError(f"{self} is not finished: its checkpoint needs the replay")
        self.update_meta(transitions="dropped")
        with _writing(self.folder / "replay"):
            if (self.folder / "replay").exists():
                shutil.rmtree(self.folder / "replay")

    def _checkpoints(self) -> list[tuple[Path, dict]]:
        """The usable checkpoints, newest first."""
        paths = [] if self._fresh else [self.folder / name for name in (CHECKPOINT, PREVIOUS)]
        good, problems = [], []
        for path in paths:
            if path.exists():
                try:
                    good.append((path, self._read_checkpoint(path)))
                except _Damaged as problem:
                    problems.append(str(problem))
        if problems and not good:
            raise UserError(f"no usable checkpoint: {'; '.join(problems)}; use --fresh to start the run anew")
        for problem in problems:
            self._warn(f"{problem}; using {good[0][0].name} (step {good[0][1]['step']})")
        return good

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        self._warned.add(text)

    def _read_checkpoint(self, path: Path) -> dict:
        content = _load_pt(path)
        if not isinstance(content, dict) or "digest" not in content:
            raise _Damaged(f"{path} is no checkpoint of this program")
        if content["digest"] != self.digest:
            raise UserError(f"{path} is of another configuration (hash {content['digest']}, not {self.digest}); "
                            "use --fresh to start the run anew")  # fmt: skip
        for name, offset in content["offsets"].items():
            file = self.folder / name
            if not file.exists() or file.stat().st_size < offset:
                raise _Damaged(f"{path} does not fit: {file} is shorter than when it was written")
        for name, _, _ in [] if self._dropped() else content["chunks"]:
            chunk = self.folder / "replay" / name
            if not chunk.exists():
                raise _Damaged(f"{path} needs {chunk}, which is missing")
            stat = chunk.stat()
            if (name, stat.st_size, stat.st_mtime_ns) not in self._checked:
                _check_zip(chunk)
                self._checked.add((name, stat.st_size, stat.st_mtime_ns))
        return content

    def _dropped(self) -> bool:
        return _read_json(self.folder / "meta.json").get("transitions") == "dropped"

    def _read_transitions(self, content: dict) -> dict | None:
        if not content["chunks"] or self._dropped():
            return None
        stop, keep = content["num_rows"], content["keep"]
        first = max(content["chunks"][0][1], 0 if keep is None else stop - keep)
        out: dict[str, torch.Tensor] = {}
        for name, start, end in content["chunks"]:  # one at a time: a whole replay must not be held twice
            chunk = _load_pt(self.folder / "replay" / name)
            if (chunk.get("digest"), chunk.get("start"), chunk.get("stop")) != (self.digest, start, end):
                raise _Damaged(f"{self.folder / 'replay' / name} is not the file that {CHECKPOINT} needs")
            for key, rows in chunk["transitions"].items():
                if key not in out:
                    out[key] = torch.empty((stop - first, *rows.shape[1:]), dtype=rows.dtype)
                low = max(start, first)
                out[key][low - first : end - first] = rows[low - start :]
        return out

    def _resume_from(self, path: Path, content: dict) -> None:
        if path.name == PREVIOUS:  # the newer one describes a future that will be run again
            with _writing(path):
                os.replace(path, self.folder / CHECKPOINT)
                _sync_folder(self.folder)
        self._cut(content["offsets"])
        self._chunks, self._num_rows = [list(chunk) for chunk in content["chunks"]], content["num_rows"]
        self._elapsed_before, self._clock = content["elapsed"], time.monotonic()
        self._purge_step = content["step"] + 1
        self._ready = True
        self._meta["sessions"][-1]["from_step"] = content["step"]
        _write_json(self.folder / "meta.json", self._meta)

    def _cut(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            path = self.folder / name
            with _writing(path):
                if size == len(APPEND_ONLY[name]):
                    path.write_bytes(APPEND_ONLY[name])
                else:
                    os.truncate(path, size)

    def _require_ready(self) -> None:
        self._require_open()
        if not self._ready:
            raise RuntimeError(f"{self} has checkpoints: call load_checkpoint() before logging")

    # -- the end --

    def update_meta(self, **extra) -> None:
        """Add keys to meta.json (JSON-like values); works on a closed run too."""
        meta = self._meta if self._lock is not None else _read_json(self.folder / "meta.json")
        meta |= extra
        _write_json(self.folder / "meta.json", meta)

    def finish(self, status: str = "finished", **extra) -> None:
        """End the run for good: write all rows, the status, the peak memory in MB; close the mirrors; free the lock.

        status: "finished" or "diverged" (say at which step: `finish("diverged", step=global_step)`).
        extra: further keys of meta.json.
        """
        if status not in ("finished", "diverged"):
            raise ValueError(f"a run ends finished or diverged, not {status!r}")
        self._require_ready()
        self.flush(sync=True)
        self._end(status, **extra)

    def fail(self, message: str) -> None:
        """Mark the run failed (an unexpected exception). It may resume. Does nothing on a run that is not open."""
        if self._lock is not None:
            with contextlib.suppress(UserError):  # the first error is the one to tell
                self.flush()
            self._end("failed", error=message)

    def close(self) -> None:
        """Leave the run as it is, to be resumed later. Does nothing on a run that is not open."""
        if self._lock is not None:
            self.flush()
            self._end("interrupted")

    def _end(self, status: str, **extra) -> None:
        self._meta["sessions"][-1]["end"] = _now()
        self._meta |= {
            "status": status,
            "end": _now(),
            "elapsed_s": round(self.elapsed(), 3),
            **_peak_memory(),
            **extra,
        }
        try:
            _write_json(self.folder / "meta.json", self._meta)
        finally:
            if self._tensorboard is not None:
                with contextlib.suppress(OSError):
                    self._tensorboard.close()
            if self._wandb is not None:
                self._wandb.finish(exit_code=0 if status in ("finished", "diverged") else 1)
            self._release_lock()


def _silence_tensorboard_thread() -> None:
    """Its writer's thread prints a traceback before the error reaches us, who tell it in one line."""
    before = threading.excepthook

    def hook(args):
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            before(args)

    threading.excepthook = hook


def group_by_step(runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    """Which of a batch's unfinished runs can go on together: [(step, runs)], each group from one common step.

    A kill between two seeds' checkpoint writes leaves them one checkpoint apart: all then go on from the newest step
    that all can load. Otherwise the step that most runs share makes the first group, and so on; 0 = from the beginning.
    """
    steps = {run: run.checkpoint_steps() or [0] for run in runs}
    groups = []
    while steps:
        candidates = {step for some in steps.values() for step in some}
        best = max(candidates, key=lambda step: (sum(step in some for some in steps.values()), step))
        members = [run for run in runs if run in steps and best in steps[run]]
        groups.append((best, members))
        for run in members:
            del steps[run]
    return groups


class Progress:
    """A tqdm bar on a terminal; elsewhere no bar, and one flushed line per `note`.

    initial, total: environment steps. desc: text before the bar.
    """

    def __init__(self, initial: int, total: int, desc: str = ""):
        self._bar = tqdm(initial=initial, total=total, desc=desc, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def update(self, step: int, **postfix) -> None:
        """Move the bar to `step`, with `postfix` (strings, numbers) behind it."""
        if not self._bar.disable:
            self._bar.set_postfix(postfix, refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def close(self) -> None:
        self._bar.close()
