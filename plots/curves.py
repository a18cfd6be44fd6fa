"""Curves of variants over training: statistics over environments, and each environment."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import axes, style
from plots.panels import (
    Curve,
    Panel,
    aggregate,
    carried_notes,
    curves,
    early_notes,
    left_out_notes,
    statistics_text,
)
from plots.recording import Kind, columns, distinct, rows_where, write_figure
from plots.study import Missing, Study, missing_text
from plots.variants import styles_in

# ---- a curve per variant, over all environments --------------------------------------------------


def write_curves(
    study: Study, panels: Sequence[Panel], out: Path, name: str, title: str
) -> list[Path]:
    """Write a figure with a panel per quantity."""
    found = {panel.title: aggregate(study, panel) for panel in panels}
    rows = rows_of_curves(panels, found)
    caption = [title, study.counts, *left_out_notes(found), *early_notes(study, panels)]
    carried = []
    for panel in panels:
        steps_of = {label: curve.steps for label, curve in found[panel.title].items()}
        carried += carried_notes(study, panel, steps_of)
    caption += dict.fromkeys(carried)
    if any(panel.is_of_training_games for panel in panels):
        caption.append("returns of training games: means over the last fortieth of the steps")
    drawn = {*distinct(rows, "panel")}
    absent = [panel.title for panel in panels if panel.title not in drawn]
    if rows and absent:
        caption.append(f"no data: {', '.join(absent)}")
        for title_of_panel in absent:
            print(f"{name}: nothing to draw for {title_of_panel}")
    return write_figure(
        out,
        name,
        CURVES,
        rows,
        caption=caption,
        variants=study.labels,
        activation_of=study.activation_of,
        scales={panel.title: panel.scale for panel in panels},
        measured={panel.title: panel.measured for panel in panels},
    )


def curve_rows(study: Study, panels: Sequence[Panel]) -> list[dict]:
    """Points of draw_curves: one curve per variant in every panel that some run has data for."""
    return rows_of_curves(panels, {panel.title: aggregate(study, panel) for panel in panels})


def rows_of_curves(panels: Sequence[Panel], found: dict[str, dict[str, Curve]]) -> list[dict]:
    """The rows of curve_rows from curves. found: title -> label -> curve."""
    rows = []
    for panel in panels:
        for label, curve in found[panel.title].items():
            row = {
                "panel": panel.title,
                "unit": panel.unit,
                "statistic": panel.statistic,
                "variant": label,
                "environments": curve.environments,
                "runs": curve.runs,
            }
            rows += [row | point for point in curve.points()]
    return rows


def draw_curves(rows: list[dict], spec: dict) -> Figure:
    titles = distinct(rows, "panel")
    looks = styles_in(spec)
    figure, panels = style.grid_of_panels(len(titles), min(3, len(titles)), (3.5, 2.9), 1.1)
    for panel, title in zip(panels, titles):
        members = rows_where(rows, panel=title)
        bounds = axes.possible_range(spec.get("measured", {}).get(title, ""))
        for label, look in looks.items():
            points = rows_where(members, variant=label)
            if points:
                steps, value, low, high = columns(points, "step", "value", "low", "high")
                style.curve(panel, label, look, steps, value, *np.clip((low, high), *bounds))
        (values,) = columns(members, "value")
        style.scale(panel, spec["scales"].get(title, "linear"), values)
        style.left_title(panel, title)
        style.steps_axis(panel)
        axes.set_ylabel(panel, members[0]["unit"])
        panel.set_xlim(0, None)
        axes.within(panel, bounds)
        axes.large_numbers(panel)
    drawn = {*distinct(rows, "variant")}
    shown = {label: look for label, look in looks.items() if label in drawn}
    style.legend(figure, style.line_handles(shown))
    style.caption(figure, *spec["caption"], statistics_text(rows))
    return figure


# ---- each environment ----------------------------------------------------------------------------


def write_environments(
    study: Study,
    panels: Sequence[Panel],
    out: Path,
    name: str,
    title: str,
    environments: Sequence[str],
) -> list[Path]:
    """Write a figure of each environment, with a curve per variant."""
    rows = environment_rows(study, panels, environments)
    caption = [title, study.counts, *early_notes(study, panels)]
    drawn = {(row["variant"], row["environment"]) for row in rows}
    without = [cell for cell in study.cells if cell[1] in environments and cell not in drawn]
    if rows and without:
        caption.append(f"no values: {missing_text([Missing(*cell) for cell in without])}")
    return write_figure(
        out,
        name,
        ENVIRONMENTS,
        rows,
        caption=caption,
        variants=study.labels,
        activation_of=study.activation_of,
        scales={panel.title: panel.scale for panel in panels},
        measured={panel.title: panel.measured for panel in panels},
    )


def environment_rows(
    study: Study, panels: Sequence[Panel], environments: Sequence[str]
) -> list[dict]:
    """Points of draw_environments: mean over seeds and standard deviation (ddof 1; NaN for one
    seed)."""
    rows = []
    for panel in panels:
        grid, found = curves(study, panel)
        for env in environments:
            for label in study.labels:
                if (label, env) not in found:
                    continue
                row = {
                    "environment": env,
                    "panel": panel.title,
                    "unit": panel.unit,
                    "variant": label,
                    "n": found[label, env].shape[-1],
                }
                rows += [row | point for point in seed_points(grid, found[label, env])]
    return rows


def seed_points(grid: np.ndarray, values: np.ndarray) -> list[dict[str, float]]:
    """Step, mean and standard deviation of values (steps, seeds) where all seeds have one."""
    known = np.isfinite(values).all(-1)
    means = values[known].mean(-1)
    if values.shape[-1] > 1:
        deviations = values[known].std(-1, ddof=1)
    else:
        deviations = np.full(len(means), np.nan)
    points = []
    for step, mean, std in zip(grid[known].tolist(), means.tolist(), deviations.tolist()):
        points.append({"step": step, "mean": mean, "std": std})
    return points


def draw_environments(rows: list[dict], spec: dict) -> Figure:
    """A panel per environment for one quantity; for several, a row of panels each."""
    titles = distinct(rows, "panel")
    looks = styles_in(spec)
    cells = []
    for env in sorted(distinct(rows, "environment")):
        cells += [(env, title) for title in titles]
    has_several = len(titles) > 1
    number = len(titles) if has_several else min(4, len(cells))
    size = style.size_of_columns(number, 3.1), 2.3
    figure, panels = style.grid_of_panels(len(cells), number, size, 1.2)
    for index, (panel, (env, title)) in enumerate(zip(panels, cells)):
        members = rows_where(rows, environment=env, panel=title)
        short = env.rpartition("/")[2].removesuffix("-v0")
        style.title(panel, f"{short}: {title}" if has_several else short, 8)
        if not members:
            style.absent(panel)
            continue
        bounds = axes.possible_range(spec.get("measured", {}).get(title, ""))
        draw_environment(panel, members, looks, spec["scales"].get(title, "linear"), bounds)
        if has_several or index % number == 0:
            axes.set_ylabel(panel, members[0]["unit"])
    drawn = {*distinct(rows, "variant")}
    shown = {label: look for label, look in looks.items() if label in drawn}
    style.legend(figure, style.line_handles(shown))
    counts = [int(row["n"]) for row in rows]
    text = style.band_text(counts, "mean", "standard deviation")
    if max(counts) > 1 and "log" in spec["scales"].values():
        text += " (on log axes the same factor up and down)"
    style.caption(figure, *spec["caption"], text)
    return figure


def draw_environment(
    panel: Axes,
    rows: list[dict],
    looks: dict[str, dict],
    scale: str,
    bounds: tuple[float, float],
) -> None:
    """The variants' curves of one environment and quantity."""
    for label, look in looks.items():
        points = rows_where(rows, variant=label)
        if not points:
            continue
        steps, mean, std = columns(points, "step", "mean", "std")
        low = mean - std
        if scale == "log":
            low = axes.band_by_factor(mean, std)
        style.curve(panel, label, look, steps, mean, *np.clip((low, mean + std), *bounds))
    style.steps_axis(panel)
    panel.set_xlim(0, None)
    (means,) = columns(rows, "mean")
    style.scale(panel, scale, means)
    axes.within(panel, bounds)
    axes.large_numbers(panel)


CURVES = Kind("curves", draw_curves)
ENVIRONMENTS = Kind("environments", draw_environments)
