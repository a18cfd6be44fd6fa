"""demo."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots.activation_shapes import LAYER_MARKERS, SHADES, _draw_functions
from plots.aggregation import aligned, common_end, mean_and_deviation
from plots.reading import Loaded
from plots.recording import _print
from plots.style import FIRST, RC, _caption, _draw_seeds, _save
from plots.variants import all_runs, load


def _draw_curves(panel, groups: dict[str, list[Loaded]], key: str, title: str, ylabel: str) -> None:
    """_draw_seeds of a key of these runs."""
    _draw_seeds(panel, {name: aligned(runs, key) for name, runs in groups.items()}, title, ylabel)


@matplotlib.rc_context(RC)
def demo_figure(run_folders: Sequence[str | Path]) -> Figure:
    """(a) evaluation return, (b) overestimation, (c) activation functions before and after, activations compared."""
    groups = load(run_folders)
    env_id = next(iter(groups.values()))[0].config["env_id"]
    figure = Figure((9.5, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    left, right = top.subplots(1, 2)
    _draw_curves(
        left,
        groups,
        "eval/episodic_return",
        "(a) evaluation, deterministic policy",
        "episodic return",
    )
    _draw_curves(
        right,
        groups,
        "overestimation/mean",
        "(b) overestimation, stochastic policy",
        "Q minus return",
    )
    right.axhline(0, color="0.4", linewidth=0.8)
    handles = left.get_legend_handles_labels()[0]
    top.legend(
        handles=handles, loc="outside lower center", ncols=min(len(groups), 5), handlelength=3.5
    )
    panels = bottom.subplots(1, len(groups), squeeze=False)[0]
    for panel, (activation, runs) in zip(panels, groups.items()):
        _draw_functions(panel, activation, runs[0])
    panels[0].set_ylabel("f(x)")
    handles = [Line2D([], [], **FIRST, label="before")]
    handles += [
        Line2D([], [], color=str(0.95 - 0.9 * k), label=f"after: {name}")
        for name, k in SHADES.items()
    ]
    options = {"color": "0.3", "linestyle": "", "markersize": 3.5}
    handles += [
        Line2D([], [], marker=marker, label=layer, **options)
        for layer, marker in LAYER_MARKERS.items()
    ]
    bottom.legend(handles=handles, loc="outside lower center", ncols=6)
    bottom.suptitle("(c) activation functions", x=0.01, ha="left", fontweight="bold", fontsize=9)
    every = all_runs(groups)
    cut = common_end(every, "eval/episodic_return")
    lines = [f"{env_id}: mean over seeds, band from worst to best seed"]
    if cut.shortest is not None:
        ended = f"{cut.shortest.folder.name} ({cut.shortest.config['status']})"
        lines.append(
            f"each mean ends with its shortest seed; the first to end is {ended}, at step {cut.step:,.0f}"
        )
    _caption(figure, *lines, fontsize=10)
    return figure


def draw_demo(run_folders: Sequence[str | Path], path: str | Path) -> Path:
    """Save demo_figure of these runs as a PNG at `path`."""
    return _save(demo_figure(run_folders), Path(path))


COLUMNS = {  # title: (key pattern, format); averages over layers and critics
    "final return": (r"eval/episodic_return", "{:.1f}"),
    "overestimation": (r"overestimation/mean", "{:.2f}"),
    "critic rank": (r"network/qf\d?/fc\d+/srank", "{:.1f}"),
    "critic dead share": (r"network/qf\d?/fc\d+/dead_share", "{:.3f}"),
    "seconds": (r"eval/episodic_return", "{:.0f}"),
}


def table(run_folders: Sequence[str | Path]) -> list[list[str]]:
    """Header and one row per activation: n, then mean +- std (ddof 1) over seeds of the last values, of all runs at the
    last step that all have reached."""
    return _table(load(run_folders))[0]


def _table(groups: dict[str, list[Loaded]]) -> tuple[list[list[str]], list[str]]:
    """`table`, and the lines below it: what was cut."""
    every = all_runs(groups)
    cuts = {title: common_end(every, pattern) for title, (pattern, _) in COLUMNS.items()}
    rows = [["activation", "n", *COLUMNS]]
    for activation, runs in groups.items():
        rows.append([activation, _count(runs)])
        for title, (pattern, text) in COLUMNS.items():
            column = 2 if title == "seconds" else 1
            values = [run.last(pattern, column, cuts[title].step) for run in runs]
            rows[-1].append(mean_and_deviation(values, len(runs), text))
    told = {}
    for title, cut in cuts.items():
        for line in cut.told("PLACE"):
            told.setdefault(line, []).append(title)
    return rows, [line.replace("PLACE", ", ".join(titles), 1) for line, titles in told.items()]


def _count(runs: Sequence[Loaded]) -> str:
    diverged = sum(run.has_diverged for run in runs)
    return f"{len(runs)} ({diverged} diverged)" if diverged else f"{len(runs)}"


def print_table(run_folders: Sequence[str | Path]) -> None:
    """Print `table`, aligned, and what was cut."""
    rows, cut = _table(load(run_folders))
    _print(rows)
    print(
        "last values; mean +- standard deviation over n seeds; rank and dead share: mean over the critics' layers"
    )
    for line in cut:
        print(line)
