"""Single updates and metrics: on a GPU as on the CPU,
compiled as eager, and without waiting for the GPU.

`make test-gpu` where there is one (about a minute); `pytest -q tests/test_gpu_updates.py -m "not
gpu and not slow"` runs the same bodies on the CPU (about 30 s). Tolerances are relative to the
largest entry of a tensor. Float32 rounds to 6e-8; sums of a few hundred products and two updates
after each other make 1e-5 of it, and 1e-4 behind the convolutions of the Atari networks with their
3,136 inputs of the dense layer. TF32 would be off by 1e-3. Adam's epsilon is large here: else the
first step is the sign of the gradient, which rounding decides near 0.
"""

import contextlib
import dataclasses
import gc
import itertools
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import (
    CPU_AND_CUDA,
    CUDA_MARKS,
    META_AND_CUDA,
    RecordingOnTheCpu,
    SameGames,
    assert_close,
    draw_the_same_everywhere,
    replay_without_a_gpu,
)
from torch.utils._python_dispatch import TorchDispatchMode

import continual_supervised
import dqn_atari
import function_approximation
import metrics
import optimizers
import ppo_atari
import pqn_atari
import reports
import runlog
import sac_continuous
from runlog import cudagraphs, seeding, transfer
from runlog.divergence import Divergence

CPU = torch.device("cpu")
EPS = 1e-2  # of Adam
OBS = 5
ACTIONS = 2
BATCH = 7
SEEDS = [1, 2]
SAC = sac_continuous.Args(
    compile=False, widths=(8, 6), activation="crational", learning_rate=1e-2, tau=0.1, utd=4
)
ATARI = {"dqn_atari": dqn_atari, "ppo_atari": ppo_atari, "pqn_atari": pqn_atari}
NETWORK_OF = {"dqn_atari": "QNetwork", "ppo_atari": "Agent", "pqn_atari": "QNetwork"}
ALL = (
    "--no-tensorboard --threads 1 --width 8 --metrics-frequency 0 --ntk-frequency 0 "
    "--activation tanh_hr --seed 3"
)
ALL += " --encoder-activation tanh --checkpoint-minutes 0"
ROLLOUTS = "--num-envs 2 --num-steps 8 --num-minibatches 2 --update-epochs 1 --total-timesteps 16"
DQN = (
    "--num-envs 2 --total-timesteps 16 --learning-starts 8 --batch-size 4 --buffer-size 16 "
    "--target-frequency 8"
)
DQN += f" --start-epsilon 1 --final-epsilon 1 --adam-eps {EPS} --learning-rate 1e-2"
FLAGS = {
    "dqn_atari": DQN,
    "ppo_atari": f"{ROLLOUTS} --adam-eps {EPS} --learning-rate 1e-2",
    "pqn_atari": f"{ROLLOUTS} --num-test-envs 0 --learning-rate 1e-2",
}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """As runlog.open_batches sets it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# ---- one update on the device is that of the CPU in float64; compiled it is the eager one --------


def sac_batch(u: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(u)
    batch = {
        "obs": torch.randn(2, BATCH, OBS, generator=generator),
        "actions": torch.randn(2, BATCH, ACTIONS, generator=generator).tanh(),
        "rewards": torch.randn(2, BATCH, generator=generator),
        "terminations": (torch.rand(2, BATCH, generator=generator) < 0.4).float(),
        "next_obs": torch.randn(2, BATCH, OBS, generator=generator),
    }
    return batch, torch.randn(2, 2, BATCH, ACTIONS, generator=generator)


def sac_agent(device: torch.device, compiled: bool = False) -> sac_continuous.Agent:
    args = dataclasses.replace(SAC, compile=compiled)
    with pytest.MonkeyPatch.context() as patch:  # an epsilon is part of compiled code
        patch.setattr(optimizers, "Adam", partial(optimizers.Adam, eps=EPS))
        return sac_continuous.Agent(OBS, ACTIONS, args, SEEDS, device)


def after_sac(
    device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> dict[str, torch.Tensor]:
    agent = sac_agent(device, compiled).to(dtype)
    for u in range(2):
        batch, noise = sac_batch(u)
        batch = {name: x.to(device, dtype) for name, x in batch.items()}
        info = agent.update(batch, noise.to(device, dtype), True)
    return agent.state_dict() | info


def after_continual(
    network: str, device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> dict:
    args = continual_supervised.Args(
        compile=compiled, network=network, channels=(4,), widths=(8,), l2=1e-3
    )
    args = dataclasses.replace(args, activation="crational", layer_norm=True, learning_rate=1e-2)
    learner = continual_supervised.Learner(args, (1, 8, 8), 3, 16.0, SEEDS, device).to(dtype)
    learner.optimizer.eps = EPS
    pixels = learner.pixels
    learner.pixels = lambda *x: pixels(*x).to(dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(17, (20, 64), generator=generator, dtype=torch.uint8).to(device)
    order = torch.stack([torch.randperm(64, generator=generator) for _ in SEEDS]).to(device)
    for _ in range(2):
        rows = torch.randint(20, (2, BATCH), generator=generator).to(device)
        labels = torch.randint(3, (2, BATCH), generator=generator).to(device)
        loss, accuracy = learner.update(images, rows, labels, order)
    return learner.state_dict() | {"loss": loss, "accuracy": accuracy}


def after_regression(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> dict:
    args = function_approximation.Args(compile=compiled)
    networks = function_approximation.Networks(
        "tanh_hr", (8, 6), SEEDS, (1e-3, 1e-2), args, device
    ).to(dtype)
    networks.optimizer.eps = EPS
    x = torch.linspace(-1, 1, 16).to(device, dtype)
    for _ in range(2):
        loss = networks.update(x)
    return networks.state_dict() | {"loss": loss}


UPDATES = {
    "sac": after_sac,
    "continual_mlp": partial(after_continual, "mlp"),
    "continual_cnn": partial(after_continual, "cnn"),
    "regression": after_regression,
}


@pytest.mark.parametrize("device", CPU_AND_CUDA)
@pytest.mark.parametrize("name", UPDATES)
def test_float32_updates_match_the_cpu_in_float64(name, device):
    found = UPDATES[name](torch.device(device), torch.float32)
    expected = UPDATES[name](CPU, torch.float64)
    assert_close(found, expected, 2e-4 if "cnn" in name else 5e-5)


# On the CPU the compilation takes half a minute for SAC, and tests/test_sac.py has it
COMPILED = [
    (name, device)
    for name, device in itertools.product(("regression", "continual_mlp", "sac"), ("cpu", "cuda"))
]
COMPILED = [
    pytest.param(*pair, marks=CPU_AND_CUDA[1].marks if pair[1] == "cuda" else pytest.mark.slow)
    for pair in COMPILED
]


@pytest.mark.parametrize("name, device", COMPILED)
def test_compiled_updates_match_the_eager_ones(name, device):
    found = UPDATES[name](torch.device(device), torch.float32, compiled=True)
    expected = UPDATES[name](torch.device(device), torch.float32)
    assert_close(found, expected, 5e-5)


def train_atari(script: str, monkeypatch, folder, flags: str) -> dict[str, torch.Tensor]:
    """Trains on games that are the same everywhere; what the checkpoint has of the network."""
    module = ATARI[script]
    with monkeypatch.context() as patch:
        patch.setattr(module, "make_games", SameGames)
        draw_the_same_everywhere(patch)
        argv = f"{ALL} {FLAGS[script]} --runs-dir {folder} {flags}".split()
        module.main(runlog.parse_args(module.Args, argv))
    (checkpoint,) = folder.glob("*/checkpoint.pt")
    state = torch.load(checkpoint)["state"]
    return state["agent" if script == "ppo_atari" else "q_network"]


def train_atari_in_float64(script: str, monkeypatch, folder) -> dict[str, torch.Tensor]:
    """On the CPU. The weights are drawn in float32, as in the others."""
    module = ATARI[script]
    network_class = getattr(module, NETWORK_OF[script])

    def make_network(*args):
        torch.set_default_dtype(torch.float32)
        network = network_class(*args)
        torch.set_default_dtype(torch.float64)
        return network.double()

    with monkeypatch.context() as patch:
        patch.setattr(module, NETWORK_OF[script], make_network)
        try:
            torch.set_default_dtype(torch.float64)
            return train_atari(script, monkeypatch, folder, "--device cpu --no-compile")
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
@pytest.mark.parametrize("script", ATARI)
def test_atari_float32_updates_match_the_cpu_in_float64(script, device, tmp_path, monkeypatch):
    found = train_atari(script, monkeypatch, tmp_path / "found", f"--device {device} --no-compile")
    expected = train_atari_in_float64(script, monkeypatch, tmp_path / "expected")
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert {x.dtype for x in expected.values()} == {torch.float64}
    assert_close(found, expected, 2e-4)


ATARI_COMPILED = [pytest.param("pqn_atari", "cpu", marks=pytest.mark.slow)]
ATARI_COMPILED += [pytest.param(script, "cuda", marks=CPU_AND_CUDA[1].marks) for script in ATARI]


@pytest.mark.parametrize("script, device", ATARI_COMPILED)
def test_atari_compiled_updates_match_the_eager_ones(script, device, tmp_path, monkeypatch):
    found = train_atari(script, monkeypatch, tmp_path / "found", f"--device {device} --compile")
    expected = train_atari(
        script, monkeypatch, tmp_path / "expected", f"--device {device} --no-compile"
    )
    assert_close(found, expected, 2e-4)


# ---- --cudagraphs trains as without --------------------------------------------------------------

# four iterations of four minibatches; DQN: ten updates, and actions of the network
LONGER = {
    "dqn_atari": "--total-timesteps 48 --start-epsilon 0.5 --final-epsilon 0.5",
    "ppo_atari": "--total-timesteps 64 --update-epochs 2",
    "pqn_atari": "--total-timesteps 64 --update-epochs 2",
}
NUM_UPDATES = {"dqn_atari": 10, "ppo_atari": 16, "pqn_atari": 16}
GRAPHED = [
    ("cpu", "--no-compile"),
    pytest.param("cuda", "--no-compile", marks=CUDA_MARKS),
    pytest.param("cuda", "--compile", marks=CUDA_MARKS),
]


def stop_at_32(run, step, draw_plots):
    if step == 32:
        raise KeyboardInterrupt


@pytest.mark.parametrize("case", ["whole", "resumed", "redo"])
@pytest.mark.parametrize("device, compiled", GRAPHED)
@pytest.mark.parametrize("script", ATARI)
def test_cudagraphs_do_not_change_atari_training(
    script, device, compiled, case, tmp_path, monkeypatch
):
    """The learning rate of PPO and PQN falls from iteration to iteration, DQN's target network is
    copied between the updates, and ReDo recycles neurons in place."""
    if compiled == "--compile" and case != "whole":
        pytest.skip("the compiled update is captured in one test: compilation takes long")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    flags = f"--device {device} {compiled} {LONGER[script]} --checkpoint-frequency 16"
    if case == "redo":
        flags += " --redo --redo-period 5 --redo-tau 0.5"

    def train(folder, extra) -> dict[str, torch.Tensor]:
        if case == "resumed":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(runlog.Batch, "draw", stop_at_32)
                train_atari(script, monkeypatch, folder, f"{flags} {extra}")
            recordings.clear()
        return train_atari(script, monkeypatch, folder, f"{flags} {extra}")

    recordings = []
    expected = train(tmp_path / "without", "--no-cudagraphs")
    if device == "cpu":
        recordings = replay_without_a_gpu(monkeypatch)
    found = train(tmp_path / "with", "--cudagraphs")
    if device == "cpu":
        acting, update = recordings
        num_updates = NUM_UPDATES[script]
        if case == "resumed":
            num_updates = {"dqn_atari": 4}.get(script, 8)
        assert (update.num_warm_ups, update.num_replays) == (3, num_updates - 3)
        assert acting.num_replays > 3
    # of PPO and PQN the learning rate is a float32 number
    tolerance = 0.0 if script == "dqn_atari" else 1e-5
    assert_close(found, expected, tolerance if device == "cpu" else 1e-3)


def test_what_cannot_be_captured_ends_in_one_line(monkeypatch):
    x = torch.ones(3)
    replay_without_a_gpu(monkeypatch)
    monkeypatch.setattr(RecordingOnTheCpu, "capture", lambda *_: 1 / 0)
    call = cudagraphs.graphed(lambda x: x * x.sum().item())
    for _ in range(3):
        assert call(x).sum() == 9
    with pytest.raises(runlog.UserError, match=r"--cudagraphs: .*by zero.*; use --no-cudagraphs"):
        call(x)


WAITS = """
import torch, runlog
from runlog import cudagraphs
with runlog.exit_on_user_error():
    call = cudagraphs.graphed(lambda x: x * x.sum().item())
    for _ in range(4):
        print(call(torch.ones(3, device="cuda")).sum().item())
"""


@pytest.mark.parametrize("device", CPU_AND_CUDA[1:])
def test_a_block_that_waits_for_the_device_ends_in_one_line(device):
    """In a separate process, since a failed capture may leave it unable to continue."""
    root = Path(cudagraphs.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", WAITS], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == ["9.0"] * 3, done.stdout + done.stderr
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --cudagraphs: "), done.stderr


@pytest.mark.parametrize("first", ["--compile", "--no-compile"])
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CPU_AND_CUDA[1]])
def test_pqn_resumes_across_eager_and_compiled(first, device, tmp_path, monkeypatch):
    """Of the two optimisers one has its step counts on the GPU, the other on the CPU."""

    def stop(run, step, draw_plots):
        raise KeyboardInterrupt

    second = {"--compile": "--no-compile", "--no-compile": "--compile"}[first]
    flags = f"--device {device} --total-timesteps 32 --checkpoint-frequency 16"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.Run, "draw", stop)
        train_atari("pqn_atari", monkeypatch, tmp_path, f"{flags} {first}")
    network = train_atari("pqn_atari", monkeypatch, tmp_path, f"{flags} {second}")
    assert all(x.isfinite().all() for x in network.values())
    (checkpoint,) = tmp_path.glob("*/checkpoint.pt")
    optimizer = torch.load(checkpoint)["state"]["optimizer"]
    assert {float(state["step"]) for state in optimizer["state"].values()} == {4.0}


# ---- nothing waits for the GPU inside an update --------------------------------------------------


@contextlib.contextmanager
def no_sync(device: str):
    """On CUDA anything that waits for the GPU raises; "meta" tensors raise by themselves."""
    if device != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def same_parameter_objects():
    """module.to("meta") would make new ones, which the optimiser does not have."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("device", ["meta"])
def test_a_meta_tensor_raises_where_a_gpu_would_have_to_be_waited_for(device):
    x = torch.ones(3, device=device)
    for wait in (
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x.nonzero(),
        lambda: x[x > 0],
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with pytest.raises(RuntimeError):
        torch.add(x, torch.ones(3))
    with pytest.raises(RuntimeError, match="waits for the device"), NoValues():
        torch.ones(3).sum().item()


@pytest.mark.parametrize("device", META_AND_CUDA)
def test_an_update_block_of_sac_does_not_wait(device):
    with same_parameter_objects():
        agent = sac_agent(torch.device(device))
    divergence = Divergence(SEEDS, torch.device(device))
    batch, noise = sac_batch(0)
    batch = {name: x.to(device) for name, x in batch.items()}
    noise = noise.to(device)
    for step in range(1, 3):  # the first CUDA call of a kind loads libraries
        with no_sync(device) if step == 2 else contextlib.nullcontext():
            for u in range(4):
                info = agent.update(batch, noise, u % 2 == 1)
            divergence.update(step, {key: info[key] for key in ("qf_loss", "actor_loss")})
    assert info["alpha"].device.type == device and divergence.step.device.type == device


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_a_draw_from_the_replay_does_not_wait(device):
    """Generators do not draw on "meta"; on the CPU this only runs."""
    on_device = torch.device(device)
    buffer = sac_continuous.ReplayBuffer(2, 10, OBS, ACTIONS, on_device)
    buffer.rows.normal_()
    buffer.num_added = 7
    generators = [seeding.make_generator(seed, "update", device=on_device) for seed in SEEDS]
    with no_sync(device):
        batches = buffer.sample(4, BATCH, generators=generators)
        noise = seeding.normals(generators, 4, 2, BATCH, ACTIONS, axis=2)
    assert batches["obs"].shape == (4, 2, BATCH, OBS) and noise.shape == (4, 2, 2, BATCH, ACTIONS)
    # a graph keeps its inputs like this: the update is compiled for one layout
    assert all(column.is_contiguous() for column in batches.values())


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_uploads_keep_their_values_when_more_follow(device):
    upload = transfer.Uploader(torch.device(device))
    arrays = [np.full((1_000, 100), number, np.uint8) for number in range(20)]
    uploaded = [upload(array) for array in arrays]
    for array, x in zip(arrays, uploaded):
        assert x.device.type == device
        np.testing.assert_array_equal(x.cpu().numpy(), array)


@pytest.mark.parametrize("device", META_AND_CUDA)
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_an_update_of_continual_does_not_wait(network, device):
    args = continual_supervised.Args(
        compile=False, network=network, channels=(4,), widths=(8,), layer_norm=True
    )
    with same_parameter_objects():
        learner = continual_supervised.Learner(
            args, (1, 8, 8), 3, 16.0, SEEDS, torch.device(device)
        )
    images = torch.zeros(20, 64, dtype=torch.uint8, device=device)
    rows = torch.zeros(2, BATCH, dtype=torch.int64, device=device)
    order = torch.zeros(2, 64, dtype=torch.int64, device=device)
    learner.update(images, rows, rows, order)
    with no_sync(device):
        loss, accuracy = learner.update(images, rows, rows, order)
    assert loss.device.type == accuracy.device.type == device


@pytest.mark.parametrize("device", META_AND_CUDA)
def test_an_update_of_regression_does_not_wait(device):
    args = function_approximation.Args(compile=False)
    networks = function_approximation.Networks("crational", (8,), SEEDS, (1e-3, 1e-2), args, CPU)
    gc.collect()  # views of the biases
    with same_parameter_objects():
        networks.to(device)
    # rates of a network that was made there
    networks.optimizer.lr = [
        lr.to(device) if torch.is_tensor(lr) else lr for lr in networks.optimizer.lr
    ]
    x = torch.zeros(16, device=device)
    divergence = Divergence(SEEDS, torch.device(device))
    networks.update(x)
    with no_sync(device):
        divergence.update(1, {"loss": networks.update(x)})
    assert divergence.step.device.type == device


class NoValues(TorchDispatchMode):
    """On the CPU: raises where a value or a shape that depends on values is asked for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if any(
            part in name
            for part in (
                "_local_scalar_dense",
                "nonzero",
                "is_nonzero",
                "masked_select",
                "aten.equal",
            )
        ):
            raise RuntimeError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", CPU_AND_CUDA)
@pytest.mark.parametrize("script", ATARI)
def test_an_atari_update_does_not_wait(script, device, tmp_path, monkeypatch):
    """From clearing the gradients to the optimiser's step, but for DQN's replay, which is on the
    disk. (RAdam's step counts are on the CPU and are read there; on the CPU they look like any
    other, so its step is left out.)"""
    open_modes = []
    num_updates = 0

    def begin():
        mode = no_sync("cuda") if device == "cuda" else NoValues()
        mode.__enter__()
        open_modes.append(mode)

    def end():
        if open_modes:
            open_modes.pop().__exit__(None, None, None)

    def zero_grad(optimizer, *args, **kwargs):
        clear(optimizer, *args, **kwargs)
        begin()

    def step_of(optimizer_class):
        step = optimizer_class.step

        def bracketed(optimizer):
            nonlocal num_updates
            if device == "cpu":
                end()
            step(optimizer)
            end()
            num_updates += 1

        return bracketed

    def sample(*args, **kwargs):
        was_open = bool(open_modes)
        end()
        batch = draw(*args, **kwargs)
        if was_open:
            begin()
        return batch

    clear = torch.optim.Optimizer.zero_grad
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", zero_grad)
    if script == "dqn_atari":
        draw = dqn_atari.ReplayBuffer.sample
        monkeypatch.setattr(dqn_atari.ReplayBuffer, "sample", sample)
    for optimizer_class in (torch.optim.AdamW, torch.optim.RAdam):
        monkeypatch.setattr(optimizer_class, "step", step_of(optimizer_class))
    try:
        train_atari(script, monkeypatch, tmp_path, f"--device {device} --no-compile")
    finally:
        end()
    assert num_updates >= 2


# ---- metrics on the device are those of the CPU --------------------------------------------------


def features() -> torch.Tensor:
    """(seeds, samples, neurons) float32; neuron 3 is dead at a constant,
    4 at 0, 5 nearly dead, and ranks are below full."""
    generator = torch.Generator().manual_seed(0)
    low_rank = torch.randn(2, 300, 5, generator=generator) @ torch.randn(
        2, 5, 12, generator=generator
    )
    x = torch.tanh(low_rank)
    x[..., 3] = 0.7
    x[..., 4] = 0.0
    x[..., 5] *= 1e-3
    return x


def of_features(device: str) -> dict[str, torch.Tensor]:
    x = features().to(device)
    found = {}
    found["kde_dead"], found["kde_peak"] = metrics.dead_neurons_kde(x)
    found["kde_grid"], found["kde_density"] = metrics.kde_curves(x[..., :3], 32)
    found["std_dead"], found["std"] = metrics.dead_neurons_std(x)
    found["dormant"], found["dormancy"] = metrics.dormant_neurons(x)
    found["dormant_centred"], found["dormancy_centred"] = metrics.dormant_neurons(
        x, subtract_mean=True
    )
    found["effective_rank"] = metrics.effective_rank(x)
    found["stable_rank"] = metrics.stable_rank(x)
    found["entropy_rank"] = metrics.entropy_rank(x)
    found["feature_norm"] = metrics.feature_norm(x)
    found["quantiles"] = metrics.preactivation_quantiles(x)
    found["counts"], found["edges"] = metrics.histogram(x)
    found["dead_part"], found["live_part"] = metrics.hidden_bias(
        x, found["kde_dead"], torch.ones(2, 3, 12, device=device)
    )
    return found


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_metrics_match_the_cpu(device):
    found = of_features(device)
    expected = of_features("cpu")
    assert {x.device.type for x in found.values()} == {device}
    counts = found.pop("counts").cpu()
    moved = (counts - expected.pop("counts")).abs().sum().item()
    assert moved <= 8, f"histogram: {moved / 2:g} values of {counts.sum()} lie in another bin"
    for name in ("kde_dead", "std_dead", "dormant", "dormant_centred", "effective_rank"):
        assert torch.equal(found[name].cpu(), expected[name]), f"{name} differs"
    # the candidate of the density: a float32 grid, see dead_neurons_kde
    assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_network_reports_and_ntk_ranks_match_the_cpu(device):
    """More samples than the report looks at: it chooses the same ones everywhere."""
    found_reports = []
    ranks = []
    for place in (device, "cpu"):
        agent = sac_agent(torch.device(place))
        generator = torch.Generator().manual_seed(0)
        obs = torch.randn(2, 200, OBS, generator=generator).to(place)
        actions = torch.randn(2, 200, ACTIONS, generator=generator).tanh().to(place)
        q_sum = agent.qf(obs, actions).square().sum()
        grads = torch.autograd.grad(q_sum, agent.qf_optimizer.parameters_)
        grads = dict(zip(agent.qf_optimizer.names, grads))
        found_reports.append(
            reports.network_report(agent.qf, (obs, actions), grads, 2, max_samples=100)
        )
        ranks.append(metrics.ntk_rank(agent.qf, (obs[:, :6], actions[:, :6]), 2, 1))
    found, expected = found_reports
    # coefficients of rationals amplify: |b_j x^j|
    assert_close(found.scalars, expected.scalars, 1e-3)
    curves = [{key: curve[1] for key, curve in report.curves.items()} for report in found_reports]
    assert_close(*curves, 1e-3)
    edges = [{key: pair[1] for key, pair in report.histograms.items()} for report in found_reports]
    assert_close(*edges, 1e-4)
    condition = [rank.pop("condition").log().cpu() for rank in ranks]
    torch.testing.assert_close(
        *condition, rtol=0, atol=0.05, msg=lambda text: f"condition of the NTK: {text}"
    )
    assert_close(*ranks, 1e-4)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_ntk_ranks_of_the_atari_network_match_the_cpu(device):
    ranks = []
    obs = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (4, 4, 84, 84), dtype=np.uint8)
    )
    for place in (device, "cpu"):
        network = pqn_atari.QNetwork(4, pqn_atari.Args(width=8)).to(
            place, memory_format=torch.channels_last
        )
        ranks.append(metrics.ntk_rank(network, (obs.to(place),)))
    for rank in ranks:
        rank["condition"] = rank["condition"].log()
    assert_close(*ranks, 1e-2)


@pytest.mark.parametrize("device", CPU_AND_CUDA)
def test_redo_recycles_the_same_neurons_as_on_the_cpu(device):
    states = []
    for place in (device, "cpu"):
        args = continual_supervised.Args(
            compile=False, network="cnn", channels=(4,), widths=(8,), redo_tau=0.9
        )
        learner = continual_supervised.Learner(args, (1, 8, 8), 3, 16.0, SEEDS, torch.device(place))
        x = torch.rand(2, 30, 64, generator=torch.Generator().manual_seed(0)).to(place)
        recycled = learner.recycle(x, [seeding.make_generator(seed, "redo") for seed in SEEDS])
        assert (recycled > 0).all()
        states.append(learner.state_dict() | {"recycled": recycled})
    assert_close(*states, 1e-5)
