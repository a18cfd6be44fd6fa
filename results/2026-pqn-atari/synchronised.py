"""synchronised.csv: effective rank and dead neurons of a trained network, measured on games that
have all started together, by the number of steps since. No training.

From the repository's root, with the folder of a finished run of pqn_atari.py:

    python results/2026-pqn-atari/synchronised.py runs/pqn_spaceinvaders/*tanh_hr__s1*
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pqn_atari
import reports
import runlog
from plots.recording import write_csv

FOLDER = Path(__file__).resolve().parent
STEPS = (128, 256, 384, 512, 640, 768, 896, 1_024, 1_152, 1_280)  # of each game
SEED = 5


@dataclasses.dataclass
class Args:
    folder: Annotated[Path, tyro.conf.Positional]  # of a run
    threads: int = 1  # for torch and for the games


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    config = dataclasses.replace(
        runlog.load(args.folder, pqn_atari.Args).config, env_threads=args.threads
    )
    q_network = pqn_atari.load_agent(args.folder)
    games = pqn_atari.make_games(config, config.num_envs)
    generator = torch.Generator().manual_seed(SEED)
    obs = games.reset(SEED, "apart")
    recent = []
    has_ended = np.zeros(config.num_envs, bool)
    rows = []
    for step in range(1, max(STEPS) + 1):
        recent = [*recent, obs][-config.num_steps :]  # the observations of an iteration
        _, actions = pqn_atari.greedy(q_network, torch.from_numpy(obs))
        actions = pqn_atari.explore(actions, config.final_epsilon, games.num_actions, generator)
        played = games.step(actions.numpy())
        obs = played.obs
        has_ended |= played.game_overs
        if step in STEPS:
            sample = torch.from_numpy(np.concatenate(recent))
            chosen = torch.randperm(len(sample), generator=generator)[: config.metrics_samples]
            report = reports.network_report(
                q_network, (sample[chosen],), {}, 0, max_samples=config.metrics_samples
            )
            row = {"game": config.env_id, "activation": config.activation, "steps": step}
            row["ended"] = float(has_ended.mean())
            row["srank"] = float(report.scalars["fc1/srank"])
            row["dead"] = float(report.scalars["fc1/dead_share"])
            rows.append(row)
            print(row, flush=True)
    print(write_csv(FOLDER / "synchronised.csv", rows))


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
