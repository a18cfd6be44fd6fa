"""From run folders to a study's folder under results/:
runs.csv, curves.csv and learning curves as one PNG.

    python scripts/export_results.py runs/*cartpole* --out results/2026-sac-cartpole

runs.csv has one row per run with what identifies it; curves.csv is long (exp, env, activation,
seed, metric, env_step, value), with at most 200 steps per curve, the same in all runs, and the
last value of a diverged run carried forward. Curves of other programs, in files of the same form
given by --reference, are drawn too and copied into the folder. `python figures.py redraw FOLDER`
draws the picture again. With --no-picture the tables are all that is written.
"""

import csv
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import runlog
from plots import aggregation, exported, reading, recording, variants
from runlog import disk

METRICS = {  # key: axis label, "" if it is not drawn; SAC's layers are those of the first critic
    # computed here: means over windows of a fortieth of the run
    "charts/window_return": "return of training games",
    "eval/episodic_return": "evaluation return",
    "eval/num_games": "",
    "eval/success": "success rate (any step)",
    "overestimation/mean": "overestimation Q - G",
    "network/qf1/fc2/dead_share": "dead-neuron fraction, critic 1, layer 2",
    "network/qf1/fc2/srank": "srank, critic 1, layer 2",
    "network/qf1/coefficient_gradient_norm": "coefficient gradient, critic 1",
    "network/q/fc1/dead_share": "dead-neuron fraction (KDE), last hidden layer",
    "network/q/fc1/dead_share_std": "",
    "network/q/fc1/branch0_dead_share": "",
    "network/q/fc1/branch1_dead_share": "",
    "network/q/fc1/dormant_share": "dormant fraction, last hidden layer",
    "network/q/fc1/srank": "srank, last hidden layer",
    "network/q/fc1/feature_norm": "feature norm, last hidden layer",
    "network/q/fc1/preact_q01": "",
    "network/q/fc1/preact_q99": "",
    "network/q/conv1/dead_share": "",
    "network/q/conv2/dead_share": "",
    "network/q/conv3/dead_share": "dead-neuron fraction (KDE), last convolution",
    "network/q/conv3/dormant_share": "",
    "network/q/conv3/srank": "",
    "network/q/weight_norm": "",
    "network/agent/fc1/dead_share": "dead-neuron fraction (KDE), last hidden layer",
    "network/agent/fc1/dead_share_std": "",
    "network/agent/fc1/dormant_share": "dormant fraction, last hidden layer",
    "network/agent/fc1/srank": "srank, last hidden layer",
    "network/agent/fc1/feature_norm": "feature norm, last hidden layer",
    "q_split/dead": "Q from dead neurons",
    "q_split/live": "Q from live neurons",
    "q_split/bias": "",
    "losses/td_loss": "",
    "losses/q_mean": "mean Q on the batch",
}


@dataclasses.dataclass
class Args:
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]  # runs of one setting, or parents
    out: Path  # folder of the study
    by: tuple[str, ...] = ()  # settings of config.json that differ: a curve for each value
    reference: tuple[Path, ...] = ()  # further curves.csv files, drawn too and copied to the folder
    picture: bool = True  # draw curves.png, and record it in figures.json


def main(args: Args) -> None:
    for path in args.reference:
        if path.name in ("runs.csv", "curves.csv") or not path.is_file():
            raise runlog.UserError(
                f"--reference {path}: give a file of another name than runs.csv and curves.csv"
            )
    recording.check_free(args.out, ["runs.csv", "curves.csv"], [exported.STUDY], ["curves"])
    folders = reading.find_runs(args.folders, "")
    groups = split(variants.load(folders, args.by), args.by)
    curves = curve_rows(groups)
    if not curves:
        raise runlog.UserError(
            f"{args.folders[0]}: no run has rows to export yet; run the training command again"
        )
    tables = {"curves.csv": curves}
    for path in args.reference:
        tables[str(path)] = recording.read_csv(path)
    exported.check_apart(tables)

    runs = run_rows(groups)
    with disk.writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in (("runs.csv", runs), ("curves.csv", curves)):
            with open(args.out / name, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        for path in args.reference:
            if path.resolve().parent != args.out.resolve():
                shutil.copy(path, args.out)
    if args.picture:
        references = [path.name for path in args.reference]
        draw(args.out, references, list(groups) if args.by else [], caption_of(groups))
    print_returns(groups)


def curve_rows(groups: dict[str, list[reading.Loaded]]) -> list[dict]:
    """The rows of curves.csv: at most 200 of each metric of a run. The last value of a diverged run
    is carried forward to the later steps of the others."""
    every = variants.all_runs(groups)
    series = {metric: carried(every, thinned(values)) for metric, values in logged(every).items()}
    rows = []
    index = 0
    for activation, group in groups.items():
        for run in group:
            start = {
                "exp": "ours",
                "env": run.config["env_id"],
                "activation": activation,
                "seed": run.config["seed"],
            }
            for metric in METRICS:
                for step, value in series[metric][index]:
                    row = {"metric": metric, "env_step": int(step), "value": float(value)}
                    rows.append(start | row)
            index += 1
    return rows


def logged(runs: Sequence[reading.Loaded]) -> dict[str, list[np.ndarray]]:
    """Metric -> for each run (rows, 2) of step and value."""
    found = {}
    for metric in METRICS:
        if metric == "charts/window_return":
            found[metric] = [windows(run) for run in runs]
        else:
            found[metric] = [run.series(metric)[:, :2] for run in runs]
    return found


def thinned(series: Sequence[np.ndarray], max_rows: int = 200) -> list[np.ndarray]:
    """At most `max_rows` rows of each run, at the same steps in all runs as far as they have these.

    All steps together are divided into `max_rows` stretches. In each, every run keeps the step that
    most runs have (the middle one, if several are equally frequent), or its last one there if it
    lacks that step. series: for each run (rows, 2) of step and value, in the order of steps;
    returns the same with fewer rows. If the runs have the same steps, the first and the last are
    kept.
    """
    every = [np.unique(rows[:, 0]) for rows in series]
    steps, counts = np.unique(np.concatenate(every), return_counts=True)
    if len(steps) <= max_rows:
        return list(series)
    index = np.arange(len(steps))
    middle = np.linspace(0, len(steps) - 1, max_rows).round()
    stretch = (index * (max_rows - 1) / (len(steps) - 1)).round().astype(int)
    distance = np.abs(index - middle[stretch])
    best_first = np.lexsort((distance, -counts, stretch))
    _, places = np.unique(stretch[best_first], return_index=True)
    chosen = steps[best_first][places]  # of each stretch

    kept = []
    for rows in series:
        own = stretch[np.searchsorted(steps, rows[:, 0])]
        is_chosen = rows[:, 0] == chosen[own]
        best_last = np.lexsort((is_chosen, own))
        is_last = np.diff(own[best_last], append=max_rows) > 0
        kept.append(rows[np.sort(best_last[is_last])])
    return kept


def carried(runs: Sequence[reading.Loaded], series: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each run its (rows, 2) of step and value; those of a diverged run are continued with its
    last value at the later steps of the other runs."""
    steps = np.unique(np.concatenate([rows[:, 0] for rows in series]))
    found = []
    for run, rows in zip(runs, series):
        if run.has_diverged and len(rows):
            later = steps[steps > rows[-1, 0]]
            last = np.full(len(later), rows[-1, 1])
            rows = np.concatenate([rows, np.stack([later, last], axis=1)])
        found.append(rows)
    return found


def run_rows(groups: dict[str, list[reading.Loaded]]) -> list[dict]:
    """The rows of runs.csv."""
    rows = []
    for activation, group in groups.items():
        for run in group:
            row = {
                "run": run.folder.name,
                "activation": activation,
                "seed": run.config["seed"],
                "status": run.config["status"],
            }
            final = run.series("eval/episodic_return")
            final = final if len(final) else windows(run)  # PPO on Atari has no evaluations
            # empty before the first evaluation
            row |= {"last_step": "", "last_return": "", "best_return": ""}
            if len(final):
                row["last_step"] = int(final[-1, 0])
                row["last_return"] = round(float(final[-1, 1]), 2)
                row["best_return"] = round(float(final[:, 1].max()), 2)
            rows.append(row | run.provenance())  # empty: not ended
    return rows


def caption_of(groups: dict[str, list[reading.Loaded]]) -> str:
    """The environment, and how many runs have diverged."""
    every = variants.all_runs(groups)
    diverged = sum(run.has_diverged for run in every)
    text = every[0].config["env_id"]
    if diverged:
        text += f", {diverged} of {len(every)} runs diverged (last value carried forward)"
    return text


def split(
    groups: dict[str, list[reading.Loaded]], keys: tuple[str, ...]
) -> dict[str, list[reading.Loaded]]:
    """The groups by activation, each split by the values of these settings:
    "tanh_hr, adam_eps 1e-08" -> its runs."""
    found = {}
    for activation, group in groups.items():
        for run in group:
            for key in keys:
                if key not in run.config:
                    raise runlog.UserError(
                        f"--by {key}: {run.folder} has no such setting; config.json lists them"
                    )
            label = ", ".join([activation, *(f"{key} {run.config[key]}" for key in keys)])
            found.setdefault(label, []).append(run)
    return found


def print_returns(groups: dict[str, list[reading.Loaded]]) -> None:
    """Mean and standard deviation (ddof 1) over seeds of the last return, of all runs at the last
    step that all have reached."""
    every = variants.all_runs(groups)
    key = "eval/episodic_return"
    if not any(len(run.series(key)) for run in every):
        key = "charts/episodic_return"
    end = aggregation.common_end(every, key)
    for activation, group in groups.items():
        values = []
        for run in group:
            rows = windows(run) if key.startswith("charts/") else run.series(key)
            values += rows[rows[:, 0] <= end.step][-1:, 1].tolist()
        if values:
            shown = aggregation.mean_and_deviation(values, len(group), "{:.1f}")
            note = ", std over seeds (ddof 1)" if len(values) > 1 else ""
            print(f"{activation}: last return {shown}{note}")
    for line in aggregation.cut_notes({"last return": end}):
        print(line)


def windows(run: reading.Loaded, number: int = 40) -> np.ndarray:
    """(windows, 2): end of each window of the run, and mean return of the games that ended in it;
    Atari runs only. For an unfinished run, without its current window."""
    rows = run.series("charts/episodic_return")
    if "repeat_action_probability" not in run.config or not len(rows):
        return np.zeros((0, 2))
    total = run.setting("total_timesteps", int)
    index = np.minimum((rows[:, 0] - 1) * number // total, number - 1).astype(int)
    found = []
    for i in np.unique(index):
        end = (i + 1) * total / number
        if run.status == "finished" or end <= rows[-1, 0]:
            found.append((end, rows[index == i, 1].mean()))
    return np.array(found).reshape(-1, 2)


def draw(out: Path, references: list[str], variants: list[str], caption: str) -> None:
    """Record curves.png of this folder's curves.csv and references in its figures.json,
    and draw it."""
    files = ["curves.csv", *references]
    rows = []
    for file in files:
        rows += recording.read_csv(out / file)
    known = set(recording.distinct(rows, "metric"))
    panels = {metric: label for metric, label in METRICS.items() if label and metric in known}
    exported.write_study(out, files, panels, caption, variants)


if __name__ == "__main__":
    with runlog.exit_on_user_error():
        main(runlog.parse_args(Args))
