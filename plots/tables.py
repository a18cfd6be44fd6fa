"""tables."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

import runlog
from plots.aggregation import combined, common_end, mean_and_deviation, on_grid
from plots.continual import _provenance
from plots.reading import Loaded, read_run, run_folders_in
from plots.recording import _write_csv
from plots.study import RETURN
from plots.variants import STYLES, _check_seeds, _flat, _own, _told, all_runs, check_once

LAYERS = r"network/(qf\d|q|agent|classifier|mlp)/fc\d+"  # critics, or the one network; actors are left out

SHOWN = {  # title: (key pattern, format); the first that a script logs is its score
    "return": (RETURN, "{:.1f}"),
    "success": ("eval/success", "{:.2f}"),
    "online accuracy": ("charts/online_accuracy", "{:.3f}"),
    "error": ("eval/mse", "{:.3g}"),
    "training return": ("charts/episodic_return", "{:.1f}"),
    "overestimation": ("overestimation/mean", "{:.2f}"),
    "dead share": (rf"{LAYERS}/dead_share", "{:.3f}"),
    "srank": (rf"{LAYERS}/srank", "{:.1f}"),
}


def groups_of(folder: Path) -> dict[tuple[str, str], dict[str, list[Loaded]]]:
    """(script, environment) -> label -> runs by seed, of all run folders in a folder, ended or under way. A label tells
    the activation and every setting in which runs of one script and environment differ. Raises UserError: no run; a
    seed of one setting twice."""
    keys = "|".join(f"(?:{pattern})" for pattern, _ in SHOWN.values())
    keys += "|.*numerator_norm|.*coefficient_gradient_norm"
    found = defaultdict(list)
    for path in run_folders_in(folder, "*__*__*__s*__*"):
        run = read_run(path, keys)
        found[path.name.split("__")[1], run.config["env_id"]].append(run)
    if not found:
        raise runlog.UserError(f"--runs {folder}: no run folder in it; train something first")
    groups = {}
    for name, runs in sorted(found.items()):
        check_once(runs)
        flat = [_flat(run.config) for run in runs]
        names = sorted({key for config in flat for key in config} - {"activation"})
        varied = [key for key in names if len({json.dumps(config.get(key)) for config in flat}) > 1]
        labels = defaultdict(list)
        for run, config in zip(runs, flat):
            own = _own(config, varied, name[0])
            told = [_told(key, value) for key, value in own.items()]
            labels[", ".join([config["activation"], *told])].append(run)
        order = [*STYLES, *sorted({label.split(", ")[0] for label in labels} - {*STYLES})]
        ranked = sorted(labels, key=lambda label: (order.index(label.split(", ")[0]), label))
        groups[name] = {
            label: sorted(labels[label], key=lambda run: run.config["seed"]) for label in ranked
        }
        for label, each in groups[name].items():
            _check_seeds(each, f"{', '.join(name)}, {label}")
    return groups


def shown_curve(run: Loaded, pattern: str, until: float = np.inf) -> np.ndarray:
    """(rows, 2) as `combined`, up to a step; returns of training episodes are means over windows of a fortieth of it
    (of the run)."""
    points = combined(run, pattern)
    points = points[points[:, 0] <= until]
    if not pattern.startswith("charts/episodic") or not len(points):
        return points
    grid = np.linspace(0, points[-1, 0] if np.isinf(until) else until, 41)[1:]
    points = np.stack([grid, on_grid(points, grid, window=grid[0])], -1)
    return points[np.isfinite(points[:, 1])]


def summary(groups: dict[tuple[str, str], dict[str, list[Loaded]]]) -> list[dict[str, str]]:
    """A row per script, environment and setting: n seeds, how many have not ended, steps, then mean +- std (ddof 1)
    over seeds of the last values, "(2 of 3)" if not all have one. "-": not logged. All settings of an environment are
    compared at the last step that all their runs have reached."""
    return _summary(groups)[0]


def _summary(
    groups: dict[tuple[str, str], dict[str, list[Loaded]]],
) -> tuple[list[dict[str, str]], list[str]]:
    """`summary`, and the lines below it: what was cut."""
    rows = []
    cut = []
    for (script, env), labels in groups.items():
        every = all_runs(labels)
        shown = "|".join(f"(?:{pattern})" for pattern, _ in SHOWN.values())
        ends = {title: common_end(every, pattern) for title, (pattern, _) in SHOWN.items()}
        ends["steps"] = common_end(every, shown)
        told = {}
        for title, end in ends.items():
            for line in end.told(f"{script}, {env}, PLACE"):
                told.setdefault(line, []).append(title)
        cut += [line.replace("PLACE", ", ".join(titles), 1) for line, titles in told.items()]
        for label, runs in labels.items():
            ended = [run.has_ended for run in runs]
            diverged = sum(run.has_diverged for run in runs)
            steps = [max((rows[-1, 0] for rows in run.scalars.values()), default=0) for run in runs]
            row = {"script": script, "environment": env, "setting": label, "n": f"{len(runs)}"}
            row["state"] = (
                "finished"
                if all(ended) and not diverged
                else f"{sum(ended)} ended, {diverged} diverged"
            )
            row["steps"] = f"{min(min(steps), ends['steps'].step):,.0f}"
            for title, (pattern, text) in SHOWN.items():
                curves = [shown_curve(run, pattern, ends[title].step) for run in runs]
                values = [points[-1, 1] for points in curves if len(points)]
                row[title] = mean_and_deviation(values, len(runs), text)
            if row["return"] != "-":
                row["training return"] = (
                    "-"  # noisier, and of an exploring policy: only where there is nothing else
                )
            rows.append(row)
    empty = [title for title in SHOWN if all(row[title] == "-" for row in rows)]
    return [{key: value for key, value in row.items() if key not in empty} for row in rows], cut


LATEX = {  # character: how LaTeX prints it
    **{c: "\\" + c for c in "_%&#{}$"},
    **{"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\textasciitilde{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "\n": " ", "\r": " "},
}

MARKDOWN = {  # character: how Markdown, which may hold HTML and TeX, shows it
    **{c: "\\" + c for c in "\\`*[]|$"},
    **{"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "},
}


def latex_text(text: str) -> str:
    """A text that LaTeX prints as it is."""
    return text.translate(str.maketrans(LATEX))


def markdown_text(text: str) -> str:
    """A text that a cell of a Markdown table shows as it is."""
    return text.translate(str.maketrans(MARKDOWN))


def write_tables(runs: Path, out: Path) -> list[Path]:
    """table.md, table.csv and table.tex in `out`, and runs.csv, a row for each run; the Markdown is printed too."""
    groups, each = groups_of(runs), []
    rows, cut = _summary(groups)
    for (script, env), labels in groups.items():
        for label, group in labels.items():
            own = {"script": script, "environment": env, "setting": label}
            for run in group:
                status = {"seed": run.config["seed"], "status": run.config["status"]}
                each.append(own | status | _provenance(run))
    header, lines = list(rows[0]), [list(row.values()) for row in rows]
    markdown = [["---"] * len(header)]
    latex = []
    for line in (header, *lines):
        markdown.append([markdown_text(cell) for cell in line])
        latex.append([latex_text(cell) for cell in line[:3]])
        latex[-1] += [latex_text(cell).replace("+-", r"$\pm$") for cell in line[3:]]
    markdown[:2] = markdown[1::-1]  # the rule comes below the header
    markdown = ["| " + " | ".join(cells) + " |" for cells in markdown]
    latex = [" & ".join(cells) + r" \\" for cells in latex]
    latex = [
        rf"\begin{{tabular}}{{{'l' * 3}{'r' * (len(header) - 3)}}}",
        r"\hline",
        latex[0],
        r"\hline",
        *latex[1:],
    ]
    latex += [r"\hline", r"\end{tabular}"]
    told = "last values: mean +- standard deviation over n seeds; layers' values: mean over the critics' hidden layers"
    below = [told, *(markdown_text(line) for line in cut)]
    comments = [f"% {' '.join(line.split())}" for line in (told, *cut)]
    paths = [_write_csv(Path(out) / "table.csv", rows), _write_csv(Path(out) / "runs.csv", each)]
    for name, text in (("md", [*markdown, "", "\n\n".join(below)]), ("tex", [*comments, *latex])):
        paths.append(Path(out) / f"table.{name}")
        with runlog.writing(paths[-1]):
            paths[-1].write_text("\n".join(text) + "\n", encoding="utf-8")
    print(*markdown, *below, sep="\n")
    return paths
