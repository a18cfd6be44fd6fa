"""Run folders that are damaged, or that could not be opened: nothing of value is lost.

`pytest -q tests/test_run_files.py` (about 20 s).
"""

import errno
import fcntl
import json
import os
import shutil
import time

import pytest
import torch
from test_runlog import CONFIG, NAME, content, in_child, interrupted, new_run

import runlog
import sac_continuous
from runlog import UserError

NOT_META = {  # what meta.json might hold instead
    "empty": b"",
    "half": b'{"status": "runni',
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "status of another kind": b'{"status": 3, "sessions": []}',
    "git of another kind": b'{"status": "interrupted", "git": "abc"}',
    "hardware of another kind": b'{"status": "interrupted", "hardware": 3, "sessions": [{}]}',
    "another encoding": '{"status": "läuft"}'.encode("utf-16"),
    "binary": bytes(range(256)),
    "sessions of another kind": b'{"status": "interrupted", "sessions": 5}',
    "a session of another kind": b'{"status": "interrupted", "sessions": [1]}',
}
SILENT = ("missing", "sessions of another kind", "a session of another kind")


def resume(tmp_path):
    """Opens the run and continues to step 60 what `interrupted` began; returns the run."""
    run = new_run(tmp_path).open(tensorboard=False)
    start, state, _ = run.load_checkpoint()
    assert start == 40 and state["n"] == [40, None]
    run.log(41, {"a": 41 / 3})
    run.log_histogram(41, "h", [1], [0, 1])
    run.finish()
    return run


@pytest.mark.parametrize("damage", [*NOT_META, "missing"])
def test_a_damaged_meta_json_is_rewritten(tmp_path, capsys, damage):
    meta = interrupted(tmp_path).folder / "meta.json"
    if damage == "missing":
        meta.unlink()
    else:
        meta.write_bytes(NOT_META[damage])
    capsys.readouterr()
    run = resume(tmp_path)
    rewritten = json.loads(meta.read_text())
    assert run.status() == "finished"
    assert rewritten["hash"] == run.digest
    assert rewritten["sessions"][-1]["from_step"] == 40
    err = capsys.readouterr().err
    assert err.count("meta.json") == (damage not in SILENT), err
    assert content(tmp_path)[0][1:] == [f"{step},a,{step / 3!r}" for step in range(1, 42)]


@pytest.mark.parametrize("damage", [b"", b"[]", b"null", b"\xff\xfe", b'{"seed": 1'])
def test_a_damaged_config_json_is_rewritten(tmp_path, capsys, damage):
    config = interrupted(tmp_path).folder / "config.json"
    whole = config.read_bytes()
    config.write_bytes(damage)
    resume(tmp_path)
    assert config.read_bytes() == whole
    # and without the hash in meta.json, the checkpoint shows that it is the same run
    shutil.rmtree(tmp_path / NAME)
    config = interrupted(tmp_path).folder / "config.json"
    config.write_bytes(damage)
    config.with_name("meta.json").write_bytes(b"null")
    resume(tmp_path)
    assert config.read_bytes() == whole


def test_a_flag_of_an_older_version_in_config_json_does_not_matter_if_the_hash_matches(
    tmp_path,
):
    config = interrupted(tmp_path).folder / "config.json"
    whole = config.read_bytes()
    config.write_text(json.dumps({**CONFIG, "an_old_flag": True}))
    resume(tmp_path)
    assert config.read_bytes() == whole


@pytest.mark.parametrize("damage", ["missing", "empty", "cut in a row"])
@pytest.mark.parametrize("name", ["perf.csv", "histograms.jsonl", "curves.jsonl"])
def test_a_side_file_that_lost_rows_does_not_stop_the_run(tmp_path, capsys, name, damage):
    run = new_run(tmp_path).open(tensorboard=False)
    for step in (10, 20, 30):
        run.log(step, {"a": 1.0, "perf/b": 2.0})
        run.log_histogram(step, "h", [1], [0, 1])
        run.log_curve(step, "c", [0, 1], [2, 3])
    run.save_checkpoint(30, {"n": [40, None]})
    run.close()
    file = run.folder / name
    lines = file.read_text().splitlines(keepends=True)
    if damage == "missing":
        file.unlink()
    else:
        kept = "" if damage == "empty" else "".join(lines[:-1]) + lines[-1][:5]
        file.write_text(kept)
    capsys.readouterr()
    run = new_run(tmp_path).open(tensorboard=False)
    assert run.load_checkpoint()[0] == 30
    run.log(40, {"a": 1.0, "perf/b": 2.0})
    run.log_histogram(40, "h", [1], [0, 1])
    run.log_curve(40, "c", [0, 1], [2, 3])
    run.finish()
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1 and err.count("\n") == 1, err
    lost = "some" if damage == "cut in a row" else "all"
    assert f"{file} has lost {lost} of its rows up to step 30" in err
    now = file.read_text().splitlines(keepends=True)
    header = [runlog.append_only.HEADERS[name]] if runlog.append_only.HEADERS[name] else []
    expected = lines[:-1] if damage == "cut in a row" else header
    assert now[:-1] == expected and ("40" in now[-1])
    assert len((run.folder / "scalars.csv").read_text().splitlines()) == 5


def test_the_remedy_keeps_the_files(tmp_path):
    run = interrupted(tmp_path)
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        os.truncate(run.folder / name, 100)
    with pytest.raises(UserError) as error:
        new_run(tmp_path).load_checkpoint()
    assert f"(mv {run.folder} {run.folder}.bak)" in str(error.value)
    assert "--runs-dir" in str(error.value) and "use --fresh to delete them" in str(error.value)


@pytest.mark.parametrize("damage", [b"null", None])
def test_rows_without_a_checkpoint_and_a_good_meta_json_are_not_deleted(tmp_path, damage):
    run = new_run(tmp_path).open(tensorboard=False)
    run.log(1, {"a": 1.0})
    run.finish()
    rows = (run.folder / "scalars.csv").read_bytes()
    meta = run.folder / "meta.json"
    if damage is None:
        meta.unlink()
    else:
        meta.write_bytes(damage)
    with pytest.raises(UserError, match=f"mv {run.folder}"):
        new_run(tmp_path).open(tensorboard=False)
    assert (run.folder / "scalars.csv").read_bytes() == rows
    new_run(tmp_path, fresh=True).open(tensorboard=False).close()


def test_files_that_are_folders_or_cannot_be_read_are_reported_in_one_line(tmp_path):
    for name in ("meta.json", "config.json", "scalars.csv", "perf.csv", ".lock"):
        run = interrupted(tmp_path)
        (run.folder / name).unlink()
        (run.folder / name).mkdir()
        with pytest.raises(UserError, match=name if name != ".lock" else "cannot write") as error:
            new_run(tmp_path).open(tensorboard=False).load_checkpoint()
        assert "\n" not in str(error.value)
        shutil.rmtree(run.folder)


def test_a_lock_file_may_hold_anything(tmp_path):
    run = new_run(tmp_path).open(tensorboard=False)
    (run.folder / ".lock").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="in use by process"):
        new_run(tmp_path).open(tensorboard=False)
    run.close()


def test_a_failed_start_leaves_nothing(tmp_path, monkeypatch):
    root = tmp_path / "a" / "b"

    def no_space(path, content):
        raise UserError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(runlog.storage, "write_json", no_space)
        for fresh in (False, True):
            with pytest.raises(UserError, match="No space"):
                new_run(root, fresh=fresh).open(tensorboard=False)
            assert os.listdir(tmp_path) == []

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", no_locks)
        with pytest.raises(UserError, match="cannot lock"):
            new_run(root).open(tensorboard=False)
    assert os.listdir(tmp_path) == []
    # a run that exists stays as it is
    meta = interrupted(root).folder / "meta.json"
    before = {path.name: path.read_bytes() for path in meta.parent.iterdir() if path.is_file()}
    whole = runlog.storage.write_json
    with monkeypatch.context() as patched:
        patched.setattr(
            runlog.storage, "write_json", lambda p, c: no_space(p, c) if p == meta else whole(p, c)
        )
        with pytest.raises(UserError, match="No space"):
            new_run(root).open(tensorboard=False)
    before.pop(".lock")
    assert {name: (meta.parent / name).read_bytes() for name in before} == before
    resume(root)


def test_a_file_in_the_place_of_a_run_is_reported(tmp_path):
    run = new_run(tmp_path)
    run.folder.write_text("notes")
    with pytest.raises(UserError, match=f"^{run.folder} is a file, not a run's folder; move it"):
        run.status()
    assert run.folder.read_text() == "notes"


def test_abandon_leaves_runs_as_they_were(tmp_path):
    fresh = new_run(tmp_path).open(tensorboard=False)
    fresh.abandon()
    assert os.listdir(tmp_path) == [] and fresh.status() == "new"
    fresh.abandon()  # not open: nothing happens
    run = interrupted(tmp_path)
    before = {
        path: path.read_bytes()
        for path in run.folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    run.open(tensorboard=False).abandon()
    after = {
        path: path.read_bytes()
        for path in run.folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert before == after and run.status() == "interrupted"
    new_run(tmp_path).open(tensorboard=False).close()  # the lock is free
    logged = runlog.Run(tmp_path, "logged", CONFIG).open(tensorboard=False)
    logged.log(1, {"a": 1.0})
    logged.abandon()  # has rows by now: these stay
    assert "1,a,1.0" in (logged.folder / "scalars.csv").read_text()
    assert logged.status() == "interrupted"


def test_fresh_deletes_nothing_of_a_batch_with_a_run_in_use(tmp_path):
    first = interrupted(tmp_path)
    before = {
        path: path.read_bytes()
        for path in first.folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    new = runlog.Run(tmp_path, "new", {**CONFIG, "env_id": "toy", "activation": "relu"}, fresh=True)
    again = runlog.Run(
        tmp_path, first.name, {**first.config, "env_id": "toy", "activation": "relu"}, fresh=True
    )
    used = runlog.Run(
        tmp_path, "used", {**CONFIG, "env_id": "toy", "activation": "relu"}, fresh=True
    )
    (tmp_path / "used").mkdir()
    with open(tmp_path / "used" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        args = sac_continuous.Args(compile=False, tensorboard=False)
        with (
            pytest.raises(UserError, match="used is in use"),
            runlog.open_batches([again, new, used], args),
        ):
            pass
    after = {
        path: path.read_bytes()
        for path in first.folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert after == before
    assert sorted(os.listdir(tmp_path)) == sorted([first.name, "used"])


def test_a_folder_that_is_removed_while_another_process_waits_for_it(tmp_path):
    """Many processes open and abandon one folder: each has it alone,
    or is refused, and nobody holds a removed lock."""

    def hammer(number):
        opened = 0
        while opened < 20:
            run = new_run(tmp_path)
            try:
                run.open(tensorboard=False)
            except UserError as error:
                assert "in use by process" in str(error), error
                time.sleep(0.001 * number)
                continue
            owner = tmp_path / "owner"
            with open(owner, "x"):  # fails if two have it at a time
                pass
            assert runlog.lock.is_file(run._lock.descriptor, run.folder / ".lock")
            owner.unlink()
            run.abandon()
            opened += 1
            time.sleep(0.002)
        os._exit(0)

    children = [in_child(hammer, number) for number in range(3)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert os.listdir(tmp_path) == []


def rewritten(path, change):
    """A checkpoint whose content has been changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_a_checkpoint_of_a_later_version_is_refused_in_one_line_and_kept(tmp_path):
    run = interrupted(tmp_path)
    path = run.folder / "checkpoint.pt"
    rewritten(path, lambda content: content.update(format=2))
    before = {
        file: file.read_bytes()
        for file in run.folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }
    for ask in (new_run(tmp_path).checkpoint_steps, new_run(tmp_path).load_checkpoint):
        with pytest.raises(UserError) as error:
            ask()
        message = str(error.value)
        assert message.startswith(
            f"{path} has the checkpoint format 2, and this version reads up to 1; "
        )
        assert "use the version that wrote it" in message
        assert "--fresh" in message
        assert "\n" not in message
    assert {file: file.read_bytes() for file in before} == before  # not the older one instead


def test_a_checkpoint_without_a_format_number_loads(tmp_path):
    run = interrupted(tmp_path)
    assert torch.load(run.folder / "checkpoint.pt", weights_only=True)["format"] == 1
    rewritten(run.folder / "checkpoint.pt", lambda content: content.pop("format"))
    resume(tmp_path)
    assert content(tmp_path)[0][1:] == [f"{step},a,{step / 3!r}" for step in range(1, 42)]
