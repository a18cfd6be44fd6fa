"""Every seed of every variant: a row of panels per quantity, a column per variant, thin lines for
the seeds and a thick one for their median. For values that explode, which a mean hides."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import axes, statistics, style
from plots.aggregation import on_grid
from plots.panels import Panel
from plots.reading import Loaded
from plots.recording import Kind, columns, distinct, rows_where, write_figure
from plots.study import Study
from plots.variants import RED, styles_in

MAX_COLUMNS = 9  # most variants side by side

# ---- the rows ------------------------------------------------------------------------------------


def write_seeds(
    study: Study, panels: Sequence[Panel], out: Path, name: str, title: str
) -> list[Path]:
    """Write a figure of the seeds of a study with one environment."""
    rows = seed_rows(study, panels)
    return write_figure(
        out,
        name,
        SEEDS,
        rows,
        ("png",),
        caption=[title, study.counts],
        variants=study.labels,
        activation_of=study.activation_of,
        panels={panel.title: panel.unit for panel in panels},
        scales={panel.title: panel.scale for panel in panels},
        measured={panel.title: panel.measured for panel in panels},
    )


def seed_rows(study: Study, panels: Sequence[Panel]) -> list[dict]:
    """Points of draw; of a diverged seed only those before it diverged."""
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
    """(rows, 2) of step and value; without evaluations of a diverged run after it diverged."""
    points = panel.points(run, env)
    end = run.meta.get("step") if run.has_diverged else None
    return points if end is None else points[points[:, 0] <= end]


# ---- drawing -------------------------------------------------------------------------------------


def draw(rows: list[dict], spec: dict) -> Figure:
    titles = [title for title in spec["panels"] if rows_where(rows, panel=title)]
    with_rows = {*distinct(rows, "variant")}
    looks = {label: look for label, look in styles_in(spec).items() if label in with_rows}
    blocks = style.rows_of(list(looks), MAX_COLUMNS)  # of variants side by side
    number = len(blocks[0])
    width = max(style.size_of_columns(number, 2.3, 0.6) * number + 0.6, 5.0)
    figure = Figure((width, 1.75 * len(titles) * len(blocks) + 1.1), layout="constrained")
    shape = len(titles) * len(blocks), number
    grid = figure.subplots(*shape, squeeze=False, sharex=True, sharey="row")
    for index, labels in enumerate(blocks):
        block = grid[index * len(titles) : (index + 1) * len(titles)]
        for panel, label in zip(block[0], labels):
            style.left_title(panel, label)
        for line, title in zip(block, titles):
            members = rows_where(rows, panel=title)
            draw_line(line, members, {label: looks[label] for label in labels}, title, spec)
        for panel in block[:, len(labels) :].ravel():
            panel.set_axis_off()
    for panel in grid[-1]:
        style.steps_axis(panel)
        panel.set_xlim(0, None)
    style.caption(figure, *spec["caption"], lines_text(rows))
    return figure


def lines_text(rows: list[dict]) -> str:
    """What the lines show, for the caption."""
    seeds = {(row["variant"], row["seed"]) for row in rows}
    text = "one seed"
    if len(seeds) > len({label for label, _ in seeds}):
        text = "thin: seeds; thick: their median, band: 95 % bootstrap"
    if any(row["status"] == "diverged" for row in rows):
        text += "; cross: the last value of a seed that diverged"
    return text


def draw_line(
    line: Sequence[Axes], rows: list[dict], looks: dict[str, dict], title: str, spec: dict
) -> None:
    """A quantity of some variants, a panel each."""
    end = max(row["step"] for row in rows)
    for panel, (label, look) in zip(line, looks.items()):
        draw_variant(panel, rows_where(rows, variant=label), look, end)
    (values,) = columns(rows, "value")
    scale(line[0], spec["scales"].get(title, "linear"), values)
    axes.within(line[0], axes.possible_range(spec.get("measured", {}).get(title, "")))
    axes.large_numbers(line[0])
    axes.set_ylabel(line[0], f"{title}\n{spec['panels'][title]}", 8)
    known = [panel for panel, label in zip(line, looks) if rows_where(rows, variant=label)]
    if known:
        known[0].tick_params(labelleft=True)  # the first column may have no data


def draw_variant(panel: Axes, rows: list[dict], look: dict, end: float) -> None:
    """The seeds of a variant, and their median up to a step."""
    if not rows:
        style.absent(panel)
        return
    series = []
    for seed in distinct(rows, "seed"):
        members = rows_where(rows, seed=seed)
        points = np.stack(columns(members, "step", "value"), -1)
        series.append(points)
        panel.plot(*points.T, color=look["color"], linewidth=0.6, alpha=0.55)
        if members[0]["status"] == "diverged" and points[-1, 0] < end:
            panel.plot(*points[-1], "x", color=RED, markersize=5)
    steps = np.unique(np.concatenate([points[:, 0] for points in series]))
    values = np.stack([on_grid(points, steps) for points in series])
    known = np.isfinite(values).all(0)
    strata = [values[:, known].T]
    median = statistics.median_of_runs(strata)
    if len(series) > 1:
        low, high = statistics.stratified_bootstrap(strata, statistics.median_of_runs, 1_000)
        panel.fill_between(steps[known], low, high, color=look["color"], alpha=0.18, linewidth=0)
    marker = "o" if known.sum() == 1 else ""
    panel.plot(steps[known], median, color=look["color"], linewidth=2.2, marker=marker)


def scale(panel: Axes, kind: str, values: np.ndarray) -> None:
    """style.scale, but symlog is linear up to 100, since panels are small here."""
    style.scale(panel, kind, values)
    if panel.get_yscale() == "symlog":
        axes.log_scale(panel, linear=100.0)


SEEDS = Kind("seeds", draw)
