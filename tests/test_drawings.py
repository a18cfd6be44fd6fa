"""Each kind of figure, drawn with 1, 2 and 9 variants, 1 and 10 seeds, long names and missing
cells, and rendered by matplotlib: none has a fault that a reader would notice.

`pytest -q tests/test_drawings.py` (about 60 s).
"""

import itertools
import json

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from test_paper_figures import write_run

import figures
import plots.axes
import plots.continual
import plots.league
import plots.panels
import plots.q_parts
import plots.redraw
import plots.regression
import plots.run
import plots.style
import plots.variants
import runlog

LONG = "tanh*tanh*sigmoid+relu*silu*softplus+gelu"
VARIANTS = {  # label: activation
    "identity*silu": "identity*silu",
    "tanh_hr": "tanh_hr",
    LONG: LONG,
    "relu": "relu",
    "rational": "rational",
    "rational, LayerNorm, decay 0.1": "rational",
    "crational": "crational",
    "crational, no |x/c|^d": "crational",
    "crational, init 0.25, learning rate 5e-05": "crational",
}
CASES = [*itertools.product((1, 2, 9), (1, 10))]  # variants, seeds
STEPS = (1_000.0, 2_000.0, 3_000.0, 250_000.0)
MAX_WIDTH = 15.0  # inches
DPI = 72


def chosen(number: int) -> dict[str, str]:
    """The first variants; a single one has the longest name."""
    names = [LONG] if number == 1 else list(VARIANTS)[:number]
    return {name: VARIANTS[name] for name in names}


# ---- what a reader would call a fault ------------------------------------------------------------


def faults(figure: Figure) -> list[str]:
    """Texts outside of the canvas or on top of one another, axes with fewer than two labels,
    captions of many lines, a width that fits no page."""
    found = []
    if figure.get_figwidth() > MAX_WIDTH:
        found.append(f"{figure.get_figwidth():.1f} inches wide")
    figure.set_dpi(DPI)
    plots.style.without_markup(figure)
    canvas = FigureCanvasAgg(figure)
    with matplotlib.rc_context({"text.hinting": "none"}):  # as wide as at a finer resolution
        canvas.draw()
    renderer = canvas.get_renderer()
    texts = {}
    for number, panel in enumerate(figure.axes):
        if not panel.axison:
            continue
        labels = [panel.title, panel._left_title, panel.xaxis.label, panel.yaxis.label]
        labels += [panel.xaxis.offsetText, panel.yaxis.offsetText]
        for label in labels:
            if label.get_visible() and label.get_text().strip():
                texts[f"{label.get_text()!r} of {number}"] = label
        for name in "xy":
            shown = tick_labels(panel, name)
            for label in shown:
                texts[f"{name} tick {label.get_text()!r} of {number}"] = label
            if few_labels(panel, name):
                found.append(f"fewer than two labels at {name} of {number}: {described(panel)}")
    for part in [figure, *figure.subfigs]:
        if part._suptitle is not None and part._suptitle.get_text():
            texts[f"title {part._suptitle.get_text()!r}"] = part._suptitle
            if part._suptitle.get_text().count("\n") >= plots.style.MAX_LINES:
                found.append(f"a caption of many lines: {part._suptitle.get_text()!r}")
        for legend in part.legends:
            texts["legend"] = legend
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts.values()])
    names = list(texts)
    width, height = figure.bbox.size
    for name, (left, bottom, right, top) in zip(names, boxes):
        if left < -1 or bottom < -1 or right > width + 1 or top > height + 1:
            found.append(f"outside of the canvas: {name}")
    for one, other in itertools.combinations(range(len(names)), 2):
        overlap = np.minimum(boxes[one, 2:], boxes[other, 2:])
        overlap -= np.maximum(boxes[one, :2], boxes[other, :2])
        if overlap.min() > 1.5:  # pixels
            found.append(f"overlapping: {names[one]} and {names[other]}")
    return found


def described(panel) -> str:
    return panel.get_title() or panel.get_title("left") or panel.get_ylabel()


def tick_labels(panel, name: str) -> list:
    """The labels of an axis that are drawn."""
    axis = panel.xaxis if name == "x" else panel.yaxis
    drawn = [tick.label1 for tick in axis._update_ticks()]
    drawn += [tick.label2 for tick in axis._update_ticks()]
    return [label for label in drawn if label.get_visible() and label.get_text()]


def few_labels(panel, name: str) -> bool:
    """Whether an axis, and all that share it, has fewer than two labels. An axis of names may
    have one, if there is one variant."""
    axis = panel.xaxis if name == "x" else panel.yaxis
    if isinstance(axis.get_major_locator(), FixedLocator):
        return False
    is_absent = any(text.get_text() in ("not logged", "no data") for text in panel.texts)
    siblings = getattr(panel, f"get_shared_{name}_axes")().get_siblings(panel)
    return not is_absent and max(len(tick_labels(sibling, name)) for sibling in siblings) < 2


def test_faults_are_found():
    figure = Figure((4, 3))
    left, right = figure.subplots(1, 2)
    for panel in (left, right):
        panel.set_title("a title that is wider than its panel")
    left.set(yscale="log", ylim=(1.2, 1.9))
    left.yaxis.set_minor_formatter("")
    figure.text(0.9, 0.5, "-")
    found = "; ".join(faults(figure))
    assert "overlapping: 'a title" in found and "outside of the canvas" in found
    assert "fewer than two labels at y of 0" in found


# ---- rows of each kind ---------------------------------------------------------------------------


def rng_of(*parts) -> np.random.Generator:
    return np.random.default_rng([len(str(part)) for part in parts])


def points_of(variant: str, low: float = 0.0, high: float = 1.0) -> list[float]:
    return rng_of(variant).uniform(low, high, len(STEPS)).tolist()


def base_spec(number: int, seeds: int) -> dict:
    variants = chosen(number)
    counts = f"n = {seeds} seeds in each of 2 environments\nmissing: {LONG} on SpaceInvaders"
    return {"caption": ["A title", counts], "variants": [*variants], "activation_of": variants}


PANELS = {  # title: unit, key, scale, values from, to
    "success": ("rate (any step)", "eval/success", "linear", 0.0, 0.0),
    "a quantity with a name that is longer than others": ("unit", "x", "symlog", -1e6, 1e8),
    "numerator": ("L2 norm of the coefficients", "network/q/numerator_norm", "log", 1.42, 1.43),
    "gradient": ("L2 norm", "network/q/gradient_norm", "log", 1e-3, 1e12),
    "return": ("evaluation return", "eval/episodic_return", "linear", 1e5, 2e6),
}


def spec_of_panels(number: int, seeds: int) -> dict:
    spec = base_spec(number, seeds)
    spec["panels"] = {title: unit for title, (unit, *_) in PANELS.items()}
    spec["measured"] = {title: key for title, (_, key, *_) in PANELS.items()}
    spec["scales"] = {title: scale for title, (_, _, scale, *_) in PANELS.items()}
    return spec


def is_missing(label: str, title: str) -> bool:
    return label == "tanh_hr" and title == "gradient"


def panel_rows(number: int, seeds: int, kind: str) -> list[dict]:
    """Rows of curves, environments or seeds."""
    rows = []
    for title, (unit, _, scale, low, high) in PANELS.items():
        for label in chosen(number):
            if is_missing(label, title) and number > 1:
                continue
            for step, value in zip(STEPS, points_of(label, low, high)):
                row = {"panel": title, "unit": unit, "variant": label, "step": step}
                spread = 0.5 * abs(value)
                if kind == "curves":
                    ends = {"low": value - spread, "high": value + spread}
                    if scale == "log":
                        ends["low"] = value / 2
                    if seeds == 1:
                        ends = {"low": np.nan, "high": np.nan}
                    counts = {"statistic": "iqm", "environments": 2, "runs": 2 * seeds}
                    rows.append(row | counts | {"value": value} | ends)
                elif kind == "environments":
                    std = 2 * spread if seeds > 1 else np.nan
                    row |= {"n": seeds, "mean": value, "std": std}
                    rows.append(row | {"environment": "dm_control/humanoid-stand-v0"})
                    if label != "tanh_hr":
                        rows.append(row | {"environment": "metaworld/reach-v3"})
                else:
                    for seed in range(1, seeds + 1):
                        status = "diverged" if seed == 3 else "finished"
                        point = {"seed": seed, "status": status, "value": value * (1 + seed / 50)}
                        if status == "finished" or step < STEPS[-1]:
                            rows.append(row | point)
    return rows


def draw_kind(name: str, data, spec: dict) -> Figure:
    with matplotlib.rc_context(plots.style.RC):
        return plots.redraw.BY_NAME[name].draw(data, spec)


def caption(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def check(figure: Figure, seeds: int) -> None:
    """No faults; captions mention bands and intervals for several seeds only."""
    assert faults(figure) == []
    if seeds == 1:
        assert not any(word in caption(figure) for word in ("band:", "bars:", "bootstrap"))
        assert "one seed" in caption(figure)
    else:
        assert "one seed" not in caption(figure)


@pytest.mark.parametrize("number, seeds", CASES)
@pytest.mark.parametrize("kind", ["curves", "environments", "seeds"])
def test_panels_of_variants(kind, number, seeds):
    figure = draw_kind(kind, panel_rows(number, seeds, kind), spec_of_panels(number, seeds))
    check(figure, seeds)
    for panel in figure.axes:
        if "success" in described(panel).split("\n")[0]:
            low, high = panel.get_ylim()
            assert -0.05 < low < 0 and 1 < high < 1.05  # all 0: the whole range, and not beyond
        if panel.get_yscale() == "log":
            for band in panel.collections:
                lowest = band.get_paths()[0].vertices[:, 1].min() if band.get_paths() else 1
                assert lowest > 1e-6  # no band down to the floor


@pytest.mark.parametrize("number, seeds", CASES)
def test_intervals(number, seeds):
    rows = []
    for group in ("Meta-World", "DMC", "all"):
        for label in chosen(number):
            value = rng_of(label).uniform()
            ends = {"low": 0.8 * value, "high": 1.2 * value}
            if seeds == 1:
                ends = {"low": np.nan, "high": np.nan}
            counts = {"environments": 2, "runs": 2 * seeds}
            rows.append({"group": group, "variant": label, "value": value} | ends | counts)
    spec = base_spec(number, seeds) | {"unit": "0: random play, 1: human"}
    check(draw_kind("intervals", rows, spec), seeds)


@pytest.mark.parametrize("number", [2, 9])
def test_claims(number):
    quantities = ["return", "coefficient gradient", "diverged"]
    rows = []
    for second, first in itertools.combinations(chosen(number), 2):
        for quantity in quantities[: 3 if first != LONG else 1]:
            row = {"first": first, "second": second, "quantity": quantity, "step": 1.0}
            row |= {"p_larger": 0.7, "p_larger_low": 0.5, "p_larger_high": 0.9}
            rows.append(row | {"above": 10, "below": 0, "p_value": 0.0019531})
    assert faults(draw_kind("claims", rows, base_spec(number, 10) | {"lines": quantities})) == []


@pytest.mark.parametrize("number, seeds", CASES)
def test_compared_settings(number, seeds):
    rows = []
    for label, activation in chosen(number).items():
        for title, high in (("success rate", 0.0), ("max |f(x)|", 1.43), ("return", 3e6)):
            for seed in range(seeds):
                for step, value in zip(STEPS, points_of(label, 0.99 * high, high)):
                    row = {"panel": title, "group": f"{label}, width 1024", "setting": label}
                    row |= {"activation": activation, "seed": seed, "step": step}
                    rows.append(row | {"value": value})
    figure = draw_kind("compared", rows, {"caption": ["metaworld/sweep-v3: width"]})
    check(figure, seeds)
    lines = [line for line in figure.axes[0].get_lines() if line.get_label()[0] != "_"]
    assert len({line.get_color() for line in lines}) == number
    assert all(f"(n = {seeds})" in line.get_label() for line in lines)


@pytest.mark.parametrize("number, seeds", CASES)
def test_exported_studies(number, seeds):
    rows = []
    for label in chosen(number):
        for seed in range(seeds):
            for metric, high in (("network/q/fc1/dead_share", 1.0), ("losses/q_mean", 2e6)):
                for step, value in zip(STEPS, points_of(label, 0, high)):
                    row = {"activation": label, "seed": seed, "metric": metric}
                    rows.append(row | {"env_step": step, "value": value})
    spec = {"caption": ["Breakout"], "panels": {}}
    spec["panels"] = {row["metric"]: row["metric"] for row in rows}
    figure = draw_kind("study", {"curves.csv": rows}, spec)
    check(figure, seeds)
    assert figure.axes[0].get_ylim()[1] < 1.05


@pytest.mark.parametrize("number, seeds", CASES)
def test_preactivations_over_training(number, seeds):
    rows = []
    bins = {f"d{index:02d}": 0.1 for index in range(80)}
    for label, (network, layer) in itertools.product(
        chosen(number), (("actor", "fc1"), ("critics", "fc2"))
    ):
        if label == "tanh_hr" and layer == "fc2":
            continue
        for step in STEPS:
            row = {"network": network, "layer": layer, "activation": label, "n": seeds}
            row |= {"smallest": -900, "q01": -5, "median": 0, "q99": 5, "largest": 900}
            rows.append(row | {"step": step, "first_edge": -950, "last_edge": 950} | bins)
    spec = {"caption": ["Pre-activations"], "activations": [*chosen(number)]}
    figure = draw_kind("preactivations", rows, spec)
    assert faults(figure) == []
    assert any(f"(n = {seeds})" in panel.get_title() for panel in figure.axes)


@pytest.mark.parametrize("number, seeds", CASES)
def test_contributions_to_q(number, seeds):
    rows = []
    for label, part in itertools.product(chosen(number), ("live", "dead", "bias")):
        for step, value in zip(STEPS, points_of(label, 0, 3)):
            row = {"environment": "Breakout", "variant": label, "part": part, "n": seeds}
            rows.append(row | {"step": step, "mean": value, "std": 1 if seeds > 1 else np.nan})
    check(draw_kind("parts", rows, {"caption": ["HR Fig. 4: contributions to Q"]}), seeds)


@pytest.mark.parametrize("parts", [["output"], ["branch0", "branch1", "output"]])
def test_densities(parts):
    x = np.linspace(-0.0812, 0.0234, 30)
    rows = []
    for part, neuron in itertools.product(parts, range(16)):
        for place, density in zip(x, np.exp(-((100 * x) ** 2)) * (3 * neuron + 1)):
            row = {"step": 75_000, "part": part, "neuron": neuron, "dead": int(neuron > 6)}
            rows.append(row | {"x": place, "density": density})
    figure = draw_kind("densities", rows, {"caption": [f"Densities of 16 neurons: {LONG}"]})
    assert faults(figure) == []
    titles = [part.get_suptitle().split(":")[0] for part in figure.subfigs]
    assert titles == ["output"] if len(parts) == 1 else ["branch 1", "branch 2", "output"]
    (panel,) = figure.subfigs[0].axes
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in panel.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert sum(text.get_text().startswith("peak ") for text in panel.texts) == 16
    (thresholds,) = [artist for artist in panel.collections if artist.get_label() == "thresholds"]
    assert len(thresholds.get_segments()) == 10  # 1.12 times the peak is above 20


@pytest.mark.parametrize("number, seeds", CASES)
def test_regression_and_its_parameters(number, seeds):
    runs = []
    curves = []
    x = np.linspace(-1, 1, 20)
    fits = {"x": x}
    for index, label in enumerate(chosen(number)):
        activation = label.replace(", ", "_")
        for rate in (0.001, 0.01):
            cell = {"activation": activation, "widths": "200", "learning_rate": rate}
            for seed in range(seeds):
                error = 10 ** rng_of(label, rate, seed).uniform(-3, 2)
                runs.append(cell | {"parameters": 601 + 6 * index, "last_error": error})
            for step in (0, 1_000, 2_000):
                curves.append(cell | {"step": step, "median": 1.5, "min": 1.4, "max": 1.6})
        name = plots.regression.network_label(activation, [200])
        fits[plots.regression.fit_column(name, 0.01)] = np.sin(x)
    tables = {"runs.csv": runs, "curves.csv": curves}
    tables["fits.csv"] = [dict(zip(fits, row)) for row in zip(*fits.values())]
    labels = [column.rpartition(", lr")[0] for column in fits if column != "x"]
    figure = draw_kind("regression", tables, {"caption": ["Networks"], "networks": labels})
    check(figure, seeds)
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    if number == 2:
        assert labels == ["601 and 607"] or labels == ["601", "607"]


def test_table_1():
    rows = []
    for activation, p in itertools.product(("tanh", "tanh_hr", "sigmoid", "relu"), (0.1, 0.9)):
        row = {"activation": activation, "p": p, "dead_share": p, "low": p - 0.1}
        rows.append(row | {"high": p + 0.1})
    assert faults(draw_kind("table1", rows, {"caption": ["Table 1"]})) == []


@pytest.mark.parametrize("number", [1, 2, 9])
def test_continual_tasks(number):
    rows = []
    metrics = {"charts/online_accuracy": 1, "task_end/ntk_srank": 120}
    metrics["network/classifier/fc2/dead_share"] = 1
    for label, (metric, high) in itertools.product(chosen(number), metrics.items()):
        for task, value in enumerate(points_of(label, 0, high), start=1):
            ends = {"low": value - 0.5 * high, "high": value + 0.5 * high}
            row = {"study": "digits", "cell": label, "metric": metric, "task": task}
            rows.append(row | {"mean": value} | ends)
    spec = base_spec(number, 10) | {"study": "digits"}
    figure = draw_kind("continual", {"continual_curves.csv": rows}, spec)
    assert faults(figure) == []
    for panel in figure.axes[: 1 if number < 9 else 3]:
        low, high = panel.get_ylim()
        assert low > -0.05 and high < 1.05
    for panel in figure.axes:
        lines = panel.get_lines()
        assert len({line.get_color() for line in lines}) == len(lines)


@pytest.mark.parametrize("number", [1, 2, 9])
def test_plasticity_of_chosen_cells(number):
    panels = {"charts/online_accuracy": "online accuracy", "dead": "dead-neuron fraction"}
    rows = []
    for label, metric in itertools.product(chosen(number), panels):
        for task, value in enumerate(points_of(label, 0, 1), start=1):
            ends = {"low": value - 0.5, "high": value + 0.5}
            row = {"study": "digits", "cell": label, "metric": metric, "task": task}
            rows.append(row | {"mean": value} | ends)
    spec = base_spec(number, 10) | {"study": "digits", "panels": panels}
    figure = draw_kind("plasticity", {"continual_curves.csv": rows}, spec)
    assert faults(figure) == []
    for panel in figure.axes:
        lines = panel.get_lines()
        assert panel.get_ylim() == (-0.03, 1.03) and len(lines) == number
        looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
        assert len(looks) == number


@pytest.mark.parametrize("number, seeds", CASES)
def test_league(number, seeds):
    rows = []
    for rank, (label, activation) in enumerate(chosen(number).items(), start=1):
        late = 1 - 0.1 * rank
        ends = {"late: low": late - 0.05, "late: high": late + 0.05}
        if seeds == 1:
            ends = dict.fromkeys(ends, np.nan)
        row = {"study": "digits random_labels", "cell": label, "activation": activation}
        row |= {"n": seeds, "rank": str(rank), "late": late, "parameters": 17_610 + 5_000 * rank}
        row |= {"FLOPs": 92_620, "front of parameters": "1", "front of FLOPs": str(int(rank == 1))}
        rows.append(row | ends)
    spec = base_spec(number, seeds) | {"study": "digits random_labels"}
    spec["caption"] = [plots.league.caption_of("digits random_labels", rows)]
    figure = draw_kind("league", {"league.csv": rows}, spec)
    check(figure, seeds)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == number and names[0].startswith("1 ")
    for panel, numbered in zip(figure.axes[1:], (number, 1)):
        assert len(panel.texts) == numbered  # ranks of what no cheaper cell surpasses


@pytest.mark.parametrize("number, seeds", CASES)
def test_scatter(number, seeds):
    rows = []
    for panel, label in itertools.product(("at the end", "at its worst"), chosen(number)):
        x = 10 ** rng_of(label, panel).uniform(1, 6)
        y = rng_of(label).uniform()
        row = {"panel": panel, "variant": label, "x": x, "y": y}
        ends = {"x: low": x / 3, "x: high": 3 * x, "y: low": y - 0.1, "y: high": y + 0.1}
        if seeds == 1:
            ends = dict.fromkeys(ends, np.nan)
        rows.append(row | ends)
    spec = base_spec(number, seeds) | {"scales": {"x": "log", "y": "linear"}}
    spec |= {"panels": {"at the end": "largest output", "at its worst": "x"}, "unit": "accuracy"}
    figure = draw_kind("scatter", rows, spec)
    assert faults(figure) == []
    for panel in figure.axes:
        assert panel.get_xscale() == "log" and len(panel.containers) == number


@pytest.mark.parametrize("number, seeds", [(1, 1), (9, 10)])
def test_overview_of_lines(number, seeds):
    rows = []
    lines = ["dqn_atari, Breakout", "sac_continuous, dm_control/cartpole-swingup_sparse-v0"]
    for line, (column, unit) in itertools.product(
        lines,
        (("score", "success"), ("overestimation", "overestimation"), ("srank", "srank")),
    ):
        if line == lines[0] and column == "overestimation":
            continue  # DQN logs none
        for label, seed in itertools.product(chosen(number), range(seeds)):
            for step, value in zip(STEPS, points_of(label)):
                row = {"row": line, "column": column, "unit": unit, "variant": label}
                rows.append(row | {"seed": seed, "when": "", "step": step, "value": value})
    for label, when in itertools.product([*chosen(number)][:4], ("before", "after")):
        for x in np.linspace(-5, 5, 9).tolist():
            row = {"row": "learned", "column": f"{label} (cartpole-swingup-v0, s1)"}
            row |= {"unit": "q/fc1", "variant": label, "seed": 1, "when": when}
            rows.append(row | {"step": x, "value": x * x})
    spec = {"caption": ["9 runs"], "lines": lines, "activation_of": chosen(number)}
    figure = draw_kind("overview", rows, spec)
    assert faults(figure) == []
    for part in figure.subfigs:
        assert not any(panel.texts for panel in part.axes)  # no note in an empty one


def test_every_kind_is_drawn_here():
    drawn = {"curves", "environments", "seeds", "intervals", "claims", "compared", "study"}
    drawn |= {"preactivations", "parts", "densities", "regression", "table1", "continual"}
    drawn |= {"plasticity", "overview", "league", "scatter"}
    elsewhere = {"comparison"}  # tests of the curves command
    assert {*plots.redraw.BY_NAME} - elsewhere == drawn


# ---- one run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", LONG, "tanh_hr"])
def test_plots_of_one_run(tmp_path, activation, monkeypatch):
    env = "dm_control/a_very_long_name-of_an-environment-v0"
    config = {"env_id": env, "activation": activation, "seed": 1}
    run = runlog.Run(tmp_path, "one", config).open(tensorboard=False)
    branches = 2 if activation == "tanh_hr" else 1
    x = np.linspace(-0.0812, 0.0234, 64)
    for step in (0, 100):
        for branch in range(branches):
            name = f"activation{branch}" if branches > 1 else "activation"
            run.log_curve(step, f"network/q/fc1/{name}", 100 * x, x * (step + 1))
            part = f"branch{branch}_" if branches > 1 else ""
            for neuron in range(16):
                run.log_curve(step, f"network/q/fc1/{part}kde{neuron:02d}", x, 30 * np.exp(-x * x))
        run.log_histogram(step, "network/q/fc1/preactivations", [1, 5, 2], [-2.0, 0.0, 1.0, 3.0])
    for step in (100, 200):
        run.log(step, {"q_split/dead": 0.5 * step, "q_split/live": 2.0, "q_split/bias": -1.0})
    run.finish()
    kept = {}
    monkeypatch.setattr(
        plots.style, "save", lambda figure, path: kept.update({path.stem: figure}) or path
    )
    plots.run.draw_run(run.folder)
    assert {*kept} == {"activations", "kde", "preactivations", "q_split"}
    for name, figure in kept.items():
        assert faults(figure) == [], name
    labels = [text.get_text() for text in kept["activations"].legends[0].get_texts()]
    if activation == "tanh_hr":
        assert labels[-2:] == ["branch 1: tanh", "branch 2: tanh"]


# ---- captions of figures from run folders --------------------------------------------------------

GAMES = ("Breakout", "Pong", "SpaceInvaders")


@pytest.fixture(scope="module")
def atari(tmp_path_factory):
    """relu and tanh of DQN, one seed; tanh has not played Pong."""
    root = tmp_path_factory.mktemp("atari")
    for activation, game in itertools.product(("relu", "tanh"), GAMES):
        if (activation, game) == ("tanh", "Pong"):
            continue
        rows = {"charts/episodic_return": ((10, 20, 30), (1, 3, 2))}
        rows["network/q/fc1/dead_share"] = ((10, 20, 30), (1, 1, 1))
        rows["network/q/fc1/srank"] = ((10, 20, 30), (3, 2, 1))
        write_run(root, "dqn_atari", game, activation, 1, rows)
    return root


def test_captions_name_missing_runs_and_a_single_seed(tmp_path, atari, monkeypatch):
    kept = {}
    monkeypatch.setattr(
        plots.style, "save", lambda figure, path: kept.update({path.name: figure}) or path
    )
    monkeypatch.setattr(plots.style, "reduce_colours", lambda path: None)
    figures.main(["hr7", "--runs", str(atari), "--out", str(tmp_path)])
    figure = kept["hr7.png"]
    assert "n = 1 seed in each of 3 environments" in caption(figure)
    assert "tanh on Pong" in caption(figure)
    assert "not in the statistics: Pong" in caption(figure)
    check(figure, 1)
    units = [panel.get_ylabel() for panel in figure.axes]
    assert units == ["fraction", "srank", "0 and 1: lowest and highest of relu"]
    dead = figure.axes[0]
    assert dead.get_ylim()[0] < 0 and dead.get_ylim()[1] < 1.05  # all 1: no axis up to 1.04
    spec = json.loads((tmp_path / "figures.json").read_text())["hr7"]
    assert spec["measured"]["baseline-normalised score"] == "score/baseline"


# ---- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, labels",
    [
        (0.8, 1.9, ["1", "1.5"]),
        (1.42, 1.43, ["1.42", "1.425", "1.43"]),
        (2, 30, ["2", "5", "10", "20"]),
        (1e-3, 1e12, ["0.001", "1", "1000", "$10^{6}$", "$10^{9}$", "$10^{12}$"]),
    ],
)
def test_logarithmic_axes_have_labels(low, high, labels):
    ticks = plots.axes.Decades().tick_values(low, high)
    assert [plots.axes.short_number(tick) for tick in ticks] == labels


def test_symmetric_logarithmic_axes_have_labels():
    for low, high in ((-1e7, 1e8), (-5, 30), (12, 80), (-100, 0.5), (0, 1e4)):
        ticks = plots.axes.Decades(1.0).tick_values(low, high)
        assert 2 <= len(ticks) <= 7
        assert low <= min(ticks)
        assert max(ticks) <= high


def test_a_band_on_a_logarithmic_axis_stays_above_0():
    mean = np.array([1.0, 10.0])
    low = plots.axes.band_by_factor(mean, np.array([3.0, 5.0]))
    np.testing.assert_allclose(mean / low, np.array([4.0, 1.5]))


@pytest.mark.parametrize(
    "key, bounds",
    [
        ("eval/success", (0, 1)),
        (r"network/(q|agent)/fc1/dead_share", (0, 1)),
        ("charts/online_accuracy", (0, 1)),
        ("network/q/fc1/srank", (0, np.inf)),
        ("eval/episodic_return", (-np.inf, np.inf)),
        ("overestimation/mean", (-np.inf, np.inf)),
    ],
)
def test_possible_range_of_a_quantity(key, bounds):
    assert plots.axes.possible_range(key) == bounds


def test_texts_are_broken_where_they_do_not_fit():
    text = plots.axes.wrapped(f"{LONG}: coefficient gradient, critics", 1.5, 8)
    assert text.replace("\n", "").replace(" ", "") == f"{LONG}:coefficientgradient,critics"
    assert all(plots.axes.text_width(line, 8) <= 1.5 for line in text.split("\n"))
    short = plots.axes.wrapped("one two three four five six", 0.6, 8, max_lines=2)
    assert short.count("\n") == 1 and short.endswith("...")


def test_a_caption_names_an_interval_for_several_seeds_only():
    row = {"statistic": "iqm", "environments": 3, "runs": 3, "low": np.nan}
    assert plots.panels.statistics_text([row]) == "IQM over runs, one seed: no interval"
    nine = row | {"runs": 9, "low": 0.5}
    several = plots.panels.statistics_text([row, nine])
    assert several == "IQM over runs, band: 95 % stratified bootstrap"
    rows = [row | {"panel": title} for title in ("score", "success")]
    rows += [row | {"panel": title, "statistic": "mean"} for title in ("bias",)]
    text = plots.panels.statistics_text(rows)
    assert text.startswith("IQM over runs") and "; in bias: mean over environments" in text
    assert plots.style.seeds_text([1, 3]) == "n = 1 to 3 seeds"
    bands = [nine | {"statistic": "std"}, nine | {"statistic": "std", "low": np.nan}]
    assert plots.panels.statistics_text(bands).endswith("band: standard deviation over seeds")
    assert "no band: some environment has one seed" in plots.panels.statistics_text(bands[1:])


def test_contributions_to_q_start_at_0_and_mention_a_single_seed_once():
    rows = []
    for part in plots.q_parts.CONTRIBUTIONS:
        for step in (500.0, 1_000.0):
            row = {"environment": "Seaquest", "variant": "tanh", "part": part, "n": "1"}
            rows.append(row | {"step": step, "mean": 1.0, "std": np.nan})
    figure = plots.q_parts.draw(rows, {"caption": ["HR Fig. 4", "n = 1 seed in Seaquest"]})
    (panel,) = figure.axes
    assert panel.get_xlim()[0] == 0 and panel.get_title() == "Seaquest, tanh"
    assert figure.get_suptitle() == "HR Fig. 4\nn = 1 seed in Seaquest"
    figure = plots.q_parts.draw(rows, {"caption": ["HR Fig. 4", "n = 3 seeds in Seaquest"]})
    assert figure.axes[0].get_title() == "Seaquest, tanh (n = 1)"


def test_learning_rates_have_ticks_of_one_format():
    panel = Figure((5, 3)).subplots()
    plots.axes.log_scale(panel, "x")
    panel.set_xlim(5e-5, 2e-2)
    plots.axes.merged_ticks(panel, [1e-4, 1e-3, 1e-2], 4.0)
    labels = [label.get_text() for label in panel.get_xticklabels()]
    assert labels == ["0.0001", "0.001", "0.01"]


def test_help_of_figures_has_no_empty_defaults(capsys):
    with pytest.raises(SystemExit):
        figures.main(["curves", "--help"])
    printed = capsys.readouterr().out
    assert "[PATH ...]" in printed
    assert "[[" not in printed
    assert "(default: )" not in printed
