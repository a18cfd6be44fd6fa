"""From run folders to figures. Importing this package is cheap: matplotlib is imported with the
first drawing."""

from collections.abc import Sequence
from pathlib import Path


def draw_run(folder: str | Path) -> list[Path]:
    """Draw the plots of one run's networks into `<folder>/plots/`; returns their paths."""
    from plots import run

    return run.draw_run(folder)


def function_approximation(run_folders: Sequence[str | Path], out: str | Path) -> None:
    """Draw and print the comparison of these runs of function_approximation.py."""
    from plots import regression

    regression.function_approximation(run_folders, out)
