"""Wrong commands of function_approximation.py: exit code 2,
one line with flag, value and remedy, nothing created."""

import os

import pytest
from test_function_approximation import parse

import function_approximation as script
import runlog

COMMANDS = {  # command: what its error must contain (flag, value, remedy)
    "--activations rellu": ["--activations 'rellu'", "relu"],
    "--activations": ["--activations", "at least one"],
    "--activations tanh_hr tanh*tanh": ["--activations tanh_hr", "twice"],
    "--deep-activations tanhh": ["--deep-activations 'tanhh'", "tanh"],
    "--deep-widths 6 0": ["--deep-widths 6 0:", "[1, inf)"],
    "--shallow-units 1 --activations tanh_hr": ["--shallow-units 1", "tanh_hr"],
    "--learning-rates 0": ["--learning-rates 0.0:", "(0, inf)"],
    "--learning-rates 1e-3 0.001": ["--learning-rates", "once"],
    "--interval 1 -1": ["--interval 1 -1:", "smaller"],
    "--interval nan 1": ["--interval", "[-1e6, 1e6]"],
    "--interval -1e300 1e300": ["--interval -1e+300 1e+300", "[-1e6, 1e6]"],
    "--interval 1e6 1000000.01": ["--interval", "[-1e6, 1e6]"],
    "--interval 1000 1000.00001": ["--interval 1000.0 1000.00001:", "float32", "wider"],
    "--num-points 2": ["--num-points 2", "[3, inf)"],
    "--total-steps 0": ["--total-steps 0", "[1, inf)"],
    "--rational.constraint-power 3": ["--rational.constraint-power 3", "must exceed"],
    "--device gpu": ["--device gpu", "use cpu or auto"],
    "--out /proc/1/x": ["/proc/1/x", "choose a writable folder"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_ends_in_one_line_and_creates_nothing(command, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        script.main(parse(tmp_path / "runs", command))
    output = capfd.readouterr()
    assert stop.value.code == 2
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert all(word in output.err for word in COMMANDS[command]), output.err
    assert os.listdir(tmp_path) == []


def test_a_figures_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "function_approximation").touch()
    with pytest.raises(
        runlog.UserError, match=r"--runs-dir .*function_approximation: Not a directory"
    ):
        script.validate(parse(tmp_path, "--total-steps 9"))
