"""Targets against slow loops, parameter counts, recycled neurons, contributions of dead neurons.

`pytest -q tests/test_atari_targets.py` (about 10 s).
"""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch

import activations
import dqn_atari
import metrics
import optimizers
import ppo_atari
import pqn_atari
import reports

SCRIPTS = {
    "dqn_atari": dqn_atari.QNetwork,
    "ppo_atari": ppo_atari.Agent,
    "pqn_atari": pqn_atari.QNetwork,
}
MODULES = {"dqn_atari": dqn_atari, "ppo_atari": ppo_atari, "pqn_atari": pqn_atari}


def network(script: str, num_actions: int = 6, **flags):
    return SCRIPTS[script](num_actions, MODULES[script].Args(**flags))


def cases(number: int = 1_000):
    """Random steps of several games: terminations, truncations (never both),
    and ends at the last step."""
    rng = np.random.default_rng(0)
    for case in range(number):
        steps = rng.integers(1, 9)
        envs = rng.integers(1, 4)
        ends = rng.integers(0, 4, (steps, envs))  # 0: termination, 1: truncation, else: neither
        ends[-1] = case % 3 if case % 2 else ends[-1]
        rewards, values, next_values = rng.normal(size=(3, steps, envs))
        yield (
            rewards,
            (ends == 0) * 1.0,
            (ends == 1) * 1.0,
            values,
            next_values,
            *rng.uniform(size=2),
        )


def test_q_lambda_returns_match_a_slow_loop():
    for rewards, terminations, truncations, _, next_values, gamma, q_lambda in cases():
        tensors = (torch.from_numpy(x) for x in (rewards, terminations, truncations, next_values))
        got = pqn_atari.q_lambda_returns(*tensors, gamma, q_lambda).numpy()
        for (t, i), value in np.ndenumerate(got):
            # the weighted n-step returns from t on, up to where the game
            # or what is known of it ends
            total = 0.0
            weight = 1.0
            discount = 1.0
            k = t
            while True:
                total += weight * discount * rewards[k, i]
                last = terminations[k, i] or truncations[k, i] or k == len(rewards) - 1
                fraction = 1.0 if last else 1 - q_lambda
                if not terminations[k, i]:
                    total += weight * fraction * discount * gamma * next_values[k, i]
                if last:
                    break
                weight *= q_lambda
                discount *= gamma
                k += 1
            assert value == pytest.approx(total, rel=1e-9, abs=1e-9)


def test_advantages_match_a_slow_loop():
    for rewards, terminations, truncations, values, next_values, gamma, gae_lambda in cases():
        tensors = (
            torch.from_numpy(x) for x in (rewards, terminations, truncations, values, next_values)
        )
        advantages, returns = (
            x.numpy() for x in ppo_atari.compute_gae(*tensors, gamma, gae_lambda)
        )
        for (t, i), value in np.ndenumerate(advantages):
            total = 0.0
            # sum over k of (gamma lambda)^(k - t) delta_k, to the end of the episode
            for k in range(t, len(rewards)):
                after = 0.0 if terminations[k, i] else gamma * next_values[k, i]
                total += (gamma * gae_lambda) ** (k - t) * (rewards[k, i] + after - values[k, i])
                if terminations[k, i] or truncations[k, i]:
                    break
            assert value == pytest.approx(total, rel=1e-9, abs=1e-9)
            assert returns[t, i] == pytest.approx(total + values[t, i], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("double_q", [True, False])
def test_dqn_targets_match_a_slow_loop(double_q):
    rng = np.random.default_rng(1)
    differ = 0
    for _ in range(1_000):
        size = rng.integers(1, 5)
        num_actions = rng.integers(2, 7)
        gamma = rng.uniform()
        rewards = rng.normal(size=size)
        terminations = rng.integers(0, 2, size) * 1.0
        online, target = rng.normal(size=(2, size, num_actions))
        tensors = (torch.from_numpy(x) for x in (rewards, terminations, online, target))
        got = dqn_atari.dqn_target(*tensors, gamma, double_q)
        for j in range(size):
            best = max(range(num_actions), key=lambda a: (online if double_q else target)[j, a])
            expected = rewards[j] if terminations[j] else rewards[j] + gamma * target[j, best]
            assert got[j].item() == pytest.approx(expected, rel=1e-12)
            differ += target[j, best] != target[j].max()
    assert (differ > 500) == double_q


HIDDEN = {"encoder_activation": ("relu", "relu", "crelu")}
LAST = {"activation": "tanh_hr"}
# Facts of HR's Table 3, and our own under one convention: weights,
# biases and norms of all layers and head.
COUNTS = [
    ("dqn_atari", 1_687_206, {}),
    ("dqn_atari", 3_293_350, LAST),
    ("dqn_atari", 3_292_838, HIDDEN),
    ("dqn_atari", 3_365_542, {"activation": "crelu", "encoder_activation": ("crelu",)}),
    ("ppo_atari", 1_687_719, {}),
    ("ppo_atari", 3_293_863, LAST),
    ("pqn_atari", 1_688_550, {}),
    ("pqn_atari", 1_730_470, {"layer_norm": "chw"}),
    ("pqn_atari", 3_374_022, LAST),
    ("pqn_atari", 3_366_886, {"activation": "crelu"}),
    ("pqn_atari", 1_687_206, {"layer_norm": "none"}),
]


@pytest.mark.parametrize(("script", "count", "flags"), COUNTS)
def test_parameter_counts(script, count, flags):
    net = network(script, **flags)
    assert sum(p.numel() for p in net.parameters()) == count
    with torch.no_grad():
        outputs = net(torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))
    assert (outputs[0] if script == "ppo_atari" else outputs).shape == (2, 6)


def test_initial_weights():
    weights = {script: network(script) for script in SCRIPTS}
    fc = weights["dqn_atari"].fc.branches[0].linear.weight
    assert fc.abs().max() <= 3136**-0.5
    assert fc.std().item() == pytest.approx((3 * 3136) ** -0.5, rel=0.01)
    fc = weights["ppo_atari"].fc.branches[0].linear.weight
    torch.testing.assert_close(fc.T @ fc, 2 * torch.eye(512), atol=1e-4, rtol=0)
    fc = weights["pqn_atari"].fc.branches[0].linear.weight
    head = weights["pqn_atari"].q.weight
    assert fc.std().item() == pytest.approx((2 / 3136) ** 0.5, rel=0.01)
    assert fc.abs().max() < 2.28 * (2 / 3136) ** 0.5
    assert head.std().item() == pytest.approx(512**-0.5, rel=0.05)
    branches = network("dqn_atari", **LAST).fc.branches
    assert not torch.equal(branches[0].linear.weight, branches[1].linear.weight)


def test_dqn_initial_weights_are_drawn_as_in_torch():
    """Every bias and weight uniform in +-1/sqrt(fan_in), as nn.Linear and nn.Conv2d draw them;
    --bias-init zero: 0."""
    layers = [("conv1", 4 * 64), ("conv2", 32 * 16), ("conv3", 64 * 9), ("fc", 3_136), ("q", 512)]
    for bias_init in ("uniform", "zero"):
        net = network("dqn_atari", bias_init=bias_init)
        for name, fan_in in layers:
            layer = getattr(net, name)
            bias = (layer if name == "q" else layer.branches[0].linear).bias
            if bias_init == "zero":
                assert not bias.any()
                continue
            assert 0.5 * fan_in**-0.5 < bias.abs().max() <= fan_in**-0.5
    defaults = dqn_atari.Args()
    assert (defaults.adam_eps, defaults.bias_init) == (1e-8, "uniform")


RECYCLED = [("relu", "none"), ("relu", "channel"), ("tanh_hr", "none"), ("crelu", "none")]


@pytest.mark.parametrize("script", ["dqn_atari", "ppo_atari"])
@pytest.mark.parametrize(("activation", "layer_norm"), RECYCLED)
def test_recycled_neurons_are_reinitialised_and_the_others_stay(script, activation, layer_norm):
    flags = {
        "layer_norm": layer_norm,
        "width": 16,
        "encoder_activation": (activation,),
        "activation": activation,
    }
    net = network(script, **flags)
    optimizer = torch.optim.AdamW(
        optimizers.parameter_groups(net, 1e-3, activations.RationalConfig())
    )
    obs = torch.randint(
        0, 256, (4, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )

    def outputs(net):
        out = net(obs)
        return torch.cat([out[0], out[1].unsqueeze(1)], 1) if script == "ppo_atari" else out

    for _ in range(2):
        outputs(net).square().sum().backward()
        optimizer.step()
    old = copy.deepcopy(net)
    heads = [net.actor, net.critic] if script == "ppo_atari" else [net.q]
    moments = {name: optimizer.state[p]["exp_avg_sq"].clone() for name, p in net.named_parameters()}
    names = ["conv1", "conv2", "conv3", "fc"]
    layers = [getattr(net, name) for name in names]
    neurons = {
        name: torch.zeros(len(x.branches[0].linear.bias), dtype=torch.bool)
        for name, x in zip(names, layers)
    }
    neurons["conv1"][[3]] = neurons["conv3"][[1, 5]] = neurons["fc"][[0, 7, 15]] = True
    outs = {
        name: neurons[name].repeat(x.width // len(neurons[name])) for name, x in zip(names, layers)
    }
    generator = torch.Generator().manual_seed(3)
    init = activations.he_normal
    assert (
        optimizers.recycle_layers(layers, heads, [*outs.values()], optimizer, init, generator)
        == 6 / 176
    )
    reads = {
        "conv2": outs["conv1"],
        "conv3": outs["conv2"],
        "fc": outs["conv3"].repeat_interleave(49),
    }
    reads |= dict.fromkeys(("q", "actor", "critic"), outs["fc"])
    before = dict(old.named_parameters())
    for name, p in net.named_parameters():
        layer = name.split(".")[0]
        fresh = torch.zeros_like(p, dtype=torch.bool)
        # neurons first, then what they read
        axes = p.detach().movedim(1, 0) if p.dim() == 2 else p.detach()
        index = fresh.movedim(1, 0) if p.dim() == 2 else fresh
        if layer in neurons:
            index[neurons[layer]] = True
            if p.dim() == 1:
                assert (
                    axes[neurons[layer]] == (1.0 if name.endswith("norm.weight") else 0.0)
                ).all(), name
            elif neurons[layer].any() and layer != "fc":
                assert (axes[neurons[layer]] != before[name][neurons[layer]]).any()
        if p.dim() > 1 and layer in reads:
            index[:, reads[layer]] = True
            # new ones may read new ones
            old_rows = ~neurons.get(layer, torch.zeros(len(axes), dtype=torch.bool))
            assert (axes[old_rows][:, reads[layer]] == 0).all(), name
        assert torch.equal(p[~fresh], before[name][~fresh]), name
        state = optimizer.state[p]
        assert (state["exp_avg"][fresh] == 0).all()
        assert (state["exp_avg_sq"][fresh] == 0).all()
        assert state["step"] == 2
        assert torch.equal(state["exp_avg_sq"][~fresh], moments[name][~fresh])
    assert not torch.equal(
        net.fc.branches[0].linear.weight[:, 0], old.fc.branches[0].linear.weight[:, 0]
    )
    # a norm mixes a layer's neurons; without one the outputs lose what the neurons gave
    if layer_norm == "none":
        shapes = {"fc": (1, -1)}
        for name in names:
            kept = (~outs[name]).view(shapes.get(name, (1, -1, 1, 1)))
            getattr(old, name).register_forward_hook(
                lambda module, args, output, kept=kept: output * kept
            )
        torch.testing.assert_close(outputs(net), outputs(old), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "tanh_hr"])
def test_dead_neurons_contribute_a_constant_bias(activation):
    net = network("dqn_atari", width=16, activation=activation)
    dead = torch.arange(16) % 3 == 0
    with torch.no_grad():
        for branch in net.fc.branches:
            branch.linear.weight.mul_(40.0)  # the others vary
            branch.linear.weight[:, dead] = 0.0
            # saturated, or stuck in between
            branch.linear.bias[dead] = torch.linspace(-9, 9, int(dead.sum()))
    obs = torch.randint(
        0, 256, (64, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    obs[::2] //= 3
    with torch.no_grad(), reports.record_layers(net) as records:
        q_values = net(obs)
    hidden = records["fc"].output
    assert torch.equal(metrics.dead_neurons_kde(hidden)[0], dead)
    part, rest = metrics.hidden_bias(hidden, dead, net.q.weight.mT)
    stuck = [torch.tanh(branch.linear.bias) for branch in net.fc.branches]
    # Theorem 4.1: sum of alpha_i w_i
    theorem = functools.reduce(torch.mul, stuck)[dead] @ net.q.weight[dead]
    torch.testing.assert_close(part, theorem.expand_as(part))
    torch.testing.assert_close(part + rest + net.q.bias, q_values, atol=1e-4, rtol=1e-4)
    split = dqn_atari.q_split(net, obs)
    assert split["q_split/dead"] == pytest.approx(theorem.mean().item(), rel=1e-4, abs=1e-6)
    assert sum(split.values()) == pytest.approx(q_values.mean().item(), rel=1e-3, abs=1e-4)


def test_dead_by_standard_deviation():
    z = (
        torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.019, 0.022, 1.0])
        + 0.9
    )
    dead, std = metrics.dead_neurons_std(z)
    assert dead.tolist() == [True, False, False]
    assert std == pytest.approx(np.std(z.numpy(), 0, ddof=1), rel=1e-5)
    assert metrics.dead_neurons_kde(z * torch.tensor([0.9, 1.1, 1.0]))[0].tolist() == dead.tolist()


def test_flags_with_the_same_name_agree_across_scripts():
    fields = [{f.name: f for f in dataclasses.fields(module.Args)} for module in MODULES.values()]
    for name in set.intersection(*(set(of_script) for of_script in fields)):
        assert len({str(of_script[name].type) for of_script in fields}) == 1, name
