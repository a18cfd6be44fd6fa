"""q_parts."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from plots.aggregation import combined, grid_of, on_grid
from plots.reading import read_scalars
from plots.recording import _columns, write_figure
from plots.study import read_study
from plots.style import RC, _caption, _curve, _legend, _title
from plots.variants import BLACK, DQN, GREEN, GREY, RED


@matplotlib.rc_context(RC)
def q_split_figure(folder: Path) -> Figure | None:
    """What live neurons, dead neurons and the bias give to Q (HR Fig. 4). None without data (--analyse, --evaluate)."""
    scalars, total = read_scalars(folder), 0.0
    if "q_split/dead" not in scalars:
        return None
    figure = Figure((5, 3.2), layout="constrained")
    panel = figure.subplots()
    for key, look in {"live": (GREEN, "-"), "dead": (RED, "--"), "bias": (GREY, ":")}.items():
        steps, values, _ = scalars[f"q_split/{key}"].T
        total = total + values
        panel.plot(steps, values, color=look[0], linestyle=look[1], marker=".", label=key)
    panel.plot(steps, total, color=BLACK, linewidth=1, label="Q")
    panel.set(xlabel="environment steps", ylabel="mean over observations and actions")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.legend()
    _title(figure, folder, "What live and dead neurons of the last hidden layer give to Q")
    return figure


def draw_parts(rows: list[dict], spec: dict) -> Figure:
    """HR Fig. 4: parts of Q, a panel per game and variant."""
    cells = list(dict.fromkeys((row["environment"], row["variant"]) for row in rows))
    columns = min(4, len(cells))
    lines = -(-len(cells) // columns)
    figure = Figure((max(3.2 * columns, 6.5), 2.6 * lines + 1.1), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, cell in zip(axes, cells):
        mine = [row for row in rows if (row["environment"], row["variant"]) == cell]
        for part, look in PARTS.items():
            step, mean, std = _columns(mine, ("part", part), "step", "mean", "std")
            _curve(panel, part, look, step, mean, mean - std, mean + std)
        panel.set_title(f"{cell[0]}, {cell[1]} (n = {mine[0]['n']})")
        panel.set(
            xlabel="environment steps", ylabel="mean part of Q" if panel in axes[::columns] else ""
        )
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    for panel in axes[len(cells) :]:
        panel.remove()
    _legend(figure, axes[0].get_legend_handles_labels()[0])
    _caption(figure, *spec["caption"])
    return figure


PARTS = {  # of Q
    "live": {"color": GREEN, "linestyle": "-", "marker": "."},
    "dead": {"color": RED, "linestyle": "--", "marker": "."},
    "bias": {"color": GREY, "linestyle": ":", "marker": "."},
}


def hr4(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Fig. 4: what live neurons, dead neurons and the bias give to DQN's Q, over training (runs with --analyse)."""
    study, rows = read_study(runs, DQN, "q_split/(live|dead|bias)", where), []
    study = study.only(variants) if variants else study
    for (variant, env), each in study.cells.items():
        for run in each:
            if not run.scalars:
                why = (
                    "diverged before it was analysed"
                    if run.has_diverged
                    else "trained without --analyse"
                )
                print(f"missing: {variant} on {env} s{run.config['seed']} ({why})")
        each = [run for run in each if run.scalars]
        for part in PARTS if each else ():
            grid = grid_of(each, "q_split/(live|dead|bias)")
            values = np.stack([on_grid(combined(run, f"q_split/{part}"), grid) for run in each], -1)
            std = values.std(-1) if len(each) > 1 else np.full(len(grid), np.nan)
            own = {"environment": env, "variant": variant, "part": part, "n": len(each)}
            points = zip(*(column.tolist() for column in (grid, values.mean(-1), std)))
            rows += [own | dict(zip(("step", "mean", "std"), point)) for point in points]
    told = "mean over observations and actions, then seeds; band: std over seeds"
    return write_figure(
        out,
        "hr4",
        "parts",
        rows,
        caption=["HR Fig. 4: parts of Q, DQN's last hidden layer", study.counts, told],
    )
