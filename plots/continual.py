"""The figures of continual_supervised.py: measures per task, and comparisons paired by seed."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import activations
import runlog
from plots import axes, style
from plots.plasticity import ACCURACY, PLASTICITY, draw_plasticity
from plots.reading import Loaded, Places, check_once, places_text, read_run
from plots.recording import Kind, file_name, record_figure, rows_where, write_csv
from plots.statistics import mean_interval
from plots.study import find_candidates
from plots.variants import (
    MEASURING,
    by_seed,
    differing,
    distinct_styles,
    flat,
    in_order,
    product_of,
    styles_of,
    varied_settings,
)

# settings, besides rational.*, in which the cells of a study may differ
VARIED = {"activation", "widths", "layer_norm", "l2", "redo", "reset_head"}
SHORT = {
    "rational.init_scale": "init",
    "rational.coefficient_weight_decay": "decay",
    "rational.constraint_schedule": "c",
    "rational.constraint_scale": "from",
    "rational.constraint_scale_end": "to",
}
RATIONAL = json.loads(json.dumps(dataclasses.asdict(activations.RationalConfig())))
DEFAULTS = {  # defaults of continual_supervised.py for VARIED and rational.*, as in config.json
    "layer_norm": False,
    "reset_head": False,
    "l2": 0.0,
    "redo": False,
    "widths": [100, 100],
    **{f"rational.{key}": value for key, value in RATIONAL.items()},
}
LATE = 5  # tasks at the end of training that "late" refers to
STEPS_TO_THRESHOLD = "charts/steps_to_threshold"
PER_TASK = (  # keys of continual_curves.csv
    r"charts/(online|end|test)_accuracy"
    r"|task_(start|end)/ntk_(srank|entropy_rank)"
    r"|network/classifier/(weight_norm"
    r"|\w+/(dead_share|dormant_share|srank|numerator_norm|denominator_norm|f_max))"
)
MEASURES = {  # name: (key, first or late tasks)
    "online accuracy, first task": (ACCURACY, "first"),
    "online accuracy, late tasks": (ACCURACY, "late"),
    "change of online accuracy, late - first": (ACCURACY, "change"),
    "NTK srank, start": ("task_start/ntk_srank", "first"),
    "NTK srank, late task ends": ("task_end/ntk_srank", "late"),
    "NTK entropy rank, late task ends": ("task_end/ntk_entropy_rank", "late"),
}


# ---- cells ---------------------------------------------------------------------------------------


@dataclass
class Cell:
    """The seeds of one setting. settings: those that distinguish it, such as "init" -> 0.25."""

    activation: str
    settings: dict[str, object]
    runs: list[Loaded]

    @property
    def label(self) -> str:
        settings = [f"{name} {value}" for name, value in self.settings.items()]
        return ", ".join([self.activation, *settings])

    @property
    def num_diverged(self) -> int:
        return sum(run.has_diverged for run in self.runs)

    def per_task(self, key: str) -> np.ndarray:
        """(seeds, tasks) of a measure that is logged once per task. NaN: not logged, or logged as
        NaN. After the last row of a diverged seed, its last finite value is carried forward. Raises
        UserError as logged_per_task."""
        values, has_row = self.logged_per_task(key)
        for row, is_logged, run in zip(values, has_row, self.runs):
            known = np.flatnonzero(np.isfinite(row))
            if run.has_diverged and len(known):
                end = np.flatnonzero(is_logged)[-1] + 1
                row[end:] = row[known[-1]]
        return values

    def logged_per_task(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(seeds, tasks) of a measure as it was logged, and whether there is a row, both without
        the rows after a divergence: the value is NaN where there is none, or where it was logged as
        NaN. Raises UserError: a row that belongs to no task."""
        num_tasks = self.runs[0].setting("num_tasks", int)
        values = np.full((len(self.runs), num_tasks), np.nan)
        has_row = np.zeros(values.shape, dtype=bool)
        updates = self.updates_per_task()
        if updates is None:
            return values, has_row
        is_of_start = key.startswith("task_start/")
        for row, is_logged, run in zip(values, has_row, self.runs):
            for step, value, _ in rows_before_divergence(run, key):
                task = round(step / updates)
                if not is_of_start:
                    task -= 1
                if not 0 <= task < num_tasks:
                    where = f"step {step:,.0f}, which is in none of the {num_tasks} tasks"
                    remedy = "restore it, or move the run away"
                    path = run.folder / "scalars.csv"
                    raise runlog.UserError(f"{path}: {key} has a row at {where}; {remedy}")
                row[task] = value
                is_logged[task] = True
        return values, has_row

    def updates_per_task(self) -> float | None:
        """Updates per task; None before the end of the first task."""
        found = []
        for run in self.runs:
            found += [step / task for step, task, _ in run.scalars.get("charts/task", ())]
        return min(found, default=None)

    def measure(self, name: str) -> np.ndarray:
        """One of MEASURES for each seed; the first task never counts as a late one."""
        key, when = MEASURES[name]
        values = self.per_task(key)
        first = values[:, 0]
        if when == "first":
            return first
        late = values[:, max(1, values.shape[1] - LATE) :]
        late = late.mean(1) if late.shape[1] else np.full_like(first, np.nan)
        return late if when == "late" else late - first


def rows_before_divergence(run: Loaded, key: str) -> np.ndarray:
    """(rows, 3) of step, value, wall time. A diverged run repeats the values of its last task at
    the end of each later one; those rows are left out."""
    rows = run.scalars.get(key, np.zeros((0, 3)))
    diverged_at = run.meta.get("step") if run.has_diverged else None
    if isinstance(diverged_at, int):
        rows = rows[rows[:, 0] < diverged_at]
    return rows


def continual_cells(folder: Places, where: Sequence[str] = ()) -> dict[str, list[Cell]]:
    """Study ("<dataset> <tasks>") -> cells, from the finished runs of continual_supervised.py in a
    folder. where: settings like "epochs=5" that a run must have. Raises UserError: there are none,
    or the runs mix studies of different lengths or settings."""
    candidates = find_candidates(folder, "continual_supervised", where)
    runs = [read_run(candidate.folder) for candidate in candidates]
    check_once(runs)
    studies = defaultdict(list)
    for run in runs:
        if not run.has_ended:
            print(f"{run.folder}: {run.status}, left out")
            continue
        run.setting("num_tasks", int)
        run.setting("rational", dict)
        studies[f"{run.setting('dataset', str)} {run.setting('tasks', str)}"].append(run)
    if not studies:
        fault = "no finished run of continual_supervised.py; train some first"
        raise runlog.UserError(f"--runs {places_text(folder)}: {fault}")
    return {name: cells_of(members) for name, members in studies.items()}


def cells_of(runs: Sequence[Loaded]) -> list[Cell]:
    """The cells of one study, in order. Raises UserError: runs differ in any other setting."""
    settings = [flat(run.config) for run in runs]
    free = []  # settings in which cells may differ, in order of appearance
    for config in settings:
        free += [key for key in config if is_free(key)]
    if found := differing(settings, [run.folder for run in runs], {*free, *MEASURING}):
        raise runlog.UserError(f"the runs {found.message}")

    varied = varied_settings(settings, dict.fromkeys(free))
    cells = {}
    for run, config in zip(runs, settings):
        changed = changed_settings(config, varied)
        name = config["activation"], json.dumps(changed)
        cell = cells.setdefault(name, Cell(config["activation"], changed, []))
        cell.runs.append(run)
    for cell in cells.values():
        cell.runs = by_seed(cell.runs, cell.label)
    order = in_order(cell.activation for cell in cells.values())

    def rank(cell: Cell) -> tuple:
        return order.index(cell.activation), len(cell.settings), cell.label

    return sorted(cells.values(), key=rank)


def is_free(key: str) -> bool:
    """Whether the cells of a study may differ in a setting."""
    return key in VARIED or key.startswith("rational.")


def changed_settings(config: dict[str, object], keys: Sequence[str]) -> dict[str, object]:
    """The settings among `keys` in which a run is not as by default, as labels show them:
    "init" -> 0.25, "widths" -> "75x75"."""
    changed = {}
    for key in keys:
        default = DEFAULTS.get(key)
        value = config.get(key, default)  # an older run may lack it
        if key == "activation" or value == default:
            continue
        if isinstance(value, list):
            separator = "x" if key == "widths" else " "
            value = separator.join(map(str, value))
        changed[SHORT.get(key, key)] = value
    return changed


# ---- comparisons ---------------------------------------------------------------------------------


def continual_comparisons(cells: Sequence[Cell]) -> list[dict[str, object]]:
    """Differences a - b of every measure between cells that differ in one setting, paired by seed,
    with a 95 % interval. n: seeds for which both are known."""
    rows = []
    for a, b in comparable_pairs(cells):
        seeds_a = [run.seed for run in a.runs]
        seeds_b = [run.seed for run in b.runs]
        shared = sorted({*seeds_a} & {*seeds_b})
        places_a = [seeds_a.index(seed) for seed in shared]
        places_b = [seeds_b.index(seed) for seed in shared]
        for name in MEASURES:
            values_a = a.measure(name)[places_a]
            values_b = b.measure(name)[places_b]
            known = np.isfinite(values_a - values_b)
            if not known.any():
                continue  # not measured, such as the NTK with --ntk-samples 0
            difference, low, high = mean_interval((values_a - values_b)[known])
            row = {"a": a.label, "b": b.label, "measure": name, "n": int(known.sum())}
            row |= {"mean_a": values_a[known].mean(), "mean_b": values_b[known].mean()}
            rows.append(row | {"difference": difference, "low": low, "high": high})
    return rows


def comparable_pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """crational and rational, each product with its base, each setting with and without, and the
    lowest with the highest init."""
    by_name = {}
    for cell in cells:
        by_name[cell.activation, frozenset(cell.settings.items())] = cell
    inits = sorted({cell.settings["init"] for cell in cells if "init" in cell.settings})
    bases = {product_of(cell.activation): cell.activation for cell in cells}
    pairs = []
    for (activation, settings), cell in by_name.items():
        others = []
        if activation == "crational":
            others.append(("rational", settings))
        if activation in bases:
            others.append((bases[activation], settings))
        inits_of_cell = {item for item in settings if item[0] == "init"}
        for item in settings - inits_of_cell:
            others.append((activation, settings - {item}))
        if len(inits) > 1 and ("init", inits[0]) in settings:
            highest = settings - {("init", inits[0])} | {("init", inits[-1])}
            others.append((activation, highest))
        for item in inits_of_cell:
            others.append((activation, settings - {item}))
        pairs += [(cell, by_name[other]) for other in others if other in by_name]
    return pairs


def print_comparisons(rows: Sequence[dict]) -> None:
    for row in rows:
        low = row["low"]
        high = row["high"]
        is_decided = low * high > 0
        text = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}] n = {row['n']}"
        if not is_decided:
            text += "  (undecided)"
        print(f"{row['study']}: {row['a']} against {row['b']}, {row['measure']}: {text}")


# ---- tables and figures --------------------------------------------------------------------------


def continual(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR continual: accuracy and NTK rank per task, and comparisons paired by seed; with --variants
    also a small picture of these cells."""
    return draw_continual(runs, out, variants, where)


def draw_continual(
    folder: Places, out: Path, chosen: Sequence[str] = (), where: Sequence[str] = ()
) -> list[Path]:
    """Writes continual-<dataset>-<tasks>.png and .pdf, continual_curves.csv (per task: mean and
    interval), _cells.csv, _runs.csv and _comparisons.csv into `out`, and returns their paths. With
    `chosen`, labels of cells, also plasticity-<dataset>-<tasks>.png and .pdf. Prints the
    comparisons."""
    tables = {"curves": [], "cells": [], "runs": [], "comparisons": []}
    studies = continual_cells(folder, where)
    for name, cells in studies.items():
        check_chosen(chosen, name, cells)
    for name, cells in studies.items():
        for cell in cells:
            start = {"study": name, "cell": cell.label}
            tables["curves"] += [start | row for row in curve_rows(cell)]
            tables["cells"].append(start | cell_row(cell))
            tables["runs"] += [start | row for row in run_rows(cell)]
        tables["comparisons"] += [{"study": name} | row for row in continual_comparisons(cells)]
    print_comparisons(tables["comparisons"])
    paths = []
    for name, rows in tables.items():
        if rows:
            digits = 4 if name == "curves" else 6
            path = Path(out) / f"continual_{name}.csv"
            paths.append(write_csv(path, rows, digits, [CONTINUAL, PLASTICITY]))
    taken = set()
    for name, cells in studies.items():
        file = file_name(f"continual-{name.replace(' ', '-')}", taken)
        paths += record_figure(
            out,
            file,
            CONTINUAL,
            csv=["continual_curves.csv"],
            study=name,
            caption=[caption_of(name, cells)],
            activation_of={cell.label: cell.activation for cell in cells},
            hollow=[cell.label for cell in cells if "decay" in cell.settings],
        )
        if chosen:
            rows = [row for row in tables["curves"] if row["study"] == name]
            small = file.replace("continual", "plasticity", 1)
            activation_of = {cell.label: cell.activation for cell in cells}
            paths += draw_plasticity(out, small, name, chosen, activation_of, small_panels(rows))
    return paths


def check_chosen(chosen: Sequence[str], study: str, cells: Sequence[Cell]) -> None:
    """Raises UserError: --variants has a label that belongs to no cell."""
    labels = [cell.label for cell in cells]
    for label in chosen:
        if label not in labels:
            known = ", ".join(f'"{other}"' for other in labels)
            raise runlog.UserError(f'--variants "{label}": {study} has {known}')


def small_panels(rows: Sequence[dict]) -> dict[str, str]:
    """What the small picture shows: metric -> title."""
    dead = f"network/classifier/{last_layer(rows)}/dead_share"
    return {ACCURACY: "online accuracy", dead: "dead-neuron fraction, last layer"}


def curve_rows(cell: Cell) -> list[dict]:
    """Every measure of a cell, per task: mean over seeds with its interval."""
    rows = []
    keys = set()
    for run in cell.runs:
        keys |= {*run.keys(PER_TASK)}
    for key in sorted(keys):
        values = cell.per_task(key)
        counts = np.isfinite(values).sum(0).tolist()
        columns = zip(counts, *mean_interval(values))
        for task, (n, mean, low, high) in enumerate(columns, start=1):
            row = {"n": n, "metric": key, "task": task, "mean": mean, "low": low, "high": high}
            rows.append(row)
    return rows + threshold_rows(cell)


def threshold_rows(cell: Cell) -> list[dict]:
    """Per task, the median of the steps to the threshold, and the fraction of seeds that reach it.
    A diverged seed reaches it in no later task: nothing is carried forward."""
    rows = []
    steps, _ = cell.logged_per_task(STEPS_TO_THRESHOLD)
    steps = np.where(np.isfinite(steps), steps, np.inf)  # never reached
    for task, column in enumerate(steps.T, start=1):
        values = {
            "median of steps_to_threshold": np.median(column),
            "share of seeds that fit": np.isfinite(column).mean(),
        }
        for metric, value in values.items():
            row = {"n": len(cell.runs), "metric": metric, "task": task, "mean": value}
            rows.append(row | {"low": np.nan, "high": np.nan})
    return rows


def cell_row(cell: Cell) -> dict[str, object]:
    """A cell's MEASURES: mean with interval, and n, the seeds that have a value."""
    row = {"runs": len(cell.runs), "diverged": cell.num_diverged}
    for measure in MEASURES:
        values = cell.measure(measure)
        mean, low, high = mean_interval(values)
        row |= {measure: mean, f"{measure}: low": low, f"{measure}: high": high}
        row[f"{measure}: n"] = int(np.isfinite(values).sum())
    return row


def run_rows(cell: Cell) -> list[dict]:
    """MEASURES of each run of a cell, and the origin of the run. As JSON: its settings in which
    cells may differ, all others (its protocol)."""
    measures = {measure: cell.measure(measure) for measure in MEASURES}
    rows = []
    for index, run in enumerate(cell.runs):
        row = {"seed": run.seed, "status": run.status}
        row |= {measure: values[index] for measure, values in measures.items()}
        config = flat(run.config)
        settings = {key: value for key, value in config.items() if is_free(key)}
        for key in (*settings, *MEASURING):
            config.pop(key, None)
        row |= {"settings": json.dumps(settings), "protocol": json.dumps(config)}
        rows.append(row | run.origin())
    return rows


def caption_of(name: str, cells: Sequence[Cell]) -> str:
    """The caption of a study's figure."""
    counts = [len(cell.runs) for cell in cells]
    diverged = sum(cell.num_diverged for cell in cells)
    text = f"{name.replace('_', ' ')}: "
    if max(counts) == 1:
        text += "one seed, no interval"
    else:
        text += f"mean over seeds and its 95 % interval, {style.seeds_text(counts)}"
    if diverged:
        text += f", {diverged} diverged (last task carried forward)"
    early = []
    for cell in cells:
        is_known = np.isfinite(cell.per_task(ACCURACY)).any(1)
        if not is_known.all():
            early.append(f"{cell.label} {(~is_known).sum()} of {len(is_known)}")
    if early:
        text += f"; in no mean, since they diverged in their first task: {', '.join(early)}"
    return text


# ---- drawing -------------------------------------------------------------------------------------

LOOKS = (
    ("-", "o"),
    ("--", "v"),
    (":", "^"),
    ("-.", "s"),
    ("-", "D"),
    ("--", "P"),
    (":", "X"),
    ("-.", "h"),
)


@dataclass
class Column:
    """A column of panels: all activations without settings, or one activation and its settings."""

    title: str
    looks: dict[str, dict]  # label: style


def columns_of(labels: Sequence[str], spec: dict) -> list[Column]:
    """The columns of a study's figure."""
    activation_of = {label: spec["activation_of"][label] for label in labels}
    plain = [label for label, activation in activation_of.items() if label == activation]
    columns = [Column("activations", distinct_styles(plain))] if plain else []
    with_settings = [label for label in labels if label not in plain]
    for activation in dict.fromkeys(activation_of[label] for label in with_settings):
        members = [label for label in labels if activation_of[label] == activation]
        looks = styles_of(dict.fromkeys(members, activation))
        for index, (label, look) in enumerate(looks.items()):
            line, marker = LOOKS[index % len(LOOKS)]
            look |= {"linestyle": line, "marker": marker}
            is_hollow = label in spec.get("hollow", ())
            look["markerfacecolor"] = "white" if is_hollow else look["color"]
        columns.append(Column(activation, looks))
    return columns


def draw(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """Draws the study that spec names from its rows of continual_curves.csv. Rows of panels: online
    accuracy, NTK srank at the tasks' ends, dead-neuron fraction; columns: columns_of."""
    rows = rows_where(tables["continual_curves.csv"], study=spec["study"])
    curves = defaultdict(lambda: defaultdict(list))  # label: metric: task, mean, low, high
    for row in rows:
        point = [float(row[name]) for name in ("task", "mean", "low", "high")]
        curves[row["cell"]][row["metric"]].append(point)
    columns = columns_of(list(curves), spec)
    dead = f"network/classifier/{last_layer(rows)}/dead_share"
    metrics = {
        "online accuracy": ACCURACY,
        "NTK srank, task end": "task_end/ntk_srank",
        "dead-neuron fraction,\nlast layer": dead,
    }
    logged = set()
    for members in curves.values():
        logged |= {*members}
    metrics = {title: metric for title, metric in metrics.items() if metric in logged}
    width = style.size_of_columns(len(columns), 3.6, 0.6) * len(columns) + 0.6
    longest = max(len(column.looks) for column in columns)
    size = max(width, 7), 2.2 * len(metrics) + 0.19 * longest + 0.8
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(metrics), len(columns), squeeze=False, sharex=True, sharey="row")
    for panels, column in zip(grid.T, columns):
        for panel, metric in zip(panels, metrics.values()):
            bounds = axes.possible_range(metric)
            for label, look in column.looks.items():
                draw_tasks(panel, label, look, curves[label].get(metric, []), bounds)
        style.left_title(panels[0], column.title)
        panels[-1].set_xlabel("task")
        panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=2))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22)}
        handles, names = panels[-1].get_legend_handles_labels()
        room = axes.column_width(panels[-1]) - 1.0
        names = [axes.wrapped(name, room, 8, max_lines=2) for name in names]
        panels[-1].legend(handles, names, handlelength=3, fontsize=8, **place)
    for panel, (ylabel, metric) in zip(grid[:, 0], metrics.items()):
        axes.set_ylabel(panel, ylabel)
        axes.within(panel, axes.possible_range(metric))
    style.caption(figure, *spec["caption"])
    return figure


def last_layer(rows: Sequence[dict]) -> str:
    """The last fully connected layer for which there is a metric."""
    layers = {1}
    for row in rows:
        if found := re.search(r"/fc(\d+)/", row["metric"]):
            layers.add(int(found[1]))
    return f"fc{max(layers)}"


def draw_tasks(
    panel: Axes,
    label: str,
    look: dict,
    points: list[list[float]],
    bounds: tuple[float, float],
) -> None:
    """A measure per task, with its interval, clipped to the possible range."""
    tasks, mean, low, high = np.array(points).reshape(-1, 4).T
    low, high = np.clip((low, high), *bounds)
    panel.fill_between(tasks, low, high, color=look["color"], alpha=0.15, linewidth=0)
    panel.plot(tasks, mean, **look, label=label, linewidth=1.3, markersize=3.5)


CONTINUAL = Kind("continual", draw)
