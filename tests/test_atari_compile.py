"""PQN compiled, eager, and resumed across the two. `pytest -q tests/test_atari_compile.py` (about 30 s, compiling)."""

import numpy as np
import torch
from test_atari_runs import ALL, TINY

import pqn_atari
import runlog


def test_compiled_and_eager_runs_agree_and_resume_each_other(tmp_path, monkeypatch):
    """80 steps of RAdam: the rectification, which is a branch in the eager one, begins with the sixth."""
    weights = {}
    # a compiled run that stops half-way, and one eager resumption of it; and an eager run that is never interrupted
    for name, flags, stops in (("both", "--compile", True), ("both", "--no-compile", False), ("eager", "", False)):
        argv = f"{ALL} {TINY['pqn_atari']} --no-redo --activation tanh --runs-dir {tmp_path / name} {flags}"
        args = runlog.parse_args(pqn_atari.Args, argv.split())
        monkeypatch.setattr(pqn_atari, "AtariGames", SameGames)
        with monkeypatch.context() as patch:
            if stops:
                patch.setattr(runlog.Run, "draw", stop_at(160))
            try:
                pqn_atari.main(args)
            except KeyboardInterrupt:
                assert stops
        (folder,) = (tmp_path / name).iterdir()
        weights[name] = torch.load(folder / "checkpoint.pt")["state"]["q_network"]
    assert weights["both"].keys() == weights["eager"].keys()
    for key, value in weights["eager"].items():
        torch.testing.assert_close(weights["both"][key], value, rtol=1e-3, atol=2e-5)


def stop_at(last: int):
    def draw(run, step):
        if step >= last:
            raise KeyboardInterrupt

    return draw


class SameGames:
    """Observations depend on nothing but the time; reward for action 1; a life is lost at every seventh step."""

    def __init__(self, args, num_envs):
        self.num_envs, self.num_actions = num_envs, 4

    def reset(self, seed, *keys):
        self.t = keys[1]
        return self.observe()

    def observe(self):
        return np.random.default_rng(self.t).integers(0, 256, (self.num_envs, 4, 84, 84), dtype=np.uint8)

    def step(self, actions):
        self.t += self.num_envs - 1  # of the training games: one more is the test game
        lost = np.full(self.num_envs, self.t % 14 == 0)
        return self.observe(), (actions == 1) * 1.0, lost, np.zeros_like(lost), self.observe(), []
