"""Kills each Atari script with SIGKILL at random moments,
--kills times, and starts the same command again each time.

    # 5 kills each; about 10 minutes on one core of an AMD EPYC, 1 GB
    python scripts/drill_atari.py

The games are real and start over with each session, so returns differ from those of an undisturbed
run. Everything else must agree with it: which rows of losses, schedules and network metrics there
are, at which steps and in which order, none lost and none twice; the values of the schedules; the
number of updates. (tests/test_atari_runs.py compares every weight, on games that depend on time
alone.) Exits with 1 on any difference.
"""

import csv
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "--env-id Breakout --no-compile --no-tensorboard --device cpu --threads 1 --env-threads 1 "
    "--width 64"
)
COMMON += " --metrics-samples 64 --activation tanh_hr --num-eval-episodes 2"
SCRIPTS = {
    "dqn_atari": (
        "--total-timesteps 4000 --learning-starts 400 --checkpoint-frequency 100 "
        "--log-frequency 50 --metrics-frequency 500 --buffer-size 2000 --exploration-steps 2000 "
        "--target-frequency 100 --eval-frequency 4000"
    ),
    "ppo_atari": (
        "--total-timesteps 12288 --checkpoint-frequency 256 --log-frequency 128 "
        "--metrics-frequency 2048 --num-steps 32"
    ),
    "pqn_atari": (
        "--total-timesteps 12288 --checkpoint-frequency 256 --log-frequency 256 "
        "--metrics-frequency 2048 --num-envs 16 --num-steps 16 --num-minibatches 4 "
        "--num-test-envs 2 --eval-frequency 4096"
    ),
}


@dataclasses.dataclass
class Args:
    kills: int = 5
    seed: int = 1  # of the random moments of the kills
    scripts: tuple[str, ...] = tuple(SCRIPTS)


def start(
    script: str, folder: Path, flags: str = COMMON, own: dict[str, str] = SCRIPTS
) -> subprocess.Popen:
    """Start the script with the common flags and its own."""
    command = [
        sys.executable,
        f"{script}.py",
        *flags.split(),
        *own[script].split(),
        "--runs-dir",
        str(folder),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def rows(folder: Path) -> list[list[str]]:
    """[step, key, value] of each row."""
    files = list(folder.glob("*/scalars.csv"))
    return [row[:3] for row in list(csv.reader(files[0].open()))[1:]] if files else []


def finish(process: subprocess.Popen) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(f"FAILED: exit code {process.returncode}: {errors[-800:]}")
    if "replay.dat" in errors:  # a kill must not damage a replay
        sys.exit(f"FAILED: {errors[-800:]}")


def kill_often(
    script: str, folder: Path, seconds: float, args: Args, moments: random.Random
) -> int:
    """Starts and kills; returns the number of kills that came before the run ended."""
    # a session lasts from part of its start-up up to a time that brings the last one near the end
    for kill in range(args.kills):
        process = start(script, folder)
        try:
            pause = seconds * (0.1 + 1.5 / args.kills * moments.random())
            process.wait(pause)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            finish(process)
            return kill
        last = rows(folder)[-1:] or [["none"]]
        print(
            f"  kill {kill + 1} after {pause:.1f} s, last row on disk: step {last[0][0]}",
            flush=True,
        )
    finish(start(script, folder))
    return args.kills


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs."""

    def regular(folder):
        return [
            row for row in rows(folder) if row[1].startswith(("losses/", "network/", "charts/"))
        ]

    def schedules(folder):
        return [row for row in rows(folder) if row[1] in ("charts/epsilon", "charts/learning_rate")]

    def places(folder):
        return [row[:2] for row in regular(folder) if not row[1].startswith("charts/episodic")]

    def last(folder):
        (file,) = folder.glob("*/checkpoint.pt")
        content = torch.load(file, weights_only=False)
        return content["step"], content["state"]["num_updates"]

    steps = [int(row[0]) for row in rows(killed) if row[1] == "charts/episodic_return"]
    (meta,) = killed.glob("*/meta.json")
    starts = [session.get("from_step", 0) for session in json.loads(meta.read_text())["sessions"]]
    checks = {
        "sessions that resumed from a checkpoint": max(starts) > 0,
        "rows of losses, schedules and metrics": places(whole) == places(killed),
        "values of the schedules": schedules(whole) == schedules(killed),
        "steps of games are in order": steps == sorted(steps) and len(steps) > 0,
        "step and updates of the last checkpoint": last(whole) == last(killed),
        "status": json.loads(meta.read_text())["status"] == "finished",
        "replay deleted at the end": not list(killed.glob("*/replay.dat")),
    }
    print(
        f"  {len(places(whole))} rows, {len(schedules(whole))} of schedules; step, updates: "
        f"{last(killed)}"
    )
    return [name for name, agrees in checks.items() if not agrees]


def main(args: Args) -> None:
    problems = []
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for script in args.scripts:
            whole, killed = (
                Path(folder) / f"{script}-{name}" for name in ("undisturbed", "killed")
            )
            start_time = time.monotonic()
            finish(start(script, whole))
            seconds = time.monotonic() - start_time
            print(f"{script}: undisturbed in {seconds:.0f} s", flush=True)
            kills = kill_often(script, killed, seconds, args, moments)
            if kills < args.kills:
                problems.append(f"{script}: only {kills} kills came before its end")
            problems += [f"{script}: {difference}" for difference in compare(whole, killed)]
    if problems:
        sys.exit("FAILED: " + "; ".join(problems))
    print("passed: killed runs have the rows, schedules and updates of undisturbed ones")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
