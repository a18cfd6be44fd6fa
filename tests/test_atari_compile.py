"""PQN compiled, eager, and resumed across the two.

`pytest -q tests/test_atari_compile.py` (about 30 s, compiling).
"""

import contextlib
import json

import numpy as np
import pytest
import torch
from test_atari_runs import ALL, TINY, play_once

import pqn_atari
import runlog
from environments import atari
from environments.atari import GameStep


def test_compiled_and_eager_runs_agree_and_resume_each_other(tmp_path, monkeypatch):
    """80 steps of RAdam: the rectification, which is a branch in the eager one,
    begins with the sixth."""
    weights = {}
    # runs that stop half-way and resume otherwise, and one that is never interrupted
    sessions = [("compiled-first", "--compile", True), ("compiled-first", "--no-compile", False)]
    sessions += [
        ("eager-first", "--no-compile", True),
        ("eager-first", "--compile", False),
        ("eager", "", False),
    ]
    for name, flags, stops in sessions:
        argv = (
            f"{ALL} {TINY['pqn_atari']} --no-redo --activation tanh "
            f"--runs-dir {tmp_path / name} {flags}"
        )
        args = runlog.parse_args(pqn_atari.Args, argv.split())
        monkeypatch.setattr(pqn_atari, "make_games", SameGames)
        monkeypatch.setattr(atari, "desynchronise", play_once)
        with monkeypatch.context() as patch:
            if stops:
                patch.setattr(runlog.Run, "draw", stop_at(160))
            with pytest.raises(KeyboardInterrupt) if stops else contextlib.nullcontext():
                pqn_atari.main(args)
        (folder,) = (tmp_path / name).iterdir()
        weights[name] = torch.load(folder / "checkpoint.pt")["state"]["q_network"]
        recorded = json.loads((folder / "meta.json").read_text())["sessions"]
        assert [session.get("from_step", 0) for session in recorded] == (
            [0, 160] if not stops and name != "eager" else [0]
        )
    for name in ("compiled-first", "eager-first"):
        for key, value in weights["eager"].items():
            torch.testing.assert_close(weights[name][key], value, rtol=1e-3, atol=2e-5)


def stop_at(last: int):
    def draw(run, step, draw_plots):
        if step >= last:
            raise KeyboardInterrupt

    return draw


class SameGames:
    """Observations depend on nothing but the time; reward for action 1;
    a life is lost at every seventh step."""

    def __init__(self, args, num_envs):
        self.args = args
        self.num_envs = num_envs
        self.num_actions = 4

    def reset(self, seed, *keys):
        self.t = keys[1]
        return self.observe()

    def observe(self):
        return np.random.default_rng(self.t).integers(
            0, 256, (self.num_envs, 4, 84, 84), dtype=np.uint8
        )

    def step(self, actions):
        self.t += self.num_envs - 1  # of the training games: one more is the test game
        lost = np.full(self.num_envs, self.t % 14 == 0)
        rewards = np.where(actions == 1, 1.0, 0.0)
        return GameStep(self.observe(), rewards, lost, np.zeros_like(lost), self.observe(), [])
