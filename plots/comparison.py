"""Compare any runs: a curve per variant in every environment, each variant against a baseline.

A variant is an activation with the settings in which its runs differ. The rows computed here are
drawn by comparison_figure.py, from their CSV files.
"""

import dataclasses
import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runlog
from plots import statistics
from plots.activation_shapes import is_learned
from plots.aggregation import common_end, finished_length, grid_of
from plots.comparison_figure import COMPARISON, MAX_SHAPES
from plots.metric import (
    BY_NAME,
    LOWER,
    SCORE,
    WINDOWS,
    Metric,
    metric_of,
    normalised,
    pattern_of,
    unknown,
)
from plots.overview import learned_rows
from plots.reading import Loaded, Places, find_runs, read_scalars, step_unit
from plots.recording import check_free, figure_place, record_figure, rows_where, write_csv
from plots.study import names_text
from plots.tables import (
    OTHER_STEP,
    Groups,
    any_of,
    at_step,
    groups_of,
    in_label_order,
    number_text,
    print_table,
)
from plots.variants import all_runs, flat

LINES_PER_PAGE = 6
FEW_SEEDS = 5  # with fewer, an interval is a rough guide
STATISTICS = {"iqm": "interquartile mean", "mean": "mean", "median": "median"}
HEADINGS = {"iqm": "IQM", "mean": "mean", "median": "median"}
FUNCTIONS = {
    "iqm": statistics.interquartile_mean,
    "mean": statistics.mean_of_means,
    "median": statistics.median_of_runs,
}
DIFFERENCE = ("difference", "difference_low", "difference_high")
PROBABILITY = ("probability", "probability_low", "probability_high")


@dataclass(frozen=True)
class Options:
    """What is compared, and how."""

    metrics: tuple[str, ...] = ("score",)
    baseline: str = ""  # a label or an activation; "": relu if there is one, else the first
    statistic: str = "iqm"  # of STATISTICS
    step: float | None = None  # where runs are compared; None: the last that all have reached
    shapes: bool = False  # also draw the learned activation functions


# ---- the values of one quantity and environment --------------------------------------------------


@dataclass
class Cell:
    """One quantity in one environment: for each variant, its seeds' values over training."""

    title: str  # the environment, and the script if there are several
    script: str
    environment: str
    metric_name: str  # as given to --metric
    metric: Metric  # for --metric score the environment's own score
    runs: dict[str, list[Loaded]]  # label: the runs that have a value, or have diverged
    step: float  # of the comparison
    notes: list[str]  # which run ends there, if others are longer; which runs have no value
    grid: np.ndarray  # (steps,), `step` among them
    # label: (steps, runs), NaN before a run's first row and after its end; a run that has diverged
    # carries its last value forward, and is NaN throughout if it has none
    values: dict[str, np.ndarray]

    def known(self, label: str) -> np.ndarray:
        """(steps, runs) of the runs that have a value at the step of the comparison."""
        values = self.values[label]
        return values[:, np.isfinite(self.at_end(label))]

    def at_end(self, label: str) -> np.ndarray:
        """(runs,) at the step of the comparison."""
        return self.values[label][np.searchsorted(self.grid, self.step)]

    def by_seed(self, label: str) -> dict[int, float]:
        """seed -> value at that step, of the runs that have one."""
        pairs = zip(self.runs[label], self.at_end(label).tolist())
        return {run.seed: value for run, value in pairs if np.isfinite(value)}

    def ranked(self, label: str) -> np.ndarray:
        """Values at that step, larger is better; a run that diverged before its first value ranks
        below all others, if one direction is better."""
        sign = -1.0 if self.metric.better == LOWER else 1.0
        ranks = []
        for run, value in zip(self.runs[label], self.at_end(label).tolist()):
            if np.isfinite(value):
                ranks.append(sign * value)
            elif run.has_diverged and self.metric.better:
                ranks.append(-np.inf)
        return np.array(ranks)

    def scaled(self) -> "Cell | None":
        """The cell with its values on a scale that environments share; None if there is none."""
        values = {}
        for label, raw in self.values.items():
            values[label] = normalised(raw, self.metric, self.environment)
            if values[label] is None:
                return None
        return dataclasses.replace(self, values=values)


def end_of(run: Loaded, points: np.ndarray) -> float:
    """The step up to which a run has values. points: (rows, 2) of step and value."""
    if run.has_diverged:
        return np.inf
    if run.status == "finished":
        return finished_length(run)
    return points[-1, 0] if len(points) else -np.inf


def make_cell(
    where: tuple[str, str],
    metric_name: str,
    metric: Metric,
    labels: dict[str, list[Loaded]],
    step: float | None,
) -> Cell:
    """The cell of the runs of one script and environment (`where`), compared at a step, or at the
    last that all have reached. Runs without any value are left out, with a note."""
    script, env = where
    kept = {}
    notes = []
    for label, members in labels.items():
        with_values = [run for run in members if len(metric.points(run))]
        without = [run for run in members if not len(metric.points(run))]
        diverged = [run for run in without if run.has_diverged]
        if with_values or diverged:
            kept[label] = with_values + diverged
        if diverged:
            text = f"{len(diverged)} of {len(members)} diverged before the first value"
            notes.append(f"{label}: {text}, counted as worse than any in the probability only")
        number = len(without) - len(diverged)
        if number:
            notes.append(f"{label}: {number} of {len(members)} runs have no value, left out")

    runs = all_runs(kept)
    step, shortest = compared_at(runs, metric, step)
    if shortest is not None:
        label = label_of(shortest, kept)
        text = f"compared at step {step:,.0f}, the last that all runs have"
        where = f"{label} seed {shortest.seed} ({shortest.status}) ends there"
        notes.insert(0, f"{text}: {where}")

    end = max(min(end_of(run, metric.points(run)), run.last_step) for run in runs)
    grid = grid_of(runs, metric.key)
    if metric.is_of_training_episodes:
        grid = np.linspace(0, end, WINDOWS + 1)[1:]
    grid = np.union1d(grid, [step])
    values = {}
    for label, members in kept.items():
        columns = []
        for run in members:
            column = metric.values(run, grid)
            column[grid > end_of(run, metric.points(run))] = np.nan
            columns.append(column)
        values[label] = np.stack(columns, -1)
        at_end = values[label][np.searchsorted(grid, step)]
        pairs = zip(members, np.isfinite(at_end))
        number = sum(not has_value and not run.has_diverged for run, has_value in pairs)
        if number:
            text = f"{number} of {len(members)} runs have no value at step {step:,.0f}"
            notes.append(f"{label}: {text}, left out of the comparison")
    return Cell(env, script, env, metric_name, metric, kept, step, notes, grid, values)


def label_of(run: Loaded, labels: dict[str, list[Loaded]]) -> str:
    for label, members in labels.items():
        if any(member is run for member in members):
            return label
    raise ValueError(f"{run.folder}: not among these runs")


def compared_at(
    runs: Sequence[Loaded], metric: Metric, step: float | None
) -> tuple[float, Loaded | None]:
    """The step of the comparison, and the run that ends there, if others are longer."""
    if step is not None:
        return step, None
    cut = common_end(runs, metric.key)
    if np.isinf(cut.step):  # all have diverged
        return max(run.last_step for run in runs), None
    return cut.step, cut.shortest


def make_cells(groups: Groups, options: Options, places: Places) -> list[Cell]:
    """A cell for each quantity and environment that has it. A named quantity that no run has logged
    is left out, with a printed line. Raises UserError: nothing else is left, or it is a key rather
    than a name."""
    has_several_scripts = len({script for script, _ in groups}) > 1
    cells = []
    without = []
    for name in options.metrics:
        found = []
        for (script, env), labels in groups.items():
            runs = all_runs(labels)
            metric = metric_of(name, env, runs)
            if metric is not None and any(len(metric.points(run)) for run in runs):
                cell = make_cell((script, env), name, metric, labels, options.step)
                if has_several_scripts:
                    cell.title = f"{env}, {script}"
                found.append(cell)
        if not found:
            without.append(name)
        cells += found
    if without and (not cells or any(name not in BY_NAME for name in without)):
        keys = set()
        for path in find_runs(places, ""):
            keys |= {*read_scalars(path)}
        raise unknown(without[-1], keys)
    for name in without:
        print(f"{name}: no run has logged it, not drawn")
    return cells


def find_baselines(groups: Groups, name: str) -> dict[str, str]:
    """script -> the label that --baseline means there: one of the labels, or the only label of an
    activation. "": relu if there is one, else the first activation; of its labels, the one with
    most variants beside it, then the one that shares its settings with most variants. Raises
    UserError: no script has it, or the activation has several labels."""
    first_runs = defaultdict(dict)  # script: label: run
    beside = defaultdict(Counter)  # script: label: other variants in its environments
    for (script, _), labels in groups.items():
        for label, runs in labels.items():
            beside[script][label] += len(labels) - 1
            first_runs[script].setdefault(label, runs[0])
    baselines = {}
    for script, runs in first_runs.items():
        wanted = name or "relu"
        found = [label for label in runs if runs[label].config["activation"] == wanted]
        if wanted in runs:
            found = [wanted]
        if not name:
            candidates = found or in_label_order(activations_of(runs))
            found = [most_comparable(candidates, runs, beside[script])]
        if len(found) > 1:
            fault = f"it could be {'; '.join(found)}"
            raise runlog.UserError(f"--baseline {name}: {fault}; name one of them")
        baselines[script] = found[0] if found else name
    if not any(label in first_runs[script] for script, label in baselines.items()):
        known = set()
        for runs in first_runs.values():
            known |= {*runs}
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise runlog.UserError(f"--baseline {name}: no such variant; there are {'; '.join(near)}")
    return baselines


def activations_of(first_runs: Mapping[str, Loaded]) -> dict[str, str]:
    return {label: run.config["activation"] for label, run in first_runs.items()}


def most_comparable(
    labels: Sequence[str], first_runs: Mapping[str, Loaded], beside: Mapping[str, int]
) -> str:
    """Of the labels with the activation of the first, the one that can be compared most often; of
    equals, the first whose settings most variants share. beside: label -> the number of other
    variants in its environments."""
    configs = {label: flat(run.config) for label, run in first_runs.items()}
    keys = set().union(*configs.values()) - {"env_id"}
    counts = Counter()
    settings = {}
    for label, config in configs.items():
        settings[label] = {(key, repr(config.get(key))) for key in keys}
        counts.update(settings[label])
    activation = first_runs[labels[0]].config["activation"]
    alike = [label for label in labels if first_runs[label].config["activation"] == activation]

    def rank(label: str) -> tuple[int, int]:
        shared = sum(counts[item] for item in settings[label])
        return beside[label], shared

    return max(alike, key=rank)


# ---- rows ----------------------------------------------------------------------------------------


@dataclass
class Line:
    """A row of panels: one quantity in one environment, or in all of them together."""

    title: str
    cells: list[Cell]  # of one --metric
    label: str  # of the y axis
    has_scale: bool = True  # False: a mean over the cells has no meaning

    @property
    def metric(self) -> Metric:
        return self.cells[0].metric

    @property
    def first_run(self) -> Loaded:
        return all_runs(self.cells[0].runs)[0]

    @property
    def name(self) -> str:
        return f"{self.title}: {self.cells[0].metric_name}"

    @property
    def bounds(self) -> list[float | None]:
        """The possible range; None: unbounded, or unknown as for several environments' scores."""
        metrics = {cell.metric.name: cell.metric for cell in self.cells}
        is_one = len(metrics) == 1 and (len(self.cells) == 1 or self.metric.high == 1.0)
        return [self.metric.low, self.metric.high] if is_one else [None, None]

    def of(self, *labels: str) -> list[Cell]:
        """The cells that have all these variants."""
        return [cell for cell in self.cells if all(label in cell.values for label in labels)]


def alike_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each quantity and script, of which one line shows all together."""
    alike = {}
    for cell in cells:
        alike.setdefault((cell.metric_name, cell.script, cell.metric.better), []).append(cell)
    return list(alike.values())


def aggregate_notes(cells: Sequence[Cell]) -> list[str]:
    """Lines about the cells that make_lines leaves out of the line of all: those that some variant
    does not have."""
    notes = []
    for members in alike_cells(cells):
        labels = {}
        for cell in members:
            labels |= dict.fromkeys(cell.values)
        environments_without = {}  # variants: the environments without them
        for cell in members:
            absent = [label for label in labels if label not in cell.values]
            if absent:
                environments_without.setdefault(tuple(absent), []).append(cell.environment)
        entries = []
        number = 0
        for absent, environments in environments_without.items():
            number += len(environments)
            entries.append(f"{names_text(environments)} (without {names_text(absent)})")
        if not entries:
            continue
        text = f"not in the aggregate: {'; '.join(entries)}"
        if len(members) - number < 2:
            fault = "fewer than two environments have every variant"
            text = f"no aggregate, since {fault}: {'; '.join(entries)}"
        script = f"{members[0].script}, " if members[0].title != members[0].environment else ""
        notes.append(f"{script}{members[0].metric_name}: {text}")
    return notes


def make_lines(cells: Sequence[Cell]) -> list[Line]:
    """A line for each cell; if a quantity of a script has several cells, preceded by a line for all
    of them, over the environments that every variant has."""
    lines = []
    for members in alike_cells(cells):
        labels = set()
        for cell in members:
            labels |= {*cell.values}
        shared = [cell for cell in members if labels == {*cell.values}]
        if len(shared) > 1:
            lines.append(line_of_all(shared, len(members)))
        lines += [Line(cell.title, [cell], cell.metric.label) for cell in members]
    return lines


def line_of_all(cells: list[Cell], number: int) -> Line:
    """The line over the cells that every variant has. number: of all cells of the quantity."""
    name = f"all {number} environments"
    if len(cells) < number:
        name = f"{len(cells)} of {number} environments"
    title = cells[0].title.replace(cells[0].environment, name)
    scaled = [cell.scaled() for cell in cells]
    if any(cell is None for cell in scaled):
        return Line(title, cells, "", has_scale=False)
    metrics = {cell.metric.name: cell.metric for cell in cells}
    is_fraction = all(metric.high == 1.0 for metric in metrics.values())
    label = cells[0].metric.label if len(metrics) == 1 else cells[0].metric_name
    return Line(title, scaled, label if is_fraction else f"{label}, normalised")


def curve_rows(line: Line, statistic: Callable) -> list[dict]:
    """Points of a line's curves: a statistic of a variant's runs and the ends of its interval, at
    the steps where all of these runs have a value."""
    if not line.has_scale:
        return []
    grid = np.unique(np.concatenate([cell.grid for cell in line.cells]))
    rows = []
    for label in labels_of(line):
        strata = []
        for cell in line.of(label):
            places = np.searchsorted(cell.grid, grid, side="right") - 1
            values = cell.known(label)[np.maximum(places, 0)]
            values[(grid < cell.grid[0]) | (grid > cell.grid[-1])] = np.nan
            if values.shape[1]:
                strata.append(values)
        rows += points_of(row_of(line, label), grid, strata, statistic)
    return rows


def points_of(
    row: dict, grid: np.ndarray, strata: list[np.ndarray], statistic: Callable
) -> list[dict]:
    """Points over strata (steps, runs), at the steps where all runs have a value."""
    known = np.array([np.isfinite(values).all(-1) for values in strata]).all(0)
    if not strata or not known.any():
        return []
    strata = [values[known] for values in strata]
    value = statistic(strata)
    low, high = statistics.stratified_bootstrap(strata, statistic, repetitions=1_000)
    number = sum(values.shape[-1] for values in strata)
    points = zip(grid[known].tolist(), value.tolist(), low.tolist(), high.tolist())
    rows = []
    for step, middle, lowest, highest in points:
        point = {"n": number, "step": step, "value": middle, "low": lowest, "high": highest}
        rows.append(row | point)
    return rows


def labels_of(line: Line) -> list[str]:
    """The variants of a line, in their order."""
    labels = {}
    for cell in line.cells:
        labels |= dict.fromkeys(cell.values)
    return list(labels)


def row_of(line: Line, label: str) -> dict:
    where = {"line": line.name, "environment": line.title, "metric": line.cells[0].metric_name}
    return where | {"variant": label}


def comparison_rows(line: Line, baseline: str, statistic: Callable) -> list[dict]:
    """A row for each variant of a line: its value at the step of the comparison with its interval,
    and how it compares with the baseline. NaN: not known, or the baseline itself."""
    rows = []
    for label in labels_of(line):
        strata = [np.array(list(cell.by_seed(label).values())) for cell in line.of(label)]
        strata = [values for values in strata if len(values)]
        found = (np.nan, np.nan, np.nan)
        if strata and line.has_scale:
            ends = statistics.stratified_bootstrap(strata, statistic, repetitions=1_000)
            found = (float(statistic(strata)), float(ends[0]), float(ends[1]))
        row = row_of(line, label) | {"baseline": baseline, "environments": len(line.cells)}
        row["step"] = max(cell.step for cell in line.cells)
        row["n"] = sum(len(values) for values in strata)
        row |= dict(zip(("value", "low", "high"), found))
        row |= paired(line, label, baseline)
        rows.append(row | improvement(line, label, baseline))
    return rows


def paired(line: Line, label: str, baseline: str) -> dict[str, object]:
    """Differences to the baseline, paired by seed: their mean and its interval, how many seeds are
    better and how many worse, and the exact p of the sign test."""
    differences = []
    for cell in line.of(label, baseline) if label != baseline else ():
        ours = cell.by_seed(label)
        theirs = cell.by_seed(baseline)
        shared = sorted({*ours} & {*theirs})
        if shared:
            differences.append(np.array([ours[seed] - theirs[seed] for seed in shared]))
    found = (np.nan, np.nan, np.nan)
    signs = np.sign(np.concatenate(differences)) if differences else np.zeros(0)
    if line.metric.better == LOWER:
        signs = -signs
    better, worse, p_value = statistics.sign_test(signs)
    if differences and line.has_scale:
        mean = float(statistics.mean_of_means(differences))
        ends = statistics.stratified_bootstrap(differences, statistics.mean_of_means)
        found = (mean, float(ends[0]), float(ends[1]))
    row = {"pairs": len(signs), "better": better, "worse": worse, "p_value": p_value}
    return row | dict(zip(DIFFERENCE, found))


def improvement(line: Line, label: str, baseline: str) -> dict[str, float]:
    """The probability that a run of the variant is better than one of the baseline (Agarwal et al.
    2021), with its interval."""
    ours = []
    theirs = []
    for cell in line.of(label, baseline) if label != baseline else ():
        if len(cell.ranked(label)) and len(cell.ranked(baseline)):
            ours.append(cell.ranked(label))
            theirs.append(cell.ranked(baseline))
    if not ours:
        return dict.fromkeys(PROBABILITY, np.nan)
    return dict(zip(PROBABILITY, statistics.improvement_interval(ours, theirs)))


# ---- files and table -----------------------------------------------------------------------------


def write_comparison(places: Places, options: Options, picture: Path) -> list[Path]:
    """Prints the comparison of the runs at these places, and writes the picture, in pages of
    LINES_PER_PAGE, and the values behind it: name.csv, name-comparison.csv."""
    out, name, endings = figure_place(picture)
    if not options.metrics:
        raise runlog.UserError(f"--metric: give at least one, such as {SCORE}")
    keys = any_of([pattern_of(metric) for metric in options.metrics])
    groups, left_out = at_step(groups_of(places, keys, ""), options.step)
    first_runs = {}
    for labels in groups.values():
        for label, runs in labels.items():
            first_runs.setdefault(label, runs[0])
    activation_of = activations_of(first_runs)
    baselines = find_baselines(groups, options.baseline)
    cells = make_cells(groups, options, places)
    lines = make_lines(cells)
    statistic = FUNCTIONS[options.statistic]
    curves = []
    comparisons = []
    for line in lines:
        curves += curve_rows(line, statistic)
        baseline = baselines[line.cells[0].script]
        comparisons += comparison_rows(line, baseline, statistic)
    compared = {row["variant"] for row in comparisons}  # without those that have no value
    activation_of = {label: name for label, name in activation_of.items() if label in compared}
    for line in lines:
        print_line(line, rows_where(comparisons, line=line.name), options)
    notes = []
    for cell in cells:
        notes += [f"{cell.title}, {cell.metric.name}: {note}" for note in cell.notes]
    notes += aggregate_notes(cells)
    is_cut = any("compared at step" in note for note in notes)
    for note in (*left_out, *notes, *([OTHER_STEP] if is_cut else [])):
        print(note)

    files = {f"{name}.csv": curves, f"{name}-comparison.csv": comparisons}
    if options.shapes:
        files[f"{name}-shapes.csv"] = shape_rows(
            {label: first_runs[label] for label in activation_of}
        )
    files = {file: rows for file, rows in files.items() if rows}
    check_free(out, list(files), [COMPARISON], [name])
    paths = []
    for file, rows in files.items():
        paths.append(write_csv(out / file, rows, kinds=[COMPARISON]))
    spec = {
        "csv": list(files),
        "variants": in_label_order(activation_of),
        "activation_of": activation_of,
        "caption": caption_of(lines, options, comparisons, left_out + notes),
    }
    for number, start in enumerate(range(0, len(lines), LINES_PER_PAGE), start=1):
        page = lines[start : start + LINES_PER_PAGE]
        page_spec = {"lines": [line.name for line in page]}
        page_spec["panels"] = {line.name: line.label for line in page}
        page_spec["scales"] = {line.name: line.metric.scale for line in page}
        page_spec["better"] = {line.name: line.metric.better for line in page}
        page_spec["bounds"] = {line.name: line.bounds for line in page}
        page_spec["units"] = {line.name: step_unit(line.first_run.config) for line in page}
        page_spec["shapes"] = start == 0
        page_name = name if number == 1 else f"{name}-{number}"
        paths += record_figure(out, page_name, COMPARISON, endings, **spec, **page_spec)
    return paths


def shape_rows(first_runs: Mapping[str, Loaded]) -> list[dict]:
    """Points of the learned activation functions of each variant's first seed, before and after
    training; prints those for which there is no room."""
    learned = [label for label, run in first_runs.items() if is_learned(run)]
    if learned[MAX_SHAPES:]:
        print(f"not drawn: the activation functions of {', '.join(learned[MAX_SHAPES:])}")
    rows = []
    for label in learned[:MAX_SHAPES]:
        rows += learned_rows(label, first_runs[label])
    return rows


def caption_of(
    lines: Sequence[Line], options: Options, comparisons: Sequence[dict], notes: Sequence[str]
) -> list[str]:
    """What the picture shows, in a few lines; the notes are printed in full below the table."""
    has_interval = any(np.isfinite(row["low"]) for row in comparisons)
    text = f"{STATISTICS[options.statistic]} over seeds"
    text += ", 95 % stratified bootstrap intervals" if has_interval else ": one each, no interval"
    verb = "better" if all(line.metric.better for line in lines) else "better (or larger)"
    caption = [text]
    if any(np.isfinite(row["probability"]) for row in comparisons):
        right = "right: mean difference of equal seeds, probability that a run is"
        caption.append(f"{right} {verb} than one of the baseline")
    if notes:
        more = f" (and {len(notes) - 1} more notes, below the table)" if len(notes) > 1 else ""
        caption.append(f"{notes[0]}{more}")
    return caption


def print_line(line: Line, rows: Sequence[dict], options: Options) -> None:
    """Print the table of one line."""
    steps = sorted({f"{cell.step:,.0f}" for cell in line.cells})
    where = f"step {steps[0]}" if len(steps) == 1 else "the last common step of each"
    print(f"{line.title}: {line.label or line.metric.label}, {where}")
    baseline = rows[0]["baseline"]
    verb = "better" if line.metric.better else "larger"
    header = ["", "n", f"{HEADINGS[options.statistic]} [95 %]", "minus baseline [95 %]"]
    table = [[*header, verb, f"P({verb}) [95 %]"]]
    for row in rows:
        cells = [row["variant"], f"{row['n']}", interval_text(row, "value", "low", "high")]
        if row["variant"] == baseline:
            cells += ["(baseline)", "", ""]
        else:
            pairs = pairs_text(row) if row["pairs"] else "-"
            chance = interval_text(row, *PROBABILITY, text="{:.2f}")
            cells += [interval_text(row, *DIFFERENCE), pairs, chance]
        table.append(cells)
    print_table(table)
    few = [row for row in rows if row["n"] < FEW_SEEDS * len(line.cells)]
    if any(np.isfinite(row["low"]) for row in few):
        print(f"fewer than {FEW_SEEDS} seeds: take these intervals as a rough guide only")
    print()


def pairs_text(row: dict) -> str:
    """How many pairs are better, and p: "3 of 4, p 0.62"; if some are equal, also how many are
    worse: "3 : 0 of 10, p 0.25"."""
    counts = f"{row['better']}"
    if row["better"] + row["worse"] < row["pairs"]:
        counts += f" : {row['worse']}"
    return f"{counts} of {row['pairs']}, p {row['p_value']:.2g}"


def interval_text(row: dict, value: str, low: str, high: str, text: str = "") -> str:
    """ "0.75 [0.60, 0.90]"; without the ends if there is no interval; "-" without a value."""
    if not np.isfinite(row[value]):
        return "-"
    numbers = [row[key] for key in (value, low, high)]
    texts = [text.format(number) if text else number_text(number) for number in numbers]
    if not np.isfinite(row[low]):
        return texts[0]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"
