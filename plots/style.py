"""How figures look: matplotlib's settings, axes, legends, captions; and how they are saved."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

import runlog
from plots import axes
from plots.layers import depth
from plots.reading import read_config
from plots.variants import BLACK, RED

RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
FIRST = {"color": BLACK, "linestyle": "--", "linewidth": 1}  # of functions: before training
FAINT = "0.4"
MAX_LINES = 5  # most lines of a caption
MAX_WIDTH = 13.4  # most inches of a figure's width
MAX_LABEL = 60  # most characters in a line of a legend


def with_style(draw: Callable) -> Callable:
    """Decorator: the function draws with RC."""
    return matplotlib.rc_context(RC)(draw)


# ---- figures and panels --------------------------------------------------------------------------


def grid_of_panels(
    number: int, columns: int, size: tuple[float, float], margin: float
) -> tuple[Figure, np.ndarray]:
    """A figure of so many panels, row by row, and its axes. size: of a panel, in inches; margin:
    inches for caption and legend."""
    rows = -(-number // columns)
    width = max(size[0] * columns, 6.5)
    figure = Figure((width, size[1] * rows + margin), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[number:]:
        panel.remove()
    return figure, panels[:number]


def panels_of_layers(
    found: dict, size: tuple[float, float], ylabel: str, right: float = 0.0
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A figure with a row per layer and a column per network, and (layer, network) -> axes."""
    layers = sorted({layer for layer, _ in found}, key=depth)
    networks = sorted({network for _, network in found})
    width = size[0] * len(networks) + right + 0.3
    figure = Figure((width, size[1] * len(layers) + 0.7), layout="constrained")
    grid = figure.subplots(len(layers), len(networks), squeeze=False)
    panels = {}
    for line, layer in zip(grid, layers):
        for panel, network in zip(line, networks):
            panels[layer, network] = panel
            axes.set_title(panel, f"{network}, {layer}")
            panel.set_ylabel(ylabel if network == networks[0] else "")
            panel.set_xlabel("pre-activation x" if layer == layers[-1] else "")
    return figure, panels


def steps_axis(panel: Axes, label: str = "environment steps") -> None:
    """An x axis of steps: 20k, 1M."""
    panel.set_xlabel(label)
    axes.steps_ticks(panel, axes.column_width(panel) - 0.4)


def left_title(panel: Axes, title: str) -> None:
    axes.set_title(panel, title, loc="left", weight="bold")


def title(panel: Axes, text: str, size: float = 9, beside: float = 0.0) -> None:
    """A panel's title in the middle, broken where it is wider than the panel. beside: inches taken
    by something else."""
    axes.set_title(panel, text, size, beside=beside)


def size_of_columns(number: int, widest: float, margin: float = 0.0) -> float:
    """Width in inches of each of so many panels side by side: less than `widest` where the figure
    would be wider than MAX_WIDTH. margin: beside them."""
    return min(widest, (MAX_WIDTH - margin) / number)


def rows_of(items: Sequence, max_length: int) -> list[list]:
    """Items in rows of at most `max_length`, all of about the same length."""
    number = -(-len(items) // max_length)
    length = -(-len(items) // max(number, 1))
    return [list(items[start : start + length]) for start in range(0, len(items), length)]


def note(panel: Axes, text: str, color: str = RED) -> None:
    """A text in the middle of a panel that has nothing else to show."""
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", color=color)


def absent(panel: Axes, text: str = "not logged") -> None:
    """A note, without axes, at a place of the grid that has no data. Its labels stay, since they
    may belong to a whole row or column."""
    note(panel, text, color=FAINT)
    panel.spines[:].set_visible(False)
    panel.grid(False)
    panel.tick_params(which="both", length=0, labelleft=False, labelbottom=False)


def limit(panel: Axes, values: np.ndarray) -> None:
    """Limit y to the range from the 1 % to the 99 % quantile and a margin: the far ends of an
    unconstrained rational would hide the rest."""
    values = values[np.isfinite(values)]
    if not values.size:
        note(panel, "not finite")
        return
    low, high = np.quantile(values, (0.01, 0.99))
    margin = 0.08 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)


def scale(panel: Axes, kind: str, values: np.ndarray) -> None:
    """A logarithmic axis where asked for and possible; symlog only if values exceed 10."""
    values = values[np.isfinite(values)]
    if not values.size:
        return
    if kind == "log" and (values > 0).all():
        axes.log_scale(panel)
    if kind == "symlog" and np.abs(values).max() > 10:
        axes.log_scale(panel, linear=1.0)


# ---- curves --------------------------------------------------------------------------------------


def curve(
    panel: Axes,
    label: str,
    look: dict,
    steps: np.ndarray,
    value: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """A line with a band."""
    panel.fill_between(steps, low, high, color=look["color"], alpha=0.13, linewidth=0)
    every = max(1, len(steps) // 6)
    panel.plot(steps, value, **look, label=label, linewidth=1.6, markersize=4.5, markevery=every)


def seeds(
    panel: Axes,
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    looks: dict[str, dict],
    title: str,
    ylabel: str,
) -> None:
    """Mean over seeds where all have a value, with the min-max band; each seed as a thin line.

    curves: label -> steps and values (seeds, steps); looks: label -> style.
    """
    largest = 0.0
    number = max((len(values) for _, values in curves.values()), default=0)
    for label, (steps, values) in curves.items():
        if not steps.size:
            continue
        look = looks[label]
        largest = max(largest, np.nanmax(np.abs(values)))
        if number > 1:
            for row in values:
                panel.plot(steps, row, color=look["color"], linewidth=0.5, alpha=0.45)
        everywhere = ~np.isnan(values).any(0)
        x = steps[everywhere]
        y = values[:, everywhere]
        panel.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.13, linewidth=0)
        panel.plot(
            x,
            y.mean(0),
            **look,
            label=f"{label} (n = {len(values)})",
            linewidth=1.8,
            markersize=4.5,
            markevery=max(1, len(x) // 6),
        )
    if largest > 1e4:
        axes.log_scale(panel, linear=10.0)
    axes.set_ylabel(panel, ylabel)
    left_title(panel, title)
    steps_axis(panel)
    panel.set_xlim(left=0)
    axes.large_numbers(panel)


# ---- legends and captions ------------------------------------------------------------------------


def line_handles(looks: dict[str, dict]) -> list[Line2D]:
    """Legend handles of labels and their styles."""
    return [Line2D([], [], **look, label=label) for label, look in looks.items()]


def handles_of(panels: Sequence[Axes]) -> list:
    """The handles of all panels, one for each label."""
    by_label = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels()):
            by_label[label] = handle
    return list(by_label.values())


def legend(figure: Figure | SubFigure, handles: list, **options) -> None:
    """A legend below the figure, in as many columns as its width allows; long labels are broken."""
    if not handles:
        return
    size = options.setdefault("fontsize", 9)
    width = figure.bbox.width / figure.dpi
    labels = []
    for handle in handles:
        label = handle.get_label()
        room = min(width - 1.0, axes.text_width("x" * MAX_LABEL, size))
        labels.append(axes.wrapped(label, room, size, max_lines=3))
    shown = "\n".join(labels).split("\n")
    widest = max(axes.text_width(line, size) for line in shown)
    columns = max(1, min(len(handles), 5, int(width / (widest + 0.85))))
    place = {"loc": "outside lower center", "handlelength": 3.5}
    figure.legend(handles=handles, labels=labels, ncols=columns, **place, **options)


def caption(figure: Figure, *lines: str, fontsize: float = 9, **options) -> None:
    """The figure's title: the first line, and below it the others as one text, broken to the width
    of the figure. At most MAX_LINES in all: figures.json has the full text."""
    text = caption_text(figure.get_figwidth(), *lines, fontsize=fontsize)
    figure.suptitle(text, fontsize=fontsize, **options)


def caption_text(inches: float, *lines: str, fontsize: float = 9) -> str:
    """What caption writes above a figure of this width."""
    room = inches - 0.4
    first, *others = [line for line in "\n".join(lines).split("\n") if line]
    parts = [axes.wrapped(first, room, fontsize, max_lines=2)]
    if others:
        max_lines = MAX_LINES - parts[0].count("\n") - 1
        parts.append(axes.wrapped("; ".join(others), room, fontsize, max_lines=max_lines))
    return "\n".join(parts)


def seeds_text(counts: Sequence[int]) -> str:
    """How many seeds curves or points are based on: "one seed", "n = 3 seeds", "n = 1 to 3
    seeds"."""
    fewest = min(counts)
    most = max(counts)
    if most == 1:
        return "one seed"
    return f"n = {most} seeds" if fewest == most else f"n = {fewest} to {most} seeds"


def band_text(counts: Sequence[int], statistic: str, band: str) -> str:
    """What lines over seeds show, and their band, if there are several seeds: "mean of n = 3 seeds,
    band: worst to best"."""
    if max(counts) == 1:
        return "one seed, no band"
    return f"{statistic} of {seeds_text(counts)}, band: {band}"


def run_title(figure: Figure, folder: Path, heading: str, **options) -> None:
    """The title of a figure of one run: what it shows, and of which run."""
    text = run_title_text(figure.get_figwidth(), folder, heading)
    figure.suptitle(text, fontsize=9, **options)


def run_title_text(inches: float, folder: Path, heading: str) -> str:
    """What run_title writes above a figure of this width."""
    config = read_config(folder)
    ended = " (diverged)" if config["status"] == "diverged" else ""
    activation = config["activation"]
    if len(activation) > 60:
        activation = f"{activation[:57]}..."
    room = inches - 0.2
    run = f"{config['env_id']}, {activation}, seed {config['seed']}{ended}"
    lines = [axes.wrapped(heading, room, 9, max_lines=3), axes.wrapped(run, room, 9, max_lines=2)]
    return "\n".join(lines)


# ---- files ---------------------------------------------------------------------------------------


def without_markup(figure: Figure) -> None:
    """Do not read a figure's texts as TeX: titles, labels and legends hold names of runs, in which
    $ is an ordinary character. Tick labels of logarithmic axes stay matplotlib's own TeX."""
    ticks = set()
    for axis in figure.findobj(Axis):
        ticks |= {id(text) for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if id(text) not in ticks:
            text.set_parse_math(False)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the path's extension. Raises UserError: it cannot be
    written."""
    without_markup(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(RC):
            figure.savefig(path)
    except OSError as error:
        raise runlog.UserError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def reduce_colours(path: Path) -> None:
    """Pictures are committed: 256 colours take a third of the bytes and look the same."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            reduced.save(path, optimize=True)
