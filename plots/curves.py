"""curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from plots.recording import _columns, write_figure
from plots.statistics import BANDS
from plots.study import (
    BIAS,
    COEFFICIENTS,
    LARGEST,
    RETURN,
    Panel,
    Study,
    _early,
    _shared,
    aggregate,
    curves,
)
from plots.style import _caption, _curve, _legend, _scale, _tell
from plots.variants import looks


def curve_rows(study: Study, panels: Sequence[Panel]) -> list[dict]:
    """Points of `draw_curves`: one curve per variant in every panel that some run has data for."""
    rows = []
    for panel in panels:
        for name, curve in aggregate(study, panel).items():
            own = {
                "panel": panel.title,
                "unit": panel.unit,
                "statistic": panel.statistic,
                "variant": name,
            }
            own |= {"environments": curve["environments"], "runs": curve["runs"]}
            points = zip(*(curve[key].tolist() for key in ("step", "value", "low", "high")))
            rows += [own | dict(zip(("step", "value", "low", "high"), point)) for point in points]
    return rows


def draw_curves(rows: list[dict], spec: dict) -> Figure:
    """Rows of curve_rows; spec: variants in their order, caption, scales of panels (title -> log, symlog)."""
    titles, own = list(dict.fromkeys(row["panel"] for row in rows)), looks(spec["variants"])
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    figure = Figure((max(3.5 * columns, 6.5), 2.9 * lines + 1.1), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for each, title in zip(axes, titles):
        mine = [row for row in rows if row["panel"] == title]
        for name in (name for name in own if any(row["variant"] == name for row in mine)):
            _curve(
                each,
                name,
                own[name],
                *_columns(mine, ("variant", name), "step", "value", "low", "high"),
            )
        _scale(each, spec["scales"].get(title, "linear"), np.array([row["value"] for row in mine]))
        each.set_title(title, loc="left", fontweight="bold")
        each.set(xlabel="environment steps", ylabel=mine[0]["unit"], xlim=(0, None))
        each.xaxis.set_major_formatter(EngFormatter(sep=""))
    for each in axes[len(titles) :]:
        each.remove()
    drawn = {row["variant"] for row in rows}
    _legend(
        figure, [Line2D([], [], **look, label=name) for name, look in own.items() if name in drawn]
    )
    _caption(
        figure, *spec["caption"], "; ".join(dict.fromkeys(BANDS[row["statistic"]] for row in rows))
    )
    return figure


def environment_rows(
    study: Study, panels: Sequence[Panel], environments: Sequence[str]
) -> list[dict]:
    """Points of `draw_environments`: mean over seeds and standard deviation (ddof 1; NaN for one seed)."""
    rows = []
    for panel in panels:
        grid, found = curves(study, panel)
        for env in environments:
            for name in (name for name in study.variants if (name, env) in found):
                values = found[name, env]
                known = np.isfinite(values).all(-1)
                std = (
                    values[known].std(-1, ddof=1)
                    if values.shape[-1] > 1
                    else np.full(known.sum(), np.nan)
                )
                own = {
                    "environment": env,
                    "panel": panel.title,
                    "unit": panel.unit,
                    "variant": name,
                }
                points = zip(grid[known].tolist(), values[known].mean(-1).tolist(), std.tolist())
                rows += [
                    own | {"n": values.shape[-1], "step": x, "mean": m, "std": s}
                    for x, m, s in points
                ]
    return rows


def draw_environments(rows: list[dict], spec: dict) -> Figure:
    """Rows of environment_rows: a panel per environment of one quantity, or a row of panels each of several."""
    titles, own = list(dict.fromkeys(row["panel"] for row in rows)), looks(spec["variants"])
    cells = [
        (env, title) for env in sorted({row["environment"] for row in rows}) for title in titles
    ]
    columns = len(titles) if len(titles) > 1 else min(4, len(cells))
    lines = -(-len(cells) // columns)
    figure = Figure((max(3.1 * columns, 6.5), 2.3 * lines + 1.2), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for each, (env, title) in zip(axes, cells):
        mine = [row for row in rows if (row["environment"], row["panel"]) == (env, title)]
        for name in (name for name in own if any(row["variant"] == name for row in mine)):
            step, mean, std = _columns(mine, ("variant", name), "step", "mean", "std")
            low = mean - std
            if spec["scales"].get(title) == "log":
                low[low <= 0] = np.nan  # no band there, rather than one down to the floor
            _curve(each, name, own[name], step, mean, low, mean + std)
        short = env.rpartition("/")[2].removesuffix("-v0")
        each.set_title(short if len(titles) == 1 else f"{short}: {title}", fontsize=8)
        each.set(xlabel="environment steps", xlim=(0, None))
        each.xaxis.set_major_formatter(EngFormatter(sep=""))
        if mine:
            _scale(
                each, spec["scales"].get(title, "linear"), np.array([row["mean"] for row in mine])
            )
            each.set_ylabel(mine[0]["unit"] if each in axes[::columns] or len(titles) > 1 else "")
        else:
            _tell(each, "no data", color="0.4")
            each.set(xticks=[], yticks=[], xlabel="")
    for each in axes[len(cells) :]:
        each.remove()
    _legend(figure, [Line2D([], [], **look, label=name) for name, look in own.items()])
    _caption(figure, *spec["caption"], "mean over seeds, band: standard deviation")
    return figure


def _curves(study: Study, panels: Sequence[Panel], out: Path, name: str, title: str) -> list[Path]:
    spec = {"variants": study.variants, "scales": {panel.title: panel.scale for panel in panels}}
    rows = curve_rows(study, panels)
    caption = [title, study.counts, *_shared(study), *_early(study, panels)]
    if any(panel.key.startswith("charts/") for panel in panels):
        caption.append("returns of training games: means over the last fortieth of the steps")
    for panel in panels if rows else ():
        if panel.title not in {row["panel"] for row in rows}:
            print(f"{name}: nothing to draw for {panel.title}")
    return write_figure(out, name, "curves", rows, caption=caption, **spec)


def _environments(
    study: Study, panels: Sequence[Panel], out: Path, name: str, title: str, environments
) -> list[Path]:
    rows = environment_rows(study, panels, environments)
    spec = {"variants": study.variants, "scales": {panel.title: panel.scale for panel in panels}}
    caption = [title, study.counts, *_early(study, panels)]
    return write_figure(out, name, "environments", rows, caption=caption, **spec)


def _each_environment(study: Study, out: Path, name: str, title: str) -> list[Path]:
    """Return, overestimation, coefficients' gradient and largest output, five environments to a page."""
    panels, paths = [Panel("return", "evaluation return", RETURN), BIAS, COEFFICIENTS, LARGEST], []
    for k in range(-(-len(study.environments) // 5)):
        part = study.environments[5 * k : 5 * k + 5]
        page = name + (f"_{k + 1}" if len(study.environments) > 5 else "")
        paths += _environments(study, panels, out, page, title, part)
    return paths
