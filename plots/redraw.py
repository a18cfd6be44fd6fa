"""Redraw figures from their CSV files, as recorded in the figures.json beside them."""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

import plots
import runlog
from plots.recording import Kind, drawn_figure, read_index, save_figure


def declared_kinds() -> dict[str, Kind]:
    """Every kind of figure by its name, collected from the modules of plots/: a new kind needs no
    line here."""
    kinds = {}
    for module in pkgutil.iter_modules(plots.__path__, "plots."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Kind):
                kinds[value.name] = value
    return kinds


BY_NAME = declared_kinds()


def figure_of(folder: Path, name: str) -> Figure:
    """Draw a figure of a folder from its CSV. Raises UserError: a file is missing or broken, or
    lacks what is drawn."""
    spec = read_index(folder, BY_NAME)[name]
    return drawn_figure(folder, name, spec, BY_NAME[spec["kind"]])


def redraw(folder: Path, name: str, endings: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure of a folder as files with these extensions beside its CSV."""
    spec = read_index(folder, BY_NAME)[name]
    return save_figure(folder, name, spec, BY_NAME[spec["kind"]], endings)


def redraw_all(folders: Sequence[Path]) -> list[Path]:
    """Draw as PNG every figure that is recorded in a figures.json in or below these folders, and
    print its path. Raises UserError: there is none, or (after all others) some cannot be drawn."""
    indices = []
    for folder in folders:
        found = sorted(Path(folder).rglob("figures.json"))
        if not found:
            missing = "no figures.json in it or below; give folders of drawn figures"
            raise runlog.UserError(f"{folder}: {missing}")
        indices += found
    paths = []
    faults = []
    for index in indices:
        drawn, not_drawn = redraw_folder(index.parent)
        paths += drawn
        faults += not_drawn
    if len(faults) == 1:
        raise runlog.UserError(faults[0])
    if faults:
        start = f"{len(faults)} faults; all other figures are drawn ({len(paths)}):"
        numbered = [f"({number}) {fault}" for number, fault in enumerate(faults, start=1)]
        raise runlog.UserError(" ".join([start, *numbered]))
    return paths


def redraw_folder(folder: Path) -> tuple[list[Path], list[str]]:
    """Draw every figure recorded in a folder's figures.json. Prints and returns the paths; also
    returns why others could not be drawn."""
    try:
        names = list(read_index(folder, BY_NAME))
    except runlog.UserError as error:
        return [], [str(error)]
    paths = []
    faults = []
    for name in names:
        try:
            drawn = redraw(folder, name)
        except runlog.UserError as error:
            faults.append(f"{folder / name}.png: {error}")
            continue
        print(*drawn, sep="\n", flush=True)
        paths += drawn
    return paths, faults
