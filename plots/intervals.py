"""Values at one step with their intervals: a panel per group, a line per variant."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import axes, style
from plots.panels import Panel, carried_notes, early_notes
from plots.recording import Kind, distinct, rows_where, write_figure
from plots.study import Study
from plots.variants import styles_in


def write_intervals(
    study: Study, rows: Sequence[dict], out: Path, name: str, title: str, panel: Panel
) -> list[Path]:
    """Write a figure of rows of group, variant, step, value, low, high, environments and runs."""
    if rows:
        title += f", step {rows[0]['step']:,.0f}"
    steps_of = {row["variant"]: np.array([row["step"]]) for row in rows}
    carried = carried_notes(study, panel, steps_of)
    caption = [title, study.counts, *study.shared_notes(), *early_notes(study, [panel]), *carried]
    return write_figure(
        out,
        name,
        INTERVALS,
        rows,
        variants=study.labels,
        activation_of=study.activation_of,
        unit=panel.unit,
        caption=caption,
    )


def draw(rows: list[dict], spec: dict) -> Figure:
    groups = distinct(rows, "group")
    looks = styles_in(spec)
    with_rows = {*distinct(rows, "variant")}
    drawn = [label for label in looks if label in with_rows]
    size = max(3.0 * len(groups), 6.5), 0.35 * len(looks) + 2
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    names = [axes.wrapped(label.replace("$", r"\$"), 2.0, 9, max_lines=2) for label in drawn]
    for panel, group in zip(panels, groups):
        members = rows_where(rows, group=group)
        for row in members:
            value, low, high = (float(row[key]) for key in ("value", "low", "high"))
            bar = np.nan_to_num([[value - low], [high - value]])
            look = looks[row["variant"]] | {"linestyle": ""}
            height = drawn.index(row["variant"])
            panel.errorbar(value, height, xerr=bar, **look, capsize=3, markersize=7)
        panel.set_yticks(range(len(drawn)), names)
        panel.set_ylim(len(drawn) - 0.5, -0.5)
        counts = [int(row["runs"]) for row in members]
        runs = " to ".join(str(count) for count in dict.fromkeys((min(counts), max(counts))))
        environments = f"environments: {members[0]['environments']}"
        style.title(panel, f"{group}\n({environments}, runs: {runs} each)", 8)
        panel.set_xlabel(axes.wrapped(spec["unit"], axes.column_width(panel) - 0.2, 9))
        panel.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=2))
    has_seeds = any(int(row["runs"]) > int(row["environments"]) for row in rows)
    note = "bars: 95 % stratified bootstrap" if has_seeds else "one seed: no intervals"
    style.caption(figure, *spec["caption"], note)
    return figure


INTERVALS = Kind("intervals", draw)
