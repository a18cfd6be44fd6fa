"""Learning curves of Stable-Baselines3's SAC on the budget of one of our studies,
as a reference: long CSV.

    python benchmarks/sb3_reference.py --env-id dm_control/cartpole-swingup-v0 --utd 2 \\
        --total-timesteps 30000 --seeds 1 2 3 --out results/2026-sac-cartpole/sb3.csv

SB3's own defaults except for what makes the budget equal: widths 256, 256, the same random steps,
updates per step and evaluation (deterministic episodes, raw return). Its target entropy stays -|A|,
its initialisation torch's.
"""

import csv
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import environments
from runlog import hardware


@dataclasses.dataclass
class Args:
    out: Path  # CSV: exp, env, activation, seed, metric, env_step, value
    env_id: str = "dm_control/cartpole-swingup-v0"
    seeds: tuple[int, ...] = (1, 2, 3)
    utd: int = 2
    total_timesteps: int = 30_000
    learning_starts: int = 5_000
    eval_frequency: int = 2_500
    num_eval_episodes: int = 5
    threads: int = 0


def evaluate(model, env, args: Args, index: int) -> float:
    returns = []
    for episode in range(args.num_eval_episodes):
        # those of our own runs
        obs, _ = env.reset(options={"number": [2 * index * args.num_eval_episodes + episode]})
        total = 0.0
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(
                model.predict(obs, deterministic=True)[0]
            )
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def main(args: Args) -> None:
    from stable_baselines3 import SAC

    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in args.seeds:
        start = time.monotonic()
        model = SAC(
            "MlpPolicy",
            environments.make_env(args.env_id, 0, seed, "train"),
            learning_starts=args.learning_starts,
            gradient_steps=args.utd,
            policy_kwargs={"net_arch": [256, 256]},
            buffer_size=args.total_timesteps,
            seed=seed,
            device="cpu",
        )
        env = environments.make_env(args.env_id, 0, seed, "eval")
        for index in range(1, args.total_timesteps // args.eval_frequency + 1):
            model.learn(args.eval_frequency, reset_num_timesteps=index == 1)
            value = evaluate(model, env, args, index)
            row = (
                "sb3",
                args.env_id,
                "SB3 relu",
                seed,
                "eval/episodic_return",
                index * args.eval_frequency,
                value,
            )
            rows.append(row)
            print(*row[3:], f"{time.monotonic() - start:.0f} s", flush=True)
            with open(args.out, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["exp", "env", "activation", "seed", "metric", "env_step", "value"])
                writer.writerows(rows)
    machine = hardware.machine()
    print(machine["git"], machine["hardware"], machine["versions"])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
