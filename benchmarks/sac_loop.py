"""What fraction of a whole run the updates take: the training loop of sac_continuous.py on
cheetah-run, part by part.

    python benchmarks/sac_loop.py --utd 10 --num-seeds 1 5 --out results/2026-sac-speed/loop.json

Runs the real script in a fresh process, twice: the first compiles into an empty cache (cold), the
second starts warm. Timers around the loop's parts give seconds per environment step, per
evaluation, per round of network metrics and per checkpoint with its plots; the fractions combine
these at the default periods (evaluation and metrics every 10,000 steps, checkpoints every 25,000).
Measured on a short run, since 10,000 steps at UTD 10 take a quarter of an hour or more.
"""

import dataclasses
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
STARTED = time.time()


@dataclasses.dataclass
class Args:
    num_seeds: tuple[int, ...] = (1, 5)
    utd: int = 10
    activation: str = "crational"
    env_id: str = "dm_control/cheetah-run-v0"
    steps: int = 400  # environment steps with updates
    out: Path | None = None
    child: bool = False  # internal


def child(args: Args) -> dict:
    import environments
    import runlog
    import sac_continuous as sac

    seconds = {}
    calls = {}
    first_update = []

    def timed(owner, name, part):
        inner = getattr(owner, name)

        def call(*positional, **named):
            start = time.perf_counter()
            result = inner(*positional, **named)
            seconds.setdefault(part, []).append(time.perf_counter() - start)
            return result

        setattr(owner, name, call)

    starts = 1_000
    sac_args = sac.Args(
        env_id=(args.env_id,),
        activation=args.activation,
        utd=args.utd,
        num_seeds=args.num_seeds[0],
        learning_starts=starts,
        total_timesteps=starts + args.steps,
        eval_frequency=starts + args.steps,
        metrics_frequency=starts + args.steps,
        checkpoint_frequency=starts + args.steps,
        log_frequency=args.steps // 4,
        runs_dir=tempfile.mkdtemp(),
    )
    timed(environments.TaskSequence, "evaluate", "evaluation")
    timed(sac, "q_bias", "evaluation")
    timed(sac, "log_network_metrics", "metrics")
    timed(runlog.Batch, "save", "checkpoint")
    timed(runlog.Batch, "draw", "plots")
    original = sac.Agent.__init__

    def init(self, *positional, **named):
        original(self, *positional, **named)
        timed(self, "update_block", "updates")
        block = self.update_block

        def update_block(*positional, **named):
            result = block(*positional, **named)
            if not first_update:
                first_update.append(time.time() - STARTED)
            return result

        self.update_block = update_block

    sac.Agent.__init__ = init
    timed(sac.ReplayBuffer, "sample", "sample")
    steps = []
    add = sac.ReplayBuffer.add

    def stamped(self, *positional):
        steps.append(time.perf_counter())
        add(self, *positional)

    sac.ReplayBuffer.add = stamped
    sac.main(sac_args)
    calls = {part: len(times) for part, times in seconds.items()}
    skip = args.steps // 4  # the first updates compile
    window = steps[starts + skip : starts + args.steps]
    per_step = sorted(b - a for a, b in itertools.pairwise(window))
    loop = sum(per_step) / len(per_step)
    # the first sample()s of each kind are warm-up; metrics take one more at the end
    updates = sum(seconds["updates"][skip:]) / (calls["updates"] - skip)
    sample = sum(seconds["sample"][skip:-1]) / (calls["sample"] - 1 - skip)
    # one evaluation, of returns and of overestimation; of the rounds of metrics their mean
    per = {"evaluation": sum(seconds["evaluation"])}
    per["metrics"] = sum(seconds["metrics"]) / calls["metrics"]
    per |= {"checkpoint": sum(seconds["checkpoint"]), "plots": sum(seconds["plots"])}
    whole = (
        loop
        + (per["evaluation"] + per["metrics"]) / 10_000
        + (per["checkpoint"] + per["plots"]) / 25_000
    )
    return {
        "seeds": args.num_seeds[0],
        "ms_per_step": {
            "whole": 1e3 * whole,
            "loop": 1e3 * loop,
            "updates": 1e3 * (updates + sample),
        },
        "seconds_each": per,
        "updates_share": (updates + sample) / whole,
        "metrics_share": per["metrics"] / 10_000 / whole,
        "evaluation_share": per["evaluation"] / 10_000 / whole,
        "seed_updates_per_s": args.utd * args.num_seeds[0] / whole,
        "first_update_after_s": first_update[0],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(args: Args) -> None:
    if args.child:
        print(json.dumps(child(args)))
        return

    results = []
    for num_seeds in args.num_seeds:
        cache = tempfile.mkdtemp()
        for start in ("cold", "warm"):
            flags = [
                "--utd",
                str(args.utd),
                "--activation",
                args.activation,
                "--env-id",
                args.env_id,
            ]
            command = [
                sys.executable,
                __file__,
                "--child",
                "--num-seeds",
                str(num_seeds),
                "--steps",
                str(args.steps),
            ]
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
            output = subprocess.run(
                [*command, *flags], check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            results.append({"start": start} | json.loads(output.stdout.splitlines()[-1]))
            print(json.dumps(results[-1]), flush=True)
    if args.out:
        from runlog import hardware

        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(hardware.machine() | {"argv": sys.argv, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
