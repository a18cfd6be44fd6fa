"""SAC learns a task whose best return is known. `pytest -q -m slow tests/test_sac_learning.py`."""

import pytest
import test_td3  # registers Target-v0: the action should be the observation

import runlog
import sac_continuous

FLAGS = "--env-id Target-v0 --no-compile --no-tensorboard --device cpu --threads 1 --widths 16 16"
FLAGS += " --total-timesteps 1500 --learning-starts 200 --batch-size 64 --utd 2 --gamma 0.5"
FLAGS += " --tau 0.05 --learning-rate 3e-3 --init-temperature 0.1 --eval-frequency 500"
FLAGS += " --num-eval-episodes 5 --metrics-frequency 0 --ntk-frequency 0 --log-frequency 500"


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "crational", "tanh_hr"])
def test_sac_learns_the_toy_task(activation, tmp_path):
    assert test_td3.Target.action_space.shape == (1,)
    argv = [*FLAGS.split(), "--activation", activation, "--runs-dir", str(tmp_path)]
    sac_continuous.main(runlog.parse_args(sac_continuous.Args, argv))
    (file,) = tmp_path.glob("*/scalars.csv")
    returns = []
    for line in file.read_text().splitlines():
        if ",eval/episodic_return," in line:
            returns.append(float(line.split(",")[2]))
    # random actions get -20 * 2/3 = -13, action 0 gets -6.7, the best is 0
    assert len(returns) == 3 and returns[-1] > -0.5, returns
