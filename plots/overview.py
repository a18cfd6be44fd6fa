"""overview."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

import runlog
from plots.activation_shapes import is_learned
from plots.aggregation import on_grid
from plots.reading import read_rows
from plots.recording import write_figure
from plots.style import FIRST, _caption, _legend, _limit, _scale, _tell
from plots.tables import SHOWN, groups_of, shown_curve
from plots.variants import looks, style

MOST = 8  # environments on the page of overview


def overview(folder: Path, out: Path) -> list[Path]:
    """One page of any folder of runs, ended or under way: a row per script and environment with score, overestimation,
    dead share and srank of every seed, and the learned activations below. Prints what does not fit on the page."""
    groups, rows, learned = groups_of(folder), [], {}
    kept = sorted(sorted(groups, key=lambda name: -sum(map(len, groups[name].values())))[:MOST])
    for name in kept:
        keys = {key for runs in groups[name].values() for run in runs for key in run.scalars}
        logged = [title for title in list(SHOWN)[:5] if SHOWN[title][0] in keys] or ["return"]
        score = "success" if "success" in logged else logged[0]
        end = max(
            (
                rows[-1, 0]
                for group in groups[name].values()
                for run in group
                for rows in run.scalars.values()
            ),
            default=0,
        )
        for label, runs in groups[name].items():
            if is_learned(runs[0]):
                learned.setdefault(label, runs[0])
            for title in (score, "overestimation", "dead share", "srank"):
                own = {
                    "row": ", ".join(name),
                    "column": "score" if title == score else title,
                    "unit": title,
                }
                for run in runs:
                    own |= {"variant": label, "seed": run.config["seed"]}
                    points = shown_curve(run, SHOWN[title][0]).tolist()
                    if points and run.config["status"] == "diverged" and points[-1][0] < end:
                        points.append([float(end), points[-1][1]])
                    rows += [own | {"step": step, "value": value} for step, value in points]
    if len(learned) > 4:
        print(f"not on the page: the activations of {', '.join(list(learned)[4:])}")
    for label, run in list(learned.items())[:4]:
        for (layer, network), parts in read_rows(run.folder, "curves.jsonl", "activation").items():
            own = {
                "row": "learned",
                "column": f"{label} ({run.config['env_id'].rpartition('/')[2]}, s{run.config['seed']})",
            }
            own |= {"variant": label, "seed": run.config["seed"]}
            for part, lines in parts.items():
                for when, line in (("before", lines[0]), ("after", lines[-1])):
                    points = np.array([line["x"], line["y"]], dtype=float)
                    points = points[:, np.abs(points[0]) <= 5][:, ::4].T.tolist()
                    name = {"unit": f"{when} {network}/{layer}/{part}"}
                    rows += [own | name | {"step": x, "value": y} for x, y in points]
    every = [run for labels in groups.values() for runs in labels.values() for run in runs]
    under_way = sum(run.config["status"] not in runlog.ENDED for run in every)
    diverged = sum(run.config["status"] == "diverged" for run in every)
    told = f"{len(every)} runs ({under_way} not ended, {diverged} diverged: last value carried forward)"
    early = sum(run.has_diverged and not run.scalars for run in every)
    if early:
        told += f"; {early} diverged before the first value: in no mean"
    told += "; mean over seeds, up to the step that all seeds of a setting have reached; thin lines: seeds"
    left_out = [", ".join(name) for name in groups if name not in kept]
    if left_out:
        print(*(f"not on the page: {name}" for name in left_out), sep="\n")
        told += f"; {len(left_out)} further environments are not on this page"
    return write_figure(
        out, "overview", "overview", rows, lines=[", ".join(name) for name in kept], caption=[told]
    )


def draw_overview(rows: list[dict], spec: dict) -> Figure:
    """Rows of `overview`."""
    titles = ("score", "overestimation", "dead share", "srank")
    cells, learned = defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["row"] == "learned":
            learned[row["column"], row["variant"]][row["unit"]].append((row["step"], row["value"]))
        else:
            cells[row["row"], row["column"], row["unit"]][row["variant"], row["seed"]].append(
                (row["step"], row["value"])
            )
    heights = [2.0 * len(spec["lines"]), *[2.4] * bool(learned)]
    figure = Figure((11, sum(heights) + 0.9), layout="constrained")
    own = looks(list(dict.fromkeys(variant for found in cells.values() for variant, _ in found)))
    top, *bottom = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    grid, handles = top.subplots(len(spec["lines"]), len(titles), squeeze=False), {}
    for line, name in zip(grid, spec["lines"]):
        variants = list(
            dict.fromkeys(v for (row, *_), found in cells.items() if row == name for v, _ in found)
        )
        for panel, title in zip(line, titles):
            unit, found = next(
                ((u, x) for (row, c, u), x in cells.items() if (row, c) == (name, title)), ("", {})
            )
            panel.set_title(name if title == "score" else title, fontsize=8)
            panel.set_ylabel(unit if title == "score" else "", fontsize=8)
            for variant in variants:
                series = [np.array(points) for (v, _), points in found.items() if v == variant]
                if not series:
                    continue
                for points in series:
                    panel.plot(*points.T, color=own[variant]["color"], linewidth=0.5, alpha=0.4)
                steps = np.unique(np.concatenate([points[:, 0] for points in series]))
                steps = steps[
                    steps <= min(points[-1, 0] for points in series)
                ]  # not past the seed furthest behind
                mean, every = (
                    np.mean([on_grid(points, steps) for points in series], axis=0),
                    max(1, len(steps) // 5),
                )
                options = {
                    **own[variant],
                    "linewidth": 1.5,
                    "markersize": 4,
                    "markevery": every,
                    "label": variant,
                }
                (handles[variant],) = panel.plot(steps, mean, **options)
            if found:
                _scale(
                    panel,
                    "symlog",
                    np.concatenate([np.array(points)[:, 1] for points in found.values()]) / 1e3,
                )
            else:
                _tell(panel, "not logged", color="0.4")
                panel.set(xticks=[], yticks=[])
                continue
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    for panel in grid[-1]:
        panel.set_xlabel("steps (environment steps, or updates)", fontsize=8)
    _legend(top, list(handles.values()), fontsize=8)
    for part in bottom:
        panels = part.subplots(1, 4)
        for panel, ((title, variant), found) in zip(panels, learned.items()):
            for unit, points in found.items():
                look = (
                    FIRST
                    if unit.startswith("before")
                    else {"color": style(variant.split(", ")[0])["color"]}
                )
                panel.plot(*np.array(points).T, **look, alpha=0.8)
            _limit(panel, np.concatenate([np.array(points)[:, 1] for points in found.values()]))
            panel.set_title(title, fontsize=7)
            panel.set_xlabel("pre-activation x")
        for panel in panels[len(learned) :]:
            panel.remove()
        part.suptitle(
            "learned activations, one curve per layer; dashed: before training", fontsize=8
        )
    _caption(figure, *spec["caption"])
    return figure
