"""run."""

from pathlib import Path

from plots.activation_shapes import activations_figure
from plots.kde import kde_figure
from plots.preactivations import preactivations_figure
from plots.q_parts import q_split_figure
from plots.reading import read_config
from plots.style import _save


def draw_run(folder: str | Path) -> list[Path]:
    """Draw activations.png, kde.png, preactivations.png, q_split.png into `<folder>/plots/`, as far as there is data;
    their paths."""
    folder = Path(folder)
    read_config(folder)
    makers = {
        "activations": activations_figure,
        "kde": kde_figure,
        "preactivations": preactivations_figure,
    }
    makers["q_split"] = q_split_figure
    figures = {folder / "plots" / f"{name}.png": make(folder) for name, make in makers.items()}
    return [_save(figure, path) for path, figure in figures.items() if figure is not None]
