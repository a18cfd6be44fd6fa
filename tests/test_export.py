"""scripts/export_results.py on Atari runs: returns in windows.

`pytest -q tests/test_export.py` (about 3 s).
"""

import csv
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

import pqn_atari
import runlog
from plots import reading, redraw

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


def test_game_returns_are_means_over_windows(tmp_path):
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
        exported = {int(r["env_step"]): float(r["value"]) for r in ours}
        truth = {}
        for end in range(250, 10_001, 250):
            inside = [value for step, value in rows[seed] if end - 250 < step <= end]
            if inside:
                truth[end] = sum(inside) / len(inside)
        assert exported.keys() == truth.keys()
        assert np.allclose([exported[k] for k in truth], [*truth.values()], rtol=1e-12)
    assert {
        float(r["value"]) for r in found if r["metric"] == "network/q/fc1/branch1_dead_share"
    } == {0.25}
    with open(tmp_path / "out" / "runs.csv") as file:
        assert [row["last_return"] for row in csv.DictReader(file)] == ["10.0", "10.0"]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_runs_that_differ_in_a_setting_are_separate_curves(tmp_path):
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


def test_without_a_picture_only_the_tables_are_written(tmp_path):
    make_run(tmp_path / "runs", 1, [5_000])
    for picture in (True, False):
        out = tmp_path / f"{picture}"
        export_results.main(export_results.Args((tmp_path / "runs",), out, picture=picture))
    written = {path.name for path in (tmp_path / "True").iterdir()}
    assert written == {"runs.csv", "curves.csv", "curves.png", "figures.json"}
    assert {path.name for path in out.iterdir()} == {"runs.csv", "curves.csv"}
    assert (out / "curves.csv").read_text() == (tmp_path / "True/curves.csv").read_text()


@pytest.mark.parametrize(
    ("device", "gpu", "expected"),
    [("auto", "NVIDIA H200", "NVIDIA H200"), ("cpu", "NVIDIA H200", ""), ("auto", None, "")],
)
def test_the_gpu_of_a_run_is_exported_if_it_was_used(device, gpu, expected, tmp_path):
    folder = make_run(tmp_path / "runs", 1, [5_000])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"device": device}))
    meta = json.loads((folder / "meta.json").read_text())
    meta["hardware"]["gpu"] = gpu
    meta["sessions"] = []
    (folder / "meta.json").write_text(json.dumps(meta))
    export_results.main(export_results.Args((tmp_path / "runs",), tmp_path / "out"))
    with open(tmp_path / "out" / "runs.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["gpu"] == expected
    assert row["cpu"] == meta["hardware"]["cpu"]


def test_every_machine_of_a_run_is_exported(tmp_path):
    folder = make_run(tmp_path / "runs", 1, [5_000])
    meta = json.loads((folder / "meta.json").read_text())
    (last,) = meta["sessions"]
    first = {"git": {"commit": "a" * 40, "dirty": True}, "versions": {"torch": "2.11.0"}}
    first["hardware"] = {"cpu": "Xeon", "gpu": "NVIDIA H200"}
    meta["sessions"] = [first, last]
    (folder / "meta.json").write_text(json.dumps(meta))
    export_results.main(export_results.Args((tmp_path / "runs",), tmp_path / "out"))
    with open(tmp_path / "out" / "runs.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["cpu"] == f"Xeon + {meta['hardware']['cpu']}"
    assert row["gpu"].startswith("NVIDIA H200")
    assert row["torch"] == f"2.11.0 + {meta['versions']['torch']}"
    assert row["git"] == f"{'a' * 40} + {meta['git']['commit']}"
    assert row["dirty"].startswith("True")


def make_run(folder, seed, steps, status="finished", diverged_at=None):
    """A run whose evaluation return at a step is the step times its seed."""
    args = pqn_atari.Args(seed=seed, runs_dir=str(folder), total_timesteps=10_000)
    run = pqn_atari.runs_of(args)[0].open(tensorboard=False)
    for step in steps:
        run.log(int(step), {"eval/episodic_return": float(step * seed)})
    if status == "running":
        run.close()
    else:
        run.finish(status, **({"step": diverged_at} if diverged_at else {}))
    return run.folder


def returns_by_seed(out) -> dict[int, dict[int, float]]:
    """seed -> step -> evaluation return of curves.csv."""
    found = {}
    with open(out / "curves.csv") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "eval/episodic_return":
                of_seed = found.setdefault(int(row["seed"]), {})
                of_seed[int(row["env_step"])] = float(row["value"])
    return found


def test_rows_are_thinned_at_common_steps():
    """Of 10,000 and 9,990 rows, the same 200 are kept."""
    series = [np.arange(1, n + 1).repeat(2).reshape(-1, 2) for n in (10_000, 9_990)]
    first, second = (rows[:, 0].tolist() for rows in export_results.thinned(series))
    assert (len(first), len(second)) == (200, 200)
    assert first == second
    assert first[0] == 1
    assert first[-1] == 9_990
    # equal steps: evenly spaced, with the first and the last
    expected = np.unique(np.linspace(1, 10_000, 200).round())
    for rows in export_results.thinned([series[0], series[0]]):
        assert rows[:, 0].tolist() == expected.tolist()


def test_a_run_that_is_measured_rarely_keeps_its_rows():
    often = np.arange(10, 20_001, 10).repeat(2).reshape(-1, 2)
    rarely = np.arange(1_000, 20_001, 1_000).repeat(2).reshape(-1, 2)
    elsewhere = np.arange(5, 20_000, 10).repeat(2).reshape(-1, 2)
    of_often, of_rarely, of_elsewhere = export_results.thinned([often, rarely, elsewhere])
    assert of_rarely.tolist() == rarely.tolist()
    assert {*rarely[:, 0]} <= {*of_often[:, 0]}
    assert len(of_often) == 200 and 190 <= len(of_elsewhere) <= 200


def test_a_mean_reaches_the_end_of_the_shortest_seed(tmp_path):
    make_run(tmp_path, 1, range(1, 1_001), "running")
    make_run(tmp_path, 3, range(1, 991), "running")
    out = tmp_path / "out"
    export_results.main(export_results.Args((tmp_path,), out))
    figure = redraw.figure_of(out, "curves")
    steps, mean = figure.axes[0].get_lines()[0].get_data()
    assert len(steps) >= 195 and 985 <= steps[-1] <= 990
    assert mean == pytest.approx(2 * steps)  # of the seeds 1 and 3


def test_the_last_value_of_a_diverged_seed_is_carried_forward(tmp_path, capsys):
    make_run(tmp_path, 1, range(1_000, 10_001, 1_000))
    make_run(tmp_path, 3, [1_000, 2_000, 3_000], "diverged", 3_500)
    out = tmp_path / "out"
    export_results.main(export_results.Args((tmp_path,), out))
    found = returns_by_seed(out)
    assert found[1] == {step: step for step in range(1_000, 10_001, 1_000)}
    assert found[3] == {step: 3 * min(step, 3_000) for step in range(1_000, 10_001, 1_000)}
    figure = redraw.figure_of(out, "curves")
    assert "1 of 2 runs diverged (last value carried forward)" in " ".join(
        figure.get_suptitle().split()
    )
    steps, mean = figure.axes[0].get_lines()[0].get_data()
    assert steps[-1] == 10_000 and mean[-1] == (10_000 + 9_000) / 2
    deviation = statistics.stdev([10_000, 9_000])
    assert f"last return 9500.0 +- {deviation:.1f}, std over seeds (ddof 1)" in (
        capsys.readouterr().out
    )


def test_a_reference_must_not_have_the_name_of_our_own_curve(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / "runs", seed, [5_000, 10_000])
    header = "exp,env,activation,seed,metric,env_step,value\n"
    path = tmp_path / "other.csv"
    out = tmp_path / "out"
    args = export_results.Args((tmp_path / "runs",), out, reference=(path,))
    path.write_text(f"{header}sb3,Breakout,relu,1,eval/episodic_return,5000,7.0\n")
    with pytest.raises(runlog.UserError, match=r"has relu, seed 1, .* as has curves\.csv"):
        export_results.main(args)
    assert not out.exists()
    path.write_text(f"{header}sb3,Breakout,relu of sb3,1,eval/episodic_return,5000,7.0\n")
    export_results.main(args)
    lines = redraw.figure_of(out, "curves").axes[0].get_lines()
    means = {line.get_label(): line.get_ydata().tolist() for line in lines}
    assert means["relu, n = 2"] == [7_500, 15_000] and means["relu of sb3, n = 1"] == [7]
    # a folder that was written before the check
    path.write_text(f"{header}sb3,Breakout,relu,1,eval/episodic_return,5000,7.0\n")
    (out / "other.csv").write_text(path.read_text())
    with pytest.raises(runlog.UserError, match="has relu, seed 1"):
        redraw.figure_of(out, "curves")
