"""Learning curves of a study's folder (scripts/export_results.py) and of other programs."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import runlog
from plots import axes, style
from plots.recording import Kind, distinct, record_figure, rows_where
from plots.variants import OTHERS, STYLES, distinct_styles, shades


def draw(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """Draws curves.csv and references: a panel per metric (spec's panels: metric -> label) with the
    mean over seeds, thin lines for the seeds, and a band from worst to best."""
    check_apart(tables)
    rows = []
    for table in tables.values():
        rows += table
    looks = looks_of(distinct(rows, "activation"), spec.get("variants", ()))
    labels = spec["panels"]
    figure, panels = style.grid_of_panels(len(labels), 2, (5.0, 2.9), 0.9)
    counts = []
    for panel, (metric, label) in zip(panels, labels.items()):
        members = rows_where(rows, metric=metric)
        for name, look in looks.items():
            seeds = rows_where(members, activation=name)
            if seeds:
                draw_seeds(panel, name, seeds, look)
                counts.append(len({row["seed"] for row in seeds}))
        style.steps_axis(panel)
        panel.set_xlim(left=0)
        axes.set_ylabel(panel, label)
        axes.within(panel, axes.possible_range(metric))
        axes.large_numbers(panel)
    style.legend(figure, style.handles_of(panels))
    text = style.band_text(counts, "mean", "worst to best seed")
    if max(counts) > 1:
        text += ", thin lines: seeds"
    style.caption(figure, *spec["caption"], text)
    return figure


def check_apart(tables: dict[str, list[dict]]) -> None:
    """Raises UserError if two files have the same curve, which would be drawn as one. tables: file
    -> its rows."""
    files = {}  # activation, seed, metric: the first file that has this curve
    for file, rows in tables.items():
        for row in rows:
            activation = row["activation"]
            curve = activation, str(row["seed"]), row["metric"]
            first = files.setdefault(curve, file)
            if first != file:
                fault = f"has {activation}, seed {row['seed']}, {row['metric']}, as has {first}"
                remedy = f'call its activation "{activation} of {row["exp"]}", for example'
                raise runlog.UserError(f"{file}: {fault}; {remedy}")


def looks_of(names: Sequence[str], variants: Sequence[str]) -> dict[str, dict]:
    """name -> style. Each variant of an activation has its own style; other programs, whose names
    contain a space, are grey."""
    activations = [name for name in names if " " not in name]
    looks = distinct_styles(activations)
    styles = [(color, line) for color, line, _ in STYLES.values()]
    styles += [(color, "--") for color in OTHERS]
    for name, (color, line) in zip(variants, itertools.cycle(styles)):
        looks[name] = {"color": color, "linestyle": line}
    others = [name for name in names if name not in looks]
    for name, color in zip(others, shades("#737373", len(others) or 1)):
        looks[name] = {"color": color, "linestyle": ":"}
    return {name: {key: looks[name][key] for key in ("color", "linestyle")} for name in names}


def draw_seeds(panel: Axes, name: str, rows: list[dict], look: dict) -> None:
    """Mean, band and lines of the seeds, at the steps that all of them have."""
    curves = defaultdict(dict)  # seed: step: value
    for row in rows:
        curves[row["seed"]][int(row["env_step"])] = row["value"]
    shared = set.intersection(*({*curve} for curve in curves.values()))
    steps = sorted(shared)
    values = np.array([[curve[step] for step in steps] for curve in curves.values()])
    label = f"{name}, n = {len(values)}"
    marker = "o" if len(steps) == 1 else ""
    panel.plot(steps, values.mean(0), linewidth=2, label=label, marker=marker, **look)
    if len(values) < 2:
        return
    panel.plot(steps, values.T, linewidth=0.5, alpha=0.6, color=look["color"])
    low = values.min(0)
    high = values.max(0)
    panel.fill_between(steps, low, high, alpha=0.15, color=look["color"], linewidth=0)


STUDY = Kind("study", draw)


def write_study(
    out: Path,
    files: Sequence[str],
    panels: dict[str, str],
    caption: str,
    variants: Sequence[str] = (),
) -> list[Path]:
    """Record in a folder's figures.json that curves.png is drawn from these files, and draw it.
    panels: metric -> label; variants: names that are variants of one activation."""
    spec = {"csv": [*files], "panels": panels, "caption": [caption]}
    if variants:
        spec["variants"] = [*variants]
    return record_figure(out, "curves", STUDY, ("png",), **spec)
