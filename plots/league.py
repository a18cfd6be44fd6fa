"""A league table of continual learning: which cell keeps its plasticity, and at what cost."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import activations
import runlog
from plots import axes, statistics, style
from plots.continual import DEFAULTS, LATE, RATIONAL, SHORT, changed_settings
from plots.reading import Places
from plots.recording import (
    WRITE_AGAIN,
    Kind,
    read_csv,
    record_figure,
    rows_where,
    write_csv,
)
from plots.variants import canonical, differing, styles_in, varied_settings
from runlog import flops

RUNS = "continual_runs.csv"
LEAGUE = "league.csv"
LATE_ACCURACY = "online accuracy, late tasks"
BASELINE = "relu"
BATCH = 16  # default of continual_supervised.py
INPUTS = {"digits": 64, "mnist": 784}
CLASSES = 10
COSTS = {"parameters": "trained parameters", "FLOPs": "FLOPs a sample, forward and backward"}


# ---- what a cell costs ---------------------------------------------------------------------------


@dataclass
class Cell:
    """A cell of continual_runs.csv."""

    study: str
    label: str
    activation: str
    settings: dict[str, object]  # all of continual.DEFAULTS
    protocol: dict[str, object] | None  # None: not known
    folder: Path
    runs: list[dict]  # its rows

    @property
    def key(self) -> str:
        """Identifies the cell within its study."""
        return json.dumps([self.activation, self.settings], sort_keys=True)


def settings_of(label: str) -> dict[str, object]:
    """The settings in a cell's label, by their names in config.json. Raises UserError: a setting
    whose effect on the cell's cost is not known."""
    keys = {SHORT.get(key, key): key for key in DEFAULTS}
    _, *parts = label.split(", ")
    settings = {}
    for part in parts:
        name, _, text = part.partition(" ")
        if name not in keys:
            fault = f"league does not know the cost of {part!r}"
            raise runlog.UserError(f'{RUNS}: cell "{label}": {fault}; leave these runs out')
        key = keys[name]
        default = DEFAULTS[key]
        if isinstance(default, list):
            settings[key] = [type(default[0])(number) for number in re.split("[x ]", text)]
        elif isinstance(default, bool):
            settings[key] = text == "True"
        elif default is None:
            settings[key] = float(text)
        else:
            settings[key] = type(default)(text)
    return settings


def cell_of(rows: list[dict], folder: Path) -> Cell:
    """A cell, from its rows. In files that lack these columns, its settings are those in its label,
    and its protocol is not known. Raises UserError: a setting that league does not know, or a
    broken column."""
    first = rows[0]
    label = first["cell"]
    activation, _, _ = label.partition(", ")
    protocol = None
    try:
        if "settings" in first:
            settings = json.loads(first["settings"])
            activation = settings.pop("activation")
        else:
            settings = settings_of(label)
        if "protocol" in first:
            protocol = dict(json.loads(first["protocol"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, runlog.UserError):
            raise
        fault = f'the settings of cell "{label}" are broken'
        raise runlog.UserError(f"{folder / RUNS}: {fault}; {WRITE_AGAIN}") from None
    if unknown := {*settings} - {*DEFAULTS}:
        fault = f"league does not know the cost of {min(unknown)!r}"
        raise runlog.UserError(f'{RUNS}: cell "{label}": {fault}; leave these runs out')
    return Cell(first["study"], label, activation, DEFAULTS | settings, protocol, folder, rows)


def num_outputs(cell: Cell) -> int:
    """Units of the output layer. Raises UserError: not known."""
    if not cell.study.endswith(" split_classes"):
        return CLASSES
    outputs = (cell.protocol or {}).get("classes_per_task")
    if not isinstance(outputs, int):
        fault = "lacks the number of outputs"
        raise runlog.UserError(f"{cell.folder / RUNS}: {fault}; {WRITE_AGAIN}")
    return outputs


def cost_of(cell: Cell) -> dict[str, int]:
    """Trained parameters of a cell, and FLOPs of a sample's forward pass, and of both passes.
    Raises UserError: a network or data set whose cost is not known."""
    dataset, _, _ = cell.study.partition(" ")
    if dataset not in INPUTS:
        known = " or ".join(INPUTS)
        fault = f"study {cell.study}: league only knows the costs on {known}"
        raise runlog.UserError(f"{RUNS}: {fault}")
    protocol = cell.protocol or {}
    if protocol.get("network") == "cnn":
        fault = f"study {cell.study}: league only knows the costs of --network mlp"
        raise runlog.UserError(f"{cell.folder / RUNS}: {fault}")
    inputs = INPUTS[dataset]
    outputs = num_outputs(cell)
    network = mlp(inputs, outputs, cell.activation, cell.settings)
    counted = flops.count(network, torch.zeros(protocol.get("batch_size", BATCH), inputs))
    return {
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "FLOPs forward": round(counted.forward),
        "FLOPs": round(counted.total),
    }


def mlp(inputs: int, outputs: int, activation: str, settings: dict[str, object]) -> nn.Module:
    """The network of continual_supervised.py: inputs (batch, inputs) -> logits (batch, outputs).
    settings: all of continual.DEFAULTS."""
    options = {}
    for key in RATIONAL:
        value = settings[f"rational.{key}"]
        options[key] = tuple(value) if isinstance(value, list) else value
    rational = activations.RationalConfig(**options)
    widths = settings["widths"]
    hidden = activations.mlp(inputs, widths, activation, 1, settings["layer_norm"], rational)
    return nn.Sequential(hidden, activations.Linear(hidden[-1].width, outputs, seeds=2))


# ---- the table -----------------------------------------------------------------------------------


def league(folders: Places, out: Path) -> list[Path]:
    """All cells of the continual studies in folders that `continual` has written, in one table:
    late online accuracy, its difference to relu paired by seed, parameters and FLOPs. If several
    folders have a cell, the first one counts; all must have one protocol."""
    studies = read_studies(folders)
    rows = []
    for study, cells in studies.items():
        rows += study_rows(study, cells)
    paths = [write_csv(Path(out) / LEAGUE, rows, kinds=[OF_LEAGUE])]
    for study in studies:
        members = rows_where(rows, study=study)
        paths += record_figure(
            out,
            f"league-{study.replace(' ', '-')}",
            OF_LEAGUE,
            ("png",),
            csv=[LEAGUE],
            study=study,
            variants=by_settings(members),
            activation_of={row["cell"]: row["activation"] for row in members},
            caption=[caption_of(study, members)],
        )
    return paths


def read_studies(folders: Places) -> dict[str, dict[str, Cell]]:
    """study -> label -> cell, of the first folder that has the cell. Raises UserError: a folder
    that `continual` has not written, protocols that differ, or a study without the baseline."""
    studies = defaultdict(list)
    for folder in map(Path, folders):
        path = folder / RUNS
        if not path.is_file():
            fault = "no such file; give folders that `python figures.py continual` has written"
            raise runlog.UserError(f"{path}: {fault}")
        found = defaultdict(list)
        for row in read_csv(path):
            found[row["study"], row["cell"]].append(row)
        cells = [cell_of(rows, folder) for rows in found.values()]
        if any(cell.protocol is None for cell in cells):
            print(f"{path}: written by an older version, its protocol is not compared with others")
        for cell in cells:
            studies[cell.study].append(cell)
    found = {}
    for study, cells in studies.items():
        check_protocols(study, cells)
        found[study] = labelled(without_duplicates(cells))
        if BASELINE not in found[study]:
            raise runlog.UserError(f"{RUNS}: {study} has no cell {BASELINE}, the baseline")
    return found


def check_protocols(study: str, cells: Sequence[Cell]) -> None:
    """Raises UserError: cells were trained in different ways, such as on more tasks."""
    known = [cell for cell in cells if cell.protocol is not None]
    protocols = [cell.protocol for cell in known]
    if known and (found := differing(protocols, [cell.folder for cell in known], ())):
        where = ", ".join(f"{value} in {folder}" for value, folder in found.folders.items())
        fault = f"{study}: the runs differ in {found.key}: {where}"
        raise runlog.UserError(f"{RUNS}: {fault}; give folders of one protocol")


def without_duplicates(cells: Sequence[Cell]) -> list[Cell]:
    """The first of each cell, with a printed line for the others."""
    kept = {}
    for cell in cells:
        first = kept.setdefault(cell.key, cell)
        if first is not cell:
            places = f"taken from {first.folder.as_posix()}, not from {cell.folder.as_posix()}"
            print(f"{cell.study}, {cell.label}: {places}")
    return [*kept.values()]


def labelled(cells: Sequence[Cell]) -> dict[str, Cell]:
    """label -> cell, labelled by the settings in which the cells of all folders differ."""
    varied = varied_settings([cell.settings for cell in cells], DEFAULTS)
    found = {}
    for cell in cells:
        changed = changed_settings(cell.settings, varied)
        settings = [f"{name} {value}" for name, value in changed.items()]
        found[", ".join([cell.activation, *settings])] = cell
    return found


def with_values(study: str, cells: dict[str, Cell]) -> dict[str, dict[int, float]]:
    """label -> late_by_seed, without the cells that have no value, which are printed. Raises
    UserError: the baseline has none."""
    found = {}
    for label, cell in cells.items():
        late = late_by_seed(cell.runs)
        if late:
            found[label] = late
            continue
        fault = f"{study}, {label}: no seed has a late accuracy"
        if label == BASELINE:
            raise runlog.UserError(f"{cell.folder / RUNS}: {fault}, and it is the baseline")
        print(f"{fault} (all diverged in their first task?); left out")
    return found


def study_rows(study: str, cells: dict[str, Cell]) -> list[dict]:
    """A row for each cell that has a value, the best first."""
    late = with_values(study, cells)
    ordered = sorted(late, key=lambda label: -np.mean([*late[label].values()]))
    rows = []
    for rank, label in enumerate(ordered, start=1):
        cell = cells[label]
        values = np.array([*late[label].values()])
        activation = canonical(cell.activation)
        row = {"study": study, "rank": rank, "cell": shown(label), "activation": activation}
        row |= {"n": len(values)} | with_ends("late", values.mean(), mean_ends(values))
        row |= against(late[label], late[BASELINE])
        behind = paired_difference(late[ordered[0]], late[label])
        row |= with_ends("behind the first", behind.mean(), mean_ends(behind))
        row |= cost_of(cell)
        commits = dict.fromkeys(run["git"] for run in cell.runs)
        rows.append(row | {"from": cell.folder.as_posix(), "git": " ".join(commits)})
    for row in rows:
        for cost in COSTS:
            row[f"front of {cost}"] = int(is_on_front(row, rows, cost))
    return rows


def late_by_seed(runs: Sequence[dict]) -> dict[int, float]:
    """seed -> late online accuracy, without seeds that diverged in their first task."""
    values = {int(run["seed"]): float(run[LATE_ACCURACY]) for run in runs}
    return {seed: value for seed, value in sorted(values.items()) if np.isfinite(value)}


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> np.ndarray:
    """Differences of the seeds that both have."""
    return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def mean_ends(values: np.ndarray) -> tuple[float, float]:
    """Ends of the bootstrap interval of a mean over seeds."""
    return statistics.stratified_bootstrap([values], statistics.mean_of_means)


def with_ends(name: str, value: float, ends: tuple[float, float]) -> dict[str, float]:
    """Columns of a value and its interval."""
    low, high = ends
    return {name: value, f"{name}: low": low, f"{name}: high": high}


def against(values: dict[int, float], baseline: dict[int, float]) -> dict[str, object]:
    """A cell minus the baseline, paired by seed; 0 throughout for the baseline itself."""
    differences = paired_difference(values, baseline)
    chance, *ends = statistics.improvement_interval(
        [differences], [np.zeros(len(differences))], paired=True
    )
    better, worse, p = statistics.sign_test(differences)
    return {
        **with_ends("difference", differences.mean(), mean_ends(differences)),
        **with_ends("P(better)", chance, ends),
        "better": better,
        "worse": worse,
        "p": p,
    }


def is_on_front(row: dict, rows: Sequence[dict], cost: str) -> bool:
    """Whether no cell that costs as much or less has a higher late accuracy."""
    others = [other for other in rows if other[cost] <= row[cost]]
    return row["late"] >= max(other["late"] for other in others)


def shown(cell: str) -> str:
    """A cell's label as tables and figures show it."""
    return cell.replace("layer_norm True", "LayerNorm")


def by_settings(rows: Sequence[dict]) -> list[str]:
    """The cells' labels, those with fewer settings first."""
    return sorted((row["cell"] for row in rows), key=lambda cell: (cell.count(","), cell))


def caption_of(study: str, rows: Sequence[dict]) -> str:
    counts = style.seeds_text([row["n"] for row in rows])
    name = study.replace(" ", ", ", 1).replace("_", " ")
    text = f"{name}: mean online accuracy of the last {LATE} tasks"
    if max(row["n"] for row in rows) == 1:
        return f"{text}, {counts}"
    return f"{text}, {counts}, 95 % bootstrap; the line joins what no cheaper cell surpasses"


# ---- drawing -------------------------------------------------------------------------------------


def draw(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """On the left the cells by rank, which also serve as legend; on the right accuracy against
    parameters and FLOPs, numbered by rank where no cheaper cell is as good."""
    rows = rows_where(tables[LEAGUE], study=spec["study"])
    looks = styles_in(spec)
    figure = Figure((13.0, max(0.2 * len(rows) + 1.2, 3.6)), layout="constrained")
    left, *others = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    names = []
    for height, row in enumerate(rows):
        bar(left, float(row["late"]), height, row, looks[row["cell"]], "xerr")
        names.append(axes.wrapped(f"{row['rank']} {row['cell']}", 2.6, 8, max_lines=1))
    left.set_yticks(range(len(rows)), names, fontsize=8)
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlim(0, 1)
    left.set_xlabel("late online accuracy")
    for panel, (cost, label) in zip(others, COSTS.items()):
        for row in rows:
            bar(panel, float(row[cost]), float(row["late"]), row, looks[row["cell"]], "yerr")
        draw_front(panel, rows, cost)
        panel.set_ylim(0, 1)
        panel.set_xlabel(label)
        panel.set_ylabel("late online accuracy")
        panel.margins(x=0.12)
        axes.steps_ticks(panel, axes.column_width(panel) - 1.0)
    style.caption(figure, *spec["caption"])
    return figure


def bar(panel: Axes, x: float, y: float, row: dict, look: dict, which: str) -> None:
    """A cell's mark, and its interval along one axis."""
    value, low, high = (float(row[key]) for key in ("late", "late: low", "late: high"))
    ends = np.nan_to_num([[value - low], [high - value]])
    look = look | {"linestyle": ""}
    panel.errorbar(x, y, **{which: ends}, **look, capsize=2, markersize=5, linewidth=1)


def draw_front(panel: Axes, rows: Sequence[dict], cost: str) -> None:
    """The front as steps: cells that no cheaper cell surpasses, each with its rank."""
    front = [row for row in rows if row[f"front of {cost}"] == "1"]
    front.sort(key=lambda row: float(row[cost]))
    x = [float(row[cost]) for row in front]
    y = [float(row["late"]) for row in front]
    panel.plot(x, y, drawstyle="steps-post", color=style.FAINT, linewidth=0.8, zorder=0)
    for row in front:
        place = float(row[cost]), float(row["late"])
        look = {"textcoords": "offset points", "ha": "right", "fontsize": 8}
        panel.annotate(row["rank"], place, (-5, 3), **look)


OF_LEAGUE = Kind("league", draw)
