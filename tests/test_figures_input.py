"""Figures of runs that are cut short, copied, broken, or somebody else's.

`pytest -q tests/test_figures_input.py` (about 40 s).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_continual_figures import make_cell
from test_export import export_results
from test_figures import make_run
from test_paper_figures import DMC, STEPS, read_csv, write_run

import figures
import plots.activation_shapes
import plots.continual
import plots.intervals
import plots.kde
import plots.overview
import plots.reading
import plots.recording
import plots.run
import plots.study
import plots.tables
import plots.variants
import runlog
from runlog import identity

ROOT = Path(__file__).resolve().parent.parent


def edit(path: Path, **changes) -> None:
    """Changes keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def error_of(capsys, *args) -> str:
    """The one-line error message of figures.py."""
    with pytest.raises(SystemExit) as stop:
        figures.main([*map(str, args)])
    err = capsys.readouterr().err
    assert stop.value.code == 2, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err


def three_seeds(root: Path) -> dict:
    """Two seeds of relu and of tanh, of which the last is still running at step 20; returns
    (activation, seed) -> returns at STEPS."""
    rng = np.random.default_rng(3)
    truth = {}
    for activation in ("relu", "tanh"):
        for seed in (1, 2):
            truth[activation, seed] = score = rng.random(3) * 100
            cut = 2 if (activation, seed) == ("tanh", 2) else 3
            rows = {"eval/episodic_return": (STEPS[:cut], score[:cut])}
            write_run(
                root,
                "sac_continuous",
                DMC,
                activation,
                seed,
                rows,
                status="finished" if cut == 3 else "running",
            )
    return truth


def test_tables_compare_all_seeds_of_all_variants_at_one_step(tmp_path, capsys):
    truth = three_seeds(tmp_path / "runs")
    figures.main(["table", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    rows = read_csv(tmp_path / "out" / "table.csv")
    folders = sorted((tmp_path / "runs").iterdir())
    for row, name in zip(rows, ("relu", "tanh"), strict=True):
        values = [truth[name, seed][1] for seed in (1, 2)]
        expected = f"{np.mean(values):.1f} +- {np.std(values, ddof=1):.1f}"
        assert row["return"] == expected and row["steps"] == "20"
    (cut,) = (folder.name for folder in folders if "tanh__s2" in folder.name)
    for text in (
        capsys.readouterr().out.replace("\\", ""),
        (tmp_path / "out" / "table.md").read_text(),
        (tmp_path / "out" / "table.tex").read_text(),
    ):
        assert f"cut at step 20, where {cut} (running) ends" in text


def test_training_returns_of_finished_runs_are_not_cut_at_their_last_games(tmp_path):
    for seed, last in ((1, 28), (2, 30)):
        rows = {"charts/episodic_return": ([10, last], [1.0, 2.0]), "losses/td_loss": ([30], [0.5])}
        write_run(tmp_path, "ppo_atari", "Pong", "relu", seed, rows, total_timesteps=30)
    (row,), cut = plots.tables.summary(plots.tables.groups_of(tmp_path))
    assert cut == [] and row["training return"] == "2.0 +- 0.0"


def half(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))


@pytest.mark.parametrize(
    "damage, message",
    [
        (half, "should reach step 30"),
        (lambda path: path.write_text(path.read_text()[:-4]), "ends within a row"),
        (lambda path: path.write_text(""), "is empty"),
        (lambda path: path.write_text("step,key,value,wall_time\n"), "has no rows"),
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00\x80" * 99 + b"\n"), "is not text"),
        (
            lambda path: path.write_text(path.read_text().replace(",1.5\n", ",1.5,8\n", 1)),
            "line 2 is not a row",
        ),
        (
            lambda path: path.write_text(path.read_text().replace("return,", "return,x", 1)),
            "could not convert",
        ),
        (lambda path: path.write_text(path.read_text().replace("20,", "5,", 1)), "decrease"),
    ],
)
def test_every_reader_refuses_rows_that_do_not_reach_the_end(tmp_path, capsys, damage, message):
    rows = {"eval/episodic_return": (STEPS, STEPS)}
    folders = [
        write_run(tmp_path, "sac_continuous", DMC, "relu", seed, rows, total_timesteps=30)
        for seed in (1, 2)
    ]
    damage(folders[0] / "scalars.csv")
    for args in (("cr1", "--runs", tmp_path), ("table", "--runs", tmp_path), ("demo", *folders)):
        err = error_of(capsys, *args, "--out", tmp_path / "out.png")
        assert message in err and str(folders[0]) in err
    with pytest.raises(runlog.UserError, match=message):
        export_results.main(export_results.Args(tuple(folders), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_last_step_in_meta_json_is_checked_exactly(tmp_path):
    folder = write_run(tmp_path, "x", DMC, "relu", 1, {"eval/a": (STEPS, STEPS)}, status="diverged")
    edit(folder / "meta.json", last_step=30)
    assert len(plots.reading.read_run(folder).scalars["eval/a"]) == 3
    half(folder / "scalars.csv")
    with pytest.raises(
        runlog.UserError, match="ends at step 10, but should reach step 30; the run is diverged"
    ):
        plots.reading.read_run(folder)


def test_a_continual_run_without_its_last_tasks_is_refused(tmp_path, capsys):
    make_cell(tmp_path, [1, 2], "relu")
    (folder,) = tmp_path.glob("*__s2__*")
    half(folder / "scalars.csv")
    message = error_of(capsys, "continual", "--runs", tmp_path, "--out", tmp_path / "out")
    assert "ends at step 400, but should reach step 700" in message
    edit(folder / "meta.json", last_step=None)  # as older runs have it
    assert "of 7; the run is finished" in error_of(
        capsys, "continual", "--runs", tmp_path, "--out", tmp_path / "out"
    )
    (folder / "scalars.csv").unlink()
    assert "is missing" in error_of(
        capsys, "continual", "--runs", tmp_path, "--out", tmp_path / "out"
    )
    shutil.rmtree(folder)
    (folder,) = tmp_path.glob("*__s1__*")
    edit(folder / "config.json", num_tasks=None)
    assert "has no num_tasks" in error_of(
        capsys, "continual", "--runs", tmp_path, "--out", tmp_path / "out"
    )


def test_a_copied_folder_is_not_another_seed(tmp_path, capsys):
    make_cell(tmp_path / "runs", [1, 2], "relu")
    folder = min((tmp_path / "runs").iterdir())
    copy = folder.with_name(folder.name.replace("__s1__", "__s3__"))
    shutil.copytree(folder, copy)
    for command in ("continual", "table", "overview"):
        err = error_of(capsys, command, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
        assert f"{copy}: holds the run {folder.name} according to its meta.json" in err
    edit(copy / "meta.json", name=None, hash=None)  # older runs have neither
    for command in ("continual", "table"):
        assert "are the same run, seed 1" in error_of(
            capsys, command, "--runs", tmp_path / "runs", "--out", tmp_path
        )
    shutil.move(copy, tmp_path / folder.name)  # of the same name in another folder
    with pytest.raises(runlog.UserError, match="are the same run, seed 1"):
        plots.variants.load([folder, tmp_path / folder.name])
    with pytest.raises(runlog.UserError, match="are the same run"):
        plots.variants.load([folder, folder])


def test_older_runs_are_accepted_whatever_their_hash_covers(tmp_path):
    folder = write_run(tmp_path, "x", DMC, "relu", 1, {"eval/a": (STEPS, STEPS)})
    edit(folder / "meta.json", name=folder.name, hash=folder.name.rpartition("__")[2])
    edit(folder / "config.json", a_flag_that_was_removed=True)
    assert plots.reading.read_run(folder).config["a_flag_that_was_removed"]


def test_settings_are_compared_over_the_keys_of_all_runs(tmp_path, capsys):
    rows = {"eval/episodic_return": (STEPS, STEPS)}
    first = write_run(tmp_path, "sac_continuous", DMC, "relu", 1, rows)
    later = write_run(tmp_path, "sac_continuous", DMC, "relu", 2, rows, reward_scale=2.0)
    for args in (("cr1", "--runs", tmp_path), ("preactivations", first, later)):
        err = error_of(capsys, *args, "--out", tmp_path / "out.png")
        assert "differ in reward_scale (2.0, null)" in err
        assert first.name in err
        assert later.name in err
    groups = plots.tables.groups_of(tmp_path)  # tables name what differs
    assert list(groups["sac_continuous", DMC]) == [
        "relu, reward scale 2",
        "relu, reward scale None",
    ]
    make_cell(tmp_path / "continual", [1, 2], "relu")
    later = max((tmp_path / "continual").iterdir())
    edit(later / "config.json", label_noise=0.1)
    err = error_of(capsys, "continual", "--runs", tmp_path / "continual", "--out", tmp_path / "out")
    assert "differ in label_noise (0.1, null)" in err and later.name in err


def test_the_folder_of_a_failed_start_is_skipped(tmp_path, capsys):
    three_seeds(tmp_path)
    folders = sorted(tmp_path.iterdir())
    failed = tmp_path / identity.run_name(DMC, "sac_continuous", "relu", 9, "0123456789")
    failed.mkdir()
    (failed / ".lock").write_text("123")
    assert plots.study.read_study(tmp_path, "sac_continuous", "eval/.*").labels == ["relu", "tanh"]
    assert len(plots.tables.groups_of(tmp_path)["sac_continuous", DMC]) == 2
    capsys.readouterr()
    assert len(plots.variants.load([*folders, failed])) == 2
    assert capsys.readouterr().out == f"left out: {failed} holds no run (a start that failed?)\n"
    assert "no run folders" in error_of(capsys, "demo", failed)
    # a run that has lost its other files
    (failed / "scalars.csv").write_text("step,key,value,wall_time\n")
    assert "has a scalars.csv but no config.json and no meta.json" in error_of(
        capsys, "table", "--runs", tmp_path, "--out", tmp_path
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 200, "key": "network/actor/fc1/acti',
        "\x00\x01",
        '{"step": 1, "key": "network/q/fc1/kde00"}',
    ],
)
def test_a_broken_line_of_curves_gives_a_one_line_error(tmp_path, capsys, line):
    folder = make_run(tmp_path, steps=(0,))
    with open(folder / "curves.jsonl", "a") as file:
        file.write(line + "\n")
    number = (folder / "curves.jsonl").read_text().count("\n")
    assert f"curves.jsonl: line {number} is broken" in error_of(capsys, "run", folder)


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("config.json", {"seed": "one"}, "its seed is 'one'"),
        ("config.json", {"env_id": 3}, "its env_id is 3"),
        ("config.json", {"rational": "no"}, "its rational is 'no'"),
        ("meta.json", {"status": ["?"]}, "its status is"),
    ],
)
def test_settings_of_the_wrong_type_give_a_one_line_error(tmp_path, capsys, file, changes, message):
    folder = write_run(
        tmp_path, "sac_continuous", DMC, "relu", 1, {"eval/episodic_return": (STEPS, STEPS)}
    )
    edit(folder / file, **changes)
    assert message in error_of(capsys, "table", "--runs", tmp_path, "--out", tmp_path / "out")
    (folder / file).write_text("[1, 2]")
    assert f"{file}: is not a JSON object" in error_of(
        capsys, "cr1", "--runs", tmp_path, "--out", tmp_path / "out"
    )


def regression(root: Path, status: str = "finished", **meta) -> Path:
    errors = [4.0, 2.0, 1.0] if status == "finished" else [np.nan] * 3
    config = {
        "widths": [8],
        "learning_rate": 0.1,
        "num_points": 16,
        "interval": [-1.0, 1.0],
        "total_steps": 30,
    }
    rows = {"eval/mse": (STEPS, errors)}
    folder = write_run(
        root, "function_approximation", "regression", "relu", 1, rows, status, **config
    )
    edit(folder / "meta.json", **meta)
    return folder


def test_a_regression_without_a_parameter_count_or_an_error_is_refused(tmp_path, capsys):
    folder = regression(tmp_path / "a")
    args = ("function_approximation", "--out", tmp_path / "out", "--runs")
    assert "meta.json: has no num_parameters" in error_of(capsys, *args, folder)
    first = regression(tmp_path / "c", num_parameters=25)
    later = regression(tmp_path / "d", num_parameters=25)
    edit(later / "config.json", seed=2, label_noise=0.1)
    assert "differ in label_noise (0.1, null)" in error_of(capsys, *args, first, later)
    folder = regression(tmp_path / "b", "diverged", num_parameters=25)
    assert "every run has diverged" in error_of(capsys, *args, folder)
    assert not (tmp_path / "out").exists()


def test_an_activation_with_its_own_parameters_is_learned(tmp_path):
    """make_run's functions change over training; with fixed=True they do not, and no norms of
    rationals are logged."""
    prelu = make_run(tmp_path, "prelu")
    lines = (prelu / "scalars.csv").read_text().splitlines(keepends=True)
    (prelu / "scalars.csv").write_text(
        "".join(line for line in lines if "numerator_norm" not in line)
    )
    fixed = make_run(tmp_path, "relu", fixed=True)
    assert plots.activation_shapes.is_learned(plots.reading.read_run(prelu))
    assert not plots.activation_shapes.is_learned(plots.reading.read_run(fixed))
    lines = (fixed / "curves.jsonl").read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):  # another function in one layer, as on Atari
        row = json.loads(line)
        if "fc2/activation" in row["key"]:
            lines[number] = json.dumps(row | {"y": [max(x, 0.0) for x in row["x"]]}) + "\n"
    (fixed / "curves.jsonl").write_text("".join(lines))
    assert "fc2/activation" in "".join(lines)
    assert not plots.activation_shapes.is_learned(plots.reading.read_run(fixed))


def test_names_from_runs_stay_in_the_folder_and_are_escaped(tmp_path, capsys):
    assert plots.recording.file_name("hr3-../../x y$", set()) == "hr3-..-..-x-y-"
    taken = set()
    assert [plots.recording.file_name(name, taken) for name in ("a/b", "a:b")] == ["a-b", "a-b-2"]
    name = r"$\frac_%<b>*a*|~^&"
    assert plots.tables.latex_text(name) == (
        r"\$\textbackslash{}frac\_\%\textless{}b\textgreater{}*a*\textbar{}\textasciitilde{}\^{}\&"
    )
    assert plots.tables.markdown_text(name) == r"\$\\frac_%&lt;b&gt;\*a\*\|~^&amp;"
    rows = {"eval/episodic_return": (STEPS, STEPS)}
    write_run(tmp_path / "runs", "sac_continuous", "dm_control/../x", name, 1, rows)
    figures.main(["table", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert plots.tables.markdown_text(name) in (tmp_path / "out" / "table.md").read_text()
    assert plots.tables.latex_text(name) in (tmp_path / "out" / "table.tex").read_text()
    make_cell(tmp_path / "continual", [1], "relu")
    (folder,) = (tmp_path / "continual").iterdir()
    edit(folder / "config.json", dataset="../../up")
    out = tmp_path / "deep" / "out"
    paths = plots.continual.draw_continual(tmp_path / "continual", out)
    assert all(path.resolve().parent == out.resolve() for path in paths)
    assert [path.name for path in paths if path.suffix == ".png"] == [
        "continual-..-..-up-random_labels.png"
    ]


def test_a_dollar_in_a_name_is_drawn_as_it_is(tmp_path):
    names = ["$x_{", "a$b$c^"]
    rows = [
        {
            "group": "g $",
            "variant": name,
            "value": 0.5,
            "low": 0.4,
            "high": 0.6,
            "environments": 1,
            "runs": 2,
        }
        for name in names
    ]
    spec = {"variants": names, "unit": r"$\nothing", "caption": [r"100 $ \undefined{"]}
    _, picture = plots.recording.write_figure(
        tmp_path, "dollars", plots.intervals.INTERVALS, rows, ("png",), **spec
    )
    assert picture.stat().st_size > 5_000
    folder = make_run(tmp_path, "$x_{", steps=(0, 100))
    assert len(plots.run.draw_run(folder)) == 3
    figures.main(["demo", str(folder), "--out", str(tmp_path / "demo.png")])
    assert (tmp_path / "demo.png").exists()


ENTRY = {"kind": "intervals", "caption": ["c"], "variants": ["relu"], "unit": "u"}


@pytest.mark.parametrize(
    "index, message",
    [
        ({"a": ENTRY | {"caption": [3]}}, "a: its caption is not a list of strings"),
        ({"a": ENTRY | {"caption": "text"}}, "a: its caption is not a list of strings"),
        ({"a": ENTRY | {"unit": 3}}, "a: its unit is not a string"),
        ({"a": ENTRY | {"variants": None}}, "a: its variants is not a list"),
        ({"a": ENTRY | {"scales": ["log"]}}, "a: its scales is not a dict"),
        ({"../a": ENTRY}, "not a plain file name"),
        ({"a": ENTRY | {"csv": ["../../secret.csv"]}}, "not a plain file name"),
        ({"a": 3}, "is not an index of figures"),
        ([1], "is not an index of figures"),
        ({"a": {key: ENTRY[key] for key in ("kind", "variants", "unit")}}, "a lacks 'caption'"),
    ],
)
def test_a_broken_figures_json_gives_a_one_line_error(tmp_path, capsys, index, message):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "figures.json").write_text(json.dumps(index))
    (folder / "a.csv").write_text(
        "group,variant,value,low,high,environments,runs\ng,relu,1,0,2,1,3\n"
    )
    assert message in error_of(capsys, "redraw", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


def test_out_is_checked_before_anything_is_read(tmp_path, capsys):
    assert "--out a.xyz: figures are png, pdf or svg" in error_of(
        capsys, "demo", tmp_path / "none", "--out", "a.xyz"
    )
    assert "--out '.': names no file; use figures/curves.png" in error_of(
        capsys, "curves", tmp_path / "none", "--out", ""
    )
    folder = write_run(
        tmp_path, "sac_continuous", DMC, "relu", 1, {"eval/episodic_return": (STEPS, STEPS)}
    )
    with pytest.raises(runlog.UserError, match="cannot write /dev/null"):
        export_results.main(export_results.Args((folder,), Path("/dev/null")))
    assert "cannot write /dev/null" in error_of(
        capsys, "table", "--runs", tmp_path, "--out", "/dev/null"
    )
    edit(folder / "meta.json", git=None)
    export_results.main(export_results.Args((folder,), tmp_path / "out"))
    assert read_csv(tmp_path / "out" / "runs.csv")[0]["git"] == ""


def test_the_error_for_a_stray_folder_names_the_missing_files_and_its_place(tmp_path, capsys):
    three_seeds(tmp_path / "bad")
    stray = tmp_path / "bad" / "straydir"
    stray.mkdir()
    (stray / "scalars.csv").write_text("step,key,value,wall_time\n")
    err = error_of(capsys, "table", "--runs", tmp_path / "bad", "--out", tmp_path / "out")
    assert f"{stray}: has a scalars.csv but no config.json and no meta.json; move it out of" in err
    (stray / "config.json").write_text("{}")
    err = error_of(capsys, "table", "--runs", tmp_path / "bad", "--out", tmp_path / "out")
    assert f"has a scalars.csv but no meta.json; move it out of {tmp_path / 'bad'}" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin1"])
def test_a_terminal_without_unicode_gets_escaped_names(tmp_path, encoding):
    for source in (
        ROOT / "figures.py",
        ROOT / "scripts" / "export_results.py",
        *(ROOT / "plots").glob("*.py"),
    ):
        assert source.read_text(encoding="utf-8").isascii()
    write_run(
        tmp_path, "sac_continuous", DMC, "μ*relu", 1, {"eval/episodic_return": (STEPS, STEPS)}
    )
    command = [sys.executable, "figures.py", "table", "--runs", tmp_path, "--out", tmp_path / "out"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"\\u03bc" in done.stdout
    assert "μ" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_the_first_of_many_branches_are_drawn_with_few_artists(tmp_path):
    run = runlog.Run(
        tmp_path, "wide", {"env_id": "toy", "activation": "+".join(["rational"] * 50), "seed": 1}
    )
    run.open(tensorboard=False)
    run.log(5, {"network/q/fc1/branch0_numerator_norm": 1.0})  # learned, so that it is drawn
    x = np.linspace(-1, 1, 64)
    grid = np.linspace(-10, 10, 201)
    for branch in range(50):
        run.log_curve(5, f"network/q/fc1/activation{branch}", grid, np.tanh(grid))
        for neuron in range(16):
            run.log_curve(
                5, f"network/q/fc1/branch{branch}_kde{neuron:02d}", x, np.exp(-x * x), dead=False
            )
    for neuron in range(16):
        run.log_curve(5, f"network/q/fc1/kde{neuron:02d}", x, np.exp(-x * x), dead=False)
    run.finish()
    figure = plots.kde.kde_figure(run.folder)
    assert "the first 4 of 50 branches" in figure.get_suptitle()
    titles = [part.get_suptitle().split(":")[0] for part in figure.subfigs]
    assert titles == [*(f"q, fc1, branch {k}" for k in (1, 2, 3, 4)), "q, fc1, output"]
    assert len(figure.axes) == 5
    figure = plots.activation_shapes.activations_figure(run.folder)
    assert "the first 5 of 50 branches" in figure.get_suptitle()
    assert len(figure.axes[0].get_lines()) == 5
