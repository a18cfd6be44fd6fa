"""Compiled updates on the CPU: seed by seed, independent of the batch and the number of threads.

`pytest -q tests/test_seed_by_seed.py` (about 1 min: Inductor's C++).
"""

import csv
import dataclasses
import importlib.util
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import runlog
import sac_continuous
import td3_continuous
from activations import RationalConfig
from runlog import seed_by_seed

CPU = torch.device("cpu")
OBS = 5
ACTIONS = 2
BATCH = 7  # no multiple of a vector's width: slices of seeds begin anywhere in memory
UTD = 4


# ---- tanh ----------------------------------------------------------------------------------------


def test_rational_tanh_is_tanh_in_float32():
    near_and_far = np.concatenate([np.linspace(0, 12, 400_001), np.geomspace(1e-38, 1e38, 100_001)])
    x = np.concatenate([-near_and_far, near_and_far]).astype(np.float32)
    found = seed_by_seed.rational_tanh(torch.from_numpy(x)).numpy()
    exact = np.tanh(x.astype(np.float64))
    units = np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert units.max() <= 7
    assert np.abs(found).max() == 1.0
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0])
    found = seed_by_seed.rational_tanh(special)
    assert found[0] == 1.0
    assert found[1] == -1.0
    assert found[2].isnan()
    assert found[3] == 0.0


def test_its_coefficients_match_the_fit():
    file = Path(__file__).parent.parent / "scripts" / "fit_tanh.py"
    spec = importlib.util.spec_from_file_location("fit_tanh", file)
    fit_tanh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fit_tanh)
    assert fit_tanh.BOUND == seed_by_seed.TANH_BOUND
    error, _, _ = fit_tanh.fit(4, 4)
    x = np.linspace(1e-3, fit_tanh.BOUND, 100_001)
    p = np.polynomial.polynomial.polyval(x * x, seed_by_seed.TANH_P)
    q = np.polynomial.polynomial.polyval(x * x, seed_by_seed.TANH_Q)
    found = np.abs(x * p / q / np.tanh(x) - 1).max()
    assert found < 1.2 * error < 3e-8  # half a unit in the last place is 6e-8


# ---- updates of SAC and TD3 ----------------------------------------------------------------------


def make_block(script, num_seeds: int, number: int) -> tuple[dict, torch.Tensor]:
    """The number-th block of batches and noise of seeds 1 to num_seeds: a seed's is its own."""
    batches = []
    noises = []
    for seed in range(num_seeds):
        generator = torch.Generator().manual_seed(100 * number + seed)
        shapes = {"obs": (OBS,), "actions": (ACTIONS,), "rewards": (), "next_obs": (OBS,)}
        batch = {
            key: torch.randn(UTD, BATCH, *shape, generator=generator)
            for key, shape in shapes.items()
        }
        batch["actions"] = torch.tanh(batch["actions"])
        batch["terminations"] = (torch.rand(UTD, BATCH, generator=generator) < 0.4).float()
        batches.append(batch)
        per_update = (UTD, 2) if script is sac_continuous else (UTD,)
        noises.append(torch.randn(*per_update, BATCH, ACTIONS, generator=generator))
    stacked = {key: torch.stack([batch[key] for batch in batches], 1) for key in batches[0]}
    return stacked, torch.stack(noises, -3)


def make_agent(script, seeds: list[int], threads: int = 1, **settings):
    before = torch.get_num_threads()
    args = script.Args(widths=(6,), learning_rate=1e-2, tau=0.1, gamma=0.9, utd=UTD)
    args = dataclasses.replace(args, **settings)
    torch.set_num_threads(threads)
    try:
        return script.Agent(OBS, ACTIONS, args, seeds, CPU)
    finally:
        torch.set_num_threads(before)


def train(agent, script, num_seeds: int, blocks=(0, 1, 2)) -> list[dict]:
    return [agent.update_block(*make_block(script, num_seeds, number)) for number in blocks]


ADAPTIVE = {"activation": "crational", "rational": RationalConfig(constraint_schedule="adaptive")}
CASES = [
    (sac_continuous, {"activation": "crational"}),
    (sac_continuous, ADAPTIVE),
    (td3_continuous, {"activation": "relu"}),
]


@pytest.mark.parametrize("script, settings", CASES)
def test_a_seed_alone_matches_its_seed_in_a_batch(script, settings):
    """Bit for bit, with one thread and with more than one, and the eager update up to rounding."""
    batched = make_agent(script, [1, 2, 3], threads=2, **settings)
    infos = train(batched, script, 3)
    state = batched.state_dict()

    alone = make_agent(script, [1], **settings)
    infos_alone = train(alone, script, 1)
    for name, tensor in alone.state_dict().items():
        in_batch = state[name][:1] if tensor.dim() else state[name]
        assert torch.equal(tensor, in_batch), name
    for info, info_alone in zip(infos, infos_alone, strict=True):
        assert info.keys() == info_alone.keys()
        for key, value in info_alone.items():
            assert value.shape == (1,) and torch.equal(value, info[key][:1]), key

    eager = make_agent(script, [1, 2, 3], compile=False, **settings)
    train(eager, script, 3)
    torch.testing.assert_close(state, eager.state_dict(), rtol=2e-3, atol=2e-4)
    assert state["qf_optimizer.count"] == 3 * UTD
    assert state["actor_optimizer.count"] == 3 * UTD / batched.args.policy_frequency

    obs = np.random.default_rng(0).normal(size=(3, OBS)).astype(np.float32)
    assert np.array_equal(batched.act(obs)[:1], alone.act(obs[:1]))
    np.testing.assert_allclose(batched.act(obs), eager.act(obs), rtol=2e-3, atol=2e-4)


def test_changes_between_updates_are_seen():
    """Weights that a checkpoint brings back, moments and counts that are reset."""
    script = sac_continuous
    compiled = make_agent(script, [1, 2], threads=2, activation="crational")
    eager = make_agent(script, [1, 2], compile=False, activation="crational")
    for agent in (compiled, eager):
        before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        train(agent, script, 2, blocks=(0, 1))
        agent.load_state_dict(before)
        train(agent, script, 2, blocks=(2,))
        agent.reset_optimizers()
        train(agent, script, 2, blocks=(3,))
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=2e-3, atol=2e-4)
    assert compiled.qf_optimizer.count == UTD
    assert compiled.actor_optimizer.count == UTD


class Counter(nn.Module):
    """A function with a state for each seed, and a count shared by all."""

    def __init__(self, seed_axes: tuple[int, ...]):
        super().__init__()
        self.register_buffer("total", torch.zeros(*seed_axes, 3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("unused", torch.zeros(*seed_axes, 2))

    def add(self, x: torch.Tensor, sign: int = 1) -> dict[str, torch.Tensor]:
        self.count += 1
        self.total += sign * x
        return {"total": self.total * 1.0, "mean": self.total.mean(), "count": self.count * 1.0}


def test_calls_in_order_with_seeds_that_do_not_wait():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        module = Counter((5,))
        single = Counter(())
        seeds = seed_by_seed.SeedBySeed(module, single)
        add = seeds.compiled(single.add, seed_axes=(1, None))
        xs = torch.arange(60.0).reshape(4, 3, 5)  # seeds along axis 1 of a call's argument
        calls = [(x, sign) for x, sign in zip(xs, [1, -1, 1, 1], strict=True)]
        found = add.in_order(calls)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    total = torch.zeros(5, 3)
    for number, (x, sign) in enumerate(calls, 1):
        total = total + sign * x.mT
        info = found[number - 1]
        assert torch.equal(info["total"], total)
        torch.testing.assert_close(info["mean"], total.mean(-1))
        assert torch.equal(info["count"], torch.full((5,), float(number)))
    assert torch.equal(module.total, total) and module.count == 4
    assert len(add.variants) == 2  # one for each constant


def test_a_failure_in_a_worker_is_raised():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seeds = seed_by_seed.SeedBySeed(Counter((3,)), Counter(()))

        at_work = set()

        def step(i: int, number: int) -> None:
            if (i, number) == (1, 2):
                raise ValueError("seed 1, step 2")
            at_work.add(i)
            time.sleep(0.05)
            at_work.remove(i)

        began = time.monotonic()
        with pytest.raises(ValueError, match="seed 1, step 2"):
            seeds.run(step, 1_000)
        assert time.monotonic() - began < 20  # the other seeds would take 50 s to their ends
        assert not at_work and seeds.workers._work_queue.empty()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_module_that_was_moved_is_noticed():
    agent = make_agent(sac_continuous, [1, 2], activation="relu").double()
    with pytest.raises(RuntimeError, match="moved or converted"):
        agent.act(np.zeros((2, OBS), np.float32))


# ---- a whole training ----------------------------------------------------------------------------

FLAGS = (
    "--env-id Pendulum-v1 --total-timesteps 60 --learning-starts 40 --utd 2 --widths 6 "
    "--batch-size 16 --activation crational --eval-frequency 30 --num-eval-episodes 1 "
    "--log-frequency 10 --metrics-frequency 0 --ntk-frequency 0 --no-tensorboard --device cpu"
)


def rows_of(folder: Path) -> dict[int, list[tuple]]:
    """seed -> (step, key, value) of each row, without measures of speed"""
    rows = {}
    for run in folder.glob("*__s*"):
        seed = int(re.search(r"__s(\d+)__", run.name)[1])
        with open(run / "scalars.csv") as file:
            read = list(csv.reader(file))
        rows[seed] = [tuple(row[:3]) for row in read if not row[1].startswith("perf/")]
    return rows


def test_a_run_alone_matches_the_run_in_a_batch(tmp_path):
    for name, flags in (("batch", "--num-seeds 3 --threads 2"), ("alone", "--seed 2 --threads 1")):
        words = f"{FLAGS} {flags} --runs-dir {tmp_path / name}".split()
        before = torch.get_num_threads()
        try:
            sac_continuous.main(runlog.parse_args(sac_continuous.Args, words))
        finally:
            torch.set_num_threads(before)
    batch = rows_of(tmp_path / "batch")
    alone = rows_of(tmp_path / "alone")
    assert sorted(batch) == [1, 2, 3] and sorted(alone) == [2]
    assert "losses/qf_loss" in {key for _, key, _ in alone[2]}
    assert alone[2] == batch[2]
