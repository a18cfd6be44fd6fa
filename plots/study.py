"""study."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import metrics
import runlog
from plots.aggregation import combined, grid_of, on_grid
from plots.reading import Loaded, read_config, read_run, run_folders_in
from plots.statistics import STATISTICS
from plots.variants import (
    PAIRED,
    SETTINGS,
    STYLES,
    _flat,
    _own,
    _same,
    _told,
    _where,
    canonical,
    differing,
)


@dataclass
class Panel:
    """What a panel shows of each run: a number at every step, then a statistic over runs and environments."""

    title: str
    unit: str
    key: str  # pattern of keys, a full match
    reduce: str = "mean"  # over the keys that match: mean, max
    score: str = ""  # "suite": success in Meta-World, return / 1,000 in DMC; "human", "baseline": HR eq. 9, 8
    statistic: str = "iqm"  # iqm, mean, median: with 95 % bootstrap intervals; std: mean of means, std over seeds
    suite: str = ""  # only environments whose id begins so
    scale: str = "linear"  # of the y axis


RETURN = r"eval/episodic_return"

CRITICS, HIDDEN = r"network/qf\d", r"network/(q|agent)/fc1"

IQM = Panel("IQM, normalised", "return / 1,000 or success", RETURN, score="suite")

SUCCESS = Panel("success, Meta-World", "share (any step)", "eval/success", suite="metaworld/")

BIAS = Panel(
    "overestimation",
    "(Q - G) / max(|G|, 10)",
    "overestimation/normalised",
    statistic="mean",
    scale="symlog",
)

COEFFICIENTS = Panel(
    "coefficient gradient, critics",
    "L2 norm",
    rf"{CRITICS}/coefficient_gradient_norm",
    statistic="mean",
    scale="log",
)

LARGEST = Panel(
    "largest output",
    "max |f(x)|, critics",
    rf"{CRITICS}/fc\d+/(branch\d+_)?f_max",
    "max",
    scale="log",
)

NUMERATOR, DENOMINATOR = (
    Panel(
        f"{name}, critics",
        "L2 norm of the coefficients",
        rf"{CRITICS}/fc\d+/(branch\d+_)?{name}_norm",
        scale="log",
    )
    for name in ("numerator", "denominator")
)

DEAD = Panel("dead neurons, last hidden layer", "share", rf"{HIDDEN}/dead_share", statistic="std")

SRANK = Panel("effective rank, last hidden layer", "srank", rf"{HIDDEN}/srank", statistic="std")

BASELINE = Panel(
    "baseline-normalised score",
    "HR eq. 8",
    r"charts/episodic_return",
    score="baseline",
    statistic="std",
)

HUMAN = Panel(
    "human-normalised score", "HR eq. 9", r"charts/episodic_return", score="human", statistic="std"
)

MEDIAN = Panel(
    "median human-normalised score", "HR eq. 9", RETURN, score="human", statistic="median"
)


@dataclass
class Study:
    """Finished runs of one script: (variant, environment) -> runs in the order of their seeds."""

    script: str
    cells: dict[tuple[str, str], list[Loaded]]
    missing: list[str]  # what the grid of variants, environments and seeds lacks
    settings: dict[
        str, dict[str, object]
    ]  # variant: "activation", and its settings of SETTINGS, PAIRED if not usual
    usual: dict[str, float]  # values of PAIRED that variants have unless told, if runs differ
    reference: dict[str, list[Loaded]]  # environment: relu's runs, by which HR eq. 8 normalises

    @property
    def variants(self) -> list[str]:
        return list(self.settings)

    @property
    def environments(self) -> list[str]:
        return sorted({environment for _, environment in self.cells})

    def only(self, variants: Sequence[str]) -> "Study":
        """These variants, in this order. Those of which there is nothing are missing; the others' gaps are not told."""
        settings = {name: self.settings[name] for name in variants if name in self.settings}
        cells = {key: runs for key, runs in self.cells.items() if key[0] in settings}
        missing = [line for line in self.missing if line.split(" on ")[0] in variants]
        told = {line.split(" on ")[0] for line in missing} | {*settings}
        missing += [f"{name} (no run)" for name in variants if name not in told]
        return Study(self.script, cells, missing, settings, self.usual, self.reference)

    def complete(self, prefix: str = "") -> list[str]:
        """Environments whose id begins so and that every variant has."""
        have = {e: sum((v, e) in self.cells for v in self.variants) for e in self.environments}
        return [
            e for e, count in have.items() if count == len(self.variants) and e.startswith(prefix)
        ]

    @property
    def counts(self) -> str:
        """What a caption tells: n, environments, diverged runs, what is missing."""
        seeds = sorted({len(runs) for runs in self.cells.values()}) or [0]
        diverged = sum(
            run.config["status"] == "diverged" for runs in self.cells.values() for run in runs
        )
        told = f"n = {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seed{'s' * (seeds[-1] > 1)} in each "
        told += f"of {len(self.environments)} environment{'s' * (len(self.environments) > 1)}"
        told += f", {diverged} diverged (last value carried forward)" if diverged else ""
        told += "".join(
            f"; {key.replace('_', ' ')} {value:g} if not told" for key, value in self.usual.items()
        )
        if seeds[0] < 2 <= seeds[-1]:
            told += "; cells of one seed add nothing to the intervals"
        if self.missing:
            more = f" and {len(self.missing) - 3} more" if len(self.missing) > 3 else ""
            told += f"\nmissing: {'; '.join(self.missing[:3])}{more}"
        return told


def _shared(study: Study) -> list[str]:
    """For captions of statistics over environments: of how many, if not of all."""
    complete, every = len(study.complete()), len(study.environments)
    return [f"statistics over the {complete} of {every} environments that every variant has"] * (
        complete < every
    )


def read_study(folder: Path, script: str, keys: str, where: Sequence[str] = ()) -> Study:
    """The finished runs of a script in a folder, of which scalars.csv is read for keys that match a pattern.

    where: settings like "utd=10" that a run must have. Raises UserError: no run, or runs that differ in a setting which
    is no variant's own (SETTINGS, PAIRED), such as their length.
    """
    wanted = dict(item.partition("=")[::2] for item in where)
    folders = run_folders_in(folder, f"*__{script}__*")
    configs = [read_config(path) for path in folders]
    flat = [_flat(config) for config in configs]
    for key in wanted:
        if not any(key in config for config in flat):
            raise runlog.UserError(
                f"--where {key}: no setting of the runs of {script}.py in {folder}"
            )
    kept = [
        i
        for i, c in enumerate(flat)
        if all(_same(c.get(key), value) for key, value in wanted.items())
    ]
    if not kept:
        raise runlog.UserError(
            f"--runs {folder}: no run of {script}.py" + (f" with {', '.join(where)}" * bool(where))
        )
    ours = {*SETTINGS, *PAIRED, "activation", "env_id"}
    if found := differing([flat[i] for i in kept], [folders[i] for i in kept], ours):
        key, values = found
        raise runlog.UserError(
            f"--runs {folder}: runs of {script}.py differ in {key} ({', '.join(values)}); "
            f"choose by --where {key}={next(iter(values))} (null: not there), or move some away: {_where(values)}"
        )
    values = {key: [flat[i].get(key) for i in kept] for key in PAIRED}
    usual = {key: max(each, key=each.count) for key, each in values.items() if len({*each}) > 1}
    cells, settings, unfinished = defaultdict(dict), {}, []
    for i in kept:
        own = _own(
            flat[i], [*SETTINGS, *(key for key in usual if flat[i].get(key) != usual[key])], script
        )
        name = canonical(flat[i]["activation"])
        label = ", ".join([name, *(_told(key, value) for key, value in own.items())])
        settings[label] = {"activation": name, **own}
        cell, seed, status = (label, configs[i]["env_id"]), configs[i]["seed"], configs[i]["status"]
        run = (
            read_run(folders[i], keys)
            if status in runlog.ENDED
            else Loaded(folders[i], configs[i], {})
        )
        if seed in cells[cell]:
            two = f"{cells[cell][seed].folder.name} and {folders[i].name}"
            raise runlog.UserError(
                f"--runs {folder}: {two} are both {label}, seed {seed}; move one away"
            )
        if status not in runlog.ENDED:
            unfinished.append((*cell, seed, status))
        else:
            cells[cell][seed] = run
    order = [*STYLES, *sorted({s["activation"] for s in settings.values()} - {*STYLES})]
    ranks = {
        label: (order.index(own["activation"]), len(own), label) for label, own in settings.items()
    }
    settings = dict(sorted(settings.items(), key=lambda item: ranks[item[0]]))
    missing = defaultdict(list)
    for label, env, seed, status in unfinished:
        missing[label, env, status].append(f"s{seed}")
    missing = [
        f"{label} on {env} {' '.join(names)} ({status})"
        for (label, env, status), names in missing.items()
    ]
    seeds = sorted({configs[i]["seed"] for i in kept})
    for label in settings:
        for env in sorted({configs[i]["env_id"] for i in kept}):
            known = {
                *cells.get((label, env), ()),
                *(seed for *cell, seed, _ in unfinished if cell == [label, env]),
            }
            lacking = [f"s{seed}" for seed in seeds if seed not in known]
            if lacking:
                missing.append(
                    f"{label} on {env}"
                    + (f" {' '.join(lacking)}" if len(lacking) < len(seeds) else "")
                )
    for line in missing:
        print(f"missing: {line}")
    cells = {cell: by_seed for cell, by_seed in cells.items() if by_seed}
    if not cells:
        raise runlog.UserError(
            f"--runs {folder}: no run of {script}.py has finished; give the training command again"
        )
    runs = {key: [by_seed[seed] for seed in sorted(by_seed)] for key, by_seed in cells.items()}
    settings = {
        name: own for name, own in settings.items() if any(name == variant for variant, _ in runs)
    }
    reference = {env: each for (variant, env), each in runs.items() if variant == "relu"}
    return Study(script, runs, missing, settings, usual, reference)


def _try_study(runs: Path, script: str, keys: str, where: Sequence[str]) -> Study | None:
    """read_study for a figure of two algorithms: None, and a line, if there is nothing of this one."""
    try:
        return read_study(runs, script, keys, where)
    except runlog.UserError as error:
        print(f"missing: {script}: {error}")
        return None


def _chosen(study: Study, usual: Sequence[str], variants: Sequence[str]) -> Study:
    """The variants asked for, or the figure's usual ones; prints which others there are."""
    others = [name for name in study.variants if name not in (variants or usual)]
    if others:
        print(f"left out: {'; '.join(others)} (--variants names what is drawn)")
    return study.only(variants or usual)


def curves(study: Study, panel: Panel) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """The grid, and (variant, environment) -> values (steps, runs) of a panel, normalised as it says, of the runs that
    have it. Returns of training games are means over windows of a fortieth of the longest run (HR's are smoothed)."""
    suite = panel.score == "suite"
    runs = {key: each for key, each in study.cells.items() if key[1].startswith(panel.suite)}
    for env in sorted({env for _, env in runs if _unscored(panel, env)}):
        print(f"left out: {env} has no score for {panel.title}")
    runs = {key: each for key, each in runs.items() if not _unscored(panel, key[1])}
    every = [run for each in runs.values() for run in each]
    grid = (
        grid_of(every, "eval/(success|episodic_return)" if suite else panel.key)
        if every
        else np.zeros(0)
    )
    window = grid[-1] / 40 if panel.key.startswith("charts/") and len(grid) else 0.0

    def values(each: list[Loaded], env: str) -> np.ndarray:
        """(steps, runs), NaN for a run without a row."""
        rows = [on_grid(_points(run, panel, env), grid, window) for run in each]
        scores = np.stack(rows, -1) if rows else np.zeros((len(grid), 0))
        return scores / (1_000 if suite and not env.startswith("metaworld/") else 1)

    found = {}
    for (variant, env), each in runs.items():
        scores = values(each, env)
        if panel.score == "human":
            scores = metrics.human_normalised(scores, env)
        if panel.score == "baseline":
            relu = values(study.reference.get(env, []), env)
            ends = (
                (np.nanmin(relu), np.nanmax(relu)) if np.isfinite(relu).any() else (np.nan, np.nan)
            )
            scores = metrics.baseline_normalised(scores, *ends)
        kept = []
        for k, run in enumerate(each):
            has_rows = len(_points(run, panel, env)) > 0
            if not has_rows and run.has_diverged and panel.score:
                scores[:, k] = 0.0  # a suite's lowest score, random play, or relu's lowest
            if has_rows or (run.has_diverged and panel.score):
                kept.append(k)
        if kept and len(grid):
            found[variant, env] = scores[:, kept]
    return grid, found


def _points(run: Loaded, panel: Panel, env: str) -> np.ndarray:
    """(rows, 2) of step and value of what a panel shows of a run; not normalised."""
    success = panel.score == "suite" and env.startswith("metaworld/")
    return combined(run, "eval/success" if success else panel.key, panel.reduce)


def _early(study: Study, panels: Sequence[Panel]) -> list[str]:
    """For captions: which runs diverged before they logged what a panel shows, and what became of them."""
    found = defaultdict(list)  # which runs: panels
    for panel in panels:
        counts = defaultdict(lambda: [0, 0, 0])  # variant: such runs, runs with rows, all runs
        for (variant, env), runs in study.cells.items():
            if not env.startswith(panel.suite) or _unscored(panel, env):
                continue
            for run in runs:
                has_rows = len(_points(run, panel, env)) > 0
                counts[variant][0] += run.has_diverged and not has_rows
                counts[variant][1] += has_rows
                counts[variant][2] += 1
        logged = any(with_rows for _, with_rows, _ in counts.values())
        told = []
        for variant, (early, with_rows, number) in counts.items():
            if early and (
                with_rows or (panel.score and logged)
            ):  # others: never logged, such as gradients of relu
                told.append(f"{variant} {early} of {number}")
        if told:
            found[", ".join(told), bool(panel.score)].append(panel.title)
    lines = []
    for (runs, is_score), titles in found.items():
        what = (
            f"count as 0 in {', '.join(titles)}"
            if is_score
            else f"are left out of {', '.join(titles)}"
        )
        lines.append(f"runs that diverged before the first value {what}: {runs}")
    return lines


def _unscored(panel: Panel, env: str) -> bool:
    """Whether an environment has no normalised score: not of the two suites, tasks in a row, not of the 57 games."""
    if panel.score == "suite":
        return "," in env or not env.startswith(("dm_control/", "metaworld/"))
    return panel.score == "human" and env not in metrics.atari_scores()


def aggregate(study: Study, panel: Panel) -> dict[str, dict[str, np.ndarray | int]]:
    """variant -> step, value, low, high (steps,), environments and runs behind them: statistic over the environments
    that every variant with this quantity has, at the steps where all its runs have a value."""
    grid, found = curves(study, panel)
    having = {variant for variant, _ in found}
    shared = [
        env
        for env in study.complete(panel.suite)
        if all((variant, env) in found for variant in having)
    ]
    shared = [env for env in shared if all(np.isfinite(found[v, env]).any() for v in having)]
    for env in sorted({env for _, env in found} & {*study.complete(panel.suite)} - {*shared}):
        without = [variant for variant in having if (variant, env) not in found]
        print(
            f"left out: {env} of {panel.title}, since {', '.join(sorted(without))} logged nothing of it"
        )
    result = {}
    for variant in (variant for variant in study.variants if variant in having and shared):
        strata = [found[variant, env] for env in shared]
        known = np.all([np.isfinite(each).all(-1) for each in strata], axis=0)
        strata = [each[known] for each in strata]
        if not known.any():
            continue
        value = STATISTICS[panel.statistic](strata)
        if (
            panel.statistic == "std"
        ):  # over seeds, of the mean over environments; nothing if seeds differ in number
            equal = len({each.shape[-1] for each in strata}) == 1 and strata[0].shape[-1] > 1
            half = np.mean(strata, axis=0).std(-1) if equal else np.full(len(value), np.nan)
            low, high = value - half, value + half
        else:
            low, high = metrics.stratified_bootstrap(
                strata, STATISTICS[panel.statistic], repetitions=1_000
            )
        number = sum(each.shape[-1] for each in strata)
        result[variant] = {"step": grid[known], "value": value, "low": low, "high": high}
        result[variant] |= {"environments": len(shared), "runs": number}
    return result


def _keys(*panels: Panel) -> str:
    return "|".join(
        dict.fromkeys(
            f"(?:{p.key})" + ("|eval/success" if p.score == "suite" else "") for p in panels
        )
    )


def _plain(study: Study) -> list[str]:
    """Variants without a setting of their own."""
    return [name for name, own in study.settings.items() if not {*own} - {"activation"}]
