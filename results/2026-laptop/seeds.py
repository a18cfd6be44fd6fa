"""sac/seeds.csv: last values of every seed. sac/layers.csv:
first and last values, means over seeds and critics.

From the repository's root: python results/2026-laptop/seeds.py runs/laptop results/2026-laptop/sac
"""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots import aggregation, study, variants

SEEDS = {
    "return": "eval/episodic_return",
    "success": "eval/success",
    "Q - G": "overestimation/mean",
}
SEEDS |= {
    "coefficient gradient": r"network/qf\d/coefficient_gradient_norm",
    "max |f(x)|": r"network/qf\d/fc\d/f_max",
}
LAYERS = {
    f"{fc} {q}": rf"network/qf\d/{fc}/{q}"
    for fc, q in itertools.product(("fc1", "fc2"), ("preact_q01", "preact_q99"))
}
LAYERS |= {name: rf"network/qf\d/fc\d/{name}" for name in ("numerator_norm", "denominator_norm")}


def main(runs: Path, out: Path) -> None:
    sac = study.read_study(runs, variants.SAC, "|".join([*SEEDS.values(), *LAYERS.values()]))
    seeds = [["environment", "variant", "seed", *SEEDS]]
    layers = [["environment", "variant", "value", "n", "first", "last"]]
    for (variant, env), group in sorted(sac.cells.items()):
        for run in group:
            ends = [
                aggregation.combined(run, key, "max" if "f_max" in key else "mean")
                for key in SEEDS.values()
            ]
            ends = [f"{each[-1, 1]:.5g}" if len(each) else "" for each in ends]
            seeds.append([env, variant, run.config["seed"], *ends])
        for name, key in LAYERS.items():
            found = [aggregation.combined(run, key) for run in group]
            if all(len(each) for each in found):
                first, last = (np.mean([each[i, 1] for each in found]) for i in (0, -1))
                layers.append([env, variant, name, len(found), f"{first:.4g}", f"{last:.4g}"])
    for name, rows in (("seeds", seeds), ("layers", layers)):
        with open(out / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
