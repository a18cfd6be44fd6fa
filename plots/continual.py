"""continual."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import activations
import runlog
from plots.reading import Loaded, read_run, run_folders_in
from plots.recording import _file_name, _write_csv, record_figure
from plots.statistics import mean_interval
from plots.style import _caption
from plots.variants import STYLES, _check_seeds, _flat, _where, check_once, differing, style

VARIED = (
    "activation",
    "layer_norm",
    "l2",
    "redo",
    "reset_head",
)  # and rational.*: what cells of a study may differ in

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
        return ", ".join(
            [self.activation, *(f"{name} {value}" for name, value in self.settings.items())]
        )

    def per_task(self, key: str) -> np.ndarray:
        """(seeds, tasks) of a measure that is logged once a task. NaN: not logged, or logged as such; a diverged seed
        carries its last value forward."""
        ends = [
            row[0] / row[1] for run in self.runs for row in run.scalars.get("charts/task", ())
        ]  # updates per task
        num_tasks = self.runs[0].setting("num_tasks", int)
        values = np.full((len(self.runs), num_tasks), np.nan)
        for row, run in zip(values, self.runs):
            for step, value, _ in run.scalars.get(key, ()) if ends else ():
                task = round(step / min(ends)) - (not key.startswith("task_start/"))
                if not 0 <= task < num_tasks:
                    told = f"{key} has a row at step {step:,.0f}, which is in none of the {num_tasks} tasks"
                    raise runlog.UserError(
                        f"{run.folder / 'scalars.csv'}: {told}; restore it, or move the run away"
                    )
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
    studies, unfinished = (
        defaultdict(list),
        [run for run in runs if run.config["status"] not in runlog.ENDED],
    )
    for run in unfinished:
        print(f"{run.folder}: {run.config['status']}, left out")
    for run in runs:
        if run not in unfinished:
            run.setting("num_tasks", int)
            run.setting("rational", dict)
            studies[f"{run.setting('dataset', str)} {run.setting('tasks', str)}"].append(run)
    if not studies:
        raise runlog.UserError(
            f"--runs {folder}: no finished run of continual_supervised.py; train some first"
        )
    return {name: _cells(study) for name, study in studies.items()}


def _cells(runs: list[Loaded]) -> list[Cell]:
    flat = [_flat(run.config) for run in runs]
    folders = [run.folder for run in runs]
    free = [
        key for config in flat for key in config if key in VARIED or key.startswith("rational.")
    ]
    if found := differing(flat, folders, free):
        key, values = found
        raise runlog.UserError(
            f"the runs differ in {key} ({', '.join(values)}): {_where(values)}; move some away"
        )
    varied = [
        key
        for key in dict.fromkeys(free)
        if len({json.dumps(config.get(key)) for config in flat}) > 1
    ]
    usual = {
        f"rational.{k}": v for k, v in dataclasses.asdict(activations.RationalConfig()).items()
    }
    cells = {}
    for run, config in zip(runs, flat):
        settings = {}
        for key in varied:
            value = config.get(
                key, usual.get(key, 0)
            )  # an older run may lack it; others than usual's: 0 or False
            if key != "activation" and value != usual.get(key, 0):
                settings[SHORT.get(key, key)] = value
        name = config["activation"], json.dumps(settings)
        cells.setdefault(name, Cell(config["activation"], settings, [])).runs.append(run)
    for cell in cells.values():
        cell.runs.sort(key=lambda run: run.config["seed"])
        _check_seeds(cell.runs, cell.label)
    order = [*STYLES, *sorted({cell.activation for cell in cells.values()} - {*STYLES})]
    return sorted(
        cells.values(), key=lambda c: (order.index(c.activation), len(c.settings), c.label)
    )


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
    layers = {
        int(found[1]) for metric in metrics_there if (found := re.search(r"/fc(\d+)/", metric))
    }
    rows = {
        "online accuracy": "charts/online_accuracy",
        "NTK srank, task end": "task_end/ntk_srank",
        "dead share (KDE), last layer": f"network/classifier/fc{max(layers, default=1)}/dead_share",
    }
    figure = Figure((max(3.6 * len(groups) + 0.6, 7), 7.6), layout="constrained")
    panels = figure.subplots(len(rows), len(groups), squeeze=False, sharex=True, sharey="row")
    looks = [
        ("-", "o"),
        ("--", "v"),
        (":", "^"),
        ("-.", "s"),
        ("-", "D"),
        ("--", "P"),
        (":", "X"),
        ("-.", "h"),
    ]
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
        column[-1].legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=3, fontsize=8
        )
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
            x, y = (
                cell.measure(name)[[each.index(s) for s in shared]]
                for cell, each in zip((a, b), seeds)
            )
            x, y = x[known := np.isfinite(x - y)], y[known]
            if not len(x):
                continue  # not measured, such as the NTK with --ntk-samples 0
            row = {
                "a": a.label,
                "b": b.label,
                "measure": name,
                "n": len(x),
                "mean_a": x.mean(),
                "mean_b": y.mean(),
            }
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
            for key in sorted(
                {key for run in cell.runs for key in run.scalars if re.fullmatch(PER_TASK, key)}
            ):
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
            for task, column in enumerate(
                np.where(np.isfinite(steps), steps, np.inf).T, start=1
            ):  # never: inf
                own = {
                    "study": name,
                    "cell": cell.label,
                    "n": len(cell.runs),
                    "task": task,
                    "low": np.nan,
                    "high": np.nan,
                }
                curves.append(
                    own | {"metric": "median of steps_to_threshold", "mean": np.median(column)}
                )
                curves.append(
                    own | {"metric": "share of seeds that fit", "mean": np.isfinite(column).mean()}
                )
            for measure in MEASURES:
                row |= dict(
                    zip(
                        (measure, f"{measure}: low", f"{measure}: high"),
                        mean_interval(cell.measure(measure)),
                    )
                )
            summary.append(row)
            measures = {measure: cell.measure(measure) for measure in MEASURES}
            for i, run in enumerate(cell.runs):
                row = {
                    "study": name,
                    "cell": cell.label,
                    "seed": run.config["seed"],
                    "status": run.config["status"],
                }
                per_run.append(
                    row
                    | {measure: values[i] for measure, values in measures.items()}
                    | _provenance(run)
                )
        comparisons += [{"study": name} | row for row in continual_comparisons(cells)]
    for row in comparisons:
        sign = "" if row["low"] * row["high"] > 0 else "  (undecided)"
        told = (
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] n = {row['n']}{sign}"
        )
        print(f"{row['study']}: {row['a']} against {row['b']}, {row['measure']}: {told}")
    tables = {"curves": curves, "cells": summary, "runs": per_run, "comparisons": comparisons}
    for name, rows in ((name, rows) for name, rows in tables.items() if rows):
        paths.append(
            _write_csv(
                Path(out) / f"continual_{name}.csv", rows, digits=4 if name == "curves" else 6
            )
        )
    for name, told in captions.items():
        spec = {"csv": ["continual_curves.csv"], "study": name, "caption": [told]}
        paths += record_figure(
            out, _file_name(f"continual-{name.replace(' ', '-')}", taken), "continual", **spec
        )
    return paths


def continual(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """CR continual: accuracy and NTK rank per task, and comparisons paired by seed."""
    if where or variants:
        raise runlog.UserError(
            "--where, --variants: continual draws all runs of continual_supervised.py; leave it away"
        )
    return draw_continual(runs, out)
