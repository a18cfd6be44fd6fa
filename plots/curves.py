"""Curves of variants over training: statistics over environments, and each environment."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import style
from plots.panels import STATISTICS, Panel, aggregate, curves, told_early
from plots.recording import Kind, columns, distinct, rows_where, write_figure
from plots.study import Study
from plots.variants import styles_in

# ---- a curve per variant, over all environments --------------------------------------------------


def write_curves(
    study: Study, panels: Sequence[Panel], out: Path, name: str, title: str
) -> list[Path]:
    """write_figure of a panel per quantity."""
    rows = curve_rows(study, panels)
    caption = [title, study.counts, *study.told_shared(), *told_early(study, panels)]
    if any(panel.is_of_training_games for panel in panels):
        caption.append("returns of training games: means over the last fortieth of the steps")
    drawn = {*distinct(rows, "panel")}
    for panel in panels:
        if rows and panel.title not in drawn:
            print(f"{name}: nothing to draw for {panel.title}")
    return write_figure(
        out,
        name,
        CURVES,
        rows,
        caption=caption,
        variants=study.labels,
        activation_of=study.activation_of,
        scales={panel.title: panel.scale for panel in panels},
    )


def curve_rows(study: Study, panels: Sequence[Panel]) -> list[dict]:
    """Points of draw_curves: one curve per variant in every panel that some run has data for."""
    rows = []
    for panel in panels:
        for label, curve in aggregate(study, panel).items():
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
        for label, look in looks.items():
            own = rows_where(members, variant=label)
            if own:
                style.curve(panel, label, look, *columns(own, "step", "value", "low", "high"))
        (values,) = columns(members, "value")
        style.scale(panel, spec["scales"].get(title, "linear"), values)
        style.left_title(panel, title)
        style.steps_axis(panel)
        panel.set(ylabel=members[0]["unit"], xlim=(0, None))
    drawn = {*distinct(rows, "variant")}
    shown = {label: look for label, look in looks.items() if label in drawn}
    style.legend(figure, style.line_handles(shown))
    bands = [STATISTICS[name].caption for name in distinct(rows, "statistic")]
    style.caption(figure, *spec["caption"], "; ".join(bands))
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
    """write_figure of each environment, a curve per variant."""
    return write_figure(
        out,
        name,
        ENVIRONMENTS,
        environment_rows(study, panels, environments),
        caption=[title, study.counts, *told_early(study, panels)],
        variants=study.labels,
        activation_of=study.activation_of,
        scales={panel.title: panel.scale for panel in panels},
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
    """A panel per environment of one quantity, or a row of panels each of several."""
    titles = distinct(rows, "panel")
    looks = styles_in(spec)
    cells = []
    for env in sorted(distinct(rows, "environment")):
        cells += [(env, title) for title in titles]
    has_several = len(titles) > 1
    number = len(titles) if has_several else min(4, len(cells))
    figure, panels = style.grid_of_panels(len(cells), number, (3.1, 2.3), 1.2)
    for index, (panel, (env, title)) in enumerate(zip(panels, cells)):
        members = rows_where(rows, environment=env, panel=title)
        short = env.rpartition("/")[2].removesuffix("-v0")
        panel.set_title(f"{short}: {title}" if has_several else short, fontsize=8)
        if not members:
            style.note(panel, "no data", color=style.FAINT)
            panel.set(xticks=[], yticks=[])
            continue
        draw_environment(panel, members, looks, spec["scales"].get(title, "linear"))
        if has_several or index % number == 0:
            panel.set_ylabel(members[0]["unit"])
    style.legend(figure, style.line_handles(looks))
    style.caption(figure, *spec["caption"], "mean over seeds, band: standard deviation")
    return figure


def draw_environment(panel: Axes, rows: list[dict], looks: dict[str, dict], scale: str) -> None:
    """The variants' curves of one environment and quantity."""
    for label, look in looks.items():
        own = rows_where(rows, variant=label)
        if not own:
            continue
        steps, mean, std = columns(own, "step", "mean", "std")
        low = mean - std
        if scale == "log":
            low[low <= 0] = np.nan  # no band there, rather than one down to the floor
        style.curve(panel, label, look, steps, mean, low, mean + std)
    style.steps_axis(panel)
    panel.set_xlim(0, None)
    (means,) = columns(rows, "mean")
    style.scale(panel, scale, means)


CURVES = Kind("curves", draw_curves)
ENVIRONMENTS = Kind("environments", draw_environments)
