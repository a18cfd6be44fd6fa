"""What panels show: a number at every step of a run, and a statistic over runs and environments."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from environments import suites
from plots import statistics
from plots.aggregation import combined, grid_of, on_grid
from plots.reading import Loaded
from plots.study import Study, names_text
from plots.variants import all_runs

RETURN = r"eval/episodic_return"


# ---- panels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """A statistic over runs and environments, and its description in captions."""

    # takes strata: for each environment (..., runs)
    function: Callable[[Sequence[np.ndarray]], np.ndarray]
    caption: str
    is_bootstrapped: bool = True  # if not, the band is the deviation over seeds

    def describe(self, has_seeds: bool, has_band: bool) -> str:
        """What the lines show and, if there are any, the bands. has_seeds: whether some
        environment has several seeds."""
        if not has_seeds:
            return f"{self.caption}, one seed: no interval"
        if not has_band:
            return f"{self.caption}, no band: some environment has one seed"
        if self.is_bootstrapped:
            return f"{self.caption}, band: 95 % stratified bootstrap"
        return f"{self.caption}, band: standard deviation over seeds"


STATISTICS = {
    "iqm": Statistic(statistics.interquartile_mean, "IQM over runs"),
    "mean": Statistic(statistics.mean_of_means, "mean over environments"),
    "median": Statistic(statistics.median_of_means, "median over games of means over seeds"),
    "std": Statistic(statistics.mean_of_means, "mean over environments", False),
}


def statistics_text(rows: Sequence[dict]) -> str:
    """The statistics of rows of panel, statistic, low, environments and runs, for captions. If
    panels differ in what they show, that of most panels comes first, without their names."""
    panels = defaultdict(list)  # (title, statistic): its rows
    for row in rows:
        panels[row.get("panel", ""), row["statistic"]].append(row)
    described = defaultdict(list)  # text: titles of panels
    for (title, name), members in panels.items():
        has_seeds = any(int(row["runs"]) > int(row["environments"]) for row in members)
        has_band = any(np.isfinite(row["low"]) for row in members)
        described[STATISTICS[name].describe(has_seeds, has_band)].append(title)
    most = max(described, key=lambda text: len(described[text]), default="")
    lines = [most]
    for text, titles in described.items():
        if text != most:
            lines.append(f"in {' and '.join(titles)}: {text}")
    return "; ".join(lines)


@dataclass
class Panel:
    """What a panel shows: a number at every step of a run, then a statistic over runs and
    environments."""

    title: str
    unit: str
    key: str  # pattern of keys, a full match
    reduce: str = "mean"  # over the keys that match: mean, max
    score: str = ""  # "suite": see environments.suites; "human", "baseline"
    statistic: str = "iqm"  # of STATISTICS
    suite: str = ""  # only environments whose id begins with it
    scale: str = "linear"  # of the y axis

    @property
    def is_of_training_games(self) -> bool:
        return self.key.startswith("charts/")

    @property
    def is_of_evaluations(self) -> bool:
        return self.key.startswith("eval/")

    @property
    def measured(self) -> str:
        """What the y axis measures, for axes.possible_range: the key, or the kind of score."""
        return f"score/{self.score}" if self.score else self.key

    def shows(self, env: str) -> bool:
        return env.startswith(self.suite)

    def has_score(self, env: str) -> bool:
        """Whether an environment has the panel's normalised score. Environments outside the two
        suites, sequences of tasks, and games without human scores have none."""
        if self.score == "suite":
            is_sequence = "," in env
            return suites.suite_of(env) is not None and not is_sequence
        return self.score != "human" or env in statistics.atari_scores()

    def key_in(self, env: str) -> str:
        return suites.suite_of(env).score_key if self.score == "suite" else self.key

    def points(self, run: Loaded, env: str) -> np.ndarray:
        """(rows, 2) of step and value of a run; not normalised."""
        return combined(run, self.key_in(env), self.reduce)


def keys_of(*panels: Panel) -> str:
    """A pattern of all keys that these panels need."""
    patterns = []
    for panel in panels:
        patterns.append(f"(?:{panel.key})")
        if panel.score == "suite":
            patterns.append(suites.score_keys())
    return "|".join(dict.fromkeys(patterns))


# ---- curves --------------------------------------------------------------------------------------


@dataclass
class Curve:
    """A statistic of one variant over its runs, at steps."""

    steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    environments: int  # over how many
    runs: int
    left_out: tuple[str, ...] = ()  # environments of the study that it leaves out

    def points(self) -> list[dict[str, float]]:
        columns = (self.steps, self.value, self.low, self.high)
        rows = zip(*(column.tolist() for column in columns))
        return [dict(zip(("step", "value", "low", "high"), row)) for row in rows]


def curves(study: Study, panel: Panel) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """The grid, and (label, environment) -> values (steps, runs) of the runs that have the panel's
    quantity, normalised to its score. Returns of training games are averaged over windows of a
    fortieth of the longest run (HR's are smoothed)."""
    cells = {}
    unscored = set()
    for (label, env), runs in study.cells.items():
        if not panel.shows(env):
            continue
        if panel.has_score(env):
            cells[label, env] = runs
        else:
            unscored.add(env)
    for env in sorted(unscored):
        print(f"left out: {env} has no score for {panel.title}")
    panel_runs = all_runs(cells)
    if not panel_runs:
        return np.zeros(0), {}
    grid = grid_of(panel_runs, suites.score_keys() if panel.score == "suite" else panel.key)
    if not len(grid):
        return grid, {}
    found = {}
    for (label, env), runs in cells.items():
        scores = normalised(study, panel, env, values_on(grid, panel, runs, env), grid)
        kept = []
        for index, run in enumerate(runs):
            has_rows = len(panel.points(run, env)) > 0
            counts_as_0 = run.has_diverged and bool(panel.score) and not has_rows
            if counts_as_0:
                scores[:, index] = 0.0  # a suite's lowest score, random play, or relu's lowest
            if has_rows or counts_as_0:
                kept.append(index)
        if kept:
            found[label, env] = scores[:, kept]
    return grid, found


def values_on(grid: np.ndarray, panel: Panel, runs: Sequence[Loaded], env: str) -> np.ndarray:
    """(steps, runs) at the steps of a grid, NaN for a run without a row."""
    if not runs:
        return np.zeros((len(grid), 0))
    window = grid[-1] / 40 if panel.is_of_training_games else 0.0
    return np.stack([on_grid(panel.points(run, env), grid, window) for run in runs], -1)


def normalised(
    study: Study, panel: Panel, env: str, values: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """Values normalised to the panel's score."""
    if panel.score == "suite":
        return values / suites.suite_of(env).score_scale
    if panel.score == "human":
        return statistics.human_normalised(values, env)
    if panel.score == "baseline":
        relu = values_on(grid, panel, study.reference.get(env, []), env)
        if not np.isfinite(relu).any():
            return np.full_like(values, np.nan)
        return statistics.baseline_normalised(values, np.nanmin(relu), np.nanmax(relu))
    return values


def aggregate(study: Study, panel: Panel) -> dict[str, Curve]:
    """label -> curve: the statistic over the environments that every variant with this quantity
    has, at the steps where all its runs have a value."""
    grid, found = curves(study, panel)
    with_values = {label for label, _ in found}
    shared = shared_environments(study, panel, found)
    others = sorted({env for _, env in found} - {*shared})
    result = {}
    for label in study.labels:
        if label not in with_values or not shared:
            continue
        strata = [found[label, env] for env in shared]
        known = np.all([np.isfinite(values).all(-1) for values in strata], axis=0)
        if not known.any():
            continue
        strata = [values[known] for values in strata]
        value, low, high = interval(strata, STATISTICS[panel.statistic])
        number = sum(values.shape[-1] for values in strata)
        result[label] = Curve(grid[known], value, low, high, len(shared), number, tuple(others))
    return result


def shared_environments(
    study: Study, panel: Panel, found: dict[tuple[str, str], np.ndarray]
) -> list[str]:
    """The environments over which a statistic is taken. Prints those that are left out because some
    variant logged nothing there."""
    with_values = {label for label, _ in found}
    complete = study.complete(panel.suite)
    shared = []
    for env in complete:
        values = [found.get((label, env)) for label in with_values]
        if all(array is not None and np.isfinite(array).any() for array in values):
            shared.append(env)
    for env in sorted({env for _, env in found} & {*complete} - {*shared}):
        without = sorted(label for label in with_values if (label, env) not in found)
        print(f"left out: {env} in {panel.title}, since {', '.join(without)} logged no value there")
    return shared


def interval(
    strata: list[np.ndarray], statistic: Statistic
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of strata (steps, runs), and the ends of its interval."""
    value = statistic.function(strata)
    if statistic.is_bootstrapped:
        ends = statistics.stratified_bootstrap(strata, statistic.function, repetitions=1_000)
        return value, *ends
    half = deviation_of_mean(strata)
    return value, value - half, value + half


def deviation_of_mean(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Standard deviation over seeds of the mean over environments: sqrt(sum of the environments'
    variances (ddof 1)) / environments. They need not have equally many seeds, but each at least
    two: NaN otherwise. strata: for each environment (steps, runs); returns (steps,)."""
    if any(values.shape[-1] < 2 for values in strata):
        return np.full(len(strata[0]), np.nan)
    variances = [values.var(-1, ddof=1) for values in strata]
    return np.sqrt(np.sum(variances, axis=0)) / len(strata)


def left_out_notes(found: dict[str, dict[str, Curve]]) -> list[str]:
    """For captions: the environments that the panels' statistics leave out because some variant has
    no run or no value there. found: title -> label -> curve."""
    panels = defaultdict(list)  # environments: titles
    for title, members in found.items():
        for left_out in {curve.left_out for curve in members.values()}:
            if left_out:
                panels[left_out].append(title)
    lines = []
    for left_out, titles in panels.items():
        where = "the statistics" if len(titles) == len(found) else ", ".join(titles)
        lines.append(f"not in {where}: {names_text(left_out)} (not of every variant)")
    return lines


def carried_notes(study: Study, panel: Panel, steps_of: Mapping[str, np.ndarray]) -> list[str]:
    """For captions: whether evaluations are carried forward to steps at which a run has none, and
    how far at most. steps_of: label -> the steps that are drawn."""
    furthest = 0.0
    for (label, env), runs in study.cells.items():
        is_shown = label in steps_of and panel.shows(env) and panel.has_score(env)
        if not is_shown or not panel.is_of_evaluations:
            continue
        for run in runs:
            logged = panel.points(run, env)[:, 0]
            steps = np.asarray(steps_of[label], dtype=float)
            end = np.inf
            if run.has_diverged and len(logged):
                end = logged[-1]  # for later steps see counts
            steps = steps[steps <= end]
            before = np.searchsorted(logged, steps, side="right") - 1
            late = steps[before >= 0] - logged[before[before >= 0]]
            furthest = max(furthest, late.max(initial=0.0))
    if not furthest:
        return []
    text = "a run without an evaluation at a step counts with its last one before"
    return [f"{text}, up to {furthest:,.0f} steps earlier"]


# ---- runs that diverged early --------------------------------------------------------------------


@dataclass
class EarlyCount:
    """Of one variant the number of runs that diverged before they logged anything, of runs with
    rows, and of all runs."""

    early: int = 0
    with_rows: int = 0
    number: int = 0


def early_counts(study: Study, panel: Panel) -> dict[str, EarlyCount]:
    counts = defaultdict(EarlyCount)
    for (label, env), runs in study.cells.items():
        if not panel.shows(env) or not panel.has_score(env):
            continue
        for run in runs:
            has_rows = len(panel.points(run, env)) > 0
            counts[label].with_rows += has_rows
            counts[label].early += run.has_diverged and not has_rows
            counts[label].number += 1
    return counts


def early_notes(study: Study, panels: Sequence[Panel]) -> list[str]:
    """For captions: which runs diverged before they logged what a panel shows, and how they
    count."""
    titles = defaultdict(list)  # (which runs, whether they count as 0): titles of panels
    for panel in panels:
        counts = early_counts(study, panel)
        has_any = any(count.with_rows for count in counts.values())
        entries = []
        for label, count in counts.items():
            # other variants never log it, such as gradients of relu's coefficients
            is_logged = count.with_rows or (panel.score and has_any)
            if count.early and is_logged:
                entries.append(f"{label} {count.early} of {count.number}")
        if entries:
            titles[", ".join(entries), bool(panel.score)].append(panel.title)
    lines = []
    for (runs, is_score), names in titles.items():
        shown = ", ".join(names)
        verb = f"count as 0 in {shown}" if is_score else f"are left out of {shown}"
        lines.append(f"runs that diverged before the first value {verb}: {runs}")
    return lines
