"""Names and rows of tiny trainings, which only change on purpose (`make golden`).

`pytest -q tests/test_golden.py`.
"""

import json
import platform

import golden
import pytest


@pytest.mark.parametrize("script", golden.TRAININGS)
def test_names_and_rows_are_unchanged(script):
    expected = json.loads(golden.FILE.read_text())[script]
    found = golden.train_portably(script)
    assert sorted(found) == sorted(expected), "other names: a run's identity has changed"
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the rows of golden.json were computed on x86")
    assert found == expected


def test_every_script_has_two_golden_trainings():
    scripts = {path.stem for path in golden.ROOT.glob("*.py") if "class Args:" in path.read_text()}
    assert scripts == set(golden.TRAININGS)
    assert all(len(flags) == 2 for flags in golden.TRAININGS.values())
