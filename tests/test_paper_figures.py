"""The papers' figures from synthetic run folders:
what is drawn is compared with slow loops, and missing runs are reported.

`pytest -q tests/test_paper_figures.py` (about 40 s).
"""

import csv
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import activations
import figures
import plots.aggregation
import plots.cr
import plots.panels
import plots.reading
import plots.recording
import plots.study
import plots.style
import plots.variants
import runlog
from runlog import identity

RATIONAL = {
    name: getattr(activations.RationalConfig(), name)
    for name in ("init_scale", "remove_constraint")
}
RATIONAL |= {"coefficient_weight_decay": 0.0}


def write_run(
    root: Path,
    script: str,
    env: str,
    activation: str,
    seed: int,
    rows: dict,
    status="finished",
    **config,
):
    """A run folder as runlog writes it. rows: key -> (steps, values)."""
    config = {"env_id": env, "activation": activation, "seed": seed, "rational": RATIONAL, **config}
    digest = identity.config_hash(config, ("seed",))
    folder = root / identity.run_name(env, script, activation, seed, digest)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    meta = {
        "status": status,
        "git": {"commit": "0", "dirty": False},
        "elapsed_s": 1.0,
        "peak_memory_mb": 1.0,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    lines = []
    for key, (x, y) in rows.items():
        for step, value in zip(x, map(float, y)):
            lines.append(f"{step},{key},{value!r},1.5\n")
    (folder / "scalars.csv").write_text("step,key,value,wall_time\n" + "".join(lines))
    return folder


def read_csv(path: Path) -> list[dict]:
    with open(path) as file:
        return list(csv.DictReader(file))


STEPS = np.array([10, 20, 30])
DMC = "dm_control/cheetah-run-v0"
SWEEP = "metaworld/sweep-v3"
BIASED = {DMC: (1, 3, 4), SWEEP: (1, 2, 3, 4)}  # seeds with an overestimation


def sac_runs(root: Path, seed: int = 0, **options) -> dict:
    """3 activations x 2 suites x 4 seeds;
    (activation, env, seed) -> (return or success, normalised overestimation)."""
    rng = np.random.default_rng(seed)
    truth = {}
    for activation in ("relu", "rational", "crational"):
        for env in (DMC, SWEEP):
            for s in range(1, 5):
                score = rng.random(3) * (1_000 if env == DMC else 1)
                bias = rng.normal(size=3)
                rows = {"eval/episodic_return": (STEPS, score if env == DMC else 7 * score)}
                rows |= {"eval/success": (STEPS, score)} if env == SWEEP else {}
                rows |= {"overestimation/normalised": (STEPS, bias)}
                write_run(root, "sac_continuous", env, activation, s, rows, utd=10, **options)
                truth[activation, env, s] = score, bias
    return truth


def test_cr1_is_the_iqm_of_the_last_scores(tmp_path):
    truth = sac_runs(tmp_path / "runs")
    figures.main(["cr1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    rows = {(row["group"], row["variant"]): row for row in read_csv(tmp_path / "out" / "cr1.csv")}
    assert len(rows) == 9
    for (group, variant), row in rows.items():
        envs = {"Meta-World": [SWEEP], "DMC": [DMC], "all": [DMC, SWEEP]}[group]
        last = [
            truth[variant, env, s][0][-1] / (1_000 if env == DMC else 1)
            for env, s in itertools.product(envs, range(1, 5))
        ]
        cut = len(last) // 4
        expected = np.mean(sorted(last)[cut : len(last) - cut])
        assert float(row["value"]) == pytest.approx(expected, rel=1e-5)
        assert float(row["low"]) <= expected <= float(row["high"]) and int(row["runs"]) == len(last)
    assert (tmp_path / "out" / "cr1.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "cr1.pdf").exists()


def test_cr_curves_draws_the_columns_of_its_csv(tmp_path, monkeypatch):
    truth = sac_runs(tmp_path / "runs")
    kept = {}
    monkeypatch.setattr(
        plots.style, "save", lambda figure, path: kept.update({path.name: figure}) or path
    )
    monkeypatch.setattr(plots.style, "reduce_colours", lambda path: None)
    plots.cr.cr_curves(tmp_path / "runs", tmp_path / "out")
    rows = [
        row
        for row in read_csv(tmp_path / "out" / "cr_curves.csv")
        if row["panel"] == "overestimation"
    ]
    for row in rows:
        index = STEPS.tolist().index(float(row["step"]))
        values = [
            truth[row["variant"], env, s][1][index]
            for env, s in itertools.product((DMC, SWEEP), range(1, 5))
        ]
        assert float(row["value"]) == pytest.approx(np.mean(values), rel=1e-5)
    (panel,) = (
        axes
        for axes in kept["cr_curves.png"].axes
        if axes.get_title(loc="left") == "overestimation"
    )
    lines = {line.get_label(): line for line in panel.lines}
    assert set(lines) == {"relu", "rational", "crational"}
    for name, line in lines.items():
        assert line.get_color() == plots.variants.style_of(name)["color"]
        mine = [(float(r["step"]), float(r["value"])) for r in rows if r["variant"] == name]
        np.testing.assert_allclose(line.get_xydata(), mine)
    assert "n = 4 seeds in each of 2 environments" in kept["cr_curves.png"].get_suptitle()


def test_missing_and_unfinished_cells_are_named_and_left_out_of_all_means(tmp_path, capsys):
    truth = sac_runs(tmp_path)
    for folder in tmp_path.glob("*sweep*__crational__*"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (folder,) = tmp_path.glob("*cheetah*__relu__s3__*")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"status": "running"}))
    study = plots.study.read_study(tmp_path, "sac_continuous", "eval/.*")
    printed = capsys.readouterr().out
    assert "missing: crational on metaworld/sweep-v3" in printed
    assert "missing: relu on dm_control/cheetah-run-v0 s3 (running)" in printed
    found = plots.panels.aggregate(study, plots.cr.IQM)
    assert {name: (curve.environments, curve.runs) for name, curve in found.items()} == {
        "relu": (1, 3),
        "rational": (1, 4),
        "crational": (1, 4),
    }
    relu = [truth["relu", DMC, s][0] / 1_000 for s in (1, 2, 4)]
    # floor(3 / 4) = 0 are cut
    np.testing.assert_allclose(found["relu"].value, np.mean(relu, axis=0))
    assert "missing: relu on" in study.counts
    note = f"not in the statistics: {SWEEP} (not of every variant)"
    assert study.shared_notes() == [note]
    assert study.only(["relu", "rational"]).shared_notes() == []


def test_a_diverged_run_carries_its_last_value_forward_and_is_counted(tmp_path):
    for s, (steps, status) in enumerate([(STEPS, "finished"), (STEPS[:1], "diverged")], start=1):
        rows = {"eval/episodic_return": (steps, 100.0 * s * np.ones(len(steps)))}
        write_run(tmp_path, "sac_continuous", DMC, "relu", s, rows, status)
    study = plots.study.read_study(tmp_path, "sac_continuous", "eval/.*")
    found = plots.panels.aggregate(study, plots.cr.IQM)
    np.testing.assert_allclose(found["relu"].value, [0.15] * 3)
    assert "1 diverged (last value carried forward)" in study.counts


def test_on_grid_never_looks_ahead():
    rows = np.array([[3.0, 30.0], [5.0, 50.0], [5.5, 56.0], [9.0, 90.0]])
    np.testing.assert_allclose(
        plots.aggregation.on_grid(rows, np.array([2.0, 3, 4, 5, 8, 9, 12])),
        [np.nan, 30, 30, 50, 56, 90, 90],
    )
    windowed = plots.aggregation.on_grid(rows, np.array([2.0, 5, 6, 8, 12]), window=2.0)
    # slow: mean of (g - 2, g], else the last one before
    for at, value in zip((2.0, 5, 6, 8), windowed):
        inside = [v for x, v in rows if at - 2 < x <= at]
        before = [v for x, v in rows if x <= at]
        expected = np.mean(inside) if inside else (before[-1] if before else np.nan)
        np.testing.assert_allclose(value, expected)
    # after the end: the window that ends with the last row, (9 - 2, 9] and (9 - 4, 9]
    assert windowed[-1] == 90
    assert plots.aggregation.on_grid(rows, np.array([40.0]), window=4.0) == [(56 + 90) / 2]
    changed = rows.copy()
    changed[-1, 1] = -1e9  # what comes later changes nothing before
    np.testing.assert_array_equal(
        plots.aggregation.on_grid(changed, np.array([4.0, 8])),
        plots.aggregation.on_grid(rows, np.array([4.0, 8])),
    )


def test_runs_of_two_lengths_are_refused_unless_where_selects_one(tmp_path, capsys):
    for length in (30, 60):
        steps = STEPS * length // 30  # a finished run has rows to its end
        rows = {"eval/episodic_return": (steps, steps)}
        write_run(tmp_path, "sac_continuous", DMC, "relu", 1, rows, total_timesteps=length)
    with pytest.raises(SystemExit) as ended:
        figures.main(["cr1", "--runs", str(tmp_path)])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "differ in total_timesteps (30, 60); choose by --where total_timesteps=30" in error
    study = plots.study.read_study(tmp_path, "sac_continuous", "eval/.*", ["total_timesteps=60"])
    assert len(study.cells) == 1
    for where, words in (
        ("lenght=3", "--where lenght: is not a setting"),
        ("total_timesteps=31", "no run of sac"),
    ):
        with pytest.raises(runlog.UserError, match=words):
            plots.study.read_study(tmp_path, "sac_continuous", "eval/.*", [where])


def test_variants_are_named_after_settings_that_most_runs_do_not_have(tmp_path):
    rows = {"eval/episodic_return": (STEPS, STEPS)}
    for s in (1, 2):
        write_run(tmp_path, "sac_continuous", DMC, "rational", s, rows, utd=10, layer_norm=False)
        write_run(tmp_path, "sac_continuous", DMC, "crational", s, rows, utd=10, layer_norm=False)
    write_run(tmp_path, "sac_continuous", DMC, "crational", 1, rows, utd=1, layer_norm=False)
    write_run(tmp_path, "sac_continuous", DMC, "rational", 1, rows, utd=10, layer_norm=True)
    removed = RATIONAL | {"remove_constraint": True}
    write_run(
        tmp_path,
        "sac_continuous",
        DMC,
        "crational",
        1,
        rows,
        utd=10,
        layer_norm=False,
        rational=removed,
    )
    study = plots.study.read_study(tmp_path, "sac_continuous", "eval/.*")
    assert study.labels == [
        "rational",
        "rational, LayerNorm",
        "crational",
        "crational, no |x/c|^d",
        "crational, utd 1",
    ]
    assert "utd 10 unless stated" in study.counts
    styles = plots.variants.styles_of(study.activation_of)
    ours = [look["color"] for label, look in styles.items() if label.startswith("crational")]
    assert ours == plots.variants.shades(plots.variants.BLUE, 3)
    assert len({look["color"] for look in styles.values()}) == 5


def test_only_keeps_the_gaps_of_its_variants_and_names_those_without_a_run(tmp_path):
    sac_runs(tmp_path)
    for folder in [
        *tmp_path.glob("*sweep*__crational__s[23]__*"),
        *tmp_path.glob("*cheetah*__relu__s1__*"),
    ]:
        shutil.rmtree(folder)
    study = plots.study.read_study(tmp_path, "sac_continuous", "eval/.*")
    gaps = [plots.study.Missing("relu", DMC, (1,)), plots.study.Missing("crational", SWEEP, (2, 3))]
    assert study.missing == gaps
    study = study.only(["crational", "snake"])
    assert study.missing == [gaps[1], plots.study.Missing("snake")]
    texts = [str(gap) for gap in study.missing]
    assert texts == [f"crational on {SWEEP} s2 s3", "snake (no run)"]
    assert study.counts.endswith(f"\nmissing: {texts[0]}; {texts[1]}")


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, plots; sys.exit('matplotlib' in sys.modules or 'runlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_reading_takes_the_wanted_keys_and_skips_half_a_line(tmp_path):
    folder = write_run(
        tmp_path,
        "x",
        DMC,
        "relu",
        1,
        {"eval/a": (STEPS, [1.0, float("nan"), -2.5e-7]), "eval/ab": ([1], [2])},
    )
    with open(folder / "scalars.csv", "a") as file:
        file.write("40,eval/a,3.")
    found = plots.reading.read_scalars(folder, "eval/(a|b)")
    assert list(found) == ["eval/a"]
    np.testing.assert_array_equal(
        found["eval/a"], [[10, 1, 1.5], [20, np.nan, 1.5], [30, -2.5e-7, 1.5]]
    )
    assert set(plots.reading.read_scalars(folder)) == {"eval/a", "eval/ab"}


def test_every_row_has_a_subcommand_and_every_figure_number_an_alias():
    assert set(figures.ALIASES) <= set(figures.ROWS)
    named = set(figures.ROWS).union(*figures.ALIASES.values())
    assert figures.row_of("hr9") == "hr1" and figures.row_of("hr7") == "hr7"
    # 5 is a drawing of the idea
    assert {f"hr{k}" for k in [*range(1, 5), 6, 7, *range(9, 26)]} <= named
    assert {"cr1", "cr_curves", "cr_ablations", "cr_continual", "cr_atari"} <= named


KEYS = plots.panels.keys_of(plots.cr.IQM, plots.cr.BIAS)


def diverge(folder: Path) -> None:
    """Changes a run into one that diverged before it logged anything."""
    (folder / "scalars.csv").write_text("step,key,value,wall_time\n")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"status": "diverged"}))


def test_a_run_that_diverged_before_its_first_evaluation_scores_0_and_is_in_no_other_mean(tmp_path):
    """It still counts as a run: the IQM is of four scores, one of them 0. The mean overestimation
    is of the other three."""
    truth = sac_runs(tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*cheetah*__rational__s2__*")
    diverge(folder)
    plots.cr.cr1(tmp_path / "runs", tmp_path / "out")
    rows = {(row["group"], row["variant"]): row for row in read_csv(tmp_path / "out" / "cr1.csv")}
    assert {row["runs"] for (group, _), row in rows.items() if group == "DMC"} == {"4"}
    assert len(rows) == 9
    last = sorted([truth["rational", DMC, s][0][-1] / 1_000 for s in (1, 3, 4)] + [0.0])
    assert float(rows["DMC", "rational"]["value"]) == pytest.approx(np.mean(last[1:3]), rel=1e-5)
    caption = "\n".join(plots.recording.read_index(tmp_path / "out")["cr1"]["caption"])
    assert (
        "diverged before the first value count as 0 in IQM, normalised: rational 1 of 8" in caption
    )
    study = plots.study.read_study(tmp_path / "runs", "sac_continuous", KEYS)
    bias = plots.panels.aggregate(study, plots.cr.BIAS)["rational"]
    means = [
        np.mean([truth["rational", env, s][1] for s in seeds], axis=0)
        for env, seeds in BIASED.items()
    ]
    np.testing.assert_allclose(bias.value, np.mean(means, axis=0))
    notes = plots.panels.early_notes(study, [plots.cr.BIAS])
    assert notes == [
        "runs that diverged before the first value are left out of overestimation: rational 1 of 8"
    ]


def test_a_variant_whose_runs_all_diverged_at_once_is_a_line_at_0(tmp_path):
    sac_runs(tmp_path)
    for folder in tmp_path.glob("*__rational__*"):
        diverge(folder)
    study = plots.study.read_study(tmp_path, "sac_continuous", "eval/.*")
    found = plots.panels.aggregate(study, plots.cr.IQM)
    assert found["rational"].value.tolist() == [0, 0, 0] and found["rational"].runs == 8
    assert found["relu"].environments == 2


def test_environments_without_a_score_and_two_names_of_one_run_are_reported(tmp_path, capsys):
    sac_runs(tmp_path)
    rows = {"eval/episodic_return": (STEPS, 12_000 + STEPS), "eval/success": (STEPS, [1, 1, 1])}
    for env in ("HalfCheetah-v5", "metaworld/reach-v3,push-v3"):
        for activation in ("relu", "rational", "crational"):
            write_run(tmp_path, "sac_continuous", env, activation, 1, rows, utd=10)
    found = plots.panels.aggregate(
        plots.study.read_study(tmp_path, "sac_continuous", "eval/.*"), plots.cr.IQM
    )
    printed = capsys.readouterr().out
    assert "left out: HalfCheetah-v5" in printed
    assert "left out: metaworld/reach-v3,push-v3" in printed
    assert max(found["relu"].value) < 1 and found["relu"].environments == 2
    for activation in ("tanh*tanh", "tanh_hr"):
        write_run(tmp_path, "sac_continuous", DMC, activation, 1, rows, utd=10)
    with pytest.raises(runlog.UserError, match="are both tanh_hr, seed 1"):
        plots.study.read_study(tmp_path, "sac_continuous", "eval/.*")
