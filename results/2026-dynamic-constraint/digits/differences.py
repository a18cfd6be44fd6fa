"""Late online accuracy of every schedule less that of the trained c and of rational, by seed.

    python differences.py FOLDER

Reads continual_runs.csv of the folder and writes differences.csv: mean difference and Student's
95 % interval over the seeds, and in how many the schedule is better and worse.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

folder = Path(sys.argv[1])
late = defaultdict(dict)
with open(folder / "continual_runs.csv", newline="") as file:
    for row in csv.DictReader(file):
        late[row["cell"]][row["seed"]] = float(row["online accuracy, late tasks"])

rows = []
for reference in ("crational", "rational"):
    for cell, values in late.items():
        if cell == reference:
            continue
        differences = np.array([values[seed] - late[reference][seed] for seed in values])
        mean = differences.mean()
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        half = stats.t.ppf(0.975, len(differences) - 1) * error
        row = {"cell": cell, "less": reference, "n": len(differences)}
        row |= {"difference": mean, "low": mean - half, "high": mean + half}
        row |= {"better": int((differences > 0).sum()), "worse": int((differences < 0).sum())}
        rows.append(row)

with open(folder / "differences.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
