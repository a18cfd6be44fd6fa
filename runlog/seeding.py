"""Random numbers: a separate seed for every purpose, generators, and noise with a seed axis."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from runlog.terminal import UserError


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for the purpose given by `keys`, e.g. `derive_seed(args.seed, "episode", 12)`.

    seed: int >= 0, otherwise ValueError. The same in every process and version; different keys give
    unrelated seeds ("1" is not 1).
    """
    words = [int(seed)]
    for key in keys:
        text = f"str:{key}" if isinstance(key, str) else f"int:{int(key)}"
        digest = hashlib.sha256(text.encode()).digest()
        words.append(int.from_bytes(digest[:8], "little"))
    (state,) = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(state) >> 1


def derive_seeds(seeds, *keys: str | int) -> np.ndarray:
    """`derive_seed` for every entry of an integer array of any shape."""
    seeds = np.asarray(seeds)
    derived = [derive_seed(int(seed), *keys) for seed in seeds.ravel()]
    return np.array(derived, dtype=np.int64).reshape(seeds.shape)


def make_generator(
    seed: int, *keys: str | int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A `torch.Generator` on `device`, seeded with `derive_seed(seed, *keys)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *keys))


def make_generators(
    seeds: Sequence[int], *keys: str | int, device: str | torch.device = "cpu"
) -> list[torch.Generator]:
    """`make_generator` for each seed."""
    return [make_generator(seed, *keys, device=device) for seed in seeds]


def normals(generators: Sequence[torch.Generator], *shape: int, axis: int = 0) -> torch.Tensor:
    """Standard normal noise of `shape` with a seed axis inserted at `axis`; each seed uses its own
    generator."""
    draws = [torch.randn(shape, generator=g, device=g.device) for g in generators]
    return torch.stack(draws, axis)


def get_states(generators: Mapping[str, torch.Generator | Sequence[torch.Generator]]) -> dict:
    """The states of generators, for a checkpoint (`Batch.save`): use -> state; for a list of
    generators, one per seed, use -> (seeds, bytes)."""
    states = {}
    for use, found in generators.items():
        if isinstance(found, torch.Generator):
            states[use] = found.get_state()
        else:
            states[use] = torch.stack([generator.get_state() for generator in found])
    return states


def set_states(
    generators: Mapping[str, torch.Generator | Sequence[torch.Generator]], states
) -> None:
    """Restores generators from the states in a checkpoint, in the form returned by `get_states`,
    or, if `states` is a list, from those of each seed (`Batch.load`). Raises UserError if they are
    from another kind of device."""
    if isinstance(states, list):
        states = {use: [state[use] for state in states] for use in generators}
    for use, found in generators.items():
        if isinstance(found, torch.Generator):
            _set_state(found, states[use])
            continue
        for generator, state in zip(found, states[use], strict=True):
            _set_state(generator, state)


def _set_state(generator: torch.Generator, state: torch.Tensor) -> None:
    try:
        generator.set_state(state)
    except RuntimeError:
        kind = "cpu" if generator.device.type == "cuda" else "cuda"
        problem = f"--device {generator.device}: the run was started on another device"
        raise UserError(f"{problem}; use --device {kind}") from None
