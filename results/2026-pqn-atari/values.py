"""values.csv: return, rank and dead neurons of each run at the steps of this study's tables.
differences.csv: relu and tanh minus tanh_hr, paired by seed.

From the repository's root:

    python results/2026-pqn-atari/values.py
"""

import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots import statistics
from plots.recording import distinct, read_csv, rows_where, write_csv

FOLDER = Path(__file__).resolve().parent
STEPS = {  # folder of curves.csv: steps of the tables
    "breakout": (401_408, 503_808, 999_424),
    "breakout-h200": (401_408, 503_808),
    "spaceinvaders": (503_808, 999_424),
    "../2026-pqn-seeds/seeds": (401_408,),
}
BASELINE = "tanh_hr"
OTHERS = ("relu", "tanh")
MEASURES = {  # column: metric at this step
    "greedy": "eval/episodic_return",
    "games": "eval/num_games",  # over which greedy is a mean; not in older files
    "srank": "network/q/fc1/srank",
    "dead": "network/q/fc1/dead_share",
    "dormant": "network/q/fc1/dormant_share",
}
MEASURED = ("training", "greedy", "srank", "dead")  # measures of differences.csv
WINDOW = 100_000  # steps over which the return of the training games is averaged
END = {999_424: 1_000_000}  # step of the last measurement: end of the last window of returns


def main() -> None:
    rows = []
    for folder, steps in STEPS.items():
        curves = read_csv(FOLDER / folder / "curves.csv")
        for activation in (*OTHERS, BASELINE):
            of_activation = rows_where(curves, activation=activation)
            for seed in sorted(distinct(of_activation, "seed")):
                of_run = rows_where(of_activation, seed=seed)
                for step in steps:
                    start = {"folder": folder, "activation": activation, "seed": seed}
                    rows.append(start | {"step": step} | values_at(of_run, step))
    print(write_csv(FOLDER / "values.csv", rows))
    print(write_csv(FOLDER / "differences.csv", differences(rows)))


def values_at(rows: list[dict], step: int) -> dict[str, float]:
    """The measures of a run at this step."""
    found = {}
    for column, metric in MEASURES.items():
        for row in rows_where(rows, metric=metric, env_step=str(step)):
            found[column] = float(row["value"])
    windows = []
    end = END.get(step, step)
    for row in rows_where(rows, metric="charts/window_return"):
        if end - WINDOW < float(row["env_step"]) <= end:
            windows.append(float(row["value"]))
    return {"training": float(np.mean(windows))} | found


def differences(rows: list[dict]) -> list[dict]:
    """For each folder, step and measure: an activation minus tanh_hr, mean over the pairs of equal
    seeds, its 95 % bootstrap interval, and the number of seeds in which the difference is above
    zero."""
    found = []
    for folder, steps in STEPS.items():
        for step, other, measure in itertools.product(steps, OTHERS, MEASURED):
            of_cell = rows_where(rows, folder=folder, step=step)
            theirs = {row["seed"]: row[measure] for row in rows_where(of_cell, activation=other)}
            ours = {row["seed"]: row[measure] for row in rows_where(of_cell, activation=BASELINE)}
            by_seed = np.array([theirs[seed] - ours[seed] for seed in ours])
            low, high = statistics.stratified_bootstrap([by_seed], statistics.mean_of_means)
            row = {"folder": folder, "step": step, "measure": measure, "activation": other}
            row |= {"n": len(by_seed), "difference": by_seed.mean(), "low": low, "high": high}
            row["above"] = int((by_seed > 0).sum())
            found.append(row)
    return found


if __name__ == "__main__":
    main()
