"""Contributions of live neurons, dead neurons and the last hidden layer's bias to Q (HR Fig. 4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plots import style
from plots.aggregation import combined, grid_of, on_grid
from plots.reading import Loaded, Places, read_scalars
from plots.recording import Kind, columns, rows_where, write_figure
from plots.study import Study, read_study
from plots.variants import BLACK, DQN, GREEN, GREY, RED

CONTRIBUTIONS = {
    "live": {"color": GREEN, "linestyle": "-", "marker": "."},
    "dead": {"color": RED, "linestyle": "--", "marker": "."},
    "bias": {"color": GREY, "linestyle": ":", "marker": "."},
}
KEYS = "q_split/(live|dead|bias)"


@style.with_style
def q_split_figure(folder: Path) -> Figure | None:
    """The contributions to one run's Q over training. None without data (--analyse, --evaluate)."""
    scalars = read_scalars(folder, KEYS)
    if "q_split/dead" not in scalars:
        return None
    figure = Figure((5.5, 3.4), layout="constrained")
    panel = figure.subplots()
    total = 0.0
    for part, look in CONTRIBUTIONS.items():
        steps, values, _ = scalars[f"q_split/{part}"].T
        total = total + values
        panel.plot(steps, values, **look, label=part)
    panel.plot(steps, total, color=BLACK, linewidth=1, label="Q")
    style.steps_axis(panel)
    panel.set_ylabel("mean over observations and actions")
    panel.legend()
    title = "What live and dead neurons of the last hidden layer contribute to Q"
    style.run_title(figure, folder, title)
    return figure


def hr4(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Fig. 4: what live neurons, dead neurons and the bias contribute to DQN's Q, over training
    (runs with --analyse)."""
    study = read_study(runs, DQN, KEYS, where)
    if variants:
        study = study.only(variants)
    title = "HR Fig. 4: contributions to Q, DQN's last hidden layer"
    caption = [title, study.counts, "mean over observations and actions"]
    return write_figure(out, "hr4", PARTS, contribution_rows(study), caption=caption)


def contribution_rows(study: Study) -> list[dict]:
    """Mean and standard deviation over seeds of each contribution. Prints which runs have none."""
    rows = []
    for (label, env), runs in study.cells.items():
        for run in runs:
            if not run.scalars:
                reason = "trained without --analyse"
                if run.has_diverged:
                    reason = "diverged before it was analysed"
                print(f"missing: {label} on {env} s{run.seed} ({reason})")
        analysed = [run for run in runs if run.scalars]
        if not analysed:
            continue
        grid = grid_of(analysed, KEYS)
        for part in CONTRIBUTIONS:
            row = {"environment": env, "variant": label, "part": part, "n": len(analysed)}
            rows += [row | point for point in contribution_points(analysed, part, grid)]
    return rows


def contribution_points(
    runs: Sequence[Loaded], part: str, grid: np.ndarray
) -> list[dict[str, float]]:
    """Step, mean and standard deviation (ddof 1; NaN for one run) of one contribution to Q."""
    values = [on_grid(combined(run, f"q_split/{part}"), grid) for run in runs]
    means = np.mean(values, axis=0)
    deviations = np.full(len(grid), np.nan)
    if len(runs) > 1:
        deviations = np.std(values, axis=0, ddof=1)
    points = []
    for step, mean, std in zip(grid.tolist(), means.tolist(), deviations.tolist()):
        points.append({"step": step, "mean": mean, "std": std})
    return points


def draw(rows: list[dict], spec: dict) -> Figure:
    """Contributions to Q, a panel per game and variant."""
    cells = list(dict.fromkeys((row["environment"], row["variant"]) for row in rows))
    number = min(4, len(cells))
    figure, panels = style.grid_of_panels(len(cells), number, (3.2, 2.6), 1.1)
    counts = [int(row["n"]) for row in rows]
    has_count = max(counts) == 1 and any("n = 1 seed" in line for line in spec["caption"])
    for index, (panel, (env, label)) in enumerate(zip(panels, cells)):
        members = rows_where(rows, environment=env, variant=label)
        for part, look in CONTRIBUTIONS.items():
            points = rows_where(members, part=part)
            steps, mean, std = columns(points, "step", "mean", "std")
            style.curve(panel, part, look, steps, mean, mean - std, mean + std)
        title = f"{env}, {label}"
        style.title(panel, title if has_count else f"{title} (n = {members[0]['n']})")
        panel.set_ylabel("mean contribution to Q" if index % number == 0 else "")
        style.steps_axis(panel)
        panel.set_xlim(0, None)
    style.legend(figure, panels[0].get_legend_handles_labels()[0])
    note = [] if has_count else ["one seed"]
    if max(counts) > 1:
        note = ["mean over seeds, band: standard deviation"]
    style.caption(figure, *spec["caption"], *note)
    return figure


PARTS = Kind("parts", draw)
