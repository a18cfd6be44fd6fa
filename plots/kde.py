"""Densities of 16 neurons' activations, dead ones outlined (HR Figs. 3, 6, 10, 11)."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure, SubFigure

from plots import style
from plots.axes import wrapped
from plots.layers import depth, read_rows
from plots.reading import Loaded, Places
from plots.recording import Kind, distinct, file_name, rows_where, write_figure
from plots.study import read_study
from plots.variants import BLACK, BLUE, DQN, RED

MAX_BRANCHES = 4  # most branches of a layer whose densities are drawn
NEURONS = 16  # in a grid
OUTLINED = "outlined: dead (peak above 20, dotted line)"
KDE = r"(?:branch\d+_)?kde"
SMALL = 6  # font size
FRAME_WIDTH = 0.88  # fraction of a cell; the rest is for its ticks
FRAME_HEIGHT = 0.6
DEAD_PEAK = 20.0  # a neuron whose density has a higher peak is dead (HR)
MAX_COLUMNS = 4  # grids side by side


@dataclass
class Grid:
    """A grid of neurons: its title, and for each neuron a row of x, y, whether it is dead, and, in
    newer runs, the peak by which that was decided."""

    title: str
    neurons: list[dict]


# ---- one run -------------------------------------------------------------------------------------


@style.with_style
def kde_figure(folder: Path) -> Figure | None:
    """Newest densities of 16 neurons of each network's last hidden layer; for a layer with several
    branches also those of each branch, with one network per row. None if there are none."""
    found = read_rows(folder, "curves.jsonl", KDE, max_branches=MAX_BRANCHES)
    if not found:
        return None
    last = {}  # network: its last layer
    for layer, network in sorted(found, key=lambda key: (depth(key[0]), key)):
        last[network] = layer
    lines = []  # grids, a network in a row
    num_branches = 0
    for network in sorted(last):
        densities = found[last[network], network]
        grids = grids_of_layer(f"{network}, {last[network]}", densities)
        if grids:
            lines.append(grids)
        num_branches = max(num_branches, count_branches(densities))
    if max(len(line) for line in lines) == 1:
        lines = [[grid for (grid,) in lines]]
    heading = f"Activation densities, step {lines[0][0].neurons[0]['step']:,}"
    if num_branches > MAX_BRANCHES:
        heading += f", the first {MAX_BRANCHES} of {num_branches} branches"
    heading += f"\n{OUTLINED}"
    columns = max(len(line) for line in lines)
    title = style.run_title_text(width_of(columns), folder, heading)
    figure, places = grids_figure(len(lines), columns, title.count("\n") + 1)
    for subfigures, line in zip(places, lines):
        for subfigure, grid in zip(subfigures, line):
            draw_grid(subfigure, grid)
    style.run_title(figure, folder, heading, y=1 - 0.06 / figure.get_figheight())
    return figure


def branch_of(key: str) -> int | None:
    """The branch whose densities a key has, by its number; None: the layer's output."""
    match = re.match(r"branch(\d+)_", key)
    return int(match[1]) if match else None


def count_branches(densities: dict[str, list[dict]]) -> int:
    """How many branches a layer has, whether drawn or not."""
    branches = [branch_of(key) for key in densities]
    return max((branch + 1 for branch in branches if branch is not None), default=0)


def grids_of_layer(title: str, densities: dict[str, list[dict]]) -> list[Grid]:
    """The newest densities of a layer: a grid per branch, then one for the output."""
    neurons = defaultdict(list)  # branch, None for the output: rows
    for key, rows in densities.items():
        if rows:
            neurons[branch_of(key)].append(rows[-1])
    outputs = neurons.pop(None, [])
    grids = []
    for branch, rows in neurons.items():
        grids.append(Grid(f"{title}, branch {branch + 1}", rows))
    if outputs:
        grids.append(Grid(f"{title}, output" if grids else title, outputs))
    return grids


# ---- a grid of neurons ---------------------------------------------------------------------------


def width_of(num_columns: int) -> float:
    """Width in inches of a figure with so many grids side by side."""
    return max(3.3 * num_columns + 0.2, 4.4)


def grids_figure(
    num_rows: int, num_columns: int, num_lines: int
) -> tuple[Figure, list[list[SubFigure]]]:
    """A figure with a title of so many lines and a subfigure for each grid of neurons. Everything
    is placed by hand: a layout engine takes minutes for hundreds of small panels, and a run's plots
    are drawn while it trains."""
    top = 0.17 * num_lines + 0.12
    figure = Figure((width_of(num_columns), 3.8 * num_rows + top))
    heights = (top, *[3.8] * num_rows)
    spec = figure.add_gridspec(1 + num_rows, num_columns, height_ratios=heights)
    places = []
    for row in range(num_rows):
        line = [figure.add_subfigure(spec[1 + row, column]) for column in range(num_columns)]
        places.append(line)
    return figure, places


@dataclass
class Artists:
    """The parts of a grid's collections."""

    curves: list
    fills: list
    ticks: list
    thresholds: list
    frames: list
    frame_colours: list
    frame_widths: list


def draw_grid(subfigure: SubFigure, grid: Grid) -> None:
    """Densities of up to 16 neurons, each in a cell with its own scale. All are collections of
    lines in one panel: an Axes for every neuron would take a hundred times as long."""
    neurons = grid.neurons[:NEURONS]
    num_dead = sum(bool(neuron.get("dead")) for neuron in neurons)
    title = f"{grid.title}: {num_dead} of {len(neurons)} dead"
    room = subfigure.bbox.width / subfigure.dpi - 0.1
    subfigure.suptitle(wrapped(title, room, 9, max_lines=2), fontsize=9, y=0.985)
    side = int(np.ceil(np.sqrt(len(neurons))))
    panel = subfigure.add_axes((0.03, 0.08, 0.94, 0.84))
    panel.set(xlim=(0, side), ylim=(0, side))
    panel.set_axis_off()
    artists = Artists([], [], [], [], [], [], [])
    for index, neuron in enumerate(neurons):
        left = index % side + 0.05
        bottom = side - 1 - index // side + 0.2
        draw_cell(panel, artists, neuron, left, bottom)
    panel.add_collection(PolyCollection(artists.fills, facecolors=BLUE, alpha=0.35, linewidths=0))
    curves = LineCollection(artists.curves, colors=BLUE, linewidths=0.9, label="densities")
    panel.add_collection(curves)
    panel.add_collection(LineCollection(artists.ticks, colors=BLACK, linewidths=0.6))
    look = {"colors": RED, "linewidths": 0.6, "linestyles": ":", "label": "thresholds"}
    panel.add_collection(LineCollection(artists.thresholds, **look))
    frames = LineCollection(
        artists.frames,
        colors=artists.frame_colours,
        linewidths=artists.frame_widths,
        label="frames",
    )
    panel.add_collection(frames)
    subfigure.supxlabel("activation (each neuron's own scale)", fontsize=8, y=0.03)


def draw_cell(panel: Axes, artists: Artists, neuron: dict, left: float, bottom: float) -> None:
    """A neuron's frame, curve and ticks; left, bottom: of its frame."""
    width = FRAME_WIDTH
    height = FRAME_HEIGHT
    is_dead = bool(neuron.get("dead"))
    corners = [(0, 0), (width, 0), (width, height), (0, height), (0, 0)]
    artists.frames.append([(left + dx, bottom + dy) for dx, dy in corners])
    artists.frame_colours.append(RED if is_dead else "0.7")
    artists.frame_widths.append(2 if is_dead else 0.5)
    x = np.asarray(neuron["x"], dtype=float)
    y = np.asarray(neuron["y"], dtype=float)
    if not np.isfinite([x, y]).all() or x[-1] <= x[0]:
        middle = left + width / 2, bottom + height / 2
        look = {"color": RED, "ha": "center", "va": "center", "fontsize": SMALL}
        panel.text(*middle, "not\nfinite", **look)
        return
    highest = 1.12 * y.max() if y.max() > 0 else 1.0
    across = left + width * (x - x[0]) / (x[-1] - x[0])
    curve = np.stack([across, bottom + height * y / highest], -1)
    artists.curves.append(curve)
    artists.fills.append([(across[0], bottom), *curve, (across[-1], bottom)])
    if highest > DEAD_PEAK:
        at = bottom + height * DEAD_PEAK / highest
        artists.thresholds.append([(left, at), (left + width, at)])
    draw_ticks(panel, artists, (x[0], x[-1]), left, bottom)
    above = {"y": bottom + height + 0.015, "fontsize": SMALL, "va": "bottom"}
    peak = neuron.get("peak", y.max())  # the curve's points may miss the peak
    panel.text(left, s=f"peak {peak:.3g}", **above)
    if is_dead:
        panel.text(left + width, s="dead", color=RED, ha="right", **above)


def draw_ticks(
    panel: Axes, artists: Artists, ends: tuple[float, float], left: float, bottom: float
) -> None:
    """A cell's own scale: its two ends, with labels that do not touch each other, and 0 as a tick
    without a label."""
    for fraction, value, alignment in ((0.0, ends[0], "left"), (1.0, ends[1], "right")):
        at = left + fraction * FRAME_WIDTH
        artists.ticks.append([(at, bottom), (at, bottom - 0.03)])
        panel.text(at, bottom - 0.04, end_label(value), ha=alignment, va="top", fontsize=SMALL)
    if ends[0] < 0 < ends[1]:
        at = left - FRAME_WIDTH * ends[0] / (ends[1] - ends[0])
        artists.ticks.append([(at, bottom), (at, bottom - 0.03)])


def end_label(value: float) -> str:
    """A number in at most six characters, with two significant digits or one."""
    text = f"{value:.2g}"
    if len(text) > 6:
        text = f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "\N{MINUS SIGN}")


# ---- HR's figures --------------------------------------------------------------------------------


def hr3(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 3, 6, 10 and 11: densities of 16 neurons of DQN's last hidden layer, dead ones
    outlined, for the branches and the product, of the lowest seed of each game and activation."""
    study = read_study(runs, DQN, "-", where)
    if variants:
        study = study.only(variants)
    paths = []
    taken = set()
    for (label, env), (run, *_) in study.cells.items():
        layer, rows = density_rows(run)
        short = re.sub("[^A-Za-z0-9_.]+", "-", label)
        name = file_name(f"hr3-{env}-{short}", taken)
        ended = " (diverged)" if run.has_diverged else ""
        number = len({(row["part"], row["neuron"]) for row in rows if row["part"] == "output"})
        title = f"Densities of {number} neurons of {layer}: {env}, {label}, seed {run.seed}{ended}"
        paths += write_figure(out, name, DENSITIES, rows, caption=[title])
    return paths


def density_rows(run: Loaded) -> tuple[str, list[dict]]:
    """The last layer that has densities, and their newest points."""
    found = read_rows(run.folder, "curves.jsonl", KDE)
    last = max((layer for layer, _ in found), key=depth, default="")
    rows = []
    for (layer, _), densities in found.items():
        if layer != last:
            continue
        for key, lines in densities.items():
            newest = lines[-1]
            part, _, neuron = key.rpartition("kde")
            row = {
                "step": newest["step"],
                "part": part.rstrip("_") or "output",
                "neuron": neuron.strip("_"),
                "dead": int(bool(newest.get("dead"))),
            }
            if "peak" in newest:
                row["peak"] = float(newest["peak"])
            for x, y in zip(newest["x"], newest["y"]):
                rows.append(row | {"x": float(x), "density": float(y)})
    return last, rows


def draw_densities(rows: list[dict], spec: dict) -> Figure:
    """A grid of neurons for every part: the branches, then the output."""
    parts = sorted(distinct(rows, "part"), key=lambda part: (part == "output", part))
    lines = style.rows_of(parts, MAX_COLUMNS)
    caption = [*spec["caption"], f"step {float(rows[0]['step']):,.0f}; {OUTLINED}"]
    shown = style.caption_text(width_of(len(lines[0])), *caption)
    figure, places = grids_figure(len(lines), len(lines[0]), shown.count("\n") + 1)
    for subfigures, line in zip(places, lines):
        for place, part in zip(subfigures, line):
            neurons = defaultdict(list)
            for row in rows_where(rows, part=part):
                neurons[row["neuron"]].append(row)
            grid = Grid(part_title(part), [neuron_of(points) for points in neurons.values()])
            draw_grid(place, grid)
    style.caption(figure, *caption, y=1 - 0.06 / figure.get_figheight())
    return figure


def part_title(part: str) -> str:
    """A part's title, counted from 1: branch0 is "branch 1"."""
    found = re.fullmatch(r"branch(\d+)", part)
    return f"branch {int(found[1]) + 1}" if found else part


def neuron_of(points: list[dict]) -> dict:
    """A neuron from its rows of a CSV."""
    last = points[-1]
    neuron = {
        "x": [float(point["x"]) for point in points],
        "y": [float(point["density"]) for point in points],
        "dead": last["dead"] in (1, "1"),
    }
    if "peak" in last:
        neuron["peak"] = float(last["peak"])
    return neuron


DENSITIES = Kind("densities", draw_densities)
