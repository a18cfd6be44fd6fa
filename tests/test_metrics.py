"""Representation metrics against independent references: scipy's KDE, numpy's float64 SVD, plain
loops.

Run: pytest -q tests/test_metrics.py
"""

import doctest

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from torch import nn

import activations
import metrics
import reports

KINDS = {
    "constant": lambda g, n: np.full(n, g.choice([-1.0, 0.0, 1.0, 1e3])),
    "saturated": lambda g, n: np.tanh(g.normal(g.choice([-4, 4]), 1, n)),
    "collapsed": lambda g, n: np.tanh(g.normal(5, 1, n)),
    "one_outlier": lambda g, n: np.r_[np.ones(n - 1), -1.0],
    "huge_outlier": lambda g, n: np.r_[1e-3 * g.normal(size=n - 1), 1e4],
    "relu_sparse": lambda g, n: np.maximum(g.normal(-2, 1, n), 0),
    "bimodal": lambda g, n: np.sign(g.normal(size=n)) + 0.01 * g.normal(size=n),
    "tiny_std": lambda g, n: 0.5 + 1e-4 * g.normal(size=n),
    "near_omega": lambda g, n: g.uniform(0.5, 2) * 0.02 * g.normal(size=n),
    "wide": lambda g, n: 100 * g.normal(size=n),
    "uniform": lambda g, n: g.uniform(-1, 1, n),
    "cauchy": lambda g, n: g.standard_cauchy(n),
    "lognormal": lambda g, n: np.exp(3 * g.normal(size=n)),
    "lattice": lambda g, n: g.integers(0, 30, n).astype(float),
}


def scipy_peaks(x):
    """Peak density per column of (samples, neurons), by scipy at the samples."""
    return np.array([gaussian_kde(c, bw_method=len(c) ** -0.2)(c).max() for c in x.T])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kde_equals_scipy(kind, dtype):
    rng = np.random.default_rng(len(kind))
    for n in (33, 100, 256, 1_000):
        z = torch.tensor(np.stack([KINDS[kind](rng, n) for _ in range(4)], axis=1), dtype=dtype)
        dead, peak = metrics.dead_neurons_kde(z, generator=torch.Generator().manual_seed(n))
        noise = torch.randn(4, n, generator=torch.Generator().manual_seed(n)).T.double().numpy()
        reference = scipy_peaks(z.double().numpy() + np.sqrt(1e-5) * noise)
        assert dead.dtype == torch.bool and peak.dtype == dtype
        np.testing.assert_allclose(peak.numpy(), reference, rtol=1e-4)
        np.testing.assert_array_equal(dead.numpy(), reference >= 20)


def test_kde_known_verdicts():
    rng = np.random.default_rng(0)
    columns = [
        np.ones(512),
        np.zeros(512),
        0.005 * rng.normal(size=512),
        rng.normal(size=512),
        np.r_[np.ones(511), -1],
    ]
    dead, _ = metrics.dead_neurons_kde(torch.tensor(np.stack(columns, axis=1)))
    assert dead.tolist() == [True, True, True, False, False]  # one outlier saves a neuron


@pytest.mark.parametrize(
    ("samples", "outliers", "peak"),
    [(512, 1, 15.5), (1_000, 1, 24.5), (2_048, 1, 39), (2_048, 4, 20.4), (2_048, 5, 18.3)],
)
def test_how_many_outliers_revive_a_neuron(samples, outliers, peak):
    """A neuron stuck at 1, with some samples at -1: the numbers of docs/metrics.md."""
    z = np.ones((samples, 1))
    z[:outliers] = -1
    jitter = np.random.default_rng(0).normal(0, np.sqrt(1e-5), z.shape)
    assert scipy_peaks(z + jitter) == pytest.approx([peak], rel=0.02)
    dead, found = metrics.dead_neurons_kde(torch.tensor(z))
    assert found.item() == pytest.approx(peak, rel=0.02) and dead.item() is (peak >= 20)


def test_kde_never_above_and_at_most_4e5_below_the_maximum():
    """The bound of the docstring, on clusters of every distance and weight, where the grid has most
    to get wrong."""
    rng = np.random.default_rng(1)
    columns = []
    for _ in range(120):
        centres = rng.normal(size=6) * 10 ** rng.uniform(-2, 2)
        weights = rng.dirichlet(np.full(6, 0.5))
        columns.append(
            rng.choice(centres, size=300, p=weights)
            + 10 ** rng.uniform(-4, 0) * rng.normal(size=300)
        )
    x = np.stack(columns, axis=1)
    ratio = metrics.dead_neurons_kde(torch.tensor(x), noise_variance=0.0)[1].numpy() / scipy_peaks(
        x
    )
    assert ratio.max() <= 1 + 1e-9 and ratio.min() >= 1 - 4e-5


def test_kde_non_finite_and_degenerate():
    z = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    z[3, 0] = float("nan")
    z[5, 1] = float("inf")
    z[:, 2] = 2.0
    dead, peak = metrics.dead_neurons_kde(z, noise_variance=0.0)
    assert dead.tolist() == [False, False, True, False]
    assert peak[:2].isnan().all()
    assert peak[2] == float("inf")
    assert peak[3].isfinite()


def test_kde_curves_equal_scipy():
    x = np.random.default_rng(2).normal(size=(200, 3))
    grid, density = metrics.kde_curves(torch.tensor(x), num_points=50, noise_variance=0.0)
    for k in range(3):
        np.testing.assert_allclose(
            density[k], gaussian_kde(x[:, k], bw_method=200**-0.2)(grid[k].numpy()), rtol=1e-8
        )
    grid, _ = metrics.kde_curves(torch.tensor(x), num_points=5, limits=(-1.0, 1.0))
    np.testing.assert_allclose(grid, np.tile(np.linspace(-1, 1, 5), (3, 1)), atol=1e-12)


def random_features(rng, k):
    n, d = rng.integers(2, 80, size=2)
    x = rng.normal(size=(n, d)) * 10 ** rng.uniform(-3, 3)
    if k % 4 == 1:  # rank-deficient
        x = rng.normal(size=(n, 3)) @ rng.normal(size=(3, d))
    elif k % 4 == 2:  # decaying spectrum, dead columns
        x = x * np.exp(-rng.uniform(0, 1) * np.arange(d)) * (rng.uniform(size=d) > 0.3)
    elif k % 4 == 3:  # repeated rows, saturated units
        x = np.tanh(5 * x[rng.integers(0, n, size=n)])
    return x.astype(np.float32)


def test_ranks_equal_numpy_svd():
    rng = np.random.default_rng(3)
    for k in range(200):
        x = random_features(rng, k)
        sigma = np.linalg.svd(x.astype(np.float64), compute_uv=False)
        crossed = np.cumsum(sigma) >= (1 - 0.01) * np.sum(sigma)
        srank = len(sigma) - np.sum(crossed) + 1  # as HR B.2 writes it
        z = torch.tensor(x)
        assert metrics.effective_rank(z).item() == srank, k
        assert metrics.effective_rank(z).dtype == torch.float32
        np.testing.assert_allclose(
            metrics.singular_values(z), sigma, atol=5e-7 * max(sigma[0], 1e-30)
        )
        if sigma[0] > 0:
            p = sigma[sigma > 0] / sigma.sum()
            np.testing.assert_allclose(
                metrics.stable_rank(z), (sigma**2).sum() / sigma[0] ** 2, rtol=1e-5
            )
            np.testing.assert_allclose(
                metrics.entropy_rank(z), np.exp(-(p * np.log(p)).sum()), rtol=1e-3
            )
        np.testing.assert_allclose(
            metrics.feature_norm(z), np.linalg.norm(x, axis=1).mean(), rtol=1e-4
        )


def test_ranks_of_zero_and_non_finite_features():
    x = torch.stack([torch.zeros(8, 4), torch.full((8, 4), float("nan")), torch.ones(8, 4)])
    assert metrics.effective_rank(x)[[0, 2]].tolist() == [1.0, 1.0]
    assert metrics.effective_rank(x)[1].isnan()
    assert metrics.stable_rank(x)[0] == 0
    assert metrics.entropy_rank(x)[0] == 0
    assert metrics.entropy_rank(x)[1].isnan()


def test_dormant_neurons_equal_a_loop():
    rng = np.random.default_rng(4)
    for k in range(100):
        h = rng.normal(size=(20, 7)) * (rng.uniform(size=7) > 0.4) + (k % 2) * rng.integers(
            -1, 2, size=7
        )
        for centred in (False, True):
            x = h - h.mean(axis=0) if centred else h
            activity = [sum(abs(v) for v in column) / 20 for column in x.T]
            scores = [a / (sum(activity) / 7 + 1e-9) for a in activity]
            dormant, found = metrics.dormant_neurons(torch.tensor(h), subtract_mean=centred)
            np.testing.assert_allclose(found, scores, rtol=1e-9)
            assert dormant.tolist() == [s <= 0.025 for s in scores]
    maps = torch.tensor(rng.normal(size=(2, 5, 3, 4, 6)))
    flat = metrics.channel_samples(maps, batch_dims=1)
    assert flat.shape == (2, 5 * 4 * 6, 3)
    # one score per channel
    torch.testing.assert_close(flat.abs().mean(-2), maps.abs().mean((1, 3, 4)))


def test_hidden_bias_equals_a_loop_and_theorem_41():
    rng = np.random.default_rng(5)
    for _ in range(100):
        h = rng.normal(size=(6, 5))
        dead = rng.uniform(size=5) < 0.5
        weight = rng.normal(size=(3, 5))
        h[:, dead] = np.sign(h[0, dead])  # collapsed into -1 or 1
        got = metrics.hidden_bias(*(torch.tensor(v) for v in (h, dead, weight)))
        for part, member in zip(got, (dead, ~dead)):
            loop = [
                [sum(h[s, i] * w[i] for i in range(5) if member[i]) for w in weight]
                for s in range(6)
            ]
            np.testing.assert_allclose(part, loop, atol=1e-12)
        # Theorem 4.1: the same for every observation
        constant = h[:, dead].mean(axis=0) @ weight[:, dead].T
        np.testing.assert_allclose(got[0], np.tile(constant, (6, 1)), atol=1e-12)
        np.testing.assert_allclose(got[0] + got[1], h @ weight.T, atol=1e-12)


class Branch(nn.Module):
    def __init__(self, size, activation):
        super().__init__()
        self.linear = nn.Linear(4, size)
        self.norm = nn.LayerNorm(size)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.norm(self.linear(x)))


class Product(nn.Module):
    def __init__(self, activations):
        super().__init__()
        self.branches = nn.ModuleList([Branch(4, a) for a in activations])

    def forward(self, x):
        out = 1.0
        for branch in self.branches:
            out = out * branch(x)
        return out


def toy_network():
    shared = nn.Tanh()  # one module in two layers: must be recorded where it is called
    return nn.Sequential(
        Product([shared, nn.Sigmoid()]), nn.Dropout(0.5), Product([shared]), shared, nn.Linear(4, 2)
    )


def test_record_layers():
    network = toy_network()
    x = torch.randn(32, 4)
    network.train()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    rng_state = torch.get_rng_state()
    expected = network(x)
    after = torch.get_rng_state()
    torch.set_rng_state(rng_state)
    with reports.record_layers(network) as records:
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
        for record in records.values():
            reports.layer_metrics(record)
    assert torch.equal(torch.get_rng_state(), after)  # only the network's own dropout has drawn
    assert network.training
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert set(records) == {"0", "2"} and len(records["2"].pre_activations) == 1
    for branch, inputs, outputs in zip(
        network[0].branches, records["0"].pre_activations, records["0"].branch_outputs
    ):
        torch.testing.assert_close(inputs, branch.norm(branch.linear(x)))
        torch.testing.assert_close(outputs, branch(x))
    torch.testing.assert_close(records["0"].output, network[0](x))
    assert not records["0"].output.requires_grad
    assert not records["0"].pre_activations[0].requires_grad
    with pytest.raises(RuntimeError, match="shape"), reports.record_layers(network):
        network(torch.randn(3, 5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    with pytest.raises(ValueError, match="branches"), reports.record_layers(nn.Linear(2, 2)):
        pass


def test_layer_metrics_batched_equals_alone():
    g = torch.Generator().manual_seed(0)
    pre = [torch.randn(3, 300, 6, generator=g) for _ in range(2)]
    outputs = [(z * torch.tensor([0.0, 1, 1, 1, 9, 9])).tanh() for z in pre]
    batched = reports.layer_metrics(
        reports.LayerRecord(pre, outputs, outputs[0] * outputs[1]), 1, max_samples=200
    )
    for k in range(3):
        alone = reports.LayerRecord(
            [z[k] for z in pre], [h[k] for h in outputs], outputs[0][k] * outputs[1][k]
        )
        for name, value in reports.layer_metrics(alone, max_samples=200).items():
            torch.testing.assert_close(batched[name][k], value)
    assert set(batched) >= {
        "dead_share",
        "branch1_dead_share",
        "dormant_share_centred",
        "srank",
        "preact_q01",
    }
    torch.testing.assert_close(batched["dead_share"], torch.full((3,), 1 / 6))
    maps = torch.randn(2, 40, 3, 5, 5, generator=g)
    assert reports.layer_metrics(reports.LayerRecord([maps], [maps], maps), 1)["srank"].shape == (
        2,
    )


def test_doctests_and_wrong_shapes():
    for module, least in ((metrics, 18), (reports, 2), (activations, 3)):
        failures, attempted = doctest.testmod(module)
        assert failures == 0 and attempted >= least, module.__name__
    with pytest.raises(ValueError, match="samples >= 2"):
        metrics.dead_neurons_kde(torch.zeros(1, 4))
    for call in (
        lambda: metrics.dormant_neurons(torch.zeros(4)),
        lambda: metrics.effective_rank(torch.zeros(4, 4, dtype=torch.long)),
        lambda: metrics.effective_rank(torch.zeros(4, 4), delta=1.0),
        lambda: metrics.channel_samples(torch.zeros(4, 4, 4)),
        lambda: metrics.hidden_bias(torch.zeros(4, 3), torch.zeros(3), torch.zeros(2, 3)),
        lambda: metrics.hidden_bias(
            torch.zeros(4, 3), torch.zeros(3, dtype=torch.bool), torch.zeros(3, 2)
        ),
        lambda: metrics.dead_neurons_kde(torch.zeros(4, 3), noise_variance=-1.0),
    ):
        with pytest.raises(ValueError):
            call()
