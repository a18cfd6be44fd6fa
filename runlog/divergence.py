"""Seeds whose training has become non-finite: at which step, and which quantity was first
(docs/runs.md)."""

from collections.abc import Sequence

import torch

from runlog.terminal import warn


class Divergence:
    """For each seed of a batch the step of its first non-finite value, 0 if there is none yet, and
    which value it was.

    Everything stays on the device until it is requested: `update` does not wait for the GPU.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.seeds = list(seeds)
        self.step = torch.zeros(len(seeds), dtype=torch.int64, device=device)
        # index into `names`, from 1
        self.cause = torch.zeros(len(seeds), dtype=torch.int64, device=device)
        self.names: list[str] = []
        self._reported = set()

    def move_to(self, device: torch.device) -> None:
        """Moves the values to this device."""
        if self.step.device == device:
            return
        self.step = self.step.to(device)
        self.cause = self.cause.to(device)

    def update(self, step: int | torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        """values: name -> (seeds,). Where one is not finite and none was before, records this step
        and the first such name.

        The step may be a tensor (seeds,).
        """
        for name, value in values.items():
            if name not in self.names:
                self.names.append(name)
            is_first = (self.step == 0) & ~torch.isfinite(value)
            self.step = torch.where(is_first, step, self.step)
            self.cause = torch.where(is_first, self.names.index(name) + 1, self.cause)

    def report(self) -> list[int]:
        """Prints one line on stderr for each seed that has diverged since the last call; returns
        the steps."""
        steps = self.step.tolist()
        causes = self.cause.tolist()
        for i, (seed, step, cause) in enumerate(zip(self.seeds, steps, causes)):
            if step and i not in self._reported:
                self._reported.add(i)
                name = f": {self.names[cause - 1]} is not finite" if cause else ""
                warn(f"seed {seed} has diverged at step {step}{name}")
        return steps
