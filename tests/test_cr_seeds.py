"""figures.py cr_seeds: every seed, and one variant against another, against loops over the runs.

`pytest -q tests/test_cr_seeds.py` (about 10 s).
"""

import itertools
import json

import numpy as np
import pytest
from test_paper_figures import write_run

import plots.redraw
from plots.claims import value_of
from plots.cr_seeds import IMPOSSIBLE_Q, QUANTITIES, cr_constraint, cr_seeds
from plots.recording import read_csv

REACH = "metaworld/reach-v3"
STEPS = np.array([20, 40, 60, 80, 100])
NAME = "cr_seeds-reach-v3"
DIVERGED_SEED = 3  # the seed of rational that diverges at step 70


def reach_runs(root) -> dict:
    """relu, rational and crational, five seeds; (activation, seed) -> quantity -> five values."""
    rng = np.random.default_rng(0)
    truth = {}
    for activation in ("relu", "rational", "crational"):
        for seed in range(1, 6):
            values = {"return": 1_000 * rng.random(5), "Q - G": 50 * rng.normal(size=5)}
            values["q"] = 2_000 * rng.random(5)
            rows = {
                "eval/episodic_return": values["return"],
                "overestimation/mean": values["Q - G"],
            }
            rows |= {"eval/success": rng.random(5), "losses/q_mean": values["q"]}
            rows["losses/alpha"] = rng.random(5) + 0.1
            if activation != "relu":
                layers = np.exp(3 * rng.normal(size=(2, 5)))
                rows["network/qf1/fc1/f_max"] = layers[0]
                rows["network/qf2/fc2/f_max"] = layers[1]
                values["output"] = layers.max(0)
            status = "finished"
            if (activation, seed) == ("rational", DIVERGED_SEED):
                status = "diverged"
                for key in values:
                    values[key][3:] = values[key][2]  # what it is compared with: carried forward
            rows = {key: (STEPS, value) for key, value in rows.items()}
            folder = write_run(
                root, "sac_continuous", REACH, activation, seed, rows, status, total_timesteps=100
            )
            if status == "diverged":
                meta = json.loads((folder / "meta.json").read_text())
                (folder / "meta.json").write_text(json.dumps(meta | {"step": 70}))
            truth[activation, seed] = values
    return truth


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeds")
    truth = reach_runs(root / "runs")
    cr_seeds(root / "runs", root / "out")
    return truth, root / "out"


def row_of(rows, **wanted) -> dict:
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_claims_match_loops_over_pairs_of_seeds(drawn):
    truth, out = drawn
    rows = read_csv(out / f"{NAME}-claims.csv")
    for index, step in enumerate(STEPS.tolist()):
        wanted = {"first": "crational", "second": "rational", "step": float(step)}
        for quantity in ("return", "Q - G", "output"):
            row = row_of(rows, quantity=quantity, **wanted)
            pairs = []
            for seed in range(1, 6):
                ours = truth["crational", seed][quantity][index]
                pairs.append((ours, truth["rational", seed][quantity][index]))
            if quantity == "output":
                expected = np.median([np.log(x / y) for x, y in pairs])
                assert np.log(row["value"]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
            else:
                expected = np.median([x - y for x, y in pairs])
                assert row["value"] == pytest.approx(expected, rel=1e-4)
            assert row["low"] <= row["value"] <= row["high"]
            above = sum(x > y for x, y in pairs)
            assert (row["n"], row["above"], row["below"]) == ("5", f"{above}", f"{5 - above}")
            assert float(row["p_larger"]) == pytest.approx(above / 5)


def test_a_diverged_seed_counts_as_the_worst_from_its_step_on(drawn):
    truth, out = drawn
    rows = read_csv(out / f"{NAME}-claims.csv")
    for step in STEPS.tolist():
        index = STEPS.tolist().index(step)
        wanted = {"first": "crational", "second": "rational", "step": float(step)}
        has_diverged = step >= 70
        fraction = row_of(rows, quantity="diverged", **wanted)
        assert fraction["value"] == pytest.approx(-0.2 if has_diverged else 0.0)
        row = row_of(rows, quantity="Q - G", **wanted)
        larger = 0
        for seed in range(1, 6):
            ours = truth["crational", seed]["Q - G"][index]
            theirs = truth["rational", seed]["Q - G"][index]
            if has_diverged and seed == DIVERGED_SEED:
                theirs = np.inf
            larger += ours > theirs
        assert float(row["p_larger_diverged_worst"]) == pytest.approx(larger / 5)
    (last,) = [row for row in read_csv(out / f"{NAME}-last.csv") if row["status"] == "diverged"]
    assert (last["variant"], last["seed"], last["diverged_at"]) == (
        "rational",
        f"{DIVERGED_SEED}",
        "70",
    )


def test_a_quantity_that_one_variant_lacks_is_not_compared(drawn):
    _, out = drawn
    rows = read_csv(out / f"{NAME}-claims.csv")
    against_relu = {row["quantity"] for row in rows if row["second"] == "relu"}
    assert "return" in against_relu and "output" not in against_relu


def test_impossible_values_are_counted():
    (impossible,) = [each for each in QUANTITIES if each.panel is IMPOSSIBLE_Q]
    assert [value_of(impossible, value) for value in (999.0, -1_001.0, 1e9)] == [0.0, 1.0, 1.0]
    assert value_of(QUANTITIES[0], 999.0) == 999.0


def test_the_summary_covers_the_values_at_each_step(drawn):
    truth, out = drawn
    rows = read_csv(out / f"{NAME}-summary.csv")
    for index, diverged in ((1, "0"), (4, "1")):
        step = float(STEPS[index])
        row = row_of(rows, quantity="return", variant="rational", step=step)
        values = [truth["rational", seed]["return"][index] for seed in range(1, 6)]
        assert float(row["median"]) == pytest.approx(np.median(values), rel=1e-4)
        assert (row["n"], row["diverged"]) == ("5", diverged)
        assert float(row["smallest"]) == pytest.approx(min(values), rel=1e-4)


def test_panels_show_every_seed_up_to_where_it_diverged_and_the_median(drawn):
    truth, out = drawn
    figure = plots.redraw.figure_of(out, f"{NAME}-values")
    panels = figure.axes[:3]
    assert [panel.get_title(loc="left") for panel in panels] == ["relu", "rational", "crational"]
    thin = [line for line in panels[1].get_lines() if line.get_linewidth() == 0.6]
    assert [len(line.get_xdata()) for line in thin] == [5, 5, 3, 5, 5]
    for seed, line in enumerate(thin, start=1):
        shown = truth["rational", seed]["return"][: len(line.get_ydata())]
        np.testing.assert_allclose(line.get_ydata(), shown, rtol=1e-5)
    (cross,) = [line for line in panels[1].get_lines() if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == 60
    (thick,) = [line for line in panels[1].get_lines() if line.get_linewidth() == 2.2]
    everyone = np.array([truth["rational", seed]["return"] for seed in range(1, 6)])
    np.testing.assert_allclose(thick.get_ydata(), np.median(everyone, axis=0), rtol=1e-5)


@pytest.mark.parametrize("activations", [("rational",), ("relu", "rational")])
def test_an_environment_in_which_every_run_diverged_at_once_appears_only_in_the_list(
    tmp_path, capsys, activations
):
    for activation, seed in itertools.product(activations, (1, 2)):
        folder = write_run(
            tmp_path / "runs", "sac_continuous", REACH, activation, seed, {}, "diverged"
        )
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"step": 5 * seed}))
    out = tmp_path / "out"
    cr_seeds(tmp_path / "runs", out)
    assert f"{NAME}-summary: no value in these runs, not written" in capsys.readouterr().out
    assert not (out / f"{NAME}-summary.md").exists()
    last = read_csv(out / f"{NAME}-last.csv")
    assert [row["diverged_at"] for row in last] == ["5", "10"] * len(activations)
    if len(activations) == 2:  # of each, both have diverged by the last step
        rows = read_csv(out / f"{NAME}-claims.csv")
        assert [row["step"] for row in rows] == [2, 4, 6, 8, 10]
        last_row = row_of(rows, step=10.0)
        assert (last_row["quantity"], last_row["value"], last_row["n"]) == ("diverged", 0, "2")


def test_the_picture_of_claims_shows_the_last_step(drawn):
    _, out = drawn
    rows = read_csv(out / f"{NAME}-claims.csv")
    figure = plots.redraw.figure_of(out, f"{NAME}-claims")
    panel = figure.axes[0]
    assert panel.get_title(loc="left") == "rational\n> relu"
    row = row_of(rows, first="rational", second="relu", quantity="return", step=100.0)
    dots = [container.lines[0].get_xydata()[0] for container in panel.containers]
    assert dots[0] == pytest.approx((float(row["p_larger"]), 0))


def test_the_constraint_is_compared_with_the_first_variant_only(tmp_path):
    """A fixed c, larger by a known ratio in each seed, and a temperature held at another value."""
    of_seed = {1: 5.0, 2: 6.0, 3: 40.0}
    variants = {
        "crational": {},
        "crational, c fixed": {"rational": {"constraint_schedule": "fixed"}},
        "crational, no autotune, alpha from 0.25": {"autotune": False, "init_temperature": 0.25},
    }
    for number, settings in enumerate(variants.values(), start=1):
        for seed, c in of_seed.items():
            rows = {"eval/episodic_return": (STEPS, np.full(5, 100.0 * number * seed))}
            rows["network/qf1/fc2/c_min"] = STEPS, np.full(5, number * c)
            rows["network/qf2/fc2/c_min"] = STEPS, np.full(5, 3 * number * c)
            write_run(
                tmp_path / "runs",
                "sac_continuous",
                REACH,
                "crational",
                seed,
                rows,
                total_timesteps=100,
                **settings,
            )
    out = tmp_path / "out"
    labels = list(variants)
    cr_constraint(tmp_path / "runs", out, variants=labels)
    name = "cr_constraint-reach-v3"
    rows = read_csv(out / f"{name}-claims.csv")
    assert {(row["first"], row["second"]) for row in rows} == {
        (labels[1], labels[0]),
        (labels[2], labels[0]),
    }
    for number, label in enumerate(labels[1:], start=2):
        row = row_of(rows, first=label, quantity="c, second layer", step=100.0)
        assert row["value"] == pytest.approx(number) and row["n"] == "3"
    last = read_csv(out / f"{name}-last.csv")
    row = row_of(last, variant="crational", seed="3")
    assert float(row["c, second layer"]) == pytest.approx((40 + 3 * 40) / 2)
    figure = plots.redraw.figure_of(out, f"{name}-seeds")
    titles = [panel.get_title(loc="left") for panel in figure.axes[:3]]
    assert [title.replace("\n", " ") for title in titles] == labels
