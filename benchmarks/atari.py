"""Speed of the Atari scripts, part by part, on one game: environment steps per second.

    python benchmarks/atari.py --env-id Breakout --out results/2026-atari-speed/speed.json

Each part runs in a process of its own, one after the other:
  env      the games alone, random actions
  learner  the whole script on games that cost nothing: acting, storing, learning
  script   the whole script, metrics and evaluations off; share = script x (1 / env + 1 / learner):
           1 if nothing overlaps and nothing else takes time
  metrics  the script with metrics every --metrics-frequency steps, metrics' time included;
           `metrics_share` is theirs
  floor    the same number of convolutions and matrix products, forward and backward, channels-last,
           and nothing else
  memory   dqn only: the script with a replay that is full, every page of it written, and its peak
           memory
Peak memory is that of the process, pages of the mapped replay included. Other libraries on the same
games: benchmarks/atari_peers.py.
"""

import csv
import dataclasses
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import runlog
from environments.atari import FinishedGame, GameStep
from runlog import hardware

PARTS = ("env", "learner", "script", "metrics", "floor", "memory")


@dataclasses.dataclass
class Args:
    env_id: str = "Breakout"
    algorithms: tuple[str, ...] = ("pqn", "ppo", "dqn")
    parts: tuple[str, ...] = PARTS
    activation: str = "relu"
    steps: int = 40_000  # environment steps of pqn and ppo; a quarter for dqn, once it learns
    seconds: float = 20.0  # of env and of each batch size of floor
    num_envs: int | None = None  # training games; None = the script's default
    metrics_frequency: int = 100_000
    buffer_size: int = 1_000_000  # dqn's replay
    device: str = "auto"
    threads: int = 0
    env_threads: int = 0
    compile: bool = True
    out: Path | None = None
    child: bool = False  # internal


class FreeGames:
    """Games that cost nothing: the same few random observations over and over;
    a game ends every 200 steps."""

    def __init__(self, args, num_envs: int, **options):
        self.num_envs = num_envs
        self.num_actions = 4
        self.t = 0
        rng = np.random.default_rng(0)
        self.obs = rng.integers(0, 256, (4, num_envs, 4, 84, 84), dtype=np.uint8)

    def reset(self, seed, *keys):
        return self.obs[0]

    def step(self, actions):
        self.t += 1
        ends = np.full(self.num_envs, self.t % 200 == 0)
        obs = self.obs[self.t % 4]
        games = [FinishedGame(int(i), 1.0, 200) for i in np.flatnonzero(ends)]
        rewards = (actions == 1).astype(np.float32)
        return GameStep(obs, rewards, ends, np.zeros_like(ends), obs, games)


def script_args(args: Args, module, runs_dir: str | None = None, **flags):
    """The script's flags; runs_dir: None = a new temporary folder."""
    num_envs = {} if args.num_envs is None else {"num_envs": args.num_envs}
    common = {
        "env_id": args.env_id,
        "activation": args.activation,
        "device": args.device,
        "threads": args.threads,
    }
    common |= {
        "env_threads": args.env_threads,
        "compile": args.compile,
        "tensorboard": False,
        "fresh": True,
    }
    script = module.Args(**common, **num_envs, metrics_frequency=0)
    script = dataclasses.replace(script, runs_dir=runs_dir or tempfile.mkdtemp())
    if hasattr(script, "eval_frequency"):
        script = dataclasses.replace(script, eval_frequency=10**9)
    if hasattr(script, "train_frequency"):  # dqn
        starts = 2_000
        steps = args.steps // 4
        flags |= {
            "learning_starts": starts,
            "total_timesteps": starts + steps,
            "log_frequency": max(steps // 10, 1),
        }
        # exploration costs no forward pass, so epsilon has its final value, as in most of a run;
        # the replay has its full size
        flags |= {"start_epsilon": 0.1, "buffer_size": args.buffer_size}
    else:
        batch = script.num_envs * script.num_steps
        flags |= {"total_timesteps": max(args.steps, 3 * batch), "log_frequency": batch}
    return dataclasses.replace(script, checkpoint_frequency=10**9, **flags)


def run_script(args: Args, module, name: str, **flags) -> dict:
    """perf/sps of the script, without the time before its updates
    and the first third after it (compilation)."""
    script = script_args(args, module, **flags)
    if hasattr(script, "train_frequency"):  # the ring on disk has room for two checkpoint intervals
        script = dataclasses.replace(script, checkpoint_frequency=25_000)
        enlarge_replay(module, args.buffer_size, full=args.parts == ("memory",))
    start = time.perf_counter()
    module.main(script)
    (file,) = Path(script.runs_dir).glob("*/perf.csv")
    rows = [
        (int(r["step"]), float(r["value"]))
        for r in csv.DictReader(file.open())
        if r["key"] == "perf/sps"
    ]
    first = getattr(script, "learning_starts", 0)
    kept = [speed for step, speed in rows if step > first + (script.total_timesteps - first) / 3][
        1:
    ] or [rows[-1][1]]
    speeds = {
        "steps_per_second": len(kept) / sum(1 / speed for speed in kept),
        "slowest": min(kept),
    }
    return speeds | {"fastest": max(kept), "seconds": time.perf_counter() - start}


def enlarge_replay(module, capacity: int, full: bool) -> None:
    """Gives DQN's replay this capacity, however short the run;
    if full, with random frames in every row."""
    open_replay = module.open_replay

    def replay_sizes(script, checkpoint_frequency: int):
        return capacity, 2 * checkpoint_frequency, script.num_envs

    def open_and_fill(script, run):
        buffer = open_replay(script, run)
        if full:
            fill(buffer)
        return buffer

    module.replay_sizes = replay_sizes
    module.open_replay = open_and_fill


def fill(buffer) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1_000, *buffer.rows["frame"].shape[1:]), dtype=np.uint8)
    for first in range(0, buffer.num_rows, 1_000):
        rows = buffer.rows["frame"][first : first + 1_000]
        rows[...] = frames[: len(rows)]
    buffer.num_added = buffer.capacity


def env_alone(args: Args, module, name: str, ready=None) -> dict:
    """ready: called when the games have started, before the measurement; 136 games take a quarter
    of a minute to make."""
    script = script_args(args, module)
    num_test = getattr(script, "num_test_envs", 0)
    games = module.make_games(script, script.num_envs + num_test)
    rng = np.random.default_rng(0)
    games.reset(1, "games", 0)
    if ready is not None:
        ready()
    steps = 0
    start = None
    while start is None or time.perf_counter() - start < args.seconds:
        for _ in range(max(1, 256 // games.num_envs)):
            games.step(rng.integers(games.num_actions, size=games.num_envs))
            steps += script.num_envs
        if start is None:
            steps = 0
            start = time.perf_counter()
    return {"steps_per_second": steps / (time.perf_counter() - start), "num_envs": script.num_envs}


def metrics_share(args: Args, module, name: str) -> dict:
    """Seconds of one round of network metrics (gradients, measures, writing), and their fraction
    of a run that has one every --metrics-frequency."""
    seconds = {"mean_gradients": [], "network_report": [], "log_report": []}

    def timed(owner, function):
        original = getattr(owner, function)

        def call(*positional, **named):
            start = time.perf_counter()
            result = original(*positional, **named)
            seconds[function].append(time.perf_counter() - start)
            return result

        setattr(owner, function, call)

    for function in seconds:
        timed(runlog.Batch if function == "log_report" else module.metrics, function)
    speed = run_script(args, module, name, metrics_frequency=max(args.steps // 8, 1))[
        "steps_per_second"
    ]
    seconds_each = sum(map(sum, seconds.values())) / len(seconds["network_report"])
    period = args.metrics_frequency / speed
    return {"seconds_each": seconds_each, "metrics_share": seconds_each / (seconds_each + period)}


def floor(args: Args, module, name: str) -> dict:
    """Environment steps per second if only the learner's convolutions and matrix products took
    time."""
    hardware.keep_freed_memory()  # as the scripts do
    script = script_args(args, module)
    device = runlog.find_device(args.device)
    network = (module.Agent if name == "ppo" else module.QNetwork)(4, script).to(device)
    layers = [network.conv1, network.conv2, network.conv3, network.fc]
    weights = [
        [b.linear.weight.detach().requires_grad_() for b in layer.branches] for layer in layers
    ]
    sizes = (84, 20, 9)
    strides = (4, 2, 1)

    def products(batch: int, backward: bool) -> float:
        """Seconds of one pass over all layers."""
        inputs = []
        for group, size in zip(weights[:3], sizes):
            x = torch.randn(batch, group[0].shape[1], size, size, device=device)
            inputs.append(x.to(memory_format=torch.channels_last))
        inputs.append(torch.randn(batch, weights[3][0].shape[0], device=device))

        def one_pass():
            for k, (group, x) in enumerate(zip(weights, inputs)):
                x.requires_grad_(backward and k > 0)
                for w in group:
                    w = w.to(memory_format=torch.channels_last) if k < 3 else w
                    with torch.set_grad_enabled(backward):
                        y = F.conv2d(x, w, stride=strides[k]) if k < 3 else x @ w
                    if backward:
                        torch.autograd.grad(y, [w, x] if k else [w], torch.ones_like(y))
            if device.type == "cuda":
                torch.cuda.synchronize()

        one_pass()
        number = 0
        start = time.perf_counter()
        while number < 3 or time.perf_counter() - start < args.seconds:
            one_pass()
            number += 1
        return (time.perf_counter() - start) / number

    if name == "dqn":
        batch = script.batch_size
        learn = products(batch, True) + (1 + script.double_q) * products(batch, False)
        per_step = (
            products(script.num_envs, False) / script.num_envs + learn / script.train_frequency
        )
    else:
        batch = script.num_envs * script.num_steps
        acting = products(script.num_envs + getattr(script, "num_test_envs", 0), False) * (
            script.num_steps + 1
        )
        learn = (
            products(batch // script.num_minibatches, True)
            * script.num_minibatches
            * script.update_epochs
        )
        per_step = (acting + learn) / batch
    return {"steps_per_second": 1 / per_step}


def child(args: Args) -> dict:
    (name,) = args.algorithms
    (part,) = args.parts
    module = importlib.import_module(f"{name}_atari")
    if part == "learner":
        module.make_games = FreeGames
    if args.threads:
        torch.set_num_threads(args.threads)
    makers = {"env": env_alone, "learner": run_script, "script": run_script, "memory": run_script}
    result = (makers | {"metrics": metrics_share, "floor": floor})[part](args, module, name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"algorithm": name, "part": part} | result | {"peak_memory_mb": round(peak)}


def main(args: Args) -> None:
    if args.child:
        print(json.dumps(child(args)))
        return
    results = []
    summary = {}
    for name in args.algorithms:
        for part in args.parts:
            if part == "memory" and name != "dqn":
                continue
            passed = dataclasses.asdict(args) | {
                "algorithms": name,
                "parts": part,
                "compile": None,
                "out": None,
            }
            flags = []
            for flag, setting in passed.items():
                if setting not in (None, False):
                    flags += [f"--{flag}", str(setting)]
            flags += ["--child", "--compile" if args.compile else "--no-compile"]
            command = [sys.executable, __file__, *flags]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(output.stdout.splitlines()[-1]))
            print(json.dumps(results[-1]), flush=True)
        speed = {r["part"]: r.get("steps_per_second") for r in results if r["algorithm"] == name}
        found = summary[name] = {}
        if {"env", "learner", "script"} <= speed.keys():
            found["share"] = speed["script"] * (1 / speed["env"] + 1 / speed["learner"])
        if {"learner", "floor"} <= speed.keys():
            found["learner_over_floor"] = speed["learner"] / speed["floor"]
        print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        content = hardware.machine() | {"argv": sys.argv, "summary": summary, "results": results}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
