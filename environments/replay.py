"""Replay buffer on the device, with a seed axis, for off-policy algorithms on continuous
control."""

from collections.abc import Sequence

import numpy as np
import torch


class ReplayBuffer:
    """A ring buffer of transitions for each seed; a row is obs, actions, reward, termination,
    next_obs. Rows added before number `first` count as cleared."""

    def __init__(
        self, num_seeds: int, capacity: int, obs_dim: int, action_dim: int, device: torch.device
    ):
        self.columns = [obs_dim, action_dim, 1, 1, obs_dim]
        self.capacity = capacity
        self.rows = torch.empty(num_seeds, capacity, sum(self.columns), device=device)
        self.seed_index = torch.arange(num_seeds, device=device)[:, None]
        self.num_added = 0
        self.first = 0

    def add(self, obs, actions, rewards, terminations, next_obs, failed) -> None:
        """Adds one transition of each seed. Where `failed`, the environment gave none, and the
        previous one is stored again."""
        parts = [obs, actions, rewards[:, None], terminations[:, None], next_obs]
        row = torch.from_numpy(np.concatenate(parts, -1, dtype=np.float32)).to(self.rows.device)
        if failed.any() and self.num_added > self.first:
            before = self.rows[:, (self.num_added - 1) % self.capacity]
            failed = torch.from_numpy(failed).to(row.device)
            row = torch.where(failed[:, None], before, row)
        self.rows[:, self.num_added % self.capacity] = row
        self.num_added += 1

    def sample(self, *shape: int, generators: Sequence[torch.Generator]) -> dict[str, torch.Tensor]:
        """Uniformly sampled transitions, name -> (*shape[:-1], seeds, shape[-1][, columns]),
        contiguous; each seed uses its own generator."""
        size = min(self.num_added - self.first, self.capacity)
        numbers = []
        for generator in generators:
            numbers.append(torch.randint(size, shape, generator=generator, device=generator.device))
        index = (self.first + torch.stack(numbers, -2)) % self.capacity
        rows = self.rows[self.seed_index, index]
        # contiguous, like the inputs of a CUDA graph: the update is compiled for one layout
        columns = [column.contiguous() for column in rows.split(self.columns, -1)]
        obs, actions, rewards, terminations, next_obs = columns
        return {
            "obs": obs,
            "actions": actions,
            "rewards": rewards.squeeze(-1),
            "terminations": terminations.squeeze(-1),
            "next_obs": next_obs,
        }

    def clear(self) -> None:
        self.first = self.num_added

    def newest(self, count: int) -> torch.Tensor:
        """The newest rows of each seed in order, (seeds, count, row), as many as the buffer still
        holds."""
        first = self.num_added - min(count, self.capacity)
        index = torch.arange(first, self.num_added) % self.capacity
        return self.rows[:, index].cpu()

    def restore(self, i: int, rows: torch.Tensor, num_added: int) -> None:
        """Restores the newest rows of seed i to their places."""
        index = torch.arange(num_added - len(rows), num_added) % self.capacity
        self.rows[i, index] = rows.to(self.rows.device)
        self.num_added = num_added
