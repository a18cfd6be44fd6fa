"""Seconds to read runs for a figure: 1,000 runs of 1,000 evaluations each by default,
as SAC writes them.

    python benchmarks/figures.py --out results/2026-figures-speed/speed.json

Makes synthetic run folders in a temporary directory (5 activations, 20 environments, 10 seeds; 14
keys a run at every evaluation, about 1 GB for the default), then times reading alone and cr1 from
the first file to the last picture.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import plots.cr
import plots.panels
import plots.study
import runlog
from runlog import hardware, identity

KEYS = [
    "eval/episodic_return",
    "eval/stochastic_return",
    "overestimation/mean",
    "overestimation/std",
]
KEYS += [
    "overestimation/normalised",
    "charts/episodic_return",
    "charts/episodic_length",
    "losses/qf_loss",
]
KEYS += ["losses/actor_loss", "losses/alpha", "losses/entropy", "losses/q_mean"]
KEYS += ["network/qf1/fc1/dead_share", "network/qf1/fc1/srank"]


@dataclass
class Args:
    runs: int = 1_000  # run folders; a multiple of 100
    evaluations: int = 1_000  # rows of every key of a run
    rounds: int = 3  # times that reading is timed
    out: Path | None = None  # JSON file for the result


def make(root: Path, args: Args) -> int:
    """Writes the folders; bytes of scalars.csv in all."""
    rng = np.random.default_rng(0)
    size = 0
    names = [f"dm_control/task{k}-v0" for k in range(args.runs // 50)]
    for env in names:
        for activation in ("relu", "rational", "crational", "tanh", "tanh_hr"):
            for seed in range(1, 11):
                folder = root / identity.run_name(
                    env, "sac_continuous", activation, seed, "0123456789"
                )
                folder.mkdir()
                config = {
                    "env_id": env,
                    "activation": activation,
                    "seed": seed,
                    "rational": {},
                    "utd": 10,
                }
                (folder / "config.json").write_text(json.dumps(config))
                (folder / "meta.json").write_text('{"status": "finished"}')
                values = rng.random((args.evaluations, len(KEYS)))
                lines = []
                for i, row in enumerate(values.tolist()):
                    for key, value in zip(KEYS, row):
                        lines.append(f"{1_000 * (i + 1)},{key},{value!r},{12.345 * i:.3f}\n")
                size += (folder / "scalars.csv").write_text(
                    "step,key,value,wall_time\n" + "".join(lines)
                )
    return size


def main(args: Args) -> None:
    seconds = []
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "?"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = make(root, args)
        for _ in range(args.rounds):
            start = time.perf_counter(), time.process_time()
            study = plots.study.read_study(
                root, "sac_continuous", plots.panels.keys_of(plots.cr.IQM)
            )
            seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        rows = 0
        for runs in study.cells.values():
            rows += sum(len(run.series("eval/episodic_return")) for run in runs)
        start = time.perf_counter()
        plots.cr.cr1(root, root / "figures")
        whole = time.perf_counter() - start
    result = {
        "runs": args.runs,
        "evaluations": args.evaluations,
        "megabytes": size / 1e6,
        "rows_read": rows,
    }
    result |= {
        "read_s": statistics.median(s for s, _ in seconds),
        "read_cpu_s": statistics.median(s for _, s in seconds),
    }
    result |= {"cr1_s": whole, "load_before": load, **hardware.machine(), "argv": sys.argv}
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(runlog.parse_args(Args))
