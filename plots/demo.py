"""Activations compared on one environment: a figure of three parts, and a table."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from plots import style
from plots.activation_shapes import before_and_after_handles, draw_before_and_after
from plots.aggregation import aligned, common_end, mean_and_deviation, told_count, told_cuts
from plots.reading import Loaded
from plots.tables import print_table
from plots.variants import all_runs, load, style_of

RETURN = "eval/episodic_return"
BIAS = "overestimation/mean"
COLUMNS = {  # title: (key pattern, format); averages over layers and critics
    "final return": (RETURN, "{:.1f}"),
    "overestimation": (BIAS, "{:.2f}"),
    "critic rank": (r"network/qf\d?/fc\d+/srank", "{:.1f}"),
    "critic dead share": (r"network/qf\d?/fc\d+/dead_share", "{:.3f}"),
    "seconds": (RETURN, "{:.0f}"),
}
# columns of scalars
VALUE = 1
WALL_TIME = 2


@style.with_style
def demo_figure(run_folders: Sequence[str | Path]) -> Figure:
    """(a) evaluation return, (b) overestimation, (c) activation functions before and after,
    activations compared."""
    groups = load(run_folders)
    runs = all_runs(groups)
    figure = Figure((9.5, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    draw_curves(top, groups)
    draw_shapes(bottom, groups)
    lines = [f"{runs[0].config['env_id']}: mean over seeds, band from worst to best seed"]
    cut = common_end(runs, RETURN)
    if cut.shortest is not None:
        ended = f"{cut.shortest.folder.name} ({cut.shortest.status}), at step {cut.step:,.0f}"
        lines.append(f"each mean ends with its shortest seed; the first to end is {ended}")
    style.caption(figure, *lines, fontsize=10)
    return figure


def draw_curves(part: SubFigure, groups: dict[str, list[Loaded]]) -> None:
    """Return and overestimation over training."""
    left, right = part.subplots(1, 2)
    title = "(a) evaluation, deterministic policy"
    draw_key(left, groups, RETURN, title, "episodic return")
    title = "(b) overestimation, stochastic policy"
    draw_key(right, groups, BIAS, title, "Q minus return")
    right.axhline(0, color="0.4", linewidth=0.8)
    handles = left.get_legend_handles_labels()[0]
    columns = min(len(groups), 5)
    part.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.5)


def draw_key(
    panel: Axes, groups: dict[str, list[Loaded]], key: str, title: str, ylabel: str
) -> None:
    """The seeds of every activation."""
    curves = {name: aligned(runs, key) for name, runs in groups.items()}
    looks = {name: style_of(name) for name in groups}
    style.seeds(panel, curves, looks, title, ylabel)


def draw_shapes(part: SubFigure, groups: dict[str, list[Loaded]]) -> None:
    """The activation functions of the first seed of each."""
    panels = part.subplots(1, len(groups), squeeze=False)[0]
    for panel, (activation, runs) in zip(panels, groups.items()):
        draw_before_and_after(panel, activation, runs[0])
    panels[0].set_ylabel("f(x)")
    part.legend(handles=before_and_after_handles(), loc="outside lower center", ncols=6)
    title = "(c) activation functions"
    part.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9)


def draw_demo(run_folders: Sequence[str | Path], path: str | Path) -> Path:
    """Save demo_figure of these runs as a picture at `path`."""
    return style.save(demo_figure(run_folders), Path(path))


def demo_table(run_folders: Sequence[str | Path]) -> tuple[list[list[str]], list[str]]:
    """Header and one row per activation: n, then mean +- std (ddof 1) over seeds of the last
    values, of all runs at the last step that all have reached; and the lines below: what was
    cut."""
    groups = load(run_folders)
    runs = all_runs(groups)
    cuts = {title: common_end(runs, pattern) for title, (pattern, _) in COLUMNS.items()}
    rows = [["activation", "n", *COLUMNS]]
    for activation, members in groups.items():
        row = [activation, told_count(members)]
        for title, (pattern, text) in COLUMNS.items():
            column = WALL_TIME if title == "seconds" else VALUE
            values = [run.last(pattern, column, cuts[title].step) for run in members]
            row.append(mean_and_deviation(values, len(members), text))
        rows.append(row)
    return rows, told_cuts(cuts)


def print_demo_table(run_folders: Sequence[str | Path]) -> None:
    """Print demo_table, aligned."""
    rows, cuts = demo_table(run_folders)
    print_table(rows)
    print(
        "last values; mean +- standard deviation over n seeds; "
        "rank and dead share: mean over the critics' layers"
    )
    for line in cuts:
        print(line)
