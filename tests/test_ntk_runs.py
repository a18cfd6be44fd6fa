"""Ranks of the neural tangent kernel in the scripts: of which network, when, and that training does
not notice.

`pytest -q tests/test_ntk_runs.py` (about 20 s).
"""

import itertools

import pytest
import test_atari_runs
import torch
from test_sac_sequences import AB, command, run

import metrics
import runlog
import sac_continuous
from runlog import seeding


def test_ntk_ranks_match_the_networks_and_change_nothing(tmp_path):
    flags = f"{AB} --activation crational --num-seeds 2 --keep-replay --no-reset-replay"
    flags += " --ntk-samples 16"
    without = run(tmp_path / "a", flags)
    got = run(tmp_path / "b", f"{flags} --ntk-frequency 50")
    assert [{key: v for key, v in rows.items() if "ntk" not in key[1]} for rows in got] == without
    names = {"srank", "entropy_rank", "trace", "condition"}
    keys = {
        f"network/{network}/ntk_{name}"
        for network, name in itertools.product(("actor", "qf1", "qf2"), names)
    }
    args = runlog.parse_args(sac_continuous.Args, command("x", flags))
    for i, rows in enumerate(got):
        measured = {key: sorted(step for step, k in rows if k == key) for key in keys}
        assert all(steps == [20, 50, 100, 120] for steps in measured.values())
        # at step 20: untrained
        agent = sac_continuous.Agent(2, 1, args, [i + 1], torch.device("cpu"))
        (folder,) = (tmp_path / "b").glob(f"*__s{i + 1}__*")
        stored = runlog.storage.load_pt(min((folder / "replay").iterdir()))["transitions"]["rows"]
        index = torch.randint(20, (16,), generator=seeding.make_generator(i + 1, "ntk", 20))
        obs = stored[index, :2]
        actions = stored[index, 2:3]
        gradients = []  # of the second critic, a sample at a time
        for n in range(16):
            q = agent.qf(obs[None, n : n + 1], actions[None, n : n + 1])[0, 1, 0]
            parts = torch.autograd.grad(q, list(agent.qf.parameters()))
            gradients.append(torch.cat([part[0, 1].flatten() for part in parts]).double())
        kernel = torch.stack(gradients) @ torch.stack(gradients).mT
        assert rows[20, "network/qf2/ntk_trace"] == pytest.approx(kernel.trace().item(), rel=1e-4)
        fractions = torch.linalg.eigvalsh(kernel).clamp_min(0) / kernel.trace()
        entropy = -torch.xlogy(fractions, fractions).sum()
        assert rows[20, "network/qf2/ntk_entropy_rank"] == pytest.approx(
            entropy.exp().item(), rel=1e-3
        )


@pytest.mark.parametrize("script", test_atari_runs.TINY)
def test_atari_scripts_measure_q_or_the_value_and_train_the_same(script, tmp_path, monkeypatch):
    flags = "--metrics-frequency 0 --ntk-samples 8"
    seen = []
    rank = metrics.ntk_rank

    def recorded(network, inputs, **kwargs):
        with torch.no_grad():
            seen.append(
                (kwargs.get("output", lambda y: y)(network(*inputs)).shape, inputs[0].dtype)
            )
        return rank(network, inputs, **kwargs)

    monkeypatch.setattr(metrics, "ntk_rank", recorded)
    without = test_atari_runs.run(script, tmp_path / "a", f"{flags} --ntk-frequency 0")
    assert not seen
    got = test_atari_runs.run(script, tmp_path / "b", f"{flags} --ntk-frequency 160")
    assert [row for row in got if ",network/" not in row] == without
    # values; the game has 4 actions
    assert seen == 2 * [((8,) if script == "ppo_atari" else (8, 4), torch.uint8)]
    network = "agent" if script == "ppo_atari" else "q"
    found = {
        key: steps
        for key, steps in test_atari_runs.steps_of(got).items()
        if key.startswith("network/")
    }
    names = ("srank", "entropy_rank", "trace", "condition")
    assert found == {f"network/{network}/ntk_{name}": [160, 320] for name in names}
