"""preactivations."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

import runlog
from plots.reading import Loaded, _depth, read_config, read_rows
from plots.recording import _columns, write_figure
from plots.style import RC, _caption, _panels, _tell, _title
from plots.variants import BLACK, RED, SKY, STYLES, load

FILLED, LINE = {"fill": True, "color": SKY, "alpha": 0.8}, {"color": BLACK, "linewidth": 1.1}


@matplotlib.rc_context(RC)
def preactivations_figure(folder: Path) -> Figure | None:
    """Histograms of the pre-activations as densities: the newest step filled, the first as a line; log y."""
    found = read_rows(folder, "histograms.jsonl", "preactivations")
    if not found:
        return None
    figure, axes = _panels(found, (2.7, 2.0), "density")
    steps = set()
    for key, panel in axes.items():
        rows = found[key]["preactivations"] if key in found else []
        lowest = np.inf
        for row in rows:
            counts, edges = (np.asarray(row[name], dtype=float) for name in ("counts", "edges"))
            if not np.isfinite(edges).all() or not counts.sum():
                continue
            density = counts / counts.sum() / np.diff(edges)
            lowest = min(lowest, density[density > 0].min())
            newest = row is rows[-1]
            steps.add((row["step"], newest))
            panel.stairs(density, edges, **(FILLED if newest else LINE), zorder=2 if newest else 3)
        if np.isfinite(lowest):
            panel.set_yscale("log")
            panel.set_ylim(bottom=lowest / 2)
        else:
            _tell(panel, "not finite")
    handles = [
        Line2D([], [], **LINE, label=f"first (step {step:,})")
        for step, newest in steps
        if not newest
    ][:1]
    handles += [
        Patch(**FILLED, label=f"newest (step {step:,})") for step, newest in steps if newest
    ][:1]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    _title(figure, folder, "Pre-activations")
    return figure


@dataclass
class History:
    """Histograms of one layer's pre-activations over training, of one run and network; distribution functions."""

    steps: np.ndarray  # (steps,)
    edges: list[np.ndarray]  # for each step (bins + 1,)
    shares: list[np.ndarray]  # for each step the share of values below each edge, (bins + 1,)

    def below(self, x: np.ndarray) -> np.ndarray:
        """Share of the values below x (n,), linear within a bin: (steps, n)."""
        return np.array([np.interp(x, e, share) for e, share in zip(self.edges, self.shares)])

    def largest(self) -> np.ndarray:
        """Largest absolute pre-activation on the batch, (steps,)."""
        return np.array([np.abs(edges).max() for edges in self.edges])


def histories(folder: Path) -> dict[tuple[str, str], History]:
    """(layer, network) -> History from histograms.jsonl."""
    found = {}
    for key, rows in read_rows(folder, "histograms.jsonl", "preactivations", every=True).items():
        rows = [row for row in rows["preactivations"] if sum(row["counts"])]
        shares = [np.append(0.0, np.cumsum(row["counts"])) / sum(row["counts"]) for row in rows]
        found[key] = History(
            np.array([r["step"] for r in rows]), [np.array(r["edges"]) for r in rows], shares
        )
    return found


def pooled(runs: list[Loaded]) -> dict[tuple[str, str], list[History]]:
    """(network, layer) -> histories of the runs, at the steps that all have; twin critics are both "critics"."""
    found = defaultdict(list)
    for run in runs:
        for (layer, network), history in histories(run.folder).items():
            found["critics" if re.fullmatch(r"qf\d", network) else network, layer].append(history)
    for each in found.values():
        common = set.intersection(*(set(h.steps.tolist()) for h in each))
        for k, h in enumerate(each):
            kept = [i for i, step in enumerate(h.steps) if step in common]
            each[k] = History(
                h.steps[kept], [h.edges[i] for i in kept], [h.shares[i] for i in kept]
            )
    return dict(sorted(found.items(), key=lambda item: (item[0][0], _depth(item[0][1]))))


BINS, MEASURES_SHOWN = 80, 40  # of a heat map: of the pre-activation; steps at most


def preactivation_rows(run_folders: Sequence[str | Path]) -> list[dict]:
    """Points of `draw_preactivations`, a row per layer, activation and step: quantiles, smallest and largest value that
    any run saw (since the row before), and the densities d00, d01, ... in bins between first_edge and last_edge whose
    edges are evenly spaced in arcsinh (fine near 0, coarse far out). Seeds and twin critics weigh the same."""
    groups = {name: pooled(runs) for name, runs in load(run_folders).items()}
    keys = sorted(
        {key for group in groups.values() for key in group},
        key=lambda key: (key[0], _depth(key[1])),
    )
    if not keys:
        raise runlog.UserError(
            "the runs have no histograms yet; train with --metrics-frequency above 0"
        )
    rows = []
    for key in keys:
        shown = {
            name: group[key]
            for name, group in groups.items()
            if key in group and len(group[key][0].steps)
        }
        ends = np.array(
            [e[[0, -1]] for each in shown.values() for h in each for e in h.edges]
        ).reshape(-1, 2)
        for name, each in shown.items():
            first, last = np.arcsinh([ends.min(), ends.max()]) * 1.03
            x = np.sinh(np.linspace(first, last, 2 * BINS + 1))
            share = np.mean([h.below(x) for h in each], axis=0)
            density = np.diff(share[:, ::2], axis=1) / np.diff(x[::2])
            low, high = (np.array([[e[i] for e in h.edges] for h in each]) for i in (0, -1))
            steps = each[0].steps
            kept = np.unique(
                np.linspace(0, len(steps) - 1, min(len(steps), MEASURES_SHOWN)).round().astype(int)
            )
            since = np.append(0, kept[:-1] + 1)
            low, high = (
                np.minimum.reduceat(low.min(0), since),
                np.maximum.reduceat(high.max(0), since),
            )
            own = {"network": key[0], "layer": key[1], "activation": name}
            own |= {"n": len(each) // (2 if key[0] == "critics" else 1)}
            for k, i in enumerate(kept):
                row = own | {"step": int(steps[i]), "smallest": float(low[k])}
                row |= {q: float(np.interp(level, share[i], x)) for q, level in QUANTILES.items()}
                row |= {
                    "largest": float(high[k]),
                    "first_edge": float(x[0]),
                    "last_edge": float(x[-1]),
                }
                rows.append(
                    row
                    | {
                        f"d{b:02d}": float(f"{d:.3g}") if d > 1e-5 else 0
                        for b, d in enumerate(density[i])
                    }
                )
    return rows


QUANTILES = {"q01": 0.01, "median": 0.5, "q99": 0.99}


def draw_preactivations(rows: list[dict], spec: dict) -> Figure:
    """Rows of preactivation_rows: density of the pre-activations over training as a heat map, a row per layer, a column
    per activation; lines: quantiles (1, 50, 99 %), smallest and largest value. spec: activations in their order."""
    layers = list(dict.fromkeys((row["network"], row["layer"]) for row in rows))
    names = spec["activations"]
    figure = Figure((4.2 * len(names) + 1, 2.1 * len(layers) + 1), layout="constrained")
    grid = figure.subplots(len(layers), len(names), squeeze=False, sharex=True, sharey="row")
    norm, mesh = LogNorm(1e-3, 3.0), None
    for line, layer in zip(grid, layers):
        for panel, name in zip(line, names):
            mine = [
                r for r in rows if (r["network"], r["layer"], r["activation"]) == (*layer, name)
            ]
            panel.grid(False)
            panel.set_title(f"{name} (n = {mine[0]['n'] if mine else 0}), {', '.join(layer)}")
            if not mine:
                _tell(panel, "no data")
                continue
            shown = ("step", *QUANTILES, "smallest", "largest", *(f"d{b:02d}" for b in range(BINS)))
            steps, low, median, high, smallest, largest, *density = _columns(
                mine, ("activation", name), *shown
            )
            first, last = np.arcsinh([float(mine[0][end]) for end in ("first_edge", "last_edge")])
            x, middles = np.sinh(np.linspace(first, last, BINS + 1)), (steps[1:] + steps[:-1]) / 2
            borders = (
                np.concatenate([[steps[0]], middles, [steps[-1]]])
                if len(steps) > 1
                else steps[0] + [-0.5, 0.5]
            )
            values = np.maximum(density, 1e-12)
            mesh = panel.pcolormesh(borders, x, values, norm=norm, cmap="Blues", rasterized=True)
            for values, look in ((low, ":"), (median, "-"), (high, ":")):
                panel.plot(steps, values, color=RED, linestyle=look, linewidth=1.2)
            for values in (smallest, largest):
                panel.plot(steps, values, color=BLACK, linewidth=0.8)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            if np.abs(x).max() > 100:
                panel.set_yscale("symlog", linthresh=1.0)
        line[0].set_ylabel("pre-activation x")
    for panel in grid[-1]:
        panel.set_xlabel("environment steps")
    handles = [
        Line2D([], [], color=RED, label="median"),
        Line2D([], [], color=RED, linestyle=":", label="1 and 99 %"),
    ]
    handles.append(
        Line2D([], [], color=BLACK, linewidth=0.8, label="smallest and largest of all runs")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.colorbar(
        mesh, ax=list(grid.ravel()), label="density (1 / unit of x)", extend="both", pad=0.02
    )
    _caption(figure, *spec["caption"])
    return figure


def write_preactivations(
    run_folders: Sequence[str | Path], out: Path, name: str, kinds=("png", "pdf")
) -> list[Path]:
    """write_figure of the runs' pre-activations over training."""
    rows, configs = (
        preactivation_rows(run_folders),
        [read_config(Path(folder)) for folder in run_folders],
    )
    found = {config["activation"] for config in configs}
    names = [each for each in (*STYLES, *sorted(found - {*STYLES})) if each in found]
    told = [f"Pre-activations over training, {configs[0]['env_id']}"]
    return write_figure(out, name, "preactivations", rows, kinds, caption=told, activations=names)


def preactivation_table(run_folders: Sequence[str | Path], limit: float = 5.0) -> list[list[str]]:
    """Header and a row per activation and layer: runs' histories (seeds, twice for twin critics), then means over them:
    largest |x| at the first and newest measure and of all, newest share of |x| > limit (5: end of the fitted range)."""
    rows = [
        [
            "activation",
            "layer",
            "n",
            "max |x| first",
            "max |x| newest",
            "max |x| ever",
            f"newest |x| > {limit:g}",
        ]
    ]
    for name, runs in load(run_folders).items():
        for (network, layer), each in pooled(runs).items():
            values = [
                (h.largest(), np.diff(h.below(np.array([-limit, limit]))[-1]))
                for h in each
                if len(h.steps)
            ]
            if values:
                cells = [
                    f"{np.mean([pick(m) for m, _ in values]):.1f}"
                    for pick in (lambda m: m[0], lambda m: m[-1], max)
                ]
                outside = f"{100 * (1 - np.mean([inside for _, inside in values])):.2f} %"
                rows.append([name, f"{network} {layer}", f"{len(values)}", *cells, outside])
    return rows
