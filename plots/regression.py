"""The figures of function_approximation.py (HR Figs. 2 and 12, Table 1)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

import runlog
from plots import axes, style
from plots.aggregation import aligned
from plots.layers import last_row
from plots.reading import NUMBER, Loaded, Places
from plots.recording import Kind, check_free, read_csv, record_figure, rows_where, write_csv
from plots.statistics import ratio_interval
from plots.study import find_candidates
from plots.tables import print_table
from plots.variants import by_seed, is_product, load, product_of, style_of
from runlog import disk

DRAWN = ("runs", "curves", "fits")  # tables of figures
TRUTH = {"color": "0.8", "linewidth": 6, "solid_capstyle": "butt"}
ERROR = "eval/mse"


def network_label(activation: str, widths: Sequence[int]) -> str:
    """A network as figures name it: "relu 3 x 200"."""
    is_even = len({*widths}) == 1
    return f"{activation} {f'{len(widths)} x {widths[0]}' if is_even else list(widths)}"


def fit_column(label: str, rate: float) -> str:
    """The column of fits.csv for a network at its best learning rate."""
    return f"{label}, lr {rate:g}"


@dataclass(frozen=True)
class Spread:
    """Lowest, median and highest value over the seeds."""

    low: float | np.ndarray
    middle: float | np.ndarray
    high: float | np.ndarray

    def bars(self) -> np.ndarray:
        """Distances of the ends from the median, for error bars."""
        return np.array([self.middle - self.low, self.high - self.middle])


def spread_of(values: np.ndarray) -> Spread:
    return Spread(values.min(), float(np.median(values)), values.max())


# ---- runs ----------------------------------------------------------------------------------------


@dataclass
class Fitted:
    """One network of function_approximation.py: its runs, by learning rate, in the order of their
    seeds."""

    activation: str
    widths: tuple[int, ...]
    num_parameters: int
    runs: dict[float, list[Loaded]]

    @property
    def label(self) -> str:
        return network_label(self.activation, self.widths)

    @property
    def is_shallow(self) -> bool:
        return len(self.widths) == 1

    @property
    def is_product(self) -> bool:
        """Whether its activation is a product: HR's, or one of an expression."""
        return is_product(self.activation)

    def errors(self, rate: float) -> np.ndarray:
        """Last error of each seed: mean squared error between the training points, median over the
        last tenth of the steps, since it fluctuates at a constant learning rate. inf: diverged."""
        values = []
        for run in self.runs[rate]:
            if run.has_diverged:
                values.append(np.inf)
                continue
            steps, errors, _ = run.series(ERROR).T
            errors = errors[steps >= 0.9 * run.setting("total_steps")]
            if not len(errors):
                fault = f"has no {ERROR} in the last tenth of its steps"
                remedy = "restore it, or move the run away"
                raise runlog.UserError(f"{run.folder / 'scalars.csv'}: {fault}; {remedy}")
            values.append(np.median(errors))
        return np.array(values)

    @property
    def best(self) -> float:
        """The learning rate with the lowest median of the last errors."""
        return min(self.runs, key=lambda rate: np.median(self.errors(rate)))

    def middle_run(self) -> Loaded:
        """The run of the seed with the (lower) median error at the best learning rate."""
        errors = self.errors(self.best)
        order = np.argsort(errors, kind="stable")
        return self.runs[self.best][order[(len(errors) - 1) // 2]]


def fitted(run_folders: Sequence[str | Path]) -> list[Fitted]:
    """The networks of these runs. Raises UserError if a run is of another script, has not reached
    its end, or has other data."""
    cells = defaultdict(lambda: defaultdict(list))
    for group in load(run_folders, ("widths", "learning_rate", "env_id")).values():
        for run in group:
            check_run(run)
            network = run.config["activation"], tuple(run.config["widths"])
            cells[network][run.config["learning_rate"]].append(run)
    networks = []
    for (activation, widths), runs in cells.items():
        label = network_label(activation, widths)
        by_rate = {}
        for rate in sorted(runs):
            by_rate[rate] = by_seed(runs[rate], f"{label}, learning rate {rate:g}")
        first = next(iter(runs.values()))[0]
        networks.append(Fitted(activation, widths, first.meta["num_parameters"], by_rate))
    return sorted(networks, key=lambda network: len(network.widths))


def check_run(run: Loaded) -> None:
    """Raises UserError unless a run is one of function_approximation.py, has reached its end, and
    has what its figures need."""
    if "learning_rate" not in run.config or "num_points" not in run.config:
        fault = "is not a run of function_approximation.py; give only such runs"
        raise runlog.UserError(f"{run.folder}: {fault}")
    for key in ("total_steps", "learning_rate", "num_points"):
        run.setting(key)
    for key, kind in (("widths", int), ("interval", NUMBER)):
        values = run.setting(key, list)
        if not values or not all(isinstance(value, kind) for value in values):
            fault = f"its {key} is {values}; restore the file"
            raise runlog.UserError(f"{run.folder / 'config.json'}: {fault}")
    if not isinstance(run.meta.get("num_parameters"), int):
        fault = "has no num_parameters, which is written at the end of training"
        remedy = "restore the file, or move the run away"
        raise runlog.UserError(f"{run.folder / 'meta.json'}: {fault}; {remedy}")
    if not run.has_ended:
        fault = f"is {run.status}; run the training command again"
        raise runlog.UserError(f"{run.folder}: {fault}")


def fit_of(run: Loaded) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a run's fit at the end of training."""
    path = run.folder / "curves.jsonl"
    row = last_row(path, "fit")
    if row is None:
        fault = "has no fit, which is written at the end of training; train the run again"
        raise runlog.UserError(f"{path}: {fault}")
    return np.array(row["x"], dtype=float), np.array(row["y"], dtype=float)


# ---- tables --------------------------------------------------------------------------------------


def hr2(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """HR Figs. 2 and 12: function approximation, from the runs of function_approximation.py in a
    folder."""
    return draw_runs(runs, out, where, variants, "hr2", "hr2_")


def fitted_runs(
    runs: Places, out: Path, where: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Path]:
    """The figures of function_approximation.py (HR Figs. 2 and 12), from its runs in a folder, in
    the same files as the script itself writes."""
    return draw_runs(runs, out, where, variants, "function_approximation")


def draw_runs(
    runs: Places,
    out: Path,
    where: Sequence[str],
    variants: Sequence[str],
    name: str,
    prefix: str = "",
) -> list[Path]:
    """function_approximation of a folder's runs with these settings. name: the subcommand."""
    if variants:
        text = f"{name} draws all networks of the runs; leave it out, or choose by --where"
        raise runlog.UserError(f"--variants {' '.join(variants)}: {text}")
    candidates = find_candidates(runs, "function_approximation", where)
    folders = [candidate.folder for candidate in candidates]
    function_approximation(folders, out, prefix)
    return []


def function_approximation(
    run_folders: Sequence[str | Path], out: str | Path, prefix: str = ""
) -> None:
    """HR Figs. 2 and 12 from the runs of function_approximation.py: shallow.png and deep.png, and
    their data in runs.csv, curves.csv, fits.csv and ratios.csv, all with `prefix` before the name;
    table1.png if `out` has a table1.csv. Prints the last errors."""
    out = Path(out)
    networks = fitted(run_folders)
    if not any(np.isfinite(network.errors(network.best)).any() for network in networks):
        fault = "every run has diverged, at every learning rate: there is no error to draw"
        folder = Path(run_folders[0]).parent
        raise runlog.UserError(f"--runs {folder}: {fault}; train with lower --learning-rates")
    with disk.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    files = [f"{prefix}{name}.csv" for name in (*DRAWN, "ratios")]
    check_free(out, files, [REGRESSION], [f"{prefix}shallow", f"{prefix}deep"])
    shallow = [network for network in networks if network.is_shallow]
    products = [network for network in shallow if network.is_product]
    deep = [network for network in networks if not network.is_shallow]

    runs, curves, fits, ratios = tables_of(networks, products)
    print_errors(networks)
    paths = []
    tables = {"runs": runs, "curves": curves, "fits": fits, "ratios": ratios}
    for name, rows in tables.items():
        if rows:
            path = out / f"{prefix}{name}.csv"
            paths.append(write_csv(path, rows, kinds=[REGRESSION]))
    if shallow:
        paths += record(out, prefix, "shallow", shallow, "Shallow networks (HR Figs. 2, 12a)")
    if deep:
        paths += record(out, prefix, "deep", [*products, *deep], "Deep networks (HR Fig. 12b)")
    if (out / "table1.csv").exists():
        paths += record_table1(out)
    print(*paths, sep="\n", flush=True)


def tables_of(networks: Sequence[Fitted], products: Sequence[Fitted]) -> tuple[list[dict], ...]:
    """Rows of runs.csv, curves.csv, fits.csv and ratios.csv."""
    runs = []
    curves = []
    for network in networks:
        for rate, members in network.runs.items():
            cell = {
                "activation": network.activation,
                "widths": " ".join(str(width) for width in network.widths),
                "parameters": network.num_parameters,
                "learning_rate": rate,
            }
            runs += run_rows(network, rate, cell)
            curves += curve_rows(members, cell)
    columns = {"x": fit_of(networks[0].middle_run())[0].tolist()}
    for network in networks:
        y = fit_of(network.middle_run())[1]
        columns[fit_column(network.label, network.best)] = y.tolist()
    fits = [dict(zip(columns, row)) for row in zip(*columns.values())]
    ratios = []
    for reference in products:
        for other in networks:
            if other is not reference:
                ratios += ratio_rows(reference, other)
    return runs, curves, fits, ratios


def run_rows(network: Fitted, rate: float, cell: dict) -> list[dict]:
    """A row per run of a network and learning rate."""
    rows = []
    layer = f"network/mlp/fc{len(network.widths)}"
    for run, error in zip(network.runs[rate], network.errors(rate).tolist()):
        row = {"run": run.folder.name, **cell, "seed": run.seed, "status": run.status}
        row |= {"last_error": error, "last_training_loss": run.last("losses/mse")}
        for name in ("srank", "dead_share", "dormant_share"):
            row[name] = run.last(f"{layer}/{name}")
        origin = run.provenance()
        for name in ("elapsed_s", "git", "dirty", "cpu", "gpu", "torch"):
            row[name] = origin[name]
        rows.append(row)
    return rows


def curve_rows(runs: Sequence[Loaded], cell: dict) -> list[dict]:
    """Lowest, median and highest error of the seeds at every step; the last value of a diverged
    seed is carried forward."""
    steps, values = aligned(runs, ERROR)
    known = np.isfinite(values).any(0)
    values = values[:, known]
    middle = np.nanmedian(values, 0).tolist()
    low = np.nanmin(values, 0).tolist()
    high = np.nanmax(values, 0).tolist()
    rows = []
    for index, step in enumerate(steps[known].tolist()):
        number = int(np.isfinite(values[:, index]).sum())  # without seeds that diverged before
        row = {"step": int(step), "n": number, "median": middle[index]}
        rows.append({**cell, **row, "min": low[index], "max": high[index]})
    return rows


def ratio_rows(reference: Fitted, other: Fitted) -> list[dict]:
    """Last error of `other` over that of `reference`, paired by seed, at each learning rate that
    both have and at the best of each: geometric mean with a 95 % interval, and the number of seeds
    in which it is above 1."""
    pairs = {f"{rate:g}": (rate, rate) for rate in reference.runs if rate in other.runs}
    pairs["best of each"] = reference.best, other.best
    rows = []
    for name, (rate, other_rate) in pairs.items():
        errors = errors_by_seed(reference, rate)
        other_errors = errors_by_seed(other, other_rate)
        shared = [seed for seed in errors if seed in other_errors]
        logarithms = [np.log(other_errors[seed]) - np.log(errors[seed]) for seed in shared]
        logarithms = np.array(logarithms)
        ratio, low, high = ratio_interval(logarithms)
        row = {"network": other.label, "reference": reference.label, "learning_rate": name}
        row |= {"n": len(shared), "ratio": ratio, "low": low, "high": high}
        rows.append(row | {"seeds_above_1": int((logarithms > 0).sum())})
    return rows


def errors_by_seed(network: Fitted, rate: float) -> dict[int, float]:
    """seed -> last error of a network at a learning rate."""
    pairs = zip(network.runs[rate], network.errors(rate))
    return {run.seed: error for run, error in pairs}


def print_errors(networks: Sequence[Fitted]) -> None:
    """Table of the last errors: a row per network, a column per learning rate."""
    rates = set()
    for network in networks:
        rates |= {*network.runs}
    rates = sorted(rates)
    rows = [["network", "parameters", *(f"lr {rate:g}" for rate in rates)]]
    for network in networks:
        row = [network.label, f"{network.num_parameters:,}"]
        for rate in rates:
            errors = np.array([np.nan])
            if rate in network.runs:
                errors = network.errors(rate)
            spread = spread_of(errors)
            row.append(f"{spread.middle:.3g} ({spread.low:.3g} to {spread.high:.3g})")
        rows.append(row)
    print_table(rows)
    print(
        "last error, mean squared, between the training points: median over seeds (best to worst)"
    )


# ---- figures -------------------------------------------------------------------------------------


def record(out: Path, prefix: str, name: str, networks: Sequence[Fitted], title: str) -> list[Path]:
    """Draw these networks from the tables in `out`. prefix: of all file names."""
    return record_figure(
        out,
        f"{prefix}{name}",
        REGRESSION,
        ("png",),
        caption=caption_of(networks, title),
        csv=[f"{prefix}{table}.csv" for table in DRAWN],
        networks=[network.label for network in networks],
    )


def caption_of(networks: Sequence[Fitted], title: str) -> list[str]:
    config = next(iter(networks[0].runs.values()))[0].config
    low, high = config["interval"]
    data = f"{config['num_points']} points in [{low:g}, {high:g}]"
    steps = f"{config['total_steps']:,} steps of Adam"
    return [
        title,
        f"y = 10 sin 7x + 15 sin 10x + 5 cos 5x, {data}, {steps}",
        "error: mean squared, between the points; last: median of the last tenth of the steps",
    ]


@dataclass
class Network:
    """A network as read from the tables."""

    label: str
    look: dict
    num_parameters: int
    errors: dict[float, np.ndarray]  # learning rate: last error of each seed
    curves: dict[float, np.ndarray]  # learning rate: (steps, 4) of step, lowest, median, highest
    best: float  # learning rate
    fit: np.ndarray  # of the points of fits.csv


def networks_in(
    run_rows: list[dict], curve_rows: list[dict], fit_rows: list[dict], labels: Sequence[str]
) -> list[Network]:
    """The networks of these labels, from the rows of runs.csv, curves.csv and fits.csv."""
    runs = defaultdict(list)  # label: rows
    for row in run_rows:
        runs[label_of(row)].append(row)
    points = defaultdict(lambda: defaultdict(list))  # label: learning rate: points
    for row in curve_rows:
        point = [float(row[name]) for name in ("step", "min", "median", "max")]
        points[label_of(row)][float(row["learning_rate"])].append(point)
    networks = []
    for label in labels:
        errors = defaultdict(list)
        for row in runs[label]:
            errors[float(row["learning_rate"])].append(float(row["last_error"]))
        errors = {rate: np.array(values) for rate, values in errors.items()}
        curves = {rate: np.array(values) for rate, values in points[label].items()}
        (best,) = (rate for rate in errors if fit_column(label, rate) in fit_rows[0])
        fit = np.array([float(row[fit_column(label, best)]) for row in fit_rows])
        look = style_of(runs[label][0]["activation"])
        count = int(runs[label][0]["parameters"])
        networks.append(Network(label, look, count, errors, curves, best, fit))
    return networks


def label_of(row: dict) -> str:
    """The network of a row of runs.csv or curves.csv."""
    return network_label(row["activation"], [int(width) for width in row["widths"].split()])


def draw(tables: dict[str, list[dict]], spec: dict) -> Figure:
    """Top: every network's fit at its best learning rate. Middle: error over the steps, a panel per
    learning rate. Bottom: last error against the learning rate and the number of parameters."""
    runs, curves, fits = tables.values()
    networks = networks_in(runs, curves, fits, spec["networks"])
    x = np.array([float(row["x"]) for row in fits])
    rates = set()
    for network in networks:
        rates |= {*network.errors}
    columns = min(4, max(len(networks), 2))
    rows = -(-len(networks) // columns)
    size = max(9.5, 2.6 * len(rates)), 2.3 * rows + 5.6
    figure = Figure(size, layout="constrained")
    heights = (2.3 * rows, 2.7, 2.9)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights)
    draw_fits(top, networks, x, rows, columns)
    draw_errors(middle, networks, sorted(rates))
    draw_last_errors(bottom, networks)
    handles = style.line_handles({network.label: network.look for network in networks})
    handles.append(Line2D([], [], **TRUTH, label="the function"))
    style.legend(bottom, handles)
    counts = []
    for network in networks:
        counts += [len(errors) for errors in network.errors.values()]
    style.caption(figure, *spec["caption"], spread_text(counts))
    return figure


def spread_text(counts: Sequence[int]) -> str:
    """What lines, bands and bars show, for the caption. counts: of seeds."""
    if max(counts) == 1:
        return "one seed, no bands"
    return f"median of {style.seeds_text(counts)} (fits too), bands and bars: best to worst"


def draw_fits(
    subfigure: SubFigure, networks: Sequence[Network], x: np.ndarray, rows: int, columns: int
) -> None:
    """Every network's fit at its best learning rate."""
    truth = 10 * np.sin(7 * x) + 15 * np.sin(10 * x) + 5 * np.cos(5 * x)
    panels = subfigure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for index, (panel, network) in enumerate(zip(panels, networks)):
        panel.plot(x, truth, **TRUTH)
        panel.plot(x, network.fit, color=network.look["color"], linewidth=1.5)
        panel.set_ylim(1.3 * truth.min(), 1.3 * truth.max())
        error = np.median(network.errors[network.best])
        text = f"learning rate {network.best:g}, error {error:.3g}"
        style.title(panel, f"{network.label}, {network.num_parameters:,} parameters\n{text}")
        panel.set(xlabel="x", ylabel="y" if index % columns == 0 else "")
    for panel in panels[len(networks) :]:
        panel.remove()


def draw_errors(subfigure: SubFigure, networks: Sequence[Network], rates: Sequence[float]) -> None:
    """Error over the steps, a panel per learning rate."""
    panels = subfigure.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    for panel, rate in zip(panels, rates):
        for index, network in enumerate(networks):
            if rate in network.curves:
                draw_error(panel, network, rate, index)
        axes.log_scale(panel)
        panel.set(xlim=(0, None), ylabel="error" if panel is panels[0] else "")
        panel.set_title(f"learning rate {rate:g}")
        style.steps_axis(panel, "steps (updates)")


def draw_error(panel: Axes, network: Network, rate: float, offset: int) -> None:
    """A network's median error and band. offset: of its markers, so that they do not coincide."""
    steps, low, middle, high = network.curves[rate].T
    every = (offset, max(1, len(steps) // 5))
    kept = low > 0
    color = network.look["color"]
    panel.fill_between(steps[kept], low[kept], high[kept], color=color, alpha=0.15, linewidth=0)
    look = {"linewidth": 1.5, "markersize": 4, "markevery": every}
    panel.plot(steps[kept], middle[kept], **network.look, **look)


def draw_last_errors(subfigure: SubFigure, networks: Sequence[Network]) -> None:
    """Last error against the learning rate and the number of parameters."""
    by_rate, by_count = subfigure.subplots(1, 2, sharey=True)
    for network in networks:
        spreads = {}
        for rate in sorted(network.errors):
            if np.isfinite(network.errors[rate]).all():
                spreads[rate] = spread_of(network.errors[rate])
        middles = [spread.middle for spread in spreads.values()]
        bars = np.array([spread.bars() for spread in spreads.values()]).reshape(-1, 2).T
        by_rate.errorbar(list(spreads), middles, bars, **network.look, capsize=3)

        best = spread_of(network.errors[network.best])
        if np.isfinite(best.high):
            look = {**network.look, "linestyle": "", "capsize": 3, "markersize": 7}
            bars = best.bars().reshape(2, 1)
            count = network.num_parameters
            by_count.errorbar(count, best.middle, bars, **look, label=network.label)
    for panel in (by_rate, by_count):
        axes.log_scale(panel, "x")
        axes.log_scale(panel)
    by_rate.set(xlabel="learning rate", ylabel="last error")
    rates = set()
    for network in networks:
        rates |= {*network.errors}
    by_rate.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
    axes.merged_ticks(by_rate, sorted(rates), axes.column_width(by_rate) - 0.8)
    label = "parameters (each network at its best learning rate)"
    by_count.set(xlabel=axes.wrapped(label, axes.column_width(by_count) - 0.3, 9))
    counts = sorted({network.num_parameters for network in networks})
    by_count.set_xlim(0.8 * counts[0], 1.25 * counts[-1])
    if len(counts) > 1:
        axes.merged_ticks(by_count, counts, axes.column_width(by_count) - 0.4)


REGRESSION = Kind("regression", draw)


# ---- Table 1 -------------------------------------------------------------------------------------


def record_table1(out: Path) -> list[Path]:
    """Draw table1.csv of a folder."""
    count = int(read_csv(out / "table1.csv")[0]["neurons"])
    text = "Dead neurons with and without a product (HR Table 1)"
    caption = [f"{text}: {count:,} neurons a point, 95 % intervals"]
    return record_figure(out, "table1", TABLE1, ("png",), caption=caption)


def draw_table1(rows: list[dict], spec: dict) -> Figure:
    """Fraction of dead neurons in simulated layers, with intervals; the closed forms as lines."""
    p = np.linspace(0, 1, 101)
    formulas = {"tanh": ("p^2", p**2), "sigmoid": ("p", p), "relu": ("2p - p^2", 2 * p - p**2)}
    figure = Figure((9.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (name, (formula, y)) in zip(panels, formulas.items()):
        product = product_of(name)
        panel.plot(p, p, color="0.6", linewidth=1, linestyle=":", label="p")
        panel.plot(p, y, color=style_of(product)["color"], linewidth=1, label=formula)
        for activation in (name, product):
            draw_simulated(panel, activation, rows_where(rows, activation=activation))
        margin = axes.BOUND_MARGIN
        limits = (-margin, 1 + margin)
        panel.set(xlabel="p: a branch is saturated", title=name, xlim=limits, ylim=limits)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("fraction of dead neurons")
    style.caption(figure, *spec["caption"])
    return figure


def draw_simulated(panel: Axes, activation: str, rows: list[dict]) -> None:
    """The simulated fractions of one activation."""
    x = [float(row["p"]) for row in rows]
    middle = np.array([float(row["dead_share"]) for row in rows])
    low = np.array([float(row["low"]) for row in rows])
    high = np.array([float(row["high"]) for row in rows])
    look = {**style_of(activation), "linestyle": "", "capsize": 3}
    bars = Spread(low, middle, high).bars()
    panel.errorbar(x, middle, bars, **look, label=f"{activation}, simulated")


TABLE1 = Kind("table1", draw_table1)
