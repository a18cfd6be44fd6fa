"""Any folder of runs as tables: a row per script, environment and setting, and one per run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import runlog
from plots.aggregation import (
    Cut,
    combined,
    common_end,
    cut_notes,
    has_reached,
    mean_and_deviation,
    on_grid,
)
from plots.reading import Loaded, Places, check_once, find_runs, read_run, script_of
from plots.recording import check_free, write_csv
from plots.variants import (
    MEASURING,
    Variant,
    all_runs,
    by_seed,
    flat,
    in_order,
    non_default_settings,
    varied_settings,
)
from runlog import disk

LAYERS = r"network/(qf\d|q|agent|classifier|mlp)/fc\d+"  # critics, or the one network; no actors
TRAINING_RETURN = "training return"
SHOWN = {  # title: (key pattern, format); the first that a script logs is its score
    "return": ("eval/episodic_return", "{:.1f}"),
    "success": ("eval/success", "{:.2f}"),
    "online accuracy": ("charts/online_accuracy", "{:.3f}"),
    "error": ("eval/mse", "{:.3g}"),
    TRAINING_RETURN: ("charts/episodic_return", "{:.1f}"),
    "overestimation": ("overestimation/mean", "{:.2f}"),
    "dead neurons": (rf"{LAYERS}/dead_share", "{:.3f}"),
    "srank": (rf"{LAYERS}/srank", "{:.1f}"),
}
SCORES = list(SHOWN)[:5]
NOTHING = "-"  # of a cell: not logged
OTHER_STEP = "--at-step N compares at step N, without the runs that end before it"

# script, environment -> label -> runs by seed
Groups = dict[tuple[str, str], dict[str, list[Loaded]]]


# ---- runs of a folder, by what differs -----------------------------------------------------------


def any_of(patterns: Sequence[str]) -> str:
    """A pattern that matches what one of these does."""
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def shown_pattern() -> str:
    return any_of([pattern for pattern, _ in SHOWN.values()])


def groups_of(places: Places, keys: str = "", flag: str = "--runs") -> Groups:
    """(script, environment) -> label -> runs by seed, of all runs there, ended or in progress. A
    label names the activation and every setting in which runs of one script and environment differ.
    Settings of what is measured (MEASURING) are named only where nothing else distinguishes two
    runs of a seed.

    keys: pattern of what is read of scalars.csv, by default what tables show; flag: for messages.
    Raises UserError: no run; a seed of one setting twice.
    """
    pattern = f"{keys or shown_pattern()}|.*numerator_norm|.*coefficient_gradient_norm"
    found = defaultdict(lambda: defaultdict(list))  # script: environment: runs
    for path in find_runs(places, flag):
        run = read_run(path, pattern)
        found[script_of(path)][run.config["env_id"]].append(run)
    groups = {}
    for script in sorted(found):
        for runs in found[script].values():
            check_once(runs)
        for env, labels in labelled(script, found[script]).items():
            groups[script, env] = labels
    return groups


def labelled(script: str, runs_in: dict[str, list[Loaded]]) -> dict[str, dict[str, list[Loaded]]]:
    """environment -> label -> runs by seed, of the runs of one script: a setting that differs in
    one environment is named in all."""
    settings = set()
    measuring = set()
    for runs in runs_in.values():
        configs = [flat(run.config) for run in runs]
        keys = set().union(*configs) - {"activation", "env_id"}
        settings |= {*varied_settings(configs, keys - MEASURING)}
        seeds = [(run.seed, variant_label(script, run, sorted(settings))) for run in runs]
        if len({*seeds}) < len(seeds):
            measuring |= {*varied_settings(configs, keys & MEASURING)}
    varied = sorted(settings) + sorted(measuring)
    result = {}
    for env in sorted(runs_in):
        groups = defaultdict(list)
        for run in runs_in[env]:
            groups[variant_label(script, run, varied)].append(run)
        result[env] = {}
        activation_of = {label: runs[0].config["activation"] for label, runs in groups.items()}
        for label in in_label_order(activation_of):
            result[env][label] = by_seed(groups[label], f"{script}, {env}, {label}")
    return result


def in_label_order(activation_of: Mapping[str, str]) -> list[str]:
    """Labels in the natural order of their activations."""
    order = in_order(activation_of.values())
    return sorted(activation_of, key=lambda label: (order.index(activation_of[label]), label))


def variant_label(script: str, run: Loaded, varied: Sequence[str]) -> str:
    """The activation and, of the settings that vary, those that differ from the default."""
    config = flat(run.config)
    return Variant(config["activation"], non_default_settings(config, varied, script)).label


def at_step(groups: Groups, step: float | None) -> tuple[Groups, list[str]]:
    """The runs that have reached a step, if one is given, and lines that name those that have not.
    Raises UserError: none has, or none can have."""
    if step is None:
        return groups, []
    if not 0 <= step < np.inf:
        raise runlog.UserError(f"--at-step {step:.12g}: must lie in [0, inf)")
    kept = {}
    lines = []
    longest = 0.0
    for (script, env), labels in groups.items():
        short = []
        members = {}
        for label, runs in labels.items():
            longest = max(longest, *(run.last_step for run in runs))
            reached = [run for run in runs if has_reached(run, step)]
            if reached:
                members[label] = reached
            for run in runs:
                if not has_reached(run, step):
                    text = f"{label} seed {run.seed} (step {run.last_step:,.0f}, {run.status})"
                    short.append(text)
        if members:
            kept[script, env] = members
        if short:
            where = f"{script}, {env}, left out, ending before step {step:,.0f}"
            lines.append(f"{where}: {'; '.join(short)}")
    if not kept:
        text = f"no run has reached it; the longest ends at step {longest:,.0f}"
        raise runlog.UserError(f"--at-step {step:.12g}: {text}")
    return kept, lines


def shown_curve(run: Loaded, pattern: str, until: float = np.inf) -> np.ndarray:
    """(rows, 2) as `combined`, up to a step; returns of training episodes are averaged over windows
    of a fortieth of that step (or of the run)."""
    points = combined(run, pattern)
    points = points[points[:, 0] <= until]
    if pattern != SHOWN[TRAINING_RETURN][0] or not len(points):
        return points
    end = points[-1, 0] if np.isinf(until) else until
    grid = np.linspace(0, end, 41)[1:]
    points = np.stack([grid, on_grid(points, grid, window=grid[0])], -1)
    return points[np.isfinite(points[:, 1])]


# ---- the summary ---------------------------------------------------------------------------------


def summary(groups: Groups, step: float | None = None) -> tuple[list[dict[str, str]], list[str]]:
    """A row per script, environment and setting: n seeds, how many have not ended, steps, then mean
    +- std (ddof 1) over seeds of the last values, "(2 of 3)" if not all have one. "-": not logged.
    All settings of an environment are compared at one step: the given one, or the last that all
    their runs have reached. Also returns lines about what was cut."""
    groups, cut = at_step(groups, step)
    rows = []
    for (script, env), labels in groups.items():
        runs = all_runs(labels)
        ends = {title: common_end(runs, pattern) for title, (pattern, _) in SHOWN.items()}
        ends["steps"] = common_end(runs, shown_pattern())
        if step is not None:
            ends = dict.fromkeys(ends, Cut(step))
        cut += cut_notes(ends, f"{script}, {env}, ")
        until = {title: end.step for title, end in ends.items()}
        for label, members in labels.items():
            row = {"script": script, "environment": env, "setting": label}
            rows.append(row | summary_row(members, until))
    logged = set()
    for row in rows:
        logged |= {key for key, cell in row.items() if cell != NOTHING}
    return [{key: row[key] for key in row if key in logged} for row in rows], cut


def summary_row(runs: Sequence[Loaded], until: dict[str, float]) -> dict[str, str]:
    """The cells of one setting. until: for each column, the step at which it is compared."""
    ended = sum(run.has_ended for run in runs)
    diverged = sum(run.has_diverged for run in runs)
    state = f"{ended} ended, {diverged} diverged"
    if ended == len(runs) and not diverged:
        state = "finished"
    steps = min(run.last_step for run in runs)
    row = {"n": f"{len(runs)}", "state": state, "steps": f"{min(steps, until['steps']):,.0f}"}
    values = last_values(runs, until)
    if values["return"]:
        values[TRAINING_RETURN] = []  # noisier, since the policy explores: a fallback
    for title, (_, text) in SHOWN.items():
        row[title] = mean_and_deviation(values[title], len(runs), text)
    return row


def last_values(runs: Sequence[Loaded], until: dict[str, float]) -> dict[str, list[float]]:
    """title of SHOWN -> last value of each run that has one."""
    values = {}
    for title, (pattern, _) in SHOWN.items():
        curves = [shown_curve(run, pattern, until[title]) for run in runs]
        values[title] = [points[-1, 1] for points in curves if len(points)]
    return values


# ---- files ---------------------------------------------------------------------------------------

LATEX = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "\n": " ", "\r": " "}
LATEX |= {character: "\\" + character for character in "_%&#{}$"}
MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}  # it may hold HTML, TeX
MARKDOWN |= {character: "\\" + character for character in "\\`*[]|$"}
NUM_NAMES = 3  # columns of a table that are not numbers
LAST_VALUES = (
    "last values: mean +- standard deviation over n seeds; "
    "layers' values: mean over the critics' hidden layers"
)


def latex_text(text: str) -> str:
    """A text escaped so that LaTeX prints it unchanged."""
    return text.translate(str.maketrans(LATEX))


def markdown_text(text: str) -> str:
    """A text escaped so that a cell of a Markdown table shows it unchanged."""
    return text.translate(str.maketrans(MARKDOWN))


def write_tables(runs: Places, out: Path, step: float | None = None) -> list[Path]:
    """table.md, table.csv and table.tex in `out`, and runs.csv, a row for each run; the Markdown is
    also printed. step: of the comparison; None: the last that all runs of an environment have."""
    check_free(Path(out), ["table.csv", "runs.csv"], [])
    groups = groups_of(runs)
    rows, cut = summary(groups, step)
    paths = [
        write_csv(Path(out) / "table.csv", rows),
        write_csv(Path(out) / "runs.csv", run_rows(groups)),
    ]
    if cut and step is None:
        cut.append(OTHER_STEP)
    markdown = markdown_table(rows)
    below = [LAST_VALUES, *(markdown_text(line) for line in cut)]
    comments = [f"% {' '.join(line.split())}" for line in (LAST_VALUES, *cut)]
    texts = {
        "md": [*markdown, "", "\n\n".join(below)],
        "tex": [*comments, *latex_table(rows)],
    }
    for ending, lines in texts.items():
        path = Path(out) / f"table.{ending}"
        with disk.writing(path):
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths.append(path)
    print(*markdown, *below, sep="\n")
    return paths


def run_rows(groups: Groups) -> list[dict]:
    """A row for each run: what it is, and its origin."""
    rows = []
    for (script, env), labels in groups.items():
        for label, members in labels.items():
            for run in members:
                row = {"script": script, "environment": env, "setting": label}
                row |= {"seed": run.seed, "status": run.status}
                rows.append(row | run.origin())
    return rows


def markdown_table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Lines of a Markdown table."""
    header = list(rows[0])
    lines = [[markdown_text(cell) for cell in header], ["---"] * len(header)]
    for row in rows:
        lines.append([markdown_text(cell) for cell in row.values()])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def latex_table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Lines of a LaTeX table."""
    header = list(rows[0])
    lines = []
    for row in (header, *(row.values() for row in rows)):
        cells = [latex_text(cell) for cell in row]
        numbers = [cell.replace("+-", r"$\pm$") for cell in cells[NUM_NAMES:]]
        lines.append(" & ".join([*cells[:NUM_NAMES], *numbers]) + r" \\")
    alignment = "l" * NUM_NAMES + "r" * (len(header) - NUM_NAMES)
    start = [rf"\begin{{tabular}}{{{alignment}}}", r"\hline", lines[0], r"\hline"]
    return [*start, *lines[1:], r"\hline", r"\end{tabular}"]


def number_text(value: float) -> str:
    """A number in three digits; from 1,000 to a million in full, without decimals.

    >>> [number_text(value) for value in (0.12345, 999.4, 999.6, 123_456.7, 1e6)]
    ['0.123', '999', '1,000', '123,457', '1e+06']
    """
    is_thousands = abs(float(f"{value:.3g}")) >= 1_000 and abs(value) < 1e6
    return f"{value:,.0f}" if is_thousands else f"{value:.3g}"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in columns, the first column aligned to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
