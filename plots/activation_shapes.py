"""activation_shapes."""

import re
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from plots.reading import Loaded, read_config, read_rows, read_scalars
from plots.style import BAND, FIRST, RC, _limit, _panels, _spread_out, _title
from plots.variants import style

LIGHT_TO_DARK = (
    "Blues",
    "Oranges",
    "Greens",
    "Purples",
    "Greys",
)  # of a panel's curves: branches, or crelu's halves

MOST_STEPS = 50  # of one run's functions over training that are drawn

SHADES, LAYER_MARKERS = (
    {"actor": 1.0, "qf1": 0.75, "qf2": 0.5},
    {"fc1": "o", "fc2": "s"},
)  # in panel (c) of the demo


@matplotlib.rc_context(RC)
def activations_figure(folder: Path) -> Figure | None:
    """The activation functions of every layer over training: light to dark, the first one dashed. None without any."""
    found = read_rows(folder, "curves.jsonl", "activation", every=True, most=len(LIGHT_TO_DARK))
    if not found:
        return None
    number = max(map(len, found.values()))
    for key, curves in found.items():
        found[key] = {part: _spread_out(rows, MOST_STEPS) for part, rows in curves.items() if rows}
    figure, axes = _panels(found, (2.7, 2.2), "f(x)", right=0.8)
    steps = sorted(
        {row["step"] for panel in found.values() for rows in panel.values() for row in rows}
    )
    norm = Normalize(steps[0], steps[-1]) if len(steps) > 1 else Normalize(steps[0] - 1, steps[0])
    maps = [
        ListedColormap(matplotlib.colormaps[name](np.linspace(0.3, 1, 256)))
        for name in LIGHT_TO_DARK
    ]
    scalars, most = read_scalars(folder), max(map(len, found.values()))
    names = re.split(r"[*+]", read_config(folder)["activation"])
    handles = (
        [Line2D([], [], **FIRST, label=f"first (step {steps[0]:,})")] if len(steps) > 1 else []
    )
    handles.append(Patch(**BAND, label="1 to 99 % of the newest pre-activations"))
    for i in range(most if most > 1 else 0):
        label = names[i] if i < len(names) > 1 else f"output {i + 1}"
        handles.append(Line2D([], [], color=maps[i % len(maps)](0.9), label=label))
    for (layer, network), curves in found.items():
        panel, seen = axes[layer, network], []
        for i, rows in enumerate(curves.values()):
            for row in rows:
                seen.append(np.where(np.isfinite(row["y"]), row["y"], np.nan))
                panel.plot(
                    row["x"], seen[-1], color=maps[i % len(maps)](norm(row["step"])), linewidth=1.2
                )
            if len(steps) > 1:
                panel.plot(rows[0]["x"], seen[-len(rows)], **FIRST, zorder=3)
        quantiles = [scalars.get(f"network/{network}/{layer}/preact_{q}") for q in ("q01", "q99")]
        if all(q is not None and np.isfinite(q[-1, 1]) for q in quantiles):
            panel.axvspan(*(np.clip(q[-1, 1], -10, 10) for q in quantiles), **BAND, linewidth=0)
        _limit(panel, np.concatenate(seen))
        panel.set_xlim(-10, 10)
    columns = max(
        1, min(len(handles), int(figure.get_figwidth() / 2))
    )  # else they are wider than one network's panels
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    if len(steps) > 1:
        mappable, options = (
            ScalarMappable(norm, maps[-1 if most > 1 else 0]),
            {"format": EngFormatter(sep="")},
        )
        bar = figure.colorbar(
            mappable, ax=list(axes.values()), pad=0.02, label="environment steps", **options
        )
        bar.outline.set_visible(False)
    what = "Activation functions over training" if len(steps) > 1 else "Activation functions"
    _title(
        figure, folder, what + (f", the first {most} of {number} branches" if most < number else "")
    )
    return figure


def is_learned(run: Loaded) -> bool:
    """Whether the run's activation functions have parameters of their own: norms or gradients of these were logged, or
    the functions differ over training or from layer to layer."""
    for key in run.scalars:
        if key.endswith(("numerator_norm", "coefficient_gradient_norm")):
            return True
    parts = defaultdict(
        list
    )  # number of branch or output -> the function of every layer, first and newest
    for curves in read_rows(run.folder, "curves.jsonl", "activation").values():
        for part, rows in curves.items():
            parts[part] += [np.array([row["x"], row["y"]], dtype=float) for row in rows]
    for first, *others in parts.values():
        for other in others:
            if first.shape != other.shape or not np.allclose(
                first, other, rtol=1e-4, atol=1e-5, equal_nan=True
            ):
                return True
    return False


def _draw_functions(panel, activation: str, run: Loaded) -> None:
    """Before: dashed; after: solid, one curve per layer and network. A fixed activation is one curve."""
    found, seen = read_rows(run.folder, "curves.jsonl", "activation"), [np.zeros(0)]
    fixed = not is_learned(run)
    for (layer, network), curves in found.items():
        shade = 1 - (1.0 if fixed else SHADES.get(network, 1.0)) * (
            1 - np.array(to_rgb(style(activation)["color"]))
        )
        marker = {} if fixed else {"marker": LAYER_MARKERS.get(layer, "^"), "markersize": 3.5}
        for rows in curves.values():
            inside = np.abs(rows[-1]["x"]) <= 5  # where the initial coefficients are fitted
            x, before, after = (
                np.asarray(v, dtype=float)[inside]
                for v in (rows[0]["x"], rows[0]["y"], rows[-1]["y"])
            )
            before, after = (np.where(np.isfinite(y), y, np.nan) for y in (before, after))
            seen += [before, after]
            panel.plot(x, after, color=shade, linewidth=1.4, markevery=(5, 18), **marker)
            if not fixed:
                panel.plot(x, before, **FIRST, zorder=3)
    panel.set_title(f"{activation}, {'fixed' if fixed else 'learned'} (seed {run.config['seed']})")
    _limit(panel, np.concatenate(seen))
    panel.set(xlim=(-5, 5), xticks=(-5, 0, 5), xlabel="pre-activation x")
