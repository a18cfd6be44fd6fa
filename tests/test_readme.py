"""README and docs keep what they promise: links, tables,
commands, and the ten-line activation as written."""

import csv
import functools
import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from own_scripts import SCRIPTS

import activations
import continual_supervised
import dqn_atari
import environments
import figures
import function_approximation
import ppo_atari
import pqn_atari
import runlog
import sac_continuous
from environments import datasets

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
HEADERS = [f"{script}.py" for script in SCRIPTS]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fenced(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `python file ...` line in a fenced block;
    variables before it are left out."""
    found = []
    for page in PAGES:
        for block in fenced(page.read_text()):
            for line in re.sub(r"\\\n", " ", block).splitlines():
                match = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:\S*/)?python ([^-<].*)", line)
                if match:
                    found.append((page.name, shlex.split(match[1], comments=True)))
    for script in HEADERS:
        header = re.search(r'"""(.*?)"""', (ROOT / script).read_text(), re.DOTALL)[1]
        found += [
            (script, shlex.split(line))
            for line in re.findall(r"^ +python (.*)$", header, re.MULTILINE)
        ]
    return found


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_is_short_and_complete():
    assert len(README.splitlines()) < 200
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", re.sub(r"[A-Z_]+=|ACTIVATIONS", "", README)), (
        "a placeholder is left"
    )
    for first, then in (("make demo", "--utd 10"), ("make test", "--utd 10")):
        assert README.index(first) < README.index(then)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target


def test_table_of_activations_matches_the_registry():
    table = re.search(
        r"^\| name \| formula \| paper \|\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE
    )[1]
    rows = [
        tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        for line in table.splitlines()
    ]
    documented = {
        name.strip("`"): (formula.replace("\\|", "|"), source) for name, formula, source in rows
    }
    assert documented == {
        name: (entry.formula, entry.source) for name, entry in activations.ACTIVATIONS.items()
    }


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_commands_parse(page, words, monkeypatch):
    file, *argv = words
    if file == "my_activation.py":
        softsign = activations.Activation("x / (1 + |x|)", "", lambda x: x)
        monkeypatch.setitem(activations.ACTIVATIONS, "softsign", softsign)
    else:
        assert (ROOT / file).exists(), f"{page}: {file}"
    scripts = {"sac_continuous.py": sac_continuous, "my_activation.py": sac_continuous}
    modules = (dqn_atari, ppo_atari, pqn_atari, continual_supervised, function_approximation)
    scripts |= {f"{module.__name__}.py": module for module in modules}
    if file in scripts:
        monkeypatch.setattr(
            environments.control, "make_env", lambda env_id, *_: gym.make("Pendulum-v1")
        )
        monkeypatch.setattr(datasets, "load", load_zeros)  # nothing is downloaded
        scripts[file].validate(runlog.parse_args(scripts[file].Args, argv))
    elif file == "figures.py":
        runlog.parse_args(figures.Command, argv)
    else:
        assert help_works(file)


@functools.cache  # importing torch again for each command of a page would be a waste
def help_works(file: str) -> bool:
    return (
        subprocess.run(
            [sys.executable, str(ROOT / file), "--help"], capture_output=True, timeout=120
        ).returncode
        == 0
    )


def load_zeros(name: str, folder: Path) -> datasets.DataSet:
    """As datasets.load: zeros of the data set's shape, every class equally often."""
    shape, num, classes = {
        "digits": ((1, 8, 8), 1_200, 10),
        "mnist": ((1, 28, 28), 60_000, 10),
    }.get(name, ((3, 32, 32), 50_000, 100))
    split = datasets.Split(np.broadcast_to(np.uint8(0), (num, *shape)), np.arange(num) % classes)
    return datasets.DataSet(name, split, split, classes, 1.0)


def test_commands_are_found():
    found = [words for _, words in commands()]
    assert ["sac_continuous.py", "--activation", "crational", "--utd", "10"] in found
    assert {"sac_continuous.py", "figures.py", "my_activation.py"} <= {words[0] for words in found}
    headers = [page for page, _ in commands() if page.endswith(".py")]
    assert {*headers} == {*HEADERS}
    for target in re.findall(r"^make ([a-z-]+)", "\n".join(fenced(README)), re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_ten_line_activation_runs_as_written(tmp_path):
    (example,) = fenced(README, "python")
    assert len(example.splitlines()) <= 10
    (tmp_path / "my_activation.py").write_text(example)
    flags = (
        "--activation softsign --env-id Pendulum-v1 --total-timesteps 260 --learning-starts 200 "
        "--no-compile --widths 8 8"
    )
    flags += (
        " --batch-size 16 --num-eval-episodes 1 --metrics-samples 64 --log-frequency 20 "
        "--no-tensorboard --threads 1"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "my_activation.py", *flags.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert "__softsign__s1__" in folder.name
    digest = hashlib.sha256(example.encode()).hexdigest()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["untracked_code"] == {"my_activation.py": digest}
    assert meta["sessions"][0]["untracked_code"] == meta["untracked_code"]
    with open(folder / "scalars.csv") as file:
        rows = list(csv.DictReader(file))
    keys = {row["key"] for row in rows}
    assert {
        "charts/episodic_return",
        "eval/episodic_return",
        "overestimation/mean",
        "losses/qf_loss",
    } <= keys
    assert any(key.startswith("network/qf1/fc2/") for key in keys)
    condition = {row["key"] for row in rows if row["key"].endswith("ntk_condition")}  # may be inf
    assert all(math.isfinite(float(row["value"])) for row in rows if row["key"] not in condition)
