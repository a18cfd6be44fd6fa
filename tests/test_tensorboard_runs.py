"""scripts/tensorboard_runs.py, the names by which dashboards call runs, and which scripts leave
event files. `pytest -q tests/test_tensorboard_runs.py` (seconds, but for TensorBoard's start).
"""

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import plots
import runlog
from runlog import identity

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import tensorboard_runs  # noqa: E402

GRID = [-1.0, 0.0, 1.0]


def make_run(root, activation="relu", seed=1, env_id="dm_control/cartpole-swingup-v0", **options):
    """A run of one row; returns its folder."""
    config = {"env_id": env_id, "activation": activation, "seed": seed, **options}
    digest = identity.config_hash(config, [])
    name = identity.run_name(identity.env_name(env_id), "sac_continuous", activation, seed, digest)
    run = runlog.Run(root, name, config).open()
    run.log(1, {"charts/a": 1.0})
    run.close()
    return run.folder


@pytest.mark.parametrize(
    ("env_id", "script", "activation", "name"),
    [
        ("dm_control/walker-run-v0", "sac_continuous", "crational", "crational walker-run sac"),
        ("Breakout", "dqn_atari", "tanh*tanh", "tanh*tanh Breakout dqn"),
        ("Hopper-v5", "td3_continuous", "identity*silu", "identity*silu Hopper td3"),
        ("metaworld/reach-v3,push-v3", "sac_continuous", "relu", "relu reach,push sac"),
        ("digits", "continual_supervised", "relu", "relu digits continual"),
        ("x/" + 90 * "a", "s", 90 * "b", f"{57 * 'b'}... {37 * 'a'}... s"),
    ],
)
def test_a_short_name_begins_with_the_activation(env_id, script, activation, name):
    found = identity.short_name(env_id, script, activation, 3, "0123456789")
    assert found == f"{name} s3 012345" and len(found) <= 128


def test_links_have_the_short_names_of_all_runs_and_new_ones_are_added(tmp_path):
    runs = tmp_path / "runs"
    first = make_run(runs, "tanh*crational")
    nested = make_run(runs / "demo", "relu", seed=2)
    links = tmp_path / "links"
    links.mkdir()
    assert tensorboard_runs.link_runs([runs], links) == 2
    named = {path.name: path.resolve() for path in links.iterdir()}
    assert named == {
        f"tanh*crational cartpole-swingup sac s1 {first.name[-10:-4]}": first,
        f"relu cartpole-swingup sac s2 {nested.name[-10:-4]} (demo)": nested,
    }
    # the same configuration in another folder, and one that is no run's
    again = make_run(tmp_path / "other", "tanh*crational")
    odd = tmp_path / "other" / "odd"
    again.parent.joinpath("odd").mkdir()
    (odd / "config.json").write_text("{}")
    (odd / "events.out.tfevents.1").write_bytes(b"")
    tops = [runs, tmp_path / "other"]
    for _ in range(2):  # a second look changes nothing
        assert tensorboard_runs.link_runs(tops, links) == 4
        assert {path.resolve() for path in links.iterdir()} == {first, nested, again, odd}
    assert (links / "odd").is_symlink()

    (odd / "config.json").write_text('{"env_id"')  # damaged
    assert tensorboard_runs.link_name(odd, odd.parent) == "odd"


def test_the_page_serves_the_short_names_and_ends_with_the_script(tmp_path):
    folder = make_run(tmp_path, "crational")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, tensorboard_runs.__file__, "--runs", str(tmp_path)]
    command += ["--port", str(port)]
    script = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        text = "[]"
        until = time.monotonic() + 120
        while text == "[]" and time.monotonic() < until:
            time.sleep(1)
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/data/runs") as page:
                    text = page.read().decode().strip()
            except OSError:
                continue
        assert text == f'["crational cartpole-swingup sac s1 {folder.name[-10:-4]}"]'
    finally:
        script.send_signal(signal.SIGTERM)
        script.wait(30)
    assert script.returncode == 128 + signal.SIGTERM
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://localhost:{port}/data/runs")
    assert list(folder.glob("events*"))  # the run itself is untouched


def test_wrong_folders_are_reported_in_one_line(tmp_path, capfd):
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "no run with event")):
        with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
            argv = ["--runs", str(folder)]
            tensorboard_runs.main(runlog.parse_args(tensorboard_runs.Args, argv))
        err = capfd.readouterr().err
        assert stop.value.code == 2
        assert err.count("\n") == 1
        assert err.startswith("error: --runs")
        assert str(folder) in err and message in err


def test_the_demo_and_the_scripts_of_the_figures_leave_event_files():
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / "Makefile"]
    for path in scripts:
        if not path.name.startswith("drill_"):  # these try stopping and resuming, and are deleted
            assert "--no-tensorboard" not in path.read_text(), path
    assert re.search(r"^tensorboard:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_fixed_activations_are_in_no_picture(tmp_path):
    run = runlog.Run(tmp_path, "toy__s", {"env_id": "toy", "activation": "crational", "seed": 1})
    run.open()
    for step in (1, 2):
        run.log_curve(step, "network/q/conv1/activation", GRID, [0.0, 0.0, 1.0])  # relu
        run.log_histogram(step, "network/q/conv1/preactivations", [1, 2], [0, 1, 2])
    run.flush()
    drawn = plots.draw_run(run.folder)
    assert [path.name for path in drawn] == ["preactivations.png"]
    # one that learns, by its coefficients
    run.log(3, {"network/q/fc1/branch1_numerator_norm": 1.0})
    run.log_curve(3, "network/q/fc1/activation0", GRID, [-1.0, 0.0, 1.0])
    run.log_curve(3, "network/q/fc1/activation1", GRID, [0.0, 0.0, 2.0])
    run.flush()
    assert plots.draw_run(run.folder)[0].name == "activations.png"
    figure = plots.activation_shapes.activations_figure(run.folder)
    titles = {axes.get_title() for axes in figure.axes if axes.get_title()}
    assert titles == {"q, fc1"}
    run.close()
