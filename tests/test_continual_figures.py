"""figures.py continual: cells, means and intervals against scipy,
on run folders whose numbers are known.

`pytest -q tests/test_continual_figures.py` (about 15 s).
"""

import csv
import itertools
import json

import numpy as np
import pytest
import scipy.stats
from PIL import Image

import continual_supervised
import figures
import plots.continual
import plots.redraw
import plots.statistics
import runlog
from activations import RationalConfig

TASKS = 7


def make_cell(
    folder, seeds, activation, dataset="digits", diverged=(), num_tasks=TASKS, **rational
):
    """Run folders with random measures; (seeds, tasks) of online accuracy."""
    rng = np.random.default_rng(
        [len(activation), int(10 * rational.get("init_scale", 1)), len(dataset)]
    )
    accuracy = rng.uniform(0.1, 1, size=(len(seeds), num_tasks))
    for i, seed in enumerate(seeds):
        options = {
            "dataset": dataset,
            "num_tasks": num_tasks,
            "runs_dir": str(folder),
            "seed": seed,
        }
        args = continual_supervised.Args(
            activation=activation, rational=RationalConfig(**rational), **options
        )
        env_id = f"{dataset}-random_labels"
        (run,) = runlog.seed_runs(args, "continual_supervised", env_id=env_id)
        run.open(tensorboard=False)
        for task in range(num_tasks if seed not in diverged else 2):
            run.log(100 * task, {"task_start/ntk_srank": 50 + seed})
            values = {
                "charts/task": task + 1,
                "charts/online_accuracy": accuracy[i, task],
                "task_end/ntk_srank": 20.0 * seed + task,
            }
            values |= {"task_end/ntk_entropy_rank": rng.uniform(1, 100)}
            values |= {"charts/steps_to_threshold": 10.0 * seed if (task + seed) % 3 else np.nan}
            run.log(100 * (task + 1), values | {"network/classifier/fc2/dead_share": rng.uniform()})
        run.finish(
            *(["diverged"] if seed in diverged else []),
            **({"step": 250} if seed in diverged else {}),
        )
    return accuracy


def test_cells_are_labelled_by_what_differs(tmp_path):
    make_cell(tmp_path, [2, 1], "relu")
    make_cell(tmp_path, [1], "rational")
    make_cell(tmp_path, [1], "rational", init_scale=0.25)
    make_cell(tmp_path, [1], "rational", init_scale=0.25, coefficient_weight_decay=0.1)
    found = plots.continual.continual_cells(tmp_path)
    assert list(found) == ["digits random_labels"]
    labels = ["relu", "rational", "rational, init 0.25", "rational, init 0.25, decay 0.1"]
    assert [cell.label for cell in found["digits random_labels"]] == labels
    assert [run.config["seed"] for run in found["digits random_labels"][0].runs] == [1, 2]
    make_cell(tmp_path, [1], "tanh", num_tasks=3)
    with pytest.raises(runlog.UserError, match=r"differ in num_tasks .* --where num_tasks="):
        plots.continual.continual_cells(tmp_path)
    (cells,) = plots.continual.continual_cells(tmp_path, ["num_tasks=3"]).values()
    assert [cell.label for cell in cells] == ["tanh"]
    (cells,) = plots.continual.continual_cells(tmp_path, [f"num_tasks={TASKS}"]).values()
    assert [cell.label for cell in cells] == labels
    with pytest.raises(runlog.UserError, match="nothing: does not exist"):
        plots.continual.continual_cells(tmp_path / "nothing")
    make_cell(tmp_path / "other", [1], "relu")
    (folder,) = (tmp_path / "other").iterdir()
    meta = json.loads((folder / "meta.json").read_text()) | {"status": "running"}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(runlog.UserError, match="no finished run"):
        plots.continual.continual_cells(tmp_path / "other")


def test_comparisons_match_scipys_paired_intervals(tmp_path):
    seeds = [1, 2, 3, 4, 5]
    # seed 1 has no partner
    base = make_cell(tmp_path, seeds, "tanh")
    other = make_cell(tmp_path, seeds[1:], "tanh_hr")
    make_cell(tmp_path, seeds, "relu")
    (cells,) = plots.continual.continual_cells(tmp_path).values()
    rows = {row["measure"]: row for row in plots.continual.continual_comparisons(cells)}
    assert {(row["a"], row["b"], row["n"]) for row in rows.values()} == {("tanh_hr", "tanh", 4)}
    base = base[1:]

    def late(x):
        return x[:, -plots.continual.LATE :].mean(1)

    expected = {
        "online accuracy, first task": (other[:, 0], base[:, 0]),
        "online accuracy, late tasks": (late(other), late(base)),
        "change of online accuracy, late - first": (
            late(other) - other[:, 0],
            late(base) - base[:, 0],
        ),
    }
    for measure, (a, b) in expected.items():
        interval = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
        row = rows[measure]
        assert row["difference"] == pytest.approx((a - b).mean())
        assert row["mean_a"] == pytest.approx(a.mean())
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert rows["NTK srank, start"]["difference"] == 0.0


def test_comparisons_pair_cells_that_differ_in_one_setting(tmp_path):
    settings = [{}, {"init_scale": 0.25}, {"init_scale": 4.0}]
    settings += [{"init_scale": scale, "coefficient_weight_decay": 0.1} for scale in (0.25, 4.0)]
    for activation in ("rational", "crational"):
        for setting in settings:
            make_cell(tmp_path, [1, 2], activation, **setting)
    (cells,) = plots.continual.continual_cells(tmp_path).values()
    pairs = {(row["a"], row["b"]) for row in plots.continual.continual_comparisons(cells)}
    ends = ["", ", init 0.25", ", init 4.0", ", init 0.25, decay 0.1", ", init 4.0, decay 0.1"]
    expected = {(f"crational{end}", f"rational{end}") for end in ends}
    for activation in ("rational", "crational"):
        expected |= {
            (f"{activation}, init {s}, decay 0.1", f"{activation}, init {s}")
            for s in ("0.25", "4.0")
        }
        expected |= {(f"{activation}, init {s}", activation) for s in ("0.25", "4.0")}
        expected.add((f"{activation}, init 0.25", f"{activation}, init 4.0"))
        expected.add((f"{activation}, init 0.25, decay 0.1", f"{activation}, init 4.0, decay 0.1"))
    assert pairs == expected


def test_the_command_draws_figures_and_writes_their_data(tmp_path, capsys):
    runs = tmp_path / "runs"
    out = tmp_path / "out"
    accuracy = {
        (d, a): make_cell(runs, [1, 2, 3], a, d, diverged=[3])
        for d, a in itertools.product(("digits", "mnist"), ("relu", "tanh_hr", "tanh"))
    }
    figures.main(["continual", "--runs", str(runs), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "tanh_hr against tanh" in printed and printed.count(".png") == 2
    for name in ("digits", "mnist"):
        with Image.open(out / f"continual-{name}-random_labels.png") as image:
            assert min(image.size) > 500
        assert (out / f"continual-{name}-random_labels.pdf").read_bytes().startswith(b"%PDF")
    rows = list(csv.DictReader((out / "continual_curves.csv").open()))
    for (dataset, activation), values in accuracy.items():
        values = values.copy()
        values[2, 2:] = values[2, 1]  # diverged in the third task: the second is carried forward
        mine = [
            r
            for r in rows
            if (r["study"].split()[0], r["cell"], r["metric"])
            == (dataset, activation, "charts/online_accuracy")
        ]
        assert [int(row["task"]) for row in mine] == [*range(1, TASKS + 1)]
        assert {row["n"] for row in mine} == {"3"}
        np.testing.assert_allclose([float(row["mean"]) for row in mine], values.mean(0), rtol=1e-3)
        half = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, 2)
        np.testing.assert_allclose(
            [float(row["high"]) for row in mine], values.mean(0) + half, rtol=1e-3
        )
    row_of = {
        (r["study"].split()[0], r["cell"], int(r["seed"])): r
        for r in csv.DictReader((out / "continual_runs.csv").open())
    }
    assert len(row_of) == 18
    for (dataset, activation), values in accuracy.items():
        row = row_of[dataset, activation, 2]
        assert float(row["online accuracy, late tasks"]) == pytest.approx(
            values[1, -5:].mean(), rel=1e-5
        )
        assert row["status"] == "finished"
        assert "s2" in row["folder"]
        assert float(row["elapsed_s"]) >= 0
    cells = list(csv.DictReader((out / "continual_cells.csv").open()))
    assert {(row["cell"], row["diverged"]) for row in cells} == {(a, "1") for _, a in accuracy}


def test_variants_draw_a_small_picture_of_these_cells_and_must_exist(tmp_path, capsys):
    runs = tmp_path / "runs"
    out = tmp_path / "out"
    accuracy = make_cell(runs, [1, 2, 3], "relu")
    make_cell(runs, [1, 2, 3], "tanh")
    make_cell(runs, [1, 2, 3], "crational", init_scale=0.25)
    command = ["continual", "--runs", str(runs), "--out", str(out), "--variants"]
    with pytest.raises(SystemExit):
        figures.main([*command, "relu", "gelu"])
    message = '--variants "gelu": digits random_labels has "relu", "crational, init 0.25", "tanh"'
    assert message in capsys.readouterr().err and not out.exists()

    figures.main([*command, "crational, init 0.25", "relu"])
    name = "plasticity-digits-random_labels"
    assert Image.open(out / f"{name}.png").size[0] > 1_000
    figure = plots.redraw.figure_of(out, name)
    assert "n = 3 seeds, 95 % interval" in figure.get_suptitle()
    left, right = figure.axes
    assert [line.get_label() for line in left.get_lines()] == ["crational, init 0.25", "relu"]
    drawn = left.get_lines()[1].get_xydata()
    assert drawn[:, 0].tolist() == [*range(1, TASKS + 1)]
    assert drawn[:, 1] == pytest.approx(accuracy.mean(0), rel=1e-3)
    assert right.get_title("left") == "dead-neuron fraction, last layer"


def test_intervals_of_one_value_are_unknown():
    mean, low, high = plots.statistics.mean_interval(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_tasks_that_no_seed_fitted_keep_their_places(tmp_path):
    # fitted in all but the tasks 1, 4 and 7 (index + 3 divisible by 3)
    make_cell(tmp_path, [3], "relu")
    plots.continual.draw_continual(tmp_path, tmp_path)
    rows = list(csv.DictReader((tmp_path / "continual_curves.csv").open()))
    steps = [row["mean"] for row in rows if row["metric"] == "median of steps_to_threshold"]
    assert steps == ["inf", "30", "30", "inf", "30", "30", "inf"]
    assert [float(r["mean"]) for r in rows if r["metric"] == "share of seeds that fit"] == [
        0,
        1,
        1,
        0,
        1,
        1,
        0,
    ]


def write_tasks(folder, seed, values, status="finished", diverged_at=None, **rational):
    """A run folder of len(values["charts/online_accuracy"]) tasks of 100 updates; values: key ->
    its value in each task."""
    num_tasks = len(values["charts/online_accuracy"])
    args = continual_supervised.Args(
        activation="rational",
        rational=RationalConfig(**rational),
        num_tasks=num_tasks,
        runs_dir=str(folder),
        seed=seed,
    )
    (run,) = continual_supervised.runs_of(args)
    run.open(tensorboard=False)
    for task in range(num_tasks):
        row = {key: series[task] for key, series in values.items()}
        run.log(100 * (task + 1), row | {"charts/task": task + 1})
    run.finish(status, **({"step": diverged_at} if diverged_at else {}))


def test_a_diverged_seed_fits_no_task_that_it_failed(tmp_path):
    """Seed 1 fits tasks 1 and 2, fails 3 and diverges in 4; seed 2 fits all until it diverges at
    the last update of task 4. After it, the script repeats the last task's values."""
    nan = float("nan")
    steps = "charts/steps_to_threshold"
    first = {"charts/online_accuracy": [0.9, 0.8, 0.3, 0.3, 0.3], steps: [10, 20, nan, nan, nan]}
    second = {"charts/online_accuracy": [0.9, 0.8, 0.7, 0.7, 0.7], steps: [10, 20, 30, 30, 30]}
    write_tasks(tmp_path, 1, first, "diverged", 350)
    write_tasks(tmp_path, 2, second, "diverged", 400)
    plots.continual.draw_continual(tmp_path, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "continual_curves.csv").open()))

    def means(metric):
        return [float(row["mean"]) for row in rows if row["metric"] == metric]

    assert means("share of seeds that fit") == [1, 1, 0.5, 0, 0]
    assert means("median of steps_to_threshold") == [10, 20, np.inf, np.inf, np.inf]
    assert means("charts/online_accuracy") == pytest.approx([0.9, 0.8, 0.5, 0.5, 0.5])


def test_a_value_that_was_logged_as_nan_is_not_replaced(tmp_path):
    """Only tasks without a row get the last value of a diverged seed."""
    rank = "task_end/ntk_srank"
    values = {"charts/online_accuracy": [0.9, 0.8, 0.3, 0.3], rank: [5, float("nan"), 3, 3]}
    write_tasks(tmp_path, 1, values, "diverged", 250)
    ((cell,),) = plots.continual.continual_cells(tmp_path).values()
    assert cell.per_task(rank)[0] == pytest.approx([5, np.nan, 5, 5], nan_ok=True)


def test_cells_may_differ_in_a_range(tmp_path):
    """The default range, which config.json stores as a list, is no setting of a cell."""
    for seed in (1, 2):
        for ends in ((-5.0, 5.0), (-3.0, 3.0)):
            values = {"charts/online_accuracy": [0.9, ends[1] / 10]}
            write_tasks(tmp_path, seed, values, fit_range=ends)
    plots.continual.draw_continual(tmp_path, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "continual_cells.csv").open()))
    late = {row["cell"]: float(row["online accuracy, late tasks"]) for row in rows}
    assert late == {"rational": 0.5, "rational, rational.fit_range -3.0 3.0": 0.3}


def test_n_of_a_cell_counts_the_seeds_in_its_means(tmp_path):
    """A seed that diverged in its first task is in no mean."""
    for seed in (1, 2):
        write_tasks(tmp_path, seed, {"charts/online_accuracy": [0.6, 0.2 * seed]})
    nothing = {"charts/online_accuracy": [float("nan")] * 2}
    write_tasks(tmp_path, 3, nothing, "diverged", 50)
    plots.continual.draw_continual(tmp_path, tmp_path / "out")
    (row,) = csv.DictReader((tmp_path / "out" / "continual_cells.csv").open())
    assert (row["runs"], row["diverged"]) == ("3", "1")
    assert float(row["online accuracy, late tasks"]) == pytest.approx(0.3)
    assert row["online accuracy, late tasks: n"] == "2"
    assert row["NTK srank, start: n"] == "0"
    half = scipy.stats.sem([0.2, 0.4]) * scipy.stats.t.ppf(0.975, 1)
    assert float(row["online accuracy, late tasks: high"]) == pytest.approx(0.3 + half, rel=1e-5)


def test_missing_values_leave_the_rest_unchanged(tmp_path, monkeypatch):
    """A seed that diverged in its first task, and a study without NTK ranks."""
    base = make_cell(tmp_path, [1, 2, 3, 4], "tanh")
    other = make_cell(tmp_path, [1, 2, 3, 4], "tanh_hr")
    (bad,) = tmp_path.glob("*tanh__s4__*")
    (bad / "scalars.csv").write_text("step,key,value,wall_time\n")
    meta = json.loads((bad / "meta.json").read_text()) | {
        "status": "diverged",
        "step": 50,
        "last_step": None,
    }
    (bad / "meta.json").write_text(json.dumps(meta))
    for file in tmp_path.glob("*/scalars.csv"):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if "ntk" not in line))
    (cells,) = plots.continual.continual_cells(tmp_path).values()
    rows = {row["measure"]: row for row in plots.continual.continual_comparisons(cells)}
    assert len(rows) == 3 and {row["n"] for row in rows.values()} == {3}
    expected = (other - base)[:3, 0].mean()
    assert rows["online accuracy, first task"]["difference"] == pytest.approx(expected)
    assert plots.continual.draw_continual(tmp_path, tmp_path / "out")
