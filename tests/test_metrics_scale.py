"""Metrics of finite numbers whose squares overflow or vanish: those of the same numbers at an
ordinary scale.

Run: pytest -q tests/test_metrics_scale.py
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import metrics


@pytest.fixture(autouse=True)
def with_denormals():
    """A training in the same process may have had them flushed, and float32 at 2^-110 has some."""
    torch.set_flush_denormal(False)


# powers of two, so that the scaled input holds the same digits
SCALES = [(torch.float64, 2.0**k) for k in (-900, -560, -450, 450, 531, 990)]
SCALES += [(torch.float32, 2.0**k) for k in (-110, -80, -60, 60, 66, 118)]


def features(dtype) -> torch.Tensor:
    """(2, 40, 6): another rank in each entry, one column of which hardly varies."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 6)) * [1, 1, 1, 1e-3, 1e-3, 0]
    second = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 6)) + 3
    return torch.tensor(np.stack([first, second]), dtype=dtype)


@pytest.mark.parametrize("dtype, scale", SCALES)
def test_ranks_do_not_see_the_scale(dtype, scale):
    x = features(dtype)
    large = x * scale
    assert large.isfinite().all()
    for rank in (metrics.effective_rank, metrics.stable_rank, metrics.entropy_rank):
        assert torch.equal(rank(large), rank(x)), rank.__name__
    sigma = np.linalg.svd(x.double().numpy(), compute_uv=False)
    crossed = np.cumsum(sigma, -1) >= 0.99 * sigma.sum(-1, keepdims=True)
    assert metrics.effective_rank(large).tolist() == (6 - crossed.sum(-1) + 1).tolist()


@pytest.mark.parametrize("dtype, scale", SCALES)
def test_norms_deviations_and_densities_follow_the_scale(dtype, scale):
    x = features(dtype)
    large = x * scale
    rtol = 4 * torch.finfo(dtype).eps
    pairs = [
        (metrics.singular_values(large), metrics.singular_values(x) * scale),
        (metrics.feature_norm(large), metrics.feature_norm(x) * scale),
        (
            metrics.weight_norm([large, large[..., 0]], 1),
            metrics.weight_norm([x, x[..., 0]], 1) * scale,
        ),
        (metrics.weight_norm([large[0, 0], large * 0]), metrics.weight_norm([x[0, 0]]) * scale),
        (metrics.dead_neurons_std(large)[1], metrics.dead_neurons_std(x)[1] * scale),
        (metrics.preactivation_quantiles(large), metrics.preactivation_quantiles(x) * scale),
        (metrics.histogram(large, 5)[1], metrics.histogram(x, 5)[1] * scale),
    ]
    spread = x[..., :5]  # without jitter: a density is 1 / unit
    old, new = (
        metrics.dead_neurons_kde(z, noise_variance=0.0)[1] for z in (spread, spread * scale)
    )
    pairs.append((new, old / scale))
    old, new = (metrics.kde_curves(z, 7, noise_variance=0.0) for z in (spread, spread * scale))
    pairs += [(new[0], old[0] * scale), (new[1], old[1] / scale)]
    for found, expected in pairs:
        assert expected.isfinite().all() and found.dtype == expected.dtype
        np.testing.assert_allclose(found.double() / scale, expected.double() / scale, rtol=rtol)


@pytest.mark.parametrize("dtype, scale", [pair for pair in SCALES if pair[1] > 1])
def test_large_activities_have_dormancy_scores(dtype, scale):
    for centred in (False, True):
        x = features(dtype)
        activity = (x - x.mean(-2, keepdim=True) if centred else x).double().abs().mean(-2)
        dormant, scores = metrics.dormant_neurons(x * scale, subtract_mean=centred)
        expected = activity / activity.mean(-1, keepdim=True)  # 1e-9 is negligible here
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-12)
        assert torch.equal(dormant, expected <= 0.025)


@pytest.mark.parametrize("dtype, scale", SCALES)
def test_overestimation_follows_the_scale(dtype, scale):
    x = features(dtype)
    q = x[..., 0]
    rewards = x[..., 1]
    end = torch.zeros(2, 40)
    end[:, 9::10] = 1
    old = metrics.q_overestimation(q, rewards, end, end * 0, 0.9)
    new = metrics.q_overestimation(q * scale, rewards * scale, end, end * 0, 0.9)
    for key in ("mean", "std"):
        assert old[key].abs().min() > 0
        np.testing.assert_allclose(new[key].double() / scale, old[key], rtol=1e-6)


def test_the_ntk_does_not_see_the_scale():
    x = features(torch.float64)[1, :5, :4]
    network = nn.Linear(4, 2, bias=False).double()
    usual = metrics.ntk_rank(network, (x,))
    for scale in (2.0**-560, 2.0**-450, 2.0**450, 2.0**531):
        scaled = metrics.ntk_rank(network, (x * scale,))
        for key in ("srank", "entropy_rank", "condition"):
            assert torch.equal(scaled[key], usual[key]), key
        with np.errstate(over="ignore", under="ignore"):
            expected = usual["trace"].numpy() * np.float64(scale) * np.float64(scale)
        np.testing.assert_allclose(scaled["trace"], expected, rtol=1e-12)


def test_quantiles_and_histograms_of_numbers_whose_difference_overflows():
    for dtype in (torch.float32, torch.float64):
        largest = torch.finfo(dtype).max
        z = torch.tensor([[-largest], [largest]], dtype=dtype)
        quartiles = metrics.preactivation_quantiles(z, (0.0, 0.25, 0.5, 1.0))
        np.testing.assert_allclose(quartiles / largest, [-1, -0.5, 0, 1], rtol=1e-6)
        counts, edges = metrics.histogram(z, bins=2)
        assert edges.tolist() == [-largest, 0, largest] and counts.tolist() == [1, 1]
        for value in (1e6, 1e20, largest):  # of a single value: distinct bins around it
            counts, edges = metrics.histogram(torch.full((5, 1), value, dtype=dtype), bins=64)
            assert edges.isfinite().all() and counts.sum() == 5
            assert edges[0] < value and (value < edges[-1] or value == largest)
            if value != largest:
                assert (edges.diff() > 0).all()


def test_non_finite_values_stay_non_finite():
    x = features(torch.float32)
    x[0, 0, 0] = math.nan
    assert metrics.feature_norm(x).isnan().tolist() == [True, False]
    assert metrics.weight_norm([x], 1).isnan().tolist() == [True, False]
    x[0, 0, 0] = math.inf
    assert metrics.feature_norm(x)[0] == math.inf and metrics.weight_norm([x], 1)[0] == math.inf
    zero = torch.zeros(4, 3)
    assert metrics.feature_norm(zero) == 0 and metrics.weight_norm([zero]) == 0
    assert metrics.dormant_neurons(zero)[1].eq(0).all()
    assert metrics.dead_neurons_std(zero)[1].eq(0).all()
