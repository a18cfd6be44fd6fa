"""training.csv: return of the training games of the last 100,000 of 401,408 steps, by seed, and
less that of tanh_hr.

From the repository's root:

    python results/2026-pqn-seeds/training.py
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots.recording import read_csv, rows_where, write_csv

FOLDER = Path(__file__).resolve().parent
LAST = 401_408


def main() -> None:
    windows = rows_where(read_csv(FOLDER / "seeds/curves.csv"), metric="charts/window_return")
    returns = {}
    for activation in ("relu", "tanh", "tanh_hr"):
        for seed in ("1", "2", "3"):
            of_run = rows_where(windows, activation=activation, seed=seed)
            late = [
                float(row["value"])
                for row in of_run
                if LAST - 100_000 < float(row["env_step"]) <= LAST
            ]
            returns[activation, seed] = float(np.mean(late))
    rows = []
    for (activation, seed), value in returns.items():
        row = {"activation": activation, "seed": seed, "return": value}
        row["less tanh_hr"] = value - returns["tanh_hr", seed]
        rows.append(row)
    print(write_csv(FOLDER / "training.csv", rows))


if __name__ == "__main__":
    main()
