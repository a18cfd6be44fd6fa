"""machines.csv: the cells of digits that two machines have trained, the second less the first.

From the repository's root:

    python results/2026-league/machines.py
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots.league import LATE_ACCURACY, RUNS, late_by_seed, paired_difference
from plots.recording import read_csv, rows_where, write_csv
from plots.statistics import mean_interval

RESULTS = Path(__file__).resolve().parents[1]
FIRST = RESULTS / "2026-continual" / RUNS
SECOND = RESULTS / "2026-dynamic-constraint" / "digits" / RUNS


def main() -> None:
    rows = []
    for cell in ("rational", "crational"):
        of_cell = {"study": "digits random_labels", "cell": cell}
        amd = late_by_seed(rows_where(read_csv(FIRST), **of_cell))
        intel = late_by_seed(rows_where(read_csv(SECOND), **of_cell))
        differences = paired_difference(intel, amd)
        value, low, high = (float(end) for end in mean_interval(differences))
        row = of_cell | {"measure": LATE_ACCURACY, "n": len(differences)}
        row |= {"difference": value, "low": low, "high": high}
        row["correlation"] = float(np.corrcoef([*intel.values()], [*amd.values()])[0, 1])
        rows.append(row)
    print(write_csv(Path(__file__).parent / "machines.csv", rows))


if __name__ == "__main__":
    main()
