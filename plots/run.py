"""The plots of one run, drawn into its folder, also while it trains."""

from pathlib import Path

from plots import style
from plots.activation_shapes import activations_figure
from plots.kde import kde_figure
from plots.preactivations import preactivations_figure
from plots.q_parts import q_split_figure
from plots.reading import read_config

FIGURES = {  # name: function of the run's folder; None if there is no data for it
    "activations": activations_figure,
    "kde": kde_figure,
    "preactivations": preactivations_figure,
    "q_split": q_split_figure,
}


def draw_run(folder: str | Path) -> list[Path]:
    """Draw FIGURES into `<folder>/plots/`, as far as there is data; returns their paths."""
    folder = Path(folder)
    read_config(folder)
    figures = {name: draw(folder) for name, draw in FIGURES.items()}
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(style.save(figure, folder / "plots" / f"{name}.png"))
    return paths
