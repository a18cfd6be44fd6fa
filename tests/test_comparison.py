"""figures.py curves against slow loops over the runs, and where figures.py finds runs.

`pytest -q tests/test_comparison.py` (about 30 s).
"""

import csv
import dataclasses
import importlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.text import Text
from scipy.stats import binomtest
from test_figures import make_run
from test_figures_input import edit, error_of, three_seeds
from test_paper_figures import DMC, STEPS, SWEEP, sac_runs, write_run

import figures
import plots.aggregation
import plots.claims
import plots.comparison
import plots.comparison_figure
import plots.metric
import plots.preactivations
import plots.reading
import plots.redraw
import plots.tables
import plots.variants
import runlog

RETURN = "eval/episodic_return"


def curves(*args) -> None:
    figures.main(["curves", *map(str, args)])


def read(path: Path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


def compared(out: Path) -> dict[tuple[str, str], dict]:
    """(environment, variant) -> its row of NAME-comparison.csv, numbers as floats."""
    found = {}
    for row in read(out.with_name(f"{out.stem}-comparison.csv")):
        texts = ("line", "environment", "metric", "variant", "baseline")
        numbers = {key: float(value) for key, value in row.items() if key not in texts}
        found[row["environment"], row["variant"]] = row | numbers
    return found


def toy_run(root: Path, activation: str, seed: int, values, steps=STEPS, status="finished", **more):
    rows = {RETURN: (steps, values)}
    return write_run(root, "sac_continuous", DMC, activation, seed, rows, status, **more)


# ---- the numbers ---------------------------------------------------------------------------------


def test_curves_are_iqms_with_intervals_and_probabilities_of_improvement(tmp_path):
    truth = sac_runs(tmp_path / "runs", total_timesteps=30)
    out = tmp_path / "out" / "curves.png"
    curves(tmp_path / "runs", "--baseline", "rational", "--out", out)
    found = compared(out)
    points = read(out.with_suffix(".csv"))
    envs = {DMC: 1_000, SWEEP: 1}
    for env, name in itertools.product(envs, ("relu", "rational", "crational")):
        scores = np.array([truth[name, env, seed][0] for seed in range(1, 5)])
        curve = [row for row in points if (row["environment"], row["variant"]) == (env, name)]
        assert [float(row["step"]) for row in curve] == [10, 20, 30]
        for index, row in enumerate(curve):
            middle = np.sort(scores[:, index])[1:3].mean()  # of four, the middle half
            assert float(row["value"]) == pytest.approx(middle, rel=1e-4) and row["n"] == "4"
            ends = float(row["low"]), float(row["high"])
            assert scores[:, index].min() <= ends[0] * 1.0001 and ends[0] < middle < ends[1]
            assert ends[1] <= scores[:, index].max() * 1.0001
        row = found[env, name]
        assert row["value"] == float(curve[-1]["value"]) and row["step"] == 30
        theirs = np.array([truth["rational", env, seed][0] for seed in range(1, 5)])
        if name == "rational":
            assert np.isnan(row["probability"]) and row["pairs"] == 0
            continue
        wins = [x > y for x, y in itertools.product(scores[:, -1], theirs[:, -1])]
        assert row["probability"] == pytest.approx(np.mean(wins))
        assert row["probability_low"] <= row["probability"] <= row["probability_high"]
        differences = scores[:, -1] - theirs[:, -1]
        assert row["difference"] == pytest.approx(differences.mean(), rel=1e-4)
        above = (differences > 0).sum()
        assert (row["better"], row["worse"]) == (above, (differences < 0).sum())
        assert row["p_value"] == pytest.approx(binomtest(above, 4).pvalue, rel=1e-4)
    both = found["all 2 environments", "relu"]
    scaled = []
    for env, seed in itertools.product(envs, range(1, 5)):
        scaled.append(truth["relu", env, seed][0][-1] / envs[env])
    assert both["value"] == pytest.approx(np.sort(scaled)[2:6].mean(), rel=1e-4)
    means = [found[env, "relu"]["probability"] for env in envs]
    assert both["n"] == 8 and both["probability"] == pytest.approx(np.mean(means))


def test_a_loss_is_neither_better_nor_worse():
    """SAC's actor loss is minus Q plus the entropy term, so that lower means a larger Q."""
    for key in ("losses/actor_loss", "losses/qf_loss", "losses/td_loss"):
        assert plots.metric.metric_of_key(key).better == ""
    assert plots.metric.metric_of_key("eval/mse").better == plots.metric.LOWER


def test_what_is_better_follows_from_the_metric(tmp_path, capsys):
    for name, seed in itertools.product(("relu", "tanh"), (1, 2)):
        value = {"relu": 0.5, "tanh": 0.2}[name] + 0.01 * seed
        rows = {"network/qf1/fc1/dead_share": (STEPS, [value] * 3), RETURN: (STEPS, STEPS)}
        rows |= {"network/qf1/fc2/dead_share": (STEPS, [value + 0.2] * 3), "a/b": (STEPS, STEPS)}
        write_run(tmp_path / "runs", "sac_continuous", DMC, name, seed, rows)
    out = tmp_path / "x.png"
    curves("--runs", tmp_path / "runs", "--metric", "dead neurons", "a/b", "--out", out)
    row = compared(out)[DMC, "tanh"]  # of the metric drawn last: neither better nor worse
    assert row["metric"] == "a/b" and row["probability"] == 0.5
    curves(tmp_path / "runs", "--metric", "dead neurons", "--out", out)
    row = compared(out)[DMC, "tanh"]
    assert row["value"] == pytest.approx(0.315) and row["difference"] == pytest.approx(-0.3)
    assert row["probability"] == 1.0 and row["better"] == 2  # fewer are better
    curves(tmp_path / "runs", "--metric", "network/qf*/fc2/dead_share", "--out", out)
    assert compared(out)[DMC, "tanh"]["value"] == pytest.approx(0.415)
    capsys.readouterr()
    message = error_of(capsys, "curves", tmp_path / "runs", "--metric", "eval/episodic_retrun")
    assert f"nearest: {RETURN}" in message and "score, return, dead neurons" in message
    curves(tmp_path / "runs", "--metric", "return", "success", "--out", out)
    assert "success: no run has logged it, not drawn" in capsys.readouterr().out


def test_the_aggregate_names_the_environments_it_leaves_out(tmp_path, capsys):
    """Four tasks; crational has been run on two of them, then on one only."""
    envs = [f"dm_control/{name}-v0" for name in ("a-run", "b-run", "c-run", "d-run")]
    scores = {}
    for place, env in enumerate(envs):
        for name, seed in itertools.product(("relu", "crational"), (1, 2, 3, 4)):
            if name == "crational" and place > 1:
                continue
            scores[name, env, seed] = value = 100.0 * place + 10 * seed + len(name)
            rows = {RETURN: ([10, 20], [0.0, value])}
            write_run(tmp_path / "runs", "sac_continuous", env, name, seed, rows)
    out = tmp_path / "out" / "x.png"
    curves(tmp_path / "runs", "--statistic", "mean", "--out", out)
    printed = capsys.readouterr().out
    note = f"not in the aggregate: {envs[2]}, {envs[3]} (without crational)"
    assert printed.startswith("2 of 4 environments: return, normalised, step 20\n")
    assert f"\nscore: {note}\n" in printed
    spec = json.loads((out.parent / "figures.json").read_text())["x"]
    assert spec["caption"][-1] == f"score: {note}"
    both = compared(out)["2 of 4 environments", "crational"]
    scores_of_crational = [value for (name, _, _), value in scores.items() if name == "crational"]
    assert both["environments"] == 2
    expected = sum(scores_of_crational) / len(scores_of_crational) / 1000
    assert both["value"] == pytest.approx(expected)

    for folder in (tmp_path / "runs").glob("*b-run*__crational__*"):
        shutil.rmtree(folder)
    curves(tmp_path / "runs", "--out", out)
    printed = capsys.readouterr().out
    assert "4 environments" not in printed
    reason = "no aggregate, since fewer than two environments have every variant"
    assert f"\nscore: {reason}: {', '.join(envs[1:])} (without crational)\n" in printed
    curves(tmp_path / "runs" / "*a-run*", "--out", out)
    assert "in the aggregate" not in capsys.readouterr().out


def test_numbers_near_a_thousand_have_no_exponent():
    for shown in (plots.tables.number_text, plots.claims.cell):
        for value in (999.5, 999.6, 1_000.0, -999.7):
            assert float(shown(value).replace(",", "")) == round(value)
        assert shown(999.4) == "999" and shown(999_999.6) == "1,000,000"
        assert shown(1.2e6) == "1.2e+06"
        assert shown(0.0) == "0"
        assert shown(np.nan) == "nan"
        assert shown(-123_456.7) == "-123,457" and shown(0.00012345) == "0.000123"


def test_ties_are_shown_beside_the_sign_test(tmp_path, capsys):
    """Three better, none worse, seven equal: the sign test is of the three."""
    for seed in range(1, 11):
        toy_run(tmp_path / "runs", "relu", seed, [0, 0, 1])
        toy_run(tmp_path / "runs", "tanh", seed, [0, 0, 2 if seed <= 3 else 1])
        toy_run(tmp_path / "runs", "selu", seed, [0, 0, 2 if seed <= 3 else 0])
    curves(tmp_path / "runs", "--out", tmp_path / "out" / "x.png")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert f"  3 : 0 of 10, p {binomtest(3, 3).pvalue:.2g}  " in lines["tanh"]
    assert f"  3 of 10, p {binomtest(3, 10).pvalue:.2g}  " in lines["selu"]


def test_games_that_end_at_the_same_step_are_one_value_in_a_mean_over_keys(tmp_path):
    rows = {
        "charts/episodic_return": ([10, 10, 20, 30], [1.0, 2.0, 8.0, 9.0]),
        "charts/episodic_length": ([10, 10, 20, 20, 20], [4.0, 9.0, 10.0, 20.0, 60.0]),
    }
    folder = write_run(tmp_path / "runs", "pqn_atari", "Breakout", "tanh", 1, rows)
    run = plots.reading.read_run(folder)
    means = [(10, (1.5 + 6.5) / 2), (20, (8 + 30) / 2)]
    np.testing.assert_allclose(plots.aggregation.combined(run, "charts/episodic_.*"), means)
    largest = plots.aggregation.combined(run, "charts/episodic_.*", "max")
    np.testing.assert_allclose(largest, [(10, 9), (20, 60)])
    out = tmp_path / "out" / "x.png"
    curves(tmp_path / "runs", "--metric", "charts/episodic_*", "--at-step", "20", "--out", out)
    assert compared(out)["Breakout", "tanh"]["value"] == 19


# ---- one common step -----------------------------------------------------------------------------


def cut_runs(root: Path) -> None:
    """relu's second seed ends at step 100, the others at 300; values at 100 grow with the seed."""
    steps = np.array([100, 200, 300])
    for name, seed in itertools.product(("relu", "tanh"), (1, 2)):
        is_cut = (name, seed) == ("relu", 2)
        number = 1 if is_cut else 3
        values = [10.0 * seed, 500.0, 900.0][:number]
        status = "interrupted" if is_cut else "finished"
        toy_run(root, name, seed, values, steps[:number], status, total_timesteps=300)


def test_seeds_are_compared_at_the_last_step_that_all_have_reached(tmp_path, capsys):
    cut_runs(tmp_path / "runs")
    out = tmp_path / "x.png"
    curves(tmp_path / "runs", "--statistic", "mean", "--out", out)
    printed = capsys.readouterr().out
    note = "compared at step 100, the last that all runs have: relu seed 2 (interrupted) ends there"
    assert note in printed and "--at-step N" in printed
    found = compared(out)
    for name in ("relu", "tanh"):
        assert (found[DMC, name]["value"], found[DMC, name]["n"]) == (15, 2)
        assert found[DMC, name]["step"] == 100
    ends = {}
    for row in read(out.with_suffix(".csv")):
        ends[row["variant"]] = float(row["step"])
    assert ends == {"relu": 100, "tanh": 300}  # a mean ends with its first seed to end

    curves(tmp_path / "runs", "--at-step", "300", "--statistic", "mean", "--out", out)
    printed = capsys.readouterr().out
    assert "left out, ending before step 300: relu seed 2 (step 100, interrupted)" in printed
    found = compared(out)
    assert (found[DMC, "relu"]["value"], found[DMC, "relu"]["n"]) == (900, 1)
    assert (found[DMC, "tanh"]["value"], found[DMC, "tanh"]["n"]) == (900, 2)
    assert found[DMC, "tanh"]["pairs"] == 1
    message = error_of(capsys, "curves", tmp_path / "runs", "--at-step", "400", "--out", out)
    assert "--at-step 400: no run has reached it; the longest ends at step 300" in message
    for step in ("-5", "nan", "inf"):
        message = error_of(capsys, "curves", tmp_path / "runs", "--at-step", step, "--out", out)
        assert f"--at-step {step}: must lie in [0, inf)" in message
    message = error_of(capsys, "curves", tmp_path / "runs", "--out", out, "--metric")
    assert "--metric: give at least one" in message


def test_tables_are_cut_at_the_last_common_step_too(tmp_path, capsys):
    cut_runs(tmp_path / "runs")
    table = ["table", str(tmp_path / "runs"), "--out", str(tmp_path)]
    figures.main(table)
    for row in read(tmp_path / "table.csv"):
        assert row["return"] == "15.0 +- 7.1" and row["steps"] == "100"
    assert "cut at step 100, where " in capsys.readouterr().out
    figures.main([*table, "--at-step", "300"])
    relu, tanh = read(tmp_path / "table.csv")
    assert (relu["return"], relu["n"]) == ("900.0", "1") and tanh["return"] == "900.0 +- 0.0"
    assert "relu seed 2 (step 100, interrupted)" in capsys.readouterr().out


def test_a_diverged_run_carries_forward_its_last_value_before_diverging(tmp_path, capsys):
    toy_run(tmp_path / "runs", "tanh", 1, [1.0, 2.0, 3.0], total_timesteps=30)
    folder = toy_run(tmp_path / "runs", "tanh", 2, [5, 6, 999], status="diverged")
    edit(folder / "meta.json", step=25)  # later rows belong to no network
    edit(folder / "config.json", total_timesteps=30)
    early = toy_run(tmp_path / "runs", "tanh", 3, [], [], status="diverged", total_timesteps=30)
    shutil.copy(folder / "scalars.csv", early)  # rows, but not of the return
    (early / "scalars.csv").write_text("step,key,value,wall_time\n5,losses/alpha,1.0,1.0\n")
    for seed in (1, 2, 3):
        toy_run(tmp_path / "runs", "relu", seed, [0.0, 1.0, 1.0], total_timesteps=30)
    out = tmp_path / "x.png"
    curves(tmp_path / "runs", "--statistic", "mean", "--out", out)
    row = compared(out)[DMC, "tanh"]
    assert (row["value"], row["n"], row["step"], row["pairs"]) == (4.5, 2, 30, 2)
    assert row["probability"] == pytest.approx(6 / 9)  # the one without a value loses
    assert "tanh: 1 of 3 diverged before the first value" in capsys.readouterr().out
    (_, table), _ = plots.tables.summary(plots.tables.groups_of(tmp_path / "runs"))
    assert table["return"] == "4.5 +- 2.1 (2 of 3)"


def test_preactivations_are_compared_at_one_step(tmp_path, capsys):
    make_run(tmp_path, "relu", steps=(0, 100, 200))
    shorter = make_run(tmp_path, "tanh", steps=(0, 100))
    edit(shorter / "meta.json", status="running")
    figures.main(["preactivations", str(tmp_path), "--out", str(tmp_path / "x.png")])
    printed = capsys.readouterr().out
    assert "cut at step 100, the last at which all runs have been measured" in printed
    assert "later measurements of relu are left out" in printed
    (line,) = (
        line for line in printed.splitlines() if line.startswith("relu") and "actor fc1" in line
    )
    # counts of make_run: 1, 0, 3 + step in [-1, 0, 1, 3]; none above 5, but all have the same ends
    assert line.split()[3:] == ["1", "3.0", "3.0", "3.0", "0.00", "%"]


# ---- variants ------------------------------------------------------------------------------------


def test_variants_differ_in_settings_but_not_in_logging_frequencies(tmp_path):
    for seed, (utd, period) in enumerate([(1, 10), (1, 20), (10, 10)], start=1):
        toy_run(tmp_path, "relu", seed, STEPS, utd=utd, log_frequency=period, eval_frequency=period)
    (labels,) = plots.tables.groups_of(tmp_path).values()
    seeds = {label: [run.seed for run in runs] for label, runs in labels.items()}
    assert seeds == {"relu, utd 1": [1, 2], "relu, utd 10": [3]}
    toy_run(tmp_path, "relu", 1, STEPS, utd=1, log_frequency=20, eval_frequency=10)
    (labels,) = plots.tables.groups_of(tmp_path).values()  # two runs of one seed are distinguished
    assert {label: [run.seed for run in runs] for label, runs in labels.items()} == {
        "relu, utd 1, eval frequency 10, log frequency 10": [1],
        "relu, utd 1, eval frequency 10, log frequency 20": [1],
        "relu, utd 1, eval frequency 20, log frequency 20": [2],
        "relu, utd 10, eval frequency 10, log frequency 10": [3],
    }


def test_the_baseline_is_the_named_variant_else_relu_else_the_first(tmp_path, capsys):
    for name, utd in (("tanh", 1), ("tanh", 10), ("rational", 1), ("rational", 10)):
        toy_run(tmp_path / "runs", name, 1, STEPS, utd=utd)
    out = tmp_path / "x.png"
    curves(tmp_path / "runs", "--out", out)
    assert {row["baseline"] for row in compared(out).values()} == {"rational, utd 1"}
    curves(tmp_path / "runs", "--baseline", "tanh, utd 10", "--out", out)
    assert {row["baseline"] for row in compared(out).values()} == {"tanh, utd 10"}
    message = error_of(capsys, "curves", tmp_path / "runs", "--baseline", "tanh", "--out", out)
    assert "--baseline tanh: it could be tanh, utd 1; tanh, utd 10" in message
    message = error_of(capsys, "curves", tmp_path / "runs", "--baseline", "rationl", "--out", out)
    assert "--baseline rationl: no such variant; there are rational, utd 1" in message


# ---- the picture ---------------------------------------------------------------------------------


def drawn_ticks(axis: Axis) -> list:
    """The boxes of an axis's tick labels that are within its limits."""
    low, high = sorted(axis.get_view_interval())
    boxes = []
    for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels()):
        if low <= place <= high and label.get_text():
            boxes.append(label.get_window_extent())
    return boxes


@pytest.mark.parametrize("number, seeds", [(1, 1), (2, 10), (9, 2)])
def test_pictures_keep_texts_inside_and_show_n(tmp_path, number, seeds):
    rng = np.random.default_rng(number)
    names = ["relu", "crational", "identity*silu+tanh*tanh*sigmoid+fourier*snake", "tanh"]
    names += ["gelu", "selu", "mish", "softplus+leaky_relu*crelu", "sigmoid"]
    for name, seed, env in itertools.product(names[:number], range(1, seeds + 1), (DMC, SWEEP)):
        score = np.array([0.0, 0.5 + rng.random() / 2, 1.0])
        rows = {RETURN: (STEPS, 900 * score), "eval/success": (STEPS, score)}
        rows = rows if env == SWEEP else {RETURN: rows[RETURN]}
        error = 3.0 + 0.001 * rng.random(3) if env == SWEEP else 10.0 ** -rng.integers(1, 5, 3)
        rows["eval/mse"] = (STEPS, error)
        write_run(tmp_path / "runs", "sac_continuous", env, name, seed, rows)
    curves(tmp_path / "runs", "--metric", "score", "error", "--out", tmp_path / "x.png")
    figure = plots.redraw.figure_of(tmp_path, "x")
    figure.draw_without_rendering()
    # texts that exist but are not drawn: ticks beyond a limit, labels of axes that are off
    off = [axis.label for axis in figure.findobj(Axis) if not axis.axes.axison]
    for text in figure.findobj(Text):
        is_name = any(letter.isalpha() for letter in text.get_text())
        box = text.get_window_extent()
        if is_name and text.get_visible() and text not in off:
            assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, text.get_text()
            assert box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()
    for axis in figure.findobj(Axis):
        if axis.axes.texts or not axis.axes.axison:  # a note in place of missing data
            continue
        boxes = drawn_ticks(axis)
        is_names = axis.axis_name == "y" and axis.axes.get_title() != ""  # of variants
        assert is_names or len(boxes) >= 2, axis.axes.get_title("left")
        for one, other in itertools.pairwise(boxes):
            assert not one.overlaps(other)
    shown = [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]
    baseline = ", baseline" if number > 1 else ""
    assert shown[0] == f"relu (n = {seeds}){baseline}" and len(shown) == number
    (success,) = (panel for panel in figure.axes if panel.get_ylabel() == "success rate")
    assert success.get_ylim()[0] >= 0 and success.get_ylim()[1] <= 1
    assert ("interval" in figure.get_suptitle()) is True
    assert ("bootstrap" in figure.get_suptitle()) is (seeds > 1)
    chances = [panel for panel in figure.axes if panel.get_title() == "P(better than relu)"]
    assert len(chances) == (6 if number > 1 else 0)
    for panel in chances:
        assert panel.get_xlim() == (0, 1) and len(panel.containers) == number - 1


def test_many_environments_fill_several_pages(tmp_path):
    tasks = [f"dm_control/task{number}-v0" for number in range(6)]
    for env, name in itertools.product(tasks, ("relu", "tanh")):
        write_run(tmp_path / "runs", "sac_continuous", env, name, 1, {RETURN: (STEPS, STEPS)})
    curves(tmp_path / "runs", "--out", tmp_path / "x.png")
    pages = [plots.redraw.figure_of(tmp_path, name) for name in ("x", "x-2")]
    drawn = []
    for page in pages:
        titles = [panel.get_title("left") for panel in page.axes]
        drawn.append([title for title in titles if title])
    assert drawn == [["all 6 environments", *tasks[:5]], tasks[5:]]
    assert (tmp_path / "x-2.png").exists() and not (tmp_path / "x-2.csv").exists()


def test_demo_draws_learned_activations_below_the_curves(tmp_path):
    for name, seed in itertools.product(("relu", "crational"), (1, 2)):
        make_run(tmp_path / "runs", name, seed, fixed=name == "relu")
    figures.main(["demo", str(tmp_path / "runs"), "--out", str(tmp_path / "demo.png")])
    figure = plots.redraw.figure_of(tmp_path, "demo")
    labels = [panel.get_ylabel() for panel in figure.axes]
    assert "return" in labels and "overestimation, Q - G" in labels
    titles = [panel.get_title() for panel in figure.axes]
    assert "crational (walk-v0, s1)" in titles and "relu (walk-v0, s1)" not in titles


# ---- where runs are ------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_by_pattern_and_by_name(tmp_path, capsys, monkeypatch):
    cut_runs(tmp_path / "runs" / "demo" / "deep")
    folders = sorted((tmp_path / "runs" / "demo" / "deep").iterdir())
    (tmp_path / "runs" / "sweeps").mkdir()
    (tmp_path / "runs" / "curves.png").write_bytes(b"")
    (tmp_path / "runs" / ".hidden").mkdir()
    shutil.copytree(folders[0], tmp_path / "runs" / ".hidden" / folders[0].name)
    (tmp_path / "runs" / "demo" / "loop").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    names = [folder.name for folder in folders]
    for places in (
        "runs",
        "runs/*",
        "runs/*/",
        "runs/**/*sac_continuous*",
        ["runs", "runs/demo", folders[0]],
        folders,
    ):
        assert [folder.name for folder in plots.reading.find_runs(places)] == names, places
    assert plots.reading.find_runs(folders[1]) == [folders[1]]
    relu = plots.reading.find_runs("runs/demo/deep/*__relu__*")
    assert {folder.name for folder in relu} == {name for name in names if "__relu__" in name}
    capsys.readouterr()
    assert len(plots.reading.find_runs(["runs/demo", "runs/sweeps", "runs/curves.png"])) == 4
    assert capsys.readouterr().out == "left out: no run in runs/sweeps runs/curves.png\n"
    for place, message in (
        ("nowhere", "nowhere: does not exist"),
        ("runs/x*", "runs/x*: the pattern matches nothing"),
        ("runs/sweeps", "runs/sweeps: no run folders there (looked for folders with a meta.json"),
    ):
        for command in ("curves", "table", "overview", "cr1", "continual", "run"):
            err = error_of(capsys, command, place)
            assert message in err
            assert "folders that contain some, or a pattern such as 'runs/*relu*'" in err
    err = error_of(capsys, "hr1", "runs")
    assert "no run of pqn_atari.py (all 4 are of sac_continuous)" in err


def test_every_command_takes_folders_of_folders(tmp_path, capsys, monkeypatch):
    three_seeds(tmp_path / "runs" / "deep" / "er")
    monkeypatch.chdir(tmp_path)
    for command in (
        ["table"],
        ["table", "runs"],
        ["table", "--runs", "runs"],
        ["overview", "--runs", "runs/*"],
        ["cr1", "--runs", "runs/deep"],
        ["curves", "runs/**"],
        ["demo", "--runs", "runs"],
        ["compare", "runs", "--by", "rational"],
    ):
        figures.main(command)
        assert "figures/" in capsys.readouterr().out or command[0] in ("demo", "compare")
    assert plots.variants.load(plots.reading.find_runs("runs")).keys() == {"relu", "tanh"}
    with pytest.raises(runlog.UserError, match="no run folders: give at least one"):
        plots.reading.find_runs([])


def test_the_default_baseline_is_a_variant_that_can_be_compared(tmp_path):
    """Variants of an activation may be in different environments. A run from before a setting was
    added has its default, never "None"."""
    root = tmp_path / "runs"
    for env, activation, changes in (
        (DMC, "rational", {}),
        (DMC, "crational", {}),
        (SWEEP, "rational", {"autotune": False}),
        (SWEEP, "crational", {}),
        (SWEEP, "tanh", {}),
    ):
        for seed in (1, 2):
            rows = {RETURN: (STEPS, [seed, 2, 3])}
            write_run(root, "sac_continuous", env, activation, seed, rows, **changes)
    out = tmp_path / "curves.png"
    curves(root, "--out", out)
    found = compared(out)
    assert {row["baseline"] for row in found.values()} == {"rational, no autotune"}
    assert {variant for _, variant in found} == {
        "rational",
        "rational, no autotune",
        "crational",
        "tanh",
    }


def test_settings_added_later_have_a_label_and_a_default():
    """Older runs lack them, which means the default."""
    for script in sorted(Path(runlog.__file__).parent.parent.glob("*_*.py")):
        module = importlib.import_module(script.stem)
        nested = {"": module.Args()}
        if hasattr(module.Args(), "rational"):
            nested["rational."] = module.Args().rational
        for prefix, args in nested.items():
            for field in dataclasses.fields(args):
                if field.metadata.get("identity") == "unless default":
                    setting = plots.variants.SETTINGS[prefix + field.name]
                    assert {field.default, None} <= {*setting.defaults}, prefix + field.name


def test_names_beside_an_axis_keep_what_distinguishes_them():
    names = plots.comparison_figure.beside_axis
    long = "crational, init temperature 1, utd 10"
    assert names([f"{long}, c adaptive", f"{long}, c fixed"]) == [
        "crational, c adaptive",
        "crational, c fixed",
    ]
    assert names([f"{long}, c fixed"]) == ["crational, init\ntemperature 1, utd 10, ..."]
    assert names(["relu", "tanh, utd 10"]) == ["relu", "tanh, utd 10"]
    assert names(["relu, utd 10", "tanh, utd 10"]) == ["relu", "tanh"]


def test_runs_without_the_compared_value_are_not_in_the_figure(tmp_path, capsys):
    """Several scripts in one folder: no accuracy in one, no return in the other."""
    root = tmp_path / "runs"
    for seed in (1, 2):
        toy_run(root, "relu", seed, [1, 2, 3])
        make_run(root, "crational", seed, steps=(0, 100))
        rows = {"charts/online_accuracy": (STEPS, [0.1, 0.2, 0.3])}
        write_run(root, "continual_supervised", "digits-labels", "snake", seed, rows)
    out = tmp_path / "out" / "curves.png"
    curves(root, "--metric", "return", "overestimation", "--shapes", "--out", out)
    spec = json.loads((out.parent / "figures.json").read_text())["curves"]
    assert spec["variants"] == ["relu", "crational"]
    assert out.exists() and "snake" not in capsys.readouterr().out
