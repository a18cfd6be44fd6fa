"""function_approximation."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from scipy import stats

import runlog
from plots.aggregation import aligned
from plots.reading import Loaded, _row, _whole_lines
from plots.recording import _print, _write_csv, read_csv, record_figure
from plots.style import _caption
from plots.variants import _check_seeds, load, style

TRUTH = {"color": "0.8", "linewidth": 6, "solid_capstyle": "butt"}


def _network(activation: str, widths: Sequence[int]) -> str:
    width, depth = widths[0], len(widths)
    return f"{activation} {f'{depth} x {width}' if {*widths} == {width} else list(widths)}"


@dataclass
class Fitted:
    """One network of function_approximation.py: its runs, by learning rate, in the order of their seeds."""

    activation: str
    widths: tuple[int, ...]
    num_parameters: int
    runs: dict[float, list[Loaded]]

    @property
    def label(self) -> str:
        return _network(self.activation, self.widths)

    def errors(self, rate: float) -> np.ndarray:
        """Last error of each seed, mean squared, between the training points: median over the last tenth of the steps,
        since with a constant step size it goes up and down. inf: diverged."""
        values = []
        for run in self.runs[rate]:
            steps, errors, _ = run.series("eval/mse").T
            errors = errors[steps >= 0.9 * run.setting("total_steps")]
            if not run.has_diverged and not len(errors):
                told = "has no eval/mse in the last tenth of its steps"
                raise runlog.UserError(
                    f"{run.folder / 'scalars.csv'}: {told}; restore it, or move the run away"
                )
            values.append(np.inf if run.has_diverged else np.median(errors))
        return np.array(values)

    @property
    def best(self) -> float:
        """The learning rate with the lowest median of the last errors."""
        return min(self.runs, key=lambda rate: np.median(self.errors(rate)))


def fitted(run_folders: Sequence[str | Path]) -> list[Fitted]:
    """The networks of these runs. Raises UserError if a run is of another script, not at its end, or of other data."""
    cells = defaultdict(lambda: defaultdict(list))
    for group in load(run_folders, ("widths", "learning_rate", "env_id")).values():
        for run in group:
            if "learning_rate" not in run.config or "num_points" not in run.config:
                raise runlog.UserError(
                    f"{run.folder}: is no run of function_approximation.py; give only such runs"
                )
            _check_regression(run)
            if run.config["status"] not in runlog.ENDED:
                raise runlog.UserError(
                    f"{run.folder}: is {run.config['status']}; give the training command again"
                )
            cells[run.config["activation"], tuple(run.config["widths"])][
                run.config["learning_rate"]
            ].append(run)
    networks = []
    for (activation, widths), runs in cells.items():
        num_parameters = next(iter(runs.values()))[0].meta["num_parameters"]
        networks.append(Fitted(activation, widths, num_parameters, dict(sorted(runs.items()))))
        for rate, each in runs.items():
            _check_seeds(each, f"{networks[-1].label}, learning rate {rate:g}")
    return sorted(networks, key=lambda network: len(network.widths))


def _check_regression(run: Loaded) -> None:
    """Raises UserError unless a run of function_approximation.py has what its figures need."""
    run.setting("total_steps")
    run.setting("learning_rate")
    run.setting("num_points")
    for key, kind in (("widths", int), ("interval", (int, float))):
        values = run.setting(key, list)
        if not values or not all(isinstance(value, kind) for value in values):
            raise runlog.UserError(
                f"{run.folder / 'config.json'}: its {key} is {values}; restore the file"
            )
    if not isinstance(run.meta.get("num_parameters"), int):
        told = "has no num_parameters, which the end of training writes"
        raise runlog.UserError(
            f"{run.folder / 'meta.json'}: {told}; restore the file, or move the run away"
        )


def ratios(reference: Fitted, other: Fitted) -> list[dict]:
    """Last error of `other` over that of `reference`, paired by seed, at each learning rate that both have and at the
    best of each: geometric mean with a 95 % interval (Student's t on the logarithms), in how many seeds it is above 1.
    """
    pairs = {f"{rate:g}": (rate, rate) for rate in reference.runs if rate in other.runs}
    pairs["best of each"] = reference.best, other.best
    rows = []
    for name, (rate, others) in pairs.items():
        mine, theirs = (
            {run.config["seed"]: error for run, error in zip(network.runs[at], network.errors(at))}
            for network, at in ((reference, rate), (other, others))
        )
        logs = np.array(
            [np.log(theirs[seed]) - np.log(mine[seed]) for seed in mine if seed in theirs]
        )
        row = {
            "network": other.label,
            "reference": reference.label,
            "learning_rate": name,
            "n": len(logs),
        }
        row |= dict.fromkeys(("ratio", "low", "high"), np.nan)
        if len(logs) > 1 and np.isfinite(logs).all():
            half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
            row |= dict(
                zip(("ratio", "low", "high"), np.exp(logs.mean() + np.array([0, -half, half])))
            )
        rows.append(row | {"seeds_above_1": int((logs > 0).sum())})
    return rows


def _fit(run: Loaded) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a run's fit at its end."""
    path = run.folder / "curves.jsonl"
    lines = {
        k: line for k, line in enumerate(_whole_lines(path), start=1) if '"key": "fit"' in line
    }
    if not lines:
        raise runlog.UserError(
            f"{path}: has no fit, which the end of training writes; train the run again"
        )
    number = max(lines)
    row = _row(path, number, lines[number])
    return np.asarray(row["x"]), np.array(row["y"], dtype=float)


def _middle(network: Fitted, rate: float) -> Loaded:
    """The run of the seed with the (lower) median error."""
    errors = network.errors(rate)
    return network.runs[rate][np.argsort(errors, kind="stable")[(len(errors) - 1) // 2]]


def draw_regression(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """runs.csv, curves.csv and fits.csv, of the networks that spec names. Top: every network's fit at its best learning
    rate. Middle: error over the steps, a panel per learning rate. Bottom: last error against the learning rate and
    against the number of parameters."""
    runs, curves = (
        defaultdict(lambda: defaultdict(list)) for _ in range(2)
    )  # network: learning rate: rows
    for file, found in (("runs.csv", runs), ("curves.csv", curves)):
        for row in tables[file]:
            name = _network(row["activation"], [*map(int, row["widths"].split())])
            found[name][float(row["learning_rate"])].append(row)
    names, fits, runs = spec["networks"], {}, dict(runs)
    for column in tables["fits.csv"][0]:
        name, _, rate = column.rpartition(", lr ")
        if name in names:
            fits[name] = float(rate), np.array([float(row[column]) for row in tables["fits.csv"]])
    looks = {name: style(next(iter(runs[name].values()))[0]["activation"]) for name in names}
    counts = {name: int(next(iter(runs[name].values()))[0]["parameters"]) for name in names}
    errors = {
        n: {rate: np.array([float(r["last_error"]) for r in own]) for rate, own in runs[n].items()}
        for n in names
    }
    rates = sorted({rate for name in names for rate in runs[name]})
    columns = min(4, max(len(names), 2))
    rows = -(-len(names) // columns)
    figure = Figure((max(9.5, 2.6 * len(rates)), 2.3 * rows + 5.6), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(2.3 * rows, 2.7, 2.9))
    panels = top.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    x = np.array([float(row["x"]) for row in tables["fits.csv"]])
    truth = 10 * np.sin(7 * x) + 15 * np.sin(10 * x) + 5 * np.cos(5 * x)
    for panel, name in zip(panels, names):
        best, y = fits[name]
        panel.plot(x, truth, **TRUTH)
        panel.plot(x, y, color=looks[name]["color"], linewidth=1.5)
        panel.set_ylim(1.3 * truth.min(), 1.3 * truth.max())
        told = f"learning rate {best:g}, error {np.median(errors[name][best]):.3g}"
        panel.set_title(f"{name}, {counts[name]:,} parameters\n{told}")
        panel.set(xlabel="x", ylabel="y" if panel in panels[::columns] else "")
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    axes = middle.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    for panel, rate in zip(axes, rates):
        for k, name in enumerate(names):
            points = [
                [float(row[key]) for key in ("step", "min", "median", "max")]
                for row in curves[name][rate]
            ]
            steps, low, mid, high = np.array(points).reshape(-1, 4).T
            look, kept = looks[name], low > 0
            panel.fill_between(
                steps[kept], low[kept], high[kept], color=look["color"], alpha=0.15, linewidth=0
            )
            every = (k, max(1, len(steps) // 5))
            panel.plot(steps[kept], mid[kept], **look, linewidth=1.5, markersize=4, markevery=every)
        panel.set(
            yscale="log",
            xlabel="steps (updates)",
            ylabel="error" if panel is axes[0] else "",
            xlim=(0, None),
        )
        panel.set_title(f"learning rate {rate:g}")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    by_rate, by_count = bottom.subplots(1, 2, sharey=True)
    for name in names:
        kept = [rate for rate in sorted(errors[name]) if np.isfinite(errors[name][rate]).all()]
        points = np.array([_range(errors[name][rate]) for rate in kept]).reshape(-1, 3).T
        by_rate.errorbar(
            kept,
            points[1],
            [points[1] - points[0], points[2] - points[1]],
            **looks[name],
            capsize=3,
        )
        low, mid, high = _range(errors[name][fits[name][0]])
        options = {**looks[name], "linestyle": "", "capsize": 3, "markersize": 7, "label": name}
        if np.isfinite(high):
            by_count.errorbar(counts[name], mid, [[mid - low], [high - mid]], **options)
    ticks = sorted({*counts.values()})
    by_rate.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="last error")
    by_count.set(
        xscale="log", yscale="log", xlabel="parameters (each network at its best learning rate)"
    )
    by_count.set_xticks(ticks, [f"{count:,}" for count in ticks])
    by_count.set_xticks([], minor=True)
    by_count.set_xlim(0.8 * ticks[0], 1.25 * ticks[-1])
    handles = [Line2D([], [], **looks[name], label=name) for name in names]
    handles.append(Line2D([], [], **TRUTH, label="the function"))
    bottom.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=3.5)
    _caption(figure, *spec["caption"])
    return figure


def _regression_caption(networks: list[Fitted], title: str) -> list[str]:
    config = next(iter(networks[0].runs.values()))[0].config
    counts = sorted({len(runs) for network in networks for runs in network.runs.values()})
    data = (
        f"{config['num_points']} points in [{config['interval'][0]:g}, {config['interval'][1]:g}]"
    )
    seeds = f"median of n = {' or '.join(map(str, counts))} seeds (fits too), bands and bars from best to worst"
    what = f"y = 10 sin 7x + 15 sin 10x + 5 cos 5x, {data}, {config['total_steps']:,} steps of Adam"
    return [
        title,
        what,
        "error: mean squared, between the points; last: median of the last tenth of the steps",
        seeds,
    ]


def _range(values: np.ndarray) -> tuple[float, float, float]:
    return values.min(), float(np.median(values)), values.max()


def _spread(runs: list[Loaded]) -> tuple[np.ndarray, ...]:
    """Steps, and lowest, median and highest error of the seeds; a diverged one carries its last value forward."""
    steps, values = aligned(runs, "eval/mse")
    known = np.isfinite(values).any(0)
    steps = steps[known]
    values = values[:, known]
    return steps, np.nanmin(values, 0), np.nanmedian(values, 0), np.nanmax(values, 0)


def draw_table1(rows: list[dict], spec: dict) -> Figure:
    """HR's Table 1: dead share of simulated layers, with intervals, and the closed forms as lines."""
    figure, p = Figure((9.5, 3.2), layout="constrained"), np.linspace(0, 1, 101)
    formulas = {"tanh": ("p^2", p**2), "sigmoid": ("p", p), "relu": ("2p - p^2", 2 * p - p**2)}
    for panel, (name, (formula, y)) in zip(figure.subplots(1, 3, sharey=True), formulas.items()):
        panel.plot(p, p, color="0.6", linewidth=1, linestyle=":", label="p")
        panel.plot(p, y, color=style(f"{name}_hr")["color"], linewidth=1, label=formula)
        for activation in (name, f"{name}_hr"):
            own = [{k: float(v) for k, v in row.items() if k != "activation"} for row in rows]
            own = [row for row, each in zip(own, rows) if each["activation"] == activation]
            x, middle, low, high = (
                [row[k] for row in own] for k in ("p", "dead_share", "low", "high")
            )
            bars = np.array([np.subtract(middle, low), np.subtract(high, middle)])
            look = {
                **style(activation),
                "linestyle": "",
                "capsize": 3,
                "label": f"{activation}, simulated",
            }
            panel.errorbar(x, middle, bars, **look)
        panel.set(xlabel="p: a branch is saturated", title=name, xlim=(0, 1), ylim=(0, 1))
        panel.legend(fontsize=7)
    figure.axes[0].set_ylabel("share of dead neurons")
    _caption(figure, *spec["caption"])
    return figure


def function_approximation(run_folders: Sequence[str | Path], out: str | Path) -> None:
    """HR Figs. 2 and 12 from the runs of function_approximation.py: shallow.png and deep.png, and what they show as
    runs.csv, curves.csv, fits.csv and ratios.csv; table1.png if `out` has a table1.csv. Prints the last errors."""
    networks, out, table, curves = fitted(run_folders), Path(out), [], []
    if not any(np.isfinite(network.errors(network.best)).any() for network in networks):
        told = "every run has diverged, at every learning rate: there is no error to draw"
        raise runlog.UserError(
            f"--runs {Path(run_folders[0]).parent}: {told}; train with lower --learning-rates"
        )
    shallow = [network for network in networks if len(network.widths) == 1]
    products = [network for network in shallow if re.search(r"_\d?hr|[*]", network.activation)]
    deep = [network for network in networks if len(network.widths) > 1]
    with runlog.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for network in networks:
        for rate, runs in network.runs.items():
            cell = {"activation": network.activation, "widths": " ".join(map(str, network.widths))}
            cell |= {"parameters": network.num_parameters, "learning_rate": rate}
            for run, error in zip(runs, network.errors(rate).tolist()):
                own = run.provenance()
                row = {
                    "run": run.folder.name,
                    **cell,
                    "seed": run.config["seed"],
                    "status": run.config["status"],
                }
                row |= {"last_error": error, "last_training_loss": run.last("losses/mse")}
                layer = f"network/mlp/fc{len(network.widths)}/"
                row |= {
                    name: run.last(layer + name)
                    for name in ("srank", "dead_share", "dormant_share")
                }
                table.append(
                    row | {key: own[key] for key in ("elapsed_s", "git", "dirty", "cpu", "torch")}
                )
            for step, low, middle, high in zip(*(values.tolist() for values in _spread(runs))):
                curves.append(
                    {
                        **cell,
                        "step": int(step),
                        "n": len(runs),
                        "median": middle,
                        "min": low,
                        "max": high,
                    }
                )
    fits = {"x": _fit(_middle(networks[0], networks[0].best))[0]}
    fits |= {f"{n.label}, lr {n.best:g}": _fit(_middle(n, n.best))[1] for n in networks}
    rows = [
        row
        for reference in products
        for other in networks
        if other is not reference
        for row in ratios(reference, other)
    ]
    print_errors(networks)
    paths = [_write_csv(out / "runs.csv", table), _write_csv(out / "curves.csv", curves)]
    paths.append(
        _write_csv(
            out / "fits.csv", [dict(zip(fits, map(float, row))) for row in zip(*fits.values())]
        )
    )
    paths += [_write_csv(out / "ratios.csv", rows)] if rows else []
    drawn = {"shallow": (shallow, "Shallow networks (HR Figs. 2, 12a)")}
    drawn["deep"] = [*products, *deep] if deep else [], "Deep networks (HR Fig. 12b)"
    for name, (members, title) in drawn.items():
        spec = {
            "csv": ["runs.csv", "curves.csv", "fits.csv"],
            "networks": [network.label for network in members],
        }
        told = _regression_caption(members, title) if members else []
        paths += (
            record_figure(out, name, "regression", ("png",), caption=told, **spec)
            if members
            else []
        )
    if (out / "table1.csv").exists():
        count = int(read_csv(out / "table1.csv")[0]["neurons"])
        told = f"Dead neurons with and without a product (HR Table 1): {count:,} neurons a point, 95 % intervals"
        paths += record_figure(out, "table1", "table1", ("png",), caption=[told])
    print(*paths, sep="\n", flush=True)


def print_errors(networks: list[Fitted]) -> None:
    """Table of the last errors: a row per network, a column per learning rate."""
    rates = sorted({rate for network in networks for rate in network.runs})
    rows = [["network", "parameters", *(f"lr {rate:g}" for rate in rates)]]
    for network in networks:
        rows.append([network.label, f"{network.num_parameters:,}"])
        for rate in rates:
            low, middle, high = (
                _range(network.errors(rate)) if rate in network.runs else [np.nan] * 3
            )
            rows[-1].append(f"{middle:.3g} ({low:.3g} to {high:.3g})")
    _print(rows)
    print(
        "last error, mean squared, between the training points: median over seeds (best to worst)"
    )


def hr2(
    runs: Path, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 2 and 12: function approximation, from the runs of function_approximation.py in a folder."""
    if where or variants:
        raise runlog.UserError(
            "--where, --variants: hr2 draws all runs of function_approximation.py; leave it away"
        )
    folders = sorted(Path(runs).glob("*__function_approximation__*"))
    if not folders:
        raise runlog.UserError(
            f"--runs {runs}: no run of function_approximation.py; train some first"
        )
    function_approximation(folders, out)
    return []
