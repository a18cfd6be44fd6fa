"""Names and rows of tiny trainings, which only change on purpose (`make golden`).

`pytest -q tests/test_golden.py`.
"""

import copy
import platform

import golden
import pytest


@pytest.mark.parametrize("script", golden.TRAININGS)
def test_names_and_rows_are_unchanged(script):
    expected = golden.read()[script]
    found = golden.train_portably(script)
    assert sorted(found) == sorted(expected), "other names: a run's identity has changed"
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the rows of golden.jsonl were computed on x86")
    for run, curves in expected.items():
        assert golden.differences(curves, found[run]) == [], run


def test_only_rounding_passes_as_unchanged():
    curves = {
        "loss": {"steps": [20, 40], "values": [1.0, 0.25]},
        "srank": {"steps": [40], "values": [30.0]},
        "undefined": {"steps": [40], "values": [float("nan")]},
    }
    rounded = copy.deepcopy(curves)
    rounded["loss"]["values"] = [1.0 + 1e-4, 0.25 - 1e-5]
    assert golden.differences(curves, rounded) == []

    changed = copy.deepcopy(curves)
    changed["loss"]["values"] = [1.0, 0.2525]
    changed["srank"]["values"] = [31.0]
    changed["undefined"]["values"] = [0.0]
    assert golden.differences(curves, changed) == [
        "loss, step 40: 0.2525, expected 0.25",
        "srank, step 40: 31.0, expected 30.0",
        "undefined, step 40: 0.0, expected nan",
    ]

    moved = {"loss": {"steps": [20], "values": [1.0]}, "srank": curves["srank"], "new": {}}
    assert golden.differences(curves, moved) == [
        "loss: steps [20], expected [20, 40]",
        "missing: undefined",
        "not expected: new",
    ]


def test_every_script_has_two_golden_trainings():
    scripts = {path.stem for path in golden.ROOT.glob("*.py") if "class Args:" in path.read_text()}
    assert scripts == set(golden.TRAININGS)
    assert all(len(flags) == 2 for flags in golden.TRAININGS.values())
