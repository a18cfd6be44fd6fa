"""Updates of td3_continuous.py against a float64 reference after CleanRL; short runs.

`pytest -q tests/test_td3.py` (about 20 s; slow tests compile and learn a toy task).
"""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

import runlog
import td3_continuous
from runlog import seeding
from td3_continuous import Agent, Args

OBS = 5
ACTIONS = 2
BATCH = 7
CPU = torch.device("cpu")
ARGS = Args(
    compile=False,
    widths=(8, 6),
    learning_rate=1e-2,
    tau=0.1,
    gamma=0.9,
    policy_noise=0.4,
    noise_clip=0.45,  # a quarter of the noise is clipped
)


def make_batch(num_seeds: int, seed: int, dtype=torch.float32) -> tuple[dict, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"obs": (OBS,), "actions": (ACTIONS,), "rewards": (), "next_obs": (OBS,)}
    batch = {}
    for key, shape in shapes.items():
        batch[key] = torch.randn(num_seeds, BATCH, *shape, generator=generator).to(dtype)
    batch["actions"] = torch.tanh(batch["actions"])
    batch["terminations"] = (torch.rand(num_seeds, BATCH, generator=generator) < 0.4).to(dtype)
    noise = torch.randn(num_seeds, BATCH, ACTIONS, generator=generator).to(dtype)
    return batch, noise


class Reference:
    """CleanRL's td3_continuous_action.py for one seed in float64: a tensor for each weight, one
    network after the other, torch's Adam. Starts from seed i of an agent."""

    def __init__(self, agent: Agent, i: int):
        self.args = agent.args
        self.actor = leaves(agent.actor, i)
        self.actor_target = leaves(agent.actor_target, i)
        self.qf1 = leaves(agent.qf, (i, 0))
        self.qf2 = leaves(agent.qf, (i, 1))
        self.qf1_target = leaves(agent.qf_target, (i, 0))
        self.qf2_target = leaves(agent.qf_target, (i, 1))
        of_critics = [*self.qf1.values(), *self.qf2.values()]
        of_actor = [*self.actor.values()]
        self.q_optimizer = torch.optim.Adam(of_critics, lr=self.args.learning_rate)
        self.actor_optimizer = torch.optim.Adam(of_actor, lr=self.args.learning_rate)

    def policy(self, weights: dict, obs: torch.Tensor) -> torch.Tensor:
        x = hidden(weights, obs)
        return torch.tanh(x @ weights["mean.weight"] + weights["mean.bias"])

    def q(self, weights: dict, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        x = hidden(weights, torch.cat([obs, actions], 1))
        return (x @ weights["q.weight"] + weights["q.bias"])[:, 0]

    def update(self, batch: dict, noise: torch.Tensor, update_policy: bool) -> tuple:
        """(qf_loss, mean Q-value, actor loss or None)."""
        obs = batch["obs"]
        actions = batch["actions"]
        next_obs = batch["next_obs"]
        with torch.no_grad():
            clip = self.args.noise_clip
            clipped_noise = (noise * self.args.policy_noise).clamp(-clip, clip)
            next_actions = self.policy(self.actor_target, next_obs) + clipped_noise
            next_actions = next_actions.clamp(-1, 1)
            next_q1 = self.q(self.qf1_target, next_obs, next_actions)
            next_q2 = self.q(self.qf2_target, next_obs, next_actions)
            next_q = torch.min(next_q1, next_q2)
            target = batch["rewards"] + (1 - batch["terminations"]) * self.args.gamma * next_q
        q1 = self.q(self.qf1, obs, actions)
        q2 = self.q(self.qf2, obs, actions)
        mse = torch.nn.functional.mse_loss
        qf_loss = mse(q1, target) + mse(q2, target)
        self.q_optimizer.zero_grad()
        qf_loss.backward()
        self.q_optimizer.step()

        actor_loss = None
        if update_policy:
            actor_loss = -self.q(self.qf1, obs, self.policy(self.actor, obs)).mean()
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            self.move(self.actor, self.actor_target)
            self.move(self.qf1, self.qf1_target)
            self.move(self.qf2, self.qf2_target)
            actor_loss = actor_loss.detach()
        return qf_loss.detach(), torch.cat([q1, q2]).mean().detach(), actor_loss

    def move(self, source: dict, target: dict) -> None:
        tau = self.args.tau
        for name in target:
            target[name].data.copy_(tau * source[name].data + (1 - tau) * target[name].data)


def leaves(module: torch.nn.Module, index) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in module.named_parameters():
        found[name] = parameter.detach()[index].double().clone().requires_grad_()
    return found


def hidden(weights: dict, x: torch.Tensor) -> torch.Tensor:
    for layer in range(2):
        name = f"hidden.{layer}.branches.0.linear"
        x = torch.relu(x @ weights[f"{name}.weight"] + weights[f"{name}.bias"])
    return x


def test_updates_of_every_seed_match_the_reference():
    agent = Agent(OBS, ACTIONS, ARGS, [3, 4, 9], CPU).double()
    references = [Reference(agent, i) for i in range(3)]
    for u in range(7):  # policy updates after 2, 4 and 6 of the critics
        update_policy = u % 2 == 1
        batch, noise = make_batch(3, u, torch.float64)
        info = agent.update(batch, noise, update_policy)
        assert set(info) == {"qf_loss", "q_mean"} | ({"actor_loss"} if update_policy else set())
        for i, reference in enumerate(references):
            own = {key: value[i] for key, value in batch.items()}
            qf_loss, q_mean, actor_loss = reference.update(own, noise[i], update_policy)
            torch.testing.assert_close(info["qf_loss"][i], qf_loss)
            torch.testing.assert_close(info["q_mean"][i], q_mean)
            if update_policy:
                torch.testing.assert_close(info["actor_loss"][i], actor_loss)
    for i, reference in enumerate(references):
        pairs = [
            (leaves(agent.actor, i), reference.actor),
            (leaves(agent.actor_target, i), reference.actor_target),
            (leaves(agent.qf, (i, 0)), reference.qf1),
            (leaves(agent.qf, (i, 1)), reference.qf2),
            (leaves(agent.qf_target, (i, 0)), reference.qf1_target),
            (leaves(agent.qf_target, (i, 1)), reference.qf2_target),
        ]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_target_actions_are_smoothed_and_clipped_twice():
    args = dataclasses.replace(ARGS, policy_noise=0.2, noise_clip=0.5)
    agent = Agent(OBS, ACTIONS, args, [1], CPU)
    with torch.no_grad():
        agent.actor_target.mean.weight.zero_()
        agent.actor_target.mean.bias.copy_(torch.tensor([[0.0, 5.0]]))  # actions 0 and 0.9999
    next_obs = torch.zeros(1, 4, OBS)
    noise = torch.tensor([1.0, -1.0, 10.0, -10.0])[None, :, None].expand(1, 4, ACTIONS)
    actions = agent.target_actions(next_obs, noise)
    first, second = actions[0].T
    torch.testing.assert_close(first, torch.tensor([0.2, -0.2, 0.5, -0.5]))
    torch.testing.assert_close(second, torch.tensor([1.0, 0.8, 1.0, 0.5]), rtol=0, atol=2e-4)


def test_exploration_noise_has_the_right_spread_and_evaluation_has_none():
    agent = Agent(OBS, ACTIONS, dataclasses.replace(ARGS, exploration_noise=0.25), [1, 2], CPU)
    obs = np.zeros((2, OBS))
    generators = [seeding.make_generator(seed, "act") for seed in (1, 2)]
    draws = np.stack([agent.act(obs, generators) for _ in range(2_000)])
    assert draws.std(0) == pytest.approx(0.25, rel=0.1)
    assert draws.mean(0) == pytest.approx(agent.act(obs), abs=0.02)
    assert not np.array_equal(draws[:, 0], draws[:, 1])
    with torch.no_grad():
        agent.actor.mean.bias.fill_(9.0)
    draws = np.stack([agent.act(obs, generators) for _ in range(20)])
    assert draws.max() <= 1 and agent.act(obs).min() > 0.99


def test_targets_move_only_with_the_policy():
    agent = Agent(OBS, ACTIONS, ARGS, [1], CPU)
    batches, noise = make_batch(1, 0)
    batches = {key: value[None] for key, value in batches.items()}

    def snapshot(*modules) -> list[torch.Tensor]:
        copies = []
        for module in modules:
            copies += [parameter.detach().clone() for parameter in module.parameters()]
        return copies

    for step in range(10, 16):
        before = snapshot(agent.actor, agent.actor_target, agent.qf_target)
        critics_before = snapshot(agent.qf)
        agent.update_block(batches, noise[None], step)
        after = snapshot(agent.actor, agent.actor_target, agent.qf_target)
        is_delayed = (step + 1) % ARGS.policy_frequency != 0
        for old, new in zip(before, after):
            assert torch.equal(old, new) == is_delayed
        for old, new in zip(critics_before, snapshot(agent.qf)):
            assert not torch.equal(old, new)


@pytest.mark.parametrize("activation", ["relu", "crational"])
def test_a_seed_learns_the_same_alone_as_in_a_batch(activation):
    args = dataclasses.replace(ARGS, activation=activation, layer_norm=activation == "relu")
    together = Agent(OBS, ACTIONS, args, [1, 2, 3], CPU)
    alone = Agent(OBS, ACTIONS, args, [2], CPU)
    before = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    for u in range(4):
        batch, noise = make_batch(3, u)
        own = {key: value[1:2] for key, value in batch.items()}
        together.update(batch, noise, u % 2 == 1)
        alone.update(own, noise[1:2], u % 2 == 1)
    of_all = together.state_dict()
    for name, tensor in alone.state_dict().items():
        ours = of_all[name][1:2] if tensor.dim() else of_all[name]
        torch.testing.assert_close(ours, tensor, rtol=1e-4, atol=1e-5)
        assert not torch.equal(tensor, before[name]), name
        if tensor.dim():
            assert not torch.equal(of_all[name][0], of_all[name][1]), name  # seeds differ


@pytest.mark.slow
def test_the_compiled_update_matches_the_eager_one():  # most of a minute: Inductor's C++
    eager = Agent(OBS, ACTIONS, ARGS, [1, 2], CPU)
    compiled = Agent(OBS, ACTIONS, dataclasses.replace(ARGS, compile=True), [1, 2], CPU)
    for u in range(4):
        batch, noise = make_batch(2, u)
        ours = compiled.update(batch, noise, u % 2 == 1)
        torch.testing.assert_close(
            ours, eager.update(batch, noise, u % 2 == 1), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-3, atol=1e-4)


# ---- runs ----------------------------------------------------------------------------------------


class Target(gymnasium.Env):
    """The action should be the observation: reward -(a - s)^2, at each of 20 steps a new s."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}

    def draw(self) -> np.ndarray:
        self.state = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.state

    def step(self, action):
        reward = -float((action[0] - self.state[0]) ** 2)
        return self.draw(), reward, False, False, {}


gymnasium.register("Target-v0", Target, max_episode_steps=20)
TINY = "--env-id Target-v0 --no-compile --no-tensorboard --device cpu --threads 1 --widths 16 16"
TINY += " --batch-size 16 --learning-starts 30 --total-timesteps 90 --eval-frequency 45"
TINY += " --num-eval-episodes 1 --log-frequency 10 --metrics-frequency 45 --metrics-samples 32"
TINY += " --ntk-frequency 90 --ntk-samples 4 --checkpoint-frequency 35 --gamma 0.5"


def train(folder, flags: str = "") -> dict[str, list[str]]:
    """Runs the command in this process; run's folder -> rows without the time column."""
    argv = [*TINY.split(), "--runs-dir", str(folder), *flags.split()]
    td3_continuous.main(runlog.parse_args(Args, argv))
    rows = {}
    for file in sorted(folder.glob("*/scalars.csv")):
        lines = file.read_text().splitlines()[1:]
        rows[file.parent.name] = [line.rsplit(",", 1)[0] for line in lines]
    return rows


def values(rows: list[str]) -> dict[tuple[int, str], float]:
    found = {}
    for row in rows:
        step, key, value = row.split(",")
        found[int(step), key] = float(value)
    return found


def test_a_killed_run_ends_with_the_rows_of_one_never_killed(tmp_path, monkeypatch):
    flags = "--num-seeds 2 --activation tanh_hr --metrics-frequency 0 --ntk-frequency 0"
    whole = train(tmp_path / "a", flags)
    assert len(whole) == 2
    steps = 0
    take_step = td3_continuous.environments.take_step

    def killed_at_step_52(envs, obs, actions):
        nonlocal steps
        steps += 1
        if steps == 52:
            raise RuntimeError("killed")
        return take_step(envs, obs, actions)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(td3_continuous.environments, "take_step", killed_at_step_52)
        train(tmp_path / "b", flags)
    assert train(tmp_path / "b", flags) == whole  # from step 35 on, in mid-episode


def test_a_row_after_a_resume_has_the_newest_loss_of_the_actor(tmp_path, killed_after_save):
    """Stopped at step 39, between the two critic updates of an update of the actor, of which the
    row at step 40 shows the loss."""
    flags = "--policy-frequency 4 --metrics-frequency 0 --ntk-frequency 0 --log-frequency 1"
    flags += " --checkpoint-frequency 39"
    (whole,) = train(tmp_path / "a", flags).values()
    with killed_after_save():
        train(tmp_path / "b", flags)
    (rows,) = train(tmp_path / "b", flags).values()
    assert rows == whole
    of_actor = [values(rows)[step, "losses/actor_loss"] for step in (38, 39, 41)]
    assert len({*of_actor}) == 2  # updated at 40


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_diverged_seed_carries_its_last_evaluation_forward(
    is_killed, tmp_path, monkeypatch, killed_after_save
):
    """The critics of one of two seeds turn nan at step 60, after the evaluation at 45; before that
    the training may have been killed."""
    flags = "--num-seeds 2 --metrics-frequency 0 --ntk-frequency 0 --eval-frequency 45"
    flags += " --checkpoint-frequency 50"
    whole = train(tmp_path / "a", flags)
    add = td3_continuous.environments.ReplayBuffer.add

    def poisoned(self, obs, actions, rewards, *others):
        if self.num_added >= 59:
            rewards = rewards.copy()
            rewards[1] = np.nan
        add(self, obs, actions, rewards, *others)

    monkeypatch.setattr(td3_continuous.environments.ReplayBuffer, "add", poisoned)
    if is_killed:
        with killed_after_save():
            train(tmp_path / "b", flags)
    diverged = train(tmp_path / "b", flags)
    healthy, other = sorted(whole, key=lambda name: "__s2__" in name)
    assert diverged[healthy] == whole[healthy]
    found = values(diverged[other])
    for key in ("eval/episodic_return", "overestimation/mean"):
        assert found[90, key] == found[45, key]
        assert values(whole[other])[90, key] != found[45, key]
    assert (90, "losses/qf_loss") not in found


def test_a_run_writes_every_key_and_metrics_change_nothing(tmp_path):
    (rows,) = train(tmp_path / "a").values()
    keys = {}
    for step, key in values(rows):
        keys.setdefault(key, []).append(step)
    losses = ("losses/qf_loss", "losses/q_mean", "losses/actor_loss")
    for key in losses:
        assert keys.pop(key) == [*range(30 + 10 * (key == losses[2]), 91, 10)], key
    for key in ("overestimation/mean", "overestimation/std", "overestimation/normalised"):
        assert keys.pop(key) == [45, 90], key
    assert keys.pop("eval/episodic_return") == [45, 90]
    assert keys.pop("charts/episodic_return") == keys.pop("charts/episodic_length")
    assert {key.split("/")[0] for key in keys} == {"network"}
    assert {key.split("/")[1] for key in keys} == {"actor", "qf1", "qf2"}
    for name in ("actor/fc1/dead_share", "qf2/fc2/srank", "actor/gradient_norm", "qf1/ntk_srank"):
        assert keys[f"network/{name}"][-1] == 90, name
    (without,) = train(tmp_path / "b", "--metrics-frequency 0 --ntk-frequency 0").values()
    assert without == [row for row in rows if ",network/" not in row]


def test_overestimation_is_the_critics_value_minus_the_return_of_the_deterministic_policy():
    agent = Agent(1, 1, dataclasses.replace(ARGS, num_eval_episodes=2), [1, 2], CPU)
    with torch.no_grad():
        agent.actor.mean.weight.zero_()  # action 0: the reward is minus the square of the state
        agent.qf.q.weight.zero_()
        agent.qf.q.bias.copy_(torch.tensor([[[3.0], [5.0]], [[10.0], [10.0]]]))  # Q 4 and 10
    envs = td3_continuous.environments.make_envs("Target-v0", [1, 2], "eval")
    rows = td3_continuous.q_bias(agent, envs, 0)
    envs.close()
    # E s^2 = 1/3, so G is (1 - 0.9^n) * -10/3 with n steps to go, and the limit of 20 steps weighs
    # more than 5 %: there Q is added. Over n = 1 ... 20 the mean of 1 - 0.9^n is 0.605.
    assert rows[0]["overestimation/mean"] == pytest.approx(0.605 * (4 + 10 / 3), abs=0.7)
    assert rows[1]["overestimation/mean"] == pytest.approx(0.605 * (10 + 10 / 3), abs=0.7)


def test_wrong_flags_end_in_one_line():
    cases = {
        "--policy-frequency 62": "--policy-frequency 62: must lie in [1, 61]",
        "--learning-starts 90": "--total-timesteps 90: must lie in (90, inf)",
        "--policy-noise -1": "--policy-noise -1.0: must lie in [0, inf)",
        "--activation rleu": "--activation 'rleu': unknown name",
        "--env-id CartPole-v1": "--env-id CartPole-v1: training needs bounded, continuous actions",
        "--widths 1000000 1000000": "--widths",
    }
    for flags, message in cases.items():
        args = runlog.parse_args(Args, [*TINY.split(), *flags.split()])
        with pytest.raises(runlog.UserError) as error:
            td3_continuous.validate(args)
        assert message in str(error.value), flags


@pytest.mark.parametrize(
    "device, flags, is_graphed",
    [
        ("cuda", {"utd": 1, "policy_frequency": 2}, True),  # two graphs, in turn
        ("cuda:1", {"utd": 4, "policy_frequency": 2}, True),
        ("cuda", {"utd": 1, "policy_frequency": 5}, False),  # five graphs would take much memory
        ("cuda", {"cudagraphs": False}, False),
        ("cpu", {}, False),
    ],
)
def test_when_cuda_graphs_replay_the_updates(device, flags, is_graphed):
    args = Args(**{"cudagraphs": True} | flags)
    assert td3_continuous.uses_graph(args, torch.device(device)) is is_graphed


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "crational"])
def test_it_learns_the_toy_task(activation, tmp_path):
    flags = f"--activation {activation} --total-timesteps 1500 --learning-starts 200 --utd 2"
    flags += " --eval-frequency 500 --num-eval-episodes 5 --metrics-frequency 0 --ntk-frequency 0"
    flags += " --checkpoint-frequency 5000 --log-frequency 500 --batch-size 64 --tau 0.05"
    (rows,) = train(tmp_path, f"{flags} --learning-rate 3e-3").values()
    # random actions get -20 * 2/3 = -13, action 0 gets -6.7, the best is 0
    assert values(rows)[1500, "eval/episodic_return"] > -0.5
