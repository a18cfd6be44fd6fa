"""Figures from constructed run folders: the numbers behind what is drawn.

`pytest -q tests/test_figures.py`.
"""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imread

import figures
import plots.activation_shapes
import plots.aggregation
import plots.comparison
import plots.kde
import plots.preactivations
import plots.q_parts
import plots.reading
import plots.run
import plots.tables
import plots.variants
import runlog
from plots.variants import RED

GRID = np.linspace(-10, 10, 201)


def make_run(
    root,
    activation="crational",
    seed=1,
    steps=(0, 100, 200),
    status="finished",
    fixed=False,
    **config,
):
    """A run whose numbers are known: return = step + seed,
    bias = -seed, curve i of fc<k> = (step + i) x / k."""
    config = {"env_id": "toy/walk-v0", "activation": activation, "seed": seed, **config}
    run = runlog.Run(root, f"{activation.replace('*', 'x')}_s{seed}_{len(config)}", config).open(
        tensorboard=False
    )
    for step in steps:
        row = {"eval/episodic_return": step + seed, "overestimation/mean": -seed}
        for network in ("actor", "qf1", "qf2"):
            for k in (1, 2):
                prefix = f"network/{network}/fc{k}/"
                row |= {prefix + "srank": 10 * k, prefix + "dead_share": 0.1 * k}
                row |= {prefix + "preact_q01": -2.0, prefix + "preact_q99": 3.0}
                row |= {} if fixed else {prefix + "numerator_norm": 1.0}
                count = 2 if activation in ("crelu", "tanh*crational") else 1
                for i in range(count):
                    name = prefix + ("activation" + (str(i) if count > 1 else ""))
                    run.log_curve(step, name, GRID, GRID if fixed else (step + i + 1) * GRID / k)
                for i in range(16):
                    x = np.linspace(-i - 1, i + 1, 64)
                    run.log_curve(
                        step, f"{prefix}kde{i:02d}", x, np.exp(-x * x) + step, dead=i in (3, 7)
                    )
                run.log_histogram(
                    step, prefix + "preactivations", [1, 0, 3 + step], [-1.0, 0.0, 1.0, 3.0]
                )
        run.log(step, row)
    run.finish(status)
    return run.folder


def panels(figure):
    return {panel.get_title(): panel for panel in figure.axes if panel.get_title()}


def is_drawn(path):
    image = imread(path)
    return (
        image.std() > 0.03
        and min(image.shape[:2]) > 300
        and len(np.unique(image.reshape(-1, 4), axis=0)) > 20
    )


def test_activations_are_drawn_light_to_dark_with_the_first_one_dashed(tmp_path):
    figure = plots.activation_shapes.activations_figure(make_run(tmp_path))
    drawn = panels(figure)
    assert list(drawn) == [
        f"{network}, fc{k}" for k, network in itertools.product((1, 2), ("actor", "qf1", "qf2"))
    ]
    *lines, dashed = drawn["qf2, fc2"].get_lines()
    for step, line in zip((0, 100, 200), lines, strict=True):
        np.testing.assert_allclose(
            line.get_xydata(), np.stack([GRID, (step + 1) * GRID / 2], -1), rtol=1e-5
        )
    assert dashed.get_linestyle() == "--"
    assert np.array_equal(dashed.get_ydata(), lines[0].get_ydata())
    brightness = [np.mean(line.get_color()[:3]) for line in lines]
    assert brightness == sorted(brightness, reverse=True) and brightness[0] > brightness[2] + 0.2
    (legend,) = figure.legends
    assert legend.get_texts()[0].get_text() == "first (step 0)"
    assert figure.axes[-1].get_ylabel() == "environment steps"
    assert figure.axes[-1].get_ylim() == (
        0,
        200,
    )
    assert drawn["actor, fc1"].patches[0].get_x() == -2
    assert drawn["actor, fc1"].patches[0].get_width() == 5
    assert "toy/walk-v0, crational, seed 1" in figure.get_suptitle()


@pytest.mark.parametrize(
    "activation, names",
    [
        ("tanh*crational", ["branch 1: tanh", "branch 2: crational"]),
        ("crelu", ["output 1", "output 2"]),
    ],
)
def test_a_single_step_and_several_curves_per_layer(tmp_path, activation, names):
    folder = make_run(tmp_path, activation, steps=[50])
    figure = plots.activation_shapes.activations_figure(folder)
    lines = panels(figure)["actor, fc1"].get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "-"]
    assert len({line.get_color() for line in lines}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == names
    assert len(plots.run.draw_run(folder)) == 3


def test_kde_shows_the_newest_step_of_the_last_layer_and_outlines_the_dead(tmp_path):
    figure = plots.kde.kde_figure(make_run(tmp_path))
    assert [part.get_suptitle() for part in figure.subfigs] == [
        f"{n}, fc2: 2 of 16 dead" for n in ("actor", "qf1", "qf2")
    ]
    assert "step 200" in figure.get_suptitle()
    for i, (frame, colour, curve, texts) in enumerate(kde_cells(figure.subfigs[1])):
        x = np.linspace(-i - 1, i + 1, 64)
        y = np.exp(-x * x) + 200
        left, bottom = frame.min(0)
        width, height = np.ptp(frame, axis=0)
        assert (int(left), 3 - int(bottom)) == (i % 4, i // 4)  # a cell of its own, row by row
        np.testing.assert_allclose(curve[:, 0], left + width * (x + i + 1) / (2 * i + 2), atol=1e-5)
        np.testing.assert_allclose(curve[:, 1], bottom + height * y / y.max() / 1.12, rtol=1e-4)
        assert (colour.upper() == RED) is (i in (3, 7)) is ("dead" in texts)
        for at, label in texts.pop("ticks"):  # its own scale
            assert at == pytest.approx(left + width * (float(label) + i + 1) / (2 * i + 2))
        assert list(texts) == ["peak 201", "dead"][: 2 if i in (3, 7) else 1]


def kde_cells(part) -> list[tuple]:
    """For every neuron in a grid of densities: its frame, the frame's colour, its curve, and its
    texts (tick labels by place, and others)."""
    (panel,) = part.axes
    found = {artist.get_label(): artist for artist in panel.collections}
    frames, curves = (found[name].get_segments() for name in ("frames", "densities"))
    colours = [to_hex(colour) for colour in found["frames"].get_edgecolor()]
    cells = []
    for frame, colour, curve in zip(frames, colours, curves, strict=True):
        left, bottom = frame.min(0)
        right, top = frame.max(0)
        texts = {"ticks": []}
        for text in panel.texts:
            x, y = text.get_position()
            if left <= x <= right and bottom <= y <= top + 0.1:  # in the frame, or just above
                texts[text.get_text()] = x
            elif left <= x <= right and bottom - 0.1 <= y < bottom:
                texts["ticks"].append((x, text.get_text().replace("\N{MINUS SIGN}", "-")))
        assert texts["ticks"]
        cells.append((frame, colour, curve, texts))
    return cells


def test_the_peak_shown_is_the_one_by_which_a_neuron_was_called_dead(tmp_path):
    """The points of a curve may miss the highest one: 19.8 is below 20, 20.4 is not."""
    config = {"env_id": "Breakout", "activation": "tanh", "seed": 1}
    run = runlog.Run(tmp_path, "peaks", config).open(tensorboard=False)
    curve = np.array([0.0, 19.8, 0.0])
    run.log_curve(10, "network/q/fc1/kde00", np.arange(3), curve, dead=True, peak=20.4)
    run.log_curve(10, "network/q/fc1/kde01", np.arange(3), curve, dead=False, peak=19.9)
    run.log(10, {"charts/episodic_return": 1.0})
    run.finish()

    ((_, _, _, first), (_, _, _, second)) = kde_cells(plots.kde.kde_figure(run.folder).subfigs[0])
    assert "peak 20.4" in first
    assert "dead" in first
    assert "peak 19.9" in second
    assert "dead" not in second

    _, rows = plots.kde.density_rows(plots.reading.read_run(run.folder))
    neurons = [plots.kde.neuron_of([row]) for row in rows]
    assert [neuron["peak"] for neuron in neurons] == [20.4] * 3 + [19.9] * 3


def test_preactivations_are_densities_of_the_newest_and_the_first_step(tmp_path):
    figure = plots.preactivations.preactivations_figure(make_run(tmp_path))
    panel = panels(figure)["qf1, fc1"]
    first, newest = panel.patches
    assert newest.get_fill()
    assert not first.get_fill()
    assert panel.get_yscale() == "log"
    for patch, count in ((first, 3), (newest, 203)):
        total = 1 + count
        np.testing.assert_allclose(patch.get_data().values, [1 / total, 0, count / total / 2])
        np.testing.assert_allclose(patch.get_data().edges, [-1, 0, 1, 3])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "first (step 0)",
        "newest (step 200)",
    ]


def test_draw_run_writes_images_and_copes_with_missing_and_non_finite_data(tmp_path):
    paths = plots.run.draw_run(make_run(tmp_path))
    assert [path.name for path in paths] == ["activations.png", "kde.png", "preactivations.png"]
    assert all(path.parent.name == "plots" and is_drawn(path) for path in paths)
    run = runlog.Run(
        tmp_path, "diverged", {"env_id": "toy", "activation": "rational", "seed": 1}
    ).open(tensorboard=False)
    assert plots.run.draw_run(run.folder) == []
    nothing = np.full(64, np.nan)
    run.log(5, {"network/q_network/fc1/numerator_norm": np.nan})
    run.log_curve(5, "network/q_network/fc1/activation", GRID, np.full(201, np.inf))
    run.log_curve(5, "network/q_network/fc1/kde00", nothing, nothing, dead=False)
    run.log_histogram(5, "network/q_network/fc1/preactivations", [0, 0], [0, 1, 2])
    run.finish("diverged", step=5)
    with open(run.folder / "curves.jsonl", "a") as file:
        # a half-written line
        file.write('{"step": 6, "key": "network/q_network/fc1/activation", "x": [0')
    assert len(plots.run.draw_run(run.folder)) == 3
    assert "(diverged)" in plots.kde.kde_figure(run.folder).get_suptitle()
    for figure in (
        plots.activation_shapes.activations_figure(run.folder),
        plots.preactivations.preactivations_figure(run.folder),
    ):
        assert [text.get_text() for text in panels(figure)["q_network, fc1"].texts] == [
            "not finite"
        ]


def test_a_diverged_seed_carries_its_last_value_forward_and_an_unfinished_one_does_not(tmp_path):
    folders = [
        make_run(tmp_path, seed=1),
        make_run(tmp_path, seed=2, steps=(0, 100), status="diverged"),
    ]
    (runs,) = plots.variants.load(folders).values()
    steps, values = plots.aggregation.aligned(runs, "eval/episodic_return")
    assert steps.tolist() == [0, 100, 200] and values.tolist() == [[1, 101, 201], [2, 102, 102]]
    runs[1].config["status"] = "running"
    assert np.isnan(plots.aggregation.aligned(runs, "eval/episodic_return")[1][1, 2])


def test_table_has_means_and_deviations(tmp_path, capsys):
    for seed in (1, 2, 6):
        make_run(tmp_path, seed=seed)
    make_run(tmp_path, "relu", steps=(0, 100), status="diverged", fixed=True)
    (relu, crational), cut = plots.tables.summary(plots.tables.groups_of(tmp_path))
    assert cut == []
    assert relu["n"] == "1" and relu["state"] == "1 ended, 1 diverged"
    shown = ("return", "overestimation", "srank", "dead neurons")
    assert [relu[key] for key in shown] == ["101.0", "-1.00", "15.0", "0.150"]
    assert crational["n"] == "3"
    found = [crational[key] for key in shown[:3]]
    assert found == ["203.0 +- 2.6", "-3.00 +- 2.65", "15.0 +- 0.0"]
    figures.main(["table", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "203.0 +- 2.6" in capsys.readouterr().out


def test_styles_are_stable_and_distinct():
    looks = [tuple(plots.variants.style_of(name).values()) for name in plots.variants.STYLES]
    assert len(set(looks)) == len(looks)
    assert plots.variants.style_of("tanh*tanh") == plots.variants.style_of("tanh_hr")
    # in every process: a checksum, not hash()
    other = {"color": "#6699CC", "linestyle": "-.", "marker": "d"}
    assert plots.variants.style_of("gelu+silu") == other
    # an expression borrows no known activation's colour, and in a figure no other's
    assert not {color for color, _, _ in plots.variants.STYLES.values()} & {*plots.variants.OTHERS}
    names = ["tanh_hr", "identity*silu", "selu", "gelu", "prelu", "silu", "tanh_add", "elu"]
    for color in plots.variants.OTHERS:  # seen on white
        assert np.dot(to_rgb(color), (0.3, 0.59, 0.11)) < 0.7
    looks = plots.variants.distinct_styles(names)
    assert len({look["color"] for look in looks.values()}) == len(names)
    assert looks["tanh_hr"] == plots.variants.style_of("tanh_hr")


def test_variants_of_one_activation_are_shades_of_its_colour():
    for name, number in (("relu", 9), ("rational", 2), ("crational", 4), ("tanh", 9)):
        found = plots.variants.shades(plots.variants.style_of(name)["color"], number)
        assert found[0] == plots.variants.style_of(name)["color"] and len({*found}) == number
        light = sorted(sum(to_rgb(shade)) for shade in found)
        assert np.diff(light).min() > 0.08  # distinguishable in grey print too


def test_export_thins_curves_but_keeps_both_ends_and_takes_an_empty_run(tmp_path, capsys):
    sys.path.insert(0, "scripts")
    import export_results

    folders = [
        make_run(tmp_path, seed=1, steps=range(0, 9960, 10)),
        make_run(tmp_path, seed=2, steps=[]),
    ]
    export_results.main(export_results.Args(tuple(folders), tmp_path / "out"))
    rows = [
        line.split(",") for line in (tmp_path / "out" / "curves.csv").read_text().splitlines()[1:]
    ]
    steps = [int(row[5]) for row in rows if row[4] == "eval/episodic_return"]
    assert len(steps) == 200 and (steps[0], steps[-1]) == (0, 9950)
    assert {*np.diff(steps).tolist()} == {50}
    assert [float(row[6]) for row in rows if row[4] == "eval/episodic_return"] == [
        step + 1 for step in steps
    ]
    first, second = (tmp_path / "out" / "runs.csv").read_text().splitlines()[1:]
    assert ",finished,9950,9951.0,9951.0," in first and ",finished,,,," in second
    assert "last return 9951.0 (1 of 2)" in capsys.readouterr().out
    assert is_drawn(tmp_path / "out" / "curves.png")


def test_command_line(tmp_path, capsys):
    folders = [make_run(tmp_path, seed=seed) for seed in (1, 2)]
    other = make_run(tmp_path, seed=3, utd=10)
    done = subprocess.run(
        [sys.executable, "figures.py", "run", str(folders[0])], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    assert is_drawn(folders[0] / "plots" / "kde.png")
    figures.main(["demo", *map(str, folders), "--out", str(tmp_path / "demo.png")])
    assert "crational" in capsys.readouterr().out and is_drawn(tmp_path / "demo.png")
    for args, message in (
        (("run", tmp_path / "none"), "none: does not exist"),
        (("preactivations", *folders, other), "the runs differ in utd (10, null)"),
        (("demo", "--out", "x.png"), "no run folders"),
        (("run", folders[0], "--colour"), "colour"),
    ):
        with pytest.raises(SystemExit) as stop:
            figures.main([*map(str, args)])
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert message in err, err


def test_branches_have_their_own_grids_and_q_is_split(tmp_path):
    run = runlog.Run(
        tmp_path, "hr", {"env_id": "Breakout", "activation": "tanh*tanh", "seed": 1}
    ).open(tensorboard=False)
    x = np.linspace(-1, 1, 64)
    for layer in ("conv3", "fc1"):
        for i in range(16):
            for part, dead in (("", ()), ("branch0_", (2, 5, 9)), ("branch1_", (4,))):
                run.log_curve(
                    7, f"network/q/{layer}/{part}kde{i:02d}", x, np.exp(-x * x), dead=i in dead
                )
    for step in (100, 200):
        run.log(step, {"q_split/dead": 0.5 * step, "q_split/live": 2.0, "q_split/bias": -1.0})
    run.finish()
    figure = plots.kde.kde_figure(run.folder)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [
        f"q, fc1, {part}"
        for part in ("branch 1: 3 of 16 dead", "branch 2: 1 of 16 dead", "output: 0 of 16 dead")
    ]
    outlined = [
        [i for i, (_, colour, *_) in enumerate(kde_cells(part)) if colour == RED.lower()]
        for part in figure.subfigs
    ]
    assert outlined == [[2, 5, 9], [4], []]
    lines = {
        line.get_label(): line.get_ydata().tolist()
        for line in plots.q_parts.q_split_figure(run.folder).axes[0].get_lines()
    }
    assert lines == {"live": [2, 2], "dead": [50, 100], "bias": [-1, -1], "Q": [51, 101]}
    assert [path.name for path in plots.run.draw_run(run.folder)] == ["kde.png", "q_split.png"]
