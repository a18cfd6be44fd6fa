"""Consistency of the files of this repository.

`pytest -q tests/test_repo.py` (about 30 s).
"""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from own_scripts import SCRIPTS

import activations
import runlog
from runlog.identity import not_identity
from sac_continuous import Args

ROOT = Path(__file__).parent.parent
SHARED = [
    "activations.py",
    "optimizers.py",
    "metrics.py",
    "reports.py",
    "figures.py",
    *(f"runlog/{path.name}" for path in (ROOT / "runlog").glob("*.py")),
    *(f"plots/{path.name}" for path in (ROOT / "plots").glob("*.py")),
    *(f"environments/{path.name}" for path in (ROOT / "environments").glob("*.py")),
]


def shared_source() -> str:
    paths = [*(ROOT / "runlog").glob("*.py"), *(ROOT / "environments").glob("*.py")]
    return "\n".join(path.read_text() for path in paths)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_used_and_explained(script, capsys):
    source = (ROOT / f"{script}.py").read_text()
    args = SCRIPTS[script].Args
    body = source[source.index("    rational: ") :] + shared_source()
    for field in dataclasses.fields(args):
        # run bookkeeping is used by runlog, tasks by environments; check_range only looks at a flag
        assert re.search(rf"\bargs(\.|, \"){field.name}\b", body), f"--{field.name} does nothing"
    with pytest.raises(SystemExit):
        runlog.parse_args(args, ["--help"])
    shown = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
    names = {field.name for field in dataclasses.fields(args)} - {"rational"}
    found = set()
    for line in source.splitlines():
        if (field := re.match(r"    (\w+): [^=]+ = .*$", line.split("  #")[0])) and field[
            1
        ] in names - found:
            words = line.partition("  # ")[2]
            assert len(words) > 8, f"--{field[1]} has no help"
            assert words[:20] in shown, (field[1], words)
            found.add(field[1])
    assert found == names


def test_every_rational_flag_is_used_and_explained(capsys):
    with pytest.raises(SystemExit):
        runlog.parse_args(SCRIPTS["sac_continuous"].Args, ["--help"])
    shown = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
    source = ast.parse((ROOT / "activations.py").read_text())
    (config,) = (
        node
        for node in ast.walk(source)
        if isinstance(node, ast.ClassDef) and node.name == "RationalConfig"
    )
    # the first is the docstring of the class
    helps = [node.value.value for node in config.body if isinstance(node, ast.Expr)][1:]
    assert len(helps) == len(dataclasses.fields(activations.RationalConfig))
    code = ast.unparse(source) + (ROOT / "optimizers.py").read_text()
    for field, words in zip(dataclasses.fields(activations.RationalConfig), helps):
        assert f"--rational.{field.name.replace('_', '-')}" in shown and words[:20] in shown, (
            field.name
        )
        assert re.search(rf"\b(config|rational)\.{field.name}\b", code), field.name


def test_help_shows_each_flags_own_comment(capsys):
    """tyro takes the comment above a field where there is none behind it:
    no flag may have a group's heading."""
    with pytest.raises(SystemExit):
        runlog.parse_args(Args, ["--help"])
    shown = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
    for flag, words in {
        "--seed": "first seed",
        "--utd": "gradient updates per environment step",
        "--env-id": "dm_control/DOMAIN-TASK-v0",
        "--activation": "name or expression",
        "--eval-frequency": "environment steps between evaluations",
    }.items():
        start = re.search(rf"{flag} \[?[A-Z]", shown).start()  # a list is [STR [STR ...]]
        assert words in shown[start : start + 130], (flag, shown[start : start + 130])


@pytest.mark.parametrize("module", SHARED)
def test_shared_modules_import_no_algorithm(module):
    imported = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert not imported & {*SCRIPTS}, imported


def test_runlog_has_few_names_and_knows_no_script():
    assert len(runlog.__all__) <= 20 and all(hasattr(runlog, name) for name in runlog.__all__)
    for path in (ROOT / "runlog").glob("*.py"):
        named = [script for script in SCRIPTS if script in path.read_text()]
        assert not named, (path.name, named)


def test_every_script_excludes_its_options_from_the_identity():
    """Options that every script has and that never change a result, for any algorithm."""
    bookkeeping = {
        "device",
        "threads",
        "runs_dir",
        "fresh",
        "checkpoint_frequency",
        "checkpoint_minutes",
    }
    bookkeeping |= {"compile", "tensorboard", "track", "wandb_project", "wandb_entity"}
    for script, module in SCRIPTS.items():
        left_out = {*not_identity(module.Args())}
        assert bookkeeping <= left_out, (script, bookkeeping - left_out)
        assert not left_out & {"seed", "env_id", "activation", "learning_rate", "rational"}, script
