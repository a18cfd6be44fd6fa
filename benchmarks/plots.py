"""CPU seconds of a run's plots (plots.draw_run),
which are drawn while it trains, by the number of branches.

    python benchmarks/plots.py --branches 1 5 50

Writes a synthetic run of SAC's size into a temporary folder: actor and two critics,
two hidden layers each, ten measures, 16 densities for the output and each branch.
"""

import itertools
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import plots
import runlog

LAYERS = [
    f"network/{network}/{layer}/"
    for network, layer in itertools.product(("actor", "qf1", "qf2"), ("fc1", "fc2"))
]


@dataclass
class Args:
    branches: tuple[int, ...] = (1, 5, 50)  # parallel branches of every layer


def make(root: str, branches: int) -> Path:
    """The run's folder."""
    config = {"env_id": "toy", "activation": "+".join(["tanh"] * branches), "seed": 1}
    run = runlog.Run(root, f"branches-{branches}", config).open(tensorboard=False)
    grid = np.linspace(-10, 10, 201)
    x = np.linspace(-1, 1, 64)
    several = branches > 1
    for step in range(0, 1_000, 100):
        for layer in LAYERS:
            for k in range(branches):
                name = f"activation{k}" if several else "activation"
                run.log_curve(step, layer + name, grid, np.tanh(grid + step / 1_000 + k))
            parts = [f"branch{k}_" for k in range(branches)] if several else []
            for part in ["", *parts]:
                for neuron in range(16):
                    y = np.exp(-x * x * (neuron + 1))
                    run.log_curve(step, f"{layer}{part}kde{neuron:02d}", x, y, dead=neuron == 3)
    run.finish()
    return run.folder


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as root:
        for branches in args.branches:
            folder = make(root, branches)
            start = time.process_time()
            plots.draw_run(folder)
            print(f"{branches} branches: {time.process_time() - start:.1f} s", flush=True)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
