"""Draws the rows of comparison.py: curves with intervals, and beside them each variant against the
baseline."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, MaxNLocator

from plots import style
from plots.overview import MAX_LEARNED, draw_learned
from plots.recording import Kind, columns, distinct, rows_where
from plots.seeds import scale
from plots.variants import styles_in

MAX_SHAPES = MAX_LEARNED
MAX_CHARACTERS = 26  # most characters in a line beside an axis
CHARACTER_WIDTH = 0.06  # width in inches of a character in the legend


def draw(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """Rows of panels: curves, difference to the baseline, probability of improvement; below them
    the learned activation functions, if there are any."""
    curves = rows_of(tables, ".csv")
    comparisons = rows_of(tables, "-comparison.csv")
    shapes = rows_of(tables, "-shapes.csv") if spec["shapes"] else []
    looks = styles_in(spec)
    lines = spec["lines"]
    others = len(spec["variants"]) - 1
    has_long = any(len(label) > MAX_CHARACTERS for label in spec["variants"])
    height = max(2.5, (0.32 if has_long else 0.26) * others + 1.0)
    heights = [height * len(lines)]
    if shapes:
        heights.append(2.5)
    width = 12 if others else 7
    figure = Figure((width, sum(heights) + 1.2), layout="constrained")
    subfigures = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_lines(subfigures[0], curves, comparisons, looks, spec)
    if shapes:
        draw_learned(subfigures[1], shapes, spec["activation_of"])
    style.caption(figure, *spec["caption"])
    return figure


def rows_of(tables: dict[str, list[dict]], ending: str) -> list[dict]:
    """The rows of the table whose file name ends so; ".csv" means `name.csv` itself."""
    others = ("-comparison.csv", "-shapes.csv")
    for file, rows in tables.items():
        is_other = file.endswith(others)
        if file.endswith(ending) and (ending != ".csv" or not is_other):
            return rows
    return []


def draw_lines(
    subfigure: SubFigure,
    curves: list[dict],
    comparisons: list[dict],
    looks: dict[str, dict],
    spec: dict,
) -> None:
    lines = spec["lines"]
    has_others = len(looks) > 1
    ratios = (2.1, 1, 1) if has_others else (1,)
    grid = subfigure.subplots(len(lines), len(ratios), squeeze=False, width_ratios=ratios)
    for panels, line in zip(grid, lines):
        compared = rows_where(comparisons, line=line)
        points = rows_where(curves, line=line)
        draw_curves(panels[0], points, compared, looks, spec, line)
        if has_others:
            draw_against(panels[1], compared, looks, "difference")
            draw_against(panels[2], compared, looks, "probability")
            finish_against(panels[1], panels[2], compared, spec["better"][line])
    shown = {}
    for label, look in looks.items():
        counts = counts_of(comparisons, label)
        is_baseline = any(row["baseline"] == label for row in comparisons) and has_others
        shown[f"{label} ({counts}){', baseline' if is_baseline else ''}"] = look
    longest = max(len(label) for label in shown)
    columns_fit = int(subfigure.figure.get_figwidth() / (CHARACTER_WIDTH * longest + 0.8))
    number = max(1, min(columns_fit, len(shown)))
    place = {"loc": "outside lower center", "ncols": number, "handlelength": 3.5, "fontsize": 8}
    subfigure.legend(handles=style.line_handles(shown), **place)


def counts_of(rows: Sequence[dict], label: str) -> str:
    """n of a variant per environment; a range if it differs between environments."""
    single = [row for row in rows if row["variant"] == label and row["environments"] == "1"]
    counts = sorted({int(row["n"]) for row in single})
    text = f"n = {counts[0]}"
    return text if len(counts) == 1 else f"{text} to {counts[-1]}"


def draw_curves(
    panel: Axes,
    points: list[dict],
    comparisons: list[dict],
    looks: dict[str, dict],
    spec: dict,
    line: str,
) -> None:
    """The curves of a line; a dotted line at the step of the comparison if some runs continue."""
    style.left_title(panel, comparisons[0]["environment"])
    if not points:
        reason = "these environments\nhave no common scale"
        if all(int(row["n"]) == 0 for row in comparisons):
            reason = f"no value at step {comparisons[0]['step']:,.0f}"
        style.note(panel, reason, style.FAINT)
        panel.set_axis_off()
        return
    style.steps_axis(panel, spec["units"][line])
    panel.set_ylabel(spec["panels"][line])
    for label in distinct(points, "variant"):
        curve = rows_where(points, variant=label)
        value = columns(curve, "step", "value", "low", "high")
        style.curve(panel, label, looks[label] | {"clip_on": False}, *value)
    (steps, values) = columns(points, "step", "value")
    if spans_decades(spec["scales"][line], values):
        scale(panel, spec["scales"][line], values)
    low, high = spec["bounds"][line]
    bottom, top = panel.get_ylim()
    if low is not None and panel.get_yscale() == "linear":
        bottom = max(bottom, low)
    if high is not None:
        top = min(top, high)
    panel.set_ylim(bottom, top)
    panel.set_xlim(0, None)
    if panel.get_yscale() == "linear":
        without_powers(panel.yaxis, values)
    step = comparisons[0]["step"]
    if step < steps.max():
        panel.axvline(step, color=style.FAINT, linewidth=1, linestyle=":")


def spans_decades(kind: str, values: np.ndarray) -> bool:
    """Whether a logarithmic axis shows more than a linear one: positive values span two decades
    (with fewer there would not be two labelled ticks), or some values are far larger than most."""
    sizes = np.abs(values[np.isfinite(values)])
    if kind == "log":
        return sizes.size > 0 and sizes.max() > 100 * sizes.min()
    return sizes.size > 0 and sizes.max() > max(1e3, 30 * np.median(sizes))


def draw_against(panel: Axes, rows: list[dict], looks: dict[str, dict], name: str) -> None:
    """A point with its interval for each variant but the baseline, from top to bottom."""
    others = [row for row in rows if row["variant"] != row["baseline"]]
    for place, row in enumerate(others):
        value = float(row[name])
        low = float(row[f"{name}_low"])
        high = float(row[f"{name}_high"])
        if not np.isfinite(value):
            continue
        bar = np.nan_to_num([[value - low], [high - value]])
        look = looks[row["variant"]] | {"linestyle": ""}
        panel.errorbar(value, place, xerr=bar, **look, capsize=3, markersize=6, clip_on=False)
    panel.set_ylim(len(others) - 0.4, -0.6)
    if name == "difference":
        panel.xaxis.set_major_locator(MaxNLocator(4))
        without_powers(panel.xaxis, np.array([float(row[name]) for row in others]))


def finish_against(left: Axes, right: Axes, rows: list[dict], better: str) -> None:
    """Titles, axes and names of the differences and the probabilities."""
    baseline = rows[0]["baseline"]
    named = baseline if len(baseline) <= 10 else "baseline"
    others = [row for row in rows if row["variant"] != row["baseline"]]
    verb = "better" if better else "larger"
    left.set_title(f"difference to {named}, paired", fontsize=8)
    right.set_title(f"P({verb} than {named})", fontsize=8)
    names = beside_axis([row["variant"] for row in others])
    left.set_yticks(range(len(others)), names, fontsize=7.5)
    right.set_yticks(range(len(others)), [""] * len(others))
    right.set_xlim(0, 1)
    right.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    has_difference = any(np.isfinite(float(row["difference"])) for row in others)
    has_probability = any(np.isfinite(float(row["probability"])) for row in others)
    if has_difference:
        left.axvline(0, color=style.FAINT, linewidth=0.8, linestyle="--")
    else:
        style.note(left, reason_for_no_difference(rows, named), style.FAINT)
        left.set_xticks([])
    if has_probability:
        right.axvline(0.5, color=style.FAINT, linewidth=0.8, linestyle="--")
    else:
        for panel in (left, right):
            panel.set_title("")
            panel.set_axis_off()


def reason_for_no_difference(rows: list[dict], baseline: str) -> str:
    """The reason why there is no difference to show."""
    is_baseline = [row["variant"] == row["baseline"] for row in rows]
    if all(is_baseline):
        return "only the baseline here"
    if not any(is_baseline):
        return f"no run of {baseline} here"
    has_pairs = any(int(row["pairs"]) for row in rows)
    return "no common scale" if has_pairs else "no seeds in common"


def without_powers(axis: Axis, values: np.ndarray) -> None:
    """Write large numbers as 20k and 5M, rather than with a power of ten beside the axis."""
    values = values[np.isfinite(values)]
    if values.size and np.abs(values).max() >= 1e4:
        axis.set_major_formatter(EngFormatter(sep=""))


def beside_axis(labels: Sequence[str]) -> list[str]:
    """Labels in at most two lines each, without the settings that all of them share, so that their
    differences are visible. Labels that are still too long are complete in the legend."""
    parts = [label.split(", ") for label in labels]
    shared = set()
    if len(parts) > 1:
        shared = set.intersection(*({*settings} for _, *settings in parts))
    shortened = []
    for activation, *settings in parts:
        kept = [setting for setting in settings if setting not in shared]
        shortened.append(", ".join([activation, *kept]))
    if len({*shortened}) < len(shortened):
        shortened = list(labels)
    return [in_two_lines(label) for label in shortened]


def in_two_lines(label: str) -> str:
    """A label, cut at a word where it is too long for two lines."""
    lines = textwrap.wrap(label, MAX_CHARACTERS, break_long_words=True)
    if len(lines) > 2:
        rest = textwrap.shorten(" ".join(lines[1:]), MAX_CHARACTERS, placeholder=" ...")
        lines = [lines[0], rest]
    return "\n".join(lines)


COMPARISON = Kind("comparison", draw)
