"""Golden runs: two tiny trainings of each script,
whose names and rows must not change unless on purpose.

    make golden                                 # after a change that is meant to change them
    python tests/golden.py --renew td3_continuous   # of one script, such as a new one
    python tests/golden.py sac_continuous       # train one script's and print what came out

golden.jsonl has a line for each curve of each run. Trained twice on one processor, it comes out the
same, byte for byte, so after a change that must not move a bit `make golden` leaves it as it was.
Between x86 processors the rows differ a little, although the trainings run eagerly on one thread
with the oldest vector instructions (`PORTABLE`): the last bit of torch.sqrt, which is MKL's,
depends on the processor. The comparison therefore allows for differences of rounding (`RTOL`,
`ATOL`), which remain small after the few updates of these trainings.
"""

import argparse
import contextlib
import csv
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("golden.jsonl")
# Random errors of one unit in the last place of 40 % of the square roots changed no value by more
# than an eighth of ATOL + RTOL |value| (two trainings of each, by hand)
RTOL = 5e-3
ATOL = 5e-4
PORTABLE = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
COMMON = "--no-compile --no-tensorboard --device cpu --threads 1"
SAC = (
    f"{COMMON} --widths 16 16 --batch-size 16 --learning-starts 60 --num-eval-episodes 1 "
    "--log-frequency 20"
)
ATARI = f"{COMMON} --env-threads 1 --width 64 --metrics-samples 64 --ntk-samples 4"
PPO = (
    f"{ATARI} --num-envs 2 --num-steps 32 --log-frequency 64 --metrics-frequency 128 "
    "--ntk-frequency 256"
)
CONTINUAL = f"{COMMON} --num-train 128 --log-frequency 8 --metrics-samples 64 --ntk-samples 16"
REGRESSION = f"{COMMON} --total-steps 60 --table1-neurons 0 --shallow-units 12"
TRAININGS = {  # script -> flags of its golden runs
    "sac_continuous": [
        f"{SAC} --env-id Pendulum-v1 --num-seeds 2 --activation crational --utd 2 "
        "--total-timesteps 240 --eval-frequency 120 --metrics-frequency 120 --metrics-samples 64 "
        "--ntk-frequency 240 --ntk-samples 4",
        f"{SAC} --env-id dm_control/cartpole-swingup-v0 dm_control/cartpole-balance-v0 "
        "--steps-per-task 120 --activation tanh_hr --layer-norm --eval-frequency 120 "
        "--metrics-frequency 0 --ntk-frequency 0",
    ],
    "td3_continuous": [
        f"{SAC} --env-id Pendulum-v1 --num-seeds 2 --activation crational --utd 2 "
        "--total-timesteps 240 --eval-frequency 120 --metrics-frequency 120 --metrics-samples 64 "
        "--ntk-frequency 240 --ntk-samples 4",
        f"{SAC} --env-id dm_control/cartpole-swingup-v0 --activation tanh_hr --layer-norm "
        "--total-timesteps 120 --policy-frequency 3 --eval-frequency 120 "
        "--metrics-frequency 0 --ntk-frequency 0",
    ],
    "dqn_atari": [
        f"{ATARI} --total-timesteps 240 --learning-starts 80 --buffer-size 200 "
        "--exploration-steps 200 "
        "--log-frequency 40 --metrics-frequency 120 --eval-frequency 1000 --ntk-frequency 240",
        f"{ATARI} --num-envs 2 --total-timesteps 240 --learning-starts 80 --buffer-size 120 "
        "--activation tanh_hr "
        "--layer-norm channel --redo --redo-period 10 --no-double-q --analyse --log-frequency 40 "
        "--metrics-frequency 120 --eval-frequency 1000 --ntk-frequency 0 --env-id SpaceInvaders",
    ],
    "ppo_atari": [
        f"{PPO} --total-timesteps 256",
        f"{PPO} --total-timesteps 256 --activation crational --redo --redo-period 6 "
        "--target-kl 0.01 --encoder-activation relu relu crelu --env-id SpaceInvaders",
    ],
    "pqn_atari": [
        f"{PPO} --num-test-envs 1 --eval-frequency 128 --total-timesteps 256 --activation tanh_hr",
        f"{PPO} --num-test-envs 1 --eval-frequency 128 --total-timesteps 256 "
        "--activation rational --layer-norm chw --redo --redo-period 6 --env-id SpaceInvaders",
    ],
    "continual_supervised": [
        f"{CONTINUAL} --num-seeds 2 --num-tasks 2 --epochs 2 --activation crational --redo "
        "--redo-period 5",
        f"{CONTINUAL} --num-tasks 2 --epochs 1 --tasks split_classes --network cnn --channels 4 "
        "--layer-norm --activation relu --l2 1e-4 --reset-head",
    ],
    "function_approximation": [
        f"{REGRESSION} --activations relu tanh_hr --deep-activations --learning-rates 1e-3 1e-2 "
        "--num-seeds 2",
        f"{REGRESSION} --activations crational --deep-activations tanh --deep-widths 8 8 "
        "--learning-rates 1e-2 "
        "--num-seeds 1 --rational.coefficient-weight-decay 0.1 --rational.init-scale 0.5",
    ],
}


Curves = dict[str, dict[str, list]]  # key: its "steps" and "values"


def train(script: str) -> dict[str, Curves]:
    """run's folder -> its curves, of the golden runs of this script; trains in this process."""
    sys.path.insert(0, str(ROOT))
    module = importlib.import_module(script)
    runlog = importlib.import_module("runlog")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for flags in TRAININGS[script]:
            module.main(runlog.parse_args(module.Args, [*flags.split(), "--runs-dir", folder]))
        paths = sorted(Path(folder).glob("*/scalars.csv"))
        return {path.parent.name: read_curves(path) for path in paths}


def read_curves(scalars: Path) -> Curves:
    curves = {}
    with scalars.open() as file:
        for row in csv.DictReader(file):
            curve = curves.setdefault(row["key"], {"steps": [], "values": []})
            curve["steps"].append(int(row["step"]))
            curve["values"].append(float(f"{float(row['value']):.9g}"))  # enough for a float32
    return curves


def differences(expected: Curves, found: Curves) -> list[str]:
    """What differs between the curves of two runs by more than rounding, a line each."""
    lines = [f"missing: {key}" for key in expected if key not in found]
    lines += [f"not expected: {key}" for key in found if key not in expected]
    for key in expected.keys() & found.keys():
        steps = expected[key]["steps"]
        if found[key]["steps"] != steps:
            lines.append(f"{key}: steps {found[key]['steps']}, expected {steps}")
            continue
        for step, value, right in zip(steps, found[key]["values"], expected[key]["values"]):
            if not np.isclose(value, right, RTOL, ATOL, equal_nan=True):
                lines.append(f"{key}, step {step}: {value}, expected {right}")
    return sorted(lines)


def train_portably(script: str) -> dict[str, Curves]:
    """`train` in a separate process, whose rounding depends little on the processor."""
    command = [sys.executable, __file__, script]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | PORTABLE, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{script}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def read() -> dict[str, dict[str, Curves]]:
    """script -> run's folder -> its curves, as stored."""
    golden = {}
    for line in FILE.read_text().splitlines():
        row = json.loads(line)
        curves = golden.setdefault(row["script"], {}).setdefault(row["run"], {})
        curves[row["key"]] = {"steps": row["steps"], "values": row["values"]}
    return golden


def write(golden: dict[str, dict[str, Curves]]) -> None:
    lines = []
    for script in TRAININGS:
        for run, curves in golden.get(script, {}).items():
            for key, curve in curves.items():
                row = {"script": script, "run": run, "key": key, **curve}
                lines.append(json.dumps(row) + "\n")
    FILE.write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scripts", nargs="*", choices=[*TRAININGS, []], help="print the runs of this script"
    )
    parser.add_argument(
        "--renew", action="store_true", help="write golden.jsonl anew, of these scripts or all"
    )
    args = parser.parse_args()
    if args.renew:
        golden = read() if FILE.exists() else {}
        for script in args.scripts or TRAININGS:
            golden[script] = train_portably(script)
        write(golden)
        return
    for script in args.scripts:
        print(json.dumps(train(script)))


if __name__ == "__main__":
    main()
