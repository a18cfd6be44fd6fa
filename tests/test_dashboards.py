"""The dashboards' panels against what tiny real runs log: TensorBoard's layout, read by TensorBoard
itself, and the W&B workspace's JSON. `pytest -q tests/test_dashboards.py` (about a minute).
"""

import csv
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import test_atari_runs
import test_continual
import test_function_approximation
import test_sac_sequences
import test_td3
from ale_py import vector_env
from own_scripts import SCRIPTS
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from tensorboard.summary.writer import event_file_writer

import continual_supervised
import function_approximation
import runlog
import sac_continuous
import td3_continuous
from plots import dashboards

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import wandb_workspace  # noqa: E402

SECTIONS = dashboards.sections(
    ["environment steps per second", "updates per second", "evaluation return"]
)


class Reaching(test_sac_sequences.Toy):
    """As Meta-World: whether the step succeeded is in the info."""

    def step(self, action):
        obs, reward, *ends, _ = super().step(action)
        return obs, reward, *ends, {"success": float(reward > 0.9)}


for name, best in {"ReachA-v0": 0.5, "ReachB-v0": -0.5}.items():
    gym.register(
        name, Reaching, kwargs={"best": best}, max_episode_steps=test_sac_sequences.EPISODE
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of every kind of script, event files written:
    with success, sequential tasks, a rational, two branches."""
    folder = tmp_path_factory.mktemp("runs")
    draw = runlog.Run.draw

    def run(script, argv: list[str]) -> None:
        argv = [word for word in argv if word != "--no-tensorboard"]
        script.main(runlog.parse_args(script.Args, [*argv, "--runs-dir", str(folder)]))

    with pytest.MonkeyPatch.context() as patch:
        short = functools.partial(vector_env.AtariVectorEnv, max_num_frames_per_episode=120)
        patch.setattr(vector_env, "AtariVectorEnv", short)
        patch.setattr(function_approximation, "draw", lambda folders, out: None)
        # DQN's runs have all pictures
        patch.setattr(
            runlog.Run, "draw", lambda run, *rest: draw(run, *rest) if "dqn" in run.name else None
        )
        sac = (
            "--env-id ReachA-v0 ReachB-v0 --steps-per-task 40 --metrics-frequency 80 "
            "--metrics-samples 32"
        )
        sac += " --ntk-frequency 80 --ntk-samples 8 --activation crational"
        run(sac_continuous, test_sac_sequences.command(folder, sac))
        dqn = "--activation tanh*crational --ntk-samples 4"
        others = "--ntk-frequency 0 --no-redo"
        games = {"dqn_atari": dqn, "ppo_atari": others, "pqn_atari": others}
        for script, flags in games.items():
            flags += (
                " --total-timesteps 200"  # a multiple of PPO's 16 or not: the last rollout is whole
            )
            run(test_atari_runs.MODULES[script], test_atari_runs.command(script, folder, flags))
        run(td3_continuous, f"{test_td3.TINY} --env-id ReachA-v0".split())
        tiny = test_continual.TINY
        fit = test_function_approximation.TINY
        run(
            continual_supervised,
            f"{tiny} --num-tasks 1 --dataset digits".split(),
        )
        run(
            function_approximation,
            f"{fit} --activations tanh_hr --learning-rates 1e-3 --num-seeds 1 "
            "--tensorboard".split(),
        )
    return folder


@pytest.fixture(scope="module")
def logged(folder) -> dict[str, set[str]]:
    """Script -> the keys of its scalars."""
    found = {}
    for path in folder.glob("*/scalars.csv"):
        script = path.parent.name.split("__")[1]
        found.setdefault(script, set()).update(keys_of_run(path.parent))
    return found


class TensorBoard:
    """TensorBoard's own reading of a folder, without its server."""

    def __init__(self, folder):
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
        plugins = {}
        self.context = RequestContext()
        shared = TBContext(
            data_provider=MultiplexerDataProvider(multiplexer, str(folder)), logdir=str(folder)
        )
        shared.plugin_name_to_instance = plugins
        plugins["scalars"] = ScalarsPlugin(shared)
        self.custom = CustomScalarsPlugin(shared)
        self.runs = multiplexer.Runs()

    def layout(self) -> dict[str, dict[str, list[str]]]:
        merged = json.loads(self.custom.layout_impl(self.context, ""))
        return {
            s["title"]: {c["title"]: c["multiline"]["tag"] for c in s["chart"]}
            for s in merged["category"]
        }

    def keys(self, run: str, pattern: str) -> set[str]:
        found = self.custom.scalars_impl(self.context, run, pattern, "")
        assert found["regex_valid"]
        return {*found["tag_to_events"]}


def keys_of_run(folder: Path) -> set[str]:
    """The keys of its rows."""
    keys = set()
    for name in ("scalars.csv", "perf.csv"):
        with open(folder / name) as file:
            keys |= {row["key"] for row in csv.DictReader(file)}
    return keys


def panels_of_script(name: str) -> dict:
    """The panels of a script, for the flags of `folder`."""
    args = SCRIPTS[name].Args()
    if name == "function_approximation":
        args.deep_widths = (6, 6)
    return SCRIPTS[name].dashboard(args)


def panels_of(layout: dict[str, dict]) -> dict[str, str]:
    """title -> regular expression of whole keys, of all sections."""
    found = {}
    for panels in layout.values():
        for title, patterns in panels.items():
            found[title] = patterns if isinstance(patterns, str) else "|".join(patterns)
    return found


def test_each_run_lays_out_exactly_the_panels_that_it_fills(folder, logged):
    board = TensorBoard(folder)
    assert len(board.runs) == len([*folder.glob("*/scalars.csv")]) >= 9
    assert {*logged} == {*SCRIPTS}
    unfilled = {name: set(panels_of(panels_of_script(name))) for name in logged}
    for run in board.runs:
        script = run.split("__")[1]
        keys = keys_of_run(folder / run)
        expected = {}
        for title, pattern in panels_of(panels_of_script(script)).items():
            if any(re.fullmatch(pattern, key) for key in keys):
                expected[title] = [f"^({pattern})$"]
        own = TensorBoard(folder / run).layout()  # TensorBoard's own reading of this run alone
        shown = {}
        for panels in own.values():
            shown |= panels
        assert shown == expected and shown
        assert [section for section in panels_of_script(script) if section in own] == list(own)
        for title, (tag,) in shown.items():
            assert board.keys(run, tag), f"{run}: {title} is empty"
        unfilled[script] -= {*shown}
    # panels of other flags, activations and depths
    others = r"rational|denominator|numerator|constraint scale|largest output|coefficients"
    others += r"|branches|before fc|ReDo|tangent kernel|each task|--analyse|test|Q from dead"
    for script, titles in unfilled.items():
        assert not [title for title in titles if not re.search(others, title)], script


def test_a_panel_shows_one_network_with_the_last_layer_first(folder):
    (run,) = [each for each in TensorBoard(folder).runs if "sac_continuous__crational__s1" in each]
    board = TensorBoard(folder / run)
    layout = board.layout()
    health = list(layout)
    assert health.index("Network health") + 1 == health.index("Network health, earlier layers")
    three = ("actor", "qf1", "qf2")
    titles = list(layout["Network health"])
    assert titles[:3] == [f"dead neurons (KDE): {network}, fc2" for network in three]
    for section, layer in (("Network health", "fc2"), ("Network health, earlier layers", "fc1")):
        for title, (tag,) in layout[section].items():
            network = re.search(r": (\w+), ", title)
            if network and "srank" in title:
                assert board.keys(".", tag) == {f"network/{network[1]}/{layer}/srank"}
    assert board.keys(".", *layout["Value bias"]["overestimation: Q minus return"]) == {
        "overestimation/mean"
    }
    returns = layout["Returns"]
    each_task = {"eval/task1/episodic_return", "eval/task2/episodic_return"}
    assert board.keys(".", *returns["evaluation return of each task"]) == each_task
    assert list(returns)[:3] == [
        "evaluation return",
        "evaluation success rate",
        "training return",
    ]


def test_hparams_and_text_show_the_settings_and_few_final_metrics(folder):
    (path,) = folder.glob("ReachA*sac_continuous*")
    events = EventAccumulator(str(path)).Reload()
    (text,) = events.Tensors("settings/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert text.step == 0 and "| activation | `crational` |" in table
    assert "| rational.form | `A` |" in table and "| num_seeds | `1` |" in table
    found = {}
    for tag in ("experiment", "session_start_info", "session_end_info"):
        metadata = events.SummaryMetadata(f"_hparams_/{tag}")
        data = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
        found[tag] = getattr(data, tag)
    settings = found["session_start_info"].hparams
    assert settings["activation"].string_value == "crational" and settings["seed"].number_value == 1
    assert settings["layer_norm"].bool_value is False and settings["rational.form"].string_value
    assert "runs_dir" not in settings and "num_seeds" not in settings  # they do not change the run
    assert found["session_start_info"].group_name.startswith("crational ReachA,ReachB sac s1 ")
    assert {info.name for info in found["experiment"].hparam_infos} == {*settings}
    metrics = [info.name.tag for info in found["experiment"].metric_infos]
    assert metrics[:3] == ["eval/episodic_return", "eval/success", "charts/episodic_return"]
    assert len(metrics) <= 6 and found["session_end_info"].status == 1  # success


def test_a_resumed_run_keeps_its_layout_and_its_scalars_once(tmp_path, monkeypatch):
    # The name of an event file ends with a count of this process,
    # and TensorBoard reads 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    config = {"env_id": "toy", "seed": 1}
    for last in (5, 8):
        run = runlog.Run(tmp_path, "toy__script__relu__s1", config).open(sections=SECTIONS)
        start, *_ = run.load_checkpoint()
        for step in range(start + 1, last + 1):
            run.log(step, {"perf/sps": float(step)})
            if step == 3:
                run.save_checkpoint(step, {})
        run.close()
    board = TensorBoard(tmp_path)
    assert board.layout() == {"Throughput": {"environment steps per second": ["^(perf/sps)$"]}}
    events = board.custom.scalars_impl(board.context, board.runs.popitem()[0], "^(perf/sps)$", "")
    assert [value for _, _, value in events["tag_to_events"]["perf/sps"]] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
    ]


def test_without_sections_there_is_one_for_each_prefix_of_keys(tmp_path):
    run = runlog.Run(tmp_path, "toy__script__relu__s1", {"env_id": "toy", "seed": 1}).open()
    run.log(1, {"losses/q": 1.0, "charts/a": 2.0, "losses/p": 3.0, "plain": 4.0})
    run.finish()
    board = TensorBoard(tmp_path)
    assert board.layout() == {
        "losses": {"q": ["^(losses/q)$"], "p": ["^(losses/p)$"]},
        "charts": {"a": ["^(charts/a)$"]},
        "plain": {"plain": ["^(plain)$"]},
    }
    assert board.keys(board.runs.popitem()[0], "^(losses/q)$") == {"losses/q"}


def call(capfd, *argv: str) -> str:
    """stderr of a command that must end with one line and exit code 2."""
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        wandb_workspace.main(runlog.parse_args(wandb_workspace.Args, argv))
    out, err = capfd.readouterr()
    assert stop.value.code == 2, err
    assert out == "", err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err


def test_without_the_package_the_error_names_the_command_that_installs_it(
    monkeypatch, capfd, tmp_path
):
    for name in ("wandb_workspaces", "wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    err = call(capfd, "--json", str(tmp_path / "a.json"))
    assert "pip install -r requirements-dashboard.txt" in err and not [*tmp_path.iterdir()]
    pins = (ROOT / "requirements-dashboard.txt").read_text()
    assert re.search(r"^wandb-workspaces==[0-9.]+$", pins, re.MULTILINE)


needs_package = pytest.mark.skipif(
    not importlib.util.find_spec("wandb_workspaces"),
    reason="pip install -r requirements-dashboard.txt",
)


@needs_package
def test_the_workspace_has_the_sections_and_shows_what_runs_log(folder, logged, tmp_path, capfd):
    file = tmp_path / "workspace.json"
    wandb_workspace.main(
        runlog.parse_args(wandb_workspace.Args, ["--json", str(file), "--name", "Board"])
    )
    assert str(file) in capfd.readouterr().out
    view = json.loads(file.read_text())
    assert (view["project"], view["displayName"]) == (sac_continuous.Args().wandb_project, "Board")
    section = view["spec"]["section"]
    sections = {content["name"]: content for content in section["panelBankConfig"]["sections"]}
    of_script = panels_of_script("sac_continuous")
    assert list(sections) == list(of_script) and section["settings"]["xAxis"] == "global_step"
    (runs,) = section["runSets"]
    groups = [(key["section"], key["name"]) for key in runs["grouping"]]
    assert groups == [("config", "env_id.value"), ("config", "activation.value"), ("run", "group")]
    assert section["settings"]["useRunsTableGroupingInPanels"]
    configs = [json.loads(path.read_text()) for path in folder.glob("*/config.json")]
    assert configs and all({"env_id", "activation"} <= {*config} for config in configs)
    keys = set().union(*logged.values())
    images = {f"plots/{path.stem}" for path in folder.glob("*/plots/*.png")} | {"videos/episode"}
    pictures = set()
    titles = {}
    for name, content in sections.items():
        grid = content["flowConfig"]
        assert grid["columnsPerPage"] * grid["rowsPerPage"] >= len(content["panels"])
        for panel in content["panels"]:
            config = panel["config"]
            if panel["viewType"] == "Media Browser":
                assert {*config["mediaKeys"]} <= images
                pictures |= {*config["mediaKeys"]}
                continue
            titles.setdefault(name, []).append(config["chartTitle"])
            assert panel["viewType"] == "Run History Line Plot" and config["xAxis"] == "global_step"
            assert (config["groupAgg"], config["groupArea"]) == ("mean", "stddev")
            pattern = panels_of(of_script)[config["chartTitle"]]
            shown = {key for key in keys if key in config["metrics"]}
            if config.get("useMetricRegex"):  # W&B looks for the expression anywhere in a key
                shown |= {key for key in keys if re.search(config["metricRegex"], key)}
            assert shown == {key for key in keys if re.fullmatch(pattern, key)}
    assert titles == {name: list(charts) for name, charts in of_script.items()}
    assert pictures == images  # every picture that runs draw


@needs_package
def test_wrong_workspace_input_ends_in_one_line(tmp_path, capfd):
    assert "--entity: is missing" in call(capfd)
    assert "--project: is empty" in call(capfd, "--entity", "team", "--project", "")
    missing = tmp_path / "missing" / "a.json"
    assert f"cannot write {missing}" in call(capfd, "--json", str(missing))
    assert "--name \N{GRINNING FACE}" in call(
        capfd, "--json", str(tmp_path / "a.json"), "--name", "\N{GRINNING FACE}"
    )


@needs_package
def test_without_a_login_the_workspace_is_not_saved(tmp_path):
    # a separate process, since W&B keeps its login
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    env |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command = [sys.executable, wandb_workspace.__file__, "--entity", "team"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 2, done
    assert done.stdout == "", done
    assert done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("error: W&B is not logged in") and "wandb login" in done.stderr
