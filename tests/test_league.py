"""The league table of continual learning against values worked out by hand.

`pytest -q tests/test_league.py` (about 5 s)
"""

import csv

import pytest

import figures
import runlog
from plots import league

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
    "cell, network",
    [
        ("fourier, widths 75x75", league.Network("fourier", (75, 75), False)),
        ("relu, layer_norm True", league.Network("relu", (100, 100), True)),
        ("crational, init 0.25, decay 0.1", league.Network("crational", (100, 100), False)),
    ],
)
def test_network_of_a_label(cell, network):
    assert league.network_of(cell) == network


@pytest.mark.parametrize(
    "cells, study, fault",
    [
        ({"relu": [0], "tanh, network cnn": [0]}, STUDY, "does not know the cost of 'network cnn'"),
        ({"tanh": [0.5]}, STUDY, "has no cell relu, the baseline"),
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
