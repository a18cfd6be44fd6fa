"""function_approximation.py: counts, updates against torch.nn,
batches, resume, Table 1, what is drawn.

`pytest -q tests/test_function_approximation.py` (about 60 s).
"""

import csv
import itertools
import json
import multiprocessing
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import binomtest, t

import figures
import function_approximation as script
import runlog

CPU = torch.device("cpu")
TINY = (
    "--no-compile --device cpu --threads 1 --total-steps 40 --checkpoint-frequency 10 "
    "--log-frequency 10 --num-seeds 2"
)
TINY += (
    " --shallow-units 8 --deep-widths 6 6 --learning-rates 1e-3 1e-2 --num-points 16 "
    "--table1-neurons 0"
)


def parse(folder, flags: str = "") -> script.Args:
    return runlog.parse_args(
        script.Args, [*TINY.split(), "--runs-dir", str(folder), *flags.split()]
    )


def run(folder, flags: str = "") -> dict[str, list[str]]:
    """Runs the command in this process; run folder name
    -> rows of scalars.csv without the time column."""
    script.main(parse(folder, flags))
    return scalars(folder)


def scalars(folder) -> dict[str, list[str]]:
    files = sorted(folder.glob("*/scalars.csv"))
    return {
        file.parent.name: [line.rsplit(",", 1)[0] for line in file.read_text().splitlines()[1:]]
        for file in files
    }


def values(rows: list[str], key: str) -> dict[int, float]:
    return {
        int(row.split(",")[0]): float(row.split(",")[2]) for row in rows if row.split(",")[1] == key
    }


@pytest.fixture
def no_drawing(monkeypatch):
    monkeypatch.setattr(script, "draw", lambda folders, out: None)


def table(path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_parameter_counts_match_the_paper():
    args = script.Args()
    counts = []
    for activation, widths in script.architectures(args):
        networks = script.Networks(activation, widths, [1, 2], [1e-3, 1e-3], args, CPU)
        counts.append(sum(p.numel() for p in networks.parameters()) // 2)
        assert networks.count() == counts[-1]
    assert counts == [601, 601, 501, 81_001, 81_001]
    args = script.Args(activations=("identity*silu", "tanh_2hr", "crational"), deep_activations=())
    assert script.architectures(args) == [
        ("identity*silu", (100,)),
        ("tanh_2hr", (66,)),
        ("crational", (200,)),
    ]
    # a (3), b (2) and c
    assert script.Networks("crational", (200,), [1], [1e-3], args, CPU).count() == 601 + 6


def reference(networks: script.Networks, i: int, name: str):
    """Network i as torch.nn modules in float64: (function, parameters)."""

    def linear(module):
        layer = torch.nn.Linear(*module.weight.shape[1:]).double()
        layer.weight.data = module.weight[i].detach().T.double()
        layer.bias.data = module.bias[i].detach().double()
        return layer

    layers = [[linear(branch.linear) for branch in layer.branches] for layer in networks.hidden]
    output = linear(networks.output)
    function = torch.relu if name == "relu" else torch.tanh

    def forward(x):
        for branches in layers:
            x = torch.stack([function(branch(x)) for branch in branches]).prod(0)
        return output(x)

    modules = torch.nn.ModuleList([*itertools.chain(*layers), output])
    return forward, list(modules.parameters())


@pytest.mark.parametrize("name, widths", [("relu", (12,)), ("tanh_hr", (6,)), ("tanh", (8, 8, 8))])
def test_a_batch_trains_like_a_slow_loop_over_torch_modules(name, widths):
    rates = [1e-3, 1e-2, 1e-2]
    seeds = [1, 1, 4]
    networks = script.Networks(name, widths, seeds, rates, script.Args(compile=False), CPU)
    loops = [reference(networks, i, name) for i in range(3)]
    x = torch.linspace(-1, 1, 24)
    losses = torch.stack([networks.update(x) for _ in range(60)], -1)
    x = x.double().unsqueeze(-1)
    y = 10 * torch.sin(7 * x) + 15 * torch.sin(10 * x) + 5 * torch.cos(5 * x)
    for (forward, parameters), rate, ours in zip(loops, rates, losses):
        adam = torch.optim.Adam(parameters, lr=rate)
        theirs = []
        for _ in range(60):
            loss = ((forward(x) - y) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            theirs.append(loss.item())
        np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    # one seed starts equal at every learning rate
    assert losses[0, 0] == losses[1, 0] != losses[2, 0]
    assert losses[0, -1] > 1.004 * losses[1, -1]


def test_initial_weights_are_torchs_default_and_the_same_for_every_activation():
    args = script.Args()
    relu, tanh = (
        script.Networks(name, (200, 200), [1, 2], [1e-3] * 2, args, CPU)
        for name in ("relu", "tanh")
    )
    assert all(torch.equal(p, q) for p, q in zip(relu.parameters(), tanh.parameters(), strict=True))
    for module in (
        relu.hidden[0].branches[0].linear,
        relu.hidden[1].branches[0].linear,
        relu.output,
    ):
        bound = module.weight.shape[1] ** -0.5
        for parameter in (module.weight[0], module.bias[0]):
            assert parameter.abs().max() <= bound
            if parameter.numel() >= 200:
                assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert not torch.equal(relu.output.bias[0], relu.output.bias[1])


def test_runs_repeat_compiled_too_and_a_seed_alone_is_the_same_run(tmp_path, capfd, no_drawing):
    flags = "--activations tanh_hr crational --deep-activations relu"
    first = run(tmp_path / "a", flags)
    assert len(first) == 3 * 2 * 2 and run(tmp_path / "b", flags) == first
    one = "--activations crational --deep-activations --learning-rates 1e-2"
    ((name, alone),) = run(tmp_path / "c", f"{one} --seed 2 --num-seeds 1").items()
    assert name.startswith("regression-8-lr0.01__function_approximation__crational__s2__")
    compiled = run(tmp_path / "d", f"{one} --compile")
    for rows in (alone, compiled[name]):
        for key in ("losses/mse", "eval/mse"):
            ours = values(first[name], key)
            theirs = values(rows, key)
            assert list(ours) == [0, 10, 20, 30, 40] == list(theirs)
            np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-4)
    keys = {row.split(",")[1] for row in itertools.chain(*first.values())}
    assert {
        f"network/mlp/fc{k}/{m}"
        for k, m in itertools.product((1, 2), ("srank", "dead_share", "dormant_share"))
    } <= keys
    capfd.readouterr()
    assert run(tmp_path / "a", flags) == first
    assert "finished already (--fresh starts" in capfd.readouterr().out
    assert run(tmp_path / "a", f"{flags} --fresh") == first


def test_the_error_is_that_of_the_stored_network_between_the_points(tmp_path, capfd, no_drawing):
    flags = (
        "--activations tanh_hr --deep-activations --num-seeds 11 --learning-rates 1e-2 "
        "--interval -0.5 1.5"
    )
    rows = run(tmp_path, flags)
    (folder,) = (path.parent for path in tmp_path.glob("*__s11__*/checkpoint.pt"))
    state = runlog.storage.load_pt(folder / "checkpoint.pt")["state"]["networks"]
    weights = {
        name: tensor.double().numpy() for name, tensor in state.items() if "exp_avg" not in name
    }
    points = np.linspace(-0.5, 1.5, 16)
    for key, x in (("losses/mse", points), ("eval/mse", (points[1:] + points[:-1]) / 2)):
        branches = [f"hidden.0.branches.{k}.linear" for k in (0, 1)]
        parts = [
            np.tanh(x[:, None] @ weights[f"{b}.weight"] + weights[f"{b}.bias"]) for b in branches
        ]
        fit = (parts[0] * parts[1] @ weights["output.weight"] + weights["output.bias"])[:, 0]
        error = np.mean((fit - 10 * np.sin(7 * x) - 15 * np.sin(10 * x) - 5 * np.cos(5 * x)) ** 2)
        assert values(rows[folder.name], key)[40] == pytest.approx(error, rel=1e-5)
    capfd.readouterr()
    assert run(tmp_path, flags) == rows
    assert re.search("^11 runs such as .* already", capfd.readouterr().out, re.M)


def child(folder: str, flags: str) -> None:
    script.main(parse(folder, flags))


def test_killed_runs_end_with_the_same_scalars(tmp_path, no_drawing, monkeypatch):
    flags = (
        "--activations tanh_hr --deep-activations relu --total-steps 400 --checkpoint-frequency 50"
    )
    flags += " --learning-rates 1e-2"
    undisturbed = run(tmp_path / "a", flags)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.path.dirname(__file__)]))
    context = multiprocessing.get_context("forkserver")
    b = tmp_path / "b"
    context.set_forkserver_preload(["test_function_approximation"])  # one import for all processes
    for delay in (0, 0.1):
        process = context.Process(target=child, args=(str(b), flags))
        process.start()
        before = [path.stat().st_mtime_ns for path in b.glob("*/checkpoint.pt")]
        while (
            process.is_alive()
            and [path.stat().st_mtime_ns for path in b.glob("*/checkpoint.pt")] == before
        ):
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert scalars(b) != undisturbed and run(b, flags) == undisturbed
    sessions = []
    for path in b.glob("*/meta.json"):
        sessions += json.loads(path.read_text())["sessions"]
    assert any(session.get("from_step", 0) > 0 for session in sessions)


def test_a_diverged_run_leaves_the_others_alone(tmp_path, capfd):
    both = run(tmp_path / "a", "--activations tanh --deep-activations --learning-rates 1e-2 1e30")
    undisturbed = run(tmp_path / "b", "--activations tanh --deep-activations --learning-rates 1e-2")
    printed = capfd.readouterr().out
    assert "learning rate 1e+30, median error inf (n = 2)" in printed
    for name, rows in both.items():
        meta = json.loads((tmp_path / "a" / name / "meta.json").read_text())
        if name in undisturbed:
            assert meta["status"] == "finished"
            expected = values(undisturbed[name], "eval/mse").values()
            np.testing.assert_allclose([*values(rows, "eval/mse").values()], [*expected])
        else:
            assert meta["status"] == "diverged" and meta["step"] <= 40
            assert list(values(rows, "eval/mse")) == [0, 10, 20, 30, 40]
    errors = {
        row["learning_rate"]: row["last_error"]
        for row in table(tmp_path / "a/function_approximation/runs.csv")
    }
    assert errors["1e+30"] == "inf" and float(errors["0.01"]) < 1e3


def test_a_diverged_run_repeats_its_last_errors_after_a_resume(tmp_path, killed_after_save):
    """Its network is not finite from step 1 on: every row has the errors of step 0."""
    flags = "--activations tanh --deep-activations --learning-rates 1e-2 1e30"
    flags += " --checkpoint-frequency 20"
    with killed_after_save():
        run(tmp_path, flags)
    diverged = 0
    for name, rows in run(tmp_path, flags).items():
        meta = json.loads((tmp_path / name / "meta.json").read_text())
        if meta["status"] == "diverged":
            diverged += 1
            assert meta["sessions"][-1]["from_step"] == 20
            for key in ("eval/mse", "losses/mse"):
                errors = values(rows, key)
                assert list(errors) == [0, 10, 20, 30, 40]
                assert set(errors.values()) == {errors[0]}
    assert diverged == 2  # seeds


@pytest.mark.parametrize("expression", script.CLOSED_FORMS)
def test_table_1_matches_its_closed_forms_and_a_sum_does_not(expression):
    """99.9 % intervals; the closed forms are written out once more."""
    forms = {"tanh_hr": lambda p: p * p, "relu_hr": lambda p: 1 - (1 - p) * (1 - p)}
    for p in (0.2, 0.6):
        expected = forms.get(expression, lambda p: p)(p)
        low, high = binomtest(script.count_dead(expression, p, 1000, seed=3), 1000).proportion_ci(
            0.999
        )
        assert low <= expected <= high
        assert script.CLOSED_FORMS[expression](p) == pytest.approx(expected)
        if expression in ("relu_hr", "sigmoid_hr"):  # a sum is dead only where both are: p^2
            name = expression.removesuffix("_hr")
            low, high = binomtest(
                script.count_dead(f"{name}+{name}", p, 1000, seed=3), 1000
            ).proportion_ci(0.999)
            assert low <= p * p <= high < expected


def test_what_is_drawn_agrees_with_the_scalars(tmp_path, capfd):
    rows = run(tmp_path, "--num-seeds 3 --table1-neurons 60")
    printed = capfd.readouterr().out
    out = tmp_path / "function_approximation"
    for name in ("shallow.png", "deep.png", "table1.png"):
        assert imread(out / name).std() > 0.05
    last = {}
    runs = table(out / "runs.csv")
    assert len(runs) == len(rows) == 5 * 2 * 3
    for row in runs:
        curve = values(rows[row["run"]], "eval/mse")
        last[row["activation"], row["widths"], row["learning_rate"], row["seed"]] = curve[40]
        # the last tenth is one row here
        assert float(row["last_error"]) == pytest.approx(curve[40], rel=1e-5)
        assert (
            float(row["srank"])
            == values(rows[row["run"]], f"network/mlp/fc{len(row['widths'].split())}/srank")[40]
        )
    for row in table(out / "curves.csv"):
        key = {name: row[name] for name in ("activation", "widths", "learning_rate")}
        own = [
            values(rows[r["run"]], "eval/mse")[int(row["step"])]
            for r in runs
            if key.items() <= r.items()
        ]
        expected = [np.median(own), min(own), max(own)]
        np.testing.assert_allclose(
            [float(row[name]) for name in ("median", "min", "max")], expected, rtol=1e-5
        )
    ratios = {
        (row["network"], row["reference"], row["learning_rate"]): row
        for row in table(out / "ratios.csv")
    }
    row = ratios["relu 2 x 6", "tanh_hr 1 x 4", "0.01"]
    logs = [np.log(last["relu", "6 6", "0.01", s] / last["tanh_hr", "4", "0.01", s]) for s in "123"]
    low, high = t.interval(0.95, 2, np.mean(logs), np.std(logs, ddof=1) / 3**0.5)
    interval = [float(row[key]) for key in ("ratio", "low", "high")]
    np.testing.assert_allclose(interval, np.exp([np.mean(logs), low, high]), rtol=1e-4)
    fits = table(out / "fits.csv")
    assert len(fits) == script.DENSE_POINTS and len(fits[0]) == 1 + 5
    assert "tanh_hr, hidden units 4: 21 parameters" in printed and "Table 1, relu_hr" in printed
    before = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    folders = [str(path.parent) for path in tmp_path.glob("*/config.json")]
    figures.main(["function_approximation", "--runs", *folders, "--out", str(tmp_path / "again")])
    assert all(
        path.read_bytes() == before[path.name] for path in (tmp_path / "again").glob("*.csv")
    )
    figures.main(["hr2", *folders, "--out", str(tmp_path / "hr2"), "--where", "activation=relu"])
    drawn = {path.name for path in (tmp_path / "hr2").iterdir()} - {"figures.json"}
    tables = {"hr2_runs.csv", "hr2_curves.csv", "hr2_fits.csv"}
    assert drawn == tables | {"hr2_shallow.png", "hr2_deep.png"}
    rows = [row for row in table(out / "runs.csv") if row["activation"] == "relu"]
    assert table(tmp_path / "hr2" / "hr2_runs.csv") == rows
