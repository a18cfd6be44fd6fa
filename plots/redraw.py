"""Figures drawn again from their CSV files, as the figures.json beside them says."""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

import plots
import runlog
from plots.recording import Kind, drawn_figure, read_index, save_figure


def declared_kinds() -> dict[str, Kind]:
    """Every kind of figure by its name, as the modules of plots/ declare them: a new one needs no
    line here."""
    kinds = {}
    for module in pkgutil.iter_modules(plots.__path__, "plots."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Kind):
                kinds[value.name] = value
    return kinds


BY_NAME = declared_kinds()


def figure_of(folder: Path, name: str) -> Figure:
    """A figure of a folder, from its CSV. Raises UserError: a file is missing or broken, or lacks
    what is drawn."""
    spec = read_index(folder, BY_NAME)[name]
    return drawn_figure(folder, name, spec, BY_NAME[spec["kind"]])


def redraw(folder: Path, name: str, endings: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure of a folder as files with these endings beside its CSV."""
    spec = read_index(folder, BY_NAME)[name]
    return save_figure(folder, name, spec, BY_NAME[spec["kind"]], endings)


def redraw_all(folders: Sequence[Path]) -> list[Path]:
    """Draw as PNG every figure that a figures.json in these folders, or below, knows. Raises
    UserError: none there."""
    paths = []
    for folder in folders:
        indices = sorted(Path(folder).rglob("figures.json"))
        if not indices:
            told = "no figures.json in it or below; give folders of drawn figures"
            raise runlog.UserError(f"{folder}: {told}")
        for index in indices:
            for name in read_index(index.parent, BY_NAME):
                paths += redraw(index.parent, name)
    return paths
