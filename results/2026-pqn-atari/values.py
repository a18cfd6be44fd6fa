"""values.csv: return, rank and dead neurons of each run at the steps of this study's tables.

From the repository's root:

    python results/2026-pqn-atari/values.py
"""

import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots.recording import read_csv, rows_where, write_csv

FOLDER = Path(__file__).resolve().parent
STEPS = {  # folder of curves.csv: steps of the tables
    "breakout": (401_408, 503_808),
    "breakout-1m": (401_408, 503_808, 999_424),
    "spaceinvaders": (151_552, 352_256, 999_424),
    "../2026-pqn-seeds/seeds": (401_408,),
}
MEASURES = {  # column: metric at this step
    "greedy": "eval/episodic_return",
    "games": "eval/num_games",  # over which greedy is a mean; not in older files
    "srank": "network/q/fc1/srank",
    "dead": "network/q/fc1/dead_share",
    "dormant": "network/q/fc1/dormant_share",
}
WINDOW = 100_000  # steps over which the return of the training games is averaged
END = {999_424: 1_000_000}  # step of the last measurement: end of the last window of returns


def main() -> None:
    rows = []
    for folder, steps in STEPS.items():
        curves = read_csv(FOLDER / folder / "curves.csv")
        for activation, seed in itertools.product(("relu", "tanh", "tanh_hr"), "1234"):
            of_run = rows_where(curves, activation=activation, seed=seed)
            for step in steps:
                measured = values_at(of_run, step)
                if measured:
                    start = {"folder": folder, "activation": activation, "seed": seed}
                    rows.append(start | {"step": step} | measured)
    print(write_csv(FOLDER / "values.csv", rows))


def values_at(rows: list[dict], step: int) -> dict[str, float]:
    """The measures of a run at this step; {} if it was not measured then."""
    found = {}
    for column, metric in MEASURES.items():
        for row in rows_where(rows, metric=metric, env_step=str(step)):
            found[column] = float(row["value"])
    if "srank" not in found:
        return {}
    windows = []
    end = END.get(step, step)
    for row in rows_where(rows, metric="charts/window_return"):
        if end - WINDOW < float(row["env_step"]) <= end:
            windows.append(float(row["value"]))
    return {"training": float(np.mean(windows))} | found


if __name__ == "__main__":
    main()
