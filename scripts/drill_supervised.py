"""Kills the supervised scripts with SIGKILL at random moments,
--kills times, and starts the same command again.

    python scripts/drill_supervised.py            # 5 kills each; minutes on one core

scalars.csv of every seed must equal, byte for byte except for wall times, that of an undisturbed
run. Each session lasts a little longer than the one before, so that slow machines get there too.
Exits with 1 on any difference.
"""

import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from drill_atari import finish, start

COMMON = "--num-seeds 2 --no-compile --no-tensorboard --device cpu --threads 1"
SCRIPTS = {
    "continual_supervised": (
        "--num-tasks 4 --epochs 30 --tasks permuted_labels --activation crational --redo "
        "--checkpoint-frequency 150 --log-frequency 150 --metrics-samples 64 --ntk-samples 32"
    ),
    "function_approximation": (
        "--total-steps 3000 --deep-activations --activations tanh_hr crational --log-frequency 10 "
        "--checkpoint-frequency 100 --learning-rates 1e-3 1e-2 --table1-neurons 0"
    ),
}


@dataclasses.dataclass
class Args:
    kills: int = 5
    seed: int = 1  # of the random moments of the kills
    scripts: tuple[str, ...] = tuple(SCRIPTS)


def rows(folder: Path) -> dict[str, list[str]]:
    """run folder -> lines of scalars.csv without the wall time."""
    files = sorted(folder.glob("*/scalars.csv"))
    return {
        file.parent.name: [line.rpartition(",")[0] for line in file.read_text().splitlines()]
        for file in files
    }


def main(args: Args) -> None:
    problems = []
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temp:
        for script in args.scripts:
            whole, killed = (Path(temp) / f"{script}-{name}" for name in ("undisturbed", "killed"))
            start_time = time.monotonic()
            finish(start(script, whole, COMMON, SCRIPTS))
            seconds = time.monotonic() - start_time
            kills = 0
            print(f"{script}: undisturbed in {seconds:.0f} s", flush=True)
            pause = 0.25 * seconds
            while kills < args.kills:
                process = start(script, killed, COMMON, SCRIPTS)
                try:
                    process.wait(pause * moments.uniform(0.8, 1.2))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                else:
                    finish(process)
                    problems.append(f"{script}: only {kills} kills came before its end")
                    break
                kills += 1
                pause = 1.05 * pause
                lines = sum(map(len, rows(killed).values()))
                print(
                    f"  kill {kills}: {lines} of {sum(map(len, rows(whole).values()))} rows on "
                    "disk",
                    flush=True,
                )
            else:
                finish(start(script, killed, COMMON, SCRIPTS))
            sessions = []
            for file in killed.glob("*/meta.json"):
                sessions += json.loads(file.read_text())["sessions"]
            if not any(session.get("from_step", 0) > 0 for session in sessions):
                problems.append(f"{script}: no session resumed from a checkpoint")
            if rows(whole) != rows(killed):
                problems.append(f"{script}: the rows differ")
    if problems:
        sys.exit("FAILED: " + "; ".join(problems))
    print("passed: scalars.csv of the killed runs equal those of undisturbed ones")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
