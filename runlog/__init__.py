"""A run's folder: identity, command line, scalars, checkpoints, and the TensorBoard and W&B mirrors (docs/runs.md).

One run = one seed = one folder `<root>/<env>__<script>__<activation>__s<seed>__<hash>`. Its `scalars.csv` is the source
of every figure. A run killed at any moment resumes from its newest good checkpoint and ends with the same rows.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
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
import time
import weakref
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import gymnasium
import numpy as np
import torch
import tyro
from tqdm import tqdm

import metrics
from runlog import compiler, mirrors
from runlog.checks import (  # noqa: F401  (handed on)
    ADAM_COPIES,
    FLOAT_BYTES,
    NTK_COPIES,
    NetworkSize,
    bytes_text,
    check_choice,
    check_flags,
    check_folder,
    check_memory,
    check_range,
    errors_are_user_errors,
    find_device,
    flag_name,
    keep_or_fresh,
    mlp_size,
    sequence_length,
    value_errors_are_user_errors,
)
from runlog.disk import append
from runlog.disk import check_space as check_space
from runlog.disk import reserve as reserve
from runlog.disk import row_checksums as row_checksums
from runlog.disk import writing as writing
from runlog.divergence import Divergence as Divergence
from runlog.mirrors import SECTIONS as SECTIONS
from runlog.stopping import SaveTimes as SaveTimes
from runlog.stopping import Stopped
from runlog.stopping import stop_on_signals as stop_on_signals
from runlog.terminal import UserError as UserError
from runlog.terminal import exit_on_user_error as exit_on_user_error
from runlog.terminal import reason as reason
from runlog.terminal import warn as warn
from runlog.terminal import warn_once as warn_once

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.prev.pt"
STAGED = "checkpoint.next.pt"
APPEND_ONLY = {"scalars.csv": "step,key,value,wall_time\n", "perf.csv": "step,key,value,wall_time\n"}  # file: header
APPEND_ONLY |= {"histograms.jsonl": "", "curves.jsonl": ""}
PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco", "dm_control", "metaworld", "shimmy", "ale-py", "wandb")
REPLAY_FILE = "replay.dat"  # one that an algorithm keeps in the run's folder by itself (DQN)
FLUSH_SECONDS = 10.0
FLUSH_ROWS = 5_000
ENDED = ("finished", "diverged")
# Flags that do not change what a run computes, so they are no part of its identity.
NOT_IDENTITY = (
    *("num_seeds", "device", "threads", "env_threads", "compile", "cudagraphs", "async_envs", "runs_dir", "fresh"),
    *("analyse", "keep_replay", "checkpoint_frequency", "checkpoint_minutes", "evaluate", "print_network"),
    *("capture_video", "tensorboard"),
    *("data_dir", "plots", "track", "wandb_project", "wandb_entity"),
    # function_approximation.py: what it compares (each run holds its own activation, widths, learning_rate), drawings
    *("activations", "shallow_units", "deep_activations", "deep_widths", "learning_rates", "out", "table1_neurons"),
)


class _Damaged(Exception):
    """A checkpoint that cannot be used; the text says why."""


def parse_args(cls, argv: Sequence[str] | None = None):
    """Parse the command line into the dataclass `cls` with `tyro.cli`, but tell a mistake in one line.

    argv: arguments without the program's name; None takes `sys.argv[1:]`. Raises SystemExit: 0 after `--help`,
    2 after a mistake, which is printed on stderr as `error: ...`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(cls, args=argv)
    except SystemExit as stop:
        if not stop.code:
            raise
    sections = [""]  # tyro draws a box: sections parted by rules
    for line in re.sub(r"\x1b\[[0-9;]*m", "", boxes.getvalue()).splitlines():
        line = line.strip("│ \t")
        if set(line) in ({"─"}, {"-"}):  # without Unicode the box has no sides, and a rule below its title
            sections.append("")
        elif not line.startswith(("╭", "╰")):
            sections[-1] = f"{sections[-1]} {line}".strip()
    if "╭" not in boxes.getvalue():
        del sections[0]
    told = [s.replace("Argument helptext:", "expected") for s in sections if s and not s.startswith("For full help")]
    for value in {"True", "False", "true", "false"} & {*argv[1:]}:  # tyro only says "Unrecognized options: False"
        flag = argv[argv.index(value) - 1]
        if flag.startswith("--") and value in told[0]:
            told.append(f"{flag} is a switch without a value: write {flag}, or --no-{flag[2:]} to turn it off")
    print(f"error: {'; '.join(s.rstrip('.') for s in told)} (--help lists every flag)", file=sys.stderr)
    raise SystemExit(2)


def _canonical(config: dict, exclude: Collection[str]) -> str:
    kept = {key: value for key, value in config.items() if key not in exclude}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), default=str)


def config_hash(config: dict, exclude: Collection[str]) -> str:
    """Ten hex digits over every key of `config`, nested dicts included, except the top-level keys in `exclude`.

    The order of keys does not matter; tuples equal lists; 1 and 1.0 differ.
    """
    return hashlib.sha256(_canonical(config, exclude).encode()).hexdigest()[:10]


def run_name(env_id: str, script: str, activation: str, seed: int, digest: str) -> str:
    """Folder name `<env>__<script>__<activation>__s<seed>__<digest>`, safe on every file system.

    `*` becomes `x`, `+` becomes `p`, any other character outside `A-Za-z0-9.=_-` becomes `-`, several `_` become one,
    a part ends after 60 characters. The digest keeps names distinct; config.json keeps the truth.
    Example: `run_name("dm_control/cheetah-run-v0", "sac_continuous", "tanh*tanh", 3, "0123456789")` is
    `dm_control-cheetah-run-v0__sac_continuous__tanhxtanh__s3__0123456789`.
    """
    parts = [part.replace("*", "x").replace("+", "p") for part in (env_id, script, activation)]
    parts = [re.sub("_+", "_", re.sub("[^A-Za-z0-9.=_-]", "-", part)).strip("_")[:60] for part in parts]
    return "__".join([*parts, f"s{int(seed)}", digest])


def env_name(env_id: str | Sequence[str]) -> str:
    """One environment id as it is; several in a row, a suite named once where it repeats.

    Example: `env_name(["metaworld/reach-v3", "metaworld/push-v3"])` is `metaworld/reach-v3,push-v3`.
    """
    ids = [env_id] if isinstance(env_id, str) else list(env_id)
    suites = [""] + [each.rpartition("/")[0] for each in ids]
    return ",".join(each.removeprefix(f"{before}/") if before else each for each, before in zip(ids, suites))


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for the purpose that `keys` name, e.g. `derive_seed(args.seed, "episode", 12)`.

    seed: int >= 0, else ValueError. The same in every process and version; other keys ("1" is not 1), unrelated seed.
    """
    texts = [f"str:{key}" if isinstance(key, str) else f"int:{int(key)}" for key in keys]
    words = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts]
    return int(np.random.SeedSequence([int(seed), *words]).generate_state(1, np.uint64)[0]) >> 1


def make_generator(seed: int, *keys: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A `torch.Generator` on `device`, seeded with `derive_seed(seed, *keys)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *keys))


def derive_seeds(seeds, *keys: str | int) -> np.ndarray:
    """`derive_seed` of every entry of an integer array of any shape."""
    seeds = np.asarray(seeds)
    return np.array([derive_seed(int(s), *keys) for s in seeds.ravel()], dtype=np.int64).reshape(seeds.shape)


def log_evaluations(runs: Sequence["Run"], step: int, last: list[dict], task_steps: int) -> list[dict[str, float]]:
    """Logs each run's newest evaluation: the current task's values and, of several tasks, each one's, with plasticity
    and forgetting of the success rate or, without one, of the return (metrics.sequence_scores). Returns the rows.

    last: for each run "tasks", the `eval/` values of every task ([] before the first evaluation: nothing is logged);
    "bias", further values of the current task; "history", rows (step, score of each task), which this evaluation joins.
    """
    rows = [each["tasks"][(step - 1) // task_steps] | each["bias"] if each["tasks"] else {} for each in last]
    for run, row, each in zip(runs, rows, last):
        if len(each["tasks"]) > 1:
            for k, values in enumerate(each["tasks"], 1):
                row |= {f"eval/task{k}/{key.removeprefix('eval/')}": value for key, value in values.items()}
            scores = [values.get("eval/success", values["eval/episodic_return"]) for values in each["tasks"]]
            each["history"].append([step, *scores])
            row |= metrics.sequence_scores(each["history"], task_steps)
        run.log(step, row)
    return rows


def new_episode(number: int = 0, errors: int = 0) -> dict:
    """A training episode before its first step. A checkpoint holds it: environments.EpisodeSeeds goes back to where it
    was. errors: how often the environment has failed so far (environments.log_errors)."""
    return {"number": number, "return": 0.0, "success": 0.0, "actions": [], "errors": errors}


def log_episodes(
    runs: Sequence["Run"], step: int, episodes: list[dict], actions, rewards, success, dones, muted
) -> None:
    """Adds one step of each run's environment to its episode, in place; one that ends is logged, unless the run is in
    `muted`, and the next takes its place. success: as of environments.true_successors; all arrays (runs, ...)."""
    for i, episode in enumerate(episodes):
        episode["actions"].append(actions[i].tolist())
        episode["return"] += float(rewards[i])
        episode["success"] = max(episode["success"], float(success[i]))
        if dones[i] and not muted[i]:
            row = {} if np.isnan(success[i]) else {"charts/success": episode["success"]}
            row |= {"charts/episodic_return": episode["return"], "charts/episodic_length": len(episode["actions"])}
            runs[i].log(step, row)
        if dones[i]:
            episodes[i] = new_episode(episode["number"] + 1, episode.get("errors", 0))


def normals(generators: list[torch.Generator], *shape: int, axis: int = 0) -> torch.Tensor:
    """Standard normal noise of `shape` with a seed axis put in at `axis`; each seed's by its own generator."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators], axis)


def set_states(generators: dict[str, torch.Generator], states: dict[str, torch.Tensor]) -> None:
    """Puts generators back to the states of a checkpoint. Raises UserError if it is of another kind of device."""
    for use, generator in generators.items():
        try:
            generator.set_state(states[use])
        except RuntimeError:
            kind = "cpu" if generator.device.type == "cuda" else "cuda"
            raise UserError(f"--device {generator.device}: the run was begun on another; use --device {kind}") from None


def graphed(block):
    """`block` as one CUDA graph. It always works on one copy of its inputs: three calls warm up on a side stream, the
    fourth is captured, and from then on the graph is replayed. It has never run on a GPU."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    kept = {}
    calls = itertools.count()

    def call(batches: dict[str, torch.Tensor], noise: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = {**batches, "noise": noise}
        number = next(calls)
        for name, x in inputs.items():
            kept.setdefault(name, torch.empty(x.shape, dtype=x.dtype, device=x.device)).copy_(x)
        arguments = {name: kept[name] for name in batches}, kept["noise"]
        if number < 3:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                out = block(*arguments)
            torch.cuda.current_stream().wait_stream(stream)
            return out
        if number == 3:
            with torch.cuda.graph(graph):
                kept["out"] = block(*arguments)
        graph.replay()
        return kept["out"]

    return call


def _write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Whoever looks at `path`, also after a kill, sees the old or the new content."""
    temp = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            path.parent.mkdir(exist_ok=True)
            with open(temp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        os.replace(temp, path)
        _sync_folder(path.parent)


def _shift_checkpoints(folder: Path) -> None:
    """checkpoint.next.pt becomes checkpoint.pt, that checkpoint.prev.pt; after a kill at any point all is there."""
    with writing(folder / CHECKPOINT):
        if (folder / CHECKPOINT).exists():
            os.replace(folder / CHECKPOINT, folder / PREVIOUS)
        os.replace(folder / STAGED, folder / CHECKPOINT)
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Makes renames in this folder last through a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_json(path: Path, content: dict) -> None:
    _write_atomic(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def _read_json(path: Path) -> dict:
    """A file of JSON that holds a dict; {} if it is missing. Raises UserError if it cannot be read, _Damaged if it
    holds something else."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it a readable file, or move it away") from None
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{path} is damaged ({reason(error)})") from None
    if not isinstance(found, dict):
        raise _Damaged(f"{path} is damaged (it holds {str(found)[:40]!r} instead of keys and values)")
    return found


def _bytes_or_none(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at this path."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def read_meta(folder: Path) -> dict:
    """meta.json of a run's folder; {} without one. Raises UserError if it cannot be read."""
    return _read_json(folder / "meta.json")


def _write_pt(path: Path, content: dict) -> None:
    buffer = io.BytesIO()  # torch's own file writer turns a full disk into a C++ error
    torch.save(content, buffer)
    _write_atomic(path, buffer.getbuffer())


def _load_pt(path: Path) -> dict:
    """torch.save writes a zip with a CRC-32 for each record. Raises _Damaged unless every one is right."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise ValueError(f"wrong checksum of {bad}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise _Damaged(f"{path} is {'damaged' if path.exists() else 'missing'} ({reason(error)})") from None


def _plain(value, where: str):
    """`value` as `weights_only=True` can read it; a tensor on the CPU and, if a view, without the rest of its base."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.clone() if value.untyped_storage().nbytes() != value.nbytes else value
    if isinstance(value, dict):
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_plain(item, f"{where}[{i}]") for i, item in enumerate(value)])
    if value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, dicts, lists"
        )
    return value


def machine() -> dict:
    """Command line, git commit, versions and hardware, as meta.json has them."""
    return {"argv": sys.argv, **_code_and_hardware()}


@functools.cache  # a process runs the code that it has loaded; git takes 30 ms, and there may be 100 runs to open
def _code_and_hardware() -> dict:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cpu = platform.machine()
    commit = ""
    with contextlib.suppress(OSError, AttributeError):
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()).group(1)
    with contextlib.suppress(OSError):
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        commit = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parent.parent
        ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    git = {"commit": commit.removesuffix("-dirty") or None, "dirty": commit.endswith("-dirty") if commit else None}
    hardware = {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()}
    return {"git": git, "versions": versions, "hardware": hardware}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class Run:
    """One seed's folder, `root/name`. Nothing is created before `open`. A process may have several open.

    config: every setting, JSON-like, nested dicts allowed. exclude: its top-level keys that do not belong to the run's
    identity, as for `config_hash`; these may change when a run resumes. fresh: `open` deletes the run's old content.
    """

    def __init__(self, root: str | Path, name: str, config: dict, *, exclude: Collection[str] = (), fresh=False):
        self.folder = Path(root) / name
        self.name = name
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
            self._warn_once(f"{self.folder / 'meta.json'} has the status {status!r}; the run counts as interrupted")
            is_damaged = True
        if is_damaged:
            return {"status": "interrupted"}
        return meta

    def _read_or_warn(self, name: str, consequence: str) -> tuple[dict, bool]:
        """(content of a JSON file, whether it is damaged); {} if it is missing or damaged. Warns once of damage."""
        try:
            return _read_json(self.folder / name), False
        except _Damaged as damage:
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
            self._acquire_lock()
        try:
            if self._fresh:
                self._delete_content()
                self._is_new = True
            fresh = self._fresh
            self._fresh = False
            self._check_identity()
            self._before_open = {name: _bytes_or_none(self.folder / name) for name in ("config.json", "meta.json")}
            self._mirrors = [mirrors.TensorBoard(self.folder)] if tensorboard else []
            if wandb_kwargs is not None:
                tracked = mirrors.start_wandb(wandb_kwargs, self.digest, self.name, self.folder, self.config, fresh)
                self._mirrors += [tracked] if tracked else []
            _write_json(self.folder / "config.json", self.config)
            old = self._read_meta()
            sessions = old.get("sessions")
            if not isinstance(sessions, list):
                sessions = []
            here = machine()  # of this session; an older one may have run other code
            self._meta = {"name": self.name, "hash": self.digest, **here, "start": old.get("start", _now())}
            session = {"start": _now(), "argv": here["argv"], "git": here["git"], "versions": here["versions"]}
            self._meta |= {"status": "running", "sessions": [*sessions, session]}
            if old.get("git", here["git"]) != here["git"]:
                warn(f"{self.folder} was begun with the code of {old['git']}, and goes on with {here['git']}")
            _write_json(self.folder / "meta.json", self._meta)
            self._before = 0.0
            self._clock = time.monotonic()
            self._purge_step = 0  # in the first session too: to TensorBoard's slow loader a first purge is no restart
            self._ready = not any((self.folder / name).exists() for name in (STAGED, CHECKPOINT, PREVIOUS))
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
        with contextlib.suppress(UserError, OSError):  # what made it fail may make this fail as well
            if self._is_new:
                self._delete_content()
                self._remove_folder()
            for name, content in self._before_open.items():
                if not self._is_new and content is not None:
                    _write_atomic(self.folder / name, content)
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

    def _acquire_lock(self) -> None:
        self._before_open = {}
        self._made_parents = []
        for attempt in itertools.count():
            with writing(self.folder):
                try:
                    self._make_folder()
                    lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT)
                except (FileExistsError, FileNotFoundError):  # removed meanwhile by a process that could not start
                    if attempt < 100:
                        continue
                    raise
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it however the process dies
            except OSError as error:
                pid = os.read(lock, 32).decode(errors="replace").strip()
                os.close(lock)
                if isinstance(error, BlockingIOError):
                    raise UserError(
                        f"{self.folder} is in use by process {pid}; wait until it ends or stop it"
                    ) from None
                with contextlib.suppress(OSError):  # nobody can hold a lock here
                    self._remove_folder()
                raise UserError(f"cannot lock {self.folder} ({error}); choose a folder on another disk") from None
            if _is_file(lock, self.folder / ".lock"):
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
            raise UserError(f"{self.folder} is {self.status()} already; {keep_or_fresh(self.folder)}")
        meta = self._read_meta()
        if not meta.get("name") and self._has_rows() and not self._checkpoints():
            told = f"{self.folder} has rows, but neither a good meta.json, which tells its status, nor a checkpoint"
            raise UserError(f"{told}; {keep_or_fresh(self.folder)}")
        if meta.get("hash") == self.digest:  # whatever further flags config.json has, of an older version perhaps
            return
        there, _ = self._read_or_warn("config.json", "it is written anew")
        here = json.loads(_canonical(self.config, ()))
        keys = sorted({*there, *here} - {*self.exclude})
        differ = [k for k in keys if (k in there, there.get(k)) != (k in here, here.get(k))]
        if there and differ:
            told = ", ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in differ)
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
            rows.append(f"{step},{key},{value!r},{self._elapsed():.3f}\n")  # repr: equal bits, equal bytes
        for mirror in self._mirrors:
            mirror.scalars(step, values)
        if sum(map(len, self._rows.values())) > FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS:
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
            raise ValueError(f"{key}: {len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}")
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
            raise ValueError(f"{key}: x and y must be two lists of one length, not {x.shape} and {y.shape}")
        steps = np.diff(x) if len(x) > 2 and np.isfinite(x).all() else [0, 1]
        if np.ptp(steps) <= 1e-3 * np.abs(steps).max():
            x = x[[0, -1]]
        x, y = ([float(f"{value:.6g}") for value in values.tolist()] for values in (x, y))
        self._rows["curves.jsonl"].append(json.dumps({"step": int(step), "key": key, "x": x, "y": y, **extra}) + "\n")

    def draw(self, step: int) -> None:
        """Draw the run's plots (figures.draw_run) and mirror them, if there are new curves since the last drawing.

        A failure is one line on stderr: the run goes on.
        """
        self.flush()
        size = (self.folder / "curves.jsonl").stat().st_size
        if size == self._drawn_size:
            return
        self._drawn_size = size
        try:
            import figures

            for path in figures.draw_run(self.folder):
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
        self, step: int, state: dict, transitions: dict | None = None, keep_transitions: int | None = None
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
        self, step: int, state: dict, transitions: dict | None = None, keep_transitions: int | None = None
    ) -> None:
        """The first phase of a save: the rows, the new transitions and a complete checkpoint.next.pt are on the disk.

        A run that is killed now can go on from there or from checkpoint.pt: so a batch that is killed anywhere in a
        save has a step that all its runs can go on from. Arguments and errors as of `save_checkpoint`.
        """
        self._require_ready()
        state = _plain(state, "state")
        self.flush()
        chunks = list(self._chunks)
        start = self._num_rows
        stop = self._num_rows
        if transitions:
            new = {key: _plain(torch.as_tensor(value), key) for key, value in transitions.items()}
            if len({len(rows) for rows in new.values()}) != 1:
                raise ValueError(f"transitions of different lengths: { {key: len(rows) for key, rows in new.items()} }")
            stop += len(next(iter(new.values())))
        if stop > start:
            chunks.append([f"{start:010d}-{stop:010d}.pt", start, stop])
            content = {"digest": self.digest, "rows": [start, stop], "transitions": new}
            _write_pt(self.folder / "replay" / chunks[-1][0], content)
        chunks = [chunk for chunk in chunks if keep_transitions is None or chunk[2] > stop - keep_transitions]
        content = {"digest": self.digest, "step": int(step), "elapsed": self._elapsed(), "state": state}
        content["offsets"] = {name: (self.folder / name).stat().st_size for name in APPEND_ONLY}
        content |= {"chunks": chunks, "num_rows": stop, "keep": keep_transitions}
        _write_pt(self.folder / STAGED, content)
        self._staged = chunks, stop

    def commit_checkpoint(self) -> None:
        """The second phase of a save: checkpoint.next.pt becomes checkpoint.pt, and that checkpoint.prev.pt."""
        self._require_ready()
        if self._staged is None:
            raise RuntimeError(f"{self}: there is no staged checkpoint")
        _shift_checkpoints(self.folder)
        chunks, num_rows = self._staged
        needed = {chunk[0] for chunk in [*chunks, *self._chunks]}  # by this checkpoint and the one before
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
        return next(content["state"] for _, content in self._checkpoints() if content["step"] == step)

    def load_checkpoint(self, step: int | None = None) -> tuple[int, dict | None, dict | None]:
        """(step, state, transitions) of the newest good checkpoint or the one at `step`; (0, None, None) without any.

        All tensors are on the CPU; transitions are the last `keep_transitions` rows, or None. If the run is open, rows
        and checkpoints of later steps are deleted. With a damaged checkpoint it warns and takes the one before.
        Raises UserError like `checkpoint_steps`, and if there is no good checkpoint at `step`.
        """
        found = self._checkpoints()
        if not found and not step:
            return 0, None, None
        if step == 0 and 0 in self.checkpoint_steps():
            self._begin_anew()
            return 0, None, None
        path, content = next((pair for pair in found if step in (None, pair[1]["step"])), (None, None))
        if path is None:
            raise UserError(f"{self.folder} has no good checkpoint at step {step}; {keep_or_fresh(self.folder)}")
        transitions = self._read_transitions(content)
        if self._lock is not None:
            with writing(path):  # a newer checkpoint describes a future that will be run again
                if path.name == STAGED:
                    _shift_checkpoints(self.folder)
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
            _write_json(self.folder / "meta.json", self._meta)
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
        if _read_json(self.folder / "meta.json").get("replay") == "deleted":
            with contextlib.suppress(OSError):
                self.drop_transitions()

    def _chunk_files(self, content: dict) -> list[tuple[Path, int, int]]:
        replay = self.folder / "replay"
        dropped = self.status() in ENDED and not replay.exists()
        return [] if dropped else [(replay / name, start, stop) for name, start, stop in content["chunks"]]

    def _checkpoints(self) -> list[tuple[Path, dict]]:
        """The usable checkpoints, newest first."""
        good = []
        problems = []
        paths = [] if self._fresh else [self.folder / name for name in (STAGED, CHECKPOINT, PREVIOUS)]
        for path in filter(Path.exists, paths):
            try:
                content = _load_pt(path)
                if not isinstance(content, dict) or content.get("digest") != self.digest:
                    raise UserError(f"{path} is of another configuration; {keep_or_fresh(self.folder)}")
                file = self.folder / "scalars.csv"  # the others go on without their earlier rows (_cut)
                if not file.exists() or file.stat().st_size < content["offsets"][file.name]:
                    raise _Damaged(f"{path} does not fit: {file} is shorter than it was then")
                for file, start, stop in self._chunk_files(content):
                    chunk = {} if file in self._verified else _load_pt(file)
                    if chunk and (chunk.get("digest"), chunk.get("rows")) != (self.digest, [start, stop]):
                        raise _Damaged(f"{path} does not fit: {file} is of another run")
                    self._verified.add(file)
                good.append((path, content))
            except _Damaged as problem:
                problems.append(str(problem))
        if problems and not good:
            raise UserError(f"no usable checkpoint: {'; '.join(problems)}; {keep_or_fresh(self.folder)}")
        for problem in (p for p in problems if p not in self._told):
            warn(f"{problem}; using {good[0][0].name}, step {good[0][1]['step']}")
            self._told.add(problem)
        return good

    def _read_transitions(self, content: dict) -> dict | None:
        out = {}
        stop = content["num_rows"]
        files = self._chunk_files(content)
        first = max(files[0][1], 0 if content["keep"] is None else stop - content["keep"]) if files else 0
        for file, start, end in files:  # one after the other: a replay of many GB must not be held twice
            chunk = torch.load(file, map_location="cpu", weights_only=True)["transitions"]
            for key, rows in chunk.items():
                if key not in out:
                    out[key] = torch.empty((stop - first, *rows.shape[1:]), dtype=rows.dtype)
                out[key][max(start, first) - first : end - first] = rows[max(start, first) - start :]
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
            raise RuntimeError(f"{self} is not open" if self._lock is None else f"{self}: call load_checkpoint() first")

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
        self._meta["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
        if torch.cuda.is_initialized():
            self._meta["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1024**2, 1)
        self._meta["sessions"][-1]["end"] = _now()
        self._meta |= {"status": status, "end": _now(), "elapsed_s": round(self._elapsed(), 3), **extra}
        with contextlib.ExitStack() as stack:  # each of these happens even if one before it fails
            stack.callback(self._release_lock)
            for mirror in self._mirrors:
                stack.callback(mirror.close, status in ENDED)
            _write_json(self.folder / "meta.json", self._meta)


# A forked child (a worker of AsyncVectorEnv, say) shares the locks of its parent, and would keep them after its death.
_OPEN_RUNS: "weakref.WeakSet[Run]" = weakref.WeakSet()


def _release_locks_in_child() -> None:
    for run in list(_OPEN_RUNS):
        with contextlib.suppress(OSError):
            run._release_lock()


os.register_at_fork(after_in_child=_release_locks_in_child)


def group_by_step(runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    """Which unfinished runs of a batch can go on together, and from which step: [(step, runs)]; 0 = the beginning.

    The step that most runs share makes a group, the newest of those, then the same for the rest. Runs that save
    together always share one (`Run.stage_checkpoint`), wherever in a save they are killed.
    """
    steps = {run: run.checkpoint_steps() or [0] for run in runs}
    groups = []
    while steps:
        sharing = defaultdict(list)
        for run, loadable in steps.items():
            for step in loadable:
                sharing[step].append(run)
        best = max(sharing, key=lambda step: (len(sharing[step]), step))
        groups.append((best, sharing[best]))
        for run in sharing[best]:
            del steps[run]
    return groups


def make_runs(args, script: str, **own) -> dict[int, Run]:
    """seed -> Run for every seed of the batch `args.seed`, `args.seed + 1`, ...; alone, a seed is the same run.

    own: settings that `args` does not have, such as an env_id, or that differ from it.
    """
    runs = {}
    for seed in range(args.seed, args.seed + getattr(args, "num_seeds", 1)):  # Atari scripts train one seed
        config = {**dataclasses.asdict(dataclasses.replace(args, seed=seed)), **own}
        if not isinstance(config["env_id"], str) and len(config["env_id"]) == 1:
            (config["env_id"],) = config["env_id"]  # a sequence of one task is that task
        name = env_name(config["env_id"])
        digest = config_hash(config, NOT_IDENTITY)
        name = run_name(name, script, config["activation"], seed, digest)
        runs[seed] = Run(args.runs_dir, name, config, exclude=NOT_IDENTITY, fresh=args.fresh)
    return runs


def keep_freed_memory() -> None:
    """Tells glibc to keep freed buffers of up to 32 MB for the next ones. By default many go back to the kernel, and
    page faults of the next take a tenth to a fifth of an Atari update on the CPU (docs/log.md). Elsewhere: no-op."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold = -1  # M_TRIM_THRESHOLD of malloc.h
        mmap_threshold = -3  # M_MMAP_THRESHOLD
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the greatest that there is
        libc.mallopt(trim_threshold, 2**31 - 1)


def check_machine(args) -> None:
    """Raises UserError, before anything is created, unless what --compile and --track need is here (see compiler.py and
    mirrors.py). `opened` calls it if there is something to train."""
    if getattr(args, "compile", False):
        compiler.check_compiler(find_device(args.device))
    if args.track:
        mirrors.check_wandb(args.wandb_project)


@contextlib.contextmanager
def opened(runs: dict, args, job_type: str) -> Iterator[list[tuple[int, list, list[Run]]]]:
    """Opens the unfinished runs, says so of the others, and yields what to train: [(from step, seeds, runs), ...].

    The keys of `runs` are seeds, or whatever else tells the runs of a batch apart. While it is open a signal lets the
    loop save and stop (`SaveTimes`). Leaving by an exception marks what is open "failed" (by a signal: "interrupted");
    both resume. Raises UserError as `check_machine` and `Run.open` do, and Stopped.
    """
    if job_type.endswith("_atari"):  # SAC's matrices are too small to gain from it
        keep_freed_memory()
    ended = [(run, run.status()) for run in runs.values() if run.status() in ENDED]
    for run, _ in ended:
        run.drop_leftovers()  # a kill may have come between the end and the deletion of the replay
    for run, status in ended if len(ended) <= 10 else ():
        print(f"{run.folder}: {status} already (--fresh starts it anew)", flush=True)
    if len(ended) > 10:
        print(
            f"{len(ended)} runs such as {ended[0][0].folder}: finished or diverged already (--fresh starts them anew)"
        )
    seeds = {run: seed for seed, run in runs.items() if run.status() not in ENDED}
    if seeds:
        check_machine(args)
    kwargs = {"project": args.wandb_project, "entity": args.wandb_entity, "job_type": job_type}
    try:
        with stop_on_signals():
            try:
                for run in seeds:  # all, before --fresh deletes the first one's files
                    run._acquire_lock()
                for run in seeds:
                    setting = config_hash(run.config, (*NOT_IDENTITY, "seed"))  # seeds of one setting make a group
                    group = f"{env_name(run.config['env_id'])} {run.config['activation']} {setting}"
                    wandb_kwargs = {**kwargs, "group": group} if args.track else None
                    run.open(tensorboard=args.tensorboard, wandb_kwargs=wandb_kwargs)
                steps_and_runs = group_by_step(list(seeds))
            except BaseException:
                for run in seeds:
                    run.abandon()
                raise
            yield [(step, [seeds[run] for run in each], each) for step, each in steps_and_runs]
    except BaseException as error:
        is_a_stop = isinstance(error, KeyboardInterrupt | Stopped)
        for run in seeds:
            if is_a_stop:
                run.close()
            else:
                run.fail(f"{type(error).__name__}: {error}")
        raise


def save_video(path: Path, make_env: Callable[[], gymnasium.Env], policy: Callable, every: int = 4) -> float:
    """Films one episode, every fourth step, at 25 frames a second; returns the episode's return.

    make_env makes an environment with render_mode "rgb_array"; policy: observation (obs_dim,) -> action (action_dim,).
    Training does not depend on it: without graphics or ffmpeg the reason is one line on stderr, and the return is nan.
    """
    total = 0.0
    steps = 0
    done = False
    frames = []
    try:
        env = make_env()
        obs, _ = env.reset()
        while not done:
            if steps % every == 0:
                frames.append(env.render())
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total += float(reward)
            steps += 1
            done = terminated or truncated
        env.close()
    except Exception as error:
        warn_once("video", f"no video {path} ({reason(error)})")
        return float("nan")
    write_video(path, frames, fps=25)
    return total


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> bool:
    """An mp4 of RGB frames (height, width, 3) uint8. Returns whether it was written; if not, the first reason of this
    process is one line on stderr."""
    try:
        import imageio.v2 as imageio

        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.mimsave(path, frames, fps=fps, macro_block_size=1)
    except Exception as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # a part of it
        warn_once("video", f"no video {path} ({reason(error)})")
        return False
    return True


def load_finished(run: Run) -> tuple[int, dict]:
    """Step and state of the last checkpoint, for --evaluate. Raises UserError: not at its end, or none was saved."""
    if run.status() not in ENDED or not run.checkpoint_steps():  # diverged before the first
        raise UserError(f"--evaluate: {run.folder} is {run.status()}; train it to the end first")
    return run.load_checkpoint()[:2]


def record_evaluation(run: Run, step: int, returns: Sequence[float], screens, prefix: str, report, **scalars) -> None:
    """What --evaluate found: a video of the first game (RGB screens, 15 per second) in the run's `videos/`; mean and
    standard deviation of the returns, further scalars and a metrics.NetworkReport in its `evaluation-<step>/`, which is
    made anew and has the files and plots of a run's folder. Prints one line. Raises UserError: not writable. Without
    ffmpeg there is no video, and a warning."""
    again = Run(run.folder, f"evaluation-{step}", run.config, exclude=NOT_IDENTITY, fresh=True).open(tensorboard=False)
    mean = float(np.mean(returns))
    std = float(np.std(returns))
    again.log(step, {"eval/episodic_return": mean, "eval/episodic_return_std": std, "eval/num_games": len(returns)})
    again.log(step, scalars)
    log_report(again, step, prefix, report)
    again.flush()
    again.draw(step)
    again.finish()
    path = run.folder / "videos" / f"evaluation-{step}.mp4"
    shown = f"{path} shows a game of {returns[0]:.0f}; " if write_video(path, screens, fps=15) else ""
    told = f"seed {run.config['seed']}: return {mean:.1f} +- {std:.1f} (standard deviation, {len(returns)} games)"
    print(f"{told}; {shown}measures: {again.folder}", flush=True)


def log_report(runs: Run | Sequence[Run], step: int, prefix: str, report, muted: Sequence = ()) -> None:
    """Log a metrics.NetworkReport into the runs of its batch, scalars, histograms and curves, as `<prefix>/<key>`.

    The first batch axis is the runs, in their order; a Run alone takes a report without that axis. A second axis (twin
    critics) is spelled out: with the prefix "network/qf" the keys are network/qf1/..., network/qf2/... Histograms of
    non-finite values are left out. muted: for each run, whether it is left out (diverged).
    """
    shape = next(iter(report.scalars.values())).shape
    indexed = {(): runs} if isinstance(runs, Run) else {(i,): run for i, run in enumerate(runs)}
    if not isinstance(runs, Run) and len(runs) != shape[0]:
        raise ValueError(f"a report on {shape[0]} seeds for {len(runs)} runs")
    names = {k: f"{prefix}{''.join(str(i + 1) for i in k)}/" for k in np.ndindex(shape[not isinstance(runs, Run) :])}

    def on_host(x):
        return x.detach().cpu().numpy()

    scalars = {key: on_host(value) for key, value in report.scalars.items()}
    histograms = {key: tuple(map(on_host, pair)) for key, pair in report.histograms.items()}
    curves = {key: (on_host(x), on_host(y), extra) for key, (x, y, extra) in report.curves.items()}
    extras = {key: {name: on_host(value) for name, value in extra.items()} for key, (_, _, extra) in curves.items()}
    for i, run in indexed.items():
        if len(muted) and muted[i[0]]:
            continue
        run.log(step, {name + key: value[(*i, *k)] for k, name in names.items() for key, value in scalars.items()})
        for k, name in names.items():
            for key, (counts, edges) in histograms.items():
                if np.isfinite(edges[(*i, *k)]).all():
                    run.log_histogram(step, name + key, counts[(*i, *k)], edges[(*i, *k)])
            for key, (x, y, _) in curves.items():
                extra = {name: value[(*i, *k)].item() for name, value in extras[key].items()}
                run.log_curve(step, name + key, x if x.ndim == 1 else x[(*i, *k)], y[(*i, *k)], **extra)


def draw_function_approximation(folders: Sequence[Path], out: Path) -> None:
    """figures.function_approximation: draws and prints the comparison of function_approximation.py.

    A failure is one line on stderr: the runs are there, and `figures.py function_approximation` draws them later.
    """
    try:
        import figures

        figures.function_approximation(folders, out)
    except Exception as error:
        remedy = "`python figures.py function_approximation` draws them"
        warn_once("plots", f"no figures in {out} ({reason(error)}); {remedy}")


def log_ntk(runs: Run | Sequence[Run], step: int, prefix: str, ranks: dict[str, torch.Tensor]) -> None:
    """Log what metrics.ntk_rank found as `<prefix>/ntk_<name>`; batch axes as in log_report."""
    log_report(runs, step, prefix, metrics.NetworkReport({f"ntk_{name}": value for name, value in ranks.items()}))


def log_losses(runs: Sequence[Run], step: int, info: dict[str, torch.Tensor], muted, sps: float, updates: int) -> None:
    """Log `losses/<key>` of info (key -> (runs,)), unless the run is in `muted`, and the speed: environment steps and,
    with `updates` for each of these, updates per second."""
    values = {f"losses/{key}": value.tolist() for key, value in info.items()}
    for i, run in enumerate(runs):
        row = {} if muted[i] else {key: value[i] for key, value in values.items()}
        run.log(step, row | {"perf/sps": sps, "perf/updates_per_second": sps * updates})


def finish(runs: Sequence[Run], diverged: Sequence[int], keep_replay: bool, **extra) -> None:
    """End the runs of a batch; diverged: for each the step at which it did, or 0. extra: keys of meta.json.

    meta.json says first that the replay is to go: whoever opens the run after a kill in between deletes it.
    """
    extra = extra | {"replay": "kept" if keep_replay else "deleted"}
    for run, at in zip(runs, diverged):
        if at:
            run.finish("diverged", step=at, **extra)
        else:
            run.finish(**extra)
        if not keep_replay:
            run.drop_transitions()


def finish_diverged(run: Run, step: int, cause: str, keep_replay: bool = False) -> None:
    """End a run that trains alone and whose loss `cause` is not finite; one line on stderr says so."""
    divergence = Divergence([run.config["seed"]], torch.device("cpu"))
    divergence.update(step, {cause: torch.tensor([torch.nan])})
    finish([run], divergence.report(), keep_replay)


def draw(runs: Sequence[Run], step: int) -> None:
    """`Run.draw` of every run. To be called when all of them are saved: it takes seconds for each."""
    for run in runs:
        run.draw(step)


def print_network(network: torch.nn.Module) -> None:
    """Print the modules of a network and how many trainable parameters each of its layers has."""
    print(network)
    for name, layer in [*network.named_children(), ("total", network)]:
        print(f"{name:8}{sum(p.numel() for p in layer.parameters() if p.requires_grad):>12,}", flush=True)


def carry_forward(runs: Sequence[Run], rows: Sequence[dict], steps: Sequence[int]) -> None:
    """Logs each run's row again at each of these steps, when all have diverged."""
    for step in steps:
        for run, row in zip(runs, rows):
            run.log(step, row)


def multiples(step: int, end: int, *periods: int) -> list[int]:
    """Every multiple of one of the periods in (step, end], in order.
    >>> multiples(10, 40, 15, 20)
    [15, 20, 30, 40]
    """
    return sorted({each for p in periods for each in range((step // p + 1) * p, end + 1, p)})


class Progress:
    """A tqdm bar on a terminal; elsewhere no bar, one flushed line per `note`. initial, total: environment steps."""

    def __init__(self, initial: int, total: int, desc: str = ""):
        self.postfix = {}  # what is shown behind the bar
        self._clock = time.monotonic()
        self._clock_step = initial
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(  # ascii: not every terminal has blocks
            initial=initial, total=total, desc=desc, disable=not on_terminal, dynamic_ncols=True, ascii=True
        )

    def update(self, step: int, **postfix) -> None:
        """Move the bar to `step` and show `postfix`, and what was shown before, behind it."""
        self.postfix |= postfix
        if not self._bar.disable:
            self._bar.set_postfix(self.postfix, refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def speed(self, step: int) -> float:
        """Environment steps per second since the last call (or the start); shows it behind the bar."""
        now = time.monotonic()
        speed = (step - self._clock_step) / (now - self._clock)
        self._clock = now
        self._clock_step = step
        self.postfix["sps"] = f"{speed:.0f}"
        return speed

    def skip(self, seconds: float) -> None:
        """Leave this time out of the next speed: evaluations, metrics."""
        self._clock += seconds

    def note_means(self, step: int, rows: Sequence[dict[str, float]], keys: Sequence[str]) -> None:
        """Print the means over the runs' rows of those keys that the first row has, and show them behind the bar."""
        means = {key: np.mean([row.get(key, np.nan) for row in rows]) for key in keys if key in rows[0]}
        self.postfix |= {key: f"{mean:.4g}" for key, mean in means.items()}
        self.note(f"step {step}: " + ", ".join(f"{key} {text}" for key, text in sorted(self.postfix.items())))

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
