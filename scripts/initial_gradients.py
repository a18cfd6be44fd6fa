"""Scales at initialisation: are the gradients of a product of branches far below the optimiser's
epsilon?

    python scripts/initial_gradients.py --env-id Breakout --activation tanh_hr

Random play fills a rollout; nothing is trained. For each algorithm, the table describes its last
hidden layer on these observations: the root mean square of each branch's output and of the product;
and, for the gradients of the loss on minibatches as the algorithm takes them (and clips them), the
root mean square over the branches' weights, and the fraction of weights whose own root mean square
over the minibatches, which is what Adam's sqrt(v) estimates, lies below epsilon.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dqn_atari
import ppo_atari
import pqn_atari
import reports


def play_randomly(args, num_envs: int, num_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Tensors (num_steps, num_envs, ...) of uniformly random play:
    obs, next_obs, actions, rewards (sign), ends."""
    games = dqn_atari.make_games(args, num_envs)
    generator = np.random.default_rng(seed)
    obs = games.reset(seed, "initial_gradients")
    rows = []
    for _ in range(num_steps):
        actions = generator.integers(games.num_actions, size=num_envs)
        step = games.step(actions)
        ends = (step.terminations, step.truncations)
        rows.append((obs, step.real_next_obs, actions, np.sign(step.rewards), *ends))
        obs = step.obs
    names = ("obs", "next_obs", "actions", "rewards", "terminations", "truncations")
    columns = {name: torch.from_numpy(np.stack(column)) for name, column in zip(names, zip(*rows))}
    for name in ("rewards", "terminations", "truncations"):
        columns[name] = columns[name].float()
    columns["num_actions"] = games.num_actions
    return columns


def flat(columns: dict, *names: str) -> list[torch.Tensor]:
    return [columns[name].flatten(0, 1) for name in names]


def dqn_losses(network, args, data):
    """One loss for each minibatch of 32 transitions, in random order."""
    obs, next_obs, actions, rewards, terminations = flat(
        data, "obs", "next_obs", "actions", "rewards", "terminations"
    )
    for rows in torch.randperm(len(obs), generator=torch.Generator().manual_seed(0)).split(
        args.batch_size
    ):
        with torch.no_grad():
            next_q = network(next_obs[rows])
            target = dqn_atari.dqn_target(
                rewards[rows], terminations[rows], next_q, next_q, args.gamma, True
            )
        chosen = network(obs[rows]).gather(-1, actions[rows, None]).squeeze(-1)
        yield F.mse_loss(chosen, target)


def ppo_losses(network, args, data):
    """The clipped loss of the first epoch, where the ratio is 1:
    policy gradient, value loss, entropy."""
    with torch.no_grad():
        _, values = network(data["obs"].flatten(0, 1))
        _, next_values = network(data["next_obs"].flatten(0, 1))
    shape = data["rewards"].shape
    ends = (data["terminations"], data["truncations"])
    advantages, returns = ppo_atari.compute_gae(
        data["rewards"],
        *ends,
        values.view(shape),
        next_values.view(shape),
        args.gamma,
        args.gae_lambda,
    )
    obs, actions = flat(data, "obs", "actions")
    size = args.num_envs * args.num_steps // args.num_minibatches
    for rows in torch.randperm(len(obs), generator=torch.Generator().manual_seed(0)).split(size):
        logits, value = network(obs[rows])
        log_probs = logits.log_softmax(-1)
        chosen = log_probs.gather(-1, actions[rows, None]).squeeze(-1)
        advantage = advantages.flatten()[rows]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy_loss = -(advantage * (chosen - chosen.detach()).exp()).mean()
        value_loss = 0.5 * (value - returns.flatten()[rows]).square().mean()
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        yield policy_loss + args.value_coefficient * value_loss - args.entropy_coefficient * entropy


def pqn_losses(network, args, data):
    """Half the mean squared error to the Q(lambda) returns."""
    with torch.no_grad():
        next_values = network(data["next_obs"].flatten(0, 1)).amax(-1).view(data["rewards"].shape)
    returns = pqn_atari.q_lambda_returns(
        data["rewards"],
        data["terminations"],
        data["truncations"],
        next_values,
        args.gamma,
        args.q_lambda,
    )
    obs, actions = flat(data, "obs", "actions")
    size = args.num_envs * args.num_steps // args.num_minibatches
    for rows in torch.randperm(len(obs), generator=torch.Generator().manual_seed(0)).split(size):
        chosen = network(obs[rows]).gather(-1, actions[rows, None]).squeeze(-1)
        yield args.loss_coefficient * F.mse_loss(chosen, returns.flatten()[rows])


def root_mean_square(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def measure(network, losses, data, max_norm: float, epsilons: tuple[float, ...]) -> list[str]:
    """The cells of one row of the table."""
    with reports.record_layers(network) as records, torch.no_grad():
        network(data["obs"].flatten(0, 1)[:: data["obs"].shape[1]])
    record = records["fc"]
    weights = [branch.linear.weight for branch in network.fc.branches]
    gradients = []
    for loss in losses:
        network.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        gradients.append(torch.stack([weight.grad.clone() for weight in weights]))
    # of each weight, over the minibatches
    typical = torch.stack(gradients).double().square().mean(0).sqrt()
    cells = [" ".join(f"{root_mean_square(x):.2g}" for x in record.branch_outputs)]
    cells += [f"{root_mean_square(record.output):.2g}", f"{root_mean_square(typical):.2g}"]
    used = typical[typical > 0]  # an input that is always 0 has no gradient whatever epsilon is
    return cells + [f"{(used < epsilon).double().mean().item():.2f}" for epsilon in epsilons]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--env-id", default="Breakout")
    parser.add_argument("--activation", default="tanh_hr")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    epsilons = (1e-5, 1e-8)
    common = {"env_id": options.env_id, "activation": options.activation, "seed": options.seed}
    ppo = ppo_atari.Args(**common)
    # minibatches of 128, as by default
    pqn = pqn_atari.Args(**common, num_envs=8, num_steps=128, num_minibatches=8)
    data = play_randomly(dqn_atari.Args(**common), 8, 128, options.seed)
    num_actions = data["num_actions"]
    print("| | branches | product | gradient | share below 1e-5 | below 1e-8 |")
    print("|---|---|---|---|---|---|")
    for bias_init in ("zero", "uniform"):
        dqn = dqn_atari.Args(**common, bias_init=bias_init)
        network = dqn_atari.QNetwork(num_actions, dqn)
        cells = measure(network, dqn_losses(network, dqn, data), data, float("inf"), epsilons)
        print(f"| dqn, biases {bias_init} |", " | ".join(cells), "|")
    agent = ppo_atari.Agent(num_actions, ppo)
    cells = measure(agent, ppo_losses(agent, ppo, data), data, ppo.max_grad_norm, epsilons)
    print("| ppo |", " | ".join(cells), "|")
    network = pqn_atari.QNetwork(num_actions, pqn)
    cells = measure(network, pqn_losses(network, pqn, data), data, pqn.max_grad_norm, epsilons)
    print("| pqn |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
