"""Reading run folders: their settings, their scalars, and whether they are complete.

Every figure and table gets its runs through here. If anything is missing, cut short, copied or
broken, runlog.UserError reports it in one line: no figure uses part of a run, or one run twice.
"""

import dataclasses
import glob
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runlog
from runlog import identity as identities
from runlog import meta

RESTORE = "restore it, or train the run again"
NUMBER = (int, float)
Places = str | Path | Sequence[str | Path]  # of run folders
PLACES_HELP = "give run folders, folders that contain some, or a pattern such as 'runs/*relu*'"


def read_json(path: Path) -> dict:
    """A JSON file that holds an object. Raises UserError: missing, unreadable, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise runlog.UserError(f"{path}: {reason}; give a run folder that has it") from None
    except (ValueError, RecursionError):
        raise runlog.UserError(f"{path}: is not JSON; {RESTORE}") from None
    if not isinstance(content, dict):
        raise runlog.UserError(f"{path}: is not a JSON object; {RESTORE}")
    return content


def read_text(path: Path) -> str:
    """Content of a text file; "" if there is none. Raises UserError: unreadable, or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror or error}; {RESTORE}") from None
    except UnicodeDecodeError:
        raise runlog.UserError(f"{path}: is not text; {RESTORE}") from None


# ---- run folders and their settings --------------------------------------------------------------


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run. A failed start leaves only `.lock`, or at most config.json."""
    return (folder / "meta.json").exists() or (folder / "scalars.csv").exists()


def find_runs(places: Places, flag: str = "--runs") -> list[Path]:
    """The run folders at these places, each once. A place is the folder of a run, a folder with
    runs at any depth below it, or a pattern such as `runs/*relu*` (also `**`).

    Failed starts below a place are skipped; a place without a run is left out, with a printed line,
    if others have some. Raises UserError: a place does not exist, or there is no run at all.
    """
    named = as_places(places)
    if not named:
        raise runlog.UserError("no run folders: give at least one, or a folder that contains some")
    start = f"{flag} " if flag else ""
    found = {}  # resolved path: path as given
    without = []
    for place in named:
        members = []
        for path in matches(place, start):
            members += runs_below(path) if path.is_dir() else []
        if not members:
            without.append(place)
        for path in members:
            found.setdefault(path.resolve(), path)
    if not found:
        hint = "looked for folders with a meta.json or scalars.csv in it, and below at any depth"
        fault = f"no run folders there ({hint})"
        raise runlog.UserError(f"{start}{places_text(places)}: {fault}; {PLACES_HELP}")
    if without:
        print(f"left out: no run in {places_text(without)}")
    return list(found.values())


def as_places(places: Places) -> list[Path]:
    if isinstance(places, str | Path):
        return [Path(places)]
    return [Path(place) for place in places]


def places_text(places: Places) -> str:
    """Places as messages name them."""
    return " ".join(str(place) for place in as_places(places))


def matches(place: Path, start: str) -> list[Path]:
    """The place itself if it exists, else what it matches as a pattern. Raises UserError: nothing.
    start: the beginning of the message."""
    if place.exists():
        return [place]
    is_pattern = glob.has_magic(str(place))
    if found := sorted(glob.glob(str(place), recursive=True)) if is_pattern else []:
        return [Path(path) for path in found]
    fault = "the pattern matches nothing" if is_pattern else "does not exist"
    raise runlog.UserError(f"{start}{place}: {fault}; {PLACES_HELP}")


def runs_below(folder: Path, above: frozenset[Path] = frozenset()) -> list[Path]:
    """The folder itself if it is a run's, else the run folders below it, sorted. Hidden folders and
    links back to a folder in `above` are skipped."""
    if is_run(folder):
        return [folder]
    above |= {folder.resolve()}
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
        raise runlog.UserError(f"{folder}: {fault}; {PLACES_HELP}") from None
    found = []
    for child in children:
        if child.name.startswith(".") or not child.is_dir() or child.resolve() in above:
            continue
        found += runs_below(child, above)
    return found


def script_of(folder: Path) -> str:
    """The script that made a run, from its folder's name: sac_continuous; "" if it has none."""
    parts = folder.resolve().name.split("__")
    return parts[1] if len(parts) > 2 else ""


def step_unit(config: dict) -> str:
    """What a run's steps count: updates for scripts without an environment."""
    return "updates" if {"total_steps", "num_tasks"} & {*config} else "environment steps"


def runs_of_script(places: Places, script: str) -> list[Path]:
    """The run folders of one script. Raises UserError: none."""
    folders = find_runs(places)
    found = [path for path in folders if script_of(path) == script]
    if not found:
        others = sorted({script_of(path) or "unknown" for path in folders})
        origin = f"all {len(folders)} are of {', '.join(others)}"
        remedy = "train some first, or give their folder"
        start = f"--runs {places_text(places)}: no run of {script}.py"
        raise runlog.UserError(f"{start} ({origin}); {remedy}")
    return found


def is_of_kind(value: object, kind: type | tuple[type, ...]) -> bool:
    """isinstance, except that a bool is not a number."""
    return isinstance(value, kind) and not isinstance(value, bool)


def read_config(folder: Path) -> dict:
    """config.json of a run folder, with its `status` and `not_identity`, the flags that change no
    result. Raises UserError if there is none, or if a setting that every figure uses has the wrong
    type."""
    needed = ("config.json", "meta.json")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing and (folder / "scalars.csv").exists():  # found below what the user has named
        fault = f"has a scalars.csv but no {' and no '.join(missing)}"
        remedy = f"move it out of {folder.parent}, or restore what is missing"
        raise runlog.UserError(f"{folder}: {fault}; {remedy}")
    if missing:
        remedy = "give one that contains config.json and meta.json"
        raise runlog.UserError(f"{folder}: is not a run folder; {remedy}")
    meta = read_json(folder / "meta.json")
    config = {"activation": "?", "env_id": "?", "seed": 0}
    config |= read_json(folder / "config.json")
    config["status"] = meta.get("status", "?")
    config["not_identity"] = meta.get("not_identity", identities.BEFORE_META_SAID_SO)

    env_id = config["env_id"]
    if isinstance(env_id, list) and all(isinstance(part, str) for part in env_id):
        config["env_id"] = identities.env_name(env_id)  # a sequence of tasks is a list there

    kinds = {"activation": str, "env_id": str, "seed": int, "status": str, "rational": dict}
    kinds |= {"learning_rate": NUMBER, "utd": NUMBER}
    for key, kind in kinds.items():
        if key in config and not is_of_kind(config[key], kind):
            fault = f"its {key} is {config[key]!r}"
            raise runlog.UserError(f"{folder}: {fault}; give a run folder as the scripts write it")
    return config


def identity(config: dict) -> dict:
    """The settings on which a run's results depend, its seed among them."""
    not_counted = config.get("not_identity", identities.BEFORE_META_SAID_SO)
    return identities.identity(config, {"status", "not_identity", *not_counted})


@dataclass
class Loaded:
    """A run folder that has been read."""

    folder: Path
    config: dict  # with "status"
    scalars: dict[str, np.ndarray]  # key: (rows, 3) of step, value, wall time in seconds
    meta: dict = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def status(self) -> str:
        return self.config["status"]

    @property
    def has_diverged(self) -> bool:
        return self.status == "diverged"

    @property
    def has_ended(self) -> bool:
        return self.status in meta.ENDED

    @property
    def last_step(self) -> float:
        """The last step of any of its scalars; 0 without any."""
        return max((rows[-1, 0] for rows in self.scalars.values()), default=0.0)

    def setting(self, key: str, kind: type | tuple[type, ...] = NUMBER):
        """A setting that a figure requires. Raises UserError: missing, or of another type."""
        value = self.config.get(key)
        if not is_of_kind(value, kind):
            fault = f"its {key} is {value!r}" if key in self.config else f"has no {key}"
            remedy = "restore the file, or move the run away"
            raise runlog.UserError(f"{self.folder / 'config.json'}: {fault}; {remedy}")
        return value

    def provenance(self) -> dict[str, object]:
        """Seconds, memory, commit, machine and versions of meta.json; "" for what is not there, and
        all values, joined by " + ", of a run whose sessions differ."""
        gpu = self._of_sessions("hardware", "gpu")
        if self.config.get("device") == "cpu":  # the machine had one that the run did not use
            gpu = ""
        return {
            "elapsed_s": self.meta.get("elapsed_s", ""),
            "peak_memory_mb": self.meta.get("peak_memory_mb", ""),
            "git": self._of_sessions("git", "commit"),
            "dirty": self._of_sessions("git", "dirty"),
            "cpu": self._of_sessions("hardware", "cpu"),
            "gpu": gpu,
            "torch": self._of_sessions("versions", "torch"),
            "gymnasium": self._of_sessions("versions", "gymnasium"),
        }

    def _of_sessions(self, section: str, key: str) -> str:
        """The different values of `key` in this section of all sessions of meta.json, in order."""
        sessions = self.meta.get("sessions")
        records = [*sessions, self.meta] if isinstance(sessions, list) else [self.meta]
        found = []
        for record in records:
            values = record.get(section) if isinstance(record, dict) else None
            value = values.get(key) if isinstance(values, dict) else None
            if value is not None and str(value) not in found:
                found.append(str(value))
        return " + ".join(found)

    def origin(self) -> dict[str, object]:
        """Seconds, memory, commit, machine and folder: the columns of a table of runs."""
        origin = self.provenance()
        del origin["gymnasium"]
        return origin | {"folder": self.folder.name}

    def keys(self, pattern: str) -> list[str]:
        """The keys of its scalars that match a pattern, as a whole."""
        return [key for key in self.scalars if re.fullmatch(pattern, key)]

    def series(self, key: str) -> np.ndarray:
        """(rows, 3) of step, value, wall time: rows with a finite value, and of a diverged run only
        those up to the step at which it diverged: later ones belong to no network."""
        rows = self.scalars.get(key, np.zeros((0, 3)))
        end = self.meta.get("step") if self.has_diverged else None
        if is_of_kind(end, int):
            rows = rows[rows[:, 0] <= end]
        return rows[np.isfinite(rows[:, 1])]

    def last(self, pattern: str, column: int = 1, until: float = np.inf) -> float:
        """Mean over the matching keys of a column of their last row with a finite value, up to a
        step; NaN if there is none."""
        values = []
        for key in self.keys(pattern):
            rows = self.series(key)
            rows = rows[rows[:, 0] <= until]
            if len(rows):
                values.append(rows[-1, column])
        return float(np.mean(values)) if values else np.nan


def read_run(folder: str | Path, keys: str = "[^,]+") -> Loaded:
    """Read a run, and the rows of scalars.csv whose keys match a pattern.

    Raises UserError: the folder is a copy under another name; a file is missing, cut short or
    broken; the rows of an ended run do not reach its end.
    """
    folder = Path(folder)
    config = read_config(folder)
    meta = read_json(folder / "meta.json")
    check_name(folder, meta)
    run = Loaded(folder, config, {}, meta)
    text = read_text(folder / "scalars.csv")
    if run.has_ended:
        check_end(run, text)
    run.scalars = parse_scalars(folder / "scalars.csv", text, keys)
    return run


def check_once(runs: Sequence[Loaded]) -> None:
    """Raises UserError if two of these are the same run: a seed of a configuration counts once."""
    seen = {}
    for run in runs:
        key = json.dumps([script_of(run.folder), identity(run.config)], sort_keys=True)
        if key in seen:
            fault = f"{seen[key]} and {run.folder} are the same run, seed {run.seed}"
            raise runlog.UserError(f"{fault}; move one away, or name it once")
        seen[key] = run.folder


# ---- whether a run is complete -------------------------------------------------------------------


def check_name(folder: Path, meta: dict) -> None:
    """Raises UserError if meta.json belongs to a run of another name or hash: the folder is a copy,
    or was renamed. The hash is not computed again: older runs were hashed over other keys."""
    name = folder.resolve().name
    digest = re.search(r"__([0-9a-f]{10})$", name)
    is_same_hash = digest is None or meta.get("hash", digest[1]) == digest[1]
    if meta.get("name", name) == name and is_same_hash:
        return
    other = meta.get("name", meta.get("hash"))
    fault = f"holds the run {other} according to its meta.json: a copy, or renamed"
    raise runlog.UserError(f"{folder}: {fault}; give it that name again, or move it away")


def check_end(run: Loaded, text: str) -> None:
    """Raises UserError unless the rows of scalars.csv reach the end of this ended run, as far as
    that is known from meta.json's last_step, the run's length and the last steps of its other
    files."""
    path = run.folder / "scalars.csv"
    remedy = f"the run is {run.status}; restore the file, or train the run again with --fresh"
    if not text:
        problem = "empty" if path.exists() else "missing"
        raise runlog.UserError(f"{path}: is {problem}, but {remedy}")
    if not text.endswith("\n"):
        raise runlog.UserError(f"{path}: ends within a row, but {remedy}")

    last_line = text[text.rfind("\n", 0, len(text) - 1) + 1 :]
    found = re.match("[0-9]+", last_line)
    last = int(found[0]) if found else -1
    due = due_step(run)
    if found:  # curves and histograms are logged at steps that have rows
        curves = last_step_of(run.folder / "curves.jsonl")
        histograms = last_step_of(run.folder / "histograms.jsonl")
        due = max(due, curves, histograms)
    if last < due:
        fault = f"ends at step {last:,}" if found else "has no rows"
        raise runlog.UserError(f"{path}: {fault}, but should reach step {due:,}; {remedy}")

    num_tasks = run.config.get("num_tasks")
    if run.status == "finished" and isinstance(num_tasks, int):
        done = re.findall(r"^[0-9]+,charts/task,([0-9]+)", text, re.M)
        if done and int(done[-1]) < num_tasks:
            raise runlog.UserError(f"{path}: ends after task {done[-1]} of {num_tasks}; {remedy}")


def due_step(run: Loaded) -> int:
    """The step that the last row of an ended run must at least reach; -1: nothing is known."""
    due = -1
    if isinstance(run.meta.get("last_step"), int):
        due = run.meta["last_step"]
    length = length_of(run.config)
    if run.status == "finished" and length is not None:
        due = max(due, length - row_interval(run.config))
    return due


def length_of(config: dict) -> int | None:
    """Steps of a run that has finished; None: not known."""
    for key in ("total_timesteps", "total_steps"):
        if isinstance(config.get(key), int):
            return config[key]
    return None


def row_interval(config: dict) -> int:
    """Most steps between two rows of a run: its last row may be that far before its end."""
    numbers = {"log_frequency": 0, "num_envs": 1, "num_steps": 1}
    for key in numbers:
        if key in config:
            numbers[key] = config[key] if isinstance(config[key], int) else 0
    rollout = numbers["num_envs"] * numbers["num_steps"]
    return numbers["log_frequency"] + rollout - 1


def last_step_of(path: Path) -> int:
    """Step of the last complete line of a .jsonl file; -1 without any."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            steps = re.findall(rb'^\{"step": ([0-9]+), .*\n', file.read(), re.M)
    except OSError:
        return -1
    return int(steps[-1]) if steps else -1


# ---- scalars.csv ---------------------------------------------------------------------------------


def read_scalars(folder: Path, keys: str = "[^,]+") -> dict[str, np.ndarray]:
    """key -> array (rows, 3) of step, value, wall time in seconds, for the matching keys; {} before
    the first row. A half-written last line of a run in progress is left out. Raises UserError:
    broken lines."""
    path = folder / "scalars.csv"
    return parse_scalars(path, read_text(path), keys)


def parse_scalars(path: Path, text: str, keys: str) -> dict[str, np.ndarray]:
    """read_scalars of a file's text."""
    check_lines(path, text)
    keys = re.sub(r"\((?!\?)", "(?:", keys)  # its groups must not capture
    rows = defaultdict(list)
    for step, key, *row in re.findall(rf"^([0-9]+),({keys}),([^,\n]+),([^,\n]+)\n", text, re.M):
        rows[key].append((step, *row))
    scalars = {}
    for key, values in rows.items():
        try:
            scalars[key] = np.array(values).astype(float)
        except ValueError as error:
            raise runlog.UserError(f"{path}: {key}: {error}; {RESTORE}") from None
        steps = scalars[key][:, 0]
        if not np.isfinite(steps).all() or (np.diff(steps) < 0).any():
            raise runlog.UserError(f"{path}: the steps of {key} decrease; {RESTORE}")
    return scalars


def check_lines(path: Path, text: str) -> None:
    """Raises UserError unless every complete line of scalars.csv has a step and four columns."""
    end = text.rfind("\n") + 1
    if not end:
        return
    # counting is fast; the lines are checked one by one only if it finds a fault
    num_lines = text.count("\n")
    num_steps = len(re.findall(r"^[0-9]+,", text[:end], re.M))
    has_four_columns = text.count(",", 0, end) == 3 * num_lines
    if num_steps == num_lines - 1 and has_four_columns and text.startswith("step,"):
        return
    for number, line in enumerate(text[:end].splitlines(), start=1):
        pattern = "step,key,value,wall_time" if number == 1 else "[0-9]+,[^,]+,[^,]+,[^,]+"
        if not re.fullmatch(pattern, line):
            fault = f"line {number} is not a row of step, key, value, wall_time"
            raise runlog.UserError(f"{path}: {fault}; {RESTORE}")
