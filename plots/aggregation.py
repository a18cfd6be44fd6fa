"""Curves of several keys, runs and seeds on common steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plots.reading import Loaded, length_of

GRID = 50  # most steps of a curve


# ---- one common end ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """Where runs are compared: all at one step, the last that each of them has reached."""

    step: float  # inf: nothing to cut
    shortest: Loaded | None = None  # the run that ends there, if others are longer


def common_end(runs: Sequence[Loaded], pattern: str) -> Cut:
    """The last step up to which every run has rows of the matching keys: all are compared there.

    A diverged run does not shorten it, since its last value is carried forward, nor does a run
    without any such row.
    """
    ends = {}  # index of a run: where it ends
    for index, run in enumerate(runs):
        steps = []
        for key in run.keys(pattern):
            rows = run.series(key)
            if len(rows):
                steps.append(rows[-1, 0])
        if not steps or run.has_diverged:
            continue
        ends[index] = finished_length(run) if run.status == "finished" else max(steps)
    if not ends:
        return Cut(np.inf)
    first = min(ends, key=ends.get)
    is_shorter = ends[first] < max(ends.values())
    return Cut(ends[first], runs[first] if is_shorter else None)


def finished_length(run: Loaded) -> float:
    """Steps of a finished run; its last row may be earlier, such as that of the last game."""
    length = length_of(run.config)
    return run.last_step if length is None else float(length)


def has_reached(run: Loaded, step: float) -> bool:
    """Whether a run has a value at a step; the last value of a diverged run is carried forward."""
    if run.has_diverged:
        return True
    end = finished_length(run) if run.status == "finished" else run.last_step
    return end >= step


def cut_notes(cuts: dict[str, Cut], prefix: str = "") -> list[str]:
    """Lines to print below a table about the cuts of its columns, one for all columns that are cut
    at the same run's end. None for columns in which no run continues past the step."""
    alike = {}  # step and folder: columns, run
    for title, cut in cuts.items():
        if cut.shortest is not None:
            titles, _ = alike.setdefault((cut.step, cut.shortest.folder), ([], cut.shortest))
            titles.append(title)
    lines = []
    for (step, folder), (titles, run) in alike.items():
        where = f"cut at step {step:,.0f}, where {folder.name} ({run.status}) ends"
        lines.append(f"{prefix}{', '.join(titles)}: {where}; later rows of other runs are left out")
    return lines


# ---- values over seeds ---------------------------------------------------------------------------


def mean_and_deviation(values: Sequence[float], number: int, text: str) -> str:
    """ "mean +- std (ddof 1)" of the finite values, in a format; "(2 of 3)" if not all `number`
    runs have one; "-" if none has."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    shown = text.format(np.mean(known))
    if len(known) > 1:
        shown = f"{shown} +- {text.format(np.std(known, ddof=1))}"
    if len(known) < number:
        shown += f" ({len(known)} of {number})"
    return shown


def count_text(runs: Sequence[Loaded]) -> str:
    """How many runs, and how many of them have diverged."""
    diverged = sum(run.has_diverged for run in runs)
    return f"{len(runs)} ({diverged} diverged)" if diverged else f"{len(runs)}"


def aligned(runs: Sequence[Loaded], key: str) -> tuple[np.ndarray, np.ndarray]:
    """steps, values (runs, steps): NaN where a run has no row; the last value of a diverged run is
    carried forward."""
    series = [run.series(key) for run in runs]
    steps = np.unique(np.concatenate([rows[:, 0] for rows in series]))
    values = np.full((len(runs), len(steps)), np.nan)
    for row, run, points in zip(values, runs, series):
        row[np.searchsorted(steps, points[:, 0])] = points[:, 1]
        if run.has_diverged and len(points):
            row[steps > points[-1, 0]] = points[-1, 1]
    return steps, values


# ---- several keys of a run -----------------------------------------------------------------------


def combined(run: Loaded, pattern: str, reduce: str = "mean") -> np.ndarray:
    """(rows, 2) of step and the mean or maximum over the keys that match, where all of them have a
    finite value. Several rows of a key at one step (games that end together) are one value; those
    of a single key stay apart."""
    series = [run.series(key) for key in sorted(run.keys(pattern))]
    if not series:
        return np.zeros((0, 2))
    if len(series) == 1:
        return series[0][:, :2]
    series = [one_per_step(rows, reduce) for rows in series]
    shared = set.intersection(*({*rows[:, 0]} for rows in series))
    steps = sorted(shared)
    values = [rows[np.isin(rows[:, 0], steps), 1] for rows in series]
    return np.stack([steps, getattr(np, reduce)(values, axis=0)], -1)


def one_per_step(rows: np.ndarray, reduce: str) -> np.ndarray:
    """Rows (rows, 2 or more) of increasing step, and value: (steps, 2) with the mean or maximum of
    the values at each step."""
    steps, starts = np.unique(rows[:, 0], return_index=True)
    if len(steps) == len(rows):
        return rows[:, :2]
    parts = np.split(rows[:, 1], starts[1:])
    values = [getattr(np, reduce)(part) for part in parts]
    return np.stack([steps, values], -1)


def on_grid(rows: np.ndarray, grid: np.ndarray, window: float = 0.0) -> np.ndarray:
    """Values at the steps of a grid. rows: (rows, 2) of step and value.

    At each step g the value of the last row at or before it; with a window the mean of the rows in
    (g - window, g], if there are any. After the last row, the mean of the window that ends with it:
    what is carried forward is then as smooth as the rest. NaN before the first row. Never looks
    ahead.
    """
    if not len(rows):
        return np.full(len(grid), np.nan)
    steps, values = rows.T
    end = np.searchsorted(steps, grid, side="right")
    last = np.where(end > 0, values[np.maximum(end - 1, 0)], np.nan)
    if not window:
        return last
    start = np.searchsorted(steps, grid - window, side="right")
    final = np.searchsorted(steps, steps[-1] - window, side="right")
    start = np.where((start == end) & (grid > steps[-1]), final, start)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means = (sums[end] - sums[start]) / np.maximum(end - start, 1)
    return np.where(end > start, means, last)


def grid_of(runs: Sequence[Loaded], pattern: str) -> np.ndarray:
    """A grid of steps for the curves of all these runs: their own steps if there are at most GRID,
    else GRID evenly spaced ones."""
    steps = np.unique(np.concatenate([combined(run, pattern)[:, 0] for run in runs]))
    return steps if len(steps) <= GRID else np.linspace(0, steps[-1], GRID + 1)[1:]
