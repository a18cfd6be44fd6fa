"""Short runs of sac_continuous.py with tiny networks:
what they write, that they repeat, resume and survive.

`pytest -q tests/test_sac_runs.py` (about 60 s).
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import time

import gymnasium as gym
import pytest

import environments
import runlog
import sac_continuous

CARTPOLE = "dm_control/cartpole-swingup-v0"
TINY = (
    "--no-compile --no-tensorboard --device cpu --threads 1 --widths 8 8 --batch-size 16 "
    "--learning-starts 20"
)
TINY += (
    " --total-timesteps 60 --checkpoint-frequency 60 --eval-frequency 40 --num-eval-episodes 1 "
    "--log-frequency 10"
)
TINY += " --metrics-frequency 30 --metrics-samples 32 --ntk-frequency 0"


def command(folder, flags: str) -> list[str]:
    return [*TINY.split(), "--runs-dir", str(folder), *flags.split()]


def run(folder, flags: str) -> dict[str, list[str]]:
    """Runs the command in this process; run folder name
    -> rows of scalars.csv without the time column."""
    sac_continuous.main(runlog.parse_args(sac_continuous.Args, command(folder, flags)))
    return scalars(folder)


def scalars(folder) -> dict[str, list[str]]:
    files = sorted(folder.glob("*/scalars.csv"))
    return {
        file.parent.name: [line.rsplit(",", 1)[0] for line in file.read_text().splitlines()[1:]]
        for file in files
    }


def values(rows: list[str]) -> dict[tuple[int, str], float]:
    return {(int(step), key): float(value) for step, key, value in (row.split(",") for row in rows)}


def short_dm_control(monkeypatch, steps: int = 30):
    """dm_control episodes have 1,000 steps; here they have `steps`,
    so that evaluations and ends take no time."""
    make = gym.make

    def make_short(env_id, **kwargs):
        env = make(env_id, **kwargs)
        return (
            gym.wrappers.TimeLimit(env, steps)
            if env_id.startswith(("dm_control/", "Meta-World"))
            else env
        )

    monkeypatch.setattr(gym, "make", make_short)


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    short_dm_control(monkeypatch)


LOSSES = {f"losses/{key}" for key in ("qf_loss", "q_mean", "actor_loss", "entropy", "alpha")}
EVAL = {"eval/episodic_return", "eval/stochastic_return"} | {
    f"overestimation/{k}" for k in ("mean", "std", "normalised")
}
CHARTS = {"charts/episodic_return", "charts/episodic_length"}


def test_a_run_writes_every_key_and_repeats_bit_for_bit_and_metrics_change_nothing(tmp_path):
    flags = f"--env-id {CARTPOLE} --num-seeds 2"
    first = run(tmp_path / "a", flags)
    assert run(tmp_path / "b", flags) == first
    assert len(first) == 2 and len({tuple(rows) for rows in first.values()}) == 2
    for name, rows in first.items():
        got = values(rows)
        folder = tmp_path / "a" / name
        assert len(got) == len(rows)
        assert all(math.isfinite(x) for (_, key), x in got.items() if "network/" not in key)
        steps = {key: [step for step, k in got if k == key] for _, key in got}
        assert {key for key in steps if not key.startswith("network/")} == LOSSES | EVAL | CHARTS
        assert all(steps[key] == [20, 30, 40, 50, 60] for key in LOSSES)
        assert all(steps[key] == [40, 60] for key in EVAL)
        assert all(steps[key] == [30, 60] for key in CHARTS)
        network = {key for key in steps if key.startswith("network/")}
        assert all(steps[key] == [20, 30, 60] for key in network)  # at learning_starts: untrained
        assert {key.split("/")[1] for key in network} == {"actor", "qf1", "qf2"}
        for metric in ("dead_share", "dormant_share", "srank", "weight_norm", "gradient_norm"):
            assert any(metric in key for key in network), (metric, sorted(network))
        meta = json.loads((folder / "meta.json").read_text())
        assert meta["status"] == "finished" and not (folder / "replay").exists()
        perf = (folder / "perf.csv").read_text()
        assert "perf/sps" in perf and "perf/updates_per_second" in perf
        assert (folder / "curves.jsonl").read_text() and (folder / "histograms.jsonl").read_text()
    others = run(tmp_path / "c", f"{flags} --metrics-frequency 0")
    for rows, without in zip(first.values(), others.values()):
        assert [row for row in rows if ",network/" not in row] == without


def test_weights_change_and_a_seed_is_the_same_run_alone(tmp_path):
    together = run(
        tmp_path / "a", f"--env-id {CARTPOLE} --num-seeds 2 --keep-replay --activation crational"
    )
    alone = run(tmp_path / "b", f"--env-id {CARTPOLE} --seed 2 --activation crational")
    (name,) = alone
    assert name in together and "__s2__" in name
    ours = values(together[name])
    theirs = values(alone[name])
    assert ours.keys() == theirs.keys()
    for key in ours:
        if "network" not in key[1]:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-2, abs=1e-3), key
    args = runlog.parse_args(
        sac_continuous.Args, command(tmp_path / "a", f"--env-id {CARTPOLE} --activation crational")
    )
    args = sac_continuous.dataclasses.replace(args, num_seeds=2)
    for saved in sac_continuous.runs_of(args):
        seed = saved.config["seed"]
        step, state, transitions = saved.load_checkpoint()
        assert step == 60 and transitions["rows"].shape[0] == 60
        fresh = sac_continuous.Agent(
            5, 1, args, [seed], sac_continuous.torch.device("cpu")
        ).state_dict()
        assert fresh.keys() == state["agent"].keys()
        assert int(state["agent"]["qf_optimizer.count"]) == 41
        for key, value in fresh.items():
            assert not (value[0] if value.dim() else value).equal(state["agent"][key]), key


VARIANTS = {
    "--utd 2 --policy-frequency 2 --layer-norm": 82,
    "--activation tanh_hr --async-envs --num-seeds 2": 41,
    (
        "--activation rational --rational.learning-rate 1e-3 "
        "--rational.coefficient-weight-decay 0.1"
    ): 41,
    "--activation crational --rational.share-across-layers --rational.form B --utd 2": 82,
    "--activation identity*silu+tanh --env-id Hopper-v5 --widths 6": 41,
    "--policy-frequency 2": 41,
    "--activation crelu --widths 6": 41,
}


@pytest.mark.parametrize("flags", VARIANTS)
def test_options_run(flags, tmp_path):
    results = run(
        tmp_path, f"--env-id {CARTPOLE} --eval-frequency 60 --checkpoint-frequency 60 {flags}"
    )
    for name, rows in results.items():
        got = values(rows)
        assert {key for _, key in got} >= LOSSES | EVAL
        assert all(math.isfinite(got[60, key]) for key in LOSSES)
        state = runlog.storage.load_pt(tmp_path / name / runlog.checkpoints.CHECKPOINT)["state"][
            "agent"
        ]
        assert int(state["qf_optimizer.count"]) == VARIANTS[flags]
        assert int(state["actor_optimizer.count"]) == VARIANTS[flags] // (
            2 if "--policy" in flags else 1
        )


def test_meta_world_logs_success_and_hopper_terminates(tmp_path):
    (rows,) = run(tmp_path / "a", "--env-id metaworld/reach-v3 --metrics-frequency 0").values()
    got = values(rows)
    assert {key for _, key in got} == LOSSES | EVAL | CHARTS | {"charts/success", "eval/success"}
    assert {value for (_, key), value in got.items() if "success" in key} <= {0.0, 1.0}
    (rows,) = run(tmp_path / "b", "--env-id Hopper-v5 --metrics-frequency 0 --keep-replay").values()
    ends = [step for step, key in values(rows) if key == "charts/episodic_return"]
    (checkpoint,) = (tmp_path / "b").glob("*/checkpoint.pt")
    chunks = sorted((checkpoint.parent / "replay").iterdir())
    stored = sac_continuous.torch.cat(
        [runlog.storage.load_pt(chunk)["transitions"]["rows"] for chunk in chunks]
    )
    terminated = (stored[:, 11 + 3 + 1] == 1).nonzero().flatten() + 1
    assert ends and terminated.tolist() == ends  # a hopper falls long before its time limit


def test_evaluate_a_finished_run_again_and_fresh(tmp_path, capfd):
    flags = f"--env-id {CARTPOLE} --metrics-frequency 0"
    first = run(tmp_path, flags)
    (folder,) = tmp_path.iterdir()
    capfd.readouterr()
    before = (folder / "scalars.csv").read_bytes()
    run(tmp_path, flags)
    assert "finished already (--fresh starts it over)" in capfd.readouterr().out
    run(tmp_path, f"{flags} --evaluate")
    printed = capfd.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith("seed 1: eval/episodic_return ")
    assert "return of the video" in printed
    (video,) = (folder / "videos").glob("*.mp4")
    assert str(video) in printed and video.stat().st_size > 500
    assert (folder / "scalars.csv").read_bytes() == before
    assert run(tmp_path, f"{flags} --fresh") == first and not (folder / "videos").exists()
    assert len(json.loads((folder / "meta.json").read_text())["sessions"]) == 1


def test_a_diverged_seed_leaves_the_others_alone(tmp_path, monkeypatch):
    flags = f"--env-id {CARTPOLE} --num-seeds 3"
    healthy = run(tmp_path / "a", flags)
    make_env = environments.make_env

    class Poisoned(gym.Wrapper):
        def step(self, action):
            obs, reward, *rest = self.env.step(action)
            self.steps = getattr(self, "steps", 0) + 1
            return obs, reward if self.steps < 45 else math.nan, *rest

    def poisoned(env_id, index, seed, stream, *args):
        env = make_env(env_id, index, seed, stream, *args)
        return Poisoned(env) if (seed, stream) == (2, "train") else env

    monkeypatch.setattr(environments.control, "make_env", poisoned)
    names = {
        key: name for name, key in itertools.product(healthy, (1, 2, 3)) if f"__s{key}__" in name
    }
    diverged = run(tmp_path / "b", flags)
    assert diverged[names[1]] == healthy[names[1]] and diverged[names[3]] == healthy[names[3]]
    meta = json.loads((tmp_path / "b" / names[2] / "meta.json").read_text())
    assert meta["status"] == "diverged" and 45 <= meta["step"] <= 60
    ours = values(diverged[names[2]])
    theirs = values(healthy[names[2]])
    assert all(ours[key] == theirs[key] for key in ours if key[0] < 45)
    # the last evaluation is carried forward
    assert all(ours[60, key] == ours[40, key] for key in EVAL)
    assert (60, "losses/qf_loss") not in ours
    run(tmp_path / "b", flags)  # prints "diverged already"
    assert scalars(tmp_path / "b") == diverged


def test_when_all_seeds_have_diverged_the_run_ends_at_once(tmp_path, monkeypatch):
    step = gym.vector.SyncVectorEnv.step
    steps = []

    def poisoned(envs, actions):
        obs, rewards, *rest = step(envs, actions)
        steps.append(envs)
        return obs, rewards if len(steps) < 45 else rewards + math.nan, *rest

    flags = (
        f"--env-id {CARTPOLE} --total-timesteps 100000 --metrics-frequency 0 --eval-frequency 30000"
    )
    monkeypatch.setattr(
        environments.TaskSequence, "evaluate", lambda *args: [[{"eval/episodic_return": 1.0}]]
    )
    monkeypatch.setattr(sac_continuous, "q_bias", lambda *args: [{}])
    monkeypatch.setattr(gym.vector.SyncVectorEnv, "step", poisoned)
    (rows,) = run(tmp_path, flags).values()
    assert len(steps) < 100 and {key for _, key in values(rows)} >= LOSSES
    assert [
        step for step, key in values(rows) if key.startswith("eval/")
    ] == []  # there was none to carry forward
    (meta,) = (json.loads(path.read_text()) for path in tmp_path.glob("*/meta.json"))
    assert meta["status"] == "diverged" and 45 <= meta["step"] <= 60
    with pytest.raises(runlog.UserError, match="train it to the end first"):
        run(tmp_path, f"{flags} --evaluate")
    # killed at its very end and begun again, it ends there: no step more, the same rows
    steps.clear()
    often = f"{flags} --checkpoint-frequency 10"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.Run, "finish", interrupt)
        run(tmp_path / "killed", often)
    taken = len(steps)
    (again,) = run(tmp_path / "killed", often).values()
    assert again == rows and len(steps) == taken
    steps.clear()
    (rows,) = run(tmp_path / "b", flags.replace("30000", "40")).values()
    rows = {
        step: value for (step, key), value in values(rows).items() if key == "eval/episodic_return"
    }
    assert rows == dict.fromkeys([*range(40, 100_000, 40), 100_000], 1.0) and len(steps) < 100


def test_a_video_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gym.Wrapper, "render", lambda env: 1 / 0)
    run(tmp_path, f"--env-id {CARTPOLE} --metrics-frequency 0 --capture-video")
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("warning"))
    assert "no video" in line and "step-60.mp4 (ZeroDivisionError: division by zero)" in line
    assert json.loads(next(tmp_path.glob("*/meta.json")).read_text())["status"] == "finished"


def child(argv: list[str], log: str) -> None:
    """Runs the script's main with shorter episodes, in a separate process."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    short_dm_control(pytest.MonkeyPatch(), 100)
    with runlog.exit_on_user_error():
        sac_continuous.main(runlog.parse_args(sac_continuous.Args, argv))


def test_killed_runs_end_with_the_same_scalars_and_one_command_runs_once(tmp_path, monkeypatch):
    flags = (
        f"--env-id {CARTPOLE} --num-seeds 2 --total-timesteps 480 --checkpoint-frequency 40 "
        "--eval-frequency 200"
    )
    flags += " --metrics-frequency 240"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.path.dirname(__file__)]))
    context = multiprocessing.get_context("forkserver")
    rng = random.Random(0)
    context.set_forkserver_preload(["test_sac_runs"])  # one import for all processes

    def start(folder, log):
        process = context.Process(
            target=child, args=(command(tmp_path / folder, flags), str(tmp_path / log))
        )
        process.start()
        return process

    def checkpoints():
        found = []
        for path in (tmp_path / "b").glob("*/checkpoint.pt"):
            with contextlib.suppress(FileNotFoundError):  # renamed in this moment
                found.append(path.stat().st_mtime_ns)
        return found

    for kill in range(3):
        process = start("b", "log")
        before = checkpoints()
        changes = 0
        # at some moment after the second checkpoint of the two seeds
        while changes < 2 and process.is_alive():
            changes = changes + (checkpoints() != before)
            before = checkpoints()
            time.sleep(0.002)
        if kill == 0:
            second = start("b", "second")
            second.join()
            output = (tmp_path / "second").read_text()
            assert second.exitcode == 2 and output.count("\n") == 1, output
            assert f"is in use by process {process.pid}" in output
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    last = start("b", "log")
    undisturbed = start("a", "other")
    last.join()
    undisturbed.join()
    assert last.exitcode == undisturbed.exitcode == 0, (tmp_path / "log").read_text()
    assert scalars(tmp_path / "a") == scalars(tmp_path / "b") and len(scalars(tmp_path / "a")) == 2
    for meta in (tmp_path / "b").glob("*/meta.json"):
        assert [s.get("from_step", 0) > 0 for s in json.loads(meta.read_text())["sessions"]][
            1:
        ] == [True] * 3


def interrupt(*_, **__):
    raise KeyboardInterrupt
