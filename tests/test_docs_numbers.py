"""Intervals, deviations and tables of speed on the pages are those of the files under results/.

`pytest -q tests/test_docs_numbers.py` (a second)
"""

import csv
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sac_table
from benchmarks.atari_peers import table as table_of_peers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
INTERVAL = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]")
CLAIM = re.compile(rf"{INTERVAL.pattern} \| [^|]+ \| (\d+) : (\d+) \| ({NUMBER}) \|")
THREE_NUMBERS = rf"{NUMBER}, {NUMBER}, {NUMBER}"
DEVIATION = re.compile(rf"({NUMBER}) \+- ({NUMBER})")
REACH = "2026-cr-reach/cr_seeds-reach-v3-"
DYNAMIC = "2026-dynamic-constraint/cr_constraint-reach-v3-"
SWEEP = "2026-cr-sweep/cr_constraint-sweep-v3-"
TEMPERATURE = "2026-cr-reach/temperature/cr_constraint-reach-v3-"
CLAIMS = [f"{study}claims.csv" for study in (REACH, DYNAMIC, SWEEP, TEMPERATURE)]
CLAIMED = {  # page: files of its tables "effect | P | seeds above : below | p"
    "2026-cr-reach": [f"{REACH}claims.csv", f"{TEMPERATURE}claims.csv"],
    "2026-cr-sweep": [f"{SWEEP}claims.csv"],
    "2026-dynamic-constraint": [f"{DYNAMIC}claims.csv"],
}
COMPARISONS = [
    f"2026-hr-sac/{figure}-comparison.csv"
    for figure in ("curves", "early", "first/curves", "first/equal_width")
]
COMPARISONS.append("2026-pqn-seeds/curves-comparison.csv")
COMPARISONS.append("2026-dqn-seeds/curves-comparison.csv")
SOURCES = {  # file: columns of the middle, the lower and the upper end
    **dict.fromkeys(CLAIMS, ("value", "low", "high")),
    f"{REACH}summary.csv": ("median", "low", "high"),
    f"{DYNAMIC}summary.csv": ("median", "low", "high"),
    f"{SWEEP}summary.csv": ("median", "low", "high"),
    f"{TEMPERATURE}summary.csv": ("median", "low", "high"),
    "2026-dynamic-constraint/cards.csv": ("value", "low", "high"),
    "2026-continual/continual_comparisons.csv": ("difference", "low", "high"),
    "2026-dynamic-constraint/digits/differences.csv": ("difference", "low", "high"),
    "2026-league/continual_comparisons.csv": ("difference", "low", "high"),
    "2026-league/machines.csv": ("difference", "low", "high"),
    "2026-league/decay.csv": ("difference", "low", "high"),
    "2026-continual/continual_curves.csv": ("mean", "low", "high"),
    "2026-function-approximation/ratios.csv": ("ratio", "low", "high"),
    "2026-function-approximation/longer/ratios.csv": ("ratio", "low", "high"),
    "2026-function-approximation/table1.csv": ("dead_share", "low", "high"),
    "2026-function-approximation/longer/table1.csv": ("dead_share", "low", "high"),
    "2026-laptop/sac/cr1.csv": ("value", "low", "high"),
    "2026-pqn-atari/differences.csv": ("difference", "low", "high"),
    **dict.fromkeys(COMPARISONS, ("difference", "difference_low", "difference_high")),
}
CELLS = (  # a measure in three columns
    "2026-continual/continual_cells.csv",
    "2026-dynamic-constraint/digits/continual_cells.csv",
    "2026-dynamic-constraint/both_axes.csv",
    "2026-league/continual_cells.csv",
    "2026-league/league.csv",
)
PAGES = (
    "docs/reproduction.md",
    "docs/continual_supervised.md",
    "results/2026-cr-reach/README.md",
    "results/2026-cr-sweep/README.md",
    "results/2026-dynamic-constraint/README.md",
    "results/2026-continual/README.md",
    "results/2026-league/README.md",
    "results/2026-hr-sac/README.md",
    "results/2026-function-approximation/README.md",
)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def exported(path: Path) -> dict[str, dict[tuple[str, str, int], float]]:
    """metric -> (activation, seed, step) -> value, of a file of scripts/export_results.py."""
    found = defaultdict(dict)
    for row in table(path):
        key = row["activation"], row["seed"], int(row["env_step"])
        found[row["metric"]][key] = float(row["value"])
    return found


def value_and_rounding(text: str) -> tuple[float, float]:
    """A number, and by how much it may be rounded: half of its last digit, trailing zeros of a
    whole number of three digits and more counting as rounded."""
    plain = text.replace(",", "")
    mantissa, _, exponent = plain.partition("e")
    unit = 10.0 ** int(exponent or 0)
    _, _, decimals = mantissa.partition(".")
    unit *= 10.0 ** -len(decimals)
    if not decimals and not exponent:
        digits = mantissa.lstrip("+-")
        zeros = len(digits) - len(digits.rstrip("0"))
        if len(digits) >= 3:
            unit *= 10.0**zeros
    return float(plain), 0.5 * unit


def agrees(printed: tuple[str, ...], true: tuple[float, ...]) -> bool:
    """Whether the printed numbers are the true ones, rounded."""
    for text, number in zip(printed, true, strict=True):
        value, rounding = value_and_rounding(text)
        if not abs(value - number) <= 1.001 * rounding:
            return False
    return True


def known_intervals() -> list[tuple[float, ...]]:
    found = []
    for file, columns in SOURCES.items():
        for row in table(RESULTS / file):
            found.append(tuple(float(row[column] or "nan") for column in columns))
    for row in itertools.chain(*(table(RESULTS / file) for file in CELLS)):
        for measure in row:
            if f"{measure}: low" in row:
                ends = measure, f"{measure}: low", f"{measure}: high"
                found.append(tuple(float(row[column] or "nan") for column in ends))
    for file in COMPARISONS:
        for row in table(RESULTS / file):
            found.append(tuple(float(row[column]) for column in ("value", "low", "high")))
            ends = "probability", "probability_low", "probability_high"
            found.append(tuple(float(row[column] or "nan") for column in ends))
    for file in CLAIMS:
        for row in table(RESULTS / file):
            ends = "p_larger", "p_larger_low", "p_larger_high"
            found.append(tuple(float(row[column] or "nan") for column in ends))
    return found


def known_deviations() -> list[tuple[float, ...]]:
    """Mean and standard deviation over three seeds (ddof 1)."""
    values = defaultdict(list)
    for row in table(RESULTS / "2026-laptop/sac/seeds.csv"):
        for quantity in ("return", "Q - G", "max |f(x)|"):
            if row[quantity]:
                key = row["environment"], row["variant"], quantity
                values[key].append(float(row[quantity]))
    for row in table(RESULTS / "2026-sac-cartpole/curves.csv"):
        if row["metric"] == "network/qf1/coefficient_gradient_norm" and row["env_step"] == "30000":
            values[row["activation"]].append(float(row["value"]))
    return [(np.mean(seeds), np.std(seeds, ddof=1)) for seeds in values.values()]


def test_numbers_are_compared_to_the_precision_given():
    assert agrees(("1,220", "0.5"), (1217.6, 0.54)) and not agrees(("1,219",), (1217.6,))
    assert agrees(("2e-5", "-0.109"), (2.4e-5, -0.10949)) and not agrees(("2e-5",), (2.6e-5,))
    assert agrees(("-80.2",), (-80.2,)) and not agrees(("80.2",), (-80.2,))


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_on_a_page_is_in_the_files(page):
    intervals = known_intervals()
    printed = INTERVAL.findall((ROOT / page).read_text())
    assert len(printed) > 10
    wrong = [numbers for numbers in printed if not any(agrees(numbers, true) for true in intervals)]
    assert not wrong


def test_every_deviation_on_the_reproduction_page_is_in_the_files():
    deviations = known_deviations()
    printed = DEVIATION.findall((ROOT / "docs/reproduction.md").read_text())
    assert len(printed) > 10
    wrong = [
        numbers for numbers in printed if not any(agrees(numbers, true) for true in deviations)
    ]
    assert not wrong


def test_every_deviation_on_the_cartpole_page_is_in_the_files():
    """Over the seeds at 30,000 steps, and once over the six of both runs of crational."""
    study = RESULTS / "2026-sac-cartpole"
    values = defaultdict(list)
    both_runs = []
    files = ("curves.csv", "sb3.csv", "other-weights/curves.csv", "temperature-0.1/curves.csv")
    for file in files:
        for row in table(study / file):
            if row["env_step"] != "30000":
                continue
            value = float(row["value"])
            values[file, row["activation"], row["metric"]].append(value)
            is_of_both = row["activation"] == "crational" and not file.startswith("temperature")
            if is_of_both and row["metric"] == "eval/episodic_return":
                both_runs.append(value)
    true = [(np.mean(seeds), np.std(seeds, ddof=1)) for seeds in [*values.values(), both_runs]]
    printed = DEVIATION.findall((study / "README.md").read_text())
    assert len(printed) > 20 and len(both_runs) == 6
    wrong = [numbers for numbers in printed if not any(agrees(numbers, pair) for pair in true)]
    assert not wrong


@pytest.mark.parametrize("study", CLAIMED)
def test_seeds_and_p_beside_an_effect_are_those_of_the_claims(study):
    true = []
    for file in CLAIMED[study]:
        for row in table(RESULTS / file):
            columns = ("value", "low", "high", "above", "below", "p_value")
            true.append(tuple(float(row[column]) for column in columns))
    printed = CLAIM.findall((RESULTS / study / "README.md").read_text())
    assert len(printed) > 10
    wrong = [numbers for numbers in printed if not any(agrees(numbers, row) for row in true)]
    assert not wrong


def change_over_tasks(metric: str, decay: bool) -> list[tuple[str, float]]:
    """(cell, change) of a norm from the first task to the last, for each layer of the rational
    cells with or without decay on both data sets."""
    points = defaultdict(list)
    for study in ("2026-continual", "2026-league"):
        for row in table(RESULTS / study / "continual_curves.csv"):
            if row["metric"].endswith(metric) and ("decay" in row["cell"]) == decay:
                key = row["study"], row["cell"], row["metric"]
                points[key].append((int(row["task"]), float(row["mean"])))
    changes = []
    for (_, cell, _), tasks in points.items():
        tasks.sort()
        changes.append((cell, tasks[-1][1] - tasks[0][1]))
    return changes


def test_counts_of_growing_numerators_and_denominators_are_those_of_the_curves():
    page = (ROOT / "docs/reproduction.md").read_text()
    continual = (RESULTS / "2026-continual/README.md").read_text()
    without = change_over_tasks("numerator_norm", decay=False)
    assert len(without) == 24 and all(change > 0 for _, change in without)
    assert "(24 of 24 in `continual_curves.csv`)" in continual
    decayed = change_over_tasks("numerator_norm", decay=True)
    shrinking = sum(change < 0 for _, change in decayed)
    assert f"they shrink in {shrinking} of {len(decayed)}" in page
    grown = {"rational": [], "crational": []}
    for cell, change in change_over_tasks("denominator_norm", decay=False):
        grown[cell.partition(",")[0]].append(change > 0)
    assert all(grown["rational"]) and len(grown["rational"]) == 12
    constrained = grown["crational"]
    assert f"in {sum(constrained)} of {len(constrained)} of crational" in continual


def test_ranks_of_the_regression_are_those_of_its_runs():
    ranks = defaultdict(dict)  # (activation, rate): seed: rank
    errors = defaultdict(list)
    for row in table(RESULTS / "2026-function-approximation/longer/runs.csv"):
        key = row["activation"], float(row["learning_rate"])
        ranks[key][row["seed"]] = float(row["srank"])
        errors[key].append(float(row["last_error"]))
    page = (RESULTS / "2026-function-approximation/README.md").read_text()
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    part = page.partition("| srank, mean of 10 seeds |")[2]
    activations = ("relu", "tanh", "tanh_hr")
    for name in activations:
        cells = [f"{np.mean([*ranks[name, rate].values()]):.1f}" for rate in rates]
        assert f"| {name} | {' | '.join(cells)} |" in part
    signs = []
    for rate in rates:
        ours = ranks["tanh_hr", rate]
        theirs = ranks["tanh", rate]
        differences = [ours[seed] - theirs[seed] for seed in ours]
        signs.append(f"{sum(d > 0 for d in differences)} : {sum(d < 0 for d in differences)}")
        by_rank = sorted(activations, key=lambda name: -np.mean([*ranks[name, rate].values()]))
        assert by_rank == sorted(activations, key=lambda name: np.median(errors[name, rate]))
    assert f"above : below tanh | {' | '.join(signs)} |" in part


def test_every_seed_on_the_pqn_page_is_that_of_its_runs():
    folder = RESULTS / "2026-pqn-seeds"
    values = exported(folder / "seeds/curves.csv")
    for row in table(folder / "training.csv"):
        key = row["activation"], row["seed"], 401_408
        values["training"][key] = float(row["return"])
        values["difference"][key] = float(row["less tanh_hr"])
    page = (folder / "README.md").read_text()
    for metric, digits in (
        ("eval/episodic_return", 1),
        ("training", 1),
        ("network/q/fc1/dead_share", 3),
        ("network/q/fc1/srank", 0),
    ):
        cells = []
        for activation in ("relu", "tanh", "tanh_hr"):
            seeds = [values[metric][activation, seed, 401_408] for seed in "123"]
            cells.append(", ".join(f"{value:.{digits}f}" for value in seeds))
        assert f" | {' | '.join(cells)} | " in page
    differences = []
    for activation in ("relu", "tanh"):
        differences.append([values["difference"][activation, seed, 401_408] for seed in "123"])
    printed = re.search(
        rf"\| training games.* \| ({THREE_NUMBERS}); \d : \d \| ({THREE_NUMBERS}); \d : \d \|", page
    )
    for text, numbers in zip(printed.groups(), differences, strict=True):
        assert agrees(tuple(text.split(", ")), tuple(numbers))
    intervals = known_intervals()
    found = INTERVAL.findall(page)
    assert len(found) == 6
    assert all(any(agrees(numbers, true) for true in intervals) for numbers in found)


def test_every_seed_on_the_dqn_page_is_that_of_its_runs():
    folder = RESULTS / "2026-dqn-seeds"
    values = exported(folder / "seeds/curves.csv")
    windows = defaultdict(list)  # (activation, seed): returns of the last training games
    for (activation, seed, step), value in values["charts/window_return"].items():
        if step > 150_000:
            windows[activation, seed].append(value)
    for (activation, seed), returns in windows.items():
        values["training"][activation, seed, 200_000] = np.mean(returns)
    page = (folder / "README.md").read_text()

    def row_of(metric: str, digits: int, step: int) -> str:
        cells = []
        for activation in ("relu", "tanh", "tanh_hr"):
            seeds = [values[metric][activation, seed, step] for seed in "12"]
            cells.append(", ".join(f"{value:.{digits}f}" for value in seeds))
        return f" | {' | '.join(cells)} |\n"

    for name, metric, digits in (
        ("return of 8 games, epsilon 0.01", "eval/episodic_return", 1),
        ("training games, last 50,000 steps", "training", 1),
        ("effective rank (srank), of 512", "network/q/fc1/srank", 0),
        ("dead-neuron fraction (KDE)", "network/q/fc1/dead_share", 3),
        ("... by the standard deviation", "network/q/fc1/dead_share_std", 3),
        ("dormant fraction (ReDo)", "network/q/fc1/dormant_share", 3),
        ("mean Q from dead neurons", "q_split/dead", 2),
        ("... from live neurons", "q_split/live", 2),
        ("... from the bias", "q_split/bias", 2),
    ):
        assert f"| {name}{row_of(metric, digits, 200_000)}" in page
    for step in (20_000, 40_000, 60_000, 80_000, 100_000, 140_000, 200_000):
        dead = row_of("network/q/fc1/dead_share", 2, step)
        rank = row_of("network/q/fc1/srank", 0, step)
        assert f"| {step:,}{dead.rstrip()}{rank[2:]}" in page
    for step in (40_000, 100_000, 200_000):
        dormant = row_of("network/q/conv3/dormant_share", 2, step)
        assert f"| {step:,}{dormant}" in page


def test_dqn_in_the_reproduction_is_that_of_its_runs():
    page = (ROOT / "docs/reproduction.md").read_text()
    values = exported(RESULTS / "2026-dqn-seeds/seeds/curves.csv")

    def pairs(metric: str, text: str) -> str:
        parts = []
        for activation in ("relu", "tanh", "tanh_hr"):
            one, other = (values[metric][activation, seed, 200_000] for seed in "12")
            parts.append(f"{activation} {one:{text}} and {other:{text}}")
        return f"n = 2, 200,000 steps: {', '.join(parts)}. "

    def means(metric: str, text: str, *activations: str) -> list[str]:
        found = []
        for activation in activations:
            seeds = [values[metric][activation, seed, 200_000] for seed in "12"]
            found.append(f"{np.mean(seeds):{text}}")
        return found

    assert pairs("eval/episodic_return", ".1f") in page
    assert pairs("network/q/fc1/dead_share", ".3g") in page
    assert pairs("network/q/fc1/srank", ".0f") in page
    ours, tanh, relu = means("eval/episodic_return", ".1f", "tanh_hr", "tanh", "relu")
    assert f"above tanh in 2 of 2 seeds ({ours} and {tanh}), above relu ({relu}) in one" in page
    ours, relu = means("network/q/fc1/dead_share", ".2f", "tanh_hr", "relu")
    assert f"in 2 of 2 seeds: {ours} and {relu}, while tanh has 1.00" in page
    ours, relu = means("network/q/fc1/srank", ".0f", "tanh_hr", "relu")
    assert f"in 2 of 2 seeds: {ours} and {relu}. tanh in DQN: 401 and, collapsed, 1" in page
    leads = []
    for seed in "12":
        relu, tanh, ours = (
            values["eval/episodic_return"][activation, seed, 200_000]
            for activation in ("relu", "tanh", "tanh_hr")
        )
        leads.append((ours > tanh, ours > relu))
    assert [sum(lead) for lead in zip(*leads)] == [2, 1]


def test_effects_of_interruptions_on_the_pqn_page_are_those_in_its_curves():
    """Ratios of neighbouring measurements, by activation and seed; rounded to a percent."""
    folder = RESULTS / "2026-pqn-seeds"
    page = (folder / "README.md").read_text()
    values = exported(folder / "seeds/curves.csv")
    ranks = values["network/q/fc1/srank"]
    dead = values["network/q/fc1/dead_share"]
    runs = list(itertools.product(("relu", "tanh", "tanh_hr"), "123"))
    complete_runs = [run for run in runs if run != ("tanh", "3")]

    def lower(run: tuple[str, str], before: int, after: int) -> float:
        """By how many percent the rank is lower after than before."""
        if before == 503_808 and run == ("relu", "2"):  # that row is itself soon after a resume
            before = 450_560
        return 100 * (1 - ranks[(*run, after)] / ranks[(*run, before)])

    found = [lower(run, 102_400, 151_552) for run in runs]
    assert f"{min(found):.0f} to {max(found):.0f} % lower in all nine runs" in page
    assert f"relu's seed 2 | {lower(('relu', '2'), 450_560, 503_808):.0f} % lower" in page
    found = [lower(run, 253_952, 303_104) for run in runs]
    assert f"| 303,104 | {min(found):.0f} to {max(found):.0f} % lower" in page
    found = [lower(run, 503_808, 552_960) for run in complete_runs]
    assert f"| {min(found):.0f} to {max(found):.0f} % lower (relu's seed 2" in page
    found = [abs(lower(run, 503_808, 602_112)) for run in complete_runs]
    assert round(max(found)) == 3 and "| within 3 % of 503,808" in page
    for step, end in ((552_960, "times as large |"), (602_112, "times as large, as between")):
        found = [dead["tanh_hr", seed, step] / dead["tanh_hr", seed, 503_808] for seed in "123"]
        assert f"{min(found):.1f} to {max(found):.1f} {end}" in page

    means = []
    for step in (53_248, 401_408):
        means.append(np.mean([dead["relu", seed, step] for seed in "123"]))
    assert f"from {means[0]:.2f} at 53,248 steps to {means[1]:.2f}" in page
    last = [(name, "1", 753_664) for name in ("relu", "tanh", "tanh_hr")]
    ranks_text = "rank {:.0f}, {:.0f} and {:.0f} for relu, tanh and"
    assert ranks_text.format(*(ranks[key] for key in last)) in page
    dead_text = "dead-neuron fraction {:.2f}, {:.2f} and {:.2f}."
    assert dead_text.format(*(dead[key] for key in last)) in page


# ---- results/2026-pqn-atari ----------------------------------------------------------------------

PQN = RESULTS / "2026-pqn-atari"
ACTIVATIONS = ("relu", "tanh", "tanh_hr")
LAST = 999_424  # step of a whole run's last measurement
HALF_WAY = 503_808
PQN_TABLES = {  # (folder, step): seeds, decimals of returns
    ("breakout", LAST): ("145", 1),
    ("spaceinvaders", LAST): ("123", 0),
    ("breakout-h200", HALF_WAY): ("123", 1),
}
PQN_ROWS = {  # column of values.csv: name, decimals; None: those of returns
    "training": ("training games, last 100,000 steps", None),
    "greedy": ("greedy test games", None),
    "srank": ("effective rank (srank), of 512", 0),
    "dead": ("dead-neuron fraction (KDE)", 3),
}


def pqn_values() -> dict[str, dict[tuple[str, str, str, int], float]]:
    """column of values.csv -> (folder, activation, seed, step) -> value."""
    found = defaultdict(dict)
    for row in table(PQN / "values.csv"):
        key = row["folder"], row["activation"], row["seed"], int(row["step"])
        for column in ("training", "greedy", "games", "srank", "dead", "dormant"):
            if row[column]:
                found[column][key] = float(row[column])
    return found


def test_values_of_pqn_are_those_of_its_curves():
    """values.csv, by a plain loop."""
    columns = {"greedy": "eval/episodic_return", "games": "eval/num_games"}
    columns |= {"srank": "network/q/fc1/srank", "dead": "network/q/fc1/dead_share"}
    columns["dormant"] = "network/q/fc1/dormant_share"
    values = pqn_values()
    folders = {key[0] for key in values["srank"]}
    assert len(folders) == 4
    curves = {folder: exported(PQN / folder / "curves.csv") for folder in folders}
    for column, metric in columns.items():
        for (folder, *key), value in values[column].items():
            assert value == pytest.approx(curves[folder][metric][tuple(key)], rel=1e-5)
    for (folder, activation, seed, step), value in values["training"].items():
        end = 1_000_000 if step == LAST else step
        windows = curves[folder]["charts/window_return"]
        late = [windows.get((activation, seed, t)) for t in range(25_000, 1_000_001, 25_000)]
        first = (end - 100_000) // 25_000
        assert value == pytest.approx(np.mean(late[first : end // 25_000]), rel=1e-5)


def test_differences_of_pqn_are_those_of_its_values():
    """With two or three pairs the bootstrap interval is their range."""
    values = pqn_values()
    rows = table(PQN / "differences.csv")
    assert len(rows) == 8 * 2 * 4  # folders and steps, activations, measures
    for row in rows:
        folder = row["folder"]
        step = int(row["step"])
        measure = row["measure"]
        pairs = []
        for (of_folder, activation, seed, of_step), ours in values[measure].items():
            if (of_folder, activation, of_step) == (folder, "tanh_hr", step):
                pairs.append(values[measure][folder, row["activation"], seed, step] - ours)
        expected = {"difference": np.mean(pairs), "low": min(pairs), "high": max(pairs)}
        rounding = 1e-5 * max(values[measure].values())  # values.csv has six digits
        for column, value in expected.items():
            assert float(row[column]) == pytest.approx(value, abs=rounding)
        assert int(row["n"]) == len(pairs)
        assert int(row["above"]) == sum(difference > 0 for difference in pairs)


def test_tables_on_the_pqn_page_are_those_of_its_values():
    page = (PQN / "README.md").read_text()
    values = pqn_values()
    differences = {}
    for row in table(PQN / "differences.csv"):
        key = row["folder"], int(row["step"]), row["measure"], row["activation"]
        differences[key] = [float(row[column]) for column in ("difference", "low", "high")]
    for (folder, step), (seeds, of_returns) in PQN_TABLES.items():
        for column, (name, decimals) in PQN_ROWS.items():
            digits = of_returns if decimals is None else decimals
            cells = [name]
            for activation in ACTIVATIONS:
                numbers = [values[column][folder, activation, seed, step] for seed in seeds]
                cells.append(", ".join(f"{number:.{digits}f}" for number in numbers))
            for other in ("relu", "tanh"):
                numbers = differences[folder, step, column, other]
                mean, low, high = (f"{number:.{digits}f}" for number in numbers)
                cells.append(f"{mean} [{low}, {high}]")
            assert f"| {' | '.join(cells)} |\n" in page
        of_run = [key for key in values["dormant"] if (key[0], key[3]) == (folder, step)]
        assert {key[2] for key in of_run} == {*seeds}


def pqn_mean(values: dict, folder: str, activation: str, step: int) -> float:
    """Over the seeds of this folder. values: (folder, activation, seed, step) -> value."""
    key = (folder, activation, step)
    return np.mean([value for (f, a, _, t), value in values.items() if (f, a, t) == key])


def pqn_curves() -> dict[str, dict]:
    folders = ("breakout", "breakout-h200", "spaceinvaders")
    return {folder: exported(PQN / folder / "curves.csv") for folder in folders}


def pqn_pairs() -> Iterator[tuple[str, str, list[int]]]:
    """(folder, seed, steps of the measurements that all three activations have)."""
    for folder, curves in pqn_curves().items():
        ranks = curves["network/q/fc1/srank"]
        end = HALF_WAY if folder == "breakout-h200" else LAST
        for seed in sorted({seed for _, seed, _ in ranks}):
            steps = []
            for step in sorted({step for _, of, step in ranks if of == seed and step <= end}):
                if all((activation, seed, step) in ranks for activation in ACTIVATIONS):
                    steps.append(step)
            yield folder, seed, steps


def test_what_the_pqn_page_says_of_every_measurement_holds():
    page = (PQN / "README.md").read_text()
    curves = pqn_curves()
    measured = 0
    above_tanh = {}  # (folder, seed): steps at which relu's rank is not below tanh's
    fewer = {}  # the same: at which tanh has fewer dead neurons than tanh_hr
    for folder, seed, steps in pqn_pairs():
        ranks = curves[folder]["network/q/fc1/srank"]
        dead = curves[folder]["network/q/fc1/dead_share"]
        dormant = curves[folder]["network/q/fc1/dormant_share"]
        measured += len(steps)
        for step in steps:
            relu, tanh, ours = ((activation, seed, step) for activation in ACTIVATIONS)
            assert max(ranks[relu], ranks[tanh]) < ranks[ours]
            assert dead[relu] > max(dead[tanh], dead[ours])
            assert dormant[tanh] == dormant[ours] == 0 < dormant[relu]
            if ranks[relu] >= ranks[tanh]:
                above_tanh.setdefault((folder, seed), []).append(step)
            if dead[tanh] < dead[ours]:
                fewer.setdefault((folder, seed), []).append(step)
        assert dead["tanh", seed, steps[0]] > dead["tanh_hr", seed, steps[0]]
        if steps[-1] == LAST:
            assert dead["tanh", seed, LAST] > dead["tanh_hr", seed, LAST]
    assert f"at each of {measured} measurements" in page
    assert {folder for folder, _ in above_tanh} == {"breakout"}
    numbers = " and ".join(str(len(steps)) for steps in above_tanh.values())
    assert f"with tanh or above it at {numbers} of 20 measurements" in page
    seeds = " and ".join(seed for _, seed in above_tanh)
    assert (
        f"except in Breakout's seed{'s' if len(above_tanh) > 1 else ''} {seeds}, in which" in page
    )
    steps = above_tanh["breakout", "4"]
    assert f"above it between {min(steps):,} and {max(steps):,} steps" in page
    pairs = len([*pqn_pairs()])
    assert f"at some of the measurements of {len(fewer)} of {pairs} pairs of runs" in page
    assert min(itertools.chain(*fewer.values())) > 400_000
    number = len(fewer["spaceinvaders", "1"])
    assert f"In seed 1 tanh has fewer than tanh_hr at {number} of 20 measurements." in page

    for folder, steps in {
        "breakout": (53_248, HALF_WAY, LAST),
        "spaceinvaders": (53_248, HALF_WAY, LAST),
    }.items():
        dead = curves[folder]["network/q/fc1/dead_share"]
        seeds = PQN_TABLES[folder, LAST][0]
        parts = []
        for activation in ACTIVATIONS:
            means = [np.mean([dead[activation, seed, step] for seed in seeds]) for step in steps]
            parts.append(f"{activation} {', '.join(f'{mean:.3f}' for mean in means)}")
        assert f"half-way and at the end (means over seeds): {'; '.join(parts)}." in page
    dead = curves["breakout-h200"]["network/q/fc1/dead_share"]
    texts = []
    for step in (53_248, HALF_WAY):
        tanh, ours = (
            np.mean([dead[activation, seed, step] for seed in "123"])
            for activation in ("tanh", "tanh_hr")
        )
        texts.append(f"{tanh:.3f} and {ours:.3f}")
    assert f"neurons**: {texts[0]} at 53,248 steps (means over seeds), {texts[1]} here." in page
    ranks = curves["breakout"]["network/q/fc1/srank"]
    seeds = PQN_TABLES["breakout", LAST][0]
    rises = [np.mean([ranks["relu", seed, step] for seed in seeds]) for step in (53_248, LAST)]
    assert f"from {rises[0]:.0f} at 53,248 steps to {rises[1]:.0f} (means over seeds)" in page


def test_what_the_pqn_page_says_of_scores_holds():
    page = (PQN / "README.md").read_text()
    values = pqn_values()
    training = values["training"]
    seeds = PQN_TABLES["breakout", LAST][0]
    words = {1: "one", 2: "two", 3: "three"}

    means = {name: pqn_mean(training, "breakout", name, LAST) for name in ACTIVATIONS}
    factor = means["tanh_hr"] / means["tanh"]
    assert f"in each seed, by a factor of {factor:.1f} on average" in page
    ours = {seed: training["breakout", "tanh_hr", seed, LAST] for seed in seeds}
    over_relu = [seed for seed in seeds if ours[seed] > training["breakout", "relu", seed, LAST]]
    of = f"{words[len(over_relu)]} of {words[len(seeds)]}"
    assert f"of relu in {of} whole runs and in all three on the GPU" in page
    assert f"**Ahead of relu in {of} seeds.**" in page
    assert "4" not in over_relu
    texts = []
    for step in (HALF_WAY, LAST):
        pair = [training["breakout", name, "4", step] for name in ("relu", "tanh_hr")]
        assert min(pair) > 0.94 * max(pair)  # level
        texts.append(f"{pair[0]:.1f} and {pair[1]:.1f}")
    assert f"half-way ({texts[0]}) and at the end ({texts[1]})" in page
    windows = exported(PQN / "breakout/curves.csv")["charts/window_return"]
    for seed, step in itertools.product(seeds, range(125_000, 1_000_001, 25_000)):
        late = range(step - 75_000, step + 1, 25_000)
        pair = []
        for name in ("tanh", "tanh_hr"):
            pair.append(np.mean([windows[name, seed, t] for t in late]))
        assert pair[0] < pair[1]

    means = {name: pqn_mean(training, "spaceinvaders", name, LAST) for name in ACTIVATIONS}
    assert (
        f"at the end: relu {means['relu']:.0f}, tanh_hr {means['tanh_hr']:.0f}, "
        f"tanh {means['tanh']:.0f}, and their order" in page
    )
    means = {name: pqn_mean(training, "spaceinvaders", name, HALF_WAY) for name in ACTIVATIONS}
    half_way = f"{means['tanh_hr']:.0f} and {means['tanh']:.0f}; relu {means['relu']:.0f}"
    ahead = {}
    for step, other in itertools.product((HALF_WAY, LAST), ("relu", "tanh")):
        ahead[step, other] = 0
        for seed in "123":
            theirs = training["spaceinvaders", other, seed, step]
            ahead[step, other] += training["spaceinvaders", "tanh_hr", seed, step] > theirs
    assert ahead[HALF_WAY, "tanh"] == 3
    end = f"at the end in {words[ahead[LAST, 'tanh']]} of three."
    assert f"(training games, means over seeds: {half_way}), {end}" in page
    assert f"tanh_hr ends ahead of relu in {words[ahead[LAST, 'relu']]}." in page
    orders = {}
    for seed in "12":
        orders[seed] = sorted(ACTIVATIONS, key=lambda a: training["spaceinvaders", a, seed, LAST])
    assert orders == {"1": ["tanh", "tanh_hr", "relu"], "2": ["relu", "tanh", "tanh_hr"]}

    means = {name: pqn_mean(training, "breakout-h200", name, HALF_WAY) for name in ACTIVATIONS}
    factors = [means["tanh_hr"] / means[other] for other in ("tanh", "relu")]
    assert f"by factors of {factors[0]:.1f} and {factors[1]:.1f} on average" in page
    for other in ("relu", "tanh"):
        theirs = [training["breakout-h200", other, seed, HALF_WAY] for seed in "123"]
        ours = [training["breakout-h200", "tanh_hr", seed, HALF_WAY] for seed in "123"]
        assert max(theirs) < min(ours)
    leads = []
    for other in ("tanh", "relu"):
        differences = []
        for (folder, activation, seed, step), value in training.items():
            if activation == "tanh_hr" and step == 401_408:
                differences.append(value - training[folder, other, seed, step])
        leads.append(f"{sum(d > 0 for d in differences)} of {len(differences)}")
    assert f"in favour of tanh_hr {leads[0]} times over tanh and {leads[1]} over relu" in page
    numbers = []
    of_gpu = []
    for folder, step in PQN_TABLES:
        for (of_folder, _, _, of_step), number in values["games"].items():
            if (of_folder, of_step) == (folder, step):
                numbers.append(number)
                of_gpu += [number] if folder == "breakout-h200" else []
    assert f"few ({min(numbers):.0f} to {max(numbers):.0f} of each run" in page
    assert f"games ({min(of_gpu):.0f} to {max(of_gpu):.0f} of each run) agree in each seed." in page


def test_speed_and_synchronisation_on_the_pqn_page():
    page = (PQN / "README.md").read_text()
    for row in table(PQN / "synchronised.csv"):
        share = 100 * float(row["ended"])
        start = f"| {int(row['steps']):,} | {share:.0f} % | {float(row['srank']):.0f} | "
        assert f"{start}{float(row['dead']):.3f} |\n" in page
    ranks = [float(r["srank"]) for r in table(PQN / "synchronised.csv") if float(r["ended"]) == 1]
    assert len(ranks) == 3 and ranks[0] > 0.98 * max(ranks)
    in_training = pqn_values()["srank"]["spaceinvaders", "tanh_hr", "1", LAST]
    assert f"the same network has rank {in_training:.0f}." in page
    total = next(row for row in table(PQN / "rates.csv") if row["game"] == "all together")
    first = [float(row["first_game_s"]) for row in table(PQN / "rates.csv")[:-1]]
    assert len(first) == 15
    assert f"ended after {min(first):.0f} to {max(first):.0f} s:" in page
    speed = f"{float(total['steps_per_s']):,.0f} steps/s together"
    assert speed in page
    for other in ("performance.md", "pqn_atari.md", "reproduction.md"):
        assert speed in (ROOT / "docs" / other).read_text()
    hours = 1.8e10 / float(total["steps_per_s"]) / 3600
    printed = re.search(
        r"fifteen processes sharing a GPU and 16 cores \| 1.8e10 \| (\d+) \|",
        (ROOT / "docs/reproduction.md").read_text(),
    )
    assert float(printed[1]) == pytest.approx(hours, rel=0.02)


def test_pqn_in_the_reproduction_is_that_of_its_values():
    page = (ROOT / "docs/reproduction.md").read_text()
    values = pqn_values()

    def means(column: str, folder: str, step: int, text: str) -> list[str]:
        """Of relu, tanh and tanh_hr."""
        column = values[column]
        return [f"{pqn_mean(column, folder, name, step):{text}}" for name in ACTIVATIONS]

    relu, tanh, ours = means("training", "breakout", LAST, ".1f")
    assert f"Breakout points that way: {ours}, tanh {tanh}, relu {relu}" in page
    relu, tanh, ours = means("training", "spaceinvaders", LAST, ".0f")
    assert f"Space Invaders does not: {ours}, tanh {tanh}, relu {relu}" in page
    relu, tanh, ours = means("srank", "breakout", LAST, ".0f")
    assert f"Breakout {ours}, tanh {tanh}, relu {relu} at the end" in page
    relu, tanh, ours = means("srank", "spaceinvaders", LAST, ".0f")
    assert f"Space Invaders {ours}, {tanh}, {relu}" in page
    for folder, name in (("breakout", "Breakout"), ("spaceinvaders", "Space Invaders")):
        relu, tanh, ours = means("dead", folder, LAST, ".3f")
        assert f"{name} {ours}, tanh {tanh}, relu {relu}" in page
    pairs = len([*pqn_pairs()])
    fewer = re.search(r"measurements of (\d) of (\d) pairs of runs", page)
    assert int(fewer[2]) == pairs and fewer[0] in (PQN / "README.md").read_text()
    seeds = PQN_TABLES["breakout", LAST][0]
    over = 0
    for seed in seeds:
        pair = [values["training"]["breakout", name, seed, LAST] for name in ("relu", "tanh_hr")]
        over += pair[0] < pair[1]
    assert f"ahead of tanh in {len(seeds)} of {len(seeds)} seeds and of relu in {over}" in page


def test_hours_in_the_readme_are_steps_over_measured_rates():
    speed = RESULTS / "2026-atari-speed"
    cpu = {}
    for file in ("speed.json", "dqn.json"):
        for row in json.loads((speed / file).read_text())["results"]:
            if row["part"] == "script":
                cpu[row["algorithm"]] = row["steps_per_second"]
    gpu = (RESULTS / "2026-gpu-speed/gpu.md").read_text()
    atari = (RESULTS / "2026-gpu-speed/h100_atari.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for name in ("dqn", "ppo", "pqn"):
        printed = re.search(
            rf"`{name}_atari.py`, 10M steps \| ([\d.]+) h \| ([\d.]+) (h|min) \|", readme
        )
        rate = re.search(rf"\| {name} \| script \| True \| \d+ \| ([\d,]+)", atari)[1]
        rate = float(rate.replace(",", ""))
        hours = float(printed[2]) / (60 if printed[3] == "min" else 1)
        assert float(printed[1]) == pytest.approx(1e7 / cpu[name] / 3600, rel=0.02)
        assert hours == pytest.approx(1e7 / rate / 3600, rel=0.02)

    loop = json.loads((RESULTS / "2026-sac-speed/loop.json").read_text())["results"]
    warm = {row["seeds"]: row["seed_updates_per_s"] for row in loop if row["start"] == "warm"}
    updates = 10 * (1_000_000 - 5_000)
    printed = re.search(r"1 seed (\d+) h, 5 seeds (\d+) h \| 10 seeds ([\d.]+) h", readme)
    fastest = float(
        re.search(r"\| 10 \| True \| True \|.*\| ([\d,]+) \|$", gpu, re.M)[1].replace(",", "")
    )
    assert float(printed[1]) == pytest.approx(updates / warm[1] / 3600, rel=0.03)
    assert float(printed[2]) == pytest.approx(5 * updates / warm[5] / 3600, rel=0.03)
    assert float(printed[3]) == pytest.approx(10 * updates / fastest / 3600, rel=0.03)


# ---- docs/performance.md -------------------------------------------------------------------------


def atari_peers(name: str) -> dict:
    """variant: its numbers, of a file that benchmarks/atari_peers.py wrote."""
    results = json.loads((RESULTS / f"2026-atari-speed/{name}.json").read_text())["results"]
    (result,) = results.values()
    return result["variants"]


def test_tables_on_the_performance_page_are_those_of_the_benchmarks():
    page = (ROOT / "docs/performance.md").read_text()
    assert "\n".join(sac_table.table(RESULTS / "2026-sac-speed")) in page
    for name in ("dqn_peers", "ppo_peers_1", "ppo_peers_2", "pqn_peers"):
        content = json.loads((RESULTS / f"2026-atari-speed/{name}.json").read_text())
        lines = table_of_peers(content["results"])[2:]
        assert "\n".join(lines) in page


def sac_ratio(file: str, seeds: int, ratio: str) -> list[str]:
    """Of relu and crational, two digits."""
    rows = json.loads((RESULTS / f"2026-sac-speed/{file}.json").read_text())["rows"]
    found = {}
    for row in rows:
        if row["mode"] == "compiled" and row["seeds"] == seeds:
            found[row["variant"]] = f"{row[ratio]:.2f}"
    return [found["relu"], found["crational"]]


def test_the_first_table_on_the_performance_page_matches_the_measurements():
    ppo = [atari_peers(file)["sb3"]["ours_over_it"] for file in ("ppo_peers_1", "ppo_peers_2")]
    pqn = atari_peers("pqn_peers")
    expected = [
        sac_ratio("one_core", 1, "speed_over_SBX"),
        sac_ratio("two_cores", 5, "speed_over_SBX"),
        sac_ratio("two_cores", 10, "speed_over_SBX"),
        sac_ratio("one_core", 1, "speed_over_SB3"),
        sac_ratio("two_cores", 10, "speed_over_SB3"),
        sac_ratio("contended", 5, "speed_over_SB3"),
        sac_ratio("two_cores", 5, "speed_over_one_thread"),
        sac_ratio("two_cores", 10, "speed_over_one_thread"),
        [f"{atari_peers('dqn_peers')['sb3']['ours_over_it']:.2f}", ""],
        [", ".join(f"{ratio:.2f}" for ratio in ppo), ""],
        [f"{pqn['cleanrl']['ours_over_it']:.2f}", ""],
        [f"{pqn['jax']['ours_over_it']:.2f}", ""],
    ]
    page = (ROOT / "docs/performance.md").read_text()
    head = "| what | beside | relu | crational | target |"
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    printed = [[cell.strip() for cell in line.split("|")[3:5]] for line in lines]
    assert printed == expected


def test_the_loop_table_on_the_performance_page_matches_the_measurements():
    rows = json.loads((RESULTS / "2026-sac-speed/loop.json").read_text())["results"]
    assert [(row["seeds"], row["start"]) for row in rows] == [
        (1, "cold"),
        (1, "warm"),
        (5, "cold"),
        (5, "warm"),
    ]
    page = (ROOT / "docs/performance.md").read_text()
    for label, key, form in (
        ("seconds from the command", "first_update_after_s", "{:.1f}"),
        ("seed-updates/s of the whole loop", "seed_updates_per_s", "{:.0f}"),
        ("share of updates in the loop", "updates_share", "{:.1%}"),
        ("share of network metrics", "metrics_share", "{:.2%}"),
        ("share of evaluation", "evaluation_share", "{:.2%}"),
        ("peak resident memory, MB", "peak_rss_mb", "{:.0f}"),
    ):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {label}")]
        printed = [cell.strip().replace(" %", "%") for cell in line.split("|")[2:-1]]
        assert printed == [form.format(row[key]) for row in rows]


def test_sentences_on_dqn_and_jax_match_the_measurements():
    page = (ROOT / "docs/performance.md").read_text()
    dqn = atari_peers("dqn_peers")
    columns = zip(dqn["ours_double_q"]["speeds"], dqn["sb3"]["speeds"], strict=True)
    ratio = np.median([ours / theirs for ours, theirs in columns])
    assert f"the default, with Double DQN, {ratio:.2f})" in page
    jax = atari_peers("pqn_peers")["jax"]
    cores = np.median([turn["cpu_seconds"] / turn["seconds"] for turn in jax["turns"]])
    assert f"uses {cores:.1f} of the two cores" in page
