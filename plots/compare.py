"""compare."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import runlog
from plots.aggregation import aligned, common_end, mean_and_deviation
from plots.demo import _count
from plots.reading import Loaded, read_config
from plots.recording import write_figure
from plots.style import _caption, _draw_seeds
from plots.variants import all_runs, load, style

COMPARED = {  # title: (key pattern, reduction over the keys that match, format); critics and their layers
    "overestimation": (r"overestimation/mean", np.mean, "{:.1f}"),
    "max |f(x)|": (r"network/qf\d?/fc\d+/(branch\d+_)?f_max", np.max, "{:.2f}"),
    "coefficient gradient": (r"network/qf\d?/coefficient_gradient_norm", np.mean, "{:.3g}"),
    "critic gradient": (r"network/qf\d?/gradient_norm", np.mean, "{:.3g}"),
}


def compared(run_folders: Sequence[str | Path], by: str) -> dict[str, list[Loaded]]:
    """ "activation, by value" -> its runs, where the runs differ in the setting `by` too. Each run's scalars gain the
    titles of COMPARED. Raises UserError: no such setting."""
    groups = defaultdict(list)
    for name, runs in load(run_folders, varied=(by,)).items():
        for run in runs:
            if by not in run.config:
                raise runlog.UserError(
                    f"--by {by}: no setting of these runs; config.json lists them"
                )
            groups[f"{name}, {by} {run.config[by]}"].append(run)
            for title, (pattern, reduce, _) in COMPARED.items():
                series = [run.series(key) for key in run.scalars if re.fullmatch(pattern, key)]
                steps = (
                    sorted(set.intersection(*(set(each[:, 0]) for each in series)))
                    if series
                    else []
                )
                if steps:
                    values = reduce(
                        [each[np.isin(each[:, 0], steps), 1] for each in series], axis=0
                    )
                    run.scalars[title] = np.stack([steps, values, np.zeros(len(steps))], -1)
    return {name: groups[name] for name in sorted(groups)}


def compare_rows(run_folders: Sequence[str | Path], by: str) -> list[dict]:
    """Points of `draw_compared`: success (where there is one) and return, overestimation, largest |f| and gradients of
    the critics, of every seed (NaN where it has no row and others of its group do)."""
    groups, rows = compared(run_folders, by), []
    titles = {
        "eval/success": "success rate",
        "eval/episodic_return": "return",
        **{title: title for title in COMPARED},
    }
    for key, title in titles.items():
        for name, runs in groups.items():
            steps, values = aligned(runs, key)
            for run, points in zip(runs, values):
                own = {"panel": title, "group": name, "activation": run.config["activation"]}
                own |= {"setting": str(run.config[by]), "seed": run.config["seed"]}
                rows += [
                    own | {"step": x, "value": y} for x, y in zip(steps.tolist(), points.tolist())
                ]
    return rows


def draw_compared(rows: list[dict], spec: dict) -> Figure:
    """Rows of compare_rows: a panel per quantity, the activation is the colour, the setting the line style."""
    values, looks = sorted({row["setting"] for row in rows}), {}
    for row in rows:
        k = values.index(row["setting"])
        look = {"linestyle": ("-", "--", ":", "-.")[k % 4], "marker": "osD^v"[k % 5]}
        looks[row["group"]] = style(row["activation"]) | look
    titles = list(dict.fromkeys(row["panel"] for row in rows))
    figure = Figure((10, 2.8 * ((len(titles) + 1) // 2) + 0.8), layout="constrained")
    panels = figure.subplots((len(titles) + 1) // 2, 2, squeeze=False).ravel()
    for panel, title in zip(panels, titles):
        mine, curves = [row for row in rows if row["panel"] == title], {}
        for name in dict.fromkeys(row["group"] for row in mine):
            seeds = defaultdict(list)
            for row in (row for row in mine if row["group"] == name):
                seeds[row["seed"]].append((row["step"], row["value"]))
            points = np.array(list(seeds.values()), dtype=float)
            curves[name] = points[0, :, 0], points[:, :, 1]
        _draw_seeds(panel, curves, title, "", looks)
        if "gradient" in title or title.startswith("max"):
            panel.set_yscale("log")
    for panel in panels[len(titles) :]:
        panel.remove()
    handles = {
        label: h
        for panel in panels[: len(titles)]
        for h, label in zip(*panel.get_legend_handles_labels())
    }
    options = {"loc": "outside lower center", "ncols": min(len(handles), 4), "handlelength": 3.5}
    figure.legend(handles=list(handles.values()), **options)
    _caption(figure, *spec["caption"])
    return figure


def write_compared(
    run_folders: Sequence[str | Path], by: str, out: Path, name: str, kinds=("png", "pdf")
) -> list[Path]:
    """write_figure of compare_rows."""
    rows, told = compare_rows(run_folders, by), read_config(Path(run_folders[0]))["env_id"]
    told += ": mean over seeds, band from worst to best seed; gradients and |f| of the critics"
    return write_figure(out, name, "compared", rows, kinds, caption=[told])


def compare_table(run_folders: Sequence[str | Path], by: str) -> list[list[str]]:
    """Header and a row per group of `compared`: n, then mean +- std (ddof 1) over seeds of the last values, of all runs
    at the last step that all have reached."""
    return _compare_table(compared(run_folders, by))[0]


def _compare_table(groups: dict[str, list[Loaded]]) -> tuple[list[list[str]], list[str]]:
    """`compare_table`, and the lines below it: what was cut."""
    columns = {"success": ("eval/success", "{:.2f}"), "return": ("eval/episodic_return", "{:.1f}")}
    columns |= {title: (title, text) for title, (*_, text) in COMPARED.items()}
    every = all_runs(groups)
    cuts = {title: common_end(every, re.escape(key)) for title, (key, _) in columns.items()}
    rows = [["", "n", *columns]]
    for name, runs in groups.items():
        rows.append([name, _count(runs)])
        for title, (key, text) in columns.items():
            values = [run.last(re.escape(key), until=cuts[title].step) for run in runs]
            rows[-1].append(mean_and_deviation(values, len(runs), text))
    told = []
    for title, cut in cuts.items():
        told += cut.told(title)
    return rows, told
