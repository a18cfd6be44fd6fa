"""--rational.constraint-schedule: how c of a crational moves, against closed forms and a slow loop;
that only updates move it; that such runs repeat, resume and keep their seeds independent.

`OMP_NUM_THREADS=1 pytest -q tests/test_constraint_schedule.py`
"""

import dataclasses
import math

import golden
import numpy as np
import pytest
import test_sac_runs
import torch
import torch.nn as nn

import activations
import continual_supervised
import function_approximation
import optimizers
import runlog
import sac_continuous
import td3_continuous
from activations import Rational, RationalConfig
from runlog import identity

CPU = torch.device("cpu")
ADAPTIVE = RationalConfig(constraint_schedule="adaptive", constraint_momentum=0.8)
ANNEAL = RationalConfig(constraint_schedule="anneal")


def constraints(network: nn.Module) -> list[Rational]:
    return [module for module in network.modules() if isinstance(module, Rational)]


def normal(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start, end", [(5.0, 20.0), (20.0, 5.0), (1.0, 1e4)])
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_anneal_is_linear_in_log_c_and_then_stays(start, end, fraction):
    config = dataclasses.replace(
        ANNEAL, constraint_scale=start, constraint_scale_end=end, constraint_fraction=fraction
    )
    network = activations.mlp(3, (4, 4), "crational*tanh", [1, 2], rational=config)
    for update in range(1, 41):
        activations.step_constraints(network, 40)
        fraction_done = min(update / (fraction * 40), 1)
        for module in constraints(network):
            expected = start ** (1 - fraction_done) * end**fraction_done
            np.testing.assert_allclose(module.scale().detach(), [expected] * 2, rtol=1e-5)
    assert module.scale()[0].item() == pytest.approx(end, rel=1e-6)


def test_ten_million_updates_are_counted_exactly():
    config = dataclasses.replace(ANNEAL, constraint_scale_end=10.0)
    module = Rational(config, True)
    with torch.no_grad():
        module.updates.fill_(2.0**24 - 1)  # from here on a float32 would no longer change
    for _ in range(3):
        module.step_constraint(2**25)
    assert module.updates.item() == 2**24 + 2
    assert module.log_scale.item() == pytest.approx(math.log(5) + 0.5 * math.log(2), rel=1e-6)


def test_fixed_equals_the_older_flag():
    fixed = Rational(RationalConfig(constraint_schedule="fixed"), True)
    older = Rational(RationalConfig(train_constraint_scale=False), True)
    assert not fixed.log_scale.requires_grad and not older.log_scale.requires_grad
    assert fixed.state_dict().keys() == older.state_dict().keys()
    trained = Rational(RationalConfig(), True)
    assert trained.log_scale.requires_grad
    assert trained.state_dict().keys() == older.state_dict().keys()
    for module in (fixed, older, trained):
        activations.step_constraints(module, 10)
        assert module.scale().item() == pytest.approx(5)


@pytest.mark.parametrize("q", [0.5, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 100, 1_001])
def test_upper_quantile_matches_numpy(q, n):
    x = normal(2, 3, n)
    expected = np.quantile(x.numpy(), q, axis=-1)
    np.testing.assert_allclose(activations.upper_quantile(x, q), expected, rtol=1e-5, atol=1e-6)


def slow_quantile(x: np.ndarray, config: RationalConfig) -> float:
    """Of |x|, one seed's batch (rows, ...): of every k-th row, about 4,096 values in all."""
    kept = max(1, 4_096 // x[0].size)
    step = math.ceil(len(x) / kept)
    return np.quantile(np.abs(x[::step]), config.constraint_quantile)


@pytest.mark.parametrize("kind", ["dense", "many", "conv"])
def test_adaptive_against_a_slow_loop(kind):
    """Two seeds, two branches with a constraint, three updates: the recursion in numpy, from the
    pre-activations that each branch's linear has made."""
    config = dataclasses.replace(ADAPTIVE, constraint_margin=1.5, constraint_quantile=0.9)
    options = {"seeds": [1, 2], "rational": config}
    if kind == "conv":
        layer = activations.conv(2, 40, 3, "crational*rational*crational", **options)
        shape = (2, 6, 2, 12, 12)
    else:
        layer = activations.dense(5, 90, "crational*rational*crational", **options)
        shape = (2, 300 if kind == "many" else 20, 5)
    first, plain, second = layer.branches
    assert plain.activation.schedule == "trained"
    running = {k: np.full(2, 5 / 1.5) for k in (0, 2)}
    for update in range(3):
        x = (update + 1) * normal(*shape, seed=update)
        with activations.observing(layer):
            layer(x)
        activations.step_constraints(layer, None)
        for k, branch in ((0, first), (2, second)):
            seen = branch.linear(x).detach().numpy().astype(np.float64)
            for seed in range(2):
                newest = slow_quantile(seen[seed], config)
                running[k][seed] += 0.2 * (newest - running[k][seed])
            np.testing.assert_allclose(branch.activation.quantile, running[k], rtol=1e-5)
            scale = branch.activation.scale().detach()
            np.testing.assert_allclose(scale, 1.5 * running[k], rtol=1e-5)
    assert not np.allclose(running[0], running[2])


def test_adaptive_c_stays_in_its_bounds():
    for size, expected in ((0.0, 1e-5), (1e9, 10**4.5)):
        config = dataclasses.replace(ADAPTIVE, constraint_momentum=0.0)
        module = Rational(config, True)
        with activations.observing(module):
            module(torch.full((4, 3), size))
        activations.step_constraints(module, None)
        assert module.scale().item() == pytest.approx(expected, rel=1e-4)


def test_shared_coefficients_have_one_c():
    for config in (ADAPTIVE, dataclasses.replace(ANNEAL, constraint_fraction=0.5)):
        config = dataclasses.replace(config, share_across_layers=True)
        network = activations.mlp(3, (4, 4), "crational", [1, 2], rational=config)
        first, second = constraints(network)
        assert first.log_scale is second.log_scale
        x = normal(2, 8, 3)
        with activations.observing(network):
            network(x)
        activations.step_constraints(network, 8)
        if config.constraint_schedule == "anneal":
            assert first.scale()[0].item() == pytest.approx(5 * 4 ** (1 / 4))  # one step, not two
            continue
        running = np.full(2, 2.5)
        for layer, inputs in zip(network, (x, network[0](x))):  # layer after layer
            seen = layer.branches[0].linear(inputs).detach().numpy()
            newest = [slow_quantile(x, config) for x in seen]
            running += 0.2 * (np.array(newest) - running)
        # the second layer's inputs were those before c moved
        np.testing.assert_allclose(first.quantile, running, rtol=2e-2)


@pytest.mark.parametrize("config", [ADAPTIVE, ANNEAL])
@pytest.mark.parametrize("form", "AB")
def test_gradients_with_a_scheduled_c(config, form):
    config = dataclasses.replace(config, form=form)
    module = Rational(config, True, (2,)).double()
    x = normal(2, 6, 3).double() * 4
    with activations.observing(module):
        module(x)
    activations.step_constraints(module, 2)
    assert not torch.allclose(module.scale(), torch.tensor(5.0, dtype=torch.float64))
    fixed = Rational(RationalConfig(form=form, constraint_schedule="fixed"), True, (2,)).double()
    with torch.no_grad():
        fixed.log_scale.copy_(module.log_scale)
    trained = [module.numerator, module.denominator]

    def f(x, a, b):
        values = {"numerator": a, "denominator": b}
        return torch.func.functional_call(module, values, x)

    assert torch.autograd.gradcheck(f, (x.clone().requires_grad_(), *trained))
    assert torch.equal(module(x), fixed(x))
    ours = torch.autograd.grad(module(x).square().sum(), trained)
    theirs = torch.autograd.grad(fixed(x).square().sum(), [fixed.numerator, fixed.denominator])
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


# ---- which passes move it ------------------------------------------------------------------------


def test_only_the_differentiated_pass_of_an_update_is_seen():
    network = activations.mlp(3, (4, 4), "crational", [1, 2], rational=ADAPTIVE)
    x = normal(2, 8, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def is_unchanged():
        return all(value.equal(before[name]) for name, value in network.state_dict().items())

    network(x).sum().backward()
    with activations.observing(network), torch.no_grad():
        network(x)
    network(x)
    assert is_unchanged()
    with activations.observing(network):
        network(x)
    assert not is_unchanged()


def test_no_optimiser_trains_a_scheduled_c():
    for config in (ADAPTIVE, ANNEAL, RationalConfig(constraint_schedule="fixed")):
        network = activations.mlp(3, (4, 5), "crational", [1, 2], rational=config)
        names = optimizers.Adam(network, 1e-3, config).names
        assert {name.rpartition(".")[2] for name in names} == {
            "weight",
            "bias",
            "numerator",
            "denominator",
        }


def agent_of(config: RationalConfig, seeds: list[int], **flags) -> sac_continuous.Agent:
    args = sac_continuous.Args(
        activation="crational*crational",
        widths=(6, 5),
        batch_size=8,
        total_timesteps=20,
        learning_starts=11,
        rational=config,
        compile=False,
        tau=0.25,
        **flags,
    )
    return sac_continuous.Agent(3, 2, args, seeds, CPU)


def sac_updates(agent: sac_continuous.Agent, seeds: list[int], number: int) -> None:
    for update in range(number):
        columns = []
        for seed in seeds:
            columns.append(normal(8, 3 + 3 + 2 + 1 + 2 + 2, seed=100 * seed + update))
        obs, next_obs, actions, rewards, *noise = torch.stack(columns).split([3, 3, 2, 1, 2, 2], -1)
        batch = {
            "obs": obs,
            "next_obs": next_obs,
            "actions": actions.tanh(),
            "rewards": rewards.squeeze(-1),
            "terminations": torch.zeros(len(seeds), 8),
        }
        agent.update(batch, torch.stack(noise), True)


def test_targets_track_c_like_any_parameter():
    agent = agent_of(ADAPTIVE, [1, 2])
    online = constraints(agent.qf)[0]
    target = constraints(agent.qf_target)[0]
    expected = target.log_scale.clone()
    for _ in range(4):
        sac_updates(agent, [1, 2], 1)
        expected = expected + 0.25 * (online.log_scale - expected)
        torch.testing.assert_close(target.log_scale.data, expected.data)
    assert not torch.allclose(target.log_scale, online.log_scale)


@pytest.mark.parametrize("config", [ADAPTIVE, ANNEAL])
def test_a_seed_alone_matches_its_seed_in_a_batch(config):
    together = agent_of(config, [1, 2, 3])
    alone = agent_of(config, [2])
    sac_updates(together, [1, 2, 3], 5)
    sac_updates(alone, [2], 5)
    for ours, theirs in zip(constraints(together), constraints(alone)):
        torch.testing.assert_close(ours.scale()[1], theirs.scale()[0], rtol=1e-4, atol=0)
        if config is ADAPTIVE:
            assert len({round(value, 4) for value in ours.scale().flatten().tolist()}) >= 3


def assert_compiled_is_eager(config: RationalConfig, backend: str) -> None:
    eager = agent_of(config, [1, 2])
    sac_updates(eager, [1, 2], 3)
    compiled = agent_of(config, [1, 2])
    compiled.update = torch.compile(
        compiled.one_update, fullgraph=True, dynamic=False, backend=backend
    )
    sac_updates(compiled, [1, 2], 3)
    theirs = compiled.state_dict()
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)
        if name.endswith(("log_scale", "quantile", "updates")):
            torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [ADAPTIVE, ANNEAL])
def test_a_traced_update_equals_the_eager_one(config):
    assert_compiled_is_eager(config, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("config", [ADAPTIVE, ANNEAL])
def test_a_compiled_update_equals_the_eager_one(config):
    assert_compiled_is_eager(config, "inductor")


# ---- runs --------------------------------------------------------------------------------------

ADAPTIVE_FLAGS = (
    "--rational.constraint-schedule adaptive --rational.constraint-momentum 0.9 "
    "--rational.constraint-margin 3"
)
ANNEAL_FLAGS = (
    "--rational.constraint-schedule anneal --rational.constraint-scale 20 "
    "--rational.constraint-scale-end 4 --rational.constraint-fraction 0.75"
)
SHORT = {
    continual_supervised: (
        "--no-compile --no-tensorboard --device cpu --threads 1 --widths 8 6 --num-train 64 "
        "--epochs 2 --num-tasks 3 --batch-size 10 --log-frequency 6 --metrics-samples 32 "
        "--ntk-samples 0 --checkpoint-frequency 6 --num-seeds 2 --activation crational "
    ),
    sac_continuous: (
        f"{test_sac_runs.TINY} --env-id {test_sac_runs.CARTPOLE} --total-timesteps 90 "
        "--checkpoint-frequency 30 --num-seeds 2 --activation crational "
    ),
}


def run(script, folder, flags: str) -> dict[str, list[str]]:
    """run folder -> rows of scalars.csv without the time column"""
    command = [*SHORT.get(script, "").split(), *flags.split(), "--runs-dir", str(folder)]
    script.main(runlog.parse_args(script.Args, command))
    return test_sac_runs.scalars(folder)


@pytest.mark.parametrize("flags", [ADAPTIVE_FLAGS, ANNEAL_FLAGS])
@pytest.mark.parametrize("script", [continual_supervised, sac_continuous], ids=lambda s: s.__name__)
def test_a_killed_run_ends_like_one_never_killed(script, flags, tmp_path, monkeypatch):
    test_sac_runs.short_dm_control(monkeypatch)
    whole = run(script, tmp_path / "a", flags)
    commit = runlog.Run.commit_checkpoint
    calls = []

    def killed(self, *args):
        commit(self, *args)
        calls.append(self)
        if len(calls) == 3:  # the first seed has its second checkpoint, the other does not
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.Run, "commit_checkpoint", killed)
        run(script, tmp_path / "b", flags)
    assert run(script, tmp_path / "b", flags) == whole
    rows = [row.split(",") for row in next(iter(whole.values()))]
    key = next(key for _, key, _ in rows if key.endswith("fc1/c_min"))
    scales = [float(value) for _, name, value in rows if name == key]
    assert len(scales) >= 2 and len(set(scales)) == len(scales)
    if flags == ANNEAL_FLAGS:
        assert scales[-1] == pytest.approx(4)


def test_measuring_changes_nothing(tmp_path, monkeypatch):
    test_sac_runs.short_dm_control(monkeypatch)
    measured = run(sac_continuous, tmp_path / "a", ADAPTIVE_FLAGS)
    bare = run(sac_continuous, tmp_path / "b", f"{ADAPTIVE_FLAGS} --metrics-frequency 0")
    for rows, without in zip(measured.values(), bare.values(), strict=True):
        assert [row for row in rows if ",network/" not in row] == without


OTHERS = {"td3_continuous": td3_continuous, "function_approximation": function_approximation}


@pytest.mark.parametrize("flags", [ADAPTIVE_FLAGS, ANNEAL_FLAGS])
@pytest.mark.parametrize(
    "name",
    [
        *OTHERS,
        pytest.param("dqn_atari", marks=pytest.mark.slow),
        pytest.param("ppo_atari", marks=pytest.mark.slow),
        pytest.param("pqn_atari", marks=pytest.mark.slow),
    ],
)
def test_c_moves_in_every_script(name, flags, tmp_path):
    """The flags of its first golden run; at the end of training c is where it should be."""
    script = OTHERS.get(name) or __import__(name)
    names = "--activation crational"
    if name == "function_approximation":
        names = "--activations crational --deep-activations"
    rows = run(script, tmp_path, f"{golden.TRAININGS[name][0]} {names} {flags}")
    for scalars in rows.values():
        found = [row.split(",") for row in scalars if row.split(",")[1].endswith("c_min")]
        scales = [float(value) for step, _, value in found if step == found[-1][0]]
        assert scales
        for scale in scales:
            if flags == ANNEAL_FLAGS:
                assert scale == pytest.approx(4, rel=1e-5)
            else:
                assert abs(scale - 5) > 1e-5


# ---- identity and wrong values -------------------------------------------------------------------


def test_older_runs_keep_their_names():
    def counted(config: RationalConfig) -> dict:
        args = sac_continuous.Args(rational=config)
        excluded = identity.not_identity(args)
        return identity.identity(dataclasses.asdict(args), excluded)["rational"]

    constraint = [key for key in counted(RationalConfig()) if key.startswith("constraint")]
    assert constraint == ["constraint_power", "constraint_scale"]
    older = counted(RationalConfig(train_constraint_scale=False))
    assert set(older) == set(counted(RationalConfig())) and not older["train_constraint_scale"]
    assert counted(ANNEAL)["constraint_schedule"] == "anneal"


WRONG = {
    "constraint-schedule": {"constraint_schedule": "annealed"},
    "constraint-scale-end 0.0": {"constraint_scale_end": 0.0},
    "constraint-scale-end -3.0": {"constraint_scale_end": -3.0},
    "constraint-scale-end nan": {"constraint_scale_end": math.nan},
    "constraint-fraction 0.0": {"constraint_fraction": 0.0},
    "constraint-fraction 1.5": {"constraint_fraction": 1.5},
    "constraint-margin 0.0": {"constraint_schedule": "adaptive", "constraint_margin": 0.0},
    "constraint-margin 1e-300": {
        "constraint_schedule": "adaptive",
        "constraint_margin": 1e-300,
    },
    "constraint-margin inf": {"constraint_schedule": "adaptive", "constraint_margin": math.inf},
    "constraint-quantile 1.1": {"constraint_schedule": "adaptive", "constraint_quantile": 1.1},
    "constraint-momentum 1.0": {"constraint_schedule": "adaptive", "constraint_momentum": 1.0},
    "constraint-margin 3.0": {"constraint_margin": 3.0},  # nothing would use it
    "constraint-scale-end 9.0": {"constraint_schedule": "adaptive", "constraint_scale_end": 9.0},
    "constraint-schedule fixed": {"constraint_schedule": "fixed", "remove_constraint": True},
    "no-train-constraint-scale": {
        "constraint_schedule": "anneal",
        "train_constraint_scale": False,
    },
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_options_name_their_flag(option):
    with pytest.raises(ValueError, match=f"^--rational.{option}"):
        RationalConfig(**WRONG[option])


@pytest.mark.parametrize("script", [sac_continuous, td3_continuous, continual_supervised])
@pytest.mark.parametrize("activation", ["relu", "tanh*rational"])
def test_a_schedule_without_a_constraint_is_an_error(script, activation, tmp_path, capsys):
    flags = f"--activation {activation} --rational.constraint-schedule adaptive"
    with pytest.raises(SystemExit) as ended, runlog.exit_on_user_error():
        run(script, tmp_path / "runs", f"{flags} --device cpu")
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [
        f"error: --rational.constraint-schedule adaptive: {activation} has no |x/c|^d; "
        "use crational"
    ]
    assert not (tmp_path / "runs").exists()
    activations.check_schedule(["relu", "tanh*crational"], ADAPTIVE)


def test_an_option_of_another_schedule_is_refused_in_one_line(capsys):
    flags = "--rational.constraint-schedule anneal --rational.constraint-margin 3"
    with pytest.raises(SystemExit) as ended:
        runlog.parse_args(sac_continuous.Args, flags.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: --rational.constraint-margin 3.0: needs --rational.constraint-schedule adaptive "
        "(--help lists every flag)\n"
    )
