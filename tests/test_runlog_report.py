"""Curves, reports and plots of a run. `pytest -q tests/test_runlog_report.py`."""

import csv
import json

import numpy as np
import pytest
import torch

import runlog
from reports import NetworkReport
from runlog.report import log_report

CONFIG = {"env_id": "toy", "seed": 1}


def read(run, file):
    return [json.loads(line) for line in (run.folder / file).read_text().splitlines()]


def test_curves_are_rounded_even_grids_compact_and_cut_on_resume(tmp_path):
    run = runlog.Run(tmp_path, "toy", CONFIG).open(tensorboard=False)
    run.log_curve(
        1, "network/f", torch.linspace(-10, 10, 201), torch.full((201,), 1 / 3), dead=True
    )
    run.log_curve(1, "network/g", [0, 1, 10], [1, float("nan"), 123456789.0])
    for x, y in (([0, 1], [1]), ([[0, 1]], [[0, 1]])):
        with pytest.raises(ValueError, match="network/h"):
            run.log_curve(1, "network/h", x, y)
    run.save_checkpoint(1, {})
    run.log_curve(2, "network/late", [0, 1], [0, 1])
    run.close()
    run.open(tensorboard=False).load_checkpoint()
    run.close()
    first, second = read(run, "curves.jsonl")
    assert first == {
        "step": 1,
        "key": "network/f",
        "x": [-10, 10],
        "y": [0.333333] * 201,
        "dead": True,
    }
    assert second["x"] == [0, 1, 10]
    assert second["y"][2] == 123457000.0
    assert np.isnan(second["y"][1])


def report_of(*batch):
    values = torch.arange(float(np.prod(batch))).reshape(batch)
    edges = torch.linspace(0, 1, 3).expand(*batch, 3) + values.unsqueeze(-1)
    edges = torch.where(values.unsqueeze(-1) == 0, torch.inf, edges)  # seed 0 has diverged
    grid = torch.linspace(-1, 1, 5)
    y = values.unsqueeze(-1).expand(*batch, 5)
    curves = {
        "fc1/activation": (grid, y, {}),
        "fc1/kde00": (y + grid, 10 * y, {"dead": values > 2}),
    }
    return NetworkReport(
        {"fc1/srank": values}, {"fc1/preactivations": (edges[..., 1:], edges)}, curves
    )


@pytest.mark.parametrize("critics", [(), (2,)])
def test_a_report_is_split_over_seeds_and_critics(tmp_path, critics):
    runs = [runlog.Run(tmp_path, f"s{i}", CONFIG).open(tensorboard=False) for i in range(3)]
    log_report(runs, 7, "network/qf", report_of(3, *critics))
    with pytest.raises(ValueError, match="2 runs"):
        log_report(runs[:2], 7, "network/qf", report_of(3))
    for i, run in enumerate(runs):
        run.close()
        rows = list(csv.DictReader((run.folder / "scalars.csv").open()))
        names = ["network/qf1/", "network/qf2/"] if critics else ["network/qf/"]
        values = [len(names) * i + k for k in range(len(names))]
        got = [(row["step"], row["key"], float(row["value"])) for row in rows]
        assert got == [("7", f"{name}fc1/srank", value) for name, value in zip(names, values)]
        histograms = read(run, "histograms.jsonl")
        curves = read(run, "curves.jsonl")
        finite = [(name, value) for name, value in zip(names, values) if value]
        assert [(h["key"], h["edges"][0]) for h in histograms] == [
            (f"{n}fc1/preactivations", v) for n, v in finite
        ]
        kde = [(c["key"], c["x"], c["y"][0], c["dead"]) for c in curves if "kde" in c["key"]]
        assert kde == [
            (f"{n}fc1/kde00", [v - 1, v + 1], 10 * v, v > 2) for n, v in zip(names, values)
        ]
        assert [c["y"] for c in curves if "activation" in c["key"]] == [[v] * 5 for v in values]


def test_a_failing_plot_is_reported_in_one_line_and_the_run_continues(tmp_path, capsys):
    run = runlog.Run(tmp_path, "toy", CONFIG).open(tensorboard=False)
    seen = []

    def draw(folder):
        seen.append((folder / "scalars.csv").read_text())
        raise ZeroDivisionError("division by zero")

    run.log(5, {"a": 1.0})
    run.draw(5, draw)
    assert not seen  # nothing to draw yet
    run.log_curve(5, "network/actor/fc1/activation", [0.0, 1.0], [0.0, 1.0])
    run.draw(5, draw)
    run.draw(5, draw)
    # what was buffered has been written; nothing new since then
    assert len(seen) == 1 and "5,a,1.0" in seen[0]
    run.log(6, {"a": 1.0})
    run.finish()
    err = capsys.readouterr().err
    assert err.startswith("warning: no plots of")
    assert "division by zero" in err
    assert err.count("\n") == 1
