"""Wrong commands of sac_continuous.py: exit code 2,
one line with flag, value and remedy, nothing created.

`pytest -q tests/test_bad_input.py` (about 20 s).
"""

import os
import subprocess
import sys

import pytest
import torch

import runlog
import sac_continuous

TINY = (
    "--no-compile --no-tensorboard --widths 8 --batch-size 8 --buffer-size 500 --learning-starts 20"
)
TINY += " --total-timesteps 60 --checkpoint-frequency 30 --eval-frequency 60 --num-eval-episodes 1"
TINY += (
    " --log-frequency 20 --metrics-frequency 0 --ntk-frequency 0 --env-id Pendulum-v1 --threads 1"
)
SEVERAL = "--env-id Pendulum-v1 Pendulum-v1"
TINY_FIT = (
    "--rational.fit-range -1e-3 1e-3 --rational.numerator-degree 7 --rational.constraint-power 8"
)
CUDA_INDEX = torch.cuda.device_count() + 9


def call(argv: list[str], capfd) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    capfd.readouterr()
    code = 0
    try:
        with runlog.exit_on_user_error():
            sac_continuous.main(runlog.parse_args(sac_continuous.Args, argv))
    except SystemExit as stop:
        code = stop.code
    return code, *capfd.readouterr()


def check(code: int, out: str, err: str, *expected: str) -> None:
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, (
        code,
        out,
        err,
    )
    missing = [word for word in expected if word not in err]
    assert not missing, (missing, err)


COMMANDS = {  # command: what its error must contain (flag, value, remedy)
    "--env-id dm_control/cheeta-run-v0": [
        "--env-id dm_control/cheeta-run-v0",
        "dm_control/cheetah-run-v0",
    ],
    "--env-id metaworld/reac-v3": ["--env-id metaworld/reac-v3", "metaworld/reach-v3"],
    "--env-id metaworld/reach-v2": ["--env-id metaworld/reach-v2", "metaworld/reach-v3"],
    "--env-id Hoper-v5": ["--env-id Hoper-v5", "Hopper-v5"],
    "--env-id Breakout": ["--env-id Breakout: is an Atari game", "use dqn_atari.py"],
    "--env-id ALE/Breakout-v5": ["--env-id ALE/Breakout-v5: is an Atari game", "pqn_atari.py"],
    "--env-id PongNoFrameskip-v4": ["PongNoFrameskip-v4: is an Atari game", "--env-id Pong"],
    "--env-id nothing/like-it": ["--env-id nothing/like-it", "did you mean"],
    "--env-id Meta-World/MT1": ["--env-id Meta-World/MT1", "unknown; did you mean"],
    "--env-id GymV21Environment-v0": [
        "--env-id GymV21Environment-v0",
        "cannot be made here",
        "choose another",
    ],
    "--env-id CartPole-v1": ["--env-id CartPole-v1", "continuous", "Discrete", "try Pendulum-v1"],
    "--activation rellu": ["--activation 'rellu'", "relu"],
    "--activation crationnal": ["--activation 'crationnal'", "did you mean", "crational"],
    "--activation tanh*": ["--activation 'tanh*'", "a name is missing", "choose from"],
    "--activation crelu*tanh": ["--activation 'crelu*tanh'", "widths differ"],
    "--rational.constraint-power 3": [
        "--rational.constraint-power 3",
        "must exceed numerator-degree 3",
    ],
    "--rational.numerator-degree 0": ["--rational.numerator-degree 0", "must lie in 1.."],
    "--rational.form C": ["--rational.form", "'C'", "'A', 'B'"],
    "--rational.fit-target sinn": ["--rational.fit-target", "sin"],
    f"--activation rational {TINY_FIT}": ["--rational.fit-range (-0.001, 0.001)", "overflows"],
    "--rational.learning-rate -1": ["--rational.learning-rate -1", "positive"],
    "--utd 0": ["--utd 0", "[1, inf)"],
    "--utd abc": ["--utd", "'abc'", "INT"],
    "--utd 0.5": ["error: --utd '0.5': must be a whole number; expected --utd INT"],
    "--widths 8 0.5": ["error: --widths '8' '0.5': must be whole numbers; expected --widths"],
    "--gamma x": ["error: --gamma 'x': must be a number; expected --gamma FLOAT"],
    "--steps-per-task 1e2": ["error: --steps-per-task '1e2': must be a whole number; expected"],
    "--rational.fit-range 1 b": ["error: --rational.fit-range '1' 'b': must be numbers"],
    "--seed -1": ["--seed -1", "[0, inf)"],
    "--num-seeds 0": ["--num-seeds 0", "[1, inf)"],
    "--num-seeds -3": ["--num-seeds -3", "[1, inf)"],
    "--total-timesteps 0": ["--total-timesteps 0", "(20, inf)"],
    "--total-timesteps 500 --learning-starts 500": ["--total-timesteps 500", "(500, inf)"],
    "--total-timesteps 1e6": ["--total-timesteps", "'1e6'", "INT"],
    "--checkpoint-frequency 0": ["--checkpoint-frequency 0", "[1, inf)"],
    "--threads -1": ["--threads -1", "[0, inf)"],
    "--batch-size 0": ["--batch-size 0", "[1, inf)"],
    "--batch-size 512 --buffer-size 100": ["--buffer-size 100", "[512, inf)"],
    "--learning-starts -5": ["--learning-starts -5", "[0, inf)"],
    "--gamma 1.0": ["--gamma 1.0", "[0, 1)"],
    "--gamma -0.1": ["--gamma -0.1", "[0, 1)"],
    "--tau 0": ["--tau 0", "(0, 1]"],
    "--tau 1.5": ["--tau 1.5", "(0, 1]"],
    "--learning-rate 0": ["--learning-rate 0", "(0, inf)"],
    "--learning-rate -1e-3": ["--learning-rate -0.001", "(0, inf)"],
    "--learning-rate nan": ["--learning-rate nan", "(0, inf)"],
    "--learning-rate inf": ["--learning-rate inf", "(0, inf)"],
    "--init-temperature 0": ["--init-temperature 0", "(0, inf)"],
    "--target-entropy-scale nan": ["--target-entropy-scale nan", "(-inf, inf)"],
    "--widths 256 0": ["--widths 256 0:", "[1, inf)"],
    "--widths": ["--widths: give at least one value"],
    "--utd 4 --policy-frequency 3": ["--policy-frequency 3", "must divide --utd"],
    "--utd 2 --policy-frequency 124": ["--policy-frequency 124", "steps 20 to 60", "lower it"],
    "--policy-frequency 0": ["--policy-frequency 0", "[1, inf)"],
    "--eval-frequency 0": ["--eval-frequency 0", "[1, inf)"],
    "--num-eval-episodes 0": ["--num-eval-episodes 0", "[1, inf)"],
    "--log-frequency 0": ["--log-frequency 0", "[1, inf)"],
    "--metrics-frequency -1": ["--metrics-frequency -1", "[0, inf)"],
    "--metrics-samples 1": ["--metrics-samples 1", "[2, inf)"],
    "--ntk-samples 1": ["--ntk-samples 1", "[2, inf)"],
    "--ntk-frequency -1": ["--ntk-frequency -1", "[0, inf)"],
    "--env-id": ["--env-id", "is empty", "give one id"],
    "--steps-per-task -1": ["--steps-per-task -1", "[1, inf)"],
    "--steps-per-task 30": ["--steps-per-task 30", "several --env-id", "--total-timesteps 30"],
    "--env-id Pendulum-v1 Pendulum-v1": ["--env-id Pendulum-v1 Pendulum-v1", "--steps-per-task"],
    f"{SEVERAL} Pendulum-v1 --steps-per-task 30": [
        "--total-timesteps 60",
        "3 tasks",
        "make 90",
        "leave it out",
    ],
    f"{SEVERAL} --steps-per-task 30": ["--steps-per-task 30", "multiple of --eval-frequency 60"],
    "--no-reset-replay": ["--no-reset-replay", "several --env-id"],
    f"{SEVERAL} --steps-per-task 20": ["--steps-per-task 20", "(20, inf)"],
    f"{SEVERAL} --steps-per-task 0": ["--steps-per-task 0", "(20, inf)"],
    f"{SEVERAL} Hopper-v5 --steps-per-task 20": ["--steps-per-task 20", "(20, inf)"],
    f"{SEVERAL} Hopper-v5 --steps-per-task 21 --total-timesteps 63 --eval-frequency 7": [
        "Pendulum-v1 and Hopper-v5",
        "(3,) and (11,)",
    ],
    f"{SEVERAL} --steps-per-task 30 --eval-frequency 30 --env-id Pendulum-v1 Hoper-v5": [
        "--env-id Hoper-v5",
        "Hopper-v5",
    ],
    f"--device cuda:{CUDA_INDEX}": [f"--device cuda:{CUDA_INDEX}", "use cpu or auto"],
    "--device gpu": ["--device gpu: is not a device; use cpu or auto, or with a GPU cuda"],
    "--device auto:1": ["--device auto:1", "use cpu or auto"],
    "--device meta": ["--device meta", "use cpu or auto"],
    "--utdd 2": ["--utdd", "--utd"],
    "--compile False": ["--compile", "False", "--no-compile"],
    "--device hpu": ["--device hpu", "use cpu or auto"],
    "--evaluate": ["--evaluate", "does not exist", "give the flags of a finished training"],
    "--evaluate --fresh": ["--fresh", "--evaluate", "leave it out"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_ends_in_one_line_and_creates_nothing(command, tmp_path, capfd):
    expected = COMMANDS[command]
    argv = [*TINY.split(), "--runs-dir", str(tmp_path / "runs"), *command.split()]
    check(*call(argv, capfd), *expected)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["--env-id Hoper-v5", "--utd 0", "--activation tanh*"])
def test_the_same_from_a_shell(command, tmp_path):
    argv = [
        sys.executable,
        sac_continuous.__file__,
        "--runs-dir",
        str(tmp_path / "runs"),
        *command.split(),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    check(done.returncode, done.stdout, done.stderr, *COMMANDS[command])
    assert os.listdir(tmp_path) == []


def test_a_runs_dir_that_cannot_hold_runs(tmp_path, capfd):
    file = tmp_path / "file"
    locked = tmp_path / "locked"
    file.write_text("mine")
    for folder in (file, file / "below"):
        check(
            *call([*TINY.split(), "--runs-dir", str(folder)], capfd),
            str(file),
            "choose a writable folder",
        )
    assert file.read_text() == "mine" and os.listdir(tmp_path) == ["file"]
    locked.mkdir(mode=0o555)
    if os.getuid() == 0:  # root can write anywhere but there
        locked = "/proc/1"
    check(
        *call([*TINY.split(), "--runs-dir", f"{locked}/runs"], capfd),
        f"{locked}/runs",
        "choose a writable folder",
    )


def test_checkpoints_that_cannot_be_used(tmp_path, capfd):
    argv = [*TINY.split(), "--runs-dir", str(tmp_path), "--keep-replay"]
    assert call(argv, capfd)[0] == 0
    (folder,) = tmp_path.iterdir()
    checkpoints = [folder / runlog.checkpoints.CHECKPOINT, folder / runlog.checkpoints.PREVIOUS]
    whole = [path.read_bytes() for path in checkpoints]

    def set_status(status):
        meta = runlog.storage.read_json(folder / "meta.json")
        runlog.storage.write_json(folder / "meta.json", meta | {"status": status})

    # one tampered byte in the newer generation is reported, and the older one is used
    middle = len(whole[0]) // 2
    checkpoints[0].write_bytes(
        whole[0][:middle] + bytes([whole[0][middle] ^ 1]) + whole[0][middle + 1 :]
    )
    set_status("running")
    rows = (folder / "scalars.csv").read_bytes()
    code, out, err = call(argv, capfd)
    assert code == 0
    assert err.startswith("warning: ")
    assert "using checkpoint.prev.pt, step 30" in err
    assert "step 60" in out
    strip = [line.rsplit(b",", 1)[0] for line in rows.splitlines()]
    assert [
        line.rsplit(b",", 1)[0] for line in (folder / "scalars.csv").read_bytes().splitlines()
    ] == strip
    # a tampered and a truncated one: neither training nor --evaluate start
    whole = [path.read_bytes() for path in checkpoints]
    checkpoints[0].write_bytes(
        whole[0][:middle] + bytes([whole[0][middle] ^ 1]) + whole[0][middle + 1 :]
    )
    checkpoints[1].write_bytes(whole[1][:-200])
    check(*call([*argv, "--evaluate"], capfd), str(checkpoints[0]), "use --fresh")
    set_status("running")
    check(
        *call([*argv, "--evaluate"], capfd),
        "--evaluate",
        "interrupted",
        "train it to the end first",
    )
    check(
        *call(argv, capfd),
        str(checkpoints[0]),
        str(checkpoints[1]),
        "no usable checkpoint",
        "use --fresh",
    )
    # another configuration's
    for path, content in zip(checkpoints, whole):
        path.write_bytes(content)
    other = call([*argv, "--gamma", "0.9"], capfd)
    assert other[0] == 0
    (theirs,) = set(tmp_path.iterdir()) - {folder}
    checkpoints[0].write_bytes((theirs / runlog.checkpoints.CHECKPOINT).read_bytes())
    set_status("running")
    check(*call(argv, capfd), str(checkpoints[0]), "another configuration", "use --fresh")
    assert call([*argv, "--fresh"], capfd)[0] == 0


def test_a_full_disk_is_reported_in_one_line_and_the_run_resumes_afterwards(tmp_path):
    code = (
        "import resource, runlog, sac_continuous as s\n{limit}\nwith runlog.exit_on_user_error():\n"
    )
    code += (
        f"    s.main(runlog.parse_args(s.Args, {[*TINY.split(), '--runs-dir', str(tmp_path)]!r}))"
    )
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))"  # a checkpoint takes more

    def run(limit):
        argv = [sys.executable, "-c", code.format(limit=limit)]
        return subprocess.run(
            argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
        )

    done = run(limit)
    check(
        done.returncode,
        "",
        done.stderr,
        "cannot write",
        "free some space",
        "start the same command again",
    )
    (folder,) = tmp_path.iterdir()
    assert runlog.storage.read_json(folder / "meta.json")["status"] == "failed"
    assert not list(folder.rglob("*.tmp"))
    done = run("")
    assert (
        done.returncode == 0
        and runlog.storage.read_json(folder / "meta.json")["status"] == "finished"
    ), done
