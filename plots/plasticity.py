"""A small picture of a few cells of a continual study: one row of panels, one curve for each cell.

Like the large figure of plots.continual, it is drawn from continual_curves.csv.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import style
from plots.recording import Kind, columns, read_csv, record_figure, rows_where
from plots.variants import styles_in

ACCURACY = "charts/online_accuracy"
CURVES = "continual_curves.csv"


def draw_plasticity(
    out: Path,
    name: str,
    study: str,
    variants: Sequence[str],
    activation_of: Mapping[str, str],
    panels: Mapping[str, str],
) -> list[Path]:
    """Draw these cells of a study from continual_curves.csv in `out`, and return the paths.

    panels: a metric of that file -> the title of its panel.
    """
    rows = rows_where(read_csv(Path(out) / CURVES), study=study)
    chosen = [row for row in rows if row["cell"] in variants]
    tasks = max(int(row["task"]) for row in chosen)
    title = study.replace(" ", ", ", 1).replace("_", " ")
    caption = f"{title}, {tasks} sequential tasks: {mean_over_seeds(chosen)}"
    return record_figure(
        out,
        name,
        PLASTICITY,
        csv=[CURVES],
        study=study,
        variants=list(variants),
        activation_of={variant: activation_of[variant] for variant in variants},
        panels=dict(panels),
        caption=[caption],
    )


def mean_over_seeds(rows: Sequence[dict]) -> str:
    """What the curves of these rows are a mean of, for the caption."""
    counts = [int(row["n"]) for row in rows if row["metric"] == ACCURACY]
    if max(counts) == 1:
        return "one seed"
    ends = dict.fromkeys((min(counts), max(counts)))
    number = " to ".join(str(count) for count in ends)
    return f"mean of n = {number} seeds, 95 % interval"


def draw(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """A panel for each metric, side by side, one legend on the right."""
    rows = rows_where(tables[CURVES], study=spec["study"])
    looks = styles_in(spec)
    figure = Figure((3.1 * len(spec["panels"]) + 2.6, 3.0), layout="constrained")
    grid = figure.subplots(1, len(spec["panels"]), squeeze=False)[0]
    for panel, (metric, label) in zip(grid, spec["panels"].items()):
        for variant, look in looks.items():
            points = rows_where(rows, cell=variant, metric=metric)
            tasks, mean, low, high = columns(points, "task", "mean", "low", "high")
            low, high = np.clip((low, high), 0, 1)  # fractions
            panel.fill_between(tasks, low, high, color=look["color"], alpha=0.15, linewidth=0)
            panel.plot(tasks, mean, **look, label=variant, linewidth=1.5, markersize=3.5)
        style.left_title(panel, label)
        panel.set_xlabel("task")
        panel.set_ylim(-0.03, 1.03)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = style.handles_of(grid)
    figure.legend(handles=handles, loc="outside right center", handlelength=3)
    style.caption(figure, *spec["caption"])
    return figure


PLASTICITY = Kind("plasticity", draw)
