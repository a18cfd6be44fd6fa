"""decay.csv: decay 0.1 on the coefficients at their default scale, less the same cell without it.

The cells without decay are of other studies: on digits of the same machine and commit, on MNIST of
another machine. From the repository's root:

    python results/2026-league/decay.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots.league import LATE_ACCURACY, RUNS, late_by_seed, paired_difference
from plots.recording import read_csv, rows_where, write_csv
from plots.statistics import mean_interval

RESULTS = Path(__file__).resolve().parents[1]
WITH_DECAY = RESULTS / "2026-league" / RUNS
WITHOUT = {
    "digits random_labels": ("same machine", RESULTS / "2026-dynamic-constraint/digits" / RUNS),
    "mnist random_labels": ("other machine", RESULTS / "2026-continual" / RUNS),
}


def main() -> None:
    rows = []
    for study, (machine, without) in WITHOUT.items():
        for cell in ("rational", "crational"):
            decayed = rows_where(read_csv(WITH_DECAY), study=study, cell=f"{cell}, decay 0.1")
            plain = rows_where(read_csv(without), study=study, cell=cell)
            differences = paired_difference(late_by_seed(decayed), late_by_seed(plain))
            value, low, high = (float(end) for end in mean_interval(differences))
            row = {"study": study, "cell": cell, "without decay": machine}
            row |= {"measure": LATE_ACCURACY, "n": len(differences)}
            row |= {"difference": value, "low": low, "high": high}
            rows.append(row)
    print(write_csv(Path(__file__).parent / "decay.csv", rows))


if __name__ == "__main__":
    main()
