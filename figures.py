"""From run folders to figures: what one run's networks look like, and activations compared over their seeds.

    python figures.py run runs/dm_control-cheetah-run-v0__sac_continuous__crational__s1__0123456789
    python figures.py demo runs/*cartpole* --out runs/demo.png
    python figures.py preactivations runs/*cartpole* --out runs/preactivations.png
    python figures.py compare runs/*sweep* --by layer_norm --out runs/layer_norm.png
    python figures.py continual --runs runs --out figures
    python figures.py function_approximation --runs runs/regression* --out runs/function_approximation
    python figures.py redraw results

Colours are Okabe and Ito's, safe for the colour-blind, and one activation has one colour and line style everywhere.
"""

import csv
import dataclasses
import itertools
import json
import re
import sys
import textwrap
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import tyro
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image
from scipy import stats

import activations
import metrics
import runlog
from environments import suites

BLACK, ORANGE, SKY, GREEN, GREY = "#000000", "#E69F00", "#56B4E9", "#009E73", "#999999"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
STYLES = {  # activation: colour, line style, marker (lines must differ in grey print too)
    "relu": (BLACK, "-", "o"),
    "rational": (ORANGE, "--", "s"),
    "crational": (BLUE, "-", "D"),
    "tanh": (GREEN, "--", "^"),
    "tanh_hr": (PURPLE, "-", "v"),
    "sigmoid": (SKY, ":", "P"),
    "relu_hr": (RED, "-.", "X"),
    "crelu": (GREY, "-", "<"),
}
LIGHT_TO_DARK = ("Blues", "Oranges", "Greens", "Purples", "Greys")  # of a panel's curves: branches, or crelu's halves
RC = {"font.size": 9, "axes.titlesize": 9, "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.5}
RC |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "savefig.dpi": 150}
MOST_STEPS = 50  # of one run's functions over training that are drawn
MOST_BRANCHES = 4  # of a layer whose densities are drawn
SHADES, LAYER_MARKERS = {"actor": 1.0, "qf1": 0.75, "qf2": 0.5}, {"fc1": "o", "fc2": "s"}  # in panel (c) of the demo
FIRST, BAND = {"color": BLACK, "linestyle": "--", "linewidth": 1}, {"color": "0.5", "alpha": 0.15}
TRUTH = {"color": "0.8", "linewidth": 6, "solid_capstyle": "butt"}
FILLED, LINE = {"fill": True, "color": SKY, "alpha": 0.8}, {"color": BLACK, "linewidth": 1.1}


def style(activation: str) -> dict:
    """colour, linestyle and marker of an activation expression; the same in every figure and process."""
    name = canonical(activation)
    k = zlib.crc32(name.encode())
    other = ((RED, SKY, PURPLE, GREEN)[k % 4], ("--", "-.", ":")[k % 3], "*>phd"[k % 5])
    return dict(zip(("color", "linestyle", "marker"), STYLES.get(name, other)))


# ---- reading run folders: every figure and table gets its runs through here ----------------------------------------


def read_json(path: Path) -> dict:
    """A JSON file that holds an object. Raises UserError: missing, not readable, or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror or error}; give a run folder that has it") from None
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
        raise runlog.UserError(f"{folder}: is no run folder; give one that holds config.json and meta.json")
    status = read_json(folder / "meta.json").get("status", "?")
    config = {"activation": "?", "env_id": "?", "seed": 0, **read_json(folder / "config.json"), "status": status}
    if isinstance(config["env_id"], list) and all(isinstance(part, str) for part in config["env_id"]):
        config["env_id"] = runlog.env_name(config["env_id"])  # a sequence of tasks is a list there
    kinds = {"activation": str, "env_id": str, "seed": int, "status": str, "rational": dict}
    kinds |= {"learning_rate": (int, float), "utd": (int, float)}
    for key, kind in kinds.items():
        value = config.get(key)
        if key in config and (not isinstance(value, kind) or isinstance(value, bool)):
            raise runlog.UserError(f"{folder}: its {key} is {value!r}; give a run folder as the scripts write it")
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
            raise runlog.UserError(f"{self.folder / 'config.json'}: {told}; restore the file, or move the run away")
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
    remedy = f"the run is {run.config['status']}; restore the file, or train the run again with --fresh"
    if not text:
        raise runlog.UserError(f"{path}: is {'empty' if path.exists() else 'missing'}, but {remedy}")
    if not text.endswith("\n"):
        raise runlog.UserError(f"{path}: ends within a row, but {remedy}")
    start = text.rfind("\n", 0, len(text) - 1) + 1
    found = re.match("[0-9]+", text[start:])
    last = int(found[0]) if found else -1
    due = _due_step(run)
    if found:  # curves and histograms come with rows of their step
        due = max(due, *(_last_step(run.folder / name) for name in ("curves.jsonl", "histograms.jsonl")))
    if last < due:
        told = f"ends at step {last:,}" if found else "has no rows"
        raise runlog.UserError(f"{path}: {told}, but should reach step {due:,}; {remedy}")
    num_tasks = run.config.get("num_tasks")
    if run.config["status"] == "finished" and isinstance(num_tasks, int) and ",charts/task," in text:
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


def check_once(runs: Sequence[Loaded]) -> None:
    """Raises UserError if two of these are one run: a seed of one configuration counts once."""
    seen = {}
    for run in runs:
        kept = {key: value for key, value in run.config.items() if key not in ("status", *runlog.NOT_IDENTITY)}
        identity = json.dumps([run.folder.resolve().name.split("__")[1:2], kept], sort_keys=True)
        if identity in seen:
            told = f"{seen[identity]} and {run.folder} are one run, seed {run.config['seed']}"
            raise runlog.UserError(f"{told}; move one away, or name it once")
        seen[identity] = run.folder


def differing(configs: Sequence[dict], folders: Sequence[Path], ignored: Collection[str]) -> tuple[str, dict] | None:
    """The first key, of the union of all keys, in which configurations differ, and value (as JSON; null: not there) ->
    the first folder that has it; None if there is no such key."""
    keys = set().union(*configs) - {*ignored}
    for key in sorted(keys):
        values = {}
        for config, folder in zip(configs, folders):
            values.setdefault(json.dumps(config.get(key), sort_keys=True), folder)
        if len(values) > 1:
            return key, dict(sorted(values.items()))
    return None


def _where(values: dict[str, Path]) -> str:
    return ", ".join(f"{value} in {folder.name}" for value, folder in values.items())


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
            raise runlog.UserError(f"{path}: {key}: {error}; restore it, or train the run again") from None
        if not np.isfinite(found[key][:, 0]).all() or (np.diff(found[key][:, 0]) < 0).any():
            raise runlog.UserError(f"{path}: the steps of {key} go back; restore it, or train the run again")
    return found


def _check_lines(path: Path, text: str) -> None:
    """Raises UserError unless every whole line of scalars.csv has a step and four columns. Counting is fast."""
    end = text.rfind("\n") + 1
    if not end:
        return
    num_lines = text.count("\n")
    num_steps = len(re.findall(r"^[0-9]+,", text[:end], re.M))
    if num_steps == num_lines - 1 and text.count(",", 0, end) == 3 * num_lines and text.startswith("step,"):
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
        raise runlog.UserError(f"{path}: {error.strerror or error}; restore it, or train the run again") from None
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
        raise runlog.UserError(f"{path}: {error.strerror or error}; restore it, or train the run again") from None
    except UnicodeDecodeError:
        raise _broken(path, number + 1) from None


def _broken(path: Path, number: int) -> runlog.UserError:
    return runlog.UserError(f"{path}: line {number} is broken; restore the file, or train the run again")


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


def _panels(found: dict, size: tuple[float, float], ylabel: str, right: float = 0.0) -> tuple[Figure, dict]:
    """A figure with a row per layer and a column per network, and (layer, network) -> axes."""
    layers, networks = (sorted(set(names)) for names in zip(*found))
    layers.sort(key=_depth)
    figure = Figure((size[0] * len(networks) + right + 0.3, size[1] * len(layers) + 0.7), layout="constrained")
    axes = {}
    for i, row in enumerate(figure.subplots(len(layers), len(networks), squeeze=False)):
        for j, panel in enumerate(row):
            axes[layers[i], networks[j]] = panel
            panel.set(title=f"{networks[j]}, {layers[i]}", ylabel="" if j else ylabel)
            panel.set_xlabel("pre-activation x" if i == len(layers) - 1 else "")
    return figure, axes


def _title(figure: Figure, folder: Path, what: str, **options) -> None:
    config = read_config(folder)
    ended = " (diverged)" if config["status"] == "diverged" else ""
    names = textwrap.shorten(f"{config['env_id']}, {_shortened(config['activation'])}", 200)
    figure.suptitle(f"{what}\n{names}, seed {config['seed']}{ended}", fontsize=10, **options)


def _shortened(activation: str) -> str:
    """An activation as a title has room for it."""
    return activation if len(activation) <= 60 else f"{activation[:57]}..."


@matplotlib.rc_context(RC)
def activations_figure(folder: Path) -> Figure | None:
    """The activation functions of every layer over training: light to dark, the first one dashed. None without any."""
    found = read_rows(folder, "curves.jsonl", "activation", every=True, most=len(LIGHT_TO_DARK))
    if not found:
        return None
    number = max(map(len, found.values()))
    for key, curves in found.items():
        found[key] = {part: _spread_out(rows, MOST_STEPS) for part, rows in curves.items() if rows}
    figure, axes = _panels(found, (2.7, 2.2), "f(x)", right=0.8)
    steps = sorted({row["step"] for panel in found.values() for rows in panel.values() for row in rows})
    norm = Normalize(steps[0], steps[-1]) if len(steps) > 1 else Normalize(steps[0] - 1, steps[0])
    maps = [ListedColormap(matplotlib.colormaps[name](np.linspace(0.3, 1, 256))) for name in LIGHT_TO_DARK]
    scalars, most = read_scalars(folder), max(map(len, found.values()))
    names = re.split(r"[*+]", read_config(folder)["activation"])
    handles = [Line2D([], [], **FIRST, label=f"first (step {steps[0]:,})")] if len(steps) > 1 else []
    handles.append(Patch(**BAND, label="1 to 99 % of the newest pre-activations"))
    for i in range(most if most > 1 else 0):
        label = names[i] if i < len(names) > 1 else f"output {i + 1}"
        handles.append(Line2D([], [], color=maps[i % len(maps)](0.9), label=label))
    for (layer, network), curves in found.items():
        panel, seen = axes[layer, network], []
        for i, rows in enumerate(curves.values()):
            for row in rows:
                seen.append(np.where(np.isfinite(row["y"]), row["y"], np.nan))
                panel.plot(row["x"], seen[-1], color=maps[i % len(maps)](norm(row["step"])), linewidth=1.2)
            if len(steps) > 1:
                panel.plot(rows[0]["x"], seen[-len(rows)], **FIRST, zorder=3)
        quantiles = [scalars.get(f"network/{network}/{layer}/preact_{q}") for q in ("q01", "q99")]
        if all(q is not None and np.isfinite(q[-1, 1]) for q in quantiles):
            panel.axvspan(*(np.clip(q[-1, 1], -10, 10) for q in quantiles), **BAND, linewidth=0)
        _limit(panel, np.concatenate(seen))
        panel.set_xlim(-10, 10)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2)))  # else they are wider than one network's panels
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    if len(steps) > 1:
        mappable, options = ScalarMappable(norm, maps[-1 if most > 1 else 0]), {"format": EngFormatter(sep="")}
        bar = figure.colorbar(mappable, ax=list(axes.values()), pad=0.02, label="environment steps", **options)
        bar.outline.set_visible(False)
    what = "Activation functions over training" if len(steps) > 1 else "Activation functions"
    _title(figure, folder, what + (f", the first {most} of {number} branches" if most < number else ""))
    return figure


def _spread_out(rows: list, most: int) -> list:
    """At most so many rows, evenly spread; the first and the last are kept."""
    indices = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
    return [rows[i] for i in np.unique(indices)]


def _legend(figure: Figure, handles: list, **options) -> None:
    """Below the figure, in as many columns as its width allows."""
    widest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(len(handles), 5, int(figure.bbox.width / 72 / (0.072 * widest + 0.75))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.5, **options)


def _caption(figure: Figure, *lines: str, fontsize: float = 9, **options) -> None:
    """The figure's title: lines, broken where they are wider than it."""
    width = int(13 * figure.get_figwidth())
    told = [part for line in "\n".join(lines).split("\n") for part in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(told), fontsize=fontsize, **options)


def _tell(panel, text: str, x: float = 0.5, y: float = 0.5, **options) -> None:
    options = {"ha": "center", "va": "center", "color": RED, **options}
    panel.text(x, y, text, transform=panel.transAxes, **options)


def _limit(panel, values: np.ndarray) -> None:
    """y from the 1 % to the 99 % quantile and a margin: the far ends of an unconstrained rational hide the rest."""
    values = values[np.isfinite(values)]
    if not values.size:
        return _tell(panel, "not finite")
    low, high = np.quantile(values, (0.01, 0.99))
    margin = 0.08 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)


@matplotlib.rc_context(RC)
def kde_figure(folder: Path) -> Figure | None:
    """Densities of 16 neurons of each network's last hidden layer, newest step, dead ones outlined (HR Figs. 3, 6); of
    a layer with several branches also those of each branch (HR Figs. 10, 11), a network in a row then."""
    found = read_rows(folder, "curves.jsonl", r"(?:branch\d+_)?kde", most=MOST_BRANCHES)
    last = {network: layer for layer, network in sorted(found, key=lambda key: (_depth(key[0]), key))}
    if not found:
        return None
    grids = defaultdict(dict)  # network: {part: rows}
    number = 0  # of branches
    for network in sorted(last):
        for key, rows in found[last[network], network].items():
            branch = re.match(r"branch(\d+)_", key)
            number = max(number, int(branch[1]) + 1 if branch else 0)
            if not rows:
                continue
            grids[network].setdefault(f", branch {int(branch[1]) + 1}" if branch else "", []).append(rows[-1])
        if len(grids[network]) > 1:
            grids[network][", output"] = grids[network].pop("")
    panels = [[(network, *part) for part in parts.items()] for network, parts in grids.items()]
    if max(map(len, panels)) == 1:
        panels = [[each for line in panels for each in line]]
    shape = len(panels), max(map(len, panels))
    figure, places = _kde_figure(shape, 3)
    for line, drawn in zip(places, panels):
        for place, (network, part, rows) in zip(line, drawn):
            _kde_grid(place, f"{network}, {last[network]}{part}", rows[:16])
    step = panels[0][0][2][0]["step"]
    shown = f", the first {MOST_BRANCHES} of {number} branches" if number > MOST_BRANCHES else ""
    what = f"Activation densities, step {step:,}{shown}\noutlined: dead (peak above 20)"
    _title(figure, folder, what, y=1 - 0.06 / figure.get_figheight())
    return figure


def _kde_figure(shape: tuple[int, int], num_lines: int) -> tuple[Figure, list[list]]:
    """A figure with a title of so many lines and a subfigure for each grid of neurons. All is placed by hand: a layout
    engine takes minutes for hundreds of small panels, and a run's plots are drawn while it trains."""
    top = 0.17 * num_lines + 0.12
    figure = Figure((3.3 * shape[1] + 0.2, 3.8 * shape[0] + top))
    grid = figure.add_gridspec(1 + shape[0], shape[1], height_ratios=(top, *[3.8] * shape[0]))
    places = [[figure.add_subfigure(grid[1 + i, j]) for j in range(shape[1])] for i in range(shape[0])]
    return figure, places


def _kde_grid(part, title: str, rows: list[dict]) -> None:
    """Densities of up to 16 neurons, a cell each with its own scale, in a subfigure of _kde_figure. One panel with a
    collection of lines: an Axes for every neuron takes a hundred times as long."""
    num_dead = sum(bool(row.get("dead")) for row in rows)
    part.suptitle(f"{title}: {num_dead} of {len(rows)} dead", fontsize=9, y=0.985)
    side = int(np.ceil(np.sqrt(len(rows))))
    panel = part.add_axes((0.03, 0.08, 0.94, 0.84))
    panel.set(xlim=(0, side), ylim=(0, side))
    panel.set_axis_off()
    curves = []
    fills = []
    ticks = []
    frames = []
    colours = []
    widths = []
    small = {"fontsize": 6}
    for i, row in enumerate(rows):
        left, bottom = i % side + 0.05, side - 1 - i // side + 0.2
        width, height = 0.88, 0.74  # of the cell's frame; the rest is for its ticks
        dead = bool(row.get("dead"))
        corners = [(0, 0), (width, 0), (width, height), (0, height), (0, 0)]
        frames.append([(left + dx, bottom + dy) for dx, dy in corners])
        colours.append(RED if dead else "0.7")
        widths.append(2 if dead else 0.5)
        x = np.asarray(row["x"], dtype=float)
        y = np.asarray(row["y"], dtype=float)
        if not np.isfinite([x, y]).all() or x[-1] <= x[0]:
            middle = left + width / 2, bottom + height / 2
            panel.text(*middle, "not\nfinite", color=RED, ha="center", va="center", **small)
            continue
        highest = 1.12 * y.max() if y.max() > 0 else 1.0
        across = left + width * (x - x[0]) / (x[-1] - x[0])
        curves.append(np.stack([across, bottom + height * y / highest], -1))
        fills.append([(across[0], bottom), *curves[-1], (across[-1], bottom)])
        for tick in MaxNLocator(2, min_n_ticks=1).tick_values(x[0], x[-1]):
            at = left + width * (tick - x[0]) / (x[-1] - x[0])
            if left <= at <= left + width:
                ticks.append([(at, bottom), (at, bottom - 0.02)])
                inwards = "center"
                if at < left + 0.1:
                    inwards = "left"
                elif at > left + width - 0.1:
                    inwards = "right"
                label = f"{tick:g}".replace("-", "\N{MINUS SIGN}")
                panel.text(at, bottom - 0.03, label, ha=inwards, va="top", **small)
        if dead:
            place = left + 0.95 * width, bottom + 0.9 * height
            panel.text(*place, "dead", color=RED, fontsize=6, ha="right", va="top")
    panel.add_collection(PolyCollection(fills, facecolors=BLUE, alpha=0.35, linewidths=0))
    panel.add_collection(LineCollection(curves, colors=BLUE, linewidths=0.9, label="densities"))
    panel.add_collection(LineCollection(ticks, colors=BLACK, linewidths=0.6))
    panel.add_collection(LineCollection(frames, colors=colours, linewidths=widths, label="frames"))
    part.supxlabel("activation (each neuron's own scale)", fontsize=8, y=0.03)


@matplotlib.rc_context(RC)
def q_split_figure(folder: Path) -> Figure | None:
    """What live neurons, dead neurons and the bias give to Q (HR Fig. 4). None without data (--analyse, --evaluate)."""
    scalars, total = read_scalars(folder), 0.0
    if "q_split/dead" not in scalars:
        return None
    figure = Figure((5, 3.2), layout="constrained")
    panel = figure.subplots()
    for key, look in {"live": (GREEN, "-"), "dead": (RED, "--"), "bias": (GREY, ":")}.items():
        steps, values, _ = scalars[f"q_split/{key}"].T
        total = total + values
        panel.plot(steps, values, color=look[0], linestyle=look[1], marker=".", label=key)
    panel.plot(steps, total, color=BLACK, linewidth=1, label="Q")
    panel.set(xlabel="environment steps", ylabel="mean over observations and actions")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.legend()
    _title(figure, folder, "What live and dead neurons of the last hidden layer give to Q")
    return figure


@matplotlib.rc_context(RC)
def preactivations_figure(folder: Path) -> Figure | None:
    """Histograms of the pre-activations as densities: the newest step filled, the first as a line; log y."""
    found = read_rows(folder, "histograms.jsonl", "preactivations")
    if not found:
        return None
    figure, axes = _panels(found, (2.7, 2.0), "density")
    steps = set()
    for key, panel in axes.items():
        rows = found[key]["preactivations"] if key in found else []
        lowest = np.inf
        for row in rows:
            counts, edges = (np.asarray(row[name], dtype=float) for name in ("counts", "edges"))
            if not np.isfinite(edges).all() or not counts.sum():
                continue
            density = counts / counts.sum() / np.diff(edges)
            lowest = min(lowest, density[density > 0].min())
            newest = row is rows[-1]
            steps.add((row["step"], newest))
            panel.stairs(density, edges, **(FILLED if newest else LINE), zorder=2 if newest else 3)
        if np.isfinite(lowest):
            panel.set_yscale("log")
            panel.set_ylim(bottom=lowest / 2)
        else:
            _tell(panel, "not finite")
    handles = [Line2D([], [], **LINE, label=f"first (step {step:,})") for step, newest in steps if not newest][:1]
    handles += [Patch(**FILLED, label=f"newest (step {step:,})") for step, newest in steps if newest][:1]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    _title(figure, folder, "Pre-activations")
    return figure


def draw_run(folder: str | Path) -> list[Path]:
    """Draw activations.png, kde.png, preactivations.png, q_split.png into `<folder>/plots/`, as far as there is data;
    their paths."""
    folder = Path(folder)
    read_config(folder)
    makers = {"activations": activations_figure, "kde": kde_figure, "preactivations": preactivations_figure}
    makers["q_split"] = q_split_figure
    figures = {folder / "plots" / f"{name}.png": make(folder) for name, make in makers.items()}
    return [_save(figure, path) for path, figure in figures.items() if figure is not None]


def _as_it_is(figure: Figure) -> None:
    """No text of a figure is TeX: titles, labels and legends hold names of runs, in which $ is only a character. Ticks
    of a logarithmic axis are TeX of matplotlib's own."""
    ticks = set()
    for axis in figure.findobj(Axis):
        ticks |= {id(text) for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if id(text) not in ticks:
            text.set_parse_math(False)


def _save(figure: Figure, path: Path) -> Path:
    _as_it_is(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(RC):
            figure.savefig(path)
    except OSError as error:
        raise runlog.UserError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def load(run_folders: Sequence[str | Path], varied: Sequence[str] = ()) -> dict[str, list[Loaded]]:
    """activation -> its runs in the order of their seeds. A folder in which a start failed is left out, with a line.
    Raises UserError if runs differ in anything but `varied`, or one is given twice."""
    runs = []
    for folder in map(Path, run_folders):
        if folder.is_dir() and not is_run(folder):
            print(f"left out: {folder} holds no run (a start that failed?)")
        else:
            runs.append(read_run(folder))
    if not runs:
        raise runlog.UserError("no run folders: give at least one")
    check_once(runs)
    ours = {"activation", "seed", "status", *runlog.NOT_IDENTITY, *varied}
    found = differing([run.config for run in runs], [run.folder for run in runs], ours)
    if found:
        key, values = found
        told = f"the runs differ in {key} ({', '.join(values)}): {_where(values)}"
        raise runlog.UserError(f"{told}; give runs of one setting")
    runs.sort(key=lambda run: run.config["seed"])
    order = [*STYLES, *sorted({run.config["activation"] for run in runs} - {*STYLES})]
    groups = {name: [run for run in runs if run.config["activation"] == name] for name in order}
    return {name: group for name, group in groups.items() if group}


def all_runs(groups: dict[str, list[Loaded]]) -> list[Loaded]:
    """The runs of all groups, in order."""
    return list(itertools.chain.from_iterable(groups.values()))


def is_learned(run: Loaded) -> bool:
    """Whether the run's activation functions have parameters of their own: norms or gradients of these were logged, or
    the functions differ over training or from layer to layer."""
    for key in run.scalars:
        if key.endswith(("numerator_norm", "coefficient_gradient_norm")):
            return True
    parts = defaultdict(list)  # number of branch or output -> the function of every layer, first and newest
    for curves in read_rows(run.folder, "curves.jsonl", "activation").values():
        for part, rows in curves.items():
            parts[part] += [np.array([row["x"], row["y"]], dtype=float) for row in rows]
    for first, *others in parts.values():
        for other in others:
            if first.shape != other.shape or not np.allclose(first, other, rtol=1e-4, atol=1e-5, equal_nan=True):
                return True
    return False


@dataclass
class Cut:
    """Where runs are compared: all at one step, the last that each of them has reached."""

    step: float  # inf: nothing to cut
    shortest: Loaded | None = None  # the run that ends there, if others go on

    def told(self, what: str) -> list[str]:
        """A line for below a table or figure; none if no run goes on behind the step."""
        if self.shortest is None:
            return []
        run = self.shortest
        reason = f"where {run.folder.name} ({run.config['status']}) ends"
        return [f"{what}: cut at step {self.step:,.0f}, {reason}; later rows of other runs are left out"]


def common_end(runs: Sequence[Loaded], pattern: str) -> Cut:
    """The last step up to which every run has rows of the keys that match: all are compared there. A diverged run
    carries its last value forward, and one without any such row cuts nothing."""
    ends = {}
    for k, run in enumerate(runs):
        series = [run.series(key) for key in run.scalars if re.fullmatch(pattern, key)]
        steps = [rows[-1, 0] for rows in series if len(rows)]
        if steps and not run.has_diverged:
            ends[k] = _length(run) if run.config["status"] == "finished" else max(steps)
    if not ends:
        return Cut(np.inf)
    first = min(ends, key=ends.get)
    shortest = runs[first] if ends[first] < max(ends.values()) else None
    return Cut(ends[first], shortest)


def _length(run: Loaded) -> float:
    """Steps of a finished run: the last game of training, say, ends before them."""
    for key in ("total_timesteps", "total_steps"):
        if isinstance(run.config.get(key), int):
            return float(run.config[key])
    return max((rows[-1, 0] for rows in run.scalars.values()), default=0.0)


def mean_and_deviation(values: Sequence[float], number: int, text: str) -> str:
    """ "mean +- std (ddof 1)" of the finite values, in a format; "(2 of 3)" if not all `number` runs have one."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    shown = text.format(np.mean(known))
    if len(known) > 1:
        shown = f"{shown} +- {text.format(np.std(known, ddof=1))}"
    if len(known) < number:
        shown += f" ({len(known)} of {number})"
    return shown


def aligned(runs: list[Loaded], key: str) -> tuple[np.ndarray, np.ndarray]:
    """steps, values (runs, steps): NaN where a run has no row; a diverged run carries its last value forward."""
    series = [run.series(key) for run in runs]
    steps = np.unique(np.concatenate([s[:, 0] for s in series]))
    values = np.full((len(runs), len(steps)), np.nan)
    for row, run, each in zip(values, runs, series):
        row[np.searchsorted(steps, each[:, 0])] = each[:, 1]
        if run.config["status"] == "diverged" and len(each):
            row[steps > each[-1, 0]] = each[-1, 1]
    return steps, values


def _draw_curves(panel, groups: dict[str, list[Loaded]], key: str, title: str, ylabel: str) -> None:
    """_draw_seeds of a key of these runs."""
    _draw_seeds(panel, {name: aligned(runs, key) for name, runs in groups.items()}, title, ylabel)


def _draw_seeds(panel, curves: dict[str, tuple], title: str, ylabel: str, looks: dict | None = None) -> None:
    """Mean over seeds where all have a value, with the min-max band; each seed as a thin line. curves: group -> steps
    and values (seeds, steps); looks: group -> look, if its name is no activation."""
    largest = 0.0
    for activation, (steps, values) in curves.items():
        if not steps.size:
            continue
        look, everywhere = (looks or {}).get(activation) or style(activation), ~np.isnan(values).any(0)
        largest = max(largest, np.nanmax(np.abs(values)))
        for row in values:
            panel.plot(steps, row, color=look["color"], linewidth=0.5, alpha=0.45)
        x, y = steps[everywhere], values[:, everywhere]
        panel.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.13, linewidth=0)
        label, every = f"{activation} (n = {len(values)})", max(1, len(x) // 6)
        panel.plot(x, y.mean(0), **look, label=label, linewidth=1.8, markersize=4.5, markevery=every)
    if largest > 1e4:
        panel.set_yscale("symlog", linthresh=10)
    panel.set(xlabel="environment steps", ylabel=ylabel)
    panel.set_title(title, loc="left", fontweight="bold")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlim(left=0)


def _draw_functions(panel, activation: str, run: Loaded) -> None:
    """Before: dashed; after: solid, one curve per layer and network. A fixed activation is one curve."""
    found, seen = read_rows(run.folder, "curves.jsonl", "activation"), [np.zeros(0)]
    fixed = not is_learned(run)
    for (layer, network), curves in found.items():
        shade = 1 - (1.0 if fixed else SHADES.get(network, 1.0)) * (1 - np.array(to_rgb(style(activation)["color"])))
        marker = {} if fixed else {"marker": LAYER_MARKERS.get(layer, "^"), "markersize": 3.5}
        for rows in curves.values():
            inside = np.abs(rows[-1]["x"]) <= 5  # where the initial coefficients are fitted
            x, before, after = (np.asarray(v, dtype=float)[inside] for v in (rows[0]["x"], rows[0]["y"], rows[-1]["y"]))
            before, after = (np.where(np.isfinite(y), y, np.nan) for y in (before, after))
            seen += [before, after]
            panel.plot(x, after, color=shade, linewidth=1.4, markevery=(5, 18), **marker)
            if not fixed:
                panel.plot(x, before, **FIRST, zorder=3)
    panel.set_title(f"{activation}, {'fixed' if fixed else 'learned'} (seed {run.config['seed']})")
    _limit(panel, np.concatenate(seen))
    panel.set(xlim=(-5, 5), xticks=(-5, 0, 5), xlabel="pre-activation x")


@matplotlib.rc_context(RC)
def demo_figure(run_folders: Sequence[str | Path]) -> Figure:
    """(a) evaluation return, (b) overestimation, (c) activation functions before and after, activations compared."""
    groups = load(run_folders)
    env_id = next(iter(groups.values()))[0].config["env_id"]
    figure = Figure((9.5, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = top.subplots(1, 2)
    _draw_curves(left, groups, "eval/episodic_return", "(a) evaluation, deterministic policy", "episodic return")
    _draw_curves(right, groups, "overestimation/mean", "(b) overestimation, stochastic policy", "Q minus return")
    right.axhline(0, color="0.4", linewidth=0.8)
    handles = left.get_legend_handles_labels()[0]
    top.legend(handles=handles, loc="outside lower center", ncols=min(len(groups), 5), handlelength=3.5)
    panels = bottom.subplots(1, len(groups), squeeze=False)[0]
    for panel, (activation, runs) in zip(panels, groups.items()):
        _draw_functions(panel, activation, runs[0])
    panels[0].set_ylabel("f(x)")
    handles = [Line2D([], [], **FIRST, label="before")]
    handles += [Line2D([], [], color=str(0.95 - 0.9 * k), label=f"after: {name}") for name, k in SHADES.items()]
    options = {"color": "0.3", "linestyle": "", "markersize": 3.5}
    handles += [Line2D([], [], marker=marker, label=layer, **options) for layer, marker in LAYER_MARKERS.items()]
    bottom.legend(handles=handles, loc="outside lower center", ncols=6)
    bottom.suptitle("(c) activation functions", x=0.01, ha="left", fontweight="bold", fontsize=9)
    every = all_runs(groups)
    cut = common_end(every, "eval/episodic_return")
    lines = [f"{env_id}: mean over seeds, band from worst to best seed"]
    if cut.shortest is not None:
        ended = f"{cut.shortest.folder.name} ({cut.shortest.config['status']})"
        lines.append(f"each mean ends with its shortest seed; the first to end is {ended}, at step {cut.step:,.0f}")
    _caption(figure, *lines, fontsize=10)
    return figure


def draw_demo(run_folders: Sequence[str | Path], path: str | Path) -> Path:
    """Save demo_figure of these runs as a PNG at `path`."""
    return _save(demo_figure(run_folders), Path(path))


COLUMNS = {  # title: (key pattern, format); averages over layers and critics
    "final return": (r"eval/episodic_return", "{:.1f}"),
    "overestimation": (r"overestimation/mean", "{:.2f}"),
    "critic rank": (r"network/qf\d?/fc\d+/srank", "{:.1f}"),
    "critic dead share": (r"network/qf\d?/fc\d+/dead_share", "{:.3f}"),
    "seconds": (r"eval/episodic_return", "{:.0f}"),
}


def table(run_folders: Sequence[str | Path]) -> list[list[str]]:
    """Header and one row per activation: n, then mean +- std (ddof 1) over seeds of the last values, of all runs at the
    last step that all have reached."""
    return _table(load(run_folders))[0]


def _table(groups: dict[str, list[Loaded]]) -> tuple[list[list[str]], list[str]]:
    """`table`, and the lines below it: what was cut."""
    every = all_runs(groups)
    cuts = {title: common_end(every, pattern) for title, (pattern, _) in COLUMNS.items()}
    rows = [["activation", "n", *COLUMNS]]
    for activation, runs in groups.items():
        rows.append([activation, _count(runs)])
        for title, (pattern, text) in COLUMNS.items():
            column = 2 if title == "seconds" else 1
            values = [run.last(pattern, column, cuts[title].step) for run in runs]
            rows[-1].append(mean_and_deviation(values, len(runs), text))
    told = {}
    for title, cut in cuts.items():
        for line in cut.told("PLACE"):
            told.setdefault(line, []).append(title)
    return rows, [line.replace("PLACE", ", ".join(titles), 1) for line, titles in told.items()]


def _count(runs: Sequence[Loaded]) -> str:
    diverged = sum(run.has_diverged for run in runs)
    return f"{len(runs)} ({diverged} diverged)" if diverged else f"{len(runs)}"


def print_table(run_folders: Sequence[str | Path]) -> None:
    """Print `table`, aligned, and what was cut."""
    rows, cut = _table(load(run_folders))
    _print(rows)
    print("last values; mean +- standard deviation over n seeds; rank and dead share: mean over the critics' layers")
    for line in cut:
        print(line)


def _print(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print(row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])), sep="  ")


@dataclass
class History:
    """Histograms of one layer's pre-activations over training, of one run and network; distribution functions."""

    steps: np.ndarray  # (steps,)
    edges: list[np.ndarray]  # for each step (bins + 1,)
    shares: list[np.ndarray]  # for each step the share of values below each edge, (bins + 1,)

    def below(self, x: np.ndarray) -> np.ndarray:
        """Share of the values below x (n,), linear within a bin: (steps, n)."""
        return np.array([np.interp(x, e, share) for e, share in zip(self.edges, self.shares)])

    def largest(self) -> np.ndarray:
        """Largest absolute pre-activation on the batch, (steps,)."""
        return np.array([np.abs(edges).max() for edges in self.edges])


def histories(folder: Path) -> dict[tuple[str, str], History]:
    """(layer, network) -> History from histograms.jsonl."""
    found = {}
    for key, rows in read_rows(folder, "histograms.jsonl", "preactivations", every=True).items():
        rows = [row for row in rows["preactivations"] if sum(row["counts"])]
        shares = [np.append(0.0, np.cumsum(row["counts"])) / sum(row["counts"]) for row in rows]
        found[key] = History(np.array([r["step"] for r in rows]), [np.array(r["edges"]) for r in rows], shares)
    return found


def pooled(runs: list[Loaded]) -> dict[tuple[str, str], list[History]]:
    """(network, layer) -> histories of the runs, at the steps that all have; twin critics are both "critics"."""
    found = defaultdict(list)
    for run in runs:
        for (layer, network), history in histories(run.folder).items():
            found["critics" if re.fullmatch(r"qf\d", network) else network, layer].append(history)
    for each in found.values():
        common = set.intersection(*(set(h.steps.tolist()) for h in each))
        for k, h in enumerate(each):
            kept = [i for i, step in enumerate(h.steps) if step in common]
            each[k] = History(h.steps[kept], [h.edges[i] for i in kept], [h.shares[i] for i in kept])
    return dict(sorted(found.items(), key=lambda item: (item[0][0], _depth(item[0][1]))))


BINS, MEASURES_SHOWN = 80, 40  # of a heat map: of the pre-activation; steps at most


def preactivation_rows(run_folders: Sequence[str | Path]) -> list[dict]:
    """Points of `draw_preactivations`, a row per layer, activation and step: quantiles, smallest and largest value that
    any run saw (since the row before), and the densities d00, d01, ... in bins between first_edge and last_edge whose
    edges are evenly spaced in arcsinh (fine near 0, coarse far out). Seeds and twin critics weigh the same."""
    groups = {name: pooled(runs) for name, runs in load(run_folders).items()}
    keys = sorted({key for group in groups.values() for key in group}, key=lambda key: (key[0], _depth(key[1])))
    if not keys:
        raise runlog.UserError("the runs have no histograms yet; train with --metrics-frequency above 0")
    rows = []
    for key in keys:
        shown = {name: group[key] for name, group in groups.items() if key in group and len(group[key][0].steps)}
        ends = np.array([e[[0, -1]] for each in shown.values() for h in each for e in h.edges]).reshape(-1, 2)
        for name, each in shown.items():
            first, last = np.arcsinh([ends.min(), ends.max()]) * 1.03
            x = np.sinh(np.linspace(first, last, 2 * BINS + 1))
            share = np.mean([h.below(x) for h in each], axis=0)
            density = np.diff(share[:, ::2], axis=1) / np.diff(x[::2])
            low, high = (np.array([[e[i] for e in h.edges] for h in each]) for i in (0, -1))
            steps = each[0].steps
            kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MEASURES_SHOWN)).round().astype(int))
            since = np.append(0, kept[:-1] + 1)
            low, high = np.minimum.reduceat(low.min(0), since), np.maximum.reduceat(high.max(0), since)
            own = {"network": key[0], "layer": key[1], "activation": name}
            own |= {"n": len(each) // (2 if key[0] == "critics" else 1)}
            for k, i in enumerate(kept):
                row = own | {"step": int(steps[i]), "smallest": float(low[k])}
                row |= {q: float(np.interp(level, share[i], x)) for q, level in QUANTILES.items()}
                row |= {"largest": float(high[k]), "first_edge": float(x[0]), "last_edge": float(x[-1])}
                rows.append(row | {f"d{b:02d}": float(f"{d:.3g}") if d > 1e-5 else 0 for b, d in enumerate(density[i])})
    return rows


QUANTILES = {"q01": 0.01, "median": 0.5, "q99": 0.99}


def draw_preactivations(rows: list[dict], spec: dict) -> Figure:
    """Rows of preactivation_rows: density of the pre-activations over training as a heat map, a row per layer, a column
    per activation; lines: quantiles (1, 50, 99 %), smallest and largest value. spec: activations in their order."""
    layers = list(dict.fromkeys((row["network"], row["layer"]) for row in rows))
    names = spec["activations"]
    figure = Figure((4.2 * len(names) + 1, 2.1 * len(layers) + 1), layout="constrained")
    grid = figure.subplots(len(layers), len(names), squeeze=False, sharex=True, sharey="row")
    norm, mesh = LogNorm(1e-3, 3.0), None
    for line, layer in zip(grid, layers):
        for panel, name in zip(line, names):
            mine = [r for r in rows if (r["network"], r["layer"], r["activation"]) == (*layer, name)]
            panel.grid(False)
            panel.set_title(f"{name} (n = {mine[0]['n'] if mine else 0}), {', '.join(layer)}")
            if not mine:
                _tell(panel, "no data")
                continue
            shown = ("step", *QUANTILES, "smallest", "largest", *(f"d{b:02d}" for b in range(BINS)))
            steps, low, median, high, smallest, largest, *density = _columns(mine, ("activation", name), *shown)
            first, last = np.arcsinh([float(mine[0][end]) for end in ("first_edge", "last_edge")])
            x, middles = np.sinh(np.linspace(first, last, BINS + 1)), (steps[1:] + steps[:-1]) / 2
            borders = np.concatenate([[steps[0]], middles, [steps[-1]]]) if len(steps) > 1 else steps[0] + [-0.5, 0.5]
            values = np.maximum(density, 1e-12)
            mesh = panel.pcolormesh(borders, x, values, norm=norm, cmap="Blues", rasterized=True)
            for values, look in ((low, ":"), (median, "-"), (high, ":")):
                panel.plot(steps, values, color=RED, linestyle=look, linewidth=1.2)
            for values in (smallest, largest):
                panel.plot(steps, values, color=BLACK, linewidth=0.8)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            if np.abs(x).max() > 100:
                panel.set_yscale("symlog", linthresh=1.0)
        line[0].set_ylabel("pre-activation x")
    for panel in grid[-1]:
        panel.set_xlabel("environment steps")
    handles = [Line2D([], [], color=RED, label="median"), Line2D([], [], color=RED, linestyle=":", label="1 and 99 %")]
    handles.append(Line2D([], [], color=BLACK, linewidth=0.8, label="smallest and largest of all runs"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.colorbar(mesh, ax=list(grid.ravel()), label="density (1 / unit of x)", extend="both", pad=0.02)
    _caption(figure, *spec["caption"])
    return figure


def write_preactivations(run_folders: Sequence[str | Path], out: Path, name: str, kinds=("png", "pdf")) -> list[Path]:
    """write_figure of the runs' pre-activations over training."""
    rows, configs = preactivation_rows(run_folders), [read_config(Path(folder)) for folder in run_folders]
    found = {config["activation"] for config in configs}
    names = [each for each in (*STYLES, *sorted(found - {*STYLES})) if each in found]
    told = [f"Pre-activations over training, {configs[0]['env_id']}"]
    return write_figure(out, name, "preactivations", rows, kinds, caption=told, activations=names)


def preactivation_table(run_folders: Sequence[str | Path], limit: float = 5.0) -> list[list[str]]:
    """Header and a row per activation and layer: runs' histories (seeds, twice for twin critics), then means over them:
    largest |x| at the first and newest measure and of all, newest share of |x| > limit (5: end of the fitted range)."""
    rows = [["activation", "layer", "n", "max |x| first", "max |x| newest", "max |x| ever", f"newest |x| > {limit:g}"]]
    for name, runs in load(run_folders).items():
        for (network, layer), each in pooled(runs).items():
            values = [(h.largest(), np.diff(h.below(np.array([-limit, limit]))[-1])) for h in each if len(h.steps)]
            if values:
                cells = [
                    f"{np.mean([pick(m) for m, _ in values]):.1f}" for pick in (lambda m: m[0], lambda m: m[-1], max)
                ]
                outside = f"{100 * (1 - np.mean([inside for _, inside in values])):.2f} %"
                rows.append([name, f"{network} {layer}", f"{len(values)}", *cells, outside])
    return rows


COMPARED = {  # title: (key pattern, reduction over the keys that match, format); critics and their layers
    "overestimation": (r"overestimation/mean", np.mean, "{:.1f}"),
    "max |f(x)|": (r"network/qf\d?/fc\d+/(branch\d+_)?f_max", np.max, "{:.2f}"),
    "coefficient gradient": (r"network/qf\d?/coefficient_gradient_norm", np.mean, "{:.3g}"),
    "critic gradient": (r"network/qf\d?/gradient_norm", np.mean, "{:.3g}"),
}


def compared(run_folders: Sequence[str | Path], by: str) -> dict[str, list[Loaded]]:
    """ "activation, by value" -> its runs, where the runs differ in the setting `by` too. Each run's scalars gain the
    titles of COMPARED. Raises UserError: no such setting."""
    groups = defaultdict(list)
    for name, runs in load(run_folders, varied=(by,)).items():
        for run in runs:
            if by not in run.config:
                raise runlog.UserError(f"--by {by}: no setting of these runs; config.json lists them")
            groups[f"{name}, {by} {run.config[by]}"].append(run)
            for title, (pattern, reduce, _) in COMPARED.items():
                series = [run.series(key) for key in run.scalars if re.fullmatch(pattern, key)]
                steps = sorted(set.intersection(*(set(each[:, 0]) for each in series))) if series else []
                if steps:
                    values = reduce([each[np.isin(each[:, 0], steps), 1] for each in series], axis=0)
                    run.scalars[title] = np.stack([steps, values, np.zeros(len(steps))], -1)
    return {name: groups[name] for name in sorted(groups)}


def compare_rows(run_folders: Sequence[str | Path], by: str) -> list[dict]:
    """Points of `draw_compared`: success (where there is one) and return, overestimation, largest |f| and gradients of
    the critics, of every seed (NaN where it has no row and others of its group do)."""
    groups, rows = compared(run_folders, by), []
    titles = {"eval/success": "success rate", "eval/episodic_return": "return", **{title: title for title in COMPARED}}
    for key, title in titles.items():
        for name, runs in groups.items():
            steps, values = aligned(runs, key)
            for run, points in zip(runs, values):
                own = {"panel": title, "group": name, "activation": run.config["activation"]}
                own |= {"setting": str(run.config[by]), "seed": run.config["seed"]}
                rows += [own | {"step": x, "value": y} for x, y in zip(steps.tolist(), points.tolist())]
    return rows


def draw_compared(rows: list[dict], spec: dict) -> Figure:
    """Rows of compare_rows: a panel per quantity, the activation is the colour, the setting the line style."""
    values, looks = sorted({row["setting"] for row in rows}), {}
    for row in rows:
        k = values.index(row["setting"])
        look = {"linestyle": ("-", "--", ":", "-.")[k % 4], "marker": "osD^v"[k % 5]}
        looks[row["group"]] = style(row["activation"]) | look
    titles = list(dict.fromkeys(row["panel"] for row in rows))
    figure = Figure((10, 2.8 * ((len(titles) + 1) // 2) + 0.8), layout="constrained")
    panels = figure.subplots((len(titles) + 1) // 2, 2, squeeze=False).ravel()
    for panel, title in zip(panels, titles):
        mine, curves = [row for row in rows if row["panel"] == title], {}
        for name in dict.fromkeys(row["group"] for row in mine):
            seeds = defaultdict(list)
            for row in (row for row in mine if row["group"] == name):
                seeds[row["seed"]].append((row["step"], row["value"]))
            points = np.array(list(seeds.values()), dtype=float)
            curves[name] = points[0, :, 0], points[:, :, 1]
        _draw_seeds(panel, curves, title, "", looks)
        if "gradient" in title or title.startswith("max"):
            panel.set_yscale("log")
    for panel in panels[len(titles) :]:
        panel.remove()
    handles = {label: h for panel in panels[: len(titles)] for h, label in zip(*panel.get_legend_handles_labels())}
    options = {"loc": "outside lower center", "ncols": min(len(handles), 4), "handlelength": 3.5}
    figure.legend(handles=list(handles.values()), **options)
    _caption(figure, *spec["caption"])
    return figure


def write_compared(
    run_folders: Sequence[str | Path], by: str, out: Path, name: str, kinds=("png", "pdf")
) -> list[Path]:
    """write_figure of compare_rows."""
    rows, told = compare_rows(run_folders, by), read_config(Path(run_folders[0]))["env_id"]
    told += ": mean over seeds, band from worst to best seed; gradients and |f| of the critics"
    return write_figure(out, name, "compared", rows, kinds, caption=[told])


def draw_study(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """scripts/export_results.py's curves.csv and references: a panel per metric (spec's panels: metric -> label) with
    mean over seeds, thin lines for the seeds, band from worst to best. Grey: another program, an activation without a
    style; variants of one activation (export_results.py --by) have a style each.
    """
    rows = [row for table in tables.values() for row in table]
    ours = [name for name in dict.fromkeys(row["activation"] for row in rows if row["exp"] == "ours") if ", " in name]
    variant_styles = dict(zip(ours, STYLES.values()))
    labels = spec["panels"]
    figure = Figure((10, 2.9 * ((len(labels) + 1) // 2) + 0.6), layout="constrained")
    panels, handles = figure.subplots((len(labels) + 1) // 2, 2, squeeze=False).ravel(), {}
    for panel, (metric, label) in zip(panels, labels.items()):
        for name in dict.fromkeys(row["activation"] for row in rows):
            curves = defaultdict(dict)
            for row in rows:
                if (row["activation"], row["metric"]) == (name, metric):
                    curves[row["seed"]][int(row["env_step"])] = row["value"]
            if not curves:
                continue
            steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
            values = np.array([[curve[step] for step in steps] for curve in curves.values()])
            color, line, _ = STYLES.get(name) or variant_styles.get(name, ("0.45", ":", ""))
            look = {"color": color, "linestyle": line}
            panel.plot(steps, values.mean(0), linewidth=2, label=f"{name}, n = {len(values)}", **look)
            panel.plot(steps, values.T, linewidth=0.5, alpha=0.6, color=look["color"])
            panel.fill_between(steps, values.min(0), values.max(0), alpha=0.15, color=look["color"], linewidth=0)
        panel.set(xlabel="environment steps", ylabel=label)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels())}
    for panel in panels[len(labels) :]:
        panel.remove()
    columns = 4 if max(map(len, handles)) < 30 else 2
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, handlelength=3.5)
    _caption(figure, *spec["caption"])
    return figure


def compare_table(run_folders: Sequence[str | Path], by: str) -> list[list[str]]:
    """Header and a row per group of `compared`: n, then mean +- std (ddof 1) over seeds of the last values, of all runs
    at the last step that all have reached."""
    return _compare_table(compared(run_folders, by))[0]


def _compare_table(groups: dict[str, list[Loaded]]) -> tuple[list[list[str]], list[str]]:
    """`compare_table`, and the lines below it: what was cut."""
    columns = {"success": ("eval/success", "{:.2f}"), "return": ("eval/episodic_return", "{:.1f}")}
    columns |= {title: (title, text) for title, (*_, text) in COMPARED.items()}
    every = all_runs(groups)
    cuts = {title: common_end(every, re.escape(key)) for title, (key, _) in columns.items()}
    rows = [["", "n", *columns]]
    for name, runs in groups.items():
        rows.append([name, _count(runs)])
        for title, (key, text) in columns.items():
            values = [run.last(re.escape(key), until=cuts[title].step) for run in runs]
            rows[-1].append(mean_and_deviation(values, len(runs), text))
    told = []
    for title, cut in cuts.items():
        told += cut.told(title)
    return rows, told


# ---- continual_supervised.py -----------------------------------------------------------------------------------------

VARIED = ("activation", "layer_norm", "l2", "redo", "reset_head")  # and rational.*: what cells of a study may differ in
SHORT = {"rational.init_scale": "init", "rational.coefficient_weight_decay": "decay"}
LATE = 5  # tasks at the end that "late" means
PER_TASK = (  # keys of continual_curves.csv
    r"charts/(online|end|test)_accuracy|task_(start|end)/ntk_(srank|entropy_rank)"
    r"|network/classifier/(weight_norm|\w+/(dead_share|dormant_share|srank|numerator_norm|denominator_norm|f_max))"
)
MEASURES = {  # name: (key, first or late tasks)
    "online accuracy, first task": ("charts/online_accuracy", "first"),
    "online accuracy, late tasks": ("charts/online_accuracy", "late"),
    "change of online accuracy, late - first": ("charts/online_accuracy", "change"),
    "NTK srank, start": ("task_start/ntk_srank", "first"),
    "NTK srank, late task ends": ("task_end/ntk_srank", "late"),
    "NTK entropy rank, late task ends": ("task_end/ntk_entropy_rank", "late"),
}


@dataclass
class Cell:
    """The seeds of one setting of continual_supervised.py. settings: what it has of its own, as "init" -> 0.25."""

    activation: str
    settings: dict[str, object]
    runs: list[Loaded]

    @property
    def label(self) -> str:
        return ", ".join([self.activation, *(f"{name} {value}" for name, value in self.settings.items())])

    def per_task(self, key: str) -> np.ndarray:
        """(seeds, tasks) of a measure that is logged once a task. NaN: not logged, or logged as such; a diverged seed
        carries its last value forward."""
        ends = [row[0] / row[1] for run in self.runs for row in run.scalars.get("charts/task", ())]  # updates per task
        num_tasks = self.runs[0].setting("num_tasks", int)
        values = np.full((len(self.runs), num_tasks), np.nan)
        for row, run in zip(values, self.runs):
            for step, value, _ in run.scalars.get(key, ()) if ends else ():
                task = round(step / min(ends)) - (not key.startswith("task_start/"))
                if not 0 <= task < num_tasks:
                    told = f"{key} has a row at step {step:,.0f}, which is in none of the {num_tasks} tasks"
                    raise runlog.UserError(f"{run.folder / 'scalars.csv'}: {told}; restore it, or move the run away")
                row[task] = value
            known = np.flatnonzero(np.isfinite(row))
            if run.config["status"] == "diverged" and len(known):
                row[known[-1] :] = row[known[-1]]
        return values

    def measure(self, name: str) -> np.ndarray:
        """One of MEASURES for each seed; the first task is never a late one."""
        key, when = MEASURES[name]
        values = self.per_task(key)
        first, late = values[:, 0], values[:, max(1, values.shape[1] - LATE) :]
        late = late.mean(1) if late.shape[1] else np.full_like(first, np.nan)
        return {"first": first, "late": late, "change": late - first}[when]


def continual_cells(folder: Path) -> dict[str, list[Cell]]:
    """Study ("<dataset> <tasks>") -> cells, of the finished runs of continual_supervised.py in a folder. Raises
    UserError: none there, or studies of different lengths or settings mixed."""
    runs = [read_run(path) for path in run_folders_in(folder, "*__continual_supervised__*")]
    check_once(runs)
    studies, unfinished = defaultdict(list), [run for run in runs if run.config["status"] not in runlog.ENDED]
    for run in unfinished:
        print(f"{run.folder}: {run.config['status']}, left out")
    for run in runs:
        if run not in unfinished:
            run.setting("num_tasks", int)
            run.setting("rational", dict)
            studies[f"{run.setting('dataset', str)} {run.setting('tasks', str)}"].append(run)
    if not studies:
        raise runlog.UserError(f"--runs {folder}: no finished run of continual_supervised.py; train some first")
    return {name: _cells(study) for name, study in studies.items()}


def _cells(runs: list[Loaded]) -> list[Cell]:
    flat = [_flat(run.config) for run in runs]
    folders = [run.folder for run in runs]
    free = [key for config in flat for key in config if key in VARIED or key.startswith("rational.")]
    if found := differing(flat, folders, free):
        key, values = found
        raise runlog.UserError(f"the runs differ in {key} ({', '.join(values)}): {_where(values)}; move some away")
    varied = [key for key in dict.fromkeys(free) if len({json.dumps(config.get(key)) for config in flat}) > 1]
    usual = {f"rational.{k}": v for k, v in dataclasses.asdict(activations.RationalConfig()).items()}
    cells = {}
    for run, config in zip(runs, flat):
        settings = {}
        for key in varied:
            value = config.get(key, usual.get(key, 0))  # an older run may lack it; others than usual's: 0 or False
            if key != "activation" and value != usual.get(key, 0):
                settings[SHORT.get(key, key)] = value
        name = config["activation"], json.dumps(settings)
        cells.setdefault(name, Cell(config["activation"], settings, [])).runs.append(run)
    for cell in cells.values():
        cell.runs.sort(key=lambda run: run.config["seed"])
        _check_seeds(cell.runs, cell.label)
    order = [*STYLES, *sorted({cell.activation for cell in cells.values()} - {*STYLES})]
    return sorted(cells.values(), key=lambda c: (order.index(c.activation), len(c.settings), c.label))


def _check_seeds(runs: Sequence[Loaded], label: str) -> None:
    """Raises UserError if two of these runs of one setting, in the order of their seeds, have one seed."""
    for one, other in itertools.pairwise(runs):
        if one.config["seed"] == other.config["seed"]:
            told = f"{one.folder} and {other.folder.name} are both {label}, seed {one.config['seed']}"
            raise runlog.UserError(f"{told}; move one away")


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis and the ends of its 95 % interval by Student's t, of what is finite: NaN where nothing
    is; NaN ends for one value."""
    finite = np.isfinite(values)
    n = finite.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, values, 0.0).sum(0) / n
        variance = np.where(finite, (values - mean) ** 2, 0.0).sum(0) / (n - 1)
        half = np.where(n > 1, stats.t.ppf(0.975, np.maximum(n - 1, 1)) * np.sqrt(variance / n), np.nan)
    return mean, mean - half, mean + half


def draw_continual_study(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """Rows of continual_curves.csv of the study that spec names. Rows of panels: online accuracy, NTK srank at the
    tasks' ends, dead share; columns: activations as they come, then the settings of each activation that has some."""
    curves = defaultdict(lambda: defaultdict(list))  # cell's label: metric: task, mean, low, high
    for row in tables["continual_curves.csv"]:
        if row["study"] == spec["study"]:
            points = (float(row[name]) for name in ("task", "mean", "low", "high"))
            curves[row["cell"]][row["metric"]].append(tuple(points))
    names = {label: label.split(", ")[0] for label in curves}
    groups = {"activations": [label for label, name in names.items() if label == name]}
    for activation in dict.fromkeys(name for label, name in names.items() if label != name):
        groups[activation] = [label for label, name in names.items() if name == activation]
    metrics_there = {metric for cell in curves.values() for metric in cell}
    layers = {int(found[1]) for metric in metrics_there if (found := re.search(r"/fc(\d+)/", metric))}
    rows = {
        "online accuracy": "charts/online_accuracy",
        "NTK srank, task end": "task_end/ntk_srank",
        "dead share (KDE), last layer": f"network/classifier/fc{max(layers, default=1)}/dead_share",
    }
    figure = Figure((max(3.6 * len(groups) + 0.6, 7), 7.6), layout="constrained")
    panels = figure.subplots(len(rows), len(groups), squeeze=False, sharex=True, sharey="row")
    looks = [("-", "o"), ("--", "v"), (":", "^"), ("-.", "s"), ("-", "D"), ("--", "P"), (":", "X"), ("-.", "h")]
    for column, (group, members) in zip(panels.T, groups.items()):
        for panel, key in zip(column, rows.values()):
            for k, label in enumerate(members):
                look = style(names[label])
                if group != "activations":
                    look |= dict(zip(("linestyle", "marker"), looks[k % len(looks)]))
                    look["markerfacecolor"] = "white" if ", decay " in label else look["color"]
                tasks, mean, low, high = np.array(curves[label].get(key, [])).reshape(-1, 4).T
                panel.fill_between(tasks, low, high, color=look["color"], alpha=0.15, linewidth=0)
                panel.plot(tasks, mean, **look, label=label, linewidth=1.3, markersize=3.5)
        column[0].set_title(group, loc="left", fontweight="bold")
        column[-1].set_xlabel("task")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        column[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=3, fontsize=8)
    for panel, ylabel in zip(panels[:, 0], rows):
        panel.set_ylabel(ylabel)
    _caption(figure, *spec["caption"])
    return figure


def _continual_caption(name: str, cells: list[Cell]) -> str:
    counts = sorted({len(cell.runs) for cell in cells})
    diverged = sum(run.config["status"] == "diverged" for cell in cells for run in cell.runs)
    told = f"{name.replace('_', ' ')}: mean over seeds and its 95 % interval, "
    told += f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"
    if diverged:
        told += f", {diverged} diverged (last task carried forward)"
    early = []
    for cell in cells:
        known = np.isfinite(cell.per_task("charts/online_accuracy")).any(1)
        if not known.all():
            early.append(f"{cell.label} {(~known).sum()} of {len(known)}")
    if early:
        told += f"; in no mean, since they diverged in their first task: {', '.join(early)}"
    return told


def continual_comparisons(cells: list[Cell]) -> list[dict[str, object]]:
    """Differences a - b of every measure between cells that differ in one thing, paired by seed, with a 95 % interval:
    crational and rational, each HR with its base, each setting with and without, the lowest and the highest init. n:
    seeds of which both are known."""
    by_name = {(cell.activation, frozenset(cell.settings.items())): cell for cell in cells}
    inits = sorted({cell.settings["init"] for cell in cells if "init" in cell.settings})
    pairs = []
    for (activation, settings), cell in by_name.items():
        others = [("rational", settings)] if activation == "crational" else []
        others += [(activation.removesuffix("_hr"), settings)] if activation.endswith("_hr") else []
        others += [(activation, settings - {item}) for item in settings if item[0] != "init"]
        if len(inits) > 1 and ("init", inits[0]) in settings:
            others.append((activation, settings - {("init", inits[0])} | {("init", inits[-1])}))
        others += [(activation, settings - {item}) for item in settings if item[0] == "init"]
        pairs += [(cell, by_name[other]) for other in others if other in by_name]
    found = []
    for a, b in pairs:
        seeds = [[run.config["seed"] for run in cell.runs] for cell in (a, b)]
        shared = sorted({*seeds[0]} & {*seeds[1]})
        for name in MEASURES:
            x, y = (cell.measure(name)[[each.index(s) for s in shared]] for cell, each in zip((a, b), seeds))
            x, y = x[known := np.isfinite(x - y)], y[known]
            if not len(x):
                continue  # not measured, such as the NTK with --ntk-samples 0
            row = {"a": a.label, "b": b.label, "measure": name, "n": len(x), "mean_a": x.mean(), "mean_b": y.mean()}
            found.append(row | dict(zip(("difference", "low", "high"), mean_interval(x - y))))
    return found


def _provenance(run: Loaded) -> dict[str, object]:
    """Seconds, memory, commit, machine and folder of a run; "" where it has not ended or says nothing."""
    own = run.provenance()
    del own["gymnasium"]
    return own | {"folder": run.folder.name}


def draw_continual(folder: Path, out: Path) -> list[Path]:
    """Writes into `out`, and returns the paths of, continual-<dataset>-<tasks>.png and .pdf, continual_curves.csv (per
    task: mean and interval), _cells.csv, _runs.csv and _comparisons.csv. Prints the comparisons."""
    paths = []
    curves = []
    summary = []
    per_run = []
    comparisons = []
    captions = {}
    taken = set()
    for name, cells in continual_cells(folder).items():
        captions[name] = _continual_caption(name, cells)
        for cell in cells:
            for key in sorted({key for run in cell.runs for key in run.scalars if re.fullmatch(PER_TASK, key)}):
                values = cell.per_task(key)
                counts = np.isfinite(values).sum(0).tolist()
                mean, low, high = mean_interval(values)
                for task, n in enumerate(counts, start=1):
                    row = {"study": name, "cell": cell.label, "n": n, "metric": key, "task": task}
                    row |= {"mean": mean[task - 1], "low": low[task - 1], "high": high[task - 1]}
                    curves.append(row)
            row = {"study": name, "cell": cell.label, "n": len(cell.runs)}
            row["diverged"] = sum(run.config["status"] == "diverged" for run in cell.runs)
            steps = cell.per_task("charts/steps_to_threshold")
            for task, column in enumerate(np.where(np.isfinite(steps), steps, np.inf).T, start=1):  # never: inf
                own = {
                    "study": name,
                    "cell": cell.label,
                    "n": len(cell.runs),
                    "task": task,
                    "low": np.nan,
                    "high": np.nan,
                }
                curves.append(own | {"metric": "median of steps_to_threshold", "mean": np.median(column)})
                curves.append(own | {"metric": "share of seeds that fit", "mean": np.isfinite(column).mean()})
            for measure in MEASURES:
                row |= dict(zip((measure, f"{measure}: low", f"{measure}: high"), mean_interval(cell.measure(measure))))
            summary.append(row)
            measures = {measure: cell.measure(measure) for measure in MEASURES}
            for i, run in enumerate(cell.runs):
                row = {"study": name, "cell": cell.label, "seed": run.config["seed"], "status": run.config["status"]}
                per_run.append(row | {measure: values[i] for measure, values in measures.items()} | _provenance(run))
        comparisons += [{"study": name} | row for row in continual_comparisons(cells)]
    for row in comparisons:
        sign = "" if row["low"] * row["high"] > 0 else "  (undecided)"
        told = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] n = {row['n']}{sign}"
        print(f"{row['study']}: {row['a']} against {row['b']}, {row['measure']}: {told}")
    tables = {"curves": curves, "cells": summary, "runs": per_run, "comparisons": comparisons}
    for name, rows in ((name, rows) for name, rows in tables.items() if rows):
        paths.append(_write_csv(Path(out) / f"continual_{name}.csv", rows, digits=4 if name == "curves" else 6))
    for name, told in captions.items():
        spec = {"csv": ["continual_curves.csv"], "study": name, "caption": [told]}
        paths += record_figure(out, _file_name(f"continual-{name.replace(' ', '-')}", taken), "continual", **spec)
    return paths


# ---- function_approximation.py ---------------------------------------------------------------------------------------


def _network(activation: str, widths: Sequence[int]) -> str:
    width, depth = widths[0], len(widths)
    return f"{activation} {f'{depth} x {width}' if {*widths} == {width} else list(widths)}"


@dataclass
class Fitted:
    """One network of function_approximation.py: its runs, by learning rate, in the order of their seeds."""

    activation: str
    widths: tuple[int, ...]
    num_parameters: int
    runs: dict[float, list[Loaded]]

    @property
    def label(self) -> str:
        return _network(self.activation, self.widths)

    def errors(self, rate: float) -> np.ndarray:
        """Last error of each seed, mean squared, between the training points: median over the last tenth of the steps,
        since with a constant step size it goes up and down. inf: diverged."""
        values = []
        for run in self.runs[rate]:
            steps, errors, _ = run.series("eval/mse").T
            errors = errors[steps >= 0.9 * run.setting("total_steps")]
            if not run.has_diverged and not len(errors):
                told = "has no eval/mse in the last tenth of its steps"
                raise runlog.UserError(f"{run.folder / 'scalars.csv'}: {told}; restore it, or move the run away")
            values.append(np.inf if run.has_diverged else np.median(errors))
        return np.array(values)

    @property
    def best(self) -> float:
        """The learning rate with the lowest median of the last errors."""
        return min(self.runs, key=lambda rate: np.median(self.errors(rate)))


def fitted(run_folders: Sequence[str | Path]) -> list[Fitted]:
    """The networks of these runs. Raises UserError if a run is of another script, not at its end, or of other data."""
    cells = defaultdict(lambda: defaultdict(list))
    for group in load(run_folders, ("widths", "learning_rate", "env_id")).values():
        for run in group:
            if "learning_rate" not in run.config or "num_points" not in run.config:
                raise runlog.UserError(f"{run.folder}: is no run of function_approximation.py; give only such runs")
            _check_regression(run)
            if run.config["status"] not in runlog.ENDED:
                raise runlog.UserError(f"{run.folder}: is {run.config['status']}; give the training command again")
            cells[run.config["activation"], tuple(run.config["widths"])][run.config["learning_rate"]].append(run)
    networks = []
    for (activation, widths), runs in cells.items():
        num_parameters = next(iter(runs.values()))[0].meta["num_parameters"]
        networks.append(Fitted(activation, widths, num_parameters, dict(sorted(runs.items()))))
        for rate, each in runs.items():
            _check_seeds(each, f"{networks[-1].label}, learning rate {rate:g}")
    return sorted(networks, key=lambda network: len(network.widths))


def _check_regression(run: Loaded) -> None:
    """Raises UserError unless a run of function_approximation.py has what its figures need."""
    run.setting("total_steps")
    run.setting("learning_rate")
    run.setting("num_points")
    for key, kind in (("widths", int), ("interval", (int, float))):
        values = run.setting(key, list)
        if not values or not all(isinstance(value, kind) for value in values):
            raise runlog.UserError(f"{run.folder / 'config.json'}: its {key} is {values}; restore the file")
    if not isinstance(run.meta.get("num_parameters"), int):
        told = "has no num_parameters, which the end of training writes"
        raise runlog.UserError(f"{run.folder / 'meta.json'}: {told}; restore the file, or move the run away")


def ratios(reference: Fitted, other: Fitted) -> list[dict]:
    """Last error of `other` over that of `reference`, paired by seed, at each learning rate that both have and at the
    best of each: geometric mean with a 95 % interval (Student's t on the logarithms), in how many seeds it is above 1.
    """
    pairs = {f"{rate:g}": (rate, rate) for rate in reference.runs if rate in other.runs}
    pairs["best of each"] = reference.best, other.best
    rows = []
    for name, (rate, others) in pairs.items():
        mine, theirs = (
            {run.config["seed"]: error for run, error in zip(network.runs[at], network.errors(at))}
            for network, at in ((reference, rate), (other, others))
        )
        logs = np.array([np.log(theirs[seed]) - np.log(mine[seed]) for seed in mine if seed in theirs])
        row = {"network": other.label, "reference": reference.label, "learning_rate": name, "n": len(logs)}
        row |= dict.fromkeys(("ratio", "low", "high"), np.nan)
        if len(logs) > 1 and np.isfinite(logs).all():
            half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
            row |= dict(zip(("ratio", "low", "high"), np.exp(logs.mean() + np.array([0, -half, half]))))
        rows.append(row | {"seeds_above_1": int((logs > 0).sum())})
    return rows


def _write_csv(path: Path, rows: list[dict], digits: int = 6) -> Path:
    """Rows of one set of columns; numbers with so many significant digits."""
    rounded = ({k: f"{v:.{digits}g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    with runlog.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rounded)
    return path


def _fit(run: Loaded) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a run's fit at its end."""
    path = run.folder / "curves.jsonl"
    lines = {k: line for k, line in enumerate(_whole_lines(path), start=1) if '"key": "fit"' in line}
    if not lines:
        raise runlog.UserError(f"{path}: has no fit, which the end of training writes; train the run again")
    number = max(lines)
    row = _row(path, number, lines[number])
    return np.asarray(row["x"]), np.array(row["y"], dtype=float)


def _middle(network: Fitted, rate: float) -> Loaded:
    """The run of the seed with the (lower) median error."""
    errors = network.errors(rate)
    return network.runs[rate][np.argsort(errors, kind="stable")[(len(errors) - 1) // 2]]


def draw_regression(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """runs.csv, curves.csv and fits.csv, of the networks that spec names. Top: every network's fit at its best learning
    rate. Middle: error over the steps, a panel per learning rate. Bottom: last error against the learning rate and
    against the number of parameters."""
    runs, curves = (defaultdict(lambda: defaultdict(list)) for _ in range(2))  # network: learning rate: rows
    for file, found in (("runs.csv", runs), ("curves.csv", curves)):
        for row in tables[file]:
            name = _network(row["activation"], [*map(int, row["widths"].split())])
            found[name][float(row["learning_rate"])].append(row)
    names, fits, runs = spec["networks"], {}, dict(runs)
    for column in tables["fits.csv"][0]:
        name, _, rate = column.rpartition(", lr ")
        if name in names:
            fits[name] = float(rate), np.array([float(row[column]) for row in tables["fits.csv"]])
    looks = {name: style(next(iter(runs[name].values()))[0]["activation"]) for name in names}
    counts = {name: int(next(iter(runs[name].values()))[0]["parameters"]) for name in names}
    errors = {
        n: {rate: np.array([float(r["last_error"]) for r in own]) for rate, own in runs[n].items()} for n in names
    }
    rates = sorted({rate for name in names for rate in runs[name]})
    columns = min(4, max(len(names), 2))
    rows = -(-len(names) // columns)
    figure = Figure((max(9.5, 2.6 * len(rates)), 2.3 * rows + 5.6), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(2.3 * rows, 2.7, 2.9))
    panels = top.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    x = np.array([float(row["x"]) for row in tables["fits.csv"]])
    truth = 10 * np.sin(7 * x) + 15 * np.sin(10 * x) + 5 * np.cos(5 * x)
    for panel, name in zip(panels, names):
        best, y = fits[name]
        panel.plot(x, truth, **TRUTH)
        panel.plot(x, y, color=looks[name]["color"], linewidth=1.5)
        panel.set_ylim(1.3 * truth.min(), 1.3 * truth.max())
        told = f"learning rate {best:g}, error {np.median(errors[name][best]):.3g}"
        panel.set_title(f"{name}, {counts[name]:,} parameters\n{told}")
        panel.set(xlabel="x", ylabel="y" if panel in panels[::columns] else "")
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    axes = middle.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    for panel, rate in zip(axes, rates):
        for k, name in enumerate(names):
            points = [[float(row[key]) for key in ("step", "min", "median", "max")] for row in curves[name][rate]]
            steps, low, mid, high = np.array(points).reshape(-1, 4).T
            look, kept = looks[name], low > 0
            panel.fill_between(steps[kept], low[kept], high[kept], color=look["color"], alpha=0.15, linewidth=0)
            every = (k, max(1, len(steps) // 5))
            panel.plot(steps[kept], mid[kept], **look, linewidth=1.5, markersize=4, markevery=every)
        panel.set(yscale="log", xlabel="steps (updates)", ylabel="error" if panel is axes[0] else "", xlim=(0, None))
        panel.set_title(f"learning rate {rate:g}")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_rate, by_count = bottom.subplots(1, 2, sharey=True)
    for name in names:
        kept = [rate for rate in sorted(errors[name]) if np.isfinite(errors[name][rate]).all()]
        points = np.array([_range(errors[name][rate]) for rate in kept]).reshape(-1, 3).T
        by_rate.errorbar(kept, points[1], [points[1] - points[0], points[2] - points[1]], **looks[name], capsize=3)
        low, mid, high = _range(errors[name][fits[name][0]])
        options = {**looks[name], "linestyle": "", "capsize": 3, "markersize": 7, "label": name}
        if np.isfinite(high):
            by_count.errorbar(counts[name], mid, [[mid - low], [high - mid]], **options)
    ticks = sorted({*counts.values()})
    by_rate.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="last error")
    by_count.set(xscale="log", yscale="log", xlabel="parameters (each network at its best learning rate)")
    by_count.set_xticks(ticks, [f"{count:,}" for count in ticks])
    by_count.set_xticks([], minor=True)
    by_count.set_xlim(0.8 * ticks[0], 1.25 * ticks[-1])
    handles = [Line2D([], [], **looks[name], label=name) for name in names]
    handles.append(Line2D([], [], **TRUTH, label="the function"))
    bottom.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=3.5)
    _caption(figure, *spec["caption"])
    return figure


def _regression_caption(networks: list[Fitted], title: str) -> list[str]:
    config = next(iter(networks[0].runs.values()))[0].config
    counts = sorted({len(runs) for network in networks for runs in network.runs.values()})
    data = f"{config['num_points']} points in [{config['interval'][0]:g}, {config['interval'][1]:g}]"
    seeds = f"median of n = {' or '.join(map(str, counts))} seeds (fits too), bands and bars from best to worst"
    what = f"y = 10 sin 7x + 15 sin 10x + 5 cos 5x, {data}, {config['total_steps']:,} steps of Adam"
    return [title, what, "error: mean squared, between the points; last: median of the last tenth of the steps", seeds]


def _range(values: np.ndarray) -> tuple[float, float, float]:
    return values.min(), float(np.median(values)), values.max()


def _spread(runs: list[Loaded]) -> tuple[np.ndarray, ...]:
    """Steps, and lowest, median and highest error of the seeds; a diverged one carries its last value forward."""
    steps, values = aligned(runs, "eval/mse")
    known = np.isfinite(values).any(0)
    steps = steps[known]
    values = values[:, known]
    return steps, np.nanmin(values, 0), np.nanmedian(values, 0), np.nanmax(values, 0)


def draw_table1(rows: list[dict], spec: dict) -> Figure:
    """HR's Table 1: dead share of simulated layers, with intervals, and the closed forms as lines."""
    figure, p = Figure((9.5, 3.2), layout="constrained"), np.linspace(0, 1, 101)
    formulas = {"tanh": ("p^2", p**2), "sigmoid": ("p", p), "relu": ("2p - p^2", 2 * p - p**2)}
    for panel, (name, (formula, y)) in zip(figure.subplots(1, 3, sharey=True), formulas.items()):
        panel.plot(p, p, color="0.6", linewidth=1, linestyle=":", label="p")
        panel.plot(p, y, color=style(f"{name}_hr")["color"], linewidth=1, label=formula)
        for activation in (name, f"{name}_hr"):
            own = [{k: float(v) for k, v in row.items() if k != "activation"} for row in rows]
            own = [row for row, each in zip(own, rows) if each["activation"] == activation]
            x, middle, low, high = ([row[k] for row in own] for k in ("p", "dead_share", "low", "high"))
            bars = np.array([np.subtract(middle, low), np.subtract(high, middle)])
            look = {**style(activation), "linestyle": "", "capsize": 3, "label": f"{activation}, simulated"}
            panel.errorbar(x, middle, bars, **look)
        panel.set(xlabel="p: a branch is saturated", title=name, xlim=(0, 1), ylim=(0, 1))
        panel.legend(fontsize=7)
    figure.axes[0].set_ylabel("share of dead neurons")
    _caption(figure, *spec["caption"])
    return figure


def function_approximation(run_folders: Sequence[str | Path], out: str | Path) -> None:
    """HR Figs. 2 and 12 from the runs of function_approximation.py: shallow.png and deep.png, and what they show as
    runs.csv, curves.csv, fits.csv and ratios.csv; table1.png if `out` has a table1.csv. Prints the last errors."""
    networks, out, table, curves = fitted(run_folders), Path(out), [], []
    if not any(np.isfinite(network.errors(network.best)).any() for network in networks):
        told = "every run has diverged, at every learning rate: there is no error to draw"
        raise runlog.UserError(f"--runs {Path(run_folders[0]).parent}: {told}; train with lower --learning-rates")
    shallow = [network for network in networks if len(network.widths) == 1]
    products = [network for network in shallow if re.search(r"_\d?hr|[*]", network.activation)]
    deep = [network for network in networks if len(network.widths) > 1]
    with runlog.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for network in networks:
        for rate, runs in network.runs.items():
            cell = {"activation": network.activation, "widths": " ".join(map(str, network.widths))}
            cell |= {"parameters": network.num_parameters, "learning_rate": rate}
            for run, error in zip(runs, network.errors(rate).tolist()):
                own = run.provenance()
                row = {"run": run.folder.name, **cell, "seed": run.config["seed"], "status": run.config["status"]}
                row |= {"last_error": error, "last_training_loss": run.last("losses/mse")}
                layer = f"network/mlp/fc{len(network.widths)}/"
                row |= {name: run.last(layer + name) for name in ("srank", "dead_share", "dormant_share")}
                table.append(row | {key: own[key] for key in ("elapsed_s", "git", "dirty", "cpu", "torch")})
            for step, low, middle, high in zip(*(values.tolist() for values in _spread(runs))):
                curves.append({**cell, "step": int(step), "n": len(runs), "median": middle, "min": low, "max": high})
    fits = {"x": _fit(_middle(networks[0], networks[0].best))[0]}
    fits |= {f"{n.label}, lr {n.best:g}": _fit(_middle(n, n.best))[1] for n in networks}
    rows = [
        row
        for reference in products
        for other in networks
        if other is not reference
        for row in ratios(reference, other)
    ]
    print_errors(networks)
    paths = [_write_csv(out / "runs.csv", table), _write_csv(out / "curves.csv", curves)]
    paths.append(_write_csv(out / "fits.csv", [dict(zip(fits, map(float, row))) for row in zip(*fits.values())]))
    paths += [_write_csv(out / "ratios.csv", rows)] if rows else []
    drawn = {"shallow": (shallow, "Shallow networks (HR Figs. 2, 12a)")}
    drawn["deep"] = [*products, *deep] if deep else [], "Deep networks (HR Fig. 12b)"
    for name, (members, title) in drawn.items():
        spec = {"csv": ["runs.csv", "curves.csv", "fits.csv"], "networks": [network.label for network in members]}
        told = _regression_caption(members, title) if members else []
        paths += record_figure(out, name, "regression", ("png",), caption=told, **spec) if members else []
    if (out / "table1.csv").exists():
        count = int(read_csv(out / "table1.csv")[0]["neurons"])
        told = f"Dead neurons with and without a product (HR Table 1): {count:,} neurons a point, 95 % intervals"
        paths += record_figure(out, "table1", "table1", ("png",), caption=[told])
    print(*paths, sep="\n", flush=True)


def print_errors(networks: list[Fitted]) -> None:
    """Table of the last errors: a row per network, a column per learning rate."""
    rates = sorted({rate for network in networks for rate in network.runs})
    rows = [["network", "parameters", *(f"lr {rate:g}" for rate in rates)]]
    for network in networks:
        rows.append([network.label, f"{network.num_parameters:,}"])
        for rate in rates:
            low, middle, high = _range(network.errors(rate)) if rate in network.runs else [np.nan] * 3
            rows[-1].append(f"{middle:.3g} ({low:.3g} to {high:.3g})")
    _print(rows)
    print("last error, mean squared, between the training points: median over seeds (best to worst)")


# ---- the papers' figures of reinforcement learning -------------------------------------------------------------------

SETTINGS = {  # settings that variants of one figure may differ in: what is usual, and how another is called
    "layer_norm": ((False, "none", None), "LayerNorm"),
    "rational.remove_constraint": ((False, None), "no |x/c|^d"),
    "rational.coefficient_weight_decay": ((0.0, None), "decay {}"),
    "rational.init_scale": ((1.0, None), "init {}"),
    "width": ((512, None), "width {}"),
    "redo": ((False, None), "ReDo"),
    "encoder_activation": (("relu", None), "encoder {}"),
}
PAIRED = ("learning_rate", "utd")  # these too; usual is what most runs have
SAC, DQN, PPO, PQN = "sac_continuous", "dqn_atari", "ppo_atari", "pqn_atari"
GRID = 50  # steps of a curve at most


@dataclass
class Panel:
    """What a panel shows of each run: a number at every step, then a statistic over runs and environments."""

    title: str
    unit: str
    key: str  # pattern of keys, a full match
    reduce: str = "mean"  # over the keys that match: mean, max
    score: str = ""  # "suite": success in Meta-World, return / 1,000 in DMC; "human", "baseline": HR eq. 9, 8
    statistic: str = "iqm"  # iqm, mean, median: with 95 % bootstrap intervals; std: mean of means, std over seeds
    suite: str = ""  # only environments whose id begins so
    scale: str = "linear"  # of the y axis


RETURN = r"eval/episodic_return"
CRITICS, HIDDEN = r"network/qf\d", r"network/(q|agent)/fc1"
IQM = Panel("IQM, normalised", "return / 1,000 or success", RETURN, score="suite")
SUCCESS = Panel("success, Meta-World", "share (any step)", "eval/success", suite=suites.METAWORLD.prefix)
BIAS = Panel("overestimation", "(Q - G) / max(|G|, 10)", "overestimation/normalised", statistic="mean", scale="symlog")
COEFFICIENTS = Panel(
    "coefficient gradient, critics", "L2 norm", rf"{CRITICS}/coefficient_gradient_norm", statistic="mean", scale="log"
)
LARGEST = Panel("largest output", "max |f(x)|, critics", rf"{CRITICS}/fc\d+/(branch\d+_)?f_max", "max", scale="log")
NUMERATOR, DENOMINATOR = (
    Panel(f"{name}, critics", "L2 norm of the coefficients", rf"{CRITICS}/fc\d+/(branch\d+_)?{name}_norm", scale="log")
    for name in ("numerator", "denominator")
)
DEAD = Panel("dead neurons, last hidden layer", "share", rf"{HIDDEN}/dead_share", statistic="std")
SRANK = Panel("effective rank, last hidden layer", "srank", rf"{HIDDEN}/srank", statistic="std")
BASELINE = Panel("baseline-normalised score", "HR eq. 8", r"charts/episodic_return", score="baseline", statistic="std")
HUMAN = Panel("human-normalised score", "HR eq. 9", r"charts/episodic_return", score="human", statistic="std")
MEDIAN = Panel("median human-normalised score", "HR eq. 9", RETURN, score="human", statistic="median")
STATISTICS = {
    "iqm": metrics.interquartile_mean,
    "mean": metrics.mean_of_means,
    "median": metrics.median_of_means,
    "std": metrics.mean_of_means,
}


@dataclass
class Study:
    """Finished runs of one script: (variant, environment) -> runs in the order of their seeds."""

    script: str
    cells: dict[tuple[str, str], list[Loaded]]
    missing: list[str]  # what the grid of variants, environments and seeds lacks
    settings: dict[str, dict[str, object]]  # variant: "activation", and its settings of SETTINGS, PAIRED if not usual
    usual: dict[str, float]  # values of PAIRED that variants have unless told, if runs differ
    reference: dict[str, list[Loaded]]  # environment: relu's runs, by which HR eq. 8 normalises

    @property
    def variants(self) -> list[str]:
        return list(self.settings)

    @property
    def environments(self) -> list[str]:
        return sorted({environment for _, environment in self.cells})

    def only(self, variants: Sequence[str]) -> "Study":
        """These variants, in this order. Those of which there is nothing are missing; the others' gaps are not told."""
        settings = {name: self.settings[name] for name in variants if name in self.settings}
        cells = {key: runs for key, runs in self.cells.items() if key[0] in settings}
        missing = [line for line in self.missing if line.split(" on ")[0] in variants]
        told = {line.split(" on ")[0] for line in missing} | {*settings}
        missing += [f"{name} (no run)" for name in variants if name not in told]
        return Study(self.script, cells, missing, settings, self.usual, self.reference)

    def complete(self, prefix: str = "") -> list[str]:
        """Environments whose id begins so and that every variant has."""
        have = {e: sum((v, e) in self.cells for v in self.variants) for e in self.environments}
        return [e for e, count in have.items() if count == len(self.variants) and e.startswith(prefix)]

    @property
    def counts(self) -> str:
        """What a caption tells: n, environments, diverged runs, what is missing."""
        seeds = sorted({len(runs) for runs in self.cells.values()}) or [0]
        diverged = sum(run.config["status"] == "diverged" for runs in self.cells.values() for run in runs)
        told = f"n = {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seed{'s' * (seeds[-1] > 1)} in each "
        told += f"of {len(self.environments)} environment{'s' * (len(self.environments) > 1)}"
        told += f", {diverged} diverged (last value carried forward)" if diverged else ""
        told += "".join(f"; {key.replace('_', ' ')} {value:g} if not told" for key, value in self.usual.items())
        if seeds[0] < 2 <= seeds[-1]:
            told += "; cells of one seed add nothing to the intervals"
        if self.missing:
            more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
            told += f"\nmissing: {'; '.join(self.missing[:3])}{more}"
        return told


def _shared(study: Study) -> list[str]:
    """For captions of statistics over environments: of how many, if not of all."""
    complete, every = len(study.complete()), len(study.environments)
    return [f"statistics over the {complete} of {every} environments that every variant has"] * (complete < every)


def canonical(activation: str) -> str:
    """An expression by its alias, if it has one: `tanh*tanh` is tanh_hr, `tanh+tanh` tanh_add."""
    names = activation.split("*")
    known = {expression: alias for alias, expression in activations.ALIASES.items()}
    return f"{names[0]}_hr" if len(names) == 2 and names[0] == names[1] else known.get(activation, activation)


def _flat(config: dict) -> dict[str, object]:
    """A configuration without what no run's results depend on, `rational.*` at the top level."""
    kept = {k: v for k, v in config.items() if k not in ("rational", "seed", "status", *runlog.NOT_IDENTITY)}
    if isinstance(encoder := kept.get("encoder_activation"), list):
        kept["encoder_activation"] = " ".join(encoder) or None  # none: as the last hidden layer (PQN)
    return kept | {f"rational.{k}": v for k, v in config.get("rational", {}).items()}


def read_study(folder: Path, script: str, keys: str, where: Sequence[str] = ()) -> Study:
    """The finished runs of a script in a folder, of which scalars.csv is read for keys that match a pattern.

    where: settings like "utd=10" that a run must have. Raises UserError: no run, or runs that differ in a setting which
    is no variant's own (SETTINGS, PAIRED), such as their length.
    """
    wanted = dict(item.partition("=")[::2] for item in where)
    folders = run_folders_in(folder, f"*__{script}__*")
    configs = [read_config(path) for path in folders]
    flat = [_flat(config) for config in configs]
    for key in wanted:
        if not any(key in config for config in flat):
            raise runlog.UserError(f"--where {key}: no setting of the runs of {script}.py in {folder}")
    kept = [i for i, c in enumerate(flat) if all(_same(c.get(key), value) for key, value in wanted.items())]
    if not kept:
        raise runlog.UserError(f"--runs {folder}: no run of {script}.py" + (f" with {', '.join(where)}" * bool(where)))
    ours = {*SETTINGS, *PAIRED, "activation", "env_id"}
    if found := differing([flat[i] for i in kept], [folders[i] for i in kept], ours):
        key, values = found
        raise runlog.UserError(
            f"--runs {folder}: runs of {script}.py differ in {key} ({', '.join(values)}); "
            f"choose by --where {key}={next(iter(values))} (null: not there), or move some away: {_where(values)}"
        )
    values = {key: [flat[i].get(key) for i in kept] for key in PAIRED}
    usual = {key: max(each, key=each.count) for key, each in values.items() if len({*each}) > 1}
    cells, settings, unfinished = defaultdict(dict), {}, []
    for i in kept:
        own = _own(flat[i], [*SETTINGS, *(key for key in usual if flat[i].get(key) != usual[key])], script)
        name = canonical(flat[i]["activation"])
        label = ", ".join([name, *(_told(key, value) for key, value in own.items())])
        settings[label] = {"activation": name, **own}
        cell, seed, status = (label, configs[i]["env_id"]), configs[i]["seed"], configs[i]["status"]
        run = read_run(folders[i], keys) if status in runlog.ENDED else Loaded(folders[i], configs[i], {})
        if seed in cells[cell]:
            two = f"{cells[cell][seed].folder.name} and {folders[i].name}"
            raise runlog.UserError(f"--runs {folder}: {two} are both {label}, seed {seed}; move one away")
        if status not in runlog.ENDED:
            unfinished.append((*cell, seed, status))
        else:
            cells[cell][seed] = run
    order = [*STYLES, *sorted({s["activation"] for s in settings.values()} - {*STYLES})]
    ranks = {label: (order.index(own["activation"]), len(own), label) for label, own in settings.items()}
    settings = dict(sorted(settings.items(), key=lambda item: ranks[item[0]]))
    missing = defaultdict(list)
    for label, env, seed, status in unfinished:
        missing[label, env, status].append(f"s{seed}")
    missing = [f"{label} on {env} {' '.join(names)} ({status})" for (label, env, status), names in missing.items()]
    seeds = sorted({configs[i]["seed"] for i in kept})
    for label in settings:
        for env in sorted({configs[i]["env_id"] for i in kept}):
            known = {*cells.get((label, env), ()), *(seed for *cell, seed, _ in unfinished if cell == [label, env])}
            lacking = [f"s{seed}" for seed in seeds if seed not in known]
            if lacking:
                missing.append(f"{label} on {env}" + (f" {' '.join(lacking)}" if len(lacking) < len(seeds) else ""))
    for line in missing:
        print(f"missing: {line}")
    cells = {cell: by_seed for cell, by_seed in cells.items() if by_seed}
    if not cells:
        raise runlog.UserError(f"--runs {folder}: no run of {script}.py has finished; give the training command again")
    runs = {key: [by_seed[seed] for seed in sorted(by_seed)] for key, by_seed in cells.items()}
    settings = {name: own for name, own in settings.items() if any(name == variant for variant, _ in runs)}
    reference = {env: each for (variant, env), each in runs.items() if variant == "relu"}
    return Study(script, runs, missing, settings, usual, reference)


def _try_study(runs: Path, script: str, keys: str, where: Sequence[str]) -> Study | None:
    """read_study for a figure of two algorithms: None, and a line, if there is nothing of this one."""
    try:
        return read_study(runs, script, keys, where)
    except runlog.UserError as error:
        print(f"missing: {script}: {error}")
        return None


def _chosen(study: Study, usual: Sequence[str], variants: Sequence[str]) -> Study:
    """The variants asked for, or the figure's usual ones; prints which others there are."""
    others = [name for name in study.variants if name not in (variants or usual)]
    if others:
        print(f"left out: {'; '.join(others)} (--variants names what is drawn)")
    return study.only(variants or usual)


def _own(config: dict, keys: Sequence[str], script: str) -> dict[str, object]:
    """The settings among `keys` in which a run is not as usual, or, of those without a usual value, all."""
    own = {key: config.get(key) for key in keys if key not in SETTINGS or config.get(key) not in SETTINGS[key][0]}
    if script == PQN and "layer_norm" in keys:  # there it is usual that every layer is normalised
        own.pop("layer_norm", None)
        own |= {"layer_norm": config.get("layer_norm")} if config.get("layer_norm") != "channel" else {}
    return own


def _same(value, text: str) -> bool:
    """Whether a setting is what the command line says."""
    try:
        return value == json.loads(text)
    except ValueError:
        return str(value) == text


def _told(key: str, value) -> str:
    if key == "layer_norm" and value not in (True, "channel"):
        return f"layer norm {value}"  # chw, or PQN's none
    named = f"{key.removeprefix('rational.').replace('_', ' ')} {{}}"
    return SETTINGS.get(key, ("", named))[1].format(f"{value:g}" if isinstance(value, float) else value)


def combined(run: Loaded, pattern: str, reduce: str = "mean") -> np.ndarray:
    """(rows, 2) of step and the mean or maximum over the keys that match, where all of them have a finite value."""
    series = [run.series(key) for key in sorted(run.scalars) if re.fullmatch(pattern, key)]
    if not series:
        return np.zeros((0, 2))
    if len(series) == 1:
        return series[0][:, :2]
    steps = sorted(set.intersection(*({*each[:, 0]} for each in series)))
    values = [each[np.isin(each[:, 0], steps), 1] for each in series]
    return np.stack([steps, getattr(np, reduce)(values, axis=0)], -1)


def on_grid(rows: np.ndarray, grid: np.ndarray, window: float = 0.0) -> np.ndarray:
    """Values of (rows, 2) of step and value at the steps of a grid, from rows at or before each: the last one, or with
    a window the mean of those in (g - window, g], else the last one. NaN before the first row. Never looks ahead."""
    if not len(rows):
        return np.full(len(grid), np.nan)
    steps, values = rows.T
    end = np.searchsorted(steps, grid, side="right")
    last = np.where(end > 0, values[np.maximum(end - 1, 0)], np.nan)
    if not window:
        return last
    start = np.searchsorted(steps, grid - window, side="right")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.where(end > start, (sums[end] - sums[start]) / np.maximum(end - start, 1), last)


def grid_of(runs: Sequence[Loaded], pattern: str) -> np.ndarray:
    """A step grid for the curves of all these runs: their own steps if these are few, else GRID even ones."""
    steps = np.unique(np.concatenate([combined(run, pattern)[:, 0] for run in runs]))
    return steps if len(steps) <= GRID else np.linspace(0, steps[-1], GRID + 1)[1:]


def curves(study: Study, panel: Panel) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """The grid, and (variant, environment) -> values (steps, runs) of a panel, normalised as it says, of the runs that
    have it. Returns of training games are means over windows of a fortieth of the longest run (HR's are smoothed)."""
    suite = panel.score == "suite"
    runs = {key: each for key, each in study.cells.items() if key[1].startswith(panel.suite)}
    for env in sorted({env for _, env in runs if _unscored(panel, env)}):
        print(f"left out: {env} has no score for {panel.title}")
    runs = {key: each for key, each in runs.items() if not _unscored(panel, key[1])}
    every = [run for each in runs.values() for run in each]
    grid = grid_of(every, suites.score_keys() if suite else panel.key) if every else np.zeros(0)
    window = grid[-1] / 40 if panel.key.startswith("charts/") and len(grid) else 0.0

    def values(each: list[Loaded], env: str) -> np.ndarray:
        """(steps, runs), NaN for a run without a row."""
        rows = [on_grid(_points(run, panel, env), grid, window) for run in each]
        scores = np.stack(rows, -1) if rows else np.zeros((len(grid), 0))
        return scores / (suites.suite_of(env).score_scale if suite else 1)

    found = {}
    for (variant, env), each in runs.items():
        scores = values(each, env)
        if panel.score == "human":
            scores = metrics.human_normalised(scores, env)
        if panel.score == "baseline":
            relu = values(study.reference.get(env, []), env)
            ends = (np.nanmin(relu), np.nanmax(relu)) if np.isfinite(relu).any() else (np.nan, np.nan)
            scores = metrics.baseline_normalised(scores, *ends)
        kept = []
        for k, run in enumerate(each):
            has_rows = len(_points(run, panel, env)) > 0
            if not has_rows and run.has_diverged and panel.score:
                scores[:, k] = 0.0  # a suite's lowest score, random play, or relu's lowest
            if has_rows or (run.has_diverged and panel.score):
                kept.append(k)
        if kept and len(grid):
            found[variant, env] = scores[:, kept]
    return grid, found


def _points(run: Loaded, panel: Panel, env: str) -> np.ndarray:
    """(rows, 2) of step and value of what a panel shows of a run; not normalised."""
    key = suites.suite_of(env).score_key if panel.score == "suite" else panel.key
    return combined(run, key, panel.reduce)


def _early(study: Study, panels: Sequence[Panel]) -> list[str]:
    """For captions: which runs diverged before they logged what a panel shows, and what became of them."""
    found = defaultdict(list)  # which runs: panels
    for panel in panels:
        counts = defaultdict(lambda: [0, 0, 0])  # variant: such runs, runs with rows, all runs
        for (variant, env), runs in study.cells.items():
            if not env.startswith(panel.suite) or _unscored(panel, env):
                continue
            for run in runs:
                has_rows = len(_points(run, panel, env)) > 0
                counts[variant][0] += run.has_diverged and not has_rows
                counts[variant][1] += has_rows
                counts[variant][2] += 1
        logged = any(with_rows for _, with_rows, _ in counts.values())
        told = []
        for variant, (early, with_rows, number) in counts.items():
            if early and (with_rows or (panel.score and logged)):  # others: never logged, such as gradients of relu
                told.append(f"{variant} {early} of {number}")
        if told:
            found[", ".join(told), bool(panel.score)].append(panel.title)
    lines = []
    for (runs, is_score), titles in found.items():
        what = f"count as 0 in {', '.join(titles)}" if is_score else f"are left out of {', '.join(titles)}"
        lines.append(f"runs that diverged before the first value {what}: {runs}")
    return lines


def _unscored(panel: Panel, env: str) -> bool:
    """Whether an environment has no normalised score: not of the two suites, tasks in a row, not of the 57 games."""
    if panel.score == "suite":
        return "," in env or suites.suite_of(env) is None
    return panel.score == "human" and env not in metrics.atari_scores()


def aggregate(study: Study, panel: Panel) -> dict[str, dict[str, np.ndarray | int]]:
    """variant -> step, value, low, high (steps,), environments and runs behind them: statistic over the environments
    that every variant with this quantity has, at the steps where all its runs have a value."""
    grid, found = curves(study, panel)
    having = {variant for variant, _ in found}
    shared = [env for env in study.complete(panel.suite) if all((variant, env) in found for variant in having)]
    shared = [env for env in shared if all(np.isfinite(found[v, env]).any() for v in having)]
    for env in sorted({env for _, env in found} & {*study.complete(panel.suite)} - {*shared}):
        without = [variant for variant in having if (variant, env) not in found]
        print(f"left out: {env} of {panel.title}, since {', '.join(sorted(without))} logged nothing of it")
    result = {}
    for variant in (variant for variant in study.variants if variant in having and shared):
        strata = [found[variant, env] for env in shared]
        known = np.all([np.isfinite(each).all(-1) for each in strata], axis=0)
        strata = [each[known] for each in strata]
        if not known.any():
            continue
        value = STATISTICS[panel.statistic](strata)
        if panel.statistic == "std":  # over seeds, of the mean over environments; nothing if seeds differ in number
            equal = len({each.shape[-1] for each in strata}) == 1 and strata[0].shape[-1] > 1
            half = np.mean(strata, axis=0).std(-1) if equal else np.full(len(value), np.nan)
            low, high = value - half, value + half
        else:
            low, high = metrics.stratified_bootstrap(strata, STATISTICS[panel.statistic], repetitions=1_000)
        number = sum(each.shape[-1] for each in strata)
        result[variant] = {"step": grid[known], "value": value, "low": low, "high": high}
        result[variant] |= {"environments": len(shared), "runs": number}
    return result


def _curve(panel, name: str, look: dict, step, value, low, high) -> None:
    panel.fill_between(step, low, high, color=look["color"], alpha=0.13, linewidth=0)
    every = max(1, len(step) // 6)
    panel.plot(step, value, **look, label=name, linewidth=1.6, markersize=4.5, markevery=every)


def _scale(panel, kind: str, values: np.ndarray) -> None:
    """A logarithmic axis where it is asked for and possible; symlog beyond 10."""
    values = values[np.isfinite(values)]
    if kind == "log" and (values > 0).all() and values.size:
        panel.set_yscale("log")
    if kind == "symlog" and values.size and np.abs(values).max() > 10:
        panel.set_yscale("symlog", linthresh=1.0)


BANDS = {
    "iqm": "IQM over runs, 95 % stratified bootstrap",
    "mean": "mean over environments, 95 % stratified bootstrap",
    "median": "median over games of means over seeds, 95 % stratified bootstrap",
    "std": "mean over environments, band: std over seeds of it",
}


def looks(variants: Sequence[str]) -> dict[str, dict]:
    """variant -> style: its activation's colour; further variants of one activation have other lines and markers."""
    found, seen = {}, defaultdict(int)
    for name in variants:
        activation = name.split(", ")[0]
        k = seen[activation]
        found[name] = style(activation)
        if k:
            look = {"linestyle": (":", "--", "-.", "-")[k % 4], "marker": "*>phdX"[k % 7 - 1]}
            found[name] |= look | {"markerfacecolor": "white"}
        seen[activation] += 1
    return found


def curve_rows(study: Study, panels: Sequence[Panel]) -> list[dict]:
    """Points of `draw_curves`: one curve per variant in every panel that some run has data for."""
    rows = []
    for panel in panels:
        for name, curve in aggregate(study, panel).items():
            own = {"panel": panel.title, "unit": panel.unit, "statistic": panel.statistic, "variant": name}
            own |= {"environments": curve["environments"], "runs": curve["runs"]}
            points = zip(*(curve[key].tolist() for key in ("step", "value", "low", "high")))
            rows += [own | dict(zip(("step", "value", "low", "high"), point)) for point in points]
    return rows


def draw_curves(rows: list[dict], spec: dict) -> Figure:
    """Rows of curve_rows; spec: variants in their order, caption, scales of panels (title -> log, symlog)."""
    titles, own = list(dict.fromkeys(row["panel"] for row in rows)), looks(spec["variants"])
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure((max(3.5 * columns, 6.5), 2.9 * lines + 1.1), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for each, title in zip(axes, titles):
        mine = [row for row in rows if row["panel"] == title]
        for name in (name for name in own if any(row["variant"] == name for row in mine)):
            _curve(each, name, own[name], *_columns(mine, ("variant", name), "step", "value", "low", "high"))
        _scale(each, spec["scales"].get(title, "linear"), np.array([row["value"] for row in mine]))
        each.set_title(title, loc="left", fontweight="bold")
        each.set(xlabel="environment steps", ylabel=mine[0]["unit"], xlim=(0, None))
        each.xaxis.set_major_formatter(EngFormatter(sep=""))
    for each in axes[len(titles) :]:
        each.remove()
    drawn = {row["variant"] for row in rows}
    _legend(figure, [Line2D([], [], **look, label=name) for name, look in own.items() if name in drawn])
    _caption(figure, *spec["caption"], "; ".join(dict.fromkeys(BANDS[row["statistic"]] for row in rows)))
    return figure


def _columns(rows: list[dict], where: tuple[str, str], *names: str) -> list[np.ndarray]:
    return [np.array([row[name] for row in rows if row[where[0]] == where[1]], dtype=float) for name in names]


def environment_rows(study: Study, panels: Sequence[Panel], environments: Sequence[str]) -> list[dict]:
    """Points of `draw_environments`: mean over seeds and standard deviation (ddof 1; NaN for one seed)."""
    rows = []
    for panel in panels:
        grid, found = curves(study, panel)
        for env in environments:
            for name in (name for name in study.variants if (name, env) in found):
                values = found[name, env]
                known = np.isfinite(values).all(-1)
                std = values[known].std(-1, ddof=1) if values.shape[-1] > 1 else np.full(known.sum(), np.nan)
                own = {"environment": env, "panel": panel.title, "unit": panel.unit, "variant": name}
                points = zip(grid[known].tolist(), values[known].mean(-1).tolist(), std.tolist())
                rows += [own | {"n": values.shape[-1], "step": x, "mean": m, "std": s} for x, m, s in points]
    return rows


def draw_environments(rows: list[dict], spec: dict) -> Figure:
    """Rows of environment_rows: a panel per environment of one quantity, or a row of panels each of several."""
    titles, own = list(dict.fromkeys(row["panel"] for row in rows)), looks(spec["variants"])
    cells = [(env, title) for env in sorted({row["environment"] for row in rows}) for title in titles]
    columns = len(titles) if len(titles) > 1 else min(4, len(cells))
    lines = -(-len(cells) // columns)
    figure = Figure((max(3.1 * columns, 6.5), 2.3 * lines + 1.2), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for each, (env, title) in zip(axes, cells):
        mine = [row for row in rows if (row["environment"], row["panel"]) == (env, title)]
        for name in (name for name in own if any(row["variant"] == name for row in mine)):
            step, mean, std = _columns(mine, ("variant", name), "step", "mean", "std")
            low = mean - std
            if spec["scales"].get(title) == "log":
                low[low <= 0] = np.nan  # no band there, rather than one down to the floor
            _curve(each, name, own[name], step, mean, low, mean + std)
        short = env.rpartition("/")[2].removesuffix("-v0")
        each.set_title(short if len(titles) == 1 else f"{short}: {title}", fontsize=8)
        each.set(xlabel="environment steps", xlim=(0, None))
        each.xaxis.set_major_formatter(EngFormatter(sep=""))
        if mine:
            _scale(each, spec["scales"].get(title, "linear"), np.array([row["mean"] for row in mine]))
            each.set_ylabel(mine[0]["unit"] if each in axes[::columns] or len(titles) > 1 else "")
        else:
            _tell(each, "no data", color="0.4")
            each.set(xticks=[], yticks=[], xlabel="")
    for each in axes[len(cells) :]:
        each.remove()
    _legend(figure, [Line2D([], [], **look, label=name) for name, look in own.items()])
    _caption(figure, *spec["caption"], "mean over seeds, band: standard deviation")
    return figure


def draw_intervals(rows: list[dict], spec: dict) -> Figure:
    """Values with their intervals: a panel per group, a line per variant."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    own = looks(spec["variants"])
    figure = Figure((max(3.0 * len(groups), 6.5), 0.35 * len(own) + 2), layout="constrained")
    drawn = [name for name in own if any(row["variant"] == name for row in rows)]
    for panel, name in zip(figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups):
        mine = [row for row in rows if row["group"] == name]
        for row in mine:
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            bar, look = np.nan_to_num([[value - low], [high - value]]), own[row["variant"]] | {"linestyle": ""}
            panel.errorbar(value, drawn.index(row["variant"]), xerr=bar, **look, capsize=3, markersize=7)
        panel.set_yticks(range(len(drawn)), [name.replace("$", r"\$") for name in drawn])
        panel.set_ylim(len(drawn) - 0.5, -0.5)
        counts = sorted({int(row["runs"]) for row in mine})
        told = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        panel.set_title(f"{name}\n(environments: {mine[0]['environments']}, runs: {told} each)", fontsize=8)
        panel.set_xlabel(spec["unit"])
    _caption(figure, *spec["caption"])
    return figure


def draw_parts(rows: list[dict], spec: dict) -> Figure:
    """HR Fig. 4: parts of Q, a panel per game and variant."""
    cells = list(dict.fromkeys((row["environment"], row["variant"]) for row in rows))
    columns = min(4, len(cells))
    lines = -(-len(cells) // columns)
    figure = Figure((max(3.2 * columns, 6.5), 2.6 * lines + 1.1), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, cell in zip(axes, cells):
        mine = [row for row in rows if (row["environment"], row["variant"]) == cell]
        for part, look in PARTS.items():
            step, mean, std = _columns(mine, ("part", part), "step", "mean", "std")
            _curve(panel, part, look, step, mean, mean - std, mean + std)
        panel.set_title(f"{cell[0]}, {cell[1]} (n = {mine[0]['n']})")
        panel.set(xlabel="environment steps", ylabel="mean part of Q" if panel in axes[::columns] else "")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    for panel in axes[len(cells) :]:
        panel.remove()
    _legend(figure, axes[0].get_legend_handles_labels()[0])
    _caption(figure, *spec["caption"])
    return figure


NUMBERS = {"step", "value", "low", "high", "mean", "std"}  # columns of CSVs that are drawn


def _file_name(name: str, taken: set[str]) -> str:
    """A figure's name, made of a run's settings, as a file of the folder: odd characters become -, as in run folders'
    names; no second figure gets the name of one in `taken`, which learns it."""
    plain = re.sub("[^A-Za-z0-9.,=_-]", "-", name)[:120]
    found = plain
    number = 1
    while found in taken:
        number += 1
        found = f"{plain}-{number}"
    taken.add(found)
    return found


def write_figure(out: Path, name: str, kind: str, rows: list[dict], kinds=("png", "pdf"), **spec) -> list[Path]:
    """name.csv in `out`, and name.png and name.pdf (`kinds`) drawn from it; figures.json there learns how. Without
    rows: nothing, and a line that says so."""
    if not rows:
        print(f"{name}: no data for it in these runs, not drawn")
        return []
    csv_path = _write_csv(Path(out) / f"{name}.csv", rows)
    return [csv_path, *record_figure(out, name, kind, kinds, **spec)]


def record_figure(out: Path, name: str, kind: str, kinds: Sequence[str] = ("png", "pdf"), **spec) -> list[Path]:
    """Tell figures.json in `out` how `name` is drawn, from name.csv or, with csv=[...], from these files there; and
    draw it."""
    index = Path(out) / "figures.json"
    known = read_index(index.parent) if index.exists() else {}
    known[name] = {"kind": kind, **spec}
    with runlog.writing(index):
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
    return redraw(Path(out), name, kinds)


def read_index(folder: Path) -> dict[str, dict]:
    """figures.json of a folder: figure -> its kind and what it is drawn with. Raises UserError: none, or broken."""
    path = folder / "figures.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        problems = []
        for name, spec in index.items():
            problems += _problems(name, spec)
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        problems = ["is no index of figures"]
    if problems:
        raise runlog.UserError(f"{path}: {problems[0]}; write it anew by the figure's own command")
    return index


SPEC = {  # key of an entry of figures.json: its kind, and that of its items or values
    "caption": (list, str),
    "csv": (list, str),
    "variants": (list, str),
    "activations": (list, str),
    "networks": (list, str),
    "lines": (list, str),
    "scales": (dict, str),
    "panels": (dict, str),
    "study": (str, str),
    "unit": (str, str),
}


def _problems(name: str, spec: dict) -> list[str]:
    """What is wrong with an entry of figures.json: its kind, the kinds of its values, a file outside the folder."""
    if spec["kind"] not in DRAWERS:
        return [f"{name} is of an unknown kind"]
    found = []
    for key, (kind, of) in SPEC.items():
        value = spec.get(key, kind())
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(item, of) for item in items):
            found.append(f"{name}: its {key} is not {'a text' if kind is str else f'a {kind.__name__} of texts'}")
    if not found and not all(_is_plain(file) for file in (name, *spec.get("csv", ()))):
        found.append(f"{name} or a file of its csv is no plain file name, but would lie in another folder")
    return found


def _is_plain(name: str) -> bool:
    """Whether a file of this name lies in the folder to which it is joined."""
    return bool(name) and not re.search(r"[/\\\x00]", name) and name not in (".", "..")


def read_csv(path: Path) -> list[dict]:
    """Rows of a figure's CSV, the columns NUMBERS as floats. Raises UserError: missing, empty or broken."""
    remedy = "restore it, or write it anew by the figure's own command"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        for row in rows:
            if None in row or None in row.values():
                raise ValueError("a row is longer or shorter than the header")
            row.update({name: float(row[name]) for name in NUMBERS & {*row}})
    except OSError as error:
        raise runlog.UserError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, csv.Error) as error:
        raise runlog.UserError(f"{path}: is broken ({error}); {remedy}") from None
    if not rows:
        raise runlog.UserError(f"{path}: has no rows; {remedy}")
    return rows


def figure_of(folder: Path, name: str) -> Figure:
    """A figure of a folder from its CSV and its entry in figures.json. An entry with "csv": [...] is drawn from these
    files, as a dict of their rows. Raises UserError: a file is missing or broken, or lacks what is drawn."""
    spec = read_index(folder)[name]
    files = spec.get("csv", [f"{name}.csv"])
    tables = {file: read_csv(folder / file) for file in files}
    try:
        with matplotlib.rc_context(RC):
            return DRAWERS[spec["kind"]](tables if "csv" in spec else tables[files[0]], spec)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        lacks = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be drawn ({reason})"
        told = f"{name} {lacks}; write it anew by the figure's own command"
        raise runlog.UserError(f"{', '.join(str(folder / file) for file in files)}: {told}") from error


def redraw(folder: Path, name: str, kinds: Sequence[str] = ("png",)) -> list[Path]:
    """Write figure_of as files of these kinds beside its CSV."""
    figure = figure_of(folder, name)
    paths = [_save(figure, folder / f"{name}.{kind}") for kind in kinds]
    for path in paths:
        _fewer_colours(path)
    return paths


def _fewer_colours(path: Path) -> None:
    """Pictures are committed: 256 colours take a third of the bytes and look the same."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def redraw_all(folders: Sequence[Path]) -> list[Path]:
    """Draw as PNG every figure that a figures.json in these folders, or below, knows. Raises UserError: none there."""
    paths = []
    for folder in folders:
        found = sorted(Path(folder).rglob("figures.json"))
        if not found:
            raise runlog.UserError(f"{folder}: no figures.json in it or below; give folders of drawn figures")
        paths += [path for index in found for name in read_index(index.parent) for path in redraw(index.parent, name)]
    return paths


def _curves(study: Study, panels: Sequence[Panel], out: Path, name: str, title: str) -> list[Path]:
    spec = {"variants": study.variants, "scales": {panel.title: panel.scale for panel in panels}}
    rows = curve_rows(study, panels)
    caption = [title, study.counts, *_shared(study), *_early(study, panels)]
    if any(panel.key.startswith("charts/") for panel in panels):
        caption.append("returns of training games: means over the last fortieth of the steps")
    for panel in panels if rows else ():
        if panel.title not in {row["panel"] for row in rows}:
            print(f"{name}: nothing to draw for {panel.title}")
    return write_figure(out, name, "curves", rows, caption=caption, **spec)


def _environments(study: Study, panels: Sequence[Panel], out: Path, name: str, title: str, environments) -> list[Path]:
    rows = environment_rows(study, panels, environments)
    spec = {"variants": study.variants, "scales": {panel.title: panel.scale for panel in panels}}
    caption = [title, study.counts, *_early(study, panels)]
    return write_figure(out, name, "environments", rows, caption=caption, **spec)


def _keys(*panels: Panel) -> str:
    scores = "|" + suites.score_keys()
    return "|".join(dict.fromkeys(f"(?:{p.key})" + (scores if p.score == "suite" else "") for p in panels))


def _plain(study: Study) -> list[str]:
    """Variants without a setting of their own."""
    return [name for name, own in study.settings.items() if not {*own} - {"activation"}]


CR_VARIANTS = ("relu", "rational", "crational")
HR_VARIANTS = ("relu", "tanh", "sigmoid", "tanh_hr", "relu_hr", "crelu", "relu, ReDo")  # of PQN


def cr1(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """CR Fig. 1: IQM at the end of training, over Meta-World (success), DMC (return / 1,000) and both."""
    study, rows = _chosen(read_study(runs, SAC, _keys(IQM), where), CR_VARIANTS, variants), []
    groups = {suite.title: suite.prefix for suite in suites.SUITES} | {"all": ""}
    for title, prefix in groups.items():
        for name, curve in aggregate(study, dataclasses.replace(IQM, suite=prefix)).items():
            ends = {key: float(curve[key][-1]) for key in ("value", "low", "high", "step")}
            own = {"environments": curve["environments"], "runs": curve["runs"]}
            rows.append({"group": title, "variant": name, **ends, **own})
    return _final(study, rows, out, "cr1", "CR Fig. 1: IQM at the end of training", IQM)


def _final(study: Study, rows: list[dict], out: Path, name: str, title: str, panel: Panel) -> list[Path]:
    told = f", step {rows[0]['step']:,.0f}; 95 % stratified bootstrap" if rows else ""
    caption = [title + told, study.counts, *_shared(study), *_early(study, [panel])]
    spec = {"variants": study.variants, "unit": panel.unit, "caption": caption}
    return write_figure(out, name, "intervals", rows, **spec)


def cr_curves(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """CR's curves: IQM, success, overestimation, gradients of the coefficients, their growth; and per environment."""
    panels = [IQM, SUCCESS, BIAS, COEFFICIENTS, NUMERATOR, DENOMINATOR, LARGEST]
    study = _chosen(read_study(runs, SAC, _keys(*panels), where), CR_VARIANTS, variants)
    paths = _curves(study, panels, out, "cr_curves", "CR: SAC over training")
    return paths + _each_environment(study, out, "cr_curves_environments", "CR: SAC, each environment")


def _each_environment(study: Study, out: Path, name: str, title: str) -> list[Path]:
    """Return, overestimation, coefficients' gradient and largest output, five environments to a page."""
    panels, paths = [Panel("return", "evaluation return", RETURN), BIAS, COEFFICIENTS, LARGEST], []
    for k in range(-(-len(study.environments) // 5)):
        part = study.environments[5 * k : 5 * k + 5]
        page = name + (f"_{k + 1}" if len(study.environments) > 5 else "")
        paths += _environments(study, panels, out, page, title, part)
    return paths


def cr_ablations(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """CR's ablations: LayerNorm, decay and initial scale of the coefficients, without |x/c|^d, UTD; pre-activations."""
    panels = [IQM, SUCCESS, BIAS, COEFFICIENTS, LARGEST]
    study = read_study(runs, SAC, _keys(*panels), where)
    paths = []
    taken = set()
    study = study.only(variants) if variants else study
    groups = {
        "layer_norm": "layer_norm",
        "weight_decay": "rational.coefficient_weight_decay",
        "init": "rational.init_scale",
        "constraint": "rational.remove_constraint",
    }
    for name, setting in groups.items():
        members = [v for v, own in study.settings.items() if not {*own} - {"activation", setting}]
        varied = {study.settings[v]["activation"] for v in members if setting in study.settings[v]}
        varied |= {"rational"} if name == "constraint" and varied else set()
        members = [v for v in members if study.settings[v]["activation"] in varied]
        title = f"CR ablation: {name.replace('_', ' ')}"
        paths += _curves(study.only(members), panels, out, f"cr_ablations_{name}", title) if varied else _none(name)
    plain = study.only([v for v, own in study.settings.items() if not {*own} - {"activation", "utd"}])
    varied = "utd" in study.usual
    paths += _curves(plain, panels, out, "cr_ablations_utd", "CR ablation: UTD") if varied else _none("utd")
    paths += _each_environment(study, out, "cr_ablations_environments", "CR ablations: each environment")
    for env in study.environments:
        cells = [study.cells[v, env] for v in _plain(study) if (v, env) in study.cells]
        folders = [run.folder for each in cells for run in each]
        name = _file_name(f"cr_ablations_preactivations-{env.rpartition('/')[2]}", taken)
        if folders and any((folder / "histograms.jsonl").exists() for folder in folders):
            paths += write_preactivations(folders, Path(out), name)
    return paths


def _none(name: str) -> list[Path]:
    print(f"cr_ablations_{name}: no runs vary it, not drawn")
    return []


def cr_atari(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """CR, Atari: score, mean Q and the coefficients' gradient of DQN and PQN; is anything unstable?"""
    panels = [
        dataclasses.replace(HUMAN, statistic="mean"),
        Panel("mean Q on the batch", "clipped return", "losses/q_mean", statistic="mean", scale="symlog"),
        Panel("gradient of Q's coefficients", "L2 norm", "network/q/coefficient_gradient_norm", statistic="mean"),
    ]
    paths = []
    for script in (DQN, PQN):
        if (study := _try_study(runs, script, _keys(*panels), where)) is not None:
            own = {v: {*s} - {"activation", "encoder_activation"} for v, s in study.settings.items()}
            study = study.only([v for v in own if not own[v] and v.split(", ")[0] in ("relu", "rational", "crational")])
            study = study.only(variants) if variants else study
            title = f"CR, Atari: {script.removesuffix('_atari').upper()}"
            paths += _curves(study, panels, out, f"cr_atari_{script[:3]}", title)
    if not paths:
        raise runlog.UserError(f"--runs {runs}: no finished runs of {DQN}.py or {PQN}.py with relu or a rational")
    return paths


def hr1(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """HR Figs. 1 and 9: median over games of the human-normalised score, PQN's evaluation games (greedy)."""
    study = _chosen(read_study(runs, PQN, _keys(MEDIAN), where), HR_VARIANTS, variants)
    title = "HR Figs. 1, 9: PQN, median human-normalised score"
    ends = {row["variant"]: row | {"group": "at the end"} for row in curve_rows(study, [MEDIAN])}
    paths = _curves(study, [MEDIAN], out, "hr1", title)
    return paths + _final(study, list(ends.values()), out, "hr1_final", title, MEDIAN)


HR_DQN = {  # figure: (variants, panels)
    "hr7": (["relu", "rational", "tanh", "sigmoid", "tanh_hr"], [DEAD, SRANK, BASELINE]),
    "hr8a": (["relu", "rational", "selu", "tanh", "tanh_hr"], [BASELINE]),
    "hr8b": (
        ["tanh_hr", "tanh_add", "tanh_2hr", "tanh, LayerNorm", "tanh, width 1024, learning rate 5e-05", "tanh"],
        [BASELINE],
    ),
    "hr13": (
        ["tanh", "tanh, width 1024", "tanh, width 1024, learning rate 5e-05", "tanh_hr"],
        [BASELINE, DEAD, SRANK],
    ),
    "hr14": (["tanh", "tanh_hr", "sigmoid", "sigmoid_hr", "relu", "relu_hr"], [DEAD]),
    "hr15": (["relu", "relu_hr"], [BASELINE, DEAD, SRANK]),
}


def hr7(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """HR Figs. 7, 8a-b, 13 to 15 and Table 2: DQN's dead neurons, effective rank and baseline-normalised score."""
    study, paths = read_study(runs, DQN, _keys(DEAD, SRANK, BASELINE), where), []
    for name, (wanted, panels) in HR_DQN.items():
        wanted = variants if variants and name == "hr7" else wanted
        if sum(variant in study.variants for variant in wanted) < 2:
            print(f"{name}: fewer than two of {'; '.join(wanted)} in these runs, not drawn")
            continue
        paths += _curves(study.only(wanted), panels, out, name, f"HR {name[2:]}: DQN")
    rows = dead_table(study)
    if rows:
        paths.append(_write_csv(Path(out) / "hr_table2.csv", rows))
        _print(
            [list(rows[0]), *([f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]
        )
    return paths


def dead_table(study: Study) -> list[dict]:
    """HR Table 2: dead share averaged over training, seeds and games, of an activation without and with its product,
    over the games that both have."""
    _, found = curves(study, DEAD)
    rows = []
    for base in ("tanh", "sigmoid", "relu"):
        games = [env for env in study.environments if all((v, env) in found for v in (base, f"{base}_hr"))]
        if games:
            without, with_hr = (np.mean([np.nanmean(found[v, env]) for env in games]) for v in (base, f"{base}_hr"))
            row = {"activation": base, "games": len(games), "without HR": float(without), "with HR": float(with_hr)}
            row["seeds"] = min(found[v, env].shape[-1] for env in games for v in (base, f"{base}_hr"))
            rows.append(row | {"change": float(with_hr / without - 1) if without else float("nan")})
    return rows


def hr8(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """HR Figs. 8c-d and 16 to 18: PPO's score and effective rank; human-normalised; DQN and PPO game by game."""
    paths, raw = [], Panel("return of training games", "raw score", "charts/episodic_return")
    for script, game_by_game in ((PPO, "hr18"), (DQN, "hr17")):
        name = script.removesuffix("_atari").upper()
        if (study := _try_study(runs, script, _keys(BASELINE, SRANK), where)) is None:
            continue
        plain = study.only(variants or _plain(study))
        if script == PPO:
            paths += _curves(plain, [BASELINE, SRANK], out, "hr8cd", "HR Fig. 8c-d: PPO")
        paths += _curves(plain, [HUMAN], out, f"hr16_{script[:3]}", f"HR Fig. 16: {name}")
        title = f"HR Fig. {game_by_game[2:]}: {name}, each game"
        paths += _environments(plain, [raw], out, game_by_game, title, plain.environments)
    if not paths:
        raise runlog.UserError(f"--runs {runs}: no finished runs of {PPO}.py or {DQN}.py with something to draw")
    return paths


def hr19(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """HR Figs. 19 to 25: PQN's curves game by game, eight games to a page (51 games are seven pages)."""
    panel, paths = Panel("return", "evaluation return", RETURN), []
    study = _chosen(read_study(runs, PQN, _keys(panel), where), HR_VARIANTS, variants)
    for k in range(-(-len(study.environments) // 8)):
        games = study.environments[8 * k : 8 * k + 8]
        paths += _environments(study, [panel], out, f"hr{19 + k}", f"HR Fig. {19 + k}: PQN, each game", games)
    return paths


def hr3(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """HR Figs. 3, 6, 10 and 11: densities of 16 neurons of DQN's last hidden layer, dead ones outlined, branches and
    product; of the lowest seed of each game and activation."""
    study = read_study(runs, DQN, "-", where)
    paths = []
    taken = set()
    study = study.only(variants) if variants else study
    for (variant, env), (run, *_) in study.cells.items():
        rows, found = [], read_rows(run.folder, "curves.jsonl", r"(?:branch\d+_)?kde")
        last = max((layer for layer, _ in found), key=_depth, default="")
        for key, lines in (
            (key, lines) for (layer, _), parts in found.items() for key, lines in parts.items() if layer == last
        ):
            part, _, neuron = key.rpartition("kde")
            own = {"step": lines[-1]["step"], "part": part.rstrip("_") or "output", "neuron": neuron.strip("_")}
            own |= {"dead": int(bool(lines[-1].get("dead")))}
            rows += [own | {"x": float(x), "density": float(y)} for x, y in zip(lines[-1]["x"], lines[-1]["y"])]
        name = _file_name(f"hr3-{env}-{re.sub('[^A-Za-z0-9_.]+', '-', variant)}", taken)
        ended = " (diverged)" if run.has_diverged else ""
        told = [f"Densities of 16 neurons of {last}: {env}, {variant}, seed {run.config['seed']}{ended}"]
        paths += write_figure(out, name, "densities", rows, caption=told)
    return paths


def draw_densities(rows: list[dict], spec: dict) -> Figure:
    """Rows of hr3: a grid of neurons for every part (branches, output)."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    parts.sort(key=lambda part: (part == "output", part))
    figure, places = _kde_figure((1, len(parts)), 2 if len(parts) > 1 else 3)  # a narrow one breaks its title
    for place, part in zip(places[0], parts):
        neurons = defaultdict(lambda: defaultdict(list))
        for row in (row for row in rows if row["part"] == part):
            neuron = neurons[row["neuron"]]
            neuron["x"].append(float(row["x"]))
            neuron["y"].append(float(row["density"]))
            neuron["dead"] = row["dead"] in (1, "1")
        _kde_grid(place, part, list(neurons.values())[:16])
    told = f"step {float(rows[0]['step']):,.0f}; outlined: dead (peak above 20)"
    _caption(figure, *spec["caption"], told, y=1 - 0.06 / figure.get_figheight())
    return figure


PARTS = {  # of Q
    "live": {"color": GREEN, "linestyle": "-", "marker": "."},
    "dead": {"color": RED, "linestyle": "--", "marker": "."},
    "bias": {"color": GREY, "linestyle": ":", "marker": "."},
}


def hr4(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """HR Fig. 4: what live neurons, dead neurons and the bias give to DQN's Q, over training (runs with --analyse)."""
    study, rows = read_study(runs, DQN, "q_split/(live|dead|bias)", where), []
    study = study.only(variants) if variants else study
    for (variant, env), each in study.cells.items():
        for run in each:
            if not run.scalars:
                why = "diverged before it was analysed" if run.has_diverged else "trained without --analyse"
                print(f"missing: {variant} on {env} s{run.config['seed']} ({why})")
        each = [run for run in each if run.scalars]
        for part in PARTS if each else ():
            grid = grid_of(each, "q_split/(live|dead|bias)")
            values = np.stack([on_grid(combined(run, f"q_split/{part}"), grid) for run in each], -1)
            std = values.std(-1) if len(each) > 1 else np.full(len(grid), np.nan)
            own = {"environment": env, "variant": variant, "part": part, "n": len(each)}
            points = zip(*(column.tolist() for column in (grid, values.mean(-1), std)))
            rows += [own | dict(zip(("step", "mean", "std"), point)) for point in points]
    told = "mean over observations and actions, then seeds; band: std over seeds"
    return write_figure(
        out, "hr4", "parts", rows, caption=["HR Fig. 4: parts of Q, DQN's last hidden layer", study.counts, told]
    )


def hr2(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """HR Figs. 2 and 12: function approximation, from the runs of function_approximation.py in a folder."""
    if where or variants:
        raise runlog.UserError("--where, --variants: hr2 draws all runs of function_approximation.py; leave it away")
    folders = sorted(Path(runs).glob("*__function_approximation__*"))
    if not folders:
        raise runlog.UserError(f"--runs {runs}: no run of function_approximation.py; train some first")
    function_approximation(folders, out)
    return []


def continual(runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()) -> list[Path]:
    """CR continual: accuracy and NTK rank per task, and comparisons paired by seed."""
    if where or variants:
        raise runlog.UserError(
            "--where, --variants: continual draws all runs of continual_supervised.py; leave it away"
        )
    return draw_continual(runs, out)


# ---- any folder of runs ----------------------------------------------------------------------------------------------

LAYERS = r"network/(qf\d|q|agent|classifier|mlp)/fc\d+"  # critics, or the one network; actors are left out
SHOWN = {  # title: (key pattern, format); the first that a script logs is its score
    "return": (RETURN, "{:.1f}"),
    "success": ("eval/success", "{:.2f}"),
    "online accuracy": ("charts/online_accuracy", "{:.3f}"),
    "error": ("eval/mse", "{:.3g}"),
    "training return": ("charts/episodic_return", "{:.1f}"),
    "overestimation": ("overestimation/mean", "{:.2f}"),
    "dead share": (rf"{LAYERS}/dead_share", "{:.3f}"),
    "srank": (rf"{LAYERS}/srank", "{:.1f}"),
}
MOST = 8  # environments on the page of overview


def groups_of(folder: Path) -> dict[tuple[str, str], dict[str, list[Loaded]]]:
    """(script, environment) -> label -> runs by seed, of all run folders in a folder, ended or under way. A label tells
    the activation and every setting in which runs of one script and environment differ. Raises UserError: no run; a
    seed of one setting twice."""
    keys = "|".join(f"(?:{pattern})" for pattern, _ in SHOWN.values())
    keys += "|.*numerator_norm|.*coefficient_gradient_norm"
    found = defaultdict(list)
    for path in run_folders_in(folder, "*__*__*__s*__*"):
        run = read_run(path, keys)
        found[path.name.split("__")[1], run.config["env_id"]].append(run)
    if not found:
        raise runlog.UserError(f"--runs {folder}: no run folder in it; train something first")
    groups = {}
    for name, runs in sorted(found.items()):
        check_once(runs)
        flat = [_flat(run.config) for run in runs]
        names = sorted({key for config in flat for key in config} - {"activation"})
        varied = [key for key in names if len({json.dumps(config.get(key)) for config in flat}) > 1]
        labels = defaultdict(list)
        for run, config in zip(runs, flat):
            own = _own(config, varied, name[0])
            told = [_told(key, value) for key, value in own.items()]
            labels[", ".join([config["activation"], *told])].append(run)
        order = [*STYLES, *sorted({label.split(", ")[0] for label in labels} - {*STYLES})]
        ranked = sorted(labels, key=lambda label: (order.index(label.split(", ")[0]), label))
        groups[name] = {label: sorted(labels[label], key=lambda run: run.config["seed"]) for label in ranked}
        for label, each in groups[name].items():
            _check_seeds(each, f"{', '.join(name)}, {label}")
    return groups


def shown_curve(run: Loaded, pattern: str, until: float = np.inf) -> np.ndarray:
    """(rows, 2) as `combined`, up to a step; returns of training episodes are means over windows of a fortieth of it
    (of the run)."""
    points = combined(run, pattern)
    points = points[points[:, 0] <= until]
    if not pattern.startswith("charts/episodic") or not len(points):
        return points
    grid = np.linspace(0, points[-1, 0] if np.isinf(until) else until, 41)[1:]
    points = np.stack([grid, on_grid(points, grid, window=grid[0])], -1)
    return points[np.isfinite(points[:, 1])]


def summary(groups: dict[tuple[str, str], dict[str, list[Loaded]]]) -> list[dict[str, str]]:
    """A row per script, environment and setting: n seeds, how many have not ended, steps, then mean +- std (ddof 1)
    over seeds of the last values, "(2 of 3)" if not all have one. "-": not logged. All settings of an environment are
    compared at the last step that all their runs have reached."""
    return _summary(groups)[0]


def _summary(groups: dict[tuple[str, str], dict[str, list[Loaded]]]) -> tuple[list[dict[str, str]], list[str]]:
    """`summary`, and the lines below it: what was cut."""
    rows = []
    cut = []
    for (script, env), labels in groups.items():
        every = all_runs(labels)
        shown = "|".join(f"(?:{pattern})" for pattern, _ in SHOWN.values())
        ends = {title: common_end(every, pattern) for title, (pattern, _) in SHOWN.items()}
        ends["steps"] = common_end(every, shown)
        told = {}
        for title, end in ends.items():
            for line in end.told(f"{script}, {env}, PLACE"):
                told.setdefault(line, []).append(title)
        cut += [line.replace("PLACE", ", ".join(titles), 1) for line, titles in told.items()]
        for label, runs in labels.items():
            ended = [run.has_ended for run in runs]
            diverged = sum(run.has_diverged for run in runs)
            steps = [max((rows[-1, 0] for rows in run.scalars.values()), default=0) for run in runs]
            row = {"script": script, "environment": env, "setting": label, "n": f"{len(runs)}"}
            row["state"] = "finished" if all(ended) and not diverged else f"{sum(ended)} ended, {diverged} diverged"
            row["steps"] = f"{min(min(steps), ends['steps'].step):,.0f}"
            for title, (pattern, text) in SHOWN.items():
                curves = [shown_curve(run, pattern, ends[title].step) for run in runs]
                values = [points[-1, 1] for points in curves if len(points)]
                row[title] = mean_and_deviation(values, len(runs), text)
            if row["return"] != "-":
                row["training return"] = "-"  # noisier, and of an exploring policy: only where there is nothing else
            rows.append(row)
    empty = [title for title in SHOWN if all(row[title] == "-" for row in rows)]
    return [{key: value for key, value in row.items() if key not in empty} for row in rows], cut


LATEX = {  # character: how LaTeX prints it
    **{c: "\\" + c for c in "_%&#{}$"},
    **{"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "\n": " ", "\r": " "},
}
MARKDOWN = {  # character: how Markdown, which may hold HTML and TeX, shows it
    **{c: "\\" + c for c in "\\`*[]|$"},
    **{"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "},
}


def latex_text(text: str) -> str:
    """A text that LaTeX prints as it is."""
    return text.translate(str.maketrans(LATEX))


def markdown_text(text: str) -> str:
    """A text that a cell of a Markdown table shows as it is."""
    return text.translate(str.maketrans(MARKDOWN))


def write_tables(runs: Path, out: Path) -> list[Path]:
    """table.md, table.csv and table.tex in `out`, and runs.csv, a row for each run; the Markdown is printed too."""
    groups, each = groups_of(runs), []
    rows, cut = _summary(groups)
    for (script, env), labels in groups.items():
        for label, group in labels.items():
            own = {"script": script, "environment": env, "setting": label}
            for run in group:
                status = {"seed": run.config["seed"], "status": run.config["status"]}
                each.append(own | status | _provenance(run))
    header, lines = list(rows[0]), [list(row.values()) for row in rows]
    markdown = [["---"] * len(header)]
    latex = []
    for line in (header, *lines):
        markdown.append([markdown_text(cell) for cell in line])
        latex.append([latex_text(cell) for cell in line[:3]])
        latex[-1] += [latex_text(cell).replace("+-", r"$\pm$") for cell in line[3:]]
    markdown[:2] = markdown[1::-1]  # the rule comes below the header
    markdown = ["| " + " | ".join(cells) + " |" for cells in markdown]
    latex = [" & ".join(cells) + r" \\" for cells in latex]
    latex = [rf"\begin{{tabular}}{{{'l' * 3}{'r' * (len(header) - 3)}}}", r"\hline", latex[0], r"\hline", *latex[1:]]
    latex += [r"\hline", r"\end{tabular}"]
    told = "last values: mean +- standard deviation over n seeds; layers' values: mean over the critics' hidden layers"
    below = [told, *(markdown_text(line) for line in cut)]
    comments = [f"% {' '.join(line.split())}" for line in (told, *cut)]
    paths = [_write_csv(Path(out) / "table.csv", rows), _write_csv(Path(out) / "runs.csv", each)]
    for name, text in (("md", [*markdown, "", "\n\n".join(below)]), ("tex", [*comments, *latex])):
        paths.append(Path(out) / f"table.{name}")
        with runlog.writing(paths[-1]):
            paths[-1].write_text("\n".join(text) + "\n", encoding="utf-8")
    print(*markdown, *below, sep="\n")
    return paths


def overview(folder: Path, out: Path) -> list[Path]:
    """One page of any folder of runs, ended or under way: a row per script and environment with score, overestimation,
    dead share and srank of every seed, and the learned activations below. Prints what does not fit on the page."""
    groups, rows, learned = groups_of(folder), [], {}
    kept = sorted(sorted(groups, key=lambda name: -sum(map(len, groups[name].values())))[:MOST])
    for name in kept:
        keys = {key for runs in groups[name].values() for run in runs for key in run.scalars}
        logged = [title for title in list(SHOWN)[:5] if SHOWN[title][0] in keys] or ["return"]
        score = "success" if "success" in logged else logged[0]
        end = max(
            (rows[-1, 0] for group in groups[name].values() for run in group for rows in run.scalars.values()),
            default=0,
        )
        for label, runs in groups[name].items():
            if is_learned(runs[0]):
                learned.setdefault(label, runs[0])
            for title in (score, "overestimation", "dead share", "srank"):
                own = {"row": ", ".join(name), "column": "score" if title == score else title, "unit": title}
                for run in runs:
                    own |= {"variant": label, "seed": run.config["seed"]}
                    points = shown_curve(run, SHOWN[title][0]).tolist()
                    if points and run.config["status"] == "diverged" and points[-1][0] < end:
                        points.append([float(end), points[-1][1]])
                    rows += [own | {"step": step, "value": value} for step, value in points]
    if len(learned) > 4:
        print(f"not on the page: the activations of {', '.join(list(learned)[4:])}")
    for label, run in list(learned.items())[:4]:
        for (layer, network), parts in read_rows(run.folder, "curves.jsonl", "activation").items():
            own = {
                "row": "learned",
                "column": f"{label} ({run.config['env_id'].rpartition('/')[2]}, s{run.config['seed']})",
            }
            own |= {"variant": label, "seed": run.config["seed"]}
            for part, lines in parts.items():
                for when, line in (("before", lines[0]), ("after", lines[-1])):
                    points = np.array([line["x"], line["y"]], dtype=float)
                    points = points[:, np.abs(points[0]) <= 5][:, ::4].T.tolist()
                    name = {"unit": f"{when} {network}/{layer}/{part}"}
                    rows += [own | name | {"step": x, "value": y} for x, y in points]
    every = [run for labels in groups.values() for runs in labels.values() for run in runs]
    under_way = sum(run.config["status"] not in runlog.ENDED for run in every)
    diverged = sum(run.config["status"] == "diverged" for run in every)
    told = f"{len(every)} runs ({under_way} not ended, {diverged} diverged: last value carried forward)"
    early = sum(run.has_diverged and not run.scalars for run in every)
    if early:
        told += f"; {early} diverged before the first value: in no mean"
    told += "; mean over seeds, up to the step that all seeds of a setting have reached; thin lines: seeds"
    left_out = [", ".join(name) for name in groups if name not in kept]
    if left_out:
        print(*(f"not on the page: {name}" for name in left_out), sep="\n")
        told += f"; {len(left_out)} further environments are not on this page"
    return write_figure(out, "overview", "overview", rows, lines=[", ".join(name) for name in kept], caption=[told])


def draw_overview(rows: list[dict], spec: dict) -> Figure:
    """Rows of `overview`."""
    titles = ("score", "overestimation", "dead share", "srank")
    cells, learned = defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["row"] == "learned":
            learned[row["column"], row["variant"]][row["unit"]].append((row["step"], row["value"]))
        else:
            cells[row["row"], row["column"], row["unit"]][row["variant"], row["seed"]].append(
                (row["step"], row["value"])
            )
    heights = [2.0 * len(spec["lines"]), *[2.4] * bool(learned)]
    figure = Figure((11, sum(heights) + 0.9), layout="constrained")
    own = looks(list(dict.fromkeys(variant for found in cells.values() for variant, _ in found)))
    top, *bottom = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    grid, handles = top.subplots(len(spec["lines"]), len(titles), squeeze=False), {}
    for line, name in zip(grid, spec["lines"]):
        variants = list(dict.fromkeys(v for (row, *_), found in cells.items() if row == name for v, _ in found))
        for panel, title in zip(line, titles):
            unit, found = next(((u, x) for (row, c, u), x in cells.items() if (row, c) == (name, title)), ("", {}))
            panel.set_title(name if title == "score" else title, fontsize=8)
            panel.set_ylabel(unit if title == "score" else "", fontsize=8)
            for variant in variants:
                series = [np.array(points) for (v, _), points in found.items() if v == variant]
                if not series:
                    continue
                for points in series:
                    panel.plot(*points.T, color=own[variant]["color"], linewidth=0.5, alpha=0.4)
                steps = np.unique(np.concatenate([points[:, 0] for points in series]))
                steps = steps[steps <= min(points[-1, 0] for points in series)]  # not past the seed furthest behind
                mean, every = np.mean([on_grid(points, steps) for points in series], axis=0), max(1, len(steps) // 5)
                options = {**own[variant], "linewidth": 1.5, "markersize": 4, "markevery": every, "label": variant}
                (handles[variant],) = panel.plot(steps, mean, **options)
            if found:
                _scale(panel, "symlog", np.concatenate([np.array(points)[:, 1] for points in found.values()]) / 1e3)
            else:
                _tell(panel, "not logged", color="0.4")
                panel.set(xticks=[], yticks=[])
                continue
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    for panel in grid[-1]:
        panel.set_xlabel("steps (environment steps, or updates)", fontsize=8)
    _legend(top, list(handles.values()), fontsize=8)
    for part in bottom:
        panels = part.subplots(1, 4)
        for panel, ((title, variant), found) in zip(panels, learned.items()):
            for unit, points in found.items():
                look = FIRST if unit.startswith("before") else {"color": style(variant.split(", ")[0])["color"]}
                panel.plot(*np.array(points).T, **look, alpha=0.8)
            _limit(panel, np.concatenate([np.array(points)[:, 1] for points in found.values()]))
            panel.set_title(title, fontsize=7)
            panel.set_xlabel("pre-activation x")
        for panel in panels[len(learned) :]:
            panel.remove()
        part.suptitle("learned activations, one curve per layer; dashed: before training", fontsize=8)
    _caption(figure, *spec["caption"])
    return figure


DRAWERS = {  # kind of a figure: function of the rows of its CSV and of its entry in figures.json
    "curves": draw_curves,
    "environments": draw_environments,
    "intervals": draw_intervals,
    "parts": draw_parts,
    "densities": draw_densities,
    "overview": draw_overview,
    "preactivations": draw_preactivations,
    "compared": draw_compared,
    "study": draw_study,
    "continual": draw_continual_study,
    "regression": draw_regression,
    "table1": draw_table1,
}


# ---- the command line ------------------------------------------------------------------------------------------------

ROWS = {  # subcommand: function; each is a row of the papers' figures
    "cr1": cr1,
    "cr_curves": cr_curves,
    "cr_ablations": cr_ablations,
    "continual": continual,
    "cr_atari": cr_atari,
    "hr1": hr1,
    "hr2": hr2,
    "hr3": hr3,
    "hr4": hr4,
    "hr7": hr7,
    "hr8": hr8,
    "hr19": hr19,
}
ALSO = {"cr_continual": "continual", "hr9": "hr1", "hr12": "hr2", "hr6": "hr3", "hr10": "hr3", "hr11": "hr3"}
ALSO |= {f"hr{k}": "hr7" for k in (13, 14, 15)} | {"hr8a": "hr7", "hr8b": "hr7", "hr8c": "hr8", "hr8d": "hr8"}
ALSO |= {f"hr{k}": "hr8" for k in (16, 17, 18)} | {f"hr{k}": "hr19" for k in range(20, 26)}  # a figure: its row


@dataclass
class RunCommand:
    """Draw the plots of one run into its folder."""

    folder: tyro.conf.Positional[Path]  # the run's folder


@dataclass
class DemoCommand:
    """Compare activations on one environment: a figure and a table."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    out: Path = Path("runs/demo.png")  # the figure


@dataclass
class PreactivationsCommand:
    """Pre-activations of every layer over training, activations side by side: a figure and a table."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    out: Path = Path("runs/preactivations.png")  # the figure


@dataclass
class CompareCommand:
    """Compare the values of one setting, for each activation: a figure and a table."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    by: str  # the setting, as config.json names it, for example layer_norm
    out: Path = Path("runs/compare.png")  # the figure


@dataclass
class RowCommand:
    """A row of the papers' figures."""

    row: tyro.conf.Suppress[str] = ""  # the subcommand's name
    runs: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the figures and tables
    where: tuple[str, ...] = ()  # only runs with these settings: total_timesteps=6000 utd=10 env_id=Breakout
    variants: tuple[str, ...] = ()  # what to draw in place of the paper's, as captions name it: relu snake "tanh, ReDo"


@dataclass
class TableCommand:
    """Summary table of all runs in a folder: table.md, table.csv, table.tex; and runs.csv, a row for each."""

    runs: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the tables


@dataclass
class OverviewCommand:
    """One page of all runs in a folder: scores, overestimation, dead share, srank, learned activations."""

    runs: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of overview.png, .pdf and .csv


@dataclass
class FunctionApproximationCommand:
    """Draw the comparison of function_approximation.py again: figures and tables."""

    runs: tuple[Path, ...]  # run folders
    out: Path = Path("runs/function_approximation")  # folder of the figures and tables


@dataclass
class RedrawCommand:
    """Draw figures again from their CSV files (PNG), as the figures.json beside them says."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("results"),)  # folders of figures, with all below


def _figure_path(out: Path) -> tuple[Path, str, tuple[str]]:
    """Folder, name and kind of the file that --out tells; png without an ending."""
    kind = out.suffix[1:] or "png"
    if kind not in ("png", "pdf", "svg"):
        raise runlog.UserError(f"--out {out}: figures are png, pdf or svg; give such an ending")
    return out.parent, out.stem, (kind,)


Command = (
    Annotated[RunCommand, tyro.conf.subcommand("run")]
    | Annotated[DemoCommand, tyro.conf.subcommand("demo")]
    | Annotated[PreactivationsCommand, tyro.conf.subcommand("preactivations")]
    | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[FunctionApproximationCommand, tyro.conf.subcommand("function_approximation")]
    | Annotated[TableCommand, tyro.conf.subcommand("table")]
    | Annotated[OverviewCommand, tyro.conf.subcommand("overview")]
    | Annotated[RedrawCommand, tyro.conf.subcommand("redraw")]
)
for name, function in ROWS.items():
    told = " ".join(function.__doc__.split())
    Command |= Annotated[RowCommand, tyro.conf.subcommand(name, default=RowCommand(name), description=told)]


@runlog.exit_on_user_error(stdout_matters=True)
def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    argv[:1] = [ALSO.get(name, name) for name in argv[:1]]
    command = runlog.parse_args(Command, argv)
    if isinstance(command, RowCommand):
        print(*ROWS[command.row](command.runs, command.out, command.where, command.variants), sep="\n")
    elif isinstance(command, TableCommand):
        print(*write_tables(command.runs, command.out), sep="\n")
    elif isinstance(command, OverviewCommand):
        print(*overview(command.runs, command.out), sep="\n")
    elif isinstance(command, RedrawCommand):
        print(*redraw_all(command.folders), sep="\n")
    elif isinstance(command, RunCommand):
        print(*draw_run(command.folder) or ["nothing to draw yet"], sep="\n")
    elif isinstance(command, FunctionApproximationCommand):
        function_approximation(command.runs, command.out)
    elif isinstance(command, DemoCommand):
        folder, name, (kind,) = _figure_path(command.out)
        print_table(command.folders)
        print(draw_demo(command.folders, folder / f"{name}.{kind}"))
    elif isinstance(command, PreactivationsCommand):
        _print(preactivation_table(command.folders))
        print("of the measured batches; means over n histories: seeds, and two critics of each")
        print(*write_preactivations(command.folders, *_figure_path(command.out)), sep="\n")
    else:
        rows, cut = _compare_table(compared(command.folders, command.by))
        _print(rows)
        print("last values; mean +- standard deviation over n seeds; of the critics: largest or mean of the two")
        for line in cut:
            print(line)
        print(*write_compared(command.folders, command.by, *_figure_path(command.out)), sep="\n")


if __name__ == "__main__":
    main()
