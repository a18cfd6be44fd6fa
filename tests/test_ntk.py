"""The empirical NTK against a loop over single-sample gradients in float64, and its ranks against
numpy.

Run: pytest -q tests/test_ntk.py
"""

import numpy as np
import pytest
import torch
from torch import nn

import activations
import metrics


class Classifier(nn.Module):
    """Two hidden layers and a head, one network per entry of seeds."""

    def __init__(self, activation, seeds, inputs=3, outputs=4, layer_norm=False):
        super().__init__()
        self.hidden = activations.mlp(inputs, (6, 5), activation, seeds, layer_norm)
        self.head = activations.Linear(self.hidden[-1].width, outputs, seeds=seeds)

    def forward(self, x):
        return self.head(self.hidden(x))


def loop_gram(network, x, scalar, batch_dims, coefficients=True):
    """K of every batch entry from one backward pass per sample. x: (*batch, n, inputs)."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    skipped = set() if coefficients else activations.coefficient_names(network)
    parameters = [p for name, p in named if name not in skipped]
    rows = []
    for i in range(x.shape[batch_dims]):
        y = scalar(network(x.narrow(batch_dims, i, 1)), i)
        grads = torch.autograd.grad(y.sum(), parameters)
        rows.append(torch.cat([g.reshape(*g.shape[:batch_dims], -1) for g in grads], -1))
    rows = torch.stack(rows, -2)
    return rows @ rows.mT


def numpy_ranks(gram):
    values = np.linalg.eigvalsh(gram.numpy())[::-1]
    p = values[values > 0] / values.sum()
    srank = int(np.argmax(np.cumsum(values) >= 0.99 * values.sum())) + 1
    return {
        "srank": srank,
        "entropy_rank": np.exp(-(p * np.log(p)).sum()),
        "trace": np.trace(gram.numpy()),
        "condition": values[0] / values[-1],
    }


@pytest.mark.parametrize(
    "activation", ["relu", "tanh_hr", "crelu", "rational", "crational", "identity*silu+tanh"]
)
@pytest.mark.parametrize("seeds", [1, [1, 2], [[1, 2], [3, 4]]], ids=str)
def test_ntk_equals_a_loop_over_samples(activation, seeds):
    if activation == "identity*silu+tanh" and np.ndim(seeds) == 2:
        seeds = [[7, 8]]
    network = Classifier(activation, seeds, layer_norm=activation == "tanh_hr").double()
    batch = np.shape(seeds)
    num = 7
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*batch, num, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (*batch, num), generator=generator)
    ways = {
        "sum": lambda y, i: y,
        "true_class": lambda y, i: y.gather(-1, targets[..., i : i + 1, None]),
        "loss": lambda y, i: nn.functional.cross_entropy(
            y.flatten(0, -2), targets[..., i].flatten(), reduction="none"
        ),
    }
    for output, scalar in ways.items():
        for coefficients in (True, False):
            expected = loop_gram(network, x, scalar, len(batch), coefficients)
            options = {"output": output, "targets": targets, "coefficients": coefficients}
            gram = metrics.ntk_gram(network, (x,), len(batch), **options)
            torch.testing.assert_close(gram, expected.detach(), rtol=1e-9, atol=1e-12)
            found = metrics.ntk_rank(network, (x,), len(batch), **options)
            for i in np.ndindex(*batch):
                for name, value in numpy_ranks(expected[i].detach()).items():
                    assert found[name][i].item() == pytest.approx(value, rel=1e-6), (
                        output,
                        coefficients,
                        name,
                    )
    if activation in ("rational", "crational"):
        with_own, without = (
            metrics.ntk_gram(network, (x,), len(batch), coefficients=c) for c in (True, False)
        )
        assert (with_own - without).diagonal(0, -2, -1).min() > 0
    next(network.parameters()).requires_grad_(False)  # a frozen parameter does not count
    expected = loop_gram(network, x, ways["sum"], len(batch)).detach()
    torch.testing.assert_close(
        metrics.ntk_gram(network, (x,), len(batch)), expected, rtol=1e-9, atol=1e-12
    )
    assert all(p.grad is None for p in network.parameters())


def test_ntk_of_other_axes_and_functions():
    """Twin critics as in SAC: inputs (seeds, n, ...), parameters (seeds, 2, ...), outputs (seeds,
    2, n)."""
    seeds = [[1, 2], [3, 4]]
    hidden = activations.mlp(3, (5,), "tanh", seeds)
    head = activations.Linear(5, 1, seeds=seeds)

    class Critics(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = hidden
            self.head = head

        def forward(self, obs, actions):
            return self.head(self.hidden(torch.cat([obs, actions], -1).unsqueeze(-3))).squeeze(-1)

    critics = Critics()
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))
    found = metrics.ntk_gram(critics, (x[..., :2], x[..., 2:]), 2, sample_dim=1)
    single = nn.Sequential(hidden, head)  # (seeds, 2, n, 3) -> (seeds, 2, n, 1)
    expected = loop_gram(single, x.unsqueeze(1).expand(-1, 2, -1, -1), lambda y, i: y, 2)
    torch.testing.assert_close(found, expected.detach().double(), rtol=1e-5, atol=1e-6)
    tripled = metrics.ntk_gram(critics, (x[..., :2], x[..., 2:]), 2, 1, output=lambda q: 3 * q)
    torch.testing.assert_close(tripled, 9 * found, rtol=1e-5, atol=1e-6)


def test_ntk_of_convolutions_in_pieces(monkeypatch):
    network = nn.Sequential(
        activations.conv(1, 3, 3, "crational", seeds=[1, 2]),
        nn.Flatten(2),
        activations.Linear(48, 2, seeds=[1, 2]),
    ).double()
    x = torch.randn(2, 5, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = loop_gram(network, x, lambda y, i: y, 1).detach()
    for columns in (7, 2**14):
        monkeypatch.setattr(metrics, "NTK_COLUMNS", columns)
        torch.testing.assert_close(
            metrics.ntk_gram(network, (x,), 1), expected, rtol=1e-9, atol=1e-12
        )


def test_ntk_ranks_of_known_kernels():
    """A linear network's NTK is the inputs' Gram matrix plus one for the bias."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    linear = nn.Linear(3, 1).double()
    torch.testing.assert_close(metrics.ntk_gram(linear, (x,)), x @ x.T + 1)
    assert metrics.ntk_rank(linear, (x,))["condition"] == np.inf  # 4 parameters, 8 samples
    dead = nn.Sequential(activations.dense(3, 4, "relu"), activations.Linear(4, 1))
    with torch.no_grad():
        dead[0].branches[0].linear.bias.fill_(-1e3)
        dead[1].bias.requires_grad_(False)
    assert {k: v.item() for k, v in metrics.ntk_rank(dead, (x.float(),)).items()} == {
        "srank": 0.0,
        "entropy_rank": 0.0,
        "trace": 0.0,
        "condition": np.inf,
    }
    with torch.no_grad():
        dead[0].branches[0].linear.bias.fill_(np.nan)
    assert all(value.isnan() for value in metrics.ntk_rank(dead, (x.float(),)).values())
    pair = activations.Linear(3, 2, seeds=[1, 2])
    with torch.no_grad():
        pair.weight[1] = np.nan  # a diverged seed leaves the other alone
    found = metrics.ntk_rank(pair, (x.float().expand(2, -1, -1),), 1, output=lambda y: y.square())
    assert found["trace"][0].isfinite()
    assert found["trace"][1].isnan()
    assert found["srank"][1].isnan()


@pytest.mark.parametrize(
    "arguments", [{"output": "mean"}, {"output": "loss"}, {"output": "true_class"}], ids=str
)
def test_wrong_input_raises(arguments):
    with pytest.raises(ValueError, match="must be one of sum, true_class, loss"):
        metrics.ntk_rank(nn.Linear(2, 2), (torch.ones(3, 2),), **arguments)
    with pytest.raises(ValueError, match="no such parameters"):
        metrics.ntk_rank(nn.Identity(), (torch.ones(3, 2),))
