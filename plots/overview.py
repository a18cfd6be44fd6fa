"""A one-page overview of any folder of runs, finished or in progress."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from plots import axes, style
from plots.activation_shapes import is_learned, learned_layers
from plots.aggregation import on_grid
from plots.layers import read_rows
from plots.reading import Loaded, Places
from plots.recording import Kind, columns, distinct, rows_where, write_figure
from plots.tables import SCORES, SHOWN, Groups, groups_of, shown_curve
from plots.variants import styles_of

MAX_LINES = 8  # most rows on the page: a script and environment each
MAX_LEARNED = 4  # most learned activations below them
SCORE = "score"
QUANTITIES = ("overestimation", "dead neurons", "srank")
LEARNED = "learned"  # value of the column `row` for these, which belong to no script
BEFORE = "before"
AFTER = "after"


def overview(folder: Places, out: Path) -> list[Path]:
    """One page for any folder of runs, finished or in progress: a row per script and environment
    with score, overestimation, dead-neuron fraction and srank of every seed, and the learned
    activations below. Prints what does not fit on the page."""
    groups = groups_of(folder)
    by_size = sorted(groups, key=lambda name: -sum(len(runs) for runs in groups[name].values()))
    kept = sorted(by_size[:MAX_LINES])
    rows = []
    learned = {}  # label: its first run
    activation_of = {}
    for name in kept:
        rows += line_rows(", ".join(name), groups[name])
        for label, runs in groups[name].items():
            activation_of[label] = runs[0].config["activation"]
            if is_learned(runs[0]):
                learned.setdefault(label, runs[0])
    labels = list(learned)
    if len(labels) > MAX_LEARNED:
        further = ", ".join(labels[MAX_LEARNED:])
        print(f"not on the page: the activations of {further}")
    for label in labels[:MAX_LEARNED]:
        rows += learned_rows(label, learned[label])
    left_out = [", ".join(name) for name in groups if name not in kept]
    for name in left_out:
        print(f"not on the page: {name}")
    return write_figure(
        out,
        "overview",
        OVERVIEW,
        rows,
        lines=[", ".join(name) for name in kept],
        caption=[caption_of(groups, len(left_out))],
        activation_of=activation_of,
    )


def caption_of(groups: Groups, num_left_out: int) -> str:
    runs = []
    for labels in groups.values():
        for members in labels.values():
            runs += members
    under_way = sum(not run.has_ended for run in runs)
    diverged = sum(run.has_diverged for run in runs)
    early = sum(run.has_diverged and not run.scalars for run in runs)
    text = f"{len(runs)} runs"
    if under_way:
        text += f", {under_way} not ended"
    if diverged:
        text += f", {diverged} diverged: last value carried forward"
    if early:
        text += f"; {early} diverged before the first value: in no mean"
    counts = []
    for labels in groups.values():
        counts += [len(members) for members in labels.values()]
    if max(counts) == 1:
        text += "; one seed of each setting"
    else:
        text += f"; mean over seeds ({style.seeds_text(counts)} of each setting), up to the step"
        text += " that all of them have reached; thin lines: seeds"
    if num_left_out:
        text += f"; {num_left_out} further environments are not on this page"
    return text


def line_rows(line: str, labels: dict[str, list[Loaded]]) -> list[dict]:
    """Points of a row of panels: one script and environment."""
    keys = set()
    end = 0.0
    for runs in labels.values():
        for run in runs:
            keys |= {*run.scalars}
            end = max(end, run.last_step)
    logged = [title for title in SCORES if SHOWN[title][0] in keys] or ["return"]
    score = "success" if "success" in logged else logged[0]
    rows = []
    for label, runs in labels.items():
        for title in (score, *QUANTITIES):
            for run in runs:
                row = {
                    "row": line,
                    "column": SCORE if title == score else title,
                    "unit": title,
                    "variant": label,
                    "seed": run.seed,
                    "when": "",
                }
                for step, value in carried_curve(run, title, end):
                    rows.append(row | {"step": step, "value": value})
    return rows


def carried_curve(run: Loaded, title: str, end: float) -> list[list[float]]:
    """Points of a run; the last value of a diverged run is carried forward to the end."""
    points = shown_curve(run, SHOWN[title][0]).tolist()
    if points and run.has_diverged and points[-1][0] < end:
        points.append([float(end), points[-1][1]])
    return points


def learned_rows(label: str, run: Loaded) -> list[dict]:
    """Points of a run's learned activation functions before and after training, by layer."""
    env = run.config["env_id"].rpartition("/")[2]
    rows = []
    found = read_rows(run.folder, "curves.jsonl", "activation")
    learned = learned_layers(run.folder, found) or {*found}
    for (layer, network), parts in found.items():
        if (layer, network) not in learned:
            continue
        for part, lines in parts.items():
            for when, line in ((BEFORE, lines[0]), (AFTER, lines[-1])):
                row = {
                    "row": LEARNED,
                    "column": f"{label} ({env}, s{run.seed})",
                    "unit": f"{network}/{layer}/{part}",
                    "variant": label,
                    "seed": run.seed,
                    "when": when,
                }
                x, y = np.array([line["x"], line["y"]], dtype=float)
                inside = np.abs(x) <= 5
                points = zip(x[inside][::4].tolist(), y[inside][::4].tolist())
                rows += [row | {"step": step, "value": value} for step, value in points]
    return rows


# ---- drawing -------------------------------------------------------------------------------------


def draw(rows: list[dict], spec: dict) -> Figure:
    lines = spec["lines"]
    learned = rows_where(rows, row=LEARNED)
    activation_of = spec["activation_of"]
    heights = [2.0 * len(lines)]
    if learned:
        heights.append(2.4)
    figure = Figure((11, sum(heights) + 0.9), layout="constrained")
    subfigures = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_lines(subfigures[0], [row for row in rows if row["row"] != LEARNED], lines, activation_of)
    if learned:
        draw_learned(subfigures[1], learned, activation_of)
    style.caption(figure, *spec["caption"])
    return figure


def draw_lines(
    subfigure: SubFigure, rows: list[dict], lines: Sequence[str], activation_of: dict[str, str]
) -> None:
    """A row of panels for each script and environment."""
    looks = styles_of({label: activation_of[label] for label in distinct(rows, "variant")})
    titles = (SCORE, *QUANTITIES)
    logged = {}  # line: its titles
    for line in lines:
        known = {*distinct(rows_where(rows, row=line), "column")}
        logged[line] = [title for title in titles if title in known]
    number = max(len(known) for known in logged.values())
    grid = subfigure.subplots(len(lines), number, squeeze=False)
    kept = []
    for panels, line in zip(grid, lines):
        members = rows_where(rows, row=line)
        for panel, title in zip(panels, logged[line]):
            draw_panel(panel, rows_where(members, column=title), line, title, looks)
            kept.append(panel)
        for panel in panels[len(logged[line]) :]:
            panel.remove()
    for panel in kept:
        is_last = panel.get_subplotspec().rowspan.stop == len(lines)
        label = "steps (environment steps, or updates)" if is_last else ""
        panel.set_xlabel(axes.wrapped(label, axes.column_width(panel) - 0.3, 8), fontsize=8)
    handles = {handle.get_label(): handle for handle in style.handles_of(kept)}
    style.legend(subfigure, [handles[label] for label in looks if label in handles], fontsize=8)


def draw_panel(
    panel: Axes, rows: list[dict], line: str, title: str, looks: dict[str, dict]
) -> None:
    """One quantity of a script and environment."""
    is_score = title == SCORE
    unit = rows[0]["unit"]
    style.title(panel, line if is_score else title, 8)
    panel.set_ylabel(unit if is_score else "", fontsize=8)
    for label in distinct(rows, "variant"):
        draw_seeds(panel, label, looks[label], rows_where(rows, variant=label))
    (values,) = columns(rows, "value")
    style.scale(panel, "symlog", values / 1e3)
    style.steps_axis(panel, "")
    panel.set_xlim(left=0)
    axes.within(panel, axes.possible_range(SHOWN[unit][0]))
    axes.large_numbers(panel)


def draw_seeds(panel: Axes, label: str, look: dict, rows: list[dict]) -> None:
    """Thin lines for the seeds, and their mean up to the last step that all have reached."""
    if not rows:
        return
    points = defaultdict(list)
    for row in rows:
        points[row["seed"]].append((row["step"], row["value"]))
    series = [np.array(seed) for seed in points.values()]
    for seed in series if len(series) > 1 else ():
        panel.plot(*seed.T, color=look["color"], linewidth=0.5, alpha=0.4)
    steps = np.unique(np.concatenate([seed[:, 0] for seed in series]))
    steps = steps[steps <= min(seed[-1, 0] for seed in series)]
    mean = np.mean([on_grid(seed, steps) for seed in series], axis=0)
    every = max(1, len(steps) // 5)
    look = {**look, "linewidth": 1.5, "markersize": 4, "markevery": every}
    panel.plot(steps, mean, **look, label=label)


def draw_learned(subfigure: SubFigure, rows: list[dict], activation_of: dict[str, str]) -> None:
    """The learned activations, one panel each."""
    titles = distinct(rows, "column")
    panels = subfigure.subplots(1, len(titles), squeeze=False)[0]
    looks = styles_of(activation_of)
    for panel, title in zip(panels, titles):
        members = rows_where(rows, column=title)
        color = looks[members[0]["variant"]]["color"]
        for unit in distinct(members, "unit"):
            for when, look in ((BEFORE, style.FIRST), (AFTER, {"color": color})):
                points = columns(rows_where(members, unit=unit, when=when), "step", "value")
                panel.plot(*points, **look, alpha=0.8)
        (values,) = columns(members, "value")
        style.limit(panel, values)
        style.title(panel, title, 7)
        panel.set_xlabel("pre-activation x")
    title = "learned activations, one curve per layer; dashed: before training"
    subfigure.suptitle(title, fontsize=8)


OVERVIEW = Kind("overview", draw)
