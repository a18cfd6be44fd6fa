"""Two quantities of each variant against each other, with intervals in both directions."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots import axes, style
from plots.recording import Kind, rows_where
from plots.variants import styles_in

ENDS = ("{}", "{}: low", "{}: high")  # columns of a quantity


def draw(rows: list[dict], spec: dict) -> Figure:
    """A mark for each variant in each panel. spec: `panels` has the x labels of the panels, `unit`
    the y label, `scales` the scales of both axes."""
    looks = styles_in(spec)
    number = len(spec["panels"])
    size = style.size_of_columns(number, 4.0, 2.8)
    figure = Figure((size * number + 2.8, 3.9), layout="constrained")
    panels = figure.subplots(1, number, squeeze=False, sharey=True)[0]
    for panel, (title, label) in zip(panels, spec["panels"].items()):
        for variant, look in looks.items():
            for row in rows_where(rows, panel=title, variant=variant):
                draw_mark(panel, row, look | {"label": axes.wrapped(variant, 2.2, 9, max_lines=4)})
        for which, scale in spec["scales"].items():
            if scale == "log":
                axes.log_scale(panel, which)
        panel.set_xlabel(axes.wrapped(label, size - 0.4, 9))
    axes.set_ylabel(panels[0], spec["unit"])
    figure.legend(handles=style.handles_of(panels), loc="outside right center")
    style.caption(figure, *spec["caption"])
    return figure


def draw_mark(panel: Axes, row: dict, look: dict) -> None:
    x, left, right = numbers(row, "x")
    y, low, high = numbers(row, "y")
    bars = {"xerr": [[x - left], [right - x]], "yerr": [[y - low], [high - y]]}
    panel.errorbar(x, y, **bars, **look | {"linestyle": ""}, capsize=2, linewidth=1, markersize=7)


def numbers(row: dict, quantity: str) -> tuple[float, float, float]:
    """Value and interval of a quantity; for one seed, which has no interval, only the value."""
    value, low, high = (float(row[column.format(quantity)]) for column in ENDS)
    ends = np.where(np.isfinite([low, high]), [low, high], value)
    return value, *ends.tolist()


SCATTER = Kind("scatter", draw)
