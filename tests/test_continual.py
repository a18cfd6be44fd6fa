"""continual_supervised.py: tasks, the update against torch's own layers and optimiser,
runs that repeat and resume.

`pytest -q tests/test_continual.py` (about 40 s).
"""

import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import continual_supervised as script
import metrics
import runlog

TINY = (
    "--no-compile --no-tensorboard --device cpu --threads 1 --widths 8 6 --num-train 64 --epochs 2 "
    "--num-tasks 3"
)
# 6 updates per epoch, 12 per task
TINY += " --batch-size 10 --log-frequency 6 --metrics-samples 32 --ntk-samples 12"


def parse(flags: str) -> script.Args:
    return runlog.parse_args(script.Args, [*TINY.split(), *flags.split()])


def run(folder, flags: str = "") -> dict[str, dict[tuple[int, str], str]]:
    """Runs the command in this process; run folder -> (step, key) -> value as written."""
    script.main(parse(f"--runs-dir {folder} {flags}"))
    return scalars(folder)


def scalars(folder) -> dict[str, dict[tuple[int, str], str]]:
    found = {}
    for file in sorted(Path(folder).glob("*/scalars.csv")):
        rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
        found[file.parent.name] = {(int(step), key): value for step, key, value, _ in rows}
        assert len(rows) == len(found[file.parent.name])
    return found


def some_images() -> torch.Tensor:
    """300 images of 64 pixels, as the learner takes them."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(17, size=(300, 64)).astype(np.uint8))


@pytest.mark.parametrize(
    "flags", ["--activation relu", "--activation tanh --l2 0.01", "--activation relu --layer-norm"]
)
def test_updates_equal_torch_in_float64(flags):
    """The middle one of three seeds against nn.Linear, nn.CrossEntropyLoss and torch.optim.Adam."""
    args = parse(flags)
    learner = script.Learner(args, (1, 8, 8), 10, 16.0, [1, 2, 3], torch.device("cpu"))
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[args.activation]
    sizes = (64, 8, 6)
    reference = nn.Sequential()
    for i, layer in enumerate(learner.network.hidden):
        reference.append(nn.Linear(sizes[i], sizes[i + 1]))
        reference[-1].weight.data = layer.branches[0].linear.weight[1].detach().T.clone()
        reference[-1].bias.data.zero_()
        reference.extend([nn.LayerNorm(sizes[i + 1])] if args.layer_norm else []).append(act())
    reference.append(nn.Linear(6, 10))
    reference[-1].weight.data = learner.network.head.weight[1].detach().T.clone()
    reference[-1].bias.data = torch.zeros(10)
    reference.double()
    adam = torch.optim.Adam(reference.parameters(), 1e-3)
    loss_of = nn.CrossEntropyLoss()
    images = some_images()
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        rows = torch.randint(300, (3, 10), generator=generator)
        labels = torch.randint(10, (3, 10), generator=generator)
        loss, accuracy = learner.update(images, rows, labels, None)
        logits = reference(images[rows[1]].double() / 16)
        expected = loss_of(logits, labels[1])
        penalty = args.l2 * sum(p.square().sum() for p in reference.parameters())
        adam.zero_grad()
        (expected + penalty).backward()
        adam.step()
        assert loss[1].item() == pytest.approx(expected.item(), rel=1e-4)
        assert accuracy[1].item() == pytest.approx(
            (logits.argmax(-1) == labels[1]).double().mean().item()
        )
    ours = []
    for layer in learner.network.hidden:
        (branch,) = layer.branches
        ours += [branch.linear, *([branch.norm] if args.layer_norm else [])]
    ours.append(learner.network.head)
    theirs = [module for module in reference if isinstance(module, (nn.Linear, nn.LayerNorm))]
    for mine, other in zip(ours, theirs, strict=True):
        weight = other.weight.T if isinstance(other, nn.Linear) else other.weight
        torch.testing.assert_close(mine.weight[1].double(), weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(mine.bias[1].double(), other.bias, rtol=1e-3, atol=1e-5)


def test_l2_is_on_weights_and_biases_and_not_on_coefficients(monkeypatch):
    """The gradients that Adam gets, less those of the cross-entropy: 2 * 0.3 times the value."""
    learner = script.Learner(
        parse("--activation crational --l2 0.3"), (1, 8, 8), 10, 16.0, [1, 2], torch.device("cpu")
    )
    named = dict(zip(learner.optimizer.names, learner.optimizer.parameters_))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in named.items():
            if name.endswith("bias"):
                parameter.normal_(generator=generator)
    rows = torch.randint(300, (2, 10), generator=generator)
    labels = torch.randint(10, (2, 10), generator=generator)
    logits = learner.network(learner.pixels(some_images(), rows, None))
    losses = [nn.functional.cross_entropy(logits[i], labels[i]) for i in (0, 1)]
    of_loss = torch.autograd.grad(losses[0] + losses[1], [*named.values()])
    given = []
    monkeypatch.setattr(learner.optimizer, "step", lambda grads: given.extend(grads))
    learner.one_update(some_images(), rows, labels, None)
    penalised = set()
    for (name, parameter), gradient, plain in zip(named.items(), given, of_loss, strict=True):
        penalty = gradient - plain
        if penalty.abs().max() > 1e-5:
            torch.testing.assert_close(penalty, 0.6 * parameter, rtol=1e-4, atol=1e-5)
            penalised.add(name.rsplit(".", 1)[-1])
    coefficients = [name for name in named if ".activation." in name]
    assert penalised == {"weight", "bias"}
    assert len(coefficients) == 2 * 3  # numerator, denominator and log c of two layers


def test_recycled_neurons_have_no_influence_on_the_logits():
    """tanh: no neuron is dormant but those whose incoming weights are 0."""
    learner = script.Learner(
        parse("--activation tanh --redo-tau 0"), (1, 8, 8), 10, 16.0, [1, 2], torch.device("cpu")
    )
    head = learner.network.head.weight
    linear = learner.network.hidden[-1].branches[0].linear
    dormant = {0: [1], 1: [0, 4]}  # of the 6 units, by seed
    with torch.no_grad():
        for i, units in dormant.items():
            linear.weight[i][:, units] = 0.0
            linear.bias[i, units] = 0.0
    before = head.detach().clone()
    x = torch.rand(2, 40, 64, generator=torch.Generator().manual_seed(0))
    share = learner.recycle(x, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert share.tolist() == pytest.approx([1 / 14, 2 / 14])
    for i, units in dormant.items():
        kept = [unit for unit in range(6) if unit not in units]
        assert not head[i, units].any()
        assert torch.equal(head[i, kept], before[i, kept])
        assert (linear.weight[i][:, units].std(0) > 0).all()


def test_a_run_writes_every_key_and_its_measures_match_the_updates(tmp_path, monkeypatch):
    accuracies = []
    update = script.Learner.one_update

    def watched(self, *inputs):
        out = update(self, *inputs)
        accuracies.append(out[1].clone())
        return out

    monkeypatch.setattr(script.Learner, "one_update", watched)
    flags = (
        "--num-seeds 2 --activation crational --tasks permuted_labels --threshold 0.2 "
        "--learning-rate 0.02"
    )
    found = run(tmp_path, flags)
    epochs = torch.stack(accuracies).view(3, 2, 6, 2).mean(2)  # task, epoch, seed
    for i, rows in enumerate(found.values()):
        keys = {key for _, key in rows}
        assert {step for step, key in rows if key == "charts/online_accuracy"} == {12, 24, 36}
        assert {step for step, key in rows if key == "task_start/ntk_srank"} == {0, 12, 24}
        assert {step for step, key in rows if key == "losses/loss"} == {6, 12, 18, 24, 30, 36}
        layers = {
            f"network/classifier/fc{k}/{name}"
            for k, name in itertools.product((1, 2), ("srank", "dead_share", "dormant_share"))
        }
        own = {
            f"coefficients/fc1/{name}"
            for name in ("numerator1", "numerator3", "denominator2", "log_scale")
        }
        assert layers | own | {"charts/test_accuracy", "task_end/ntk_trace"} <= keys
        for task in range(3):
            end = 12 * (task + 1)
            of_seed = epochs[task, :, i]
            assert float(rows[end, "charts/online_accuracy"]) == pytest.approx(
                of_seed.mean().item(), rel=1e-6
            )
            fitted = [6.0 * (k + 1) for k in range(2) if of_seed[k] >= 0.2]
            written = float(rows[end, "charts/steps_to_threshold"])
            assert written == fitted[0] if fitted else math.isnan(written)
    written = []
    for rows in found.values():
        written += [float(v) for (_, key), v in rows.items() if key.endswith("threshold")]
    assert not all(map(math.isnan, written))


def test_end_accuracies_and_ntk_match_the_checkpoint(tmp_path):
    flags = "--seed 5 --activation tanh_hr --tasks permuted_labels --dataset digits"
    (rows,) = run(tmp_path, flags).values()
    args = parse(flags)
    tasks = script.validate(args)
    data = tasks.data
    task = tasks.make(5, 2)
    state = torch.load(next(tmp_path.glob("*/checkpoint.pt")))["state"]
    learner = script.Learner(args, (1, 8, 8), 10, data.largest, [5], torch.device("cpu"))
    runlog.restore_module(learner, [state["learner"]])
    parts = (
        (data.train, task.rows, task.labels, "end"),
        (data.test, task.test_rows, task.test_labels, "test"),
    )
    for split, where, labels, key in parts:
        x = torch.from_numpy(split.images[where].reshape(1, -1, 64)) / 16.0
        right = learner.network(x)[0].argmax(-1).numpy() == labels
        assert float(rows[36, f"charts/{key}_accuracy"]) == pytest.approx(right.mean(), rel=1e-6)
    x = torch.from_numpy(data.train.images[task.rows[:12]].reshape(1, -1, 64)) / 16.0
    assert (
        float(rows[36, "task_end/ntk_trace"])
        == metrics.ntk_rank(learner.network, (x,), 1)["trace"].item()
    )


def test_a_seed_alone_matches_its_seed_in_a_batch_and_measuring_changes_nothing(tmp_path):
    flags = "--activation rational --redo --redo-period 5 --redo-tau 0.9"
    batch = run(tmp_path / "a", f"--num-seeds 3 {flags}")
    alone = run(tmp_path / "b", f"--seed 2 {flags}")
    (name,) = alone
    assert batch[name].keys() == alone[name].keys()
    for (step, key), value in alone[name].items():
        if "condition" not in key:  # of a kernel whose smallest eigenvalues are rounding
            assert float(batch[name][step, key]) == pytest.approx(
                float(value), rel=2e-2, abs=1e-3, nan_ok=True
            ), key
    assert max(float(v) for (_, k), v in alone[name].items() if k == "redo/recycled_share") > 0
    (bare,) = run(tmp_path / "c", f"--seed 2 {flags} --metrics-samples 0 --ntk-samples 0").values()
    assert bare and all(alone[name][key] == value for key, value in bare.items())


@pytest.mark.parametrize("phase", ["stage_checkpoint", "commit_checkpoint"])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_killed_run_ends_like_one_never_killed(stop, phase, tmp_path, monkeypatch):
    """Killed in its stop-th save, when the first of two seeds has gone
    through this phase and the second has not."""
    flags = (
        "--num-seeds 2 --activation crational --checkpoint-frequency 6 --reset-head --redo "
        "--redo-period 7 --redo-tau 0.9"
    )
    whole = run(tmp_path / "a", flags)
    for rows in whole.values():
        shares = [float(value) for (_, key), value in rows.items() if key == "redo/recycled_share"]
        assert len(shares) == 5
        assert min(shares) > 0
    save = getattr(runlog.Run, phase)
    calls = []

    def killed(self, *args):
        save(self, *args)
        calls.append(self)
        if len(calls) == 2 * stop - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.Run, phase, killed)
        run(tmp_path / "b", flags)
    assert run(tmp_path / "b", flags) == whole
    status = [
        json.loads(file.read_text())["status"] for file in (tmp_path / "b").glob("*/meta.json")
    ]
    assert status == ["finished", "finished"]


def test_a_diverged_seed_carries_its_last_task_forward_and_the_others_continue(
    tmp_path, monkeypatch
):
    whole = run(tmp_path / "a", "--num-seeds 2")
    update = script.Learner.one_update
    calls = []

    def breaks(self, *inputs):
        calls.append(1)
        if len(calls) == 15 and len(self.network.head.bias) == 2:
            self.network.head.bias.data[0] = math.nan
        return update(self, *inputs)

    monkeypatch.setattr(script.Learner, "one_update", breaks)
    found = run(tmp_path / "b", "--num-seeds 2")
    first, second = found
    metas = [json.loads(f.read_text()) for f in sorted((tmp_path / "b").glob("*/meta.json"))]
    assert [(meta["status"], meta.get("step")) for meta in metas] == [
        ("diverged", 15),
        ("finished", None),
    ]
    assert found[second] == whole[second]
    for key in ("charts/online_accuracy", "charts/end_accuracy", "task_end/ntk_srank"):
        assert found[first][24, key] == found[first][36, key] == whole[first][12, key]


def test_when_all_have_diverged_the_run_ends_at_once_and_a_kill_changes_nothing(
    tmp_path, monkeypatch
):
    update = script.Learner.one_update
    calls = []

    def breaks(self, *inputs):
        calls.append(1)
        if len(calls) == 15:
            self.network.head.bias.data[:] = math.nan
        return update(self, *inputs)

    monkeypatch.setattr(script.Learner, "one_update", breaks)
    whole = run(tmp_path / "a", "--num-tasks 5")
    (rows,) = whole.values()
    trained = len(calls)
    assert trained == 24  # the second task is trained to its end
    assert [rows[step, "charts/online_accuracy"] for step in (24, 36, 48, 60)] == [
        rows[12, "charts/online_accuracy"]
    ] * 4
    assert not any(
        step > 12
        for step, key in rows
        if "network/" in key or "losses/" in key or "task_start/" in key
    )
    calls.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.Run, "finish", interrupt)
        run(tmp_path / "b", "--num-tasks 5 --checkpoint-frequency 12")
    assert run(tmp_path / "b", "--num-tasks 5 --checkpoint-frequency 12") == whole
    assert len(calls) == trained
    assert (
        json.loads(next((tmp_path / "b").glob("*/meta.json")).read_text())["status"] == "diverged"
    )


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_compiled_updates_see_in_place_changes(tmp_path):
    """A new head, recycled neurons and a resumed checkpoint must reach the compiled update."""
    flags = (
        "--num-seeds 2 --activation tanh_hr --reset-head --redo --redo-period 5 --redo-tau 0.9 "
        "--learning-rate 0.01"
    )
    eager = run(tmp_path / "a", flags)
    compiled = run(tmp_path / "b", f"{flags} --compile")
    for name, rows in eager.items():
        assert (
            max(float(value) for (_, key), value in rows.items() if key == "redo/recycled_share")
            > 0
        )
        for (step, key), value in rows.items():
            if key in (
                "losses/loss",
                "charts/end_accuracy",
                "redo/recycled_share",
                "task_end/ntk_trace",
            ):
                assert float(compiled[name][step, key]) == pytest.approx(
                    float(value), rel=1e-3, abs=1e-4
                ), (step, key)


def test_reset_head_redraws_weights_and_clears_moments():
    learner = script.Learner(parse(""), (1, 8, 8), 10, 16.0, [1, 2], torch.device("cpu"))
    images = some_images()
    learner.update(images, torch.arange(20).view(2, 10), torch.arange(20).view(2, 10) % 10, None)
    before = copy.deepcopy(learner)
    learner.reset_head([1, 2], 1)
    assert (learner.network.head.weight != before.network.head.weight).all()
    assert (learner.network.head.bias == 0).all()
    alone = copy.deepcopy(before)
    alone.reset_head([1, 2], 1)
    assert torch.equal(alone.network.head.weight, learner.network.head.weight)
    for parameter in learner.network.parameters():
        zero = [bool((m == 0).all()) for m in learner.optimizer.moments(parameter)]
        assert zero == [any(parameter is p for p in learner.network.head.parameters())] * 2
    hidden = zip(learner.network.hidden.parameters(), before.network.hidden.parameters())
    assert all(torch.equal(a, b) for a, b in hidden)
