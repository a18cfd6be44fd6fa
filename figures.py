"""From run folders to figures: what one run's networks look like, and activations compared.

    python figures.py run runs/dm_control-cheetah-run-v0__sac_continuous__crational__s1__0123456789
    python figures.py demo runs/*cartpole* --out runs/demo.png
    python figures.py preactivations runs/*cartpole* --out runs/preactivations.png
    python figures.py compare runs/*sweep* --by layer_norm --out runs/layer_norm.png
    python figures.py function_approximation --runs runs/regression*
    python figures.py redraw results

The drawing is in plots/. A new figure is a module there and a line in ROWS (CONTRIBUTING.md).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import runlog
from plots import compare, cr, demo, draw_run, function_approximation, hr, preactivations, tables
from plots.continual import continual
from plots.cr_seeds import cr_seeds
from plots.kde import hr3
from plots.overview import overview
from plots.q_parts import hr4
from plots.redraw import redraw_all
from plots.regression import hr2

ROWS = {  # subcommand: function; each is a row of the papers' figures, its docstring is the help
    "cr1": cr.cr1,
    "cr_curves": cr.cr_curves,
    "cr_seeds": cr_seeds,
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
ALSO = {  # subcommand: further names of it, the figures that it draws
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
    """Draw the plots of one run into its folder."""

    folder: tyro.conf.Positional[Path]  # the run's folder


@dataclass
class DemoCommand:
    """Compare activations on one environment: a figure and a table."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    out: Path = Path("runs/demo.png")  # the figure


@dataclass
class PreactivationsCommand:
    """Pre-activations of every layer over training, activations side by side: a figure and a
    table."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    out: Path = Path("runs/preactivations.png")  # the figure


@dataclass
class CompareCommand:
    """Compare the values of one setting, for each activation: a figure and a table."""

    folders: tyro.conf.Positional[tuple[Path, ...]]  # run folders
    by: str  # the setting, as config.json names it, for example layer_norm
    out: Path = Path("runs/compare.png")  # the figure


@dataclass
class RowCommand:
    """A row of the papers' figures."""

    row: tyro.conf.Suppress[str] = ""  # the subcommand's name
    runs: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the figures and tables
    where: tuple[str, ...] = ()
    """only runs with these settings: total_timesteps=6000 utd=10 env_id=Breakout"""
    variants: tuple[str, ...] = ()
    """what to draw, as captions name it: relu snake "tanh, ReDo"; if left out, all of the runs"""


@dataclass
class TableCommand:
    """Summary table of all runs in a folder: table.md, table.csv, table.tex; and runs.csv, a row
    for each."""

    runs: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the tables


@dataclass
class OverviewCommand:
    """One page of all runs in a folder: scores, overestimation, dead-neuron fraction, srank,
    learned activations."""

    runs: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of overview.png, .pdf and .csv


@dataclass
class FunctionApproximationCommand:
    """Draw the comparison of function_approximation.py again: figures and tables."""

    runs: tuple[Path, ...]  # run folders
    out: Path = Path("runs/function_approximation")  # folder of the figures and tables


@dataclass
class RedrawCommand:
    """Draw figures again from their CSV files (PNG), as the figures.json beside them says."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("results"),)
    """folders of figures, with all below"""


Command = (
    Annotated[RunCommand, tyro.conf.subcommand("run")]
    | Annotated[DemoCommand, tyro.conf.subcommand("demo")]
    | Annotated[PreactivationsCommand, tyro.conf.subcommand("preactivations")]
    | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[FunctionApproximationCommand, tyro.conf.subcommand("function_approximation")]
    | Annotated[TableCommand, tyro.conf.subcommand("table")]
    | Annotated[OverviewCommand, tyro.conf.subcommand("overview")]
    | Annotated[RedrawCommand, tyro.conf.subcommand("redraw")]
)
for name, function in ROWS.items():
    told = " ".join(function.__doc__.split())
    row = tyro.conf.subcommand(name, default=RowCommand(name), description=told)
    Command |= Annotated[RowCommand, row]


def figure_place(out: Path) -> tuple[Path, str, tuple[str]]:
    """Folder, name and ending of the picture that --out names; png without an ending."""
    ending = out.suffix[1:] or "png"
    if ending not in ("png", "pdf", "svg"):
        raise runlog.UserError(f"--out {out}: figures are png, pdf or svg; give such an ending")
    return out.parent, out.stem, (ending,)


def row_of(name: str) -> str:
    """The subcommand that draws a figure."""
    rows = [row for row, further in ALSO.items() if name in further]
    return rows[0] if rows else name


@runlog.exit_on_user_error(stdout_matters=True)
def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    words[:1] = [row_of(word) for word in words[:1]]
    command = runlog.parse_args(Command, words, __doc__)
    match command:
        case RowCommand(row, runs, out, where, variants):
            print(*ROWS[row](runs, out, where, variants), sep="\n")
        case TableCommand(runs, out):
            print(*tables.write_tables(runs, out), sep="\n")
        case OverviewCommand(runs, out):
            print(*overview(runs, out), sep="\n")
        case RedrawCommand(folders):
            print(*redraw_all(folders), sep="\n")
        case RunCommand(folder):
            print(*draw_run(folder) or ["nothing to draw yet"], sep="\n")
        case FunctionApproximationCommand(runs, out):
            function_approximation(runs, out)
        case DemoCommand(folders, out):
            folder, name, (ending,) = figure_place(out)
            demo.print_demo_table(folders)
            print(demo.draw_demo(folders, folder / f"{name}.{ending}"))
        case PreactivationsCommand(folders, out):
            place = figure_place(out)
            preactivations.print_preactivation_table(folders)
            print(*preactivations.write_preactivations(folders, *place), sep="\n")
        case CompareCommand(folders, by, out):
            place = figure_place(out)
            compare.print_compare_table(folders, by)
            print(*compare.write_compared(folders, by, *place), sep="\n")


if __name__ == "__main__":
    main()
