"""A run's files, lock, checkpoints and resume. `pytest -q tests/test_runlog.py` (about 20 s)."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import runlog
from runlog import Run, UserError, hardware, identity, opening, seeding

CONFIG = {"env_id": "toy", "seed": 1, "rational": {"degrees": (3, 2)}, "device": "cpu"}
NAME = identity.run_name("toy", "script", "relu", 1, identity.config_hash(CONFIG, ["device"]))


def new_run(root, **kwargs):
    return Run(root, NAME, kwargs.pop("config", CONFIG), exclude=["device"], **kwargs)


def train(root, total=400, every=20, name=NAME, limit=None):
    """A toy whose every row depends on its generator,
    on its parameter and on all transitions so far."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run = Run(root, name, CONFIG, exclude=["device"]).open(tensorboard=False)
    step, state, replay = run.load_checkpoint()
    generator = seeding.make_generator(1, "toy")
    weight = torch.zeros(3)
    rows = torch.zeros(0, 3) if replay is None else replay["obs"]
    if state is not None:
        weight = state["weight"]
        generator.set_state(state["generator"])
    saved = len(rows)
    while step < total:
        step += 1
        rows = torch.cat([rows, torch.randn(1, 3, generator=generator)])
        weight = 0.9 * weight + rows[-50:].sum(0)
        run.log(
            step,
            {"losses/a": weight[0], "charts/b": weight.norm().item(), "perf/sps": random.random()},
        )
        run.log_histogram(step, "network/h", [step, 1], [0, 1, 2])
        if step % every == 0:
            state = {"weight": weight, "generator": generator.get_state(), "rng": 2**127 + 1}
            run.save_checkpoint(step, state, {"obs": rows[saved:]}, keep_transitions=50)
            rows = rows[-50:]
            saved = len(rows)
    run.finish()


def in_child(function, *args):
    child = multiprocessing.get_context("fork").Process(target=function, args=args)
    child.start()
    return child


def content(root, name=NAME):
    rows = [
        line.rsplit(",", 1)[0] for line in (root / name / "scalars.csv").read_text().splitlines()
    ]
    return rows, (root / name / "histograms.jsonl").read_text()


def interrupted(tmp_path):
    """A run with checkpoints at 40 and 20 and rows after them."""
    run = new_run(tmp_path).open(tensorboard=False)
    for step in range(1, 46):
        run.log(step, {"a": step / 3})
        if step % 20 == 0:
            rows = {
                "obs": torch.arange(step - 20.0, step),
                "done": torch.zeros(20, 2, dtype=torch.bool),
            }
            run.save_checkpoint(
                step, {"weight": torch.full((1000,), float(step)), "n": [step, None]}, rows
            )
    run.close()
    return new_run(tmp_path)


def test_lock_dies_with_its_process(tmp_path):
    def hold():
        new_run(tmp_path).open(tensorboard=False)
        time.sleep(60)

    child = in_child(hold)
    while not list(tmp_path.glob("*/meta.json")):
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"{NAME} is in use by process {child.pid}"):
        new_run(tmp_path).open()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert new_run(tmp_path).status() == "interrupted"
    assert new_run(tmp_path).open(tensorboard=False).close() is None


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    def hold():
        run = new_run(tmp_path).open(tensorboard=False)
        worker = in_child(time.sleep, 60)
        (tmp_path / "worker.tmp").write_text(str(worker.pid))
        (tmp_path / "worker.tmp").rename(tmp_path / "worker")
        run.log(1, {"a": 1.0})  # the parent still holds it
        time.sleep(60)

    child = in_child(hold)
    while not (tmp_path / "worker").exists():
        time.sleep(0.01)
    worker = int((tmp_path / "worker").read_text())
    # forking has not freed it
    with pytest.raises(UserError, match=f"in use by process {child.pid}"):
        new_run(tmp_path).open()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    os.kill(worker, 0)  # alive
    new_run(tmp_path).open(tensorboard=False).close()
    os.kill(worker, signal.SIGKILL)


def test_scalars_round_trip_and_resume_cuts_later_rows(tmp_path):
    values = [0.1, 1 / 3, 1e-300, float("inf"), float("nan"), -0.0, 5]
    run = new_run(tmp_path).open(tensorboard=False)
    for step, value in enumerate(values):
        run.log(step, {"a/b": torch.tensor(value, dtype=torch.float64), "perf/x": 1.0})
    run.save_checkpoint(6, {})
    run.log(7, {"late": 1.0})
    run.close()
    assert "late" in (run.folder / "scalars.csv").read_text()
    run = new_run(tmp_path).open(tensorboard=False)
    with pytest.raises(RuntimeError, match="load_checkpoint"):
        run.log(7, {"a": 0.0})
    run.load_checkpoint()
    run.close()
    rows = (run.folder / "scalars.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [[str(i), "a/b"] for i in range(7)]
    assert [repr(float(row.split(",")[2])) for row in rows] == [
        repr(float(value)) for value in values
    ]
    assert (run.folder / "perf.csv").read_text().count("perf/x") == 7
    times = [float(row.split(",")[3]) for row in rows]
    assert times == sorted(times)


def test_killed_at_random_moments_ends_with_the_same_rows(tmp_path):
    train(tmp_path / "calm", 1500, 5)
    rng = random.Random(0)
    kills = 0
    while True:
        child = in_child(train, tmp_path / "killed", 1500, 5)
        child.join(None if kills == 20 else rng.uniform(0.02, 0.15))
        if child.exitcode is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    assert child.exitcode == 0 and kills > 5, (child.exitcode, kills)
    assert content(tmp_path / "killed") == content(tmp_path / "calm")
    assert new_run(tmp_path / "killed").status() == "finished"
    meta = json.loads((tmp_path / "killed" / NAME / "meta.json").read_text())
    assert len(meta["sessions"]) > 1
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["peak_memory_mb"] > 10


def test_replay_files_hold_only_new_transitions_and_old_ones_are_deleted(tmp_path):
    train(tmp_path)
    run = new_run(tmp_path)
    assert run.checkpoint_steps() == [400, 380]
    names = sorted(path.name for path in (run.folder / "replay").iterdir())
    assert names == [f"{a:010d}-{a + 20:010d}.pt" for a in (320, 340, 360, 380)]
    step, state, replay = run.load_checkpoint(380)  # not open: nothing changes
    assert (step, len(replay["obs"]), state["rng"]) == (
        380,
        50,
        2**127 + 1,
    )
    assert run.checkpoint_steps() == [400, 380]
    assert torch.equal(replay["obs"][20:], run.load_checkpoint()[2]["obs"][:30])
    run.drop_transitions()
    assert run.load_checkpoint()[::2] == (400, None)


def test_a_view_is_saved_without_its_base(tmp_path):
    run = new_run(tmp_path).open(tensorboard=False)
    run.save_checkpoint(
        1, {"one_seed": torch.zeros(1000, 1000)[3]}, {"obs": torch.zeros(1_000_000)[:5]}
    )
    assert (run.folder / "checkpoint.pt").stat().st_size < 20_000
    with pytest.raises(TypeError, match=r"state\['x'\]\[0\] is a set"):
        run.save_checkpoint(2, {"x": [set()]})
    run.close()


def test_a_flipped_byte_is_found_or_harmless(tmp_path, capsys):
    run = interrupted(tmp_path)
    path = run.folder / "checkpoint.pt"
    rng = random.Random(1)
    good = path.read_bytes()
    found = 0
    for _ in range(60):
        position = rng.randrange(len(good))
        path.write_bytes(
            good[:position]
            + bytes([good[position] ^ (1 << rng.randrange(8))])
            + good[position + 1 :]
        )
        step, state, replay = new_run(tmp_path).load_checkpoint()
        found += step == 20
        assert torch.equal(state["weight"], torch.full((1000,), float(step)))
        assert state["n"] == [
            step,
            None,
        ]
        assert torch.equal(replay["obs"], torch.arange(float(step)))
    assert found > 30 and "warning: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "chunk missing", "chunk damaged", "short scalars"]
)
def test_falls_back_to_the_previous_checkpoint(tmp_path, capsys, damage):
    run = interrupted(tmp_path)
    target = run.folder / (
        "replay/0000000020-0000000040.pt" if "chunk" in damage else "checkpoint.pt"
    )
    if damage == "chunk missing":
        target.unlink()
    elif damage == "short scalars":
        os.truncate(run.folder / "scalars.csv", 700)
    else:
        os.truncate(target, 0 if damage == "empty" else target.stat().st_size // 2)
    run.open(tensorboard=False)
    # it is the newest now
    assert run.load_checkpoint()[0] == 20 and not (run.folder / "checkpoint.prev.pt").exists()
    run.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("warning: ")
    assert "using checkpoint.prev.pt, step 20" in err
    assert content(tmp_path)[0][-1] == f"20,a,{20 / 3!r}"
    assert new_run(tmp_path).checkpoint_steps() == [20]


def test_both_checkpoints_damaged_or_of_another_configuration(tmp_path):
    run = interrupted(tmp_path)
    other = Run(tmp_path, NAME, {**CONFIG, "seed": 2}, exclude=["device"])
    with pytest.raises(UserError, match="another configuration"):
        other.load_checkpoint()
    with pytest.raises(
        UserError, match=r"another configuration \(seed: 1 there, 2 here\).*--fresh"
    ):
        other.open()
    before = (run.folder / "scalars.csv").read_bytes()
    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        os.truncate(run.folder / name, 100)
    with pytest.raises(UserError, match=r"checkpoint\.pt.*checkpoint\.prev\.pt.*--fresh"):
        new_run(tmp_path).load_checkpoint()
    assert (run.folder / "scalars.csv").read_bytes() == before
    with pytest.raises(UserError, match="no usable"):
        opening.group_by_step([new_run(tmp_path)])


def test_every_session_records_its_code_and_a_change_is_reported(tmp_path, monkeypatch, capsys):
    machine = hardware.machine()
    for commit, argv in (("a" * 40, ["one"]), ("a" * 40, ["two"]), ("b" * 40, ["three"])):
        changed = {**machine, "git": {"commit": commit, "dirty": False}, "argv": argv}
        monkeypatch.setattr(runlog.hardware, "machine", lambda changed=changed: changed)
        run = new_run(tmp_path).open(tensorboard=False)
        run.close()
        err = capsys.readouterr().err
        assert ("started with the code of" in err and "bbb" in err) is (argv == ["three"]), err
    assert f"the code of commit {'a' * 10}, and continues with commit {'b' * 10}\n" in err
    assert runlog.meta._named_commit({"commit": "c" * 40, "dirty": True}).endswith(" with changes")
    assert runlog.meta._named_commit({"commit": None, "dirty": None}) == "no known commit"
    meta = json.loads((run.folder / "meta.json").read_text())
    assert [session["git"]["commit"][0] for session in meta["sessions"]] == ["a", "a", "b"]
    assert [session["argv"] for session in meta["sessions"]] == [["one"], ["two"], ["three"]]
    assert all(session["versions"] == machine["versions"] for session in meta["sessions"])


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("hardware", {"cpu": "Other"}, "with {cpu}, and continues with Other; its results may"),
        ("hardware", {"gpu": "H100"}, "with no GPU, and continues with H100; its results may"),
        ("versions", {"torch": "9.0"}, "with torch {torch}, and continues with torch 9.0; its"),
        ("hardware", {"cores": 512, "system": "Other"}, None),
    ],
)
def test_a_change_of_the_machine_is_reported_and_recorded(
    section, changes, said, tmp_path, monkeypatch, capsys
):
    machine = hardware.machine()
    machine = machine | {"hardware": machine["hardware"] | {"gpu": None}}
    other = machine | {section: machine[section] | changes}

    def resume_on(current: dict) -> str:
        """What a session there says."""
        monkeypatch.setattr(runlog.hardware, "machine", lambda: current)
        run = new_run(tmp_path).open(tensorboard=False)
        run.load_checkpoint()
        run.close()
        return capsys.readouterr().err

    monkeypatch.setattr(runlog.hardware, "machine", lambda: machine)
    run = interrupted(tmp_path)
    assert "last ran" not in resume_on(machine)
    names = {"cpu": machine["hardware"]["cpu"], "torch": machine["versions"]["torch"]}
    err = resume_on(other)
    if said is None:
        assert "last ran" not in err
    else:
        assert f"{run.folder} last ran {said.format(**names)}" in err
    assert ("last ran" in resume_on(machine)) is (said is not None)  # and back again
    sessions = json.loads((run.folder / "meta.json").read_text())["sessions"]
    values = [machine, machine, other, machine]
    assert [session[section] for session in sessions] == [value[section] for value in values]


def test_a_change_of_the_machine_before_the_first_checkpoint_does_not_matter(
    tmp_path, monkeypatch, capsys
):
    machine = hardware.machine()
    other = machine | {"hardware": machine["hardware"] | {"cpu": "Other"}}
    for current in (machine, other):
        monkeypatch.setattr(runlog.hardware, "machine", lambda current=current: current)
        run = new_run(tmp_path).open(tensorboard=False)
        run.load_checkpoint()
        run.log(1, {"a": 1.0})
        run.close()
    assert "last ran" not in capsys.readouterr().err


def test_the_machine_of_sessions_that_did_not_record_it_is_kept(tmp_path, monkeypatch):
    machine = hardware.machine()
    run = interrupted(tmp_path)
    path = run.folder / "meta.json"
    meta = json.loads(path.read_text())
    del meta["sessions"][0]["hardware"]  # as older versions wrote it
    path.write_text(json.dumps(meta))
    other = machine | {"hardware": machine["hardware"] | {"cpu": "Other"}}
    monkeypatch.setattr(runlog.hardware, "machine", lambda: other)
    new_run(tmp_path).open(tensorboard=False).close()
    sessions = json.loads(path.read_text())["sessions"]
    assert [session["hardware"]["cpu"] for session in sessions] == [
        machine["hardware"]["cpu"],
        "Other",
    ]


def test_the_commit_is_read_without_locking_the_repository(tmp_path, monkeypatch):
    """A run that is killed while reading it leaves no .git/index.lock."""
    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    assert hardware._git() == {"commit": None, "dirty": None}  # no repository
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    file = tmp_path / "file"
    file.write_text("one")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    os.utime(file, (1, 1))  # git would note in its index that the content is the same
    index = tmp_path / ".git/index"
    before = index.read_bytes()
    found = hardware._git()
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert found == {"commit": head.stdout.strip(), "dirty": False}
    assert index.read_bytes() == before
    (tmp_path / "untracked").write_text("")
    assert hardware._git()["dirty"] is False
    file.write_text("two")
    assert hardware._git()["dirty"] is True


def test_changes_to_code_that_git_does_not_track_are_reported(tmp_path, monkeypatch, capsys):
    machine = hardware.machine()
    for digest, is_reported in (("a", False), ("a", False), ("b", True)):
        changed = machine | {"untracked_code": {"mine.py": digest}}
        monkeypatch.setattr(runlog.hardware, "machine", lambda changed=changed: changed)
        new_run(tmp_path).open(tensorboard=False).close()
        err = capsys.readouterr().err
        warning = "started with another version of mine.py, which git does not track"
        assert (warning in err) is is_reported


def test_status_finish_fail_fresh(tmp_path):
    run = new_run(tmp_path)
    assert run.status() == "new" and not run.folder.exists()
    run.open(tensorboard=False).fail("boom")
    assert new_run(tmp_path).status() == "interrupted"
    # device is no identity
    run = new_run(tmp_path, config={**CONFIG, "device": "cuda"}).open(tensorboard=False)
    run.log(5, {"a": 1.0})
    run.finish("diverged", step=5)
    meta = json.loads((run.folder / "meta.json").read_text())
    assert run.status() == "diverged"
    assert meta["step"] == 5
    assert len(meta["sessions"]) == 2
    with pytest.raises(UserError, match="diverged already"):
        new_run(tmp_path).open()
    assert new_run(tmp_path, fresh=True).status() == "new"
    (run.folder / "plots").mkdir()
    run = new_run(tmp_path, fresh=True).open(tensorboard=False)
    run.close()
    assert run.status() == "interrupted" and not (run.folder / "plots").exists()
    assert (run.folder / "scalars.csv").read_text() == "step,key,value,wall_time\n"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        new_run(tmp_path / "file").open()


# bytes: meta.json, then rows, then a checkpoint
@pytest.mark.parametrize("limit", [400, 3_000, 5_000, 8_000])
def test_a_full_disk_is_reported_in_one_line_and_the_run_resumes(tmp_path, limit):
    code = "import sys; sys.path[:0] = ['.', 'tests']; import pathlib, runlog, test_runlog as t\n"
    code += (
        f"with runlog.exit_on_user_error(): t.train(pathlib.Path({str(tmp_path)!r}), limit={limit})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: cannot write")
        and done.stderr.count("\n") == 1
    ), done
    assert "File too large" in done.stderr and not list(tmp_path.rglob("*.tmp"))
    train(tmp_path)
    train(tmp_path / "calm")
    assert content(tmp_path) == content(tmp_path / "calm")


def test_group_by_step(tmp_path):
    def at(name, *steps):
        run = Run(tmp_path, name, CONFIG).open(tensorboard=False)
        for step in steps:
            run.save_checkpoint(step, {})
        run.close()
        return Run(tmp_path, name, CONFIG)

    a = at("a", 10, 20)
    b = at("b", 10, 20, 30)
    c = at("c", 20, 30)
    d = at("d", 90)
    e = at("e")
    assert opening.group_by_step([a, a]) == [(20, [a])]
    assert opening.group_by_step([a, b, c]) == [(20, [a, b, c])]
    assert opening.group_by_step([b, c]) == [(30, [b, c])]
    assert opening.group_by_step([d, a, e, b]) == [(20, [a, b]), (90, [d]), (0, [e])]
    assert opening.group_by_step([e, Run(tmp_path, "f", CONFIG)])[0][0] == 0
    assert opening.group_by_step([Run(tmp_path, "a", CONFIG, fresh=True)])[0][0] == 0
    assert opening.group_by_step([]) == []
