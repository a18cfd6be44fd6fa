"""What leaves runlog, since it knows an algorithm or draws; kept until the scripts no longer call
it here.

Losses, episodes and evaluations of SAC (to environments), sizes of networks (to activations),
Atari's numbers (to environments.atari), drawings (the script passes them in), and the functions on
lists of runs that `Batch` replaces.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

import activations
import metrics
from runlog import batch, opening
from runlog.cli import check_range
from runlog.divergence import Divergence
from runlog.identity import BEFORE_META_SAID_SO
from runlog.report import log_report
from runlog.run import Run
from runlog.terminal import UserError, reason, warn_once

NOT_IDENTITY = BEFORE_META_SAID_SO  # readers ask identity.identity_of


def log_evaluations(
    runs: Sequence["Run"], step: int, last: list[dict], task_steps: int
) -> list[dict[str, float]]:
    """Logs each run's newest evaluation: the current task's values and, of several tasks, each
    one's, with plasticity and forgetting of the success rate or, without one, of the return
    (metrics.sequence_scores). Returns the rows.

    last: for each run "tasks", the `eval/` values of every task ([] before the first evaluation:
    nothing is logged); "bias", further values of the current task; "history", rows (step, score of
    each task), which this evaluation joins.
    """
    rows = [
        each["tasks"][(step - 1) // task_steps] | each["bias"] if each["tasks"] else {}
        for each in last
    ]
    for run, row, each in zip(runs, rows, last):
        if len(each["tasks"]) > 1:
            for k, values in enumerate(each["tasks"], 1):
                row |= {
                    f"eval/task{k}/{key.removeprefix('eval/')}": value
                    for key, value in values.items()
                }
            scores = [
                values.get("eval/success", values["eval/episodic_return"])
                for values in each["tasks"]
            ]
            each["history"].append([step, *scores])
            row |= metrics.sequence_scores(each["history"], task_steps)
        run.log(step, row)
    return rows


def new_episode(number: int = 0, errors: int = 0) -> dict:
    """A training episode before its first step. A checkpoint holds it: environments.EpisodeSeeds
    goes back to where it was. errors: how often the environment has failed so far
    (environments.log_errors)."""
    return {"number": number, "return": 0.0, "success": 0.0, "actions": [], "errors": errors}


def log_episodes(
    runs: Sequence["Run"], step: int, episodes: list[dict], actions, rewards, success, dones, muted
) -> None:
    """Adds one step of each run's environment to its episode, in place; one that ends is logged,
    unless the run is in `muted`, and the next takes its place. success: as of
    environments.true_successors; all arrays (runs, ...)."""
    for i, episode in enumerate(episodes):
        episode["actions"].append(actions[i].tolist())
        episode["return"] += float(rewards[i])
        episode["success"] = max(episode["success"], float(success[i]))
        if dones[i] and not muted[i]:
            row = {} if np.isnan(success[i]) else {"charts/success": episode["success"]}
            row |= {
                "charts/episodic_return": episode["return"],
                "charts/episodic_length": len(episode["actions"]),
            }
            runs[i].log(step, row)
        if dones[i]:
            episodes[i] = new_episode(episode["number"] + 1, episode.get("errors", 0))


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


def log_losses(
    runs: Sequence[Run], step: int, info: dict[str, torch.Tensor], muted, sps: float, updates: int
) -> None:
    """Log `losses/<key>` of info (key -> (runs,)), unless the run is in `muted`, and the speed:
    environment steps and, with `updates` for each of these, updates per second."""
    values = {f"losses/{key}": value.tolist() for key, value in info.items()}
    for i, run in enumerate(runs):
        row = {} if muted[i] else {key: value[i] for key, value in values.items()}
        run.log(step, row | {"perf/sps": sps, "perf/updates_per_second": sps * updates})


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


def sequence_length(args):
    """args with the total_timesteps of its sequential tasks env_id: their number times
    steps_per_task; with one task args as it is. Raises UserError: several tasks without
    steps_per_task, or one with it; another total_timesteps; a steps_per_task that is no multiple of
    eval_frequency; a task without a step after learning_starts."""
    number = len(args.env_id)
    each = args.steps_per_task
    total = args.total_timesteps
    if number <= 1 and each is not None:
        raise UserError(
            f"--steps-per-task {each}: needs several --env-id; use --total-timesteps {each}"
        )
    if number == 1:
        check_range(args, f"({args.learning_starts}, inf)", "total_timesteps")
        for flag in ("reset_replay", "reset_optimizer"):
            if not getattr(args, flag):
                raise UserError(
                    f"--no-{flag.replace('_', '-')}: needs several --env-id; leave it out"
                )
        return args
    if not number:
        raise UserError("--env-id: is empty; give one id, or several to learn one after the other")
    if each is None:
        raise UserError(
            f"--env-id {' '.join(args.env_id)}: several tasks need --steps-per-task, for example 100000"
        )
    check_range(args, f"({args.learning_starts}, inf)", "steps_per_task")
    if total not in (type(args).total_timesteps, number * each):  # the default, or right
        told = f"--total-timesteps {total}: {number} tasks of --steps-per-task {each} make {number * each}"
        raise UserError(f"{told}; leave it out")
    if each % args.eval_frequency:  # two evaluations would share their episodes
        raise UserError(
            f"--steps-per-task {each}: must be a multiple of --eval-frequency {args.eval_frequency}"
        )
    return dataclasses.replace(args, total_timesteps=number * each)


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
