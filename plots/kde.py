"""kde."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots.reading import _depth, read_rows
from plots.recording import _file_name, write_figure
from plots.study import read_study
from plots.style import RC, _caption, _title
from plots.variants import BLACK, BLUE, DQN, RED

MOST_BRANCHES = 4  # of a layer whose densities are drawn


@matplotlib.rc_context(RC)
def kde_figure(folder: Path) -> Figure | None:
    """Densities of 16 neurons of each network's last hidden layer, newest step, dead ones outlined (HR Figs. 3, 6); of
    a layer with several branches also those of each branch (HR Figs. 10, 11), a network in a row then."""
    found = read_rows(folder, "curves.jsonl", r"(?:branch\d+_)?kde", most=MOST_BRANCHES)
    last = {
        network: layer for layer, network in sorted(found, key=lambda key: (_depth(key[0]), key))
    }
    if not found:
        return None
    grids = defaultdict(dict)  # network: {part: rows}
    number = 0  # of branches
    for network in sorted(last):
        for key, rows in found[last[network], network].items():
            branch = re.match(r"branch(\d+)_", key)
            number = max(number, int(branch[1]) + 1 if branch else 0)
            if not rows:
                continue
            grids[network].setdefault(
                f", branch {int(branch[1]) + 1}" if branch else "", []
            ).append(rows[-1])
        if len(grids[network]) > 1:
            grids[network][", output"] = grids[network].pop("")
    panels = [[(network, *part) for part in parts.items()] for network, parts in grids.items()]
    if max(map(len, panels)) == 1:
        panels = [[each for line in panels for each in line]]
    shape = len(panels), max(map(len, panels))
    figure, places = _kde_figure(shape, 3)
    for line, drawn in zip(places, panels):
        for place, (network, part, rows) in zip(line, drawn):
            _kde_grid(place, f"{network}, {last[network]}{part}", rows[:16])
    step = panels[0][0][2][0]["step"]
    shown = f", the first {MOST_BRANCHES} of {number} branches" if number > MOST_BRANCHES else ""
    what = f"Activation densities, step {step:,}{shown}\noutlined: dead (peak above 20)"
    _title(figure, folder, what, y=1 - 0.06 / figure.get_figheight())
    return figure


def _kde_figure(shape: tuple[int, int], num_lines: int) -> tuple[Figure, list[list]]:
    """A figure with a title of so many lines and a subfigure for each grid of neurons. All is placed by hand: a layout
    engine takes minutes for hundreds of small panels, and a run's plots are drawn while it trains."""
    top = 0.17 * num_lines + 0.12
    figure = Figure((3.3 * shape[1] + 0.2, 3.8 * shape[0] + top))
    grid = figure.add_gridspec(1 + shape[0], shape[1], height_ratios=(top, *[3.8] * shape[0]))
    places = [
        [figure.add_subfigure(grid[1 + i, j]) for j in range(shape[1])] for i in range(shape[0])
    ]
    return figure, places


def _kde_grid(part, title: str, rows: list[dict]) -> None:
    """Densities of up to 16 neurons, a cell each with its own scale, in a subfigure of _kde_figure. One panel with a
    collection of lines: an Axes for every neuron takes a hundred times as long."""
    num_dead = sum(bool(row.get("dead")) for row in rows)
    part.suptitle(f"{title}: {num_dead} of {len(rows)} dead", fontsize=9, y=0.985)
    side = int(np.ceil(np.sqrt(len(rows))))
    panel = part.add_axes((0.03, 0.08, 0.94, 0.84))
    panel.set(xlim=(0, side), ylim=(0, side))
    panel.set_axis_off()
    curves = []
    fills = []
    ticks = []
    frames = []
    colours = []
    widths = []
    small = {"fontsize": 6}
    for i, row in enumerate(rows):
        left, bottom = i % side + 0.05, side - 1 - i // side + 0.2
        width, height = 0.88, 0.74  # of the cell's frame; the rest is for its ticks
        dead = bool(row.get("dead"))
        corners = [(0, 0), (width, 0), (width, height), (0, height), (0, 0)]
        frames.append([(left + dx, bottom + dy) for dx, dy in corners])
        colours.append(RED if dead else "0.7")
        widths.append(2 if dead else 0.5)
        x = np.asarray(row["x"], dtype=float)
        y = np.asarray(row["y"], dtype=float)
        if not np.isfinite([x, y]).all() or x[-1] <= x[0]:
            middle = left + width / 2, bottom + height / 2
            panel.text(*middle, "not\nfinite", color=RED, ha="center", va="center", **small)
            continue
        highest = 1.12 * y.max() if y.max() > 0 else 1.0
        across = left + width * (x - x[0]) / (x[-1] - x[0])
        curves.append(np.stack([across, bottom + height * y / highest], -1))
        fills.append([(across[0], bottom), *curves[-1], (across[-1], bottom)])
        for tick in MaxNLocator(2, min_n_ticks=1).tick_values(x[0], x[-1]):
            at = left + width * (tick - x[0]) / (x[-1] - x[0])
            if left <= at <= left + width:
                ticks.append([(at, bottom), (at, bottom - 0.02)])
                inwards = "center"
                if at < left + 0.1:
                    inwards = "left"
                elif at > left + width - 0.1:
                    inwards = "right"
                label = f"{tick:g}".replace("-", "\N{MINUS SIGN}")
                panel.text(at, bottom - 0.03, label, ha=inwards, va="top", **small)
        if dead:
            place = left + 0.95 * width, bottom + 0.9 * height
            panel.text(*place, "dead", color=RED, fontsize=6, ha="right", va="top")
    panel.add_collection(PolyCollection(fills, facecolors=BLUE, alpha=0.35, linewidths=0))
    panel.add_collection(LineCollection(curves, colors=BLUE, linewidths=0.9, label="densities"))
    panel.add_collection(LineCollection(ticks, colors=BLACK, linewidths=0.6))
    panel.add_collection(LineCollection(frames, colors=colours, linewidths=widths, label="frames"))
    part.supxlabel("activation (each neuron's own scale)", fontsize=8, y=0.03)


def hr3(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 3, 6, 10 and 11: densities of 16 neurons of DQN's last hidden layer, dead ones outlined, branches and
    product; of the lowest seed of each game and activation."""
    study = read_study(runs, DQN, "-", where)
    paths = []
    taken = set()
    study = study.only(variants) if variants else study
    for (variant, env), (run, *_) in study.cells.items():
        rows, found = [], read_rows(run.folder, "curves.jsonl", r"(?:branch\d+_)?kde")
        last = max((layer for layer, _ in found), key=_depth, default="")
        for key, lines in (
            (key, lines)
            for (layer, _), parts in found.items()
            for key, lines in parts.items()
            if layer == last
        ):
            part, _, neuron = key.rpartition("kde")
            own = {
                "step": lines[-1]["step"],
                "part": part.rstrip("_") or "output",
                "neuron": neuron.strip("_"),
            }
            own |= {"dead": int(bool(lines[-1].get("dead")))}
            rows += [
                own | {"x": float(x), "density": float(y)}
                for x, y in zip(lines[-1]["x"], lines[-1]["y"])
            ]
        name = _file_name(f"hr3-{env}-{re.sub('[^A-Za-z0-9_.]+', '-', variant)}", taken)
        ended = " (diverged)" if run.has_diverged else ""
        told = [
            f"Densities of 16 neurons of {last}: {env}, {variant}, seed {run.config['seed']}{ended}"
        ]
        paths += write_figure(out, name, "densities", rows, caption=told)
    return paths


def draw_densities(rows: list[dict], spec: dict) -> Figure:
    """Rows of hr3: a grid of neurons for every part (branches, output)."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    parts.sort(key=lambda part: (part == "output", part))
    figure, places = _kde_figure(
        (1, len(parts)), 2 if len(parts) > 1 else 3
    )  # a narrow one breaks its title
    for place, part in zip(places[0], parts):
        neurons = defaultdict(lambda: defaultdict(list))
        for row in (row for row in rows if row["part"] == part):
            neuron = neurons[row["neuron"]]
            neuron["x"].append(float(row["x"]))
            neuron["y"].append(float(row["density"]))
            neuron["dead"] = row["dead"] in (1, "1")
        _kde_grid(place, part, list(neurons.values())[:16])
    told = f"step {float(rows[0]['step']):,.0f}; outlined: dead (peak above 20)"
    _caption(figure, *spec["caption"], told, y=1 - 0.06 / figure.get_figheight())
    return figure
