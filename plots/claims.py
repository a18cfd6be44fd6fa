"""One variant against another, paired by seed: differences or ratios with bootstrap intervals, the
probability of a larger value, signs and exact tests, as a table of all pairs and a picture."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from plots import axes, statistics, style
from plots.panels import Panel
from plots.reading import Loaded
from plots.recording import Kind, distinct, rows_where, write_csv, write_figure
from plots.seeds import points_until_end
from plots.study import Study
from plots.tables import number_text
from plots.variants import BLACK, all_runs
from runlog import disk

RATIO = "ratio"
DIFFERENCE = "difference"
FRACTION = "share"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Quantity:
    """What two variants are compared by: the last value of a panel, for each seed."""

    panel: Panel
    effect: str = DIFFERENCE  # over seeds: median difference, median ratio, or mean difference
    test: str = "sign"  # or "permutation": of the mean difference, for values on one scale
    # what a diverged run counts as in p_larger_diverged_worst; NaN: as its last value
    worst: float = np.nan
    threshold: float = np.nan  # if given, compare whether the absolute value exceeds it

    @property
    def title(self) -> str:
        return self.panel.title


# ---- last values ---------------------------------------------------------------------------------


def last_values(
    study: Study, quantities: Sequence[Quantity], until: float = np.inf
) -> dict[tuple[str, str, str], dict[int, float]]:
    """(quantity, label, environment) -> seed -> last value up to a step (of a diverged run the last
    before it diverged), or 0 or 1 for "diverged". Only quantities that a variant has logged."""
    found = {}
    for (label, env), runs in study.cells.items():
        found[DIVERGED, label, env] = {run.seed: float(has_diverged_by(run, until)) for run in runs}
        for quantity in quantities:
            values = {}
            for run in runs:
                points = points_until_end(run, quantity.panel, env)
                points = points[points[:, 0] <= until]
                if len(points):
                    values[run.seed] = value_of(quantity, float(points[-1, 1]))
            if values:
                found[quantity.title, label, env] = values
    return found


def has_diverged_by(run: Loaded, step: float) -> bool:
    """Whether a run has diverged by a step. Older runs do not record at which step they diverged:
    for them it is their last one."""
    return run.has_diverged and run.meta.get("step", run.last_step) <= step


def value_of(quantity: Quantity, value: float) -> float:
    if np.isnan(quantity.threshold):
        return value
    return 1.0 if abs(value) > quantity.threshold else 0.0


def write_last(study: Study, quantities: Sequence[Quantity], out: Path, name: str) -> Path:
    """A row for each run: its last values, and the step at which it diverged."""
    values = last_values(study, quantities)
    rows = []
    for (label, env), runs in study.cells.items():
        for run in runs:
            row = {"environment": env, "variant": label, "seed": run.seed, "status": run.status}
            row["diverged_at"] = diverged_at(run)
            for quantity in quantities:
                by_seed = values.get((quantity.title, label, env), {})
                row[quantity.title] = by_seed.get(run.seed, "")
            rows.append(row)
    return write_csv(out / f"{name}.csv", rows)


def diverged_at(run: Loaded) -> int | str:
    """The step at which a run diverged; "" if it did not, or is too old to record it."""
    return run.meta.get("step", "") if run.has_diverged else ""


# ---- each variant --------------------------------------------------------------------------------


def write_summary(study: Study, quantities: Sequence[Quantity], out: Path, name: str) -> list[Path]:
    """name.csv, at each fifth of training, and name.md, at its end: for every quantity and variant
    n, the number diverged, median with bootstrap interval, IQM, smallest and largest value. Without
    any value, only print a line."""
    rows = []
    for step in fifths(study):
        rows += summary_rows(study, quantities, step)
    if not rows:
        print(f"{name}: no value in these runs, not written")
        return []
    last = of_last_step(rows)
    return [write_csv(out / f"{name}.csv", rows), write_markdown(out / f"{name}.md", last)]


def summary_rows(study: Study, quantities: Sequence[Quantity], step: float) -> list[dict]:
    values = last_values(study, quantities, step)
    rows = []
    for env in study.environments:
        for quantity in quantities:
            for label in study.labels:
                by_seed = values.get((quantity.title, label, env))
                if by_seed is None:
                    continue
                row = {"environment": env, "step": step, "quantity": quantity.title}
                row |= {"variant": label, "n": len(by_seed)}
                row["diverged"] = int(sum(values[DIVERGED, label, env].values()))
                rows.append(row | summary_of(np.array(list(by_seed.values()))))
    return rows


def summary_of(values: np.ndarray) -> dict[str, float]:
    low, high = statistics.stratified_bootstrap([values], statistics.median_of_runs)
    return {
        "median": float(np.median(values)),
        "low": float(low),
        "high": float(high),
        "iqm": float(statistics.interquartile_mean([values])),
        "smallest": float(values.min()),
        "largest": float(values.max()),
    }


# ---- one against another -------------------------------------------------------------------------


def write_claims(
    study: Study,
    quantities: Sequence[Quantity],
    out: Path,
    name: str,
    title: str,
    reference: str = "",
) -> list[Path]:
    """name.csv, name.md and name.png: every variant against every one before it, in every quantity
    that both have; with `reference` against this one only."""
    rows = []
    for step in fifths(study):
        all_rows = claim_rows(study, quantities, step)
        rows += rows_where(all_rows, second=reference) if reference else all_rows
    how = "paired by seed; 95 % bootstrap; beside: seeds above : below, exact two-sided p"
    paths = write_figure(
        out,
        name,
        CLAIMS,
        rows,
        ("png",),
        lines=[*(quantity.title for quantity in quantities), DIVERGED],
        caption=[title, study.counts, f"probability of the larger value, {how}"],
    )
    if rows:
        shown = [shown_claim(row) for row in of_last_step(rows)]
        paths.append(write_markdown(out / f"{name}.md", shown))
    return paths


def fifths(study: Study) -> list[float]:
    """The steps at a fifth, two fifths, ... of the longest run, at whose end all that diverged have
    diverged."""
    ends = [0.0]
    for run in all_runs(study.cells):
        ends += [run.last_step, diverged_at(run) or 0.0]
    end = max(ends)
    return np.unique(np.linspace(end / 5, end, 5)).tolist()


def of_last_step(rows: Sequence[dict]) -> list[dict]:
    return rows_where(rows, step=max(row["step"] for row in rows))


def claim_rows(study: Study, quantities: Sequence[Quantity], step: float) -> list[dict]:
    """A row for each environment, pair of variants and quantity: first against second, at a
    step."""
    values = last_values(study, quantities, step)
    diverged = Quantity(Panel(DIVERGED, "", ""), FRACTION)
    rows = []
    for env in study.environments:
        for second, first in itertools.combinations(study.labels, 2):
            for quantity in (*quantities, diverged):
                ours = values.get((quantity.title, first, env))
                theirs = values.get((quantity.title, second, env))
                if ours is None or theirs is None:
                    continue
                seeds = sorted({*ours} & {*theirs})
                if len(seeds) < 2:
                    continue
                x = np.array([ours[seed] for seed in seeds])
                y = np.array([theirs[seed] for seed in seeds])
                has_diverged = []
                for label in (first, second):
                    diverged_seeds = values[DIVERGED, label, env]
                    has_diverged.append(np.array([diverged_seeds[seed] > 0 for seed in seeds]))
                row = {"environment": env, "step": step, "quantity": quantity.title}
                row |= {"first": first, "second": second, "n": len(seeds)}
                rows.append(row | compared(x, y, quantity, has_diverged))
    return rows


def compared(
    ours: np.ndarray, theirs: np.ndarray, quantity: Quantity, has_diverged: Sequence[np.ndarray]
) -> dict[str, object]:
    """Compare values (seeds,) of two variants. has_diverged: which seeds diverged, for each."""
    value, low, high = effect_of(ours, theirs, quantity.effect)
    paired, paired_low, paired_high = statistics.improvement_interval([ours], [theirs], paired=True)
    free, free_low, free_high = statistics.improvement_interval([ours], [theirs])
    above, below, p = statistics.sign_test(ours - theirs)
    if quantity.test == "permutation" and len(ours) <= 16:
        test = "permutation"
        p = statistics.sign_flip_test(ours - theirs)
    else:
        test = "sign"
    worst = paired
    if not np.isnan(quantity.worst):
        ends = [
            np.where(has_diverged[0], quantity.worst, ours),
            np.where(has_diverged[1], quantity.worst, theirs),
        ]
        worst = statistics.probability_of_improvement([ends[0]], [ends[1]], paired=True)
    return {
        "effect": quantity.effect,
        "value": value,
        "low": low,
        "high": high,
        "p_larger": paired,
        "p_larger_low": paired_low,
        "p_larger_high": paired_high,
        "p_larger_diverged_worst": worst,
        "unpaired": free,
        "unpaired_low": free_low,
        "unpaired_high": free_high,
        "above": above,
        "below": below,
        "test": test,
        "p_value": p,
    }


def shown_claim(row: dict) -> dict[str, str]:
    """The cells of a row in the Markdown table."""
    ends = f"[{cell(row['low'])}, {cell(row['high'])}]"
    chances = f"[{cell(row['p_larger_low'])}, {cell(row['p_larger_high'])}]"
    return {
        "first": row["first"],
        "against": row["second"],
        "quantity": row["quantity"],
        "n": row["n"],
        "effect": f"{row['effect']} {cell(row['value'])} {ends}",
        "P(larger), paired": f"{cell(row['p_larger'])} {chances}",
        "diverged worst": row["p_larger_diverged_worst"],
        "above : below": f"{row['above']} : {row['below']}",
        "p": row["p_value"],
        "test": row["test"],
    }


def effect_of(ours: np.ndarray, theirs: np.ndarray, effect: str) -> tuple[float, float, float]:
    """Median over seeds of the difference or of the ratio (of values above 0), or mean difference
    of fractions, with the ends of its bootstrap interval, for which pairs are resampled."""
    if effect == RATIO:
        differences = np.log(ours) - np.log(theirs)
    else:
        differences = ours - theirs
    statistic = statistics.mean_of_means if effect == FRACTION else statistics.median_of_runs
    low, high = statistics.stratified_bootstrap([differences], statistic)
    found = [float(statistic([differences])), float(low), float(high)]
    if effect == RATIO:
        found = [float(np.exp(end)) for end in found]
    return tuple(found)


# ---- Markdown ------------------------------------------------------------------------------------


def write_markdown(path: Path, rows: Sequence[dict]) -> Path:
    """Rows with the same columns as a table; columns with one value throughout are left out."""
    kept = [key for key in rows[0] if key == "n" or len({row[key] for row in rows}) > 1]
    lines = [f"| {' | '.join(kept)} |", "|" + " --- |" * len(kept)]
    for row in rows:
        cells = [cell(row[key]) for key in kept]
        lines.append(f"| {' | '.join(cells)} |")
    with disk.writing(path):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def cell(value: object) -> str:
    """A value as tables show it, numbers as number_text; | escaped."""
    text = number_text(value) if isinstance(value, float) else str(value)
    return text.replace("|", r"\|")


# ---- drawing -------------------------------------------------------------------------------------


def draw(rows: list[dict], spec: dict) -> Figure:
    """A panel for each pair of variants, at the last step of the rows: quantities from top to
    bottom, the probability from left to right."""
    rows = of_last_step(rows)
    known = {*distinct(rows, "quantity")}
    titles = [title for title in spec["lines"] if title in known]
    pairs = list(dict.fromkeys((row["first"], row["second"]) for row in rows))
    number = min(5, len(pairs))
    size = style.size_of_columns(number, 2.9, 1.4), 0.24 * len(titles) + 1.0
    figure, panels = style.grid_of_panels(len(pairs), number, size, 1.1)
    for index, (panel, (first, second)) in enumerate(zip(panels, pairs)):
        for row in rows_where(rows, first=first, second=second):
            value, low, high = (
                float(row[key]) for key in ("p_larger", "p_larger_low", "p_larger_high")
            )
            height = titles.index(row["quantity"])
            bar = np.nan_to_num([[value - low], [high - value]])
            look = {"color": BLACK, "marker": "o", "markersize": 4, "capsize": 2}
            panel.errorbar(value, height, xerr=bar, linewidth=1, **look)
            text = f"{row['above']}:{row['below']}  {float(row['p_value']):.2g}"
            panel.text(1.08, height, text, va="center", fontsize=6)
        panel.axvline(0.5, color=style.FAINT, linewidth=0.8, linestyle="--")
        panel.set_xlim(-0.05, 1.75)
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.set_ylim(len(titles) - 0.5, -0.5)
        names = titles if index % number == 0 else [""] * len(titles)
        panel.set_yticks(range(len(titles)), names, fontsize=7)
        axes.set_title(panel, f"{first}\n> {second}", 8, loc="left")
    style.caption(figure, *spec["caption"])
    return figure


CLAIMS = Kind("claims", draw)
