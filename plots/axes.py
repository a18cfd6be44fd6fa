"""Readable axes: ticks of logarithmic axes, limits within the possible range of a quantity, and
texts that fit into their place."""

import functools
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    Locator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

MAX_TICKS = 6  # most labelled ticks of a logarithmic axis
BOUND_MARGIN = 0.03  # fraction of the axis beyond a bound, so that a line on the bound is visible
UNBOUNDED = (-np.inf, np.inf)
FULL_SCORE = "score/suite"  # in place of a key: a score between 0 and 1


# ---- logarithmic axes ----------------------------------------------------------------------------


class Decades(Locator):
    """Ticks of a logarithmic axis: powers of ten; over about one decade 1, 2, 5 or even steps, so
    that at least two are labelled. linear: the value up to which a symlog axis is linear."""

    def __init__(self, linear: float = 0.0):
        self.linear = linear

    def __call__(self) -> list[float]:
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        low, high = sorted((float(vmin), float(vmax)))
        powers = self.powers(low, high, (1,), every=1)
        every = 2
        while len(powers) > MAX_TICKS:
            powers = self.powers(low, high, (1,), every)
            every += 1
        if len(powers) > 1:
            return powers
        finer = self.powers(low, high, (1, 2, 5), every=1)
        if 2 < len(finer) <= MAX_TICKS:
            return finer
        even = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2).tick_values(low, high)
        room = 1e-9 * (high - low)  # for rounding errors
        return [float(tick) for tick in even if low - room <= tick <= high + room]

    def powers(self, low: float, high: float, factors: Sequence[int], every: int) -> list[float]:
        """Every `every`-th power of ten between two values, times factors."""
        largest = max(abs(low), abs(high))
        smallest = self.linear
        if not self.linear:
            smallest = low if low > 0 else largest / 1e6
        first = int(np.floor(np.log10(smallest)))
        last = int(np.ceil(np.log10(max(largest, smallest))))
        ticks = {0.0} if self.linear else set()
        for exponent in range(first, last + 1):
            # on a symlog axis, 0 lies a decade below the first power
            place = exponent - first + 1 if self.linear else exponent
            if place % every:
                continue
            for factor in factors:
                tick = float(f"{factor}e{exponent}")
                ticks.add(tick)
                if self.linear:
                    ticks.add(-tick)
        return sorted(tick for tick in ticks if low <= tick <= high)


def short_number(value: float, _place: int | None = None) -> str:
    """A tick of a logarithmic axis: 0.02, 50; a power of ten from 10,000 up and below 0.001."""
    if value == 0:
        return "0"
    text = f"{abs(value):.3e}"
    digits, exponent = text.split("e")
    exponent = int(exponent)
    sign = "\N{MINUS SIGN}" if value < 0 else ""
    if -3 <= exponent <= 3:
        return f"{sign}{abs(value):.4g}"
    digits = digits.rstrip("0").rstrip(".")
    if digits == "1":
        return rf"${sign}10^{{{exponent}}}$"
    return rf"${sign}{digits}\cdot10^{{{exponent}}}$"


def log_scale(panel: Axes, which: str = "y", linear: float = 0.0) -> None:
    """Make the x or y axis logarithmic, with labelled ticks; with `linear`, symlog: linear up to
    that value, with both signs."""
    options = {"linthresh": linear} if linear else {}
    getattr(panel, f"set_{which}scale")("symlog" if linear else "log", **options)
    axis = panel.xaxis if which == "x" else panel.yaxis
    axis.set_major_locator(Decades(linear))
    axis.set_major_formatter(FuncFormatter(short_number))
    axis.set_minor_formatter(NullFormatter())
    if linear:
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=12))


def band_by_factor(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The lower end of a band on a logarithmic axis, as many times below the mean as mean + std is
    above it: mean - std would plunge to 0. NaN where the mean is not above 0."""
    mean = np.where(mean > 0, mean, np.nan)
    return mean / (1 + std / mean)


# ---- linear axes ---------------------------------------------------------------------------------


def steps_ticks(panel: Axes, inches: float) -> None:
    """Ticks of an x axis of steps, as many as fit into `inches`: 20k, 1M."""
    number = int(np.clip(inches / 0.45, 2, 7))
    panel.xaxis.set_major_locator(MaxNLocator(number, steps=[1, 2, 5, 10], min_n_ticks=2))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def large_numbers(panel: Axes) -> None:
    """Write large numbers of the y axis as 200k or 3M: matplotlib would write 1e6 above the axis,
    where the title is."""
    if panel.get_yscale() == "linear" and np.abs(panel.get_ylim()).max() >= 1e5:
        panel.yaxis.set_major_formatter(EngFormatter(sep=""))


def possible_range(key: str) -> tuple[float, float]:
    """The possible range of a quantity, by its key (or a pattern of keys): fractions and accuracies
    are between 0 and 1, norms, ranks and errors at least 0."""
    if re.search(r"(share|success|accuracy)\)?$", key) or key == FULL_SCORE:
        return 0.0, 1.0
    if re.search(r"(_norm|rank|f_max|mse|alpha)\)?$", key):
        return 0.0, np.inf
    return UNBOUNDED


def within(panel: Axes, bounds: tuple[float, float]) -> None:
    """Keep a linear y axis within the possible range of its quantity, plus the width of a line; if
    all values are equal, show the whole range. To be called when everything is drawn."""
    low, high = bounds
    if panel.get_yscale() != "linear" or bounds == UNBOUNDED:
        return
    drawn = [other.dataLim.intervaly for other in panel.get_shared_y_axes().get_siblings(panel)]
    values = np.array(drawn)[np.isfinite(drawn)]
    if not values.size:
        return
    bottom, top = panel.get_ylim()
    if values.min() == values.max():
        bottom = low
        top = high if np.isfinite(high) else 2 * values.max() or 1.0
    bottom = max(bottom, low)
    top = min(top, high)
    margin = BOUND_MARGIN * (top - bottom)
    if bottom == low:
        bottom = low - margin
    if top == high:
        top = high + margin
    panel.set_ylim(bottom, top)


# ---- texts ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=10_000)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a line of text in inches; size: of the font, in points."""
    font = FontProperties(size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width / 72


def wrapped(
    text: str, inches: float, size: float, weight: str = "normal", max_lines: int | None = None
) -> str:
    """A text broken into lines of at most `inches`: between words where possible, else after
    _ * + - / , or anywhere. max_lines: a text with more lines is cut and ends with three dots."""
    lines = []
    for paragraph in text.split("\n"):
        lines += wrapped_line(paragraph, inches, size, weight)
    if max_lines is not None and len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and text_width(f"{last}...", size, weight) > inches:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], f"{last.rstrip(' ,;')}..."]
    return "\n".join(lines)


def wrapped_line(text: str, inches: float, size: float, weight: str) -> list[str]:
    """The lines of one paragraph."""
    lines = []
    line = ""
    for word in text.split():
        candidate = f"{line} {word}" if line else word
        if text_width(candidate, size, weight) <= inches:
            line = candidate
            continue
        if line:
            lines.append(line)
        pieces = broken(word, inches, size, weight)
        lines += pieces[:-1]
        line = pieces[-1]
    return [*lines, line]


def broken(word: str, inches: float, size: float, weight: str) -> list[str]:
    """A word in pieces that fit into `inches`."""
    pieces = []
    while len(word) > 1 and text_width(word, size, weight) > inches:
        end = len(word) - 1
        while end > 1 and text_width(word[:end], size, weight) > inches:
            end -= 1
        places = [place for place in range(end // 2, end) if word[place] in "_*+-/,"]
        if places:
            end = places[-1] + 1
        pieces.append(word[:end])
        word = word[end:]
    return [*pieces, word]


def column_width(panel: Axes) -> float:
    """Width of a panel's column of the grid in inches, including its ticks and labels."""
    figure = panel.figure
    columns = panel.get_subplotspec().get_gridspec().ncols
    return figure.bbox.width / figure.dpi / columns


def set_title(
    panel: Axes,
    text: str,
    size: float = 9,
    loc: str = "center",
    weight: str = "normal",
    beside: float = 0.0,
) -> None:
    """A panel's title, in as many lines as its column needs, three at most. beside: inches of the
    column taken by something else, such as a colour bar."""
    room = column_width(panel) - beside - (0.75 if loc == "left" else 0.45)
    shown = wrapped(text, max(room, 0.6), size, weight, max_lines=3)
    panel.set_title(shown, loc=loc, fontsize=size, fontweight=weight)


def set_ylabel(panel: Axes, text: str, size: float = 9) -> None:
    """A label of the y axis, in as many lines as the height of its row needs, four at most."""
    figure = panel.figure
    rows = panel.get_subplotspec().get_gridspec().nrows
    height = figure.bbox.height / figure.dpi / rows
    panel.set_ylabel(wrapped(text, 0.72 * height, size, max_lines=4), fontsize=size)


def merged_ticks(panel: Axes, values: Sequence[float], inches: float, size: float = 9) -> None:
    """Ticks of a logarithmic x axis at these values; where labels would collide, one covers
    several: 601 and 607. The limits of the axis must already be set."""
    ends = np.log(panel.get_xlim())
    per_inch = (ends[1] - ends[0]) / inches
    groups = []  # of values
    right = -np.inf  # where the last label ends
    for value in sorted(values):
        half = (text_width(merged_label([value]), size) / 2 + 0.08) * per_inch
        if np.log(value) - half < right:
            groups[-1].append(value)
        else:
            groups.append([value])
        middle = np.log(groups[-1]).mean()
        half = (text_width(merged_label(groups[-1]), size) / 2 + 0.08) * per_inch
        right = middle + half
    places = [float(np.exp(np.log(group).mean())) for group in groups]
    panel.set_xticks(places, [merged_label(group) for group in groups])
    panel.set_xticks([], minor=True)


def merged_label(values: Sequence[float]) -> str:
    shown = [f"{value:,}" if value >= 1 else f"{value:g}" for value in values]
    if len(shown) > 2:
        return f"{shown[0]} to {shown[-1]}"
    return " and ".join(shown)
