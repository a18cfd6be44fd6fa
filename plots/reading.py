"""reading."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runlog


def read_json(path: Path) -> dict:
    """A JSON file that holds an object. Raises UserError: missing, not readable, or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise runlog.UserError(
            f"{path}: {error.strerror or error}; give a run folder that has it"
        ) from None
    except (ValueError, RecursionError):
        raise runlog.UserError(f"{path}: is no JSON; restore it, or train the run again") from None
    if not isinstance(content, dict):
        raise runlog.UserError(f"{path}: is no JSON object; restore it, or train the run again")
    return content


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run. A start that failed leaves one with only `.lock` (or config.json, at most)."""
    return any((folder / name).exists() for name in ("meta.json", "scalars.csv"))


def run_folders_in(root: Path, pattern: str) -> list[Path]:
    """The run folders in a folder whose names match a pattern, sorted; what failed starts left behind is skipped."""
    return [path for path in sorted(Path(root).glob(pattern)) if path.is_dir() and is_run(path)]


def read_config(folder: Path) -> dict:
    """config.json of a run folder, with its `status`. Raises UserError if it is none, or a setting that every figure
    uses is of the wrong kind."""
    if not (folder / "config.json").exists() or not (folder / "meta.json").exists():
        raise runlog.UserError(
            f"{folder}: is no run folder; give one that holds config.json and meta.json"
        )
    status = read_json(folder / "meta.json").get("status", "?")
    config = {
        "activation": "?",
        "env_id": "?",
        "seed": 0,
        **read_json(folder / "config.json"),
        "status": status,
    }
    if isinstance(config["env_id"], list) and all(
        isinstance(part, str) for part in config["env_id"]
    ):
        config["env_id"] = runlog.env_name(config["env_id"])  # a sequence of tasks is a list there
    kinds = {"activation": str, "env_id": str, "seed": int, "status": str, "rational": dict}
    kinds |= {"learning_rate": (int, float), "utd": (int, float)}
    for key, kind in kinds.items():
        value = config.get(key)
        if key in config and (not isinstance(value, kind) or isinstance(value, bool)):
            raise runlog.UserError(
                f"{folder}: its {key} is {value!r}; give a run folder as the scripts write it"
            )
    return config


@dataclass
class Loaded:
    """A run folder, read."""

    folder: Path
    config: dict  # with "status"
    scalars: dict[str, np.ndarray]
    meta: dict = dataclasses.field(default_factory=dict)

    @property
    def has_diverged(self) -> bool:
        return self.config["status"] == "diverged"

    @property
    def has_ended(self) -> bool:
        return self.config["status"] in runlog.ENDED

    def setting(self, key: str, kind=(int, float)):
        """A setting that a figure cannot do without. Raises UserError: missing, or of another kind."""
        value = self.config.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            told = f"its {key} is {value!r}" if key in self.config else f"has no {key}"
            raise runlog.UserError(
                f"{self.folder / 'config.json'}: {told}; restore the file, or move the run away"
            )
        return value

    def provenance(self) -> dict[str, object]:
        """Seconds, memory, commit, machine and versions of meta.json; "" for what is not there."""
        parts = {key: self.meta.get(key) for key in ("git", "hardware", "versions")}
        parts = {key: part if isinstance(part, dict) else {} for key, part in parts.items()}
        own = {name: self.meta.get(name, "") for name in ("elapsed_s", "peak_memory_mb")}
        own |= {"git": parts["git"].get("commit", ""), "dirty": parts["git"].get("dirty", "")}
        own |= {"cpu": parts["hardware"].get("cpu", "")}
        return own | {name: parts["versions"].get(name, "") for name in ("torch", "gymnasium")}

    def series(self, key: str) -> np.ndarray:
        """(rows, 3) of step, value, wall time; rows with a finite value."""
        rows = self.scalars.get(key, np.zeros((0, 3)))
        return rows[np.isfinite(rows[:, 1])]

    def last(self, pattern: str, column: int = 1, until: float = np.inf) -> float:
        """Mean over the keys that match of a column of their last row with a finite value, of those up to a step; NaN
        without any."""
        values = []
        for key in self.scalars:
            if re.fullmatch(pattern, key):
                rows = self.series(key)
                rows = rows[rows[:, 0] <= until]
                values += rows[-1:, column].tolist()
        return float(np.mean(values)) if values else np.nan


def read_run(folder: str | Path, keys: str = "[^,]+") -> Loaded:
    """A run, of which scalars.csv is read for keys that match a pattern.

    Raises UserError, so that nothing is drawn from a part of a run, or from one twice: the folder is a copy under
    another name; a file is missing, cut short or broken; an ended run's rows do not reach its end.
    """
    folder = Path(folder)
    config = read_config(folder)
    meta = read_json(folder / "meta.json")
    _check_name(folder, meta)
    run = Loaded(folder, config, {}, meta)
    text = _text(folder / "scalars.csv")
    if run.has_ended:
        _check_end(run, text)
    run.scalars = _scalars(folder / "scalars.csv", text, keys)
    return run


def _check_name(folder: Path, meta: dict) -> None:
    """Raises UserError if meta.json is of a run of another name or hash: the folder is a copy, or was renamed. The
    hash is not computed again: older runs have been hashed over other keys."""
    there = folder.resolve().name
    digest = re.search(r"__([0-9a-f]{10})$", there)
    same_hash = digest is None or meta.get("hash", digest[1]) == digest[1]
    if meta.get("name", there) != there or not same_hash:
        told = f"holds the run {meta.get('name', meta.get('hash'))} by its meta.json: a copy, or renamed"
        raise runlog.UserError(f"{folder}: {told}; give it that name again, or move it away")


def _check_end(run: Loaded, text: str) -> None:
    """Raises UserError unless the rows of scalars.csv reach the end of this ended run, as far as it is known: by
    meta.json's last_step, the run's length and the last steps of its other files."""
    path = run.folder / "scalars.csv"
    remedy = (
        f"the run is {run.config['status']}; restore the file, or train the run again with --fresh"
    )
    if not text:
        raise runlog.UserError(
            f"{path}: is {'empty' if path.exists() else 'missing'}, but {remedy}"
        )
    if not text.endswith("\n"):
        raise runlog.UserError(f"{path}: ends within a row, but {remedy}")
    start = text.rfind("\n", 0, len(text) - 1) + 1
    found = re.match("[0-9]+", text[start:])
    last = int(found[0]) if found else -1
    due = _due_step(run)
    if found:  # curves and histograms come with rows of their step
        due = max(
            due, *(_last_step(run.folder / name) for name in ("curves.jsonl", "histograms.jsonl"))
        )
    if last < due:
        told = f"ends at step {last:,}" if found else "has no rows"
        raise runlog.UserError(f"{path}: {told}, but should reach step {due:,}; {remedy}")
    num_tasks = run.config.get("num_tasks")
    if (
        run.config["status"] == "finished"
        and isinstance(num_tasks, int)
        and ",charts/task," in text
    ):
        done = re.findall(r"^[0-9]+,charts/task,([0-9]+)", text, re.M)
        if done and int(done[-1]) < num_tasks:
            raise runlog.UserError(f"{path}: ends after task {done[-1]} of {num_tasks}; {remedy}")


def _due_step(run: Loaded) -> int:
    """The step that the last row of an ended run must at least have; -1: nothing is known."""
    due = -1
    if isinstance(run.meta.get("last_step"), int):
        due = run.meta["last_step"]
    if run.config["status"] == "finished":
        for key in ("total_timesteps", "total_steps"):
            if isinstance(run.config.get(key), int):
                due = max(due, run.config[key] - _interval(run.config))
    return due


def _interval(config: dict) -> int:
    """Steps between two rows of a run at most: the last row may be so many before its end."""
    numbers = {}
    for key in ("log_frequency", "num_envs", "num_steps"):
        value = config.get(key, 1 if key != "log_frequency" else 0)
        numbers[key] = value if isinstance(value, int) else 0
    rollout = numbers["num_envs"] * numbers["num_steps"]
    return numbers["log_frequency"] + rollout - 1


def _last_step(path: Path) -> int:
    """Step of the last whole line of a .jsonl file; -1 without any."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            steps = re.findall(rb'^\{"step": ([0-9]+), .*\n', file.read(), re.M)
    except OSError:
        return -1
    return int(steps[-1]) if steps else -1


def read_scalars(folder: Path, keys: str = "[^,]+") -> dict[str, np.ndarray]:
    """key -> array (rows, 3) of step, value, wall time in seconds, of the keys that match; {} before the first row.
    Half a last line of a run under way is left out. Raises UserError: broken lines."""
    path = folder / "scalars.csv"
    return _scalars(path, _text(path), keys)


def _scalars(path: Path, text: str, keys: str) -> dict[str, np.ndarray]:
    _check_lines(path, text)
    rows = defaultdict(list)
    keys = re.sub(r"\((?!\?)", "(?:", keys)
    for step, key, *row in re.findall(rf"^([0-9]+),({keys}),([^,\n]+),([^,\n]+)\n", text, re.M):
        rows[key].append((step, *row))
    found = {}
    for key, values in rows.items():
        try:
            found[key] = np.array(values).astype(float)
        except ValueError as error:
            raise runlog.UserError(
                f"{path}: {key}: {error}; restore it, or train the run again"
            ) from None
        if not np.isfinite(found[key][:, 0]).all() or (np.diff(found[key][:, 0]) < 0).any():
            raise runlog.UserError(
                f"{path}: the steps of {key} go back; restore it, or train the run again"
            )
    return found


def _check_lines(path: Path, text: str) -> None:
    """Raises UserError unless every whole line of scalars.csv has a step and four columns. Counting is fast."""
    end = text.rfind("\n") + 1
    if not end:
        return
    num_lines = text.count("\n")
    num_steps = len(re.findall(r"^[0-9]+,", text[:end], re.M))
    if (
        num_steps == num_lines - 1
        and text.count(",", 0, end) == 3 * num_lines
        and text.startswith("step,")
    ):
        return
    for number, line in enumerate(text[:end].splitlines(), start=1):
        pattern = "step,key,value,wall_time" if number == 1 else "[0-9]+,[^,]+,[^,]+,[^,]+"
        if not re.fullmatch(pattern, line):
            told = f"line {number} is no row of step, key, value, wall_time"
            raise runlog.UserError(f"{path}: {told}; restore it, or train the run again")


def _text(path: Path) -> str:
    """Content of a text file; "" if there is none. Raises UserError: not readable, no text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise runlog.UserError(
            f"{path}: {error.strerror or error}; restore it, or train the run again"
        ) from None
    except UnicodeDecodeError:
        raise runlog.UserError(f"{path}: is no text; restore it, or train the run again") from None


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines of a .jsonl file, without half a last line of a run under way; none if there is no file. Raises
    UserError if one is broken."""
    number = 0
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    return
                if not line.startswith('{"step": ') or not line.endswith("}\n"):
                    raise _broken(path, number)
                yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise runlog.UserError(
            f"{path}: {error.strerror or error}; restore it, or train the run again"
        ) from None
    except UnicodeDecodeError:
        raise _broken(path, number + 1) from None


def _broken(path: Path, number: int) -> runlog.UserError:
    return runlog.UserError(
        f"{path}: line {number} is broken; restore the file, or train the run again"
    )


def _row(path: Path, number: int, line: str) -> dict:
    """A line of a .jsonl file: a curve, its x written out if it was stored by its ends, or a histogram. Raises
    UserError: broken."""
    try:
        row = json.loads(line)
        if "counts" in row:
            counts = np.array(row["counts"], dtype=float)
            edges = np.array(row["edges"], dtype=float)
            fits = counts.ndim == 1 and edges.shape == (len(counts) + 1,)
        else:
            x = np.array(row["x"], dtype=float)
            y = np.array(row["y"], dtype=float)
            if x.shape == (2,):
                row["x"] = x = np.linspace(*x, len(y))
            fits = x.ndim == 1 and x.shape == y.shape and len(x) > 0
    except (ValueError, TypeError, KeyError, RecursionError):
        fits = False
    if not fits:
        raise _broken(path, number)
    return row


def read_rows(
    folder: Path, file: str, name: str, every: bool = False, most: float = np.inf
) -> dict[tuple[str, str], dict[str, list[dict]]]:
    """(layer, network) -> key's last part -> rows of a .jsonl file, first and newest (or every one), in order.

    Takes the keys `network/<network>/<layer>/<name>...`, e.g. name "kde". A curve's x is written out if it was stored
    by its ends. most: of a layer's branches, or outputs, the rows of only the first so many are read; [] for the
    others. Raises UserError: a broken line.
    """
    path = folder / file
    lines = defaultdict(list)
    pattern = re.compile(r'\{"step": \d+, "key": "network/([^"]+)/([^"/]+)/(' + name + r'[^"/]*)"')
    for number, line in enumerate(_whole_lines(path), start=1):
        if match := pattern.match(line):
            kept = lines[match.groups()]
            branch = re.match(r"(?:branch|activation)(\d+)", match[3])
            if branch is None or int(branch[1]) < most:
                kept[len(kept) if every else 1 :] = [(number, line)]
    found = defaultdict(dict)
    for (network, layer, key), kept in sorted(lines.items()):
        found[layer, network][key] = [_row(path, number, line) for number, line in kept]
    return found


def _depth(layer: str) -> tuple:
    """Sorts conv1, conv2, ..., fc1, fc2, ..., fc10."""
    return layer.startswith("fc"), len(layer), layer
