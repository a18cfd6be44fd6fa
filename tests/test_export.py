"""scripts/export_results.py on Atari runs: returns in windows.

`pytest -q tests/test_export.py` (about 3 s).
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

import pqn_atari
import runlog
from plots import reading

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import export_results


def test_an_unfinished_run_has_whole_windows_only(tmp_path):
    args = pqn_atari.Args(runs_dir=str(tmp_path), total_timesteps=10_000)  # windows of 250 steps
    run = pqn_atari.runs_of(args)[0].open(tensorboard=False)
    for step, value in [(100, 1.0), (240, 2.0), (300, 3.0), (500, 5.0), (510, 99.0)]:
        run.log(step, {"charts/episodic_return": value})
    run.close()
    found = export_results.windows(reading.read_run(run.folder))
    assert found.tolist() == [[250, 1.5], [500, 4.0]]
    finished = pqn_atari.runs_of(args)[0].open(tensorboard=False)
    finished.log(9_990, {"charts/episodic_return": 6.0})
    finished.finish()
    found = export_results.windows(reading.read_run(run.folder))
    assert found[-1].tolist() == [10_000, 6.0]


def test_returns_of_games_are_means_over_windows(tmp_path):
    rng = np.random.default_rng(0)
    rows = {}
    for seed in (1, 2):
        args = pqn_atari.Args(
            seed=seed, runs_dir=str(tmp_path), activation="tanh_hr", total_timesteps=10_000
        )
        run = pqn_atari.runs_of(args)[0].open(tensorboard=False)
        rows[seed] = [
            (step, float(rng.integers(100))) for step in sorted(rng.integers(1, 8_000, size=150))
        ]
        rows[seed].append((10_000, 7.0))
        for step, value in rows[seed]:
            run.log(int(step), {"charts/episodic_return": value})
        for step in (5_000, 10_000):
            run.log(
                step,
                {"eval/episodic_return": step / 1_000, "network/q/fc1/branch1_dead_share": 0.25},
            )
        run.finish()
    folders = sorted(tmp_path.glob("Breakout*"))
    export_results.main(export_results.Args(tuple(folders), tmp_path / "out"))
    with open(tmp_path / "out" / "curves.csv") as file:
        found = list(csv.DictReader(file))
    for seed in (1, 2):
        ours = [
            r for r in found if r["metric"] == "charts/window_return" and int(r["seed"]) == seed
        ]
        told = {int(r["env_step"]): float(r["value"]) for r in ours}
        truth = {}
        for end in range(250, 10_001, 250):
            inside = [value for step, value in rows[seed] if end - 250 < step <= end]
            if inside:
                truth[end] = sum(inside) / len(inside)
        assert told.keys() == truth.keys() and np.allclose(
            [told[k] for k in truth], [*truth.values()], rtol=1e-12
        )
    assert {
        float(r["value"]) for r in found if r["metric"] == "network/q/fc1/branch1_dead_share"
    } == {0.25}
    with open(tmp_path / "out" / "runs.csv") as file:
        assert [row["last_return"] for row in csv.DictReader(file)] == ["10.0", "10.0"]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_runs_that_differ_in_a_setting_are_curves_of_their_own(tmp_path):
    for eps in (1e-8, 1e-5):
        args = pqn_atari.Args(runs_dir=str(tmp_path), learning_rate=eps, total_timesteps=10_000)
        run = pqn_atari.runs_of(args)[0].open(tensorboard=False)
        for step in (5_000, 10_000):
            run.log(step, {"eval/episodic_return": eps * step, "charts/episodic_return": 0.0})
        run.finish()
    folders = tuple(tmp_path.glob("Breakout*"))
    with pytest.raises(runlog.UserError, match="differ in learning_rate"):
        export_results.main(export_results.Args(folders, tmp_path / "out"))
    export_results.main(export_results.Args(folders, tmp_path / "out", by=("learning_rate",)))
    with open(tmp_path / "out" / "curves.csv") as file:
        last = {
            row["activation"]: float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"].startswith("ev")
        }
    assert last == {"relu, learning_rate 1e-08": 1e-4, "relu, learning_rate 1e-05": 0.1}
    with pytest.raises(runlog.UserError, match="--by utd"):
        export_results.main(
            export_results.Args(folders, tmp_path / "out", by=("learning_rate", "utd"))
        )
