"""A league table of continual learning: which cell keeps its plasticity, and at what cost."""

import functools
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
from plots.continual import LATE, USUAL_WIDTHS
from plots.reading import Places
from plots.recording import Kind, read_csv, record_figure, rows_where, write_csv
from plots.variants import canonical, styles_in
from runlog import flops

RUNS = "continual_runs.csv"
LEAGUE = "league.csv"
LATE_ACCURACY = "online accuracy, late tasks"
BASELINE = "relu"
BATCH = 16  # default of continual_supervised.py
INPUTS = {"digits": 64, "mnist": 784}
CLASSES = 10
# settings of training, which leave the network as it is
OF_TRAINING = ("init", "decay", "c", "from", "to", "l2", "redo", "reset_head")
COSTS = {"parameters": "trained parameters", "FLOPs": "FLOPs a sample, forward and backward"}


# ---- what a cell costs ---------------------------------------------------------------------------


def mlp(
    inputs: int, widths: Sequence[int], outputs: int, activation: str, layer_norm: bool
) -> nn.Module:
    """The network of continual_supervised.py: inputs (batch, inputs) -> logits (batch, outputs)."""
    rational = activations.RationalConfig()
    hidden = activations.mlp(inputs, widths, activation, 1, layer_norm, rational)
    return nn.Sequential(hidden, activations.Linear(hidden[-1].width, outputs, seeds=2))


@dataclass(frozen=True)
class Network:
    """The parts of a cell's label in continual_runs.csv that define its network."""

    activation: str
    widths: tuple[int, ...]
    layer_norm: bool


def network_of(label: str) -> Network:
    """The network of a cell. Raises UserError: a setting whose effect on its cost is not known."""
    activation, *settings = label.split(", ")
    widths = tuple(USUAL_WIDTHS)
    layer_norm = False
    for setting in settings:
        name, _, value = setting.partition(" ")
        if name == "widths":
            widths = tuple(int(width) for width in value.split("x"))
        elif name == "layer_norm":
            layer_norm = value == "True"
        elif name not in OF_TRAINING:
            fault = f"league does not know the cost of {setting!r}"
            raise runlog.UserError(f'{RUNS}: cell "{label}": {fault}; leave these runs out')
    return Network(activation, widths, layer_norm)


@functools.cache
def cost_of(label: str, study: str) -> dict[str, int]:
    """Trained parameters of a cell, and FLOPs of a sample's forward pass, and of both passes."""
    dataset, _, _ = study.partition(" ")
    if dataset not in INPUTS:
        known = " or ".join(INPUTS)
        raise runlog.UserError(f"{RUNS}: study {study}: league only knows the costs on {known}")
    inputs = INPUTS[dataset]
    kind = network_of(label)
    network = mlp(inputs, kind.widths, CLASSES, kind.activation, kind.layer_norm)
    counted = flops.count(network, torch.zeros(BATCH, inputs))
    return {
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "FLOPs forward": round(counted.forward),
        "FLOPs": round(counted.total),
    }


# ---- the table -----------------------------------------------------------------------------------


def league(folders: Places, out: Path) -> list[Path]:
    """All cells of the continual studies in folders that `continual` has written, in one table:
    late online accuracy, its difference to relu paired by seed, parameters and FLOPs. If several
    folders have a cell, the first one counts."""
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


def read_studies(folders: Places) -> dict[str, dict[str, list[dict]]]:
    """study -> cell -> its rows of continual_runs.csv, of the first folder that has the cell."""
    studies = defaultdict(dict)
    for folder in folders:
        path = Path(folder) / RUNS
        if not path.is_file():
            fault = "no such file; give folders that `python figures.py continual` has written"
            raise runlog.UserError(f"{path}: {fault}")
        found = defaultdict(list)
        for row in read_csv(path):
            found[row["study"], row["cell"]].append(row | {"from": Path(folder).as_posix()})
        for (study, cell), rows in found.items():
            if cell in studies[study]:
                first = studies[study][cell][0]["from"]
                print(f"{study}, {cell}: taken from {first}, not from {folder}")
            else:
                studies[study][cell] = rows
    for study, cells in studies.items():
        if BASELINE not in cells:
            raise runlog.UserError(f"{RUNS}: {study} has no cell {BASELINE}, the baseline")
    return studies


def study_rows(study: str, cells: dict[str, list[dict]]) -> list[dict]:
    """A row for each cell, the best first."""
    late = {cell: late_by_seed(runs) for cell, runs in cells.items()}
    ordered = sorted(cells, key=lambda cell: -np.mean([*late[cell].values()]))
    rows = []
    for rank, cell in enumerate(ordered, start=1):
        values = np.array([*late[cell].values()])
        activation = canonical(network_of(cell).activation)
        row = {"study": study, "rank": rank, "cell": shown(cell), "activation": activation}
        row |= {"n": len(values)} | with_ends("late", values.mean(), mean_ends(values))
        row |= against(late[cell], late[BASELINE])
        behind = paired_difference(late[ordered[0]], late[cell])
        row |= with_ends("behind the first", behind.mean(), mean_ends(behind))
        row |= cost_of(cell, study)
        commits = dict.fromkeys(run["git"] for run in cells[cell])
        rows.append(row | {"from": cells[cell][0]["from"], "git": " ".join(commits)})
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
    counts = style.told_seeds([row["n"] for row in rows])
    what = study.replace(" ", ", ", 1).replace("_", " ")
    told = f"{what}: mean online accuracy of the last {LATE} tasks"
    if max(row["n"] for row in rows) == 1:
        return f"{told}, {counts}"
    return f"{told}, {counts}, 95 % bootstrap; the line joins what no cheaper cell surpasses"


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
        names.append(axes.wrapped(f"{row['rank']} {row['cell']}", 2.6, 8, most=1))
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
        axes.steps_ticks(panel, axes.pitch(panel) - 1.0)
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
