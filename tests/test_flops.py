"""FLOPs of a training step against counts by hand and torch's own counter of matrix products.

`pytest -q tests/test_flops.py` (about 6 s)
"""

from pathlib import Path

import pytest
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

import activations
import continual_supervised
from plots import continual, league
from runlog import flops

IN = 5
UNITS = 4
OUT = 3
BATCH = 6


def network(activation: str, layer_norm: bool = False) -> nn.Module:
    settings = continual.DEFAULTS | {"widths": [UNITS, UNITS], "layer_norm": layer_norm}
    return league.mlp(IN, OUT, activation, settings)


def products(branches: int = 1, width: int = 1) -> tuple[int, int]:
    """By hand, of a sample: FLOPs of the matrix products, forward and backward. Backward is the
    gradient of the weights, and of the inputs of all layers but the first."""
    first = branches * IN * UNITS
    second = branches * (width * UNITS) * UNITS
    head = (width * UNITS) * OUT
    forward = 2 * (first + second + head)
    return forward, forward + 2 * (second + head)


def test_relu_by_hand():
    counted = flops.count(network("relu"), torch.randn(BATCH, IN))
    forward, backward = products()
    biases = 2 * UNITS + OUT  # added forward, their gradients summed backward
    neurons = 2 * UNITS  # forward a maximum; backward a comparison and a choice
    assert counted.forward == forward + biases + neurons
    assert counted.backward == backward + biases + 2 * neurons
    assert counted.total == counted.forward + counted.backward


def test_a_product_of_branches_by_hand():
    counted = flops.count(network("tanh_hr"), torch.randn(BATCH, IN))
    forward, backward = products(branches=2)
    biases = 4 * UNITS + OUT
    # forward in each layer two tanh and a product; backward the product's two factors, and twice
    # 1 - y^2 (two operations) times the gradient. The two branches of the second layer have one
    # input, whose gradients are added.
    assert counted.forward == forward + biases + 2 * 3 * UNITS
    assert counted.backward == backward + biases + 2 * (2 + 2 * 3) * UNITS + UNITS


def test_a_rational_by_hand():
    """P by Horner's rule 6, Q 6 (|x| twice), P / Q 1: 13 for each neuron, and |b_1|, |b_2| for each
    layer and batch."""
    counted = flops.count(network("rational"), torch.randn(BATCH, IN))
    forward, _ = products()
    biases = 2 * UNITS + OUT
    assert counted.forward == forward + biases + 13 * 2 * UNITS + 2 * 2 / BATCH


@pytest.mark.parametrize("activation", [*activations.ACTIVATIONS, "tanh_hr", "identity*silu"])
def test_matrix_products_match_torchs_counter(activation):
    """Torch's counter knows matrix products only; the rest is work per neuron."""
    inputs = torch.randn(BATCH, IN)
    built = network(activation)
    counter = FlopCounterMode(display=False)
    with counter:
        built(inputs).sum().backward()
    width = built[0][-1].width // UNITS
    branches = 2 if activation in ("tanh_hr", "identity*silu") else 1
    forward, backward = products(branches, width)
    assert counter.get_total_flops() == BATCH * (forward + backward)
    counted = flops.count(built, inputs)
    assert counted.forward > forward and counted.backward > backward


def test_layers_that_are_not_counted_are_refused():
    with pytest.raises(ValueError, match="convolution: is not counted"):
        flops.count(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 5, 5))


@pytest.mark.parametrize("activation", ["relu", "tanh_hr", "crelu", "snake", "crational"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_league_counts_the_network_of_continual_supervised(activation, layer_norm):
    args = continual_supervised.Args(activation=activation, layer_norm=layer_norm)
    trained = continual_supervised.Classifier(args, (1, 8, 8), 10, seeds=1)
    parameters = sum(p.numel() for p in trained.parameters())
    label = f"{activation}, layer_norm True" if layer_norm else activation
    row = {"study": "digits random_labels", "cell": label}
    cost = league.cost_of(league.cell_of([row], Path()))
    assert cost["parameters"] == parameters
    inputs = torch.randn(args.batch_size, 64)
    assert cost["FLOPs"] == round(flops.count(trained, inputs).total)
