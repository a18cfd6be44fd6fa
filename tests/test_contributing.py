"""CONTRIBUTING.md: its recipes, taken out of the page, put where they say, and tried.

`pytest -q tests/test_contributing.py` (about a minute)
"""

import csv
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import test_repo
import torch
from test_continual import scalars
from test_paper_figures import write_run
from test_readme import anchors

import environments
import runlog
from plots.activation_shapes import is_learned
from plots.reading import read_run

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGES = ("environments", "runlog", "plots", "scripts", "docs")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(
    r"(?:# |<!-- )(\S+), (a new file|at its end|(?:below|above|instead of): .+?)( -->)?"
)


# ---- the recipes ---------------------------------------------------------------------------------


def section(title: str) -> str:
    """The text below a heading, up to the next."""
    (found,) = re.findall(rf"^###? {title}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return found


def blocks(title: str, *languages: str) -> list[str]:
    """The fenced blocks of a section that are in these languages."""
    return [text for language, text in FENCE.findall(section(title)) if language in languages]


def copy_of_project(folder: Path) -> Path:
    """What a recipe changes, imports or runs."""
    folder.mkdir()
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.pyc"))
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "atari_scores.csv", folder / "data")
    return folder


def insert(project: Path, block: str) -> Path:
    """Puts a block where its first line says; returns the file."""
    first_line, _, content = block.partition("\n")
    name, how, _ = PLACE.fullmatch(first_line).groups()
    path = project / name
    if how == "a new file":
        assert not path.exists()
        path.write_text(content)
        return path
    lines = path.read_text().splitlines(keepends=True)
    blank = ["\n", "\n"] if content.startswith(("class ", "def ")) else []
    if how == "at its end":
        lines += [*blank, content]
    else:
        verb, _, start = how.partition(": ")
        (place,) = [i for i, line in enumerate(lines) if line.lstrip().startswith(start)]
        if verb == "above":
            lines[place:place] = [content, *blank]
        elif verb == "instead of":
            lines[place : place + 1] = [content]
        else:
            lines[place + 1 : place + 1] = [content]
    path.write_text("".join(lines))
    return path


def follow(title: str, project: Path) -> None:
    """Follows a recipe, and checks that its files are in the house style."""
    changed = [insert(project, block) for block in blocks(title, "python", "markdown")]
    files = sorted({str(path) for path in changed if path.suffix == ".py"})
    for command in (["check"], ["format", "--check", "--diff"]):
        done = run(project, "-m", "ruff", *command, *files)
        assert done.returncode == 0, done.stdout + done.stderr


def run(project: Path, *words: str) -> subprocess.CompletedProcess:
    """`python words` in the project."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def passes(project: Path, code: str) -> str:
    """What this code prints, in the project."""
    done = run(project, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- the page ------------------------------------------------------------------------------------


def test_every_block_of_the_recipes_is_followed_or_shows_a_command():
    recipes = PAGE[PAGE.index("## Recipes") :]
    for language, text in FENCE.findall(recipes):
        first_line = text.partition("\n")[0]
        assert language == "bash" or PLACE.fullmatch(first_line), first_line


def test_the_targets_and_files_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    (setup,) = blocks("Setting up, tests, lint", "bash")
    targets = re.findall(r"^make ([a-z-]+)", setup, re.MULTILINE)
    assert {"test", "lint", "golden"} <= {*targets}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGE):
        name, _, anchor = target.partition("#")
        text = (ROOT / name).read_text() if name else PAGE
        assert not anchor or anchor in anchors(text), target
    to_come = {"reinforce.py"}
    for name in {*re.findall(r"`([a-z_/]+\.py)`", PAGE)} - to_come:
        assert (ROOT / name).exists(), name


def test_there_are_ten_rules():
    numbers = re.findall(r"^(\d+)\. ", section("House rules"), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]


# ---- an activation -------------------------------------------------------------------------------

ONE_UPDATE = "--num-train 10 --batch-size 10 --epochs 1 --num-tasks 1 --num-seeds 2 --widths 8 6"
ONE_UPDATE += " --log-frequency 1 --ntk-samples 0 --threads 1 --device cpu --no-compile"
ONE_UPDATE += " --no-tensorboard"
OWN = "--rational.learning-rate 0.05 --rational.coefficient-weight-decay 0.5"
TRY_ACTIVATIONS = f"""
import activations, continual_supervised, runlog
try:
    activations.check("prelux", activations.RationalConfig())
except ValueError as error:
    print(error)
activations.check("softsign*prelu", activations.RationalConfig())
flags = "--activation prelu --plots {ONE_UPDATE} {OWN}"
continual_supervised.main(runlog.parse_args(continual_supervised.Args, flags.split()))
"""


@pytest.fixture(scope="module")
def with_activations(tmp_path_factory):
    """(what was printed, folder -> (step, key) -> value) of two seeds after one update."""
    project = copy_of_project(tmp_path_factory.mktemp("activation") / "project")
    follow("An activation", project)
    printed = passes(project, TRY_ACTIVATIONS)
    found = scalars(project / "runs")
    return printed, {project / "runs" / name: rows for name, rows in found.items()}


def test_an_activation_takes_ten_lines_and_is_listed(with_activations):
    one_line, module = blocks("An activation", "python")
    assert len(one_line.splitlines()) == 2
    body = module[module.index("class") : module.index("ACTIVATIONS[")]
    assert len(body.rstrip().splitlines()) <= 10
    message = with_activations[0].splitlines()[0]
    assert message.startswith("--activation 'prelux': unknown name 'prelux'; did you mean prelu")
    _, _, choices = message.partition("choose from ")
    assert {"prelu", "softsign"} <= {*choices.split()}


def test_an_activation_trains_with_the_rates_of_its_group_and_is_logged(with_activations):
    _, runs = with_activations
    assert len(runs) == 2
    for rows in runs.values():
        values = {key: float(value) for (step, key), value in rows.items() if step == 1}
        for layer in ("fc1", "fc2"):
            slope = values[f"coefficients/{layer}/slope"]
            assert abs(slope - 0.25) == pytest.approx(0.05, rel=1e-4)  # Adam's first step, no decay
            assert values[f"network/classifier/{layer}/slope_norm"] == pytest.approx(abs(slope))
            assert values[f"network/classifier/{layer}/coefficient_gradient_norm"] > 0


def test_an_activation_is_drawn_as_learned(with_activations):
    _, runs = with_activations
    for folder, rows in runs.items():
        assert is_learned(read_run(folder))
        assert (folder / "plots" / "activations.png").stat().st_size > 1_000
        lines = map(json.loads, (folder / "curves.jsonl").read_text().splitlines())
        curves = {row["key"]: row["y"] for row in lines if row["step"] == 1}
        curve = curves["network/classifier/fc1/activation"]
        slope = float(rows[1, "coefficients/fc1/slope"])
        assert (curve[0], curve[-1]) == (pytest.approx(-10 * slope, rel=1e-4), 10)


# ---- an environment suite ------------------------------------------------------------------------

TRY_SUITE = """
import json
import numpy as np
import environments, runlog

heights = {}
for env_id in ("pushed-pole/gently", "pushed-pole/hard"):
    env = environments.make_env(env_id, 0, 1, "train")
    heights[env_id] = float(np.abs(env.reset()[0]).max())
envs = environments.make_envs("pushed-pole/gently", [1, 2], "eval")
scores = environments.evaluate(envs, lambda obs: np.zeros((2, 1)), 0, 3)
suite = environments.suite_of("pushed-pole/hard")
try:
    environments.make_env("pushed-pole/hrad", 0, 1, "train")
except runlog.UserError as error:
    message = str(error)
found = {"heights": heights, "scores": scores, "key": suite.score_key, "scale": suite.score_scale}
print(json.dumps(found | {"message": message}))
"""


def test_a_suite_is_made_evaluated_and_scored(tmp_path):
    project = copy_of_project(tmp_path / "project")
    follow("An environment suite", project)
    found = json.loads(passes(project, TRY_SUITE))
    heights = found["heights"]
    assert heights["pushed-pole/gently"] <= 0.01 < heights["pushed-pole/hard"] <= 0.3
    assert len(found["scores"]) == 2
    for scores in found["scores"]:
        assert 0 < scores[found["key"]] / found["scale"] < 1  # it falls, but not at once
    assert found["message"].startswith("--env-id pushed-pole/hrad: unknown; did you mean pushed-")


# ---- a metric ------------------------------------------------------------------------------------

TRY_METRIC = f"""
import doctest, json
import torch
import continual_supervised, metrics, runlog

flags = "--activation tanh {ONE_UPDATE}"
continual_supervised.main(runlog.parse_args(continual_supervised.Args, flags.split()))
features = torch.randn(2, 40, 7, generator=torch.Generator().manual_seed(1)) * 1e30
features[..., 0] *= 5
ratios = metrics.participation_ratio(features).tolist()
zeros = metrics.participation_ratio(torch.zeros(5, 3)).item()
tests = doctest.DocTestFinder().find(metrics.participation_ratio, globs=vars(metrics))
results = [doctest.DocTestRunner().run(test) for test in tests]
failed = sum(result.failed for result in results)
tried = sum(result.attempted for result in results)
rows = dict(ratios=ratios, zeros=zeros, failed=failed, tried=tried)
print(json.dumps(rows | dict(features=(features.double() / 1e30).tolist())))
"""


def test_a_metric_is_right_and_in_the_rows_of_a_run(tmp_path):
    project = copy_of_project(tmp_path / "project")
    follow("A metric", project)
    found = json.loads(passes(project, TRY_METRIC).splitlines()[-1])
    assert (found["failed"], found["tried"], found["zeros"]) == (0, 1, 0)
    for features, ratio in zip(found["features"], found["ratios"]):
        energies = np.linalg.svd(np.array(features), compute_uv=False) ** 2
        assert ratio == pytest.approx(energies.sum() ** 2 / (energies**2).sum(), rel=1e-5)

    runs = scalars(project / "runs")
    assert len(runs) == 2
    for rows in runs.values():
        for layer in ("fc1", "fc2"):
            value = float(rows[1, f"network/classifier/{layer}/participation_ratio"])
            assert 1 <= value <= 10  # images
    row = "| `participation_ratio` |"
    table = (project / "docs" / "metrics.md").read_text()
    assert table.index("| `srank` |") < table.index(row) < table.index("| `feature_norm` |")


# ---- a figure ------------------------------------------------------------------------------------

TRY_FIGURE = """
import shutil
import figures

figures.main(["rank_and_return", "--runs", "runs", "--out", "drawn"])
shutil.move("drawn/rank_and_return.png", "first.png")
figures.main(["redraw", "drawn"])
try:
    figures.main(["rank_and_return", "--help"])
except SystemExit:
    pass
"""


def test_a_figure_is_drawn_and_redrawn(tmp_path):
    project = copy_of_project(tmp_path / "project")
    follow("A figure", project)
    for seed in (1, 2):
        for activation in ("relu", "crational"):
            score = 10.0 * seed + len(activation)
            rows = {
                "eval/episodic_return": ([10, 20], [0, score]),
                "network/qf1/fc1/srank": ([10, 20], [1, 20 + seed]),
                "network/qf2/fc1/srank": ([10, 20], [1, 30 + seed]),
                "network/actor/fc1/srank": ([10, 20], [1, 99]),
            }
            write_run(project / "runs", "sac_continuous", "Pendulum-v1", activation, seed, rows)
    printed = passes(project, TRY_FIGURE)
    assert "Last return against the last effective rank" in " ".join(printed.split())
    with open(project / "drawn" / "rank_and_return.csv") as file:
        found = {(row["variant"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(found) == 4
    for (variant, seed), row in found.items():
        assert float(row["srank"]) == 25 + int(seed)
        assert float(row["return"]) == 10 * int(seed) + len(variant)
    first = matplotlib.image.imread(project / "first.png")
    again = matplotlib.image.imread(project / "drawn" / "rank_and_return.png")
    assert np.array_equal(first, again)
    colours = np.unique(again.reshape(-1, again.shape[-1])[:, :3].round(1), axis=0)
    assert len(colours) > 5  # marks, text and axes


# ---- an algorithm --------------------------------------------------------------------------------

TINY = (
    "--env-id InvertedPendulum-v5 --no-compile --no-tensorboard --threads 1 --widths 8 --device cpu"
)
TINY += " --metrics-frequency 2 --checkpoint-frequency 2 --total-steps 4"


@pytest.fixture(scope="module")
def project_with_algorithm(tmp_path_factory):
    project = copy_of_project(tmp_path_factory.mktemp("algorithm") / "project")
    follow("An algorithm", project)
    return project


@pytest.fixture(scope="module")
def reinforce(project_with_algorithm):
    """The recipe's module; what it imports is the project's own, unchanged."""
    path = project_with_algorithm / "reinforce.py"
    spec = importlib.util.spec_from_file_location("reinforce", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reinforce"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reinforce"]


def train(module, folder: Path, flags: str) -> dict[str, dict[tuple[int, str], str]]:
    """Run folder -> (step, key) -> value as written, time aside."""
    words = f"{TINY} --runs-dir {folder} {flags}".split()
    module.main(runlog.parse_args(module.Args, words))
    return scalars(folder)


@pytest.fixture(scope="module")
def whole_runs(reinforce, tmp_path_factory):
    """Of seeds 1 and 2 together, never interrupted."""
    return train(reinforce, tmp_path_factory.mktemp("whole"), "--num-seeds 2")


def test_an_algorithm_trains_and_logs_every_seed(whole_runs):
    assert len(whole_runs) == 2
    for rows in whole_runs.values():
        returns = [float(rows[step, "charts/episodic_return"]) for step in (1, 2, 3, 4)]
        lengths_are_whole = all(value == int(value) > 0 for value in returns)
        assert lengths_are_whole  # a reward of 1 for each step that the pole stands
        assert float(rows[2, "network/policy/gradient_norm"]) > 0
        norms = [float(rows[step, "network/policy/weight_norm"]) for step in (2, 4)]
        assert norms[0] != norms[1]
    first, second = whole_runs.values()
    assert first != second


def test_a_seed_of_an_algorithm_is_the_same_run_alone(reinforce, whole_runs, tmp_path):
    alone = train(reinforce, tmp_path, "--seed 2")
    ((name, rows),) = alone.items()
    assert rows.keys() == whole_runs[name].keys()
    for step in (1, 2, 3, 4):
        for key in ("charts/episodic_return", "losses/policy_loss"):
            value = float(rows[step, key])
            assert value == pytest.approx(float(whole_runs[name][step, key]), rel=1e-4, abs=1e-5)


def test_an_algorithms_weights_match_a_slow_loop(reinforce):
    """Two episodes of other lengths: 3 steps, cut off, with steps of the next; 5 steps."""
    rewards = torch.tensor([[1.0, 2.0, -1.0, 9.0, 9.0], [0.5, 1.0, 2.0, -3.0, 1.0]])
    terminations = torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    truncations = torch.tensor([[0.0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    empty = torch.zeros(2, 5, 1)
    nothing = torch.zeros(2, 5)
    episodes = environments.Episodes(
        obs=empty,
        actions=empty,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        real_next_obs=empty,
        success=nothing,
        log_probs=nothing,
    )
    weights = reinforce.step_weights(episodes, 0.9).numpy()
    for i, length in enumerate((3, 5)):
        returns = np.zeros(length)
        for t in range(length):
            for later in range(t, length):
                returns[t] += 0.9 ** (later - t) * float(rewards[i, later])
        expected = (returns - returns.mean()) / returns.std() / length
        assert weights[i, :length] == pytest.approx(expected, rel=1e-5)
        assert (weights[i, length:] == 0).all()


def test_an_algorithms_gradient_is_that_of_reinforce(reinforce):
    """Of log N(a; mean, std) by the mean's bias: (a - mean) / std^2."""
    words = f"{TINY} --activation identity".split()
    args = runlog.parse_args(reinforce.Args, words)
    policy = reinforce.Policy(3, 1, args, [1, 2], torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn(2, 4, 3, generator=generator)
    actions = torch.randn(2, 4, 1, generator=generator)
    weights = torch.randn(2, 4, generator=generator)
    (gradient,) = torch.autograd.grad(
        reinforce.policy_loss(policy, obs, actions, weights).sum(), policy.mean.bias
    )
    distribution = policy(obs)
    scores = (actions - distribution.mean) / distribution.stddev**2
    expected = -(weights * scores.squeeze(-1)).sum(-1)
    assert gradient.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_an_algorithm_resumes_with_the_same_rows(reinforce, whole_runs, tmp_path, monkeypatch):
    save = runlog.Batch.save

    def save_and_stop(batch, step, *content):
        save(batch, step, *content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runlog.Batch, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(reinforce, tmp_path, "--num-seeds 2")
    statuses = [json.loads(path.read_text())["status"] for path in tmp_path.glob("*/meta.json")]
    assert statuses == ["interrupted"] * 2
    for rows in scalars(tmp_path).values():
        assert max(step for step, _ in rows) == 2
    assert train(reinforce, tmp_path, "--num-seeds 2") == whole_runs
    assert (next(tmp_path.glob("*__s1__*")) / "plots" / "preactivations.png").exists()


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_seed_of_an_algorithm_that_diverges_ends_as_diverged(reinforce, tmp_path):
    train(reinforce, tmp_path, "--learning-rate 1e38")
    (path,) = tmp_path.glob("*/meta.json")
    assert json.loads(path.read_text())["status"] == "diverged"


def test_an_algorithms_mistakes_are_reported_in_one_line(reinforce, tmp_path):
    for flags, message in {
        "--activation tanhh": "did you mean tanh",
        "--gamma 2": "--gamma 2",
        "--env-id CartPole-v1": "--env-id CartPole-v1",
    }.items():
        with pytest.raises(runlog.UserError, match=message):
            train(reinforce, tmp_path / "none", flags)
    assert not (tmp_path / "none").exists()


def test_an_algorithms_flags_pass_the_checks_of_the_projects_own(
    reinforce, project_with_algorithm, monkeypatch, capsys
):
    """The checks of test_repo.py, which hold for every script."""
    monkeypatch.setattr(test_repo, "ROOT", project_with_algorithm)
    monkeypatch.setattr(test_repo, "SCRIPTS", {"reinforce": reinforce})
    test_repo.test_every_flag_is_used_and_explained("reinforce", capsys)
    test_repo.test_every_script_excludes_its_options_from_the_identity()


def test_the_sweep_finds_an_algorithm(project_with_algorithm):
    grid = f"reinforce.py {TINY} --activation {{relu,tanh_hr}} --seed {{1..3}}"
    done = run(project_with_algorithm, "scripts/sweep.py", grid, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and "2 of 2 processes are left" in done.stderr
    for line, activation in zip(lines, ("relu", "tanh_hr")):
        assert f"--activation {activation}" in line and line.endswith("--seed 1 --num-seeds 3")


@pytest.mark.slow
def test_an_algorithm_learns(reinforce, tmp_path):
    """About 40 s: episodes of two seeds, 35 steps long at first, have 110 after 300 updates."""
    flags = "--num-seeds 2 --total-steps 300 --metrics-frequency 0 --checkpoint-frequency 300"
    for rows in train(reinforce, tmp_path, f"{flags} --widths 64 64").values():
        mean_return = functools.partial(mean_of, rows, "charts/episodic_return")
        assert mean_return(201, 300) > 2 * mean_return(1, 100)


def mean_of(rows: dict[tuple[int, str], str], key: str, first: int, last: int) -> float:
    return float(np.mean([float(rows[step, key]) for step in range(first, last + 1)]))
