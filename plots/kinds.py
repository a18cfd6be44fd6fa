"""kinds."""

from plots.compare import draw_compared
from plots.continual import draw_continual_study
from plots.curves import draw_curves, draw_environments
from plots.exported import draw_study
from plots.intervals import draw_intervals
from plots.kde import draw_densities
from plots.overview import draw_overview
from plots.preactivations import draw_preactivations
from plots.q_parts import draw_parts
from plots.regression import draw_regression, draw_table1

DRAWERS = {  # kind of a figure: function of the rows of its CSV and of its entry in figures.json
    "curves": draw_curves,
    "environments": draw_environments,
    "intervals": draw_intervals,
    "parts": draw_parts,
    "densities": draw_densities,
    "overview": draw_overview,
    "preactivations": draw_preactivations,
    "compared": draw_compared,
    "study": draw_study,
    "continual": draw_continual_study,
    "regression": draw_regression,
    "table1": draw_table1,
}
