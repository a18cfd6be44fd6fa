"""both_axes.csv and .png: late online accuracy on digits against the largest output in reach, at
the end of training and at its worst.

From the repository's root:

    python results/2026-dynamic-constraint/both_axes.py

Reads the CSV files of this folder, of digits/ and, for the plain rational in reach, of
../2026-cr-reach.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots import statistics
from plots.recording import distinct, read_csv, rows_where, write_figure
from plots.scatter import SCATTER

HERE = Path(__file__).resolve().parent
REACH = HERE / "cr_constraint-reach-v3-seeds.csv"
OTHER_CARD = HERE.parent / "2026-cr-reach" / "cr_seeds-reach-v3-inside.csv"
DIGITS = HERE / "digits" / "continual_cells.csv"
LATE = "online accuracy, late tasks"
SCHEDULES = {  # shown: label in reach, label on digits
    "trained": ("crational", "crational"),
    "fixed at 5": ("crational, c fixed", "crational, c fixed"),
    "wide to tight: from 40 in reach, 20 on digits, to 5": (
        "crational, c anneal, from 40, to 5",
        "crational, from 20.0, c anneal, to 5.0",
    ),
    "tight to wide: from 5 to 40 in reach, 20 on digits": (
        "crational, c anneal, to 40",
        "crational, c anneal",
    ),
    "adaptive, margin 2": ("crational, c adaptive", "crational, c adaptive"),
}
NO_CONSTRAINT = "rational, no constraint (in reach on another card)"


def outputs(path: Path, variant: str) -> dict[str, dict[str, float]]:
    """Panel -> largest output of the critics: median over seeds and its bootstrap interval."""
    rows = rows_where(read_csv(path), panel="output", variant=variant)
    curves = []
    for seed in distinct(rows, "seed"):
        curves.append([row["value"] for row in rows_where(rows, seed=seed)])
    of_panel = {
        "at the end": [curve[-1] for curve in curves],
        "at its worst": [max(curve) for curve in curves],
    }
    found = {}
    for panel, values in of_panel.items():
        values = np.array(values)
        low, high = statistics.stratified_bootstrap([values], statistics.median_of_runs)
        found[panel] = {"x": np.median(values), "x: low": low, "x: high": high}
    return found


def late_accuracy(cell: str) -> dict[str, float]:
    """Mean over seeds and its interval by Student's t."""
    (row,) = rows_where(read_csv(DIGITS), cell=cell)
    ends = {"y: low": float(row[f"{LATE}: low"]), "y: high": float(row[f"{LATE}: high"])}
    return {"y": float(row[LATE])} | ends


def main() -> None:
    rows = []
    for shown, (in_reach, on_digits) in SCHEDULES.items():
        for panel, output in outputs(REACH, in_reach).items():
            row = {"panel": panel, "variant": shown}
            rows.append(row | output | late_accuracy(on_digits))
    for panel, output in outputs(OTHER_CARD, "rational").items():
        row = {"panel": panel, "variant": NO_CONSTRAINT}
        rows.append(row | output | late_accuracy("rational"))
    variants = distinct(rows, "variant")
    label = "largest output of the critics in reach"
    paths = write_figure(
        HERE,
        "both_axes",
        SCATTER,
        rows,
        ("png",),
        variants=variants,
        activation_of={variant: variant for variant in variants},
        panels={panel: f"{label}, {panel}" for panel in distinct(rows, "panel")},
        unit="late accuracy on digits",
        scales={"x": "log", "y": "linear"},
        caption=[
            "A constraint that changes: stability to the left, plasticity to the top, n = 10 seeds",
            "x: reach-v3 at UTD 10, median and its 95 % bootstrap",
            "y: digits, random labels, mean of the last five tasks and its 95 % interval",
        ],
    )
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
