"""What --evaluate of the Atari scripts measures.

`pytest -q tests/test_atari_evaluate.py` (about 15 s).
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from test_atari_runs import ALL, MODULES, TINY, short_games  # noqa: F401  (a fixture)

import metrics
import reports
import runlog
from environments import atari


@pytest.mark.usefixtures("short_games")
@pytest.mark.parametrize("script", TINY)
def test_a_finished_run_is_measured_again_on_what_it_sees(script, tmp_path, monkeypatch):
    module = MODULES[script]
    argv = f"{ALL} {TINY[script]} --activation tanh*silu --runs-dir {tmp_path}"
    args = runlog.parse_args(module.Args, argv.replace("--analyse", "").split())
    args = dataclasses.replace(args, metrics_samples=4_096)  # everything observed
    module.main(args)
    (folder,) = tmp_path.iterdir()
    trained = (folder / "scalars.csv").read_text()
    seen = []
    play = atari.play_games

    def watched(make_games, policy, *rest):
        def seeing_policy(obs):
            seen.append(obs.copy())
            return policy(obs)

        return play(make_games, seeing_policy, *rest)

    monkeypatch.setattr(atari, "play_games", watched)
    files = []
    # does not change the run's name
    for flags in ({}, {"analyse": True} if script == "dqn_atari" else {}):
        module.main(dataclasses.replace(args, evaluate=True, **flags))
        again = folder / f"evaluation-{args.total_timesteps}"
        files.append(
            [line.rsplit(",", 1)[0] for line in (again / "scalars.csv").read_text().splitlines()]
        )
    assert files[0] == files[1] and (folder / "scalars.csv").read_text() == trained
    assert json.loads((again / "meta.json").read_text())["status"] == "finished"
    assert (again / "plots" / "kde.png").stat().st_size > 10_000
    rows = {key: float(value) for _, key, value in (line.split(",") for line in files[0][1:])}
    network = (module.Agent if script == "ppo_atari" else module.QNetwork)(4, args)
    name = "agent" if script == "ppo_atari" else "q"
    network.load_state_dict(
        torch.load(folder / "checkpoint.pt")["state"]["agent" if name == "agent" else "q_network"]
    )
    obs = torch.from_numpy(np.concatenate(seen[: len(seen) // 2]))
    with torch.no_grad():
        x = network.conv3(network.conv2(network.conv1(obs / 255.0))).flatten(1)
        z = [branch(x) for branch in network.fc.branches]
        hidden = network.fc(x).numpy().astype(np.float64)
    assert np.allclose(hidden, (z[0] * z[1]).numpy(), atol=1e-6)
    assert len(hidden) <= args.metrics_samples
    singular = np.cumsum(np.linalg.svd(hidden, compute_uv=False))
    assert rows[f"network/{name}/fc1/srank"] == 1 + np.argmax(singular >= 0.99 * singular[-1])
    weights = np.concatenate([p.detach().numpy().ravel() for p in network.fc.parameters()])
    assert rows[f"network/{name}/fc1/weight_norm"] == pytest.approx(
        np.linalg.norm(weights), rel=1e-5
    )
    assert {f"network/{name}/fc1/branch{k}_dead_share" for k in (0, 1)} <= rows.keys()
    if script == "dqn_atari":  # dead, live and the bias make up Q
        with torch.no_grad():
            mean = network(obs).mean().item()
        assert sum(rows[f"q_split/{part}"] for part in ("dead", "live", "bias")) == pytest.approx(
            mean, abs=1e-5
        )


def test_a_reservoir_holds_every_row_with_the_same_probability():
    counts = np.zeros(40)
    stream = torch.arange(40).unsqueeze(1)
    for seed in range(3_000):
        reservoir = metrics.Reservoir(10, seed)
        for first in range(0, 40, 8):
            reservoir.add(stream[first : first + 8])
        sample = reservoir.sample().flatten().tolist()
        assert len(sample) == len({*sample}) == 10
        counts[sample] += 1
    statistic = ((counts - 750) ** 2 / 750).sum()
    # rows of one draw repel each other: less than that of independent ones
    assert statistic < chi2.ppf(0.9999, 39)
    few = metrics.Reservoir(10, 0)
    few.add(batch := stream[:3].clone())
    batch.zero_()
    assert few.sample().flatten().tolist() == [0, 1, 2]


@pytest.mark.usefixtures("short_games")
def test_ppo_measures_on_more_observations_than_an_iteration_has(tmp_path, monkeypatch):
    """16 observations per iteration, 40 wanted: those of this iteration and of those before it,
    also when resumed."""
    module = MODULES["ppo_atari"]
    argv = f"{ALL} {TINY['ppo_atari']} --metrics-samples 40 --metrics-frequency 48"
    stored = []
    measured = []
    step = atari.AtariGames.step
    report = reports.network_report

    def reset_and_store(games, actions):
        result = step(games, actions)
        stored.append(result.obs.copy())
        return result

    def watched(network, inputs, *rest, **named):
        measured.append((len(stored), inputs[0].numpy()))
        return report(network, inputs, *rest, **named)

    monkeypatch.setattr(atari.AtariGames, "step", reset_and_store)
    monkeypatch.setattr(reports, "network_report", watched)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runlog.Run, "draw", interrupt)  # at the first checkpoint, step 32
        module.main(runlog.parse_args(module.Args, f"{argv} --runs-dir {tmp_path}".split()))
    module.main(runlog.parse_args(module.Args, f"{argv} --runs-dir {tmp_path}".split()))
    sizes = [len(obs) for _, obs in measured]
    assert sizes == [40] * 6  # steps 48, 96, ...; the first has the checkpoint's 24 and its own 16
    # 8 steps of 2 games per iteration; the last observation of a step is not acted on
    for end, obs in measured[1:]:
        recent = {x.tobytes() for x in np.concatenate(stored[max(end - 26, 0) : end])}
        newest = {x.tobytes() for x in np.concatenate(stored[end - 9 : end])}
        assert all(x.tobytes() in recent for x in obs)
        assert not all(x.tobytes() in newest for x in obs)


def interrupt(*_):
    raise KeyboardInterrupt
