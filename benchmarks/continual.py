"""Speed of continual_supervised.py: all seeds in a batch and compiled,
against one seed after the other in eager mode.

    python benchmarks/continual.py --out results/2026-continual-speed/speed.json

Two things are measured. Whole commands: one of --seeds seeds, compiled, with all its measures, and
one of a single seed in eager mode, for its first task and for its first two. The difference
separates the start of a run from a task, and from both follows the time of --seeds such runs, one
after the other. Updates only, in turns, so that noise of the machine affects all alike, as medians
over rounds: the batch, one seed in eager mode, and one seed in a hand-written loop with
nn.Sequential and torch.optim.Adam. Needs an otherwise idle machine.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import continual_supervised  # noqa: E402
from runlog import hardware  # noqa: E402


@dataclasses.dataclass
class Args:
    seeds: int = 10  # seeds in the batch
    tasks: int = 10  # tasks of the whole command
    epochs: int = 134  # per task: 10,050 updates of 16 of the 1,200 digits
    activations: tuple[str, ...] = ("relu", "tanh_hr", "crational")
    rounds: int = 7  # alternating rounds
    updates: int = 300  # per round
    threads: int = 2  # CPU threads of every variant
    # measures: also the batch's command without any measures
    parts: tuple[str, ...] = ("updates", "commands", "measures")
    out: Path | None = None  # a JSON file with all numbers


def command(args: Args, activation: str, seeds: int, tasks: int, *more: str) -> dict[str, float]:
    """Wall-clock and peak memory of one real command in an empty folder,
    its start and compilation included."""
    with tempfile.TemporaryDirectory() as temp:
        argv = [
            sys.executable,
            str(ROOT / "continual_supervised.py"),
            "--dataset",
            "digits",
            "--activation",
            activation,
        ]
        argv += [
            "--num-seeds",
            seeds,
            "--num-tasks",
            tasks,
            "--epochs",
            args.epochs,
            "--runs-dir",
            temp,
        ]
        argv += ["--threads", args.threads, *more]
        start = time.perf_counter()
        subprocess.run(
            [*map(str, argv)], check=True, stdout=subprocess.DEVNULL, env=dict(os.environ)
        )
        seconds = time.perf_counter() - start
        metas = [json.loads(file.read_text()) for file in Path(temp).glob("*/meta.json")]
    assert len(metas) == seeds and all(meta["status"] == "finished" for meta in metas)
    return {"seconds": seconds, "peak_memory_mb": max(meta["peak_memory_mb"] for meta in metas)}


def plain_loop(activation: str, widths: tuple[int, ...]):
    """What one would write without this project: modules with their default initialisation,
    torch.optim.Adam."""
    function = {"relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    sizes = (64, *widths)
    layers = []
    for i, width in enumerate(widths):
        layers += [nn.Linear(sizes[i], width), function()]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], 10))
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    loss_of = nn.CrossEntropyLoss()

    def update(images, rows, labels, order):
        logits = network(images[rows].float() / 16.0)
        loss = loss_of(logits, labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach(), (logits.argmax(-1) == labels).float().mean()

    return update


def updates(args: Args, activation: str) -> dict[str, float]:
    """Milliseconds per update of each variant, median over rounds;
    for the batch, of one update of all seeds."""
    config = continual_supervised.Args(activation=activation)
    images = torch.randint(17, (1_200, 64), dtype=torch.uint8)
    variants = {}
    for name, seeds, compiled in (
        ("batch, compiled", args.seeds, True),
        ("one seed, eager", 1, False),
    ):
        learner = continual_supervised.Learner(
            dataclasses.replace(config, compile=compiled),
            (1, 8, 8),
            10,
            16.0,
            [*range(seeds)],
            torch.device("cpu"),
        )
        variants[name] = learner.update, (seeds,)
    if activation in ("relu", "tanh"):
        variants["one seed, plain torch"] = plain_loop(activation, config.widths), ()
    times = {name: [] for name in variants}
    for number in range(args.rounds + 1):  # the first warms up
        for name, (update, shape) in variants.items():
            rows = torch.randint(1_200, (*shape, 16))
            labels = torch.randint(10, (*shape, 16))
            start = time.perf_counter()
            for _ in range(args.updates):
                update(images, rows, labels, None)
            times[name] += [1e3 * (time.perf_counter() - start) / args.updates] if number else []
    medians = {name: float(np.median(milliseconds)) for name, milliseconds in times.items()}
    for name in [*medians][1:]:
        ratios = args.seeds * np.array(times[name]) / np.array(times["batch, compiled"])
        medians[f"speed-up over {args.seeds} times {name}"] = float(np.median(ratios))
    return medians


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    results = {
        "args": dataclasses.asdict(args),
        "machine": hardware.machine(),
        "load_at_start": os.getloadavg(),
    }
    for activation in args.activations:
        found = {"updates_ms": updates(args, activation)} if "updates" in args.parts else {}
        if {"commands", "measures"} & {*args.parts}:
            found["batch"] = command(args, activation, args.seeds, args.tasks)
        if "measures" in args.parts:
            without = command(
                args,
                activation,
                args.seeds,
                args.tasks,
                "--metrics-samples",
                "0",
                "--ntk-samples",
                "0",
            )
            found["batch_without_measures"] = without
            found["share_of_measures"] = 1 - without["seconds"] / found["batch"]["seconds"]
        if "commands" in args.parts:
            one, two = (
                command(args, activation, 1, tasks, "--no-compile")["seconds"] for tasks in (1, 2)
            )
            found["one_seed_eager_seconds"] = {"first task": one, "first two tasks": two}
            found["one_after_the_other_seconds"] = args.seeds * (
                one + (args.tasks - 1) * (two - one)
            )
            found["speed-up"] = found["one_after_the_other_seconds"] / found["batch"]["seconds"]
        results[activation] = found
        print(activation, json.dumps(found, indent=2), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
