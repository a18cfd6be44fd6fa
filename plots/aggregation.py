"""aggregation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plots.reading import Loaded


@dataclass
class Cut:
    """Where runs are compared: all at one step, the last that each of them has reached."""

    step: float  # inf: nothing to cut
    shortest: Loaded | None = None  # the run that ends there, if others go on

    def told(self, what: str) -> list[str]:
        """A line for below a table or figure; none if no run goes on behind the step."""
        if self.shortest is None:
            return []
        run = self.shortest
        reason = f"where {run.folder.name} ({run.config['status']}) ends"
        return [
            f"{what}: cut at step {self.step:,.0f}, {reason}; later rows of other runs are left out"
        ]


def common_end(runs: Sequence[Loaded], pattern: str) -> Cut:
    """The last step up to which every run has rows of the keys that match: all are compared there. A diverged run
    carries its last value forward, and one without any such row cuts nothing."""
    ends = {}
    for k, run in enumerate(runs):
        series = [run.series(key) for key in run.scalars if re.fullmatch(pattern, key)]
        steps = [rows[-1, 0] for rows in series if len(rows)]
        if steps and not run.has_diverged:
            ends[k] = _length(run) if run.config["status"] == "finished" else max(steps)
    if not ends:
        return Cut(np.inf)
    first = min(ends, key=ends.get)
    shortest = runs[first] if ends[first] < max(ends.values()) else None
    return Cut(ends[first], shortest)


def _length(run: Loaded) -> float:
    """Steps of a finished run: the last game of training, say, ends before them."""
    for key in ("total_timesteps", "total_steps"):
        if isinstance(run.config.get(key), int):
            return float(run.config[key])
    return max((rows[-1, 0] for rows in run.scalars.values()), default=0.0)


def mean_and_deviation(values: Sequence[float], number: int, text: str) -> str:
    """ "mean +- std (ddof 1)" of the finite values, in a format; "(2 of 3)" if not all `number` runs have one."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    shown = text.format(np.mean(known))
    if len(known) > 1:
        shown = f"{shown} +- {text.format(np.std(known, ddof=1))}"
    if len(known) < number:
        shown += f" ({len(known)} of {number})"
    return shown


def aligned(runs: list[Loaded], key: str) -> tuple[np.ndarray, np.ndarray]:
    """steps, values (runs, steps): NaN where a run has no row; a diverged run carries its last value forward."""
    series = [run.series(key) for run in runs]
    steps = np.unique(np.concatenate([s[:, 0] for s in series]))
    values = np.full((len(runs), len(steps)), np.nan)
    for row, run, each in zip(values, runs, series):
        row[np.searchsorted(steps, each[:, 0])] = each[:, 1]
        if run.config["status"] == "diverged" and len(each):
            row[steps > each[-1, 0]] = each[-1, 1]
    return steps, values


GRID = 50  # steps of a curve at most


def combined(run: Loaded, pattern: str, reduce: str = "mean") -> np.ndarray:
    """(rows, 2) of step and the mean or maximum over the keys that match, where all of them have a finite value."""
    series = [run.series(key) for key in sorted(run.scalars) if re.fullmatch(pattern, key)]
    if not series:
        return np.zeros((0, 2))
    if len(series) == 1:
        return series[0][:, :2]
    steps = sorted(set.intersection(*({*each[:, 0]} for each in series)))
    values = [each[np.isin(each[:, 0], steps), 1] for each in series]
    return np.stack([steps, getattr(np, reduce)(values, axis=0)], -1)


def on_grid(rows: np.ndarray, grid: np.ndarray, window: float = 0.0) -> np.ndarray:
    """Values of (rows, 2) of step and value at the steps of a grid, from rows at or before each: the last one, or with
    a window the mean of those in (g - window, g], else the last one. NaN before the first row. Never looks ahead."""
    if not len(rows):
        return np.full(len(grid), np.nan)
    steps, values = rows.T
    end = np.searchsorted(steps, grid, side="right")
    last = np.where(end > 0, values[np.maximum(end - 1, 0)], np.nan)
    if not window:
        return last
    start = np.searchsorted(steps, grid - window, side="right")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.where(end > start, (sums[end] - sums[start]) / np.maximum(end - start, 1), last)


def grid_of(runs: Sequence[Loaded], pattern: str) -> np.ndarray:
    """A step grid for the curves of all these runs: their own steps if these are few, else GRID even ones."""
    steps = np.unique(np.concatenate([combined(run, pattern)[:, 0] for run in runs]))
    return steps if len(steps) <= GRID else np.linspace(0, steps[-1], GRID + 1)[1:]
