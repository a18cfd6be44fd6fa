"""PQN as purejaxql writes it (pqn_atari.py of github.com/mttga/purejaxql, Gallici et al. 2024), in
current jax, on our games, in turns; benchmarks/atari_peers.py starts this in a Python of its own.

purejaxql itself needs versions of the past: jax with jax.tree_map, envpool with its XLA interface,
and gym 0.23. What it computes is written anew here: a flax network in NHWC with LayerNorm over
channels, He initialisation, x / 255 of uint8 observations, jitted epsilon-greedy actions, Q(lambda)
returns as a reversed scan, half the mean squared error, gradients clipped by their global norm,
RAdam of optax, a new permutation in each epoch.

In favour of its speed: no BatchNorm of the raw observations, which purejaxql computes for its
statistics alone; successors are not stored a second time; the network and the optimiser's state are
donated to each gradient step; a minibatch is gathered within it; Python waits for jax once at each
step of the games, and once in each iteration. Not as in purejaxql: the games are called from
Python, one jitted step at a time, where its XLA interface calls them from within a scan.
"""

import functools
import json
import sys
import types
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from benchmarks.peers.turns import Turns, hold
from environments.atari import AtariGames


class QNetwork(nn.Module):
    """Observations (n, 4, 84, 84) uint8 -> Q (n, num_actions)."""

    num_actions: int
    width: int

    @nn.compact
    def __call__(self, obs):
        init = nn.initializers.he_normal()
        x = jnp.transpose(obs, (0, 2, 3, 1)) / 255.0
        for features, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.Conv(features, (kernel, kernel), stride, padding="VALID", kernel_init=init)(x)
            x = nn.relu(nn.LayerNorm()(x))
        x = x.reshape(len(x), -1)
        x = nn.Dense(self.width, kernel_init=init)(x)
        x = nn.relu(nn.LayerNorm()(x))
        return nn.Dense(self.num_actions)(x)


@jax.jit
def act(state: TrainState, obs, key, epsilon):
    """(epsilon-greedy actions, the greatest Q-values), (n,) each."""
    q_values = state.apply_fn(state.params, obs)
    explore_key, action_key = jax.random.split(key)
    shape = (len(obs),)
    random_actions = jax.random.randint(action_key, shape, 0, q_values.shape[-1])
    is_random = jax.random.uniform(explore_key, shape) < epsilon
    actions = jnp.where(is_random, random_actions, q_values.argmax(-1))
    return actions, q_values.max(-1)


class Rollout(NamedTuple):
    """An iteration as the games played it."""

    obs: list[jax.Array]  # of each step, (num_envs, 4, 84, 84) uint8
    actions: list[jax.Array]
    values: list[jax.Array]  # max_a Q(s_t, a)
    rewards: np.ndarray  # (num_steps, num_envs)
    dones: np.ndarray  # (num_steps, num_envs)
    last_obs: jax.Array


@functools.partial(jax.jit, static_argnames=("gamma", "q_lambda"))
def make_batch(state: TrainState, rollout: Rollout, gamma: float, q_lambda: float):
    """(observations, actions, Q(lambda) returns) of all transitions, flat."""
    last_value = state.apply_fn(state.params, rollout.last_obs).max(-1)
    values = jnp.stack([*rollout.values, last_value])

    def one_step(next_return, inputs):
        reward, done, next_value = inputs
        mixed = (1 - q_lambda) * next_value + q_lambda * next_return
        this_return = reward + gamma * (1 - done) * mixed
        return this_return, this_return

    inputs = (rollout.rewards, rollout.dones, values[1:])
    _, returns = jax.lax.scan(one_step, last_value, inputs, reverse=True)
    return jnp.concatenate(rollout.obs), jnp.concatenate(rollout.actions), returns.reshape(-1)


@functools.partial(jax.jit, donate_argnums=0)
def gradient_step(state: TrainState, obs, actions, returns, index):
    """(the state after a gradient step on the transitions `index`, loss, mean Q(s, a))."""
    minibatch_obs = obs[index]
    minibatch_actions = actions[index]
    minibatch_returns = returns[index]

    def td_loss(params):
        q_values = state.apply_fn(params, minibatch_obs)
        chosen = jnp.take_along_axis(q_values, minibatch_actions[:, None], axis=-1)[:, 0]
        return 0.5 * jnp.square(chosen - minibatch_returns).mean(), chosen.mean()

    (loss, q_mean), gradients = jax.value_and_grad(td_loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients), loss, q_mean


@functools.partial(jax.jit, static_argnums=(1, 2))
def shuffle(key, size: int, parts: int):
    """A tuple of index arrays: the parts of a random permutation."""
    return tuple(jnp.split(jax.random.permutation(key, size), parts))


def train(script, games) -> None:
    """script: flags of pqn_atari.py. Goes on until total_timesteps."""
    num_envs = script.num_envs
    batch_size = num_envs * script.num_steps
    num_iterations = script.total_timesteps // batch_size
    num_updates = num_iterations * script.update_epochs * script.num_minibatches
    network = QNetwork(games.num_actions, script.width)
    key, init_key = jax.random.split(jax.random.key(script.seed))
    params = network.init(init_key, jnp.zeros((1, 4, 84, 84), jnp.uint8))
    learning_rate = optax.linear_schedule(script.learning_rate, 1e-20, num_updates)
    optimizer = optax.chain(
        optax.clip_by_global_norm(script.max_grad_norm), optax.radam(learning_rate)
    )
    state = TrainState.create(apply_fn=network.apply, params=params, tx=optimizer)

    rewards = np.empty((script.num_steps, num_envs), np.float32)
    dones = np.empty((script.num_steps, num_envs), np.float32)
    next_obs = jnp.asarray(games.reset(script.seed, "games", 0))
    for iteration in range(num_iterations):
        # act and store
        fraction = iteration / num_iterations / script.exploration_fraction
        epsilon = script.start_epsilon
        epsilon += (script.final_epsilon - epsilon) * min(fraction, 1.0)
        obs = []
        actions = []
        values = []
        for t in range(script.num_steps):
            key, act_key = jax.random.split(key)
            chosen, value = act(state, next_obs, act_key, epsilon)
            obs.append(next_obs)
            actions.append(chosen)
            values.append(value)
            played = games.step(np.asarray(chosen))
            next_obs = jnp.asarray(played.obs)
            rewards[t] = np.sign(played.rewards)
            dones[t] = played.terminations | played.truncations

        # learn
        rollout = Rollout(obs, actions, values, rewards.copy(), dones.copy(), next_obs)
        batch = make_batch(state, rollout, gamma=script.gamma, q_lambda=script.q_lambda)
        losses = []
        q_means = []
        for _ in range(script.update_epochs):
            key, shuffle_key = jax.random.split(key)
            for index in shuffle(shuffle_key, batch_size, script.num_minibatches):
                state, loss, q_mean = gradient_step(state, *batch, index)
                losses.append(loss)
                q_means.append(q_mean)
        loss_mean = np.mean(jax.device_get(losses))
        q_mean = np.mean(jax.device_get(q_means))
        step = (iteration + 1) * batch_size
        print(f"step {step}: loss {loss_mean:.4f}, q {q_mean:.3f}", flush=True)


def main(settings: dict) -> None:
    script = types.SimpleNamespace(**settings["script"])
    games = AtariGames(
        script.env_id,
        script.num_envs,
        repeat_action_probability=script.repeat_action_probability,
        fire_on_life_loss=script.fire_on_life_loss,
        num_threads=script.env_threads,
    )
    packages = ("jax", "jaxlib", "flax", "optax")
    device = str(jax.devices()[0])
    turns = Turns(script.num_envs, settings["warm_up"], packages, device=device)
    train(script, hold(games, turns))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
