"""Every seed of every variant: a row of panels per quantity, a column per variant, thin lines for
the seeds and a thick one for their median. For values that explode, which a mean hides."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from plots import statistics, style
from plots.aggregation import on_grid
from plots.panels import Panel
from plots.reading import Loaded
from plots.recording import Kind, columns, distinct, rows_where, write_figure
from plots.study import Study
from plots.variants import RED, styles_in

# ---- the rows ------------------------------------------------------------------------------------


def write_seeds(
    study: Study, panels: Sequence[Panel], out: Path, name: str, title: str
) -> list[Path]:
    """write_figure of the seeds of a study of one environment."""
    rows = seed_rows(study, panels)
    how = "thin lines: seeds; thick: their median with 95 % bootstrap interval"
    return write_figure(
        out,
        name,
        SEEDS,
        rows,
        ("png",),
        caption=[title, study.counts, f"{how}; cross: the last value of a seed that diverged"],
        variants=study.labels,
        activation_of=study.activation_of,
        panels={panel.title: panel.unit for panel in panels},
        scales={panel.title: panel.scale for panel in panels},
    )


def seed_rows(study: Study, panels: Sequence[Panel]) -> list[dict]:
    """Points of draw: of a diverged seed those before it diverged."""
    rows = []
    for panel in panels:
        for (label, env), runs in study.cells.items():
            for run in runs:
                row = {"panel": panel.title, "variant": label, "seed": run.seed}
                row |= {"status": run.status}
                for step, value in points_until_end(run, panel, env).tolist():
                    rows.append(row | {"step": step, "value": value})
    return rows


def points_until_end(run: Loaded, panel: Panel, env: str) -> np.ndarray:
    """(rows, 2) of step and value; a diverged run's evaluations after that are of no network."""
    points = panel.points(run, env)
    end = run.meta.get("step") if run.has_diverged else None
    return points if end is None else points[points[:, 0] <= end]


# ---- drawing -------------------------------------------------------------------------------------


def draw(rows: list[dict], spec: dict) -> Figure:
    titles = [title for title in spec["panels"] if rows_where(rows, panel=title)]
    having = {*distinct(rows, "variant")}
    looks = {label: look for label, look in styles_in(spec).items() if label in having}
    size = 2.3 * len(looks) + 0.6, 1.75 * len(titles) + 1.1
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(len(titles), len(looks), squeeze=False, sharex=True, sharey="row")
    for line, title in zip(grid, titles):
        members = rows_where(rows, panel=title)
        end = max(row["step"] for row in members)
        for panel, (label, look) in zip(line, looks.items()):
            draw_variant(panel, rows_where(members, variant=label), look, end)
        (values,) = columns(members, "value")
        scale(line[0], spec["scales"].get(title, "linear"), values)
        line[0].set_ylabel(f"{title}\n{spec['panels'][title]}", fontsize=8)
    for panel, label in zip(grid[0], looks):
        style.left_title(panel, label)
    for panel in grid[-1]:
        style.steps_axis(panel)
        panel.set_xlim(0, None)
    style.caption(figure, *spec["caption"])
    return figure


def draw_variant(panel: Axes, rows: list[dict], look: dict, end: float) -> None:
    """The seeds of a variant, and their median up to a step."""
    if not rows:
        style.note(panel, "not logged", color=style.FAINT)
        return
    series = []
    for seed in distinct(rows, "seed"):
        own = rows_where(rows, seed=seed)
        points = np.stack(columns(own, "step", "value"), -1)
        series.append(points)
        panel.plot(*points.T, color=look["color"], linewidth=0.6, alpha=0.55)
        if own[0]["status"] == "diverged" and points[-1, 0] < end:
            panel.plot(*points[-1], "x", color=RED, markersize=5)
    steps = np.unique(np.concatenate([points[:, 0] for points in series]))
    values = np.stack([on_grid(points, steps) for points in series])
    known = np.isfinite(values).all(0)
    strata = [values[:, known].T]
    median = statistics.median_of_runs(strata)
    low, high = statistics.stratified_bootstrap(strata, statistics.median_of_runs, 1_000)
    panel.fill_between(steps[known], low, high, color=look["color"], alpha=0.18, linewidth=0)
    panel.plot(steps[known], median, color=look["color"], linewidth=2.2)


def scale(panel: Axes, kind: str, values: np.ndarray) -> None:
    """style.scale; symlog is linear up to 100, with few ticks: a panel is small here."""
    style.scale(panel, kind, values)
    if panel.get_yscale() == "symlog":
        panel.set_yscale("symlog", linthresh=100)
        locator = SymmetricalLogLocator(base=100, linthresh=100)
        locator.set_params(numticks=7)
        panel.yaxis.set_major_locator(locator)


SEEDS = Kind("seeds", draw)
