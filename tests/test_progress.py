"""What a training shows on a terminal: the bar in a real pseudo-terminal, the lines at its start,
its compilation and its end. `pytest -q tests/test_progress.py` (a few seconds)."""

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import time

import golden
import pytest
import torch
from own_scripts import SCRIPTS

import runlog
from runlog import progress
from runlog.progress import Numbers

DESC = "dm_control/humanoid_CMU-run-v0 identity*silu"
LARGE = Numbers(9_876_543, 10_000_000, 12_345.6, 360_000.0, "return -1.234e+05")


@contextlib.contextmanager
def terminal(columns: int, monkeypatch):
    """stdout and stderr are a terminal of this width; yields the list of what is drawn there, a
    text for each line or drawing of the bar, complete at the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    received = []

    def receive() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(master, 4096):
                received.append(piece)

    reader = threading.Thread(target=receive)
    reader.start()
    drawn = []
    with os.fdopen(slave, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        yield drawn
    reader.join()
    os.close(master)
    text = b"".join(received).decode()
    drawn += [part for part in re.split(r"[\r\n]+", text) if part.strip()]


class Clock:
    """A replacement for time.monotonic that advances only on request."""

    def __init__(self, monkeypatch):
        self.now = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def train(clock: Clock, desc: str) -> None:
    """A training of 1,000,000 steps: 5,000 random ones in 5 s, a first update that takes a minute,
    then 100 steps in 10 s."""
    bar = runlog.Progress(0, 1_000_000, desc, first_update=5_000)
    for step in range(500, 5_000, 500):
        clock.now += 0.5
        bar.update(step)
    clock.now += 60.5
    bar.update(5_000)
    for step in range(5_001, 5_102):
        clock.now += 0.1
        bar.update(step)
    rows = [{"eval/episodic_return": 120.0}, {"eval/episodic_return": 126.8}]
    bar.note_means(5_101, rows, ["eval/success", "eval/episodic_return"])
    clock.now += 1e-6
    bar.close()


def bar_of(drawn: str) -> str | None:
    found = re.search(r"%\|([# ]*)\|", drawn)
    return found and found[1]


@pytest.mark.parametrize("columns", [200, 120, 80])
def test_the_bar_fits_and_shows_everything_at_80_columns(columns, monkeypatch):
    with terminal(columns, monkeypatch) as drawn:
        train(Clock(monkeypatch), DESC)
    assert max(map(len, drawn)) == columns - 1
    bars = [bar_of(line) for line in drawn if bar_of(line) is not None]
    assert len(bars) > 50 and min(map(len, bars)) >= 10
    last = drawn[-1]
    assert re.search(r" (5,101/1,000,000|5.1k/1M) ", last)
    assert re.search(r" 10( steps)?/s ", last)
    assert last.endswith(" 27:38:09 left return 123.4")  # 994,899 steps at 10 a second
    assert "step 5101: eval/episodic_return 123.4" in drawn
    # random steps do not predict the time left
    assert not any("left" in line for line in drawn[:15])


@pytest.mark.parametrize("columns", [0, 1, 5, 12, 20, 40, 60, 79])
def test_a_narrow_terminal_never_wraps(columns, monkeypatch):
    """0 columns is a terminal that does not know its width."""
    with terminal(columns, monkeypatch) as drawn:
        train(Clock(monkeypatch), DESC)
    drawings = [line for line in drawn if "%" in line]
    assert all(len(line) <= max((columns or 80) - 1, 1) for line in drawn if "step" not in line)
    for line in drawings:
        assert bar_of(line) is None or len(bar_of(line)) >= 10
    assert "  1%" in drawn[-1] or columns < 6


@pytest.mark.parametrize("columns", range(5, 140, 3))
def test_the_largest_numbers_fit(columns):
    text = progress.bar_format(LARGE, DESC, columns)
    shown = text.format(percentage=100, bar="#" * 10)
    assert len(shown) <= columns or shown == "100%"
    if columns >= 79:
        for part in ("9.88M/10M", "12,346/s", "100:00:00 left", "return -1.234e+05"):
            assert part in shown or part.startswith(("9.88", "12,"))


def test_braces_in_a_name_are_shown(monkeypatch):
    with terminal(80, monkeypatch) as drawn:
        runlog.Progress(0, 10, "a{b} relu").close()
    assert drawn[-1].startswith("a{b} relu   0%|")


def test_no_bar_is_drawn_without_a_terminal(capsys, monkeypatch):
    train(Clock(monkeypatch), DESC)
    assert capsys.readouterr() == ("step 5101: eval/episodic_return 123.4\n", "")


def test_warnings_and_errors_begin_their_own_line(monkeypatch):
    with (
        terminal(80, monkeypatch) as drawn,
        pytest.raises(SystemExit),
        runlog.exit_on_user_error(),
    ):
        bar = runlog.Progress(0, 100, "toy")
        bar.update(50)
        runlog.warn("a plot is missing")
        raise runlog.UserError("the disk is full")
    assert "warning: a plot is missing" in drawn and drawn[-1] == "error: the disk is full"


def test_compilation_is_announced_before_the_wait(capsys):
    order = []

    def backend(module, inputs):
        order.append(capsys.readouterr().out)
        return module.forward

    def double(x):
        return 2 * x

    torch._dynamo.reset()
    compiled = torch.compile(double, backend=backend)
    bar = runlog.Progress(0, 10, "toy")
    assert capsys.readouterr().out == ""  # not before
    compiled(torch.ones(3))
    compiled(torch.ones(3))
    compiled(torch.ones(3, 4, dtype=torch.int64))
    bar.close()
    compiled(torch.ones(3, 4, 5, dtype=torch.float64))
    assert order[0] == "compiling (about a minute)\n" and set(order[1:]) == {""}
    assert capsys.readouterr().out == ""


def test_progress_is_written_for_a_sweep(tmp_path, monkeypatch):
    path = tmp_path / "progress"
    monkeypatch.setenv(progress.PROGRESS_FILE, str(path))
    clock = Clock(monkeypatch)
    bar = runlog.Progress(3, 10, "toy")
    assert path.read_text() == "3 10\n"
    clock.now += 0.5
    bar.update(4)
    assert path.read_text() == "3 10\n"  # at most once a second
    clock.now += 0.6
    bar.update(5)
    assert path.read_text() == "5 10\n"
    bar.update(10)
    assert path.read_text() == "10 10\n"
    path.unlink()
    path.mkdir()  # cannot be written
    bar.update(10)


# ---- the lines at the beginning and the end ------------------------------------------------------


@dataclasses.dataclass
class Args:
    seed: int = 1
    num_seeds: int = runlog.option(1)
    device: str = runlog.option("cpu")
    runs_dir: str = runlog.option("runs")
    fresh: bool = runlog.option(False)
    checkpoint_frequency: int = runlog.option(100)
    checkpoint_minutes: float = runlog.option(0.0)
    tensorboard: bool = runlog.option(False)
    track: bool = runlog.option(False)
    env_id: str = "toy"
    activation: str = "relu"


def toy(args: Args, stop_at: int | None = None, save_at: int | None = None) -> None:
    """Ten steps; stops after a step without a save, as a kill would."""
    runs = runlog.seed_runs(args, "toy")
    with contextlib.suppress(ZeroDivisionError), runlog.open_batches(runs, args) as batches:
        for batch in batches:
            batch.load()
            for step in range(batch.start + 1, 11):
                batch.log(step, {"loss": 1.0})
                if step == save_at:
                    batch.save(step, {})
                if step == stop_at:
                    raise ZeroDivisionError
            batch.finish()


def test_lines_of_a_run(tmp_path, capsys):
    args = Args(runs_dir=str(tmp_path))
    (run,) = runlog.seed_runs(args, "toy")

    def output(**stops) -> str:
        toy(args, **stops)
        return capsys.readouterr().out.replace(str(run.folder), "FOLDER")

    assert output(stop_at=2) == "new run in FOLDER\n"
    dropped = "FOLDER: stopped before the first checkpoint; the old rows are dropped, "
    assert output(stop_at=5, save_at=4) == f"{dropped}starting again from step 0\n"
    assert output() == "resuming FOLDER from step 4\nfinished: FOLDER\n"
    assert output() == "FOLDER: finished already (--fresh starts it over)\n"
    args = dataclasses.replace(args, fresh=True)
    assert output() == "new run in FOLDER\nfinished: FOLDER\n"


def test_lines_of_a_batch(tmp_path, capsys):
    args = Args(runs_dir=str(tmp_path), num_seeds=3)
    first = runlog.seed_runs(args, "toy")[0].folder
    toy(args, stop_at=5, save_at=4)
    toy(args)
    assert capsys.readouterr().out.splitlines() == [
        f"3 new runs, such as {first}",
        f"resuming 3 runs such as {first} from step 4",
        f"finished: 3 runs such as {first}",
    ]


def test_means_are_taken_over_the_runs_that_have_the_value(capsys):
    """The first seed has diverged before its first evaluation."""
    bar = runlog.Progress(0, 20)
    rows = [{}, {"eval/episodic_return": 7.0}, {"eval/episodic_return": 8.0}]
    bar.note_means(20, rows, ["eval/episodic_return", "eval/success"])
    assert capsys.readouterr().out == "step 20: eval/episodic_return 7.5\n"


def test_the_last_step_prints_the_training_return_if_it_has_no_line_yet(capsys):
    bar = runlog.Progress(0, 20)
    bar.note_end(20, [1.0, 2.0])
    bar.note_end(20, [3.0])
    bar.note_end(20, [])
    bar.note_means(20, [{"eval/episodic_return": 7.0}], ["eval/episodic_return"])
    bar.note_end(20, [3.0])
    assert capsys.readouterr().out.splitlines() == [
        "step 20: charts/episodic_return 1.5 (training, last 2 games)",
        "step 20: charts/episodic_return 3 (training, last game)",
        "step 20: no training game has ended",
        "step 20: eval/episodic_return 7",
    ]


@pytest.mark.parametrize("script", ["dqn_atari", "ppo_atari", "pqn_atari"])
def test_a_run_shorter_than_its_periods_prints_its_result(script, tmp_path, capsys):
    module = SCRIPTS[script]
    flags = f"{golden.ATARI} --total-timesteps 240 --runs-dir {tmp_path} --metrics-frequency 0"
    flags += " --learning-starts 80 --buffer-size 200" if script == "dqn_atari" else ""
    flags += " --num-envs 2 --num-steps 32" if script != "dqn_atari" else ""
    module.main(runlog.parse_args(module.Args, [*flags.split(), "--ntk-frequency", "0"]))
    first, summary, last = capsys.readouterr().out.splitlines()
    assert first.startswith("new run in") and last.startswith("finished")
    (rows,) = tmp_path.glob("*/scalars.csv")
    rows = [row.split(",") for row in rows.read_text().splitlines()]
    returns = [float(value) for _, key, value, _ in rows if key == "charts/episodic_return"]
    number = len(returns)
    expected = f"charts/episodic_return {sum(returns) / max(number, 1):.4g} (training, last "
    expected += "game)" if number == 1 else f"{number} games)"
    expected = expected if returns else "no training game has ended"
    assert summary.partition(": ")[2] == expected
