"""Regression of y = 10 sin(7x) + 15 sin(10x) + 5 cos(5x): which activation fits best?

HR (2406.09079, Figs. 2 and 12) compares shallow networks of about 600 parameters with each other
and with deep ones of 81,001. All seeds and learning rates of an architecture train in one process,
along one leading axis. Each pair of seed and learning rate has its own run folder; the same command
again resumes the runs, or reports that they are finished. At the end it draws both figures, and
computes Table 1, the probability that a neuron is dead.

    python function_approximation.py
    python function_approximation.py --activations relu tanh_hr "identity*silu"

Results, implementation details and what the paper leaves open: docs/function_approximation.md.
"""

import interrupts  # noqa: F401

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
from scipy.stats import binomtest

import activations
import metrics
import optimizers
import plots.dashboards
import reports
import runlog
from runlog import loading, memory, seeding, terminal
from runlog.disk import writing

PAPER_COUNTS = {  # trained parameters, from the paper (captions of Figs. 2 and 12)
    ("relu", (200,)): 601,
    ("tanh", (200,)): 601,
    ("tanh_hr", (100,)): 501,
    ("relu", (200, 200, 200)): 81_001,
    ("tanh", (200, 200, 200)): 81_001,
}
DENSE_POINTS = 256  # evenly spaced, for storing the fit and for the network metrics
TABLE1_SAMPLES = 256
TABLE1_FEATURES = 16
RationalConfig = activations.RationalConfig  # inside Args, `activations` is a flag


@dataclasses.dataclass
class Args:
    # the flags that matter most
    activations: tuple[str, ...] = runlog.option(("relu", "tanh", "tanh_hr"))  # of shallow networks
    deep_activations: tuple[str, ...] = runlog.option(("relu", "tanh"))  # of deep networks; or none
    shallow_units: int = runlog.option(200)  # hidden units, split over branches (tanh_hr: 100 each)
    learning_rates: tuple[float, ...] = runlog.option((1e-4, 1e-3, 1e-2))  # Adam's, constant
    seed: int = 1  # first seed
    num_seeds: int = runlog.option(10)  # seeds: seed, seed + 1, ...
    total_steps: int = 2_000  # updates per network, each on all points
    num_points: int = 64  # evenly spaced training points; errors also at their midpoints
    device: str = runlog.option("auto")  # auto (cuda if available), cpu, cuda, cuda:1, ...
    out: str | None = runlog.option(None)  # folder of figures and tables; None = in --runs-dir
    # experiment
    threads: int = runlog.option(0)  # CPU threads; 0 = torch's default
    compile: bool = runlog.option(True)  # torch.compile the update; --no-compile runs it eagerly
    runs_dir: str = runlog.option("runs")  # folder that contains the run folders
    fresh: bool = runlog.option(False)  # delete existing runs with these flags and start over
    checkpoint_frequency: int = runlog.option(1_000)  # updates between checkpoints
    checkpoint_minutes: float = runlog.option(10.0)  # also save after this many minutes; 0 = never
    # logging
    tensorboard: bool = runlog.option(False)  # TensorBoard event files (off: there are many runs)
    track: bool = runlog.option(False)  # mirror to Weights & Biases (offline: WANDB_MODE=offline)
    wandb_project: str = runlog.option("activations-rl")  # W&B project
    wandb_entity: str | None = runlog.option(None)  # W&B team; None = the account's default
    # network; each is trained with every learning rate and seed
    deep_widths: tuple[int, ...] = runlog.option((200, 200, 200))  # hidden units of deep networks
    rational: RationalConfig = dataclasses.field(default_factory=RationalConfig)
    # data
    interval: tuple[float, float] = (-1.0, 1.0)  # lowest and highest x
    # evaluation and metrics
    log_frequency: int = 20  # updates between rows of losses
    table1_neurons: int = runlog.option(1_024)  # neurons simulated for Table 1; 0 = skip it


def target(x: torch.Tensor) -> torch.Tensor:
    """The function to fit (HR, caption of Fig. 2)."""
    return 10 * torch.sin(7 * x) + 15 * torch.sin(10 * x) + 5 * torch.cos(5 * x)


# ---- networks ------------------------------------------------------------------------------------


class Architecture(NamedTuple):
    activation: str
    widths: tuple[int, ...]

    @property
    def name(self) -> str:
        """`200x200` for two hidden layers of 200 units."""
        return "x".join(map(str, self.widths))


def architectures(args: Args) -> list[Architecture]:
    """The architectures to compare: the shallow ones, then the deep ones, without duplicates."""
    found = {}
    for activation in args.activations:
        terms = activations.parse(activation, "--activations")
        num_branches = sum(map(len, terms))
        found[Architecture(activation, (args.shallow_units // num_branches,))] = None
    for activation in args.deep_activations:
        found[Architecture(activation, args.deep_widths)] = None
    return list(found)


def mean_squared_error(fit: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over the points: (networks, points), (points,) -> (networks,)."""
    return (fit - y).square().mean(-1)


class Networks(nn.Module):
    """One network for each entry of `seeds`, each with its own learning rate, and their optimiser;
    if both are numbers instead of lists, there is no leading axis.

    Weights and biases are initialised uniformly in +-1/sqrt(fan_in), torch's default: with zero
    biases every kink of a relu would lie at x = 0. They depend on the seed alone, so networks of
    the same width start equal for every learning rate and activation.
    """

    def __init__(
        self,
        activation: str,
        widths: tuple[int, ...],
        seeds: Sequence[int],
        learning_rates: Sequence[float],
        args: Args,
        device: torch.device,
    ):
        super().__init__()
        init = activations.fan_in_uniform
        hidden_seeds = seeding.derive_seeds(seeds, "hidden")
        self.hidden = activations.mlp(
            1, widths, activation, hidden_seeds, rational=args.rational, init=init
        )
        width = self.hidden[-1].width
        output_seeds = seeding.derive_seeds(seeds, "output")
        self.output = activations.Linear(width, 1, seeds=output_seeds, init=init)
        for name, module in self.named_modules():
            if isinstance(module, activations.Linear):
                draw_biases(module, seeding.derive_seeds(seeds, "bias", name))
        self.to(device)
        self.num_updates = args.total_steps
        rates = torch.tensor(learning_rates, dtype=torch.float32, device=device)
        self.optimizer = optimizers.Adam(self, rates, args.rational)
        torch._dynamo.config.trace_autograd_ops = True  # autograd.grad inside a compiled function
        torch.compiler.reset()  # the number of compilations per code object is limited
        self.update = torch.compile(
            self.one_update, fullgraph=True, dynamic=False, disable=not args.compile
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(points,) -> (networks, points)"""
        return self.output(self.hidden(x.unsqueeze(-1))).squeeze(-1)

    def errors(self, x: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the points, (networks,)."""
        return mean_squared_error(self(x), target(x))

    def one_update(self, x: torch.Tensor) -> torch.Tensor:
        """One step of Adam on all points; returns the losses before it. The networks are
        independent, so the sum of their losses has the gradients of each."""
        with activations.observing(self):
            loss = self.errors(x)
        grads = torch.autograd.grad(loss.sum(), self.optimizer.parameters_)
        with torch.no_grad():
            self.optimizer.step(grads)
            activations.step_constraints(self, self.num_updates)
        return loss.detach()

    def count(self) -> int:
        """Trained parameters of one network."""
        num_networks = self.output.bias.numel()
        return sum(p.numel() for p in self.optimizer.parameters_) // num_networks


def draw_biases(layer: activations.Linear, seeds: np.ndarray) -> None:
    """Draws the biases uniformly in +-1/sqrt(fan_in), with the seed of each network."""
    fan_in = layer.weight.shape[-2]
    bound = fan_in**-0.5
    biases = layer.bias.view(-1, layer.bias.shape[-1])
    for bias, seed in zip(biases, seeds.ravel()):
        generator = torch.Generator().manual_seed(int(seed))
        nn.init.uniform_(bias, -bound, bound, generator=generator)


def parameter_count(args: Args, architecture: Architecture) -> int:
    """Trained parameters of one network; checked against the number in the paper where it gives
    one."""
    networks = Networks(*architecture, [args.seed], [1.0], args, torch.device("cpu"))
    count = networks.count()
    assert count == PAPER_COUNTS.get(architecture, count), (architecture, count)
    return count


# ---- training ------------------------------------------------------------------------------------


def log_networks(networks: Networks, batch: runlog.Batch, points: torch.Tensor, step: int) -> None:
    """At the end: the fit and the metrics of every hidden layer on dense points, with the gradients
    of the training loss."""
    low, high = points[[0, -1]].tolist()
    x = torch.linspace(low, high, DENSE_POINTS, device=points.device)
    grads = torch.autograd.grad(networks.errors(points).sum(), networks.optimizer.parameters_)
    named_grads = dict(zip(networks.optimizer.names, grads))
    report = reports.network_report(
        networks, (x,), named_grads, batch_dims=1, max_samples=DENSE_POINTS
    )
    for key in list(report.curves):
        if "kde" in key:  # 16 per layer are too many
            del report.curves[key]
    batch.log_report(step, "network/mlp", report)
    batch.log_curve(step, "fit", x.tolist(), networks(x).tolist())


@torch.no_grad()
def measure(
    networks: Networks, batch: runlog.Batch, points: torch.Tensor, step: int, last: list[dict]
) -> None:
    """Logs the errors on the points and half-way between them, and stores them in `last`; for a
    diverged network the last errors are carried forward."""
    between = (points[1:] + points[:-1]) / 2
    on_points = networks.errors(points).tolist()
    off_points = networks.errors(between).tolist()
    for i, diverged_at in enumerate(batch.diverged()):
        is_finite = math.isfinite(on_points[i]) and math.isfinite(off_points[i])
        if is_finite and not diverged_at:
            last[i] = {"losses/mse": on_points[i], "eval/mse": off_points[i]}
    batch.log_rows(step, last)


def train(args: Args, architecture: Architecture, batch: runlog.Batch) -> None:
    """Trains one network per run of the batch, from its current step to the end."""
    device = runlog.find_device(args.device)
    rates = batch.settings("learning_rate")
    networks = Networks(*architecture, batch.seeds, rates, args, device)
    last = [{} for _ in batch.seeds]
    state = batch.load()
    if state is not None:
        last = state["last"]
        runlog.restore_module(networks, state["networks"])

    points = torch.linspace(*args.interval, args.num_points, device=device)
    label = f"{architecture.activation} {architecture.name}"
    progress = runlog.Progress(batch.start, args.total_steps, label)
    if batch.start == 0:
        measure(networks, batch, points, 0, last)
    for step in range(batch.start + 1, args.total_steps + 1):
        at_end = step == args.total_steps

        # learn
        loss = networks.update(points)
        batch.note_losses(step, {"loss": loss})

        # measure
        if step % args.log_frequency == 0 or at_end:
            measure(networks, batch, points, step, last)
            progress.update(step)
        if at_end:
            log_networks(networks, batch, points, step)

        # save
        if batch.save_is_due(step, at_end):
            batch.save(step, {"networks": networks.state_dict(), "last": last})

    batch.finish(num_parameters=networks.count())
    progress.close()
    diverged = batch.diverged()
    for rate in sorted(set(rates)):
        errors = []
        for row, own_rate, has_diverged in zip(last, rates, diverged):
            if own_rate == rate:
                errors.append(math.inf if has_diverged else row["eval/mse"])
        median = f"median error {np.median(errors):.3g} (n = {len(errors)})"
        progress.note(f"{label}: learning rate {rate:g}, {median}")


# ---- Table 1 -------------------------------------------------------------------------------------

CLOSED_FORMS = {  # expression: probability that a neuron is dead if each of its branches is
    # saturated with probability p
    "tanh": lambda p: p,
    "tanh_hr": lambda p: p**2,  # a saturated tanh is -1 or 1 and passes the other factor on
    "sigmoid": lambda p: p,
    "sigmoid_hr": lambda p: p,  # one is 0, or both are 1: 1 - (1 - p / 2)^2 + (p / 2)^2
    "relu": lambda p: p,
    "relu_hr": lambda p: 2 * p - p**2,  # a saturated relu is 0, and so is the product
}


@torch.no_grad()
def count_dead(expression: str, p: float, neurons: int, seed: int) -> int:
    """Simulates HR's Table 1: how many of `neurons` are dead (KDE) if each branch of each neuron is
    saturated with probability p, by a bias of magnitude 30: negative for relu, of random sign for
    the others. The layer is `activations.dense` with weights that are normal with variance 1/16, on
    256 normal samples of 16 features."""
    own_seed = int(seeding.derive_seeds(seed, "table1", expression, str(p)))
    generator = torch.Generator().manual_seed(own_seed)
    init = activations.lecun_normal
    layer = activations.dense(TABLE1_FEATURES, neurons, expression, seeds=own_seed, init=init)
    for branch in layer.branches:
        if getattr(branch.activation, "name", "") == "relu":
            sign = -1.0
        else:
            sign = torch.randint(2, (neurons,), generator=generator) * 2.0 - 1
        saturated = torch.rand(neurons, generator=generator) < p
        branch.linear.bias.copy_(30.0 * sign * saturated)
    samples = torch.randn(TABLE1_SAMPLES, TABLE1_FEATURES, generator=generator)
    dead, _ = metrics.dead_neurons_kde(layer(samples))
    return int(dead.sum())


def table1(neurons: int, seed: int) -> list[dict]:
    """Rows of Table 1: simulated fraction with a 95 % binomial interval (Clopper-Pearson), and
    closed form."""
    rows = []
    for expression, formula in CLOSED_FORMS.items():
        for p in (0.1, 0.3, 0.5, 0.7, 0.9):
            dead = count_dead(expression, p, neurons, seed)
            low, high = binomtest(dead, neurons).proportion_ci(0.95)
            row = {
                "activation": expression,
                "p": p,
                "neurons": neurons,
                "dead_share": dead / neurons,
                "low": low,
                "high": high,
                "closed_form": formula(p),
            }
            rows.append(row)
    return rows


def save_table1(args: Args, folder: Path) -> None:
    """Writes table1.csv and prints how well the simulation and the closed forms agree."""
    rows = table1(args.table1_neurons, args.seed)
    path = folder / "table1.csv"
    with writing(path), open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: rounded(value) for key, value in row.items()})
    inside = 0
    findings = {expression: [] for expression in CLOSED_FORMS}
    for row in rows:
        found = f"{row['p']} -> {row['dead_share']:.3f} ({row['closed_form']:.3f})"
        findings[row["activation"]].append(found)
        if row["low"] <= row["closed_form"] <= row["high"]:
            inside += 1
    for expression, found in findings.items():
        joined = ", ".join(found)
        print(
            f"Table 1, {expression}: p -> dead-neuron fraction (closed form): {joined}", flush=True
        )
    print(f"Table 1: {inside} of {len(rows)} closed forms lie in the 95 % interval", flush=True)


def rounded(value):
    return round(value, 6) if isinstance(value, float) else value


# ---- flags ---------------------------------------------------------------------------------------


def big_tensors(args: Args) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the largest memory users, by the flags that set them: (on the device, on the host).
    The networks of one architecture train together, one architecture after the other."""
    num_networks = args.num_seeds * len(args.learning_rates)
    on_device = {}
    for activation, widths in architectures(args):
        size = memory.mlp_size(1, widths, activation, 1)
        of_points = size.sample_bytes(max(args.num_points, DENSE_POINTS))
        field = "deep_widths" if widths == args.deep_widths else "shallow_units"
        sizes = {
            f"{field} num_seeds": num_networks * size.training_bytes(),
            f"num_points {field} num_seeds": num_networks * of_points,
        }
        if sum(sizes.values()) > sum(on_device.values()):
            on_device = sizes
    copies = 2 * 3  # of both branches: pre-activations, outputs, copies for the density
    outputs = TABLE1_SAMPLES * args.table1_neurons * copies
    return on_device, {"table1_neurons": 4 * outputs}  # bytes of a float32


def parse_all(args: Args, flag: str, names: tuple[str, ...]) -> list:
    """The terms of each expression (activations.parse). Raises UserError if one is unknown."""
    parsed = []
    for name in names:
        try:
            parsed.append(activations.parse(name, flag))
            activations.check(name, args.rational, flag)
        except ValueError as error:  # it names the flag
            raise runlog.UserError(str(error)) from None
    return parsed


def check_expressions(args: Args, flag: str, names: tuple[str, ...]) -> None:
    """Raises UserError unless each is an activation and denotes a different network from the
    others."""
    parsed = parse_all(args, flag, names)
    for name, terms in zip(names, parsed):
        if parsed.count(terms) > 1:
            problem = "is given twice; list each network once"
            raise runlog.UserError(f"{flag} {name}: {problem}")
        is_shallow = flag == "--activations"
        if is_shallow and sum(map(len, terms)) > args.shallow_units:
            problem = f"fewer than the branches of {name}"
            raise runlog.UserError(f"--shallow-units {args.shallow_units}: {problem}")


def check_settings(args: Args) -> None:
    """Raises UserError (flag, value, remedy) for values that cannot work on any machine. A sweep
    calls this before it starts anything."""
    runlog.check_range(args, "[0, inf)", "seed threads table1_neurons checkpoint_minutes")
    runlog.check_range(args, "[1, inf)", "num_seeds total_steps checkpoint_frequency")
    runlog.check_range(args, "[1, inf)", "shallow_units deep_widths log_frequency")
    runlog.check_range(args, "[3, inf)", "num_points")
    runlog.check_range(args, "(0, inf)", "learning_rates")
    runlog.check_range(args, "[-1e6, 1e6]", "interval")
    low, high = args.interval
    if low >= high:
        raise runlog.UserError(f"--interval {low:g} {high:g}: the smaller number must come first")
    if np.float32(low) == np.float32(high):
        problem = f"--interval {low!r} {high!r}: both ends are the same number in float32"
        raise runlog.UserError(f"{problem}; use a wider interval")
    if not args.activations:
        remedy = "give at least one name, such as relu tanh tanh_hr"
        raise runlog.UserError(f"--activations: {remedy}")
    check_expressions(args, "--activations", args.activations)
    check_expressions(args, "--deep-activations", args.deep_activations)
    with runlog.value_errors_are_user_errors():
        names = [*args.activations, *args.deep_activations]
        activations.check_schedule(names, args.rational)
    if len(set(args.learning_rates)) < len(args.learning_rates):
        rates = " ".join(map(str, args.learning_rates))
        raise runlog.UserError(f"--learning-rates {rates}: list each learning rate once")


def validate(args: Args) -> None:
    """Raises UserError (flag, value, remedy) before anything is created."""
    check_settings(args)
    runlog.check_flags(args, args.num_seeds * len(args.learning_rates))
    runlog.check_folder("--runs-dir" if args.out is None else "--out", str(out_folder(args)))
    device = runlog.find_device(args.device)
    on_device, on_host = big_tensors(args)
    runlog.check_memory(args, device, on_device, on_host)


# ---- after the training --------------------------------------------------------------------------


def load_agent(folder: str | Path, device: str = "cpu") -> Networks:
    """The network of a run's newest checkpoint, finished or not.

    It has no leading axis: x (points,) -> the fit (points,). `runlog.load(folder).settings` says
    which of the networks compared by `Args` it is: activation, widths, learning_rate. Raises
    UserError like `runlog.load`, and if there is no checkpoint yet.
    """
    run = runlog.load(folder, Args)
    loading.weights_of(run, "networks")
    args = dataclasses.replace(run.config, compile=False)
    with runlog.value_errors_are_user_errors():
        networks = Networks(
            run.settings["activation"],
            run.settings["widths"],
            args.seed,
            run.settings["learning_rate"],
            args,
            runlog.find_device(device),
        )
    loading.restore(networks, run, "networks")
    return networks


# ---- the whole comparison ------------------------------------------------------------------------


def runs_of_architecture(args: Args, architecture: Architecture) -> list:
    """The run of each learning rate and seed."""
    runs = []
    for rate in args.learning_rates:
        runs += runlog.seed_runs(
            args,
            "function_approximation",
            env_id=f"regression-{architecture.name}-lr{rate:g}",
            activation=architecture.activation,
            widths=architecture.widths,
            learning_rate=rate,
        )
    return runs


def runs_of(args: Args) -> list:
    """The run of each architecture, learning rate and seed."""
    runs = []
    for architecture in architectures(args):
        runs += runs_of_architecture(args, architecture)
    return runs


def out_folder(args: Args) -> Path:
    return Path(args.out or Path(args.runs_dir) / "function_approximation")


def make_out_folder(args: Args) -> Path:
    out = out_folder(args)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def dashboard(args: Args) -> dict:
    """The TensorBoard and W&B panels for these runs (docs/dashboards.md)."""
    panels = [
        "mean squared error",
        "weight norm of each network",
        "gradient norm of each network",
        "rank of the tangent kernel",
        "gradient norm of the coefficients",
    ]
    layouts = []
    for architecture in architectures(args):
        last = f"fc{len(architecture.widths)}"
        layouts.append(plots.dashboards.sections(panels, ("mlp",), last))
    return plots.dashboards.merged(layouts)


def main(args: Args) -> None:
    validate(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    for architecture in architectures(args):
        units = " ".join(map(str, architecture.widths))
        count = parameter_count(args, architecture)
        print(f"{architecture.activation}, hidden units {units}: {count:,} parameters", flush=True)

    folders = []
    for architecture in architectures(args):
        runs = runs_of_architecture(args, architecture)
        with runlog.open_batches(runs, args, sections=dashboard(args)) as batches:
            for batch in batches:
                train(args, architecture, batch)
        folders += [run.folder for run in runs]

    out = make_out_folder(args)
    if args.table1_neurons:
        save_table1(args, out)
    draw(folders, out)


def draw(folders: list[Path], out: Path) -> None:
    """Draws and prints the comparison. The runs are kept whether or not it can be drawn."""
    try:
        plots.function_approximation(folders, out)
    except Exception as error:
        remedy = "`python figures.py function_approximation` draws them"
        runlog.warn(f"no figures in {out} ({terminal.reason(error)}); {remedy}")


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
