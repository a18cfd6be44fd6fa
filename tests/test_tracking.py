"""The mirrors of scalars.csv, read back: TensorBoard events and W&B offline. `pytest -q tests/test_tracking.py`."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imsave
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from runlog import Run, UserError, config_hash, exit_on_user_error

CONFIG = {"env_id": "toy", "seed": 1, "rational": {"degrees": [3, 2]}}


def session(root, steps, checkpoint=None, seed=1, **kwargs):
    """Log a line of slope 2, an image and a histogram; checkpoint at one step; stop without finishing."""
    run = Run(root, f"toy__s{seed}", {**CONFIG, "seed": seed}).open(**kwargs)
    run.load_checkpoint()
    imsave(run.folder / "kde.png", np.random.default_rng(0).random((8, 6, 3)))
    for step in steps:
        run.log(step, {"charts/a": 2.0 * step, "perf/sps": 100.0})
        run.log_image(step, "plots/kde", run.folder / "kde.png")
        run.log_histogram(step, "network/pre", [1, 3], [-1.0, 0.0, 1.0])
        if step == checkpoint:
            run.save_checkpoint(step, {})
    return run


def test_tensorboard_mirrors_scalars_images_and_histograms(tmp_path, monkeypatch):
    # The name of an event file ends with a count of this process, and TensorBoard reads 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = session(tmp_path, range(10, 51, 10), checkpoint=30)
    run.close()
    run = session(tmp_path, [40, 50, 60])  # goes on from 30: the first session's 40 and 50 are purged
    run.finish()
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()
    expected = [(step, 2.0 * step) for step in range(10, 61, 10)]
    assert [(event.step, event.value) for event in events.Scalars("charts/a")] == expected
    assert {event.value for event in events.Scalars("perf/sps")} == {100.0}
    images = events.Images("plots/kde")
    assert [image.step for image in images] == list(range(10, 61, 10)) and (images[0].width, images[0].height) == (6, 8)
    histogram = events.Histograms("network/pre")[-1].histogram_value
    assert (histogram.bucket_limit, histogram.bucket, histogram.num) == ([0.0, 1.0], [1.0, 3.0], 4.0)
    rows = [json.loads(line) for line in (run.folder / "histograms.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(10, 61, 10))
    assert rows[0]["counts"] == [1, 3] and rows[0]["edges"] == [-1, 0, 1]


def test_tensorboard_off_writes_no_events(tmp_path):
    run = session(tmp_path, [1, 2], tensorboard=False)
    run.finish()
    assert not list(run.folder.glob("events*")) and not (run.folder / "wandb").exists()


def test_an_event_file_that_cannot_grow_is_told_in_one_line(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "import test_tracking as t, pathlib\n"
        f"t.fill_the_disk(pathlib.Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("error: cannot write") and "File too large" in done.stderr


@exit_on_user_error()
def fill_the_disk(root):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    run = Run(root, "toy", CONFIG).open()
    for step in range(5_000):  # an event takes more bytes than a row of scalars.csv
        run.log(step, {"a": 1.0})
        if step % 100 == 0:
            run.flush()


def records(folder):
    """The header and the history of an offline W&B run, read back with its own command line tool."""
    (path,) = folder.glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert {row["metric"]["step_metric"] for row in rows if row["type"] == "metric"} == {"global_step"}
    history = [row["history"]["item"] for row in rows if row["type"] == "history"]
    return next(row["run"] for row in rows if row["type"] == "run"), history


def test_wandb_offline_holds_config_group_history_and_image_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kwargs = {"project": "toys", "group": "toy__relu", "tags": ["relu"]}
    first = session(tmp_path, range(10, 51, 10), checkpoint=30, wandb_kwargs=kwargs)
    second = session(tmp_path, [10, 20], seed=2, wandb_kwargs=kwargs)  # two seeds in one process
    first.close()
    second.close()
    again = session(tmp_path, [40, 50, 60], wandb_kwargs=kwargs)
    again.finish()
    (earlier, later), (other,) = (
        [records(folder) for folder in sorted((run.folder / "wandb").glob("offline-run-*"))] for run in (first, second)
    )
    ours = first.digest
    assert ours == config_hash(CONFIG, []) and second.digest != ours
    for (header, history), digest in ((earlier, ours), (later, ours), (other, second.digest)):
        assert (header["run_id"], header["project"], header["run_group"]) == (digest, "toys", "toy__relu")
        assert header["tags"] == ["relu"] and header["config"]["update"]["rational"] == {"degrees": [3, 2]}
        assert all(row["_step"] == row["global_step"] == row["charts/a"] / 2 for row in history)
        assert all(row["network/pre.values"] == [1, 3] and row["plots/kde.width"] == 6 for row in history)
    steps = [[row["global_step"] for row in history] for _, history in (earlier, later, other)]
    assert steps == [[10, 20, 30, 40, 50], [40, 50, 60], [10, 20]]
    image = next((first.folder / "wandb").glob("*/files/" + earlier[1][0]["plots/kde.path"]))
    assert image.read_bytes() == (first.folder / "kde.png").read_bytes()


def test_wandb_without_a_login_says_what_would_do(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    run = Run(tmp_path, "toy", CONFIG)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        run.open(wandb_kwargs={"project": "toys"})
    assert run.status() == "new" and not run.folder.exists()
