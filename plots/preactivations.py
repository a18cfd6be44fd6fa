"""Densities of pre-activations: of one run, first and newest, and of many runs over training."""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import runlog
from plots import axes, style
from plots.layers import depth, read_rows
from plots.reading import Loaded, Places, find_runs, read_config, step_unit
from plots.recording import Kind, columns, figure_place, rows_where, write_figure
from plots.tables import print_table
from plots.variants import BLACK, RED, SKY, in_order, load

FILLED = {"fill": True, "color": SKY, "alpha": 0.8}
LINE = {"color": BLACK, "linewidth": 1.1}
BINS = 80  # of a heat map
MAX_MEASUREMENTS = 40  # most steps of a heat map
QUANTILES = {"q01": 0.01, "median": 0.5, "q99": 0.99}
DENSITIES = [f"d{index:02d}" for index in range(BINS)]  # columns of the CSV
MAX_COLUMNS = 5  # activations side by side
FITTED = 5.0  # |x| up to which the initial coefficients are fitted


# ---- one run -------------------------------------------------------------------------------------


@style.with_style
def preactivations_figure(folder: Path) -> Figure | None:
    """Histograms of the pre-activations as densities: the newest step filled, the first as a line;
    log y. None without any."""
    found = read_rows(folder, "histograms.jsonl", "preactivations")
    if not found:
        return None
    figure, panels = style.panels_of_layers(found, (2.7, 2.0), "density")
    first = set()  # steps that are drawn
    newest = set()
    for key, panel in panels.items():
        rows = found[key]["preactivations"] if key in found else []
        lowest = np.inf
        for row in rows:
            density, edges = density_of(row)
            if density is None:
                continue
            lowest = min(lowest, density[density > 0].min())
            is_newest = row is rows[-1]
            if is_newest:
                newest.add(row["step"])
                panel.stairs(density, edges, **FILLED, zorder=2)
            else:
                first.add(row["step"])
                panel.stairs(density, edges, **LINE, zorder=3)
        if np.isfinite(lowest):
            axes.log_scale(panel)
            panel.set_ylim(bottom=lowest / 2)
        else:
            style.note(panel, "not finite" if rows else "not logged")
    handles = [Line2D([], [], **LINE, label=f"first (step {step:,})") for step in sorted(first)[:1]]
    handles += [Patch(**FILLED, label=f"newest (step {step:,})") for step in sorted(newest)[-1:]]
    style.legend(figure, handles)
    style.run_title(figure, folder, "Pre-activations")
    return figure


def density_of(row: dict) -> tuple[np.ndarray | None, np.ndarray]:
    """A histogram's density and edges; the density is None if it is empty or an edge is not
    finite."""
    counts = np.asarray(row["counts"], dtype=float)
    edges = np.asarray(row["edges"], dtype=float)
    if not np.isfinite(edges).all() or not counts.sum():
        return None, edges
    return counts / counts.sum() / np.diff(edges), edges


# ---- histories of many runs ----------------------------------------------------------------------


@dataclass
class History:
    """The distribution of one layer's pre-activations over training, in one run and network, as
    cumulative distribution functions from histograms."""

    steps: np.ndarray  # (steps,)
    edges: list[np.ndarray]  # for each step (bins + 1,)
    fractions: list[np.ndarray]  # for each step the fraction of values below each edge, (bins + 1,)
    has_diverged: bool = False  # the run has: its last distribution is carried forward

    def below(self, x: np.ndarray) -> np.ndarray:
        """Fraction of the values below x (n,), linear within a bin: (steps, n)."""
        pairs = zip(self.edges, self.fractions)
        return np.array([np.interp(x, edges, fractions) for edges, fractions in pairs])

    def smallest(self) -> np.ndarray:
        """Smallest pre-activation on the batch, (steps,)."""
        return np.array([edges[0] for edges in self.edges])

    def largest(self) -> np.ndarray:
        """Largest pre-activation on the batch, (steps,)."""
        return np.array([edges[-1] for edges in self.edges])

    def largest_magnitude(self) -> np.ndarray:
        """Largest absolute pre-activation on the batch, (steps,)."""
        return np.array([np.abs(edges).max() for edges in self.edges])

    def has(self, step: int) -> bool:
        """Whether the distribution is known at a step: it was measured, or is carried forward."""
        return step in self.steps or (self.has_diverged and step > self.steps[-1])

    def at(self, steps: Collection[int]) -> "History":
        """The history at these steps only, at each of which it `has` a distribution."""
        wanted = np.array(sorted(steps), dtype=int)
        places = np.searchsorted(self.steps, wanted, side="right") - 1
        edges = [self.edges[place] for place in places]
        fractions = [self.fractions[place] for place in places]
        return History(wanted, edges, fractions, self.has_diverged)

    def until(self, step: float) -> "History":
        """The history up to a step."""
        return self.at(self.steps[self.steps <= step].tolist())


def histories(folder: Path) -> dict[tuple[str, str], History]:
    """(layer, network) -> History from histograms.jsonl, of the steps whose values are finite."""
    found = {}
    histograms = read_rows(folder, "histograms.jsonl", "preactivations", keep_all=True)
    for key, parts in histograms.items():
        rows = [row for row in parts["preactivations"] if density_of(row)[0] is not None]
        steps = np.array([row["step"] for row in rows], dtype=int)
        edges = [np.array(row["edges"]) for row in rows]
        fractions = []
        for row in rows:
            below = np.cumsum(row["counts"]) / sum(row["counts"])
            fractions.append(np.append(0.0, below))
        found[key] = History(steps, edges, fractions)
    return found


@dataclass
class Pool:
    """The histories of the runs of one activation."""

    # (network, layer): at the steps at which all are known; both twin critics are "critics"
    layers: dict[tuple[str, str], list[History]]
    notes: list[str]  # what is left out, cut or carried forward

    @property
    def histories(self) -> list[History]:
        """Those of all layers that have a step."""
        histories = itertools.chain.from_iterable(self.layers.values())
        return [history for history in histories if len(history.steps)]

    @property
    def first(self) -> float:
        """The first step; inf without any."""
        return min((history.steps[0] for history in self.histories), default=np.inf)

    @property
    def last(self) -> float:
        """The last step; -inf without any."""
        return max((history.steps[-1] for history in self.histories), default=-np.inf)


def pools_of(run_folders: Sequence[str | Path]) -> dict[str, Pool]:
    """activation -> the histories of its runs."""
    return {name: pooled(name, runs) for name, runs in load(run_folders).items()}


def pooled(activation: str, runs: Sequence[Loaded]) -> Pool:
    """Histories at the steps that all runs of an activation have. A run that has diverged carries
    its last distribution forward."""
    found = defaultdict(list)
    ends = {}  # index of a run: the last step at which it was measured
    for index, run in enumerate(runs):
        end = run.meta.get("step") if run.has_diverged else None
        for (layer, network), history in histories(run.folder).items():
            if end is not None:  # later measurements belong to no network
                history = history.until(end)
            if not len(history.steps):
                continue
            history.has_diverged = run.has_diverged
            ends[index] = max(ends.get(index, 0), int(history.steps[-1]))
            is_critic = re.fullmatch(r"qf\d", network) is not None
            found["critics" if is_critic else network, layer].append(history)
    layers = {}
    for key in sorted(found, key=layer_order):
        members = found[key]
        steps = set().union(*(history.steps.tolist() for history in members))
        shared = [step for step in steps if all(history.has(step) for history in members)]
        layers[key] = [history.at(shared) for history in members]
    pool = Pool(layers, [])
    pool.notes = pool_notes(activation, runs, ends, pool.last)
    return pool


def pool_notes(
    activation: str, runs: Sequence[Loaded], ends: dict[int, int], last: float
) -> list[str]:
    """Lines about the runs of an activation that are left out, cut or carried forward. ends: index
    of a run -> the last step at which it was measured; last: the last that all have."""
    diverged = [index for index, run in enumerate(runs) if run.has_diverged]
    measured = [index for index in diverged if index in ends]
    number = len(runs)
    notes = []
    if measured:
        text = "diverged (last measurement carried forward)"
        notes.append(f"{activation}: {len(measured)} of {number} runs {text}")
    early = len(diverged) - len(measured)
    if early:
        text = "diverged before the first measurement, left out"
        notes.append(f"{activation}: {early} of {number} runs {text}")
    without = number - len(ends) - early
    if without:
        notes.append(f"{activation}: {without} of {number} runs have no measurement, left out")
    if ends and np.isinf(last):
        notes.append(f"left out: {activation}, whose runs were measured at no common step")
    elif any(end > last for index, end in ends.items() if index not in diverged):
        text = f"cut at step {last:,.0f}, the last at which all its runs have been measured"
        notes.append(f"{activation}: {text}")
    return notes


def last_of_all(pools: dict[str, Pool]) -> float:
    """The last step at which every run that has not diverged has been measured; inf if there is no
    such run."""
    ends = [np.inf]
    for pool in pools.values():
        ends += [history.steps[-1] for history in pool.histories if not history.has_diverged]
    return min(ends)


def layer_order(key: tuple[str, str]) -> tuple:
    """Sort key of (network, layer)."""
    network, layer = key
    return network, depth(layer)


# ---- many runs over training ---------------------------------------------------------------------


def preactivations(runs: Places, out: Path) -> list[Path]:
    """Pre-activations of every layer over training, activations side by side: a figure and a
    table."""
    place = figure_place(out)
    folders = find_runs(runs)
    print_preactivation_table(folders)
    return write_preactivations(folders, *place)


def write_preactivations(
    run_folders: Sequence[str | Path],
    out: Path,
    name: str,
    endings: Sequence[str] = ("png", "pdf"),
) -> list[Path]:
    """Write the figure of the runs' pre-activations over training."""
    pools = pools_of(run_folders)
    rows = rows_of_pools(pools)
    notes = list(itertools.chain.from_iterable(pool.notes for pool in pools.values()))
    configs = [read_config(Path(folder)) for folder in run_folders]
    names = in_order(config["activation"] for config in configs)
    caption = [f"Pre-activations over training, {configs[0]['env_id']}"]
    if notes:
        caption.append("; ".join(notes))
    return write_figure(
        out,
        name,
        PREACTIVATIONS,
        rows,
        endings,
        caption=caption,
        activations=names,
        unit=step_unit(configs[0]),
    )


def preactivation_rows(run_folders: Sequence[str | Path]) -> list[dict]:
    """rows_of_pools of these runs."""
    return rows_of_pools(pools_of(run_folders))


def rows_of_pools(pools: dict[str, Pool]) -> list[dict]:
    """Points of `draw`, a row per layer, activation and step: quantiles, the smallest and largest
    value of any run (since the row before), and the densities d00, d01, ... in bins between
    first_edge and last_edge whose edges are evenly spaced in arcsinh (fine near 0, coarse far out).
    Seeds and twin critics have equal weights. Raises UserError: no run has been measured, or those
    of no activation at a common step."""
    keys = set()
    for pool in pools.values():
        keys |= {*pool.layers}
    if not keys:
        fault = "the runs have no histograms yet; train with --metrics-frequency above 0"
        raise runlog.UserError(fault)
    if not any(pool.histories for pool in pools.values()):
        fault = "no two runs of an activation have been measured at a common step"
        raise runlog.UserError(f"{fault}; give runs with one --metrics-frequency")
    rows = []
    for key in sorted(keys, key=layer_order):
        members = {}  # activation: histories
        for name, pool in pools.items():
            if key in pool.layers and len(pool.layers[key][0].steps):
                members[name] = pool.layers[key]
        if members:
            x = common_bins(members)
            for name, group in members.items():
                rows += layer_rows(key, name, group, x)
    return rows


def common_bins(members: dict[str, list[History]]) -> np.ndarray:
    """Edges of BINS bins and their middles, evenly spaced in arcsinh, over all values of a
    layer."""
    smallest = np.inf
    largest = -np.inf
    for group in members.values():
        smallest = min(smallest, *(history.smallest().min() for history in group))
        largest = max(largest, *(history.largest().max() for history in group))
    first, last = np.arcsinh([smallest, largest]) * 1.03
    return np.sinh(np.linspace(first, last, 2 * BINS + 1))


def layer_rows(
    key: tuple[str, str], activation: str, group: list[History], x: np.ndarray
) -> list[dict]:
    """The rows of one layer and activation. x: of common_bins."""
    network, layer = key
    fraction = np.mean([history.below(x) for history in group], axis=0)
    density = np.diff(fraction[:, ::2], axis=1) / np.diff(x[::2])
    steps = group[0].steps
    number = min(len(steps), MAX_MEASUREMENTS)
    kept = np.unique(np.linspace(0, len(steps) - 1, number).round().astype(int))
    since = np.append(0, kept[:-1] + 1)  # where the row before ends
    smallest = np.min([history.smallest() for history in group], axis=0)
    largest = np.max([history.largest() for history in group], axis=0)
    smallest = np.minimum.reduceat(smallest, since)
    largest = np.maximum.reduceat(largest, since)
    twins = 2 if network == "critics" else 1
    rows = []
    for place, index in enumerate(kept):
        row = {
            "network": network,
            "layer": layer,
            "activation": activation,
            "n": len(group) // twins,
            "step": int(steps[index]),
            "smallest": float(smallest[place]),
        }
        for name, level in QUANTILES.items():
            row[name] = float(np.interp(level, fraction[index], x))
        row["largest"] = float(largest[place])
        row["first_edge"] = float(x[0])
        row["last_edge"] = float(x[-1])
        for name, value in zip(DENSITIES, density[index]):
            row[name] = float(f"{value:.3g}") if value > 1e-5 else 0
        rows.append(row)
    return rows


def draw(rows: list[dict], spec: dict) -> Figure:
    """Density of the pre-activations over training as a heat map, a row per layer, a column per
    activation; lines: quantiles (1, 50, 99 %), smallest and largest value. Many activations are
    split into several blocks of rows."""
    layers = list(dict.fromkeys((row["network"], row["layer"]) for row in rows))
    blocks = style.rows_of(spec["activations"], MAX_COLUMNS)
    number = len(blocks[0])
    width = style.size_of_columns(number, 4.2, 1.0) * number + 1
    size = max(width, 5.5), 2.1 * len(layers) * len(blocks) + 1.2
    figure = Figure(size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # else last and first steps of neighbours touch
    shape = len(layers) * len(blocks), number
    grid = figure.subplots(*shape, squeeze=False, sharex=True)
    mesh = None
    for index, names in enumerate(blocks):
        block = grid[index * len(layers) : (index + 1) * len(layers)]
        for line, (network, layer) in zip(block, layers):
            members = rows_where(rows, network=network, layer=layer)
            mesh = draw_line(line, members, names, f"{network}, {layer}") or mesh
        for panel in block[:, len(names) :].ravel():
            panel.set_axis_off()
    for panel in grid[-1]:
        panel.set_xlabel(spec.get("unit", "environment steps"))
    handles = [
        Line2D([], [], color=RED, label="median"),
        Line2D([], [], color=RED, linestyle=":", label="1 and 99 %"),
        Line2D([], [], color=BLACK, linewidth=0.8, label="smallest and largest of all runs"),
    ]
    style.legend(figure, handles)
    places = list(grid.ravel())
    label = "density (1 / unit of x)"
    figure.colorbar(mesh, ax=places, label=label, extend="both", pad=0.02)
    style.caption(figure, *spec["caption"])
    return figure


def draw_line(line: Sequence[Axes], rows: list[dict], names: Sequence[str], layer: str):
    """Draw the heat maps of one layer for some activations, on one y axis; returns one of them."""
    mesh = None
    first = None  # panel with data, whose y axis the others share
    for panel, name in zip(line, names):
        members = rows_where(rows, activation=name)
        number = members[0]["n"] if members else 0
        panel.grid(False)
        beside = 1.0 / len(line)  # inches of the colour bar, divided among the panels
        style.title(panel, f"{name} (n = {number}), {layer}", beside=beside)
        if not members:
            style.absent(panel)
            continue
        if first is None:
            first = panel
        else:
            panel.sharey(first)
            panel.tick_params(labelleft=False)
        mesh = draw_layer(panel, members)
    line[0].set_ylabel("pre-activation x")
    return mesh


def draw_layer(panel: Axes, rows: list[dict]):
    """Draw a layer's heat map and lines; returns the map."""
    (steps,) = columns(rows, "step")
    ends = [float(rows[0][name]) for name in ("first_edge", "last_edge")]
    x = np.sinh(np.linspace(*np.arcsinh(ends), BINS + 1))
    if len(steps) > 1:
        middles = (steps[1:] + steps[:-1]) / 2
        borders = np.concatenate([[steps[0]], middles, [steps[-1]]])
    else:
        borders = steps[0] + [-0.5, 0.5]
    density = np.maximum(columns(rows, *DENSITIES), 1e-12)
    norm = LogNorm(1e-3, 3.0)
    mesh = panel.pcolormesh(borders, x, density, norm=norm, cmap="Blues", rasterized=True)
    for values, line in zip(columns(rows, *QUANTILES), (":", "-", ":")):
        panel.plot(steps, values, color=RED, linestyle=line, linewidth=1.2)
    for values in columns(rows, "smallest", "largest"):
        panel.plot(steps, values, color=BLACK, linewidth=0.8)
    style.steps_axis(panel, "")
    if np.abs(x).max() > 100:
        axes.log_scale(panel, linear=1.0)
    return mesh


PREACTIVATIONS = Kind("preactivations", draw)


# ---- a table -------------------------------------------------------------------------------------


def preactivation_table(
    run_folders: Sequence[str | Path], bound: float = FITTED
) -> list[list[str]]:
    """Header and a row per activation and layer: number of histories (seeds, twice for twin
    critics), then means over them: largest |x| at the first and newest measurement and over all,
    and the newest fraction of |x| above a bound. Newest: the last step at which all runs that have
    not diverged have been measured."""
    return rows_of(pools_of(run_folders), bound)


def rows_of(pools: dict[str, Pool], bound: float) -> list[list[str]]:
    """preactivation_table of pooled histories."""
    end = last_of_all(pools)
    header = ["activation", "layer", "n", "max |x| first", "max |x| newest", "max |x| ever"]
    rows = [[*header, f"newest |x| > {bound:g}"]]
    ends = np.array([-bound, bound])
    for name, pool in pools.items():
        for (network, layer), group in pool.layers.items():
            measured = [history.until(end) for history in group]
            measured = [history for history in measured if len(history.steps)]
            if not measured:
                continue
            largest = [history.largest_magnitude() for history in measured]
            inside = [np.diff(history.below(ends)[-1]) for history in measured]
            means = (
                np.mean([values[0] for values in largest]),
                np.mean([values[-1] for values in largest]),
                np.mean([values.max() for values in largest]),
            )
            outside = f"{100 * (1 - np.mean(inside)):.2f} %"
            cells = [f"{mean:.1f}" for mean in means]
            rows.append([name, f"{network} {layer}", f"{len(measured)}", *cells, outside])
    return rows


def print_preactivation_table(run_folders: Sequence[str | Path]) -> None:
    """Print preactivation_table, aligned, the step at which it is cut, if any, and what is left
    out or carried forward."""
    pools = pools_of(run_folders)
    print_table(rows_of(pools, FITTED))
    print("over the measured batches; means over n histories: one per seed, two with twin critics")
    end = last_of_all(pools)
    late = [name for name, pool in pools.items() if end < pool.first < np.inf]
    further = [name for name, pool in pools.items() if pool.last > end and name not in late]
    if further:
        text = f"cut at step {end:,}, the last at which all runs have been measured"
        print(f"{text}; later measurements of {', '.join(further)} are left out")
    for name in late:
        text = f"first measured at step {pools[name].first:,}, and another run only up to {end:,}"
        print(f"not in the table: {name}, {text}")
    for pool in pools.values():
        for note in pool.notes:
            print(note)
