"""--help of every script: groups, the flags that matter, widths; the flags are tyro's.

`pytest -q tests/test_usage.py` (about 10 s).
"""

import contextlib
import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from own_scripts import SCRIPTS

import runlog
from runlog import usage

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ["the flags that matter most", "experiment", "logging", "network"]
GROUPS += ["rational (--rational.*)", "evaluation and metrics", "help"]
FLAG = re.compile(r"--[a-z0-9][a-z0-9.-]*")


def help_of(script: str, columns: int, monkeypatch, capsys) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        runlog.parse_args(SCRIPTS[script].Args, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_a_description_groups_and_ten_flags_first(script, monkeypatch, capsys):
    text = help_of(script, 80, monkeypatch, capsys)
    docstring = SCRIPTS[script].__doc__.split("\n\n")[0]
    assert " ".join(docstring.split()) in " ".join(text.split())
    titles = re.findall(r"^(\S.*):\n  -", text, re.MULTILINE)
    assert titles[0] == GROUPS[0] and set(GROUPS) <= {*titles}
    flags = list(usage.flags_of(SCRIPTS[script].Args))
    first = [flag for flag in flags if flag.group == GROUPS[0]]
    assert flags[:10] == first
    assert all(flag.help and not flag.help.startswith("(default") for flag in flags)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_the_terminal(script, columns, monkeypatch, capsys):
    lines = help_of(script, columns, monkeypatch, capsys).splitlines()
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_flags_that_are_parsed(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # from about 160 on tyro has two columns
    theirs = io.StringIO()
    with contextlib.redirect_stdout(theirs), pytest.raises(SystemExit):
        tyro.cli(SCRIPTS[script].Args, args=["--help"], description="")
    ours = {"--help"}
    for flag in usage.flags_of(SCRIPTS[script].Args):
        ours |= {*FLAG.findall(flag.invocation)}
    # whatever begins with a flag in tyro's text, in which two groups may be side by side
    text = re.sub(r"\x1b\[[0-9;]*m", "", theirs.getvalue())
    found = set()
    for part in re.split(r"│|\n|\s{2,}", text):
        if part.startswith("-"):
            found |= {*FLAG.findall(part)}
    assert found == ours


def test_defaults_and_types():
    @dataclasses.dataclass
    class Args:
        # first; with a reason
        number: int = 3  # how many
        ratio: float | None = None  # a share
        # second
        names: tuple[str, ...] = ("a", "b")  # which
        switch: bool = True  # whether it is on: ü

    assert usage.has_groups(Args)
    shown = [tuple(flag) for flag in usage.flags_of(Args)]
    assert shown == [
        ("first", "--number INT", "how many (default: 3)"),
        ("first", "--ratio FLOAT", "a share (default: None)"),
        ("second", "--names TEXT ...", "which (default: a b)"),
        ("second", "--switch, --no-switch", "whether it is on: ü (default: on)"),
    ]


def test_a_long_command_is_broken_so_that_it_can_be_pasted():
    text = usage.wrapped("Words.\n\n    python script.py --first 1 --second 2 --third 3", 40)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 40 and lines[2].endswith(" \\")
    command = " ".join(line.removesuffix("\\").strip() for line in lines[2:])
    assert command == "python script.py --first 1 --second 2 --third 3"
    quoted = "    python sweep.py 'script.py --activation {relu,tanh} --seed {1..10}'"
    assert usage.wrapped(quoted, 40) == quoted


@pytest.mark.parametrize("program", ["figures.py", "scripts/sweep.py"])
def test_help_of_the_tools_begins_with_their_docstring(program):
    command = [sys.executable, program, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    source = (ROOT / program).read_text()
    first = source.removeprefix('"""').split("\n\n")[0]
    assert " ".join(first.split()) in " ".join(done.stdout.split())
