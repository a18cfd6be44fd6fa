"""Every flag of every script with values that no machine can use,
and how much memory and disk a run needs.

`pytest -q tests/test_flags.py` (about 30 s).
"""

import dataclasses
import math
import os
import re

import pytest
import torch
from own_scripts import SCRIPTS

import continual_supervised
import dqn_atari
import function_approximation
import ppo_atari
import pqn_atari
import reports
import runlog
import sac_continuous
from environments import atari
from runlog import cli, memory, seeding

START = {"sac_continuous": "--env-id Pendulum-v1"}  # quick to make
CPU = torch.device("cpu")
WITHOUT_DEFAULT = {
    "steps_per_task": 1,
    "target_kl": 1.0,
    "rational.learning_rate": 1.0,
    "wandb_entity": "",
    "out": "",
}


def refused(script: str, argv: list[str], folder, capfd) -> str:
    """The one-line error of a command that must not start."""
    argv = [*START.get(script, "").split(), "--runs-dir", str(folder / "runs"), *argv]
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        SCRIPTS[script].main(runlog.parse_args(SCRIPTS[script].Args, argv))
    out, err = capfd.readouterr()
    assert (
        stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    ), (argv, out, err)
    assert os.listdir(folder) == [], argv
    return err


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_flag_accepts_unusable_numbers_or_an_empty_text(script, tmp_path, capfd):
    tried = 0
    for name, default, _ in cli._all_fields(SCRIPTS[script].Args()):
        value = WITHOUT_DEFAULT.get(name, default)
        count = len(value) if isinstance(value, tuple) else 1
        first = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, tuple) and not value:
            first = ""
        if isinstance(first, bool):
            continue
        values = ["", "a\0b"]
        if isinstance(first, int):
            values = [str(2**64), str(-(2**64)), "1" + "0" * 400]
        elif isinstance(first, float):
            values = ["nan", "inf", "-inf"]
        for text in values:
            flag = cli.flag_name(name)
            assert flag in refused(script, [flag, *[text] * max(count, 1)], tmp_path, capfd), (
                flag,
                text,
            )
            tried += 1
    assert tried > 60


def test_a_new_field_is_checked_without_being_listed(tmp_path):
    @dataclasses.dataclass
    class Args:
        runs_dir: str = str(tmp_path)
        new: int = 1
        news: tuple[float, ...] = (0.5,)

    cli.check_flags(Args())
    for change in (
        {"new": 2**53 + 1},
        {"new": -(2**64)},
        {"news": (0.5, math.nan)},
        {"runs_dir": " "},
    ):
        (name,) = change
        with pytest.raises(runlog.UserError, match=f"--{name.replace('_', '-')} "):
            cli.check_flags(Args(**change))


def test_the_last_seed_of_a_batch_is_checked_too(tmp_path):
    args = sac_continuous.Args(seed=2**63 - 1, num_seeds=1, runs_dir=str(tmp_path))
    runlog.check_range(args, "[0, inf)", "seed")
    with pytest.raises(
        runlog.UserError, match=rf"--seed {2**63 - 1}: must lie in \[0, {2**63 - 2}\]"
    ):
        runlog.check_range(dataclasses.replace(args, num_seeds=2), "[0, inf)", "seed")
    assert seeding.derive_seeds([2**63 - 1], "x").shape == (1,)


TOO_LARGE = {
    "sac_continuous": [
        "--widths 1000000 1000000",
        "--buffer-size 10000000000000 --total-timesteps 10000000000000",
        "--batch-size 1000000000 --buffer-size 1000000000",
        "--metrics-samples 1000000000",
        "--ntk-samples 100000000",
        "--utd 1000000000",
        "--num-seeds 1000000000",
        "--num-eval-episodes 100000000000000",
        "--threads 100000",
        "--policy-frequency 9007199254740992",
    ],
    "dqn_atari": [
        "--width 100000000",
        "--buffer-size 10000000000000 --total-timesteps 10000000000000",
        "--batch-size 100000000",
        "--metrics-samples 100000000",
        "--ntk-samples 10000000",
        "--num-eval-episodes 100000000",
        "--num-envs 100000000 --train-frequency 100000000 --learning-starts 300000000 "
        "--total-timesteps 400000000 --buffer-size 300000000",
        "--threads 100000",
        "--env-threads 100000",
    ],
    "ppo_atari": [
        "--width 100000000",
        "--num-envs 100000000 --total-timesteps 100000000000",
        "--num-steps 100000000 --total-timesteps 100000000000",
        "--metrics-samples 100000000",
        "--env-threads 100000",
    ],
    "pqn_atari": [
        "--width 100000000",
        "--num-envs 100000000 --total-timesteps 100000000000",
        "--num-steps 100000000 --total-timesteps 100000000000",
        "--num-test-envs 100000000",
    ],
    "continual_supervised": [
        "--widths 1000000 1000000",
        "--num-seeds 1000000000",
        "--channels 100000000 100000000 --network cnn --dataset digits --channels 100000000",
        "--batch-size 10000000",
        "--num-train 10000000",
        "--classes-per-task 11 --tasks split_classes",
        "--num-tasks 3 --tasks split_classes",
    ],
    "function_approximation": [
        "--deep-widths 1000000 1000000",
        "--shallow-units 1000000000000",
        "--num-seeds 1000000000",
        "--num-points 100000000000",
        "--table1-neurons 100000000000",
    ],
}
CASES = []
for name, commands in TOO_LARGE.items():
    CASES += [(name, command) for command in commands]


@pytest.mark.parametrize("script, command", CASES)
def test_what_no_machine_can_hold_is_refused_naming_the_right_flag(
    script, command, tmp_path, capfd
):
    message = refused(script, command.split(), tmp_path, capfd)
    flag = command.split()[0]
    assert message.startswith(f"error: {flag} "), message
    assert re.search(r"need|must|no actor update|classes make 2", message), message


@pytest.mark.parametrize("steps", [50_000, 80_000, 80_003])
def test_dqn_without_an_update_is_refused(steps, tmp_path, capfd):
    message = refused("dqn_atari", ["--total-timesteps", str(steps)], tmp_path, capfd)
    assert f"--total-timesteps {steps}: the first update is at step 80004" in message
    dqn_atari.check_updates(dqn_atari.Args(total_timesteps=80_004))


@pytest.mark.parametrize(
    "num_envs, train_frequency, learning_starts", [(1, 4, 80), (4, 4, 82), (8, 4, 81), (2, 6, 6)]
)
def test_the_step_of_dqns_first_update(num_envs, train_frequency, learning_starts):
    """The first step at which the loop of `train` updates, walked through."""
    before = 0
    while True:
        step = before + num_envs
        if step // train_frequency - max(before, learning_starts) // train_frequency > 0:
            break
        before = step
    args = dqn_atari.Args(
        num_envs=num_envs, train_frequency=train_frequency, learning_starts=learning_starts
    )
    dqn_atari.check_updates(dataclasses.replace(args, total_timesteps=step))
    with pytest.raises(runlog.UserError, match=f"the first update is at step {step} "):
        dqn_atari.check_updates(dataclasses.replace(args, total_timesteps=step - 1))


def test_folders_that_cannot_be_used_are_refused(tmp_path, capfd):
    for flag in ("--runs-dir", "--out"):
        long_path = f"{tmp_path}/{'x' * 300}"
        message = refused("function_approximation", [flag, long_path], tmp_path, capfd)
        assert flag in message
        assert "File name too long" in message
        assert "shorter name" in message
        message = refused("function_approximation", [flag, "/etc/hostname/x"], tmp_path, capfd)
        assert f"{flag} /etc/hostname/x: Not a directory; choose a writable folder" in message
    message = refused(
        "continual_supervised",
        ["--dataset", "mnist", "--data-dir", "/etc/hostname"],
        tmp_path,
        capfd,
    )
    assert "--data-dir /etc/hostname" in message
    data = tmp_path / "data"
    (data / "train-images-idx3-ubyte").mkdir(parents=True)
    argv = ["--dataset", "mnist", "--data-dir", str(data), "--runs-dir", str(tmp_path / "runs")]
    with pytest.raises(runlog.UserError, match=f"--data-dir {data}"):
        continual_supervised.validate(runlog.parse_args(continual_supervised.Args, argv))


# ---- the estimates against what is built ---------------------------------------------------------


def nbytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def near(estimate: float, truth: float) -> bool:
    return truth / 1.5 < estimate < truth * 1.5


@pytest.mark.parametrize("activation", ["relu", "crelu", "tanh_hr", "crational", "tanh+relu_hr"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_memory_of_sac(activation, layer_norm):
    changes = {
        "num_seeds": 3,
        "widths": (64, 48),
        "buffer_size": 700,
        "batch_size": 128,
        "utd": 2,
        "compile": False,
    }
    args = sac_continuous.Args(
        activation=activation, layer_norm=layer_norm, metrics_frequency=0, **changes
    )
    args = dataclasses.replace(args, ntk_frequency=0)
    estimate, _ = sac_continuous.big_tensors(args, 17, 6)
    agent = sac_continuous.Agent(17, 6, args, [1, 2, 3], CPU)
    gradients = [*agent.actor_optimizer.parameters_, *agent.qf_optimizer.parameters_]
    assert near(
        estimate["widths num_seeds"], nbytes(agent.state_dict().values()) + nbytes(gradients)
    )
    buffer = sac_continuous.ReplayBuffer(3, 700, 17, 6, CPU)
    assert estimate["buffer_size num_seeds"] == buffer.rows.nbytes
    buffer.rows.normal_()
    buffer.num_added = 700
    generators = [seeding.make_generator(seed, "x") for seed in (1, 2, 3)]
    batch = buffer.sample(args.utd, args.batch_size, generators=generators)
    noise = seeding.normals(generators, args.utd, 2, args.batch_size, 6, axis=2)
    kept = {}  # what the backward passes need

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    one = {name: part[0] for name, part in batch.items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = agent.actor_loss(one, noise[0, 1])  # the larger one: through the critics too
    known = {p.untyped_storage().data_ptr() for p in agent.state_dict().values()}
    saved = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in known)
    del graph
    update = nbytes(batch.values()) + noise.nbytes
    found = saved + update
    # a relu keeps its output alone, a rational its input as well
    assert found / 2 < estimate["batch_size utd widths num_seeds"] < 2 * found, (
        estimate,
        saved,
        update,
    )


@pytest.mark.parametrize("layer_norm", ["none", "channel", "chw"])
@pytest.mark.parametrize(
    "activation, encoder", [("tanh_hr", ("relu",)), ("crelu", ("crelu", "relu", "tanh_hr"))]
)
def test_memory_of_the_atari_networks(activation, encoder, layer_norm):
    for script in (dqn_atari, ppo_atari, pqn_atari):
        args = script.Args(
            activation=activation, encoder_activation=encoder, layer_norm=layer_norm, width=40
        )
        if script is ppo_atari:
            network = script.Agent(18, args)
            outputs = 19
        else:
            network = script.QNetwork(18, args)
            outputs = 18
        size = atari.nature_cnn_size(encoder, activation, 40, layer_norm, outputs)
        assert size.parameters == sum(p.numel() for p in network.parameters())
        with reports.record_layers(network) as records:
            network(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
        held = outputs
        for record in records.values():
            of_branches = [*record.pre_activations, *record.branch_outputs]
            held += sum(x.numel() for x in of_branches)
            if sum(x.numel() for x in of_branches) > 2 * record.output.numel():
                held += record.output.numel()
            if layer_norm != "none":
                held += 3 * sum(x.numel() for x in record.pre_activations)
        assert near(size.activations, held)


def test_memory_of_rollouts_and_the_disk_of_the_replay(tmp_path):
    for script in (ppo_atari, pqn_atari):
        args = script.Args(
            num_envs=3, num_steps=8, num_minibatches=24, ntk_frequency=0, metrics_frequency=0
        )
        (on_device, _) = script.big_tensors(args)
        rollout = torch.empty(args.num_steps, args.num_envs, 4, 84, 84, dtype=torch.uint8)
        assert on_device["num_steps num_envs"] == rollout.nbytes
    buffer = dqn_atari.ReplayBuffer(tmp_path / "replay.dat", 100, 30, 3)
    rows = dqn_atari.ReplayBuffer.count_rows(100, 30, 3)
    assert len(buffer.rows) == rows
    assert os.path.getsize(tmp_path / "replay.dat") == rows * 3 * dqn_atari.ROW.itemsize


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("activation", ["relu", "crelu", "tanh_hr"])
def test_memory_of_the_classifier_and_of_the_regression(network, activation):
    changes = {
        "network": network,
        "channels": (6,),
        "widths": (30, 20),
        "layer_norm": True,
        "compile": False,
    }
    args = continual_supervised.Args(activation=activation, **changes)
    learner = continual_supervised.Learner(args, (1, 8, 8), 10, 16.0, [1, 2], CPU)
    size = continual_supervised.network_size(args, (1, 8, 8), 10)
    assert 2 * size.parameters == sum(p.numel() for p in learner.network.parameters())
    args = function_approximation.Args(compile=False)
    networks = function_approximation.Networks(activation, (20, 30), [1, 2], [0.1, 0.1], args, CPU)
    assert memory.mlp_size(1, (20, 30), activation, 1).parameters == networks.count()


def test_available_memory(tmp_path):
    here = memory.available_memory(CPU)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < here <= total
    root = tmp_path
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    for folder, limit, used, cached in ((group, "max", 1, 0), (group.parent, 1000, 700, 200)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert memory._left_in_control_groups("0::/job/step\n", root) == [500]
    old = tmp_path / "memory" / "a"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("50")
    (old / "memory.usage_in_bytes").write_text("60")
    (old / "memory.stat").write_text("total_inactive_file 5\n")
    assert memory._left_in_control_groups("5:cpu,memory:/a\n", root) == [0]
    assert memory._left_in_control_groups("0::/elsewhere\n", root) == []


def test_a_run_that_fits_is_not_refused_and_one_that_does_not_names_its_seeds(
    monkeypatch, tmp_path
):
    args = sac_continuous.Args(env_id=("Pendulum-v1",), runs_dir=str(tmp_path), num_seeds=10)
    on_device, on_host = sac_continuous.big_tensors(args, 3, 1)
    needed = sum(on_device.values()) + sum(on_host.values())
    monkeypatch.setattr(memory, "available_memory", lambda device: needed)
    sac_continuous.validate(args)
    monkeypatch.setattr(memory, "available_memory", lambda device: needed - 1)
    with pytest.raises(runlog.UserError, match="--num-seeds 10: the run would need about"):
        sac_continuous.validate(args)
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    sac_continuous.validate(args)
