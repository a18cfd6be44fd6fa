"""What leaves runlog, since it knows an algorithm or draws; kept until the scripts no longer call
it here.

Sizes of networks (to activations), Atari's numbers (to environments.atari), drawings (the script
passes them in), and the functions on lists of runs that `Batch` replaces.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import activations
from runlog import batch, opening
from runlog.divergence import Divergence
from runlog.identity import BEFORE_META_SAID_SO
from runlog.report import log_report
from runlog.run import Run
from runlog.terminal import reason, warn_once

NOT_IDENTITY = BEFORE_META_SAID_SO  # readers ask identity.identity_of
OBSERVATION_BYTES = 4 * 84 * 84  # Atari's, uint8
MOST_ACTIONS = 18  # of an Atari game
GAME_BYTES = 1_200_000  # of one Atari game in ale_py's vector environment


def draw_function_approximation(folders: Sequence[Path], out: Path) -> None:
    """figures.function_approximation: draws and prints the comparison of function_approximation.py.

    A failure is one line on stderr: the runs are there, and `figures.py function_approximation`
    draws them later.
    """
    try:
        import figures

        figures.function_approximation(folders, out)
    except Exception as error:
        remedy = "`python figures.py function_approximation` draws them"
        warn_once("plots", f"no figures in {out} ({reason(error)}); {remedy}")


def log_ntk(
    runs: Run | Sequence[Run], step: int, prefix: str, ranks: dict[str, torch.Tensor]
) -> None:
    """Log what metrics.ntk_rank found as `<prefix>/ntk_<name>`; batch axes as in log_report."""
    log_report(runs, step, prefix, {f"ntk_{name}": value for name, value in ranks.items()})


def finish_diverged(run: Run, step: int, cause: str, keep_replay: bool = False) -> None:
    """End a run that trains alone and whose loss `cause` is not finite; one line on stderr says
    so."""
    divergence = Divergence([run.config["seed"]], torch.device("cpu"))
    divergence.update(step, {cause: torch.tensor([torch.nan])})
    batch.finish([run], divergence.report(), keep_replay)


def draw(runs: Sequence[Run], step: int) -> None:
    """`Run.draw` of every run. To be called when all of them are saved: it takes seconds for
    each."""
    for run in runs:
        run.draw(step)


def print_network(network: torch.nn.Module) -> None:
    """Print the modules of a network and how many trainable parameters each of its layers has."""
    print(network)
    for name, layer in [*network.named_children(), ("total", network)]:
        print(
            f"{name:8}{sum(p.numel() for p in layer.parameters() if p.requires_grad):>12,}",
            flush=True,
        )


def carry_forward(runs: Sequence[Run], rows: Sequence[dict], steps: Sequence[int]) -> None:
    """Logs each run's row again at each of these steps, when all have diverged."""
    for step in steps:
        for run, row in zip(runs, rows):
            run.log(step, row)


@dataclasses.dataclass
class NetworkSize:
    """How many numbers a network holds: its trained parameters, and what one input leaves in its
    hidden layers (the pre-activation and the output of each branch and what joins them, which the
    backward pass needs)."""

    parameters: int = 0
    activations: int = 0

    def add_layer(
        self,
        inputs: int,
        units: int,
        expression: str,
        norm: int = 0,
        kernel: int = 1,
        pixels: int = 1,
    ) -> int:
        """Counts a hidden layer and returns how many features it has (crelu doubles them). inputs:
        features, each with `kernel` weights for each of the units; norm: normalised elements, each
        with scale and bias; pixels: of an image that a convolution makes."""
        terms = activations.parse(expression)
        width = activations.ACTIVATIONS[terms[0][0]].width
        branches = sum(len(product) for product in terms)
        self.parameters += branches * (inputs * kernel * units + units + 2 * norm)
        of_branch = 1 + width  # pre-activation, output
        if norm:
            of_branch += 3  # before the norm, without the mean, normalised
        joined = width if branches * width > 1 else 0  # the product, or the outputs side by side
        self.activations += (branches * of_branch + joined) * units * pixels
        return width * units

    def add_head(self, inputs: int, outputs: int) -> None:
        """Counts a linear layer of outputs."""
        self.parameters += inputs * outputs + outputs
        self.activations += outputs


def mlp_size(
    inputs: int, widths: Sequence[int], expression: str, outputs: int, layer_norm: bool = False
):
    """NetworkSize of `activations.mlp` and a linear layer of outputs."""
    size = NetworkSize()
    for width in widths:
        inputs = size.add_layer(inputs, width, expression, norm=width if layer_norm else 0)
    size.add_head(inputs, outputs)
    return size


def nature_cnn_size(args, outputs: int) -> NetworkSize:
    """NetworkSize of the Nature CNN (Mnih et al. 2015) of the Atari scripts, with a linear layer of
    outputs."""
    encoder = args.encoder_activation or (args.activation,)
    size = NetworkSize()
    features = 4
    layers = (
        (32, 8, 20),
        (64, 4, 9),
        (64, 3, 7),
    )  # channels, kernel size, pixels a side of what it makes
    for (channels, kernel, side), expression in zip(layers, encoder * (3 // len(encoder))):
        norm = {"none": 0, "channel": channels, "chw": channels * side**2}[args.layer_norm]
        features = size.add_layer(features, channels, expression, norm, kernel**2, side**2)
    norm = args.width if args.layer_norm != "none" else 0
    features = size.add_layer(features * 7 * 7, args.width, args.activation, norm)
    size.add_head(features, outputs)
    return size


def make_runs(args, script: str, **own) -> dict[int, Run]:
    """seed -> Run; see `opening.seed_runs`."""
    return {run.config["seed"]: run for run in opening.seed_runs(args, script, **own)}


@contextlib.contextmanager
def opened(runs: dict, args, job_type: str) -> Iterator[list[tuple[int, list, list[Run]]]]:
    """`opening.open_batches` as [(from step, keys of `runs`, runs), ...]."""
    keys = {run: key for key, run in runs.items()}
    for run in keys:
        run.script = job_type
    from plots.dashboards import SECTIONS

    is_atari = job_type.endswith("_atari")  # SAC's matrices are too small to gain from it
    with opening.open_batches(
        list(keys), args, keep_freed_memory=is_atari, sections=SECTIONS
    ) as batches:
        yield [(each.start, [keys[run] for run in each.runs], each.runs) for each in batches]


def draw_run(folder: Path) -> list[Path]:
    """figures.draw_run, for `Run.draw` without a function that draws."""
    import figures

    return figures.draw_run(folder)
