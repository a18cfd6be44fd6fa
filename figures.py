"""From run folders to figures: the networks of one run, and comparisons of activations.

    python figures.py run runs/dm_control-cheetah-run-v0__sac_continuous__crational__s1__0123456789
    python figures.py curves runs --baseline relu --out figures/curves.png
    python figures.py compare runs/*sweep* --by layer_norm --out runs/layer_norm.png
    python figures.py redraw results

plots/ draws them. A new figure is a module there and a line in ROWS (CONTRIBUTING.md).
"""

import interrupts  # noqa: F401

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import runlog
from plots import compare, comparison, cr, cr_seeds, draw_run, hr, league, tables
from plots.continual import continual
from plots.kde import hr3
from plots.overview import overview
from plots.preactivations import preactivations
from plots.q_parts import hr4
from plots.reading import find_runs
from plots.redraw import redraw_all
from plots.regression import fitted_runs, hr2

ROWS = {  # subcommand: function; each draws figures of the papers, its docstring is the help
    "cr1": cr.cr1,
    "cr_curves": cr.cr_curves,
    "cr_seeds": cr_seeds.cr_seeds,
    "cr_constraint": cr_seeds.cr_constraint,
    "cr_ablations": cr.cr_ablations,
    "continual": continual,
    "cr_atari": cr.cr_atari,
    "hr1": hr.hr1,
    "hr2": hr2,
    "hr3": hr3,
    "hr4": hr4,
    "hr7": hr.hr7,
    "hr8": hr.hr8,
    "hr19": hr.hr19,
}
ANY_RUNS = {  # subcommand: function of (runs, out), and where it writes by default
    "overview": (overview, "figures"),
    "preactivations": (preactivations, "runs/preactivations.png"),
    "league": (league.league, "figures"),
}
WHERE = {  # subcommand: function of (runs, out, where, variants), and where it writes by default
    "function_approximation": (fitted_runs, "runs/function_approximation"),
}
DEMO_HELP = (
    "Curves of return and overestimation, and learned activations, as `make demo` draws them."
)
NO_DEFAULT = tyro.conf.arg(help_behavior_hint="")  # do not show an empty default in the help
SOME_PATHS = tyro.conf.arg(metavar="[PATH ...]", help_behavior_hint="")
Folders = Annotated[tuple[Path, ...], tyro.conf.Positional, SOME_PATHS]
Runs = Annotated[tuple[Path, ...], SOME_PATHS]
Words = Annotated[tuple[str, ...], NO_DEFAULT]
ALIASES = {  # subcommand: its further names, after the other figures that it draws
    "continual": ("cr_continual",),
    "hr1": ("hr9",),
    "hr2": ("hr12",),
    "hr3": ("hr6", "hr10", "hr11"),
    "hr7": ("hr8a", "hr8b", "hr13", "hr14", "hr15"),
    "hr8": ("hr8c", "hr8d", "hr16", "hr17", "hr18"),
    "hr19": ("hr20", "hr21", "hr22", "hr23", "hr24", "hr25"),
}


@dataclass
class RunCommand:
    """Draw the plots of each run into its folder."""

    folders: Folders = ()  # run folders, folders that contain some at any depth, quoted patterns
    runs: Runs = ()  # the same


@dataclass
class CurvesCommand:
    """Compare any runs: for each environment a curve per variant with its bootstrap interval, and
    beside it differences to a baseline, paired by seed, and the probability of improvement. A
    variant is an activation with the settings in which its runs differ."""

    folders: Folders = ()  # run folders, folders that contain some at any depth, quoted patterns
    runs: Runs = ()  # the same
    metric: tuple[str, ...] = ("score",)
    """score, return, success, accuracy, error, overestimation, "dead neurons", "effective rank", or
    any key of scalars.csv, such as network/qf*/fc1/srank; several get a row of panels each"""
    baseline: Annotated[str, NO_DEFAULT] = (
        ""  # variant or activation to compare with; default: relu, or the first if there is none
    )
    statistic: Literal["iqm", "mean", "median"] = "iqm"  # over seeds; iqm: interquartile mean
    at_step: float | None = None  # step of the comparison; None: the last that all runs have
    shapes: bool = False  # also draw the learned activation functions
    out: Path = Path("figures/curves.png")  # figure; NAME.csv, NAME-comparison.csv go beside it


@dataclass
class CompareCommand:
    """Compare the values of one setting, for each activation: a figure and a table."""

    by: str  # the setting, as config.json names it, for example layer_norm
    folders: Folders = ()  # run folders, folders that contain some at any depth, quoted patterns
    runs: Runs = ()  # the same
    out: Path = Path("runs/compare.png")  # the figure


@dataclass
class RunsCommand:
    """Draw any runs."""

    name: tyro.conf.Suppress[str] = ""  # of the subcommand
    folders: Folders = ()  # run folders, folders that contain some at any depth, quoted patterns
    runs: Runs = ()  # the same; default: the folder runs
    out: Path = Path("figures")  # folder of the figures and tables, or the figure


@dataclass
class RowCommand:
    """Draw figures of the papers."""

    row: tyro.conf.Suppress[str] = ""  # of the subcommand
    folders: Folders = ()  # run folders, folders that contain some at any depth, quoted patterns
    runs: Runs = ()  # the same; default: the folder runs
    out: Path = Path("figures")  # folder of the figures and tables
    where: Words = ()
    """only runs with these settings: total_timesteps=6000 utd=10 env_id=Breakout"""
    variants: Words = ()
    """what to draw, as captions name it: relu snake "tanh, ReDo"; default: all in the runs"""


@dataclass
class TableCommand:
    """Summary table of any runs: table.md, table.csv, table.tex, and runs.csv."""

    folders: Folders = ()  # run folders, folders that contain some at any depth, quoted patterns
    runs: Runs = ()  # the same; default: the folder runs
    out: Path = Path("figures")  # folder of the tables
    at_step: float | None = None  # step of the comparison; None: the last that all runs have


@dataclass
class RedrawCommand:
    """Redraw figures from their CSV files as PNG, as recorded in the figures.json beside them."""

    folders: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PATH ...]")
    ] = (Path("results"),)
    """folders with figures, in them or at any depth below"""


DEMO = CurvesCommand(metric=("return", "overestimation"), shapes=True, out=Path("runs/demo.png"))
Command = (
    Annotated[RunCommand, tyro.conf.subcommand("run")]
    | Annotated[CurvesCommand, tyro.conf.subcommand("curves")]
    | Annotated[CurvesCommand, tyro.conf.subcommand("demo", default=DEMO, description=DEMO_HELP)]
    | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[TableCommand, tyro.conf.subcommand("table")]
    | Annotated[RedrawCommand, tyro.conf.subcommand("redraw")]
)
rows = {name: (function, "figures") for name, function in ROWS.items()}
for name, (function, out) in (rows | WHERE).items():
    text = " ".join(function.__doc__.split())
    default = RowCommand(name, out=Path(out))
    row = tyro.conf.subcommand(name, default=default, description=text)
    Command |= Annotated[RowCommand, row]
for name, (function, out) in ANY_RUNS.items():
    text = " ".join(function.__doc__.split())
    default = RunsCommand(name, out=Path(out))
    Command |= Annotated[RunsCommand, tyro.conf.subcommand(name, default=default, description=text)]


def row_of(name: str) -> str:
    """The subcommand that draws a figure."""
    rows = [row for row, further in ALIASES.items() if name in further]
    return rows[0] if rows else name


@runlog.exit_on_user_error(stdout_matters=True)
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    words[:1] = [row_of(word) for word in words[:1]]
    command = runlog.parse_args(Command, words, __doc__)
    if isinstance(command, RedrawCommand):
        redraw_all(command.folders)
        return
    given = (*command.folders, *command.runs)
    runs = given or (Path("runs"),)
    match command:
        case RowCommand(row):
            draw = ROWS[row] if row in ROWS else WHERE[row][0]
            paths = draw(runs, command.out, command.where, command.variants)
        case RunsCommand(name):
            paths = ANY_RUNS[name][0](runs, command.out)
        case TableCommand():
            paths = tables.write_tables(runs, command.out, command.at_step)
        case CurvesCommand():
            chosen = (command.metric, command.baseline, command.statistic)
            options = comparison.Options(*chosen, command.at_step, command.shapes)
            paths = comparison.write_comparison(given, options, command.out)
        case CompareCommand():
            paths = compare.compare(given, command.by, command.out)
        case RunCommand():
            paths = []
            for folder in find_runs(given, ""):
                paths += draw_run(folder) or [f"{folder}: nothing to draw yet"]
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
