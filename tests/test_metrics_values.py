"""Value metrics, norms, quantiles and histograms against slow plain-Python loops and numpy; batch
axes; the global RNG.

Run: pytest -q tests/test_metrics_values.py
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import metrics


def slow_return(t, r, term, trunc, gamma, log_probs=None, alpha=0.0, bootstrap=None):
    """(G_t, weight of the missing tail) of one sequence, forwards: sum of discounted rewards and
    later entropies."""
    total = 0.0
    discount = 1.0
    k = t
    while True:
        total += discount * r[k]
        discount *= gamma
        if term[k]:
            return total, 0.0
        if trunc[k] or k == len(r) - 1:
            return (
                (total, discount) if bootstrap is None else (total + discount * bootstrap[k], 0.0)
            )
        k += 1
        if log_probs is not None:
            total -= discount * alpha * log_probs[k]


def random_episodes(rng, shape):
    ends = rng.uniform(size=shape)
    term = ends < rng.choice([0, 0.05, 0.2])
    trunc = ends > 1 - rng.choice([0, 0.05, 0.2])
    both = rng.uniform(size=shape) < 0.02  # both flags: the termination wins
    rewards, log_probs, values, q = (rng.normal(size=shape) * s for s in (3, 1, 20, 20))
    return rewards, term | both, trunc | both, log_probs, values, q


def test_returns_and_overestimation_equal_a_slow_loop():
    rng = np.random.default_rng(0)
    for case in range(120):
        batch = [(), (3,), (2, 2)][case % 3]
        time = int(rng.integers(1, 40))
        r, term, trunc, log_probs, values, q = random_episodes(rng, (*batch, time))
        gamma = rng.choice([0.5, 0.9, 0.99, 1.0])
        tolerance = rng.choice([0.05, 0.3, 0.8])
        alpha = np.asarray(rng.uniform(0, 1, size=batch)) if case % 2 else float(rng.uniform())
        soft = case % 4 < 2
        bootstrap = case % 5 < 2
        options = {"bootstrap_values": torch.tensor(values)} if bootstrap else {}
        if soft:
            options |= {
                "log_probs": torch.tensor(log_probs),
                "alpha": torch.tensor(alpha) if case % 2 else alpha,
            }
        args = [torch.tensor(v) for v in (r, term, trunc)]
        returns, weight = metrics.discounted_returns(*args, gamma, **options)
        got = metrics.q_overestimation(
            torch.tensor(q), *args, gamma, tail_tolerance=tolerance, **options
        )
        for i in np.ndindex(*batch):
            a = np.broadcast_to(alpha, batch)[i]
            extras = (log_probs[i] if soft else None, a, values[i] if bootstrap else None)
            slow = [slow_return(t, r[i], term[i], trunc[i], gamma, *extras) for t in range(time)]
            np.testing.assert_allclose(returns[i], [g for g, _ in slow], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(weight[i], [w for _, w in slow], rtol=1e-9)
            kept = [w <= tolerance for _, w in slow]
            assert got["kept"][i].tolist() == kept and got["num_kept"][i] == sum(kept)
            errors = [q[i][t] - slow[t][0] for t in range(time) if kept[t]]
            scaled = [
                (q[i][t] - slow[t][0]) / max(abs(slow[t][0]), 10) for t in range(time) if kept[t]
            ]
            for name, value in (
                ("mean", errors and np.mean(errors)),
                ("normalised", scaled and np.mean(scaled)),
            ):
                np.testing.assert_allclose(
                    got[name][i], value if errors else math.nan, rtol=1e-7, atol=1e-9
                )
            np.testing.assert_allclose(
                got["std"][i], np.std(errors) if errors else math.nan, rtol=1e-7, atol=1e-9
            )
        assert got["bootstrapped"].tolist() == np.full(batch, bootstrap).tolist()
        assert not bootstrap or bool(got["kept"].all())


def test_fallback_values_serve_only_entries_that_would_keep_no_state():
    rewards = torch.rand(2, 200)
    never = torch.zeros(2, 200)
    cut = torch.zeros(2, 200)
    end = never.clone()
    # entry 0 keeps the 50 states before its termination, entry 1 none: 0.99^200 > 0.05
    end[0, 49] = 1
    q = torch.rand(2, 200)
    values = torch.rand(2, 200)
    plain = metrics.q_overestimation(q, rewards, end, cut, 0.99)
    full = metrics.q_overestimation(q, rewards, end, cut, 0.99, bootstrap_values=values)
    got = metrics.q_overestimation(q, rewards, end, cut, 0.99, fallback_values=values)
    assert plain["num_kept"].tolist() == [50, 0] and got["num_kept"].tolist() == [50, 200]
    assert got["bootstrapped"].tolist() == [False, True] and not plain["bootstrapped"].any()
    for name in ("mean", "std", "normalised", "errors", "returns", "kept"):
        torch.testing.assert_close(
            got[name], torch.stack([plain[name][0], full[name][1]]), rtol=0, atol=0
        )
    # with bootstrap_values every state is kept, and nothing falls back
    both = metrics.q_overestimation(
        q, rewards, end, cut, 0.99, bootstrap_values=values, fallback_values=values + 1
    )
    for name, value in full.items():
        torch.testing.assert_close(both[name], value, rtol=0, atol=0)


def test_overestimation_of_a_constant_reward_process():
    """Reward 1 forever: Q = 1 / (1 - gamma). Bootstrapping gives error 0 at every state; leaving
    out, 702 of 1,000."""
    gamma = 0.99
    time = 1_000
    q = torch.full((2, time), 100.0)
    flags = torch.zeros(2, time, dtype=torch.bool)
    cut = flags.clone()
    cut[:, -1] = True
    left_out = metrics.q_overestimation(q, torch.ones(2, time), flags, cut, gamma)
    assert left_out["num_kept"].tolist() == [702, 702] and left_out["errors"].dtype == torch.float32
    assert 0 < left_out["mean"].max() < 0.01 * 100  # at most 5 % of Q at a state, 0.7 % on average
    whole = metrics.q_overestimation(q, torch.ones(2, time), flags, cut, gamma, bootstrap_values=q)
    assert whole["kept"].all() and whole["errors"].abs().max() < 1e-3
    short = metrics.q_overestimation(
        q[:, :200], torch.ones(2, 200), flags[:, :200], cut[:, -200:], gamma
    )
    assert short["num_kept"].sum() == 0 and short["mean"].isnan().all()


def test_no_cut_leaks_into_the_episode_before():
    r = torch.ones(2, 6)
    term = torch.tensor([[0, 0, 1, 0, 0, 0]] * 2)
    for trunc in (torch.zeros(2, 6), torch.tensor([[0, 0, 0, 0, 0, 1]] * 2)):
        returns, weight = metrics.discounted_returns(r, term, trunc, 0.5)
        torch.testing.assert_close(returns, torch.tensor([[1.75, 1.5, 1.0, 1.75, 1.5, 1.0]] * 2))
        torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0, 0.0, 0.125, 0.25, 0.5]] * 2))


def test_quantiles_equal_numpy_and_have_no_size_limit():
    rng = np.random.default_rng(1)
    for _ in range(100):
        z = rng.normal(size=(2, *rng.integers(1, 30, size=2))).astype(np.float32)
        expected = np.quantile(z.astype(np.float64).reshape(2, -1), metrics.QUANTILES, axis=1).T
        np.testing.assert_allclose(
            metrics.preactivation_quantiles(torch.tensor(z)), expected, rtol=1e-5, atol=1e-6
        )
    # torch.quantile stops at 2^24
    big = torch.arange(2**24 + 1_024, dtype=torch.float32).reshape(-1, 1_024)
    assert metrics.preactivation_quantiles(big, (0.0, 1.0)).tolist() == [0.0, big.max().item()]
    z = torch.ones(2, 3, 3)
    z[1, 0, 0] = math.nan
    assert metrics.preactivation_quantiles(z).isnan().all(-1).tolist() == [False, True]


def test_histogram_equals_numpy():
    rng = np.random.default_rng(2)
    for case in range(100):
        z = (
            rng.normal(size=(3, 20, 4))
            if case % 3
            else rng.integers(-3, 4, size=(3, 20, 4)).astype(float)
        )
        limits = (-1.0, 1.5) if case % 2 else None
        counts, edges = metrics.histogram(torch.tensor(z), bins=1 + case % 17, limits=limits)
        for k in range(3):
            expected, expected_edges = np.histogram(z[k], bins=1 + case % 17, range=limits)
            np.testing.assert_allclose(edges[k], expected_edges, atol=1e-12)
            np.testing.assert_array_equal(counts[k], np.histogram(z[k], bins=edges[k].numpy())[0])
            assert counts[k].sum() == expected.sum()
    counts, edges = metrics.histogram(torch.full((5, 1), 2.0), bins=2)
    assert edges.tolist() == [1.5, 2.0, 2.5] and counts.tolist() == [0, 5]


def test_norms_equal_a_loop():
    rng = np.random.default_rng(3)
    for _ in range(100):
        seeds = int(rng.integers(1, 4))
        shapes = [(seeds, 3, 2), (seeds, 5), (seeds,)]
        parameters = [nn.Parameter(torch.tensor(rng.normal(size=s))) for s in shapes]
        parameters[0].grad, parameters[1].grad = (
            torch.tensor(rng.normal(size=s)) for s in shapes[:2]
        )
        for k in range(seeds):
            slow = math.sqrt(sum(float((p.detach()[k] ** 2).sum()) for p in parameters))
            assert math.isclose(
                metrics.weight_norm(parameters, batch_dims=1)[k], slow, rel_tol=1e-9
            )
            slow = math.sqrt(sum(float((p.grad[k] ** 2).sum()) for p in parameters[:2]))
            assert math.isclose(
                metrics.gradient_norm(parameters, batch_dims=1)[k], slow, rel_tol=1e-9
            )
        total = metrics.weight_norm(parameters)
        assert math.isclose(
            total, math.sqrt(sum(float((p.detach() ** 2).sum()) for p in parameters)), rel_tol=1e-9
        )


def test_rational_health_equals_a_loop():
    rng = np.random.default_rng(4)
    for case in range(100):
        a, b, c, x = (torch.tensor(rng.normal(size=s)) for s in ((3, 4), (3, 2), (3,), (3, 8, 5)))
        health = metrics.rational_health(
            a, b, c.exp() if case % 2 else None, q_x=1 + x**2, f_x=x, batch_dims=1
        )
        for k in range(3):
            assert health["a_max"][k] == max(abs(v) for v in a[k].tolist())
            assert health["b_max"][k] == max(abs(v) for v in b[k].tolist())
            assert health["q_min"][k] == min(1 + v**2 for v in x[k].flatten())
            assert health["f_max"][k] == max(abs(v) for v in x[k].flatten().tolist())
            assert "c_min" not in health or health["c_min"][k] == c[k].exp()


SAMPLE_METRICS = {
    "dead": lambda z: metrics.dead_neurons_kde(z),
    "curves": lambda z: metrics.kde_curves(z, num_points=9),
    "dormant": lambda z: metrics.dormant_neurons(z, subtract_mean=True),
    "srank": lambda z: (metrics.effective_rank(z), metrics.stable_rank(z), metrics.entropy_rank(z)),
    "norm": lambda z: (metrics.feature_norm(z),),
    "quantiles": lambda z: (metrics.preactivation_quantiles(z),),
    "histogram": lambda z: metrics.histogram(z, bins=8),
    "bias": lambda z: metrics.hidden_bias(z, z[..., 0, :] > 0, z[..., :2, :]),
}


@pytest.mark.parametrize("name", SAMPLE_METRICS)
def test_batched_equals_loop_over_batch(name):
    """Any leading axes; the same values alone as in a batch; same dtype out; input and global RNG
    untouched."""
    metric = SAMPLE_METRICS[name]
    for dtype in (torch.float32, torch.float64):
        z = torch.randn(
            2, 3, 50, 7, dtype=dtype, generator=torch.Generator().manual_seed(0), requires_grad=True
        )
        before = z.detach().clone()
        rng_state = torch.get_rng_state()
        batched = metric(z)
        assert torch.equal(torch.get_rng_state(), rng_state) and torch.equal(z, before)
        assert all(t.dtype == dtype or not t.is_floating_point() for t in batched)
        assert not any(t.requires_grad for t in batched)
        for i in np.ndindex(2, 3):
            for together, alone in zip(batched, metric(z[i])):
                torch.testing.assert_close(together[i], alone)


def test_wrong_input_raises():
    ones = torch.ones(2, 5)
    flags = torch.zeros(2, 5)
    for call in (
        lambda: metrics.discounted_returns(ones, flags[0], flags, 0.9),
        lambda: metrics.discounted_returns(ones, flags, flags, 0.9, log_probs=ones),
        lambda: metrics.discounted_returns(ones, flags, flags, 0.9, alpha=0.1),
        lambda: metrics.q_overestimation(ones[0], ones, flags, flags, 0.9),
        lambda: metrics.preactivation_quantiles(ones, (1.5,)),
        lambda: metrics.weight_norm([]),
        lambda: metrics.weight_norm([torch.ones(3)], batch_dims=2),
        lambda: metrics.gradient_norm([nn.Parameter(torch.ones(3))]),
    ):
        with pytest.raises(ValueError):
            call()


def test_mean_gradients_in_pieces_are_those_of_the_whole():
    for case in range(100):
        generator = torch.Generator().manual_seed(case)
        samples = int(torch.randint(1, 30, (), generator=generator))
        size = 1 + case % 9
        w = [
            torch.randn(2, 3, 1, generator=generator, dtype=torch.float64, requires_grad=True)
            for _ in range(2)
        ]
        batch = {
            k: torch.randn(2, samples, 3, generator=generator, dtype=torch.float64) for k in "xy"
        }

        def loss(part, w=w):
            return ((part["x"] @ w[0]).tanh() * (part["y"] @ w[1])).square().mean((1, 2)).sum()

        whole = torch.autograd.grad(loss(batch), w)
        torch.testing.assert_close(metrics.mean_gradients(loss, batch, w, size, dim=1), list(whole))
