"""Time and memory of one measure of the neural tangent kernel's ranks,
as the scripts take it (--ntk-frequency).

    python benchmarks/ntk.py --script sac_continuous --activation crational --num-seeds 5
    python benchmarks/ntk.py --script pqn_atari --activation tanh_hr

CPU seconds do not count other processes on the machine.
Networks are untrained, inputs random: neither matters.
"""

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import dqn_atari
import metrics
import ppo_atari
import pqn_atari
import runlog
import sac_continuous
from runlog import hardware


@dataclasses.dataclass
class Args:
    script: Literal["sac_continuous", "dqn_atari", "ppo_atari", "pqn_atari"] = "sac_continuous"
    activation: str = "relu"
    num_seeds: int = 1  # SAC only
    samples: int = 64  # observations or transitions
    rounds: int = 3  # after one for warm-up
    threads: int = 1


def sac(args: Args):
    """Observations and actions as in cheetah-run; both critics and the actor."""
    setting = sac_continuous.Args(activation=args.activation, compile=False)
    n = args.num_seeds
    agent = sac_continuous.Agent(17, 6, setting, list(range(n)), torch.device("cpu"))
    obs = torch.randn(n, args.samples, 17)
    actions = torch.rand(n, args.samples, 6)

    def measure() -> None:
        metrics.ntk_rank(agent.qf, (obs, actions), 2, 1)
        metrics.ntk_rank(agent.actor, (obs,), 1, output=lambda y: y[0])

    return measure


def atari(args: Args):
    module = {"dqn_atari": dqn_atari, "ppo_atari": ppo_atari, "pqn_atari": pqn_atari}[args.script]
    make = module.Agent if module is ppo_atari else module.QNetwork
    network = make(4, module.Args(activation=args.activation)).to(memory_format=torch.channels_last)
    obs = torch.randint(0, 256, (args.samples, 4, 84, 84), dtype=torch.uint8)
    options = {"output": lambda y: y[1]} if module is ppo_atari else {}
    return lambda: metrics.ntk_rank(network, (obs,), **options)


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    measure = (sac if args.script == "sac_continuous" else atari)(args)
    seconds = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(args.rounds + 1):
        wall = time.perf_counter()
        cpu = time.process_time()
        measure()
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (sorted(column)[args.rounds // 2] for column in zip(*seconds[1:]))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    row = {
        **dataclasses.asdict(args),
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        "extra_mb": round(memory),
    }
    print(
        json.dumps(
            row | {"git": hardware.machine()["git"], "cpu": hardware.machine()["hardware"]["cpu"]}
        )
    )


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
