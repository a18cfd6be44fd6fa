"""The quantities of `figures.py curves --metric`: some by name, and any key of scalars.csv."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

import runlog
from environments import suites
from plots import statistics
from plots.aggregation import combined, on_grid
from plots.reading import Loaded
from plots.tables import LAYERS, any_of

HIGHER = "higher"
LOWER = "lower"
WINDOWS = 40  # of a run, over which the returns of training episodes are averaged


@dataclass(frozen=True)
class Metric:
    """A quantity of a run over training: the mean over the keys that match."""

    name: str  # as given to --metric
    label: str  # of an axis
    key: str  # pattern of keys, a full match
    better: str = ""  # HIGHER, LOWER; "": neither
    low: float | None = None  # possible values; None: unbounded
    high: float | None = None
    scale: str = "linear"  # of the y axis

    @property
    def is_of_training_episodes(self) -> bool:
        return self.key.startswith("charts/episodic_")

    def points(self, run: Loaded) -> np.ndarray:
        """(rows, 2) of step and value."""
        return combined(run, self.key)

    def values(self, run: Loaded, grid: np.ndarray) -> np.ndarray:
        """Values at the steps of a grid: the last one at or before each; for training episodes the
        mean over a window before it."""
        window = grid[-1] / WINDOWS if self.is_of_training_episodes else 0.0
        return on_grid(self.points(run), grid, window)


METRICS = (
    Metric("return", "return", "eval/episodic_return", HIGHER),
    Metric("success", "success rate", "eval/success", HIGHER, 0.0, 1.0),
    Metric("accuracy", "online accuracy", "charts/online_accuracy", HIGHER, 0.0, 1.0),
    Metric("error", "mean squared error", "eval/mse", LOWER, 0.0, scale="log"),
    Metric("training return", "return of training episodes", "charts/episodic_return", HIGHER),
    Metric("overestimation", "overestimation, Q - G", "overestimation/mean", scale="symlog"),
    Metric("dead neurons", "dead-neuron fraction", rf"{LAYERS}/dead_share", LOWER, 0.0, 1.0),
    Metric("effective rank", "effective rank (srank)", rf"{LAYERS}/srank", low=0.0),
)
BY_NAME = {metric.name: metric for metric in METRICS}
BY_NAME["srank"] = BY_NAME["effective rank"]  # its name in tables
BY_NAME["online accuracy"] = BY_NAME["accuracy"]
SCORE = "score"  # the score of the environment's suite, else the first of these that is logged
SCORES = ("return", "success", "accuracy", "error", "training return")
# Ending of a key: what is better, and the largest possible value. Losses are neither better nor
# worse: the actor's is minus Q, and the critics' follow their own targets.
ENDINGS = {
    "dead_share": (LOWER, 1.0),
    "dormant_share": (LOWER, 1.0),
    "accuracy": (HIGHER, 1.0),
    "success": (HIGHER, 1.0),
    "return": (HIGHER, None),
    "mse": (LOWER, None),
}


def pattern_of(name: str) -> str:
    """A pattern of the keys that a --metric needs."""
    if name == SCORE:
        return any_of([BY_NAME[score].key for score in SCORES])
    if name in BY_NAME:
        return BY_NAME[name].key
    if "*" in name:
        return r"[^,\n]*".join(re.escape(part) for part in name.split("*"))
    return re.escape(name)


def metric_of(name: str, env: str, runs: Sequence[Loaded]) -> Metric | None:
    """The metric named by --metric for one environment's runs; None if none has logged it."""
    keys = set()
    for run in runs:
        keys |= {*run.scalars}
    if name == SCORE:
        found = [BY_NAME[score] for score in SCORES if has_key(BY_NAME[score], keys)]
        suite = suites.suite_of(env)
        suite_scores = [metric for metric in found if suite and metric.key == suite.score_key]
        return next(iter(suite_scores + found), None)
    metric = BY_NAME.get(name) or metric_of_key(name)
    return metric if has_key(metric, keys) else None


def metric_of_key(name: str) -> Metric:
    """The metric of a key of scalars.csv, or of a pattern such as network/qf*/fc1/srank."""
    for metric in METRICS:
        if metric.key == name:
            return metric
    better = ""
    low = None
    high = None
    for ending, found in ENDINGS.items():
        if name.endswith(ending):
            better, high = found
            low = 0.0 if high else None
    return Metric(name, name, pattern_of(name), better, low, high)


def has_key(metric: Metric, keys: Collection[str]) -> bool:
    return any(re.fullmatch(metric.key, key) for key in keys)


def unknown(name: str, keys: Collection[str]) -> runlog.UserError:
    """The error of a --metric that no run has logged. keys: all keys of the runs' scalars.csv."""
    names = [metric.name for metric in METRICS if has_key(metric, keys)]
    known = [SCORE, *names, *sorted(keys)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    words = name.lower().replace("_", " ").split()
    near += [key for key in known if key not in near and all(word in key for word in words)]
    fault = f"--metric {name!r}: no run has logged it"
    if near:
        fault += f"; nearest: {', '.join(near[:4])}"
    names = ", ".join([SCORE, *names])
    return runlog.UserError(f"{fault}; give {names}, or a key of scalars.csv (* matches any part)")


def normalised(values: np.ndarray, metric: Metric, env: str) -> np.ndarray | None:
    """Values on a scale that environments share, so that a mean has a meaning: a suite's score and
    values in [0, 1] as fractions, Atari's returns human-normalised. None if there is no scale."""
    suite = suites.suite_of(env)
    if suite and metric.key == suite.score_key and "," not in env:
        return values / suite.score_scale
    if metric.low == 0.0 and metric.high == 1.0:
        return values
    is_return = metric.name in ("return", "training return")
    if is_return and env in statistics.atari_scores():
        return statistics.human_normalised(values, env)
    return None
