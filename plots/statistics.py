"""Scores and statistics over runs (numpy): normalised returns, aggregates and their intervals."""

import csv
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats


@functools.cache
def atari_scores() -> dict[str, tuple[float, float]]:
    """game -> (random, human) raw score of 57 games, from data/atari_scores.csv: the table of Wang
    et al. 2016 (1511.06581), as in purejaxql, HR's code base. In VideoPinball a human scores 1,411
    points above random, so its normalised scores dominate a mean over few games."""
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
    """IQM (Agarwal et al. 2021, 2108.13264): mean of the middle half of all runs together, without
    floor(n / 4) runs at either end. strata: for each environment (..., runs); returns (...)."""
    return stats.trim_mean(np.concatenate(strata, -1), 0.25, axis=-1)


def mean_of_means(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over environments of the mean over runs. strata: for each environment (..., runs);
    returns (...)."""
    return np.mean([runs.mean(-1) for runs in strata], axis=0)


def median_of_means(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Median over environments of the mean over runs (HR Figs. 1, 9). As mean_of_means."""
    return np.median([runs.mean(-1) for runs in strata], axis=0)


def median_of_runs(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Median of all runs together. As interquartile_mean."""
    return np.median(np.concatenate(strata, -1), axis=-1)


def stratified_bootstrap(
    strata: Sequence[np.ndarray],
    statistic: Callable[[Sequence[np.ndarray]], np.ndarray],
    repetitions: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the percentile interval of a statistic over runs, which are resampled within each
    environment (Agarwal et al. 2021, section 4.1). A curve is resampled as a whole.

    strata: for each environment (..., runs), with equal leading axes (steps), finite. statistic:
    one of those above. Returns low and high (...); NaN where no environment has a second run, since
    nothing varies then. Uses its own random generator.
    """
    shape = strata[0].shape[:-1]
    if all(runs.shape[-1] < 2 for runs in strata):
        return np.full(shape, np.nan), np.full(shape, np.nan)
    generator = np.random.default_rng(seed)
    values = []
    size = max(1, 2**22 // sum(runs.size for runs in strata))  # repetitions per block: 32 MB
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
    """Mean over the first axis and the ends of its 95 % interval by Student's t, over the finite
    values.

    For paired differences this is the paired t interval. NaN where nothing is finite; NaN ends for
    a single value.
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
    t on the logarithms). NaN for fewer than two, or if one is not finite."""
    if len(logarithms) < 2 or not np.isfinite(logarithms).all():
        return np.nan, np.nan, np.nan
    mean = logarithms.mean()
    deviation = logarithms.std(ddof=1) / np.sqrt(len(logarithms))
    half = stats.t.ppf(0.975, len(logarithms) - 1) * deviation
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))


# ---- one against another -------------------------------------------------------------------------


def probability_of_improvement(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], paired: bool = False
) -> float:
    """P(X > Y), with a tie counting half: the chance that a run of the first has the larger value
    (Agarwal et al. 2021, section 4.3; their X is better if it is larger).

    first, second: for each environment (runs,) values, without NaN; returns the mean over
    environments. Unpaired: over all pairs of runs of an environment (Mann and Whitney's U over
    n m). paired: over the pairs with the same index, such as a seed; ValueError unless both have
    equally many runs.

    >>> probability_of_improvement([np.array([1.0, 3.0])], [np.array([2.0, 2.0])])
    0.5
    """
    means = []
    for ours, theirs in zip(first, second, strict=True):
        means.append(wins(ours, theirs, paired).mean())
    return float(np.mean(means))


def wins(ours: np.ndarray, theirs: np.ndarray, paired: bool) -> np.ndarray:
    """1 where the first is larger, 0.5 where both are equal, else 0: (runs, runs of the other), or
    (runs,) if paired."""
    if paired and ours.shape != theirs.shape:
        raise ValueError(f"paired: {len(ours)} and {len(theirs)} runs; each needs its partner")
    if not paired:
        ours = ours[:, None]
    larger = np.where(ours > theirs, 1.0, 0.0)
    return np.where(ours == theirs, 0.5, larger)


def improvement_interval(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    paired: bool = False,
    repetitions: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """probability_of_improvement and the ends of its percentile bootstrap interval. Runs are
    resampled within each environment, separately for the two variants or, if paired, in pairs.

    If one wins all pairs, the interval has zero width, however few they are: report an exact test
    beside it. NaN ends where no environment has a second run. Uses its own random generator.
    """
    value = probability_of_improvement(first, second, paired)
    if all(len(ours) < 2 and len(theirs) < 2 for ours, theirs in zip(first, second)):
        return value, np.nan, np.nan
    generator = np.random.default_rng(seed)
    means = []
    for ours, theirs in zip(first, second, strict=True):
        table = wins(ours, theirs, paired)
        # how often each run is drawn, over their number: (repetitions, runs)
        drawn = [draw_weights(generator, repetitions, number) for number in table.shape]
        if paired:
            means.append(drawn[0] @ table)
        else:
            means.append(((drawn[0] @ table) * drawn[1]).sum(-1))
    ends = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(np.mean(means, axis=0), ends)
    return value, float(low), float(high)


def draw_weights(generator: np.random.Generator, repetitions: int, number: int) -> np.ndarray:
    """(repetitions, number): the weight of each run in a bootstrap sample of `number` runs."""
    counts = generator.multinomial(number, np.full(number, 1 / number), size=repetitions)
    return counts / number


def sign_test(differences: np.ndarray) -> tuple[int, int, float]:
    """How many paired differences (n,) are above and below 0, and the exact two-sided p of the sign
    test over those that are not 0; p is 1 if all are 0."""
    above = int((differences > 0).sum())
    below = int((differences < 0).sum())
    if above + below == 0:
        return 0, 0, 1.0
    return above, below, float(stats.binomtest(above, above + below).pvalue)


def sign_flip_test(differences: np.ndarray) -> float:
    """Exact two-sided p of the permutation test of a mean of paired differences (n,), finite: the
    fraction of the 2^n sign assignments whose mean is at least as far from 0. Means that differ by
    no more than the rounding of float32, in which values are logged, count as equally far. Raises
    ValueError: more than 16 differences, which have too many assignments."""
    if len(differences) > 16:
        raise ValueError(f"{len(differences)} differences: the exact test takes at most 16")
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(differences))))
    sums = np.abs(signs @ differences)
    observed = abs(differences.sum())
    rounding = 1e-6 * np.abs(differences).sum()
    return float((sums >= observed - rounding).mean())
