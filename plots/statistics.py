"""Scores and statistics over runs (numpy): normalised returns, aggregates and their intervals."""

import csv
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats


@functools.cache
def atari_scores() -> dict[str, tuple[float, float]]:
    """game -> (random, human) raw score of 57 games, from data/atari_scores.csv: the table of Wang
    et al. 2016 (1511.06581), as in purejaxql, HR's code base. VideoPinball's human is 1,411 points
    above random, so its normalised scores dominate a mean over few games."""
    with open(Path(__file__).resolve().parent.parent / "data" / "atari_scores.csv") as file:
        return {
            row["game"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(file)
        }


def human_normalised(score: np.ndarray | float, game: str) -> np.ndarray | float:
    """(score - random) / (human - random), HR eq. 9: 0 is random play, 1 a human. Raises
    ValueError: unknown game.

    >>> human_normalised(30.5, "Breakout")
    1.0
    """
    if game not in atari_scores():
        raise ValueError(
            f"{game}: not among the {len(atari_scores())} games of data/atari_scores.csv"
        )
    random, human = atari_scores()[game]
    return (score - random) / (human - random)


def baseline_normalised(score: np.ndarray | float, low: float, high: float) -> np.ndarray | float:
    """(score - low) / (high - low), HR eq. 8: low and high are the lowest and highest score of the
    ReLU runs of the game. NaN if they are equal."""
    if high > low:
        return (score - low) / (high - low)
    return np.full_like(np.asarray(score, dtype=float), np.nan)


def interquartile_mean(strata: Sequence[np.ndarray]) -> np.ndarray:
    """IQM (Agarwal et al. 2021, 2108.13264): mean of the middle half of all runs together; floor(n
    / 4) are cut off at either end. strata: for each environment (..., runs); returns (...)."""
    return stats.trim_mean(np.concatenate(strata, -1), 0.25, axis=-1)


def mean_of_means(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over environments of the mean over runs. strata: for each environment (..., runs);
    returns (...)."""
    return np.mean([runs.mean(-1) for runs in strata], axis=0)


def median_of_means(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Median over environments of the mean over runs (HR Figs. 1, 9). As mean_of_means."""
    return np.median([runs.mean(-1) for runs in strata], axis=0)


def stratified_bootstrap(
    strata: Sequence[np.ndarray],
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    repetitions: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the percentile interval of a statistic over runs, runs being drawn anew within each
    environment (Agarwal et al. 2021, section 4.1). A curve is drawn as a whole.

    strata: for each environment (..., runs), of equal leading axes (steps), finite. statistic: one
    of the three above. Returns low and high (...); NaN where no environment has a second run, since
    nothing varies then. Own generator.
    """
    shape = strata[0].shape[:-1]
    if all(runs.shape[-1] < 2 for runs in strata):
        return np.full(shape, np.nan), np.full(shape, np.nan)
    generator = np.random.default_rng(seed)
    values = []
    size = max(1, 2**22 // sum(runs.size for runs in strata))  # repetitions at a time: 32 MB
    for start in range(0, repetitions, size):
        count = min(size, repetitions - start)
        drawn = []
        for runs in strata:
            number = runs.shape[-1]
            picks = generator.integers(number, size=(count, number))
            drawn.append(np.moveaxis(runs[..., picks], -2, 0))
        values.append(statistic(drawn))
    ends = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(np.concatenate(values), ends, axis=0)
    return low, high


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis and the ends of its 95 % interval by Student's t, of what is finite.

    Of paired differences it is the paired t interval. NaN where nothing is finite; NaN ends for one
    value.
    """
    finite = np.isfinite(values)
    count = finite.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, values, 0.0).sum(0) / count
        variance = np.where(finite, (values - mean) ** 2, 0.0).sum(0) / (count - 1)
        quantile = stats.t.ppf(0.975, np.maximum(count - 1, 1))
        half = np.where(count > 1, quantile * np.sqrt(variance / count), np.nan)
    return mean, mean - half, mean + half


def ratio_interval(logarithms: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean of ratios, from their logarithms, and the ends of its 95 % interval (Student's
    t on the logarithms). NaN of fewer than two, or if one is not finite."""
    if len(logarithms) < 2 or not np.isfinite(logarithms).all():
        return np.nan, np.nan, np.nan
    mean = logarithms.mean()
    deviation = logarithms.std(ddof=1) / np.sqrt(len(logarithms))
    half = stats.t.ppf(0.975, len(logarithms) - 1) * deviation
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))
