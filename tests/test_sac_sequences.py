"""Sequential tasks in sac_continuous.py, on two toy tasks with equal spaces:
switches, evaluation, forgetting, resume.

`pytest -q tests/test_sac_sequences.py` (about 60 s).
"""

import itertools
import json
import math
import multiprocessing
import os
import signal

import gymnasium as gym
import numpy as np
import pytest
import torch

import environments
import metrics
import runlog
import sac_continuous
from runlog import identity, seeding

EPISODE = 20  # steps
TASK = 60  # steps
TINY = (
    "--no-compile --no-tensorboard --device cpu --threads 1 --widths 8 8 --batch-size 16 "
    "--learning-starts 20"
)
TINY += (
    " --checkpoint-frequency 60 --eval-frequency 20 --num-eval-episodes 2 --log-frequency 10 "
    "--metrics-frequency 0"
)
TINY += " --ntk-frequency 0"
AB = f"--env-id ToyA-v0 ToyB-v0 --steps-per-task {TASK}"


class Toy(gym.Env):
    """Rewards actions near `best`; the second entry of an observation identifies the task."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, best: float, render_mode=None):
        self.best = best

    def observe(self):
        return np.array([self.np_random.normal(), np.sign(self.best)], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), float(1 - abs(action[0] - self.best)), False, False, {}


for name, best in {"ToyA-v0": 0.5, "ToyB-v0": -0.5}.items():
    gym.register(name, Toy, kwargs={"best": best}, max_episode_steps=EPISODE)


def command(folder, flags: str) -> list[str]:
    return [*TINY.split(), "--runs-dir", str(folder), *flags.split()]


def run(folder, flags: str) -> list[dict[tuple[int, str], float]]:
    """Runs the command in this process; for each seed (step, key) -> value of scalars.csv."""
    sac_continuous.main(runlog.parse_args(sac_continuous.Args, command(folder, flags)))
    files = [path.read_text().splitlines()[1:] for path in sorted(folder.glob("*/scalars.csv"))]
    found = []
    for lines in files:
        rows = [line.split(",") for line in lines]
        found.append({(int(step), key): float(value) for step, key, value, _ in rows})
    return found


def state_at(folder, step: int) -> dict:
    contents = [runlog.storage.load_pt(path) for path in folder.glob("*/checkpoint*.pt")]
    (state,) = (content["state"] for content in contents if content["step"] == step)
    return state


def test_names_lengths_and_spaces():
    assert identity.env_name("dm_control/walker-walk-v0") == "dm_control/walker-walk-v0"
    names = ["metaworld/reach-v3", "metaworld/push-v3", "Pendulum-v1", "metaworld/reach-v3"]
    assert identity.env_name(names) == "metaworld/reach-v3,push-v3,Pendulum-v1,metaworld/reach-v3"
    args = runlog.parse_args(sac_continuous.Args, command("x", AB))
    assert sac_continuous.validate(args).total_timesteps == 2 * TASK
    (single,) = runlog.seed_runs(sac_continuous.Args(env_id=("Pendulum-v1",)), "sac")
    assert single.config["env_id"] == "Pendulum-v1"
    assert single.name.startswith("Pendulum-v1__sac__relu__s1__")
    (wide := Toy(1.0)).action_space = gym.spaces.Box(-1, 1, (3,))
    with pytest.raises(runlog.UserError, match=r"a and c have actions of shape \(1,\) and \(3,\)"):
        environments.check_equal_spaces({"a": Toy(1.0), "b": Toy(1.0), "c": wide})


# flags: critic updates in Adam's count after the last step,
# and whether the first task's transitions are sampled
SWITCHES = {"": (41, False), "--no-reset-optimizer": (82, False), "--no-reset-replay": (60, True)}
SWITCHES |= {"--no-reset-replay --no-reset-optimizer": (101, True)}


@pytest.mark.parametrize("flags", SWITCHES)
def test_a_switch_clears_what_it_should(flags, tmp_path, monkeypatch):
    sample = sac_continuous.ReplayBuffer.sample
    drawn = []
    count, keeps = SWITCHES[flags]

    def recorded(buffer, *shape, generators):
        batch = sample(buffer, *shape, generators=generators)
        drawn.append((buffer.num_added, batch["obs"][..., 1]))
        return batch

    monkeypatch.setattr(sac_continuous.ReplayBuffer, "sample", recorded)
    (got,) = run(tmp_path, f"{AB} {flags} --keep-replay")
    before = state_at(tmp_path, TASK)["agent"]
    after = state_at(tmp_path, 2 * TASK)["agent"]
    moments = {key for key in before if "_optimizer." in key}
    if "optimizer" in flags:
        assert int(before["qf_optimizer.count"]) == 41
        assert before["qf_optimizer.exp_avg_q_weight"].abs().sum() > 0
    else:
        assert {key.split(".")[0] for key in moments} == {
            f"{x}_optimizer" for x in ("actor", "qf", "alpha")
        }
        assert all(not before[key].any() for key in moments)
    assert int(after["qf_optimizer.count"]) == int(after["alpha_optimizer.count"]) == count
    steps = [step for step, key in got if key == "losses/qf_loss"]
    assert steps == [*range(20, 70, 10), *range(70 if keeps else 80, 130, 10)]
    assert {step for step, _ in drawn} == {*range(20, 61), *range(61 if keeps else 80, 121)}
    assert all((tasks == 1).all() for step, tasks in drawn if step <= TASK)
    later = torch.cat([tasks.flatten() for step, tasks in drawn if step > TASK])
    assert (later == 1).any() == keeps and (later == -1).any()
    # a new episode, of the second task; its first actions are random only if the replay is empty
    chunks = sorted(tmp_path.glob("*/replay/*.pt"))
    rows = torch.cat([runlog.storage.load_pt(chunk)["transitions"]["rows"] for chunk in chunks])[
        -2 * TASK :
    ]
    content = runlog.storage.load_pt(next(tmp_path.glob("*/checkpoint.pt")))
    needed = sum(stop - start for _, start, stop in content["chunks"])
    assert content["num_rows"] == 2 * TASK and needed == (120 if keeps else 60)
    second = rows[-TASK:]
    env = environments.make_env("ToyB-v0", 0, 1, "train2")
    obs = env.reset()[0]
    for row in second[:EPISODE]:
        assert row[:2].numpy() == pytest.approx(obs)
        obs, reward, *_ = env.step(row[2:3].numpy())
        assert float(row[3]) == pytest.approx(reward)
    generator = seeding.make_generator(1, "act")
    for step in range(TASK):  # what the first task drew
        if step < 20:
            torch.rand(1, generator=generator)
        else:
            torch.randn(1, 1, generator=generator)
    uniform = torch.cat([torch.rand(1, generator=generator) for _ in range(20)])
    assert torch.equal(second[:20, 2], 2 * uniform - 1) != keeps


def test_the_first_task_equals_the_plain_run_and_the_switch_leaves_the_networks_alone(tmp_path):
    (plain,) = run(tmp_path / "a", f"--env-id ToyA-v0 --total-timesteps {TASK}")
    assert not any("task" in key or "sequence" in key for _, key in plain)
    (first,) = run(tmp_path / "b", f"{AB} --seed 1")
    assert {key: value for key, value in first.items() if key in plain} == plain
    ours, theirs = (state_at(tmp_path / x, TASK)["agent"] for x in "ab")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "_optimizer." not in key)
    assert next((tmp_path / "b").iterdir()).name.startswith(
        "ToyA-v0-ToyB-v0__sac_continuous__relu__s1__"
    )


def test_every_task_is_evaluated_and_scored(tmp_path):
    (got,) = run(tmp_path, f"--env-id ToyA-v0 ToyB-v0 ToyA-v0 --steps-per-task {TASK}")
    points = [*range(20, 181, 20)]
    args = runlog.parse_args(sac_continuous.Args, command(tmp_path, ""))
    agent = sac_continuous.Agent(2, 1, args, [1], torch.device("cpu"))
    # the networks that were evaluated there
    runlog.restore_module(agent, [state_at(tmp_path, 2 * TASK)["agent"]])
    for k, task in ((1, "ToyA-v0"), (2, "ToyB-v0")):
        env = environments.make_env(task, 0, 1, "eval")
        returns = []
        # the sixth evaluation; each has 2 deterministic and 2 stochastic episodes
        for number in range(24, 26):
            obs, _ = env.reset(options={"number": [number]})
            returns.append(0.0)
            for _ in range(EPISODE):
                with torch.no_grad():
                    action = torch.tanh(agent.actor(torch.as_tensor(obs)[None, None])[0])[
                        0, 0
                    ].numpy()
                obs, reward, *_ = env.step(action)
                returns[-1] += reward
        assert got[120, f"eval/task{k}/episodic_return"] == pytest.approx(
            np.mean(returns), rel=1e-5
        )
    score = {
        (step, k): got[step, f"eval/task{k}/episodic_return"]
        for step, k in itertools.product(points, (1, 2, 3))
    }
    for step in points:
        assert got[step, "eval/episodic_return"] == score[step, (step - 1) // TASK + 1]
        assert score[step, 1] == score[step, 3]  # the same task
        assert got[step, "sequence/average"] == pytest.approx(
            sum(score[step, k] for k in (1, 2, 3)) / 3
        )
        lost = [score[TASK * k, k] - score[step, k] for k in (1, 2, 3) if step > TASK * k]
        for k, forgetting in enumerate(lost, 1):
            assert got[step, f"sequence/task{k}/forgetting"] == pytest.approx(forgetting)
        assert ((step, "sequence/forgetting") in got) == bool(lost)
        assert not lost or got[step, "sequence/forgetting"] == pytest.approx(sum(lost) / len(lost))
    means = []
    for k in (1, 2, 3):
        means.append(sum(score[step, k] for step in range(TASK * k - 40, TASK * k + 1, 20)) / 3)
        assert got[TASK * k, f"sequence/task{k}/mean_score"] == pytest.approx(means[-1])
        assert got[TASK * k, f"sequence/task{k}/end_score"] == score[TASK * k, k]
        assert got[TASK * k, "sequence/plasticity"] == pytest.approx(sum(means) / k)
    assert sum("end_score" in key for _, key in got) == 3


def test_printed_lines_name_the_task(tmp_path, capsys):
    run(tmp_path, f"{AB} --eval-frequency 60")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.partition(":")[0] for line in lines] == [
        "step 60, task 1 (ToyA-v0)",
        "step 120, task 2 (ToyB-v0)",
    ]
    one = environments.TaskSequence(["ToyA-v0"], [1], TASK)
    assert one.label == ""
    one.close()


def test_scores_by_hand():
    history = [(10, 0.2, 0.0), (20, 0.8, 0.1), (25, 0.5, 0.3), (40, 0.6, 0.9)]
    first, end = (metrics.sequence_scores(history[:n], 20) for n in (2, 4))
    expected = {"average": 0.45, "task1/end_score": 0.8, "task1/mean_score": 0.5, "plasticity": 0.5}
    assert first == pytest.approx({f"sequence/{key}": value for key, value in expected.items()})
    expected = {"average": 0.75, "task1/forgetting": 0.2, "forgetting": 0.2, "task2/end_score": 0.9}
    expected |= {"task2/mean_score": 0.6, "plasticity": 0.55}
    assert end == pytest.approx({f"sequence/{key}": value for key, value in expected.items()})


def test_a_diverged_seed_carries_every_task_forward(tmp_path, monkeypatch):
    make_env = environments.make_env

    def poisoned(env_id, index, seed, stream, *args):
        env = make_env(env_id, index, seed, stream, *args)
        return gym.wrappers.TransformReward(env, lambda _: math.nan) if stream == "train2" else env

    monkeypatch.setattr(environments.control, "make_env", poisoned)
    (got,) = run(tmp_path, AB)
    (meta,) = (json.loads(path.read_text()) for path in tmp_path.glob("*/meta.json"))
    # the first update of the second task
    assert meta["status"] == "diverged" and meta["step"] == 80
    for step in (80, 100, 120):
        assert got[step, "eval/episodic_return"] == got[step, "eval/task2/episodic_return"]
        for k in (1, 2):
            assert (
                got[step, f"eval/task{k}/episodic_return"]
                == got[60, f"eval/task{k}/episodic_return"]
            )
    assert got[120, "sequence/forgetting"] == 0.0 and (120, "sequence/task2/end_score") in got


def test_a_seed_is_the_same_run_alone(tmp_path):
    flags = f"{AB} --activation crational"
    together = run(tmp_path / "a", f"{flags} --num-seeds 2")
    (alone,) = run(tmp_path / "b", f"{flags} --seed 2")
    assert {path.name for path in (tmp_path / "b").iterdir()} < {
        path.name for path in (tmp_path / "a").iterdir()
    }
    assert together[0].keys() == together[1].keys() == alone.keys()
    assert all(together[1][key] == pytest.approx(alone[key], rel=1e-2, abs=1e-3) for key in alone)


def child(argv: list[str], at: int, where: str, log: str) -> None:
    """The script's main, killed by itself: in step `at`, or at the `at`-th call of make_envs."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    owner = environments if where == "log_episodes" else environments.sequences
    calls = []
    call = getattr(owner, where)

    def kill_and_call(*args):
        calls.append(args)
        if (args[1] if where == "log_episodes" else len(calls)) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)

    setattr(owner, where, kill_and_call)
    sac_continuous.main(runlog.parse_args(sac_continuous.Args, argv))


@pytest.mark.parametrize("flags", ["", "--no-reset-replay --no-reset-optimizer --buffer-size 70"])
def test_killed_before_at_and_after_a_switch_it_ends_with_the_same_rows(
    flags, tmp_path, monkeypatch
):
    flags = f"{AB} {flags} --num-seeds 2 --checkpoint-frequency 15"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.path.dirname(__file__)]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_sac_sequences"])  # one import for all processes
    # step 59; after the switch and before its checkpoint (the fourth make_envs of a start in the
    # first task); steps 61 (resumed from the checkpoint at the switch), 74 and 76 (before and after
    # the first of the second task)
    kills = [
        (59, "log_episodes"),
        (4, "make_envs"),
        *((step, "log_episodes") for step in (61, 74, 76)),
    ]
    for at, where in kills:
        process = context.Process(
            target=child, args=(command(tmp_path / "b", flags), at, where, str(tmp_path / "log"))
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    killed = run(tmp_path / "b", flags)
    undisturbed = run(tmp_path / "a", flags)
    assert killed == undisturbed and len(killed) == 2
    for path in (tmp_path / "a").glob("*/scalars.csv"):
        lines = [
            p.read_text().splitlines()
            for p in (path, tmp_path / "b" / path.parent.name / path.name)
        ]
        assert [line.rsplit(",", 1)[0] for line in lines[0]] == [
            line.rsplit(",", 1)[0] for line in lines[1]
        ]
        sessions = json.loads((tmp_path / "b" / path.parent.name / "meta.json").read_text())[
            "sessions"
        ]
        assert [session.get("from_step", 0) for session in sessions] == [0, 45, 45, 60, 60, 75]
