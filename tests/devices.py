"""For the tests of the GPU: the devices that a test runs on, CUDA graphs on the CPU,
games that need no emulator, and how close is equal."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from environments.atari import GameStep
from runlog import cudagraphs

CUDA_MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU_AND_CUDA = ["cpu", pytest.param("cuda", marks=CUDA_MARKS)]
# A tensor on "meta" has no values: item(), tolist(), nonzero(), cpu(), numpy() and arithmetic with
# a tensor of another device raise there, as what waits for a GPU does on "cuda" with
# set_sync_debug_mode("error").
META_AND_CUDA = ["meta", pytest.param("cuda", marks=CUDA_MARKS)]


class RecordingOnTheCpu:
    """cudagraphs.Recording without a GPU: a replay calls the block on the inputs of the capture and
    overwrites the outputs of the capture. The capture runs the block in place of the first
    replay."""

    def __init__(self):
        self.num_warm_ups = 0
        self.num_replays = 0

    def warm_up(self, block, arguments):
        self.num_warm_ups += 1
        return block(*arguments)

    def capture(self, block, arguments):
        self.block = block
        self.arguments = arguments
        self.out = _pytree.tree_map_only(torch.Tensor, torch.clone, block(*arguments))
        return self.out

    def replay(self):
        self.num_replays += 1
        if self.num_replays > 1:
            new = _pytree.tree_leaves(self.block(*self.arguments))
            for kept, x in zip(_pytree.tree_leaves(self.out), new):
                if x is not None:
                    kept.copy_(x)


def replay_without_a_gpu(monkeypatch) -> list[RecordingOnTheCpu]:
    """--cudagraphs on the CPU; returns the list of recordings made from now on."""
    recordings = []

    def record() -> RecordingOnTheCpu:
        recordings.append(RecordingOnTheCpu())
        return recordings[-1]

    monkeypatch.setattr(cudagraphs, "Recording", record)
    monkeypatch.setattr(cudagraphs, "can_run_on", lambda device: True)
    return recordings


def largest_difference(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> tuple[float, str]:
    """The largest |found - expected| relative to the largest |expected| of a tensor,
    and the name of that tensor."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    worst = 0.0
    worst_name = ""
    for name, tensor in expected.items():
        expected_values = tensor.detach().cpu().double()
        found_values = found[name].detach().cpu().double()
        assert found_values.isfinite().all(), f"{name} is not finite"
        scale = expected_values.abs().max().clamp_min(1e-12)
        difference = ((found_values - expected_values).abs().max() / scale).item()
        if difference > worst:
            worst = difference
            worst_name = name
    return worst, worst_name


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> None:
    """Every tensor equals the expected one within tolerance, relative to its largest entry."""
    difference, name = largest_difference(found, expected)
    assert difference <= tolerance, (
        f"{name}: off by {difference:.2g} of its largest entry (tolerance {tolerance:g})"
    )


class SameGames:
    """Observations depend on nothing but the time; reward for action 1;
    a life is lost at every third step."""

    def __init__(self, args, num_envs: int):
        self.num_envs = num_envs
        self.num_actions = 4

    def reset(self, seed: int, *keys) -> np.ndarray:
        self.time = 0
        return self.observe()

    def observe(self) -> np.ndarray:
        shape = (self.num_envs, 4, 84, 84)
        return np.random.default_rng(self.time).integers(0, 256, shape, dtype=np.uint8)

    def step(self, actions: np.ndarray) -> GameStep:
        self.time += 1
        lost = np.full(self.num_envs, self.time % 3 == 0)
        rewards = (actions == 1) * 1.0
        obs = self.observe()
        return GameStep(obs, rewards, lost, np.zeros_like(lost), obs, [])


def draw_the_same_everywhere(monkeypatch) -> None:
    """torch.rand and torch.randperm with a generator give numpy's numbers:
    a GPU's generators draw others."""
    numbers = np.random.default_rng(0)
    torch_rand = torch.rand
    torch_randperm = torch.randperm

    def rand(*shape, generator=None, device=None, **options) -> torch.Tensor:
        if generator is None:  # torch's compiler draws as well
            return torch_rand(*shape, device=device, **options)
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        values = torch.from_numpy(numbers.random(shape, dtype=np.float32))
        return values.to(device or "cpu", torch.get_default_dtype())

    def randperm(size, generator=None, device=None, **options) -> torch.Tensor:
        if generator is None:
            return torch_randperm(size, device=device, **options)
        return torch.from_numpy(numbers.permutation(size)).to(device or "cpu")

    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(torch, "randperm", randperm)
