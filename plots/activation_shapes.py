"""The activation functions of a run's layers over training."""

import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

import activations
from plots import style
from plots.layers import read_rows
from plots.reading import Loaded, read_config, read_scalars, step_unit

LIGHT_TO_DARK = ("Blues", "Oranges", "Greens", "Purples", "Greys")  # of branches, or outputs
MAX_STEPS = 50  # most steps at which one run's functions are drawn
BAND = {"color": "0.5", "alpha": 0.15}

Rows = dict[tuple[str, str], dict[str, list[dict]]]  # (layer, network): part: rows


def finite(values) -> np.ndarray:
    """An array with NaN in place of values that are not finite."""
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)


def is_learned(run: Loaded) -> bool:
    """Whether the run's activation functions are learned: norms or gradients of their parameters
    were logged, or a layer's function changes over training. Layers that merely have different
    fixed functions (--encoder-activation) do not count."""
    if run.keys(".*(numerator_norm|coefficient_gradient_norm)"):
        return True
    return bool(learned_layers(run.folder, read_rows(run.folder, "curves.jsonl", "activation")))


def learned_layers(folder: Path, found: Rows) -> set[tuple[str, str]]:
    """The layers in `found` whose activation functions have logged parameters, or change
    over training."""
    pattern = r"network/[^,/]+/[^,/]+/(?:branch\d+_)?(?:numerator|coefficient_gradient)_norm"
    learned = set()
    for key in read_scalars(folder, pattern):
        _, network, layer, _ = key.split("/")
        learned.add((layer, network))
    for key, parts in found.items():
        for rows in parts.values():
            curves = [finite(row["y"]) for row in rows]
            for curve in curves[1:]:
                is_same_size = curve.shape == curves[0].shape
                if not is_same_size or not np.allclose(curve, curves[0], equal_nan=True):
                    learned.add(key)
    return learned & {*found}


# ---- one run, over training ----------------------------------------------------------------------


def spread_out(rows: list, max_rows: int) -> list:
    """At most `max_rows` rows, evenly spaced, with the first and the last among them."""
    indices = np.linspace(0, len(rows) - 1, min(len(rows), max_rows)).round().astype(int)
    return [rows[i] for i in np.unique(indices)]


@style.with_style
def activations_figure(folder: Path) -> Figure | None:
    """The activation functions of every layer that learns its own, over training: from light to
    dark, the first one dashed. None if no layer does: fixed functions are not drawn."""
    found = read_rows(
        folder, "curves.jsonl", "activation", keep_all=True, max_branches=len(LIGHT_TO_DARK)
    )
    learned = learned_layers(folder, found)
    found = {key: parts for key, parts in found.items() if key in learned}
    if not found:
        return None
    number = max(len(parts) for parts in found.values())
    for key, parts in found.items():
        found[key] = {part: spread_out(rows, MAX_STEPS) for part, rows in parts.items() if rows}
    num_drawn = max(len(parts) for parts in found.values())

    figure, panels = style.panels_of_layers(found, (2.7, 2.2), "f(x)", right=0.8)
    steps = steps_of(found)
    first = steps[0] if len(steps) > 1 else steps[0] - 1
    norm = Normalize(first, steps[-1])
    maps = colour_maps()
    scalars = read_scalars(folder, r"network/[^,]*/preact_q(?:01|99)")
    for (layer, network), parts in found.items():
        panel = panels[layer, network]
        draw_over_training(panel, list(parts.values()), norm, maps, len(steps) > 1)
        shade_quantiles(panel, scalars, f"network/{network}/{layer}")
        panel.set_xlim(-10, 10)

    handles = shape_handles(folder, steps, maps, num_drawn)
    style.legend(figure, handles)
    if len(steps) > 1:
        colours = ScalarMappable(norm, maps[-1 if num_drawn > 1 else 0])
        places = list(panels.values())
        ticks = EngFormatter(sep="")
        unit = step_unit(read_config(folder))
        bar = figure.colorbar(colours, ax=places, pad=0.02, label=unit, format=ticks)
        bar.outline.set_visible(False)
    heading = "Activation functions over training" if len(steps) > 1 else "Activation functions"
    if num_drawn < number:
        heading += f", the first {num_drawn} of {number} branches"
    style.run_title(figure, folder, heading)
    return figure


def steps_of(found: Rows) -> list[int]:
    """The steps of all rows."""
    steps = set()
    for parts in found.values():
        for rows in parts.values():
            steps |= {row["step"] for row in rows}
    return sorted(steps)


def colour_maps() -> list[ListedColormap]:
    """A colour map per branch, without its palest third."""
    shades = np.linspace(0.3, 1, 256)
    return [ListedColormap(matplotlib.colormaps[name](shades)) for name in LIGHT_TO_DARK]


def draw_over_training(
    panel: Axes,
    branches: list[list[dict]],
    norm: Normalize,
    maps: list[ListedColormap],
    is_over_training: bool,
) -> None:
    """A layer's functions, a colour map per branch, from light to dark."""
    seen = []
    for index, rows in enumerate(branches):
        colours = maps[index % len(maps)]
        for row in rows:
            y = finite(row["y"])
            seen.append(y)
            panel.plot(row["x"], y, color=colours(norm(row["step"])), linewidth=1.2)
        if is_over_training:
            panel.plot(rows[0]["x"], finite(rows[0]["y"]), **style.FIRST, zorder=3)
    style.limit(panel, np.concatenate(seen))


def shade_quantiles(panel: Axes, scalars: dict[str, np.ndarray], prefix: str) -> None:
    """Shade the range of the newest pre-activations, if it was logged."""
    ends = []
    for quantile in ("q01", "q99"):
        rows = scalars.get(f"{prefix}/preact_{quantile}")
        if rows is None or not np.isfinite(rows[-1, 1]):
            return
        ends.append(np.clip(rows[-1, 1], -10, 10))
    panel.axvspan(*ends, **BAND, linewidth=0)


def branches_of(activation: str) -> list[str]:
    """The base names of an activation's branches, in order: "tanh_hr" has two, tanh and tanh. An
    activation unknown to this version is split at * and +."""
    try:
        terms = activations.parse(activation)
    except ValueError:
        return re.split(r"[*+]", activation)
    names = []
    for factors in terms:
        names += factors
    return names


def shape_handles(
    folder: Path, steps: list[int], maps: list[ListedColormap], num_drawn: int
) -> list:
    """Legend of activations_figure: the first step, the band, and the names of the branches or
    outputs."""
    handles = []
    if len(steps) > 1:
        handles.append(Line2D([], [], **style.FIRST, label=f"first (step {steps[0]:,})"))
    handles.append(Patch(**BAND, label="1 to 99 % of the newest pre-activations"))
    if num_drawn == 1:
        return handles
    names = branches_of(read_config(folder)["activation"])
    for index in range(num_drawn):
        is_branch = len(names) > 1 and index < len(names)
        label = f"branch {index + 1}: {names[index]}" if is_branch else f"output {index + 1}"
        handles.append(Line2D([], [], color=maps[index % len(maps)](0.9), label=label))
    return handles
