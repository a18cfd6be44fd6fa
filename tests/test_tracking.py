"""The mirrors of scalars.csv, read back: TensorBoard events and W&B offline.

`pytest -q tests/test_tracking.py`.
"""

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from matplotlib.image import imsave
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer import event_file_writer

import runlog
import sac_continuous
from runlog import Run, UserError, evaluation, exit_on_user_error, mirrors, video
from runlog.identity import config_hash

CONFIG = {"env_id": "toy", "seed": 1, "rational": {"degrees": [3, 2]}}


def session(root, steps, checkpoint=None, seed=1, **kwargs):
    """Log a line of slope 2, an image and a histogram;
    checkpoint at one step; stop without finishing."""
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
    # The name of an event file ends with a count of this process,
    # and TensorBoard reads 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    run = session(tmp_path, range(10, 51, 10), checkpoint=30)
    run.close()
    # resumes from 30: the first session's 40 and 50 are purged
    run = session(tmp_path, [40, 50, 60])
    run.finish()
    events = EventAccumulator(
        str(run.folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0}
    ).Reload()
    expected = [(step, 2.0 * step) for step in range(10, 61, 10)]
    assert [(event.step, event.value) for event in events.Scalars("charts/a")] == expected
    assert {event.value for event in events.Scalars("perf/sps")} == {100.0}
    images = events.Images("plots/kde")
    assert [image.step for image in images] == list(range(10, 61, 10))
    assert (
        images[0].width,
        images[0].height,
    ) == (6, 8)
    histogram = events.Histograms("network/pre")[-1].histogram_value
    assert (histogram.bucket_limit, histogram.bucket, histogram.num) == (
        [0.0, 1.0],
        [1.0, 3.0],
        4.0,
    )
    rows = [json.loads(line) for line in (run.folder / "histograms.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(10, 61, 10))
    assert rows[0]["counts"] == [1, 3] and rows[0]["edges"] == [-1, 0, 1]


def events_of(folder) -> EventAccumulator:
    """All events of a run's folder, as TensorBoard reads them."""
    sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def layout_of(events) -> list[dict[str, list[str]]]:
    """The layouts that a run has written, each as section -> titles."""
    found = []
    for event in events.Tensors("custom_scalars__config__"):
        layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
        sections = {}
        for section in layout.category:
            sections[section.title] = [chart.title for chart in section.chart]
        found.append(sections)
    return found


def test_the_layout_grows_with_the_keys_and_a_resumed_run_keeps_its_panels(tmp_path):
    sections = {"A": {"first": "charts/a", "second": "charts/b|eval/b"}, "B": {"never": "c"}}
    run = Run(tmp_path, "toy", CONFIG).open(sections=sections)
    for step in (1, 2, 3):
        run.log(step, {"charts/a": 1.0})
        run.flush()
        if step == 2:
            run.log(step, {"charts/b": 1.0})
            run.save_checkpoint(step, {})
    run.close()
    assert layout_of(events_of(run.folder)) == [{"A": ["first"]}, {"A": ["first", "second"]}]
    run = Run(tmp_path, "toy", CONFIG).open(sections=sections)
    run.load_checkpoint()
    run.log(3, {"charts/a": 2.0})  # charts/b is in scalars.csv only
    run.finish()
    events = events_of(run.folder)
    assert layout_of(events)[-1] == {"A": ["first", "second"]}
    assert [(event.step, event.value) for event in events.Scalars("charts/a")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]
    texts = events.Tensors("settings/text_summary")  # one for each session, at its first step
    assert [event.step for event in texts] == [0, 3]


def test_a_restart_from_the_beginning_shows_its_settings_once(tmp_path):
    for _ in range(2):  # killed before the first checkpoint
        run = Run(tmp_path, "toy", CONFIG).open()
        run.log(1, {"charts/a": 1.0})
        run.close()
    # what TensorBoard shows; the other accumulator purges no tensors, which texts are
    events = plugin_event_accumulator.EventAccumulator(str(run.folder)).Reload()
    for key, step in {"settings/text_summary": 0, "charts/a": 1}.items():
        assert [event.step for event in events.Tensors(key)] == [step]


def film(path, num_frames=120):
    """An mp4 of 10 frames a second that gets brighter; no picture repeats."""
    frames = []
    for i in range(num_frames):
        frames.append(np.full((240, 320, 3), 2 * i, dtype=np.uint8))
    assert video.write_video(path, frames, fps=10)
    return path


def test_a_video_is_a_small_gif_in_tensorboard_and_lasts_as_long(tmp_path, capsys):
    run = Run(tmp_path, "toy", CONFIG).open()
    run.log_video(5, "videos/episode", film(tmp_path / "toy" / "videos" / "step-5.mp4"))
    run.log_video(6, "videos/episode", tmp_path / "missing.mp4")  # a video that failed
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    run.log_video(7, "videos/episode", tmp_path / "broken.mp4")
    run.log(8, {"charts/a": 1.0})
    run.finish()
    (event,) = events_of(run.folder).Images("videos/episode")
    gif = Image.open(io.BytesIO(event.encoded_image_string))
    assert event.step == 5
    assert gif.format == "GIF"
    assert gif.size == (160, 120)
    durations = []
    brightness = []
    for i in range(gif.n_frames):
        gif.seek(i)
        durations.append(gif.info["duration"])
        brightness.append(np.asarray(gif.convert("L")).mean())
    assert gif.n_frames == 50 and abs(sum(durations) - 12_000) < 600  # ms
    assert brightness[0] < 10
    assert brightness[-1] > 220
    assert sorted(brightness) == brightness
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no video") and "broken.mp4" in line


def test_the_video_of_an_evaluation_joins_the_events_of_a_finished_run_once(tmp_path):
    sections = {"A": {"first": "charts/a"}}
    run = Run(tmp_path, "toy", CONFIG).open(sections=sections)
    run.log(5, {"charts/a": 1.0})
    run.finish()
    path = film(run.folder / "videos" / "evaluation-5.mp4", num_frames=4)
    for _ in range(2):
        evaluation.mirror_video(run, 5, path)
    events = events_of(run.folder)
    assert [event.step for event in events.Images("videos/evaluation")] == [5]
    assert [event.value for event in events.Scalars("charts/a")] == [1.0]
    assert layout_of(events) == [{"A": ["first"]}]
    without = Run(tmp_path, "without", CONFIG).open(tensorboard=False)
    without.finish()
    evaluation.mirror_video(without, 5, path)
    assert not list(without.folder.glob("events*"))


def test_tensorboard_off_writes_no_events(tmp_path):
    run = session(tmp_path, [1, 2], tensorboard=False)
    run.finish()
    assert not list(run.folder.glob("events*")) and not (run.folder / "wandb").exists()


def test_event_files_that_cannot_grow_are_one_warning_and_the_run_goes_on(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "import test_tracking as t, pathlib\n"
        f"t.fill_the_disk(pathlib.Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    warning, error = done.stderr.splitlines()
    assert done.returncode == 2 and warning.startswith("warning: no more TensorBoard events"), done
    assert "File too large" in warning
    assert error.startswith(f"error: cannot write {tmp_path / 'toy' / 'scalars.csv'}")
    events = (
        EventAccumulator(str(tmp_path / "toy"), size_guidance={"scalars": 0}).Reload().Scalars("a")
    )
    rows = (tmp_path / "toy" / "scalars.csv").read_text().splitlines()[1:]
    assert len(rows) % 100 == 1 and len(rows) > len(events) > 100  # whole blocks of 100, in either
    assert [event.step for event in events] == list(range(len(events)))


@exit_on_user_error()
def fill_the_disk(root):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    run = Run(root, "toy", CONFIG).open()
    for step in range(5_000):  # an event takes more bytes than a row of scalars.csv
        run.log(step, {"a": 1.0})
        if step % 100 == 0:
            run.flush()


def test_without_tensorboard_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # its import fails
    run = session(tmp_path, [1, 2])
    run.finish()
    other = session(tmp_path, [1, 2], seed=2)
    other.finish()
    (line,) = capsys.readouterr().err.splitlines()  # once in a process
    assert line.startswith("warning: no more TensorBoard events") and "ModuleNotFoundError" in line
    assert run.status() == other.status() == "finished"


def test_threads_of_other_code_keep_their_traceback(tmp_path, capsys):
    before = threading.excepthook
    session(tmp_path, [1]).finish()
    assert threading.excepthook is before


def records(folder):
    """The header and the history of an offline W&B run,
    read back with its own command line tool."""
    (path,) = folder.glob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert {row["metric"]["step_metric"] for row in rows if row["type"] == "metric"} == {
        "global_step"
    }
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
        [records(folder) for folder in sorted((run.folder / "wandb").glob("offline-run-*"))]
        for run in (first, second)
    )
    ours = first.digest
    assert ours == config_hash(CONFIG, []) and second.digest != ours
    for (header, history), digest in ((earlier, ours), (later, ours), (other, second.digest)):
        assert (header["run_id"], header["project"], header["run_group"]) == (
            digest,
            "toys",
            "toy__relu",
        )
        assert header["tags"] == ["relu"]
        assert header["config"]["update"]["rational"] == {"degrees": [3, 2]}
        assert all(row["_step"] == row["global_step"] == row["charts/a"] / 2 for row in history)
        assert all(
            row["network/pre.values"] == [1, 3] and row["plots/kde.width"] == 6 for row in history
        )
    steps = [[row["global_step"] for row in history] for _, history in (earlier, later, other)]
    assert steps == [[10, 20, 30, 40, 50], [40, 50, 60], [10, 20]]
    image = next((first.folder / "wandb").glob("*/files/" + earlier[1][0]["plots/kde.path"]))
    assert image.read_bytes() == (first.folder / "kde.png").read_bytes()


def own_environment(**extra):
    """The environment of a fresh process, which does not share this one's W&B service."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return {**kept, "WANDB_SILENT": "true", "PYTHONPATH": os.getcwd(), **extra}


WANDB_DRILL = """
import os, signal, subprocess, sys
import torch
import runlog
root, when = sys.argv[1:]
def kill_the_service():
    command = ["pgrep", "-P", str(os.getpid())]
    children = subprocess.run(command, capture_output=True, text=True).stdout.split()
    for child in children:
        name = open(f"/proc/{child}/comm").read() if os.path.exists(f"/proc/{child}/comm") else ""
        if name.startswith("wandb"):
            os.kill(int(child), signal.SIGKILL)
            return
    raise AssertionError("no service")
with runlog.exit_on_user_error():
    runs = []
    for seed in (1, 2, 3):
        runs.append(runlog.Run(root, f"toy__s{seed}", {"env_id": "toy", "seed": seed}))
    for run in runs:
        run.open(wandb_kwargs={"project": "toys"})
    for step in range(1, 41):
        for run in runs:
            run.log(step, {"a": float(step)})
        if step == 20 and when == "under way":
            kill_the_service()
    for run in runs:
        run.save_checkpoint(40, {}, {"rows": torch.zeros(3, 2)})
    if when == "at the end":
        kill_the_service()
    for run in runs:
        run.finish()
        run.drop_transitions()
"""


@pytest.mark.skipif(not shutil.which("pgrep"), reason="finds the service with pgrep")
@pytest.mark.parametrize("when", ["under way", "at the end"])
def test_the_death_of_wandbs_service_does_not_end_a_run(tmp_path, when):
    env = own_environment(WANDB_MODE="offline")
    command = [sys.executable, "-c", WANDB_DRILL, str(tmp_path), when]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert (
        done.returncode == 0 and len(lines) == 1 and lines[0].startswith("warning: W&B has failed")
    ), done
    for seed in (1, 2, 3):
        folder = tmp_path / f"toy__s{seed}"
        assert json.loads((folder / "meta.json").read_text())["status"] == "finished"
        assert not (folder / "replay").exists()
        rows = (folder / "scalars.csv").read_text().splitlines()[1:]
        assert [row.split(",")[:3] for row in rows] == [
            [str(step), "a", f"{step}.0"] for step in range(1, 41)
        ]


def test_a_killed_process_loses_at_most_the_last_second_of_an_offline_run(tmp_path):
    code = (
        "import os, sys, time, runlog\n"
        "run = runlog.Run(sys.argv[1], 'toy', {'env_id': 'toy'}).open(wandb_kwargs={'project': "
        "'toys'})\n"
        "for step in range(1, 31):\n"
        "    run.log(step, {'a': float(step)})\n"
        f"time.sleep({2 * mirrors.WANDB_FLUSH_SECONDS})\n"
        "os.kill(os.getpid(), 9)"
    )
    env = own_environment(WANDB_MODE="offline")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, timeout=120)
    assert done.returncode == -9
    (folder,) = (tmp_path / "toy" / "wandb").glob("offline-run-*")
    _, history = records(folder)
    # the newest step waits for the next one
    assert [row["global_step"] for row in history] == list(range(1, 30))


def test_wandb_without_a_login_names_the_remedies(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    run = Run(tmp_path, "toy", CONFIG)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        run.open(wandb_kwargs={"project": "toys"})
    assert run.status() == "new" and not run.folder.exists()


def check_in(folder, body, **env):
    """What a fresh process in `folder`, at home there, prints that runs `body`, without "wandb:
    ..." lines."""
    environment = own_environment(HOME=str(folder), NETRC=str(folder / "none"), **env)
    code = (
        f"import runlog\nfrom runlog import mirrors\nwith runlog.exit_on_user_error():\n    {body}"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_the_mode_comes_from_the_variable_or_from_wandbs_file(tmp_path):
    (tmp_path / "wandb").mkdir()
    ask = "print(mirrors.check_wandb('toys'))"
    for mode in ("offline", "disabled"):  # as `wandb offline` and `wandb disabled` write it
        (tmp_path / "wandb" / "settings").write_text(f"[default]\nmode = {mode}\n")
        assert check_in(tmp_path, ask).stdout == f"{mode}\n"
    # the variable comes first
    assert check_in(tmp_path, ask, WANDB_MODE="dryrun").stdout == "offline\n"


@pytest.mark.parametrize(
    ("project", "env", "expected"),
    [
        ("toys", {"WANDB_MODE": "bogus"}, ["WANDB_MODE=bogus", "online, offline or disabled"]),
        ("toys", {}, ["--track", "not logged in", "WANDB_MODE=offline"]),
        ("toys", {"WANDB_API_KEY": "short"}, ["--track", "40", "WANDB_MODE=offline"]),
        ("a/b", {"WANDB_MODE": "offline"}, ["--wandb-project a/b", "cannot contain"]),
        (
            "toys",
            {"WANDB_MODE": "offline", "WANDB_TAGS": 70 * "x"},
            ["--track", "run_tags", "64 characters"],
        ),
    ],
)
def test_problems_with_wandb_are_reported_before_a_folder_is_created(
    tmp_path, project, env, expected
):
    body = "import sac_continuous as s; args = s.Args(track=True, compile=False, runs_dir='runs', "
    body += (
        f"wandb_project={project!r}); runlog.open_batches(runlog.seed_runs(args, 'sac'), "
        "args).__enter__()"
    )
    done = check_in(tmp_path, body, **env)
    assert done.returncode == 2 and done.stdout == "", done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and all(part in line for part in expected), line
    assert not (tmp_path / "runs").exists()


def test_without_wandb_the_error_has_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--track: cannot import wandb .*pip install 'wandb>="):
        mirrors.check_wandb("toys")


def test_names_for_wandb_fit_the_limits_of_its_server():
    first = "metaworld/" + 60 * "reach-v3," + "x"
    second = "metaworld/" + 60 * "reach-v3," + "y"
    assert mirrors.shortened("toy relu 0123", 128) == "toy relu 0123"
    assert mirrors.shortened(128 * "x", 128) == 128 * "x"
    assert len(mirrors.shortened(first, 128)) == 128
    assert mirrors.shortened(first, 128).startswith("metaworld/reach")
    assert mirrors.shortened(first, 128) != mirrors.shortened(second, 128)


def test_wandb_gets_a_short_name_a_group_of_all_seeds_and_videos(tmp_path, monkeypatch):
    given = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    real = mirrors.start_wandb

    def start(kwargs, digest, name, *rest):
        given.append((kwargs, digest, name))
        return real(kwargs, digest, name, *rest)

    monkeypatch.setattr(mirrors, "start_wandb", start)
    ids = tuple(f"metaworld/{task}-v3" for task in (30 * "reach-", 30 * "push-"))
    args = sac_continuous.Args(
        num_seeds=2, track=True, compile=False, activation="tanh*crational", env_id=ids
    )
    args.runs_dir = str(tmp_path)
    runs = runlog.seed_runs(args, "sac_continuous")
    with runlog.open_batches(runs, args) as batches:
        (batch,) = batches
        path = film(runs[0].folder / "videos" / "step-1.mp4", num_frames=4)
        batch.load()
        runs[0].log_video(1, "videos/episode", path)
        batch.log(2, {"charts/a": 1.0})
    names = [name for _, _, name in given]
    assert [digest for _, digest, _ in given] == [run.digest for run in runs]
    for run, name in zip(runs, names):
        assert re.fullmatch(r"tanh\*crational reach-\S* sac s[12] [0-9a-f]{6}", name)
        assert len(name) <= 100 and run.digest.startswith(name[-6:])
    first, second = [kwargs["group"] for kwargs, _, _ in given]
    assert first == second and len(first) > 128
    (folder,) = (runs[0].folder / "wandb").glob("offline-run-*")
    header, history = records(folder)
    assert header["display_name"] == names[0] and header["run_id"] == runs[0].digest
    assert len(header["run_group"]) == 128 and header["config"]["update"]["gamma"] == 0.99
    assert history[0]["videos/episode._type"] == "video-file" and history[0]["_step"] == 1
    copied = folder / "files" / history[0]["videos/episode.path"]
    assert copied.read_bytes() == path.read_bytes()


def test_long_names_reach_wandb_shortened(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kwargs = {"project": "toys", "group": 200 * "g", "job_type": 100 * "j", "tags": [80 * "t"]}
    run = session(tmp_path, [1, 2], seed=77, wandb_kwargs=kwargs)  # an id that no other test uses
    run.finish()
    (folder,) = (run.folder / "wandb").glob("offline-run-*")
    header, _ = records(folder)
    assert len(header["run_group"]) == 128
    assert len(header["job_type"]) == 64
    assert [*map(len, header["tags"])] == [64]
