"""Layers: initial weights, seeds as a batch axis, norms, products and sums. `pytest -q
tests/test_layers.py`"""

import copy
import functools
import itertools

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn as nn

import activations
import optimizers
from activations import (
    ACTIVATIONS,
    Activation,
    Linear,
    Rational,
    RationalConfig,
    coefficient_names,
    conv,
    dense,
)

IMAGES = (2, 4, 84, 84)
# in, out, kernel, stride (Mnih et al. 2015)
NATURE = [(4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_conv(activation, **kwargs):
    return conv(2, 3, 3, activation, stride=2, **kwargs)


def count(*modules) -> int:
    total = 0
    for module in modules:
        total += sum(p.numel() for p in module.parameters())
    return total


def nature(encoder, last, norm="none", actions=6):
    """Hidden layers and head of a Q-network on 84x84 frames; `init` saves the seconds of orthogonal
    ones."""
    options = {"init": lambda weight, generator: weight.zero_()}
    layers = []
    width = 4
    for _, out, kernel, stride in NATURE:
        layers.append(conv(width, out, kernel, encoder, stride=stride, layer_norm=norm, **options))
        width = layers[-1].width
    layers += [nn.Flatten(), dense(width * 7 * 7, 512, last, layer_norm=norm != "none", **options)]
    return nn.Sequential(*layers, Linear(layers[-1].width, actions, **options))


def test_parameter_counts_of_atari_networks():
    relu = count(nature("relu", "relu"))
    assert (
        relu
        == sum(i * o * k * k + o for i, o, k, _ in NATURE) + 3136 * 512 + 512 + 512 * 6 + 6
        == 1_687_206
    )
    assert count(nature("relu", "tanh_hr")) == relu + 3136 * 512 + 512 == 3_293_350
    # PQN with HR: 2 * 2 * (32 + 64 + 64 + 512) norms
    assert count(nature("tanh_hr", "tanh_hr", "channel")) == 3_374_022
    assert count(nature("crelu", "crelu")) == 3_365_542
    assert nature("relu", "tanh_hr")(torch.zeros(IMAGES)).shape == (2, 6)


@pytest.mark.parametrize("n, m", [(3, 2), (5, 4)])
def test_parameter_counts_of_layers(n, m):
    rational = RationalConfig(n, m, constraint_power=6)
    for name, own in [("relu", 0), ("rational", n + 1 + m), ("crational", n + m + 1)]:
        assert count(dense(7, 5, name, rational=rational)) == 7 * 5 + 5 + own
        assert count(dense(7, 5, f"{name}*{name}+{name}", rational=rational)) == 3 * (
            7 * 5 + 5 + own
        )
        assert count(small_conv(name, rational=rational)) == 2 * 3 * 9 + 3 + own
        assert count(dense(7, 5, name, rational=rational, seeds=[[1, 2], [3, 4]])) == 4 * (
            7 * 5 + 5 + own
        )
    assert count(dense(7, 5, "crelu")) == 7 * 5 + 5 and dense(7, 5, "crelu").width == 10


@pytest.mark.parametrize(
    "make", [lambda name, **kw: dense(6, 4, name, **kw), small_conv], ids=["dense", "conv"]
)
def test_initial_weights(make):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    reference = make("relu_hr", seeds=3)
    for name in [*ACTIVATIONS, "tanh_hr", "tanh_2hr", "tanh_add", "identity*silu"]:
        layer = make(name, seeds=3)
        # branch by branch, whatever the activation
        for mine, theirs in zip(layer.branches, reference.branches):
            assert torch.equal(mine.linear.weight, theirs.linear.weight)
            assert not mine.linear.bias.any()
    first, second = (branch.linear.weight for branch in reference.branches)
    assert not torch.equal(first, second)
    assert not torch.equal(first, make("relu", seeds=4).branches[0].linear.weight)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    rows = first.flatten(1) if first.dim() == 4 else first.T
    # orthogonal, gain sqrt(2)
    torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows)), atol=1e-5, rtol=0)


EXPRESSIONS = ["relu", "crelu", "tanh_hr", "crational_hr", "rational*silu+tanh"]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_stack_of_seeds_equals_its_seeds(name, norm):
    conv_options = (
        {"layer_norm": "channel" if norm else "none"},
        {"layer_norm": "chw" if norm else "none"},
    )
    for data, make in [
        (normal(3, 5, 6), lambda seeds: dense(6, 4, name, seeds=seeds, layer_norm=norm)),
        (normal(3, 5, 2, 9, 9), lambda seeds: small_conv(name, seeds=seeds, **conv_options[0])),
        (
            normal(3, 5, 2, 9, 9),
            lambda seeds: small_conv(name, seeds=seeds, out_size=(4, 4), **conv_options[1]),
        ),
    ]:
        stack = make([1, 2, 3])
        singles = [make(seed) for seed in (1, 2, 3)]
        expected = torch.stack([layer(data[i]) for i, layer in enumerate(singles)])
        torch.testing.assert_close(stack(data), expected, atol=1e-5, rtol=1e-5)
        # two leading axes
        torch.testing.assert_close(make([[1, 2, 3]])(data[None])[0], expected, atol=1e-5, rtol=1e-5)
        state = torch.func.stack_module_state(singles)
        one = functools.partial(torch.func.functional_call, copy.deepcopy(singles[0]))
        mapped = torch.vmap(lambda *args, one=one: one(args[:2], args[2]))(*state, data)
        torch.testing.assert_close(mapped, expected, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(value, state[0][key]) for key, value in stack.named_parameters())


def test_compiled_equals_eager():
    options = {"seeds": [1, 2], "layer_norm": True}
    layers = [
        dense(6, 5, "rational", **options),
        dense(5, 5, "crational", **options),
        dense(5, 3, "tanh_hr", **options),
    ]
    network = nn.Sequential(*layers)
    x = normal(2, 7, 6)

    def loss_and_grads(forward):
        y = forward(x)
        return y, torch.autograd.grad(y.square().sum(), list(network.parameters()))

    torch.testing.assert_close(
        loss_and_grads(torch.compile(network)), loss_and_grads(network), atol=1e-5, rtol=1e-4
    )


def test_norms_against_torch_and_a_per_pixel_reference():
    x = normal(5, 6) * 3 + 1
    images = normal(5, 3, 4, 4) * 3 + 1
    ours = activations.LayerNorm((6,))
    theirs = nn.LayerNorm(6)
    chw = activations.LayerNorm((3, 4, 4))
    reference = nn.LayerNorm((3, 4, 4))
    pixel = activations.LayerNorm((3,), per_pixel=True)
    with torch.no_grad():
        for a, b in [(ours, theirs), (chw, reference)]:
            a.weight.copy_(b.weight.copy_(normal(*b.weight.shape)))
            a.bias.copy_(b.bias.copy_(normal(*b.bias.shape, seed=1)))
        pixel.weight.copy_(normal(3))
        pixel.bias.copy_(normal(3, seed=1))
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(chw(images), reference(images))
    v = images.double().numpy()
    expected = (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5)
    scale, shift = (p.detach().numpy()[None, :, None, None] for p in (pixel.weight, pixel.bias))
    np.testing.assert_allclose(pixel(images).detach().numpy(), expected * scale + shift, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_products_and_sums_by_hand(norm):
    x = normal(5, 6)
    layer = dense(6, 4, "tanh*crational+relu*identity*tanh+silu", layer_norm=norm, seeds=2)
    with torch.no_grad():
        for k, branch in enumerate(layer.branches):
            branch.linear.bias.copy_(normal(4, seed=k))
    outputs = []
    for branch in layer.branches:  # linear, norm, activation, and the products only then
        h = x @ branch.linear.weight + branch.linear.bias
        h = nn.functional.layer_norm(h, (4,)) if norm else h
        outputs.append(branch.activation(h))
    t, c, r, i, t2, s = outputs
    torch.testing.assert_close(layer(x), t * c + r * i * t2 + s, atol=1e-5, rtol=1e-5)


def test_convolution_against_torch():
    layer = conv(2, 3, 3, "relu", stride=2, padding=1, seeds=1)
    reference = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    with torch.no_grad():
        reference.weight.copy_(layer.branches[0].linear.weight)
        layer.branches[0].linear.bias.copy_(reference.bias)
    torch.testing.assert_close(layer(normal(2, 2, 9, 9)), reference(normal(2, 2, 9, 9)).relu())
    with pytest.raises(ValueError, match="out_size"):
        conv(2, 3, 3, "relu", layer_norm="chw")
    with pytest.raises(ValueError, match="none channel chw"):
        conv(2, 3, 3, "relu", layer_norm="batch")


def test_state_dict_round_trip(tmp_path):
    for make in (
        lambda s: dense(6, 4, "crational_hr+rational", seeds=s, layer_norm=True),
        lambda s: small_conv("rational"),
    ):
        source = make([1, 2])
        target = make([3, 4])
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(0.1)
        torch.save(source.state_dict(), tmp_path / "state.pt")
        target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters()))
    x = normal(2, 5, 6).double()
    assert (
        dense(6, 4, "crational_hr", seeds=[1, 2], layer_norm=True).double()(x).dtype
        == torch.float64
    )


def test_one_coefficient_set_for_all_layers():
    options = {"seeds": [1, 2], "shared": {}}
    layers = [small_conv("crelu", **options), dense(6, 4, "crational", **options)]
    layers += [
        dense(4, 4, "identity*crational*crational", **options),
        dense(4, 3, "crational+rational", **options),
    ]
    network = nn.Sequential(*layers[1:])
    one, two = (layers[2].branches[k].activation for k in (1, 2))
    assert (
        one.numerator
        is layers[1].branches[0].activation.numerator
        is layers[3].branches[0].activation.numerator
    )
    assert two.numerator is not one.numerator
    assert one.log_scale is layers[3].branches[0].activation.log_scale
    branches = [*itertools.chain.from_iterable(layer.branches for layer in layers)]
    assert len({id(branch.activation) for branch in branches}) == 7  # hooks stay per layer
    names = coefficient_names(network)
    assert len(names) == 3 + 3 + 2 and names < {name for name, _ in network.named_parameters()}
    dense_crelu = dense(6, 4, "crelu", **options)  # the convolution's crelu joins another axis
    assert dense_crelu(normal(2, 5, 6)).shape == (2, 5, 8)
    assert layers[0](normal(2, 5, 2, 9, 9)).shape == (2, 5, 6, 4, 4)
    x = normal(2, 5, 6)
    network(x).sum().backward()
    tied = {name: p.detach().clone() for name, p in network.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(network, tied, (x,)), network(x))
    clone = copy.deepcopy(network)
    assert clone[0].branches[0].activation.numerator is clone[1].branches[1].activation.numerator


def test_coefficient_names():
    network = nn.Sequential(
        dense(3, 4, "crational*relu", layer_norm=True), Rational(RationalConfig(), False)
    )
    expected = {
        f"0.branches.0.activation.{name}" for name in ("numerator", "denominator", "log_scale")
    }
    assert coefficient_names(network) == expected | {"1.numerator", "1.denominator"}
    assert coefficient_names(dense(3, 4, "tanh")) == set()
    assert coefficient_names(dense(3, 4, "rational").branches[0]) == {
        "activation.numerator",
        "activation.denominator",
    }


def test_one_entry_adds_an_activation(monkeypatch):
    monkeypatch.setitem(
        ACTIVATIONS, "bent", Activation("(sqrt(x^2 + 1) - 1) / 2 + x", "test", lambda x: bent(x))
    )
    monkeypatch.setitem(
        ACTIVATIONS, "both", Activation("[x, |x|]", "test", lambda x: (x, x.abs()), width=2)
    )

    def bent(x):
        return ((x * x + 1).sqrt() - 1) / 2 + x

    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    single = activations.dense(3, 4, "bent")
    product = activations.dense(3, 4, "bent_hr")
    first, second = (x @ branch.linear.weight for branch in product.branches)
    torch.testing.assert_close(single(x), bent(first))
    torch.testing.assert_close(product(x), bent(first) * bent(second))
    assert activations.dense(3, 4, "both").width == 8
    assert activations.dense(3, 4, "both")(x).shape == (6, 8)
    module = Rational(RationalConfig(fit_target="bent"), False)
    grid = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(module(grid), bent(grid), atol=0.1, rtol=0)
    assert "bent" in activations.fit_targets() and "both" not in activations.fit_targets()


class Swish(nn.Module):
    """x sigmoid(beta x), beta trained (Ramachandran et al. 2017): the example of
    docs/activations.md."""

    def __init__(self, batch_shape):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(batch_shape))

    def forward(self, x):
        beta = self.beta.reshape(self.beta.shape + (1,) * (x.dim() - self.beta.dim()))
        return x * torch.sigmoid(beta * x)


def test_one_entry_adds_trainable_parameters(monkeypatch):
    entry = Activation(
        "x sigmoid(beta x)", "Ramachandran et al. 2017", build=lambda shape, _: Swish(shape)
    )
    monkeypatch.setitem(ACTIVATIONS, "swish", entry)
    layer = dense(6, 4, "swish_hr", seeds=[1, 2])
    x = normal(2, 5, 6)
    torch.testing.assert_close(layer(x), dense(6, 4, "silu_hr", seeds=[1, 2])(x))
    assert coefficient_names(layer) == {"branches.0.activation.beta", "branches.1.activation.beta"}
    assert small_conv("swish", seeds=[1, 2])(normal(2, 5, 2, 9, 9)).shape == (2, 5, 3, 4, 4)
    first, second = (dense(6, 4, "swish", shared=shared) for shared in [{}] * 2)
    assert first.branches[0].activation.beta is second.branches[0].activation.beta
    assert "swish" not in activations.fit_targets()


def test_parameters_of_an_added_activation_are_coefficients_for_every_optimiser(monkeypatch):
    """Own step size, decay on them alone, gradients, seeds apart: as the coefficients of a
    rational."""
    entry = Activation(
        "x sigmoid(beta x)", "Ramachandran et al. 2017", build=lambda shape, _: Swish(shape)
    )
    monkeypatch.setitem(ACTIVATIONS, "swish", entry)
    rational = RationalConfig(learning_rate=0.5, coefficient_weight_decay=0.1)
    layer = dense(6, 4, "swish", seeds=[1, 2], layer_norm=True)
    x = normal(2, 5, 6)
    beta = layer.branches[0].activation.beta
    groups = optimizers.parameter_groups(layer, 1e-3, rational)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.0), (0.5, 0.1)]
    assert len(groups[1]["params"]) == 1 and groups[1]["params"][0] is beta
    adam = optimizers.Adam(layer, 1e-3, rational)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    grads = torch.autograd.grad(layer(x).square().sum(), adam.parameters_)
    with torch.no_grad():
        adam.step(grads)
    for name, grad in zip(adam.names, grads):
        rate, decay = (0.5, 0.1) if name.endswith("beta") else (1e-3, 0.0)
        direction = grad / (grad.abs() + 1e-8)  # Adam's first step
        expected = before[name] - rate * (direction + decay * before[name])
        torch.testing.assert_close(
            dict(layer.named_parameters())[name], expected, rtol=1e-4, atol=1e-6
        )


def test_uniform_biases_match_torch_and_leave_the_weights_alone():
    """uniform: in +-1/sqrt(fan_in), another draw for each branch; the weights are those of zero
    biases, bit for bit."""
    for make, fan_in in [
        (functools.partial(activations.dense, 400, 5_000, "tanh_hr"), 400),
        (functools.partial(activations.conv, 4, 5_000, 8, "tanh_hr"), 4 * 8 * 8),
    ]:
        uniform = make(seeds=[3, 4], bias_init="uniform")
        zero = make(seeds=[3, 4])
        bound = fan_in**-0.5
        for a, b in zip(uniform.branches, zero.branches):
            assert torch.equal(a.linear.weight, b.linear.weight)
            assert not b.linear.bias.any()
            assert a.linear.bias.abs().max() <= bound
            for bias in a.linear.bias.detach():
                assert (
                    scipy.stats.kstest(bias.numpy() / bound, scipy.stats.uniform(-1, 2).cdf).pvalue
                    > 1e-3
                )
        first, second = (branch.linear.bias for branch in uniform.branches)
        assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    with pytest.raises(ValueError, match="zero uniform"):
        activations.dense(2, 2, "relu", bias_init="normal")
