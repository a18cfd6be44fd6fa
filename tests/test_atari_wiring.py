"""What the training loops of the Atari scripts give to the functions that other tests check: values
at time limits, rewards, flags, the network that is evaluated, what is carried forward.

`pytest -q tests/test_atari_wiring.py` (about 20 s).
"""

import json
import math

import numpy as np
import pytest
import torch
from test_atari_runs import MODULES, FakeGames, fake, run, scalars

import dqn_atari
import runlog
from environments import atari

TARGETS = {"ppo_atari": "compute_gae", "pqn_atari": "q_lambda_returns"}
NETWORKS = {"ppo_atari": "Agent", "pqn_atari": "QNetwork"}
FEW_STEPS = "--total-timesteps 32 --metrics-frequency 0 --no-redo"


class OddGames(FakeGames):
    """Rewards of 3 and -2; returns of whole games that differ from their lengths. Keeps what it
    has returned."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.played = []

    def step(self, actions):
        played = super().step(actions)
        played.rewards = np.where(played.rewards > 0, 3.0, -2.0)
        for game in played.games:
            game.total = 1_000.0 + 10 * self.t + game.env
        self.played.append(played)
        return played


@pytest.fixture
def odd_games(monkeypatch):
    """The OddGames that the scripts have made, in order."""
    made = []

    def make(args, num_envs, **kwargs):
        made.append(OddGames(args, num_envs, **kwargs))
        return made[-1]

    fake(monkeypatch)
    for module in MODULES.values():
        monkeypatch.setattr(module, "make_games", make)
    return made


def spy(monkeypatch, module, name: str) -> list[tuple]:
    """Records the arguments of a function's calls, tensors copied."""
    function = getattr(module, name)
    calls = []

    def recorded(*args):
        calls.append(tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in args))
        return function(*args)

    monkeypatch.setattr(module, name, recorded)
    return calls


@pytest.mark.parametrize("script", TARGETS)
def test_a_time_limit_bootstraps_from_the_last_observation_of_its_own_game(
    script, odd_games, tmp_path, monkeypatch
):
    """Against the network at the start, asked about each true successor by itself."""
    module = MODULES[script]
    networks = []
    make = getattr(module, NETWORKS[script])

    def make_network(*args):
        networks.append(make(*args))
        return networks[-1]

    monkeypatch.setattr(module, NETWORKS[script], make_network)
    found = []

    def values_of(obs: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            outputs = networks[0](torch.from_numpy(obs))
        return outputs[1] if script == "ppo_atari" else outputs.amax(1)

    function = getattr(module, TARGETS[script])

    def check(rewards, terminations, truncations, *others):
        if not found:
            next_values = others[1 if script == "ppo_atari" else 0]
            (games,) = odd_games
            assert truncations.any()
            for t in range(len(rewards)):
                played = games.played[t]
                successors = np.where(
                    played.truncations[:, None, None, None], played.real_next_obs, played.obs
                )
                expected = values_of(successors)[:2]
                torch.testing.assert_close(next_values[t], expected, rtol=1e-4, atol=1e-5)
                found.append(expected)
        return function(rewards, terminations, truncations, *others)

    monkeypatch.setattr(module, TARGETS[script], check)
    run(script, tmp_path, FEW_STEPS)
    assert len(found) == 8


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("script", MODULES)
def test_rewards_are_clipped_to_their_sign_unless_told_otherwise(
    script, clip, odd_games, tmp_path, monkeypatch
):
    flags = "--total-timesteps 48 --metrics-frequency 0 --no-redo"
    flags += " --clip-rewards" if clip else " --no-clip-rewards"
    if script == "dqn_atari":
        rewards = []
        add = dqn_atari.ReplayBuffer.add

        def record(self, **columns):
            rewards.append(columns["rewards"])
            add(self, **columns)

        monkeypatch.setattr(dqn_atari.ReplayBuffer, "add", record)
        run(script, tmp_path, f"{flags} --eval-frequency 1000")
        learnt = np.stack(rewards)
    else:
        calls = spy(monkeypatch, MODULES[script], TARGETS[script])
        run(script, tmp_path, flags)
        learnt = torch.cat([call[0] for call in calls]).numpy()
    raw = np.stack([played.rewards[:2] for played in odd_games[0].played])
    assert {*raw.flat} == {3.0, -2.0}
    assert np.array_equal(learnt, np.sign(raw) if clip else raw)


@pytest.mark.parametrize(
    ("script", "flag"), [("ppo_atari", "--gae-lambda"), ("pqn_atari", "--q-lambda")]
)
def test_gamma_and_lambda_are_those_of_the_flags(script, flag, tmp_path, monkeypatch):
    fake(monkeypatch)
    calls = spy(monkeypatch, MODULES[script], TARGETS[script])
    run(script, tmp_path, f"{FEW_STEPS} --gamma 0.6 {flag} 0.3")
    assert {call[-2:] for call in calls} == {(0.6, 0.3)}


@pytest.mark.parametrize("script", ["dqn_atari", "ppo_atari"])
def test_the_epsilon_of_adam_is_that_of_the_flag(script, tmp_path, monkeypatch):
    fake(monkeypatch)
    flags = "--total-timesteps 48 --metrics-frequency 0 --no-redo --adam-eps 0.003"
    if script == "dqn_atari":
        flags += " --eval-frequency 1000"
    run(script, tmp_path, flags)
    for group in final_state(tmp_path)["optimizer"]["param_groups"]:
        assert group["eps"] == 0.003


def final_state(folder) -> dict:
    (checkpoint,) = folder.glob("*/checkpoint.pt")
    return runlog.storage.load_pt(checkpoint)["state"]


@pytest.mark.parametrize(("target_kl", "epochs"), [(1e-8, 1), (1e9, 3)])
def test_target_kl_ends_an_iteration_after_its_epoch(target_kl, epochs, tmp_path, monkeypatch):
    """2 minibatches per epoch, 320 / 16 iterations. The first epoch moves the policy a little."""
    fake(monkeypatch)
    flags = f"--update-epochs 3 --target-kl {target_kl} --learning-rate 0.01 --no-anneal-lr"
    flags += " --metrics-frequency 0 --no-redo"
    run("ppo_atari", tmp_path, flags)
    assert final_state(tmp_path)["num_updates"] == 20 * epochs * 2


@pytest.mark.parametrize("script", MODULES)
def test_recycled_neurons_have_no_influence_on_any_head(script):
    """tanh: no neuron is dormant but those whose incoming weights are 0."""
    module = MODULES[script]
    flags = {"activation": "tanh", "encoder_activation": ("tanh",), "layer_norm": "none"}
    args = module.Args(width=16, **flags)
    make = module.Agent if script == "ppo_atari" else module.QNetwork
    network = make(4, args)
    heads = [network.actor, network.critic] if script == "ppo_atari" else [network.q]
    optimizer = torch.optim.AdamW(network.parameters())
    generator = torch.Generator().manual_seed(0)
    dormant = [2, 11, 12]
    linear = network.fc.branches[0].linear
    with torch.no_grad():
        linear.weight[:, dormant] = 0.0
        linear.bias[dormant] = 0.0
        for head in heads:
            head.weight.normal_(generator=generator)
    before = [head.weight.detach().clone() for head in heads]
    obs = torch.randint(0, 256, (32, 4, 84, 84), dtype=torch.uint8, generator=generator)
    share = module.recycle_dormant(network, optimizer, obs, 0.0, generator)
    assert share == pytest.approx(len(dormant) / (32 + 64 + 64 + 16))
    kept = [i for i in range(16) if i not in dormant]
    for head, old in zip(heads, before):
        assert not head.weight[dormant].any()
        assert torch.equal(head.weight[kept], old[kept])
    fresh = linear.weight[:, dormant]
    assert fresh.std() > 0.25 * linear.weight[:, kept].std()


# ---- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "agreement"), [(0.0, 1.0), (0.5, 0.5 + 0.5 / 4)])
def test_dqn_evaluates_its_epsilon_greedy_policy_by_the_mean(epsilon, agreement, monkeypatch):
    network = dqn_atari.QNetwork(4, dqn_atari.Args(width=8))
    generator = torch.Generator().manual_seed(0)
    obs = torch.randint(0, 256, (400, 4, 84, 84), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        best = network(obs).argmax(1).numpy()
    agreements = []

    def play_games(make, policy, number, seed):
        agreements.append((policy(obs.numpy()) == best).mean())
        return [1.0, 2.0, 6.0, 7.0][:number]

    monkeypatch.setattr(atari, "play_games", play_games)
    args = dqn_atari.Args(eval_epsilon=epsilon, num_eval_episodes=4)
    assert dqn_atari.evaluate(args, network, 1) == {"eval/episodic_return": 4.0}
    assert agreements == [pytest.approx(agreement, abs=0.08 if epsilon else 0.0)]


def test_dqn_evaluates_the_network_that_it_trains(tmp_path, monkeypatch):
    fake(monkeypatch)
    evaluated = []

    def evaluate(args, network, index):
        evaluated.append({name: x.clone() for name, x in network.state_dict().items()})
        return {"eval/episodic_return": 0.0}

    monkeypatch.setattr(dqn_atari, "evaluate", evaluate)
    run("dqn_atari", tmp_path, "--target-frequency 1000 --metrics-frequency 0")
    state = final_state(tmp_path)
    for name, trained in state["q_network"].items():
        assert torch.equal(evaluated[-1][name], trained)
    assert not torch.equal(evaluated[-1]["q.weight"], state["target_network"]["q.weight"])


def test_pqn_averages_the_test_games_since_the_last_evaluation(odd_games, tmp_path):
    """2 training and 3 test games, each of which ends at t = 20, 40, ..., 160; a t is two steps."""
    rows = run("pqn_atari", tmp_path, "--num-test-envs 3 --metrics-frequency 0 --no-redo")
    found = {}
    for row in rows:
        step, key, value = row.split(",")
        found[int(step), key] = float(value)
    for step, times in ((160, (20, 40, 60, 80)), (320, (100, 120, 140, 160))):
        returns = 1_000 + 10 * np.array(times)[:, None] + np.array([2, 3, 4])
        assert found[step, "eval/episodic_return"] == pytest.approx(returns.mean())
        assert found[step, "eval/num_games"] == 12
    assert found[40, "charts/episodic_return"] in (1_200, 1_201)


# ---- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("script", MODULES)
def test_a_diverged_run_carries_its_last_return_forward(
    script, is_killed, odd_games, tmp_path, monkeypatch, killed_after_save
):
    """The losses turn nan after step 240; before that it may have been killed and begun again."""
    monkeypatch.setattr(
        dqn_atari, "evaluate", lambda args, network, index: {"eval/episodic_return": 100.0 + index}
    )
    flags = "--metrics-frequency 0 --no-redo --checkpoint-frequency 40"
    if script != "ppo_atari":
        flags += " --eval-frequency 80"
    note_losses = runlog.Batch.note_losses

    def poisoned(self, step, losses):
        if step > 240:
            losses = {name: x * math.nan for name, x in losses.items()}
        note_losses(self, step, losses)

    monkeypatch.setattr(runlog.Batch, "note_losses", poisoned)
    if is_killed:
        with killed_after_save(240):
            run(script, tmp_path, flags)
    run(script, tmp_path, flags)
    (meta,) = tmp_path.glob("*/meta.json")
    assert json.loads(meta.read_text())["status"] == "diverged"
    key = "charts/episodic_return" if script == "ppo_atari" else "eval/episodic_return"
    returns = []
    for row in scalars(tmp_path):
        step, name, value = row.split(",")
        if name == key:
            returns.append((int(step), value))
    assert [step for step, _ in returns[-2:]] == [240, 320]
    assert returns[-1][1] == returns[-2][1]
