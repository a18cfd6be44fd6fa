"""The runs behind a figure of the papers: variants in environments, and curves over them.

`read_study` takes the finished runs of one script in a folder; a `Panel` says what is shown of each
run; `aggregate` makes of both one curve per variant, with its interval.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import runlog
from plots import statistics
from plots.aggregation import combined, grid_of, on_grid
from plots.reading import Loaded, read_config, read_run, run_folders_in
from plots.variants import (
    PAIRED,
    SETTINGS,
    Variant,
    by_seed,
    canonical,
    differing,
    flat,
    own_settings,
    sorted_variants,
)

METAWORLD = "metaworld/"  # prefixes of environments
DMC = "dm_control/"
RETURN = r"eval/episodic_return"
SUCCESS_KEY = "eval/success"


# ---- what is shown -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistic:
    """A statistic over runs and environments, and what captions tell of it."""

    function: Callable[
        [Sequence[np.ndarray]], np.ndarray
    ]  # of strata: for each environment (..., runs)
    caption: str
    is_bootstrapped: bool = True  # else the band is the deviation over seeds


STATISTICS = {
    "iqm": Statistic(statistics.interquartile_mean, "IQM over runs, 95 % stratified bootstrap"),
    "mean": Statistic(
        statistics.mean_of_means, "mean over environments, 95 % stratified bootstrap"
    ),
    "median": Statistic(
        statistics.median_of_means,
        "median over games of means over seeds, 95 % stratified bootstrap",
    ),
    "std": Statistic(
        statistics.mean_of_means, "mean over environments, band: std over seeds of it", False
    ),
}


@dataclass
class Panel:
    """What a panel shows of each run: a number at every step, then a statistic over runs and
    environments."""

    title: str
    unit: str
    key: str  # pattern of keys, a full match
    reduce: str = "mean"  # over the keys that match: mean, max
    score: str = ""  # "suite": success in Meta-World, return / 1,000 in DMC; "human", "baseline"
    statistic: str = "iqm"  # of STATISTICS
    suite: str = ""  # only environments whose id begins so
    scale: str = "linear"  # of the y axis

    @property
    def is_of_training_games(self) -> bool:
        return self.key.startswith("charts/")

    def shows(self, env: str) -> bool:
        return env.startswith(self.suite)

    def has_score(self, env: str) -> bool:
        """Whether an environment has the panel's normalised score. Without: environments outside
        the two suites, sequences of tasks, games without human scores."""
        if self.score == "suite":
            is_sequence = "," in env
            return env.startswith((DMC, METAWORLD)) and not is_sequence
        return self.score != "human" or env in statistics.atari_scores()

    def key_in(self, env: str) -> str:
        is_success = self.score == "suite" and env.startswith(METAWORLD)
        return SUCCESS_KEY if is_success else self.key

    def points(self, run: Loaded, env: str) -> np.ndarray:
        """(rows, 2) of step and value of a run; not normalised."""
        return combined(run, self.key_in(env), self.reduce)


def keys_of(*panels: Panel) -> str:
    """A pattern of all keys that panels need."""
    patterns = []
    for panel in panels:
        patterns.append(f"(?:{panel.key})")
        if panel.score == "suite":
            patterns.append(SUCCESS_KEY)
    return "|".join(dict.fromkeys(patterns))


# ---- a study -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """What the grid of variants, environments and seeds lacks."""

    variant: str
    environment: str = ""  # "": there is no run of the variant at all
    seeds: tuple[int, ...] = ()  # (): all
    status: str = ""  # of runs that have not ended

    def __str__(self) -> str:
        if not self.environment:
            return f"{self.variant} (no run)"
        parts = [f"{self.variant} on {self.environment}", *(f"s{seed}" for seed in self.seeds)]
        if self.status:
            parts.append(f"({self.status})")
        return " ".join(parts)


@dataclass
class Study:
    """Finished runs of one script."""

    script: str
    cells: dict[tuple[str, str], list[Loaded]]  # (label, environment): runs by their seeds
    missing: list[Missing]
    variants: dict[str, Variant]  # by label, in order
    usual: dict[str, float]  # values of PAIRED that variants have unless told, if runs differ
    reference: dict[str, list[Loaded]]  # environment: relu's runs, for HR eq. 8

    @property
    def labels(self) -> list[str]:
        return list(self.variants)

    @property
    def activation_of(self) -> dict[str, str]:
        return {label: variant.activation for label, variant in self.variants.items()}

    @property
    def environments(self) -> list[str]:
        return sorted({environment for _, environment in self.cells})

    def only(self, labels: Sequence[str]) -> "Study":
        """These variants, in this order. Those of which there is nothing are missing; the others'
        gaps are not told."""
        variants = {label: self.variants[label] for label in labels if label in self.variants}
        cells = {cell: runs for cell, runs in self.cells.items() if cell[0] in variants}
        missing = [gap for gap in self.missing if gap.variant in labels]
        known = {gap.variant for gap in missing} | {*variants}
        missing += [Missing(label) for label in labels if label not in known]
        return replace(self, cells=cells, missing=missing, variants=variants)

    def chosen(self, labels: Sequence[str]) -> "Study":
        """The variants asked for, or all; prints which others there are."""
        if not labels:
            return self
        others = [label for label in self.labels if label not in labels]
        if others:
            print(f"left out: {'; '.join(others)} (--variants names what is drawn)")
        return self.only(labels)

    def with_only_settings(self, *keys: str) -> list[str]:
        """The variants that have no settings of their own but, perhaps, these."""
        labels = []
        for label, variant in self.variants.items():
            if not {*variant.settings} - {*keys}:
                labels.append(label)
        return labels

    def complete(self, prefix: str = "") -> list[str]:
        """Environments whose id begins so and that every variant has."""
        found = []
        for env in self.environments:
            has_all = all((label, env) in self.cells for label in self.labels)
            if has_all and env.startswith(prefix):
                found.append(env)
        return found

    # ---- what captions tell ----

    @property
    def counts(self) -> str:
        """n, environments, diverged runs, what is missing."""
        numbers = [len(runs) for runs in self.cells.values()] or [0]
        fewest, most = min(numbers), max(numbers)
        diverged = 0
        for runs in self.cells.values():
            diverged += sum(run.has_diverged for run in runs)
        seeds = str(most) if fewest == most else f"{fewest} to {most}"
        seeds += " seeds" if most > 1 else " seed"
        number = len(self.environments)
        environments = f"{number} environment{'s' if number > 1 else ''}"
        told = f"n = {seeds} in each of {environments}"
        if diverged:
            told += f", {diverged} diverged (last value carried forward)"
        for key, value in self.usual.items():
            told += f"; {key.replace('_', ' ')} {value:g} if not told"
        if fewest < 2 <= most:
            told += "; cells of one seed add nothing to the intervals"
        if self.missing:
            first = "; ".join(str(gap) for gap in self.missing[:3])
            further = len(self.missing) - 3
            more = f" and {further} more" if further > 0 else ""
            told += f"\nmissing: {first}{more}"
        return told

    def told_shared(self) -> list[str]:
        """For statistics over environments: over how many, if not all."""
        complete = len(self.complete())
        number = len(self.environments)
        if complete == number:
            return []
        return [f"statistics over the {complete} of {number} environments that every variant has"]

    def told_early(self, panels: Sequence[Panel]) -> list[str]:
        """Which runs diverged before they logged what a panel shows, and what became of them."""
        titles = defaultdict(list)  # (which runs, whether they count as 0): titles of panels
        for panel in panels:
            counts = early_counts(self, panel)
            has_any = any(count.with_rows for count in counts.values())
            told = []
            for label, count in counts.items():
                # others never log it, such as gradients of relu's coefficients
                is_logged = count.with_rows or (panel.score and has_any)
                if count.early and is_logged:
                    told.append(f"{label} {count.early} of {count.number}")
            if told:
                titles[", ".join(told), bool(panel.score)].append(panel.title)
        lines = []
        for (runs, is_score), names in titles.items():
            shown = ", ".join(names)
            what = f"count as 0 in {shown}" if is_score else f"are left out of {shown}"
            lines.append(f"runs that diverged before the first value {what}: {runs}")
        return lines


@dataclass
class EarlyCount:
    """Of one variant: runs that diverged before they logged anything, runs with rows, all runs."""

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


# ---- reading a study -----------------------------------------------------------------------------


@dataclass
class Candidate:
    """A run folder whose settings are known."""

    folder: Path
    config: dict
    settings: dict  # flat

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def has_ended(self) -> bool:
        return self.config["status"] in runlog.ENDED


def read_study(folder: Path, script: str, keys: str, where: Sequence[str] = ()) -> Study:
    """The finished runs of a script in a folder, of which scalars.csv is read for keys that match a
    pattern.

    where: settings like "utd=10" that a run must have. Raises UserError: no run, or runs that
    differ in a setting which is no variant's own (SETTINGS, PAIRED), such as their length.
    """
    candidates = find_candidates(folder, script, where)
    check_comparable(folder, script, candidates)
    usual = usual_values(candidates)
    cells = defaultdict(list)  # (label, environment): candidates
    variants = []
    for candidate in candidates:
        variant = variant_of(candidate, usual, script)
        variants.append(variant)
        cells[variant.label, candidate.config["env_id"]].append(candidate)
    variants = sorted_variants(variants)

    runs = {}
    for (label, env), members in cells.items():
        ended = []
        for candidate in members:
            if candidate.has_ended:
                ended.append(read_run(candidate.folder, keys))
        everyone = [*ended, *(unread(each) for each in members if not each.has_ended)]
        check_seeds_of_cell(folder, everyone, label)
        if ended:
            runs[label, env] = by_seed(ended, label)
    missing = gaps(cells, variants)
    for gap in missing:
        print(f"missing: {gap}")
    if not runs:
        told = f"no run of {script}.py has finished; give the training command again"
        raise runlog.UserError(f"--runs {folder}: {told}")
    with_runs = {label for label, _ in runs}
    variants = {label: each for label, each in variants.items() if label in with_runs}
    reference = {env: members for (label, env), members in runs.items() if label == "relu"}
    return Study(script, runs, missing, variants, usual, reference)


def unread(candidate: Candidate) -> Loaded:
    return Loaded(candidate.folder, candidate.config, {})


def find_candidates(folder: Path, script: str, where: Sequence[str]) -> list[Candidate]:
    """The runs of a script in a folder that have the settings asked for. Raises UserError: none."""
    candidates = []
    for path in run_folders_in(folder, f"*__{script}__*"):
        config = read_config(path)
        candidates.append(Candidate(path, config, flat(config)))
    for item in where:
        key = item.partition("=")[0]
        if not any(key in each.settings for each in candidates):
            told = f"no setting of the runs of {script}.py in {folder}"
            raise runlog.UserError(f"--where {key}: {told}")
    for item in where:
        key, _, text = item.partition("=")
        candidates = [each for each in candidates if is_value(each.settings.get(key), text)]
    if not candidates:
        told = f"no run of {script}.py"
        if where:
            told += f" with {', '.join(where)}"
        raise runlog.UserError(f"--runs {folder}: {told}")
    return candidates


def is_value(value: object, text: str) -> bool:
    """Whether a setting is what the command line says."""
    try:
        return value == json.loads(text)
    except ValueError:
        return str(value) == text


def check_comparable(folder: Path, script: str, candidates: Sequence[Candidate]) -> None:
    """Raises UserError if runs differ in a setting which is no variant's own."""
    settings = [each.settings for each in candidates]
    folders = [each.folder for each in candidates]
    found = differing(settings, folders, {*SETTINGS, *PAIRED, "activation", "env_id"})
    if found is None:
        return
    first = next(iter(found.folders))
    raise runlog.UserError(
        f"--runs {folder}: runs of {script}.py differ in {found.key} ({found.values}); "
        f"choose by --where {found.key}={first} (null: not there), "
        f"or move some away: {found.where}"
    )


def usual_values(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Of the PAIRED settings that runs differ in: the value that most runs have."""
    usual = {}
    for key in PAIRED:
        values = [each.settings.get(key) for each in candidates]
        if len({*values}) > 1:
            usual[key] = max(values, key=values.count)
    return usual


def variant_of(candidate: Candidate, usual: dict[str, float], script: str) -> Variant:
    """A run's variant: its activation by its short name, and what is not as usual."""
    keys = [*SETTINGS]
    for key, value in usual.items():
        if candidate.settings.get(key) != value:
            keys.append(key)
    own = own_settings(candidate.settings, keys, script)
    return Variant(canonical(candidate.settings["activation"]), own)


def check_seeds_of_cell(folder: Path, runs: Sequence[Loaded], label: str) -> None:
    """Raises UserError if a seed of a variant is there twice, finished or not."""
    seen = {}
    for run in runs:
        if run.seed in seen:
            two = f"{seen[run.seed]} and {run.folder.name}"
            told = f"{two} are both {label}, seed {run.seed}; move one away"
            raise runlog.UserError(f"--runs {folder}: {told}")
        seen[run.seed] = run.folder.name


def gaps(
    cells: dict[tuple[str, str], list[Candidate]], variants: dict[str, Variant]
) -> list[Missing]:
    """What has not ended, then what is not there, against all variants, environments and seeds that
    the folder has."""
    seeds = set()
    for members in cells.values():
        seeds |= {candidate.seed for candidate in members}
    environments = sorted({env for _, env in cells})

    unfinished = defaultdict(list)  # (label, environment, status): seeds
    for (label, env), members in cells.items():
        for candidate in members:
            if not candidate.has_ended:
                unfinished[label, env, candidate.config["status"]].append(candidate.seed)
    missing = []
    for (label, env, status), members in unfinished.items():
        missing.append(Missing(label, env, tuple(members), status))

    for label in variants:
        for env in environments:
            known = {candidate.seed for candidate in cells.get((label, env), ())}
            lacking = sorted(seeds - known)
            if lacking:
                missing.append(Missing(label, env, tuple(lacking) if known else ()))
    return missing


def try_study(runs: Path, script: str, keys: str, where: Sequence[str]) -> Study | None:
    """read_study for a figure of two algorithms: None, and a line, if there is nothing of this
    one."""
    try:
        return read_study(runs, script, keys, where)
    except runlog.UserError as error:
        print(f"missing: {script}: {error}")
        return None


# ---- curves --------------------------------------------------------------------------------------


@dataclass
class Curve:
    """A statistic of one variant over its runs, at steps."""

    steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    environments: int  # behind it
    runs: int

    def points(self) -> list[dict[str, float]]:
        columns = (self.steps, self.value, self.low, self.high)
        rows = zip(*(column.tolist() for column in columns))
        return [dict(zip(("step", "value", "low", "high"), row)) for row in rows]


def curves(study: Study, panel: Panel) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """The grid, and (label, environment) -> values (steps, runs) of a panel, normalised as it says,
    of the runs that have it. Returns of training games are means over windows of a fortieth of the
    longest run (HR's are smoothed)."""
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
    every = [run for runs in cells.values() for run in runs]
    if not every:
        return np.zeros(0), {}
    grid = grid_of(every, keys_of(panel) if panel.score == "suite" else panel.key)
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
    """Values as the panel's score has them."""
    if panel.score == "suite" and not env.startswith(METAWORLD):
        return values / 1_000
    if panel.score == "human":
        return statistics.human_normalised(values, env)
    if panel.score == "baseline":
        relu = values_on(grid, panel, study.reference.get(env, []), env)
        if not np.isfinite(relu).any():
            return np.full_like(values, np.nan)
        return statistics.baseline_normalised(values, np.nanmin(relu), np.nanmax(relu))
    return values


def aggregate(study: Study, panel: Panel) -> dict[str, Curve]:
    """label -> curve: statistic over the environments that every variant with this quantity has, at
    the steps where all its runs have a value."""
    grid, found = curves(study, panel)
    having = {label for label, _ in found}
    shared = shared_environments(study, panel, found)
    result = {}
    for label in study.labels:
        if label not in having or not shared:
            continue
        strata = [found[label, env] for env in shared]
        known = np.all([np.isfinite(values).all(-1) for values in strata], axis=0)
        if not known.any():
            continue
        strata = [values[known] for values in strata]
        value, low, high = interval(strata, STATISTICS[panel.statistic])
        number = sum(values.shape[-1] for values in strata)
        result[label] = Curve(grid[known], value, low, high, len(shared), number)
    return result


def shared_environments(
    study: Study, panel: Panel, found: dict[tuple[str, str], np.ndarray]
) -> list[str]:
    """The environments that a statistic is over. Prints which are left out, since some variant
    logged nothing there."""
    having = {label for label, _ in found}
    complete = study.complete(panel.suite)
    shared = []
    for env in complete:
        values = [found.get((label, env)) for label in having]
        if all(each is not None and np.isfinite(each).any() for each in values):
            shared.append(env)
    for env in sorted({env for _, env in found} & {*complete} - {*shared}):
        without = sorted(label for label in having if (label, env) not in found)
        print(f"left out: {env} of {panel.title}, since {', '.join(without)} logged nothing of it")
    return shared


def interval(
    strata: list[np.ndarray], statistic: Statistic
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of strata (steps, runs), and the ends of its interval."""
    value = statistic.function(strata)
    if statistic.is_bootstrapped:
        ends = statistics.stratified_bootstrap(strata, statistic.function, repetitions=1_000)
        return value, *ends
    # over seeds, of the mean over environments; nothing if seeds differ in number
    numbers = {values.shape[-1] for values in strata}
    if len(numbers) == 1 and numbers != {1}:
        half = np.mean(strata, axis=0).std(-1)
    else:
        half = np.full(len(value), np.nan)
    return value, value - half, value + half
