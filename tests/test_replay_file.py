"""DQN's replay on disk: its checksum, its space, and its state after a kill.

`pytest -q tests/test_replay_file.py` (about 20 s).
"""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_atari_runs import FakeGames, fake, run, scalars

import dqn_atari
import runlog
from dqn_atari import ReplayBuffer
from runlog import disk
from runlog.rows import DamagedRows

CAPACITY = 40  # transitions
RING = 20  # environment steps
QUICK = "--metrics-frequency 0 --no-redo --eval-frequency 320"


def add(buffer: ReplayBuffer, rng) -> np.ndarray:
    """One random row; returns its frames."""
    num_envs = buffer.rows.shape[1]
    obs = rng.integers(0, 256, (num_envs, 4, 84, 84), dtype=np.uint8)
    flags = rng.random((3, num_envs)) < 0.1
    buffer.add(obs, rng.integers(0, 4, num_envs), rng.standard_normal(num_envs), *flags)
    return obs[:, -1]


def fill(path: Path, seed: int = 0, rows: int = 60) -> ReplayBuffer:
    buffer = ReplayBuffer(path, CAPACITY, 2 * RING, 1)
    rng = np.random.default_rng(seed)
    for _ in range(rows):
        add(buffer, rng)
    buffer.flush()
    return buffer


def reopen(path: Path, num_added: int, checksum: int | None, num_envs: int = 1) -> ReplayBuffer:
    return ReplayBuffer(path, CAPACITY, 2 * RING, num_envs, num_added, checksum)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_both_checkpoints_find_their_rows_whenever_the_process_dies(num_envs, tmp_path):
    path = tmp_path / "replay.dat"
    copy = tmp_path / "copy.dat"
    chance = random.Random(num_envs)
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(path, CAPACITY, 2 * RING, num_envs)
    truth = []
    saved = []
    step = 0
    compared = 0
    resumed = {0: 0, 1: 0}
    for _ in range(500):
        step += num_envs
        truth.append(add(buffer, rng))
        is_due = dqn_atari.has_crossed(step - num_envs, step, RING)
        dies = is_due or chance.random() < 0.1
        for _, *counted in saved if dies else ():  # as if the process had died now, before it saves
            shutil.copyfile(path, copy)
            again = reopen(copy, *counted, num_envs)
            for t in range(max(again.num_added - again.capacity - 3, 0), again.num_added):
                assert np.array_equal(again.rows["frame"][t % again.num_rows], truth[t])
                compared += 1
        if is_due or chance.random() < 0.03:  # the clock, or a signal
            buffer.flush()
            saved = [*saved[-1:], (step, buffer.num_added, buffer.checksum())]
        if saved and chance.random() < 0.03:  # it dies, and resumes from one of the two
            which = chance.randrange(len(saved))
            del saved[which + 1 :]
            step, *counted = saved[-1]
            buffer = reopen(path, *counted, num_envs)
            del truth[buffer.num_added :]
            resumed[which] += 1
    assert compared > 1_000
    assert min(resumed.values()) >= 5
    assert len(truth) > 2 * buffer.num_rows


def test_any_damage_to_a_counted_row_is_found_and_none_elsewhere(tmp_path):
    path = tmp_path / "replay.dat"
    buffer = fill(path, rows=100)
    counted = (100, buffer.checksum())
    good = path.read_bytes()
    row_size = dqn_atari.ROW.itemsize
    rng = random.Random(1)
    numbers = {t % buffer.num_rows for t in range(100 - CAPACITY - 3, 100)}
    # it lies across the end of the file
    assert buffer.num_rows == 88 and numbers == {*range(57, 88), *range(12)}
    for number in range(buffer.num_rows):
        data = bytearray(good)
        # not in the flags
        data[number * row_size + rng.randrange(row_size - 3)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        if number in numbers:
            with pytest.raises(DamagedRows, match="does not hold the rows of the checkpoint"):
                reopen(path, *counted)
        else:
            reopen(path, *counted)
    path.write_bytes(bytes(len(good)))
    with pytest.raises(DamagedRows):
        reopen(path, *counted)
    path.write_bytes(good[:-1])
    with pytest.raises(DamagedRows, match="missing or too short"):
        reopen(path, *counted)
    other = fill(tmp_path / "other.dat", seed=1, rows=100)
    shutil.copyfile(other.path, path)
    with pytest.raises(
        DamagedRows, match="or of another run; restore the right file, or move the folder away"
    ):
        reopen(path, *counted)


def test_pages_that_never_reached_the_disk_are_found(tmp_path):
    """After a crash of the machine, rows of the previous lap may be in place of the newest."""
    path = tmp_path / "replay.dat"
    buffer = fill(path, rows=90)
    before = path.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(10):
        add(buffer, rng)
    buffer.flush()
    counted = (100, buffer.checksum())
    data = bytearray(path.read_bytes())
    page = slice(40_960, 45_056)  # within rows 5 and 6
    assert data[page] != before[page]
    data[page] = before[page]
    path.write_bytes(data)
    with pytest.raises(DamagedRows):
        reopen(path, *counted)


@pytest.mark.parametrize("marked", [[], ["over"], ["cut"], ["over", "cut"]])
def test_a_kill_while_a_resumption_marks_the_newest_row_is_no_damage(marked, tmp_path):
    path = tmp_path / "replay.dat"
    buffer = fill(path)
    checksum = buffer.checksum()
    for name in marked:
        buffer.rows[name][59] = True
    buffer.flush()
    again = reopen(path, 60, checksum)
    assert again.rows[["over", "cut"]][59].item() == (True, True) and again.checksum() == checksum


def test_a_checkpoint_without_a_checksum_resumes_with_a_warning(tmp_path, capfd):
    fill(tmp_path / "replay.dat")
    reopen(tmp_path / "replay.dat", 60, None)
    err = capfd.readouterr().err
    assert err.startswith("warning: ")
    assert "without a checksum" in err
    assert err.count("\n") == 1


class Died(Exception):
    pass


@pytest.fixture
def train_until_killed(monkeypatch):
    """Fake games; returns a function that trains into a folder
    until the process dies in step 152."""
    fake(monkeypatch)

    def train(folder, flags=QUICK):
        def step(games, actions, plain=FakeGames.step):
            if games.t == 75:
                raise Died
            return plain(games, actions)

        with monkeypatch.context() as patch, pytest.raises(Died):
            patch.setattr(FakeGames, "step", step)
            run("dqn_atari", folder, flags)
        (run_folder,) = folder.iterdir()
        return run_folder

    return train


def test_a_damaged_replay_stops_the_run_and_nothing_is_lost(train_until_killed, tmp_path, capfd):
    undisturbed = run("dqn_atari", tmp_path / "a", QUICK)
    folder = train_until_killed(tmp_path / "b")
    path = folder / "replay.dat"
    checkpoints = ("checkpoint.pt", "checkpoint.prev.pt")
    before = [(folder / name).read_bytes() for name in checkpoints]
    good = path.read_bytes()
    other = (train_until_killed(tmp_path / "c", f"{QUICK} --seed 4") / "replay.dat").read_bytes()
    assert len(other) == len(good)
    for content in (bytes(len(good)), other, good[:1_000], None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
            run("dqn_atari", tmp_path / "b", QUICK)
        err = capfd.readouterr().err
        assert (
            stop.value.code == 2 and err.startswith(f"error: {path} ") and err.count("\n") == 1
        ), err
        assert "move the folder away" in err and "--fresh would delete them" in err
        assert [(folder / name).read_bytes() for name in checkpoints] == before
        path.write_bytes(good)
    # only what the newest checkpoint counts is damaged:
    # the one before resumes, and ends as if nothing had happened
    data = bytearray(good)
    data[2 * 69 * dqn_atari.ROW.itemsize + 99] ^= 1  # the row of steps 139 and 140
    path.write_bytes(data)
    run("dqn_atari", tmp_path / "b", QUICK)
    err = capfd.readouterr().err
    assert (
        err.startswith(f"warning: {path} does not hold")
        and "the checkpoint before, step 120\n" in err
    ), err
    assert scalars(tmp_path / "b") == undisturbed and not path.exists()


@pytest.mark.parametrize("frequency", [7, 1_000])
def test_a_resumed_run_saves_as_often_as_its_replay_was_made_for(
    frequency, train_until_killed, tmp_path, monkeypatch
):
    folder = train_until_killed(tmp_path)
    steps = [140]
    save = runlog.Batch.save

    def noted(run, step, state):
        steps.append(step)
        save(run, step, state)

    monkeypatch.setattr(runlog.Batch, "save", noted)
    run("dqn_atari", tmp_path, f"{QUICK} --checkpoint-frequency {frequency}")
    # two games: even steps only
    assert max(np.diff(steps)) <= min(frequency, 20) + 1 and steps[-1] == 320
    assert json.loads((folder / "meta.json").read_text())["status"] == "finished"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB: two games' rows of 100 transitions take 1.1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        os.geteuid()
        or not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("a disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def error_of(folder, capfd) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop, runlog.exit_on_user_error():
        run("dqn_atari", folder, QUICK)
    err = capfd.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_a_disk_too_small_is_reported_before_anything_is_created_and_a_quota_leaves_nothing(
    small_disk, tmp_path, monkeypatch, capfd
):
    fake(monkeypatch)
    undisturbed = run("dqn_atari", tmp_path / "a", QUICK)
    err = error_of(small_disk / "runs", capfd)
    assert all(
        words in err for words in ("replay.dat needs 1 MB", "1 MB are free", "--buffer-size")
    ), err
    assert os.listdir(small_disk) == []
    # what a quota looks like: the disk seems to have room, and has not
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, 10**12)
        )
        for _ in range(2):  # and again
            err = error_of(small_disk / "runs", capfd)
            assert (
                "cannot write" in err
                and "replay.dat, which takes 1 MB (No space left on device)" in err
            ), err
            (folder,) = (small_disk / "runs").iterdir()
            assert not (folder / "replay.dat").exists()
            assert json.loads((folder / "meta.json").read_text())["status"] == "failed"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert run("dqn_atari", small_disk / "runs", QUICK) == undisturbed


def test_a_failed_reservation_leaves_no_blocks_and_keeps_good_rows(tmp_path, monkeypatch):
    path = tmp_path / "replay.dat"

    def fallocate(descriptor, start, size):  # as ext4: what fitted stays
        os.ftruncate(descriptor, max(size // 2, os.fstat(descriptor).st_size))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    buffer = fill(tmp_path / "good.dat")
    good = buffer.path.read_bytes()
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(
        runlog.UserError, match=r"cannot write .*replay.dat, which takes 1 MB \(No space left"
    ):
        fill(path)
    assert not path.exists()
    with pytest.raises(runlog.UserError, match="cannot write"):
        reopen(buffer.path, 60, buffer.checksum())
    assert buffer.path.read_bytes() == good


@pytest.mark.parametrize("reason", [None, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_without_posix_fallocate_zeros_reserve_the_space(reason, tmp_path, monkeypatch):
    def fallocate(descriptor, start, size):
        raise OSError(reason, os.strerror(reason))

    if reason is None:  # macOS
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr(runlog.disk, "PIECE", 100_000)
    path = tmp_path / "replay.dat"
    buffer = fill(path)
    size = buffer.num_rows * dqn_atari.ROW.itemsize
    assert path.stat().st_size == size and path.stat().st_blocks * 512 >= size
    good = path.read_bytes()
    assert len(good) % 100_000 and any(good[: 60 * dqn_atari.ROW.itemsize])
    assert not any(good[60 * dqn_atari.ROW.itemsize :])
    reopen(path, 60, buffer.checksum())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # it is over in the middle of a piece
    resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, hard))
    try:
        with pytest.raises(
            runlog.UserError, match=r"other.dat, which takes 1 MB \(File too large\)"
        ):
            fill(tmp_path / "other.dat")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "other.dat").exists()


def test_space_counts_the_blocks_that_are_there_and_a_margin(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "replay.dat"
    asked = []

    def disk_usage(folder):
        asked.append(folder)
        return shutil._ntuple_diskusage(10**9, 0, 104_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    disk.check_space(path, 99_000_000, "do this")
    with pytest.raises(
        runlog.UserError, match="needs 105 MB of disk, of which 104 MB are free; do this"
    ):
        disk.check_space(path, 100_000_000, "do this")
    assert {*asked} == {tmp_path} and os.listdir(tmp_path) == []
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(4_000_000))
    disk.check_space(path, 100_000_000, "do this")


def test_the_end_of_a_run_needs_no_replay_to_delete(tmp_path, monkeypatch):
    fake(monkeypatch)
    finish = runlog.Run.finish

    def finish_and_lose(run, *status, **extra):
        finish(run, *status, **extra)
        (run.folder / "replay.dat").unlink()

    monkeypatch.setattr(runlog.Run, "finish", finish_and_lose)
    run("dqn_atari", tmp_path, QUICK)
    (meta,) = tmp_path.glob("*/meta.json")
    assert json.loads(meta.read_text())["status"] == "finished"
