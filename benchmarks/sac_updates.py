"""Speed of whole SAC updates: sampling, critics, targets, actor, temperature;
against Stable-Baselines3 and a floor.

    python benchmarks/sac_updates.py --seeds 1 5 10 --out results/2026-sac-speed

Everything of one number of seeds runs in one process, in turns, so that noise of the machine hits
all alike; the table gives medians over rounds, and medians of the ratios within a round.
seed-updates/s = updates/s times seeds.

floor: the matrix products of one update and nothing else, at the same shapes and layouts, each as
the fastest of the ways that torch has for it (timed first). SB3: `SAC.train` with the same widths,
batch size and spaces.
"""

import csv
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sac_continuous as sac
from runlog import hardware, seeding

# those of cheetah-run
OBS_DIM = 17
ACTION_DIM = 6


@dataclasses.dataclass
class Args:
    seeds: tuple[int, ...] = (1, 5, 10)  # numbers of seeds in a batch
    activations: tuple[str, ...] = ("relu", "tanh", "rational", "crational", "tanh_hr")
    eager: bool = True  # also the update without torch.compile
    sb3: bool = True  # also Stable-Baselines3
    rounds: int = 15  # alternating rounds
    seconds: float = 0.25  # at least this long for each measurement in a round
    threads: int = 0  # CPU threads; 0 = torch's choice
    device: str = "cpu"  # cpu or cuda
    out: Path | None = None  # folder for speed.csv and speed.json
    child: bool = False  # internal: measure in this process and print JSON


def floor(num_seeds: int, args: sac.Args, branches: int, device: torch.device):
    """A function that computes the matrix products of one update: forward for next actions,
    targets, critics, actions and their values; backward for the critics, through the critics to the
    actions, and for the actor."""
    products = []

    def linear(networks, inputs, outputs, rows, forward=1, weight_grads=0, input_grads=0):
        x = torch.randn(networks, rows, inputs, device=device)
        w = torch.randn(networks, inputs, outputs, device=device)
        y = torch.randn(networks, rows, outputs, device=device)
        products.extend([(x, w)] * forward + [(x.mT, y)] * weight_grads + [(y, w.mT)] * input_grads)

    def network(networks, inputs, outputs, passes, weight_grads, through_input):
        """passes: forward passes; weight_grads: those of them that have gradients of weights."""
        backward = weight_grads + through_input
        for i, width in enumerate(args.widths):
            for _ in range(branches):
                input_grads = backward if i else through_input
                linear(networks, inputs, width, args.batch_size, passes, weight_grads, input_grads)
            inputs = width
        linear(networks, inputs, outputs, args.batch_size, passes, weight_grads, backward)

    network(num_seeds, OBS_DIM, ACTION_DIM, 2, 1, 0)
    # the second head, log_std
    linear(num_seeds, args.widths[-1], ACTION_DIM, args.batch_size, 2, 1, 1)
    network(2 * num_seeds, OBS_DIM + ACTION_DIM, 1, 3, 1, 1)

    def fastest(a, b):
        out = torch.empty(*a.shape[:-1], b.shape[-1], device=device)
        ways = {"bmm": torch.bmm, "bmm into": lambda a, b: torch.bmm(a, b, out=out)}
        if a.shape[-1] == 1:
            ways["outer"] = torch.mul
        if b.shape[-1] == 1:
            ways["dot"] = lambda a, b: (a * b.mT).sum(-1)
        times = {}
        for name, way in ways.items():
            way(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(20):
                way(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name] = time.perf_counter() - start
        return ways[min(times, key=times.get)]

    chosen = [(fastest(a, b), a, b) for a, b in products]

    def run():
        for way, a, b in chosen:
            way(a, b)

    return run


def ours(activation: str, num_seeds: int, compiled: bool, device: torch.device):
    """One whole update as in the training loop, drawing from a filled replay;
    and the seconds of the first call."""
    args = sac.Args(activation=activation, compile=compiled)
    seeds = list(range(1, num_seeds + 1))
    agent = sac.Agent(OBS_DIM, ACTION_DIM, args, seeds, device)
    buffer = sac.ReplayBuffer(num_seeds, 100_000, OBS_DIM, ACTION_DIM, device)
    buffer.rows.normal_()
    buffer.rows[..., OBS_DIM + ACTION_DIM + 1] = 0.0  # terminations
    buffer.num_added = 100_000
    generators = [seeding.make_generator(seed, "update", device=device) for seed in seeds]

    def run():
        batches = buffer.sample(1, args.batch_size, generators=generators)
        noise = seeding.normals(generators, 1, 2, args.batch_size, ACTION_DIM, axis=2)
        return agent.update({name: part[0] for name, part in batches.items()}, noise[0], True)

    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


def stable_baselines(device: torch.device):
    import gymnasium
    from stable_baselines3 import SAC

    class Spaces(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-9, 9, (OBS_DIM,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.1, False, False, {}

    model = SAC(
        "MlpPolicy",
        Spaces(),
        policy_kwargs={"net_arch": [256, 256]},
        device=device,
        learning_starts=10_000,
    )
    model.learn(5_000)
    return lambda: model.train(1, 256)


def measure(args: Args) -> dict:
    """Every variant at args.seeds[0] seeds, in turns."""
    torch._dynamo.config.recompile_limit = 64  # one compiled update per activation in this process
    device = torch.device(args.device)
    num_seeds = args.seeds[0]
    if args.threads:
        torch.set_num_threads(args.threads)
    variants = {}
    first_call = {}
    for activation in args.activations:
        for mode in ["compiled", "eager"][: 1 + args.eager]:
            variants[activation, mode], first_call[activation, mode] = ours(
                activation, num_seeds, mode == "compiled", device
            )
    for branches in sorted({1, *(a.count("hr") + 1 for a in args.activations)}):
        variants["floor", f"{branches} branch"] = floor(num_seeds, sac.Args(), branches, device)
    if args.sb3:
        variants["SB3", "eager"] = stable_baselines(device)
    seconds = {key: [] for key in variants}
    for run in variants.values():
        for _ in range(5):
            run()
    for _ in range(args.rounds):
        for key, run in variants.items():
            count = 0
            start = time.perf_counter()
            while time.perf_counter() - start < args.seconds:
                run()
                count += 1
                if device.type == "cuda":
                    torch.cuda.synchronize()
            seconds[key].append((time.perf_counter() - start) / count)
    rows = []
    for (name, mode), times in seconds.items():
        own_floor = np.array(seconds["floor", f"{name.count('hr') + 1} branch"])
        seeds = 1 if name == "SB3" else num_seeds
        row = {
            "seeds": num_seeds,
            "variant": name,
            "mode": mode,
            "ms_per_update": 1e3 * np.median(times),
        }
        row |= {
            "seed_updates_per_s": seeds / np.median(times),
            "spread_ms": 1e3 * np.subtract(*np.quantile(times, [0.75, 0.25])),
        }
        row["share_of_floor"] = np.median(own_floor / np.array(times)) * seeds / num_seeds
        if ("relu", "compiled") in seconds:
            row["time_over_relu"] = np.median(np.array(times) / seconds["relu", "compiled"])
        if args.sb3:
            row["speed_over_sb3"] = np.median(np.array(seconds["SB3", "eager"]) / times) * seeds
        row["first_call_s"] = first_call.get((name, mode), float("nan"))
        rows.append(
            {key: round(float(v), 4) if isinstance(v, float) else v for key, v in row.items()}
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "peak_rss_mb": round(peak, 1), "threads": torch.get_num_threads()}


def main(args: Args) -> None:
    if args.child:
        print(json.dumps(measure(args)))
        return
    results = []
    for num_seeds in args.seeds:
        flags = [
            "--seeds",
            str(num_seeds),
            "--activations",
            *args.activations,
            "--rounds",
            str(args.rounds),
        ]
        flags += [
            "--seconds",
            str(args.seconds),
            "--threads",
            str(args.threads),
            "--device",
            args.device,
            "--child",
        ]
        flags += ["--eager" if args.eager else "--no-eager", "--sb3" if args.sb3 else "--no-sb3"]
        command = [sys.executable, __file__, *flags]
        results.append(
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        )
    rows = []
    for result in results:
        rows += result["rows"]
    machine = hardware.machine()
    machine |= {
        "argv": sys.argv,
        "threads": results[0]["threads"],
        "peak_rss_mb": [r["peak_rss_mb"] for r in results],
    }
    print(
        f"git {machine['git']}, {machine['hardware']}, torch {torch.__version__}, python "
        f"{platform.python_version()}"
    )
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
            + " |"
        )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "speed.json").write_text(json.dumps(machine | {"rows": rows}, indent=1) + "\n")
        with open(args.out / "speed.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
