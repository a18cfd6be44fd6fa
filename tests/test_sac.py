"""Losses, targets, gradients and updates of sac_continuous.py against a slow reference for one
seed; its replay buffer.

`pytest -q tests/test_sac.py` (about 15 s; one slow test compiles the update).
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import activations
import optimizers
from runlog import seeding
from sac_continuous import Actor, Agent, Args, ReplayBuffer, uses_graph

OBS = 5
ACTIONS = 2
BATCH = 7
CPU = torch.device("cpu")
ARGS = Args(
    compile=False,
    widths=(8, 6),
    learning_rate=1e-2,
    tau=0.1,
    gamma=0.9,
    init_temperature=0.7,
    target_entropy_scale=0.6,
)


def make_batch(num_seeds: int, seed: int = 0, dtype=torch.float32) -> tuple[dict, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"obs": (OBS,), "actions": (ACTIONS,), "rewards": (), "next_obs": (OBS,)}
    batch = {
        key: torch.randn(num_seeds, BATCH, *shape, generator=generator)
        for key, shape in shapes.items()
    }
    batch["actions"] = torch.tanh(batch["actions"])
    batch["terminations"] = (torch.rand(num_seeds, BATCH, generator=generator) < 0.4).float()
    noise = torch.randn(2, num_seeds, BATCH, ACTIONS, generator=generator)
    return {key: value.to(dtype) for key, value in batch.items()}, noise.to(dtype)


def squashed_normal(
    mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tanh = TanhTransform(cache_size=1)  # with the cache its inverse is exact
    actions = tanh(mean + std * noise)
    return actions, TransformedDistribution(Normal(mean, std), [tanh]).log_prob(actions).sum(-1)


class Reference:
    """SAC of one seed in float64: one tensor per weight,
    one network after the other, torch's Adam."""

    def __init__(self, agent: Agent, i: int):
        def leaves(module, index):
            return {
                k: p.detach()[index].double().clone().requires_grad_()
                for k, p in module.named_parameters()
            }

        self.args = agent.args
        self.actor = leaves(agent.actor, i)
        self.qf, self.qf_target = (
            [leaves(module, (i, k)) for k in (0, 1)] for module in (agent.qf, agent.qf_target)
        )
        self.log_alpha = agent.log_alpha.detach()[i, 0].double().clone().requires_grad_()
        groups = [
            self.actor.values(),
            [*self.qf[0].values(), *self.qf[1].values()],
            [self.log_alpha],
        ]
        self.adams = [torch.optim.Adam(list(group), lr=self.args.learning_rate) for group in groups]

    def hidden(self, p: dict, x: torch.Tensor) -> torch.Tensor:
        for layer in range(len(self.args.widths)):
            name = f"hidden.{layer}.branches.0.linear."
            x = x @ p[name + "weight"] + p[name + "bias"]
            x = x * (x > 0)
        return x

    def policy(self, obs: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.hidden(self.actor, obs)
        mean, raw = (
            h @ self.actor[f"{name}.weight"] + self.actor[f"{name}.bias"]
            for name in ("mean", "log_std")
        )
        std = torch.exp(-10 + (2 - -10) * (torch.tanh(raw) + 1) / 2)
        return squashed_normal(mean, std, noise)

    def q(self, p: dict, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return (self.hidden(p, torch.cat([obs, actions], 1)) @ p["q.weight"] + p["q.bias"])[:, 0]

    def losses(
        self, batch: dict, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_actions, next_log_prob = self.policy(batch["next_obs"], noise[0])
            next_q = torch.minimum(
                *[self.q(p, batch["next_obs"], next_actions) for p in self.qf_target]
            )
            target = batch["rewards"].clone()
            for j in range(BATCH):
                if batch["terminations"][j] == 0:
                    target[j] += self.args.gamma * (next_q[j] - alpha * next_log_prob[j])
        q_values = [self.q(p, batch["obs"], batch["actions"]) for p in self.qf]
        qf_loss = sum(((q - target) ** 2).sum() / BATCH for q in q_values)
        actions, log_prob = self.policy(batch["obs"], noise[1])
        min_q = torch.minimum(*[self.q(p, batch["obs"], actions) for p in self.qf])
        return qf_loss, (alpha * log_prob - min_q).mean(), log_prob.detach()

    def update(self, batch: dict, noise: torch.Tensor, update_policy: bool) -> None:
        def step(adam, loss):
            adam.zero_grad()
            loss.backward(inputs=adam.param_groups[0]["params"])
            adam.step()

        step(self.adams[1], self.losses(batch, noise)[0])
        for target, source in zip(self.qf_target, self.qf):
            for name in target:
                target[name] = (1 - self.args.tau) * target[name].detach() + self.args.tau * source[
                    name
                ].detach()
        if update_policy:
            _, loss, log_prob = self.losses(batch, noise)
            step(self.adams[0], loss)
        if update_policy and self.args.autotune:
            target_entropy = -self.args.target_entropy_scale * ACTIONS
            step(self.adams[2], -(self.log_alpha.exp() * (log_prob + target_entropy)).mean())


def test_losses_and_gradients_of_every_seed_match_the_reference():
    agent = Agent(OBS, ACTIONS, ARGS, [3, 4, 9], CPU).double()
    with torch.no_grad():  # else targets and critics agree, and a mix-up would pass
        for p in agent.qf_target.parameters():
            p.add_(
                torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype),
                alpha=0.3,
            )
    batch, noise = make_batch(3, dtype=torch.float64)
    assert 0 < batch["terminations"].sum() < batch["terminations"].numel()
    qf_loss, q_values = agent.qf_loss(batch, noise[0])
    actor_loss, log_probs = agent.actor_loss(batch, noise[1])
    assert qf_loss.shape == actor_loss.shape == (3,)
    assert q_values.shape == (3, 2, BATCH)
    assert log_probs.shape == (3, BATCH)
    qf_grads = torch.autograd.grad(qf_loss.sum(), agent.qf_optimizer.parameters_)
    actor_grads = torch.autograd.grad(actor_loss.sum(), agent.actor_optimizer.parameters_)
    for i in range(3):
        reference = Reference(agent, i)
        ours = {key: value[i] for key, value in batch.items()}
        theirs = reference.losses(ours, noise[:, i])
        torch.testing.assert_close(
            (qf_loss[i], actor_loss[i], log_probs[i]), theirs, rtol=1e-9, atol=1e-9
        )
        for k, parameters in enumerate(reference.qf):
            torch.testing.assert_close(
                q_values[i, k], reference.q(parameters, ours["obs"], ours["actions"])
            )
            expected = torch.autograd.grad(theirs[0], list(parameters.values()), retain_graph=True)
            torch.testing.assert_close(
                [g[i, k] for g in qf_grads], list(expected), rtol=1e-9, atol=1e-9
            )
        expected = torch.autograd.grad(theirs[1], list(reference.actor.values()))
        torch.testing.assert_close(
            [g[i] for g in actor_grads], list(expected), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("autotune", [True, False])
def test_updates_of_every_seed_match_the_reference(autotune):
    args = dataclasses.replace(ARGS, autotune=autotune)
    agent = Agent(OBS, ACTIONS, args, [3, 4, 9], CPU).double()
    references = [Reference(agent, i) for i in range(3)]
    # Adam's state, targets that differ, actor and temperature at every second update
    for u in range(4):
        batch, noise = make_batch(3, u, torch.float64)
        info = agent.update(batch, noise, u % 2 == 1)
        for i, reference in enumerate(references):
            reference.update(
                {key: value[i] for key, value in batch.items()}, noise[:, i], u % 2 == 1
            )
    close = {"rtol": 1e-7, "atol": 1e-9}
    for i, reference in enumerate(references):
        pairs = [(agent.actor, i, reference.actor)]
        for k in (0, 1):
            pairs += [
                (agent.qf, (i, k), reference.qf[k]),
                (agent.qf_target, (i, k), reference.qf_target[k]),
            ]
        for module, index, theirs in pairs:
            ours = {name: p.detach()[index] for name, p in module.named_parameters()}
            torch.testing.assert_close(
                ours, {name: p.detach() for name, p in theirs.items()}, **close
            )
        torch.testing.assert_close(agent.log_alpha[i, 0], reference.log_alpha, **close)
    assert set(info) == {"qf_loss", "q_mean", "actor_loss", "entropy", "alpha"}
    assert all(value.shape == (3,) and not value.requires_grad for value in info.values())
    moved = abs(agent.log_alpha - math.log(0.7))
    assert moved.min() > 1e-3 if autotune else moved.max() < 1e-7


@pytest.mark.parametrize("utd, policy_frequency", [(4, 2), (1, 3), (2, 4), (3, 1)])
def test_every_kth_update_trains_the_policy_and_a_graph_needs_no_step(utd, policy_frequency):
    args = dataclasses.replace(ARGS, utd=utd, policy_frequency=policy_frequency)
    agent = Agent(OBS, ACTIONS, args, [1], CPU)
    turns = []

    def record(batch, noise, update_policy):
        turns.append(update_policy)
        assert batch["obs"].shape == (1, BATCH, OBS) and noise.shape == (2, 1, BATCH, ACTIONS)
        return {}

    agent.update = record
    batches = {"obs": torch.zeros(utd, 1, BATCH, OBS)}
    noise = torch.zeros(utd, 2, 1, BATCH, ACTIONS)
    for step in range(20, 32):
        agent.update_block(batches, noise, step * utd)
    numbers = range(20 * utd + 1, 32 * utd + 1)  # of the updates, from 1
    assert turns == [number % policy_frequency == 0 for number in numbers]
    if utd % policy_frequency == 0:  # what --cudagraphs asks for
        turns.clear()
        agent.update_block(batches, noise)
        assert turns == [(u + 1) % policy_frequency == 0 for u in range(utd)]


def test_log_probs_match_a_squashed_normal():
    actor = Actor(OBS, ACTIONS, ARGS, [0, 1]).double()
    obs = torch.randn(2, 50, OBS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(
        2, 50, ACTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    mean, log_std = actor(obs)
    assert (log_std >= -10).all() and (log_std <= 2).all()
    torch.testing.assert_close(
        actor.sample(obs, noise), squashed_normal(mean, log_std.exp(), noise)
    )
    torch.testing.assert_close(actor.sample(obs, torch.zeros_like(noise))[0], torch.tanh(mean))
    with torch.no_grad():
        actor.mean.bias += 30.0  # tanh is 1 in float32: the naive log(1 - a^2) would be -inf
    extreme = actor.float().sample(obs.float(), noise.float())[1]
    assert extreme.isfinite().all() and (extreme > 40).all()


@pytest.mark.parametrize("activation", ["relu", "crational"])
def test_a_seed_learns_the_same_alone_as_in_a_batch(activation):
    args = dataclasses.replace(ARGS, activation=activation, layer_norm=activation == "relu")
    together, alone = (Agent(OBS, ACTIONS, args, seeds, CPU) for seeds in ([1, 2, 3], [2]))
    before = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    for u in range(3):
        batch, noise = make_batch(3, u)
        together.update(batch, noise)
        alone.update({key: value[1:2] for key, value in batch.items()}, noise[:, 1:2])
    after = alone.state_dict()
    rest = together.state_dict()
    for name, tensor in after.items():
        torch.testing.assert_close(
            rest[name][1:2] if tensor.dim() else rest[name], tensor, rtol=1e-4, atol=1e-5
        )
        assert not torch.equal(tensor, before[name]), name
        # seeds differ
        assert not tensor.dim() or not torch.equal(rest[name][0], rest[name][1]), name


@pytest.mark.parametrize("activation", ["crational", pytest.param("relu", marks=pytest.mark.slow)])
def test_the_compiled_update_matches_the_eager_one(activation):  # most of a minute: Inductor's C++
    args = [
        dataclasses.replace(ARGS, compile=compiled, activation=activation)
        for compiled in (False, True)
    ]
    agents = [Agent(OBS, ACTIONS, flags, [1, 2], CPU) for flags in args]
    for u in range(2):
        infos = [agent.update(*make_batch(2, u)) for agent in agents]
        torch.testing.assert_close(*infos, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*[agent.state_dict() for agent in agents], rtol=1e-3, atol=1e-4)


def test_adam_matches_torch_and_coefficients_are_a_separate_group():
    rational = activations.RationalConfig(learning_rate=3e-2, coefficient_weight_decay=0.5)
    network = activations.mlp(4, (6, 5), "crational", np.array([1, 2]), True, rational)
    adam = optimizers.Adam(network, 1e-2, rational)
    names = activations.coefficient_names(network)
    assert 0 < len(names) < len(adam.names)
    mine = dict(network.named_parameters())
    theirs = {}
    kinds = {"decayed": [], "log_scale": [], "weights": []}
    for name, p in mine.items():
        theirs[name] = p.detach().clone()
        kind = (
            "weights"
            if name not in names
            else "log_scale"
            if name.endswith("log_scale")
            else "decayed"
        )
        kinds[kind].append(theirs[name])
    assert all(kinds.values())
    reference = [torch.optim.AdamW(kinds["decayed"], lr=3e-2, weight_decay=0.5)]
    reference += [
        torch.optim.Adam(kinds["log_scale"], lr=3e-2),
        torch.optim.Adam(kinds["weights"], lr=1e-2),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for name in mine:
            theirs[name].grad = torch.randn(theirs[name].shape, generator=generator)
        with torch.no_grad():
            adam.step([theirs[name].grad for name in adam.names])
        for optimizer in reference:
            optimizer.step()
    torch.testing.assert_close(
        {name: p.detach() for name, p in mine.items()}, theirs, rtol=1e-4, atol=1e-6
    )


def fill(buffer: ReplayBuffer, steps) -> None:
    for step in steps:  # every number of a row encodes its step and its seed
        value = step + 0.25 * np.arange(2)
        obs = np.repeat(value[:, None], 3, 1)
        actions = np.repeat(-value[:, None], 2, 1)
        buffer.add(obs, actions, 10 * value, np.array([step % 2, 0]), obs + 1, np.zeros(2, bool))


def test_replay_is_a_ring_whose_rows_stay_together():
    buffer = ReplayBuffer(2, 10, 3, 2, CPU)
    generators = [seeding.make_generator(seed, "update") for seed in (5, 6)]
    fill(buffer, range(4))
    # only rows that are there
    assert buffer.sample(500, generators=generators)["obs"].max() == 3.25
    fill(buffer, range(4, 23))
    batch = buffer.sample(3, 400, generators=generators)
    assert all(value.shape[:3] == (3, 2, 400) for value in batch.values())
    for i in (0, 1):
        part = {key: value[:, i] for key, value in batch.items()}
        steps = part["obs"][..., 0] - 0.25 * i
        assert steps.unique().tolist() == list(range(13, 23))
        assert (part["actions"] == -part["obs"][..., :2]).all()
        assert (part["next_obs"] == part["obs"] + 1).all()
        assert (part["rewards"] == 10 * part["obs"][..., 0]).all()
        assert (part["terminations"] == (steps % 2 if i == 0 else 0)).all()
    assert buffer.newest(4)[:, :, 0].tolist() == [[19, 20, 21, 22], [19.25, 20.25, 21.25, 22.25]]
    again = ReplayBuffer(2, 10, 3, 2, CPU)
    for i in (0, 1):
        again.restore(i, buffer.newest(99)[i], 23)
    assert torch.equal(again.rows, buffer.rows) and again.num_added == 23
    fill(again, [23])
    assert again.newest(10)[0, :, 0].tolist() == list(range(14, 24))


def test_a_seed_samples_the_same_alone_as_in_a_batch():
    draws = []
    for seeds in ([5, 6], [6]):
        buffer = ReplayBuffer(len(seeds), 10, 3, 2, CPU)
        buffer.rows[:] = torch.arange(100.0).reshape(10, 10)
        buffer.num_added = 10
        generators = [seeding.make_generator(seed, "update") for seed in seeds]
        draws.append(buffer.sample(2, 8, generators=generators)["obs"][:, -1])
        draws.append(seeding.normals(generators, 2, 3, axis=1)[:, -1])
    assert torch.equal(draws[0], draws[2]) and torch.equal(draws[1], draws[3])


@pytest.mark.parametrize(
    "device, flags, is_graphed",
    [
        ("cuda", {}, True),
        ("cuda:1", {"utd": 4, "policy_frequency": 2}, True),
        ("cuda", {"utd": 1, "policy_frequency": 2}, False),  # the actor's turn is not in each block
        ("cuda", {"cudagraphs": False}, False),
        ("cpu", {}, False),
    ],
)
def test_when_a_cuda_graph_replays_the_updates(device, flags, is_graphed):
    assert uses_graph(Args(**flags), torch.device(device)) is is_graphed
