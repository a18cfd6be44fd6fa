"""A batch of seeds: rows, reports, checkpoints, divergence.

`pytest -q tests/test_batch.py` (a few seconds).
"""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch

import runlog
from reports import NetworkReport
from runlog import compiler, seeding


@dataclasses.dataclass
class Args:
    seed: int = 1
    num_seeds: int = runlog.option(1)
    env_id: str = "toy"
    activation: str = "relu"
    device: str = runlog.option("cpu")
    runs_dir: str = runlog.option("runs")
    fresh: bool = runlog.option(False)
    tensorboard: bool = runlog.option(False)
    track: bool = runlog.option(False)
    wandb_project: str = runlog.option("toys")
    wandb_entity: str | None = runlog.option(None)
    checkpoint_frequency: int = runlog.option(10)
    checkpoint_minutes: float = runlog.option(0.0)


class Walk(torch.nn.Module):
    """The shape of an agent: a parameter with a seed axis, a step count that the seeds share."""

    def __init__(self, num_seeds: int):
        super().__init__()
        self.register_buffer("position", torch.zeros(num_seeds, 3))
        self.register_buffer("count", torch.tensor(0))


def train(args: Args, total: int = 40, diverging: int | None = None) -> None:
    """A random walk whose every row depends on the walk,
    the generators and all transitions so far."""
    with runlog.open_batches(runlog.seed_runs(args, "walk"), args) as batches:
        for batch in batches:
            train_batch(args, batch, total, diverging)


def train_batch(args: Args, batch: runlog.Batch, total: int, diverging: int | None) -> None:
    walk = Walk(len(batch.seeds))
    generators = {"act": seeding.make_generators(batch.seeds, "act")}
    rows = torch.zeros(len(batch.seeds), 0, 3)
    best = np.zeros(len(batch.seeds))
    episodes = [{"number": 0, "actions": []} for _ in batch.seeds]
    state = batch.load()
    if state:
        runlog.restore_module(walk, state["walk"])
        seeding.set_states(generators, state["generators"])
        best = np.array(state["best"])
        episodes = state["episode"]
        assert state["name"] == ["walk"] * len(batch.seeds)
        rows = torch.stack([transitions["rows"] for transitions in batch.load_transitions()])
    saved_rows = rows.shape[1]
    for step in range(batch.start + 1, total + 1):
        moves = seeding.normals(generators["act"], 3)
        walk.position += moves
        walk.count += 1
        rows = torch.cat([rows, moves.unsqueeze(1)], 1)
        best = np.maximum(best, walk.position[:, 0].numpy())
        for seed, episode in zip(batch.seeds, episodes):
            episode["number"] += seed
        loss = walk.position.square().sum(-1)
        if diverging is not None and step >= 15:
            loss = torch.where(torch.tensor(batch.seeds) == diverging, torch.nan, loss)
        batch.note_losses(step, {"loss": loss})
        batch.log(step, {"losses/a": loss, "charts/best": best}, skip_diverged=True)
        batch.log(
            step, {"charts/sum": rows.sum((1, 2)), "charts/number": [e["number"] for e in episodes]}
        )
        batch.log(step, {"charts/count": walk.count, "perf/sps": 3.0})
        if batch.save_is_due(step, step == total):
            state = {
                "walk": walk.state_dict(),
                "generators": seeding.get_states(generators),
                "best": best,
                "episode": episodes,
                "name": "walk",
            }
            batch.save(step, state, {"rows": rows[:, saved_rows:]})
            saved_rows = rows.shape[1]
    batch.finish(keep_replay=True, note="the end")


def rows_of(folder) -> dict[str, list[str]]:
    found = {}
    for path in sorted(folder.glob("*/scalars.csv")):
        seed = path.parent.name.split("__")[3]
        found[seed] = [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]
    return found


def metas(folder) -> dict[str, dict]:
    paths = sorted(folder.glob("*/meta.json"))
    return {path.parent.name.split("__")[3]: json.loads(path.read_text()) for path in paths}


def stopping_at(monkeypatch, step: int):
    """The next training gets a SIGTERM in this step."""
    log_rows = runlog.Batch.log_rows

    def log_and_signal(batch, at, rows, skip_diverged=False):
        log_rows(batch, at, rows, skip_diverged)
        if at == step and "perf/sps" in rows[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runlog.Batch, "log_rows", log_and_signal)


def test_seeds_alone_and_together_write_the_same_rows_and_files(tmp_path):
    train(Args(num_seeds=3, runs_dir=str(tmp_path / "together")))
    for seed in (1, 2, 3):
        train(Args(seed=seed, runs_dir=str(tmp_path / "alone")))
    together = rows_of(tmp_path / "together")
    assert together == rows_of(tmp_path / "alone") and list(together) == ["s1", "s2", "s3"]
    assert together["s1"][1].startswith("1,losses/a,")
    assert together["s2"][-1] == "40,charts/count,40.0"
    for path in (tmp_path / "together").glob("*/checkpoint.pt"):
        alone = runlog.storage.load_pt(tmp_path / "alone" / path.parent.name / "checkpoint.pt")
        state = runlog.storage.load_pt(path)["state"]
        assert str(state) == str(alone["state"])
        assert state["walk"]["position"].shape == (3,) and state["walk"]["count"] == 40
        assert state["generators"]["act"].dim() == 1
        assert state["name"] == "walk"
        assert state["diverged"] == 0


@pytest.mark.parametrize("first", ["alone", "together"])
def test_seeds_change_between_alone_and_together(tmp_path, monkeypatch, first):
    """Seeds that started alone continue together, and the other way round."""
    train(Args(num_seeds=2, runs_dir=str(tmp_path / "whole")))
    folder = str(tmp_path / "parts")
    alone = [Args(seed=1, runs_dir=folder), Args(seed=2, runs_dir=folder)]
    together = [Args(num_seeds=2, runs_dir=folder)]
    begin, go_on = (alone, together) if first == "alone" else (together, alone)
    for args in begin:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            stopping_at(patch, 17)
            train(args)
        assert stop.value.code == 143
    assert [meta["status"] for meta in metas(tmp_path / "parts").values()] == ["interrupted"] * 2
    for args in go_on:
        train(args)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_a_diverged_seed_is_left_out_and_the_others_continue(tmp_path, capsys):
    train(Args(num_seeds=3, runs_dir=str(tmp_path / "calm")))
    train(Args(num_seeds=3, runs_dir=str(tmp_path)), diverging=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: seed 2 has diverged at step 15: loss is not finite"
    found = metas(tmp_path)
    assert [meta["status"] for meta in found.values()] == ["finished", "diverged", "finished"]
    assert found["s2"]["step"] == 15
    assert found["s1"]["note"] == "the end"
    assert found["s1"]["replay"] == "kept"
    rows = rows_of(tmp_path)
    undisturbed = rows_of(tmp_path / "calm")
    assert rows["s1"] == undisturbed["s1"] and rows["s3"] == undisturbed["s3"]
    assert [row for row in rows["s2"] if "losses/a" in row] == [
        row for row in undisturbed["s2"] if "losses/a" in row
    ][:14]
    assert [row for row in rows["s2"] if "sum" in row] == [
        row for row in undisturbed["s2"] if "sum" in row
    ]


def test_a_diverged_seed_stays_diverged_on_resume(tmp_path, monkeypatch):
    args = Args(num_seeds=2, runs_dir=str(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stopping_at(patch, 25)
        train(args, diverging=2)
    train(args)
    assert metas(tmp_path)["s2"]["status"] == "diverged" and metas(tmp_path)["s2"]["step"] == 15


def test_wrong_numbers_of_values_name_their_key(tmp_path):
    args = Args(num_seeds=2, runs_dir=str(tmp_path))
    with runlog.open_batches(runlog.seed_runs(args, "walk"), args) as batches:
        batch = next(batches)
        assert batch.load() is None and batch.start == 0
        with pytest.raises(ValueError, match="losses/a: 3 values for 2 seeds"):
            batch.log(1, {"losses/a": torch.zeros(3)})
        with pytest.raises(ValueError, match=r"walk\['x'\]: 1 values for 2 seeds"):
            batch.save(1, {"walk": {"x": torch.zeros(1, 5)}})
        with pytest.raises(ValueError, match="a report on 3 seeds for 2 runs"):
            batch.log_report(1, "network/q", {"srank": torch.zeros(3)})


def test_reports_curves_and_settings(tmp_path):
    args = Args(num_seeds=2, runs_dir=str(tmp_path))
    with runlog.open_batches(runlog.seed_runs(args, "walk"), args) as batches:
        for batch in batches:
            batch.load()
            report = NetworkReport({"fc1/srank": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
            batch.log_report(1, "network/qf", report)
            batch.note_losses(2, {"loss": torch.tensor([1.0, torch.inf])})
            batch.log_report(
                2, "network/actor", {"ntk_srank": torch.tensor([5.0, 6.0])}, skip_diverged=True
            )
            batch.log_curve(
                2, "fit", [0.0, 1.0, 3.0], torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
            )
            assert batch.settings("env_id") == ["toy", "toy"] and batch.seeds == [1, 2]
            drawn = []  # `append` returns None: no pictures
            batch.draw(2, drawn.append)
            assert drawn == batch.folders
            batch.finish()
    first, second = rows_of(tmp_path).values()
    assert first[1:] == [
        "1,network/qf1/fc1/srank,1.0",
        "1,network/qf2/fc1/srank,2.0",
        "2,network/actor/ntk_srank,5.0",
    ]
    assert second[1:] == ["1,network/qf1/fc1/srank,3.0", "1,network/qf2/fc1/srank,4.0"]
    curves = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/curves.jsonl"))]
    assert [curve["y"] for curve in curves] == [[1, 2, 3], [4, 5, 6]]
    assert curves[0]["x"] == [
        0,
        1,
        3,
    ]


def test_one_seed_without_a_seed_axis(tmp_path, capsys):
    args = Args(runs_dir=str(tmp_path))
    weights = {"weight": torch.arange(6.0).reshape(2, 3), "steps": [1, 2, 3]}
    for attempt in range(2):
        with runlog.open_batches(runlog.seed_runs(args, "walk"), args, seed_axis=False) as batches:
            for batch in batches:
                state = batch.load()
                if attempt == 0:
                    assert state is None
                    batch.log(1, {"charts/return": 3.0, "losses/q": torch.tensor(0.5)})
                    batch.save(1, {"network": weights, "count": 7})
                    continue
                assert state["count"] == 7
                assert torch.equal(state["network"]["weight"], weights["weight"])
                assert state["network"]["steps"] == [1, 2, 3] and batch.start == 1
                batch.log_report(2, "network/q", {"srank": torch.tensor(4.0)})
                batch.note_losses(3, {"td_loss": float("nan")})
                assert batch.diverged() == [3]
                batch.finish()
    assert rows_of(tmp_path)["s1"][1:] == [
        "1,charts/return,3.0",
        "1,losses/q,0.5",
        "2,network/q/srank,4.0",
    ]
    assert metas(tmp_path)["s1"]["status"] == "diverged"
    assert (
        capsys.readouterr().err == "warning: seed 1 has diverged at step 3: td_loss is not finite\n"
    )


# ---- opening -------------------------------------------------------------------------------------


@dataclasses.dataclass
class CompilingArgs(Args):
    compile: bool = runlog.option(True)
    async_envs: bool = runlog.option(False)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, ["cpu"]),
        ({"compile": False}, []),
        ({"async_envs": True}, []),  # its workers are forked, which must not happen meanwhile
    ],
)
def test_a_compiled_run_probes_vector_instructions_early(flags, expected, monkeypatch, tmp_path):
    began = []
    monkeypatch.setattr(compiler, "probe_early", lambda device: began.append(str(device)))
    args = CompilingArgs(**flags, runs_dir=str(tmp_path))
    with runlog.open_batches(runlog.seed_runs(args, "walk"), args):
        assert began == expected
