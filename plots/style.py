"""style."""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter
from PIL import Image

import runlog
from plots.reading import _depth, read_config
from plots.variants import BLACK, RED, style

RC = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
}

RC |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 150,
}

FIRST, BAND = {"color": BLACK, "linestyle": "--", "linewidth": 1}, {"color": "0.5", "alpha": 0.15}


def _panels(
    found: dict, size: tuple[float, float], ylabel: str, right: float = 0.0
) -> tuple[Figure, dict]:
    """A figure with a row per layer and a column per network, and (layer, network) -> axes."""
    layers, networks = (sorted(set(names)) for names in zip(*found))
    layers.sort(key=_depth)
    figure = Figure(
        (size[0] * len(networks) + right + 0.3, size[1] * len(layers) + 0.7), layout="constrained"
    )
    axes = {}
    for i, row in enumerate(figure.subplots(len(layers), len(networks), squeeze=False)):
        for j, panel in enumerate(row):
            axes[layers[i], networks[j]] = panel
            panel.set(title=f"{networks[j]}, {layers[i]}", ylabel="" if j else ylabel)
            panel.set_xlabel("pre-activation x" if i == len(layers) - 1 else "")
    return figure, axes


def _title(figure: Figure, folder: Path, what: str, **options) -> None:
    config = read_config(folder)
    ended = " (diverged)" if config["status"] == "diverged" else ""
    names = textwrap.shorten(f"{config['env_id']}, {_shortened(config['activation'])}", 200)
    figure.suptitle(f"{what}\n{names}, seed {config['seed']}{ended}", fontsize=10, **options)


def _shortened(activation: str) -> str:
    """An activation as a title has room for it."""
    return activation if len(activation) <= 60 else f"{activation[:57]}..."


def _spread_out(rows: list, most: int) -> list:
    """At most so many rows, evenly spread; the first and the last are kept."""
    indices = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
    return [rows[i] for i in np.unique(indices)]


def _legend(figure: Figure, handles: list, **options) -> None:
    """Below the figure, in as many columns as its width allows."""
    widest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(len(handles), 5, int(figure.bbox.width / 72 / (0.072 * widest + 0.75))))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, handlelength=3.5, **options
    )


def _caption(figure: Figure, *lines: str, fontsize: float = 9, **options) -> None:
    """The figure's title: lines, broken where they are wider than it."""
    width = int(13 * figure.get_figwidth())
    told = [part for line in "\n".join(lines).split("\n") for part in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(told), fontsize=fontsize, **options)


def _tell(panel, text: str, x: float = 0.5, y: float = 0.5, **options) -> None:
    options = {"ha": "center", "va": "center", "color": RED, **options}
    panel.text(x, y, text, transform=panel.transAxes, **options)


def _limit(panel, values: np.ndarray) -> None:
    """y from the 1 % to the 99 % quantile and a margin: the far ends of an unconstrained rational hide the rest."""
    values = values[np.isfinite(values)]
    if not values.size:
        return _tell(panel, "not finite")
    low, high = np.quantile(values, (0.01, 0.99))
    margin = 0.08 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)


def _as_it_is(figure: Figure) -> None:
    """No text of a figure is TeX: titles, labels and legends hold names of runs, in which $ is only a character. Ticks
    of a logarithmic axis are TeX of matplotlib's own."""
    ticks = set()
    for axis in figure.findobj(Axis):
        ticks |= {id(text) for text in axis.findobj(Text) if text is not axis.label}
    for text in figure.findobj(Text):
        if id(text) not in ticks:
            text.set_parse_math(False)


def _save(figure: Figure, path: Path) -> Path:
    _as_it_is(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(RC):
            figure.savefig(path)
    except OSError as error:
        raise runlog.UserError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _draw_seeds(
    panel, curves: dict[str, tuple], title: str, ylabel: str, looks: dict | None = None
) -> None:
    """Mean over seeds where all have a value, with the min-max band; each seed as a thin line. curves: group -> steps
    and values (seeds, steps); looks: group -> look, if its name is no activation."""
    largest = 0.0
    for activation, (steps, values) in curves.items():
        if not steps.size:
            continue
        look, everywhere = (
            (looks or {}).get(activation) or style(activation),
            ~np.isnan(values).any(0),
        )
        largest = max(largest, np.nanmax(np.abs(values)))
        for row in values:
            panel.plot(steps, row, color=look["color"], linewidth=0.5, alpha=0.45)
        x, y = steps[everywhere], values[:, everywhere]
        panel.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.13, linewidth=0)
        label, every = f"{activation} (n = {len(values)})", max(1, len(x) // 6)
        panel.plot(
            x, y.mean(0), **look, label=label, linewidth=1.8, markersize=4.5, markevery=every
        )
    if largest > 1e4:
        panel.set_yscale("symlog", linthresh=10)
    panel.set(xlabel="environment steps", ylabel=ylabel)
    panel.set_title(title, loc="left", fontweight="bold")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_xlim(left=0)


def _curve(panel, name: str, look: dict, step, value, low, high) -> None:
    panel.fill_between(step, low, high, color=look["color"], alpha=0.13, linewidth=0)
    every = max(1, len(step) // 6)
    panel.plot(step, value, **look, label=name, linewidth=1.6, markersize=4.5, markevery=every)


def _scale(panel, kind: str, values: np.ndarray) -> None:
    """A logarithmic axis where it is asked for and possible; symlog beyond 10."""
    values = values[np.isfinite(values)]
    if kind == "log" and (values > 0).all() and values.size:
        panel.set_yscale("log")
    if kind == "symlog" and values.size and np.abs(values).max() > 10:
        panel.set_yscale("symlog", linthresh=1.0)


def _fewer_colours(path: Path) -> None:
    """Pictures are committed: 256 colours take a third of the bytes and look the same."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
