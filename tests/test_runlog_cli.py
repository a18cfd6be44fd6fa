"""Identity, seeds, command line and progress bar of runlog.

`pytest -q tests/test_runlog_cli.py` (2 s).
"""

import dataclasses
import itertools
import re
from typing import Literal

import pytest
import torch
from own_scripts import SCRIPTS, sweep_plan

import runlog
import sac_continuous
from runlog import identity, seeding

CONFIG = {"env_id": "toy", "seed": 1, "rational": {"degrees": (3, 2)}, "device": "cpu"}


def test_hash_and_name():
    assert identity.config_hash({"a": 1, "b": {"c": 2, "d": 3}}, []) == identity.config_hash(
        {"b": {"d": 3, "c": 2}, "a": 1}, []
    )
    digest = identity.config_hash(CONFIG, ["device"])
    assert len(digest) == 10
    assert digest == identity.config_hash({**CONFIG, "device": "cuda"}, ["device"])
    for other in (
        {"seed": 2},
        {"rational": {"degrees": (3, 4)}},
        {"new": None},
        {"env_id": "toy2"},
    ):
        assert identity.config_hash({**CONFIG, **other}, ["device"]) != digest
    name = identity.run_name("dm_control/cheetah-run-v0", "sac", "tanh*tanh", 3, "0123456789")
    assert name == "dm_control-cheetah-run-v0__sac__tanhxtanh__s3__0123456789"
    assert len(identity.run_name("../a b\n" * 99, "sac", "relu+__relu", 3, "f").split("__")) == 5


def test_seeds_are_pinned_and_distinct():
    assert seeding.derive_seed(1, "episode", 12) == 7754415897526863803
    seeds = {
        seeding.derive_seed(s, *k)
        for s, k in itertools.product(
            range(9), ((), ("a",), ("b",), (1,), ("1",), ("a", 1), (1, "a"))
        )
    }
    assert len(seeds) == 63 and all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.rand(2, generator=seeding.make_generator(5, key)) for key in ("x", "x", "y")]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_generators_are_restored_or_name_the_device():
    generators = {use: seeding.make_generator(1, use) for use in ("act", "update")}
    states = {use: generator.get_state() for use, generator in generators.items()}
    draws = [torch.rand(3, generator=generators["update"]) for _ in range(2)]
    seeding.set_states(generators, states)
    assert torch.equal(torch.rand(3, generator=generators["update"]), draws[0])
    assert not torch.equal(*draws)
    with pytest.raises(
        runlog.UserError, match="--device cpu: the run was started on another device; use"
    ):
        # as CUDA's
        seeding.set_states(generators, dict.fromkeys(states, torch.zeros(16, dtype=torch.uint8)))


def test_a_wandb_group_holds_the_seeds_of_one_setting(monkeypatch, tmp_path):
    groups = []
    monkeypatch.setattr(
        runlog.Run, "open", lambda run, wandb_kwargs, **_: groups.append(wandb_kwargs["group"])
    )
    # these runs are never ended, which would release them
    monkeypatch.setattr(runlog.Run, "lock", lambda run: None)
    monkeypatch.setattr(runlog.opening, "group_by_step", lambda runs: [])
    # neither a login nor a GPU
    monkeypatch.setattr(runlog.opening, "check_machine", lambda args: None)
    monkeypatch.setattr(runlog.opening, "probe_machine", lambda args: None)
    for flags in (
        {"seed": 1, "num_seeds": 2},
        {"seed": 7},
        {"utd": 10},
        {"device": "cuda"},
        {"layer_norm": True},
    ):
        args = sac_continuous.Args(track=True, runs_dir=str(tmp_path), **flags)
        with runlog.open_batches(runlog.seed_runs(args, "sac"), args):
            pass
    one, two, three, other, same, norm = groups
    assert one == two == three == same and len({one, other, norm}) == 3


@dataclasses.dataclass
class Nested:
    degree: int = 3
    """numerator degree"""
    form: Literal["A", "B"] = "A"
    """form of the denominator"""


@dataclasses.dataclass
class Args:
    seed: int = 1
    """first seed"""
    compile: bool = True
    """compile the update"""
    rational: Nested = dataclasses.field(default_factory=Nested)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--sed 3", ["--sed", "3", "--seed"]),
        ("--seed abc", ["--seed", "'abc'", "INT"]),
        ("--rational.form C", ["--rational.form", "'C'", "'A', 'B'"]),
        ("--seed", ["--seed", "Missing value"]),
        ("--compile False", ["--compile", "False", "--no-compile"]),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(capsys, argv, expected):
    with pytest.raises(SystemExit) as stop:
        runlog.parse_args(Args, argv.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in expected), err


def test_right_flags_and_help(capsys):
    args = runlog.parse_args(Args, ["--seed", "4", "--rational.degree", "5", "--no-compile"])
    assert args == Args(4, False, Nested(5))
    with pytest.raises(SystemExit) as stop:
        runlog.parse_args(Args, ["--help"])
    assert stop.value.code == 0 and "numerator degree" in capsys.readouterr().out


def test_progress_off_the_terminal_prints_only_notes(capsys):
    bar = runlog.Progress(0, 10, "toy")
    for step in range(1, 11):
        bar.update(step, sps=1)
    bar.note("step 10")
    bar.close()
    assert capsys.readouterr() == ("step 10\n", "")


def test_flags_of_other_scripts_are_refused_with_an_alternative(capsys):
    for script in ("dqn_atari", "ppo_atari", "pqn_atari"):
        for flag in (["--num-seeds", "2"], ["--num_seeds=2"]):
            with pytest.raises(SystemExit, match="2"):
                runlog.parse_args(SCRIPTS[script].Args, flag)
            err = capsys.readouterr().err
            name = f"{script}.py"
            assert err.startswith(f"error: --num-seeds: {name} trains one seed per process; use ")
            grid = re.search("scripts/sweep.py '(.*?)'", err)[1].replace(" ...", "")
            assert sweep_plan.expand(grid) == [f"{name} --seed 1", f"{name} --seed 2"]
    with pytest.raises(SystemExit, match="2"):
        runlog.parse_args(SCRIPTS["continual_supervised"].Args, ["--evaluate"])
    assert capsys.readouterr().err.startswith("error: --evaluate: continual_supervised.py has no ")
