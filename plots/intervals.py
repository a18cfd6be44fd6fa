"""intervals."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plots.recording import write_figure
from plots.study import Panel, Study, _early, _shared
from plots.style import _caption
from plots.variants import looks


def draw_intervals(rows: list[dict], spec: dict) -> Figure:
    """Values with their intervals: a panel per group, a line per variant."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    own = looks(spec["variants"])
    figure = Figure((max(3.0 * len(groups), 6.5), 0.35 * len(own) + 2), layout="constrained")
    drawn = [name for name in own if any(row["variant"] == name for row in rows)]
    for panel, name in zip(figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups):
        mine = [row for row in rows if row["group"] == name]
        for row in mine:
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            bar, look = (
                np.nan_to_num([[value - low], [high - value]]),
                own[row["variant"]] | {"linestyle": ""},
            )
            panel.errorbar(
                value, drawn.index(row["variant"]), xerr=bar, **look, capsize=3, markersize=7
            )
        panel.set_yticks(range(len(drawn)), [name.replace("$", r"\$") for name in drawn])
        panel.set_ylim(len(drawn) - 0.5, -0.5)
        counts = sorted({int(row["runs"]) for row in mine})
        told = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        panel.set_title(
            f"{name}\n(environments: {mine[0]['environments']}, runs: {told} each)", fontsize=8
        )
        panel.set_xlabel(spec["unit"])
    _caption(figure, *spec["caption"])
    return figure


def _final(
    study: Study, rows: list[dict], out: Path, name: str, title: str, panel: Panel
) -> list[Path]:
    told = f", step {rows[0]['step']:,.0f}; 95 % stratified bootstrap" if rows else ""
    caption = [title + told, study.counts, *_shared(study), *_early(study, [panel])]
    spec = {"variants": study.variants, "unit": panel.unit, "caption": caption}
    return write_figure(out, name, "intervals", rows, **spec)
