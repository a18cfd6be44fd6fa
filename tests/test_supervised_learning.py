"""The supervised scripts learn what a constant predictor cannot.

`pytest -q tests/test_supervised_learning.py` (about 30 s).
"""

import csv
from pathlib import Path

import pytest

import continual_supervised
import function_approximation
import runlog

COMMON = "--no-compile --no-tensorboard --device cpu --threads 1 --runs-dir"


def train(script, folder: Path, flags: str) -> dict[str, dict[tuple[int, str], float]]:
    """run folder -> (step, key) -> value."""
    script.main(runlog.parse_args(script.Args, [*COMMON.split(), str(folder), *flags.split()]))
    found = {}
    for path in folder.glob("*/scalars.csv"):
        with open(path) as file:
            rows = list(csv.DictReader(file))
        values = {(int(row["step"]), row["key"]): float(row["value"]) for row in rows}
        found[path.parent.name] = values
    return found


@pytest.mark.parametrize("kind", ["permuted_labels", "permuted_pixels"])
@pytest.mark.parametrize("activation", ["relu", "crational"])
def test_each_task_is_learned_and_generalises(kind, activation, tmp_path):
    """Digits in 10 classes: a constant predictor is right in about 10 %."""
    flags = f"--tasks {kind} --activation {activation} --num-tasks 2 --epochs 12 --num-train 600"
    flags += " --num-seeds 2 --batch-size 20 --metrics-samples 0 --ntk-samples 0"
    runs = train(continual_supervised, tmp_path, flags)
    assert len(runs) == 2
    for values in runs.values():
        for step in (360, 720):  # the ends of both tasks
            assert values[step, "charts/end_accuracy"] > 0.9
            assert values[step, "charts/test_accuracy"] > 0.8
            assert values[step, "charts/online_accuracy"] > 0.6


def test_the_function_is_fitted(tmp_path, monkeypatch):
    """Its variance on the points, which is the error of the best constant, is 178."""
    monkeypatch.setattr(function_approximation, "draw", lambda folders, out: None)
    flags = "--activations tanh tanh_hr crational --deep-activations relu --deep-widths 50 50"
    flags += " --learning-rates 1e-2 --num-seeds 2 --total-steps 1000 --log-frequency 500"
    runs = train(function_approximation, tmp_path, f"{flags} --table1-neurons 0")
    assert len(runs) == 8
    for name, values in runs.items():
        assert values[0, "eval/mse"] > 100
        assert values[1000, "losses/mse"] < 30 and values[1000, "eval/mse"] < 30, name
