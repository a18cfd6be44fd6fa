"""rates.csv: environment steps per second of processes that share a GPU, in the last 200 seconds,
and seconds from the start of each until its first game had ended.

From the repository's root, with the run folders of the processes:

    python results/2026-pqn-atari/rates.py runs/pqn_breakout_gpu/* runs/pqn_spaceinvaders_gpu/*
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from plots import reading
from plots.recording import write_csv

FOLDER = Path(__file__).resolve().parent
SECONDS = 200
COLUMNS = ("game", "activation", "seed", "steps_per_s", "first_game_s")


def main(folders: list[Path]) -> None:
    rows = []
    for folder in folders:
        run = reading.read_run(folder)
        steps, _, seconds = run.series("charts/episodic_return").T
        is_earlier = seconds <= seconds[-1] - SECONDS
        step_then = steps[is_earlier][-1]
        seconds_then = seconds[is_earlier][-1]
        rate = (steps[-1] - step_then) / (seconds[-1] - seconds_then)
        values = (
            run.config["env_id"],
            run.config["activation"],
            run.config["seed"],
            rate,
            seconds[0],
        )
        rows.append(dict(zip(COLUMNS, values)))
    total = sum(row["steps_per_s"] for row in rows)
    rows.append(dict(zip(COLUMNS, ("all together", "", "", total, ""))))
    print(write_csv(FOLDER / "rates.csv", rows))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
