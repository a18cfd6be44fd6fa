"""Compare the values of one setting, for each activation: a figure and a table."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import runlog
from plots import axes, style
from plots.aggregation import (
    aligned,
    combined,
    common_end,
    count_text,
    cut_notes,
    mean_and_deviation,
)
from plots.reading import Loaded, Places, find_runs, read_config
from plots.recording import Kind, distinct, figure_place, rows_where, write_figure
from plots.tables import print_table
from plots.variants import all_runs, load, styles_of


@dataclass(frozen=True)
class Quantity:
    """What is compared, over the critics' layers: the mean or the largest value over the matching
    keys."""

    title: str  # of its panel
    key: str
    text: str  # number format in the table
    column: str = ""  # heading in the table; "": the title
    reduce: str = "mean"
    scale: str = "linear"

    @property
    def heading(self) -> str:
        return self.column or self.title


QUANTITIES = (
    Quantity("success rate", "eval/success", "{:.2f}", column="success"),
    Quantity("return", "eval/episodic_return", "{:.1f}"),
    Quantity("overestimation", "overestimation/mean", "{:.1f}"),
    Quantity(
        "max |f(x)|",
        r"network/qf\d?/fc\d+/(branch\d+_)?f_max",
        "{:.2f}",
        reduce="max",
        scale="log",
    ),
    Quantity(
        "coefficient gradient",
        r"network/qf\d?/coefficient_gradient_norm",
        "{:.3g}",
        scale="log",
    ),
    Quantity("critic gradient", r"network/qf\d?/gradient_norm", "{:.3g}", scale="log"),
)


def compare(runs: Places, by: str, out: Path) -> list[Path]:
    """Print the table of these runs, and draw the figure."""
    place = figure_place(out)
    folders = find_runs(runs, "")
    print_compare_table(folders, by)
    return write_compared(folders, by, *place)


def check_setting(folders: Sequence[str | Path], by: str) -> None:
    """Raises UserError unless every run has the setting."""
    for folder in folders:
        if by not in read_config(Path(folder)):
            fault = "is not a setting of these runs; config.json lists the settings"
            raise runlog.UserError(f"--by {by}: {fault}")


def compared(run_folders: Sequence[str | Path], by: str) -> dict[str, list[Loaded]]:
    """ "activation, by value" -> its runs, which may differ in the setting `by` too. Each run's
    scalars gain the titles of QUANTITIES. Raises UserError: no such setting."""
    check_setting(run_folders, by)
    groups = defaultdict(list)
    for name, runs in load(run_folders, varied=(by,)).items():
        for run in runs:
            groups[f"{name}, {by} {run.config[by]}"].append(run)
            add_quantities(run)
    return {name: groups[name] for name in sorted(groups)}


def add_quantities(run: Loaded) -> None:
    """Adds QUANTITIES to a run's scalars, by their titles."""
    for quantity in QUANTITIES:
        points = combined(run, quantity.key, quantity.reduce)
        if len(points):
            run.scalars[quantity.title] = np.column_stack([points, np.zeros(len(points))])


def write_compared(
    run_folders: Sequence[str | Path],
    by: str,
    out: Path,
    name: str,
    endings: Sequence[str] = ("png", "pdf"),
) -> list[Path]:
    """Write the figure of compare_rows."""
    rows = compare_rows(run_folders, by)
    env = read_config(Path(run_folders[0]))["env_id"]
    title = f"{env}: {by.replace('_', ' ')}"
    critics = "gradients and |f| of the critics"
    return write_figure(out, name, COMPARED, rows, endings, caption=[title, critics])


def compare_rows(run_folders: Sequence[str | Path], by: str) -> list[dict]:
    """Points of `draw`: QUANTITIES of every seed that has some; NaN where the seed has no row but
    another of its group has one."""
    groups = compared(run_folders, by)
    rows = []
    for quantity in QUANTITIES:
        for name, runs in groups.items():
            with_values = [run for run in runs if len(run.series(quantity.title))]
            if not with_values:
                continue
            steps, values = aligned(with_values, quantity.title)
            for run, points in zip(with_values, values):
                row = {
                    "panel": quantity.title,
                    "group": name,
                    "activation": run.config["activation"],
                    "setting": str(run.config[by]),
                    "seed": run.seed,
                }
                for step, value in zip(steps.tolist(), points.tolist()):
                    rows.append(row | {"step": step, "value": value})
    return rows


def draw(rows: list[dict], spec: dict) -> Figure:
    """A panel per quantity; each value of the setting has a shade of the activation's colour and a
    line style."""
    settings = sorted(distinct(rows, "setting"))
    activation_of = {row["group"]: row["activation"] for row in rows}
    setting_of = {row["group"]: row["setting"] for row in rows}
    looks = styles_of(activation_of)
    for group, look in looks.items():
        place = settings.index(setting_of[group])
        look["linestyle"] = ("-", "--", ":", "-.")[place % 4]
        look["marker"] = "osD^v<>Pp"[place % 9]
    titles = distinct(rows, "panel")
    figure, panels = style.grid_of_panels(len(titles), 2, (5.0, 2.8), 1.0)
    quantities = {quantity.title: quantity for quantity in QUANTITIES}
    counts = []
    for panel, title in zip(panels, titles):
        members = rows_where(rows, panel=title)
        curves = {}
        for name in distinct(members, "group"):
            curves[name] = seeds_of(rows_where(members, group=name))
        counts += [len(values) for _, values in curves.values()]
        style.seeds(panel, curves, looks, title, "")
        values = np.array([row["value"] for row in members])
        style.scale(panel, quantities[title].scale, values)
        axes.within(panel, axes.possible_range(quantities[title].key))
    style.legend(figure, style.handles_of(panels))
    style.caption(figure, *spec["caption"], style.band_text(counts, "mean", "worst to best seed"))
    return figure


def seeds_of(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and values (seeds, steps), of a group's rows."""
    points = defaultdict(list)
    for row in rows:
        points[row["seed"]].append((row["step"], row["value"]))
    seeds = np.array(list(points.values()), dtype=float)
    return seeds[0, :, 0], seeds[:, :, 1]


COMPARED = Kind("compared", draw)


def compare_table(groups: dict[str, list[Loaded]]) -> tuple[list[list[str]], list[str]]:
    """Header and a row per group of `compared`: n, then mean +- std (ddof 1) over seeds of the last
    values, at the last step that all runs have reached; and the lines to print below, about what
    was cut."""
    runs = all_runs(groups)
    cuts = {}
    for quantity in QUANTITIES:
        cuts[quantity.heading] = common_end(runs, re.escape(quantity.title))
    rows = [["", "n", *cuts]]
    for name, members in groups.items():
        row = [name, count_text(members)]
        for quantity in QUANTITIES:
            until = cuts[quantity.heading].step
            values = [run.last(re.escape(quantity.title), until=until) for run in members]
            row.append(mean_and_deviation(values, len(members), quantity.text))
        rows.append(row)
    return rows, cut_notes(cuts)


def print_compare_table(run_folders: Sequence[str | Path], by: str) -> None:
    """Print compare_table, aligned, and what was cut."""
    rows, cuts = compare_table(compared(run_folders, by))
    print_table(rows)
    print(
        "last values; mean +- standard deviation over n seeds; "
        "of the critics: largest or mean of the two"
    )
    for line in cuts:
        print(line)
