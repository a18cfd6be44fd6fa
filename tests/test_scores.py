"""Normalised scores, aggregates and their bootstrap against slow loops, closed forms and rliable.

`pytest -q tests/test_scores.py` (about 5 s).
"""

import doctest
import math

import numpy as np
import pytest
from scipy import stats

from plots import statistics


def strata(seed: int = 0, sizes=(10, 10, 10, 10), steps=()) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.gamma(2.0, 1.0 + k, size=(*steps, n)) for k, n in enumerate(sizes)]


def slow_iqm(values: np.ndarray) -> float:
    """Sort, cut floor(n / 4) off at either end, mean."""
    kept = sorted(values.tolist())[len(values) // 4 : len(values) - len(values) // 4]
    return sum(kept) / len(kept)


def test_atari_table_has_57_games_and_known_rows():
    scores = statistics.atari_scores()
    assert len(scores) == 57 and all(human > random for random, human in scores.values())
    assert scores["Breakout"] == (1.7, 30.5) and scores["Pong"] == (-20.7, 14.6)
    assert scores["VideoPinball"] == (16256.9, 17667.9)


def test_human_normalised_is_0_for_random_and_1_for_human_play():
    for game, (random, human) in statistics.atari_scores().items():
        assert statistics.human_normalised(random, game) == 0
        assert statistics.human_normalised(human, game) == 1
    values = statistics.human_normalised(np.array([1.7, 16.1, 59.3]), "Breakout")
    np.testing.assert_allclose(values, [0, 0.5, 2])
    with pytest.raises(ValueError, match="Breakot"):
        statistics.human_normalised(1.0, "Breakot")


def test_baseline_normalised():
    np.testing.assert_allclose(
        statistics.baseline_normalised(np.array([2.0, 5.0, 11.0]), 2.0, 8.0), [0, 0.5, 1.5]
    )
    assert np.isnan(statistics.baseline_normalised(np.array([2.0]), 3.0, 3.0)).all()


@pytest.mark.parametrize("sizes", [(10, 10, 10), (5, 3), (1,), (2, 2, 2, 1), (7,)])
def test_statistics_equal_slow_loops(sizes):
    data = strata(sizes=sizes, steps=(3,))
    for step in range(3):
        rows = [runs[step] for runs in data]
        assert statistics.interquartile_mean(data)[step] == pytest.approx(
            slow_iqm(np.concatenate(rows))
        )
        means = sorted(sum(row) / len(row) for row in map(np.ndarray.tolist, rows))
        assert statistics.mean_of_means(data)[step] == pytest.approx(sum(means) / len(means))
        middle = (means[(len(means) - 1) // 2] + means[len(means) // 2]) / 2
        assert statistics.median_of_means(data)[step] == pytest.approx(middle)


def test_bootstrap_of_a_mean_has_its_closed_form():
    """Of a mean in one environment the bootstrap's variance is var(ddof 0) / n:
    the interval is mean +- 1.96 roots."""
    (runs,) = strata(sizes=(400,))
    low, high = statistics.stratified_bootstrap(
        [runs], statistics.mean_of_means, repetitions=20_000
    )
    half = 1.959964 * runs.std() / math.sqrt(400)
    assert low == pytest.approx(runs.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(runs.mean() + half, abs=0.05 * half)


def test_bootstrap_draws_within_environments():
    """Between environments nothing varies: environments of equal runs give an interval of width 0,
    where drawing from all runs together would not."""
    data = [np.full(5, 0.0), np.full(5, 10.0)]
    for statistic in (
        statistics.mean_of_means,
        statistics.median_of_means,
        statistics.interquartile_mean,
    ):
        np.testing.assert_allclose(statistics.stratified_bootstrap(data, statistic, 200), 5.0)


def test_bootstrap_of_a_curve_draws_whole_runs():
    """If step k is step 0 plus k, so are its ends; the same each time.
    1,000 steps of 12 runs are two parts."""
    (base,) = strata(sizes=(12,))
    data = [base + np.arange(1_000.0)[:, None]]
    low, high = statistics.stratified_bootstrap(data, statistics.interquartile_mean, 500)
    np.testing.assert_allclose(low, low[0] + np.arange(1_000))
    np.testing.assert_allclose(high, high[0] + np.arange(1_000))
    assert low[0] < statistics.interquartile_mean(data)[0] < high[0]
    again = statistics.stratified_bootstrap(data, statistics.interquartile_mean, 500)
    np.testing.assert_array_equal(again, (low, high))


def test_bootstrap_of_single_runs_is_unknown():
    low, high = statistics.stratified_bootstrap(
        [np.ones((4, 1)), np.ones((4, 1))], statistics.mean_of_means
    )
    assert low.shape == high.shape == (4,) and np.isnan([low, high]).all()


def test_iqm_and_its_interval_agree_with_rliable():
    library = pytest.importorskip("rliable.library")
    reference = pytest.importorskip("rliable.metrics")
    data = strata(sizes=(10,) * 6)
    matrix = {"ours": np.stack(data, -1)}  # runs x environments
    iqm = lambda scores: np.array([reference.aggregate_iqm(scores)])  # noqa: E731
    # from numpy's global generator
    scores, intervals = library.get_interval_estimates(matrix, iqm, reps=4_000)
    assert statistics.interquartile_mean(data) == pytest.approx(scores["ours"][0], rel=1e-12)
    low, high = statistics.stratified_bootstrap(
        data, statistics.interquartile_mean, repetitions=4_000
    )
    width = float(intervals["ours"][1, 0] - intervals["ours"][0, 0])
    assert abs(low - intervals["ours"][0, 0]) < 0.06 * width  # two bootstraps of 4,000 draws each
    assert abs(high - intervals["ours"][1, 0]) < 0.06 * width


def test_doctests():
    failures, attempted = doctest.testmod(statistics)
    assert failures == 0 and attempted > 0


def test_ratio_interval_is_students_t_on_the_logarithms():
    logs = np.log([1.0, 2.0, 4.0])
    # t at 0.975 with 2 degrees of freedom
    mean = np.log(2)
    half = 4.302653 * np.log(2) / math.sqrt(3)
    expected = np.exp([mean, mean - half, mean + half])
    np.testing.assert_allclose(statistics.ratio_interval(logs), expected, rtol=1e-6)
    for unknown in (logs[:1], np.array([0.0, np.inf])):
        assert np.isnan(statistics.ratio_interval(unknown)).all()


def slow_improvement(first, second, paired: bool) -> float:
    """Loops over environments and pairs of runs, a tie counting half."""
    means = []
    for ours, theirs in zip(first, second):
        points = []
        for i, x in enumerate(ours):
            for j, y in enumerate(theirs):
                if not paired or i == j:
                    points.append(1.0 if x > y else 0.5 if x == y else 0.0)
        means.append(sum(points) / len(points))
    return sum(means) / len(means)


@pytest.mark.parametrize("paired", [False, True])
def test_probability_of_improvement_equals_a_slow_loop(paired):
    rng = np.random.default_rng(3)
    sizes = (10, 7, 1)
    first = [rng.integers(6, size=n).astype(float) for n in sizes]  # with ties
    second = [rng.integers(5, size=n).astype(float) for n in sizes]
    found = statistics.probability_of_improvement(first, second, paired)
    assert found == pytest.approx(slow_improvement(first, second, paired), rel=1e-12)
    back = statistics.probability_of_improvement(second, first, paired)
    assert found + back == pytest.approx(1.0)


def test_an_infinite_value_is_larger_than_all_and_ties_with_another():
    first = [np.array([np.inf, np.inf, 1.0])]
    second = [np.array([np.inf, 2.0, 2.0])]
    found = statistics.probability_of_improvement(first, second, paired=True)
    assert found == pytest.approx((0.5 + 1 + 0) / 3)


def test_paired_improvement_needs_partners():
    with pytest.raises(ValueError, match="3 and 2 runs"):
        statistics.probability_of_improvement([np.ones(3)], [np.ones(2)], paired=True)
    unpaired = statistics.probability_of_improvement([np.ones(3)], [np.zeros(2)])
    assert unpaired == 1.0


def test_unpaired_improvement_agrees_with_rliable():
    reference = pytest.importorskip("rliable.metrics")
    first = strata(seed=1, sizes=(10,) * 4)
    second = strata(seed=2, sizes=(9,) * 4)
    expected = reference.probability_of_improvement(np.stack(first, -1), np.stack(second, -1))
    assert statistics.probability_of_improvement(first, second) == pytest.approx(float(expected))


def test_interval_of_a_paired_improvement_has_its_closed_form():
    """Of one environment without ties it is a binomial share: its quantiles, one step of 1/n."""
    first = np.arange(20.0)
    second = np.where(np.arange(20) < 14, -1.0, 100.0)  # 14 of 20 larger
    value, low, high = statistics.improvement_interval([first], [second], True, 20_000)
    binomial = stats.binom(20, 0.7)
    assert value == 0.7
    assert abs(low - binomial.ppf(0.025) / 20) < 0.051
    assert abs(high - binomial.ppf(0.975) / 20) < 0.051


def test_interval_of_an_unpaired_improvement_equals_a_slow_bootstrap():
    first = strata(seed=4, sizes=(8, 5))
    second = strata(seed=5, sizes=(6, 5))
    value, low, high = statistics.improvement_interval(first, second, repetitions=8_000)
    rng = np.random.default_rng(9)
    slow = []
    for _ in range(4_000):
        ours = [rng.choice(runs, len(runs)) for runs in first]
        theirs = [rng.choice(runs, len(runs)) for runs in second]
        slow.append(statistics.probability_of_improvement(ours, theirs))
    assert low < value < high
    np.testing.assert_allclose((low, high), np.quantile(slow, (0.025, 0.975)), atol=0.02)


def test_intervals_have_no_width_where_one_wins_all_and_are_unknown_for_single_runs():
    found = statistics.improvement_interval([np.ones(5)], [np.zeros(5)], paired=True)
    np.testing.assert_allclose(found, 1.0)
    value, low, high = statistics.improvement_interval([np.ones(1)], [np.zeros(1)])
    assert value == 1.0 and np.isnan([low, high]).all()


def test_sign_test_has_its_closed_form():
    above, below, p = statistics.sign_test(np.array([3.0] * 9 + [-1.0, 0.0]))
    assert (above, below) == (9, 1) and p == pytest.approx(2 * (10 + 1) / 2**10)
    assert statistics.sign_test(np.ones(10))[2] == pytest.approx(2 / 2**10)
    assert statistics.sign_test(np.zeros(4)) == (0, 0, 1.0)


def test_sign_flip_test_equals_a_slow_loop():
    differences = np.array([0.3, -0.1, 0.7, 0.2, 0.2, -0.4])
    own = abs(differences.mean())
    count = 0
    for number in range(2**6):
        signs = [1 if number >> k & 1 else -1 for k in range(6)]
        mean = sum(s * d for s, d in zip(signs, differences.tolist())) / 6
        count += abs(mean) >= own - 1e-12
    assert statistics.sign_flip_test(differences) == pytest.approx(count / 2**6)
    assert statistics.sign_flip_test(np.ones(10)) == pytest.approx(2 / 2**10)
    with pytest.raises(ValueError, match="at most 16"):
        statistics.sign_flip_test(np.ones(17))


def test_sign_flip_test_finds_the_ties_of_rates_in_float32():
    ours = np.array([5, 3, 3, 1, 1, 0, 0, 0, 1, 4])  # successes of 5 episodes
    theirs = np.array([3, 5, 3, 3, 5, 4, 3, 3, 3, 5])
    exact = statistics.sign_flip_test((ours - theirs).astype(float))  # integers tie exactly
    assert exact == 24 / 2**10
    rates = np.float32(ours / 5).astype(float) - np.float32(theirs / 5).astype(float)
    assert statistics.sign_flip_test(rates) == exact
    assert statistics.sign_flip_test(rates * 1e-9) == exact


def test_median_of_runs_is_that_of_all_environments_together():
    found = statistics.median_of_runs([np.array([1.0, 9.0]), np.array([2.0, 3.0, 4.0])])
    assert found == 3.0
