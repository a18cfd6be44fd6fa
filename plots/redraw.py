"""Figures drawn again from their CSV files, as the figures.json beside them says."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

import runlog
from plots import (
    claims,
    compare,
    continual,
    curves,
    exported,
    intervals,
    kde,
    overview,
    preactivations,
    q_parts,
    regression,
    seeds,
)
from plots.recording import drawn_figure, read_index, save_figure

KINDS = (  # every kind of figure; a new one is a module of its own and a line here
    curves.CURVES,
    curves.ENVIRONMENTS,
    intervals.INTERVALS,
    q_parts.PARTS,
    kde.DENSITIES,
    overview.OVERVIEW,
    preactivations.PREACTIVATIONS,
    compare.COMPARED,
    exported.STUDY,
    continual.CONTINUAL,
    regression.REGRESSION,
    regression.TABLE1,
    seeds.SEEDS,
    claims.CLAIMS,
)
BY_NAME = {kind.name: kind for kind in KINDS}


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
