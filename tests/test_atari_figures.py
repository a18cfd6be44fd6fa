"""HR figures, table and overview from synthetic runs.

`pytest -q tests/test_atari_figures.py` (about 40 s).
"""

import csv
import itertools
import json
import statistics

import numpy as np
import pytest
from test_paper_figures import DMC, STEPS, SWEEP, read_csv, sac_runs, write_run

import figures
import plots.cr
import plots.hr
import plots.overview
import plots.recording
import plots.redraw
import plots.statistics
import plots.study
import plots.style
import plots.tables
import runlog

GAMES = ("Breakout", "Pong", "SpaceInvaders")


def pqn_runs(root, games=GAMES, activations=("relu", "tanh_hr"), seeds=2) -> dict:
    """(activation, game, seed) -> evaluation returns at STEPS."""
    rng = np.random.default_rng(1)
    truth = {}
    for activation in activations:
        for game in games:
            for seed in range(1, seeds + 1):
                truth[activation, game, seed] = score = rng.normal(100, 50, size=3)
                rows = {
                    "eval/episodic_return": (STEPS, score),
                    "charts/episodic_return": (STEPS, score / 2),
                }
                rows |= {
                    "network/q/fc1/dead_share": (STEPS, rng.random(3)),
                    "network/q/fc1/srank": (STEPS, [3, 2, 1]),
                }
                config = {"layer_norm": "channel", "encoder_activation": [], "learning_rate": 1e-4}
                write_run(root, "pqn_atari", game, activation, seed, rows, **config)
    return truth


def test_hr1_is_the_median_over_games_of_mean_human_normalised_scores(tmp_path):
    truth = pqn_runs(tmp_path / "runs")
    # Fig. 9 is of this row
    figures.main(["hr9", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    rows = read_csv(tmp_path / "out" / "hr1.csv")
    assert len(rows) == 6
    for row in rows:
        index = STEPS.tolist().index(float(row["step"]))
        means = []
        for game in GAMES:
            random, human = plots.statistics.atari_scores()[game]
            scores = [
                (truth[row["variant"], game, seed][index] - random) / (human - random)
                for seed in (1, 2)
            ]
            means.append(sum(scores) / 2)
        assert float(row["value"]) == pytest.approx(sorted(means)[1], rel=1e-5)
    final = read_csv(tmp_path / "out" / "hr1_final.csv")
    assert [(row["variant"], row["step"]) for row in final] == [("relu", "30"), ("tanh_hr", "30")]
    captions = json.loads((tmp_path / "out" / "figures.json").read_text())
    for spec in captions.values():
        assert not any("earlier" in line for line in spec["caption"])
    late = next((tmp_path / "runs").glob("*tanh_hr*s2*")) / "scalars.csv"
    lines = late.read_text().splitlines(keepends=True)
    late.write_text("".join(line for line in lines if not line.startswith("30,eval/")))
    figures.main(["hr1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    for spec in json.loads((tmp_path / "out" / "figures.json").read_text()).values():
        assert any(line.endswith("up to 10 steps earlier") for line in spec["caption"])


def test_hr19_has_eight_games_per_page(tmp_path, monkeypatch):
    games = sorted(plots.statistics.atari_scores())[:10]
    pqn_runs(tmp_path, games, activations=("relu",), seeds=1)
    monkeypatch.setattr(plots.style, "save", lambda figure, path: path)
    monkeypatch.setattr(plots.style, "reduce_colours", lambda path: None)
    paths = plots.hr.hr19(tmp_path, tmp_path / "out")
    assert {path.name for path in paths if path.suffix == ".png"} == {"hr19.png", "hr20.png"}
    pages = [read_csv(tmp_path / "out" / f"hr{k}.csv") for k in (19, 20)]
    assert [sorted({row["environment"] for row in page}) for page in pages] == [
        games[:8],
        games[8:],
    ]
    for page in pages:
        assert all(row["std"] == "nan" for row in page)  # one seed


def dqn_runs(root) -> dict:
    """(activation, game, seed) -> training returns at steps 1 to 40, dead fraction at STEPS."""
    rng = np.random.default_rng(2)
    truth = {}
    for activation in ("relu", "tanh", "tanh_hr"):
        for game in GAMES[:2]:
            for seed in (1, 2):
                returns = rng.normal(10, 5, size=40)
                dead = rng.random(3)
                truth[activation, game, seed] = returns, dead
                rows = {"charts/episodic_return": (np.arange(1, 41), returns)}
                rows |= {
                    "network/q/fc1/dead_share": (STEPS, dead),
                    "network/q/fc1/srank": (STEPS, 100 * dead),
                }
                config = {
                    "layer_norm": "none",
                    "encoder_activation": ["relu"],
                    "width": 512,
                    "redo": False,
                }
                write_run(root, "dqn_atari", game, activation, seed, rows, **config)
    return truth


def test_hr7_normalises_by_the_relu_runs_and_shows_dead_fractions(tmp_path, capsys):
    truth = dqn_runs(tmp_path / "runs")
    figures.main(["hr7", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert "hr15: fewer than two of relu; relu_hr" in capsys.readouterr().out
    rows = read_csv(tmp_path / "out" / "hr7.csv")
    scores = [row for row in rows if row["panel"].startswith("baseline")]
    assert {row["variant"] for row in scores} == {"relu", "tanh", "tanh_hr"}
    assert len(scores) == 3 * 40
    for row in scores:
        # 40 rows on the grid: a fortieth of them is one
        step = float(row["step"])
        window = 1.0
        means = []
        variances = []
        for game in GAMES[:2]:
            normalised = []
            for seed in (1, 2):
                relu = np.concatenate([truth["relu", game, s][0] for s in (1, 2)])
                value = truth[row["variant"], game, seed][0][int(step - window)]
                normalised.append((value - relu.min()) / (relu.max() - relu.min()))
            means.append(statistics.mean(normalised))
            variances.append(statistics.variance(normalised))
        assert float(row["value"]) == pytest.approx(np.mean(means), rel=1e-4)
        assert float(row["high"]) - float(row["value"]) == pytest.approx(
            sum(variances) ** 0.5 / 2, rel=1e-3, abs=1e-5
        )
    for name in ("hr8b", "hr13"):  # without relu among their curves, normalised by it
        others = [
            row
            for row in read_csv(tmp_path / "out" / f"{name}.csv")
            if row["panel"].startswith("baseline")
        ]
        mine = [row for row in scores if row["variant"] != "relu"]
        assert {(r["variant"], r["step"], r["value"]) for r in others} == {
            (r["variant"], r["step"], r["value"]) for r in mine
        }
    spec = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert "rational (no run)" in spec["hr7"]["caption"][1]
    assert "sigmoid (no run)" in spec["hr7"]["caption"][1]
    (table,) = read_csv(tmp_path / "out" / "hr_table2.csv")
    dead = {
        v: np.mean([truth[v, game, s][1] for game, s in itertools.product(GAMES[:2], (1, 2))])
        for v in ("tanh", "tanh_hr")
    }
    assert table["activation"] == "tanh" and table["games"] == table["seeds"] == "2"
    assert float(table["without HR"]) == pytest.approx(dead["tanh"], rel=1e-5)
    assert float(table["change"]) == pytest.approx(dead["tanh_hr"] / dead["tanh"] - 1, rel=1e-4)


def test_the_band_of_hr8_is_the_standard_deviation_of_the_mean_over_games(tmp_path):
    """Games with 3 and 2 seeds, and with 3 and 1: a seed alone has no deviation."""
    ranks = {"Breakout": [3.0, 7.0, 5.0], "Qbert": [40.0, 10.0]}
    for seeds_of_qbert in (2, 1):
        root = tmp_path / f"{seeds_of_qbert}"
        for game, values in ranks.items():
            number = seeds_of_qbert if game == "Qbert" else 3
            for seed, value in enumerate(values[:number], start=1):
                rows = {"network/agent/fc1/srank": (STEPS, [value] * 3)}
                rows["charts/episodic_return"] = STEPS, [value] * 3
                write_run(root / "runs", "ppo_atari", game, "relu", seed, rows)
        figures.main(["hr8", "--runs", str(root / "runs"), "--out", str(root / "out")])
        rows = plots.recording.read_csv(root / "out" / "hr8cd.csv")
        ranked = [row for row in rows if row["panel"].startswith("effective rank")]
        assert len(ranked) == 3
        figure = plots.redraw.figure_of(root / "out", "hr8cd")
        for row in ranked:
            if seeds_of_qbert == 1:
                assert row["value"] == 0.5 * (5 + 40) and np.isnan(row["low"])
                continue
            deviations = [statistics.stdev(values) for values in ranks.values()]
            half = (deviations[0] ** 2 + deviations[1] ** 2) ** 0.5 / 2
            assert row["value"] == 0.5 * (5 + 25)
            assert row["low"] == pytest.approx(15 - half, rel=1e-5)
            assert row["high"] == pytest.approx(15 + half, rel=1e-5)
        title = " ".join(figure.get_suptitle().split())
        if seeds_of_qbert == 2:
            assert title.endswith("; mean over environments, band: standard deviation over seeds")
        else:
            why = "mean over environments, no band: some environment has one seed"
            assert f"in effective rank, last hidden layer: {why}" in title


def test_contributions_to_q_have_sample_standard_deviations(tmp_path):
    values = [2.0, 3.0, 7.0]
    for seed, value in enumerate(values, start=1):
        rows = {f"q_split/{part}": (STEPS, [value] * 3) for part in ("live", "dead", "bias")}
        write_run(tmp_path / "runs", "dqn_atari", "Breakout", "tanh", seed, rows)
    figures.main(["hr4", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    rows = plots.recording.read_csv(tmp_path / "out" / "hr4.csv")
    assert len(rows) == 9
    for row in rows:
        assert row["mean"] == 4 and row["std"] == pytest.approx(statistics.stdev(values), rel=1e-5)


def test_an_encoder_with_relu_is_a_variant_of_pqn_whose_default_follows_the_activation(tmp_path):
    """PQN's convolutions have --activation by default; those of DQN and PPO have relu."""
    rows = {"charts/episodic_return": (STEPS, STEPS)}
    for script, encoders in (("pqn_atari", ([], ["relu"])), ("dqn_atari", (["relu"], ["tanh"]))):
        for encoder in encoders:
            config = {"layer_norm": "none", "encoder_activation": encoder}
            write_run(tmp_path / "runs", script, "Breakout", "tanh", 1, rows, **config)
    groups = plots.tables.groups_of(tmp_path / "runs")
    assert list(groups["pqn_atari", "Breakout"]) == ["tanh", "tanh, encoder relu"]
    assert list(groups["dqn_atari", "Breakout"]) == ["tanh", "tanh, encoder tanh"]
    study = plots.study.read_study(tmp_path / "runs", "pqn_atari", "charts/.*")
    assert [label.replace("layer norm none, ", "") for label in study.labels] == [
        "tanh, layer norm none",
        "tanh, encoder relu",
    ]


def test_hr8_and_cr_atari_name_the_algorithm_without_runs(tmp_path, capsys):
    dqn_runs(tmp_path / "runs")
    paths = plots.hr.hr8(tmp_path / "runs", tmp_path / "out")
    assert "missing: ppo_atari" in capsys.readouterr().out
    assert {path.name for path in paths if path.suffix == ".png"} == {"hr16_dqn.png", "hr17.png"}
    paths = plots.cr.cr_atari(tmp_path / "runs", tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "cr_atari_dqn.csv")
    assert {row["variant"] for row in rows} == {"relu"}
    assert "missing: pqn_atari" in capsys.readouterr().out
    for name in ("hr4", "hr3"):
        assert figures.ROWS[name](tmp_path / "runs", tmp_path / "out") == []
    assert "hr4: no data for it" in capsys.readouterr().out


def test_an_empty_folder_gives_a_one_line_error(tmp_path, capsys):
    for name in [*figures.ROWS, "table", "overview"]:
        with pytest.raises(SystemExit) as ended:
            figures.main([name, "--runs", str(tmp_path), "--out", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert ended.value.code == 2, (name, error)
        assert error.startswith("error: --runs"), (name, error)
        assert error.count("\n") == 1, (name, error)
    assert not (tmp_path / "out").exists()


def test_table_has_a_row_per_setting_in_three_formats(tmp_path, capsys):
    truth = sac_runs(tmp_path / "runs")
    write_run(
        tmp_path / "runs",
        "pqn_atari",
        "Pong",
        "tanh*tanh",
        1,
        {"eval/episodic_return": (STEPS, [1, 2, 4])},
        "running",
    )
    figures.main(["table", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    rows = read_csv(tmp_path / "out" / "table.csv")
    assert len(rows) == 7
    assert rows[0]["setting"] == "tanh*tanh"
    assert rows[0]["return"] == "4.0"
    # nobody logs it
    assert rows[0]["state"] == "0 ended, 0 diverged" and "dead neurons" not in rows[0]
    for row in rows[1:]:
        last = [truth[row["setting"], row["environment"], s][0][-1] for s in range(1, 5)]
        key, text = ("return", "{:.1f}") if row["environment"] == DMC else ("success", "{:.2f}")
        assert row[key] == f"{text.format(np.mean(last))} +- {text.format(np.std(last, ddof=1))}"
        assert row["n"] == "4"
    runs = read_csv(tmp_path / "out" / "runs.csv")
    assert len(runs) == 25
    assert {row["folder"] for row in runs} == {path.name for path in (tmp_path / "runs").iterdir()}
    markdown = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert len(markdown) == 11 and len({line.count(" | ") for line in markdown[:9]}) == 1
    assert markdown[0] in capsys.readouterr().out
    latex = (tmp_path / "out" / "table.tex").read_text()
    assert latex.count(r"\\") == 8
    assert r"sac\_continuous" in latex
    assert r"$\pm$" in latex


def test_overview_shows_every_environment_of_any_folder(tmp_path, capsys, monkeypatch):
    truth = sac_runs(tmp_path / "runs")
    kept = []
    pqn_runs(
        tmp_path / "runs",
        games=sorted(plots.statistics.atari_scores())[:8],
        activations=("relu",),
        seeds=1,
    )
    monkeypatch.setattr(plots.style, "save", lambda figure, path: kept.append(figure) or path)
    monkeypatch.setattr(plots.style, "reduce_colours", lambda path: None)
    plots.overview.overview(tmp_path / "runs", tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("not on the page: pqn_atari, ") == 2
    assert "2 further environments" in kept[0].get_suptitle()
    panels = []
    for part in kept[0].subfigs:
        panels += part.axes
    named = {axes.get_title(): axes for axes in panels if ", " in axes.get_title()}
    assert len(named) == plots.overview.MOST_LINES
    lines = [
        line
        for line in named["sac_continuous, metaworld/sweep-v3"].lines
        if line.get_label() == "crational"
    ]
    # its score is the success rate
    mean = np.mean([truth["crational", SWEEP, s][0] for s in range(1, 5)], axis=0)
    np.testing.assert_allclose(lines[0].get_xydata(), np.stack([STEPS, mean], -1), rtol=1e-5)
    # no empty ones: SAC's have a score only here, PQN's dead-neuron fraction and srank too
    assert len(panels) == 2 * 1 + 6 * 3


def test_figures_json_is_enough_to_draw_again(tmp_path):
    pqn_runs(tmp_path / "runs")
    (csv_path, png, _) = plots.hr.hr1(tmp_path / "runs", tmp_path / "out")[:3]
    before = png.read_bytes()
    png.unlink()
    assert plots.redraw.redraw(tmp_path / "out", "hr1") == [png] and png.read_bytes() == before
    with open(csv_path) as file:
        assert len(list(csv.DictReader(file))) == 6
    assert set(json.loads((tmp_path / "out" / "figures.json").read_text())) == {"hr1", "hr1_final"}


def test_an_output_folder_that_cannot_be_made_ends_in_one_line(tmp_path):
    pqn_runs(tmp_path / "runs", activations=("relu",))
    (tmp_path / "file").write_text("")
    with pytest.raises(runlog.UserError, match="file"):
        plots.hr.hr1(tmp_path / "runs", tmp_path / "file" / "out")


def test_other_variants_and_games_do_not_shrink_a_figure(tmp_path, capsys):
    pqn_runs(tmp_path / "runs")
    pqn_runs(tmp_path / "runs", games=("Breakout",), activations=("rational",))
    # ale_py knows it, the table of human scores does not
    pqn_runs(tmp_path / "runs", games=("Carnival",))
    # as hr_fig1.sh does
    plots.hr.hr1(tmp_path / "runs", tmp_path / "out", variants=("relu", "tanh_hr"))
    printed = capsys.readouterr().out
    assert "left out: rational (--variants" in printed
    assert "left out: Carnival has no score" in printed
    final = read_csv(tmp_path / "out" / "hr1_final.csv")
    assert [(row["variant"], row["environments"], row["runs"]) for row in final] == [
        ("relu", "3", "6"),
        ("tanh_hr", "3", "6"),
    ]
    plots.hr.hr1(tmp_path / "runs", tmp_path / "out", variants=("relu", "rational"))
    assert {row["environments"] for row in read_csv(tmp_path / "out" / "hr1_final.csv")} == {"1"}
    plots.hr.hr1(tmp_path / "runs", tmp_path / "out")  # all that there is, in its natural order
    final = read_csv(tmp_path / "out" / "hr1_final.csv")
    assert [row["variant"] for row in final] == ["relu", "rational", "tanh_hr"]


def test_table_shows_training_returns_where_there_are_no_evaluations(tmp_path):
    returns = np.arange(80.0)
    rows = {"charts/episodic_return": (np.arange(1, 81), returns)}
    write_run(tmp_path, "ppo_atari", "Pong", "relu", 1, rows)
    ((row,), _) = plots.tables.summary(plots.tables.groups_of(tmp_path))
    # of the last fortieth: steps 79 and 80
    assert row["training return"] == "78.5" and "return" not in row
