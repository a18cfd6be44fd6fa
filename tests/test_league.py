"""The league table of continual learning against values worked out by hand.

`pytest -q tests/test_league.py` (about 20 s)
"""

import csv

import pytest

import activations
import continual_supervised
import figures
import runlog
from plots import continual, league, recording

STUDY = "digits random_labels"


def write_runs(folder, cells: dict[str, list[float]], study: str = STUDY):
    folder.mkdir()
    with open(folder / league.RUNS, "w", newline="") as file:
        writer = csv.DictWriter(file, ["study", "cell", "seed", league.LATE_ACCURACY, "git"])
        writer.writeheader()
        for cell, values in cells.items():
            for seed, value in enumerate(values, start=1):
                row = {"study": study, "cell": cell, "seed": seed, "git": "abc"}
                writer.writerow(row | {league.LATE_ACCURACY: value})
    return folder


def table(folder) -> dict[str, dict[str, str]]:
    with open(folder / league.LEAGUE, newline="") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def test_ranks_differences_and_fronts(tmp_path, capsys):
    first = {"relu": [0.1, 0.2, 0.3], "fourier": [0.9, 0.9, 0.9]}
    first["relu, layer_norm True"] = [0.2, 0.1, 0.6]
    second = {"relu": [0.7, 0.7, 0.7], "tanh_hr": [0.5, 0.5, 0.5], "rational, init 4.0": [0, 0, 0]}
    folders = [write_runs(tmp_path / "a", first), write_runs(tmp_path / "b", second)]
    out = tmp_path / "out"
    figures.main(["league", *map(str, folders), "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"{STUDY}, relu: taken from {folders[0]}, not from {folders[1]}" in printed
    rows = table(out)
    assert [*rows] == ["fourier", "tanh_hr", "relu, LayerNorm", "relu", "rational, init 4.0"]
    assert [row["rank"] for row in rows.values()] == ["1", "2", "3", "4", "5"]
    norm = rows["relu, LayerNorm"]
    assert float(norm["late"]) == pytest.approx(0.3)
    # less relu by seed: 0.1, -0.1, 0.3
    assert float(norm["difference"]) == pytest.approx(0.1)
    assert float(norm["difference: low"]) >= -0.1 and float(norm["difference: high"]) <= 0.3
    assert (norm["better"], norm["worse"], norm["p"]) == ("2", "1", "1")
    assert float(norm["P(better)"]) == pytest.approx(2 / 3, abs=1e-5)
    assert float(norm["behind the first"]) == pytest.approx(0.6)
    assert float(rows["fourier"]["behind the first"]) == 0
    assert float(rows["relu"]["difference"]) == 0 and rows["relu"]["P(better)"] == "0.5"
    assert int(rows["relu"]["parameters"]) == 64 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    fronts = {cell: row["front of parameters"] for cell, row in rows.items()}
    # tanh_hr has more parameters than fourier, which is better
    assert fronts == {
        **dict.fromkeys(rows, "0"),
        "relu": "1",
        "relu, LayerNorm": "1",
        "fourier": "1",
    }
    assert (out / "league-digits-random_labels.png").exists()


@pytest.mark.parametrize(
    "cell, settings",
    [
        ("fourier, widths 75x75", {"widths": [75, 75]}),
        ("relu, layer_norm True", {"layer_norm": True}),
        (
            "crational, init 0.25, decay 0.1",
            {"rational.init_scale": 0.25, "rational.coefficient_weight_decay": 0.1},
        ),
        (
            "crational, from 20.0, c anneal, to 5.0",
            {
                "rational.constraint_scale": 20.0,
                "rational.constraint_schedule": "anneal",
                "rational.constraint_scale_end": 5.0,
            },
        ),
    ],
)
def test_settings_of_a_label(cell, settings):
    assert league.settings_of(cell) == settings


def write_study(folder, cells: list[dict], **protocol):
    """Runs of cells, which are flags of continual_supervised.py and the `late` accuracy of each
    seed, and the tables that `continual` writes for them."""
    for cell in cells:
        flags = {**protocol, **cell}
        for seed, late in enumerate(flags.pop("late"), start=1):
            args = continual_supervised.Args(seed=seed, runs_dir=str(folder / "runs"), **flags)
            (run,) = continual_supervised.runs_of(args)
            run.open(tensorboard=False)
            for task in range(1, args.num_tasks + 1):
                run.log(100 * task, {"charts/task": task, "charts/online_accuracy": late})
            run.finish()
    continual.draw_continual(folder / "runs", folder)
    return folder


def parameters_of(outputs=10, **flags) -> int:
    """Trained numbers of the training script's own network on digits."""
    args = continual_supervised.Args(**flags)
    network = continual_supervised.Classifier(args, (1, 8, 8), outputs, 1)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_settings_that_all_runs_of_a_folder_share_count(tmp_path):
    """Networks of another size are other cells, and cost what they cost."""
    short = {"num_tasks": 3}
    big = {"widths": (400, 400), "layer_norm": True}
    first = write_study(tmp_path / "a", [{"activation": "relu", "late": [0.11, 0.13]}], **short)
    cells = [{"activation": "relu", "late": [0.5, 0.6], **big}]
    cells.append({"activation": "tanh", "late": [0.4, 0.7], **big})
    second = write_study(tmp_path / "b", cells, **short)
    league.league([first, second], tmp_path / "out")
    rows = table(tmp_path / "out")
    name = "LayerNorm, widths 400x400"
    assert {*rows} == {"relu", f"relu, {name}", f"tanh, {name}"}
    costs = {cell: int(row["parameters"]) for cell, row in rows.items()}
    assert costs == {
        "relu": parameters_of(activation="relu"),
        f"relu, {name}": parameters_of(activation="relu", **big),
        f"tanh, {name}": parameters_of(activation="tanh", **big),
    }
    assert float(rows[f"tanh, {name}"]["difference"]) == pytest.approx((0.29 + 0.57) / 2)

    league.league([second], tmp_path / "own")  # labels hold what differs
    rows = table(tmp_path / "own")
    assert {cell: int(row["parameters"]) for cell, row in rows.items()} == {
        "relu": costs[f"relu, {name}"],
        "tanh": costs[f"tanh, {name}"],
    }


def test_the_same_cell_of_two_folders_is_taken_once_whatever_its_label(tmp_path, capsys):
    """In the second folder its label holds no widths, since all runs there have these."""
    narrow = {"activation": "tanh", "widths": (20, 20)}
    cells = [{"activation": "relu", "late": [0.1]}, {**narrow, "late": [0.3]}]
    first = write_study(tmp_path / "a", cells, num_tasks=2)
    second = write_study(tmp_path / "b", [{**narrow, "late": [0.9]}], num_tasks=2)
    league.league([first, second], tmp_path / "out")
    rows = table(tmp_path / "out")
    assert float(rows["tanh, widths 20x20"]["late"]) == pytest.approx(0.3)
    assert len(rows) == 2
    assert f"tanh: taken from {first}, not from {second}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rational, activation",
    [
        ({"constraint_schedule": "fixed"}, "crational"),
        ({"share_across_layers": True}, "rational"),
        ({"numerator_degree": 2, "fit_range": (-3.0, 3.0)}, "rational"),
    ],
)
def test_the_cost_of_rationals_follows_their_options(tmp_path, rational, activation):
    options = {"rational": activations.RationalConfig(**rational), "num_tasks": 2}
    cells = [{"activation": name, "late": [0.5]} for name in ("relu", activation)]
    folder = write_study(tmp_path / "a", cells, **options)
    league.league([folder], tmp_path / "out")
    found = int(table(tmp_path / "out")[activation]["parameters"])
    assert found == parameters_of(activation=activation, **options)
    assert found != parameters_of(activation=activation)


def test_split_classes_have_as_many_outputs_as_classes_per_task(tmp_path):
    flags = {"tasks": "split_classes", "classes_per_task": 5, "num_tasks": 2}
    folder = write_study(tmp_path / "a", [{"activation": "relu", "late": [0.5]}], **flags)
    league.league([folder], tmp_path / "out")
    found = int(table(tmp_path / "out")["relu"]["parameters"])
    assert found == parameters_of(outputs=5, activation="relu") == 17_105


def test_protocols_must_agree(tmp_path):
    first = write_study(tmp_path / "a", [{"activation": "relu", "late": [0.1]}], num_tasks=4)
    cells = [{"activation": name, "late": [0.5]} for name in ("relu", "tanh")]
    second = write_study(tmp_path / "b", cells, num_tasks=2)
    with pytest.raises(runlog.UserError, match=f"differ in num_tasks: 2 in {second}, 4 in"):
        league.league([first, second], tmp_path / "out")
    # what is measured may differ
    third = write_study(tmp_path / "c", cells[1:], num_tasks=4, ntk_samples=0, log_frequency=7)
    league.league([first, third], tmp_path / "out")
    assert {*table(tmp_path / "out")} == {"relu", "tanh"}


def test_convolutions_are_not_costed_as_an_mlp(tmp_path):
    cells = [{"activation": "relu", "late": [0.5]}]
    folder = write_study(tmp_path / "a", cells, dataset="mnist", network="cnn", num_tasks=2)
    with pytest.raises(runlog.UserError, match="only knows the costs of --network mlp"):
        league.league([folder], tmp_path / "out")


def test_files_of_an_older_version_are_taken_by_their_labels(tmp_path, capsys):
    old = write_runs(tmp_path / "a", {"relu": [0.1, 0.2], "tanh, widths 20x20": [0.3, 0.4]})
    new = write_study(tmp_path / "b", [{"activation": "relu", "late": [0.9, 0.9]}], num_tasks=2)
    league.league([old, new], tmp_path / "out")
    printed = capsys.readouterr().out
    assert f"{old / league.RUNS}: written by an older version" in printed
    assert f"relu: taken from {old}, not from {new}" in printed
    rows = table(tmp_path / "out")
    assert float(rows["relu"]["late"]) == pytest.approx(0.15)
    narrow = parameters_of(activation="tanh", widths=(20, 20))
    assert int(rows["tanh, widths 20x20"]["parameters"]) == narrow


def test_a_cell_without_a_value_is_left_out(tmp_path, capsys):
    """All its seeds diverged in their first task."""
    nan = float("nan")
    cells = {"tanh": [0.3, 0.3], "rational": [nan, nan], "relu": [0.5, 0.6], "fourier": [0.9, nan]}
    folder = write_runs(tmp_path / "a", cells)
    league.league([folder], tmp_path / "out")
    assert f"{STUDY}, rational: no seed has a late accuracy" in capsys.readouterr().out
    rows = table(tmp_path / "out")
    assert {cell: row["rank"] for cell, row in rows.items()} == {
        "fourier": "1",
        "relu": "2",
        "tanh": "3",
    }
    assert float(rows["tanh"]["behind the first"]) == pytest.approx(0.6)
    assert rows["tanh"]["front of FLOPs"] == "0" and rows["fourier"]["front of FLOPs"] == "1"

    folder = write_runs(tmp_path / "b", {"relu": [nan], "tanh": [0.5]})
    with pytest.raises(runlog.UserError, match=r"relu: no seed has .* it is the baseline"):
        league.league([folder], tmp_path / "out")


@pytest.mark.parametrize("broken", ["settings", "protocol"])
def test_broken_columns(tmp_path, broken):
    folder = write_study(tmp_path / "a", [{"activation": "relu", "late": [0.5]}], num_tasks=2)
    rows = recording.read_csv(folder / league.RUNS)
    rows[0][broken] = "[3"
    recording.write_csv(folder / league.RUNS, rows, kinds=[continual.CONTINUAL])
    with pytest.raises(runlog.UserError, match='settings of cell "relu" are broken'):
        league.league([folder], tmp_path / "out")


@pytest.mark.parametrize(
    "cells, study, fault",
    [
        ({"relu": [0], "tanh, network cnn": [0]}, STUDY, "does not know the cost of 'network cnn'"),
        ({"tanh": [0.5]}, STUDY, "has no cell relu, the baseline"),
        ({"relu": [0.5]}, "digits split_classes", "lacks the number of outputs"),
        ({"relu": [0.5]}, "cifar100 split_classes", "knows the costs on digits or mnist"),
    ],
)
def test_what_cannot_be_ranked(tmp_path, cells, study, fault):
    folder = write_runs(tmp_path / "a", cells, study)
    with pytest.raises(runlog.UserError, match=fault):
        league.league([folder], tmp_path / "out")


def test_a_folder_that_continual_has_not_written(tmp_path):
    with pytest.raises(runlog.UserError, match=r"figures\.py continual"):
        league.league([tmp_path], tmp_path / "out")
