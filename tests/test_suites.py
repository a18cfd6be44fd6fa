"""environments/suites.py: what is imported when, and that a new suite is one entry.

`pytest -q tests/test_suites.py` (about 15 s).
"""

import os
import subprocess
import sys

import gymnasium
import pytest
from test_paper_figures import read_csv, write_run

import environments
import figures
import runlog
from environments import suites

PACKAGES = ("mujoco", "dm_control", "metaworld", "shimmy")


def loaded_after(code: str) -> set[str]:
    """Which of PACKAGES a new process has imported after this code."""
    code += f"\nimport sys; print(*(name for name in {PACKAGES} if name in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_suites_packages_are_imported_when_it_is_used():
    assert loaded_after("import environments, figures") == set()
    make = "import environments; environments.make_env('{}', 0, 1, 'train')"
    assert "metaworld" not in loaded_after(make.format("dm_control/cartpole-swingup-v0"))
    assert "shimmy" not in loaded_after(make.format("metaworld/reach-v3"))


@pytest.mark.parametrize(
    "env_id, suite",
    [
        ("metaworld/reach-v3", suites.METAWORLD),
        ("dm_control/cheetah-run-v0", suites.DM_CONTROL),
        ("metaworld", suites.METAWORLD),
        ("metaworlds/reach-v3", None),
        ("Pendulum-v1", None),
        ("mine:dm_control/cheetah-run-v0", None),
    ],
)
def test_ids_belong_to_their_suite(env_id, suite):
    assert suites.suite_of(env_id) is suite


def test_every_suite_lists_ids_that_can_be_made():
    for suite in suites.SUITES:
        ids = suite.list_ids(suites.import_suite(suite))
        assert len(ids) >= 50 and all(env_id.startswith(suite.prefix) for env_id in ids)
        task = next(env_id for env_id in ids if "compatibility" not in env_id)
        suites.make_raw(task, 1).close()


@pytest.mark.parametrize("wrong", ["CartPole", "FrozenLake", "Breakot", "Hopper-v1", "Lander"])
def test_only_ids_that_may_have_continuous_actions_are_suggested(wrong):
    with pytest.raises(runlog.UserError) as caught:
        suites.check_id(wrong)
    _, _, names = str(caught.value).partition("did you mean ")
    for env_id in names.removesuffix("?").split(" or "):
        not_installed = env_id.startswith(("phys2d/Pendulum", "Bipedal", "LunarLanderC", "CarR"))
        assert not_installed or suites.make_raw(env_id, 1).action_space.shape


@pytest.fixture
def toy_suite(monkeypatch):
    """A third suite: pendulums whose score is a success rate in percent."""

    def make(env_id: str, seed: int, settings: dict) -> gymnasium.Env:
        return gymnasium.make("Pendulum-v1", g=float(env_id.removeprefix("toy/g")), **settings)

    suite = suites.Suite(
        prefix="toy/",
        title="Toy",
        package="gymnasium",
        list_ids=lambda package: ["toy/g1", "toy/g10"],
        make=make,
        score_key="eval/percent",
        score_scale=100.0,
    )
    monkeypatch.setattr(suites, "SUITES", (*suites.SUITES, suite))
    return suite


def test_a_new_suite_is_one_entry(toy_suite):
    env = environments.make_env("toy/g1", 0, 1, "train")
    assert env.unwrapped.g == 1.0
    with pytest.raises(
        runlog.UserError, match=r"--env-id toy/g11: unknown; did you mean toy/g1 or toy/g10"
    ):
        environments.make_env("toy/g11", 0, 1, "train")


def test_figures_take_score_and_scale_from_the_suite(toy_suite, tmp_path):
    """Evaluations log all three keys; the last scores are 0.8, 1.0 and -0.004."""
    rows = {
        "eval/percent": ([10, 20], [20, 80]),
        "eval/success": ([10, 20], [0.5, 1.0]),
        "eval/episodic_return": ([10, 20], [-5, -4]),
    }
    for env_id in ("toy/g1", "metaworld/reach-v3", "dm_control/cheetah-run-v0"):
        for activation in ("relu", "rational", "crational"):
            write_run(tmp_path / "runs", "sac_continuous", env_id, activation, 1, rows, utd=10)
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    figures.main(["cr1", *folders])
    found = {row["group"]: float(row["value"]) for row in read_csv(tmp_path / "out" / "cr1.csv")}
    expected = {"Toy": 0.8, "Meta-World": 1.0, "DMC": -0.004, "all": (0.8 + 1.0 - 0.004) / 3}
    assert found == pytest.approx(expected, rel=1e-5)
