"""reports.network_report: names, numbers against direct computation, batch axes, side effects,
sharing.

Run: pytest -q tests/test_network_report.py
"""

import numpy as np
import pytest
import torch
from torch import nn

import activations
import metrics
import reports


def network_of(activation, seeds, layer_norm=False, shared=None, width=24):
    first = activations.dense(
        5, width, activation, seeds=seeds, layer_norm=layer_norm, shared=shared
    )
    options = {"seeds": np.asarray(seeds) + 100, "layer_norm": layer_norm, "shared": shared}
    second = activations.dense(first.width, width, activation, **options)
    return nn.Sequential(first, second, activations.Linear(second.width, 1, seeds=seeds))


def gradients(network, x):
    names, parameters = zip(*network.named_parameters())
    return dict(
        zip(names, torch.autograd.grad(network(x).square().sum(), parameters, allow_unused=True))
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_that_is_not_finite_has_no_fraction_of_dead_neurons(bad):
    """0 would read as the best of all values. The other seed is not affected."""
    network = network_of("tanh*silu", [1, 2])
    x = torch.randn(2, 100, 5, generator=torch.Generator().manual_seed(0))
    before = reports.network_report(network, (x,), {}, 1).scalars
    with torch.no_grad():
        for parameter in network.parameters():
            parameter[0] = bad
    after = reports.network_report(network, (x,), {}, 1).scalars
    fractions = [name for name in after if name.endswith(("_share", "_std", "_centred"))]
    assert len(fractions) == 2 * 6  # of each layer; two branches
    for name in fractions:
        assert after[name][0].isnan() and after[name][1] == before[name][1], name


@pytest.mark.parametrize("activation", ["relu", "crelu", "crational", "rational*tanh"])
@pytest.mark.parametrize("seeds", [7, [1, 2, 3], [[1, 2], [3, 4], [5, 6]]])
def test_a_batch_entry_has_the_same_metrics_alone(activation, seeds):
    batch = np.shape(seeds)
    x = torch.randn(*np.shape(seeds), 100, 5, generator=torch.Generator().manual_seed(0))
    network = network_of(activation, seeds, layer_norm=True)
    report = reports.network_report(network, (x,), gradients(network, x), len(batch))
    assert {value.shape for value in report.scalars.values()} == {batch}
    for index in np.ndindex(batch):
        single = network_of(activation, int(np.asarray(seeds)[index]), layer_norm=True)
        alone = reports.network_report(single, (x[index],), gradients(single, x[index]), 0)
        assert list(alone.scalars) == list(report.scalars)
        assert list(alone.curves) == list(report.curves)
        for name, value in alone.scalars.items():
            torch.testing.assert_close(
                report.scalars[name][index], value, rtol=1e-3, atol=1e-4, msg=name
            )
        for name, (_, y, extra) in alone.curves.items():
            torch.testing.assert_close(
                report.curves[name][1][index], y, rtol=1e-2, atol=1e-3, msg=name
            )
            assert all(
                torch.equal(report.curves[name][2][key][index], value)
                for key, value in extra.items()
            )
        counts, edges = alone.histograms["fc2/preactivations"]
        pooled = []
        for branch in single[1].branches:
            inputs = branch.norm(branch.linear(single[0](x[index])))
            pooled.append(inputs.detach().numpy())
        expected, true_edges = np.histogram(np.concatenate(pooled, -1), bins=64)
        assert np.abs(counts.numpy() - expected).sum() <= 4  # values at an edge, rounded
        torch.testing.assert_close(edges, torch.from_numpy(true_edges), rtol=1e-4, atol=1e-4)


def test_numbers_equal_a_direct_computation():
    network = network_of("rational*crational", [1, 2])
    x = torch.randn(2, 200, 5)
    for branch in network[0].branches:
        branch.linear.weight.data[1, :, 3] = 0.0  # the second seed's neuron 3 is dead
    grads = gradients(network, x)
    layer = network[1]
    report = reports.network_report(network, (x,), grads, 1)
    for seed in range(2):

        def norm(*tensors, seed=seed):
            return sum(t[seed].detach().double().square().sum() for t in tensors).sqrt().float()

        named = dict(network.named_parameters())
        own = activations.coefficient_names(network)
        weights = [name for name in named if name not in own]
        linear = []
        for branch in layer.branches:
            linear += branch.linear.parameters()
        expected = {
            "weight_norm": norm(*(named[name] for name in weights)),
            "gradient_norm": norm(*(grads[name] for name in weights)),
            "coefficient_gradient_norm": norm(*(grads[name] for name in own)),
            "fc2/weight_norm": norm(*linear),
            "fc2/gradient_norm": norm(*(grads[name] for name in weights if name.startswith("1."))),
            "fc2/coefficient_gradient_norm": norm(
                *(grads[name] for name in own if name.startswith("1."))
            ),
            "fc2/branch0_numerator_norm": norm(layer.branches[0].activation.numerator),
            "fc2/branch1_denominator_norm": norm(layer.branches[1].activation.denominator),
            "fc2/branch1_c_min": torch.tensor(5.0),
            "fc2/branch0_a_max": layer.branches[0].activation.numerator[seed].detach().abs().max(),
        }
        z = layer.branches[1].linear(network[0](x))
        expected["fc2/branch1_q_min"] = (
            layer.branches[1].activation.numerator_and_denominator(z)[1][seed].min()
        )
        expected["fc2/branch1_f_max"] = layer.branches[1].activation(z)[seed].abs().max()
        for name, value in expected.items():
            torch.testing.assert_close(report.scalars[name][seed], value.detach(), msg=name)
    assert "fc2/branch0_c_min" not in report.scalars  # an unconstrained rational has no c
    grid, curve, extra = report.curves["fc1/activation1"]
    assert extra == {} and torch.equal(grid, torch.linspace(-10, 10, 201))
    torch.testing.assert_close(
        curve, network[0].branches[1].activation(grid.expand(2, 201)).detach()
    )
    x_kde, density, extra = report.curves["fc1/kde03"]
    h = network[0](x)[..., 3].detach()
    assert extra["dead"].tolist() == [False, True]
    assert (
        extra["dead"].tolist() == metrics.dead_neurons_kde(h.unsqueeze(-1))[0].squeeze(-1).tolist()
    )
    torch.testing.assert_close(torch.trapezoid(density, x_kde), torch.ones(2), rtol=0.02, atol=0)
    _, peak = metrics.dead_neurons_kde(network[0](x).detach())
    torch.testing.assert_close(extra["peak"], peak[..., 3])


def test_crelu_maps_and_frozen_parameters():
    network = nn.Sequential(activations.conv(4, 3, 4, "crelu", stride=2, seeds=[1, 2]))
    report = reports.network_report(network, (torch.randn(2, 8, 4, 10, 10),), {}, 1)
    grid, positive, _ = report.curves["conv1/activation0"]
    torch.testing.assert_close(positive, grid.relu().expand(2, 201))
    torch.testing.assert_close(report.curves["conv1/activation1"][1], (-grid).relu().expand(2, 201))
    assert "gradient_norm" not in report.scalars and "conv1/weight_norm" in report.scalars
    assert sum("kde" in name for name in report.curves) == 6
    assert report.histograms["conv1/preactivations"][0].sum(-1).tolist() == [8 * 16 * 3] * 2


def test_shared_coefficients_count_in_each_layer_and_once_in_the_network():
    x = torch.randn(1, 64, 5)
    network = network_of("crational", [1], shared={})
    grads = gradients(network, x)
    report = reports.network_report(network, (x,), grads, 1)
    whole = report.scalars["coefficient_gradient_norm"]
    assert whole > 0 and report.scalars["fc1/coefficient_gradient_norm"] == whole
    assert report.scalars["fc2/coefficient_gradient_norm"] == whole


def test_no_side_effects_and_non_finite_values():
    network = network_of("crational", [1, 2])
    x = torch.randn(2, 64, 5)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    rng = torch.get_rng_state()
    reports.network_report(network, (x,), gradients(network, x), 1)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    with torch.no_grad():
        network[0].branches[0].linear.weight[1] = torch.nan
    report = reports.network_report(network, (x,), {}, 1)
    assert report.scalars["fc2/srank"].isnan().tolist() == [False, True]
    assert report.histograms["fc2/preactivations"][0].sum(-1).tolist() == [64 * 24, 0]


class Wave(nn.Module):
    """x + sum_k amplitude_k sin(rate x)^k, k = 1, 2; amplitudes and rate trained."""

    def __init__(self, batch_shape):
        super().__init__()
        self.rate = nn.Parameter(torch.full(batch_shape, -2.0))
        self.amplitudes = nn.Parameter(torch.tensor([3.0, 4.0]).expand(*batch_shape, 2).clone())

    def forward(self, x):
        ones = (1,) * (x.dim() - self.rate.dim())
        first, second = (part.reshape(part.shape + ones) for part in self.amplitudes.unbind(-1))
        wave = torch.sin(self.rate.reshape(self.rate.shape + ones) * x)
        return x + first * wave + second * wave * wave


@pytest.mark.parametrize("seeds", [7, [1, 2], [[1, 2], [3, 4]]])
def test_an_activation_that_is_not_rational_reports_its_own_parameters(seeds, monkeypatch):
    entry = activations.Activation("", "", build=lambda batch_shape, _: Wave(batch_shape))
    monkeypatch.setitem(activations.ACTIVATIONS, "wave", entry)
    batch = np.shape(seeds)
    network = nn.Sequential(
        activations.dense(5, 6, "wave*tanh", seeds=seeds),
        activations.dense(6, 6, "wave", seeds=seeds),
        activations.Linear(6, 1, seeds=seeds),
    )
    x = torch.randn(*batch, 64, 5, generator=torch.Generator().manual_seed(0))
    grads = gradients(network, x)
    report = reports.network_report(network, (x,), grads, len(batch))
    for place in ("fc1/branch0_", "fc2/"):
        torch.testing.assert_close(report.scalars[f"{place}rate_norm"], torch.full(batch, 2.0))
        torch.testing.assert_close(
            report.scalars[f"{place}amplitudes_norm"], torch.full(batch, 5.0)
        )
        assert f"{place}a_max" not in report.scalars
    own = {name: grad for name, grad in grads.items() if ".activation." in name}
    assert len(own) == 4
    for layer, start in (("fc1/", "0."), ("fc2/", "1."), ("", "")):
        entries = [g.reshape(*batch, -1) for name, g in own.items() if name.startswith(start)]
        found = report.scalars[f"{layer}coefficient_gradient_norm"]
        torch.testing.assert_close(found, torch.cat(entries, -1).norm(dim=-1))
    grid, curve, _ = report.curves["fc2/activation"]
    wave = torch.sin(-2 * grid)
    expected = grid + 3 * wave + 4 * wave * wave
    torch.testing.assert_close(curve, expected.expand(*batch, 201))
