"""The shell scripts of the figures: what each would train and draw,
at each scale, without training anything.

`pytest -q tests/test_scripts.py` (about 20 s).
A program that records its arguments takes the place of python.
"""

import csv
import functools
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
from own_scripts import SCRIPTS as SCRIPTS_HERE

import continual_supervised
import environments
import figures
import runlog
from environments.atari import atari_game

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import sweep_plan  # noqa: E402

MODULES = {f"{name}.py": module for name, module in SCRIPTS_HERE.items()}
SCALES = ("smoke", "laptop", "paper")
# script -> (figures.py's subcommand, runs at the paper's scale: environments x variants x seeds)
FIGURES = {
    "cr_fig1": ("cr1", 30 * 3 * 10),
    "cr_curves": ("cr_curves", 30 * 3 * 10),
    "cr_ablations": ("cr_ablations", 4 * 26 * 10),
    "cr_continual": ("continual", 2 * 14 * 10),
    "cr_atari": ("cr_atari", 8 * 2 * 3 * 5),
    "hr_fig1": ("hr1", 51 * 7 * 5),
    "hr_fig2": ("hr2", 6 * 5 * 10),
    "hr_fig3": ("hr3", 4),
    "hr_fig4": ("hr4", 1),
    "hr_fig7": ("hr7", 8 * 13 * 5),
    "hr_fig8": ("hr8", 8 * (4 + 4) * 5),
    "hr_fig19": ("hr19", 51 * 7 * 5),
}
# What was run for results/; the scripts must keep naming these runs.
SAC = (
    "--utd 10 --num-seeds 3 --total-timesteps 6000 --learning-starts 1000 --widths 128 128 "
    "--batch-size 128 "
)
SAC += (
    "--eval-frequency 1000 --metrics-frequency 1000 --log-frequency 500 "
    "--checkpoint-frequency 2000 --threads 1"
)
SAC = "sac_continuous.py --env-id {} --activation {} " + SAC
PQN = "pqn_atari.py --env-id {} --activation {} --total-timesteps 60000 --eval-frequency 15000 "
PQN += "--metrics-frequency 15000 --checkpoint-frequency 30000 --threads 1 --env-threads 1"
DQN = (
    "dqn_atari.py --env-id {} --activation {} --total-timesteps 25000 --learning-starts 2500 "
    "--buffer-size 25000 "
)
DQN += (
    "--exploration-steps 12500 --metrics-frequency 2500 --eval-frequency 12500 "
    "--checkpoint-frequency 12500 "
)
DQN += "--threads 1 --env-threads 1"
CONTROL = ("dm_control/cartpole-swingup-v0", "dm_control/cheetah-run-v0", "metaworld/reach-v3")
GAMES = ("Breakout", "SpaceInvaders")
THREE = ("relu", "rational", "crational")
FIVE = (*THREE, "crational --rational.remove-constraint", "rational --layer-norm")
SIX = ("relu", "tanh", "tanh_hr", "sigmoid", "relu_hr", "crelu")
LAPTOP = {
    "cr_fig1": [SAC.format(env, cell) for env, cell in itertools.product(CONTROL, THREE)],
    "cr_curves": [SAC.format(env, cell) for env, cell in itertools.product(CONTROL, THREE)],
    "cr_ablations": [SAC.format(env, cell) for env, cell in itertools.product(CONTROL, FIVE)],
    "hr_fig1": [PQN.format(game, cell) for game, cell in itertools.product(GAMES, SIX)],
    "hr_fig19": [PQN.format(game, cell) for game, cell in itertools.product(GAMES, SIX)],
    "hr_fig7": [
        DQN.format(game, cell)
        for game, cell in itertools.product(GAMES, ("relu", "tanh", "tanh_hr"))
    ],
}


@functools.cache
def echo_of(folder: Path) -> str:
    path = folder / "echo"
    path.write_text("#!/bin/sh\nprintf '%s\\037' \"$@\"; echo\n")
    path.chmod(0o755)
    return str(path)


@functools.cache
def calls(folder: Path, script: str, scale: str, **variables) -> list[list[str]]:
    """The arguments of each call of python. Without DRY_RUN:
    a figure's command is called rather than printed."""
    own = ("DRY_RUN", "RUNS_DIR", "OUT", "SWEEP", "ENVS", "JOBS", "DATASETS", "DATA_DIR")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    environment |= {"SCALE": scale, "PYTHON": echo_of(folder)} | variables
    done = subprocess.run(
        [f"scripts/{script}.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\x1f")[:-1] for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scripts")


def commands(folder: Path, script: str, scale: str, **variables) -> list[str]:
    (_, *words), _ = calls(folder, script, scale, **variables)
    grids = words[: words.index("--name")]
    found = itertools.chain.from_iterable(map(sweep_plan.expand, grids))
    return [" ".join(command.split()) for command in found]


@functools.cache
def runs_of(command: str) -> dict[str, object]:
    """Names of the runs of a command -> its flags."""
    script, *words = shlex.split(command)
    args = runlog.parse_args(MODULES[script].Args, words)
    return dict.fromkeys((run.name for run in MODULES[script].runs_of(args)), args)


def names(found: list[str]) -> set[str]:
    return set(itertools.chain.from_iterable(map(runs_of, found)))


def environment_of(command: str) -> str | None:
    words = command.split()
    return words[words.index("--env-id") + 1] if "--env-id" in words else None


def first_seeds(found: list[str]) -> list[str]:
    return [
        command for command in found if "--seed" not in command or " --seed 1 " in f"{command} "
    ]


def one_task(found: list[str]) -> list[str]:
    """The first seeds on the first environment of each suite:
    the other commands differ in the two alone."""
    first = {}
    for command in found:
        first.setdefault(
            (environment_of(command) or "").rpartition("/")[0], environment_of(command)
        )
    return [command for command in first_seeds(found) if environment_of(command) in first.values()]


def lists() -> dict[str, list[str]]:
    shown = (
        "source scripts/environments.sh; for n in ${!CR_*} ${!HR_*} ${!LAPTOP_*} ${!SMOKE_*}; do "
        'l="$n[@]"; '
    )
    shown = subprocess.run(
        ["bash", "-c", shown + 'echo $n "${!l}"; done'], cwd=ROOT, capture_output=True, text=True
    )
    return {name: names for name, *names in map(str.split, shown.stdout.splitlines())}


def test_lists_are_as_long_as_the_papers_say_and_their_names_exist():
    found = lists()
    lengths = {
        "CR_DMC": 15,
        "CR_METAWORLD": 15,
        "CR_CONTROL": 30,
        "HR_GAMES_51": 51,
        "HR_GAMES_8": 8,
    }
    assert {name: len(found[name]) for name in lengths} == lengths
    assert all(len({*names}) == len(names) > 0 for names in found.values())
    environments.import_suites()
    import metaworld
    from dm_control import suite

    known = {f"dm_control/{domain}-{task}-v0" for domain, task in suite.ALL_TASKS}
    known |= {f"metaworld/{name}" for name in metaworld.ALL_V3_ENVIRONMENTS}
    with open(ROOT / "data" / "atari_scores.csv") as file:
        scores = {row["game"] for row in csv.DictReader(file)}
    unexplored = {"Gravitar", "MontezumaRevenge", "Pitfall", "PrivateEye", "Solaris", "Venture"}
    assert {*found["HR_GAMES_51"]} == scores - unexplored
    for name, names in found.items():
        if "GAMES" in name or name == "CR_ATARI":
            assert {*names} <= scores and [atari_game(game)[0] for game in names] == names
        else:
            assert {*names} <= known, name


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("script", FIGURES)
def test_every_command_would_start(folder, script, scale, monkeypatch):
    (launcher, *_), (file, *drawing) = calls(folder, script, scale)
    base = (
        ("runs", "figures") if script == "cr_continual" else (f"runs/{scale}", f"figures/{scale}")
    )
    base = (
        ("runs/laptop-kde", base[1])
        if scale == "laptop" and script in ("hr_fig3", "hr_fig4")
        else base
    )
    assert launcher == "scripts/sweep.py" and file == "figures.py"
    assert drawing[:5] == [FIGURES[script][0], "--runs", base[0], "--out", base[1]]
    drawn = runlog.parse_args(figures.Command, drawing)
    pqn = ["relu", "tanh", "sigmoid", "tanh_hr", "relu_hr", "crelu"]
    if scale != "laptop":
        pqn.append("relu, ReDo")
    rationals = ["relu", "rational", "crational"]
    variants = {"hr_fig3": ["tanh", "tanh_hr", "sigmoid", "sigmoid_hr"], "hr_fig4": ["tanh"]}
    variants |= {"cr_fig1": rationals, "cr_curves": rationals, "hr_fig1": pqn, "hr_fig19": pqn}
    assert drawn.row in figures.ROWS and [*drawn.variants] == variants.get(script, [])
    found = commands(folder, script, scale)
    assert len({*found}) == len(found) == len({(name, environment_of(name)) for name in found})
    monkeypatch.setattr(
        environments.control, "make_env", lambda env_id, *_: gym.make("Pendulum-v1")
    )
    for command in (some := one_task(found)):
        module = MODULES[command.split()[0]]
        args = next(iter(runs_of(command).values()))
        if module is not continual_supervised:  # whose validation loads MNIST
            module.validate(args)
    assert len(names(some)) == sum(len(runs_of(command)) for command in some), (
        "two commands train one run"
    )
    totals = set()
    for command in some:
        totals |= {getattr(args, "total_timesteps", None) for args in runs_of(command).values()}
    if scale == "paper":
        expected = 10**6 if "sac" in found[0] else 10**7
        if script in ("cr_continual", "hr_fig2"):
            expected = None
        assert totals == {expected}
        per_command = {len(runs_of(command)) for command in some}
        assert len(per_command) == 1 and len(found) * per_command.pop() == FIGURES[script][1]
    else:
        assert all(total is None or total <= 75_000 for total in totals)


@pytest.mark.parametrize("script", LAPTOP)
def test_laptop_runs_match_the_results(folder, script):
    found = commands(folder, script, "laptop")
    assert sorted(map(sorted, map(str.split, found))) == sorted(
        map(sorted, map(str.split, LAPTOP[script]))
    )
    assert names(found[:2] + found[-1:]) <= names(LAPTOP[script])


def test_the_cells_of_the_continual_study_match_its_results(folder):
    with open(ROOT / "results" / "2026-continual" / "continual_runs.csv") as file:
        rows = {(row["study"].split()[0], row["cell"]) for row in csv.DictReader(file)}
    cells = set()
    for command in commands(folder, "cr_continual", "laptop"):
        args = next(iter(runs_of(command).values()))
        shape = (args.num_seeds, args.num_tasks, args.epochs, args.threads, args.data_dir)
        assert shape == (
            (10, 15, 100, 1, "data") if args.dataset == "digits" else (10, 10, 40, 1, "data")
        )
        scale = args.rational.init_scale
        decay = args.rational.coefficient_weight_decay
        label = [args.activation]
        if scale != 1:
            label.append(f"init {scale}")
        if decay != 0:
            label.append(f"decay {decay}")
        cells.add((args.dataset, ", ".join(label)))
    assert cells == rows and len(rows) == 28
    variables = {"DATASETS": "digits", "DATA_DIR": "elsewhere", "OUT": "there", "JOBS": "3"}
    found = commands(folder, "cr_continual", "smoke", **variables)
    assert len(found) == 14
    assert all("--dataset digits --data-dir elsewhere" in command for command in found)
    launch, draw = calls(folder, "cr_continual", "smoke", **variables)
    assert launch[-2:] == ["--slots", "3"]
    assert runlog.parse_args(figures.Command, draw[1:]).out == Path("there")


def test_figures_share_their_runs(folder):
    every = {script: {*commands(folder, script, "paper")} for script in FIGURES}
    assert every["cr_curves"] == every["cr_fig1"] and every["hr_fig19"] == every["hr_fig1"]
    found = {script: first_seeds(sorted(runs)) for script, runs in every.items()}
    runs_of_script = {script: names(found[script]) for script in ("hr_fig3", "hr_fig4")}
    breakout, seaquest = (
        [c for c in found["hr_fig7"] if f" {game} " in c] for game in ("Breakout", "Seaquest")
    )
    assert runs_of_script["hr_fig3"] <= names(breakout)
    assert runs_of_script["hr_fig4"] <= names(seaquest)
    assert all("--analyse" in command for command in found["hr_fig7"]), (
        "Fig. 4 would find no contributions to Q"
    )
    dqn = [
        command
        for command in found["hr_fig8"]
        if command.startswith("dqn") and " Breakout " in command
    ]
    assert len(names(dqn)) == 4 and names(dqn) <= names(breakout)
    fig1, ablations = (
        [c for c in found[s] if "/sweep-v3 " in c] for s in ("cr_fig1", "cr_ablations")
    )
    assert len(fig1) == 3 and names(fig1) <= names(ablations)
    atari = [
        command
        for command in found["cr_atari"]
        if " Breakout " in command and "--activation relu" in command
    ]
    assert names(atari) <= names(breakout) | names(
        [c for c in found["hr_fig1"] if " Breakout " in c]
    )


def test_variables_and_a_wrong_scale(folder):
    found = commands(
        folder, "cr_ablations", "paper", ENVS="metaworld/sweep-v3", RUNS_DIR="r", SWEEP="--ray"
    )
    assert {environment_of(command) for command in found} == {"metaworld/sweep-v3"}
    assert len(found) == 26
    launch, draw = calls(
        folder, "cr_ablations", "paper", ENVS="metaworld/sweep-v3", RUNS_DIR="r", SWEEP="--ray"
    )
    assert launch[-5:] == ["--name", "cr_ablations-paper", "--runs-dir", "r", "--ray"]
    assert draw[3] == "r"
    for script in FIGURES:
        environment = os.environ | {"SCALE": "big"}
        done = subprocess.run(
            [f"scripts/{script}.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: SCALE=big: must be smoke, laptop or paper\n"


def test_a_dry_run_prints_the_commands_and_the_figures(tmp_path):
    variables = {"DRY_RUN": "1", "SCALE": "smoke", "PYTHON": sys.executable, "OUT": "o"}
    variables = os.environ | variables | {"RUNS_DIR": str(tmp_path / "runs")}
    done = subprocess.run(
        ["scripts/hr_fig4.sh"], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *training, drawing = done.stdout.splitlines()
    assert sum("dqn_atari.py --env-id Seaquest --activation tanh" in line for line in training) == 1
    expected = f"{sys.executable} figures.py hr4 --runs {tmp_path}/runs --out o --variants tanh"
    assert drawing == expected and not [*tmp_path.iterdir()]


SCRIPTS = sorted(
    {
        *(f"{name}.sh" for name in FIGURES),
        "check_layer_norm.sh",
        "check_preactivations.sh",
        "demo.sh",
    }
)
DRILLS = ["drill_resume.sh", "drill_slurm.sh"]


def shell(script: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
    own = (
        "DRY_RUN",
        "RUNS_DIR",
        "RUNS",
        "OUT",
        "SWEEP",
        "ENVS",
        "JOBS",
        "DATASETS",
        "DATA_DIR",
        "SCALE",
        "STEPS",
        "PYTHON",
    )
    environment = {key: value for key, value in os.environ.items() if key not in own} | variables
    return subprocess.run(
        [f"scripts/{script}", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def check_refused(done: subprocess.CompletedProcess, message: str) -> None:
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_every_script_is_tested_here():
    sourced = {"common.sh", "environments.sh", "rules.sh"}
    assert {path.name for path in (ROOT / "scripts").glob("*.sh")} == {*SCRIPTS, *DRILLS} | sourced


@pytest.mark.parametrize("script", [*SCRIPTS, *DRILLS])
def test_scripts_take_variables_and_no_arguments(script, folder):
    python = {"PYTHON": echo_of(folder)}
    done = shell(script, "--scale", "smoke", **python)
    check_refused(done, "--scale: ")
    if script not in DRILLS:
        variable = "SCALE=smoke" if script.removesuffix(".sh") in FIGURES else "STEPS="
        assert f"set variables before it, such as {variable}" in done.stderr
    help_text = shell(script, "--help", **python)
    head = (ROOT / "scripts" / script).read_text().splitlines()[1].removeprefix("# ")
    assert help_text.returncode == 0
    assert help_text.stdout.startswith(f"{head}\n")
    assert help_text.stderr == ""
    assert shell(script, "-h", **python).stdout == help_text.stdout
    check_refused(
        shell(script, PYTHON="/no/such"), "PYTHON=/no/such: is not a program here; run make setup"
    )
    check_refused(shell(script, PYTHON="scripts"), "PYTHON=scripts: is not a program here")
    check_refused(shell(script, DRY_RUN="perhaps", **python), "DRY_RUN=perhaps: must be 1 or 0")


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_is_a_switch(script, folder):
    """The program in place of python writes each argument with a mark after it,
    and a dry run of ours writes none."""
    variables = {
        "PYTHON": echo_of(folder),
        "RUNS": str(folder / "runs"),
        "RUNS_DIR": str(folder / "runs"),
    }
    variables |= {"OUT": str(folder / "out"), "SCALE": "smoke"}
    on = [shell(script, DRY_RUN=value, **variables) for value in ("1", "yes", "true")]
    off = [shell(script, DRY_RUN=value, **variables) for value in ("0", "", "no", "false")]
    assert all(done.returncode == 0 and done.stderr == "" for done in (*on, *off))
    marks = [done.stdout.count("figures.py\x1f") for done in (*on, *off)]
    assert marks == [0] * 3 + [1] * 4
    if script.removesuffix(".sh") in FIGURES:
        dry = [done.stdout.count("--dry-run\x1f") for done in (*on, *off)]
        assert dry == [1] * 3 + [0] * 4


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("cr_fig1.sh", {"ENVS": " "}, "ENVS=' ': has no name"),
        ("hr_fig2.sh", {"ENVS": "Pong"}, "ENVS=Pong: hr_fig2.sh has no environments"),
        ("cr_continual.sh", {"ENVS": "Pong"}, "ENVS=Pong: cr_continual.sh has no environments"),
        (
            "cr_continual.sh",
            {"DATASETS": "digits mnits"},
            "mnits is unknown; give digits, mnist or both",
        ),
        ("cr_continual.sh", {"DATASETS": "seeds"}, "seeds is unknown"),
        ("cr_continual.sh", {"DATASETS": " "}, "DATASETS=' ': has no name"),
        ("cr_continual.sh", {"DATA_DIR": "{a,b}"}, "DATA_DIR={a,b}: has a brace"),
        ("cr_continual.sh", {"JOBS": "many"}, "JOBS=many: must be a whole number, at least 1"),
        (
            "hr_fig7.sh",
            {"RUNS_DIR": "a\nb"},
            "RUNS_DIR=$'a\\nb': has a newline or another control character",
        ),
        ("demo.sh", {"STEPS": "a[$(touch pwned)]"}, "must be a whole number, at least 1001"),
        ("demo.sh", {"STEPS": "1000"}, "STEPS=1000: must be a whole number, at least 1001"),
        ("check_layer_norm.sh", {"STEPS": "23"}, "STEPS=23: must be a whole number, at least 24"),
        ("check_preactivations.sh", {"SEEDS": "0"}, "SEEDS=0: must be a whole number, at least 1"),
        ("drill_resume.sh", {"KILLS": "-1"}, "KILLS=-1: must be a whole number, at least 1"),
        ("drill_slurm.sh", {"TRAINING": "dqn"}, "TRAINING=dqn: must be sac or toy"),
    ],
)
def test_wrong_variables_are_reported_in_one_line(script, variables, message, folder):
    check_refused(shell(script, PYTHON=echo_of(folder), **variables), message)
    assert not (ROOT / "pwned").exists()


def test_paths_with_blanks_and_patterns(folder):
    """What a script hands on is one argument, and what it prints can be copied into a shell."""
    variables = {"RUNS_DIR": "a b", "OUT": "c'd", "ENVS": "Pong*\nQbert"}
    launch, draw = calls(folder, "hr_fig1", "smoke", **variables)
    assert "pqn_atari.py --env-id {Pong*,Qbert} " in launch[1]
    assert launch[launch.index("--runs-dir") + 1] == "a b"
    assert draw[2:6] == ["--runs", "a b", "--out", "c'd"]
    assert draw[6:8] == ["--variants", "relu"] and draw[-1] == "relu, ReDo"  # one argument
    launch, _ = calls(folder, "cr_continual", "smoke", DATA_DIR="a b", DATASETS="digits")
    command = shlex.split(sweep_plan.expand(launch[1])[0])
    assert command[command.index("--data-dir") + 1] == "a b"
    done = shell("hr_fig1.sh", PYTHON=echo_of(folder), DRY_RUN="1", RUNS_DIR="a b", OUT="c'd")
    words = shlex.split(done.stdout.splitlines()[-1])
    # no ReDo at laptop scale
    assert words[2:7] == ["hr1", "--runs", "a b", "--out", "c'd"] and words[7:] == draw[6:-1]
    done = shell("demo.sh", PYTHON=echo_of(folder), DRY_RUN="1", RUNS="a b")
    assert done.stdout.splitlines()[-1].endswith(r"figures.py demo a\ b/*/ --out runs/demo.png")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("script", ["hr_fig2.sh", "check_layer_norm.sh"])
def test_a_signal_to_the_script_reaches_what_it_runs(script, number, tmp_path):
    """In place of python: a training that needs half a second to save."""
    python = tmp_path / "python"
    body = f'trap "sleep 0.5; touch {tmp_path}/saved; exit 143" TERM\ntouch {tmp_path}/began\n'
    python.write_text(f"#!/usr/bin/env bash\n{body}while true; do sleep 0.05; done\n")
    python.chmod(0o755)
    environment = os.environ | {
        "PYTHON": str(python),
        "RUNS_DIR": str(tmp_path),
        "RUNS": str(tmp_path),
    }
    running = subprocess.Popen(
        [f"scripts/{script}"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "began").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    running.send_signal(number)
    assert running.wait(20) == 128 + number and (tmp_path / "saved").exists()
