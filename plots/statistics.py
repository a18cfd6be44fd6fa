"""statistics."""

import numpy as np
from scipy import stats

import metrics


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis and the ends of its 95 % interval by Student's t, of what is finite: NaN where nothing
    is; NaN ends for one value."""
    finite = np.isfinite(values)
    n = finite.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, values, 0.0).sum(0) / n
        variance = np.where(finite, (values - mean) ** 2, 0.0).sum(0) / (n - 1)
        half = np.where(
            n > 1, stats.t.ppf(0.975, np.maximum(n - 1, 1)) * np.sqrt(variance / n), np.nan
        )
    return mean, mean - half, mean + half


STATISTICS = {
    "iqm": metrics.interquartile_mean,
    "mean": metrics.mean_of_means,
    "median": metrics.median_of_means,
    "std": metrics.mean_of_means,
}

BANDS = {
    "iqm": "IQM over runs, 95 % stratified bootstrap",
    "mean": "mean over environments, 95 % stratified bootstrap",
    "median": "median over games of means over seeds, 95 % stratified bootstrap",
    "std": "mean over environments, band: std over seeds of it",
}
