"""Regression of y = 10 sin(7x) + 15 sin(10x) + 5 cos(5x): which activation fits best (HR, 2406.09079, Figs. 2 and 12)?

Shallow networks of about 600 parameters against each other and against deep ones of 81,001. All seeds and learning
rates of a network train in one process, as one leading axis; each pair is one run folder, and the same command again
resumes them or says "finished". At the end it draws both figures. Also Table 1, the probability that a neuron is dead.

    python function_approximation.py
    python function_approximation.py --activations relu tanh tanh_hr crational "identity*silu"

Results, implementation details and what the paper leaves open: docs/function_approximation.md.
"""

import csv
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from scipy.stats import binomtest

import activations
import metrics
import runlog

# Number of trained parameters that the paper tells (captions of Figs. 2 and 12)
PAPER_COUNTS = {("relu", (200,)): 601, ("tanh", (200,)): 601, ("tanh_hr", (100,)): 501}
PAPER_COUNTS |= {("relu", (200, 200, 200)): 81_001, ("tanh", (200, 200, 200)): 81_001}
DENSE_POINTS = 256  # even points of the interval that the fit is stored at and the network metrics look at


@dataclasses.dataclass
class Args:
    seed: int = 1  # first seed
    num_seeds: int = runlog.option(10)  # seeds: seed, seed + 1, ...
    total_steps: int = 2_000  # updates of each network, each on all points
    device: str = runlog.option("auto")  # auto (cuda where there is one), cpu, cuda, cuda:1, ...
    threads: int = runlog.option(0)  # CPU threads; 0 = torch's choice
    compile: bool = runlog.option(True)  # torch.compile the update; --no-compile runs it eagerly
    runs_dir: str = runlog.option("runs")  # where the run folders are
    out: str | None = runlog.option(None)  # folder of figures and tables; None = in --runs-dir
    fresh: bool = runlog.option(False)  # delete existing runs of this configuration and start anew
    checkpoint_frequency: int = runlog.option(1_000)  # updates between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # most minutes between checkpoints; 0 = any
    tensorboard: bool = runlog.option(False)  # TensorBoard event files (off: there are many runs)
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    rational: activations.RationalConfig = dataclasses.field(default_factory=activations.RationalConfig)
    # what is compared: every network with every learning rate and seed; from here on the name `activations` is a field
    activations: tuple[str, ...] = runlog.option(("relu", "tanh", "tanh_hr"))  # of shallow networks
    shallow_units: int = runlog.option(200)  # hidden units, divided by the branches (tanh_hr: 100)
    deep_activations: tuple[str, ...] = runlog.option(("relu", "tanh"))  # of deep networks, or none
    deep_widths: tuple[int, ...] = runlog.option((200, 200, 200))  # hidden units of deep networks
    learning_rates: tuple[float, ...] = runlog.option((1e-4, 1e-3, 1e-2))  # Adam's, constant
    # data
    interval: tuple[float, float] = (-1.0, 1.0)  # lowest and highest x
    num_points: int = 64  # even training points; the error is also measured half-way between them
    # measuring
    log_frequency: int = 20  # updates between rows of losses
    table1_neurons: int = runlog.option(1_024)  # neurons simulated for Table 1; 0 = leave it out


def target(x: torch.Tensor) -> torch.Tensor:
    """The function to fit (HR, caption of Fig. 2)."""
    return 10 * torch.sin(7 * x) + 15 * torch.sin(10 * x) + 5 * torch.cos(5 * x)


class Networks(nn.Module):
    """One network for each entry of `seeds`, with its own learning rate, and their optimiser. Losses are (networks,).

    Weights and biases start uniform in +-1/sqrt(fan_in), torch's default: with biases 0 every kink of a relu would lie
    at x = 0. They depend on the seed alone: learning rates, and activations of the same width, start equal.
    """

    def __init__(self, activation: str, widths, seeds, learning_rates, args: Args, device: torch.device):
        super().__init__()
        init = activations.fan_in_uniform
        seeds = np.asarray(seeds)
        hidden_seeds = runlog.derive_seeds(seeds, "hidden")
        self.hidden = activations.mlp(1, widths, activation, hidden_seeds, rational=args.rational, init=init)
        output_seeds = runlog.derive_seeds(seeds, "output")
        self.output = activations.Linear(self.hidden[-1].width, 1, seeds=output_seeds, init=init)
        for name, module in self.named_modules():
            if isinstance(module, activations.Linear):
                bound = module.weight.shape[-2] ** -0.5
                for bias, seed in zip(module.bias, seeds):
                    generator = runlog.make_generator(int(seed), "bias", name)
                    nn.init.uniform_(bias, -bound, bound, generator=generator)
        self.to(device)
        rates = torch.tensor(learning_rates, dtype=torch.float32, device=device)
        self.optimizer = activations.Adam(self, rates, args.rational)
        torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad inside a compiled function
        torch.compiler.reset()  # one code object may be compiled for a few networks only
        self.update = torch.compile(self.one_update, fullgraph=True, dynamic=False, disable=not args.compile)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(points,) -> (networks, points)"""
        return self.output(self.hidden(x.unsqueeze(-1))).squeeze(-1)

    def errors(self, x: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the points, (networks,)."""
        return (self(x) - target(x)).square().mean(-1)

    def one_update(self, x: torch.Tensor) -> torch.Tensor:
        """One step of Adam on all points; returns the losses before it. The networks are independent, so the gradient
        of the sum of their losses is each one's own."""
        loss = self.errors(x)
        grads = torch.autograd.grad(loss.sum(), self.optimizer.parameters_)
        with torch.no_grad():
            self.optimizer.step(grads)
        return loss.detach()

    def count(self) -> int:
        """Trained parameters of one network."""
        return sum(p[0].numel() for p in self.optimizer.parameters_)

    def restore(self, i: int, state: dict[str, torch.Tensor]) -> None:
        """Network i of every tensor, and the step count that they share, from a checkpoint."""
        for name, tensor in self.state_dict().items():
            (tensor[i] if tensor.dim() else tensor).copy_(state[name])


def architectures(args: Args) -> list[tuple[str, tuple[int, ...]]]:
    """(activation, widths) of every network to compare: the shallow ones, then the deep ones."""
    branches = {name: sum(map(len, activations.parse(name, "--activations"))) for name in args.activations}
    shallow = [(name, (args.shallow_units // number,)) for name, number in branches.items()]
    return list(dict.fromkeys([*shallow, *((name, args.deep_widths) for name in args.deep_activations)]))


def log_networks(networks: Networks, runs: list[runlog.Run], points: torch.Tensor, step: int) -> None:
    """At the end: the fit, and the health of every hidden layer with the gradients of the loss, on dense points."""
    x = torch.linspace(*points[[0, -1]].tolist(), DENSE_POINTS, device=points.device)
    grads = torch.autograd.grad(networks.errors(points).sum(), networks.optimizer.parameters_)
    grads = dict(zip(networks.optimizer.names, grads))
    report = metrics.network_report(networks, (x,), grads, batch_dims=1, max_samples=DENSE_POINTS)
    report.curves = {key: curve for key, curve in report.curves.items() if "kde" not in key}  # 16 per layer are many
    runlog.log_report(runs, step, "network/mlp", report)
    for run, fit in zip(runs, networks(x).tolist()):
        run.log_curve(step, "fit", x.tolist(), fit)


def train(args: Args, activation: str, widths, cells: list[tuple[float, int]], runs: list[runlog.Run], start: int):
    """Trains one network for each cell (learning rate, seed) from step `start`, at which each has a checkpoint."""
    device = runlog.find_device(args.device)
    learning_rates, seeds = zip(*cells)
    networks = Networks(activation, widths, seeds, learning_rates, args, device)
    last = [{} for _ in cells]
    divergence = runlog.Divergence(seeds, device)
    for i, run in enumerate(runs):
        _, state, _ = run.load_checkpoint(start)
        if state:
            networks.restore(i, state["networks"])
            last[i] = state["last"]
            divergence.step[i] = state["diverged"]
    x = torch.linspace(*args.interval, args.num_points, device=device)
    between = (x[1:] + x[:-1]) / 2
    progress = runlog.Progress(start, args.total_steps, label := f"{activation} {'x'.join(map(str, widths))}")

    @torch.no_grad()
    def measure() -> None:
        rows = torch.stack([networks.errors(x), networks.errors(between)], -1).tolist()
        for i, run in enumerate(runs):
            if not divergence.step[i] and np.isfinite(rows[i]).all():  # a diverged one carries its last row forward
                last[i] = dict(zip(("losses/mse", "eval/mse"), rows[i]))
            run.log(step, last[i])

    step = start
    save_times = runlog.SaveTimes(start, args.checkpoint_frequency, args.checkpoint_minutes)
    if start == 0:
        measure()
    for step in range(start + 1, args.total_steps + 1):
        at_end = step == args.total_steps
        divergence.update(step, {"loss": networks.update(x)})
        if step % args.log_frequency == 0 or at_end:
            measure()
            progress.update(step)
        if at_end:
            log_networks(networks, runs, x, step)
        if save_times.is_due(step, at_end):
            tensors = networks.state_dict()
            for i, run in enumerate(runs):
                state = {
                    "networks": {name: tensor[i] if tensor.dim() else tensor for name, tensor in tensors.items()},
                    "last": last[i],
                    "diverged": int(divergence.step[i]),
                }
                run.stage_checkpoint(step, state)
            for run in runs:
                run.commit_checkpoint()
            save_times.done(runs, at_end)
    runlog.finish(runs, divergence.report(), keep_replay=False, num_parameters=networks.count())
    progress.close()
    for rate in sorted(set(learning_rates)):
        errors = [row["eval/mse"] for row, (other, _) in zip(last, cells) if other == rate and row]
        told = f"{np.median(errors):.3g}" if errors else "diverged"
        progress.note(f"{label}: learning rate {rate:g}, median error {told} (n = {len(errors)})")


# ---- Table 1 -----------------------------------------------------------------------------------------------------

CLOSED_FORMS = {  # expression: probability that a neuron is dead, where each of its branches is saturated with p
    "tanh": lambda p: p,
    "tanh_hr": lambda p: p**2,  # a saturated tanh is -1 or 1 and lets the other factor through
    "sigmoid": lambda p: p,
    "sigmoid_hr": lambda p: p,  # either is saturated at 0, or both at 1: 1 - (1 - p / 2)^2 + (p / 2)^2
    "relu": lambda p: p,
    "relu_hr": lambda p: 2 * p - p**2,  # a saturated relu is 0, and so is the product
}


@torch.no_grad()
def dead_share(expression: str, p: float, neurons: int, seed: int) -> int:
    """Simulates HR's Table 1: how many of `neurons` are dead (KDE), where each branch of each is saturated with
    probability p, by a bias of 30 in size: negative for relu, of either sign for the others. The layer is
    `activations.dense`, on 256 normal samples of 16 features; weights are normal with variance 1/16."""
    generator = runlog.make_generator(seed, "table1", expression, str(p))
    options = {"seeds": runlog.derive_seed(seed, "table1", expression, str(p)), "init": activations.lecun_normal}
    layer = activations.dense(16, neurons, expression, **options)
    for branch in layer.branches:
        is_relu = getattr(branch.activation, "name", "") == "relu"
        sign = -1.0 if is_relu else torch.randint(2, (neurons,), generator=generator) * 2.0 - 1
        saturated = torch.rand(neurons, generator=generator) < p
        branch.linear.bias.copy_(30.0 * sign * saturated)
    outputs = layer(torch.randn(256, 16, generator=generator))
    return int(metrics.dead_neurons_kde(outputs)[0].sum())


def table1(neurons: int, seed: int) -> list[dict]:
    """Rows of Table 1: simulated share with a 95 % binomial interval (Clopper-Pearson) and closed form."""
    rows = []
    for (expression, formula), p in itertools.product(CLOSED_FORMS.items(), (0.1, 0.3, 0.5, 0.7, 0.9)):
        dead = dead_share(expression, p, neurons, seed)
        low, high = binomtest(dead, neurons).proportion_ci(0.95)
        row = {"activation": expression, "p": p, "neurons": neurons, "dead_share": dead / neurons}
        rows.append(row | {"low": low, "high": high, "closed_form": formula(p)})
    return rows


def save_table1(args: Args, folder: Path) -> None:
    """Writes table1.csv and prints how the simulation and the closed forms agree."""
    rows = table1(args.table1_neurons, args.seed)
    with runlog.writing(folder / "table1.csv"), open(folder / "table1.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({key: round(x, 6) if isinstance(x, float) else x for key, x in row.items()} for row in rows)
    for expression in CLOSED_FORMS:
        own = [row for row in rows if row["activation"] == expression]
        told = ", ".join(f"{row['p']} -> {row['dead_share']:.3f} ({row['closed_form']:.3f})" for row in own)
        print(f"Table 1, {expression}: p -> dead share (closed form): {told}", flush=True)
    inside = sum(row["low"] <= row["closed_form"] <= row["high"] for row in rows)
    print(f"Table 1: {inside} of {len(rows)} closed forms lie in the 95 % interval", flush=True)


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of what takes the memory, by the flags that set it: (on the device, on the host). The networks of one
    architecture are trained together, one architecture after the other."""
    num_networks = args.num_seeds * len(args.learning_rates)
    on_device = {}
    for activation, widths in architectures(args):
        size = runlog.mlp_size(1, widths, activation, 1)
        of_points = max(args.num_points, DENSE_POINTS) * size.activations
        field = "deep_widths" if widths == args.deep_widths else "shallow_units"
        sizes = {f"{field} num_seeds": runlog.ADAM_COPIES * size.parameters, f"num_points {field} num_seeds": of_points}
        sizes = {fields: runlog.FLOAT_BYTES * num_networks * count for fields, count in sizes.items()}
        on_device = max(on_device, sizes, key=lambda parts: sum(parts.values()))
    outputs = 256 * args.table1_neurons * 2 * 3  # of both branches: pre-activations, outputs, copies for the density
    return on_device, {"table1_neurons": runlog.FLOAT_BYTES * outputs}


def validate(args: Args) -> None:
    """Raises UserError (flag, value, remedy) before anything is created."""
    runlog.check_range(args, "[0, inf)", "seed threads table1_neurons checkpoint_minutes")
    runlog.check_range(args, "[1, inf)", "num_seeds total_steps checkpoint_frequency shallow_units deep_widths")
    runlog.check_range(args, "[1, inf)", "log_frequency")
    runlog.check_range(args, "[3, inf)", "num_points")
    runlog.check_range(args, "(0, inf)", "learning_rates")
    runlog.check_range(args, "(-inf, inf)", "interval")
    runlog.check_flags(args, args.num_seeds * len(args.learning_rates))
    if args.out is not None:
        runlog.check_folder("--out", args.out)
    if args.interval[0] >= args.interval[1]:
        raise runlog.UserError(f"--interval {args.interval}: the smaller number must come first")
    if not args.activations:
        raise runlog.UserError("--activations (): give at least one name, such as relu tanh tanh_hr")
    for flag, values in {"--activations": args.activations, "--deep-activations": args.deep_activations}.items():
        with runlog.value_errors_are_user_errors():
            parsed = [activations.parse(name, flag) for name in values]
            for name, terms in zip(values, parsed):
                activations.check(name, args.rational, flag)
                if parsed.count(terms) > 1:
                    raise runlog.UserError(f"{flag} {name}: is given twice; name every network once")
                if flag == "--activations" and sum(map(len, terms)) > args.shallow_units:
                    raise runlog.UserError(f"--shallow-units {args.shallow_units}: less than the branches of {name}")
    if len(set(args.learning_rates)) < len(args.learning_rates):
        raise runlog.UserError(f"--learning-rates {args.learning_rates}: name every learning rate once")
    runlog.check_memory(args, runlog.find_device(args.device), *big_tensors(args))


def runs_of_network(args: Args, activation: str, widths: tuple[int, ...]) -> list[runlog.Run]:
    """The runs of one network: every learning rate with every seed."""
    name = f"regression-{'x'.join(map(str, widths))}"
    runs = []
    for rate in args.learning_rates:
        own = {"env_id": f"{name}-lr{rate:g}", "activation": activation}
        own |= {"widths": widths, "learning_rate": rate}
        runs += runlog.seed_runs(args, "function_approximation", **own)
    return runs


def runs_of(args: Args) -> list[runlog.Run]:
    """The runs of these flags, of one network after the other. Creates nothing."""
    runs = []
    for activation, widths in architectures(args):
        runs += runs_of_network(args, activation, widths)
    return runs


def main(args: Args) -> None:
    validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    out = Path(args.out or Path(args.runs_dir) / "function_approximation")
    if not out.exists():
        runlog.check_machine(args)
    with runlog.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    folders = []
    counts = {}
    for activation, widths in architectures(args):
        count = Networks(activation, widths, [args.seed], [1.0], args, torch.device("cpu")).count()
        assert count == PAPER_COUNTS.get((activation, widths), count), (activation, widths, count)
        counts[activation, widths] = count
        print(f"{activation}, hidden units {' '.join(map(str, widths))}: {count:,} parameters", flush=True)
    for activation, widths in counts:
        cells = {}
        for run in runs_of_network(args, activation, widths):
            cells[run.config["learning_rate"], run.config["seed"]] = run
        with runlog.opened(cells, args, "function_approximation") as groups:
            for step, keys, together in groups:
                train(args, activation, widths, keys, together, step)
        folders += [run.folder for run in cells.values()]
    if args.table1_neurons:
        save_table1(args, out)
    runlog.draw_function_approximation(folders, out)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
