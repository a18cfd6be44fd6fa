"""Which parameter is trained with which learning rate and decay, and what checkpoints call it.

`pytest -q tests/test_optimizers.py` (a few seconds)
"""

import itertools

import pytest
import torch
from torch import nn

import optimizers
from activations import (
    ACTIVATIONS,
    Activation,
    CoefficientGroup,
    Linear,
    RationalConfig,
    dense,
    mlp,
)


class Own(nn.Module):
    """One parameter, (*batch_shape,), for each way to declare a group."""

    def __init__(self, batch_shape):
        super().__init__()
        self.coefficient_groups = {
            "slow": CoefficientGroup(learning_rate=1e-5),
            "steady": CoefficientGroup(weight_decay=0.0),
            "apart": CoefficientGroup(learning_rate=0.25, weight_decay=0.125),
        }
        names = [*self.coefficient_groups, "log_scale", "frozen"]  # a name alone means nothing
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(batch_shape)))
        self.frozen.requires_grad_(False)

    def forward(self, x):
        total = sum(parameter for parameter in self.parameters())
        return x * total.reshape(total.shape + (1,) * (x.dim() - total.dim()))


@pytest.fixture
def network(monkeypatch):
    entry = Activation("x sum(p)", "test", build=lambda batch_shape, _: Own(batch_shape))
    monkeypatch.setitem(ACTIVATIONS, "own", entry)
    first = dense(3, 4, "crational*own", seeds=[1, 2], layer_norm=True)
    return nn.Sequential(first, dense(4, 4, "rational", seeds=[3, 4]), Linear(4, 1, seeds=[5, 6]))


# --rational.learning-rate, --rational.coefficient-weight-decay
RATE = 0.5
DECAY = 0.0625
WEIGHTS = ["0.branches.0.linear", "0.branches.0.norm", "0.branches.1.linear", "0.branches.1.norm"]
WEIGHTS += ["1.branches.0.linear", "2"]
TABLE = {
    f"{place}.{name}": (1e-3, 0.0) for place, name in itertools.product(WEIGHTS, ("weight", "bias"))
} | {
    "0.branches.0.activation.numerator": (RATE, DECAY),
    "0.branches.0.activation.denominator": (RATE, DECAY),
    "0.branches.0.activation.log_scale": (RATE, 0.0),
    "0.branches.1.activation.slow": (1e-5, DECAY),
    "0.branches.1.activation.steady": (RATE, 0.0),
    "0.branches.1.activation.apart": (0.25, 0.125),
    "0.branches.1.activation.log_scale": (RATE, DECAY),
    "1.branches.0.activation.numerator": (RATE, DECAY),
    "1.branches.0.activation.denominator": (RATE, DECAY),
}


@pytest.mark.parametrize("own_rate", [RATE, 0.0, None])
def test_adam_and_torchs_optimisers_follow_the_same_table(network, own_rate):
    rational = RationalConfig(learning_rate=own_rate, coefficient_weight_decay=DECAY)
    common = 1e-3 if own_rate is None else own_rate
    table = {
        name: (common if rate == RATE else rate, decay) for name, (rate, decay) in TABLE.items()
    }
    adam = optimizers.Adam(network, 1e-3, rational)
    rows = zip(adam.names, adam.lr, adam.decay)
    assert {name: (rate, decay) for name, rate, decay in rows} == table

    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {}
    for group in optimizers.parameter_groups(network, 1e-3, rational):
        assert group["initial_lr"] == group["lr"]
        for parameter in group["params"]:
            found[name_of[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert found == table
    assert adam.names == [name for name in name_of.values() if name in table]


def test_a_step_moves_each_parameter_by_its_row(network):
    adam = optimizers.Adam(
        network, 1e-3, RationalConfig(learning_rate=RATE, coefficient_weight_decay=DECAY)
    )
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        adam.step([torch.ones_like(p) for p in adam.parameters_])  # at first Adam takes the sign
    for name, parameter in network.named_parameters():
        rate, decay = TABLE.get(name, (0.0, 0.0))
        moved = before[name] - parameter.detach()
        expected = rate * (1 + decay * before[name])
        torch.testing.assert_close(moved, expected, rtol=1e-2, atol=1e-7)


def test_one_learning_rate_for_each_leading_index(network):
    rates = torch.tensor([1e-3, 1e-2])
    adam = optimizers.Adam(network, rates, RationalConfig(coefficient_weight_decay=DECAY))
    for name, parameter, rate in zip(adam.names, adam.parameters_, adam.lr):
        declared = {"slow": 1e-5, "apart": 0.25}.get(name.rpartition(".")[2])
        expected = rates if declared is None else torch.full((2,), declared)
        wide = torch.as_tensor(rate).expand(parameter.shape)
        for index in range(2):
            assert wide[index].eq(expected[index]).all(), name


def test_a_group_of_a_parameter_that_is_not_there_is_an_error(network):
    network[0].branches[1].activation.coefficient_groups = {"slpoe": CoefficientGroup(0.1)}
    with pytest.raises(ValueError, match=r"^Own.coefficient_groups: no parameter slpoe$"):
        optimizers.parameter_groups(network, 1e-3, RationalConfig())


# What checkpoints of earlier versions hold; a change here makes them unreadable.
STORED = [
    "0.branches.0.linear.weight",
    "0.branches.0.linear.bias",
    "0.branches.0.activation.numerator",
    "0.branches.0.activation.denominator",
    "0.branches.0.activation.log_scale",
    "1.branches.0.linear.weight",
    "1.branches.0.linear.bias",
    "1.branches.0.activation.numerator",
    "1.branches.0.activation.denominator",
    "1.branches.0.activation.log_scale",
]


def test_checkpoints_of_earlier_versions_fit():
    network = mlp(3, (4, 5), "crational", [1, 2])
    assert list(network.state_dict()) == STORED
    adam = optimizers.Adam(network, 1e-3, RationalConfig())
    moments = []
    for name in STORED:
        name = name.replace(".", "_")
        moments += [f"exp_avg_{name}", f"exp_avg_sq_{name}"]
    assert list(adam.state_dict()) == ["count", *moments]
    for name, parameter in network.named_parameters():
        assert [moment.shape for moment in adam.moments(parameter)] == 2 * [parameter.shape], name

    # torch's optimisers number the parameters group by group: weights, a and b, log c
    order = [*STORED[:2], *STORED[5:7], *STORED[2:4], *STORED[7:9], STORED[4], STORED[9]]
    groups = optimizers.parameter_groups(network, 1e-3, RationalConfig())
    named = dict(network.named_parameters())
    listed = [*itertools.chain.from_iterable(group["params"] for group in groups)]
    assert [len(group["params"]) for group in groups] == [4, 4, 2]
    assert all(parameter is named[name] for parameter, name in zip(listed, order, strict=True))
