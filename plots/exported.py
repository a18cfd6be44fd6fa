"""Learning curves of a study's folder (scripts/export_results.py) and of other programs."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import style
from plots.recording import Kind, distinct, record_figure, rows_where
from plots.variants import STYLES


def draw(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """curves.csv and references: a panel per metric (spec's panels: metric -> label) with mean over
    seeds, thin lines for the seeds, band from worst to best."""
    rows = []
    for table in tables.values():
        rows += table
    looks = looks_of(distinct(rows, "activation"), spec.get("variants", ()))
    labels = spec["panels"]
    num_rows = (len(labels) + 1) // 2
    figure = Figure((10, 2.9 * num_rows + 0.6), layout="constrained")
    panels = figure.subplots(num_rows, 2, squeeze=False).ravel()
    for panel, (metric, label) in zip(panels, labels.items()):
        members = rows_where(rows, metric=metric)
        for name, look in looks.items():
            seeds = rows_where(members, activation=name)
            if seeds:
                draw_seeds(panel, name, seeds, look)
        style.steps_axis(panel)
        panel.set_ylabel(label)
    for panel in panels[len(labels) :]:
        panel.remove()
    handles = style.handles_of(panels[: len(labels)])
    longest = max(len(handle.get_label()) for handle in handles)
    columns = 4 if longest < 30 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.5)
    style.caption(figure, *spec["caption"])
    return figure


def looks_of(names: Sequence[str], variants: Sequence[str]) -> dict[str, dict]:
    """name -> style. Variants of one activation have a style each; grey: another program, an
    activation without a style."""
    styles = dict(zip(variants, STYLES.values())) | STYLES
    looks = {}
    for name in names:
        color, line, _ = styles.get(name, ("0.45", ":", ""))
        looks[name] = {"color": color, "linestyle": line}
    return looks


def draw_seeds(panel: Axes, name: str, rows: list[dict], look: dict) -> None:
    """Mean, band and lines of seeds, at the steps that all of them have."""
    curves = defaultdict(dict)  # seed: step: value
    for row in rows:
        curves[row["seed"]][int(row["env_step"])] = row["value"]
    shared = set.intersection(*({*curve} for curve in curves.values()))
    steps = sorted(shared)
    values = np.array([[curve[step] for step in steps] for curve in curves.values()])
    label = f"{name}, n = {len(values)}"
    panel.plot(steps, values.mean(0), linewidth=2, label=label, **look)
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
    """Record curves.png of these files of a folder in its figures.json, and draw it. panels: metric
    -> label; variants: names that are variants of one activation."""
    spec = {"csv": [*files], "panels": panels, "caption": [caption]}
    if variants:
        spec["variants"] = [*variants]
    return record_figure(out, "curves", STUDY, ("png",), **spec)
