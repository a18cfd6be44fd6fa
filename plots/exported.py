"""exported."""

from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from plots.style import _caption
from plots.variants import STYLES


def draw_study(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """scripts/export_results.py's curves.csv and references: a panel per metric (spec's panels: metric -> label) with
    mean over seeds, thin lines for the seeds, band from worst to best. Grey: another program, an activation without a
    style; variants of one activation (export_results.py --by) have a style each.
    """
    rows = [row for table in tables.values() for row in table]
    ours = [
        name
        for name in dict.fromkeys(row["activation"] for row in rows if row["exp"] == "ours")
        if ", " in name
    ]
    variant_styles = dict(zip(ours, STYLES.values()))
    labels = spec["panels"]
    figure = Figure((10, 2.9 * ((len(labels) + 1) // 2) + 0.6), layout="constrained")
    panels, handles = figure.subplots((len(labels) + 1) // 2, 2, squeeze=False).ravel(), {}
    for panel, (metric, label) in zip(panels, labels.items()):
        for name in dict.fromkeys(row["activation"] for row in rows):
            curves = defaultdict(dict)
            for row in rows:
                if (row["activation"], row["metric"]) == (name, metric):
                    curves[row["seed"]][int(row["env_step"])] = row["value"]
            if not curves:
                continue
            steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
            values = np.array([[curve[step] for step in steps] for curve in curves.values()])
            color, line, _ = STYLES.get(name) or variant_styles.get(name, ("0.45", ":", ""))
            look = {"color": color, "linestyle": line}
            panel.plot(
                steps, values.mean(0), linewidth=2, label=f"{name}, n = {len(values)}", **look
            )
            panel.plot(steps, values.T, linewidth=0.5, alpha=0.6, color=look["color"])
            panel.fill_between(
                steps, values.min(0), values.max(0), alpha=0.15, color=look["color"], linewidth=0
            )
        panel.set(xlabel="environment steps", ylabel=label)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels())}
    for panel in panels[len(labels) :]:
        panel.remove()
    columns = 4 if max(map(len, handles)) < 30 else 2
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=columns, handlelength=3.5
    )
    _caption(figure, *spec["caption"])
    return figure
