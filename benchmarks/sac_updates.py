"""Speed of whole SAC updates: sampling, critics, targets, actor, temperature;
against Stable-Baselines3, SBX and a floor.

    python benchmarks/sac_updates.py --seeds 1 5 10 --out results/2026-sac-speed/cpu.json
    python benchmarks/sac_updates.py --seeds 1 --pin 1 --sbx sbx/bin/python

All variants with the same number of seeds run in turns, so that noise of the machine affects all
alike; the table gives medians over rounds, and medians of the ratios within a round. A turn is some
blocks of --utd updates. seed-updates/s is updates/s times seeds. With several threads and seeds,
the same is also measured in one thread.

floor: the matrix products of one update of one seed and nothing else, one after the other in one
thread, each in the fastest way that torch has for it (timed first): a share of 1 would be this
rate on every core in use. SB3: `SAC.train` with the same widths, batch size and spaces. SBX:
the same in jax, in a Python of its own, which `python -m venv sbx` and `sbx/bin/pip install
torch==2.13.0 sbx-rl==0.28.0` make.
"""

import contextlib
import dataclasses
import json
import os
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

ONE_THREAD = "compiled, 1 thread"


@dataclasses.dataclass
class Args:
    seeds: tuple[int, ...] = (1, 5, 10)  # numbers of seeds in a batch
    activations: tuple[str, ...] = ("relu", "tanh", "rational", "crational", "tanh_hr")
    utd: int = 10  # updates in a block, that of one environment step
    eager: bool = False  # also the update without torch.compile
    sb3: bool = True  # also Stable-Baselines3
    sbx: str | None = None  # also SBX, with this Python
    rounds: int = 15  # alternating rounds
    seconds: float = 0.25  # at least this long for each measurement in a round
    threads: int = 0  # CPU threads, for SBX only 1 counts (else see --pin); 0 = torch's choice
    pin: tuple[int, ...] = ()  # CPU cores to stay on; none = any
    compete: int = 0  # busy processes at the same time
    device: str = "cpu"  # cpu or cuda
    out: Path | None = None  # file for the numbers, JSON
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
        bt = b.mT.contiguous()

        def one_by_one(a, b):
            for i in range(len(a)):
                torch.mm(a[i], b[i], out=out[i])

        def linear_layers(a, b):
            """As torch keeps the weights of a linear layer: transposed."""
            for i in range(len(a)):
                torch.nn.functional.linear(a[i], bt[i])

        ways = {
            "bmm": torch.bmm,
            "bmm into": lambda a, b: torch.bmm(a, b, out=out),
            "mm": one_by_one,
            "linear": linear_layers,
        }
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


def ours(activation: str, num_seeds: int, compiled: bool, args: Args):
    """A block of updates as in the training loop, sampling from a filled replay;
    and the seconds of the first call."""
    device = torch.device(args.device)
    settings = sac.Args(activation=activation, compile=compiled, utd=args.utd)
    seeds = list(range(1, num_seeds + 1))
    agent = sac.Agent(OBS_DIM, ACTION_DIM, settings, seeds, device)
    buffer = sac.ReplayBuffer(num_seeds, 100_000, OBS_DIM, ACTION_DIM, device)
    buffer.rows.normal_()
    buffer.rows[..., OBS_DIM + ACTION_DIM + 1] = 0.0  # terminations
    buffer.num_added = 100_000
    generators = [seeding.make_generator(seed, "update", device=device) for seed in seeds]

    def run():
        batches = buffer.sample(args.utd, settings.batch_size, generators=generators)
        shape = (args.utd, 2, settings.batch_size, ACTION_DIM)
        return agent.update_block(batches, seeding.normals(generators, *shape, axis=2))

    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


# Run as a separate program for both, since SBX has another Python. It builds the model, reports
# that it is ready, and answers each line, a number of blocks, with the seconds that they take.
PEER = """
import sys, time
import gymnasium, numpy as np
from {package} import SAC

OBS_DIM, ACTION_DIM, UTD, THREADS = {obs_dim}, {action_dim}, {utd}, {threads}

class Spaces(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (OBS_DIM,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {{}}

    def step(self, action):
        return self.observation_space.sample(), 0.1, False, False, {{}}

if THREADS and "{package}" == "stable_baselines3":
    import torch
    torch.set_num_threads(THREADS)
model = SAC("MlpPolicy", Spaces(), policy_kwargs=dict(net_arch=[256, 256]),
            learning_starts=10_000, gradient_steps=UTD)
model.learn(5_000)
model.train(UTD, 256)
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        model.train(UTD, 256)
    if "{package}" == "sbx":
        import jax
        jax.block_until_ready((model.policy.qf_state.params, model.policy.actor_state.params))
    print(time.perf_counter() - start, flush=True)
"""


class Peer:
    """SAC of another library, in a process of its own, which works when it is asked to."""

    def __init__(self, python: str, package: str, args: Args):
        self.package = package
        program = PEER.format(
            package=package,
            obs_dim=OBS_DIM,
            action_dim=ACTION_DIM,
            utd=args.utd,
            threads=args.threads,
        )
        env = dict(os.environ)
        if args.threads == 1:
            env["OMP_NUM_THREADS"] = "1"
            given = os.environ.get("XLA_FLAGS", "")
            env["XLA_FLAGS"] = f"{given} --xla_cpu_multi_thread_eigen=false".strip()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([python, "-c", program], env=env, **pipes)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(
                f"error: {python} cannot train {package}'s SAC; is it installed there?"
            )

    def seconds(self, blocks: int) -> float:
        print(blocks, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"error: {self.package}'s training has ended; its message is above")
        return float(answer)

    def run(self) -> None:
        self.seconds(1)


@contextlib.contextmanager
def competitors(number: int):
    """That many processes that do nothing but keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(args: Args) -> dict:
    """Every variant at args.seeds[0] seeds, in turns."""
    torch._dynamo.config.recompile_limit = 64  # one compiled update per activation in this process
    device = torch.device(args.device)
    num_seeds = args.seeds[0]
    if args.threads:
        torch.set_num_threads(args.threads)
    threads = torch.get_num_threads()
    variants = {}
    first_call = {}
    modes = ["compiled"]
    if args.eager:
        modes.append("eager")
    if threads > 1 and num_seeds > 1 and device.type == "cpu":
        modes.append(ONE_THREAD)
    for activation in args.activations:
        for mode in modes:
            torch.set_num_threads(1 if mode == ONE_THREAD else threads)
            run, seconds = ours(activation, num_seeds, mode != "eager", args)
            variants[activation, mode] = run
            first_call[activation, mode] = seconds
            torch.set_num_threads(threads)
    for branches in sorted({1, *(a.count("hr") + 1 for a in args.activations)}):
        torch.set_num_threads(1)
        variants["floor", f"{branches} branch"] = floor(1, sac.Args(), branches, device)
        torch.set_num_threads(threads)
    if args.sb3:
        variants["SB3", "eager"] = Peer(sys.executable, "stable_baselines3", args)
    if args.sbx:
        variants["SBX", "jax"] = Peer(args.sbx, "sbx", args)

    def seconds_per_update(key: tuple[str, str]) -> float:
        """Seconds of one update of all its seeds, from --seconds of them."""
        run = variants[key]
        count = 0
        if isinstance(run, Peer):
            total = 0.0
            while total < args.seconds:
                total += run.seconds(1)
                count += args.utd
            return total / count
        if key[0] == "floor" or key[1] == ONE_THREAD:
            torch.set_num_threads(1)
        start = time.perf_counter()
        while time.perf_counter() - start < args.seconds:
            run()
            count += 1 if key[0] == "floor" else args.utd
            synchronize(device)
        elapsed = time.perf_counter() - start
        torch.set_num_threads(threads)
        return elapsed / count

    seconds = {key: [] for key in variants}
    for key in variants:
        seconds_per_update(key)
    with competitors(args.compete):
        for _ in range(args.rounds):
            for key in variants:
                seconds[key].append(seconds_per_update(key))

    rows = []
    for (name, mode), times in seconds.items():
        times = np.array(times)
        own_floor = np.array(seconds["floor", f"{name.count('hr') + 1} branch"])
        is_ours = name in args.activations
        seeds = num_seeds if is_ours else 1
        cores = 1
        if is_ours and mode != ONE_THREAD and device.type == "cpu":
            cores = min(num_seeds, threads)
        row = {
            "seeds": seeds,
            "variant": name,
            "mode": mode,
            "ms_per_update": 1e3 * np.median(times),
            "seed_updates_per_s": seeds / np.median(times),
            "spread_ms": 1e3 * np.subtract(*np.quantile(times, [0.75, 0.25])),
            "share_of_floor": np.median(own_floor / times) * seeds / cores,
        }
        if ("relu", "compiled") in seconds:
            relu = np.array(seconds["relu", "compiled"]) / num_seeds
            row["time_over_relu"] = np.median(times / seeds / relu)
        if (name, ONE_THREAD) in seconds:
            one_thread = np.array(seconds[name, ONE_THREAD])
            row["speed_over_one_thread"] = np.median(one_thread / times)
        for peer in ("SB3", "SBX"):
            for key in seconds:
                if key[0] == peer:
                    row[f"speed_over_{peer}"] = np.median(np.array(seconds[key]) / times) * seeds
        row["first_call_s"] = first_call.get((name, mode), float("nan"))
        rows.append(
            {key: round(float(v), 4) if isinstance(v, float) else v for key, v in row.items()}
        )
    for run in variants.values():
        if isinstance(run, Peer):
            run.process.kill()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": rows, "peak_rss_mb": round(peak, 1), "threads": threads}


def main(args: Args) -> None:
    if args.pin:
        os.sched_setaffinity(0, args.pin)  # whatever it starts stays there too
    if args.child:
        print(json.dumps(measure(args)))
        return
    results = []
    for num_seeds in args.seeds:
        job = dataclasses.asdict(args) | {"seeds": (num_seeds,), "child": True}
        flags = []
        for name, value in job.items():
            if isinstance(value, bool):
                flags.append(f"--{'' if value else 'no-'}{name}")
            elif isinstance(value, tuple) and value:
                flags += [f"--{name}", *map(str, value)]
            elif value is not None and not isinstance(value, tuple):
                flags += [f"--{name}", str(value)]
        command = [sys.executable, __file__, *flags]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout))
    rows = []
    for result in results:
        rows += result["rows"]
    machine = hardware.machine()
    machine |= {
        "argv": sys.argv,
        "threads": results[0]["threads"],
        "peak_rss_mb": [result["peak_rss_mb"] for result in results],
    }
    print(
        f"git {machine['git']}, {machine['hardware']}, torch {torch.__version__}, python "
        f"{platform.python_version()}, threads {machine['threads']}"
    )
    columns = {}  # in the order in which they come; not every row has all
    for row in rows:
        columns |= dict.fromkeys(row)
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
        print("| " + " | ".join(cells) + " |")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(machine | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
