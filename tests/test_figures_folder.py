"""Several figures in one folder: none overwrites the data of another, and a broken
one does not stop the others.

`pytest -q tests/test_figures_folder.py` (about 10 s).
"""

import json

import pytest
from test_figures import make_run
from test_figures_input import error_of, regression
from test_paper_figures import STEPS, write_run

import figures
from plots import intervals, recording, redraw
from plots import regression as drawn_regression
from plots.activation_shapes import activations_figure
from plots.preactivations import write_preactivations
from plots.reading import step_unit

ROW = {"group": "g", "variant": "relu", "environments": 1, "runs": 1}
POINT = {"value": 0.5, "low": 0.4, "high": 0.6}
SPEC = {"variants": ["relu"], "unit": "u", "caption": ["c"]}


def interval_figure(folder, name="other"):
    rows = [ROW | POINT]
    return recording.write_figure(folder, name, intervals.INTERVALS, rows, ("png",), **SPEC)


def test_the_data_of_another_figure_is_not_replaced(tmp_path, capsys):
    runs = tmp_path / "runs"
    rows = {"eval/episodic_return": (STEPS, [1.0, 2.0, 3.0])}
    for seed in (1, 2):
        write_run(runs, "sac_continuous", "Pendulum-v1", "relu", seed, rows)
    for name in ("runs", "curves", "deep"):
        interval_figure(tmp_path / "out", name)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    message = error_of(capsys, "table", runs, "--out", tmp_path / "out")
    assert "runs.csv: the intervals figure runs is drawn from it" in message and "--out" in message
    message = error_of(capsys, "curves", runs, "--out", tmp_path / "out" / "curves.png")
    assert "curves.csv: the intervals figure curves is drawn from it" in message
    folder = tmp_path / "out"
    with pytest.raises(recording.runlog.UserError, match="deep: is the intervals figure deep"):
        recording.record_figure(folder, "deep", drawn_regression.REGRESSION, csv=["a.csv"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    interval_figure(folder, "runs")  # the same figure again
    figures.main(["curves", str(runs), "--out", str(tmp_path / "new" / "curves.png")])
    figures.main(["curves", str(runs), "--out", str(tmp_path / "new" / "curves.png")])
    figures.main(["table", str(runs), "--out", str(tmp_path / "new")])


def test_redraw_continues_after_a_broken_figure(tmp_path, capsys):
    for name in ("a", "b", "c"):
        interval_figure(tmp_path / "one", name)
    interval_figure(tmp_path / "two", "d")
    interval_figure(tmp_path / "three", "e")
    (tmp_path / "one" / "a.csv").unlink()
    (tmp_path / "one" / "b.csv").write_text("group,variant\n")
    (tmp_path / "three" / "figures.json").write_text("[1]")
    for name in ("c", "d"):
        next(tmp_path.rglob(f"{name}.png")).unlink()
    with pytest.raises(SystemExit) as stop:
        figures.main(["redraw", str(tmp_path)])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    drawn = [tmp_path / "one" / "c.png", tmp_path / "two" / "d.png"]
    assert captured.out.splitlines() == [str(path) for path in drawn]
    assert all(path.exists() for path in drawn)
    (line,) = captured.err.splitlines()
    assert line.startswith("error: 3 faults; all other figures are drawn (2): ")
    places = ("one/a.png: ", "one/b.png: ", "three/figures.json: ")
    for number, place in enumerate(places, start=1):
        assert f" ({number}) {tmp_path / place}" in line


def test_steps_are_called_updates_where_there_is_no_environment(tmp_path):
    """num_tasks is a setting of continual_supervised.py only."""
    settings = json.loads((regression(tmp_path) / "config.json").read_text())
    assert step_unit(settings) == "updates"
    for unit, config in (("environment steps", {}), ("updates", {"num_tasks": 3})):
        run = make_run(tmp_path / unit, steps=(0, 100), **config)
        assert activations_figure(run).axes[-1].get_ylabel() == unit
        write_preactivations([run], tmp_path / unit, "pre", ("png",))
        figure = redraw.figure_of(tmp_path / unit, "pre")
        assert unit in [panel.get_xlabel() for panel in figure.axes]
