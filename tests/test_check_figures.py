"""Figures and tables of the checks (preactivations, compare) from constructed run folders;
the two check scripts.

`pytest -q tests/test_check_figures.py` (about 15 s).
"""

import itertools
import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_figures import is_drawn, make_run, panels

import figures
import plots.compare
import plots.preactivations
import plots.recording
import plots.redraw
import plots.variants
import runlog
import sac_continuous

ROOT = Path(__file__).resolve().parent.parent


def make_compared(root, activation, layer_norm, seed):
    """max f of a critic's layer = layer + seed, its coefficient gradient = critic;
    return = 100 with LayerNorm."""
    config = {
        "env_id": ["dm_control/a-b-v0", "dm_control/a-c-v0"],
        "activation": activation,
        "seed": seed,
        "utd": 1,
    }
    run = runlog.Run(root, f"{activation}{layer_norm}{seed}", {**config, "layer_norm": layer_norm})
    run.open(tensorboard=False)
    for step in (10, 20):
        row = {"eval/episodic_return": 100.0 * layer_norm + step, "overestimation/mean": -step}
        for network in (1, 2):
            row |= {f"network/qf{network}/coefficient_gradient_norm": network * step}
            row |= {f"network/qf{network}/fc{layer}/f_max": layer + seed for layer in (1, 2)}
        run.log(step, row)
    run.finish()
    return run.folder


def test_histories_are_distribution_functions_and_pool_twins_and_seeds(tmp_path):
    folders = [make_run(tmp_path, seed=seed) for seed in (1, 2)]
    # counts 1, 0, 3 + step in [-1, 0, 1, 3]
    history = plots.preactivations.histories(folders[0])["fc1", "qf1"]
    assert history.steps.tolist() == [0, 100, 200]
    assert history.largest_magnitude().tolist() == [
        3,
        3,
        3,
    ]
    below = history.below(np.array([-2, -0.5, 0.5, 2, 3]))
    for row, step in zip(below, (0, 100, 200)):
        total = 4 + step
        np.testing.assert_allclose(
            row, [0, 0.5 / total, 1 / total, (1 + (3 + step) / 2) / total, 1]
        )
    found = plots.preactivations.pools_of(folders)["crational"].layers
    assert list(found) == [
        (network, layer)
        for network, layer in itertools.product(("actor", "critics"), ("fc1", "fc2"))
    ]
    assert len(found["actor", "fc1"]) == 2 and len(found["critics", "fc1"]) == 4
    header, first, *_ = plots.preactivations.preactivation_table(folders, bound=1.0)
    assert header[2:] == ["n", "max |x| first", "max |x| newest", "max |x| ever", "newest |x| > 1"]
    assert first == ["crational", "actor fc1", "2", "3.0", "3.0", "3.0", f"{100 * 203 / 204:.2f} %"]


def test_preactivations_over_training_as_a_heat_map_with_quantiles(tmp_path):
    folders = [make_run(tmp_path, name) for name in ("rational", "crational")]
    paths = plots.preactivations.write_preactivations(
        folders, tmp_path / "out", "history", ("png",)
    )
    figure = plots.redraw.figure_of(tmp_path / "out", "history")  # from the CSV
    assert "toy/walk-v0" in figure.get_suptitle()
    drawn = panels(figure)
    assert list(drawn)[:2] == ["rational (n = 1), actor, fc1", "crational (n = 1), actor, fc1"]
    assert len(drawn) == 8
    panel = drawn["crational (n = 1), critics, fc2"]
    low, median, high, smallest, largest = (line.get_ydata() for line in panel.get_lines())
    assert smallest.tolist() == [-1] * 3 and largest.tolist() == [3] * 3
    for got, level in ((low, 0.01), (median, 0.5), (high, 0.99)):
        # the fraction below x: 1 - (3 - x) / 2 * (3 + step) / (4 + step) from 1
        for value, step in zip(got, (0, 100, 200)):
            total = 4 + step
            expected = (
                3 - 2 * (1 - level) * total / (3 + step) if level > 1 / total else level * total - 1
            )
            assert value == pytest.approx(expected, abs=0.03)
    density = panel.collections[0].get_array()
    assert density.shape[1] == 3 and density.max() == pytest.approx(203 / 204 / 2, rel=1e-3)
    assert [path.name for path in paths] == ["history.csv", "history.png"] and is_drawn(paths[1])


def measured_run(root, activation, seed, largest, status="finished", **meta):
    """A run with one layer, measured at the steps of `largest`: as many values between -1 and 0 as
    between 0 and the largest of each step."""
    config = {"env_id": "toy", "activation": activation, "seed": seed}
    run = runlog.Run(root, f"{activation}{seed}", config).open(tensorboard=False)
    for step, value in largest.items():
        run.log(step, {"eval/episodic_return": 0.0})
        run.log_histogram(step, "network/q/fc1/preactivations", [1, 1], [-1.0, 0.0, value])
    run.log(max(largest, default=0), {"eval/success": 0.0})
    run.finish()
    path = run.folder / "meta.json"
    changes = {"status": status, **meta}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return run.folder


def test_a_diverged_seed_carries_its_last_preactivations_forward_and_cuts_no_table(
    tmp_path, capsys
):
    steps = range(10, 101, 10)
    of_seed = {  # (activation, seed): step: largest value
        ("relu", 1): {step: 2.0 * step for step in steps},
        ("relu", 2): {step: 4.0 * step for step in steps},
        ("rational", 1): {step: 1.0 * step for step in steps},
        ("rational", 2): {10: 60.0, 20: 700.0},  # diverges at 25; later rows belong to no network
    }
    root = tmp_path / "runs"
    for (name, seed), largest in of_seed.items():
        if (name, seed) == ("rational", 2):
            largest = {**largest, 30: 1e9, 40: np.nan}
            measured_run(root, name, seed, largest, "diverged", step=25)
        else:
            measured_run(root, name, seed, largest)
    out = tmp_path / "out" / "x.png"
    figures.main(["preactivations", str(root), "--out", str(out)])
    printed = capsys.readouterr().out
    cells = {}
    for line in printed.splitlines():
        if line.startswith(("relu ", "rational ")):
            cells[line.split()[0]] = line.split()[2:]
    # newest: relu (200 + 400) / 2, rational (100 + 700) / 2; half of the values are in [0, largest]
    above = [50 * (1 - 5 / 200), 50 * (1 - 5 / 400)]
    assert cells["relu"] == ["fc1", "2", "30.0", "300.0", "300.0", f"{sum(above) / 2:.2f}", "%"]
    above = [50 * (1 - 5 / 100), 50 * (1 - 5 / 700)]
    assert cells["rational"] == ["fc1", "2", "35.0", "400.0", "400.0", f"{sum(above) / 2:.2f}", "%"]
    note = "rational: 1 of 2 runs diverged (last measurement carried forward)"
    assert printed.count(note) == 1 and "cut" not in printed
    assert json.loads((out.parent / "figures.json").read_text())["x"]["caption"][1] == note
    rows = plots.recording.read_csv(out.with_suffix(".csv"))
    for name in ("relu", "rational"):
        members = [row for row in rows if row["activation"] == name]
        assert [row["step"] for row in members] == [*steps]
        for row in members:
            step = int(row["step"])
            largest = [of_seed[name, 1][step], of_seed[name, 2].get(step, 700.0)]
            assert float(row["largest"]) == max(largest) and row["n"] == "2"


def test_an_activation_whose_runs_all_diverged_does_not_cut_the_others(tmp_path, capsys):
    for seed in (1, 2):
        measured_run(tmp_path, "relu", seed, {10: 1.0, 50: 9.0})
    measured_run(tmp_path, "rational", 1, {10: 6.0}, "diverged", step=15)
    measured_run(tmp_path, "rational", 2, {10: 4.0, 20: 8.0}, "diverged", step=25)
    measured_run(tmp_path, "rational", 3, {}, "diverged", step=1)
    plots.preactivations.print_preactivation_table(sorted(tmp_path.iterdir()))
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in printed.splitlines()}
    assert lines["relu"][3:7] == ["2", "1.0", "9.0", "9.0"]
    assert lines["rational"][3:7] == ["2", "5.0", "7.0", "7.0"]
    assert "rational: 2 of 3 runs diverged (last measurement carried forward)\n" in printed
    assert "rational: 1 of 3 runs diverged before the first measurement, left out\n" in printed
    assert "cut" not in printed


def test_runs_measured_at_other_steps_are_named(tmp_path, capsys):
    measured_run(tmp_path / "a", "relu", 1, {1_000: 1.0, 3_000: 2.0}, "running")
    measured_run(tmp_path / "a", "relu", 2, {1_000: 1.0, 3_000: 2.0, 4_000: 3.0})
    measured_run(tmp_path / "a", "tanh", 1, {5_000: 3.0})
    figures.main(["preactivations", str(tmp_path / "a"), "--out", str(tmp_path / "out" / "a.png")])
    printed = capsys.readouterr().out
    assert "tanh" not in [line.split()[0] for line in printed.splitlines()]
    assert "not in the table: tanh, first measured at step 5,000, and another run only" in printed
    cut = "relu: cut at step 3,000, the last at which all its runs have been measured"
    assert f"\n{cut}\n" in printed
    caption = json.loads((tmp_path / "out" / "figures.json").read_text())["a"]["caption"]
    assert caption[1] == cut
    measured_run(tmp_path / "a", "relu", 3, {2_000: 1.0})
    figures.main(["preactivations", str(tmp_path / "a"), "--out", str(tmp_path / "out" / "b.png")])
    printed = capsys.readouterr().out
    assert "left out: relu, whose runs were measured at no common step" in printed
    rows = plots.recording.read_csv(tmp_path / "out" / "b.csv")
    assert [(row["activation"], row["step"]) for row in rows] == [("tanh", 5_000)]
    with pytest.raises(runlog.UserError, match="no two runs of an activation"):
        folders = [path for path in (tmp_path / "a").iterdir() if "relu" in path.name]
        plots.preactivations.preactivation_rows(folders)


def test_few_steps_are_drawn_but_no_extreme_value_is_lost(tmp_path, monkeypatch):
    run = runlog.Run(tmp_path, "spike", {"env_id": "toy", "activation": "relu", "seed": 1}).open(
        tensorboard=False
    )
    for step in range(7):
        run.log_histogram(
            step,
            "network/q/fc1/preactivations",
            [1, 1],
            [-1.0 - step, 0.0, 50.0 if step == 2 else 1.0],
        )
    run.finish()
    monkeypatch.setattr(plots.preactivations, "MAX_MEASUREMENTS", 3)
    rows = plots.preactivations.preactivation_rows([run.folder])
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert [row["largest"] for row in rows] == [1, 50, 1]
    assert [row["smallest"] for row in rows] == [
        -1,
        -4,
        -7,
    ]
    densities = np.array(
        [[row[f"d{i:02d}"] for i in range(plots.preactivations.BINS)] for row in rows]
    )
    x = np.sinh(
        np.linspace(
            *np.arcsinh([rows[0]["first_edge"], rows[0]["last_edge"]]),
            plots.preactivations.BINS + 1,
        )
    )
    np.testing.assert_allclose(densities @ np.diff(x), 1, rtol=0.01)


def test_compare_groups_by_a_setting(tmp_path, capsys):
    grid = [
        (name, norm, seed)
        for name, norm, seed in itertools.product(("rational", "crational"), (False, True), (1, 2))
    ]
    folders = [make_compared(tmp_path, *options) for options in grid]
    groups = plots.compare.compared(folders, "layer_norm")
    names = [
        f"{name}, layer_norm {norm}"
        for name, norm in itertools.product(("crational", "rational"), (False, True))
    ]
    assert list(groups) == names and all(len(runs) == 2 for runs in groups.values())
    for runs in groups.values():
        for run in runs:
            np.testing.assert_array_equal(
                run.series("max |f(x)|")[:, :2],
                [[10, 2 + run.config["seed"]], [20, 2 + run.config["seed"]]],
            )
            np.testing.assert_array_equal(
                run.series("coefficient gradient")[:, :2], [[10, 15], [20, 30]]
            )
    plots.compare.write_compared(folders, "layer_norm", tmp_path / "out", "by", ("png",))
    figure = plots.redraw.figure_of(tmp_path / "out", "by")  # from the CSV
    titles = [panel.get_title("left") for panel in figure.axes]
    # no critic gradient logged
    assert titles == ["return", "overestimation", "max |f(x)|", "coefficient gradient"]
    panel = figure.axes[0]
    lines = {
        line.get_label(): line for line in panel.get_lines() if not line.get_label().startswith("_")
    }
    assert list(lines) == [f"{name} (n = 2)" for name in names]
    without, norm = (lines[f"rational, layer_norm {x} (n = 2)"] for x in (False, True))
    assert without.get_ydata().tolist() == [10, 20] and norm.get_ydata().tolist() == [110, 120]
    colours = [to_hex(line.get_color()).upper() for line in (without, norm)]
    assert colours == plots.variants.shades(plots.variants.ORANGE, 2)
    assert (without.get_linestyle(), norm.get_linestyle()) == ("-", "--")
    assert "dm_control/a-b-v0,a-c-v0" in figure.get_suptitle()
    figures.main(
        ["compare", *map(str, folders), "--by", "layer_norm", "--out", str(tmp_path / "x.png")]
    )
    table = capsys.readouterr().out.splitlines()
    assert table[1].split("  ")[0] == names[0]
    assert "20.0 +- 0.0" in table[1]
    assert "3.50 +- 0.71" in table[1]
    assert is_drawn(tmp_path / "x.png")
    for by, message in (("layer_norms", "--by layer_norms"), ("utd", "differ in layer_norm")):
        with pytest.raises(runlog.UserError, match=message):
            plots.compare.compared(folders, by)


@pytest.mark.parametrize(
    "script, runs", [("check_preactivations.sh", 2), ("check_layer_norm.sh", 4)]
)
def test_the_checks_print_commands_that_parse(script, runs, tmp_path):
    environment = {
        **os.environ,
        "DRY_RUN": "1",
        "STEPS": "120000",
        "SEEDS": "3",
        "ENV_ID": "metaworld/push-v3",
    }
    done = subprocess.run(
        [ROOT / "scripts" / script], env=environment, capture_output=True, text=True, check=True
    )
    *training, drawing = (shlex.split(line) for line in done.stdout.splitlines())
    assert len({tuple(words) for words in training}) == runs
    for _, file, *words in training:
        args = runlog.parse_args(sac_continuous.Args, words)
        assert file == "sac_continuous.py"
        assert args.num_seeds == 3
        assert args.total_timesteps == 120_000
        assert args.env_id == ("metaworld/push-v3",) and args.learning_starts == 5_000
    (folder,) = {words[words.index("--runs-dir") + 1] for (*words,) in training}
    _, file, *words = drawing
    command = runlog.parse_args(figures.Command, words)
    assert file == "figures.py"
    assert command.folders[0].parent == Path(folder)
    assert "metaworld-push-v3" in folder
