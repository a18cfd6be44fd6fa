"""figures.py redraw: the pictures under results/ come from the CSV files beside them,
number by number.

`pytest -q tests/test_redraw.py` (about 40 s).
"""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread, imsave
from scipy.ndimage import gaussian_filter

import figures
import plots.redraw
import plots.style

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PICTURES = sorted(RESULTS.rglob("*.png"))
CONTINUAL = RESULTS / "2026-continual"
REGRESSION = RESULTS / "2026-function-approximation"


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def labelled(panel) -> dict[str, np.ndarray]:
    return {
        line.get_label(): line.get_xydata()
        for line in panel.get_lines()
        if not line.get_label().startswith("_")
    }


def numbers(rows, *columns) -> np.ndarray:
    return np.array([[float(row[column]) for column in columns] for row in rows])


def test_every_committed_picture_has_an_entry_and_every_entry_a_picture():
    entries = set()
    for index in RESULTS.rglob("figures.json"):
        entries |= {index.parent / f"{name}.png" for name in read(index)}
    assert entries == {*PICTURES} and len(PICTURES) >= 19
    for index in RESULTS.rglob("figures.json"):
        for name, spec in read(index).items():
            assert all((index.parent / file).exists() for file in spec.get("csv", [f"{name}.csv"]))
            assert spec["caption"] and all(isinstance(line, str) for line in spec["caption"])


def read(index) -> dict:
    return json.loads(index.read_text())


def test_one_picture_of_each_kind_is_redrawn_as_committed(tmp_path, capsys):
    """The others differ in their numbers only; a slow test draws all."""
    copies = {}
    seen = set()
    for index in sorted(RESULTS.rglob("figures.json")):
        folder = tmp_path / index.parent.relative_to(RESULTS)
        kept = {}
        for name, spec in read(index).items():
            if spec["kind"] not in seen:
                seen.add(spec["kind"])
                kept[name] = spec
                for file in spec.get("csv", [f"{name}.csv"]):
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(index.parent / file, folder / file)
                copies[folder / f"{name}.png"] = index.parent / f"{name}.png"
        if kept:
            (folder / "figures.json").write_text(json.dumps(kept))
    assert seen >= {
        "compared",
        "continual",
        "densities",
        "parts",
        "preactivations",
        "regression",
        "study",
        "table1",
    }
    figures.main(["redraw", str(tmp_path)])
    assert [Path(line) for line in capsys.readouterr().out.splitlines()] == list(copies)
    for copy, committed in copies.items():
        assert likeness(copy, committed) > LIKE, committed


# Two drawings of the same data: fonts and layout differ a little between versions of matplotlib.
LIKE = 0.9


def likeness(new: Path, old: Path) -> float:
    """The smallest correlation between two pictures over the panels of the second:
    its data, not its white margins."""
    images = [gaussian_filter(imread(path)[..., :3].mean(-1), sigma=3.0) for path in (new, old)]
    if images[0].shape != images[1].shape:
        return 0.0
    figure = plots.redraw.figure_of(old.parent, old.stem)
    figure.canvas.draw()
    height, width = images[1].shape
    found = []
    for panel in figure.axes:
        left, bottom, right, top = panel.get_position().extents
        rows = slice(round((1 - top) * height), round((1 - bottom) * height))
        columns = slice(round(left * width), round(right * width))
        pixels = [image[rows, columns].ravel() for image in images]
        if pixels[1].std() > 1e-3:  # one with something in it
            found.append(np.corrcoef(*pixels)[0, 1] if pixels[0].std() > 0 else 0.0)
    return min(found)


def test_likeness_is_low_for_an_empty_picture_and_for_another_one(tmp_path):
    committed = RESULTS / "2026-sac-cartpole" / "curves.png"
    picture = imread(committed)
    imsave(tmp_path / "white.png", np.ones_like(picture))
    imsave(tmp_path / "mirrored.png", np.ascontiguousarray(picture[:, ::-1]))
    assert likeness(committed, committed) == pytest.approx(1.0)
    assert likeness(tmp_path / "white.png", committed) == 0.0
    assert likeness(tmp_path / "mirrored.png", committed) < 0.5


@pytest.mark.slow
def test_all_pictures_are_redrawn_as_committed(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("*.png"))
    paths = plots.redraw.redraw_all([tmp_path / "results"])
    assert {path.relative_to(tmp_path) for path in paths} == {
        path.relative_to(ROOT) for path in PICTURES
    }
    for path in paths:
        committed = ROOT / path.relative_to(tmp_path)
        assert likeness(path, committed) > LIKE, committed


def test_make_figures_redraws_results():
    done = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "figures"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "figures.py redraw results" in done.stdout


def test_continual_lines_are_the_means_of_the_csv():
    rows = table(CONTINUAL / "continual_curves.csv")
    figure = plots.redraw.figure_of(CONTINUAL, "continual-digits-random_labels")
    top = figure.axes[:3]
    middle = figure.axes[3:6]
    bottom = figure.axes[6:9]
    layers = {
        row["metric"].split("/")[2]
        for row in rows
        if row["metric"].startswith("network/classifier/fc")
    }
    last = f"network/classifier/{max(layers)}/dead_share"
    for line, metric in (
        (top, "charts/online_accuracy"),
        (middle, "task_end/ntk_srank"),
        (bottom, last),
    ):
        drawn = {}
        for panel, group in zip(line, ("activations", "rational", "crational")):
            assert group == "activations" or {label.split(",")[0] for label in labelled(panel)} == {
                group
            }
            drawn |= labelled(panel)
        assert len(drawn) == 14  # six activations, four settings of each of two
        for cell, points in drawn.items():
            where = ("digits random_labels", cell, metric)
            mine = [row for row in rows if (row["study"], row["cell"], row["metric"]) == where]
            np.testing.assert_array_equal(points, numbers(mine, "task", "mean"), err_msg=cell)
    band = top[0].collections[0].get_paths()[0].vertices
    first = [
        r
        for r in rows
        if (r["study"], r["cell"], r["metric"])[1:] == ("relu", "charts/online_accuracy")
    ][:15]
    assert {
        *map(tuple, numbers(first, "task", "low")),
        *map(tuple, numbers(first, "task", "high")),
    } <= {*map(tuple, band)}


def test_regression_shows_the_three_tables():
    runs, curves, fits = (table(REGRESSION / f"{name}.csv") for name in ("runs", "curves", "fits"))
    figure = plots.redraw.figure_of(REGRESSION, "shallow")
    panels = {panel.get_title().split(",")[0]: panel for panel in figure.axes}
    for name, width in (
        ("relu 1 x 200", "200"),
        ("tanh 1 x 200", "200"),
        ("tanh_hr 1 x 100", "100"),
    ):
        (column,) = (column for column in fits[0] if column.startswith(f"{name}, lr "))
        truth, fit = panels[name].get_lines()
        np.testing.assert_array_equal(fit.get_xydata(), numbers(fits, "x", column))
        x = truth.get_xdata()
        np.testing.assert_allclose(
            truth.get_ydata(), 10 * np.sin(7 * x) + 15 * np.sin(10 * x) + 5 * np.cos(5 * x)
        )
        cell = (name.split()[0], width)
        rate = column.rpartition(" ")[2]
        mine = [
            r
            for r in runs
            if (r["activation"], r["widths"]) == cell and float(r["learning_rate"]) == float(rate)
        ]
        errors = sorted(float(row["last_error"]) for row in mine)
        median = (errors[4] + errors[5]) / 2
        assert len(mine) == 10
        assert f"learning rate {rate}, error {median:.3g}" in panels[name].get_title()
        curve = [
            r
            for r in curves
            if (r["activation"], r["widths"]) == cell and float(r["learning_rate"]) == 0.001
        ]
        drawn = [line.get_xydata() for line in panels["learning rate 0.001"].get_lines()]
        assert any(np.array_equal(line, numbers(curve, "step", "median")) for line in drawn)
    by_rate = figure.axes[-2]
    shown = np.concatenate([line.get_xydata() for line in by_rate.get_lines()])
    for rate in ("0.0001", "0.001", "0.01"):
        errors = [
            float(r["last_error"])
            for r in runs
            if (r["activation"], r["learning_rate"]) == ("tanh_hr", rate)
        ]
        for value in (min(errors), np.median(errors), max(errors)):
            assert np.isclose(shown, (float(rate), value), rtol=1e-9).all(1).any()


def test_studies_are_means_over_the_seeds_of_the_csv_and_its_reference():
    folder = RESULTS / "2026-sac-cartpole"
    rows = table(folder / "curves.csv") + table(folder / "sb3.csv")
    panel = plots.redraw.figure_of(folder, "curves").axes[0]
    assert panel.get_ylabel() == "evaluation return"
    drawn = labelled(panel)
    assert [*drawn] == ["relu, n = 3", "rational, n = 3", "crational, n = 3", "SB3 relu, n = 3"]
    for label, points in drawn.items():
        mine = [
            r
            for r in rows
            if (r["activation"], r["metric"]) == (label[:-7], "eval/episodic_return")
        ]
        assert {row["seed"] for row in mine} == {"1", "2", "3"}
        for step, value in points:
            values = [float(row["value"]) for row in mine if int(row["env_step"]) == step]
            assert len(values) == 3 and value == pytest.approx(sum(values) / 3, rel=1e-12)


def test_checks_and_table_1_show_their_rows():
    checks = RESULTS / "2026-checks"
    rows = table(checks / "preactivations.csv")
    figure = plots.redraw.figure_of(checks, "preactivations")
    (panel,) = (
        panel for panel in figure.axes if panel.get_title() == "crational (n = 2), critics, fc2"
    )
    cell = ("crational", "critics", "fc2")
    mine = [row for row in rows if (row["activation"], row["network"], row["layer"]) == cell]
    for line, column in zip(
        panel.get_lines(), ("q01", "median", "q99", "smallest", "largest"), strict=True
    ):
        np.testing.assert_array_equal(line.get_xydata(), numbers(mine, "step", column))
    expected = np.maximum(numbers(mine, *(f"d{k:02d}" for k in range(80))).T, 1e-12)
    np.testing.assert_array_equal(panel.collections[0].get_array(), expected)
    rows = table(checks / "layer_norm.csv")
    panel = plots.redraw.figure_of(checks, "layer_norm").axes[4]
    assert panel.get_title("left") == "coefficient gradient"
    mine = [r for r in rows if r["panel"] == "coefficient gradient" and r["setting"] == "True"]
    steps = sorted({float(row["step"]) for row in mine})
    means = [
        np.mean([float(r["value"]) for r in mine if float(r["step"]) == step]) for step in steps
    ]
    drawn = labelled(panel)["rational, layer_norm True (n = 2)"]
    np.testing.assert_allclose(drawn, np.stack([steps, means], -1), rtol=1e-12)
    panel = plots.redraw.figure_of(REGRESSION, "table1").axes[0]
    points = set()
    for bars in panel.containers:
        for point in bars.lines[0].get_xydata():
            points.add(tuple(point))
    mine = [
        row for row in table(REGRESSION / "table1.csv") if row["activation"] in ("tanh", "tanh_hr")
    ]
    assert points == {*map(tuple, numbers(mine, "p", "dead_share"))} and len(mine) > 5


def damaged(folder, file, change) -> None:
    text = (folder / file).read_text()
    (folder / file).write_text(change(text))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "runs.csv").unlink(), "runs.csv: No such file"),
        (lambda folder: (folder / "fits.csv").write_text(""), "fits.csv: has no rows"),
        (
            lambda folder: damaged(folder, "curves.csv", lambda text: text[:-9]),
            "curves.csv: is broken (a row is",
        ),
        (
            lambda folder: damaged(
                folder, "table1.csv", lambda text: text.replace(",0.", ",zero.", 5)
            ),
            "table1.csv",
        ),
        (
            lambda folder: damaged(
                folder, "runs.csv", lambda t: t.replace("last_error", "error", 1)
            ),
            "'last_error'",
        ),
        (
            lambda folder: (folder / "fits.csv").write_bytes(b"\xff\xfe\x00" * 9),
            "fits.csv: is broken",
        ),
        (lambda folder: (folder / "figures.json").unlink(), "no figures.json in it or below"),
        (
            lambda folder: damaged(folder, "figures.json", lambda text: text[:-20]),
            "is not an index of figures",
        ),
        (
            lambda folder: damaged(folder, "figures.json", lambda t: t.replace("table1", "tab", 2)),
            "unknown kind",
        ),
        (
            lambda folder: damaged(
                folder, "figures.json", lambda t: t.replace('"networks"', '"nets"')
            ),
            "'networks'",
        ),
    ],
)
def test_missing_and_broken_files_give_a_one_line_error(
    tmp_path, capsys, damage, message, monkeypatch
):
    for path in [*REGRESSION.glob("*.csv"), REGRESSION / "figures.json"]:
        shutil.copy(path, tmp_path / path.name)
    monkeypatch.setattr(
        plots.style, "save", lambda figure, path: shutil.copy(REGRESSION / "table1.png", path)
    )
    damage(tmp_path)
    with pytest.raises(SystemExit) as stop:
        figures.main(["redraw", str(tmp_path)])
    err = capsys.readouterr().err
    assert stop.value.code == 2, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert message in err, err
