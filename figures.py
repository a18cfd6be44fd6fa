"""From run folders to figures: what one run's networks look like, and activations compared over their seeds.

    python figures.py run runs/dm_control-cheetah-run-v0__sac_continuous__crational__s1__0123456789
    python figures.py demo runs/*cartpole* --out runs/demo.png
    python figures.py preactivations runs/*cartpole* --out runs/preactivations.png
    python figures.py compare runs/*sweep* --by layer_norm --out runs/layer_norm.png
    python figures.py continual --runs runs --out figures
    python figures.py function_approximation --runs runs/regression* --out runs/function_approximation
    python figures.py redraw results

Colours are Okabe and Ito's, safe for the colour-blind, and one activation has one colour and line style everywhere.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import runlog
from plots.compare import _compare_table, compared, write_compared
from plots.continual import continual
from plots.cr import cr1, cr_ablations, cr_atari, cr_curves
from plots.demo import draw_demo, print_table
from plots.regression import function_approximation, hr2
from plots.hr import hr1, hr7, hr8, hr19
from plots.kde import hr3
from plots.overview import overview
from plots.preactivations import preactivation_table, write_preactivations
from plots.q_parts import hr4
from plots.recording import _print, redraw_all
from plots.run import draw_run
from plots.tables import write_tables

ROWS = {  # subcommand: function; each is a row of the papers' figures
    "cr1": cr1,
    "cr_curves": cr_curves,
    "cr_ablations": cr_ablations,
    "continual": continual,
    "cr_atari": cr_atari,
    "hr1": hr1,
    "hr2": hr2,
    "hr3": hr3,
    "hr4": hr4,
    "hr7": hr7,
    "hr8": hr8,
    "hr19": hr19,
}

ALSO = {
    "cr_continual": "continual",
    "hr9": "hr1",
    "hr12": "hr2",
    "hr6": "hr3",
    "hr10": "hr3",
    "hr11": "hr3",
}

ALSO |= {f"hr{k}": "hr7" for k in (13, 14, 15)} | {
    "hr8a": "hr7",
    "hr8b": "hr7",
    "hr8c": "hr8",
    "hr8d": "hr8",
}

ALSO |= {f"hr{k}": "hr8" for k in (16, 17, 18)} | {
    f"hr{k}": "hr19" for k in range(20, 26)
}  # a figure: its row


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
    """Pre-activations of every layer over training, activations side by side: a figure and a table."""

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
    where: tuple[
        str, ...
    ] = ()  # only runs with these settings: total_timesteps=6000 utd=10 env_id=Breakout
    variants: tuple[
        str, ...
    ] = ()  # what to draw in place of the paper's, as captions name it: relu snake "tanh, ReDo"


@dataclass
class TableCommand:
    """Summary table of all runs in a folder: table.md, table.csv, table.tex; and runs.csv, a row for each."""

    runs: Path = Path("runs")  # folder of the runs
    out: Path = Path("figures")  # folder of the tables


@dataclass
class OverviewCommand:
    """One page of all runs in a folder: scores, overestimation, dead share, srank, learned activations."""

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

    folders: tyro.conf.Positional[tuple[Path, ...]] = (
        Path("results"),
    )  # folders of figures, with all below


def _figure_path(out: Path) -> tuple[Path, str, tuple[str]]:
    """Folder, name and kind of the file that --out tells; png without an ending."""
    kind = out.suffix[1:] or "png"
    if kind not in ("png", "pdf", "svg"):
        raise runlog.UserError(f"--out {out}: figures are png, pdf or svg; give such an ending")
    return out.parent, out.stem, (kind,)


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
    Command |= Annotated[
        RowCommand, tyro.conf.subcommand(name, default=RowCommand(name), description=told)
    ]


@runlog.exit_on_user_error(stdout_matters=True)
def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    argv[:1] = [ALSO.get(name, name) for name in argv[:1]]
    command = runlog.parse_args(Command, argv)
    if isinstance(command, RowCommand):
        print(
            *ROWS[command.row](command.runs, command.out, command.where, command.variants), sep="\n"
        )
    elif isinstance(command, TableCommand):
        print(*write_tables(command.runs, command.out), sep="\n")
    elif isinstance(command, OverviewCommand):
        print(*overview(command.runs, command.out), sep="\n")
    elif isinstance(command, RedrawCommand):
        print(*redraw_all(command.folders), sep="\n")
    elif isinstance(command, RunCommand):
        print(*draw_run(command.folder) or ["nothing to draw yet"], sep="\n")
    elif isinstance(command, FunctionApproximationCommand):
        function_approximation(command.runs, command.out)
    elif isinstance(command, DemoCommand):
        folder, name, (kind,) = _figure_path(command.out)
        print_table(command.folders)
        print(draw_demo(command.folders, folder / f"{name}.{kind}"))
    elif isinstance(command, PreactivationsCommand):
        _print(preactivation_table(command.folders))
        print("of the measured batches; means over n histories: seeds, and two critics of each")
        print(*write_preactivations(command.folders, *_figure_path(command.out)), sep="\n")
    else:
        rows, cut = _compare_table(compared(command.folders, command.by))
        _print(rows)
        print(
            "last values; mean +- standard deviation over n seeds; of the critics: largest or mean of the two"
        )
        for line in cut:
            print(line)
        print(*write_compared(command.folders, command.by, *_figure_path(command.out)), sep="\n")


if __name__ == "__main__":
    main()
