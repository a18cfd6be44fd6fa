"""rates.csv: seconds and updates of each process of the study, from meta.json and perf.csv.

From the repository's root:

    python results/2026-cr-reach/rates.py runs/cr_reach results/2026-cr-reach
"""

import csv
import sys
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots.recording import write_csv
from plots.study import Study, read_study
from plots.variants import SAC


def updates_of(config: dict) -> int:
    """Gradient steps of a run of its full length."""
    return (config["total_timesteps"] - config["learning_starts"]) * config["utd"]


def process_rows(study: Study) -> list[dict]:
    """A row for each variant: its seeds trained in one process."""
    rows = []
    for (label, env), runs in study.cells.items():
        seconds = max(run.meta["elapsed_s"] for run in runs)
        updates = sum(updates_of(run.config) for run in runs)
        process = label if len(study.environments) == 1 else f"{env}, {label}"
        row = {"process": process, "seeds": len(runs), "seed_updates": updates, "seconds": seconds}
        row["seed_updates_per_s"] = updates / seconds
        row["logged_per_s"] = logged_rate(runs[0].folder)
        row["gpu_memory_mb"] = runs[0].meta["peak_gpu_memory_mb"]
        rows.append(row)
    return rows


def logged_rate(folder: Path) -> float:
    """Median of perf/updates_per_second: of all seeds of a process, evaluations left out."""
    with open(folder / "perf.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["value"]) for row in rows if row["key"] == "perf/updates_per_second"]
    return float(np.median(rates))


def together(study: Study, rows: list[dict]) -> dict:
    """All processes, from the first one's start to the last one's end."""
    times = defaultdict(list)
    for runs in study.cells.values():
        for run in runs:
            for key in ("start", "end"):
                times[key].append(datetime.fromisoformat(run.meta[key]))
    seconds = (max(times["end"]) - min(times["start"])).total_seconds()
    updates = sum(row["seed_updates"] for row in rows)
    total = {"process": "all together", "seeds": sum(row["seeds"] for row in rows)}
    total |= {"seed_updates": updates, "seconds": seconds}
    total["seed_updates_per_s"] = updates / seconds
    total["logged_per_s"] = sum(row["logged_per_s"] for row in rows)
    total["gpu_memory_mb"] = sum(row["gpu_memory_mb"] for row in rows)
    return total


def main(runs: Path, out: Path) -> None:
    study = read_study(runs, SAC, "losses/alpha")
    rows = process_rows(study)
    print(write_csv(out / "rates.csv", [*rows, together(study, rows)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
