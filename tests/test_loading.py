"""runlog.load and load_agent: a run in any state, as a notebook reads it.

`pytest -q tests/test_loading.py` (about 40 s).
"""

import csv
import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import golden
import gymnasium
import numpy as np
import pytest
import torch
from own_scripts import SCRIPTS
from torch.nn.functional import relu

import function_approximation
import runlog
import sac_continuous
import td3_continuous
from environments import datasets
from runlog import seeding

# the flags of a quick run; later ones replace those of golden.py
QUICK = {script: flags[0] for script, flags in golden.TRAININGS.items()}
for name in ("sac_continuous", "td3_continuous", "dqn_atari", "ppo_atari", "pqn_atari"):
    QUICK[name] += " --metrics-frequency 0 --ntk-frequency 0"


@dataclasses.dataclass(frozen=True)
class Inner:
    scale: float = 5.0
    span: tuple[float, float] = (-1.0, 1.0)
    newer: int = 7


@dataclasses.dataclass
class Args:
    seed: int = 1
    env_id: tuple[str, ...] = ("toy",)
    widths: tuple[int, ...] = (2, 3)
    limit: tuple[int, ...] | None = None
    activation: str = "relu"
    inner: Inner = dataclasses.field(default_factory=Inner)
    device: str = runlog.option("cpu")
    added_later: float = 0.5


def config_of(args: Args) -> dict:
    """As runlog.seed_runs writes it."""
    config = dataclasses.asdict(args)
    if len(args.env_id) == 1:
        (config["env_id"],) = args.env_id
    return config


def begun(tmp_path: Path, args: Args, **options) -> runlog.Run:
    config = config_of(args) | options
    run = runlog.Run(tmp_path, "toy__mine__relu__s1__0123456789", config)
    return run.open(tensorboard=False)


def log(run: runlog.Run, *steps: int) -> None:
    for step in steps:
        run.log(step, {"eval/score": step / 3, "perf/sps": 2.0 * step})


ARGS = Args(
    seed=3, env_id=("a", "b"), widths=(4,), limit=(1, 2), inner=Inner(scale=0.1, span=(0.0, 2.0))
)


@pytest.mark.parametrize("args", [ARGS, Args(env_id=("one",))])
def test_the_config_comes_back_as_the_dataclass(args, tmp_path):
    run = begun(tmp_path, args, learning_rate=0.25)
    run.close()
    found = runlog.load(run.folder, Args)
    assert found.config == args and type(found.config.inner) is Inner
    assert found.defaulted == ()
    assert found.settings["learning_rate"] == 0.25  # Args does not have this field


def test_a_run_in_each_state(tmp_path):
    run = begun(tmp_path, ARGS)
    log(run, 1, 2)
    run.flush()
    before = runlog.load(run.folder, Args)  # in progress, before the first checkpoint
    assert (before.status, before.step, before.state) == ("running", 0, None)
    steps, values = before.scalars["eval/score"]
    assert steps.tolist() == [1, 2] and values.tolist() == [1 / 3, 2 / 3]  # bit for bit
    assert before.scalars["perf/sps"].values.tolist() == [2.0, 4.0]

    run.save_checkpoint(2, {"weights": {"w": torch.arange(3.0)}, "n": 2})
    log(run, 3)
    run.flush()
    rows = (run.folder / "scalars.csv").read_bytes()
    # what a reader may see while a row is being written
    (run.folder / "scalars.csv").write_bytes(rows + b"4,eval/sco")
    files = {path: path.read_bytes() for path in run.folder.iterdir()}
    in_progress = runlog.load(run.folder, Args)
    assert (in_progress.status, in_progress.step) == ("running", 2)
    assert in_progress.state["weights"]["w"].tolist() == [0, 1, 2]
    assert in_progress.scalars["eval/score"].steps.tolist() == [1, 2, 3]
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == files  # loading only reads

    (run.folder / "scalars.csv").write_bytes(rows)
    run.log(4, {"losses/loss": math.nan})
    run.finish("diverged", step=4)
    diverged = runlog.load(run.folder, Args)
    assert (diverged.status, diverged.step, diverged.meta["step"]) == ("diverged", 2, 4)
    assert np.isnan(diverged.scalars["losses/loss"].values).tolist() == [True]


def test_a_run_is_read_while_its_checkpoints_are_renamed(tmp_path, monkeypatch):
    """`commit_checkpoint` renames next -> newest -> previous; a reader finds one of the three at
    any moment."""
    run = begun(tmp_path, ARGS)
    log(run, 1)
    run.save_checkpoint(1, {"n": 1})
    run.stage_checkpoint(2, {"n": 2})
    assert runlog.load(run.folder, Args).step == 2
    (run.folder / "checkpoint.pt").rename(run.folder / "checkpoint.prev.pt")
    assert runlog.load(run.folder, Args).step == 2
    (run.folder / "checkpoint.next.pt").rename(run.folder / "checkpoint.pt")
    assert runlog.load(run.folder, Args).step == 2
    run.close()


def test_an_older_run_has_the_defaults_of_newer_fields_and_says_which(tmp_path):
    run = begun(tmp_path, ARGS)
    run.close()
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    del config["added_later"], config["inner"]["newer"]
    config["gone"] = 1
    path.write_text(json.dumps(config))
    found = runlog.load(run.folder, Args)
    assert found.config == ARGS
    assert found.defaulted == ("inner.newer", "added_later")
    assert found.settings["gone"] == 1


def test_a_damaged_checkpoint_is_a_warning_and_the_one_before_is_read(tmp_path, capsys):
    run = begun(tmp_path, ARGS)
    log(run, 1, 2)
    run.save_checkpoint(1, {"n": 1})
    run.save_checkpoint(2, {"n": 2})
    run.close()
    newest = run.folder / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    assert runlog.load(run.folder, Args).state["n"] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "using checkpoint.prev.pt, step 1" in line
    (run.folder / "checkpoint.prev.pt").write_bytes(b"")
    with pytest.raises(runlog.UserError, match=r"^no usable checkpoint: .*checkpoint\.pt"):
        runlog.load(run.folder, Args)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("later format", "has the checkpoint format 99"),
        ("another run's checkpoint", "belongs to another configuration"),
        ("config.json is cut", "config.json is damaged"),
        ("a setting of another kind", "its settings do not match"),
        ("a broken row", "line 3 is not a row of step, key, value, wall_time"),
        ("no config.json", "is not a run folder; give one that contains config.json"),
    ],
)
def test_damage_is_reported_in_one_line(damage, message, tmp_path):
    run = begun(tmp_path, ARGS)
    log(run, 1, 2)
    run.save_checkpoint(1, {"n": 1})
    run.close()
    folder = run.folder
    checkpoint = torch.load(folder / "checkpoint.pt")
    config = (folder / "config.json").read_text()
    match damage:
        case "later format":
            torch.save(checkpoint | {"format": 99}, folder / "checkpoint.pt")
        case "another run's checkpoint":
            torch.save(checkpoint | {"digest": "f" * 10}, folder / "checkpoint.pt")
        case "config.json is cut":
            (folder / "config.json").write_text(config[:40])
        case "a setting of another kind":
            (folder / "config.json").write_text(json.dumps(json.loads(config) | {"inner": 3}))
        case "a broken row":
            text = (folder / "scalars.csv").read_text()
            (folder / "scalars.csv").write_text(text.replace("2,eval/score,", "2,eval/score;"))
        case "no config.json":
            (folder / "config.json").unlink()
    with pytest.raises(runlog.UserError) as caught:
        runlog.load(folder, Args)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_folders_and_unknown_scripts_are_reported_in_one_line(tmp_path):
    run = begun(tmp_path, ARGS)
    run.close()
    cases = {
        tmp_path: "contains 1 run folders, such as",
        tmp_path / "nothing": "there is no such folder",
        run.folder: "cannot import mine, which trained it",
    }
    for folder, message in cases.items():
        with pytest.raises(runlog.UserError) as caught:
            runlog.load(folder)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    unnamed = tmp_path / "mine"
    run.folder.rename(unnamed)
    (unnamed / "meta.json").unlink()
    with pytest.raises(runlog.UserError, match=r"does not show .* runlog\.load\(folder, Args\)"):
        runlog.load(unnamed)
    assert runlog.load(unnamed, Args).config == ARGS


def test_the_script_is_imported_by_the_runs_name(tmp_path, monkeypatch):
    run = begun(tmp_path, ARGS)
    run.close()
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(Args=Args))
    assert runlog.load(run.folder).config == ARGS


# ---- load_agent ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """script -> the folder of a run of it that was killed at its very end: unfinished, and with a
    checkpoint."""
    trained = {}

    def of(script: str) -> Path:
        if script not in trained:
            root = tmp_path_factory.mktemp(script)
            args = runlog.parse_args(SCRIPTS[script].Args, QUICK[script].split())
            args = dataclasses.replace(args, runs_dir=str(root))
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(runlog.Run, "finish", interrupt)
                SCRIPTS[script].main(args)
            trained[script] = sorted(root.glob("*/checkpoint.pt"))[-1].parent
        return trained[script]

    return of


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unfinished_run_gives_its_config_its_rows_and_its_weights(script, interrupted):
    module = SCRIPTS[script]
    folder = interrupted(script)
    run = runlog.load(folder)
    assert run.status == "interrupted"
    assert run.step > 0
    assert run.defaulted == ()
    flags = runlog.parse_args(module.Args, QUICK[script].split())
    own = {"seed": run.settings["seed"], "runs_dir": str(folder.parent)}
    expected = dataclasses.replace(flags, **own)
    assert run.config == expected
    with open(folder / "scalars.csv") as file:
        rows = list(csv.DictReader(file))
    for key, (steps, values) in run.scalars.items():
        logged = [row for row in rows if row["key"] == key]
        if not key.startswith("perf/"):
            assert steps.tolist() == [int(row["step"]) for row in logged]
            assert np.array_equal(values, [float(row["value"]) for row in logged], equal_nan=True)

    agent = module.load_agent(folder)
    saved = torch.load(folder / "checkpoint.pt")["state"]
    names = ("agent", "q_network", "learner", "networks")
    (saved,) = [saved[name] for name in names if name in saved]
    state = agent.state_dict()
    assert state
    for name, tensor in state.items():
        original = saved[name] if name in saved else saved[f"network.{name}"]
        assert tensor.device.type == "cpu" and torch.equal(tensor, original), name


def test_the_shapes_have_no_seed_axis_and_the_values_match_training(interrupted):
    """Compared with the modules used in training, which have a seed axis."""
    obs = torch.linspace(-1, 1, 15).reshape(5, 3)
    actions = torch.linspace(-1, 1, 5).reshape(5, 1)
    for module in (sac_continuous, td3_continuous):
        folder = interrupted(module.__name__)
        run = runlog.load(folder)
        agent = module.load_agent(folder)
        args = dataclasses.replace(run.config, compile=False)
        trained = module.Agent(3, 1, args, [run.config.seed], torch.device("cpu"))
        runlog.restore_module(trained, [run.state["agent"]])
        q_values = agent.qf(obs, actions)
        assert q_values.shape == (2, 5)
        torch.testing.assert_close(q_values, trained.qf(obs[None], actions[None])[0])
        played = agent.act(obs[0].numpy())
        assert played.shape == (1,) and abs(played[0]) <= 1
        np.testing.assert_allclose(played, trained.act(obs[:1].numpy())[0], rtol=1e-5)
        one = [torch.Generator().manual_seed(0)]
        same = [torch.Generator().manual_seed(0)]
        explored = agent.act(obs[0].numpy(), one)
        np.testing.assert_allclose(explored, trained.act(obs[:1].numpy(), same)[0], rtol=1e-5)
        assert explored.shape == (1,) and explored != played
    mean, log_std = sac_continuous.load_agent(interrupted("sac_continuous")).actor(obs)
    assert mean.shape == log_std.shape == (5, 1)


def blocks_of_notebook() -> list[str]:
    page = (Path(__file__).parent.parent / "docs" / "runs.md").read_text()
    section = page.partition("## In a notebook")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [re.sub(r"(?m)^folder = .*$", "", block) for block in blocks]


@pytest.mark.parametrize("script", ["sac_continuous", "td3_continuous"])
def test_the_documented_code_plays_a_loaded_agent(script, interrupted):
    """The code on the page, with a folder of this test."""
    load, play, _ = blocks_of_notebook()
    load = load.replace("sac_continuous", script)
    if script == "td3_continuous":
        play = play.replace("run.config.env_id[0]", "run.config.env_id")
    names = {"folder": str(interrupted(script)), "obs": np.zeros(3)}
    exec(load, names)
    exec(play, names)
    agent = names["agent"]

    # by hand: Pendulum-v1 as it is, whose torque lies in [-2, 2]
    env = gymnasium.make("Pendulum-v1")
    by_hand = []
    for episode in range(3):
        seed = seeding.derive_seed(names["run"].config.seed, "play", episode) % 2**32
        obs, _ = env.reset(seed=seed)
        total = 0.0
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(2 * agent.act(obs))
            total += reward
            done = terminated or truncated
        by_hand.append(total)
    assert names["episodic_return"] == pytest.approx(by_hand[0], rel=1e-4)
    assert names["result"]["eval/episodic_return"] == pytest.approx(np.mean(by_hand), rel=1e-4)


def test_the_documented_code_plays_a_loaded_atari_agent(interrupted):
    *_, atari = blocks_of_notebook()
    names = {"folder": str(interrupted("dqn_atari")), "runlog": runlog}
    exec(atari, names)
    games = names["make_games"](3)
    obs = games.reset(1, "play")
    generator = torch.Generator().manual_seed(1)
    by_hand = {}
    while len(by_hand) < 3:
        epsilon = names["run"].config.eval_epsilon
        step = games.step(SCRIPTS["dqn_atari"].act(names["q_network"], epsilon, generator, obs))
        obs = step.obs
        for game in step.games:
            by_hand.setdefault(game.env, game.total)
    assert names["returns"] == [by_hand[i] for i in range(3)]
    assert names["step"].obs.shape == names["obs"].shape == (1, 4, 84, 84)


def test_networks_of_images_and_points_have_the_documented_shapes(interrupted):
    frames = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    for script in ("dqn_atari", "pqn_atari"):
        assert SCRIPTS[script].load_agent(interrupted(script))(frames).shape == (2, 4)  # Breakout
    logits, values = SCRIPTS["ppo_atari"].load_agent(interrupted("ppo_atari"))(frames)
    assert logits.shape == (2, 4) and values.shape == (2,)

    script = "continual_supervised"
    digits = datasets.load("digits", Path("data")).train.images[:7]
    pixels = torch.from_numpy(digits).flatten(1) / 16
    assert SCRIPTS[script].load_agent(interrupted(script))(pixels).shape == (7, 10)


def test_a_loaded_fit_has_the_logged_error(interrupted):
    """The error that was logged last, recomputed by hand from the saved network."""
    folder = interrupted("function_approximation")
    run = runlog.load(folder)
    network = function_approximation.load_agent(folder)
    points = torch.linspace(*run.config.interval, run.config.num_points)
    error = (network(points) - function_approximation.target(points)).square().mean().item()
    assert error == pytest.approx(run.scalars["losses/mse"].values[-1], rel=1e-5)
    assert network.count() == sum(p.numel() for p in network.parameters())
    if run.settings["activation"] == "relu":
        weights = run.state["networks"]
        linear = "hidden.0.branches.0.linear"
        hidden = relu(points[:, None] @ weights[f"{linear}.weight"] + weights[f"{linear}.bias"])
        by_hand = hidden @ weights["output.weight"] + weights["output.bias"]
        torch.testing.assert_close(network(points), by_hand[:, 0])


def test_every_image_shape_matches_its_data_set():
    assert set(datasets.IMAGE_SHAPES) == set(datasets.LOADERS)
    data = datasets.load("digits", Path("data"))
    assert data.image_shape == datasets.IMAGE_SHAPES["digits"]


def test_a_cnn_is_the_same_with_and_without_a_seed_axis():
    flags = "--network cnn --channels 3 4 --widths 5 --layer-norm --activation tanh_hr"
    args = runlog.parse_args(SCRIPTS["continual_supervised"].Args, flags.split())
    classifier = SCRIPTS["continual_supervised"].Classifier
    x = torch.rand(6, 28 * 28)
    alone = classifier(args, (1, 28, 28), 10, 4)(x)
    batch = classifier(args, (1, 28, 28), 10, [2, 4])(torch.stack([x, x]))
    assert alone.shape == (6, 10)
    torch.testing.assert_close(batch[1], alone)


def test_a_missing_checkpoint_and_an_unknown_activation_are_reported_in_one_line(tmp_path):
    flags = f"--env-id Pendulum-v1 --runs-dir {tmp_path} --widths 4"
    args = runlog.parse_args(sac_continuous.Args, flags.split())
    (run,) = sac_continuous.runs_of(args)
    run.open(tensorboard=False)
    message = r"is running and has no checkpoint; wait for the first \(--checkpoint-frequency\)"
    with pytest.raises(runlog.UserError, match=message):
        sac_continuous.load_agent(run.folder)

    agent = sac_continuous.Agent(3, 1, args, 1, torch.device("cpu"))
    run.save_checkpoint(0, {"agent": agent.state_dict()})
    assert sac_continuous.load_agent(run.folder).args.widths == (4,)
    path = run.folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"activation": "snake_of_mine"}))
    with pytest.raises(runlog.UserError, match="unknown name 'snake_of_mine'"):
        sac_continuous.load_agent(run.folder)
    path.write_text(json.dumps(config | {"widths": [5]}))
    with pytest.raises(runlog.UserError, match="its checkpoint does not match Agent") as caught:
        sac_continuous.load_agent(run.folder)
    assert "\n" not in str(caught.value)
    run.close()


def test_every_script_documents_what_its_agent_takes_and_returns():
    for script, module in SCRIPTS.items():
        words = module.load_agent.__doc__
        assert "newest checkpoint, finished or not" in words and "UserError" in words, script
        assert re.search(r"\((n|batch|points|obs_dim)\b", words), script
